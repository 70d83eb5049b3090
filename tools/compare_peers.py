"""Explained ONNX models beside Captum and Zennit on torch: same networks, same weights, same machine, one table.

Needs the extra `[dev]` (torch, captum, zennit). Each line runs in a process of its own, where plain torch, the
peer, plain ONNX Runtime and the explained model take turns with the same number of threads.
`python tools/compare_peers.py --models vgg16 resnet50 --batch 1 8 --out docs/benchmarks/peers`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shlex
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench_cpu
import make_models
import numpy as np
import onnx
import torch
from bench_cpu import Builder, Built, Spread
from onnx import numpy_helper
from torch import Tensor, nn

PAUSE_SECONDS = 0.05  # torch's threads spin for a while after a run; without a pause they would slow the next one
TOLERANCE = 1e-3  # float32 maps whose definitions coincide: largest difference relative to the largest value
BOX = (-3.0, 3.0)  # the value range that the box rules assume for standard normal pictures


# ------------------------------------------------------------------------------------------------ the networks in torch


class VGG16(nn.Module):
    """VGG-16 with torchvision's parameter names; every ReLU is a module of its own, not in place, as hooks need."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c = 3
        for entry in make_models.VGG16:
            if entry == 0:
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers += [nn.Conv2d(c, entry, 3, padding=1), nn.ReLU()]
                c = entry
        self.features = nn.Sequential(*layers)
        head = [nn.Linear(512 * (size // 32) ** 2, 4096), nn.ReLU(), nn.Dropout()]
        head += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, classes)]
        self.classifier = nn.Sequential(*head)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, size, size] → [N, classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided), 1×1 with BatchNorm, and the shortcut."""

    def __init__(self, c_in: int, c: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(c_in, c, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()
        self.conv2 = nn.Conv2d(c, c, 3, stride, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(c), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = nn.Conv2d(c, 4 * c, 1, bias=False), nn.BatchNorm2d(4 * c), nn.ReLU()
        self.downsample: nn.Sequential | None = None
        if stride != 1 or c_in != 4 * c:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, 4 * c, 1, stride, bias=False), nn.BatchNorm2d(4 * c))

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the shortcut."""
        y: Tensor = self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        summand: Tensor = self.bn3(self.conv3(y))
        return summand

    def shortcut(self, x: Tensor) -> Tensor:
        """The other summand."""
        summand: Tensor = x if self.downsample is None else self.downsample(x)
        return summand

    def forward(self, x: Tensor) -> Tensor:
        """[N, c_in, H, W] → [N, 4c, H/stride, W/stride]."""
        y: Tensor = self.relu3(self.branch(x) + self.shortcut(x))
        return y


class ResNet50(nn.Module):
    """ResNet-50 with torchvision's parameter names."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c_in = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            c, layers = 64 * 2**stage, []
            for i in range(blocks):
                layers.append(Bottleneck(c_in, c, 2 if i == 0 and stage > 0 else 1))
                c_in = 4 * c
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, size, size] → [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"vgg16": VGG16, "resnet50": ResNet50}


def torch_network(name: str, plain: Path) -> nn.Module:
    """The torch module with the weights of the ONNX file, in evaluation mode; parameters need no gradient."""
    model = onnx.load(plain)
    weights = {w.name: torch.from_numpy(numpy_helper.to_array(w).copy()) for w in model.graph.initializer}
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    network = NETWORKS[name](size, model.graph.output[0].type.tensor_type.shape.dim[1].dim_value)
    lacking = network.load_state_dict(weights, strict=False)
    wrong = [key for key in lacking.missing_keys if not key.endswith("num_batches_tracked")] + lacking.unexpected_keys
    if wrong:
        raise RuntimeError(f"{name}: the ONNX file and the torch module disagree on {', '.join(wrong)}")
    return network.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------- the peers

Attribute = Callable[[Tensor, Tensor], "tuple[Tensor, float]"]  # picture, targets → map, milliseconds


def moment(x: Tensor) -> float:
    """Seconds, once the device of x is done."""
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def captum_method(name: str, **options: Any) -> Callable[[nn.Module], Attribute]:
    """An attribution of `captum.attr` by its class name."""

    def prepare(network: nn.Module) -> Attribute:
        method = getattr(importlib.import_module("captum.attr"), name)(network)

        def attribute(x: Tensor, target: Tensor) -> tuple[Tensor, float]:
            x = x.clone().requires_grad_()
            start = moment(x)
            result: Tensor = method.attribute(x, target=target, **options)
            return result.detach(), (moment(x) - start) * 1e3

        return attribute

    return prepare


def zennit_module(name: str) -> Any:
    """`zennit.<name>`, without torchvision, which zennit's `__init__` imports for its own ResNet canonizer."""
    if "zennit" not in sys.modules:
        spec = importlib.util.find_spec("zennit")
        if spec is None:
            raise ModuleNotFoundError("zennit is not installed: pip install 'onnx-explain[dev]'")
        package = types.ModuleType("zennit")
        package.__path__ = list(spec.submodule_search_locations or [])
        sys.modules["zennit"] = package
    return importlib.import_module(f"zennit.{name}")


def zennit_canonizers() -> list[Any]:
    """Residual sums as modules that a rule can be attached to, and BatchNorm merged into the convolution before it."""
    canonizers, layer = zennit_module("canonizers"), zennit_module("layer")

    def forward(self: Any, x: Tensor) -> Tensor:
        summands = torch.stack([self.shortcut(x), self.branch(x)], dim=-1)
        y: Tensor = self.relu3(self.canonizer_sum(summands))
        return y

    def attributes(name: str, module: nn.Module) -> dict[str, Any] | None:
        if not isinstance(module, Bottleneck):
            return None
        return {"forward": forward.__get__(module), "canonizer_sum": layer.Sum()}

    return [canonizers.SequentialMergeBatchNorm(), canonizers.AttributeCanonizer(attributes)]


def zennit_composite(name: str, box: bool = False) -> Callable[[nn.Module], Attribute]:
    """A composite of `zennit.composites` by its class name, seeded with the target's score.

    Only the attribution itself is timed, not the registration of hooks.
    """

    def prepare(network: nn.Module) -> Attribute:
        composites, attribution = zennit_module("composites"), zennit_module("attribution")

        def attribute(x: Tensor, target: Tensor) -> tuple[Tensor, float]:
            bounds = {"low": torch.full_like(x, BOX[0]), "high": torch.full_like(x, BOX[1])} if box else {}
            composite = getattr(composites, name)(canonizers=zennit_canonizers(), **bounds)

            def seed(logits: Tensor) -> Tensor:
                return logits * nn.functional.one_hot(target, logits.shape[1])

            with attribution.Gradient(model=network, composite=composite, attr_output=seed) as attributor:
                start = moment(x)
                _, relevance = attributor(x)
                return relevance.detach(), (moment(x) - start) * 1e3

        return attribute

    return prepare


@dataclass(frozen=True)
class Contest:
    """A method of ours and the peer's that answers the same question; `same`: the formulas coincide."""

    ours: str
    peer: str
    prepare: Callable[[nn.Module], Attribute]
    same: bool = True


CONTESTS = (
    Contest("gradient", "Captum Saliency", captum_method("Saliency", abs=False)),
    Contest("input-x-gradient", "Captum InputXGradient", captum_method("InputXGradient")),
    Contest("guided-backprop", "Captum GuidedBackprop", captum_method("GuidedBackprop")),
    Contest("lrp-epsilon", "Captum LRP", captum_method("LRP"), same=False),  # residual sums are unknown to it
    Contest("lrp-epsilon-plus", "Zennit EpsilonPlus", zennit_composite("EpsilonPlus")),
    Contest(
        "lrp-epsilon-alpha2-beta1", "Zennit EpsilonAlpha2Beta1", zennit_composite("EpsilonAlpha2Beta1"), same=False
    ),
    Contest(
        f"lrp-epsilon-gamma-box:low={BOX[0]},high={BOX[1]}",
        "Zennit EpsilonGammaBox",
        zennit_composite("EpsilonGammaBox", box=True),
    ),
)


# ---------------------------------------------------------------------------------------------------- the measurements


@dataclass(frozen=True)
class Line:
    """One line of the table; milliseconds; `difference` is relative to the peer's largest value."""

    model: str
    batch: int
    ours: str
    peer: str
    same: bool
    plain_ms: Spread | None = None
    ours_ms: Spread | None = None
    torch_ms: Spread | None = None
    peer_ms: Spread | None = None
    factor: Spread | None = None
    difference: float | None = None
    correlation: float | None = None
    error: str | None = None
    peer_error: str | None = None

    @property
    def lost(self) -> bool:
        """Whether ours failed, the peer was as fast or faster, or maps that should coincide differ."""
        if self.error is not None:
            return True
        wrong = self.same and self.difference is not None and not self.difference <= TOLERANCE
        return wrong or (self.factor is not None and self.factor.median <= 1.0)


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|; infinite where theirs is zero everywhere and ours is not."""
    gap, scale = float(np.abs(ours - theirs).max()), float(np.abs(theirs).max())
    return gap / scale if scale else (0.0 if gap == 0 else float("inf"))


def compete(
    index: int, name: str, plain: Path, explained: Path, batch: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Run one contest in this process: all four take turns; returns the fields of `Line` that it fills."""
    warnings.filterwarnings("ignore", category=UserWarning)  # the peers announce their own hooks
    torch.set_num_threads(threads)
    network = torch_network(name, plain)
    attribute = CONTESTS[index].prepare(network)
    sessions = [bench_cpu.open_session(path, threads) for path in (plain, explained)]
    feeds = bench_cpu.pictures(sessions[0], batch)
    x = torch.from_numpy(next(iter(feeds.values())))
    logits, relevance = sessions[1].run(None, feeds)[:2]
    target = torch.from_numpy(logits.argmax(1))

    def forward_ms() -> float:
        with torch.inference_mode():
            start = time.perf_counter()
            network(x)
            return (time.perf_counter() - start) * 1e3

    turns: dict[str, Callable[[], float]] = {
        "plain_ms": lambda: bench_cpu.run_ms(sessions[0], feeds),
        "ours_ms": lambda: bench_cpu.run_ms(sessions[1], feeds),
        "torch_ms": forward_ms,
        "peer_ms": lambda: attribute(x, target)[1],
    }
    found: dict[str, Any] = {}
    try:
        theirs = attribute(x, target)[0].numpy()
        found["difference"] = largest_difference(relevance, theirs)
        found["correlation"] = float(np.corrcoef(relevance.ravel(), theirs.ravel())[0, 1])
    except Exception as error:  # a peer that cannot do it is a result
        del turns["peer_ms"]
        found["peer_error"] = f"{type(error).__name__}: {str(error).split('. ')[0]}"
    times = take_turns(turns, rounds)
    if "peer_ms" in times:
        found["factor"] = bench_cpu.paired_ratio(times["ours_ms"], times["peer_ms"])
    return {**found, **{turn: Spread.of(values) for turn, values in times.items()}}


def take_turns(turns: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call all in turn, `rounds` times after one round of warm-up, with a pause before each; milliseconds."""
    times: dict[str, list[float]] = {turn: [] for turn in turns}
    for round_ in range(rounds + 1):
        for turn, run in turns.items():
            time.sleep(PAUSE_SECONDS)
            milliseconds = run()
            if round_:
                times[turn].append(milliseconds)
    return times


def contest_lines(index: int, name: str, plain: Path, args: argparse.Namespace, build: Builder) -> list[Line]:
    """One contest on one network, a line per batch size."""
    contest, lines = CONTESTS[index], []
    with tempfile.TemporaryDirectory(dir=plain.parent) as folder:
        explained = Path(folder) / "explained.onnx"
        for batch in args.batch:
            line = Line(name, batch, contest.ours, contest.peer, contest.same)
            try:
                if not explained.exists():
                    _: Built = bench_cpu.in_own_process(build, plain, contest.ours, explained)
                job = (index, name, plain, explained, batch, args.rounds, args.threads)
                lines.append(Line(**{**vars(line), **bench_cpu.in_own_process(compete, *job)}))
            except RuntimeError as error:
                lines.append(Line(**{**vars(line), "error": str(error)}))
    return lines


HEADINGS = ("network", "batch", "ours", "ms", "× plain", "peer", "ms", "× torch", "peer / ours", "difference", "r")


def cells(line: Line) -> tuple[str, ...]:
    """The line as text, in the order of `HEADINGS`."""
    head = (line.model, str(line.batch), line.ours.partition(":")[0])
    if line.error is not None:
        return (*head, f"failed: {line.error}", "", line.peer, *[""] * 5)
    difference = (
        "–" if line.difference is None else f"{line.difference:.0e}" + ("" if line.same else " (other formula)")
    )
    return (
        *head,
        _milliseconds(line.ours_ms),
        _multiple(line.ours_ms, line.plain_ms),
        line.peer,
        f"failed: {line.peer_error[:100]}" if line.peer_error else _milliseconds(line.peer_ms),
        _multiple(line.peer_ms, line.torch_ms),
        line.factor.text(1) if line.factor else "–",
        difference,
        bench_cpu.number(line.correlation, 4),
    )


def _milliseconds(spread: Spread | None) -> str:
    return bench_cpu.number(spread.median if spread else None)


def _multiple(spread: Spread | None, of: Spread | None) -> str:
    return bench_cpu.number(spread.median / of.median if spread and of else None, 1)


def main(argv: Sequence[str] | None = None, build: Builder = bench_cpu.build_with_library) -> int:
    """Run the comparison; 1 if ours failed, a peer was faster, or maps that should coincide differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--methods", nargs="+", help="ours, by name (default: all that have a peer)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=bench_cpu.usable_cores())
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, help="stem of a .md and a .json file")
    args = parser.parse_args(argv)
    chosen = [i for i, c in enumerate(CONTESTS) if args.methods is None or c.ours.partition(":")[0] in args.methods]
    command = shlex.join(["python", "tools/compare_peers.py", *(argv or sys.argv[1:])])
    facts = bench_cpu.environment(command, ("onnx-explain", "onnxruntime", "torch", "captum", "zennit", "numpy"))
    facts["settings"] = f"{args.threads} threads each, float32, {args.size}², {args.rounds} rounds, He-random weights"
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), file=sys.stderr)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            plain = Path(folder) / f"{name}.onnx"
            bench_cpu.in_own_process(bench_cpu.write_plain, name, plain, {"size": args.size})
            for index in chosen:
                fresh = contest_lines(index, name, plain, args, build)
                lines += fresh
                print("\n".join("  ".join(filter(None, cells(line))) for line in fresh), file=sys.stderr, flush=True)
            plain.unlink()
    title, table = "Explained ONNX models beside Captum and Zennit, CPU", [cells(line) for line in lines]
    bench_cpu.show(HEADINGS, table, title)
    if args.out:
        page = bench_cpu.markdown(HEADINGS, table, facts, title)
        bench_cpu.write_report(args.out, page, {**facts, "lines": [asdict(line) for line in lines]})
    return int(any(line.lost for line in lines))


if __name__ == "__main__":
    sys.exit(main())
