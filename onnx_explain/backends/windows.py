"""Convolutions and pools for the float64 backend: windows walked by kernel offset, never by pixel.

Each operator replaces ONNX's own in its evaluator, for the reason it names. Which models run on them is `reference.py`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]


def padded(x: Array, widths: npt.NDArray[np.int64], mode: Any = "constant", value: Any = 0) -> Array:
    """The array with widths[axis] = (before, after) elements added; negative ones are cut off before any is added."""
    cut = np.maximum(-widths, 0)
    x = x[tuple(slice(before, size - after) for size, (before, after) in zip(x.shape, cut))]
    added = np.maximum(widths, 0)
    return np.pad(x, added, constant_values=value) if mode == "constant" else np.pad(x, added, mode=mode)


@dataclass(frozen=True)
class Windows:
    """Sliding windows, all entries per spatial axis.

    Window i of `out` starts at i·stride - begin and holds `kernel` elements, each `dilation` after the one before.
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    begin: Sequence[int]
    end: Sequence[int]
    out: Sequence[int]

    @staticmethod
    def of(size: Sequence[int], kernel: Sequence[int], said: Mapping[str, Any]) -> Windows:
        """The windows over an input of spatial `size` that a node's attributes say; in ceil mode, as in ONNX Runtime
        and torch, none that would start behind the input and its leading pads.
        """
        n, ceil = len(size), said.get("ceil_mode") or 0
        strides, dilations = said["strides"] or [1] * n, said["dilations"] or [1] * n
        extents = _extents(kernel, dilations)
        if said["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
            out = [-(-s // st) for s, st in zip(size, strides)]
            totals = [max((o - 1) * st + e - s, 0) for s, o, st, e in zip(size, out, strides, extents)]
            begin, end = _halves(totals, said["auto_pad"])
            return Windows(kernel, strides, dilations, begin, end, out)
        begin, end = _pads(n, said)
        out = []
        for s, b, a, st, e in zip(size, begin, end, strides, extents):
            room = s + b + a - e
            count = (-(-room // st) if ceil else room // st) + 1
            out.append(count - 1 if ceil and (count - 1) * st >= s + b else count)
        return Windows(kernel, strides, dilations, begin, end, out)

    def taps(self) -> Iterator[tuple[Any, ...]]:
        """Per kernel offset, in row-major order, what all windows hold there: an index of the padded input."""
        for tap in product(*map(range, self.kernel)):
            geometry = zip(tap, self.dilations, self.strides, self.out)
            yield (..., *(slice(t * d, t * d + (o - 1) * st + 1, st) for t, d, st, o in geometry))

    def padded(self, x: Array, value: float = 0) -> Array:
        """The array [*any, *size] with `value` wherever a window reaches beyond it."""
        size = x.shape[x.ndim - len(self.out) :]
        reach = [(o - 1) * st + e for o, st, e in zip(self.out, self.strides, _extents(self.kernel, self.dilations))]
        widths = [(b, max(r - b - s, 0)) for b, r, s in zip(self.begin, reach, size)]
        return padded(x, np.array([(0, 0)] * (x.ndim - len(size)) + widths), value=value)

    def sums(self, x: Array) -> Array:
        """The sum over each window, [*any, *out]."""
        whole = self.padded(x)
        return reduce(np.add, (whole[tap] for tap in self.taps()))

    def counts(self, size: Sequence[int], with_pads: bool) -> Array:
        """The divisor of each window's mean, [*out]: its elements in the input, or also those in the declared pads."""
        if not with_pads:
            return self.sums(np.ones(size))
        none = [0] * len(size)
        unpadded = Windows(self.kernel, self.strides, self.dilations, none, none, self.out)
        return unpadded.sums(np.ones([b + s + e for b, s, e in zip(self.begin, size, self.end)]))


def _extents(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]


def _pads(n: int, said: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The declared padding before and after."""
    pads = list(said["pads"] or []) if said["auto_pad"] == "NOTSET" else []
    return pads[:n] or [0] * n, pads[n:] or [0] * n


def _halves(totals: Sequence[int], auto_pad: str) -> tuple[list[int], list[int]]:
    """Padding before and after; the odd element goes to the end for SAME_UPPER, to the start otherwise."""
    begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals]
    return begin, [t - b for t, b in zip(totals, begin)]


class Conv(OpRun):
    """ONNX's is right but slow: index arrays as large as all patches, and one pass per group."""

    def _run(self, x: Array, w: Array, b: Array | None = None, *, group: int, **said: Any) -> tuple[Array, ...]:
        windows = Windows.of(x.shape[2:], w.shape[2:], said)
        y = np.empty((x.shape[0], w.shape[0], *windows.out), x.dtype)
        weight = w.reshape(group, w.shape[0] // group, prod(w.shape[1:]))
        for sample, into in zip(windows.padded(x), y):  # one at a time: its patches take prod(kernel) times its memory
            patches = np.stack([sample[tap] for tap in windows.taps()], axis=1)
            into[...] = (weight @ patches.reshape(group, weight.shape[2], prod(windows.out))).reshape(into.shape)
        return (_biased(y, b),)


class ConvTranspose(OpRun):
    """ONNX's splits groups along the wrong axis, takes output_shape without the pads it implies, and is slow."""

    def _run(self, x: Array, w: Array, b: Array | None = None, *, group: int, **said: Any) -> tuple[Array, ...]:
        windows, spans, out = _transposed(x.shape[2:], w.shape[2:], said)
        channels = w.shape[1] * group
        ends = [begin + o for begin, o in zip(windows.begin, out)]
        y = np.zeros((x.shape[0], channels, *map(max, ends, spans)), x.dtype)
        weight = w.reshape(group, w.shape[0] // group, prod(w.shape[1:])).transpose(0, 2, 1)
        for sample, onto in zip(x, y):
            patches = weight @ sample.reshape(group, weight.shape[2], prod(windows.out))
            for patch, tap in zip(np.moveaxis(patches.reshape(channels, -1, *windows.out), 1, 0), windows.taps()):
                onto[tap] += patch
        kept: tuple[Any, ...] = (..., *map(slice, windows.begin, ends))
        return (_biased(y[kept], b),)


def _transposed(
    size: Sequence[int], kernel: Sequence[int], said: Mapping[str, Any]
) -> tuple[Windows, list[int], list[int]]:
    """The windows a ConvTranspose writes into, the length they span with the output padding, the output's size."""
    n = len(size)
    strides, dilations, wanted = said["strides"] or [1] * n, said["dilations"] or [1] * n, said["output_shape"]
    extra = said["output_padding"] or [0] * n
    spans = [(s - 1) * st + e + o for s, st, e, o in zip(size, strides, _extents(kernel, dilations), extra)]
    if not wanted and said["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [s * st for s, st in zip(size, strides)]
    if wanted:
        out = list(wanted[-n:])
        begin, end = _halves([max(f - o, 0) for f, o in zip(spans, out)], said["auto_pad"])
    else:
        begin, end = _pads(n, said)
        out = [f - b - a for f, b, a in zip(spans, begin, end)]
    return Windows(kernel, strides, dilations, begin, end, size), spans, out


def _biased(y: Array, b: Array | None) -> Array:
    return y if b is None else y + b.reshape(-1, *[1] * (y.ndim - 2))


class MaxPool(OpRun):
    """ONNX's runs pixel by pixel, and counts the windows of SAME_LOWER wrongly. The first maximum wins."""

    def _run(self, x: Array, *, kernel_shape: Sequence[int], storage_order: int, **said: Any) -> tuple[Array, ...]:
        windows = Windows.of(x.shape[2:], kernel_shape, said)
        lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
        whole = windows.padded(x, lowest)
        if len(self.onnx_node.output) == 1:
            return (reduce(np.maximum, (whole[tap] for tap in windows.taps())),)
        order = np.arange(prod(x.shape[2:])).reshape(x.shape[2:], order="F" if storage_order else "C")
        places = windows.padded(order, -1)
        y = np.full((*x.shape[:2], *windows.out), lowest, x.dtype)
        indices = np.full(y.shape, -1)
        for tap in windows.taps():
            better = (places[tap] >= 0) & ((whole[tap] > y) | (indices < 0))
            y, indices = np.where(better, whole[tap], y), np.where(better, places[tap], indices)
        planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(windows.out))
        return y, indices + planes * order.size


class AveragePool(OpRun):
    """ONNX's runs pixel by pixel, and spreads what ceil mode adds to both sides."""

    def _run(self, x: Array, *, kernel_shape: Sequence[int], count_include_pad: int, **said: Any) -> tuple[Array, ...]:
        windows = Windows.of(x.shape[2:], kernel_shape, said)
        return ((windows.sums(x) / windows.counts(x.shape[2:], bool(count_include_pad))).astype(x.dtype),)


class LpPool(OpRun):
    """ONNX's is a mean times the size of the whole kernel, too large wherever a window reaches into the pads."""

    def _run(self, x: Array, *, kernel_shape: Sequence[int], p: int, **said: Any) -> tuple[Array, ...]:
        sums = Windows.of(x.shape[2:], kernel_shape, said).sums(np.abs(x) ** p)
        return ((sums ** (1 / p)).astype(x.dtype),)


class GlobalLpPool(OpRun):
    """ONNX's evaluator has none."""

    def _run(self, x: Array, *, p: int) -> tuple[Array, ...]:
        sums = (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
        return ((sums ** (1 / p)).astype(x.dtype),)


class GlobalMaxPool(OpRun):
    """ONNX's reduces the wrong axes except in 2-D."""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)
