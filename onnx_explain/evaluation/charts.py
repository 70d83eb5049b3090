"""Figures of a summary: bars with intervals per metric, and mean curves of those that have one. Best first, from the top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_explain.evaluation.measures import Column
from onnx_explain.evaluation.summary import ARROWS, Row, Summary, told
from onnx_explain.render import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
# Told apart by colour-blind readers (after Okabe and Ito), on white and on black; dashes tell them apart without colour.
_LINES = ("#0082c8", "#e0620d", "#00a37a", "#d07fb0", "#e0a000", "#7fb2e5")
_DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (8, 2, 2, 2)), (0, (4, 1)), (0, (1, 1)))
_ROW, _TOP, _BOTTOM, _RIGHT = 0.24, 0.62, 0.55, 0.75  # inches


@dataclass(frozen=True)
class _Theme:
    face: str
    text: str
    muted: str
    edge: str
    bar: str


_LIGHT = _Theme("#ffffff", "#1a1a1a", "#666666", "#c9c9c9", "#5b9bd5")
_DARK = _Theme("#14161a", "#ececec", "#a3a7ae", "#50555d", "#3f78b5")


def draw(summary: Summary, *, dark: bool = False) -> list[Path]:
    """Every figure of a summary into ``figures/`` of its folder, as PNG and SVG; the files written."""
    folder = summary.run.journal.folder / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for column in summary.columns:
        rows = [r for r in summary.of(column.name) if math.isfinite(r.value)]
        figures = {column.name: figure_bars(column, rows, dark=dark)} if rows else {}
        if column.curve and any(r.curve for r in rows):
            figures[f"{column.name}-curves"] = figure_curves(column, rows, dark=dark)
        for name, figure in figures.items():
            for suffix in SUFFIXES:
                save_figure(figure, folder / f"{name}{suffix}")
                written.append(folder / f"{name}{suffix}")
    return written


def figure_bars(column: Column, rows: Sequence[Row], *, dark: bool = False) -> Figure:
    """A bar per method with its interval, in the order of the rows. rows: of finite values, at least one."""
    theme = _DARK if dark else _LIGHT
    left = 0.25 + 0.075 * max(len(r.method) for r in rows)
    figure, axes = _page(column, left + 4.6, _ROW * len(rows) + _TOP + _BOTTOM, left, _RIGHT, theme)
    places = np.arange(len(rows))
    values = np.array([r.value for r in rows])
    low = np.array([r.low if math.isfinite(r.low) else r.value for r in rows])
    high = np.array([r.high if math.isfinite(r.high) else r.value for r in rows])
    axes.barh(places, values, height=0.66, color=theme.bar, zorder=2)
    axes.hlines(places, low, high, color=theme.text, linewidth=1.1, zorder=3)
    reach = _reach(values, low, high)
    axes.set(ylim=(len(rows) - 0.4, -0.6), yticks=places, yticklabels=[r.method for r in rows], xlim=reach)
    for place, row in zip(places, rows):  # beside the frame, where no bar and no interval can meet it
        axes.annotate(
            told(row.value), (1.0, float(place)), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=theme.text, annotation_clip=False,
        )  # fmt: skip
    axes.axvline(0, color=theme.muted, linewidth=0.8, zorder=4)
    axes.set_xlabel("with 95 % bootstrap interval", fontsize=7.5, color=theme.muted)
    return figure


def _reach(values: Any, low: Any, high: Any) -> tuple[float, float]:
    """From the least to the largest figure, with 0; an interval far beyond all values is cut."""
    spread = max(float(np.abs(values).max()), 1e-12)
    least = min(0.0, float(np.clip(low, -2.5 * spread, None).min()))
    most = max(0.0, float(np.clip(high, None, 2.5 * spread).max()))
    room = 0.03 * (most - least or 1.0)
    return (least - room if least < 0 else 0.0, most + room if most > 0 else room)


def figure_curves(column: Column, rows: Sequence[Row], *, dark: bool = False, most: int = len(_LINES)) -> Figure:
    """The mean curve of every method over the share of the steps; the best ones in colour, the others grey."""
    theme = _DARK if dark else _LIGHT
    drawn = [r for r in rows if r.curve]
    longest = max(len(r.method) for r in drawn[:most])
    right = 0.55 + 0.075 * max(longest, 12)
    figure, axes = _page(column, 0.65 + 4.2 + right, 3.6, 0.65, right, theme)
    for number, row in reversed(list(enumerate(drawn))):
        share = np.linspace(0, 1, len(row.curve))
        if number >= most:
            axes.plot(share, row.curve, color=theme.edge, linewidth=0.8, zorder=2)
        else:
            axes.plot(
                share, row.curve, color=_LINES[number], linestyle=_DASHES[number], linewidth=1.6, zorder=4 - number / 10,
                label=row.method,
            )  # fmt: skip
    if len(drawn) > most:
        axes.plot([], [], color=theme.edge, linewidth=0.8, label=f"the other {len(drawn) - most}")
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(min(most, len(drawn)) - 1, -1, -1), *range(most, len(handles))]
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="upper left", bbox_to_anchor=(1.01, 1.0),
        frameon=False, fontsize=7.5, labelcolor=theme.text, handlelength=2.6,
    )  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the steps", fontsize=7.5, color=theme.muted)
    axes.set_ylabel("mean over the samples", fontsize=7.5, color=theme.muted)
    return figure


def _page(column: Column, width: float, height: float, left: float, right: float, theme: _Theme) -> tuple[Figure, Axes]:
    """A figure in inches with one axes, its title and what the metric is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page

    figure = Page(figsize=(width, height), facecolor=theme.face)
    FigureCanvasAgg(figure)
    place = (left / width, _BOTTOM / height, (width - left - right) / width, (height - _TOP - _BOTTOM) / height)
    axes = figure.add_axes(place, facecolor=theme.face)
    figure.text(0.12 / width, 1 - 0.12 / height, column.name, fontsize=11, weight="bold", va="top", color=theme.text)
    meaning = f"{column.meaning}; {ARROWS[column.better]}"
    figure.text(0.12 / width, 1 - 0.36 / height, meaning, fontsize=7.5, va="top", color=theme.muted)
    axes.tick_params(colors=theme.muted, labelsize=7.5, width=0.5, length=2.5)
    axes.tick_params(axis="y", labelcolor=theme.text)
    axes.grid(axis="x", color=theme.edge, linewidth=0.4, alpha=0.7, zorder=0)
    for spine in axes.spines.values():
        spine.set(color=theme.edge, linewidth=0.6)
    return figure, axes
