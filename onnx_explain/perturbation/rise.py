"""RISE: the mean of smooth random masks, weighted by the score that each leaves."""

from __future__ import annotations

import numpy as np

from onnx_explain.methods.perturbation import Rise
from onnx_explain.perturbation.trial import Ids, Trial, under
from onnx_explain.prepared import Array
from onnx_explain.rules.masks import Cells, random_masks

RISE_GRID = 7


def rise(trial: Trial, how: Rise) -> dict[str, Array]:
    """S = Σ_k F(x ⊙ M_k)·M_k / (N·p): Petsiuk et al. 2018, eq. 6; a map is shared evenly among the channels.

    Centred: with F(x ⊙ M_k) - mean F in place of F(x ⊙ M_k), which takes away what every entry has alike.
    """
    grids = [axes.cells(how.grid, trial.method, RISE_GRID) for axes in trial.axes]
    trial.expect(how.masks * len(grids))
    relevance = {}
    for axes, cells in zip(trial.axes, grids):

        def drawn(ids: Ids, cells: list[Cells] = cells) -> Array:
            return random_masks(ids, cells, kept=how.probability, seed=how.random_seed)

        total = np.zeros((len(trial.units), *(c.size for c in cells)))
        seen, mean = np.zeros_like(total), np.zeros((len(trial.units), *[1] * len(cells)))
        for slots, _, masks, scores in trial.sweep(how.masks, under(axes.name, drawn)):
            for slot in np.unique(slots):
                mine = slots == slot
                total[slot] += np.tensordot(scores[mine], masks[axes.name][mine], 1)
                seen[slot] += masks[axes.name][mine].sum(0)
                mean[slot] += scores[mine].sum() / how.masks
        if how.centred:
            total -= mean * seen
        shared = 1 if axes.channels is None else axes.shape[axes.channels]
        found = np.broadcast_to(total / (how.masks * how.probability * shared), (len(total), *axes.shape))
        relevance[axes.name] = trial.relevance(axes, found)
    return relevance
