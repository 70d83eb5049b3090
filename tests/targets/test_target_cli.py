"""Expressions and presets on the command line: tables, documents, files, labels, converted models, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from drawn_expressions import drawn, model
from PIL import Image
from typer.testing import CliRunner

from onnx_explain.cli import app, arguments
from onnx_explain.errors import TargetError

LABELS = ["cat", "dog", "traffic light"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a detector of three classes [N, 16, 5 + 3], two pictures and labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    body = """
        h = Conv<strides=[2,2]>(x, w)
        r = Relu(h)
        o = Conv(r, k)
        f = Reshape(o, rows)
        t = Transpose<perm=[0,2,1]>(f)
        boxes, rest = Split<axis=2>(t, parts)
        s = Sigmoid(rest)
        out = Concat<axis=2>(boxes, s)
    """
    proto = model(
        f"g (float[N,3,8,8] x) => (float[N,16,8] out) {{ {body} }}",
        w=drawn(6, 3, 2, 2), k=drawn(8, 6, 1, 1, seed=1), rows=np.array([0, 8, 16]), parts=np.array([4, 4]),
    )  # fmt: skip
    onnx.save(proto, "net.onnx")
    Path("pictures").mkdir()
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)).save(f"pictures/p{i}.png")
    Path("labels.txt").write_text("\n".join(LABELS) + "\n")
    return tmp_path


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_a_preset_is_explained_and_shown_as_the_expression_it_stands_for(place: Path) -> None:
    common = ("explain", "net.onnx", "pictures", "-m", "gradient", "-t", "yolo:dog", "-t", "out[0,:,4].max()")
    table = run(*common, "--labels", "labels.txt")
    assert "dog (yolo:1)" in table.stdout
    assert "yolo:1 is (out[:,:,4]*out[:,:,6]).max()." in " ".join(table.stderr.split())
    found = json.loads(run(*common, "--labels", "labels.txt", "--json").stdout)["results"]
    assert [r["target"] for r in found] == ["yolo:1", "out[0,:,4].max()"] * 2
    assert found[0]["expression"] == "(out[:,:,4]*out[:,:,6]).max()"
    assert found[0]["label"] == "dog"
    assert found[0]["reads"] == ["out"]
    assert found[1]["label"] is None
    assert Path("explanations/p0/gradient-yolo-1.npz").is_file()
    with np.load("explanations/p1/gradient-yolo-1.npz") as arrays:
        out = arrays["output/out"]
        np.testing.assert_allclose(arrays["target/score"], (out[..., 4] * out[..., 6]).max(1), rtol=1e-5)
        assert json.loads(str(arrays["metadata"]))["expression"] == found[0]["expression"]


def test_every_input_is_its_own_sample_whatever_the_batch(place: Path) -> None:
    found = []
    for target, size in (("out[0,:,4].max() - out[:,:,5].max()", "1"), ("out[:,:,4].max() - out[:,:,5].max()", "8")):
        run("explain", "net.onnx", "pictures", "-m", "gradient", "-t", target, "--batch-size", size, "-o", f"o{size}")
        with np.load(f"o{size}/p1/gradient.npz") as arrays:
            found.append(arrays["relevance/x"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert "of its own" in run("explain", "net.onnx", "pictures", "-t", "out[1,:,4].max()", code=2).stderr


def test_inputs_that_fulfil_no_condition_are_named(place: Path) -> None:
    told = run("explain", "net.onnx", "pictures", "-m", "gradient", "-t", "out[0,:,4].where(out[0,:,4]>2).max()").stderr
    assert "in p0, p1 nothing fulfils a condition" in " ".join(told.split())


def test_compare_and_check_take_an_expression(place: Path) -> None:
    picture, target = "pictures/p0.png", "out[0,:,[5,6]].max()"
    run("compare", "net.onnx", picture, "-m", "gradient,lrp-epsilon", "-t", target, "-o", "c.png")
    results = json.loads(Path("c.json").read_text())["results"]
    assert [r["expression"] for r in results] == [target] * 2
    checked = json.loads(run("check", "net.onnx", "-t", target, "--json").stdout)
    assert checked["supported"]
    assert checked["explained"] == {"tensor": target, "shape": "[N]"}
    assert any(row["op_type"] == "ReduceMax" for row in checked["operators"])


def test_convert_bakes_an_expression_in(place: Path) -> None:
    written = json.loads(run("convert", "net.onnx", "e.onnx", "-t", "yolo:1", "--json").stdout)
    assert written["expression"] == "(out[:,:,4]*out[:,:,6]).max()"
    assert [v["name"] for v in written["inputs"]] == ["x"]
    assert "explained  (out[:,:,4]*out[:,:,6]).max() by" in run("convert", "net.onnx", "e.onnx", "-t", "yolo:1").stdout
    indexed = json.loads(run("convert", "net.onnx", "i.onnx", "-t", "out[0,3,6]", "--json").stdout)
    assert [v["name"] for v in indexed["inputs"]] == ["x", "target"]
    assert "several" in run("convert", "net.onnx", "n.onnx", "-t", "1,2", code=2).stderr
    assert not Path("n.onnx").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("yolo:person", "Give its index, or --labels"),
        ("yolo:9", "3 classes"),
        ("segmentation:1", "no output looks like"),
        ("out[0,:,4]", "leaves [N, 16]"),
        ("out[0,:,4].max(", "not understood"),
        ("(" * 2_000, "not understood"),
        ("x" * 20_000, "20000 characters"),
    ],
    ids=lambda text: text[:20],
)
def test_a_fault_in_a_target_is_one_sentence(place: Path, target: str, said: str) -> None:
    result = run("explain", "net.onnx", "pictures", "-m", "gradient", "-t", target, code=2)
    assert result.stdout == ""
    assert said in " ".join(result.stderr.split())
    assert result.stderr.startswith("error: ")


def test_labels_come_before_presets_and_expressions() -> None:
    assert arguments.aims(["yolo:1"], ["a", "yolo:1"])[0].target == 1
    assert arguments.aims(["Traffic Light"], LABELS)[0].target == 2
    assert arguments.aims(["yolo:traffic light"], LABELS)[0].text == "yolo:2"
    with pytest.raises(TargetError, match="Did you mean 'dog'"):
        arguments.aims(["dgo"], LABELS)
    with pytest.raises(TargetError, match="Did you mean 'dog'"):
        arguments.aims(["yolo:dgo"], LABELS)


@pytest.mark.parametrize(
    "names", ["{0: 'cat', 1: 'dog', 2: \"driver's seat\"}", '{"0": "cat", "1": "dog", "2": "driver\'s seat"}']
)
def test_class_names_that_a_detector_was_exported_with_are_labels(place: Path, names: str) -> None:
    proto = onnx.load("net.onnx")
    onnx.helper.set_model_props(proto, {"names": names})
    onnx.save(proto, "named.onnx")
    found = json.loads(
        run("explain", "named.onnx", "pictures/p0.png", "-m", "gradient", "-t", "yolo:driver's seat", "--json").stdout
    )
    assert found["results"][0]["label"] == "driver's seat"
    assert found["results"][0]["target"] == "yolo:2"


@pytest.mark.parametrize("names", ["{0: 'cat', 2: 'dog'}", "person", "{", "{0: }"])
def test_names_that_are_no_list_of_classes_are_none(place: Path, names: str) -> None:
    proto = onnx.load("net.onnx")
    onnx.helper.set_model_props(proto, {"names": names})
    onnx.save(proto, "named.onnx")
    said = run("explain", "named.onnx", "pictures/p0.png", "-m", "gradient", "-t", "yolo:dog", code=2).stderr
    assert "There is no label 'dog'" in said
