"""Indices and axes as an expression writes them, and which sample it means.

An axis that counts samples takes ``:`` (every sample) or one index (that sample alone); everything behind it is of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx_explain.aiming.arrays import Part, Writer
from onnx_explain.errors import TargetError
from onnx_explain.target.grammar import Expression, Listed, Rest, Span

Item = int | Span | Rest | Listed | Expression
_ALL = Span()
_FAR = (1 << 31) - 1
_MIXED = "mixes samples; write the same sample index (0, or ':') everywhere"


class Places:
    """Reads the indices of one expression. `own`: every sample is its own sample 0."""

    def __init__(self, writer: Writer, text: str, *, own: bool) -> None:
        self._writer, self._text, self._own = writer, text, own
        self._samples: dict[int | None, None] = {}
        self._whole, self._lead = "", 0  # what is being indexed, for messages

    @property
    def sample(self) -> int | None:
        """The one sample that was named; None: every one."""
        return next(iter(self._samples), None)

    def _refused(self, what: str) -> TargetError:
        return TargetError(f"Target {self._text!r} {what}.")

    # -- indices

    def indexed(self, x: Part, items: Sequence[Item], chosen: Mapping[int, Part]) -> Part:
        """`x` with an index; `chosen`: those that the run decides, by the identity of their item."""
        full, self._whole, self._lead = self._full(x, items), _told(x), int(x.shown)
        if x.shown:
            self._take(full[0])
            x = _hidden(x) if isinstance(full[0], int) else x
            full = full[1:]
        for axis in range(len(full) - 1, -1, -1):
            x = self._one(x, axis, full[axis], chosen)
        return x

    def _full(self, x: Part, items: Sequence[Item]) -> list[Item]:
        """An item for every axis: ``...`` and what is left out stand for whole axes."""
        missing = len(x.sizes) + x.shown - sum(not isinstance(i, Rest) for i in items)
        if missing < 0:
            count = len(x.sizes) + x.shown
            raise self._refused(f"has {count - missing} indices for {_told(x)}, more than its axes")
        at = next((n for n, i in enumerate(items) if isinstance(i, Rest)), len(items))
        return [*items[:at], *[_ALL] * missing, *items[at + 1 :]]

    def _take(self, item: Item) -> None:
        """Note which sample is meant; all of an expression means one, or each."""
        if item != _ALL and not isinstance(item, int):
            raise self._refused("takes some of the samples; write ':' for each, or the index of one")
        sample = item if isinstance(item, int) else None
        if self._own and sample not in (0, None):
            raise self._refused("names a sample, but every input is one of its own; write 0 or ':' for the sample")
        self._samples.setdefault(None if self._own else sample)
        if len(self._samples) > 1:
            raise self._refused(_MIXED)

    def agree(self, parts: Sequence[Part]) -> None:
        """Refuse one sample beside every sample, which would cross from one to another."""
        shown = {p.shown for p in parts if p.sampled}
        if True in shown:
            self._take(_ALL)
        if len(shown) > 1 and not self._own:
            raise self._refused(_MIXED)

    def _axis(self, axis: int) -> str:
        return f"axis {axis + self._lead} of {self._whole}"

    def _one(self, x: Part, axis: int, item: Item, chosen: Mapping[int, Part]) -> Part:
        size = x.sizes[axis]
        if isinstance(item, int):
            return self._entry(x, axis, item)
        if isinstance(item, Listed):
            if not isinstance(size, int):
                raise self._refused(f"lists entries of {self._axis(axis)}, whose size only the run knows")
            return self._writer.gathered(x, axis, [self._inside(x, axis, p, size) for p in item.places])
        if isinstance(item, Span):
            return self._span(x, axis, item)
        place = chosen[id(item)]
        self.agree([x, place])
        if place.bound is not None and isinstance(size, int) and place.bound > size:
            raise self._refused(f"picks one of {place.bound} places, but {self._axis(axis)} has {size} entries")
        return self._writer.chosen(x, axis, place)

    def _entry(self, x: Part, axis: int, place: int) -> Part:
        size = x.sizes[axis]
        if isinstance(size, int):
            return self._writer.gathered(x, axis, self._inside(x, axis, place, size))
        if place < 0:
            raise self._refused(f"counts from the end of {self._axis(axis)}, whose size only the run knows")
        op = self._writer.op
        return self._writer.chosen(x, axis, Part(op.constant(place, dtype="int64"), (), sampled=False))

    def _inside(self, x: Part, axis: int, place: int, size: int) -> int:
        if not -size <= place < size:
            raise self._refused(f"has index {place} for {self._axis(axis)}, which has {size} entries")
        return place % size

    def _span(self, x: Part, axis: int, span: Span) -> Part:
        size = x.sizes[axis]
        if span == _ALL:
            return x
        if not isinstance(size, int):
            if span.start not in (None, 0) or span.step not in (None, 1) or (span.stop or 0) < 0:
                raise self._refused(
                    f"slices {self._axis(axis)}, whose size only the run knows; ':' and ':n' are possible there"
                )
            return self._writer.sliced(x, axis, 0, _FAR if span.stop is None else span.stop, 1, None)
        kept = range(*slice(span.start, span.stop, span.step).indices(size))
        if not kept:
            raise self._refused(f"slices nothing out of {self._axis(axis)}, which has {size} entries")
        end = kept[-1] + kept.step
        return self._writer.sliced(x, axis, kept.start, end if end >= 0 else -size - 1, kept.step, len(kept))

    # -- axes

    def axes(self, x: Part, axes: Sequence[int] | None, method: str) -> list[int]:
        """The sample's axes that a method works along: those named, as the value shows them, or all."""
        if axes is None:
            return list(range(len(x.sizes)))
        found = []
        count = len(x.sizes) + x.shown
        for axis in axes:
            if not -count <= axis < count:
                raise self._refused(f"takes .{method}() along axis {axis} of {_told(x)}, which it does not have")
            if x.shown and axis % count == 0:
                raise self._refused(f"takes .{method}() over the samples (axis 0); every sample is explained by itself")
            found.append(axis % count - x.shown)
        return list(dict.fromkeys(found))


def _hidden(x: Part) -> Part:
    return replace(x, shown=False, mask=None if x.mask is None else _hidden(x.mask))


def _told(x: Part) -> str:
    return "[" + ", ".join([*(["N"] if x.shown else []), *("?" if d is None else str(d) for d in x.sizes)]) + "]"
