"""The benchmark script, exercised on the stand-in of libcuda: it checks, it times, it says what it did not measure."""
# ruff: noqa: N802 (the names are those of the C library)

from __future__ import annotations

import importlib.util
import json
import sys
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, Launch, fake_compile, specialisation_of
from onnx_explain_kernels import forms
from onnx_explain_kernels.driver import Driver
from onnx_explain_kernels.errors import CompilerMissing, DeviceError
from onnx_explain_kernels.geometry import Conv
from onnx_explain_kernels.launch import Kernels
from onnx_explain_kernels.plan import Plan, plan_conv
from onnx_explain_kernels.store import Store


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "bench_kernels", Path(__file__).parents[2] / "tools" / "bench_kernels.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_kernels"] = module
    spec.loader.exec_module(module)
    return module


class FakeCublas:
    """Records the products that were asked for."""

    def __init__(self) -> None:
        self.products: list[tuple[int, int, int]] = []

    def cublasCreate_v2(self, handle: Any) -> int:
        return 0

    def cublasGemmEx(self, handle: Any, *arguments: Any) -> int:
        assert len(arguments) == 18
        m, kind, compute = arguments[2].value, arguments[7], arguments[16]
        self.products.append((m, kind, compute))
        return 0


class Watched(Kernels):
    """Remembers the plans, so that the stand-in can run what is launched."""

    plans: list[Plan]

    def prepare(self, plan: Plan, **options: Any) -> Any:
        self.plans.append(plan)
        return super().prepare(plan, **options)


def opened(tmp_path: Path, *, runs: bool, spoil: bool = False, **options: Any) -> tuple[FakeCuda, Watched]:
    from running import execute

    fake = FakeCuda()
    options = {"compile_with": fake_compile, **options}
    kernels = Watched(Driver(fake), store=Store(tmp_path / "cache", shipped=None), **options)
    kernels.plans = []

    def run(launch: Launch) -> None:
        spec = specialisation_of(launch.code)
        plan = next(p for p in reversed(kernels.plans) if p.specialisation == spec)
        values = launch.values(spec, scratch=not spec.kernel.endswith("_pool"))
        values["epsilon"] *= 2 if spoil else 1
        execute(spec, plan, values)

    fake.runs = run if runs else None
    return fake, kernels


@pytest.fixture
def _interpreters() -> None:
    for name in ("triton", "numba"):
        pytest.importorskip(name, reason=f"{name} (extra [test]) is not installed")


@pytest.mark.usefixtures("_interpreters")
def test_the_checks_pass_on_kernels_that_run_from_what_was_passed(bench: ModuleType, tmp_path: Path) -> None:
    _, kernels = opened(tmp_path, runs=True)
    words = [
        "--check",
        "--only",
        "1x1/pair_divided",
        "1x1/quotient_halves",
        "depthwise/chain_first",
        "dense/relative_chain",
        "ceil/max_chain",
        "2x2/average",
    ]
    assert bench.main([*words, "--out", str(tmp_path / "found" / "kernels")], kernels=kernels) == 0
    found = json.loads((tmp_path / "found" / "kernels.json").read_text())
    assert not found["measured"]
    assert len(found["checks"]) > 12
    assert {c["precision"] for c in found["checks"]} == {"tf32", "ieee", "bf16"}
    assert all(0 <= c["error"] <= c["tolerance"] for c in found["checks"])
    assert found["timings"] == []


@pytest.mark.usefixtures("_interpreters")
def test_a_wrong_kernel_is_reported_and_nothing_is_timed(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, kernels = opened(tmp_path, runs=True, spoil=True)
    words = ["--only", "1x1/epsilon", "--precision", "ieee", "--out", str(tmp_path / "kernels")]
    assert bench.main(words, kernels=kernels) == 1
    assert "WRONG epsilon 1x1 ieee" in capsys.readouterr().out
    assert json.loads((tmp_path / "kernels.json").read_text())["timings"] == []


def test_a_kernel_that_writes_nothing_is_wrong(bench: ModuleType, tmp_path: Path) -> None:
    _, kernels = opened(tmp_path, runs=False)
    assert bench.main(["--check", "--only", "1x1/epsilon", "--precision", "ieee"], kernels=kernels) == 1


def test_each_kernel_is_timed_between_measurements_of_its_ceiling(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "check", lambda *_: [])
    fake, kernels = opened(tmp_path, runs=False)
    cublas = FakeCublas()
    words = [
        "--only",
        "resnet_5_3x3/chain",
        "densenet_pool/average",
        "--rounds",
        "4",
        "--samples",
        "1",
        "--matrix",
        "64",
    ]
    words += ["--timed", "tf32", "bf16", "--out", str(tmp_path / "kernels")]
    assert bench.main(words, kernels=kernels, cublas=cublas) == 0
    found = json.loads((tmp_path / "kernels.json").read_text())
    names = {(t["layer"], t["kernel"], t["precision"]) for t in found["timings"]}
    assert ("resnet_5_3x3", "chain", "bf16") in names
    assert ("densenet_pool", "average", "ieee") in names
    for timing in found["timings"]:
        assert timing["problem"] == ""
        assert timing["milliseconds"] == 0.5
        assert timing["low"] <= timing["fraction"] <= timing["high"]
    assert cublas.products.count((64, 14, 68)) == cublas.products.count((64, 0, 77)) == 1 + 5 + 2 * 4
    assert len(fake.launches) == len(found["timings"]) * (3 + 4)
    assert fake.memory == {}, "everything is given back"
    page = (tmp_path / "kernels.md").read_text()
    assert "no figure below was measured" in page
    assert "| resnet_5_3x3 | chain | tf32 | 0.500 |" in page
    assert found["machine"]["device"] == "Stand-in, compute capability 9.0"


def test_a_failure_is_a_line_of_the_table(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: object) -> None:
        raise CompilerMissing("no compiler")

    monkeypatch.setattr(bench, "check", lambda *_: [])
    _, kernels = opened(tmp_path, runs=False, compile_with=refuse)
    words = [
        "--only",
        "resnet_5_3x3/chain",
        "--samples",
        "1",
        "--rounds",
        "1",
        "--matrix",
        "64",
        "--out",
        str(tmp_path / "kernels"),
    ]
    monkeypatch.setattr(bench.Cublas, "_load", staticmethod(no_cublas))
    assert bench.main(words, kernels=kernels) == 0
    assert "CompilerMissing" in (tmp_path / "kernels.md").read_text()


def no_cublas() -> None:
    raise DeviceError("cuBLAS is not installed")


def test_without_a_device_nothing_is_measured(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(**_: Any) -> None:
        raise DeviceError("No NVIDIA driver.")

    monkeypatch.setattr(bench, "Kernels", missing)
    assert bench.main([]) == 2
    assert "Nothing was measured" in capsys.readouterr().err


class Inline:
    """A pool of processes that is none."""

    def __init__(self, *_: Any) -> None:
        self.waiting: list[Any] = []

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Any, spec: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(spec))
        except Exception as error:
            future.set_exception(error)
        return future


def test_kernels_are_compiled_beforehand_and_found_on_the_device(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(bench, "compile_kernel", fake_compile)
    folder = tmp_path / "kernels"
    words = ["--check", "--only", "1x1/chain", "2x2/max", "--precision", "ieee", "--kernels", str(folder)]
    assert bench.main(["--prepare", "90", *words]) == 0
    first = capsys.readouterr().out
    assert "0 failed" in first
    assert len(list(folder.iterdir())) > 3
    assert bench.main(["--prepare", "90", *words]) == 0, "what is there is not compiled again"
    assert capsys.readouterr().out == ""

    def refuse(spec: object) -> None:
        raise CompilerMissing("no compiler")

    _, kernels = opened(tmp_path, runs=False, compile_with=refuse)
    kernels.store.shipped = folder
    found = bench.check(kernels, bench.check_jobs(["1x1/chain", "2x2/max"], ["ieee"]), print)
    assert all("CompilerMissing" not in c.problem for c in found)


def test_what_comes_too_late_is_left_out_and_said(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, kernels = opened(tmp_path, runs=False)
    assert bench.check(kernels, bench.check_jobs(["1x1/"], ["ieee"]), print, lambda: True) == []
    assert "0 comparisons with the oracle, 0 failed, " in capsys.readouterr().out
    clock = bench.Clock(1000.0)
    assert (clock.late(0.0), clock.late(0.5), bench.Clock(None).late(0.0)) == (True, False, False)


def test_one_command_fits_nine_minutes_and_covers_the_methods_forms(bench: ModuleType) -> None:
    arguments = bench.parsed(["--all"])
    assert arguments.budget < 540
    jobs = list(bench.time_jobs([], ["tf32"], 32, few=True))
    assert {job.use for job in jobs} == set(bench.FEW_USES)
    assert {job.shape for job in jobs} >= set(bench.FEW_LAYERS)
    checked = list(bench.check_jobs([], arguments.precision, few=True))
    assert {job.shape for job in checked} == {*bench.CHECKED, *bench.CHECKED_POOLS}
    assert {job.precision for job in checked} == {"tf32", "ieee", "bf16"}


def test_what_is_wrong_is_not_timed_and_the_rest_is(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = bench.Check("chain", "3x3", "tf32", 1.0, 1e-3)
    monkeypatch.setattr(bench, "check", lambda *_: [wrong])
    _, kernels = opened(tmp_path, runs=False)
    words = ["--only", "resnet_5_3x3/", "--skip", "twin", "--rounds", "1", "--samples", "1", "--matrix", "64"]
    assert bench.main([*words, "--out", str(tmp_path / "k")], kernels=kernels, cublas=FakeCublas()) == 1
    timed = {t["kernel"] for t in json.loads((tmp_path / "k.json").read_text())["timings"]}
    assert "gradient_chain" in timed
    assert "chain" not in timed


def test_a_lost_device_ends_the_run_and_leaves_the_page(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, kernels = opened(tmp_path, runs=False)
    fake.fails = "cuLaunchKernel"
    words = ["--only", "1x1/", "--precision", "ieee", "--out", str(tmp_path / "k")]
    assert bench.main(words, kernels=kernels) == 1
    found = json.loads((tmp_path / "k.json").read_text())
    assert len(found["checks"]) == 1
    assert "an illegal memory access" in found["checks"][0]["problem"]
    assert "--skip" in capsys.readouterr().out


def test_a_run_that_is_ended_leaves_what_it_has_found(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "check", lambda *_: [bench.Check("chain", "3x3", "tf32", 1e-4, 1e-3)])
    monkeypatch.setattr(bench.bench_methods, "timed", killed)
    monkeypatch.setattr(bench, "every_plan", lambda *_: [])
    _, kernels = opened(tmp_path, runs=False)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--all", "--out", str(tmp_path / "k")], kernels=kernels)
    assert "tf32 1.0e-04 (≤ 1e-03)" in (tmp_path / "k.md").read_text()


def test_without_the_cuda_provider_methods_are_left_out_and_said(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    _, kernels = opened(tmp_path, runs=False)
    result = bench.Result({}, True)
    monkeypatch.setattr(
        bench.bench_methods.plain.runtime(), "get_available_providers", lambda: ["CPUExecutionProvider"]
    )
    bench._methods(kernels, bench.parsed(["--all"]), result, bench.Clock(None), True, None, said.append)
    assert len(said) == 1
    assert "Whole methods are left out. The installed ONNX Runtime has no CUDA provider" in said[0]


def test_the_clock_starts_when_the_device_is_busy_with_data(bench: ModuleType, tmp_path: Path) -> None:
    fake, kernels = opened(tmp_path, runs=False)
    with bench.Device(kernels.driver).arrays() as put:
        ceilings = bench.Ceilings(kernels.driver, put, 64, None)
        ceilings.busy()
        fake.calls.clear()
        ceilings.bandwidth()
        asked = [c for c in fake.calls if c in ("cuMemcpyDtoDAsync_v2", "cuEventRecord")]
        assert asked == ["cuMemcpyDtoDAsync_v2", "cuEventRecord", "cuMemcpyDtoDAsync_v2", "cuEventRecord"]
        size = bench.Device.noise.nbytes * 2 + 12
        found = bench.Device(kernels.driver).get(put(size), (size // 4,))
        assert 0.25 <= found.min() < found.max() < 1
        assert len(np.unique(found[-1000:])) > 100


def test_kernels_are_compiled_while_further_plans_are_made(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(bench, "compile_kernel", fake_compile)
    plans = [plan_conv(Conv.of(1, 3, 4, (5, n), (1, 1)), forms.CHAIN, arch=90) for n in (4, 5, 6, 4)]
    kept: list[Any] = []
    said: list[str] = []
    assert bench.compile_apart(iter(plans), lambda plan: plan is plans[1], kept.append, said.append) == 0
    assert {binary.specialisation for binary in kept} == {plans[0].specialisation, plans[2].specialisation}
    assert len(kept) == 2
    assert said[0].startswith("2 of 2 kernels compiled")
    kept.clear()
    bench.compile_apart(iter(plans), lambda plan: False, kept.append, said.append, lambda: True)
    assert len(kept) == 1, "what is planned too late is not begun"
