"""RoiAlign: means over regions of a picture, read between its pixels. Regions are no picture: they only steer.

For one region y = A·x·Bᵀ with a small matrix per axis (bilinear reading is separable, the rule for places outside too), so
the adjoint is Aᵀ·s·B. Regions that no relevance came to are left out before anything is multiplied: of a detector's
thousand proposals one is explained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, spatial
from onnx_explain.operators.roles import Linear, room


@dataclass(frozen=True)
class _Side:
    """One side of the regions: `first` and `last` are columns of the regions, `size` the picture's, `out` the result's."""

    first: int
    last: int
    size: int
    out: int
    scale: float
    samples: int
    half_pixel: bool

    def matrices(self, op: Emitter, rois: Value) -> Value:
        """[R, out, size]: how much each pixel of this side counts for each entry."""
        start, length = self._ends(op, rois)
        bins = op.Div(length, float(self.out))
        count = op.Ceil(bins) if self.samples == 0 else op.Add(op.Mul(bins, 0.0), float(self.samples))
        most = op.constant(self.samples, dtype=np.int64)
        if self.samples == 0:  # the number of places follows the region's size
            largest = op.ReduceMax(
                op.Concat(op.Reshape(count, op.ints(-1)), op.constant([1.0], like=rois), axis=0), keepdims=0
            )
            most = op.Cast(largest, to=7)
        steps = op.CastLike(op.Range(op.constant(0, dtype=np.int64), most, op.constant(1, dtype=np.int64)), rois)
        entry = op.constant(np.arange(self.out).reshape(1, -1, 1), like=rois)
        within = op.Div(op.Add(steps, 0.5), op.Max(count, op.constant(1.0, like=rois)))
        place = op.Add(start, op.Mul(op.Add(entry, within), bins))
        counted = op.And(
            op.Less(steps, count), op.And(op.GreaterOrEqual(place, -1.0), op.LessOrEqual(place, float(self.size)))
        )
        held = op.Clip(place, op.constant(0.0, like=rois), op.constant(self.size - 1.0, like=rois))
        gap = op.Abs(op.Sub(op.Unsqueeze(held, op.ints(3)), op.constant(np.arange(self.size), like=rois)))
        near = op.Relu(op.Sub(op.constant(1.0, like=rois), gap))
        weight = op.Mul(near, op.Unsqueeze(op.CastLike(counted, rois), op.ints(3)))
        total = op.ReduceSum(weight, op.ints(2), keepdims=0)
        return op.Div(total, op.Max(count, op.constant(1.0, like=rois)))

    def _ends(self, op: Emitter, rois: Value) -> tuple[Value, Value]:
        """Where each region begins and how long it is, in pixels: [R, 1, 1]."""
        ends = []
        for column in (self.first, self.last):
            picked = op.Slice(rois, op.ints(column), op.ints(column + 1), op.ints(1))
            scaled = op.Mul(op.Unsqueeze(picked, op.ints(2)), self.scale)
            ends.append(op.Sub(scaled, 0.5) if self.half_pixel else scaled)
        length = op.Sub(ends[1], ends[0])
        return ends[0], length if self.half_pixel else op.Max(length, op.constant(1.0, like=rois))


@room("RoiAlign", sign="inherits")
def roi_align(node: Operation) -> Linear:
    """Means over regions, read between pixels; the regions carry nothing."""
    if node.text("mode", "avg") != "avg":
        raise UnsupportedOperator(
            f"{node.where}: mode='max' takes the largest weighted pixel of a region, which has no room; export it with mode='avg'."
        )

    def forward(op: Emitter, x: Value, w: Value | None) -> Value:
        return op.typed(op.RoiAlign(x, node.input(1), node.input(2), **node.attributes), node.y)

    return Linear("average", forward, lambda op, s, w, like: op.typed(_spread(op, node, s, like), like))


def _sides(node: Operation, like: Value) -> tuple[_Side, _Side]:
    height, width = spatial(like)
    scale, samples = node.number("spatial_scale", 1.0), node.integer("sampling_ratio", 0)
    half = node.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    rows = _Side(1, 3, height, node.integer("output_height", 1), scale, samples, half)
    return rows, _Side(0, 2, width, node.integer("output_width", 1), scale, samples, half)


def _spread(op: Emitter, node: Operation, s: Value, like: Value) -> Value:
    """Aᵀ·s·B of every region that relevance came to, added up per picture: [N, C, H, W]."""
    rows, columns = _sides(node, like)
    reached = op.NonZero(op.ReduceMax(op.Abs(s), op.ints(1, 2, 3), keepdims=0))
    reached = op.Reshape(reached, op.ints(-1))
    s, rois, owner = (op.Gather(v, reached, axis=0) for v in (s, node.input(1), node.input(2)))
    a, b = rows.matrices(op, rois), columns.matrices(op, rois)
    along = op.MatMul(s, op.Unsqueeze(b, op.ints(1)))  # [R, C, out, W]
    channels = int(spatial(like, 1)[0])
    stacked = op.Reshape(op.Transpose(along, perm=[0, 2, 1, 3]), op.ints(-1, channels * columns.size))
    count = op.Shape(like, start=0, end=1)
    picture = op.Range(*(op.constant(0, dtype=np.int64), op.Squeeze(count), op.constant(1, dtype=np.int64)))
    own = op.CastLike(op.Equal(op.Unsqueeze(picture, op.ints(1)), op.Cast(owner, to=7)), s)  # [N, R]
    # [N, 1, R, 1] · [H, R, out]: each picture takes its own regions alone
    mine = op.Mul(op.Reshape(own, op.Concat(count, op.ints(1, -1, 1), axis=0)), op.Transpose(a, perm=[2, 0, 1]))
    sizes = op.Concat(op.Mul(count, op.ints(rows.size)), op.Mul(op.Shape(owner), op.ints(rows.out)), axis=0)
    flat = op.Reshape(mine, sizes, allowzero=1)  # of no region that relevance came to: a matrix without columns
    back = op.Reshape(op.MatMul(flat, stacked), op.ints(-1, rows.size, channels, columns.size))
    return op.Transpose(back, perm=[0, 2, 1, 3])
