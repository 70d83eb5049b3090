"""What would run where, without a GPU: per composite the kernel's form or ONNX, with its floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_explain.backends.gpu.calls import Call, layer_operations
from onnx_explain.backends.gpu.device import Precision
from onnx_explain.backends.gpu.lowering import Line, Lowered, calls, lower
from onnx_explain.backends.gpu.segments import Segment, cut
from onnx_explain.ir.emit import PREFIX
from onnx_explain.ir.view import Operation


@dataclass(frozen=True)
class GpuPlan:
    """The plan of one relevance graph. Operations are per sample.

    `forward`: of the convolutions that denominators add to the forward pass, which ONNX Runtime runs (W⁺x, …). `sessions`:
    how many ONNX models run in turn with the kernels. `launches`: how many kernels are launched.
    """

    lines: tuple[Line, ...]
    forward: int
    sessions: int
    launches: int

    @property
    def redistributed(self) -> int:
        """Operations of all convolutions and pools of the backward pass."""
        return sum(one.operations for one in self.lines if one.counted)

    @property
    def share(self) -> float:
        """The part of them that kernels run; 1 where there are none."""
        by_kernel = sum(one.operations for one in self.lines if one.counted and one.by_kernel)
        return by_kernel / self.redistributed if self.redistributed else 1.0


def plan_of(model: ir.Model, *, arch: int = 90, samples: int = 1, precision: Precision = "tf32") -> GpuPlan:
    """The plan of a relevance graph's model for a device of this architecture.

    Raises:
        UnsupportedShape: (of the kernels) a call cannot be launched for so many samples.

    """
    lowered = lower(model)
    launches = sum(check(call, arch, samples, precision) for call in map(Call.of, calls(lowered.model.graph)))
    sessions = sum(isinstance(step, Segment) for step in cut(lowered.model).steps)
    return GpuPlan(lowered.lines, _added(lowered), sessions, launches)


def check(call: Call, arch: int, samples: int, precision: Precision) -> int:
    """Plan every launch of a call; how many there are."""
    from onnx_explain_kernels.forms import ConvForm, PoolForm
    from onnx_explain_kernels.geometry import Conv, Pool
    from onnx_explain_kernels.plan import plan_conv, plan_pool

    geometry = {**call.geometry, "samples": samples}
    for launch in call.launches:
        if call.kind == "pool":
            plan_pool(Pool(**geometry), PoolForm(**launch.form), arch=arch)
        else:
            conv, form = Conv(**geometry), ConvForm(**launch.form)
            plan_conv(conv, form, arch=arch, precision=precision, bounds=launch.bounds)
    return len(call.launches) + 2 * call.shifted


def _added(lowered: Lowered) -> int:
    """Operations of the convolutions that were written beside the model's own."""
    ours = [n for n in lowered.model.graph if n.op_type == "Conv" and (n.name or "").startswith(f"{PREFIX}/")]
    return sum(layer_operations(Operation.of(n)) for n in ours)
