"""Arrays while a model with them is being written: per sample, with the entries that count, emitted node by node.

An `Part` is a tensor of the model or something computed of one. Its first axis may count samples; no operation here ever
crosses from one sample to another, and sizes, axes and broadcasting are those of one sample. What an expression means is
`compiling`'s affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import TargetError
from onnx_explain.ir.emit import Emitter, set_dtype
from onnx_explain.ir.view import Value

BOOL, INT, FLOAT = ir.DataType.BOOL, ir.DataType.INT64, ir.DataType.FLOAT
Size = int | str | None
Sizes = tuple[Size, ...]


@dataclass(frozen=True)
class Part:
    """An array: `sizes` of one sample (text: as long as the batch, None: only the run knows, and it may be
    0); `sampled`: `value` has the samples on axis 0.

    shown: that axis can be indexed still. mask: which entries count (None: all), of the same sizes. bound: an index points
    below this (None: anywhere).
    """

    value: Value
    sizes: Sizes
    sampled: bool
    shown: bool = False
    mask: Part | None = None
    bound: int | None = None

    @property
    def is_bool(self) -> bool:
        """Whether it holds truth values."""
        return self.value.dtype == BOOL

    @property
    def is_float(self) -> bool:
        """Whether it can carry relevance."""
        return self.value.dtype is not None and self.value.dtype.is_floating_point()

    @property
    def first(self) -> int:
        """The place of the sample's own first axis in `value`."""
        return int(self.sampled)

    @property
    def told(self) -> str:
        """``[N, 3549]``, for messages."""
        return f"[{', '.join([*(['N'] if self.sampled else []), *('?' if d is None else str(d) for d in self.sizes)])}]"


class Writer:
    """Emits typed nodes. `samples`: the batch as shapes write it (``N`` or a number)."""

    def __init__(self, op: Emitter, samples: int | str) -> None:
        self.op, self._samples = op, samples

    # -- one node

    def make(
        self,
        op_type: str,
        inputs: Sequence[Value | float],
        like: Part,
        *,
        sizes: Sizes | None = None,
        sampled: bool | None = None,
        dtype: ir.DataType | None = None,
        **attributes: int | Sequence[int],
    ) -> Part:
        """A node whose result is like `like` but for what is given; without a mask."""
        value = getattr(self.op, op_type)(*inputs, **attributes)
        found = replace(
            like,
            value=value,
            sizes=like.sizes if sizes is None else sizes,
            sampled=like.sampled if sampled is None else sampled,
            mask=None,
            bound=None,
        )
        set_dtype(value, dtype or like.value.dtype)
        value.shape = ir.Shape([*([self._samples] if found.sampled else []), *found.sizes])
        return found

    def as_float(self, x: Part, dtype: ir.DataType | None = None) -> Part:
        """Truth values as 0 and 1, integers as floats; floats as they are, or as `dtype`."""
        wanted = dtype or (x.value.dtype if x.is_float else FLOAT)
        if x.value.dtype == wanted or wanted is None:
            return x
        return replace(self.make("Cast", [x.value], x, dtype=wanted, to=int(wanted)), mask=x.mask)

    # -- two arrays

    def together(self, parts: Sequence[Part]) -> tuple[list[Value], Part]:
        """The arrays with their axes lined up, and what an elementwise result of them is like (its mask: all of theirs)."""
        sizes = _broadcast(parts)
        sampled = any(p.sampled for p in parts)
        values = [self._lined_up(p, len(sizes)) for p in parts]
        shown = any(p.shown for p in parts if p.sampled)
        like = replace(parts[0], sizes=sizes, sampled=sampled, shown=shown, mask=None, bound=None)
        masks = [p.mask for p in parts if p.mask is not None]
        return values, replace(like, mask=self.every(masks) if masks else None)

    def _lined_up(self, x: Part, rank: int) -> Value:
        missing = rank - len(x.sizes)
        if not missing or not x.sampled:
            return x.value
        sizes = (*[1] * missing, *x.sizes)
        return self.make("Unsqueeze", [x.value, self.op.ints(*range(1, 1 + missing))], x, sizes=sizes).value

    def elementwise(self, op_type: str, parts: Sequence[Part], dtype: ir.DataType | None = None) -> Part:
        """One operator over arrays; entries count where they count in all."""
        values, like = self.together(parts)
        found = self.make(op_type, values, like, dtype=dtype)
        return found if like.mask is None else replace(found, mask=self._filled_out(like.mask, found))

    def every(self, truths: Sequence[Part]) -> Part:
        """Where all of them hold."""
        found = truths[0]
        for other in truths[1:]:
            found = self.elementwise("And", [found, other], BOOL)
        return found

    def within(self, x: Part, condition: Part) -> Part:
        """`x`, of which only the entries count that count already and where the condition holds."""
        asked = replace(condition, mask=None)
        both = [asked, *([condition.mask] if condition.mask is not None else [])]
        if x.mask is not None:
            both.append(x.mask)
        keep = self.every(both)
        values, like = self.together([replace(x, mask=None), keep])
        if like.sizes != x.sizes or like.sampled != x.sampled:  # the condition has more entries: so has the result
            zero = self.op.constant(0, like=x.value)
            x = self.make("Where", [values[1], values[0], zero], like, dtype=x.value.dtype)
        return replace(x, mask=self._filled_out(keep, x), bound=None)

    def _filled_out(self, mask: Part, x: Part) -> Part:
        """A mask with as many entries as `x`."""
        if mask.sizes == x.sizes and mask.sampled == x.sampled:
            return mask
        values, like = self.together([mask, self.ones(x)])
        return self.make("And", values, like, dtype=BOOL)

    def ones(self, x: Part) -> Part:
        """True everywhere."""
        true = self.op.constant(np.asarray(True))
        return self.make("Expand", [true, self.op.Shape(x.value)], x, dtype=BOOL)

    def filled(self, x: Part, number: float) -> Part:
        """`x` with a number where entries do not count; all count then."""
        if x.mask is None:
            return x
        values, like = self.together([x.mask, replace(x, mask=None)])
        return self.make("Where", [*values, self.op.constant(number, like=x.value)], like, dtype=x.value.dtype)

    # -- along axes

    def any_of(self, truth: Part, axes: Sequence[int]) -> Part:
        """Whether one of the entries along `axes` (of the sample) is true: False of none."""
        count = self.total(self.make("Cast", [truth.value], truth, dtype=INT, to=int(INT)), axes)
        return self.make("Greater", [count.value, self.op.constant(0, like=count.value)], count, dtype=BOOL)

    def total(self, x: Part, axes: Sequence[int], op_type: str = "ReduceSum") -> Part:
        """Sum (or another reduction) along axes, which go."""
        if not axes:
            return replace(x, mask=None)
        rest = tuple(d for a, d in enumerate(x.sizes) if a not in axes)
        return self.make(op_type, [x.value, self.op.ints(*(a + x.first for a in axes))], x, sizes=rest, keepdims=0)

    def never_empty(self, x: Part, axes: Sequence[int]) -> Part:
        """`x` with one more entry, which does not count, along every axis whose size only the run knows."""
        for axis in axes:
            if x.sizes[axis] is not None:
                continue
            mask = x.mask or self.ones(x)
            sizes = tuple(1 if a == axis else d for a, d in enumerate(x.sizes))
            zero = self._block(x, sizes, self.op.constant(0, like=x.value))
            false = self._block(x, sizes, self.op.constant(np.asarray(False)))
            place = axis + x.first
            longer = self.make("Concat", [x.value, zero], x, axis=place)
            x = replace(longer, mask=self.make("Concat", [mask.value, false], mask, axis=place))
        return x

    def _block(self, x: Part, sizes: Sizes, fill: Value) -> Value:
        """`fill` in the shape of one sample's `sizes`, for every sample."""
        made = self.make("Expand", [fill, self.shape(x, sizes)], x, sizes=sizes, dtype=fill.dtype)
        return made.value

    def shape(self, x: Part, sizes: Sizes) -> Value:
        """The shape of `x` with these sizes as an int64 vector; what is open is read off `x`."""
        own = ([self._samples if isinstance(self._samples, int) else None] if x.sampled else []) + list(sizes)
        if all(isinstance(d, int) for d in own):
            return self.op.ints(*(d for d in own if isinstance(d, int)))
        parts = [
            self.op.ints(d) if isinstance(d, int) else self.op.Shape(x.value, start=i, end=i + 1)
            for i, d in enumerate(own)
        ]
        return self.op.Concat(*parts, axis=0) if len(parts) > 1 else parts[0]

    def best(self, x: Part, axis: int, least: bool) -> Part:
        """The place of the largest (least) entry that counts along an axis: int64; the first of equal ones."""
        x = self.never_empty(x, [axis])
        told = self.filled(x, _end(x, low=not least))
        rest = tuple(d for a, d in enumerate(x.sizes) if a != axis)
        found = self.make(
            "ArgMin" if least else "ArgMax", [told.value], told, sizes=rest, dtype=INT, axis=axis + x.first, keepdims=0
        )
        mask = None if x.mask is None else self.any_of(x.mask, [axis])
        size = x.sizes[axis]
        return replace(found, mask=mask, bound=size if isinstance(size, int) else None)

    def extreme(self, x: Part, axes: Sequence[int], least: bool) -> Part:
        """The largest (least) of the entries that count; where none does, 0 that does not count."""
        x = self.never_empty(x, axes)
        told = self.total(self.filled(x, _end(x, low=not least)), axes, "ReduceMin" if least else "ReduceMax")
        if x.mask is None:
            return told
        found = replace(told, mask=self.any_of(x.mask, axes))
        return replace(self.filled(found, 0.0), mask=found.mask)

    def picked(self, x: Part, axis: int, place: Part) -> Part:
        """The entry at `place`, one per all other axes of the sample: the axis goes."""
        x = self.never_empty(x, [axis])
        return replace(self._taken(x, axis, place), mask=None if x.mask is None else self._taken(x.mask, axis, place))

    def _taken(self, x: Part, axis: int, place: Part) -> Part:
        at, rest = axis + x.first, tuple(d for a, d in enumerate(x.sizes) if a != axis)
        narrow = (*rest[:axis], 1, *rest[axis:])
        where = self.make("Unsqueeze", [place.value, self.op.ints(at)], place, sizes=narrow)
        found = self.make("GatherElements", [x.value, where.value], x, sizes=narrow, axis=at)
        return self.make("Squeeze", [found.value, self.op.ints(at)], found, sizes=rest)

    def largest(self, x: Part, stated: Part, axis: int, count: int) -> Part:
        """The `count` entries along an axis at which `stated` is largest among those that count, the largest first."""
        told = self.filled(stated, _end(stated, low=True))
        sizes = tuple(count if a == axis else d for a, d in enumerate(x.sizes))
        _, places = self.op.emit("TopK", [told.value, self.op.ints(count)], {"axis": axis + x.first}, outputs=2)
        set_dtype(places, INT)
        places.shape = ir.Shape([*([self._samples] if x.sampled else []), *sizes])
        found = self.make("GatherElements", [x.value, places], x, sizes=sizes, axis=axis + x.first)
        if x.mask is None:
            return found
        mask = self.make("GatherElements", [x.mask.value, places], x.mask, sizes=sizes, axis=axis + x.first)
        return replace(found, mask=mask)

    # -- entries of an axis

    def gathered(self, x: Part, axis: int, places: Sequence[int] | int) -> Part:
        """The entries at fixed places of an axis; of a single one the axis goes."""
        kept = () if isinstance(places, int) else (len(places),)
        sizes = (*x.sizes[:axis], *kept, *x.sizes[axis + 1 :])
        where = self.op.constant(np.asarray(places, np.int64))
        found = self.make("Gather", [x.value, where], x, sizes=sizes, axis=axis + x.first)
        return replace(found, mask=None if x.mask is None else self.gathered(x.mask, axis, places))

    def sliced(self, x: Part, axis: int, start: int, end: int, step: int, length: Size) -> Part:
        """The entries start:end:step of an axis, as ONNX counts them."""
        ints, sizes = self.op.ints, (*x.sizes[:axis], length, *x.sizes[axis + 1 :])
        operands = [x.value, ints(start), ints(end), ints(axis + x.first), ints(step)]
        found = self.make("Slice", operands, x, sizes=sizes)
        return replace(found, mask=None if x.mask is None else self.sliced(x.mask, axis, start, end, step, length))

    def chosen(self, x: Part, axis: int, place: Part) -> Part:
        """The entries at a place of the axis that the run decides, one per sample: the axis goes.

        What points outside gives entries that do not count.
        """
        size, rest = x.sizes[axis], tuple(d for a, d in enumerate(x.sizes) if a != axis)
        x = self.never_empty(x, [axis])
        inside: list[Part] = [place.mask] if place.mask is not None else []
        if not isinstance(size, int) or place.bound is None:
            place, valid = self._clipped(x, axis, place)
            inside.append(valid)
        if x.sampled:
            narrow = tuple(1 if a == axis else d for a, d in enumerate(x.sizes))
            ones = (1,) * (len(x.sizes) + (not place.sampled))
            cells = self.op.ints(*([-1] if place.sampled else []), *ones)
            spread = self.make("Reshape", [place.value, cells], place, sizes=ones)
            index = self.make("Expand", [spread.value, self.shape(x, narrow)], x, sizes=narrow, dtype=INT)
            wide = [self._gathered_at(v, axis, index, narrow, rest) for v in ([x] if x.mask is None else [x, x.mask])]
        else:
            wide = [self._gathered_by(v, axis, place, rest) for v in ([x] if x.mask is None else [x, x.mask])]
        found = replace(wide[0], mask=wide[1] if len(wide) > 1 else None)
        for valid in inside:
            found = self.within(found, valid)
        return found

    def _clipped(self, x: Part, axis: int, place: Part) -> tuple[Part, Part]:
        """An index that points inside, and whether it did."""
        at = axis + x.first
        size = x.sizes[axis]
        end = self.op.ints(size) if isinstance(size, int) else self.op.Shape(x.value, start=at, end=at + 1)
        end = self.op.Squeeze(end, self.op.ints(0))
        zero, one = self.op.constant(0, dtype=np.int64), self.op.constant(1, dtype=np.int64)
        above = self.make("GreaterOrEqual", [place.value, zero], place, dtype=BOOL)
        below = self.make("Less", [place.value, end], place, dtype=BOOL)
        low = self.make("Max", [place.value, zero], place)
        inside = self.make("Min", [low.value, self.op.Sub(end, one)], place)
        return inside, self.make("And", [above.value, below.value], place, dtype=BOOL)

    def _gathered_at(self, x: Part, axis: int, index: Part, narrow: Sizes, rest: Sizes) -> Part:
        found = self.make("GatherElements", [x.value, index.value], x, sizes=narrow, axis=axis + 1)
        return self.make("Squeeze", [found.value, self.op.ints(axis + 1)], found, sizes=rest)

    def _gathered_by(self, x: Part, axis: int, place: Part, rest: Sizes) -> Part:
        """Entries of an array that is one for all samples, at a place for all or one per sample."""
        if not place.sampled:
            return self.make("Gather", [x.value, place.value], x, sizes=rest, axis=axis)
        found = self.op.Gather(x.value, place.value, axis=axis)
        set_dtype(found, x.value.dtype)
        found.shape = ir.Shape([*x.sizes[:axis], self._samples, *x.sizes[axis + 1 :]])
        perm = [axis, *(a for a in range(len(x.sizes)) if a != axis)]
        return replace(self.make("Transpose", [found], x, sizes=rest, sampled=True, perm=perm), shown=place.shown)

    def flat(self, x: Part) -> Part:
        """All entries of a sample on one axis."""
        if len(x.sizes) == 1:
            return x
        known = [d for d in x.sizes if isinstance(d, int)]
        size = prod(known) if len(known) == len(x.sizes) else None
        sizes = [-1] if not x.sampled else [0, -1] if x.sizes else [-1, 1]
        found = self.make("Reshape", [x.value, self.op.ints(*sizes)], x, sizes=(size,))
        return replace(found, mask=None if x.mask is None else self.flat(x.mask))


def _end(x: Part, *, low: bool) -> float:
    limits = np.finfo(x.value.dtype.numpy()) if x.value.dtype is not None else np.finfo(np.float32)
    return float(limits.min if low else limits.max)


def _broadcast(parts: Sequence[Part]) -> Sizes:
    rank = max(len(p.sizes) for p in parts)
    sizes: list[Size] = []
    for axis in range(-rank, 0):
        here = [p.sizes[axis] for p in parts if -axis <= len(p.sizes)]
        wide = {d for d in here if d not in (1, None)}
        if len(wide) > 1:
            raise TargetError(
                f"Arrays of {' and '.join(p.told for p in parts)} do not fit each other; index them to the same sizes."
            )
        sizes.append(next(iter(wide), None if None in here else 1))
    return tuple(sizes)
