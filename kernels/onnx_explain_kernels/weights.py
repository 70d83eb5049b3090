"""Weights as the convolution kernels read them: packed once per model, on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain_kernels.errors import UnsupportedShape
from onnx_explain_kernels.geometry import Conv
from onnx_explain_kernels.tiles import Precision


def pack(w: npt.NDArray[Any], conv: Conv, *, precision: Precision = "tf32", forward: bool = False) -> npt.NDArray[Any]:
    """A weight [K, C/group, *kernel] or [K, C] as [R, S, group, C/group, K/group], filters innermost: what is summed over
    lies together. `forward`: for denominators, [R, S, group, K/group, C/group].

    In float32, for ``tf32`` rounded to its 10 bits of mantissa, or for ``fp16`` and ``bf16`` in 16 bits (bfloat16 as uint16),
    to nearest even; the kernel of narrow groups (`Conv.narrow`, forward `Conv.shallow`) reads float32 whatever the precision.

    Raises:
        UnsupportedShape: the weight is not that of the layer.

    """
    wide, deep = conv.channels // conv.group, conv.filters // conv.group
    if w.ndim < 2 or w.shape[:2] != (conv.filters, wide) or w.size != conv.weights:
        raise UnsupportedShape(f"A weight of shape {w.shape} is not that of {conv}.")
    whole = np.asarray(w, np.float32).reshape(conv.group, deep, wide, *conv.kernel)
    packed = np.ascontiguousarray(whole.transpose(3, 4, 0, *((1, 2) if forward else (2, 1))))
    if (conv.shallow if forward else conv.narrow) or precision in ("ieee", "tf32x3"):
        return packed
    if precision == "tf32":
        return to_tf32(packed)
    if precision == "fp16":
        return np.clip(packed, -65504, 65504).astype(np.float16)
    return to_bfloat16(packed)


def to_tf32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest float32 that tf32 can hold, ties to even: the matrix unit would cut off. NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x0FFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(values), values, rounded.view(np.float32))


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
