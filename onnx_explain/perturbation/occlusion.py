"""Occlusion: how the score falls where a sliding window covers the input."""

from __future__ import annotations

import numpy as np

from onnx_explain.errors import MethodError
from onnx_explain.methods.perturbation import Occlusion
from onnx_explain.perturbation.axes import Axes, of_input
from onnx_explain.perturbation.trial import Trial, under
from onnx_explain.prepared import Array
from onnx_explain.rules.masks import Windows


def occlusion(trial: Trial, how: Occlusion) -> dict[str, Array]:
    """A_i = Σ_q M_q[i]·(F(x) - F(x·(1 - M_q) + b·M_q)) / Σ_q M_q[i] over the windows M_q; captum's Occlusion (methods.md §3)."""
    windows = [_windows(trial, how, axes) for axes in trial.axes]
    trial.expect(1 + sum(map(len, windows)))
    before, relevance = trial.whole(), {}
    for axes, window in zip(trial.axes, windows):
        total = np.zeros((len(trial.units), *axes.shape))
        for slots, ids, _, scores in trial.sweep(len(window), under(axes.name, window.masks)):
            for slot, index, change in zip(slots, ids, before[slots] - scores):
                total[(slot, *window.at(int(index)))] += change
        relevance[axes.name] = trial.relevance(axes, total / window.cover())
    return relevance


def _windows(trial: Trial, how: Occlusion, axes: Axes) -> Windows:
    """Default window: an eighth of each spatial axis, rounded up, or one feature; default stride: half the window, rounded up."""
    window = axes.sizes(how.window, trial.method, "window", lambda d: 1 if axes.table else -(-d // 8))
    halves = tuple(-(-w // 2) for w in window)
    if of_input(how.stride, axes.name) is None:
        return Windows(axes.shape, window, halves)
    stride = axes.sizes(how.stride, trial.method, "stride", lambda d: d)
    for axis, (w, s, size) in enumerate(zip(window, stride, axes.shape)):
        if s > w and w < size:
            raise MethodError(
                f"Method {trial.method!r}: stride {s} on axis {axis + axes.batch} of {axes.name!r} is larger than the window "
                f"{w}, so that entries between windows would get nothing; make it at most {w}."
            )
    return Windows(axes.shape, window, tuple(min(s, w) for s, w in zip(stride, window)))
