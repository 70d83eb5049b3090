"""Relative sectional propagation by name."""

from __future__ import annotations

import re
from typing import Literal

from onnx_explain.errors import MethodError
from onnx_explain.methods.lrp import FIRST, GATED, WEIGHTED
from onnx_explain.methods.registry import Assignment, Composite, Selector, Turn, register_method
from onnx_explain.operators.roles import Linear, Normalization, Product, Rearrangement, Selection, Sum
from onnx_explain.rules import gradient, lrp, rap, rsp
from onnx_explain.rules.lrp import Bounds

_NAM = "Nam, Choi, Lee: Interpreting deep neural networks with RSP, AAAI 2021 (arXiv 2012.03434)"
Hostile = int | str | tuple[int, ...] | list[int] | None


@register_method("rsp", "the target's section of the last feature map, against those of hostile classes", _NAM)
def _rsp(
    variant: Literal["general", "published"] = "general",
    hostile: Hostile = None,
    layer: str | None = None,
    purge: bool = False,
    low: Bounds | None = None,
    high: Bounds | None = None,
) -> Composite:
    published = variant == "published"
    drop = rap.dropping_at_zero
    average = rsp.pooled if published else rap.pooled(drop=False)
    rows = (
        Assignment(FIRST, rap.box(low, high), "zᴮ of the picture"),
        Assignment(WEIGHTED, rsp.hidden(published=published, purge=purge), "RSP"),
        Assignment(Selector(role=Linear, kind="average"), average, "ratio"),
        Assignment(Selector(role=Linear, kind="normalisation"), drop if published else lrp.passing, "pass"),
        Assignment(Selector(role=Sum), rsp.summed(published=published), "[x]₊ ratio"),
        Assignment(Selector(role=Rearrangement, operators=("Concat",)), drop if published else gradient.undo, "undo"),
        Assignment(Selector(role=Selection), gradient.route, "winner takes all"),
        Assignment(Selector(role=Rearrangement), gradient.undo, "undo"),
        Assignment(GATED, lrp.product("signal"), "signal takes all"),
        Assignment(Selector(role=Product), lrp.product("uniform"), "uniform"),
        Assignment(Selector(role=Normalization), lrp.normalization(1e-6), "pass"),
        Assignment(Selector(), lrp.passing, "pass"),
    )
    turn = Turn(rsp.sections(published=published), layer, _classes(hostile))
    return Composite(rows, "pass" if published else "fold", turn=turn)


def _classes(hostile: Hostile) -> tuple[int, ...] | int:
    """The hostile classes as a turn takes them: indices, or how many of the highest others; MethodError."""
    if hostile is None:
        return 0
    if isinstance(hostile, str):
        text = hostile.strip()
        if not text or text.lower() == "none":
            return 0
        top = re.fullmatch(r"top-(\d+)", text)
        if top:
            return int(top.group(1))
        parts = [p.strip() for p in text.split(",")]
        if all(re.fullmatch(r"\d+", p) for p in parts):
            return _listed([int(p) for p in parts])
    elif isinstance(hostile, (tuple, list)):
        if all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in hostile):
            return _listed(list(hostile))
    elif isinstance(hostile, int) and not isinstance(hostile, bool) and hostile >= 0:
        return (hostile,)
    raise MethodError(
        f"Method 'rsp': hostile must name classes (3, `3,7`), or say how many of the highest others (`top-3`), not {hostile!r}."
    )


def _listed(classes: list[int]) -> tuple[int, ...] | int:
    """Each class once, in order; none at all is no hostile class."""
    return tuple(dict.fromkeys(classes)) or 0
