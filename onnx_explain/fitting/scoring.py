"""`pattern_quality`: ρ of every estimator on every layer, with v found on one part of the data and scored on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from onnx_explain.data import Preprocessing
from onnx_explain.errors import InputError, MethodError
from onnx_explain.fitting.activations import Activations, Asked
from onnx_explain.fitting.fit import files_of
from onnx_explain.fitting.layers import Layer, weights
from onnx_explain.fitting.passes import Progress
from onnx_explain.fitting.samples import Feeds, Files, One, Samples, are_files, chunk_of, samples_of, shapes_of
from onnx_explain.ir.canonicalize import Shapes
from onnx_explain.ir.model import Source, load
from onnx_explain.patterns import Patterns
from onnx_explain.patterns.quality import Directions, Moments, quality
from onnx_explain.prepared import Backend, Prepared

Array = npt.NDArray[Any]
Scored = Literal["random", "filter", "linear", "two-component"]
LARGEST = 2400


@dataclass(frozen=True)
class LayerQuality:
    """One layer: ρ [neurons] per estimator (NaN where a neuron has none); `skipped` says why there is none at all."""

    node: str
    operator: str
    neurons: int
    patch: int
    rho: dict[str, Array]
    skipped: str | None = None

    def mean(self, estimator: str) -> float:
        """The mean over the neurons that have a ρ; NaN without any."""
        values = self.rho.get(estimator, np.zeros(0))
        values = values[np.isfinite(values)]
        return float(values.mean()) if values.size else float("nan")


def pattern_quality(
    model: Source,
    patterns: Patterns,
    data: Any,
    score: Any = None,
    *,
    split: float = 0.5,
    output: str | None = None,
    logits: bool = True,
    wrt: Sequence[str] | None = None,
    batch_size: int = 16,
    threads: int | None = None,
    backend: Backend = "onnx",
    input_shapes: Shapes | None = None,
    preprocessing: Preprocessing | None = None,
    skip_bad: bool = False,
    largest: int = LARGEST,
    seed: int = 0,
    random: dict[str, Array] | None = None,
    progress: Progress | None = None,
) -> list[LayerQuality]:
    """ρ of the estimators `random`, `filter` (w), `linear` (a) and `two-component` (a±) per layer (Kindermans et al., eq. 6).

    data: as of `fit_patterns`. score: further data to score on; without it every 1/(1-split)-th sample is scored on and the
    rest serves to find v. largest: inputs of a neuron above which a layer is skipped, for its D × D covariances. random:
    the directions [neurons, D] by node, instead of drawn ones.

    Raises MethodError where the patterns belong to another model, InputError as `fit_patterns`.
    """
    if not 0 < split < 1:
        raise InputError(f"split must lie between 0 and 1, not {split}: the part of the data on which v is found.")
    prepared = Prepared(
        load(model), backend=backend, batch_size=None, threads=threads, input_shapes=dict(input_shapes or {})
    )
    run = _Scoring(prepared, patterns, Asked(output, logits, None if wrt is None else tuple(wrt)), largest, batch_size)
    parts = [_samples(prepared, d, preprocessing, skip_bad=skip_bad) for d in (data, score) if d is not None]
    run.take(parts, split, progress)
    return run.results(seed, random or {})


def _samples(prepared: Prepared, data: Any, preprocessing: Preprocessing | None, *, skip_bad: bool) -> Samples:
    if isinstance(data, Files):
        return data
    if are_files(data):
        return files_of(prepared, data, preprocessing, skip_bad=skip_bad)
    return samples_of(data, prepared.feeds)


class _Scoring:
    """Moments of both parts, and what they say."""

    def __init__(self, prepared: Prepared, patterns: Patterns, asked: Asked, largest: int, batch_size: int) -> None:
        self.prepared, self.patterns, self.largest, self.batch_size = prepared, patterns, largest, batch_size
        self.activations = Activations(prepared, asked)
        self.layers: tuple[Layer, ...] = ()
        self.rows: dict[str, Array] = {}
        self.held: tuple[list[One], list[One]] = ([], [])
        self.fixed = next((s[0] for t in prepared.takes.values() if (s := t.shape) and s[0] is not None), None)
        self.moments: tuple[dict[str, Moments], dict[str, Moments]] = ({}, {})

    def take(self, parts: Sequence[Samples], split: float, progress: Progress | None) -> None:
        """All samples into the moments of the part they belong to."""
        seen = [0, 0]
        for which, samples in enumerate(parts):
            for number, one in enumerate(samples.stream()):
                belongs = which if len(parts) > 1 else int(int((number + 1) * split) == int(number * split))
                seen[belongs] += 1
                self._hold(one, belongs)
                if progress is not None:
                    progress(one.after[0], samples.total(), sum(seen))
        for part in (0, 1):
            self._flush(part)
        if min(seen) < 1:
            raise InputError(
                f"There are {seen[0]} samples to find v on and {seen[1]} to score; give more data, or another --split."
            )

    def _hold(self, one: One, part: int) -> None:
        """Samples of one part wait until a batch is full."""
        held = self.held[part]
        if held and shapes_of(one) != shapes_of(held[0]):
            self._flush(part)
        held.append(one)
        if len(held) >= (self.fixed or self.batch_size):
            self._flush(part)

    def _flush(self, part: int) -> None:
        held = self.held[part]
        if not held:
            return
        if not self.layers:
            self._begin(held[0].feeds)
        found, arrays = self.activations.run(chunk_of(held, self.fixed))
        held.clear()
        for layer in found.layers:
            reading, known = layer.reading, self.moments[part]
            if reading.layout.patch > self.largest:
                continue
            if layer.node not in known:
                known[layer.node] = Moments.empty(reading.layout.neurons, reading.layout.patch, reading.groups)
            for x, _, gate in layer.blocks(arrays):
                firing = (reading.values(gate) > 0).astype(np.float64)
                for piece, patches in reading.patches(x, firing.shape[1]):
                    known[layer.node].add(patches, firing[:, piece], self.rows[layer.node])

    def _begin(self, feeds: Feeds) -> None:
        found = self.activations.watched(feeds)
        self.layers = found.layers
        for layer in found.layers:
            fitted = self.patterns.weight(layer.node)
            if layer.identity()[0] != fitted.sha256 or layer.reading.layout != fitted.layout:
                raise MethodError(
                    f"node {layer.node!r} ({layer.operator}): its weight {fitted.weight!r} differs from the one its pattern "
                    "belongs to: the patterns were fitted on another model; fit this one with `onnx-explain fit-patterns`."
                )
        self.rows = dict(zip((k.node for k in found.layers), weights(found.layers)))

    def results(self, seed: int, random: dict[str, Array]) -> list[LayerQuality]:
        """ρ per layer."""
        return [self._layer(layer, seed + i, random.get(layer.node)) for i, layer in enumerate(self.layers)]

    def _layer(self, layer: Layer, seed: int, random: Array | None) -> LayerQuality:
        neurons, patch = layer.reading.layout.neurons, layer.reading.layout.patch
        if patch > self.largest:
            reason = f"its neurons read {patch} inputs, more than {self.largest}"
            return LayerQuality(layer.node, layer.operator, neurons, patch, {}, reason)
        w = self.rows[layer.node]
        if random is None:
            random = np.random.default_rng(seed).standard_normal((neurons, patch))
        rho = {}
        for name in get_args(Scored):
            directions, none = self._directions(name, layer.node, w, random)
            values = quality(self.moments[0][layer.node], self.moments[1][layer.node], w, directions)
            rho[name] = np.where(none, np.nan, values)
        return LayerQuality(layer.node, layer.operator, neurons, patch, rho)

    def _directions(self, name: Scored, node: str, w: Array, random: Array) -> tuple[Directions, Array]:
        """An estimator's vectors, scaled to wᵀa = 1, and where there is none."""
        if name == "two-component":
            on, off = (self.patterns.estimate(node, r) for r in ("positive", "negative"))
            return Directions(on.rows, off.rows), on.zeroed & off.zeroed
        if name == "linear":
            found = self.patterns.estimate(node, "linear")
            return Directions(found.rows), found.zeroed
        a = w if name == "filter" else random
        along = np.einsum("od,od->o", w, a)
        return Directions(a / np.where(along != 0, along, 1.0)[:, None]), along == 0
