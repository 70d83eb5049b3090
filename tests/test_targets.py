"""Which element is explained: every way of writing a target, outputs of every rank, seeds, inner tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from test_convert import drawn, model, residual_cnn, two_by_two, two_feeds

from onnx_explain import Explainer, Explanation, TargetError

X = drawn(3, 3, 16, 16, seed=9)


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(residual_cnn(), "lrp-epsilon", threads=1)


def assert_equal(found: Explanation, wanted: Explanation) -> None:
    for name, r in wanted.relevance.items():
        np.testing.assert_array_equal(found.relevance[name], r)
    np.testing.assert_array_equal(found.target.index, wanted.target.index)


# ------------------------------------------------------------------------------------------- ways of writing it


def test_no_target_is_the_arg_max_of_each_sample(explainer: Explainer) -> None:
    e = explainer(X)
    np.testing.assert_array_equal(e.target.index, e.outputs["scores"].argmax(1))
    assert_equal(explainer(X, target=e.target.index), e)


@pytest.mark.parametrize(
    "target",
    [
        2,
        np.int64(2),
        np.uint8(2),
        np.array(2),
        "2",
        [2, 2, 2],
        (2, 2, 2),
        np.array([2, 2, 2], np.int32),
        "scores[:,2]",
        " scores [ : , 2 ] ",
        "scores[:,-3]",
        "logits[:,2]",
        range(2, 3) and [2] * 3,
    ],
)
def test_one_class_for_all_in_any_spelling(target: Any, explainer: Explainer) -> None:
    assert_equal(explainer(X, target=target), explainer(X, target=2))
    assert explainer(X, target=target).target.tensor == "logits"


def test_one_class_per_sample_is_each_sample_alone(explainer: Explainer) -> None:
    e = explainer(X, target=[4, 0, 1])
    for n, index in enumerate((4, 0, 1)):
        alone = explainer(X[n : n + 1], target=index)
        np.testing.assert_allclose(
            e.relevance["picture"][n],
            alone.relevance["picture"][0],
            rtol=0,
            atol=1e-4 * np.abs(alone.relevance["picture"]).max(),
        )


@pytest.mark.parametrize(
    ("text", "sample"), [("scores[0,3]", 0), ("scores[2,3]", 2), ("scores[-1,3]", 2), ("logits[1,3]", 1)]
)
def test_an_element_of_one_sample_leaves_the_others_out(text: str, sample: int, explainer: Explainer) -> None:
    e, every = explainer(X, target=text), explainer(X, target=3)
    assert [int(i) for i in e.target.index] == [3 if n == sample else -2 for n in range(3)]
    for n in range(3):
        np.testing.assert_array_equal(e.relevance["picture"][n], every.relevance["picture"][n] if n == sample else 0)
    assert e.conservation[(sample + 1) % 3] == 0, "nothing was seeded, nothing arrived"
    assert e.absorbed[(sample + 1) % 3] == 0


def test_the_score_is_the_value_of_the_element(explainer: Explainer) -> None:
    e = explainer(X, target=[4, 0, 1])
    wanted = Explainer(residual_cnn(), "lrp-epsilon", output="logits", threads=1)(X, target=[4, 0, 1])
    np.testing.assert_array_equal(e.target.score, wanted.target.score)
    inner = Explainer(residual_cnn(), "lrp-epsilon", keep=["logits"], seed="score", threads=1)(X, target=[4, 0, 1])
    np.testing.assert_array_equal(inner.kept["logits"][[0, 1, 2], [4, 0, 1]], e.target.score)


# ------------------------------------------------------------------------------------------- outputs of every rank


def two_rows(tail: str, out: str, **weights: Any) -> onnx.ModelProto:
    body = f"c = Conv<pads=[1,1,1,1]>(x, w)\n r = Relu(c)\n {tail}"
    return model(f"g (float[N,2,6,6] x) => ({out}) {{ {body} }}", w=drawn(4, 2, 3, 3), **weights)


XS = drawn(2, 2, 6, 6, seed=1)
METHODS_TRIED = ("gradient", "lrp-epsilon", "lrp-z-plus", "rap")


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_a_row_of_values_is_one_per_sample(method: str) -> None:
    """Rank 1: regression; its single value is element 0."""
    proto = two_rows(
        "f = Flatten(r)\n m = MatMul(f, k)\n y = Squeeze(m, a)", "float[N] y", k=drawn(144, 1), a=np.array([1])
    )
    flat = two_rows("f = Flatten(r)\n y = MatMul(f, k)", "float[N,1] y", k=drawn(144, 1))
    wanted = Explainer(flat, method, threads=1)(XS)
    for target in (None, 0, [0, 0], "y[:]"):
        e = Explainer(proto, method, threads=1)(XS, target=target)
        np.testing.assert_allclose(
            e.relevance["x"], wanted.relevance["x"], rtol=0, atol=1e-5 * np.abs(wanted.relevance["x"]).max()
        )
        np.testing.assert_allclose(e.target.score, e.outputs["y"], rtol=1e-6)
    only = Explainer(proto, method, threads=1)(XS, target="y[1]").relevance["x"]
    assert not only[0].any()
    assert only[1].any()
    with pytest.raises(TargetError):
        Explainer(proto, method, threads=1)(XS, target=1)


@pytest.mark.parametrize("method", METHODS_TRIED)
def test_a_pixel_of_a_picture_is_a_target(method: str) -> None:
    """Rank 4: segmentation; by its place or by its flat index."""
    proto = two_rows("y = Conv(r, k)", "float[N,3,6,6] y", k=drawn(3, 4, 1, 1))
    explainer = Explainer(proto, method, threads=1)
    e = explainer(XS, target="y[:,2,4,5]")
    assert_equal(explainer(XS, target=2 * 36 + 4 * 6 + 5), e)
    np.testing.assert_allclose(e.target.score, e.outputs["y"][:, 2, 4, 5], rtol=1e-6)
    outside = np.ones((6, 6), bool)
    outside[3:6, 4:6] = False
    assert not e.relevance["x"][:, :, outside].any(), "a 3x3 convolution sees no further"
    with pytest.raises(TargetError):
        explainer(XS, target=108)


@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon", "lrp-z-plus"])
def test_a_single_number_is_a_target(method: str) -> None:
    """Rank 0: a loss, an energy of the whole batch."""
    proto = two_rows("y = ReduceSum<keepdims=0>(r)", "float y")
    explainer = Explainer(proto, method, threads=1)
    e = explainer(XS)
    np.testing.assert_allclose(e.target.score, [e.outputs["y"]], rtol=1e-6)
    assert e.relevance["x"].shape == XS.shape
    assert len(e.conservation) == len(e.target.index) == 1
    assert_equal(explainer(XS, target=0), e)
    if method != "gradient":
        np.testing.assert_allclose(e.relevance["x"].sum(), e.target.score[0], rtol=1e-4)


@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon"])
def test_an_output_whose_first_axis_is_not_the_batch(method: str) -> None:
    """Classes first: y[k, n]; index k·N + n of all samples at once."""
    proto = two_rows("f = Flatten(r)\n m = MatMul(f, k)\n y = Transpose(m)", "float[3,N] y", k=drawn(144, 3))
    straight = Explainer(
        two_rows("f = Flatten(r)\n y = MatMul(f, k)", "float[N,3] y", k=drawn(144, 3)), method, threads=1
    )
    explainer = Explainer(proto, method, threads=1)
    e = explainer(XS, target="y[2,1]")
    wanted = straight(XS, target="y[1,2]").relevance["x"]
    np.testing.assert_allclose(e.relevance["x"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(e.target.score, [e.outputs["y"][2, 1]], rtol=1e-6)
    for wrong in ("y[3,0]", "y[0,2]", "y[0,-3]", 6):
        with pytest.raises(TargetError):
            explainer(XS, target=wrong)


def test_an_open_output_size_is_checked_against_the_run() -> None:
    """Neither a huge index nor a huge place may silently explain nothing."""
    proto = model("g (float[N,2,H,W] x) => (float[N,3,P,Q] y) { y = Conv(x, k) }", k=drawn(3, 2, 1, 1))
    explainer = Explainer(proto, "gradient", threads=1)
    for size in (5, 7):
        x = drawn(2, 2, size, size)
        assert explainer(x, target=f"y[:,0,{size - 1},0]").relevance["x"][:, :, size - 1, 0].any()
        for wrong in (3 * size * size, f"y[0,0,{size},0]", "y[0,3,0,0]"):
            with pytest.raises(TargetError):
                explainer(x, target=wrong)


# ------------------------------------------------------------------------------------------- which tensor


def test_the_logits_are_explained_unless_asked_otherwise(explainer: Explainer) -> None:
    assert explainer(X).target.tensor == "logits"
    plain = Explainer(residual_cnn(), "gradient", logits=False, threads=1)(X, target=1)
    assert plain.target.tensor == "scores"
    np.testing.assert_allclose(plain.target.score, plain.outputs["scores"][:, 1], rtol=1e-6)


@pytest.mark.parametrize("name", ["logits", "a2", "r1", "p1", "g", "c1"])
def test_an_inner_tensor_is_a_target(name: str) -> None:
    places = {"logits": "[:,1]", "g": "[:,1,0,0]"}.get(name, "[:,1,3,2]")
    by_target = Explainer(residual_cnn(), "lrp-epsilon", threads=1)(X, target=name + places)
    by_output = Explainer(residual_cnn(), "lrp-epsilon", output=name, threads=1)(X, target=name + places)
    assert by_target.target.tensor == by_output.target.tensor == name
    assert_equal(by_target, by_output)
    kept = Explainer(residual_cnn(), "lrp-epsilon", keep=[name], threads=1)(X, target=name + places).kept[name]
    flat = kept.reshape(3, -1)
    np.testing.assert_allclose(flat[np.arange(3), by_target.target.index], by_target.target.score, rtol=1e-6)
    assert (flat != 0).sum() <= 3, "relevance starts at that element alone"


@pytest.mark.parametrize(("output", "shape"), [("y", (3,)), ("pooled", (4, 1, 1))])
def test_any_of_several_outputs_is_a_target(output: str, shape: tuple[int, ...]) -> None:
    place = ",".join(str(s - 1) for s in shape)
    by_text = Explainer(two_by_two(), "lrp-epsilon", threads=1)(two_feeds(), target=f"{output}[:,{place}]")
    by_output = Explainer(two_by_two(), "lrp-epsilon", output=output, threads=1)(
        two_feeds(), target=int(np.prod(shape)) - 1
    )
    assert by_text.target.tensor == output
    assert_equal(by_text, by_output)
    np.testing.assert_allclose(by_text.target.score, by_text.outputs[output].reshape(2, -1)[:, -1], rtol=1e-6)


def test_an_output_of_integers_is_no_target() -> None:
    with pytest.raises(TargetError, match="best"):
        Explainer(two_by_two(), "gradient", threads=1)(two_feeds(), target="best[0,0]")


@pytest.mark.parametrize("name", ["out[0]", "a[0,1]b", "x:0", "m/y"])
def test_an_output_with_brackets_in_its_name_is_a_target(name: str) -> None:
    proto = two_rows("f = Flatten(r)\n y = MatMul(f, k)", "float[N,3] y", k=drawn(144, 3))
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = name
    wanted = Explainer(proto, "gradient", threads=1)(XS, target=2)
    assert_equal(Explainer(proto, "gradient", threads=1)(XS, target=f"{name}[:,2]"), wanted)


# ------------------------------------------------------------------------------------------- seeds


@pytest.mark.parametrize(
    "method", ["lrp-epsilon", "lrp-z-plus", "lrp-alpha2-beta1", "lrp-epsilon-plus-flat", "lrp-zero"]
)
def test_the_seed_is_the_score_or_one(method: str) -> None:
    """The rules are linear in the relevance: the two differ by the score."""
    score = Explainer(residual_cnn(), method, threads=1)(X)
    one = Explainer(residual_cnn(), method, seed="one", threads=1)(X)
    scaled = one.relevance["picture"] * one.target.score.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        scaled, score.relevance["picture"], rtol=0, atol=1e-4 * np.abs(score.relevance["picture"]).max()
    )
    np.testing.assert_allclose(
        one.absorbed * one.target.score, score.absorbed, rtol=0, atol=1e-3 * np.abs(score.target.score).max()
    )
    np.testing.assert_array_less(score.conservation, 0.01)
    np.testing.assert_array_less(one.conservation, 0.01)


@pytest.mark.parametrize("seed", ["score", "one"])
@pytest.mark.parametrize("variant", ["general", "published"])
def test_rap_starts_at_what_is_asked_for(seed: Any, variant: str) -> None:
    e = Explainer(residual_cnn(), "rap", variant=variant, seed=seed, threads=1)(X)
    seeded = e.target.score if seed == "score" else np.ones(3)
    total = e.relevance["picture"].astype(np.float64).sum((1, 2, 3)) + e.absorbed
    np.testing.assert_allclose(e.conservation, np.abs(seeded - total) / np.abs(seeded), rtol=1e-3, atol=1e-6)
    if variant == "general":
        np.testing.assert_array_less(e.conservation, 0.01)


def test_rap_conserves_where_no_layer_has_weights() -> None:
    proto = model(
        "g (float[N,2,6,6] x) => (float[N,2] y) { r = Relu(x)\n y = ReduceMean<keepdims=0>(r, a) }", a=np.array([2, 3])
    )
    np.testing.assert_array_less(Explainer(proto, "rap", threads=1)(XS).conservation, 0.01)


def test_the_gradient_of_a_seed_of_score_is_scaled() -> None:
    one = Explainer(residual_cnn(), "gradient", threads=1)(X)
    score = Explainer(residual_cnn(), "gradient", seed="score", threads=1)(X)
    wanted = one.relevance["picture"] * one.target.score.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(score.relevance["picture"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_negative_score_starts_nothing_in_deep_taylor() -> None:
    explainer = Explainer(residual_cnn(), "deep-taylor", threads=1)
    scores = np.stack([explainer(X, target=k).target.score for k in range(5)], axis=1)
    assert (scores.min(1) < 0).any(), "the case must show what it says"
    e = explainer(X, target=scores.argmin(1))
    for n, score in enumerate(e.target.score):
        assert e.relevance["picture"][n].any() == (score > 0)
    np.testing.assert_array_less(e.conservation, 0.01)
