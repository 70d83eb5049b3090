"""The reference input that a method compares with: zero, a number, an array, a blur of the picture itself, or noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, dims, shape_text

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Baseline:
    """A reference for every explained input.

    kind: ``constant`` takes `value`, a number or an array that broadcasts to the input's shape (an axis 0 of 1), or one
    such per input name.
    """

    kind: Literal["constant"] = "constant"
    value: float | Array | dict[str, Array] = 0.0

    def emit(self, op: Emitter, x: Value, name: str) -> Value:
        """The reference of `x`, the input called `name`: x's shape and dtype. InputError where the array does not fit."""
        value = self.value.get(name, 0.0) if isinstance(self.value, dict) else self.value
        constant = op.constant(np.asarray(value, dtype=np.float64), like=x)
        given, wanted = np.shape(value), dims(x)
        fits = len(given) <= len(wanted) and all(
            g == 1 or g == w for g, w in zip(reversed(given), reversed(wanted), strict=False)
        )
        if not fits:
            raise InputError(
                f"The baseline of input {name!r} has the shape {list(given)}, which does not broadcast to {shape_text(x)}."
            )
        return op.typed(op.Expand(constant, op.shape_of(x)), x)
