"""`fit-patterns`, `merge-patterns` and `pattern-quality`: what they do once their arguments are read, and what they print."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnx_explain.cli import console
from onnx_explain.cli.labels import embedded_preset
from onnx_explain.cli.reading import input_specs
from onnx_explain.cli.results import write_bytes
from onnx_explain.data import Layout, Preprocessing, find_inputs
from onnx_explain.errors import InputError, OutputError
from onnx_explain.explainer import Explainer
from onnx_explain.files import target_path
from onnx_explain.fitting import fit_patterns, pattern_quality
from onnx_explain.fitting.figure import LABELS, draw_quality
from onnx_explain.fitting.samples import Files
from onnx_explain.fitting.scoring import LayerQuality
from onnx_explain.patterns import Patterns, merged, read_patterns
from onnx_explain.patterns.estimators import MEANING
from onnx_explain.version import __version__

SUFFIX = ".safetensors"
UNSTABLE = 50  # an amplification that is seen in a map


@dataclass(frozen=True)
class Reading:
    """How a model's data is read, and how the model is run; shared by the commands."""

    model: Path
    preprocessing: Callable[[str | None], Preprocessing]
    output: str | None = None
    logits: bool = True
    layout: Layout | None = None
    input_shapes: Mapping[str, Sequence[int | None]] = field(default_factory=dict)
    batch_size: int = 16
    threads: int | None = None
    skip_bad: bool = False

    def files(self, inputs: Sequence[str | Path]) -> Files:
        """The files of the arguments, read as the model wants."""
        explainer = Explainer(
            self.model, "gradient", output=self.output, logits=self.logits, input_shapes=self.input_shapes or None
        )
        specs = input_specs(explainer, self.input_shapes, self.layout)
        made = self.preprocessing(embedded_preset(explainer))
        return Files(find_inputs(inputs), specs, made, self.layout, self.skip_bad)

    def settings(self) -> dict[str, Any]:
        """What fitting and scoring take alike."""
        return {
            "output": self.output, "logits": self.logits, "batch_size": self.batch_size, "threads": self.threads,
            "input_shapes": self.input_shapes or None,
        }  # fmt: skip


# ------------------------------------------------------------------------------------------- fit-patterns


def fit(
    how: Reading,
    inputs: Sequence[str | Path],
    out: Path,
    *,
    memory: int,
    checkpoint: Path | None,
    every: float,
    as_json: bool,
) -> None:
    """Fit, write the file and its diagnostics, and tell."""
    _check_out(out, [how.model])
    folder = checkpoint or out.with_name(f"{out.name}.checkpoint")
    resumed = folder.exists()
    with console.progress("fitting", visible=not as_json) as advance:
        try:
            patterns = fit_patterns(
                how.model, how.files(inputs), memory=memory, checkpoint=folder, every=every, out=out, progress=advance,
                **how.settings(),
            )  # fmt: skip
        except KeyboardInterrupt:
            console.note(f"how far the fit has come is kept in {folder}; the same command goes on from there.")
            raise
    _tell(patterns, out, as_json=as_json, resumed=resumed)


def _tell(patterns: Patterns, out: Path, *, as_json: bool, resumed: bool = False) -> None:
    document = {"onnx_explain": __version__, "patterns": str(out), "bytes": out.stat().st_size, **patterns.document()}
    beside = out.with_suffix(".json")
    write_bytes(beside, console.as_json(document).encode() + b"\n")
    if as_json:
        console.print_json(document)
        return
    rows = document["weights"]
    counted = list(MEANING)
    unstable = sum(r["amplification"] > UNSTABLE for r in rows)
    lines = [
        (
            r["node"],
            r["operator"],
            r["estimator"],
            str(r["neurons"]),
            str(r["patches"]),
            console.short(r["amplification"]),
            *(str(r[n] or "-") for n in counted),
        )
        for r in rows
    ]
    columns = ("node", "operator", "pattern", "neurons", "patches", "‖w‖‖a‖", *counted)
    console.print_table(columns, lines, flexible=0, cut=True, right=tuple(range(3, len(columns))))
    for name in counted:
        if any(r[name] for r in rows):
            console.print_hanging(name, MEANING[name], column=18)
    if unstable:
        console.note(
            f"{console.counted(unstable, 'weight')} of {len(rows)} have a neuron with ‖w‖‖a‖ above {UNSTABLE} (1 is best): it drowns "
            "the others, so explain with -O estimator=linear, or with -O limit=10 -O fallback=linear."
        )
    if patterns.skipped:
        named = f"{', '.join(patterns.skipped[:5])}{_more(patterns.skipped, 5)}"
        console.note(f"{console.counted(len(patterns.skipped), 'unreadable file')} left out: {named}")
    passes = int(patterns.notes.get("passes", 1))
    if passes > 1:
        console.say(f"The sums did not fit in --memory at once, so the data was read {passes} times.")
    went_on = " (went on from a checkpoint)" if resumed else ""
    console.say(
        f"\n{console.counted(len(patterns.weights), 'weight')} fitted on {console.counted(patterns.samples, 'sample')}{went_on}: {out} "
        f"({console.size(out.stat().st_size)}), diagnostics in {beside}"
    )


# ------------------------------------------------------------------------------------------- merge-patterns


def merge(parts: Sequence[Path], out: Path, *, as_json: bool) -> None:
    """Merge files of the same model; InputError names the weight in which they differ."""
    if len(parts) < 2:
        raise InputError("Merging takes two files of patterns or more.")
    _check_out(out, [])
    whole = merged([read_patterns(p) for p in parts])
    whole.save(out)
    _tell(whole, out, as_json=as_json)


# ------------------------------------------------------------------------------------------- pattern-quality


def quality(
    how: Reading,
    patterns: Path,
    inputs: Sequence[str | Path],
    *,
    score: Sequence[str | Path],
    split: float,
    largest: int,
    plot: Path | None,
    dark: bool,
    as_json: bool,
) -> None:
    """Score the estimators, print their table, and draw them."""
    fitted = read_patterns(patterns)
    if plot is not None:
        target_path(plot)
    further = how.files(score) if score else None
    with console.progress("scoring", visible=not as_json) as advance:
        layers = pattern_quality(
            how.model,
            fitted,
            how.files(inputs),
            further,
            split=split,
            largest=largest,
            progress=advance,
            **how.settings(),
        )
    if plot is not None:
        draw_quality(layers, plot, title="Quality of signal estimators", dark=dark)
    document = {
        "onnx_explain": __version__,
        "patterns": str(patterns),
        "plot": None if plot is None else str(plot),
        "cut": "1e-10 of the largest eigenvalue",
        "layers": [_layer(layer) for layer in layers],
    }
    if as_json:
        console.print_json(document)
        return
    _print_quality(layers)
    if plot is not None:
        console.say(f"\nDrawn in {plot}")


def _print_quality(layers: Sequence[LayerQuality]) -> None:
    rows = [
        (q.node, str(q.neurons), str(q.patch), *(_number(q.mean(n)) if q.rho else "-" for n in LABELS)) for q in layers
    ]
    columns = ("node", "neurons", "inputs", *LABELS)
    console.print_table(columns, rows, flexible=0, cut=True, right=tuple(range(1, len(columns))))
    if any(q.mean(n) > 1.01 for q in layers for n in q.rho):
        console.note(
            "ρ above 1 is no praise: the data is what the patterns were fitted on, or too little; score on other pictures."
        )
    skipped = [q for q in layers if q.skipped]
    for q in skipped:
        console.note(f"{q.node} is left out: {q.skipped} (--largest)")
    console.say(
        "\nρ = 1 - the correlation with the output that the estimator leaves in the rest: 1 is best; means over neurons."
    )
    if skipped:
        console.say(f"{console.counted(len(skipped), 'layer')} of {len(layers)} left out.")


def _layer(q: LayerQuality) -> dict[str, Any]:
    return {
        "node": q.node, "operator": q.operator, "neurons": q.neurons, "inputs": q.patch, "skipped": q.skipped,
        "mean": {n: q.mean(n) for n in q.rho},
        "rho": {n: [float(v) if np.isfinite(v) else None for v in values] for n, values in q.rho.items()},
    }  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"


# ------------------------------------------------------------------------------------------- shared


def memory_size(text: str) -> int:
    """``2GB``, ``500 MiB`` or a number of bytes; InputError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None:
        raise InputError(f"--memory {text!r} is not understood; write 2GB, 500MB or a number of bytes.")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2] or " "))
    if size < 1:
        raise InputError(f"--memory {text!r} is no memory at all; write 2GB or more.")
    return size


def _check_out(out: Path, read_too: Sequence[Path]) -> None:
    if out.suffix.lower() != SUFFIX:
        raise OutputError(f"{out}: patterns are a {SUFFIX} file; give it that suffix.")
    target_path(out)
    if out.resolve() in {p.resolve() for p in read_too}:
        raise OutputError(f"{out} is the model itself; name another file.")


def _more(names: Sequence[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""
