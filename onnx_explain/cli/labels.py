"""What a model file says about its own use, where it does: class names and preprocessing in its metadata."""

from __future__ import annotations

import json
from pathlib import Path

from onnx_explain.data import PRESETS, read_labels
from onnx_explain.explainer import Explainer, Explainers


def labels_of(explainer: Explainer | Explainers, path: Path | None) -> list[str]:
    """The class names of a label file, or those in the model's metadata entry ``labels``, or none."""
    if path is not None:
        return read_labels(path)
    text = explainer.source_model.metadata_props.get("labels", "").strip()
    try:
        parsed = json.loads(text) if text.startswith("[") else text.split(",")
    except ValueError:
        return []
    named = isinstance(parsed, list) and len(parsed) > 1 and all(isinstance(p, str) for p in parsed)
    return [p.strip() for p in parsed] if named else []


def embedded_preset(explainer: Explainer | Explainers) -> str | None:
    """The preset in the model's metadata entry ``preprocessing``, where it is one of ours."""
    found = explainer.source_model.metadata_props.get("preprocessing", "")
    return found if found in PRESETS else None
