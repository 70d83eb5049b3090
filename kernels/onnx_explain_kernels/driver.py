"""The dozen functions of libcuda that launching takes, through ctypes: no CUDA toolkit, no C compiler, no framework.

The device's primary context is used, which ONNX Runtime, cupy and numba share. `Driver(library)` takes a stand-in for tests.
"""

from __future__ import annotations

import ctypes as ct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from onnx_explain_kernels.errors import DeviceError

_MAX_DYNAMIC_SHARED, _MAJOR, _MINOR = 8, 75, 76
_THREAD_LOCAL = 1  # a capture forbids what cannot be captured in this thread alone
_PACKED, _PACKED_SIZE, _END = 1, 2, 0  # CU_LAUNCH_PARAM_BUFFER_POINTER, …_SIZE, …_END


def load_library() -> Any:
    """libcuda.

    Raises:
        DeviceError: no NVIDIA driver is installed.

    """
    for name in ("libcuda.so.1", "libcuda.so", "nvcuda.dll"):
        try:
            return ct.CDLL(name)
        except OSError:
            continue
    raise DeviceError("No NVIDIA driver: libcuda is not on this machine. Run on the CPU, or install the driver.")


class Driver:
    """One device through libcuda."""

    def __init__(self, library: Any = None, device: int = 0) -> None:
        """Take the device's primary context.

        Raises:
            DeviceError: no driver, no such device, or an error of the driver.

        """
        self.library = library if library is not None else load_library()
        self.call("cuInit", 0)
        self._device = ct.c_int()
        self.call("cuDeviceGet", ct.byref(self._device), device)
        self._context = ct.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ct.byref(self._context), self._device)
        self._current = threading.local()

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            DeviceError: it is missing, or returned an error.

        """
        function: Callable[..., int] | None = getattr(self.library, name, None)
        if function is None:
            raise DeviceError(f"The NVIDIA driver has no {name}: it is too old.")
        code = function(*arguments)
        if code:
            raise DeviceError(f"{name} failed: {self._said(code)} (CUDA error {code}).")

    def _said(self, code: int) -> str:
        text = ct.c_char_p()
        self.library.cuGetErrorString(code, ct.byref(text))
        return (text.value or b"unknown error").decode()

    def enter(self) -> None:
        """Make the context current in this thread."""
        if not getattr(self._current, "entered", False):
            self.call("cuCtxSetCurrent", self._context)
            self._current.entered = True

    def attribute(self, number: int) -> int:
        """A device attribute by its number in cuda.h."""
        value = ct.c_int()
        self.call("cuDeviceGetAttribute", ct.byref(value), number, self._device)
        return value.value

    @property
    def capability(self) -> int:
        """Compute capability as major·10 + minor."""
        return self.attribute(_MAJOR) * 10 + self.attribute(_MINOR)

    def name(self) -> str:
        """What the device is called."""
        text = ct.create_string_buffer(256)
        self.call("cuDeviceGetName", text, 256, self._device)
        return text.value.decode()

    def load(self, code: bytes, name: str, shared: int) -> ct.c_void_p:
        """Load machine code and return its kernel; modules stay loaded as long as the process."""
        self.enter()
        module, function = ct.c_void_p(), ct.c_void_p()
        self.call("cuModuleLoadData", ct.byref(module), code)
        self.call("cuModuleGetFunction", ct.byref(function), module, name.encode())
        if shared > 48 * 1024:
            self.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared)
        return function

    def launch(
        self, function: ct.c_void_p, grid: tuple[int, int, int], threads: int, shared: int, stream: int, packed: bytes
    ) -> None:
        """Put a kernel with its packed parameters on a stream."""
        self.enter()
        buffer, size = ct.create_string_buffer(packed, len(packed)), ct.c_size_t(len(packed))
        extra = (ct.c_void_p * 5)(_PACKED, ct.addressof(buffer), _PACKED_SIZE, ct.addressof(size), _END)
        dimensions = [ct.c_uint(v) for v in (*grid, threads, 1, 1, shared)]
        self.call("cuLaunchKernel", function, *dimensions, ct.c_void_p(stream), None, extra)

    # ---- graphs: what is launched once more and again, put on the stream by one call

    def capture(self, work: Callable[[], None], stream: int) -> ct.c_void_p:
        """What `work` puts on a stream (not the default one), as a graph that `replay` runs; nothing runs meanwhile.

        Raises:
            DeviceError: `work` did what cannot be captured, or the driver is too old.

        """
        self.enter()
        self.call("cuStreamBeginCapture_v2", ct.c_void_p(stream), _THREAD_LOCAL)
        graph, executable = ct.c_void_p(), ct.c_void_p()
        try:
            work()
        except BaseException:
            with suppress(DeviceError):  # of an invalidated capture
                self.call("cuStreamEndCapture", ct.c_void_p(stream), ct.byref(graph))
            if graph.value:
                self.call("cuGraphDestroy", graph)
            raise
        self.call("cuStreamEndCapture", ct.c_void_p(stream), ct.byref(graph))
        try:
            self.call("cuGraphInstantiateWithFlags", ct.byref(executable), graph, ct.c_ulonglong(0))
        finally:
            self.call("cuGraphDestroy", graph)
        return executable

    def replay(self, graph: ct.c_void_p, stream: int) -> None:
        """Put a captured graph on a stream."""
        self.enter()
        self.call("cuGraphLaunch", graph, ct.c_void_p(stream))

    def release(self, graph: ct.c_void_p) -> None:
        """Give a captured graph back."""
        self.call("cuGraphExecDestroy", graph)

    # ---- memory, streams and clocks: for callers without a framework of their own (benchmark, tests)

    def allocate(self, size: int) -> int:
        """Device memory of so many bytes, 256-byte aligned."""
        self.enter()
        pointer = ct.c_uint64()
        self.call("cuMemAlloc_v2", ct.byref(pointer), ct.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self.call("cuMemFree_v2", ct.c_uint64(pointer))

    def free_memory(self) -> int:
        """Bytes that nobody has taken, of all processes."""
        self.enter()
        free, total = ct.c_size_t(), ct.c_size_t()
        self.call("cuMemGetInfo_v2", ct.byref(free), ct.byref(total))
        return free.value

    def upload(self, pointer: int, address: int, size: int) -> None:
        """Copy host bytes to the device, and wait."""
        self.call("cuMemcpyHtoD_v2", ct.c_uint64(pointer), ct.c_void_p(address), ct.c_size_t(size))

    def download(self, address: int, pointer: int, size: int) -> None:
        """Copy device bytes to the host, and wait."""
        self.call("cuMemcpyDtoH_v2", ct.c_void_p(address), ct.c_uint64(pointer), ct.c_size_t(size))

    def copy(self, to: int, pointer: int, size: int, stream: int = 0) -> None:
        """Copy on the device, on a stream."""
        self.call("cuMemcpyDtoDAsync_v2", ct.c_uint64(to), ct.c_uint64(pointer), ct.c_size_t(size), ct.c_void_p(stream))

    def fill(self, pointer: int, word: int, count: int) -> None:
        """Write a 32-bit pattern `count` times."""
        self.call("cuMemsetD32_v2", ct.c_uint64(pointer), ct.c_uint(word), ct.c_size_t(count))

    def synchronize(self) -> None:
        """Wait for everything on the device; an error of an earlier kernel shows here."""
        self.call("cuCtxSynchronize")

    def milliseconds(self, work: Callable[[], None], stream: int = 0) -> float:
        """How long the device takes for what `work` puts on the stream, between two events."""
        self.enter()
        events = [ct.c_void_p(), ct.c_void_p()]
        for event in events:
            self.call("cuEventCreate", ct.byref(event), 0)
        self.call("cuEventRecord", events[0], ct.c_void_p(stream))
        work()
        self.call("cuEventRecord", events[1], ct.c_void_p(stream))
        self.call("cuEventSynchronize", events[1])
        passed = ct.c_float()
        self.call("cuEventElapsedTime", ct.byref(passed), events[0], events[1])
        for event in events:
            self.call("cuEventDestroy_v2", event)
        return passed.value
