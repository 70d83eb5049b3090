"""`fit-patterns`, `merge-patterns`, `pattern-quality` and `--patterns`: from the command line, killed, resumed, misused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner, Result

from onnx_explain.cli import app
from onnx_explain.patterns import read_patterns as read

Array = np.ndarray[Any, Any]


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "120"})


def refused(*arguments: Any) -> str:
    found = run(*arguments)
    assert found.exit_code == 2, found.output
    assert "Traceback" not in found.output and found.stderr.count("error:") == 1
    return " ".join(found.stderr.split())


def net(seed: int = 0) -> onnx.ModelProto:
    """Conv Relu MaxPool Conv Relu GlobalAveragePool Flatten Gemm on pictures [N, 3, 12, 12]."""
    generator = np.random.default_rng(seed)
    shapes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (5, 4, 3, 3), "w3": (3, 5)}
    weights = [
        numpy_helper.from_array((generator.standard_normal(s) * 0.5).astype(np.float32), n) for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], "conv2"),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], "dense", transB=1),
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3, 12, 12]), ("y", ["N", 3]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "net.onnx")
    folder = tmp_path / "train"
    folder.mkdir()
    generator = np.random.default_rng(1)
    for i in range(20):
        Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def fitted(place: Path) -> Path:
    out = place / "p.safetensors"
    found = run("fit-patterns", place / "net.onnx", place / "train", "-o", out)
    assert found.exit_code == 0, found.output
    return out


def test_a_folder_of_pictures_is_fitted_and_told(place: Path) -> None:
    out = place / "p.safetensors"
    found = run("fit-patterns", place / "net.onnx", place / "train", "-o", out)
    assert found.exit_code == 0 and "3 weights fitted on 20 samples" in " ".join(found.stdout.split())
    document = json.loads((place / "p.json").read_text())
    assert [w["node"] for w in document["weights"]] == ["conv1", "conv2", "dense"]
    assert document["weights"][0]["patches"] == 20 * 144
    assert not (place / "p.safetensors.checkpoint").exists()
    assert (
        json.loads(run("fit-patterns", place / "net.onnx", place / "train", "-o", out, "--json").stdout)["samples"]
        == 20
    )


def test_patterns_explain_and_convert(place: Path) -> None:
    out = fitted(place)
    for method in ("pattern-net", "pattern-attribution"):
        one = place / "train" / "3.png"
        found = run("explain", place / "net.onnx", one, "-m", method, "--patterns", out, "-o", place / method)
        assert found.exit_code == 0, found.output
        explained = place / f"{method}.onnx"
        found = run("convert", place / "net.onnx", explained, "-m", method, "--patterns", out)
        assert found.exit_code == 0, found.output
        with np.load(place / method / "3" / f"{method}.npz") as arrays:
            expected = arrays["relevance/x"]
        session = onnxruntime.InferenceSession(str(explained), providers=["CPUExecutionProvider"])
        with Image.open(one) as picture:
            x = np.asarray(picture).transpose(2, 0, 1)[None].astype(np.float32) / 255
        (relevance,) = session.run(["x_relevance"], {"x": x})
        assert np.abs(relevance - expected).max() <= 1e-6 * np.abs(expected).max()


def test_merged_files_equal_one_pass(place: Path) -> None:
    whole = read(fitted(place))
    parts = []
    for name, chosen in (("a", range(7)), ("b", range(7, 20))):
        files = [place / "train" / f"{i}.png" for i in chosen]
        parts.append(place / f"{name}.safetensors")
        assert run("fit-patterns", place / "net.onnx", *files, "-o", parts[-1]).exit_code == 0
    found = run("merge-patterns", *parts, "-o", place / "c.safetensors")
    assert found.exit_code == 0, found.output
    together = read(place / "c.safetensors")
    assert together.samples == 20
    for w in whole.weights:
        expected = whole.pattern(w.node, "positive")
        assert np.abs(together.pattern(w.node, "positive") - expected).max() <= 1e-10 * np.abs(expected).max()


def test_quality_is_scored_printed_and_drawn(place: Path) -> None:
    out = fitted(place)
    plot = place / "q.png"
    found = run("pattern-quality", place / "net.onnx", out, place / "train", "--plot", plot, "--dark")
    assert found.exit_code == 0 and "two-component" in found.stdout
    with Image.open(plot) as drawn:
        assert drawn.size[0] > 600
    document = json.loads(
        run("pattern-quality", place / "net.onnx", out, place / "train", "--json", "--largest", "30").stdout
    )
    first, second, _ = document["layers"]
    assert first["mean"]["linear"] > first["mean"]["filter"] > -0.05
    assert "more than 30" in second["skipped"] and not second["rho"]


# -- killed and resumed

SLOW = """
import sys, time
from onnx_explain import data
load = data.load
from onnx_explain.fitting import samples
def slow(path, *a, **k):
    time.sleep(0.05)
    return load(path, *a, **k)
samples.load = slow
from onnx_explain.cli import main
sys.argv = ["onnx-explain", *sys.argv[1:]]
main()
"""


def started(place: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    arguments = [
        "fit-patterns",
        str(place / "net.onnx"),
        str(place / "train"),
        "-o",
        str(out),
        "--batch-size",
        "2",
        "--every",
        "0",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("memory", ["2GB", "2000"])
def test_a_run_that_was_stopped_goes_on_with_the_same_result(place: Path, number: signal.Signals, memory: str) -> None:
    """In one pass and in several: equal bit for bit to a run that nobody stopped."""
    plain, out = place / "plain.safetensors", place / "p.safetensors"
    command = ("fit-patterns", place / "net.onnx", place / "train", "--batch-size", 2, "--memory", memory, "-o")
    assert run(*command, plain).exit_code == 0
    process = started(place, out, "--memory", memory)
    folder = place / "p.safetensors.checkpoint"
    until(folder / ("group-0.safetensors" if memory == "2GB" else "group-1.safetensors"), process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), told
    assert folder.is_dir() and not out.exists()
    if number != signal.SIGKILL:
        assert "goes on from there" in " ".join(told.split()) and "Traceback" not in told
    found = run(*command, out)
    assert found.exit_code == 0 and "went on from a checkpoint" in " ".join(found.stdout.split()), found.output
    assert not folder.exists()
    first, second = read(plain), read(out)
    assert first.samples == second.samples == 20
    for a, b in zip(first.weights, second.weights):
        for name, array in a.sums.arrays().items():
            np.testing.assert_array_equal(array, b.sums.arrays()[name], err_msg=f"{a.node} {name}")


def test_a_checkpoint_of_another_run_is_refused(place: Path) -> None:
    out = place / "p.safetensors"
    process = started(place, out)
    until(place / "p.safetensors.checkpoint" / "group-0.safetensors", process)
    process.kill()
    process.communicate()
    told = refused("fit-patterns", place / "net.onnx", place / "train", "-o", out, "--batch-size", 4)
    assert "checkpoint of another run: its options differ" in told
    (place / "train" / "19.png").unlink()
    assert "its data differs" in refused(
        "fit-patterns", place / "net.onnx", place / "train", "-o", out, "--batch-size", 2
    )
    assert (place / "p.safetensors.checkpoint" / "group-0.safetensors").exists()


def test_an_unreadable_file_is_named_and_only_skipped_when_asked(place: Path) -> None:
    (place / "train" / "12.png").write_bytes(b"not a picture")
    (place / "train" / "15.npy").write_bytes(b"not an array")
    out = place / "p.safetensors"
    command = ("fit-patterns", place / "net.onnx", place / "train", "-o", out, "--batch-size", 4)
    told = refused(*command)
    assert "12.png" in told and "--skip-bad" in told
    assert (place / "p.safetensors.checkpoint").is_dir()  # nothing is lost: it goes on with --skip-bad
    found = run(*command, "--skip-bad")
    assert found.exit_code == 0, found.output
    assert "2 unreadable files left out" in " ".join(found.stderr.split())
    document = json.loads((place / "p.json").read_text())
    assert [Path(p).name for p in document["skipped"]] == ["12.png", "15.npy"] and document["samples"] == 19
    clean = place / "clean.safetensors"
    names = [place / "train" / f"{i}.png" for i in range(20) if i != 12]
    assert run("fit-patterns", place / "net.onnx", *names, "-o", clean).exit_code == 0
    for a, b in zip(read(clean).weights, read(out).weights):
        np.testing.assert_allclose(a.sums.xy, b.sums.pivoted(a.sums.pivot).xy, rtol=1e-9, atol=1e-9)


def test_a_folder_of_nothing_but_bad_files_is_refused(place: Path) -> None:
    bad = place / "bad"
    bad.mkdir()
    for i in range(3):
        (bad / f"{i}.png").write_bytes(b"no")
    told = refused("fit-patterns", place / "net.onnx", bad, "-o", place / "p.safetensors", "--skip-bad")
    assert "all 3 files are unreadable" in told


# -- faults


def test_faults_are_one_sentence_and_lose_nothing(place: Path) -> None:
    out = fitted(place)
    before = out.read_bytes()
    model, train = place / "net.onnx", place / "train"
    (place / "empty").mkdir()
    np.save(place / "wide.npy", np.zeros((4, 3, 9, 9), np.float32))
    np.save(place / "nan.npy", np.full((4, 3, 12, 12), np.nan, np.float32))
    onnx.save(net(1), place / "other.onnx")
    cases = {
        ("fit-patterns", model, place / "empty", "-o", out): "holds no picture",
        ("fit-patterns", model, place / "nowhere", "-o", out): "does not exist",
        ("fit-patterns", model, place / "wide.npy", "-o", out): "wide.npy",
        ("fit-patterns", model, place / "nan.npy", "-o", out): "NaN",
        ("fit-patterns", model, train, "-o", place / "p.bin"): ".safetensors",
        ("fit-patterns", model, train, "-o", place / "no" / "p.safetensors"): "folder does not exist",
        ("fit-patterns", model, train, "-o", out, "--memory", "lots"): "--memory",
        ("fit-patterns", model, train, "-o", out, "--output", "z"): "no output 'z'",
        ("merge-patterns", out, "-o", place / "c.safetensors"): "two files",
        ("merge-patterns", out, model, "-o", place / "c.safetensors"): "not a readable safetensors file",
        ("explain", model, train, "-m", "pattern-net", "-o", place / "e"): "fit-patterns",
        ("explain", place / "other.onnx", train, "-m", "pattern-net", "--patterns", out, "-o", place / "e"): "differs from the one",
        ("convert", place / "other.onnx", place / "e.onnx", "-m", "pattern-net", "--patterns", out): "differs from the one",
        ("convert", model, place / "e.onnx", "-m", "rap", "--patterns", out): "no option 'patterns'",
        ("pattern-quality", place / "other.onnx", out, train): "differs from the one",
        ("pattern-quality", model, train / "1.png", train): "not a readable safetensors file",
        ("pattern-quality", model, out, train / "1.png"): "0 samples",
        ("pattern-quality", model, out, train, "--split", "1"): "between 0 and 1",
    }  # fmt: skip
    for arguments, told in cases.items():
        assert told in refused(*arguments), arguments
    assert out.read_bytes() == before and not (place / "e.onnx").exists()
