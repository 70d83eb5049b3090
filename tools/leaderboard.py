"""Writes docs/leaderboard.md and .json: every method on the bundled network and the synthetic set, where the truth is known.

`python tools/leaderboard.py` makes the data, fits the patterns on other data of the same kind, evaluates, and writes the page; a
run that was stopped goes on where it stood if `--work` names its folder.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from onnx_explain import METHODS, Explainer, fit_patterns, shapes
from onnx_explain.cli.arguments import shared_options
from onnx_explain.cli.console import as_json
from onnx_explain.cli.explaining import input_specs
from onnx_explain.data import preprocessing
from onnx_explain.evaluation import (
    DataSet,
    Settings,
    Summary,
    Task,
    document,
    draw,
    evaluate,
    markdown,
    save,
    summarise,
    told,
)

ROOT = Path(__file__).parents[1]
MODEL = "shapes_cnn.onnx"
DATA_SEED, PATTERN_SEED = 20_000, 30_000  # neither is the seed of the network's training
METRICS = (
    "localisation",
    "deletion",
    "insertion",
    "region-morf",
    "region-lerf",
    "negative-perturbation",
    "conciseness",
)
METRIC_OPTIONS = {"tolerance": 0.0, "deletion.step": 256, "insertion.step": 256, "size": 8, "steps": 16}
# Fewer draws than the defaults, so that the board is made in minutes; both converge slowly.
FILES = ("patterns", "baselines")
OPTIONS = {"masks": 500, "samples": 5, "low": 0.0, "high": 1.0}
PACKAGES = ("onnx-explain", "onnxruntime", "onnx", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument(
        "--fitted-on", type=int, default=2000, help="pictures for the patterns; 0 leaves these methods out"
    )
    parser.add_argument("--methods", default="all", help="names, separated by commas")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--work", type=Path, help="keep the run here, to go on with or to look at its figures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "leaderboard", help="the page, without its suffix")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        summary = evaluate_all(work, given)
        seconds = summary.run.counts["seconds"]
        print(f"evaluated in {seconds:.0f} s ({time.perf_counter() - started:.0f} s now)", file=sys.stderr)
        save(summary, as_json)
        draw(summary)
        write(summary, given.out, _command(given))


def evaluate_all(work: Path, given: argparse.Namespace) -> Summary:
    """The run in the folder `work`."""
    with resources.as_file(resources.files("onnx_explain") / "bundled" / MODEL) as model:
        explainer = Explainer(model, "gradient")
        specs, read = input_specs(explainer, {}, None), preprocessing("0..1")
        file = work / "shapes.npz"
        if not file.is_file():
            images, masks, labels = shapes.batch(given.samples, seed=DATA_SEED)
            np.savez(file, images=images, masks=masks, labels=labels)
        options: dict[str, Any] = dict(OPTIONS)
        if given.fitted_on:
            options["patterns"] = str(_patterns(model, work / "patterns.safetensors", given))
        options["baselines"] = str(_baselines(work / "baselines.npy"))
        names = given.methods.split(",")
        wanted = list(METHODS) if names == ["all"] else names
        every = {m: METHODS[m].options for m in wanted}
        known = {k: v for k, v in options.items() if any(k in o for o in every.values())}
        settings = Settings(model, shared_options(every, known), threads=given.threads)
        task = Task(settings, DataSet([file], specs, read), names, METRICS, work / "run", METRIC_OPTIONS)
        return summarise(evaluate(task, _progress))


def _patterns(model: Path, file: Path, given: argparse.Namespace) -> Path:
    """Patterns fitted on pictures that are not evaluated."""
    if not file.is_file():
        images, _, _ = shapes.batch(given.fitted_on, seed=PATTERN_SEED)
        x = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
        fit_patterns(model, x, threads=given.threads).save(file)
    return file


def _baselines(file: Path) -> Path:
    """Pictures of the set that are not evaluated, for methods that compare with many."""
    if not file.is_file():
        images, _, _ = shapes.batch(50, seed=PATTERN_SEED)
        np.save(file, (images.transpose(0, 3, 1, 2) / 255).astype(np.float32))
    return file


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------- the page


def _command(given: argparse.Namespace) -> str:
    """What makes the same page elsewhere."""
    asked = {"samples": given.samples, "fitted-on": given.fitted_on, "methods": given.methods, "threads": given.threads}
    return " ".join(["python tools/leaderboard.py", *(f"--{k} {v}" for k, v in asked.items() if v is not None)])


def write(summary: Summary, out: Path, command: str) -> None:
    """`out`.md and `out`.json."""
    found = document(summary)
    versions = {p: importlib.metadata.version(p) for p in PACKAGES}
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()  # noqa: UP017
    left_out = "".join(f"\n* left out: `{name}`: {reason}" for name, reason in summary.run.left_out.items())
    found |= {"date": date, "command": command, "versions": versions, "python": platform.python_version()}
    del found["plan"]["annotations"]
    out.with_suffix(".json").write_text(
        json.dumps(_rounded(json.loads(as_json(found))), indent=1) + "\n", encoding="utf-8"
    )
    accuracy = _accuracy(summary)
    page = f"""# Leader board

Every method on the bundled network (`onnx_explain/bundled/{MODEL}`) and on {summary.run.samples} pictures of the synthetic set, in which
the evidence is known: it is the object, and everything else is a distractor. The predicted class is explained; the network is
right on {accuracy:.1%} of the pictures.

* command: `{command}`
* date: {date}
* versions: {", ".join(f"{k} {v}" for k, v in versions.items())}, python {platform.python_version()}
* work: {found["forward_passes"]} pictures through the plain model and {found["maps"]} maps in {found["seconds"]:.0f} s, ONNX Runtime busy
  {found["busy"]:.0%} of that (on {os.cpu_count()} cores that other work shared)
* settings: pointing game without tolerance (the pictures have 64 x 64 pixels); deletion and insertion 256 pixels at a time; regions of
  8 x 8, 16 steps, uniform noise; options of methods: {_told_options(found)}; patterns and baselines
  are of other pictures of the set{left_out}

What the measures are: [metrics.md](metrics.md). One network and one kind of picture: no order here is a law. Where two intervals overlap
widely, the order between the two methods is chance. Maps that are zero or of one sign lose where a measure reads signs
(`miou-zero`: a method without negative relevance calls every pixel foreground), and a high sparseness is neither good nor bad.

## All at a glance

Best first by the mean rank over the metrics of this table; the tables below have the others, and the intervals.

{overview(summary)}

{markdown(summary.columns, summary.rows)}"""
    out.with_suffix(".md").write_text(page.rstrip() + "\n", encoding="utf-8")


SHOWN = ("outside-inside-pos", "miou-zero", "miou-mean", "pointing-game", "relevance-rank", "roc-auc", "deletion", "insertion",
         "region-morf", "negative-perturbation")  # fmt: skip


def overview(summary: Summary) -> str:
    """Methods by their mean rank over the metrics that are best known and missing for few maps."""
    ranks: dict[str, list[int]] = {m: [] for m in summary.run.methods}
    values: dict[tuple[str, str], float] = {}
    for column in summary.columns:
        for place, row in enumerate(summary.of(column.name), 1):
            values[row.method, column.name] = row.value
            if column.name in SHOWN:
                ranks[row.method].append(place)
    arrows = {c.name: {"high": "↑", "low": "↓"}.get(c.better, "") for c in summary.columns}
    shown = [n for n in SHOWN if n in arrows]
    lines = [
        f"| method | mean rank | {' | '.join(f'{n} {arrows[n]}' for n in shown)} |",
        f"|---|--:|{'--:|' * len(shown)}",
    ]
    for method in sorted(ranks, key=lambda m: float(np.mean(ranks[m]))):
        cells = " | ".join(told(values[method, n]) for n in shown)
        lines.append(f"| {method} | {np.mean(ranks[method]):.1f} | {cells} |")
    return "\n".join(lines)


def _accuracy(summary: Summary) -> float:
    """How often the network is right on the pictures."""
    from onnx_explain.evaluation.journal import arrow

    right = {}
    for part in summary.run.journal.parts():
        table = arrow().parquet.read_table(part.path, columns=["sample", "label", "predicted"]).to_pydict()
        right |= {s: a == b for s, a, b in zip(table["sample"], table["label"], table["predicted"])}
    return float(np.mean(list(right.values())))


def _told_options(found: dict[str, Any]) -> str:
    told_ones = {
        f"{m} {k}={v}" for m, options in found["plan"]["methods"].items() for k, v in options.items() if k not in FILES
    }
    return ", ".join(sorted(told_ones)) or "none"


def _rounded(value: Any) -> Any:
    """Six digits are more than the intervals bear."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items() if k not in FILES}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
