"""Integer inputs are explained at their embeddings, and what arrives there goes to the entries that selected it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from onnx_explain import Explainer
from onnx_explain.embedded import embeddings
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.model import load

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(7, 3)).astype(np.float32)
HEAD = RNG.normal(size=(3, 2)).astype(np.float32)
IDS = np.array([[1, 4, 4, 0], [6, 2, 5, 3]])


def model(text: str, **weights: Array) -> onnx.ModelProto:
    graph = parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(np.asarray(w), n) for n, w in weights.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bag(ids: str = "i = Identity(ids)", size: str = "N,4", dtype: str = "int64", **weights: Array) -> onnx.ModelProto:
    """The sum of the words' rows times a matrix."""
    return model(
        f"g ({dtype}[{size}] ids) => (float[N,2] y) {{ {ids}\n e = Gather(table, i)\n"
        " b = ReduceSum<keepdims=0>(e, tokens)\n y = MatMul(b, head) }",
        table=TABLE, head=HEAD, tokens=np.array([1]), **weights,
    )  # fmt: skip


def words(ids: Array, target: int = 0) -> Array:
    """What every word adds to the score: its row times the column of the head."""
    found: Array = TABLE[ids] @ HEAD[:, target]
    return found


@pytest.mark.parametrize(
    "method", ["input-x-gradient", "lrp-zero", "integrated-gradients", "deeplift", "shapley-sampling"]
)
def test_in_a_linear_bag_of_words_every_word_gets_its_own_summand(method: str) -> None:
    e = Explainer(bag(), method)({"ids": IDS}, target=0)
    np.testing.assert_allclose(e.entries["ids"], words(IDS), rtol=0, atol=1e-5)
    np.testing.assert_allclose(e.entries["ids"], e.relevance["e"].sum(-1), rtol=0, atol=1e-6)


def test_words_in_another_order_have_their_relevance_in_that_order() -> None:
    order, explainer = [2, 0, 3, 1], Explainer(bag(), "lrp-epsilon")
    first, second = explainer({"ids": IDS}, target=1), explainer({"ids": IDS[:, order]}, target=1)
    np.testing.assert_allclose(second.entries["ids"], first.entries["ids"][:, order], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("way", "selected"),
    [
        ("k = Cast<to=6>(ids)\n i = Cast<to=7>(k)", IDS),
        ("i = Clip(ids, low, high)", np.clip(IDS, 1, 5)),
        ("i = Slice(ids, from, to, last, back)", IDS[:, ::-1]),
        ("t = Transpose(ids)\n i = Transpose<perm=[1,0]>(t)", IDS),
        ("same = Equal(ids, low)\n i = Where(same, high, ids)", np.where(IDS == 1, 5, IDS)),
    ],
)
def test_ids_that_are_changed_or_moved_on_the_way_keep_what_their_rows_got(way: str, selected: Array) -> None:
    named = {"low": 1, "high": 5, "from": [-1], "to": [-9], "last": [1], "back": [-1]}
    proto = bag(way, **{n: np.array(v) for n, v in named.items() if f" {n}" in way.replace("(", " ")})
    e = Explainer(proto, "input-x-gradient")({"ids": IDS}, target=0)
    moved = words(selected)
    np.testing.assert_allclose(e.entries["ids"], moved[:, ::-1] if "Slice" in way else moved, rtol=0, atol=1e-5)


def test_a_word_that_the_model_itself_puts_in_front_belongs_to_no_id() -> None:
    proto = bag("i = Concat<axis=1>(start, ids)", size="1,4", start=np.array([[6]]))
    e = Explainer(proto, "input-x-gradient")({"ids": IDS[:1]}, target=0)
    np.testing.assert_allclose(e.entries["ids"], words(IDS[:1]), rtol=0, atol=1e-5)
    np.testing.assert_allclose(e.relevance["e"][0, 0].sum(), words(np.array(6)), rtol=0, atol=1e-5)


def test_the_columns_of_a_table_of_categories_each_have_their_own_relevance() -> None:
    proto = model(
        """g (int64[N,2] kinds, float[N,2] numbers) => (float[N,2] y) {
             a = Gather<axis=1>(kinds, first) b = Gather<axis=1>(kinds, second)
             p = Gather(table, a) q = Gather(other, b)
             x = Concat<axis=1>(p, q, numbers) y = MatMul(x, w) }""",
        first=np.array(0), second=np.array(1), table=TABLE, other=2 * TABLE, w=np.vstack([HEAD, HEAD, HEAD[:2]]),
    )  # fmt: skip
    kinds, numbers = IDS[:, :2], RNG.normal(size=(2, 2)).astype(np.float32)
    e = Explainer(proto, "lrp-zero")({"kinds": kinds, "numbers": numbers}, target=1)
    np.testing.assert_allclose(e.entries["kinds"], words(kinds, 1) * [1, 2], rtol=0, atol=1e-5)
    np.testing.assert_allclose(e.relevance["numbers"], numbers * HEAD[:2, 1], rtol=0, atol=1e-5)
    assert list(e.drawn) == ["numbers", "kinds"]


def test_positions_counted_from_the_mask_keep_their_own_name() -> None:
    proto = model(
        """g (int64[N,4] ids) => (float[N,2] y) {
             e = Gather(table, ids) same = Equal(ids, pad) shown = Not(same) k = Cast<to=7>(shown)
             n = CumSum(k, axis) p = Gather(places, n) s = Add(e, p)
             b = ReduceSum<keepdims=0>(s, axes) y = MatMul(b, head) }""",
        table=TABLE, places=TABLE, head=HEAD, pad=np.array(0), axis=np.array(1), axes=np.array([1]),
    )  # fmt: skip
    e = Explainer(proto, "lrp-zero")({"ids": IDS}, target=0)
    np.testing.assert_allclose(e.entries["ids"], words(IDS), rtol=0, atol=1e-5)
    assert list(e.drawn) == ["p", "ids"]
    total = e.entries["ids"].sum(1) + e.relevance["p"].sum((1, 2)) + e.absorbed
    np.testing.assert_allclose(total, e.target.score, rtol=0, atol=1e-5)


def test_a_model_of_fixed_batch_and_narrow_ids_is_explained_sample_by_sample() -> None:
    e = Explainer(bag(size="1,4", dtype="int32"), "input-x-gradient")({"ids": IDS.astype(np.int32)}, target=0)
    np.testing.assert_allclose(e.entries["ids"], words(IDS), rtol=0, atol=1e-5)


JOINED = "k = Cast<to=1>(c) s = Sub(k, shift) x = Concat<axis=1>(s, f) y = MatMul(x, w)"
MASKED = "k = Cast<to=1>(c) x = Mul(f, k) y = MatMul(x, w)"


@pytest.mark.parametrize(("way", "found"), [(JOINED, ["k"]), (MASKED, [])])
def test_whole_numbers_beside_floats_count_where_they_are_features_and_not_where_they_mask(
    way: str, found: list[str]
) -> None:
    w = np.ones((4 if found else 2, 2), np.float32)
    weights = {"w": w, "shift": np.float32(3)} if found else {"w": w}
    proto = model(f"g (int64[N,2] c, float[N,2] f) => (float[N,2] y) {{ {way} }}", **weights)
    assert embeddings(canonicalize(load(proto).model)) == found
    e = Explainer(proto, "gradient")({"c": IDS[:, :2], "f": np.ones((2, 2), np.float32)}, target=0)
    assert list(e.drawn) == ["f", *(["c"] if found else [])]


def test_a_quantised_table_is_one_too() -> None:
    whole = np.rint(TABLE * 40).astype(np.int8)
    proto = model(
        """g (int64[N,4] ids) => (float[N,2] y) {
             q = Gather(table, ids) e = DequantizeLinear(q, scale, zero)
             b = ReduceSum<keepdims=0>(e, axes) y = MatMul(b, head) }""",
        table=whole, scale=np.float32(1 / 40), zero=np.int8(3), head=HEAD, axes=np.array([1]),
    )  # fmt: skip
    e = Explainer(proto, "lrp-zero")({"ids": IDS}, target=0)
    rows = (whole.astype(np.float32) - 3) / 40
    np.testing.assert_allclose(e.entries["ids"], rows[IDS] @ HEAD[:, 0], rtol=0, atol=1e-5)
