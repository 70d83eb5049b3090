"""Drawing results: heat maps, overlays and figures, written whole or not at all.

Red supports the target, blue speaks against it, white is zero; every scale is symmetric about zero. Nothing here reads
a model or decides what is relevant. Figures are matplotlib's, laid out in inches here so that no two texts can meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_explain.errors import InputError
from onnx_explain.render.colours import (
    Array,
    Picture,
    as_picture,
    colourise,
    finite,
    heatmap,
    normalise,
    overlay,
    scale_of,
)
from onnx_explain.render.compared import figure_bands, figure_texts
from onnx_explain.render.features import figure_features, figure_positions
from onnx_explain.render.images import figure_image, figure_images, figure_volume
from onnx_explain.render.page import AGAINST, FIGURE_SUFFIXES, SUPPORTS, png_of, save_figure, save_png
from onnx_explain.render.signals import figure_signal
from onnx_explain.render.tokens import Part, figure_tokens, page_of_tokens, strengths, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "AGAINST",
    "FIGURE_SUFFIXES",
    "SUPPORTS",
    "Part",
    "Picture",
    "as_picture",
    "colourise",
    "figure_bands",
    "figure_features",
    "figure_images",
    "figure_of",
    "figure_positions",
    "figure_signal",
    "figure_texts",
    "figure_tokens",
    "heatmap",
    "normalise",
    "overlay",
    "page_of_tokens",
    "plot",
    "png_of",
    "save_figure",
    "save_png",
    "scale_of",
    "strengths",
    "visible",
]


def plot(x: Array, relevance: Array, path: str | Path, **options: Any) -> None:
    """Draw one sample and its relevance into a .png, .svg or .pdf file: `figure_of`, with its options.

    Raises InputError as that does. OutputError: no such place.
    """
    save_figure(figure_of(x, relevance, **options), path)


def figure_of(
    x: Array,
    relevance: Array,
    *,
    layout: str | None = None,
    picture: Picture | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    dark: bool = False,
    rate: float | None = None,
) -> Figure:
    """Return one sample x [1, ...] and its relevance (same shape) as its rank asks for.

    layout: a letter per axis: N batch, C channels, and H W (a picture), D H W (slices of a volume), T (a signal), F (a row
        of features) or P (ids in their order); by default NF, NCT, NCHW or NCDHW by the rank.
    picture: what the model saw, uint8 [h, w, 3], in place of ``x`` itself. names: of features or channels. rate: a
        signal's samples per second.

    Raises InputError: shapes that differ, more than one sample, a layout that does not fit.
    """
    letters = layout if layout is not None else {1: "N", 2: "NF", 3: "NCT", 4: "NCHW", 5: "NCDHW"}.get(np.ndim(x), "")
    if np.shape(x) != np.shape(relevance) or len(letters) != np.ndim(x) or letters[:1] != "N" or np.shape(x)[0] != 1:
        raise InputError(
            f"One sample [1, ...] and its relevance are drawn in layout {letters or '(none)'}, but they are "
            f"{list(np.shape(x))} and {list(np.shape(relevance))}: pass one sample at a time, with its layout."
        )
    axis = letters.index("C") - 1 if "C" in letters else None
    view = letters[1:].replace("C", "")
    sample, heat = np.asarray(x)[0], finite(relevance)[0]
    if view in ("", "F") and axis is None:
        figure = figure_features(sample, heat, names=names, title=title, dark=dark)
    elif view == "T":
        lines = [a if axis is None else np.moveaxis(a, axis, 0) for a in (sample, heat)]
        figure = figure_signal(*lines, names=names, title=title, dark=dark, rate=rate)
    elif view == "P":
        figure = figure_positions(sample, heat, title=title, dark=dark)
    elif view == "HW":
        shown = as_picture(sample, axis=axis) if picture is None else picture
        figure = figure_image(shown, heatmap(heat, axis=axis), title, dark)
    elif view == "DHW":
        figure = figure_volume(heatmap(heat, axis=axis), title, dark)
    else:
        raise InputError(f"Layout {letters!r} cannot be drawn: use N and C with HW, DHW, T or F, such as NCHW or NTC.")
    return figure
