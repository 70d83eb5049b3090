"""Shapley values: the mean change of the score as features join the baseline, over random orders or exactly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from onnx_explain import feeds as feeding
from onnx_explain.errors import MethodError, suggest
from onnx_explain.methods.perturbation import ShapleySampling
from onnx_explain.perturbation.axes import Axes
from onnx_explain.perturbation.trial import Ids, Masks, Trial
from onnx_explain.prepared import Array, Outcome
from onnx_explain.rules import masks as masking

SUPERPIXELS = 8


def shapley(trial: Trial, how: ShapleySampling) -> Outcome:
    """The features of all explained tensors play one game v(S) = F(x on S, baseline elsewhere).

    A feature's value is spread evenly over its entries, so that sums are kept; all values of a unit sum to F(x) - F(x′).
    """
    labels = _players(trial, how)
    players = 1 + max(int(found.max(initial=-1)) for found in labels.values())
    if players <= how.exact_up_to:
        values, change = _exact(trial, labels, players)
    else:
        values, change = _sampled(trial, how, labels, players)
    entries = np.sum([np.bincount(found.ravel(), minlength=players) for found in labels.values()], axis=0)
    each = values / entries
    relevance = {a.name: trial.relevance(a, each[:, labels[a.name]]) for a in trial.axes}
    arrived = _arrived(trial, relevance)
    return trial.outcome(relevance, change, arrived - change)


def _arrived(trial: Trial, relevance: Mapping[str, Array]) -> Array:
    """Σ relevance per unit, as it was rounded: float64 [units]."""
    totals = [feeding.totals(r) for r in relevance.values()]
    if trial.apart:
        return np.asarray(sum(t[trial.units] for t in totals))
    return np.full(len(trial.units), float(sum(t.sum() for t in totals)))


def _players(trial: Trial, how: ShapleySampling) -> dict[str, Ids]:
    """The feature that each entry of each tensor belongs to, numbered from 0 without gaps: int64 [*shape]."""
    given = how.features
    if given is not None and not isinstance(given, Mapping):
        if len(trial.axes) > 1:
            names = ", ".join(repr(a.name) for a in trial.axes)
            raise MethodError(
                f"Method {trial.method!r}: features must be given per input, {{name: array}}, for {names}."
            )
        given = {trial.axes[0].name: given}
    for name in given or ():
        if name not in trial.names:
            raise MethodError(f"Method {trial.method!r}: {name!r} is not explained.{suggest(name, trial.names)}")
    offset, found = 0, dict[str, Ids]()
    for axes in trial.axes:
        if given is not None and axes.name in given:
            found[axes.name] = _fitted(trial, axes, given[axes.name])
    named = {int(v) for labels in found.values() for v in np.unique(labels)}
    numbers = {label: i for i, label in enumerate(sorted(named))}
    offset = len(numbers)
    for axes in trial.axes:
        if axes.name in found:
            distinct, where = np.unique(found[axes.name], return_inverse=True)
            found[axes.name] = np.array([numbers[int(v)] for v in distinct])[where].reshape(axes.shape)
        else:
            labels = masking.superpixels(axes.cells(how.grid, trial.method, SUPERPIXELS))
            found[axes.name] = np.broadcast_to(labels + offset, axes.shape)
            offset += int(labels.max(initial=-1)) + 1
    return found


def _fitted(trial: Trial, axes: Axes, labels: Ids) -> Ids:
    """A feature array in the tensor's shape, equal numbers meaning one feature, whichever tensor they stand in."""
    if axes.batch and labels.ndim == len(axes.shape) + 1 and labels.shape[0] == 1:
        labels = labels[0]
    try:
        return np.broadcast_to(labels, axes.shape)
    except ValueError as error:
        raise MethodError(
            f"Method {trial.method!r}: features have the shape {list(labels.shape)}, which does not broadcast to "
            f"{list(axes.shape)}, one sample of {axes.name!r}."
        ) from error


def _shown(labels: Mapping[str, Ids], present: npt.NDArray[np.bool_]) -> Masks:
    """The masks of coalitions: present [B, players] → per tensor [B, *shape]."""
    return {name: present[:, found].astype(np.float64) for name, found in labels.items()}


def _exact(trial: Trial, labels: Mapping[str, Ids], players: int) -> tuple[Array, Array]:
    """Shapley values of all coalitions, and F(x) - F(x′): [units, players], [units]."""
    subsets = masking.coalitions(players)
    trial.expect(len(subsets))
    worth = np.zeros((len(trial.units), len(subsets)))
    for slots, ids, _, scores in trial.sweep(len(subsets), lambda ids: _shown(labels, subsets[ids])):
        worth[slots, ids] = scores
    return masking.shapley_values(worth), worth[:, -1] - worth[:, 0]


def _sampled(trial: Trial, how: ShapleySampling, labels: Mapping[str, Ids], players: int) -> tuple[Array, Array]:
    """The mean contribution over random orders, and F(x) - F(x′): [units, players], [units].

    Each order is one telescope from F(x′) to F(x), so that the sum of the values does not depend on how many there are.
    """
    steps = players - 1  # the empty and the full coalition are the same in every order
    trial.expect(2 + how.samples * steps)
    full, empty = trial.whole(), trial.whole(shown=False)
    values = np.zeros((len(trial.units), players))

    @lru_cache(maxsize=256)
    def order(index: int) -> Ids:
        return masking.permutation(index, players, seed=how.random_seed, antithetic=how.antithetic)

    def present(ids: Ids) -> Masks:
        rows = np.zeros((len(ids), players), dtype=bool)
        for row, index in zip(rows, ids):
            row[order(int(index) // steps)[: int(index) % steps + 1]] = True
        return _shown(labels, rows)

    for slots, ids, _, scores in trial.sweep(how.samples * steps, present):
        for slot, index, score in zip(slots, ids, scores):
            joined = order(int(index) // steps)[int(index) % steps :][:2]
            # v(S) ends one contribution and begins the next
            values[slot, joined[0]] += score
            values[slot, joined[1]] -= score
    for index in range(how.samples):
        ends = order(index)
        values[:, ends[0]] -= empty
        values[:, ends[-1]] += full
    return values / how.samples, full - empty
