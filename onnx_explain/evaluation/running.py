"""The run: samples stream through in batches, all methods at once, and every few seconds a part of the results is on disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnx_explain.data import InputSpec
from onnx_explain.errors import ExplainError, InputError
from onnx_explain.evaluation.cases import Case, DataSet, Fault
from onnx_explain.evaluation.journal import Journal, Rows, arrow, series_of, value_of
from onnx_explain.evaluation.measures import Asking, Batch, Measure, Values, named, options_of
from onnx_explain.evaluation.subject import Maps, Settings, Subject, able
from onnx_explain.explanation import plain_option
from onnx_explain.version import __version__

EVERY_SECONDS, EVERY_SAMPLES = 10.0, 512
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """What is evaluated, on what, by what, and where the results go.

    methods: names, or ``all``; metrics: names, groups or ``all``. sample: how many samples, drawn with `seed`; None: all.
    target: the explained class: the predicted or the true one. score_batch: pictures in a run of the plain model.
    """

    settings: Settings
    data: DataSet
    methods: Sequence[str]
    metrics: Sequence[str]
    out: Path
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    sample: int | None = None
    seed: int = 0
    target: Literal["predicted", "truth"] = "predicted"
    skip_bad: bool = False
    batch_size: int = 16
    score_batch: int = 64
    workers: int = 2


@dataclass(frozen=True)
class Run:
    """How a run ended. faults: what could not be evaluated, all parts together; counts: seconds, seconds in which the model ran,
    pictures through the plain model, maps made.
    """

    journal: Journal
    methods: list[str]
    measures: list[Measure]
    left_out: dict[str, str]
    samples: int
    faults: list[Fault]
    counts: dict[str, float]
    resumed: int


def evaluate(task: Task, progress: Progress | None = None) -> Run:
    """Evaluate, or go on where the same task was stopped. Raises ExplainError; finished parts stay.

    A sample that cannot be read, or whose annotation is missing or broken, stops the run, unless the task skips such samples.
    """
    arrow()  # missing, it is missed before anything is written
    data = task.data
    if task.target == "truth" and "label" not in data.has:
        raise InputError("The true class is to be explained, but no classes are known; give --labels-file.")
    measures, left_out = named(task.metrics, data.has)
    options = options_of(measures, task.metric_options)
    chosen = data.chosen(task.sample, task.seed)
    before = _refused_names(task, chosen)
    first = _first(data, chosen)
    methods, unable = able(task.settings, task.methods, _one_batch(first.feeds, data.specs))
    subject = Subject(task.settings, methods, data.specs, data.preprocessing)
    journal = Journal(task.out, _identity(task, subject, methods, options, chosen))
    with journal.alone():
        gaps = journal.missing(len(chosen))
        resumed = len(chosen) - sum(map(len, gaps))
        for gap in gaps:
            done = len(chosen) - sum(len(g) for g in gaps if g.start >= gap.start)
            _Stretch(task, subject, journal, measures, options).run(gap, chosen, done, progress)
    parts = journal.parts()
    faults = [*before, *(f for p in parts for f in p.faults)]
    counts = {k: sum(p.counts[k] for p in parts) for k in ("seconds", "busy", "passes", "maps")}
    return Run(journal, methods, measures, {**unable, **left_out}, len(chosen), faults, counts, resumed)


def _first(data: DataSet, chosen: Sequence[int]) -> Case:
    """The first sample that can be read; InputError where there is none."""
    reason = ""
    for case in data.read(chosen):
        if isinstance(case, Case):
            return case
        reason = reason or f"{case.name}: {case.reason}"
    raise InputError(f"No sample of the data can be evaluated; the first: {reason}")


def _one_batch(feeds: Mapping[str, Any], specs: Sequence[InputSpec]) -> dict[str, Any]:
    """One sample as often as a model of fixed batch wants it."""
    fixed = {s.name: s.shape[0] for s in specs if s.shape and s.shape[0] is not None}
    return {n: np.repeat(a, fixed.get(n) or 1, axis=0) if a.ndim else a for n, a in feeds.items()}


def _refused_names(task: Task, chosen: Sequence[int]) -> list[Fault]:
    """Annotations without a picture; InputError for all that the names tell, unless the task skips it."""
    meant = set(chosen)
    found = [f for f in task.data.faults() if f.number is None or f.number in meant]
    if found and not task.skip_bad:
        told = "; ".join(f"{f.name} {f.reason}" for f in found[:3])
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(
            f"{len(found)} of the pictures and annotations do not fit together: {told}{more}. Mend them, or leave them out "
            "with --skip-bad."
        )
    return [f for f in found if f.number is None]


def _identity(
    task: Task, subject: Subject, methods: Sequence[str], options: Mapping[str, Any], chosen: Sequence[int]
) -> dict[str, Any]:
    """What makes two runs the same, as plain data."""
    data, settings = task.data, task.settings
    files = hashlib.sha256()
    for path in data.paths:
        files.update(f"{path.name}\0{path.stat().st_size}\n".encode())
    known = data.known
    sources = {"masks": known.masks, "boxes": known.boxes, "classes of samples": known.labels}
    return {
        "onnx_explain": __version__,
        "model": subject.sha256,
        "data": {"files": len(data.paths), "samples": data.total, "sha256 of names and sizes": files.hexdigest()},
        "annotations": {k: str(v.path.resolve()) for k, v in sources.items() if v is not None}
        | {"objects": known.objects},
        "sample": {"samples": len(chosen), "seed": task.seed},
        "methods": {m: {k: plain_option(v) for k, v in settings.options.get(m, {}).items()} for m in methods},
        "metrics": dict(options),
        "target": task.target,
        "output": {"name": settings.output, "logits": settings.logits, "shapes": dict(settings.input_shapes)},
        "preprocessing": {k: plain_option(v) for k, v in vars(data.preprocessing).items()} | {"layout": data.layout},
    }


class _Stretch:
    """Consecutive samples of the plan on their way into parts."""

    def __init__(
        self,
        task: Task,
        subject: Subject,
        journal: Journal,
        measures: Sequence[Measure],
        options: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._task, self._subject, self._journal = task, subject, journal
        self._measures, self._options = measures, options
        self._rows, self._faults = Rows(), list[Fault]()
        self._since = (time.perf_counter(), 0.0, 0, 0)

    def run(self, gap: range, chosen: Sequence[int], done: int, progress: Progress | None) -> None:
        """Evaluate the samples at these places of `chosen`."""
        first = reached = gap.start
        self._mark()
        with ThreadPoolExecutor(self._task.workers) as pool, ThreadPoolExecutor(1) as reader:
            askings = {
                m: self._subject.asking(m, batch_size=self._task.score_batch, seed=self._task.seed)
                for m in self._subject.methods
            }
            for batch in _ahead(
                reader, _batches(self._task.data.read(chosen[gap.start : gap.stop]), self._task.batch_size)
            ):
                try:
                    reached += self._take(batch, pool, askings)
                except ExplainError as error:
                    self._flush(first, reached)
                    raise _stopped(error, reached, len(chosen)) from error
                if progress is not None:
                    progress(done + reached - gap.start, len(chosen))
                if time.perf_counter() - self._since[0] > EVERY_SECONDS or reached - first >= EVERY_SAMPLES:
                    self._flush(first, reached)
                    first = reached
        self._flush(first, reached)

    def _take(self, batch: list[Case] | Fault, pool: ThreadPoolExecutor, askings: Mapping[str, Asking]) -> int:
        """Evaluate a batch, or note what cannot be; how many samples that were."""
        if not isinstance(batch, Fault):
            self._evaluate(batch, pool, askings)
            return len(batch)
        if not self._task.skip_bad:
            raise InputError(f"{batch.name}: {batch.reason} Leave such samples out with --skip-bad.")
        self._faults.append(batch)
        return 1

    def _mark(self) -> None:
        subject = self._subject
        self._since = (time.perf_counter(), subject.clock.busy, subject.passes, subject.explanations)

    def _flush(self, first: int, stop: int) -> None:
        if stop == first:
            return
        now = (time.perf_counter(), self._subject.clock.busy, self._subject.passes, self._subject.explanations)
        spent = [b - a for a, b in zip(self._since, now)]
        counts = dict(zip(("seconds", "busy", "passes", "maps"), spent))
        self._journal.write(first, stop, self._rows, self._faults, counts)
        self._rows, self._faults = Rows(), []
        self._mark()

    def _evaluate(self, cases: Sequence[Case], pool: ThreadPoolExecutor, askings: Mapping[str, Asking]) -> None:
        subject = self._subject
        feeds = {n: np.concatenate([c.feeds[n] for c in cases]) for n in cases[0].feeds}
        labels = np.array([-1 if c.label is None else c.label for c in cases], np.int64)
        found = subject.maps(feeds, labels.tolist() if self._task.target == "truth" else None)
        jobs = []
        for method, maps in zip(subject.methods, found):
            fine = np.flatnonzero(np.isfinite(maps.relevance).all((1, 2, 3)))
            batch = self._batch(cases, subject.pictures(feeds), maps, labels, fine)
            for m in self._measures:
                work = pool.submit(m.run, batch, askings[method], **self._options[m.name]) if len(fine) else _nothing(m)
                jobs.append((method, maps, fine, work))
        # All results first: a measure that fails leaves no part of its batch behind.
        for (method, maps, fine, _), result in zip(jobs, [work.result() for *_, work in jobs]):
            for metric, values in result.items():
                self._add(cases, method, maps, fine, metric, values)

    def _batch(self, cases: Sequence[Case], x: Any, maps: Maps, labels: Any, fine: Any) -> Batch:
        """The samples of finite relevance, under one method."""
        size = maps.heat.shape[1:]
        known = "mask" in self._task.data.has
        by_class = self._task.data.known.objects == "target"
        aims = [int(t) if by_class else None for t in maps.index]
        masks = np.stack([c.mask(t, size) for c, t in zip(cases, aims)])[fine] if known and len(fine) else None
        void = None
        if known and any(c.void is not None for c in cases):
            void = np.stack([np.zeros(size, bool) if c.void is None else c.void for c in cases])[fine]
        told = labels[fine] if "label" in self._task.data.has else None
        keys = [cases[i].number for i in fine]
        return Batch(x[fine], maps.relevance[fine], maps.heat[fine], maps.index[fine], keys, masks, void, told)

    def _add(self, cases: Sequence[Case], method: str, maps: Maps, fine: Any, metric: str, values: Values) -> None:
        places = {int(i): row for row, i in enumerate(fine)}
        for i, case in enumerate(cases):
            row = places.get(i)
            self._rows.add(
                sample=case.number,
                name=case.name,
                method=method,
                metric=metric,
                value=None if row is None else value_of(values.value[row]),
                series=None if row is None else series_of(values.series, row),
                target=int(maps.index[i]),
                label=case.label,
                predicted=int(maps.predicted[i]) if maps.predicted[i] >= 0 else None,
            )


def _stopped(error: ExplainError, done: int, total: int) -> ExplainError:
    """The error, with what is kept."""
    return type(error)(f"{error} {done} of {total} samples are done and kept.")


def _nothing(measure: Measure) -> Future[dict[str, Values]]:
    """What a measure says where no sample has finite relevance."""
    future: Future[dict[str, Values]] = Future()
    future.set_result({c.name: Values(np.zeros(0)) for c in measure.columns})
    return future


def _batches(cases: Iterator[Case | Fault], size: int) -> Iterator[list[Case] | Fault]:
    """Up to `size` consecutive cases of equal shapes, and the faults between them, in order."""
    batch: list[Case] = []
    for case in cases:
        apart = isinstance(case, Fault) or (batch and _shapes(case) != _shapes(batch[0]))
        if batch and (apart or len(batch) == size):
            yield batch
            batch = []
        if isinstance(case, Fault):
            yield case
        else:
            batch.append(case)
    if batch:
        yield batch


def _shapes(case: Case) -> list[tuple[int, ...]]:
    return [a.shape for a in case.feeds.values()]


def _ahead(reader: ThreadPoolExecutor, items: Iterator[Any]) -> Iterator[Any]:
    """The items, the next one being read while this one is worked on."""
    coming = reader.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = reader.submit(next, items, None)
        yield item
