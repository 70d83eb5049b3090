"""A device whose kernels are their NumPy reference: whole methods on real models in seconds, without triton or numba.

Planning, packing, places, layouts and sessions are those of a GPU; a launch is checked as ever and then computed in float64 on
host memory. What the kernels themselves compute is tested against the same reference in `tests/kernels`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import fake_compile
from gpu_stand_in import FakeGpu
from onnx_explain_kernels import reference
from onnx_explain_kernels.driver import Driver
from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.launch import Kernel, Kernels, memory_of
from onnx_explain_kernels.plan import LAYOUTS, TYPES, Layouts, Types
from onnx_explain_kernels.store import Store

from onnx_explain.backends.gpu import Device

Array = np.ndarray[Any, Any]
Shaped = Mapping[str, tuple[tuple[int, ...], str]]  # per tensor its shape as the reference has it, and its layout
KINDS = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16)}


class Computed:
    """A prepared kernel that computes its reference; `plan` and every check before a launch are the kernel's own."""

    def __init__(self, kernel: Kernel, shaped: Shaped, compute: Callable[..., Mapping[str, Array]]) -> None:
        self.kernel, self.plan, self._shaped, self._compute = kernel, kernel.plan, shaped, compute
        self._kinds = dict(kernel.plan.specialisation.parameters)

    def __call__(self, tensors: Mapping[str, Any], *, stream: int = 0, **numbers: float) -> None:
        places = self.kernel._places(tensors)
        given = {n: self._read(n, at) for n, at in places.items() if n not in self.plan.writes or n == "out"}
        for name, array in self._compute(given, **numbers).items():
            self._write(name, places[name], array)

    def _flat(self, name: str, at: int) -> Array:
        raw = (ctypes.c_char * self.plan.needs[name]).from_address(memory_of(at)[0])
        return np.frombuffer(raw, KINDS[self._kinds[name][1:]])

    def _read(self, name: str, at: int) -> Array:
        shape, layout = self._shaped[name]
        flat = self._flat(name, at).copy()
        if layout == "packed":  # [R, S, G, C/G, K/G]
            r, s, g, c, k = shape
            return flat.reshape(shape).transpose(2, 4, 3, 0, 1).reshape(g * k, c, r, s)
        if layout == "forward":  # [R, S, G, K/G, C/G]
            r, s, g, k, c = shape
            return flat.reshape(shape).transpose(2, 3, 4, 0, 1).reshape(g * k, c, r, s)
        if layout == "nhwc":
            n, c, h, w = shape
            return flat.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        return flat.reshape(shape)

    def _write(self, name: str, at: int, array: Array) -> None:
        place = self._flat(name, at)
        if self._shaped[name][1] == "rows":  # a row sum each; the reference has but one per sample
            place[:] = 0
            place.reshape(len(array), -1)[:, 0] = array
            return
        whole = array.transpose(0, 2, 3, 1) if self._shaped[name][1] == "nhwc" else array
        place[:] = whole.reshape(-1)


class ReferenceKernels(Kernels):
    """Answers as `Kernels` does, with `Computed`; counts what was launched in `made`."""

    def __init__(self, driver: Driver, store: Store) -> None:
        super().__init__(driver, store=store, compile_with=fake_compile)
        self.made: list[Computed] = []

    def _computed(self, kernel: Kernel, shaped: Shaped, compute: Callable[..., Mapping[str, Array]]) -> Any:
        self.made.append(Computed(kernel, shaped, compute))
        return self.made[-1]

    def conv(self, conv: Conv, form: ConvForm, **options: Any) -> Any:
        layouts, (per_sample, per_channel) = options.get("layouts", LAYOUTS), options.get("bounds", (False, True))
        bound = (conv.samples if per_sample else 1, conv.channels if per_channel else 1)
        packed = (*conv.kernel, conv.group, conv.channels // conv.group, conv.filters // conv.group)
        shaped = _sides(conv, layouts) | dict.fromkeys(("low", "high"), (bound, "flat"))
        shaped |= dict.fromkeys("wv", (packed, "packed"))
        return self._computed(
            super().conv(conv, form, **options),
            shaped,
            lambda given, epsilon=0.0, below_epsilon=0.0, **_: reference.conv_relevance(
                conv, form, given, epsilon=epsilon, below_epsilon=below_epsilon
            ),
        )

    def denominator(self, conv: Conv, form: DenominatorForm, **options: Any) -> Any:
        layouts: Layouts = options.get("layouts", LAYOUTS)
        packed = (*conv.kernel, conv.group, conv.filters // conv.group, conv.channels // conv.group)
        above = (conv.samples, conv.filters, *conv.out)
        shaped = _sides(conv, layouts) | dict.fromkeys("wv", (packed, "forward")) | {"bias": ((conv.filters,), "flat")}
        shaped |= dict.fromkeys(("out", "pair"), (above, layouts.out)) | {"lost": (above, layouts.r)}
        return self._computed(
            super().denominator(conv, form, **options),
            shaped,
            lambda given, epsilon=0.0, scale=1.0, **_: reference.conv_denominator(
                conv, form, given, epsilon=epsilon, scale=scale
            ),
        )

    def pool(self, pool: Pool, form: PoolForm, **options: Any) -> Any:
        layouts: Layouts = options.get("layouts", LAYOUTS)
        inputs, outputs = (pool.samples, pool.channels, *pool.size), (pool.samples, pool.channels, *pool.out)
        shaped: Any = {"x": (inputs, layouts.x), "out": (inputs, layouts.out), "delta": ((pool.samples,), "flat")}
        shaped |= dict.fromkeys("yr", (outputs, layouts.r))
        return self._computed(
            super().pool(pool, form, **options),
            shaped,
            lambda given, epsilon=0.0, below_epsilon=0.0, **_: reference.pool_relevance(
                pool, form, given, epsilon=epsilon, below_epsilon=below_epsilon
            ),
        )

    def shift(self, samples: int, rows: int) -> Any:
        shaped = dict.fromkeys(("sums", "counts"), ((samples, rows), "flat"))
        shaped |= dict.fromkeys(("want", "delta", "kept"), ((samples,), "flat"))

        def compute(given: Mapping[str, Array], **_: float) -> Mapping[str, Array]:
            sums, counts = (given[k].astype(np.float64).sum(1) for k in ("sums", "counts"))
            return dict(zip(("delta", "kept"), reference.shift_of_sums(sums, counts, given["want"])))

        return self._computed(super().shift(samples, rows), shaped, compute)

    def apply(self, samples: int, length: int, *, types: Types = TYPES) -> Any:
        shaped = dict.fromkeys(("c", "out"), ((samples, length), "flat")) | {"delta": ((samples,), "flat")}
        return self._computed(
            super().apply(samples, length, types=types),
            shaped,
            lambda given, **_: {"out": reference.apply_shift(given["c"], given["delta"])},
        )


def _sides(conv: Conv, layouts: Layouts) -> dict[str, tuple[tuple[int, ...], str]]:
    """What lies at a convolution's input and at its output."""
    below, above = (conv.samples, conv.channels, *conv.size), (conv.samples, conv.filters, *conv.out)
    shaped = dict.fromkeys("rabz", (above, layouts.r)) | dict.fromkeys("xd", (below, layouts.x))
    return {
        **shaped,
        "out": (below, layouts.out),
        "delta": ((conv.samples,), "flat"),
        **dict.fromkeys(("sums", "counts"), ((conv.samples,), "rows")),
    }


def reference_device(folder: Path, *, precision: str = "ieee", **choices: Any) -> tuple[ReferenceKernels, Device]:
    """The kernels and the device that works with them."""
    kernels = ReferenceKernels(Driver(FakeGpu()), Store(folder / "cache", shipped=None))
    return kernels, Device.of(kernels, provider="cpu", precision=precision, **choices)
