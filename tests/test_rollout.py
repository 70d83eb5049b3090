"""Attention rollout: against the papers' formulas with NumPy, on what tokens are made of, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from onnx_explain import Explainer, MethodError

Array = npt.NDArray[Any]
C, HEADS, CLASSES = 8, 2, 3
METHODS = ("attention-rollout", "gradient-rollout")


class Net:
    """A transformer written down node by node; `maps` are the names of its attention maps, the lowest first."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}
        self.maps: list[str] = []

    def weight(self, *shape: int, scale: float = 0.6) -> str:
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, array: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64))

    def emit(self, call: str) -> str:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {call}")
        return name

    def heads(self, x: str, tokens: int, folded: bool, count: int = HEADS) -> str:
        """[N, heads, T, size], or [N·heads, T, size] as older exporters write it."""
        y = self.emit(
            f"Transpose <perm = [0, 2, 1, 3]> ({self.emit(f'Reshape ({x}, {self.ints(0, tokens, count, -1)})')})"
        )
        return self.emit(f"Reshape ({y}, {self.ints(-1, tokens, C // HEADS)})") if folded else y

    def layer(self, x: str, tokens: int, *, folded: bool = False, columns: bool = False, single: bool = False) -> str:
        """Self-attention with a residual sum, then a dense layer with one."""
        normal = self.emit(f"LayerNormalization ({x}, {self.constant(np.ones(C, np.float32))})")
        q = self.heads(self.emit(f"MatMul ({normal}, {self.weight(C, C)})"), tokens, folded)
        many = 1 if single else HEADS  # of keys and values
        k, v = (
            self.heads(self.emit(f"MatMul ({normal}, {self.weight(C, many * C // HEADS)})"), tokens, folded, many)
            for _ in range(2)
        )
        perm = [0, 2, 1] if folded else [0, 1, 3, 2]
        scores = self.emit(f"MatMul ({q}, {self.emit(f'Transpose <perm = {perm}> ({k})')})")
        a = self.emit(f"Softmax <axis = {-2 if columns else -1}> ({scores})")
        self.maps.append(a)
        y = self.emit(f"MatMul ({a}, {v})")
        y = self.emit(f"Reshape ({y}, {self.ints(-1, HEADS, tokens, C // HEADS)})") if folded else y
        y = self.emit(f"Reshape ({self.emit(f'Transpose <perm = [0, 2, 1, 3]> ({y})')}, {self.ints(0, tokens, C)})")
        x = self.emit(f"Add ({x}, {self.emit(f'MatMul ({y}, {self.weight(C, C)})')})")
        hidden = self.emit(f"Tanh ({self.emit(f'MatMul ({x}, {self.weight(C, C)})')})")
        return self.emit(f"Add ({x}, {self.emit(f'MatMul ({hidden}, {self.weight(C, C)})')})")

    def model(
        self, inputs: str, y: str, shape: str = f"float[N, {CLASSES}]", more: Sequence[str] = ()
    ) -> onnx.ModelProto:
        body = "\n".join([*self.lines, f"y = Identity ({y})"])
        text = f'<ir_version: 8, opset_import: ["" : 18]> net ({inputs}) => ({shape} y) {{ {body} }}'
        model = parser.parse_model(text)
        model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self.weights.items())
        return model

    def embedded(self) -> str:
        return self.emit(f"Gather ({self.weight(11, C)}, ids)")

    def patches(self, height: int, width: int, tokens: int) -> str:
        """Patches of 4 × 4 pixels as tokens [N, T, C]."""
        y = self.emit(f"Conv <strides = [4, 4]> (x, {self.weight(C, 3, 4, 4, scale=0.2)})")
        y = self.emit(f"Reshape ({y}, {self.ints(0, C, height * width)})")
        return self.emit(f"Transpose <perm = [0, 2, 1]> ({y})")

    def class_token(self, x: str) -> str:
        sizes = self.emit("Shape <start = 0, end = 1> (x)")
        shape = self.emit(f"Concat <axis = 0> ({sizes}, {self.ints(1, C)})")
        return self.emit(f"Concat <axis = 1> ({self.emit(f'Expand ({self.weight(1, 1, C)}, {shape})')}, {x})")

    def read(self, x: str, token: int | None) -> str:
        """The scores of one token, or of the mean over all."""
        if token is None:
            row = self.emit(f"ReduceMean <keepdims = 0> ({x}, {self.ints(1)})")
        else:
            row = self.emit(f"Gather <axis = 1> ({x}, {self.constant(np.asarray(token, np.int64))})")
        return self.emit(f"MatMul ({row}, {self.weight(C, CLASSES)})")


def attention(model: onnx.ModelProto, net: Net, feeds: dict[str, Array]) -> tuple[list[Array], list[Array]]:
    """Every map [N, heads, T, T] and, by central differences in float64, the gradient of class 1's score by it."""
    maps = run(model, feeds, net.maps)
    gradients = []
    for name, a in zip(net.maps, maps):
        cut = onnx.ModelProto()
        cut.CopyFrom(model)
        kept = [n for n in cut.graph.node if n.output[0] != name]
        del cut.graph.node[:]
        cut.graph.node.extend(kept)
        cut.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["M", *a.shape[1:]]))
        session = onnxruntime.InferenceSession(double(cut).SerializeToString())
        wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in feeds.items()}
        by_head = a.reshape(len(next(iter(feeds.values()))), HEADS, *a.shape[-2:]).astype(np.float64)
        g = np.zeros(by_head.shape, np.float64)
        for index in np.ndindex(by_head.shape[1:]):  # samples do not mix: all at once
            scores = []
            for step in (1e-4, -1e-4):
                moved = by_head.copy()
                moved[(slice(None), *index)] += step
                scores.append(session.run(["y"], {**wide, name: moved.reshape(a.shape)})[0][:, 1])
            g[(slice(None), *index)] = (scores[0] - scores[1]) / 2e-4
        gradients.append(g)
    return [m.reshape(g.shape).astype(np.float64) for m, g in zip(maps, gradients)], gradients


def double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return wide


def run(model: onnx.ModelProto, feeds: dict[str, Array], names: list[str]) -> list[Array]:
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    open_model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    found: list[Array] = onnxruntime.InferenceSession(open_model.SerializeToString()).run(names, feeds)
    return found


def rollout(maps: list[Array], read: Array, residual: float = 0.5, heads: str = "mean") -> Array:
    """Abnar & Zuidema: the product of (ρI + (1 - ρ)Ā), rows normalised, from the tokens that are read: [N, T]."""
    n, t = maps[0].shape[0], maps[0].shape[-1]
    found = np.zeros((n, t))
    for i in range(n):
        product = np.eye(t)
        for a in maps:
            whole = getattr(a[i], heads)(axis=0) * (1 - residual) + np.eye(t) * residual
            product = (whole / whole.sum(1, keepdims=True)) @ product
        found[i] = read @ product
    return found


def gradient_rollout(maps: list[Array], gradients: list[Array], read: Array) -> Array:
    """Chefer et al.: R ← R + E_h[(∇A ⊙ A)⁺]·R, from the tokens that are read: [N, T]."""
    n, t = maps[0].shape[0], maps[0].shape[-1]
    found = np.zeros((n, t))
    for i in range(n):
        r = np.eye(t)
        for a, g in zip(maps, gradients):
            r = r + np.maximum(g[i] * a[i], 0.0).mean(0) @ r
        found[i] = read @ r
    return found


@lru_cache(maxsize=4)
def text_net(folded: bool = False, token: int | None = 0) -> tuple[onnx.ModelProto, Net]:
    net = Net()
    x = net.embedded()
    for _ in range(2):
        x = net.layer(x, 5, folded=folded)
    return net.model("int64[N, 5] ids", net.read(x, token)), net


@lru_cache(maxsize=2)
def picture_net(registers: bool = False) -> tuple[onnx.ModelProto, Net]:
    """3 × 2 patches and a class token in front; with `registers` two more between it and the patches."""
    net = Net(1)
    x, tokens = net.class_token(net.patches(3, 2, 6)), 7
    if registers:
        first, rest = (
            net.emit(f"Slice ({x}, {net.ints(a)}, {net.ints(b)}, {net.ints(1)})") for a, b in ((0, 1), (1, 7))
        )
        sizes = net.emit("Shape <start = 0, end = 1> (x)")
        shape = net.emit(f"Concat <axis = 0> ({sizes}, {net.ints(2, C)})")
        more = net.emit(f"Expand ({net.weight(1, 2, C)}, {shape})")
        x, tokens = net.emit(f"Concat <axis = 1> ({first}, {more}, {rest})"), 9
    x = net.emit(f"Add ({x}, {net.weight(1, tokens, C, scale=0.3)})")
    for _ in range(2):
        x = net.layer(x, tokens)
    return net.model("float[N, 3, 12, 8] x", net.read(x, 0)), net


def words() -> dict[str, Array]:
    return {"ids": np.random.default_rng(2).integers(0, 11, (2, 5))}


def picture() -> dict[str, Array]:
    return {"x": np.random.default_rng(3).standard_normal((2, 3, 12, 8)).astype(np.float32)}


def explained(model: onnx.ModelProto, method: str, feeds: dict[str, Array], **options: Any) -> Array:
    e = Explainer(model, method, **options)(feeds, target=1)
    assert e.conservation.max() < 1e-5
    return next(iter(e.relevance.values()))


# ------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("folded", [False, True], ids=["by head", "heads in the batch"])
@pytest.mark.parametrize("token", [0, 3, None], ids=["class token", "last token", "mean"])
def test_rollout_equals_the_product_of_maps(token: int | None, folded: bool) -> None:
    model, net = text_net(folded, token)
    maps = [a.reshape(2, HEADS, 5, 5).astype(np.float64) for a in run(model, words(), net.maps)]
    read = np.full(5, 0.2) if token is None else np.eye(5)[token]
    ours = explained(model, "attention-rollout", words()).sum(-1)
    np.testing.assert_allclose(ours, rollout(maps, read), atol=1e-6)


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
@pytest.mark.parametrize("residual", [0.0, 0.3, 1.0])
def test_residual_and_heads_mean_what_they_say(residual: float, heads: str) -> None:
    model, net = text_net()
    maps = [a.astype(np.float64) for a in run(model, words(), net.maps)]
    ours = explained(model, "attention-rollout", words(), residual=residual, heads=heads).sum(-1)
    np.testing.assert_allclose(ours, rollout(maps, np.eye(5)[0], residual, heads), atol=1e-6)


@pytest.mark.parametrize("folded", [False, True], ids=["by head", "heads in the batch"])
def test_gradient_rollout_equals_the_papers_update(folded: bool) -> None:
    model, net = text_net(folded)
    maps, gradients = attention(model, net, words())
    ours = explained(model, "gradient-rollout", words()).sum(-1)
    np.testing.assert_allclose(ours, gradient_rollout(maps, gradients, np.eye(5)[0]), atol=1e-5)


def test_heads_may_share_their_keys_and_values() -> None:
    net = Net(10)
    x = net.layer(net.layer(net.embedded(), 5, single=True), 5, single=True)
    model = net.model("int64[N, 5] ids", net.read(x, 2))
    maps = [a.astype(np.float64) for a in run(model, words(), net.maps)]
    np.testing.assert_allclose(
        explained(model, "attention-rollout", words()).sum(-1), rollout(maps, np.eye(5)[2]), atol=1e-6
    )


def test_a_language_models_score_reads_its_own_position() -> None:
    net = Net()
    x = net.layer(net.embedded(), 5)
    model = net.model("int64[N, 5] ids", net.emit(f"MatMul ({x}, {net.weight(C, CLASSES)})"), f"float[N, 5, {CLASSES}]")
    maps = [a.astype(np.float64) for a in run(model, words(), net.maps)]
    e = Explainer(model, "attention-rollout")(words(), target=3 * CLASSES + 1)
    np.testing.assert_allclose(next(iter(e.relevance.values())).sum(-1), rollout(maps, np.eye(5)[3]), atol=1e-6)


# ------------------------------------------------------------------------------------------- tokens and pixels


@pytest.mark.parametrize("registers", [False, True], ids=["class token", "registers"])
def test_patches_are_laid_over_their_pixels_and_other_tokens_nowhere(registers: bool) -> None:
    model, net = picture_net(registers)
    maps = [a.astype(np.float64) for a in run(model, picture(), net.maps)]
    tokens = rollout(maps, np.eye(maps[0].shape[-1])[0])
    e = Explainer(model, "attention-rollout")(picture())
    r = e.relevance["x"]
    assert np.allclose(r, r[:, :1])  # every channel the same share
    np.testing.assert_allclose(r.sum((1, 2, 3)), tokens[:, -6:].sum(1), rtol=1e-5)
    np.testing.assert_allclose(e.absorbed, tokens[:, :-6].sum(1), rtol=1e-5)
    np.testing.assert_allclose(r.sum(1)[:, 0, 0] * 16, tokens[:, -6], rtol=1e-5)  # corners are their patch's own
    np.testing.assert_allclose(r.sum(1)[:, -1, -1] * 16, tokens[:, -1], rtol=1e-5)
    np.testing.assert_allclose(r.sum(1)[:, 0, -1] * 16, tokens[:, -5], rtol=1e-5)


def test_patches_cut_by_reshaping_are_found_too() -> None:
    """As JAX and Keras write a patch embedding: a dense layer over the patch's 48 numbers, channels last."""
    net = Net(4)
    cut = net.emit(f"Reshape (x, {net.ints(0, 3, 4, 2, 4, 3)})")
    cut = net.emit(f"Transpose <perm = [0, 1, 3, 2, 4, 5]> ({cut})")
    x = net.emit(f"MatMul ({net.emit(f'Reshape ({cut}, {net.ints(0, 6, 48)})')}, {net.weight(48, C, scale=0.2)})")
    model = net.model("float[N, 12, 8, 3] x", net.read(net.layer(net.layer(x, 6), 6), None))
    feeds = {"x": np.random.default_rng(3).standard_normal((2, 12, 8, 3)).astype(np.float32)}
    maps = [a.astype(np.float64) for a in run(model, feeds, net.maps)]
    tokens = rollout(maps, np.full(6, 1 / 6)).reshape(2, 3, 2)
    blocks = explained(model, "attention-rollout", feeds).reshape(2, 3, 4, 2, 4, 3)
    np.testing.assert_allclose(blocks.sum((2, 4, 5)), tokens, rtol=1e-5)
    assert np.allclose(blocks, blocks[:, :, :1, :, :1, :1])  # the same for all of a patch's numbers


def test_the_converted_file_holds_the_rollout(tmp_path: Path) -> None:
    model, _ = picture_net()
    onnx.save(model, tmp_path / "vit.onnx")
    explainer = Explainer(tmp_path / "vit.onnx", "gradient-rollout")
    explainer.convert(tmp_path / "explained.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "explained.onnx")
    (name,) = (o.name for o in session.get_outputs() if o.name.endswith("relevance"))
    found = session.run([name], {**picture(), "target": np.asarray([1, 1])})[0]
    np.testing.assert_allclose(found, explainer(picture(), target=1).relevance["x"], atol=1e-7)


# ------------------------------------------------------------------------------------------- what is refused


def windows() -> onnx.ModelProto:
    """Two windows of three patches each, as Swin's attention looks at them."""
    net = Net(5)
    x = net.emit(f"Reshape ({net.patches(3, 2, 6)}, {net.ints(-1, 3, C)})")
    x = net.emit(f"Reshape ({net.layer(x, 3)}, {net.ints(-1, 6, C)})")
    return net.model("float[N, 3, 12, 8] x", net.read(x, None))


def pooled() -> onnx.ModelProto:
    net = Net(6)
    x = net.layer(net.patches(3, 2, 6), 6)
    x = net.emit(f"ReduceMean <keepdims = 0> ({net.emit(f'Reshape ({x}, {net.ints(0, 3, 2, C)})')}, {net.ints(2)})")
    return net.model("float[N, 3, 12, 8] x", net.read(net.layer(x, 3), None))


def beside() -> onnx.ModelProto:
    net = Net(7)
    x = net.patches(3, 2, 6)
    both = net.emit(f"Add ({net.layer(x, 6)}, {net.layer(x, 6)})")
    return net.model("float[N, 3, 12, 8] x", net.read(both, None))


def over_queries() -> onnx.ModelProto:
    """A Softmax over the queries is no attention of theirs."""
    net = Net(8)
    return net.model("float[N, 3, 12, 8] x", net.read(net.layer(net.patches(3, 2, 6), 6, columns=True), None))


def over_channels() -> onnx.ModelProto:
    """Features that attend to features, as in XCiT: as many features per head as tokens."""
    net = Net(9)
    x = net.emit(f"Slice ({net.patches(3, 2, 6)}, {net.ints(0)}, {net.ints(4)}, {net.ints(1)})")
    q, k, v = (
        net.emit(f"Transpose <perm = [0, 2, 3, 1]> ({net.emit(f'Reshape ({d}, {net.ints(0, 4, HEADS, 4)})')})")
        for d in (net.emit(f"MatMul ({x}, {net.weight(C, C)})") for _ in range(3))
    )
    scores = net.emit(f"MatMul ({q}, {net.emit(f'Transpose <perm = [0, 1, 3, 2]> ({k})')})")
    y = net.emit(f"MatMul ({net.emit(f'Softmax <axis = -1> ({scores})')}, {v})")
    y = net.emit(f"Reshape ({net.emit(f'Transpose <perm = [0, 3, 1, 2]> ({y})')}, {net.ints(0, 4, C)})")
    return net.model("float[N, 3, 12, 8] x", net.read(y, None))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (windows, "windows"),
        (pooled, "pooled"),
        (beside, "lies beside"),
        (over_queries, "none between"),
        (over_channels, "channels"),
    ],
)
def test_other_attention_is_refused_in_one_sentence(make: Any, said: str, method: str) -> None:
    with pytest.raises(MethodError, match=said):
        Explainer(make(), method)(picture())


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_attention_is_refused(method: str) -> None:
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> net (float[N, 4] x) => (float[N, 3] y)
        <float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = MatMul (x, w) }"""
    )
    with pytest.raises(MethodError, match="multiplies attention maps, and there is none"):
        Explainer(model, method)(np.ones((1, 4), np.float32))


def test_an_inner_tensor_and_a_residual_beyond_one_are_refused() -> None:
    model, _ = picture_net()
    with pytest.raises(MethodError, match="leave `at` out"):
        Explainer(model, "attention-rollout", at="v2")(picture())
    with pytest.raises(MethodError, match="share between 0 and 1"):
        Explainer(model, "attention-rollout", residual=1.5)


def test_the_plan_tells_what_the_scores_gradient_passes_down_to_the_lowest_map() -> None:
    model, net = text_net()
    rows, missing = Explainer(model, "gradient-rollout").plan()
    assert missing == []
    assert {r.rule for r in rows if r.role != "-"} == {"gradient"}
    assert [r.op_type for r in rows].count("Softmax") == len(net.maps) - 1  # below the lowest map nothing is asked
    with pytest.raises(MethodError, match="'attention-rollout'"):
        Explainer(windows(), "attention-rollout").plan()
