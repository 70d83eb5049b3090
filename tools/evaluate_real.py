"""Writes docs/benchmarks/evaluation.md: methods on trained networks and real pictures, beside the orders that were published.

`python tools/evaluate_real.py plan.json --work DIR` takes its models, pictures and annotations from a plan: {"runs": [{"name", "model",
"pictures", "preprocessing", "boxes" or "masks", "labels", "classes", "methods", "metrics", …}]} with paths relative to the plan. It
goes on where it stood; `--page` alone writes the page from what is there.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnx_explain import METHODS, Explainer
from onnx_explain.annotations import LabelFile, source_of
from onnx_explain.cli.arguments import shared_options
from onnx_explain.cli.console import as_json
from onnx_explain.cli.explaining import input_specs
from onnx_explain.data import find_inputs, preprocessing, read_labels
from onnx_explain.evaluation import (
    DataSet,
    Known,
    Row,
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
PACKAGES = ("onnx-explain", "onnxruntime", "onnx", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "evaluation.md")
    given = parser.parse_args()
    plan = json.loads(given.plan.read_text(encoding="utf-8"))
    done = []
    for entry in plan["runs"]:
        print(entry["name"], file=sys.stderr)
        summary = summarise(evaluate(_task(entry, given), _progress))
        save(summary, as_json)
        draw(summary)
        done.append((entry, summary))
    given.out.write_text(_page(plan, done), encoding="utf-8")
    told_runs = [{"run": entry, **{k: v for k, v in document(s).items() if k != "plan"}} for entry, s in done]
    rounded = json.loads(
        as_json({"claims": plan.get("claims", []), "runs": told_runs}), parse_float=lambda t: float(f"{float(t):.6g}")
    )
    given.out.with_suffix(".json").write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


def _task(entry: dict[str, Any], given: argparse.Namespace) -> Task:
    here = given.plan.parent
    model = here / entry["model"]
    explainer = Explainer(model, "gradient")
    names = entry["methods"]
    options = dict(entry.get("options", {}))
    if "patterns" in options:
        options["patterns"] = str(here / options["patterns"])
    per_method = shared_options({m: METHODS[m].options for m in names}, options)
    known = Known(
        source_of(here / entry["masks"], "masks") if "masks" in entry else None,
        source_of(here / entry["boxes"], "boxes") if "boxes" in entry else None,
        LabelFile(here / entry["labels"]) if "labels" in entry else None,
        read_labels(here / entry["classes"]) if "classes" in entry else (),
    )
    read = preprocessing(**entry["preprocessing"])
    pictures = find_inputs([here / entry["pictures"]])
    data = DataSet(pictures, input_specs(explainer, {}, None), read, None, known)
    return Task(
        Settings(model, per_method, threads=given.threads), data, names, entry["metrics"], given.work / entry["name"],
        entry.get("metric_options", {}), sample=entry.get("sample"), target=entry.get("target", "predicted"),
        skip_bad=True, batch_size=8, score_batch=32,
    )  # fmt: skip


def _progress(done: int, total: int) -> None:
    print(f"\r{done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------- the page


def _page(plan: dict[str, Any], done: list[tuple[dict[str, Any], Summary]]) -> str:
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()  # noqa: UP017
    text = [
        "# Methods on trained networks and real pictures", "",
        "* command: `python tools/evaluate_real.py PLAN --work DIR`; what the plan holds stands above each table",
        f"* date: {date}; versions: {versions}, python {platform.python_version()}; {os.cpu_count()} cores",
        "* the models, pictures and annotations are not part of this project", "",
        "What the measures are: [metrics.md](../metrics.md). Every figure comes with its 95 % bootstrap interval over the pictures.", "",
        "## Published against measured order", "",
        *_claims(plan.get("claims", []), {e["name"]: s for e, s in done}),
    ]  # fmt: skip
    for entry, summary in done:
        text += _run(entry, summary)
    return "\n".join(text).rstrip() + "\n"


def _claims(claims: list[dict[str, Any]], runs: dict[str, Summary]) -> list[str]:
    """Each published order, and below it the measured ones with the pairs that the data decides."""
    text = [
        "Best first. \"Ahead\" and \"behind\": the 95 % interval of the lead over the other method, picture by picture, does not "
        "hold 0. Square brackets hold intervals.", "",
    ]  # fmt: skip
    for claim in claims:
        text += [f"### {claim['claim']}", "", f"* published: {', '.join(claim['published'])}"]
        for name in (n for n in claim["runs"] if n in runs):
            rows = {r.method: r for r in runs[name].of(claim["metric"])}
            listed = [m for m in claim["published"] if m in rows]
            measured = "; ".join(_shown(rows[m]) for m in rows if m in listed)
            text.append(
                f"* {name}, `{claim['metric']}`: {measured}. **{_verdict(listed, runs[name], claim['metric'])}**"
            )
        text += [f"* {claim['cause']}"] if "cause" in claim else []
        text.append("")
    return text


def _shown(row: Row) -> str:
    """A method with its interval, and the mean beside a median."""
    mean = "" if abs(row.value - row.mean) < 5e-4 else f", mean {told(row.mean)}"
    return f"{row.method} {told(row.value)} [{told(row.low)}, {told(row.high)}{mean}]"


def _verdict(published: list[str], summary: Summary, metric: str) -> str:
    """Whether the method named first is best, by the interval of its lead over each other on the same pictures."""
    if len(published) < 2:
        return "not measured"
    first, others = published[0], published[1:]
    column = next(c for c in summary.columns if c.name == metric)
    middle = np.median if column.statistic == "median" else np.mean
    values: dict[str, dict[int, float]] = {m: {} for m in published}
    for part in summary.run.journal.columns(metric):
        for sample, method, value in zip(part["sample"], part["method"], part["value"]):
            if method in values and value is not None:
                values[method][sample] = value
    outcomes = []
    for other in others:
        both = sorted(values[first].keys() & values[other].keys())
        lead = np.array([values[first][s] - values[other][s] for s in both])
        lead = lead[np.isfinite(lead)] * (-1 if column.better == "low" else 1)
        draws = np.random.default_rng(0).integers(len(lead), size=(2000, len(lead)))
        low, high = np.quantile(middle(lead[draws], axis=1), (0.025, 0.975)) if len(lead) else (np.nan, np.nan)
        outcomes.append("ahead of" if low > 0 else "behind" if high < 0 else "not told apart from")
    groups = {w: [o for o, found in zip(others, outcomes) if found == w] for w in dict.fromkeys(outcomes)}
    return f"{first} is " + "; ".join(f"{w} {', '.join(who)}" for w, who in groups.items())


def _run(entry: dict[str, Any], summary: Summary) -> list[str]:
    found = document(summary)
    settings = {k: entry[k] for k in ("preprocessing", "metric_options", "sample", "target") if k in entry}
    options = {m: {k: v for k, v in o.items() if k != "patterns"} for m, o in found["plan"]["methods"].items()}
    return [
        f"## {entry['name']}", "", entry["told"], "",
        f"* {found['evaluated']} pictures; {found['forward_passes']} pictures through the plain model and {found['maps']} maps in "
        f"{found['seconds']:.0f} s, ONNX Runtime busy {found['busy']:.0%} of that (on cores that other work shared)",
        f"* settings: `{json.dumps(settings)}`; options of methods: `{json.dumps({m: o for m, o in options.items() if o})}`",
        f"* model: SHA-256 `{found['plan']['model'][:16]}…`",
        "", markdown(summary.columns, summary.rows, level=3),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
