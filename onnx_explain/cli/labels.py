"""What a model file says about its own use, where it does: class names and preprocessing in its metadata."""

from __future__ import annotations

import json
import re
from pathlib import Path

from onnx_explain.data import PRESETS, read_labels
from onnx_explain.explainer import Explainer, Explainers

_LONGEST_LABEL = 200
_LONGEST = 1 << 20  # characters of an entry that are looked at
_NUMBERED = re.compile(r"""["']?(\d{1,6})["']?\s*:\s*(["'])((?:(?!\2).)*)\2""")


def labels_of(explainer: Explainer | Explainers, path: Path | None) -> list[str]:
    """The class names of a label file, or those in the model's metadata entry ``labels`` or ``names``, or none."""
    if path is not None:
        return [_cut(label) for label in read_labels(path)]
    found = explainer.source_model.metadata_props
    labels = _listed(found.get("labels", "").strip()) or _numbered(found.get("names", "").strip())
    return [_cut(label) for label in labels]


def _cut(label: str) -> str:
    """A label that fits into a title."""
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"


def _listed(text: str) -> list[str]:
    """``["cat", "dog"]`` or ``cat, dog``."""
    try:
        parsed = json.loads(text) if text.startswith("[") else text.split(",")
    except (ValueError, RecursionError):
        return []
    named = isinstance(parsed, list) and len(parsed) > 1 and all(isinstance(p, str) for p in parsed)
    return [p.strip() for p in parsed] if named else []


def _numbered(text: str) -> list[str]:
    """``{0: 'person', 1: 'bicycle'}``, as detectors are exported with; none where a number is missing."""
    found = {int(number): name for number, _, name in _NUMBERED.findall(text[:_LONGEST])}
    whole = bool(found) and text.startswith("{") and sorted(found) == list(range(len(found)))
    return [found[i] for i in range(len(found))] if whole else []


def embedded_preset(explainer: Explainer | Explainers) -> str | None:
    """The preset in the model's metadata entry ``preprocessing``, where it is one of ours."""
    found = explainer.source_model.metadata_props.get("preprocessing", "")
    return found if found in PRESETS else None
