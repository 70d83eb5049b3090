"""Time and memory of explained models against their plain models, in ONNX Runtime's CPU provider.

Path methods are timed per step against the explained model of one step (its milliseconds stand in the column "plain ms").

Every measurement runs in a process of its own with at most two sessions, the plain and one explained; their runs
alternate, and a ratio is the median over the pairs. No training framework is involved.
`python tools/bench_cpu.py --models vgg16 resnet50 --batch 1 8 --out docs/benchmarks/cpu`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import make_models
import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

MODELS = ("vgg16", "resnet50")
METHODS = (
    "gradient",
    "lrp-epsilon",
    "lrp-z-plus",
    "lrp-epsilon-plus",
    "lrp-epsilon-plus-flat",
    "lrp-epsilon-alpha2-beta1",
    "rap",
    "rap:variant=published",
    "rsp",
    "pattern-attribution",
    "integrated-gradients",
    "gnl-ig",
)
# the largest acceptable ratio of an explained run to a plain run, per method and network
TARGETS: dict[str, dict[str, float]] = {
    "gradient": {"vgg16": 2.5, "resnet50": 3.0},
    "lrp-epsilon": {"vgg16": 2.5, "resnet50": 3.0},
    "lrp-z-plus": {"vgg16": 3.5, "resnet50": 4.0},
    "lrp-epsilon-plus": {"vgg16": 3.5, "resnet50": 4.0},
    "lrp-epsilon-plus-flat": {"vgg16": 3.5, "resnet50": 4.0},
    "rap": {"vgg16": 4.5, "resnet50": 5.0},
    "rsp": {"vgg16": 7.0},
    "pattern-attribution": {"vgg16": 2.6},
    "integrated-gradients": {"vgg16": 1.05, "resnet50": 1.05},
    "gnl-ig": {"vgg16": 1.05, "resnet50": 1.05},
}
# methods of many steps are timed against this method's explained file, per step
STEP_OF = {"integrated-gradients": "gradient", "gnl-ig": "gnl-gradient"}
STEPS = 50
BUILD_TARGET_SECONDS = {"resnet50": 2.0}


@dataclass(frozen=True)
class Spread:
    """Median and extremes of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise a non-empty sample; ValueError if it is empty."""
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        """`2.31 (2.25–2.40)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def paired_ratio(plain: Sequence[float], explained: Sequence[float]) -> Spread:
    """Spread of explained[i] / plain[i]; the pairs ran next to each other, so a slow spell of the machine cancels."""
    if len(plain) != len(explained):
        raise ValueError(f"{len(plain)} plain runs cannot be paired with {len(explained)} explained runs")
    return Spread.of([e / p for p, e in zip(plain, explained, strict=True)])


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, memory in MiB above the loaded session, `None`: not measured."""

    model: str
    batch: int
    method: str
    plain_ms: Spread | None = None
    explained_ms: Spread | None = None
    ratio: Spread | None = None
    target: float | None = None
    plain_peak_mib: float | None = None
    peak_mib: float | None = None
    build_s: float | None = None
    write_s: float | None = None
    file_mib: float | None = None
    error: str | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is no target or no measurement."""
        return None if self.target is None or self.ratio is None else self.ratio.median <= self.target

    @property
    def slow_to_build(self) -> bool:
        """Whether building the explainer took longer than the network's limit."""
        return self.build_s is not None and self.build_s > BUILD_TARGET_SECONDS.get(self.model, math.inf)


@dataclass(frozen=True)
class Built:
    """An explained file; seconds until the relevance graph stood, and for converting, writing and checking the file."""

    path: Path
    seconds: float
    write_seconds: float


Builder = Callable[[Path, str, Path], Built]


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """`rap:variant=published,seed=one` → (`rap`, {variant: published, seed: one}); values are JSON where they parse."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"method option {item!r} in {text!r} is not of the form key=value")
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
        options[key] = value
    return name, options


def build_with_library(plain: Path, method: str, out: Path) -> Built:
    """Explain the plain file with onnx-explain; the way to the relevance graph is timed apart from the conversion."""
    from onnx_explain import Explainer

    name, options = parse_method(method)
    model = onnx.load(plain)
    if name in ("pattern-net", "pattern-attribution") and "patterns" not in options:
        options["patterns"] = patterns_of_noise(plain)
    start = time.perf_counter()
    explainer = Explainer(model, method=name, device="cpu", **options)
    explainer.build()
    built = time.perf_counter()
    explainer.convert(out)
    return Built(out, built - start, time.perf_counter() - built)


def patterns_of_noise(plain: Path) -> Any:
    """Patterns fitted on two pictures of noise: their values do not matter for the time."""
    from onnx_explain import fit_patterns

    shape = [
        d.dim_value or 2 for d in onnx.load(plain, load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    ]
    return fit_patterns(str(plain), np.random.default_rng(1).standard_normal(shape, dtype=np.float32))


# ------------------------------------------------------------------------------------- runs, each in its own process


def usable_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """A CPU session that does not spin while it waits: two spinning sessions slow each other down."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def pictures(session: ort.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    """Standard normal values for the session's first input, [batch, ...], float32."""
    first = session.get_inputs()[0]
    shape = (batch, *(d for d in first.shape[1:]))
    return {first.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}


def run_ms(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> float:
    """Wall time of one run in milliseconds."""
    start = time.perf_counter()
    session.run(None, feeds)
    return (time.perf_counter() - start) * 1e3


def race(plain: Path, explained: Path, batch: int, rounds: int, threads: int) -> tuple[list[float], list[float]]:
    """Alternate plain and explained runs after one warm-up of each; milliseconds, `rounds` of each."""
    sessions = open_session(plain, threads), open_session(explained, threads)
    feeds = pictures(sessions[0], batch)
    expected, got = sessions[0].run(None, feeds)[0], sessions[1].run(None, feeds)[0]
    if np.abs(expected - got).max() > 1e-4 * np.abs(expected).max():
        raise RuntimeError("the explained model's first output differs from the plain model's")
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for session, into in zip(sessions, times, strict=True):
            into.append(run_ms(session, feeds))
    return times


def _resident_kib(field: str) -> int | None:
    """`VmRSS` or `VmHWM` of this process in KiB; None where /proc is absent."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return None


def peak_mib(path: Path, batch: int, threads: int) -> float:
    """Peak resident memory of the first run above the loaded session, MiB.

    The high-water mark is reset after loading where the system permits it; elsewhere the growth of the
    process's maximum is returned, which is too small where loading peaked higher than running.
    """
    session = open_session(path, threads)
    feeds = pictures(session, batch)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # memory freed while loading would otherwise hide what the run takes
    before = _resident_kib("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        before = None
    unit = 1024 if sys.platform != "darwin" else 1024**2  # ru_maxrss is in KiB on Linux, in bytes on macOS
    maximum = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session.run(None, feeds)
    if before is not None and (peak := _resident_kib("VmHWM")) is not None:
        return (peak - before) / 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - maximum) / unit


def _child(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send((True, function(*arguments)))
    except Exception as error:  # whatever goes wrong becomes a line of the table
        pipe.send((False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function` in a fresh process and return its result; RuntimeError with the child's message if it fails."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        succeeded, result = receiver.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}, out of memory?") from None
    process.join()
    if not succeeded:
        raise RuntimeError(result)
    return result


# ---------------------------------------------------------------------------------------------------- the whole bench


def write_plain(name: str, path: Path, options: dict[str, Any]) -> None:
    """Write the network with a dynamic batch."""
    onnx.save(make_models.build(name, **options), path)


@dataclass(frozen=True)
class Bench:
    """What stays the same over a whole table."""

    batches: Sequence[int]
    rounds: int
    threads: int
    build: Builder = build_with_library

    def network(self, name: str, plain: Path, methods: Sequence[str]) -> Iterator[Row]:
        """Yield the rows of one plain file, method by method; a method that fails yields rows with `error`."""
        plain_peaks = {b: in_own_process(peak_mib, plain, b, self.threads) for b in self.batches}
        for method in methods:
            for row in self.method(name, plain, method):
                yield replace(row, plain_peak_mib=plain_peaks[row.batch])

    def method(self, name: str, plain: Path, method: str) -> Iterator[Row]:
        """Build the explained file once, yield one row per batch size, and remove the file."""
        target = TARGETS.get(method.partition(":")[0], {}).get(name)
        with tempfile.TemporaryDirectory(dir=plain.parent) as folder:
            out = Path(folder) / "explained.onnx"
            try:
                built: Built = in_own_process(self.build, plain, method, out)
            except RuntimeError as error:
                yield from (Row(name, batch, method, target=target, error=str(error)) for batch in self.batches)
                return
            mib = sum(file.stat().st_size for file in Path(folder).iterdir()) / 2**20
            steps, base = 1, plain
            if (step := STEP_OF.get(method.partition(":")[0])) is not None:
                steps, base = parse_method(method)[1].get("steps", STEPS), Path(folder) / "step.onnx"
                in_own_process(self.build, plain, step, base)
            for batch in self.batches:
                row = Row(name, batch, method, target=target, file_mib=mib)
                row = replace(row, build_s=built.seconds, write_s=built.write_seconds)
                yield self.measure(row, base, out, steps)

    def measure(self, row: Row, plain: Path, explained: Path, steps: int = 1) -> Row:
        """Fill in times and memory; of several steps, the time of one."""
        try:
            times = in_own_process(race, plain, explained, row.batch, self.rounds, self.threads)
            peak = in_own_process(peak_mib, explained, row.batch, self.threads)
        except RuntimeError as error:
            return replace(row, error=str(error))
        times = times[0], [ms / steps for ms in times[1]]
        ratio = paired_ratio(*times)
        return replace(row, plain_ms=Spread.of(times[0]), explained_ms=Spread.of(times[1]), ratio=ratio, peak_mib=peak)


# ------------------------------------------------------------------------------------------------------- the report

HEADINGS = (
    "network",
    "batch",
    "method",
    "plain ms",
    "explained ms",
    "ratio (min–max)",
    "target",
    "peak MiB (plain)",
    "build s",
    "write s",
    "file MiB",
)


def number(value: float | None, digits: int = 0) -> str:
    """The number with so many digits, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def cells(row: Row) -> tuple[str, ...]:
    """The row as text, in the order of `HEADINGS`."""
    head = (row.model, str(row.batch), row.method)
    if row.error is not None or row.ratio is None:
        return (*head, f"failed: {row.error}", *[""] * (len(HEADINGS) - 4))
    verdict = {None: "", True: " met", False: " MISSED"}[row.met]
    return (
        *head,
        number(row.plain_ms.median if row.plain_ms else None, 1),
        number(row.explained_ms.median if row.explained_ms else None, 1),
        row.ratio.text(),
        "–" if row.target is None else f"≤ {row.target:g}{verdict}",
        f"{number(row.peak_mib)} ({number(row.plain_peak_mib)})",
        number(row.build_s, 2) + (" MISSED" if row.slow_to_build else ""),
        number(row.write_s, 2),
        number(row.file_mib),
    )


def environment(command: str, packages: Sequence[str]) -> dict[str, str]:
    """Where and how a table was made: machine, versions, date, load, command."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "machine": f"{cpu_name()}, {usable_cores()} cores, {platform.system()} {platform.machine()}",
        "versions": ", ".join([f"python {platform.python_version()}", *(f"{k} {v}" for k, v in versions.items())]),
        "date": datetime.date.today().isoformat(),
        "load before the run": load(),
        "command": command,
    }


def load() -> str:
    """The load average of the last minute, and a warning where other work will lengthen the times."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    average = os.getloadavg()[0]
    return f"{average:.1f}" + (" (busy: absolute times are too long)" if average > 0.5 * usable_cores() else "")


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]], facts: dict[str, str], title: str) -> str:
    """A Markdown page: title, the facts as a list, the table."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (headings, ["---"] * len(headings), *lines)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
    return f"# {title}\n\n" + "\n".join(f"* {k}: {v}" for k, v in facts.items()) + f"\n\n{table}\n"


def show(headings: Sequence[str], lines: Sequence[Sequence[str]], title: str) -> None:
    """Print a table to the terminal."""
    table = Table(*headings, title=title)
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def write_report(stem: Path, page: str, data: dict[str, Any]) -> None:
    """Write `stem`.md and `stem`.json; folders are made as needed."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(page, encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=sorted(make_models.NETWORKS), default=list(MODELS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="NAME or NAME:key=value,key=value")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of runs per ratio")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--size", type=int, default=224, help="height and width of the input")
    parser.add_argument("--width", type=float, default=1.0, help="channel multiplier")
    parser.add_argument("--out", type=Path, help="stem of a .md and a .json file")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1 or min(args.batch) < 1:
        parser.error("--rounds, --threads and --batch start at 1")
    if args.size < 32 or args.size % 32:
        parser.error("--size is a positive multiple of 32")
    return args


def main(argv: Sequence[str] | None = None, build: Builder = build_with_library) -> int:
    """Run the bench; 1 if a measurement failed or a target was missed, 0 otherwise."""
    args = parse_arguments(argv)
    packages = ("onnx-explain", "onnxruntime", "onnx", "numpy")
    facts = environment(shlex.join(["python", "tools/bench_cpu.py", *(argv or sys.argv[1:])]), packages)
    facts["settings"] = (
        f"{args.threads} threads, no spinning, float32, {args.size}², {args.rounds} pairs of runs, He-random weights"
    )
    print("\n".join(f"{key}: {value}" for key, value in facts.items()), file=sys.stderr)
    bench = Bench(args.batch, args.rounds, args.threads, build)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            plain = Path(folder) / f"{name}.onnx"
            in_own_process(write_plain, name, plain, {"size": args.size, "width": args.width})
            for row in bench.network(name, plain, args.methods):
                rows.append(row)
                print("  ".join(filter(None, cells(row))), file=sys.stderr, flush=True)
            plain.unlink()
    title, lines = "Explained models against plain models, ONNX Runtime on the CPU", [cells(row) for row in rows]
    show(HEADINGS, lines, title)
    if args.out:
        write_report(args.out, markdown(HEADINGS, lines, facts, title), {**facts, "rows": [asdict(r) for r in rows]})
    return int(any(row.error is not None or row.met is False or row.slow_to_build for row in rows))


if __name__ == "__main__":
    sys.exit(main())
