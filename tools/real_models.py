"""Every method on trained models of many exporters: docs/benchmarks/real-models.md.

``python tools/real_models.py PLAN --root FOLDER --work DIR`` takes its models and pictures from a plan, {"models": [{"name",
"model", "input", "preprocessing", "target", "methods"}]} with paths relative to FOLDER (`docs/benchmarks/real-models.json` holds one:
the page can be made again from it). An input is a picture, an array file, {"npz": PATH, "row": K} for a picture out of an
array ``images``, or {"noise": SEED}. Per model: what `check` says, whether the prediction is ONNX Runtime's, every method's
map and how far it adds up, and the time to the first heat map. Models are not part of the project. Maps go to DIR, to be
looked at; each model runs in a process of its own, and what is done is kept there and not done again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import lzma
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_cpu import in_own_process
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
PACKAGES = ("onnx-explain", "onnxruntime", "onnx", "numpy")
TIMED = ("gradient", "lrp-epsilon-plus")  # what the time to the first map is measured with
ROUNDS = 7
FEW: dict[str, dict[str, Any]] = {  # enough to see a map of every method, not to judge it
    "integrated-gradients": {"steps": 16},
    "gnl-ig": {"steps": 16},
    "expected-gradients": {"samples": 8},
    "smoothgrad": {"samples": 8},
    "smoothgrad-squared": {"samples": 8},
    "vargrad": {"samples": 8},
    "rise": {"masks": 200},
    "shapley-sampling": {"permutations": 2},
}
Array = NDArray[Any]


def main() -> None:
    """Run what is not done yet and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of the models to run")
    parser.add_argument("--time", action="store_true", help="only the times again, on a machine that does nothing else")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "real-models")
    given = parser.parse_args()
    plan = json.loads(given.plan.read_text(encoding="utf-8"))["models"]
    given.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for entry in plan:
        kept = given.work / f"{entry['name']}.json"
        row = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        wanted = not given.only or entry["name"] in given.only
        for part, of in (("found", examined), ("times", timed)):
            if wanted and (part not in row or (given.time and part == "times")) and (part == "times" or not given.time):
                print(f"{entry['name']}: {part}", file=sys.stderr)
                row[part] = in_own_process(of, entry, given.root, given.work)
                kept.write_text(json.dumps(row), encoding="utf-8")
        # sentences name files: of the folder, not of this machine
        told = json.dumps(row).replace(str(given.root), "FOLDER").replace(str(given.work), "DIR")
        rows.append((entry, json.loads(told)))
    given.out.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    told = {"models": [e for e, _ in rows], "results": {e["name"]: r for e, r in rows}}
    given.out.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------- in a process of its own


def examined(entry: dict[str, Any], root: Path, work: Path) -> dict[str, Any]:
    """What `check`, the prediction and every method say of one model."""
    from onnx_explain import METHODS, Explainer
    from onnx_explain.errors import ExplainError

    try:
        model = unpacked(root / entry["model"], work)
        shapes = entry.get("input_shapes")
        first = Explainer(model, "lrp-epsilon-plus", input_shapes=shapes)
        rows, missing = first.plan()
    except ExplainError as error:
        return {"refused": str(error)}
    x = feed(entry, first, root, work)
    found: dict[str, Any] = {"operators": len(rows), "unsupported": missing, "methods": {}}
    if missing:
        return {"refused": first_words(lambda: first(x))}
    found["prediction"] = prediction_error(model, first, x)
    fitted = of_data(model, x)
    for name in entry.get("methods", METHODS):
        options = {k: v for k, v in {**FEW.get(name, {}), **fitted}.items() if k in METHODS[name].options}
        try:
            e = Explainer(model, name, input_shapes=shapes, **options)(x, entry.get("target"))
        except ExplainError as error:
            found["methods"][name] = {"refused": str(error)}
            continue
        told = {"conservation": float(e.conservation.max()), "map": kind(e), "conserves": METHODS[name].conserves}
        if e.completeness is not None:
            told["completeness"] = float(np.abs(e.completeness).max() / max(abs(float(e.target.score[0])), 1e-9))
        found["methods"][name] = told
        if told["map"] == "given":
            e.plot(work / f"{entry['name']}-{name}.png")
    return found


def first_words(run: Any) -> str:
    """What an explanation is refused with."""
    from onnx_explain.errors import ExplainError

    try:
        run()
    except ExplainError as error:
        return str(error)
    raise RuntimeError("`check` names operators without a room, but the explanation runs")


def kind(e: Any) -> str:
    """Whether a map says something, is all zeros, or holds what is no number."""
    if not all(np.isfinite(r).all() for r in e.relevance.values()):
        return "not finite"
    return "given" if any(np.any(r) for r in e.relevance.values()) else "zeros"


def of_data(model: Path, x: dict[str, Array]) -> dict[str, Any]:
    """What methods take from data, of a few noisy copies of the sample: patterns and baselines. A method without them says so."""
    from onnx_explain import fit_patterns
    from onnx_explain.errors import ExplainError

    if any(a.dtype.kind != "f" or not a.ndim for a in x.values()):
        return {}
    rng = np.random.default_rng(0)
    rows = {
        n: np.concatenate([a + a.std() * rng.standard_normal(a.shape).astype(a.dtype) for _ in range(8)])
        for n, a in x.items()
    }
    found: dict[str, Any] = {"baselines": next(iter(rows.values()))}
    try:
        found["patterns"] = fit_patterns(str(model), rows)
    except ExplainError as error:
        print(f"no patterns: {error}", file=sys.stderr)
    return found


def unpacked(path: Path, work: Path) -> Path:
    """The model file; an .xz beside it is unpacked into the work folder first."""
    if path.suffix != ".xz":
        return path
    target = work / path.stem
    if not target.exists():
        target.write_bytes(lzma.decompress(path.read_bytes()))
    return target


def feed(entry: dict[str, Any], explainer: Any, root: Path, work: Path) -> dict[str, Array]:
    """One sample per input of the model."""
    from onnx_explain.cli.explaining import input_specs
    from onnx_explain.data import load, preprocessing

    asked = entry["input"]
    shapes = entry.get("input_shapes", {})
    if isinstance(asked, dict) and "noise" in asked:
        rng = np.random.default_rng(asked["noise"])
        return {
            n: drawn(rng, [d or g for d, g in zip(shape, shapes.get(n, [1] * len(shape)))], dtype)
            for n, (shape, dtype) in explainer.inputs.items()
        }
    path = picture(root / asked["npz"], asked["row"], work) if isinstance(asked, dict) else root / asked
    specs = input_specs(explainer, shapes, None)
    sample = next(iter(load(path, specs, preprocessing(**entry.get("preprocessing", {})), name=entry["name"])))
    return dict(sample.feeds)


def drawn(rng: np.random.Generator, shape: list[int], dtype: np.dtype[Any]) -> Array:
    """Standard normal values, or bytes for a model that takes integers."""
    whole = np.dtype(dtype).kind in "iu"
    return (rng.integers(0, 256, shape) if whole else rng.standard_normal(shape)).astype(dtype)


def picture(archive: Path, row: int, work: Path) -> Path:
    """Picture `row` of an archive's ``images`` [N, C, H, W] or [N, H, W, C] as a PNG file."""
    from PIL import Image

    with np.load(archive) as arrays:
        pixels = arrays["images"][row]
    pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] in (1, 3) else pixels
    target = work / f"{archive.stem}-{row}.png"
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(target)
    return target


def prediction_error(model: Path, explainer: Any, x: dict[str, Array]) -> float:
    """The largest difference between the explained run's outputs and ONNX Runtime's, relative to the largest value."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    plain = dict(zip(names, session.run(names, x)))
    got = explainer(x).outputs
    gaps = [0.0]
    for name, value in got.items():
        expected = np.asarray(plain[name])
        if expected.dtype.kind == "f" and expected.size:
            gaps.append(float(np.abs(expected - value).max() / max(np.abs(expected).max(), 1e-30)))
    return max(gaps)


def timed(entry: dict[str, Any], root: Path, work: Path) -> dict[str, Any]:
    """Per method: seconds to the first map from nothing, and the second map's time as a multiple of a plain run."""
    import onnxruntime

    from onnx_explain import Explainer
    from onnx_explain.errors import ExplainError

    times: dict[str, Any] = {}
    try:
        model = unpacked(root / entry["model"], work)
        shapes = entry.get("input_shapes")
        x = feed(entry, Explainer(model, "gradient", input_shapes=shapes), root, work)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for name in TIMED:
            start = time.perf_counter()
            explainer = Explainer(model, name, input_shapes=shapes)
            explainer(x, entry.get("target"))
            first = time.perf_counter() - start
            pairs = [(clock(lambda: session.run(None, x)), run_seconds(explainer, x, entry)) for _ in range(ROUNDS)]
            plain, explained = (sorted(p)[ROUNDS // 2] for p in zip(*pairs))
            times[name] = {"first": first, "plain": plain, "explained": explained, "ratio": explained / plain}
    except ExplainError as error:
        times["refused"] = str(error)
    return times


def clock(run: Any) -> float:
    """Wall seconds of a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def run_seconds(explainer: Any, x: dict[str, Array], entry: dict[str, Any]) -> float:
    """Seconds of one run of the explained graph."""
    return float(explainer(x, entry.get("target")).seconds)


# ------------------------------------------------------------------------------------------- the page


def page(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """The tables."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()  # noqa: UP017
    explained = [(e, r) for e, r in rows if "refused" not in r.get("found", {})]
    refused = [(e, r) for e, r in rows if "refused" in r.get("found", {})]
    text = [
        "# Every method on trained models of many exporters", "",
        "* command: `python tools/real_models.py docs/benchmarks/real-models.json --root FOLDER --work DIR`, where FOLDER holds the",
        "  models and pictures that the plan in that file names; they are not part of this project",
        f"* date: {date}; versions: {versions}, python {platform.python_version()}; {os.cpu_count()} cores", "",
        "*On the way*: operators between the explained tensor and the inputs, and how many of them have no room. *Prediction*: the",
        "explained run's outputs against ONNX Runtime's on the file, relative to the largest. *Maps*: methods that gave a map, of those",
        "in the register. *Conservation*: the largest relative gap of the methods that promise to add up, and whose it is. *First",
        "map*: seconds from an unread file to a heat map of `lrp-epsilon-plus`; *×*: a further map as a multiple of a plain run,",
        f"gradient / `lrp-epsilon-plus`, medians of {ROUNDS} interleaved runs. On a busy machine seconds are too long and ratios rough.", "",
        "| model | on the way | prediction | maps | conservation | first map s | × plain run |", "|---|---|---|---|---|---|---|",
        *(line(e, r) for e, r in explained), "",
    ]  # fmt: skip
    text += without_a_map(explained)
    if refused:
        text += ["## Refused", "", *(f"* `{e['name']}`: {r['found']['refused']}" for e, r in refused), ""]
    return "\n".join(text).rstrip() + "\n"


def line(entry: dict[str, Any], row: dict[str, Any]) -> str:
    """One model's line."""
    found, times = row.get("found", {}), row.get("times", {})
    if not found:
        return f"| {entry['name']} | not run | | | | | |"
    methods = found["methods"]
    maps = [n for n, m in methods.items() if m.get("map") == "given"]
    gaps = {n: methods[n]["conservation"] for n in maps if methods[n]["conserves"] and "completeness" not in methods[n]}
    worst = max(gaps, key=gaps.__getitem__, default="")
    told = f"{gaps[worst]:.1e} ({worst})" if worst else "-"
    unsupported = f", {len(found['unsupported'])} without a room" if found["unsupported"] else ""
    first = f"{times['lrp-epsilon-plus']['first']:.2f}" if "lrp-epsilon-plus" in times else "-"
    ratio = " / ".join(f"{times[n]['ratio']:.1f}" for n in TIMED if n in times) or "-"
    return (
        f"| {entry['name']} | {found['operators']}{unsupported} | {found['prediction']:.0e} | {len(maps)} of {len(methods)} "
        f"| {told} | {first} | {ratio} |"
    )


def without_a_map(rows: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Which methods gave no map, and their own words for it, names left out; methods that say the same of the same models stand once."""
    said: dict[tuple[str, str], list[str]] = {}
    for entry, row in rows:
        for name, told in row.get("found", {}).get("methods", {}).items():
            if told.get("map") != "given":
                kinds = {"zeros": "a map of zeros", "not finite": "values that are not finite"}
                words = re.sub(r"'[^']*'", "…", told.get("refused", kinds.get(told.get("map"), ""))).replace("|", "/")
                said.setdefault((words, name), []).append(entry["name"])
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (words, name), models in said.items():
        alike.setdefault((words, tuple(models)), []).append(name)
    if not alike:
        return []
    text = ["## Methods without a map", "", "| methods | what they say | models |", "|---|---|---|"]
    for (words, models), names in sorted(alike.items()):
        whose = f"all but {', '.join(missing)}" if len(missing := others_than(rows, models)) < 3 else ", ".join(models)
        text.append(f"| {', '.join(names)} | {words} | {whose} |")
    return [*text, ""]


def others_than(rows: list[tuple[dict[str, Any], dict[str, Any]]], models: tuple[str, ...]) -> list[str]:
    """The explained models that are not among those."""
    return [e["name"] for e, r in rows if "methods" in r.get("found", {}) and e["name"] not in models]


if __name__ == "__main__":
    main()
