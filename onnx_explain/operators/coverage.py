"""The three lists: every operator of ONNX's own domains, up to opset 24, stands in exactly one of them.

Supported: it has a room, or canonical form writes it with operators that have one. No relevance: integers, strings,
random numbers and comparisons, by nature. Not supported: the reason is what a user is told. A test holds the lists
against `onnx.defs`.
"""

from __future__ import annotations

from typing import Literal

from onnx_explain.ir import apart, classic, integers, sequences, unfuse
from onnx_explain.ir.view import Operation
from onnx_explain.operators.roles import ROOMS

Standing = Literal["supported", "no relevance", "not supported"]
OPSET = 24  # of domain ai.onnx; newer operators are refused unless they have a room
DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview.training")
_TRAINING = "it trains a network; explain the trained one"
_LOSS = "it is a training loss; explain the scores before it"

NOT_SUPPORTED: dict[tuple[str, str], str] = {
    ("", "Det"): "its gradient needs an inverse matrix, which ONNX has no operator for",
    ("", "MaxRoiPool"): "its regions are rounded to whole pixels while it runs; export it as RoiAlign",
    ("", "NegativeLogLikelihoodLoss"): _LOSS,
    ("", "SoftmaxCrossEntropyLoss"): _LOSS,
    ("", "SequenceMap"): "its body runs once per tensor of a sequence; export it without the sequence",
    **{(unfuse.CLASSIC, op_type): why for op_type, why in classic.REFUSED.items()},
    ("ai.onnx.preview.training", "Adagrad"): _TRAINING,
    ("ai.onnx.preview.training", "Adam"): _TRAINING,
    ("ai.onnx.preview.training", "Gradient"): _TRAINING,
    ("ai.onnx.preview.training", "Momentum"): _TRAINING,
}
CONVERTED = ("Scatter", "Upsample")  # by ONNX's own conversion to opset 18
LEFT = {  # why a use of an operator is refused that canonical form could not write with others
    **dict.fromkeys(
        (t for t in sequences.HANDLERS if "Sequence" in t),
        "it works on a sequence of tensors whose length or place is not known before the model runs",
    ),
    **dict.fromkeys(
        (t for t in sequences.HANDLERS if "Optional" in t),
        "whether its operand is there is not known before the model runs",
    ),
}
STRAIGHTENED = ("If", "Loop", "Scan")  # written out where they do not depend on the data


def written_out() -> frozenset[tuple[str, str]]:
    """The operators that canonical form replaces by others, wholly or in some uses."""
    unfuse.register()
    apart.fill()
    integer = {*integers.MEANINGS, *(("", t) for t in integers.PRODUCTS)}
    held = (t for t in sequences.HANDLERS if ("", t) not in ROOMS)
    own = {("", t) for t in (*apart.APART, *CONVERTED, *STRAIGHTENED, *held)}
    return frozenset({*unfuse.EXPANSIONS, *integer, *own})


def standing(domain: str, op_type: str) -> Standing | None:
    """The list an operator stands in; None for one of another domain, or newer than this library."""
    key = ("" if domain == "ai.onnx" else domain, op_type)
    room = ROOMS.get(key)
    if (room is not None and not room.inert) or key in written_out():
        return "supported"
    if room is not None:
        return "no relevance"
    return "not supported" if key in NOT_SUPPORTED else None


def reason(domain: str, op_type: str) -> str | None:
    """Why an operator is not supported, as half a sentence; None where nothing is known of it."""
    if domain == unfuse.MICROSOFT:
        return unfuse.REFUSED.get(op_type)
    key = ("" if domain == "ai.onnx" else domain, op_type)
    return NOT_SUPPORTED.get(key) or (LEFT.get(op_type) if key[0] == "" else None)


def because(node: Operation) -> str:
    """The reason, ready to follow an operator in a sentence: ``": it is …"``, or nothing."""
    why = reason(node.domain, node.op_type)
    return f": {why}" if why is not None else ""
