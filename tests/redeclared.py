"""Cases at the opsets that the table leaves out: an operator's other versions, wherever the case's text is valid there.

One case per operator and version from opset 7 on, the first that builds. What ONNX Runtime has no kernel for cannot be
compared, and is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import onnx
from cases import CASES, Case

from onnx_explain.operators.coverage import OPSET

OLDEST = 7  # ONNX Runtime runs nothing older
LACKS = {("GlobalLpPool", 22), ("RoiAlign", 22)}


@cache
def versions(op_type: str) -> tuple[int, ...]:
    """The opsets of domain ai.onnx at which an operator changed, up to 24."""
    schemas = onnx.defs.get_all_schemas_with_history()
    found = {s.since_version for s in schemas if s.domain == "" and s.name == op_type and not s.deprecated}
    return tuple(sorted(v for v in found if v <= OPSET))


def version_at(op_type: str, opset: int) -> int:
    """The version in force at an opset; 0 where there is none yet."""
    return max((v for v in versions(op_type) if v <= opset), default=0)


def covered() -> dict[str, set[int]]:
    """The versions of every operator that a case has."""
    found: dict[str, set[int]] = {}
    for case in CASES:
        for op_type in case.op_types:
            found.setdefault(op_type, set()).add(version_at(op_type, case.opset))
    return found


def tested() -> dict[str, set[int]]:
    """The versions of every operator that a case has, of the table or of this one."""
    found = covered()
    for case in OTHERS:
        for op_type in case.op_types:
            found[op_type].add(version_at(op_type, case.opset))
    return found


def _others() -> Iterator[Case]:
    known, taken = covered(), set[str]()
    for op_type in sorted(known):
        plain = sorted(
            (c for c in CASES if op_type in c.op_types and not c.only_float32), key=lambda c: len(c.op_types)
        )
        for version in versions(op_type):
            if version in known[op_type] or version < OLDEST or (op_type, version) in LACKS:
                continue
            found = next(
                (c for c in (_at(c, version) for c in plain[:12]) if c is not None and str(c) not in taken), None
            )
            if found is not None:
                taken.add(str(found))
                for other in found.op_types:
                    known[other].add(version_at(other, version))
                yield found


def _at(case: Case, opset: int) -> Case | None:
    """The case declared at another opset, where that is valid."""
    moved = replace(case, name=f"{case.name.split('@')[0]}@{opset}", opset=opset, ir_version=None)
    try:
        moved.build()
    except Exception:  # whatever the parser, the checker or shape inference say: the text is of another form
        return None
    return moved


OTHERS: tuple[Case, ...] = tuple(_others())
