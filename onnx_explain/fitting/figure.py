"""The picture of `pattern-quality`: ρ per layer and estimator, as Fig. 3 of the paper draws it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnx_explain.errors import InputError
from onnx_explain.fitting.scoring import LayerQuality
from onnx_explain.render import save_figure

LABELS = {
    "random": "random",
    "filter": "S_w (filter)",
    "linear": "S_a (linear)",
    "two-component": "S_a± (two-component)",
}
# told apart by colour-blind readers, and by their markers; on white, on black
_COLOURS = {
    "random": ("#777777", "#a3a7ae"),
    "filter": ("#c76a00", "#f0a13c"),
    "linear": ("#1565b0", "#5fb0f5"),
    "two-component": ("#b3202c", "#ff7a70"),
}
_MARKERS = {"random": "x", "filter": "s", "linear": "o", "two-component": "D"}


def draw_quality(
    layers: Sequence[LayerQuality], path: str | os.PathLike[str], *, title: str | None = None, dark: bool = False
) -> None:
    """Write the mean ρ per layer, with the range from the first to the third quartile of its neurons, as PNG, SVG or PDF.

    Raises InputError where no layer has a ρ, OutputError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [layer for layer in layers if layer.rho]
    if not shown:
        raise InputError("There is no layer to draw: every one was skipped.")
    face, text, edge = ("#14161a", "#ececec", "#50555d") if dark else ("#ffffff", "#1a1a1a", "#b8b8b8")
    longest = max(len(layer.node) for layer in shown)
    slanted = longest * len(shown) > 60
    width = min(max(6.4, 0.42 * len(shown) + 1.2), 18.0)
    figure = Figure(
        figsize=(width, 4.2 + (0.05 * min(longest, 30) if slanted else 0)),
        dpi=150,
        facecolor=face,
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=face)
    lows: list[float] = []
    highs: list[float] = []
    every = 0.72 / len(LABELS)
    for number, (name, label) in enumerate(LABELS.items()):
        places = np.arange(len(shown)) + (number - (len(LABELS) - 1) / 2) * every
        colour = _COLOURS[name][dark]
        values = [layer.rho[name][np.isfinite(layer.rho[name])] for layer in shown]
        low, middle, high = (
            np.asarray([f(v) if v.size else np.nan for v in values])
            for f in (lambda v: np.percentile(v, 25), np.mean, lambda v: np.percentile(v, 75))
        )
        lows.extend(np.fmin(low, middle))
        highs.extend(np.fmax(high, middle))
        axes.vlines(places, low, high, color=colour, linewidth=3.5, alpha=0.45)
        axes.plot(places, middle, linestyle="none", marker=_MARKERS[name], markersize=5, color=colour, label=label)
    axes.set_xticks(range(len(shown)), [_short(layer.node) for layer in shown])
    if slanted:
        axes.tick_params(axis="x", labelrotation=35)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    for edge_between in range(1, len(shown)):
        axes.axvline(edge_between - 0.5, color=edge, linewidth=0.5, alpha=0.6)
    reached = [*lows, *highs]
    axes.set_ylim(min(-0.04, np.nanmin(reached) - 0.03), max(1.04, np.nanmax(reached) + 0.03))
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylabel("ρ (higher is better)", color=text, fontsize=9)
    axes.tick_params(colors=text, labelsize=8, width=0.5)
    axes.grid(axis="y", color=edge, linewidth=0.4, alpha=0.5)
    for spine in axes.spines.values():
        spine.set(color=edge, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=len(LABELS), fontsize=8, frameon=False, labelcolor=text)
    if title:
        figure.suptitle(title, color=text, fontsize=11, fontweight="bold", parse_math=False)
    save_figure(figure, Path(path))


def _short(name: str, most: int = 30) -> str:
    return (name if len(name) <= most else "…" + name[1 - most :]).replace("$", r"\$")
