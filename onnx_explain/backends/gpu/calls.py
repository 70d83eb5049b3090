"""What a kernel is asked to do, as data: launches of one layer, its geometry and versions of its weights; kept in a node.

Here live the node's attributes and their reading. Which composite becomes which call is `lowering`'s affair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.ir.view import Operation, Value, Window, dims, rank
from onnx_explain.operators.conv import transposed_window

DOMAIN = "ai.onnx_explain.kernel"
POOLS = ("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
CONVOLUTIONS = ("Conv", "ConvTranspose")
LAYERS = (*CONVOLUTIONS, *POOLS)
DENSE = ("Gemm", "MatMul")
_CALL = "explain_call"
Operand = TypeVar("Operand")


@dataclass(frozen=True)
class OnePass(Generic[Operand]):
    """One pass over a layer: a form's fields, and where each of its operands comes from, by the kernel's letter.

    `operands`: values while the call is written (`Pass`), positions in the node's inputs once it is (`Launch`). `weights`: the
    letters w, v to versions of the weight. `scale`: what a denominator's form multiplies relevance by.
    """

    form: Mapping[str, Any]
    operands: Mapping[str, Operand]
    weights: Mapping[str, str]
    epsilon: float = 0.0
    below_epsilon: float = 0.0
    bounds: tuple[bool, bool] = (False, True)
    scale: float = 1.0


Pass = OnePass[Value]
Launch = OnePass[int]


@dataclass(frozen=True)
class Call:
    """A layer's launches, in order, into one result.

    `kind`: ``conv``, ``denominator`` (a pass forward) or ``pool``. `geometry`: the layer's for one sample, as keywords of `Conv`
    or `Pool`. `shifted`: RAP's uniform shift follows; operand `want` (its position) holds the sums wanted, and a second output
    [N] the sums left. `deferred`: the shift is not taken off but a third output, for who reads the first. `dense`: a matrix
    product, each row a sample; `flipped`: its weight lies [inputs, outputs].
    """

    kind: str
    geometry: Mapping[str, Any]
    launches: tuple[Launch, ...]
    gamma: float = 0.0
    shifted: bool = False
    want: int = -1
    deferred: bool = False
    dense: bool = False
    flipped: bool = False

    def attributes(self) -> dict[str, Any]:
        """As attributes of a node."""
        return {_CALL: json.dumps(asdict(self), sort_keys=True)}

    @staticmethod
    def of(node: ir.Node) -> Call:
        """Read back from a node of this domain."""
        data = json.loads(str(node.attributes[_CALL].value))
        launches = tuple(Launch(**{**one, "bounds": tuple(one["bounds"])}) for one in data.pop("launches"))
        geometry = {k: tuple(v) if isinstance(v, list) else v for k, v in data.pop("geometry").items()}
        return Call(geometry=geometry, launches=launches, **data)


def version(w: npt.NDArray[Any], name: str, gamma: float) -> npt.NDArray[Any]:
    """A version of a weight by its name in the rules: w⁺, w⁻, |w⁻|, |w|, 1, w², w + γw⁺, w + γw⁻, or w itself."""
    above, below = np.maximum(w, 0), np.minimum(w, 0)
    versions: dict[str, npt.NDArray[Any]] = {
        "": w,
        "+": above,
        "-": below,
        "|-|": -below,
        "||": np.abs(w),
        "1": np.ones_like(w),
        "2": w * w,
        "g+": w + gamma * above,
        "g-": w + gamma * below,
    }
    return versions[name]


def conv_geometry(node: Operation) -> dict[str, Any] | None:
    """A convolution's geometry for one sample; None where no kernel covers it: other than one or two spatial axes.

    Of a ConvTranspose that of the convolution whose adjoint it is: from what it gives to what it takes.
    """
    from onnx_explain_kernels.errors import UnsupportedShape
    from onnx_explain_kernels.geometry import Conv

    x, w, y = node.input(0), node.input(1), node.y
    kernel = dims(w)[2:]
    if None in (*dims(x)[1:], *dims(y)[1:], *kernel):
        return None
    if node.op_type == "ConvTranspose":
        window = transposed_window(node, x, w)
        x, y = y, x
    else:
        window = Window.of(node, [int(k or 0) for k in kernel], x=x, y=y)
    channels, filters = dims(x)[1], dims(y)[1]
    try:
        conv = Conv.of(
            1,
            int(channels or 0),
            int(filters or 0),
            window.size,
            window.kernel,
            out=window.out,
            strides=window.strides,
            pads=tuple(window.pads),
            dilations=window.dilations,
            group=node.integer("group", 1),
        )
    except UnsupportedShape:
        return None
    return asdict(conv)


def dense_geometry(node: Operation) -> dict[str, Any] | None:
    """A dense layer's geometry for one row; None where it is no plain x W or x Wᵀ of rows of samples."""
    from onnx_explain_kernels.errors import UnsupportedShape
    from onnx_explain_kernels.geometry import Conv

    x, w = node.input(0), node.input(1)
    plain = node.op_type == "MatMul" or (node.integer("transA", 0) == 0 and node.number("alpha", 1.0) == 1.0)
    if not plain or rank(x) < 2 or rank(w) != 2 or None in (*dims(w), *dims(x)[1:]):
        return None
    inputs, outputs = (int(d or 0) for d in dims(w))
    if node.op_type == "Gemm" and node.integer("transB", 0):
        inputs, outputs = outputs, inputs
    try:
        return asdict(Conv.dense(1, inputs, outputs))
    except UnsupportedShape:
        return None


def pool_geometry(node: Operation) -> dict[str, Any] | None:
    """A pool's geometry for one sample, or None where no kernel covers it."""
    from onnx_explain_kernels.errors import UnsupportedShape
    from onnx_explain_kernels.geometry import Pool

    x, y = node.x, node.y
    channels = dims(x)[1]
    whole = node.op_type.startswith("Global")
    kernel = [d or 0 for d in dims(x)[2:]] if whole else node.ints("kernel_shape") or []
    if channels is None or None in (*dims(x)[2:], *dims(y)[1:]) or not kernel:
        return None
    window = Window.of(node, kernel, x=x, y=y)
    try:
        pool = Pool.of(
            1,
            channels,
            window.size,
            window.kernel,
            out=window.out,
            strides=window.strides,
            pads=tuple(window.pads),
            dilations=window.dilations,
            include_pad=bool(node.integer("count_include_pad", 0)),
        )
    except UnsupportedShape:
        return None
    return asdict(pool)


def layer_operations(node: Operation) -> int:
    """Floating-point operations of one pass over a convolution or pool, for one sample: two per multiply-add, one per
    element of a window.
    """
    out = prod(d or 1 for d in dims(node.x if node.op_type == "ConvTranspose" else node.y)[2:])
    if node.op_type in CONVOLUTIONS:
        if node.input(1).shape is not None:
            return 2 * out * prod(d or 1 for d in dims(node.input(1)))
        channels = (dims(node.x)[1] or 1) * (dims(node.y)[1] or 1) // node.integer("group", 1)
        return 2 * out * channels * prod(node.ints("kernel_shape") or [1])
    if node.op_type in POOLS:
        channels = dims(node.y)[1] or 1
        kernel = node.ints("kernel_shape") or [d or 1 for d in dims(node.x)[2:]]
        return out * channels * prod(kernel)
    return 0


def is_constant(value: Value) -> bool:
    """Whether a value follows from constants alone, so that it can be computed before the model runs."""
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or (one.const_value is not None and not one.is_graph_input()):
            continue
        seen.add(id(one))
        maker = one.producer()
        if maker is None or maker.domain != "" or not maker.inputs or maker.op_type == "DequantizeLinear":
            return False  # dequantised weights are not folded (`ir.fold`)
        waiting += [v for v in maker.inputs if v is not None]
    return True
