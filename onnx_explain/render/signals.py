"""Signals: a line per channel, coloured and thickened by its relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from onnx_explain.errors import InputError
from onnx_explain.render.colours import BLUE, RED, Array, finite, normalise, rgb, scale_of
from onnx_explain.render.page import DARK, LIGHT, Page, Theme, colour_strip, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_signal(
    x: Array,
    relevance: Array,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    dark: bool = False,
    most: int = 12,
    rate: float | None = None,
) -> Figure:
    """Return a signal [T] or [C, T] as one line per channel, coloured and thickened by its relevance (same shape).

    Below each line a band has the same colours. ``rate``: samples per second, for an axis in seconds.

    Of more than ``most`` channels those with the largest total |relevance| are drawn, in their order. One colour scale.
    """
    if rate is not None and not (np.isfinite(rate) and rate > 0):
        raise InputError(f"The sampling rate is {rate}, but it must be positive.")
    signal, heat = (np.atleast_2d(finite(a).astype(np.float64)) for a in (x, relevance))
    if signal.shape != heat.shape or signal.ndim != 2 or signal.size == 0:
        raise InputError(
            f"A signal and its relevance must both be [T] or [C, T], but they are {list(np.shape(x))} and "
            f"{list(np.shape(relevance))}."
        )
    shown = np.sort(np.argsort(-np.abs(heat).sum(axis=1), kind="stable")[:most])
    theme = DARK if dark else LIGHT
    limit, row, left = scale_of(heat), *((2.2, 0.75) if len(shown) == 1 else (1.15, 1.1))
    left_out = len(signal) - len(shown)
    note = f"{len(shown)} of {len(signal)} channels, those of most relevance" if left_out else ""
    blend = Image.fromarray(colour_strip(BLUE, theme.muted, RED)).resize((255, 1), Image.Resampling.BILINEAR)
    legend = np.asarray(blend)
    page = Page(9.0, row * len(shown) + 0.3, title, theme, note=note, legend=legend)
    for i, channel in enumerate(shown):
        axes = page.axes(left, i * row + 0.05, page.width - left - 0.2, row - 0.15)
        _draw_signal(
            axes, signal[channel], normalise(heat[channel], limit=limit), theme, last=i == len(shown) - 1, rate=rate
        )
        if len(signal) > 1:
            name = names[channel] if names is not None else f"channel {channel}"
            label = fit(str(name), row - 0.15, 7.5, 2)
            page.text(0.24, i * row + 0.05 + (row - 0.15) / 2, label, 7.5, rotation=90)
    return page.figure


def _draw_signal(axes: Axes, line: Array, heat: Array, theme: Theme, *, last: bool, rate: float | None) -> None:
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.ticker import MaxNLocator

    count = len(line)
    axes.plot(np.arange(count), line, color=theme.muted, linewidth=0.8, marker="." if count == 1 else None)
    # A stretch of samples per colour, from half-way to its neighbours; thousands of colours could not be told apart.
    step = -(-count // 2000)
    places = np.clip(np.arange(0, count * 2 + 1) / 2 - 0.5, 0, count - 1)
    points = np.stack([places, np.interp(places, np.arange(count), line)], axis=-1)
    starts = range(0, count, step)
    strength = np.array([heat[s : s + step][np.abs(heat[s : s + step]).argmax()] for s in starts])
    stretches = [points[2 * s : 2 * min(s + step, count) + 1] for s in starts]
    colours = [(*rgb(RED if r > 0 else BLUE), min(1.0, 1.6 * abs(r))) for r in strength]
    widths = 0.8 + 2.2 * np.abs(strength)
    axes.add_collection(LineCollection(stretches, colors=colours, linewidths=widths, rasterized=count > 500, zorder=3))
    axes.margins(x=0.01, y=0.16)
    axes.autoscale_view()
    lowest, highest = axes.get_ylim()
    band = [lowest, lowest + 0.07 * (highest - lowest)]
    corners = [[(s[0, 0], band[0]), (s[-1, 0], band[0]), (s[-1, 0], band[1]), (s[0, 0], band[1])] for s in stretches]
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="none", rasterized=count > 500))
    axes.set_ylim(lowest, highest)
    if rate is not None:
        seconds = np.asarray(MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(0, (count - 1) / rate))
        seconds = seconds[(seconds >= 0) & (seconds * rate <= count - 1 + 1e-6)]
        axes.set_xticks(seconds * rate, [f"{s:.6g} s" for s in seconds])
    axes.locator_params(axis="y", nbins=4, min_n_ticks=3)
    axes.tick_params(labelbottom=last)
