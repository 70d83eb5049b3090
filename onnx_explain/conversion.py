"""The explained file: what it says of itself, and the check that it predicts what the original does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain import feeds
from onnx_explain.backends.onnx import Session, lower
from onnx_explain.errors import ModelError, VerificationError
from onnx_explain.explanation import plain_option
from onnx_explain.ir.model import Loaded
from onnx_explain.ir.unfuse import MICROSOFT
from onnx_explain.relevance import RelevanceGraph
from onnx_explain.version import __version__

TOLERANCE = 1e-5  # of an output's largest value: other kernels round differently, nothing more
_HALF_EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def describe(
    model: ir.Model,
    graph: RelevanceGraph,
    source: Loaded,
    *,
    method: str,
    options: Mapping[str, Any],
    seed: str,
    expression: str | None = None,
) -> None:
    """Write what an auditor reads off the file into its metadata; in place. expression: a computed target."""
    model.producer_name, model.producer_version = "onnx-explain", __version__
    model.metadata_props.update(
        {
            "onnx_explain.version": __version__,
            "onnx_explain.method": method,
            "onnx_explain.options": json.dumps(
                {name: plain_option(value) for name, value in options.items()}, sort_keys=True
            ),
            "onnx_explain.seed": seed,
            "onnx_explain.explained": graph.explained,
            "onnx_explain.relevance": json.dumps({**graph.relevance, **graph.kept}),
            "onnx_explain.source_sha256": source.sha256,
        }
    )
    if graph.target_input:
        model.metadata_props["onnx_explain.target"] = graph.target_input
    if expression is not None:
        model.metadata_props["onnx_explain.expression"] = expression
    if graph.layer is not None:
        model.metadata_props["onnx_explain.layer"] = graph.layer


def verify(
    explained: ir.Model | Path, graph: RelevanceGraph, source: Loaded, canonical: ir.Model, threads: int | None
) -> None:
    """Run the explained model and the original on noise; VerificationError where a prediction differs or a map is NaN."""
    fed = feeds.noise(canonical)
    original = str(source.path) if source.path is not None else source.model
    # ONNX Runtime fuses int8 activations into other kernels where each has one reader, and a backward pass reads them too:
    # the two files are compared as they are written
    optimised = not any(node.op_type == "QuantizeLinear" for node in source.model.graph)
    theirs = _original(original, source, canonical, threads=threads, optimised=optimised).run(fed)
    whole = str(explained) if isinstance(explained, Path) else explained
    ours = Session(whole, threads=threads, optimised=optimised).run(fed)
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


def _original(
    original: str | ir.Model, source: Loaded, canonical: ir.Model, *, threads: int | None, optimised: bool
) -> Session:
    """The file itself; its canonical form where it holds a fused operator that this ONNX Runtime has no kernel for."""
    try:
        return Session(original, threads=threads, optimised=optimised)
    except ModelError:
        if all(node.domain != MICROSOFT for node in source.model.graph):
            raise
        return Session(lower(canonical), threads=threads, optimised=optimised)


def _equal(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> bool:
    if ours.shape != theirs.shape:
        return False
    if theirs.dtype.kind != "f" and theirs.dtype != ml_dtypes.bfloat16:
        return bool(np.array_equal(ours, theirs))
    finite = np.isfinite(theirs)
    scale = float(np.abs(theirs[finite]).max(initial=0.0)) or 1.0
    # half precision is explained in float32: the deployed file rounds where this one does not
    tolerance = 4 * _HALF_EPS[theirs.dtype.name] if theirs.dtype.name in _HALF_EPS else TOLERANCE
    near = np.abs(ours[finite].astype(np.float64) - theirs[finite].astype(np.float64)) <= tolerance * scale
    return bool(near.all()) and bool(np.array_equal(ours[~finite], theirs[~finite], equal_nan=True))
