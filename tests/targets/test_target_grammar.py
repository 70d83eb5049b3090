"""How target expressions are read: what users write, and what hostile text does not do."""

from __future__ import annotations

import time

import pytest
from drawn_expressions import broken, scalars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnx_explain import TargetError
from onnx_explain.target import Parsed, parse
from onnx_explain.target.grammar import (
    LONGEST,
    Binary,
    Call,
    Index,
    Listed,
    Number,
    Rest,
    Span,
    Tensor,
    parse_expression,
)

ALL = Span()
SCORES = Index(Tensor("scores"), (0, ALL, 17))


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("scores[0,:,17].max()", Call(SCORES, "max")),
        ("a - b*2", Binary("-", Tensor("a"), Binary("*", Tensor("b"), Number(2.0)))),
        ("a - b - 1", Binary("-", Binary("-", Tensor("a"), Tensor("b")), Number(1.0))),
        ("a > 0 & b <= 3", Binary("&", Binary(">", Tensor("a"), Number(0.0)), Binary("<=", Tensor("b"), Number(3.0)))),
        ("x[..., [3,7], ::-2]", Index(Tensor("x"), (Rest(), Listed((3, 7)), Span(None, None, -2)))),
        ("x[-1, 1:, :2]", Index(Tensor("x"), (-1, Span(1), Span(None, 2)))),
        ("boxes[0, scores[0,:,17].argmax(), 2]", Index(Tensor("boxes"), (0, Call(SCORES, "argmax"), 2))),
        ("m.sum(axis=(1, 2))", Call(Tensor("m"), "sum", (), (1, 2))),
        ("m.max(-1)", Call(Tensor("m"), "max", (), (-1,))),
        ("m.topk(3, axis=1)", Call(Tensor("m"), "topk", (), (1,), 3)),
        ("m.where(k == 3)", Call(Tensor("m"), "where", (Binary("==", Tensor("k"), Number(3.0)),))),
    ],
)
def test_an_expression_is_read_as_it_looks(text: str, tree: object) -> None:
    assert parse_expression(text) == tree


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/model.22/Concat_output_0[0,3].max()", "/model.22/Concat_output_0"),
        ("serving_default_input:0.max()", "serving_default_input:0"),
        ("onnx::Conv_23[0].sum()", "onnx::Conv_23"),
        ("mask.1.max()", "mask.1"),
        ("conv-bn[0].max()", "conv-bn"),
        ("'485'[0].max()", "485"),
        ("'a name (with [brackets])'[0].max()", "a name (with [brackets])"),
        ('"it\'s"[0].max()', "it's"),
        (r"'it\'s'[0].max()", "it's"),
        ("größe[0].max()", "größe"),
    ],
)
def test_names_of_real_exporters_are_names(text: str, name: str) -> None:
    tree = parse_expression(text)
    assert isinstance(tree, Call)
    inner = tree.of.of if isinstance(tree.of, Index) else tree.of
    assert inner == Tensor(name)


def test_a_sign_behind_an_operand_is_an_operator() -> None:
    assert parse_expression("a[0,3]-b[0,5]") == Binary("-", Index(Tensor("a"), (0, 3)), Index(Tensor("b"), (0, 5)))
    assert parse_expression("a[0]/b[1]") == Binary("/", Index(Tensor("a"), (0,)), Index(Tensor("b"), (1,)))
    assert parse_expression("a /2") == Binary("/", Tensor("a"), Number(2.0))


def test_the_plain_forms_stay_what_they_were() -> None:
    assert parse("17") == Parsed("17", index=17)
    assert parse("out[0][:,2]").output == "out[0]"
    assert parse("scores[ : , 2 ]").element == (None, 2)
    assert parse("a[0,1]b[:,2]").expression is None, "no expression, but an output may be called that"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x[0", "']' is missing"),
        ("x.foo()", "no method"),
        ("x.maxx()", "Did you mean 'max'"),
        ("a < b < c", "two values"),
        ("x[1.5].max()", "whole number"),
        ("x[99999999999].max()", "whole number"),
        ("x[::0].max()", "step"),
        ("1e999 + x", "too large"),
        ("x.where()", "condition"),
        ("x $ y", "'$'"),
        ("eval('1')", "does not belong"),
        ("__import__('os').system('ls')", "does not belong"),
        ("(lambda: 0)()", "')'"),
        ("", "wanted"),
        ("x.max() x", "does not belong"),
    ],
)
def test_a_fault_is_told_with_its_place_and_what_would_do(text: str, told: str) -> None:
    with pytest.raises(TargetError, match="not understood at character") as caught:
        parse_expression(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(scalars(), st.integers(0, 2**32))
def test_no_text_does_anything_but_parse_or_raise_our_error(text: str, seed: int) -> None:
    """10 400 strings: 400 drawn from the grammar, each broken in 25 ways."""
    for written in (text, *broken(text, seed, 25)):
        try:
            assert isinstance(parse(written), Parsed)
        except TargetError as error:
            assert len(str(error)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "(" * 100_000 + "x" + ")" * 100_000,
        "x[" * 2000,
        "-" * 2000 + "x",
        "~" * 2000 + "x",
        "x" + ".max()" * 600,
        "+".join(["x"] * 2000),
        "x" * 1_000_000,
        "a." * 2000 + "b",
        "x[" + "9" * 4000 + "]",
        "x[" + "1," * 2000 + "1]",
        "'" * 4001,
        "1" * 4000 + "+x",
        "yolo:" + "9" * 100_000,
        "[" * 1_000_000,
    ],
    ids=lambda text: f"{text[:6]}…{len(text)}",
)
def test_hostile_text_is_refused_at_once(text: str) -> None:
    started = time.perf_counter()
    try:
        parse(text)
    except TargetError as error:
        assert len(str(error)) < 500
    assert time.perf_counter() - started < 2


def test_the_longest_expression_is_read() -> None:
    text = "x[0,3]" + " " * (LONGEST - 12) + ".max()"
    assert parse_expression(text) == Call(Index(Tensor("x"), (0, 3)), "max")
