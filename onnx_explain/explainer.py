"""The pipeline in one place: model in, canonical form, relevance graph, session, explanation; the explained file out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_explain import conversion
from onnx_explain import feeds as feeding
from onnx_explain import target as targets
from onnx_explain.backends import onnx as backend
from onnx_explain.backends.reference import Reference
from onnx_explain.errors import ExplainError, InputError, MethodError, ModelError, OutputError
from onnx_explain.explanation import Explanation, Target
from onnx_explain.files import draft, target_path
from onnx_explain.ir import composite as composites
from onnx_explain.ir.canonicalize import Shapes, canonicalize
from onnx_explain.ir.fold import fold_constants
from onnx_explain.ir.model import Loaded, Source, first_line, load, serialise, write
from onnx_explain.ir.view import dims
from onnx_explain.ir.widen import as_float64
from onnx_explain.methods import Composite, Method, Seed, resolve
from onnx_explain.path import channel_axis, wrt_inputs
from onnx_explain.relevance import Options, RelevanceGraph, Row, build, plan, vector_jacobian

Array = npt.NDArray[Any]
Backend = Literal["onnx", "reference"]
Names = str | Sequence[str]
OLDEST = 7  # the oldest opset that ONNX Runtime promises to run


@dataclass(frozen=True)
class _Built:
    """A relevance graph for one choice of input shapes and output, with what runs it."""

    graph: RelevanceGraph
    runner: backend.Runner


class Explainer:
    """Explains a model, as often as called; the graph is built and its session made on the first call.

    model: path, bytes or `onnx.ModelProto`. method: a name of `onnx-explain methods` or a `Composite`; further keywords
    are the method's options. seed: start at the explained value (``"score"``) or at ``"one"``; the method's own default
    otherwise. output: the explained output (default: the first of floats). logits: look behind a final Softmax or
    Sigmoid. wrt: the explained inputs (default: all of floats). keep: tensors whose relevance is wanted too.
    batch_size: how many samples run at once (default: all). threads: ONNX Runtime's (default: all cores). backend:
    ``"onnx"`` (ONNX Runtime, the model's own precision) or ``"reference"`` (float64, slow). input_shapes: dimensions the
    file leaves open, ``{name: [1, 3, 224, 224]}``.

    Raises ModelError, MethodError, TargetError, InputError, UnsupportedOperator; all are ExplainError.
    """

    def __init__(
        self,
        model: Source,
        method: str | Composite = "lrp-epsilon-plus",
        *,
        seed: Seed | None = None,
        device: str = "cpu",
        output: str | None = None,
        logits: bool = True,
        wrt: Names | None = None,
        keep: Names = (),
        batch_size: int | None = None,
        threads: int | None = None,
        backend: Backend = "onnx",
        input_shapes: Shapes | None = None,
        **options: Any,
    ) -> None:
        self._composite, self._method = _composite(method, options)
        self.method = self._method.name if self._method is not None else "custom"
        self.options = dict(options)
        _check_settings(seed, device, backend, batch_size, threads, input_shapes)
        self._source: Loaded = load(model)
        default: Seed = self._method.seed if self._method is not None else "score"
        explained = None if wrt is None else _names("wrt", wrt)
        self._options = Options(output, explained, seed or default, logits, _names("keep", keep), accounting=True)
        self._shapes = dict(input_shapes or {})
        self._backend: Backend = backend
        self._batch_size, self._threads = batch_size, threads
        self._takes = feeding.inputs_of(self._source.model)
        self._canonical: dict[Any, ir.Model] = {}
        self._built: dict[Any, _Built] = {}
        if self._source.model.graph.opset_imports.get("", OLDEST) < OLDEST and backend == "onnx":
            _runs(self._source.model)
        if not self._needs_shapes or self._shapes:
            self.model  # noqa: B018 - a malformed model is refused here, not at the first call

    @property
    def model(self) -> ir.Model:
        """The model in canonical form; do not change it."""
        return self._canonical_for({})

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | None, ...], np.dtype[Any]]]:
        """Shape (None: open) and dtype of every input."""
        return {name: (takes.shape or (), takes.dtype) for name, takes in self._takes.items()}

    @property
    def sha256(self) -> str:
        """The SHA-256 of the source file."""
        return self._source.sha256

    @property
    def source_model(self) -> ir.Model:
        """The model as read, before canonical form; do not change it."""
        return self._source.model

    def __call__(self, x: Array | Mapping[str, Array], target: Any = None) -> Explanation:
        """Explain a batch.

        x: an array for a model with one input, or {input name: array}; axis 0 counts samples. target: None (arg-max per
        sample), an index, one index per sample, or an element of a named output such as ``"output[0,17]"``
        (``"output[:,17]"``: of every sample). Relevance has the shape and dtype of its input.

        Raises InputError, TargetError, UnsupportedOperator, ModelError.
        """
        feeds = feeding.checked(self._takes, x, wide=self._backend == "reference")
        parsed = targets.parse(target)
        built = self._build(feeds, parsed.output)
        by_sample = feeding.sampled(self._takes, list(built.graph.relevance))
        count = feeding.count(feeds, by_sample)
        graph = built.graph
        index = parsed.indices(
            count,
            graph.classes,
            graph.explained_shape,
            graph.explained,
            by_sample=graph.by_sample,
        )
        started = time.perf_counter()
        results = self._run(built, feeds, by_sample, index, count)
        return self._explanation(built, feeds, results, time.perf_counter() - started)

    attribute = __call__

    def plan(self) -> tuple[list[Row], list[str]]:
        """What every node on the way from target to input gets, and the nodes without a room."""
        with _foreseen():
            return plan(self.model, self._composite, self._options)

    def build(self) -> RelevanceGraph:
        """The relevance graph as it would be converted: without reports."""
        with _foreseen():
            return build(self.model, self._composite, replace(self._options, accounting=False), method=self.method)

    def convert(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        functions: bool = False,
        fold: bool = False,
        keep: Names = (),
        check: bool = True,
    ) -> onnx.ModelProto:
        """Write the explained model: original inputs and outputs first, ``<input>_relevance`` after; optional input ``target``.

        functions: keep composites as ONNX functions instead of expanding them. fold: store derived weights (w⁺, flipped w)
        instead of letting the runtime fold them on load. keep: tensors whose relevance becomes an output. check: run the
        file and the original on noise and compare; VerificationError, and no file, where they differ by more than 1e-5
        of the largest value. Returns the model; writes nothing where `path` is None.

        Raises OutputError where `path` cannot be written or is one of the source's own files.
        """
        place = None if path is None else self._place(path)
        options = replace(self._options, accounting=False, keep=(*self._options.keep, *_names("keep", keep)))
        with _foreseen():
            graph = build(self.model, self._composite, options, method=self.method)
            model = composites.as_functions(graph.model) if functions else composites.expand(graph.model)
        if fold:
            fold_constants(model, lambda constants: backend.Session(constants).run({}))
        source, seed = self._source, self._options.seed
        conversion.describe(model, graph, source, method=self.method, options=self.options, seed=seed)
        if place is None:
            if check:
                conversion.verify(serialise(model), graph, source, self.model, self._threads)
        else:
            with draft(place) as whole:
                write(model, whole)
                if check:
                    conversion.verify(whole, graph, source, self.model, self._threads)
        return ir.to_proto(model)

    # -- stages

    def _place(self, path: str | os.PathLike[str]) -> Path:
        place = target_path(path)
        beside = place.with_name(f"{place.name}.data")
        if place.resolve() in self._source.files or beside.resolve() in self._source.files:
            raise OutputError(f"{place} is a file of the source model; name another one for the explained model.")
        return place

    @property
    def _needs_shapes(self) -> bool:
        """Whether an input leaves more than its batch open."""
        return any(t.shape is None or any(d is None for d in t.shape[1:]) for t in self._takes.values())

    def _canonical_for(self, shapes: Shapes) -> ir.Model:
        key = tuple(sorted((k, tuple(v)) for k, v in shapes.items()))
        if key not in self._canonical:
            with _foreseen():
                self._canonical[key] = canonicalize(self._source.model, {**self._shapes, **shapes})
        return self._canonical[key]

    def _build(self, feeds: Mapping[str, Array], output: str | None) -> _Built:
        shapes = {n: (None, *a.shape[1:]) for n, a in feeds.items() if a.ndim} if self._needs_shapes else {}
        key = (tuple(sorted(shapes.items())), output)
        if key not in self._built:
            model = self._canonical_for(shapes)
            exact = self._backend == "reference"
            options = replace(self._options, output=output or self._options.output)
            with _foreseen():
                graph = build(as_float64(model) if exact else model, self._composite, options, method=self.method)
                lowered = backend.lower(graph.model)
            runner = Reference(lowered) if exact else backend.Session(lowered, threads=self._threads)
            self._built[key] = _Built(graph, runner)
        return self._built[key]

    def _run(
        self, built: _Built, feeds: Mapping[str, Array], by_sample: list[str], index: Array, count: int
    ) -> backend.Arrays:
        """All samples, in chunks where the model's batch is fixed or `batch_size` asks for it."""
        values = [v for v in built.graph.model.graph.inputs if v.name in by_sample]
        fixed = next((d for v in values for d in dims(v)[:1] if d is not None), None)
        size = fixed or self._batch_size or max(count, 1)
        if fixed is not None and count % fixed:
            raise InputError(
                f"The model's batch is fixed to {fixed}, so the number of samples must be a multiple of it, not {count}."
            )
        if not built.graph.by_sample:
            if size < count:
                raise InputError(
                    f"Output {built.graph.explained!r} does not keep the samples apart, so all of them run at once: "
                    f"{count} do not fit the batch of {size}."
                )
            size = count
        chunks = []
        for start in range(0, count, size):
            part = {n: a[start : start + size] if n in by_sample else a for n, a in feeds.items()}
            explained = index[start : start + size] if built.graph.by_sample else index
            chunks.append(built.runner.run({**part, built.graph.target_input: explained}))
        if len(chunks) == 1:
            return chunks[0]
        return {n: np.concatenate([np.atleast_1d(c[n]) for c in chunks]) for n in chunks[0]}

    def _explanation(
        self, built: _Built, feeds: dict[str, Array], results: backend.Arrays, seconds: float
    ) -> Explanation:
        graph = built.graph
        score = results[graph.reports["score"]].astype(np.float64)
        index = results[graph.reports["index"]].astype(np.int64)
        absorbed = results[graph.reports["absorbed"]].astype(np.float64)
        relevance = {n: results[o].astype(feeds[n].dtype, copy=False) for n, o in graph.relevance.items()}
        arrived = sum(feeding.totals(r) for r in relevance.values())
        seeded = np.where(index == -2, 0.0, score if self._options.seed == "score" else 1.0)
        if self._composite.positive_seed:
            seeded = np.where(score > 0, seeded, 0.0)
        if not graph.by_sample:
            arrived, absorbed = np.sum(arrived, keepdims=True), np.sum(absorbed, keepdims=True)
        gap = np.abs(seeded - arrived - absorbed)
        conservation = np.divide(gap, np.abs(seeded), out=gap.copy(), where=seeded != 0)
        return Explanation(
            relevance=relevance,
            outputs={n: results[n] for n in graph.outputs},
            target=Target(graph.explained, index, score),
            conservation=conservation,
            absorbed=absorbed,
            method=self.method,
            seconds=seconds,
            inputs=feeds,
            options=self.options,
            kept={n: results[o] for n, o in graph.kept.items()},
            channel_axis={n: channel_axis(graph.model, n, feeds[n].shape) for n in relevance},
            source=self.sha256,
        )


def build_vjp(model: Source, wrt: Sequence[str] | None = None, outputs: Sequence[str] | None = None) -> onnx.ModelProto:
    """A plain ONNX model of the vector-Jacobian product: what autograd calls `backward`, without a framework.

    Inputs: the model's, then one ``<output>_cotangent`` per name in `outputs` (default: all float outputs), of that
    output's shape and dtype. Outputs: the model's, then ``<input>_gradient`` per name in `wrt` (default: all float inputs):
    Σ_outputs (∂output/∂input)ᵀ·cotangent. Raises as `Explainer` does.
    """
    source = load(model)
    with _foreseen():
        canonical = canonicalize(source.model)
    names = [v.name or "" for v in canonical.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
    gradient = resolve("gradient").composite({})
    chosen = wrt_inputs(canonical, wrt)
    wanted = list(names if outputs is None else outputs)
    if not chosen or not wanted:
        raise InputError(
            "build_vjp needs at least one input in `wrt` and one output in `outputs`; leave them out for all."
        )
    with _foreseen():
        return ir.to_proto(composites.expand(vector_jacobian(canonical, gradient, chosen, wanted)))


def _composite(method: str | Composite, options: Mapping[str, Any]) -> tuple[Composite, Method | None]:
    if isinstance(method, Composite):
        if options:
            raise MethodError(
                f"A custom composite takes no options, but {next(iter(options))!r} was given; put it into the rule."
            )
        return method, None
    if not isinstance(method, str):
        raise MethodError("method must be a method's name or a Composite; `onnx-explain methods` lists the names.")
    found = resolve(method)
    return found.composite(options), found


def _runs(model: ir.Model) -> None:
    """Refuse a file older than ONNX Runtime's own support that it cannot run: there is no prediction to explain."""
    try:
        backend.Session(model)
    except ModelError as error:
        version = model.graph.opset_imports.get("")
        raise ModelError(
            f"The model has opset {version}, too old to run: {error} Export it with opset 13 or later."
        ) from error


def _names(option: str, given: Any) -> tuple[str, ...]:
    """One name, or several; a lone string is one name, not its letters."""
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise InputError(f"{option} must be a tensor's name or a list of names, not {given!r}.")
    return tuple(names)


def _check_settings(seed: Any, device: Any, chosen: Any, batch_size: Any, threads: Any, input_shapes: Any) -> None:
    if device != "cpu":
        raise MethodError(f"There is no device {device!r} yet; use device='cpu'.")
    if seed not in (None, "score", "one"):
        raise MethodError(f"seed must be 'score' or 'one', not {seed!r}.")
    if chosen not in ("onnx", "reference"):
        raise MethodError(f"backend must be 'onnx' or 'reference', not {chosen!r}.")
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")
    if input_shapes is not None and not (
        isinstance(input_shapes, Mapping)
        and all(isinstance(v, Sequence) and not isinstance(v, str) for v in input_shapes.values())
    ):
        raise InputError(f"input_shapes must be {{name: [1, 3, 224, 224]}}, not {input_shapes!r}.")


@contextmanager
def _foreseen() -> Iterator[None]:
    """A file can be malformed in more ways than there are checks: what none of them caught is told as the model's fault."""
    try:
        yield
    except ExplainError:
        raise
    except (MemoryError, RecursionError) as error:
        raise ModelError(
            "The model asks for more memory than there is, or is nested too deep; it may be damaged."
        ) from error
    except Exception as error:
        kind = type(error).__name__
        raise ModelError(
            f"The model is malformed, or holds something unforeseen ({kind}: {first_line(error, 160)}); "
            "if it runs elsewhere, please report it."
        ) from error
