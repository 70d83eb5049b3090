"""Weights of an ONNX graph, re-initialised layer by layer: new models out, the given one is never changed.

A layer is a node that multiplies by constants (Conv, Gemm, MatMul, LSTM, an embedding's Gather, …) with all its constants, the bias of
a following Add among them. Constants are initialisers or Constant nodes, reached through Identity, Cast, Transpose,
(De)QuantizeLinear and the like, in the graph or in the branches of If, Loop and Scan; local functions are inlined first.
Normalisation layers, their running statistics included, stay as they are unless asked for, and the statistics always do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from onnx_explain.errors import ModelError
from onnx_explain.metrics.arrays import Array, choice, whole

Order = Literal["cascading", "bottom-up", "independent"]
ORDERS = ("cascading", "bottom-up", "independent")
DOMAINS = ("", "ai.onnx", "com.microsoft")
# Operator: which operands are parameters.
WEIGHTED: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "FusedConv"), (1, 2)),
    **dict.fromkeys(("Gemm", "FusedGemm"), (0, 1, 2)),
    **dict.fromkeys(("MatMul", "FusedMatMul", "MatMulInteger"), (0, 1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
    "ConvInteger": (1,),
    "DeformConv": (1, 3),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (0, 3),
    "Einsum": (0, 1, 2, 3),
    "Gather": (0,),
    "Attention": (1, 2),
}
NORMALISING: dict[str, tuple[int, ...]] = dict.fromkeys(
    ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization"),
    (1, 2),
)
PASSED = {
    "Identity",
    "Cast",
    "Transpose",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "QuantizeLinear",
    "DequantizeLinear",
}
FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16}
EXACT = {
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT16,
    onnx.TensorProto.UINT16,
    onnx.TensorProto.INT32,
}


@dataclass(frozen=True)
class Randomised:
    """A model with new weights. layer: the layer re-initialised last; layers: all that were, in the order of the work."""

    layer: str
    layers: tuple[str, ...]
    model: onnx.ModelProto


@dataclass
class _Layer:
    name: str
    weights: list[int] = field(default_factory=list)


@dataclass
class _Scope:
    """What a graph can see by name: constants by their number, and who makes a value."""

    constants: dict[str, int]
    makers: dict[str, onnx.NodeProto]


def weight_layers(model: Any, *, normalisation: bool = False) -> list[str]:
    """Names of the layers from the output down: reverse of the graph's order of computation. Raises ModelError."""
    return [layer.name for layer in reversed(_Weights(loaded(model), normalisation).layers)]


def randomised_models(
    model: Any, *, order: Order = "cascading", seed: int = 0, normalisation: bool = False
) -> Iterator[Randomised]:
    """The model with one layer after another re-initialised; one model in memory besides the working copy.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3: ``"cascading"`` from the output downwards, each
    model with one layer more; ``"bottom-up"`` the same from the input; ``"independent"`` one layer at a time, from the
    output downwards, the others as they were.

    model: path, bytes or `onnx.ModelProto`. New values are normal with the weight's own mean and standard deviation, in its shape
    and type (whole numbers rounded and kept within the old range); a weight of one value alone, such as a bias of zeros, has no
    spread and stays. They depend on (seed, the weight's place in the file) alone, so a layer gets the same ones in every
    order. A weight that two layers share changes for both. normalisation: scale and shift of normalisation layers count as
    layers too; running mean and variance never change.

    Raises ModelError: unreadable, or no layer with constants.
    """
    choice("order", order, ORDERS)
    weights = _Weights(loaded(model), normalisation)
    layers = weights.layers if order == "bottom-up" else weights.layers[::-1]
    done: list[str] = []
    for layer in layers:
        if order == "independent":
            weights.restore()
            done.clear()
        weights.redraw(layer, whole("seed", seed, 0))
        done.append(layer.name)
        yield Randomised(layer.name, tuple(done), weights.copy())


class _Weights:
    """A private copy of a model, its constants, and its layers in order of computation."""

    def __init__(self, proto: onnx.ModelProto, normalisation: bool) -> None:
        self._proto = proto
        self._tables = {**WEIGHTED, **(NORMALISING if normalisation else {})}
        self._tensors: list[onnx.TensorProto] = []
        self.layers: list[_Layer] = []
        self._visit(proto.graph, _Scope({}, {}))
        self._originals: dict[int, onnx.TensorProto] = {}
        if not self.layers:
            raise ModelError("The model has no layer with constant weights, so there is nothing to re-initialise.")

    def copy(self) -> onnx.ModelProto:
        """The model as it is now, to give away."""
        out = onnx.ModelProto()
        out.CopyFrom(self._proto)
        return out

    def redraw(self, layer: _Layer, seed: int) -> None:
        """New values for every weight of a layer."""
        for number in layer.weights:
            tensor = self._tensors[number]
            if number not in self._originals:
                kept = onnx.TensorProto()
                kept.CopyFrom(tensor)
                self._originals[number] = kept
            stream = np.random.default_rng([seed, number])
            tensor.CopyFrom(_drawn(self._originals[number], stream))

    def restore(self) -> None:
        """Every weight as the file has it."""
        for number, kept in self._originals.items():
            self._tensors[number].CopyFrom(kept)

    def _visit(self, graph: onnx.GraphProto, outer: _Scope) -> None:
        nodes = _sorted(graph)
        scope = _Scope(dict(outer.constants), dict(outer.makers))
        for tensor in graph.initializer:
            self._keep(tensor.name, tensor, scope)
        made: dict[str, _Layer] = {}
        for node in nodes:
            scope.makers.update((name, node) for name in node.output)
            if node.op_type == "Constant":
                self._keep_constant(node, scope)
            for attribute in node.attribute:
                for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                    self._visit(body, scope)
            self._layer_of(node, scope, made)

    def _keep(self, name: str, tensor: onnx.TensorProto, scope: _Scope) -> None:
        scope.constants[name] = len(self._tensors)
        self._tensors.append(tensor)

    def _keep_constant(self, node: onnx.NodeProto, scope: _Scope) -> None:
        for attribute in node.attribute:
            if attribute.name == "value_floats":
                tensor = numpy_helper.from_array(np.array(attribute.floats, np.float32))
                attribute.CopyFrom(helper.make_attribute("value", tensor))
            if attribute.name == "value":
                self._keep(node.output[0], attribute.t, scope)

    def _layer_of(self, node: onnx.NodeProto, scope: _Scope, made: dict[str, _Layer]) -> None:
        if node.domain not in DOMAINS:
            return
        if node.op_type == "Add":
            self._bias_of(node, scope, made)
            return
        operands = [node.input[k] for k in self._tables.get(node.op_type, ()) if k < len(node.input)]
        found = [n for n in (self._constant(o, scope) for o in operands) if n is not None]
        # an index table behind a Gather is no weight
        if not found or (node.op_type == "Gather" and self._tensors[found[0]].data_type not in FLOATS):
            return
        layer = _Layer(node.name or node.output[0], list(dict.fromkeys(found)))
        self.layers.append(layer)
        made.update((name, layer) for name in node.output)

    def _bias_of(self, node: onnx.NodeProto, scope: _Scope, made: dict[str, _Layer]) -> None:
        for one, other in (node.input, reversed(list(node.input))):
            number = self._constant(other, scope)
            if one in made and number is not None and number not in made[one].weights:
                made[one].weights.append(number)

    def _constant(self, name: str, scope: _Scope) -> int | None:
        """The constant behind a name, through operators that only dress it."""
        seen: set[str] = set()
        while name not in scope.constants:
            maker = scope.makers.get(name)
            if maker is None or maker.op_type not in PASSED or maker.domain not in DOMAINS or name in seen:
                return None
            seen.add(name)
            name = next(iter(maker.input), "")
        number = scope.constants[name]
        return number if self._tensors[number].data_type in FLOATS | EXACT | _NARROW else None


_NARROW = {
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name.startswith(("BFLOAT16", "FLOAT8", "FLOAT4", "INT4", "UINT4"))
}


def _drawn(tensor: onnx.TensorProto, stream: np.random.Generator) -> onnx.TensorProto:
    """A tensor of the same name, shape and type with new normal values of the same mean and standard deviation."""
    old = numpy_helper.to_array(tensor).astype(np.float64)
    if not np.isfinite(old).all():
        raise ModelError(f"The weight {tensor.name!r} holds NaN or infinity, so it has no spread to draw from.")
    new = _normal(old, stream)
    if tensor.data_type not in FLOATS:
        new = np.clip(np.rint(new) if tensor.data_type in EXACT or _is_whole(tensor) else new, old.min(), old.max())
    if tensor.data_type in FLOATS | EXACT:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return numpy_helper.from_array(new.astype(dtype), tensor.name)
    return helper.make_tensor(tensor.name, tensor.data_type, list(tensor.dims), new.ravel().tolist())


def _normal(old: Array, stream: np.random.Generator) -> Array:
    if not old.size or old.min() == old.max():
        return old
    return np.asarray(stream.normal(old.mean(), old.std(), old.shape))


def _is_whole(tensor: onnx.TensorProto) -> bool:
    return "INT" in onnx.TensorProto.DataType.Name(tensor.data_type)


def _sorted(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes in order of computation: the file's, as far as it is one; a loop is left as the file has it."""
    own = {name for node in graph.node for name in node.output if name}
    ready: set[str] = set()
    order: list[onnx.NodeProto] = []
    rest = list(graph.node)
    while rest:
        later = []
        for node in rest:
            if all(name in ready for name in _reads(node) if name in own):
                order.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(rest):
            return order + later
        rest = later
    return order


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            for inner in body.node:
                yield from _reads(inner)


def loaded(model: Any) -> onnx.ModelProto:
    """A model (path, bytes or `onnx.ModelProto`) as a copy of its own, data in memory, functions inlined. Raises ModelError."""
    from onnx_explain.ir.model import load

    load(model)  # its errors are the ones to show
    proto = onnx.ModelProto()
    if isinstance(model, onnx.ModelProto):
        proto.CopyFrom(model)
    elif isinstance(model, (str, os.PathLike)):
        proto = onnx.load(os.fspath(model))
    else:
        proto.ParseFromString(bytes(model))
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto
