"""Small models that keep their samples apart and carry them on other axes than the first: transposed, merged, in between.

What must hold of them is not said here. Every model is deterministic; weights are drawn once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from test_convert import drawn, model

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """A model whose samples do not touch. `inputs`: shape per input, None where the samples are; `fixed`: the batch is written
    into the file. `target`: element [1] of a sample in a model whose output has its samples first, else text with ``{i}`` for
    the sample. `opset`. `pictures`: has positions that a map can be laid over.
    """

    name: str
    body: str
    inputs: Mapping[str, tuple[int | None, ...]]
    output: tuple[int | str, ...]
    weights: Mapping[str, Array] = field(default_factory=dict)
    fixed: int | None = None
    target: str | None = None
    opset: int = 18

    def __str__(self) -> str:
        return self.name

    def build(self) -> onnx.ModelProto:
        """The model."""
        size = "N" if self.fixed is None else str(self.fixed)
        takes = ", ".join(
            f"float[{','.join(size if d is None else str(d) for d in shape)}] {name}"
            for name, shape in self.inputs.items()
        )
        gives = ",".join(size if d == "N" else str(d) for d in self.output)
        text = f"g ({takes}) => (float[{gives}] y) {{ {self.body} }}"
        return model(text, opset=self.opset, **self.weights)

    def samples(self, count: int, seed: int) -> dict[str, Array]:
        """So many samples of every input, along that input's own axis."""
        count = self.fixed or count
        return {
            name: drawn(*(count if d is None else d for d in shape), seed=seed * 100 + i)
            for i, (name, shape) in enumerate(self.inputs.items())
        }

    def axis(self, name: str) -> int:
        """The axis of an input that counts the samples."""
        return self.inputs[name].index(None)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def w(*shape: int, seed: int = 0) -> Array:
    return np.asarray(drawn(*shape, seed=seed + 11) / np.sqrt(max(shape[-2] if len(shape) > 1 else 4, 1)), np.float32)


def k(*shape: int, seed: int = 0) -> Array:
    return np.asarray(drawn(*shape, seed=seed + 31) / np.sqrt(np.prod(shape[1:])), np.float32)


def attention(tokens: int, width: int, heads: int, *, merged: bool = True) -> tuple[str, dict[str, Array]]:
    """Self-attention as torch's `multi_head_attention_forward` exports it, of h [T, N, C] into a [T, N, C]."""
    d = width // heads
    flat = (
        "hc = Reshape(ctx3, tn_c)\n om = MatMul(hc, wo)\n a = Reshape(om, t_n_c)"
        if merged
        else ("hc = Reshape(ctx3, t_n_c)\n a = MatMul(hc, wo)")
    )
    body = f"""
        q = MatMul(h, wq)
        kk = MatMul(h, wk)
        v = MatMul(h, wv)
        q2 = Reshape(q, t_nh_d)
        k2 = Reshape(kk, t_nh_d)
        v2 = Reshape(v, t_nh_d)
        q3 = Transpose<perm=[1,0,2]>(q2)
        k3 = Transpose<perm=[1,2,0]>(k2)
        v3 = Transpose<perm=[1,0,2]>(v2)
        s = MatMul(q3, k3)
        p = Softmax<axis=-1>(s)
        ctx = MatMul(p, v3)
        ctx2 = Transpose<perm=[1,0,2]>(ctx)
        ctx3 = Identity(ctx2)
        {flat}
    """
    weights = {f"w{n}": w(width, width, seed=i) for i, n in enumerate("qkvo")}
    shapes = {"t_nh_d": ints(tokens, -1, d), "tn_c": ints(-1, width), "t_n_c": ints(tokens, -1, width)}
    return body, {**weights, **(shapes if merged else {n: s for n, s in shapes.items() if n != "tn_c"})}


def _plain() -> Iterator[Layout]:
    yield Layout(
        "dense",
        "h0 = Gemm(x, w1, b1)\n h = Relu(h0)\n y = Gemm(h, w2)",
        {"x": (None, 5)},
        ("N", 3),
        {"w1": w(5, 6), "b1": k(6), "w2": w(6, 3, seed=1)},
    )
    yield Layout(
        "pictures",
        "c = Conv<pads=[1,1,1,1]>(x, k1, b1)\n r = Relu(c)\n c2 = Conv(r, k2)\n r2 = Relu(c2)\n g = GlobalAveragePool(r2)\n"
        "f = Flatten(g)\n y = Gemm(f, w2)",
        {"x": (None, 2, 5, 5)},
        ("N", 3),
        {"k1": k(4, 2, 3, 3), "b1": k(4), "k2": k(5, 4, 3, 3, seed=2), "w2": w(5, 3, seed=1)},
    )
    yield Layout(
        "channels last",
        "t = Transpose<perm=[0,3,1,2]>(x)\n c = Conv(t, k1)\n u = Transpose<perm=[0,2,3,1]>(c)\n r = Relu(u)\n m = MatMul(r, w1)\n"
        "r2 = Relu(m)\n s = ReduceMean<keepdims=0>(r2, axes)\n y = MatMul(s, w2)",
        {"x": (None, 5, 5, 2)},
        ("N", 3),
        {"k1": k(4, 2, 3, 3), "w1": w(4, 6), "axes": ints(1, 2), "w2": w(6, 3, seed=1)},
    )
    yield Layout(
        "group normalisation by reshape",
        "c = Conv(x, k1)\n a = Reshape(c, groups)\n i = InstanceNormalization(a, one, none)\n b = Reshape(i, back)\n r = Relu(b)\n"
        "f = Flatten(r)\n y = Gemm(f, w2)",
        {"x": (None, 2, 5, 5)},
        ("N", 3),
        {
            "k1": k(4, 2, 3, 3),
            "groups": ints(0, 2, -1),
            "one": np.ones(2, np.float32),
            "none": np.zeros(2, np.float32),
            "back": ints(0, 4, 3, 3),
            "w2": w(36, 3, seed=1),
        },
    )
    yield Layout(
        "boxes",
        "c = Conv<pads=[1,1,1,1]>(x, k1)\n r = Relu(c)\n b = Conv(r, k2)\n t = Transpose<perm=[0,2,3,1]>(b)\n y = Reshape(t, rows)",
        {"x": (None, 2, 4, 4)},
        ("N", 32, 3),
        {"k1": k(4, 2, 3, 3), "k2": k(6, 4, 1, 1), "rows": ints(0, -1, 3)},
    )
    yield Layout(
        "concat, split and gather",
        "a = Gemm(x, w1)\n b = Gemm(z, w2)\n c = Concat<axis=1>(a, b)\n d, e = Split<axis=1>(c, sizes)\n g = Gather<axis=1>(d, some)\n"
        "r = Relu(g)\n s = Relu(e)\n o = Concat<axis=-1>(r, s)\n y = Gemm(o, w3)",
        {"x": (None, 4), "z": (None, 3)},
        ("N", 3),
        {"w1": w(4, 5), "w2": w(3, 4), "sizes": ints(6, 3), "some": ints(5, 0, 0, 2), "w3": w(7, 3, seed=1)},
    )


def _tokens() -> Iterator[Layout]:
    body, weights = attention(4, 6, 2)
    tail = "l = LayerNormalization<axis=-1>(n, sc)\n m = ReduceMean<keepdims=0>(l, first)\n y = Gemm(m, w2)"
    more = {"sc": np.ones(6, np.float32), "first": ints(0), "w2": w(6, 3, seed=9)}
    yield Layout(
        "tokens first",
        f"h = Transpose<perm=[1,0,2]>(x)\n {body}\n n = Add(h, a)\n {tail}",
        {"x": (None, 4, 6)},
        ("N", 3),
        {**weights, **more},
    )
    apart, few = attention(4, 6, 2, merged=False)
    yield Layout(
        "tokens first, dense after attention",
        f"h = Transpose<perm=[1,0,2]>(x)\n {apart}\n n = Add(h, a)\n {tail}",
        {"x": (None, 4, 6)},
        ("N", 3),
        {**few, **more},
    )
    embedded = "e = MatMul(t, we)\n e1 = Add(e, be)\n h = Relu(e1)\n"
    yield Layout(
        "tokens first, embedded there",
        f"t = Transpose<perm=[1,0,2]>(x)\n {embedded} {body}\n n = Add(h, a)\n {tail}",
        {"x": (None, 4, 5)},
        ("N", 3),
        {**weights, **more, "we": w(5, 6), "be": k(6)},
    )
    late = "l = MatMul(n, w2)\n y = ReduceMean<keepdims=0>(l, first)"
    given = {"first": ints(0), "w2": w(6, 3, seed=9)}
    yield Layout(
        "tokens first, classes per token",
        f"t = Transpose<perm=[1,0,2]>(x)\n {embedded} {body}\n n = Add(h, a)\n {late}",
        {"x": (None, 4, 5)},
        ("N", 3),
        {**weights, **given, "we": w(5, 6), "be": k(6)},
    )
    yield Layout(
        "tokens first, as many as samples",
        f"t = Transpose<perm=[1,0,2]>(x)\n {embedded} {body}\n n = Add(h, a)\n {tail}",
        {"x": (None, 3, 3)},
        ("N", 3),
        {**attention(3, 6, 2)[1], **more, "we": w(3, 6), "be": k(6)},
        fixed=3,
    )
    yield Layout(
        "input tokens first",
        f"{embedded.replace('(t,', '(x,')} {body}\n n = Add(h, a)\n {tail}",
        {"x": (4, None, 5)},
        ("N", 3),
        {**weights, **more, "we": w(5, 6), "be": k(6)},
        fixed=3,
        target="y[{i},1]",
    )
    yield Layout(
        "input tokens first, batch open",
        f"{embedded.replace('(t,', '(x,')} {body}\n n = Add(h, a)\n {tail}",
        {"x": (4, None, 5)},
        ("N", 3),
        {**weights, **more, "we": w(5, 6), "be": k(6)},
        target="y[{i},1]",
    )
    yield Layout(
        "input tokens first, as many as samples",
        f"{embedded.replace('(t,', '(x,')} {body}\n n = Add(h, a)\n {tail}",
        {"x": (3, None, 3)},
        ("N", 3),
        {**attention(3, 6, 2)[1], **more, "we": w(3, 6), "be": k(6)},
        fixed=3,
        target="y[{i},1]",
    )
    yield Layout(
        "tags, tokens first",
        f"{embedded.replace('(t,', '(x,')} {body}\n n = Add(h, a)\n y = MatMul(n, w2)",
        {"x": (4, None, 5)},
        (4, "N", 3),
        {**weights, "w2": w(6, 3, seed=9), "we": w(5, 6), "be": k(6)},
        fixed=3,
        target="y[2,{i},1]",
    )
    yield Layout(
        "two inputs, samples on different axes",
        "e = MatMul(z, we)\n r = Relu(e)\n m = ReduceMax<keepdims=0>(r, first)\n c = Concat<axis=1>(x, m)\n h = Gemm(c, w1)\n"
        "r2 = Relu(h)\n y = Gemm(r2, w2)",
        {"x": (None, 4), "z": (4, None, 5)},
        ("N", 3),
        {"we": w(5, 6), "first": ints(0), "w1": w(10, 6), "w2": w(6, 3, seed=9)},
        fixed=3,
    )
    yield Layout(
        "dense on tokens first, windows behind",
        "t = Transpose<perm=[1,0,2]>(x)\n e = MatMul(t, we)\n r = Relu(e)\n d = MatMul(r, w1)\n q = Relu(d)\n"
        "u = Transpose<perm=[1,2,0]>(q)\n c = Conv(u, k1)\n p = Relu(c)\n f = Flatten(p)\n y = Gemm(f, w2)",
        {"x": (None, 4, 5)},
        ("N", 3),
        {"we": w(5, 6), "w1": w(6, 5), "k1": k(4, 5, 2), "w2": w(12, 3, seed=9)},
    )
    yield Layout(
        "recurrent",
        "t = Transpose<perm=[1,0,2]>(x)\n o, hn = GRU<hidden_size=4>(t, gw, gr)\n s = Squeeze(o, one)\n l = MatMul(s, w2)\n"
        "r = Relu(l)\n m = ReduceMean<keepdims=0>(r, first)\n y = Gemm(m, w3)",
        {"x": (None, 3, 4)},
        ("N", 3),
        {
            "gw": w(1, 12, 4),
            "gr": w(1, 12, 4, seed=3),
            "one": ints(1),
            "w2": w(4, 5),
            "first": ints(0),
            "w3": w(5, 3, seed=9),
        },
    )
    yield Layout(
        "recurrent, input tokens first",
        "t = MatMul(x, we)\n o, hn = LSTM<hidden_size=4>(t, gw, gr)\n s = Squeeze(hn, first)\n y = Gemm(s, w3)",
        {"x": (4, None, 4)},
        ("N", 3),
        {"we": w(4, 4), "gw": w(1, 16, 4), "gr": w(1, 16, 4, seed=3), "first": ints(0), "w3": w(4, 3, seed=9)},
        fixed=3,
        target="y[{i},1]",
    )


def _merged() -> Iterator[Layout]:
    conv = "c = Conv<pads=[1,1,1,1]>(f, k1, b1)\n r = Relu(c)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)\n"
    given = {"k1": k(4, 2, 3, 3), "b1": k(4)}
    yield Layout(
        "frames merged",
        f"f = Reshape(x, nt)\n {conv} g = GlobalAveragePool(p)\n s = Reshape(g, n_t)\n m = ReduceMean<keepdims=0>(s, one)"
        "\n y = Gemm(m, w2)",
        {"x": (None, 3, 2, 4, 4)},
        ("N", 3),
        {**given, "nt": ints(-1, 2, 4, 4), "n_t": ints(-1, 3, 4), "one": ints(1), "w2": w(4, 3, seed=9)},
    )
    yield Layout(
        "frames merged to the end",
        f"f = Reshape(x, nt)\n {conv} v = Flatten(p)\n l = Gemm(v, w2, b2)\n s = Reshape(l, n_t)\n"
        "y = ReduceMean<keepdims=0>(s, one)",
        {"x": (None, 3, 2, 4, 4)},
        ("N", 3),
        {**given, "nt": ints(-1, 2, 4, 4), "n_t": ints(-1, 3, 3), "one": ints(1), "w2": w(16, 3, seed=9), "b2": k(3)},
    )
    yield Layout(
        "frames first, merged",
        f"t = Transpose<perm=[1,0,2,3,4]>(x)\n f = Reshape(t, nt)\n {conv} v = Flatten(p)\n l = Gemm(v, w2, b2)\n"
        "q = LeakyRelu(l)\n s = Reshape(q, t_n)\n y = ReduceSum<keepdims=0>(s, first)",
        {"x": (None, 3, 2, 4, 4)},
        ("N", 3),
        {**given, "nt": ints(-1, 2, 4, 4), "t_n": ints(3, -1, 3), "first": ints(0), "w2": w(16, 3, seed=9), "b2": k(3)},
    )
    yield Layout(
        "pairs joined along the batch",
        "c = Concat<axis=0>(x, z)\n h0 = Gemm(c, w1, b1)\n h = Relu(h0)\n e = Gemm(h, w2)\n a, b = Split<axis=0, num_outputs=2>(e)\n"
        "d = Sub(a, b)\n q = Relu(d)\n y = Gemm(q, w3)",
        {"x": (None, 5), "z": (None, 5)},
        ("N", 3),
        {"w1": w(5, 6), "b1": k(6), "w2": w(6, 4), "w3": w(4, 3, seed=9)},
    )
    yield Layout(
        "windows",
        "a = Reshape(x, cut)\n b = Transpose<perm=[0,1,3,2,4,5]>(a)\n f = Reshape(b, rows)\n h = MatMul(f, we)\n ht = Transpose<perm=[0,2,1]>(h)\n"
        "s = MatMul(h, ht)\n p = Softmax<axis=-1>(s)\n o = MatMul(p, h)\n u = MatMul(o, w1)\n r = Relu(u)\n e = Reshape(r, uncut)\n"
        "g = Transpose<perm=[0,1,3,2,4,5]>(e)\n i = Reshape(g, back)\n m = ReduceMean<keepdims=0>(i, axes)\n y = Gemm(m, w2)",
        {"x": (None, 4, 4, 3)},
        ("N", 3),
        {
            "cut": ints(-1, 2, 2, 2, 2, 3),
            "rows": ints(-1, 4, 3),
            "we": w(3, 4),
            "w1": w(4, 5),
            "uncut": ints(-1, 2, 2, 2, 2, 5),
            "back": ints(-1, 4, 4, 5),
            "axes": ints(1, 2),
            "w2": w(5, 3, seed=9),
        },
    )
    yield Layout(
        "series by variable",
        "t = Transpose<perm=[0,2,1]>(x)\n f = Reshape(t, rows)\n h = MatMul(f, we)\n r = Relu(h)\n u = MatMul(r, w1)\n q = Relu(u)\n"
        "v = Reshape(q, back)\n fl = Flatten(v)\n y = Gemm(fl, w2)",
        {"x": (None, 6, 2)},
        ("N", 3),
        {
            "rows": ints(-1, 2, 3),
            "we": w(3, 4),
            "w1": w(4, 4, seed=2),
            "back": ints(-1, 2, 2, 4),
            "w2": w(16, 3, seed=9),
        },
    )
    yield Layout(
        "samples last",
        "t = Transpose<perm=[1,0]>(x)\n h = MatMul(w1, t)\n hb = Add(h, b1)\n r = Relu(hb)\n u = MatMul(w2, r)\n"
        "y = Transpose<perm=[1,0]>(u)",
        {"x": (None, 5)},
        ("N", 3),
        {"w1": w(6, 5), "b1": k(6, 1), "w2": w(3, 6, seed=9)},
    )
    yield Layout(
        "samples last in Gemm",
        "t = Transpose<perm=[1,0]>(x)\n h = Gemm<transA=1>(t, w1, b1)\n r = Relu(h)\n s = Transpose<perm=[1,0]>(r)\n"
        "y = Gemm<transA=1>(s, w2)",
        {"x": (None, 5)},
        ("N", 3),
        {"w1": w(5, 6), "b1": k(6), "w2": w(6, 3, seed=9)},
    )
    yield Layout(
        "a weight per channel",
        "t = Transpose<perm=[1,0,2]>(x)\n h = MatMul(t, w1)\n r = Relu(h)\n u = MatMul(r, w2)\n"
        "q = Relu(u)\n m = ReduceSum<keepdims=0>(q, first)\n y = Gemm(m, w3)",
        {"x": (None, 2, 4)},
        ("N", 3),
        {"w1": w(2, 4, 5), "w2": w(2, 5, 4, seed=3), "first": ints(0), "w3": w(4, 3, seed=9)},
    )
    yield Layout(
        "samples along a position",
        "a = Unsqueeze(x, two)\n c = Conv(a, k1)\n r = Relu(c)\n c2 = Conv(r, k2)\n q = Relu(c2)\n"
        "s = Squeeze(q, first)\n u = Transpose<perm=[1,0,2]>(s)\n f = Flatten(u)\n y = Gemm(f, w2)",
        {"x": (None, 6)},
        ("N", 3),
        {"two": ints(0, 1), "k1": k(3, 1, 1, 3), "k2": k(2, 3, 1, 3), "first": ints(0), "w2": w(4, 3, seed=9)},
        fixed=3,
    )
    yield Layout(
        "samples among channels, fixed",
        "c = Conv(x, k1)\n a = Reshape(c, wide)\n i = InstanceNormalization(a, one, none)\n b = Reshape(i, back)\n r = Relu(b)\n"
        "f = Flatten(r)\n y = Gemm(f, w2)",
        {"x": (None, 2, 4, 4)},
        ("N", 3),
        {
            "k1": k(4, 2, 3, 3),
            "wide": ints(1, 12, 4),
            "one": np.ones(12, np.float32),
            "none": np.zeros(12, np.float32),
            "back": ints(3, 4, 2, 2),
            "w2": w(16, 3, seed=9),
        },
        fixed=3,
    )
    yield Layout(
        "einsum",
        'e = Einsum<equation="ntc,ck->tnk">(x, we)\n r = Relu(e)\n f = Einsum<equation="tnk,kj->ntj">(r, w1)\n q = Relu(f)\n'
        "m = ReduceMax<keepdims=0>(q, one)\n y = Gemm(m, w2)",
        {"x": (None, 3, 4)},
        ("N", 3),
        {"we": w(4, 5), "w1": w(5, 4), "one": ints(1), "w2": w(4, 3, seed=9)},
    )


LAYOUTS = [*_plain(), *_tokens(), *_merged()]
