"""The class of every picture: a CSV of ``file,class`` lines or a JSON object {file: class}; a class is a number or a name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from onnx_explain.annotations.truth import Name, read_bounded
from onnx_explain.errors import InputError

_MOST_BYTES = 2**29
_HEADS = {"file", "filename", "file_name", "name", "image", "picture", "path", "id"}


class LabelFile:
    """Classes by the stem of the picture's file. Raises InputError: not such a file, or two classes for one picture."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = read_bounded(path, _MOST_BYTES)
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: the classes are not UTF-8 text.") from error
        pairs = _json(path, text) if path.suffix.lower() == ".json" else _csv(path, text)
        self.classes: dict[str, Name] = {}
        for file, label in pairs:
            stem = Path(file).stem
            if self.classes.setdefault(stem, label) != label:
                raise InputError(f"{path}: two classes for {stem!r}: {self.classes[stem]!r} and {label!r}.")
        if not self.classes:
            raise InputError(f"{path}: no class in it; write lines of file,class.")

    @property
    def names(self) -> frozenset[str]:
        """The stems that have a class."""
        return frozenset(self.classes)


def _csv(path: Path, text: str) -> list[tuple[str, Name]]:
    try:
        rows = [
            row for row in csv.reader(text.splitlines(), skipinitialspace=True) if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise InputError(f"{path}: not readable as CSV: {error}.") from error
    if rows and rows[0][0].strip().lower() in _HEADS:
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise InputError(f"{path}: line {number} of the classes is {','.join(row)[:60]!r}; write file,class.")
    return [(row[0].strip(), _label(row[1].strip())) for row in rows]


def _json(path: Path, text: str) -> list[tuple[str, Name]]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({' '.join(str(error).split())[:120]}).") from error
    plain = isinstance(parsed, dict) and all(
        isinstance(v, str | int) and not isinstance(v, bool) for v in parsed.values()
    )
    if not plain:
        raise InputError(f"{path}: the classes must be an object {{file: class}}, a class being a number or a name.")
    return [(file, _label(v) if isinstance(v, str) else v) for file, v in parsed.items()]


def _label(text: str) -> Name:
    return int(text) if text.isdecimal() and len(text) < 10 else text
