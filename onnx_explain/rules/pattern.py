"""PatternNet and PatternAttribution: the gradient's way back with other weights (Kindermans et al. 2018, arXiv 1705.05598).

PatternNet puts the pattern a in the weight's place, PatternAttribution w ⊙ a (methods.md §7.4); biases play no part. What
follows here besides: which constants a weight is made of, so that patterns know the weight they belong to.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import MethodError, ModelError
from onnx_explain.ir import composite
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, rank
from onnx_explain.operators.roles import Linear, Sum, reduce_like
from onnx_explain.patterns import Estimator, FittedWeight, Patterns
from onnx_explain.rules import gradient
from onnx_explain.rules.share import Rule, Shares, Step, wrong_role

Array = npt.NDArray[Any]
Signal = Literal["pattern", "attribution"]
Choice = Literal["auto", "linear", "positive", "negative", "two-component"]
Fallback = Literal["zero", "linear", "filter"]


def weighted(patterns: Patterns, signal: Signal, choice: Choice, fallback: Fallback, limit: float) -> Rule:
    """Lᵀ with a (``pattern``) or w ⊙ a (``attribution``) in the weight's place; MethodError where the weight is another.

    limit: the ‖w‖‖a‖ above which `fallback` serves, as of `patterns.estimators.estimate`.
    """

    def rule(op: Emitter, step: Step) -> Shares:
        role = step.role
        if not isinstance(role, Linear) or role.weight is None:
            raise wrong_role(step, "has no weight")
        w = step.node.input(role.weight)
        fitted = _fitted(patterns, step, w)
        names = _estimators(fitted, choice)
        made = [_weight(op, patterns, fitted, w, name, signal, fallback, limit) for name in names]
        parts = [_through(op, step, role, r, weight) for (weight, _), r in zip(made, _regimes(op, step, names))]
        total = parts[0]
        for part in parts[1:]:
            total = op.typed(op.Add(total, part), step.node.input(role.data))
        # w ⊙ a shares out what there is; a alone multiplies it, by less than the sum of its entries
        grown = math.log2(1.0 + sum(size for _, size in made)) if signal == "pattern" else 0.0
        return Shares({role.data: total}, growth=grown)

    return rule


def _estimators(fitted: FittedWeight, choice: Choice) -> tuple[Estimator, ...]:
    if choice == "auto":
        return fitted.estimators()
    return ("positive", "negative") if choice == "two-component" else (choice,)


def _regimes(op: Emitter, step: Step, names: tuple[Estimator, ...]) -> list[Value]:
    """The relevance of the neurons that each estimator serves: all, or those with y > 0 and the rest."""
    if len(names) == 1:
        return [step.r]
    y = step.node.y
    firing = op.Cast(op.Greater(y, op.constant(0.0, like=y)), to=int(y.dtype or 1))
    on = op.typed(op.Mul(step.r, firing), y)
    return [on, op.typed(op.Sub(step.r, on), y)]


def _through(op: Emitter, step: Step, role: Linear, r: Value, weight: Value) -> Value:
    """Lᵀ r with another weight: the gradient's own composite, so that its kernels serve here too."""
    inputs = [*step.node.inputs]
    inputs[role.weight or 0] = weight
    node = replace(step.node, inputs=tuple(inputs))
    return composite.emit(op, "Transpose", r, node, like=[step.node.input(role.data)])[0]


def _weight(
    op: Emitter,
    patterns: Patterns,
    fitted: FittedWeight,
    w: Value,
    name: Estimator,
    signal: Signal,
    fallback: Fallback,
    limit: float,
) -> tuple[Value, float]:
    """a or w ⊙ a as an expression of constants, which is folded before anything runs, and the sum of all |a|."""
    found = patterns.estimate(fitted.node, name, limit=limit)
    rows = found.rows
    if fallback == "linear" and name != "linear":
        rows = np.where(found.zeroed[:, None], patterns.estimate(fitted.node, "linear").rows, rows)
    # the operator multiplies by its scale once more, which w ⊙ a is meant to have and a alone is not
    a = fitted.layout.weight(rows)
    pattern = op.constant(a if signal == "attribution" else a / fitted.scale, like=w)
    size = float(np.abs(a).sum() / abs(fitted.scale))
    if fallback == "filter" and found.zeroed.any():
        shares = np.where(found.zeroed & (fitted.sums.norm > 0), 1.0, 0.0) / np.where(
            fitted.sums.norm > 0, fitted.sums.norm, 1.0
        )
        factor = fitted.scale if signal == "attribution" else 1.0  # S_w = w/(wᵀw) of w with the scale in it
        pattern = op.typed(op.Add(pattern, op.Mul(w, op.constant(fitted.layout.spread(shares * factor), like=w))), w)
    return (pattern if signal == "pattern" else op.typed(op.Mul(w, pattern), w)), size


def _fitted(patterns: Patterns, step: Step, w: Value) -> FittedWeight:
    """The entry of this node, if it was fitted on this very weight."""
    fitted = patterns.weight(step.node.name)
    where = "the patterns were fitted on another model; fit this one with `onnx-explain fit-patterns`"
    if fitted.layout.shape != tuple(d if isinstance(d, int) else -1 for d in w.shape or ()):
        raise MethodError(
            f"{step.node.where}: its weight {fitted.weight!r} has not the shape {list(fitted.layout.shape)} of its pattern: {where}."
        )
    if fingerprint(w) != fitted.sha256:
        raise MethodError(
            f"{step.node.where}: its weight {fitted.weight!r} differs from the one its pattern belongs to: {where} "
            "(or a tensor before its BatchNormalization is explained or kept, which prevents folding)."
        )
    if fingerprint(step.bias) != fitted.bias_sha256:
        raise MethodError(f"{step.node.where}: its bias differs from the one its pattern belongs to: {where}.")
    return fitted


def covariance(patterns: Patterns) -> Rule:
    """A Sum as a linear neuron y = Σ c_k u_k: operand k gets cov(c_k·u_k, y)/var(y) per channel (methods.md §7.4)."""

    def rule(op: Emitter, step: Step) -> Shares:
        if not isinstance(step.role, Sum):
            raise wrong_role(step, "does not add")
        fitted = patterns.sum(step.node.name)
        active = sorted(step.node.active)
        if fitted is None:
            if len(active) < 2:
                return gradient.adjoint(op, step)
            raise MethodError(
                f"{step.node.where}: the patterns hold no covariances for it; fit them on this model and output."
            )
        shares = fitted.sums.split()
        y = step.node.y
        channels = y.shape[fitted.axis] if y.shape is not None and fitted.axis < rank(y) else None
        if len(shares) != len(active) or channels != shares.shape[1]:
            raise MethodError(f"{step.node.where}: its covariances were fitted on another model; fit them on this one.")
        passed = np.asarray([step.role.coefficients[k] for k in active])[:, None]
        shares = np.where(np.isnan(shares), passed, shares)
        after = [1] * (rank(y) - fitted.axis - 1)
        return Shares(
            {
                k: reduce_like(
                    op, op.typed(op.Mul(step.r, op.constant(share.reshape(-1, *after), like=y)), y), step.node.input(k)
                )
                for k, share in zip(active, shares)
            }
        )

    return rule


# -- which weight it is


def fingerprint(value: Value | None) -> str:
    """SHA-256 of the constants behind a weight and how they are put together; the same in float32 and widened to float64.

    Raises ModelError where the weight is not constant.
    """
    digest = hashlib.sha256()
    for part in _expression(value) if value is not None else ():
        tensor = part.const_value
        if tensor is None:
            node = part.producer()
            digest.update(f"{node.op_type if node is not None else part.name}|".encode())
            continue
        array = tensor.numpy()
        kind = array.dtype.kind
        digest.update(f"{kind}{array.shape}|".encode())
        wide = array.astype(np.float32) if kind not in "biu" else array.astype(np.int64)
        digest.update(np.ascontiguousarray(wide).data)
    return digest.hexdigest()


def _expression(value: Value) -> Iterator[Value]:
    """The values that a constant is made of, operands first."""
    if value.const_value is None:
        node = value.producer()
        if node is None:
            raise ModelError(
                f"The weight {value.name!r} is an input of the model, so it has no pattern; make it a constant."
            )
        for operand in node.inputs:
            if operand is not None:
                yield from _expression(operand)
    yield value


def ancestors(values: list[Value]) -> list[ir.Node]:
    """The nodes that compute constants, each after those it reads."""
    found: dict[int, ir.Node] = {}
    for value in values:
        for part in _expression(value):
            node = part.producer()
            if part.const_value is None and node is not None:
                found.setdefault(id(node), node)
    return list(found.values())
