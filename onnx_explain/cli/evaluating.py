"""`evaluate`: what it does once its arguments are read, and what it prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onnx_explain.annotations import LabelFile, source_of
from onnx_explain.cli import console
from onnx_explain.cli.arguments import shared_options
from onnx_explain.cli.labels import embedded_preset, labels_of
from onnx_explain.cli.reading import input_specs
from onnx_explain.data import Layout, Preprocessing, find_inputs
from onnx_explain.errors import InputError, MethodError
from onnx_explain.evaluation import (
    DataSet,
    Known,
    Settings,
    Summary,
    Task,
    document,
    draw,
    evaluate,
    save,
    summarise,
    told,
)
from onnx_explain.evaluation.summary import ARROWS
from onnx_explain.explainer import Explainer
from onnx_explain.methods import METHODS, resolve

_MOST_METHODS = 12


@dataclass(frozen=True)
class Asked:
    """What stands on the command line, read but for what needs the model."""

    model: Path
    inputs: Sequence[str | Path]
    out: Path
    methods: Sequence[str]
    metrics: Sequence[str]
    preprocessing: Callable[[str | None], Preprocessing]
    options: Mapping[str, Any] = field(default_factory=dict)
    metric_options: Mapping[str, Any] = field(default_factory=dict)
    masks: Path | None = None
    boxes: Path | None = None
    truth: Path | None = None
    labels: Path | None = None
    objects: Literal["all", "target"] = "all"
    sample: int | None = None
    seed: int = 0
    target: Literal["predicted", "truth"] = "predicted"
    skip_bad: bool = False
    output: str | None = None
    logits: bool = True
    layout: Layout | None = None
    input_shapes: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    batch_size: int = 16
    threads: int | None = None


def run(asked: Asked, *, dark: bool, as_json: bool) -> None:
    """Evaluate, leave the results in the folder, and tell."""
    task = task_of(asked)
    with console.progress("evaluating", visible=not as_json) as advance:
        try:
            found = evaluate(task, advance)
        except KeyboardInterrupt:
            console.note(f"what is done so far is kept in {asked.out}; the same command goes on from there.")
            raise
        summary = summarise(found)
        save(summary, console.as_json)
        figures = draw(summary, dark=dark)
    if as_json:
        console.print_json(document(summary))
        return
    _print(summary, len(figures))


def task_of(asked: Asked) -> Task:
    """The task of a command; raises ExplainError."""
    if asked.masks is not None and asked.boxes is not None:
        raise InputError("Give masks or boxes, not both: the objects are read from one place.")
    names = _listed(asked.methods)
    every = names == ["all"]
    wanted = list(METHODS) if every else [resolve(n).name for n in names if n != "all"]
    if not wanted or ("all" in names and not every):
        raise MethodError("Give 'all' alone, or the names of methods.")
    options = shared_options({n: METHODS[n].options for n in wanted}, asked.options)
    explainer = Explainer(
        asked.model, "gradient", output=asked.output, logits=asked.logits, input_shapes=asked.input_shapes or None
    )
    known = Known(
        None if asked.masks is None else source_of(asked.masks, "masks"),
        None if asked.boxes is None else source_of(asked.boxes, "boxes"),
        None if asked.truth is None else LabelFile(asked.truth),
        labels_of(explainer, asked.labels),
        asked.objects,
    )
    data = DataSet(
        find_inputs(asked.inputs),
        input_specs(explainer, asked.input_shapes, asked.layout),
        asked.preprocessing(embedded_preset(explainer)),
        asked.layout,
        known,
    )
    settings = Settings(asked.model, options, asked.output, asked.logits, asked.threads, asked.input_shapes)
    return Task(
        settings, data, names, _listed(asked.metrics), asked.out, asked.metric_options, asked.sample, asked.seed,
        asked.target, asked.skip_bad, asked.batch_size,
    )  # fmt: skip


def _listed(texts: Sequence[str]) -> list[str]:
    """``["a,b", "c"]`` as names."""
    return list(dict.fromkeys(part.strip() for text in texts for part in text.split(",") if part.strip()))


def _print(summary: Summary, figures: int) -> None:
    run = summary.run
    rows: list[Sequence[str] | str] = []
    for column in summary.columns:
        found = summary.of(column.name)
        rows.append(f"{column.name}: {column.meaning}; {ARROWS[column.better]}")
        for r in found[:_MOST_METHODS]:
            between = f"{told(r.low)} … {told(r.high)}"
            rows.append((r.method, told(r.value), between, told(r.mean), told(r.median), str(r.count), str(r.missing)))
        if len(found) > _MOST_METHODS:
            rows.append(f"  … and {len(found) - _MOST_METHODS} more in summary.md")
    names = ("method", "value", "95 % interval", "mean", "median", "samples", "missing")
    console.print_table(names, rows, flexible=0, cut=True, right=tuple(range(1, len(names))))
    for name, reason in run.left_out.items():
        console.note(f"{name} is left out: {reason}")
    if run.faults:
        told_faults = "; ".join(f"{f.name}: {f.reason}" for f in run.faults[:5])
        more = f"; and {len(run.faults) - 5} more, in summary.json" if len(run.faults) > 5 else ""
        console.note(f"{len(run.faults)} left out: {told_faults}{more}")
    seconds, busy = run.counts["seconds"], run.counts["busy"]
    resumed = f", {run.resumed} of them from an earlier run" if run.resumed else ""
    console.say(
        f"\n{run.samples} samples{resumed}, {len(run.methods)} methods in {seconds:.0f} s; the model ran "
        f"{busy / seconds if seconds else 0:.0%} of that, {int(run.counts['passes'])} pictures and {int(run.counts['maps'])} maps"
    )
    console.say(
        f"summary.json, .csv, .md, {figures} figures and the values per sample (parts/*.parquet) in {run.journal.folder}/"
    )
