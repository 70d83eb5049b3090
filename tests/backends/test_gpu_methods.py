"""Every method on the GPU backend gives what the CPU backend gives; kernels are their NumPy reference (`gpu_reference`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("", "backends", "kernels"))

from drawn_graphs import draw
from gpu_reference import ReferenceKernels, reference_device
from onnx import helper, numpy_helper, parser
from ready import ready

from onnx_explain import METHODS, Explainer
from onnx_explain.backends.gpu import Device, plan_of
from onnx_explain.errors import ExplainError

# one of each kind of lowering: what is left out differs from these in what is made of the result, or runs forward alone
SWEPT = (
    "lrp-zero", "lrp-gamma", "lrp-epsilon-alpha2-beta1-flat", "lrp-epsilon-gamma-box", "excitation-backprop", "deep-taylor",
    "grad-cam", "deeplift", "guided-backprop", "expected-gradients", "pattern-attribution", "rap", "rsp",
)  # fmt: skip
LIMIT = 1e-5  # of the largest relevance: float32 on both sides
CANCELS = {"rap": 5e-5}  # Z⁻ is a difference: either side is that far from float64 (docs/kernels.md)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReferenceKernels:
    """`device="cuda"` is the stand-in, dense layers by kernels too."""
    made, device = reference_device(tmp_path, dense="kernel")
    monkeypatch.setattr(Device, "open", staticmethod(lambda precision="tf32", ordinal=0: device))
    return made


def network(dtype: Any = np.float32) -> onnx.ModelProto:
    """Convolutions one behind the other and side by side, both pools, a signed input, a product of rows and a head."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2, 7, 6] x) => (float[N, 3] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        r1 = Relu(c1)
        p1 = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(r1)
        c2 = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(p1, w2, b2)
        r2 = Relu(c2)
        c3 = Conv<pads = [1, 1, 1, 1], group = 4>(r2, w3)
        c4 = Conv(r2, w4, b4)
        s = Add(c3, c4)
        a = AveragePool<kernel_shape = [1, 2]>(s)
        c5 = Conv(a, w5, b5)
        r5 = Relu(c5)
        g = GlobalAveragePool(r5)
        f = Flatten(g)
        y = Gemm<transB = 1>(f, w6, b6)
    }"""
    model = parser.parse_model(text)
    rng = np.random.default_rng(11)
    sizes = {
        "w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (4, 1, 3, 3), "w4": (4, 4, 1, 1), "b4": (4,),
        "w5": (5, 4, 1, 2), "b5": (5,), "w6": (3, 5), "b6": (3,),
    }  # fmt: skip
    for name, shape in sizes.items():
        scale = (2.0 / max(np.prod(shape[1:]), 1)) ** 0.5 if len(shape) > 1 else 0.1
        model.graph.initializer.append(
            numpy_helper.from_array((scale * rng.standard_normal(shape)).astype(dtype), name)
        )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model


def pictures(count: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).standard_normal((count, 2, 7, 6)).astype(np.float32)


def assert_alike(model: Any, method: str, x: Any, target: Any = None, *, limit: float = LIMIT, **options: Any) -> None:
    """The same relevance, outputs and absorbed amounts as on the CPU."""
    want = Explainer(model, method, threads=1, **options)(x, target)
    got = Explainer(model, method, device="cuda", precision="ieee", **options)(x, target)
    limit = max(limit, CANCELS.get(method, 0.0))
    for name, r in want.relevance.items():
        found = got.relevance[name]
        assert (found.shape, found.dtype) == (r.shape, r.dtype)
        np.testing.assert_allclose(found, r, rtol=0, atol=limit * max(float(np.abs(r).max()), 1e-12))
    for name, y in want.outputs.items():
        np.testing.assert_allclose(got.outputs[name], y, rtol=0, atol=limit * max(float(np.abs(y).max()), 1e-12))
    moved = np.abs(want.absorbed).max() + np.abs(want.target.score).max()
    np.testing.assert_allclose(got.absorbed, want.absorbed, rtol=0, atol=10 * limit * moved)


@pytest.mark.parametrize("method", SWEPT)
def test_a_batch_of_three_is_explained_as_on_the_cpu(kernels: ReferenceKernels, method: str) -> None:
    assert method in METHODS
    model, x = network(), pictures()
    assert_alike(model, method, x, **ready(method, model, x))
    assert kernels.made, "kernels ran"


def test_a_half_precision_model_runs_through_the_kernels(kernels: ReferenceKernels) -> None:
    """It is computed in float32, as everywhere (`ir/halves`); what comes back is float16."""
    assert_alike(network(np.float16), "rap", pictures().astype(np.float16), 1, limit=2e-3)
    assert {k.plan.specialisation.kernel for k in kernels.made} >= {"conv_relevance", "conv_denominator", "max_pool"}


def test_a_double_precision_model_runs_as_onnx(kernels: ReferenceKernels) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (double[N, 4] x) => (double[N, 2] y) {
        c = MatMul(x, w)
        r = Relu(c)
        y = MatMul(r, v)
    }"""
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in (("w", (4, 5)), ("v", (5, 2))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape), name))
    for method in ("lrp-epsilon", "rap"):
        assert_alike(model, method, rng.standard_normal((3, 4)), 1, limit=1e-9)
    assert not kernels.made


# seeds that once went wrong: a box per sample on rows of samples, a folded output, a scalar input, an open length
@pytest.mark.parametrize(
    ("seed", "method"),
    [(123, "rap"), (311, "gradient"), (408, "deeplift"), (445, "excitation-backprop"), (230, "gradient")],
)
def test_a_drawn_graph_is_explained_or_refused_as_on_the_cpu(kernels: ReferenceKernels, seed: int, method: str) -> None:
    drawn = draw(seed)
    model, x = drawn.model(np.float32), drawn.values(np.float32)
    try:
        Explainer(model, method, threads=1)(x, 0)
    except ExplainError as refusal:
        with pytest.raises(type(refusal)) as told:
            Explainer(model, method, device="cuda")(x, 0)
        assert str(told.value) == str(refusal)
        return
    assert_alike(model, method, x, 0, limit=1e-4)


def test_what_is_reshaped_between_two_kernels_keeps_its_open_batch(kernels: ReferenceKernels) -> None:
    """Shapes of a session whose Reshape takes its shape from another one follow from what the graph declares."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2, 4, 4] x) => (float[N, 4, 4, 4] y)
    <int64[5] apart = {-1, 2, 2, 4, 4}, int64[4] joined = {-1, 4, 4, 4}> {
        c = Conv<pads = [1, 1, 1, 1]>(x, w)
        r = Relu(c)
        a = Reshape(r, apart)
        t = Transpose<perm = [0, 2, 1, 3, 4]>(a)
        s = Reshape(t, joined)
        y = Conv<group = 2, pads = [1, 1, 1, 1]>(s, v)
    }"""
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    for name, shape in (("w", (4, 2, 3, 3)), ("v", (4, 2, 3, 3))):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    assert_alike(model, "lrp-epsilon", rng.standard_normal((3, 2, 4, 4)).astype(np.float32), (1, 2, 0))
    assert len(kernels.made) == 2


def hourglass() -> onnx.ModelProto:
    """Down and up again by ConvTranspose with pads and groups, a skip beside it, a convolution as the head."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2, 6, 6] x) => (float[N, 3, 1, 1] y) {
        c1 = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        r1 = Relu(c1)
        p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r1)
        u1 = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1], group = 2>(p, w2, b2)
        r2 = Relu(u1)
        j = Concat<axis = 1>(r1, r2)
        u2 = ConvTranspose(j, w3)
        r3 = Relu(u2)
        c4 = Conv(r3, w4, b4)
        y = GlobalAveragePool(c4)
    }"""
    model, rng = parser.parse_model(text), np.random.default_rng(2)
    sizes = {
        "w1": (4, 2, 3, 3), "b1": (4,), "w2": (4, 2, 3, 3), "b2": (4,), "w3": (8, 3, 2, 1), "w4": (3, 3, 1, 1), "b4": (3,),
    }  # fmt: skip
    for name, shape in sizes.items():
        array = (0.5 * rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(("method", "adjoints"), [("gradient", 2), ("lrp-epsilon-plus", 0), ("rap", 0)])
def test_transposed_convolutions_and_a_head_of_one_are_explained(
    kernels: ReferenceKernels, method: str, adjoints: int
) -> None:
    """The adjoint of a ConvTranspose is a pass forward; RAP's first propagation through a convolution is a kernel, too."""
    model = hourglass()
    x = np.random.default_rng(1).standard_normal((2, 2, 6, 6)).astype(np.float32)
    assert_alike(model, method, x, 1)
    plan = plan_of(Explainer(model, method).build().model)
    told = {one.node: one.runs for one in plan.lines if one.operator in ("Conv", "ConvTranspose")}
    assert sum(runs.startswith("x") for runs in told.values()) == adjoints
    assert sum(runs == "ONNX" for runs in told.values()) == 2 - adjoints
    assert (plan.share == 1.0) is (adjoints == 2)


def test_rows_of_a_sample_keep_the_box_of_their_sample(kernels: ReferenceKernels) -> None:
    """[N, T, D]: kernels take each row for a sample, the box is the whole sample's."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4, 6] x) => (float[N, 5] y) {
        c = MatMul(x, w)
        r = Relu(c)
        y = ReduceMean<axes = [1], keepdims = 0>(r)
    }"""
    model, rng = parser.parse_model(text), np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((6, 5)).astype(np.float32), "w"))
    x = rng.random((2, 4, 6), np.float32)
    assert_alike(model, "rap", x, 1)
    assert_alike(model, "deep-taylor", x, 1, low=(0.0, 0.1, 0.0, 0.2), high=(1.0, 1.0, 1.5, 1.0))
