"""LSTM, GRU and RNN: what the expansion computes beside ONNX Runtime's kernels, its relevance beside Arras' rule, refusals.

Gradients beside finite differences are the table's affair (`cases.py`, `test_cases.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
import recurrences
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from oracles import evaluate

from onnx_explain import Explainer, Selector, lrp_composite
from onnx_explain.errors import ExplainError, UnsupportedOperator
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.operators.roles import Linear
from onnx_explain.rules import lrp

Array = np.ndarray[Any, Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS = {"LSTM": 3, "GRU": 2, "RNN": 1}
NAMES = ("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus")  # fmt: skip
STEPS, SAMPLES, FEATURES, HIDDEN = 4, 3, 2, 3
FLOAT32 = 1e-5  # of the largest value: a chain of several float32 sums


def draw(seed: int, *shape: int) -> Array:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.6).astype(np.float32)


def recurrence(
    kind: str,
    direction: str = "forward",
    *,
    operands: str = "b",
    lengths: tuple[int, ...] = (4, 2, 3),
    fed: str = "",
    opset: int = 17,
    steps: int | str = STEPS,
    constants: dict[str, Array] | None = None,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A layer [S, N, I] with all its outputs. `operands`: b(ias), l(engths), h, c; `fed`: those of them that are inputs."""
    d, layout = 2 if direction == "bidirectional" else 1, attributes.get("layout", 0)
    state = (SAMPLES, d, HIDDEN) if layout else (d, SAMPLES, HIDDEN)
    x = draw(0, SAMPLES, STEPS, FEATURES) if layout else draw(0, STEPS, SAMPLES, FEATURES)
    made = {
        "w": draw(1, d, GATES[kind] * HIDDEN, FEATURES),
        "r": draw(2, d, GATES[kind] * HIDDEN, HIDDEN),
        "b": draw(3, d, 2 * GATES[kind] * HIDDEN),
        "l": np.asarray(lengths, np.int32),
        "h": draw(4, *state),
        "c": draw(5, *state),
        **(constants or {}),
    }
    names = ["x", "w", "r", *(k if k in operands else "" for k in ("blhcp" if kind == "LSTM" else "blh"))]
    outputs = ["y", "yh", "yc"] if kind == "LSTM" else ["y", "yh"]
    node = helper.make_node(kind, names, outputs, name="layer", hidden_size=HIDDEN, direction=direction, **attributes)
    info = helper.make_tensor_value_info
    shape = list(x.shape)
    shape[layout] = steps
    inputs = [
        info("x", 1, shape),
        *(info(k, helper.np_dtype_to_tensor_dtype(made[k].dtype), made[k].shape) for k in fed),
    ]
    ranks = {"y": 4, "yh": 3, "yc": 3}
    graph = helper.make_graph(
        [node], "g", inputs, [info(o, 1, [None] * ranks[o]) for o in outputs],
        [numpy_helper.from_array(made[k], k) for k in dict.fromkeys(names[1:]) if k and k not in fed],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model, {"x": x, **{k: made[k] for k in fed}}


def run(model: onnx.ModelProto | bytes, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, feeds)]


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    canonical = canonicalize(ir.from_proto(model))
    assert not {"LSTM", "GRU", "RNN"} & {n.op_type for n in canonical.graph}
    return ir.to_proto(canonical)


def assert_close(ours: list[Array], theirs: list[Array], tolerance: float = FLOAT32) -> None:
    assert [a.shape for a in ours] == [a.shape for a in theirs]
    for a, b in zip(ours, theirs):
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0)


# --------------------------------------------------------------------------- forward


@st.composite
def layers(draws: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, Array]]:
    kind, direction = (
        draws(st.sampled_from(sorted(GATES))),
        draws(st.sampled_from(["forward", "reverse", "bidirectional"])),
    )
    operands = "".join(k for k in "blhc" if draws(st.booleans()))
    said: dict[str, Any] = {}
    if draws(st.booleans()):
        said["clip"] = draws(st.sampled_from([0.125, 0.5, 2.0]))
    if kind != "RNN" and draws(st.booleans()):
        said["input_forget" if kind == "LSTM" else "linear_before_reset"] = 1
    if draws(st.booleans()):
        count = FUNCTIONS[kind] * (2 if direction == "bidirectional" else 1)
        said["activations"] = draws(st.lists(st.sampled_from(NAMES), min_size=count, max_size=count))
        said["activation_alpha"] = [0.3 + 0.1 * k for k in range(count)]
        said["activation_beta"] = [0.6 - 0.05 * k for k in range(count)]
    lengths = tuple(draws(st.lists(st.integers(0, STEPS), min_size=SAMPLES, max_size=SAMPLES)))
    fed = "l" if "l" in operands and draws(st.booleans()) else ""
    return recurrence(kind, direction, operands=operands, lengths=lengths, fed=fed, opset=draws(st.sampled_from([7, 14, 22])), **said)  # fmt: skip


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(layers())
def test_the_expansion_computes_what_the_kernel_computes(layer: tuple[onnx.ModelProto, dict[str, Array]]) -> None:
    model, feeds = layer
    assert_close(run(expanded(model), feeds), run(model, feeds))


@pytest.mark.parametrize("name", NAMES)
def test_an_activation_has_the_parameters_that_the_kernel_gives_it(name: str) -> None:
    model, feeds = recurrence("RNN", activations=[name])
    assert_close(run(expanded(model), feeds), run(model, feeds))


@pytest.mark.parametrize("kind", GATES)
def test_the_oracle_computes_what_the_kernel_computes(kind: str) -> None:
    model, feeds = recurrence(kind, "bidirectional", operands="blhc")
    assert_close(list(evaluate(model, feeds).values()), run(model, feeds))


@pytest.mark.parametrize("kind", GATES)
def test_layout_1_is_layout_0_with_the_batch_first(kind: str) -> None:
    # ONNX Runtime's kernels have no layout 1
    first, feeds = recurrence(kind, "bidirectional", operands="blhc", layout=1)
    assert_close(run(expanded(first), feeds), list(evaluate(first, feeds).values()))


def test_states_and_lengths_that_are_plain_leave_no_mask() -> None:
    zeros = {"h": np.zeros((1, SAMPLES, HIDDEN), np.float32), "c": np.zeros((1, SAMPLES, HIDDEN), np.float32)}
    plain, _ = recurrence("LSTM", operands="b")
    told, _ = recurrence("LSTM", operands="blhc", lengths=(STEPS,) * SAMPLES, constants=zeros)
    assert len(expanded(told).graph.node) == len(expanded(plain).graph.node)


def test_lengths_that_the_batch_alone_makes_leave_no_mask() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4,2] x) => (float[1,N,3] yh)
    <int64[1] one = {1}, int32 four = {4}> {
        t = Transpose<perm=[1,0,2]>(x)
        n = Shape<start=0,end=1>(x)
        l = Expand(four, n)
        y, yh = GRU<hidden_size=3>(t, w, r, "", l)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        [numpy_helper.from_array(draw(1, 1, 9, 2), "w"), numpy_helper.from_array(draw(2, 1, 9, 3), "r")]
    )
    assert "Where" not in {n.op_type for n in expanded(model).graph.node}


def test_nothing_is_computed_that_nothing_reads() -> None:
    model, _ = recurrence("LSTM", "bidirectional")
    del model.graph.output[1:]
    graph = expanded(model).graph
    read = {i for n in graph.node for i in n.input} | {o.name for o in graph.output}
    steps = [n for n in graph.node if n.name.split("/")[2:3] == ["0"] or n.name.split("/")[2:3] == [str(STEPS - 1)]]
    assert len(steps) > 2 * 2 * 8
    assert [n.name for n in steps if not read & set(n.output)] == []


# --------------------------------------------------------------------------- relevance


def score(model: onnx.ModelProto, output: str = "yh") -> onnx.ModelProto:
    """The layer with one output [1, N, H] turned to [N, H]."""
    model.graph.node.append(helper.make_node("Squeeze", [output, "zero"], ["out"], name="turned"))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), "zero"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, HIDDEN]))
    return model


@pytest.mark.parametrize("operands", ["", "b"])
def test_an_lstm_shares_relevance_as_arras_rule_says(operands: str) -> None:
    model, feeds = recurrence("LSTM", operands=operands)
    found = Explainer(score(model), "lrp-zero", backend="reference")(feeds, target=1 * HIDDEN + 2)
    w, r, b = (draw(k, *s)[0].astype(np.float64) for k, s in ((1, (1, 12, 2)), (2, (1, 12, 3)), (3, (1, 24))))
    b = b if operands else np.zeros_like(b)
    seed = np.zeros(HIDDEN)
    seed[2] = found.target.score[0]
    x = feeds["x"].astype(np.float64)
    expected, absorbed = recurrences.lstm_relevance(x[:, 1], w, r, b, seed)
    # two quotients, of an Add and of a MatMul, whose product is the rule's one
    assert np.abs(found.relevance["x"][:, 1] - expected).max() <= 1e-8 * np.abs(expected).max()
    assert not found.relevance["x"][:, [0, 2]].any()
    assert abs(found.absorbed.sum() - absorbed) <= 1e-8
    assert found.conservation.max() <= 1e-10


METHODS = ("lrp-zero", "lrp-epsilon", "attn-lrp", "cp-lrp", "rap")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", GATES)
def test_without_biases_all_relevance_arrives(kind: str, method: str) -> None:
    model, feeds = recurrence(kind, "bidirectional", operands="")
    found = Explainer(model, method, backend="reference", output="y")(feeds, target=5)
    arrived, epsilon = found.relevance["x"].sum(), 1e-3  # ε = 1e-6 beside sums of 1e-2 and more, over several steps
    assert abs(arrived - found.target.score.sum()) <= (1e-8 if method in ("lrp-zero", "rap") else epsilon)
    assert found.conservation.max() <= 1e-8


@pytest.mark.parametrize("kind", GATES)
def test_what_does_not_arrive_is_accounted_for(kind: str) -> None:
    model, feeds = recurrence(kind, "bidirectional", operands="blhc")
    found = Explainer(model, "lrp-epsilon", backend="reference", output="y")(feeds, target=5)
    assert np.abs(found.absorbed).max() > 1e-3
    assert found.conservation.max() <= 1e-8


def test_a_gate_takes_nothing_even_of_a_constant_signal() -> None:
    model, feeds = recurrence("LSTM", operands="c", constants={"w": np.zeros((1, 12, 2), np.float32)})
    # no relevance reaches x through f ⊙ c₀, though f depends on h: it stays in c₀
    found = Explainer(score(model), "lrp-zero", backend="reference")(feeds, target=0)
    assert not found.relevance["x"].any()
    assert found.absorbed.sum() == pytest.approx(found.target.score[0])


def test_states_that_are_inputs_are_explained_too() -> None:
    model, feeds = recurrence("LSTM", operands="hc", fed="hc")
    found = Explainer(model, "lrp-zero", backend="reference", output="y")(feeds, target=5)
    assert set(found.relevance) == {"x", "h", "c"}
    total = sum(r.sum() for r in found.relevance.values())
    assert total == pytest.approx(found.target.score.sum(), rel=1e-8)


def test_a_selector_finds_the_layer_by_its_name() -> None:
    model, feeds = recurrence("GRU", "bidirectional")
    mine = lrp_composite(
        (Selector(role=Linear, kind="weighted", name="layer/reverse/.*"), lrp.gamma(0.5), "γ"),
        (Selector(role=Linear, kind="weighted"), lrp.epsilon(), "ε"),
    )
    rows = Explainer(model, mine).plan()[0]
    assert {r.rule for r in rows if r.op_type == "MatMul" and r.name.startswith("layer/reverse")} == {"γ"}
    assert {r.rule for r in rows if r.op_type == "MatMul" and r.name.startswith("layer/forward")} == {"ε"}
    assert np.isfinite(Explainer(model, mine)(feeds).relevance["x"]).all()


LAYERS = """t = Transpose<perm=[1,0,2]>(x)
    y1 = GRU<hidden_size=2,direction="bidirectional">(t, w, r, b)
    q = Transpose<perm=[0,2,1,3]>(y1)
    u = Reshape(q, flat)
    y2, h = GRU<hidden_size=2>(u, w2, r2, b2)
    v = Squeeze(h, zero)
    out = MatMul(v, f)"""
SHAPES = {"w": (2, 6, 2), "r": (2, 6, 2), "b": (2, 12), "w2": (1, 6, 4), "r2": (1, 6, 2), "b2": (1, 12), "f": (2, 3)}
CELL = """t = Transpose<perm=[1,0,2]>(x)
    z = MatMul(t, w)
    p = Add(z, b)
    i, j, k, l = Split<axis=0,num_outputs=4>(p)
    h1 = Tanh(i)
    n2 = MatMul(h1, r)
    s2 = Add(j, n2)
    h2 = Tanh(s2)
    v = Squeeze(h2, zero)
    out = MatMul(v, f)"""
PLAIN = {"w": (2, 3), "b": (3,), "r": (3, 3), "f": (3, 3)}


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize(("text", "shapes"), [(LAYERS, SHAPES), (CELL, PLAIN)], ids=["layers", "written out"])
def test_samples_stay_apart_where_the_axes_are_turned(
    text: str, shapes: dict[str, tuple[int, ...]], batch: str
) -> None:
    head = f"""<ir_version: 8, opset_import: ["" : 18]> g (float[{batch},4,2] x) => (float[{batch},3] out)"""
    model = filled(f"{head} <int64[1] zero = {{0}}, int64[3] flat = {{0, 0, -1}}> {{ {text} }}", shapes)
    x = draw(3, 3, 4, 2)
    found = Explainer(model, "lrp-epsilon", backend="reference")(x, target=[0, 1, 2])
    assert len(found.target.index) == 3
    assert np.abs(found.absorbed).min() > 1e-6
    assert found.conservation.max() <= 1e-8


# --------------------------------------------------------------------------- whole models


def tagger() -> onnx.ModelProto:
    """Token ids, an embedding, an LSTM, a dense layer on the last state."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (int64[N,5] ids) => (float[N,4] logits) <int64[1] zero = {0}> {
        e = Gather(table, ids)
        t = Transpose<perm=[1,0,2]>(e)
        y, h = LSTM<hidden_size=3>(t, w, r, b)
        last = Squeeze(h, zero)
        logits = Gemm(last, f, g)
    }"""
    shapes = {"table": (11, 2), "w": (1, 12, 2), "r": (1, 12, 3), "b": (1, 24), "f": (3, 4), "g": (4,)}
    return filled(text, shapes)


def filled(text: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(draw(7, *s), k) for k, s in shapes.items())
    return model


def signal() -> onnx.ModelProto:
    """A signal [N, 12], both directions, the mean of all states."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,12] x) => (float[N,2] score) <int64[1] two = {2}, int64[2] flat = {0, -1}> {
        u = Unsqueeze(x, two)
        t = Transpose<perm=[1,0,2]>(u)
        y = LSTM<hidden_size=3,direction="bidirectional">(t, w, r, b)
        n = Transpose<perm=[2,0,1,3]>(y)
        m = ReduceMean<axes=[1],keepdims=0>(n)
        v = Reshape(m, flat)
        score = MatMul(v, f)
    }"""
    return filled(text, {"w": (2, 12, 1), "r": (2, 12, 3), "b": (2, 24), "f": (6, 2)})


WHOLE = {
    "tokens": (tagger, np.random.default_rng(0).integers(0, 11, (3, 5))),
    "signal": (signal, draw(9, 3, 12)),
}


SINGLE = ("gradient", "lrp-epsilon", "rap")
PAIRS = [*(("tokens", m) for m in SINGLE), *(("signal", m) for m in (*SINGLE, "integrated-gradients"))]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_a_whole_model_is_explained_and_converted(name: str, method: str, tmp_path: Path) -> None:
    make, x = WHOLE[name]
    model = make()
    explainer = Explainer(model, method)
    found = explainer(x, target=1)
    relevance = next(iter(found.relevance.values()))
    assert relevance.shape[:2] == x.shape[:2]
    assert np.isfinite(relevance).all()
    assert relevance.any()
    if method in ("lrp-epsilon", "rap"):
        assert found.conservation.max() <= 1e-5
    path = tmp_path / "explained.onnx"
    explainer.convert(path)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    plain = run(model, {model.graph.input[0].name: x})[0]
    results = dict(zip([o.name for o in file.graph.output], run(file, {model.graph.input[0].name: x, "target": np.full(3, 1)})))  # fmt: skip
    assert_close([results[model.graph.output[0].name]], [plain])
    arrived = next(v for k, v in results.items() if k.endswith("_relevance"))
    assert_close([arrived], [relevance], 1e-4)


# --------------------------------------------------------------------------- refusals


def refusal(model: onnx.ModelProto, **said: Any) -> str:
    with pytest.raises(ExplainError) as caught:
        Explainer(model, "gradient", **said).build()
    assert isinstance(caught.value, UnsupportedOperator)
    return str(caught.value)


def test_peepholes_are_refused_by_name() -> None:
    model, _ = recurrence("LSTM", operands="bp", constants={"p": draw(8, 1, 3 * HIDDEN)})
    assert all(word in refusal(model) for word in ("layer", "LSTM", "peephole"))
    model, feeds = recurrence("LSTM", operands="bp", constants={"p": np.zeros((1, 3 * HIDDEN), np.float32)})
    assert_close(run(expanded(model), feeds), run(model, feeds))


def test_an_open_sequence_length_is_that_of_the_array() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,S,2] x) => (float[1,N,3] h) {
        t = Transpose<perm=[1,0,2]>(x)
        y, h = GRU<hidden_size=3>(t, w, r)
    }"""
    model = filled(text, {"w": (1, 9, 2), "r": (1, 9, 3)})
    x = draw(0, 2, 5, 2)
    explainer = Explainer(model, "gradient")
    assert explainer(x, target=0).relevance["x"].shape == x.shape
    assert Explainer(model, "gradient", input_shapes={"x": [1, 5, 2]}).build() is not None


def test_time_on_an_open_first_axis_is_that_of_the_array() -> None:
    model, feeds = recurrence("LSTM", steps="S")
    fixed, _ = recurrence("LSTM")
    explainer, plain = Explainer(model, "lrp-epsilon", output="yh"), Explainer(fixed, "lrp-epsilon", output="yh")
    assert_close([explainer(feeds, target=4).relevance["x"]], [plain(feeds, target=4).relevance["x"]])
    short = {"x": feeds["x"][:2]}
    assert explainer(short, target=4).relevance["x"].shape == short["x"].shape
    told = Explainer(model, "gradient", output="yh", input_shapes={"x": [4, 3, 2]})
    assert told.build().model.graph.inputs[0].shape == ir.Shape([4, 3, 2])


def test_without_a_length_it_is_refused_with_what_to_do() -> None:
    message = refusal(recurrence("LSTM", steps="S")[0])
    assert all(word in message for word in ("layer", "LSTM", "sequence length", "--input-shape"))


def test_too_many_steps_are_refused() -> None:
    model, _ = recurrence("RNN", steps=1_000_000)
    assert "1000000 time steps" in refusal(model)


@pytest.mark.parametrize(
    "said",
    [
        {"activations": ["Swish"]},
        {"activations": ["Tanh", "Tanh"]},
        {"direction": "sideways"},
    ],
    ids=str,
)
def test_what_the_specification_does_not_know_is_refused(said: dict[str, Any]) -> None:
    model, _ = recurrence("RNN", **said)
    assert "layer" in refusal(model)


def test_off_the_way_it_is_left_alone() -> None:
    model, feeds = recurrence("LSTM", operands="bp", constants={"p": draw(8, 1, 3 * HIDDEN)})
    model.graph.node.append(helper.make_node("Tanh", ["x"], ["direct"]))
    model.graph.output.insert(0, helper.make_tensor_value_info("direct", 1, [None] * 3))
    found = Explainer(model, "gradient")(feeds, target=1)
    assert found.relevance["x"].any()
    assert set(found.outputs) == {"direct", "y", "yh", "yc"}


CELL = """<ir_version: 8, opset_import: ["" : 17]> cell (float[N, 4] x) => (float[N, 3] y) {
    a = MatMul(x, u) z = Sigmoid(a) o = Sub(one, z) b = MatMul(x, v) n = Tanh(b) kept = Mul(n, o) h = MatMul(x, w)
    new = Mul(z, h) y = Add(kept, new) }"""


@pytest.mark.parametrize("method", ["lrp-zero", "lrp-epsilon-plus", "cp-lrp"])
def test_the_gates_of_a_cell_that_an_exporter_wrote_out_weigh_where_it_is_asked_for(method: str) -> None:
    cell = onnx.parser.parse_model(CELL)
    held = {"u": draw(1, 4, 3), "v": draw(2, 4, 3), "w": draw(3, 4, 3), "one": np.ones(1, np.float32)}
    cell.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in held.items())
    options = {} if method == "cp-lrp" else {"products": "weighed"}
    x = draw(4, 5, 4)
    found = Explainer(cell, method, backend="reference", keep=["a", "b", "h", "y"], **options)(x, target=1).kept
    a, b, h = (x.astype(np.float64) @ held[k] for k in "uvw")
    z = 1 / (1 + np.exp(-a))
    assert not found["a"].any()
    share = found["y"] / (np.tanh(b) * (1 - z) + z * h)  # 1 at the target, 0 elsewhere
    np.testing.assert_allclose(found["b"], np.tanh(b) * (1 - z) * share, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["h"], z * h * share, rtol=1e-4, atol=1e-6)
