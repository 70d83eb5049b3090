"""The points of one batch, one after another: relevance is added up in float64, and memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.ensembles import stepping
from onnx_explain.ensembles.placing import Places, baseline_rows, places
from onnx_explain.ensembles.refining import NODES, Way, refined
from onnx_explain.ensembles.stepping import Ends, Step
from onnx_explain.methods.ensemble import Ensemble, Statistic, quadrature
from onnx_explain.prepared import Built, Outcome, Prepared, foreseen
from onnx_explain.relevance import Options, RelevanceGraph
from onnx_explain.relevance.apart import arrived
from onnx_explain.target import NOT_EXPLAINED, Parsed

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def explain(
    prepared: Prepared, ensemble: Ensemble, feeds: Mapping[str, Array], aim: Parsed, options: Options, *, method: str
) -> Outcome:
    """Explain one batch, in chunks of samples, each over all its points.

    Completeness is Σ relevance - (F(x) - F(baseline)), over a set of baselines their mean as they were drawn.
    """
    model = prepared.model(feeds)
    key = ("ensemble", ensemble, options.output, options.seed, id(model))
    graphs: _Graphs = prepared.once(key, lambda: _Graphs.of(prepared, model, ensemble, options, method))
    by_sample, count = prepared.samples(dict(feeds), list(graphs.where.inputs))
    index = prepared.indices(graphs.known, aim, count)
    chunks = []
    for part in prepared.chunks(graphs.ends_built, by_sample=by_sample, count=count):
        fed = {n: a[part] if n in by_sample else a for n, a in feeds.items()}
        noise = (
            ensemble.noise if ensemble.noise is None or ensemble.noise.shape[1] != count else ensemble.noise[:, part]
        )
        aimed = index[part] if graphs.known.by_sample and len(index) == count else index
        chunks.append(_Chunk(graphs, fed, aimed, noise).run())
    return _outcome(graphs, chunks)


@dataclass(frozen=True)
class _Graphs:
    """The graphs of one method on inputs of these shapes, each with what runs it."""

    ensemble: Ensemble
    where: Places
    step: Step
    ends: Ends
    step_built: Built
    ends_built: Built
    probe_built: Built | None
    rows: Arrays

    @staticmethod
    def of(prepared: Prepared, model: Any, ensemble: Ensemble, options: Options, method: str) -> _Graphs:
        with foreseen():
            where = places(model, ensemble, options)
            rows = baseline_rows(model, ensemble, where) if ensemble.points == "baselines" else {}
            step = stepping.step(model, ensemble, options, where, method=method)
            ends = stepping.ends(model, ensemble, options, where, step.graph)
            needed = ensemble.tolerance is not None or (where.computed and ensemble.points != "noise")
            probe = stepping.probe(model, ensemble, options, where, step) if needed else None

        def built(graph: RelevanceGraph) -> Built:
            return Built((graph,), prepared.runner(graph.model))

        return _Graphs(
            ensemble,
            where,
            step,
            ends,
            built(step.graph),
            built(ends.graph),
            None if probe is None else built(probe),
            rows,
        )

    @property
    def known(self) -> RelevanceGraph:
        """What is explained."""
        return self.ends.graph


@dataclass(frozen=True)
class _Explained:
    """What one chunk gave: what the forward pass said, relevance, and the score of the baseline [N], where there is one."""

    forward: Arrays
    values: Arrays
    relevance: Arrays
    reference: Array | None


class _Chunk:
    """One chunk of samples, and the points made of it."""

    def __init__(self, graphs: _Graphs, feeds: Arrays, index: Array, noise: Array | None) -> None:
        self.graphs, self.feeds, self.noise = graphs, feeds, noise
        self.forward = self._forward(feeds, index)
        self.index = self.forward[graphs.known.reports["index"]]
        values = {n: self.forward[o] for n, o in graphs.ends.values.items()}
        self.values = {n: values[n] if n in values else feeds[n] for n in (*graphs.where.moved, *graphs.where.ends)}
        self.begins = {v: self.values[n] for n, v in graphs.step.starts.items()}
        self.shared = {n: self.forward[o] for n, o in graphs.ends.shared.items()}

    def run(self) -> _Explained:
        """All points."""
        points = self.graphs.ensemble.points
        relevance, reference = {"path": self._path, "noise": self._noise, "baselines": self._baselines}[points]()
        return _Explained(self.forward, self.values, relevance, reference)

    # -- the three kinds of points

    def _path(self) -> tuple[Arrays, Array]:
        graphs, ensemble = self.graphs, self.graphs.ensemble
        there = {n: a for n, a in self.shared.items() if n in graphs.where.fed}
        other = self._forward({**self.feeds, **there}, self.index)
        inner = {n: other[o] for n, o in graphs.ends.values.items()}
        far = inner | self.shared if graphs.where.inner else self.shared
        others = {v: far[n] for n, v in graphs.step.others.items()}
        distance = {n: self.values[n].astype(np.float64) - far[n].astype(np.float64) for n in graphs.where.moved}
        score = graphs.known.reports["score"]
        # around an inner tensor the rest of the network stays at x: the far end's score is not that of the baseline
        reference = self._score(np.zeros(1), others) if graphs.where.computed else other[score].astype(np.float64)
        if ensemble.tolerance is not None:
            integral = self._refined(others, distance, self.forward[score].astype(np.float64) - reference)
        else:
            integral = self._averaged(lambda k: others)
        return {n: integral[n] * distance[n] for n in graphs.where.ends}, reference

    def _noise(self) -> tuple[Arrays, None]:
        step, noise = self.graphs.step, self.noise

        def others(k: int) -> Arrays:
            if noise is not None:
                return {v: noise[k].astype(self.values[n].dtype) for n, v in step.others.items()}
            return {v: self.shared[n] for n, v in step.others.items()}

        return self._averaged(others), None

    def _baselines(self) -> tuple[Arrays, Array]:
        graphs, scores = self.graphs, dict[int, Array]()
        drawn = graphs.ensemble.rows(len(next(iter(graphs.rows.values()))))

        def others(k: int) -> Arrays:
            row = int(drawn[k])
            rows = {n: _spread_out(r[row], self._like(n)) for n, r in graphs.rows.items()}
            found = {v: rows[n] for n, v in graphs.step.others.items()}
            if row not in scores:
                computed = graphs.where.computed
                scores[row] = self._score(np.zeros(1), found) if computed else self._score_of({**self.feeds, **rows})
            return found

        relevance = self._averaged(others)
        return relevance, np.asarray(sum(scores[int(j)] for j in drawn) / len(drawn))

    def _like(self, name: str) -> Array:
        return self.feeds[name] if name in self.feeds else self.values[name]

    # -- runs

    def _forward(self, feeds: Arrays, index: Array) -> Arrays:
        return self.graphs.ends_built.runner.run({**feeds, self.graphs.known.target_input: index})

    def _score_of(self, feeds: Arrays) -> Array:
        return self._forward(feeds, self.index)[self.graphs.known.reports["score"]].astype(np.float64)

    def _score(self, alpha: Array, others: Arrays) -> Array:
        """The score [N] at a point of a path."""
        graphs = self.graphs
        if graphs.probe_built is None:
            raise ValueError("no probe was built")
        fed = {graphs.step.alpha: alpha, graphs.step.number: np.zeros(1, np.int64)}
        fed |= {graphs.probe_built.graph.target_input: self.index}
        found = graphs.probe_built.runner.run({**self.feeds, **self.begins, **others, **fed})
        return next(iter(found.values())).astype(np.float64)

    def _at(self, k: int, alpha: Array, others: Arrays) -> Arrays:
        """The relevance at one point."""
        step = self.graphs.step
        fed = {step.alpha: alpha, step.number: np.asarray([k], np.int64), step.graph.target_input: self.index}
        results = self.graphs.step_built.runner.run({**self.feeds, **self.begins, **others, **fed})
        return {n: results[o] for n, o in step.relevance.items()}

    def _averaged(self, others: Callable[[int], Arrays]) -> Arrays:
        """The statistic of the relevance over all points."""
        alphas, weights = self.graphs.ensemble.quadrature()
        found = {n: _Moments(self.graphs.ensemble.statistic) for n in self.graphs.where.ends}
        for k, (alpha, weight) in enumerate(zip(alphas, weights)):
            for n, r in self._at(k, np.asarray([alpha]), others(k)).items():
                found[n].add(r.astype(np.float64), weight)
        return {n: moments.result for n, moments in found.items()}

    def _refined(self, others: Arrays, distance: Arrays, change: Array) -> Arrays:
        ensemble = self.graphs.ensemble
        lanes = len(change) if all(len(np.atleast_1d(d)) == len(change) for d in distance.values()) else 1

        def score(alpha: Array) -> Array:
            whole = self._score(alpha, others)
            return whole if lanes > 1 else whole.sum(keepdims=True)

        way = Way(lanes, lambda alpha: self._at(0, alpha, others), score, distance)
        rule = quadrature(ensemble.rule, min(NODES, ensemble.count))
        total = change if lanes > 1 else change.sum(keepdims=True)
        return dict(refined(way, rule, ensemble.count, ensemble.tolerance or 0.0, total))


class _Moments:
    """A mean, a mean of squares, or a variance, of arrays that come one by one (Welford: nothing cancels)."""

    def __init__(self, statistic: Statistic) -> None:
        self._statistic = statistic
        self._mean: Any = 0.0
        self._squares: Any = 0.0
        self._weight = 0.0

    def add(self, r: Array, weight: float) -> None:
        if self._statistic != "variance":
            self._mean = self._mean + weight * (r if self._statistic == "mean" else r * r)
            return
        self._weight += weight
        gap = r - self._mean
        self._mean = self._mean + gap * (weight / self._weight)
        self._squares = self._squares + weight * gap * (r - self._mean)

    @property
    def result(self) -> Array:
        return np.asarray(self._squares if self._statistic == "variance" else self._mean)


def _spread_out(row: Array, like: Array) -> Array:
    """One baseline for every sample."""
    return np.ascontiguousarray(np.broadcast_to(row.astype(like.dtype), like.shape))


# ------------------------------------------------------------------------------------------------- the whole batch


def _outcome(graphs: _Graphs, chunks: Sequence[_Explained]) -> Outcome:
    known, ensemble = graphs.known, graphs.ensemble
    forward = {n: _joined(c.forward[n] for c in chunks) for n in chunks[0].forward}
    relevance = {n: _joined(c.relevance[n] for c in chunks) for n in graphs.where.ends}
    index = forward[known.reports["index"]].astype(np.int64)
    score = forward[known.reports["score"]].astype(np.float64)
    reference = None if chunks[0].reference is None else _joined(np.asarray(c.reference) for c in chunks)
    seeded = np.where(index == NOT_EXPLAINED, 0.0, 1.0 if reference is None else score - reference)
    completeness = None
    if ensemble.complete:
        completeness = arrived(relevance, graphs.where.samples, by_sample=known.by_sample) - seeded
    return Outcome(
        relevance=relevance,
        outputs={n: forward[n] for n in known.outputs},
        explained=known.explained,
        index=index,
        score=score,
        seeded=seeded,
        absorbed=np.zeros(len(score)),
        by_sample=known.by_sample,
        values={n: _joined(c.values[n] for c in chunks) for n in graphs.where.ends if n not in graphs.where.fed},
        completeness=completeness,
        places=graphs.where.samples,
    )


def _joined(parts: Iterator[Array]) -> Array:
    listed = list(parts)
    return listed[0] if len(listed) == 1 else np.concatenate([np.atleast_1d(p) for p in listed])
