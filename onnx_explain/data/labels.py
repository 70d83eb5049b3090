"""Label files: the names of classes, by index."""

from __future__ import annotations

import json
from pathlib import Path

from onnx_explain.data.specs import reason
from onnx_explain.errors import InputError

_MOST_LABELS = 1_000_000


def read_labels(path: str | Path) -> list[str]:
    """Return the class names of a label file, by class index.

    The file has one label per line, or is JSON: a list of labels, or an object {index: label}; a JSON label is a name,
    a pair [wnid, name], or an object with a "name". An index without a label gets its own number as its name.

    Raises InputError: unreadable, empty, or none of these forms.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the label file cannot be read as UTF-8 text: {reason(error)}.") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    labels = _json_labels(path, text) if path.suffix.lower() == ".json" else lines
    if not labels or "\0" in text:
        raise InputError(f"{path}: the label file holds no labels: write one per line, or JSON {{index: name}}.")
    return [label or str(i) for i, label in enumerate(labels)]


def _json_labels(path: Path, text: str) -> list[str]:
    try:
        parsed = json.loads(text)
        if isinstance(parsed, list):
            return [_label(entry) for entry in parsed]
        by_index = {int(k): _label(v) for k, v in parsed.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a label file: it must be a JSON list or {{index: name}} ({reason(error)})."
        ) from error
    if by_index and not 0 <= min(by_index) <= max(by_index) < _MOST_LABELS:
        raise InputError(f"{path}: a label's index lies outside 0..{_MOST_LABELS - 1}.")
    return [by_index.get(i, "") for i in range(max(by_index, default=-1) + 1)]


def _label(entry: object) -> str:
    if isinstance(entry, dict):
        entry = entry.get("name")
    if isinstance(entry, list) and entry:
        entry = entry[-1]
    if not isinstance(entry, str):
        raise ValueError(f"{entry!r} is not a name")
    return entry.strip()
