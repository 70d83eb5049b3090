"""All points of a method as one graph: the model, and a Loop whose body is one step and the sum so far.

The body reads the weights of the model around it, so that the file grows by nodes alone. In ONNX Runtime's CPU provider a step
of integrated gradients costs 1.02 times the explained gradient's run on ResNet-18 and 0.99 times on VGG-16 (`ir.loop`
says what that takes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ensembles import stepping
from onnx_explain.ensembles.placing import Places, baseline_rows, places
from onnx_explain.ensembles.stepping import Step
from onnx_explain.errors import MethodError
from onnx_explain.ir import composite
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.halves import HALVES
from onnx_explain.ir.loop import loop
from onnx_explain.ir.prune import keep_outputs
from onnx_explain.ir.splice import Twin, splice
from onnx_explain.ir.view import Value
from onnx_explain.methods.ensemble import Ensemble
from onnx_explain.path import explained_tensor, tensors
from onnx_explain.relevance import Options, RelevanceGraph
from onnx_explain.relevance.graph import verify
from onnx_explain.relevance.seed import Targets, start

Array = npt.NDArray[Any]
_DOUBLE = ir.DataType.DOUBLE


def graph(model: ir.Model, ensemble: Ensemble, options: Options, *, method: str) -> RelevanceGraph:
    """The explained model as one graph: outputs of the canonical model first, ``<tensor>_relevance`` after.

    Raises MethodError for adaptive refinement, whose number of steps no file can know, and as `explain` does.
    """
    if ensemble.tolerance is not None:
        raise MethodError(
            f"Method {method!r} with a tolerance decides its steps while it runs and is not one graph; give `steps` alone."
        )
    where = places(model, ensemble, options)
    rows = baseline_rows(model, ensemble, where) if ensemble.points == "baselines" else {}
    step = stepping.step(model, ensemble, replace(options, fixed=False), where, method=method)
    main = model.clone()
    op, known = Emitter(main.graph), tensors(main)
    inputs = tuple(v.name or "" for v in main.graph.inputs)
    outputs = tuple(v.name or "" for v in main.graph.outputs)
    chosen = Targets(op).chosen(0, options.chosen, fixed=options.fixed)
    y = explained_tensor(main, options.output, logits=options.logits)
    begun = start(op, y, chosen, by_sample=step.graph.by_sample)
    others = _others(op, main, ensemble, where, known)
    body = composite.expand(step.graph.model)
    state = _accumulate(body, step, ensemble, rows, known)
    captured = {n: known[n] for n in inputs} | {step.graph.target_input: begun.index}
    captured |= {v: known[n] for n, v in step.starts.items()}
    captured |= {v: others[n] for n, v in step.others.items() if n in others}
    with op.serving(where.ends[0]):
        carried = {name: _zeros(op, known[n]) for name, n in state.items()}
        last = loop(op, main.graph, body, trips=ensemble.count, counter=step.number, captured=captured, carried=carried)
        sums = {n: last[i] for i, n in enumerate(state.values())}  # a variance stands behind its mean
        maps = {n: _result(op, ensemble, sums[n], known[n], others.get(n)) for n in where.ends}
    named = {n: _output(op, r, f"{n}_relevance") for n, r in maps.items()}
    op.finish()
    verify(main)
    return replace(
        step.graph,
        model=main,
        inputs=inputs,
        outputs=outputs,
        relevance=named,
        target_input="" if options.fixed else chosen.name or "",
    )


def _others(
    op: Emitter, main: ir.Model, ensemble: Ensemble, where: Places, known: Mapping[str, Value]
) -> dict[str, Value]:
    """What points are made of besides the moved tensors, computed once: σ, baselines, or the inner tensor on these."""
    if ensemble.noise is not None:
        raise MethodError("Given noise is for one batch and is not converted; leave it out.")
    found = stepping.besides(op, main, ensemble, where)
    if ensemble.points == "path" and where.inner:
        twin = Twin(main.graph, op, found)
        return {n: twin(known[n]) for n in where.moved}
    return found


def _accumulate(
    body: ir.Model, step: Step, ensemble: Ensemble, rows: Mapping[str, Array], known: Mapping[str, Value]
) -> dict[str, str]:
    """Add the sum so far to a step, as inputs and outputs; {input: the tensor it belongs to}, means before squares."""
    op = Emitter(body.graph)
    inputs = {v.name or "": v for v in body.graph.inputs}
    computed = {v.name or "": v for v in body.graph.outputs}
    number = inputs[step.number]
    alphas, weights = ensemble.quadrature()
    with op.serving("sum"):
        splice(op, inputs[step.alpha], lambda op, _: op.Gather(op.constant(alphas), number, axis=0))
        if rows:
            drawn = op.Gather(op.constant(ensemble.rows(len(next(iter(rows.values()))))), number, axis=0)
            for n, name in step.others.items():
                splice(op, inputs[name], _row(rows[n], drawn, inputs[n]))
        weight = op.Gather(op.constant(weights), number, axis=0)
        done = op.Gather(op.constant(weights / np.cumsum(weights)), number, axis=0)
        results: dict[str, Value] = {}
        state: dict[str, str] = {}
        squares: dict[str, tuple[str, Value]] = {}
        for n, output in step.relevance.items():
            r = op.Cast(computed[output], to=int(_DOUBLE))
            mean = _sum_input(op, f"explain_mean/{n}", known[n])
            state[mean.name or ""] = n
            if ensemble.statistic == "variance":
                gap = op.Sub(r, mean)
                results[mean.name or ""] = op.Add(mean, op.Mul(gap, done))
                spread = _sum_input(op, f"explain_squares/{n}", known[n])
                rest = op.Sub(r, results[mean.name or ""])
                squares[spread.name or ""] = n, op.Add(spread, op.Mul(op.Mul(gap, rest), weight))
            else:
                share = r if ensemble.statistic == "mean" else op.Mul(r, r)
                results[mean.name or ""] = op.Add(mean, op.Mul(share, weight))
    state |= {name: n for name, (n, _) in squares.items()}
    results |= {name: v for name, (_, v) in squares.items()}
    for name in state:
        op.output(results[name], f"{name}_next", results[name])
    op.finish()
    keep_outputs(body, [f"{name}_next" for name in state])
    return state


def _row(rows: Array, drawn: Value, x: Value) -> Any:
    """The drawn baseline, for every sample."""
    return lambda op, other: op.Expand(op.Gather(op.constant(rows, like=other), drawn, axis=0), op.shape_of(x))


def _sum_input(op: Emitter, name: str, like: Value) -> Value:
    return op.input(name, ir.Value(name=name, shape=like.shape, type=ir.TensorType(_DOUBLE)))


def _zeros(op: Emitter, like: Value) -> Value:
    # from the tensor's own shape at run time: a Loop of constants alone would be taken for a constant
    zeros = op.Expand(op.constant(np.zeros(1)), op.Shape(like))
    zeros.dtype, zeros.shape = _DOUBLE, like.shape
    return zeros


def _result(op: Emitter, ensemble: Ensemble, total: Value, x: Value, other: Value | None) -> Value:
    r = total
    if ensemble.points == "path" and other is not None:
        r = op.Mul(r, op.Sub(op.Cast(x, to=int(_DOUBLE)), op.Cast(other, to=int(_DOUBLE))))
    kind = ir.DataType.FLOAT if x.dtype in HALVES else x.dtype
    r = op.Cast(r, to=int(kind or 1))
    r.shape = x.shape
    return r


def _output(op: Emitter, value: Value, wished: str) -> str:
    name, i = wished, 0
    while name in op.names:
        i += 1
        name = f"{wished}_{i}"
    op.output(value, name, value)
    return name
