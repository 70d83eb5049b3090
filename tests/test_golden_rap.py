"""Parity of RAP with the authors' released code (golden/rap_rsp): whole networks and single layers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnx_explain import Assignment, Composite, Explainer, Selector
from onnx_explain.operators.roles import Linear, Sum
from onnx_explain.rules import lrp, rap

HERE = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "rap_rsp"


def _folder(name: str) -> Path | None:
    return next((d for d in (SHARED, HERE) if (d / name).is_file()), None)


@lru_cache(maxsize=4)
def _arrays(name: str) -> Any:
    folder = _folder(name)
    if folder is None:
        return None
    with np.load(folder / name) as stored:
        return {k: stored[k] for k in stored.files}


def _error(ours: Any, theirs: Any) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _networks() -> list[Any]:
    cases = []
    for net in ("vgg_small", "resnet_small"):
        arrays = _arrays(f"rap_{net}.npz")
        if arrays is None:
            continue
        runs = sorted({tuple(k.split("/")[1:3]) for k in arrays if k.startswith("f64/") and k.endswith("heatmap")})
        cases += [pytest.param(net, image, run, id=f"{net}-{image}-{run}") for image, run in runs]
    return cases


@pytest.mark.parametrize(("backend", "dtype"), [("reference", "f64"), ("onnx", "f32")])
@pytest.mark.parametrize(("net", "image", "run"), _networks())
def test_published_rap_equals_the_released_code(net: str, image: str, run: str, backend: str, dtype: str) -> None:
    arrays = _arrays(f"rap_{net}.npz")
    folder = _folder(f"{net}.onnx")
    assert folder is not None
    x = arrays["input"][int(image[-1]) : int(image[-1]) + 1]
    explainer = Explainer(folder / f"{net}.onnx", "rap", variant="published", backend=backend)  # type: ignore[arg-type]
    heat = explainer(x.astype(np.float32), target=int(run[1:])).heatmap()
    limit = 1e-9 if dtype == "f64" else (1e-5 if net == "vgg_small" else 1e-4)
    assert _error(heat, arrays[f"{dtype}/{image}/{run}/heatmap"]) <= limit


def _single() -> list[Any]:
    arrays = _arrays("single_layers.npz")
    if arrays is None:
        return []
    listed = json.loads(str(arrays["cases_json"]))
    return [pytest.param(c, id=c["name"]) for c in listed if c["rule"] == "rap" or c["name"].startswith("rap/")]


def _rules(name: str) -> Composite:
    """The released rule of a layer, wherever in a network it stands: structure does not decide here, the case does."""
    linear = Selector(role=Linear, kind="weighted")
    weighted = rap.hidden(joint=False)
    if "first_prop" in name:
        weighted = rap.first_propagation(published=True)
    elif "first_conv" in name:
        weighted = rap.box()
    return Composite(
        (
            Assignment(linear, weighted, "RAP"),
            Assignment(Selector(role=Linear, kind="average"), rap.pooled(drop=True), "ratio"),
            Assignment(Selector(role=Sum), rap.summed(drop=True), "ratio"),
            Assignment(Selector(operators=("MaxPool", "BatchNormalization", "Concat")), rap.dropping_at_zero, "drop"),
            Assignment(Selector(), lrp.passing, "pass"),
        ),
        "pass",
        first_propagation="first_prop" in name,
    )


@pytest.mark.parametrize("backend", ["reference", "onnx"])
@pytest.mark.parametrize("case", _single())
def test_each_layer_equals_the_released_code(case: dict[str, Any], backend: str) -> None:
    from onnx_explain.backends.onnx import Session
    from onnx_explain.backends.reference import Reference
    from onnx_explain.ir import composite
    from onnx_explain.ir.canonicalize import canonicalize
    from onnx_explain.ir.model import load
    from onnx_explain.ir.widen import as_float64
    from onnx_explain.relevance import relevance_of

    arrays, name = _arrays("single_layers.npz"), case["name"]
    folder = _folder("single_layers.npz")
    assert folder is not None
    path = folder / "single_onnx" / f"{name.replace('/', '__')}.onnx"
    if not path.is_file():
        pytest.skip("no ONNX file for this layer (adaptive pooling has no operator)")
    canonical = canonicalize(load(path).model)
    wide = as_float64(canonical) if backend == "reference" else canonical
    output = wide.graph.outputs[0].name or ""
    inputs = [v.name or "" for v in wide.graph.inputs]
    model = composite.expand(relevance_of(wide, _rules(name), inputs, output))
    runner: Any = Reference(model) if backend == "reference" else Session(model)
    dtype = np.float64 if backend == "reference" else np.float32
    keys = ["x"] if f"{name}/x" in arrays else ["x0", "x1"]
    feeds = {n: arrays[f"{name}/{k}"].astype(dtype) for n, k in zip(inputs, keys)}
    feeds[f"{output}_cotangent"] = arrays[f"{name}/R_out"].astype(dtype)
    results = runner.run(feeds)
    for n, k in zip(inputs, ["R_in"] if keys == ["x"] else ["R_in0", "R_in1"]):
        expected = arrays[f"{name}/f64/{k}"]
        assert _error(results[f"{n}_gradient"], expected) <= (1e-10 if backend == "reference" else 1e-5)


def test_the_arrays_are_there_or_the_reason_is_told() -> None:
    if not SHARED.is_dir():
        pytest.skip("../shared is absent: only the committed part of the golden arrays was compared")
    assert _networks()
    assert _single()


def test_a_bias_far_above_the_contributions_does_not_blow_up() -> None:
    """In float32 y - b is noise where the bias is a million times what it is added to: no quotient may live on it."""
    drawn = np.random.default_rng(0)
    weights = {
        "u": drawn.standard_normal((4, 3, 3, 3)) * 1e-6,
        "w": drawn.standard_normal((5, 4, 3, 3)),
        "v": drawn.standard_normal((80, 6)),
    }
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> g (float[N,3,4,4] x) => (float[N,6] y) {
        a = Conv<pads=[1,1,1,1]>(x, u)  ra = Relu(a)  c = Conv<pads=[1,1,1,1]>(ra, w, b)
        rc = Relu(c)  f = Flatten(rc)  y = MatMul(f, v) }"""
    )
    tensors = {**weights, "b": np.full(5, 3.0)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(t.astype(np.float32), n) for n, t in tensors.items())
    x = drawn.standard_normal((2, 3, 4, 4)).astype(np.float32)
    exact = Explainer(model, "rap", backend="reference")(x).relevance["x"]
    assert _error(Explainer(model, "rap")(x).relevance["x"], exact) <= 1e-2
