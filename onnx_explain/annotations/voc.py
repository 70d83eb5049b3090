"""A folder of PASCAL VOC annotations: an XML file per picture, boxes counted from 1 with both ends in the box.

Entities and document types are refused, size and depth are bounded, nothing outside the file is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from xml.parsers import expat

from onnx_explain.annotations.truth import Object, Size, Truth, box_within, check_size, read_bounded
from onnx_explain.errors import InputError

_MOST_BYTES, _DEEPEST, _MOST_NODES = 16 * 2**20, 32, 200_000


@dataclass
class _Element:
    tag: str
    text: str = ""
    children: list[_Element] = field(default_factory=list)

    def find(self, tag: str) -> _Element | None:
        """The first child of that tag."""
        return next((c for c in self.children if c.tag == tag), None)

    def said(self, tag: str) -> str | None:
        """The text of the first child of that tag."""
        found = self.find(tag)
        return None if found is None else found.text.strip()


class VocFolder:
    """Boxes by stem."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {p.stem: p for p in sorted(self.path.iterdir()) if p.suffix.lower() == ".xml" and p.name[0] != "."}

    @property
    def names(self) -> frozenset[str]:
        """The stems of the XML files."""
        return frozenset(self._files)

    def truth(self, name: str, size: Size) -> Truth:
        """The objects' boxes; InputError for a file that is no annotation of a picture of this size."""
        path = self._files[name]
        root = _parsed(path)
        stated = root.find("size")
        if stated is not None:
            annotated = _number(path, stated, "height"), _number(path, stated, "width")
            check_size(str(path), (int(annotated[0]), int(annotated[1])), size)
        return Truth(tuple(_object(path, e, size) for e in root.children if e.tag == "object"))


def _object(path: Path, element: _Element, size: Size) -> Object:
    found = element.find("bndbox")
    name = element.said("name")
    if found is None or not name:
        raise InputError(f"{path}: an object without a name or a bndbox.")
    x0, y0, x1, y1 = (_number(path, found, tag) for tag in ("xmin", "ymin", "xmax", "ymax"))
    box = box_within(str(path), (x0 - 1, y0 - 1, x1, y1), size)
    return Object(name, box=box, difficult=element.said("difficult") == "1")


def _number(path: Path, element: _Element, tag: str) -> float:
    text = element.said(tag)
    try:
        number = float(text or "")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path}: {element.tag}/{tag} is {(text or '')[:40]!r}, not a number.")
    return number


def _parsed(path: Path) -> _Element:
    """The tree of an XML file; InputError for anything that is not plain elements and text."""
    data = read_bounded(path, _MOST_BYTES)
    top = _Element("")
    stack, count = [top], 0

    def start(tag: str, _attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if len(stack) > _DEEPEST or count > _MOST_NODES:
            raise InputError(f"{path}: nested too deep or too long for a VOC annotation.")
        element = _Element(tag)
        stack[-1].children.append(element)
        stack.append(element)

    def text(said: str) -> None:
        stack[-1].text += said

    def refuse(*_: object) -> None:
        raise InputError(f"{path}: a document type or an entity, which VOC annotations do not have; it is not read.")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.CharacterDataHandler = start, text
    parser.EndElementHandler = lambda _tag: stack.pop()
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, UnicodeError) as error:
        raise InputError(f"{path}: not well-formed XML: {error}.") from error
    root = top.children[0] if top.children else top
    if root.tag != "annotation":
        raise InputError(f"{path}: not a VOC annotation: its root is <{root.tag[:40]}>, not <annotation>.")
    return root
