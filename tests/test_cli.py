"""The command line: every command, its exit codes, its documents, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from onnx_explain import METHODS, __version__
from onnx_explain.cli import app, arguments, comparing, console, explaining, results, strips
from onnx_explain.cli.explaining import Job
from onnx_explain.cli.reading import Given
from onnx_explain.errors import InputError, MethodError, TargetError
from onnx_explain.methods import FAMILIES

RNG = np.random.default_rng(0)
LABELS = ["cat", "dog", "newt"]


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(
        (np.random.default_rng(len(name)).standard_normal(shape) * 0.4).astype(np.float32), name
    )


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    weights: list[onnx.TensorProto],
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, dtype, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def cnn(batch: Any = "N", size: Any = 8, *, softmax: bool = False) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "d"], ["logits"], "dense"),
    ]
    outputs: dict[str, list[Any]] = {"logits": [batch, 3]}
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax"))
        outputs = {"probabilities": [batch, 3]}
    weights = [tensor("w", 4, 3, 3, 3), tensor("b", 4), tensor("d", 4, 3)]
    return model(nodes, {"x": [batch, 3, size, size]}, outputs, weights)


def refused_model() -> onnx.ModelProto:
    """A model with an operator that has no room on the way to its input."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("Det", ["c"], ["y"], "determinant"),
    ]
    return model(nodes, {"x": ["N", 3, 4, 4]}, {"y": ["N", 2]}, [tensor("w", 2, 3, 1, 1)])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, three pictures and labels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    onnx.save(cnn(), "cnn.onnx")
    Path("pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(f"pictures/p{i}.png")
    Path("labels.txt").write_text("\n".join(LABELS) + "\n")
    return tmp_path


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, list(args))
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def document(*args: str, code: int = 0) -> Any:
    result = run(*args, "--json", code=code)
    assert result.stderr == ""
    return json.loads(result.stdout)


def refusal(*args: str) -> str:
    """The one sentence of an error: exit code 2, one line on stderr, nothing on stdout."""
    result = run(*args, code=2)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def loaded(path: str) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def files(folder: str) -> set[str]:
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


# ---- explain


def test_a_picture_leaves_heat_map_overlay_overview_and_arrays_per_method(place: Path) -> None:
    result = run("explain", "cnn.onnx", "pictures/p0.png", "-m", "rap", "-m", "gradient", "-o", "out")
    assert files("out") == {
        "explanations.json",
        *(f"p0/{m}{e}" for m in ("rap", "gradient") for e in (".png", "-overlay.png", ".npz")),
        "p0/overview.png",
    }
    assert "2 explanations of 1 input in out/" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    with Image.open("out/p0/rap.png") as picture:
        assert picture.size == (448, 448)
    with np.load("out/p0/rap.npz") as arrays:
        assert arrays["relevance/x"].shape == (1, 3, 8, 8)
        assert json.loads(str(arrays["metadata"]))["method"] == "rap"


def test_the_relevance_in_the_file_is_that_of_the_explainer(place: Path) -> None:
    from onnx_explain import Explainer

    run("explain", "cnn.onnx", "pictures/p1.png", "-m", "lrp-gamma", "-O", "gamma=0.5", "-t", "2", "-o", "out")
    x = np.asarray(Image.open("pictures/p1.png"), np.float32).transpose(2, 0, 1)[None] / 255
    expected = Explainer("cnn.onnx", "lrp-gamma", gamma=0.5)(x, 2).relevance["x"]
    with np.load("out/p1/lrp-gamma.npz") as arrays:
        np.testing.assert_allclose(arrays["relevance/x"], expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("target", ["argmax", "1", "logits[0,2]", "logits[:,2]"])
def test_no_result_depends_on_the_batch_size(place: Path, target: str) -> None:
    found = []
    for size in ("1", "2", "8"):
        run(
            "explain",
            "cnn.onnx",
            "pictures",
            "-m",
            "lrp-epsilon",
            "-t",
            target,
            "--batch-size",
            size,
            "-o",
            f"out{size}",
        )
        arrays = [loaded(f"out{size}/p{i}/lrp-epsilon.npz") for i in range(3)]
        found.append(np.concatenate([a["relevance/x"] for a in arrays]))
        if target != "argmax":
            assert [int(a["target/index"][0]) for a in arrays] == [1 if target == "1" else 2] * 3
    assert np.abs(found[0]).max() > 0
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-5 * np.abs(found[0]).max())


def test_the_document_names_what_was_explained(place: Path) -> None:
    onnx.save(cnn(softmax=True), "cnn.onnx")
    found = document(
        "explain", "cnn.onnx", "pictures/p0.png", "--labels", "labels.txt", "-t", "argmax", "-t", "newt", "-t", "0,1"
    )
    assert found["onnx_explain"] == __version__
    results = found["results"]
    assert results[0]["label"] == results[0]["predicted_label"] == LABELS[results[0]["index"]]
    assert [r["index"] for r in results[1:]] == [2, 0, 1]
    assert results[1]["element"] == "logits[0,2]"
    assert results[1]["tensor"] == "logits"
    assert sum(r["probability"] for r in results[1:]) == pytest.approx(1, abs=1e-5)
    assert all(r["conservation"] < 1e-4 for r in results)
    assert all(Path(f).is_file() for r in results for f in r["files"].values())
    assert json.loads(Path("explanations/explanations.json").read_text()) == found
    assert len({r["files"]["arrays"] for r in results}) == len(results)


def test_labels_and_preprocessing_are_read_from_the_models_metadata(place: Path) -> None:
    proto = cnn()
    helper.set_model_props(proto, {"labels": ",".join(LABELS), "preprocessing": "0..255"})
    onnx.save(proto, "cnn.onnx")
    found = document("explain", "cnn.onnx", "pictures/p0.png", "-m", "gradient", "-t", "dog")
    again = document(
        "explain", "cnn.onnx", "pictures/p0.png", "-m", "gradient", "-t", "dog", "--preset", "0..1", "-o", "o"
    )
    assert found["results"][0]["label"] == "dog"
    assert abs(found["results"][0]["score"]) > 10 * abs(again["results"][0]["score"])  # values up to 255 rather than 1


def test_labels_of_another_number_of_classes_are_noted(place: Path) -> None:
    Path("labels.txt").write_text("a\nb\n")
    assert "2 labels for 3 classes" in run("explain", "cnn.onnx", "pictures/p0.png", "--labels", "labels.txt").stderr


def test_an_option_goes_to_the_methods_that_have_it(place: Path) -> None:
    found = document("explain", "cnn.onnx", "pictures/p0.png", "-m", "lrp-gamma", "-m", "gradient", "-O", "gamma=0.1")
    assert [r["options"] for r in found["results"]] == [{"gamma": 0.1}, {}]


def test_a_method_named_twice_or_by_an_alias_is_run_once(place: Path) -> None:
    found = document("explain", "cnn.onnx", "pictures/p0.png", "-m", "lrp", "-m", "lrp-epsilon")
    assert [r["method"] for r in found["results"]] == ["lrp-epsilon"]


def test_a_fixed_batch_is_filled_up(place: Path) -> None:
    onnx.save(cnn(), "free.onnx")
    onnx.save(cnn(batch=2), "fixed.onnx")
    free = document("explain", "free.onnx", "pictures", "-o", "free", "-t", "1")
    fixed = document("explain", "fixed.onnx", "pictures", "-o", "fixed", "-t", "1")
    assert [r["name"] for r in fixed["results"]] == ["p0", "p1", "p2"]
    assert [r["score"] for r in fixed["results"]] == pytest.approx([r["score"] for r in free["results"]], rel=1e-5)


def test_open_sizes_are_taken_from_the_pictures_or_stated(place: Path) -> None:
    onnx.save(cnn(size="S"), "cnn.onnx")
    Image.new("RGB", (12, 10), (10, 200, 30)).save("pictures/wide.png")
    run("explain", "cnn.onnx", "pictures", "-o", "own")
    run("explain", "cnn.onnx", "pictures", "-o", "stated", "--input-shape", "x:[N,3,6,7]")
    shapes = [loaded(f"{o}/wide/lrp-epsilon-plus.npz")["relevance/x"].shape for o in ("own", "stated")]
    assert shapes == [(1, 3, 10, 12), (1, 3, 6, 7)]


def test_rows_of_an_array_are_samples_with_names_of_their_own(place: Path) -> None:
    np.save("p0.npy", RNG.random((2, 3, 8, 8), np.float32))
    Image.new("RGB", (8, 8)).save("p0-0.png")
    found = document("explain", "cnn.onnx", "p0.npy", "p0-0.png", "-m", "gradient", "--no-overlay")
    names = [r["name"] for r in found["results"]]
    assert len(set(names)) == 3
    assert not any("overlay" in f for f in files("explanations"))


def test_signals_and_rows_of_features_are_plotted(place: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("ReduceSum", ["c", "a"], ["y"], "sum", keepdims=0),
    ]
    weights = [tensor("w", 2, 1, 3), numpy_helper.from_array(np.array([2]), "a")]
    onnx.save(model(nodes, {"x": ["N", 1, 16]}, {"y": ["N", 2]}, weights), "signal.onnx")
    onnx.save(
        model([helper.make_node("Gemm", ["x", "w"], ["y"])], {"x": ["N", 5]}, {"y": ["N", 2]}, [tensor("w", 5, 2)]),
        "row.onnx",
    )
    np.save("signal.npy", RNG.random((1, 1, 16), np.float32))
    np.save("row.npy", RNG.random((1, 5), np.float32))
    for name in ("signal", "row"):
        run("explain", f"{name}.onnx", f"{name}.npy", "-o", name, "--dark")
        assert files(name) == {"explanations.json", f"{name}/lrp-epsilon-plus.png", f"{name}/lrp-epsilon-plus.npz"}


def test_several_inputs_come_from_one_npz_file(place: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["z", "v"], ["g"], "dense"),
        helper.make_node("Add", ["f", "g"], ["y"], "sum"),
    ]
    inputs: dict[str, list[Any]] = {"x": ["N", 3, 8, 8], "z": ["N", 5]}
    onnx.save(model(nodes, inputs, {"y": ["N", 2]}, [tensor("w", 2, 3, 3, 3), tensor("v", 5, 2)]), "two.onnx")
    np.savez("both.npz", x=RNG.random((2, 3, 8, 8), np.float32), z=RNG.random((2, 5), np.float32))
    run("explain", "two.onnx", "both.npz", "-o", "out")
    assert {f"both-{i}/lrp-epsilon-plus-{n}.png" for i in (0, 1) for n in ("x", "z")} <= files("out")
    assert {"both-0/overview-x.png", "both-1/overview-x.png"} <= files("out")


def test_kept_relevance_is_in_the_arrays(place: Path) -> None:
    run("explain", "cnn.onnx", "pictures/p0.png", "--keep", "r")
    with np.load("explanations/p0/lrp-epsilon-plus.npz") as arrays:
        assert arrays["kept/r"].shape == (1, 4, 8, 8)


def test_a_model_of_integers_is_explained_where_they_become_floats(place: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["f", "w"], ["y"], "dense"),
    ]
    onnx.save(model(nodes, {"x": ["N", 4]}, {"y": ["N", 2]}, [tensor("w", 4, 2)], TensorProto.INT32), "int.onnx")
    np.save("x.npy", np.arange(4, dtype=np.int32)[None])
    run("explain", "int.onnx", "x.npy")
    with np.load("explanations/x/lrp-epsilon-plus.npz") as arrays:
        assert arrays["relevance/f"].shape == (1, 4)


# ---- what explain refuses


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["missing.onnx", "pictures"], "there is no such file"),
        (["labels.txt", "pictures"], "not an ONNX model"),
        (["cut.onnx", "pictures"], "cut.onnx: "),
        (["empty.onnx", "pictures"], "the file is empty"),
        (["pictures", "pictures"], "is a folder"),
        (["cnn.onnx", "missing.png"], "does not exist"),
        (["cnn.onnx", "none*.png"], "holds no picture"),
        (["cnn.onnx", "broken.png"], "not a picture"),
        (["cnn.onnx", "nan.npy"], "NaN"),
        (["cnn.onnx", "last.npy"], "channels last"),
        (["cnn.onnx", "pictures", "-m", "lrp-epsilom"], "Did you mean 'lrp-epsilon'?"),
        (["cnn.onnx", "pictures", "-m", "lrp-gamma", "-O", "gama=1"], "Did you mean 'gamma'?"),
        (["cnn.onnx", "pictures", "-m", "rap", "-m", "gradient", "-O", "gamma=1"], "None of the methods"),
        (["cnn.onnx", "pictures", "-m", "gradient", "-O", "x=1"], "takes no options"),
        (["cnn.onnx", "pictures", "-O", "epsilon"], "key=value"),
        (["cnn.onnx", "pictures", "-O", "epsilon=soft"], "finite number"),
        (["cnn.onnx", "pictures", "-t", "3"], "out of range"),
        (["cnn.onnx", "pictures", "-t", "logits[1,0]"], "sample of its own"),
        (["cnn.onnx", "pictures", "-t", "logits[0,9]"], "out of range"),
        (["cnn.onnx", "pictures", "-t", "nothing[0,1]"], "no output 'nothing'"),
        (["cnn.onnx", "pictures", "-t", "cats"], "no output 'cats'"),
        (["cnn.onnx", "pictures", "-t", "logits[0,1"], "not understood"),
        (["cnn.onnx", "pictures", "-t", "cats", "--labels", "labels.txt"], "Did you mean 'cat'?"),
        (["cnn.onnx", "pictures", "--output", "nothing"], "no output 'nothing'"),
        (["cnn.onnx", "pictures", "--keep", "nothing"], "no tensor 'nothing'"),
        (["cnn.onnx", "pictures", "--labels", "missing.txt"], "label file"),
        (["cnn.onnx", "pictures", "--mean", "a"], "--mean"),
        (["cnn.onnx", "pictures", "--std", "0"], "std"),
        (["cnn.onnx", "pictures", "--input-shape", "x"], "--input-shape"),
        (["cnn.onnx", "pictures", "--input-shape", "q:[1,3,8,8]"], "no input 'q'"),
        (["cnn.onnx", "pictures", "-o", "labels.txt"], "cannot be made"),
        (["cnn.onnx", "pictures", "-o", "labels.txt/sub"], "cannot be made"),
        (["refused.onnx", "square.npy"], "Det"),
    ],
)
def test_a_fault_is_one_sentence(place: Path, args: list[str], said: str) -> None:
    Path("cut.onnx").write_bytes(Path("cnn.onnx").read_bytes()[:300])
    Path("empty.onnx").touch()
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    onnx.save(refused_model(), "refused.onnx")
    x = RNG.random((1, 3, 8, 8), np.float32)
    np.save("last.npy", x.transpose(0, 2, 3, 1))
    np.save("square.npy", x[..., :4, :4])
    x[0, 1, 2, 3] = np.nan
    np.save("nan.npy", x)
    assert said in refusal("explain", *args)


@pytest.mark.parametrize("option", [["--preset", "0..2"], ["--batch-size", "0"], ["--nonsense"], ["--seed", "two"]])
def test_a_wrong_option_is_a_usage_error(place: Path, option: list[str]) -> None:
    assert run("explain", "cnn.onnx", "pictures", *option, code=2).stdout == ""


def test_no_file_that_was_read_is_written_over(place: Path) -> None:
    Path("out/p0").mkdir(parents=True)
    source = Path("out/p0/overview.png")
    source.write_bytes(Path("pictures/p1.png").read_bytes())
    before = source.read_bytes()
    said = refusal("explain", "cnn.onnx", str(source), "pictures/p0.png", "-m", "gradient", "-o", "out")
    assert "one of the files to explain" in said
    assert source.read_bytes() == before


def test_what_was_finished_before_a_failure_stays(place: Path) -> None:
    Path("pictures/p2.png").write_bytes(b"broken")
    refusal("explain", "cnn.onnx", "pictures", "-m", "gradient")
    kinds = (".png", "-overlay.png", ".npz")
    whole = {f"p{i}/{f}" for i in (0, 1) for f in ("overview.png", *(f"gradient{k}" for k in kinds))}
    assert files("explanations") == whole


def test_files_that_cannot_be_read_are_left_out_and_named_where_that_is_asked_for(place: Path) -> None:
    Path("pictures/p1.png").write_bytes(b"broken")
    assert "--skip-bad" in refusal("explain", "cnn.onnx", "pictures", "-m", "gradient")
    told = document("explain", "cnn.onnx", "pictures", "-m", "gradient", "--skip-bad")
    assert [r["name"] for r in told["results"]] == ["p0", "p2"]
    assert told["notes"] == [f"Left out, because they cannot be read: {Path('pictures/p1.png')}."]
    for p in (0, 2):
        Path(f"pictures/p{p}.png").write_bytes(b"broken")
    assert "None of the 3 files" in refusal("explain", "cnn.onnx", "pictures", "-m", "gradient", "--skip-bad")


def test_names_cannot_steer_the_terminal(place: Path) -> None:
    proto = cnn()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        for node in proto.graph.node:
            for names in (node.input, node.output):
                names[:] = [n + "\x1b[31m\nerror" if n == value.name else n for n in names]
        value.name += "\x1b[31m\nerror"
    onnx.save(proto, "evil.onnx")
    for command in (("check", "evil.onnx"), ("convert", "evil.onnx", "out.onnx")):
        result = run(*command)
        assert "\x1b" not in result.stdout
        assert "\nerror" not in result.stdout
    assert "\x1b" not in refusal("check", "evil.onnx", "--output", "\x1b[31mlogits")


def test_relevance_that_is_no_number_names_input_and_method(place: Path) -> None:
    proto = cnn()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight.flat[0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, proto.graph.initializer[0].name))
    onnx.save(proto, "nan.onnx")
    said = refusal("explain", "nan.onnx", "pictures/p0.png", "-m", "gradient")
    assert "pictures/p0.png" in said
    assert "under gradient are NaN or infinite, where the explained value is nan" in said
    assert "no method could explain" in refusal("compare", "nan.onnx", "pictures/p0.png").casefold()


def test_the_prediction_is_told_whatever_is_asked_first(place: Path) -> None:
    args = ("explain", "cnn.onnx", "pictures/p0.png", "-m", "gradient", "-t", "logits[0,1]-logits[0,0]", "-t", "1")
    assert "p0: predicted " in run(*args).stdout


def test_maps_without_a_sign_say_so_and_have_none(place: Path) -> None:
    unsigned = [m for m in METHODS.values() if not m.signed and m.family != "attention"]
    args = [word for m in unsigned for word in ("-m", m.name)]
    for r in document("explain", "cnn.onnx", "pictures/p0.png", *args)["results"]:
        assert loaded(r["files"]["arrays"])["relevance/x"].min() >= 0
        assert comparing.caption(record_like(r)).startswith(results.SIZE_ALONE)
    assert {"saliency", "vargrad", "smoothgrad-squared"} == {m.name for m in unsigned}


def record_like(entry: dict[str, Any]) -> results.Record:
    return results.Record(**{**entry, "files": {}})


@pytest.mark.parametrize(("terminal", "enough"), [("xterm-256color", True), ("xterm", False), ("dumb", False)])
def test_a_text_is_coloured_where_a_terminal_has_the_colours(
    terminal: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", terminal)
    assert strips.coloured() is enough
    monkeypatch.setenv("NO_COLOR", "1")
    assert not strips.coloured()


def test_a_label_as_long_as_a_book_is_cut(place: Path) -> None:
    Path("labels.txt").write_text("\n".join(["word " * 100_000] * 3))
    [r] = document("explain", "cnn.onnx", "pictures/p0.png", "-m", "gradient", "--labels", "labels.txt")["results"]
    assert len(r["label"]) == 200


def test_unwritable_results_are_one_sentence(place: Path) -> None:
    Path("explanations/p0/gradient.png").mkdir(parents=True)  # a folder where the file should go
    assert "cannot be written" in refusal("explain", "cnn.onnx", "pictures/p0.png", "-m", "gradient")
    assert not [f for f in files("explanations") if f.endswith((".part", ".tmp"))]


# ---- convert


def test_the_converted_file_predicts_and_explains_in_plain_onnx_runtime(place: Path) -> None:
    import onnxruntime

    found = document("convert", "cnn.onnx", "explained.onnx", "--method", "lrp-epsilon", "--keep", "r")
    assert [v["name"] for v in found["inputs"]] == ["x", "target"]
    assert [v["name"] for v in found["outputs"]][:2] == ["logits", "x_relevance"]
    assert len(found["outputs"]) == 3
    assert found["bytes"] == Path("explained.onnx").stat().st_size
    assert found["method"] == "lrp-epsilon"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession("explained.onnx", options)
    x = RNG.random((2, 3, 8, 8), np.float32)
    assert session.run(["x_relevance"], {"x": x, "target": np.array([0, 2])})[0].shape == x.shape


@pytest.mark.parametrize("option", ["--functions", "--fold", "--no-check", "--no-logits"])
def test_convert_takes_its_options(place: Path, option: str) -> None:
    onnx.save(cnn(softmax=True), "cnn.onnx")
    result = run("convert", "cnn.onnx", "explained.onnx", "-m", "lrp-epsilon-plus", option)
    assert f"explained  {'probabilities' if option == '--no-logits' else 'logits'} by lrp-epsilon-plus" in result.stdout
    assert ("function" in result.stdout) == (option == "--functions")
    assert ("not checked" in result.stdout) == (option == "--no-check")


def test_convert_never_overwrites_the_source(place: Path) -> None:
    before = Path("cnn.onnx").read_bytes()
    Path("link.onnx").symlink_to("cnn.onnx")
    for out in ("cnn.onnx", "./cnn.onnx", "link.onnx"):
        assert "source" in refusal("convert", "cnn.onnx", out)
    assert Path("cnn.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("out", "said"),
    [("a.png", "suffix"), ("no/a.onnx", "does not exist"), ("labels.txt/a.onnx", ""), ("folder.onnx", "folder")],
)
def test_convert_refuses_a_wrong_place(place: Path, out: str, said: str) -> None:
    Path("folder.onnx").mkdir()
    before = files(".")
    assert said in refusal("convert", "cnn.onnx", out)
    assert files(".") == before


def test_convert_refuses_an_operator_without_a_rule_and_writes_nothing(place: Path) -> None:
    onnx.save(refused_model(), "refused.onnx")
    assert "Det" in refusal("convert", "refused.onnx", "out.onnx")
    assert not Path("out.onnx").exists()


# ---- check and methods


def test_check_shows_role_and_rule_from_target_to_input(place: Path) -> None:
    found = document("check", "cnn.onnx", "-m", "lrp-epsilon-plus")
    assert [(o["op_type"], o["role"], o["rule"]) for o in found["operators"]] == [
        ("Gemm", "Linear", "ε"),
        ("Flatten", "Rearrangement", "undo"),
        ("GlobalAveragePool", "Linear", "ε"),
        ("Relu", "Pointwise", "pass"),
        ("Conv", "Linear", "z⁺"),
    ]
    assert found["supported"] is True
    assert "supported: 5 operators from logits [N, 3] to the inputs" in run("check", "cnn.onnx").stdout


def test_check_exits_with_1_where_an_operator_is_not_supported(place: Path) -> None:
    onnx.save(refused_model(), "refused.onnx")
    found = document("check", "refused.onnx", code=1)
    assert found["supported"] is False
    assert found["unsupported"] == ["determinant"]
    assert "Det" in found["reason"]
    assert "UNSUPPORTED" in run("check", "refused.onnx", code=1).stdout


def test_check_exits_with_2_for_a_bad_file(place: Path) -> None:
    refusal("check", "labels.txt")
    refusal("check", "cnn.onnx", "--method", "nothing")


def test_methods_lists_the_registry(place: Path) -> None:
    found = document("methods")
    assert [m["name"] for m in found] == list(METHODS)
    assert all(m["paper"] and m["meaning"] and m["family"] in FAMILIES for m in found)
    text = run("methods").stdout
    assert all(f"\n{name} " in text for name in METHODS)
    assert max(map(len, text.splitlines())) <= 80


# ---- demo


def test_the_demo_explains_the_bundled_picture(place: Path) -> None:
    result = run("demo", "-o", "shown")
    assert "The bundled network sees: star" in result.stdout
    left = files("shown")
    assert {"overview.png", "explained.onnx", "explanations.json", "rap.png", "rap.npz", "gradient.png"} <= left
    assert max(map(len, result.stdout.splitlines())) <= 80
    records = json.loads(Path("shown/explanations.json").read_text())["results"]
    assert all(r["label"] == "star" for r in records)
    assert all(r["conservation"] < 1e-4 for r in records if r["conserves"])
    onnx.checker.check_model("shown/explained.onnx")


def test_the_demo_finds_the_shape_rather_than_the_background(place: Path) -> None:
    from onnx_explain import shapes

    found = document("demo", "-o", "shown")
    mask = shapes.draw(18, seed=2).mask  # of the bundled picture, see bundled/README.md
    for record in found["results"]:
        if record["method"] in ("lrp-epsilon-plus-flat", "rap", "lrp-epsilon-gamma-box"):
            with np.load(record["files"]["arrays"]) as arrays:
                heat = np.maximum(arrays["relevance/input"][0].sum(0), 0)
            assert heat[mask].sum() / heat.sum() > 2 * mask.mean(), record["method"]


def test_a_demo_that_cannot_be_written_is_one_sentence(place: Path) -> None:
    assert "cannot be made" in refusal("demo", "-o", "labels.txt")


# ---- as a program


def program(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "onnx_explain", *args], capture_output=True, text=True, timeout=120, env=env, **options
    )


def test_python_m_onnx_explain_prints_its_version() -> None:
    result = program("--version")
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, f"onnx-explain {__version__}", "")


def test_help_and_version_load_neither_onnx_nor_numpy_nor_matplotlib() -> None:
    code = "import sys, onnx_explain.cli as c; print([m for m in ('numpy', 'onnx', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_piped_tables_hold_no_escape_codes_and_no_cut_names(place: Path) -> None:
    proto = cnn()
    proto.graph.node[0].name = "a/very/long/name/" * 12
    onnx.save(proto, "long.onnx")
    result = program("check", "long.onnx", env={"COLUMNS": ""})
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert "a/very/long/name/" * 12 in result.stdout


def test_a_terminal_without_greek_gets_question_marks(place: Path) -> None:
    result = program("check", "cnn.onnx", env={"PYTHONIOENCODING": "latin-1"})
    assert result.returncode == 0
    assert "?" in result.stdout


def test_an_error_has_no_traceback(place: Path) -> None:
    result = program("explain", "labels.txt", "pictures")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_ends_with_130_and_one_line(place: Path) -> None:
    for i in range(300):
        Path(f"pictures/more{i}.png").write_bytes(Path("pictures/p0.png").read_bytes())
    command = [
        sys.executable,
        "-m",
        "onnx_explain",
        "explain",
        "cnn.onnx",
        "pictures",
        "-m",
        "gradient",
        "--batch-size",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if Path("explanations").exists() and files("explanations"):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert not [f for f in files("explanations") if f.endswith((".part", ".tmp"))]


# ---- the pieces


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1e-3", 1e-3), (".5", 0.5), ("true", True), ("False", False), ("none", None), ("null", None)]
    + [("[1,2.5]", [1, 2.5]), ("fold", "fold"), ("", ""), ('"a"', "a")],
)
def test_option_values_are_read_by_their_look(text: str, value: Any) -> None:
    found = arguments.options([f"key={text}"])["key"]
    assert found == value
    assert type(found) is type(value)


def test_an_option_is_given_once() -> None:
    with pytest.raises(MethodError, match="twice"):
        arguments.options(["a=1", "a=2"])


def test_input_shapes_leave_the_batch_open() -> None:
    assert arguments.input_shapes(["a:b:[N,3,?,-1]", "c=2,4"]) == {"a:b": [None, 3, None, None], "c": [2, 4]}
    for wrong in ("a:[0,3]", "a", "a:[1,,2]", "a:[1;2]"):
        with pytest.raises(InputError):
            arguments.input_shapes([wrong])


def test_targets_are_told_apart_once_each() -> None:
    found = arguments.aims(["3, 7", "7", "argmax", "dog", "out[0,1]", "out[:,1]", "s[0]"], LABELS)
    assert [a.text for a in found] == ["3", "7", "argmax", "1", "out[0,1]", "s[0]"]
    assert [a.target for a in found[:4]] == [3, 7, None, 1]
    with pytest.raises(TargetError, match="several classes"):
        arguments.aims(["cat"], ["cat", "Cat"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (12.3456, "12.35"), (3.14e-7, "3.1e-07"), (float("nan"), "nan"), (-123456.0, "-1.2e+05")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert console.short(value) == text


def test_json_has_no_numbers_of_its_own() -> None:
    assert json.loads(console.as_json({"a": [float("nan"), np.float32(1), np.int64(2)], "b": float("inf")})) == {
        "a": [None, 1.0, 2],
        "b": None,
    }


def test_memory_stays_bounded_by_the_batch(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("many.npy", RNG.random((20, 3, 8, 8), np.float32))
    seen: list[int] = []
    original = explaining._explain
    monkeypatch.setattr(
        explaining, "_explain", lambda e, batch, *rest: seen.append(len(batch)) or original(e, batch, *rest)
    )
    explaining.run(Job(Path("cnn.onnx"), Given(["many.npy"]), Path("out"), ["gradient"], batch_size=8, overlay=False))
    assert seen == [8, 8, 4]
