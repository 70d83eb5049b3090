"""Graphs for looking at a model from outside: the score of one element, of the input as it is and of a masked one.

No node gets a rule here, so any model that runs will do. What the masks look like is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from math import prod
from typing import Literal

import onnx_ir as ir

from onnx_explain.embedded import is_float
from onnx_explain.errors import InputError, TargetError, suggest
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.halves import narrowed, unrounded, widened
from onnx_explain.ir.prune import keep_outputs
from onnx_explain.ir.splice import splice
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.path import channel_axis, explained_tensor, nonnegative_values, tensors, wrt_tensors
from onnx_explain.relevance.apart import keeps_samples
from onnx_explain.relevance.graph import Options, RelevanceGraph, verify
from onnx_explain.relevance.seed import Targets, score_of, start
from onnx_explain.rules.baseline import Baseline

Scale = Literal["logit", "probability"]


@dataclass(frozen=True)
class Probe:
    """A model whose only output is the score of the target element.

    `masks`, `baselines`: the graph inputs, per explained tensor x, of its mask m and its baseline b; both broadcast to x and
    have its dtype, and the network goes on from x·m + b·(1 - m).
    """

    graph: RelevanceGraph
    masks: Mapping[str, str]
    baselines: Mapping[str, str]

    @property
    def score(self) -> str:
        """The output that holds the score [N]."""
        return self.graph.reports["score"]


def perturbed_tensors(model: ir.Model, options: Options) -> list[str]:
    """The tensors whose entries are replaced: the explained inputs, or the inner tensor of `Options.at`.

    Raises InputError and TargetError where they hold no floats or the score does not depend on them.
    """
    inputs = wrt_tensors(model, options.wrt)
    if not inputs:
        raise InputError(
            "The model has no float input, and integers carry no relevance; explain a model from its embeddings on."
        )
    y, known = explained_tensor(model, options.output, logits=options.logits), tensors(model)
    ends = inputs if options.at is None else [_inner(model, options.at)]
    if not _reached(model, [known[n] for n in ends], y):
        raise TargetError(
            f"The explained tensor {y.name!r} does not depend on {', '.join(map(repr, ends))}; name another output."
        )
    return ends


def survey(
    model: ir.Model,
    options: Options,
    baseline: Baseline | None = None,
    channels: Mapping[str, int | None] | None = None,
) -> RelevanceGraph:
    """The model as it is, reporting ``index`` and ``score`` of the target and, per perturbed tensor, ``baseline <name>``.

    channels: the tensors' channel axes, which a blurred baseline leaves alone. `values` names the outputs that hold those
    that are no inputs. Without a baseline none is reported.
    """
    model = model.clone()
    op, known = Emitter(model.graph), tensors(model)
    inputs, outputs = _names(model.graph.inputs), _names(model.graph.outputs)
    ends = [known[n] for n in perturbed_tensors(model, options)]
    y = explained_tensor(model, options.output, logits=options.logits)
    by_sample, target = _by_sample(model, y, options), Targets(op).input(options.slot)
    begun = start(op, y, target, by_sample=by_sample)
    reports = {"score": begun.score, "index": begun.index}
    if baseline is not None:
        axes = {v.name or "": (channels or {}).get(v.name or "", 1) for v in ends}
        reports |= {
            f"baseline {v.name}": baseline.emit(op, v, v.name or "", channel_axis=axes[v.name or ""]) for v in ends
        }
    told = {n: _output(op, v, f"explain_{n}") for n, v in reports.items()}
    values = {v.name or "": _output(op, v, f"{v.name}_value") for v in ends if v.name not in inputs}
    op.finish()
    verify(model)
    return _described(model, options, target.name or "", y, inputs, outputs, told, values)


def probe(model: ir.Model, options: Options, scale: Scale = "logit") -> Probe:
    """The model with every perturbed tensor under a mask, cut down to the target's score.

    scale: the explained value itself, or the class probability: what a final Softmax or Sigmoid says, or the softmax over
    the classes where the model ends before it (axis 1; the last of a rank-3 tensor, of one that holds a single sample,
    and of a model of pictures with their channels last). A tensor of one element per sample has no classes: its value is
    taken as it is.
    """
    model = model.clone()
    op, known = Emitter(model.graph), tensors(model)
    inputs = _names(model.graph.inputs)
    ends = perturbed_tensors(model, options)
    y = explained_tensor(model, options.output, logits=options.logits)
    by_sample = _by_sample(model, y, options)
    axis = 1 if by_sample and rank(y) != 3 and not _channels_last(model, options) else -1
    masks = {n: op.input(_free(op, f"explain_mask_{i}"), _open(known[n])) for i, n in enumerate(ends)}
    baselines = {n: op.input(_free(op, f"explain_baseline_{i}"), _open(known[n])) for i, n in enumerate(ends)}
    mixed = {id(known[n]): splice(op, known[n], _Mixture(masks[n], baselines[n])) for n in ends}
    seen = mixed.get(id(y), y)
    target = Targets(op).input(options.slot)
    begun = start(op, seen, target, by_sample=by_sample)
    score = begun.score
    if scale == "probability":
        likely = _probability(op, model, options, seen, axis, by_sample=by_sample)
        score = score_of(op, begun, mixed.get(id(likely), likely), by_sample=by_sample)
    reports = {"score": _output(op, score, "explain_score")}
    keep_outputs(model, set(reports.values()))
    op.finish()
    verify(model)
    graph = _described(model, options, target.name or "", y, inputs, tuple(reports.values()), reports, {})
    return Probe(graph, {n: v.name or "" for n, v in masks.items()}, {n: v.name or "" for n, v in baselines.items()})


@dataclass(frozen=True)
class _Mixture:
    """x·m + b·(1 - m)."""

    mask: Value
    baseline: Value

    def __call__(self, op: Emitter, x: Value) -> Value:
        x_, mask, baseline = (widened(op, v) for v in (x, self.mask, self.baseline))
        mixed = op.Add(op.Mul(x_, mask), op.Mul(baseline, op.Sub(op.constant(1.0, like=x_), mask)))
        return narrowed(op, mixed, x)


def _probability(op: Emitter, model: ir.Model, options: Options, y: Value, axis: int, *, by_sample: bool) -> Value:
    """The class probabilities that belong to `y`, entry by entry."""
    named = explained_tensor(model, options.output, logits=False)
    if named is not explained_tensor(model, options.output, logits=True):
        # a head that is never negative gives probabilities, the other gives their logarithms
        return named if id(named) in nonnegative_values(model) else op.typed(op.Exp(named), named)
    sizes = dims(y)
    if prod(d or 1 for d in (sizes[1:] if by_sample else sizes)) == 1:
        return y
    y = unrounded(y)
    return op.typed(op.Softmax(y, axis=axis), y)


def _channels_last(model: ir.Model, options: Options) -> bool:
    """Whether the first explained input is a picture with its channels on the last axis: so are the classes of its output."""
    name = wrt_tensors(model, options.wrt)[0]
    sizes = dims(tensors(model)[name])
    return len(sizes) > 3 and channel_axis(model, name, [d or 0 for d in sizes]) == len(sizes) - 1


def _reached(model: ir.Model, ends: Iterable[Value], y: Value) -> bool:
    """Whether the score is computed from one of the tensors, be it through integers and comparisons."""
    live = {id(v) for v in ends}
    for node in model.graph:
        graphs = (a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH)
        inner = (v for graph in graphs for n in graph.all_nodes() for v in n.inputs)
        if any(id(v) in live for v in chain(node.inputs, inner)):
            live.update(id(v) for v in node.outputs)
    return id(y) in live


def _inner(model: ir.Model, name: str) -> str:
    known = tensors(model)
    if name not in known:
        raise TargetError(f"The model has no tensor {name!r} whose relevance could be explained.{suggest(name, known)}")
    if not is_float(known[name]):
        raise TargetError(
            f"Tensor {name!r} holds {known[name].dtype}, which carries no relevance; name a float tensor."
        )
    return name


def _by_sample(model: ir.Model, y: Value, options: Options) -> bool:
    """Whether axis 0 of the explained tensor counts samples: it is open, or as long as the first explained input's."""
    return keeps_samples(model, y, wrt_tensors(model, options.wrt))


def _open(value: Value) -> Value:
    """The type of something that broadcasts to `value`."""
    shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
    return ir.Value(name=value.name, shape=shape, type=value.type)


def _free(op: Emitter, stem: str) -> str:
    """The name, with a number behind it where the model has it already."""
    return next(n for n in chain((stem,), (f"{stem}_{i}" for i in count(1))) if n not in op.names)


def _output(op: Emitter, value: Value, wished: str) -> str:
    name = _free(op, wished)
    op.output(value, name, value)
    return name


def _names(values: Iterable[Value]) -> tuple[str, ...]:
    return tuple(v.name or "" for v in values)


def _described(
    model: ir.Model,
    options: Options,
    target: str,
    y: Value,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    reports: Mapping[str, str],
    values: Mapping[str, str],
) -> RelevanceGraph:
    by_sample = _by_sample(model, y, options)
    sizes = dims(y)[1:] if by_sample else dims(y)
    return RelevanceGraph(
        model=model,
        inputs=inputs,
        outputs=outputs,
        relevance={},
        kept={},
        target_input=target,
        explained=y.name or "",
        classes=None if any(d is None for d in sizes) else prod(d or 1 for d in sizes),
        by_sample=by_sample,
        explained_shape=tuple(dims(y)),
        reports=reports,
        rows=(),
        values=values,
    )
