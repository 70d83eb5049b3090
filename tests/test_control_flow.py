"""If, Loop and Scan: written out where they do not depend on the data, refused by name where they do and relevance must pass.

What ONNX Runtime computes of the file as it is judges the outputs, finite differences the gradients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_explain import Explainer
from onnx_explain.errors import ExplainError
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.spell import spell_out

Array = np.ndarray[Any, Any]
FLOW = {"If", "Loop", "Scan"}
FLOAT32 = 1e-5  # of the largest value: a few float32 roundings


def draw(*shape: int) -> Array:
    return np.random.default_rng([5, *shape]).standard_normal(shape).astype(np.float32)


def model(signature: str, body: str, *, opset: int = 18, functions: str = "", **constants: Array) -> onnx.ModelProto:
    """A model in ONNX's text syntax; `constants` are its initialisers."""
    imports = f'"" : {opset}' + (', "local" : 1' if functions else "")
    proto = parser.parse_model(
        f"<ir_version: 8, opset_import: [{imports}]> g ({signature.split('=>')[0].strip()}) => "
        f"({signature.split('=>')[1].strip()}) {{ {body} }} {functions}"
    )
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return proto


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds))))


def straight(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The canonical model, in which no control flow is left."""
    canonical = canonicalize(ir.from_proto(proto))
    assert not FLOW & {n.op_type for n in canonical.graph}
    plain = ir.to_proto(spell_out(canonical))
    onnx.checker.check_model(plain, full_check=True)
    return plain


def check(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> None:
    """The outputs stay, and the gradient of one element is that of finite differences."""
    theirs, ours = run(proto, feeds), run(straight(proto), feeds)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        assert np.abs(ours[name] - expected).max() <= FLOAT32 * max(np.abs(expected).max(), 1.0)
    found = Explainer(proto, "gradient", backend="reference", logits=False)(feeds, target=0)
    for name, r in found.relevance.items():
        direction = np.sign(draw(*feeds[name].shape))
        step = 1e-3
        moved = [run(proto, {**feeds, name: feeds[name] + s * step * direction})[found.target.tensor] for s in (1, -1)]
        flat = [m.reshape(len(found.target.index), -1)[:, 0].astype(np.float64).sum() for m in moved]
        # float32 outputs, differences of 1e-3: three digits
        assert (r * direction).sum() == pytest.approx((flat[0] - flat[1]) / (2 * step), rel=5e-3, abs=5e-3)


X = {"x": draw(2, 3)}
BRANCHES = "then_branch = a () => (float[N,3] p) { p = Tanh(x) }, else_branch = b () => (float[N,3] q) { q = Exp(x) }"
IFS: dict[str, Callable[[], onnx.ModelProto]] = {
    "an initialiser decides": lambda: model("float[N,3] x => float[N,3] y", f"y = If(c) <{BRANCHES}>", c=np.array(True)),
    "a Constant decides": lambda: model(
        "float[N,3] x => float[N,3] y", f"c = Constant<value = bool[1] {{0}}>()\n y = If(c) <{BRANCHES}>"
    ),
    "the rank decides": lambda: model(
        "float[N,3] x => float[N,3] y",
        f"s = Shape(x)\n r = Size(s)\n two = Constant<value_int=2>()\n c = Equal(r, two)\n y = If(c) <{BRANCHES}>",
    ),
    "a squeeze as TorchScript writes it": lambda: model(
        "float[N,1,3] x => float[N,3] y",
        "s = Shape(x)\n i = Constant<value_int=1>()\n d = Gather<axis=0>(s, i)\n one = Constant<value_int=1>()\n c = Equal(d, one)\n"
        "z = If(c) <then_branch = a () => (float[N,3] p) { axes = Constant<value_ints=[1]>()\n p = Squeeze(x, axes) },"
        " else_branch = b () => (float[N,1,3] q) { q = Identity(x) }>\n y = Tanh(z)",
    ),
    "inside another, with a name twice": lambda: model(
        "float[N,3] x => float[N,3] y",
        "t = Sigmoid(x)\n y = If(c) <then_branch = a () => (float[N,3] p) {"
        " u = Mul(t, x)\n p = If(d) <then_branch = aa () => (float[N,3] v) { w = Tanh(u)\n v = Mul(w, t) },"
        " else_branch = ab () => (float[N,3] v) { v = Neg(u) }> },"
        " else_branch = b () => (float[N,3] q) { u = Abs(x)\n q = Exp(u) }>",
        c=np.array(True), d=np.array(True),
    ),
    "several results, one passed on as it is": lambda: model(
        "float[N,3] x => float[N,3] y, float[N,3] z",
        "t = Tanh(x)\n y, z = If(c) <then_branch = a () => (float[N,3] p, float[N,3] o) { p = Exp(t)\n o = Identity(t) },"
        " else_branch = b () => (float[N,3] q, float[N,3] r) { q = Neg(t)\n r = Exp(t) }>",
        c=np.array([True]),
    ),
    "a function in the branch": lambda: model(
        "float[N,3] x => float[N,3] y",
        "y = If(c) <then_branch = a () => (float[N,3] p) { p = local.Gate(x) }, else_branch = b () => (float[N,3] q) { q = Exp(x) }>",
        functions='<domain: "local", opset_import: ["" : 18]> Gate (v) => (o) { s = Sigmoid(v)\n o = Mul(v, s) }',
        c=np.array(True),
    ),
    "operators of opset 11 in the branch": lambda: model(
        "float[2,3] x => float[2,3] y",
        "y = If(c) <then_branch = a () => (float[2,3] p) { t = Unsqueeze<axes=[0]>(x)\n s = Softmax<axis=2>(t)\n p = Squeeze<axes=[0]>(s) },"
        " else_branch = b () => (float[2,3] q) { q = Clip(x) }>",
        opset=11, c=np.array(True),
    ),
    "an Upsample of opset 9 in the branch": lambda: model(
        "float[2,1,3] x => float[2,1,5] y",
        "s = Shape(x)\n r = Size(s)\n three = Constant<value = int64 {3}>()\n c = Equal(r, three)\n"
        "y = If(c) <then_branch = a () => (float[2,1,5] p) { p = Upsample(x, k) },"
        " else_branch = b () => (float[2,1,5] q) { q = Upsample(x, k) }>",
        opset=9, k=np.array([1, 1, 1.67], np.float32),
    ),
    "one decides the next": lambda: model(
        "float[N,1,3] x => float[N,3] y",
        "s = Shape(x)\n n = Size(s)\n three = Constant<value_int=3>()\n two = Constant<value_int=2>()\n c = Equal(n, three)\n"
        "z = If(c) <then_branch = a () => (float[N,3] p) { axes = Constant<value_ints=[1]>()\n p = Squeeze(x, axes) },"
        " else_branch = b () => (float[N,1,3] q) { q = Identity(x) }>\n"
        f"r = Shape(z)\n m = Size(r)\n d = Equal(m, two)\n y = If(d) <{BRANCHES.replace('(x)', '(z)')}>",
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", IFS)
def test_a_branch_that_does_not_depend_on_the_data_is_taken(label: str) -> None:
    proto = IFS[label]()
    shape = [d.dim_value or 2 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    check(proto, {"x": draw(*shape)})


def test_an_initialiser_of_a_branch_comes_along() -> None:
    proto = IFS["an initialiser decides"]()
    branch = proto.graph.node[0].attribute[0].g
    branch.initializer.append(numpy_helper.from_array(draw(3), "w"))
    branch.node[0].CopyFrom(helper.make_node("Mul", ["x", "w"], ["p"]))
    check(proto, X)


# --------------------------------------------------------------------------- loops

STATE = "(int64 i, bool go, float[N,3] s)"
LOOPS: dict[str, Callable[[], onnx.ModelProto]] = {
    "states": lambda: model(
        "float[N,3] x => float[N,3] y",
        f"y = Loop(m, \"\", x) <body = b {STATE} => (bool on, float[N,3] t) {{ on = Identity(go)\n u = MatMul(s, w)\n t = Tanh(u) }}>",
        m=np.array(4), w=draw(3, 3),
    ),
    "states and collected results": lambda: model(
        "float[N,3] x => float[N,3] y, float[K,N,3] z",
        f"y, z = Loop(m, c, x) <body = b {STATE} => (bool on, float[N,3] t, float[N,3] o) {{"
        " on = Identity(go)\n f = Cast<to=1>(i)\n u = Add(s, f)\n t = Tanh(u)\n o = Mul(t, x) }>",
        m=np.array([3]), c=np.array(True),
    ),
    "a state that is passed on unchanged": lambda: model(
        "float[N,3] x => float[N,3] y, float[N,3] z",
        "t0 = Tanh(x)\n y, z = Loop(m, \"\", x, t0) <body = b (int64 i, bool go, float[N,3] s, float[N,3] k) =>"
        " (bool on, float[N,3] t, float[N,3] l) { on = Identity(go)\n t = Mul(s, k)\n l = Identity(k) }>",
        m=np.array(2),
    ),
    "a condition that a counter decides": lambda: model(
        "float[N,3] x => float[N,3] y, int64 n",
        "n, y = Loop(\"\", c, zero, x) <body = b (int64 i, bool go, int64 k, float[N,3] s) => (bool on, int64 l, float[N,3] t)"
        " { l = Add(k, one)\n on = Less(l, five)\n t = Tanh(s) }>",
        c=np.array(True), zero=np.array(0), one=np.array(1), five=np.array(5),
    ),
    "a condition that ends it after the first round": lambda: model(
        "float[N,3] x => float[N,3] y",
        f"y = Loop(m, \"\", x) <body = b {STATE} => (bool on, float[N,3] t) {{ on = Constant<value = bool {{0}}>()\n t = Exp(s) }}>",
        m=np.array(7),
    ),
    "no round": lambda: model(
        "float[N,3] x => float[N,3] y",
        f"u = Tanh(x)\n y = Loop(m, \"\", u) <body = b {STATE} => (bool on, float[N,3] t) {{ on = Identity(go)\n t = Exp(s) }}>",
        m=np.array(0),
    ),
    "as many rounds as the input is wide": lambda: model(
        "float[N,3] x => float[N] y",
        "s = Shape<start=1,end=2>(x)\n z = ReduceSum<keepdims=0>(x, axis)\n"
        "y = Loop(s, \"\", z) <body = b (int64 i, bool go, float[N] s0) => (bool on, float[N] t) {"
        " on = Identity(go)\n p = Gather<axis=1>(x, i)\n e = Mul(p, p)\n t = Add(s0, e) }>",
        axis=np.array([1]),
    ),
    "inside another": lambda: model(
        "float[N,3] x => float[N,3] y",
        f"y = Loop(m, \"\", x) <body = b {STATE} => (bool on, float[N,3] t) {{ on = Identity(go)\n"
        "  t = Loop(m, \"\", s) <body = bb (int64 j, bool go2, float[N,3] s2) => (bool on2, float[N,3] t2)"
        " { on2 = Identity(go2)\n f = Cast<to=1>(i)\n h = Add(s2, f)\n t2 = Tanh(h) }> }>",
        m=np.array(2),
    ),
    "an If on the number of the round": lambda: model(
        "float[N,3] x => float[N,3] y",
        f"y = Loop(m, \"\", x) <body = b {STATE} => (bool on, float[N,3] t) {{ on = Identity(go)\n first = Equal(i, zero)\n"
        "  t = If(first) <then_branch = a () => (float[N,3] p) { p = Tanh(s) }, else_branch = c () => (float[N,3] q) { q = Sin(s) }> }>",
        m=np.array(3), zero=np.array(0),
    ),
    "a scan": lambda: model(
        "float[5,3] x => float[3] y, float[5,3] z",
        "y, z = Scan(h, x) <num_scan_inputs=1, body = b (float[3] s, float[3] v) => (float[3] t, float[3] o)"
        " { u = MatMul(s, w)\n e = Add(u, v)\n t = Tanh(e)\n o = Exp(t) }>",
        h=draw(3), w=draw(3, 3),
    ),
    "a scan backwards along other axes": lambda: model(
        "float[3,4] x => float[3] y, float[3,4] z",
        "y, z = Scan(h, x, x) <num_scan_inputs=2, scan_input_axes=[1,-1], scan_input_directions=[1,0],"
        " scan_output_axes=[-1], scan_output_directions=[1], body = b (float[3] s, float[3] v, float[3] r) =>"
        " (float[3] t, float[3] o) { e = Mul(v, r)\n u = Add(e, s)\n t = Tanh(u)\n o = Sin(t) }>",
        h=draw(3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", LOOPS)
def test_a_loop_that_does_not_depend_on_the_data_is_written_out(label: str) -> None:
    proto = LOOPS[label]()
    shape = [d.dim_value or 2 for d in proto.graph.input[0].type.tensor_type.shape.dim]
    check(proto, {"x": draw(*shape) * 0.5})


def test_a_loop_whose_condition_a_branch_decides_is_left_alone_without_a_fault() -> None:
    proto = model(
        "float[N,3] x => float[N,3] y",
        f"""y = Loop(m, "", x) <body = b {STATE} => (bool on, float[N,3] t) {{ t = Tanh(s)
          big = ReduceMax<keepdims=0>(t)
          some = Greater(big, zero)
          on = If(some) <then_branch = a () => (bool p) {{ p = Identity(go) }}, else_branch = c () => (bool q) {{ q = Not(go) }}> }}>""",
        m=np.array(3), zero=np.array(0, np.float32),
    )  # fmt: skip
    assert "depends on the data" in refusal(proto)


# --------------------------------------------------------------------------- refusals


def refusal(proto: onnx.ModelProto, **said: Any) -> str:
    started = time.perf_counter()
    with pytest.raises(ExplainError) as caught:
        Explainer(proto, "gradient", **said)(draw(2, 3), target=0)
    assert time.perf_counter() - started < 30
    assert "\n" not in str(caught.value)
    return str(caught.value)


COUNTED = "(int64 i, bool go, float[N,3] s) => (bool on, float[N,3] t) { on = Identity(go)\n t = Tanh(s) }"
REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "an If that the data decide": (
        lambda: model(
            "float[N,3] x => float[N,3] y", f"m = ReduceMax<keepdims=0>(x)\n c = Cast<to=9>(m)\n [fork] y = If(c) <{BRANCHES}>"
        ),
        ("fork", "If", "depends on the data"),
    ),
    "a Loop that the data end": (
        lambda: model(
            "float[N,3] x => float[N,3] y",
            f"m = ReduceMax<keepdims=0>(x)\n n = Cast<to=7>(m)\n [spin] y = Loop(n, \"\", x) <body = b {COUNTED}>",
        ),
        ("spin", "Loop", "depends on the data"),
    ),
    "a Loop of a billion rounds": (
        lambda: model("float[N,3] x => float[N,3] y", f"[spin] y = Loop(m, \"\", x) <body = b {COUNTED}>", m=np.array(10**9)),
        ("spin", "Loop", "50000 nodes"),
    ),
    "a Loop without an end": (
        lambda: model("float[N,3] x => float[N,3] y", f"[spin] y = Loop(\"\", \"\", x) <body = b {COUNTED}>"),
        ("spin", "Loop"),
    ),
    "a Loop that a counter never ends": (
        lambda: model(
            "float[N,3] x => float[N,3] y",
            "[spin] n, y = Loop(\"\", \"\", zero, x) <body = b (int64 i, bool go, int64 k, float[N,3] s) =>"
            " (bool on, int64 l, float[N,3] t) { l = Add(k, one)\n on = Greater(l, zero)\n t = Tanh(s) }>",
            zero=np.array(0), one=np.array(1),
        ),
        ("spin", "Loop"),
    ),
    "loops in loops that multiply": (
        lambda: model(
            "float[N,3] x => float[N,3] y",
            f"""[spin] y = Loop(m, "", x) <body = b {STATE} => (bool on, float[N,3] t) {{ on = Identity(go)
             t = Loop(m, "", s) <body = bb (int64 i2, bool go2, float[N,3] s2) => (bool on2, float[N,3] t2) {{ on2 = Identity(go2)
              t2 = Loop(m, "", s2) <body = bbb (int64 i3, bool go3, float[N,3] s3) => (bool on3, float[N,3] t3) {{
               on3 = Identity(go3)
               t3 = Tanh(s3) }}> }}> }}>""",
            m=np.array(500),
        ),
        ("spin", "Loop", "50000 nodes"),
    ),
    "a Scan of a million steps": (
        lambda: model(
            "float[N,3] x => float[N,3] y",
            "[spin] y, z = Scan(x, long) <num_scan_inputs=1, body = b (float[N,3] s, float v) => (float[N,3] t, float o)"
            " { t = Mul(s, v)\n o = Identity(v) }>",
            long=np.zeros(10**6, np.float32),
        ),
        ("spin", "Scan", "50000 nodes"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", REFUSED)
def test_what_cannot_be_written_out_is_refused_in_one_sentence(label: str) -> None:
    make, words = REFUSED[label]
    message = refusal(make())
    assert [w for w in words if w not in message] == [], message


def test_off_the_way_it_is_left_alone() -> None:
    for make, _ in REFUSED.values():
        proto = make()
        proto.graph.node.append(helper.make_node("Sin", ["x"], ["direct"]))
        proto.graph.output.insert(0, helper.make_tensor_value_info("direct", TensorProto.FLOAT, [None, 3]))
        found = Explainer(proto, "gradient").build()
        assert found.relevance.keys() == {"x"}


def test_a_branch_with_other_results_than_its_if_is_one_sentence() -> None:
    proto = IFS["an initialiser decides"]()
    branch = proto.graph.node[0].attribute[0].g
    branch.output.append(branch.output[0])
    assert "If" in refusal(proto)


def test_a_body_that_does_not_fit_its_loop_is_one_sentence() -> None:
    proto = LOOPS["states"]()
    del proto.graph.node[0].attribute[0].g.input[2]
    assert refusal(proto)


# --------------------------------------------------------------------------- names, files


def test_names_of_nodes_survive_with_the_number_of_the_round() -> None:
    proto = LOOPS["states"]()
    proto.graph.node[0].name = "spin"
    proto.graph.node[0].attribute[0].g.node[1].name = "turn"
    rows = Explainer(proto, "lrp-epsilon").plan()[0]
    assert [r.name for r in rows if r.op_type == "MatMul"] == [
        "spin/3/turn",
        "spin/2/turn",
        "spin/1/turn",
        "spin/0/turn",
    ]


def test_the_source_stays_as_it_is() -> None:
    for make in (*IFS.values(), *LOOPS.values()):
        proto = make()
        before = proto.SerializeToString(deterministic=True)
        Explainer(proto, "gradient").build()
        assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("label", ["states and collected results", "inside another"])
def test_a_loop_is_converted_to_a_file_that_predicts_the_same(label: str, tmp_path: Path) -> None:
    proto = LOOPS[label]()
    explainer = Explainer(proto, "lrp-epsilon")
    explainer.convert(tmp_path / "explained.onnx")
    x = draw(2, 3)
    theirs, ours = run(proto, {"x": x}), run(onnx.load(tmp_path / "explained.onnx"), {"x": x})
    assert all(np.abs(ours[n] - a).max() <= FLOAT32 * np.abs(a).max() for n, a in theirs.items())
    assert np.abs(ours["x_relevance"] - explainer(x).relevance["x"]).max() <= FLOAT32


def test_an_explained_file_with_a_loop_of_its_own_is_explained_again(tmp_path: Path) -> None:
    proto = model(
        "float[N,3] x => float[N,2] y", "t = MatMul(x, w)\n u = Tanh(t)\n y = MatMul(u, v)", w=draw(3, 4), v=draw(4, 2)
    )
    path = tmp_path / "explained.onnx"
    Explainer(proto, "integrated-gradients", steps=4).convert(path)
    assert "Loop" in {n.op_type for n in onnx.load(path).graph.node}
    x = draw(2, 3)
    again, plain = Explainer(path, "lrp-epsilon")(x, target=1), Explainer(proto, "lrp-epsilon")(x, target=1)
    assert np.abs(again.relevance["x"] - plain.relevance["x"]).max() <= FLOAT32
    path2 = tmp_path / "twice.onnx"
    Explainer(path, "gradient").convert(path2)
    ours, theirs = run(onnx.load(path2), {"x": x}), run(onnx.load(path), {"x": x})
    assert np.abs(ours["x_relevance"] - theirs["x_relevance"]).max() <= FLOAT32
