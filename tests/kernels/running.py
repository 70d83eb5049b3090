"""Runs a plan without a GPU: Triton's interpreter and Numba's simulator on host memory.

`run` takes arrays by operand; `execute` takes what a launch passes (addresses and numbers), for the stand-in of libcuda.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx_explain_kernels.plan import Plan
from onnx_explain_kernels.specialisation import Specialisation
from onnx_explain_kernels.weights import from_bfloat16

GUARD = 4096
NUMPY = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": np.dtype(np.uint16)}


class Tensor:
    """The little that Triton's interpreter asks of a tensor, on host memory that it writes in place."""

    def __init__(self, array: np.ndarray, dtype: str) -> None:
        self.array = array
        self.dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[dtype]
        self.shape = array.shape

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def untyped_storage(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def copy_(self, other: Any) -> None:
        pass

    def new_empty(self, *_: Any, **__: Any) -> Tensor:
        return self

    def set_(self, *_: Any) -> Tensor:
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> int:
        return int(self.array.nbytes)

    def stride(self) -> tuple[int, ...]:
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def element_size(self) -> int:
        return int(self.array.itemsize)

    def is_contiguous(self) -> bool:
        return True


def cut_to_tf32(values: np.ndarray) -> np.ndarray:
    """10 bits of mantissa: what the matrix unit reads of a float32 operand; it does not look at the others."""
    return (values.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """To the nearest of those, ties away from zero, as `cvt.rna.tf32.f32` does."""
    return cut_to_tf32((values.view(np.uint32) + np.uint32(0x1000)).view(np.float32))


@cache
def triton_interpreter() -> Any:
    """The module of Triton kernels, interpreted; its product corrected.

    The interpreter multiplies the bit patterns of bfloat16, and knows no tf32: `tf32` reads operands cut off (rounding is the
    kernel's part), of `tf32x3` each operand is a sum of two, whose smaller ones are not multiplied with each other.
    """
    pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
    import triton.language as tl
    from onnx_explain_kernels import conv_kernel
    from triton.runtime import interpreter

    def operand(handle: Any, precision: str) -> np.ndarray:
        data = handle.data
        if handle.dtype.scalar == tl.bfloat16:
            return from_bfloat16(data)
        if data.dtype == np.float32 and precision.endswith("TF32"):
            return cut_to_tf32(data)
        return data.astype(np.float32)

    def thrice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        (high_a, low_a), (high_b, low_b) = ((rounded_to_tf32(v), cut_to_tf32(v - rounded_to_tf32(v))) for v in (a, b))
        return low_a @ high_b + high_a @ low_b + high_a @ high_b

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        precision = str(input_precision).upper()
        if precision.endswith("TF32X3") and a.data.dtype == b.data.dtype == np.float32:
            product = thrice(a.data, b.data) + d.data
        else:
            product = np.matmul(operand(a, precision), operand(b, precision), dtype=np.float32) + d.data
        return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot
    return conv_kernel


def interpret(plan: Plan, tensors: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> None:
    """Run a Triton plan in place on flat arrays."""
    triton_interpreter()
    import triton.language as tl
    from onnx_explain_kernels.compiler import triton_source

    spec = plan.specialisation
    kinds, constants = dict(spec.parameters), dict(spec.constants)
    if "DOT" in constants:
        constants["DOT"] = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}[str(constants["DOT"])]
    values: dict[str, Any] = {**plan.integers, **constants, **numbers}
    values |= {name: Tensor(array, kinds[name][1:]) for name, array in tensors.items()}
    triton_source(spec)[plan.grid](**{name: values[name] for name, _ in spec.parameters})


def simulate(plan: Plan, tensors: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> None:
    """Run a Numba plan in place on flat arrays; blocks are cut to what the simulator can do in time."""
    pytest.importorskip("numba", reason="numba (extra [test]) is not installed")
    from numba import cuda
    from onnx_explain_kernels.compiler import pool_source

    values = {**plan.integers, **tensors, **{k: np.float32(v) for k, v in numbers.items()}}
    missing = np.full(1, np.nan, np.float32)
    arguments = [values.get(name, missing) for name, _ in plan.specialisation.parameters]
    cuda.jit(pool_source(plan.specialisation))[plan.grid, plan.threads](*arguments)


def run_flat(plan: Plan, tensors: Mapping[str, np.ndarray], **numbers: float) -> None:
    """Run any plan in place on flat arrays."""
    numbers = {"epsilon": 0.0, "below_epsilon": 0.0, "scale": 1.0, **numbers}
    (simulate if plan.specialisation.kernel.endswith("_pool") else interpret)(plan, tensors, numbers)


def stored(array: np.ndarray, layout: str, kind: str = "fp32") -> np.ndarray:
    """[N, C, H, W] as it lies in memory, flat."""
    whole = np.asarray(array, np.float32)
    if whole.ndim == 4 and layout == "nhwc":
        whole = whole.transpose(0, 2, 3, 1)
    flat = np.ascontiguousarray(whole).reshape(-1)
    if kind == "bf16":
        from onnx_explain_kernels.weights import to_bfloat16

        return to_bfloat16(flat)
    return flat.astype(NUMPY[kind])


def unstored(flat: np.ndarray, shape: tuple[int, ...], layout: str) -> np.ndarray:
    """The way back."""
    values = from_bfloat16(flat) if flat.dtype == np.uint16 else flat
    if layout == "nhwc":
        n, c, h, w = shape
        return values.reshape(n, h, w, c).transpose(0, 3, 1, 2)
    return values.reshape(shape)


def guarded(flat: np.ndarray) -> np.ndarray:
    """The same values with NaN in front and behind: what is read beyond the tensor shows."""
    beyond = np.uint16(0x7FC0) if flat.dtype == np.uint16 else flat.dtype.type(np.nan)
    whole = np.full(flat.size + 2 * GUARD, beyond, flat.dtype)
    whole[GUARD:-GUARD] = flat
    return whole[GUARD:-GUARD]


def unfilled(plan: Plan, name: str) -> np.ndarray:
    """A result before it is written: NaN everywhere, and a guard behind it."""
    kind = dict(plan.specialisation.parameters)[name][1:]
    size = plan.needs[name] // NUMPY[kind].itemsize + 16
    return np.full(size, 0x7FC0 if kind == "bf16" else np.nan, NUMPY[kind])


def execute(spec: Specialisation, plan: Plan, passed: Mapping[str, Any]) -> None:
    """Run what a launch has passed: addresses of host memory, of the sizes that the plan needs."""
    kinds = dict(spec.parameters)
    tensors, numbers = {}, {}
    for name, value in passed.items():
        if not kinds[name].startswith("*"):
            numbers[name] = value
        elif value:
            dtype = NUMPY[kinds[name][1:]]
            raw = (ctypes.c_char * plan.needs[name]).from_address(value)
            tensors[name] = np.frombuffer(raw, dtype)
    run_flat(plan, tensors, **{k: v for k, v in numbers.items() if kinds[k] == "fp32"})
