"""What a method has to be handed before a generic test can call it, and how little of its work is enough there."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnx_explain import METHODS, fit_patterns

FEW = {"steps": 5, "samples": 3, "masks": 24}
ANYWHERE = [name for name, m in METHODS.items() if m.family != "attention"]  # the others ask for self-attention
CONVERTIBLE = [name for name in ANYWHERE if METHODS[name].family != "perturbation"]  # the others are not one graph
FREE = [name for name in ANYWHERE if not {"patterns", "baselines"} & set(METHODS[name].options)]  # need nothing handed


def ready(method: str, model: Any, x: Any) -> dict[str, Any]:
    """Options for a model and an input [N, …] (or {input: array}): patterns fitted on it, baselines, few steps."""
    known = METHODS[method].options
    found: dict[str, Any] = {name: value for name, value in FEW.items() if name in known}
    if "patterns" in known:
        found["patterns"] = fit_patterns(model, x)
    if "baselines" in known:
        floats = {n: a for n, a in x.items() if a.dtype.kind == "f"} if isinstance(x, dict) else x
        found["baselines"] = {n: _rows(a) for n, a in floats.items()} if isinstance(floats, dict) else _rows(floats)
    return found


def _rows(x: Any) -> Any:
    """Baselines of an input's shape, made of the input so that they turn with its layout."""
    return np.concatenate([0.3 * x[::-1], np.zeros_like(x[:1])]).astype(x.dtype)
