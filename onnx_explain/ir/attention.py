"""Attention as primitives: ONNX Runtime's Attention and MultiHeadAttention, ONNX's Attention and RotaryEmbedding.

Always query, key and value [N, heads, S, size], a product, a mask, a Softmax and a product: what relevance rules know.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.unfuse import Results, Writer, fused, refused, unshaped, without
from onnx_explain.ir.view import Operation, Value


def _heads(op: Writer, x: Value, count: int) -> Value:
    """[N, S, heads·size] as [N, heads, S, size]."""
    return op.Transpose(op.Reshape(x, op.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])


def _joined(op: Writer, y: Value) -> Value:
    """[N, heads, S, size] as [N, S, heads·size]."""
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.ints(0, 0, -1))


def _scores(op: Writer, q: Value, k: Value, scale: float) -> Value:
    """q·kᵀ·scale; 0 stands for 1/√size."""
    products = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
    if scale:
        return op.scaled(products, scale)
    return op.Div(products, op.Sqrt(op.Cast(op.size(q, 3), to=int(op.dtype))))


def _causal(op: Writer, q: Value, k: Value, *, aligned_right: bool = False) -> Value:
    """[S, T]: whether query i may look at key j <= i (or i + T - S)."""
    rows, columns = op.size(q, 2), op.size(k, 2)
    i = op.Reshape(op.counting(rows), op.ints(-1, 1))
    i = op.Add(i, op.Sub(columns, rows)) if aligned_right else i
    return op.Not(op.Greater(op.counting(columns), i))


def _lowest(op: Writer) -> Value:
    """The smallest finite number: what is masked by it gets no probability, and nothing becomes NaN."""
    kind = np.dtype(np.float32) if op.dtype == ir.DataType.BFLOAT16 else op.dtype.numpy()
    return op.number(float(np.finfo(kind).min) * (0.99 if op.dtype == ir.DataType.BFLOAT16 else 1.0))


def _attended(op: Writer, scores: Value, v: Value, allowed: Value | None) -> Value:
    """softmax(scores)·v over what is allowed; a row in which nothing is becomes 0."""
    if allowed is None:
        return op.MatMul(op.Softmax(scores, axis=-1), v)
    probabilities = op.Softmax(op.Where(allowed, scores, _lowest(op)), axis=-1)
    return op.MatMul(op.Where(allowed, probabilities, op.number(0.0)), v)


def _padding(op: Writer, node: Operation, index: int, keys: Value) -> Value | None:
    """The mask operand of ONNX Runtime's attention, as what is added to the scores [N, heads, S, T]."""
    if not node.has(index):
        return None
    mask = node.input(index)
    if mask.shape is None:
        raise unshaped(node, f"the rank of its mask {mask.name!r} is")
    n = len(mask.shape)
    if n == 1:
        _one_length(node, mask)
        places = op.Reshape(op.Cast(op.counting(op.size(keys, 2)), to=int(ir.DataType.INT32)), op.ints(1, 1, 1, -1))
        kept = op.Cast(op.Less(places, op.Reshape(mask, op.ints(-1, 1, 1, 1))), to=int(op.dtype))
    elif n == 2:
        kept = op.Reshape(op.Cast(mask, to=int(op.dtype)), op.ints(0, 1, 1, -1))
    elif n == 3:
        kept = op.apart(op.Cast(mask, to=int(op.dtype)), 1)
    else:
        raise refused(node, f"its mask has {n} axes", "export the model with a mask [N, T]")
    return op.Mul(op.Sub(op.number(1.0), kept), op.number(node.number("mask_filter_value", -10000.0)))


def _one_length(node: Operation, mask: Value) -> None:
    """Refuse a mask of 2N or 3N + 2 numbers: where sequences begin and end."""
    count, batch = next(iter(mask.shape or ()), None), next(iter(node.x.shape or ()), None)
    if isinstance(count, int) and isinstance(batch, int) and count != batch:
        raise refused(
            node, f"its mask holds {count} numbers for {batch} samples", "export the model with a mask [N, T]"
        )


def _weighted(
    op: Writer, node: Operation, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None
) -> Value:
    """ONNX Runtime's attention of [N, heads, S, size], as [N, S, heads·size]."""
    scores = _scores(op, q, k, node.number("scale", 0.0))
    for added in (mask, bias):
        scores = scores if added is None else op.Add(scores, added)
    allowed = _causal(op, q, k, aligned_right=True) if node.integer("unidirectional", 0) else None
    return _joined(op, _attended(op, scores, v, allowed))


@fused("Attention")
def _attention(op: Writer, node: Operation) -> Results:
    """Query, key and value by one weight [C, Cq + Ck + Cv]."""
    without(node, {4: "past", 6: "past_sequence_length"})
    if node.integer("do_rotary", 0):
        raise refused(node, "do_rotary is set", "run ONNX Runtime's optimizer at a lower level")
    weight = node.input(1)
    width = list(weight.shape or ())[-1] if weight.shape is not None else None
    sizes = node.ints("qkv_hidden_sizes") or ([width // 3] * 3 if isinstance(width, int) else None)
    if sizes is None:
        raise unshaped(node, "the shape of its weight is")
    whole = op.MatMul(node.x, weight)
    whole = op.Add(whole, node.input(2)) if node.has(2) else whole
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [op.Slice(whole, op.ints(a), op.ints(b), op.ints(2)) for a, b in pairwise(ends)]
    q, k, v = (_heads(op, part, node.integer("num_heads", 1)) for part in parts)
    bias = node.input(5) if node.has(5) else None
    return [_weighted(op, node, q, k, v, _padding(op, node, 3, k), bias)]


@fused("MultiHeadAttention")
def _multi_head_attention(op: Writer, node: Operation) -> Results:
    without(node, {6: "past_key", 7: "past_value", 8: "past_sequence_length", 9: "cache_indirection"})
    if not (node.has(1) and node.has(2)):
        raise refused(node, "query, key and value come in one tensor", "run ONNX Runtime's optimizer at a lower level")
    count = node.integer("num_heads", 1)
    parts = [node.input(i) for i in range(3)]
    if any(p.shape is None for p in parts):
        raise unshaped(node, "the ranks of query, key and value are")
    if len(parts[0].shape or ()) > 3:
        raise refused(node, "its query is packed", "run ONNX Runtime's optimizer at a lower level")
    if node.has(3):
        parts = _biased(op, node, parts)
    q, k, v = (p if len(p.shape or ()) == 4 else _heads(op, p, count) for p in parts)
    bias = node.input(5) if node.has(5) else None
    return [_weighted(op, node, q, k, v, _padding(op, node, 4, k), bias)]


def _biased(op: Writer, node: Operation, parts: Sequence[Value]) -> list[Value]:
    """One bias [Cq + Ck + Cv] added to query, key and value."""
    bias = node.input(3)
    total = next(iter(bias.shape or ()), None)
    known = [list(p.shape)[-1] if p.shape is not None and len(p.shape) == 3 else None for p in parts]
    if isinstance(total, int) and isinstance(known[2], int) and total > known[2]:
        known[:2] = [(total - known[2]) // 2] * 2
    widths = [w for w in known if isinstance(w, int)]
    if len(widths) != 3:
        raise unshaped(node, "the sizes of query, key and value are")
    ends = np.cumsum([0, *widths]).tolist()
    return [op.Add(p, op.Slice(bias, op.ints(a), op.ints(b), op.ints(0))) for p, a, b in zip(parts, ends, ends[1:])]


@fused("Attention", domain="")
def _onnx_attention(op: Writer, node: Operation) -> Results:
    """ONNX's, of [N, heads, S, size], or of [N, S, heads·size] where the numbers of heads are given."""
    without(node, {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"})
    for window in ("left_window_size", "right_window_size"):
        if node.integer(window, -1) != -1:
            raise refused(node, f"{window} is set", "export the model without it")
    q_count, count = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    q, k, v = (node.input(i) for i in range(3))
    if q_count:
        q, k, v = _heads(op, q, q_count), _heads(op, k, count), _heads(op, v, count)
    k, v = (_shared(op, node, x, q) for x in (k, v))
    scores = _scores(op, q, k, node.number("scale", 0.0))
    allowed = _causal(op, q, k) if node.integer("is_causal", 0) else None
    if node.has(3) and node.input(3).dtype == ir.DataType.BOOL:
        allowed = node.input(3) if allowed is None else op.And(node.input(3), allowed)
    elif node.has(3):
        scores = op.Add(scores, node.input(3))
    cap = node.number("softcap", 0.0)
    if cap:
        if node.has(3) or allowed is not None:
            raise refused(
                node, "softcap meets a mask, whose order opset 23 and 24 tell differently", "export it unfused"
            )
        scores = op.scaled(op.Tanh(op.Div(scores, op.number(cap))), cap)
    y = _attended(op, scores, v, allowed)
    return [_joined(op, y) if q_count else y]


def _shared(op: Writer, node: Operation, x: Value, q: Value) -> Value:
    """Key or value repeated for the queries' heads that share it."""
    q_count, count = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    if not q_count:
        heads = [v.shape[1] if v.shape is not None and len(v.shape) == 4 else None for v in (q, x)]
        q_count, count = (h if isinstance(h, int) else 0 for h in heads)
        if not q_count or not count:
            raise unshaped(node, "its number of heads is")
    if q_count == count:
        return x
    repeated = op.Concat(*[op.apart(x, 2)] * (q_count // count), axis=2)
    sizes = op.Shape(x)
    shape = op.Concat(op.Gather(sizes, op.ints(0)), op.ints(q_count), op.Gather(sizes, op.ints(2, 3)), axis=0)
    return op.Reshape(repeated, shape)


@fused("RotaryEmbedding", domain="")
def _rotary(op: Writer, node: Operation) -> Results:
    """ONNX's: pairs of features turned by an angle per position."""
    if node.integer("rotary_embedding_dim", 0):
        raise refused(node, "only a part of the features turns", "export it unfused")
    x, count = node.x, node.integer("num_heads", 0)
    if not count and (x.shape is None or len(x.shape) != 4):
        raise unshaped(node, "its number of heads is")
    x = _heads(op, x, count) if count else x
    tables = [node.input(1), node.input(2)]
    if node.has(3):
        tables = [op.Gather(t, node.input(3), axis=0) for t in tables]
    cos, sin = (op.apart(t, 1) for t in tables)  # [N, 1, S, size / 2]: the same for every head
    size = op.Reshape(op.size(x, 3), op.ints(1))
    if node.integer("interleaved", 0):
        steps, ends = (op.ints(0), op.ints(1)), (size, size)
        a, b = (op.Slice(x, at, end, op.ints(3), op.ints(2)) for at, end in zip(steps, ends))
    else:
        half = op.Div(size, op.ints(2))
        a, b = op.Slice(x, op.ints(0), half, op.ints(3)), op.Slice(x, half, size, op.ints(3))
    turned = [op.Sub(op.Mul(cos, a), op.Mul(sin, b)), op.Add(op.Mul(sin, a), op.Mul(cos, b))]
    if node.integer("interleaved", 0):
        y = op.Reshape(op.Concat(*(op.apart(t, 4) for t in turned), axis=4), op.Shape(x))
    else:
        y = op.Concat(*turned, axis=3)
    return [_joined(op, y) if count else y]
