"""Expressions drawn at random: well-formed ones over the outputs of a little network, broken ones, and plain noise."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import numpy_helper, parser

SIZES = {"a": (4,), "b": (3, 5), "c": (2, 3, 4), "k": (3,), "'m/w:0'": (6,)}
METHODS = ("max", "min", "sum", "mean", "argmax", "argmin", "any", "all", "abs", "log", "sigmoid", "softmax")


def model(text: str, **weights: Any) -> onnx.ModelProto:
    """A model from ONNX's text form, with its initialisers as arrays."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def drawn(*shape: int, seed: int = 0) -> Any:
    """Reproducible noise."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(batch: str = "N") -> onnx.ModelProto:
    """x [N, 6] to a [N, 4], b [N, 3, 5], c [N, 2, 3, 4], integers k [N, 3], and m/w:0 [6], which is one for all samples."""
    body = """
        a = MatMul(x, wa)  bf = MatMul(x, wb)  b = Reshape(bf, sb)  cf = MatMul(x, wc)  ct = Tanh(cf)  c = Reshape(ct, sc)
        kf = MatMul(x, wk)  kl = Cast<to=7>(kf)  k = Clip(kl, zero, three)  w = ReduceMean<keepdims=0>(x, axis)
    """.replace("  ", "\n")
    proto = model(
        f"g (float[{batch},6] x) => (float[{batch},4] a, float[{batch},3,5] b, float[{batch},2,3,4] c, int64[{batch},3] k, "
        f"float[6] w) {{ {body} }}",
        wa=drawn(6, 4), wb=drawn(6, 15), wc=drawn(6, 24), wk=3 * drawn(6, 3), sb=np.array([-1, 3, 5]),
        sc=np.array([-1, 2, 3, 4]), axis=np.array([0]), zero=np.array(0), three=np.array(3),
    )  # fmt: skip
    proto.graph.output[4].name = "m/w:0"
    for node in proto.graph.node:
        for i, name in enumerate(node.output):
            if name == "w":
                node.output[i] = "m/w:0"
    return proto


@st.composite
def numbers(draw: Any, deep: int = 2) -> str:
    """An array of numbers, mostly well formed."""
    kind = draw(st.integers(0, 10)) if deep else 0
    if kind <= 3:
        return str(draw(indexed(deep)))
    if kind == 4:
        return f"({draw(numbers(deep - 1))} {draw(st.sampled_from('+-*/'))} {draw(numbers(deep - 1))})"
    if kind == 5:
        return f"({draw(numbers(deep - 1))}{draw(st.sampled_from([' * 2', ' / 3', ' - 0.5', ' + 1', '*-1.5']))})"
    if kind == 6:
        return f"-{draw(numbers(deep - 1))}"
    if kind == 7:
        return f"{draw(numbers(deep - 1))}.where({draw(truths(deep - 1))})"
    if kind == 8:
        return (
            f"{draw(numbers(deep - 1))}.where({draw(truths(deep - 1))}, {draw(st.sampled_from(['0', '-1', 'a[:,1]']))})"
        )
    if kind == 9:
        return f"{draw(numbers(deep - 1))}.topk({draw(st.integers(1, 4))}{draw(st.sampled_from(['', ', axis=-1']))})"
    return f"{draw(numbers(deep - 1))}.{draw(st.sampled_from(METHODS))}({draw(axes())})"


@st.composite
def truths(draw: Any, deep: int = 1) -> str:
    """Conditions."""
    kind = draw(st.integers(0, 4)) if deep else 0
    order = draw(st.sampled_from([">", ">=", "<", "<=", "!="]))
    if kind <= 1:
        right = draw(st.sampled_from(["0", "0.5", "-0.25", "b[:,0,0]", "a[:].mean()"]))
        return f"{draw(numbers(0))} {order} {right}"
    if kind == 2:
        return f"({draw(truths(deep - 1))} {draw(st.sampled_from(['&', '|', 'and', 'or']))} {draw(truths(deep - 1))})"
    if kind == 3:
        return f"~({draw(truths(deep - 1))})"
    return f"k[:, {draw(st.integers(0, 2))}] == {draw(st.integers(0, 3))}"


@st.composite
def indexed(draw: Any, deep: int) -> str:
    """An output with an index."""
    name = draw(st.sampled_from(list(SIZES)))
    sizes = SIZES[name]
    items = [] if name.startswith("'") else [":"]
    for size in sizes[: draw(st.integers(0, len(sizes)))]:
        items.append(draw(item(size, deep)))
    return f"{name}[{', '.join(items)}]" if items else name


@st.composite
def item(draw: Any, size: int, deep: int) -> str:
    """An index of one axis, now and then beyond it."""
    end = st.integers(-size - 1, size + 1)
    kind = draw(st.integers(0, 6 if deep else 4))
    if kind <= 1:
        return str(draw(st.integers(0, size - 1)))
    if kind == 2:
        return str(draw(end))
    if kind == 3:
        step = draw(st.sampled_from(["", ":2", ":-1"]))
        return f"{draw(st.sampled_from(['', '1', '-2']))}:{draw(st.sampled_from(['', '2', '-1']))}{step}"
    if kind == 4:
        return f"[{draw(st.integers(0, size - 1))},{draw(st.integers(0, size - 1))}]"
    return draw(st.sampled_from([f"b[:,0,:{size}].argmax()", "k[:,0]", "k[:,2]", "a[:].argmin()"]))


@st.composite
def axes(draw: Any) -> str:
    """Nothing, or axes."""
    return draw(st.sampled_from(["", "", "", "axis=1", "axis=-1", "2", "axis=(1,2)"]))


@st.composite
def scalars(draw: Any) -> str:
    """An expression that mostly comes to one number per sample."""
    whole = draw(numbers())
    end = draw(st.sampled_from([".max()", ".sum()", ".mean()", ".min()"]))
    return f"({whole}){end}"


_SIGNS = [*"[](){}.,:'\"<>=!&|~+-*/ 0123456789eabk_@\\\n\t", "é", "²", "٣", "∞", "\x00"]
_WORDS = [
    *_SIGNS, "a", "b[", ".max", ".where(", "...", "1e9", "0x1", "==", "and ", "axis=", "yolo:", "topk(", "lambda", "__import__('os')",
    "9" * 30,
]  # fmt: skip


def broken(text: str, seed: int, count: int) -> list[str]:
    """Ways of getting an expression wrong: something cut out, put in or said twice; and words in any order."""
    generator, found = random.Random(seed), list[str]()
    for kind in range(count):
        at, length = generator.randrange(len(text) + 1), generator.randrange(1, 7)
        put = "".join(generator.choices(_SIGNS, k=generator.randrange(1, 5)))
        found.append(
            [
                text[:at] + text[at + length :],
                text[:at] + put + text[at:],
                text[:at] + text[max(0, at - length) :],
                "".join(generator.choices(_WORDS, k=generator.randrange(13))),
                "".join(chr(generator.randrange(1, 0x3000)) for _ in range(generator.randrange(30))),
            ][kind % 5]
        )
    return found
