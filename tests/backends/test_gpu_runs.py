"""The GPU backend without a GPU: the stand-in of libcuda and ONNX Runtime's CPU provider against the CPU backend."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when they are first imported
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
pytest.importorskip("numba", reason="numba (extra [test]) is not installed")
sys.path.insert(0, str(Path(__file__).parent))

from gpu_stand_in import FakeGpu, stand_in
from onnx import TensorProto, helper, numpy_helper

from onnx_explain import Explainer, Explainers
from onnx_explain.backends.gpu import Device, GpuRunner, Tensor
from onnx_explain.backends.gpu.segments import KernelStep
from onnx_explain.errors import InputError, MethodError, RuntimeMissing

METHODS = ("gradient", "lrp-epsilon", "lrp-epsilon-plus", "rap")


def network(*, batch: int | None = None, signed: bool = False) -> onnx.ModelProto:
    """Padded and strided convolutions, a depthwise one, both pools, a sum, a dense head; `signed`: a layer reads what is
    behind no Relu.
    """
    rng = np.random.default_rng(7)
    weights: dict[str, np.ndarray] = {
        "w1": rng.standard_normal((4, 2, 3, 3)),
        "b1": rng.standard_normal(4),
        "w2": rng.standard_normal((6, 4, 3, 3)) * 0.3,
        "b2": rng.standard_normal(6) * 0.1,
        "w3": rng.standard_normal((6, 1, 3, 3)) * 0.5,
        "b3": rng.standard_normal(6) * 0.1,
        "w4": rng.standard_normal((3, 6)),
        "b4": rng.standard_normal(3),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], name="one", pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"], name="one/relu"),
        node("MaxPool", ["r1"], ["p1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "w2", "b2"], ["c2"], name="two", pads=[1, 1, 1, 1], strides=[2, 1]),
        *([] if signed else [node("Relu", ["c2"], ["r2"], name="two/relu")]),
        node("Conv", ["c2" if signed else "r2", "w3", "b3"], ["c3"], name="three", pads=[1, 1, 1, 1], group=6),
        node("Add", ["c3", "c2" if signed else "r2"], ["s"], name="sum"),
        node("Relu", ["s"], ["r3"], name="three/relu"),
        node("GlobalAveragePool", ["r3"], ["g"], name="mean"),
        node("Flatten", ["g"], ["f"], name="flat"),
        node("Gemm", ["f", "w4", "b4"], ["y"], name="head", transB=1),
    ]
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    first = batch if batch is not None else "N"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [first, 2, 8, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [first, 3])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pictures(count: int = 2) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 2, 8, 6)).astype(np.float32)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """`device="cuda"` is the stand-in."""
    fake, device = stand_in(tmp_path)
    monkeypatch.setattr(Device, "open", staticmethod(lambda precision="tf32", ordinal=0: device))
    yield fake


def close(got: np.ndarray, want: np.ndarray, limit: float = 1e-5) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= limit * max(float(np.abs(want).max()), 1e-12)


@pytest.mark.parametrize("signed", [False, True], ids=["rectified", "signed"])
@pytest.mark.parametrize("method", METHODS)
def test_relevance_on_the_device_is_that_of_the_cpu(gpu: FakeGpu, method: str, signed: bool) -> None:
    model, x = network(signed=signed), pictures()
    want = Explainer(model, method)(x, target=[0, 2])
    got = Explainer(model, method, device="cuda", precision="ieee")(x, target=[0, 2])
    close(got.relevance["x"], want.relevance["x"])
    close(got.outputs["y"], want.outputs["y"])
    scale = np.abs(want.target.score).max()
    np.testing.assert_allclose(got.absorbed, want.absorbed, atol=2e-5 * scale)
    assert gpu.launches, "kernels ran"
    assert got.notes == ()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("lrp-alpha-beta", {}),
        ("lrp-gamma", {}),
        ("rap", {"variant": "published"}),
        ("deconvnet", {}),
        ("input-x-gradient", {}),
        ("rsp", {}),
    ],
)
def test_methods_with_other_rules_are_those_of_the_cpu_too(gpu: FakeGpu, method: str, options: dict[str, Any]) -> None:
    model, x = network(), pictures()
    want = Explainer(model, method, **options)(x, target=1)
    got = Explainer(model, method, device="cuda", precision="ieee", **options)(x, target=1)
    close(got.relevance["x"], want.relevance["x"])


def test_several_methods_and_targets_share_one_run(gpu: FakeGpu) -> None:
    model, x = network(), pictures()
    methods = ["lrp-epsilon", "gradient"]
    want = Explainers(model, methods)(x, [0, 1])
    got = Explainers(model, methods, device="cuda", precision="ieee")(x, [0, 1])
    for row, other in zip(got, want):
        for one, two in zip(row, other):
            close(one.relevance["x"], two.relevance["x"])


def test_a_second_run_uses_the_same_places_and_no_more_memory(gpu: FakeGpu) -> None:
    explain = Explainer(network(), "lrp-epsilon", device="cuda", precision="ieee")
    first = explain(pictures())
    held, launched = len(gpu.memory), len(gpu.launches)
    second = explain(pictures())
    assert len(gpu.memory) == held
    assert [one.packed for one in gpu.launches[:launched]] == [one.packed for one in gpu.launches[launched:]]
    np.testing.assert_array_equal(first.relevance["x"], second.relevance["x"])


def test_nothing_comes_back_to_the_host_before_the_end(gpu: FakeGpu) -> None:
    Explainer(network(), "rap", device="cuda", precision="ieee")(pictures())
    downloads = [i for i, name in enumerate(gpu.calls) if name == "cuMemcpyDtoHAsync_v2"]
    launches = [i for i, name in enumerate(gpu.calls) if name == "cuLaunchKernel"]
    assert downloads
    assert min(downloads) > max(launches)


def test_between_relu_layers_a_kernel_divides_for_the_one_below(gpu: FakeGpu) -> None:
    explain = Explainer(network(), "lrp-epsilon", device="cuda", precision="ieee")
    runner = explain._prepared.runner(explain.build().model)
    assert isinstance(runner, GpuRunner)
    forms = {s.name: s.call.launches[0].form for s in runner.steps.steps if isinstance(s, KernelStep)}
    pool = next(f for n, f in forms.items() if "/pool/" in n)
    assert pool["below"] == "x"
    assert next(f for n, f in forms.items() if "/one/" in n)["quotient"] == "given"


def test_a_batch_that_does_not_fit_is_halved_and_said(gpu: FakeGpu) -> None:
    model, x = network(), pictures(3)
    want = Explainer(model, "gradient")(x, target=0)
    explain = Explainer(model, "gradient", device="cuda", precision="ieee")
    runner = explain._prepared
    whole = GpuRunner(explain.build().model, runner.device)  # type: ignore[arg-type]
    whole.run({"x": x[:1]})
    gpu.limit = int(whole.workspace * 1.5)
    got = explain(x, target=0)
    close(got.relevance["x"], want.relevance["x"])
    assert len(got.notes) == 1
    assert "does not hold 3 samples at once; 1 ran at a time" in got.notes[0]


class Foreign:
    """A caller's device array."""

    def __init__(self, array: np.ndarray, strides: tuple[int, ...] | None = None) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "version": 3,
            "strides": strides,
        }


def test_a_device_array_is_explained_and_the_result_stays_on_the_device(gpu: FakeGpu) -> None:
    model, x = network(), pictures()
    want = Explainer(model, "lrp-epsilon")(x, target=1).relevance["x"]
    explain = Explainer(model, "lrp-epsilon", device="cuda", precision="ieee")
    explained = explain(Foreign(x), target=1)  # type: ignore[arg-type]
    close(explained.relevance["x"], want)
    gpu.calls.clear()
    found = explain.on_device(Foreign(x), target=1)["x"]
    assert "cuMemcpyDtoHAsync_v2" not in gpu.calls
    assert isinstance(found, Tensor)
    assert found.__cuda_array_interface__["shape"] == want.shape
    device = explain._prepared.device
    assert device is not None
    close(device.fetch(found), want)


def test_a_wrong_device_array_is_told_in_one_sentence(gpu: FakeGpu) -> None:
    explain = Explainer(network(), "gradient", device="cuda")
    for bad, told in (
        (Foreign(pictures().astype(np.float64)), "must be of type float32"),
        (Foreign(pictures()[:, :, :4]), "has the shape"),
        (Foreign(pictures(), strides=(4, 8, 16, 32)), "strided"),
    ):
        with pytest.raises(InputError, match=told):
            explain(bad)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=told):
            explain.on_device(bad)


def test_plain_onnx_on_the_device_stays_available(gpu: FakeGpu) -> None:
    model, x = network(), pictures()
    want = Explainer(model, "rap")(x, target=0)
    got = Explainer(model, "rap", device="cuda", backend="onnx")(x, target=0)
    close(got.relevance["x"], want.relevance["x"], 1e-6)
    assert not gpu.launches


def test_a_failing_driver_is_told_in_one_sentence(gpu: FakeGpu) -> None:
    explain = Explainer(network(), "gradient", device="cuda")
    gpu.fails = "cuLaunchKernel"
    from onnx_explain.errors import ModelError

    with pytest.raises(ModelError, match="an illegal memory access"):
        explain(pictures())


def test_settings_that_exclude_each_other_are_refused() -> None:
    model = network()
    for settings, told in (
        ({"device": "gpu"}, "device must be"),
        ({"precision": "int8"}, "precision must be"),
        ({"backend": "kernels"}, "runs on device='cuda' alone"),
        ({"backend": "reference", "device": "cuda"}, "runs on device='cpu' alone"),
    ):
        with pytest.raises(MethodError, match=told):
            Explainer(model, "gradient", **settings)
    with pytest.raises(MethodError, match="stay on a GPU"):
        Explainer(model, "gradient").on_device(pictures())


def test_without_a_gpu_cuda_is_refused_and_auto_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(precision: str = "tf32", ordinal: int = 0) -> Device:
        raise RuntimeMissing('There is no usable GPU: no NVIDIA driver is installed; use device="cpu".')

    monkeypatch.setattr(Device, "open", staticmethod(missing))
    with pytest.raises(RuntimeMissing, match="no usable GPU"):
        Explainer(network(), "gradient", device="cuda")
    explanation = Explainer(network(), "gradient", device="auto")(pictures())
    assert explanation.notes == ("This ran on the CPU. There is no usable GPU: no NVIDIA driver is installed.",)


@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon-plus"])
def test_a_computed_target_is_explained_as_on_the_cpu(gpu: FakeGpu, method: str) -> None:
    x, target = pictures(), "y[:,2] - y.where(y < 9).max()/2"
    wanted = Explainer(network(), method, threads=1)(x, target=target)
    explainer = Explainer(network(), method, device="cuda")
    found = explainer(x, target=target)
    close(found.relevance["x"], wanted.relevance["x"])
    np.testing.assert_allclose(found.target.score, wanted.target.score, rtol=1e-5)
    assert found.target.sure is not None
    assert found.target.sure.all()
    there = explainer.on_device(x, target=target)["x"]
    assert there.__cuda_array_interface__["shape"] == x.shape


def test_kernels_that_follow_one_another_are_replayed_as_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run launches, the second captures and replays, the third replays; what changes is read from its place."""
    fake, device = stand_in(tmp_path, graphs=True)
    monkeypatch.setattr(Device, "open", staticmethod(lambda precision="tf32", ordinal=0: device))
    model, x = network(), pictures()
    explain = Explainer(model, "lrp-epsilon", device="cuda", precision="ieee")
    plain = Explainer(model, "lrp-epsilon")
    runs = []
    for k in range(3):
        direct, fake.replays = fake.calls.count("cuLaunchKernel"), []
        got = explain(x * (k + 1), target=k)
        close(got.relevance["x"], plain(x * (k + 1), target=k).relevance["x"])
        runs.append((fake.calls.count("cuLaunchKernel") - direct, len(fake.replays)))
    groups = explain._prepared.runner(explain.build().model)._groups
    assert runs[0][0] > runs[0][1] == 0
    assert runs[1] == (runs[0][0], runs[1][1])
    assert 1 <= runs[1][1] <= len(groups)
    assert runs[2] == (0, runs[1][1]), "the third run launches graphs alone"
    assert got.notes == ()


def test_a_driver_that_captures_nothing_runs_without_graphs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, device = stand_in(tmp_path, graphs=True)
    monkeypatch.setattr(Device, "open", staticmethod(lambda precision="tf32", ordinal=0: device))
    explain = Explainer(network(), "gradient", device="cuda", precision="ieee")
    want = explain(pictures())
    fake.fails = "cuStreamBeginCapture_v2"
    got = explain(pictures())
    np.testing.assert_array_equal(got.relevance["x"], want.relevance["x"])
    assert any("CUDA graphs are off: cuStreamBeginCapture_v2 failed" in note for note in got.notes)
    assert explain(pictures()).notes == got.notes


def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **choices: Any) -> FakeGpu:
    fake, device = stand_in(tmp_path, **choices)
    monkeypatch.setattr(Device, "open", staticmethod(lambda precision="tf32", ordinal=0: device))
    return fake


def calls_of(explain: Explainer) -> dict[str, list[Any]]:
    """The kernel calls of each forward node, in order."""
    runner = explain._prepared.runner(explain.build().model)
    assert isinstance(runner, GpuRunner)
    found: dict[str, list[Any]] = {}
    for step in runner.steps.steps:
        if isinstance(step, KernelStep):
            found.setdefault(step.name.split("/")[1], []).append(step.call)
    return found


# of the largest relevance; the rounding of the operands is emulated, the forward pass is float32
@pytest.mark.parametrize(
    ("precision", "method", "limit"),
    [
        ("tf32", "lrp-epsilon-plus", 1e-3),
        ("tf32", "rap", 1e-3),
        ("tf32x3", "rap", 1e-5),
        ("bf16", "lrp-epsilon", 1e-2),
        ("fp16", "gradient", 1e-3),
    ],
)
def test_a_whole_method_keeps_the_error_of_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, method: str, limit: float
) -> None:
    opened(monkeypatch, tmp_path, precision=precision)
    model, x = network(), pictures()
    want = Explainer(model, method)(x, target=1).relevance["x"]
    got = Explainer(model, method, device="cuda", precision=precision)(x, target=1).relevance["x"]
    close(got, want, limit)
    if precision != "tf32x3":
        assert np.abs(got - want).max() > 1e-6 * np.abs(want).max(), "nothing was rounded"


def test_denominators_are_kernels_and_a_quotient_of_one_reader_is_made_with_them(gpu: FakeGpu) -> None:
    def end(explain: Explainer, node: str) -> str:
        return str(calls_of(explain)[node][0].launches[0].form.get("end"))

    settings: dict[str, Any] = {"device": "cuda", "precision": "ieee"}
    alone = Explainer(network(), "lrp-epsilon-plus", **settings)
    assert end(alone, "three") == "quotient"
    (_, share) = calls_of(alone)["three"]
    assert share.launches[0].form["quotient"] == "given"
    rap = calls_of(Explainer(network(), "rap", **settings))["three"]
    assert rap[0].launches[0].form["divided"]
    assert rap[0].launches[0].form["source"] == "x", "one product where products are exact"


def test_two_products_make_rap_pairs_where_products_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(monkeypatch, tmp_path, precision="tf32")
    for signed, source in ((False, "twin"), (True, "magnitudes")):
        explain = Explainer(network(signed=signed), "rap", device="cuda")
        assert calls_of(explain)["three"][0].launches[0].form["source"] == source


def test_the_shift_of_rap_is_taken_off_by_who_reads_the_map(gpu: FakeGpu) -> None:
    calls = calls_of(Explainer(network(), "rap", device="cuda", precision="ieee"))
    assert calls["two"][-1].deferred
    assert calls["pool"][0].launches[0].form["shifted"]
    assert not calls["three"][-1].deferred, "a sum lies below"


def test_the_mask_of_a_clip_is_the_end_of_the_kernel_above(gpu: FakeGpu) -> None:
    model = network()
    clip = helper.make_node("Clip", ["c2", "low", "high"], ["r2"], name="two/relu")
    model.graph.node[4].CopyFrom(clip)
    bounds = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("low", 0.05), ("high", 0.3))]
    model.graph.initializer.extend(bounds)
    model.graph.node[6].input[1] = "c3"  # the sum no longer reads it
    x = pictures()
    want = Explainer(model, "gradient")(x, target=1).relevance["x"]
    explain = Explainer(model, "gradient", device="cuda", precision="ieee")
    close(explain(x, target=1).relevance["x"], want)
    assert calls_of(explain)["three"][-1].launches[0].form["numerator"] == "inside"


def perceptron() -> onnx.ModelProto:
    """Gemm both ways round and MatMul; one layer reads what is behind no Relu."""
    rng = np.random.default_rng(2)
    sizes = {"w1": (7, 12), "b1": (7,), "w2": (7, 9), "b2": (1, 9), "w3": (9, 5), "w4": (5, 3), "b4": (3,)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in sizes.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["c1"], name="one", transB=1),
        helper.make_node("Relu", ["c1"], ["r1"], name="one/relu"),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["c2"], name="two"),
        helper.make_node("MatMul", ["c2", "w3"], ["c3"], name="three"),
        helper.make_node("Relu", ["c3"], ["r3"], name="three/relu"),
        helper.make_node("Gemm", ["r3", "w4", "b4"], ["y"], name="head"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 12])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])]
    graph = helper.make_graph(nodes, "dense", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("dense", ["onnx", "kernel"])
@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon", "lrp-alpha-beta", "rap"])
def test_dense_layers_run_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, dense: str) -> None:
    fake = opened(monkeypatch, tmp_path, dense=dense)
    model, x = perceptron(), np.random.default_rng(1).standard_normal((3, 12)).astype(np.float32)
    want = Explainer(model, method)(x, target=[0, 1, 2])
    got = Explainer(model, method, device="cuda", precision="ieee")(x, target=[0, 1, 2])
    close(got.relevance["x"], want.relevance["x"], 5e-5)
    np.testing.assert_allclose(got.absorbed, want.absorbed, atol=1e-4 * np.abs(want.target.score).max())
    assert bool(fake.launches) == (dense == "kernel")


def test_rows_of_a_product_are_more_than_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[N, T, D] through MatMul: every row of every sample."""
    opened(monkeypatch, tmp_path, dense="kernel")
    rng = np.random.default_rng(4)
    w = numpy_helper.from_array(rng.standard_normal((6, 5)).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["c"], name="rows"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("ReduceMean", ["r"], ["y"], name="mean", axes=[1], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph(nodes, "rows", inputs, outputs, [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = rng.standard_normal((2, 4, 6)).astype(np.float32)
    for method in ("lrp-epsilon", "lrp-epsilon-plus", "rap"):
        want = Explainer(model, method)(x, target=2).relevance["x"]
        close(Explainer(model, method, device="cuda", precision="ieee")(x, target=2).relevance["x"], want, 5e-5)


def test_what_the_environment_says_of_the_device_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_explain.backends.gpu.device import _chosen

    monkeypatch.delenv("ONNX_EXPLAIN_GPU_DENSE", raising=False)
    monkeypatch.setenv("ONNX_EXPLAIN_GPU_GRAPHS", "1")
    assert _chosen() == {"dense": "onnx", "graphs": True}
    monkeypatch.setenv("ONNX_EXPLAIN_GPU_DENSE", "cublas")
    with pytest.raises(MethodError, match="must be onnx or kernel, not 'cublas'"):
        _chosen()
