"""A figure measured in inches, so that no two texts can meet; its themes, its texts, and its file, written whole or not at all."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

from onnx_explain.errors import OutputError
from onnx_explain.files import draft
from onnx_explain.render.colours import Picture, check_picture, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUPPORTS, AGAINST = "supports the target", "speaks against"
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150


def save_png(path: str | Path, rgb: Picture) -> None:
    """Write ``rgb`` uint8 [H, W, 3] as a PNG file, whole or not at all; raises OutputError where it cannot."""
    check_picture(rgb)
    with _writing(Path(path)) as file:
        Image.fromarray(rgb).save(file, "PNG")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png, .svg or .pdf by its suffix, whole or not at all, the same bytes every time.

    Raises OutputError: another suffix, or a place that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in FIGURE_SUFFIXES:
        raise OutputError(f"A figure cannot be written to {str(path)!r}: name a {', '.join(FIGURE_SUFFIXES)} file.")
    with _writing(path) as file:
        _draw(figure, file, suffix)


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG file's bytes."""
    file = BytesIO()
    _draw(figure, file, ".png")
    return file.getvalue()


def _draw(figure: Figure, file: BinaryIO, suffix: str) -> None:
    import matplotlib

    undated: dict[str, Any] = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[
        suffix
    ]
    settings: dict[Any, Any] = {"svg.hashsalt": "onnx-explain", "pdf.fonttype": 42, "svg.fonttype": "path"}
    with matplotlib.rc_context(settings), missing_glyphs_are_boxes():
        figure.savefig(file, format=suffix[1:], dpi=DPI, facecolor=figure.get_facecolor(), metadata=undated)


@dataclass(frozen=True)
class Theme:
    """The colours of the ground, of texts and of lines."""

    face: str
    text: str
    muted: str
    edge: str


LIGHT = Theme("#ffffff", "#1a1a1a", "#666666", "#b8b8b8")
DARK = Theme("#14161a", "#ececec", "#a3a7ae", "#50555d")


class Page:
    """A figure measured in inches from its top left: a title above, the legend below, a body for the caller between."""

    def __init__(
        self, width: float, height: float, title: str | None, theme: Theme, *, note: str = "", legend: Picture
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.theme = snap(width), theme
        lines = fit(title, width - 0.4, 12, 2, weight="bold") if title else ""
        self._top = 0.12 + (0.12 + 0.2 * len(lines.split("\n")) if lines else 0)
        self._height = snap(self._top + height + (0.62 if note else 0.45))
        self.figure = Figure(figsize=(self.width, self._height), dpi=DPI, facecolor=theme.face)
        FigureCanvasAgg(self.figure)
        if lines:
            self.text(width / 2, 0.12 - self._top, lines, 12, va="top", weight="bold")
        self._legend(height, note, legend)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return new axes at this place of the body."""
        left, width, height = snap(left), snap(width), snap(height)
        bottom = snap(self._height - self._top - top - height)
        place = (left / self.width, bottom / self._height, width / self.width, height / self._height)
        axes = self.figure.add_axes(place, facecolor=self.theme.face)
        axes.tick_params(colors=self.theme.muted, labelsize=7, width=0.5, length=2.5)
        for axis in (axes.xaxis, axes.yaxis):  # matplotlib's own would set a common factor above the axes, into others
            axis.set_major_formatter(lambda value, _: f"{value:.6g}")
        for spine in axes.spines.values():
            spine.set(color=self.theme.edge, linewidth=0.6)
        return axes

    def box(self, left: float, top: float, width: float, height: float, colour: str, strength: float) -> None:
        """A rounded ground for a text at this place of the body, as strong as `strength` in [0, 1]."""
        from matplotlib.patches import FancyBboxPatch

        if width <= 0 or strength <= 0:
            return
        scale = self.figure.dpi_scale_trans
        corner = (left, self._height - self._top - top - height)
        style = "round,pad=0,rounding_size=0.03"
        shape = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=(*rgb(colour), 0.75 * strength), lw=0)
        shape.set_transform(scale)
        self.figure.add_artist(shape)

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
            self.text(middle, top + 0.44, fit(note, self.width - 0.3, 7, 1), 7, muted=True)


def snap(inches: float) -> float:
    """Return a length of whole pixels, so that edges are sharp and equal panels equal."""
    return round(inches * DPI) / DPI


def colour_strip(*colours: str) -> Picture:
    """Return ``colours`` side by side, uint8 [1, len(colours), 3]."""
    return np.asarray(np.rint([[[255 * part for part in rgb(c)] for c in colours]]), dtype=np.uint8)


def fit(text: str, width: float, size: float, most: int, *, weight: str = "normal") -> str:
    """Return ``text`` broken into at most ``most`` lines of ``width`` inches; what does not fit ends in an ellipsis."""
    pieces = re.findall(r"[^\s\-_/.,]+[\-_/.,]*\s*|[\-_/.,\s]", " ".join(text.split()))
    lines = [""]
    while pieces and len(lines) <= most:
        piece = pieces.pop(0)
        if text_width(lines[-1] + piece.rstrip(), size, weight) <= width:
            lines[-1] += piece
        elif text_width(piece.rstrip(), size, weight) > width and len(piece) > 1:
            pieces[:0] = [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
        else:
            lines.append(piece)
    if len(lines) > most:
        cut = lines[most - 1].rstrip()
        while cut and text_width(cut + "…", size, weight) > width:
            cut = cut[:-1]
        lines = [*lines[: most - 1], cut + "…"]
    return "\n".join(line.strip() for line in lines if line.strip())


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width in inches of one line of text, with 4 % to spare for hinting."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    with missing_glyphs_are_boxes():
        points, _, _ = TextToPath().get_text_width_height_descent(
            text, FontProperties(size=size, weight=weight), ismath=False
        )
    return 1.04 * float(points) / 72


@contextmanager
def missing_glyphs_are_boxes() -> Iterator[None]:
    """Draw what no font has as a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes the place of ``path`` once it is complete, and vanishes where it is not."""
    with draft(path) as whole, whole.open("xb") as file:
        yield file
