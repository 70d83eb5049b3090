"""Device arrays at the edge: those of a caller (DLPack, `__cuda_array_interface__`), and those that are handed back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from onnx_explain.errors import InputError

CUDA = 2  # DLPack's number of the device type


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
    """Whether an array says that it lies on a CUDA device."""
    if isinstance(given, np.ndarray):
        return False
    if hasattr(given, "__cuda_array_interface__"):
        return True
    where = getattr(given, "__dlpack_device__", None)
    return callable(where) and int(where()[0]) == CUDA


def borrowed(given: Any) -> Tensor:
    """The memory of a caller's device array, without a copy; InputError where it is not dense."""
    if isinstance(given, Tensor):
        return given
    interface = getattr(given, "__cuda_array_interface__", None)
    if interface is None:
        return _from_dlpack(given)
    shape, dtype = tuple(int(s) for s in interface["shape"]), np.dtype(interface["typestr"])
    if interface.get("strides") is not None and not _is_dense(shape, interface["strides"], dtype.itemsize):
        raise InputError("A strided device array cannot be explained; pass a dense copy.")
    return Tensor(int(interface["data"][0]), shape, dtype, given)


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
        raise InputError(
            f"{type(given).__name__} cannot be read through DLPack: {error}; pass a dense copy."
        ) from error
    from onnx_explain.backends.gpu.device import _owned

    return _owned(value)
