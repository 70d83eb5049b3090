"""What operators read: one operation with its operands and attributes, whether a forward node or the operand list of a
composite. No mutation, no second graph; shapes and constants are read off the values themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import ModelError

Value = ir.Value
Attribute = Any  # int, float, str, bytes, tuples of them, or a tensor

WEIGHS = "explain.weighs"  # metadata of a product: the position of the factor that only weighs the others
WIDEST = 1 << 20  # entries of a window along one axis
MAX_CONSTANT = 1 << 24  # elements; above, a constant operand is an expression, never a number read while building


@dataclass(frozen=True)
class Operation:
    """One operation: what rooms, rules and kernels see of a node.

    `inputs[i]` is None where an optional operand is left out. `active` holds the positions of the operands that
    depend on an explained input: relevance flows to those alone. `weighs`: the factor of a product that is known to weigh the
    others only (a recurrence's gate).
    """

    domain: str
    op_type: str
    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    active: frozenset[int] = frozenset()
    version: int = 0
    weighs: int | None = None

    @staticmethod
    def of(node: ir.Node, active: frozenset[int] = frozenset(), version: int = 0) -> Operation:
        """The view of a forward node; `active` as in the class, `version` its domain's opset."""
        attributes = {name: plain(attr) for name, attr in node.attributes.items()}
        return Operation(
            node.domain,
            node.op_type,
            node.name or (node.outputs[0].name or node.op_type),
            tuple(node.inputs),
            tuple(node.outputs),
            attributes,
            active,
            version,
            int(node.metadata_props[WEIGHS]) if WEIGHS in node.metadata_props else None,
        )

    def input(self, index: int) -> Value:
        """Operand `index`, which must be there."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise ModelError(f"{self.where}: operand {index} is missing, which the ONNX specification does not allow.")
        return value

    def has(self, index: int) -> bool:
        """Whether the optional operand `index` is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    @property
    def x(self) -> Value:
        """The first operand."""
        return self.input(0)

    @property
    def y(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def where(self) -> str:
        """``node 'conv1' (Conv)``, for messages."""
        return f"node {self.name!r} ({self.domain + '.' if self.domain else ''}{self.op_type})"

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """A float attribute, as the decimal the exporter wrote: ONNX stores float32, 1e-5 comes back as 9.99999975e-06."""
        value = self.attributes.get(name, default)
        return float(str(np.float32(value)))

    def ints(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        """A list attribute, or `default`."""
        value = self.attributes.get(name)
        return [int(v) for v in value] if value is not None else (list(default) if default is not None else None)

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def constant(self, index: int) -> npt.NDArray[Any] | None:
        """The number behind operand `index`, or None where the operand is left out.

        Raises ModelError where it is there but is not known before the model runs.
        """
        if not self.has(index):
            return None
        tensor = self.input(index).const_value
        if tensor is None or math.prod(tensor.shape.numpy()) > MAX_CONSTANT:
            raise ModelError(
                f"{self.where}: operand {index} ({self.input(index).name!r}) is computed while the model runs, but its value "
                "decides where relevance goes; export the model with this operand fixed."
            )
        return np.asarray(tensor.numpy())


def plain(attr: ir.Attr) -> Attribute:
    """The attribute as Python data."""
    value = attr.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def rank(value: Value) -> int:
    """The rank of a value, which canonical form makes known."""
    if value.shape is None:
        raise ModelError(
            f"The rank of tensor {value.name!r} is not known before the model runs; "
            "name the input's shape (`--input-shape name:[1,3,224,224]`)."
        )
    return len(value.shape)


def dims(value: Value) -> list[int | None]:
    """The dimensions; None for one that only the run decides (the batch)."""
    rank(value)
    return [d if isinstance(d, int) else None for d in value.shape or ()]


def spatial(value: Value, first: int = 2) -> list[int]:
    """The dimensions from axis `first` on, which must be static."""
    sizes = dims(value)[first:]
    if any(d is None for d in sizes):
        raise ModelError(
            f"Tensor {value.name!r} has the shape {shape_text(value)}: every dimension but the batch must be known. "
            "Name the input's shape (`--input-shape name:[1,3,224,224]`, or pass an array)."
        )
    return [int(d) for d in sizes if d is not None]


def shape_text(value: Value) -> str:
    """``[N, 3, 224, 224]``, for messages."""
    return "unknown" if value.shape is None else "[" + ", ".join(str(d) for d in value.shape) + "]"


@dataclass(frozen=True)
class Window:
    """The resolved geometry of a sliding window, per spatial axis: `auto_pad` and rank-dependent defaults are gone.

    `begin` and `end` are the pads; `size` the input's and `out` the output's spatial size.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    size: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def extent(self) -> tuple[int, ...]:
        """The window's reach per axis, dilation included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations))

    @property
    def pads(self) -> list[int]:
        """The pads in ONNX's order."""
        return [*self.begin, *self.end]

    @staticmethod
    def of(node: Operation, kernel: Sequence[int], *, x: Value, y: Value) -> Window:
        """Read strides, pads, dilations and `auto_pad` of a Conv or pooling node; sizes from `x` and `y`."""
        n = len(kernel)
        size, out = spatial(x), spatial(y)
        strides = node.ints("strides", [1] * n) or [1] * n
        dilations = node.ints("dilations", [1] * n) or [1] * n
        pads = node.ints("pads", [0] * 2 * n) or [0] * 2 * n
        begin, end = pads[:n], pads[n:]
        auto = node.text("auto_pad", "NOTSET")
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
            total = [max((o - 1) * s + e - i, 0) for o, s, e, i in zip(out, strides, extent, size)]
            small = [t // 2 for t in total]
            large = [t - t // 2 for t in total]
            begin, end = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            begin, end = [0] * n, [0] * n
        if (
            not kernel
            or min(*kernel, *strides, *dilations, *size, *out) < 1
            or len({len(strides), len(dilations), len(begin), len(end), n}) > 1
        ):
            raise ModelError(
                f"{node.where}: its window {list(kernel)}, strides {strides}, dilations {dilations} on {size} makes no sense."
            )
        if any((k - 1) * d >= i + b + e + s for k, d, i, b, e, s in zip(kernel, dilations, size, begin, end, strides)):
            raise ModelError(f"{node.where}: its window {list(kernel)} is larger than its input {size}.")
        if max(kernel) > WIDEST:
            raise ModelError(
                f"{node.where}: its window {list(kernel)} is wider than {WIDEST}; the model may be damaged."
            )
        return Window(
            tuple(int(k) for k in kernel),
            tuple(strides),
            tuple(dilations),
            tuple(begin),
            tuple(end),
            tuple(size),
            tuple(out),
        )
