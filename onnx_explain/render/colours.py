"""From relevance to colours: heat maps, their scale, overlays. Red supports the target, blue speaks against it, white is zero."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnx_explain.errors import InputError

Array: TypeAlias = NDArray[Any]
Picture: TypeAlias = NDArray[np.uint8]

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
RED, BLUE = "#df4a3f", "#3d8bdb"  # for bars and lines: readable on white and on black
_OVERLAY_PIXELS = 448


def heatmap(relevance: Array, *, axis: int | None, reduce: Literal["sum", "max_abs"] = "sum") -> Array:
    """Return ``relevance`` with its channel ``axis`` reduced; ``axis=None`` leaves it whole.

    relevance: [..., C, H, W], [..., H, W, C] or any other; the result lacks ``axis`` and is float32 or wider.
    reduce: "sum" (what arrived at the pixel) or "max_abs" (the value furthest from zero, with its sign).

    Raises InputError: no such axis, unknown ``reduce``, NaN or infinite relevance.
    """
    if reduce not in ("sum", "max_abs"):
        raise InputError(f"Unknown reduction {reduce!r} of a heat map's channels: use 'sum' or 'max_abs'.")
    values = finite(relevance)
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
    magnitude = np.abs(finite(heat).astype(np.float64))
    magnitude = magnitude[magnitude > 0]
    return float(np.percentile(magnitude, percentile)) if magnitude.size else 0.0


def normalise(heat: Array, *, percentile: float = 99.5, limit: float | None = None) -> Array:
    """Return ``heat`` divided by ``limit`` (default: :func:`scale_of`) and clipped to [-1, 1]; zero stays zero.

    Raises InputError: NaN or infinite values.
    """
    limit = scale_of(heat, percentile=percentile) if limit is None else limit
    values = finite(heat).astype(np.float64)
    if limit <= 0:
        return np.zeros_like(values)
    with np.errstate(over="ignore"):  # a subnormal limit: the quotient is clipped all the same
        clipped: Array = np.clip(values / limit, -1.0, 1.0)
    return clipped


def colourise(heat: Array) -> Picture:
    """Return the colours uint8 [H, W, 3] of ``heat`` [H, W] in [-1, 1]: red positive, blue negative, white zero."""
    values = np.clip(finite(heat), -1.0, 1.0)
    channels = [np.interp(values, _ANCHORS, [c[i] for c in _COLOURS]) for i in range(3)]
    return np.asarray(np.rint(np.stack(channels, axis=-1)), dtype=np.uint8)


def overlay(picture: Picture, heat: Array, *, limit: float | None = None, pixels: int = _OVERLAY_PIXELS) -> Picture:
    """Return ``heat`` [H, W] drawn over ``picture`` uint8 [h, w, 3]: the weaker the relevance, the clearer the picture.

    A picture whose shorter side is below ``pixels`` is enlarged by a whole factor; the heat map, scaled as by
    :func:`normalise`, follows bilinearly. The picture is paled, so that its own reds do not pass for relevance.
    """
    check_picture(picture)
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
    values = finite(x).astype(np.float64)
    values = values[..., None] if axis is None else np.moveaxis(values, axis, -1)
    if values.ndim != 3 or values.size == 0:
        raise InputError(
            f"An array of shape {list(np.shape(x))} cannot be shown as a picture: it needs height and width."
        )
    values = values[..., :3] if values.shape[-1] in (3, 4) else values.mean(axis=-1, keepdims=True)
    lowest, highest = values.min(), values.max()
    shades = (values - lowest) / (highest - lowest) if highest > lowest else np.full_like(values, 0.5)
    return np.broadcast_to(np.rint(shades * 255), (*values.shape[:2], 3)).astype(np.uint8)


def rgb(colour: str) -> tuple[float, float, float]:
    """``#rrggbb`` as three shares of one."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def finite(values: Array) -> Array:
    """Return ``values`` in float32 or wider; raise InputError where one is NaN or infinite."""
    array = np.asarray(values)
    array = array.astype(np.result_type(array.dtype, np.float32))
    bad = array.size - int(np.isfinite(array).sum())
    if bad:
        raise InputError(f"{bad} of {array.size} values are NaN or infinite, so they cannot be drawn.")
    return array


def checked_picture(picture: Picture) -> Picture:
    """The picture itself; InputError where it is none."""
    check_picture(picture)
    return picture


def check_picture(picture: Picture) -> None:
    """Refuse what is not uint8 [H, W, 3]."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise InputError(f"A picture must be uint8 [H, W, 3], but it is {picture.dtype} {list(picture.shape)}.")
