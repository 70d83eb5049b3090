"""One input of a model as data is fitted to it, and one sample that fits: names, shapes, dtypes; no file is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from onnx_explain.errors import InputError, suggest

Array: TypeAlias = NDArray[Any]
Layout: TypeAlias = Literal["NCHW", "NHWC"]


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: its name, its shape (``None`` = dynamic; axis 0 is the batch), its dtype.

    ``stated_layout`` overrides the layout that :attr:`layout` reads from the shape of a rank-4 input; ``channels_axis``:
    of a signal [N, C, T] or [N, T, C], 1 or 2, where that is known.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    stated_layout: Layout | None = None
    channels_axis: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError where ``stated_layout`` is unknown or cannot be this input's."""
        if self.stated_layout is None:
            return
        if self.stated_layout not in get_args(Layout):
            raise InputError(f"Unknown layout {self.stated_layout!r}.{suggest(self.stated_layout, get_args(Layout))}")
        if len(self.shape) != 4:
            raise InputError(
                f"Layout {self.stated_layout} is for inputs of rank 4, but input {self.name!r} is {self}: "
                "leave the layout out."
            )

    def __str__(self) -> str:
        """Return shape and dtype as messages show them: ``[N, 3, 224, 224] float32``."""
        dims = ["N" if d is None and i == 0 else "?" if d is None else str(d) for i, d in enumerate(self.shape)]
        return f"[{', '.join(dims)}] {self.dtype}"

    @property
    def layout(self) -> Layout | None:
        """Where the channels of an image-like input are; None where the input is not image-like.

        A rank-4 input is image-like where axis 1 or axis 3 is 3, 1 or 4. Where both are, 3 beats 1 beats 4, and
        between equals axis 1 is taken (NCHW, ONNX's own convention).
        """
        if self.stated_layout is not None or len(self.shape) != 4:
            return self.stated_layout
        preference: dict[int | None, int] = {3: 0, 1: 1, 4: 2}
        first, last = preference.get(self.shape[1], 3), preference.get(self.shape[3], 3)
        if first == last == 3:
            return None
        return "NCHW" if first <= last else "NHWC"

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels: 1, 3, or None where the input is not image-like."""
        return {"NCHW": 1, "NHWC": 3, None: None}[self.layout]

    @property
    def channels(self) -> int | None:
        """The number of channels of an image-like input; None where dynamic or not image-like."""
        return self._dim({"NCHW": 1, "NHWC": 3})

    @property
    def height(self) -> int | None:
        """The height of an image-like input; None where dynamic or not image-like."""
        return self._dim({"NCHW": 2, "NHWC": 1})

    @property
    def width(self) -> int | None:
        """The width of an image-like input; None where dynamic or not image-like."""
        return self._dim({"NCHW": 3, "NHWC": 2})

    def _dim(self, axis_of: Mapping[Layout, int]) -> int | None:
        return None if self.layout is None else self.shape[axis_of[self.layout]]


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """The values in another dtype; what it cannot hold becomes infinite, without a word."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(values, dtype=dtype, order="C")


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is one of floats, of NumPy or of ONNX."""
    # bfloat16 and the 8-bit floats come from ml_dtypes, whose kind is "V"
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def integer_range(spec: InputSpec) -> tuple[int, int]:
    """The least and the largest value of an integer input; InputError for an input of strings."""
    if spec.dtype.kind == "b":
        return 0, 1
    if spec.dtype.kind not in "iu":
        raise InputError(f"Input {spec.name!r} takes {spec.dtype} values, which a picture cannot give.")
    limits = np.iinfo(spec.dtype)
    return int(limits.min), int(limits.max)


def reason(error: BaseException) -> str:
    """Return an error of another library as part of a sentence: one line, no full stop."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()).rstrip(".")[:200] or type(error).__name__


def quoted(names: Any) -> str:
    """Names in a sentence."""
    return ", ".join(repr(n) for n in names)
