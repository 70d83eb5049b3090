"""What lies between the explained inputs and the explained tensor, read off a canonical model's structure.

Which tensor is explained, which nodes depend on an input, which values cannot be negative, where a picture has its
channels. Nothing is written here, and no number is looked at but the sign of constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnx_explain.embedded import embeddings, is_float, lookups
from onnx_explain.errors import InputError, TargetError, suggest
from onnx_explain.ir.composite import DOMAIN
from onnx_explain.ir.emit import PREFIX
from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators import find
from onnx_explain.operators.layout import channel_axis as channel_axis_of
from onnx_explain.operators.roles import Linear, Pointwise, Rearrangement, Selection, Sum

Active = Mapping[int, frozenset[int]]
EXPRESSION = "expression"  # metadata of nodes that compute a target: they are no part of the network
_SIGN_CHECKED = 1 << 22  # elements; the sign of a larger constant is not looked at


def explained_tensor(model: ir.Model, output: str | None, *, logits: bool = True) -> Value:
    """The tensor whose element is explained: the named output (default: the first of floats), behind its Softmax."""
    named = {v.name or "": v for v in model.graph.outputs}
    if output is None:
        value = next((v for v in model.graph.outputs if is_float(v)), None)
        if value is None:
            raise TargetError(
                "None of the model's outputs holds floats, so there is nothing to explain; name an inner tensor."
            )
    else:
        inner = {v.name or "": v for node in model.graph for v in node.outputs}
        value = named.get(output) or inner.get(output)
        if value is None:
            raise TargetError(f"The model has no output {output!r}.{suggest(output, named)}")
    if not is_float(value):
        raise TargetError(f"Output {value.name!r} holds {value.dtype}, not floats; name a float output to explain.")
    found = behind_head(value) if logits else value
    if 0 in tuple(found.shape or ()):
        raise TargetError(f"Tensor {found.name!r} has no element, so there is nothing to explain; name another output.")
    return found


def behind_head(value: Value) -> Value:
    """The operand of a final Softmax or Sigmoid, through reshapes that keep the order of entries."""
    inner: Value | None = value
    while inner is not None:
        node = inner.producer()
        found = find(Operation.of(node)) if node is not None else None
        if node is None or found is None:
            return value
        if found.head:
            return node.inputs[0] or value
        inner = node.inputs[0] if found.keeps_order else None
    return value


def wrt_inputs(model: ir.Model, wrt: Sequence[str] | None) -> list[str]:
    """The explained inputs: those named, or all of floats."""
    named = {v.name or "": v for v in model.graph.inputs}
    if wrt is None:
        return [n for n, v in named.items() if is_float(v)]
    for name in wrt:
        if name not in named:
            raise InputError(f"The model has no input {name!r}.{suggest(name, named)}")
        if not is_float(named[name]):
            raise InputError(
                f"Input {name!r} holds {named[name].dtype}, which carries no relevance; name a float input."
            )
    return list(wrt)


def wrt_tensors(model: ir.Model, wrt: Sequence[str] | None) -> list[str]:
    """As `wrt_inputs`, where inner tensors of floats may be named too: the network begins at them then.

    Integer inputs begin at their embeddings.
    """
    if wrt is None:
        return wrt_inputs(model, None) + embeddings(model)
    inner = {n for n, v in tensors(model).items() if is_float(v)}
    inputs = {v.name for v in model.graph.inputs}
    if all(name in inner and name not in inputs for name in wrt):
        return list(wrt)
    return wrt_inputs(model, wrt)


def tensors(model: ir.Model) -> dict[str, Value]:
    """Every input and computed tensor by name."""
    computed = {v.name or "": v for node in model.graph for v in node.outputs if v.name}
    return computed | {v.name or "": v for v in model.graph.inputs}


def last_spatial(model: ir.Model, target: Value, wrt: Iterable[str]) -> list[Value]:
    """The last tensors with positions on the way to the target that a weighted operator, a sum or an activation made: of a
    chain one, of a detector with several grids one of each, of several pictures one each; none leads to another.

    [N, C, *spatial] or channels last, with more than one position, of as many axes as the windowed operator above it (so
    no tokens): what CAMs look at, and where sections of relevance begin (methods.md §3). What branches made and a Concat
    joins, or a Transpose turns, counts as made. TargetError where there is none.
    """
    active, live = activity(model, wrt)
    version = model.graph.opset_imports.get("", 0)
    made: set[int] = set()
    found: set[int] = set()
    nodes = nodes_between(model, [target], active, live)
    for node in nodes:
        operation = Operation.of(node, active[id(node)], version)
        y = operation.y
        if not _makes(operation, made) or y is target or any(_computes_a_target(u.node) for u in y.uses()):
            continue
        made.add(id(y))
        channel = channel_axis_of(y)
        if y.shape is None or rank(y) < 3 or channel not in (1, rank(y) - 1) or not _from_windows(operation, active):
            continue
        if math.prod(d or 1 for a, d in enumerate(dims(y)) if a not in (0, channel)) > 1:
            found.add(id(y))
    if not found:
        raise TargetError(
            f"No tensor with spatial positions leads to {target.name!r}; name the layer to look at (`-O layer=NAME`)."
        )
    return _last(nodes, active, found)


def _last(nodes: Sequence[ir.Node], active: Active, found: set[int]) -> list[Value]:
    """Those of the `found` values that lead to no other, in topological order."""
    leading: set[int] = set()
    last: list[Value] = []
    for node in reversed(nodes):
        y = node.outputs[0]
        if id(y) in found and id(y) not in leading:
            last.append(y)
        if id(y) in found or any(id(v) in leading for v in node.outputs):
            leading.update(id(node.inputs[i]) for i in active[id(node)])
    return last[::-1]


def _makes(operation: Operation, made: set[int]) -> bool:
    """Whether a node makes new features, or joins and turns some that were made."""
    node = operation.y.producer()
    if node is not None and _computes_a_target(node):
        return False
    room = find(operation)
    role = room.role(operation) if room is not None else None
    if isinstance(role, (Pointwise, Sum)):
        return True
    if isinstance(role, Linear):
        return role.kind in ("weighted", "normalisation")
    moved = isinstance(role, Rearrangement) and operation.op_type in ("Concat", "Transpose", "Identity", "Dropout")
    return moved and all(id(operation.inputs[i]) in made for i in operation.active)


def _computes_a_target(node: ir.Node) -> bool:
    """Whether a node belongs to a computed target: what it reads is to the target as an output to its element."""
    return f"{PREFIX}.{EXPRESSION}" in node.metadata_props


def _from_windows(operation: Operation, active: Active) -> bool:
    """Whether a windowed operator of as many axes lies at or above this one: those behind the second are positions."""
    waiting, seen = [operation.y], set[int]()
    while waiting:
        node = waiting.pop().producer()
        if node is None or id(node) in seen or id(node) not in active:
            continue
        seen.add(id(node))
        if _windowed(node):
            return rank(node.outputs[0]) == rank(operation.y)
        waiting.extend(v for v in node.inputs if v is not None)
    return False


def activity(model: ir.Model, wrt: Iterable[str]) -> tuple[Active, set[int]]:
    """Which operands of each node depend on an explained input: {id(node): positions}, and {id(value)} of all that do."""
    known = tensors(model)
    live = {id(known[name]) for name in wrt if name in known}
    active: dict[int, frozenset[int]] = {}
    version = model.graph.opset_imports.get("", 0)
    for node in model.graph:
        positions = frozenset(i for i, v in enumerate(node.inputs) if v is not None and id(v) in live)
        if node.domain == DOMAIN:  # of the two halves of an integer network, relevance walks on the float one
            positions &= {0}
        if not positions and not any(id(v) in live for v in _captured(node)):
            continue
        active[id(node)] = positions
        if not _stops(Operation.of(node, positions, version)):
            live.update(id(v) for v in node.outputs)
    return active, live


def _captured(node: ir.Node) -> Iterator[Value]:
    """What the sub-graphs of an If or Loop read; values from outside are not operands of the node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (v for v in inner.inputs if v is not None)


_PLACES = (ir.DataType.INT64, ir.DataType.BOOL)  # never a quantised value


def _stops(operation: Operation) -> bool:
    """Whether relevance ends here by nature: integers, comparisons, shapes."""
    found, dtype = find(operation), operation.y.dtype
    if found is None:  # whatever it is: a branch that picks boxes returns their numbers
        return all(v.dtype in _PLACES for v in operation.outputs)
    if dtype is not None and not dtype.is_floating_point():
        return True
    return found.inert or (not is_float(operation.x) and operation.active == {0})


def nodes_between(model: ir.Model, targets: Iterable[Value], active: Active, live: set[int]) -> list[ir.Node]:
    """The nodes through which a target depends on an explained input, in topological order."""
    wanted = {id(v) for v in targets}
    found: list[ir.Node] = []
    for node in reversed(list(model.graph)):
        if id(node) in active and any(id(v) in wanted and id(v) in live for v in node.outputs):
            found.append(node)
            wanted.update(id(node.inputs[i]) for i in active[id(node)])
    return list(reversed(found))


def nonnegative_values(model: ir.Model) -> set[int]:
    """{id(value)} of values that cannot be negative, by the signs their operators guarantee."""
    known = {id(v) for v in model.graph.initializers.values() if not v.is_graph_input() and _nonnegative_constant(v)}
    for node in model.graph:
        found = find(Operation.of(node))
        if found is None:
            continue
        floats = [v for v in node.inputs if v is not None and is_float(v)]
        inherits = found.sign == "inherits" and bool(floats) and all(id(v) in known for v in floats)
        floored = found.sign == "floored" and len(node.inputs) > 1 and id(node.inputs[1]) in known
        if found.sign == "nonnegative" or inherits or floored:
            known.update(id(v) for v in node.outputs)
    return known


def _nonnegative_constant(value: Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.size > _SIGN_CHECKED or not tensor.dtype.is_floating_point():
        return False
    return bool((tensor.numpy() >= 0).all())


def channel_axis(model: ir.Model, name: str, shape: Sequence[int]) -> int | None:
    """The axis of an input or embedding that a heat map sums: by structure (a table's features), else by size, else none.

    A windowed operator reached through single readers has its channels on axis 1; a Transpose before it says where that
    axis came from.
    """
    if len(shape) < 3:
        return None
    value = next((v for v in model.graph.inputs if v.name == name), None)
    found_of = None if value is not None else next((look for look in lookups(model) if look.tensor == name), None)
    if found_of is not None:
        if len(found_of.axes) == 1:
            return found_of.axes[0]
        value = tensors(model)[name]
    axes = list(range(len(shape)))  # of the input, in the order of the tensor that is looked at
    while value is not None:
        readers = [u.node for u in value.uses() if not _inert(u.node)]
        if any(_windowed(n) for n in readers) and axes[1]:
            return axes[1]
        last = len(shape) == 3 and value.shape is not None and len(value.shape) == 3
        if last and axes[2] and any(_rowwise(n) for n in readers):
            return axes[2]
        step = next((n for n in readers if n.op_type == "Transpose"), readers[0] if len(readers) == 1 else None)
        found = find(Operation.of(step)) if step is not None else None
        if step is None or found is None or step.outputs[0].shape is None or len(step.outputs[0].shape) != len(shape):
            break
        if step.op_type == "Transpose":
            perm = Operation.of(step).ints("perm", list(reversed(range(len(shape))))) or []
            axes = [axes[p] for p in perm]
        value = step.outputs[0]
    if len(shape) == 3:
        return 1
    return next((a for a in (1, len(shape) - 1) if shape[a] in (1, 3, 4)), 1)


def slides(model: ir.Model, name: str) -> bool:
    """Whether windows slide along the last axis of an input [N, T]: a signal without an axis for its channel."""
    value = next((v for v in model.graph.inputs if v.name == name and v.shape is not None and len(v.shape) == 2), None)
    while value is not None:
        readers = [u.node for u in value.uses() if not _inert(u.node)]
        if any(_windowed(n) for n in readers):
            return True
        found = find(Operation.of(readers[0])) if len(readers) == 1 else None
        value = readers[0].outputs[0] if found is not None and found.keeps_order else None
    return False


def _inert(node: ir.Node) -> bool:
    found = find(Operation.of(node))
    return found is not None and found.inert


def _rowwise(node: ir.Node) -> bool:
    """Whether the last axis holds the features of a token: a matrix or a layer normalisation works along it."""
    operation = Operation.of(node, frozenset({0}))
    found = find(operation)
    if found is None or node.inputs[0] is None or node.inputs[0].shape is None:
        return False
    if node.op_type in ("LayerNormalization", "RMSNormalization", "SkipLayerNormalization"):
        return operation.integer("axis", -1) in (-1, rank(operation.x) - 1)
    if len(node.inputs) < 2 or node.inputs[1] is None or node.inputs[1].shape is None:
        return False
    role = found.role(operation)
    return isinstance(role, Linear) and role.kind == "weighted" and not role.spatial and role.data == 0


def _windowed(node: ir.Node) -> bool:
    operation = Operation.of(node, frozenset({0}))
    found = find(operation)
    if found is None or node.inputs[0] is None or node.inputs[0].shape is None or rank(operation.x) < 3:
        return False
    role = found.role(operation)
    return (isinstance(role, Linear) and role.spatial) or (
        isinstance(role, Selection) and "kernel_shape" in operation.attributes
    )
