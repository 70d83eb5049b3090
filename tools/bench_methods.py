"""Whole methods on a GPU: the kernels' backend against the plain forward pass, the pure ONNX form and Captum or Zennit on
torch, in one process. A method is compared with the CPU backend first; what differs is not timed.

Part of `tools/bench_kernels.py`. torch is used where it is installed with a GPU, and by nothing else of this project.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import make_models
import numpy as np
import onnx
from onnx_explain_kernels.errors import KernelError
from onnx_explain_kernels.launch import Kernels

from onnx_explain import Explainer
from onnx_explain.backends import onnx as plain
from onnx_explain.backends.gpu import Device, GpuRunner, OnDevice
from onnx_explain.backends.gpu.libraries import loaded
from onnx_explain.errors import ExplainError
from onnx_explain.ir.message import serialise

NETWORKS = ["vgg16:32", "resnet50:64", "mobilenet_v2:32"]
# the largest acceptable ratio to the plain forward pass; MobileNet-v2 is there to be right
TARGETS = {"lrp-epsilon": 2.5, "lrp-epsilon-plus": 3.6, "rap": 6.0, "gradient": None}
COMPARED = 1  # samples that the CPU backend explains too
WRONG = 0.5  # an error, of the maximum, that no rounding explains: such a method is not timed

Peer = tuple[str, Callable[[], Any]] | None
PeerOf = Callable[[str, str, onnx.ModelProto, np.ndarray], Peer]


@dataclass(frozen=True)
class MethodTiming:
    """One method on one network: medians in ms, `ratio` to the forward pass, `gain` over the ONNX form and `peer_gain` over the
    peer, per round; `memory`: the device memory that it takes, weights and forward pass included, as a multiple of what the
    plain forward pass takes.
    """

    network: str
    batch: int
    method: str
    precision: str
    error: float = 0.0
    limit: float = 0.0
    forward: float = 0.0
    onnx: float = 0.0
    kernels: float = 0.0
    peer: float | None = None
    peer_name: str = ""
    ratio: float = 0.0
    gain: float = 0.0
    peer_gain: float | None = None
    memory: float | None = None
    workspace: int = 0
    target: float | None = None
    problem: str = ""


class Pretended(Device):
    """A device on which no session is opened: for what would be launched."""

    def session(self, model: Any) -> Any:
        """None."""


def opened(kernels: Kernels, precision: Any, *, measured: bool, **choices: Any) -> Device:
    """The device of the kernels; for a stand-in of the driver ONNX Runtime's CPU provider on the same memory.

    Raises RuntimeMissing where ONNX Runtime has no CUDA provider.
    """
    if measured:
        loaded(plain.runtime())
    return Device.of(kernels, provider="cuda" if measured else "cpu", precision=precision, **choices)


def parsed(text: str) -> tuple[str, int, int, float]:
    """(name, batch, size, width) of ``name:batch`` or ``name:batch:size:width``."""
    name, batch, *rest = text.split(":")
    return name, int(batch), int(rest[0]) if rest else 224, float(rest[1]) if len(rest) > 1 else 1.0


def graphs(networks: Sequence[str]) -> Iterator[tuple[MethodTiming, onnx.ModelProto, Explainer, int]]:
    """Each method on each network: (an empty line of the table, the model, its explainer, the pictures' size)."""
    for text in networks:
        name, batch, size, width = parsed(text)
        model = make_models.build(name, size=size, width=width)
        for method, target in TARGETS.items():
            goal = target if name in ("vgg16", "resnet50") else None
            yield MethodTiming(name, batch, method, "", target=goal), model, Explainer(model, method), size


def plans(networks: Sequence[str], devices: Sequence[Device], arch: int, timed: Sequence[str]) -> Iterator[Any]:
    """The kernels that the methods launch: for the batch in the precisions that are timed, for what is compared in the others; no
    device is asked.
    """
    for label, _, explain, size in graphs(networks):
        (name,) = explain.inputs
        for device in devices:
            runner = GpuRunner(explain.build().model, device)
            samples = label.batch if device.precision in timed else COMPARED
            yield from runner.plans({name: (samples, 3, size, size)}, arch)


@dataclass(frozen=True)
class Agreement:
    """One method on one network against the CPU backend, in one precision; `error` of the maximum."""

    network: str
    method: str
    precision: str
    error: float
    limit: float
    problem: str = ""


def compared(
    devices: Mapping[str, Device], networks: Sequence[str], limits: Mapping[str, float], late: Callable[[], bool]
) -> Iterator[Agreement]:
    """Each method on each network in each precision; what is not compiled, or comes when it is `late`, is left out."""
    for label, _, explain, size in graphs(networks):
        if late():
            return
        graph, (name,) = explain.build(), explain.inputs
        (output,) = graph.relevance.values()
        few = _pictures(COMPARED, size)
        want: np.ndarray | None = None
        for precision, device in devices.items():
            known = Agreement(label.network, label.method, precision, float("nan"), limits[precision])
            try:
                runner = GpuRunner(graph.model, device)
                planned = runner.plans({name: few.shape}, device.kernels.arch)
                if late() or not all(map(device.kernels.known, planned)):
                    continue
                want = _reference(graph, {name: few}, output) if want is None else want
                yield replace(known, error=_error(runner.run({name: few}, [output])[output], want))
            except (ExplainError, KernelError) as error:
                yield replace(known, problem=f"{type(error).__name__}: {error}")


def _pictures(samples: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((samples, 3, size, size)).astype(np.float32)


def _reference(graph: Any, feeds: Mapping[str, np.ndarray], output: str) -> np.ndarray:
    """What the CPU backend finds."""
    return np.asarray(plain.Session(plain.lower(graph.model)).run(feeds, [output])[output])


def _error(got: np.ndarray, want: np.ndarray) -> float:
    """Of the maximum; NaN where one is."""
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-30))


def timed(
    device: Device,
    networks: Sequence[str],
    rounds: int,
    tolerance: float,
    *,
    peer_of: PeerOf | None = None,
    late: Callable[[], bool] = lambda: False,
    compiled: Callable[[Any], bool] = lambda plan: True,
) -> Iterator[MethodTiming]:
    """Each method on each network, ``name:batch`` (and ``:size:width`` for a smaller one), until it is `late`; what is not
    `compiled` yet is left out, since that would take the time of the others.
    """
    _warm(device)
    for empty, model, explain, size in graphs(networks):
        label = replace(empty, precision=device.precision)
        if late():
            yield replace(label, problem="left out: no time was left")
            continue
        try:
            yield _one(device, model, explain, label, rounds, tolerance, size, peer_of, compiled)
        except (
            Exception
        ) as error:  # of a peer, of ONNX Runtime, of the driver: a line of the table, and the next method
            yield replace(label, problem=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        _cleaned()


def _warm(device: Device) -> None:
    """One convolution and one product: cuDNN and cuBLAS are in memory before any is counted."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.random((4, 3, 3, 3)), "v": rng.random((4, 4))}
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["c"]),
        onnx.helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        onnx.helper.make_node("Flatten", ["g"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xy"]
    tensors = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
    graph = onnx.helper.make_graph(nodes, "warm", ends[:1], ends[1:], tensors)
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    OnDevice(device, bytes(model.SerializeToString())).run({"x": np.ones((1, 3, 8, 8), np.float32)})


def _cleaned() -> None:
    """What the last method and its peer hold on the device is given back before the next is counted."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def _one(
    device: Device,
    model: onnx.ModelProto,
    explain: Explainer,
    label: MethodTiming,
    rounds: int,
    tolerance: float,
    size: int,
    peer_of: PeerOf | None,
    compiled: Callable[[Any], bool],
) -> MethodTiming:
    graph = explain.build()
    (name,), (output,) = explain.inputs, graph.relevance.values()
    x = _pictures(label.batch, size)
    few = x[:COMPARED]
    there = device.upload(x)
    try:
        before = device.driver.free_memory()
        forward = device.session(serialise(explain.source_model))
        base = _taken(device, before, lambda: forward.run({name: there}, dict.fromkeys(forward.outputs)))
        before = device.driver.free_memory()
        runner = GpuRunner(graph.model, device)
        planned = runner.plans({name: x.shape}, device.kernels.arch)
        if missing := sum(not compiled(plan) for plan in planned):
            return replace(label, problem=f"left out: {missing} of {len(planned)} kernels were not compiled in time")
        # samples do not touch each other: the first of the batch are those of the CPU
        error = _error(runner.run({name: x}, [output])[output][:COMPARED], _reference(graph, {name: few}, output))
        if not error <= WRONG:
            return replace(label, error=error, limit=tolerance, problem=f"error {error:.1e}: not timed")
        ways: dict[str, Callable[[], Any]] = {
            "forward": lambda: forward.run({name: there}, dict.fromkeys(forward.outputs)),
            "kernels": lambda: runner.run_on_device({name: there}, [output]),
        }
        whole_memory = _taken(device, before, ways["kernels"])
        whole = device.session(serialise(plain.lower(graph.model)))
        ways["onnx"] = lambda: whole.run({name: there}, {output: None})
        peer = peer_of(label.network, label.method, model, x) if peer_of is not None else None
        if peer is not None:
            ways["peer"] = peer[1]
        took = _in_turn(device, ways, rounds)
    finally:
        device.driver.free(there.pointer)
    medians = {way: statistics.median(times) for way, times in took.items()}
    found = {
        "ratio": _paired(took["kernels"], took["forward"]),
        "gain": _paired(took["onnx"], took["kernels"]),
        "peer_gain": _paired(took["peer"], took["kernels"]) if peer is not None else None,
        "peer_name": peer[0] if peer is not None else "",
        "memory": whole_memory / base if base > 0 else None,
        "workspace": runner.workspace,
    }
    return replace(label, error=error, limit=tolerance, **medians, **found)


def _taken(device: Device, before: int, work: Callable[[], Any]) -> int:
    """Bytes of device memory, weights included, that two runs leave taken: ONNX Runtime plans its memory after the first, and
    gives nothing back.
    """
    for _ in range(2):
        work()
        device.wait()
    return int(before - device.driver.free_memory())


def _in_turn(device: Device, ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each way per round; two rounds warm up, the second captures what is captured."""
    took: dict[str, list[float]] = {k: [] for k in ways}
    for i in range(rounds + 2):
        for way, work in ways.items():
            device.wait()
            started = time.perf_counter()
            own = work()  # a peer's own clock, which leaves out how it hooks itself in
            device.wait()
            if i >= 2:
                took[way].append(own if isinstance(own, float) else 1000 * (time.perf_counter() - started))
    return took


def _paired(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of ratios, round by round."""
    return statistics.median(a / b for a, b in zip(above, below))


# ------------------------------------------------------------------------------------------- peers on torch


def peers(say: Callable[[str], None], *, where: str = "cuda", rounded: bool = True) -> PeerOf | None:
    """Captum's or Zennit's way to a method on torch's GPU, as fast as torch can: with its search for convolutions, and in tf32
    where ours is `rounded`. None, with the reason said, where torch has no GPU.
    """
    try:
        import compare_peers
        import torch
    except ImportError as error:
        say(f"No comparison with Captum and Zennit: {error}.")
        return None
    if where == "cuda" and not torch.cuda.is_available():
        say("No comparison with Captum and Zennit: torch sees no GPU.")
        return None
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = rounded
    torch.backends.cudnn.benchmark = True
    contests = {one.ours: one for one in compare_peers.CONTESTS}

    def peer_of(network: str, method: str, model: onnx.ModelProto, x: np.ndarray) -> Peer:
        if method not in contests or network not in compare_peers.NETWORKS:
            return None
        one = contests[method]
        try:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "model.onnx"
                onnx.save(model, file)
                attribute = one.prepare(compare_peers.torch_network(network, file).to(where))
            given = torch.from_numpy(x).to(where)
            target = torch.zeros(len(x), dtype=torch.long, device=where)

            def run() -> float:
                return float(attribute(given, target)[1])

            run()
        except Exception as error:  # a peer that is not there, or cannot do it, is a result
            said = str(error).splitlines() or [""]
            say(f"{one.peer} cannot explain {network}: {type(error).__name__}: {said[0]}")
            return None
        return one.peer, run

    return peer_of


# ------------------------------------------------------------------------------------------- memory that runs out


def halved(device: Device, network: str, method: str = "lrp-epsilon") -> str:
    """The sentence of a batch that does not fit: most of the free memory is taken away, then a batch is explained."""
    name, batch, size, width = parsed(network)
    model = make_models.build(name, size=size, width=width)
    x = _pictures(batch, size)
    fits = Explainer(model, method)
    gc.collect()  # what earlier runs still hold would be given back in the middle of it
    before = device.driver.free_memory()
    probe = GpuRunner(fits.build().model, device)
    probe.run({next(iter(fits.inputs)): x})
    need, took = probe.workspace, before - device.driver.free_memory()
    del probe
    gc.collect()
    taken: list[int] = []
    try:
        spare = device.driver.free_memory() - took + need // 4  # weights and three quarters of the workspace fit
        if spare > 0:
            taken.append(device.allocate(spare))
        with mock.patch.object(Device, "open", staticmethod(lambda precision="tf32", ordinal=0: device)):
            notes = Explainer(model, method, device="cuda", precision=device.precision)(x).notes
        return " ".join(notes) or "the batch fitted all the same"
    except (ExplainError, KernelError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        for pointer in taken:
            with suppress(Exception):
                device.driver.free(pointer)


# ------------------------------------------------------------------------------------------- the table


def table(found: Sequence[MethodTiming]) -> list[str]:
    """Lines of the page."""
    head = (
        "| network | batch | method | precision | error | forward ms | ONNX form ms | peer ms | kernels ms | "
        "ratio to forward | ONNX form / kernels | peer / kernels | memory / forward | workspace MiB |"
    )
    return ["", "## Whole methods", "", head, "|" + " --- |" * 14, *map(row, found)]


def row(t: MethodTiming) -> str:
    """One line of the table."""
    start = f"| {t.network} | {t.batch} | {t.method} | {t.precision} |"
    if t.problem:
        return f"{start} {t.problem} |" + " |" * 9
    verdict = "" if t.target is None else f" (≤ {t.target} {'met' if t.ratio <= t.target else 'MISSED'})"
    peer = "–" if t.peer is None else f"{t.peer:.2f} ({t.peer_name})"
    against = "–" if t.peer_gain is None else f"{t.peer_gain:.2f}"
    memory = "–" if t.memory is None else f"{t.memory:.2f}"
    times = f"{t.forward:.2f} | {t.onnx:.2f} | {peer} | {t.kernels:.2f}"
    ratios = f"{t.ratio:.2f}{verdict} | {t.gain:.2f} | {against} | {memory}"
    missed = "" if t.error <= t.limit else f" (> {t.limit:.0e}, MISSED)"
    return f"{start} {t.error:.1e}{missed} | {times} | {ratios} | {t.workspace / 2**20:.0f} |"
