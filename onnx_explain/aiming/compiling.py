"""A target expression written into a model, as ordinary ONNX nodes that end in one number per sample.

Two readings of a tensor: *logits*, which looks behind a final Softmax or Sigmoid, and *stated*, the file's own numbers. What
is picked, summed, averaged, added up or scaled by numbers is read as logits; what is not linear (products and quotients of
two tensors, abs, log, sigmoid, softmax) as stated; and so is what is only *deciding*: conditions, arg-max, which entry is
the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnx_explain.aiming.arrays import BOOL, FLOAT, INT, Part, Sizes, Writer
from onnx_explain.aiming.places import Places
from onnx_explain.embedded import is_float
from onnx_explain.errors import TargetError, suggest
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value
from onnx_explain.path import behind_head
from onnx_explain.target.grammar import ORDERS, Binary, Call, Expression, Index, Number, Tensor, Unary

Reading = Literal["logits", "stated", "deciding"]
_ORDERS = {">": "Greater", ">=": "GreaterOrEqual", "<": "Less", "<=": "LessOrEqual", "==": "Equal"}
_ARITHMETIC: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "+": ("Add", lambda a, b: a + b),
    "-": ("Sub", lambda a, b: a - b),
    "*": ("Mul", lambda a, b: a * b),
}
_MAPS = {"abs": "Abs", "sigmoid": "Sigmoid"}
_INTEGERS = {ir.DataType[n] for n in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")}


@dataclass(frozen=True)
class Sources:
    """The tensors of a model that an expression may read. sampled: whether a tensor's axis 0 counts samples; sizes: of all
    its axes.
    """

    named: Mapping[str, Value]
    outputs: tuple[str, ...]
    sampled: Callable[[Value], bool]
    sizes: Callable[[Value], Sizes]
    logits: bool = True


class Compiler:
    """Writes one expression. `text`: what it is called in messages; `own`: every sample is its own sample 0."""

    def __init__(self, op: Emitter, sources: Sources, samples: int | str, text: str, *, own: bool = False) -> None:
        self.writer, self._sources, self.text = Writer(op, samples), sources, text
        self._places = Places(self.writer, text, own=own)
        self._known: dict[tuple[int, Reading], Part | float] = {}
        self._seen: list[Part] = []
        self.reads: dict[str, None] = {}

    @property
    def sample(self) -> int | None:
        """The sample that the expression names; None: every one."""
        return self._places.sample

    def result(self, expression: Expression) -> tuple[Part, Part | None]:
        """The number per sample, and whether all of its conditions and divisors let it be one (None: sure)."""
        found = self._of(expression, "logits" if self._sources.logits else "stated")
        if isinstance(found, float):
            raise self._refused("is a number; name an output, such as 'output[0,17]'")
        if any(d != 1 for d in found.sizes):
            raise self._refused(
                f"leaves {found.told}, not one number per sample; add .max(), .sum() or .mean(), or name an index per axis"
            )
        if found.is_bool:
            raise self._refused("is true or false, which carries no relevance; use it in where(…)")
        if not found.is_float or found.bound is not None:
            raise self._refused("is an integer, which carries no relevance; use it as an index or in where(…)")
        self._places.agree([found])
        mask, seen = found.mask, [self._single(s) for s in self._seen]
        number = self._single(self.writer.filled(found, 0.0))
        if mask is not None:
            seen.append(self._single(mask))
        return replace(number, mask=None), self.writer.every(seen) if seen else None

    def _single(self, x: Part) -> Part:
        """[N], or a scalar where the samples are not apart."""
        if not x.sizes:
            return x
        return self.writer.make("Reshape", [x.value, self.writer.op.ints(*([-1] if x.sampled else []))], x, sizes=())

    def _refused(self, what: str) -> TargetError:
        return TargetError(f"Target {self.text!r} {what}.")

    # -- the tree

    def _of(self, e: Expression, reading: Reading) -> Part | float:
        key = (id(e), reading)
        if key not in self._known:
            self._known[key] = self._written(e, reading)
        return self._known[key]

    def _written(self, e: Expression, reading: Reading) -> Part | float:
        match e:
            case Number():
                return float(e.value)
            case Tensor():
                return self._tensor(e.name, reading)
            case Index():
                chosen = {id(i): self._index(i) for i in e.items if isinstance(i, (Tensor, Index, Call, Unary, Binary))}
                return self._places.indexed(self._array(e.of, reading, "[…]"), e.items, chosen)
            case Unary():
                return self._unary(e, reading)
            case Binary():
                return self._binary(e, reading)
            case Call():
                return self._call(e, reading)

    def _array(self, e: Expression, reading: Reading, what: str) -> Part:
        found = self._of(e, reading)
        if isinstance(found, float):
            raise self._refused(f"asks for {what} of the number {found:g}; name an output instead")
        return found

    def _truth(self, e: Expression, what: str) -> Part:
        found = self._of(e, "deciding")
        if isinstance(found, float) or not found.is_bool:
            raise self._refused(f"needs a comparison {what}, such as output[0,3] > 0")
        return found

    def _index(self, e: Expression) -> Part:
        found = self._array(e, "deciding", "an index")
        if found.is_bool or found.is_float or found.sizes:
            raise self._refused(
                f"has an index that is {found.told} of {'truth values' if found.is_bool else 'numbers'}; an index is one "
                "integer per sample, such as output[0,:,17].argmax()"
            )
        return found

    # -- tensors

    def _tensor(self, name: str, reading: Reading) -> Part:
        value = self._sources.named.get(name)
        if value is None:
            listed = self._sources.outputs
            hint = " (write spaces around - and / to subtract and divide)" if set(name) & set("-/") else ""
            raise TargetError(f"Target {self.text!r}: the model has no output {name!r}{hint}.{suggest(name, listed)}")
        if not isinstance(value.type, (ir.TensorType, type(None))):
            raise self._refused(f"reads {name!r}, which is no tensor but a sequence or map; name a tensor")
        if value.dtype == ir.DataType.STRING:
            raise self._refused(f"reads {name!r}, which holds strings; name an output of numbers")
        source = behind_head(value) if reading == "logits" else value
        found = self._part(value, value)
        if source is not value:
            told = self.writer.op.reshape_like(source, value) if not _same_shape(source, value) else source
            found = self._part(told, value)
        if reading != "deciding" and is_float(source):
            self.reads.setdefault(source.name or "")
        if value.dtype in _INTEGERS:
            return self.writer.make("Cast", [value], found, dtype=INT, to=int(INT))
        if not found.is_bool and not found.is_float:
            raise self._refused(f"reads {name!r} of type {value.dtype}; name an output of numbers")
        return found

    def _part(self, value: Value, like: Value) -> Part:
        sizes, sampled = self._sources.sizes(like), self._sources.sampled(like)
        return Part(value, sizes[1:] if sampled else sizes, sampled, shown=sampled)

    # -- operators

    def _unary(self, e: Unary, reading: Reading) -> Part | float:
        if e.sign == "~":
            truth = self._truth(e.of, "behind ~")
            return replace(self.writer.make("Not", [truth.value], truth, dtype=BOOL), mask=truth.mask)
        found = self._of(e.of, reading)
        if isinstance(found, float):
            return -found
        found = self.writer.as_float(found)
        return replace(self.writer.make("Neg", [found.value], found), mask=found.mask)

    def _binary(self, e: Binary, reading: Reading) -> Part | float:
        if e.sign in ("&", "|"):
            sides = [self._truth(s, f"on both sides of {e.sign}") for s in (e.left, e.right)]
            self._places.agree(sides)
            return self.writer.elementwise("And" if e.sign == "&" else "Or", sides, BOOL)
        if e.sign in ORDERS:
            return self._compared(e)
        if e.sign in ("*", "/"):
            apart: Reading = "deciding" if reading == "deciding" else "stated"
            left, right = (reading if self._steers(o) else apart for o in (e.right, e.left))
            return self._product(e.sign, self._of(e.left, left), self._of(e.right, right if e.sign == "*" else apart))
        return self._arithmetic(e.sign, self._of(e.left, reading), self._of(e.right, reading))

    def _compared(self, e: Binary) -> Part:
        left, right = self._of(e.left, "deciding"), self._of(e.right, "deciding")
        if isinstance(left, float) and isinstance(right, float):
            raise self._refused(f"compares the numbers {left:g} and {right:g}; name an output on one side")
        sides = self._alike([left, right])
        if e.sign == "!=":
            same = self.writer.elementwise("Equal", sides, BOOL)
            return replace(self.writer.make("Not", [same.value], same, dtype=BOOL), mask=same.mask)
        return self.writer.elementwise(_ORDERS[e.sign], sides, BOOL)

    def _arithmetic(self, sign: str, left: Part | float, right: Part | float) -> Part | float:
        op_type, number = _ARITHMETIC[sign]
        if isinstance(left, float) and isinstance(right, float):
            return number(left, right)
        return self.writer.elementwise(op_type, self._alike([left, right], floats=True))

    def _product(self, sign: str, left: Part | float, right: Part | float) -> Part | float:
        if sign == "*":
            return self._arithmetic(sign, left, right)
        if isinstance(right, float):
            if right == 0:
                raise self._refused("divides by 0")
            return left / right if isinstance(left, float) else self._divided(left, right)
        w = self.writer
        [above, below] = self._alike([left, right], floats=True)
        zero = w.op.constant(0, like=below.value)
        nothing = w.make("Equal", [below.value, zero], below, dtype=BOOL)
        safe = w.make("Where", [nothing.value, w.op.constant(1, like=below.value), below.value], below)
        safe = w.within(replace(safe, mask=below.mask), w.make("Not", [nothing.value], below, dtype=BOOL))
        return w.elementwise("Div", [above, safe])

    def _divided(self, left: Part, right: float) -> Part:
        return self.writer.elementwise("Div", self._alike([left, right], floats=True))

    def _alike(self, sides: list[Part | float], *, floats: bool = False) -> list[Part]:
        """Both sides as arrays of one type; numbers become constants."""
        w = self.writer
        parts = [s for s in sides if not isinstance(s, float)]
        self._places.agree(parts)
        whole = all((isinstance(s, float) and s == int(s)) or (isinstance(s, Part) and not s.is_float) for s in sides)
        if not floats and whole:
            if any(not p.is_bool for p in parts) or len(parts) < len(sides):
                parts = [w.make("Cast", [p.value], p, dtype=INT, to=int(INT)) if p.is_bool else p for p in parts]
        else:
            wide = ir.DataType.DOUBLE if any(p.value.dtype == ir.DataType.DOUBLE for p in parts) else None
            dtype = wide or next((p.value.dtype for p in parts if p.is_float), FLOAT)
            parts = [w.as_float(p, dtype) for p in parts]
        made = iter(parts)
        return [self._constant(s, parts[0]) if isinstance(s, float) else next(made) for s in sides]

    def _constant(self, number: float, like: Part) -> Part:
        return Part(self.writer.op.constant(number, like=like.value), (), sampled=False)

    def _steers(self, e: Expression) -> bool:
        """Whether a value carries no relevance itself: numbers, conditions, integers, and what is counted of them."""
        match e:
            case Number():
                return True
            case Tensor():
                value = self._sources.named.get(e.name)
                return value is not None and value.dtype is not None and not value.dtype.is_floating_point()
            case Index():
                return self._steers(e.of)
            case Unary():
                return e.sign == "~" or self._steers(e.of)
            case Binary():
                return e.sign in (*ORDERS, "&", "|") or (self._steers(e.left) and self._steers(e.right))
            case Call():
                return e.method in ("argmax", "argmin", "any", "all") or self._steers(e.of)

    # -- methods

    def _call(self, e: Call, reading: Reading) -> Part:
        what = f".{e.method}()"
        if e.method == "where":
            return self._where(e, reading)
        if e.method in ("any", "all"):
            return self._quantified(e, self._truth(e.of, f"before {what}"))
        if e.method in ("max", "min"):
            return self._extreme(e, reading)
        if e.method == "topk":
            return self._largest(e, reading)
        if e.method in ("argmax", "argmin"):
            return self._best(e, self.writer.as_float(self._array(e.of, "deciding", what)))
        if e.method in ("sum", "mean"):
            return self._summed(e, self.writer.as_float(self._array(e.of, reading, what)))
        apart: Reading = "deciding" if reading == "deciding" else "stated"
        return self._mapped(e, self.writer.as_float(self._array(e.of, apart, what)))

    def _where(self, e: Call, reading: Reading) -> Part:
        x, condition = self._array(e.of, reading, ".where(…)"), self._truth(e.arguments[0], "in where(…)")
        self._places.agree([x, condition])
        if len(e.arguments) == 1:
            return self.writer.within(x, condition)
        [x, other] = self._alike([x, self._of(e.arguments[1], reading)], floats=True)
        self._places.agree([x, other, condition])
        w, bare = self.writer, [replace(p, mask=None) for p in (condition, x, other)]
        found = w.elementwise("Where", bare, x.value.dtype)
        if condition.mask is None and x.mask is None and other.mask is None:
            return found
        sides = [p.mask or replace(w.ones(p), mask=None) for p in (x, other)]
        against = w.make("Not", [bare[0].value], bare[0], dtype=BOOL)
        kept = w.elementwise("Or", [w.every([bare[0], sides[0]]), w.every([against, sides[1]])], BOOL)
        return w.within(found, kept if condition.mask is None else w.every([kept, condition.mask]))

    def _quantified(self, e: Call, truth: Part) -> Part:
        w, axes = self.writer, self._places.axes(truth, e.axes, e.method)
        if e.method == "any":
            asked = truth if truth.mask is None else w.every([replace(truth, mask=None), truth.mask])
            return w.any_of(asked, axes)
        against = w.make("Not", [truth.value], truth, dtype=BOOL)
        asked = against if truth.mask is None else w.every([against, truth.mask])
        found = w.any_of(asked, axes)
        return w.make("Not", [found.value], found, dtype=BOOL)

    def _extreme(self, e: Call, reading: Reading) -> Part:
        w, least = self.writer, e.method == "min"
        x = w.as_float(self._array(e.of, reading, f".{e.method}()"))
        stated = w.as_float(self._array(e.of, "deciding", f".{e.method}()"))
        axes = self._places.axes(x, e.axes, e.method)
        if stated.value is x.value:
            return w.extreme(x, axes, least)
        found = x
        for axis in sorted(axes, reverse=True):  # the largest as the file states it, one axis after another
            place = w.best(stated, axis, least)
            found, stated = w.picked(found, axis, place), w.picked(stated, axis, place)
        return found

    def _largest(self, e: Call, reading: Reading) -> Part:
        w = self.writer
        x, stated = (w.as_float(self._array(e.of, r, ".topk()")) for r in (reading, "deciding"))
        if e.axes is None:
            x, stated = w.flat(x), w.flat(stated)
        axes = self._places.axes(x, e.axes, e.method)
        if len(axes) != 1:
            raise self._refused("takes .topk() along several axes; name one, or none for all")
        size = x.sizes[axes[0]]
        if not isinstance(size, int) or e.count > size:
            known = size if isinstance(size, int) else "an unknown number of"
            raise self._refused(f"takes .topk({e.count}) of {known} entries")
        return w.largest(x, stated, axes[0], e.count)

    def _best(self, e: Call, x: Part) -> Part:
        if e.axes is None and len(x.sizes) != 1:
            if not all(isinstance(d, int) for d in x.sizes):
                raise self._refused(
                    f"takes .{e.method}() over several axes of unknown size; name one: .{e.method}(axis=1)"
                )
            x = self.writer.flat(x)
            return self.writer.best(x, 0, e.method == "argmin")
        axes = self._places.axes(x, e.axes, e.method)
        if len(axes) != 1:
            raise self._refused(f"takes .{e.method}() along {len(axes)} axes; name one, or none for all")
        return self.writer.best(x, axes[0], e.method == "argmin")

    def _summed(self, e: Call, x: Part) -> Part:
        w, axes = self.writer, self._places.axes(x, e.axes, e.method)
        if x.mask is None and e.method == "mean" and any(x.sizes[a] is None for a in axes):
            x = replace(x, mask=w.ones(x))
        if x.mask is None:
            return w.total(x, axes, "ReduceSum" if e.method == "sum" else "ReduceMean")
        some = w.any_of(x.mask, axes)
        found = w.total(w.filled(x, 0.0), axes)
        if e.method == "sum":
            every = list(range(len(some.sizes)))
            self._seen.append(w.any_of(some, every))  # a sum of nothing is 0, and worth a word
            return found
        count = w.total(w.as_float(replace(x.mask, mask=None), x.value.dtype), axes)
        least = w.make("Max", [count.value, w.op.constant(1, like=count.value)], count)
        mean = w.make("Div", [found.value, least.value], found)
        return replace(mean, mask=some)

    def _mapped(self, e: Call, x: Part) -> Part:
        w = self.writer
        if e.method == "softmax":
            axes = self._places.axes(x, e.axes, "softmax")
            if len(axes) != 1:
                raise self._refused("takes .softmax() along several axes; name one: .softmax(axis=1)")
            told = w.filled(x, float(np.finfo(np.float32).min))
            return replace(w.make("Softmax", [told.value], told, axis=axes[0] + x.first), mask=x.mask)
        if e.method == "log":
            positive = w.make("Greater", [x.value, w.op.constant(0, like=x.value)], x, dtype=BOOL)
            safe = w.make("Where", [positive.value, x.value, w.op.constant(1, like=x.value)], x)
            return w.within(replace(w.make("Log", [safe.value], x), mask=x.mask), positive)
        return replace(w.make(_MAPS[e.method], [x.value], x), mask=x.mask)


def _same_shape(a: Value, b: Value) -> bool:
    return a.shape is not None and b.shape is not None and list(map(str, a.shape)) == list(map(str, b.shape))
