"""The float64 backend: ONNX's own evaluator, with the operators replaced that it gets wrong, rounds or runs for minutes.

Here live the runner, the widening of a model to float64, and the replacements, each with the reason why it is there.
Windows are walked by kernel offset, never by pixel. The models are canonical: opset 18 or later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import erf, erfc, prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_batch_normalization import BatchNormalization_14

from onnx_explain.backends.onnx import Arrays

Array = npt.NDArray[Any]
Index = tuple[Any, ...]


class Reference:
    """A model in ONNX's evaluator with this module's replacements: the model's own precision, float64 included."""

    def __init__(self, model: ir.Model) -> None:
        self._evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=list(REPLACED))
        self.outputs = [v.name or "" for v in model.graph.outputs]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; `outputs` picks some."""
        names = list(outputs or self.outputs)
        with np.errstate(all="ignore"):
            return dict(zip(names, self._evaluator.run(names, dict(feeds))))


def as_float64(model: ir.Model) -> ir.Model:
    """A canonical model with every float32 tensor, constant and cast widened to float64; a new model."""
    wide = model.clone()
    for value in (*wide.graph.inputs, *wide.graph.initializers.values(), *(v for n in wide.graph for v in n.outputs)):
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = ir.DataType.DOUBLE
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float64), name=value.name)
    for node in wide.graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == ir.DataType.FLOAT:
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.as_tensor().numpy().astype(np.float64)))
            casts = name in ("to", "dtype") and attribute.type == ir.AttributeType.INT
            if casts and attribute.as_int() == onnx.TensorProto.FLOAT:
                node.attributes[name] = ir.AttrInt64(name, onnx.TensorProto.DOUBLE)
    return wide


# -- windows


def _padded(x: Array, widths: npt.NDArray[np.int64], mode: Any = "constant", value: Any = 0) -> Array:
    """x with widths[axis] = (before, after) elements added; negative ones are cut off before anything is added."""
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
        pads = [0] * 2 * n if said["auto_pad"] == "VALID" or not said["pads"] else said["pads"]
        begin, end, out = pads[:n], pads[n:], []
        for s, b, a, st, e in zip(size, begin, end, strides, extents):
            room = s + b + a - e
            count = (-(-room // st) if ceil else room // st) + 1
            out.append(count - 1 if ceil and (count - 1) * st >= s + b else count)
        return Windows(kernel, strides, dilations, begin, end, out)

    def taps(self) -> Iterator[Index]:
        """Per kernel offset, in row-major order, what all windows hold there: an index of the padded input."""
        for tap in product(*map(range, self.kernel)):
            geometry = zip(tap, self.dilations, self.strides, self.out)
            yield (..., *(slice(t * d, t * d + (o - 1) * st + 1, st) for t, d, st, o in geometry))

    def padded(self, x: Array, value: float = 0) -> Array:
        """x [*any, *size] with `value` wherever a window reaches beyond it."""
        size = x.shape[x.ndim - len(self.out) :]
        reach = [(o - 1) * st + e for o, st, e in zip(self.out, self.strides, _extents(self.kernel, self.dilations))]
        widths = [(b, max(r - b - s, 0)) for b, r, s in zip(self.begin, reach, size)]
        return _padded(x, np.array([(0, 0)] * (x.ndim - len(size)) + widths), value=value)

    def sums(self, x: Array) -> Array:
        """The sum over each window, [*any, *out]."""
        padded = self.padded(x)
        return reduce(np.add, (padded[tap] for tap in self.taps()))

    def counts(self, size: Sequence[int], with_pads: bool) -> Array:
        """The divisor of each window's mean, [*out]: its elements in the input, or also those in the declared pads."""
        if not with_pads:
            return self.sums(np.ones(size))
        inside = np.ones([b + s + e for b, s, e in zip(self.begin, size, self.end)])
        zero = [0] * len(size)
        return Windows(self.kernel, self.strides, self.dilations, zero, zero, self.out).sums(inside)


def _extents(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]


def _halves(totals: Sequence[int], auto_pad: str) -> tuple[list[int], list[int]]:
    """Padding before and after; the odd element goes to the end for SAME_UPPER, to the start otherwise."""
    begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals]
    return begin, [t - b for t, b in zip(totals, begin)]


class Conv(OpRun):
    """onnx's is right but slow: index arrays of its patches' size, and one pass per group."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, *, group: int, **said: Any) -> tuple[Array, ...]:
        windows = Windows.of(x.shape[2:], w.shape[2:], said)
        y = np.empty((x.shape[0], w.shape[0], *windows.out), x.dtype)
        weight = w.reshape(group, w.shape[0] // group, prod(w.shape[1:]))
        for sample, into in zip(windows.padded(x), y):  # one at a time: the patches take prod(kernel) times its memory
            patches = np.stack([sample[tap] for tap in windows.taps()], axis=1)
            into[...] = (weight @ patches.reshape(group, weight.shape[2], prod(windows.out))).reshape(into.shape)
        return (_biased(y, b),)


class ConvTranspose(OpRun):
    """onnx's splits groups along the wrong axis, takes output_shape without the pads it implies, and is slow."""

    op_domain = ""

    def _run(self, x: Array, w: Array, b: Array | None = None, *, group: int, **said: Any) -> tuple[Array, ...]:
        windows, size = _transposed(x.shape[2:], w.shape[2:], said)
        channels = w.shape[1] * group
        ends = [b + s for b, s in zip(windows.begin, size)]
        y = np.zeros((x.shape[0], channels, *map(max, ends, windows.end)), x.dtype)
        weight = w.reshape(group, w.shape[0] // group, prod(w.shape[1:])).transpose(0, 2, 1)
        for sample, onto in zip(x, y):
            patches = weight @ sample.reshape(group, weight.shape[2], prod(windows.out))
            for patch, tap in zip(np.moveaxis(patches.reshape(channels, -1, *windows.out), 1, 0), windows.taps()):
                onto[tap] += patch
        return (_biased(y[(..., *map(slice, windows.begin, ends))], b),)


def _transposed(size: Sequence[int], kernel: Sequence[int], said: Mapping[str, Any]) -> tuple[Windows, list[int]]:
    """The windows a ConvTranspose writes into, and its output's spatial size.

    `begin` is what is cut off before the output; `end` holds the length that all windows and the output padding span.
    """
    n = len(size)
    strides, dilations, wanted = said["strides"] or [1] * n, said["dilations"] or [1] * n, said["output_shape"]
    extra = said["output_padding"] or [0] * n
    full = [(s - 1) * st + e + o for s, st, e, o in zip(size, strides, _extents(kernel, dilations), extra)]
    if not wanted and said["auto_pad"] in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [s * st for s, st in zip(size, strides)]
    if wanted:
        out = list(wanted[-n:])
        begin, _ = _halves([max(f - o, 0) for f, o in zip(full, out)], said["auto_pad"])
    else:
        pads = [0] * 2 * n if said["auto_pad"] == "VALID" or not said["pads"] else said["pads"]
        begin, out = pads[:n], [f - b - a for f, b, a in zip(full, pads[:n], pads[n:])]
    return Windows(kernel, strides, dilations, begin, full, size), out


def _biased(y: Array, b: Array | None) -> Array:
    return y if b is None else y + b.reshape(-1, *[1] * (y.ndim - 2))


class MaxPool(OpRun):
    """onnx's runs pixel by pixel, and counts the windows of SAME_LOWER wrongly. The first maximum wins."""

    op_domain = ""

    def _run(self, x: Array, *, kernel_shape: Sequence[int], storage_order: int, **said: Any) -> tuple[Array, ...]:
        windows = Windows.of(x.shape[2:], kernel_shape, said)
        lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
        padded = windows.padded(x, lowest)
        if len(self.onnx_node.output) == 1:
            return (reduce(np.maximum, (padded[tap] for tap in windows.taps())),)
        order = np.arange(prod(x.shape[2:])).reshape(x.shape[2:], order="F" if storage_order else "C")
        places = windows.padded(order, -1)
        y = np.full((*x.shape[:2], *windows.out), lowest, x.dtype)
        indices = np.full(y.shape, -1)
        for tap in windows.taps():
            better = (places[tap] >= 0) & ((padded[tap] > y) | (indices < 0))
            y, indices = np.where(better, padded[tap], y), np.where(better, places[tap], indices)
        planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * len(windows.out))
        return y, indices + planes * order.size


class AveragePool(OpRun):
    """onnx's runs pixel by pixel, and spreads what ceil mode adds to both sides."""

    op_domain = ""

    def _run(self, x: Array, *, kernel_shape: Sequence[int], count_include_pad: int, **said: Any) -> tuple[Array, ...]:
        windows = Windows.of(x.shape[2:], kernel_shape, said)
        return ((windows.sums(x) / windows.counts(x.shape[2:], bool(count_include_pad))).astype(x.dtype),)


class LpPool(OpRun):
    """onnx's is a mean times the size of the whole kernel, too large wherever a window reaches into the pads."""

    op_domain = ""

    def _run(self, x: Array, *, kernel_shape: Sequence[int], p: int, **said: Any) -> tuple[Array, ...]:
        sums = Windows.of(x.shape[2:], kernel_shape, said).sums(np.abs(x) ** p)
        return ((sums ** (1 / p)).astype(x.dtype),)


class GlobalMaxPool(OpRun):
    """onnx's reduces the wrong axes except in 2-D."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


# -- activations and normalisations


class Erf(OpRun):
    """onnx's rounds to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (_each(erf, x),)


class Gelu(OpRun):
    """onnx's is expanded into the Erf that rounds; x·erfc(-x/√2)/2 keeps its digits far below zero, too."""

    op_domain = ""

    def _run(self, x: Array, *, approximate: str) -> tuple[Array, ...]:
        if approximate == "tanh":
            share = 1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3))
        else:
            share = _each(erfc, -x / sqrt(2))
        return ((0.5 * x * share).astype(x.dtype),)


def _each(function: Callable[[float], float], x: Array) -> Array:
    """A function of the standard library, element by element."""
    return np.fromiter(map(function, x.ravel().tolist()), x.dtype, x.size).reshape(x.shape)


class HardSwish(OpRun):
    """onnx's is expanded with 1/6 rounded to float32."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return ((x * np.clip(x / 6 + 0.5, 0, 1)).astype(x.dtype),)


class LogSoftmax(OpRun):
    """onnx's is the logarithm of a softmax: minus infinity where that underflows."""

    op_domain = ""

    def _run(self, x: Array, *, axis: int) -> tuple[Array, ...]:
        low = x - x.max(axis=axis, keepdims=True)
        return (low - np.log(np.exp(low).sum(axis=axis, keepdims=True)),)


class BatchNormalization(BatchNormalization_14):
    """onnx's adds ε as float32 stores it; meant is its decimal, 1e-5 and not 9.99999975e-06, as in `Operation.float`."""

    op_domain = ""

    def _run(self, *inputs: Array, epsilon: float, **said: Any) -> tuple[Array, ...]:
        decimal = float(str(np.float32(epsilon)))
        y: tuple[Array, ...] = super()._run(*inputs, epsilon=decimal, **said)  # type: ignore[no-untyped-call]
        return y


class GroupNormalization(OpRun):
    """onnx's is expanded with a cast to float32 from opset 21 on. scale has [groups] before, [channels] from there on."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float, **_: Any) -> tuple[Array, ...]:
        grouped = x.reshape(x.shape[0], num_groups, -1)
        centred = grouped - grouped.mean(axis=2, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)
        each, shape = x.shape[1] // len(scale), (-1, *[1] * (x.ndim - 2))
        scale, bias = np.repeat(scale, each).reshape(shape), np.repeat(bias, each).reshape(shape)
        return ((normal.reshape(x.shape) * scale + bias).astype(x.dtype),)


class MeanVarianceNormalization(OpRun):
    """onnx's is expanded with a float32 constant, and then refuses float64."""

    op_domain = ""

    def _run(self, x: Array, *, axes: Sequence[int]) -> tuple[Array, ...]:
        centred = x - x.mean(axis=tuple(axes), keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=tuple(axes), keepdims=True))
        return ((centred / (deviation + 1e-9)).astype(x.dtype),)


class LRN(OpRun):
    """onnx's iterates over the batch instead of the channels, and wants rank 4."""

    op_domain = ""

    def _run(self, x: Array, *, alpha: float, beta: float, bias: float, size: int) -> tuple[Array, ...]:
        reach = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)]
        squares, channels = np.pad(x**2, reach), x.shape[1]
        total = reduce(np.add, (squares[:, k : k + channels] for k in range(size)))
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


# -- arithmetic and rearrangement


class Mean(OpRun):
    """onnx's adds in place and cannot broadcast its first operand."""

    op_domain = ""

    def _run(self, *x: Array) -> tuple[Array, ...]:
        return ((reduce(np.add, x) / len(x)).astype(x[0].dtype),)


class Pad(OpRun):
    """onnx's cannot cut off (negative amounts)."""

    op_domain = ""

    def _run(
        self, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, *, mode: str
    ) -> tuple[Array, ...]:
        widths = np.zeros((x.ndim, 2), np.int64)
        widths[slice(None) if axes is None else axes] = pads.reshape(2, -1).T
        return (_padded(x, widths, mode, 0 if value is None else value.item()),)


REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scattered(data: Array, places: Index, updates: Array, reduction: str) -> Array:
    """The data with updates[i] at places[i]; equal places combine by the reduction, or keep the last."""
    y = data.copy()
    if reduction in REDUCTIONS:
        REDUCTIONS[reduction].at(y, places, updates)
    else:
        y[places] = updates
    return y


class ScatterElements(OpRun):
    """onnx's runs element by element; the adjoint of Gather is one over the whole tensor."""

    op_domain = ""

    def _run(
        self, data: Array, indices: Array, updates: Array, *, axis: int, reduction: str
    ) -> tuple[Array, ...]:
        places: list[Array] = list(np.indices(indices.shape, sparse=True))
        places[axis] = indices
        return (_scattered(data, tuple(places), updates, reduction),)


class ScatterND(OpRun):
    """onnx's runs index by index."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, updates: Array, *, reduction: str) -> tuple[Array, ...]:
        return (_scattered(data, tuple(np.moveaxis(indices, -1, 0)), updates, reduction),)


# -- interpolation


@dataclass(frozen=True)
class Resized:
    """One axis: `size` elements become `out`; roi is the part of it that is looked at, in units of the whole."""

    size: int
    out: int
    scale: float
    roi: tuple[float, float]

    def coordinates(self, mode: str, dtype: type[np.floating[Any]]) -> Array:
        """Where each output lies between the inputs, computed in `dtype`."""
        k, scale, last = np.arange(self.out, dtype=dtype), dtype(self.scale), self.size - 1
        if mode == "asymmetric":
            return k / scale
        if mode == "align_corners":
            return k * last / max(self.out - 1, 1)
        if mode == "tf_crop_and_resize":
            first, final = map(dtype, self.roi)
            if self.out == 1:
                return k + (first + final) * dtype(0.5 * last)
            return first * last + k * (final - first) * last / (self.out - 1)
        if mode == "pytorch_half_pixel" and self.out == 1:
            return k
        centre = (k + dtype(0.5)) / scale
        if mode == "half_pixel_symmetric":
            centre = dtype(self.size / 2) * (1 - dtype(self.out) / (scale * dtype(self.size))) + centre
        return centre - dtype(0.5)

    def picks(self, coordinates: Array, mode: str) -> npt.NDArray[np.int64]:
        """The input that stands for each output."""
        half = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(mode, 0.0)
        upwards = mode in ("ceil", "round_prefer_floor")
        picked = np.ceil(coordinates + half) if upwards else np.floor(coordinates + half)
        return np.clip(picked, 0, self.size - 1).astype(np.int64)

    def matrix(self, coordinates: Array, radius: int, kernel: Callable[[Array], Array], said: Mapping[str, Any]) -> Array:
        """The interpolation with a kernel that is zero from `radius` on, [out, size]; what lies outside is the edge's."""
        stretch = min(self.scale, 1.0) if said["antialias"] else 1.0
        reach = int(np.ceil(radius / stretch))
        taps = np.floor(coordinates).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
        weights = kernel(np.abs(taps - coordinates[:, None]) * stretch)
        if said["exclude_outside"]:
            weights = np.where((taps < 0) | (taps >= self.size), 0, weights)
        if said["exclude_outside"] or said["antialias"]:
            weights = weights / weights.sum(axis=1, keepdims=True)
        matrix = np.zeros((self.out, self.size))
        np.add.at(matrix, (np.arange(self.out)[:, None], np.clip(taps, 0, self.size - 1)), weights)
        return matrix


def _linear(distance: Array) -> Array:
    return np.maximum(1 - distance, 0)


def _cubic(d: Array, a: float) -> Array:
    """Keys' convolution kernel."""
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4)
    return np.where(d < 1, near, np.where(d < 2, far, 0))


class Resize(OpRun):
    """onnx's takes the fractional length where the specification (and ONNX Runtime) has the output's, truncates
    scale·size in float64 (0.7·10 gives 6), and before onnx 1.19 runs pixel by pixel.
    """

    op_domain = ""

    def _run(
        self, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None, *, mode: str,
        coordinate_transformation_mode: str, **said: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        y, outside = x, []
        for axis, resized in _resized(x.shape, roi, scales, sizes, said).items():
            # ONNX Runtime places in float32: only there, where rounding decides between two pixels, so do we
            places = resized.coordinates(coordinate_transformation_mode, np.float32 if mode == "nearest" else np.float64)
            outside.append((axis, (places < 0) | (places > resized.size - 1)))
            if mode == "nearest":
                y = np.take(y, resized.picks(places, said["nearest_mode"]), axis)
                continue
            a = float(said["cubic_coeff_a"])
            radius, kernel = (1, _linear) if mode == "linear" else (2, lambda d: _cubic(d, a))
            y = np.moveaxis(np.tensordot(resized.matrix(places, radius, kernel, said), y, (1, axis)), 0, axis)
        y = y.astype(x.dtype)
        if coordinate_transformation_mode == "tf_crop_and_resize":
            for axis, beyond in outside:
                y[(slice(None),) * axis + (beyond,)] = said["extrapolation_value"]
        return (y,)


def _resized(
    shape: Sequence[int], roi: Array | None, scales: Array | None, sizes: Array | None, said: Mapping[str, Any]
) -> dict[int, Resized]:
    """The listed axes by number. Sizes that follow from scales are those of float32, as everywhere in ONNX."""
    axes = [a % len(shape) for a in said["axes"] or range(len(shape))]
    old = np.array([shape[a] for a in axes], np.float32)
    if scales is not None and scales.size:
        factors = np.asarray(scales, np.float32)
        new, exact = np.floor(factors * old), factors.astype(np.float64)
    else:
        new, exact = np.asarray(sizes, np.float64), np.asarray(sizes, np.float64) / old
        policy = said["keep_aspect_ratio_policy"]
        if policy != "stretch":
            exact = np.full(len(axes), exact.min() if policy == "not_larger" else exact.max())
            new = np.floor(exact.astype(np.float32) * old + np.float32(0.5))
    parts = np.array([[0.0] * len(axes), [1.0] * len(axes)]) if roi is None or not roi.size else roi.reshape(2, -1)
    return {
        axis: Resized(int(size), int(out), float(scale), (float(first), float(last)))
        for axis, size, out, scale, first, last in zip(axes, old, new, exact, *parts)
    }


REPLACED: tuple[type[OpRun], ...] = (
    AveragePool, BatchNormalization, Conv, ConvTranspose, Erf, Gelu, GlobalMaxPool, GroupNormalization, HardSwish,
    LogSoftmax, LpPool, LRN, MaxPool, Mean, MeanVarianceNormalization, Pad, Resize, ScatterElements, ScatterND,
)  # fmt: skip
