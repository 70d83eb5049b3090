"""Relative attributing propagation by name."""

from __future__ import annotations

from typing import Literal

from onnx_explain.methods.lrp import FIRST, GATED, WEIGHTED
from onnx_explain.methods.registry import Assignment, Composite, Selector, register_method
from onnx_explain.operators.roles import Linear, Normalization, Product, Rearrangement, Selection, Sum
from onnx_explain.rules import gradient, lrp, rap
from onnx_explain.rules.lrp import Bounds

_NAM = "Nam et al.: Relative attributing propagation, AAAI 2020 (arXiv 1904.00605)"


@register_method("rap", "what speaks for and what against, set apart by one shift per layer", _NAM)
def _rap(
    variant: Literal["general", "published"] = "general",
    low: Bounds | None = None,
    high: Bounds | None = None,
    sums: Literal["auto", "signed", "absolute"] = "auto",
) -> Composite:
    published = variant == "published"
    drop = rap.dropping_at_zero
    rows = (
        Assignment(
            Selector(role=Linear, kind="weighted", last=True),
            rap.first_propagation(published=published),
            "first propagation",
        ),
        Assignment(FIRST, rap.box(low, high), "zᴮ of the picture"),
        Assignment(WEIGHTED, rap.hidden(joint=not published), "RAP"),
        Assignment(Selector(role=Linear, kind="average"), rap.pooled(drop=published), "ratio"),
        Assignment(Selector(role=Linear, kind="normalisation"), drop if published else lrp.passing, "pass"),
        Assignment(Selector(role=Sum), rap.summed(drop=published, mode="signed" if published else sums), "ratio"),
        Assignment(
            Selector(role=Selection, operators=("MaxPool",)), drop if published else gradient.route, "winner takes all"
        ),
        Assignment(Selector(role=Rearrangement, operators=("Concat",)), drop if published else gradient.undo, "undo"),
        Assignment(Selector(role=Selection), gradient.route, "winner takes all"),
        Assignment(Selector(role=Rearrangement), gradient.undo, "undo"),
        Assignment(GATED, lrp.product("signal"), "signal takes all"),
        Assignment(Selector(role=Product), lrp.product("uniform"), "uniform"),
        Assignment(Selector(role=Normalization), lrp.normalization(1e-6), "pass"),
        Assignment(Selector(), lrp.passing, "pass"),
    )
    return Composite(rows, "pass" if published else "fold", first_propagation=True)
