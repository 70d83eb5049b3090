"""The measures on a network against what RISE's, Quantus' and captum's own code gave for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_explain.metrics import (
    OnnxScore,
    attribution_localisation,
    complexity,
    deletion,
    infidelity,
    insertion,
    max_sensitivity,
    pixel_flipping,
    pointing_game,
    region_perturbation,
    relevance_mass,
    relevance_rank,
    roc_auc,
    sparseness,
    top_k_intersection,
)
from onnx_explain.metrics.replacement import gaussian_kernel

ROOT = Path(__file__).parents[2]
PLACES = [p / "metrics_vggish.npz" for p in (ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden" / "classic")]
ARRAYS = next((p for p in PLACES if p.exists()), None)
TOLERANCE = 1e-6
pytestmark = pytest.mark.skipif(ARRAYS is None, reason="metrics_vggish.npz is in neither tests/golden nor ../shared")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    assert ARRAYS is not None
    with np.load(ARRAYS) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def logits() -> OnnxScore:
    return OnnxScore(ROOT / "tests" / "golden" / "vggish.onnx", threads=1)


@pytest.fixture(scope="module")
def probability() -> OnnxScore:
    return OnnxScore(ROOT / "tests" / "golden" / "vggish.onnx", apply_softmax=True, threads=1)


def near(ours, theirs, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(np.asarray(ours, np.float64), np.asarray(theirs, np.float64), rtol=0, atol=tolerance)


def test_the_network_answers_as_it_did(golden, probability) -> None:
    near(probability(golden["x"]), golden["probs"])


@pytest.mark.parametrize("step", [16, 100])
def test_deletion_is_rises(golden, probability, step: int) -> None:
    curve = deletion(probability, golden["x"], relevance=golden["heatmap"], step=step)
    near(curve.scores, golden[f"rise/del_step{step}_scores"])
    near(curve.auc, golden[f"rise/del_step{step}_auc"])
    near(curve.targets, golden["target_used"])


def test_insertion_is_rises(golden, probability) -> None:
    near(gaussian_kernel(), golden["rise/gkern_11_5"])
    curve = insertion(probability, golden["x"], relevance=golden["heatmap"], step=16)
    near(curve.scores, golden["rise/ins_step16_scores"])
    near(curve.auc, golden["rise/ins_step16_auc"])


MEASURES = {
    "PointingGame": lambda h, m: pointing_game(h, m, tolerance=0),
    "RelevanceMassAccuracy": relevance_mass,
    "RelevanceRankAccuracy": relevance_rank,
    "AttributionLocalisation": attribution_localisation,
    "TopKIntersection_k50": lambda h, m: top_k_intersection(h, m, k=50),
    "AUC": roc_auc,
    "Complexity": lambda h, m: complexity(h),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_of_maps_is_quantus(golden, name: str) -> None:
    near(MEASURES[name](golden["heatmap"], golden["mask"][:, 0]), golden[f"quantus/{name}"])


def test_sparseness_is_quantus_which_adds_a_ten_millionth_to_every_pixel(golden) -> None:
    h = golden["heatmap"].astype(np.float64)
    near(sparseness(h + 1e-7), golden["quantus/Sparseness"])
    near(sparseness(h), golden["quantus/Sparseness"], 1e-5)


def test_an_empty_mask_is_missing_where_quantus_scores_a_hit(golden) -> None:
    masks = golden["mask"][:, 0].copy()
    masks[0] = False
    ours = pointing_game(golden["heatmap"], masks, tolerance=0)
    theirs = golden["quantus/PointingGame_emptymask0"]
    assert np.isnan(ours[0])
    assert theirs[0] == 1.0
    near(ours[1:], theirs[1:])


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_region_perturbation_is_quantus_and_has_the_untouched_picture_besides(golden, probability, order) -> None:
    curve = region_perturbation(
        probability,
        golden["x"],
        relevance=golden["heatmap"],
        size=4,
        steps=20,
        order=order,
        replacement="minimum",
        targets=golden["target_used"],
    )
    near(curve.scores[:, :1] - curve.scores[:, 1:], golden[f"quantus/RegionPerturbation_p4_r20_black_{order}"])


def test_pixel_flipping_of_features_is_quantus(golden, probability) -> None:
    """Quantus ranks every channel on its own, by the signed relevance."""
    curve = pixel_flipping(
        probability,
        golden["x"],
        relevance=golden["attribution"],
        step=64,
        replacement="minimum",
        targets=golden["target_used"],
    )
    near(curve.scores[:, 1:], golden["quantus/PixelFlipping_step64_black"])


def test_infidelity_is_captums(golden, logits) -> None:
    given = {
        "relevance": golden["attribution"],
        "perturbations": golden["infidelity_perturbations"],
        "targets": golden["target_used"],
    }
    near(infidelity(logits, golden["x"], **given), golden["captum/infidelity"], 1e-8)
    near(infidelity(logits, golden["x"], normalise=True, **given), golden["captum/infidelity_normalized"], 1e-8)


def test_relative_max_sensitivity_is_captums(golden) -> None:
    from onnx_explain import Explainer

    explainer = Explainer(ROOT / "tests" / "golden" / "vggish.onnx", "gradient", threads=1)

    def explain(x, targets):
        (relevance,) = explainer(x, targets).relevance.values()
        return relevance

    near(explain(golden["x"], golden["target_used"]), golden["attribution"])
    given = {"perturbations": golden["infidelity_perturbations"], "targets": golden["target_used"]}
    near(max_sensitivity(explain, golden["x"], relative=True, **given), golden["captum/sensitivity_max"])
    norms = np.linalg.norm(golden["attribution"].reshape(4, -1), axis=1)
    near(max_sensitivity(explain, golden["x"], **given), golden["captum/sensitivity_max"] * norms)
