"""How explanation and model answer to small changes of the input: infidelity and max-sensitivity, and the changes to try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.metrics.arrays import (
    Array,
    Floats,
    class_indices,
    finite,
    number,
    pictures,
    quotient,
    real,
    streams,
    whole,
)
from onnx_explain.metrics.scoring import Explain, Score, all_scores, chosen, explained, scores_of


def infidelity(
    score: Score,
    x: npt.ArrayLike,
    *,
    relevance: npt.ArrayLike,
    perturbations: npt.ArrayLike,
    targets: npt.ArrayLike | None = None,
    normalise: bool = False,
    batch_size: int = 64,
) -> Floats:
    """E_I[(IᵀΦ - (F(x) - F(x - I)))²] over the given perturbations; lower is better, 0 is perfect.

    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, definition 2.1. x, relevance: [N, C, H, W]
    (channels not summed: Φ multiplies every feature of I). perturbations: [K, N, C, H, W], subtracted from x; see
    `noise_perturbations`, `square_perturbations`. normalise: Φ scaled by β = E[(IᵀΦ)(F(x) - F(x - I))] / E[(IᵀΦ)²] first, the
    scale that suits it best (captum's option; section 3 of the paper); NaN where IᵀΦ is always 0.

    Forward passes: N·(K + 1). Raises InputError.
    """
    pics = pictures(x)
    phi = _shaped(relevance, pics.shape, "relevance")
    changes = _perturbations(perturbations, pics)
    size = whole("batch_size", batch_size)
    before = scores_of(score, pics, batch_size=size)
    index = chosen(targets, before)
    moved = (pics[n] - i[n].astype(pics.dtype) for i in changes for n in range(len(pics)))
    after = np.array([row[index[j % len(pics)]] for j, row in enumerate(all_scores(score, moved, batch_size=size))])
    change = before[np.arange(len(pics)), index] - after.reshape(len(changes), len(pics))
    product = (changes * phi).sum((2, 3, 4))
    if normalise:
        product = product * quotient((product * change).mean(0), (product**2).mean(0))
    return np.asarray(((product - change) ** 2).mean(0))


def max_sensitivity(
    explain: Explain,
    x: npt.ArrayLike,
    *,
    perturbations: npt.ArrayLike,
    targets: npt.ArrayLike,
    relevance: npt.ArrayLike | None = None,
    relative: bool = False,
    batch_size: int = 64,
) -> Floats:
    """max over the perturbations of ‖Φ(x + δ) - Φ(x)‖₂; lower is steadier, 0 is constant.

    Yeh et al., NeurIPS 2019, definition 2.2 (with finitely many δ a lower bound). explain(x, targets) -> [B, ...]; perturbations:
    [K, N, C, H, W], added to x: for the paper's ball draw them within ‖δ‖∞ <= r (`ball_perturbations`). relevance: Φ(x), where it
    is known already. relative: divided by ‖Φ(x)‖₂, as captum and Quantus do though the definition does not; NaN where Φ(x) is 0.

    Explanations made: N·(K + 1), or N·K with `relevance`. Raises InputError.
    """
    pics = pictures(x)
    changes = _perturbations(perturbations, pics)
    index = class_indices(targets, len(pics))
    size = whole("batch_size", batch_size)
    phi = (
        explained(explain, pics, index, batch_size=size) if relevance is None else _shaped(relevance, None, "relevance")
    )
    largest = np.zeros(len(pics))
    for change in changes:
        moved = explained(explain, pics + change.astype(pics.dtype), index, batch_size=size)
        if moved.shape != phi.shape:
            raise InputError(
                f"The explanation has shape {moved.shape}, but relevance has {phi.shape}; give it as it was made."
            )
        largest = np.maximum(largest, _norms(moved - phi))
    return quotient(largest, _norms(phi)) if relative else largest


def ball_perturbations(
    x: npt.ArrayLike, *, radius: float, count: int, seed: int = 0, keys: Sequence[int] | None = None
) -> Array:
    """Uniform in the box ‖δ‖∞ <= radius: [count, N, C, H, W] of x's dtype. Yeh et al., NeurIPS 2019, section 2.2.

    seed, keys: every sample has a stream of its own, made of the seed and its key (default: its number).
    """
    r = number("radius", radius, 0)
    return _drawn(x, count, seed, keys, lambda stream, shape: stream.uniform(-r, r, shape))


def noise_perturbations(
    x: npt.ArrayLike, *, sigma: float, count: int, seed: int = 0, keys: Sequence[int] | None = None
) -> Array:
    """Gaussian noise I ~ N(0, σ²): [count, N, C, H, W] of x's dtype, for `infidelity` and SmoothGrad-like tests."""
    spread = number("sigma", sigma, 0)
    return _drawn(x, count, seed, keys, lambda stream, shape: stream.normal(0.0, spread, shape))


def square_perturbations(
    x: npt.ArrayLike, *, size: int, count: int, seed: int = 0, keys: Sequence[int] | None = None
) -> Array:
    """Square removal: I is x within a square of `size` pixels at a random place, 0 elsewhere: [count, N, C, H, W].

    Yeh et al., NeurIPS 2019, section 3: x - I has the square set to 0.
    """
    pics = pictures(x)
    height, width = pics.shape[2:]
    if whole("size", size) > min(height, width):
        raise InputError(f"A square of {size} pixels does not fit pictures of {width}x{height}.")

    def corner(stream: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        inside = np.zeros(shape)
        for k in range(shape[0]):
            top, left = stream.integers(height - size + 1), stream.integers(width - size + 1)
            inside[k, :, top : top + size, left : left + size] = 1.0
        return inside

    return np.asarray(_drawn(pics, count, seed, keys, corner) * pics)


def _drawn(x: npt.ArrayLike, count: int, seed: int, keys: Sequence[int] | None, draw: Any) -> Array:
    pics = pictures(x)
    shape = (whole("count", count), *pics.shape[1:])
    out = np.empty((count, *pics.shape), pics.dtype)
    for n, stream in enumerate(streams(len(pics), seed, keys, 2)):
        out[:, n] = draw(stream, shape)
    return out


def _perturbations(given: npt.ArrayLike, x: Array) -> Floats:
    changes = real(given, "perturbations")
    if changes.ndim != 5 or changes.shape[1:] != x.shape or not len(changes):
        raise InputError(
            f"perturbations must be [K, {', '.join(map(str, x.shape))}] with K >= 1, but are {changes.shape}."
        )
    if not np.isfinite(changes).all():
        raise InputError("perturbations hold NaN or infinity; draw them again within the admissible values.")
    return changes


def _shaped(values: npt.ArrayLike, shape: tuple[int, ...] | None, name: str) -> Floats:
    array = finite(real(values, name), name)
    if shape is not None and array.shape != shape:
        raise InputError(
            f"{name} has shape {array.shape}, but must have {shape}: one value per feature, channels not summed."
        )
    return array


def _norms(values: Floats) -> Floats:
    return np.asarray(np.sqrt((values**2).sum(tuple(range(1, values.ndim)))))
