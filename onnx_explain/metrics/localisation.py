"""Does the relevance lie on the object? Measures on maps and masks; no model is asked.

Every function: relevance [N, H, W] (channel-summed), masks bool [N, H, W]; result float64 [N], NaN where the definition says
nothing (missing, to be counted, never a zero or a hit). Boxes become masks with `masks_from_boxes`. Ties: equal values
rank in row-major order, the earlier pixel first.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.metrics.arrays import (
    Bools,
    Floats,
    Part,
    array_of,
    choice,
    class_indices,
    maps_of,
    masks_of,
    mid_ranks,
    number,
    pair,
    part_of,
    quotient,
    ranking,
    real,
    varied,
    whole,
)


def outside_inside_ratio(
    relevance: npt.ArrayLike, masks: npt.ArrayLike, *, part: Literal["all", "positive"] = "positive"
) -> Floats:
    """μ = mean of R outside the mask / mean of R inside; lower is better, 0 is perfect.

    Lapuschkin et al., "Analyzing Classifiers: Fisher Vectors and Deep Neural Networks", CVPR 2016; RAP
    (Nam et al., AAAI 2020) reports it as POS (``part="positive"``: [R]₊) and ALL (``"all"``: signed R). A method without signs
    has no ALL of its own. ALL may be negative, where the outside is negative in sum; where a signed map nearly cancels inside,
    it may be anything: compare medians.

    +inf: relevance outside and exactly none inside, the worst there is. NaN: the mask is empty or the whole picture, or the
    inside carries no positive mean and the quotient orders nothing (ALL on a map that is negative inside; a map of zeros).
    Raises InputError: shapes that do not fit, NaN or infinity.
    """
    r, m = pair(relevance, masks)
    r = part_of(r, choice("part", part, ("all", "positive")))
    inside = quotient((r * m).sum(1), m.sum(1).astype(np.float64))
    outside = quotient((r * ~m).sum(1), (~m).sum(1).astype(np.float64))
    ratio = quotient(outside, inside)
    ratio[(inside == 0) & (outside > 0)] = np.inf
    return ratio


def pointing_game(
    relevance: npt.ArrayLike,
    masks: npt.ArrayLike,
    *,
    tolerance: float = 15.0,
    distance: Literal["euclidean", "chebyshev"] = "euclidean",
) -> Floats:
    """1 where the largest relevance lies on the mask or within `tolerance` pixels of it, else 0.

    Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016 (tolerance 15 pixels). The point is the first
    maximum in row-major order. distance: between centres of pixels, ``"euclidean"`` (a disc about the point) or
    ``"chebyshev"`` (the box grown by the tolerance on every side).

    NaN: the mask is empty, or the map has a single value and so no maximum. `pointing_accuracy` gives the score of a set;
    `is_difficult` selects its DIFF part. Raises InputError.
    """
    r = maps_of(relevance)
    m = masks_of(masks, r.shape)
    choice("distance", distance, ("euclidean", "chebyshev"))
    within = number("tolerance", tolerance, 0)
    flat = r.reshape(len(r), r.shape[1] * r.shape[2])
    hits = np.full(len(r), np.nan)
    for n in np.flatnonzero(varied(flat) & m.any((1, 2))):
        y, x = divmod(int(flat[n].argmax()), r.shape[2])
        rows, columns = np.nonzero(m[n])
        dy, dx = np.abs(rows - y), np.abs(columns - x)
        nearest = np.hypot(dy, dx).min() if distance == "euclidean" else np.maximum(dy, dx).min()
        hits[n] = float(nearest <= within)
    return hits


def pointing_accuracy(hits: npt.ArrayLike, classes: npt.ArrayLike) -> tuple[float, dict[int, float]]:
    """The mean over the classes of hits / (hits + misses), and that quotient per class.

    hits: [K] of `pointing_game`, one per (picture, class) pair; NaN is missing and counts as neither. classes: int [K]. A class
    with nothing but missing pairs is NaN and leaves the mean; no class left gives NaN.
    """
    h = real(hits, "hits")
    labels = class_indices(classes, len(h), name="classes")
    if not np.isin(h[~np.isnan(h)], (0.0, 1.0)).all():
        raise InputError("hits must hold 0, 1 or NaN alone, as pointing_game gives them.")
    present = ~np.isnan(h)
    per_class = {
        int(c): float(h[present & (labels == c)].mean()) if (present & (labels == c)).any() else float("nan")
        for c in np.unique(labels)
    }
    known = [v for v in per_class.values() if not np.isnan(v)]
    return (float(np.mean(known)) if known else float("nan")), per_class


def is_difficult(masks: npt.ArrayLike, others: npt.ArrayLike, *, largest: float = 0.25) -> Bools:
    """The DIFF pairs of the pointing game: bool [N].

    Zhang et al., ECCV 2016: the class covers less than a quarter of the picture, and another class is there too. masks:
    bool [N, H, W] (of boxes: `masks_from_boxes`). others: int or bool [N], how many other classes the picture holds.
    """
    m = masks_of(masks, array_of(masks, "masks").shape)
    count = array_of(others, "others")
    if m.ndim != 3 or count.shape != (len(m),) or count.dtype.kind not in "iub":
        raise InputError(f"others must count the other classes of {len(m)} pictures, but has shape {count.shape}.")
    share = m.mean((1, 2))
    return np.asarray((share < number("largest", largest)) & (share > 0) & (count > 0))


def relevance_mass(relevance: npt.ArrayLike, masks: npt.ArrayLike, *, part: Part = "positive") -> Floats:
    """Relevance mass accuracy Σ_mask R / Σ R: 1 is perfect, the mask's share of the picture is chance.

    Arras et al., "CLEVR-XAI", Information Fusion 81, 2022: defined on maps that are not negative; `part` says how a signed
    map becomes one. With ``"all"`` a signed map is taken as it is, and the result may leave 0…1.

    NaN: an empty mask, or a total that is not positive.
    """
    r, m = pair(relevance, masks)
    r = part_of(r, part)
    mass = quotient((r * m).sum(1), r.sum(1))
    mass[~m.any(1)] = np.nan
    return mass


def attribution_localisation(relevance: npt.ArrayLike, masks: npt.ArrayLike, *, weighted: bool = False) -> Floats:
    """Σ_mask [R]₊ / Σ [R]₊; weighted: times pixels of the picture / pixels of the mask, so that 1 is chance at any size.

    Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP" (μ and μ_w), IJCNN 2020. NaN as
    for `relevance_mass`.
    """
    mass = relevance_mass(relevance, masks, part="positive")
    if not weighted:
        return mass
    _, m = pair(relevance, masks)
    return mass * quotient(np.full(len(m), float(m.shape[1])), m.sum(1).astype(np.float64))


def relevance_rank(relevance: npt.ArrayLike, masks: npt.ArrayLike) -> Floats:
    """Relevance rank accuracy |top-K ∩ mask| / K with K = pixels of the mask: 1 is perfect, the mask's share is chance.

    Arras et al., "CLEVR-XAI", Information Fusion 81, 2022. NaN: an empty mask, or a map of a single value.
    """
    r, m = pair(relevance, masks)
    hits = np.take_along_axis(m, ranking(r), 1).cumsum(1)
    sizes = m.sum(1)
    return _ranked(np.array([hits[n, k - 1] / k if k else np.nan for n, k in enumerate(sizes)]), r, m)


def top_k_intersection(relevance: npt.ArrayLike, masks: npt.ArrayLike, *, k: int = 1000) -> Floats:
    """|top-k ∩ mask| / k, exactly k pixels: at most |mask| / k where the mask is smaller than k.

    Theiner et al., "Interpretable Semantic Photo Geolocation", WACV 2022 (k = 1000). NaN: an empty mask, or a map of a single
    value. Raises InputError: k beyond the map.
    """
    r, m = pair(relevance, masks)
    if whole("k", k) > r.shape[1]:
        raise InputError(f"k is {k}, but a map has {r.shape[1]} pixels; choose a smaller k.")
    return _ranked(np.take_along_axis(m, ranking(r)[:, :k], 1).mean(1), r, m)


def roc_auc(relevance: npt.ArrayLike, masks: npt.ArrayLike) -> Floats:
    """Area under the ROC curve of the map as a detector of the mask: 1 is perfect, ½ is chance.

    Fawcett, "An introduction to ROC analysis", 2006, by the rank-sum identity: the probability that a pixel of the mask has
    more relevance than one outside, a tie counting ½. NaN: the mask is empty or the whole picture, or the map has a single value.
    """
    r, m = pair(relevance, masks)
    inside = m.sum(1).astype(np.float64)
    outside = m.shape[1] - inside
    above = (mid_ranks(r) * m).sum(1) - inside * (inside + 1) / 2
    return _ranked(quotient(above, inside * outside), r, m)


def _ranked(values: npt.NDArray[Any], r: Floats, m: Bools) -> Floats:
    """The values, NaN where there is no mask or the map orders nothing."""
    return np.where(m.any(1) & varied(r), values.astype(np.float64), np.nan)
