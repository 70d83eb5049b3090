"""Which node runs by which kernel: read off the plan, without a GPU, triton or numba."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_explain import Explainer
from onnx_explain.backends.gpu import GpuPlan, plan_of

TOOLS = Path(__file__).parents[2] / "tools"
METHODS = ("lrp-epsilon", "lrp-epsilon-plus", "gradient", "rap")


def planned(model: onnx.ModelProto, method: str, samples: int = 32) -> GpuPlan:
    explain = Explainer(model, method)
    return plan_of(explain.build().model, samples=samples)


@pytest.fixture(scope="module", params=["vgg16", "resnet50", "mobilenet_v2", "densenet121"])
def network(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Every layer's geometry as published, with a quarter of the channels: plans read shapes alone."""
    sys.path.insert(0, str(TOOLS))
    import make_models

    model: onnx.ModelProto = make_models.build(str(request.param), width=0.25)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_kernels_do_the_convolutions_and_pools(network: onnx.ModelProto, method: str) -> None:
    plan = planned(network, method)
    assert plan.redistributed > 1e7
    assert plan.share >= 0.95
    assert plan.operations == plan.redistributed + plan.denominators + plan.remaining
    # what is divided by is counted: W⁺x, of RAP |W⁻|x too; with ε, and in the first layer, it is the forward pass's own
    low, high = (0.8, 1.0) if method in ("lrp-epsilon-plus", "rap") else (0.0, 0.0)
    assert low <= plan.denominators / plan.redistributed <= high
    convolutions = [one for one in plan.lines if one.operator == "Conv"]
    assert len(convolutions) >= 13
    assert all(one.operations > 0 for one in convolutions)


def conv_net(size: tuple[int, ...], *, constant: bool = True) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    ones = [1] * len(size)
    w = rng.standard_normal((4, 2, *[3] * len(size))).astype(np.float32)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2, *size])]
    if not constant:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, list(w.shape)))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=ones + ones),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["y"], name="flat"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])]
    graph = helper.make_graph(nodes, "net", inputs, outputs, [numpy_helper.from_array(w, "w")] if constant else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_denominators_that_onnx_runtime_runs_count_against_the_share() -> None:
    """Three spatial axes have no kernel, neither back nor forth."""
    plan = planned(conv_net((6, 7)), "lrp-epsilon-plus")
    assert (plan.remaining, plan.share) == (0, 1.0)
    assert plan.denominators > 0
    three = planned(conv_net((4, 5, 3)), "lrp-epsilon-plus")
    assert three.denominators == 0
    assert three.remaining > 0
    assert three.share < 0.05


@pytest.mark.parametrize(("size", "kernel"), [((9,), True), ((6, 7), True), ((4, 5, 3), False)])
def test_one_and_two_spatial_axes_have_kernels_and_three_run_as_onnx(size: tuple[int, ...], kernel: bool) -> None:
    plan = planned(conv_net(size), "lrp-epsilon")
    conv = next(one for one in plan.lines if one.operator == "Conv")
    assert conv.by_kernel is kernel
    assert (plan.share == 1.0) is kernel
    assert plan.redistributed > 0


def test_a_weight_that_is_an_input_runs_as_onnx() -> None:
    explain = Explainer(conv_net((6, 7), constant=False), "gradient", wrt=["x"])
    plan = plan_of(explain.build().model)
    assert not next(one for one in plan.lines if one.operator == "Conv").by_kernel


def test_the_tool_prints_the_table() -> None:
    sys.path.insert(0, str(TOOLS))
    import plan_gpu

    lines = plan_gpu.table(planned(conv_net((6, 7)), "lrp-epsilon"))
    assert any("Conv" in line and "ratio single x" in line for line in lines)
    assert "100.0% of" in plan_gpu.summary(planned(conv_net((6, 7)), "lrp-epsilon"))


def test_planning_and_importing_load_neither_compiler() -> None:
    code = (
        "import sys, onnx_explain, onnx_explain.backends.gpu\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('onnx_explain_kernels', 'triton', 'numba')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
