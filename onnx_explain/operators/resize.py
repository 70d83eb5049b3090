"""Resize: a separable linear map, one small matrix per resized axis, so that its adjoint is exact for every mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import ModelError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.rearrange import apply_along
from onnx_explain.operators.roles import Linear, room

Matrix = npt.NDArray[np.float64]


def _unscaled(node: Operation, k: int) -> list[int | None]:
    """The axes that keep their length."""
    return [a if str(d) == str(e) else None for a, (d, e) in enumerate(zip(node.x.shape or (), node.y.shape or ()))]


@room("Resize", sign="any", axes=_unscaled)
def resize(node: Operation) -> Linear:
    """Nearest, linear and cubic interpolation over any axes, also against aliasing and of a part."""
    matrices = {a: axis_matrix(node, a) for a in _axes(node)}

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        said = {**node.attributes, "extrapolation_value": 0.0} if _cropped(node) else dict(node.attributes)
        return op.typed(op.emit("Resize", [x, *node.inputs[1:]], said)[0], node.y)

    def transpose(op: Emitter, s: Value, w: Value | None, like: Value) -> Value:
        for axis, matrix in matrices.items():
            s = _apply(op, s, matrix, axis, rank(node.x))
        return op.typed(s, like)

    return Linear("average", forward, transpose, bias=_beyond(node, matrices))


def _beyond(node: Operation, matrices: dict[int, Matrix]) -> Callable[[Emitter], Value] | None:
    """What stands where a crop reaches beyond the input."""
    value = node.number("extrapolation_value", 0.0)
    if not _cropped(node) or value == 0.0:
        return None
    outside = np.zeros([1] * rank(node.x), dtype=bool)
    for axis, matrix in matrices.items():
        along = [1] * rank(node.x)
        along[axis] = -1
        outside = outside | (~matrix.any(axis=1)).reshape(along)
    return lambda op: op.constant(np.where(outside, value, 0.0), like=node.y)


def _apply(op: Emitter, s: Value, matrix: Matrix, axis: int, n: int) -> Value:
    """Sᵀ along one axis; a whole-number repetition is a sum over blocks."""
    out, size = matrix.shape
    factor = out // size
    if out == factor * size and np.array_equal(matrix, np.repeat(np.eye(size), factor, axis=0)):
        lead = [0] * axis
        blocks = op.Reshape(s, op.ints(*lead, size, factor, *_rest(s, axis, n)))
        summed = op.ReduceSum(blocks, op.ints(axis + 1), keepdims=0)
        summed.shape = _with(s, axis, size)
        return summed
    result = apply_along(op, s, op.constant(matrix, like=s), axis, n)
    result.shape = _with(s, axis, size)
    return result


def _rest(s: Value, axis: int, n: int) -> list[int]:
    sizes = dims(s)[axis + 1 : n]
    return [int(d) if d is not None else -1 for d in sizes]


def _with(s: Value, axis: int, size: int) -> ir.Shape:
    shape = list(s.shape or ())
    shape[axis] = size
    return ir.Shape(shape)


def _axes(node: Operation) -> list[int]:
    """The axes whose size or scale changes, or that are cropped."""
    axes = [a for a in range(rank(node.x)) if dims(node.x)[a] is not None]
    return [a for a in axes if _scale(node, a) != 1.0 or (_cropped(node) and a in _listed(node))]


def _cropped(node: Operation) -> bool:
    return node.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"


def _listed(node: Operation) -> list[int]:
    return [a % rank(node.x) for a in node.ints("axes", list(range(rank(node.x)))) or []]


def _scale(node: Operation, axis: int) -> float:
    """The scale ONNX uses for coordinates: the given one, or output size / input size where sizes are given."""
    listed = _listed(node)
    if axis not in listed:
        return 1.0
    scales = node.constant(2)
    if scales is not None and len(scales):
        return float(np.float32(scales[listed.index(axis)]))
    size, out = dims(node.x)[axis], dims(node.y)[axis]
    if size is None or out is None:
        raise ModelError(f"{node.where}: the size of axis {axis} is not known before the model runs.")
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return out / size
    sizes = node.constant(3)
    ratios = [float(s) / float(dims(node.x)[a] or 1) for s, a in zip(sizes if sizes is not None else [], listed)]
    return min(ratios) if policy == "not_larger" else max(ratios)


def axis_matrix(node: Operation, axis: int) -> Matrix:
    """The interpolation along one axis, [output size, input size]."""
    size, out = int(dims(node.x)[axis] or 0), int(dims(node.y)[axis] or 0)
    scale = _scale(node, axis)
    # ONNX Runtime places in float32, which decides between two pixels where one lies just between them
    exact = np.float32 if node.text("mode", "nearest") == "nearest" else np.float64
    found = _crop(node, axis, size, out, exact) if _cropped(node) else _places(node, scale, size, out, exact)
    places = found.astype(np.float64)
    mode = node.text("mode", "nearest")
    if mode == "nearest":
        matrix = _nearest(node, places, size)
    elif mode == "linear" and not node.integer("antialias", 0) and not node.integer("exclude_outside", 0):
        matrix = _linear(places, size)
    else:
        matrix = _filtered(node, places, size, scale)
    if _cropped(node):  # outside stands the extrapolation value
        matrix[(places < 0) | (places > size - 1)] = 0.0
    return matrix


def _places(
    node: Operation, scale: float, size: int, out: int, dtype: type[np.floating[Any]]
) -> npt.NDArray[np.floating[Any]]:
    """Where each output entry lies between the inputs, [out], computed in `dtype`."""
    mode = node.text("coordinate_transformation_mode", "half_pixel")
    k, by = np.arange(out, dtype=dtype), dtype(scale)
    if mode == "align_corners":
        return np.asarray(k * (size - 1) / max(out - 1, 1))
    if mode == "asymmetric":
        return np.asarray(k / by)
    if mode == "pytorch_half_pixel" and out == 1:
        return k
    half = np.asarray((k + dtype(0.5)) / by - dtype(0.5))
    if mode == "half_pixel_symmetric":
        return np.asarray(half + dtype(size / 2) * (1 - dtype(out) / (by * dtype(size))))
    return half


def _crop(
    node: Operation, axis: int, size: int, out: int, dtype: type[np.floating[Any]]
) -> npt.NDArray[np.floating[Any]]:
    """Places in the part of the axis that `roi` names, in units of the whole."""
    listed, roi = _listed(node), node.constant(1)
    first, last = (dtype(0.0), dtype(1.0))
    if roi is not None and len(roi) and axis in listed:
        first, last = (dtype(roi[listed.index(axis) + end * len(listed)]) for end in (0, 1))
    k = np.arange(out, dtype=dtype)
    if out == 1:
        return np.asarray(k + dtype(0.5) * (first + last) * dtype(size - 1))
    return np.asarray(first * dtype(size - 1) + k * (last - first) * dtype(size - 1) / dtype(out - 1))


def _nearest(node: Operation, places: npt.NDArray[np.float64], size: int) -> Matrix:
    mode = node.text("nearest_mode", "round_prefer_floor")
    matrix = np.zeros((len(places), size))
    for k, place in enumerate(places):
        if mode == "floor":
            pick = math.floor(place)
        elif mode == "ceil":
            pick = math.ceil(place)
        elif mode == "round_prefer_ceil":
            pick = math.floor(place + 0.5)
        else:
            pick = math.ceil(place - 0.5)
        matrix[k, min(max(pick, 0), size - 1)] = 1.0
    return matrix


def _linear(places: npt.NDArray[np.float64], size: int) -> Matrix:
    matrix = np.zeros((len(places), size))
    for k, place in enumerate(np.clip(places, 0, size - 1)):
        low = min(math.floor(place), size - 1)
        high = min(low + 1, size - 1)
        matrix[k, low] += 1.0 - (place - low)
        matrix[k, high] += place - low
    return matrix


def _filtered(node: Operation, places: npt.NDArray[np.float64], size: int, scale: float) -> Matrix:
    """By a kernel of two or four pixels; against aliasing it is stretched to what one output pixel covers."""
    cubic, antialias = node.text("mode", "nearest") == "cubic", bool(node.integer("antialias", 0))
    a, stretch = node.number("cubic_coeff_a", -0.75), min(scale, 1.0) if antialias else 1.0
    reach = math.ceil((2 if cubic else 1) / stretch)
    outside = bool(node.integer("exclude_outside", 0))
    matrix = np.zeros((len(places), size))
    for k, place in enumerate(places):
        taps = np.arange(math.floor(place) + 1 - reach, math.floor(place) + reach + 1)
        gaps = np.abs(taps - place) * stretch
        weights = np.array([_keys(a, g) if cubic else max(1.0 - g, 0.0) for g in gaps])
        if outside:
            weights = np.where((taps < 0) | (taps >= size), 0.0, weights)
        if outside or antialias:
            weights = weights / weights.sum()
        for tap, weight in zip(np.clip(taps, 0, size - 1), weights):
            matrix[k, tap] += weight
    return matrix


def _keys(a: float, d: float) -> float:
    """Keys' cubic convolution kernel."""
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    if d >= 2:
        return 0.0
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
