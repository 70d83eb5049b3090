"""The reference input that a method compares with: zero, a number, an array, a blur of the picture itself, or noise."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError, MethodError, suggest
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.halves import narrowed, widened
from onnx_explain.ir.view import Value, dims, rank, shape_text
from onnx_explain.rules.points import uniform

Array = npt.NDArray[Any]
KINDS = ("zero", "blur", "noise")
_FORMS = "a number, an array, {input: array}, 'zero', 'blur', 'blur:10', 'noise', 'noise:7', or a .npy or .npz file"


@dataclass(frozen=True)
class Baseline:
    """A reference for every explained input.

    kind: ``constant`` takes `value`, a number or an array that broadcasts to the input's shape (without a batch axis, or
    with one of 1), or one such per input name (zero for others). ``blur``: the input itself, smoothed along its spatial
    axes with a Gaussian of `sigma` elements (None: a tenth of the longest axis); a constant picture stays as it is.
    ``noise``: uniform between each sample's smallest and largest element, by `random_seed` alone.
    """

    kind: Literal["constant", "blur", "noise"] = "constant"
    value: float | Array | dict[str, Array] = 0.0
    sigma: float | None = None
    random_seed: int = 0

    def emit(self, op: Emitter, x: Value, name: str, *, channel_axis: int | None = 1) -> Value:
        """The reference of `x`, the input called `name`: x's shape and dtype.

        channel_axis: what a blur leaves alone besides axis 0 (None: nothing). InputError where the baseline does not fit.
        """
        wide = widened(op, x)
        if self.kind == "constant":
            return narrowed(op, self._constant(op, wide, name), x)
        make = self._blurred if self.kind == "blur" else self._noise
        return narrowed(op, make(op, wide, name, channel_axis), x)

    def check(self, names: Iterable[str]) -> None:
        """InputError where a baseline is given for an input that is not among the explained ones, `names`."""
        known = list(names)
        for name in self.value if isinstance(self.value, dict) else ():
            if name not in known:
                raise InputError(
                    f"A baseline is given for {name!r}, which is no explained input.{suggest(name, known)}"
                )

    def _constant(self, op: Emitter, x: Value, name: str) -> Value:
        value = self.value.get(name, 0.0) if isinstance(self.value, dict) else self.value
        given, wanted = np.shape(value), dims(x)
        if not fits(given, wanted):
            raise InputError(
                f"The baseline of input {name!r} has the shape {list(given)}, which does not broadcast to {shape_text(x)}; "
                "give one for a single sample."
            )
        constant = op.constant(np.asarray(value, dtype=np.float64), like=x)
        return op.typed(op.Expand(constant, op.shape_of(x)), x)

    def _blurred(self, op: Emitter, x: Value, name: str, channel_axis: int | None) -> Value:
        axes = [a for a in range(1, rank(x)) if a != channel_axis]
        if rank(x) < 3 or not axes or any(dims(x)[a] is None for a in axes):
            raise InputError(
                f"Input {name!r} of shape {shape_text(x)} has no spatial axes to blur; give another baseline."
            )
        sizes = [dims(x)[a] or 1 for a in axes]
        sigma = max(sizes) / 10 if self.sigma is None else self.sigma
        y = x
        for axis, size in zip(axes, sizes):
            y = _along(op, y, axis, _smoothing(size, sigma))
        return op.typed(y, x)

    def _noise(self, op: Emitter, x: Value, name: str, channel_axis: int | None) -> Value:
        stream = f"{name}/baseline"
        u = uniform(op, x, op.ints(0), seed=self.random_seed, name=stream, channel_axis=channel_axis)
        if rank(x) < 2:
            return op.typed(op.Add(x, op.Mul(u, 0.0)), x)
        axes = op.ints(*range(1, rank(x)))
        low, high = op.ReduceMin(x, axes, keepdims=1), op.ReduceMax(x, axes, keepdims=1)
        return op.typed(op.Add(low, op.Mul(op.Sub(high, low), u)), x)


def fits(given: tuple[int, ...], wanted: list[int | None]) -> bool:
    """Whether an array broadcasts to a tensor of `wanted` dimensions (None: open) that counts its samples in axis 0."""
    return len(given) <= len(wanted) and all(g in (1, w) for g, w in zip(reversed(given), reversed(wanted)))


def _smoothing(size: int, sigma: float) -> Array:
    """[size, size]: row i weighs the elements around i by a Gaussian; every row adds up to one, at the ends too."""
    i = np.arange(size)
    weight = np.exp(-((i[:, None] - i[None, :]) ** 2) / (2 * sigma**2))
    return np.asarray(weight / weight.sum(1, keepdims=True))


def _along(op: Emitter, x: Value, axis: int, matrix: Array) -> Value:
    """The matrix times every line of `x` along an axis."""
    n = rank(x)
    if axis == n - 1:
        return op.typed(op.MatMul(x, op.constant(matrix.T, like=x)), x)
    perm = [a for a in range(n) if a != axis] + [axis]
    turned = op.MatMul(op.Transpose(x, perm=perm), op.constant(matrix.T, like=x))
    return op.typed(op.Transpose(turned, perm=[perm.index(a) for a in range(n)]), x)


def parse_baseline(value: Any) -> Baseline:
    """What a user gave as a baseline.

    A number; an array that fits one sample, or one such per input name; ``"zero"``; ``"blur"``, ``"blur:10"`` (σ = 10
    elements); ``"noise"``, ``"noise:7"`` (seed 7); or a .npy file, or a .npz file with one array per input name.

    Raises InputError (an array or file that is none, or holds NaN), MethodError (none of these).
    """
    if value is None or isinstance(value, Baseline):
        return value or Baseline()
    if isinstance(value, os.PathLike):
        return _from_file(Path(value))
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        return Baseline(value={str(name): numbers(a, f"The baseline of input {name!r}") for name, a in value.items()})
    if isinstance(value, bool):
        raise MethodError(f"The baseline must be {_FORMS}, not {value!r}.")
    array = numbers(value, "The baseline")
    return Baseline(value=float(array) if array.ndim == 0 else array)


def _from_text(text: str) -> Baseline:
    word, _, number = text.strip().partition(":")
    if word == "zero" and not number:
        return Baseline()
    if word == "blur":
        sigma = _number(number) if number else None
        if number and (sigma is None or sigma <= 0):
            raise MethodError(f"Baseline {text!r}: the width of the blur must be a number above 0, as in 'blur:10'.")
        return Baseline("blur", sigma=sigma)
    if word == "noise":
        if number and not number.isdigit():
            raise MethodError(f"Baseline {text!r}: the seed must be a whole number from 0 on, as in 'noise:7'.")
        return Baseline("noise", random_seed=int(number or 0))
    plain = _number(text)
    if plain is not None:
        return Baseline(value=plain)
    if Path(text).suffix.lower() in (".npy", ".npz") or Path(text).is_file():
        return _from_file(Path(text))
    raise MethodError(f"The baseline must be {_FORMS}, not {text!r}.{suggest(word, KINDS)}")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _from_file(path: Path) -> Baseline:
    stored = arrays_of(path)
    if isinstance(stored, dict):
        return Baseline(value={n: numbers(a, f"The baseline {n!r} of {path}") for n, a in stored.items()})
    return Baseline(value=numbers(stored, f"The baseline in {path}"))


def arrays_of(path: Path) -> Array | dict[str, Array]:
    """The array of a .npy file, or those of a .npz file by name; InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                return np.asarray(loaded)
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        why = "there is no such file" if isinstance(error, FileNotFoundError) else "it is no .npy or .npz file"
        raise InputError(f"The baseline {str(path)!r} cannot be read: {why}.") from error


def numbers(value: Any, what: str) -> Array:
    """The value as finite float64 numbers; InputError beginning with `what`."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(f"{what} is not an array: its rows have different lengths.") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{what} must hold numbers, not {array.dtype}; give {_FORMS}.")
    if not array.size:
        raise InputError(f"{what} is empty; its shape is {list(array.shape)}.")
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        where = [int(i) for i in np.argwhere(~np.isfinite(wide))[0]]
        raise InputError(f"{what} holds values that are NaN or infinite, the first at {where}.")
    return wide
