"""One network in several dresses: layout, fixed batch and head change the file, not the values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
import sets

from onnx_explain.data import InputSpec, Preprocessing
from onnx_explain.errors import InputError
from onnx_explain.evaluation import DataSet, Settings, Task, evaluate

pytest.importorskip("pyarrow", reason="results are Parquet: the extra [eval]")

METRICS = ("roc-auc", "deletion", "region-morf", "class-sensitivity", "max-sensitivity", "random-logit")
OPTIONS = {"step": 8, "size": 3, "steps": 4, "count": 2}
SIDE, COUNT = 8, 6


def network(
    path: Path, *, batch: int | None = None, last: bool = False, softmax: bool = False, flat: bool = True
) -> Path:
    """A convolution, a mean and a matrix; `last`: channels last; not `flat`: logits [N, 4, 1, 1]."""
    rng = np.random.default_rng(0)
    size: list[Any] = [batch or "N", SIDE, SIDE, 3] if last else [batch or "N", 3, SIDE, SIDE]
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])] if last else []
    nodes += [
        helper.make_node("Conv", ["t" if last else "x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Conv", ["p", "d"], ["z"]),
    ]
    shape: list[Any] = [batch or "N", 4]
    if flat:
        nodes.append(helper.make_node("Flatten", ["z"], ["l"]))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["l"], ["s"]))
    out = "s" if softmax else "l" if flat else "z"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, shape if flat else [*shape, 1, 1])],
        [
            numpy_helper.from_array(rng.standard_normal((5, 3, 3, 3)).astype(np.float32), "w"),
            numpy_helper.from_array((8 * rng.standard_normal((4, 5, 1, 1))).astype(np.float32), "d"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def run(folder: Path, model: Path, spec: InputSpec) -> dict[tuple[int, str, str], float]:
    rng = np.random.default_rng(1)
    x = rng.random((COUNT, 3, SIDE, SIDE)).astype(np.float32)
    masks = rng.random((COUNT, SIDE, SIDE)) < 0.3
    file = folder / f"{model.stem}.npz"
    np.savez(file, x=x.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else x, masks=masks)
    data = DataSet([file], [spec], Preprocessing())
    task = Task(
        Settings(model, threads=1), data, ["gradient", "lrp-epsilon"], METRICS, folder / model.stem, OPTIONS, batch_size=4,
        score_batch=7,
    )  # fmt: skip
    return sets.values(evaluate(task))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str, str], float]:
    folder = tmp_path_factory.mktemp("plain")
    spec = InputSpec("x", (None, 3, SIDE, SIDE), np.dtype(np.float32))
    return run(folder, network(folder / "plain.onnx"), spec)


@pytest.mark.parametrize(
    "dress",
    [
        {"last": True},
        {"batch": 1},
        {"batch": 4},
        {"softmax": True},
        {"last": True, "batch": 4, "softmax": True},
        {"flat": False},
    ],
    ids=str,
)
def test_layout_batch_and_head_change_no_value(
    tmp_path: Path, plain: dict[tuple[int, str, str], float], dress: dict[str, Any]
) -> None:
    batch, last = dress.get("batch"), dress.get("last", False)
    spec = InputSpec("x", (batch, SIDE, SIDE, 3) if last else (batch, 3, SIDE, SIDE), np.dtype(np.float32))
    found = run(tmp_path, network(tmp_path / "dressed.onnx", **dress), spec)
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), key


def test_a_model_without_a_picture_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.ones((5, 2), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    np.savez(tmp_path / "a.npz", x=np.ones((3, 5), np.float32))
    data = DataSet([tmp_path / "a.npz"], [InputSpec("x", (None, 5), np.dtype(np.float32))], Preprocessing())
    with pytest.raises(InputError, match="no input of the model is one"):
        evaluate(Task(Settings(tmp_path / "m.onnx"), data, ["gradient"], ["sparseness"], tmp_path / "run"))


def test_a_lone_array_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 3, SIDE, SIDE), np.float32))
    spec = InputSpec("x", (None, 3, SIDE, SIDE), np.dtype(np.float32))
    with pytest.raises(InputError, match="into an \\.npz"):
        _ = DataSet([tmp_path / "a.npy"], [spec], Preprocessing()).places
