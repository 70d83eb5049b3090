"""Chains of primitives recognised as the one operator they spell: Gelu, Swish, LayerNormalization, Softmax and their like.

A rule treats an operator as a whole, so that the exports of one network at opset 13, 17 and 20 must hold the same operators.
No spelling is listed: a closed region (`region`) is an operator where it computes the same, in float64, for all of many
inputs and for any scale and shift. That finds every order of operands and every place of the constants, and fires only
where it is exact. (onnxscript's fusion rules match a few fixed spellings each, for axis -1.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.emit import set_dtype
from onnx_explain.ir.region import REDUCTIONS, Array, Region, Regions, erf
from onnx_explain.ir.spell import ALWAYS, MARK, ROUNDED
from onnx_explain.ir.view import Value

_ROUNDING = {ir.DataType.FLOAT16: 4e-3, ir.DataType.BFLOAT16: 3e-2}  # of the constants, in units of 1 + |x|
_SINGLE = 1e-6
_PROVEN = 1e-7  # float64 against float64 with the same constants; the order of summation alone differs
_FEW = np.asarray([0.0, 1.0, 0.125, -1.0, 3.5])  # where most regions show already that they are something else
_GRID = np.concatenate([np.linspace(-12.0, 12.0, 193), np.logspace(-4, 1.9, 24), -np.logspace(-4, 1.9, 24)])
_FAR = np.concatenate([np.logspace(2, 30, 57), -np.logspace(2, 30, 57)])  # where a bound may still lie


@dataclass(frozen=True)
class Found:
    """The operator that a region spells: its operands behind the entry, and its attributes.

    `before`, `behind`: permutations of the entry's and of the result's axes.
    """

    op_type: str
    operands: tuple[Value, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()


def recognise(model: ir.Model) -> ir.Model:
    """Replace every region that spells an operator by that operator; in place.

    The model is shaped and its constants are lifted. Gelu, Swish and RMSNormalization are written whatever the model's opset
    is: `spell.spell_out` brings it back to what a runtime of that opset knows.
    """
    graph = model.graph
    anchors = [n for n in graph if n.op_type in _ANCHORS and n.domain in ("", "ai.onnx")]
    if not anchors:
        return model
    regions, gone = Regions(graph), set[int]()
    for anchor in anchors:
        if id(anchor) in gone or regions.leads_nowhere(anchor):
            continue
        for region, found in _readings(list(regions.around(anchor))):
            gone |= _stand_in(graph, regions, region, found)
            break
    return model


def _readings(regions: list[Region]) -> Iterator[tuple[Region, Found]]:
    """What the regions around an anchor spell: the one that takes in most first."""
    plain = [r for r in regions if not r.operators & REDUCTIONS]
    reducing = [r for r in regions if r.operators & REDUCTIONS]
    for region in sorted(reducing, key=lambda r: (-len(r.vectors), -len(r.nodes))):
        for form in (_softmax, _normalisation):
            found = form(region) if region.begins else None
            if found is not None:
                yield region, found
    for region in sorted(plain, key=lambda r: -len(r.nodes)):
        found = _pointwise(region)
        if found is not None:
            yield region, found


# ------------------------------------------------------------------------------------------- functions of one number


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


_CUBIC = math.sqrt(2.0 / math.pi)
_FUNCTIONS: tuple[tuple[str, dict[str, Any], Callable[[Array], Array]], ...] = (
    ("Gelu", {}, lambda x: x * 0.5 * (1.0 + erf(x / math.sqrt(2.0)))),
    ("Gelu", {"approximate": "tanh"}, lambda x: x * 0.5 * (1.0 + np.tanh(_CUBIC * (x + 0.044715 * x**3)))),
    ("HardSwish", {}, lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0)),
    ("Mish", {}, lambda x: x * np.tanh(np.logaddexp(0.0, x))),
    ("Relu", {}, lambda x: np.maximum(x, 0.0)),
    ("Sigmoid", {}, _sigmoid),
    ("Softplus", {}, lambda x: np.logaddexp(0.0, x)),
)
_AT_FEW = np.stack([function(_FEW) for _, _, function in _FUNCTIONS])
_ANCHORS = frozenset({"Clip", "Erf", "Exp", "HardSigmoid", "Max", "Min", "Pow", "Sigmoid", "Softplus", "Sqrt", "Tanh"})


def _pointwise(region: Region) -> Found | None:
    """An activation, where it agrees on the whole grid."""
    turned, shape = region.turned, region.entry.shape
    if turned is None or shape is None or region.entry.dtype != region.exit.dtype or region.vectors:
        return None
    if region.exit.shape is None or [shape[a] for a in turned or range(len(shape))] != list(region.exit.shape):
        return None
    few = _on(region, _FEW)
    if few is None:
        return None
    likely = [row for row, near in zip(_FUNCTIONS, _near(region, few, _AT_FEW, _FEW)) if near]
    for op_type, attributes, function in (*likely, *_families(few)):
        if _near(region, few, function(_FEW), _FEW):
            y = _on(region, _GRID)
            if y is not None and _near(region, y, function(_GRID), _GRID) and _holds_far(region, function):
                return Found(op_type, (), attributes, before=turned)
    return None


def _on(region: Region, x: Array) -> Array | None:
    """The region's values at x, one number for one."""
    y = region.run(x)
    return None if y is None or y.shape[-1:] != x.shape or y.size != x.size else y.reshape(x.shape)


def _near(region: Region, y: Array, wanted: Array, x: Array) -> Any:
    """Whether y is one function's values at x, or per row of `wanted`, whether it is that one's."""
    slack = _ROUNDING.get(region.entry.dtype or ir.DataType.FLOAT, _SINGLE) * (1.0 + np.abs(x))
    return (np.abs(y - wanted) <= slack).all(axis=-1)


def _holds_far(region: Region, function: Callable[[Array], Array]) -> bool:
    """Whether it agrees beyond the grid too, as far as the spelling does not overflow: a Clip from 0 to 128 is no Relu."""
    with np.errstate(all="ignore"):
        y = _on(region, _FAR)
        if y is None:
            return False
        finite = np.isfinite(y)
        return bool(_near(region, y[finite], function(_FAR)[finite], _FAR[finite]))


def _families(few: Array) -> Iterator[tuple[str, dict[str, Any], Callable[[Array], Array]]]:
    """Functions with a parameter, which is read off the region's own values at `_FEW`."""
    zero, one, near = (float(v) for v in few[:3])
    if 0.0 < one < 1.0 and zero == 0.0:
        alpha = math.log(one / (1.0 - one))
        yield "Swish", {"alpha": alpha}, lambda x: x * _sigmoid(alpha * x)
    slope = (near - zero) * 8.0
    if 0.0 < zero < 1.0 and slope > 0.0:
        yield "HardSigmoid", {"alpha": slope, "beta": zero}, lambda x: np.clip(slope * x + zero, 0.0, 1.0)


# ------------------------------------------------------------------------------------------- functions of a whole axis


def _sample(region: Region, seed: int, scale: float = 1.0) -> tuple[Array, dict[int, Array]] | None:
    """A random entry, as small as the constants allow, and random stand-ins for the vectors among them."""
    axes, shape = region.axes, region.entry.shape
    if axes is None or shape is None or region.exit.shape != shape or region.entry.dtype != region.exit.dtype:
        return None
    n, sizes = len(shape), []
    for a, size in enumerate(shape):
        wide = any(c.shape is not None and len(c.shape) >= n - a and c.shape[a - n] != 1 for c in region.vectors)
        if not isinstance(size, int) and (a in axes or wide):
            return None
        sizes.append(size if isinstance(size, int) and (a in axes or wide) else 2)
    rng = np.random.default_rng(seed)
    given = {}
    for c in region.vectors:
        fixed = [d for d in c.shape or () if isinstance(d, int)]
        if c.shape is None or len(fixed) != len(c.shape) or len(fixed) > n:
            return None
        if any(d not in (1, size) for d, size in zip(reversed(fixed), reversed(sizes))):
            return None  # it meets the entry in another order of its axes
        given[id(c)] = rng.standard_normal(fixed)
    return rng.standard_normal(sizes) * scale + 0.3 * scale, given


def _agrees(region: Region, expected: Callable[[Array, Mapping[int, Array]], Array], scales: Sequence[float]) -> bool:
    for seed, scale in enumerate(scales):
        drawn = _sample(region, seed, scale)
        if drawn is None:
            return False
        y = region.run(*drawn)
        wanted = expected(*drawn)
        if y is None or y.shape != wanted.shape or not np.isfinite(y).all():
            return False
        if np.abs(y - wanted).max(initial=0.0) > _PROVEN * np.abs(wanted).max(initial=0.0):
            return False
    return True


def _softmax(region: Region) -> Found | None:
    """Softmax or LogSoftmax over one axis."""
    axes = region.axes
    if axes is None or len(axes) != 1 or region.vectors or not region.operators & {"Exp", "ReduceLogSumExp"}:
        return None

    def log(x: Array, given: Mapping[int, Array]) -> Array:
        return np.asarray(x - np.logaddexp.reduce(x, axis=axes[0], keepdims=True))

    if _agrees(region, lambda x, given: np.exp(log(x, given)), (1.0, 4.0)):
        return Found("Softmax", (), {"axis": axes[0]})
    if _agrees(region, log, (1.0, 4.0)):
        return Found("LogSoftmax", (), {"axis": axes[0]})
    return None


def _normalisation(region: Region) -> Found | None:
    """LayerNormalization or RMSNormalization, with or without scale and shift; over other than the last axes, these in front."""
    axes = region.axes
    if not axes or len(region.vectors) > 2 or not region.operators & {"Sqrt", "Pow"}:
        return None
    for epsilon in dict.fromkeys([*(s for s in region.scalars if 0.0 <= s < 0.5), 0.0]):
        scales = (1.0, math.sqrt(epsilon) or 0.1)
        for centred in (True, False):
            for gain, shift in _roles(region.vectors, centred):
                if _agrees(region, _standardised(axes, epsilon, centred, gain, shift), scales):
                    return _normal(region, axes, epsilon, centred, gain, shift)
    return None


def _roles(vectors: Sequence[Value], centred: bool) -> Iterator[tuple[Value | None, Value | None]]:
    """Which constant scales and which shifts; every one must serve."""
    if not vectors:
        yield None, None
    elif len(vectors) == 1:
        yield vectors[0], None
        if centred:
            yield None, vectors[0]
    elif centred:
        yield vectors[0], vectors[1]
        yield vectors[1], vectors[0]


def _standardised(
    axes: tuple[int, ...], epsilon: float, centred: bool, gain: Value | None, shift: Value | None
) -> Callable[[Array, Mapping[int, Array]], Array]:
    def expected(x: Array, given: Mapping[int, Array]) -> Array:
        moved = x - x.mean(axis=axes, keepdims=True) if centred else x
        y = moved / np.sqrt((moved**2).mean(axis=axes, keepdims=True) + epsilon)
        y = y if gain is None else y * given[id(gain)]
        return np.asarray(y if shift is None else y + given[id(shift)])

    return expected


def _normal(
    region: Region, axes: tuple[int, ...], epsilon: float, centred: bool, gain: Value | None, shift: Value | None
) -> Found | None:
    n, shape = len(region.entry.shape or ()), list(region.entry.shape or ())
    sizes = [d for d in (shape[a] for a in axes) if isinstance(d, int)]
    parts = [_shaped(c, axes, sizes, n, region.entry.dtype) for c in (gain, shift)]
    if (gain is not None and parts[0] is None) or (shift is not None and parts[1] is None):
        return None
    scale = parts[0] if parts[0] is not None else _ones(region, sizes)
    operands = (scale,) if parts[1] is None else (scale, parts[1])
    attributes = {"axis": -len(axes), "epsilon": epsilon}
    order = (*(a for a in range(n) if a not in axes), *axes)
    turns = (order, tuple(order.index(a) for a in range(n))) if order != tuple(range(n)) else ((), ())
    return Found("LayerNormalization" if centred else "RMSNormalization", operands, attributes, *turns)


def _shaped(
    vector: Value | None, axes: tuple[int, ...], sizes: Sequence[int], n: int, dtype: ir.DataType | None
) -> Value | None:
    """The constant in the shape of the normalised axes, or None where it has another."""
    if vector is None or vector.shape is None or vector.dtype != dtype:
        return None
    own = [d for d in vector.shape if isinstance(d, int)]
    whole = [1] * (n - len(own)) + own
    if [whole[a] for a in axes] != list(sizes) or any(d != 1 for a, d in enumerate(whole) if a not in axes):
        return None
    if own == list(sizes):
        return vector
    if vector.const_value is None:
        return None
    return _constant(f"{vector.name}/flat", vector.const_value.numpy().reshape(sizes))


def _ones(region: Region, sizes: Sequence[int]) -> Value:
    kind = (region.entry.dtype or ir.DataType.FLOAT).numpy()
    return _constant(f"{region.exit.name}/ones", np.ones(sizes, kind))


def _constant(name: str, array: Array) -> Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


# ------------------------------------------------------------------------------------------- in and out of the graph


def _stand_in(graph: ir.Graph, regions: Regions, region: Region, found: Found) -> set[int]:
    """Write the operator where the region was; {id} of the nodes that are gone."""
    operands = [_registered(graph, v) for v in found.operands]
    last = region.exit.producer()
    if last is None:
        raise ValueError(f"tensor {region.exit.name!r}: nothing computes it")
    before, behind = region.entry, found.behind
    place = regions.order[id(last)]
    if found.before:
        before = _turn(graph, regions, last, before, found.before, f"{last.name}/before")
    node = ir.node(found.op_type, [before, *operands], dict(found.attributes) or None, name=last.name)
    if found.op_type in ALWAYS or (found.op_type in ROUNDED and region.entry.dtype == ir.DataType.DOUBLE):
        node.metadata_props[MARK] = "true"
    new, old = node.outputs[0], region.exit
    new.name, new.shape = old.name if not behind else f"{old.name}/turned", before.shape
    set_dtype(new, old.dtype)
    graph.insert_before(last, node)
    regions.adopt(node, place)
    name, old.name = old.name, f"{old.name}/chain"
    if behind:
        new = _turn(graph, regions, last, new, behind, f"{last.name}/behind")
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    gone = [n for n in (o.y.producer() for o in region.nodes) if n is not None]
    idle = [u.node for n in gone for u in n.outputs[0].uses() if all(u.node is not g for g in gone)]
    left = [*_downwards(idle), *reversed(gone)]
    for other in left:
        graph.remove(other, safe=True)
    regions.retire(left)
    return {id(n) for n in left}


def _turn(graph: ir.Graph, regions: Regions, last: ir.Node, value: Value, perm: tuple[int, ...], name: str) -> Value:
    node = ir.node("Transpose", [value], {"perm": list(perm)}, name=name)
    turned, sizes = node.outputs[0], list(value.shape or ())
    turned.name, turned.shape = f"{name}_out", ir.Shape([sizes[a] for a in perm])
    set_dtype(turned, value.dtype)
    graph.insert_before(last, node)
    regions.adopt(node, regions.order[id(last)])
    return turned


def _downwards(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Nodes that lead nowhere with all that reads them, the last first."""
    found: dict[int, ir.Node] = {}

    def visit(node: ir.Node) -> None:
        if id(node) in found:
            return
        for value in node.outputs:
            for use in value.uses():
                visit(use.node)
        found[id(node)] = node

    for node in nodes:
        visit(node)
    return list(found.values())


def _registered(graph: ir.Graph, value: Value) -> Value:
    """A constant that is the graph's own."""
    if value.producer() is not None or value.name in graph.initializers:
        return graph.initializers.get(value.name or "", value)
    graph.register_initializer(value)
    return value
