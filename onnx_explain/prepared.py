"""A model read once: its canonical form per choice of input shapes, the sessions made of it, and runs in chunks of samples.

What is computed is not decided here; every way of explaining runs its graphs through this.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain import aiming
from onnx_explain import feeds as feeding
from onnx_explain.backends import gpu
from onnx_explain.backends import onnx as backends
from onnx_explain.backends.reference import Reference
from onnx_explain.errors import ExplainError, InputError, ModelError
from onnx_explain.ir.canonicalize import Shapes, canonicalize, time_is_first
from onnx_explain.ir.model import Loaded, first_line
from onnx_explain.ir.view import dims
from onnx_explain.ir.widen import as_float64
from onnx_explain.operators.samples import Place
from onnx_explain.relevance import Options, RelevanceGraph
from onnx_explain.target import Parsed

Array = npt.NDArray[Any]
Backend = Literal["onnx", "reference", "kernels"]
_TARGETS = 16  # computed targets whose graphs are kept
OLDEST = 7  # the oldest opset that ONNX Runtime promises to run


@dataclass(frozen=True)
class Built:
    """Relevance graphs that share one model, and what runs it."""

    graphs: tuple[RelevanceGraph, ...]
    runner: backends.Runner

    @property
    def graph(self) -> RelevanceGraph:
        """The first (often the only) graph."""
        return self.graphs[0]


@dataclass(frozen=True)
class Outcome:
    """What one way of explaining found for one batch, before it is told as an `Explanation`.

    relevance: per input (or the tensor explained at), that tensor's shape. outputs: the model's own. index: int64 [N],
    score [N]: what was explained. seeded, absorbed: float64 [N], what should arrive and what did not. completeness:
    float64 [N], Σ relevance - (score - score of the baseline), of methods that promise it is zero. layer: where gradients
    turned into relevance. values: what the relevance is of, where that is no input. places: where the tensors of
    `relevance` have their samples.
    """

    relevance: dict[str, Array]
    outputs: dict[str, Array]
    explained: str
    index: Array
    score: Array
    seeded: Array
    absorbed: Array
    by_sample: bool = True
    kept: dict[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    completeness: Array | None = None
    layer: str | None = None
    places: Mapping[str, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class Spot:
    """Where a target is: the model that has it as a tensor (computed targets), as an element, under these options."""

    prepared: Prepared
    target: Parsed
    options: Options
    aimed: aiming.Aimed | None = None


class Prepared:
    """A model ready to be explained. `batch_size`: samples that run at once; `threads`: ONNX Runtime's; `device`: the GPU,
    or None for the CPU; `notes`: sentences on how it ran, for whoever asked.
    """

    def __init__(
        self,
        source: Loaded,
        *,
        backend: Backend,
        batch_size: int | None,
        threads: int | None,
        input_shapes: Shapes,
        device: gpu.Device | None = None,
    ) -> None:
        self.source, self.backend, self.batch_size, self.threads = source, backend, batch_size, threads
        self.device = device
        self.notes: list[str] = []
        self._fitting: int | None = None  # samples that the device's memory has been found to hold at once
        self.takes = feeding.inputs_of(source.model)
        self._shapes = dict(input_shapes)
        self._whole = False  # whether axis 0 of the inputs has to be known like any other
        self._canonical: dict[Hashable, ir.Model] = {}
        self._known: dict[Hashable, Any] = {}
        self._base: Prepared | None = None  # of a computed target: the model without it
        self._aim: Callable[[ir.Model], aiming.Aimed] | None = None
        self._aimed: dict[Hashable, aiming.Aimed] = {}
        self._targets: dict[Hashable, Prepared] = {}
        if source.model.graph.opset_imports.get("", OLDEST) < OLDEST and not self.exact:
            _runs(source.model)
        if not self.needs_shapes or self._shapes:
            self.canonical()  # a malformed model is refused here, not at the first call

    @property
    def exact(self) -> bool:
        """Whether everything runs in float64."""
        return self.backend == "reference"

    @property
    def needs_shapes(self) -> bool:
        """Whether an input leaves more than its batch open."""
        return any(t.shape is None or any(d is None for d in t.shape[1:]) for t in self.takes.values())

    def feeds(self, x: Array | Mapping[str, Array]) -> dict[str, Array]:
        """One checked array per input; InputError."""
        if self.device is not None:
            x = self._fetched(x, self.device)
        return feeding.checked(self.takes, x, wide=self.exact)

    def placed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """One checked array per input, those of the device where they are; InputError."""
        there = {n: a for n, a in given.items() if n in self.takes and gpu.is_on_device(a)}
        here = {n: t for n, t in self.takes.items() if n not in there}
        rest = {n: a for n, a in given.items() if n not in there}
        found: dict[str, Any] = feeding.checked(here, rest, wide=False) if here or rest else {}
        checked = {n: gpu.foreign(n, a, self.takes[n].shape, self.takes[n].dtype) for n, a in there.items()}
        return {n: {**found, **checked}[n] for n in self.takes}

    def _fetched(self, x: Any, device: gpu.Device) -> Any:
        """Device arrays as host arrays; an explanation holds its inputs there."""
        given = x if isinstance(x, Mapping) else {next(iter(self.takes)): x}
        if not any(map(gpu.is_on_device, given.values())):
            return x
        device.wait()
        found = {}
        for name, array in given.items():
            takes = self.takes.get(name)
            known = takes is not None and gpu.is_on_device(array)
            found[name] = device.fetch(gpu.foreign(name, array, takes.shape, takes.dtype)) if known and takes else array
        return found

    def at(self, target: Parsed, feeds: Mapping[str, Array] | None, options: Options, *, sure: bool = True) -> Spot:
        """Where a target is, and how to explain it there. sure: see `aiming.aim`. Raises TargetError.

        A computed target becomes a tensor of a model of its own, which shares everything else with this one.
        """
        if not target.computed:
            return Spot(self, target, options)
        with foreseen():
            if not aiming.is_computed(self.canonical(feeds), target, options.wrt):
                return Spot(self, target, options)
        key = (target, options.logits, sure)
        if key not in self._targets:
            if len(self._targets) >= _TARGETS:
                self._targets.pop(next(iter(self._targets)))
            self._targets[key] = self._with(
                lambda model: aiming.aim(model, target, wrt=options.wrt, logits=options.logits, sure=sure)
            )
        there = self._targets[key]
        there.canonical(feeds)
        aimed = there._aimed[there._shapes_of(feeds)]
        return Spot(there, aimed.parsed, replace(options, output=aimed.tensor, logits=False), aimed)

    def _with(self, aim: Callable[[ir.Model], aiming.Aimed]) -> Prepared:
        there = copy.copy(self)
        there._canonical, there._known, there._targets, there._aimed = {}, {}, {}, {}
        there._base, there._aim = self, aim
        return there

    def canonical(self, feeds: Mapping[str, Array] | None = None) -> ir.Model:
        """The model in canonical form for inputs of these shapes; do not change it."""
        if self._base is not None:
            return self._with_target(self._base, feeds)
        model = self._made(feeds)
        if not self._whole and time_is_first(model):
            self._whole = True  # a recurrence runs along axis 0: what the array holds there is no batch
            model = self._made(feeds)
        return model

    def _made(self, feeds: Mapping[str, Array] | None) -> ir.Model:
        key = self._shapes_of(feeds), self._whole
        if key not in self._canonical:
            with foreseen():
                shapes = {**self._shapes, **dict(key[0])}
                self._canonical[key] = canonicalize(self.source.model, shapes, whole=self._whole)
        return self._canonical[key]

    def _with_target(self, base: Prepared, feeds: Mapping[str, Array] | None) -> ir.Model:
        shapes = self._shapes_of(feeds)
        if shapes not in self._canonical and self._aim is not None:
            with foreseen():
                aimed = self._aim(base.canonical(feeds))
            self._canonical[shapes], self._aimed[shapes] = aimed.model, aimed
        return self._canonical[shapes]

    def model(self, feeds: Mapping[str, Array]) -> ir.Model:
        """The canonical model in the precision that the backend computes in; do not change it."""
        model = self.canonical(feeds)
        return self.once(("model", self._shapes_of(feeds)), lambda: as_float64(model)) if self.exact else model

    def runner(self, model: ir.Model) -> backends.Runner:
        """What runs a model; composites are expanded."""
        with foreseen():
            if self.device is not None and self.backend == "kernels":
                return gpu.GpuRunner(model, self.device, self.notes.append)
            lowered = backends.lower(model)
            if self.device is not None:
                return gpu.OnDevice(self.device, lowered)
        return Reference(lowered) if self.exact else backends.Session(lowered, threads=self.threads)

    def built(
        self, key: Hashable, feeds: Mapping[str, Array], make: Callable[[ir.Model], list[RelevanceGraph]]
    ) -> Built:
        """The graphs that `make` writes for inputs of these shapes, with their session; made once per `key`."""

        def fresh() -> Built:
            with foreseen():
                graphs = make(self.model(feeds))
            return Built(tuple(graphs), self.runner(graphs[0].model))

        built: Built = self.once((key, self._shapes_of(feeds)), fresh)
        return built

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned the first time it was called under this key."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def samples(self, feeds: Mapping[str, Array], explained: list[str]) -> tuple[list[str], int]:
        """The inputs whose axis 0 counts samples, and how many samples there are."""
        by_sample = feeding.sampled(self.takes, explained)
        return by_sample, feeding.count(feeds, by_sample)

    def indices(self, graph: RelevanceGraph, target: Parsed, count: int) -> Array:
        """The target's index per sample: int64 [count]; TargetError."""
        return target.indices(count, graph.classes, graph.explained_shape, graph.explained, by_sample=graph.by_sample)

    def run(
        self,
        built: Built,
        feeds: Mapping[str, Array],
        rows: Mapping[str, Array],
        *,
        by_sample: list[str],
        count: int,
    ) -> backends.Arrays:
        """All samples, in chunks where the model's batch is fixed or `batch_size` asks for it.

        `rows`: further inputs of the graph, with one entry per sample where the explained tensor keeps samples apart; what
        has another length is fed whole to every chunk.
        """
        while True:
            parts = self.chunks(built, by_sample=by_sample, count=count)
            try:
                return self._run(built, feeds, rows, parts, by_sample=by_sample, count=count)
            except gpu.OutOfMemory:
                if not self._halve(built, min(parts[0].stop, count) - parts[0].start, by_sample):
                    raise

    def _halve(self, built: Built, size: int, by_sample: list[str]) -> bool:
        """Half as many samples at once from now on, with a note; False where they cannot be fewer."""
        fixed = any(v.name in by_sample and dims(v)[0] is not None for v in built.graph.model.graph.inputs if v.shape)
        if fixed or size < 2 or not built.graph.by_sample:
            return False
        self._fitting = size // 2
        self.notes.append(f"The GPU's memory does not hold {size} samples at once; {self._fitting} ran at a time.")
        return True

    def _run(
        self,
        built: Built,
        feeds: Mapping[str, Array],
        rows: Mapping[str, Array],
        parts: list[slice],
        *,
        by_sample: list[str],
        count: int,
    ) -> backends.Arrays:
        apart = built.graph.by_sample
        chunks = []
        for part in parts:
            fed = {n: a[part] if n in by_sample else a for n, a in feeds.items()}
            fed |= {n: a[part] if apart and a.ndim and len(a) == count else a for n, a in rows.items()}
            chunks.append(built.runner.run(fed))
        if len(chunks) == 1:
            return chunks[0]
        return {n: np.concatenate([np.atleast_1d(c[n]) for c in chunks]) for n in chunks[0]}

    def chunks(self, built: Built, *, by_sample: list[str], count: int) -> list[slice]:
        """Which samples run at once; InputError where the model's fixed batch does not allow this many."""
        values = [v for v in built.graph.model.graph.inputs if v.name in by_sample]
        fixed = next((d for v in values for d in dims(v)[:1] if d is not None), None)
        size = fixed or min(self.batch_size or max(count, 1), self._fitting or max(count, 1))
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
        return [slice(start, start + size) for start in range(0, count, size)]

    def _shapes_of(self, feeds: Mapping[str, Array] | None) -> tuple[tuple[str, tuple[int | None, ...]], ...]:
        if feeds is not None and self._whole:
            return tuple(sorted((n, a.shape) for n, a in feeds.items() if a.ndim))
        if feeds is None or not self.needs_shapes:
            return ()
        return tuple(sorted((n, (None, *a.shape[1:])) for n, a in feeds.items() if a.ndim))


def _runs(model: ir.Model) -> None:
    """Refuse a file older than ONNX Runtime's own support that it cannot run: there is no prediction to explain."""
    try:
        backends.Session(model)
    except ModelError as error:
        version = model.graph.opset_imports.get("")
        raise ModelError(
            f"The model has opset {version}, too old to run: {error} Export it with opset 13 or later."
        ) from error


@contextmanager
def foreseen() -> Iterator[None]:
    """A file can be malformed in more ways than there are checks: what none of them caught is told as the model's fault.

    Python's cycle collector waits meanwhile: with every generation of new nodes it would walk over all that are there, 40 %
    of the time to build a graph of 5 000.
    """
    collects = gc.isenabled()
    gc.disable()
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
    finally:
        if collects:
            gc.enable()
