"""Deletion and insertion: the causal metric of RISE, a curve of the predicted class's probability and the area under it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onnx_explain.metrics.arrays import Array, Ints, fitting, pictures, ranking, varied, whole
from onnx_explain.metrics.perturbation import Curve, perturbed_curve
from onnx_explain.metrics.replacement import Name, replaced
from onnx_explain.metrics.scoring import Score


def deletion(
    score: Score,
    x: npt.ArrayLike,
    *,
    relevance: npt.ArrayLike,
    step: int | None = None,
    replacement: Name | float | Array = "zero",
    targets: npt.ArrayLike | None = None,
    batch_size: int = 64,
) -> Curve:
    """The most relevant pixels become 0, `step` at a time; `Curve.auc` is the deletion score, lower is better.

    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018, and its `CausalMetric`.
    x: [N, C, H, W] in the network's (normalised) input space; relevance: [N, H, W]; score: probabilities. step: by default
    H pixels, as there; ⌈H·W / step⌉ steps, the last one shorter where it must be. Equal relevance in row-major order (RISE leaves
    ties to an unstable sort). targets: by default the class predicted for the untouched picture.

    Forward passes: N·(⌈H·W / step⌉ + 1). A map of a single value has no order: a row of NaN. Raises InputError.
    """
    pics, when, steps, usable = _deleted(x, relevance, step)
    end = replaced(pics, replacement)
    return perturbed_curve(
        score, pics, end=end, when=when, steps=steps, usable=usable, targets=targets, batch_size=batch_size
    )


def insertion(
    score: Score,
    x: npt.ArrayLike,
    *,
    relevance: npt.ArrayLike,
    step: int | None = None,
    replacement: Name | float | Array = "blur",
    targets: npt.ArrayLike | None = None,
    batch_size: int = 64,
) -> Curve:
    """From a blurred picture to the picture, the most relevant pixels first; `Curve.auc` is the score, higher is better.

    Petsiuk et al., RISE, BMVC 2018: blurred by an 11 x 11 kernel of σ = 5 (`blur`). Everything else as in `deletion`; the last
    state is the untouched picture, whose prediction is the target by default.
    """
    pics, when, steps, usable = _deleted(x, relevance, step)
    start = replaced(pics, replacement)
    return perturbed_curve(
        score,
        start,
        end=pics,
        when=when,
        steps=steps,
        usable=usable,
        original="last",
        targets=targets,
        batch_size=batch_size,
    )


def _deleted(
    x: npt.ArrayLike, relevance: npt.ArrayLike, step: int | None
) -> tuple[Array, Ints, int, npt.NDArray[np.bool_]]:
    """Pictures, the step at which each pixel changes, the number of steps, and which maps have an order."""
    pics = pictures(x)
    r = fitting(relevance, pics)
    flat = r.reshape(len(r), r.shape[1] * r.shape[2])
    at_once = pics.shape[2] if step is None else whole("step", step)
    places = ranking(flat)
    when = np.empty_like(places)
    np.put_along_axis(when, places, np.broadcast_to(np.arange(flat.shape[1]) // at_once + 1, flat.shape), 1)
    return pics, when.reshape(r.shape), -(-flat.shape[1] // at_once), varied(flat)
