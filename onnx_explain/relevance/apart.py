"""Which samples a graph keeps apart on its way to the explained tensor, and where every value on it has them.

An open batch says so itself: it is called the same at both ends. Of a fixed one only its size is known, and a recurrence
whose input is [time, batch, features] has as many time steps as its output: an axis is followed, and where an operator
joins its entries it counts something else. What an operator does to an axis is `operators/samples.py`'s affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ir.canonicalize import BATCH
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.operators.samples import FIRST, Held, Nowhere, Place, follow, many
from onnx_explain.path import activity, nodes_between, tensors

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """Whether axis 0 of the explained tensor counts samples (`apart`; else all are explained as one), and the place of the
    samples in the values on the way there, as far as it is known. `batch`: their number as shapes write it; "1" where all
    there is is one sample's.
    """

    apart: bool
    batch: str = "1"
    places: Mapping[int, Place] = field(default_factory=dict)

    def place(self, value: Value) -> Place:
        """Where a value has its samples: as followed, or, where they are lost sight of, by the size of its first axis."""
        if self.batch == "1":  # all there is, wherever it lies
            return FIRST if rank(value) == 0 or dims(value)[0] == 1 else Nowhere.ONE
        found = self.places.get(id(value), Nowhere.UNKNOWN)
        first = str(value.shape[0]) if value.shape is not None and len(value.shape) else ""
        return FIRST if isinstance(found, Nowhere) and self.apart and first == self.batch else found


def arrived(relevance: Mapping[str, Array], places: Mapping[str, Place], *, by_sample: bool) -> Array:
    """All relevance: float64 [N], or [1] where the explained tensor does not keep the samples apart.

    places: where the tensors have their samples (default: first). The first tensor counts the samples; of one with another
    number every sample has an equal part.
    """
    parts = [
        _totals(r, places.get(n, FIRST)) if by_sample else np.sum(_totals(r, FIRST), keepdims=True)
        for n, r in relevance.items()
    ]
    count = len(parts[0]) if parts else 0
    even = [p if len(p) == count else np.full(count, p.sum() / max(count, 1)) for p in parts]
    return np.asarray(np.sum(even, axis=0, dtype=np.float64))


def _totals(r: Array, place: Place) -> Array:
    """The sum of each sample's relevance: float64 [N]."""
    wide = r.astype(np.float64)
    if wide.ndim == 0 or place is Nowhere.ONE:
        return np.asarray([wide.sum()])
    held = place if isinstance(place, Held) else FIRST
    first = np.moveaxis(wide, held.axis, 0)
    return np.asarray(first.reshape(held.outer, -1, held.inner, first[0].size).sum((0, 2, 3)))


def keeps_samples(model: ir.Model, y: Value, wrt: Iterable[str]) -> bool:
    """Whether axis 0 of y counts samples, as it does in the first of the explained tensors `wrt` that has axes."""
    if rank(y) and dims(y)[0] is None:
        return batch_is_open(model)
    return samples_of(model, y, wrt).apart


def batch_is_open(model: ir.Model) -> bool:
    """Whether a canonical model takes any number of samples.

    What is open behind a fixed batch only the run knows: how many boxes a detector keeps.
    """
    return any(v.shape is not None and len(v.shape) and str(v.shape[0]) == BATCH for v in model.graph.inputs)


def samples_of(model: ir.Model, y: Value, wrt: Iterable[str]) -> Samples:
    """The samples of the explained tensors `wrt` on their way to y."""
    names, known = list(wrt), tensors(model)
    sources = [known[n] for n in names if known[n].shape is not None and rank(known[n])]
    if not sources or y.shape is None:
        return Samples(False)
    active, live = activity(model, names)
    way = _Way(nodes_between(model, [y], active, live), y, sources)
    if batch_is_open(model):
        starts = {id(v): place for v in sources for place in way.starts(v, BATCH)[:1]}
        return Samples(rank(y) > 0 and dims(y)[0] is None, BATCH, follow(way.nodes, starts, BATCH))
    return way.fixed()


@dataclass(frozen=True)
class _Way:
    """The nodes from the sources to y."""

    nodes: Sequence[ir.Node]
    y: Value
    sources: Sequence[Value]

    def starts(self, source: Value, batch: str) -> list[Held]:
        """The axes of a source that may count so many samples: the first before others, those that do so alone before merged."""
        sizes = [many(str(d), batch) for d in source.shape or ()]
        return [Held(a) for a, n in enumerate(sizes) if n == 1] + [
            Held(a, 1, n) for a, n in enumerate(sizes) if n and n > 1
        ]

    def fixed(self) -> Samples:
        """Of a fixed batch: axis 0 of the first source, where nothing joins its entries; else the axis that reaches y alone."""
        first, y = self.sources[0], self.y
        batch, same = str(first.shape[0]) if first.shape else "1", rank(y) > 0 and dims(y)[0] == dims(first)[0]
        if same and batch == "1":
            return Samples(True)
        goal = self._end({id(first): FIRST}, batch)
        if same and goal in (FIRST, Nowhere.UNKNOWN):
            return Samples(True, batch, self._all(FIRST, goal, batch))
        for axis, size in enumerate(first.shape or ()):
            goal = self._end({id(first): Held(axis)}, str(size))
            if str(size) != "1" and str(size).isdecimal() and isinstance(goal, Held):
                return Samples(False, str(size), self._all(Held(axis), goal, str(size)))
        return Samples(False, "")

    def _end(self, starts: Mapping[int, Held], batch: str) -> Place:
        return follow(self.nodes, starts, batch).get(id(self.y), Nowhere.UNKNOWN)

    def _all(self, start: Held, goal: Place, batch: str) -> Mapping[int, Place]:
        """The places of all values, with every other source begun at the axis that leads where the first one does."""
        starts = {id(self.sources[0]): start}
        for source in self.sources[1:]:
            found = [held for held in self.starts(source, batch) if self._end({id(source): held}, batch) == goal]
            starts.update({id(source): held for held in found[:1]})
        return follow(self.nodes, starts, batch)
