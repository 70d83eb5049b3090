"""Methods beside Captum's and Zennit's own code in float64, on torch networks drawn at random: who differs, and by how much.

Needs the extra `[dev]`. Every network is exported to ONNX in memory and explained by the float64 backend and by the peer.
One line per method and setting: how many networks, the worst difference relative to the peer's largest value, and which
network's it is; `--seeds N:M --only TEXT` looks closer. Differences that are the peer's own are left out by `fits`, with the
reason beside it. `python tools/compare_drawn.py --seeds 0:60`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import bench_cpu
import captum.attr as ca
import numpy as np
import torch
from captum.attr._utils.custom_modules import Addition_Module
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule
from compare_peers import zennit_module
from drawn_torch import Drawn, Joined, Summed, draw
from torch import Tensor, nn

from onnx_explain import lrp_composite
from onnx_explain.explainer import Explainers
from onnx_explain.methods import FIRST, WEIGHTED
from onnx_explain.rules import lrp
from onnx_explain.rules.lrp import LinearRule, Share, Term

attribution, canonizers, composites, layer, rules, types = (
    zennit_module(name) for name in ("attribution", "canonizers", "composites", "layer", "rules", "types")
)
Array = np.ndarray[Any, np.dtype[Any]]
MERGED: Any = {"batch_norm": "fold-or-pass"}  # what Zennit does with its canonizer


@dataclass(frozen=True, eq=False)
class Asked:
    """One of our methods, where it starts, its options (they may be functions of the network), and given noise."""

    method: Any
    seed: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    samples: int = 0

    def way(self, d: Drawn) -> Any:
        """As `Explainers` takes it."""
        given = {k: v(d) if callable(v) else v for k, v in self.options.items()}
        return (self.method, given) if isinstance(self.method, str) else self.method

    def alone(self, d: Drawn) -> Array:
        """Our float64 relevance of the input."""
        explainer = Explainers(d.model, [self.way(d)], seed=self.seed, backend="reference")
        if self.samples:
            way = explainer._ways[0]
            explainer._ways = [replace(way, procedure=replace(way.procedure, noise=noise(d, self.samples)))]  # type: ignore[type-var]
        return explainer(d.x.numpy(), [d.target.numpy()])[0][0].relevance["x"]


def by(method: Any, seed: str | None = None, **options: Any) -> Asked:
    """`Asked` with its options as keywords."""
    return Asked(method, seed, options)


def in_noise(method: str, samples: int) -> Asked:
    """A method of many points with given noise."""
    return Asked(method, options={"samples": samples}, samples=samples)


def answers(d: Drawn, asked: Sequence[Asked]) -> list[Array | Exception]:
    """All that need no noise in one run per seed; each alone where one of them fails."""
    found: dict[int, Array | Exception] = {}
    for seed in {a.seed for a in asked}:
        together = [(i, a) for i, a in enumerate(asked) if a.seed == seed and not a.samples]
        if together:
            with contextlib.suppress(Exception):
                explainers = Explainers(d.model, [a.way(d) for _, a in together], seed=seed, backend="reference")
                several = explainers(d.x.numpy(), [d.target.numpy()])[0]
                found |= {i: e.relevance["x"] for (i, _), e in zip(together, several)}
    for i in set(range(len(asked))) - found.keys():
        try:
            found[i] = asked[i].alone(d)
        except Exception as error:
            found[i] = error
    return [found[i] for i in range(len(asked))]


@dataclass(frozen=True)
class Contest:
    """Ours and a peer's answer to one question; `fits`: the networks for which both ask the same."""

    name: str
    peer: str
    ours: Asked
    theirs: Callable[[Drawn], Array]
    fits: Callable[[Drawn], bool] = lambda d: True
    limit: float = 1e-9


# ------------------------------------------------------------------------------------------------- numbers for both


def noise(d: Drawn, samples: int) -> Array:
    """The same for both: [samples, N, …]."""
    return d.again().normal(0, 0.2, (samples, *d.x.shape))


def base(d: Drawn) -> Array:
    """A baseline [1, …] that is not zero."""
    return d.again().normal(0, 0.5, (1, *d.x.shape[1:]))


def windows(d: Drawn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes and strides of windows, no stride beyond its window."""
    rng = d.again()
    sizes = tuple(int(rng.integers(max(1, s // 3), s + 1)) for s in d.x.shape[1:])
    return sizes, tuple(int(rng.integers(max(1, w // 2), w + 1)) for w in sizes)


def groups(d: Drawn) -> Array:
    """The input's entries in five groups."""
    return d.again().permutation(np.arange(d.x[0].numel()) % 5).reshape(d.x.shape[1:])


# ----------------------------------------------------------------------------------------------------------- captum's


def captum(name: str, **options: Any) -> Callable[[Drawn], Array]:
    """An attribution of `captum.attr` by its class name; options may be functions of the network."""

    def run(d: Drawn) -> Array:
        given = {k: v(d) if callable(v) else v for k, v in options.items()}
        found: Tensor = getattr(ca, name)(d.network).attribute(d.x.clone().requires_grad_(), target=d.target, **given)
        return found.detach().numpy()

    return run


def noise_tunnel(kind: str, samples: int) -> Callable[[Drawn], Array]:
    """Captum's NoiseTunnel with the noise given in place of its own."""

    def run(d: Drawn) -> Array:
        given, keep = torch.from_numpy(noise(d, samples)), torch.normal
        rows = given.movedim(1, 0).reshape(-1, *d.x.shape[1:])
        torch.normal = lambda *a, **k: rows  # type: ignore[assignment]
        try:
            tunnel = ca.NoiseTunnel(ca.Saliency(d.network))
            found = tunnel.attribute(d.x, nt_type=kind, nt_samples=samples, target=d.target, abs=False)
        finally:
            torch.normal = keep
        array: Array = found.detach().numpy()
        return array

    return run


def captum_lrp(
    rule: Callable[[], Any], norm: Callable[[], Any] = EpsilonRule, head: Callable[[], Any] | None = None
) -> Callable[[Drawn], Array]:
    """Captum's LRP with `rule` on every convolution and dense layer (`head` on the latter), Epsilon elsewhere."""

    def run(d: Drawn) -> Array:
        for module in d.network.modules():
            if isinstance(module, nn.Linear):
                module.rule = (head or rule)()
            elif isinstance(module, nn.modules.conv._ConvNd):
                module.rule = rule()
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.rule = norm()
            elif isinstance(module, Addition_Module | types.AvgPool | types.MaxPool):
                module.rule = EpsilonRule()
        found: Tensor = ca.LRP(d.network).attribute(d.x.clone().requires_grad_(), target=d.target)
        return found.detach().numpy()

    return run


# ----------------------------------------------------------------------------------------------------------- zennit's


class Merge(canonizers.SequentialMergeBatchNorm):  # type: ignore[misc, name-defined]
    """Zennit's, without the ε that 0.5.1 leaves in a merged BatchNorm (its 1.0.0 takes it out, too).

    A transposed convolution in groups it cannot merge: its weights have as many output channels as one group.
    """

    def register(self, linears: Any, batch_norm: Any) -> None:
        self.eps = batch_norm.eps
        super().register(linears, batch_norm)
        batch_norm.eps = 0.0

    def remove(self) -> None:
        super().remove()
        self.batch_norm.eps = self.eps


def _sum_of(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.canonizer_sum(torch.stack(self.summands(x), dim=-1))
    return y


def _sums(name: str, module: nn.Module) -> dict[str, Any] | None:
    if not isinstance(module, Summed):
        return None
    return {"forward": _sum_of.__get__(module), "canonizer_sum": layer.Sum()}


def zennit(
    make: Callable[[list[Any], Drawn], Any],
    *,
    start: str = "one",
    merge: bool = True,
    attributor: Any = attribution.Gradient,
    **options: Any,
) -> Callable[[Drawn], Array]:
    """Relevance by a composite, seeded with one or with the target's score."""

    def run(d: Drawn) -> Array:
        def seed(logits: Tensor) -> Tensor:
            chosen = nn.functional.one_hot(d.target, logits.shape[1]).to(logits)
            return chosen if start == "one" else logits.detach() * chosen

        changes = [canonizers.AttributeCanonizer(_sums), *([Merge()] if merge else [])]
        with attributor(model=d.network, composite=make(changes, d), attr_output=seed, **options) as attribute:
            _, found = attribute(d.x.clone().requires_grad_())
        array: Array = found.detach().numpy()
        return array

    return run


def composite(name: str, **options: Any) -> Callable[[list[Any], Drawn], Any]:
    """A composite of Zennit's by its class name."""
    return lambda changes, d: getattr(composites, name)(
        canonizers=changes, **{k: v(d) if callable(v) else v for k, v in options.items()}
    )


def everywhere(
    rule: Callable[[Drawn], Any], first: Callable[[Drawn], Any] | None = None
) -> Callable[[list[Any], Drawn], Any]:
    """One rule on all weighted layers, another on the first one; the rest as in Zennit's own composites."""

    def make(changes: list[Any], d: Drawn) -> Any:
        table = [*composites.layer_map_base(1e-6), (types.Linear, rule(d))]
        if first is None:
            return composites.LayerMapComposite(table, canonizers=changes)
        return composites.SpecialFirstLayerMapComposite(table, [(types.Linear, first(d))], canonizers=changes)

    return make


# ----------------------------------------------------------------------------------------------------------- the table


def merges(d: Drawn) -> bool:
    """Every BatchNorm stands behind a weighted layer."""
    return "lone norm" not in d.has


def in_captums_reach(d: Drawn) -> bool:
    """Its LRP knows no activation but ReLU and Tanh, and multiplies what comes from a concatenation by the input once more."""
    return not d.has & {"smooth", "concat"}


def one_first(d: Drawn) -> bool:
    """One layer sees the input: Zennit's first layer is the first that runs, ours all that nothing weighted stands before."""
    opening = next(m for m in d.network.features if not isinstance(m, types.BatchNorm))  # type: ignore[union-attr]
    return not isinstance(opening, Summed | Joined)


def box(d: Drawn, end: int) -> Tensor:
    return torch.full_like(d.x[:1], (-3.0, 3.5)[end])


def _zennit_contests() -> Iterator[Contest]:
    for bias in (False, True):
        zero: Any = ["bias"] if bias else None
        suffix = ", zero_bias" if bias else ""
        for method, name in (
            ("lrp-epsilon-plus", "EpsilonPlus"),
            ("lrp-epsilon-plus-flat", "EpsilonPlusFlat"),
            ("lrp-epsilon-alpha2-beta1", "EpsilonAlpha2Beta1"),
            ("lrp-epsilon-alpha2-beta1-flat", "EpsilonAlpha2Beta1Flat"),
            ("excitation-backprop", "ExcitationBackprop"),
        ):
            fits = one_first if "Flat" in name else lambda d: True
            theirs = composite(name, zero_params=zero)
            for merge, batch_norm in ((True, "fold-or-pass"), (False, "pass")):
                yield Contest(
                    f"{method}, {batch_norm}{suffix}",
                    f"zennit {name}" + ("" if merge else ", no canonizer"),
                    by(method, "one", zero_bias=bias, batch_norm=batch_norm),
                    zennit(theirs, merge=merge),
                    fits,
                )
        yield Contest(
            f"lrp-epsilon-gamma-box{suffix}", "zennit EpsilonGammaBox",
            by("lrp-epsilon-gamma-box", "score", low=-3.0, high=3.5, zero_bias=bias, **MERGED),
            zennit(composite("EpsilonGammaBox", low=lambda d: box(d, 0), high=lambda d: box(d, 1), zero_params=zero), start="score"),
            one_first,
        )  # fmt: skip
        for label, ours, rule in (
            ("ε 1e-6", lrp.epsilon(1e-6, zero_bias=bias), lambda d, z=zero: rules.Epsilon(1e-6, zero_params=z)),
            ("ε 0.25", lrp.epsilon(0.25, zero_bias=bias), lambda d, z=zero: rules.Epsilon(0.25, zero_params=z)),
            ("γ 0.25", lrp.gamma(0.25, zero_bias=bias), lambda d, z=zero: rules.Gamma(0.25, zero_params=z)),
            ("γ 100", lrp.gamma(100.0, zero_bias=bias), lambda d, z=zero: rules.Gamma(100.0, zero_params=z)),
            ("z⁺", lrp.z_plus(zero_bias=bias), lambda d, z=zero: rules.ZPlus(zero_params=z)),
            ("α2β1", lrp.alpha_beta(zero_bias=bias), lambda d, z=zero: rules.AlphaBeta(zero_params=z)),
            (
                "α1β0",
                lrp.alpha_beta(1.0, 0.0, zero_bias=bias),
                lambda d, z=zero: rules.AlphaBeta(1.0, 0.0, zero_params=z),
            ),
            (
                "α3β2",
                lrp.alpha_beta(3.0, 2.0, zero_bias=bias),
                lambda d, z=zero: rules.AlphaBeta(3.0, 2.0, zero_params=z),
            ),
            ("w²", lrp.w_square(with_bias=not bias), lambda d, z=zero: rules.WSquare(zero_params=z)),
            ("flat", lrp.flat(), lambda d: rules.Flat()),
        ):
            yield Contest(
                f"{label} everywhere{suffix}",
                "zennit rule",
                by(lrp_composite((WEIGHTED, ours, ""), **MERGED), "one"),
                zennit(everywhere(rule)),
            )
    for label, ours, rule in (
        ("zᴮ", lrp.z_box(-3.0, 3.5), lambda d: rules.ZBox(box(d, 0), box(d, 1))),
        ("w²", lrp.w_square(with_bias=True), lambda d: rules.WSquare()),
        ("flat", lrp.flat(), lambda d: rules.Flat()),
    ):
        yield Contest(
            f"{label} first, z⁺", "zennit rules", by(lrp_composite((FIRST, ours, ""), (WEIGHTED, lrp.z_plus(), ""), **MERGED), "score"),
            zennit(everywhere(lambda d: rules.ZPlus(), rule), start="score"), one_first,
        )  # fmt: skip
    for method, name in (("guided-backprop", "GuidedBackprop"), ("deconvnet", "DeconvNet")):
        yield Contest(method, f"zennit {name}", by(method), zennit(composite(name), merge=False))
    yield Contest(
        "integrated-gradients right 20",
        "zennit IntegratedGradients",
        by("integrated-gradients", steps=20, rule="right"),
        zennit(lambda c, d: None, attributor=attribution.IntegratedGradients),
        limit=1e-6,
    )  # α in float32


def _captum_contests() -> Iterator[Contest]:
    yield Contest("gradient", "captum Saliency", by("gradient"), captum("Saliency", abs=False))
    yield Contest("saliency", "captum Saliency", by("saliency"), captum("Saliency"))
    yield Contest("input-x-gradient", "captum InputXGradient", by("input-x-gradient"), captum("InputXGradient"))
    yield Contest("guided-backprop", "captum GuidedBackprop", by("guided-backprop"), captum("GuidedBackprop"))
    yield Contest("deconvnet", "captum Deconvolution", by("deconvnet"), captum("Deconvolution"))
    for rule, scale in (
        ("gausslegendre", 1.0),
        ("riemann_left", 1.0),
        ("riemann_middle", 1.0),
        ("riemann_right", 1.0),
        ("riemann_trapezoid", 12 / 11),
    ):
        for label, start in (("zero", None), ("given", base)):
            theirs = captum(
                "IntegratedGradients",
                n_steps=12,
                method=rule,
                baselines=(lambda d: torch.from_numpy(base(d))) if start else None,
            )
            tied = start is None and rule in ("riemann_left", "riemann_trapezoid")
            ours = by("integrated-gradients", steps=12, rule=rule.removeprefix("riemann_"), baseline=start or "zero")
            # captum's trapezoid weighs (n - 1)/n in all; its α are float32
            yield Contest(
                f"integrated-gradients {rule}, {label}",
                "captum",
                ours,
                lambda d, t=theirs, s=scale: s * t(d),  # type: ignore[misc]
                # the zero picture gives a max-pool ties, which captum's rounding and ours decide
                lambda d, tied=tied: not (tied and "max" in d.has),  # type: ignore[misc]
                2e-6,
            )
    for method, kind in (("smoothgrad", "smoothgrad"), ("smoothgrad-squared", "smoothgrad_sq"), ("vargrad", "vargrad")):
        yield Contest(method, "captum NoiseTunnel", in_noise(method, 5), noise_tunnel(kind, 5))
    for label, start in (("zero", None), ("given", base)):
        # captum's pools lose differences, and it has no rule for some activations and takes their gradient
        yield Contest(
            f"deeplift, {label}", "captum DeepLift", by("deeplift", baseline=start or "zero"),
            captum("DeepLift", baselines=(lambda d: torch.from_numpy(base(d))) if start else None), lambda d: not d.has & {"max", "SiLU", "GELU"},
        )  # fmt: skip
    # captum keeps these in float32; of a group every member gets the whole value there, an equal part here
    yield Contest(
        "occlusion",
        "captum Occlusion",
        by("occlusion", window=lambda d: windows(d)[0], stride=lambda d: windows(d)[1], baseline=0.5),
        captum(
            "Occlusion", sliding_window_shapes=lambda d: windows(d)[0], strides=lambda d: windows(d)[1], baselines=0.5
        ),
        limit=1e-5,
    )
    shapley = captum("ShapleyValues", feature_mask=lambda d: torch.from_numpy(groups(d))[None], baselines=0.5)
    yield Contest(
        "shapley-sampling, exact",
        "captum ShapleyValues",
        by("shapley-sampling", features=groups, baseline=0.5),
        lambda d: shapley(d) / np.bincount(groups(d).ravel())[groups(d)],
        limit=1e-5,
    )
    eps = {"epsilon": 1e-9, "batch_norm": "epsilon"}
    yield Contest(
        "lrp-epsilon 1e-9", "captum LRP", by("lrp-epsilon", **eps), captum_lrp(EpsilonRule), in_captums_reach, 1e-6
    )
    yield Contest(
        "lrp-epsilon 1e-9, pass",
        "captum LRP, IdentityRule",
        by("lrp-epsilon", epsilon=1e-9, batch_norm="pass"),
        captum_lrp(EpsilonRule, IdentityRule),
        lambda d: in_captums_reach(d) and merges(d),
        1e-6,
    )
    for zero, b in ((False, ""), (True, "0")):
        gamma = LinearRule((Share((Term("", "g+", b),)),), 1e-9, 0.25)
        alpha = LinearRule((Share((Term("", "+", b),)),), 1e-9)
        suffix = ", no bias" if zero else ""
        yield Contest(
            f"γ 0.25 as captum's{suffix}",
            "captum GammaRule",
            by(lrp_composite((WEIGHTED, gamma, ""), **eps)),
            captum_lrp(lambda z=zero: GammaRule(0.25, z)),
            in_captums_reach,
            1e-6,
        )
        yield Contest(
            f"α1β0 as captum's{suffix}",
            "captum Alpha1_Beta0_Rule",
            by(lrp_composite((WEIGHTED, alpha, ""), **eps)),
            captum_lrp(lambda z=zero: Alpha1_Beta0_Rule(z)),
            in_captums_reach,
            1e-6,
        )


CONTESTS = (*_zennit_contests(), *_captum_contests())


# -------------------------------------------------------------------------------------------------------- the search


@dataclass
class Line:
    """What came of one contest."""

    contest: Contest
    cases: int = 0
    worst: float = 0.0
    at: int | None = None
    beyond: list[int] = field(default_factory=list)
    ours_failed: dict[str, list[int]] = field(default_factory=dict)
    peer_failed: dict[str, list[int]] = field(default_factory=dict)

    def meet(self, d: Drawn, ours: Array | Exception) -> None:
        """Run the peer on one network and compare."""
        try:
            theirs = self.contest.theirs(d)
        except Exception as error:  # a peer that cannot do it is a result
            self.peer_failed.setdefault(f"{type(error).__name__}: {str(error)[:90]}", []).append(d.seed)
            return
        if isinstance(ours, Exception):
            self.ours_failed.setdefault(f"{type(ours).__name__}: {str(ours)[:200]}", []).append(d.seed)
            print(f"  {self.contest.name}: {ours}", file=sys.stderr)
            return
        gap = difference(ours, theirs)
        self.cases += 1
        if not gap <= self.contest.limit:
            self.beyond.append(d.seed)
            print(f"  {self.contest.name} | {self.contest.peer}: {gap:.1e}", file=sys.stderr)
        if not gap <= self.worst:
            self.worst, self.at = gap, d.seed


def difference(ours: Array, theirs: Array) -> float:
    """max |ours - theirs| / max |theirs|, absolute where theirs is zero; what is not a number in both counts as equal."""
    same = np.isnan(ours) & np.isnan(theirs)
    ours, theirs = np.where(same, 0.0, ours), np.where(same, 0.0, theirs)
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))


def main(argv: Sequence[str] | None = None) -> int:
    """Search, print the table; 1 where a difference is beyond its limit or ours failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0:20", help="FIRST:END; even ones have no activation but ReLU")
    parser.add_argument("--only", default="", help="contests that have this in ours or the peer's name")
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore")  # the peers announce their own hooks
    lines = [Line(c) for c in CONTESTS if args.only in f"{c.name} | {c.peer}"]
    for seed in range(*(int(v) for v in args.seeds.split(":"))):
        started, d = time.perf_counter(), draw(seed, rectified=seed % 2 == 0)
        fitting = [line for line in lines if line.contest.fits(d)]
        for line, ours in zip(fitting, answers(d, [line.contest.ours for line in fitting])):
            line.meet(d, ours)
        print(
            f"seed {seed}: {', '.join(sorted(d.has))} ({time.perf_counter() - started:.1f} s)",
            file=sys.stderr,
            flush=True,
        )
    rows = [
        (x.contest.name, x.contest.peer, str(x.cases), f"{x.worst:.0e}", "" if x.at is None else str(x.at), f"{len(x.beyond)}: {x.beyond[:8]}" if x.beyond else "", "; ".join(f"{e} {s[:4]}" for e, s in x.ours_failed.items()), "; ".join(f"{e} {s[:4]}" for e, s in x.peer_failed.items()))
        for x in lines
    ]  # fmt: skip
    bench_cpu.show(
        ("ours", "peer", "cases", "worst", "seed", "beyond", "ours failed", "peer failed"),
        rows,
        "Drawn networks beside the peers",
    )
    return int(any(x.beyond or x.ours_failed for x in lines))


if __name__ == "__main__":
    sys.exit(main())
