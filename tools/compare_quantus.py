"""Throughput of pixel flipping: ours beside Quantus', the same work on the same ONNX model, taking turns in one process.

Needs the extra `[eval]`. Both flip the same features of the same maps in the same order and must give the same curve;
figures are pictures through the model per second, medians over the rounds.
`python tools/compare_quantus.py --out docs/benchmarks/quantus`.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_cpu import environment, markdown, show, write_report

from onnx_explain.metrics import OnnxScore, pixel_flipping
from onnx_explain.metrics.quantus_adapter import QuantusModel, admitted, explain

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "onnx_explain" / "bundled" / "shapes_cnn.onnx"
HEADINGS = ("who", "pictures per second", "relative to the model alone", "largest difference of the curves")


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 where the two curves differ or ours is the slower one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--step", type=int, default=128, help="features flipped at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="stem of a .md and a .json file")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # Quantus warns of its own settings
    import quantus

    model = QuantusModel(args.model, threads=args.threads)
    shape = [d.dim_value for d in onnx.load(args.model).graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).random((args.samples, *shape[1:]), dtype=np.float32)
    y = model.predict(x).argmax(1)
    maps = explain(model, x, y, method="gradient")
    score = OnnxScore(args.model, apply_softmax=True, threads=args.threads)
    theirs = quantus.PixelFlipping(
        features_in_step=args.step, perturb_baseline="black", normalise=False, abs=False, disable_warnings=True
    )
    asked = {"model": model, "x_batch": x, "y_batch": y, "a_batch": maps, "softmax": True, "batch_size": args.samples}
    steps = -(-maps[0].size // args.step)
    runs: dict[str, Callable[[], Any]] = {
        "onnx-explain": lambda: pixel_flipping(
            score, x, relevance=maps, step=args.step, replacement="minimum", targets=y
        ).scores[:, 1:],
        f"Quantus {quantus.__version__}": lambda: np.asarray(theirs(**asked)),
        "the model alone": lambda: [score(x) for _ in range(steps)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    curves: dict[str, Any] = {}
    with admitted():
        for round_ in range(args.rounds + 1):
            for name, run in runs.items():
                taken, curves[name] = timed(run)
                if round_:  # the first pays for memory
                    seconds[name].append(taken)
    ours, other, alone = runs
    gap = float(np.abs(curves[ours] - curves[other]).max())
    rate = {name: args.samples * steps / statistics.median(values) for name, values in seconds.items()}
    rows = [
        (name, f"{rate[name]:.0f}", f"{rate[name] / rate[alone]:.2f}", f"{gap:.0e}" if name == ours else "")
        for name in runs
    ]
    facts = environment(
        shlex.join(["python", "tools/compare_quantus.py", *(argv or sys.argv[1:])]),
        ("onnx-explain", "onnxruntime", "quantus", "numpy"),
    )
    title = "Pixel flipping beside Quantus"
    show(HEADINGS, rows, title)
    if args.out:
        write_report(args.out, markdown(HEADINGS, rows, facts, title), {**facts, "rates": rate, "gap": gap})
    return int(gap > 1e-5 or rate[ours] < rate[other])


if __name__ == "__main__":
    sys.exit(main())
