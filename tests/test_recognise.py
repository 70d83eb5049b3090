"""Chains of primitives recognised as one operator: every spelling, exact outputs, and nothing that only looks alike.

Each spelling is a model in ONNX's text syntax. The outputs before and after are compared in ONNX Runtime (float32, ten
roundings apart); which operators the canonical form holds is read off it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser

from onnx_explain import Explainer
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.spell import spell_out

Array = npt.NDArray[Any]
SAME = 5e-6  # of the largest value: float32, another order of the same operations


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "zero": 0.0, "minus": -0.5, "sixth": 1 / 6,
    "root": 2**0.5, "unroot": 0.5**0.5, "cubic": 0.044715, "pi": (2 / np.pi) ** 0.5, "alpha": 1.702, "eps": 1e-5,
    "eps12": 1e-12, "count": 8.0, "nearly": 1.41,
}  # fmt: skip
WEIGHTS: dict[str, Array] = {
    **{n: np.asarray(v, np.float32) for n, v in NUMBERS.items()},
    "g": drawn(8, seed=1), "b": drawn(8, seed=2), "g3": drawn(1, 1, 8, seed=3), "b3": drawn(1, 1, 8, seed=4),
    "gc": drawn(5, 1, seed=5), "bc": drawn(5, 1, seed=6), "last": np.array([-1]), "second": np.array([2]),
    "middle": np.array([1]), "both": np.array([-2, -1]), "gg": drawn(5, 8, seed=7),
}  # fmt: skip
SHAPE = (2, 5, 8)


def build(
    text: str, opset: int = 18, *, dtype: npt.DTypeLike = np.float32, others: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """x [N, 5, 8] to y; `others`: further outputs."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = parser.parse_graph(f"g () => () {{ {text.replace(';', chr(10))} }}")
    graph.input.append(helper.make_tensor_value_info("x", kind, ["N", *SHAPE[1:]]))
    used = {i for n in graph.node for i in n.input}
    for name in sorted(used & set(WEIGHTS)):
        array = WEIGHTS[name]
        graph.initializer.append(
            numpy_helper.from_array(array.astype(dtype) if array.dtype.kind == "f" else array, name)
        )
    for name in ("y", *others):
        graph.output.append(helper.make_tensor_value_info(name, kind, None))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    del model.graph.value_info[:]
    return model


def run(model: onnx.ModelProto, x: Array) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x})))


def canonical(model: onnx.ModelProto) -> list[str]:
    """The operators of the canonical form, in order."""
    return [n.op_type for n in canonicalize(ir.from_proto(model)).graph]


GELU = {
    "torch": "d = Div(x, root); e = Erf(d); p = Add(e, one); m = Mul(x, p); y = Mul(m, half)",
    "half first": "h = Mul(x, half); d = Div(x, root); e = Erf(d); p = Add(one, e); y = Mul(h, p)",
    "half on the sum": "d = Mul(unroot, x); e = Erf(d); p = Add(e, one); m = Mul(half, p); y = Mul(m, x)",
    "reciprocal root": "d = Mul(x, unroot); e = Erf(d); p = Add(e, one); h = Mul(p, x); y = Mul(half, h)",
    "division by two": "d = Div(x, root); e = Erf(d); p = Add(e, one); m = Mul(x, p); y = Div(m, two)",
    "distributed": "d = Div(x, root); e = Erf(d); h = Mul(x, half); f = Mul(h, e); y = Add(f, h)",
    "subtraction": "d = Div(x, root); e = Erf(d); n = Neg(e); p = Sub(one, n); m = Mul(x, p); y = Mul(m, half)",
    "identity between": "d = Div(x, root); i = Identity(d); e = Erf(i); p = Add(e, one); m = Mul(x, p); y = Mul(m, half)",
}
TANH = {
    "cube by Pow": "c = Pow(x, three); k = Mul(c, cubic); s = Add(x, k); t = Mul(s, pi); h = Tanh(t); p = Add(h, one);"
    " m = Mul(x, p); y = Mul(m, half)",
    "cube by Mul": "q = Mul(x, x); c = Mul(q, x); k = Mul(cubic, c); s = Add(k, x); t = Mul(pi, s); h = Tanh(t);"
    " p = Add(one, h); a = Mul(half, x); y = Mul(a, p)",
    "factored": "q = Mul(x, x); k = Mul(cubic, q); s = Add(one, k); u = Mul(x, s); t = Mul(u, pi); h = Tanh(t);"
    " p = Add(h, one); a = Mul(p, half); y = Mul(x, a)",
}
SWISH = {
    "silu": "s = Sigmoid(x); y = Mul(x, s)",
    "silu turned": "s = Sigmoid(x); y = Mul(s, x)",
    "quick": "a = Mul(x, alpha); s = Sigmoid(a); y = Mul(x, s)",
    "by division": "n = Neg(x); e = Exp(n); p = Add(e, one); y = Div(x, p)",
    "by tanh": "h = Mul(x, half); t = Tanh(h); p = Add(t, one); q = Mul(half, p); y = Mul(q, x)",
}
HARD = {
    "clip": "a = Add(x, three); c = Clip(a, zero, six); m = Mul(x, c); y = Div(m, six)",
    "clip divided first": "a = Add(three, x); c = Clip(a, zero, six); m = Mul(c, sixth); y = Mul(x, m)",
    "hard sigmoid": "s = HardSigmoid<alpha=0.16666667,beta=0.5>(x); y = Mul(x, s)",
    "min and relu": "a = Add(x, three); r = Relu(a); c = Min(r, six); m = Mul(x, c); y = Div(m, six)",
}
OTHERS = {
    "Mish": "e = Exp(x); p = Add(e, one); l = Log(p); t = Tanh(l); y = Mul(x, t)",
    "Softplus": "e = Exp(x); p = Add(one, e); y = Log(p)",
    "Sigmoid": "n = Neg(x); e = Exp(n); p = Add(one, e); y = Reciprocal(p)",
    "HardSigmoid": "a = Add(x, three); c = Clip(a, zero, six); y = Div(c, six)",
}
RECTIFIED = {"maximum": "y = Max(x, zero)", "turned": "y = Max(zero, x)", "bound": "y = Clip(x, zero)"}
MEAN = "m = ReduceMean<keepdims=1>(x, last); d = Sub(x, m)"
LAYER = {
    "torch": f"{MEAN}; q = Pow(d, two); v = ReduceMean<keepdims=1>(q, last); e = Add(v, eps); s = Sqrt(e); n = Div(d, s);"
    " w = Mul(n, g); y = Add(w, b)",
    "square by Mul": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(eps, v); s = Sqrt(e); n = Div(d, s);"
    " w = Mul(g, n); y = Add(b, w)",
    "positive axis": "m = ReduceMean(x, second); d = Sub(x, m); q = Mul(d, d); v = ReduceMean(q, second); e = Add(v, eps);"
    " s = Sqrt(e); n = Div(d, s); w = Mul(n, g3); y = Add(w, b3)",
    "reciprocal": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); r = Reciprocal(s);"
    " n = Mul(d, r); w = Mul(n, g); y = Add(w, b)",
    "power of minus a half": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps); r = Pow(e, minus);"
    " n = Mul(d, r); w = Mul(n, g); y = Add(w, b)",
    "root by Pow": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps); s = Pow(e, half); n = Div(d, s);"
    " y = Mul(n, g)",
    "no scale, no shift": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); y = Div(d, s)",
    "shift alone": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); n = Div(d, s); y = Add(n, b)",
    "two differences": f"{MEAN}; d2 = Sub(x, m); q = Mul(d2, d2); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e);"
    " n = Div(d, s); w = Mul(n, g); y = Add(w, b)",
    "moments": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); r = Reciprocal(s);"
    " rg = Mul(r, g); mg = Mul(m, rg); o = Sub(b, mg); xg = Mul(x, rg); y = Add(xg, o)",
    "sums": "t = ReduceSum(x, last); m = Div(t, count); d = Sub(x, m); q = Mul(d, d); u = ReduceSum(q, last);"
    " v = Div(u, count); e = Add(v, eps); s = Sqrt(e); n = Div(d, s); w = Mul(n, g); y = Add(w, b)",
    "two axes": "m = ReduceMean(x, both); d = Sub(x, m); q = Mul(d, d); v = ReduceMean(q, both); e = Add(v, eps);"
    " s = Sqrt(e); n = Div(d, s); y = Mul(n, gg)",
    "tiny epsilon": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps12); s = Sqrt(e); n = Div(d, s); y = Mul(n, g)",
}
INNER = (
    "m = ReduceMean(x, middle); d = Sub(x, m); q = Mul(d, d); v = ReduceMean(q, middle); e = Add(v, eps); s = Sqrt(e)"
)
RMS = {
    "llama": "q = Pow(x, two); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); r = Reciprocal(s); n = Mul(x, r); y = Mul(g, n)",
    "division": "q = Mul(x, x); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); n = Div(x, s); y = Mul(n, g)",
    "one over": "q = Mul(x, x); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); r = Div(one, s); n = Mul(x, r); y = Mul(n, g)",
    "no scale": "q = Mul(x, x); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); y = Div(x, s)",
    "scale first": "q = Mul(x, x); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); w = Mul(x, g); y = Div(w, s)",
}
SOFT = {
    "stable": "h = ReduceMax(x, last); l = Sub(x, h); e = Exp(l); t = ReduceSum(e, last); y = Div(e, t)",
    "plain": "e = Exp(x); t = ReduceSum(e, last); y = Div(e, t)",
    "reciprocal": "e = Exp(x); t = ReduceSum(e, last); r = Reciprocal(t); y = Mul(e, r)",
    "other axis": "h = ReduceMax(x, middle); l = Sub(x, h); e = Exp(l); t = ReduceSum(e, middle); y = Div(e, t)",
}
LOG = "h = ReduceMax(x, last); l = Sub(x, h); e = Exp(l); t = ReduceSum(e, last); k = Log(t); y = Sub(l, k)"
FAMILIES: dict[str, Mapping[str, str]] = {
    "Gelu": GELU, "Gelu (tanh)": TANH, "Swish": SWISH, "HardSwish": HARD, "Relu": RECTIFIED, "LayerNormalization": LAYER,
    "RMSNormalization": RMS, "Softmax": SOFT, "LogSoftmax": {"stable": LOG},
    **{name: {"spelled": text} for name, text in OTHERS.items()},
}  # fmt: skip
SPELLINGS = [(family.split(" ")[0], name, text) for family, texts in FAMILIES.items() for name, text in texts.items()]
IDS = [f"{op_type}: {name}" for op_type, name, _ in SPELLINGS]


@pytest.mark.parametrize(("op_type", "name", "text"), SPELLINGS, ids=IDS)
def test_every_spelling_becomes_the_operator(op_type: str, name: str, text: str) -> None:
    assert canonical(build(text)) == [op_type]


@pytest.mark.parametrize(("op_type", "name", "text"), SPELLINGS, ids=IDS)
def test_the_outputs_stay_as_they_were(op_type: str, name: str, text: str) -> None:
    model = build(text)
    plain = ir.to_proto(spell_out(canonicalize(ir.from_proto(model))))
    onnx.checker.check_model(plain, full_check=True)
    for scale in (1.0, 0.01, 6.0):
        x = drawn(*SHAPE, seed=9) * scale
        before, after = run(model, x.astype(np.float32))["y"], run(plain, x.astype(np.float32))["y"]
        assert np.abs(after - before).max() <= SAME * np.abs(before).max()


@pytest.mark.parametrize(("op_type", "name", "text"), SPELLINGS, ids=IDS)
def test_every_spelling_has_the_gradient_of_the_chain(op_type: str, name: str, text: str) -> None:
    """In float64, against central differences of the chain itself."""
    x = drawn(*SHAPE, seed=3).astype(np.float64)
    x[np.abs(np.abs(x) - 3.0) < 1e-3] += 0.01
    model = build(text, dtype=np.float64)
    r = Explainer(model, "gradient", backend="reference", logits=False)(x, target=7).relevance["x"]
    flat = Explainer(model, "gradient", backend="reference", logits=False)
    direction, step = drawn(*SHAPE, seed=4).astype(np.float64), 1e-5
    ends = [flat(x + s * step * direction, target=7).outputs["y"].reshape(2, -1)[:, 7] for s in (1, -1)]
    assert np.abs((ends[0] - ends[1]) / (2 * step) - (r * direction).sum((1, 2))).max() <= 1e-7


def test_the_older_form_of_a_reduction_is_the_same() -> None:
    text = (
        "m = ReduceMean<axes=[-1]>(x); d = Sub(x, m); q = Pow(d, two); v = ReduceMean<axes=[2]>(q); e = Add(v, eps);"
        " s = Sqrt(e); n = Div(d, s); w = Mul(n, g); y = Add(w, b)"
    )
    assert canonical(build(text, opset=13)) == ["LayerNormalization"]


def test_another_than_the_last_axis_is_brought_to_the_end() -> None:
    text = f"{INNER}; n = Div(d, s); w = Mul(n, gc); y = Add(w, bc)"
    model = build(text)
    assert canonical(model) == ["Transpose", "LayerNormalization", "Transpose"]
    plain = ir.to_proto(spell_out(canonicalize(ir.from_proto(model))))
    x = drawn(*SHAPE)
    assert np.abs(run(plain, x)["y"] - run(model, x)["y"]).max() <= SAME * 5


def test_a_transpose_on_every_way_goes_before_the_activation() -> None:
    text = (
        "d = Div(x, root); u = Transpose<perm=[0,2,1]>(d); e = Erf(u); p = Add(e, one); h = Mul(x, half);"
        " v = Transpose<perm=[0,2,1]>(h); y = Mul(v, p)"
    )
    model = build(text)
    assert canonical(model) == ["Transpose", "Gelu"]
    plain = ir.to_proto(spell_out(canonicalize(ir.from_proto(model))))
    x = drawn(*SHAPE)
    assert np.abs(run(plain, x)["y"] - run(model, x)["y"]).max() <= SAME * 5


@pytest.mark.parametrize("bound", [128.0, 255.0, 1e6])
def test_a_clip_with_a_large_upper_bound_is_no_rectifier(bound: float) -> None:
    """As detectors clip boxes to the picture."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,2] x) => (float[N,2] y)
    <float zero = {{0}}, float bound = {{{bound}}}> {{ y = Clip (x, zero, bound) }}"""
    x = np.array([[-3.0, 2.0 * bound], [2.0, 0.5 * bound]], np.float32)
    e = Explainer(parser.parse_model(text), "gradient")(x, target=1)
    assert e.outputs["y"].tolist() == [[0.0, bound], [2.0, 0.5 * bound]]
    assert e.relevance["x"].tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_a_scale_that_meets_its_vectors_in_another_layout_keeps_the_gradient() -> None:
    """As tf2onnx writes a normalisation over channels before a PReLU with a slope per element."""
    turned = "t = Transpose <perm=[0,2,1]> (n); w = Mul(t, g); y = Transpose <perm=[0,2,1]> (w)"
    straight = "k = Transpose <perm=[1,0]> (g); y = Mul(n, k)"
    chain = "q = Mul(x, x); v = ReduceMean <axes=[1]> (q); e = Add(v, eps); s = Sqrt(e); n = Div(x, s)"
    x, found = drawn(2, 3, 2, seed=5).astype(np.float32), []
    for end in (turned, straight):
        text = f"""<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,3,2] x) => (float[N,3,2] y)
        <float[2,3] g = {{1.0, -2.0, 0.5, 3.0, 0.2, 1.5}}, float eps = {{0.001}}> {{ {chain}; {end} }}"""
        found.append(
            Explainer(onnx.parser.parse_model(text.replace(";", "\n")), "gradient")(x, target=2).relevance["x"]
        )
    assert np.allclose(found[0], found[1], atol=1e-6)
    assert np.abs(found[0]).max() > 0.1


def test_softmax_of_masked_logits_is_recognised_behind_the_mask() -> None:
    text = "a = Add(x, b); h = ReduceMax(a, last); l = Sub(a, h); e = Exp(l); t = ReduceSum(e, last); y = Div(e, t)"
    assert canonical(build(text)) == ["Add", "Softmax"]


# --------------------------------------------------------------------------- what only looks alike

ALIKE = {
    "another root": GELU["torch"].replace("root", "nearly"),
    "no half": "d = Div(x, root); e = Erf(d); p = Add(e, one); y = Mul(x, p)",
    "other cubic": TANH["cube by Pow"].replace("cubic", "half"),
    "gate of another tensor": "t = Mul(x, x); s = Sigmoid(x); y = Mul(t, s)",
    "epsilon outside the root": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); s = Sqrt(v); e = Add(s, eps); y = Div(d, e)",
    "unbiased variance": f"{MEAN}; q = Mul(d, d); u = ReduceSum(q, last); v = Div(u, six); e = Add(v, eps); s = Sqrt(e); y = Div(d, s)",
    "axes that differ": "m = ReduceMean(x, middle); d = Sub(x, m); q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps);"
    " s = Sqrt(e); y = Div(d, s)",
    "shift before scale": f"{MEAN}; q = Mul(d, d); v = ReduceMean(q, last); e = Add(v, eps); s = Sqrt(e); n = Div(d, s);"
    " o = Add(n, b); y = Mul(o, g)",
    "softmax over other than its sum": "e = Exp(x); t = ReduceSum(e, middle); m = ReduceSum(e, last); z = Add(t, m); y = Div(e, z)",
}
LARGE = {"Gelu", "Swish", "HardSwish", "Mish", "Softmax", "LogSoftmax"}


@pytest.mark.parametrize("name", ALIKE)
def test_what_computes_something_else_stays_a_chain(name: str) -> None:
    model = build(ALIKE[name])
    found = canonical(model)
    assert not LARGE & set(found)
    if name not in ("shift before scale",):
        assert "LayerNormalization" not in found
    plain = ir.to_proto(spell_out(canonicalize(ir.from_proto(model))))
    x = drawn(*SHAPE)
    before = run(model, x)["y"]
    assert np.abs(run(plain, x)["y"] - before).max() <= SAME * np.abs(before).max()


@pytest.mark.parametrize("inner", ["d", "e", "p", "m"])
def test_a_value_that_is_an_output_keeps_its_chain(inner: str) -> None:
    assert "Gelu" not in canonical(build(GELU["torch"], others=(inner,)))


@pytest.mark.parametrize("inner", ["d", "v", "s", "n"])
def test_a_value_that_another_node_reads_keeps_its_chain(inner: str) -> None:
    text = f"{LAYER['torch'].replace('y = ', 'f = ')}; z = Tanh({inner}); y = Add(f, z)"
    found = canonical(build(text))
    assert "Tanh" in found
    assert "Sub" in found or "ReduceMean" in found or "Mul" in found


def test_a_shape_that_is_known_does_not_keep_the_chain() -> None:
    text = f"{GELU['torch'].replace('y = ', 'f = ')}; k = Shape<start=1>(m); z = Concat<axis=0>(last, k); y = Reshape(f, z)"
    assert {"Gelu", "Reshape"} <= set(canonical(build(text)))


def test_constants_of_one_say_nothing_of_scale_and_shift() -> None:
    """A network before training has scales of 1 and shifts of 0; its operators are those of the trained one."""
    model = build(LAYER["torch"])
    for constant in model.graph.initializer:
        if constant.name in ("g", "b"):
            fill = np.ones if constant.name == "g" else np.zeros
            constant.CopyFrom(numpy_helper.from_array(fill(8, np.float32), constant.name))
    assert canonical(model) == ["LayerNormalization"]


def test_a_file_that_is_recognised_runs_and_converts() -> None:
    text = (
        "d = Div(x, root); e = Erf(d); p = Add(e, one); h = Mul(x, half); a = Mul(h, p); m = ReduceMean(a, last);"
        " c = Sub(a, m); q = Pow(c, two); v = ReduceMean(q, last); o = Add(v, eps); s = Sqrt(o); n = Div(c, s);"
        " w = Mul(n, g); z = Add(w, b); i = Sigmoid(z); y = Mul(z, i)"
    )
    model = build(text)
    assert canonical(model) == ["Gelu", "LayerNormalization", "Swish"]
    converted = Explainer(model, "lrp-epsilon").convert()
    assert {n.domain for n in converted.graph.node} == {""}
    assert next(o.version for o in converted.opset_import if o.domain == "") == 18
    functions = Explainer(model, "lrp-epsilon").convert(functions=True)
    x = drawn(*SHAPE)
    a, b = run(converted, x), run(functions, x)
    assert np.abs(a["x_relevance"] - b["x_relevance"]).max() <= 1e-5 * np.abs(a["x_relevance"]).max()


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_chain_of_elementwise_operators_keeps_its_outputs(data: st.DataObject) -> None:
    """Whatever is recognised in a random graph, the outputs are the same."""
    names, nodes = ["x"], []
    for i in range(data.draw(st.integers(2, 9))):
        a = data.draw(st.sampled_from(names))
        if data.draw(st.booleans()):
            op = data.draw(st.sampled_from(["Sigmoid", "Tanh", "Erf", "Neg", "Relu", "Softplus"]))
            nodes.append(f"v{i} = {op}({a})")
        else:
            op = data.draw(st.sampled_from(["Add", "Mul", "Sub"]))
            b = data.draw(st.sampled_from([*names, "half", "one", "unroot", "g"]))
            nodes.append(f"v{i} = {op}({a}, {b})")
        names.append(f"v{i}")
    model = build("; ".join([*nodes, f"y = Identity({names[-1]})"]))
    plain = ir.to_proto(spell_out(canonicalize(ir.from_proto(model))))
    x = drawn(*SHAPE)
    before, after = run(model, x)["y"], run(plain, x)["y"]
    assert np.abs(after - before).max() <= SAME * max(np.abs(before).max(), 1.0)


def test_a_graph_of_thousands_of_nodes_takes_seconds() -> None:
    block = (
        "d{i} = Div(x{i}, root); e{i} = Erf(d{i}); p{i} = Add(e{i}, one); m{i} = Mul(x{i}, p{i}); h{i} = Mul(m{i}, half);"
        " x{j} = Add(h{i}, x{i})"
    )
    text = "; ".join(block.format(i=i, j=i + 1) for i in range(500)).replace("x0,", "x,").replace("x0)", "x)")
    model = ir.from_proto(build(f"{text}; y = Identity(x500)"))
    began = time.perf_counter()
    found = [n.op_type for n in canonicalize(model).graph]
    assert found.count("Gelu") == 500
    assert time.perf_counter() - began < 20
