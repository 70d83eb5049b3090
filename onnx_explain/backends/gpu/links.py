"""Which composites are done together with the one above: between Relu layers a kernel divides for the layer below, the
gradient's mask of a Relu or Clip is its numerator, and RAP's shift is taken off by who reads the map. Read off the graph
before anything is lowered.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnx_explain.backends.gpu.calls import conv_geometry, is_constant, pool_geometry
from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode
from onnx_explain.ir.view import Value, rank

RECTIFIED = (0.0, float("inf"))  # the mask of a Relu


@dataclass(frozen=True)
class Link:
    """A composite's place in a chain.

    `below`: the Share composite for which this one's kernel divides. `divided`: `r` has been divided by the kernel above.
    `masked`: this one's kernel multiplies by the mask 1[low < x < high] of the layer below. `absorbed_by_above`: this Gate is
    that mask. `defers`: RAP's shift of this one's result is left to the composite below. `repeated`: others (of further
    targets) divide by the same denominators, which are then made once.
    """

    below: CompositeNode | None = None
    divided: bool = False
    masked: tuple[float, float] | None = None
    absorbed_by_above: bool = False
    defers: bool = False
    repeated: bool = False


def links(graph: ir.Graph) -> dict[int, Link]:
    """Links by the identity of composite nodes; those that stand alone have none."""
    ours = [n for n in graph if n.domain == composite.DOMAIN]
    made = Counter(_denominators(n) for n in ours)
    found = {id(n): Link(repeated=True) for n in ours if made[_denominators(n)] > 1}
    for node in ours:
        below = _alone(node.outputs[0])
        if below is None or below.domain != composite.DOMAIN or below.inputs[0] is not node.outputs[0]:
            continue
        upper, lower = composite.read(node), composite.read(below)
        if not _writes(upper):
            continue
        here, there = found.get(id(node), Link()), found.get(id(below), Link())
        mask = _mask(lower, upper.node.x)
        if mask is not None and (upper.kind == "Transpose" or (upper.kind == "Route" and mask == RECTIFIED)):
            found[id(node)] = replace(here, masked=mask)
            found[id(below)] = replace(there, absorbed_by_above=True)
        elif upper.kind in ("Share", "Route") and divides(lower) and _same_input(upper, lower):
            found[id(node)] = replace(here, below=lower)
            found[id(below)] = replace(there, divided=True)
        elif upper.kind == "RelativeShare" and _takes_shift(lower):
            found[id(node)] = replace(here, defers=True)
    return found


def _denominators(node: ir.Node) -> tuple[object, ...]:
    """What a composite divides by, as a key: the layer and the rule."""
    one = composite.read(node)
    return (one.kind, id(one.node.y), json.dumps(dict(one.rule), sort_keys=True))


def _alone(value: Value) -> ir.Node | None:
    """The one node that reads a value, once."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _writes(node: CompositeNode) -> bool:
    """Whether one kernel writes the composite's result."""
    forward = node.node
    if node.r.dtype != ir.DataType.FLOAT or forward.domain != "" or rank(forward.x) not in (3, 4):
        return False
    if node.kind == "Route":
        return forward.op_type in ("MaxPool", "GlobalMaxPool") and pool_geometry(forward) is not None
    if forward.op_type != "Conv" or not is_constant(forward.input(1)) or conv_geometry(forward) is None:
        return False
    if node.kind == "RelativeShare":
        return relates(node)
    return node.kind == "Transpose" or (node.kind == "Share" and _one_share(node))


def relates(node: CompositeNode) -> bool:
    """Whether RAP's rule of a convolution is one that kernels have."""
    return bool(node.rule["split"]) and related_signs(node) and "samples" not in node.rule


def related_signs(node: CompositeNode) -> bool:
    """Whether RAP's rule is another than the release's own for an input of any sign, which shifts each half apart."""
    return bool(node.rule["x_nonnegative"] or node.rule["joint"])


def _takes_shift(node: CompositeNode) -> bool:
    """Whether a composite's kernel takes RAP's shift off the map that it reads."""
    return (
        node.kind in ("RelativeShare", "Route")
        and node.outputs <= (2 if node.kind == "RelativeShare" else 1)
        and _writes(node)
    )


def _one_share(node: CompositeNode) -> bool:
    shares = node.rule["shares"]
    if len(shares) != 1 or shares[0]["when"] or len(shares[0]["terms"]) != 1:
        return False
    term = shares[0]["terms"][0]
    return term["x"] in ("", "+", "-", "1") and bool(term["sign"] > 0)


def divides(node: CompositeNode) -> bool:
    """Whether the composite is a single share of a convolution with a stabiliser, so that its quotient says what was
    absorbed.
    """
    one = node.kind == "Share" and node.node.op_type == "Conv" and node.rule["epsilon"] > 0
    return one and _one_share(node) and node.rule["shares"][0]["scale"] == 1.0 and _writes(node)


def _same_input(upper: CompositeNode, lower: CompositeNode) -> bool:
    """Whether the upper layer's kernel can divide for the lower one: pools do by their own input alone."""
    if rank(upper.node.x) != rank(lower.node.y):
        return False
    return upper.kind != "Route" or plain_denominator(lower) is upper.node.x


def plain_denominator(node: CompositeNode) -> Value | None:
    """The forward pass's own tensor that a share divides by, where it is one."""
    term = node.rule["shares"][0]["terms"][0]
    biased = node.rule["zero_bias"] and node.extra and node.extra[0] is not None
    if term["x"] or term["w"] or biased:
        return None
    given = node.extra[1] if len(node.extra) > 1 else None
    return given if given is not None else node.node.y


def _mask(node: CompositeNode, x: Value) -> tuple[float, float] | None:
    """(low, high) where a composite multiplies by 1[low < x < high] and by nothing else; x is what was clipped."""
    if node.kind != "Gate" or node.rule["guide"] != "gradient" or node.node.y is not x or node.node.domain != "":
        return None
    if node.node.op_type == "Relu":
        return RECTIFIED
    if node.node.op_type != "Clip":
        return None
    bounds = []
    for position, none in ((1, -np.inf), (2, np.inf)):
        value = node.node.input(position).const_value if node.node.has(position) else None
        if node.node.has(position) and (value is None or value.size != 1):
            return None
        bounds.append(none if value is None else float(value.numpy().reshape(-1)[0]))
    return bounds[0], bounds[1]
