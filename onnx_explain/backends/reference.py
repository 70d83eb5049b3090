"""The float64 backend: ONNX's own evaluator, with the operators replaced that it gets wrong, rounds, or is slow in.

Here live the runner and the replacements, each with the reason why it is there; those with windows are in `windows.py`,
Resize in `interpolation.py`, what reads between pixels in `sampling.py`.
Models are widened in `ir/widen.py`; they are canonical: opset 18 or later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from math import erf, erfc, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnx_explain.backends.interpolation import Resize
from onnx_explain.backends.onnx import Arrays
from onnx_explain.backends.sampling import AffineGrid, GridSample, RoiAlign
from onnx_explain.backends.windows import (
    AveragePool,
    Conv,
    ConvTranspose,
    GlobalLpPool,
    GlobalMaxPool,
    LpPool,
    MaxPool,
    padded,
)
from onnx_explain.ir.message import whole

Array = npt.NDArray[Any]


class Reference:
    """A model in ONNX's evaluator with the replacements below: the model's own precision, float64 included."""

    def __init__(self, model: ir.Model) -> None:
        self._evaluator = ReferenceEvaluator(whole(model), new_ops=list(REPLACED))
        self.outputs = [v.name or "" for v in model.graph.outputs]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; `outputs` picks some."""
        names = list(outputs or self.outputs)
        with np.errstate(all="ignore"):
            return dict(zip(names, self._evaluator.run(names, dict(feeds))))


class Erf(OpRun):
    """ONNX's rounds to float32."""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (_each(erf, x),)


class Gelu(OpRun):
    """ONNX's is expanded into the Erf that rounds; x·erfc(-x/√2)/2 keeps its digits far below zero, too."""

    def _run(self, x: Array, *, approximate: str) -> tuple[Array, ...]:
        cubic = sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        doubled = 1 + np.tanh(cubic) if approximate == "tanh" else _each(erfc, -x / sqrt(2))
        return ((0.5 * x * doubled).astype(x.dtype),)


def _each(function: Callable[[float], float], x: Array) -> Array:
    """A function of the standard library, element by element."""
    return np.fromiter(map(function, x.ravel().tolist()), x.dtype, x.size).reshape(x.shape)


class HardSwish(OpRun):
    """ONNX's is expanded with 1/6 rounded to float32."""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return ((x * np.clip(x / 6 + 0.5, 0, 1)).astype(x.dtype),)


class LogSoftmax(OpRun):
    """ONNX's is the logarithm of a softmax: minus infinity where that underflows."""

    def _run(self, x: Array, *, axis: int) -> tuple[Array, ...]:
        low = x - x.max(axis=axis, keepdims=True)
        return (low - np.log(np.exp(low).sum(axis=axis, keepdims=True)),)


class BatchNormalization(OpRun):
    """ONNX's adds ε as float32 stores it; meant is its decimal, 1e-5 and not 9.99999975e-06: `Operation.float`'s."""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, *,
        epsilon: float, momentum: float, training_mode: int,
    ) -> tuple[Array, ...]:  # fmt: skip
        running = ()
        if training_mode:
            over = (0, *range(2, x.ndim))
            here = x.mean(axis=over), x.var(axis=over)
            running = tuple(old * momentum + new * (1 - momentum) for old, new in zip((mean, var), here))
            mean, var = here
        deviation = np.sqrt(var + float(str(np.float32(epsilon))))
        scale, bias, mean, deviation = (a.reshape(-1, *[1] * (x.ndim - 2)) for a in (scale, bias, mean, deviation))
        return ((scale * (x - mean) / deviation + bias).astype(x.dtype), *running)


class GroupNormalization(OpRun):
    """ONNX's is expanded with a cast to float32 from opset 21 on. The scale is [groups] before, [channels] from there on."""

    def _run(
        self, x: Array, scale: Array, bias: Array, *, num_groups: int, epsilon: float, **_: Any
    ) -> tuple[Array, ...]:
        grouped = x.reshape(x.shape[0], num_groups, -1)
        centred = grouped - grouped.mean(axis=2, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + epsilon)
        each, shape = x.shape[1] // len(scale), (-1, *[1] * (x.ndim - 2))
        scale, bias = np.repeat(scale, each).reshape(shape), np.repeat(bias, each).reshape(shape)
        return ((normal.reshape(x.shape) * scale + bias).astype(x.dtype),)


class MeanVarianceNormalization(OpRun):
    """ONNX's is expanded with a float32 constant, and then refuses float64."""

    def _run(self, x: Array, *, axes: Sequence[int]) -> tuple[Array, ...]:
        centred = x - x.mean(axis=tuple(axes), keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=tuple(axes), keepdims=True))
        return ((centred / (deviation + 1e-9)).astype(x.dtype),)


class LRN(OpRun):
    """ONNX's iterates over the batch instead of the channels, and wants rank 4."""

    def _run(self, x: Array, *, alpha: float, beta: float, bias: float, size: int) -> tuple[Array, ...]:
        reach = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)]
        squares, channels = np.pad(x**2, reach), x.shape[1]
        total = reduce(np.add, (squares[:, k : k + channels] for k in range(size)))
        return ((x / (bias + float(alpha) / size * total) ** beta).astype(x.dtype),)


class LpNormalization(OpRun):
    """ONNX's forgets the magnitude, and divides by zero."""

    def _run(self, x: Array, *, axis: int, p: int) -> tuple[Array, ...]:
        norm = (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
        return ((x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


class Mean(OpRun):
    """ONNX's adds in place and cannot broadcast its first operand."""

    def _run(self, *x: Array) -> tuple[Array, ...]:
        return ((reduce(np.add, x) / len(x)).astype(x[0].dtype),)


class Pad(OpRun):
    """ONNX's cannot cut off (negative amounts)."""

    def _run(
        self, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, *, mode: str
    ) -> tuple[Array, ...]:
        widths = np.zeros((x.ndim, 2), np.int64)
        widths[slice(None) if axes is None else axes] = pads.reshape(2, -1).T
        return (padded(x, widths, mode, 0 if value is None else value.item()),)


REDUCTIONS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scattered(data: Array, places: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    """The data with updates[i] at places[i]; equal places combine by the reduction, or keep the last."""
    y = data.copy()
    if reduction in REDUCTIONS:
        REDUCTIONS[reduction].at(y, places, updates)
    else:
        y[places] = updates
    return y


class ScatterElements(OpRun):
    """ONNX's runs element by element; the adjoint of Gather is one over the whole tensor."""

    def _run(
        self, data: Array, indices: Array, updates: Array, *, axis: int, reduction: str = "none"
    ) -> tuple[Array, ...]:
        places: list[Array] = list(np.indices(indices.shape, sparse=True))
        places[axis] = indices
        return (_scattered(data, tuple(places), updates, reduction),)


class GatherElements(OpRun):
    """ONNX's wants as many indices as the data have entries along every other axis."""

    def _run(self, data: Array, indices: Array, *, axis: int) -> tuple[Array, ...]:
        places: list[Array] = list(np.indices(indices.shape, sparse=True))
        places[axis] = indices
        return (data[tuple(places)],)


class ScatterND(OpRun):
    """ONNX's runs index by index."""

    def _run(self, data: Array, indices: Array, updates: Array, *, reduction: str = "none") -> tuple[Array, ...]:
        return (_scattered(data, tuple(np.moveaxis(indices, -1, 0)), updates, reduction),)


class DequantizeLinear(OpRun):
    """ONNX's rounds to float32, and has no form below opset 19."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero: Array | None = None,
        *,
        axis: int | None = None,
        block_size: int | None = None,
        output_dtype: int | None = None,
    ) -> tuple[Array, ...]:
        along = 1 if axis is None else axis
        offset = 0.0 if zero is None else _along(zero.astype(np.float64), x, along, block_size or 0)
        y = (x.astype(np.float64) - offset) * _along(scale, x, along, block_size or 0)
        return (y.astype(tensor_dtype_to_np_dtype(output_dtype) if output_dtype else scale.dtype),)


def _along(value: Array, x: Array, axis: int, block_size: int) -> Array:
    """A scale or zero point for all of x: one number, one per entry of the axis, or one per block of that axis."""
    if value.size == 1:
        return value.reshape(())
    if block_size:
        return np.take(np.repeat(value, block_size, axis), np.arange(x.shape[axis]), axis)
    return value.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])


REPLACED: tuple[type[OpRun], ...] = (
    AffineGrid, AveragePool, BatchNormalization, Conv, ConvTranspose, DequantizeLinear, Erf, GatherElements, Gelu,
    GlobalLpPool, GlobalMaxPool, GridSample, GroupNormalization, HardSwish, LogSoftmax, LpNormalization, LpPool, LRN, MaxPool,
    Mean, MeanVarianceNormalization, Pad, Resize, RoiAlign, ScatterElements, ScatterND,
)  # fmt: skip
