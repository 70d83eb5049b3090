"""What an annotation says of one picture, and what every reader of annotations offers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError

Bools = npt.NDArray[np.bool_]
Size = tuple[int, int]  # (height, width)
Name = str | int | None  # a class by its name or its number
MOST_PIXELS = 2**28


@dataclass(frozen=True, eq=False)
class Object:
    """One annotated thing in pixels of the stored picture: its box (x0, y0, x1, y1), the last two exclusive, or its mask.

    mask: bool [H, W] of the picture's size, or None where there is a box alone. difficult: VOC's mark.
    """

    name: Name
    box: tuple[float, float, float, float] | None = None
    mask: Bools | None = None
    difficult: bool = False


@dataclass(frozen=True, eq=False)
class Truth:
    """All of one picture. void: bool [H, W], the pixels about which nothing is said (VOC's 255, COCO's crowds)."""

    objects: tuple[Object, ...] = ()
    void: Bools | None = None


class Source(Protocol):
    """Annotations of many pictures, by the stem of the picture's file."""

    path: Path

    @property
    def names(self) -> frozenset[str]:
        """The stems that have an annotation."""

    def truth(self, name: str, size: Size) -> Truth:
        """What is known of a picture of that size; InputError where the annotation is broken or of another size."""


def check_size(where: str, annotated: Size, picture: Size) -> None:
    """InputError where an annotation belongs to a picture of another size."""
    if annotated != picture:
        raise InputError(
            f"{where}: annotated at {annotated[1]} x {annotated[0]} pixels (width x height), but the picture has "
            f"{picture[1]} x {picture[0]}."
        )


def box_within(where: str, corners: Any, size: Size) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) cut at the picture's edge; InputError where nothing is left, or it is no box."""
    try:
        x0, y0, x1, y1 = (float(v) for v in corners)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {str(corners)[:80]} is not a box of four numbers.") from error
    height, width = size
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        raise InputError(f"{where}: the box {(x0, y0, x1, y1)} holds NaN or infinity.")
    cut = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if cut[0] >= cut[2] or cut[1] >= cut[3]:
        raise InputError(
            f"{where}: the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty or lies outside the picture of {width} x {height}."
        )
    return cut


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file of at most `most`; InputError otherwise."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: the annotations cannot be read: {error.strerror or error}.") from error
    if len(data) > most:
        raise InputError(f"{path}: more than {most // 2**20} MB, too much for annotations; split the file.")
    return data
