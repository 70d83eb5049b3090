"""Half-precision models: explained in float32, their own inputs and outputs in half precision, judged by the float32 model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_explain import Explainer, build_vjp

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from compare_precision import MODEL, halved, heat, overlap, pictures, spearman

HALVES = pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])


@pytest.mark.parametrize("method, rank", [("gradient", 0.98), ("lrp-epsilon-plus", 0.98), ("rap", 0.8)])
def test_a_float16_network_is_explained_like_its_float32_network(method: str, rank: float) -> None:
    x = pictures(4, seed=1)
    expected = Explainer(MODEL, method, threads=1)(x)
    got = Explainer(halved(onnx.load(MODEL)), method, threads=1)(x.astype(np.float16), target=expected.target.index)
    assert got.relevance["input"].dtype == np.float16
    assert np.isfinite(got.relevance["input"]).all()
    a, b = (heat(e.relevance["input"]) for e in (expected, got))
    assert np.mean([spearman(p, q) for p, q in zip(a, b)]) > rank
    assert np.mean([overlap(p, q) for p, q in zip(a, b)]) > 0.75


def test_relevance_of_a_float16_network_is_accounted_for() -> None:
    found = Explainer(halved(onnx.load(MODEL)), "lrp-epsilon-plus", threads=1)(pictures(4, seed=1).astype(np.float16))
    assert found.conservation.max() < 1e-4


def test_outputs_stay_within_the_steps_of_float16() -> None:
    x, model = pictures(4, seed=1).astype(np.float16), halved(onnx.load(MODEL))
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x})[0]
    got = Explainer(model, "gradient", threads=1)(x).outputs["logits"]
    assert got.dtype == np.float16
    assert np.abs(got.astype(float) - expected).max() <= 4 * 2.0**-10 * np.abs(expected).max()


def product(kind: int, scale: float) -> onnx.ModelProto:
    """y = (x·w)·scale, with 3 000 summands."""
    text = "g (float[1, 3000] x) => (float[1, 1] y) {p = MatMul(x, w) y = Mul(p, c)}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, array in {"w": np.full((3000, 1), 100.0, np.float32), "c": np.float32(scale)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return halved(model, kind)


@HALVES
def test_sums_are_taken_in_float32_and_the_types_are_kept(kind: int) -> None:
    vjp = build_vjp(product(kind, 0.001), ["x"], ["y"])
    types = {v.name: v.type.tensor_type.elem_type for v in (*vjp.graph.input, *vjp.graph.output)}
    assert set(types.values()) == {kind}
    onnx.checker.check_model(vjp, full_check=True)


def test_a_sum_beyond_float16_is_no_infinity() -> None:
    x = np.ones((1, 3000), np.float16)
    found = Explainer(product(TensorProto.FLOAT16, 0.001), "lrp-epsilon", threads=1)(x)
    assert np.isfinite(found.relevance["x"]).all()
    np.testing.assert_allclose(found.relevance["x"].astype(float).sum(), 300.0, rtol=5e-3)


def test_a_cast_to_float16_that_the_model_makes_still_rounds() -> None:
    text = "g (float[3] x) => (float[3] y) {h = Cast<to = 10>(x) y = Cast<to = 1>(h)}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    x = np.array([0.1, 1.0001, 7.0001], np.float32)
    session = onnxruntime.InferenceSession(build_vjp(model, ["x"], ["y"]).SerializeToString())
    y, gradient = session.run(["y", "x_gradient"], {"x": x, "y_cotangent": np.ones(3, np.float32)})
    np.testing.assert_array_equal(y, x.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(gradient, np.ones(3))


def test_half_precision_weights_are_not_stored_a_second_time() -> None:
    x = np.random.default_rng(0).standard_normal((200, 200)).astype(np.float16)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 200])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 200])],
        [numpy_helper.from_array(x, "w")],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    assert build_vjp(model, ["x"], ["y"]).ByteSize() < model.ByteSize() + 4096
