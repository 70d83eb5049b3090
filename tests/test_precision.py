"""Half-precision models: explained in float32, with relevance in float32, judged by the float32 model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
    assert got.relevance["input"].dtype == np.float32
    assert np.isfinite(got.relevance["input"]).all()
    a, b = (heat(e.relevance["input"]) for e in (expected, got))
    assert np.mean([spearman(p, q) for p, q in zip(a, b)]) > rank
    assert np.mean([overlap(p, q) for p, q in zip(a, b)]) > 0.75


def test_relevance_of_a_float16_network_is_accounted_for() -> None:
    found = Explainer(halved(onnx.load(MODEL)), "lrp-epsilon-plus", threads=1)(pictures(4, seed=1).astype(np.float16))
    assert found.conservation.max() < 1e-5


# a method of one pass, one that starts at a derivative, on a baseline, at an inner layer, over points, in noise, without a pass
EVERY_WAY = [
    ("lrp-epsilon-plus", {}),
    ("rap", {}),
    ("deeplift", {"baseline": "blur"}),
    ("grad-cam", {}),
    ("gnl-ig", {"steps": 2}),
    ("smoothgrad", {"samples": 2}),
    ("rise", {"masks": 4}),
]


@HALVES
@pytest.mark.parametrize("method, options", EVERY_WAY, ids=[m for m, _ in EVERY_WAY])
def test_every_way_of_explaining_gives_float32_relevance_of_16_bits(
    kind: int, method: str, options: dict[str, Any]
) -> None:
    model = halved(small(1.0), kind)
    x = np.random.default_rng(0).random((2, 1, 6, 6)).astype(helper.tensor_dtype_to_np_dtype(kind))
    found = Explainer(model, method, threads=1, **options)(x)
    expected = Explainer(small(1.0), method, threads=1, **options)(x.astype(np.float32), target=found.target.index)
    r = expected.relevance["x"]
    assert found.relevance["x"].dtype == np.float32
    np.testing.assert_allclose(found.relevance["x"], r, atol=0.03 * np.abs(r).max())  # bfloat16 has 8 bits


@HALVES
def test_relevance_below_the_range_of_float16_is_no_zero(kind: int) -> None:
    x = np.random.default_rng(0).random((2, 1, 6, 6)).astype(helper.tensor_dtype_to_np_dtype(kind))
    found = Explainer(halved(small(5e-4), kind), "input-x-gradient", threads=1)(x, target=1)
    r = found.relevance["x"]
    assert np.abs(r).max() < 2e-8  # half of float16's smallest step
    assert (r != 0).mean() > 0.9


def test_the_explained_file_of_a_half_precision_model_gives_float32_relevance() -> None:
    for method, options in EVERY_WAY[:-1]:
        file = Explainer(halved(small(1.0)), method, threads=1, **options).convert()
        types = {v.name: v.type.tensor_type.elem_type for v in (*file.graph.input, *file.graph.output)}
        assert (types["x"], types["y"], types["x_relevance"]) == (TensorProto.FLOAT16,) * 2 + (TensorProto.FLOAT,)
        onnx.checker.check_model(file, full_check=True)


def test_outputs_stay_within_the_steps_of_float16() -> None:
    x, model = pictures(4, seed=1).astype(np.float16), halved(onnx.load(MODEL))
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x})[0]
    got = Explainer(model, "gradient", threads=1)(x).outputs["logits"]
    assert got.dtype == np.float16
    assert np.abs(got.astype(float) - expected).max() <= 4 * 2.0**-10 * np.abs(expected).max()


def small(scale: float) -> onnx.ModelProto:
    """Two convolutions and a matrix, whose weights are so many times the usual."""
    text = """g (float[N, 1, 6, 6] x) => (float[N, 3] y) {
        c = Conv<pads = [1, 1, 1, 1]>(x, v) h = Relu(c) d = Conv(h, w) e = Relu(d) f = Flatten(e) y = MatMul(f, u)}"""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(1)
    for name, shape in {"v": (4, 1, 3, 3), "w": (4, 4, 3, 3), "u": (64, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array((rng.random(shape) * scale).astype(np.float32), name))
    return model


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
