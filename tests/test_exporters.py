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
