"""One exported file of the zoo against the truth beside it: what loads, what is equal, what adds up.

`python tools/zoo_measure.py STEM EXPORTER FOLDER METHOD…` prints one JSON record. No framework is imported: the truth lies in
FOLDER/STEM.npz (`zoo_export.py`). A process of its own, so that memory is given back and a crash is one row's.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnx_explain import Explainer, Explainers, Explanation
from onnx_explain.errors import ExplainError

Array = npt.NDArray[Any]
GRADIENT = 1e-4  # the most that a gradient may differ, relative to the largest of its sample
OUTPUT = 1e-4  # and an output from ONNX Runtime's on the file as it was exported
STEP = 1e-9  # of finite differences in float64: far below the rounding that moved the unit
PATIENCE = 240  # seconds for a run of the float64 backend
ADDS_UP = 1e-3  # the most that relevance may be off, relative to what was seeded: float32, hundreds of layers


def main() -> int:
    """Measure one file; the record goes to standard output."""
    stem, exporter, folder, methods = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
    warnings.simplefilter("ignore")
    path = folder / f"{stem}.{exporter}.onnx"
    with np.load(folder / f"{stem}.npz") as file:
        truth = {name: file[name] for name in file.files}
    print(json.dumps(record(path, truth, methods)))
    return 0


def record(path: Path, truth: Mapping[str, Array], methods: list[str]) -> dict[str, Any]:
    """Facts of the file, then one entry per question; a refusal stands under the question it was met at."""
    found = facts(path)
    inputs = {n.removeprefix("input/"): a for n, a in truth.items() if n.startswith("input/")}
    try:
        inputs, expected = fed(path, inputs)
    except Exception as error:  # the runtime does not take the file: nothing of ours to judge
        return {**found, "exporter's file": told(error)}
    try:
        found |= answers(path, inputs, expected, truth, ("gradient", *methods))
    except Exception:  # one at a time, so that each is told what it met
        for method in ("gradient", *methods):
            try:
                found |= answers(path, inputs, expected, truth, (method,))
            except ExplainError as error:
                found[method] = {"refused": f"{type(error).__name__}: {error}"}
            except Exception as error:  # a crash of ours is a row of the table, not the end of it
                found[method] = {"crashed": told(error)}
    return found


def answers(
    path: Path,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    truth: Mapping[str, Array],
    methods: Sequence[str],
) -> dict[str, Any]:
    """Several methods over one forward pass; `build seconds` is processor time from the file to a session."""
    started = time.process_time()
    explainers = Explainers(path, methods)
    (found,) = explainers(dict(inputs), targets=[aim(truth)])
    built = time.process_time() - started
    told_of = {}
    for method, e in zip(methods, found):
        told_of[method] = gradient(path, e, expected, truth) if method == "gradient" else relevance(e)
        told_of[method]["build seconds"] = built
    if "gradient" in told_of and alone_makes_sense(path, inputs, truth):
        told_of["gradient"] |= alone(path, explainers, inputs, truth, methods)
    return told_of


def alone(
    path: Path,
    explainers: Explainers,
    inputs: Mapping[str, Array],
    truth: Mapping[str, Array],
    methods: Sequence[str],
) -> dict[str, float]:
    """How far a sample's relevance is from its own without the others; in float64 too, where rounding may have moved a unit."""

    def distance(explain: Explainers) -> float:
        (both,) = explain(dict(inputs), targets=[truth["target"]])
        (first,) = explain({n: a[:1] for n, a in inputs.items()}, targets=[truth["target"][:1]])
        return max(away(s.relevance[n], r[:1]) for s, e in zip(first, both) for n, r in e.relevance.items())

    found = {"alone": distance(explainers)}
    if found["alone"] > GRADIENT:
        with contextlib.suppress(TimeoutError, ExplainError, ValueError), limited(PATIENCE):
            found["alone in float64"] = distance(Explainers(path, methods, backend="reference"))
    return found


def aim(truth: Mapping[str, Array]) -> Any:
    """The target as it is asked for: an index per sample; None (the largest) where that is what was differentiated."""
    return truth["target"] if len(truth["target"]) > 1 else None


def alone_makes_sense(path: Path, inputs: Mapping[str, Array], truth: Mapping[str, Array]) -> bool:
    """Whether one sample of the batch can be explained without the others."""
    batch = len(next(iter(inputs.values())))
    return batch > 1 and len(truth["target"]) == batch and facts(path)["batch"] == "open"


def facts(path: Path) -> dict[str, Any]:
    """Opset, nodes, size, and whether the batch is open."""
    model = onnx.load(path, load_external_data=False)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    beside = [p for p in (path, path.with_name(f"{path.name}.data")) if p.exists()]
    return {
        "opset": next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None),
        "nodes": len(model.graph.node),
        "MiB": sum(p.stat().st_size for p in beside) / 2**20,
        "batch": "open" if shape and not shape[0].HasField("dim_value") else shape[0].dim_value if shape else None,
    }


def fed(path: Path, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """(the inputs that the file kept, ONNX Runtime's outputs for them)."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kept = {i.name: inputs[i.name] for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    return kept, dict(zip(names, session.run(names, kept)))


def gradient(path: Path, e: Explanation, expected: Mapping[str, Array], truth: Mapping[str, Array]) -> dict[str, Any]:
    """Outputs and gradients beside the truth; in float64 too where float32 is not close enough to it."""
    found: dict[str, Any] = {
        "explained": e.target.tensor,
        "output": max(away(e.outputs[n], y) for n, y in expected.items()),
        "error": compared(e, truth, "gradient"),
    }
    if found["output"] > OUTPUT:
        found["output moved"] = moved(path, e.inputs)
    kind = "exact" if any(n.startswith("exact/") for n in truth) else "gradient"
    if found["error"] > GRADIENT and kind == "exact":
        found |= {"error to float64": compared(e, truth, "exact"), "own": own(truth)}
    if found["error"] > GRADIENT and found.get("error to float64", 1.0) > GRADIENT:
        with contextlib.suppress(TimeoutError, ExplainError, ValueError), limited(PATIENCE):
            exact = Explainer(path, "gradient", backend="reference")(dict(e.inputs), target=aim(truth))
            found["error in float64"] = compared(exact, truth, kind)
            if found["error in float64"] > GRADIENT:
                found["file's own"] = confirmed(path, exact, truth, kind)
    return found


def moved(path: Path, inputs: Mapping[str, Array]) -> float:
    """How far ONNX Runtime's own outputs of the file move where every input element moves by a rounding."""
    rng = np.random.default_rng(0)
    _, still = fed(path, inputs)
    gone = 0.0
    for _ in range(4):
        near = {n: _rounded(a, rng) for n, a in inputs.items()}
        gone = max(gone, *(away(y, still[n]) for n, y in fed(path, near)[1].items()))
    return gone


def _rounded(a: Array, rng: np.random.Generator) -> Array:
    if a.dtype.kind != "f":
        return a
    moved_by: Array = (a * (1.0 + 1e-7 * rng.standard_normal(a.shape))).astype(a.dtype)
    return moved_by


def confirmed(path: Path, e: Explanation, truth: Mapping[str, Array], kind: str) -> float:
    """How far the file's own derivative is from ours, where ours is farthest from torch's; relative to that distance.

    Exporters fold BatchNormalization in float32. That can move a unit across its kink: the file is then another function
    than the network, by that unit. A network that detaches what it computes (RAFT its coordinates) has another derivative in
    torch than in its file. Finite differences of the file in float64 tell whose derivative it has. `kind`: of torch's gradients.
    """
    (name, r), *_ = e.relevance.items()
    x = np.asarray(e.inputs[name], np.float64)
    way = np.asarray(r, np.float64) - truth[f"{kind}/{name}"]
    way /= np.linalg.norm(way)
    explain = Explainer(path, "gradient", backend="reference")
    ahead, behind = (
        float(explain({**e.inputs, name: x + step * way}, target=aim(truth)).target.score.sum())
        for step in (STEP, -STEP)
    )
    ours, torchs = float((r * way).sum()), float((truth[f"{kind}/{name}"] * way).sum())
    return abs((ahead - behind) / (2 * STEP) - ours) / abs(ours - torchs)


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """TimeoutError where the block takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def relevance(e: Explanation) -> dict[str, Any]:
    """How far relevance is from adding up: relative to the score, and to the larger of the score and what was absorbed.

    Relevance of both signs can sum to many times the score and cancel; rounding is then relative to what flowed.
    """
    flowed = np.maximum(np.abs(e.target.score), np.abs(e.absorbed))
    return {
        "conservation": float(e.conservation.max()),
        "of what flowed": float((e.conservation * np.abs(e.target.score) / flowed).max()),
        "absorbed": float(np.abs(e.absorbed / e.target.score).max()),
        "finite": all(bool(np.isfinite(r).all()) for r in e.relevance.values()),
        "anything": all(bool(np.abs(r).max(initial=0.0) > 0.0) for r in e.relevance.values()),
    }


def compared(e: Explanation, truth: Mapping[str, Array], kind: str) -> float:
    """The largest difference over all explained tensors, each sample relative to its own largest gradient."""
    wanted = {n.partition("/")[2]: a for n, a in truth.items() if n.startswith(f"{kind}/")}
    if set(wanted) == {"leaf"}:
        name, factor = looked_up(e, truth["value"])
        wanted = {name: wanted["leaf"] * factor}
    missing = set(wanted) - set(e.relevance)
    if missing:
        raise KeyError(f"no gradient for {sorted(missing)}, only for {sorted(e.relevance)}")
    return max(away(e.relevance[n], a) for n, a in wanted.items())


def looked_up(e: Explanation, value: Array) -> tuple[str, float]:
    """The explained table that holds the leaf's value, and how many times it: Gemma scales what it looks up."""
    factors = {}
    for name in e.relevance:
        x = np.asarray(e.inputs[name], np.float64)
        if x.shape == value.shape and x.any():
            factor = float((value * x).sum() / (x * x).sum())
            if np.abs(value - factor * x).max() <= 1e-4 * np.abs(value).max():
                factors[name] = factor
    if len(factors) != 1:
        raise KeyError(f"the leaf is {len(factors)} of {sorted(e.relevance)}")
    return next(iter(factors.items()))


def own(truth: Mapping[str, Array]) -> float:
    """How far torch's float32 gradient is from its float64 one."""
    return max(away(a, truth[f"exact/{n.partition('/')[2]}"]) for n, a in truth.items() if n.startswith("gradient/"))


def away(found: Array, wanted: Array) -> float:
    """max |found - wanted| / max |wanted|, the largest over samples."""
    if found.shape != wanted.shape:
        raise ValueError(f"shape {list(found.shape)} in place of {list(wanted.shape)}")
    if not found.size:
        return 0.0
    a, b = (np.asarray(v, np.float64).reshape(len(v) if v.ndim else 1, -1) for v in (found, wanted))
    gap, size = np.abs(a - b).max(1), np.abs(b).max(1)
    return float(np.divide(gap, size, out=gap.copy(), where=size > 0).max())


def told(error: Exception) -> str:
    """The error's kind and first line."""
    line = str(error).strip().splitlines()
    return f"{type(error).__name__}: {line[0] if line else ''}"


if __name__ == "__main__":
    sys.exit(main())
