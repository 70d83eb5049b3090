"""DeepLIFT's rescale rule: attributions add up to F(x) - F(baseline) on every operator, and equal the formulas written out.

The oracles are the definitions in loops (methods.md §4), over models of one operator or two; parity is with the arrays of
../shared/golden/classic, which captum computed where it is sound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import CASES, Case
from test_convert import X, assert_same, drawn, model, residual_cnn, run

from onnx_explain import Explainer, ExplainError, MethodError
from onnx_explain.backends.onnx import lower
from onnx_explain.backends.reference import Reference
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.model import load
from onnx_explain.ir.view import Value
from onnx_explain.ir.widen import as_float64
from onnx_explain.methods import Composite, resolve
from onnx_explain.relevance import Options, build
from onnx_explain.rules.baseline import Baseline

Array = np.ndarray[Any, Any]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "classic"
HERE = Path(__file__).parent / "golden"
ROUNDING = 1e-9  # of the scores' magnitude, in float64

# Cases for which the sum cannot hold, or which the library refuses for every method.
BEYOND = {
    "cast-half-and-back": "rounds to half precision in the forward pass; a cast is straight through",
    **dict.fromkeys(
        ("quantise-pair-19", "quantise-pair-21", "dynamic-matmul", "dynamic-conv"),
        "rounds to integers in the forward pass; quantisation is straight through",
    ),
    **dict.fromkeys(
        ("maxunpool", "topk-and-gather"),
        "the places change between the two points; relevance ends at indices by nature",
    ),
    "topk-dynamic-batch": "a rank may pass to an entry that did not change",
    "scatterelements-mul": "updates of one place are three factors",
    **dict.fromkeys(
        ("mod-both", "fmod-both"), "how often the divisor goes in is a step, where relevance ends by nature"
    ),
    **dict.fromkeys(("mod", "fmod"), "jumps between the two points"),
    **dict.fromkeys(
        (c.name for c in CASES if c.name.startswith(("gridsample-grid", "gridsample-dynamic", "deformconv-moves"))),
        "what is read is not linear in where it is read",
    ),
    "softmax-wide": "e^60 against 1: the terms cancel beyond float64; `shifted` is tested instead",
}


class Given(Baseline):
    """A baseline per input, taken as it is."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        super().__init__()
        object.__setattr__(self, "arrays", arrays)

    def emit(self, op: Emitter, x: Value, name: str, **_: Any) -> Value:
        return op.typed(op.constant(self.arrays[name], like=x), x)  # type: ignore[attr-defined]


def composite(baseline: Any = "zero", **options: Any) -> Composite:
    found = resolve("deeplift").procedure({"baseline": baseline, **options})
    assert isinstance(found, Composite)
    return found


def attributed(case: Case, output: str, **options: Any) -> tuple[float, float, float]:
    """(Σ attribution, the element's own difference, the magnitude of the output) of one element of a case, in float64."""
    canonical = as_float64(canonicalize(load(case.build(np.float64)).model))
    x, other = case.values(np.float64), case.values(np.float64, seed=7)
    y, y0 = (Reference(canonical.clone()).run(v)[output] for v in (x, other))
    asked = Options(output=output, seed="one", logits=False, accounting=True)
    graph = build(canonical, replace(composite(**options), baseline=Given(other)), asked)
    count = y.shape[0] if graph.by_sample else 1
    element = y.size // count // 2
    found = Reference(lower(graph.model)).run({**x, graph.target_input: np.full(count, element, np.int64)})
    arrays = [found[name] for name in graph.relevance.values()]
    assert all(np.isfinite(a).all() for a in arrays)
    assert [a.shape for a in arrays] == [x[name].shape for name in graph.relevance]
    difference = (y - y0).reshape(count, -1)[:, element].sum()
    return float(sum(a.sum() for a in arrays)), float(difference), float(max(np.abs(y).max(), np.abs(y0).max()))


@pytest.mark.parametrize("case", [c for c in CASES if c.name.split("@")[0] not in BEYOND], ids=str)
def test_attributions_add_up_to_the_change_of_every_operators_result(case: Case) -> None:
    for output in case.outputs:
        arrived, wanted, scale = attributed(case, output)
        assert abs(arrived - wanted) <= ROUNDING * scale


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("softmax")], ids=str)
def test_a_shifted_softmax_adds_up_however_far_the_logits_move(case: Case) -> None:
    arrived, wanted, scale = attributed(case, case.outputs[0], softmax="shifted")
    assert abs(arrived - wanted) <= ROUNDING * scale


@pytest.mark.parametrize("name", [n for n, why in BEYOND.items() if why.startswith("refused")])
def test_what_is_left_out_of_the_table_is_refused_and_not_wrong(name: str) -> None:
    [case] = [c for c in CASES if c.name == name]
    with pytest.raises(ExplainError):
        attributed(case, case.outputs[0])


# ------------------------------------------------------------------------------------------- parity


@lru_cache(maxsize=4)
def golden(net: str) -> dict[str, Array]:
    folder = next((d for d in (SHARED, HERE) if (d / f"{net}.f64.npz").is_file()), None)
    if folder is None:
        return {}
    with np.load(folder / f"{net}.f64.npz") as stored:
        return {k: stored[k] for k in stored.files if "deeplift" in k or k in ("x", "target", "baseline_nonzero")}


GOLDEN = [
    (net, key)
    for net in ("vggish", "bnnet", "mlp", "smooth")
    for key in golden(net)
    if "deeplift" in key and "defective" not in key
]


@pytest.mark.parametrize(("net", "key"), GOLDEN)
@pytest.mark.parametrize("backend", ["reference", "onnx"])
def test_golden_arrays(net: str, key: str, backend: str) -> None:
    arrays, path = golden(net), next(d for d in (SHARED, HERE) if (d / f"{net}.onnx").is_file()) / f"{net}.onnx"
    # smooth: ONNX stores the slopes of LeakyRelu and Elu as float32, the peer ran with the decimals;
    # in float32 Δy/Δx of its curved functions loses the digits that y and y⁰ have in common
    exact = 1e-8 if net == "smooth" else 1e-9
    tolerance = exact if backend == "reference" else 2e-4 if net == "smooth" else 1e-5
    dtype = np.float64 if backend == "reference" else np.float32
    for i, (x, target) in enumerate(zip(arrays["x"], arrays["target"])):
        baseline = "zero" if key.endswith("zero") else arrays["baseline_nonzero"][i]
        explainer = Explainer(path, "deeplift", backend=backend, threads=1, baseline=baseline)  # type: ignore[arg-type]
        e = explainer(x[None].astype(dtype), target=int(target))
        [found], wanted = e.relevance.values(), arrays[key][i]
        assert np.abs(found[0] - wanted).max() <= tolerance * np.abs(wanted).max()
        assert e.completeness is not None
        assert abs(e.completeness[0]) <= (1e-14 if backend == "reference" else 1e-6)


ENCODERS = ("op17", "op20", "op13_decomposed")


@pytest.mark.skipif(not (SHARED / "enc_gelu_ln.f64.npz").is_file(), reason="../shared/golden is not here")
@pytest.mark.parametrize("softmax", ["exp", "shifted"])
def test_a_transformer_block_adds_up_and_is_explained_alike_however_it_was_exported(softmax: str) -> None:
    with np.load(SHARED / "enc_gelu_ln.f64.npz") as stored:
        x, target = stored["x"], stored["target"]
    maps = []
    for export in ENCODERS:
        path = SHARED / f"enc_gelu_ln.{export}.onnx"
        e = Explainer(path, "deeplift", backend="reference", softmax=softmax, baseline=x[0] / 2 + 0.1)(x, target)
        assert e.completeness is not None
        assert np.abs(e.completeness).max() <= 1e-12
        maps += list(e.relevance.values())
    for other in maps[1:]:
        assert np.abs(other - maps[0]).max() <= 1e-8 * np.abs(maps[0]).max()


# ------------------------------------------------------------------------------------------- oracles


def one(body: str, signature: str, x: Any, baseline: Any, target: Any = 0, **weights: Any) -> Any:
    """The explanation of a small model, float64."""
    options = {"softmax": weights.pop("softmax")} if "softmax" in weights else {}
    proto = model(f"g ({signature}) {{ {body} }}", **weights)
    explainer = Explainer(proto, "deeplift", backend="reference", baseline=baseline, logits=False, **options)
    e = explainer(x, target)
    assert e.completeness is not None
    assert np.abs(e.completeness).max() <= ROUNDING * max(1.0, float(np.abs(e.target.score).max()))
    return e


def map_of(*args: Any, **weights: Any) -> Array:
    [found] = one(*args, **weights).relevance.values()
    return np.asarray(found)


def windows(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> list[list[int]]:
    taps = [[o * stride - pad + k * dilation for k in range(kernel)] for o in range(out)]
    return [[t for t in row if 0 <= t < size] for row in taps]


def pooled_multipliers(x: Array, x0: Array, m: Array, rows: list[list[int]], columns: list[list[int]]) -> Array:
    """methods.md §4, window by window: c = max(y, y⁰); m(c - y⁰) to the winner at x, m(y - c) to the one at x⁰."""
    share = np.zeros_like(x)
    routed = np.zeros_like(x)
    for (i, ys), (j, xs) in product(enumerate(rows), enumerate(columns)):
        taps = list(product(ys, xs))
        best, best0 = max(taps, key=lambda t: x[t]), max(taps, key=lambda t: x0[t])
        y, y0 = x[best], x0[best0]
        c = max(y, y0)
        share[best] += m[i, j] * (c - y0)
        share[best0] += m[i, j] * (y - c)
        routed[best] += m[i, j]
    delta = x - x0
    return np.where(np.abs(delta) < 1e-10, routed, share / np.where(delta == 0, 1, delta))


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "dilation", "ceil"),
    [(2, 2, 0, 1, 0), (3, 2, 1, 1, 0), (3, 1, 1, 1, 0), (3, 2, 0, 1, 1), (2, 1, 0, 2, 0), (2, 3, 0, 1, 0)],
)
def test_a_max_pool_shares_between_the_winners_at_both_points(
    kernel: int, stride: int, pad: int, dilation: int, ceil: int
) -> None:
    rng = np.random.default_rng(kernel * 100 + stride)
    x, x0 = rng.standard_normal((2, 7, 8))
    same = rng.random(x.shape) < 0.3
    x0[same] = x[same]  # where nothing changes the derivative stands in, and what reaches it is times zero
    span = dilation * (kernel - 1) + 1

    def out(size: int) -> int:
        reach = size + 2 * pad - span
        return (-(-reach // stride) if ceil else reach // stride) + 1

    h, w = out(7), out(8)
    weights = rng.standard_normal(h * w)
    body = (
        f"p = MaxPool<kernel_shape=[{kernel},{kernel}], strides=[{stride},{stride}], pads=[{pad},{pad},{pad},{pad}], "
        f"dilations=[{dilation},{dilation}], ceil_mode={ceil}>(x)\n f = Flatten(p)\n y = MatMul(f, w)"
    )
    w32 = weights.astype(np.float32)
    found = map_of(body, "float[N,1,7,8] x) => (float[N,1] y", x[None, None], x0[None], w=w32[:, None])
    m = pooled_multipliers(
        x,
        x0,
        w32.astype(float).reshape(h, w),
        windows(7, h, kernel, stride, pad, dilation),
        windows(8, w, kernel, stride, pad, dilation),
    )
    np.testing.assert_allclose(found[0, 0], m * (x - x0), atol=1e-12)


def test_softmax_is_an_exponential_and_then_a_product() -> None:
    x, x0 = np.random.default_rng(3).standard_normal((2, 5)) * 2
    found = map_of("y = Softmax(x)", "float[N,5] x) => (float[N,5] y", x[None], x0, 2)
    e, e0 = np.exp(x), np.exp(x0)
    s, s0 = e.sum(), e0.sum()
    m_e = np.where(np.arange(5) == 2, (1 / s + 1 / s0) / 2, 0.0)
    m_s = (e[2] + e0[2]) / 2 * (1 / s - 1 / s0) / (s - s0)
    np.testing.assert_allclose(found[0], (m_e + m_s) * (e - e0), atol=1e-13)


def test_a_shifted_softmax_is_the_graph_that_subtracts_the_maximum() -> None:
    x, x0 = np.random.default_rng(4).standard_normal((2, 5)) * 2
    chain = """m = ReduceMax<keepdims=1>(x, axis)\n t = Sub(x, m)\n e = Exp(t)
               s = ReduceSum<keepdims=1>(e, axis)\n y = Div(e, s)"""
    signature = "float[N,5] x) => (float[N,5] y"
    # an exponential that is read from outside too keeps the chain from being recognised as a Softmax
    seen = signature.replace("y", "y, float[N,5] e")
    wanted = map_of(chain, seen, x[None], x0, 1, axis=np.array([1]))
    found = map_of("y = Softmax(x)", signature, x[None], x0, 1, softmax="shifted")
    np.testing.assert_allclose(found, wanted, atol=1e-13)


def test_factors_stand_half_way() -> None:
    a, b, a0, b0 = np.random.default_rng(5).standard_normal((4, 3))
    e = one(
        "p = Mul(a, b)\n y = ReduceSum<keepdims=1>(p, axis)",
        "float[N,3] a, float[N,3] b) => (float[N,1] y",
        {"a": a[None], "b": b[None]},
        {"a": a0, "b": b0},
        axis=np.array([1]),
    )
    np.testing.assert_allclose(e.relevance["a"][0], (a - a0) * (b + b0) / 2, atol=1e-15)
    np.testing.assert_allclose(e.relevance["b"][0], (b - b0) * (a + a0) / 2, atol=1e-15)


@pytest.mark.parametrize(
    ("chain", "own"),
    [
        (
            "m = ReduceMean<keepdims=1>(x, axis)\n u = Sub(x, m)\n v = Mul(u, u)\n w = ReduceMean<keepdims=1>(v, axis)\n"
            "t = Add(w, eps)\n s = Sqrt(t)\n y = Div(u, s)",
            "y = LayerNormalization<axis=-1, epsilon=0.0078125>(x, one)",
        ),
        ("v = Mul(x, x)\n w = ReduceSum<keepdims=1>(v, axis)\n y = Sqrt(w)", "y = ReduceL2<keepdims=1>(x, axis)"),
        ("n = Neg(x)\n m = ReduceMax<keepdims=1>(n, axis)\n y = Neg(m)", "y = ReduceMin<keepdims=1>(x, axis)"),
        ("e = Exp(x)\n s = ReduceSum<keepdims=1>(e, axis)\n l = Log(s)\n y = Sub(x, l)", "y = LogSoftmax<axis=1>(x)"),
        ("i = Reciprocal(z)\n y = Mul(x, i)", "y = Div(x, z)"),
    ],
    ids=["layer-normalization", "reduce-l2", "reduce-min", "log-softmax", "div"],
)
def test_an_operator_equals_its_parts(chain: str, own: str) -> None:
    x, x0 = np.random.default_rng(6).uniform(0.2, 2.0, (2, 6))
    maps = []
    for body in (chain, own):
        head = "z = Sigmoid(x)\n" if "z" in body else ""
        proto = model(
            f"g (float[N,6] x) => (float[N,M] y) {{ {head}{body} }}",
            axis=np.array([1]), eps=np.float32(0.0078125), one=np.ones(6, np.float32),
        )  # fmt: skip
        used = {name for node in proto.graph.node for name in node.input}
        kept = [i for i in proto.graph.initializer if i.name in used]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        del proto.graph.output[0].type.tensor_type.shape.dim[1]
        size = 1 if "ReduceL2" in own or "ReduceMin" in own else 6
        proto.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
        explainer = Explainer(proto, "deeplift", backend="reference", baseline=x0, logits=False)
        maps.append(next(iter(explainer(x[None], 0).relevance.values())))
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-12)


def test_a_linear_model_gives_weight_times_difference() -> None:
    w = drawn(4, 3)
    x, x0 = np.random.default_rng(7).standard_normal((2, 4))
    found = map_of("y = Gemm(x, w, b)", "float[N,4] x) => (float[N,3] y", x[None], x0, 2, w=w, b=drawn(3, seed=1))
    np.testing.assert_allclose(found[0], w[:, 2].astype(float) * (x - x0), atol=1e-15)


def test_where_changes_cancel_the_derivative_stands_in() -> None:
    w = np.ones((2, 1), np.float32)
    found = map_of(
        "t = MatMul(x, w)\n z = Add(t, b)\n y = Relu(z)", "float[N,2] x) => (float[N,1] y",
        np.array([[1.5, -1.5]]), "zero", w=w, b=np.array([0.25], np.float32),
    )  # fmt: skip
    np.testing.assert_array_equal(found, [[1.5, -1.5]])


def test_a_unit_that_is_off_at_both_points_receives_nothing() -> None:
    found = map_of("y = Relu(x)", "float[N,3] x) => (float[N,3] y", np.array([[-1.0, -2.0, 3.0]]), -np.ones(3), 1)
    np.testing.assert_array_equal(found, [[0.0, 0.0, 0.0]])


def test_a_relu_that_switches_on_gives_the_part_above_zero() -> None:
    found = map_of("y = Relu(x)", "float[N,1] x) => (float[N,1] y", np.array([[2.0]]), np.array([-3.0]))
    np.testing.assert_allclose(found, [[2.0]], atol=1e-15)


# ------------------------------------------------------------------------------------------- the whole


ATTENTION = """
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wq)
    kt = Transpose<perm=[0,2,1]>(k)
    a = MatMul(q, kt)
    p = Softmax<axis=-1>(a)
    o = MatMul(p, v)
    r = Add(o, x)
    n = LayerNormalization(r, one)
    g = Sigmoid(n)
    h = Mul(n, g)
    c = Clip(h, low, high)
    d = Concat<axis=2>(c, x)
    f = ReduceMax<keepdims=0>(d, axis)
    y = MatMul(f, w)
"""


def attention(batch: str = "N") -> onnx.ModelProto:
    """Attention with a shared weight, a skip connection, a gate, a clip, and x read four times."""
    return model(
        f"g (float[{batch},4,6] x) => (float[{batch},3] y) {{ {ATTENTION} }}",
        wq=drawn(6, 6) / 2, wk=drawn(6, 6, seed=1) / 2, one=np.abs(drawn(6, seed=2)), w=drawn(12, 3, seed=3),
        low=np.float32(-0.2), high=np.float32(1.2), axis=np.array([1]),
    )  # fmt: skip


TOKENS = drawn(3, 4, 6, seed=11)


@pytest.mark.parametrize("softmax", ["exp", "shifted"])
def test_skips_shared_weights_and_reused_values_add_up(softmax: str) -> None:
    explainer = Explainer(attention(), "deeplift", backend="reference", baseline=0.1, softmax=softmax)
    e = explainer(TOKENS.astype(np.float64), target=[0, 1, 2])
    assert e.completeness is not None
    assert np.abs(e.completeness).max() <= 1e-12
    assert e.conservation.max() <= 1e-10
    np.testing.assert_array_equal(e.absorbed, 0)


@pytest.mark.parametrize(("make", "x"), [(attention, TOKENS), (residual_cnn, X[:3])], ids=["attention", "cnn"])
def test_a_batch_gives_what_its_samples_give_alone(make: Callable[[], onnx.ModelProto], x: Array) -> None:
    explainer = Explainer(make(), "deeplift", backend="reference", baseline=0.05)
    [together] = explainer(x.astype(np.float64), target=1).relevance.values()
    for i in range(3):
        [alone] = explainer(x[i : i + 1].astype(np.float64), target=1).relevance.values()
        np.testing.assert_allclose(together[i : i + 1], alone, atol=1e-12 * np.abs(alone).max())


def test_an_inner_tensor_that_everything_passes_takes_the_whole_difference() -> None:
    e = Explainer(residual_cnn(), "deeplift", at="p1", backend="reference", baseline=0.2)(X[:2].astype(np.float64), 1)
    assert e.relevance["p1"].shape == (2, 8, 8, 8)
    assert e.completeness is not None
    assert np.abs(e.completeness).max() <= 1e-12


def test_several_inputs_have_a_baseline_each_and_add_up_together() -> None:
    proto = model(
        "g (float[N,3] a, float[N,4] b) => (float[N,2] y) {\n s = MatMul(a, w)\n t = Tanh(b)\n p = Mul(s, t)\n"
        " q = Max(p, b)\n m = Min(q, s)\n y = MatMul(m, v)\n}",
        w=drawn(3, 4),
        v=drawn(4, 2, seed=1),
    )
    feeds = {"a": drawn(5, 3, seed=2).astype(float), "b": drawn(5, 4, seed=3).astype(float)}
    explainer = Explainer(
        proto, "deeplift", backend="reference", baseline={"a": np.full(3, 0.3), "b": drawn(4, seed=4)}
    )
    e = explainer(feeds, target=1)
    assert e.completeness is not None
    assert np.abs(e.completeness).max() <= 1e-13
    assert {n: r.shape for n, r in e.relevance.items()} == {"a": (5, 3), "b": (5, 4)}
    [only] = Explainer(proto, "deeplift", wrt="a", backend="reference")(feeds, target=1).relevance.values()
    assert only.shape == (5, 3)


@pytest.mark.parametrize("backend", ["reference", "onnx"])
def test_at_the_baseline_itself_everything_is_zero(backend: str) -> None:
    root = model(
        "g (float[N,3] x) => (float[N,3] y) {\n a = Abs(x)\n s = Sqrt(a)\n l = Pow(x, p)\n n = ReduceL2<keepdims=1>(x, axis)\n"
        " t = Add(s, l)\n u = Add(t, n)\n y = Softmax(u)\n}",
        p=np.float32(0.5),
        axis=np.array([1]),
    )
    for proto, x in (
        (root, np.zeros((2, 3))),
        (attention(), np.full((2, 4, 6), 0.25)),
        (residual_cnn(), X[:1] * 0 + 1),
    ):
        value = float(x.flat[0])
        dtype = np.float64 if backend == "reference" else np.float32
        explainer = Explainer(proto, "deeplift", backend=backend, baseline=value, threads=1, logits=False)  # type: ignore[arg-type]
        [found] = explainer(x.astype(dtype), target=0).relevance.values()
        np.testing.assert_array_equal(found, 0)


def test_a_mask_that_changes_is_told_by_the_completeness() -> None:
    # y = x·1[x > 0]: half of what the mask lets in belongs to the mask, which carries nothing
    body = "k = Greater(x, zero)\n f = Cast<to=1>(k)\n y = Mul(x, f)"
    proto = model(f"g (float[N,1] x) => (float[N,1] y) {{ {body} }}", zero=np.float32(0))
    explainer = Explainer(proto, "deeplift", baseline=-1.0, threads=1)
    e = explainer(np.array([[3.0]], np.float32))
    np.testing.assert_allclose(e.relevance["x"], [[2.0]], rtol=1e-6)
    assert e.completeness is not None
    np.testing.assert_allclose(e.completeness, [-1.0], rtol=1e-6)
    same = Explainer(proto, "deeplift", baseline=1.0, threads=1)(np.array([[3.0]], np.float32))
    np.testing.assert_allclose(same.completeness, [0.0], atol=1e-6)


# ------------------------------------------------------------------------------------------- files and options


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("options", [{}, {"baseline": 0.3, "softmax": "shifted"}, {"baseline": "blur"}], ids=str)
def test_one_file_gives_the_explainers_numbers(batch: str, options: dict[str, Any]) -> None:
    for make, name, x in ((attention, "x", TOKENS), (residual_cnn, "picture", X[:3])):
        explainer = Explainer(make(batch), "deeplift", threads=1, **options)
        proto = explainer.convert()
        onnx.checker.check_model(proto, full_check=True)
        for part in (x,) if batch == "N" else (x[:1], x[1:2]):
            found = run(proto, {name: part, "target": np.array([1])})
            assert_same(found[f"{name}_relevance"], explainer(part, target=1).relevance[name])


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf"), "small"])
def test_an_epsilon_that_is_no_positive_number_is_refused(epsilon: Any) -> None:
    with pytest.raises(MethodError, match="epsilon"):
        Explainer(residual_cnn(), "deeplift", epsilon=epsilon)


def test_an_unknown_softmax_is_refused() -> None:
    with pytest.raises(MethodError, match=r"'exp', 'shifted'"):
        Explainer(residual_cnn(), "deeplift", softmax="mean")


def test_a_composite_without_a_baseline_is_refused() -> None:
    with pytest.raises(MethodError, match=r"baseline"):
        Explainer(residual_cnn(), replace(composite(), baseline=None), threads=1)(X[:1])
