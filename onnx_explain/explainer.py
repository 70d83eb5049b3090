"""The pipeline in one place: model in, canonical form, relevance graph, session, explanation; and the explained file out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_explain import target as targets
from onnx_explain.backends import onnx as backend
from onnx_explain.errors import InputError, MethodError, ModelError, OutputError, VerificationError, suggest
from onnx_explain.explanation import Explanation, Target
from onnx_explain.ir import composite as composites
from onnx_explain.ir.canonicalize import Shapes, canonicalize
from onnx_explain.ir.model import Loaded, Source, discard, load, save, serialise
from onnx_explain.ir.view import dims, shape_text
from onnx_explain.methods import Composite, Method, Seed, resolve
from onnx_explain.relevance import Options, RelevanceGraph, Row, build, channel_axis, plan, vector_jacobian, wrt_inputs
from onnx_explain.version import __version__

Array = npt.NDArray[Any]
OLDEST = 7  # the oldest opset that ONNX Runtime promises to run
Backend = Literal["onnx", "reference"]


@dataclass(frozen=True)
class _Built:
    """A relevance graph for one choice of input shapes and output, with what runs it."""

    graph: RelevanceGraph
    runner: backend.Session | backend.Reference


class Explainer:
    """Explains a model, as often as called; the graph is built and its session made on the first call.

    model: path, bytes or `onnx.ModelProto`. method: a name of `onnx-explain methods`, or a `Composite`; further keywords
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
        wrt: Sequence[str] | None = None,
        keep: Sequence[str] = (),
        batch_size: int | None = None,
        threads: int | None = None,
        backend: Backend = "onnx",
        input_shapes: Shapes | None = None,
        **options: Any,
    ) -> None:
        if device != "cpu":
            raise MethodError(f"There is no device {device!r} yet; use device='cpu'.")
        if seed not in (None, "score", "one"):
            raise MethodError(f"seed must be 'score' or 'one', not {seed!r}.")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}.")
        if backend not in ("onnx", "reference"):
            raise MethodError(f"backend must be 'onnx' or 'reference', not {backend!r}.")
        self._composite, self._method = _composite(method, options)
        self.method = self._method.name if self._method is not None else "custom"
        self.options = dict(options)
        self._source: Loaded = load(model)
        default: Seed = self._method.seed if self._method is not None else "score"
        self._options = Options(output, wrt, seed or default, logits, tuple(keep), accounting=True)
        self._shapes = dict(input_shapes or {})
        self._backend: Backend = backend
        self._batch_size, self._threads = batch_size, threads
        self._canonical: dict[Any, ir.Model] = {}
        self._built: dict[Any, _Built] = {}
        if self._source.model.graph.opset_imports.get("", 18) < OLDEST and backend == "onnx":
            _runs(self._source.model)
        if not _needs_shapes(self._source.model) or self._shapes:
            self.model  # noqa: B018 - a malformed or unsupported model is refused here, not at the first call

    @property
    def model(self) -> ir.Model:
        """The model in canonical form; do not change it."""
        return self._canonical_for({})

    @property
    def inputs(self) -> dict[str, tuple[tuple[int | None, ...], np.dtype[Any]]]:
        """Shape (None: open) and dtype of every input."""
        found = {}
        for value in self._source.model.graph.inputs:
            if value.name in self._source.model.graph.initializers:
                continue
            sizes = tuple(d if isinstance(d, int) else None for d in value.shape) if value.shape is not None else ()
            found[value.name or ""] = (sizes, value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32))
        return found

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
        """
        feeds = self._feeds(x)
        count = _samples(feeds)
        parsed = targets.parse(target)
        built = self._build(feeds, parsed.output)
        index = parsed.indices(count if built.graph.by_sample else 1, built.graph.classes, self._target_shape(built), built.graph.explained)
        started = time.perf_counter()
        results = self._run(built, feeds, index, count)
        return self._explanation(built, feeds, results, time.perf_counter() - started)

    attribute = __call__

    def plan(self) -> tuple[list[Row], list[str]]:
        """What every node on the way from target to input gets, and the nodes without a room."""
        return plan(self.model, self._composite, self._options)

    def build(self) -> RelevanceGraph:
        """The relevance graph as it would be converted: without reports."""
        return build(self.model, self._composite, replace(self._options, accounting=False), method=self.method)

    def convert(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        functions: bool = False,
        fold: bool = False,
        keep: Sequence[str] = (),
        check: bool = True,
    ) -> onnx.ModelProto:
        """Write the explained model: original inputs and outputs first, then ``<input>_relevance``; optional input ``target``.

        functions: keep composites as ONNX functions instead of expanding them. fold: store derived weights (w⁺, flipped w)
        instead of letting the runtime fold them on load. keep: tensors whose relevance becomes an output. check: run
        the file and the original on random input and compare; VerificationError, and no file, where they differ by more
        than 1e-5 of the largest value. Returns the model; writes nothing where `path` is None.
        """
        options = replace(self._options, accounting=False, keep=(*self._options.keep, *keep))
        graph = build(self.model, self._composite, options, method=self.method)
        model = composites.as_functions(graph.model) if functions else composites.expand(graph.model)
        if fold:
            backend.fold_constants(model)
        self._describe(model, graph)
        if path is None:
            if check:
                self._verify(serialise(model), graph)
            return ir.to_proto(model)
        target = Path(path)
        if self._source.path is not None and target.resolve() == self._source.path.resolve():
            raise OutputError(f"{target} is the source model; name another file for the explained one.")
        save(model, target)
        if check:
            try:
                self._verify(str(target), graph)
            except Exception:
                discard(target)
                raise
        return ir.to_proto(model)

    # -- stages

    def _canonical_for(self, shapes: Shapes) -> ir.Model:
        key = tuple(sorted((k, tuple(v)) for k, v in shapes.items()))
        if key not in self._canonical:
            self._canonical[key] = canonicalize(self._source.model, {**self._shapes, **shapes})
        return self._canonical[key]

    def _build(self, feeds: Mapping[str, Array], output: str | None) -> _Built:
        shapes = {n: (None, *a.shape[1:]) for n, a in feeds.items()} if _needs_shapes(self._source.model) else {}
        key = (tuple(sorted(shapes.items())), output)
        if key not in self._built:
            model = self._canonical_for(shapes)
            exact = self._backend == "reference"
            options = replace(self._options, output=output or self._options.output)
            graph = build(backend.as_float64(model) if exact else model, self._composite, options, method=self.method)
            lowered = backend.lower(graph.model)
            runner = backend.Reference(lowered) if exact else backend.Session(lowered, threads=self._threads)
            self._built[key] = _Built(graph, runner)
        return self._built[key]

    def _feeds(self, x: Array | Mapping[str, Array]) -> dict[str, Array]:
        known = self.inputs
        if not isinstance(x, Mapping):
            if len(known) != 1:
                raise InputError(f"The model has {len(known)} inputs; give {{name: array}} with {', '.join(map(repr, known))}.")
            x = {next(iter(known)): x}
        for name in x:
            if name not in known:
                raise InputError(f"The model has no input {name!r}.{suggest(name, known)}")
        missing = [n for n in known if n not in x]
        if missing:
            raise InputError(f"Input {missing[0]!r} is missing; the model needs {', '.join(map(repr, known))}.")
        return {name: _checked(name, np.asarray(x[name]), *spec, wide=self._backend == "reference") for name, spec in known.items()}

    def _target_shape(self, built: _Built) -> tuple[int | None, ...]:
        values = {v.name: v for n in built.graph.model.graph for v in n.outputs}
        return tuple(dims(values[built.graph.explained]))

    def _run(self, built: _Built, feeds: Mapping[str, Array], index: Array, count: int) -> backend.Arrays:
        """All samples, in chunks where the model's batch is fixed or `batch_size` asks for it."""
        fixed = {dims(v)[0] for v in built.graph.model.graph.inputs if v.name in feeds and v.shape is not None and len(v.shape)}
        size = next((d for d in fixed if d is not None), None) or self._batch_size or max(count, 1)
        is_fixed = any(d is not None for d in fixed)
        if is_fixed and count % size:
            raise InputError(f"The model's batch is fixed to {size}, so the number of samples must be a multiple of it, not {count}.")
        if not built.graph.by_sample:
            if size < count:
                raise InputError(
                    f"Output {built.graph.explained!r} does not keep the samples apart, so all of them run at once: "
                    f"{count} do not fit the batch of {size}."
                )
            size = count
        chunks = []
        for start in range(0, count, size):
            part = {n: a[start : start + size] for n, a in feeds.items()}
            explained = index[start : start + size] if built.graph.by_sample else index
            chunks.append(built.runner.run({**part, built.graph.target_input: explained}))
        if len(chunks) == 1:
            return chunks[0]
        return {n: np.concatenate([np.atleast_1d(c[n]) for c in chunks]) for n in chunks[0]}

    def _explanation(self, built: _Built, feeds: dict[str, Array], results: backend.Arrays, seconds: float) -> Explanation:
        graph = built.graph
        score = results[graph.reports["score"]].astype(np.float64)
        index = results[graph.reports["index"]].astype(np.int64)
        absorbed = results[graph.reports["absorbed"]].astype(np.float64)
        relevance = {n: results[o].astype(feeds[n].dtype, copy=False) for n, o in graph.relevance.items()}
        arrived = sum(_sums(r) for r in relevance.values())
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
            channel_axis={n: channel_axis(self._source.model, n, feeds[n].shape) for n in relevance},
            source=self.sha256,
        )

    # -- the explained file

    def _describe(self, model: ir.Model, graph: RelevanceGraph) -> None:
        """What an auditor reads off the file."""
        model.producer_name, model.producer_version = "onnx-explain", __version__
        model.metadata_props.update(
            {
                "onnx_explain.version": __version__,
                "onnx_explain.method": self.method,
                "onnx_explain.options": json.dumps(self.options, sort_keys=True, default=str),
                "onnx_explain.seed": self._options.seed,
                "onnx_explain.explained": graph.explained,
                "onnx_explain.relevance": json.dumps(dict(graph.relevance)),
                "onnx_explain.source_sha256": self.sha256,
            }
        )

    def _verify(self, explained: bytes | str, graph: RelevanceGraph) -> None:
        """The explained model predicts what the original does, to 1e-5 of the largest value."""
        feeds = _random_feeds(self.model)
        theirs = backend.Session(str(self._source.path) if self._source.path else serialise(self._source.model), threads=self._threads).run(feeds)
        ours = backend.Session(explained, threads=self._threads).run(feeds)
        for name, value in theirs.items():
            mine = ours[name]
            if value.dtype.kind != "f":
                same = mine.shape == value.shape and bool(np.array_equal(mine, value))
            else:
                scale = float(np.abs(value).max(initial=0.0)) or 1.0
                same = mine.shape == value.shape and bool(np.allclose(mine, value, rtol=0, atol=1e-5 * scale, equal_nan=True))
            if not same:
                raise VerificationError(
                    f"The explained model's output {name!r} differs from the original's, so no file was written; "
                    "please report this model."
                )
        for output in graph.relevance.values():
            if ours[output].dtype.kind == "f" and np.isnan(ours[output]).any() and not any(np.isnan(v).any() for v in theirs.values() if v.dtype.kind == "f"):
                raise VerificationError(f"The explained model's {output!r} is NaN on random input; use another method or report this model.")


def build_vjp(model: Source, wrt: Sequence[str] | None = None, outputs: Sequence[str] | None = None) -> onnx.ModelProto:
    """A plain ONNX model of the vector-Jacobian product: what autograd calls `backward`, without a framework.

    Inputs: the model's, then one ``<output>_cotangent`` per name in `outputs` (default: all float outputs), of that output's
    shape and dtype. Outputs: the model's, then ``<input>_gradient`` per name in `wrt` (default: all float inputs):
    Σ_outputs (∂output/∂input)ᵀ·cotangent. Raises as `Explainer` does.
    """
    canonical = canonicalize(load(model).model)
    names = [v.name or "" for v in canonical.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
    gradient = resolve("gradient").composite({})
    chosen = wrt_inputs(canonical, wrt)
    wanted = list(names if outputs is None else outputs)
    if not chosen or not wanted:
        raise InputError("build_vjp needs at least one input in `wrt` and one output in `outputs`; leave them out for all.")
    return ir.to_proto(composites.expand(vector_jacobian(canonical, gradient, chosen, wanted)))


def _composite(method: str | Composite, options: Mapping[str, Any]) -> tuple[Composite, Method | None]:
    if isinstance(method, Composite):
        if options:
            raise MethodError(f"A custom composite takes no options, but {next(iter(options))!r} was given; put it into the rule.")
        return method, None
    if not isinstance(method, str):
        raise MethodError(f"method must be a name or a Composite, not {type(method).__name__}.")
    found = resolve(method)
    return found.composite(options), found


def _runs(model: ir.Model) -> None:
    """Refuse a file older than ONNX Runtime's own support that it cannot run: there is no prediction to explain."""
    try:
        backend.Session(model)
    except ModelError as error:
        version = model.graph.opset_imports.get("")
        raise ModelError(f"The model has opset {version}, and ONNX Runtime cannot run it as it is: {error} Export it with opset 13 or later.") from error


def _needs_shapes(model: ir.Model) -> bool:
    """Whether an input leaves more than its batch open."""
    fed = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    return any(v.shape is None or any(not isinstance(d, int) for d in list(v.shape)[1:]) for v in fed)


def _checked(name: str, x: Array, shape: tuple[int | None, ...], dtype: np.dtype[Any], *, wide: bool) -> Array:
    """The array as the model takes it, or a sentence about what is wrong with it."""
    wanted = f"[{', '.join('N' if d is None else str(d) for d in shape)}]"
    if x.dtype == object or x.dtype.kind in "USV":
        raise InputError(f"Input {name!r} must be numbers of type {dtype}, not {x.dtype}.")
    if shape and x.ndim == len(shape) - 1:
        raise InputError(f"Input {name!r} has the shape {list(x.shape)}, but the model takes {wanted}; add the batch axis: x[None].")
    if shape and (x.ndim != len(shape) or any(d is not None and d != g for d, g in list(zip(shape, x.shape))[1:])):
        swapped = x.ndim == 4 and len(shape) == 4 and x.shape[-1] in (1, 3, 4) and shape[1] == x.shape[-1]
        turned = x.ndim == 4 and len(shape) == 4 and x.shape[1] in (1, 3, 4) and shape[-1] == x.shape[1]
        hint = " The array is laid out NHWC: x.transpose(0, 3, 1, 2)." if swapped else " The array is laid out NCHW: x.transpose(0, 2, 3, 1)." if turned else ""
        raise InputError(f"Input {name!r} has the shape {list(x.shape)}, but the model takes {wanted}.{hint}")
    if x.ndim and x.shape[0] == 0:
        raise InputError(f"Input {name!r} holds no sample.")
    if x.dtype.kind == "c" or (dtype.kind in "iu" and x.dtype.kind == "f"):
        raise InputError(f"Input {name!r} must be of type {dtype}, not {x.dtype}.")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int(x.size - np.isfinite(x).sum())
        raise InputError(f"Input {name!r} holds {bad} values that are NaN or infinite; clean the data first.")
    return np.ascontiguousarray(x.astype(np.float64 if wide and dtype == np.float32 else dtype, copy=False))


def _samples(feeds: Mapping[str, Array]) -> int:
    counts = {n: a.shape[0] for n, a in feeds.items() if a.ndim}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{n!r} {c}" for n, c in counts.items())
        raise InputError(f"The inputs hold different numbers of samples: {told}.")
    return next(iter(counts.values()), 1)


def _sums(r: Array) -> Array:
    wide = r.astype(np.float64)
    return wide.reshape(wide.shape[0], -1).sum(1) if wide.ndim else wide.reshape(1)


def _random_feeds(model: ir.Model) -> dict[str, Array]:
    """Two samples (as many as a fixed batch wants) of noise in the model's own input types."""
    generator = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.inputs:
        sizes = [d if d is not None else (2 if axis == 0 else 1) for axis, d in enumerate(dims(value))]
        dtype = value.dtype.numpy() if value.dtype is not None else np.dtype(np.float32)
        if dtype.kind == "b":
            feeds[value.name or ""] = np.zeros(sizes, dtype)
        elif dtype.kind in "iu":
            feeds[value.name or ""] = generator.integers(0, 2, sizes).astype(dtype)
        elif dtype.kind == "O":
            raise InputError(f"Input {value.name!r} {shape_text(value)} holds strings, which cannot be tried; pass check=False.")
        else:
            feeds[value.name or ""] = generator.standard_normal(sizes).astype(dtype)
    return feeds
