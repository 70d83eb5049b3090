"""Weights in data files: mapped, never copied; what is more than one message holds goes into a data file.

Three gigabytes are a sparse file that takes no room on the disk and that nobody reads. What happens past 2 GB is seen with a
limit of a few kilobytes.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_explain import Explainer, build_vjp
from onnx_explain.backends.onnx import lower
from onnx_explain.errors import OutputError
from onnx_explain.ir import message
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.message import data_folder, serialise
from onnx_explain.ir.model import load
from onnx_explain.methods import resolve
from onnx_explain.relevance import Options, build

WIDTH = 160  # 100 kB a weight: mapped, while smaller ones are read
X = np.random.default_rng(0).random((2, WIDTH), np.float32)


def stack(width: int, layers: int) -> onnx.ModelProto:
    """Gemm and Relu, layer upon layer; the weights are still to be filled in."""
    nodes, p = [], "x"
    for i in range(layers):
        out = f"r{i}" if i < layers - 1 else "y"
        nodes += [helper.make_node("Gemm", [p, f"w{i}"], [f"g{i}"], name=f"fc{i}")]
        nodes += [helper.make_node("Relu", [f"g{i}"], [out], name=f"relu{i}")]
        p = out
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def embedded() -> onnx.ModelProto:
    model, rng = stack(WIDTH, 3), np.random.default_rng(1)
    weights = [rng.normal(0, 0.1, (WIDTH, WIDTH)).astype(np.float32) for _ in range(3)]
    model.graph.initializer.extend(numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    return model


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """The same model with its weights in a data file."""
    folder = tmp_path / "source"
    folder.mkdir()
    onnx.save(embedded(), folder / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=0)
    return folder / "m.onnx"


@pytest.fixture
def small_messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Messages that hold one weight and no more."""
    monkeypatch.setattr(message, "LIMIT", 150_000)
    yield


def run(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": X})))


def test_three_gigabytes_are_loaded_and_built_without_reading_them(tmp_path: Path) -> None:
    width, layers = 16384, 3
    model, length = stack(width, layers), width * width * 4
    with (tmp_path / "m.weights").open("wb") as file:
        file.truncate(layers * length)
    for i in range(layers):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": "m.weights", "offset": i * length, "length": length}.items():
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    composite = resolve("lrp-epsilon-plus").procedure({})
    tracemalloc.start()
    try:
        canonical = canonicalize(load(tmp_path / "m.onnx").model)
        plain = lower(build(canonical, composite, Options(accounting=True)).model)
        data = serialise(plain)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert len(data) < 1 << 20
    assert data_folder(plain) == tmp_path.resolve()


@pytest.mark.parametrize("method", ["gradient", "lrp-epsilon-plus"])
def test_mapped_weights_explain_as_embedded_ones_do(method: str, beside: Path) -> None:
    expected = Explainer(embedded(), method)(X, target=3)
    found = Explainer(beside, method)(X, target=3)
    np.testing.assert_array_equal(found.relevance["x"], expected.relevance["x"])
    exact = Explainer(beside, method, backend="reference")(X, target=3)
    np.testing.assert_allclose(
        found.relevance["x"], exact.relevance["x"], rtol=0, atol=1e-5 * abs(exact.relevance["x"]).max()
    )


def test_a_small_explained_file_holds_its_weights_itself(beside: Path, tmp_path: Path) -> None:
    told = Explainer(beside, "gradient").convert(tmp_path / "e.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.onnx", "source"]
    assert told == onnx.load(tmp_path / "e.onnx")
    assert not any(t.external_data for t in [*told.graph.initializer, *build_vjp(beside).graph.initializer])
    expected = Explainer(embedded(), "gradient")(X)
    np.testing.assert_allclose(run(tmp_path / "e.onnx")["x_relevance"], expected.relevance["x"], rtol=0, atol=1e-6)


@pytest.mark.usefixtures("small_messages")
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_past_the_limit_the_weights_go_into_a_data_file(mapped: bool, fold: bool, beside: Path, tmp_path: Path) -> None:
    source = beside if mapped else embedded()
    expected = Explainer(source, "lrp-epsilon-plus")(X)
    told = Explainer(source, "lrp-epsilon-plus").convert(tmp_path / "e.onnx", fold=fold)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.onnx", "e.onnx.data", "source"]
    assert {e.value for t in told.graph.initializer for e in t.external_data if e.key == "location"} == {"e.onnx.data"}
    assert (tmp_path / "e.onnx").stat().st_size < WIDTH * WIDTH * 4
    r = expected.relevance["x"]
    np.testing.assert_allclose(run(tmp_path / "e.onnx")["x_relevance"], r, rtol=0, atol=1e-5 * abs(r).max())


@pytest.mark.usefixtures("small_messages")
def test_what_one_message_does_not_hold_asks_for_a_path(beside: Path) -> None:
    with pytest.raises(OutputError, match="2 GB"):
        Explainer(beside, "gradient").convert()
    with pytest.raises(OutputError, match="2 GB"):
        build_vjp(beside)
