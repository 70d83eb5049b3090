"""Weights re-initialised layer by layer: which, in what order, and what stays."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnx_explain import InputError, ModelError
from onnx_explain.metrics import method_maps, model_sensitivity, randomised_models, weight_layers

HERE = Path(__file__).parent
VGGISH = HERE.parent / "golden" / "vggish.onnx"
BNNET = HERE.parent / "golden" / "bnnet.onnx"
RNG = np.random.default_rng(0)


def made(text: str, arrays: dict[str, np.ndarray], opset: int = 17) -> onnx.ModelProto:
    """A model in ONNX's text form with initialisers."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "local" : 1]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    onnx.checker.check_model(model)
    return model


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    return (RNG.normal(size=shape) * std + mean).astype(np.float32)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def changed(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    a, b = weights(before), weights(after)
    assert a.keys() == b.keys()
    return {n for n in a if not np.array_equal(a[n], b[n])}


MLP = """g (float[N, 8] x) => (float[N, 3] y) {
  a = Gemm(x, w1, b1)
  h = Relu(a)
  m = MatMul(h, w2)
  y = Add(b2, m)
}"""


def mlp() -> onnx.ModelProto:
    arrays = {
        "w1": normal(8, 16, std=0.3),
        "b1": normal(16, mean=2.0),
        "w2": normal(16, 3),
        "b2": np.zeros(3, np.float32),
    }
    return made(MLP, arrays)


def test_layers_go_from_the_output_down_each_with_its_bias() -> None:
    model = mlp()
    assert weight_layers(model) == ["m", "a"]
    steps = list(randomised_models(model))
    assert [s.layers for s in steps] == [("m",), ("m", "a")]
    # a bias of zeros has no spread to keep
    assert changed(model, steps[0].model) == {"w2"}
    assert changed(model, steps[1].model) == {"w1", "b1", "w2"}


def test_independent_randomisation_restores_the_other_layers() -> None:
    model = mlp()
    steps = list(randomised_models(model, order="independent"))
    assert [changed(model, s.model) for s in steps] == [{"w2"}, {"w1", "b1"}]
    assert [s.layers for s in steps] == [("m",), ("a",)]


def test_from_the_bottom_up_is_the_other_way_round() -> None:
    model = mlp()
    steps = list(randomised_models(model, order="bottom-up"))
    assert [s.layers for s in steps] == [("a",), ("a", "m")]
    assert [changed(model, s.model) for s in steps] == [{"w1", "b1"}, {"w1", "b1", "w2"}]


def test_a_layer_gets_the_same_values_in_every_order_and_others_with_another_seed() -> None:
    model = mlp()
    by_order = [
        weights([s for s in randomised_models(model, order=order) if "a" in s.layers][-1].model)["w1"]
        for order in ("cascading", "bottom-up", "independent")
    ]
    np.testing.assert_array_equal(by_order[0], by_order[1])
    np.testing.assert_array_equal(by_order[0], by_order[2])
    other = weights(list(randomised_models(model, seed=1))[-1].model)["w1"]
    assert not np.array_equal(by_order[0], other)


def test_shape_type_and_scale_of_every_weight_are_kept() -> None:
    shape = (400, 50)
    arrays = {"w1": normal(*shape, mean=0.7, std=0.02), "b1": np.zeros(50, np.float32)}
    for dtype in (np.float32, np.float64, np.float16):
        name = {np.float32: "float", np.float64: "double", np.float16: "float16"}[dtype]
        model = made(
            f"g ({name}[N, 400] x) => ({name}[N, 50] y) {{ y = Gemm(x, w1, b1) }}",
            {n: a.astype(dtype) for n, a in arrays.items()},
        )
        new = weights(next(iter(randomised_models(model))).model)["w1"]
        assert new.dtype == dtype
        assert new.shape == shape
        assert new.mean() == pytest.approx(0.7, abs=1e-3)
        assert new.astype(np.float64).std() == pytest.approx(0.02, rel=0.05)


def test_the_given_model_is_never_changed_nor_the_models_given_out() -> None:
    model = mlp()
    before = model.SerializeToString(deterministic=True)
    first, second = randomised_models(model)
    kept = first.model.SerializeToString(deterministic=True)
    next(iter(randomised_models(first.model)))
    del second
    gc.collect()
    assert model.SerializeToString(deterministic=True) == before
    assert first.model.SerializeToString(deterministic=True) == kept


CONSTANT = """g (float[N, 4] x) => (float[N, 2] y) {
  w = Constant <value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
  b = Constant <value_floats = [1.0, 5.0]> ()
  t = Identity(w)
  y = Gemm(x, t, b)
}"""
QUANTISED = """g (float[N, 4] x) => (float[N, 4] y) {
  w = DequantizeLinear(q, s, z)
  t = Transpose(w)
  y = MatMul(x, t)
}"""
BRANCHES = """g (float[N, 4] x, bool c) => (float[N, 4] y) {
  y = If (c) <
    then_branch = t () => (float[N, 4] p) { p = MatMul(x, w) },
    else_branch = e () => (float[N, 4] n) { n = MatMul(x, v) }
  >
}"""
TIED = """g (float[N, 4] x) => (float[N, 4] y) {
  h = MatMul(x, w)
  y = MatMul(h, w)
}"""
NOT_WEIGHTS = """g (float[N, 4] x, int64[N] i) => (float[N, 4] y, int64[N] j) {
  j = Gather(table, i)
  h = MatMul(x, w)
  k = Mul(h, scale)
  y = Add(k, shift)
}"""


def test_constant_nodes_are_weights_like_initialisers() -> None:
    model = made(CONSTANT, {})
    (step,) = randomised_models(model)
    session = ort.InferenceSession(step.model.SerializeToString(), providers=["CPUExecutionProvider"])
    zero, one = (session.run(None, {"x": np.full((1, 4), v, np.float32)})[0] for v in (0, 1))
    assert not np.allclose(zero, [[1, 5]])
    assert not np.allclose(one - zero, [[16, 20]])


def test_whole_numbers_stay_whole_and_in_their_range() -> None:
    q = RNG.integers(-90, 91, (4, 4)).astype(np.int8)
    model = made(QUANTISED, {"q": q, "s": np.float32(0.1), "z": np.int8(0)}, opset=13)
    (step,) = randomised_models(model)
    new = weights(step.model)
    assert new["q"].dtype == np.int8
    assert q.min() <= new["q"].min() <= new["q"].max() <= q.max()
    assert changed(model, step.model) == {"q"}


def test_weights_within_branches_are_found() -> None:
    model = made(BRANCHES, {"w": normal(4, 4), "v": normal(4, 4)})
    assert len(weight_layers(model)) == 2
    assert changed(model, list(randomised_models(model))[-1].model) == {"w", "v"}


def test_a_shared_weight_changes_for_all_at_once_and_to_the_same_values() -> None:
    model = made(TIED, {"w": normal(4, 4)})
    steps = list(randomised_models(model))
    assert len(steps) == 2
    np.testing.assert_array_equal(weights(steps[0].model)["w"], weights(steps[1].model)["w"])


def test_index_tables_scales_and_far_shifts_are_no_weights() -> None:
    arrays = {
        "table": np.arange(9),
        "w": normal(4, 4),
        "scale": normal(4),
        "shift": normal(4),
    }
    model = made(NOT_WEIGHTS, arrays)
    assert changed(model, list(randomised_models(model))[-1].model) == {"w"}


def test_statistics_of_a_normalisation_never_change_and_its_scale_only_when_asked() -> None:
    model = onnx.load(BNNET)
    of = {n.input[k]: n.op_type for n in model.graph.node if n.op_type == "BatchNormalization" for k in range(1, 5)}
    plain = changed(model, list(randomised_models(model))[-1].model)
    asked = changed(model, list(randomised_models(model, normalisation=True))[-1].model)
    assert not plain & of.keys()
    statistics = {n.input[k] for n in model.graph.node if n.op_type == "BatchNormalization" for k in (3, 4)}
    assert asked & of.keys()
    assert not asked & statistics


def test_functions_are_inlined_first() -> None:
    text = """g (float[N, 4] x) => (float[N, 4] y) { y = local.dense(x, w) }
    <domain: "local", opset_import: ["" : 17]> dense (a, k) => (r) { r = MatMul(a, k) }"""
    model = made(text, {"w": normal(4, 4)})
    (step,) = randomised_models(model)
    assert changed_names(model, step.model) == {"w"}


def changed_names(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    a, b = weights(before), weights(after)
    return {n for n in a if n in b and not np.array_equal(a[n], b[n])}


def test_an_unsorted_file_is_read_in_order_of_computation() -> None:
    model = mlp()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert weight_layers(model) == ["m", "a"]


def test_a_graph_with_a_cycle_is_refused() -> None:
    nodes = [oh.make_node("Identity", ["b"], ["a"]), oh.make_node("Identity", ["a"], ["b"])]
    looped = made("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": normal(4, 4)})
    looped.graph.node.extend([*nodes, oh.make_node("MatMul", ["x", "a"], ["z"])])
    with pytest.raises(ModelError, match="cycle"):
        weight_layers(looped)


def test_narrow_floats_keep_their_type() -> None:
    model = made("g (bfloat16[N, 4] x) => (bfloat16[N, 30] y) { y = MatMul(x, w) }", {"w": normal(4, 30)})
    values = numpy_helper.to_array(model.graph.initializer[0]).ravel().tolist()
    model.graph.initializer[0].CopyFrom(oh.make_tensor("w", TensorProto.BFLOAT16, [4, 30], values))
    (step,) = randomised_models(model)
    new = step.model.graph.initializer[0]
    assert new.data_type == TensorProto.BFLOAT16
    drawn = np.asarray(numpy_helper.to_array(new), np.float32)
    assert drawn.std() == pytest.approx(np.std(values), rel=0.3)
    assert not np.allclose(drawn.ravel(), values)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="model.data", size_threshold=0)
    steps = list(randomised_models(path))
    assert changed(mlp_like(steps[0].model), steps[-1].model) == {"w1", "b1"}
    ort.InferenceSession(steps[-1].model.SerializeToString(), providers=["CPUExecutionProvider"])


def mlp_like(model: onnx.ModelProto) -> onnx.ModelProto:
    return model


def test_a_model_without_weights_is_refused() -> None:
    bare = made("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }", {})
    with pytest.raises(ModelError, match="no layer"):
        next(iter(randomised_models(bare)))
    with pytest.raises(ModelError):
        weight_layers("no-such-file.onnx")
    with pytest.raises(InputError, match="order"):
        next(iter(randomised_models(mlp(), order="top-down")))  # type: ignore[arg-type]
    broken = made("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }", {"w": normal(4, 4) * np.nan})
    with pytest.raises(ModelError, match="NaN"):
        next(iter(randomised_models(broken)))


X = np.random.default_rng(4).normal(size=(2, 3, 32, 32)).astype(np.float32)


def test_the_gradient_notices_the_destruction_of_the_model_and_an_edge_detector_does_not() -> None:
    gradient = model_sensitivity(method_maps("gradient", threads=1), VGGISH, x=X, targets=[0, 3], measure="spearman")
    assert gradient.layers == tuple(weight_layers(VGGISH))
    assert gradient.similarity.shape == (2, len(gradient.layers))
    assert (np.abs(gradient.similarity[:, -1]) < 0.2).all()
    edges = model_sensitivity(lambda model, x, targets: x.sum(1), VGGISH, x=X, targets=0)
    np.testing.assert_allclose(edges.similarity, 1.0)
    np.testing.assert_allclose(edges.mean, 1.0)


def test_the_explanations_made_are_those_of_the_definition() -> None:
    asked: list[int] = []

    def explain(model: onnx.ModelProto, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return x.sum(1)

    curve = model_sensitivity(explain, VGGISH, x=X, targets=0, batch_size=1, measure="ssim", order="independent")
    assert sum(asked) == 2 * (len(curve.layers) + 1)


def test_a_map_that_becomes_one_value_is_missing() -> None:
    states = iter([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    curve = model_sensitivity(lambda m, x, t: x.sum(1) * next(states), VGGISH, x=X, targets=0)
    assert np.isnan(curve.similarity[:, 0]).all()
    assert np.isnan(curve.mean).all()
    np.testing.assert_allclose(curve.similarity[:, 1:], 1.0)
