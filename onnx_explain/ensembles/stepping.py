"""The graphs of one step: the relevance at one point made of the input, and what all points of a batch share.

Running them many times is `running`'s affair, the Loop that does so in one file `looping`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ensembles.placing import Places
from onnx_explain.errors import ExplainError
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.halves import narrowed, widened
from onnx_explain.ir.prune import keep_outputs
from onnx_explain.ir.splice import Twin, splice
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.methods.ensemble import Ensemble
from onnx_explain.operators.samples import Place
from onnx_explain.path import channel_axis, explained_tensor, tensors
from onnx_explain.relevance import Options, RelevanceGraph, build
from onnx_explain.relevance.seed import Targets, start
from onnx_explain.rules.points import between, normal, one_each, spread

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Step:
    """The relevance at one point as a model, composites included.

    Its inputs are the model's and those named here: `alpha` (double [1], or one per sample), `number` (int64 [1]), the
    target input of `graph`, and by the tensor they belong to: `starts` (the moved tensor's own value, where it is no
    input), `others` (the far end of the way, σ, or the noise itself). `relevance` and `score` name outputs.
    """

    graph: RelevanceGraph
    alpha: str
    number: str
    starts: Mapping[str, str]
    others: Mapping[str, str]
    relevance: Mapping[str, str]


@dataclass(frozen=True)
class Ends:
    """The forward pass alone as a model: its outputs are the model's, the ``score`` and ``index`` of `graph.reports`, and by
    tensor `values` (of inner tensors that move or are explained) and `shared` (what points are made of besides: baselines
    of the inputs, or σ).
    """

    graph: RelevanceGraph
    values: Mapping[str, str]
    shared: Mapping[str, str]


@dataclass(frozen=True)
class _Spliced:
    """A clone of the model whose moved tensors are replaced by points, and the names of the new inputs."""

    model: ir.Model
    op: Emitter
    alpha: str
    number: str
    starts: Mapping[str, str]
    others: Mapping[str, str]
    points: Mapping[str, str]
    pairs: Mapping[str, tuple[str, str]]


def _spliced(model: ir.Model, ensemble: Ensemble, where: Places) -> _Spliced:
    work = model.clone()
    op = Emitter(work.graph)
    alpha = op.input(_free(op, "explain_alpha"), default=np.zeros(1))
    number = op.input(_free(op, "explain_step"), default=np.zeros(1, np.int64))
    named = tensors(work)
    starts = {n: _input(op, f"explain_start/{n}", named[n]) for n in where.moved} if where.inner else {}
    begins = starts or {n: named[n] for n in where.moved}
    others, given = _others(op, work, ensemble, where, named)
    points = {}
    for n in where.moved:
        if ensemble.points == "noise":
            make = _in_noise(ensemble, n, begins[n], others[n], number, _channels(work, n, named[n]))
        else:
            make = _on_path(begins[n], others[n], alpha)
        with op.serving(n):
            points[n] = splice(op, named[n], make)
    return _Spliced(
        work,
        op,
        alpha.name or "",
        number.name or "",
        _names(starts),
        _names(given),
        _names(points),
        {n: (begins[n].name or "", others[n].name or "") for n in where.moved},
    )


def _names(values: Mapping[str, Value]) -> dict[str, str]:
    return {n: v.name or "" for n, v in values.items()}


def step(model: ir.Model, ensemble: Ensemble, options: Options, where: Places, *, method: str) -> Step:
    """The step graph of a canonical model, which stays as it is."""
    at = _spliced(model, ensemble, where)
    built = _built(at.model, ensemble, options, where, at.points, method)
    relevance = {n: built.relevance[_end(n, at.points, built)] for n in where.ends}
    if ensemble.points == "baselines":
        relevance = _times_distance(built.model, relevance, at.pairs)
    keep_outputs(built.model, list(relevance.values()))
    graph = replace(built, relevance=relevance)
    return Step(graph, at.alpha, at.number, at.starts, at.others, relevance)


def probe(model: ir.Model, ensemble: Ensemble, options: Options, where: Places, known: Step) -> RelevanceGraph:
    """The score [N] at a point: a model with the inputs of `known`, and this output alone."""
    at = _spliced(model, ensemble, where)
    y = explained_tensor(at.model, options.output, logits=options.logits)
    begun = start(at.op, y, Targets(at.op).input(0), by_sample=known.graph.by_sample)
    score = _output(at.op, begun.score, "explain_score")
    at.op.finish()
    keep_outputs(at.model, [score])
    return replace(known.graph, model=at.model, relevance={}, reports={"score": score})


def _others(
    op: Emitter, work: ir.Model, ensemble: Ensemble, where: Places, named: Mapping[str, Value]
) -> tuple[dict[str, Value], dict[str, Value]]:
    """What a point is made of besides the tensor itself, and the inputs that this is handed through."""
    if ensemble.points == "noise":
        if ensemble.noise is not None:
            given = {n: _input(op, f"explain_noise/{n}", named[n]) for n in where.moved}
        elif ensemble.sigma is not None:
            return {n: op.constant(ensemble.sigma, like=named[n]) for n in where.moved}, {}
        else:
            given = {n: _per_sample(op, f"explain_sigma/{n}", named[n], where.samples[n]) for n in where.moved}
        return given, given
    if ensemble.points == "baselines" and where.inner:
        given = {n: _input(op, f"explain_end/{n}", named[n]) for n in where.inputs}
        twin = Twin(work.graph, op, given)
        return {n: twin(named[n]) for n in where.moved}, given
    given = {n: _input(op, f"explain_end/{n}", named[n]) for n in where.moved}
    return given, given


Make = Callable[[Emitter, Value], Value]


def _on_path(begin: Value, other: Value, alpha: Value) -> Make:
    return lambda op, _: between(op, begin, other, alpha)


def _in_noise(ensemble: Ensemble, name: str, begin: Value, other: Value, number: Value, channels: int | None) -> Make:
    def make(op: Emitter, _: Value) -> Value:
        x, far = widened(op, begin), widened(op, other)
        if ensemble.noise is None:
            far = op.Mul(far, normal(op, x, number, seed=ensemble.random_seed, name=name, channel_axis=channels))
        return narrowed(op, op.Add(x, far), begin)

    return make


def _built(
    work: ir.Model, ensemble: Ensemble, options: Options, where: Places, points: Mapping[str, str], method: str
) -> RelevanceGraph:
    # noise moves the inputs; relevance ends at the inner tensor all the same
    at = options.at if ensemble.points == "noise" and options.at not in where.inputs else None
    asked = replace(options, wrt=[points[n] for n in where.moved], at=at, accounting=False, slot=0)
    with _told_of(points):
        return build(work, ensemble.composite, asked, method=method)


@contextmanager
def _told_of(points: Mapping[str, str]) -> Iterator[None]:
    """Errors name the tensors that the user knows, not the points made of them."""
    try:
        yield
    except ExplainError as error:
        text = str(error)
        for name, point in points.items():
            text = text.replace(point, name)
        raise type(error)(text) from error


def _end(name: str, points: Mapping[str, str], built: RelevanceGraph) -> str:
    point = points.get(name, name)
    return point if point in built.relevance else name


def _times_distance(
    model: ir.Model, relevance: Mapping[str, str], pairs: Mapping[str, tuple[str, str]]
) -> dict[str, str]:
    """Every relevance times (start - other), in double."""
    op, known = Emitter(model.graph), tensors(model)
    outputs = {v.name or "": v for v in model.graph.outputs}
    named = {}
    for n, output in relevance.items():
        with op.serving(n):
            start_, other = (op.Cast(known[v], to=int(ir.DataType.DOUBLE)) for v in pairs[n])
            r = op.Mul(op.Cast(outputs[output], to=int(ir.DataType.DOUBLE)), op.Sub(start_, other))
            r.dtype, r.shape = ir.DataType.DOUBLE, known[pairs[n][0]].shape
            named[n] = f"{output}_times_distance"
            op.output(r, named[n], r)
    op.finish()
    return named


# ------------------------------------------------------------------------------------- what all points share


def ends(model: ir.Model, ensemble: Ensemble, options: Options, where: Places, known: RelevanceGraph) -> Ends:
    """The graph of what all points share; `known`: the step's graph, for what it says of the explained tensor."""
    work = model.clone()
    op, named = Emitter(work.graph), tensors(work)
    begun = start(
        op,
        explained_tensor(work, options.output, logits=options.logits),
        Targets(op).input(0),
        by_sample=known.by_sample,
    )
    seen = dict.fromkeys((*where.moved, *where.ends))
    values = {n: _output(op, named[n], f"explain_value/{n}") for n in seen if n not in where.fed}
    others = besides(op, work, ensemble, where)
    if where.inner and ensemble.points == "path" and set(where.inputs) > set(where.fed):
        twin = Twin(work.graph, op, others)  # what is computed cannot be fed: the other end is computed beside it
        others = others | {n: twin(named[n]) for n in where.moved}
    shared = {n: _output(op, v, f"explain_shared/{n}") for n, v in others.items()}
    reports = {n: _output(op, v, f"explain_{n}") for n, v in (("score", begun.score), ("index", begun.index))}
    target = next(v.name or "" for v in work.graph.inputs if v.name not in {i.name for i in model.graph.inputs})
    op.finish()
    graph = replace(known, model=work, relevance={}, reports=reports, target_input=target)
    return Ends(graph, values, shared)


def besides(op: Emitter, model: ir.Model, ensemble: Ensemble, where: Places) -> dict[str, Value]:
    """What points are made of besides the input, as far as the input says it: baselines of the inputs, or σ."""
    named, found = tensors(model), {}
    for n in where.inputs:
        x = named[n]
        with op.serving(n):
            if ensemble.points == "path":
                found[n] = ensemble.baseline.emit(op, x, n, channel_axis=_channels(model, n, x))
            elif ensemble.points == "noise" and ensemble.sigma is None and ensemble.noise is None:
                found[n] = spread(op, x, ensemble.noise_level, where.samples[n])
    return found


# --------------------------------------------------------------------------------------------------- small parts


def _channels(model: ir.Model, name: str, x: Value) -> int | None:
    return channel_axis(model, name, [d or 0 for d in dims(x)])


def _free(op: Emitter, wished: str) -> str:
    name, i = wished, 0
    while name in op.names:
        i += 1
        name = f"{wished}_{i}"
    return name


def _input(op: Emitter, wished: str, like: Value) -> Value:
    return op.input(_free(op, wished), like)


def _per_sample(op: Emitter, wished: str, x: Value, place: Place) -> Value:
    shape = one_each(x, place) if rank(x) > 1 else x.shape
    return op.input(_free(op, wished), ir.Value(name=wished, shape=shape, type=x.type))


def _output(op: Emitter, value: Value, wished: str) -> str:
    name = _free(op, wished)
    op.output(value, name, value)
    return name
