"""The only way to write nodes: every value typed, every node named after the forward node it serves, equal nodes once.

No knowledge of operators' meaning, rules or methods lives here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ir.view import Value, dims

PREFIX = "explain"
_BOOL = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "IsNaN", "IsInf"}
_INT64 = {"Shape", "Size", "ArgMax", "ArgMin", "NonZero"}
_TYPED_BY_SECOND = {"Where", "CastLike"}


class Emitter:
    """Appends nodes to one graph.

    `op.Add(a, b)` emits an Add; numbers and arrays become constants of the other operands' dtype. Two calls with equal
    operands and attributes give one node, so that a weight version (`w+`, flipped `w`) exists once however many rules
    and targets ask for it. `constants_as_nodes` is for function bodies, which can hold no initialisers.
    """

    def __init__(self, graph: ir.Graph, *, constants_as_nodes: bool = False) -> None:
        self._graph = graph
        self._constants_as_nodes = constants_as_nodes
        self._scope = PREFIX
        self._metadata: dict[str, str] = {}
        self._known: dict[Any, tuple[Value, ...]] = {}
        self._taken = (
            {node.name for node in graph}
            | {v.name for node in graph for v in node.outputs}
            | {v.name for v in graph.inputs}
            | set(graph.initializers)
        )
        self._given = set(self._taken)
        self._counts: dict[str, int] = {}

    @contextmanager
    def serving(self, name: str, **metadata: str) -> Iterator[Emitter]:
        """Nodes emitted inside are called ``explain/<name>/…`` and carry `metadata` as ``explain.<key>``."""
        before = self._scope, self._metadata
        self._scope, self._metadata = f"{PREFIX}/{name}", {f"{PREFIX}.{k}": v for k, v in metadata.items()}
        try:
            yield self
        finally:
            self._scope, self._metadata = before

    def __getattr__(self, op_type: str) -> Callable[..., Value]:
        if not op_type[:1].isupper():
            raise AttributeError(op_type)

        def emit(*inputs: Any, **attributes: Any) -> Value:
            return self.emit(op_type, inputs, attributes)[0]

        return emit

    def emit(
        self,
        op_type: str,
        inputs: Sequence[Any],
        attributes: dict[str, Any] | None = None,
        *,
        outputs: int = 1,
        domain: str = "",
        like: Sequence[Value | None] = (),
        shared: bool = True,
    ) -> tuple[Value, ...]:
        """Emit one node; `like[i]` gives output i its dtype and shape where the operator's own rule does not say.

        `shared`: an equal node may stand for it.
        """
        reference = next((v for v in inputs if isinstance(v, Value) and v.dtype is not None), None)
        operands = [self._operand(v, reference) for v in inputs]
        while operands and operands[-1] is None:
            operands.pop()
        attrs = {k: v for k, v in (attributes or {}).items() if v is not None}
        key = (domain, op_type, tuple(id(v) for v in operands), _frozen(attrs), outputs)
        if key not in self._known or not shared:
            name = self._fresh(f"{self._scope}/{op_type}")
            node = ir.Node(
                domain,
                op_type,
                operands,
                [_attribute(k, v) for k, v in attrs.items()],
                num_outputs=outputs,
                name=name,
                metadata_props=dict(self._metadata),
            )
            for i, value in enumerate(node.outputs):
                value.name = self._fresh(f"{name}_out" if outputs == 1 else f"{name}_out{i}")
                model = like[i] if i < len(like) else None
                set_dtype(value, model.dtype if model is not None else _dtype(op_type, operands, attrs))
                value.shape = model.shape if model is not None else _shape(op_type, operands)
            self._graph.append(node)
            if not shared:
                return tuple(node.outputs)
            self._known[key] = tuple(node.outputs)
        return self._known[key]

    def constant(self, array: npt.ArrayLike, *, like: Value | None = None, dtype: npt.DTypeLike | None = None) -> Value:
        """A constant; of `like`'s dtype where that is given."""
        data = np.asarray(array, dtype=dtype)
        if like is not None and like.dtype is not None:
            data = data.astype(like.dtype.numpy())
        key = ("constant", data.dtype.str, data.dtype.name, data.shape, data.tobytes())
        if key not in self._known:
            self._known[key] = (self._constant(data),)
        return self._known[key][0]

    def ints(self, *values: int) -> Value:
        """A 1-D int64 constant: axes, shapes, pads."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def shape_of(self, value: Value) -> Value:
        """The shape as an int64 tensor: a constant where it is static, a Shape node where the batch is dynamic."""
        sizes = dims(value) if value.shape is not None else [None]
        if all(d is not None for d in sizes):
            return self.ints(*[int(d) for d in sizes if d is not None])
        return self.Shape(value)

    def copy(self, value: Value) -> Value:
        """The same tensor under a name of its own, for a graph output; never shared."""
        return self.typed(self.emit("Identity", [value], shared=False)[0], value)

    def typed(self, value: Value, like: Value) -> Value:
        """Give `value` the dtype and shape of `like`: relevance has the type of what it belongs to."""
        set_dtype(value, like.dtype)
        value.shape = like.shape
        return value

    def input(self, name: str, like: Value | None = None, *, default: npt.NDArray[Any] | None = None) -> Value:
        """A new graph input: of `like`'s type, or optional with a default, whose first dimension is left open."""
        if default is None:
            if like is None:
                raise ValueError("an input needs a type or a default")
            value = ir.Value(name=name, shape=like.shape, type=like.type)
            self._graph.inputs.append(value)
            return value
        tensor = ir.tensor(default, name=name)
        shape = ir.Shape([f"{name}s", *default.shape[1:]])
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.inputs.append(value)
        self._graph.register_initializer(value)
        return value

    def output(self, value: Value, name: str, like: Value) -> None:
        """Make `value` a graph output called `name`; a copy of it where it has a name of its own to keep."""
        kept = value.is_graph_output() or value.producer() is None or value.name in self._given
        out = self.copy(value) if kept else value
        out.name = name
        if out.shape is None:
            self.typed(out, like)
        self._graph.outputs.append(out)

    @property
    def names(self) -> set[str]:
        """The names the graph had before anything was emitted: they stay as they are."""
        return {name for name in self._given if name}

    def finish(self) -> None:
        """Bring the nodes into the order in which they run."""
        self._graph.sort()

    def typed_rank(self, value: Value, n: int) -> Value:
        """Note the rank of a value whose shape inference the emitter does not do."""
        if value.shape is None:
            value.shape = ir.Shape([None] * n)
        return value

    def reshape_like(self, value: Value, like: Value) -> Value:
        """`value` with the shape of `like`."""
        out = self.Reshape(value, self.shape_of(like))
        return self.typed(out, like) if out is not like else out

    def pad_axis(
        self, value: Value, axis: int, before: int, after: int, *, fill: float = 0.0, n: int | None = None
    ) -> Value:
        """`value` with entries of `fill` before and behind along one axis; `n`: its rank, where it carries no shape.

        The pads have full rank: ONNX Runtime's transpose optimizer (1.31) mistakes pads that name their axes.
        """
        size = n if n is not None else len(dims(value))
        front, back = [0] * size, [0] * size
        front[axis], back[axis] = before, after
        return self.Pad(value, self.ints(*front, *back), self.constant(fill, like=value))

    def _operand(self, value: Any, reference: Value | None) -> Value | None:
        if value is None or isinstance(value, Value):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return (
                self.constant(value, like=reference)
                if reference is not None
                else self.constant(value, dtype=np.float32)
            )
        return self.constant(value)

    def _constant(self, data: npt.NDArray[Any]) -> Value:
        name = self._fresh(f"{PREFIX}/constant")
        tensor = ir.tensor(data, name=name)
        if self._constants_as_nodes:
            node = ir.node("Constant", [], {"value": tensor}, name=name)
            value = node.outputs[0]
            value.name = name
            value.const_value, value.dtype, value.shape = tensor, tensor.dtype, ir.Shape(data.shape)
            self._graph.append(node)
            return value
        value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(value)
        return value

    def _fresh(self, stem: str) -> str:
        name = stem
        while name in self._taken:
            self._counts[stem] = self._counts.get(stem, 0) + 1
            name = f"{stem}_{self._counts[stem]}"
        self._taken.add(name)
        return name


def _attribute(name: str, value: Any) -> ir.Attr:
    """An attribute; numbers and text, which most are, without `ir.node`'s search for what a value might be."""
    if isinstance(value, ir.Attr):
        return value
    if isinstance(value, int):
        return ir.AttrInt64(name, int(value))
    if isinstance(value, float):
        return ir.AttrFloat32(name, float(value))
    if isinstance(value, str):
        return ir.AttrString(name, value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return ir.AttrInt64s(name, [int(v) for v in value])
    return ir.convenience.convert_attribute(name, value)


def set_dtype(value: Value, dtype: ir.DataType | None) -> None:
    """Type a value where the dtype is known."""
    if dtype is not None:
        value.dtype = dtype


def _frozen(attributes: dict[str, Any]) -> Any:
    return tuple(sorted((k, tuple(v) if isinstance(v, (list, tuple)) else v) for k, v in attributes.items()))


def _dtype(op_type: str, operands: Sequence[Value | None], attributes: dict[str, Any]) -> ir.DataType | None:
    if op_type in _BOOL:
        return ir.DataType.BOOL
    if op_type in _INT64:
        return ir.DataType.INT64
    if op_type == "Cast":
        return ir.DataType(int(attributes["to"]))
    typed = operands[1:] if op_type in _TYPED_BY_SECOND else operands
    return next((v.dtype for v in typed if v is not None and v.dtype is not None), None)


_SAME_SHAPE = {
    "Relu",
    "Neg",
    "Abs",
    "Sign",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Tanh",
    "Sigmoid",
    "Identity",
    "Not",
    "Erf",
}
_BROADCAST = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Equal",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "And",
    "Or",
    "Where",
    "Max",
    "Min",
    "Pow",
}


def _shape(op_type: str, operands: Sequence[Value | None]) -> ir.Shape | None:
    """The shape where it is plain to see: elementwise operators. Others stay open; nothing needs them."""
    present = [v for v in operands if v is not None]
    if not present:
        return None
    if op_type in _SAME_SHAPE or op_type in ("Cast", "HardSigmoid", "Clip", "LeakyRelu"):
        return present[0].shape
    if op_type in _BROADCAST:
        shapes = [v.shape for v in present]
        if any(s is None for s in shapes):
            return None
        full = max((s for s in shapes if s is not None), key=len)
        fits = all(
            d == 1 or d == e for s in shapes if s is not None for d, e in zip(reversed(list(s)), reversed(list(full)))
        )
        return full if fits else None
    return None
