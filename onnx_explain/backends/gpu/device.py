"""A CUDA device as this backend uses it: memory, one stream, ONNX Runtime sessions whose inputs and outputs stay there.

Kernels and sessions run on one stream in the order in which they are put there. What stands in for the driver and for the
CUDA provider (`provider="cpu"`, tests) is all that differs without a GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_explain.backends.gpu.arrays import Tensor, borrowed
from onnx_explain.backends.onnx import Arrays, _told, opened, runtime
from onnx_explain.errors import InputError, MethodError, ModelError, RuntimeMissing

Precision = Literal["tf32", "tf32x3", "ieee", "bf16", "fp16"]
Dense = Literal["onnx", "kernel"]
PRECISIONS: tuple[Precision, ...] = ("tf32", "tf32x3", "ieee", "bf16", "fp16")
DENSE_VARIABLE = "ONNX_EXPLAIN_GPU_DENSE"
GRAPHS_VARIABLE = "ONNX_EXPLAIN_GPU_GRAPHS"
_ROUNDED = ("tf32", "bf16", "fp16")
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


def _chosen() -> dict[str, Any]:
    """What the environment says of dense layers and CUDA graphs; MethodError for another word."""
    found = {}
    for variable, words in ((DENSE_VARIABLE, ("onnx", "kernel")), (GRAPHS_VARIABLE, ("0", "1"))):
        found[variable] = os.environ.get(variable) or words[0]
        if found[variable] not in words:
            raise MethodError(f"{variable} must be {' or '.join(words)}, not {found[variable]!r}.")
    return {"dense": found[DENSE_VARIABLE], "graphs": found[GRAPHS_VARIABLE] == "1"}


class OutOfMemory(ModelError):
    """The device's memory does not hold this batch."""


@dataclass(frozen=True)
class Device:
    """An open device. `kernels`: its `onnx_explain_kernels.launch.Kernels`; `provider`: ``cuda``, or ``cpu`` in tests.

    `dense`: what runs dense layers, ``onnx`` (cuBLAS through ONNX Runtime) or ``kernel``; `graphs`: whether kernels that follow
    one another are captured in CUDA graphs. The environment sets both (`DENSE_VARIABLE`, `GRAPHS_VARIABLE`).
    """

    kernels: Any
    stream: int
    provider: str = "cuda"
    ordinal: int = 0
    precision: Precision = "tf32"
    dense: Dense = "onnx"
    graphs: bool = False

    @property
    def driver(self) -> Any:
        """The CUDA driver behind the kernels."""
        return self.kernels.driver

    @staticmethod
    def open(precision: Precision = "tf32", ordinal: int = 0) -> Device:
        """The first GPU; RuntimeMissing where there is none, or ONNX Runtime has no CUDA provider."""
        try:
            from onnx_explain_kernels.errors import KernelError
            from onnx_explain_kernels.launch import Kernels
        except ImportError as error:
            raise RuntimeMissing(
                'The GPU kernels are not installed: `pip install "onnx-explain[gpu]"`, or use device="cpu".'
            ) from error
        if "CUDAExecutionProvider" not in runtime().get_available_providers():
            raise RuntimeMissing(
                "The installed ONNX Runtime has no CUDA provider: "
                '`pip uninstall onnxruntime` and `pip install "onnx-explain[gpu]"`, or use device="cpu".'
            )
        try:
            device = Device.of(Kernels(device=ordinal), precision=precision, ordinal=ordinal, **_chosen())
            device.session(_smallest())  # the provider's libraries are looked for here
            return device
        except KernelError as error:
            raise RuntimeMissing(f'There is no usable GPU: {str(error).rstrip(".")}; use device="cpu".') from error

    @staticmethod
    def of(
        kernels: Any,
        *,
        provider: str = "cuda",
        precision: Precision = "tf32",
        ordinal: int = 0,
        dense: Dense = "onnx",
        graphs: bool = False,
    ) -> Device:
        """A device from opened kernels, with a stream of its own."""
        stream = ctypes.c_void_p()
        kernels.driver.enter()
        kernels.driver.call("cuStreamCreate", ctypes.byref(stream), 1)  # 1: does not wait for the default stream
        return Device(kernels, int(stream.value or 0), provider, ordinal, precision, dense, graphs)

    # -- memory

    def allocate(self, size: int) -> int:
        """Device memory; OutOfMemory."""
        from onnx_explain_kernels.errors import DeviceError

        try:
            return int(self.driver.allocate(max(size, 1)))
        except DeviceError as error:
            if f"(CUDA error {_OUT_OF_MEMORY})" in str(error):
                raise OutOfMemory(
                    f"The device has no {size / 2**20:.0f} MiB left for this batch; use a smaller batch_size."
                ) from error
            raise ModelError(f"The GPU failed: {str(error).rstrip('.')}.") from error

    def put(self, tensor: Tensor, given: Any) -> None:
        """Copy an array, from the host or on the device, into a tensor's place."""
        if isinstance(given, Tensor):
            if given.pointer != tensor.pointer and tensor.size:
                self.driver.copy(tensor.pointer, given.pointer, tensor.size, self.stream)
            return
        flat = np.ascontiguousarray(given)
        if flat.nbytes:
            self.driver.upload(tensor.pointer, int(flat.ctypes.data), flat.nbytes)

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy of a host array in memory of its own."""
        flat = np.ascontiguousarray(array)
        tensor = Tensor(self.allocate(flat.nbytes), flat.shape, flat.dtype)
        self.put(tensor, flat)
        return tensor

    def fetch(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy on the host; waits for the device."""
        array = np.empty(tensor.shape, tensor.dtype)
        if array.nbytes:
            self.driver.download(int(array.ctypes.data), tensor.pointer, array.nbytes)
        return array

    def wait(self) -> None:
        """Until everything put on the device is done."""
        from onnx_explain_kernels.errors import DeviceError

        try:
            self.driver.synchronize()
        except DeviceError as error:
            raise ModelError(f"The GPU failed: {str(error).rstrip('.')}.") from error

    # -- sessions

    def session(self, model: ir.Model | bytes) -> DeviceSession:
        """A model in ONNX Runtime on this device's stream."""
        return DeviceSession(self, model)

    @property
    def providers(self) -> list[Any]:
        """What ONNX Runtime is asked for."""
        if self.provider == "cpu":
            return ["CPUExecutionProvider"]
        options = {
            "device_id": str(self.ordinal),
            "user_compute_stream": str(self.stream),
            "use_tf32": "1" if self.precision in _ROUNDED else "0",
        }
        return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


class DeviceSession:
    """A model whose inputs and outputs are device memory; runs are put on the device's stream."""

    def __init__(self, device: Device, model: ir.Model | bytes) -> None:
        ort = runtime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._device = device
        try:
            self._session = opened(model, options, device.providers)
        except Exception as error:
            raise _failed("load the model", error) from error
        if device.provider == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise RuntimeMissing(
                "ONNX Runtime could not start its CUDA provider (a CUDA or cuDNN library is missing); install "
                '"onnx-explain[gpu]", or use device="cpu".'
            )
        self._run_options = ort.RunOptions()
        if device.provider == "cuda":
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, takes: Mapping[str, Tensor], gives: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Outputs by name: in the place given for each, or in memory of ONNX Runtime's where that is None."""
        device, binding = self._device, self._session.io_binding()
        for name, t in takes.items():
            binding.bind_input(name, device.provider, device.ordinal, t.dtype, list(t.shape), t.pointer)
        for name, place in gives.items():
            if place is None:
                binding.bind_output(name, device.provider, device.ordinal)
            else:
                shape = list(place.shape)
                binding.bind_output(name, device.provider, device.ordinal, place.dtype, shape, place.pointer)
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise _failed("run the model on this input", error) from error
        outs = dict(zip(gives, binding.get_outputs()))
        return {n: place if place is not None else _owned(outs[n]) for n, place in gives.items()}


def _owned(value: Any) -> Tensor:
    """A tensor that ONNX Runtime allocated."""
    kinds = {"tensor(float)": "f4", "tensor(double)": "f8", "tensor(float16)": "f2", "tensor(bool)": "?"}
    kind = str(value.data_type())
    name = kinds.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
    return Tensor(int(value.data_ptr()), tuple(value.shape()), np.dtype(name), value)


def _failed(what: str, error: Exception) -> ModelError:
    text = str(error)
    if "allocate" in text or "out of memory" in text or "CUDNN_STATUS_ALLOC_FAILED" in text:
        return OutOfMemory("The device has no memory left for this batch; use a smaller batch_size.")
    return ModelError(f"ONNX Runtime cannot {what}: {_told(error)}.")


class OnDevice:
    """A whole model of plain ONNX on the device, behind host arrays: `backend="onnx"` there."""

    def __init__(self, device: Device, model: ir.Model | bytes) -> None:
        self._device, self._session = device, device.session(model)
        self.outputs = self._session.outputs

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; `outputs` picks some."""
        device = self._device
        takes = {n: device.upload(np.asarray(a)) for n, a in feeds.items()}
        try:
            found = self._session.run(takes, dict.fromkeys(outputs or self.outputs))
            device.wait()
            return {n: device.fetch(t) for n, t in found.items()}
        finally:
            for tensor in takes.values():
                device.driver.free(tensor.pointer)


def _smallest() -> bytes:
    """A model of one node."""
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    opset = onnx.helper.make_opsetid("", 18)
    return bytes(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString())


def foreign(name: str, given: Any, shape: Sequence[int | None] | None, dtype: np.dtype[Any]) -> Tensor:
    """A caller's device array, checked against what the model takes; InputError."""
    tensor = borrowed(given)
    if tensor.dtype != dtype:
        raise InputError(f"Input {name!r} must be of type {dtype}, not {tensor.dtype}.")
    if shape is not None and (
        len(shape) != len(tensor.shape) or any(s not in (None, t) for s, t in zip(shape, tensor.shape))
    ):
        wanted = ["N" if s is None else s for s in shape]
        raise InputError(f"Input {name!r} has the shape {list(tensor.shape)}, but the model takes {wanted}.")
    return tensor
