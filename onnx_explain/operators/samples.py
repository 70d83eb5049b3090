"""Where the samples of a batch are in every value: on which axis, alone or merged with others, or nowhere apart.

An axis that holds them has outer x samples x inner entries, in row-major order: [N·T, C] is (axis 0, 1, T), [T·N, C] is (axis 0,
T, 1), tokens first [T, N, C] (axis 1, 1, 1). What an operator does to an axis its room says (`Room.axes`); an axis of which
nothing is said stays, or is broadcast. Sizes say how much of a merged axis a slice or a join has left. What is made of
this is the affair of rules and walks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from math import prod

import onnx_ir as ir

from onnx_explain.errors import ExplainError
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.roles import find


@dataclass(frozen=True)
class Held:
    """The axis that counts the samples, and how many entries of it lie before a sample's next one and within one sample."""

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def alone(self) -> bool:
        """Whether the axis counts samples and nothing else."""
        return self.outer * self.inner == 1


FIRST = Held()


class Nowhere(Enum):
    """Why no axis holds the samples."""

    ONE = "all of it is one sample's"
    MIXED = "an operator joins entries of several samples"
    UNKNOWN = "lost sight of"


Place = Held | Nowhere


def follow(nodes: Iterable[ir.Node], starts: Mapping[int, Held], batch: str) -> dict[int, Place]:
    """The place in every value that the nodes, in order, make of the values {id} that the samples start at.

    batch: the number of samples as shapes write it, ``N`` or a number. Values without an entry do not depend on the samples.
    """
    places: dict[int, Place] = dict(starts)
    for node in nodes:
        held = {k: places[id(v)] for k, v in enumerate(node.inputs) if v is not None and id(v) in places}
        if not held:
            continue
        operation = Operation.of(node)
        for y in node.outputs:
            places[id(y)] = _result(operation, held, y, batch)
    return places


def moves(node: Operation, k: int) -> list[int | None]:
    """For each axis of operand k its place in the first result; None where its entries are joined, picked or summed."""
    room, x, y = find(node), node.input(k), node.y
    if room is not None and room.axes is not None:
        return list(room.axes(node, k))
    before, after = _sizes(x), _sizes(y)
    added = len(after) - len(before)
    if added == 0 or (added > 0 and all(d in ("1", e) for d, e in zip(before, after[added:]))):
        return [a + added for a in range(len(before))]
    return [0 if a == 0 and before[:1] == after[:1] else None for a in range(len(before))]


def moved(node: Operation, k: int) -> list[int | None]:
    """As `moves`, and nothing at all of a node that its room refuses."""
    try:
        return moves(node, k)
    except ExplainError:
        return []


def contracted(node: Operation, k: int) -> list[int]:
    """The axes of operand k that the operator joins: what one entry of the result is made of."""
    return [a for a, there in enumerate(moves(node, k)) if there is None]


def _result(node: Operation, held: Mapping[int, Place], y: Value, batch: str) -> Place:
    found: list[Place] = [_moved(node, k, place, y, batch) for k, place in held.items()]
    for nowhere in Nowhere:
        if nowhere in found:
            return nowhere
    return found[0] if len(set(found)) == 1 else Nowhere.MIXED


def _moved(node: Operation, k: int, place: Place, y: Value, batch: str) -> Place:
    if isinstance(place, Nowhere):
        return place
    x, room = node.input(k), find(node)
    if x.shape is None or y.shape is None:
        return Nowhere.UNKNOWN
    if room is not None and room.keeps_order:
        return _reshaped(place, x, y, batch)
    there = moved(node, k)
    if place.axis >= len(there):
        return Nowhere.UNKNOWN
    axis = there[place.axis]
    if axis is None or axis >= rank(y):
        return Nowhere.MIXED
    return _cut(Held(axis, place.outer, place.inner), many(_sizes(y)[axis], batch))


def _cut(place: Held, left: int | None) -> Place:
    """What is left of an axis that has `left` entries per sample now."""
    if left is None:
        return Nowhere.MIXED
    if left % place.inner == 0:
        return Held(place.axis, left // place.inner, place.inner)
    return Held(place.axis, place.outer, left // place.outer) if left % place.outer == 0 else Nowhere.MIXED


def _reshaped(place: Held, x: Value, y: Value, batch: str) -> Place:
    """The same entries in another shape: as many of them lie before the samples as before."""
    leading = dims(x)[: place.axis]
    if any(d is None for d in leading):
        return Nowhere.UNKNOWN
    before, product = prod(d or 1 for d in leading) * place.outer, 1
    for axis, size in enumerate(_sizes(y)):
        left = many(size, batch)
        if left is not None and before % product == 0 and left % (before // product) == 0:
            outer = before // product
            return Held(axis, outer, left // outer)
        if not size.isdecimal() or before % (product * int(size)):
            return Nowhere.UNKNOWN
        product *= int(size)
    return Nowhere.UNKNOWN


def many(size: str, batch: str) -> int | None:
    """How many entries of an axis there are for each sample; None where their number is no multiple."""
    if size == batch:
        return 1
    if batch.isdecimal():
        return int(size) // int(batch) if size.isdecimal() and int(size) % int(batch) == 0 and int(size) else None
    name, star, times = size.partition("*")
    return int(times) if star and name == batch else None


def _sizes(value: Value) -> list[str]:
    return [str(d) for d in value.shape or ()]
