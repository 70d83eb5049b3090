"""Writes docs/methods.md and docs/operators.md from the registries, so that they cannot say anything else.

`python tools/tables.py` writes, `python tools/tables.py --check` fails where a page is stale. What a role gets is asked of the
composites with real nodes; the page of operators is `operator_table.py`'s.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import parser

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from operator_table import NOTE, active_nodes, operators_page, table  # noqa: E402

from onnx_explain import METHODS, Composite, Method  # noqa: E402
from onnx_explain.errors import MethodError  # noqa: E402
from onnx_explain.ir.view import Operation  # noqa: E402
from onnx_explain.methods import ALIASES, FAMILIES  # noqa: E402
from onnx_explain.operators.roles import Role  # noqa: E402
from onnx_explain.rules import lrp  # noqa: E402

# ------------------------------------------------------------------------------------------- words

OPTIONS = {
    "alpha": "weight of the positive contributions; α - β = 1 conserves",
    "beta": "weight of the negative contributions",
    "epsilon": "stabiliser: added to every denominator, away from zero",
    "gamma": "how much the contributions of the output's sign are favoured",
    "low": "lower bound of the input, in the network's own input space: a number, or one per channel",
    "high": "upper bound of the input, likewise",
    "zero_bias": "leave biases out of the denominators, so that they absorb nothing",
    "with_bias": "w²: the squared bias takes part",
    "batch_norm": "`fold` BatchNormalization into the weights before it where that is exact, else its own ε-rule; `fold-or-pass`, as Zennit's canonizers; `epsilon`, the ε-rule everywhere; or `pass`",
    "sums": "pattern methods: residual sums `pass` the signal to every branch, or split it by fitted `covariance`. Others: operands of a sum share in proportion to their values (`signed`) or magnitudes (`absolute`); `auto`: magnitudes only "
    "where operands may cancel",
    "products": "factors share equally (`uniform`), the first one takes all (`signal`), or the one that no Sigmoid, Softmax or broadcast shows to be a gate (`weighed`)",
    "variant": "RAP, RSP: `general`, for inputs of any sign and nothing dropped at zeros, or `published`, what the authors' release "
    "executes. Guided non-linearity, at max-pools whose windows overlap: rectify each `path`, each pooled `input`, or as the `authors` do",
    "layer": "the inner tensor to look at; by default the last one with positions, found by structure and named in the result",
    "residual": "the share of itself that every token keeps in a layer",
    "heads": "how a layer's heads become one map: their `mean`, `max` or `min`",
    "relu": "keep only what speaks for the class in the map",
    "hostile": "classes that speak against the target: `none`, indices (`3,7`), or the highest others (`top-3`)",
    "purge": "drop what conflicts with the sign of its position's sum",
    "baseline": "what the input is compared with: a number, an array, `zero`, `blur` or `blur:SIGMA`, `noise` or `noise:SEED` (uniform "
    "between each sample's extremes), or a .npy file",
    "baselines": "several baselines, one per row: an array [M, …] or a .npy or .npz file",
    "steps": "points on the way",
    "rule": "the quadrature: `gausslegendre`, `left`, `middle`, `right`, `trapezoid`",
    "tolerance": "refine the worst parts of the way until the sum is right to this fraction of the change of the score",
    "samples": "how many points (SmoothGrad and its kin, expected gradients) or permutations (Shapley values) are drawn",
    "noise_level": "standard deviation of the noise, as a fraction of each sample's range",
    "sigma": "standard deviation of the noise, in the input's own units, in place of `noise_level`",
    "random_seed": "what the random numbers are made of, together with their place: no result depends on batching",
    "softmax": "rescale the exponentials of the logits (`exp`), or behind the subtraction of their maximum (`shifted`), which stays in range",
    "negative": "where the derivative is negative: rectify the product (`clip`), or both factors (`both`)",
    "guide_all": "rectify behind products of activations, Softmax and normalisations too",
    "product_epsilon": "stabiliser of matrix products and residual sums",
    "conv_gamma": "γ of convolutions; 0: the ε-rule",
    "linear_gamma": "γ of dense layers; 0: the ε-rule",
    "stabiliser": "ε takes the sign of what it stabilises (`signed`), or not, as in LXT (`unsigned`)",
    "patterns": "a file of `onnx-explain fit-patterns` (`--patterns FILE`), or what `fit_patterns` returned",
    "estimator": "`auto`: of the firing regime where a rectifier follows, else linear; or one of them everywhere",
    "fallback": "what a neuron without a pattern gets: nothing, the `linear` pattern, or its own `filter`",
    "limit": "the largest ‖w‖‖a‖ of a pattern that is used; 0: any",
    "guided": "rectify the signal at every Relu",
    "window": "size of what is covered: a number for the spatial axes, or one per axis behind the batch",
    "stride": "how far it moves at a time, likewise",
    "score": "what is watched: the `logit` or the `probability`",
    "masks": "how many masks are drawn",
    "grid": "cells per spatial axis, of a mask before it is smoothed, or of the groups of pixels that join together",
    "probability": "of a cell to stay visible",
    "centred": "take the mean score away, so that what does not matter is near zero",
    "features": "which elements join together: `auto`, or an array of group numbers",
    "antithetic": "every permutation is followed by its reverse",
    "exact_up_to": "so many features or fewer are enumerated exactly",
}

# linear rules are data: their formulas are read off them
LINEAR_RULES = {
    "LRP-0": lrp.epsilon(0.0),
    "ε": lrp.epsilon(),
    "z⁺": lrp.z_plus(),
    "αβ": lrp.alpha_beta(),
    "γ": lrp.gamma(),
    "flat": lrp.flat(),
    "w²": lrp.w_square(),
    "zᴮ": lrp.z_box(),
}
OTHER_RULES = {
    "ε (sums)": "R_k = x_k·R / D(y, ε); by magnitude: |x_k|·R / Σ|x|",
    "uniform": "an equal part to each factor that carries what is explained; `signal`: all to the first; `weighed`: all to what is no gate",
    "ε, fixed statistics": "the ε-rule with mean and variance held constant; LRN passes; Softmax: x ⊙ (R - y·ΣR)",
    "pass": "R unchanged",
    "winner takes all": "R to the entry that was taken, the first in row-major order of equal ones",
    "undo": "R back to where the entry came from; what was repeated adds up",
    "gradient": "Jᵀ R, exactly",
    "guided": "1[x > 0]·R⁺",
    "deconvnet": "R⁺, without the forward mask",
    "RAP": "C = x ⊙ (L(w⁺)ᵀ Sa + L(|w⁻|)ᵀ Sb) with Z⁺ = L(w⁺)x, Z⁻ = L(|w⁻|)x; dense: Sa = R ⊘ Z⁺, Sb = R ⊘ (Z⁺ + Z⁻); convolutions: "
    "Sa = R⁺ ⊘ Z⁺, Sb = R ⊘ (Z⁺ + Z⁻) + R⁻ ⊘ Z⁻; then C less a constant on its non-zero entries, so that its sum is ΣR",
    "first propagation": "a = x ⊙ g·(1 + b/s) with g the score's gradient and s = Σ x ⊙ g; R_i = |a_i| ⊘ Σ|a| · Σa",
    "zᴮ of the picture": "zᴮ without stabiliser, between each picture's own extremes unless `low` and `high` are given",
    "RSP": "D± = correlation of x⁺ and R±; C = x⁺ ⊙ (L(D⁺)ᵀ(R⁺ ⊘ L(D⁺)x⁺) - L(D⁻)ᵀ(|R⁻| ⊘ L(D⁻)x⁺)), doubled and shifted to the sum ΣR where "
    "a window has several positions; per sample",
    "[x]₊ ratio": "the positive parts of the operands share",
    "weighed": "all to the values, none to attention probabilities and gates",
    "signal takes all": "gates of recurrences: all to what they weigh, none to the gate",
    "Taylor": "x ⊙ (R - y·ΣR)",
    "rescale": "pointwise: m·Δy/Δx, the derivative where Δx is tiny; maxima, products, Softmax and normalisations by exact secants",
    "guided (path)": "rectify R, then the winner takes all",
    "guided product": "the adjoint; rectified under `guide_all`",
    "ratio": "means: x ⊙ Lᵀ(R ⊘ y), sums: x_k·(R ⊘ y); by magnitude where operands may cancel; evenly where all are zero",
}

# ------------------------------------------------------------------------------------------- prose

UNDER_DEFAULTS = """\
Under default options. [operators.md](operators.md) says which operator has which role; the rules are spelt out below.
*First* and *last* are said of operators with a weight, by the graph's structure: none before it on its way from an
input, none behind it on its way to the target. A cell in brackets differs for a dense first layer."""

LETTERS = """\
x w b y are input, weight, bias and output of the node, z = L(w)x + b with L the operator, R its relevance, s the quotient
in the row, D(z, ε) = z + ε·sign(z) with sign(0) = 1, and R/0 = 0 where ε = 0; ⊙ and ⊘ are the elementwise product and
quotient with 0/0 = 0; ⁺ and ⁻ keep the positive or the negative part. `zero_bias` leaves b out."""

SEED = """\
Seed: where relevance starts, at the explained value (`score`) or at `one`; `seed=` changes it. Conserves: relevance is
meant to add up to the seed; the gap is reported either way."""

PATENTS = """\
## Patents

Layer-wise relevance propagation is covered by patents in some countries: the family "Relevance score assignment for
artificial neural networks" (WO 2016/150472, filed 2015-03-20), granted among others as US 12,061,966 B2, EP 3271863 B1
and CA 2979579. The licence of this project gives no rights to them. Whether they reach to RAP, excitation backprop or
deep Taylor decomposition is open. The gradient family is not covered. This is a notice, not legal advice: ask a lawyer
before commercial use."""

# ------------------------------------------------------------------------------------------- nodes to ask with

SAMPLE = """<ir_version: 8, opset_import: ["" : 18]>
sample (float[N,4,8,8] x) => (float[N,5] y)
<float[4,4,3,3] w, float[4] c, float[1] k, int64[2] flat, float[16,6] a, float[6,5] b>
{
    conv1 = Conv <pads = [1, 1, 1, 1]> (x, w)
    norm = BatchNormalization (conv1, c, c, c, c)
    relu = Relu (norm)
    conv2 = Conv <pads = [1, 1, 1, 1]> (relu, w)
    act = Tanh (conv2)
    scaled = Mul (act, k)
    sum = Add (scaled, relu)
    product = Mul (sum, act)
    local = LRN <size = 3> (product)
    pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (local)
    mean = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (pooled)
    flattened = Flatten (mean)
    dense1 = MatMul (flattened, a)
    y = MatMul (dense1, b)
}
"""
CONSTANTS = {"w": (4, 4, 3, 3), "c": (4,), "k": (1,), "a": (16, 6), "b": (6, 5)}
PLACES = {
    "conv1": ("first convolution", True, False),
    "dense1:first": ("first dense layer", True, False),
    "conv2": ("convolutions", False, False),
    "dense1": ("dense layers", False, False),
    "y": ("last layer", False, True),
    "norm": ("BatchNormalization", False, False),
    "mean": ("pools, means, Resize", False, False),
    "scaled": ("scaling by a constant", False, False),
    "sum": ("sums", False, False),
    "product": ("products", False, False),
    "relu": ("Relu, Clip(0, ·)", False, False),
    "act": ("other activations", False, False),
    "pooled": ("maxima", False, False),
    "flattened": ("rearrangements", False, False),
    "local": ("other normalisations", False, False),
}
WEIGHTED = 5  # the first columns of PLACES


@cache
def sample_nodes() -> dict[str, tuple[Operation, Role]]:
    """A node per place, with its role, by the name of its output."""
    model = parser.parse_model(SAMPLE)
    for name, shape in CONSTANTS.items():
        size = math.prod(shape)
        model.graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, [0.5] * size))
    del model.graph.value_info[:]
    return {operation.y.name or "": (operation, role) for operation, role in active_nodes(model)}


# ------------------------------------------------------------------------------------------- methods


def methods_page() -> str:
    """docs/methods.md."""
    parts = [
        "# Methods",
        NOTE.strip(),
        "From the registry `onnx_explain.METHODS`; `onnx-explain methods` prints the same. Options are keywords of `Explainer` and "
        "`--option KEY=VALUE` on the command line.",
        _families(),
        _options(),
        "## What each role gets",
        UNDER_DEFAULTS,
        _weighted_table(),
        _other_table(),
        _notes(),
        "## The rules",
        LETTERS,
        table(
            ("rule", "relevance of x"), [(n, formula(r)) for n, r in LINEAR_RULES.items()] + list(OTHER_RULES.items())
        ),
        PATENTS,
    ]
    return "\n\n".join(parts) + "\n"


def composites() -> Iterator[tuple[Method, Composite]]:
    """The methods that give every node a rule without being handed anything first."""
    for m in METHODS.values():
        try:
            procedure = m.procedure({})
        except MethodError:  # it needs fitted patterns
            continue
        if not isinstance(procedure, Composite) or procedure.rollout is not None:
            continue
        if procedure.turn is None or procedure.turn.spread is None:
            yield m, procedure


def _families() -> str:
    parts = []
    for family, title in FAMILIES.items():
        rows = [_method_row(m) for m in METHODS.values() if m.family == family]
        parts += [f"## {title}", table(("method", "meaning", "paper", "options (default)", "seed", "conserves"), rows)]
    also = ", ".join(f"`{alias}` = `{name}`" for alias, name in ALIASES.items())
    parts.append(f"Other names: {also}.")
    return "\n\n".join(parts)


def _method_row(m: Method) -> tuple[str, ...]:
    options = ", ".join(f"{name}={_value(value)}" for name, value in m.options.items())
    return f"`{m.name}`", m.summary, m.paper, options, m.seed, "yes" if m.conserves else "no"


def _value(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _options() -> str:
    named = sorted({name for m in METHODS.values() for name in m.options})
    rows = [(f"`{name}`", OPTIONS[name]) for name in named]
    return f"{SEED}\n\n{table(('option', 'meaning'), rows)}"


def _asked(composite: Composite, place: str) -> str:
    _, first, last = PLACES[place]
    operation, role = sample_nodes()[place.split(":")[0]]
    label = composite.rule(operation, role, first=first, last=last).label
    # the guide is for rectifiers; what else is pointwise is differentiated
    return "gradient" if label in ("guided", "deconvnet") and not getattr(role, "guided", False) else label


INPUTS = {"": "x", "+": "x⁺", "-": "x⁻", "1": "1", "low": "low", "high": "high"}
WEIGHTS = {"": "w", "+": "w⁺", "-": "w⁻", "1": "1", "2": "w²", "g+": "w + γw⁺", "g-": "w + γw⁻"}


def formula(rule: lrp.LinearRule) -> str:
    """A linear rule in letters: Σ x' ⊙ L(w')ᵀ s, s = R / D(Σ L(w')x' + b', ε)."""
    parts = []
    for share in rule.shares:
        over, under = "", ""
        for term in share.terms:
            x, w, b = INPUTS[term.x], WEIGHTS[term.w], WEIGHTS[term.b].replace("w", "b") if term.b != "0" else ""
            sign = " + " if term.sign > 0 else " - "
            over += f"{sign}{'' if x == '1' else f'{x} ⊙ '}L({w})ᵀs"
            bias = f" + {b}" if b else ""
            under += f"{sign}{f'({image(w, x)}{bias})' if term.sign < 0 and b else f'{image(w, x)}{bias}'}"
        scale = {1.0: "", 2.0: "α·", -1.0: "-β·"}[share.scale]
        kept = {"": "", "positive": ", where z > 0", "negative": ", where z < 0"}[share.when]
        epsilon = "0" if rule.epsilon == 0 else "ε"
        body = over.removeprefix(" + ")
        parts.append(
            f"{scale}{f'({body})' if scale and ' ' in body else body} with s = R / D({under.removeprefix(' + ')}, {epsilon}){kept}"
        )
    return "; plus ".join(parts)


def image(w: str, x: str) -> str:
    """L(w)x."""
    return f"L({w}){x if len(x) <= 2 else f' {x}'}"


def _weighted_table() -> str:
    rows: dict[tuple[str, ...], list[str]] = {}
    for m, composite in composites():
        conv1, dense1, *rest = (_asked(composite, place) for place in list(PLACES)[:WEIGHTED])
        first = conv1 if conv1 == dense1 else f"{conv1} ({dense1})"
        rows.setdefault((first, *rest), []).append(f"`{m.name}`")
    heads = ("method", "first layer", *(PLACES[p][0] for p in list(PLACES)[2:WEIGHTED]))
    return table(heads, [(", ".join(names), *cells) for cells, names in rows.items()])


def _other_table() -> str:
    rows: dict[tuple[str, ...], list[str]] = {}
    for m, composite in composites():
        cells = [_asked(composite, place) for place in list(PLACES)[WEIGHTED:]]
        if composite.batch_norm == "fold" and cells[0] != "gradient":
            cells[0] = f"folded, else {cells[0]}"
        rows.setdefault(tuple(cells), []).append(f"`{m.name}`")
    everything = [(", ".join(names), *cells) for cells, names in rows.items()]
    places = [PLACES[p][0] for p in list(PLACES)[WEIGHTED:]]
    # one line per kind of node reads better than ten columns
    heads = ("node", *(chr(ord("A") + i) for i in range(len(everything))))
    lines = [(place, *(row[i + 1] for row in everything)) for i, place in enumerate(places)]
    legend = "\n".join(f"- {head}: {row[0]}" for head, row in zip(heads[1:], everything))
    return f"The other nodes, by group of methods:\n\n{legend}\n\n{table(heads, lines)}"


def _notes() -> str:
    notes = []
    for m, composite in composites():
        said = []
        if composite.result != "as-is":
            said.append(
                {
                    "absolute": "takes the magnitude of what arrives",
                    "times-input": "multiplies what arrives by the input",
                    "times-difference": "multiplies what arrives by the difference from the baseline",
                }[composite.result]
            )
        if composite.positive_seed:
            said.append("starts nothing where the score is not positive")
        if composite.first_propagation:
            said.append("hands the last layer the score's gradient; everything above it is differentiated")
        if said:
            notes.append(f"`{m.name}` {' and '.join(said)}.")
    published = METHODS["rap"].procedure({"variant": "published"})
    if not isinstance(published, Composite):
        raise TypeError("rap is not a composite")
    notes.append(
        "`rap` with `variant=published` drops relevance where an output of MaxPool, an operand of Concat or an input of "
        f"BatchNormalization is exactly zero, as the release does, and sees through BatchNormalization (`{published.batch_norm}`) "
        "instead of folding it."
    )
    notes.append(
        "Guided backprop and DeconvNet treat Relu and Clip with lower bound 0; other activations are differentiated."
    )
    return " ".join(notes)


PAGES = {"methods.md": methods_page, "operators.md": operators_page}


def main() -> int:
    """Write the pages, or compare them."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is stale")
    check = arguments.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path = ROOT / "docs" / name
        text = page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
