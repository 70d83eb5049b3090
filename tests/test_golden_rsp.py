"""Parity of RSP with the authors' released code (golden/rap_rsp): whole networks and single layers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_explain import Assignment, Composite, Explainer, Selector
from onnx_explain.backends.onnx import Session
from onnx_explain.backends.reference import Reference
from onnx_explain.ir import composite
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.model import load
from onnx_explain.ir.widen import as_float64
from onnx_explain.methods import METHODS
from onnx_explain.operators.roles import Linear
from onnx_explain.relevance import relevance_of
from onnx_explain.rules import lrp, rap

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "rap_rsp"
HERE = Path(__file__).parent / "golden"
BACKENDS = [("reference", "f64", 1e-9), ("onnx", "f32", 1e-5)]


def _place(name: str) -> Path:
    return next((d / name for d in (SHARED, HERE) if (d / name).is_file()), SHARED / name)


@lru_cache(maxsize=3)
def _arrays(name: str) -> Any:
    path = _place(name)
    if not path.is_file():
        return None
    with np.load(path) as stored:
        return {k: stored[k] for k in stored.files}


def _error(ours: Any, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _runs() -> list[Any]:
    arrays = _arrays("rsp_vgg_small.npz") or {}
    runs = sorted({tuple(k.split("/")[1:3]) for k in arrays if k.startswith("f64/") and k.endswith("heatmap")})
    return [pytest.param(*run, id="-".join(run)) for run in runs]


def _classes(arrays: Any, image: str, run: str) -> tuple[int, tuple[int, ...]]:
    """The target and the hostile classes of a run."""
    if run.startswith("single"):
        return int(run.removeprefix("single_t")), ()
    listed, place = arrays["classes_top3"][int(image[-1])], int(run.removeprefix("multi_g"))
    return int(listed[place]), tuple(int(c) for k, c in enumerate(listed) if k != place)


@pytest.mark.parametrize(("backend", "dtype", "limit"), BACKENDS, ids=["float64", "float32"])
@pytest.mark.parametrize(("image", "run"), _runs())
def test_published_rsp_equals_the_released_code(image: str, run: str, backend: Any, dtype: str, limit: float) -> None:
    arrays = _arrays("rsp_vgg_small.npz")
    target, hostile = _classes(arrays, image, run)
    x = arrays["input"][int(image[-1]) : int(image[-1]) + 1].astype(np.float32)
    options: dict[str, Any] = {"variant": "published", "hostile": hostile, "backend": backend}
    e = Explainer(_place("vgg_small.onnx"), "rsp", **options)(x, target=target)
    assert e.layer == "features.8"
    assert _error(e.heatmap(), arrays[f"{dtype}/{image}/{run}/heatmap"]) <= limit
    seed = Explainer(_place("vgg_small.onnx"), "rsp", layer="features.8", at="features.8", **options)(x, target=target)
    assert _error(seed.relevance["features.8"], arrays[f"{dtype}/{image}/{run}/seed"]) <= limit


@pytest.mark.parametrize(("backend", "dtype", "limit"), BACKENDS, ids=["float64", "float32"])
@pytest.mark.parametrize("image", ["img0", "img1"])
def test_published_rsp_composes_over_a_residual_network(image: str, backend: Any, dtype: str, limit: float) -> None:
    arrays = _arrays("rsp_resnet_small_composed.npz")
    if arrays is None:
        pytest.skip("../shared is absent, and the arrays are not committed")
    x = arrays["input"][int(image[-1]) : int(image[-1]) + 1].astype(np.float32)
    explainer = Explainer(_place("resnet_small.onnx"), "rsp", variant="published", backend=backend)
    e = explainer(x, target=int(arrays[f"f64/{image}/target"]))
    assert e.layer == "b2.relu3"
    assert _error(e.heatmap(), arrays[f"{dtype}/{image}/heatmap"]) <= limit


@pytest.mark.parametrize(("image", "run"), [r for r in _runs() if r.values[0] == "img0"])
def test_the_general_form_differs_only_where_patches_are_dead(image: str, run: str) -> None:
    """img0 has no dead patch: there the repaired rule is the released one but for its absolute 1e-9."""
    arrays = _arrays("rsp_vgg_small.npz")
    target, hostile = _classes(arrays, image, run)
    x = arrays["input"][:1].astype(np.float32)
    e = Explainer(_place("vgg_small.onnx"), "rsp", hostile=hostile, backend="reference")(x, target=target)
    assert _error(e.heatmap(), arrays[f"f64/{image}/{run}/heatmap"]) <= 1e-6


def _single() -> list[Any]:
    arrays = _arrays("single_layers.npz")
    if arrays is None:
        return []
    listed = json.loads(str(arrays["cases_json"]))
    return [pytest.param(c, id=c["name"]) for c in listed if c["name"].startswith("rsp")]


def _rules(name: str) -> Composite:
    """The method's own rows; the box where the case says so, not where the layer stands."""
    procedure = METHODS["rsp"].procedure({"variant": "published"})
    assert isinstance(procedure, Composite)
    linear = Selector(role=Linear, kind="weighted")
    first = (Assignment(linear, rap.box(), "box"),) if "first_conv" in name else ()
    passed = (Assignment(linear, lrp.passing, "pass"),) if "linear" in name else ()
    return Composite((*first, *passed, *procedure.assignments[1:]), "pass")


@pytest.mark.parametrize("backend", ["reference", "onnx"])
@pytest.mark.parametrize("case", _single())
def test_each_layer_equals_the_released_code(case: dict[str, Any], backend: str) -> None:
    arrays, name = _arrays("single_layers.npz"), case["name"]
    path = SHARED / "single_onnx" / f"{name.replace('/', '__')}.onnx"
    if not path.is_file():
        pytest.skip("no ONNX file for this layer (adaptive pooling has no operator)")
    canonical = canonicalize(load(path).model)
    exact = backend == "reference"
    wide = as_float64(canonical) if exact else canonical
    output, inputs = wide.graph.outputs[0].name or "", [v.name or "" for v in wide.graph.inputs]
    model = composite.expand(relevance_of(wide, _rules(name), inputs, output))
    runner: Any = Reference(model) if exact else Session(model)
    keys = ["x"] if f"{name}/x" in arrays else ["x0", "x1"]
    dtype = np.float64 if exact else np.float32
    feeds = {n: arrays[f"{name}/{k}"].astype(dtype) for n, k in zip(inputs, keys)}
    feeds[f"{output}_cotangent"] = arrays[f"{name}/R_out"].astype(dtype)
    results = runner.run(feeds)
    for n, k in zip(inputs, ["R_in"] if keys == ["x"] else ["R_in0", "R_in1"]):
        assert _error(results[f"{n}_gradient"], arrays[f"{name}/f64/{k}"]) <= (1e-10 if exact else 1e-5)


def test_the_arrays_are_there_or_the_reason_is_told() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared is absent: nothing was compared with the released code")
    assert _runs()
    assert _single()
