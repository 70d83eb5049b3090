"""Rows of features: a bar per feature, the strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnx_explain.errors import InputError
from onnx_explain.render.colours import BLUE, RED, Array, finite
from onnx_explain.render.page import DARK, LIGHT, Page, Theme, colour_strip, fit, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_features(
    values: Array,
    relevance: Array,
    *,
    names: Sequence[str] | None = None,
    top: int = 20,
    title: str | None = None,
    dark: bool = False,
) -> Figure:
    """Return the ``top`` features of a row [F] by |relevance| [F] as horizontal bars; a last bar sums up the others."""
    given, heat = (np.ravel(finite(a)) for a in (values, relevance))
    if given.shape != heat.shape or not given.size or (names is not None and len(names) != len(given)):
        raise InputError(
            f"Features, their relevance and their names must be as many, but they are {given.size}, {heat.size} and "
            f"{'none' if names is None else len(names)}."
        )
    order = np.argsort(-np.abs(heat), kind="stable")
    first, others = order[:top], order[top:]
    labels = [f"{names[i] if names is not None else f'[{i}]'} = {given[i]:.4g}" for i in first]
    bars = [float(heat[i]) for i in first]
    if others.size:
        labels.append(f"the other {others.size}, summed")
        bars.append(float(heat[others].sum(dtype=np.float64)))
    return _bars([fit(label, 2.8, 8, 1) for label in labels], bars, title, DARK if dark else LIGHT)


def figure_positions(
    entries: Array, relevance: Array, *, title: str | None = None, dark: bool = False, most: int = 600
) -> Figure:
    """Return whole numbers [T], such as the ids of tokens or bytes, as a bar of relevance [T] at each position.

    Of more than ``most`` positions neighbours share a bar: the one that is furthest from zero. Few are told by their entries.
    """
    given, heat = np.ravel(entries), np.ravel(finite(relevance)).astype(np.float64)
    if given.shape != heat.shape or not given.size:
        raise InputError(f"Entries and their relevance must be as many, but they are {given.size} and {heat.size}.")
    theme, step = DARK if dark else LIGHT, -(-len(heat) // most)
    starts = np.arange(0, len(heat), step)
    bars = np.array([heat[s : s + step][np.abs(heat[s : s + step]).argmax()] for s in starts])
    note = f"each bar is the strongest of {step} positions" if step > 1 else ""
    page = Page(9.0, 2.3, title, theme, note=note, legend=colour_strip(BLUE, RED))
    axes = page.axes(0.75, 0.05, page.width - 0.95, 2.1)
    colours = [RED if b > 0 else BLUE for b in bars]
    axes.bar(starts + (step - 1) / 2, bars, width=0.86 * step, color=colours, zorder=3)
    axes.axhline(0, color=theme.muted, linewidth=0.8, zorder=4)
    axes.set(xlim=(-1, len(heat)))
    axes.locator_params(axis="y", nbins=5)
    if len(given) <= 24:
        told = [f"{entry}" for entry in given.tolist()]
        axes.set_xticks(range(len(given)), [t if len(t) <= 7 else t[:6] + "…" for t in told])
    return page.figure


def _bars(labels: Sequence[str], bars: Sequence[float], title: str | None, theme: Theme) -> Figure:
    left = 0.3 + max(text_width(label, 8) for label in labels)
    height = 0.22 * len(bars) + 0.35
    page = Page(max(4.4, left + 3.6), height + 0.25, title, theme, legend=colour_strip(BLUE, RED))
    axes = page.axes(left, 0.05, page.width - left - 0.25, height - 0.05)
    axes.barh(range(len(bars)), bars, color=[RED if b > 0 else BLUE for b in bars], height=0.72, zorder=3)
    axes.axvline(0, color=theme.muted, linewidth=0.8, zorder=4)
    reach = max(abs(b) for b in bars) * 1.05 or 1.0
    axes.set(xlim=(-reach if min(bars) < 0 else 0, reach if max(bars) > 0 or min(bars) == 0 else 0))
    axes.set(ylim=(len(bars) - 0.4, -0.6), yticks=[])
    axes.grid(axis="x", color=theme.edge, linewidth=0.4, alpha=0.6)
    axes.locator_params(axis="x", nbins=5)
    rise = (height - 0.05) / (len(bars) + 0.2)
    for i, label in enumerate(labels):
        page.text(left - 0.08, 0.05 + rise * (i + 0.6), label, 8, ha="right")
    return page.figure
