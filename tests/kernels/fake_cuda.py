"""A stand-in for libcuda: records every call, keeps device memory on the host, and can run what is launched.

What the plain forms put on the default stream arrives late, as CUDA's documentation allows ("API synchronization behavior"):
when somebody waits for it, or when a stream that keeps order with the default one goes on. Streams themselves run at once.

What is launched is told by the loaded code: a real cubin is only recorded, code made by `fake_compile` names its
specialisation, and `runs` then executes the plan it belongs to by Triton's interpreter or Numba's simulator.
"""
# ruff: noqa: N802 (the names are those of the C library)

from __future__ import annotations

import ctypes
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from onnx_explain_kernels.compiler import Binary, expected_parameters
from onnx_explain_kernels.specialisation import Specialisation

CODES = {"i32": "i", "i64": "q", "fp32": "f"}


@dataclass
class Launch:
    """One recorded launch; `code` is what was loaded."""

    code: bytes
    grid: tuple[int, int, int]
    threads: int
    shared: int
    stream: int
    packed: bytes

    def values(self, spec: Specialisation, scratch: bool = True) -> dict[str, Any]:
        """The packed parameters by name."""
        layout = expected_parameters(spec, scratch)
        found = {}
        for (name, kind), (offset, size) in zip(spec.arguments, layout):
            code = "Q" if kind.startswith("*") else CODES[kind]
            found[name] = struct.unpack_from(f"<{code}", self.packed, offset)[0]
            assert size == struct.calcsize(code)
        end = layout[-1][0] + layout[-1][1]
        assert len(self.packed) == end, "the buffer is as long as the parameters"
        return found


def _set(reference: Any, value: int) -> None:
    reference._obj.value = value


@dataclass
class FakeCuda:
    """Every entry point is a method; `fails` names one that returns an error."""

    capability: int = 90
    fails: str = ""
    runs: Callable[[Launch], None] | None = None
    launches: list[Launch] = field(default_factory=list)
    attributes: list[tuple[int, int]] = field(default_factory=list)
    loaded: list[bytes] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)
    clock: float = 0.0
    total: int = 1 << 40
    capturing: dict[int, list[Launch]] = field(default_factory=dict)
    streams: dict[int, int] = field(default_factory=dict)
    late: list[Callable[[], None]] = field(default_factory=list)
    ordinals: dict[int, int | None] = field(default_factory=dict)
    graphs: dict[int, list[Launch]] = field(default_factory=dict)
    replays: list[int] = field(default_factory=list)

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name.startswith("cu"):
            self.calls.append(name)
            if name == self.fails:
                return lambda *_: 700
        return value

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"an illegal memory access was encountered"
        return 0

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        _set(device, ordinal)
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        _set(context, 0x1000)
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:
        return 0

    def _arrived(self, stream: int) -> None:
        """What the default stream holds back, where a stream keeps order with it."""
        if self.streams.get(stream, 0) == 0:
            waiting, self.late = self.late, []
            for one in waiting:
                one()

    def cuCtxSynchronize(self) -> int:
        if self.capturing:
            return 900
        self._arrived(0)
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:
        number = 0x5000 + len(self.streams)
        self.streams[number] = flags
        _set(stream, number)
        return 0

    def cuStreamDestroy_v2(self, stream: Any) -> int:
        assert stream.value in self.streams
        return 0

    def cuStreamSynchronize(self, stream: Any) -> int:
        self._arrived(stream.value or 0)
        return 0

    def cuPointerGetAttribute(self, value: Any, attribute: int, pointer: Any) -> int:
        assert attribute == 9
        ordinal = self.ordinals.get(pointer.value, 0)
        if ordinal is None:
            return 1
        _set(value, ordinal)
        return 0

    def cuDeviceGetAttribute(self, value: Any, number: int, device: Any) -> int:
        _set(value, {75: self.capability // 10, 76: self.capability % 10}[number])
        return 0

    def cuDeviceGetName(self, text: Any, size: int, device: Any) -> int:
        text.value = b"Stand-in"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        _set(version, 13000)
        return 0

    def cuModuleLoadData(self, module: Any, code: bytes) -> int:
        if code[:4] not in (b"\x7fELF", b"FAKE"):
            return 200
        self.loaded.append(code)
        _set(module, 0x2000)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
        _set(function, len(self.loaded))
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        self.attributes.append((attribute, value))
        return 0

    def cuLaunchKernel(
        self,
        function: Any,
        gx: Any,
        gy: Any,
        gz: Any,
        bx: Any,
        by: Any,
        bz: Any,
        shared: Any,
        stream: Any,
        params: Any,
        extra: Any,
    ) -> int:
        assert params is None
        assert (by.value, bz.value) == (1, 1)
        assert (extra[0], extra[2], extra[4]) == (1, 2, None)
        packed = ctypes.string_at(extra[1], ctypes.c_size_t.from_address(extra[3]).value)
        grid = (gx.value, gy.value, gz.value)
        launch = Launch(self.loaded[function.value - 1], grid, bx.value, shared.value, stream.value or 0, packed)
        if launch.stream in self.capturing:
            self.capturing[launch.stream].append(launch)
            return 0
        return self._run(launch)

    def _run(self, launch: Launch) -> int:
        assert 0 not in launch.grid, "the driver takes no empty grid"
        self._arrived(launch.stream)
        self.launches.append(launch)
        if self.runs is not None:
            self.runs(launch)
        return 0

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:
        if not stream.value or stream.value in self.capturing:
            return 900  # the default stream cannot be captured
        assert (mode, self.streams[stream.value]) == (2, 1), "the default stream stays free for others"
        self.capturing[stream.value] = []
        return 0

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:
        number = 0x7000 + len(self.graphs)
        self.graphs[number] = self.capturing.pop(stream.value)
        _set(graph, number)
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        assert flags.value == 0
        self.graphs[graph.value + 0x1000] = self.graphs[graph.value]
        _set(executable, graph.value + 0x1000)
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        self.graphs.pop(graph.value)
        return 0

    def cuGraphExecDestroy(self, graph: Any) -> int:
        self.graphs.pop(graph.value)
        return 0

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        self.replays.append(graph.value)
        for launch in self.graphs[graph.value]:
            self._run(replace(launch, stream=stream.value))
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        _set(free, self.total - sum(len(block) for block in self.memory.values()))
        _set(total, self.total)
        return 0

    def cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:
        if size.value + 256 + sum(len(block) for block in self.memory.values()) > self.total:
            return 2
        block = ctypes.create_string_buffer(size.value + 256)
        address = (ctypes.addressof(block) + 255) & ~255
        self.memory[address] = block
        _set(pointer, address)
        return 0

    def cuMemFree_v2(self, pointer: Any) -> int:
        return 0 if self.memory.pop(pointer.value, None) is not None else 1

    def cuMemcpyHtoD_v2(self, to: Any, source: Any, size: Any) -> int:
        held = ctypes.string_at(source.value, size.value)
        self.late.append(lambda: ctypes.memmove(to.value, held, len(held)) and None)
        return 0

    def cuMemcpyDtoH_v2(self, to: Any, source: Any, size: Any) -> int:
        self._arrived(0)
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        self._arrived(stream.value or 0)
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        return self.cuMemcpyHtoDAsync_v2(to, source, size, stream)

    def cuMemcpyDtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> int:
        return self.cuMemcpyHtoDAsync_v2(to, source, size, stream)

    def cuMemsetD32Async(self, to: Any, word: Any, count: Any, stream: Any) -> int:
        self._arrived(stream.value or 0)
        array = (ctypes.c_uint32 * count.value).from_address(to.value)
        array[:] = [word.value] * count.value
        return 0

    def cuEventCreate(self, event: Any, flags: int) -> int:
        _set(event, 1)
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        self.clock += 0.5
        return 0

    def cuEventSynchronize(self, event: Any) -> int:
        return 0

    def cuEventElapsedTime(self, passed: Any, start: Any, end: Any) -> int:
        _set(passed, 0.5)
        return 0

    def cuEventDestroy_v2(self, event: Any) -> int:
        return 0


def fake_code(spec: Specialisation, name: str, scratch: bool) -> bytes:
    """A 64-bit ELF file with the parameter records of a cubin and nothing to run; the specialisation stands behind it."""
    records = b""
    for ordinal, (offset, size) in enumerate(expected_parameters(spec, scratch)):
        records += struct.pack("<BBHIHHI", 4, 0x17, 12, 0, ordinal, offset, size << 18)
    general = struct.pack("<BBHII", 4, 0x2F, 8, 1, 32) + struct.pack("<BBHII", 4, 0x11, 8, 1, 0)
    parts = {f".nv.info.{name}": records, ".nv.info": general, f".text.{name}": b"\0" * 16}
    names = b"\0" + b"".join(label.encode() + b"\0" for label in parts) + b".shstrtab\0"
    body, headers, at, label_at = b"", [struct.pack("<IIQQQQIIQQ", *[0] * 10)], 64, 1
    for label, data in [*parts.items(), (".shstrtab", names)]:
        headers.append(
            struct.pack("<IIQQQQIIQQ", label_at, 3 if label == ".shstrtab" else 1, 0, 0, at, len(data), 0, 0, 1, 0)
        )
        body, at, label_at = body + data, at + len(data), label_at + len(label) + 1
    head = b"\x7fELF" + bytes([2, 1, 1]) + b"\0" * 9
    head += struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, at, 0, 64, 0, 0, 64, len(headers), len(headers) - 1)
    return head + body + b"".join(headers) + json.dumps(spec.described()).encode()


def specialisation_of(code: bytes) -> Specialisation:
    """The specialisation behind `fake_code`."""
    return Specialisation.read(json.loads(code[code.rindex(b'{"kernel"') :]))


def fake_compile(spec: Specialisation) -> Binary:
    """Stands in for `compile_kernel`: no compiler is needed, nothing can be run on a device."""
    scratch = not spec.kernel.endswith("_pool")
    return Binary(spec, fake_code(spec, spec.kernel, scratch), spec.kernel, 64 * 1024, scratch, spec.stages, "fake 1")
