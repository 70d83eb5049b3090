"""`demo`: the bundled network on the bundled picture, under methods that show what differs between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np

from onnx_explain.cli import console, report
from onnx_explain.cli.explaining import Job
from onnx_explain.cli.explaining import run as run_job
from onnx_explain.cli.reading import Given
from onnx_explain.cli.results import OVERVIEW, Record, make_folder, write_bytes
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
MODEL, PICTURE = "shapes_cnn.onnx", "demo.png"


def run(out: Path, *, dark: bool = False, as_json: bool = False) -> None:
    """Explain the bundled picture into `out`, write the explained model there, and tell what came of it."""
    started = time.perf_counter()
    make_folder(out)
    for name in (MODEL, PICTURE):  # beside the results, to go on with
        write_bytes(out / name, _bundled(name))
    options = {"low": 0.0, "high": 1.0}  # of the picture's values, for the box rules
    finished = run_job(
        Job(out / MODEL, Given([out / PICTURE]), out, METHODS, options=options, dark=dark, folder_per_input=False)
    )
    written = Explainer(out / MODEL, CONVERTED).convert(out / EXPLAINED)
    document = report.explain_document(out / MODEL, out, finished)
    document["explained_model"] = report.written_document(written, out / EXPLAINED)
    write_bytes(out / "explanations.json", console.as_json(document).encode() + b"\n")
    if as_json:
        console.print_json(document)
        return
    _print(finished.records, out, size=document["explained_model"]["bytes"], seconds=time.perf_counter() - started)


def _bundled(name: str) -> bytes:
    found = resources.files("onnx_explain") / "bundled" / name
    if not found.is_file():
        raise ModelError(f"The bundled file {name!r} is missing from this installation; install onnx-explain again.")
    return found.read_bytes()


def _print(records: Sequence[Record], out: Path, *, size: int, seconds: float) -> None:
    first = records[0]
    console.say(
        f"The bundled network sees: {first.predicted_label}, "
        f"logit {first.score:.2f}, probability {_probability(first):.1%}"
    )
    console.say()
    report.print_records(records)
    console.say("\nconservation: how far the relevance is from adding up to the score; gradients do not (-)")
    console.say()
    console.print_hanging(f"{out / OVERVIEW}", "the picture and every map side by side")
    console.print_hanging(f"{out / '<method>'}.png, .npz", "each map, and its numbers")
    told = f"predicts, and explains by {CONVERTED}; plain ONNX, {console.size(size)}"
    console.print_hanging(f"{out / EXPLAINED}", told)
    console.say(f"\nDone in {seconds:.1f} s. Go on with:")
    console.say(f"  onnx-explain explain {out / MODEL} {out / PICTURE} -m rap -t ring")


def _probability(record: Record) -> float:
    """The softmax of the logits at the explained class."""
    with np.load(record.files["arrays"]) as arrays:
        logits = arrays[f"output/{record.tensor}"].astype(np.float64).ravel()
    shares = np.exp(logits - logits.max())
    return float(shares[record.index] / shares.sum())
