"""What a perturbed pixel becomes. Pictures in, pictures of the same shape and dtype out; no model is asked.

``zero`` of the network's input space (RISE's deletion), ``mean`` per picture and channel, ``region-mean`` per region and channel
(PatternNet), ``black`` and ``uniform`` within the admissible values (`bounds`), ``minimum`` of the picture (what Quantus
calls black), ``blur`` (RISE's insertion).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.metrics.arrays import Array, Floats, choice, number, real, streams, whole

Name = Literal["zero", "mean", "region-mean", "black", "minimum", "uniform", "blur"]
NAMES = ("zero", "mean", "region-mean", "black", "minimum", "uniform", "blur")
Bounds = tuple[npt.ArrayLike, npt.ArrayLike]


def replaced(
    x: Array,
    replacement: Name | float | Array,
    *,
    size: int = 1,
    bounds: Bounds | None = None,
    seed: int = 0,
    keys: Sequence[int] | None = None,
) -> Array:
    """The fully perturbed pictures, shape and dtype of x [N, C, H, W].

    replacement: a name of `NAMES`, a number, or an array that broadcasts to x. size: the regions of ``region-mean``. bounds:
    (lowest, highest) admissible value in the network's input space, a number or one per channel each; ``black`` is the lowest.
    seed, keys: see `uniform`.

    Raises InputError: an unknown name, no bounds where they are needed, an array that does not fit.
    """
    if not isinstance(replacement, str):
        return _given(x, replacement)
    made: dict[str, Any] = {
        "zero": lambda: np.zeros_like(x),
        "mean": lambda: np.broadcast_to(x.mean((2, 3), keepdims=True, dtype=np.float64), x.shape),
        "region-mean": lambda: region_mean(x, size),
        "black": lambda: np.broadcast_to(_bounds(bounds, x, "black")[0], x.shape),
        "minimum": lambda: np.broadcast_to(x.min((1, 2, 3), keepdims=True), x.shape),
        "uniform": lambda: uniform(x, bounds=_bounds(bounds, x, "uniform"), seed=seed, keys=keys),
        "blur": lambda: blur(x),
    }
    return np.asarray(made[choice("replacement", replacement, NAMES)]()).astype(x.dtype)


def uniform(x: Array, *, bounds: Bounds, seed: int = 0, keys: Sequence[int] | None = None) -> Array:
    """Noise within the bounds, every value on its own: shape and dtype of x.

    Sample n draws from a stream of its own, made of the seed and ``keys[n]`` (default n): the noise of a picture does not depend
    on what else is in the batch. Numbers of a data set make good keys.
    """
    low, high = (np.broadcast_to(b, x.shape) for b in _bounds(bounds, x, "uniform"))
    out = np.empty(x.shape)
    for n, stream in enumerate(streams(len(x), seed, keys, 0)):
        out[n] = low[n] + (high[n] - low[n]) * stream.random(x.shape[1:])
    return out.astype(x.dtype)


def region_mean(x: Array, size: int) -> Array:
    """Every region of size x size becomes its own mean per channel; the last row and column of regions may be smaller."""
    rows, columns = (np.arange(0, n, whole("size", size)) for n in x.shape[2:])
    sums = np.add.reduceat(np.add.reduceat(x.astype(np.float64), rows, 2), columns, 3)
    heights, widths = (np.diff(np.append(s, n)) for s, n in zip((rows, columns), x.shape[2:]))
    means = sums / np.outer(heights, widths)
    return np.asarray(np.repeat(np.repeat(means, heights, 2), widths, 3)).astype(x.dtype)


def gaussian_kernel(size: int = 11, sigma: float = 5.0) -> Floats:
    """RISE's blur kernel [size, size]: a Gaussian filter's answer to a delta in the middle, sum 1.

    Petsiuk et al., "RISE", BMVC 2018, and its code: the filter reflects at the borders of the small picture, so the kernel is
    nearly flat (0.0077…0.0088 for 11 and 5), not a Gaussian cut off. The filter itself reaches 4σ.
    """
    if whole("size", size) % 2 == 0 or number("sigma", sigma) <= 0:
        raise InputError(f"The kernel's size must be odd and its sigma positive, not {size} and {sigma}.")
    reach = int(4.0 * sigma + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    delta = np.zeros(size)
    delta[size // 2] = 1.0
    line = np.convolve(np.pad(delta, reach, "symmetric"), taps / taps.sum(), "valid")
    return np.outer(line, line)


def blur(x: Array, *, size: int = 11, sigma: float = 5.0) -> Array:
    """RISE's blur: each channel convolved with `gaussian_kernel`, zeros beyond the border; shape and dtype of x."""
    kernel = gaussian_kernel(size, sigma)
    # The kernel is an outer product of one line, so two passes of one axis each do the work.
    line = kernel.sum(0)
    half = size // 2
    out = x.astype(np.float64)
    for axis in (2, 3):
        widths = [(0, 0)] * 4
        widths[axis] = (half, half)
        padded = np.pad(out, widths)
        length = out.shape[axis]
        out = sum(w * padded.take(range(k, k + length), axis) for k, w in enumerate(line))
    return np.asarray(out).astype(x.dtype)


def _given(x: Array, values: float | Array) -> Array:
    fill = real(values, "replacement")
    try:
        return np.broadcast_to(fill, x.shape).astype(x.dtype)
    except ValueError as error:
        raise InputError(f"replacement has shape {fill.shape}, which does not fit pictures of {x.shape}.") from error


def _bounds(bounds: Bounds | None, x: Array, name: str) -> tuple[Floats, Floats]:
    """(lowest, highest), each broadcastable to x: [C, 1, 1] or a number."""
    if bounds is None:
        raise InputError(
            f"replacement {name!r} needs bounds=(lowest, highest), the admissible values in the network's input space."
        )
    pair = [real(b, "bounds") for b in bounds] if isinstance(bounds, (tuple, list, np.ndarray)) else []
    if len(pair) != 2 or any(b.ndim and b.size not in (1, x.shape[1]) for b in pair):
        raise InputError(f"bounds must be two numbers, or two times {x.shape[1]}, one per channel.")
    low, high = (b.reshape(-1, 1, 1) if b.ndim else b for b in pair)
    if not np.all(low <= high) or not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InputError("bounds must be finite, and the lowest value must not exceed the highest.")
    return low, high
