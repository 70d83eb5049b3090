"""`explain`: inputs stream through in batches, all methods and targets at once, and every finished input leaves its files.

What a file looks like is `results.py`'s affair, what a table looks like `console.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx_explain.cli.arguments import Aim, aims, shared_options
from onnx_explain.cli.reading import Given, Item, feeds_of, input_specs
from onnx_explain.cli.results import Named, Record, Results
from onnx_explain.data import Array, InputSpec, Layout, Preprocessing, Sample
from onnx_explain.errors import ExplainError
from onnx_explain.explainer import Explainer, Explainers
from onnx_explain.explanation import Explanation, Target
from onnx_explain.ir.view import dims
from onnx_explain.methods import METHODS, Seed, resolve

Progress = Callable[[int, int], None]  # inputs finished, inputs in all


@dataclass(frozen=True)
class Job:
    """Everything `explain` was asked for, read and checked, but for what needs the model."""

    model: Path
    inputs: Given
    out: Path
    methods: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: Seed | None = None
    targets: Sequence[str] = ()
    output: str | None = None
    logits: bool = True
    at: str | None = None
    keep: Sequence[str] = ()
    labels: Path | None = None
    preprocessing: Callable[[str | None], Preprocessing] | None = None  # from the preset that the model names
    layout: Layout | None = None
    batch_size: int = 8
    threads: int | None = None
    device: str = "cpu"
    precision: str = "tf32"
    input_shapes: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    overlay: bool = True
    dark: bool = False
    folder_per_input: bool = True
    rate: float | None = None  # samples per second of a signal


@dataclass(frozen=True)
class Finished:
    """What a run found: a record per input, method and target; the explained model; how many labels were known."""

    records: list[Record]
    sha256: str
    inputs: int
    labels: int
    notes: tuple[str, ...] = ()


def run(job: Job, progress: Progress | None = None) -> Finished:
    """Explain every input of the job under every method and target; raises ExplainError, with finished inputs kept."""
    from onnx_explain.cli.labels import embedded_preset, labels_of

    read = job.inputs.read()
    explainers = _explainers(job)
    labels = labels_of(explainers, job.labels)
    wanted = aims(job.targets, labels)
    specs = input_specs(explainers, job.input_shapes, job.layout)
    make = job.preprocessing or _default_preprocessing
    samples = job.inputs.samples(specs, make(embedded_preset(explainers)), job.layout)
    protected = [job.model, *read, *([job.labels] if job.labels else [])]
    results = Results(
        job.out,
        protected,
        labels=labels,
        overlay=job.overlay,
        dark=job.dark,
        nested=job.folder_per_input,
        rate=job.rate,
    )
    records: list[Record] = []
    inputs = 0
    for batch in _batches(samples, _batch_size(job, specs)):
        found = _explain(explainers, batch, wanted, specs, job.layout)
        for i, (_, path, sample) in enumerate(batch):
            named = [
                Named(name, aim.text, METHODS[name], replace(row[m][i], names=sample.names), aim.label)
                for m, name in enumerate(explainers.methods)
                for aim, row in zip(wanted, found)
            ]
            records += results.write(sample, path, named, several_targets=len(wanted) > 1)
            inputs += 1
        if progress is not None:
            progress(batch[-1][0] + 1, max(1, len(read)))
    return Finished(
        records, explainers.sha256, inputs, len(labels), (*explainers.notes, *_left_out(job.inputs.skipped))
    )


def _left_out(skipped: Sequence[str]) -> list[str]:
    if not skipped:
        return []
    more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
    return [f"Left out, because they cannot be read: {', '.join(skipped[:5])}{more}."]


def _default_preprocessing(preset: str | None) -> Preprocessing:
    from onnx_explain.data import preprocessing

    return preprocessing(preset)


def _explainers(job: Job) -> Explainers:
    """All methods of the job, each once, with the options that each has."""
    methods = {m.name: m for m in map(resolve, job.methods)}
    options = shared_options({name: m.options for name, m in methods.items()}, job.options)
    return Explainers(
        job.model, [(name, options[name]) for name in methods], seed=job.seed, output=job.output, logits=job.logits,
        at=job.at, keep=job.keep, threads=job.threads, input_shapes=job.input_shapes or None,
        device=job.device, precision=job.precision,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- inputs


_Batch = list[Item]


def _batches(samples: Iterator[Item], size: int) -> Iterator[_Batch]:
    """Up to `size` consecutive samples of equal shapes; what came before an unreadable one is handed out first."""
    batch: _Batch = []
    fault: ExplainError | None = None
    while fault is None:
        try:
            item = next(samples, None)
        except ExplainError as error:
            item, fault = None, error
        if batch and (item is None or len(batch) == size or _shapes(item[2]) != _shapes(batch[0][2])):
            yield batch
            batch = []
        if item is None:
            break
        batch.append(item)
    if fault is not None:
        raise fault


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [a.shape for a in sample.feeds.values()]


def _batch_size(job: Job, specs: Sequence[InputSpec]) -> int:
    """What the model's batch is fixed to, or what was asked for; 1 where an input has no batch axis."""
    if any(not s.shape for s in specs):
        return 1
    fixed = next((s.shape[0] for s in specs if s.shape[0] is not None), None)
    return job.batch_size if fixed in (None, 1) else int(fixed or 1)


# ------------------------------------------------------------------------------------------- explanations


def _explain(
    explainers: Explainers, batch: _Batch, wanted: Sequence[Aim], specs: Sequence[InputSpec], layout: Layout | None
) -> list[list[list[Explanation]]]:
    """Per target and method, one explanation per sample of the batch."""
    samples = [s for _, _, s in batch]
    feeds, count = feeds_of(samples, specs)
    found = explainers(feeds, [aim.target for aim in wanted])
    axes = {s.name: {"NCHW": 1, "NHWC": 3}[layout] for s in specs if len(s.shape) == 4} if layout is not None else {}
    told = [[replace(e, channel_axis={**e.channel_axis, **axes}) for e in row] for row in found]
    return [[[single(e, i, count) for i in range(len(samples))] for e in row] for row in told]


def single(whole: Explanation, i: int, count: int) -> Explanation:
    """Sample i of an explanation of `count` samples, every array with a batch of 1."""

    def row(arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {n: a[i : i + 1] if a.ndim and a.shape[0] == count else a for n, a in arrays.items()}

    return replace(
        whole,
        relevance=row(whole.relevance),
        outputs=row(whole.outputs),
        target=_one_of(whole.target, i),
        conservation=whole.conservation[i : i + 1],
        absorbed=whole.absorbed[i : i + 1],
        seconds=whole.seconds / count,
        inputs=row(whole.inputs),
        kept=row(whole.kept),
        entries=row(whole.entries),
        completeness=None if whole.completeness is None else whole.completeness[i : i + 1],
    )


def _one_of(target: Target, i: int) -> Target:
    sure = None if target.sure is None else target.sure[i : i + 1]
    return replace(target, index=target.index[i : i + 1], score=target.score[i : i + 1], sure=sure)


def explained(explainer: Explainer, aim: Aim) -> tuple[str, str]:
    """Name and shape of the tensor whose element is explained."""
    value = explainer.explained(aim.target)
    return value.name or "", f"[{', '.join('N' if d is None else str(d) for d in dims(value))}]"
