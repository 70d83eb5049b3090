"""`compare`: one input under many methods, in one figure that says of each how well it adds up and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_explain import render
from onnx_explain.cli import console
from onnx_explain.cli.arguments import Aim, aims, shared_options
from onnx_explain.cli.explaining import Job, single
from onnx_explain.cli.labels import embedded_preset, labels_of
from onnx_explain.cli.reading import feeds_of, input_specs
from onnx_explain.cli.results import (
    SIZE_ALONE,
    Named,
    Record,
    check_finite,
    picture_map,
    record_of,
    shown,
    single_values,
    write_bytes,
)
from onnx_explain.data import Sample, preprocessing
from onnx_explain.errors import ExplainError, InputError, OutputError
from onnx_explain.explainer import Explainer
from onnx_explain.explanation import Explanation
from onnx_explain.files import target_path
from onnx_explain.methods import FAMILIES, METHODS, resolve
from onnx_explain.text import parts_of
from onnx_explain.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    read = {Path(p).resolve() for p in (job.model, *job.inputs.read(), *([job.labels] if job.labels else []))}
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
            one = _one(explainer, sample, aim, axes)
            check_finite(path, one)
            found[name] = one
        except ExplainError as error:
            if not every:
                raise
            left_out[name] = str(error)
        if progress is not None:
            progress(done + 1, len(names))
    if not found:
        raise InputError(f"No method could explain this input: {next(iter(left_out.values()))}")
    records = [record_of(sample, path, Named(n, aim.text, METHODS[n], e, aim.label), labels) for n, e in found.items()]
    _draw(sample, found, records, place, dark=job.dark, overlays=job.overlay, rate=job.rate)
    return Compared(job.model, records, left_out, sha256)


def caption(record: Record) -> str:
    """``sum 2e-07, 0.03 s``: how far the relevance is from adding up (where it is meant to), and the time."""
    seconds = f"{record.seconds:.2f} s" if record.seconds >= 0.095 else f"{1000 * record.seconds:.0f} ms"
    if record.completeness is not None:
        return f"completeness {console.short(record.completeness)}, {seconds}"
    if not METHODS[record.method].signed:
        return f"{SIZE_ALONE}, {seconds}"
    return f"conservation {console.short(record.conservation)}, {seconds}" if record.conserves else seconds


# ------------------------------------------------------------------------------------------- stages


def _explainer(job: Job, name: str, options: Mapping[str, Any]) -> Explainer:
    return Explainer(
        job.model, name, seed=job.seed, output=job.output, logits=job.logits, at=job.at, threads=job.threads,
        batch_size=job.batch_size, input_shapes=job.input_shapes or None, **options,
    )  # fmt: skip


def _the_input(job: Job) -> tuple[Sample, Path, Aim, list[str], dict[str, int]]:
    """The one sample to draw, where it came from, its target, the class names, and stated channel axes."""
    explainer = Explainer(
        job.model, "gradient", output=job.output, logits=job.logits, input_shapes=job.input_shapes or None
    )
    labels = labels_of(explainer, job.labels)
    wanted = aims(job.targets, labels)
    if len(wanted) != 1:
        raise InputError(f"compare explains one target, but {len(wanted)} were given; call it once for each.")
    specs = input_specs(explainer, job.input_shapes, job.layout)
    read = (job.preprocessing or preprocessing)(embedded_preset(explainer))
    found = list(islice(job.inputs.samples(specs, read, job.layout), 2))
    if len(found) != 1:
        raise InputError("compare draws one input, but several samples were given; call it once for each, saved alone.")
    [(_, source, sample)] = found
    sizes = {s.name: len(s.shape) for s in specs}
    axes = {} if job.layout is None else {n: {"NCHW": 1, "NHWC": 3}[job.layout] for n, k in sizes.items() if k == 4}
    feeds, _ = feeds_of([sample], specs)
    return replace(sample, feeds=feeds), source, wanted[0], labels, axes


def _one(explainer: Explainer, sample: Sample, aim: Aim, axes: Mapping[str, int]) -> Explanation:
    whole = explainer(sample.feeds, aim.target)
    if whole.seconds < _WARM:  # the first run pays for the runtime's memory; the second is the method's own time
        whole = explainer(sample.feeds, aim.target)
    whole = replace(whole, channel_axis={**whole.channel_axis, **axes}, names=sample.names)
    return single(whole, 0, len(whole))


def _draw(
    sample: Sample,
    found: Mapping[str, Explanation],
    records: Sequence[Record],
    place: Path,
    *,
    dark: bool,
    overlays: bool,
    rate: float | None,
) -> None:
    """One figure of the first input that is drawn: of pictures, of a text, of a signal, or of features."""
    first = next(iter(found.values()))
    title = f"{sample.name}: {records[0].explained}"
    notes = {r.method: caption(r) for r in records}
    pictured = next((n for n in first.drawn if picture_map(first, n) is not None), None)
    read = next((n for n in first.drawn if n in sample.texts), None)
    if pictured is not None:
        heats = {m: h for m, e in found.items() for h in [picture_map(e, pictured)] if h is not None}
        seen = shown(sample, first, pictured)
        figure = render.figure_images(seen, heats, title=title, dark=dark, overlays=overlays, notes=notes)
    elif read is not None:
        texts = {m: parts_of(sample.texts[read], e.of(read)[0]) for m, e in found.items()}
        figure = render.figure_texts(texts, title=title, dark=dark, notes=notes)
    else:
        figure = _bands(first, found, title, notes, dark=dark, rate=rate)
    render.save_figure(figure, place)


def _bands(
    first: Explanation,
    found: Mapping[str, Explanation],
    title: str,
    notes: Mapping[str, str],
    *,
    dark: bool,
    rate: float | None,
) -> Figure:
    """A row of features or a signal: a band per method."""
    columns = single_values(first)
    if columns:
        maps = {m: np.concatenate([e.of(n).ravel() for n in columns]) for m, e in found.items()}
        names = [", ".join(first.names.get(n, (n,))) for n in columns]
        return render.figure_bands(maps, names=names, title=title, dark=dark, notes=notes)
    name = next(iter(first.drawn))
    letters = first.layout(name, named=name in first.names) or ""
    if letters not in ("NF", "NP", "NT", "NCT", "NTC"):
        raise InputError(
            f"compare draws pictures, texts, signals and rows of features, but {name!r} is {list(first.of(name).shape)}."
        )
    maps = {m: e.heatmap(name)[0] for m, e in found.items()}
    names_of = first.names.get(name) or [f"[{i}]" for i in range(first.of(name).shape[-1])]
    if letters == "NF":
        return render.figure_bands(maps, names=names_of, title=title, dark=dark, notes=notes)
    x = first.inputs[name][0]
    signal = None if letters == "NP" else x.T if letters == "NTC" else x
    return render.figure_bands(maps, signal=signal, title=title, dark=dark, notes=notes, rate=rate)


def _print(compared: Compared, figure: Path) -> None:
    rows: list[Sequence[str] | str] = []
    for r in compared.records:
        adds = r.completeness if r.completeness is not None else r.conservation if r.conserves else None
        rows.append((r.method, r.explained, "-" if adds is None else console.short(adds), f"{r.seconds:.3f}"))
    console.print_table(("method", "explained", "off by", "seconds"), rows, flexible=1, right=(2, 3))
    for name, reason in compared.left_out.items():
        console.note(f"{name} is left out: {reason}")
    console.say(f"\nwritten    {figure} and {figure.with_suffix('.json').name}")
