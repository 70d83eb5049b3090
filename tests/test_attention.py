"""AttnLRP and CP-LRP: against the peer's arrays, against the formulas written out, and on the shapes that transformers take.

The peer (LXT) adds ε without the sign of what it stabilises; `stabiliser="unsigned"` does the same and is compared with its
explicit rules, ε → 0 with its efficient ones, which have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from onnx_explain import METHODS, Explainer
from onnx_explain.backends.onnx import Session, lower
from onnx_explain.embedded import embeddings
from onnx_explain.errors import MethodError
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.model import load
from onnx_explain.methods import ALIASES, resolve
from onnx_explain.relevance import Options, build

Array = npt.NDArray[Any]
SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = Path(__file__).parent / "golden"
ENCODINGS = ("op13_decomposed", "op17", "op20")
METHOD_KEYS = {"attn-lrp": "attn", "cp-lrp": "cp"}
# the file keeps 1/√8 as a float32, the peers computed with the float64: 1e-8 of the largest value
ROUNDED_SCALE = 2e-8


def golden() -> dict[str, Array]:
    with np.load(GOLDEN / "enc_gelu_ln.f64.npz") as stored:
        return {k: stored[k] for k in stored.files}


def error(ours: Array, theirs: Array) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def relevance(
    model: Any, method: str, x: Array, target: Any = None, backend: str = "reference", **options: Any
) -> Array:
    explained = Explainer(model, method, backend=backend, **options)(x, target=target)  # type: ignore[arg-type]
    return next(iter(explained.relevance.values()))


# --------------------------------------------------------------------------- parity


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("method", METHOD_KEYS)
def test_relevance_equals_the_peers_explicit_rules(method: str, encoding: str) -> None:
    arrays, path = golden(), GOLDEN / f"enc_gelu_ln.{encoding}.onnx"
    ours = relevance(path, method, arrays["x"], arrays["target"], stabiliser="unsigned")
    assert error(ours, arrays[f"lxt/{METHOD_KEYS[method]}"]) <= ROUNDED_SCALE
    single = relevance(path, method, arrays["x"].astype(np.float32), arrays["target"], "onnx", stabiliser="unsigned")
    assert error(single, arrays[f"lxt/{METHOD_KEYS[method]}"]) <= 1e-5


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("method", METHOD_KEYS)
def test_without_a_stabiliser_it_equals_the_peers_efficient_rules(method: str, encoding: str) -> None:
    arrays, path = golden(), GOLDEN / f"enc_gelu_ln.{encoding}.onnx"
    ours = relevance(path, method, arrays["x"], arrays["target"], epsilon=1e-12, product_epsilon=1e-12)
    assert error(ours, arrays[f"lxt/eff_{METHOD_KEYS[method]}"]) <= ROUNDED_SCALE


@pytest.mark.parametrize("method", METHOD_KEYS)
def test_the_sign_of_the_stabiliser_is_all_that_differs_by_default(method: str) -> None:
    """The default is further from the peer's arrays than 1e-5, by ε's sign, O(ε/|z|) at the smallest pre-activations.

    Its term of first order in ε is computed: a hundredth of ε, where all higher orders are gone, and a hundred times that. The
    default less that term is the peer's array.
    """
    arrays, path = golden(), GOLDEN / "enc_gelu_ln.op17.onnx"
    theirs = arrays[f"lxt/{METHOD_KEYS[method]}"]
    small: dict[str, Any] = {"epsilon": 1e-8, "product_epsilon": 1e-10}
    signed, unsigned = (
        relevance(path, method, arrays["x"], arrays["target"], stabiliser=s, **small) for s in ("signed", "unsigned")
    )
    default = relevance(path, method, arrays["x"], arrays["target"])
    assert 1e-5 < error(default, theirs) <= 1e-4
    assert error(default - 100.0 * (signed - unsigned), theirs) <= ROUNDED_SCALE


@pytest.mark.parametrize(
    "method", ["gradient", "attn-lrp", "cp-lrp", "lrp-epsilon", "lrp-gamma", "rap", "input-x-gradient"]
)
def test_three_encodings_of_one_network_give_one_answer(method: str) -> None:
    arrays = golden()
    found = [relevance(GOLDEN / f"enc_gelu_ln.{e}.onnx", method, arrays["x"], arrays["target"]) for e in ENCODINGS]
    for other in found[1:]:
        assert error(other, found[0]) <= 1e-12


def test_the_gradient_equals_autograds_where_the_scale_is_not_rounded() -> None:
    arrays = golden()
    for encoding in ENCODINGS:
        path = GOLDEN / f"enc_gelu_ln.{encoding}.onnx"
        assert (
            error(relevance(path, "gradient", arrays["x"], arrays["target"]), arrays["torch/gradient"]) <= ROUNDED_SCALE
        )
    exact = widened(
        onnx.load(GOLDEN / "enc_gelu_ln.op17.onnx"), {np.float32(8**-0.5): 8**-0.5, np.float32(2**0.5): 2**0.5}
    )
    assert error(relevance(exact, "gradient", arrays["x"], arrays["target"]), arrays["torch/gradient"]) <= 1e-9


def widened(model: onnx.ModelProto, exact: Mapping[Any, float]) -> onnx.ModelProto:
    """The model in float64, with the given float32 numbers replaced."""

    def wide(tensor: onnx.TensorProto) -> onnx.TensorProto:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32:
            return tensor
        number = exact.get(np.float32(array)) if array.size == 1 else None
        return numpy_helper.from_array(np.asarray(array.astype(np.float64) if number is None else number), tensor.name)

    for tensor in model.graph.initializer:
        tensor.CopyFrom(wide(tensor))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                attribute.t.CopyFrom(wide(attribute.t))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    del model.graph.value_info[:]
    return model


# --------------------------------------------------------------------------- the formulas, one operator each


def one(text: str, shapes: Mapping[str, tuple[int, ...]], opset: int = 18, **weights: Array) -> onnx.ModelProto:
    graph = parser.parse_graph(f"g () => () {{ {text.replace(';', chr(10))} }}")
    for name, shape in shapes.items():
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape]))
    for name, array in weights.items():
        graph.initializer.append(numpy_helper.from_array(array, name))
    graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None))
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )
    del model.graph.value_info[:]
    return model


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def explained(model: onnx.ModelProto, feeds: Mapping[str, Array], method: str, **options: Any) -> tuple[Any, Array]:
    """The explanation in float64, and the relevance that was seeded: the chosen score at its entry of y, else 0."""
    e = Explainer(model, method, backend="reference", logits=False, **options)(feeds, target=2)
    y = np.asarray(e.outputs["y"])
    seed = np.zeros_like(y).reshape(len(y), -1)
    seed[:, 2] = y.reshape(len(y), -1)[:, 2]
    return e, seed.reshape(y.shape)


def stable(z: Array, epsilon: float) -> Array:
    return z + np.where(z >= 0, epsilon, -epsilon)


def softmax(u: Array) -> Array:
    e = np.exp(u - u.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def test_softmax_takes_its_taylor_expansion() -> None:
    u = drawn(3, 4, 5)
    e, r = explained(one("y = Softmax<axis=-1>(x)", {"x": (4, 5)}), {"x": u}, "attn-lrp")
    s = softmax(u)
    assert error(e.relevance["x"], u * (r - s * r.sum(-1, keepdims=True))) <= 1e-12
    assert np.abs(e.relevance["x"].sum((1, 2)) + e.absorbed - e.target.score).max() <= 1e-12


@pytest.mark.parametrize("hidden", ["-inf", "lowest", "where"])
def test_masked_logits_receive_nothing_and_nothing_becomes_nan(hidden: str) -> None:
    u, mask = drawn(3, 4, 5), np.zeros((1, 4, 5), np.float32)
    mask[0, :, 3:] = 1.0
    low = np.float32(-np.inf if hidden != "lowest" else np.finfo(np.float32).min)
    added = np.where(mask > 0, low, np.float32(0))
    if hidden == "where":
        model = one("m = Where(c, l, x); y = Softmax<axis=-1>(m)", {"x": (4, 5)}, c=mask > 0, l=low)
    else:
        model = one("m = Add(x, a); y = Softmax<axis=-1>(m)", {"x": (4, 5)}, a=added)
    e, r = explained(model, {"x": u}, "attn-lrp")
    s = softmax(np.where(mask > 0, -np.inf, u))
    expected = np.where(mask > 0, 0.0, u * (r - s * r.sum(-1, keepdims=True)))
    assert np.isfinite(e.relevance["x"]).all()
    assert error(e.relevance["x"], expected) <= 1e-7  # ε of the sum with the mask
    assert not e.relevance["x"][:, :, 3:].any()
    for method in ("gradient", "cp-lrp"):
        assert np.isfinite(explained(model, {"x": u}, method)[0].relevance["x"]).all()


PAIR = {"a": drawn(2, 3, 4), "b": drawn(2, 4, 5, seed=1)}
MATMUL = one("y = MatMul(a, b)", {"a": (3, 4), "b": (4, 5)})
EINSUM = one('y = Einsum<equation="nij,njk->nik">(a, b)', {"a": (3, 4), "b": (4, 5)})


@pytest.mark.parametrize("model", [MATMUL, EINSUM], ids=["MatMul", "Einsum"])
def test_a_matrix_product_shares_equally(model: onnx.ModelProto) -> None:
    e, r = explained(model, PAIR, "attn-lrp")
    q = r / stable(2 * e.outputs["y"], 1e-8)
    assert error(e.relevance["a"], PAIR["a"] * (q @ PAIR["b"].transpose(0, 2, 1))) <= 1e-12
    assert error(e.relevance["b"], PAIR["b"] * (PAIR["a"].transpose(0, 2, 1) @ q)) <= 1e-12
    assert np.abs(e.relevance["a"].sum((1, 2)) - e.target.score / 2).max() <= 1e-7


VALUE = {
    "plain": "p = Softmax<axis=-1>(a); y = MatMul(p, b)",
    "einsum": 'p = Softmax<axis=-1>(a); y = Einsum<equation="nij,njk->nik">(p, b)',
    "moved": "s = Softmax<axis=-1>(a); t = Transpose<perm=[0,2,1]>(s); i = Dropout(t); p = Transpose<perm=[0,2,1]>(i); y = MatMul(p, b)",
    "guarded": "s = Softmax<axis=-1>(a); n = IsNaN(s); p = Where(n, zero, s); y = MatMul(p, b)",
    "decomposed": "h = ReduceMax(a, last); l = Sub(a, h); e = Exp(l); t = ReduceSum(e, last); p = Div(e, t); y = MatMul(p, b)",
}


@pytest.mark.parametrize("name", VALUE)
def test_cp_lrp_gives_all_to_the_values(name: str) -> None:
    weights = {"zero": np.float32(0), "last": np.array([-1])}
    used = {n: w for n, w in weights.items() if n in VALUE[name]}
    model = one(VALUE[name], {"a": (3, 4), "b": (4, 5)}, **used)
    e, r = explained(model, PAIR, "cp-lrp")
    p = softmax(PAIR["a"])
    q = r / stable(e.outputs["y"], 1e-8)
    assert not e.relevance["a"].any()
    assert error(e.relevance["b"], PAIR["b"] * (p.transpose(0, 2, 1) @ q)) <= 1e-12
    assert np.abs(e.relevance["b"].sum((1, 2)) - e.target.score).max() <= 1e-7


GATES = {
    "silu gate": ("g = Sigmoid(a); s = Mul(a, g); y = Mul(s, b)", (3, 4), "b"),
    "silu gate on the right": ("g = Sigmoid(a); s = Mul(a, g); y = Mul(b, s)", (3, 4), "b"),
    "sigmoid against relu": ("r = Relu(b); g = Sigmoid(a); y = Mul(r, g)", (3, 4), "b"),
    "gelu gate": ("g = Gelu(a); y = Mul(g, b)", (3, 4), "b"),
    "squeeze and excite": (
        "m = ReduceMean<keepdims=1>(b, last); g = HardSigmoid(m); r = Tanh(a); q = Mul(g, a); y = Mul(g, r)",
        (3, 4),
        "a",
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_cp_lrp_takes_a_gate_for_a_constant(name: str) -> None:
    text, shape, bearer = GATES[name]
    weights = {"last": np.array([-1])} if "last" in text else {}
    model = one(text, {"a": shape, "b": shape}, 20, **weights)
    feeds = {"a": drawn(2, *shape), "b": np.abs(drawn(2, *shape, seed=1)) + 0.1}
    e, r = explained(model, feeds, "cp-lrp")
    other = "a" if bearer == "b" else "b"
    assert error(e.relevance[bearer], r) <= 1e-12
    assert not e.relevance[other].any()


def test_two_plain_factors_share_equally_under_both() -> None:
    model = one("y = Mul(a, b)", {"a": (3, 4), "b": (3, 4)})
    feeds = {"a": drawn(2, 3, 4), "b": drawn(2, 3, 4, seed=1)}
    for method in METHOD_KEYS:
        e, r = explained(model, feeds, method)
        assert error(e.relevance["a"], r / 2) <= 1e-12
        assert error(e.relevance["b"], r / 2) <= 1e-12


def test_a_product_with_a_constant_and_activations_pass() -> None:
    x = drawn(2, 3, 4)
    for text, opset in (
        ("y = Mul(x, c)", 18),
        ("y = Gelu(x)", 20),
        ("y = Tanh(x)", 18),
        ("s = Sigmoid(x); y = Mul(x, s)", 18),
    ):
        weights = {"c": np.float32([1.0, -2.0, 0.5, 3.0])} if "c" in text else {}
        e, r = explained(one(text, {"x": (3, 4)}, opset, **weights), {"x": x}, "attn-lrp")
        assert error(e.relevance["x"], r) <= 1e-12


GAIN, SHIFT = drawn(4, seed=3).astype(np.float32), drawn(4, seed=4).astype(np.float32)


def test_layer_normalisation_holds_its_deviation() -> None:
    x = drawn(2, 3, 4)
    e, r = explained(one("y = LayerNormalization(x, g, b)", {"x": (3, 4)}, g=GAIN, b=SHIFT), {"x": x}, "attn-lrp")
    deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    q = r / stable(np.asarray(e.outputs["y"]), 1e-6) * GAIN / deviation
    assert error(e.relevance["x"], x * (q - q.mean(-1, keepdims=True))) <= 1e-9
    assert np.abs(e.absorbed).max() > 0.01  # shift and mean absorb, and it is said


RMS = "q = Mul(x, x); m = ReduceMean(q, last); e = Add(m, eps); s = Sqrt(e); n = Div(x, s); y = Mul(n, g)"


def test_rms_normalisation_passes_in_every_encoding() -> None:
    x = drawn(2, 3, 4)
    chain = one(RMS, {"x": (3, 4)}, g=GAIN, last=np.array([-1]), eps=np.float32(1e-5))
    whole = one("y = RMSNormalization(x, g)", {"x": (3, 4)}, 23, g=GAIN)
    for model in (chain, whole):
        for method in METHOD_KEYS:
            e, r = explained(model, {"x": x}, method)
            assert error(e.relevance["x"], r) <= 1e-12


def test_the_mean_over_tokens_stabilises_the_sum() -> None:
    x = drawn(2, 5, 4)
    model = one("y = ReduceMean<keepdims=0>(x, a)", {"x": (5, 4)}, a=np.array([1]))
    e, r = explained(model, {"x": x}, "attn-lrp", epsilon=0.1)
    assert error(e.relevance["x"], x * (r / stable(x.sum(1), 0.1))[:, None]) <= 1e-12


def test_a_residual_sum_shares_by_contribution() -> None:
    feeds = {"a": drawn(2, 3, 4), "b": drawn(2, 3, 4, seed=1)}
    e, r = explained(one("y = Add(a, b)", {"a": (3, 4), "b": (3, 4)}), feeds, "cp-lrp", product_epsilon=0.05)
    q = r / stable(feeds["a"] + feeds["b"], 0.05)
    assert error(e.relevance["a"], feeds["a"] * q) <= 1e-12
    assert error(e.relevance["b"], feeds["b"] * q) <= 1e-12


def test_gamma_serves_convolutions_and_dense_layers_apart() -> None:
    x, w = drawn(2, 3, 6, 6), drawn(4, 3, 3, 3, seed=1).astype(np.float32)
    k = drawn(64, 5, seed=2).astype(np.float32)
    model = one("c = Conv(x, w); f = Flatten(c); y = MatMul(f, k)", {"x": (3, 6, 6)}, w=w, k=k)
    plain = explained(model, {"x": x}, "attn-lrp")[0].relevance["x"]
    found = [
        explained(model, {"x": x}, "attn-lrp", **o)[0].relevance["x"]
        for o in ({"conv_gamma": 0.25}, {"linear_gamma": 0.05}, {"conv_gamma": 0.25, "linear_gamma": 0.05})
    ]
    assert min(error(a, b) for i, a in enumerate([plain, *found]) for b in [plain, *found][:i]) > 1e-3
    label = {row.op_type: row.rule for row in Explainer(model, "cp-lrp", conv_gamma=0.25).plan()[0]}
    assert label["Conv"] == "γ"
    assert label["MatMul"] == "ε"


@pytest.mark.parametrize("option", ["conv_gamma", "linear_gamma", "epsilon"])
def test_an_option_below_zero_is_refused(option: str) -> None:
    with pytest.raises(MethodError, match=option):
        Explainer(MATMUL, "attn-lrp", **{option: -0.1})


@pytest.mark.parametrize("name", ["AttnLRP", "CP-LRP"])
def test_the_fields_names_are_known(name: str) -> None:
    assert METHODS[ALIASES[name]] is resolve(name)


# --------------------------------------------------------------------------- whole transformers


def encoder(mask: bool = True) -> onnx.ModelProto:
    """Token ids [N, 6] (and a mask of the same shape) to three classes: one attention head, one gated MLP."""
    width, weights = 8, {"t": drawn(11, 8), "p": drawn(1, 6, 8, seed=1), "u": drawn(8, 3, seed=12)}
    weights |= {
        n: drawn(width, width, seed=i + 2) * 0.4 for i, n in enumerate(("wq", "wk", "wv", "wo", "wg", "wu", "wd"))
    }
    weights |= {"g": 1 + 0.1 * drawn(width, seed=10), "b": 0.1 * drawn(width, seed=11)}
    masked = "c = Cast<to=1>(mask); k = Sub(one, c); l = Mul(k, low); j = Unsqueeze(l, ax); s = Add(s1, j)"
    text = (
        "w = Gather(t, ids); e = Add(w, p); n = LayerNormalization(e, g, b); q = MatMul(n, wq); kk = MatMul(n, wk);"
        " v = MatMul(n, wv); kt = Transpose<perm=[0,2,1]>(kk); s0 = MatMul(q, kt); s1 = Mul(s0, scale);"
        f" {masked if mask else 's = Identity(s1)'}; a = Softmax<axis=-1>(s); o = MatMul(a, v); h = MatMul(o, wo); r = Add(e, h);"
        " m = LayerNormalization(r, g, b); gg = MatMul(m, wg); si = Sigmoid(gg); sw = Mul(gg, si); up = MatMul(m, wu);"
        " ga = Mul(sw, up); dn = MatMul(ga, wd); f = Add(r, dn); cls = Gather<axis=1>(f, zero); y = MatMul(cls, u)"
    )
    scalars: dict[str, Array] = {"scale": np.float32(8**-0.5), "zero": np.array(0)}
    if mask:
        scalars |= {"one": np.float32(1), "low": np.float32(-1e4), "ax": np.array([1])}
    graph = parser.parse_graph(f"g () => () {{ {text.replace(';', chr(10))} }}")
    for name in ("ids", "mask") if mask else ("ids",):
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, ["N", 6]))
    for name, array in {**{n: w.astype(np.float32) for n, w in weights.items()}, **scalars}.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IDS = np.array([[1, 2, 3, 4, 0, 0], [5, 6, 7, 8, 9, 10]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def tokens(method: str, **options: Any) -> tuple[Array, Array, Array]:
    """(relevance at the embeddings [N, T, C], score [N], absorbed [N])."""
    model = canonicalize(load(encoder()).model)
    names = embeddings(model)
    graph = build(model, resolve(method).procedure(options), Options(wrt=names, accounting=True))  # type: ignore[arg-type]
    out = Session(lower(graph.model)).run({"ids": IDS, "mask": MASK})
    return out[graph.relevance[names[0]]], out[graph.reports["score"]], out[graph.reports["absorbed"]]


def test_integer_inputs_are_explained_at_their_embeddings() -> None:
    model = canonicalize(load(encoder()).model)
    assert embeddings(model) == ["w"]  # the mask's Cast only steers
    assert tokens("gradient")[0].shape == (2, 6, 8)


@pytest.mark.parametrize("method", METHOD_KEYS)
def test_padded_tokens_receive_nothing(method: str) -> None:
    r = tokens(method)[0]
    assert not r[0, 4:].any()
    assert np.abs(r[1]).max(-1).all()


@pytest.mark.parametrize("method", METHOD_KEYS)
def test_what_arrives_and_what_is_absorbed_is_what_was_seeded(method: str) -> None:
    r, score, absorbed = tokens(method)
    assert np.abs(r.sum((1, 2)) + absorbed - score).max() <= 1e-4 * np.abs(score).max()


def test_bytes_that_are_cast_are_explained_at_the_cast() -> None:
    graph = parser.parse_graph(
        "g (uint8[N,3,4,4] x) => (float[N,3] y) { f = Cast<to=1>(x)\n y = ReduceMean<axes=[2,3],keepdims=0>(f) }"
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert embeddings(canonicalize(load(model).model)) == ["f"]


def test_a_float_model_has_no_embeddings() -> None:
    assert embeddings(canonicalize(load(MATMUL).model)) == []


@pytest.mark.skipif(not (SHARED / "models").is_dir(), reason="../shared is absent: it holds the trained models")
@pytest.mark.parametrize("method", ["gradient", "attn-lrp", "cp-lrp", "lrp-epsilon"])
def test_a_trained_vision_transformer_is_explained(method: str) -> None:
    with np.load(SHARED / "images" / "cifar10_200.npz") as stored:
        images = stored["images"][:4].astype(np.float32) / 255
    x = (images - np.float32([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)) / np.float32([0.2023, 0.1994, 0.2010]).reshape(
        3, 1, 1
    )
    e = Explainer(SHARED / "models" / "cifar_vit_pgd.onnx", method)(x)
    r = e.relevance["input"]
    assert r.shape == x.shape
    assert np.isfinite(r).all()
    assert r.reshape(4, -1).any(1).all()
    if method != "gradient":
        assert np.abs(e.conservation).max() <= 1e-4


# --------------------------------------------------------------------------- masks

GUARDED = """<ir_version: 8, opset_import: ["" : 18]> net (float[N, 3, 4] x, int64[N, 3] mask) => (float[N, 4] y)
<float zero = {0}, float low = {LOW}, int64[2] axes = {1, 2}, int64[1] one = {1}> {
  t = Transpose<perm = [0, 2, 1]>(x) s = MatMul(x, t)
  m = Cast<to = 9>(mask) k = Unsqueeze(m, one) masked = Where(k, s, low)
  p = Softmax<axis = -1>(masked) GUARD
  v = MatMul(a, x) y = ReduceMean<keepdims = 0>(v, one)
}"""
GUARDS = {
    "-inf": ("-inf", "nan = IsNaN(p) a = Where(nan, zero, p)"),  # as PyTorch writes attention
    "lowest": ("-3.4028234663852886e+38", "a = Identity(p)"),  # as transformers writes it
}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize(
    "method", ["gradient", "attn-lrp", "cp-lrp", "lrp-epsilon", "attention-rollout", "gradient-rollout"]
)
def test_a_sample_that_is_masked_whole_is_finite_and_changes_no_other(method: str, guard: str) -> None:
    low, behind = GUARDS[guard]
    model = parser.parse_model(GUARDED.replace("LOW", "0" if low == "-inf" else low).replace("GUARD", behind))
    if low == "-inf":  # the text format has no infinity
        tensor = next(t for t in model.graph.initializer if t.name == "low")
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(-np.inf, np.float32), "low"))
    x = np.random.default_rng(8).standard_normal((3, 3, 4)).astype(np.float32)
    mask = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 1]])
    e = Explainer(model, method)({"x": x, "mask": mask}, target=1)
    assert np.isfinite(e.relevance["x"]).all()
    assert np.isfinite(e.absorbed).all()
    if method != "gradient":
        assert e.conservation.max() <= 1e-4
    rest = Explainer(model, method)({"x": x[[0, 2]], "mask": mask[[0, 2]]}, target=1)
    np.testing.assert_allclose(e.relevance["x"][[0, 2]], rest.relevance["x"], atol=1e-6)
