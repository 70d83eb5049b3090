"""The whole-method part of the GPU benchmark, exercised on the stand-in: it compares first, and times what is right."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when they are first imported
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
pytest.importorskip("numba", reason="numba (extra [test]) is not installed")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tools")]

import bench_methods  # noqa: E402
from gpu_stand_in import stand_in  # noqa: E402


def test_methods_are_compared_then_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_methods, "TARGETS", {"lrp-epsilon": 2.5})
    fake, device = stand_in(tmp_path)
    (found,) = bench_methods.timed(device, ["resnet18:1:32:0.0625"], 1, 1e-5)
    assert found.problem == ""
    assert 0 < found.error <= 1e-5
    assert min(found.forward, found.onnx, found.kernels, found.ratio) > 0
    assert found.workspace > 0
    assert "resnet18 | 1 | lrp-epsilon | ieee" in "\n".join(bench_methods.table([found]))
    fake.runs = None  # kernels that write nothing are wrong
    (wrong,) = bench_methods.timed(device, ["resnet18:1:32:0.0625"], 1, 1e-5)
    assert "not timed" in wrong.problem
    assert wrong.kernels == 0
