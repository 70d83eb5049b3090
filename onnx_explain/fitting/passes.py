"""One pass over the data for one group of layers: chunk by chunk into sums, with checkpoints between."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.fitting.activations import Activations
from onnx_explain.fitting.checkpoint import Checkpoints, State
from onnx_explain.fitting.layers import Addition, Layer, Watched, weights
from onnx_explain.fitting.samples import Chunk, Samples, chunks
from onnx_explain.patterns import FittedSum, FittedWeight, Neurons, Shares

Array = npt.NDArray[Any]
Progress = Callable[[int, "int | None", int], None]  # steps done, steps in all, samples so far


@dataclass(frozen=True)
class Setting:
    """What all passes of a fit share. batch, fixed: as of `chunks`. every: seconds between checkpoints. passes: how many."""

    activations: Callable[[frozenset[str]], Activations]
    samples: Samples
    batch: int
    fixed: int | None
    every: float
    passes: int
    notes: Checkpoints | None
    progress: Progress | None


class Pass:
    """One pass: its layers' and Sums' nodes, and what was added up so far."""

    def __init__(self, setting: Setting, number: int, nodes: frozenset[str]) -> None:
        self.setting, self.number, self.notes = setting, number, setting.notes
        self.activations = setting.activations(nodes)
        self.neurons: dict[str, Neurons] = {}
        self.additions: dict[str, Shares] = {}
        self.whole = True

    def run(self) -> State:
        """Through the data from where it stood; saves the checkpoint when time is up or the run is stopped."""
        state = self._resumed()
        if state.finished:
            return state
        samples = self.setting.samples
        samples.skipped[:] = state.skipped
        stream = chunks(samples.stream(state.place), self.setting.batch, self.setting.fixed)
        last = time.monotonic()
        with _stops() as stopped:
            try:
                for chunk in stream:
                    self._take(chunk)
                    state = State(chunk.after, state.samples + chunk.real, tuple(samples.skipped))
                    self._report(state)
                    if stopped():
                        raise KeyboardInterrupt
                    if time.monotonic() - last > self.setting.every:
                        self._save(state)
                        last = time.monotonic()
            except BaseException:
                if state.samples and self.whole:
                    self._save(state)
                raise
        state = State(state.place, state.samples, tuple(samples.skipped), finished=True)
        self._save(state)
        return state

    def _resumed(self) -> State:
        found = self.notes.load(self.number) if self.notes is not None else None
        if found is None:
            return State()
        state, tensors = found
        for key in tensors:
            kind, node, _ = key.split("|", 2)
            target: dict[str, Any] = self.neurons if kind == "n" else self.additions
            if node not in target:
                names = {k.split("|", 2)[2]: np.array(a) for k, a in tensors.items() if k.startswith(f"{kind}|{node}|")}
                target[node] = (Neurons if kind == "n" else Shares)(**names)
        return state

    def _save(self, state: State) -> None:
        if self.notes is None:
            return
        tensors = {f"n|{node}|{n}": a for node, s in self.neurons.items() for n, a in s.arrays().items()}
        tensors |= {f"s|{node}|{n}": a for node, s in self.additions.items() for n, a in s.arrays().items()}
        self.notes.save(self.number, state, tensors)

    def put_down(self) -> None:
        """Leave the sums on disk, where there is a checkpoint: memory is for the next group."""
        if self.notes is None or self.setting.passes == 1:
            return
        found = self.notes.load(self.number)
        if found is not None:
            for key, array in found[1].items():
                kind, node, name = key.split("|", 2)
                setattr((self.neurons if kind == "n" else self.additions)[node], name, array)

    def _report(self, state: State) -> None:
        if self.setting.progress is not None:
            total = self.setting.samples.total()
            done = state.place[0] + self.number * (total or 0)
            self.setting.progress(done, None if total is None else total * self.setting.passes, state.samples)

    # -- sums

    def _take(self, chunk: Chunk) -> None:
        found, arrays = self.activations.run(chunk)
        self.whole = False  # what happens from here on may leave some sums with the chunk and some without
        for layer in found.layers:
            reading = layer.reading
            if layer.node not in self.neurons:
                self.neurons[layer.node] = Neurons.empty(reading.layout.neurons, reading.layout.patch, reading.groups)
            for x, y, gate in layer.blocks(arrays):
                accumulate(self.neurons[layer.node], layer, x, y, gate)
        for addition in found.additions:
            if addition.node not in self.additions:
                self.additions[addition.node] = Shares.empty(len(addition.operands), addition.channels)
            share(self.additions[addition.node], addition, arrays)
        self.whole = True

    def fitted(self, found: Watched) -> list[FittedWeight]:
        """The layers of this group with their sums, projected on their weights."""
        layers = [k for k in found.layers if k.node in self.neurons]
        result = []
        for layer, rows in zip(layers, weights(layers)):
            sums = self.neurons[layer.node]
            sums.project(rows)
            sha, bias = layer.identity()
            result.append(
                FittedWeight(
                    layer.node, layer.operator, layer.weight_name, sha, bias, layer.regime, layer.reading.layout, sums,
                    layer.reading.scale,
                )
            )  # fmt: skip
        return result

    def shares(self, found: Watched) -> list[FittedSum]:
        """The Sums of this pass."""
        axes = {a.node: a for a in found.additions}
        return [FittedSum(n, axes[n].operator, axes[n].axis, s) for n, s in self.additions.items()]


def accumulate(sums: Neurons, layer: Layer, x: Array, y: Array, gate: Array) -> None:
    """Add one block of samples: x, y and the gate as the layer's reading cuts them."""
    reading = layer.reading
    groups, each = reading.groups, reading.layout.neurons // reading.groups
    values = reading.values(y)
    positions = values.shape[1]
    if not sums.patches:
        sums.pivot = values.mean(axis=1).reshape(-1)
    z = values - sums.pivot.reshape(groups, 1, each)
    firing = ((values if gate is y else reading.values(gate)) > 0).astype(np.float64)
    on = firing * z
    sums.count += positions
    sums.positive += firing.sum(axis=1).reshape(-1)
    sums.y += z.sum(axis=1).reshape(-1)
    sums.yy += (z * z).sum(axis=1).reshape(-1)
    sums.y_positive += on.sum(axis=1).reshape(-1)
    sums.yy_positive += (on * z).sum(axis=1).reshape(-1)
    stacked = np.concatenate([firing, z, on], axis=2).transpose(0, 2, 1)
    deep = (groups, each, -1, reading.taps_count)
    into = [a.reshape(deep) for a in (sums.x_positive, sums.xy, sums.xy_positive)]
    total = sums.x.reshape(groups, -1, reading.taps_count)
    for t, patch in enumerate(reading.taps(x)):
        products = stacked @ patch  # [G, 3·O/G, C]
        for i, target in enumerate(into):
            target[..., t] += products[:, i * each : (i + 1) * each]
        total[..., t] += patch.sum(axis=1)


def share(sums: Shares, addition: Addition, arrays: Mapping[str, Array]) -> None:
    """Add a chunk of a Sum's operands and result."""
    y = arrays[addition.y].astype(np.float64)
    operands = [
        np.broadcast_to(arrays[n].astype(np.float64) * c, y.shape)
        for n, c in zip(addition.operands, addition.coefficients)
    ]
    turned = [np.moveaxis(a, addition.axis, -1).reshape(-1, addition.channels) for a in (*operands, y)]
    sums.add(np.stack(turned[:-1]), turned[-1])


@contextmanager
def _stops() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come: a chunk is finished first, so that the checkpoint is whole."""
    come: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        if come:
            raise KeyboardInterrupt
        come.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(come)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
