"""What a rule is given and what it returns, and the arithmetic that rules have in common.

A rule is a function ``rule(op, step) -> Shares``. Whether relevance conserves is measured, not promised: a rule reports what
it absorbed (bias, stabiliser, dead denominators), from the forward side, so that a wrong adjoint shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.roles import Linear, Role
from onnx_explain.operators.samples import FIRST, Held, Nowhere, Place


@dataclass(frozen=True)
class Step:
    """One node's turn on the way back.

    `rs[k]` is the relevance of output k (None where none came); `r` that of the first. `sparse`: r is zero wherever
    `proxy` is; `proxy` stands for y wherever r is not zero (the output of the Relu behind it, which the runtime has
    fused), and is known non-negative where `rectified`. `nonnegative[i]`: operand i cannot be negative.
    `accounting`: absorbed relevance is asked for. `bias`: the linear operator's bias, broadcastable to y. `score`: the
    explained value per sample, where the seed is one and a rule would otherwise start at the score. `reference`: a value's
    twin in the forward pass on the composite's baseline. `place`: where a value of the forward graph has its samples.
    """

    node: Operation
    role: Role
    rs: tuple[Value | None, ...]
    proxy: Value
    sparse: bool = False
    rectified: bool = False
    nonnegative: frozenset[int] = frozenset()
    accounting: bool = False
    bias: Value | None = None
    score: Value | None = None
    reference: Callable[[Value], Value] | None = None
    place: Callable[[Value], Place] = lambda value: FIRST

    @property
    def r(self) -> Value:
        """The relevance of the first output."""
        r = self.rs[0]
        if r is None:
            raise ValueError(f"{self.node.where}: no relevance came to its first output")
        return r

    def lost(self, values: Iterable[Value], like: Value | None = None) -> list[Lost]:
        """Absorbed relevance that is laid out as `like` (default: the first output)."""
        place = self.place(self.node.y if like is None else like)
        return [Lost(v, place) for v in values]


@dataclass(frozen=True)
class Lost:
    """Absorbed relevance, and where it has its samples."""

    value: Value
    place: Place = FIRST


@dataclass(frozen=True)
class Shares:
    """Relevance per operand (by position), what was absorbed, and the operands at which relevance is zero wherever the
    operand is. `growth`: log2 of how many times r's largest the shares may be, of rules that do not conserve and multiply
    over many layers (`relevance/growth.py`).
    """

    inputs: dict[int, Value]
    absorbed: list[Lost] = field(default_factory=list)
    sparse: frozenset[int] = frozenset()
    growth: float = 0.0


Rule = Callable[[Emitter, Step], Shares]


def wrong_role(step: Step, what: str) -> MethodError:
    """A composite gave a rule to a node it is not made for."""
    return MethodError(
        f"{step.node.where}: the composite gives it a rule for another role: it {what}; narrow the selector (role=…, kind=…)."
    )


def safe_divide(op: Emitter, a: Value, b: Value) -> Value:
    """a/b where b != 0, exactly 0 elsewhere (rap_rsp.md §1: no stabiliser)."""
    zero = op.Equal(b, op.constant(0.0, like=b))
    one, none = op.constant(1.0, like=b), op.constant(0.0, like=a)
    return op.Where(zero, none, op.Div(a, op.Where(zero, one, b)))


def stabilise(op: Emitter, z: Value, epsilon: float, *, nonnegative: bool) -> Value:
    """D(z, ε) = z + ε·sgn₀(z), sgn₀(0) = +1 (methods.md §0.5)."""
    if nonnegative:
        return op.Add(z, epsilon)
    if z.dtype == ir.DataType.FLOAT:
        # 1[z >= 0] as max(0, min(1, 3e38·z + 1)): ONNX Runtime runs Where on one thread, this on all
        above = op.HardSigmoid(z, alpha=3.0e38, beta=1.0)
        return op.Add(op.Mul(above, 2.0 * epsilon), op.Sub(z, epsilon))
    sign = op.Where(
        op.GreaterOrEqual(z, op.constant(0.0, like=z)), op.constant(epsilon, like=z), op.constant(-epsilon, like=z)
    )
    return op.Add(z, sign)


def quotient(op: Emitter, r: Value, z: Value, epsilon: float, *, nonnegative: bool = False) -> Value:
    """R / D(z, ε); with ε = 0 the safe division, so that R/0 is 0."""
    if epsilon == 0.0:
        return safe_divide(op, r, z)
    return op.Div(r, stabilise(op, z, epsilon, nonnegative=nonnegative))


def unmasked(op: Emitter, logits: Value) -> Value:
    """Logits with 0 for those that a mask has put out of reach: -∞, or a number so low that no network computes it."""
    lowest = float(np.finfo(np.float16 if logits.dtype == ir.DataType.FLOAT16 else np.float32).min)
    reached = op.Greater(logits, op.constant(lowest / 4.0, like=logits))
    return op.typed(op.Where(reached, logits, op.constant(0.0, like=logits)), logits)


def positive(op: Emitter, value: Value) -> Value:
    """max(v, 0)."""
    return op.Relu(value)


def negative(op: Emitter, value: Value) -> Value:
    """min(v, 0)."""
    return op.Neg(op.Relu(op.Neg(value)))


Reduction = Literal["ReduceSum", "ReduceMin", "ReduceMax"]


def per_sample(op: Emitter, value: Value, place: Place = FIRST, reduce: Reduction = "ReduceSum") -> Value:
    """All entries of each sample as one number: [N]. Where no axis holds the samples, of all entries: [1]."""
    n = rank(value)
    if not isinstance(place, Held):
        return op.emit(reduce, [op.Reshape(value, op.ints(-1)), op.ints(0)], {"keepdims": 1})[0]
    others = [a for a in range(n) if a != place.axis]
    flat = op.emit(reduce, [value, op.ints(*others)], {"keepdims": 0})[0] if others else value
    if place.alone:
        return flat
    apart = op.Reshape(flat, op.ints(place.outer, -1, place.inner))
    return op.emit(reduce, [apart, op.ints(0, 2)], {"keepdims": 0})[0]


def along(op: Emitter, each: Value, like: Value, place: Place) -> Value:
    """One number per sample [N] (or [1]) so that it broadcasts over `like`."""
    n = rank(like)
    if not isinstance(place, Held):
        return op.Reshape(each, op.ints(*[1] * n))
    if not place.alone:
        each = op.Expand(op.Reshape(each, op.ints(1, -1, 1)), op.ints(place.outer, 1, place.inner))
    return op.Reshape(each, op.ints(*(-1 if a == place.axis else 1 for a in range(n))))


def over_each(op: Emitter, value: Value, place: Place, reduce: Reduction = "ReduceSum") -> Value:
    """All entries of each sample as one number that broadcasts over the value."""
    if not (isinstance(place, Held) and place.alone):
        return along(op, per_sample(op, value, place, reduce), value, place)
    others = [a for a in range(rank(value)) if a != place.axis]
    return op.emit(reduce, [value, op.ints(*others)], {"keepdims": 1})[0] if others else value


def told(**places: Place) -> dict[str, Any]:
    """A rule's parameter for composites: where operands have their samples, of those that do not have them first."""
    said = {k: [p.axis, p.outer, p.inner] if isinstance(p, Held) else p.name for k, p in places.items() if p != FIRST}
    return {"samples": said} if said else {}


def place_of(rule: Mapping[str, Any], name: str) -> Place:
    """What `told` has said of an operand."""
    said = rule.get("samples", {}).get(name)
    return FIRST if said is None else Nowhere[said] if isinstance(said, str) else Held(*said)


def role_of(node: Operation) -> Role:
    """The role of an operation that is known to have a room."""
    from onnx_explain.operators import find

    found = find(node)
    if found is None:
        raise ValueError(f"{node.where}: has no room")
    return found.role(node)


def linear_of(node: Operation) -> Linear:
    """The linear role of an operation, for expansions."""
    role = role_of(node)
    if isinstance(role, Linear):
        return role
    linear = getattr(role, "linear", None)
    if not isinstance(linear, Linear):
        raise ValueError(f"{node.where}: is not linear")
    return linear


def joined(op: Emitter, parts: Sequence[Value]) -> Value:
    """Tensors one behind the other along the channels; of weights [Co, Ci, *kernel] along what they read."""
    whole = op.Concat(*parts, axis=1)
    shapes = [p.shape for p in parts]
    if all(s is not None for s in shapes) and isinstance(channels(parts[0]), int):
        first = list(parts[0].shape or ())
        whole.shape = ir.Shape([first[0], sum(channels(p) or 0 for p in parts), *first[2:]])
    return whole


def channels(value: Value) -> int | None:
    """The size of axis 1."""
    return dims(value)[1]


def transposed_apart(op: Emitter, role: Linear, s: Value, weights: Sequence[Value], x: Value) -> list[Value]:
    """L_wᵀ s for several weights of one convolution, in one pass with their channels joined: one read of s, not several."""
    back = role.transpose(op, s, joined(op, weights), x)
    back.shape = None
    cuts = op.ints(*[channels(x) or 0] * len(weights))
    parts = op.emit("Split", [back, cuts], {"axis": 1}, outputs=len(weights), like=[x] * len(weights))
    return list(parts)


def joinable(role: Linear, node: Operation, x: Value) -> bool:
    """Whether the channels of several uses of a convolution can be joined: no groups, and known channels."""
    return role.spatial and node.op_type == "Conv" and node.integer("group", 1) == 1 and channels(x) is not None


def sizes(value: Value) -> list[int]:
    """The static sizes with 1 in place of an open one: the shape of one representative sample."""
    return [d if d is not None else 1 for d in dims(value)]
