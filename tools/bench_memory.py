"""Peak memory of whole runs as the work grows: it must not grow with the number of samples or steps.

Each line is one process of the command line (or of the API) on generated pictures and the bundled network; the figure is
that process's peak resident memory. `python tools/bench_memory.py --out docs/benchmarks/memory`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_cpu import environment, markdown, show, write_report
from PIL import Image

from onnx_explain import shapes

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "onnx_explain" / "bundled" / "shapes_cnn.onnx"
GROWTH = 1.15  # the most that ten times the work may add to the peak

INTEGRATE = """
import sys
import numpy as np
from PIL import Image
from onnx_explain import Explainer
x = np.asarray(Image.open(sys.argv[2]).convert("RGB"), dtype=np.float32).transpose(2, 0, 1)[None] / 255
Explainer(sys.argv[1], "integrated-gradients", steps=int(sys.argv[3]))(x)
"""


@dataclass(frozen=True)
class Line:
    """The peak of one kind of work at several sizes, in MiB."""

    work: str
    sizes: tuple[int, ...]
    peaks: tuple[float, ...]

    @property
    def growth(self) -> float:
        """Peak at the largest size over the peak at the smallest."""
        return self.peaks[-1] / self.peaks[0]


def peak_of(command: Sequence[str]) -> float:
    """Run a command; its peak resident memory in MiB. CalledProcessError where it fails."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(process.returncode, list(command), stderr=said.read().decode())
    return usage.ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB on Linux


def pictures(folder: Path, count: int) -> Path:
    """`count` generated pictures in a folder."""
    folder.mkdir(parents=True)
    for i, shape in enumerate(shapes.dataset(count, seed=5)):
        Image.fromarray(shape.image).save(folder / f"{i:05d}.png")
    return folder


def measure(scale: Sequence[int], steps: Sequence[int], work: Path) -> list[Line]:
    """Every kind of work at every size."""
    tool = [sys.executable, "-m", "onnx_explain"]
    folders = {n: pictures(work / f"pictures-{n}", n) for n in scale}
    explain = [
        peak_of(
            [
                *tool,
                "explain",
                str(MODEL),
                str(folders[n]),
                "-m",
                "lrp-epsilon-plus",
                "-o",
                str(work / f"e{n}"),
                "--no-overlay",
            ]
        )
        for n in scale
    ]
    fit = [
        peak_of([*tool, "fit-patterns", str(MODEL), str(folders[n]), "-o", str(work / f"p{n}.safetensors")])
        for n in scale
    ]
    first = next(folders[scale[0]].iterdir())
    integrate = [peak_of([sys.executable, "-c", INTEGRATE, str(MODEL), str(first), str(n)]) for n in steps]
    return [
        Line("explain, pictures", tuple(scale), tuple(explain)),
        Line("fit-patterns, pictures", tuple(scale), tuple(fit)),
        Line("integrated-gradients, steps", tuple(steps), tuple(integrate)),
    ]


HEADINGS = ("work", "size", "peak MiB", "largest / smallest")


def cells(line: Line) -> tuple[str, ...]:
    """The line as text, in the order of `HEADINGS`."""
    verdict = "met" if line.growth <= GROWTH else "MISSED"
    sizes, peaks = " / ".join(map(str, line.sizes)), " / ".join(f"{p:.0f}" for p in line.peaks)
    return line.work, sizes, peaks, f"{line.growth:.2f} (≤ {GROWTH} {verdict})"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where the peak grows with the work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, nargs="+", default=[100, 1000], help="numbers of pictures")
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 500], help="numbers of steps")
    parser.add_argument("--out", type=Path, help="stem of a .md and a .json file")
    args = parser.parse_args(argv)
    command = shlex.join(["python", "tools/bench_memory.py", *(argv or sys.argv[1:])])
    facts = environment(command, ("onnx-explain", "onnxruntime", "onnx", "numpy"))
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(args.pictures, args.steps, Path(folder))
    title, rows = "Peak memory of a process as the work grows", [cells(line) for line in lines]
    show(HEADINGS, rows, title)
    if args.out:
        write_report(
            args.out, markdown(HEADINGS, rows, facts, title), {**facts, "rows": [asdict(line) for line in lines]}
        )
    return int(any(line.growth > GROWTH for line in lines))


if __name__ == "__main__":
    sys.exit(main())
