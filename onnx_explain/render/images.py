"""Pictures under their heat maps, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnx_explain.errors import InputError
from onnx_explain.render.colours import Array, Picture, checked_picture, colourise, normalise, overlay, scale_of
from onnx_explain.render.page import DARK, DPI, LIGHT, Page, Theme, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure_images(
    picture: Picture | None,
    maps: Mapping[str, Array],
    *,
    title: str | None = None,
    columns: int | None = None,
    dark: bool = False,
    shared: bool = False,
    overlays: bool = False,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Return the picture uint8 [h, w, 3] (None: left out) and each heat map [H, W] side by side, under its title.

    columns: panels per row; by default what makes the figure a little wider than high.
    shared: one colour scale for all maps rather than one each.
    overlays: each map drawn over the picture rather than on white.
    notes: a small line below the title of a map, by the map's name.

    Raises InputError: nothing to draw, a map that is not [H, W], NaN.
    """
    for name, heat in maps.items():
        if np.ndim(heat) != 2 or np.size(heat) == 0:
            raise InputError(f"The heat map {name!r} is {list(np.shape(heat))}, but it must have a height and a width.")
    limit = max(scale_of(heat) for heat in maps.values()) if shared and maps else None
    told = notes or {}
    panels = [] if picture is None else [("input", "", checked_picture(picture))]
    for name, heat in maps.items():
        over = picture if overlays else None
        drawn = colourise(normalise(heat, limit=limit)) if over is None else overlay(over, heat, limit=limit)
        panels.append((name if np.any(heat) else f"{name} (zero everywhere)", told.get(name, ""), drawn))
    if not panels:
        raise InputError("There is nothing to draw: give a picture or at least one heat map.")
    note = "" if shared or len(maps) < 2 else "each map on its own scale"
    return _panels(panels, title=title, columns=columns, theme=DARK if dark else LIGHT, note=note)


def figure_image(picture: Picture, heat: Array, title: str | None, dark: bool) -> Figure:
    """The picture, the heat map, and one over the other."""
    panels = [
        ("input", "", checked_picture(picture)),
        ("relevance" if np.any(heat) else "relevance (zero everywhere)", "", colourise(normalise(heat))),
        ("relevance on input", "", overlay(picture, heat)),
    ]
    return _panels(panels, title=title, columns=None, theme=DARK if dark else LIGHT, note="")


def figure_volume(heat: Array, title: str | None, dark: bool, most: int = 9) -> Figure:
    """Slices of a volume [D, H, W], at most `most` of them, on one scale."""
    depths = np.unique(np.linspace(0, len(heat) - 1, min(most, len(heat))).round().astype(int))
    return figure_images(None, {f"slice {d}": heat[d] for d in depths}, title=title, dark=dark, shared=True)


def _panels(
    panels: Sequence[tuple[str, str, Picture]], *, title: str | None, columns: int | None, theme: Theme, note: str
) -> Figure:
    height, width = panels[0][2].shape[:2]
    ratio = min(max(width / height, 0.25), 4.0)
    side = 3.6 if len(panels) <= 2 else 2.7 if len(panels) <= 6 else 2.1
    wide, high = max(1.3, side * math.sqrt(ratio)), max(0.6, side / math.sqrt(ratio))
    titles = [fit(name, wide, 8.5, 3) for name, _, _ in panels]
    notes = [fit(note, wide, 6.5, 2) if note else "" for _, note, _ in panels]
    below = 0.125 * max(n.count("\n") + 1 if n else 0 for n in notes)
    strip = 0.06 + 0.155 * max(t.count("\n") + 1 for t in titles) + below
    gap = 0.16
    if columns is not None and columns < 1:
        raise InputError(f"A figure of {columns} columns was asked for: use 1 or more.")
    columns = _columns(len(panels), wide + gap, high + strip + gap) if columns is None else min(columns, len(panels))
    rows = -(-len(panels) // columns)
    across = columns * (wide + gap) + gap
    legend = colourise(np.linspace(-1, 1, 255)[None])
    page = Page(max(across, 4.4), rows * (high + strip + gap), title, theme, note=note, legend=legend)
    margin = (page.width - across) / 2 + gap
    for i, (text, small, (_, _, rgb)) in enumerate(zip(titles, notes, panels)):
        left, top = margin + (i % columns) * (wide + gap), (i // columns) * (high + strip + gap)
        page.text(left + wide / 2, top + strip - below - 0.04, text, 8.5, va="bottom")
        if small:
            page.text(left + wide / 2, top + strip - below - 0.02, small, 6.5, va="top", muted=True)
        _draw_picture(page.axes(left, top + strip, wide, high), rgb, wide * DPI)
    return page.figure


def _columns(count: int, wide: float, high: float) -> int:
    """Return the number of columns whose grid is nearest to 3:2, counting an empty place as a fault."""

    def fault(columns: int) -> float:
        rows = -(-count // columns)
        return abs(math.log(columns * wide / (rows * high) / 1.5)) + 1.2 * (rows * columns - count) / count

    return min(range(1, count + 1), key=fault)


def _draw_picture(axes: Axes, rgb: Picture, dots: float) -> None:
    height, width = rgb.shape[:2]
    extreme = not 0.25 <= width / height <= 4
    crisp = width < dots  # enlarged: show the very pixels; reduced: average, so that thin lines stay
    axes.imshow(rgb, interpolation="nearest" if crisp else "hanning", aspect="auto" if extreme else "equal")
    axes.set(xticks=[], yticks=[])
