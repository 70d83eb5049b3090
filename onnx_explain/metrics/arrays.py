"""What a measure accepts, checked once: maps, masks, boxes, pictures, classes. No measure and no model lives here.

Maps are channel-summed relevance [N, H, W] of any real dtype; masks bool [N, H, W] (or 0/1 integers); boxes int [M, 4] as
(x0, y0, x1, y1), x1 and y1 exclusive; pictures [N, C, H, W] in the network's input space. Values that are not finite
raise InputError: a NaN never becomes a rank, a hit or a zero. What a definition leaves undefined (an empty mask, a map of
one value) is NaN in the result: missing, and counted by `onnx_explain.metrics.interval`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError, suggest

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Part = Literal["all", "positive", "absolute"]


def maps_of(relevance: npt.ArrayLike, name: str = "relevance") -> Floats:
    """Relevance as float64 [N, H, W], at least one pixel each; InputError where it is not, or not finite."""
    r = real(relevance, name)
    if r.ndim != 3 or 0 in r.shape[1:]:
        raise InputError(
            f"{name} must be maps [N, H, W] with the channels summed, but has shape {r.shape}; sum the channel axis first."
        )
    return finite(r, name)


def real(values: npt.ArrayLike, name: str) -> Floats:
    """Any array of real numbers as float64; InputError for text, objects and complex numbers."""
    array = array_of(values, name)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} must hold real numbers, but its dtype is {array.dtype}; convert it to float32.")
    return array.astype(np.float64)


def array_of(values: npt.ArrayLike, name: str) -> Array:
    """What NumPy makes of it; InputError where rows differ in length."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{name} is no array: its parts differ in shape; resize them to one.") from error


def finite(values: Floats, name: str) -> Floats:
    """The array itself; InputError that names the first samples with NaN or infinity."""
    fine = np.isfinite(values).all(tuple(range(1, values.ndim)))
    if not fine.all():
        bad = np.flatnonzero(~fine)
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise InputError(
            f"{name} holds NaN or infinity in sample {', '.join(map(str, bad[:5]))}{more}; leave these samples out."
        )
    return values


def masks_of(masks: npt.ArrayLike, shape: tuple[int, ...], name: str = "masks") -> Bools:
    """Masks as bool of exactly `shape`; integers must be 0 or 1. InputError otherwise."""
    m = array_of(masks, name)
    if m.shape != shape:
        raise InputError(f"{name} has shape {m.shape}, but the maps have {shape}; resize the masks to the maps.")
    if m.dtype.kind not in "iub" or not np.isin(m, (0, 1)).all():
        raise InputError(
            f"{name} must be bool or integers 0 and 1, but is {m.dtype} with other values; compare it with the label first."
        )
    return m.astype(bool)


def pair(relevance: npt.ArrayLike, masks: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Maps and their masks, flattened to [N, H·W]."""
    r = maps_of(relevance)
    m = masks_of(masks, r.shape)
    size = r.shape[1] * r.shape[2]
    return r.reshape(-1, size), m.reshape(-1, size)


def part_of(r: Floats, part: str) -> Floats:
    """The map itself (``all``), [R]₊ (``positive``) or |R| (``absolute``)."""
    if choice("part", part, ("all", "positive", "absolute")) == "all":
        return r
    return np.maximum(r, 0.0) if part == "positive" else np.abs(r)


def choice(option: str, given: Any, known: Any) -> Any:
    """The given name; InputError with the nearest known one where there is none such."""
    if not isinstance(given, str) or given not in known:
        raise InputError(f"There is no {option} {given!r}.{suggest(str(given), known)}")
    return given


def whole(option: str, given: Any, least: int = 1) -> int:
    """A whole number of at least `least`; InputError otherwise."""
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < least:
        raise InputError(f"{option} must be a whole number of at least {least}, not {given!r}.")
    return int(given)


def number(option: str, given: Any, least: float = -math.inf) -> float:
    """A finite number of at least `least`; InputError otherwise."""
    known = isinstance(given, (int, float, np.integer, np.floating)) and not isinstance(given, bool)
    if not known or not math.isfinite(given) or given < least:
        beyond = "" if least == -math.inf else f" of at least {least:g}"
        raise InputError(f"{option} must be a finite number{beyond}, not {given!r}.")
    return float(given)


def pictures(x: npt.ArrayLike) -> Array:
    """Pictures [N, C, H, W] in their own float dtype (float32 for anything else); InputError otherwise."""
    array = array_of(x, "x")
    if array.ndim != 4 or 0 in array.shape[1:] or array.dtype.kind not in "fiub":
        raise InputError(
            f"x must be pictures [N, C, H, W] of real numbers, but is {array.dtype} of shape {array.shape}; "
            "wrap the score where the model wants another layout."
        )
    finite(array.astype(np.float64), "x")
    return array if array.dtype in (np.float16, np.float32, np.float64) else array.astype(np.float32)


def fitting(relevance: npt.ArrayLike, x: Array) -> Floats:
    """Maps [N, H, W] of pictures [N, C, H, W]; InputError where they do not fit."""
    r = maps_of(relevance)
    if r.shape != (len(x), *x.shape[2:]):
        raise InputError(f"relevance has shape {r.shape}, but pictures of {x.shape} need {(len(x), *x.shape[2:])}.")
    return r


def class_indices(targets: npt.ArrayLike, count: int, classes: int | None = None, name: str = "targets") -> Ints:
    """One class per sample as int64 [N], from one index or N; InputError where one is no class."""
    given = array_of(targets, name)
    if given.dtype.kind not in "iu" or given.ndim > 1 or (given.ndim == 1 and len(given) != count):
        raise InputError(f"{name} must be one class or {count} of them, but is {given.dtype} of shape {given.shape}.")
    index = np.broadcast_to(given, (count,)).astype(np.int64)
    if index.size and (index.min() < 0 or (classes is not None and index.max() >= classes)):
        raise InputError(
            f"{name} must lie in 0…{'' if classes is None else classes - 1}, but run from {index.min()} to {index.max()}."
        )
    return index


def streams(count: int, seed: int, keys: Sequence[int] | None, purpose: int) -> list[np.random.Generator]:
    """A random stream per sample, made of the seed, the sample's key (default: its number) and what it is drawn for.

    So what is drawn for a sample depends neither on its batch nor on what else is drawn for it. InputError where keys do not fit.
    """
    names = range(count) if keys is None else list(keys)
    if len(names) != count:
        raise InputError(f"keys must name each of the {count} pictures, but there are {len(names)}.")
    first = whole("seed", seed, 0)
    return [np.random.default_rng([first, whole("keys", key, 0), purpose]) for key in names]


def masks_from_boxes(boxes: Sequence[npt.ArrayLike], shape: tuple[int, int]) -> Bools:
    """The union of each sample's boxes as masks, bool [N, H, W].

    boxes: per sample an int array [M, 4] of (x0, y0, x1, y1), x1 and y1 exclusive, 0 <= x0 < x1 <= W and the like;
    M = 0 gives an empty mask. shape: (H, W).

    Raises InputError: a box that is empty, leaves the picture, or is not whole.
    """
    height, width = shape
    masks = np.zeros((len(boxes), height, width), bool)
    for n, given in enumerate(boxes):
        for x0, y0, x1, y1 in _boxes(given, n):
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise InputError(
                    f"Box ({x0}, {y0}, {x1}, {y1}) of sample {n} is empty or leaves the picture of {width}x{height}; "
                    "boxes are (x0, y0, x1, y1) with x1 and y1 exclusive."
                )
            masks[n, y0:y1, x0:x1] = True
    return masks


def _boxes(given: npt.ArrayLike, sample: int) -> list[list[int]]:
    array = array_of(given, f"the list of boxes of sample {sample}")
    if array.size == 0:
        return []
    if array.ndim != 2 or array.shape[1] != 4 or array.dtype.kind not in "iu":
        raise InputError(
            f"The boxes of sample {sample} must be an int array [M, 4], but are {array.dtype} of shape {array.shape}."
        )
    return [[int(v) for v in row] for row in array]


def varied(r: Floats) -> Bools:
    """Which maps [N, size] hold more than one value: only those order their pixels."""
    return np.asarray(r.min(1) < r.max(1)) if r.size else np.zeros(len(r), bool)


def quotient(a: Floats, b: Floats) -> Floats:
    """a / b where b > 0, else NaN (missing)."""
    return np.asarray(np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0))


def ranking(values: Floats, *, descending: bool = True) -> Ints:
    """Indices [N, size] in order of the values; equal values in row-major order, the earlier pixel first, either way."""
    return np.argsort(-values if descending else values, axis=1, kind="stable").astype(np.int64)


def mid_ranks(values: Floats) -> Floats:
    """Ranks 1…size along axis 1; equal values share the mean of theirs."""
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, 1)
    ranks = np.empty_like(values)
    for n, row in enumerate(ordered):
        starts = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1])))
        ends = np.append(starts[1:], len(row))
        ranks[n, order[n]] = np.repeat((starts + 1 + ends) / 2, ends - starts)
    return ranks
