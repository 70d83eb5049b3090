"""Whole methods on a GPU: the kernels' backend against the plain forward pass and the pure ONNX form, in one process.

A method is compared with the CPU backend first; what differs is not timed. Part of `tools/bench_kernels.py`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import make_models
import numpy as np
import onnx
from onnx_explain_kernels.launch import Kernels

from onnx_explain import Explainer
from onnx_explain.backends import onnx as plain
from onnx_explain.backends.gpu import Device, GpuRunner
from onnx_explain.errors import ExplainError
from onnx_explain.ir.message import serialise

NETWORKS = ["vgg16:32", "resnet50:64"]
# the largest acceptable ratio to the plain forward pass
TARGETS = {"lrp-epsilon": 2.5, "lrp-epsilon-plus": 3.6, "rap": 6.0, "gradient": None}
COMPARED = 1  # samples that the CPU backend explains too


@dataclass(frozen=True)
class MethodTiming:
    """One method on one network: medians in ms; `ratio` to the forward pass, per round, and `target` for it."""

    network: str
    batch: int
    method: str
    precision: str
    error: float = 0.0
    forward: float = 0.0
    onnx: float = 0.0
    kernels: float = 0.0
    ratio: float = 0.0
    workspace: int = 0
    target: float | None = None
    problem: str = ""


def opened(kernels: Kernels, precision: Any, *, measured: bool) -> Device:
    """The device of the kernels; for a stand-in of the driver ONNX Runtime's CPU provider on the same memory."""
    return Device.of(kernels, provider="cuda" if measured else "cpu", precision=precision)


def timed(device: Device, networks: Sequence[str], rounds: int, tolerance: float) -> Iterator[MethodTiming]:
    """Each method on each network, ``name:batch`` (and ``:size:width`` for a smaller one)."""
    for text in networks:
        name, batch, *rest = text.split(":")
        size, width = (int(rest[0]), float(rest[1])) if rest else (224, 1.0)
        model = make_models.build(name, size=size, width=width)
        for method, target in TARGETS.items():
            label = MethodTiming(name, int(batch), method, device.precision, target=target)
            try:
                yield _one(device, model, label, rounds, tolerance, size)
            except ExplainError as error:
                yield replace(label, problem=f"{type(error).__name__}: {error}")


def _one(
    device: Device, model: onnx.ModelProto, label: MethodTiming, rounds: int, tolerance: float, size: int
) -> MethodTiming:
    explain = Explainer(model, label.method)
    graph = explain.build()
    (name,), (output,) = explain.inputs, graph.relevance.values()
    x = np.random.default_rng(0).standard_normal((label.batch, 3, size, size)).astype(np.float32)
    runner = GpuRunner(graph.model, device)
    few = x[:COMPARED]
    want = plain.Session(plain.lower(graph.model)).run({name: few}, [output])[output]
    error = float(np.abs(runner.run({name: few}, [output])[output] - want).max() / max(np.abs(want).max(), 1e-30))
    if not error <= tolerance:
        return replace(label, error=error, problem=f"error {error:.1e} > {tolerance:.0e}: not timed")
    there = device.upload(x)
    try:
        ways = _ways(device, explain, runner, {name: there}, output)
        took: dict[str, list[float]] = {k: [] for k in ways}
        for i in range(rounds + 2):
            for way, work in ways.items():
                started = time.perf_counter()
                work()
                device.wait()
                if i >= 2:  # the first two warm up
                    took[way].append(1000 * (time.perf_counter() - started))
    finally:
        device.driver.free(there.pointer)
    ratios = [k / f for k, f in zip(took["kernels"], took["forward"])]
    medians = {way: statistics.median(times) for way, times in took.items()}
    return replace(label, error=error, ratio=statistics.median(ratios), workspace=runner.workspace, **medians)


def _ways(
    device: Device, explain: Explainer, runner: GpuRunner, feeds: Mapping[str, Any], output: str
) -> dict[str, Callable[[], Any]]:
    forward = device.session(serialise(explain.source_model))
    whole = device.session(serialise(plain.lower(explain.build().model)))
    return {
        "forward": lambda: forward.run(feeds, dict.fromkeys(forward.outputs)),
        "onnx": lambda: whole.run(feeds, {output: None}),
        "kernels": lambda: runner.run_on_device(feeds, [output]),
    }


def table(found: Sequence[MethodTiming]) -> list[str]:
    """Lines of the page."""
    head = "| network | batch | method | precision | error | forward ms | ONNX form ms | kernels ms | ratio | workspace MiB |"
    return ["", "## Whole methods", "", head, "|" + " --- |" * 10, *map(row, found)]


def row(t: MethodTiming) -> str:
    """One line of the table."""
    start = f"| {t.network} | {t.batch} | {t.method} | {t.precision} |"
    if t.problem:
        return f"{start} {t.problem} | | | | | |"
    verdict = "" if t.target is None else f" (≤ {t.target} {'met' if t.ratio <= t.target else 'MISSED'})"
    times = f"{t.forward:.2f} | {t.onnx:.2f} | {t.kernels:.2f}"
    return f"{start} {t.error:.1e} | {times} | {t.ratio:.2f}{verdict} | {t.workspace / 2**20:.0f} |"
