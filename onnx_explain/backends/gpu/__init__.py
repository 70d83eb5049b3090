"""The GPU backend: ONNX Runtime's CUDA provider for the forward pass and for what has no kernel, kernels for the rest.

Importing it loads neither the kernels nor CUDA: `Device.open` does.
"""

from __future__ import annotations

from onnx_explain.backends.gpu.arrays import Tensor, is_on_device
from onnx_explain.backends.gpu.device import PRECISIONS, Device, OnDevice, OutOfMemory, foreign
from onnx_explain.backends.gpu.lowering import Line, Lowered, lower
from onnx_explain.backends.gpu.planning import GpuPlan, plan_of
from onnx_explain.backends.gpu.running import GpuRunner

__all__ = [
    "PRECISIONS",
    "Device",
    "GpuPlan",
    "GpuRunner",
    "Line",
    "Lowered",
    "OnDevice",
    "OutOfMemory",
    "Tensor",
    "foreign",
    "is_on_device",
    "lower",
    "plan_of",
]
