"""A COCO annotation file: boxes [x, y, width, height] from 0, polygons, and run lengths, plain or packed into text.

Run lengths count down the columns, background first; a crowd is void.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from onnx_explain.annotations.truth import Bools, Object, Size, Truth, box_within, check_size, read_bounded
from onnx_explain.errors import InputError

_MOST_BYTES = 2**30
_MOST_POINTS = 1_000_000
_SUPERSAMPLING, _FINE = 4, 2**24


class CocoFile:
    """Objects by the stem of ``file_name``. boxes: take the boxes and leave the outlines alone."""

    def __init__(self, path: Path, *, boxes: bool) -> None:
        self.path, self._boxes = path, boxes

    @property
    def names(self) -> frozenset[str]:
        """The stems of the pictures that the file lists, those without an object too."""
        return frozenset(self._read[0])

    def truth(self, name: str, size: Size) -> Truth:
        """The objects of a picture; InputError where the file states another size, or an outline is broken."""
        images, annotations, categories = self._read
        image = images[name]
        where = f"{self.path}: {name!r}"
        stated = image.get("height"), image.get("width")
        if all(isinstance(v, int) for v in stated):
            check_size(where, stated, size)
        objects, void = [], np.zeros(size, bool)
        for entry in annotations.get(_key(image.get("id")), ()):
            found = self._object(where, entry, categories, size)
            if entry.get("iscrowd") == 1 and found.mask is not None:
                void |= found.mask
            elif entry.get("iscrowd") != 1:
                objects.append(found)
        return Truth(tuple(objects), void if void.any() else None)

    def _object(self, where: str, entry: Mapping[str, Any], categories: Mapping[str, str], size: Size) -> Object:
        category = categories.get(_key(entry.get("category_id")))
        if category is None:
            raise InputError(
                f"{where}: an object of category {str(entry.get('category_id'))[:40]}, which is not listed."
            )
        if self._boxes and entry.get("iscrowd") != 1:
            box = entry.get("bbox")
            if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
                raise InputError(f"{where}: bbox must be [x, y, width, height], not {str(box)[:60]}.")
            x, y, w, h = box
            return Object(category, box=box_within(where, (x, y, x + w, y + h), size))
        return Object(category, mask=outline(where, entry.get("segmentation"), size))

    @cached_property
    def _read(self) -> tuple[dict[str, Any], dict[str, list[Any]], dict[str, str]]:
        parsed = self._parsed()
        images: dict[str, Any] = {}
        for image in parsed["images"]:
            stem = Path(str(image.get("file_name", ""))).stem
            if not stem or stem in images:
                raise InputError(f"{self.path}: a picture without a name, or two of the name {stem!r}.")
            images[stem] = image
        by_image: dict[str, list[Any]] = {}
        for entry in parsed["annotations"]:
            by_image.setdefault(_key(entry.get("image_id")), []).append(entry)
        return images, by_image, {_key(c.get("id")): str(c.get("name", "")) for c in parsed["categories"]}

    def _parsed(self) -> dict[str, list[dict[str, Any]]]:
        try:
            parsed = json.loads(read_bounded(self.path, _MOST_BYTES))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: not readable as JSON ({' '.join(str(error).split())[:120]}).") from error
        parts = ("images", "annotations", "categories")
        lists = isinstance(parsed, dict) and all(isinstance(parsed.get(part), list) for part in parts)
        if not lists or not all(isinstance(entry, dict) for part in parts for entry in parsed[part]):
            raise InputError(f"{self.path}: not a COCO file: it needs lists of images, annotations and categories.")
        return {part: parsed[part] for part in parts}


def _key(value: Any) -> str:
    return f"{type(value).__name__} {value}"


def outline(where: str, given: Any, size: Size) -> Bools:
    """The mask [H, W] of a COCO ``segmentation``: polygons, or run lengths as numbers or text; InputError."""
    if isinstance(given, list) and given:
        return _polygons(where, given, size)
    if isinstance(given, dict):
        stated = given.get("size")
        if not isinstance(stated, list) or len(stated) != 2 or not all(isinstance(v, int) for v in stated):
            raise InputError(f"{where}: run lengths without a size [height, width].")
        check_size(where, (stated[0], stated[1]), size)
        counts = given.get("counts")
        runs = _unpacked(where, counts, size) if isinstance(counts, str) else counts
        return _runs(where, runs, size)
    raise InputError(f"{where}: segmentation must be polygons or run lengths, not {str(given)[:60]}.")


def _polygons(where: str, rings: Sequence[Any], size: Size) -> Bools:
    """Pixels of which the polygons cover at least half, by fine pixels."""
    if sum(len(r) if isinstance(r, list) else 0 for r in rings) > _MOST_POINTS:
        raise InputError(f"{where}: an outline of more than {_MOST_POINTS} numbers.")
    height, width = size
    fine = _SUPERSAMPLING if width * height <= _FINE else 1
    sheet = Image.new("1", (width * fine, height * fine))
    pen = ImageDraw.Draw(sheet)
    for ring in rings:
        numbers = isinstance(ring, list) and all(isinstance(v, int | float) and abs(v) < 1e7 for v in ring)
        if not numbers or len(ring) < 6 or len(ring) % 2:
            raise InputError(f"{where}: a polygon must be x, y pairs of at least three corners, not {str(ring)[:60]}.")
        pen.polygon([v * fine - 0.5 for v in ring], fill=1)
    covered = np.asarray(sheet).reshape(height, fine, width, fine)
    return np.asarray(covered.mean((1, 3)) >= 0.5)


def _runs(where: str, counts: Any, size: Size) -> Bools:
    pixels = size[0] * size[1]
    whole = isinstance(counts, list) and all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts)
    if not whole or sum(counts) != pixels:
        raise InputError(f"{where}: run lengths must be whole numbers that add up to {pixels} pixels.")
    values = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, counts).reshape(size[::-1]).T)


def _unpacked(where: str, text: str, size: Size) -> list[int]:
    """COCO's text form: 5 bits a character from '0' on, bit 6 says that more follow; from the third on, less the last but one."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        part = ord(character) - 48
        if not 0 <= part < 64 or shift > 40 or len(counts) > size[0] * size[1]:
            raise InputError(f"{where}: the packed run lengths are damaged.")
        value |= (part & 31) << shift
        shift += 5
        if part & 32:
            continue
        if part & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise InputError(f"{where}: the packed run lengths end in the middle of a number.")
    return counts
