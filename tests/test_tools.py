"""The benchmark tools: reduced networks build and run, the statistics are right, failures become lines of the table."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

TOOLS = Path(__file__).resolve().parents[1] / "tools"
PUBLISHED = {  # millions of parameters, as torchvision counts them
    "vgg16": 138.357544,
    "resnet18": 11.689512,
    "resnet50": 25.557032,
    "mobilenet_v2": 3.504872,
    "densenet121": 7.978856,
}


def load(name: str) -> ModuleType:
    """Import a tool by its path under its own name, so that child processes find it too."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module", autouse=True)
def tools_on_the_path() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        yield


@pytest.fixture(scope="module")
def models(tools_on_the_path: None) -> ModuleType:
    return load("make_models")


@pytest.fixture(scope="module")
def bench(tools_on_the_path: None) -> ModuleType:
    return load("bench_cpu")


def logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["logits"], {"input": x})[0]
    return result


# ------------------------------------------------------------------------------------------------------- make_models


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameter_count_is_the_published_one(models: ModuleType, name: str) -> None:
    assert models.NETWORKS[name]().count() == round(PUBLISHED[name] * 1e6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_reduced_network_is_valid_and_its_logits_are_sane_and_depend_on_the_picture(
    models: ModuleType, name: str
) -> None:
    model = models.build(name, size=64, width=0.25, classes=10)
    onnx.checker.check_model(model, full_check=True)
    y = logits(model, np.random.default_rng(0).standard_normal((3, 3, 64, 64), dtype=np.float32))
    assert y.shape == (3, 10)
    assert 0.05 < y.std() < 20
    assert np.abs(y[0] - y[1]).max() > 0.01


def test_a_fixed_batch_stands_in_the_file(models: ModuleType) -> None:
    shape = models.resnet18(batch=2, size=32, width=0.125).graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [2, 3, 32, 32]


def test_batch_normalization_stays_a_node_of_its_own(models: ModuleType) -> None:
    operators = [node.op_type for node in models.resnet50_network().nodes]
    assert operators.count("BatchNormalization") == operators.count("Conv") == 53


def test_the_seed_decides_the_weights(models: ModuleType) -> None:
    first, again, other = (models.resnet18(size=32, width=0.125, seed=seed).SerializeToString() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_command_line_writes_a_model(
    models: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small.onnx"
    assert models.main(["mobilenet_v2", str(out), "--size", "32", "--width", "0.25", "--batch", "1"]) == 0
    assert onnx.load(out).graph.output[0].name == "logits"
    assert "mobilenet_v2" in capsys.readouterr().out


def test_a_size_that_does_not_divide_by_32_is_refused(models: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        models.main(["vgg16", str(tmp_path / "x.onnx"), "--size", "100"])
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- bench_cpu


def explain_by_hand(plain: Path, method: str, out: Path) -> Any:
    """A stand-in for the library: adds the input's negative as a second output; `unknown` fails."""
    if method == "unknown":
        raise KeyError(method)
    model = onnx.load(plain)
    if method == "wrong":
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    model.graph.node.append(helper.make_node("Neg", ["input"], ["input_relevance"]))
    model.graph.output.append(helper.make_tensor_value_info("input_relevance", TensorProto.FLOAT, None))
    onnx.save(model, out)
    return load("bench_cpu").Built(out, 0.25, 0.5)


@pytest.fixture
def plain(models: ModuleType, tmp_path: Path) -> Path:
    path = tmp_path / "plain.onnx"
    onnx.save(models.resnet18(size=32, width=0.125), path)
    return path


def test_the_paired_ratio_cancels_a_slow_spell_of_the_machine(bench: ModuleType) -> None:
    ratio = bench.paired_ratio([10.0, 10.0, 40.0], [20.0, 30.0, 80.0])
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 3.0)


@pytest.mark.parametrize(("plain_ms", "explained_ms"), [([1.0], [1.0, 2.0]), ([], [])])
def test_runs_that_cannot_be_paired_are_refused(
    bench: ModuleType, plain_ms: list[float], explained_ms: list[float]
) -> None:
    with pytest.raises(ValueError, match=r"pair|at least one"):
        bench.paired_ratio(plain_ms, explained_ms)


def test_method_options_are_parsed_as_json_where_they_can_be(bench: ModuleType) -> None:
    assert bench.parse_method("gradient") == ("gradient", {})
    assert bench.parse_method("x:low=-1.5,variant=published") == ("x", {"low": -1.5, "variant": "published"})
    with pytest.raises(ValueError, match="key=value"):
        bench.parse_method("x:low")


def test_a_target_is_met_up_to_its_value(bench: ModuleType) -> None:
    row = bench.Row("vgg16", 1, "gradient", target=2.5, ratio=bench.Spread(2.5, 2.0, 3.0))
    assert row.met is True
    assert bench.Row("vgg16", 1, "gradient", target=2.4, ratio=row.ratio).met is False
    assert bench.Row("vgg16", 1, "saliency", ratio=row.ratio).met is None


def test_building_resnet50_for_more_than_two_seconds_is_too_slow(bench: ModuleType) -> None:
    assert bench.Row("resnet50", 1, "gradient", build_s=2.1).slow_to_build
    assert not bench.Row("resnet50", 1, "gradient", build_s=1.9).slow_to_build


def test_runs_alternate_and_take_time(bench: ModuleType, plain: Path, tmp_path: Path) -> None:
    explained = explain_by_hand(plain, "gradient", tmp_path / "explained.onnx").path
    times = bench.race(plain, explained, 2, 3, 1)
    assert [len(t) for t in times] == [3, 3]
    assert min(min(t) for t in times) > 0


def test_an_explained_model_that_predicts_something_else_is_not_timed(
    bench: ModuleType, plain: Path, tmp_path: Path
) -> None:
    explained = explain_by_hand(plain, "wrong", tmp_path / "explained.onnx").path
    with pytest.raises(RuntimeError, match="differs"):
        bench.race(plain, explained, 1, 1, 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is reset through /proc")
def test_the_peak_counts_what_the_run_allocates(bench: ModuleType, tmp_path: Path) -> None:
    shape: list[str | int] = ["n", 1024, 1024]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([helper.make_node("Neg", ["input"], ["logits"])], "g", inputs, outputs)
    path = tmp_path / "neg.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert 64 <= bench.in_own_process(bench.peak_mib, path, 16, 1) < 160  # the output alone is 16 × 4 MiB


def test_a_failure_in_a_child_process_is_reported_with_its_message(bench: ModuleType) -> None:
    with pytest.raises(RuntimeError, match=r"ValueError: .*at least one"):
        bench.in_own_process(bench.Spread.of, [])


def test_the_bench_measures_what_works_reports_what_fails_and_writes_both_files(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = tmp_path / "docs" / "cpu"
    options = ["--batch", "2", "--rounds", "2", "--threads", "1", "--size", "32", "--width", "0.125"]
    command = ["--models", "resnet18", "--methods", "gradient", "unknown", *options, "--out", str(stem)]
    assert bench.main(command, explain_by_hand) == 1
    measured, failed = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert measured["error"] is None
    assert measured["ratio"]["low"] <= measured["ratio"]["median"] <= measured["ratio"]["high"]
    assert (measured["build_s"], measured["write_s"]) == (0.25, 0.5)
    assert measured["file_mib"] > 0.1
    assert failed["error"] == "KeyError: 'unknown'"
    page = stem.with_suffix(".md").read_text()
    assert "| resnet18 | 2 | gradient |" in page
    assert "failed: KeyError" in page
    assert "gradient" in capsys.readouterr().out


def test_a_bar_inside_a_cell_does_not_break_the_markdown_table(bench: ModuleType) -> None:
    assert bench.markdown(["a"], [["x|y"]], {}, "t").splitlines()[-1] == "| x\\|y |"


# ----------------------------------------------------------------------------------------------------- compare_peers


def test_the_torch_networks_compute_what_the_onnx_files_compute(models: ModuleType, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is only needed by the comparison with the peers")
    peers, path = load("compare_peers"), tmp_path / "resnet50.onnx"
    model = models.resnet50(size=32, classes=10)
    onnx.save(model, path)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        y = peers.torch_network("resnet50", path)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(y, logits(model, x), rtol=0, atol=1e-4 * np.abs(y).max())


def test_the_temporary_explained_files_are_removed(bench: ModuleType, plain: Path) -> None:
    rows = list(bench.Bench([1], 1, 1, explain_by_hand).method("resnet18", plain, "gradient"))
    assert rows[0].error is None
    assert [p.name for p in plain.parent.iterdir() if p != plain] == []


def test_a_page_of_real_models_tells_maps_refusals_and_times(
    tools_on_the_path: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load("real_models")
    text = "g (float[N, 4] x) => (float[N, 3] y) {h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)}"
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in {"w": (4, 5), "v": (5, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.save(model, tmp_path / "mlp.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    entries = [
        {"name": "mlp", "model": "mlp.onnx", "input": {"noise": 0}, "methods": ["gradient", "lrp-epsilon", "grad-cam"]},
        {"name": "broken", "model": "broken.onnx", "input": {"noise": 0}},
    ]
    monkeypatch.setattr(tool, "in_own_process", lambda function, *given: function(*given))
    monkeypatch.setattr(tool, "ROUNDS", 1)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"models": entries}), encoding="utf-8")
    work, out = tmp_path / "work", tmp_path / "page"
    monkeypatch.setattr(sys, "argv", ["", str(plan), "--root", str(tmp_path), "--work", str(work), "--out", str(out)])
    tool.main()
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert "| mlp | 3 | 0e+00 | 2 of 3 |" in page
    assert "| grad-cam | No tensor with spatial positions" in page
    assert "* `broken`:" in page and "not an ONNX model" in page
    assert (work / "mlp-gradient.png").exists()
    found = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert found["models"] == entries
    assert found["results"]["mlp"]["times"]["gradient"]["plain"] > 0
