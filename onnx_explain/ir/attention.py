"""ONNX Runtime's Attention and MultiHeadAttention as primitives, and the parts that all kinds of attention are made of.

Always query, key and value [N, heads, S, size], a product, a mask, a Softmax and a product: what relevance rules know.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.unfuse import Results, Writer, fused, refused, unshaped, without
from onnx_explain.ir.view import Operation, Value


def heads(op: Writer, x: Value, count: int) -> Value:
    """[N, S, heads·size] as [N, heads, S, size]."""
    return op.Transpose(op.Reshape(x, op.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])


def joined(op: Writer, y: Value) -> Value:
    """[N, heads, S, size] as [N, S, heads·size]."""
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.ints(0, 0, -1))


def scores_of(op: Writer, q: Value, k: Value, scale: float) -> Value:
    """q·kᵀ·scale; 0 stands for 1/√size."""
    products = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
    if scale:
        return op.scaled(products, scale)
    return op.Div(products, op.Sqrt(op.Cast(op.size(q, 3), to=int(op.dtype))))


def causal(op: Writer, q: Value, k: Value, *, aligned_right: bool = False) -> Value:
    """[S, T]: whether query i may look at key j <= i (or i + T - S)."""
    i, j = places(op, q, k, op.Sub(op.size(k, 2), op.size(q, 2)) if aligned_right else None)
    return op.Not(op.Greater(j, i))


def places(op: Writer, q: Value, k: Value, offset: Value | None) -> tuple[Value, Value]:
    """The queries' places among the keys [S, 1], with an offset added (or [N, 1, S, 1] by sample), and the keys' own [T]."""
    i = op.Reshape(op.counting(op.size(q, 2)), op.ints(-1, 1))
    return (i if offset is None else op.Add(i, offset)), op.counting(op.size(k, 2))


def both(op: Writer, *conditions: Value | None) -> Value | None:
    """All conditions that there are."""
    known = [c for c in conditions if c is not None]
    found = known[0] if known else None
    for c in known[1:]:
        found = op.And(found, c)
    return found


def lowest(op: Writer) -> Value:
    """The smallest finite number: what is masked by it gets no probability, and nothing becomes NaN."""
    kind = np.dtype(np.float32) if op.dtype == ir.DataType.BFLOAT16 else op.dtype.numpy()
    return op.number(float(np.finfo(kind).min) * (0.99 if op.dtype == ir.DataType.BFLOAT16 else 1.0))


def probabilities(op: Writer, scores: Value, allowed: Value | None, kind: ir.DataType | None = None) -> Value:
    """softmax(scores) over what is allowed; a row in which nothing is becomes 0. `kind`: the type it is computed in."""
    scores = scores if allowed is None else op.Where(allowed, scores, lowest(op))
    if kind in (None, op.dtype):
        p = op.Softmax(scores, axis=-1)
    else:
        p = op.Cast(op.Softmax(op.Cast(scores, to=int(kind)), axis=-1), to=int(op.dtype))
    return p if allowed is None else op.Where(allowed, p, op.number(0.0))


def attended(op: Writer, scores: Value, v: Value, allowed: Value | None) -> Value:
    """softmax(scores)·v over what is allowed."""
    return op.MatMul(probabilities(op, scores, allowed), v)


def capped(op: Writer, scores: Value, cap: float) -> Value:
    """c·tanh(scores/c); 0 stands for no cap."""
    return op.scaled(op.Tanh(op.Div(scores, op.number(cap))), cap) if cap else scores


def repeated(op: Writer, x: Value, q_count: int, count: int) -> Value:
    """Key or value [N, heads, T, size] repeated for the queries' heads that share it."""
    if q_count == count:
        return x
    whole = op.Concat(*[op.apart(x, 2)] * (q_count // count), axis=2)
    sizes = op.Shape(x)
    shape = op.Concat(op.Gather(sizes, op.ints(0)), op.ints(q_count), op.Gather(sizes, op.ints(2, 3)), axis=0)
    return op.Reshape(whole, shape)


def turned(op: Writer, x: Value, cos: Value, sin: Value, size: int, *, interleaved: bool, whole: bool) -> Value:
    """The first `size` features of [N, heads, S, …] turned in pairs by angles [N, 1, S, size / 2]; `whole`: there are no others."""
    rest = None if whole else op.Slice(x, op.ints(size), op.ints(1 << 31), op.ints(3))
    x = x if whole else op.Slice(x, op.ints(0), op.ints(size), op.ints(3))
    if interleaved:
        a, b = (op.Slice(x, op.ints(k), op.ints(size), op.ints(3), op.ints(2)) for k in (0, 1))
    else:
        a, b = (op.Slice(x, op.ints(k), op.ints(k + size // 2), op.ints(3)) for k in (0, size // 2))
    pairs = [op.Sub(op.Mul(cos, a), op.Mul(sin, b)), op.Add(op.Mul(sin, a), op.Mul(cos, b))]
    y = (
        op.Reshape(op.Concat(*(op.apart(t, 4) for t in pairs), axis=4), op.Shape(x))
        if interleaved
        else op.Concat(*pairs, axis=3)
    )
    return y if rest is None else op.Concat(y, rest, axis=3)


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
    scores = scores_of(op, q, k, node.number("scale", 0.0))
    for added in (mask, bias):
        scores = scores if added is None else op.Add(scores, added)
    allowed = causal(op, q, k, aligned_right=True) if node.integer("unidirectional", 0) else None
    return joined(op, attended(op, scores, v, allowed))


@fused("Attention")
def _attention(op: Writer, node: Operation) -> Results:
    """Query, key and value by one weight [C, Cq + Ck + Cv]."""
    without(node, {6: "past_sequence_length"})
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
    q, k, v = (heads(op, part, node.integer("num_heads", 1)) for part in parts)
    present = None
    if node.has(4):  # [2, N, heads, P, size]: keys and values of before
        past = [op.Gather(node.input(4), op.constant(np.asarray(i, np.int64)), axis=0) for i in (0, 1)]
        k, v = (op.Concat(p, x, axis=2) for p, x in zip(past, (k, v)))
        present = op.Concat(op.apart(k, 0), op.apart(v, 0), axis=0)
    bias = node.input(5) if node.has(5) else None
    return [_weighted(op, node, q, k, v, _padding(op, node, 3, k), bias), present]


@fused("MultiHeadAttention")
def _multi_head_attention(op: Writer, node: Operation) -> Results:
    without(node, {8: "past_sequence_length", 9: "cache_indirection"})
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
    q, k, v = (p if len(p.shape or ()) == 4 else heads(op, p, count) for p in parts)
    if node.has(6) and node.has(7):
        k, v = op.Concat(node.input(6), k, axis=2), op.Concat(node.input(7), v, axis=2)
    bias = node.input(5) if node.has(5) else None
    return [_weighted(op, node, q, k, v, _padding(op, node, 4, k), bias), k, v]


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
