"""Sequences of tensors at constant places are plain tensors in canonical form; what depends on the data is refused by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

from onnx_explain import Explainer, UnsupportedOperator
from onnx_explain.backends.onnx import lower
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.model import load

X = np.arange(12, dtype=np.float32).reshape(2, 6) / 7
BODIES = {
    "built": "a = Neg(x); s = SequenceConstruct(x, a); b = SequenceAt(s, one); y = Mul(b, two)",
    "from-the-end": "a = Neg(x); s = SequenceConstruct(x, a); b = SequenceAt(s, last); y = Mul(b, two)",
    "inserted": "a = Neg(x); e = SequenceEmpty(); s = SequenceInsert(e, x); t = SequenceInsert(s, a, zero); y = SequenceAt(t, one)",
    "erased": "a = Neg(x); s = SequenceConstruct(x, a, x); t = SequenceErase(s, zero); y = SequenceAt(t, zero)",
    "split": "s = SplitToSequence<axis=1>(x, sizes); a = SequenceAt(s, one); b = SequenceAt(s, zero); y = Concat<axis=1>(a, b)",
    "split-by-count": "s = SplitToSequence<axis=1>(x, four); a = SequenceAt(s, one); y = Mul(a, two)",
    "split-to-one": "s = SplitToSequence<axis=1,keepdims=0>(x); a = SequenceAt(s, one); y = Mul(a, two)",
    "joined": "a = Neg(x); s = SequenceConstruct(x, a); y = ConcatFromSequence<axis=1>(s)",
    "stacked": "a = Neg(x); s = SequenceConstruct(x, a); y = ConcatFromSequence<axis=1,new_axis=1>(s)",
    "counted": "a = Neg(x); s = SequenceConstruct(x, a, a); n = SequenceLength(s); f = Cast<to=1>(n); y = Mul(x, f)",
    "through-identity": "s = SequenceConstruct(x, x); t = Identity(s); y = SequenceAt(t, zero)",
    "optional": "o = Optional(x); y = OptionalGetElement(o)",
    "there": "h = OptionalHasElement(x); f = Cast<to=1>(h); y = Mul(x, f)",
}
CONSTANTS = (
    "<int64 zero = {0}, int64 one = {1}, int64 last = {-1}, int64 four = {4}, int64[2] sizes = {2, 4}, float two = {2}>"
)


SHAPES = {
    BODIES["split-by-count"]: "N, 2",
    BODIES["split-to-one"]: "N",
    BODIES["joined"]: "N, 12",
    BODIES["stacked"]: "N, 2, 6",
}


def model(body: str) -> onnx.ModelProto:
    head = f'<ir_version: 8, opset_import: ["" : 18]> case (float[N, 6] x) => (float[{SHAPES.get(body, "N, 6")}] y)'
    return parser.parse_model(f"{head} {CONSTANTS} {{ {body.replace(';', chr(10))} }}")


def run(proto: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X})[0])


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_tensors_stand_in_for_the_sequence_that_holds_them(body: str) -> None:
    proto = model(body)
    canonical = canonicalize(load(proto).model)
    assert not any("Sequence" in n.op_type or "Optional" in n.op_type for n in canonical.graph)
    np.testing.assert_array_equal(run(ir.to_proto(lower(canonical))), run(proto))


def test_relevance_passes_a_sequence() -> None:
    e = Explainer(model(BODIES["split"]), method="gradient")(X, target=1)
    assert e.relevance["x"].tolist() == [[0, 0, 0, 1, 0, 0]] * 2


def test_a_place_that_depends_on_the_data_is_refused_with_the_reason() -> None:
    body = (
        "a = Neg(x); s = SequenceConstruct(x, a); m = ReduceMax<keepdims=0>(x); i = Cast<to=7>(m); y = SequenceAt(s, i)"
    )
    with pytest.raises(UnsupportedOperator, match="sequence of tensors whose length or place is not known"):
        Explainer(model(body), method="gradient")(X, target=0)
