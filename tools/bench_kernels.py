"""Checks and times the GPU kernels on the device at hand: one script, one table.

1. every form against the float64 oracle, per precision; 2. the device's own ceilings, in the same process: copy bandwidth
and the matrix rate of cuBLAS; 3. each kernel on the sample layers, interleaved with its ceiling, as a fraction of it;
4. whole methods: first compared with the CPU backend, then timed in turn with the plain forward pass and the ONNX form.
Nothing is timed by a kernel that is not right. `python tools/bench_kernels.py --out docs/benchmarks/kernels`.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx_explain_kernels import catalogue
from onnx_explain_kernels.driver import Driver
from onnx_explain_kernels.errors import DeviceError, KernelError
from onnx_explain_kernels.forms import ConvForm, PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.launch import Kernel, Kernels, Memory, address_of
from onnx_explain_kernels.plan import Layouts
from onnx_explain_kernels.reference import average_forward, conv_forward, conv_relevance, max_forward, pool_relevance
from onnx_explain_kernels.weights import pack

sys.path.insert(0, str(Path(__file__).parent))

import bench_methods

# the largest acceptable error of a precision, of the largest value
TOLERANCES = {"ieee": 1e-5, "tf32x3": 1e-5, "tf32": 1e-3, "bf16": 1e-2, "fp16": 1e-3}
# the smallest acceptable fraction of the ceiling: of the matrix rate for wide convolutions, of copy bandwidth for pools
CONV_TARGET, POOL_TARGET = 0.55, 0.75
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

    @property
    def failed(self) -> list[Check]:
        return [c for c in self.checks if not c.good]


class Device:
    """Arrays on the device, freed together."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    @contextmanager
    def arrays(self) -> Iterator[Callable[[Any], Memory]]:
        """A function that puts an array (or so many bytes of a small constant) on the device, for as long as the block."""
        held: list[int] = []

        def put(content: Any) -> Memory:
            size = content if isinstance(content, int) else content.nbytes
            pointer = self.driver.allocate(max(size, 4))
            held.append(pointer)
            if isinstance(content, int):
                self.driver.fill(pointer, 0x3F000000, size // 4)  # 0.5 in float32, harmless in 16 bits
            else:
                flat = np.ascontiguousarray(content)
                self.driver.upload(pointer, address_of(flat), flat.nbytes)
            return Memory(pointer, max(size, 4))

        try:
            yield put
        finally:
            for pointer in held:
                self.driver.free(pointer)

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


def check_conv(kernels: Kernels, name: str, use: str, form: ConvForm, layouts: Layouts, precision: Any) -> Check:
    """One convolution against the oracle, its result filled with NaN before."""
    conv, tolerance = CHECKED[name], TOLERANCES[precision]
    given = conv_operands(conv, form, np.random.default_rng(0))
    want = conv_relevance(conv, form, given, epsilon=0.25, below_epsilon=0.25)
    device = Device(kernels.driver)
    try:
        layer = kernels.conv(conv, form, layouts=layouts, precision=precision)
        with device.arrays() as put:
            places = {**dict.fromkeys("rabz", layouts.r), **dict.fromkeys("xd", layouts.x)}
            tensors = {
                k: put(pack(v, conv, precision=precision) if k in "wv" else lying(v, places.get(k, "nchw")))
                for k, v in given.items()
            }
            tensors |= {k: put(np.full(layer.plan.needs[k] // 4, np.nan, np.float32)) for k in form.results}
            layer(tensors, epsilon=0.25, below_epsilon=0.25)
            kernels.driver.synchronize()
            n, c, h, w = want["out"].shape
            got = device.get(tensors["out"], (n, h, w, c) if layouts.out == "nhwc" else (n, c, h, w))
            got = got.transpose(0, 3, 1, 2) if layouts.out == "nhwc" else got
            error = float(np.abs(got - want["out"]).max() / np.abs(want["out"]).max())
            if form.sums:
                sums = device.get(tensors["sums"], (n, layer.plan.rows)).astype(np.float64).sum(1)
                error = max(error, float(np.abs(sums - want["sums"]).max() / np.abs(want["out"]).sum((1, 2, 3)).max()))
        return Check(use, name, precision, error, tolerance)
    except KernelError as error:
        return Check(use, name, precision, np.nan, tolerance, f"{type(error).__name__}: {error}")


def check_pool(kernels: Kernels, name: str, use: str, form: PoolForm, layouts: Layouts) -> Check:
    pool, rng = CHECKED_POOLS[name], np.random.default_rng(0)
    x = np.round(np.abs(rng.standard_normal((pool.samples, pool.channels, *pool.size))) * 2).astype(np.float32) / 2
    y = max_forward(pool, x) if form.kind == "max" else average_forward(pool, x)
    found = {"x": x, "y": y, "r": rng.standard_normal(y.shape), "delta": rng.standard_normal(pool.samples)}
    given = {k: np.asarray(found[k], np.float32) for k in form.operands}
    want = pool_relevance(pool, form, given, epsilon=0.25, below_epsilon=0.25)["out"]
    device = Device(kernels.driver)
    try:
        layer = kernels.pool(pool, form, layouts=layouts)
        with device.arrays() as put:
            places = {"x": layouts.x, "y": layouts.r, "r": layouts.r, "delta": "nchw"}
            tensors = {k: put(lying(v, places[k])) for k, v in given.items()} | {"out": put(np.full_like(x, np.nan))}
            layer(tensors, epsilon=0.25, below_epsilon=0.25)
            kernels.driver.synchronize()
            n, c, h, w = want.shape
            got = device.get(tensors["out"], (n, h, w, c) if layouts.out == "nhwc" else (n, c, h, w))
            got = got.transpose(0, 3, 1, 2) if layouts.out == "nhwc" else got
        return Check(use, name, "ieee", float(np.abs(got - want).max() / np.abs(want).max()), TOLERANCES["ieee"])
    except KernelError as error:
        return Check(use, name, "ieee", np.nan, TOLERANCES["ieee"], f"{type(error).__name__}: {error}")


def check(kernels: Kernels, precisions: Sequence[str], only: Sequence[str], say: Callable[[str], None]) -> list[Check]:
    """Every form on every shape in every precision."""
    found = []
    for use, form, layouts in catalogue.USES:
        for name in CHECKED:
            if wanted(f"{name}/{use}", only):
                found += [check_conv(kernels, name, use, form, layouts, precision) for precision in precisions]
    for use, pool_form, layouts in catalogue.POOL_USES:
        names = [name for name in CHECKED_POOLS if wanted(f"{name}/{use}", only)]
        found += [check_pool(kernels, name, use, pool_form, layouts) for name in names]
    for entry in found:
        if not entry.good:
            say(f"WRONG {entry.kernel} {entry.shape} {entry.precision}: {entry.problem or f'error {entry.error:.1e}'}")
    say(f"{len(found)} comparisons with the oracle, {sum(not c.good for c in found)} failed")
    return found


def wanted(name: str, only: Sequence[str]) -> bool:
    return not only or any(word in name for word in only)


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

    def bandwidth(self) -> float:
        """TB/s of a copy on the device, bytes read and written."""
        if "copy" not in self._kept:
            self._kept["copy"] = [self.put(self.size**2 * 16), self.put(self.size**2 * 16)]
        to, source = self._kept["copy"]
        took = self.driver.milliseconds(lambda: self.driver.copy(to.pointer, source.pointer, source.size))
        return 2 * source.size / took / 1e9

    def matrix_rate(self, precision: str) -> float | None:
        """TFLOP/s of a square product, None without cuBLAS; tf32x3 is held against ieee."""
        if self.cublas is None:
            return None
        if precision not in self._kept:
            self._kept[precision] = [self.put(self.size**2 * 4) for _ in range(3)]
        a, b, c = (m.pointer for m in self._kept[precision])
        cublas = self.cublas
        took = self.driver.milliseconds(lambda: cublas.multiply(a, b, c, self.size, precision))
        return 2 * self.size**3 / took / 1e9


# ------------------------------------------------------------------------------------------- 3. fast?


def time_kernel(
    kernel: Kernel, tensors: Mapping[str, Memory], work: float, ceiling: Callable[[], float | None], rounds: int
) -> tuple[float, float, list[float]]:
    """(median ms, work per ms in 1e12/s, fractions of the ceiling), ceiling and kernel in turn."""
    driver, took, fractions = kernel.driver, [], []
    for _ in range(3):
        kernel(tensors, epsilon=1e-6, below_epsilon=1e-6)
    for _ in range(rounds):
        most = ceiling()
        took.append(driver.milliseconds(lambda: kernel(tensors, epsilon=1e-6, below_epsilon=1e-6)))
        if most:
            fractions.append(work / took[-1] / 1e9 / most)
    median = statistics.median(took)
    return median, work / median / 1e9, fractions


def timed(
    kernels: Kernels, ceilings: Ceilings, only: Sequence[str], precisions: Sequence[str], rounds: int, samples: int,
    say: Callable[[str], None],
) -> Iterator[Timing]:  # fmt: skip
    """Each sample layer in every form it is used with."""
    for name, conv in catalogue.LAYERS.items():
        conv = replace(conv, samples=samples)
        for use, form, layouts in catalogue.USES:
            for precision in precisions:
                if wanted(f"{name}/{use}", only) and (conv.channels == 3) == (
                    form.branch == "twin" or use == "product"
                ):
                    options: dict[str, Any] = {"layouts": layouts, "precision": precision}
                    target = CONV_TARGET if min(conv.channels // conv.group, conv.filters) >= 64 else None
                    label = Timing(use, name, precision, target=target)
                    make = _conv_maker(kernels, conv, form, options)
                    yield _timing(kernels, ceilings, label, make, conv, rounds, say)
    for name, pool in catalogue.POOLS.items():
        pool = replace(pool, samples=samples)
        for use, pool_form, layouts in catalogue.POOL_USES:
            average = name in ("global", "densenet_pool")
            if wanted(f"{name}/{use}", only) and (pool_form.kind == "average") == average:
                label = Timing(use, name, "ieee", target=POOL_TARGET)
                yield _timing(
                    kernels, ceilings, label, _pool_maker(kernels, pool, pool_form, layouts), None, rounds, say
                )


def _conv_maker(kernels: Kernels, conv: Conv, form: ConvForm, options: dict[str, Any]) -> Callable[[], Kernel]:
    return lambda: kernels.conv(conv, form, **options)


def _pool_maker(kernels: Kernels, pool: Pool, form: PoolForm, layouts: Layouts) -> Callable[[], Kernel]:
    return lambda: kernels.pool(pool, form, layouts=layouts)


def _timing(
    kernels: Kernels, ceilings: Ceilings, label: Timing, make: Callable[[], Kernel], conv: Conv | None, rounds: int,
    say: Callable[[str], None],
) -> Timing:  # fmt: skip
    """Prepare, allocate, time; a failure becomes a line of the table."""
    try:
        kernel = make()
        with Device(kernels.driver).arrays() as put:
            tensors = {k: put(-(-size // 4) * 4) for k, size in kernel.plan.needs.items()}
            if conv is not None:
                work, unit = float(kernel.plan.operations), "TFLOP/s"
                found = time_kernel(kernel, tensors, work, lambda: ceilings.matrix_rate(label.precision), rounds)
            else:
                work, unit = float(sum(kernel.plan.needs.values())), "TB/s"
                found = time_kernel(kernel, tensors, work, ceilings.bandwidth, rounds)
        took, rate, fractions = found
        known = (statistics.median(fractions), min(fractions), max(fractions)) if fractions else (None, None, None)
        done = replace(label, milliseconds=took, rate=rate, unit=unit)
        done = replace(done, fraction=known[0], low=known[1], high=known[2])
    except (KernelError, MemoryError) as error:
        done = replace(label, problem=f"{type(error).__name__}: {error}")
    say(row(done))
    return done


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


def table(result: Result) -> str:
    """The page."""
    lines = ["# GPU kernels", ""]
    if not result.measured:
        lines += ["**Stand-in driver: no figure below was measured.**", ""]
    lines += [f"* {key}: {value}" for key, value in result.machine.items()]
    lines += [f"* {key}: {value:.2f}" for key, value in result.ceilings.items()]
    wrong = result.failed
    lines += ["", f"{len(result.checks)} comparisons with the float64 oracle, {len(wrong)} failed.", ""]
    lines += [
        f"* {c.kernel}, {c.shape}, {c.precision}: {c.problem or f'error {c.error:.1e} > {c.tolerance:.0e}'}"
        for c in wrong
    ]
    errors: dict[str, float] = {}
    for entry in result.checks:
        if entry.good:
            errors[entry.precision] = max(errors.get(entry.precision, 0.0), entry.error)
    lines += [f"* largest error in {k}: {v:.1e} (limit {TOLERANCES[k]:.0e})" for k, v in errors.items()]
    lines += ["", "| layer | form | precision | ms | rate | fraction of the ceiling (min–max) | target |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |", *(row(t) for t in result.timings)]
    lines += bench_methods.table(result.methods) if result.methods else []
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
    for name in ("onnx-explain", "triton", "numba", "numba-cuda", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    found["versions"] = ", ".join(versions)
    found["date"] = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    found["command"] = shlex.join(["python", "tools/bench_kernels.py", *words])
    return found


def bench(
    kernels: Kernels, arguments: argparse.Namespace, words: Sequence[str], *, measured: bool, cublas: Any = None
) -> Result:
    """All three parts; what is wrong is not timed."""
    result = Result(machine(kernels.driver, words), measured)
    result.checks = check(kernels, arguments.precision, arguments.only, print)
    if result.failed or arguments.check:
        return result
    with Device(kernels.driver).arrays() as put:
        try:
            product: Cublas | None = Cublas(cublas)
        except DeviceError as error:
            print(error)
            product = None
        ceilings = Ceilings(kernels.driver, put, arguments.matrix, product)
        result.ceilings["copy bandwidth, TB/s"] = statistics.median(ceilings.bandwidth() for _ in range(5))
        for precision in arguments.precision:
            rates = [ceilings.matrix_rate(precision) for _ in range(5)]
            if rates[0] is not None:
                result.ceilings[f"cuBLAS {precision}, TFLOP/s"] = statistics.median(r for r in rates if r is not None)
        options = (arguments.only, arguments.precision, arguments.rounds, arguments.samples, print)
        result.timings = list(timed(kernels, ceilings, *options))
    if not arguments.only:
        for precision in arguments.precision:
            device = bench_methods.opened(kernels, precision, measured=measured)
            found = bench_methods.timed(device, arguments.network, arguments.rounds, TOLERANCES[precision])
            result.methods += list(found)
    return result


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--precision", nargs="+", choices=TOLERANCES, default=["tf32", "ieee", "bf16"])
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", default=[], help="layer/form names that contain one of these"
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--samples", type=int, default=catalogue.SAMPLES, help="batch size")
    parser.add_argument("--matrix", type=int, default=8192, help="size of the product that sets the ceiling")
    parser.add_argument(
        "--network", nargs="*", default=bench_methods.NETWORKS, help="name:batch of tools/make_models.py, whole methods"
    )
    parser.add_argument("--check", action="store_true", help="compare with the oracle only")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None, *, kernels: Kernels | None = None, cublas: Any = None) -> int:
    words = sys.argv[1:] if words is None else words
    arguments = parsed(words)
    stand_in = kernels is not None
    try:
        kernels = kernels or Kernels()
    except KernelError as error:
        print(f"{error} Nothing was measured.", file=sys.stderr)
        return 2
    if kernels.store.refused:
        print(f"Compiled kernels are not kept: {kernels.store.refused}.")
    result = bench(kernels, arguments, words, measured=not stand_in, cublas=cublas)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
        text = json.dumps({**asdict(result), "failed": len(result.failed)}, indent=1)
        arguments.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(table(result))
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
