"""The explained file: what it says of itself, and the check that it predicts what the original does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain import feeds
from onnx_explain.backends.onnx import Session
from onnx_explain.errors import VerificationError
from onnx_explain.explanation import plain_option
from onnx_explain.ir.model import Loaded, serialise
from onnx_explain.relevance import RelevanceGraph
from onnx_explain.version import __version__

TOLERANCE = 1e-5  # of an output's largest value: other kernels round differently, nothing more


def describe(
    model: ir.Model, graph: RelevanceGraph, source: Loaded, *, method: str, options: Mapping[str, Any], seed: str
) -> None:
    """Write what an auditor reads off the file into its metadata; in place."""
    model.producer_name, model.producer_version = "onnx-explain", __version__
    model.metadata_props.update(
        {
            "onnx_explain.version": __version__,
            "onnx_explain.method": method,
            "onnx_explain.options": json.dumps(
                {name: plain_option(value) for name, value in options.items()}, sort_keys=True
            ),
            "onnx_explain.seed": seed,
            "onnx_explain.target": graph.target_input,
            "onnx_explain.explained": graph.explained,
            "onnx_explain.relevance": json.dumps({**graph.relevance, **graph.kept}),
            "onnx_explain.source_sha256": source.sha256,
        }
    )
    if graph.layer is not None:
        model.metadata_props["onnx_explain.layer"] = graph.layer


def verify(
    explained: bytes | Path, graph: RelevanceGraph, source: Loaded, canonical: ir.Model, threads: int | None
) -> None:
    """Run the explained model and the original on noise; VerificationError where a prediction differs or a map is NaN."""
    fed = feeds.noise(canonical)
    original = str(source.path) if source.path is not None else serialise(source.model)
    theirs = Session(original, threads=threads).run(fed)
    ours = Session(str(explained) if isinstance(explained, Path) else explained, threads=threads).run(fed)
    for name, value in theirs.items():
        if not _equal(ours[name], value):
            raise VerificationError(
                f"The explained model's output {name!r} differs from the original's, so no file was written; please report this model."
            )
    sound = all(np.isfinite(v).all() for v in theirs.values() if v.dtype.kind == "f")
    for name in graph.relevance.values():
        if sound and ours[name].dtype.kind == "f" and np.isnan(ours[name]).any():
            raise VerificationError(
                f"The explained model's {name!r} is NaN on noise, so no file was written; use another method, or report this model."
            )


def _equal(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> bool:
    if ours.shape != theirs.shape:
        return False
    if theirs.dtype.kind != "f":
        return bool(np.array_equal(ours, theirs))
    finite = np.isfinite(theirs)
    scale = float(np.abs(theirs[finite]).max(initial=0.0)) or 1.0
    near = np.abs(ours[finite].astype(np.float64) - theirs[finite]) <= TOLERANCE * scale
    return bool(near.all()) and bool(np.array_equal(ours[~finite], theirs[~finite], equal_nan=True))
