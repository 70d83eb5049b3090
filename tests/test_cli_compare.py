"""`compare`: one input under many methods, in one figure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import place, refusal, run  # noqa: F401 - `place` is a fixture

from onnx_explain import METHODS

BUNDLED = Path(__file__).parents[1] / "onnx_explain" / "bundled"


@pytest.fixture()
def shapes(place: Path) -> Path:  # noqa: F811
    for name in ("shapes_cnn.onnx", "demo.png"):
        shutil.copy(BUNDLED / name, place / name)
    return place


def test_methods_by_name_are_drawn_and_told(shapes: Path) -> None:
    said = run("compare", "shapes_cnn.onnx", "demo.png", "-m", "rap,deeplift,grad-cam", "-o", "figure.png", "--dark")
    assert all(name in said.stdout for name in ("rap", "deeplift", "grad-cam", "figure.png"))
    with Image.open("figure.png") as figure:
        assert min(figure.size) > 400
    told = json.loads(Path("figure.json").read_text(encoding="utf-8"))
    assert [r["method"] for r in told["results"]] == ["rap", "deeplift", "grad-cam"]
    rap, deeplift, cam = told["results"]
    assert rap["conservation"] < 1e-3
    assert abs(deeplift["completeness"]) < 1e-3
    assert cam["layer"] == "head.conv.bn.relu"
    assert told["left_out"] == {}


def test_all_leaves_out_what_cannot_answer_and_names_it(shapes: Path) -> None:
    few = ("-O", "steps=2", "-O", "samples=2", "-O", "masks=8", "-O", "window=32", "-O", "stride=32", "-O", "grid=2")
    said = run("compare", "shapes_cnn.onnx", "demo.png", *few, "-o", "all.svg", "--json")
    told = json.loads(said.stdout)
    answered = {r["method"] for r in told["results"]}
    assert answered | set(told["left_out"]) == set(METHODS)
    assert {"expected-gradients", "pattern-net", "pattern-attribution"} <= set(told["left_out"])
    assert "fit-patterns" in told["left_out"]["pattern-net"]
    assert Path("all.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_method_asked_for_by_name_that_cannot_answer_is_an_error(shapes: Path) -> None:
    assert "fit-patterns" in refusal("compare", "shapes_cnn.onnx", "demo.png", "-m", "rap,pattern-net", "-o", "f.png")
    assert not Path("f.png").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("demo.png", "-o", "figure.gif"), ".png, .svg or .pdf"),
        (("demo.png", "-m", "rap", "-o", "demo.png"), "one of the files to read"),
        (("pictures", "-m", "rap"), "one input"),
        (("demo.png", "-m", "rap", "-t", "1,2"), "one target"),
        (("demo.png", "-m", "rapp"), "'rap'"),
        (("demo.png", "-m", "rap", "--hostile", "3"), "hostile"),
        (("demo.png", "-m", "rsp", "--hostile", "three"), "class indices"),
        (("demo.png", "-m", "rsp", "--hostile", "3", "-t", "3"), "cannot be hostile too"),
        (("demo.png", "-m", "rsp", "--hostile", "99"), "there is no class 99"),
        (("demo.png", "-m", "grad-cam", "-O", "layer=nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(shapes: Path, arguments: tuple[str, ...], told: str) -> None:
    sentence = refusal("compare", "shapes_cnn.onnx", *arguments)
    assert told in sentence
    assert not any(Path(n).exists() for n in ("compare.png", "compare.json", "figure.gif"))


def test_several_samples_are_not_one_input(shapes: Path) -> None:
    np.save("two.npy", np.zeros((2, 3, 64, 64), np.float32))
    assert "several samples" in refusal("compare", "shapes_cnn.onnx", "two.npy", "-m", "rap")
