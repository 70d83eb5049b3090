"""The edge of a device, on the stand-in: its libraries, callers' arrays, types of sessions, and errors in one sentence each."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
pytest.importorskip("numba", reason="numba (extra [test]) is not installed")

from gpu_stand_in import FakeGpu, stand_in
from onnx_explain_kernels import launch

from onnx_explain.backends.gpu import Device, GpuRunner, OutOfMemory, foreign, is_on_device, libraries, running
from onnx_explain.backends.gpu import device as opening
from onnx_explain.backends.gpu.arrays import borrowed
from onnx_explain.backends.gpu.device import OnDevice, _failed
from onnx_explain.backends.onnx import Session
from onnx_explain.errors import InputError, ModelError, RuntimeMissing

FLOAT = np.dtype(np.float32)


@pytest.fixture
def gpu(tmp_path: Path) -> tuple[FakeGpu, Device]:
    return stand_in(tmp_path)


def model_of(
    nodes: list[onnx.NodeProto], kind: int, *outputs: str, tensors: tuple[onnx.TensorProto, ...] = ()
) -> bytes:
    """A model of one input x."""
    ends = [helper.make_tensor_value_info(n, kind, None) for n in ("x", *outputs)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(made.SerializeToString())


# ---- libraries


class FakeOrt:
    """An onnxruntime that says what was asked of it."""

    cuda_version = "13.0"

    def __init__(self, *providers: str) -> None:
        self.providers, self.asked = providers, list[dict[str, Any]]()

    def get_available_providers(self) -> list[str]:
        return list(self.providers)

    def set_default_logger_severity(self, severity: int) -> None:
        self.severity = severity

    def preload_dlls(self, **options: Any) -> None:
        self.asked.append(options)
        print("Failed to load libcurand.so.10: no such file")
        print("Please follow the instructions.")


def test_libraries_of_cuda_are_loaded_from_wherever_the_wheels_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for root, part, name in (
        ("lean", "cu13", "libcudart.so.13"),
        ("nvidia", "cu13", "libcublasLt.so.13"),
        ("nvidia", "cudnn", "libcudnn.so.9"),
        ("nvidia", "cu12", "libcublasLt.so.12"),
        ("second", "cu13", "libcublasLt.so.13"),
    ):
        (tmp_path / root / part / "lib").mkdir(parents=True)
        (tmp_path / root / part / "lib" / name).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / n) for n in ("none", "lean", "nvidia", "second")])
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: spec)  # type: ignore[attr-defined]
    ort = FakeOrt("CUDAExecutionProvider")
    assert libraries.loaded(ort) == "libcurand.so.10 cannot be loaded"
    assert ort.asked == [
        {"cudnn": False, "directory": str(tmp_path / "nvidia" / "cu13" / "lib")},
        {"cuda": False, "directory": str(tmp_path / "nvidia" / "cudnn" / "lib")},
        {},
    ]
    assert ort.severity == 4
    assert capsys.readouterr().out == "", "a library prints nothing"


def test_an_onnxruntime_without_the_provider_is_told_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    for both, told in ((True, "overwrite each other"), (False, "has no CUDA provider")):
        monkeypatch.setattr(libraries, "_installed", lambda name, both=both: both or name == "onnxruntime")
        with pytest.raises(RuntimeMissing, match=told):
            libraries.loaded(FakeOrt("CPUExecutionProvider"))


# ---- callers' arrays


def lying(array: np.ndarray, **more: Any) -> Any:
    """A caller's array, which says that it lies on a device."""
    interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, True), "version": 3}
    return SimpleNamespace(__cuda_array_interface__={**interface, **more}, held=array)


class Differentiable:
    """As torch: a tensor that takes gradients raises, and not AttributeError."""

    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.\nUse var.detach().")


class Exported:
    """Through DLPack alone."""

    def __init__(self, array: np.ndarray, kind: int = 2) -> None:
        self.array, self.kind = array, kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, stream: int | None = None, max_version: tuple[int, int] | None = None) -> Any:
        return self.array.__dlpack__()


def test_a_callers_array_is_read_where_it_lies(gpu: tuple[FakeGpu, Device]) -> None:
    _, device = gpu
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for given in (lying(array), lying(array, stream=7), lying(array, mask=None), Exported(array), Exported(array, 13)):
        assert is_on_device(given)
        found = foreign("x", given, (None, 3), FLOAT)
        assert (found.shape, found.dtype) == ((2, 3), FLOAT)
        np.testing.assert_array_equal(device.fetch(found), array)
        own = device.upload(np.zeros_like(array))
        device.put(own, found)
        np.testing.assert_array_equal(device.fetch(own), array)
    half = array.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(device.fetch(foreign("x", lying(half), (None, 3), half.dtype)), half)
    np.testing.assert_array_equal(device.fetch(borrowed(device.upload(half))), half)
    assert not is_on_device(Exported(array, 1))
    assert not is_on_device(array.tolist())


def test_a_callers_array_that_cannot_be_read_is_told_in_one_sentence(gpu: tuple[FakeGpu, Device]) -> None:
    fake, device = gpu
    array = np.zeros((2, 3), np.float32)
    for bad, told in (
        (lying(array, mask=object()), "masked"),
        (lying(array, strides=(4, 8)), "strided"),
        (lying(array, typestr="<bad"), "cannot be read"),
        (Exported(array.T), "contiguous"),
    ):
        with pytest.raises(InputError, match=told):
            borrowed(bad)
    with pytest.raises(InputError, match=r"Differentiable cannot be read: .*requires grad; pass a dense copy\.$"):
        is_on_device(Differentiable())
    place = device.upload(array)
    for where, told in ((1, "lies on GPU 1, but GPU 0 explains"), (None, "lies on no GPU")):
        fake.ordinals[array.ctypes.data] = where
        with pytest.raises(InputError, match=told):
            device.put(place, borrowed(lying(array)))
        with pytest.raises(InputError, match=told):
            device.fetch(borrowed(lying(array)))


# ---- sessions


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.bool_, np.int64])
def test_every_type_goes_in_and_comes_out(gpu: tuple[FakeGpu, Device], dtype: Any) -> None:
    _, device = gpu
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    session = device.session(model_of([helper.make_node("Identity", ["x"], ["y"])], kind, "y"))
    for shape in ((2, 3), (), (0, 3)):
        x = np.ones(shape, dtype)
        place = device.upload(x)
        kept = device.upload(np.zeros(shape, dtype))
        for gives in ({"y": None}, {"y": kept}):
            found = session.run({"x": place}, gives)["y"]
            assert (found.shape, found.dtype) == (x.shape, x.dtype)
            np.testing.assert_array_equal(device.fetch(found), x)


def test_outputs_come_under_their_names_in_any_order(gpu: tuple[FakeGpu, Device]) -> None:
    _, device = gpu
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    session = device.session(model_of(nodes, onnx.TensorProto.FLOAT, "a", "b"))
    x = device.upload(np.full(2, -3.0, np.float32))
    kept = device.upload(np.zeros(2, np.float32))
    found = session.run({"x": x}, {"b": kept, "a": None})
    assert list(device.fetch(found["a"])) == [3, 3]
    assert list(device.fetch(found["b"])) == [3, 3]
    found = session.run({"x": device.upload(np.full(2, 2.0, np.float32))}, {"b": None, "a": kept})
    assert list(device.fetch(found["a"])) == [-2, -2]
    assert list(device.fetch(found["b"])) == [2, 2]


def test_an_output_that_nothing_computes_is_its_constant(gpu: tuple[FakeGpu, Device]) -> None:
    held = numpy_helper.from_array(np.array([3, 5], np.int64), "k")
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    made = onnx.load_from_string(model_of(nodes, onnx.TensorProto.FLOAT, "y", tensors=(held,)))
    made.graph.output.append(helper.make_tensor_value_info("k", onnx.TensorProto.INT64, [2]))
    made.graph.output.append(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None))
    _, device = gpu
    runner = GpuRunner(ir.from_proto(made), device)
    x = np.arange(3, dtype=np.float32)
    want, got = Session(made.SerializeToString()).run({"x": x}), runner.run({"x": x})
    there = runner.run_on_device({"x": x})
    for name in ("y", "k", "x"):
        np.testing.assert_array_equal(got[name], want[name])
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(device.fetch(there[name]), want[name])


def test_the_stream_keeps_order_with_the_default_one(gpu: tuple[FakeGpu, Device]) -> None:
    """There ONNX Runtime copies by itself what a node on the CPU reads or makes."""
    fake, device = gpu
    assert fake.streams[device.stream] == 0


# ---- errors


@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; file=cuda_allocator.cc ; line=48 ; expr=cudaMalloc(&p, size);",
        "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 1073741824",
        "Available memory of 1024 is smaller than requested bytes of 4096",
        "CUBLAS failure 3: the resource allocation failed ; GPU=0 ; hostname=h ; expr=cublasCreate(&handle);",
        "CUDNN failure 2003: CUDNN_STATUS_ALLOC_FAILED ; GPU=0",
        "CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
    ],
)
def test_memory_that_runs_out_is_recognised_by_what_each_library_says(said: str) -> None:
    found = _failed("run the model", RuntimeError(said), "The device has no memory left for this batch")
    assert isinstance(found, OutOfMemory)
    assert str(found) == "The device has no memory left for this batch; use a smaller batch_size."


def test_another_failure_is_no_lack_of_memory() -> None:
    for said in ("CUDA failure 700: an illegal memory access was encountered", "Invalid rank for input: x"):
        assert not isinstance(_failed("run the model", RuntimeError(said), "full"), OutOfMemory)


def test_an_error_of_the_driver_is_one_sentence_wherever_it_shows(gpu: tuple[FakeGpu, Device]) -> None:
    fake, device = gpu
    x = np.ones(4, np.float32)
    place = device.upload(x)
    for fails, work in (
        ("cuMemcpyHtoDAsync_v2", lambda: device.put(place, x)),
        ("cuMemcpyDtoHAsync_v2", lambda: device.fetch(place)),
        ("cuStreamSynchronize", lambda: device.fetch(place)),
        ("cuMemcpyDtoDAsync_v2", lambda: device.put(device.upload(x), place)),
        ("cuCtxSynchronize", device.wait),
        ("cuMemAlloc_v2", lambda: device.allocate(4)),
    ):
        fake.fails = "" if fails == "cuMemcpyDtoDAsync_v2" else fails
        if fails == "cuMemcpyDtoDAsync_v2":
            other = device.upload(x)
            fake.fails = fails
            work = lambda other=other: device.put(other, place)  # noqa: E731
        with pytest.raises(ModelError, match=rf"^The GPU failed: {fails} failed: an illegal .* started again\.$"):
            work()


def test_what_was_taken_is_given_back_when_memory_runs_out_halfway(gpu: tuple[FakeGpu, Device]) -> None:
    fake, device = gpu
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    there = OnDevice(device, model_of(nodes, onnx.TensorProto.FLOAT, "y"))
    before = dict(fake.memory)
    fake.limit = 64
    with pytest.raises(OutOfMemory):
        there.run({"x": np.ones(2, np.float32), "z": np.ones(999, np.float32)})
    assert fake.memory == before


def test_a_session_that_cannot_start_takes_no_other_provider(
    capsys: pytest.CaptureFixture[str], gpu: tuple[FakeGpu, Device]
) -> None:
    _, device = gpu
    with pytest.raises(ModelError, match="cannot load the model"):
        device.session(model_of([helper.make_node("NoSuchOperator", ["x"], ["y"])], onnx.TensorProto.FLOAT, "y"))
    assert capsys.readouterr().out == ""


def test_explainers_share_the_code_on_a_device_and_each_has_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, there = stand_in(tmp_path)
    made: list[int] = []
    monkeypatch.setattr(launch, "Kernels", lambda device: made.append(device) or there.kernels)
    monkeypatch.setattr(opening, "loaded", lambda ort: "")
    monkeypatch.setattr(opening, "OnDevice", lambda device, model: SimpleNamespace(run=lambda feeds: {}))
    opening._kernels.cache_clear()
    try:
        devices = [Device.open(), Device.open("ieee")]
    finally:
        opening._kernels.cache_clear()
    assert made == [0]
    assert devices[0].kernels is devices[1].kernels
    assert devices[0].stream != devices[1].stream
    assert fake.streams[devices[0].stream] == 0


def test_a_provider_that_does_not_start_is_told_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(device: Device, model: bytes) -> None:
        raise ModelError("ONNX Runtime took the CPU in its place.")

    monkeypatch.setattr(opening, "_kernels", lambda ordinal: stand_in(tmp_path)[1].kernels)
    monkeypatch.setattr(opening, "OnDevice", fails)
    for missing, told in (
        ("libcublas.so.13 cannot be loaded", "libcublas.so.13 cannot"),
        ("", "took the CPU in its place"),
    ):
        monkeypatch.setattr(opening, "loaded", lambda ort, missing=missing: missing)
        with pytest.raises(RuntimeMissing, match=rf"CUDA provider does not work \(.*{told}.*\); install"):
            Device.open()


def test_a_part_that_no_message_holds_is_refused_in_one_sentence() -> None:
    def full() -> bytes:
        raise ValueError("Failed to serialize proto")

    with pytest.raises(ModelError, match=r'more weights than one ONNX message holds \(2 GB\).*backend="onnx"'):
        running._serialised(SimpleNamespace(SerializeToString=full))  # type: ignore[arg-type]


def test_threads_that_share_a_runner_take_turns(gpu: tuple[FakeGpu, Device], monkeypatch: pytest.MonkeyPatch) -> None:
    _, device = gpu
    made = onnx.load_from_string(model_of([helper.make_node("Neg", ["x"], ["y"])], onnx.TensorProto.FLOAT, "y"))
    runner, put = GpuRunner(ir.from_proto(made), device), Device.put

    def slowly(self: Device, tensor: Any, given: Any) -> None:
        put(self, tensor, given)
        time.sleep(0.02)

    monkeypatch.setattr(Device, "put", slowly)
    found: dict[int, Any] = {}

    def work(k: int) -> None:
        found[k] = runner.run({"x": np.full(3, k, np.float32)})["y"]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {k: list(y) for k, y in found.items()} == {k: [-k] * 3 for k in range(4)}
