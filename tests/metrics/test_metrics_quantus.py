"""An ONNX model inside Quantus' own metrics; theirs against ours. Runs where Quantus is installed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from onnx_explain import InputError, MethodError
from onnx_explain.metrics import (
    OnnxScore,
    model_sensitivity,
    pixel_flipping,
    region_perturbation,
    relevance_rank,
    spearman,
    weight_layers,
)
from onnx_explain.metrics.quantus_adapter import QuantusModel, admitted, explain

VGGISH = Path(__file__).parents[1] / "golden" / "vggish.onnx"
RNG = np.random.default_rng(9)
X = RNG.normal(size=(3, 3, 32, 32)).astype(np.float32)
Y = np.array([0, 3, 1])


@pytest.fixture(scope="module")
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus", reason="Quantus is not installed; the extra [eval] brings it")


@pytest.fixture(scope="module")
def model() -> QuantusModel:
    return QuantusModel(VGGISH, threads=1)


def call(model: QuantusModel, softmax: bool, maps=None) -> dict:
    return {
        "model": model,
        "x_batch": X,
        "y_batch": Y,
        "a_batch": maps,
        "softmax": softmax,
        "explain_func": explain,
        "explain_func_kwargs": {"method": "gradient"},
    }


QUIET = {"normalise": False, "abs": False, "disable_warnings": True}


@pytest.mark.filterwarnings("ignore")
def test_pixel_flipping_inside_quantus_is_ours(quantus, model) -> None:
    maps = explain(model, X, Y, method="gradient")
    with admitted():
        theirs = quantus.PixelFlipping(features_in_step=128, perturb_baseline="black", **QUIET)(
            **call(model, True, maps)
        )
    score = OnnxScore(VGGISH, apply_softmax=True, threads=1)
    ours = pixel_flipping(score, X, relevance=maps, step=128, replacement="minimum", targets=Y)
    np.testing.assert_allclose(ours.scores[:, 1:], theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_region_perturbation_inside_quantus_is_ours(quantus, model, order) -> None:
    maps = explain(model, X, Y, method="gradient").sum(1)
    with admitted():
        metric = quantus.RegionPerturbation(
            patch_size=8, regions_evaluation=10, perturb_baseline="black", order=order, **QUIET
        )
        theirs = metric(**call(model, False, maps[:, None]))
    ours = region_perturbation(
        OnnxScore(VGGISH, threads=1),
        X,
        relevance=maps,
        size=8,
        steps=10,
        order=order,
        replacement="minimum",
        targets=Y,
    )
    np.testing.assert_allclose(ours.scores[:, :1] - ours.scores[:, 1:], theirs, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_randomisation_of_the_weights_inside_quantus_is_ours(quantus, model) -> None:
    with admitted():
        theirs = quantus.MPRT(layer_order="top_down", seed=5, **QUIET)(**call(model, False))
    assert list(theirs) == ["original", *weight_layers(VGGISH)]

    def features(proto, x, targets):
        """All channels in one row, as Quantus compares them."""
        return explain(QuantusModel(proto, threads=1), x, targets, method="gradient").reshape(len(x), 1, -1)

    ours = model_sensitivity(features, VGGISH, x=X, targets=Y, seed=5)
    np.testing.assert_allclose(ours.similarity.T, [theirs[name] for name in ours.layers], atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_a_metric_that_explains_by_itself_takes_our_methods(quantus, model) -> None:
    masks = np.zeros((3, 1, 32, 32), bool)
    masks[:, :, 8:20, 8:20] = True
    with admitted():
        logit = quantus.RandomLogit(
            num_classes=5, similarity_func=quantus.similarity_func.correlation_spearman, **QUIET
        )(**call(model, False))
        rank = quantus.RelevanceRankAccuracy(**QUIET)(
            **{**call(model, False, np.abs(explain(model, X, Y)).sum(1, keepdims=True)), "s_batch": masks}
        )
    assert len(logit) == 3
    assert (np.abs(logit) <= 1).all()
    np.testing.assert_allclose(relevance_rank(np.abs(explain(model, X, Y)).sum(1), masks[:, 0]), rank, atol=1e-12)


def test_quantus_is_left_as_it_was(quantus) -> None:
    before = quantus.helpers.utils.get_wrapped_model
    with pytest.raises(RuntimeError, match="inside"), admitted():
        raise RuntimeError("inside")
    assert quantus.helpers.utils.get_wrapped_model is before
    with admitted(), pytest.raises(ValueError, match="torch"):
        quantus.helpers.utils.get_wrapped_model("no model", channel_first=True, softmax=True)


def test_without_quantus_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "quantus", None)
    monkeypatch.setitem(__import__("sys").modules, "quantus.helpers.utils", None)
    with pytest.raises(MethodError, match=r"onnx-explain\[eval\]"), admitted():
        pass


def test_the_model_predicts_with_and_without_a_softmax(model) -> None:
    logits = model.predict(X.astype(np.float64))
    chances = model.with_softmax(True).predict(X)
    np.testing.assert_allclose(chances.sum(1), 1.0)
    assert not np.allclose(logits.sum(1), 1.0)
    np.testing.assert_array_equal(chances.argmax(1), logits.argmax(1))
    assert spearman(logits[None], chances[None]) > 0


def test_what_the_adapter_cannot_do_is_said(model) -> None:
    with pytest.raises(MethodError, match="InputInvariance"):
        model.add_mean_shift_to_first_layer(1.0, X.shape)
    with pytest.raises(InputError, match="channel_first"):
        model.shape_input(X, X.shape, channel_first=False, batched=True)
    with pytest.raises(MethodError, match="top_down"):
        next(iter(model.get_random_layer_generator(order="sideways")))
    assert model.shape_input(X[0], X[0].shape).shape == (1, 3, 32, 32)
    assert model.get_model() is model.get_softmax_arg_model() is model
    assert model.state_dict()
