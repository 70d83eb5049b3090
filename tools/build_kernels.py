"""Compiles the GPU kernels ahead of time, on a machine with or without a GPU, and reports what each of them takes.

`python tools/build_kernels.py --out kernels/onnx_explain_kernels/shipped` compiles what is shipped for every architecture;
`--layers` compiles the sample layers for their shape instead, and writes nothing: it checks the tile table. A kernel that
does not compile, or that uses local memory (a spilled register is local memory), fails the build and is not written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from onnx_explain_kernels.catalogue import layer_plans, shipped_plans
from onnx_explain_kernels.compiler import compile_kernel
from onnx_explain_kernels.errors import KernelError
from onnx_explain_kernels.plan import Plan
from onnx_explain_kernels.store import encode
from onnx_explain_kernels.tiles import ARCHITECTURES, PRECISIONS


@dataclass(frozen=True)
class Report:
    """One compiled kernel; `stack` counts bytes of local memory per thread, `stages` those that fit of those asked for."""

    arch: int
    name: str
    digest: str
    tile: str
    warps: int
    stages: str
    registers: int
    stack: int
    shared: int
    code: int
    compiler: str
    seconds: float
    error: str = ""

    @property
    def good(self) -> bool:
        return not self.error and self.stack == 0

    def line(self) -> str:
        if self.error:
            return f"sm_{self.arch:<4}{self.name:44s} FAILED {self.error}"
        spilled = f"  SPILLS {self.stack} B" if self.stack else ""
        return (
            f"sm_{self.arch:<4}{self.name:44s}{self.tile:12s}w{self.warps} s{self.stages}  {self.registers:3d} registers"
            f"  {self.shared / 1024:5.1f} KiB shared  {self.code / 1024:5.1f} KiB code  {self.seconds:4.1f} s{spilled}"
        )


def build(named: tuple[str, Plan], *, out: Path | None) -> Report:
    """Compile one plan; write it where it may be shipped."""
    name, plan = named
    spec, start = plan.specialisation, time.perf_counter()
    constants = dict(spec.constants)
    tile = "x".join(str(constants[k]) for k in ("BM", "BN", "BK") if k in constants)
    try:
        binary = compile_kernel(spec)
    except KernelError as error:
        return Report(spec.arch, name, spec.digest, tile, spec.warps, "0", 0, 0, 0, 0, "", 0.0, str(error))
    took, found = time.perf_counter() - start, binary.resources
    sizes = (found.registers, found.stack, binary.shared, len(binary.code))
    stages = f"{binary.stages}/{spec.stages}"
    report = Report(spec.arch, name, spec.digest, tile, spec.warps, stages, *sizes, binary.compiler, took)
    if out is not None and report.good:
        (out / f"{spec.digest}.kernel").write_bytes(encode(binary))
    return report


def chosen(arguments: argparse.Namespace) -> Iterator[tuple[str, Plan]]:
    """Every wanted plan once."""
    seen = set()
    for arch in arguments.arch:
        plans = list(layer_plans(arch, tuple(arguments.precision)) if arguments.layers else shipped_plans(arch))
        names = {name for name, _ in plans}
        for name, plan in plans:
            digest = plan.specialisation.digest
            if digest not in seen and wanted(name, names, arguments.only):
                seen.add(digest)
                yield name, plan


def built(plans: Sequence[tuple[str, Plan]], out: Path | None, jobs: int) -> Iterator[Report]:
    """Every plan compiled, in order, in so many processes."""
    one = partial(build, out=out)
    if min(jobs, len(plans)) < 2:
        yield from map(one, plans)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            yield from pool.map(one, plans)


def summary(reports: Sequence[Report], words: Sequence[str]) -> str:
    """What each architecture's kernels take at most, as a page; no figure of speed."""
    lines = ["# What the compiled kernels take", "", f"Made by `python tools/build_kernels.py {' '.join(words)}` with"]
    lines += [
        ", ".join(sorted({r.compiler for r in reports if r.compiler})) + ", without a GPU: nothing is timed here.",
        "",
    ]
    lines += [
        "| | kernels | registers, at most | shared memory, at most | code | failed or spilled |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for arch in sorted({r.arch for r in reports}):
        own = [r for r in reports if r.arch == arch]
        registers, shared = max(r.registers for r in own), max(r.shared for r in own) / 1024
        size, bad = sum(r.code for r in own) / 2**20, sum(not r.good for r in own)
        lines.append(f"| sm_{arch} | {len(own)} | {registers} | {shared:.0f} KiB | {size:.1f} MiB | {bad} |")
    return "\n".join(lines) + "\n"


def wanted(name: str, names: Set[str], words: Sequence[str] | None) -> bool:
    """Whether one of the words is the name, or is no kernel's whole name and part of this one."""
    return not words or any(word == name or (word not in names and word in name) for word in words)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHITECTURES), help="80 86 89 90 100 120")
    parser.add_argument("--out", type=Path, help="folder for the compiled kernels")
    parser.add_argument("--layers", action="store_true", help="compile the sample layers for their shape")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["tf32"], help="of the sample layers")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="a kernel's name, or part of names")
    parser.add_argument("--report", type=Path, help="write the table as JSON too")
    parser.add_argument("--summary", type=Path, help="write what each architecture's kernels take at most, as Markdown")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile; one per core")
    arguments = parser.parse_args(words)
    if arguments.layers and arguments.out:
        parser.error("--layers writes no kernels: leave out --out")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    reports = []
    for report in built(list(chosen(arguments)), arguments.out, arguments.jobs):
        reports.append(report)
        print(report.line(), flush=True)
    if arguments.report:
        arguments.report.write_text(json.dumps([asdict(r) for r in reports], indent=1) + "\n", encoding="utf-8")
    if arguments.summary:
        arguments.summary.write_text(summary(reports, words or sys.argv[1:]), encoding="utf-8")
    bad = [r for r in reports if not r.good]
    total = sum(r.code for r in reports) / 2**20
    print(f"{len(reports)} kernels, {total:.1f} MiB of code, {len(bad)} failed or spilled")
    if not reports:
        print("nothing to compile: no kernel's name contains the words of --only", file=sys.stderr)
    return 1 if bad or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
