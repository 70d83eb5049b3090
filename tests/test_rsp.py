"""RSP against its formulas (rap_rsp.md §3, §5): every geometry of weighted operators, seeds, and what must be conserved.

The oracle takes a layer's map apart by unit vectors of its weight and of its input: no adjoint of the library is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from cases import Array, Case, convolutions, dense_layers, transposed_convolutions
from oracles import evaluator, safe

from onnx_explain import Assignment, Composite, Explainer, MethodError, Selector
from onnx_explain.backends.onnx import Session
from onnx_explain.backends.reference import Reference
from onnx_explain.ir import composite
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.model import load
from onnx_explain.ir.widen import as_float64
from onnx_explain.operators import patches
from onnx_explain.operators.roles import Linear
from onnx_explain.relevance import relevance_of
from onnx_explain.rules import lrp, rsp

LAYERS = [
    c
    for c in itertools.chain(convolutions(), transposed_convolutions(), dense_layers())
    if "w" in c.constants and list(c.inputs) == ["x"] and c.name.partition("@")[2] in ("", "17")
]
EXACT, ROUNDED = 1e-9, 2e-5  # float64; float32 with the quotients of a few nearly dead patches

# ------------------------------------------------------------------------------------------- the oracle


@cache
def _map(case: Case) -> Callable[[Array, Array], Array]:
    """L(x, w) of a case without its bias: onnx's evaluator, with the weight as an input."""
    model = case.build(np.float64)
    for tensor in list(model.graph.initializer):
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.name == "w":
            model.graph.initializer.remove(tensor)
            if all(v.name != "w" for v in model.graph.input):
                model.graph.input.append(onnx.helper.make_tensor_value_info("w", tensor.data_type, array.shape))
        elif tensor.name == "b":
            none = np.zeros_like(array) if "conv" in case.name else np.zeros(1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(none, "b"))
    session = evaluator(model)
    return lambda x, w: np.asarray(session.run(["y"], {"x": x, "w": w})[0])


def _units(shape: tuple[int, ...]) -> Any:
    for place in np.ndindex(*shape):
        unit = np.zeros(shape)
        unit[place] = 1.0
        yield place, unit


def similar(case: Case, p: list[Array], r: Array) -> tuple[Array, float]:
    """C of one sample (§3.3) over the features p, and the relevance at patches that are not all zero."""
    forward, size = _map(case), case.constants["w"]
    shape = size.shape
    c, alive = [np.zeros_like(v) for v in p], 0.0
    for sign in (1.0, -1.0):
        part = np.maximum(sign * r, 0.0)
        weights, total = [], np.zeros_like(r)
        for v in p:
            d = np.zeros(shape)
            for place, unit in _units(shape):
                d[place] = float((forward(v, unit) * part).sum())
            weights.append(d)
            total = total + forward(v, d)
        s = safe(part, total * (part > 0))
        alive += sign * float((s * total).sum())
        for k, d in enumerate(weights):
            for place, unit in _units(p[k].shape):
                c[k][place] += sign * p[k][place] * float((forward(unit, d) * s).sum())
    return sum(c[1:], c[0]), alive


def hidden(case: Case, x: Array, r: Array, *, published: bool) -> Array:
    """The rule on one sample: C where the window is one position, else 2C less an even shift."""
    above, below = np.maximum(x, 0.0), np.maximum(-x, 0.0)
    c, _ = similar(case, [above] if published else [above, below], r)
    kernel = case.constants["w"].shape[2:] if "conv" in case.name else ()
    pointwise = kernel[:1] == (1,) if published else all(k == 1 for k in kernel)
    if pointwise or not kernel:
        return c
    live = c != 0
    surplus = r.sum() if published else 2 * c.sum() - r.sum()
    return np.where(live, 2 * c - surplus / max(live.sum(), 1), 0.0)


def expected(case: Case, x: Array, r: Array, *, published: bool) -> Array:
    """Sample by sample; of a transposed Gemm the samples are x's columns, of a weight on the left all is one sample.

    A stack of weights along the samples' axis keeps them apart by itself.
    """
    stacked = "matmul" in case.name and len(case.constants["w"].shape) > 2 and x.ndim < 4
    if stacked or ("left" in case.name and x.ndim < 3):
        return hidden(case, x, r, published=published)
    if "trans-a" in case.name or "trans-both" in case.name:
        columns = [hidden(case, x[:, i : i + 1], r[i : i + 1], published=published) for i in range(len(r))]
        return np.concatenate(columns, axis=1)
    if x.ndim < 2:
        return hidden(case, x, r, published=published)
    samples = [hidden(case, x[i : i + 1], r[i : i + 1], published=published) for i in range(len(x))]
    return np.concatenate(samples)


# ------------------------------------------------------------------------------------------- the library


def explained(case: Case, x: Array, r: Array, *, exact: bool, published: bool = False, purge: bool = False) -> Array:
    """R_in of a single layer."""
    rows = (
        Assignment(Selector(role=Linear, kind="weighted"), rsp.hidden(published=published, purge=purge), "RSP"),
        Assignment(Selector(), lrp.passing, "pass"),
    )
    canonical = canonicalize(load(case.build(np.float32)).model)
    model = as_float64(canonical) if exact else canonical
    whole = composite.expand(relevance_of(model, Composite(rows, "pass"), ["x"], "y"))
    dtype = np.float64 if exact else np.float32
    runner = Reference(whole) if exact else Session(whole)
    return runner.run({"x": x.astype(dtype), "y_cotangent": r.astype(dtype)})["x_gradient"]


def drawn(case: Case) -> tuple[Array, Array]:
    """An input with dead patches, and relevance of both signs."""
    x = case.values(np.float64)["x"]
    x = np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, 0.0, x)
    y = evaluator(case.build(np.float64)).run(None, {"x": x})[0]
    return x, np.random.default_rng(7).standard_normal(y.shape).astype(np.float32).astype(np.float64)


def close(ours: Array, theirs: Array, limit: float) -> None:
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs).max() <= limit * max(np.abs(theirs).max(), 1e-30)


@pytest.mark.parametrize("published", [False, True], ids=["general", "published"])
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_each_layer_is_the_papers_formula_per_sample(case: Case, published: bool) -> None:
    x, r = drawn(case)
    wanted = expected(case, x, r, published=published)
    close(explained(case, x, r, exact=True, published=published), wanted, EXACT)
    close(explained(case, x, r, exact=False, published=published), wanted, ROUNDED)


@pytest.mark.parametrize("form", ["weights", "patches", "pixels"])
@pytest.mark.parametrize("case", [c for c in LAYERS if c.name.startswith("conv-") or c.name == "conv@17"], ids=str)
def test_each_form_of_a_convolution_gives_the_same(case: Case, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form == "pixels" and "stride" in case.text:
        pytest.skip("similarities of pixels are for stride 1")
    x, r = drawn(case)
    chosen = explained(case, x, r, exact=True)
    monkeypatch.setattr(patches, "cheapest", lambda *_: form)
    close(explained(case, x, r, exact=True), chosen, EXACT)
    close(explained(case, x, r, exact=False), chosen, ROUNDED)


# ------------------------------------------------------------------------------------------- conservation and degeneration


def _conv(attributes: str = "pads=[1,1,1,1]", kernel: int = 3) -> Case:
    from cases import signed

    text = f"y = Conv<{attributes}>(x, w)"
    return Case("conv-own", text, {"x": signed(2, 3, 6, 6)}, {"w": signed(4, 3, kernel, kernel)})


def _sums(a: Array) -> Array:
    return a.reshape(len(a), -1).sum(axis=1)


def test_a_window_of_several_positions_keeps_the_sum_where_patches_are_dead() -> None:
    case = _conv()
    x, r = drawn(case)
    x[:, :, :3] = 0.0
    close(_sums(explained(case, x, r, exact=True)), _sums(r), EXACT)


def test_the_release_subtracts_the_whole_sum_whatever_is_dead() -> None:
    case = _conv()
    x, r = drawn(case)
    x[:, :, :3] = 0.0
    alive = np.array([similar(case, [np.maximum(a[None], 0)], b[None])[1] for a, b in zip(x, r)])
    close(_sums(explained(case, x, r, exact=True, published=True)), 2 * alive - _sums(r), EXACT)


def test_a_window_of_one_position_keeps_what_its_live_patches_hold() -> None:
    case = _conv("", 1)
    x, r = drawn(case)
    x[:, :, 2] = 0.0
    kept = np.where((x != 0).any(axis=1, keepdims=True), r, 0.0)
    close(_sums(explained(case, x, r, exact=True)), _sums(kept), EXACT)


def test_no_weight_is_looked_at() -> None:
    case = _conv()
    x, r = drawn(case)
    other = Case("conv-own", case.text, case.inputs, {"w": np.full((4, 3, 3, 3), -3.0)})
    close(explained(case, x, r, exact=True), explained(other, x, r, exact=True), EXACT)


def test_the_rule_is_homogeneous_and_indifferent_to_the_activations_scale() -> None:
    case = _conv()
    x, r = drawn(case)
    plain = explained(case, x, r, exact=False)
    close(explained(case, x, 1e-12 * r, exact=False), 1e-12 * plain, ROUNDED)
    for scale in (1e4, 1e-15, 1e12):
        close(explained(case, scale * x, r, exact=False), plain, ROUNDED)


def test_a_unit_that_is_zero_receives_nothing() -> None:
    case = _conv()
    x, r = drawn(case)
    assert (explained(case, x, r, exact=False)[x == 0] == 0).all()


@pytest.mark.parametrize("x", [np.zeros((2, 3, 6, 6)), np.full((2, 3, 6, 6), 1e-25)], ids=["dead", "tiny"])
def test_dead_and_tiny_activations_give_numbers(x: Array) -> None:
    case = _conv()
    r = drawn(case)[1]
    assert np.isfinite(explained(case, x, r, exact=False)).all()
    assert np.isfinite(explained(case, x, 1e15 * r, exact=False)).all()


def test_purging_drops_what_contradicts_its_position() -> None:
    case = _conv()
    x, r = drawn(case)
    total = r.sum(axis=1, keepdims=True)
    kept = np.where(total > 0, np.maximum(r, 0), np.minimum(r, 0))
    close(explained(case, x, r, exact=True, purge=True), explained(case, x, kept, exact=True), EXACT)


# ------------------------------------------------------------------------------------------- whole models

NET = """<ir_version: 8, opset_import: ["" : 18]> g (float[{n},3,8,8] x) => (float[{n},5] y) {{
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)  r1 = Relu(c1)  p1 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r1)
    c2 = Conv<pads=[1,1,1,1]>(p1, w2)  r2 = Relu(c2)  c3 = Conv(p1, w3)  s = Add(r2, c3)
    t = Transpose<perm=[0,2,3,1]>(s)  m = MatMul(t, w4)  u = Transpose<perm=[0,3,1,2]>(m)
    k = Concat<axis=1>(u, p1)  c5 = Conv<pads=[1,1,1,1],group=2>(k, w5)  last = Relu(c5)
    g = GlobalAveragePool(last)  f = Flatten(g)  y = Gemm<transB=1>(f, w6, b6) }}"""
SHAPES = {
    "w1": (4, 3, 3, 3), "b1": (4,), "w2": (6, 4, 3, 3), "w3": (6, 4, 1, 1), "w4": (6, 4), "w5": (6, 4, 3, 3),
    "w6": (5, 6), "b6": (5,),
}  # fmt: skip


def net(batch: str = "N") -> onnx.ModelProto:
    """Branches, a transposed MatMul, groups; every relevance path of the method but normalisations."""
    model = onnx.parser.parse_model(NET.format(n=batch))
    draw = np.random.default_rng(3)
    for name, shape in SHAPES.items():
        array = draw.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def pictures(count: int = 3) -> Array:
    return np.random.default_rng(5).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"hostile": "top-2"}, {"hostile": (1, 2)}, {"purge": True}], ids=str)
@pytest.mark.parametrize("variant", ["general", "published"])
def test_a_batch_equals_its_samples_and_a_file_with_its_batch_fixed(options: dict[str, Any], variant: str) -> None:
    x = pictures()
    target = [0, 3, 4]
    explainer = Explainer(net(), "rsp", variant=variant, **options)
    whole = explainer(x, target=target).relevance["x"]
    for i, t in enumerate(target):
        close(explainer(x[i : i + 1], target=t).relevance["x"], whole[i : i + 1], ROUNDED)
    close(Explainer(net("1"), "rsp", variant=variant, **options)(x, target=target).relevance["x"], whole, ROUNDED)
    close(Explainer(net("3"), "rsp", variant=variant, **options)(x, target=target).relevance["x"], whole, ROUNDED)


@pytest.mark.parametrize("options", [{}, {"hostile": "top-2"}, {"purge": True}, {"variant": "published"}], ids=str)
def test_what_is_seeded_arrives_or_is_reported(options: dict[str, Any]) -> None:
    e = Explainer(net(), "rsp", backend="reference", **options)(pictures())
    assert (e.conservation <= EXACT).all()
    assert e.layer == "last"


def test_the_section_of_several_classes_sums_to_one_and_of_one_class_peaks_at_one() -> None:
    at = {"layer": "last", "at": "last", "backend": "reference"}
    seed = Explainer(net(), "rsp", hostile="top-2", **at)(pictures()).relevance["last"]
    live = np.abs(seed).reshape(3, -1).sum(axis=1) > 0
    close(np.maximum(seed, 0).reshape(3, -1).sum(axis=1)[live], np.full(live.sum(), 2.0), EXACT)
    close(_sums(seed)[live], np.ones(live.sum()), EXACT)
    alone = Explainer(net(), "rsp", **at)(pictures()).relevance["last"]
    close(np.abs(alone).reshape(3, -1).max(axis=1), np.abs(alone).reshape(3, -1).max(axis=1), EXACT)
    assert (alone.reshape(3, -1).max(axis=1) <= 1 + 1e-12).all()


def test_a_hostile_class_that_is_the_target_drops_out() -> None:
    x = pictures()
    best = Explainer(net(), "rsp")(x)
    named = int(best.target.index[0])
    against = Explainer(net(), "rsp", hostile=(named,))(x[:1])
    close(against.relevance["x"], best.relevance["x"][:1], ROUNDED)


@pytest.mark.parametrize("value", ["top", "3;4", (-1,), (True,), True, 1.5, "x", -2, (9,), 5, "top-5"])
def test_hostile_classes_that_mean_nothing_are_refused(value: Any) -> None:
    with pytest.raises(MethodError, match="hostile"):
        Explainer(net(), "rsp", hostile=value)(pictures())


def test_hostile_classes_may_be_written_in_several_ways() -> None:
    x = pictures()
    listed = Explainer(net(), "rsp", hostile=(1, 2))(x, target=0).relevance["x"]
    close(Explainer(net(), "rsp", hostile="1,2")(x, target=0).relevance["x"], listed, 0)
    close(Explainer(net(), "rsp", hostile=[2, 1, 1])(x, target=0).relevance["x"], listed, ROUNDED)
    close(Explainer(net(), "rsp", hostile=())(x).relevance["x"], Explainer(net(), "rsp")(x).relevance["x"], 0)
    alone = Explainer(net(), "rsp", hostile=3)(x, target=0).relevance["x"]
    close(Explainer(net(), "rsp", hostile="3")(x, target=0).relevance["x"], alone, 0)
    scores = Explainer(net(), "rsp")(x[:1]).outputs["y"][0]
    ranked = [int(c) for c in np.argsort(-scores)]
    top = Explainer(net(), "rsp", hostile="top-2")(x[:1]).relevance["x"]
    close(Explainer(net(), "rsp", hostile=ranked[1:3])(x[:1]).relevance["x"], top, ROUNDED)


@pytest.mark.parametrize("options", [{}, {"hostile": "top-2"}, {"variant": "published"}], ids=str)
@pytest.mark.parametrize("x", [np.zeros((1, 3, 8, 8)), np.full((1, 3, 8, 8), 0.5)], ids=["black", "grey"])
def test_a_constant_picture_gives_numbers(x: Array, options: dict[str, Any]) -> None:
    e = Explainer(net(), "rsp", **options)(x.astype(np.float32))
    assert np.isfinite(e.relevance["x"]).all()


def test_equal_scores_give_no_section() -> None:
    model = net()
    for tensor in model.graph.initializer:
        if tensor.name in ("w6", "b6"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(SHAPES[tensor.name], np.float32), tensor.name))
    e = Explainer(model, "rsp", hostile="top-2")(pictures())
    close(e.relevance["x"], np.zeros_like(pictures()), 0)


def test_a_converted_file_gives_what_explain_gives() -> None:
    import onnxruntime

    for model, x in ((net(), pictures()), (net("1"), pictures(1))):
        explainer = Explainer(model, "rsp", hostile="top-2")
        session = onnxruntime.InferenceSession(
            explainer.convert().SerializeToString(), providers=["CPUExecutionProvider"]
        )
        close(session.run(["x_relevance"], {"x": x})[0], explainer(x).relevance["x"], 1e-6)


def test_a_gate_whose_units_are_all_dead_makes_no_nan() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,8,4,4] x) => (float[N,3] y)
    <float[1] off = {-100.0}, int64[2] flat = {0, -1}> {
        p = GlobalAveragePool (x)
        a = Conv (p, down)
        b = Add (a, off)
        c = Relu (b)
        d = Conv (c, up)
        e = Sigmoid (d)
        f = Mul (x, e)
        g = Conv (f, w)
        h = Relu (g)
        i = GlobalAveragePool (h)
        j = Reshape (i, flat)
        y = MatMul (j, head)
    }"""
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(text)
    for name, shape in {"down": (24, 8, 1, 1), "up": (8, 24, 1, 1), "w": (4, 8, 3, 3), "head": (4, 3)}.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    found = Explainer(proto, "rsp")(rng.random((2, 8, 4, 4), np.float32))
    assert np.isfinite(found.relevance["x"]).all()
    assert found.conservation.max() < 1e-5
