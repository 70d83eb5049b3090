"""The mechanism by which fused operators are written as the primitives they stand for; `contrib`, `attention` and
`recurrent` say how.

An expansion computes what ONNX Runtime's kernel does; what a kernel can do besides and an expansion does not is refused by
name: recurrences where relevance would have to pass, others at once. Fused operators that are not listed stay as they are, and
are refused where relevance would have to pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.seen import Look, Seen
from onnx_explain.ir.view import WEIGHS, Operation, Value

MICROSOFT = "com.microsoft"
CLASSIC = "ai.onnx.ml"
OLDEST = 11  # the opset from which on Range, Slice and Clip mean what they mean today
RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_LATE = 18  # the opset from which on recurrences are expanded, after the conversion of older ones
_YOUNG = frozenset(
    {"Attention", "EmbedLayerNormalization", "GroupQueryAttention", "MultiHeadAttention", "RotaryEmbedding"}
)
_AXES_ARE_INPUTS = 18
_AXES_OF_SUM = 13
_AXES_OF_UNSQUEEZE = 13
HAS_LAYER_NORMALIZATION = 17
Results = Sequence[Value | None]
Expansion = Callable[["Writer", Operation], Results]
EXPANSIONS: dict[tuple[str, str], Expansion] = {}
CHECKS: dict[tuple[str, str], Callable[[Operation], object]] = {}  # they raise where an expansion covers no node
_CACHE = "it keeps keys and values from call to call"
_BITS = "its weights are packed bits"
REFUSED = {
    "DecoderMaskedMultiHeadAttention": _CACHE,
    "DecoderMaskedSelfAttention": _CACHE,
    "LongformerAttention": "it attends to a moving window",
    "MatMulBnb4": _BITS,
    "MoE": "its experts are chosen while it runs",
    "PackedAttention": "its samples are packed into one",
    "PackedMultiHeadAttention": "its samples are packed into one",
    "PagedAttention": _CACHE,
    "QMoE": _BITS,
    "SparseAttention": "its mask is packed into blocks",
}


def unfuse(model: ir.Model, look: Look | None = None) -> ir.Model:
    """Replace every fused operator that has an expansion, in place; the model may have any opset (attention: from 11 on,
    recurrences: from 18 on).

    `look` tells shapes and numbers where ONNX's inference alone does not.

    Raises UnsupportedOperator where a fused operator is used in a way that its expansion does not cover.
    """
    register()
    graph = model.graph
    for node in graph:
        _refuse(node)
    version, varying = graph.opset_imports.get("", 0), _varying(graph)
    fused = [n for n in graph if (_domain(n), n.op_type) in EXPANSIONS and not _has_room(n, version, varying)]
    if not fused:
        return model
    op = Writer(graph, version, _float(graph), (lambda: Seen()) if look is None else (lambda: look(model)))
    while fused:  # nothing has a shape behind a fused operator before that one is gone: round by round
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        waiting: dict[int, UnsupportedOperator] = {}
        resigned: set[int] = set()
        for node in fused:
            try:
                _expand(op, node)
            except Unshaped as error:
                waiting[id(node)] = error
            except UnsupportedOperator:
                if not _may_stay(node):
                    raise
                resigned.add(id(node))
        op.finish()
        left = [n for n in fused if id(n) in waiting]
        if len(left) + len(resigned) == len(fused) and not (left and op.look().adopt(graph)):
            if all(map(_may_stay, left)):
                break
            raise next(waiting[id(n)] for n in left if not _may_stay(n))
        fused = left
    for domain in (MICROSOFT, CLASSIC):
        if not any(n.domain == domain for n in graph):
            graph.opset_imports.pop(domain, None)
    return model


def register() -> None:
    """Fill EXPANSIONS."""
    # they are written with what stands here
    from onnx_explain.ir import attention, classic, contrib, diffusion, grouped, onnx_attention, recurrent  # noqa: F401


def reason(node: Operation) -> str | None:
    """Why a fused operator was left as it is, in a sentence; None where it is none, or nothing speaks against it."""
    check = CHECKS.get((node.domain, node.op_type))
    try:
        if check is not None:
            check(node)
    except UnsupportedOperator as error:
        return str(error)
    return None


def _may_stay(node: ir.Node) -> bool:
    """Whether an operator is refused only where relevance has to pass it."""
    return _domain(node) == "" and node.op_type in RECURRENT


def _expand(op: Writer, node: ir.Node) -> None:
    forward = Operation.of(node)
    if op.version < OLDEST and node.op_type in _YOUNG:
        raise refused(forward, f"the model's opset is {op.version}", "export it with opset 11 or later")
    with op.serving(forward.name):
        results = EXPANSIONS[_domain(node), node.op_type](op, forward)
    for index, old in enumerate(node.outputs):
        _stand_in(op, forward, old, results[index] if index < len(results) else None)
    op.drop(node)


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _refuse(node: ir.Node) -> None:
    """Fused operators without an expansion: nothing behind them has a shape, so they are named before shapes are asked for."""
    remedy = "export the model without it, or run ONNX Runtime's optimizer at a lower level"
    if node.domain == MICROSOFT and node.op_type in REFUSED:
        raise refused(Operation.of(node), REFUSED[node.op_type], remedy)
    if node.domain == f"{MICROSOFT}.nchwc":
        raise refused(Operation.of(node), "the file was saved in one machine's memory layout", remedy)


def _has_room(node: ir.Node, version: int, varying: set[int]) -> bool:
    """Whether it is a standard operator that relevance passes as it is."""
    if node.domain == MICROSOFT:
        return False
    if node.op_type in RECURRENT:
        return version < _LATE
    if node.op_type == "BatchNormalization":
        return not any(v is not None and id(v) in varying for v in node.inputs[1:])
    return node.op_type == "LayerNormalization" and version >= HAS_LAYER_NORMALIZATION


def _varying(graph: ir.Graph) -> set[int]:
    """{id} of the values that depend on an input; looked for only where it matters."""
    if not any(n.op_type == "BatchNormalization" for n in graph):
        return set()
    found = {id(v) for v in graph.inputs}
    for node in graph:
        if node.op_type not in ("Shape", "Size") and any(v is not None and id(v) in found for v in node.inputs):
            found.update(id(v) for v in node.outputs)
    return found


def _float(graph: ir.Graph) -> ir.DataType:
    """The float type the model computes in: that of its first float weight, else of its first float input."""
    values = [*graph.initializers.values(), *graph.inputs]
    return next((v.dtype for v in values if v.dtype is not None and v.dtype.is_floating_point()), ir.DataType.FLOAT)


def _stand_in(op: Emitter, node: Operation, old: Value, new: Value | None) -> None:
    read = bool(old.uses()) or old.is_graph_output()
    if new is None:
        if read:
            raise refused(node, f"its output {old.name!r} is read", "export the model without it")
        return
    if not read:
        return
    if old.is_graph_output() or new.producer() is None:
        new = op.emit("Identity", [new], shared=False)[0]
    new.name, old.name = old.name, f"{old.name}/fused"
    op.typed(new, old)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def refused(node: Operation, what: str, remedy: str) -> UnsupportedOperator:
    """The error for a use of an operator that its expansion does not cover: what, and what to do."""
    return UnsupportedOperator(f"{node.where}: {what}, which its expansion to primitives does not cover; {remedy}.")


class Unshaped(UnsupportedOperator):
    """A shape is not known, yet: that of a tensor behind another fused operator."""


def unshaped(node: Operation, what: str, remedy: str = "run shape inference on the file") -> Unshaped:
    """The error for a shape that an expansion needs: ``what`` is not known."""
    return Unshaped(f"{node.where}: {what} not known, without which it cannot be expanded; {remedy}.")


def without(node: Operation, operands: dict[int, str]) -> None:
    """Refuse operands that an expansion does not cover."""
    for index, name in operands.items():
        if node.has(index):
            raise refused(node, f"it has the operand {name}", "export the model without it")


class Writer(Emitter):
    """An emitter that knows the model's opset and float type, before shapes and types are inferred."""

    def __init__(
        self, graph: ir.Graph, version: int, dtype: ir.DataType, look: Callable[[], Seen] = lambda: Seen()
    ) -> None:
        super().__init__(graph)
        self.version, self.dtype = version, dtype
        self._look = look
        self._seen: Seen | None = None

    def look(self) -> Seen:
        """What is known of the model as it is now."""
        self._seen = self._look()
        return self._seen

    def uniform(self, value: Value) -> float | None:
        """The number that all entries of a value equal before the model runs, or None."""
        tensor = value.const_value
        if tensor is None or value.is_graph_input():
            return None if value.is_graph_input() else (self._seen or self.look()).uniform.get(value.name or "")
        array = np.asarray(tensor.numpy())
        return float(array.flat[0]) if array.size and (array == array.flat[0]).all() else None

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Nodes emitted inside are called ``<name>/…``: they are the model's own, not an explanation's."""
        before, self._scope = self._scope, name
        try:
            yield
        finally:
            self._scope = before

    def weighed(self, signal: Value, gate: Value) -> Value:
        """signal ⊙ gate, of which the gate only weighs the signal: relevance rules give it none."""
        before, self._metadata = self._metadata, {**self._metadata, WEIGHS: "1"}
        try:
            return self.emit("Mul", [signal, gate], shared=False)[0]
        finally:
            self._metadata = before

    def drop(self, node: ir.Node) -> None:
        """Remove a node that nothing reads any more."""
        self._graph.remove(node, safe=True)

    def number(self, value: float) -> Value:
        """A scalar of the model's float type."""
        return self.constant(np.asarray(value, self.dtype.numpy()))

    def scaled(self, x: Value, factor: float) -> Value:
        """x·factor."""
        return x if factor == 1.0 else self.Mul(x, self.number(factor))

    def mean(self, x: Value, axes: Sequence[int]) -> Value:
        """The mean over axes, which stay."""
        if self.version >= _AXES_ARE_INPUTS:
            return self.ReduceMean(x, self.ints(*axes), keepdims=1)
        return self.ReduceMean(x, axes=list(axes), keepdims=1)

    def reduced(self, op_type: str, x: Value, axes: Sequence[int]) -> Value:
        """A reduction over axes, which stay."""
        since = _AXES_OF_SUM if op_type == "ReduceSum" else _AXES_ARE_INPUTS
        if self.version >= since:
            return self.emit(op_type, [x, self.ints(*axes)], {"keepdims": 1})[0]
        return self.emit(op_type, [x], {"keepdims": 1, "axes": list(axes)})[0]

    def size(self, x: Value, axis: int) -> Value:
        """One dimension as an int64 scalar."""
        return self.Gather(self.Shape(x), self.constant(np.asarray(axis, np.int64)), axis=0)

    def apart(self, x: Value, axis: int) -> Value:
        """A new axis of length 1."""
        return (
            self.Unsqueeze(x, self.ints(axis)) if self.version >= _AXES_OF_UNSQUEEZE else self.Unsqueeze(x, axes=[axis])
        )

    def counting(self, size: Value) -> Value:
        """0, 1, …, size - 1 as int64."""
        return self.Range(self.constant(np.asarray(0)), size, self.constant(np.asarray(1)))


def fused(*op_types: str, domain: str = MICROSOFT) -> Callable[[Expansion], Expansion]:
    """Register the expansion of one or more fused operators."""

    def register(function: Expansion) -> Expansion:
        EXPANSIONS.update({(domain, t): function for t in op_types})
        return function

    return register
