"""Drawing results: heat maps, overlays and figures, written whole or not at all.

Red supports the target, blue speaks against it, white is zero; every scale is symmetric about zero. Nothing here reads
a model or decides what is relevant. Figures are matplotlib's, laid out in inches here so that no two texts can meet.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnx_explain.errors import InputError, OutputError
from onnx_explain.files import draft

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array: TypeAlias = NDArray[Any]
Picture: TypeAlias = NDArray[np.uint8]

SUPPORTS, AGAINST = "supports the target", "speaks against"
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
# Value to colour: equally dark on both sides, so that neither sign looks stronger; told apart by colour-blind readers.
_ANCHORS = (-1.0, -0.6, -0.25, 0.0, 0.25, 0.6, 1.0)
_COLOURS = (
    (5, 35, 110),
    (35, 110, 205),
    (160, 200, 240),
    (255, 255, 255),
    (250, 185, 165),
    (220, 60, 45),
    (110, 0, 20),
)
_RED, _BLUE = "#df4a3f", "#3d8bdb"  # for bars and lines: readable on white and on black
_DPI = 150
_OVERLAY_PIXELS = 448


def heatmap(relevance: Array, *, axis: int | None, reduce: Literal["sum", "max_abs"] = "sum") -> Array:
    """Return ``relevance`` with its channel ``axis`` reduced; ``axis=None`` leaves it whole.

    relevance: [..., C, H, W], [..., H, W, C] or any other; the result lacks ``axis`` and is float32 or wider.
    reduce: "sum" (what arrived at the pixel) or "max_abs" (the value furthest from zero, with its sign).

    Raises InputError: no such axis, unknown ``reduce``, NaN or infinite relevance.
    """
    if reduce not in ("sum", "max_abs"):
        raise InputError(f"Unknown reduction {reduce!r} of a heat map's channels: use 'sum' or 'max_abs'.")
    values = _finite(relevance)
    if axis is None:
        return values
    if not -values.ndim <= axis < values.ndim:
        raise InputError(f"A heat map over axis {axis} was asked for, but the relevance is {list(values.shape)}.")
    if reduce == "sum":
        total: Array = values.sum(axis=axis)
        return total
    largest = np.abs(values).argmax(axis=axis, keepdims=True)
    return np.take_along_axis(values, largest, axis=axis).squeeze(axis)


def scale_of(heat: Array, *, percentile: float = 99.5) -> float:
    """Return the magnitude drawn in full colour: a percentile of the |values| that are not zero; 0 for a zero map.

    Zeros do not count, so that a sparse map (a few pixels of many) is scaled by what it shows.
    """
    magnitude = np.abs(_finite(heat).astype(np.float64))
    magnitude = magnitude[magnitude > 0]
    return float(np.percentile(magnitude, percentile)) if magnitude.size else 0.0


def normalise(heat: Array, *, percentile: float = 99.5, limit: float | None = None) -> Array:
    """Return ``heat`` divided by ``limit`` (default: :func:`scale_of`) and clipped to [-1, 1]; zero stays zero.

    Raises InputError: NaN or infinite values.
    """
    limit = scale_of(heat, percentile=percentile) if limit is None else limit
    values = _finite(heat).astype(np.float64)
    if limit <= 0:
        return np.zeros_like(values)
    with np.errstate(over="ignore"):  # a subnormal limit: the quotient is clipped all the same
        clipped: Array = np.clip(values / limit, -1.0, 1.0)
    return clipped


def colourise(heat: Array) -> Picture:
    """Return the colours uint8 [H, W, 3] of ``heat`` [H, W] in [-1, 1]: red positive, blue negative, white zero."""
    values = np.clip(_finite(heat), -1.0, 1.0)
    channels = [np.interp(values, _ANCHORS, [c[i] for c in _COLOURS]) for i in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), dtype=np.uint8)


def overlay(picture: Picture, heat: Array, *, limit: float | None = None, pixels: int = _OVERLAY_PIXELS) -> Picture:
    """Return ``heat`` [H, W] drawn over ``picture`` uint8 [h, w, 3]: the weaker the relevance, the clearer the picture.

    A picture whose shorter side is below ``pixels`` is enlarged by a whole factor; the heat map, scaled as by
    :func:`normalise`, follows bilinearly. The picture is paled, so that its own reds do not pass for relevance.
    """
    _check_picture(picture)
    height, width = picture.shape[:2]
    factor = max(1, round(pixels / min(height, width)))
    size = (width * factor, height * factor)
    image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC) if factor > 1 else Image.fromarray(picture)
    colours = np.asarray(image, dtype=np.float64)
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None]
    base = 0.3 * colours + 0.55 * grey + 0.15 * 255
    strengths = Image.fromarray(normalise(heat, limit=limit).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    strength = np.clip(np.asarray(strengths, dtype=np.float64), -1.0, 1.0)
    magnitude = np.abs(strength)
    opacity = (0.9 * magnitude**0.7)[..., None]
    ink = colourise(np.sign(strength) * (0.5 + 0.4 * magnitude))
    return np.rint(base * (1 - opacity) + ink * opacity).astype(np.uint8)


def as_picture(x: Array, *, axis: int | None) -> Picture:
    """Return an input array [C, H, W], [H, W, C] or [H, W] as uint8 [H, W, 3], its own range stretched to 0..255.

    Four channels are RGBA without the A; another number than 1, 3 or 4 is shown as the grey mean over channels.
    """
    values = _finite(x).astype(np.float64)
    values = values[..., None] if axis is None else np.moveaxis(values, axis, -1)
    if values.ndim != 3 or values.size == 0:
        raise InputError(
            f"An array of shape {list(np.shape(x))} cannot be shown as a picture: it needs height and width."
        )
    values = values[..., :3] if values.shape[-1] in (3, 4) else values.mean(axis=-1, keepdims=True)
    lowest, highest = values.min(), values.max()
    shades = (values - lowest) / (highest - lowest) if highest > lowest else np.full_like(values, 0.5)
    return np.broadcast_to(np.rint(shades * 255), (*values.shape[:2], 3)).astype(np.uint8)


def save_png(path: str | Path, rgb: Picture) -> None:
    """Write ``rgb`` uint8 [H, W, 3] as a PNG file, whole or not at all; raises OutputError where it cannot."""
    _check_picture(rgb)
    with _writing(Path(path)) as file:
        Image.fromarray(rgb).save(file, "PNG")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png, .svg or .pdf by its suffix, whole or not at all, the same bytes every time.

    Raises OutputError: another suffix, or a place that cannot be written.
    """
    import matplotlib

    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FIGURE_SUFFIXES:
        raise OutputError(f"A figure cannot be written to {str(path)!r}: name a {', '.join(FIGURE_SUFFIXES)} file.")
    undated: dict[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[
        suffix
    ]
    settings: dict[Any, Any] = {"svg.hashsalt": "onnx-explain", "pdf.fonttype": 42, "svg.fonttype": "path"}
    with matplotlib.rc_context(settings), _missing_glyphs_are_boxes(), _writing(path) as file:
        figure.savefig(file, format=suffix[1:], dpi=_DPI, facecolor=figure.get_facecolor(), metadata=undated)


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
    panels = [] if picture is None else [("input", "", _checked_picture(picture))]
    for name, heat in maps.items():
        over = picture if overlays else None
        drawn = colourise(normalise(heat, limit=limit)) if over is None else overlay(over, heat, limit=limit)
        panels.append((name if np.any(heat) else f"{name} (zero everywhere)", told.get(name, ""), drawn))
    if not panels:
        raise InputError("There is nothing to draw: give a picture or at least one heat map.")
    note = "" if shared or len(maps) < 2 else "each map on its own scale"
    return _panels(panels, title=title, columns=columns, theme=_DARK if dark else _LIGHT, note=note)


def figure_signal(
    x: Array,
    relevance: Array,
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    dark: bool = False,
    most: int = 8,
) -> Figure:
    """Return a signal [T] or [C, T] as one line per channel, coloured and thickened by its relevance (same shape).

    Of more than ``most`` channels those with the largest total |relevance| are drawn, in their order. One colour scale.
    """
    signal, heat = (np.atleast_2d(_finite(a).astype(np.float64)) for a in (x, relevance))
    if signal.shape != heat.shape or signal.ndim != 2 or signal.size == 0:
        raise InputError(
            f"A signal and its relevance must both be [T] or [C, T], but they are {list(np.shape(x))} and "
            f"{list(np.shape(relevance))}."
        )
    shown = np.sort(np.argsort(-np.abs(heat).sum(axis=1), kind="stable")[:most])
    theme = _DARK if dark else _LIGHT
    limit, row, left = scale_of(heat), *((2.2, 0.75) if len(shown) == 1 else (1.15, 1.1))
    left_out = len(signal) - len(shown)
    note = f"{len(shown)} of {len(signal)} channels, those of most relevance" if left_out else ""
    strip = Image.fromarray(_strip(_BLUE, theme.muted, _RED)).resize((255, 1), Image.Resampling.BILINEAR)
    legend = np.asarray(strip)
    page = _Page(9.0, row * len(shown) + 0.3, title, theme, note=note, legend=legend)
    for i, channel in enumerate(shown):
        axes = page.axes(left, i * row + 0.05, page.width - left - 0.2, row - 0.15)
        _draw_signal(axes, signal[channel], normalise(heat[channel], limit=limit), theme, last=i == len(shown) - 1)
        if len(signal) > 1:
            name = names[channel] if names is not None else f"channel {channel}"
            label = _fit(str(name), row - 0.15, 7.5, 2)
            page.text(0.24, i * row + 0.05 + (row - 0.15) / 2, label, 7.5, rotation=90)
    return page.figure


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
    given, heat = (np.ravel(_finite(a)) for a in (values, relevance))
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
    return _bars([_fit(label, 2.8, 8, 1) for label in labels], bars, title, _DARK if dark else _LIGHT)


def plot(
    x: Array,
    relevance: Array,
    path: str | Path,
    *,
    layout: str | None = None,
    picture: Picture | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    dark: bool = False,
) -> None:
    """Draw one sample x [1, ...] and its relevance (same shape) into a .png, .svg or .pdf file, as its rank asks for.

    layout: a letter per axis: N batch, C channels, and H W (a picture), D H W (slices of a volume), T (a signal) or F
        (a row of features); by default NF, NCT, NCHW or NCDHW by the rank.
    picture: what the model saw, uint8 [h, w, 3], in place of ``x`` itself. names: of features or channels.

    Raises InputError: shapes that differ, more than one sample, a layout that does not fit. OutputError: no such place.
    """
    letters = layout if layout is not None else {1: "N", 2: "NF", 3: "NCT", 4: "NCHW", 5: "NCDHW"}.get(np.ndim(x), "")
    if np.shape(x) != np.shape(relevance) or len(letters) != np.ndim(x) or letters[:1] != "N" or np.shape(x)[0] != 1:
        raise InputError(
            f"One sample [1, ...] and its relevance are drawn in layout {letters or '(none)'}, but they are "
            f"{list(np.shape(x))} and {list(np.shape(relevance))}: pass one sample at a time, with its layout."
        )
    axis = letters.index("C") - 1 if "C" in letters else None
    view = letters[1:].replace("C", "")
    sample, heat = np.asarray(x)[0], _finite(relevance)[0]
    if view in ("", "F") and axis is None:
        figure = figure_features(sample, heat, names=names, title=title, dark=dark)
    elif view == "T":
        lines = [a if axis is None else np.moveaxis(a, axis, 0) for a in (sample, heat)]
        figure = figure_signal(*lines, names=names, title=title, dark=dark)
    elif view == "HW":
        shown = as_picture(sample, axis=axis) if picture is None else picture
        figure = _figure_image(shown, heatmap(heat, axis=axis), title, dark)
    elif view == "DHW":
        figure = _figure_volume(heatmap(heat, axis=axis), title, dark)
    else:
        raise InputError(f"Layout {letters!r} cannot be drawn: use N and C with HW, DHW, T or F, such as NCHW or NTC.")
    save_figure(figure, path)


def _figure_image(picture: Picture, heat: Array, title: str | None, dark: bool) -> Figure:
    panels = [
        ("input", "", _checked_picture(picture)),
        ("relevance", "", colourise(normalise(heat))),
        ("relevance on input", "", overlay(picture, heat)),
    ]
    return _panels(panels, title=title, columns=None, theme=_DARK if dark else _LIGHT, note="")


def _figure_volume(heat: Array, title: str | None, dark: bool, most: int = 9) -> Figure:
    depths = np.unique(np.linspace(0, len(heat) - 1, min(most, len(heat))).round().astype(int))
    return figure_images(None, {f"slice {d}": heat[d] for d in depths}, title=title, dark=dark, shared=True)


@dataclass(frozen=True)
class _Theme:
    face: str
    text: str
    muted: str
    edge: str


_LIGHT = _Theme("#ffffff", "#1a1a1a", "#666666", "#b8b8b8")
_DARK = _Theme("#14161a", "#ececec", "#a3a7ae", "#50555d")


class _Page:
    """A figure measured in inches from its top left: a title above, the legend below, a body for the caller between."""

    def __init__(
        self, width: float, height: float, title: str | None, theme: _Theme, *, note: str = "", legend: Picture
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.theme = _snap(width), theme
        lines = _fit(title, width - 0.4, 12, 2, weight="bold") if title else ""
        self._top = 0.12 + (0.12 + 0.2 * len(lines.split("\n")) if lines else 0)
        self._height = _snap(self._top + height + (0.62 if note else 0.45))
        self.figure = Figure(figsize=(self.width, self._height), dpi=_DPI, facecolor=theme.face)
        FigureCanvasAgg(self.figure)
        if lines:
            self.text(width / 2, 0.12 - self._top, lines, 12, va="top", weight="bold")
        self._legend(height, note, legend)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return new axes at this place of the body."""
        left, width, height = _snap(left), _snap(width), _snap(height)
        bottom = _snap(self._height - self._top - top - height)
        place = (left / self.width, bottom / self._height, width / self.width, height / self._height)
        axes = self.figure.add_axes(place, facecolor=self.theme.face)
        axes.tick_params(colors=self.theme.muted, labelsize=7, width=0.5, length=2.5)
        for axis in (axes.xaxis, axes.yaxis):  # matplotlib's own would set a common factor above the axes, into others
            axis.set_major_formatter(lambda value, _: f"{value:.6g}")
        for spine in axes.spines.values():
            spine.set(color=self.theme.edge, linewidth=0.6)
        return axes

    def text(self, x: float, y: float, text: str, size: float, *, muted: bool = False, **options: Any) -> None:
        """Write at this place of the body; ``$`` is a dollar, never a formula."""
        colour = self.theme.muted if muted else self.theme.text
        options = {"ha": "center", "va": "center", **options}
        y = 1 - (self._top + y) / self._height
        self.figure.text(x / self.width, y, text, fontsize=size, color=colour, parse_math=False, **options)

    def _legend(self, top: float, note: str, colours: Picture) -> None:
        middle, half = self.width / 2, 0.7
        bar = self.axes(middle - half, top + 0.19, 2 * half, 0.11)
        bar.imshow(colours, aspect="auto", extent=(-1, 1, 0, 1), interpolation="nearest")
        bar.set(xticks=[], yticks=[])
        self.text(middle - half - 0.08, top + 0.245, AGAINST, 8, ha="right")
        self.text(middle + half + 0.08, top + 0.245, SUPPORTS, 8, ha="left")
        if note:
            self.text(middle, top + 0.44, _fit(note, self.width - 0.3, 7, 1), 7, muted=True)


def _snap(inches: float) -> float:
    """Return a length of whole pixels, so that edges are sharp and equal panels equal."""
    return round(inches * _DPI) / _DPI


def _strip(*colours: str) -> Picture:
    """Return ``colours`` side by side, uint8 [1, len(colours), 3]."""
    return np.asarray(np.rint([[[255 * part for part in _rgb(c)] for c in colours]]), dtype=np.uint8)


def _panels(
    panels: Sequence[tuple[str, str, Picture]], *, title: str | None, columns: int | None, theme: _Theme, note: str
) -> Figure:
    height, width = panels[0][2].shape[:2]
    ratio = min(max(width / height, 0.25), 4.0)
    side = 3.6 if len(panels) <= 2 else 2.7 if len(panels) <= 6 else 2.1
    wide, high = max(1.3, side * math.sqrt(ratio)), max(0.6, side / math.sqrt(ratio))
    titles = [_fit(name, wide, 8.5, 3) for name, _, _ in panels]
    notes = [_fit(note, wide, 6.5, 2) if note else "" for _, note, _ in panels]
    below = 0.125 * max(n.count("\n") + 1 if n else 0 for n in notes)
    strip = 0.06 + 0.155 * max(t.count("\n") + 1 for t in titles) + below
    gap = 0.16
    if columns is not None and columns < 1:
        raise InputError(f"A figure of {columns} columns was asked for: use 1 or more.")
    columns = _columns(len(panels), wide + gap, high + strip + gap) if columns is None else min(columns, len(panels))
    rows = -(-len(panels) // columns)
    across = columns * (wide + gap) + gap
    legend = colourise(np.linspace(-1, 1, 255)[None])
    page = _Page(max(across, 4.4), rows * (high + strip + gap), title, theme, note=note, legend=legend)
    margin = (page.width - across) / 2 + gap
    for i, (text, small, (_, _, rgb)) in enumerate(zip(titles, notes, panels)):
        left, top = margin + (i % columns) * (wide + gap), (i // columns) * (high + strip + gap)
        page.text(left + wide / 2, top + strip - below - 0.04, text, 8.5, va="bottom")
        if small:
            page.text(left + wide / 2, top + strip - below - 0.02, small, 6.5, va="top", muted=True)
        _draw_picture(page.axes(left, top + strip, wide, high), rgb, wide * _DPI)
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


def _draw_signal(axes: Axes, line: Array, heat: Array, theme: _Theme, *, last: bool) -> None:
    from matplotlib.collections import LineCollection

    count = len(line)
    axes.plot(np.arange(count), line, color=theme.muted, linewidth=0.8, marker="." if count == 1 else None)
    # A stretch of samples per colour, from half-way to its neighbours; thousands of colours could not be told apart.
    step = -(-count // 2000)
    places = np.clip(np.arange(0, count * 2 + 1) / 2 - 0.5, 0, count - 1)
    points = np.stack([places, np.interp(places, np.arange(count), line)], axis=-1)
    starts = range(0, count, step)
    strength = np.array([heat[s : s + step][np.abs(heat[s : s + step]).argmax()] for s in starts])
    stretches = [points[2 * s : 2 * min(s + step, count) + 1] for s in starts]
    colours = [(*_rgb(_RED if r > 0 else _BLUE), min(1.0, 1.6 * abs(r))) for r in strength]
    widths = 0.8 + 2.2 * np.abs(strength)
    axes.add_collection(LineCollection(stretches, colors=colours, linewidths=widths, rasterized=count > 500, zorder=3))
    axes.margins(x=0.01, y=0.12)
    axes.autoscale_view()
    axes.locator_params(axis="y", nbins=4, min_n_ticks=3)
    axes.tick_params(labelbottom=last)


def _bars(labels: Sequence[str], bars: Sequence[float], title: str | None, theme: _Theme) -> Figure:
    left = 0.3 + max(_width(label, 8) for label in labels)
    height = 0.22 * len(bars) + 0.35
    page = _Page(max(4.4, left + 3.6), height + 0.25, title, theme, legend=_strip(_BLUE, _RED))
    axes = page.axes(left, 0.05, page.width - left - 0.25, height - 0.05)
    axes.barh(range(len(bars)), bars, color=[_RED if b > 0 else _BLUE for b in bars], height=0.72, zorder=3)
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


def _fit(text: str, width: float, size: float, most: int, *, weight: str = "normal") -> str:
    """Return ``text`` broken into at most ``most`` lines of ``width`` inches; what does not fit ends in an ellipsis."""
    pieces = re.findall(r"[^\s\-_/.,]+[\-_/.,]*\s*|[\-_/.,\s]", " ".join(text.split()))
    lines = [""]
    while pieces and len(lines) <= most:
        piece = pieces.pop(0)
        if _width(lines[-1] + piece.rstrip(), size, weight) <= width:
            lines[-1] += piece
        elif _width(piece.rstrip(), size, weight) > width and len(piece) > 1:
            pieces[:0] = [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
        else:
            lines.append(piece)
    if len(lines) > most:
        cut = lines[most - 1].rstrip()
        while cut and _width(cut + "…", size, weight) > width:
            cut = cut[:-1]
        lines = [*lines[: most - 1], cut + "…"]
    return "\n".join(line.strip() for line in lines if line.strip())


def _width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width in inches of one line of text, with 4 % to spare for hinting."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    with _missing_glyphs_are_boxes():
        points, _, _ = TextToPath().get_text_width_height_descent(
            text, FontProperties(size=size, weight=weight), ismath=False
        )
    return 1.04 * float(points) / 72


@contextmanager
def _missing_glyphs_are_boxes() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of ``path`` once it is complete, and vanishes where it is not."""
    with draft(path) as whole, whole.open("xb") as file:
        yield file


def _finite(values: Array) -> Array:
    """Return ``values`` in float32 or wider; raise InputError where one is NaN or infinite."""
    array = np.asarray(values)
    array = array.astype(np.result_type(array.dtype, np.float32))
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise InputError(f"{bad} of {array.size} values are NaN or infinite, so they cannot be drawn.")
    return array


def _checked_picture(picture: Picture) -> Picture:
    _check_picture(picture)
    return picture


def _check_picture(picture: Picture) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise InputError(f"A picture must be uint8 [H, W, 3], but it is {picture.dtype} {list(picture.shape)}.")
