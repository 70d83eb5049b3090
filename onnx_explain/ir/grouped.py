"""ONNX Runtime's attention of decoders as primitives: GroupQueryAttention without a cache, and its RotaryEmbedding."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from onnx_explain.ir.attention import both, capped, heads, joined, places, probabilities, repeated, scores_of, turned
from onnx_explain.ir.unfuse import Results, Writer, fused, refused, unshaped, without
from onnx_explain.ir.view import Operation, Value

_EXPORT = "export the model without a cache"


@fused("RotaryEmbedding")
def _rotary(op: Writer, node: Operation) -> Results:
    """Of [N, S, heads·size] or [N, heads, S, size]; positions [N, S], or the first one alone [1]."""
    x, positions, count = node.x, node.input(1), node.integer("num_heads", 0)
    if x.shape is None or positions.shape is None:
        raise unshaped(node, "the rank of its operands is")
    if node.integer("is_packed_batching", 0) or node.number("scale", 1.0) != 1.0:
        raise refused(node, "its samples are packed, or it scales", "export the model without it")
    flat, width, part = len(x.shape) == 3, list(x.shape)[-1], node.integer("rotary_embedding_dim", 0)
    half = list(node.input(2).shape or ())[-1:]
    if not isinstance(width, int) or not half or not isinstance(half[0], int):
        raise unshaped(node, "the number of its features is")
    size = width if not flat else width // count if count else 2 * half[0]
    x = heads(op, x, width // size) if flat else x
    places_of = positions
    if len(positions.shape) == 1:
        places_of = op.Reshape(op.Add(op.counting(op.size(x, 2)), positions), op.ints(1, -1))
    cos, sin = (op.apart(op.Gather(node.input(i), places_of, axis=0), 1) for i in (2, 3))
    y = turned(op, x, cos, sin, part or size, interleaved=bool(node.integer("interleaved", 0)), whole=part in (0, size))
    return [joined(op, y) if flat else y]


@fused("GroupQueryAttention")
def _grouped(op: Writer, node: Operation) -> Results:
    """Of a whole prompt: every query looks at the keys up to itself, within its sample's length."""
    _plain(node)
    count, kv_count = node.integer("num_heads", 1), node.integer("kv_num_heads", 1)
    q, k, v = _parts(op, node, count, kv_count)
    if node.integer("do_rotary", 0):
        whole = op.Reshape(op.counting(op.size(q, 2)), op.ints(1, -1))
        cos, sin = (op.apart(op.Gather(node.input(i), whole, axis=0), 1) for i in (7, 8))
        half, size = list(node.input(7).shape or ())[-1:], _width(node, count, kv_count)
        if not half or not isinstance(half[0], int):
            raise unshaped(node, "the size of its angles is")
        kind = {"interleaved": bool(node.integer("rotary_interleaved", 0)), "whole": 2 * half[0] == size}
        q, k = (turned(op, x, cos, sin, 2 * half[0], **kind) for x in (q, k))
    present = [k, v]
    k, v = (repeated(op, x, count, kv_count) for x in (k, v))
    scores = capped(op, scores_of(op, q, k, node.number("scale", 0.0)), node.number("softcap", 0.0))
    scores = op.Add(scores, node.input(10)) if node.has(10) else scores
    y = op.MatMul(probabilities(op, scores, _seen(op, node, q, k)), v)
    return [joined(op, y), *present]


def _seen(op: Writer, node: Operation, q: Value, k: Value) -> Value | None:
    """Keys of the sample itself, up to the query, within the local window."""
    i, j = places(op, q, k, None)
    last = op.Reshape(op.Cast(node.input(5), to=int(ir.DataType.INT64)), op.ints(-1, 1, 1, 1))
    allowed: Value | None = op.Not(op.Greater(j, last))
    if node.integer("causal", 1):
        allowed = both(op, allowed, op.Not(op.Greater(j, i)))
    window = node.integer("local_window_size", -1)
    if window >= 0:
        allowed = both(op, allowed, op.Greater(j, op.Sub(i, op.constant(np.asarray(window, np.int64)))))
    return allowed


def _plain(node: Operation) -> None:
    """Refuse what a prompt without a cache does not have."""
    for index in (3, 4):
        if node.has(index):
            shape = node.input(index).shape
            length = list(shape)[2] if shape is not None and len(shape) == 4 else None
            if length != 0:
                raise refused(node, "it keeps keys and values from call to call", _EXPORT)
    further = {9: "position_ids", 11: "head_sink", 12: "k_scale", 14: "q_norm_weight", 16: "query_seqlens"}
    without(node, further)
    if node.integer("smooth_softmax", 0) or node.integer("sliding_window_cache", 0):
        raise refused(node, "its Softmax is smoothed, or its cache slides", _EXPORT)


def _width(node: Operation, count: int, kv_count: int) -> int:
    """The features of one head."""
    shape = node.x.shape
    whole = list(shape)[-1] if shape is not None else None
    if not isinstance(whole, int):
        raise unshaped(node, "the number of its features is")
    return whole // (count if node.has(1) else count + 2 * kv_count)


def _parts(op: Writer, node: Operation, count: int, kv_count: int) -> tuple[Value, Value, Value]:
    """Query, key and value by head; from one tensor where they come packed."""
    if node.has(1) and node.has(2):
        q, k, v = (node.input(i) for i in range(3))
    else:
        size = _width(node, count, kv_count)
        ends = [0, count * size, (count + kv_count) * size, (count + 2 * kv_count) * size]
        q, k, v = (op.Slice(node.x, op.ints(a), op.ints(b), op.ints(2)) for a, b in itertools.pairwise(ends))
    return heads(op, q, count), heads(op, k, kv_count), heads(op, v, kv_count)
