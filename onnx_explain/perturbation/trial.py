"""A batch of inputs and the score that each has under any masks: all the running that black-box methods do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.embedded import embeddings
from onnx_explain.errors import InputError, ModelError
from onnx_explain.ir.view import dims
from onnx_explain.methods.perturbation import Perturbation
from onnx_explain.path import channel_axis, tensors
from onnx_explain.perturbation.axes import Axes
from onnx_explain.prepared import Array, Built, Outcome, Prepared, foreseen
from onnx_explain.relevance import Options
from onnx_explain.relevance.probe import Probe, perturbed_tensors, probe, survey
from onnx_explain.target import NOT_EXPLAINED, Parsed

Ids = npt.NDArray[np.int64]
Masks = Mapping[str, Array]
Progress = Callable[[int, int], None]
AT_ONCE, ENTRIES_AT_ONCE = 64, 1 << 21  # evaluations, and entries of their inputs, where no batch size is asked for


class Trial:
    """One batch under a method: the units that are looked at apart, and their score under any masks.

    A unit is a sample; all samples together are one where the explained output or tensor does not keep them apart.
    """

    def __init__(
        self,
        prepared: Prepared,
        how: Perturbation,
        feeds: dict[str, Array],
        aim: Parsed,
        options: Options,
        method: str,
        progress: Progress | None,
    ) -> None:
        self.prepared, self.how, self.feeds, self.method = prepared, how, feeds, method
        self._progress, self._done, self._total = progress, 0, 0
        model = prepared.model(feeds)
        with foreseen():
            self.names = perturbed_tensors(model, options)
        how.baseline.check(self.names)
        # what a batch of one kind of input once had built is kept; the model is one object per shapes of the inputs
        key = (id(model), options.output, options.at, tuple(self.names), options.logits)
        emitted = None if how.baseline.kind == "constant" else how.baseline
        whole = prepared.built(
            ("survey", id(how), key), feeds, lambda m: [survey(m, options, emitted, self._channels(m))]
        )
        self.graph = whole.graph
        explained = [n for n in (self.names if options.at is None else options.wrt or feeds) if n in feeds] or list(
            feeds
        )
        self.by_sample, self.count = prepared.samples(feeds, explained)
        index = prepared.indices(self.graph, aim, self.count)
        self.results = prepared.run(
            whole, feeds, {self.graph.target_input: index}, by_sample=self.by_sample, count=self.count
        )
        self.index: Ids = self.results[self.graph.reports["index"]].astype(np.int64)
        self.values = {n: self._value(n) for n in self.names}
        self.baselines = {n: self._baseline(n) for n in self.names}
        self.batch = self._fixed_batch()
        self.apart = self.graph.by_sample and all(self._apart(n) for n in self.names)
        if self.graph.by_sample and not self.apart:
            self._tell_of_neighbours()
        explained_rows = np.flatnonzero(self.index != NOT_EXPLAINED)
        self.units: Ids = explained_rows if self.apart else explained_rows[:1] * 0
        self.axes = [self._axes(n) for n in self.names]
        self._probe, self._built = prepared.once(("probe", key, how.score), lambda: self._probed(options))
        self.at_once = self._at_once()

    # -- what is explained

    def _tell_of_neighbours(self) -> None:
        """A note on a sample's map that other samples have a part in."""
        others = ", ".join(repr(n) for n in self.names if not self._apart(n))
        note = (
            f"Method {self.method!r} masked all samples as one, because axis 0 of {others} does not count them: a sample's "
            "map depends on its neighbours."
        )
        if note not in self.prepared.notes:
            self.prepared.notes.append(note)

    def _value(self, name: str) -> Array:
        return self.results[self.graph.values[name]] if name in self.graph.values else self.feeds[name]

    def _baseline(self, name: str) -> Array:
        """The baseline in the tensor's shape and dtype."""
        x, baseline = self.values[name], self.how.baseline
        if baseline.kind != "constant":
            return self.results[self.graph.reports[f"baseline {name}"]]
        given = baseline.value.get(name, 0.0) if isinstance(baseline.value, Mapping) else baseline.value
        value = np.asarray(given).astype(x.dtype)
        try:
            return np.broadcast_to(value, x.shape)
        except ValueError as error:
            raise InputError(
                f"The baseline of {name!r} has the shape {list(value.shape)}, which does not broadcast to {list(x.shape)}."
            ) from error

    def _fixed_batch(self) -> int | None:
        inputs = [v for v in self.graph.model.graph.inputs if v.name in self.by_sample]
        return next((d for v in inputs for d in dims(v)[:1] if d is not None), None)

    def _apart(self, name: str) -> bool:
        """Whether axis 0 of the tensor counts samples."""
        if name in self.feeds:
            return name in self.by_sample
        value, shape = tensors(self.graph.model)[name], self.values[name].shape
        first = dims(value)[0] if value.shape is not None and len(value.shape) else None
        return len(shape) > 0 and shape[0] == self.count and first in (None, self.batch)

    def _axes(self, name: str) -> Axes:
        shape = self.values[name].shape
        channels = self._channels(self.graph.model)[name] if len(shape) > 2 else None
        return Axes.of(name, shape, channels, batch=self.apart)

    def _channels(self, model: ir.Model) -> dict[str, int | None]:
        """The axis that masks take whole; inner tensors have their channels on axis 1, as their operators do."""
        own, known = {*self.feeds, *embeddings(model)}, tensors(model)
        return {n: channel_axis(model, n, [d or 0 for d in dims(known[n])]) if n in own else 1 for n in self.names}

    # -- running

    def _probed(self, options: Options) -> tuple[Probe, Built]:
        with foreseen():
            made = probe(self.prepared.model(self.feeds), options, self.how.score)
        return made, Built((made.graph,), self.prepared.runner(made.graph.model))

    def _at_once(self) -> int:
        if not self.apart:
            return 1
        inputs = (prod(x.shape[1:]) for n, x in self.feeds.items() if n in self.by_sample)
        largest = max(*inputs, *(prod(a.shape) for a in self.axes), 1)
        return self.batch or self.prepared.batch_size or max(1, min(AT_ONCE, ENTRIES_AT_ONCE // largest))

    def expect(self, masks: int) -> None:
        """Say how many masks every unit will be seen under."""
        self._total = masks * len(self.units)

    def sweep(self, count: int, masks_of: Callable[[Ids], Masks]) -> Iterator[tuple[Ids, Ids, Masks, Array]]:
        """Every unit under every one of `count` masks: (units, mask numbers, masks, scores), each [B, ...], chunk by chunk.

        `masks_of(numbers)` makes the masks [len(numbers), ...] per tensor, of shapes that broadcast to the tensor's without
        its batch axis; a tensor without a mask stays as it is. Units are places in `units`; scores are float64.
        """
        total = count * len(self.units)
        start = 0
        while start < total:
            ids, slots = np.divmod(np.arange(start, min(start + self.at_once, total)), len(self.units))
            distinct, where = np.unique(ids, return_inverse=True)
            masks = {n: m[where] for n, m in masks_of(distinct).items()}
            try:
                scores = self._scores(slots, masks)
            except ModelError:
                if self.at_once == 1 or self.batch is not None:
                    raise
                self.at_once = 1  # a batch written into the graph, or more than there is memory for
                continue
            start += len(ids)
            self._done += len(ids)
            if self._progress is not None:
                self._progress(self._done, max(self._total, self._done))
            yield slots, ids, masks, scores

    def whole(self, shown: bool = True) -> Array:
        """The score of every unit as it is, or with all its baselines instead: float64 [units]."""
        found = np.zeros(len(self.units))
        one = {a.name: np.full((1, *[1] * len(a.shape)), float(shown)) for a in self.axes}
        for slots, _, _, scores in self.sweep(1, lambda ids: one):
            found[slots] = scores
        return found

    def _scores(self, slots: Ids, masks: Masks) -> Array:
        fed = {self._probe.masks[a.name]: self._mask(a, masks.get(a.name), len(slots)) for a in self.axes}
        if not self.apart:
            return self._score_together(fed)
        rows = self.units[slots]
        if self.batch is not None:  # a fixed batch is filled up with repetitions
            rows = np.resize(rows, self.batch)
            fed = {n: np.resize(m, (self.batch, *m.shape[1:])) if len(m) > 1 else m for n, m in fed.items()}
        fed |= {n: x[rows] if n in self.by_sample else x for n, x in self.feeds.items()}
        fed |= {self._probe.baselines[n]: b[rows] for n, b in self.baselines.items()}
        fed[self._probe.graph.target_input] = self.index[rows]
        found = self._built.runner.run(fed)[self._probe.score].astype(np.float64)
        if len(found) != len(rows):
            raise ModelError(
                f"The model gives {len(found)} scores for {len(rows)} inputs: its batch is not open; use batch_size=1."
            )
        scores: Array = found[: len(slots)]
        return scores

    def _score_together(self, fed: dict[str, Array]) -> Array:
        """The score of all samples at once, summed over those that are explained."""
        rows = {n: m[0] for n, m in fed.items()}
        rows |= {self._probe.baselines[n]: b for n, b in self.baselines.items()}
        rows[self._probe.graph.target_input] = self.index
        results = self.prepared.run(self._built, self.feeds, rows, by_sample=self.by_sample, count=self.count)
        total: Array = np.sum(results[self._probe.score], dtype=np.float64).reshape(1)
        return total

    def _mask(self, axes: Axes, mask: Array | None, many: int) -> Array:
        dtype = self.values[axes.name].dtype
        if mask is None:
            mask = np.ones((many, *[1] * len(axes.shape)))
        return np.ascontiguousarray(mask, dtype=dtype)

    # -- the result

    def relevance(self, axes: Axes, found: Array) -> Array:
        """What was found per unit [units, *shape], float64 in the shape of the tensor, zero where nothing was explained."""
        relevance = np.zeros(self.values[axes.name].shape)
        if self.apart:
            relevance[self.units] = found
        elif len(found):
            relevance[...] = found[0]
        return relevance

    def outcome(
        self, relevance: dict[str, Array], seeded: Array | None = None, completeness: Array | None = None
    ) -> Outcome:
        """The outcome. seeded, completeness: per unit [units]; the score where nothing else was seeded."""
        score = self.results[self.graph.reports["score"]].astype(np.float64)
        told = score if self.apart or len(score) == 1 else score.sum(keepdims=True)
        return Outcome(
            relevance=relevance,
            outputs={n: self.results[n] for n in self.graph.outputs},
            explained=self.graph.explained,
            index=self.index,
            score=score,
            seeded=told if seeded is None else self._per_unit(seeded),
            absorbed=np.zeros(len(told)),
            by_sample=self.apart,
            values={n: x for n, x in self.values.items() if n not in self.feeds},
            completeness=None if completeness is None else self._per_unit(completeness),
        )

    def _per_unit(self, found: Array) -> Array:
        if not self.apart:
            return found if len(found) else np.zeros(1)
        whole = np.zeros(self.count)
        whole[self.units] = found
        return whole


def under(name: str, make: Callable[[Ids], Array]) -> Callable[[Ids], Masks]:
    """Masks for one tensor alone, as `Trial.sweep` takes them."""
    return lambda ids: {name: make(ids)}
