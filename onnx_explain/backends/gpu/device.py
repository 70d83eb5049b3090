"""A CUDA device as this backend uses it: memory, one stream, ONNX Runtime sessions whose inputs and outputs stay there.

Kernels, copies and sessions run on one stream in the order in which they are put there. It is a stream that waits for the
default one and is waited for: there ONNX Runtime copies, by itself, what a node on the CPU reads or makes. What stands in for
the driver and for the CUDA provider (`provider="cpu"`, tests) is all that differs without a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_explain.backends.gpu.arrays import Tensor, borrowed, owned
from onnx_explain.backends.gpu.libraries import PROVIDER, loaded
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


@lru_cache
def _kernels(ordinal: int) -> Any:
    """The kernels of a GPU, for all explainers of this process: code that is loaded stays loaded."""
    from onnx_explain_kernels.launch import Kernels

    return Kernels(device=ordinal)


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
        except ImportError as error:
            raise RuntimeMissing(
                'The GPU kernels are not installed: `pip install "onnx-explain[gpu]"`, or use device="cpu".'
            ) from error
        missing = loaded(runtime())
        try:
            device = Device.of(_kernels(ordinal), precision=precision, ordinal=ordinal, **_chosen())
            OnDevice(device, _smallest()).run({"x": np.ones(1, np.float32)})  # its libraries, and code for this GPU
            return device
        except KernelError as error:
            raise RuntimeMissing(f'There is no usable GPU: {str(error).rstrip(".")}; use device="cpu".') from error
        except ModelError as error:
            why = missing or str(error).rstrip(".")
            raise RuntimeMissing(
                f'ONNX Runtime\'s CUDA provider does not work ({why}); install "onnx-explain[gpu]", or use device="cpu".'
            ) from error

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
        return Device(kernels, kernels.driver.stream(), provider, ordinal, precision, dense, graphs)

    # -- memory

    def allocate(self, size: int) -> int:
        """Device memory; OutOfMemory."""
        with _told_once(f"The device has no {size / 2**20:.0f} MiB left for this batch"):
            return int(self.driver.allocate(max(size, 1)))

    def put(self, tensor: Tensor, given: Any) -> None:
        """Copy an array, from the host or on this device, into a tensor's place."""
        if isinstance(given, Tensor):
            if given.pointer != tensor.pointer and tensor.size:
                self._check(given)
                with _told_once():
                    self.driver.copy(tensor.pointer, given.pointer, tensor.size, self.stream)
            return
        flat = np.asarray(given, order="C")
        if flat.nbytes:
            with _told_once():
                self.driver.upload(tensor.pointer, int(flat.ctypes.data), flat.nbytes, self.stream)

    def upload(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy of a host array in memory of its own."""
        flat = np.asarray(array, order="C")
        tensor = Tensor(self.allocate(flat.nbytes), flat.shape, flat.dtype)
        self.put(tensor, flat)
        return tensor

    def fetch(self, tensor: Tensor) -> npt.NDArray[Any]:
        """A copy on the host; waits for what is on this device's stream."""
        array = np.empty(tensor.shape, tensor.dtype)
        if array.nbytes:
            self._check(tensor)
            with _told_once():
                self.driver.download(int(array.ctypes.data), tensor.pointer, array.nbytes, self.stream)
        return array

    def wait(self) -> None:
        """Until everything put on the device is done, by whomever."""
        with _told_once():
            self.driver.synchronize()

    def _check(self, given: Tensor) -> None:
        """InputError where memory lies elsewhere."""
        where = self.driver.ordinal_of(given.pointer)
        if where != self.ordinal:
            place = "on no GPU" if where is None else f"on GPU {where}"
            raise InputError(f"The device array lies {place}, but GPU {self.ordinal} explains; pass a copy there.")

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
            "arena_extend_strategy": "kSameAsRequested",  # by default it doubles, and holds up to twice what is needed
        }
        return [(PROVIDER, options), "CPUExecutionProvider"]


class DeviceSession:
    """A model whose inputs and outputs are device memory; runs are put on the device's stream."""

    def __init__(self, device: Device, model: ir.Model | bytes) -> None:
        ort = runtime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1  # the CPU computes shapes alone; else each session has threads of its own
        self._device = device
        try:
            self._session = opened(model, options, device.providers)
        except Exception as error:
            raise _failed("load the model", error, "The device has no memory left for the model's weights") from error
        if device.provider == "cuda" and PROVIDER not in self._session.get_providers():
            raise ModelError("A library of CUDA is missing: ONNX Runtime took the CPU in its place.")
        self._run_options = ort.RunOptions()
        if device.provider == "cuda":
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, takes: Mapping[str, Tensor], gives: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
        """Outputs by name: in the place given for each, or in memory of ONNX Runtime's where that is None."""
        device, binding = self._device, self._session.io_binding()
        where = (device.provider, device.ordinal)
        for name, t in takes.items():
            binding.bind_input(name, *where, _number(t.dtype), list(t.shape), t.pointer)
        for name, place in gives.items():
            if place is None:
                binding.bind_output(name, *where)
            else:
                binding.bind_output(name, *where, _number(place.dtype), list(place.shape), place.pointer)
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:
            raise _failed(
                "run the model on this input", error, "The device has no memory left for this batch"
            ) from error
        outs = dict(zip(gives, binding.get_outputs()))
        return {n: place if place is not None else owned(outs[n]) for n, place in gives.items()}


def _number(dtype: np.dtype[Any]) -> int:
    """ONNX's number of a type: ONNX Runtime knows no NumPy type of bfloat16."""
    return int(onnx.helper.np_dtype_to_tensor_dtype(dtype))


# "CUDA failure 2: out of memory", the arena's "Failed to allocate memory for requested buffer", cuBLAS's "the resource allocation
# failed" and cuDNN's CUDNN_STATUS_ALLOC_FAILED and …_DEVICE_ALLOCATION_FAILED
_FULL = re.compile(r"out of memory|failed to allocate|alloc(ation)?[_ ]failed|available memory of", re.IGNORECASE)


def _failed(what: str, error: Exception, full: str) -> ModelError:
    if _FULL.search(str(error)):
        return OutOfMemory(f"{full}; use a smaller batch_size.")
    return ModelError(f"ONNX Runtime cannot {what}: {_told(error)}.")


@contextmanager
def _told_once(full: str = "The device has no memory left for this batch") -> Iterator[None]:
    """The driver's errors as those of this library."""
    from onnx_explain_kernels.errors import DeviceError

    try:
        yield
    except DeviceError as error:
        if error.code == _OUT_OF_MEMORY:
            raise OutOfMemory(f"{full}; use a smaller batch_size.") from error
        raise ModelError(f"The GPU failed: {str(error).rstrip('.')}.") from error


class OnDevice:
    """A whole model of plain ONNX on the device, behind host arrays: `backend="onnx"` there."""

    def __init__(self, device: Device, model: ir.Model | bytes) -> None:
        self._device, self._session = device, device.session(model)
        self.outputs = self._session.outputs

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; `outputs` picks some."""
        device, takes = self._device, dict[str, Tensor]()
        try:
            for name, array in feeds.items():
                takes[name] = device.upload(np.asarray(array))
            found = self._session.run(takes, dict.fromkeys(outputs or self.outputs))
            return {n: device.fetch(t) for n, t in found.items()}
        finally:
            for tensor in takes.values():
                device.driver.drop(tensor.pointer)


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
