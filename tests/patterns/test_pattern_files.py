"""The patterns file: what it keeps, and how foreign, damaged and hostile files are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pattern_nets import Array, convnet, data, residual
from safetensors.numpy import load_file, save_file

from onnx_explain.errors import ExplainError, InputError
from onnx_explain.fitting import fit_patterns
from onnx_explain.patterns import Patterns, merged, read_patterns


@pytest.fixture(scope="module")
def fitted() -> Patterns:
    return fit_patterns(residual(), data(12, 2, 6, 6))


@pytest.fixture
def file(fitted: Patterns, tmp_path: Path) -> Path:
    path = tmp_path / "p.safetensors"
    fitted.save(path)
    return path


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def written(path: Path, head: Any, body: bytes) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def test_a_file_gives_back_what_was_fitted(fitted: Patterns, file: Path) -> None:
    back = read_patterns(file)
    assert (back.model_sha256, back.samples, back.exact) == (fitted.model_sha256, 12, False)
    for ours, theirs in zip(fitted.weights, back.weights):
        assert (ours.node, ours.sha256, ours.bias_sha256, ours.regime) == (
            theirs.node, theirs.sha256, theirs.bias_sha256, theirs.regime,
        )  # fmt: skip
        for name, array in ours.sums.arrays().items():
            np.testing.assert_array_equal(array, theirs.sums.arrays()[name])
        np.testing.assert_array_equal(fitted.pattern(ours.node, "linear"), back.pattern(ours.node, "linear"))
    np.testing.assert_array_equal(fitted.sums[0].sums.split(), back.sums[0].sums.split())


def test_other_programs_can_read_the_file(file: Path) -> None:
    tensors: dict[str, Array] = load_file(file)
    assert {"0/xy_positive", "2/norm", "s0/uy"} <= set(tensors)


def test_a_truncated_file_is_told_at_every_length(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    for keep in (0, 1, 7, 8, 50, 2000, len(raw) // 2, len(raw) - 1):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(raw[:keep])
        with pytest.raises(InputError, match=r"cut\.safetensors: .*(damaged|no patterns)"):
            read_patterns(cut)


def test_random_damage_never_raises_anything_else(file: Path, tmp_path: Path) -> None:
    raw = file.read_bytes()
    generator = np.random.default_rng(0)
    size = int.from_bytes(raw[:8], "little") + 8
    bad = tmp_path / "bad.safetensors"
    for round_number in range(150):
        hurt = bytearray(raw)
        for place in generator.integers(0, size if round_number % 3 else len(raw), 3):
            hurt[place] = generator.integers(256)
        bad.write_bytes(bytes(hurt))
        try:
            patterns = read_patterns(bad)
            patterns.diagnostics()
        except ExplainError:
            pass


@pytest.mark.parametrize(
    "what",
    [
        "no metadata",
        "another key",
        "not JSON",
        "a list",
        "old version",
        "missing tensor",
        "odd layout",
        "NaN",
        "deep JSON",
        "float32",
    ],
)
def test_a_foreign_file_is_told_in_one_sentence(file: Path, what: str) -> None:
    head, body = header(file)
    kept = json.loads(head["__metadata__"]["onnx_explain.patterns"])
    if what == "no metadata":
        del head["__metadata__"]
    elif what == "another key":
        head["__metadata__"] = {"format": "pt"}
    elif what == "missing tensor":
        name = next(n for n, t in head.items() if n != "__metadata__" and t["data_offsets"][1] == len(body))
        body = body[: head.pop(name)["data_offsets"][0]]
    elif what == "NaN":
        body = np.full(len(body) // 8, np.nan).tobytes()
    elif what == "float32":
        save_file({"0/xy": np.zeros((2, 2), np.float32)}, file, head["__metadata__"])
        head, body = header(file)
    else:
        if what == "old version":
            kept["version"] = 99
        elif what == "odd layout":
            kept["weights"][0]["layout"]["perm"] = [0, 0]
        text = {"not JSON": "{", "a list": "[1]", "deep JSON": "[" * 100000}.get(what, json.dumps(kept))
        head["__metadata__"]["onnx_explain.patterns"] = text
    written(file, head, body)
    with pytest.raises(InputError) as caught:
        read_patterns(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(InputError, match="no such file"):
        read_patterns("nowhere.safetensors")


def test_merging_names_the_weight_that_differs(fitted: Patterns) -> None:
    with pytest.raises(InputError, match="node 'c2' is in one of them alone|weight 'w1' of node 'c1' differs"):
        merged([fitted, fit_patterns(convnet(), data(3, 2, 10, 10))])
    with pytest.raises(InputError, match="weight 'w1' of node 'c1' differs"):
        merged([fit_patterns(convnet(), data(3, 2, 10, 10)), fit_patterns(convnet(seed=1), data(3, 2, 10, 10))])
    with pytest.raises(InputError, match="float64"):
        merged([fitted, fit_patterns(residual(), data(3, 2, 6, 6), backend="reference")])
