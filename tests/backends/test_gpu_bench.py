"""The whole-method part of the GPU benchmark, exercised on the stand-in: it compares first, and times what is right."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

os.environ["TRITON_INTERPRET"] = "1"  # read when they are first imported
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
pytest.importorskip("numba", reason="numba (extra [test]) is not installed")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tools")]

import bench_kernels  # noqa: E402
import bench_methods  # noqa: E402
from gpu_stand_in import stand_in  # noqa: E402
from onnx_explain_kernels.geometry import Conv, Pool  # noqa: E402


def tiny(name: str, size: int = 6, width: float = 1.0) -> onnx.ModelProto:
    """Two convolutions, a pool and a head on [N, 3, size, size]."""
    rng = np.random.default_rng(0)
    sizes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (5, 4, 3, 3), "w3": (2, 5)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in sizes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="one", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="one/relu"),
        helper.make_node("MaxPool", ["r1"], ["p1"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], name="two"),
        helper.make_node("Relu", ["c2"], ["r2"], name="two/relu"),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3"], ["y"], name="head", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_methods.make_models, "build", tiny)
    monkeypatch.setattr(bench_methods, "TARGETS", {"lrp-epsilon": 2.5})


def peer_of(network: str, method: str, model: onnx.ModelProto, x: np.ndarray) -> Any:
    return ("A peer", lambda: None) if method == "lrp-epsilon" else None


def test_methods_are_compared_then_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, device = stand_in(tmp_path)
    monkeypatch.setattr(bench_methods, "TARGETS", {"lrp-epsilon": 2.5, "gradient": None})
    found, other = bench_methods.timed(device, ["vgg16:2:6"], 1, 1e-5, peer_of=peer_of)
    assert found.problem == other.problem == ""
    assert 0 < found.error <= 1e-5
    assert min(found.forward, found.onnx, found.kernels, found.ratio, found.gain) > 0
    assert found.peer_gain is not None
    assert (other.peer, other.peer_gain) == (None, None)
    assert found.workspace > 0
    planned = {p.specialisation.digest for p in bench_methods.plans(["vgg16:2:6"], [device], 90, ["ieee"])}
    assert {p.specialisation.digest for p in device.kernels.plans} == planned, (
        "what is compiled beforehand is what runs"
    )
    assert "vgg16 | 2 | lrp-epsilon | ieee" in "\n".join(bench_methods.table([found]))
    fake.runs = None  # kernels that write nothing are wrong
    wrong = next(bench_methods.timed(device, ["vgg16:2:6"], 1, 1e-5))
    assert "not timed" in wrong.problem
    assert wrong.kernels == 0
    raw = next(bench_methods.timed(device, ["vgg16:2:6"], 1, 1e-5, compiled=lambda plan: False))
    assert re.fullmatch(r"left out: (\d+) of \1 kernels were not compiled in time", raw.problem)
    late = next(bench_methods.timed(device, ["vgg16:2:6"], 1, 1e-5, late=lambda: True))
    assert "no time was left" in bench_methods.row(late)


def test_a_method_beyond_its_error_is_timed_and_marked(tmp_path: Path) -> None:
    _, device = stand_in(tmp_path, precision="tf32")
    found = next(bench_methods.timed(device, ["vgg16:2:6"], 1, 1e-9, peer_of=lambda *_: ("A peer", lambda: 2.5)))
    assert found.ratio > 0
    assert found.peer == 2.5, "the peer's own clock"
    assert "(> 1e-09, MISSED)" in bench_methods.row(found)


def test_the_other_precisions_are_compared_where_their_kernels_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, device = stand_in(tmp_path)
    devices = {"ieee": device}
    words: list[Any] = [devices, ["vgg16:2:6"], {"ieee": 1e-5}, lambda: False]
    assert list(bench_methods.compared(*words)) == [], "nothing is compiled"
    monkeypatch.setattr(device.kernels, "known", lambda plan: True)
    (one,) = bench_methods.compared(*words)
    assert (one.network, one.method, one.precision) == ("vgg16", "lrp-epsilon", "ieee")
    assert 0 < one.error <= 1e-5
    result = bench_kernels.Result({}, False, agreements=[one])
    assert "vgg16 lrp-epsilon ieee" in bench_kernels.table(result)
    assert list(bench_methods.compared(*words[:-1], lambda: True)) == []


def test_a_peer_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch (extra [dev]) is not installed")
    import compare_peers

    monkeypatch.setattr(compare_peers, "torch_network", lambda *_: compare_peers.nn.Identity())
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    said: list[str] = []
    peer_of = bench_methods.peers(said.append, where="cpu")
    assert peer_of is not None
    assert peer_of("vgg16", "gradient", tiny("vgg16"), np.zeros((1, 3, 6, 6), np.float32)) is None
    assert said[0].startswith("Captum Saliency cannot explain vgg16: ModuleNotFoundError")


def test_a_batch_that_does_not_fit_gives_the_sentence(tmp_path: Path) -> None:
    fake, device = stand_in(tmp_path)
    fake.total = 1 << 20
    said = bench_methods.halved(device, "vgg16:6:6")
    assert re.search("does not hold 6 samples at once; [13] ran at a time", said)


def test_the_whole_page_is_made_on_the_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command, every part: checks, methods, peers, memory, kernels; and it says that nothing was measured."""
    conv, pool = Conv.of(1, 3, 4, (5, 4), (1, 1)), Pool.of(1, 2, (4, 4), (2, 2), strides=(2, 2))
    for name, value in (("CHECKED", {"3x3": conv}), ("CHECKED_POOLS", {"2x2": pool}), ("FEW_LAYERS", ("vgg_5",))):
        monkeypatch.setattr(bench_kernels, name, value)
    monkeypatch.setattr(bench_kernels.catalogue, "LAYERS", {"vgg_5": Conv.of(1, 64, 64, (4, 4), (1, 1))})
    monkeypatch.setattr(bench_kernels.catalogue, "POOLS", {"vgg_pool1": pool})
    monkeypatch.setattr(bench_kernels.Cublas, "_load", staticmethod(lambda: Cublas()))
    words = ["--all", "--stand-in", "--network", "vgg16:6:6", "--rounds", "1", "--samples", "1", "--matrix", "16"]
    words += ["--precision", "ieee", "--timed", "ieee", "--out", str(tmp_path / "gpu")]
    assert bench_kernels.main(words, peer_of=peer_of) == 0
    page = (tmp_path / "gpu.md").read_text()
    assert "no figure below was measured" in page
    for claim in (
        "whole methods against the CPU",
        "vgg16 batch 6, lrp-epsilon: ≤ 2.5",
        "pure ONNX form",
        "Captum",
        "memory",
    ):
        assert claim in page
    assert "samples at once" in page
    assert "| vgg_5 | relative_given | ieee |" in page
    assert "0 failed" in page


class Cublas:
    """Takes every call."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: 0
