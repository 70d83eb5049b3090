"""One thing to explain, read and checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnx_explain.data.preprocessing import Frame
from onnx_explain.data.specs import Array


@dataclass(frozen=True)
class Sample:
    """One thing to explain: a name for its results, an array [1, ...] per input, and for a picture what the model saw.

    picture: uint8 [H, W, 3] RGB at the model's resolution, after resizing, before scaling; None for arrays. frame: which
    part of the file's picture that is.
    """

    name: str
    feeds: dict[str, Array]
    picture: NDArray[np.uint8] | None = None
    frame: Frame | None = None
