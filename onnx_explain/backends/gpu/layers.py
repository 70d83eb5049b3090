"""A weighted layer while its kernel calls are written: its operands, geometry and place in a chain, and the calls' emission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx_explain.backends.gpu.calls import (
    CONVOLUTIONS,
    DENSE,
    DOMAIN,
    Call,
    Launch,
    Pass,
    conv_geometry,
    dense_geometry,
    is_constant,
)
from onnx_explain.backends.gpu.links import Link
from onnx_explain.ir.composite import CompositeNode
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value
from onnx_explain.operators.roles import Linear
from onnx_explain.rules.share import linear_of


@dataclass(frozen=True)
class Known:
    """What kernels above have left: per value (by identity) its sum per sample, and a shift that is still to be taken off."""

    sums: dict[int, Value] = field(default_factory=dict)
    shifts: dict[int, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer whose calls are being written. `rounded`: products round their operands, as tf32 does."""

    op: Emitter
    node: CompositeNode
    role: Linear
    geometry: Mapping[str, Any]
    link: Link
    known: Known
    rounded: bool

    @staticmethod
    def of(op: Emitter, node: CompositeNode, link: Link, known: Known, *, rounded: bool, dense: bool) -> Layer | None:
        """The layer of a composite, or None where no kernel covers it."""
        forward = node.node
        if forward.domain != "" or forward.op_type not in (*CONVOLUTIONS, *(DENSE if dense else ())):
            return None
        if len(forward.inputs) < 2 or not is_constant(forward.input(1)):
            return None
        geometry = dense_geometry(forward) if forward.op_type in DENSE else conv_geometry(forward)
        if geometry is None:
            return None
        return Layer(op, node, linear_of(forward), geometry, link, known, rounded)

    @property
    def x(self) -> Value:
        """The forward input."""
        return self.node.node.input(0)

    @property
    def w(self) -> Value:
        """The weight as the forward pass holds it."""
        return self.node.node.input(1)

    @property
    def z(self) -> Value:
        """The pre-activation, or what stands for it wherever relevance is not zero."""
        extra = self.node.extra
        return extra[1] if len(extra) > 1 and extra[1] is not None else self.node.node.y

    @property
    def bias(self) -> Value | None:
        """The bias, broadcastable to y."""
        return self.node.extra[0] if self.node.extra else None

    @property
    def dense(self) -> bool:
        """Whether it is a matrix product."""
        return self.node.node.op_type in DENSE

    @property
    def transposed(self) -> bool:
        """Whether it is a ConvTranspose: kernels see the convolution whose adjoint it is."""
        return self.node.node.op_type == "ConvTranspose"

    def call(self, passes: Sequence[Pass], *, want: Value | None = None, deferred: bool = False) -> list[Value]:
        """Emit a redistribution: its result; with `want` [N] RAP's shift follows, and the sums left after it are a second
        result. `deferred`: the shift is a third result, for whoever reads the first.
        """
        from onnx_explain_kernels.forms import ConvForm

        like = [self.x] if want is None else [self.x, want, *([want] if deferred else [])]
        return self._emit("conv", passes, like, ConvForm, want=want, deferred=deferred)

    def forward(self, one: Pass, results: int) -> list[Value]:
        """Emit a pass forward: denominators or quotients, of the type and shape of the convolution's output."""
        from onnx_explain_kernels.forms import DenominatorForm

        like = self.x if self.transposed else self.node.node.y
        return self._emit("denominator", [one], [like] * results, DenominatorForm)

    def _emit(
        self,
        kind: str,
        passes: Sequence[Pass],
        like: Sequence[Value],
        form: Any,
        *,
        want: Value | None = None,
        deferred: bool = False,
    ) -> list[Value]:
        operands: list[Value] = []
        launches = []
        for one in passes:
            given = {**one.operands, **dict.fromkeys(one.weights, self.w)}
            places = {letter: _position(operands, value) for letter, value in given.items()}
            numbers = (one.epsilon, one.below_epsilon, one.bounds, one.scale)
            launches.append(Launch(asdict(form(**one.form)), places, one.weights, *numbers))
        at = -1 if want is None else _position(operands, want)
        gamma = float(self.node.rule.get("gamma") or 0.0)
        flipped = self.node.node.op_type == "MatMul" or (self.dense and not self.node.node.integer("transB", 0))
        call = Call(kind, self.geometry, tuple(launches), gamma, want is not None, at, deferred, self.dense, flipped)
        name = "Redistribute" if kind == "conv" or self.transposed else "Denominate"
        return list(self.op.emit(name, operands, call.attributes(), outputs=len(like), domain=DOMAIN, like=list(like)))


def _position(operands: list[Value], value: Value) -> int:
    for i, known in enumerate(operands):
        if known is value:
            return i
    operands.append(value)
    return len(operands) - 1
