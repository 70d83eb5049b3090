"""Baselines: what is understood, what is made of the input, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from test_convert import Array, drawn, model

from onnx_explain import InputError, MethodError
from onnx_explain.backends.onnx import Session
from onnx_explain.ir.emit import Emitter
from onnx_explain.rules.baseline import Baseline, parse_baseline


def made(baseline: Baseline, x: Array, *, channel_axis: int | None = 1, batch: str = "N") -> Array:
    """The baseline of `x`, in ONNX Runtime."""
    sizes = ",".join([batch, *map(str, x.shape[1:])])
    graph_model = ir.from_proto(model(f"g (float[{sizes}] x) => (float[{sizes}] y) {{ y = Identity(x) }}"))
    graph_model.graph.outputs.clear()
    op = Emitter(graph_model.graph)
    [value] = graph_model.graph.inputs
    r = baseline.emit(op, value, "x", channel_axis=channel_axis)
    assert r.dtype == value.dtype
    op.output(r, "baseline", r)
    found: Array = Session(graph_model, threads=1).run({"x": x})["baseline"]
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    return found


X = drawn(2, 3, 8, 12)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("zero", 0.0),
        (None, 0.0),
        (0.5, 0.5),
        (2, 2.0),
        ("0.25", 0.25),
        (np.float32(0.5), 0.5),
        (drawn(3, 8, 12), drawn(3, 8, 12)),
        (drawn(1, 3, 8, 12), drawn(3, 8, 12)),
        (drawn(3, 1, 1), drawn(3, 1, 1)),
        (drawn(3, 1, 1).tolist(), drawn(3, 1, 1)),
        ({"x": drawn(3, 8, 12)}, drawn(3, 8, 12)),
        ({"x": 0.5}, 0.5),
        ({"another": 0.5}, 0.0),
    ],
)
@pytest.mark.parametrize("batch", ["N", "2"])
def test_numbers_and_arrays_stand_for_every_sample(given: Any, wanted: Any, batch: str) -> None:
    np.testing.assert_allclose(made(parse_baseline(given), X, batch=batch), np.broadcast_to(wanted, X.shape), rtol=1e-6)


def test_files_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", drawn(3, 8, 12))
    np.savez(tmp_path / "b.npz", x=drawn(3, 8, 12))
    for given in (tmp_path / "b.npy", str(tmp_path / "b.npy"), str(tmp_path / "b.npz")):
        np.testing.assert_allclose(made(parse_baseline(given), X)[1], drawn(3, 8, 12), rtol=1e-6)


# ------------------------------------------------------------------------------------------- blur


def blurred(x: Array, sigma: float, axes: tuple[int, ...]) -> Array:
    """Element by element: every neighbour within the picture, weighed by exp(-d²/2σ²), the weights adding up to one."""
    y = x.astype(float)
    for axis in axes:
        lines = np.moveaxis(y, axis, -1)
        out = np.empty_like(lines)
        for i in range(lines.shape[-1]):
            weights = [np.exp(-((i - j) ** 2) / (2 * sigma**2)) for j in range(lines.shape[-1])]
            out[..., i] = sum(w * lines[..., j] for j, w in enumerate(weights)) / sum(weights)
        y = np.moveaxis(out, -1, axis)
    return y


@pytest.mark.parametrize(
    ("shape", "channel_axis", "axes"),
    [
        ((2, 3, 16), 1, (2,)),
        ((2, 16, 3), 2, (1,)),
        ((2, 3, 8, 12), 1, (2, 3)),
        ((2, 8, 12, 3), 3, (1, 2)),
        ((2, 2, 5, 6, 7), 1, (2, 3, 4)),
        ((2, 5, 6, 7, 2), 4, (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("sigma", [0.7, 3.0, None])
def test_a_blur_smooths_the_spatial_axes_alone(shape: Any, channel_axis: int, axes: Any, sigma: float | None) -> None:
    x = drawn(*shape)
    width = max(shape[a] for a in axes) / 10 if sigma is None else sigma
    found = made(parse_baseline("blur" if sigma is None else f"blur:{sigma}"), x, channel_axis=channel_axis)
    np.testing.assert_allclose(found, blurred(x, width, axes), atol=2e-6)


def test_a_constant_picture_stays_as_it_is_up_to_its_borders() -> None:
    x = np.broadcast_to(np.asarray([1.0, -2.0, 3.0], np.float32)[:, None, None], (2, 3, 8, 12)).copy()
    np.testing.assert_allclose(made(Baseline("blur", sigma=10.0), x), x, rtol=1e-6)


def test_a_wide_blur_leaves_the_mean() -> None:
    found = made(Baseline("blur", sigma=1e4), X)
    np.testing.assert_allclose(found, np.broadcast_to(X.mean((2, 3), keepdims=True), X.shape), atol=1e-5)


# ------------------------------------------------------------------------------------------- noise


def test_noise_lies_between_each_samples_extremes_and_fills_them_evenly() -> None:
    x = np.concatenate([drawn(1, 3, 32, 32), 100 + drawn(1, 3, 32, 32, seed=1)])
    b = made(parse_baseline("noise"), x).reshape(2, -1)
    low, high = x.reshape(2, -1).min(1, keepdims=True), x.reshape(2, -1).max(1, keepdims=True)
    share = (b - low) / (high - low)
    assert share.min() >= 0
    assert share.max() <= 1
    assert np.abs(np.histogram(share[0], 8, (0, 1))[0] / share.shape[1] - 1 / 8).max() < 0.03
    np.testing.assert_allclose(share[0], share[1], atol=1e-3)  # 100 in float32 leaves four digits


def test_noise_depends_on_its_seed_not_on_the_batch_or_the_layout() -> None:
    b = made(parse_baseline("noise:7"), X)
    np.testing.assert_array_equal(made(parse_baseline("noise:7"), X[1:]), b[1:])
    assert np.abs(made(parse_baseline("noise:8"), X) - b).max() > 0.1
    last = made(parse_baseline("noise:7"), X.transpose(0, 2, 3, 1).copy(), channel_axis=3)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), b)


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ("blurr", MethodError, "Did you mean 'blur'"),
        ("blur:0", MethodError, "above 0"),
        ("blur:wide", MethodError, "above 0"),
        ("noise:-1", MethodError, "from 0 on"),
        ("nan", MethodError, "'nan'"),
        (True, MethodError, "True"),
        (float("nan"), InputError, "NaN"),
        (np.asarray([1.0, np.inf]), InputError, r"the first at \[1\]"),
        (np.asarray(["a"]), InputError, "must hold numbers"),
        ([[1.0], [1.0, 2.0]], InputError, "different lengths"),
        (np.zeros((0, 3)), InputError, r"is empty; its shape is \[0, 3\]"),
        ("nowhere.npy", InputError, "there is no such file"),
        ({"x": "blue"}, InputError, "'x' must hold numbers"),
    ],
)
def test_what_is_no_baseline_is_told(given: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        parse_baseline(given)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_array_is_told(tmp_path: Path) -> None:
    for name, content in (("text.npy", b"hello"), ("cut.npz", b"PK\x03\x04 and no more"), ("empty.npy", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"it is no \.npy or \.npz file"):
            parse_baseline(str(tmp_path / name))


@pytest.mark.parametrize("shape", [(3, 8, 11), (2, 3, 8, 12), (1, 1, 3, 8, 12), (7,)])
def test_an_array_that_does_not_fit_names_both_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"'x' has the shape \[.*\[N, 3, 8, 12\]"):
        made(parse_baseline(drawn(*shape)), X)


def test_only_pictures_and_signals_are_blurred() -> None:
    for channel_axis in (1, None):
        with pytest.raises(InputError, match="no spatial axes"):
            made(Baseline("blur"), drawn(2, 5), channel_axis=channel_axis)


def test_baselines_of_unknown_inputs_are_told() -> None:
    with pytest.raises(InputError, match="Did you mean 'left'"):
        parse_baseline({"lft": 1.0}).check(["left", "right"])
    parse_baseline({"left": 1.0}).check(["left", "right"])
