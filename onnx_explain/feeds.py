"""What a caller hands over, checked against what the model takes: names, shapes, dtypes, layouts, values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import InputError, suggest

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Takes:
    """One input as the model takes it: shape (None: open) and dtype (object: strings)."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        """``[N, 3, 224, 224]``."""
        return "any shape" if self.shape is None else f"[{', '.join('N' if d is None else str(d) for d in self.shape)}]"


def inputs_of(model: ir.Model) -> dict[str, Takes]:
    """The inputs a caller must feed."""
    found = {}
    for value in model.graph.inputs:
        name = value.name or ""
        if name in model.graph.initializers:
            continue
        shape = None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)
        found[name] = Takes(name, shape, _numpy_dtype(value))
    return found


def _numpy_dtype(value: ir.Value) -> np.dtype[Any]:
    if value.dtype is None:
        return np.dtype(np.float32)
    return np.dtype(object) if value.dtype == ir.DataType.STRING else value.dtype.numpy()


def checked(known: Mapping[str, Takes], x: Any, *, wide: bool) -> dict[str, Array]:
    """One array per input, as the runtime takes it; InputError says what is wrong and what to do.

    `wide`: float32 inputs become float64, for the float64 backend.
    """
    if not isinstance(x, Mapping):
        if len(known) != 1:
            raise InputError(f"The model has {len(known)} inputs; give {{name: array}} with {_listed(known)}.")
        x = {next(iter(known)): x}
    for name in x:
        if name not in known:
            raise InputError(f"The model has no input {name!r}.{suggest(str(name), known)}")
    missing = [n for n in known if n not in x]
    if missing:
        raise InputError(f"Input {missing[0]!r} is missing; the model needs {_listed(known)}.")
    return {name: _one(takes, x[name], wide=wide) for name, takes in known.items()}


def _listed(known: Mapping[str, Takes]) -> str:
    return ", ".join(map(repr, known))


def _one(takes: Takes, given: Any, *, wide: bool) -> Array:
    name, dtype = takes.name, takes.dtype
    try:
        x = np.asarray(given)
    except ValueError as error:
        raise InputError(
            f"Input {name!r} is not an array: its rows have different lengths; give one of shape {takes}."
        ) from error
    if dtype.kind == "O":
        return x.astype(object)
    if x.dtype != dtype and (
        x.dtype.kind not in "biuf"
        or (x.dtype.kind == "b") != (dtype.kind == "b")
        or (dtype.kind in "iu" and x.dtype.kind == "f")
    ):
        raise InputError(f"Input {name!r} must be of type {dtype}, not {x.dtype}.")
    _check_shape(takes, x)
    with np.errstate(all="ignore"):
        cast = x.astype(np.float64 if wide and dtype == np.float32 else dtype, copy=False)
    if cast.dtype.kind == "f" and not np.isfinite(cast).all():
        bad = int(cast.size - np.isfinite(cast).sum())
        where = [int(i) for i in np.argwhere(~np.isfinite(cast))[0]]
        raise InputError(
            f"Input {name!r} holds {bad} values that are NaN, infinite or beyond {cast.dtype}, the first at {where}; clean the data."
        )
    if cast.dtype.kind in "iu" and not np.array_equal(cast, x):
        raise InputError(f"Input {name!r} holds values beyond {dtype}; clean the data.")
    return np.ascontiguousarray(cast) if cast.ndim else cast


def _check_shape(takes: Takes, x: Array) -> None:
    shape, name = takes.shape, takes.name
    if shape is None:
        return
    given = list(x.shape)
    if len(shape) and x.ndim == len(shape) - 1 and _fits(shape[1:], x.shape):
        raise InputError(
            f"Input {name!r} has the shape {given}, but the model takes {takes}; add the batch axis: x[None]."
        )
    if x.ndim != len(shape) or not _fits(shape[1:], x.shape[1:]):
        raise InputError(f"Input {name!r} has the shape {given}, but the model takes {takes}.{_turned(shape, x)}")
    if x.ndim and x.shape[0] == 0:
        raise InputError(f"Input {name!r} holds no sample.")


def _fits(wanted: tuple[int | None, ...], given: tuple[int, ...]) -> bool:
    return len(wanted) == len(given) and all(w is None or w == g for w, g in zip(wanted, given))


def _turned(shape: tuple[int | None, ...], x: Array) -> str:
    """The hint that another layout would fit, where it does."""
    batched = x.ndim == len(shape)
    if len(shape) < 4 or x.ndim not in (len(shape), len(shape) - 1):
        return ""
    rank = x.ndim - batched  # of one sample
    last, first = [rank - 1, *range(rank - 1)], [*range(1, rank), 0]
    for name, perm in (("channels last", last), ("channels first", first)):
        if _fits(shape[1:], tuple(x.shape[batched + p] for p in perm)):
            turned = ", ".join(map(str, [0, *(p + 1 for p in perm)] if batched else perm))
            return f" The array has its {name}: x.transpose({turned}){'' if batched else '[None]'}."
    return ""


def sampled(known: Mapping[str, Takes], explained: list[str]) -> list[str]:
    """The inputs whose first axis counts samples: those left open there, or, in a fixed model, as long as the explained one."""
    with_axis = {n: t.shape for n, t in known.items() if t.shape is None or len(t.shape)}
    is_open = [n for n, s in with_axis.items() if s is None or s[0] is None]
    if is_open:
        return is_open
    first = next((with_axis[n] for n in explained if n in with_axis), None)
    return [n for n, s in with_axis.items() if s is not None and first is not None and s[0] == first[0]]


def count(feeds: Mapping[str, Array], by_sample: list[str]) -> int:
    """The number of samples; InputError where the inputs disagree."""
    counts = {n: feeds[n].shape[0] for n in by_sample if feeds[n].ndim}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{n!r} {c}" for n, c in counts.items())
        raise InputError(f"The inputs hold different numbers of samples: {told}.")
    return next(iter(counts.values()), 1)


def totals(r: Array) -> Array:
    """The sum of each sample's relevance, float64 [N]."""
    wide = r.astype(np.float64)
    return wide.reshape(wide.shape[0], -1).sum(1) if wide.ndim else wide.reshape(1)


def noise(model: ir.Model) -> dict[str, Array]:
    """Two samples (as many as a fixed batch wants) of noise in the input types of a canonical model."""
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for name, takes in inputs_of(model).items():
        sizes = [d if d is not None else (2 if axis == 0 else 1) for axis, d in enumerate(takes.shape or ())]
        if takes.dtype.kind == "O":
            feeds[name] = np.full(sizes, "", dtype=object)
        elif takes.dtype.kind in "biu":
            feeds[name] = generator.integers(0, 2, sizes).astype(takes.dtype)
        else:
            feeds[name] = generator.standard_normal(sizes).astype(takes.dtype)
    return feeds
