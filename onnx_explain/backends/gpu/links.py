"""Which composites are done together with the one above: between Relu layers a kernel divides for the layer below, and
the gradient's Relu mask is its numerator. Read off the graph before anything is lowered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from onnx_explain.backends.gpu.calls import conv_geometry, is_constant, pool_geometry
from onnx_explain.ir import composite
from onnx_explain.ir.composite import CompositeNode
from onnx_explain.ir.view import Value, rank


@dataclass(frozen=True)
class Link:
    """A composite's place in a chain.

    `below`: the Share composite for which this one's kernel divides. `divided`: `r` has been divided by the kernel above.
    `masked`: this one's kernel multiplies by the Relu mask of the layer below. `absorbed_by_above`: this Gate is that mask.
    """

    below: CompositeNode | None = None
    divided: bool = False
    masked: bool = False
    absorbed_by_above: bool = False


def links(graph: ir.Graph) -> dict[int, Link]:
    """Links by the identity of composite nodes; those that stand alone have none."""
    ours = [n for n in graph if n.domain == composite.DOMAIN]
    found: dict[int, Link] = {}
    for node in ours:
        below = _alone(node.outputs[0])
        if below is None or below.domain != composite.DOMAIN or below.inputs[0] is not node.outputs[0]:
            continue
        upper, lower = composite.read(node), composite.read(below)
        if not _writes(upper):
            continue
        if upper.kind in ("Transpose", "Route") and _is_mask(lower, upper.node.x):
            found[id(node)] = replace(found.get(id(node), Link()), masked=True)
            found[id(below)] = Link(absorbed_by_above=True)
        elif upper.kind in ("Share", "Route") and divides(lower) and _same_input(upper, lower):
            found[id(node)] = replace(found.get(id(node), Link()), below=lower)
            found[id(below)] = Link(divided=True)
    return found


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
    return node.kind == "Transpose" or (node.kind == "Share" and _one_share(node))


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


def _is_mask(node: CompositeNode, x: Value) -> bool:
    """Whether a composite multiplies by 1[x > 0] and nothing else."""
    return node.kind == "Gate" and node.rule["guide"] == "gradient" and node.node.op_type == "Relu" and node.node.y is x
