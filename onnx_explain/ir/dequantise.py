"""The float meaning of an integer network, laid beside it: what relevance walks on, while the integers are what runs.

Two halves. The integer kernels (QLinear…, MatMulInteger, what stands between DequantizeLinear and QuantizeLinear) stay as
they are, so that the runtime fuses them as it does in the deployed file. Beside each stands the same operator on dequantised
operands; where the integer network has a number of its own, a ``Quantised`` composite takes that number and passes
relevance to the float twin (`operators/quantise.py`). What each integer operator means is in `integers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir import composite
from onnx_explain.ir.emit import Emitter, set_dtype
from onnx_explain.ir.integers import MEANINGS, MICROSOFT, PRODUCTS, Integers, Reader, is_table, moves_entries
from onnx_explain.ir.view import Operation, Value

_QUANTISE, _DEQUANTISE, _DYNAMIC = "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"
_LOWEST = {"INT4": -8, "UINT4": 0, "INT8": -128, "UINT8": 0, "INT16": -32768, "UINT16": 0}


@dataclass(frozen=True)
class Join:
    """Where the two halves meet: `y` is a placeholder of z, and is to have the number of `number`.

    `integers`: the levels that say where the range was left; `floor`: the lowest number, where that is known.
    """

    y: Value
    z: Value
    number: Value
    integers: Value | None = None
    floor: float | None = None


def lay_apart(model: ir.Model) -> list[Join]:
    """Write the float half beside the integers, in place; no shapes are needed yet.

    Returns what `join` is to connect once shapes are known. Raises UnsupportedOperator.
    """
    operators = {(n.domain, n.op_type) for n in model.graph}
    if not any(t in (_QUANTISE, _DYNAMIC) or is_table(d, t) for d, t in operators):
        return []
    apart = _Apart(model.graph)
    apart.run()
    return apart.joins


def join(model: ir.Model, joins: Sequence[Join]) -> ir.Model:
    """Turn the placeholders into ``Quantised`` composites, in place; shapes are known now."""
    op = Emitter(model.graph) if joins else None
    for one in joins:
        node = one.y.producer()
        if op is None or node is None or node.inputs[0] is None:
            continue
        floor = one.number if one.floor is None else op.constant(one.floor, like=one.y)
        operands = (one.number,) if one.integers is None else (one.number, one.integers)
        set_dtype(one.number, one.y.dtype)
        one.number.shape = one.y.shape
        forward = Operation("", "Identity", node.name or "", operands, (floor,))
        new = composite.emit(op, "Quantised", node.inputs[0], forward, like=[one.y])[0]
        made = new.producer()
        node.name, name = f"{node.name}/placeholder", node.name
        if made is not None:
            made.name = name
        one.y.name, new.name = f"{one.y.name}/placeholder", one.y.name
        one.y.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    if op is not None:
        model.opset_imports.setdefault(composite.DOMAIN, 1)
        op.finish()
    return model


class _Apart(Reader):
    """One pass over the nodes in the order in which they run.

    `meanings`: what an integer tensor stands for. `twins`: the float half's tensor for one of the integer half, by id;
    `exact`: {id} of those twins that have the same number already.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self.op = graph, Emitter(graph)
        self.joins: list[Join] = []
        self.meanings: dict[int, Integers] = {}
        self.twins: dict[int, Value] = {}
        self.exact: set[int] = set()
        self.products: dict[int, ir.Node] = {}
        self.fixed = {id(v) for v in graph.initializers.values() if not v.is_graph_input()}
        self.towards = _towards_integers(graph)

    def run(self) -> None:
        """Every node, then the outputs."""
        for node in list(self.graph):
            if node.inputs and all(v is None or id(v) in self.fixed for v in node.inputs):
                self.fixed.update(id(v) for v in node.outputs)
            else:
                with self.op.serving(node.name or node.op_type):
                    self._visit(node)
        for index, value in enumerate(self.graph.outputs):
            if id(value) in self.twins:
                self.graph.outputs[index] = self._same_number(value)
        self.op.finish()

    # -- what a node reads

    def real(self, value: Value) -> Value:
        """The float half's tensor for a float or an integer one."""
        if id(value) in self.meanings:
            return self._dequantised(self.meanings[id(value)])
        return self.twins.get(id(value), self._weight(value))

    def _weight(self, value: Value) -> Value:
        """A weight behind its DequantizeLinear as an expression that the runtime evaluates once, when it loads."""
        node = value.producer()
        if id(value) not in self.fixed or node is None or node.op_type != _DEQUANTISE or _blocked(node):
            return value
        q, scale, zero = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
        if q is None or scale is None:
            return value
        axis = node.attributes.get_int("axis", 1)
        self.twins[id(value)] = self.numbers(q, scale, zero, axis)
        return self.twins[id(value)]

    def numbers(self, q: Value, scale: Value, zero: Value | None, axis: int = 0) -> Value:
        """(q - zero)·scale: of a constant as an expression, of an activation its dequantised twin."""
        if id(q) in self.meanings:
            return self._rescaled(self.meanings[id(q)], scale)
        op, kind = self.op, int(scale.dtype or ir.DataType.FLOAT)
        n = 0 if q.shape is None else len(q.shape)

        def along(v: Value) -> Value:
            if v.shape is None or len(v.shape) != 1 or n < 2 or list(v.shape) == [1]:
                return v
            return op.Reshape(v, op.ints(*[-1 if a == axis % n else 1 for a in range(n)]))

        level = op.Cast(q, to=kind)
        if zero is not None and not _all_zero(zero):
            level = op.Sub(level, along(op.typed(op.Cast(zero, to=kind), replace_dtype(zero, scale))))
        return op.Mul(level, along(scale))

    def _rescaled(self, meaning: Integers, scale: Value) -> Value:
        """The twin of integers that are read with another scale than they were written with."""
        y = self._dequantised(meaning)
        if scale is meaning.scale or _equal(scale, meaning.scale):
            return y
        return self.op.Mul(y, self.op.Div(scale, meaning.scale))

    def _dequantised(self, meaning: Integers) -> Value:
        """The float that integers stand for: the number from the integers, the relevance to what was quantised."""
        if meaning.exact:
            return meaning.z
        found = self.twins.get(id(meaning.q))
        if found is None:
            node = self._own_dequantise(meaning)
            found = self._joined(meaning.z, node, meaning.q, _floor(meaning))
            self.twins[id(meaning.q)] = found
        return found

    def _own_dequantise(self, meaning: Integers) -> Value:
        """A DequantizeLinear that the runtime does not merge with the integer half's own, whose fusion it would break.

        The axis of a single scale means nothing, and makes the two differ.
        """
        operands = [meaning.q, meaning.scale, *([meaning.zero] if meaning.zero is not None else [])]
        attributes: dict[str, int] = {}
        if meaning.axis is not None:
            attributes = {"axis": meaning.axis} | ({"block_size": meaning.block} if meaning.block else {})
        elif (meaning.domain, _DEQUANTISE) == ("", _DEQUANTISE):
            attributes = {"axis": 0}
        y = self.op.emit(_DEQUANTISE, operands, attributes, domain=meaning.domain, shared=False)[0]
        set_dtype(y, meaning.scale.dtype or ir.DataType.FLOAT)
        return y

    def _joined(
        self, z: Value, number: Value, integers: Value | None = None, floor: float | None = None, name: str = ""
    ) -> Value:
        y = self.op.emit("Identity", [z], shared=False)[0]
        set_dtype(y, z.dtype or ir.DataType.FLOAT)
        if name:
            number.name, y.name = f"{name}/integers", name
        self.joins.append(Join(y, z, number, integers, floor))
        self.exact.add(id(y))
        return y

    def _same_number(self, value: Value) -> Value:
        """The twin of a tensor, with exactly that tensor's number."""
        y = self.twins[id(value)]
        if id(y) in self.exact and not value.is_graph_output():
            return y
        if id(y) in self.exact and not y.is_graph_output():
            return self._named(y, value)
        joined = self._joined(y, value, name=value.name or "")
        self.twins[id(value)] = joined
        return joined

    def _named(self, y: Value, value: Value) -> Value:
        """`y` under the name of the output it takes the place of."""
        name = value.name
        value.name = f"{name}/integers"
        y.name = name
        set_dtype(y, value.dtype)
        y.shape = value.shape
        return y

    # -- one node

    def _visit(self, node: ir.Node) -> None:
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if node.op_type in (_QUANTISE, _DYNAMIC):
            self._quantise(node)
        elif node.op_type == _DEQUANTISE:
            self._dequantise(node)
        elif key in MEANINGS:
            self._kernel(node, key)
        elif node.op_type in PRODUCTS and key[0] == "":
            self.products[id(node.outputs[0])] = node
        elif self._is_product_scaled(node):
            pass
        elif any(v is not None and id(v) in self.meanings for v in node.inputs):
            self._move(node)
        else:
            self._float(node)

    def _quantise(self, node: ir.Node) -> None:
        x = node.inputs[0]
        if x is None:
            return
        dynamic = node.op_type == _DYNAMIC
        scale = node.outputs[1] if dynamic else node.inputs[1]
        zero = node.outputs[2] if dynamic else (node.inputs[2] if len(node.inputs) > 2 else None)
        q = node.outputs[0]
        if scale is None:
            return
        stored = node.attributes.get_int("output_dtype", 0)
        set_dtype(q, ir.DataType(stored) if stored else ir.DataType.UINT8 if zero is None else zero.dtype)
        if dynamic:
            set_dtype(q, ir.DataType.UINT8)
            set_dtype(scale, ir.DataType.FLOAT)
        axis = None if dynamic or _single(scale) else node.attributes.get_int("axis", 1)
        block = node.attributes.get_int("block_size", 0)
        if zero is None and stored:
            zero = None
        z = self.twins.get(id(x), x)
        self.meanings[id(q)] = Integers(q, z, scale, zero, axis, block, "" if dynamic else node.domain)

    def _dequantise(self, node: ir.Node) -> None:
        q, scale, y = node.inputs[0], node.inputs[1], node.outputs[0]
        if q is None or scale is None or id(q) not in self.meanings:
            return
        meaning = self.meanings[id(q)]
        twin = self._rescaled(meaning, scale)
        self.twins[id(y)] = twin
        if (twin.name or "").startswith("explain/") and not y.is_graph_output() and id(twin) in self.exact:
            name, maker = y.name, twin.producer()
            y.name, twin.name = f"{name}/integers", name
            if maker is not None:
                maker.name, node.name = node.name, f"{node.name}/integers"

    def _kernel(self, node: ir.Node, key: tuple[str, str]) -> None:
        """An integer operator: its meaning on the dequantised operands."""
        z, scale, zero = MEANINGS[key](self, Operation.of(node))
        y = node.outputs[0]
        if scale is None:
            self.twins[id(y)] = z
            return
        set_dtype(y, ir.DataType.INT8 if zero is None else zero.dtype)
        self.meanings[id(y)] = Integers(y, z, scale, zero, None, 0, "")

    def _is_product_scaled(self, node: ir.Node) -> bool:
        """Cast and Mul behind a MatMulInteger or ConvInteger: from there on its meaning is a float."""
        at = next((i for i, v in enumerate(node.inputs) if v is not None and id(v) in self.products), None)
        if at is None:
            return False
        source = node.inputs[at]
        product = self.products[id(source)]
        if node.op_type == "Cast" and product.op_type in PRODUCTS:
            self.products[id(node.outputs[0])] = product
            return True
        factor = node.inputs[1 - at] if node.op_type == "Mul" and len(node.inputs) == 2 else None
        if factor is None:
            raise UnsupportedOperator(
                f"{Operation.of(node).where}: reads the integers of {product.op_type} {product.name!r} before they are scaled to "
                "floats, where they have no meaning of their own; export the model with QuantizeLinear/DequantizeLinear."
            )
        self.twins[id(node.outputs[0])] = PRODUCTS[product.op_type](self, Operation.of(product), factor)
        return True

    def _move(self, node: ir.Node) -> None:
        """An operator that moves or picks integers moves or picks what they stand for."""
        integers = [self.meanings[id(v)] for v in node.inputs if v is not None and id(v) in self.meanings]
        first = integers[0]
        if not moves_entries(node) or any(m.axis is not None for m in integers):
            raise UnsupportedOperator(
                f"{Operation.of(node).where}: works on quantised integers, where its meaning on floats is not known; "
                "export the model with a DequantizeLinear before it and a QuantizeLinear after it."
            )
        if any(not (_equal(m.scale, first.scale) and _equal(m.zero, first.zero)) for m in integers[1:]):
            raise UnsupportedOperator(
                f"{Operation.of(node).where}: joins integers of different scales, which mean different numbers; "
                "export the model with one scale for all of them."
            )
        operands = [self._moved_operand(node, v, first) for v in node.inputs]
        copy = self._copy(node, operands)
        for old, new in zip(node.outputs, copy.outputs):
            set_dtype(new, first.scale.dtype or ir.DataType.FLOAT)
            set_dtype(old, first.q.dtype)
            self.meanings[id(old)] = replace(first, q=old, z=new, exact=True)

    def _moved_operand(self, node: ir.Node, value: Value | None, first: Integers) -> Value | None:
        if value is None or id(value) in self.meanings:
            return None if value is None else self.real(value)
        padding = node.op_type == "Pad" and len(node.inputs) > 2 and value is node.inputs[2]
        constant = value.dtype is not None and value.dtype == first.q.dtype
        return self.numbers(value, first.scale, first.zero) if padding or constant else value

    def _float(self, node: ir.Node) -> None:
        """A float operator: on the way to integers it is written twice, else it goes over to the float half."""
        if not any(v is not None and id(v) in self.twins and id(v) not in self.fixed for v in node.inputs):
            return
        if id(node) in self.towards:
            copy = self._copy(node, [None if v is None else self.real(v) for v in node.inputs])
            for old, new in zip(node.outputs, copy.outputs):
                set_dtype(new, old.dtype)
                self.twins[id(old)] = new
            return
        for index, value in enumerate(node.inputs):
            if value is not None and id(value) in self.twins and id(value) not in self.fixed:
                node.replace_input_with(index, self._same_number(value))

    def _copy(self, node: ir.Node, operands: Sequence[Value | None]) -> ir.Node:
        """The node on other operands; it takes over the names, and the integer half's are marked."""
        copy = ir.Node(
            node.domain, node.op_type, operands, node.attributes.values(), num_outputs=len(node.outputs), name=node.name
        )
        node.name = f"{node.name}/integers"
        for old, new in zip(node.outputs, copy.outputs):
            if old.is_graph_output():
                new.name = f"{old.name}/float"
            else:
                old.name, new.name = f"{old.name}/integers", old.name
        self.graph.append(copy)
        return copy


def replace_dtype(value: Value, scale: Value) -> Value:
    """A stand-in with the shape of `value` and the dtype of `scale`."""
    return ir.Value(name="", shape=value.shape, type=ir.TensorType(scale.dtype or ir.DataType.FLOAT))


def _towards_integers(graph: ir.Graph) -> set[int]:
    """{id(node)} of the float nodes whose result is quantised, or read by an integer kernel, further down."""
    wanted: set[int] = set()
    found: set[int] = set()
    for node in reversed(list(graph)):
        starts = node.op_type in (_QUANTISE, _DYNAMIC) or is_table(node.domain, node.op_type)
        if node.op_type == _DEQUANTISE and not starts:
            continue
        if starts or any(id(v) in wanted for v in node.outputs):
            wanted.update(id(v) for v in node.inputs if v is not None)
            found.add(id(node))
    return found


def _single(scale: Value) -> bool:
    return scale.shape is not None and all(d == 1 for d in scale.shape)


def _blocked(node: ir.Node) -> bool:
    return node.attributes.get_int("block_size", 0) > 0


def _number(value: Value | None) -> npt.NDArray[np.generic] | None:
    """The number of a small constant, through a Cast."""
    if value is None:
        return None
    node = value.producer()
    if node is not None and node.op_type == "Cast":
        value = node.inputs[0]
    if value is None or value.const_value is None or value.const_value.size > 4096 or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def _all_zero(zero: Value) -> bool:
    number = _number(zero)
    return number is not None and not number.astype(np.int64).any()


def _equal(a: Value | None, b: Value | None) -> bool:
    if a is b:
        return True
    x, y = _number(a), _number(b)
    return x is not None and y is not None and np.array_equal(x, y)


def _floor(meaning: Integers) -> float | None:
    """The lowest number that the integers can stand for."""
    kind = meaning.q.dtype
    scale, zero = _number(meaning.scale), _number(meaning.zero)
    if kind is None or kind.name not in _LOWEST or scale is None or (zero is None and meaning.zero is not None):
        return None
    level = _LOWEST[kind.name] - (0 if zero is None else zero.astype(np.int64))
    return float(np.min(level * scale.astype(np.float64)))


__all__ = ["MICROSOFT", "Join", "join", "lay_apart"]
