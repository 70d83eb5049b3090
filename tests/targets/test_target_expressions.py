"""Target expressions on models: values beside NumPy's, gradients beside differences, every kind of method, files, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from drawn_expressions import drawn, model, network, scalars
from hypothesis import HealthCheck, given, settings
from target_oracle import Unfit, evaluate

from onnx_explain import Explainer, Explainers, MethodError, TargetError
from onnx_explain.aiming import aim
from onnx_explain.backends.onnx import Session
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.model import load
from onnx_explain.ir.prune import keep_outputs
from onnx_explain.target import parse
from onnx_explain.target.grammar import parse_expression

X = drawn(2, 6, seed=5)
CANONICAL = canonicalize(load(network()).model)
PLAIN = Session(CANONICAL).run({"x": X})
APART = {name: name != "m/w:0" for name in PLAIN}


# ------------------------------------------------------------------------------------------- values and gradients


def computed(text: str) -> np.ndarray[Any, Any]:
    """The target [2] that ONNX Runtime computes."""
    found = aim(CANONICAL, replace(parse(text), element=None, output=None, expression=parse_expression(text)))
    op = Emitter(found.model.graph)
    value = next(v for n in found.model.graph for v in n.outputs if v.name == found.tensor)
    op.output(value, "result", value)
    op.finish()
    keep_outputs(found.model, ["result"])
    return np.broadcast_to(np.atleast_1d(Session(found.model, threads=1).run({"x": X})["result"]), 2)


def wanted(text: str) -> Any:
    """The same by NumPy, float64 [2]; None where it is no number per sample."""
    try:
        with np.errstate(all="ignore"):
            found = [evaluate(parse_expression(text), PLAIN, APART, n) for n in range(2)]
    except (Unfit, ValueError):
        return None
    if any(np.ma.asarray(v).size != 1 or v.dtype.kind != "f" for v in found):
        return None
    return np.array([float(np.ma.filled(np.ma.asarray(v).reshape(()), 0.0)) for v in found])


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(scalars())
def test_what_is_computed_is_what_numpy_computes_or_both_refuse(text: str) -> None:
    try:
        parse_expression(text)
    except TargetError:
        return
    numbers = wanted(text)
    if numbers is None:
        with pytest.raises(TargetError):
            computed(text)
        return
    np.testing.assert_allclose(computed(text), numbers, rtol=2e-4, atol=1e-4)  # float32 beside float64, sums of 15


DIFFERENTIABLE = [
    "a[:,1]-a[:,3]",
    "b[:,:,2].max()",
    "b.where(b > 0.2).mean()",
    "c[:,1].topk(3).sum() - c[:,0].min()/2",
    "(a[:,0]*b[:,0,1]).sum() / (1 + (b*b).sum())",
    "b[:, b[:,:,0].argmax(), 1:3].sum()",
    "c[:, 0, [0,2], ::-1].mean()",
    "a.softmax(1)[:,2].log()",
    "b[:,0].abs().sum() + a[:,1].sigmoid()",
    "a.where(a > 0, -a).max(axis=1)",
    "(b.sum(axis=2)*2 - 1).where(k == 1).sum()",
    "'m/w:0'[b[:,0].argmax()] * a[:,0]",
]


@pytest.mark.parametrize("text", DIFFERENTIABLE)
def test_the_gradient_is_that_of_finite_differences(text: str) -> None:
    """In float64, by the reference backend; differences of the same target's scores."""
    explainer = Explainer(network(), "gradient", backend="reference")
    x = X.astype(np.float64)
    gradient = explainer(x, target=text).relevance["x"]
    step = 1e-6
    for n, i in ((0, 0), (0, 3), (1, 2), (1, 5)):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[n, i] += sign * step
            ends.append(explainer(moved, target=text).target.score.sum())
        np.testing.assert_allclose(gradient[n, i], (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------- logits, conditions


def classifier(head: str = "Softmax") -> onnx.ModelProto:
    """Pictures [N, 3, 8, 8] to a map of classes m [N, 5, 8, 8] and their scores p [N, 5]."""
    body = f"""
        h = Conv<pads=[1,1,1,1]>(x, w1)
        r = Relu(h)
        m = Conv(r, w2)
        g = ReduceMean<keepdims=0>(m, axes)
        p = {head}(g)
    """
    return model(
        f"g (float[N,3,8,8] x) => (float[N,5] p, float[N,5,8,8] m) {{ {body} }}",
        w1=drawn(6, 3, 3, 3), w2=4 * drawn(5, 6, 1, 1), axes=np.array([2, 3]),
    )  # fmt: skip


PICTURES = drawn(2, 3, 8, 8, seed=1)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(classifier(), "lrp-epsilon", threads=1)


def test_a_contrast_of_scores_is_that_of_their_logits(explainer: Explainer) -> None:
    e = explainer(PICTURES, target="p[:,3]-p[:,1]")
    logits = Explainer(classifier(), "gradient", output="g", threads=1)
    parts = [logits(PICTURES, target=k).target.score for k in (3, 1)]
    np.testing.assert_allclose(e.target.score, parts[0] - parts[1], rtol=1e-5)
    assert e.target.expression == "p[:,3]-p[:,1]"
    assert e.target.reads == ("g",)
    np.testing.assert_array_less(e.conservation, 1e-3)
    stated = Explainer(classifier(), "gradient", logits=False, threads=1)(PICTURES, target="p[:,3]-p[:,1]")
    np.testing.assert_allclose(stated.target.score, e.outputs["p"][:, 3] - e.outputs["p"][:, 1], rtol=1e-5)


def test_conditions_and_picks_read_what_the_file_states(explainer: Explainer) -> None:
    """A logit above 0.5 is no probability above 0.5."""
    p = explainer(PICTURES).outputs["p"]
    best = p.argmax(1)
    assert (p.max(1) > 0.5).all(), "the case must show what it says"
    for text in ("p.max()", "p[:, p.argmax()]", "p.where(p > 0.5).sum()"):
        e = explainer(PICTURES, target=text)
        np.testing.assert_allclose(e.target.score, explainer(PICTURES, target=best).target.score, rtol=1e-5)
    product = explainer(PICTURES, target="p[:,0]*p[:,1]")
    np.testing.assert_allclose(product.target.score, p[:, 0] * p[:, 1], rtol=1e-4)
    assert product.target.reads == ("p",)


def test_a_final_sigmoid_is_looked_behind_as_well() -> None:
    e = Explainer(classifier("Sigmoid"), "gradient", threads=1)(PICTURES, target="p.max()")
    assert e.target.reads == ("g",)
    picked = e.outputs["p"].max(1)
    np.testing.assert_allclose(1 / (1 + np.exp(-e.target.score)), picked, rtol=1e-5)


def test_a_mask_explains_the_region_of_a_class(explainer: Explainer) -> None:
    m = explainer(PICTURES).outputs["m"]
    k = int(np.bincount(m.argmax(1).ravel()).argmax())
    region = m.argmax(1) == k
    assert region.any((1, 2)).all(), "the case must show what it says"
    assert not region.all((1, 2)).any()
    e = explainer(PICTURES, target=f"segmentation:{k}")
    np.testing.assert_allclose(e.target.score, (m[:, k] * region).sum((1, 2)), rtol=1e-4)
    assert e.target.expression == f"m[:,{k}].where(m.argmax(axis=1) == {k}).sum()"
    assert e.relevance["x"].any((1, 2, 3)).all()


# ------------------------------------------------------------------------------------------- samples


def test_one_sample_or_every_one_is_explained(explainer: Explainer) -> None:
    every, first = explainer(PICTURES, target="p[:,2:4].sum()"), explainer(PICTURES, target="p[0,2:4].sum()")
    last = explainer(PICTURES, target="p[-1,2:4].sum()")
    np.testing.assert_array_equal(first.relevance["x"][0], every.relevance["x"][0])
    assert not first.relevance["x"][1].any()
    np.testing.assert_array_equal(last.relevance["x"][1], every.relevance["x"][1])
    assert first.target.index.tolist() == [0, -2]
    alone = explainer(PICTURES[1:], target="p[:,2:4].sum()")
    np.testing.assert_allclose(every.relevance["x"][1:], alone.relevance["x"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "p[0,1]-p[1,1]",
        "p[:,1]-p[0,1]",
        "p[0,1].where(p[:,1] > 0)",
        "p[0:1,1]",
        "p[[0,1],2].sum()",
        "p.sum(axis=0)",
        "p[5,1]*2",
    ],
)
def test_nothing_crosses_from_one_sample_to_another(text: str, explainer: Explainer) -> None:
    with pytest.raises(TargetError):
        explainer(PICTURES, target=text)


def test_a_model_of_fixed_batch_runs_sample_by_sample() -> None:
    proto = classifier()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    open_batch = Explainer(classifier(), "lrp-epsilon", threads=1)(PICTURES, target="m[:,1].max()")
    for text in ("m[:,1].max()", "m[0,1].max()"):
        fixed = Explainer(proto, "lrp-epsilon", threads=1)(PICTURES, target=text)
        np.testing.assert_allclose(fixed.relevance["x"], open_batch.relevance["x"], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- every kind of method

ROUNDS = {"steps": 5, "samples": 3, "masks": 24}
ONE_OF_EACH = [
    "gradient", "smoothgrad", "integrated-gradients", "guided-backprop", "deeplift", "lrp-epsilon-plus", "lrp-alpha2-beta1", "rap",
    "rsp", "grad-cam", "layer-cam", "occlusion", "rise", "shapley-sampling",
]  # fmt: skip


@pytest.mark.parametrize("method", ONE_OF_EACH)
def test_every_kind_of_method_explains_an_expression_as_it_does_the_same_element(method: str) -> None:
    """An expression that comes to one logit is that logit, whatever the method."""
    from onnx_explain import METHODS

    known = METHODS[method].options
    options = {name: value for name, value in ROUNDS.items() if name in known}
    if method == "rise":
        options["score"] = "logit"
    explainer = Explainer(classifier(), method, threads=1, **options)
    by_index = explainer(PICTURES, target=3)
    by_text = explainer(PICTURES, target="p[:,[3]].sum()")
    np.testing.assert_allclose(by_text.target.score, by_index.target.score, rtol=1e-4)
    scale = np.abs(by_index.relevance["x"]).max()
    if method != "rsp":  # its hostile classes are the others of the explained tensor, which has none here
        np.testing.assert_allclose(by_text.relevance["x"], by_index.relevance["x"], rtol=0, atol=1e-4 * scale)
    assert by_text.target.told() == "p[:,[3]].sum()"


def test_several_targets_and_methods_share_one_call() -> None:
    found = Explainers(classifier(), ["gradient", "lrp-epsilon"], threads=1)(
        PICTURES, targets=["p[:,3]-p[:,1]", 2, "m[:,1].max()", None]
    )
    assert [[e.target.tensor for e in row] for row in found] == [
        ["p[:,3]-p[:,1]"] * 2, ["g"] * 2, ["m[:,1].max()"] * 2, ["g"] * 2,
    ]  # fmt: skip
    assert all(list(e.outputs) == ["p", "m"] for row in found for e in row)


def test_a_cam_looks_at_the_network_not_at_the_expression() -> None:
    e = Explainer(classifier(), "grad-cam", threads=1)(PICTURES, target="(m[:,1:2] - m[:,2:3]).max()")
    assert e.layer == Explainer(classifier(), "grad-cam", output="m", threads=1)(PICTURES, target=7).layer


# ------------------------------------------------------------------------------------------- nothing to look at


def test_a_condition_that_nothing_fulfils_gives_zero_and_says_so(explainer: Explainer) -> None:
    for text in ("p.where(p > 2).sum()", "p.where(p > 2).max()", "p.where(p > 2).mean()", "p[:,0]/(p[:,0]-p[:,0])"):
        e = explainer(PICTURES, target=text)
        assert e.target.score.tolist() == [0, 0]
        assert not e.relevance["x"].any()
        assert "nothing fulfils" in e.notes[-1]
        assert e.target.sure is not None
        assert not e.target.sure.any()
    assert explainer(PICTURES, target="p.max()").notes == ()


def test_what_is_no_number_is_refused() -> None:
    proto = model("g (float[N,2] x) => (float[N,2] y) { e = Exp(x)\n y = Mul(e, e) }")
    with pytest.raises(TargetError, match="inf for sample 1"):
        Explainer(proto, "gradient", threads=1)(np.array([[0, 0], [80, 0]], np.float32), target="y.sum()")


def detector(least: float, tail: str = "") -> onnx.ModelProto:
    """Boxes [K, 4], labels [K] and scores [K] of what is likelier than `least`: nobody knows K before it runs."""
    body = f"""
        all = MatMul(x, w)
        likely = Sigmoid(all)
        flat = Reshape(likely, eight)
        yes = Greater(flat, least)
        found = NonZero(yes)
        which = Squeeze(found, axis)
        scores = Gather(flat, which)
        drawn = MatMul(x, wb)
        every = Reshape(drawn, rows)
        boxes = Gather(every, which)
        labels = Gather(known, which)
        {tail}
    """
    return model(
        f"g (float[1,6] x) => (float[K,4] boxes, int64[K] labels, float[K] scores) {{ {body} }}",
        w=drawn(6, 8), wb=drawn(6, 32), eight=np.array([8]), rows=np.array([8, 4]), least=np.float32(least),
        axis=np.array([0]), known=np.array([1, 2, 3, 1, 2, 3, 1, 2]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "same"),
    [
        ("rcnn:2", lambda b, k, s: s[k == 2].max()),
        ("scores[2]", lambda b, k, s: s[2]),
        ("scores.mean()", lambda b, k, s: s.mean()),
        ("boxes[scores.argmax(), 2]", lambda b, k, s: b[s.argmax(), 2]),
        ("boxes[:2,1].sum()", lambda b, k, s: b[:2, 1].sum()),
    ],
)
def test_a_detector_that_keeps_an_unknown_number_of_boxes_is_explained(target: str, same: Any) -> None:
    x = drawn(1, 6, seed=3)
    for method in ("gradient", "lrp-epsilon"):
        e = Explainer(detector(0.5), method, threads=1)(x, target=target)
        np.testing.assert_allclose(e.target.score, [same(*e.outputs.values())], rtol=1e-5)
        assert e.relevance["x"].any()
        nothing = Explainer(detector(2.0), method, threads=1)(x, target=target)
        assert nothing.outputs["scores"].shape == (0,)
        assert nothing.target.score.tolist() == [0]
        assert not nothing.relevance["x"].any()


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("p[:,:2]", r"leaves \[N, 2\]"),
        ("m[:,1].max(axis=1)", r"leaves \[N, 8\].*add \.max\(\)"),
        ("q.max()", "no output 'q'"),
        ("p/m.max()", "no output 'p/m'.*spaces"),
        ("p.argmax()", "an integer"),
        ("p[:,0] > 0", "true or false"),
        ("p.where(p).sum()", "needs a comparison"),
        ("p[:,0] & p[:,1]", "needs a comparison"),
        ("m[:,p[:,0]].sum()", "an index is one integer"),
        ("p[:,7] * 2", r"index 7 for axis 1 of \[N, 5\]"),
        ("p[:,5:].sum()", "slices nothing"),
        ("m[:,:,:,:,0].max()", "more than its axes"),
        ("p.max(axis=2)", "does not have"),
        ("(p[:,:2]*p[:,:3]).sum()", "do not fit"),
        ("p[:,p.argmax()]*0 + m[:,0,0,m[:,0].argmax()]", "one of 64 places"),
        ("p.topk(9).sum()", "of 5 entries"),
        ("p.max()/0", "divides by 0"),
        ("2*3", "is a number"),
        ("1 < 2", "compares the numbers"),
        ("x.max() > 0 & 1", "needs a comparison"),
        ("segmentation:9", "5 classes"),
    ],
)
def test_what_comes_to_no_number_is_refused_in_one_sentence(text: str, told: str, explainer: Explainer) -> None:
    with pytest.raises(TargetError, match=told) as caught:
        explainer(PICTURES, target=text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_outputs_that_are_no_tensors_of_numbers_are_named() -> None:
    words = model("g (float[N,2] x, string[N,2] s) => (float[N,2] y, string[N,2] t) { y = Relu(x)\n t = Identity(s) }")
    feeds = {"x": drawn(1, 2), "s": np.array([["a", "b"]], object)}
    with pytest.raises(TargetError, match="'t', which holds strings"):
        Explainer(words, "gradient", threads=1)(feeds, target="y.where(t == 1).sum()")
    listed = model("g (float[N,2] x) => (float[N,2] y, seq(float[N,2]) z) { y = Relu(x)\n z = SequenceConstruct(y) }")
    with pytest.raises(TargetError, match="sequence"):
        Explainer(listed, "gradient", threads=1)(drawn(1, 2), target="z.max()")


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon-plus", "rap", "grad-cam", "integrated-gradients"])
def test_a_converted_file_holds_the_expression_and_runs_in_stock_onnx_runtime(method: str, tmp_path: Path) -> None:
    options = {"steps": 5} if method == "integrated-gradients" else {}
    explainer = Explainer(classifier(), method, threads=1, **options)
    text = "m[0,1].where(m[0,1] > m[0,1].mean()).sum() - p[0,2]"
    e = explainer(PICTURES[:1], target=text)
    explainer.convert(tmp_path / "e.onnx", target=text)
    written = onnx.load(tmp_path / "e.onnx")
    notes = {p.key: p.value for p in written.metadata_props}
    assert notes["onnx_explain.expression"] == text
    assert "onnx_explain.target" not in notes
    assert [v.name for v in written.graph.input] == ["x"]
    assert [v.name for v in written.graph.output][:2] == ["p", "m"]
    session = ort.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
    (r,) = session.run([session.get_outputs()[2].name], {"x": PICTURES})
    scale = np.abs(e.relevance["x"]).max()
    np.testing.assert_allclose(r[:1], e.relevance["x"], rtol=0, atol=1e-4 * scale)
    assert r.shape == PICTURES.shape
    assert len(written.graph.output) == 3


def test_an_index_becomes_the_default_of_a_converted_file(tmp_path: Path) -> None:
    explainer = Explainer(classifier(), "gradient", threads=1)
    for target in (3, "p[0,3]", "p[:,3]"):
        explainer.convert(tmp_path / "e.onnx", target=target)
        session = ort.InferenceSession(tmp_path / "e.onnx", providers=["CPUExecutionProvider"])
        (r,) = session.run(["x_relevance"], {"x": PICTURES})
        np.testing.assert_allclose(r, explainer(PICTURES, target=3).relevance["x"], rtol=1e-4, atol=1e-5)
        (other,) = session.run(["x_relevance"], {"x": PICTURES, "target": np.array([1])})
        np.testing.assert_allclose(other, explainer(PICTURES, target=1).relevance["x"], rtol=1e-4, atol=1e-5)


def test_what_no_file_can_explain_is_refused(tmp_path: Path) -> None:
    explainer = Explainer(classifier(), "gradient", threads=1)
    for wrong in ("p[1,3]", "p[1,3]*2", [1, 2], 9, "p[:,9]*2"):
        with pytest.raises(TargetError):
            explainer.convert(tmp_path / "e.onnx", target=wrong)
    with pytest.raises(MethodError):
        Explainer(classifier(), "occlusion", threads=1).convert(tmp_path / "e.onnx", target="p.max()")
    assert not list(tmp_path.iterdir())


def test_the_model_is_not_changed_by_what_is_asked_of_it(explainer: Explainer) -> None:
    before = ir.to_proto(explainer.model).SerializeToString()
    for i in range(20):  # more than are kept
        explainer(PICTURES, target=f"p[:,0]*{i + 2}")
    assert ir.to_proto(explainer.model).SerializeToString() == before
    assert explainer(PICTURES).target.expression is None


TWO_HEADS = """<ir_version: 8, opset_import: ["" : 17]>
two (float[N, 6] x) => (float[N, 2] m) { g = Gemm(x, w, c) h = Relu(g) a = Gemm(h, u, b) d = MatMul(h, v)
    p = Sigmoid(a) q = Sigmoid(d) m = Mul(p, q) }"""


def test_what_rap_seeds_below_a_curved_head_is_counted() -> None:
    proto = onnx.parser.parse_model(TWO_HEADS)
    shapes = {"w": (6, 8), "c": (8,), "u": (8, 2), "b": (2,), "v": (8, 2)}
    held = {n: drawn(*shape, seed=i) for i, (n, shape) in enumerate(shapes.items())}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in held.items())
    found = Explainer(proto, "rap", backend="reference")(X, target="m[:,0].max()")
    h = np.maximum(X @ held["w"] + held["c"], 0).astype(np.float64)
    a, d = ((h @ held["u"] + held["b"])[:, 0], (h @ held["v"])[:, 0])
    p, q = (1 / (1 + np.exp(-z)) for z in (a, d))
    begun = a * p * (1 - p) * q + d * q * (1 - q) * p  # Σ z·∂score/∂z, which is not the score
    np.testing.assert_allclose(found.relevance["x"].sum(1) + found.absorbed, begun, rtol=1e-5)
    assert np.abs(begun - p * q).min() > 0.01
    assert found.conservation.max() < 1e-9
