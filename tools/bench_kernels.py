"""Checks and times the GPU kernels on the device at hand: one script, one table.

1. every form against the float64 oracle, per precision; 2. the device's own ceilings, in the same process: copy bandwidth
and the matrix rate of cuBLAS; 3. whole methods: first compared with the CPU backend, then timed in turn with the plain forward
pass, the ONNX form, and Captum or Zennit where torch has the GPU; 4. each kernel on the sample layers, interleaved with its
ceiling, as a fraction of it. Nothing is timed by a kernel that is not right.

`python tools/bench_kernels.py --all --out docs/benchmarks/gpu` does all of it in less than nine minutes, and says what it has
left out for time. Before, on any machine, `--prepare 90 --kernels build/kernels_90` compiles what it needs for one architecture;
with `--kernels build/kernels_90` the device then compiles nothing. `--stand-in` runs everything on the recorded driver of the
tests: its times mean nothing.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx_explain_kernels import catalogue
from onnx_explain_kernels.compiler import compile_kernel
from onnx_explain_kernels.driver import Driver
from onnx_explain_kernels.errors import DeviceError, KernelError
from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.launch import Kernel, Kernels, Memory, Planner, address_of
from onnx_explain_kernels.plan import Layouts, Plan
from onnx_explain_kernels.reference import (
    average_forward,
    conv_denominator,
    conv_forward,
    conv_relevance,
    max_forward,
    pool_relevance,
)
from onnx_explain_kernels.store import Store, encode
from onnx_explain_kernels.weights import pack

sys.path.insert(0, str(Path(__file__).parent))
if not hasattr(np, "row_stack"):  # NumPy 2.5 dropped the name, and numba-cuda 0.30 asks for it
    np.row_stack = np.vstack  # type: ignore[attr-defined]

import bench_methods

from onnx_explain.errors import RuntimeMissing

# the largest acceptable error of a precision, of the largest value
TOLERANCES = {"ieee": 1e-5, "tf32x3": 1e-5, "tf32": 1e-3, "bf16": 1e-2, "fp16": 1e-3}
# the smallest acceptable fraction of the ceiling: of the matrix rate for wide convolutions, of copy bandwidth for pools
CONV_TARGET, POOL_TARGET = 0.55, 0.75
# what `--all` times: the forms of LRP-ε, z⁺, the gradient and RAP, on a layer of each kind
FEW_USES = ("chain", "below_d", "gradient_chain", "product", "box", "halves_given", "relative_given", "quotient")
FEW_USES += ("sum", "pair_divided", "max", "max_chain", "average", "average_gradient")
FEW_LAYERS = ("vgg_1_1", "vgg_1_2", "vgg_2_2", "vgg_3_2", "vgg_4_2", "vgg_5", "resnet_stem", "resnet_2_expand")
FEW_LAYERS += ("resnet_3_stride", "resnet_5_expand", "mobilenet_depthwise", "mobilenet_expand", "densenet_3x3")
CHECKED = {
    "3x3": Conv.of(2, 32, 40, (14, 14), (3, 3), pads=(1, 1, 1, 1)),
    "stride2": Conv.of(1, 16, 48, (15, 17), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "stem": Conv.of(1, 3, 64, (20, 20), (7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "1x1": Conv.of(3, 33, 16, (9, 9), (1, 1)),
    "dilated": Conv.of(1, 16, 16, (11, 9), (3, 3), strides=(2, 1), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "groups": Conv.of(1, 32, 64, (7, 7), (3, 3), pads=(1, 1, 1, 1), group=2),
    "depthwise": Conv.of(2, 48, 48, (13, 12), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1), group=48),
    "one_axis": Conv.of(2, 20, 24, (63,), (5,), strides=(2,), pads=(2, 2)),
    "dense": Conv.dense(7, 63, 33),
}
CHECKED_POOLS = {
    "2x2": Pool.of(2, 3, (16, 18), (2, 2), strides=(2, 2)),
    "overlap": Pool.of(2, 35, (15, 17), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "ceil": Pool.of(1, 3, (9, 10), (3, 2), strides=(2, 3), pads=(1, 0, 0, 1), dilations=(2, 1), ceil_mode=True),
}


@dataclass(frozen=True)
class Job:
    """One kernel on one shape: what is checked or timed."""

    use: str
    shape: str
    geometry: Conv | Pool
    form: ConvForm | DenominatorForm | PoolForm
    layouts: Layouts
    precision: Any = "ieee"

    def made(self, kernels: Any) -> Any:
        """The kernel, or of a `Planner` its plan."""
        options: dict[str, Any] = {"layouts": self.layouts}
        if isinstance(self.form, PoolForm):
            return kernels.pool(self.geometry, self.form, **options)
        options["precision"] = self.precision
        if isinstance(self.form, DenominatorForm):
            return kernels.denominator(self.geometry, self.form, **options)
        return kernels.conv(self.geometry, self.form, **options)

    def places(self) -> dict[str, str]:
        """How each tensor lies in memory."""
        lay = self.layouts
        if isinstance(self.form, ConvForm):
            return {**dict.fromkeys("rabz", lay.r), **dict.fromkeys("xd", lay.x), "out": lay.out}
        if isinstance(self.form, DenominatorForm):
            return {**dict.fromkeys(("r", "z", "lost"), lay.r), "x": lay.x, **dict.fromkeys(("out", "pair"), lay.out)}
        return {"x": lay.x, "y": lay.r, "r": lay.r, "out": lay.out}


class Clock:
    """How much of the time that is given has passed."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._seconds = seconds or 0.0

    def late(self, share: float = 1.0) -> bool:
        """Whether this share of the time is over."""
        return self._end is not None and time.monotonic() > self._end - (1 - share) * self._seconds


@dataclass(frozen=True)
class Check:
    """One comparison with the oracle."""

    kernel: str
    shape: str
    precision: str
    error: float
    tolerance: float
    problem: str = ""

    @property
    def good(self) -> bool:
        return not self.problem and self.error <= self.tolerance  # NaN is not


@dataclass(frozen=True)
class Timing:
    """One kernel on one layer: medians over rounds; `fraction` of the ceiling measured in the same round."""

    kernel: str
    layer: str
    precision: str
    milliseconds: float = 0.0
    rate: float = 0.0
    unit: str = ""
    fraction: float | None = None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    problem: str = ""


@dataclass
class Result:
    """Everything a run has found; `measured` is False for a stand-in driver, whose times mean nothing."""

    machine: dict[str, str]
    measured: bool
    checks: list[Check] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    methods: list[bench_methods.MethodTiming] = field(default_factory=list)
    agreements: list[bench_methods.Agreement] = field(default_factory=list)
    memory: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        return [c for c in self.checks if not c.good]


class Device:
    """Arrays on the device, freed together."""

    # halves of words between 0.25 and 1, read as float32 or bfloat16: a device runs faster on constants than on data
    noise = np.random.default_rng(0).integers(0x3E80, 0x3F80, 1 << 21, np.uint16)

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    @contextmanager
    def arrays(self) -> Iterator[Callable[[Any], Memory]]:
        """A function that puts an array (or so many bytes of small numbers) on the device, for as long as the block."""
        held: list[int] = []

        def put(content: Any) -> Memory:
            size = content if isinstance(content, int) else content.nbytes
            pointer = self.driver.allocate(max(size, 4))
            held.append(pointer)
            if isinstance(content, int):
                self._fill(pointer, size)
            else:
                flat = np.ascontiguousarray(content)
                self.driver.upload(pointer, address_of(flat), flat.nbytes)
            return Memory(pointer, max(size, 4))

        try:
            yield put
        finally:
            for pointer in held:
                self.driver.free(pointer)

    def _fill(self, pointer: int, size: int) -> None:
        done = min(self.noise.nbytes, size)
        self.driver.upload(pointer, address_of(self.noise), done)
        while done < size:
            more = min(done, size - done)
            self.driver.copy(pointer + done, pointer, more)
            done += more

    def get(self, memory: Memory, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, np.float32)
        self.driver.download(address_of(array), memory.pointer, array.nbytes)
        return array


# ------------------------------------------------------------------------------------------- 1. right?


def lying(array: np.ndarray, layout: str) -> np.ndarray:
    """[N, C, H, W] as it lies in memory."""
    return array.transpose(0, 2, 3, 1) if layout == "nhwc" and array.ndim == 4 else array


def conv_operands(conv: Conv, form: ConvForm, rng: np.random.Generator) -> dict[str, np.ndarray]:
    above, below = (conv.samples, conv.filters, *conv.out), (conv.samples, conv.channels, *conv.size)
    x = rng.standard_normal(below)
    x = x if form.branch == "twin" else np.maximum(x, 0)
    w = rng.standard_normal((conv.filters, conv.channels // conv.group, *conv.kernel))
    wp, wm = np.maximum(w, 0), np.minimum(w, 0)
    found: dict[str, Any] = {"r": rng.standard_normal(above), "z": rng.standard_normal(above), "w": w, "v": wm, "x": x}
    found |= {
        "a": 1 + rng.random(above),
        "b": -1 - rng.random(above),
        "d": x + 0.5,
        "delta": rng.standard_normal(conv.samples),
    }
    found |= {"low": np.full((1, conv.channels), -3.0), "high": np.full((1, conv.channels), 3.0)}
    if form.quotient.startswith("relative"):
        found |= {"w": wp, "v": -wm, "a": conv_forward(conv, x, wp), "b": conv_forward(conv, x, -wm)}
    return {k: np.asarray(found[k], np.float32) for k in form.operands}


def denominator_operands(conv: Conv, form: DenominatorForm, rng: np.random.Generator) -> dict[str, np.ndarray]:
    above, below = (conv.samples, conv.filters, *conv.out), (conv.samples, conv.channels, *conv.size)
    x = rng.standard_normal(below)
    x = np.maximum(x, 0) if form.source == "twin" else x
    w = rng.standard_normal((conv.filters, conv.channels // conv.group, *conv.kernel))
    first, second = {"twin": (np.maximum(w, 0), np.maximum(-w, 0)), "magnitudes": (np.abs(w), w)}.get(
        form.source, (np.maximum(w, 0), np.minimum(w, 0))
    )
    found = {"x": x, "w": first, "v": second, "bias": rng.random(conv.filters), "r": rng.standard_normal(above)}
    found |= {"z": rng.standard_normal(above), "delta": rng.standard_normal(conv.samples)}
    return {k: np.asarray(found[k], np.float32) for k in form.operands}


def pool_operands(pool: Pool, form: PoolForm, rng: np.random.Generator) -> dict[str, np.ndarray]:
    x = np.round(np.abs(rng.standard_normal((pool.samples, pool.channels, *pool.size))) * 2).astype(np.float32) / 2
    y = max_forward(pool, x) if form.kind == "max" else average_forward(pool, x)
    found = {"x": x, "y": y, "r": rng.standard_normal(y.shape), "delta": rng.standard_normal(pool.samples)}
    return {k: np.asarray(found[k], np.float32) for k in form.operands}


def wanted_of(job: Job) -> tuple[dict[str, np.ndarray], Mapping[str, np.ndarray], dict[str, float]]:
    """(operands, the oracle's results, the numbers they are made with)."""
    rng, geometry, form = np.random.default_rng(0), job.geometry, job.form
    numbers = {"epsilon": 0.25, "below_epsilon": 0.25}
    if isinstance(form, PoolForm) and isinstance(geometry, Pool):
        given = pool_operands(geometry, form, rng)
        return given, pool_relevance(geometry, form, given, **numbers), numbers
    if not isinstance(geometry, Conv):
        raise TypeError("a pool has a pool's form")
    if isinstance(form, DenominatorForm):
        given = denominator_operands(geometry, form, rng)
        return given, conv_denominator(geometry, form, given, epsilon=0.25, scale=0.5), {"epsilon": 0.25, "scale": 0.5}
    if not isinstance(form, ConvForm):
        raise TypeError("a convolution has a convolution's form")
    given = conv_operands(geometry, form, rng)
    return given, conv_relevance(geometry, form, given, **numbers), numbers


def check_one(kernels: Kernels, job: Job) -> Check:
    """One kernel against the oracle, its results filled with NaN before."""
    tolerance = TOLERANCES[job.precision]
    given, want, numbers = wanted_of(job)
    device, places, forward = Device(kernels.driver), job.places(), isinstance(job.form, DenominatorForm)
    try:
        layer = job.made(kernels)
        with device.arrays() as put:
            tensors = {}
            for k, v in given.items():
                if k in "wv" and isinstance(job.geometry, Conv):
                    tensors[k] = put(pack(v, job.geometry, precision=job.precision, forward=forward))
                else:
                    tensors[k] = put(lying(v, places.get(k, "nchw")))
            for k in layer.plan.writes:
                tensors[k] = put(np.full(layer.plan.needs[k] // 4, np.nan, np.float32))
            layer(tensors, **numbers)
            kernels.driver.synchronize()
            errors = [_error(device, tensors[k], want[k], places[k]) for k in layer.plan.writes if k in places]
            if "sums" in layer.plan.writes:
                sums = device.get(tensors["sums"], (len(want["sums"]), layer.plan.rows)).astype(np.float64).sum(1)
                errors.append(float(np.abs(sums - want["sums"]).max() / np.abs(want["out"]).sum((1, 2, 3)).max()))
        return Check(job.use, job.shape, job.precision, float(np.max(errors)), tolerance)  # NaN stays NaN
    except KernelError as error:
        return Check(job.use, job.shape, job.precision, np.nan, tolerance, f"{type(error).__name__}: {error}")


def _error(device: Device, place: Memory, want: np.ndarray, layout: str) -> float:
    n, c, h, w = want.shape
    got = device.get(place, (n, h, w, c) if layout == "nhwc" else (n, c, h, w))
    got = got.transpose(0, 3, 1, 2) if layout == "nhwc" else got
    return float(np.abs(got - want).max() / np.abs(want).max())


def check_jobs(only: Sequence[str], precisions: Sequence[str], *, few: bool = False) -> Iterator[Job]:
    """Every form on every shape in every precision; `few`: on five of the shapes, in the first precision on all."""
    weighted = [*catalogue.USES, *catalogue.DENOMINATOR_USES]
    for precision in precisions:
        shapes = [n for n in CHECKED if not few or precision == precisions[0] or n in ("3x3", "stride2", "depthwise")]
        for use, form, layouts in weighted:
            for name in shapes:
                if wanted(f"{name}/{use}", only):
                    yield Job(use, name, CHECKED[name], form, layouts, precision)
    for use, pool_form, layouts in catalogue.POOL_USES:
        for name in CHECKED_POOLS:
            if wanted(f"{name}/{use}", only):
                yield Job(use, name, CHECKED_POOLS[name], pool_form, layouts)


def check(
    kernels: Kernels, jobs: Iterable[Job], say: Callable[[str], None], late: Callable[[], bool] = lambda: False
) -> list[Check]:
    """All comparisons, until it is `late`."""
    found, skipped = [], 0
    for job in jobs:
        if late():
            skipped += 1
            continue
        found.append(check_one(kernels, job))
        if not found[-1].good:
            entry = found[-1]
            say(f"WRONG {entry.kernel} {entry.shape} {entry.precision}: {entry.problem or f'error {entry.error:.1e}'}")
        if kernels.driver.lost:
            say("The device takes nothing more from this process: run again with --skip and the form that has done it.")
            break
    say(
        f"{len(found)} comparisons with the oracle, {sum(not c.good for c in found)} failed, {skipped} left out for time"
    )
    return found


def wanted(name: str, only: Sequence[str]) -> bool:
    """Whether a name has one of the words; one that begins with ``!`` it must not have."""
    asked = [word for word in only if not word.startswith("!")]
    return not any(word[1:] in name for word in only if word not in asked) and (
        not asked or any(word in name for word in asked)
    )


# ------------------------------------------------------------------------------------------- 2. ceilings


class Cublas:
    """The matrix product of cuBLAS through ctypes: what the convolutions are held against."""

    _FP32, _TF32, _FP16, _BF16 = 0, 77, 2, 14  # cudaDataType, and CUBLAS_COMPUTE_32F_FAST_TF32
    _COMPUTE = 68  # CUBLAS_COMPUTE_32F

    def __init__(self, library: Any = None) -> None:
        """Load cuBLAS from the system or from NVIDIA's wheels.

        Raises:
            DeviceError: it is not installed.
        """
        self._library = library or self._load()
        self._handle = ctypes.c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))

    @staticmethod
    def _load() -> Any:
        names = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"]
        for folder in sys.path:
            names += [str(p) for p in Path(folder or ".").glob("nvidia/*/lib/libcublas.so.*")]
        for name in names:
            with suppress(OSError):  # cuBLAS is linked with its other half, which lies beside it
                ctypes.CDLL(name.replace("libcublas", "libcublasLt"))
            with suppress(OSError):
                return ctypes.CDLL(name)
        raise DeviceError("cuBLAS is not installed: the fraction of the matrix rate is left out.")

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise DeviceError(f"{name} failed with status {code}.")

    def multiply(self, a: int, b: int, c: int, size: int, precision: str) -> None:
        """C = A B of square matrices on the default stream."""
        kind = {"bf16": self._BF16, "fp16": self._FP16}.get(precision, self._FP32)
        compute = self._TF32 if precision == "tf32" else self._COMPUTE
        one, zero, n = ctypes.c_float(1.0), ctypes.c_float(0.0), ctypes.c_int(size)
        pointers = [ctypes.c_void_p(p) for p in (a, b, c)]
        self._call(
            "cublasGemmEx", self._handle, 1, 0, n, n, n, ctypes.byref(one), pointers[0], kind, n, pointers[1], kind, n,
            ctypes.byref(zero), pointers[2], kind, n, compute, -1,
        )  # fmt: skip


@dataclass
class Ceilings:
    """What the device can do, measured again in every round beside the kernel it is compared with."""

    driver: Driver
    put: Callable[[Any], Memory]
    size: int
    cublas: Cublas | None = None
    _kept: dict[str, list[Memory]] = field(default_factory=dict)

    def busy(self) -> None:
        """Half a millisecond's copy: time to put what is timed on the stream, and nothing of it is left in the cache."""
        if "copy" not in self._kept:
            self._kept["copy"] = [self.put(self.size**2 * 16), self.put(self.size**2 * 16)]
        to, source = self._kept["copy"]
        self.driver.copy(to.pointer, source.pointer, source.size)

    def bandwidth(self) -> float:
        """TB/s of a copy on the device, bytes read and written."""
        took = self.driver.milliseconds(self.busy, ahead=self.busy)
        return 2 * self.size**2 * 16 / took / 1e9

    def matrix_rate(self, precision: str) -> float | None:
        """TFLOP/s of a square product, None without cuBLAS; tf32x3 is held against ieee."""
        if self.cublas is None:
            return None
        if precision not in self._kept:
            self._kept[precision] = [self.put(self.size**2 * 4) for _ in range(3)]
            self.matrix_rate(precision)  # the first product loads its code
        a, b, c = (m.pointer for m in self._kept[precision])
        cublas = self.cublas
        took = self.driver.milliseconds(lambda: cublas.multiply(a, b, c, self.size, precision), ahead=self.busy)
        return 2 * self.size**3 / took / 1e9


# ------------------------------------------------------------------------------------------- 3. fast?


def time_kernel(
    kernel: Kernel, tensors: Mapping[str, Memory], work: float, ceilings: Ceilings, precision: str | None, rounds: int
) -> tuple[float, float, list[float]]:
    """(median ms, work per ms in 1e12/s, fractions of the ceiling), ceiling and kernel in turn; no precision: bandwidth."""
    driver, took, fractions = kernel.driver, [], []
    for _ in range(3):
        kernel(tensors, epsilon=1e-6, below_epsilon=1e-6)
    for _ in range(rounds):
        most = ceilings.bandwidth() if precision is None else ceilings.matrix_rate(precision)
        took.append(driver.milliseconds(lambda: kernel(tensors, epsilon=1e-6, below_epsilon=1e-6), ahead=ceilings.busy))
        if most:
            fractions.append(work / took[-1] / 1e9 / most)
    median = statistics.median(took)
    return median, work / median / 1e9, fractions


def time_jobs(only: Sequence[str], precisions: Sequence[str], samples: int, *, few: bool = False) -> Iterator[Job]:
    """Each sample layer in every form it is used with; `few`: the forms of the four methods, a layer of each kind."""
    for use, pool_form, layouts in catalogue.POOL_USES:
        for name, pool in catalogue.POOLS.items():
            average = name in ("global", "densenet_pool")
            asked = wanted(f"{name}/{use}", only) and (not few or use in FEW_USES)
            if asked and (pool_form.kind == "average") == average:
                yield Job(use, name, replace(pool, samples=samples), pool_form, layouts)
    for precision in precisions:
        for name, conv in catalogue.LAYERS.items():
            for use, form, layouts in (*catalogue.USES, *catalogue.DENOMINATOR_USES):
                first = isinstance(form, ConvForm) and (form.branch == "twin" or use == "product")
                usual = isinstance(form, DenominatorForm) or (conv.channels == 3) == first
                asked = not few or (use in FEW_USES and name in FEW_LAYERS)
                if usual and asked and wanted(f"{name}/{use}", only):
                    yield Job(use, name, replace(conv, samples=samples), form, layouts, precision)


def timed(
    kernels: Kernels, ceilings: Ceilings, jobs: Iterable[Job], rounds: int, say: Callable[[str], None],
    late: Callable[[], bool] = lambda: False,
) -> Iterator[Timing]:  # fmt: skip
    """Each job, until it is `late`."""
    skipped = 0
    for job in jobs:
        if late():
            skipped += 1
            continue
        target: float | None = POOL_TARGET
        if isinstance(job.geometry, Conv):
            wide = min(job.geometry.channels // job.geometry.group, job.geometry.filters) >= 64
            target = CONV_TARGET if wide else None
        label = Timing(job.use, job.shape, job.precision, target=target)
        yield _timing(kernels, ceilings, label, job, rounds, say)
    if skipped:
        say(f"{skipped} timings were left out for time")


def _timing(
    kernels: Kernels, ceilings: Ceilings, label: Timing, job: Job, rounds: int, say: Callable[[str], None]
) -> Timing:
    """Prepare, allocate, time; a failure becomes a line of the table."""
    try:
        kernel = job.made(kernels)
        with Device(kernels.driver).arrays() as put:
            tensors = {k: put(-(-size // 4) * 4) for k, size in kernel.plan.needs.items()}
            if isinstance(job.geometry, Conv):
                work, unit = float(kernel.plan.operations), "TFLOP/s"
                found = time_kernel(kernel, tensors, work, ceilings, label.precision, rounds)
            else:
                work, unit = float(sum(kernel.plan.needs.values())), "TB/s"
                found = time_kernel(kernel, tensors, work, ceilings, None, rounds)
        took, rate, fractions = found
        known = (statistics.median(fractions), min(fractions), max(fractions)) if fractions else (None, None, None)
        done = replace(label, milliseconds=took, rate=rate, unit=unit)
        done = replace(done, fraction=known[0], low=known[1], high=known[2])
    except (KernelError, MemoryError) as error:
        done = replace(label, problem=f"{type(error).__name__}: {error}")
    say(row(done))
    return done


# ------------------------------------------------------------------------------------------- compiling beforehand


def every_plan(arguments: argparse.Namespace, arch: int) -> Iterator[Plan]:
    """Every kernel that a run with these arguments launches; no device is asked."""
    planner, few = Planner(arch), bool(arguments.all)
    jobs = [*check_jobs(arguments.only, arguments.precision, few=few)]
    if not arguments.check:
        jobs += time_jobs(arguments.only, arguments.timed, arguments.samples, few=few)
    for job in jobs:
        with suppress(KernelError):
            yield job.made(planner).plan
    if not _whole(arguments) or arguments.check:
        return
    # what is compared alone is compiled beforehand only: on the device there would be no time for it
    asked = [*arguments.timed, *(arguments.precision if arguments.prepare else ())]
    pretended = [bench_methods.Pretended(planner, 0, "cpu", 0, p, arguments.dense) for p in dict.fromkeys(asked)]
    yield from bench_methods.plans(arguments.network, pretended, arch, arguments.timed)


def _whole(arguments: argparse.Namespace) -> bool:
    """Whether whole methods are asked for: of all kernels, or all but those that are skipped."""
    return all(word.startswith("!") for word in arguments.only)


def compile_apart(
    plans: Iterable[Plan], known: Callable[[Plan], bool], keep: Callable[[Any], None], say: Callable[[str], None],
    late: Callable[[], bool] = lambda: False,
) -> int:  # fmt: skip
    """Compile in as many processes as there are cores what is not known yet, from the first plan on; what fails is told where it
    is used. `late`: what has not begun is left out.
    """
    started, failed, done, waiting = time.monotonic(), 0, 0, dict[str, Any]()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for plan in plans:
            digest = plan.specialisation.digest
            if digest not in waiting and not known(plan):
                waiting[digest] = pool.submit(compile_kernel, plan.specialisation)
            if late():
                break
        for one in as_completed(waiting.values()):
            try:
                keep(one.result())
                done += 1
            except (KernelError, CancelledError):
                failed += 1
            if late():
                for other in waiting.values():
                    other.cancel()
    if waiting:
        took = time.monotonic() - started
        say(f"{done} of {len(waiting)} kernels compiled in {took:.0f} s, {failed} failed or were left out for time")
    return failed


def prepare(arguments: argparse.Namespace) -> int:
    """Compile for one architecture into a folder, without a device."""
    folder: Path = arguments.kernels
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)

    def keep(binary: Any) -> None:
        (folder / f"{binary.specialisation.digest}.kernel").write_bytes(encode(binary))

    def known(plan: Plan) -> bool:
        return (folder / f"{plan.specialisation.digest}.kernel").is_file()

    return 1 if compile_apart(every_plan(arguments, arguments.prepare), known, keep, print) else 0


# ------------------------------------------------------------------------------------------- the table


def row(timing: Timing) -> str:
    start = f"| {timing.layer} | {timing.kernel} | {timing.precision} |"
    if timing.problem:
        return f"{start} {timing.problem} | | | |"
    share = "–" if timing.fraction is None else f"{timing.fraction:.2f} ({timing.low:.2f}–{timing.high:.2f})"
    verdict = "–"
    if timing.target is not None and timing.fraction is not None:
        verdict = f"≥ {timing.target} {'met' if timing.fraction >= timing.target else 'MISSED'}"
    return f"{start} {timing.milliseconds:.3f} | {timing.rate:.2f} {timing.unit} | {share} | {verdict} |"


def claims(result: Result) -> list[str]:
    """The table of what must be shown, with what this run has found for each; nothing that it has not measured."""
    rows = []
    largest: dict[str, float] = {}
    for entry in result.checks:
        largest[entry.precision] = max(largest.get(entry.precision, 0.0), entry.error)
    shown = ", ".join(f"{k} {v:.1e} (≤ {TOLERANCES[k]:.0e})" for k, v in largest.items()) or "not measured"
    rows.append(("kernels against the float64 oracle, of the maximum", shown))
    right = [m for m in (*result.methods, *result.agreements) if m.error > 0]
    shown = (
        ", ".join(f"{m.network} {m.method} {m.precision} {_held(m.error, m.limit)}" for m in right) or "not measured"
    )
    rows.append(("whole methods against the CPU backend, of the maximum", shown))
    for what, unit in (("convolutions of 64 channels and more", "TFLOP/s"), ("pools", "TB/s")):
        held = [t for t in result.timings if t.target is not None and t.fraction is not None and t.unit == unit]
        met = sum((t.fraction or 0) >= (t.target or 0) for t in held)
        goal = f"≥ {CONV_TARGET} of cuBLAS" if unit == "TFLOP/s" else f"≥ {POOL_TARGET} of copy bandwidth"
        rows.append((f"{what}: {goal}", f"{met} of {len(held)} met" if held else "not measured"))
    for m in (m for m in result.methods if m.target is not None and not m.problem):
        goal = f"{m.network} batch {m.batch}, {m.method}: ≤ {m.target} forward passes"
        rows.append((goal, f"{m.ratio:.2f}, {'met' if m.ratio <= m.target else 'MISSED'}"))
    faster = [m for m in result.methods if m.gain > 0]
    shown = f"{sum(m.gain > 1 for m in faster)} of {len(faster)} faster" if faster else "not measured"
    rows.append(("against the pure ONNX form on the CUDA provider", shown))
    peers = [m for m in faster if m.peer_gain is not None]
    shown = f"{sum((m.peer_gain or 0) > 1 for m in peers)} of {len(peers)} faster" if peers else "not measured"
    rows.append(("against Captum and Zennit on torch", shown))
    held_memory = [m for m in faster if m.memory is not None]
    shown = ", ".join(f"{m.network} {m.method} {m.memory:.2f}" for m in held_memory) or "not measured"
    rows.append(("device memory, multiple of the plain forward pass's", shown))
    rows.append(("a batch that does not fit", result.memory or "not measured"))
    return ["", "| claim | found |", "| --- | --- |", *(f"| {claim} | {found} |" for claim, found in rows)]


def _held(error: float, limit: float) -> str:
    return f"{error:.1e} ({'≤' if error <= limit else 'MISSED, >'} {limit:.0e})"


def table(result: Result) -> str:
    """The page."""
    lines = ["# GPU kernels", ""]
    if not result.measured:
        lines += ["**Stand-in driver: no figure below was measured.**", ""]
    lines += [f"* {key}: {value}" for key, value in result.machine.items()]
    lines += [f"* {key}: {value:.2f}" for key, value in result.ceilings.items()]
    lines += [f"* {remark}" for remark in result.remarks]
    lines += claims(result)
    wrong = result.failed
    lines += ["", f"{len(result.checks)} comparisons with the float64 oracle, {len(wrong)} failed.", ""]
    lines += [
        f"* {c.kernel}, {c.shape}, {c.precision}: {c.problem or f'error {c.error:.1e} > {c.tolerance:.0e}'}"
        for c in wrong
    ]
    lines += bench_methods.table(result.methods) if result.methods else []
    lines += ["", "## Kernels", ""]
    lines += ["| layer | form | precision | ms | rate | fraction of the ceiling (min–max) | target |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |", *(row(t) for t in result.timings)]
    return "\n".join(lines) + "\n"


def machine(driver: Driver, words: Sequence[str]) -> dict[str, str]:
    version = ctypes.c_int()
    driver.call("cuDriverGetVersion", ctypes.byref(version))
    capability = driver.capability
    found = {
        "device": f"{driver.name()}, compute capability {capability // 10}.{capability % 10}",
        "driver": f"CUDA {version.value // 1000}.{version.value % 1000 // 10}",
        "system": f"{platform.system()} {platform.machine()}",
    }
    versions = [f"python {platform.python_version()}"]
    ort = bench_methods.plain.runtime()  # of two distributions the one that is imported
    versions.append(f"ONNX Runtime {ort.__version__} (CUDA {getattr(ort, 'cuda_version', '') or '–'})")
    for name in ("onnx-explain", "triton", "numba", "numba-cuda", "numpy", "torch", "captum", "zennit"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    found["versions"] = ", ".join(versions)
    found["date"] = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    found["command"] = shlex.join(["python", "tools/bench_kernels.py", *words])
    return found


def bench(
    kernels: Kernels, arguments: argparse.Namespace, words: Sequence[str], *, measured: bool, cublas: Any = None,
    peer_of: Any = None,
) -> Result:  # fmt: skip
    """All parts; what is wrong is not timed, and what comes too late is said to be left out."""
    clock, few = Clock(arguments.budget), bool(arguments.all)
    result = Result(machine(kernels.driver, words), measured)

    def say(sentence: str) -> None:
        print(sentence, flush=True)
        if not sentence.startswith("|"):
            result.remarks.append(sentence)

    if measured and not arguments.kernels:
        plans = every_plan(arguments, kernels.arch)
        compile_apart(plans, kernels.known, kernels.adopt, say, lambda: clock.late(0.4))
    jobs = check_jobs(arguments.only, arguments.precision, few=few)
    result.checks = check(kernels, jobs, say, lambda: clock.late(0.55))
    written(result, arguments)
    if arguments.check or kernels.driver.lost:
        return result
    if _whole(arguments) and arguments.network:
        _methods(kernels, arguments, result, clock, measured, peer_of, say)
        written(result, arguments)
    if kernels.driver.lost:
        say("The device takes nothing more from this process: kernels are not timed.")
        return result
    if not measured:
        kernels.driver.library.runs = None  # what would be timed is recorded alone
    _kernels(kernels, arguments, result, clock, cublas, say)
    return result


def _kernels(
    kernels: Kernels, arguments: argparse.Namespace, result: Result, clock: Clock, cublas: Any,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Each kernel that is right in turn with its ceiling."""
    wrong = {check.kernel for check in result.failed}
    with Device(kernels.driver).arrays() as put:
        try:
            product: Cublas | None = Cublas(cublas)
        except DeviceError as error:
            say(str(error))
            product = None
        ceilings = Ceilings(kernels.driver, put, arguments.matrix, product)
        result.ceilings["copy bandwidth, TB/s"] = statistics.median(ceilings.bandwidth() for _ in range(5))
        for precision in arguments.timed:
            rates = [ceilings.matrix_rate(precision) for _ in range(5)]
            if rates[0] is not None:
                result.ceilings[f"cuBLAS {precision}, TFLOP/s"] = statistics.median(r for r in rates if r is not None)
        todo = time_jobs(arguments.only, arguments.timed, arguments.samples, few=bool(arguments.all))
        right = (job for job in todo if job.use not in wrong)
        for timing in timed(kernels, ceilings, right, arguments.rounds, say, clock.late):
            result.timings.append(timing)


def _methods(
    kernels: Kernels, arguments: argparse.Namespace, result: Result, clock: Clock, measured: bool, peer_of: Any,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Whole methods: timed, then a batch that does not fit, then compared in the other precisions."""
    choices = {"dense": arguments.dense, "graphs": arguments.graphs}
    try:
        devices = {
            precision: bench_methods.opened(kernels, precision, measured=measured, **choices)
            for precision in dict.fromkeys([*arguments.timed, *arguments.precision])
        }
    except RuntimeMissing as error:
        say(f"Whole methods are left out. {error}")
        return
    for precision in arguments.timed:
        peers = peer_of
        if peers is None and measured:
            peers = bench_methods.peers(say, rounded=precision not in ("ieee", "tf32x3"))
        options: dict[str, Any] = {"peer_of": peers, "late": lambda: clock.late(0.75)}
        if measured and arguments.budget is not None:
            options["compiled"] = kernels.known
        limit, timed_on = TOLERANCES[precision], devices.pop(precision)
        for found in bench_methods.timed(timed_on, arguments.network, arguments.rounds, limit, **options):
            print(bench_methods.row(found), flush=True)
            result.methods.append(found)
            written(result, arguments)
    if not clock.late(0.8):
        result.memory = bench_methods.halved(timed_on, arguments.network[-1])
    for one in bench_methods.compared(devices, arguments.network, TOLERANCES, lambda: clock.late(0.85)):
        result.agreements.append(one)


def written(result: Result, arguments: argparse.Namespace) -> None:
    """The page and its figures as far as they are known: a run that is ended leaves what it has found."""
    if not arguments.out:
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    text = json.dumps({**asdict(result), "failed": len(result.failed)}, indent=1)
    arguments.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--all", action="store_true", help="everything that fits --budget (default 510 s) for one page")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument(
        "--precision", nargs="+", choices=TOLERANCES, default=["tf32", "ieee", "bf16"], help="what is checked"
    )
    parser.add_argument("--timed", nargs="+", choices=TOLERANCES, default=["tf32"], help="precisions that are timed")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", default=[], help="layer/form names that contain one of these"
    )
    parser.add_argument("--skip", nargs="+", metavar="WORD", default=[], help="not those that contain one of these")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--samples", type=int, default=catalogue.SAMPLES, help="batch size of the sample layers")
    parser.add_argument("--matrix", type=int, default=8192, help="size of the product that sets the ceiling")
    parser.add_argument(
        "--network", nargs="*", default=bench_methods.NETWORKS, help="name:batch of tools/make_models.py, whole methods"
    )
    parser.add_argument("--dense", choices=("onnx", "kernel"), default="onnx", help="what runs dense layers")
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs for runs of kernels")
    parser.add_argument("--check", action="store_true", help="compare with the oracle only")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="leave out what would come later")
    parser.add_argument("--kernels", type=Path, metavar="FOLDER", help="compiled beforehand by --prepare")
    parser.add_argument("--prepare", type=int, metavar="ARCH", help="compile into --kernels, e.g. for 90; no device")
    parser.add_argument("--stand-in", action="store_true", help="the tests' recorded driver instead of a device")
    arguments = parser.parse_args(words)
    arguments.only = [*arguments.only, *(f"!{word}" for word in arguments.skip)]
    if arguments.all and arguments.budget is None:
        arguments.budget = 510.0
    if arguments.prepare is not None and arguments.kernels is None:
        parser.error("--prepare needs --kernels FOLDER")
    return arguments


def stand_in(folder: Path) -> Kernels:
    """Kernels on the recorded driver of the tests: interpreted, on host memory."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "backends"))
    import gpu_stand_in

    fake, device = gpu_stand_in.stand_in(folder, own_stream=False)
    fake.total = 1 << 28
    found: Kernels = device.kernels
    return found


def main(
    words: Sequence[str] | None = None, *, kernels: Kernels | None = None, cublas: Any = None, peer_of: Any = None
) -> int:
    words = sys.argv[1:] if words is None else words
    arguments = parsed(words)
    if arguments.prepare is not None:
        return prepare(arguments)
    measured = kernels is None and not arguments.stand_in
    with tempfile.TemporaryDirectory() as folder:
        try:
            if kernels is None and arguments.stand_in:
                kernels = stand_in(Path(folder))
            kernels = kernels or Kernels(store=Store(shipped=arguments.kernels) if arguments.kernels else None)
        except KernelError as error:
            print(f"{error} Nothing was measured.", file=sys.stderr)
            return 2
        if kernels.store.refused:
            print(f"Compiled kernels are not kept: {kernels.store.refused}.")
        result = bench(kernels, arguments, words, measured=measured, cublas=cublas, peer_of=peer_of)
    written(result, arguments)
    print(table(result))
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
