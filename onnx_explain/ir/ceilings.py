"""Pools in ceil mode whose last window would start behind the input and its leading pads.

ONNX Runtime and torch leave such a window out when they run; ONNX's shape inference counts it. Where it happens the pool
says its windows by pads alone, so that everyone counts alike. Nothing else is changed.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_explain.ir.seen import Look
from onnx_explain.ir.view import Operation

POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})


def leave_out_late_windows(model: ir.Model, look: Look) -> None:
    """Rewrite, in place and from the inputs on, the pools whose sizes `look` tells; others keep their ceil mode."""
    left = [node for node in model.graph if _doubtful(node)]
    while left:
        shapes = look(model).shapes
        for node in left:
            left = left[1:]
            x = node.inputs[0]
            if _by_pads(node, shapes.get((x.name or "") if x is not None else "")):
                break  # what follows has other sizes now


def _doubtful(node: ir.Node) -> bool:
    """Whether some size of the input may give such a window: where a stride leads past what the last window lacks."""
    if node.op_type not in POOLS or node.domain not in ("", "ai.onnx"):
        return False
    pool = Operation.of(node)
    if not pool.integer("ceil_mode", 0) or pool.text("auto_pad", "NOTSET") not in ("NOTSET", ""):
        return False
    return any(extent - after < stride for extent, stride, _, after in _axes(pool))


def _axes(pool: Operation) -> list[tuple[int, int, int, int]]:
    """Extent, stride and both pads per spatial axis."""
    kernel = pool.ints("kernel_shape") or []
    n = len(kernel)
    strides, dilations = pool.ints("strides", [1] * n) or [1] * n, pool.ints("dilations", [1] * n) or [1] * n
    pads = pool.ints("pads", [0] * 2 * n) or [0] * 2 * n
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    return list(zip(extents, strides, pads[:n], pads[n:]))


def _by_pads(node: ir.Node, shape: ir.Shape | None) -> bool:
    """End pads that give the same windows in floor mode, if one starts too late; False where all is well or unknown."""
    pool = Operation.of(node)
    axes = _axes(pool)
    sizes = [] if shape is None else [d for d in list(shape)[2:] if isinstance(d, int)]
    if len(sizes) != len(axes):
        return False
    late, ends = False, []
    for size, (extent, stride, before, after) in zip(sizes, axes):
        steps = -(-(size + before + after - extent) // stride)
        gone = steps * stride >= size + before
        late |= gone
        ends.append(after if gone else max(after, steps * stride + extent - size - before))
    grown = any(end > after for end, (_, _, _, after) in zip(ends, axes))
    if not late or (grown and pool.integer("count_include_pad", 0)):
        return False
    node.attributes["pads"] = ir.AttrInt64s("pads", [*(before for _, _, before, _ in axes), *ends])
    node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", 0)
    return True
