"""The Python API as the README and the issue write it: one object, one call, one result, files, chunks, methods as data."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ready import ANYWHERE, FREE, ready
from test_convert import Array, drawn, model, quiet, residual_cnn, run, two_by_two, two_feeds

import onnx_explain
from onnx_explain import (
    METHODS,
    Composite,
    Explainer,
    Explainers,
    Explanation,
    InputError,
    MethodError,
    OutputError,
    Selector,
    build_vjp,
    lrp_composite,
    register_method,
)
from onnx_explain.operators.roles import Linear
from onnx_explain.rules import lrp

X = drawn(8, 3, 16, 16, seed=9)
CHUNKED = 2e-5  # float32, of the largest value: other batch sizes take other kernels


def close(found: Array, wanted: Array, tolerance: float = CHUNKED) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max(initial=1e-30)))


# ------------------------------------------------------------------------------------------- as the issue writes it


def test_the_lines_of_the_issue_run_as_they_stand(tmp_path: Path) -> None:
    onnx.save(residual_cnn(), tmp_path / "model.onnx")
    explainer = Explainer(str(tmp_path / "model.onnx"), method="rap", variant="published", seed="score", device="cpu")
    e = explainer(X[:2], target=[3, 4])
    assert e.relevance["picture"].shape == (2, 3, 16, 16)
    assert e.relevance["picture"].dtype == np.float32
    assert e.outputs["scores"].shape == (2, 5)
    assert (e.target.tensor, e.target.index.tolist()) == ("logits", [3, 4])
    assert e.conservation.shape == e.absorbed.shape == e.target.score.shape == (2,)
    assert e.method == "rap"
    assert e.seconds > 0
    assert e.heatmap().shape == (2, 16, 16)
    e.plot(tmp_path / "out.png")
    e.save(tmp_path / "out.npz")
    explainer.convert(tmp_path / "explained.onnx")
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert len(e) == 2
    assert all(hasattr(onnx_explain, name) for name in onnx_explain.__all__)


def test_a_result_cannot_be_changed_by_assignment() -> None:
    e = Explainer(residual_cnn(), "gradient", threads=1)(X[:1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.method = "rap"  # type: ignore[misc]


def test_an_explainer_tells_what_it_explains() -> None:
    told = repr(Explainer(residual_cnn(), "gradient"))
    assert told == "<Explainer of the given model by gradient; inputs {'picture': float32 [N, 3, 16, 16]}>"


def test_an_explainer_goes_to_another_process_and_explains_alike() -> None:
    explainer = Explainer(residual_cnn(), "lrp-gamma", gamma=0.5, threads=1)
    other = pickle.loads(pickle.dumps(explainer))
    assert (other.method, other.options) == ("lrp-gamma", {"gamma": 0.5})
    close(other(X[:1]).relevance["picture"], explainer(X[:1]).relevance["picture"], 0.0)


def test_a_lone_method_target_or_name_is_a_list_of_one() -> None:
    explainers = Explainers(residual_cnn(), "gradient", threads=1)
    [[e]] = explainers(X[:1], 2)
    assert (explainers.methods, int(e.target.index[0])) == (("gradient",), 2)
    vjp = build_vjp(residual_cnn(), wrt="picture")
    assert [o.name for o in vjp.graph.output][-1] == "picture_gradient"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("GradCAM", "grad-cam"),
        ("IG", "integrated-gradients"),
        ("Smooth Grad", "smoothgrad"),
        ("lrp.epsilon_plus", "lrp-epsilon-plus"),
    ],
)
def test_the_names_of_other_libraries_lead_to_ours(asked: str, meant: str) -> None:
    with pytest.raises(MethodError, match=f"Did you mean '{meant}'"):
        Explainer(residual_cnn(), asked)


def test_a_picture_as_libraries_load_it_is_told_how_to_turn() -> None:
    picture = X[0].transpose(1, 2, 0)
    with pytest.raises(InputError) as told:
        Explainer(residual_cnn(), "gradient", threads=1)(picture)
    assert str(told.value).endswith("The array has its channels last: x.transpose(2, 0, 1)[None].")


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Explainr"):
        onnx_explain.Explainr  # noqa: B018


def test_the_input_is_taken_as_an_array_or_by_name() -> None:
    explainer = Explainer(residual_cnn(), "lrp-epsilon", threads=1)
    wanted = explainer(X).relevance["picture"]
    for given in ({"picture": X}, X.tolist(), X.astype(np.float64), np.asfortranarray(X), X[::-1][::-1]):
        np.testing.assert_array_equal(explainer(given).relevance["picture"], wanted)  # type: ignore[arg-type]
    assert explainer.inputs == {"picture": ((None, 3, 16, 16), np.dtype(np.float32))}
    assert len(explainer.sha256) == 64


def test_the_callers_array_is_not_written_into() -> None:
    x = X.copy()
    x.flags.writeable = False
    Explainer(residual_cnn(), "rap", threads=1)(x)
    np.testing.assert_array_equal(x, X)


def test_one_explainer_serves_many_calls_alike() -> None:
    explainer = Explainer(residual_cnn(), "rap", threads=1)
    first = explainer(X, target=1)
    explainer(X[:3])
    explainer(X[:1], target="r1[0,1,2,3]")
    np.testing.assert_array_equal(explainer(X, target=1).relevance["picture"], first.relevance["picture"])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_relevance_has_the_inputs_own_type_or_float32(dtype: Any) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    proto = model(
        f"g ({kind}[N,6] x) => ({kind}[N,3] y) {{ h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, k) }}",
        w=drawn(6, 5).astype(dtype),
        k=drawn(5, 3).astype(dtype),
    )
    x = drawn(2, 6).astype(dtype)
    for method in ("gradient", "lrp-epsilon", "lrp-z-plus", "rap"):
        e = Explainer(proto, method, threads=1)(x)
        assert e.relevance["x"].dtype == (np.float32 if dtype == np.float16 else dtype)
        assert np.isfinite(e.relevance["x"]).all()
        wide = model(
            "g (float[N,6] x) => (float[N,3] y) { h = MatMul(x, w)\n r = Relu(h)\n y = MatMul(r, k) }",
            w=drawn(6, 5),
            k=drawn(5, 3),
        )
        wanted = Explainer(wide, method, threads=1)(x.astype(np.float32), target=e.target.index).relevance["x"]
        close(e.relevance["x"].astype(np.float64), wanted.astype(np.float64), 0.05 if dtype == np.float16 else 1e-3)


# ------------------------------------------------------------------------------------------- several inputs


@pytest.mark.parametrize("method", ANYWHERE)
def test_every_float_input_has_its_relevance(method: str) -> None:
    if "patterns" in METHODS[method].options:
        pytest.skip("an input of integers multiplies as a weight there, and has no pattern")
    e = Explainer(two_by_two(), method, threads=1, **ready(method, two_by_two(), two_feeds()))(two_feeds())
    assert set(e.relevance) == {"left", "right"}
    assert all(e.relevance[n].shape == two_feeds()[n].shape and np.isfinite(e.relevance[n]).all() for n in e.relevance)
    if METHODS[method].conserves:
        np.testing.assert_array_less(e.conservation, 0.01)


def test_some_of_the_inputs_are_explained() -> None:
    both = Explainer(two_by_two(), "lrp-epsilon", threads=1)(two_feeds())
    for given in (["right"], "right", ("right",)):
        one = Explainer(two_by_two(), "lrp-epsilon", wrt=given, threads=1)(two_feeds())
        assert set(one.relevance) == {"right"}
        close(one.relevance["right"], both.relevance["right"], 1e-3)  # ε divides by sums near zero
        np.testing.assert_array_less(one.conservation, 0.01)
    assert both.heatmap("right").shape == (2, 6, 6)
    with pytest.raises(InputError, match="'rihgt'.*'right'"):
        both.heatmap("rihgt")


def test_a_switch_beside_the_pictures_is_fed_as_it_is() -> None:
    """A temperature of shape [] or [1] has no sample axis."""
    for shape in ("float t", "float[1] t"):
        proto = model(
            f"g (float[N,6] x, {shape}) => (float[N,3] y) {{ h = MatMul(x, w)\n y = Mul(h, t) }}", w=drawn(6, 3)
        )
        t = np.full((1,) if "[1]" in shape else (), 2, np.float32)
        e = Explainer(proto, "lrp-epsilon", wrt=["x"], threads=1)({"x": drawn(4, 6), "t": t})
        np.testing.assert_allclose(e.outputs["y"], 2 * drawn(4, 6) @ drawn(6, 3), rtol=1e-5)
        chunked = Explainer(proto, "lrp-epsilon", wrt=["x"], batch_size=3, threads=1)({"x": drawn(4, 6), "t": t})
        close(chunked.relevance["x"], e.relevance["x"])


# ------------------------------------------------------------------------------------------- batches and sizes


@pytest.mark.parametrize("method", ANYWHERE)
def test_chunks_give_what_the_whole_batch_gives(method: str) -> None:
    options = ready(method, residual_cnn(), X)
    whole = Explainer(residual_cnn(), method, threads=1, **options)(X)
    for size in (1, 3, 8, 100):
        e = Explainer(residual_cnn(), method, batch_size=size, threads=1, **options)(X)
        close(e.relevance["picture"], whole.relevance["picture"], 1e-3 if METHODS[method].conserves else CHUNKED)
        close(e.outputs["scores"], whole.outputs["scores"])
        np.testing.assert_array_equal(e.target.index, whole.target.index)
        assert e.conservation.shape == e.absorbed.shape == (8,)


def test_chunks_keep_the_targets_and_what_was_asked_to_keep() -> None:
    wanted = Explainer(residual_cnn(), "lrp-epsilon", keep=["a2"], threads=1)(X, target=[0, 1, 2, 3, 4, 0, 1, 2])
    e = Explainer(residual_cnn(), "lrp-epsilon", keep=["a2"], batch_size=3, threads=1)(
        X, target=[0, 1, 2, 3, 4, 0, 1, 2]
    )
    close(e.kept["a2"], wanted.kept["a2"])
    close(e.relevance["picture"], wanted.relevance["picture"], 1e-3)


def test_a_model_of_batch_one_runs_sample_by_sample() -> None:
    fixed, free = (
        Explainer(residual_cnn(batch="1"), "lrp-epsilon", threads=1),
        Explainer(residual_cnn(), "lrp-epsilon", threads=1),
    )
    e, wanted = fixed(X, target=[0, 1, 2, 3, 4, 0, 1, 2]), free(X, target=[0, 1, 2, 3, 4, 0, 1, 2])
    close(e.relevance["picture"], wanted.relevance["picture"], 1e-3)
    assert e.outputs["scores"].shape == (8, 5)
    assert e.conservation.shape == (8,)


def test_a_model_of_batch_four_takes_multiples_of_four() -> None:
    explainer = Explainer(residual_cnn(batch="4"), "lrp-epsilon", threads=1)
    close(
        explainer(X).relevance["picture"],
        Explainer(residual_cnn(), "lrp-epsilon", threads=1)(X).relevance["picture"],
        1e-3,
    )
    with pytest.raises(InputError, match="4"):
        explainer(X[:6])


@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon", "lrp-epsilon-plus-flat", "rap"])
def test_one_open_model_is_explained_at_two_sizes(method: str) -> None:
    def proto(size: str) -> onnx.ModelProto:
        body = "c = Conv<pads=[1,1,1,1]>(x, w)\n r = Relu(c)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)\n g = GlobalAveragePool(p)\n f = Flatten(g)\n y = Gemm(f, k)"
        return model(f"g (float[N,3,{size}] x) => (float[N,5] y) {{ {body} }}", w=drawn(4, 3, 3, 3), k=drawn(4, 5))

    open_model = Explainer(proto("H,W"), method, threads=1)
    for h, w in ((16, 16), (11, 14), (16, 16)):
        x = drawn(2, 3, h, w)
        close(open_model(x).relevance["x"], Explainer(proto(f"{h},{w}"), method, threads=1)(x).relevance["x"])
    sized = Explainer(proto("H,W"), method, input_shapes={"x": [None, 3, 12, 12]}, threads=1)
    explained = sized.convert()
    assert [d.dim_value for d in explained.graph.input[0].type.tensor_type.shape.dim][2:] == [12, 12]
    found = run(explained, {"x": drawn(3, 3, 12, 12)})["x_relevance"]
    close(found, sized(drawn(3, 3, 12, 12)).relevance["x"])


# ------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return Explainer(residual_cnn(), "lrp-gamma", gamma=0.5, keep=["a2"], threads=1)(X[:3], target=[0, 1, 2])


def _equal(arrays: dict[str, Array], e: Explanation) -> None:
    np.testing.assert_array_equal(arrays["relevance/picture"], e.relevance["picture"])
    np.testing.assert_array_equal(arrays["output/scores"], e.outputs["scores"])
    np.testing.assert_array_equal(arrays["kept/a2"], e.kept["a2"])
    np.testing.assert_array_equal(arrays["target/index"], e.target.index)
    np.testing.assert_array_equal(arrays["conservation"], e.conservation)
    np.testing.assert_array_equal(arrays["absorbed"], e.absorbed)


def test_an_npz_holds_everything(explanation: Explanation, tmp_path: Path) -> None:
    explanation.save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as stored:  # allow_pickle stays False
        _equal(dict(stored), explanation)
        notes = json.loads(str(stored["metadata"]))
    assert notes["method"] == "lrp-gamma"
    assert notes["options"] == {"gamma": 0.5}
    assert len(notes["source_sha256"]) == 64
    assert notes["explained"] == "logits"


def test_a_safetensors_file_holds_everything(explanation: Explanation, tmp_path: Path) -> None:
    from safetensors import safe_open

    explanation.save(str(tmp_path / "e.safetensors"))
    with safe_open(tmp_path / "e.safetensors", "numpy") as stored:
        _equal({k: stored.get_tensor(k) for k in stored.keys()}, explanation)  # noqa: SIM118 - not a mapping
        notes = json.loads(stored.metadata()["onnx_explain"])
    assert notes["target"] == [0, 1, 2]


def test_an_explanation_comes_back_from_its_file_where_loading_is_offered(
    explanation: Explanation, tmp_path: Path
) -> None:
    load = getattr(Explanation, "load", None)
    if load is None:
        pytest.skip("Explanation.load is not offered")
    for suffix in (".npz", ".safetensors"):
        explanation.save(tmp_path / f"e{suffix}")
        back = load(tmp_path / f"e{suffix}")
        np.testing.assert_array_equal(back.relevance["picture"], explanation.relevance["picture"])
        assert (back.method, back.target.tensor) == (explanation.method, explanation.target.tensor)


@pytest.mark.parametrize("name", ["e.txt", "e", "nowhere/e.npz", "", "folder.npz"])
def test_a_result_that_cannot_be_written_is_named(name: str, explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError):
        explanation.save(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before, "half a file was left"


def test_a_failure_while_saving_leaves_nothing(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: Any, **_: Any) -> None:
        place.write(b"half") if hasattr(place, "write") else Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OutputError, match="No space left"):
        explanation.save(tmp_path / "e.npz")
    assert list(tmp_path.iterdir()) == []


def test_the_heat_map_sums_channels_and_saliency_takes_the_largest() -> None:
    e = Explainer(residual_cnn(), "lrp-epsilon", threads=1)(X[:2])
    np.testing.assert_array_equal(e.heatmap(), e.relevance["picture"].sum(1))
    s = Explainer(residual_cnn(), "saliency", threads=1)(X[:2])
    np.testing.assert_array_equal(s.heatmap("picture"), s.relevance["picture"].max(1))


# ------------------------------------------------------------------------------------------- methods as data


def test_a_method_of_ones_own_is_ten_lines() -> None:
    composite = lrp_composite(
        (Selector(role=Linear, name="head"), lrp.epsilon(1e-3), "ε"),
        (Selector(role=Linear, kind="weighted", first=True), lrp.z_box(-3.0, 3.0), "zᴮ"),
        (Selector(role=Linear, kind="weighted"), lrp.gamma(0.25), "γ"),
    )
    explainer = Explainer(residual_cnn(), composite, threads=1)
    e = explainer(X[:2])
    assert e.method == "custom"
    assert {
        r.name: r.rule for r in explainer.plan()[0] if r.role == "Linear" and r.rule in ("ε", "zᴮ", "γ")
    }.items() >= {"head": "ε", "stem": "zᴮ", "block_conv": "γ"}.items()
    np.testing.assert_array_less(e.conservation, 0.01)
    close(run(explainer.convert(), {"picture": X[:2]})["picture_relevance"], e.relevance["picture"])


def test_a_composite_takes_no_options() -> None:
    with pytest.raises(MethodError, match="epsilon"):
        Explainer(residual_cnn(), lrp_composite((Selector(role=Linear), lrp.epsilon(), "ε")), epsilon=0.1)


def test_a_composite_without_a_rule_for_a_node_says_which(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="Softmax|Relu|MaxPool|flat|head|gap|pool"):
        Explainer(residual_cnn(), Composite(()), threads=1)(X[:1])


def test_a_rule_on_a_node_of_another_role_says_so() -> None:
    everywhere = (Selector(role=Linear), lrp.epsilon(), "ε")
    wrong = lrp_composite((Selector(name="stem_relu|pool"), lrp.epsilon(), "ε"), everywhere)
    with pytest.raises(MethodError, match="stem_relu|pool"):
        Explainer(residual_cnn(), wrong, threads=1)(X[:1])


def test_a_registered_method_is_a_method_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_explain import methods

    monkeypatch.setattr(methods.registry, "METHODS", dict(METHODS))

    @register_method("mine", "ε everywhere, strongly", "ours")
    def _mine(strength: float = 0.1) -> Composite:
        return lrp_composite((Selector(role=Linear, kind="weighted"), lrp.epsilon(strength), "ε"), epsilon=strength)

    e = Explainer(residual_cnn(), "mine", strength=0.2, threads=1)(X[:1])
    close(
        e.relevance["picture"],
        Explainer(residual_cnn(), "lrp-epsilon", epsilon=0.2, threads=1)(X[:1]).relevance["picture"],
    )
    assert e.options == {"strength": 0.2}
    with pytest.raises(MethodError, match="strength"):
        Explainer(residual_cnn(), "mine", strenght=0.2)
    with pytest.raises(MethodError, match="mine"):
        register_method("mine", "again", "ours")(_mine)


@pytest.mark.parametrize("method", FREE)
def test_every_option_of_every_method_may_be_given_at_its_default(method: str) -> None:
    few = ready(method, residual_cnn(), X[:1])
    options = {k: v for k, v in METHODS[method].options.items() if v is not None} | few
    given = Explainer(residual_cnn(), method, threads=1, **options)(X[:1]).relevance["picture"]
    np.testing.assert_array_equal(
        given, Explainer(residual_cnn(), method, threads=1, **few)(X[:1]).relevance["picture"]
    )


@pytest.mark.parametrize("method", ANYWHERE)
def test_every_method_has_a_paper_and_a_meaning(method: str) -> None:
    found = METHODS[method]
    assert found.name == method
    assert 10 < len(found.summary) < 100
    assert any(c.isdigit() for c in found.paper)


def _reference_score(e: Explanation) -> Array:
    """The explained class's logit at the baseline of zeros."""
    at_zero = Explainer(residual_cnn(), "gradient", threads=1)(np.zeros_like(X), target=e.target.index.tolist())
    return at_zero.target.score


@pytest.mark.parametrize("method", [m for m in METHODS if METHODS[m].conserves])
@pytest.mark.parametrize("batch_norm", ["fold", "epsilon", "pass"])
def test_conserving_methods_account_for_everything(method: str, batch_norm: str) -> None:
    if "batch_norm" not in METHODS[method].options and batch_norm != "fold":
        pytest.skip(f"{method} has no option batch_norm")
    options = {"batch_norm": batch_norm} if "batch_norm" in METHODS[method].options else {}
    options |= ready(method, residual_cnn(), X)
    e = Explainer(residual_cnn(), method, threads=1, **options)(X)
    total = e.relevance["picture"].astype(np.float64).sum((1, 2, 3)) + e.absorbed
    if e.completeness is not None:  # with a baseline the change of the score is shared out
        np.testing.assert_allclose(total - e.completeness, e.target.score - _reference_score(e), rtol=0.01, atol=1e-3)
        return
    if e.layer is not None:  # relevance begins at an inner layer, with a sum of its own
        np.testing.assert_array_less(e.conservation, 0.01)
        return
    alive = e.target.score > 0 if method == "deep-taylor" else np.ones(8, bool)
    np.testing.assert_allclose(total[alive], e.target.score[alive], rtol=0.01)
    np.testing.assert_array_less(e.conservation, 0.01)


# ------------------------------------------------------------------------------------------- the vector-Jacobian product


def _differences(
    session: onnxruntime.InferenceSession, feeds: dict[str, Array], name: str, cotangents: dict[str, Array]
) -> tuple[float, Array]:
    """A directional derivative by central differences in float64 arithmetic on float64 outputs."""
    direction = drawn(*feeds[name].shape, seed=30).astype(np.float64)
    step, total = 1e-4, 0.0
    for sign in (1, -1):
        moved = {**feeds, name: feeds[name] + sign * step * direction}
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, moved)))
        total += sign * sum(float((outputs[o] * c).sum()) for o, c in cotangents.items())
    return total / (2 * step), direction


def smooth() -> onnx.ModelProto:
    return model(
        """g (double[N,4] a, double[N,4] b) => (double[N,3] y, double[N,5] z) {
             h = MatMul(a, w)
             t = Tanh(h)
             s = Sigmoid(b)
             m = Mul(t, s)
             y = MatMul(m, k)
             p = Softmax<axis=1>(m)
             z = MatMul(p, q)
           }""",
        w=drawn(4, 4).astype(np.float64), k=drawn(4, 3).astype(np.float64), q=drawn(4, 5).astype(np.float64),
    )  # fmt: skip


def test_the_vjp_is_autograds_backward() -> None:
    vjp = build_vjp(smooth())
    onnx.checker.check_model(vjp, full_check=True)
    assert [i.name for i in vjp.graph.input] == ["a", "b", "y_cotangent", "z_cotangent"]
    assert [o.name for o in vjp.graph.output] == ["y", "z", "a_gradient", "b_gradient"]
    assert {n.domain for n in vjp.graph.node} <= {"", "ai.onnx"}
    feeds = {"a": drawn(2, 4).astype(np.float64), "b": drawn(2, 4, seed=1).astype(np.float64)}
    cotangents = {"y": drawn(2, 3, seed=2).astype(np.float64), "z": drawn(2, 5, seed=3).astype(np.float64)}
    found = run(vjp, {**feeds, **{f"{o}_cotangent": c for o, c in cotangents.items()}})
    session = onnxruntime.InferenceSession(smooth().SerializeToString(), quiet())
    for name in ("a", "b"):
        slope, direction = _differences(session, feeds, name, cotangents)
        np.testing.assert_allclose((found[f"{name}_gradient"] * direction).sum(), slope, rtol=1e-6)


def test_the_vjp_of_a_part() -> None:
    whole, part = build_vjp(smooth()), build_vjp(smooth(), wrt=["b"], outputs=["y"])
    assert [i.name for i in part.graph.input] == ["a", "b", "y_cotangent"]
    assert [o.name for o in part.graph.output] == ["y", "z", "b_gradient"]
    feeds = {
        "a": drawn(2, 4).astype(np.float64),
        "b": drawn(2, 4, seed=1).astype(np.float64),
        "y_cotangent": drawn(2, 3).astype(np.float64),
    }
    wanted = run(whole, {**feeds, "z_cotangent": np.zeros((2, 5))})["b_gradient"]
    close(run(part, feeds)["b_gradient"], wanted, 1e-12)


def test_the_vjp_of_a_class_is_the_gradient_method() -> None:
    vjp = build_vjp(residual_cnn(), outputs=["logits"])
    cotangent = np.eye(5, dtype=np.float32)[[1, 2, 3]]
    found = run(vjp, {"picture": X[:3], "logits_cotangent": cotangent})["picture_gradient"]
    close(found, Explainer(residual_cnn(), "gradient", threads=1)(X[:3], target=[1, 2, 3]).relevance["picture"])


def test_the_vjp_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match="'picure'.*'picture'"):
        build_vjp(residual_cnn(), wrt=["picure"])
    with pytest.raises(onnx_explain.TargetError, match="'score'.*'scores'"):
        build_vjp(residual_cnn(), outputs=["score"])


# ------------------------------------------------------------------------------------------- documentation


@pytest.mark.parametrize(
    "name",
    [n for n in onnx_explain.__all__ if n[0].isupper() and n != "METHODS"]
    + ["build_vjp", "lrp_composite", "register_method"],
)
def test_every_public_name_says_what_it_is(name: str) -> None:
    documented = inspect.getdoc(getattr(onnx_explain, name))
    assert documented
    assert len(documented) > 20


def test_importing_the_package_loads_no_runtime() -> None:
    import subprocess
    import sys

    code = "import sys, onnx_explain; print(sorted({'onnxruntime', 'onnx', 'matplotlib', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(onnx_explain.__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"
