"""PatternNet and PatternAttribution: the peers' arrays, a slow oracle, nets with BatchNormalization and branches, conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from pattern_nets import Array, build, convnet, data, node, residual, weight

from onnx_explain import Explainer, MethodError
from onnx_explain.fitting import fit_patterns, pattern_quality
from onnx_explain.patterns import Patterns

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "classic"
NAMES = {"conv1": "c1", "conv2": "c2", "conv3": "c3", "fc1": "f1", "fc2": "f2"}
PEERS = {
    "linear": ("lin", "linear", "basic"),
    "positive": ("pos", "relu.positive", "positive_y"),
    "negative": ("neg", "relu.negative", "negative_y"),
}
shared = pytest.mark.skipif(not (GOLDEN / "pat16.onnx").is_file(), reason="the golden arrays are not on this machine")


def worst(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


class Golden:
    def __init__(self) -> None:
        self.model = GOLDEN / "pat16.onnx"
        self.data, self.reference, self.nn, self.innvestigate = (
            np.load(GOLDEN / f"pat16.{n}.npz") for n in ("data", "reference", "nn_patterns", "innvestigate.f64")
        )
        train = self.data["X_train"]
        self.exact = fit_patterns(self.model, train, backend="reference", batch_size=64)
        self.fast = fit_patterns(self.model, train, batch_size=64)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


@shared
@pytest.mark.parametrize("layer", NAMES)
@pytest.mark.parametrize("which", PEERS)
def test_patterns_equal_those_the_peers_fitted(golden: Golden, layer: str, which: Any) -> None:
    ours, peer, theirs = PEERS[which]
    exact, fast = golden.exact.pattern(layer, which), golden.fast.pattern(layer, which)
    key = NAMES[layer]
    assert worst(exact, golden.reference[f"pattern/{ours}/{key}"]) < 1e-9
    for found in (exact, fast):
        assert worst(found, golden.innvestigate[f"pattern/{peer}/{key}"]) < 1e-6
        assert worst(found, golden.nn[f"pattern/{theirs}/A/{key}"]) < 1e-6


@shared
@pytest.mark.parametrize("layer", ["conv1", "conv3", "fc1"])
def test_mergeable_states_equal_the_reference(golden: Golden, layer: str) -> None:
    train = golden.data["X_train"]
    parts = [fit_patterns(golden.model, x, backend="reference", batch_size=50) for x in (train[:200], train[200:])]
    whole = parts[0].merged(parts[1])
    for name, patterns in (("shardA", parts[0]), ("shardB", parts[1]), ("merged", whole)):
        for regime, short in (("positive", "pos"), ("negative", "neg")):
            found: dict[str, Array] = patterns.weight(layer).sums.central(regime)  # type: ignore[arg-type]
            for key, ours in (("n", "n"), ("mx", "mean_x"), ("my", "mean_y"), ("C", "C"), ("S", "S")):
                expected = golden.reference[f"state/{name}/{NAMES[layer]}/{short}/{key}"]
                value = found[ours].T if found[ours].ndim == 2 else found[ours]
                assert worst(value, expected) < 1e-10, (name, regime, key)


@shared
@pytest.mark.parametrize("backend", ["reference", "onnx"])
@pytest.mark.parametrize("method", ["pattern-net", "pattern-attribution"])
@pytest.mark.parametrize("which", ["linear", "positive", "auto"])
def test_the_way_back_equals_the_peers(golden: Golden, backend: Any, method: str, which: Any) -> None:
    patterns = golden.exact if backend == "reference" else golden.fast
    explain = Explainer(golden.model, method, patterns=patterns, estimator=which, backend=backend)
    found = explain(golden.data["X_test"]).relevance["x"]
    short = method.replace("-", "")
    ours = PEERS[which][0] if which in PEERS else "pos_hidden_lin_output"
    assert worst(found, golden.reference[f"backward/{short}/{ours}"]) < (1e-9 if backend == "reference" else 1e-5)
    if which in PEERS:
        _, peer, theirs = PEERS[which]
        name = {"patternnet": "PatternNetExplainer", "patternattribution": "PatternLRPExplainer"}[short]
        assert worst(found, golden.innvestigate[f"{short}/{peer}/raw"]) < 1e-5
        assert worst(found, golden.nn[f"{name}/{theirs}"]) < 1e-5


@shared
def test_another_class_and_the_guided_variant_equal_the_peers(golden: Golden) -> None:
    x = golden.data["X_test"]
    for which in ("linear", "positive"):
        explain = Explainer(golden.model, "pattern-net", patterns=golden.fast, estimator=which)
        first = explain(x, target=0).relevance["x"]
        assert worst(first, golden.innvestigate[f"patternnet_idx0/{PEERS[which][1]}/raw"]) < 1e-5
        guided = Explainer(golden.model, "pattern-net", patterns=golden.fast, estimator=which, guided=True)
        assert worst(guided(x).relevance["x"], golden.nn[f"GuidedPatternNetExplainer/{PEERS[which][2]}"]) < 1e-5


@shared
def test_the_quality_of_estimators_equals_the_reference(golden: Golden) -> None:
    drawn = {layer: golden.reference[f"rho/random_u/{key}"] for layer, key in NAMES.items()}
    shorts = {"random": "rand", "filter": "w", "linear": "a", "two-component": "apm"}
    for tag, score in (("rho_in", golden.data["X_val"]), ("rho_out", golden.data["X_eval"])):
        found = pattern_quality(
            golden.model, golden.exact, golden.data["X_val"], score, backend="reference", random=drawn
        )
        for layer in found:
            for name, short in shorts.items():
                expected = golden.reference[f"{tag}/{short}/{NAMES[layer.node]}"]
                # of fc2's filter one ρ is 1.4e-5 in the reference, which cuts off a direction that says y exactly
                bound = 2e-5 if (layer.node, name) == ("fc2", "filter") else 1e-6
                assert np.abs(layer.rho[name] - expected).max() < bound, (tag, layer.node, name)


# -- nets of other shapes


def explained(model: onnx.ModelProto, patterns: Patterns, x: Array, **options: Any) -> Array:
    return Explainer(model, "pattern-attribution", patterns=patterns, **options)(x).relevance["x"]


def test_batch_normalization_is_folded_before_patterns_are_fitted() -> None:
    """The same net with the normalization in the weights has the same patterns and the same maps."""
    model = convnet()
    c = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    factor = c["g"] / np.sqrt(c["var"] + 1e-5)
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    del folded.graph.node[1]
    folded.graph.node[0].input.append("bf")
    folded.graph.node[0].output[0] = "bn"
    w = numpy_helper.from_array((c["w1"] * factor[:, None, None, None]).astype(np.float32), "w1")
    folded.graph.initializer[0].CopyFrom(w)
    folded.graph.initializer.append(numpy_helper.from_array((c["be"] - c["mu"] * factor).astype(np.float32), "bf"))
    x = data(30, 2, 10, 10)
    a, b = fit_patterns(model, x), fit_patterns(folded, x)
    for which in ("linear", "positive"):
        assert worst(a.pattern("c1", which), b.pattern("c1", which)) < 1e-5
    assert worst(explained(model, a, x[:3]), explained(folded, b, x[:3])) < 1e-5


@pytest.mark.parametrize("make", [convnet, residual])
@pytest.mark.parametrize(
    "options", [{}, {"sums": "covariance"}, {"estimator": "two-component"}, {"fallback": "filter"}]
)
def test_the_converted_model_gives_the_same_maps(make: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = make()
    x = data(20, *[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]])
    patterns = fit_patterns(model, x)
    file = tmp_path / "p.safetensors"
    patterns.save(file)
    explainer = Explainer(model, "pattern-attribution", patterns=str(file), **options)
    for fold in (False, True):
        proto = explainer.convert(tmp_path / "e.onnx", fold=fold)
        session = onnxruntime.InferenceSession(str(tmp_path / "e.onnx"), providers=["CPUExecutionProvider"])
        found = session.run(["x_relevance"], {"x": x[:4]})[0]
        assert worst(found, explainer(x[:4]).relevance["x"]) < 1e-6
        assert not any(n.domain for n in proto.graph.node)


def test_a_sum_is_split_by_covariance_where_asked_for() -> None:
    """Every channel's shares add up to 1, so what leaves the Sum is what came to it."""
    model = residual()
    x = data(25, 2, 6, 6)
    patterns = fit_patterns(model, x, backend="reference")
    options: dict[str, Any] = {"patterns": patterns, "backend": "reference", "keep": ["sum", "c2", "r1"]}
    split = Explainer(model, "pattern-attribution", sums="covariance", **options)(x[:3])
    passed = Explainer(model, "pattern-attribution", **options)(x[:3])
    share = patterns.sums[0].sums.split()[:, None, :, None, None]
    np.testing.assert_allclose(split.kept["c2"], split.kept["sum"] * share[0], rtol=1e-9)
    np.testing.assert_allclose(passed.kept["c2"], passed.kept["sum"], rtol=1e-12)


@pytest.mark.parametrize("layers", [12, 44])
def test_a_signal_that_outgrows_float32_keeps_its_direction(layers: int) -> None:
    nodes, weights, last = [], [weight("v", 2, 6)], "x"
    for i in range(layers):
        weights.append(weight(f"w{i}", 6, 6, scale=0.02))
        nodes += [node("Gemm", [last, f"w{i}"], f"g{i}", f"layer{i}", transB=1), node("Relu", [f"g{i}"], f"r{i}")]
        # behind every third layer a detour of two outputs, and a branch past it that is as strong
        if i % 3 == 2:
            nodes.append(helper.make_node("Split", [f"r{i}"], [f"a{i}", f"b{i}"], f"split{i}", axis=1, num_outputs=2))
            nodes += [node("Concat", [f"b{i}", f"a{i}"], f"t{i}", axis=1), node("Add", [f"t{i}", f"g{i - 2}"], f"s{i}")]
        last = f"s{i}" if i % 3 == 2 else f"r{i}"
    model = build([*nodes, node("Gemm", [last, "v"], "y", "head", transB=1)], ["N", 6], weights)
    x = data(40, 6)
    patterns = fit_patterns(model, x, backend="reference")
    found, expected = (
        Explainer(model, "pattern-net", patterns=patterns, estimator="linear", backend=b)(x[:3]).relevance["x"]
        for b in ("onnx", "reference")
    )
    largest = np.abs(expected).max(axis=1, keepdims=True)
    assert np.isfinite(found).all()
    assert (largest > 1e30).all() == (layers > 12)
    np.testing.assert_allclose(found / largest, expected / largest, atol=2e-3)
    free = gradient_with(model, patterns, x[:3])  # in float64, where nothing is scaled
    np.testing.assert_allclose(expected / largest, free / np.abs(free).max(axis=1, keepdims=True), atol=1e-9)


def gradient_with(model: onnx.ModelProto, patterns: Patterns, x: Array) -> Array:
    """PatternNet as what it is: the derivative of the linear piece at x, with patterns for weights; float64 without any scaling."""
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    names = {n.name: n.input[1] for n in model.graph.node if n.op_type == "Gemm"}
    a = {names[k]: patterns.pattern(k, "linear") for k in names}
    known: dict[str, Array] = {"x": x.astype(np.float64)}
    slope: dict[str, Array] = {"x": np.broadcast_to(np.eye(6), (len(x), 6, 6))}
    for n in model.graph.node:
        v, s = known[n.input[0]], slope[n.input[0]]
        out = n.output[0]
        if n.op_type == "Gemm":
            known[out], slope[out] = v @ held[n.input[1]].T, a[n.input[1]] @ s
        elif n.op_type == "Relu":
            known[out], slope[out] = np.maximum(v, 0), (v > 0)[:, :, None] * s
        elif n.op_type == "Split":
            for k, o in enumerate(n.output):
                known[o], slope[o] = v[:, 3 * k : 3 * k + 3], s[:, 3 * k : 3 * k + 3]
        elif n.op_type == "Concat":
            known[out] = np.concatenate([v, known[n.input[1]]], 1)
            slope[out] = np.concatenate([s, slope[n.input[1]]], 1)
        else:
            known[out], slope[out] = v + known[n.input[1]], s + slope[n.input[1]]
    y = known["y"]
    k = y.argmax(1)
    return np.asarray(slope["y"][np.arange(len(x)), k] * y.max(1)[:, None])


RECTIFIERS = {
    "Relu": [("Relu", ["g"])],
    "Clip": [("Clip", ["g", "zero", "six"])],
    "Max": [("Max", ["g", "zero"])],
    "Max of Min": [("Min", ["g", "six"]), ("Max", ["", "zero"])],
    "Cast": [("Cast", ["g"]), ("Relu", [""])],
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_neuron_fires_where_the_rectifier_behind_its_scale_and_shift_lets_pass(name: str) -> None:
    h, k = np.array([-2.0, 0.5, 3.0, -1.0], np.float32), np.array([0.3, -0.4, 0.1, 0.2], np.float32)
    constants = {"k": k, "h": h, "zero": np.float32(0), "six": np.float32(1e3)}
    behind, last = [], "g"
    for i, (operator, operands) in enumerate(RECTIFIERS[name]):
        options = {"to": 1} if operator == "Cast" else {}
        behind.append(node(operator, [o or last for o in operands], f"r{i}", **options))
        last = f"r{i}"
    w, v = weight("w", 4, 5), weight("v", 2, 4)
    first = node("Gemm", ["x", "w"], "c", "hidden", transB=1)
    scaled = [first, node("Mul", ["c", "h"], "d"), node("Add", ["k", "d"], "g"), *behind]
    apart = [*scaled, node("Gemm", [last, "v"], "y", "head", transB=1)]
    model = build(apart, ["N", 5], [w, v, *(numpy_helper.from_array(a, n) for n, a in constants.items())])
    whole = numpy_helper.from_array(numpy_helper.to_array(w) * h[:, None], "w")
    one = [node("Gemm", ["x", "w", "k"], "g", "hidden", transB=1), node("Relu", ["g"], "r")]
    folded = build(
        [*one, node("Gemm", ["r", "v"], "y", "head", transB=1)], ["N", 5], [whole, v, numpy_helper.from_array(k, "k")]
    )
    found, expected = (fit_patterns(m, data(60, 5), backend="reference") for m in (model, folded))
    assert [f.regime for f in found.weights] == ["positive", "linear"]
    np.testing.assert_allclose(
        found.pattern("hidden", "positive"), expected.pattern("hidden", "positive") * h[:, None], rtol=1e-6
    )


def test_rectifier_like_functions_have_a_pattern_per_regime() -> None:
    nodes = [
        node("Gemm", ["x", "w", "b"], "h", "hidden", transB=1),
        node("LeakyRelu", ["h"], "r", alpha=0.25),
        node("Gemm", ["r", "v"], "y", "head", transB=1),
    ]
    model = build(nodes, ["N", 5], [weight("w", 4, 5), weight("b", 4), weight("v", 2, 4)])
    x = data(50, 5)
    patterns = fit_patterns(model, x, backend="reference")
    assert [w.regime for w in patterns.weights] == ["two-component", "linear"]
    w, b, v = (numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer)
    on, off = (patterns.pattern("hidden", r) for r in ("positive", "negative"))
    wide = x[:4].astype(np.float64)
    h = wide @ w.T + b
    z = np.where(h > 0, h, 0.25 * h) @ v.T
    k = z.argmax(1)
    head = z.max(1)[:, None] * (v * patterns.pattern("head", "linear"))[k]
    back = head * np.where(h > 0, 1, 0.25)
    expected = (back * (h > 0)) @ (w * on) + (back * (h <= 0)) @ (w * off)
    found = Explainer(model, "pattern-attribution", patterns=patterns, backend="reference")(x[:4]).relevance["x"]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_a_factor_beside_the_weight_is_taken_into_account(alpha: float) -> None:
    """Gemm's alpha: the neuron is alpha·w, whose pattern the signal carries once."""
    w = weight("w", 3, 5)
    scaled = numpy_helper.from_array((numpy_helper.to_array(w) * alpha).astype(np.float32), "w")
    x = data(40, 5)
    results = []
    for tensor, attribute in ((w, alpha), (scaled, 1.0)):
        model = build([node("Gemm", ["x", "w"], "y", "it", transB=1, alpha=attribute)], ["N", 5], [tensor])
        patterns = fit_patterns(model, x, backend="reference")
        for method in ("pattern-net", "pattern-attribution"):
            for fallback in ("zero", "filter"):
                explain = Explainer(model, method, patterns=patterns, fallback=fallback, backend="reference")
                results.append(explain(x[:3]).relevance["x"])
    for a, b in zip(results[:4], results[4:]):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_weight_that_two_nodes_share_has_a_pattern_at_each() -> None:
    nodes = [
        node("MatMul", ["x", "w"], "a", "first"),
        node("Relu", ["a"], "r"),
        node("MatMul", ["r", "w"], "y", "second"),
    ]
    model = build(nodes, ["N", 4], [weight("w", 4, 4)])
    patterns = fit_patterns(model, data(30, 4))
    assert [w.node for w in patterns.weights] == ["first", "second"]
    assert worst(patterns.pattern("first", "linear"), patterns.pattern("second", "linear")) > 1e-3


# -- faults


def test_a_method_without_patterns_says_where_to_get_them() -> None:
    with pytest.raises(MethodError, match="fit-patterns"):
        Explainer(convnet(), "pattern-attribution")
    with pytest.raises(MethodError, match="must be a file"):
        Explainer(convnet(), "pattern-net", patterns=3)


def test_patterns_of_another_model_are_refused_by_the_weight_that_differs() -> None:
    x = data(6, 2, 10, 10)
    patterns = fit_patterns(convnet(), x)
    other = convnet()
    tensor = next(t for t in other.graph.initializer if t.name == "w2")
    changed = numpy_helper.to_array(tensor).copy()
    changed[0, 0, 0, 0] += 1e-3
    tensor.CopyFrom(numpy_helper.from_array(changed, "w2"))
    with pytest.raises(MethodError, match=r"node 'c2' \(Conv\): its weight 'w2' differs"):
        explained(other, patterns, x)
    with pytest.raises(MethodError, match=r"node 'dense' \(Gemm\): its weight 'w3' has not the shape \[3, 6\]"):
        explained(residual(), patterns, data(2, 2, 6, 6))


def test_a_node_that_was_not_fitted_is_named() -> None:
    patterns = fit_patterns(convnet(), data(6, 2, 10, 10))
    other = convnet()
    other.graph.node[-1].name = "classifier"
    with pytest.raises(MethodError, match="hold nothing for node 'classifier'"):
        explained(other, patterns, data(2, 2, 10, 10))


@pytest.mark.parametrize("name, node_name", [("b2", "c2"), ("mu", "c1"), ("g", "c1")])
def test_a_changed_bias_or_normalization_is_seen(name: str, node_name: str) -> None:
    x = data(6, 2, 10, 10)
    patterns = fit_patterns(convnet(), x)
    other = convnet()
    tensor = next(t for t in other.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), name))
    with pytest.raises(MethodError, match=f"node '{node_name}'"):
        explained(other, patterns, x)


def test_the_same_weights_in_another_file_are_welcome() -> None:
    x = data(6, 2, 10, 10)
    patterns = fit_patterns(convnet(), x)
    other = convnet(batch=1)
    other.producer_name = "another exporter"
    assert worst(explained(other, patterns, x[:2]), explained(convnet(), patterns, x[:2])) < 1e-6
