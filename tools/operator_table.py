"""The page of operators, docs/operators.md: the three lists, roles, versions and refusals. `tools/tables.py` writes it.

The roles an operator takes, and the versions that are tested, are those of the table of cases (tests/cases.py) and of its
cases at other opsets (tests/redeclared.py).
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cases import CASES  # noqa: E402
from redeclared import OLDEST, tested, versions  # noqa: E402

from onnx_explain.errors import UnsupportedOperator  # noqa: E402
from onnx_explain.ir import apart, integers, sequences, unfuse  # noqa: E402
from onnx_explain.ir.canonicalize import canonicalize  # noqa: E402
from onnx_explain.ir.model import load  # noqa: E402
from onnx_explain.ir.seen import MOST  # noqa: E402
from onnx_explain.ir.view import Operation  # noqa: E402
from onnx_explain.operators import NO_RELEVANCE, NO_RELEVANCE_ML, ROOMS, find  # noqa: E402
from onnx_explain.operators.coverage import CONVERTED, NOT_SUPPORTED, OPSET, written_out  # noqa: E402
from onnx_explain.operators.roles import Linear, Role  # noqa: E402

NOTE = "<!-- written by tools/tables.py; do not edit -->\n\n"
CLASSIC, MICROSOFT = "ai.onnx.ml", "com.microsoft"

SIGNS = {"any": "", "nonnegative": "≥ 0", "inherits": "as operands", "floored": "as its lower bound"}
ROLES = ("Linear", "Sum", "Product", "Pointwise", "Selection", "Rearrangement", "Normalization")

ELSEWHERE = {  # where an operator is tested that the table of cases cannot hold
    "Attention": "tests/test_contrib.py",
    "DequantizeLinear": "tests/test_quantised.py",
    "GRU": "tests/test_recurrent.py",
    "If": "tests/test_control_flow.py",
    "LSTM": "tests/test_recurrent.py",
    "Loop": "tests/test_control_flow.py",
    "QLinearConv": "tests/test_quantised.py",
    "QLinearMatMul": "tests/test_quantised.py",
    "RNN": "tests/test_recurrent.py",
    "RotaryEmbedding": "tests/test_contrib.py",
    "Scan": "tests/test_control_flow.py",
    **dict.fromkeys(sequences.HANDLERS, "tests/test_sequences.py"),
}
HOW = {
    **dict.fromkeys(sequences.HANDLERS, "the tensors it holds, where lengths and places are stated"),
    **dict.fromkeys((t for t in sequences.HANDLERS if "Optional" in t), "its operand, where there is one"),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), "products and sums, step by step: see below"),
    "Conv": "without its bias, and an Add, where weight or bias are computed from an input",
    "ConvTranspose": "the same",
    "Gemm": "the same",
    "QLinearConv": "Conv of the dequantised tensors",
    "QLinearMatMul": "MatMul of the dequantised tensors",
    "ScatterElements": "with a reduction: a scatter into its neutral element, joined with the data",
    "ScatterND": "the same",
    "Constant": "the number it holds",
    "ConvInteger": "Conv of the dequantised tensors",
    "If": "its branch, where the condition does not depend on the data",
    "Loop": "its rounds, where their number does not depend on the data",
    "MatMulInteger": "MatMul of the dequantised tensors",
    "ReduceL1": "the sum of magnitudes",
    "ReduceLogSum": "the logarithm of a sum",
    "ReduceSumSquare": "the sum of squares",
    "Scan": "its steps, where the sequence's length does not depend on the data",
    "Scatter": "ScatterElements, by ONNX's conversion of opsets",
    "Upsample": "Resize, by ONNX's conversion of opsets",
}

ROOMS_SAY = """\
Every operator of domain `ai.onnx` up to opset {opset}, and of `ai.onnx.ml`, stands in exactly one of three lists: supported, no
relevance by nature, not supported (with the reason). A test holds the lists against `onnx.defs`; `onnx-explain check MODEL`
tells the same of a model of yours.

An operator's *room* says what it is; its role decides which rule of a method serves it ([methods.md](methods.md)). Models of
older opsets are brought to opset 18 first; newer ones stay as they are. *Versions*: the opsets at which the operator changed,
those that a test runs; in brackets those that none does (ONNX Runtime runs nothing older than {oldest}, and has no kernel for a
few); a row that names a test file lists all of them, of which that file runs some. *Sign*: what is known of the result without looking at numbers (*as operands*: ≥ 0 where they all are); rules use it to
leave out work."""

WRITTEN_OUT = """\
`LSTM`, `GRU` and `RNN` have no room of their own: canonical form writes them as one product of all time steps, then the
steps one by one, named `<layer>/<direction>/<step>/…` (`onnx_explain/ir/recurrent.py`). Every direction, layout, activation,
`clip`, `input_forget`, `linear_before_reset`, initial states and lengths. Their gates weigh the signal: no LRP rule gives
them relevance. Refused on the way, and left alone elsewhere: peepholes that are not zero, a sequence length that is not known
(`--input-shape` tells it), more than {most:,} nodes in one layer.

`If`, `Loop` and `Scan` are written out where they do not depend on the data: a condition, a number of rounds or a length
that the file states or that follows from the input's shapes, up to {most:,} nodes for all loops of a model
(`onnx_explain/ir/straighten.py`). What depends on the data is refused on the way, and left alone elsewhere."""

WRITTEN = """\
Canonical form writes these with operators that have a room, wholly or in the uses named; a plan shows those."""

MICROSOFT_SAYS = """\
ONNX Runtime's own operators (`com.microsoft`) are written with primitives where an expansion is exact: {names}; integer operators
through their dequantised meaning: {integer}. Refused by name:"""

CLASSIC_SAYS = """\
Of `ai.onnx.ml`, which scikit-learn's exporter writes, these are written with primitives: {names}. No relevance: {inert}."""

REFUSED = """\
What is not supported is refused (`UnsupportedOperator`, with the reason below) where it lies between an explained input and the
target; elsewhere it does not matter. A model's own functions are inlined first."""


# ------------------------------------------------------------------------------------------- cases


def active_nodes(model: onnx.ModelProto, inputs: set[str] | None = None) -> Iterator[tuple[Operation, Role]]:
    """Every operation that depends on an input, with its role; without those that have none or are refused."""
    graph = canonicalize(load(model).model).graph
    live = {id(v) for v in graph.inputs if inputs is None or v.name in inputs}
    version = graph.opset_imports.get("", 0)
    for node in graph:
        active = frozenset(i for i, v in enumerate(node.inputs) if v is not None and id(v) in live)
        if not active:
            continue
        live.update(id(v) for v in node.outputs if v.dtype is None or v.dtype.is_floating_point())
        operation = Operation.of(node, active, version)
        found = find(operation)
        if found is None:
            continue
        try:
            yield operation, found.role(operation)
        except UnsupportedOperator:
            continue


# ------------------------------------------------------------------------------------------- the page


def operators_page() -> str:
    """docs/operators.md."""
    seen = roles_in_cases()
    parts = ["# Operators", NOTE.strip(), ROOMS_SAY.format(opset=OPSET, oldest=OLDEST)]
    for role in ROLES:
        names = [
            op for domain, op in sorted(ROOMS) if domain == "" and any(name == role for name, _ in seen.get(op, ()))
        ]
        rows = [
            (f"`{op}`", _versions(op), _kinds(seen[op], role), meaning(op), SIGNS[ROOMS["", op].sign]) for op in names
        ]
        heads = ("operator", "versions", "kind", "what it does", "sign")
        drop = 2 if role != "Linear" else None
        parts += [f"## {role}", table(_without(heads, drop), [_without(row, drop) for row in rows])]
    parts += ["## Written with others", WRITTEN, _written()]
    parts += ["## Recurrences and control flow", WRITTEN_OUT.format(most=MOST)]
    parts += [
        "## No relevance",
        "Integers, strings, comparisons, random numbers, constants: relevance stops there by nature, and is not needed behind "
        f"them.\n\n{_named(NO_RELEVANCE)}; `Cast` and `CastLike` from or to integers.",
        "## Other domains",
        _microsoft(),
        table(("operator", "because"), [(f"`{op}`", why) for op, why in sorted(unfuse.REFUSED.items())]),
        CLASSIC_SAYS.format(names=_named(op for d, op in written_out() if d == CLASSIC), inert=_named(NO_RELEVANCE_ML)),
        "## Not supported",
        REFUSED,
        table(("operator", "because"), [(f"`{_whole(*key)}`", why) for key, why in sorted(NOT_SUPPORTED.items())]),
        "These forms of operators with a room are refused too:",
        table(("operator", "form"), refusals()),
    ]
    return "\n\n".join(parts) + "\n"


def _whole(domain: str, op_type: str) -> str:
    return f"{domain}.{op_type}" if domain else op_type


def _named(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _versions(op_type: str) -> str:
    """The versions a case runs, and in brackets the others; or where else it is tested."""
    if op_type in ELSEWHERE and op_type not in tested():
        return f"{', '.join(map(str, versions(op_type)))}: see `{ELSEWHERE[op_type]}`"
    known, said = tested().get(op_type, set()), versions(op_type)
    runs, rest = ([str(v) for v in said if (v in known) == wanted] for wanted in (True, False))
    return " ".join(part for part in (", ".join(runs), f"({', '.join(rest)})" if rest else "") if part) or "-"


def _written() -> str:
    rows = []
    for domain, op in sorted(written_out()):
        if domain != "" or not (versions(op) or op in CONVERTED):
            continue
        rows.append((f"`{op}`", _versions(op), HOW.get(op) or _how(op)))
    return table(("operator", "versions", "written as"), rows)


def _how(op: str) -> str:
    """The first sentence of what writes it."""
    function = unfuse.EXPANSIONS.get(("", op)) or integers.MEANINGS.get(("", op))
    if function is None and op in apart.APART:
        function = apart.APART[op][1]  # type: ignore[assignment]
    return first_sentences(function) if function is not None and function.__doc__ else ""


def _microsoft() -> str:
    integer = {op for domain, op in integers.MEANINGS if domain == MICROSOFT}
    fused = {op for domain, op in unfuse.EXPANSIONS if domain == MICROSOFT}
    return MICROSOFT_SAYS.format(names=_named(fused), integer=_named(integer))


@cache
def roles_in_cases() -> dict[str, frozenset[tuple[str, str]]]:
    """(role, kind) of every operator, as met in the table of cases."""
    found: dict[str, set[tuple[str, str]]] = {}
    for case in CASES:
        for operation, role in active_nodes(case.build(), set(case.inputs)):
            kind = role.kind if isinstance(role, Linear) else ""
            found.setdefault(operation.op_type, set()).add((type(role).__name__, kind))
    return {op_type: frozenset(roles) for op_type, roles in found.items()}


def _without(cells: tuple[str, ...], index: int | None) -> tuple[str, ...]:
    return tuple(cell for i, cell in enumerate(cells) if i != index)


def _kinds(roles: frozenset[tuple[str, str]], role: str) -> str:
    return ", ".join(sorted(kind for name, kind in roles if name == role))


def meaning(op_type: str) -> str:
    """The first sentence of the room."""
    return first_sentences(ROOMS["", op_type].role)


def refusals() -> list[tuple[str, str]]:
    """What rooms refuse, read off their source."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "onnx_explain" / "operators").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                served = _served(path.stem, function.name)
                for message in _raised(function):
                    found.setdefault(message, set()).update(served)
    return sorted((", ".join(f"`{op}`" for op in sorted(served)), message) for message, served in found.items())


def _served(module: str, function: str) -> set[str]:
    """The operators a function of `operators/` serves: those whose room it is, else those of its module."""
    rooms = {
        op: r.role for (domain, op), r in ROOMS.items() if domain == "" and r.role.__module__.endswith(f".{module}")
    }
    return {op for op, role in rooms.items() if role.__name__ == function} or set(rooms)


def _raised(function: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and ast.unparse(node.exc.func) == "UnsupportedOperator"
        ):
            text = node.exc.args[0]
            pieces = text.values if isinstance(text, ast.JoinedStr) else [text]
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in pieces).removeprefix("…: ")


# ------------------------------------------------------------------------------------------- text


def first_sentences(thing: Any) -> str:
    """The first paragraph of a docstring, on one line, without references to the specification."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()).replace("``", "`")
    head, colon, rest = text.partition(": ")
    if head.startswith("§"):
        text = rest if colon else ""
    return text


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
