"""Device arrays at the edge: those of a caller (DLPack, `__cuda_array_interface__`), and those that are handed back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from onnx_explain.errors import InputError
from onnx_explain.ir.model import first_line

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # as torch: "<V2", which NumPy reads as two bytes of anything
CUDA = (2, 13)  # DLPack's numbers of the device type: CUDA memory, and managed memory


@dataclass(frozen=True)
class Tensor:
    """Dense device memory with a shape and a dtype; `owner` keeps it alive. Other libraries read it without a copy."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """In bytes."""
        return int(prod(self.shape)) * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """The rank."""
        return len(self.shape)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What cupy, numba and torch read."""
        typestr = self.dtype.str
        return {"shape": self.shape, "typestr": typestr, "data": (self.pointer, False), "version": 3, "strides": None}

    def rows(self, part: slice) -> Tensor:
        """Samples of it, in place."""
        start, stop, _ = part.indices(self.shape[0])
        step = prod(self.shape[1:]) * self.dtype.itemsize
        return replace(self, pointer=self.pointer + start * step, shape=(max(stop - start, 0), *self.shape[1:]))


def is_on_device(given: Any) -> bool:
    """Whether an array says that it lies on a CUDA device; InputError where it will not say (a tensor that takes gradients)."""
    if isinstance(given, np.ndarray):
        return False
    if _interface(given) is not None:
        return True
    where = getattr(given, "__dlpack_device__", None)
    return callable(where) and int(where()[0]) in CUDA


def _interface(given: Any) -> dict[str, Any] | None:
    """`__cuda_array_interface__`, or None where there is none."""
    try:
        found: dict[str, Any] | None = getattr(given, "__cuda_array_interface__", None)
    except Exception as error:  # a property of the caller's library, which raises what it likes
        raise _unread(given, error) from error
    return found


def borrowed(given: Any) -> Tensor:
    """The memory of a caller's device array, without a copy; InputError where it is not dense.

    What the caller's streams still write into it is the caller's device's to finish: `Device.put` and `fetch` wait for all of it.
    """
    if isinstance(given, Tensor):
        return given
    interface = _interface(given)
    if interface is None:
        return _from_dlpack(given)
    if interface.get("mask") is not None:
        raise InputError("A masked device array cannot be explained; pass a dense copy without its mask.")
    try:
        shape, kind = tuple(int(s) for s in interface["shape"]), str(interface["typestr"])
        dtype = _BFLOAT16 if kind == _BFLOAT16.str else np.dtype(kind)
    except TypeError as error:
        raise _unread(given, error) from error
    if interface.get("strides") is not None and not _is_dense(shape, interface["strides"], dtype.itemsize):
        raise InputError("A strided device array cannot be explained; pass a dense copy.")
    return Tensor(int(interface["data"][0]), shape, dtype, given)


def _unread(given: Any, error: Exception) -> InputError:
    return InputError(
        f"The device memory of this {type(given).__name__} cannot be read: {first_line(error).rstrip('.')}; pass a dense copy."
    )


def _is_dense(shape: Sequence[int], strides: Sequence[int], step: int) -> bool:
    for extent, stride in zip(reversed(shape), reversed(strides)):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def _from_dlpack(given: Any) -> Tensor:
    """Through ONNX Runtime, whose OrtValue reads DLPack."""
    from onnxruntime import OrtValue

    try:
        value = OrtValue.from_dlpack(given)
    except Exception as error:
        raise _unread(given, error) from error
    return owned(value)


def owned(value: Any) -> Tensor:
    """The memory of an OrtValue."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.element_type()))
    return Tensor(int(value.data_ptr()), tuple(value.shape()), dtype, value)
