"""One text, signal or row of features under many methods: a line or a band of colours each, every one on its own scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnx_explain.errors import InputError
from onnx_explain.render.colours import BLUE, RED, Array, finite, normalise, rgb
from onnx_explain.render.page import DARK, LIGHT, Page, fit, text_width
from onnx_explain.render.tokens import LINE, SIZE, WIDE, Part, blend, laid_out, strengths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTE = "each method on its own scale"
_MOST_TEXTS, _MOST_COLUMNS = 400, 2000


def figure_texts(
    texts: Mapping[str, Sequence[Part]],
    *,
    title: str | None = None,
    dark: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Return one text under several methods, {method: its parts}, one below the other; notes: more beside a method's name."""
    if not texts:
        raise InputError("There is nothing to draw: give a text under one method at least.")
    theme = DARK if dark else LIGHT
    placed = {name: laid_out(parts, strengths(parts)) for name, parts in texts.items()}
    heights = {name: LINE * (min(rows, _MOST_TEXTS // len(placed) + 1) + 1) + 0.1 for name, (_, rows) in placed.items()}
    page = Page(WIDE + 0.5, sum(heights.values()), title, theme, note=_NOTE, legend=blend(theme.face))
    top = 0.0
    for name, (pieces, _) in placed.items():
        page.text(0.25, top + LINE / 2, _headed(name, notes), 8.5, ha="left", muted=True)
        for row, left, wide, text, strength in pieces:
            if LINE * (row + 2) <= heights[name]:
                down = top + LINE * (row + 1)
                page.box(0.25 + left, down + 0.02, wide, LINE - 0.04, RED if strength > 0 else BLUE, abs(strength))
                page.text(0.25 + left, down + LINE / 2, text, SIZE, ha="left")
        top += heights[name]
    return page.figure


def figure_bands(
    maps: Mapping[str, Array],
    *,
    signal: Array | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    dark: bool = False,
    notes: Mapping[str, str] | None = None,
    rate: float | None = None,
    top: int = 24,
) -> Figure:
    """Return relevance [T] under several methods, {method: relevance}, as a band of colours each.

    signal: [T] or [C, T], drawn above them. names: of the entries; the ``top`` ones that matter most to any method are drawn
    then, in their order. notes: more below a method's name. rate: samples per second.
    """
    rows = {n: np.ravel(finite(r)).astype(np.float64) for n, r in maps.items()}
    if not rows or len({len(r) for r in rows.values()}) != 1 or not len(next(iter(rows.values()))):
        raise InputError("Bands need relevance of equally many entries under one method at least.")
    theme, count = DARK if dark else LIGHT, len(next(iter(rows.values())))
    heats = np.stack([normalise(r) for r in rows.values()])
    shown = np.arange(count)
    if names is not None and count > top:
        shown = np.sort(np.argsort(-np.abs(heats).max(0), kind="stable")[:top])
    labels = [] if names is None else [fit(str(names[int(i)]), 1.4, 7, 1) for i in shown]
    said = [fit(told, 2.2, 5.5, 1) for told in (notes or {}).values()]
    left = 0.3 + max(*(text_width(fit(n, 2.2, 8, 1), 8) for n in rows), *(text_width(s, 5.5) for s in said), 0.5)
    head, foot = 0.0 if signal is None else 1.0, 0.1 + max((text_width(x, 7) for x in labels), default=0.1)
    height = 0.32
    page = Page(9.0, head + height * len(rows) + foot, title, theme, note=_NOTE, legend=blend(theme.face))
    width = page.width - left - 0.2
    if signal is not None:
        lines = page.axes(left, 0.03, width, head - 0.1)
        lines.plot(np.atleast_2d(signal).T, color=theme.muted, linewidth=0.6, alpha=0.9)
        lines.set(xlim=(-0.5, count - 0.5), xticks=[], yticks=[])
    for i, (name, heat) in enumerate(zip(rows, heats)):
        down = head + i * height
        band = page.axes(left, down + 0.03, width, height - 0.06)
        band.imshow(_coloured(_pooled(heat[shown]), theme.face), aspect="auto", interpolation="nearest")
        band.set(xticks=[], yticks=[])
        middle = down + height / 2
        page.text(left - 0.08, middle - (0.06 if notes else 0.0), fit(name, 2.2, 8, 1), 8, ha="right")
        if notes and notes.get(name):
            page.text(left - 0.08, middle + 0.08, fit(notes[name], 2.2, 5.5, 1), 5.5, ha="right", muted=True)
    down = head + height * len(rows)
    for k, label in enumerate(labels):
        across = left + width * (k + 0.5) / len(labels)
        page.text(across, down + 0.03, label, 7, rotation=90, va="top")
    if names is None:
        last = f"{(count - 1) / rate:.6g} s" if rate else f"{count - 1}"
        page.text(left, down + 0.08, "0", 7, ha="left", muted=True)
        page.text(left + width, down + 0.08, last, 7, ha="right", muted=True)
    return page.figure


def _headed(name: str, notes: Mapping[str, str] | None) -> str:
    more = (notes or {}).get(name)
    return fit(f"{name}   {more}" if more else name, WIDE, 8.5, 1)


def _pooled(heat: Array) -> Array:
    """Of more entries than can be told apart the strongest of each stretch."""
    step = -(-len(heat) // _MOST_COLUMNS)
    return np.array([heat[s : s + step][np.abs(heat[s : s + step]).argmax()] for s in range(0, len(heat), step)])


def _coloured(heat: Array, ground: str) -> Array:
    """[T] in [-1, 1] as colours [1, T, 3] on the page's own ground."""
    behind = np.asarray(rgb(ground))
    ink = np.where(heat[:, None] > 0, np.asarray(rgb(RED)), np.asarray(rgb(BLUE)))
    strength = np.abs(heat)[:, None] ** 0.8
    found: Array = (behind * (1 - strength) + ink * strength)[None]
    return found
