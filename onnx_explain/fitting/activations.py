"""The forward pass of a fit: a model once per choice of shapes, with the tensors of some layers as outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.backends.onnx import Runner
from onnx_explain.errors import InputError
from onnx_explain.fitting.layers import Layer, Watched, watched
from onnx_explain.fitting.samples import Chunk, Feeds
from onnx_explain.prepared import Prepared, foreseen

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Asked:
    """What is explained, as far as it decides which operators are fitted."""

    output: str | None = None
    logits: bool = True
    wrt: tuple[str, ...] | None = None


class Activations:
    """x and y of every chosen layer, for chunks of samples."""

    def __init__(self, prepared: Prepared, asked: Asked, chosen: frozenset[str] | None = None) -> None:
        self.prepared, self._asked, self._chosen = prepared, asked, chosen
        self._known: dict[Any, tuple[Watched, Runner]] = {}

    def watched(self, feeds: Feeds) -> Watched:
        """The operators and their readings, for inputs of these shapes."""
        return self._of(feeds)[0]

    def run(self, chunk: Chunk) -> tuple[Watched, dict[str, Array]]:
        """The watched model and its outputs for the real samples of a chunk."""
        found, runner = self._of(chunk.feeds)
        names = [n for layer in found.layers for n in (layer.x, layer.y, layer.gate)]
        names += [n for a in found.additions for n in (*a.operands, a.y)]
        ran = runner.run(self._precise(chunk.feeds))
        results = {n: ran[n] for n in names}
        if chunk.real < chunk.held:
            results = {n: _real(a, chunk) for n, a in results.items()}
        _check_finite(found, results)
        return found, results

    def _precise(self, feeds: Feeds) -> Feeds:
        if not self.prepared.exact:
            return feeds
        return {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in feeds.items()}

    def _of(self, feeds: Feeds) -> tuple[Watched, Runner]:
        key = tuple(sorted((n, a.shape[1:]) for n, a in feeds.items())) if self.prepared.needs_shapes else ()
        if key not in self._known:
            asked = self._asked
            with foreseen():
                found = watched(
                    self.prepared.model(feeds),
                    output=asked.output,
                    logits=asked.logits,
                    wrt=asked.wrt,
                    chosen=self._chosen,
                )
            self._known[key] = found, self.prepared.runner(found.model)
        return self._known[key]


def _real(array: Array, chunk: Chunk) -> Array:
    """Without the samples that only fill a fixed batch; axis 0 counts samples, or has as many entries of each."""
    rows = array.shape[0] if array.ndim else 0
    if not rows or rows % chunk.held:
        raise InputError(
            f"The model's batch is fixed to {chunk.held} and mixes samples inside, so their number must be a multiple of it."
        )
    return array[: rows // chunk.held * chunk.real]


def _check_finite(found: Watched, results: dict[str, Array]) -> None:
    for layer in found.layers:
        for name in (layer.x, layer.y):
            if not np.isfinite(results[name]).all():
                raise InputError(
                    f"Node {layer.node!r} has NaN or infinite values on this data, so nothing can be fitted to it."
                )


def widest(layers: Sequence[Layer]) -> int:
    """Bytes per run that the layers' activations take, in float32 and in the float64 of the sums."""
    numbers = [layer.numbers for layer in layers]
    return 4 * sum(numbers) + 32 * max(numbers, default=0)
