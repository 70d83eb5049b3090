"""What exporters of detectors leave in a graph: numbers of boxes that the run decides, and branches that pick them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from onnx_explain import Explainer

# the squares of the entries within 1 of the largest, picked by a branch as suppression is
PICKED = """<ir_version: 8, opset_import: ["" : 18]>
picked (float[1,5] x) => (float[K] y) <float zero = {0}, int64 second = {1}, int64[1] front = {0}> {
    top = ReduceMax <keepdims=0> (x)
    some = Greater (top, zero)
    kept = If (some) <
        then_branch = near () => (int64[K] columns) {
            less = Constant <value = float {-1.0}> ()
            bound = Add (top, less)
            close = Greater (x, bound)
            places = NonZero (close)
            columns = Gather <axis=0> (places, second)
        },
        else_branch = none () => (int64[K] nothing) { nothing = Constant <value = int64[1] {0}> () }
    >
    squares = Mul (x, x)
    row = Squeeze (squares, front)
    y = Gather (row, kept)
}"""
X = np.array([[1.0, 3.5, -2.0, 3.0, 3.25]], np.float32)


@pytest.mark.parametrize("backend", ["onnx", "reference"])
def test_entries_that_a_branch_picks_are_explained_in_both_precisions(backend: str) -> None:
    e = Explainer(parser.parse_model(PICKED), method="gradient", backend=backend)(X)
    assert e.relevance["x"].tolist() == [[0.0, 7.0, 0.0, 0.0, 0.0]]
    assert np.allclose(e.outputs["y"], [12.25, 9.0, 10.5625])


# tokens before samples, as attention written for sequences first has them; the biases absorb relevance there
TOKENS_FIRST = """<ir_version: 8, opset_import: ["" : 18]>
sequence (float[N,3,2] x) => (float[N,2] y)
<float[2,2] w = {1.0, -2.0, 3.0, 0.5}, float[2] b = {0.3, -0.7}, int64[3] heads = {3, -1, 1}, int64[1] front = {0}> {
    first = Transpose <perm=[1,0,2]> (x)
    mixed = MatMul (first, w)
    moved = Add (mixed, b)
    active = Relu (moved)
    apart = Reshape (active, heads)
    open = Sigmoid (apart)
    gated = Mul (apart, open)
    whole = Shape (moved)
    back = Reshape (gated, whole)
    y = ReduceSum <keepdims=0> (back, front)
}"""


# entries picked from a layout that has the samples inside, back in one that has them first
PICKED_INSIDE = """<ir_version: 8, opset_import: ["" : 17]>
inside (float[N,2,2,3] x) => (float[N,2] y)
<int64[2,3,1,2] places = {0,0, 1,1, 0,1, 1,0, 0,0, 1,1}, float[3] b = {0.5, -1.0, 2.0},
 float[3,2] w = {1.0, -2.0, 3.0, 0.5, 0.4, -0.7}> {
    first = Transpose <perm=[1,2,0,3]> (x)
    picked = GatherND (first, places)
    back = Transpose <perm=[3,1,0,2,4]> (picked)
    moved = Add (back, b)
    active = Relu (moved)
    mixed = MatMul (active, w)
    y = ReduceMean <axes=[1,2,3],keepdims=0> (mixed)
}"""


@pytest.mark.parametrize("text, shape", [(TOKENS_FIRST, (4, 3, 2)), (PICKED_INSIDE, (4, 2, 2, 3))])
def test_what_is_absorbed_belongs_to_its_sample_wherever_the_batch_lies(text: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    explain = Explainer(parser.parse_model(text), method="lrp-epsilon")
    together, alone = explain(x, 1), [explain(x[i : i + 1], 1) for i in range(len(x))]
    assert np.allclose(together.absorbed, [float(e.absorbed[0]) for e in alone], atol=1e-5)
    assert together.conservation.max() < 1e-5
    assert np.abs(together.absorbed).max() > 0.1


# the projection of torch's attention: tokens and samples are one axis, the tokens outside
MERGED = """<ir_version: 8, opset_import: ["" : 17]>
merged (float[N,3,2] x) => (float[N,2] y)
<float[2,2] w = {1.0, -2.0, 3.0, 0.5}, float[2] b = {0.3, -0.7}, int64[2] rows = {-1, 2}, int64[3] stacked = {3, -1, 2}> {
    first = Transpose <perm=[1,0,2]> (x)
    flat = Reshape (first, rows)
    mixed = Gemm (flat, w, b)
    active = Relu (mixed)
    back = Reshape (active, stacked)
    last = Transpose <perm=[1,0,2]> (back)
    y = ReduceMax <axes=[1],keepdims=0> (last)
}"""


@pytest.mark.parametrize("batch", ["N", "4"])
@pytest.mark.parametrize("method", ["lrp-epsilon", "lrp-gamma"])
def test_what_is_absorbed_belongs_to_its_sample_where_tokens_and_samples_are_one_axis(method: str, batch: str) -> None:
    x = np.random.default_rng(3).standard_normal((4, 3, 2)).astype(np.float32)
    model = parser.parse_model(MERGED.replace("[N,", f"[{batch},"))
    together = Explainer(model, method=method)(x, 1)
    alone = [Explainer(parser.parse_model(MERGED), method=method)(x[i : i + 1], 1) for i in range(len(x))]
    assert np.allclose(together.absorbed, [float(e.absorbed[0]) for e in alone], atol=1e-5)
    assert together.conservation.max() < 1e-5
    assert np.abs(together.absorbed).max() > 0.1


# a level of a pyramid from which no box that counts is read
TWO_LEVELS = """<ir_version: 8, opset_import: ["" : 18]>
levels (float[1,1,4,4] x) => (float[1,2] y)
<float[2,4] boxes = {0.0, 0.0, 2.0, 2.0, 1.0, 1.0, 3.0, 3.0}, int64[2] owner = {0, 0}, int64[2] row = {1, 1},
 int64[4] all = {0, 1, 2, 3}> {
    squares = Mul (x, x)
    pooled = RoiAlign <output_height=2, output_width=2, sampling_ratio=2> (squares, boxes, owner)
    boxed = ReduceSum <keepdims=0> (pooled, all)
    whole = ReduceSum <keepdims=0> (squares, all)
    a = Reshape (whole, row)
    b = Reshape (boxed, row)
    y = Concat <axis=1> (a, b)
}"""


@pytest.mark.parametrize("backend", ["onnx", "reference"])
def test_regions_that_no_relevance_reaches_get_none(backend: str) -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    explain = Explainer(parser.parse_model(TWO_LEVELS), method="gradient", backend=backend)
    assert np.allclose(explain(x, 0).relevance["x"], 2 * x)
    assert np.abs(explain(x, 1).relevance["x"]).max() > 1.0


@pytest.mark.parametrize(
    "turns", [((1, 0, 2),), ((0, 2, 1), (2, 0, 1)), ((0, 2, 1), (0, 2, 1)), ((1, 0, 2), (1, 0, 2))]
)
def test_features_are_found_behind_any_transpositions(turns: tuple[tuple[int, ...], ...]) -> None:
    names = ["x", *(f"t{i}" for i in range(len(turns)))]
    steps = " ".join(f"{b} = Transpose <perm={list(p)}> ({a})" for a, b, p in zip(names, names[1:], turns))
    size, axes = (4, 3, 2), [0, 1, 2]
    for perm in turns:
        axes = [axes[p] for p in perm]
    width = size[axes[-1]]
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[4,3,2] x) => (float y) <float[{width},1] w = '
        f"{{{','.join('1' * width)}}}> {{{steps} m = MatMul({names[-1]}, w) y = ReduceSum <keepdims=0> (m)}}"
    )
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    assert Explainer(model, "gradient")(x).channel_axis == {"x": axes[-1]}
    assert Explainer(model, "rise", masks=10)(x).relevance["x"].shape == size


# torch.repeat_interleave along the batch, traced: the repeats are a row of ones with the number set in by OneHot
REPEATED = """<ir_version: 8, opset_import: ["" : 17]>
repeated (float[N,2] x) => (float[N,6] y)
<int64[1] wanted = {3}, int64[1] none = {1}, int64[1] place = {1}, int64 rank = {3}, int64[1] middle = {1}, int64[2] flat = {-1, 6}> {
    between = Unsqueeze (x, middle)
    values = Concat <axis=0> (none, wanted)
    hot = OneHot (place, rank, values)
    whole = Constant <value = int64[1] {-1}> ()
    repeats = Reshape (hot, whole)
    three = Tile (between, repeats)
    squares = Mul (three, three)
    y = Reshape (squares, flat)
}"""


def test_repeats_that_are_made_of_a_row_with_one_number_set_are_known() -> None:
    x = np.array([[1.0, -2.0], [3.0, 0.5]], np.float32)
    e = Explainer(parser.parse_model(REPEATED), method="gradient")(x, target=3)
    assert e.relevance["x"].tolist() == [[0.0, -4.0], [0.0, 1.0]]
