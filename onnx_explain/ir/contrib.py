"""Fused operators written as the primitives they stand for: ONNX Runtime's own (``com.microsoft``), and ONNX's Attention,
RotaryEmbedding and GroupNormalization.

Each expansion computes what ONNX Runtime's kernel does; what a kernel can do besides and an expansion does not is refused by
name. Operators of that domain that are not listed stay as they are, and are refused where relevance would have to pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnx_explain.errors import UnsupportedOperator
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value

MICROSOFT = "com.microsoft"
_OLDEST = 11  # the opset from which on the primitives below mean what they mean today
_AXES_ARE_INPUTS = 18
_AXES_OF_UNSQUEEZE = _AXES_OF_SUM = 13
_SCALE_PER_CHANNEL = 21
_HAS_LAYER_NORMALIZATION = 17
Results = Sequence[Value | None]
Expansion = Callable[["_Writer", Operation], Results]
EXPANSIONS: dict[tuple[str, str], Expansion] = {}
_GPU = "ONNX Runtime has it for GPUs alone"
_CACHE = "it keeps keys and values from call to call"
_BITS = "its weights are packed bits"
REFUSED = {
    "BiasAdd": _GPU,
    "BiasSplitGelu": _GPU,
    "DecoderMaskedMultiHeadAttention": _CACHE,
    "DecoderMaskedSelfAttention": _CACHE,
    "GemmFastGelu": _GPU,
    "GroupNorm": _GPU,
    "GroupQueryAttention": _CACHE,
    "LongformerAttention": "it attends to a moving window",
    "MatMulBnb4": _BITS,
    "MatMulNBits": _BITS,
    "MoE": "its experts are chosen while it runs",
    "NhwcConv": _GPU,
    "NhwcFusedConv": "it is made for one machine's half precision",
    "PackedAttention": "its samples are packed into one",
    "PackedMultiHeadAttention": "its samples are packed into one",
    "PagedAttention": _CACHE,
    "QMoE": _BITS,
    "RotaryEmbedding": "it is not ONNX's operator of that name",
    "SkipGroupNorm": _GPU,
    "SparseAttention": "its mask is packed into blocks",
}


def unfuse(model: ir.Model) -> ir.Model:
    """Replace every fused operator that has an expansion, in place; the model may have any opset from 11 on.

    Raises UnsupportedOperator where a fused operator is used in a way that its expansion does not cover.
    """
    graph = model.graph
    for node in graph:
        _refuse(node)
    version, varying = graph.opset_imports.get("", 0), _varying(graph)
    fused = [n for n in graph if (_domain(n), n.op_type) in EXPANSIONS and not _has_room(n, version, varying)]
    if not fused:
        return model
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    op = _Writer(graph, version, _float(graph))
    for node in fused:
        forward = Operation.of(node)
        if version < _OLDEST and node.domain == MICROSOFT:
            raise _refused(forward, f"the model's opset is {version}", "export it with opset 11 or later")
        with op.serving(forward.name):
            results = EXPANSIONS[_domain(node), node.op_type](op, forward)
        for index, old in enumerate(node.outputs):
            _stand_in(op, forward, old, results[index] if index < len(results) else None)
        graph.remove(node, safe=True)
    op.finish()
    if not any(n.domain == MICROSOFT for n in graph):
        graph.opset_imports.pop(MICROSOFT, None)
    return model


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _refuse(node: ir.Node) -> None:
    """Fused operators without an expansion: nothing behind them has a shape, so they are named before shapes are asked for."""
    remedy = "export the model without it, or run ONNX Runtime's optimizer at a lower level"
    if node.domain == MICROSOFT and node.op_type in REFUSED:
        raise _refused(Operation.of(node), REFUSED[node.op_type], remedy)
    if node.domain == f"{MICROSOFT}.nchwc":
        raise _refused(Operation.of(node), "the file was saved in one machine's memory layout", remedy)


def _has_room(node: ir.Node, version: int, varying: set[int]) -> bool:
    """Whether it is a standard operator that relevance passes as it is."""
    if node.domain == MICROSOFT:
        return False
    if node.op_type == "BatchNormalization":
        return not any(v is not None and id(v) in varying for v in node.inputs[1:])
    return node.op_type == "LayerNormalization" and version >= _HAS_LAYER_NORMALIZATION


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
            raise _refused(node, f"its output {old.name!r} is read", "export the model without it")
        return
    if not read:
        return
    if old.is_graph_output() or new.producer() is None:
        new = op.emit("Identity", [new], shared=False)[0]
    new.name, old.name = old.name, f"{old.name}/fused"
    op.typed(new, old)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _refused(node: Operation, what: str, remedy: str) -> UnsupportedOperator:
    return UnsupportedOperator(f"{node.where}: {what}, which its expansion to primitives does not cover; {remedy}.")


def _without(node: Operation, operands: dict[int, str]) -> None:
    """Refuse operands that an expansion does not cover."""
    for index, name in operands.items():
        if node.has(index):
            raise _refused(node, f"it has the operand {name}", "export the model without it")


class _Writer(Emitter):
    """An emitter that knows the model's opset and float type, before shapes and types are inferred."""

    def __init__(self, graph: ir.Graph, version: int, dtype: ir.DataType) -> None:
        super().__init__(graph)
        self.version, self.dtype = version, dtype

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


# ------------------------------------------------------------------------------------------- activations


def _gelu(op: _Writer, x: Value) -> Value:
    inner = op.Erf(op.Div(x, op.number(math.sqrt(2.0))))
    return op.Mul(op.Mul(x, op.Add(inner, op.number(1.0))), op.number(0.5))


@fused("Gelu")
def _whole_gelu(op: _Writer, node: Operation) -> Results:
    return [_gelu(op, node.x)]


@fused("BiasGelu")
def _bias_gelu(op: _Writer, node: Operation) -> Results:
    return [_gelu(op, op.Add(node.x, node.input(1)))]


@fused("FastGelu")
def _fast_gelu(op: _Writer, node: Operation) -> Results:
    x = op.Add(node.x, node.input(1)) if node.has(1) else node.x
    cubic = op.Add(x, op.Mul(op.Mul(op.Mul(x, x), x), op.number(0.044715)))
    inner = op.Tanh(op.Mul(cubic, op.number(math.sqrt(2.0 / math.pi))))
    return [op.Mul(op.Mul(x, op.number(0.5)), op.Add(inner, op.number(1.0)))]


@fused("QuickGelu")
def _quick_gelu(op: _Writer, node: Operation) -> Results:
    return [op.Mul(node.x, op.Sigmoid(op.scaled(node.x, node.number("alpha", 1.702))))]


def _activated(op: _Writer, node: Operation, y: Value, parameters: Sequence[float]) -> Value:
    """The activation that a Conv, Gemm or MatMul has taken in."""
    name = node.text("activation", "")
    if name in ("", "Relu", "Sigmoid", "Tanh", "Softplus", "Softsign"):
        return op.emit(name, [y])[0] if name else y
    if name in ("LeakyRelu", "Elu", "ThresholdedRelu"):
        return op.emit(name, [y], {"alpha": parameters[0]} if parameters else {})[0]
    if name == "HardSigmoid":
        return op.HardSigmoid(y, **dict(zip(("alpha", "beta"), parameters)))
    if name == "Clip" and len(parameters) == 2:
        return op.Clip(y, op.number(parameters[0]), op.number(parameters[1]))
    raise _refused(node, f"its activation is {name!r}", "run ONNX Runtime's optimizer at a lower level")


# ------------------------------------------------------------------------------------------- linear operators


@fused("FusedConv")
def _fused_conv(op: _Writer, node: Operation) -> Results:
    taken = ("activation", "activation_params")
    attributes = {k: v for k, v in node.attributes.items() if k not in taken}
    y = op.emit("Conv", node.inputs[:3], attributes)[0]
    y = op.Add(y, node.input(3)) if node.has(3) else y
    return [_activated(op, node, y, [float(p) for p in node.attributes.get("activation_params", ())])]


@fused("FusedGemm")
def _fused_gemm(op: _Writer, node: Operation) -> Results:
    own = ("alpha", "beta", "transA", "transB")
    y = op.emit("Gemm", node.inputs[:3], {k: v for k, v in node.attributes.items() if k in own})[0]
    names = [n for n in ("activation_alpha", "activation_beta") if n in node.attributes]
    return [_activated(op, node, y, [float(node.attributes[n]) for n in names])]


@fused("FusedMatMul", "TransposeMatMul")
def _fused_matmul(op: _Writer, node: Operation) -> Results:
    operands = []
    for index, side in enumerate("AB"):
        value = node.input(index)
        if node.integer(f"transBatch{side}", 0):
            raise _refused(node, f"transBatch{side} is set", "run ONNX Runtime's optimizer at a lower level")
        if node.integer(f"trans{side}", 0):
            value = _transposed(op, node, value)
        operands.append(value)
    return [op.scaled(op.MatMul(*operands), node.number("alpha", 1.0))]


def _transposed(op: _Writer, node: Operation, value: Value) -> Value:
    if value.shape is None:
        raise _refused(node, f"the rank of {value.name!r} is not known", "run shape inference on the file")
    n = len(value.shape)
    return value if n < 2 else op.Transpose(value, perm=[*range(n - 2), n - 1, n - 2])


# ------------------------------------------------------------------------------------------- normalisations


def _layer_norm(op: _Writer, x: Value, gain: Value, shift: Value | None, epsilon: float) -> Value:
    if op.version >= _HAS_LAYER_NORMALIZATION:
        return op.LayerNormalization(x, gain, *([] if shift is None else [shift]), axis=-1, epsilon=epsilon)
    moved = op.Sub(x, op.mean(x, [-1]))
    deviation = op.Sqrt(op.Add(op.mean(op.Mul(moved, moved), [-1]), op.number(epsilon)))
    y = op.Mul(op.Div(moved, deviation), gain)
    return y if shift is None else op.Add(y, shift)


def _rms_norm(op: _Writer, x: Value, gain: Value, axes: Sequence[int], epsilon: float) -> Value:
    deviation = op.Sqrt(op.Add(op.mean(op.Mul(x, x), axes), op.number(epsilon)))
    return op.Mul(op.Div(x, deviation), gain)


@fused("LayerNormalization", domain="")
def _early_layer_norm(op: _Writer, node: Operation) -> Results:
    """ONNX Runtime's optimizer writes it below opset 17, too."""
    axis = node.integer("axis", -1)
    if axis != -1 and (node.x.shape is None or axis != len(node.x.shape) - 1):
        raise _refused(node, f"its axis is {axis} before opset 17", "export the model with opset 17 or later")
    shift = node.input(2) if node.has(2) else None
    return [_layer_norm(op, node.x, node.input(1), shift, node.number("epsilon", 1e-5)), None, None]


@fused("SkipLayerNormalization")
def _skip_layer_norm(op: _Writer, node: Operation) -> Results:
    whole = op.Add(node.x, node.input(1))
    whole = op.Add(whole, node.input(4)) if node.has(4) else whole
    shift = node.input(3) if node.has(3) else None
    return [_layer_norm(op, whole, node.input(2), shift, node.number("epsilon", 1e-12)), None, None, whole]


@fused("SkipSimplifiedLayerNormalization")
def _skip_rms_norm(op: _Writer, node: Operation) -> Results:
    whole = op.Add(node.x, node.input(1))
    whole = op.Add(whole, node.input(3)) if node.has(3) else whole
    return [_rms_norm(op, whole, node.input(2), [-1], node.number("epsilon", 1e-12)), None, None, whole]


@fused("SimplifiedLayerNormalization", domain="")
@fused("SimplifiedLayerNormalization")
def _simplified_layer_norm(op: _Writer, node: Operation) -> Results:
    axis = node.integer("axis", -1)
    if axis != -1 and node.x.shape is None:
        raise _refused(node, f"its axis is {axis} and the rank is not known", "run shape inference on the file")
    n = len(node.x.shape or ())
    axes = [-1] if axis == -1 else list(range(axis % n, n))
    return [_rms_norm(op, node.x, node.input(1), axes, node.number("epsilon", 1e-5)), None]


@fused("EmbedLayerNormalization")
def _embed_layer_norm(op: _Writer, node: Operation) -> Results:
    """Embeddings of words, positions and segments, added and normalised."""
    words = op.Gather(node.input(2), node.x, axis=0)
    positions = node.input(8) if node.has(8) else op.counting(op.size(node.x, 1))
    whole = op.Add(words, op.Gather(node.input(3), positions, axis=0))
    if node.has(1) and node.has(4):
        whole = op.Add(whole, op.Gather(node.input(4), node.input(1), axis=0))
    y = _layer_norm(op, whole, node.input(5), node.input(6), node.number("epsilon", 1e-12))
    return [y, None, whole]


@fused("BatchNormalization", domain="")
def _batch_norm(op: _Writer, node: Operation) -> Results:
    """With statistics that the model computes, as Keras writes a LayerNormalization: standardised by primitives."""
    x = node.x
    if x.shape is None:
        raise _refused(node, f"the rank of {x.name!r} is not known", "run shape inference on the file")
    if node.integer("training_mode", 0):
        raise _refused(node, "it is in training mode", "export the model in inference mode")
    shape = op.ints(-1, *[1] * (len(x.shape) - 2))
    gain, shift, mean, variance = (op.Reshape(node.input(i), shape) for i in range(1, 5))
    deviation = op.Sqrt(op.Add(variance, op.number(node.number("epsilon", 1e-5))))
    return [op.Add(op.Mul(op.Div(op.Sub(x, mean), deviation), gain), shift)]


@fused("GroupNormalization", domain="")
def _group_norm(op: _Writer, node: Operation) -> Results:
    """Groups of channels as the channels of an InstanceNormalization, as exporters write it below opset 18.

    γ and β hold one number per channel, or, before opset 21, per group.
    """
    x, groups = node.x, node.integer("num_groups", 1)
    if x.shape is None:
        raise _refused(node, f"the rank of {x.name!r} is not known", "run shape inference on the file")
    sizes, behind = op.Shape(x), [1] * (len(x.shape) - 2)
    ones, zeros = (op.constant(np.full(groups, v, op.dtype.numpy())) for v in (1.0, 0.0))
    grouped = op.Reshape(x, op.ints(0, groups, -1))
    y = op.InstanceNormalization(grouped, ones, zeros, epsilon=node.number("epsilon", 1e-5))
    y, affine = op.Reshape(y, sizes), [node.input(1), node.input(2)]
    if op.version < _SCALE_PER_CHANNEL:
        each = op.Div(op.Gather(sizes, op.ints(1)), op.ints(groups))
        spread = op.Concat(op.ints(groups), each, axis=0)
        affine = [op.Expand(op.Reshape(v, op.ints(-1, 1)), spread) for v in affine]
    gain, shift = (op.Reshape(v, op.ints(-1, *behind)) for v in affine)
    return [op.Add(op.Mul(y, gain), shift)]


# ------------------------------------------------------------------------------------------- reductions


@fused("ReduceL1", "ReduceSumSquare", "ReduceLogSum", domain="")
def _reduced(op: _Writer, node: Operation) -> Results:
    x = node.x
    if node.op_type != "ReduceLogSum":
        x = op.Abs(x) if node.op_type == "ReduceL1" else op.Mul(x, x)
    attributes, operands = dict(node.attributes), [x, *node.inputs[1:]]
    if "axes" in attributes and op.version >= _AXES_OF_SUM:  # ReduceSum took them as an operand before the others did
        operands.append(op.ints(*attributes.pop("axes")))
    y = op.emit("ReduceSum", operands, attributes)[0]
    return [op.Log(y) if node.op_type == "ReduceLogSum" else y]


# ------------------------------------------------------------------------------------------- attention


def _heads(op: _Writer, x: Value, count: int) -> Value:
    """[N, S, heads·size] as [N, heads, S, size]."""
    return op.Transpose(op.Reshape(x, op.ints(0, 0, count, -1)), perm=[0, 2, 1, 3])


def _joined(op: _Writer, y: Value) -> Value:
    """[N, heads, S, size] as [N, S, heads·size]."""
    return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), op.ints(0, 0, -1))


def _scores(op: _Writer, q: Value, k: Value, scale: float) -> Value:
    """q·kᵀ·scale; 0 stands for 1/√size."""
    products = op.MatMul(q, op.Transpose(k, perm=[0, 1, 3, 2]))
    if scale:
        return op.scaled(products, scale)
    return op.Div(products, op.Sqrt(op.Cast(op.size(q, 3), to=int(op.dtype))))


def _causal(op: _Writer, q: Value, k: Value, *, aligned_right: bool = False) -> Value:
    """[S, T]: whether query i may look at key j <= i (or i + T - S)."""
    rows, columns = op.size(q, 2), op.size(k, 2)
    i = op.Reshape(op.counting(rows), op.ints(-1, 1))
    i = op.Add(i, op.Sub(columns, rows)) if aligned_right else i
    return op.Not(op.Greater(op.counting(columns), i))


def _lowest(op: _Writer) -> Value:
    """The smallest finite number: what is masked by it gets no probability, and nothing becomes NaN."""
    kind = np.dtype(np.float32) if op.dtype == ir.DataType.BFLOAT16 else op.dtype.numpy()
    return op.number(float(np.finfo(kind).min) * (0.99 if op.dtype == ir.DataType.BFLOAT16 else 1.0))


def _attended(op: _Writer, scores: Value, v: Value, allowed: Value | None) -> Value:
    """softmax(scores)·v over what is allowed; a row in which nothing is becomes 0."""
    if allowed is None:
        return op.MatMul(op.Softmax(scores, axis=-1), v)
    probabilities = op.Softmax(op.Where(allowed, scores, _lowest(op)), axis=-1)
    return op.MatMul(op.Where(allowed, probabilities, op.number(0.0)), v)


def _padding(op: _Writer, node: Operation, index: int, keys: Value) -> Value | None:
    """The mask operand of ONNX Runtime's attention, as what is added to the scores [N, heads, S, T]."""
    if not node.has(index):
        return None
    mask = node.input(index)
    n = None if mask.shape is None else len(mask.shape)
    if n == 1:
        _one_length(node, mask)
        places = op.Reshape(op.Cast(op.counting(op.size(keys, 2)), to=int(ir.DataType.INT32)), op.ints(1, 1, 1, -1))
        kept = op.Cast(op.Less(places, op.Reshape(mask, op.ints(-1, 1, 1, 1))), to=int(op.dtype))
    elif n == 2:
        kept = op.Reshape(op.Cast(mask, to=int(op.dtype)), op.ints(0, 1, 1, -1))
    elif n == 3:
        kept = op.apart(op.Cast(mask, to=int(op.dtype)), 1)
    else:
        raise _refused(node, f"its mask has {n or 'an unknown number of'} axes", "export the model with a mask [N, T]")
    return op.Mul(op.Sub(op.number(1.0), kept), op.number(node.number("mask_filter_value", -10000.0)))


def _one_length(node: Operation, mask: Value) -> None:
    """Refuse a mask of 2N or 3N + 2 numbers: where sequences begin and end."""
    count, batch = next(iter(mask.shape or ()), None), next(iter(node.x.shape or ()), None)
    if isinstance(count, int) and isinstance(batch, int) and count != batch:
        raise _refused(
            node, f"its mask holds {count} numbers for {batch} samples", "export the model with a mask [N, T]"
        )


def _weighted(
    op: _Writer, node: Operation, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None
) -> Value:
    """ONNX Runtime's attention of [N, heads, S, size], as [N, S, heads·size]."""
    scores = _scores(op, q, k, node.number("scale", 0.0))
    for added in (mask, bias):
        scores = scores if added is None else op.Add(scores, added)
    allowed = _causal(op, q, k, aligned_right=True) if node.integer("unidirectional", 0) else None
    return _joined(op, _attended(op, scores, v, allowed))


@fused("Attention")
def _attention(op: _Writer, node: Operation) -> Results:
    """Query, key and value by one weight [C, Cq + Ck + Cv]."""
    _without(node, {4: "past", 6: "past_sequence_length"})
    if node.integer("do_rotary", 0):
        raise _refused(node, "do_rotary is set", "run ONNX Runtime's optimizer at a lower level")
    weight = node.input(1)
    width = list(weight.shape or ())[-1] if weight.shape is not None else None
    sizes = node.ints("qkv_hidden_sizes") or ([width // 3] * 3 if isinstance(width, int) else None)
    if sizes is None:
        raise _refused(node, "the shape of its weight is not known", "run shape inference on the file")
    whole = op.MatMul(node.x, weight)
    whole = op.Add(whole, node.input(2)) if node.has(2) else whole
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [op.Slice(whole, op.ints(a), op.ints(b), op.ints(2)) for a, b in pairwise(ends)]
    q, k, v = (_heads(op, part, node.integer("num_heads", 1)) for part in parts)
    bias = node.input(5) if node.has(5) else None
    return [_weighted(op, node, q, k, v, _padding(op, node, 3, k), bias)]


@fused("MultiHeadAttention")
def _multi_head_attention(op: _Writer, node: Operation) -> Results:
    _without(node, {6: "past_key", 7: "past_value", 8: "past_sequence_length", 9: "cache_indirection"})
    if not (node.has(1) and node.has(2)):
        raise _refused(node, "query, key and value come in one tensor", "run ONNX Runtime's optimizer at a lower level")
    count = node.integer("num_heads", 1)
    parts = [node.input(i) for i in range(3)]
    if any(p.shape is not None and len(p.shape) > 3 and i == 0 for i, p in enumerate(parts)):
        raise _refused(node, "its query is packed", "run ONNX Runtime's optimizer at a lower level")
    if node.has(3):
        parts = _biased(op, node, parts)
    q, k, v = (p if p.shape is not None and len(p.shape) == 4 else _heads(op, p, count) for p in parts)
    bias = node.input(5) if node.has(5) else None
    return [_weighted(op, node, q, k, v, _padding(op, node, 4, k), bias)]


def _biased(op: _Writer, node: Operation, parts: Sequence[Value]) -> list[Value]:
    """One bias [Cq + Ck + Cv] added to query, key and value."""
    bias = node.input(3)
    total = next(iter(bias.shape or ()), None)
    known = [list(p.shape)[-1] if p.shape is not None and len(p.shape) == 3 else None for p in parts]
    if isinstance(total, int) and isinstance(known[2], int) and total > known[2]:
        known[:2] = [(total - known[2]) // 2] * 2
    widths = [w for w in known if isinstance(w, int)]
    if len(widths) != 3:
        raise _refused(node, "the sizes of query, key and value are not known", "run shape inference on the file")
    ends = np.cumsum([0, *widths]).tolist()
    return [op.Add(p, op.Slice(bias, op.ints(a), op.ints(b), op.ints(0))) for p, a, b in zip(parts, ends, ends[1:])]


@fused("Attention", domain="")
def _onnx_attention(op: _Writer, node: Operation) -> Results:
    """ONNX's, of [N, heads, S, size], or of [N, S, heads·size] where the numbers of heads are given."""
    _without(node, {4: "past_key", 5: "past_value", 6: "nonpad_kv_seqlen"})
    for window in ("left_window_size", "right_window_size"):
        if node.integer(window, -1) != -1:
            raise _refused(node, f"{window} is set", "export the model without it")
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
            raise _refused(
                node, "softcap meets a mask, whose order opset 23 and 24 tell differently", "export it unfused"
            )
        scores = op.scaled(op.Tanh(op.Div(scores, op.number(cap))), cap)
    y = _attended(op, scores, v, allowed)
    return [_joined(op, y) if q_count else y]


def _shared(op: _Writer, node: Operation, x: Value, q: Value) -> Value:
    """Key or value repeated for the queries' heads that share it."""
    q_count, count = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    if not q_count:
        heads = [v.shape[1] if v.shape is not None and len(v.shape) == 4 else None for v in (q, x)]
        q_count, count = (h if isinstance(h, int) else 0 for h in heads)
        if not q_count or not count:
            raise _refused(node, "its number of heads is not known", "run shape inference on the file")
    if q_count == count:
        return x
    repeated = op.Concat(*[op.apart(x, 2)] * (q_count // count), axis=2)
    sizes = op.Shape(x)
    shape = op.Concat(op.Gather(sizes, op.ints(0)), op.ints(q_count), op.Gather(sizes, op.ints(2, 3)), axis=0)
    return op.Reshape(repeated, shape)


@fused("RotaryEmbedding", domain="")
def _rotary(op: _Writer, node: Operation) -> Results:
    """ONNX's: pairs of features turned by an angle per position."""
    if node.integer("rotary_embedding_dim", 0):
        raise _refused(node, "only a part of the features turns", "export it unfused")
    x, count = node.x, node.integer("num_heads", 0)
    if not count and (x.shape is None or len(x.shape) != 4):
        raise _refused(node, "its number of heads is not known", "run shape inference on the file")
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
