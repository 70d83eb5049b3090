"""One thing to explain, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnx_explain.data.preprocessing import Frame
from onnx_explain.data.specs import Array
from onnx_explain.data.tokens import Text


@dataclass(frozen=True)
class Sample:
    """One thing to explain: a name for its results, an array [1, ...] per input, and for a picture what the model saw.

    picture: uint8 [H, W, 3] RGB at the model's resolution, after resizing, before scaling; None for arrays. frame: which
    part of the file's picture that is. names: of features or channels, by input, where the file has them. texts: what ids
    were made of, by input. pictured: the input that the picture fills, of several.
    """

    name: str
    feeds: dict[str, Array]
    picture: NDArray[np.uint8] | None = None
    frame: Frame | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: Mapping[str, Text] = field(default_factory=dict)
    pictured: str | None = None
