"""The model and the methods under evaluation: which methods can run, maps of a batch, scores, and how long the model ran."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.data import Array, InputSpec, Preprocessing
from onnx_explain.errors import ExplainError, InputError, MethodError
from onnx_explain.evaluation.measures import Asking
from onnx_explain.explainer import Explainers
from onnx_explain.explanation import Explanation
from onnx_explain.methods import METHODS, resolve
from onnx_explain.methods.perturbation import Perturbation
from onnx_explain.metrics import OnnxScore, softmax
from onnx_explain.path import explained_tensor

ALL = "all"
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """How a model is explained and asked. options: of the methods, by method."""

    model: Path
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    output: str | None = None
    logits: bool = True
    threads: int | None = None
    input_shapes: Mapping[str, Sequence[int | None]] = field(default_factory=dict)

    def explainers(self, methods: Sequence[str]) -> Explainers:
        """These methods over one forward pass."""
        return Explainers(
            self.model, [(m, self.options.get(m, {})) for m in methods], output=self.output, logits=self.logits,
            threads=self.threads, input_shapes=self.input_shapes or None,
        )  # fmt: skip


class Clock:
    """Seconds in which the model ran, at least once at a time, and how many pictures went through the plain model."""

    def __init__(self) -> None:
        self.busy, self._running, self._since = 0.0, 0, 0.0
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The model runs; several at once count once."""
        with self._lock:
            self._running += 1
            if self._running == 1:
                self._since = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self.busy += time.perf_counter() - self._since


@dataclass(frozen=True)
class Maps:
    """One method's maps of a batch. relevance: [N, C, H, W]; heat: [N, H, W]; index, predicted: int64 [N], -1: none."""

    relevance: Array
    heat: Array
    index: Ints
    predicted: Ints


def able(settings: Settings, names: Sequence[str], feeds: Mapping[str, Array]) -> tuple[list[str], dict[str, str]]:
    """The methods of these names, and under ``all`` why others are left out; a method asked for by name raises its error.

    feeds: one sample to try them on. What runs the model as it is needs no trial.
    """
    if list(names) != [ALL] and ALL in names:
        raise MethodError("Give 'all' alone, or the names of methods.")
    every = list(names) == [ALL]
    wanted = list(METHODS) if every else list(dict.fromkeys(resolve(n).name for n in names))
    left_out: dict[str, str] = {}
    for name in wanted:
        try:
            procedure = METHODS[name].procedure(settings.options.get(name, {}))
            if not isinstance(procedure, Perturbation):
                settings.explainers([name])(feeds)
        except ExplainError as error:
            if not every:
                raise
            left_out[name] = str(error)
    found = [n for n in wanted if n not in left_out]
    if not found:
        raise MethodError(f"No method can explain this model: {next(iter(left_out.values()))}")
    return found, left_out


class Subject:
    """A model of pictures under several methods. Pictures come and go as [N, C, H, W], whatever the model's layout.

    Raises InputError: a model without a picture among its inputs.
    """

    def __init__(
        self, settings: Settings, methods: Sequence[str], specs: Sequence[InputSpec], preprocessing: Preprocessing
    ) -> None:
        self.settings, self.methods, self.specs = settings, list(methods), list(specs)
        self.clock, self.passes, self.explanations = Clock(), 0, 0
        found = next((s for s in specs if s.layout is not None and s.dtype.kind == "f"), None)
        if found is None:
            raise InputError("evaluate judges maps of pictures, but no input of the model is one; state its --layout.")
        if any(not s.shape for s in specs):
            raise InputError("evaluate runs samples in batches, but an input of the model has no batch axis.")
        self.spec = found
        self._preprocessing = preprocessing
        self._explainers = settings.explainers(methods)
        self._alone: dict[str, Explainers] = {}
        self._lock = threading.Lock()
        self._fixed = next((s.shape[0] for s in specs if s.shape and s.shape[0] is not None), 1) or 1
        self._score: OnnxScore | None = None
        self._head = False
        self.classes = 0

    @property
    def sha256(self) -> str:
        """Of the model file."""
        return self._explainers.sha256

    def maps(self, feeds: Mapping[str, Array], targets: Sequence[int] | None) -> list[Maps]:
        """The maps of every method; targets None: the predicted classes."""
        return self._maps(self._explainers, feeds, targets)

    def pictures(self, feeds: Mapping[str, Array]) -> Array:
        """The picture among the inputs, [N, C, H, W]."""
        return self._first(feeds[self.spec.name])

    def asking(self, method: str, *, batch_size: int, seed: int) -> Asking:
        """How measures ask the model and this method."""

        def explain(x: Array, targets: Ints, /) -> Array:
            with self._lock:  # a session is made once, and its chunks run one after another
                if method not in self._alone:
                    self._alone[method] = self.settings.explainers([method])
            return self._maps(self._alone[method], {self.spec.name: self._own(x)}, targets.tolist())[0].heat

        self._prepare()
        probable = self._asked if self._head or self.classes == 1 else lambda x: softmax(self._asked(x))
        return Asking(probable, self._asked, explain, self.classes, self._bounds(), batch_size, seed)

    # -- stages

    def _maps(self, explainers: Explainers, feeds: Mapping[str, Array], targets: Sequence[int] | None) -> list[Maps]:
        count = len(feeds[self.spec.name])
        fill = -count % self._fixed
        filled = {n: np.concatenate([a, *[a[-1:]] * fill]) if fill else a for n, a in feeds.items()}
        aims = None if targets is None else [*targets, *list(targets[-1:]) * fill]
        with self.clock.running():
            [row] = explainers(filled, [aims])
        with self._lock:
            self.explanations += count * len(row)
        return [self._told(e, count) for e in row]

    def _told(self, found: Explanation, count: int) -> Maps:
        name = self.spec.name
        e = replace(found, channel_axis={**found.channel_axis, name: self.spec.channel_axis})
        index = np.asarray(e.target.index, np.int64)
        if len(index) < count:
            raise InputError("The model mixes the samples of a batch; run it with --batch-size 1.")
        return Maps(
            self._first(e.relevance[name])[:count], e.heatmap(name)[:count], index[:count], self._best(e, count)
        )

    def _best(self, e: Explanation, count: int) -> Ints:
        """The predicted class, where an output holds a score per class."""
        asked = self.settings.output
        scores = e.outputs[asked] if asked in e.outputs else next(iter(e.outputs.values()))
        flat = np.asarray(scores).reshape(len(scores), -1) if np.ndim(scores) > 1 else np.zeros((0, 0))
        wide = [d for d in np.shape(scores)[1:] if d > 1]
        return flat[:count].argmax(1).astype(np.int64) if len(flat) >= count and len(wide) == 1 else np.full(count, -1)

    def _asked(self, x: Array, /) -> Array:
        """The scores of pictures [B, C, H, W]: [B, classes]; one run of the plain model, a fixed batch filled up."""
        score = self._prepare()
        fill = -len(x) % self._fixed
        own = self._own(np.concatenate([x, *[x[-1:]] * fill]) if fill else x)
        with self.clock.running():
            found = score(own)
        with self._lock:
            self.passes += len(x)
        return found[: len(x)]

    def _prepare(self) -> OnnxScore:
        with self._lock:
            if self._score is None:
                asked, settings = self.settings.output, self.settings
                self._score = OnnxScore(settings.model, output=asked, threads=settings.threads)
                behind = explained_tensor(self._explainers.model, asked, logits=True)
                self._head = behind.name != self._score.output
                size = [d if isinstance(d, int) else 0 for d in list(behind.shape or ())[1:]]
                self.classes = math.prod(size) if size else 0  # 0: left open by the file
        return self._score

    def _bounds(self) -> tuple[Array, Array]:
        """The values of black and white pixels, per channel."""
        p, channels = self._preprocessing, self.spec.channels or 3
        ends = [np.broadcast_to((v * p.scale - np.asarray(p.mean)) / np.asarray(p.std), (channels,)) for v in (0, 255)]
        return ends[0], ends[1]

    def _first(self, x: Array) -> Array:
        return np.moveaxis(x, 3, 1) if self.spec.layout == "NHWC" else x

    def _own(self, x: Array) -> Array:
        return np.ascontiguousarray(np.moveaxis(x, 1, 3)) if self.spec.layout == "NHWC" else x
