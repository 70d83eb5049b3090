"""`onnx-explain shapes` and `onnx-explain evaluate` as a user meets them, SIGKILL included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from onnx_explain import shapes
from onnx_explain.annotations import LabelFile, source_of
from onnx_explain.cli import app

pytest.importorskip("pyarrow", reason="results are Parquet: the extra [eval]")

MODEL = str(resources.files("onnx_explain") / "bundled" / "shapes_cnn.onnx")
QUICK = ("-M", "deletion.step=1024", "-M", "tolerance=0", "--threads", "1")


def invoke(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def evaluate(folder: Path, out: Path, *more: object, metrics: str = "localisation,deletion", code: int = 0) -> Result:
    return invoke(
        "evaluate", MODEL, folder / "images", "--masks", folder / "masks", "--labels-file", folder / "labels.csv",
        "-m", "gradient,lrp-epsilon-plus", "--metrics", metrics, "-o", out, *more, code=code,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "set"
    invoke("shapes", path, "-n", 8, "--seed", 11)
    return path


# ------------------------------------------------------------------------------------------- shapes


def test_shapes_writes_the_series_with_masks_classes_and_boxes(folder: Path) -> None:
    masks, boxes = source_of(folder / "masks", "masks"), source_of(folder / "boxes.json", "boxes")
    labels = LabelFile(folder / "labels.csv").classes
    assert len(list((folder / "images").iterdir())) == len(labels) == 8
    for i, sample in enumerate(shapes.dataset(8, seed=11)):
        name = f"{i:07d}"
        assert np.array_equal(np.asarray(Image.open(folder / "images" / f"{name}.png")), sample.image)
        assert np.array_equal(masks.truth(name, (64, 64)).objects[0].mask, sample.mask)
        [box] = boxes.truth(name, (64, 64)).objects
        assert box.box == tuple(map(float, sample.box))
        assert box.name == labels[name] == shapes.CLASSES[sample.label]


def test_shapes_grows_its_own_set_and_spares_others(tmp_path: Path) -> None:
    document = json.loads(invoke("shapes", tmp_path / "a", "-n", 2, "--size", 32, "--json").stdout)
    assert document["count"] == 2
    before = (tmp_path / "a" / "images" / "0000001.png").read_bytes()
    invoke("shapes", tmp_path / "a", "-n", 4, "--size", 32)
    assert (tmp_path / "a" / "images" / "0000001.png").read_bytes() == before
    assert "is not one of the 2 pictures" in invoke("shapes", tmp_path / "a", "-n", 2, "--size", 32, code=2).stderr
    assert "name a new folder" in invoke("shapes", tmp_path / "a", "-n", 4, "--size", 48, code=2).stderr
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "diary.txt").write_text("mine")
    assert "holds other files" in invoke("shapes", tmp_path / "b", "-n", 2, code=2).stderr
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["diary.txt"]
    assert "size" in invoke("shapes", tmp_path / "c", "-n", 2, "--size", 7, code=2).stderr


# ------------------------------------------------------------------------------------------- evaluate


def test_evaluate_leaves_tables_figures_and_values(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    result = evaluate(folder, tmp_path / "out", *QUICK)
    for word in ("outside-inside-pos", "lower is better", "lrp-epsilon-plus", "8 samples, 2 methods", "the model ran"):
        assert word in result.stdout
    out = tmp_path / "out"
    document = json.loads((out / "summary.json").read_text())
    assert {r["method"] for r in document["results"]} == {"gradient", "lrp-epsilon-plus"}
    [row] = [r for r in document["results"] if (r["metric"], r["method"]) == ("deletion", "gradient")]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["count"] == 8
    assert len(row["curve"]) == 5
    values = [
        v
        for p in sorted((out / "parts").glob("*.parquet"))
        for v in pq.read_table(p, filters=[("metric", "=", "deletion"), ("method", "=", "gradient")])[
            "value"
        ].to_pylist()
    ]
    assert row["value"] == pytest.approx(np.mean(values))
    for name in ("deletion", "deletion-curves", "miou-zero"):
        with Image.open(out / "figures" / f"{name}.png") as figure:
            assert figure.width > 400
        assert (out / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    assert "| gradient |" in (out / "summary.md").read_text()
    assert (out / "summary.csv").read_text().startswith("metric,method,value")


def test_the_document_on_stdout_is_json_alone(folder: Path, tmp_path: Path) -> None:
    result = evaluate(folder, tmp_path / "out", "--json", "--sample", 3, "--seed", 4, *QUICK[4:], metrics="sparseness")
    document = json.loads(result.stdout)
    assert (document["samples"], document["evaluated"], document["faults"]) == (3, 3, [])
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["sample"] == {"samples": 3, "seed": 4}


def test_the_same_command_goes_on_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    evaluate(folder, tmp_path / "out", metrics="sparseness")
    assert "8 of them from an earlier run" in evaluate(folder, tmp_path / "out", metrics="sparseness").stdout
    assert "differs in metrics" in evaluate(folder, tmp_path / "out", metrics="complexity", code=2).stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("-m", "gradeint"), "Did you mean 'gradient'"),
        (("-m", "all"), "'all' alone"),
        (("--metrics", "mious"), "There is no metric"),
        (("-M", "deletion.stride=3"), "No metric here has an option"),
        (("-M", "deletion.step=0"), "at least 1"),
        (("-M", "tolerance=far"), "must be a number"),
        (("-O", "gamma=1"), "option 'gamma'"),
        (("--boxes", "nowhere"), "not both"),
    ],
)
def test_what_is_not_understood_is_one_sentence(folder: Path, tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    result = evaluate(folder, tmp_path / "out", *more, code=2)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_samples_are_named_with_exit_code_2_unless_they_are_skipped(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "set"
    for kind in ("images", "masks"):
        (copy / kind).mkdir(parents=True)
        for file in (folder / kind).iterdir():
            (copy / kind / file.name).write_bytes(file.read_bytes())
    (copy / "labels.csv").write_bytes((folder / "labels.csv").read_bytes())
    (copy / "images" / "0000002.png").write_bytes(b"broken")
    (copy / "masks" / "0000005.png").unlink()
    assert "0000005.png has no mask" in evaluate(copy, tmp_path / "out", metrics="roc-auc", code=2).stderr
    result = evaluate(copy, tmp_path / "out", "--skip-bad", metrics="roc-auc")
    assert "2 left out" in result.stderr
    assert "0000002.png" in result.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["evaluated"] == 6


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this platform")
def test_a_killed_run_goes_on_without_loss_or_double_counting(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable, "-c",
        "from onnx_explain.evaluation import running; running.EVERY_SECONDS = 0.0; from onnx_explain.cli import main; main()",
        "evaluate", MODEL, str(folder / "images"), "--masks", str(folder / "masks"), "-m", "gradient",
        "--metrics", "roc-auc,deletion", "-M", "deletion.step=16", "--batch-size", "1", "--threads", "1", "-o", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.parquet"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = len(list(out.glob("parts/*.parquet")))
    assert 2 <= parts < 8, "killed too late to show anything"
    result = invoke(
        "evaluate", MODEL, folder / "images", "--masks", folder / "masks", "-m", "gradient", "--metrics", "roc-auc,deletion",
        "-M", "deletion.step=16", "--batch-size", 1, "--threads", 1, "-o", out,
    )  # fmt: skip
    assert f"8 samples, {parts} of them from an earlier run" in result.stdout
    rows = json.loads((out / "summary.json").read_text())["results"]
    assert [r["count"] for r in rows] == [8, 8]
    whole = tmp_path / "whole"
    invoke(
        "evaluate", MODEL, folder / "images", "--masks", folder / "masks", "-m", "gradient", "--metrics", "roc-auc,deletion",
        "-M", "deletion.step=16", "--batch-size", 4, "--threads", 1, "-o", whole,
    )  # fmt: skip
    for one, other in zip(rows, json.loads((whole / "summary.json").read_text())["results"]):
        assert one["value"] == pytest.approx(other["value"], rel=1e-4)
