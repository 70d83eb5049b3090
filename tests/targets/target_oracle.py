"""Target expressions evaluated by NumPy's masked arrays, one sample at a time: slow, obvious, and no line of the compiler's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnx_explain.target.grammar import Binary, Call, Expression, Index, Listed, Number, Rest, Span, Tensor, Unary

ma = np.ma
PAIRS = {
    "+": ma.add, "-": ma.subtract, "*": ma.multiply, "/": ma.divide, ">": ma.greater, ">=": ma.greater_equal,
    "<": ma.less, "<=": ma.less_equal, "==": ma.equal, "!=": ma.not_equal, "&": ma.logical_and, "|": ma.logical_or,
}  # fmt: skip


class Unfit(Exception):
    """The expression makes no sense on these arrays."""


def evaluate(e: Expression, arrays: Mapping[str, Any], apart: Mapping[str, bool], sample: int) -> Any:
    """One sample's masked array. `apart`: whether an array's axis 0 counts samples."""
    return _Evaluation(arrays, apart, sample).of(e)[0]


class _Evaluation:
    def __init__(self, arrays: Mapping[str, Any], apart: Mapping[str, bool], sample: int) -> None:
        self.arrays, self.apart, self.sample = arrays, apart, sample

    def of(self, e: Expression) -> tuple[Any, bool]:
        """The value, and whether its sample axis shows still (as a virtual axis 0)."""
        match e:
            case Number():
                return ma.asarray(float(e.value)), False
            case Tensor():
                if e.name not in self.arrays:
                    raise Unfit(e.name)
                array, apart = self.arrays[e.name], self.apart[e.name]
                return ma.masked_array(array[self.sample] if apart else array), apart
            case Unary():
                x, shown = self.of(e.of)
                return (ma.logical_not(self._bool(x)) if e.sign == "~" else -self._number(x)), shown
            case Binary():
                return self._binary(e)
            case Index():
                return self._index(e)
            case Call():
                return self._call(e)

    def _binary(self, e: Binary) -> tuple[Any, bool]:
        (a, shown_a), (b, shown_b) = self.of(e.left), self.of(e.right)
        if e.sign in "&|":
            a, b = self._bool(a), self._bool(b)
        elif e.sign in "+-*/":
            a, b = self._number(a), self._number(b)
        if e.sign == "/" and isinstance(e.right, Number) and e.right.value == 0:
            raise Unfit("0")
        if e.sign == "/":
            a, b = ma.asarray(a), ma.masked_equal(b, 0)
        return PAIRS[e.sign](a, b), shown_a or shown_b

    def _index(self, e: Index) -> tuple[Any, bool]:
        x, shown = self.of(e.of)
        items = list(e.items)
        rank = x.ndim + shown
        named = sum(not isinstance(i, Rest) for i in items)
        if named > rank:
            raise Unfit("rank")
        at = next((k for k, i in enumerate(items) if isinstance(i, Rest)), len(items))
        items[at : at + 1] = [Span()] * (rank - named)
        if shown:
            if isinstance(items[0], int):
                shown = False
            elif items[0] != Span():
                raise Unfit("samples")
            items = items[1:]
        for axis in range(len(items) - 1, -1, -1):
            item = items[axis]
            size = x.shape[axis]
            if isinstance(item, (int, Listed)):
                places = [item] if isinstance(item, int) else list(item.places)
                if any(not -size <= p < size for p in places):
                    raise Unfit("range")
                x = x.take(places, axis=axis) if not isinstance(item, int) else x.take([item], axis=axis).squeeze(axis)
            elif isinstance(item, Span):
                kept = range(size)[slice(item.start, item.stop, item.step)]
                if not kept:
                    raise Unfit("empty")
                x = x.take(list(kept), axis=axis)
            else:
                place, _ = self.of(item)
                if isinstance(item, Call) and self._reach(item) > size:
                    raise Unfit("reach")
                if place.ndim or place.dtype.kind != "i":
                    raise Unfit("index")
                where = int(place.filled(0) if ma.isMaskedArray(place) else place)
                inside = 0 <= where < size and not ma.is_masked(place)
                x = ma.masked_array(x.take([min(max(where, 0), size - 1)], axis=axis).squeeze(axis))
                if not inside:
                    x = ma.masked_all_like(x)
        return ma.masked_array(x), shown

    def _reach(self, e: Call) -> int:
        """How many places an arg-max may name."""
        x, shown = self.of(e.of)
        axes = self._axes(x, e.axes, shown)
        return int(np.prod([x.shape[a] for a in axes]))

    def _call(self, e: Call) -> tuple[Any, bool]:
        x, shown = self.of(e.of)
        if e.method == "where":
            condition, other_shown = self.of(e.arguments[0])
            condition = self._bool(condition)
            if len(e.arguments) > 1:
                other, third = self.of(e.arguments[1])
                chosen = ma.where(condition, self._number(x), self._number(other))
                return chosen, shown or other_shown or third
            x, condition = (
                ma.masked_array(*p)
                for p in zip(_wide(x, condition), _wide(ma.getmaskarray(x), ma.getmaskarray(condition)))
            )
            hidden = ma.getmaskarray(x) | ma.getmaskarray(condition) | ~condition.filled(False)
            return ma.masked_array(x.data, hidden), shown or other_shown
        axes = self._axes(x, e.axes, shown)
        if e.method in ("any", "all"):
            x = self._bool(x)
            filled = x.filled(e.method == "all")
            return ma.asarray(getattr(filled, e.method)(axis=axes)), shown
        x = self._number(x)
        if e.method == "topk":
            return self._largest(x, e, axes), shown
        if e.method in ("argmax", "argmin"):
            return self._best(x, e, axes, shown)
        if e.method in ("sum", "mean", "max", "min"):
            found = ma.asarray(getattr(x, e.method)(axis=axes))
            return (ma.asarray(found.filled(0.0)) if e.method == "sum" else found), shown
        return self._mapped(x, e, axes), shown

    def _mapped(self, x: Any, e: Call, axes: tuple[int, ...]) -> Any:
        if e.method == "abs":
            return abs(x)
        if e.method == "log":
            return ma.log(x)
        if e.method == "sigmoid":
            return ma.masked_array(1 / (1 + np.exp(-x.data)), ma.getmaskarray(x))
        if len(axes) != 1:
            raise Unfit("softmax")
        raised = np.exp(ma.getdata(x) - x.max(axis=axes[0], keepdims=True).filled(0.0)) * ~ma.getmaskarray(x)
        total = raised.sum(axis=axes[0], keepdims=True)
        return ma.masked_array(raised / np.where(total == 0, 1, total), ma.getmaskarray(x))

    def _largest(self, x: Any, e: Call, axes: tuple[int, ...]) -> Any:
        if e.axes is None:
            x, axes = x.reshape(-1), (0,)
        if len(axes) != 1 or e.count > x.shape[axes[0]]:
            raise Unfit("topk")
        places = np.argsort(-x.filled(-np.inf), axis=axes[0], kind="stable").take(range(e.count), axis=axes[0])
        hidden = np.take_along_axis(ma.getmaskarray(x), places, axes[0])
        return ma.masked_array(np.take_along_axis(x.data, places, axes[0]), hidden)

    def _best(self, x: Any, e: Call, axes: tuple[int, ...], shown: bool) -> tuple[Any, bool]:
        end = -np.inf if e.method == "argmax" else np.inf
        told = x.filled(end)
        if e.axes is None:
            return ma.masked_array(getattr(told, e.method)(), bool(ma.getmaskarray(x).all())), shown
        if len(axes) != 1:
            raise Unfit("one axis")
        return ma.masked_array(getattr(told, e.method)(axis=axes[0]), ma.getmaskarray(x).all(axis=axes[0])), shown

    def _axes(self, x: Any, axes: tuple[int, ...] | None, shown: bool) -> tuple[int, ...]:
        if axes is None:
            return tuple(range(x.ndim))
        count, found = x.ndim + shown, []
        for a in axes:
            if not -count <= a < count or (shown and a % count == 0):
                raise Unfit("axis")
            found.append(a % count - shown)
        return tuple(dict.fromkeys(found))

    @staticmethod
    def _bool(x: Any) -> Any:
        if x.dtype != bool:
            raise Unfit("truth")
        return x

    @staticmethod
    def _number(x: Any) -> Any:
        return ma.asarray(x).astype(np.float64)


def _wide(a: Any, b: Any) -> Any:
    return np.broadcast_arrays(ma.getdata(a), ma.getdata(b))
