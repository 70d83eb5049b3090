"""Every error of the kernels; the backend that calls them turns each into one of its own.

::

    KernelError
    ├── UnsupportedShape    the kernels do not cover this geometry or form; run the plain operators instead
    ├── ArgumentError       a buffer, pointer or number breaks what the compiled kernel was promised
    ├── CompilerMissing     neither a compiled kernel nor a compiler for it is at hand
    ├── ResourceError       a kernel does not fit the device (shared memory, registers)
    └── DeviceError         libcuda is missing, or answered with an error
"""

from __future__ import annotations


class KernelError(Exception):
    """The root of the kernels' errors."""


class UnsupportedShape(KernelError):
    """The geometry, form or layout has no kernel."""


class ArgumentError(KernelError):
    """A launch would break what the compiled kernel was promised: alignment, size, or a value."""


class CompilerMissing(KernelError):
    """No compiled kernel is stored for this shape, and its compiler is not installed."""


class ResourceError(KernelError):
    """A compiled kernel needs more than the device has."""


class DeviceError(KernelError):
    """The CUDA driver is missing or reports an error; `code` is its number, 0 where it gave none."""

    def __init__(self, sentence: str, code: int = 0) -> None:
        super().__init__(sentence)
        self.code = code
