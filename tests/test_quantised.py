"""Integer networks explained straight through: QDQ, QOperator and dynamic int8, judged by the float network they mean.

Files are made by ONNX Runtime's own quantisation tools, small ones are written by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from onnx_explain import Explainer, build_vjp, fit_patterns
from onnx_explain.errors import UnsupportedOperator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from compare_precision import MODEL, heat, overlap, pictures, quantised, spearman  # noqa: E402

Array = npt.NDArray[Any]
FORMS = ("qdq-u8", "qdq-s8", "qoperator", "dynamic")
METHODS = ("gradient", "lrp-epsilon-plus", "rap")
SHARED = ROOT.parent / "shared" / "models" / "mobilenetv2_ort_qdq.onnx"


def run(
    model: onnx.ModelProto | bytes | str, feeds: Mapping[str, Array], *, optimised: bool = True
) -> dict[str, Array]:
    """All outputs under ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds))))


def model(text: str, constants: Mapping[str, Any], opset: int = 17, microsoft: bool = False) -> onnx.ModelProto:
    """A model of text with initialisers."""
    domains = f'"" : {opset}' + (', "com.microsoft" : 1' if microsoft else "")
    made = parser.parse_model(f"<ir_version: {10 if opset > 20 else 8}, opset_import: [{domains}]> {text}")
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return made


SCALES = {"s": np.float32(0.05), "z": np.uint8(0), "t": np.float32(0.02), "m": np.int8(3)}
W = np.random.default_rng(3).integers(-100, 100, (3, 4)).astype(np.int8)
V = {**SCALES, "w": W, "ws": np.float32(0.01), "wz": np.int8(0)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, calibration = tmp_path_factory.mktemp("int8"), pictures(16, seed=3)
    return {form: quantised(MODEL, folder / f"{form}.onnx", form, calibration) for form in FORMS}


# --------------------------------------------------------------------------- whole networks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_an_int8_network_is_explained_like_the_float_network(files: dict[str, Path], form: str, method: str) -> None:
    x = pictures(4, seed=1)
    whole, small = (Explainer(p, method, threads=1) for p in (MODEL, files[form]))
    expected = whole(x)
    got = small(x, target=expected.target.index)
    a, b = (heat(e.relevance["input"]) for e in (expected, got))
    assert np.isfinite(b).all()
    assert np.mean([overlap(p, q) for p, q in zip(a, b)]) > (0.6 if method == "gradient" else 0.75)
    assert np.mean([spearman(p, q) for p, q in zip(a, b)]) > 0.6


@pytest.mark.parametrize("form", FORMS)
def test_the_explained_file_predicts_what_the_int8_file_does(files: dict[str, Path], form: str, tmp_path: Path) -> None:
    x = pictures(3, seed=2)
    target = tmp_path / "explained.onnx"
    Explainer(files[form], "lrp-epsilon-plus", threads=1).convert(target)
    np.testing.assert_array_equal(
        run(str(target), {"input": x})["logits"], run(str(files[form]), {"input": x})["logits"]
    )


def test_neurons_of_an_int8_network_have_the_regimes_of_the_float_network(files: dict[str, Path]) -> None:
    x = pictures(2, seed=2)
    expected = [w.regime for w in fit_patterns(MODEL, x).weights]
    assert {"positive", "linear"} == set(expected)
    for form, path in files.items():
        assert [w.regime for w in fit_patterns(path, x).weights] == expected, form


@pytest.mark.parametrize("form", FORMS)
def test_relevance_of_an_int8_network_is_accounted_for(files: dict[str, Path], form: str) -> None:
    assert Explainer(files[form], "lrp-epsilon-plus", threads=1)(pictures(3, seed=2)).conservation.max() < 1e-5


def test_uint8_kernels_stay_fused_in_the_explained_file(files: dict[str, Path], tmp_path: Path) -> None:
    kinds = [optimised_kinds(p, tmp_path) for p in (files["qdq-u8"], converted(files["qdq-u8"], tmp_path))]
    assert kinds[0].count("QLinearConv") == kinds[1].count("QLinearConv") > 0


def converted(path: Path, folder: Path) -> Path:
    Explainer(path, "gradient", threads=1).convert(folder / "gradient.onnx")
    return folder / "gradient.onnx"


def optimised_kinds(path: Path, folder: Path) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node]


def test_int8_weights_are_not_stored_a_second_time(files: dict[str, Path], tmp_path: Path) -> None:
    assert converted(files["qdq-u8"], tmp_path).stat().st_size < 1.5 * files["qdq-u8"].stat().st_size + 200_000


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
@pytest.mark.parametrize("method", METHODS)
def test_a_deployed_mobilenet_is_explained(method: str) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    found = Explainer(str(SHARED), method, threads=1)(x)
    # its signed activations are fused only where nothing else reads them: the standard's meaning is the unoptimised run
    expected = run(str(SHARED), {"input": x}, optimised=False)["output"]
    assert np.abs(found.outputs["output"] - expected).max() <= 1e-5 * np.abs(expected).max()
    relevance = found.relevance["input"]
    assert np.isfinite(relevance).all()
    assert relevance.any()


# --------------------------------------------------------------------------- straight through


def gradient(of: onnx.ModelProto, x: Array, s: Array) -> Array:
    return run(build_vjp(of, ["x"], ["y"]), {"x": x, "y_cotangent": s})["x_gradient"]


def test_a_pair_passes_relevance_as_it_is() -> None:
    pair = model("g (float[2, 3] x) => (float[2, 3] y) {q = QuantizeLinear(x, t, m) y = DequantizeLinear(q, t, m)}", V)
    x, s = np.linspace(-9, 9, 6).reshape(2, 3).astype(np.float32), np.arange(1, 7).reshape(2, 3).astype(np.float32)
    np.testing.assert_array_equal(gradient(pair, x, s), s)


def test_a_relu_taken_into_the_quantisation_cuts_off() -> None:
    pair = model("g (float[2, 3] x) => (float[2, 3] y) {q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)}", V)
    x = np.array([[-1, 0.01, 1], [12, 13, 100]], np.float32)
    np.testing.assert_array_equal(gradient(pair, x, np.ones_like(x)), [[0, 0, 1], [1, 0, 0]])


def test_other_scales_on_the_way_back_scale_the_gradient() -> None:
    pair = model("g (float[2] x) => (float[2] y) {q = QuantizeLinear(x, t, m) y = DequantizeLinear(q, s, m)}", V)
    np.testing.assert_allclose(gradient(pair, np.ones(2, np.float32), np.ones(2, np.float32)), 2.5, rtol=1e-6)


def test_operators_on_integers_between_the_pair_move_relevance() -> None:
    text = """g (float[1, 1, 4, 4] x) => (float[1, 4] y) {
        q = QuantizeLinear(x, t, m) p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q)
        f = Flatten(p) y = DequantizeLinear(f, t, m)}"""
    whole = model(
        """g (float[1, 1, 4, 4] x) => (float[1, 4] y) {p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        y = Flatten(p)}""",
        {},
    )
    x = np.random.default_rng(1).permutation(16).reshape(1, 1, 4, 4).astype(np.float32) / 8
    s = np.arange(1, 5, dtype=np.float32)[None]
    np.testing.assert_array_equal(gradient(model(text, V), x, s), gradient(whole, x, s))


def test_an_operator_without_a_meaning_on_integers_is_refused_by_name() -> None:
    text = """g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y) {
        q = QuantizeLinear(x, t, m) a = Abs(q) y = DequantizeLinear(a, t, m)}"""
    with pytest.raises(UnsupportedOperator, match="Abs"):
        build_vjp(model(text, V))


def test_integers_of_different_scales_are_not_joined() -> None:
    text = """g (float[1, 4] x) => (float[1, 8] y) {
        q = QuantizeLinear(x, t, m) p = QuantizeLinear(x, s, m) c = Concat<axis = 1>(q, p) y = DequantizeLinear(c, t, m)}"""
    with pytest.raises(UnsupportedOperator, match="scales"):
        build_vjp(model(text, V))


@pytest.mark.parametrize("opset", [13, 19, 21])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_per_channel_weights_of_any_width_count_as_constants(dtype: type, opset: int) -> None:
    if np.dtype(dtype).itemsize > 1 and opset < 21:
        pytest.skip("16-bit levels came with opset 21")
    w: Array = np.random.default_rng(0).integers(1, 100, (3, 4)).astype(dtype)
    constants = {"w": w, "ws": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "wz": np.full(4, 5, dtype)}
    text = "g (float[2, 3] x) => (float[2, 4] y) {d = DequantizeLinear<axis = 1>(w, ws, wz) y = MatMul(x, d)}"
    s = np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)
    expected = s @ ((w.astype(np.float32) - 5) * constants["ws"]).T
    np.testing.assert_allclose(
        gradient(model(text, constants, opset), np.ones((2, 3), np.float32), s), expected, rtol=1e-5
    )


# --------------------------------------------------------------------------- integer operators, one by one


DEQUANTISED = W.astype(np.float32) * np.float32(0.01)
Q = "q = QuantizeLinear(x, t, m)"
KERNELS = {
    "QLinearMatMul": (f"{Q} r = QLinearMatMul(q, t, m, w, ws, wz, s, m) y = DequantizeLinear(r, s, m)", [2, 3], False),
    "QGemm": (f"{Q} y = com.microsoft.QGemm(q, t, m, w, ws, wz)", [2, 3], True),
    "MatMulIntegerToFloat": (f"{Q} y = com.microsoft.MatMulIntegerToFloat(q, w, t, ws, m, wz)", [2, 3], True),
    "DynamicQuantizeMatMul": ("y = com.microsoft.DynamicQuantizeMatMul(x, w, ws, wz)", [2, 3], True),
    "MatMulInteger": (
        "q, a, b = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, b, wz) f = Cast<to = 1>(i) k = Mul(a, ws) y = Mul(f, k)",
        [2, 3],
        False,
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_product_of_integers_has_the_gradient_of_the_float_product(name: str) -> None:
    body, shape, microsoft = KERNELS[name]
    made = model(f"g (float[{shape[0]}, {shape[1]}] x) => (float[2, 4] y) {{{body}}}", V, microsoft=microsoft)
    x = np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)
    s = np.random.default_rng(6).standard_normal((2, 4)).astype(np.float32)
    explained = build_vjp(made, ["x"], ["y"])
    got = run(explained, {"x": x, "y_cotangent": s})
    np.testing.assert_array_equal(got["y"], run(made, {"x": x})["y"])
    np.testing.assert_allclose(got["x_gradient"], s @ DEQUANTISED.T, rtol=1e-5, atol=1e-6)


ELEMENTWISE: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "QLinearAdd": ("QLinearAdd(q, t, m, q, t, m, s, m)", lambda x: 2 * np.ones_like(x)),
    "QLinearMul": ("QLinearMul(q, t, m, q, t, m, s, m)", lambda x: 2 * x),
    "QLinearSigmoid": ("QLinearSigmoid(q, t, m, t, m)", lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
    "QLinearLeakyRelu": ("QLinearLeakyRelu<alpha = 0.5>(q, t, m, t, m)", lambda x: np.where(x > 0, 1, 0.5)),
    "QLinearConcat": ("QLinearConcat<axis = 0>(t, m, q, t, m)", lambda x: np.ones_like(x)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_elementwise_integer_operator_has_the_gradient_of_its_float_twin(name: str) -> None:
    body, derivative = ELEMENTWISE[name]
    back = "s" if name in ("QLinearAdd", "QLinearMul") else "t"
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{{Q} r = com.microsoft.{body} y = DequantizeLinear(r, {back}, m)}}"
    made = model(text, V, microsoft=True)
    x = np.array([[-1.0, -0.5, 0.3], [0.7, 1.1, 1.5]], np.float32)
    got = run(build_vjp(made, ["x"], ["y"]), {"x": x, "y_cotangent": np.ones_like(x)})
    np.testing.assert_array_equal(got["y"], run(made, {"x": x})["y"])
    np.testing.assert_allclose(got["x_gradient"], derivative(x), atol=0.03)


def test_integers_read_before_they_are_scaled_are_refused_by_name() -> None:
    text = """g (float[2, 3] x) => (float[2, 4] y) {q, a, b = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, b, wz)
        f = Cast<to = 1>(i) y = Relu(f)}"""
    with pytest.raises(UnsupportedOperator, match="MatMulInteger"):
        build_vjp(model(text, V))


def test_the_integer_type_of_a_zero_point_left_out_is_uint8() -> None:
    pair = model("g (float[3] x) => (float[3] y) {q = QuantizeLinear(x, s) y = DequantizeLinear(q, s)}", V)
    np.testing.assert_array_equal(gradient(pair, np.array([-1, 1, 99], np.float32), np.ones(3, np.float32)), [0, 1, 0])


@pytest.mark.parametrize("form", ["qdq-u8", "qoperator"])
def test_patterns_are_fitted_to_what_the_integers_mean(files: dict[str, Path], form: str) -> None:
    x = pictures(16, seed=5)
    whole, small = (fit_patterns(str(p), x, threads=1) for p in (MODEL, files[form]))
    assert len(whole.weights) == len(small.weights) > 5
    for w, q in zip(whole.weights, small.weights):
        a, b = (p.pattern(v.node, "linear").ravel() for p, v in ((whole, w), (small, q)))
        assert np.corrcoef(a, b)[0, 1] > 0.8


@pytest.mark.parametrize("opset", [13, 19, 21])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_float64_backend_dequantises_as_the_runtime_does(opset: int, axis: int) -> None:
    text = f"g (float[N,3] x) => (float[N,4] y) {{d = DequantizeLinear<axis = {axis}>(w, s, z) y = MatMul(x, d)}}"
    count, rng = (3, 4)[axis], np.random.default_rng(0)
    scales = rng.uniform(0.01, 0.1, count).astype(np.float32)
    made = model(text, {"w": W, "s": scales, "z": rng.integers(-5, 5, count).astype(np.int8)}, opset)
    x = rng.standard_normal((2, 3)).astype(np.float32)
    exact = Explainer(made, "gradient", backend="reference")(x, target=1)
    np.testing.assert_allclose(exact.outputs["y"], run(made, {"x": x}, optimised=False)["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(exact.relevance["x"], Explainer(made, "gradient")(x, target=1).relevance["x"], rtol=1e-5)


def test_tables_and_weights_of_four_bits_are_read_at_an_opset_that_knows_none() -> None:
    """As ONNX Runtime's quantiser writes them at opset 17: all pairs in its own domain, none with a shape that ONNX infers."""
    rng = np.random.default_rng(0)
    table, weight = rng.integers(0, 256, (5, 4)).astype(np.uint8), rng.integers(-8, 8, (4, 3)).astype(np.int8)
    held = [helper.make_tensor("w", onnx.TensorProto.INT4, weight.shape, weight.ravel().tolist())]
    held += [numpy_helper.from_array(table, "t"), numpy_helper.from_array(np.uint8(100), "tz")]
    held += [helper.make_tensor("wz", onnx.TensorProto.INT4, (), [1])]
    held += [numpy_helper.from_array(np.float32(s), n) for n, s in (("ts", 0.05), ("ws", 0.2))]
    own = {"domain": "com.microsoft"}
    nodes = [
        helper.make_node("DequantizeLinear", ["t", "ts", "tz"], ["rows"], **own),
        helper.make_node("Gather", ["rows", "ids"], ["e"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["v"], **own),
        helper.make_node("MatMul", ["e", "v"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["N", 2])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 2, 3])
    graph = helper.make_graph(nodes, "words", [ids], [y], held)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    picked = np.array([[4, 0], [2, 3]])
    e = Explainer(model, "gradient")({"ids": picked}, target=4)
    rows, columns = 0.05 * (table.astype(float) - 100), 0.2 * (weight.astype(float) - 1)
    assert np.allclose(e.outputs["y"], rows[picked] @ columns, atol=1e-5)
    assert np.allclose(e.relevance["e"][:, 1], columns[:, 1], atol=1e-6)
    assert not e.relevance["e"][:, 0].any()
