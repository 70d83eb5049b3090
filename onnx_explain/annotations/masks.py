"""A folder of mask pictures, one per picture and of its size, found by the stem of the name.

A palette picture, or a grey one of several values, holds a class per pixel: 0 is background, 255 is void (PASCAL VOC). A grey
picture of two values is a plain mask: what is not 0 is the object.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnx_explain.annotations.truth import MOST_PIXELS, Object, Size, Truth, check_size
from onnx_explain.errors import InputError

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".pgm")
VOID = 255
_MOST_CLASSES = 4096


class MaskFolder:
    """Masks by stem. Raises InputError: two masks of one stem."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for file in sorted(self.path.iterdir()):
            if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                if file.stem in found:
                    raise InputError(
                        f"{self.path}: two masks for {file.stem!r} ({found[file.stem].name}, {file.name})."
                    )
                found[file.stem] = file
        return found

    @property
    def names(self) -> frozenset[str]:
        """The stems of the masks."""
        return frozenset(self._files)

    def truth(self, name: str, size: Size) -> Truth:
        """The mask's classes, one object each, under the pixel's value (True of a plain mask has no name)."""
        values, indexed = _pixels(self._files[name], size)
        return truth_of_values(values, indexed=indexed)


def truth_of_values(values: npt.NDArray[np.integer], *, indexed: bool) -> Truth:
    """Objects and void pixels of whole numbers [H, W]; not `indexed`: one nameless object where they are not 0."""
    if not indexed:
        return Truth((Object(None, mask=values != 0),) if values.any() else ())
    void = values == VOID
    classes = [int(v) for v in np.unique(values) if v not in (0, VOID)]
    if len(classes) > _MOST_CLASSES:
        raise InputError(
            f"a mask holds {len(classes)} different values, which are no classes; save one value per class."
        )
    return Truth(tuple(Object(c, mask=values == c) for c in classes), void if void.any() else None)


def _pixels(path: Path, size: Size) -> tuple[npt.NDArray[np.integer], bool]:
    """The values [H, W] as stored, and whether they are classes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=("PNG", "BMP", "TIFF", "GIF", "PPM")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError("it has more pixels than is safe to decode")
                check_size(str(path), (image.height, image.width), size)
                image.load()
                mode, array = image.mode, np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        said = " ".join(str(error).split()).rstrip(".")[:160] or type(error).__name__
        raise InputError(f"{path}: the mask cannot be read: {said}.") from error
    if array.ndim == 3 and array.shape[2] in (3, 4) and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "biu":
        raise InputError(f"{path}: not a mask: it has colours; save one grey or palette value per pixel.")
    values = array.astype(np.int64)
    return values, mode == "P" or len(np.unique(values[values != 0])) > 1
