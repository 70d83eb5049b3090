"""Take away, in the order of the relevance, what the explanation calls important, and watch the score.

One engine: every pixel has a step at which it is replaced; state k of a picture has all pixels of steps 1…k replaced. State 0 is
the untouched picture, so a curve of L steps costs exactly L + 1 forward passes per sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.metrics.arrays import (
    Array,
    Floats,
    Ints,
    choice,
    class_indices,
    finite,
    fitting,
    pictures,
    ranking,
    real,
    streams,
    varied,
    whole,
)
from onnx_explain.metrics.replacement import Bounds, Name, replaced
from onnx_explain.metrics.scoring import Score, all_scores, chosen, scores_of

Order = Literal["morf", "lerf", "random"]


@dataclass(frozen=True)
class Curve:
    """The score while pixels are replaced.

    scores: float64 [N, L + 1], state 0 the start; NaN rows are missing samples. fraction: float64 [N, L + 1], changed pixels /
    all pixels. targets: int64 [N], the scored class, -1 where missing.
    """

    scores: Floats
    fraction: Floats
    targets: Ints

    @property
    def aopc(self) -> Floats:
        """Area over the perturbation curve per sample, [N]: 1/(L+1) Σ_{k=0}^{L} (f(x⁰) - f(xᵏ)).

        Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned", TNNLS 2017, eq. 12 averages it
        over the pictures. Higher is better for MoRF, lower for LeRF.
        """
        return np.asarray((self.scores[:, :1] - self.scores).mean(1))

    @property
    def auc(self) -> Floats:
        """Area under the curve per sample, [N], by trapezia over equal steps: (Σ s - s₀/2 - s_L/2) / L.

        Petsiuk et al., RISE, BMVC 2018; a short last step weighs as much as any other, as there.
        """
        inner = self.scores.sum(1) - (self.scores[:, 0] + self.scores[:, -1]) / 2
        return np.asarray(inner / (self.scores.shape[1] - 1))

    @property
    def missing(self) -> int:
        """Samples without a curve."""
        return int(np.isnan(self.scores[:, 0]).sum())


def region_perturbation(
    score: Score,
    x: npt.ArrayLike,
    *,
    relevance: npt.ArrayLike,
    size: int = 9,
    steps: int | None = 100,
    order: Order = "morf",
    replacement: Name | float | Array = "uniform",
    bounds: Bounds | None = None,
    targets: npt.ArrayLike | None = None,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Curve:
    """Regions of size x size replaced one after another, by their summed relevance; `Curve.aopc` is the score.

    Samek et al., TNNLS 2017 (9 x 9, 100 steps, uniform noise). x: [N, C, H, W]; relevance: [N, H, W]. The regions tile the picture
    from its upper left corner, so those of the last row and column may be smaller. order: ``"morf"`` most relevant first,
    ``"lerf"`` least (most negative) first, ``"random"`` the control; equal sums in row-major order. steps: at most as many as
    there are regions; None for all. replacement, bounds, seed, keys: see `replaced`. targets: the class whose score is watched;
    by default the one predicted for the untouched picture.

    Forward passes: N·(steps + 1). A map of one value, or whose regions all have one sum, has no order: a row of NaN, and no
    forward pass. Raises InputError.
    """
    pics = pictures(x)
    r = fitting(relevance, pics)
    sums = region_sums(r, size)
    count = _steps(steps, sums.shape[1])
    rank = _ranks(sums, order, seed, keys)
    when = _expanded(rank + 1, size, pics.shape[2:])
    end = replaced(pics, replacement, size=size, bounds=bounds, seed=seed, keys=keys)
    usable = _ordered(r, sums) | (order == "random")
    return perturbed_curve(
        score, pics, end=end, when=when, steps=count, usable=usable, targets=targets, batch_size=batch_size
    )


def pixel_flipping(
    score: Score,
    x: npt.ArrayLike,
    *,
    relevance: npt.ArrayLike,
    step: int = 1,
    steps: int | None = None,
    order: Order = "morf",
    replacement: Name | float | Array = "mean",
    bounds: Bounds | None = None,
    targets: npt.ArrayLike | None = None,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Curve:
    """Pixels replaced in order of their relevance, `step` of them at a time.

    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation", PLOS ONE
    2015, section on pixel-flipping. relevance: [N, H, W] replaces all channels of a pixel at once; [N, C, H, W] ranks and
    replaces every feature on its own (Quantus' reading). steps: None flips all, the last step being shorter where `step` does
    not divide their number. Everything else as in `region_perturbation`; forward passes: N·(steps + 1).
    """
    pics = pictures(x)
    r = _per_feature(relevance, pics) if np.ndim(relevance) == 4 else fitting(relevance, pics)
    flat = r.reshape(len(r), math.prod(r.shape[1:]))
    count = _steps(steps, -(-flat.shape[1] // whole("step", step)))
    rank = _ranks(flat, order, seed, keys)
    when = (rank // step + 1).reshape(r.shape)
    end = replaced(pics, replacement, bounds=bounds, seed=seed, keys=keys)
    usable = varied(flat) | (order == "random")
    return perturbed_curve(
        score, pics, end=end, when=when, steps=count, usable=usable, targets=targets, batch_size=batch_size
    )


@dataclass(frozen=True)
class AccuracyCurve:
    """Which samples stay classified rightly while the least relevant regions go.

    correct: float64 [N, L + 1] of 0 and 1; NaN rows are samples that were not classified rightly to begin with, or
    have no order. accuracy: float64 [L + 1], the mean over the others.
    """

    correct: Floats

    @property
    def accuracy(self) -> Floats:
        """Accuracy at every state, [L + 1]; NaN where no sample is left."""
        kept = self.correct[~np.isnan(self.correct[:, 0])]
        return kept.mean(0) if len(kept) else np.full(self.correct.shape[1], np.nan)

    @property
    def aopc(self) -> Floats:
        """Area over the accuracy curve per sample, [N]: 1/(L+1) Σ_k (1 - correct_k). Lower is better. NaN is missing."""
        return np.asarray((1.0 - self.correct).mean(1))

    @property
    def missing(self) -> int:
        """Samples that take no part."""
        return int(np.isnan(self.correct[:, 0]).sum())


def negative_perturbation(
    score: Score,
    x: npt.ArrayLike,
    *,
    relevance: npt.ArrayLike,
    labels: npt.ArrayLike,
    size: int = 9,
    steps: int | None = 100,
    replacement: Name | float | Array = "uniform",
    bounds: Bounds | None = None,
    seed: int = 0,
    keys: Sequence[int] | None = None,
    batch_size: int = 64,
) -> AccuracyCurve:
    """Regions replaced from the most negative relevance upwards; how soon does the prediction break?

    Negative-relevance perturbation of RAP (Nam et al., AAAI 2020): start from rightly classified pictures, and watch the
    accuracy. A map whose negative relevance marks what does not matter loses little: a lower area over the curve is better.
    labels: int [N], the true classes. The rest as in `region_perturbation`. The paper's region size and number of steps are
    not known to us; the defaults are Samek's.

    Forward passes: N, and `steps` for each rightly classified sample. Raises InputError.
    """
    pics = pictures(x)
    r = fitting(relevance, pics)
    sums = region_sums(r, size)
    count = _steps(steps, sums.shape[1])
    truth = class_indices(labels, len(pics), name="labels")
    first = scores_of(score, pics, batch_size=batch_size)
    usable = _ordered(r, sums) & (first.argmax(1) == truth if len(pics) else True)
    when = _expanded(_ranks(sums, "lerf", seed, keys) + 1, size, pics.shape[2:])
    end = replaced(pics, replacement, size=size, bounds=bounds, seed=seed, keys=keys)
    correct = np.full((len(pics), count + 1), np.nan)
    correct[usable, 0] = 1.0
    places = list(product(np.flatnonzero(usable).tolist(), range(1, count + 1)))
    for (n, k), row in zip(places, all_scores(score, _states(pics, end, when, places), batch_size=batch_size)):
        correct[n, k] = float(row.argmax() == truth[n])
    return AccuracyCurve(correct)


def perturbed_curve(
    score: Score,
    x: Array,
    *,
    end: Array,
    when: Ints,
    steps: int,
    usable: npt.NDArray[np.bool_] | None = None,
    original: Literal["first", "last"] = "first",
    targets: npt.ArrayLike | None = None,
    batch_size: int = 64,
) -> Curve:
    """The engine: the scores of states 0…steps, where state k shows `end` at every pixel with ``when <= k`` and x elsewhere.

    x, end: [N, C, H, W]; when: int [N, H, W] or [N, C, H, W], from 1. usable: bool [N], the samples that get a curve.
    original: which state is the untouched picture, whose prediction is the target by default.
    Every state of every usable sample is scored once.
    """
    size = whole("batch_size", batch_size)
    use: list[int] = list(range(len(x))) if usable is None else np.flatnonzero(usable).tolist()
    scores = np.full((len(x), steps + 1), np.nan)
    classes = np.full(len(x), -1, np.int64)
    given = None if targets is None else class_indices(targets, len(x))
    known = 0 if original == "first" else steps
    untouched = list(all_scores(score, _states(x, end, when, [(n, known) for n in use]), batch_size=size))
    if untouched:
        classes[use] = chosen(None if given is None else given[use], np.stack(untouched))
        scores[use, known] = np.stack(untouched)[np.arange(len(use)), classes[use]]
    places = [(n, k) for n in use for k in range(steps + 1) if k != known]
    for (n, k), row in zip(places, all_scores(score, _states(x, end, when, places), batch_size=size)):
        scores[n, k] = row[classes[n]]
    return Curve(scores, _fraction(when, steps), classes)


def _states(x: Array, end: Array, when: Ints, places: Sequence[tuple[int, int]]) -> Iterator[Array]:
    """State k of sample n, one after another; each is overwritten by the next one of its sample.

    Where the states of a sample follow each other, only the pixels that change are touched.
    """
    sample, reached = -1, 0
    state, order, steps = x[:0], np.empty(0, np.int64), np.empty(0, np.int64)
    for n, k in places:
        if n != sample or k < reached:
            state = np.where(when[n] <= k, end[n], x[n])
            order = np.empty(0, np.int64)
        else:
            if not len(order):
                order = when[n].argsort(axis=None, kind="stable")
                steps = when[n].ravel()[order]
            start, stop = np.searchsorted(steps, [reached, k], "right")
            _overwrite(state, end[n], order[start:stop], whole_pixels=when[n].ndim == 2)
        sample, reached = n, k
        yield state


def _overwrite(state: Array, end: Array, index: Ints, *, whole_pixels: bool) -> None:
    shape = (len(state), state[0].size) if whole_pixels else (state.size,)
    state.reshape(shape)[..., index] = end.reshape(shape)[..., index]


def _fraction(when: Ints, steps: int) -> Floats:
    """Changed pixels / all pixels at every state, [N, steps + 1]."""
    counts = [np.bincount(w.ravel(), minlength=steps + 1)[: steps + 1].cumsum() / w.size for w in when]
    return np.array(counts, np.float64).reshape(len(when), steps + 1)


def region_sums(relevance: Floats, size: int) -> Floats:
    """Σ R over regions of size x size from the upper left corner, row-major: float64 [N, regions]; the last ones may be smaller."""
    rows, columns = (np.arange(0, n, whole("size", size)) for n in relevance.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(relevance, rows, 1), columns, 2)
    return np.asarray(sums.reshape(len(relevance), len(rows) * len(columns)))


def _ordered(relevance: Floats, sums: Floats) -> npt.NDArray[np.bool_]:
    """Which maps order their regions: a map of one value does not, though the sums of smaller regions differ."""
    return varied(relevance.reshape(len(relevance), math.prod(relevance.shape[1:]))) & varied(sums)


def _per_feature(relevance: npt.ArrayLike, x: Array) -> Floats:
    r = finite(real(relevance, "relevance"), "relevance")
    if r.shape != x.shape:
        raise InputError(f"relevance has shape {r.shape}, but the pictures have {x.shape}.")
    return r


def _expanded(regions: Ints, size: int, shape: tuple[int, ...]) -> Ints:
    """A value per region [N, regions] as a value per pixel [N, H, W]."""
    height, width = shape
    across = -(-width // size)
    index = (np.arange(height)[:, None] // size) * across + np.arange(width)[None, :] // size
    return np.asarray(regions[:, index])


def _ranks(values: Floats, order: str, seed: int, keys: Sequence[int] | None) -> Ints:
    """Place of every entry in the order, from 0: [N, size]."""
    if choice("order", order, ("morf", "lerf", "random")) == "random":
        drawn = [s.permutation(values.shape[1]) for s in streams(len(values), seed, keys, 1)]
        return np.array(drawn, np.int64).reshape(values.shape)
    places = ranking(values, descending=order == "morf")
    ranks = np.empty_like(places)
    np.put_along_axis(ranks, places, np.broadcast_to(np.arange(values.shape[1]), values.shape), 1)
    return ranks


def _steps(steps: int | None, most: int) -> int:
    if steps is None:
        return most
    if whole("steps", steps) > most:
        raise InputError(f"steps is {steps}, but the picture has only {most} steps; choose fewer, or None for all.")
    return steps
