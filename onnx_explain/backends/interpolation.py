"""Resize for the float64 backend: one small matrix per axis, placed as in the specification and in ONNX Runtime.

The adjoint has its own matrices in `operators/resize.py`; that the two agree is what the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Axis:
    """One axis whose `size` elements become `out`; `roi` is the part that is looked at, in units of the whole."""

    size: int
    out: int
    scale: float
    roi: tuple[float, float]

    def places(self, mode: str, dtype: type[np.floating[Any]]) -> Array:
        """Where each output lies between the inputs, [out], computed in `dtype`."""
        k, scale, last = np.arange(self.out, dtype=dtype), dtype(self.scale), self.size - 1
        if mode == "asymmetric":
            return np.asarray(k / scale)
        if mode == "align_corners":
            return np.asarray(k * last / max(self.out - 1, 1))
        if mode == "tf_crop_and_resize":
            first, final = map(dtype, self.roi)
            if self.out == 1:
                return np.asarray(k + (first + final) * dtype(0.5 * last))
            return np.asarray(first * last + k * (final - first) * last / (self.out - 1))
        if mode == "pytorch_half_pixel" and self.out == 1:
            return k
        if mode == "half_pixel_symmetric":
            # ONNX Runtime's constants are double here: the offset alone is rounded to float32
            offset = dtype(self.size / 2) * (1 - dtype(self.out) / (scale * dtype(self.size)))
            return np.asarray(float(offset) + (np.arange(self.out) + 0.5) / float(scale) - 0.5).astype(dtype)
        return np.asarray((k + dtype(0.5)) / scale - dtype(0.5))

    def picks(self, places: Array, mode: str) -> npt.NDArray[np.int64]:
        """The input that stands for each output."""
        half = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(mode, 0.0)
        upwards = mode in ("ceil", "round_prefer_floor")
        picked = np.ceil(places + half) if upwards else np.floor(places + half)
        return np.asarray(np.clip(picked, 0, self.size - 1), np.int64)

    def matrix(self, places: Array, radius: int, kernel: Callable[[Array], Array], said: Mapping[str, Any]) -> Array:
        """The interpolation by a kernel that is zero from `radius` on, [out, size]; what lies outside is the edge's."""
        stretch = min(self.scale, 1.0) if said["antialias"] else 1.0
        reach = int(np.ceil(radius / stretch))
        taps = np.floor(places).astype(np.int64)[:, None] + np.arange(1 - reach, reach + 1)
        weights = kernel(np.abs(taps - places[:, None]) * stretch)
        if said["exclude_outside"]:
            weights = np.where((taps < 0) | (taps >= self.size), 0, weights)
        if said["exclude_outside"] or said["antialias"]:
            weights = weights / weights.sum(axis=1, keepdims=True)
        matrix = np.zeros((self.out, self.size))
        np.add.at(matrix, (np.arange(self.out)[:, None], np.clip(taps, 0, self.size - 1)), weights)
        return matrix


def _linear(distance: Array) -> Array:
    return np.asarray(np.maximum(1 - distance, 0))


def _cubic(d: Array, a: float) -> Array:
    """Keys' convolution kernel."""
    near, far = ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4)
    return np.where(d < 1, near, np.where(d < 2, far, 0))


class Resize(OpRun):
    """ONNX's takes the fractional length where the specification (and ONNX Runtime) has the output's, and truncates
    scale·size in float64 (0.7·10 gives 6).
    """

    def _run(
        self, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None, *, mode: str,
        coordinate_transformation_mode: str, **said: Any,
    ) -> tuple[Array, ...]:  # fmt: skip
        kernel = _linear if mode == "linear" else partial(_cubic, a=float(said["cubic_coeff_a"]))
        y, beyond = x, []
        cropped = coordinate_transformation_mode == "tf_crop_and_resize"
        for number, axis in _axes(x.shape, roi, scales, sizes, said).items():
            if (axis.out, axis.scale) == (axis.size, 1.0) and not cropped:
                continue
            # ONNX Runtime places in float32; so do we where that decides between two pixels, and only there
            places = axis.places(coordinate_transformation_mode, np.float32 if mode == "nearest" else np.float64)
            beyond.append((slice(None),) * number + ((places < 0) | (places > axis.size - 1),))
            if mode == "nearest":
                y = np.take(y, axis.picks(places, said["nearest_mode"]), number)
            else:
                matrix = axis.matrix(places, 1 if mode == "linear" else 2, kernel, said)
                y = np.moveaxis(np.tensordot(matrix, y, (1, number)), 0, number)
        y = y.astype(x.dtype)
        for outside in beyond if cropped else []:
            y[outside] = said["extrapolation_value"]
        return (y,)


def _axes(
    shape: Sequence[int], roi: Array | None, scales: Array | None, sizes: Array | None, said: Mapping[str, Any]
) -> dict[int, Axis]:
    """The listed axes by number. Sizes that follow from scales are those of float32, as everywhere in ONNX."""
    numbers = [a % len(shape) for a in said["axes"] or range(len(shape))]
    old = np.array([shape[a] for a in numbers], np.float32)
    if scales is not None and scales.size:
        factors = np.asarray(scales, np.float32)
        new, exact = np.floor(factors * old), factors.astype(np.float64)
    else:
        new, exact = np.asarray(sizes, np.float64), np.asarray(sizes, np.float64) / old
        policy = said["keep_aspect_ratio_policy"]
        if policy != "stretch":
            exact = np.full(len(numbers), exact.min() if policy == "not_larger" else exact.max())
            new = np.floor(exact.astype(np.float32) * old + np.float32(0.5))
    parts = (
        np.array([[0.0] * len(numbers), [1.0] * len(numbers)]) if roi is None or not roi.size else roi.reshape(2, -1)
    )
    return {
        number: Axis(int(size), int(out), float(scale), (float(first), float(last)))
        for number, size, out, scale, first, last in zip(numbers, old, new, exact, *parts)
    }
