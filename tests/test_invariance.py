"""The same function gives the same explanation, however its file is written.

Pairs (plain file, other file) that compute the same outputs; relevance of both must agree, for every method. In float32
the two differ by the order of summation only: 2e-5 of the largest value, ten times what is seen; where a method divides by
pre-activations near zero (no stabiliser worth the name: LRP-0, ε = 1e-6, RAP), rounding is amplified: 1e-3.
In float64 (`backend="reference"`) the same pairs agree to 1e-9, which the looser float32 bounds could not show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, version_converter
from ready import ANYWHERE, ready
from test_convert import Array, drawn, model, residual_cnn

from onnx_explain import METHODS, Explainer, Explanation, Selector, lrp_composite
from onnx_explain.rules import lrp

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "classic"
TIGHT = 2e-5
DIVIDING = dict.fromkeys(
    ("lrp-zero", "lrp-epsilon", "lrp-gamma", "lrp-alpha2-beta1", "lrp-epsilon-gamma-box", "rap"), 0.001
)
EXACT = 1e-9
EXACT_METHODS = (
    "lrp-epsilon",
    "lrp-alpha2-beta1",
    "lrp-epsilon-plus-flat",
    "lrp-epsilon-gamma-box",
    "rap",
    "excitation-backprop",
)


@dataclass(frozen=True)
class Pair:
    """Two files of one function. `turn`: from the relevance of the other file's input to the plain one's."""

    plain: Callable[[], onnx.ModelProto]
    other: Callable[[], onnx.ModelProto]
    shape: tuple[int, ...]
    feed: Callable[[Array], Array] = lambda x: x
    turn: Callable[[Array], Array] = lambda r: r
    options: Mapping[str, Any] = field(default_factory=dict)


def g(
    body: str, sig: str = "float[N,2,8,8] x", out: str = "float[N,3] y", opset: int = 18, **weights: Any
) -> onnx.ModelProto:
    return model(f"g ({sig}) => ({out}) {{ {body} }}", opset=opset, **weights)


W, B, K = drawn(4, 2, 3, 3), drawn(4, seed=1), drawn(256, 3, seed=2) / 8
SCALE, SHIFT, MEAN, VAR = (
    np.abs(drawn(4, seed=3)) + 0.5,
    drawn(4, seed=4),
    drawn(4, seed=5),
    np.abs(drawn(4, seed=6)) + 0.5,
)
BN = {"s": SCALE, "h": SHIFT, "m": MEAN, "v": VAR}
C = (SCALE / np.sqrt(VAR.astype(np.float64) + 2.0**-7)).astype(np.float64)  # ε = 2^-7: the same in every precision
T = SHIFT - MEAN * C


def f32(array: Array) -> Array:
    return np.asarray(array, np.float32)


TAIL = "r = Relu(n)\n f = Flatten(r)\n y = MatMul(f, k)"
BATCH_NORM = "n = BatchNormalization<epsilon=0.0078125>(c, s, h, m, v)\n"


def conv_bn(bias: bool) -> onnx.ModelProto:
    weights = {"w": W, "k": K, **BN} | ({"b": B} if bias else {})
    return g(f"c = Conv<pads=[1,1,1,1]>(x, w{', b' if bias else ''})\n {BATCH_NORM} {TAIL}", **weights)


def conv_folded(bias: bool) -> onnx.ModelProto:
    b = (B if bias else 0) * C + T
    return g(f"n = Conv<pads=[1,1,1,1]>(x, w, b)\n {TAIL}", w=f32(W * C.reshape(-1, 1, 1, 1)), b=f32(b), k=K)


WT = drawn(2, 4, 3, 3, seed=7)


def transposed_bn() -> onnx.ModelProto:
    return g(f"c = ConvTranspose<pads=[1,1,1,1]>(x, w, b)\n {BATCH_NORM} {TAIL}", w=WT, b=B, k=K, **BN)


def transposed_folded() -> onnx.ModelProto:
    return g(
        f"n = ConvTranspose<pads=[1,1,1,1]>(x, w, b)\n {TAIL}",
        w=f32(WT * C.reshape(1, -1, 1, 1)),
        b=f32(B * C + T),
        k=K,
    )


GROUPED = drawn(4, 1, 3, 3, seed=8)


def grouped(folded: bool) -> onnx.ModelProto:
    if folded:
        weights = {"w": f32(GROUPED * C.reshape(-1, 1, 1, 1)), "b": f32(B * C + T), "k": K}
        return g(f"n = Conv<pads=[1,1,1,1], group=2>(x, w, b)\n {TAIL}", **weights)
    return g(f"c = Conv<pads=[1,1,1,1], group=2>(x, w, b)\n {BATCH_NORM} {TAIL}", w=GROUPED, b=B, k=K, **BN)


DENSE_W, DENSE_K = drawn(6, 4, seed=9), drawn(4, 3, seed=10)
DENSE_TAIL = "r = Relu(n)\n y = MatMul(r, k)"


def dense(kind: str) -> onnx.ModelProto:
    """Gemm, transposed Gemm or MatMul + Add with BatchNormalization behind it, or all of it folded."""
    bodies = {
        "gemm": (f"c = Gemm(x, w, b)\n {BATCH_NORM}", {"w": DENSE_W, "b": B, **BN}),
        "gemm-transposed": (f"c = Gemm<transB=1>(x, w, b)\n {BATCH_NORM}", {"w": DENSE_W.T.copy(), "b": B, **BN}),
        "matmul-add": (f"p = MatMul(x, w)\n c = Add(p, b)\n {BATCH_NORM}", {"w": DENSE_W, "b": B, **BN}),
        "add-matmul": (f"p = MatMul(x, w)\n c = Add(b, p)\n {BATCH_NORM}", {"w": DENSE_W, "b": B, **BN}),
        "folded": ("n = Gemm(x, w, b)\n", {"w": f32(DENSE_W * C), "b": f32(B * C + T)}),
        "folded-matmul": ("p = MatMul(x, w)\n n = Add(p, b)\n", {"w": f32(DENSE_W * C), "b": f32(B * C + T)}),
    }
    body, weights = bodies[kind]
    return g(body + DENSE_TAIL, "float[N,6] x", k=DENSE_K, **weights)


PLAIN = "c = Conv<pads=[1,1,1,1]>(x, w, b)\n n = Relu(c)\n"


def plain(
    tail: str = "f = Flatten(n)\n y = MatMul(f, k)",
    head: str = PLAIN,
    *,
    keep: tuple[str, ...] = ("w", "b", "k"),
    **more: Any,
) -> onnx.ModelProto:
    weights = {n: a for n, a in {"w": W, "b": B, "k": K}.items() if n in keep}
    return g(head + tail, **weights, **more)


def weights_as(kind: str) -> onnx.ModelProto:
    """The plain network with its weights as Constant nodes, behind Identity, or made by arithmetic."""
    proto = plain()
    made: list[onnx.NodeProto] = []
    for tensor in list(proto.graph.initializer):
        name = tensor.name
        proto.graph.initializer.remove(tensor)
        if kind == "constant":
            made.append(helper.make_node("Constant", [], [name], value=tensor))
        elif kind == "identity":
            tensor.name = f"{name}_stored"
            proto.graph.initializer.append(tensor)
            made += [
                helper.make_node("Identity", [tensor.name], [f"{name}_a"]),
                helper.make_node("Identity", [f"{name}_a"], [name]),
            ]
        elif kind == "listed as inputs":
            proto.graph.initializer.append(tensor)
            proto.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        elif kind == "transposed twice":
            stored = numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), f"{name}_stored")
            proto.graph.initializer.append(stored)
            made.append(helper.make_node("Transpose", [stored.name], [name]))
        elif kind == "reshaped":
            array = numpy_helper.to_array(tensor)
            proto.graph.initializer.append(numpy_helper.from_array(array.reshape(-1), f"{name}_flat"))
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array.shape, np.int64), f"{name}_shape"))
            made.append(helper.make_node("Reshape", [f"{name}_flat", f"{name}_shape"], [name]))
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def constant_weights(as_node: bool) -> onnx.ModelProto:
    """All weights of the convolution equal; by ConstantOfShape or stored."""
    if not as_node:
        return g(PLAIN + "f = Flatten(n)\n y = MatMul(f, k)", w=np.full((4, 2, 3, 3), 0.125, np.float32), b=B, k=K)
    proto = g(
        "w = ConstantOfShape(ws)\n" + PLAIN + "f = Flatten(n)\n y = MatMul(f, k)", ws=np.array([4, 2, 3, 3]), b=B, k=K
    )
    value = numpy_helper.from_array(np.asarray([0.125], np.float32), "value")
    proto.graph.node[0].attribute.append(helper.make_attribute("value", value))
    return proto


def shape_arithmetic() -> onnx.ModelProto:
    """What exporters write for x.view(x.size(0), -1)."""
    tail = """s = Shape(n)
              i = Constant<value=int64 {0}>()
              e = Gather<axis=0>(s, i)
              a = Constant<value=int64[1] {0}>()
              u = Unsqueeze(e, a)
              t = Concat<axis=0>(u, rest)
              f = Reshape(n, t)
              y = MatMul(f, k)"""
    return plain(tail, rest=np.array([-1]))


def flattened_by(kind: str) -> onnx.ModelProto:
    tails = {
        "reshape": ("f = Reshape(n, s)\n y = MatMul(f, k)", {"s": np.array([0, 256])}),
        "reshape-wild": ("f = Reshape(n, s)\n y = MatMul(f, k)", {"s": np.array([-1, 256])}),
        "conv": ("q = Conv(n, kc)\n f = Flatten(q)\n y = Identity(f)", {"kc": K.T.reshape(3, 4, 8, 8).copy()}),
        "gemm": ("f = Flatten(n)\n y = Gemm<transB=1>(f, kt)", {"kt": K.T.copy()}),
    }
    tail, more = tails[kind]
    return plain(tail, keep=("w", "b") if "kc" in more or "kt" in more else ("w", "b", "k"), **more)


def softmaxed(kind: str) -> onnx.ModelProto:
    tails = {
        "softmax": "f = Flatten(n)\n l = MatMul(f, k)\n y = Softmax<axis=1>(l)",
        "log-softmax": "f = Flatten(n)\n l = MatMul(f, k)\n y = LogSoftmax<axis=1>(l)",
        "softmax-identity": "f = Flatten(n)\n l = MatMul(f, k)\n p = Softmax<axis=1>(l)\n q = Identity(p)\n y = Dropout(q)",
        "sigmoid": "f = Flatten(n)\n l = MatMul(f, k)\n y = Sigmoid(l)",
    }
    return plain(tails[kind])


def nhwc() -> onnx.ModelProto:
    """As tf2onnx writes it: NHWC in, Transposes around every convolution, NHWC flattening."""
    body = """t = Transpose<perm=[0,3,1,2]>(x)
              c = Conv<pads=[1,1,1,1]>(t, w, b)
              u = Transpose<perm=[0,2,3,1]>(c)
              r = Relu(u)
              v = Transpose<perm=[0,3,1,2]>(r)
              f = Flatten(v)
              y = MatMul(f, k)"""
    return g(body, "float[N,8,8,2] x", w=W, b=B, k=K)


def fixed(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return proto


def silent() -> onnx.ModelProto:
    """Nodes that change nothing: Identity, Dropout, Cast to the same type, an in-place-like name, Squeeze and Unsqueeze."""
    head = """x_ = Identity(x)
              x__ = Dropout(x_)
              c = Conv<pads=[1,1,1,1]>(x__, w, b)
              c.1 = Cast<to=1>(c)
              n = Relu(c.1)
              """.replace("c.1", "c_1")
    return plain("u = Unsqueeze(n, a)\n q = Squeeze(u, a)\n f = Flatten(q)\n y = MatMul(f, k)", head, a=np.array([2]))


def padded() -> onnx.ModelProto:
    """The padding in a node of its own."""
    return plain(head="p = Pad(x, pads)\n c = Conv(p, w, b)\n n = Relu(c)\n", pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]))


def auto_padded() -> onnx.ModelProto:
    return plain(head='c = Conv<auto_pad="SAME_UPPER">(x, w, b)\n n = Relu(c)\n')


BRANCH_W = drawn(2, 2, 3, 3, seed=11)
BRANCH_K = drawn(128, 3, seed=12)


def reused(shared: bool) -> onnx.ModelProto:
    """One Relu value read three times and one Conv weight used twice, or copies of each."""
    sources = ("r", "r", "r") if shared else ("r1", "r2", "r3")
    relus = "r = Relu(c)" if shared else "r1 = Relu(c)\n r2 = Relu(c)\n r3 = Relu(c)"
    second = "w" if shared else "w2"
    body = f"""c = Conv<pads=[1,1,1,1]>(x, w)
               {relus}
               d = Conv<pads=[1,1,1,1]>({sources[0]}, {second})
               e = Relu(d)
               a = Add(e, {sources[1]})
               q = Add(a, {sources[2]})
               f = Flatten(q)
               y = MatMul(f, k)"""
    weights = {"w": BRANCH_W, "k": BRANCH_K} | ({} if shared else {"w2": BRANCH_W})
    return g(body, **weights)


def joined(kind: str) -> onnx.ModelProto:
    """Branch and join: two convolutions concatenated, or one with the channels of both; both orders of a sum."""
    bodies = {
        "concat": "p = Conv<pads=[1,1,1,1]>(x, wa)\n q = Conv<pads=[1,1,1,1]>(x, wb)\n c = Concat<axis=1>(p, q)\n n = Relu(c)\n",
        "one": "c = Conv<pads=[1,1,1,1]>(x, w)\n n = Relu(c)\n",
        "split": "c = Conv<pads=[1,1,1,1]>(x, w)\n p, q = Split<axis=1, num_outputs=2>(c)\n u = Relu(p)\n v = Relu(q)\n n = Concat<axis=1>(u, v)\n",
    }
    weights = {"wa": W[:2].copy(), "wb": W[2:].copy()} if kind == "concat" else {"w": W}
    return g(bodies[kind] + "f = Flatten(n)\n y = MatMul(f, k)", k=K, **weights)


def summed(kind: str) -> onnx.ModelProto:
    sums = {"ab": "c = Add(p, q)", "ba": "c = Add(q, p)", "sum": "c = Sum(p, q)", "neg": "o = Neg(q)\n c = Sub(p, o)"}
    body = f"p = Conv<pads=[1,1,1,1]>(x, wa)\n q = Conv<pads=[1,1,1,1]>(x, wb)\n {sums[kind]}\n n = Relu(c)\n f = Flatten(n)\n y = MatMul(f, k)"
    return g(body, wa=W, wb=drawn(4, 2, 3, 3, seed=13), k=K)


def pooled(kind: str) -> onnx.ModelProto:
    """Global average pooling in four ways of writing."""
    tails = {
        "global": ("p = GlobalAveragePool(n)\n f = Flatten(p)\n y = MatMul(f, k)", {}),
        "mean": ("f = ReduceMean<keepdims=0>(n, a)\n y = MatMul(f, k)", {"a": np.array([2, 3])}),
        "mean-negative": (
            "p = ReduceMean<keepdims=1>(n, a)\n f = Flatten(p)\n y = MatMul(f, k)",
            {"a": np.array([-1, -2])},
        ),
        "average": ("p = AveragePool<kernel_shape=[8,8]>(n)\n f = Flatten(p)\n y = MatMul(f, k)", {}),
    }
    tail, more = tails[kind]
    return g(PLAIN + tail, w=W, b=B, k=drawn(4, 3, seed=14), **more)


SHAPE = (2, 8, 8)
PAIRS: dict[str, Pair] = {
    "Conv + BatchNormalization": Pair(lambda: conv_folded(True), lambda: conv_bn(True), SHAPE),
    "Conv without bias + BatchNormalization": Pair(lambda: conv_folded(False), lambda: conv_bn(False), SHAPE),
    "grouped Conv + BatchNormalization": Pair(lambda: grouped(True), lambda: grouped(False), SHAPE),
    "ConvTranspose + BatchNormalization": Pair(transposed_folded, transposed_bn, SHAPE),
    **{
        f"{k} + BatchNormalization": Pair(lambda: dense("folded"), lambda k=k: dense(k), (6,))
        for k in ("gemm", "gemm-transposed", "matmul-add", "add-matmul")
    },  # type: ignore[misc]
    "Gemm and MatMul + Add": Pair(lambda: dense("folded"), lambda: dense("folded-matmul"), (6,)),
    **{
        f"weights as {k}": Pair(plain, lambda k=k: weights_as(k), SHAPE)
        for k in ("constant", "identity", "listed as inputs", "transposed twice", "reshaped")
    },  # type: ignore[misc]
    "weights by ConstantOfShape": Pair(lambda: constant_weights(False), lambda: constant_weights(True), SHAPE),
    "Flatten and shape arithmetic": Pair(plain, shape_arithmetic, SHAPE),
    **{
        f"Flatten and {k}": Pair(plain, lambda k=k: flattened_by(k), SHAPE) for k in ("reshape", "reshape-wild", "gemm")
    },  # type: ignore[misc]
    **{
        f"a {k} head": Pair(plain, lambda k=k: softmaxed(k), SHAPE)
        for k in ("softmax", "log-softmax", "softmax-identity", "sigmoid")
    },  # type: ignore[misc]
    "NCHW and NHWC": Pair(plain, nhwc, SHAPE, lambda x: x.transpose(0, 2, 3, 1), lambda r: r.transpose(0, 3, 1, 2)),
    "dynamic and fixed batch": Pair(plain, lambda: fixed(plain(), 3), SHAPE),
    "dynamic batch and batch 1": Pair(plain, lambda: fixed(plain(), 1), SHAPE),
    "nodes that change nothing": Pair(plain, silent, SHAPE),
    "pads and Pad": Pair(plain, padded, SHAPE),
    "pads and auto_pad": Pair(plain, auto_padded, SHAPE),
    "a reused Relu and a shared Conv weight": Pair(lambda: reused(False), lambda: reused(True), SHAPE),
    "branch and join by Concat": Pair(lambda: joined("one"), lambda: joined("concat"), SHAPE),
    "branch and join by Split": Pair(lambda: joined("one"), lambda: joined("split"), SHAPE),
    **{f"a sum written as {k}": Pair(lambda: summed("ab"), lambda k=k: summed(k), SHAPE) for k in ("ba", "sum", "neg")},  # type: ignore[misc]
    **{
        f"global pooling written as {k}": Pair(lambda: pooled("global"), lambda k=k: pooled(k), SHAPE)
        for k in ("mean", "mean-negative", "average")
    },  # type: ignore[misc]
}

# Pads in a node of its own are a picture of their own, whose border takes what zᴮ, flat and w² give to entries that are
# zero; the first layer then shares with the border. That is the same in every library, and counted as absorbed.
BORDER = {
    "lrp-flat",
    "lrp-w-square",
    "lrp-epsilon-plus-flat",
    "lrp-epsilon-alpha2-beta1-flat",
    "lrp-epsilon-gamma-box",
    "deep-taylor",
    "rap",
    "rsp",
}
# Both rectify what arrives at a Relu: once behind the sum of three readers, or three times before it.
RECTIFYING = {"guided-backprop", "deconvnet", "gnl-gradient", "gnl-ig"}
EXCEPTED = {
    "pads and Pad": BORDER,
    "a reused Relu and a shared Conv weight": RECTIFYING,
    "a sigmoid head": {"rise"},
}
LAYERED = {name for name, m in METHODS.items() if "layer" in m.options}
WHY = {
    "a sigmoid head": "RISE watches the probability: a sigmoid is one function of the logits, a softmax another",
    "pads and Pad": "the rule gives relevance to zeros, and the zeros of a Pad node are an operand of the convolution",
    "a reused Relu and a shared Conv weight": "rectifying a sum is not summing what was rectified: the method, not the file",
}


def samples(pair: Pair) -> Array:
    return drawn(3, *pair.shape, seed=20)


def explained(make: Callable[[], onnx.ModelProto], method: str, x: Array, **options: Any) -> Explanation:
    needed = ready(method, make(), x) if method in METHODS else {}
    return Explainer(make(), method, threads=1, **needed, **options)(x, target=[0, 2, 1])


def difference(pair: Pair, method: str, **options: Any) -> tuple[float, Explanation, Explanation]:
    x = samples(pair)
    one = explained(pair.plain, method, x, **options)
    other = explained(pair.other, method, pair.feed(x), **options)
    wanted, found = one.relevance["x"], pair.turn(other.relevance["x"])
    assert wanted.shape == found.shape
    per_sample = np.abs(wanted - found).reshape(3, -1).max(1) / np.maximum(np.abs(wanted).reshape(3, -1).max(1), 1e-30)
    return float(per_sample.max()), one, other


@pytest.mark.parametrize("label", PAIRS)
@pytest.mark.parametrize("method", ANYWHERE)
def test_one_function_has_one_explanation(method: str, label: str) -> None:
    if method in EXCEPTED.get(label, ()):
        pytest.skip(WHY[label])
    if len(PAIRS[label].shape) == 1 and method in LAYERED:
        pytest.skip("the method looks at a layer with positions, and this network has none")
    gap, one, other = difference(PAIRS[label], method)
    assert gap <= DIVIDING.get(method, TIGHT)
    scale = np.maximum(np.abs(one.target.score), 1e-3)
    np.testing.assert_array_less(np.abs(one.target.score - other.target.score), 1e-4 * scale)
    if METHODS[method].conserves:
        np.testing.assert_array_less(
            np.abs(one.absorbed - other.absorbed), 5e-3 * np.maximum(np.abs(one.absorbed), scale)
        )


@pytest.mark.parametrize("label", PAIRS)
@pytest.mark.parametrize("method", EXACT_METHODS)
def test_one_function_has_one_explanation_in_float64(method: str, label: str) -> None:
    """Weights that were folded in float32 carry its rounding; those pairs are held to float32's bound instead."""
    if method in EXCEPTED.get(label, ()):
        pytest.skip(WHY[label])
    gap, _, _ = difference(PAIRS[label], method, backend="reference")
    rounded = "BatchNormalization" in label
    assert gap <= (DIVIDING.get(method, TIGHT) if rounded else EXACT)


def test_the_explained_tensor_is_named() -> None:
    for kind in ("softmax", "log-softmax", "sigmoid"):
        explainer = Explainer(softmaxed(kind), "lrp-epsilon")
        x = samples(PAIRS["a softmax head"])
        assert explainer(x).target.tensor == "l"
        np.testing.assert_allclose(
            explainer(x, target=1).target.score, Explainer(plain(), "lrp-epsilon")(x).outputs["y"][:, 1], rtol=1e-5
        )
        assert Explainer(softmaxed(kind), "gradient", logits=False)(x).target.tensor == "y"


# ------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("method", ANYWHERE)
def test_a_sample_is_explained_alike_alone_and_in_company(method: str) -> None:
    x = drawn(8, 3, 16, 16, seed=21)
    explainer = Explainer(residual_cnn(), method, threads=1, **ready(method, residual_cnn(), x))
    together = explainer(x)
    for n in range(8):
        alone = explainer(x[n : n + 1])
        scale = np.abs(alone.relevance["picture"]).max()
        np.testing.assert_allclose(
            together.relevance["picture"][n : n + 1],
            alone.relevance["picture"],
            rtol=0,
            atol=DIVIDING.get(method, TIGHT) * scale,
        )
        assert together.target.index[n] == alone.target.index[0]


# ------------------------------------------------------------------------------------------- operator sets


def squeezed(opset: int) -> onnx.ModelProto:
    """Operators whose form changed: Squeeze, Unsqueeze, ReduceMean/Sum, Pad, Clip, Slice, Split, Dropout, Softmax, Resize."""
    new = opset >= 13
    axes = {"a": np.array([2, 3]), "u": np.array([1])} if new else {}
    mean = "m = ReduceMean<axes=[2,3], keepdims=1>(q)" if opset < 18 else "m = ReduceMean<keepdims=1>(q, a)"
    squeeze = "z = Squeeze(m, a)" if new else "z = Squeeze<axes=[2,3]>(m)"
    clip = "r = Clip(c, lo, hi)" if opset >= 11 else "r = Clip<min=0.0, max=6.0>(c)"
    drop = "d, keep = Dropout(r)"
    split = {
        True: "s1, s2 = Split<axis=1>(d, parts)" if opset >= 13 else "s1, s2 = Split<axis=1, split=[2,2]>(d)",
    }[True]
    body = f"""c = Conv<pads=[1,1,1,1]>(x, w, b)
               {clip}
               {drop}
               {split}
               q = Concat<axis=1>(s2, s1)
               {mean}
               {squeeze}
               l = Gemm(z, k, o)
               y = Softmax<axis=1>(l)"""
    bounds = {"lo": np.float32(0), "hi": np.float32(6)} if opset >= 11 else {}
    parts = {"parts": np.array([2, 2])} if new else {}
    used = {"a": axes["a"]} if new else {}
    return g(body, opset=opset, w=W, b=B, k=drawn(4, 3, seed=14), o=drawn(3, seed=15), **used, **bounds, **parts)


OPSETS = (9, 10, 11, 13, 16, 17, 18, 20, 21)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("method", ANYWHERE)
def test_every_operator_set_says_the_same(method: str, opset: int) -> None:
    pair = Pair(lambda: squeezed(18), lambda: squeezed(opset), SHAPE)
    gap, _, other = difference(pair, method)
    assert gap <= DIVIDING.get(method, TIGHT)
    assert other.target.tensor == "l"


@pytest.mark.parametrize("opset", [13, 17, 20, 21])
def test_a_file_brought_up_by_onnx_itself_says_the_same(opset: int) -> None:
    for method in ("lrp-epsilon", "lrp-epsilon-plus", "rap", "gradient"):
        pair = Pair(
            lambda: plain(),
            lambda: version_converter.convert_version(
                g(PLAIN + "f = Flatten(n)\n y = MatMul(f, k)", opset=11, w=W, b=B, k=K), opset
            ),
            SHAPE,
        )
        gap, _, _ = difference(pair, method)
        assert gap <= DIVIDING.get(method, TIGHT), method


# ------------------------------------------------------------------------------------------- the peers' network


@pytest.mark.parametrize("method", ANYWHERE)
def test_the_folded_golden_network_says_the_same(method: str) -> None:
    if not (SHARED / "bnnet.onnx").exists():
        pytest.skip("../shared/golden/classic is not here")
    x = drawn(2, 3, 32, 32, seed=22)
    files = [SHARED / name for name in ("bnnet.onnx", "bnnet_folded.onnx")]
    explainers = [Explainer(file, method, threads=1, **ready(method, file, x)) for file in files]
    one, other = (next(iter(e(x).relevance.values())) for e in explainers)
    np.testing.assert_allclose(one, other, rtol=0, atol=DIVIDING.get(method, TIGHT) * np.abs(one).max())


def test_a_selector_by_name_means_the_node_of_the_file() -> None:
    """Names survive the canonical form, folded BatchNormalization or not."""
    rule = lrp_composite(
        (Selector(name="stem"), lrp.flat(), "flat"),
        (
            Selector(role=__import__("onnx_explain.operators.roles", fromlist=["Linear"]).Linear, kind="weighted"),
            lrp.epsilon(),
            "ε",
        ),
    )
    rows, missing = Explainer(residual_cnn(), rule).plan()
    assert missing == []
    assert {r.name: r.rule for r in rows}["stem"] == "flat"


# What comes back to a Relu may not be zero where the Relu is: its output must not stand in for its input there.
SHIFTED = (
    "c = MatMul(x, w)\n r = {gate}(c)\n n = BatchNormalization<epsilon=0.0078125>(r, s, h, m, v)\n y = MatMul(n, k)"
)
PARTED = "c = MatMul(x, w)\n r = {gate}(c)\n a, b = Split<axis=1,num_outputs=2>(r)\n p = MatMul(a, q)\n o = MatMul(b, q)\n y = Sub(p, o)"
HALVES = lrp_composite(
    (Selector(name="even"), lrp.flat(), "flat"), (Selector(kind="weighted"), lrp.epsilon(), "ε"), batch_norm="pass"
)


@pytest.mark.parametrize("backend", ["onnx", "reference"])
@pytest.mark.parametrize(
    ("body", "method", "options"),
    [
        (SHIFTED, "lrp-epsilon", {"batch_norm": "pass"}),
        (SHIFTED, "lrp-gamma", {"batch_norm": "pass"}),
        (SHIFTED, "attn-lrp", {"batch_norm": "pass"}),
        (SHIFTED, "rap", {}),
        (PARTED, HALVES, {}),
    ],
)
def test_a_rectifier_written_as_a_leak_of_nothing_changes_nothing(
    body: str, method: Any, options: dict[str, Any], backend: Any
) -> None:
    def relevance(gate: str) -> Array:
        made = g(
            body.format(gate=gate), "float[N,6] x", w=drawn(6, 4), k=drawn(4, 3, seed=2), q=drawn(2, 3, seed=3), **BN
        )
        made.graph.node[-2].name = "even"
        return Explainer(made, method, backend=backend, **options)(drawn(3, 6, seed=9), target=1).relevance["x"]

    plain, other = relevance("Relu"), relevance("LeakyRelu<alpha=0.0>")
    assert np.abs(plain - other).max() <= TIGHT * np.abs(other).max()


LONE = "r = Relu(n)\n o = BatchNormalization<epsilon=0.0078125>(r, s, h, m, v)\n f = Flatten(o)\n y = MatMul(f, k)"


@pytest.mark.parametrize("method", ["lrp-epsilon", "lrp-epsilon-plus", "lrp-gamma", "attn-lrp"])
def test_fold_or_pass_folds_what_folds_and_sees_through_the_rest(method: str) -> None:
    two = g(f"c = Conv<pads=[1,1,1,1]>(x, w, b)\n {BATCH_NORM} {LONE}", w=W, b=B, k=K, **BN)
    one = g(
        f"n = Conv<pads=[1,1,1,1]>(x, w, b)\n {LONE}", w=f32(W * C[:, None, None, None]), b=f32(B * C + T), k=K, **BN
    )
    x = drawn(2, 2, 8, 8, seed=11)

    def relevance(file: onnx.ModelProto, batch_norm: str) -> Array:
        return Explainer(file, method, backend="reference", batch_norm=batch_norm)(x, target=1).relevance["x"]

    folded = relevance(two, "fold-or-pass")
    scale = np.abs(folded).max()
    assert np.abs(folded - relevance(one, "pass")).max() <= TIGHT * scale, "the weights folded by hand are float32"
    assert np.abs(folded - relevance(two, "fold")).max() > 1e-3 * scale
    assert np.abs(folded - relevance(two, "pass")).max() > 1e-3 * scale
