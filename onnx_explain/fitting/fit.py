"""`fit_patterns`: the stream through the model, chunk by chunk, into sums; checkpoints, groups of layers, bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from onnx_explain.data import InputSpec, Preprocessing, find_inputs
from onnx_explain.errors import InputError, MethodError
from onnx_explain.feeds import sampled
from onnx_explain.files import target_path
from onnx_explain.fitting.activations import Activations, Asked, widest
from onnx_explain.fitting.checkpoint import Checkpoints, State
from onnx_explain.fitting.layers import Layer, Watched, watched
from onnx_explain.fitting.passes import Pass, Progress, Setting
from onnx_explain.fitting.samples import Feeds, Files, One, Place, Samples, are_files, samples_of
from onnx_explain.ir.canonicalize import Shapes
from onnx_explain.ir.model import Source, load
from onnx_explain.patterns import FittedSum, FittedWeight, Patterns
from onnx_explain.prepared import Backend, Prepared, foreseen

MEMORY = 2 << 30


@dataclass(frozen=True)
class Plan:
    """Which layers are fitted in which pass over the data, and how many samples run at once."""

    groups: tuple[tuple[str, ...], ...]
    batch: int
    fixed: int | None
    additions: frozenset[str]


def fit_patterns(
    model: Source,
    data: Any,
    *,
    output: str | None = None,
    logits: bool = True,
    wrt: Sequence[str] | None = None,
    batch_size: int = 16,
    threads: int | None = None,
    backend: Backend = "onnx",
    input_shapes: Shapes | None = None,
    memory: int = MEMORY,
    preprocessing: Preprocessing | None = None,
    skip_bad: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 30.0,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Patterns:
    """Fit patterns to a model on data like its training data.

    model: path, bytes or `onnx.ModelProto`. data: a folder, a glob or a list of files (pictures, ``.npy``, ``.npz``), an
    array [N, …] or {input: array}, an iterable of such batches, or a function that returns one. output, logits, wrt: as of
    `Explainer`. batch_size: samples that run at once, at most; the result does not depend on it but for rounding at
    1e-12. backend: ``"reference"`` for float64 activations. memory: bytes for sums and activations; layers that do not fit
    together are fitted in several passes. preprocessing, skip_bad: of files. checkpoint: a folder to note in, every so
    many seconds, how far the fit has come, and to go on from. out: the file to write, after which the checkpoint is
    removed. progress: called with (files or samples done, of how many, samples).

    Raises InputError (no data, unreadable or unfit data, another run's checkpoint), ModelError, UnsupportedOperator.
    """
    _check_numbers(batch_size, threads, memory, backend)
    prepared = Prepared(
        load(model), backend=backend, batch_size=None, threads=threads, input_shapes=dict(input_shapes or {})
    )
    if are_files(data):
        data = files_of(prepared, data, preprocessing, skip_bad=skip_bad)
    samples = data if isinstance(data, Files) else samples_of(data, prepared.feeds)
    asked = Asked(output, logits, None if wrt is None else tuple(wrt))
    if out is not None:
        target_path(out)
    fit = Fit(prepared, samples, asked, batch_size, memory, every, progress)
    patterns = fit.run(None if checkpoint is None else Path(checkpoint))
    if out is not None:
        patterns.save(out)
        fit.forget()
    return patterns


def files_of(prepared: Prepared, data: Any, preprocessing: Preprocessing | None, *, skip_bad: bool) -> Files:
    """The files of paths, folders and globs, read as the model's inputs want."""
    listed = [data] if isinstance(data, (str, os.PathLike)) else list(data)
    specs = [InputSpec(t.name, t.shape or (), t.dtype) for t in prepared.takes.values()]
    return Files(
        find_inputs([os.fspath(d) for d in listed]), specs, preprocessing or Preprocessing(), skip_bad=skip_bad
    )


def _check_numbers(batch_size: Any, threads: Any, memory: Any, backend: Any) -> None:
    for name, value in (("batch_size", batch_size), ("threads", 1 if threads is None else threads), ("memory", memory)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")
    if backend not in ("onnx", "reference"):
        raise MethodError(f"backend must be 'onnx' or 'reference', not {backend!r}.")


class Fit:
    """One fit of one model to one stream."""

    def __init__(
        self,
        prepared: Prepared,
        samples: Samples,
        asked: Asked,
        batch_size: int,
        memory: int,
        every: float,
        progress: Progress | None,
    ) -> None:
        self.prepared, self.samples, self.asked = prepared, samples, asked
        self.batch_size, self.memory, self.every, self.progress = batch_size, memory, every, progress
        self.notes: Checkpoints | None = None

    def run(self, folder: Path | None) -> Patterns:
        """All passes; the checkpoints stay where one is interrupted."""
        stream = self.samples.stream()
        first = next(stream, None)
        skipped = list(self.samples.skipped)
        self.samples.skipped.clear()
        if first is None:
            raise InputError(
                f"There is no sample to fit patterns to{f': all {len(skipped)} files are unreadable' if skipped else ''}."
            )
        if not self.samples.repeatable:
            self.samples = _Begun(self.samples, first, stream)
        plan, found = self._plan(first.feeds)
        if len(plan.groups) > 1 and not self.samples.repeatable:
            raise InputError(
                f"The sums of this model need {len(plan.groups)} passes with {self.memory >> 20} MiB, but an iterator gives its "
                "data once; give a function that returns one, or more memory."
            )
        self.notes = notes = None if folder is None else Checkpoints(folder, self._identity())
        weighed: list[FittedWeight] = []
        added: list[FittedSum] = []
        state = State()
        prepared, asked = self.prepared, self.asked
        setting = Setting(
            lambda nodes: Activations(prepared, asked, nodes), self.samples, plan.batch, plan.fixed, self.every,
            len(plan.groups), notes, self.progress,
        )  # fmt: skip
        for number, group in enumerate(plan.groups):
            # sums of activations take little: the first pass takes them all
            one = Pass(setting, number, frozenset(group) | (plan.additions if number == 0 else frozenset()))
            state = one.run()
            one.put_down()
            weighed += one.fitted(found)
            added += one.shares(found)
        return Patterns(
            self.prepared.source.sha256, state.samples, self.prepared.exact, tuple(weighed), tuple(added), state.skipped,
            {"passes": len(plan.groups), "batch": plan.batch},
        )  # fmt: skip

    def forget(self) -> None:
        """Remove the checkpoints: what was fitted is kept elsewhere."""
        if self.notes is not None:
            self.notes.remove()

    def _plan(self, feeds: Feeds) -> tuple[Plan, Watched]:
        asked = self.asked
        with foreseen():
            found = watched(self.prepared.model(feeds), output=asked.output, logits=asked.logits, wrt=asked.wrt)
        by_sample = sampled(self.prepared.takes, list(feeds))
        fixed = next((s[0] for n in by_sample if (s := self.prepared.takes[n].shape) and s[0] is not None), None)
        whole = any(not a.ndim for a in feeds.values()) or len(by_sample) < len(feeds)
        groups: list[list[Layer]] = [[]]
        for layer in found.layers:
            if groups[-1] and sum(k.accumulated for k in groups[-1]) + layer.accumulated > self.memory // 2:
                groups.append([])
            groups[-1].append(layer)
        per_run = max(widest(g) for g in groups) // (fixed or 1)
        fitting = max(1, self.memory // 2 // max(per_run, 1))
        batch = 1 if whole else min(self.batch_size, fitting)
        names = tuple(tuple(k.node for k in g) for g in groups)
        return Plan(names, fixed or batch, fixed, frozenset(a.node for a in found.additions)), found

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        return {
            "model": self.prepared.source.sha256,
            "data": self.samples.identity,
            "options": [
                self.asked.output, self.asked.logits, list(self.asked.wrt or ()), self.batch_size, self.memory,
                self.prepared.backend,
            ],
        }  # fmt: skip


class _Begun:
    """An iterator whose first sample was looked at already; it goes on once."""

    def __init__(self, samples: Samples, first: One, rest: Iterator[One]) -> None:
        self._first, self._rest = first, rest
        self.identity, self.repeatable, self.skipped = samples.identity, False, samples.skipped

    def stream(self, start: Place = (0, 0)) -> Iterator[One]:
        """The samples behind `start`."""
        return (one for one in chain([self._first], self._rest) if one.after > start)

    def total(self) -> None:
        """Not known."""
