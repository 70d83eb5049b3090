"""Regions of a graph with one way in and one way out, and what they compute in NumPy float64.

A region is closed: apart from its entry it reads constants alone, and nobody outside reads what lies between. What a region
means is `recognise`'s affair; nothing is changed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ir.view import Operation, Value

Array = npt.NDArray[Any]
LARGEST = 18  # nodes of a region; the longest spelling met (LayerNormalization by batch moments) has 12
STRAIGHT = 8  # nodes of a region in which nothing forks; the longest spelling met (HardSigmoid) has 5
REACH = 7  # steps from the anchor to the end


def reduced(node: Operation, n: int) -> tuple[int, ...] | None:
    """The axes of a reduction over a tensor of rank n, counted from the front; None where they are not known."""
    axes: Any = node.attributes.get("axes")
    if node.has(1):
        tensor = node.input(1).const_value
        if tensor is None:
            return None
        axes = tensor.numpy().tolist()
    if axes is None or len(axes) == 0:
        return () if node.integer("noop_with_empty_axes", 0) else tuple(range(n))
    return tuple(sorted({int(a) % n for a in axes}))


def _reduction(function: Callable[..., Array]) -> Callable[[Operation, list[Array]], Array]:
    def run(node: Operation, x: list[Array]) -> Array:
        axes = reduced(node, x[0].ndim)
        if axes is None:
            raise ValueError("axes that are not known")
        return np.asarray(function(x[0], axis=axes, keepdims=bool(node.integer("keepdims", 1))))

    return run


def _clip(node: Operation, x: list[Array]) -> Array:
    low = x[1] if node.has(1) else -np.inf
    return np.asarray(np.minimum(np.maximum(x[0], low), x[-1] if node.has(2) else np.inf))


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


def erf(x: Array) -> Array:
    """The error function, element by element."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float64, x.size).reshape(x.shape)


def _transpose(node: Operation, x: list[Array]) -> Array:
    return x[0] if x[0].ndim == 1 else np.transpose(x[0], node.ints("perm"))


def _hard(node: Operation, x: list[Array]) -> Array:
    return np.asarray(np.clip(node.number("alpha", 0.2) * x[0] + node.number("beta", 0.5), 0.0, 1.0))


_ONE: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs, "Erf": erf, "Exp": np.exp, "Identity": np.asarray, "Log": np.log, "Neg": np.negative,
    "Reciprocal": lambda x: 1.0 / x, "Relu": lambda x: np.maximum(x, 0.0), "Sigmoid": _sigmoid,
    "Softplus": lambda x: np.logaddexp(0.0, x), "Sqrt": np.sqrt, "Tanh": np.tanh,
}  # fmt: skip
_TWO: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add, "Div": np.divide, "Max": np.maximum, "Min": np.minimum, "Mul": np.multiply, "Pow": np.power,
    "Sub": np.subtract, "Sum": np.add,
}  # fmt: skip
_REDUCE: dict[str, Callable[[Operation, list[Array]], Array]] = {
    "ReduceMax": _reduction(np.max), "ReduceMean": _reduction(np.mean), "ReduceSum": _reduction(np.sum),
    "ReduceSumSquare": _reduction(lambda x, **o: np.sum(x * x, **o)),
    "ReduceL2": _reduction(lambda x, **o: np.sqrt(np.sum(x * x, **o))),
    "ReduceLogSumExp": _reduction(lambda x, **o: np.logaddexp.reduce(x, axis=o["axis"][0], keepdims=o["keepdims"])),
}  # fmt: skip
_FURTHER = {"Clip": _clip, "HardSigmoid": _hard, "Transpose": _transpose}
REDUCTIONS = frozenset(_REDUCE)
ALONE = frozenset({"Clip", "Max"})  # what another operator's name may stand for by itself: a Relu
KNOWN = frozenset({*_ONE, *_TWO, *_REDUCE, *_FURTHER})


@dataclass(frozen=True)
class Region:
    """`nodes` in the order in which they run, from `entry` to `exit`; `constants`: what they read besides."""

    entry: Value
    exit: Value
    nodes: tuple[Operation, ...]
    constants: tuple[Value, ...]

    @cached_property
    def operators(self) -> frozenset[str]:
        """The operators that occur."""
        return frozenset(n.op_type for n in self.nodes)

    @cached_property
    def axes(self) -> tuple[int, ...] | None:
        """The axes of all reductions; None where they differ, are not known, or are not kept."""
        n = len(self.entry.shape or ())
        found = {reduced(node, n) for node in self.nodes if node.op_type in REDUCTIONS}
        kept = all(node.integer("keepdims", 1) for node in self.nodes if node.op_type in REDUCTIONS)
        return found.pop() if len(found) == 1 and kept else None

    @cached_property
    def begins(self) -> bool:
        """Whether the reductions begin at the entry itself, not behind a map that they do not see (x + 1, say)."""
        readers = [n for n in self.nodes if any(v is self.entry for v in n.inputs)]
        return len(readers) > 1 or bool({n.op_type for n in readers} & {"Exp", *REDUCTIONS})

    @cached_property
    def turned(self) -> tuple[int, ...] | None:
        """The one permutation that every way through the region takes; empty where none does, None where they differ."""
        known: dict[int, tuple[int, ...]] = {id(self.entry): ()}
        for node in self.nodes:
            ways = {known[id(v)] for v in node.inputs if v is not None and id(v) in known}
            if len(ways) != 1:
                return None
            way = ways.pop()
            if node.op_type == "Transpose":
                if way:
                    return None
                way = tuple(node.ints("perm", list(reversed(range(len(node.y.shape or ()))))) or ())
            known[id(node.y)] = way
        return known[id(self.exit)]

    @cached_property
    def vectors(self) -> tuple[Value, ...]:
        """Float constants of more than one element."""
        return tuple(c for c in self.constants if _is_float(c) and _size(c) != 1)

    @cached_property
    def scalars(self) -> tuple[float, ...]:
        """Float constants of one element whose number is known."""
        numbers = [c.const_value for c in self.constants if _is_float(c) and _size(c) == 1]
        return tuple(float(t.numpy().reshape(())) for t in numbers if t is not None)

    def run(self, x: Array, given: Mapping[int, Array] | None = None) -> Array | None:
        """The exit's value for an entry of float64; `given`: {id(constant): stand-in}. None where a number is not known."""
        known: dict[int, Array] = {id(self.entry): x, **(given or {})}
        for constant in self.constants:
            if id(constant) in known or not _is_float(constant):
                continue
            if constant.const_value is None:
                return None
            known[id(constant)] = constant.const_value.numpy().astype(np.float64)
        try:
            with np.errstate(all="ignore"):
                for node in self.nodes:
                    operands = [known[id(v)] for v in node.inputs if v is not None and id(v) in known]
                    known[id(node.y)] = _apply(node, operands)
        except (ValueError, TypeError, IndexError):
            return None  # not every combination of shapes goes together: then it is not what is looked for
        return known[id(self.exit)]


def _apply(node: Operation, x: list[Array]) -> Array:
    if node.op_type in _ONE:
        return _ONE[node.op_type](x[0])
    if node.op_type in _TWO:
        return reduce(_TWO[node.op_type], x)
    return (_REDUCE.get(node.op_type) or _FURTHER[node.op_type])(node, x)


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _size(value: Value) -> int | None:
    sizes = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
    return None if sizes is None or None in sizes else math.prod(d for d in sizes if d is not None)


class Regions:
    """The closed regions of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.order = {id(node): i for i, node in enumerate(graph)}
        varying = {id(v) for v in graph.inputs}
        for node in graph:
            captures = any(
                a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()
            )
            random = node.op_type.startswith(("Random", "Bernoulli", "Multinomial"))
            if captures or random or any(v is not None and id(v) in varying for v in node.inputs):
                varying.update(id(v) for v in node.outputs)
        self._varying = varying
        self._views: dict[int, Operation] = {}
        self._gone: list[ir.Node] = []
        self._read = {id(v) for v in graph.outputs}
        for node in reversed(list(graph)):
            if any(id(v) in self._read for v in node.outputs):
                self._read.update(id(v) for v in _operands(node))

    def adopt(self, node: ir.Node, place: int) -> None:
        """A node that has come to stand where a region was."""
        self.order[id(node)] = place
        self._varying.update(id(v) for v in node.outputs)
        self._read.update(id(v) for v in node.outputs)
        self._views.clear()  # what read the region's exit reads another value now

    def retire(self, nodes: Iterable[ir.Node]) -> None:
        """Nodes that have left the graph; they stay alive, so that no new one takes over an identity noted here."""
        self._gone.extend(nodes)

    def leads_nowhere(self, node: ir.Node) -> bool:
        """Whether no graph output depends on the node."""
        return not any(id(v) in self._read for v in node.outputs)

    def around(self, anchor: ir.Node) -> Iterator[Region]:
        """Every closed region that holds the anchor, of two nodes or more, or of one that may spell another operator."""
        for end in self._ends(anchor):
            yield from self._up_from(end, anchor)

    def _ends(self, anchor: ir.Node) -> list[Value]:
        """The anchor's value and those behind it that are made by operators known here."""
        found = {id(anchor.outputs[0]): anchor.outputs[0]}
        edge = [anchor]
        for _ in range(REACH):
            ahead: dict[int, ir.Node] = {}
            for node in edge:
                steps = self._readers(node.outputs[0])
                ahead.update((id(n), n) for n in steps if self._passes(n) and id(n.outputs[0]) not in found)
            found.update((id(n.outputs[0]), n.outputs[0]) for n in ahead.values())
            edge = list(ahead.values())
            if not edge or len(found) > 2 * REACH:
                break
        return list(found.values())

    def _readers(self, value: Value) -> list[ir.Node]:
        """The nodes that read a value and lead anywhere; none where they are too many to lie in one region."""
        found: list[ir.Node] = []
        for use in value.uses():
            if len(found) > LARGEST:
                return []
            if not self.leads_nowhere(use.node):
                found.append(use.node)
        return found

    def _up_from(self, end: Value, anchor: ir.Node) -> Iterator[Region]:
        """The regions that end at a value: upwards from it, the last computed first; where one value alone is left, it enters."""
        nodes: dict[int, ir.Node] = {}
        constants: dict[int, Value] = {}
        last = end.producer()
        waiting = {} if last is None else {id(last): last}
        sources: dict[int, Value] = {}
        forked = False
        while waiting and len(nodes) < (LARGEST if forked else STRAIGHT):
            node = max(waiting.values(), key=lambda n: self.order[id(n)])
            # every source but one has to become a node of the region
            if not self._passes(node) or len(nodes) + len(sources) > LARGEST or len(node.inputs) > LARGEST:
                return
            nodes[id(waiting.pop(id(node)))] = node
            sources.pop(id(node.outputs[0]), None)
            for value in node.inputs:
                if value is None:
                    continue
                if id(value) not in self._varying:
                    constants[id(value)] = value
                    continue
                sources[id(value)] = value
                maker = value.producer()
                if maker is not None:
                    waiting[id(maker)] = maker
            forked = forked or len(sources) > 1
            whole = len(nodes) > 1 or node.op_type in ALONE
            if len(sources) == 1 and whole and id(anchor) in nodes and self._closed(nodes, end):
                inside = sorted(nodes.values(), key=lambda n: self.order[id(n)])
                entry = next(iter(sources.values()))
                yield Region(entry, end, tuple(self._view(n) for n in inside), tuple(constants.values()))

    def _view(self, node: ir.Node) -> Operation:
        if id(node) not in self._views:
            self._views[id(node)] = Operation.of(node)
        return self._views[id(node)]

    def _passes(self, node: ir.Node) -> bool:
        return node.op_type in KNOWN and node.domain in ("", "ai.onnx") and len(node.outputs) == 1

    def _closed(self, nodes: Mapping[int, ir.Node], end: Value) -> bool:
        """Whether what lies between is read inside alone, by nodes that lead anywhere."""
        for node in nodes.values():
            value = node.outputs[0]
            if value is end:
                continue
            if value.is_graph_output():
                return False
            if any(id(u.node) not in nodes and not self.leads_nowhere(u.node) for u in value.uses()):
                return False
        return True


def _operands(node: ir.Node) -> Iterator[Value]:
    yield from (v for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (v for v in inner.inputs if v is not None)
