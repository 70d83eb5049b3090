"""A model as a score, and the package's front."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import onnx_explain.metrics as metrics
from onnx_explain import InputError, TargetError
from onnx_explain.metrics import OnnxScore, deletion, probabilities, scores_of, softmax

VGGISH = Path(__file__).parents[1] / "golden" / "vggish.onnx"
X = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)


def made(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')


def test_a_path_bytes_and_a_proto_score_alike() -> None:
    by_path = OnnxScore(VGGISH, threads=1)(X)
    assert by_path.dtype == np.float64
    np.testing.assert_array_equal(by_path, OnnxScore(VGGISH.read_bytes(), threads=1)(X))
    np.testing.assert_array_equal(by_path, OnnxScore(onnx.load(VGGISH), threads=1)(X))
    np.testing.assert_allclose(OnnxScore(VGGISH, apply_softmax=True, threads=1)(X), softmax(by_path))
    np.testing.assert_allclose(probabilities(OnnxScore(VGGISH, threads=1))(X), softmax(by_path))


def test_rows_count_what_went_through_the_model() -> None:
    score = OnnxScore(VGGISH, apply_softmax=True, threads=1)
    deletion(score, X, relevance=X.sum(1), step=200, batch_size=4)
    assert score.rows == 3 * (6 + 1)
    assert len(scores_of(score, X, batch_size=2)) == 3
    assert scores_of(score, X[:0]).shape == (0, 0)


def test_a_fixed_batch_is_run_in_its_pieces() -> None:
    model = made("g (float[2, 3, 4, 4] x) => (float[2, 3, 1, 1] y) { y = GlobalAveragePool(x) }")
    score = OnnxScore(model, threads=1)
    x = X[:, :, :4, :4].repeat(2, 0)
    np.testing.assert_allclose(score(x), x.mean((2, 3)), rtol=1e-5)
    with pytest.raises(InputError, match="fixed to 2"):
        score(x[:3])


def test_outputs_are_picked_by_name_and_maps_are_no_scores() -> None:
    model = made(
        "g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] map, float[N, 3, 1, 1] y)"
        " { map = Relu(x) y = GlobalAveragePool(x) }"
    )
    assert OnnxScore(model, output="y", threads=1)(X[:, :, :4, :4]).shape == (3, 3)
    with pytest.raises(InputError, match=r"\[3, classes\]"):
        scores_of(OnnxScore(model, threads=1), X[:, :, :4, :4])
    with pytest.raises(TargetError, match="no output 'z'"):
        OnnxScore(model, output="z")
    two = made("g (float[N, 3] x, float[N, 3] z) => (float[N, 3] y) { y = Add(x, z) }")
    with pytest.raises(InputError, match="one input"):
        OnnxScore(two)


def test_every_public_name_is_there_and_documented() -> None:
    for name in metrics.__all__:
        assert getattr(metrics, name).__doc__, name
        assert callable(getattr(metrics, name)), f"{name} is hidden by a module of its name"
    assert set(metrics.__all__) <= set(dir(metrics))
    with pytest.raises(AttributeError, match="accuracy"):
        metrics.accuracy  # noqa: B018


def test_importing_the_package_loads_neither_numpy_nor_onnx() -> None:
    code = (
        "import sys, onnx_explain.metrics; "
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'quantus') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_measures_of_maps_load_no_onnx() -> None:
    code = (
        "import sys; from onnx_explain.metrics import roc_auc, deletion, infidelity, segmentation, ssim, interval; "
        "print([m for m in ('onnx', 'onnxruntime', 'scipy', 'sklearn', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
