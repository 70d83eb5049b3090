"""Which axes hold channels and which positions, read off the operators a tensor comes from or goes to.

Structure alone decides: windowed operators have their channels on axis 1, dense ones on the last, a Transpose moves them.
"""

from __future__ import annotations

from onnx_explain.ir.view import Operation, Value, dims, rank
from onnx_explain.operators.roles import Linear, Selection, find
from onnx_explain.operators.samples import moved


def channel_axis(value: Value) -> int | None:
    """The axis of a computed tensor that holds its channels (features), or None where nothing above it says so."""
    if value.shape is None or rank(value) < 2:
        return None
    waiting: list[tuple[Value, tuple[tuple[Operation, Value], ...]]] = [(value, ())]
    seen = {id(value)}
    while waiting:
        here, moves = waiting.pop()
        node = here.producer()
        if node is None:
            continue
        operation = Operation.of(node, frozenset({0}))
        axis = _decided(operation)
        for above, source in reversed(moves):
            axis = None if axis is None else _moved(above, source, axis)
        if axis is not None:
            return axis
        if _decided(operation) is None:
            fresh = [v for v in node.inputs if v is not None and id(v) not in seen and _carries(v)]
            seen.update(map(id, fresh))
            waiting.extend((v, (*moves, (operation, v))) for v in reversed(fresh))
    return None


def _carries(value: Value) -> bool:
    """Whether an operand is a computed tensor of floats with channels to follow."""
    if value.dtype is None or not value.dtype.is_floating_point() or value.shape is None:
        return False
    return value.const_value is None and value.producer() is not None and rank(value) > 1


def _decided(operation: Operation) -> int | None:
    """The channels' axis of an operator that has one of its own."""
    if windowed(operation):
        return 1
    found = find(operation)
    if found is None or operation.inputs[0] is None or operation.inputs[0].shape is None:
        return None
    role = found.role(operation) if operation.op_type in ("Gemm", "MatMul") else None
    return role.channel_axis if isinstance(role, Linear) and role.kind == "weighted" else None


def _moved(operation: Operation, source: Value, axis: int) -> int | None:
    """Where an axis of an operand lies in the result; None where it is merged or split."""
    places = axes_after(operation, source, list(range(rank(source))))
    return places.index(axis) if places is not None and axis in places else None


def axes_after(operation: Operation, x: Value, axes: list[int | None]) -> list[int | None] | None:
    """What axes of x become the axes of the result: `axes[i]` names axis i of x; None stands for a new axis of one.

    None as a whole where axes of more than one entry are merged or split.
    """
    y = operation.y
    if y.shape is None or len(axes) != rank(x):
        return None
    room = find(operation)
    there = moved(operation, 0) if room is not None and room.axes is not None and x is operation.inputs[0] else []
    if len(there) == rank(y) and all(
        a in there for a in range(rank(y))
    ):  # nothing is joined: axes change places at most
        return [axes[there.index(a)] for a in range(rank(y))]
    if rank(y) == rank(x) and not (operation.op_type == "Reshape" and dims(x)[1:] != dims(y)[1:]):
        return list(axes)
    return _matched(dims(x), dims(y), axes)


def _matched(before: list[int | None], after: list[int | None], axes: list[int | None]) -> list[int | None] | None:
    """Axes of more than one entry, found again in order; the batch, the one of unknown size, is the first of both."""
    wide = [(d, a) for d, a in zip(before[1:], axes[1:]) if d != 1]
    found: list[int | None] = [axes[0]]
    for size in after[1:]:
        if size == 1:
            found.append(None)
        elif wide and wide[0][0] == size:
            found.append(wide.pop(0)[1])
        elif not wide or _merged(wide, size) is None:
            return None
        else:
            wide = wide[_merged(wide, size) or 0 :]
            found.append(None)
    return found


def _merged(wide: list[tuple[int | None, int | None]], size: int | None) -> int | None:
    """How many of the leading axes make up one of `size` together; None where none do."""
    product = 1
    for count, (d, _) in enumerate(wide, 1):
        product *= d or 0
        if product == size:
            return count
    return None


def windowed(operation: Operation) -> bool:
    """Whether a window slides over the operand: a convolution or a pool."""
    found = find(operation)
    x = operation.inputs[0] if operation.inputs else None
    if found is None or x is None or x.shape is None or rank(x) < 3:
        return False
    if operation.op_type.startswith("Global"):
        return True
    role = found.role(operation)
    return (isinstance(role, Linear) and role.spatial) or (
        isinstance(role, (Selection, Linear)) and "kernel_shape" in operation.attributes
    )


def position_axes(x: Value, count: int) -> list[int] | None:
    """The `count` axes of an input that a window slides over first, in its order; by rank where none is reached."""
    waiting: list[tuple[Value, list[int | None]]] = [(x, list(range(rank(x))))]
    seen = {id(x)}
    while waiting:
        value, axes = waiting.pop(0)
        for node in (u.node for u in value.uses()):
            operation = Operation.of(node, frozenset({0}))
            if node.inputs[0] is value and windowed(operation) and len(axes) == count + 2:
                if all(a is not None for a in axes[2:]):
                    return [a for a in axes[2:] if a is not None]
                continue
            moved = axes_after(operation, value, axes) if len(node.outputs) == 1 else None
            if moved is not None and id(node.outputs[0]) not in seen and len(seen) < 64:
                seen.add(id(node.outputs[0]))
                waiting.append((node.outputs[0], moved))
    if rank(x) == count + 1:
        return list(range(1, count + 1))
    return list(range(2, count + 2)) if rank(x) == count + 2 else None
