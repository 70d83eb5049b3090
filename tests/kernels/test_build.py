"""Ahead-of-time compilation, in a process of its own: no spills, parameters as packed, and launchable as it was written."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_cuda import FakeCuda
from onnx_explain_kernels import forms
from onnx_explain_kernels.catalogue import DENOMINATOR_USES, LAYERS, POOLS, USES, layer_plans, shipped_plans
from onnx_explain_kernels.driver import Driver
from onnx_explain_kernels.errors import UnsupportedShape
from onnx_explain_kernels.forms import PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.launch import Kernels
from onnx_explain_kernels.plan import Layouts, plan_conv, plan_denominator, plan_pool
from onnx_explain_kernels.store import Store
from onnx_explain_kernels.tiles import ARCHITECTURES, PRECISIONS, shared_bytes

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "build_kernels.py"
CHAIN = Layouts("nhwc", "nchw", "nhwc")


def run_tool(*words: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
    return run_python(str(TOOL), *words)


def run_python(*words: str) -> subprocess.CompletedProcess[str]:
    """A process in which triton compiles: this one interprets."""
    switches = ("TRITON_INTERPRET", "NUMBA_ENABLE_CUDASIM")
    environment = {k: v for k, v in os.environ.items() if k not in switches}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=280)


def nvvm_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("numba", "numba_cuda", "nvidia"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A few representative kernels, compiled once for the newest and the oldest kind of matrix unit."""
    folder = tmp_path_factory.mktemp("shipped")
    names = ["chain/wide", "relative_chain/wide", "box/few_channels", "quotient_halves/wide", "shift"]
    names += ["pool/max_chain", "pool/average_chain"] if nvvm_is_installed() else []
    words = ["--arch", "80", "90", "--only", *names, "--out", str(folder), "--report", str(folder / "report.json")]
    done = run_tool(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads((folder / "report.json").read_text())


def test_shipped_kernels_compile_without_spills(shipped: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, report = shipped
    assert {r["arch"] for r in report} == {80, 90}
    assert len(report) >= 10, [r["name"] for r in report]
    for entry in report:
        assert entry["stack"] == 0, entry
        assert 16 <= entry["registers"] <= 255, entry
        assert entry["shared"] <= shared_bytes(entry["arch"]), entry
        assert (folder / f"{entry['digest']}.kernel").is_file()


def test_what_was_compiled_is_launched_with_the_parameters_it_declares(
    shipped: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    fake = FakeCuda()
    store = Store(tmp_path / "cache", shipped=shipped[0])
    kernels = Kernels(Driver(fake), store=store, specialise=False)
    layer = kernels.conv(Conv.of(3, 48, 32, (9, 7), (5, 3), pads=(2, 1, 2, 1)), forms.CHAIN, layouts=CHAIN)
    layer({"r": 0x10000, "w": 0x90000, "x": 0x200000, "out": 0x300000}, below_epsilon=0.25)
    launch = fake.launches[-1]
    assert launch.code[:4] == b"\x7fELF"
    values = launch.values(layer.binary.specialisation)
    assert (values["N"], values["C"], values["K"], values["R"], values["S"]) == (3, 48, 32, 5, 3)
    assert launch.shared == layer.binary.shared
    if nvvm_is_installed():
        pool = kernels.pool(
            Pool.of(2, 8, (9, 9), (3, 3), strides=(2, 2)), PoolForm("max", below="x"), layouts=Layouts(out="nhwc")
        )
        pool({"x": 0x10000, "y": 0x20000, "r": 0x30000, "out": 0x40000})
        values = fake.launches[-1].values(pool.binary.specialisation, scratch=False)
        assert (values["H"], values["KW"], values["SW"], values["o_c"]) == (9, 3, 2, 1)


def test_sample_layers_compile_for_their_shape_without_spills(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    names = ["vgg_3_1/relative_chain/", "vgg_3_1/chain/", "resnet_stem/box/", "vgg_3_1/pair_shifted/"]
    done = run_tool("--layers", "--arch", "90", "--only", *names, "--report", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [r["stack"] for r in json.loads(report.read_text())] == [0, 0, 0, 0]


READS = """
import re, sys
from onnx_explain_kernels import compiler, forms
from onnx_explain_kernels.geometry import Conv
from onnx_explain_kernels.plan import plan_conv, plan_denominator
conv = Conv.of(8, 64, 64, (7, 7), (3, 3), pads=(1, 1, 1, 1))
for plan in (plan_conv(conv, forms.GRADIENT, arch=90), plan_denominator(conv, forms.DenominatorForm(), arch=90)):
    made = compiler._triton_once(plan.specialisation).asm
    layouts = dict(re.findall(r"^(#blocked\\d*) = (.*)$", made["ttgir"], re.MULTILINE))
    copies = re.findall(r"async_copy_global_to_local .* (#blocked\\d*)> -> <128x", made["ttgir"])
    print(*(layouts[name].replace(" ", "") for name in copies), sep="\\n")
    print("vectors", len(re.findall(r"(?:ld|st)\\.global[.\\w]*\\.v\\d", made["ptx"])))
"""


def test_maps_with_channels_first_are_read_along_their_positions() -> None:
    """Of an odd map the compiler cannot prove that memory runs so; and nothing of it may be read more than one by one."""
    pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
    done = run_python("-c", READS)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split()
    assert [b for a, b in itertools.pairwise(said) if a == "vectors"] == ["0", "0"]
    layouts = [line for line in said if line.startswith("#ttg.blocked")]
    assert len(layouts) >= 4
    assert all("sizePerThread=[1,1],threadsPerWarp=[32,1]" in line for line in layouts), layouts


def test_a_spill_fails_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onnx_explain_kernels.cubin import Cubin
    from onnx_explain_kernels.errors import ResourceError

    tool = load_tool()

    class Spilled:
        resources, shared, code, stages, compiler = Cubin(255, 8, ()), 0, b"", 1, "fake"

    monkeypatch.setattr(tool, "compile_kernel", lambda spec: Spilled())
    assert tool.main(["--arch", "90", "--only", "apply", "--out", str(tmp_path)]) == 1
    assert "SPILLS 8 B" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []

    def refuse(spec: object) -> None:
        raise ResourceError("too large")

    monkeypatch.setattr(tool, "compile_kernel", refuse)
    assert tool.main(["--arch", "90", "--only", "apply"]) == 1
    assert "FAILED too large" in capsys.readouterr().out


def test_naming_no_kernel_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_tool().main(["--arch", "90", "--only", "nonesuch"]) == 1


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_kernels", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_kernels"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_sample_layer_is_answered_by_a_shipped_kernel(arch: int) -> None:
    digests = {plan.specialisation.digest for _, plan in shipped_plans(arch)}
    for conv in LAYERS.values():
        for _, form, layouts in USES:
            plan = plan_conv(conv, form, arch=arch, layouts=layouts, generic=True)
            assert plan.specialisation.digest in digests, (conv, form)
        for _, divisor, layouts in DENOMINATOR_USES:
            plan = plan_denominator(conv, divisor, arch=arch, layouts=layouts, generic=True)
            assert plan.specialisation.digest in digests, (conv, divisor)
    for pool in POOLS.values():
        assert plan_pool(pool, PoolForm("max"), arch=arch, generic=True).specialisation.digest in digests


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_sample_layer_fits_a_grid(arch: int) -> None:
    count = 0
    for _, plan in layer_plans(arch, PRECISIONS):
        assert plan.grid[0] < 2**31
        assert plan.grid[1] <= 65535
        assert plan.threads <= 1024
        assert plan.operations > 0
        count += 1
    assert count > 500


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Conv.of(1, 3, 4, (5, 5, 5), (3, 3, 3)), "3 spatial axes"),
        (lambda: Conv.of(1, 3, 4, (5, 5), (3, 3), group=2), "2 groups do not divide"),
        (lambda: Conv.of(1, 3, 4, (2, 2), (3, 3)), "at least 1"),
        (lambda: Conv.of(1, 2**16, 4, (2**8, 2**8), (1, 1)), "2³¹"),
        (lambda: Pool.of(1, 3, (5, 5, 5), (3, 3, 3)), "3 spatial axes"),
        (lambda: forms.ConvForm("relative"), "takes the branch 'dual'"),
        (lambda: forms.ConvForm("given", "twin", "x"), "come together"),
        (lambda: forms.ConvForm("ratios"), "'ratios'"),  # type: ignore[arg-type]
        (lambda: forms.ConvForm("given", gated=True), "gated"),
        (lambda: forms.ConvForm("given", below="x", sums=True), "sums"),
        (lambda: PoolForm("max", "ratio"), "routes relevance as it is"),
        (lambda: plan_conv(LAYERS["vgg_5"], forms.CHAIN, arch=90, precision="fp8"), "'fp8'"),  # type: ignore[arg-type]
        (
            lambda: plan_conv(
                Conv.of(1, 3, 4, (9, 9), (3, 3), strides=(2, 2), dilations=(2, 2)), forms.CHAIN, arch=90, generic=True
            ),
            "not shipped",
        ),
    ],
)
def test_what_no_kernel_covers_is_refused_with_its_reason(make: Any, said: str) -> None:
    with pytest.raises(UnsupportedShape, match=said):
        make()
