"""A model cut down to some of its outputs: what nothing leads to is not run."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass


def keep_outputs(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Drop every graph output but those named, and the nodes that led to the dropped ones alone; in place.

    The graph's inputs all stay, used or not.
    """
    graph = model.graph
    graph.outputs[:] = [v for v in graph.outputs if v.name in names]
    RemoveUnusedNodesPass()(model)
    return model
