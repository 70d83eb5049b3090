"""Sanity of every localisation measure: a perfect map is at the top, a random one at chance, an inverted one at the bottom."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_explain.metrics import (
    attribution_localisation,
    interval,
    outside_inside_ratio,
    pointing_game,
    relevance_mass,
    relevance_rank,
    roc_auc,
    segmentation,
    top_k_intersection,
)

N, SIDE = 400, 16
RNG = np.random.default_rng(11)
MASKS = np.zeros((N, SIDE, SIDE), bool)
for mask in MASKS:
    top, left = RNG.integers(0, 8, 2)
    height, width = RNG.integers(4, 8, 2)
    mask[top : top + height, left : left + width] = True
AREA = MASKS.mean((1, 2))
# Nearly two values, and no ties: what is left of the order within mask and background is noise.
PERFECT = MASKS + 1e-6 * RNG.random(MASKS.shape)
INVERTED = ~MASKS + 1e-6 * RNG.random(MASKS.shape)
RANDOM = RNG.random(MASKS.shape)
SIGNED = RNG.normal(size=MASKS.shape)

# measure: (function, best, chance per sample, worst, random maps)
MEASURES = {
    "oir positive": (outside_inside_ratio, 0.0, 1.0, np.inf, RANDOM),
    "oir all": (lambda r, m: outside_inside_ratio(r, m, part="all"), 0.0, 1.0, np.inf, RANDOM),
    "pointing": (lambda r, m: pointing_game(r, m, tolerance=0), 1.0, AREA, 0.0, SIGNED),
    "mass": (relevance_mass, 1.0, AREA, 0.0, SIGNED),
    "localisation": (attribution_localisation, 1.0, AREA, 0.0, SIGNED),
    "weighted": (lambda r, m: attribution_localisation(r, m, weighted=True), 1 / AREA, 1.0, 0.0, SIGNED),
    "rank": (relevance_rank, 1.0, AREA, 0.0, SIGNED),
    "top-k": (lambda r, m: top_k_intersection(r, m, k=16), 1.0, AREA, 0.0, SIGNED),
    "auc": (roc_auc, 1.0, 0.5, 0.0, SIGNED),
    "pixel accuracy": (lambda r, m: segmentation(r, m, threshold="mean").accuracy, 1.0, 0.5, 0.0, SIGNED),
    "iou": (
        lambda r, m: segmentation(r, m, threshold="mean").iou,
        1.0,
        # half of the mask and half of the background are foreground
        (AREA / 2 / (AREA + 0.5 - AREA / 2) + (1 - AREA) / 2 / (1 - AREA + AREA / 2)) / 2,
        0.0,
        SIGNED,
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_perfect_map_is_at_the_top(name: str) -> None:
    measure, best, *_ = MEASURES[name]
    np.testing.assert_allclose(measure(PERFECT, MASKS), np.broadcast_to(best, N), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", MEASURES)
def test_a_random_map_is_at_chance(name: str) -> None:
    measure, _, chance, _, maps = MEASURES[name]
    # 99.9 %: eleven measures, each to be right nearly always
    found = interval(measure(maps, MASKS) - chance, level=0.999, resamples=2000)
    assert found.missing == 0
    assert found.low <= 0 <= found.high, found
    assert found.high - found.low < 0.2, "an interval that could hide anything"


@pytest.mark.parametrize("name", MEASURES)
def test_an_inverted_map_is_at_the_bottom(name: str) -> None:
    measure, _, _, worst, _ = MEASURES[name]
    values = measure(INVERTED, MASKS)
    if np.isinf(worst):
        assert (values > 1e5).all()
        assert (measure((~MASKS).astype(float), MASKS) == np.inf).all()
    else:
        np.testing.assert_allclose(values, worst, atol=2e-5)


def test_the_pointing_game_with_tolerance_is_beaten_by_no_random_map() -> None:
    near = interval(pointing_game(SIGNED, MASKS, tolerance=3))
    exact = interval(pointing_game(SIGNED, MASKS, tolerance=0))
    assert exact.value < near.value < 1.0
