"""Fused operators, one node each, for `test_contrib.py`: what they are handed, and who judges them.

ONNX Runtime's own kernel is the judge where its CPU has one; else ONNX's evaluator, or the operator's description in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]
MICROSOFT = "com.microsoft"
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(bool): TensorProto.BOOL,
    np.dtype(np.int64): TensorProto.INT64,
}
TOLERANCE = 2e-5  # float32 against float32: other kernels, other orders of summation


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * scale).astype(np.float32)


Judge = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class Fused:
    """One node. `operands` in its order: float arrays of `fed` are inputs, None is left out, all others are weights."""

    op_type: str
    operands: Mapping[str, Array | None]
    fed: tuple[str, ...] = ("x",)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    domain: str = MICROSOFT
    opset: int = 17
    name: str = ""
    batch: int | str = "N"
    ranks: tuple[int, ...] = ()  # of the outputs, where they are not the input's
    judge: Judge | None = None  # where ONNX Runtime's CPU has no kernel: the outputs, by the operator's description

    def __str__(self) -> str:
        return self.name or self.op_type

    @property
    def feeds(self) -> dict[str, Array]:
        return {n: a for n, a in self.operands.items() if n in self.fed and a is not None}

    @property
    def rank(self) -> int:
        """Of every output: that of the first input, but for indices, which become features."""
        x = self.feeds["x"]
        return x.ndim + (x.dtype == np.int32)

    def expected(self) -> dict[str, Array]:
        """ONNX Runtime's outputs, or the judge's."""
        if self.judge is None:
            return run(self.build().SerializeToString(), self.feeds)
        found = self.judge(**self.operands)
        return {n: y for n, y in zip(self.outputs, found) if n}

    def build(self) -> onnx.ModelProto:
        inputs = [n if a is not None else "" for n, a in self.operands.items()]
        node = helper.make_node(
            self.op_type, inputs, list(self.outputs), "fused", domain=self.domain, **self.attributes
        )
        fed = [
            helper.make_tensor_value_info(n, TYPES[a.dtype], [self.batch, *a.shape[1:]] if a.ndim > 1 else [self.batch])
            for n, a in self.feeds.items()
        ]
        weights = [
            numpy_helper.from_array(a, n) for n, a in self.operands.items() if a is not None and n not in self.fed
        ]
        # the file says no more than the rank; a model without shapes of its outputs is not valid
        ranks = [self.ranks[i] if i < len(self.ranks) else self.rank for i in range(len(self.outputs))]
        outs = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * r) for n, r in zip(self.outputs, ranks) if n
        ]
        graph = helper.make_graph([node], "fused", fed, outs, weights)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def fused(op_type: str, name: str = "", *, fed: Sequence[str] = ("x",), **rest: Any) -> Fused:
    known = {
        k: rest.pop(k) for k in ("outputs", "domain", "opset", "attributes", "judge", "ranks", "batch") if k in rest
    }
    label = f"{op_type}-{name}" if name else op_type
    return Fused(op_type, rest, tuple(fed), known.pop("attributes", {}), name=label, **known)


SEQUENCE = drawn(2, 5, 8)
HEADS = {"num_heads": 2}
W3, B3 = drawn(8, 24, scale=0.4, seed=3), drawn(24, seed=4)
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
BLOCKED = np.tile(np.tri(5, dtype=np.int32), (2, 1, 1))
QKV = {"x": SEQUENCE, "k": drawn(2, 5, 8, seed=5), "v": drawn(2, 5, 8, seed=6)}
FOUR = {"x": drawn(2, 4, 5, 8), "k": drawn(2, 4, 6, 8, seed=1), "v": drawn(2, 4, 6, 3, seed=2)}
GAIN, SHIFT = drawn(8, seed=7), drawn(8, seed=8)


def _attentions() -> list[Fused]:
    kv, all_fed = drawn(2, 7, 8, seed=9), ("x", "k", "v")
    weights: dict[str, Any] = {"x": SEQUENCE, "w": W3, "b": B3}
    uneven = {"x": SEQUENCE, "w": drawn(8, 8 + 8 + 12, scale=0.4), "b": drawn(28)}
    other: dict[str, Any] = {"x": SEQUENCE, "k": kv, "v": drawn(2, 7, 8, seed=10)}
    bias = drawn(1, 2, 5, 5, seed=11)
    return [
        fused("Attention", **weights, attributes=HEADS),
        # without a bias ONNX Runtime's CPU kernel reads memory that is not there, so that case has no judge
        fused("Attention", "scale", **weights, attributes={**HEADS, "scale": 0.3}),
        fused("Attention", "causal", **weights, attributes={**HEADS, "unidirectional": 1}),
        fused("Attention", "uneven", **uneven, attributes={**HEADS, "qkv_hidden_sizes": [8, 8, 12]}),
        fused("Attention", "mask", **weights, mask=MASK, attributes=HEADS, fed=("x", "mask")),
        fused("Attention", "mask-3d", **weights, mask=BLOCKED, attributes=HEADS, fed=("x", "mask")),
        fused("Attention", "lengths", **weights, mask=np.array([3, 5], np.int32), attributes=HEADS, fed=("x", "mask")),
        fused(
            "Attention", "mask-causal", **weights, mask=MASK, attributes={**HEADS, "unidirectional": 1}, fed=("x", "mask")
        ),
        fused("Attention", "bias", **weights, mask=None, past=None, bias=bias, attributes=HEADS),
        fused("Attention", "opset-13", **weights, attributes=HEADS, opset=13),
        fused("MultiHeadAttention", **QKV, attributes=HEADS, fed=all_fed),
        fused("MultiHeadAttention", "other-keys", **other, attributes=HEADS, fed=all_fed),
        fused("MultiHeadAttention", "bias", **other, b=B3, attributes=HEADS, fed=all_fed),
        fused("MultiHeadAttention", "scale", **QKV, attributes={**HEADS, "scale": 0.7}, fed=all_fed),
        fused("MultiHeadAttention", "causal", **QKV, attributes={**HEADS, "unidirectional": 1}, fed=all_fed),
        fused("MultiHeadAttention", "mask", **QKV, b=None, mask=MASK, attributes=HEADS, fed=(*all_fed, "mask")),
        fused("MultiHeadAttention", "added", **QKV, b=None, mask=None, bias=bias, attributes=HEADS, fed=all_fed),
        fused(
            "MultiHeadAttention", "keys-4d", x=SEQUENCE, k=drawn(2, 2, 7, 4), v=drawn(2, 2, 7, 4, seed=1),
            attributes=HEADS, fed=all_fed,
        ),
    ]  # fmt: skip


def _standard_attentions() -> list[Fused]:
    new: dict[str, Any] = {"domain": "", "fed": ("x", "k", "v")}
    boolean = drawn(5, 6, seed=3) > -0.5
    boolean[:, 0] = True
    hidden = boolean.copy()
    hidden[2] = False
    table = drawn(5, 4, seed=9)
    turning: dict[str, Any] = {"domain": "", "opset": 23, "fed": ("x", "c", "s", "p")}
    return [
        *(fused("Attention", f"onnx-{o}", **FOUR, **new, opset=o) for o in (23, 24)),
        fused("Attention", "onnx-causal", **FOUR, **new, opset=23, attributes={"is_causal": 1}),
        fused("Attention", "onnx-scale", **FOUR, **new, opset=23, attributes={"scale": 0.2}),
        fused("Attention", "onnx-softcap", **FOUR, **new, opset=23, attributes={"softcap": 1.5}),
        fused("Attention", "onnx-added", **FOUR, m=drawn(5, 6, seed=8), **new, opset=23),
        fused("Attention", "onnx-allowed", **FOUR, m=boolean, **new, opset=23),
        fused("Attention", "onnx-allowed-causal", **FOUR, m=boolean, **new, opset=23, attributes={"is_causal": 1}),
        fused("Attention", "onnx-3d-grouped", **GROUPED, **new, opset=23, attributes=COUNTS),
        fused("Attention", "onnx-4d-grouped", x=drawn(2, 4, 5, 8), k=drawn(2, 2, 6, 8), v=drawn(2, 2, 6, 8, seed=1),
              **new, opset=23),
        *further(),
        fused("RotaryEmbedding", "onnx-part", x=drawn(2, 3, 5, 8), c=drawn(2, 5, 2), s=drawn(2, 5, 2, seed=1),
              attributes={"rotary_embedding_dim": 4}, **turning),
        fused("RotaryEmbedding", "onnx", x=drawn(2, 3, 5, 8), c=drawn(2, 5, 4), s=drawn(2, 5, 4, seed=1), **turning),
        fused("RotaryEmbedding", "onnx-interleaved", x=drawn(2, 3, 5, 8), c=drawn(2, 5, 4), s=drawn(2, 5, 4, seed=1),
              attributes={"interleaved": 1}, **turning),
        fused("RotaryEmbedding", "onnx-3d", x=drawn(2, 5, 24), c=table, s=table[::-1].copy(),
              p=np.tile(np.arange(5), (2, 1)), attributes={"num_heads": 3}, domain="", opset=23, fed=("x", "p")),
    ]  # fmt: skip


COUNTS = {"q_num_heads": 4, "kv_num_heads": 2}
GROUPED = {"x": drawn(2, 5, 16), "k": drawn(2, 6, 8, seed=1), "v": drawn(2, 6, 8, seed=2)}


def further() -> list[Fused]:
    """ONNX's Attention with all that it may be handed; where ONNX Runtime has no kernel, ONNX's own evaluator judges."""
    past = {"pk": drawn(2, 4, 3, 8, seed=20), "pv": drawn(2, 4, 3, 3, seed=21)}
    own = {"pk": drawn(2, 2, 3, 4, seed=20), "pv": drawn(2, 2, 3, 4, seed=21)}
    fed, all_fed, four = ("x", "k", "v"), ("x", "k", "v", "pk", "pv"), ("y", "pk2", "pv2", "qk")
    hidden = drawn(5, 6, seed=8)
    hidden[1], hidden[2, 3:] = -np.inf, -np.inf
    square = {"x": drawn(2, 4, 5, 8), "k": drawn(2, 4, 5, 8, seed=1), "v": drawn(2, 4, 5, 3, seed=2)}

    def case(name: str, operands: Mapping[str, Any], feeds: Sequence[str] = fed, opset: int = 23, **rest: Any) -> Fused:
        attributes = rest.get("attributes", {})
        judge = None
        if name.startswith("short"):  # a mask shorter than the keys: ONNX Runtime has no kernel for it
            judge = partial(_evaluated, attributes, opset, rest.get("outputs", ("y",)), tuple(operands))
        return fused("Attention", f"onnx-{name}", **operands, fed=feeds, domain="", opset=opset, judge=judge, **rest)

    modes = [
        case(f"mode-{m}", {**FOUR, "m": hidden}, outputs=("y", "", "", "qk"),
             attributes={"qk_matmul_output_mode": m, "softcap": 1.2})
        for m in (0, 1, 3)
    ]  # fmt: skip
    masked = case(
        "mode-2",
        {**FOUR, "m": drawn(5, 6, seed=8)},
        outputs=("y", "", "", "qk"),
        attributes={"qk_matmul_output_mode": 2},
    )
    window = {"left_window_size": 2, "right_window_size": 1}
    lengths = np.array([3, 6])
    return [
        *modes,
        masked,
        case("past", {**FOUR, "m": None, **past}, all_fed, outputs=four[:3]),
        case("past-causal", {**square, "m": None, **past}, all_fed, attributes={"is_causal": 1}, outputs=four[:3]),
        case("past-grouped", {**GROUPED, "m": None, **own}, all_fed, outputs=four[:3], ranks=(3, 4, 4),
             attributes={**COUNTS, "is_causal": 1}),
        case("softcap-mask", {**FOUR, "m": drawn(5, 6, seed=8)}, attributes={"softcap": 0.7, "is_causal": 1}),
        case("row-of-nothing", {**FOUR, "m": hidden}),
        case("short-mask", {**FOUR, "m": drawn(5, 4, seed=8)}, opset=24),
        case("short-allowed", {**FOUR, "m": drawn(5, 4, seed=8) > -0.8}, opset=24),
        case("heads-mask", {**FOUR, "m": drawn(2, 1, 5, 6, seed=8)}, (*fed, "m")),
        case("lengths", {**FOUR, "m": None, "a": None, "b": None, "n": lengths}, (*fed, "n"), 24),
        case("lengths-causal", {**FOUR, "m": None, "a": None, "b": None, "n": lengths}, (*fed, "n"), 24,
             attributes={"is_causal": 1}),
        case("precise", FOUR, attributes={"softmax_precision": int(TensorProto.DOUBLE)}),
        case("window", FOUR, opset=25, attributes=window),
        case("window-causal", {**square, "m": None, **past}, all_fed, 25, attributes={**window, "is_causal": 1}, outputs=four[:3]),
    ]  # fmt: skip


def _evaluated(
    attributes: Mapping[str, Any], opset: int, outputs: Sequence[str], names: Sequence[str], **operands: Any
) -> list[Array]:
    """ONNX's own evaluator."""
    inputs = [n if operands[n] is not None else "" for n in names]
    node = helper.make_node("Attention", inputs, [n or f"left_{i}" for i, n in enumerate(outputs)], **attributes)
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(node, opsets={"": opset}).run(
            None, {n: a for n, a in operands.items() if a is not None}
        )
    return [np.asarray(y) for y in found]


def decoders() -> list[Fused]:
    """ONNX Runtime's for decoders, and what it packs into bits."""
    fed, turning = ("x", "k", "v", "l"), {"c": drawn(9, 8, seed=30), "s": drawn(9, 8, seed=31)}
    wide: dict[str, Any] = {"x": drawn(2, 5, 64), "k": drawn(2, 5, 32, seed=1), "v": drawn(2, 5, 32, seed=2)}
    short = {"c": drawn(9, 2, seed=30), "s": drawn(9, 2, seed=31)}
    own: dict[str, Any] = {"x": drawn(2, 5, 32), "k": drawn(2, 5, 16, seed=1), "v": drawn(2, 5, 16, seed=2)}
    none: dict[str, Any] = {"pk": None, "pv": None}
    whole = {"l": np.array([4, 4], np.int32), "t": np.array(5, np.int32)}
    counts = {"num_heads": 4, "kv_num_heads": 2}
    three = {"outputs": ("y", "pk2", "pv2"), "ranks": (3, 4, 4)}
    packed = {"x": drawn(2, 5, 64), "k": None, "v": None}
    angles = {"p": np.tile(np.arange(5), (2, 1)), "c": drawn(9, 4, seed=30), "s": drawn(9, 4, seed=31)}
    first = {**angles, "p": np.array([3])}

    def grouped(name: str, operands: Mapping[str, Any], **attributes: Any) -> Fused:
        inputs = {**operands, **none, **whole}
        inputs |= turning if "do_rotary" in attributes else {}
        return fused("GroupQueryAttention", name, **inputs, fed=fed, attributes={**counts, **attributes}, **three)

    rng = np.random.default_rng(5)
    bits = {b: rng.integers(0, 256, (6, 2, 16 * b // 8), np.uint8) for b in (4, 8)}
    scales, numbers = np.abs(drawn(6, 2, seed=6)) * 0.1 + 0.05, {"K": 24, "N": 6, "block_size": 16}
    return [
        grouped("", own),
        grouped("scale-softcap", own, scale=0.4, softcap=1.3),
        grouped("window", own, local_window_size=2),
        grouped("turned", wide, do_rotary=1),
        grouped("turned-interleaved", wide, do_rotary=1, rotary_interleaved=1),
        grouped("packed", packed),
        fused("RotaryEmbedding", x=drawn(2, 5, 24), **angles, fed=("x", "p")),
        fused("RotaryEmbedding", "first", x=drawn(2, 3, 5, 8), **first, fed=("x",)),
        fused("RotaryEmbedding", "interleaved", x=drawn(2, 3, 5, 8), **angles, fed=("x", "p"), attributes={"interleaved": 1}),
        fused("RotaryEmbedding", "part", x=drawn(2, 5, 24), p=angles["p"], **short, fed=("x", "p"),
              attributes={"num_heads": 3, "rotary_embedding_dim": 4}),
        fused("MatMulNBits", x=drawn(2, 24), w=bits[4], s=scales, attributes={**numbers, "bits": 4}),
        fused("MatMulNBits", "zeros", x=drawn(2, 3, 24), w=bits[4], s=scales,
              z=rng.integers(0, 256, (6, 1), np.uint8), attributes={**numbers, "bits": 4}),
        fused("MatMulNBits", "float-zeros", x=drawn(2, 24), w=bits[4], s=scales, z=drawn(6, 2) + 8.0, attributes={**numbers, "bits": 4}),
        fused("MatMulNBits", "bytes-bias", x=drawn(2, 24), w=bits[8], s=scales * 0.1, z=None, g=None, b=drawn(6),
              attributes={**numbers, "bits": 8}),
        *(fused("GatherBlockQuantized", name, d=table, x=np.array([[2, 0, 5], [1, 1, 3]]), s=drawn(6, 2, seed=7), **zeros, fed=("x",),
                attributes={"block_size": 16, "bits": b}) for name, b, table, zeros in (
            ("", 4, rng.integers(0, 256, (6, 12), np.uint8), {}),
            ("zeros", 4, rng.integers(0, 256, (6, 12), np.uint8), {"z": rng.integers(0, 256, (6, 1), np.uint8)}),
            ("bytes", 8, rng.integers(0, 256, (6, 24), np.uint8), {}))),
        fused("Attention", "past", x=SEQUENCE[:1], w=W3, b=B3, mask=None, past=drawn(2, 1, 2, 3, 4), attributes={**HEADS, "unidirectional": 1}, outputs=("y", "present"), ranks=(3, 5), batch=1),
        fused("MultiHeadAttention", "past", **QKV, b=None, m=None, a=None, pk=drawn(2, 2, 3, 4), pv=drawn(2, 2, 3, 4, seed=1),
              attributes=HEADS, fed=("x", "k", "v", "pk", "pv"), outputs=("y", "pk2", "pv2"), ranks=(3, 4, 4)),
    ]  # fmt: skip


def diffusion() -> list[Fused]:
    """What ONNX Runtime has for GPUs alone."""
    picture, gain, shift = drawn(2, 5, 6, 4), drawn(4, seed=40), drawn(4, seed=41)
    conv = {"x": picture, "w": drawn(3, 2, 3, 3, seed=42), "b": drawn(3, seed=43)}
    conv["w"] = drawn(6, 2, 3, 3, seed=42)
    conv["b"] = drawn(6, seed=43)
    strided = {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 2]}
    norm: dict[str, Any] = {"x": picture, "g": gain, "b": shift}
    groups = {"groups": 2, "epsilon": 1e-3, "activation": 1}
    image = {"x": picture.transpose(0, 3, 1, 2).copy(), "g": gain, "b": shift}
    skip = {**norm, "s": drawn(2, 4, seed=44), "c": drawn(4, seed=45)}
    return [
        fused("NhwcConv", **conv, attributes=strided, judge=partial(_nhwc, strided)),
        fused("NhwcFusedConv", **conv, z=drawn(2, 3, 6, 6, seed=46), fed=("x", "z"),
              attributes={**strided, "activation": "Relu"}, judge=partial(_nhwc, strided)),
        fused("GroupNorm", **norm, attributes=groups, judge=partial(_normed, groups)),
        fused("GroupNorm", "channels-first", **image, attributes={"groups": 4, "activation": 0, "channels_last": 0},
              judge=partial(_normed, {"groups": 4, "channels_last": 0})),
        fused("SkipGroupNorm", **skip, fed=("x", "s"), outputs=("y", "whole"), attributes=groups, judge=partial(_normed, groups)),
        fused("SkipGroupNorm", "whole", **{**skip, "s": drawn(2, 5, 6, 4, seed=44)}, fed=("x", "s"), attributes=groups,
              judge=partial(_normed, groups)),
        fused("BiasAdd", x=SEQUENCE, b=GAIN, s=drawn(2, 5, 8, seed=47), fed=("x", "s"), judge=lambda x, b, s: [x + b + s]),
        fused("BiasSplitGelu", x=SEQUENCE, b=GAIN, judge=_split_gelu),
        fused("GemmFastGelu", x=SEQUENCE, w=drawn(8, 3), b=drawn(3), judge=_gemm_gelu),
    ]  # fmt: skip


def _nhwc(geometry: Mapping[str, Any], x: Array, w: Array, b: Array, z: Array | None = None) -> list[Array]:
    """Window by window, channels last."""
    (top, left, bottom, right), (down, along) = geometry["pads"], geometry["strides"]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    each, out = x.shape[3] // geometry["group"], len(w) // geometry["group"]
    rows = range(0, padded.shape[1] - w.shape[2] + 1, down)
    columns = range(0, padded.shape[2] - w.shape[3] + 1, along)
    y = np.zeros((len(x), len(rows), len(columns), len(w)))
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            for m in range(len(w)):
                k = m // out * each
                patch = padded[:, r : r + w.shape[2], c : c + w.shape[3], k : k + each]
                y[:, i, j, m] = np.einsum("nhwc,chw->n", patch, w[m]) + b[m]
    return [y if z is None else np.maximum(y + z, 0.0)]


def _normed(
    attributes: Mapping[str, Any], x: Array, g: Array, b: Array, s: Array | None = None, c: Array | None = None
) -> list[Array]:
    last = attributes.get("channels_last", 1)
    whole = x.astype(np.float64) if last else x.transpose(0, 2, 3, 1).astype(np.float64)
    if s is not None:
        whole = whole + (s if s.ndim == 4 else s[:, None, None, :]) + (0.0 if c is None else c)
    parts = np.split(whole, attributes["groups"], axis=3)
    scaled = [
        (p - p.mean((1, 2, 3), keepdims=True))
        / np.sqrt(p.var((1, 2, 3), keepdims=True) + attributes.get("epsilon", 1e-5))
        for p in parts
    ]
    y = np.concatenate(scaled, axis=3) * g + b
    y = y / (1.0 + np.exp(-y)) if attributes.get("activation") else y
    return [y if last else y.transpose(0, 3, 1, 2), whole]


def _split_gelu(x: Array, b: Array) -> list[Array]:
    left, right = np.split((x + b).astype(np.float64), 2, axis=-1)
    return [left * right * 0.5 * (1.0 + np.vectorize(math.erf)(right / math.sqrt(2.0)))]


def _gemm_gelu(x: Array, w: Array, b: Array) -> list[Array]:
    y = x.astype(np.float64) @ w + b
    return [y * 0.5 * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * y**3)))]


def _others() -> list[Fused]:
    image = drawn(2, 3, 6, 6)
    conv: dict[str, Any] = {"x": image, "w": drawn(4, 3, 3, 3, scale=0.2), "b": drawn(4)}
    gemm: dict[str, Any] = {"x": drawn(3, 5), "w": drawn(5, 4), "c": drawn(4)}
    named = {
        "relu": {"activation": "Relu"},
        "leaky": {"activation": "LeakyRelu", "activation_params": [0.3]},
        "clip": {"activation": "Clip", "activation_params": [-0.5, 1.5]},
        "hard": {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
        "tanh": {"activation": "Tanh"},
        "sigmoid": {"activation": "Sigmoid"},
        "strided": {"activation": "Relu", "strides": [2, 2], "pads": [1, 1, 1, 1]},
    }
    skip: dict[str, Any] = {"x": SEQUENCE, "s": drawn(2, 5, 8, seed=12), "g": GAIN}
    both, four = ("x", "s"), ("y", "", "", "z")
    words = {
        "x": np.array([[1, 3, 2], [0, 2, 4]], np.int32), "segments": np.array([[0, 0, 1], [1, 1, 0]], np.int32),
        "w": drawn(6, 8), "p": drawn(9, 8, seed=1), "q": drawn(2, 8, seed=2), "g": GAIN, "b": SHIFT,
    }  # fmt: skip
    return [
        fused("Gelu", x=SEQUENCE),
        fused("BiasGelu", x=SEQUENCE, b=SHIFT),
        fused("FastGelu", x=SEQUENCE),
        fused("FastGelu", "bias", x=SEQUENCE, b=SHIFT),
        fused("QuickGelu", x=SEQUENCE),
        fused("QuickGelu", "alpha", x=SEQUENCE, attributes={"alpha": 1.0}),
        *(fused("FusedConv", n, **conv, attributes=a) for n, a in named.items()),
        fused("FusedConv", "no-bias", x=image, w=drawn(4, 3, 3, 3), attributes={"activation": "Relu"}),
        fused("FusedConv", "sum", **conv, z=drawn(2, 4, 4, 4), attributes={"activation": "Relu"}, fed=("x", "z")),
        fused("FusedGemm", **gemm, attributes={"activation": "Relu"}),
        fused("FusedGemm", "leaky", **gemm, attributes={
            "activation": "LeakyRelu", "activation_alpha": 0.2, "alpha": 0.5, "beta": 2.0}),
        fused("FusedMatMul", x=drawn(3, 5), w=drawn(5, 4)),
        fused("FusedMatMul", "alpha-transposed", x=drawn(2, 3, 5), w=drawn(4, 5), attributes={"alpha": 0.25, "transB": 1}),
        fused("FusedMatMul", "both", x=drawn(2, 3, 5), w=drawn(2, 4, 3), attributes={"transA": 1, "transB": 1}, fed=("x", "w")),
        fused("TransposeMatMul", x=drawn(3, 5), w=drawn(4, 5), attributes={"transB": 1}),
        fused("SkipLayerNormalization", **skip, fed=both),
        fused("SkipLayerNormalization", "whole", **skip, b=SHIFT, c=drawn(8, seed=13), fed=both, outputs=four),
        fused("SkipLayerNormalization", "opset-13", **skip, b=SHIFT, fed=both, opset=13),
        fused("SkipSimplifiedLayerNormalization", **skip, fed=both),
        fused("SkipSimplifiedLayerNormalization", "whole", **skip, c=drawn(8, seed=13), fed=both, outputs=four),
        fused("SimplifiedLayerNormalization", x=SEQUENCE, g=GAIN, domain="", attributes={"epsilon": 1e-3}),
        fused("SimplifiedLayerNormalization", "opset-14", x=SEQUENCE, g=GAIN, domain="", opset=14),
        fused("LayerNormalization", "opset-13", x=SEQUENCE, g=GAIN, b=SHIFT, domain="", opset=13),
        fused("GroupNormalization", x=drawn(2, 4, 3, 5), s=drawn(4), b=drawn(4), domain="", opset=21,
              attributes={"num_groups": 2}),
        fused("GroupNormalization", "opset-18", x=drawn(2, 6, 7), s=drawn(2), b=drawn(2), domain="", opset=18,
              attributes={"num_groups": 2, "epsilon": 1e-3}),
        fused("EmbedLayerNormalization", **words, fed=("x", "segments"), outputs=("y", "")),
    ]  # fmt: skip


TABLE = [*_attentions(), *_standard_attentions(), *decoders(), *diffusion(), *_others()]


def run(model: bytes, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds))))
