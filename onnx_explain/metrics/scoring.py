"""A model as the measures see it: a callable from pictures to class scores, asked in batches. No measure lives here.

The measures know nothing of ONNX; `OnnxScore` makes a score of an ONNX file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError, TargetError, suggest
from onnx_explain.metrics.arrays import Array, Floats, Ints, class_indices, pictures, real, whole


class Score(Protocol):
    """Scores of every class: [B, C, H, W] in the pictures' dtype -> float [B, classes], logits or probabilities.

    Row b depends on picture b alone. The measures hand over at most `batch_size` pictures at once, and every picture that the
    measure's definition names exactly once.
    """

    def __call__(self, x: Array, /) -> npt.ArrayLike:
        """Scores of a batch."""


class Explain(Protocol):
    """Explanations: pictures [B, C, H, W] and a class per picture, int64 [B] -> relevance [B, ...], finite."""

    def __call__(self, x: Array, targets: Ints, /) -> npt.ArrayLike:
        """Relevance of a batch."""


def softmax(logits: npt.ArrayLike) -> Floats:
    """Probabilities over the last axis, float64, shifted by the largest logit so that none overflows."""
    z = real(logits, "logits")
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def probabilities(score: Score) -> Score:
    """The score behind a soft-max, for a model that ends in logits."""
    return lambda x: softmax(score(x))


def scored(score: Score, x: Array) -> Floats:
    """The scores of one batch, checked: float64 [B, classes]."""
    scores = real(score(x), "scores")
    if scores.ndim != 2 or len(scores) != len(x) or not scores.shape[1]:
        raise InputError(
            f"The score must give [{len(x)}, classes] for {len(x)} pictures, but gave {scores.shape}; reshape it there."
        )
    if not np.isfinite(scores).all():
        raise InputError("The score gave NaN or infinity; check the model on these pictures before it is evaluated.")
    return scores


def all_scores(score: Score, images: Iterable[Array], *, batch_size: int) -> Iterator[Floats]:
    """One row of scores per picture of any number of them, in order, `batch_size` pictures in memory.

    A picture is copied as it is drawn: it may be overwritten for the next one.
    """
    source = iter(images)
    first = next(source, None)
    while first is not None:
        batch = np.empty((batch_size, *first.shape), first.dtype)
        filled = 0
        for image in islice(chain([first], source), batch_size):
            batch[filled] = image
            filled += 1
        first = next(source, None)
        yield from scored(score, batch[:filled])


def scores_of(score: Score, x: npt.ArrayLike, *, batch_size: int = 64) -> Floats:
    """Scores of all pictures, float64 [N, classes], one forward pass each. x: [N, C, H, W]. Raises InputError."""
    rows = list(all_scores(score, pictures(x), batch_size=whole("batch_size", batch_size)))
    return np.stack(rows) if rows else np.zeros((0, 0))


def explained(explain: Explain, x: Array, targets: Ints, *, batch_size: int) -> Floats:
    """Relevance of all pictures, float64 [N, ...], `batch_size` at once; InputError where it does not fit or is not finite."""
    parts = []
    for start in range(0, len(x), batch_size):
        part = real(explain(x[start : start + batch_size], targets[start : start + batch_size]), "the explanation")
        if len(part) != len(x[start : start + batch_size]) or not np.isfinite(part).all():
            raise InputError(
                f"The explanation of {len(x[start : start + batch_size])} pictures has shape {part.shape}, or holds NaN or "
                "infinity; it must give finite relevance, one entry per picture."
            )
        parts.append(part)
    return np.concatenate(parts) if parts else np.zeros(x.shape)


def chosen(targets: npt.ArrayLike | None, scores: Floats) -> Ints:
    """The given classes, or per sample the one of the highest score (the first of equals): int64 [N]."""
    if targets is None:
        return np.asarray(scores.argmax(1), np.int64)
    return class_indices(targets, len(scores), scores.shape[1])


class OnnxScore:
    """The scores of an ONNX model's output by ONNX Runtime: pictures in the model's own layout -> [B, classes].

    model: path, bytes or `onnx.ModelProto` with one input. output: its name; by default the first. apply_softmax: for a model
    that ends in logits where a measure wants probabilities. threads: ONNX Runtime's. A model whose batch is fixed is run
    in pieces of that size. `rows` counts the pictures that went through the model; `dtype` is its input's.

    Raises ModelError, TargetError (no such output), InputError (a batch that does not fit), RuntimeMissing.
    """

    def __init__(
        self,
        model: Any,
        *,
        output: str | None = None,
        apply_softmax: bool = False,
        threads: int | None = None,
    ) -> None:
        from onnx_explain import feeds
        from onnx_explain.backends.onnx import Session
        from onnx_explain.ir.model import load

        source = load(model)
        path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else source.model
        self._session = Session(path, threads=threads)
        self._takes = feeds.inputs_of(source.model)
        self.output = self._session.outputs[0] if output is None else output
        if self.output not in self._session.outputs:
            raise TargetError(f"The model has no output {output!r}.{suggest(str(output), self._session.outputs)}")
        if len(self._takes) != 1:
            raise InputError(f"A score takes models with one input, but this one has {len(self._takes)}.")
        (self._name, takes), *_ = self._takes.items()
        self._batch = takes.shape[0] if takes.shape else None
        self._softmax = apply_softmax
        self.dtype = takes.dtype
        self.rows = 0

    def __call__(self, x: Array, /) -> Floats:
        """Scores [B, classes] of a batch in the model's layout; other axes of the output must have length 1."""
        from onnx_explain import feeds

        size = self._batch or max(len(x), 1)
        if len(x) % size:
            raise InputError(
                f"The model's batch is fixed to {size}, but {len(x)} pictures came; choose a batch_size to fit."
            )
        parts = []
        for start in range(0, len(x), size):
            fed = feeds.checked(self._takes, x[start : start + size], wide=False)
            parts.append(self._session.run(fed, [self.output])[self.output])
        self.rows += len(x)
        scores = real(np.concatenate(parts) if parts else np.zeros((0, 1)), f"output {self.output!r}")
        axes = [d for d in scores.shape[1:] if d != 1]
        if len(axes) <= 1:
            scores = scores.reshape(len(x), *(axes or [1]))
        return softmax(scores) if self._softmax else scores
