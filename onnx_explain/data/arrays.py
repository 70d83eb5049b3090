"""``.npy`` and ``.npz`` files as samples: taken as they are, and checked against the model's inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from onnx_explain.data.samples import Sample
from onnx_explain.data.specs import Array, InputSpec, cast, integer_range, is_float, quoted, reason
from onnx_explain.errors import InputError


def array_samples(path: Path, specs: Sequence[InputSpec], name: str) -> Iterator[Sample]:
    """The samples of an ``.npy`` or ``.npz`` file; InputError."""
    return samples_of(path, specs, dict(zip((s.name for s in specs), _arrays(path, specs))), name)


def samples_of(
    path: Path,
    specs: Sequence[InputSpec],
    arrays: Mapping[str, Array],
    name: str,
    names: Mapping[str, tuple[str, ...]] | None = None,
) -> Iterator[Sample]:
    """One array per input as samples, once everything is checked; ``names``: of features or channels, by input."""
    rows = {spec.name: _checked(path, spec, arrays[spec.name]) for spec in specs}
    counts = {k: len(r) for k, r in rows.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{k!r} {n}" for k, n in counts.items())
        raise InputError(f"{path}: the arrays hold different numbers of samples ({listed}): give each input as many.")
    return _rows(rows, specs, next(iter(counts.values())), name, names or {})


def _rows(
    rows: Mapping[str, Array],
    specs: Sequence[InputSpec],
    count: int,
    name: str,
    names: Mapping[str, tuple[str, ...]],
) -> Iterator[Sample]:
    digits = len(str(count - 1))
    for i in range(count):
        feeds = {
            s.name: cast(rows[s.name][i : i + 1], s.dtype).reshape((1,) * bool(s.shape) + rows[s.name].shape[1:])
            for s in specs
        }
        yield Sample(name if count == 1 else f"{name}-{i:0{digits}d}", feeds, names=names)


def _arrays(path: Path, specs: Sequence[InputSpec]) -> list[Array]:
    """Return the arrays of a file in the order of ``specs``; an ``.npy`` stays on disk until its rows are used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:  # opened here, because NumPy leaves a damaged archive open
                if file.read(2) == b"PK":
                    file.seek(0)
                    archive = np.load(file, allow_pickle=False)
                    found = [archive[key] for key in _keys(path, archive.files, specs)]
                    if not all(
                        isinstance(array, np.ndarray) for array in found
                    ):  # NumPy hands out other files as bytes
                        raise ValueError("what lies in it is no .npy file")
                    return found
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: the array file cannot be opened: {reason(error)}.") from error
    except Exception as error:  # damaged zip, zlib, header and pickle each raise their own
        raise InputError(
            f"{path}: not a readable array file; it is damaged, or holds Python objects rather than numbers "
            f"({reason(error)})."
        ) from error
    if len(specs) != 1:
        raise InputError(
            f"{path}: one array for a model with {len(specs)} inputs ({quoted(s.name for s in specs)}): put one array "
            "per input, under its name, into an .npz file."
        )
    return [array]


def _keys(path: Path, files: Sequence[str], specs: Sequence[InputSpec]) -> list[str]:
    names = [s.name for s in specs]
    missing = [n for n in names if n not in files]
    if missing and len(files) == len(names) == 1:
        return list(files)
    if missing:
        raise InputError(
            f"{path}: no array for the input {quoted(missing)} among {quoted(files) or 'no arrays'}: save each array "
            "under the name of its input."
        )
    return names


def _checked(path: Path, spec: InputSpec, array: Array) -> Array:
    """Return ``array`` with a batch axis, still in its own dtype, after every check that casting it will need."""
    where = f"{path}: the array for input {spec.name!r}"
    rank = len(spec.shape)
    batched = array.ndim == max(rank, 1)
    body = array.shape[1:] if batched else array.shape
    if not (batched or array.ndim == rank - 1 or rank == 0) or not _fits(body, spec.shape[1:]):
        raise InputError(f"{where} is {list(array.shape)}, but the input is {spec}{_shape_hint(array.shape, spec)}.")
    rows = array if batched else array[None]
    if rows.size == 0:
        raise InputError(f"{where} is {list(array.shape)} and holds no values: give at least one sample.")
    if spec.dtype.kind == "O" and array.dtype.kind in "OU":
        return rows
    _check_kind(where, array.dtype, spec)
    _check_values(where, rows, spec, batched)
    return rows


def _fits(given: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(given) == len(wanted) and all(w in (None, g) for g, w in zip(given, wanted))


def _shape_hint(given: tuple[int, ...], spec: InputSpec) -> str:
    """Say which one step turns an array of shape ``given`` into what the input takes, or nothing where none does."""
    wanted = spec.shape[1:]
    lead = 1 if len(given) == len(spec.shape) else 0
    body = given[lead:]
    if len(body) == len(wanted) <= 5:
        n = len(body)
        rotations = [(n - 1, *range(n - 1)), (*range(1, n), 0)] if n else []
        for order in [*rotations, *permutations(range(n))]:
            if _fits([body[i] for i in order], wanted):
                axes = (*range(lead), *(i + lead for i in order))
                return f": {_orders(spec, order)}, so transpose it first with np.transpose(x, {axes})"
        if spec.layout is not None and body[2 if spec.layout == "NHWC" else 0] == spec.channels:
            return ": arrays are not resized, so resize it first or give a picture file"
    for axis in range(len(given) + 1):
        grown = (*given[:axis], 1, *given[axis:])
        if _fits(grown, wanted) or _fits(grown[1:], wanted):
            return f": an axis is missing, so add it first with np.expand_dims(x, {axis})"
    for axis in (i for i, d in enumerate(given) if d == 1):
        shrunk = (*given[:axis], *given[axis + 1 :])
        if _fits(shrunk, wanted) or _fits(shrunk[1:], wanted):
            return f": it has one axis too many, so drop it first with np.squeeze(x, {axis})"
    return (
        "" if lead or len(given) == len(wanted) else f": give {len(spec.shape)} axes, or leave out the batch axis alone"
    )


def _orders(spec: InputSpec, order: tuple[int, ...]) -> str:
    if spec.layout == "NCHW" and order == (2, 0, 1):
        return "it has its channels last (HWC) where the input has them first (NCHW)"
    if spec.layout == "NHWC" and order == (1, 2, 0):
        return "it has its channels first (CHW) where the input has them last (NHWC)"
    return "its axes are in another order"


def _check_kind(where: str, given: np.dtype[Any], spec: InputSpec) -> None:
    if not (spec.dtype.kind in "biuf" or is_float(spec.dtype)):
        raise InputError(f"{where} cannot be used: the input takes {spec.dtype} values, and only numbers can be given.")
    if not (given.kind in "biuf" or is_float(given)):
        raise InputError(f"{where} holds {given} values, but the input takes numbers ({spec.dtype}).")
    if not is_float(spec.dtype) and given.kind not in "biu":
        raise InputError(
            f"{where} holds {given} values, but the input takes {spec.dtype}: round and cast it first, for instance "
            f"with np.rint(x).astype(np.{spec.dtype})."
        )


def _check_values(where: str, rows: Array, spec: InputSpec, batched: bool) -> None:
    """Refuse NaN, infinities, and numbers that the input's dtype cannot hold; counts over the whole array."""
    step = max(1, 2**22 // max(1, rows[0].size))
    counts, firsts = {"finite": 0, "range": 0}, dict[str, tuple[int, ...]]()
    for start in range(0, len(rows), step):
        chunk = np.asarray(rows[start : start + step])
        for fault, bad in _faults(chunk, spec).items():
            if bad.any():
                first = np.argwhere(bad)[0]
                first[0] += start
                counts[fault] += int(bad.sum())
                firsts.setdefault(fault, tuple(int(i) for i in first[0 if batched else 1 :]))
    for fault, what in (("finite", "NaN or infinite"), ("range", f"beyond the range of {spec.dtype}")):
        if counts[fault]:
            raise InputError(
                f"{where} has {counts[fault]} of {rows.size} values that are {what}, the first at "
                f"{list(firsts[fault])}: mend the data first."
            )


def _faults(chunk: Array, spec: InputSpec) -> dict[str, Array]:
    if is_float(spec.dtype):
        if not is_float(chunk.dtype):
            return {"range": ~np.isfinite(cast(chunk, spec.dtype))}
        finite = np.isfinite(chunk)
        return {"finite": ~finite, "range": finite & ~np.isfinite(cast(chunk, spec.dtype))}
    lowest, highest = integer_range(spec)
    return {"range": (chunk < lowest) | (chunk > highest)}
