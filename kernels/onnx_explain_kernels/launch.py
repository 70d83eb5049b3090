"""The door: prepare a layer's kernel once, launch it on device pointers as often as needed.

>>> kernels = Kernels()                                               # the device, its cache of compiled kernels
>>> layer = kernels.conv(Conv.of(...), forms.CHAIN, layouts=...)       # found or compiled
>>> layer({"r": s, "w": w, "x": x, "out": out}, stream=stream, below_epsilon=1e-6)

A tensor is a device pointer, or anything that knows its own: `data_ptr()` (OrtValue), `__cuda_array_interface__`, or
`Memory`. What the compiled kernel was promised is checked before each launch.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from onnx_explain_kernels.compiler import Binary, compile_kernel, expected_parameters
from onnx_explain_kernels.driver import Driver
from onnx_explain_kernels.errors import ArgumentError, CompilerMissing
from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.plan import (
    LAYOUTS,
    TYPES,
    Layouts,
    Plan,
    Types,
    plan_apply,
    plan_conv,
    plan_denominator,
    plan_pool,
    plan_shift,
)
from onnx_explain_kernels.store import Store
from onnx_explain_kernels.tiles import Precision, architecture

_CODES = {"i32": "i", "i64": "q", "fp32": "f"}
_COMPILING = threading.Lock()  # the compilers' settings are those of the whole process


@dataclass(frozen=True)
class Memory:
    """Device memory of a known size."""

    pointer: int
    size: int


def memory_of(tensor: Any) -> tuple[int, int | None]:
    """(device pointer, bytes where they are known) of an argument.

    Raises:
        ArgumentError: nothing that points to device memory.

    """
    if isinstance(tensor, Memory):
        return tensor.pointer, tensor.size
    if isinstance(tensor, int) and not isinstance(tensor, bool):
        return tensor, None
    interface = getattr(tensor, "__cuda_array_interface__", None)
    if interface is not None:
        size = int(interface["typestr"][2:])
        for extent in interface["shape"]:
            size *= int(extent)
        if interface.get("strides") is not None and not _is_dense(interface):
            raise ArgumentError("A strided device array cannot be passed to a kernel; pass a dense copy.")
        return int(interface["data"][0]), size
    pointer = getattr(tensor, "data_ptr", None)
    if callable(pointer):
        sized = getattr(tensor, "tensor_size_in_bytes", None)
        return int(pointer()), int(sized()) if callable(sized) else None
    raise ArgumentError(f"{type(tensor).__name__} is no device memory: pass a pointer, an OrtValue or a CUDA array.")


def _is_dense(interface: Mapping[str, Any]) -> bool:
    expected = int(interface["typestr"][2:])
    for extent, stride in zip(reversed(interface["shape"]), reversed(interface["strides"])):
        if extent != 1 and stride != expected:
            return False
        expected *= int(extent)
    return True


class Kernel:
    """A loaded kernel for one plan; calling it puts it on a stream and returns at once."""

    def __init__(self, driver: Driver, plan: Plan, binary: Binary) -> None:
        """Load the code.

        Raises:
            ArgumentError: the code's parameters are not those of the plan, or a compiled-in size is another.
            DeviceError: the driver refuses the code.

        """
        self.plan, self.binary = plan, binary
        spec = binary.specialisation
        layout = expected_parameters(spec, binary.scratch)
        if list(binary.resources.parameters) != layout:
            raise ArgumentError(f"{spec.kernel}: the stored code takes other parameters; delete it and compile again.")
        for name, value in spec.constants:
            if name in plan.integers and plan.integers[name] != value:
                raise ArgumentError(f"{spec.kernel}: compiled for {name} = {value}, asked for {plan.integers[name]}.")
        for name in spec.claims:
            if name in plan.integers and plan.integers[name] % 16:
                raise ArgumentError(
                    f"{spec.kernel}: compiled for {name} divisible by 16, asked for {plan.integers[name]}."
                )
        self._packer = struct.Struct(_format(spec.arguments, layout, binary.scratch))
        self.driver = driver
        self._function = driver.load(binary.code, binary.name, binary.shared)

    def __call__(
        self,
        tensors: Mapping[str, Any],
        *,
        stream: int = 0,
        epsilon: float = 0.0,
        below_epsilon: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        """Launch on `stream` (a CUstream as an integer; 0 is the default one).

        Args:
            tensors: every tensor of `plan.needs` by name, read and written ones.
            stream: where to.
            epsilon: ε of the quotient.
            below_epsilon: ε' of the division for the layer below.
            scale: what relevance is multiplied by before a denominator's form divides it.

        Raises:
            ArgumentError: a tensor is missing or unknown, too small, not aligned, or would be overwritten while read.

        """
        places = self._places(tensors)
        numbers = {"epsilon": epsilon, "below_epsilon": below_epsilon, "scale": scale}
        values: dict[str, Any] = {**self.plan.integers, **places, **numbers}
        spec = self.binary.specialisation
        listed = [values.get(name, 0) for name, _ in spec.arguments]
        packed = self._packer.pack(*listed, *(0, 0) if self.binary.scratch else ())
        self.driver.launch(self._function, self.plan.grid, self.plan.threads, self.binary.shared, stream, packed)

    def _places(self, tensors: Mapping[str, Any]) -> dict[str, int]:
        """Pointers, after every claim about them has been checked."""
        kernel, needs = self.binary.specialisation.kernel, self.plan.needs
        if set(tensors) != set(needs):
            raise ArgumentError(f"{kernel} takes {', '.join(needs)}; it was given {', '.join(tensors) or 'nothing'}.")
        places = {}
        alignment = 16 if self.binary.specialisation.claims else 4
        for name, tensor in tensors.items():
            pointer, size = memory_of(tensor)
            if pointer == 0:
                raise ArgumentError(f"{kernel}: {name} is a null pointer.")
            if pointer % alignment:
                raise ArgumentError(
                    f"{kernel}: {name} at {pointer:#x} is not aligned to {alignment} bytes; pass a copy."
                )
            if size is not None and size < needs[name]:
                raise ArgumentError(f"{kernel}: {name} has {size} bytes, the shape needs {needs[name]}.")
            places[name] = pointer
        for written in self.plan.writes:
            for read in places:
                if read == written or read in self.plan.inplace:
                    continue
                if places[written] < places[read] + needs[read] and places[read] < places[written] + needs[written]:
                    raise ArgumentError(f"{kernel}: {written} lies over {read}, which is in use.")
        return places


def _format(arguments: tuple[tuple[str, str], ...], layout: list[tuple[int, int]], scratch: bool) -> str:
    """The `struct` format of the parameter buffer, padding included."""
    kinds = [kind for _, kind in arguments] + ["*i8", "*i8"] * scratch
    text, end = "<", 0
    for kind, (offset, size) in zip(kinds, layout):
        text += f"{offset - end}x" * (offset > end) + ("Q" if kind.startswith("*") else _CODES[kind])
        end = offset + size
    return text


class Kernels:
    """The kernels of one device: compiled ones are kept in memory and in the store."""

    def __init__(
        self,
        driver: Driver | None = None,
        *,
        device: int = 0,
        store: Store | None = None,
        specialise: bool = True,
        compile_with: Callable[..., Binary] = compile_kernel,
    ) -> None:
        """Open a device.

        Args:
            driver: an open driver; by default that of `device`.
            device: its number.
            store: where compiled kernels are kept; by default the user's cache and the shipped ones.
            specialise: compile per layer shape; otherwise, and where no compiler is installed, the shipped kernels
                that take any shape.
            compile_with: the compiler, for tests.

        Raises:
            DeviceError: no driver or no such device.
            UnsupportedShape: a device older than compute capability 8.0.

        """
        self.driver = driver if driver is not None else Driver(device=device)
        self.arch = architecture(self.driver.capability)
        self.store = store if store is not None else Store()
        self._specialise, self._compile = specialise, compile_with
        self._binaries: dict[str, Binary] = {}

    def conv(
        self,
        conv: Conv,
        form: ConvForm,
        *,
        layouts: Layouts = LAYOUTS,
        types: Types = TYPES,
        precision: Precision = "tf32",
        bounds: tuple[bool, bool] = (False, True),
    ) -> Kernel:
        """The kernel of one fused pass over a convolution or a dense layer (`plan.plan_conv` has the arguments).

        Raises:
            UnsupportedShape: the form or size has no kernel.
            CompilerMissing: nothing is stored for it and no compiler is installed.

        """

        def planned(generic: bool) -> Plan:
            options: dict[str, Any] = {"layouts": layouts, "types": types, "precision": precision, "bounds": bounds}
            return plan_conv(conv, form, arch=self.arch, generic=generic, **options)

        return self._either(planned)

    def denominator(
        self, conv: Conv, form: DenominatorForm, *, layouts: Layouts = LAYOUTS, precision: Precision = "tf32"
    ) -> Kernel:
        """The kernel of one fused pass forward over a convolution (`plan.plan_denominator` has the arguments).

        Raises:
            UnsupportedShape: the form or size has no kernel.
            CompilerMissing: nothing is stored for it and no compiler is installed.

        """

        def planned(generic: bool) -> Plan:
            return plan_denominator(conv, form, arch=self.arch, layouts=layouts, precision=precision, generic=generic)

        return self._either(planned)

    def pool(self, pool: Pool, form: PoolForm, *, layouts: Layouts = LAYOUTS) -> Kernel:
        """The kernel of one fused pass over a pool.

        Raises:
            CompilerMissing: nothing is stored for it and no compiler is installed.

        """
        return self._either(lambda generic: plan_pool(pool, form, arch=self.arch, layouts=layouts, generic=generic))

    def shift(self, samples: int, rows: int) -> Kernel:
        """RAP's δ from the row sums that a form with sums wrote (`rows`: `plan.rows` of that kernel)."""
        return self.prepare(plan_shift(samples, rows, arch=self.arch))

    def apply(self, samples: int, length: int, *, types: Types = TYPES) -> Kernel:
        """RAP's δ subtracted in a pass of its own, where no kernel reads the result next."""
        return self.prepare(plan_apply(samples, length, arch=self.arch, types=types))

    def prepare(self, plan: Plan, *, compiles: bool = True) -> Kernel:
        """Find or compile a plan's kernel and load it."""
        digest = plan.specialisation.digest
        binary = self._binaries.get(digest) or self.store.find(digest)
        if binary is None:
            if not compiles:
                raise CompilerMissing(f"{plan.specialisation.kernel} for sm_{self.arch} is not stored.")
            with _COMPILING:
                binary = self._binaries.get(digest) or self._compile(plan.specialisation)
            self.store.keep(binary)
        self._binaries[digest] = binary
        return Kernel(self.driver, plan, binary)

    def known(self, plan: Plan) -> bool:
        """Whether a plan's kernel is compiled already."""
        digest = plan.specialisation.digest
        return digest in self._binaries or self.store.find(digest) is not None

    def adopt(self, binary: Binary) -> None:
        """Take a kernel that was compiled elsewhere, in another process for instance."""
        self._binaries[binary.specialisation.digest] = binary
        self.store.keep(binary)

    def _either(self, planned: Callable[[bool], Plan]) -> Kernel:
        """The kernel compiled for the shape, else the shipped one for any shape."""
        if not self._specialise:
            return self.prepare(planned(True))
        with suppress(CompilerMissing):
            return self.prepare(planned(False))
        return self.prepare(planned(True), compiles=False)


@dataclass(frozen=True)
class Planned:
    """In place of a kernel: its plan alone."""

    plan: Plan


class Planner:
    """Answers as `Kernels` does, with plans: nothing is compiled, loaded or launched, and no device is needed."""

    def __init__(self, arch: int) -> None:
        """For an architecture, e.g. 90."""
        self.arch = arch

    def conv(self, conv: Conv, form: ConvForm, **options: Any) -> Planned:
        """As `Kernels.conv`."""
        return Planned(plan_conv(conv, form, arch=self.arch, **options))

    def denominator(self, conv: Conv, form: DenominatorForm, **options: Any) -> Planned:
        """As `Kernels.denominator`."""
        return Planned(plan_denominator(conv, form, arch=self.arch, **options))

    def pool(self, pool: Pool, form: PoolForm, **options: Any) -> Planned:
        """As `Kernels.pool`."""
        return Planned(plan_pool(pool, form, arch=self.arch, **options))

    def shift(self, samples: int, rows: int) -> Planned:
        """As `Kernels.shift`."""
        return Planned(plan_shift(samples, rows, arch=self.arch))

    def apply(self, samples: int, length: int) -> Planned:
        """As `Kernels.apply`."""
        return Planned(plan_apply(samples, length, arch=self.arch))


def address_of(array: Any) -> int:
    """The host address of a NumPy array, for `Driver.upload` and `Driver.download`."""
    return int(array.ctypes.data_as(ctypes.c_void_p).value or 0)
