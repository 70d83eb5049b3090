"""`demo`: the bundled network on the bundled picture, under methods that show what differs between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np

from onnx_explain.cli import console, report
from onnx_explain.cli.explaining import Job
from onnx_explain.cli.explaining import run as run_job
from onnx_explain.cli.results import OVERVIEW, Record, write_text
from onnx_explain.errors import ModelError
from onnx_explain.explainer import Explainer

METHODS = (
    "gradient",
    "saliency",
    "guided-backprop",
    "input-x-gradient",
    "lrp-epsilon",
    "lrp-epsilon-plus-flat",
    "lrp-epsilon-gamma-box",
    "lrp-epsilon-alpha2-beta1",
    "excitation-backprop",
    "deep-taylor",
    "rap",
)
CONVERTED = "lrp-epsilon-plus-flat"
EXPLAINED = "explained.onnx"


def run(out: Path, *, dark: bool = False, as_json: bool = False) -> None:
    """Explain the bundled picture into `out`, write the explained model there, and tell what came of it."""
    started = time.perf_counter()
    with ExitStack() as stack:
        model, picture, labels = (
            stack.enter_context(resources.as_file(_bundled(name))) for name in ("shapes_cnn.onnx", "demo.png", "labels.txt")
        )
        job = Job(
            model, [picture], out, METHODS,
            options={"low": 0.0, "high": 1.0}, labels=labels, dark=dark, folder_per_input=False,
        )  # fmt: skip
        finished = run_job(job)
        explainer = Explainer(model, CONVERTED)
        written = explainer.convert(out / EXPLAINED)
    document = report.explain_document(job, finished)
    document["explained_model"] = report.written_document(written, out / EXPLAINED)
    write_text(out / "explanations.json", console.as_json(document) + "\n")
    if as_json:
        console.print_json(document)
        return
    _print(finished.records, out, written_bytes=document["explained_model"]["bytes"], seconds=time.perf_counter() - started)


def _bundled(name: str) -> Traversable:
    found = resources.files("onnx_explain") / "bundled" / name
    if not found.is_file():
        raise ModelError(f"The bundled file {name!r} is missing from this installation; install onnx-explain again.")
    return found


def _print(records: Sequence[Record], out: Path, *, written_bytes: int, seconds: float) -> None:
    first = records[0]
    console.say(f"The bundled network sees: {first.predicted_label}, logit {first.score:.2f}, probability {_probability(first):.1%}")
    console.say()
    report.print_records(records)
    console.say("\nconservation: how far the relevance is from adding up to the score; gradients do not (-)")
    console.print_hanging(f"{out}/{OVERVIEW}", "the picture and every map side by side")
    console.print_hanging(f"{out}/<method>.png, .npz", "each heat map, and its numbers")
    console.print_hanging(f"{out}/{EXPLAINED}", f"the network with {CONVERTED} built in, {console.size(written_bytes)}: ONNX Runtime alone runs it")
    console.say(f"\ndone in {seconds:.1f} s")


def _probability(record: Record) -> float:
    """The softmax of the logits at the explained class."""
    with np.load(record.files["arrays"]) as arrays:
        logits = arrays[f"output/{record.tensor}"].astype(np.float64).ravel()
    shares = np.exp(logits - logits.max())
    return float(shares[record.index] / shares.sum())
