"""`compare`: one input under many methods, in one figure that says of each how well it adds up and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx_explain import render
from onnx_explain.cli import console
from onnx_explain.cli.arguments import Aim, aims, shared_options
from onnx_explain.cli.explaining import Job, feeds_of, input_specs, single
from onnx_explain.cli.labels import embedded_preset, labels_of
from onnx_explain.cli.results import Named, Record, picture_map, record_of, shown, write_bytes
from onnx_explain.data import Sample, find_inputs, load, preprocessing, sample_names
from onnx_explain.errors import ExplainError, InputError, OutputError
from onnx_explain.explainer import Explainer
from onnx_explain.explanation import Explanation
from onnx_explain.files import target_path
from onnx_explain.methods import FAMILIES, METHODS, resolve
from onnx_explain.version import __version__

ALL = "all"
_SUFFIXES = (".png", ".svg", ".pdf")
_WARM = 2.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Compared:
    """What a comparison found: a record per method that answered, and why each of the others did not."""

    model: Path
    records: list[Record]
    left_out: Mapping[str, str]
    sha256: str

    def document(self, figure: Path) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "onnx_explain": __version__,
            "model": {"path": str(self.model), "sha256": self.sha256},
            "figure": str(figure),
            "results": [r.as_dict() for r in self.records],
            "left_out": dict(self.left_out),
        }

    def print(self, figure: Path, *, as_json: bool) -> None:
        """The table for people, or the document."""
        if as_json:
            console.print_json(self.document(figure))
        else:
            _print(self, figure)


def compare(job: Job, figure: Path, *, progress: Progress | None = None) -> Compared:
    """Draw the job's one input under all its methods into `figure`, and the numbers into a .json beside it."""
    if figure.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"{figure}: a figure is a .png, .svg or .pdf file; give it one of these suffixes.")
    place = target_path(figure)
    read = {Path(p).resolve() for p in (job.model, *find_inputs(job.inputs), *([job.labels] if job.labels else []))}
    if {place.resolve(), place.with_suffix(".json").resolve()} & read:
        raise OutputError(
            f"{figure} (or the .json beside it) is one of the files to read; name another one with --out."
        )
    compared = run(job, place, progress)
    write_bytes(place.with_suffix(".json"), console.as_json(compared.document(figure)).encode() + b"\n")
    return compared


def run(job: Job, place: Path, progress: Progress | None = None) -> Compared:
    """Explain the one input by each method, apart, so that each has its own time; draw what came of it.

    Under ``all`` a method that cannot answer (it needs patterns or baselines, or the model holds an operator that it
    cannot pass) is left out and named; a method that was asked for by name raises its error.
    """
    every = list(job.methods) == [ALL]
    ordered = [m.name for family in FAMILIES for m in METHODS.values() if m.family == family]
    names = ordered if every else list(dict.fromkeys(resolve(m).name for m in job.methods))
    # RISE's masses of positive evidence differ in shades of one colour: around their mean they can be seen
    centred = {"centred": True} if any("centred" in METHODS[n].options for n in names) else {}
    options = shared_options({n: METHODS[n].options for n in names}, {**centred, **job.options})
    sample, path, aim, labels, axes = _the_input(job)
    found: dict[str, Explanation] = {}
    left_out: dict[str, str] = {}
    sha256 = ""
    for done, name in enumerate(names):
        try:
            explainer = _explainer(job, name, options[name])
            sha256 = explainer.sha256
            found[name] = _one(explainer, sample, aim, axes)
        except ExplainError as error:
            if not every:
                raise
            left_out[name] = str(error)
        if progress is not None:
            progress(done + 1, len(names))
    if not found:
        raise InputError(f"No method could explain this input: {next(iter(left_out.values()))}")
    records = [record_of(sample, path, Named(n, aim.text, METHODS[n], e), labels) for n, e in found.items()]
    _draw(sample, found, records, place, dark=job.dark, overlays=job.overlay)
    return Compared(job.model, records, left_out, sha256)


def caption(record: Record) -> str:
    """``sum 2e-07, 0.03 s``: how far the relevance is from adding up (where it is meant to), and the time."""
    seconds = f"{record.seconds:.2f} s" if record.seconds >= 0.095 else f"{1000 * record.seconds:.0f} ms"
    if record.completeness is not None:
        return f"completeness {console.short(record.completeness)}, {seconds}"
    return f"conservation {console.short(record.conservation)}, {seconds}" if record.conserves else seconds


# ------------------------------------------------------------------------------------------- stages


def _explainer(job: Job, name: str, options: Mapping[str, Any]) -> Explainer:
    return Explainer(
        job.model, name, seed=job.seed, output=job.output, logits=job.logits, at=job.at, threads=job.threads,
        batch_size=job.batch_size, input_shapes=job.input_shapes or None, **options,
    )  # fmt: skip


def _the_input(job: Job) -> tuple[Sample, Path, Aim, list[str], dict[str, int]]:
    """The one sample to draw, where it came from, its target, the class names, and stated channel axes."""
    paths = find_inputs(job.inputs)
    if len(paths) != 1:
        raise InputError(f"compare draws one input, but {len(paths)} were given; call it once for each.")
    explainer = Explainer(
        job.model, "gradient", output=job.output, logits=job.logits, input_shapes=job.input_shapes or None
    )
    labels = labels_of(explainer, job.labels)
    wanted = aims(job.targets, labels)
    if len(wanted) != 1:
        raise InputError(f"compare explains one target, but {len(wanted)} were given; call it once for each.")
    specs = input_specs(explainer, job.input_shapes, job.layout)
    read = (job.preprocessing or preprocessing)(embedded_preset(explainer))
    [name] = sample_names(paths)
    samples = list(load(paths[0], specs, read, layout=job.layout, name=name))
    if len(samples) != 1:
        raise InputError(
            f"{paths[0]} holds {len(samples)} samples, but compare draws one; save the one to look at alone."
        )
    sizes = {s.name: len(s.shape) for s in specs}
    axes = {} if job.layout is None else {n: {"NCHW": 1, "NHWC": 3}[job.layout] for n, k in sizes.items() if k == 4}
    feeds, _ = feeds_of(samples, specs)
    return replace(samples[0], feeds=feeds), paths[0], wanted[0], labels, axes


def _one(explainer: Explainer, sample: Sample, aim: Aim, axes: Mapping[str, int]) -> Explanation:
    whole = explainer(sample.feeds, aim.target)
    if whole.seconds < _WARM:  # the first run pays for the runtime's memory; the second is the method's own time
        whole = explainer(sample.feeds, aim.target)
    return single(replace(whole, channel_axis={**whole.channel_axis, **axes}), 0, len(whole))


def _draw(
    sample: Sample,
    found: Mapping[str, Explanation],
    records: Sequence[Record],
    place: Path,
    *,
    dark: bool,
    overlays: bool,
) -> None:
    first = next(iter(found.values()))
    name = next((n for n in first.relevance if picture_map(first, n) is not None), None)
    title = f"{sample.name}: {records[0].explained}"
    if name is None:
        raise InputError(
            "compare draws pictures, but no input of the model is one; `onnx-explain explain` draws signals and rows of features."
        )
    heats = {m: h for m, e in found.items() for h in [picture_map(e, name)] if h is not None}
    notes = {r.method: caption(r) for r in records}
    figure = render.figure_images(
        shown(sample, first, name), heats, title=title, dark=dark, overlays=overlays, notes=notes
    )
    render.save_figure(figure, place)


def _print(compared: Compared, figure: Path) -> None:
    rows: list[Sequence[str] | str] = []
    for r in compared.records:
        adds = r.completeness if r.completeness is not None else r.conservation if r.conserves else None
        rows.append((r.method, r.explained, "-" if adds is None else console.short(adds), f"{r.seconds:.3f}"))
    console.print_table(("method", "explained", "off by", "seconds"), rows, flexible=1, right=(2, 3))
    for name, reason in compared.left_out.items():
        console.note(f"{name} is left out: {reason}")
    console.say(f"\nwritten    {figure} and {figure.with_suffix('.json').name}")
