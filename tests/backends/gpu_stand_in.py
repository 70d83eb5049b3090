"""A device without a GPU: the stand-in of libcuda runs launches by interpreter and simulator, ONNX Runtime's CPU provider
stands in for the CUDA one; both work on the same (host) memory.
"""
# ruff: noqa: N802

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ["TRITON_INTERPRET"] = "1"
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
KERNEL_TESTS = str(Path(__file__).parents[1] / "kernels")
if KERNEL_TESTS not in sys.path:
    sys.path.insert(0, KERNEL_TESTS)

from fake_cuda import FakeCuda, Launch, fake_compile, specialisation_of  # noqa: E402
from onnx_explain_kernels.driver import Driver  # noqa: E402
from onnx_explain_kernels.launch import Kernel, Kernels  # noqa: E402
from onnx_explain_kernels.plan import Plan  # noqa: E402
from onnx_explain_kernels.store import Store  # noqa: E402

from onnx_explain.backends.gpu import Device  # noqa: E402


class FakeGpu(FakeCuda):
    """The stand-in with a stream, and memory that can run out; new memory is NaN."""

    limit: int = 1 << 40

    def cuMemAlloc_v2(self, pointer: Any, size: Any) -> int:
        if size.value > self.limit:
            return 2
        code = super().cuMemAlloc_v2(pointer, size)
        if code:
            return code
        words = (ctypes.c_uint32 * (size.value // 4)).from_address(pointer._obj.value)
        np.frombuffer(words, np.uint32)[:] = 0x7FC00000
        return code


class RecordedKernels(Kernels):
    """Kernels that remember their plans, so that launches can be run."""

    def __init__(self, driver: Driver, store: Store) -> None:
        super().__init__(driver, store=store, compile_with=fake_compile)
        self.plans: list[Plan] = []

    def prepare(self, plan: Plan, *, compiles: bool = True) -> Kernel:
        self.plans.append(plan)
        return super().prepare(plan, compiles=compiles)


def stand_in(
    folder: Path, *, precision: str = "ieee", limit: int = 1 << 40, own_stream: bool = True, **choices: Any
) -> tuple[FakeGpu, Device]:
    """The stand-in and the device that works on it."""
    fake = FakeGpu()
    fake.limit = limit
    kernels = RecordedKernels(Driver(fake), Store(folder / "cache", shipped=None))

    def run(launch: Launch) -> None:
        from running import execute

        spec = specialisation_of(launch.code)
        values = launch.values(spec, scratch=not spec.kernel.endswith("_pool"))
        alike = [p for p in kernels.plans if p.specialisation == spec and _fits(p, values)]
        plan = next((p for p in alike if p.grid == launch.grid), None)
        assert plan is not None, "the grid is that of a plan"
        assert launch.stream == 0x5000 or not own_stream, "everything is put on the device's own stream"
        execute(spec, plan, values)

    fake.runs = run
    return fake, Device.of(kernels, provider="cpu", precision=precision, **choices)


def _fits(plan: Plan, values: dict[str, Any]) -> bool:
    return all(values.get(k, v) == v for k, v in plan.integers.items())
