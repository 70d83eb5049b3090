"""Every operator of ONNX's own domains stands in exactly one of three lists, and what is told of it is true."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from onnx_explain import Explainer, UnsupportedOperator
from onnx_explain.operators import ROOMS
from onnx_explain.operators.coverage import DOMAINS, NOT_SUPPORTED, OPSET, standing, written_out

SCHEMAS = onnx.defs.get_all_schemas_with_history()
STANDARD = {(s.domain, s.name) for s in SCHEMAS if s.domain in DOMAINS and (s.domain != "" or s.since_version <= OPSET)}


def test_every_operator_of_the_standard_stands_in_a_list() -> None:
    assert sorted(key for key in STANDARD if standing(*key) is None) == []


def test_no_operator_stands_in_two_lists() -> None:
    supported = {key for key, room in ROOMS.items() if not room.inert} | written_out()
    inert = {key for key, room in ROOMS.items() if room.inert} - written_out()
    assert sorted((supported | inert) & set(NOT_SUPPORTED)) == []
    assert sorted(key for key in NOT_SUPPORTED if standing(*key) != "not supported") == []


def test_no_list_names_an_operator_that_the_standard_does_not_have() -> None:
    assert sorted(set(NOT_SUPPORTED) - STANDARD) == []
    newer = {(s.domain, s.name) for s in SCHEMAS}
    assert sorted(k for k, room in ROOMS.items() if room.inert and k[0] in DOMAINS and k not in newer) == []


DET = """<ir_version: 8, opset_import: ["" : 18]>
volume (float[N, 2, 2] x) => (float[N] y) { y = Det (x) }"""


def test_a_refusal_says_why_the_operator_is_not_supported() -> None:
    model = parser.parse_model(DET)
    with pytest.raises(UnsupportedOperator, match="Det.*inverse matrix"):
        Explainer(model, method="gradient")(np.ones((1, 2, 2), np.float32))


def test_the_plan_says_why_a_node_is_not_supported() -> None:
    rows, missing = Explainer(parser.parse_model(DET), method="gradient").plan()
    assert [r.reason for r in rows if r.name in missing] == [NOT_SUPPORTED["", "Det"]]
