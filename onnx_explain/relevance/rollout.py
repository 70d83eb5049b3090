"""Attention maps found by structure, and which token comes from which part of an input.

A map is what a Softmax over the last axis makes, where it weighs values: [N, heads, T, T] in a product with [N, heads, T, size].
Rollout multiplies the maps of all layers, so every layer must look at all tokens at once, and at the same ones: anything else is
refused here. The formulas are `rules/rollout.py`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import MethodError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank, shape_text
from onnx_explain.operators import find
from onnx_explain.operators.layout import axes_after
from onnx_explain.operators.roles import Linear, Normalization, Product, Rearrangement, zeros_like
from onnx_explain.path import activity, nodes_between
from onnx_explain.relevance.chain import role_of
from onnx_explain.relevance.places import NOWHERE, Ints, Places, begun, follow, spread
from onnx_explain.rules import rollout as rules

_STEPS = 16  # nodes looked at between a Softmax and the product it enters
_INSTEAD = "'attn-lrp', 'grad-cam' and the gradient methods take such a model"


@dataclass(frozen=True)
class Layer:
    """One layer's attention: the map as it enters the product, and what the product makes."""

    node: ir.Node
    attention: Value
    y: Value

    @property
    def tokens(self) -> int:
        """T."""
        return dims(self.attention)[-1] or 0


def layers(model: ir.Model, target: Value, wrt: Sequence[str], method: str) -> list[Layer]:
    """All attention between the inputs and the target, the lowest first; MethodError where rollout has no meaning."""
    active, live = activity(model, wrt)
    found = []
    for node in nodes_between(model, [target], active, live):
        attention = _attention(Operation.of(node, active[id(node)]))
        if attention is not None:
            found.append(Layer(node, attention, node.outputs[0]))
    if not found:
        raise MethodError(
            f"Method {method!r} multiplies attention maps, and there is none between {', '.join(map(repr, wrt))} and "
            f"{target.name!r}: no Softmax over keys that weighs values; {_INSTEAD}."
        )
    for layer in found:
        sizes = dims(layer.attention)
        if sizes[-1] is None or sizes[-1] != sizes[-2] or sizes[-1] != found[0].tokens:
            raise _refused(
                method,
                layer,
                f"is {shape_text(layer.attention)}, where the first layer's has {found[0].tokens} tokens; tokens that are "
                "pooled, or that attend to others than themselves, have no product of maps",
            )
    for below, above in itertools.pairwise(found):
        _, reached = activity(model, [below.y.name or ""])
        if id(above.attention) not in reached:
            raise _refused(method, above, f"lies beside that of {below.node.name!r}, not behind it")
    return found


def _refused(method: str, layer: Layer, what: str) -> MethodError:
    return MethodError(
        f"Method {method!r}: the attention map {layer.attention.name!r} of node {layer.node.name!r} {what}; {_INSTEAD}."
    )


def _attention(operation: Operation) -> Value | None:
    """The map that enters a matrix product from the left, or None where it is none."""
    if not {0, 1} <= operation.active or rank(operation.x) < 3 or rank(operation.y) != rank(operation.x):
        return None
    if dims(operation.y)[-2] != dims(operation.x)[-2] or dims(operation.input(1))[-2:-1] != dims(operation.x)[-1:]:
        return None
    role = role_of(operation) if find(operation) is not None else None
    if not isinstance(role, Product) or role.elementwise:
        return None
    return operation.x if _probabilities(operation.x) else None


def _probabilities(value: Value) -> bool:
    """Whether a Softmax over the last axis made it, through what leaves that axis where it is."""
    for _ in range(_STEPS):
        node = value.producer()
        floats = [] if node is None else [v for v in node.inputs if v is not None and _varies(v)]
        if node is None or not floats:
            return False
        operation = Operation.of(node, frozenset(i for i, v in enumerate(node.inputs) if v is floats[-1]))
        role = role_of(operation) if find(operation) is not None else None
        if isinstance(role, Normalization):
            return role.softmax and operation.integer("axis", -1) in (-1, rank(operation.x) - 1)
        if not isinstance(role, Rearrangement) and not (isinstance(role, Linear) and role.kind == "scale"):
            return False
        if not _keeps_last(operation, floats[-1]):
            return False
        value = floats[-1]
    return False


def _keeps_last(operation: Operation, x: Value) -> bool:
    """Whether the last axis stays the last, entry by entry."""
    found = find(operation)
    if found is not None and found.keeps_order:
        return dims(x)[-1] == dims(operation.y)[-1]
    axes = axes_after(operation, x, list(range(rank(x))))
    return axes is not None and axes[-1] == rank(x) - 1


def _varies(value: Value) -> bool:
    return value.const_value is None and value.dtype is not None and value.dtype.is_floating_point()


# ------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Tokens:
    """What the tokens of all layers come from: `ids[t]` is token t's place, of an input whose places are these."""

    ids: Ints
    places: Places

    @property
    def homeless(self) -> list[int]:
        """The tokens that come from no part of the input: class and register tokens."""
        return [t for t, place in enumerate(self.ids) if place == NOWHERE]

    def over(self, op: Emitter, r: Value, x: Value) -> Value:
        """Relevance per token [N, T] laid over the input."""
        count = len(self.ids)
        of = {int(place): t for t, place in enumerate(self.ids) if place != NOWHERE}
        if self.places.grid is not None:
            order = [of.get(p, count) for p in range(self.places.owner.size)]
            return rules.over_grid(op, r, x, order, self.places.grid)
        owners = np.asarray([of.get(int(p), count) for p in self.places.owner], np.int64)
        return rules.over_elements(op, r, x, owners, count)


def tokens(model: ir.Model, found: Sequence[Layer], name: str, x: Value, method: str) -> Tokens | None:
    """Which part of an input each token comes from, the same in every layer; None where no layer depends on the input."""
    active, live = activity(model, [name])
    if all(id(v) not in live for v in found[0].node.inputs):
        return None
    places, layer_of = {id(x): begun(x)}, {id(layer.node): layer for layer in found}
    known: Tokens | None = None
    for node in nodes_between(model, [found[-1].y], active, live):
        layer = layer_of.get(id(node))
        if layer is None:
            operation = Operation.of(node, active[id(node)])
            results = follow(places, operation, node, role_of(operation)) if find(operation) is not None else []
        else:
            values = places.get(id(node.inputs[1]))
            here = None if values is None else _rows(values)
            if here is None or (known is not None and not _equal(here, known)):
                what = (
                    "does not weigh the input's tokens, one by one, all of them"
                    if here is None
                    else "has them in another order"
                )
                raise _refused(method, layer, f"{what}: its values come from windows, channels or mixtures of tokens")
            known = known or here
            results = [None if values is None else spread(Operation.of(node), values)]
        places.update((id(v), p) for v, p in zip(node.outputs, results) if p is not None)
    return known


def _rows(values: Places) -> Tokens | None:
    """The place of each row of values [N, heads, T, size]; None where heads or samples tell it differently."""
    joined = values.joined()
    if joined is None:
        return None
    lead = joined.ids[..., 0].reshape(-1, joined.ids.shape[-2])
    if not (lead == lead[:1]).all():
        return None
    ids = lead[0]
    placed = ids[ids != NOWHERE]
    return Tokens(ids, joined) if len(placed) and len(set(placed.tolist())) == len(placed) else None


def _equal(a: Tokens, b: Tokens) -> bool:
    return np.array_equal(a.ids, b.ids) and a.places.grid == b.places.grid


# ------------------------------------------------------------------------------------------- emission


def heads_of(op: Emitter, value: Value, source: Value) -> Value:
    """[N, heads, …, rows, columns] or [N·heads, rows, columns] as [N, heads, rows, columns]."""
    rows, columns = dims(value)[-2:]
    if rank(value) == 4 and dims(value)[0] == dims(source)[0]:
        return value
    shape = op.Concat(op.Shape(source, start=0, end=1), op.ints(-1, rows or 0, columns or 0), axis=0)
    return op.Reshape(value, shape)


def laid(
    op: Emitter, r: Value, known: Mapping[str, Tokens | None], inputs: Mapping[str, Value]
) -> tuple[dict[str, Value], list[Value]]:
    """Tokens' relevance over the inputs, which share it evenly where a token comes from several; what has no place.

    Zeros for an input that attention does not depend on.
    """
    several = [n for n, t in known.items() if t is not None]
    part = op.typed(op.Div(r, float(max(len(several), 1))), r)
    found, lost = {}, []
    for name, x in inputs.items():
        tokens_of = known[name]
        found[name] = op.typed(zeros_like(op, x) if tokens_of is None else tokens_of.over(op, part, x), x)
        if tokens_of is not None and tokens_of.homeless:
            lost.append(rules.at_none(op, part, tokens_of.homeless))
    return found, lost
