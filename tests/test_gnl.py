"""The guided non-linearity gradient: the signal is rectified behind every non-linearity, whatever nodes it is written with.

The oracles are the formulas of methods.md §2 in NumPy loops; parity is with the arrays of ../shared/golden/classic, which
the authors' own code made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from test_convert import X, assert_same, drawn, model, residual_cnn, run

from onnx_explain import Explainer, MethodError
from onnx_explain.methods.gradient import gnl_composite

Array = np.ndarray[Any, Any]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "classic"
HERE = Path(__file__).parent / "golden"
VARIANTS = {"gnl_authors/grad": "authors", "reference/gnl_grad": "path", "reference/gnl_input_grad": "input"}


@lru_cache(maxsize=4)
def golden(net: str) -> dict[str, Array]:
    folder = next((d for d in (SHARED, HERE) if (d / f"{net}.f64.npz").is_file()), None)
    if folder is None:
        return {}
    with np.load(folder / f"{net}.f64.npz") as stored:
        return {k: stored[k] for k in stored.files if k in VARIANTS or k in ("x", "target")}


GOLDEN = [(net, key) for net in ("vggish", "bnnet", "mlp", "smooth") for key in golden(net) if key in VARIANTS]


@pytest.mark.parametrize(("net", "key"), GOLDEN)
def test_golden_arrays(net: str, key: str) -> None:
    arrays, path = golden(net), next(d for d in (SHARED, HERE) if (d / f"{net}.onnx").is_file()) / f"{net}.onnx"
    for backend, tolerance in (("reference", 1e-9), ("onnx", 1e-5)):
        x = arrays["x"].astype(np.float64 if backend == "reference" else np.float32)
        explainer = Explainer(path, "gnl-gradient", variant=VARIANTS[key], backend=backend, threads=1)  # type: ignore[arg-type]
        [found] = explainer(x, target=arrays["target"]).relevance.values()
        assert np.abs(found - arrays[key]).max() <= tolerance * np.abs(arrays[key]).max()


def explained(proto: onnx.ModelProto, x: Any, method: str = "gnl-gradient", **options: Any) -> dict[str, Array]:
    """Maps of element 0, float64."""
    explainer = Explainer(proto, method, backend="reference", logits=False, seed="one", **options)
    return dict(explainer(x, target=0).relevance)


def weighed(body: str, size: int, g: Array, **weights: Any) -> onnx.ModelProto:
    """y = Σ g·f(x) for f written in nodes that end in `f`."""
    kept = {k: v for k, v in weights.items() if f" {k})" in body or f" {k}," in body or f"({k}," in body}
    column = np.asarray(g, np.float32).reshape(-1, 1)
    return model(f"g (float[N,{size}] x) => (float[N,1] y) {{ {body}\n y = MatMul(f, g) }}", g=column, **kept)


G = np.array([1.0, -2.0, 0.5, -1.0, 3.0, -0.25, 2.0, -1.5])
POINTS = np.array([[-3.5, -1.5, -0.7, -0.2, 0.3, 0.8, 2.5, 4.0]])


def _phi(x: Array) -> Array:
    return np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.ravel()]).reshape(x.shape)


def _logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


SLOPES: Mapping[str, Callable[[Array], Array]] = {
    "Relu(x)": lambda x: (x > 0).astype(float),
    "Clip(x, low, high)": lambda x: ((x > 0) & (x < 2)).astype(float),
    "LeakyRelu<alpha=0.25>(x)": lambda x: np.where(x > 0, 1, 0.25),
    "LeakyRelu<alpha=-0.25>(x)": lambda x: np.where(x > 0, 1, -0.25),
    "PRelu(x, slope)": lambda x: np.where(x > 0, 1, -0.5),
    "Elu(x)": lambda x: np.where(x > 0, 1, np.exp(x)),
    "Tanh(x)": lambda x: 1 - np.tanh(x) ** 2,
    "Sigmoid(x)": lambda x: _logistic(x) * (1 - _logistic(x)),
    "Softplus(x)": _logistic,
    "Exp(x)": np.exp,
    "Neg(x)": lambda x: -np.ones_like(x),
    "Abs(x)": np.sign,
    "Cos(x)": lambda x: -np.sin(x),
    "HardSwish(x)": lambda x: np.where(x < -3, 0, np.where(x > 3, 1, x / 3 + 0.5)),
    "Pow(x, three)": lambda x: 3 * x**2,
}
CONSTANTS = {
    "low": np.float32(0), "high": np.float32(2), "slope": np.full(1, -0.5, np.float32), "three": np.float32(3),
    "half": np.float32(0.5), "one": np.float32(1), "six": np.float32(6), "root": np.float32(math.sqrt(2)),
    "cubic": np.float32(0.044715), "k": np.float32(math.sqrt(2 / math.pi)), "minus": np.float32(-2),
}  # fmt: skip


@pytest.mark.parametrize("negative", ["clip", "both"])
@pytest.mark.parametrize("call", list(SLOPES))
def test_an_elementwise_function_rectifies_what_it_passes_on(call: str, negative: str) -> None:
    proto = weighed(f"f = {call}", 8, G, **CONSTANTS)
    [found] = explained(proto, POINTS, negative=negative).values()
    slope = SLOPES[call](POINTS)
    wanted = np.maximum(slope * G, 0) if negative == "clip" else np.maximum(slope, 0) * np.maximum(G, 0)
    if call.startswith("Neg"):
        wanted = slope * G  # linear
    np.testing.assert_allclose(found, wanted, atol=1e-7)


# One function, written in parts and as an operator of its own (or as the formula of its slope).
PARTS: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
    "swish": ("s = Sigmoid(x)\n f = Mul(x, s)", lambda x: _logistic(x) * (1 + x * (1 - _logistic(x)))),
    "swish-turned": ("s = Sigmoid(x)\n f = Mul(s, x)", lambda x: _logistic(x) * (1 + x * (1 - _logistic(x)))),
    "gelu": (
        "d = Div(x, root)\n e = Erf(d)\n a = Add(e, one)\n m = Mul(x, a)\n f = Mul(m, half)",
        lambda x: _phi(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "gelu-halved-first": (
        "h = Mul(x, half)\n d = Div(x, root)\n e = Erf(d)\n a = Add(e, one)\n f = Mul(h, a)",
        lambda x: _phi(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    ),
    "minus-two-swish": (
        "h = Mul(x, minus)\n s = Sigmoid(x)\n f = Mul(h, s)",
        lambda x: -2 * _logistic(x) * (1 + x * (1 - _logistic(x))),
    ),
    "gelu-tanh": (
        "c = Pow(x, three)\n d = Mul(c, cubic)\n i = Add(x, d)\n k1 = Mul(i, k)\n t = Tanh(k1)\n a = Add(t, one)\n"
        " h = Mul(x, half)\n f = Mul(h, a)",
        lambda x: _tanh_gelu_slope(x),
    ),
    "hardswish": (
        "a = Add(x, three)\n c = Clip(a, low, six)\n m = Mul(x, c)\n f = Div(m, six)",
        lambda x: np.where(x < -3, 0, np.where(x > 3, 1, x / 3 + 0.5)),
    ),
    "softsign": ("a = Abs(x)\n d = Add(a, one)\n f = Div(x, d)", lambda x: 1 / (1 + np.abs(x)) ** 2),
    "square": ("f = Mul(x, x)", lambda x: 2 * x),
}


def _tanh_gelu_slope(x: Array) -> Array:
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(k * (x + c * x**3))
    return np.asarray(0.5 * (1 + t) + 0.5 * x * (1 - t**2) * k * (1 + 3 * c * x**2))


@pytest.mark.parametrize("negative", ["clip", "both"])
@pytest.mark.parametrize("name", list(PARTS))
def test_an_activation_in_parts_counts_as_the_one_function_it_is(name: str, negative: str) -> None:
    body, slope = PARTS[name]
    [found] = explained(weighed(body, 8, G, **CONSTANTS), POINTS, negative=negative).values()
    d = slope(POINTS)
    wanted = np.maximum(d * G, 0) if negative == "clip" else np.maximum(d, 0) * np.maximum(G, 0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_tensor_behind_an_activation_in_parts_keeps_what_else_reads_it() -> None:
    # f = x·Sigmoid(x) + x: the skip is linear and passes a negative signal on
    [found] = explained(weighed("s = Sigmoid(x)\n m = Mul(x, s)\n f = Add(m, x)", 8, G), POINTS).values()
    swish = _logistic(POINTS) * (1 + POINTS * (1 - _logistic(POINTS)))
    np.testing.assert_allclose(found, np.maximum(swish * G, 0) + G, atol=1e-6)


def test_a_gate_made_from_another_tensor_stays_a_product() -> None:
    gate = "p = MatMul(x, w)\n s = Sigmoid(p)\n f = Mul(x, s)"
    weights = {"w": drawn(8, 8) / 3}
    [found] = explained(weighed(gate, 8, G, **weights), POINTS).values()
    w = weights["w"].astype(float)
    s = _logistic(POINTS @ w)
    through = np.maximum(s * (1 - s) * (G * POINTS), 0) @ w.T
    np.testing.assert_allclose(found, G * s + through, atol=1e-6)
    [every] = explained(weighed(gate, 8, G, **weights), POINTS, guide_all=True).values()
    through = np.maximum(s * (1 - s) * np.maximum(G * POINTS, 0), 0) @ w.T
    np.testing.assert_allclose(every, np.maximum(G * s, 0) + through, atol=1e-6)


def test_guide_all_rectifies_behind_softmax_and_normalisations() -> None:
    for call in ("Softmax(x)", "LayerNormalization(x, scale)"):
        proto = weighed(f"f = {call}", 8, G, scale=np.abs(drawn(8)))
        [plain] = explained(proto, POINTS, "gradient").values()
        [same] = explained(proto, POINTS).values()
        [every] = explained(proto, POINTS, guide_all=True).values()
        np.testing.assert_allclose(same, plain, atol=1e-12)
        np.testing.assert_allclose(every, np.maximum(plain, 0), atol=1e-12)


@pytest.mark.skipif(not (SHARED / "enc_gelu_ln.f64.npz").is_file(), reason="../shared/golden is not here")
def test_an_erf_chain_gives_what_the_gelu_operator_gives() -> None:
    with np.load(SHARED / "enc_gelu_ln.f64.npz") as stored:
        x, target = stored["x"], stored["target"]
    maps = []
    for export in ("op17", "op20"):
        path = SHARED / f"enc_gelu_ln.{export}.onnx"
        maps += list(Explainer(path, "gnl-gradient", backend="reference")(x, target).relevance.values())
    assert np.abs(maps[0] - maps[1]).max() <= 1e-7 * np.abs(maps[1]).max()
    [plain] = Explainer(path, "gradient", backend="reference")(x, target).relevance.values()
    assert np.abs(maps[1] - plain).max() > 1e-2 * np.abs(plain).max()


# ------------------------------------------------------------------------------------------- maxima


def pooled(x: Array, g: Array, kernel: tuple[int, ...], stride: int, pad: int, variant: str) -> Array:
    """methods.md §2, window by window, of any rank."""
    routed, rectified = np.zeros_like(x), np.zeros_like(x)
    for position in np.ndindex(*g.shape):
        taps = product(*(range(p * stride - pad, p * stride - pad + k) for p, k in zip(position, kernel)))
        inside = [t for t in taps if all(0 <= i < n for i, n in zip(t, x.shape))]
        best = max(inside, key=lambda t: x[t])
        routed[best] += g[position]
        rectified[best] += max(g[position], 0.0)
    if variant == "path":
        return rectified
    if variant == "input":
        return np.maximum(routed, 0)
    mask = np.empty_like(x)
    for i in np.ndindex(*x.shape):
        mask[i] = g[tuple(a * o // n for a, o, n in zip(i, g.shape, x.shape))] > 0
    return mask * routed


@pytest.mark.parametrize("variant", ["path", "input", "authors"])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "pad"),
    [((9, 7), (3, 3), 2, 1), ((8, 5), (3, 2), 1, 0), ((6, 8), (2, 2), 2, 0), ((11,), (4,), 2, 1), ((4, 6, 5), (3, 2, 3), 2, 1)],
    ids=str,
)  # fmt: skip
def test_overlapping_maxima_are_guided_as_the_variant_says(
    shape: tuple[int, ...], kernel: tuple[int, ...], stride: int, pad: int, variant: str
) -> None:
    pads = [min(pad, k - 1) for k in kernel]
    if len(set(pads)) > 1:
        pads = [pad] * len(kernel)
    out = [(n + 2 * pad - k) // stride + 1 for n, k in zip(shape, kernel)]
    g, x = drawn(*out, seed=5), drawn(*shape, seed=6)
    attributes = f"kernel_shape={list(kernel)}, strides={[stride] * len(kernel)}, pads={pads * 2}"
    dims = ",".join(map(str, shape))
    proto = model(
        f"g (float[N,1,{dims}] x) => (float[N,1] y) {{ p = MaxPool<{attributes}>(x)\n f = Flatten(p)\n y = MatMul(f, g) }}",
        g=g.reshape(-1, 1),
    )
    [found] = explained(proto, x[None, None].astype(float), variant=variant).values()
    np.testing.assert_allclose(found[0, 0], pooled(x, g.astype(float), kernel, stride, pad, variant), atol=1e-6)


@pytest.mark.parametrize("variant", ["path", "input", "authors"])
def test_other_maxima_pass_a_rectified_signal_to_the_winner(variant: str) -> None:
    x, z = POINTS, POINTS[:, ::-1] * 0.9
    signature = "g (float[N,8] x, float[N,8] z) => (float[N,1] y)"
    for call, wins in (("Max(x, z)", x >= z), ("Min(x, z)", x <= z)):
        proto = model(f"{signature} {{ f = {call}\n y = MatMul(f, g) }}", g=G.astype(np.float32)[:, None])
        found = explained(proto, {"x": x, "z": z}, variant=variant)
        np.testing.assert_allclose(found["x"], np.where(wins, np.maximum(G, 0), 0))
        np.testing.assert_allclose(found["z"], np.where(wins, 0, np.maximum(G, 0)))
    for reduce in ("GlobalMaxPool(x)", "ReduceMax<keepdims=1>(x, axis)"):
        body = f"m = {reduce}\n f = Flatten(m)\n y = MatMul(f, g)"
        weights = {"axis": np.array([2])} if "axis" in body else {}
        proto = model(
            f"g (float[N,2,4] x) => (float[N,1] y) {{ {body} }}", g=np.array([[-1.0], [2.0]], np.float32), **weights
        )
        values = np.array([[[1.0, 5.0, 2.0, 0.0], [3.0, -1.0, 4.0, 2.0]]])
        [found_map] = explained(proto, values, variant=variant).values()
        np.testing.assert_array_equal(found_map, [[[0, 0, 0, 0], [0, 0, 2, 0]]])


def test_without_overlap_all_variants_agree_and_behind_a_relu_they_are_guided_backprop() -> None:
    x = X[:2].astype(float)
    maps = [explained(residual_cnn(), x, variant=v)["picture"] for v in ("path", "input", "authors")]
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], atol=1e-12)
    proto = model(
        """g (float[N,3,16,16] x) => (float[N,5] y) {
             c = Conv<pads=[1,1,1,1]>(x, w)\n r = Relu(c)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
             f = Flatten(p)\n y = MatMul(f, k) }""",
        w=drawn(4, 3, 3, 3),
        k=drawn(256, 5, seed=1),
    )
    [ours], [guided] = explained(proto, x).values(), explained(proto, x, "guided-backprop").values()
    np.testing.assert_allclose(ours, guided, atol=1e-12)


# ------------------------------------------------------------------------------------------- files and options


@pytest.mark.parametrize("batch", ["N", "1"])
@pytest.mark.parametrize("variant", ["path", "input", "authors"])
def test_one_file_gives_the_explainers_numbers(batch: str, variant: str) -> None:
    proto = model(
        f"""g (float[{batch},3,9,11] x) => (float[{batch},4] y) {{
             c = Conv<pads=[1,1,1,1]>(x, w)\n s = Sigmoid(c)\n m = Mul(c, s)
             p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(m)\n a = GlobalAveragePool(p)
             f = Flatten(a)\n y = MatMul(f, k) }}""",
        w=drawn(6, 3, 3, 3),
        k=drawn(6, 4, seed=1),
    )
    explainer = Explainer(proto, "gnl-gradient", variant=variant, threads=1)
    file = explainer.convert()
    onnx.checker.check_model(file, full_check=True)
    x = drawn(3, 3, 9, 11, seed=2)
    for part in (x,) if batch == "N" else (x[:1], x[1:2]):
        found = run(file, {"x": part, "target": np.array([2])})["x_relevance"]
        assert_same(found, explainer(part, target=2).relevance["x"])


def test_an_activation_in_parts_is_seen_under_an_open_batch_and_a_folded_normalisation() -> None:
    def net(activation: str, opset: int) -> onnx.ModelProto:
        return model(
            f"""g (float[N,3,8,8] x) => (float[N,2] y) {{
                 c = Conv(x, w)\n n = BatchNormalization(c, s, b, m, v)\n {activation}\n a = GlobalAveragePool(f)
                 l = Flatten(a)\n y = MatMul(l, k) }}""",
            opset=opset, w=drawn(4, 3, 3, 3), s=np.abs(drawn(4)), b=drawn(4, seed=1), m=drawn(4, seed=2),
            v=np.abs(drawn(4, seed=3)), k=drawn(4, 2, seed=4),
        )  # fmt: skip

    x = drawn(2, 3, 8, 8, seed=5).astype(float)
    [whole] = explained(net("f = HardSwish(n)", 18), x).values()
    parts = "q = HardSigmoid<alpha=0.16666667, beta=0.5>(n)\n f = Mul(n, q)"
    [found] = explained(net(parts, 18), x).values()
    np.testing.assert_allclose(found, whole, atol=1e-6 * np.abs(whole).max())


def test_the_composite_is_data_that_others_build_on() -> None:
    composite = gnl_composite(variant="input", guide_all=True)
    found = Explainer(residual_cnn(), composite, seed="one", threads=1)(X[:2], target=1)
    named = Explainer(residual_cnn(), "gnl-gradient", variant="input", guide_all=True, threads=1)(X[:2], target=1)
    np.testing.assert_array_equal(found.relevance["picture"], named.relevance["picture"])


@pytest.mark.parametrize(
    "options", [{"variant": "mask"}, {"negative": "half"}, {"guide_all": 1}, {"clip": True}], ids=str
)
def test_an_unknown_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="gnl-gradient"):
        Explainer(residual_cnn(), "gnl-gradient", **options)
