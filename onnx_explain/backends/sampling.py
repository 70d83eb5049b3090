"""GridSample, AffineGrid and RoiAlign for the float64 backend: read between pixels as ONNX Runtime does.

ONNX's evaluator reads GridSample one place at a time and places outside elsewhere than the runtime, rounds AffineGrid to
float32, and has RoiAlign's old form wrong.
"""

from __future__ import annotations

from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]


def _folded(x: Array, low: float, high: float) -> Array:
    """Reflected at both ends as often as it takes."""
    if high <= low:
        return np.full_like(x, low)
    rest = np.mod(x - low, 2 * (high - low))
    return np.asarray(low + np.minimum(rest, 2 * (high - low) - rest))


def _cubic(d: Array) -> Array:
    """Keys' kernel with a = -0.75."""
    a, d = -0.75, np.abs(d)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    return np.where(d <= 1, near, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


def _taps(u: Array, size: int, mode: str, padding: str, align: bool) -> list[tuple[Array, Array]]:
    """(entry, weight) per tap, of the numbers `u` along one axis."""
    low, high = (0.0, size - 1.0) if align else (-0.5, size - 0.5)
    place = (u + 1) / 2 * (size - 1) if align else ((u + 1) * size - 1) / 2
    place = np.rint(place) if mode == "nearest" else place
    if mode == "nearest":
        steps, weight = [place], [np.ones_like(place)]
    else:
        reach = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
        steps = [np.floor(place) + k for k in reach]
        weight = [1 - np.abs(place - s) if mode == "linear" else _cubic(place - s) for s in steps]
    found = []
    for step, w in zip(steps, weight):
        if padding == "reflection":
            step = np.rint(_folded(step, low, high))
        kept = np.clip(step, 0, size - 1)
        found.append((kept.astype(np.int64), np.where(kept == step, w, 0) if padding == "zeros" else w))
    return found


class GridSample(OpRun):
    """Every combination of taps at once."""

    def _run(self, x: Array, grid: Array, *, mode: str, padding_mode: str, align_corners: int) -> tuple[Array, ...]:
        names = {"bilinear": "linear", "bicubic": "cubic"}
        k = x.ndim - 2
        axes = [
            _taps(grid[..., k - 1 - a], x.shape[2 + a], names.get(mode, mode), padding_mode, bool(align_corners))
            for a in range(k)
        ]
        samples = np.arange(len(x)).reshape(-1, *[1] * k)
        y, pixels = np.zeros((*grid.shape[:-1], x.shape[1]), x.dtype), np.moveaxis(x, 1, -1)
        for taps in product(*axes):
            weight = reduce(np.multiply, [w for _, w in taps])
            y += pixels[(samples, *(i for i, _ in taps))] * weight[..., None]
        return (np.moveaxis(y, -1, 1),)


class AffineGrid(OpRun):
    """theta·(place, 1) for every pixel."""

    def _run(self, theta: Array, size: Array, *, align_corners: int) -> tuple[Array, ...]:
        sizes = [int(s) for s in size[2:]]
        reach = [1.0 if align_corners else 1 - 1 / s for s in sizes]
        lines = [
            np.linspace(-r, r, s) if s > 1 else np.zeros(1) - (align_corners and 1.0) for r, s in zip(reach, sizes)
        ]
        places = np.stack([*reversed(np.meshgrid(*lines, indexing="ij")), np.ones(sizes)], -1)
        return (np.einsum("...k,nik->n...i", places, theta).astype(theta.dtype),)


class RoiAlign(OpRun):
    """A small matrix per region and side; the form of opset 10 is not moved by half a pixel."""

    def _run(self, x: Array, rois: Array, owner: Array, **said: Any) -> tuple[Array, ...]:
        if said.get("mode", "avg") != "avg":
            raise NotImplementedError("RoiAlign of maxima")
        height, width = said["output_height"], said["output_width"]
        y = np.zeros((len(rois), x.shape[1], height, width), x.dtype)
        for into, roi, image in zip(y, rois, owner):
            a = self._side(roi[1], roi[3], x.shape[2], height, said)
            b = self._side(roi[0], roi[2], x.shape[3], width, said)
            into[:] = a @ x[image] @ b.T
        return (y,)

    @staticmethod
    def _side(start: Any, end: Any, size: int, out: int, said: dict[str, Any]) -> Array:
        half = said.get("coordinate_transformation_mode", "output_half_pixel") == "half_pixel"
        start, end = (v * said["spatial_scale"] - 0.5 * half for v in (start, end))
        bins = (end - start if half else max(end - start, 1.0)) / out
        count = said["sampling_ratio"] or int(np.ceil(bins))
        matrix = np.zeros((out, size))
        for k, step in product(range(out), range(count)):
            place = start + (k + (step + 0.5) / count) * bins
            if -1.0 <= place <= size:
                gap = np.abs(np.arange(size) - np.clip(place, 0, size - 1))
                matrix[k] += np.maximum(1 - gap, 0) / count
        return matrix
