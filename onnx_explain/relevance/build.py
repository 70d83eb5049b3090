"""From a canonical model and composites to the relevance graph: the same graph and its backward halves.

Several backward halves may share one forward pass. What lies on the way is `path`'s and `chain`'s affair, one walk back
`walk`'s, where it starts `seed`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnx_explain.embedded import is_float
from onnx_explain.errors import InputError, MethodError, TargetError, UnsupportedOperator, suggest
from onnx_explain.ir import unfuse
from onnx_explain.ir.emit import Emitter, set_dtype
from onnx_explain.ir.halves import read_wide, unrounded, widened
from onnx_explain.ir.splice import Twin
from onnx_explain.ir.view import Operation, Value, dims, rank, shape_text
from onnx_explain.methods import Assignment, Composite, Rollout, Selector, Turn, Turned
from onnx_explain.operators.coverage import reason
from onnx_explain.operators.roles import zeros_like
from onnx_explain.operators.samples import FIRST, Held, Nowhere, Place
from onnx_explain.path import (
    activity,
    channel_axis,
    explained_tensor,
    last_spatial,
    nodes_between,
    nonnegative_values,
    tensors,
    wrt_tensors,
)
from onnx_explain.relevance import rollout as attention
from onnx_explain.relevance.apart import Samples, samples_of
from onnx_explain.relevance.chain import Chain, Link, positions, role_of
from onnx_explain.relevance.graph import Options, RelevanceGraph, Request, Row, verify
from onnx_explain.relevance.seed import Start, Targets, samples, score_of, start
from onnx_explain.relevance.walk import Setting, Walk, assignment
from onnx_explain.rules import gradient
from onnx_explain.rules import rollout as rollout_rules
from onnx_explain.rules.share import Lost, along

_GRADIENT = Composite((Assignment(Selector(), gradient.adjoint, "gradient"),))


def plan(
    model: ir.Model, composite: Composite, options: Options, *, method: str = "custom"
) -> tuple[list[Row], list[str]]:
    """Node by node from target to input: role and rule; and the names of nodes without a room."""
    target = explained_tensor(model, options.output, logits=options.logits)
    active, live = activity(model, wrt_tensors(model, options.wrt))
    version = model.graph.opset_imports.get("", 0)
    nodes = nodes_between(model, [target], active, live)
    links, missing, reasons = [], [], {}
    for node in nodes:
        operation = Operation.of(node, active[id(node)], version)
        try:
            links.append(Link(operation, role_of(operation)))
        except UnsupportedOperator as error:
            missing.append(operation.name)
            found = reason(operation.domain, operation.op_type) or unfuse.reason(operation)
            reasons[operation.name] = found or str(error)
    if not missing:
        return list(build(model, composite, replace(options, accounting=False), method=method).rows), []
    known = {link.operation.name: link for link in positions(links, composite)}
    rows = []
    for node in reversed(nodes):
        operation = Operation.of(node, active[id(node)], version)
        shapes = ", ".join(shape_text(v) for v in node.inputs if v is not None and v.const_value is None)
        outs = ", ".join(shape_text(v) for v in node.outputs)
        link = known.get(operation.name)
        role = type(link.role).__name__ if link is not None else "-"
        label = None if link is None else "gradient" if link.head else assignment(composite, link).label
        rows.append(Row(operation.name, operation.op_type, role, label, shapes, outs, reasons.get(operation.name, "")))
    return rows, missing


def build(model: ir.Model, composite: Composite, options: Options, *, method: str = "custom") -> RelevanceGraph:
    """The relevance graph of a canonical model, which stays as it is.

    Raises UnsupportedOperator, TargetError, InputError, ModelError.
    """
    return build_several(model, [Request(composite, options, method)])[0]


def build_several(model: ir.Model, requests: Sequence[Request]) -> list[RelevanceGraph]:
    """One graph with a backward half per request over a single forward pass; all results share their `model`.

    Outputs of the first request have the plain names (``<input>_relevance``), those of others a number behind.
    """
    ground = _Ground.of(model.clone())
    graphs = [_Half(ground, request).run() for request in requests]
    ground.op.finish()
    verify(ground.model)
    return graphs


def vector_jacobian(model: ir.Model, composite: Composite, wrt: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """The canonical model with inputs ``<output>_cotangent`` and outputs ``<input>_gradient``: Σ_outputs Jᵀ·cotangent."""
    ground = _Ground.of(model.clone())
    half = _Half(ground, Request(composite, Options(wrt=wrt, logits=False), "gradient"), outputs)
    half.run_vjp()
    ground.op.finish()
    verify(ground.model)
    return ground.model


def relevance_of(model: ir.Model, composite: Composite, wrt: Sequence[str], output: str) -> ir.Model:
    """As `vector_jacobian` for any composite: relevance that enters at `output` as ``<output>_cotangent``, of any values."""
    return vector_jacobian(model, composite, wrt, [output])


@dataclass(frozen=True)
class _Front:
    """A layer's tensors with the samples on their first axis, where one axis counts them alone."""

    layer: Value
    place: Place
    apart: bool

    @property
    def _axis(self) -> int:
        return self.place.axis if isinstance(self.place, Held) and self.place.alone else 0

    def of(self, op: Emitter, value: Value) -> Value:
        """A tensor like the layer's value, its samples first."""
        if not self._axis:
            return value
        order = [self._axis, *(a for a in range(rank(self.layer)) if a != self._axis)]
        turned = op.Transpose(value, perm=order)
        set_dtype(turned, self.layer.dtype)
        turned.shape = ir.Shape([(self.layer.shape or ())[a] for a in order])
        return turned

    def back(self, op: Emitter, value: Value) -> Value:
        """Relevance as the layer is laid out."""
        if not self._axis:
            return value
        order = [*range(1, self._axis + 1), 0, *range(self._axis + 1, rank(self.layer))]
        return op.typed(op.Transpose(value, perm=order), self.layer)

    def each(self, op: Emitter, numbers: Value) -> Value:
        """One number per sample [N], so that it broadcasts over what `of` gives."""
        if not self.apart:
            return along(op, numbers, self.layer, Nowhere.ONE)
        place = self.place if isinstance(self.place, Held) and not self.place.alone else FIRST
        return along(op, numbers, self.layer, place)


@dataclass
class _Ground:
    """The graph that backward halves are written into."""

    model: ir.Model
    op: Emitter
    targets: Targets
    nonnegative: set[int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: dict[str, Value]
    taken: set[str] = field(default_factory=set)

    @staticmethod
    def of(model: ir.Model) -> _Ground:
        op = Emitter(model.graph)
        inputs = tuple(v.name or "" for v in model.graph.inputs)
        outputs = tuple(v.name or "" for v in model.graph.outputs)
        return _Ground(model, op, Targets(op), nonnegative_values(model), inputs, outputs, tensors(model), op.names)

    def output(self, value: Value, wished: str) -> str:
        """Make a value a graph output under a free name."""
        name = wished
        names: Iterator[str] = (f"{wished}_{i}" for i in range(1, 1 << 30))
        while name in self.taken:
            name = next(names)
        self.taken.add(name)
        with self.op.serving(wished):
            self.op.output(value, name, value)
        return name


class _Half:
    """One backward half."""

    def __init__(self, ground: _Ground, request: Request, targets: Sequence[str] | None = None) -> None:
        self.ground, self.op, self.model = ground, ground.op, ground.model
        self.composite, self.options, self.method = request.composite, request.options, request.method
        self.wrt = wrt_tensors(self.model, self.options.wrt)
        self.sources = [read_wide(ground.tensors[name]) for name in self.wrt]
        names = [self.options.output] if targets is None else list(targets)
        self.targets = [explained_tensor(self.model, name, logits=self.options.logits) for name in names]
        self.target, self.explained = unrounded(self.targets[0]), self.targets[0].name or ""
        self.kept = {name: self._tensor(name, "relevance could be kept") for name in self.options.keep}
        self.at = None if self.options.at is None else self._tensor(self.options.at, "relevance could be explained")
        self._samples: Samples | None = None
        self.above: list[Row] = []  # what the score's gradient passes, of a method that starts at inner tensors

    def run(self) -> RelevanceGraph:
        """Write the backward half and its outputs."""
        if not self.wrt:
            raise InputError(
                "The model has no float input, and integers carry no relevance; explain a model from its embeddings on."
            )
        y = self.target
        if y.shape is None:  # an operator that no shape is inferred through is named as what it is
            self._links([y])
        by_sample = self.samples.apart
        options = self.options
        chosen = self.ground.targets.chosen(options.slot, options.chosen, fixed=options.fixed)
        begun = start(self.op, y, chosen, by_sample=by_sample)
        reports = {"score": begun.score, "index": begun.index}
        twin = self._twin()
        if twin is not None:
            reports["reference"] = score_of(self.op, begun, twin(y), by_sample=by_sample)
        layers: list[Value] = []
        if self.composite.turn is not None:
            layers = self._layers()
            walk, relevance, seeded = self._turned(begun, layers, by_sample)
            reports["seeded"] = seeded
        elif self.composite.rollout is not None:
            walk, relevance, reports["seeded"] = self._rolled(begun, self.composite.rollout)
        else:
            walk = self._walk([y], begun, twin)
            self._seeded(walk, begun)
            walk.run()
            relevance = {n: self._result(walk, v, twin) for n, v in self._ends().items()}
        kept = {name: walk.finished(v, counts=False) for name, v in self.kept.items() if name not in relevance}
        if self.options.accounting:
            reports["absorbed"] = walk.lost(begun.score)
            if walk.begun:
                reports["seeded"] = walk.seeded(begun.score)
        return self._assemble(relevance, kept, reports, walk.rows, by_sample, layers)

    def run_vjp(self) -> None:
        """The walk with one cotangent per output in place of a seed."""
        if not self.samples.apart and self.samples.place(self.target) != FIRST:
            self._samples = Samples(False)  # what enters everywhere at once is one sample's
        walk = self._walk(self.targets, None, None)
        for value in self.targets:
            walk.start(value, self.op.input(f"{value.name}_cotangent", value))
        walk.run()
        for name, source in zip(self.wrt, self.sources):
            given = self.ground.tensors[name]
            r = self._result(walk, source, None)
            r = r if r.dtype == given.dtype else self.op.typed(self.op.Cast(r, to=int(given.dtype or 1)), given)
            self.op.output(r, f"{name}_gradient", given)

    # -- the ends of the way

    def _tensor(self, name: str, what: str) -> Value:
        found = self.ground.tensors.get(name)
        if found is None:
            raise TargetError(f"The model has no tensor {name!r} whose {what}.{suggest(name, self.ground.tensors)}")
        if not is_float(found):
            raise TargetError(f"Tensor {name!r} holds {found.dtype}, which carries no relevance; name a float tensor.")
        return read_wide(found)

    def _ends(self) -> dict[str, Value]:
        """Where relevance ends, by the name it is told under: inputs in half precision as their readers see them."""
        return dict(zip(self.wrt, self.sources)) if self.at is None else {self.options.at or "": self.at}

    @property
    def samples(self) -> Samples:
        """Where the samples are on the way to the target."""
        if self._samples is None:
            self._samples = samples_of(self.model, self.target, self.wrt)
        return self._samples

    def _classes(self, by_sample: bool) -> int | None:
        sizes = dims(self.target)[1:] if by_sample else dims(self.target)
        return None if any(d is None for d in sizes) else int(np.prod([d or 1 for d in sizes], dtype=np.int64))

    # -- one walk

    def _walk(self, targets: Sequence[Value], begun: Start | None, twin: Twin | None) -> Walk:
        """The walk from the targets to the inputs, or to the tensor `at`."""
        links, live = self._links(targets)
        ends = {id(v) for v in self._ends().values()}
        if self.at is not None:
            if id(self.at) not in live or not any(self.at is v for n in links for v in n.operation.inputs):
                raise TargetError(
                    f"Tensor {self.options.at!r} does not lie between {', '.join(map(repr, self.wrt))} and "
                    f"{self.explained!r}; `onnx-explain check` lists the tensors on that way."
                )
            _, live = activity(self.model, [self.options.at or ""])
            links = [n for n in links if any(id(n.operation.inputs[i]) in live for i in n.operation.active)]
        if not links and not any(id(v) in ends for v in targets):
            raise TargetError(
                f"Output {self.explained!r} does not depend on {', '.join(map(repr, self.wrt))}; name another output."
            )
        return Walk(self.op, self.composite, links, self._setting(begun, live, twin))

    def _links(self, targets: Sequence[Value]) -> tuple[list[Link], set[int]]:
        """The nodes on the way from the targets to the inputs, and {id} of the values that depend on those."""
        active, live = activity(self.model, [v.name or "" for v in self.sources])
        held = [*self.kept.values(), *([self.at] if self.at is not None else [])]
        return Chain(self.model, self.op, self.composite, self.method, held).links(targets, active, live), live

    def _setting(self, begun: Start | None, live: set[int], twin: Twin | None) -> Setting:
        return Setting(
            self.sources[0],
            samples(self.target, self.samples.apart),
            self.samples,
            self.ground.nonnegative,
            live,
            accounting=self.options.accounting,
            score=begun.score if begun is not None and self.options.seed == "one" else None,
            reference=twin,
        )

    def _seeded(self, walk: Walk, begun: Start) -> None:
        """Relevance enters at the target: the score itself, one, or a gradient that becomes relevance further down."""
        op, y, links = self.op, self.target, walk.links
        # without a weighted operator on the way there is no first propagation: relevance starts at the target
        starts_last = self.composite.first_propagation and any(n.last for n in links)
        with op.serving("target"):
            flat = begun.one_hot(op, value=not (self.options.seed == "one" or starts_last))
            if self.composite.positive_seed:
                alive = op.Cast(op.Greater(begun.score, op.constant(0.0, like=y)), to=int(y.dtype or 1))
                flat = op.Mul(flat, op.Unsqueeze(alive, op.ints(1)))
            seed = op.reshape_like(flat, y)
        walk.start(y, seed, gradient=self.composite.first_propagation and any(n.head or n.last for n in links))

    def _result(self, walk: Walk, value: Value, twin: Twin | None) -> Value:
        r = walk.finished(value)
        op, result = self.op, self.composite.result
        with op.serving(f"{value.name}"):
            if result == "absolute":
                return op.typed(op.Abs(r), value)
            if result == "times-input":
                return op.typed(op.Mul(r, value), value)
            if result == "times-difference" and twin is not None:
                return op.typed(op.Mul(r, op.Sub(value, twin(value))), value)
        return r

    def _twin(self) -> Twin | None:
        """The second forward pass, on the composite's baseline."""
        baseline = self.composite.baseline
        if baseline is None:
            return None
        baseline.check(self.wrt)
        inputs = {}
        for name, x in zip(self.wrt, self.sources):
            axis = channel_axis(self.model, name, [d or 0 for d in dims(x)])
            with self.op.serving(name):
                inputs[x.name or name] = baseline.emit(self.op, x, name, channel_axis=axis)
        return Twin(self.model.graph, self.op, inputs)

    # -- methods that turn at an inner layer

    def _layers(self) -> list[Value]:
        turn = self.composite.turn
        if turn is not None and turn.layer is not None:
            return [self._tensor(turn.layer, "gradient could be taken")]
        if turn is not None and turn.spread is not None and self.at is not None:
            return [self.at]
        return last_spatial(self.model, self.target, self.wrt)

    def _turned(self, begun: Start, layers: list[Value], by_sample: bool) -> tuple[Walk, dict[str, Value], Value]:
        """The scores' gradients at the layers, the relevance they make there, what becomes of it, and its sum [N]."""
        turn, at = self.composite.turn, self.at
        if turn is None:
            raise ValueError("a composite without a turn")
        if turn.spread is not None and at is not None and all(at is not v for v in layers):
            raise MethodError(
                f"Method {self.method!r} is explained at its layer {layers[-1].name!r}, not at {self.options.at!r}; "
                "give the same name as `layer` and `at`."
            )
        fronts, rs = self._combined(begun, layers, turn, by_sample)
        if turn.spread is None:
            below = [v for v in layers if v is not at]
            walk = self._walk(below, begun, None) if below else self._standing(begun, layers)
        else:
            walk = self._standing(begun, layers)
            walk.rows.extend(self.above)
        seeded = self._sum([walk.per_sample(r, self.samples.place(v)) for v, r in zip(layers, rs)])
        for layer, r in zip(layers, rs):
            walk.start(layer, r)
        if turn.spread is None:
            walk.run()
            return walk, {n: self._result(walk, v, None) for n, v in self._ends().items()}, seeded
        if at is not None:
            return walk, {self.options.at or "": next(r for v, r in zip(layers, rs) if v is at)}, seeded
        with self.op.serving(f"{layers[-1].name}"):
            maps = {
                n: [self._map(turn.spread, v, r, n, x) for v, r in zip(layers, fronts)]
                for n, x in zip(self.wrt, self.sources)
            }
            return walk, {n: self._sum(m) for n, m in maps.items()}, seeded

    def _combined(
        self, begun: Start, layers: Sequence[Value], turn: Turn, by_sample: bool
    ) -> tuple[list[Value], list[Value]]:
        """The relevance of every layer, made of its value and of the scores' gradients, with the samples in front and laid
        out as the layer; zero where nothing is explained.
        """
        op = self.op
        indices = begun.hostile(op, turn.hostile, self._classes(by_sample))
        by_index = [self._gradients(begun, layers, i) for i in (None, *indices)]
        fronts, rs = [], []
        for layer, *gradients in zip(layers, *by_index):
            with op.serving(f"{layer.name}"):
                seen = _Front(layer, self.samples.place(layer), by_sample)
                target, *hostile = (seen.of(op, g) for g in gradients)
                other = [op.Cast(op.Not(op.Equal(i, begun.index)), to=int(layer.dtype or 1)) for i in indices]
                turned = Turned(seen.of(op, layer), target, tuple(hostile), tuple(seen.each(op, v) for v in other))
                r = op.typed(turn.combine(op, turned), turned.activation)
                explained = op.Cast(op.GreaterOrEqual(begun.index, op.ints(0)), to=int(layer.dtype or 1))
                fronts.append(op.typed(op.Mul(r, seen.each(op, explained)), turned.activation))
                rs.append(seen.back(op, fronts[-1]))
        return fronts, rs

    def _sum(self, parts: Sequence[Value]) -> Value:
        total = parts[0]
        for part in parts[1:]:
            total = self.op.typed(self.op.Add(total, part), total)
        return total

    def _map(
        self, spread: Callable[[Emitter, Value, Value], Value], layer: Value, r: Value, name: str, x: Value
    ) -> Value:
        """The layer's map over one input; zeros where the layer does not depend on it."""
        _, live = activity(self.model, [name])
        return self.op.typed(spread(self.op, r, x) if id(layer) in live else zeros_like(self.op, x), x)

    def _standing(self, begun: Start, layers: Sequence[Value]) -> Walk:
        """A walk of no steps: relevance stays where it enters."""
        return Walk(self.op, self.composite, [], self._setting(begun, {id(v) for v in layers}, None))

    def _gradients(self, begun: Start, layers: Sequence[Value], index: Value | None = None) -> list[Value]:
        """The gradients of one element's score by the layers."""
        op, y = self.op, self.target
        active, live = activity(self.model, [v.name or "" for v in layers])
        links = Chain(self.model, op, _GRADIENT, self.method, layers).links([y], active, live)
        if not links and all(v is not y for v in layers):
            raise TargetError(
                f"The explained tensor {self.explained!r} does not depend on the layer {layers[0].name!r}; name another layer."
            )
        walk = Walk(op, _GRADIENT, links, replace(self._setting(begun, live, None), accounting=False))
        walk.start(y, op.reshape_like(begun.one_hot(op, index), y))
        walk.run()
        if index is None:
            self.above = walk.rows
        return [walk.finished(v) for v in layers]

    # -- methods that read attention maps

    def _rolled(self, begun: Start, rollout: Rollout) -> tuple[Walk, dict[str, Value], Value]:
        """The tokens' relevance down through all attention maps, over the inputs, and its sum [N]."""
        op, source = self.op, self.sources[0]
        if self.at is not None:
            raise MethodError(
                f"Method {self.method!r} says how much each token of the input counts, and nothing of {self.options.at!r}; "
                "leave `at` out."
            )
        found = attention.layers(self.model, self.target, self.wrt, self.method)
        with op.serving("rollout"):
            (top,) = self._gradients(begun, [found[-1].y])
            r = rollout_rules.read_by(op, attention.heads_of(op, top, source))
            explained = op.Cast(op.GreaterOrEqual(begun.index, op.ints(0)), to=int(top.dtype or 1))
            r = op.Mul(r, op.Reshape(explained, op.ints(-1, 1, 1)))
            maps = [layer.attention for layer in found]
            by_map = self._gradients(begun, maps) if rollout.gradients else [None] * len(maps)
            for a, g in zip(reversed(maps), reversed(by_map)):
                weights = None if g is None else attention.heads_of(op, g, source)
                r = rollout.step(op, r, attention.heads_of(op, a, source), weights)
            r = op.Squeeze(r, op.ints(1))
            r.shape = ir.Shape([source.shape[0] if source.shape else None, found[0].tokens])
            walk = self._standing(begun, [found[0].y])
            walk.rows.extend(self.above)
            inputs = dict(zip(self.wrt, self.sources))
            known = {n: attention.tokens(self.model, found, n, v, self.method) for n, v in inputs.items()}
            relevance, lost = attention.laid(op, r, known, inputs)
            walk.absorbed.extend(Lost(v) for v in (lost if self.options.accounting else []))
            return walk, relevance, walk.per_sample(r, FIRST)

    def _values(self, relevance: Mapping[str, Value]) -> dict[str, str]:
        """Outputs that hold what the relevance is of, where that is no input of the model."""
        inner = [n for n in relevance if n not in self.ground.inputs]
        return {n: self.ground.output(self.ground.tensors[n], f"{n}_value") for n in inner}

    # -- the result

    def _assemble(
        self,
        relevance: dict[str, Value],
        kept: dict[str, Value],
        reports: dict[str, Value],
        rows: Sequence[Row],
        by_sample: bool,
        layers: Sequence[Value],
    ) -> RelevanceGraph:
        ground, told = self.ground, self.options.accounting
        return RelevanceGraph(
            model=self.model,
            inputs=ground.inputs,
            outputs=ground.outputs,
            relevance={n: ground.output(widened(ground.op, v), f"{n}_relevance") for n, v in relevance.items()},
            kept={n: ground.output(widened(ground.op, v), f"{n}_relevance") for n, v in kept.items()},
            target_input="" if self.options.fixed else ground.targets.input(self.options.slot).name or "",
            explained=self.explained,
            classes=self._classes(by_sample),
            by_sample=by_sample,
            explained_shape=tuple(dims(self.target)),
            reports={n: ground.output(v, f"explain_{n}") for n, v in reports.items()} if told else {},
            rows=tuple(rows),
            values=self._values(relevance) if told else {},
            layer=", ".join(v.name or "" for v in layers) or None,
            samples={n: self.samples.place(ground.tensors[n]) for n in relevance},
        )
