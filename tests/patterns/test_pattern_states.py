"""Neurons without a pattern: dead, constant, ill-conditioned, driven by their bias; and what stands in for them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pattern_nets import Array, build, data, node

from onnx_explain import Explainer, MethodError
from onnx_explain.fitting import fit_patterns
from onnx_explain.patterns import Patterns
from onnx_explain.patterns.estimators import CONSTANT, DEAD, FEW, FINE, NEGATIVE

ODD = [
    "dead by its bias",
    "fine",
    "a zero filter, always on",
    "a zero filter, dead",
    "always on",
    "fires once",
    "bias-driven",
]


def degenerate() -> tuple[onnx.ModelProto, Array]:
    """A dense net whose hidden neurons are each odd in a way of their own, and data under which they are."""
    generator = np.random.default_rng(5)
    x = generator.standard_normal((60, 6)).astype(np.float32)
    w = generator.standard_normal((7, 6)).astype(np.float32) * 0.5
    b = np.zeros(7, np.float32)
    b[0] = -100
    w[2], b[2] = 0, 1
    w[3], b[3] = 0, -1
    b[4] = 100
    reach = np.sort(x @ w[5])
    b[5] = -(reach[-1] + reach[-2]) / 2
    b[6] = 100
    x[0] = -40 * w[6] / (w[6] @ w[6])  # one patch below the rest, and still firing
    head = generator.standard_normal((3, 7)).astype(np.float32)
    nodes = [
        node("Gemm", ["x", "w", "b"], "h", "hidden", transB=1),
        node("Relu", ["h"], "r"),
        node("Gemm", ["r", "v"], "y", "head", transB=1),
    ]
    weights = [numpy_helper.from_array(a, n) for n, a in (("w", w), ("b", b), ("v", head))]
    return build(nodes, ["N", 6], weights), x


@pytest.fixture(scope="module")
def fitted() -> tuple[onnx.ModelProto, Array, Patterns]:
    model, x = degenerate()
    return model, x, fit_patterns(model, x)


def test_every_odd_neuron_is_told(fitted: tuple[onnx.ModelProto, Array, Patterns]) -> None:
    states = fitted[2].estimate("hidden", "positive").state
    assert dict(zip(ODD, states[:6])) == dict(zip(ODD, [DEAD, FINE, CONSTANT, DEAD, FINE, FEW]))
    row = fitted[2].diagnostics()[0]
    assert (row["dead"], row["constant"], row["few"]) == (2, 1, 1)
    assert row["which"]["dead"] == [0, 3] and row["which"]["constant"] == [2]


def test_a_zeroed_neuron_passes_no_relevance(fitted: tuple[onnx.ModelProto, Array, Patterns]) -> None:
    found = fitted[2].estimate("hidden", "positive")
    assert not found.rows[found.zeroed].any() and np.isfinite(found.rows).all()


def test_a_pattern_times_its_weight_is_one(fitted: tuple[onnx.ModelProto, Array, Patterns]) -> None:
    model, _, patterns = fitted
    w = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    for which in ("linear", "positive"):
        found = patterns.estimate("hidden", which)
        assert np.abs((w * found.rows).sum(1)[~found.zeroed] - 1).max() < 1e-9


def test_a_neuron_that_fires_once_has_memorised_that_sample(fitted: tuple[onnx.ModelProto, Array, Patterns]) -> None:
    model, x, patterns = fitted
    w, b = (numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer[:2])
    wide = x.astype(np.float64)
    once = wide[(wide @ w[5] + b[5]) > 0][0]
    np.testing.assert_allclose(patterns.estimate("hidden", "positive").rows[5], once / (w[5] @ once), rtol=1e-6)


def test_a_negative_denominator_is_kept_and_told() -> None:
    """E₊[wᵀx] < 0: the neuron fires because of its bias, most when its input speaks against it."""
    x = np.concatenate([np.full((30, 1), -2.0), np.full((30, 1), -9.0), np.full((30, 1), -2.5)]).astype(np.float32)
    weights = [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in (("w", [[1.0]]), ("b", [3.0]))]
    model = build([node("Gemm", ["x", "w", "b"], "h", "hidden"), node("Relu", ["h"], "y")], ["N", 1], weights)
    found = fit_patterns(model, x, backend="reference").estimate("hidden", "positive")
    assert found.state[0] == NEGATIVE and found.denominator[0] < 0 and abs(found.rows[0, 0] - 1) < 1e-9


def test_what_stands_in_for_a_missing_pattern(fitted: tuple[onnx.ModelProto, Array, Patterns]) -> None:
    """With the linear pattern or the filter, relevance goes on through a neuron that was dead in the data."""
    model, _, patterns = fitted
    w, b, v = (numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    x = (120 * w[0] / (w[0] @ w[0]))[None].astype(np.float32)  # wakes neuron 0
    assert x[0] @ w[0] + b[0] > 0
    on = (x.astype(np.float64) @ w.T + b > 0)[0]
    z = np.maximum(x.astype(np.float64) @ w.T + b, 0) @ v.T
    k = int(z.argmax())
    back = z[0, k] * (v[k] * patterns.estimate("head", "linear").rows[k]) * on
    for fallback, row in (
        ("zero", 0 * w[0]),
        ("linear", patterns.estimate("hidden", "linear").rows[0]),
        ("filter", w[0] / (w[0] @ w[0])),
    ):
        a = patterns.estimate("hidden", "positive").rows.copy()
        a[0] = row
        if fallback == "linear":
            a[[2, 3]] = patterns.estimate("hidden", "linear").rows[[2, 3]]
        for method, weights in (("pattern-net", a), ("pattern-attribution", w * a)):
            start = (
                back if method == "pattern-attribution" else z[0, k] * patterns.estimate("head", "linear").rows[k] * on
            )
            found = Explainer(model, method, patterns=patterns, fallback=fallback, backend="reference")(x).relevance[
                "x"
            ]
            np.testing.assert_allclose(found[0], start @ weights, atol=1e-9 * np.abs(start @ weights).max() + 1e-12)


def test_one_sample_is_enough_and_told() -> None:
    model, x = degenerate()
    patterns = fit_patterns(model, x[:1])
    assert np.isfinite(patterns.pattern("hidden", "positive")).all()
    assert patterns.diagnostics()[0]["neurons"] == 7
    r = Explainer(model, "pattern-attribution", patterns=patterns)(data(2, 6)).relevance["x"]
    assert np.isfinite(r).all()


def test_a_constant_picture_leaves_no_pattern() -> None:
    model, x = degenerate()
    patterns = fit_patterns(model, np.repeat(x[:1], 20, axis=0))
    assert set(patterns.estimate("head", "linear").state) == {CONSTANT}


def test_a_limit_takes_out_patterns_that_drown_the_others() -> None:
    """A bias that makes a neuron fire leaves wᵀN₊ near 0; beyond the limit the linear pattern stands in."""
    generator = np.random.default_rng(2)
    x = generator.standard_normal((300, 4)).astype(np.float32)
    x[:, 0] += 1
    w = np.asarray([[1.0, 0.2, 0, 0], [0.3, 1, 0, 0]], np.float32)
    weights = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in (("w", w), ("b", np.asarray([0.0, 0.55])))]
    model = build([node("Gemm", ["x", "w", "b"], "h", "hidden", transB=1), node("Relu", ["h"], "y")], ["N", 4], weights)
    patterns = fit_patterns(model, x, backend="reference")
    wild = patterns.estimate("hidden", "positive")
    limit = float(np.sort(wild.amplification).mean())
    tamed = patterns.estimate("hidden", "positive", limit=limit)
    worse = int(wild.amplification.argmax())
    assert tamed.zeroed.tolist() == [i == worse for i in range(2)]
    options = {"patterns": patterns, "estimator": "positive", "fallback": "linear", "backend": "reference"}
    found = Explainer(model, "pattern-attribution", limit=limit, **options)(x[:1], target=worse).relevance["x"]
    score = max(float(x[0].astype(np.float64) @ w[worse] + [0, 0.55][worse]), 0)
    expected = score * w[worse] * patterns.estimate("hidden", "linear").rows[worse]
    np.testing.assert_allclose(found[0], expected, rtol=1e-6, atol=1e-9)


def test_a_limit_below_one_is_refused() -> None:
    model, x = degenerate()
    with pytest.raises(MethodError, match="at least 1"):
        Explainer(model, "pattern-net", patterns=fit_patterns(model, x), limit=0.5)
