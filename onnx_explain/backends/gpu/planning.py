"""What would run where, without a GPU: per composite the kernel's form or ONNX, with its floating-point operations."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_explain.backends.gpu.calls import CONVOLUTIONS, LAYERS, Call, is_constant, layer_operations
from onnx_explain.backends.gpu.device import Dense, Precision
from onnx_explain.backends.gpu.lowering import Line, Lowered, calls, lower
from onnx_explain.backends.gpu.segments import Segment, cut
from onnx_explain.ir.emit import PREFIX
from onnx_explain.ir.view import Operation


@dataclass(frozen=True)
class GpuPlan:
    """The plan of one relevance graph. Operations are per sample, of convolutions and pools.

    `denominators`: of the convolutions that the method adds to the forward pass (W⁺x, …) and kernels run; `remaining`: of those
    that ONNX Runtime runs. `sessions`: how many ONNX models run in turn with the kernels. `launches`: how many kernels are
    launched.
    """

    lines: tuple[Line, ...]
    denominators: int
    remaining: int
    sessions: int
    launches: int

    @property
    def redistributed(self) -> int:
        """Operations of the backward pass itself."""
        return sum(one.operations for one in self.lines if one.counted)

    @property
    def operations(self) -> int:
        """Of the whole relevance pass: what the method adds to the plain forward pass."""
        return self.redistributed + self.denominators + self.remaining

    @property
    def share(self) -> float:
        """The part of the whole relevance pass that kernels run; 1 where there is nothing to run."""
        by_kernel = sum(one.operations for one in self.lines if one.counted and one.by_kernel) + self.denominators
        return by_kernel / self.operations if self.operations else 1.0


def plan_of(
    model: ir.Model, *, arch: int = 90, samples: int = 1, precision: Precision = "tf32", dense: Dense = "onnx"
) -> GpuPlan:
    """The plan of a relevance graph's model for a device of this architecture.

    Raises:
        UnsupportedShape: (of the kernels) a call cannot be launched for so many samples.

    """
    lowered = lower(model, precision=precision, dense=dense)
    nodes = calls(lowered.model.graph)
    asked = [Call.of(node) for node in nodes]
    launches = sum(check(call, arch, samples, precision) for call in asked)
    sessions = sum(isinstance(step, Segment) for step in cut(lowered.model).steps)
    denominators = sum(_forward(c) for n, c in zip(nodes, asked) if n.op_type == "Denominate" and not c.dense)
    return GpuPlan(lowered.lines, denominators, _remaining(lowered), sessions, launches)


def check(call: Call, arch: int, samples: int, precision: Precision) -> int:
    """Plan every launch of a call; how many there are."""
    from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
    from onnx_explain_kernels.geometry import Conv, Pool
    from onnx_explain_kernels.plan import plan_conv, plan_denominator, plan_pool

    geometry = {**call.geometry, "samples": samples}
    for launch in call.launches:
        if call.kind == "pool":
            plan_pool(Pool(**geometry), PoolForm(**launch.form), arch=arch)
        elif call.kind == "denominator":
            plan_denominator(Conv(**geometry), DenominatorForm(**launch.form), arch=arch, precision=precision)
        else:
            conv, form = Conv(**geometry), ConvForm(**launch.form)
            plan_conv(conv, form, arch=arch, precision=precision, bounds=launch.bounds)
    return len(call.launches) + call.shifted * (1 if call.deferred else 2)


def _forward(call: Call) -> int:
    """Operations of a pass forward."""
    from onnx_explain_kernels.forms import DenominatorForm
    from onnx_explain_kernels.geometry import Conv

    return sum(Conv(**call.geometry).operations * DenominatorForm(**one.form).products for one in call.launches)


def _remaining(lowered: Lowered) -> int:
    """Operations of the convolutions and pools that were written beside the model's own, less those of the lines that they
    serve; of constants they are folded.
    """
    ours = [n for n in lowered.model.graph if n.op_type in LAYERS and (n.name or "").startswith(f"{PREFIX}/")]
    written = [Operation.of(n) for n in ours if n.domain == ""]
    lines = [one for one in lowered.lines if one.operator in CONVOLUTIONS and not one.by_kernel]
    beside = sum(layer_operations(one) for one in written if not is_constant(one.x))
    return max(beside - sum(one.operations for one in lines), 0)
