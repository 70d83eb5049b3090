"""Where relevance starts: one element per sample of the explained tensor, chosen by an input of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.halves import unrounded
from onnx_explain.ir.view import Value, dims, rank

ARGMAX = -1  # a target index of -1 means the arg-max, -2 that the sample is not explained


@dataclass(frozen=True)
class Start:
    """The explained tensor, seen as [samples, elements]: the chosen index and score [N], and what marks the element."""

    tensor: Value
    flat: Value
    index: Value
    score: Value
    every: Value

    def one_hot(self, op: Emitter, index: Value | None = None, *, value: bool = False) -> Value:
        """1 (or the tensor's own value) at the element `index` [N] (default: the chosen one), 0 elsewhere, flat."""
        chosen = self.index if index is None else index
        hit = op.Equal(op.Unsqueeze(chosen, op.ints(1)), op.Unsqueeze(self.every, op.ints(0)))
        one, zero = op.constant(1.0, like=self.tensor), op.constant(0.0, like=self.tensor)
        return op.Where(hit, self.flat if value else one, zero)

    def hostile(self, op: Emitter, classes: tuple[int, ...] | int, size: int | None) -> list[Value]:
        """Indices [N] of the hostile classes: those listed, or the highest besides the target."""
        if isinstance(classes, tuple):
            self._check(classes, size)
            return [op.Mul(self.index, 0) if c == 0 else op.Add(op.Mul(self.index, 0), c) for c in classes]
        if not classes:
            return []
        if size is not None and classes >= size:
            raise MethodError(
                f"hostile: the output has {size} elements, so there are not {classes} besides the target."
            )
        # the target itself is put below everything, then the highest are taken
        lowest = op.constant(np.finfo(self.tensor.dtype.numpy()).min if self.tensor.dtype else -3e38, like=self.tensor)
        hit = op.Equal(op.Unsqueeze(self.index, op.ints(1)), op.Unsqueeze(self.every, op.ints(0)))
        others = op.Where(hit, lowest, self.flat)
        _, top = op.emit("TopK", [others, op.ints(classes)], {"axis": 1}, outputs=2)
        top.dtype = ir.DataType.INT64
        return [op.Squeeze(op.Slice(top, op.ints(i), op.ints(i + 1), op.ints(1)), op.ints(1)) for i in range(classes)]

    @staticmethod
    def _check(classes: tuple[int, ...], size: int | None) -> None:
        for c in classes:
            if c < 0 or (size is not None and c >= size):
                raise MethodError(
                    f"hostile: there is no class {c}; the output has {size} elements, 0 to {(size or 1) - 1}."
                )


class Targets:
    """The target inputs of one graph: one per slot, made on first use."""

    def __init__(self, op: Emitter) -> None:
        self._op, self._inputs = op, dict[int, Value]()

    def chosen(self, slot: int, index: int, *, fixed: bool) -> Value:
        """The index that is explained: a constant where it is `fixed`, else the input of a slot, `index` by default."""
        return self._op.ints(index) if fixed else self.input(slot, index)

    def input(self, slot: int, index: int = ARGMAX) -> Value:
        """The optional int64 input [N] of a slot: ``target``, ``target_1``, … or a name that is free."""
        if slot not in self._inputs:
            stem = "target" if slot == 0 else f"target_{slot}"
            wished = chain((stem, f"explain_{stem}"), (f"explain_{stem}_{i}" for i in count()))
            taken = self._op.names | {v.name for v in self._inputs.values()}
            name = next(n for n in wished if n not in taken)
            self._inputs[slot] = self._op.input(name, default=np.asarray([index], dtype=np.int64))
        return self._inputs[slot]


def start(op: Emitter, y: Value, chosen: Value, *, by_sample: bool) -> Start:
    """The explained tensor `y`, before it is rounded to half precision, and the element of each sample that `chosen` names."""
    y = unrounded(y)
    with op.serving("target"):
        flat = op.Reshape(y, op.ints(*_flat_shape(y, by_sample)))
        size = op.Shape(flat, start=1, end=2)
        index = op.Where(op.Equal(chosen, op.ints(ARGMAX)), op.ArgMax(flat, axis=1, keepdims=0), chosen)
        every = op.Range(op.constant(0, dtype=np.int64), op.Squeeze(size, op.ints(0)), op.constant(1, dtype=np.int64))
        begun = Start(y, flat, index, index, every)
        score = op.ReduceSum(begun.one_hot(op, value=True), op.ints(1), keepdims=0)
    for v in (score, index):
        v.shape = ir.Shape([samples(y, by_sample)])
    return Start(y, flat, index, score, every)


def score_of(op: Emitter, begun: Start, y: Value, *, by_sample: bool) -> Value:
    """The score [N] that another tensor of the same shape holds at the chosen element."""
    y = unrounded(y)
    with op.serving("target"):
        flat = op.Reshape(y, op.ints(*_flat_shape(begun.tensor, by_sample)))
        score = op.ReduceSum(
            Start(y, flat, begun.index, begun.score, begun.every).one_hot(op, value=True), op.ints(1), keepdims=0
        )
    score.shape = begun.score.shape
    return score


def samples(y: Value, by_sample: bool) -> int | str:
    """How many samples the explained tensor holds, as far as it is known."""
    if rank(y) == 0 or not by_sample:
        return 1
    return dims(y)[0] or "N"


def _flat_shape(y: Value, by_sample: bool) -> list[int]:
    if not by_sample:
        return [1, -1]
    return [0, -1] if rank(y) > 1 else [-1, 1]
