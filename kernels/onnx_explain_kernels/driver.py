"""The two dozen functions of libcuda that launching takes, through ctypes: no CUDA toolkit, no C compiler, no framework.

The device's primary context is used, which ONNX Runtime, cupy and numba share. `Driver(library)` takes a stand-in for tests.
Every copy and fill is put on a stream, behind what it reads and before what reads it: the plain forms of libcuda keep to the
default stream, which a stream of another kind does not wait for, and may return before a copy to the device has landed.
"""

from __future__ import annotations

import ctypes as ct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from onnx_explain_kernels.errors import DeviceError

_MAX_DYNAMIC_SHARED, _MAJOR, _MINOR = 8, 75, 76
_OF_POINTER = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_ORDERED, _APART = 0, 1  # a stream that waits for the default stream and is waited for, and one that does not
_RELAXED = 2  # a capture forbids nothing: memory may be given back meanwhile, by this thread too
_FORKED, _STICKY = (3,), (700, 702, 710, 714, 715, 716, 717, 718, 719)
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


_CAPTURING = threading.Lock()  # nobody may wait for a context while one of its streams is captured


class Driver:
    """One device through libcuda."""

    def __init__(self, library: Any = None, device: int = 0) -> None:
        """Take the device's primary context.

        Raises:
            DeviceError: no driver, no such device, or an error of the driver.

        """
        self.library = library if library is not None else load_library()
        self.lost = False  # whether an error has ended what this process can do on the device
        self.call("cuInit", 0)
        self._device = ct.c_int()
        self.call("cuDeviceGet", ct.byref(self._device), device)
        self._context = ct.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ct.byref(self._context), self._device)
        self._functions: dict[tuple[bytes, str], ct.c_void_p] = {}

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
            self.lost = self.lost or code in _STICKY
            raise DeviceError(f"{name} failed: {self._said(code)} (CUDA error {code}){_advice(code)}.", code)

    def _said(self, code: int) -> str:
        text = ct.c_char_p()
        self.library.cuGetErrorString(code, ct.byref(text))
        return (text.value or b"unknown error").decode()

    def enter(self) -> None:
        """Make the context current in this thread; each time, since whoever else runs in it may have made its own so."""
        self.call("cuCtxSetCurrent", self._context)

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
        """Load machine code, once, and return its kernel; modules stay loaded as long as the process."""
        known = self._functions.get((code, name))
        if known is not None:
            return known
        self.enter()
        module, function = ct.c_void_p(), ct.c_void_p()
        self.call("cuModuleLoadData", ct.byref(module), code)
        self.call("cuModuleGetFunction", ct.byref(function), module, name.encode())
        if shared > 48 * 1024:
            self.call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared)
        self._functions[code, name] = function
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

    # ---- streams

    def stream(self, *, apart: bool = False) -> int:
        """A new stream, as long as the process; `apart`: one that keeps no order with the default stream.

        What others put on the default stream (ONNX Runtime's own copies to the host, torch's kernels) and what is put on a
        stream that is not apart wait for each other.
        """
        self.enter()
        made = ct.c_void_p()
        self.call("cuStreamCreate", ct.byref(made), _APART if apart else _ORDERED)
        return int(made.value or 0)

    def synchronize(self, stream: int | None = None) -> None:
        """Wait for a stream, or for everything on the device; an error of an earlier kernel shows here."""
        self.enter()
        if stream is not None:
            self.call("cuStreamSynchronize", ct.c_void_p(stream))
            return
        with _CAPTURING:
            self.call("cuCtxSynchronize")

    # ---- graphs: what is launched once more and again, put on the stream by one call

    def capture(self, work: Callable[[int], None]) -> ct.c_void_p:
        """What `work` puts on the stream that it is given, as a graph that `replay` runs; nothing runs meanwhile.

        Raises:
            DeviceError: `work` did what cannot be captured, or the driver is too old.

        """
        with _CAPTURING:
            stream = self.stream(apart=True)
            try:
                return self._captured(work, stream)
            finally:
                self.call("cuStreamDestroy_v2", ct.c_void_p(stream))

    def _captured(self, work: Callable[[int], None], stream: int) -> ct.c_void_p:
        graph, executable = ct.c_void_p(), ct.c_void_p()
        self.call("cuStreamBeginCapture_v2", ct.c_void_p(stream), _RELAXED)
        try:
            work(stream)
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
        """Give a captured graph back; nobody hears of an error, since nobody asked."""
        with suppress(DeviceError):
            self.enter()
            self.call("cuGraphExecDestroy", graph)

    # ---- memory and clocks

    def allocate(self, size: int) -> int:
        """Device memory of so many bytes, 256-byte aligned."""
        self.enter()
        pointer = ct.c_uint64()
        self.call("cuMemAlloc_v2", ct.byref(pointer), ct.c_size_t(size))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give memory back, once the device is done with it."""
        self.enter()
        self.call("cuMemFree_v2", ct.c_uint64(pointer))

    def drop(self, pointer: int) -> None:
        """Give memory back from wherever the last reference goes; after an error of the device that is no news."""
        with suppress(DeviceError):
            self.free(pointer)

    def free_memory(self) -> int:
        """Bytes that nobody has taken, of all processes."""
        self.enter()
        free, total = ct.c_size_t(), ct.c_size_t()
        self.call("cuMemGetInfo_v2", ct.byref(free), ct.byref(total))
        return free.value

    def ordinal_of(self, pointer: int) -> int | None:
        """The number of the device that memory lies on; None where it is no device's."""
        self.enter()
        found = ct.c_int()
        try:
            self.call("cuPointerGetAttribute", ct.byref(found), _OF_POINTER, ct.c_uint64(pointer))
        except DeviceError:
            return None
        return found.value

    def upload(self, pointer: int, address: int, size: int, stream: int = 0) -> None:
        """Copy host bytes to the device, behind what is on the stream, and wait."""
        self.enter()
        to, source, count = ct.c_uint64(pointer), ct.c_void_p(address), ct.c_size_t(size)
        self.call("cuMemcpyHtoDAsync_v2", to, source, count, ct.c_void_p(stream))
        self.call("cuStreamSynchronize", ct.c_void_p(stream))

    def download(self, address: int, pointer: int, size: int, stream: int = 0) -> None:
        """Copy device bytes to the host, behind what is on the stream, and wait."""
        self.enter()
        to, source, count = ct.c_void_p(address), ct.c_uint64(pointer), ct.c_size_t(size)
        self.call("cuMemcpyDtoHAsync_v2", to, source, count, ct.c_void_p(stream))
        self.call("cuStreamSynchronize", ct.c_void_p(stream))

    def copy(self, to: int, pointer: int, size: int, stream: int = 0) -> None:
        """Copy on the device, on a stream."""
        self.enter()
        self.call("cuMemcpyDtoDAsync_v2", ct.c_uint64(to), ct.c_uint64(pointer), ct.c_size_t(size), ct.c_void_p(stream))

    def fill(self, pointer: int, word: int, count: int, stream: int = 0) -> None:
        """Write a 32-bit pattern `count` times, on a stream."""
        self.enter()
        self.call("cuMemsetD32Async", ct.c_uint64(pointer), ct.c_uint(word), ct.c_size_t(count), ct.c_void_p(stream))

    def milliseconds(self, work: Callable[[], None], stream: int = 0, ahead: Callable[[], None] | None = None) -> float:
        """How long the device takes for what `work` puts on the stream, between two events.

        `ahead`: put on the stream before the clock starts, to keep the device busy until `work` has been put there too: else
        the time would be the host's, which packs parameters more slowly than a small kernel runs.
        """
        self.enter()
        events = [ct.c_void_p(), ct.c_void_p()]
        try:
            for event in events:
                self.call("cuEventCreate", ct.byref(event), 0)
            if ahead is not None:
                ahead()
            self.call("cuEventRecord", events[0], ct.c_void_p(stream))
            work()
            self.call("cuEventRecord", events[1], ct.c_void_p(stream))
            self.call("cuEventSynchronize", events[1])
            passed = ct.c_float()
            self.call("cuEventElapsedTime", ct.byref(passed), events[0], events[1])
            return passed.value
        finally:
            for event in events:
                if event.value:
                    self.call("cuEventDestroy_v2", event)


def _advice(code: int) -> str:
    """What else to do about an error."""
    if code in _FORKED:
        return "; a forked process cannot use the GPU that its parent opened: start it by spawn"
    return "; the process must be started again" if code in _STICKY else ""
