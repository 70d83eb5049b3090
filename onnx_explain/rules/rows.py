"""Dense layers whose samples are not first, seen row by row: [samples, rows of a sample, features], and back.

For rules that look at all rows of a sample together. Where it is not known which rows are one sample's, every row is taken by
itself. Convolutions stay as they are: each entry of their first axis is a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx_explain.ir.composite import CompositeNode
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.matmul import of_samples
from onnx_explain.operators.roles import Linear, PerSample
from onnx_explain.operators.samples import Held, Nowhere, Place, contracted, moves
from onnx_explain.rules.share import Step, place_of, told


@dataclass(frozen=True)
class Turned:
    """A dense layer's input and relevance with the samples first and the features last, and its form per sample."""

    form: PerSample
    x: Value
    r: Value
    view: _View

    def back(self, op: Emitter, share: Value, like: Value) -> Value:
        """The relevance of the input as the input is laid out."""
        return op.typed(self.view.undone(op, share), like)


@dataclass(frozen=True)
class _View:
    """A tensor with the axes in the `order` of rows, then features."""

    value: Value
    order: list[int]
    place: Place

    @property
    def _sizes(self) -> list[int]:
        sizes = [dims(self.value)[a] for a in self.order]
        return [-1 if d is None else d for d in sizes]

    @property
    def _apart(self) -> tuple[list[int], list[int]]:
        """The shape that has the samples on an axis of their own, and the order that puts it first."""
        if not isinstance(self.place, Held):
            whole = self.place is Nowhere.ONE
            return ([1, -1, self._sizes[-1]] if whole else [-1, 1, self._sizes[-1]]), [0, 1, 2]
        at = self.order.index(self.place.axis)
        shape = [*self._sizes[:at], self.place.outer, -1, self.place.inner, *self._sizes[at + 1 :]]
        return shape, [at + 1, *(a for a in range(len(shape)) if a != at + 1)]

    def done(self, op: Emitter) -> Value:
        """With the samples first."""
        shape, order = self._apart
        rows = op.Reshape(op.Transpose(self.value, perm=self.order), op.ints(*shape))
        return op.typed_rank(op.Transpose(rows, perm=order), len(shape))

    def undone(self, op: Emitter, value: Value) -> Value:
        """A tensor like the result of `done`, back in the first layout."""
        shape, order = self._apart
        apart = op.Transpose(value, perm=[order.index(a) for a in range(len(shape))])
        rows = op.Reshape(apart, op.Gather(op.shape_of(self.value), op.ints(*self.order)))
        return op.Transpose(rows, perm=[self.order.index(a) for a in range(len(self.order))])


def places(step: Step, role: Linear) -> dict[str, Any]:
    """A rule's parameter: where the input has its samples, if that is not first and rows can be told."""
    x = step.node.input(role.data)
    plain = not role.spatial and _features(step.node, role.data) is not None
    return told(x=step.place(x)) if plain else {}


def turned(op: Emitter, node: CompositeNode, role: Linear) -> Turned | None:
    """The layer with its samples first; None where they are so already."""
    found = _features(node.node, role.data)
    if "samples" not in node.rule or found is None:
        return None
    place, x, y = place_of(node.rule, "x"), node.node.input(role.data), node.node.y
    there = moves(node.node, role.data)
    own = [a for a in range(rank(x)) if a != found[0]]
    result = [a for a in (there[i] for i in own) if a is not None]
    moved = Held(there[place.axis] or 0, place.outer, place.inner) if isinstance(place, Held) else place
    view, other = _View(x, [*own, found[0]], place), _View(op.typed(node.r, y), [*result, found[1]], moved)
    form = of_samples(0, dims(x)[found[0]] or 1, dims(y)[found[1]] or 1)
    return Turned(form, view.done(op), other.done(op), view)


def _features(node: Operation, data: int) -> tuple[int, int] | None:
    """The axis of the input that a dense operator joins, and the one of its result that it makes; None of any other."""
    joined, there = contracted(node, data), moves(node, data)
    made = [a for a in range(rank(node.y)) if a not in there]
    if len(joined) != 1 or len(made) != 1 or rank(node.input(1 - data)) != 2:
        return None
    return joined[0], made[0]
