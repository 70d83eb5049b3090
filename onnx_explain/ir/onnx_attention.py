"""ONNX's own Attention (opset 23 to 25) and RotaryEmbedding (23) as primitives."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.attention import both, capped, heads, joined, places, probabilities, repeated, scores_of, turned
from onnx_explain.ir.unfuse import Results, Writer, fused, refused, unshaped
from onnx_explain.ir.view import Operation, Value

_MODES = ("scores", "capped", "masked", "probabilities")  # what the fourth output may hold


@fused("Attention", domain="")
def _attention(op: Writer, node: Operation) -> Results:
    """Of [N, heads, S, size], or of [N, S, heads·size] where the numbers of heads are given."""
    q, k, v = (node.input(i) for i in range(3))
    if q.shape is None:
        raise unshaped(node, "the rank of its query is")
    flat = len(q.shape) == 3
    if flat:
        q_count, count = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
        if not q_count or not count:
            raise refused(node, "its operands have three axes and the numbers of heads are missing", "export it again")
        q, k, v = heads(op, q, q_count), heads(op, k, count), heads(op, v, count)
    else:
        q_count, count = _counts(node)
    offset = None
    if node.has(4) != node.has(5):
        raise refused(node, "it has only one of past_key and past_value", "export it again")
    if node.has(4):
        offset = op.size(node.input(4), 2)
        k, v = op.Concat(node.input(4), k, axis=2), op.Concat(node.input(5), v, axis=2)
    present = [k, v]
    k, v = (repeated(op, x, q_count, count) for x in (k, v))
    stages = {"scores": scores_of(op, q, k, node.number("scale", 0.0))}
    stages["capped"] = capped(op, stages["scores"], node.number("softcap", 0.0))
    added, allowed = _mask(op, node, q, k, offset)
    scores = stages["capped"] if added is None else op.Add(stages["capped"], added)
    kind = node.integer("softmax_precision", 0)
    stages["probabilities"] = p = probabilities(op, scores, allowed, ir.DataType(kind) if kind else None)
    y = op.MatMul(p, v)
    mode = _MODES[node.integer("qk_matmul_output_mode", 0)]
    if mode == "masked":
        stages[mode] = scores if allowed is None else op.Where(allowed, scores, op.number(-np.inf))
    return [joined(op, y) if flat else y, *present, stages[mode]]


def _counts(node: Operation) -> tuple[int, int]:
    """How many heads query and key have."""
    found = [v.shape[1] if v.shape is not None and len(v.shape) == 4 else None for v in (node.x, node.input(1))]
    q_count, count = (h if isinstance(h, int) else 0 for h in found)
    if not q_count or not count:
        raise unshaped(node, "its number of heads is")
    return q_count, count


def _mask(op: Writer, node: Operation, q: Value, k: Value, offset: Value | None) -> tuple[Value | None, Value | None]:
    """What is added to the scores, and whether a query may look at a key: by mask, time, window and length."""
    added, allowed = None, None
    if node.has(3):
        mask = node.input(3)
        if mask.dtype is None:
            raise unshaped(node, "the type of its mask is")
        if mask.dtype == ir.DataType.BOOL:
            allowed = _as_long(op, mask, k, False)
        else:
            added, allowed = _finite(op, _as_long(op, mask, k, -np.inf))
    if node.has(6):
        length = op.Reshape(op.Cast(node.input(6), to=int(ir.DataType.INT64)), op.ints(-1, 1, 1, 1))
        allowed = both(op, allowed, op.Less(op.counting(op.size(k, 2)), length))
        offset = op.Sub(length, op.size(q, 2)) if offset is None else offset
    i, j = places(op, q, k, offset)
    if node.integer("is_causal", 0):
        allowed = both(op, allowed, op.Not(op.Greater(j, i)))
    left, right = node.integer("left_window_size", -1), node.integer("right_window_size", -1)
    if left >= 0:
        allowed = both(op, allowed, op.Not(op.Less(j, op.Sub(i, _whole(op, left)))))
    if right >= 0:
        allowed = both(op, allowed, op.Not(op.Greater(j, op.Add(i, _whole(op, right)))))
    return added, allowed


def _whole(op: Writer, value: int) -> Value:
    return op.constant(np.asarray(value, np.int64))


def _as_long(op: Writer, mask: Value, k: Value, fill: bool | float) -> Value:
    """A mask that ends before the keys do says nothing of the last ones: they are masked."""
    sizes, n = list(mask.shape or ()), list(k.shape or ())
    if mask.shape is None or (n and sizes and isinstance(sizes[-1], int) and sizes[-1] == n[2]):
        return mask
    missing = op.Reshape(op.Sub(op.size(k, 2), op.size(mask, len(sizes) - 1)), op.ints(1))
    pads = op.Concat(op.ints(*[0] * (2 * len(sizes) - 1)), missing, axis=0)
    border = op.constant(np.asarray(fill)) if isinstance(fill, bool) else op.number(fill)
    return op.Pad(mask, pads, border)


def _finite(op: Writer, mask: Value) -> tuple[Value, Value | None]:
    """An added mask with 0 in place of -∞, and where it was none: a row of -∞ alone would be NaN."""
    number = mask.const_value
    if number is not None and not bool(np.isneginf(np.asarray(number.numpy(), np.float64)).any()):
        return mask, None
    allowed = op.Greater(mask, op.number(-np.inf))
    return op.Where(allowed, mask, op.number(0.0)), allowed


@fused("RotaryEmbedding", domain="")
def _rotary(op: Writer, node: Operation) -> Results:
    """Pairs of features turned by an angle per position; the others stay."""
    x, count = node.x, node.integer("num_heads", 0)
    if x.shape is None:
        raise unshaped(node, "the rank of its operand is")
    flat = len(x.shape) == 3
    if flat and not count:
        raise refused(node, "its operand has three axes and num_heads is missing", "export it again")
    width = list(x.shape)[-1]
    if not isinstance(width, int):
        raise unshaped(node, "the number of its features is")
    width = width // count if flat else width
    size = node.integer("rotary_embedding_dim", 0) or width
    x = heads(op, x, count) if flat else x
    tables = [node.input(1), node.input(2)]
    if node.has(3):
        tables = [op.Gather(t, node.input(3), axis=0) for t in tables]
    cos, sin = (op.apart(t, 1) for t in tables)  # the same for every head
    y = turned(op, x, cos, sin, size, interleaved=bool(node.integer("interleaved", 0)), whole=size == width)
    return [joined(op, y) if flat else y]
