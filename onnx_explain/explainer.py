"""The pipeline in one place: model in, canonical form, relevance graph, session, explanation; the explained file out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from onnx_explain import conversion, ensembles, perturbation
from onnx_explain.asked import (
    Names,
    Way,
    check_computed,
    check_settings,
    composite_of,
    default_index,
    device_of,
    name_of,
    names_of,
    outcome,
    refuse_hostile_target,
    target_of,
    way_of,
)
from onnx_explain.backends import onnx as backends
from onnx_explain.backends.gpu import GpuRunner, Tensor
from onnx_explain.embedded import by_entry
from onnx_explain.errors import InputError, MethodError, OutputError
from onnx_explain.explanation import Explanation
from onnx_explain.files import draft, target_path
from onnx_explain.ir import composite as composites
from onnx_explain.ir.canonicalize import Shapes, canonicalize
from onnx_explain.ir.fold import fold_constants
from onnx_explain.ir.message import message, too_large, write
from onnx_explain.ir.model import Source, load
from onnx_explain.methods import Composite, Seed, resolve
from onnx_explain.methods.ensemble import Ensemble
from onnx_explain.methods.perturbation import Perturbation
from onnx_explain.path import channel_axis, explained_tensor, slides, wrt_inputs
from onnx_explain.prepared import Array, Backend, Outcome, Prepared, Spot, foreseen
from onnx_explain.relevance import Options, RelevanceGraph, Request, Row, build, build_several, plan, vector_jacobian
from onnx_explain.relevance.apart import arrived
from onnx_explain.target import Parsed, parse


class _Explains:
    """A model and the ways in which it is explained; what both public classes share."""

    def __init__(
        self,
        model: Source,
        methods: Sequence[str | Composite | tuple[str, Mapping[str, Any]]],
        *,
        seed: Seed | None = None,
        device: str = "cpu",
        precision: str = "tf32",
        output: str | None = None,
        logits: bool = True,
        wrt: Names | None = None,
        at: str | None = None,
        keep: Names = (),
        batch_size: int | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
        input_shapes: Shapes | None = None,
    ) -> None:
        self._given = {name: value for name, value in locals().items() if name != "self"}
        self._ways = [way_of(m, seed) for m in ([methods] if isinstance(methods, str) else methods)]
        if not self._ways:
            raise MethodError("No method was given; `onnx-explain methods` lists them.")
        check_settings(seed, device, backend, batch_size, threads, input_shapes)
        opened, chosen, note = device_of(device, precision, backend)
        explained = None if wrt is None else names_of("wrt", wrt)
        self._options = Options(
            output, explained, "score", logits, names_of("keep", keep), accounting=True, at=name_of("at", at)
        )
        source = load(model)
        self._prepared = Prepared(
            source,
            backend=chosen,
            batch_size=batch_size,
            threads=threads,
            input_shapes=dict(input_shapes or {}),
            device=opened,
        )
        self._prepared.notes += [] if note is None else [note]
        if explained is not None and not self._prepared.needs_shapes:
            wrt_inputs(self._prepared.canonical(), explained)

    def __repr__(self) -> str:
        """The class, the model, its inputs and the methods."""
        source = self._prepared.source.path or "the given model"
        inputs = ", ".join(f"{name!r}: {takes.dtype} {takes}" for name, takes in self._prepared.takes.items())
        methods = ", ".join(way.name for way in self._ways)
        return f"<{type(self).__name__} of {source} by {methods}; inputs {{{inputs}}}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process: made anew of what this was made of; sessions and graphs stay behind."""
        return _anew, (type(self), self._given)

    @property
    def model(self) -> ir.Model:
        """The model in canonical form; do not change it."""
        return self._prepared.canonical()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on how it ran so far: on the CPU in place of a GPU, in smaller batches."""
        return tuple(self._prepared.notes)

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | None, ...], np.dtype[Any]]]:
        """Shape (None: open) and dtype of every input."""
        return {name: (takes.shape or (), takes.dtype) for name, takes in self._prepared.takes.items()}

    @property
    def sha256(self) -> str:
        """The SHA-256 of the source file."""
        return self._prepared.source.sha256

    @property
    def source_model(self) -> ir.Model:
        """The model as read, before canonical form; do not change it."""
        return self._prepared.source.model

    def explained(self, target: Any = None) -> ir.Value:
        """The tensor whose element is explained, of a model whose shapes are known."""
        spot = self._spot(target, sure=False)
        output = spot.target.output or spot.options.output
        return explained_tensor(spot.prepared.canonical(), output, logits=spot.options.logits)

    def _all(self, x: Array | Mapping[str, Array], targets: Sequence[Any]) -> list[list[Explanation]]:
        """One list per target, in it one explanation per method."""
        feeds = self._prepared.feeds(x)
        spots = [self._prepared.at(parse(t), feeds, self._options) for t in targets]
        shared = {m: way for m, way in enumerate(self._ways) if isinstance(way.procedure, Composite)}
        found: dict[tuple[int, int], Explanation] = {}
        places = [(id(s.prepared), s.target.output) for s in spots]
        for place in dict.fromkeys(places) if shared else ():
            slots = [i for i, p in enumerate(places) if p == place]
            outcomes, seconds = self._one_pass([*shared.values()], feeds, [spots[i] for i in slots])
            for (slot, m), one in zip(((i, m) for i in slots for m in shared), outcomes):
                found[slot, m] = self._explanation(shared[m], spots[slot], feeds, one, seconds / len(outcomes))
        for m, way in enumerate(self._ways):
            if not isinstance(way.procedure, Composite):
                for slot, spot in enumerate(spots):
                    started = time.perf_counter()
                    found_here = self._many_passes(way, feeds, spot)
                    found[slot, m] = self._explanation(way, spot, feeds, found_here, time.perf_counter() - started)
        return [[found[slot, m] for m in range(len(self._ways))] for slot in range(len(spots))]

    # -- stages

    def _asked(self, way: Way, spot: Spot, slot: int = 0) -> Options:
        output = spot.target.output or spot.options.output
        return replace(spot.options, output=output, seed=way.seed, slot=slot)

    def _spot(self, target: Any, **settings: bool) -> Spot:
        """Where a target is, of a model whose shapes are known."""
        return self._prepared.at(parse(target), None, self._options, **settings)

    def _one_pass(
        self, ways: Sequence[Way], feeds: dict[str, Array], spots: Sequence[Spot]
    ) -> tuple[list[Outcome], float]:
        """All methods of one backward pass and all targets in one run."""
        prepared, output = spots[0].prepared, spots[0].target.output

        def make(model: ir.Model) -> list[RelevanceGraph]:
            requests = [
                Request(w.procedure, self._asked(w, spot, slot), w.name)
                for slot, spot in enumerate(spots)
                for w in ways
                if isinstance(w.procedure, Composite)
            ]
            return build_several(model, requests)

        built = prepared.built(("one pass", output, len(spots)), feeds, make)
        graph = built.graph
        by_sample, count = prepared.samples(feeds, self._explained(graph, feeds))
        indices = [prepared.indices(graph, spot.target, count) for spot in spots]
        for spot, index in zip(spots, indices):
            if spot.aimed is None:
                refuse_hostile_target(ways, spot.target, index)
        rows = {g.target_input: indices[i // len(ways)] for i, g in enumerate(built.graphs)}
        started = time.perf_counter()
        results = prepared.run(built, feeds, rows, by_sample=by_sample, count=count)
        seconds = time.perf_counter() - started
        return [outcome(g, results, ways[i % len(ways)]) for i, g in enumerate(built.graphs)], seconds

    def _many_passes(self, way: Way, feeds: dict[str, Array], spot: Spot) -> Outcome:
        prepared, aim, asked = spot.prepared, spot.target, self._asked(way, spot)
        if isinstance(way.procedure, Ensemble):
            return ensembles.explain(prepared, way.procedure, feeds, aim, asked, method=way.name)
        if isinstance(way.procedure, Perturbation):
            return perturbation.explain(prepared, way.procedure, feeds, aim, asked, method=way.name)
        raise MethodError(f"Method {way.name!r} is of a kind that nothing runs: {type(way.procedure).__name__}.")

    def _explained(self, graph: RelevanceGraph, feeds: Mapping[str, Array]) -> list[str]:
        own = {*feeds, *self._prepared.takes}
        named = [n for n in graph.relevance if n in own]
        return named or wrt_inputs(self._prepared.canonical(feeds), self._options.wrt) or list(self._prepared.takes)

    def _explanation(
        self, way: Way, spot: Spot, feeds: dict[str, Array], found: Outcome, seconds: float
    ) -> Explanation:
        notes, outputs, sure = self.notes, dict(found.outputs), None
        if spot.aimed is not None:
            sure = None if spot.aimed.sure is None else outputs.pop(spot.aimed.sure)
            notes += check_computed(spot.aimed.text, found, sure)
        values = {**feeds, **found.values}
        relevance = {
            n: r.astype(np.promote_types(values[n].dtype, np.float32), copy=False) for n, r in found.relevance.items()
        }
        reached = arrived(found.relevance, found.places, by_sample=found.by_sample)
        absorbed = found.absorbed if found.by_sample else np.sum(found.absorbed, keepdims=True)
        gap = np.abs(found.seeded - reached - absorbed)
        conservation = np.divide(gap, np.abs(found.seeded), out=gap.copy(), where=found.seeded != 0)
        canonical = self._prepared.canonical(feeds)
        entries, selected = by_entry(canonical, feeds, relevance)
        return Explanation(
            relevance=relevance,
            outputs=outputs,
            target=target_of(found, spot.aimed, sure),
            conservation=conservation,
            absorbed=absorbed,
            method=way.name,
            seconds=seconds,
            inputs=values,
            options=dict(way.options),
            kept=found.kept,
            channel_axis={n: channel_axis(canonical, n, values[n].shape) for n in (*relevance, *entries)},
            source=self.sha256,
            completeness=found.completeness,
            layer=found.layer,
            notes=notes,
            entries=entries,
            selected=selected,
            signals=tuple(n for n in relevance if slides(canonical, n)),
        )


def _anew(kind: type[_Explains], given: Mapping[str, Any]) -> _Explains:
    made = kind.__new__(kind)
    _Explains.__init__(made, **given)
    return made


class Explainers(_Explains):
    """Explains a model by several methods over one forward pass, as often as called.

    model: path, bytes or `onnx.ModelProto`. methods: names of `onnx-explain methods`, composites, or pairs (name,
    {option: value}). Settings as of `Explainer`. Methods of one backward pass share the forward pass, for all targets
    of a call; those that need passes of their own (path, sampling and perturbation methods) run after them.

    Raises ModelError, MethodError, TargetError, InputError, UnsupportedOperator; all are ExplainError.
    """

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' names, in the order of the results."""
        return tuple(way.name for way in self._ways)

    def __call__(self, x: Array | Mapping[str, Array], targets: Sequence[Any] = (None,)) -> list[list[Explanation]]:
        """Explain a batch: one list per target, in it one explanation per method.

        x: as of `Explainer`. targets: each as `Explainer` takes one; a lone one is a list of one. `seconds` of an
        explanation that shared its run with others is its share of it.
        """
        lone = targets is None or isinstance(targets, (str, int, np.integer, Parsed))
        return self._all(x, [targets] if lone else list(targets))


class Explainer(_Explains):
    """Explains a model, as often as called; the graph is built and its session made on the first call.

    model: path, bytes or `onnx.ModelProto`. method: a name of `onnx-explain methods` or a `Composite`; further keywords
    are the method's options. seed: start at the explained value (``"score"``) or at ``"one"``; the method's own default
    otherwise. output: the explained output (default: the first of floats). logits: look behind a final Softmax or
    Sigmoid. wrt: the explained inputs (default: all of floats). at: an inner tensor to explain in place of the inputs.
    keep: tensors whose relevance is wanted too. batch_size: how many samples run at once (default: all). threads: ONNX
    Runtime's (default: all cores). device: ``"cpu"``, ``"cuda"`` (the first GPU), or ``"auto"`` (that, or the CPU, which
    `notes` then says). precision: of products on the GPU, ``"tf32"``, ``"tf32x3"``, ``"ieee"``, ``"bf16"``, ``"fp16"``.
    backend: ``"onnx"`` (plain ONNX in ONNX Runtime, the default on the CPU), ``"kernels"`` (the default on a GPU) or
    ``"reference"`` (float64 on the CPU, slow). input_shapes: dimensions the file leaves open, ``{name: [1, 3, 224, 224]}``.

    Raises ModelError, MethodError, TargetError, InputError, UnsupportedOperator; all are ExplainError.
    """

    def __init__(
        self,
        model: Source,
        method: str | Composite = "lrp-epsilon-plus",
        *,
        seed: Seed | None = None,
        device: str = "cpu",
        precision: str = "tf32",
        output: str | None = None,
        logits: bool = True,
        wrt: Names | None = None,
        at: str | None = None,
        keep: Names = (),
        batch_size: int | None = None,
        threads: int | None = None,
        backend: Backend | None = None,
        input_shapes: Shapes | None = None,
        **options: Any,
    ) -> None:
        if isinstance(method, Composite) and options:
            raise MethodError(
                f"A custom composite takes no options, but {next(iter(options))!r} was given; put it into the rule."
            )
        if not isinstance(method, (str, Composite)):
            raise MethodError("method must be a method's name or a Composite; `onnx-explain methods` lists the names.")
        super().__init__(
            model,
            [method if isinstance(method, Composite) else (method, options)],
            seed=seed,
            device=device,
            precision=precision,
            output=output,
            logits=logits,
            wrt=wrt,
            at=at,
            keep=keep,
            batch_size=batch_size,
            threads=threads,
            backend=backend,
            input_shapes=input_shapes,
        )

    @property
    def method(self) -> str:
        """The method's name."""
        return self._way.name

    @property
    def options(self) -> dict[str, Any]:
        """The options given to the method."""
        return dict(self._way.options)

    @property
    def _way(self) -> Way:
        return self._ways[0]

    def __call__(self, x: Array | Mapping[str, Array], target: Any = None) -> Explanation:
        """Explain a batch.

        x: an array for a model with one input, or {input name: array}; axis 0 counts samples. target: None (arg-max per
        sample), an index, one index per sample, an element of a named output such as ``"output[0,17]"``
        (``"output[:,17]"``: of every sample), an expression (``"scores[:,:,17].max()"``) or a preset (``"yolo:17"``), see
        docs/targets.md. Relevance has its input's shape and dtype, float32 for one of 16 bits.

        Raises InputError, TargetError, UnsupportedOperator, ModelError.
        """
        return self._all(x, [target])[0][0]

    attribute = __call__

    def on_device(self, x: Any, target: Any = None) -> dict[str, Tensor]:
        """As a call, on the GPU: relevance by input name as device arrays, of which nothing is copied to the host.

        x: host arrays, or device arrays (`__cuda_array_interface__`, DLPack), dense and of the model's own type. The whole
        batch runs at once. Results have `__cuda_array_interface__`.

        Raises MethodError where the device is the CPU or the method takes several passes, and what a call raises.
        """
        procedure, prepared = self._way.procedure, self._prepared
        if prepared.device is None or prepared.backend != "kernels" or not isinstance(procedure, Composite):
            raise MethodError(
                "Results stay on a GPU of device='cuda' and backend='kernels', for methods of one backward pass."
            )
        given = dict(x) if isinstance(x, Mapping) else {next(iter(prepared.takes)): x}
        feeds: dict[str, Any] = prepared.placed(given)
        spot = prepared.at(parse(target), feeds, self._options, sure=False)
        prepared, aim = spot.prepared, spot.target
        options = replace(self._asked(self._way, spot), accounting=False)
        built = prepared.built(
            ("on device", aim.output), feeds, lambda m: [build(m, procedure, options, method=self.method)]
        )
        count = next(iter(feeds.values())).shape[0]
        index = prepared.indices(built.graph, aim, int(count))
        runner = cast(GpuRunner, built.runner)
        found = runner.run_on_device({**feeds, built.graph.target_input: index}, list(built.graph.relevance.values()))
        return {name: found[output] for name, output in built.graph.relevance.items()}

    def plan(self, target: Any = None) -> tuple[list[Row], list[str]]:
        """What every node on the way from target to input gets, and the nodes without a room."""
        spot = self._spot(target, sure=False)
        with foreseen():
            asked, procedure = self._asked(self._way, spot), composite_of(self._way.procedure)
            return plan(spot.prepared.canonical(), procedure, asked, method=self._way.name)

    def build(self, target: Any = None) -> RelevanceGraph:
        """The relevance graph as it would be converted: without reports.

        Raises TargetError, and MethodError for a method that is not one graph (occlusion, RISE, Shapley values).
        """
        spot = self._spot(target, sure=False)
        return self._graph(spot, self._fixed(spot))

    def convert(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        target: Any = None,
        functions: bool = False,
        fold: bool = False,
        keep: Names = (),
        check: bool = True,
    ) -> onnx.ModelProto:
        """Write the explained model: original inputs and outputs first, ``<input>_relevance`` after; optional input ``target``.

        target: what the file explains where its input ``target`` is left out (default: the arg-max), the same for every
        sample. A computed one (an expression, a preset) is part of the file, which has no such input then.
        functions: keep composites as ONNX functions instead of expanding them. fold: store derived weights (w⁺, flipped w)
        instead of letting the runtime fold them on load. keep: tensors whose relevance becomes an output. check: run the
        file and the original on noise and compare; VerificationError, and no file, where they differ by more than 1e-5
        of the largest value. Returns the model (of one of more than 2 GB, without the weights in ``<path>.data``); writes
        nothing where `path` is None.

        Raises OutputError where `path` cannot be written or is one of the source's own files, TargetError, and MethodError
        for a method that is not one graph.
        """
        place = None if path is None else self._place(path)
        spot = self._spot(target, sure=False)
        options = self._fixed(spot)
        graph = self._graph(spot, replace(options, keep=(*options.keep, *names_of("keep", keep))))
        with foreseen():
            model = composites.as_functions(graph.model) if functions else composites.expand(graph.model)
        prepared, canonical, threads = self._prepared, spot.prepared.canonical(), self._prepared.threads
        if fold:
            fold_constants(model, lambda constants: backends.Session(constants).run({}))
        conversion.describe(
            model,
            graph,
            prepared.source,
            method=self.method,
            options=self.options,
            seed=self._way.seed,
            expression=None if spot.aimed is None else spot.aimed.text,
        )
        if place is None:
            told = message(model)
            if check:
                conversion.verify(model, graph, prepared.source, canonical, threads)
            return told
        with draft(place) as whole:
            write(model, whole)
            if check:
                conversion.verify(whole, graph, prepared.source, canonical, threads)
        return onnx.load(place, load_external_data=False) if too_large(model) else message(model)

    # -- stages

    def _fixed(self, spot: Spot) -> Options:
        """Options of a graph that explains the target by itself, for samples it has not seen."""
        options = replace(self._asked(self._way, spot), accounting=False)
        return replace(options, chosen=default_index(spot, options), fixed=spot.aimed is not None)

    def _graph(self, spot: Spot, options: Options) -> RelevanceGraph:
        procedure, model = self._way.procedure, spot.prepared.canonical()
        with foreseen():
            if isinstance(procedure, Composite):
                return build(model, procedure, options, method=self.method)
            if isinstance(procedure, Ensemble):
                return ensembles.graph(model, procedure, options, method=self.method)
        raise MethodError(
            f"Method {self.method!r} runs the model many times on changed inputs and is not one graph; "
            "`onnx-explain explain` runs it, and gradient, LRP, RAP, CAM and path methods convert."
        )

    def _place(self, path: str | os.PathLike[str]) -> Path:
        place = target_path(path)
        beside = place.with_name(f"{place.name}.data")
        if {place.resolve(), beside.resolve()} & set(self._prepared.source.files):
            raise OutputError(f"{place} is a file of the source model; name another one for the explained model.")
        return place


def build_vjp(model: Source, wrt: Names | None = None, outputs: Names | None = None) -> onnx.ModelProto:
    """A plain ONNX model of the vector-Jacobian product: what autograd calls `backward`, without a framework.

    Inputs: the model's, then one ``<output>_cotangent`` per name in `outputs` (default: all float outputs), of that
    output's shape and dtype. Outputs: the model's, then ``<input>_gradient`` per name in `wrt` (default: all float inputs):
    Σ_outputs (∂output/∂input)ᵀ·cotangent. Raises as `Explainer` does.
    """
    source = load(model)
    with foreseen():
        canonical = canonicalize(source.model)
    names = [v.name or "" for v in canonical.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
    gradient = composite_of(resolve("gradient").procedure({}))
    chosen = wrt_inputs(canonical, None if wrt is None else names_of("wrt", wrt))
    wanted = list(names if outputs is None else names_of("outputs", outputs))
    if not chosen or not wanted:
        raise InputError(
            "build_vjp needs at least one input in `wrt` and one output in `outputs`; leave them out for all."
        )
    with foreseen():
        return message(composites.expand(vector_jacobian(canonical, gradient, chosen, wanted)))
