"""Which operators are fitted: the weighted ones on the way to the target, what follows each, and their folded weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnx_explain.backends.reference import Reference
from onnx_explain.errors import InputError, ModelError
from onnx_explain.fitting.neurons import Reading, reading
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, dims, rank
from onnx_explain.ir.widen import as_float64
from onnx_explain.methods import Assignment, Composite, Selector
from onnx_explain.operators.roles import Linear, Pointwise, Rearrangement, Selection, Sum
from onnx_explain.path import activity, explained_tensor, wrt_tensors
from onnx_explain.patterns.storage import Rectified
from onnx_explain.relevance.chain import Chain, Link
from onnx_explain.rules import gradient
from onnx_explain.rules.pattern import ancestors, fingerprint

Array = npt.NDArray[Any]
FOLDING = Composite((Assignment(Selector(), gradient.adjoint, "gradient"),))
# Rectifier-like: most of what is negative is held back, so that the two regimes differ (an extension of the paper's ReLU).
SOFT_RECTIFIERS = frozenset(
    {"LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Softplus", "Mish", "HardSwish", "Swish", "ThresholdedRelu"}
)


@dataclass(frozen=True)
class Layer:
    """One weighted operator as a fit sees it. x, y, gate: names of the outputs that hold its input, its result, and what is
    above 0 where it fires: y, or y behind an affine map per channel that is not folded.
    """

    node: str
    operator: str
    weight_name: str
    weight: Value
    bias: Value | None
    regime: Rectified
    reading: Reading
    x: str
    y: str
    gate: str
    numbers: int  # of x and y per run of the shapes in the graph

    @property
    def accumulated(self) -> int:
        """Bytes of its sums."""
        layout = self.reading.layout
        return 8 * (3 * layout.neurons * layout.patch + self.reading.groups * layout.patch)

    def blocks(self, arrays: Mapping[str, Array]) -> Iterator[tuple[Array, Array, Array]]:
        """x, y and the gate of a batch, cut as the reading cuts them; one array where the gate is y."""
        cut, x = self.reading.blocks, arrays[self.x]
        if self.gate == self.y:
            yield from ((a, y, y) for a, y in cut(x, arrays[self.y]))
        else:
            yield from ((a, y, g) for (a, y), (_, g) in zip(cut(x, arrays[self.y]), cut(x, arrays[self.gate])))

    def identity(self) -> tuple[str, str]:
        """SHA-256 of weight and bias."""
        return fingerprint(self.weight), fingerprint(self.bias)


@dataclass(frozen=True)
class Addition:
    """One Sum of activations: its operands' outputs, their coefficients, and the axis of its channels."""

    node: str
    operator: str
    operands: tuple[str, ...]
    coefficients: tuple[float, ...]
    y: str
    axis: int
    channels: int


@dataclass(frozen=True)
class Watched:
    """A model whose every fitted operator's x and y are outputs."""

    model: ir.Model
    layers: tuple[Layer, ...]
    additions: tuple[Addition, ...]


def watched(
    model: ir.Model,
    *,
    output: str | None,
    logits: bool,
    wrt: Sequence[str] | None,
    chosen: frozenset[str] | None = None,
) -> Watched:
    """The operators between inputs and target; `chosen`: only these nodes' tensors become outputs.

    Raises InputError where there is none, UnsupportedOperator as for any explanation.
    """
    model = model.clone()
    op = Emitter(model.graph)
    names = wrt_tensors(model, wrt)
    if not names:
        raise InputError(
            "The model has no float input, and integers carry no relevance; fit a model from its embeddings on (`wrt=NAME`)."
        )
    target = explained_tensor(model, output, logits=logits)
    active, live = activity(model, names)
    links = Chain(model, op, FOLDING, "pattern-attribution").links([target], active, live)
    outputs: dict[int, str] = {}

    def named(value: Value, wanted: bool) -> str:
        if id(value) not in outputs:
            outputs[id(value)] = f"fitted/{len(outputs)}"
            if wanted:
                op.output(value, outputs[id(value)], value)
        return outputs[id(value)]

    layers, additions, readers = [], [], _readers(links)
    for link in links:
        node, role = link.operation, link.role
        wanted = chosen is None or node.name in chosen
        if isinstance(role, Linear) and role.kind == "weighted" and wanted:
            x, w = node.input(role.data), node.input(role.weight or 0)
            original = next((n for n in model.graph if n.name == node.name), None)
            before = original.inputs[role.weight or 0] if original is not None else None
            name = (w if before is None else before).name or ""
            if original is not None and link.fused and not role.spatial:
                # ONNX Runtime 1.2x fuses MatMul and BatchNormalization into an invalid graph where several nodes read
                # the result; not so where the product itself is wanted
                named(original.outputs[0], wanted)
            regime = _regime(node.y, readers, target)
            gate = _gate(node.y, readers) if regime == "positive" else node.y
            numbers = sum(_size(v) for v in {id(v): v for v in (x, node.y, gate)}.values())
            layers.append(
                Layer(
                    node.name, node.op_type, name, w, link.bias, regime, reading(node, role),
                    named(x, wanted), named(node.y, wanted), named(gate, wanted), numbers,
                )
            )  # fmt: skip
        elif isinstance(role, Sum) and len(node.active) > 1 and wanted:
            found = _addition(link, role, links)
            if found is not None:
                axis, channels = found
                active_now = sorted(node.active)
                operands = tuple(named(node.input(k), wanted) for k in active_now)
                coefficients = tuple(role.coefficients[k] for k in active_now)
                additions.append(
                    Addition(node.name, node.op_type, operands, coefficients, named(node.y, wanted), axis, channels)
                )
    if chosen is None and not layers:
        raise InputError(
            "There is no weighted operator between the model's inputs and its output, so there is nothing to fit."
        )
    op.finish()
    return Watched(model, tuple(layers), tuple(additions))


def _size(value: Value) -> int:
    return int(np.prod([d or 1 for d in dims(value)], dtype=np.int64))


def _addition(link: Link, role: Sum, links: Sequence[Link]) -> tuple[int, int] | None:
    """Axis and number of the channels: those of the nearest weighted operator above; None where they are not known."""
    y = link.operation.y
    if rank(y) < 2:
        return None
    made = {id(v): n for n in links for v in n.operation.outputs}
    axis, waiting, seen = 1, [y], set[int]()
    while waiting:
        before = made.get(id(waiting.pop(0)))
        if before is None or id(before) in seen:
            continue
        seen.add(id(before))
        if isinstance(before.role, Linear) and before.role.kind == "weighted":
            axis = before.role.channel_axis
            break
        waiting.extend(before.operation.input(i) for i in sorted(before.operation.active))
    axis = min(axis, rank(y) - 1)
    channels = dims(y)[axis]
    return None if channels is None else (axis, channels)


def _regime(y: Value, readers: Mapping[int, list[Link]], target: Value) -> Rectified:
    """What follows: a rectifier through shape operators, max-pools, rounding and affine maps per channel, something like
    one, or neither.
    """
    found, waiting = set[Rectified](), [y]
    while waiting:
        value = waiting.pop()
        behind = readers.get(id(value), [])
        if value is target or not behind:
            found.add("linear")
        for other in behind:
            role = other.role
            if isinstance(role, Pointwise) and not role.through:
                soft: Rectified = "two-component" if other.operation.op_type in SOFT_RECTIFIERS else "linear"
                found.add("positive" if role.rectifier or role.guided else soft)
            elif isinstance(role, (Rearrangement, Selection)) or _affine(other):
                waiting.extend(other.operation.outputs)
            else:
                found.add("linear")
    return next(iter(found)) if len(found) == 1 else "linear"


def _readers(links: Sequence[Link]) -> dict[int, list[Link]]:
    """{id of a value: the links that read it}."""
    readers: dict[int, list[Link]] = {}
    for link in links:
        for i in link.operation.active:
            readers.setdefault(id(link.operation.input(i)), []).append(link)
    return readers


def _affine(link: Link) -> bool:
    """Whether every entry of the result is made of the operand's entry there and constants: a·x + b, or x rounded."""
    role, node = link.role, link.operation
    one = len(node.active) == 1 and node.y.shape is not None and node.y.shape == node.input(min(node.active)).shape
    affine = isinstance(role, Sum) or (isinstance(role, Linear) and role.kind in ("normalisation", "scale"))
    return one and (affine or (isinstance(role, Pointwise) and role.through))


def _gate(y: Value, readers: Mapping[int, list[Link]]) -> Value:
    """The last tensor behind a result, entry by entry of affine maps, that decides what a rectifier lets pass."""
    while len(behind := readers.get(id(y), [])) == 1 and _affine(behind[0]):
        y = behind[0].operation.y
    return y


def weights(layers: Sequence[Layer]) -> list[Array]:
    """The layers' weights as rows [O, D], float64, with BatchNormalization folded in and the operator's scale applied."""
    arrays = constants([layer.weight for layer in layers])
    return [layer.reading.layout.rows(a) * layer.reading.scale for layer, a in zip(layers, arrays)]


def constants(values: list[Value]) -> list[Array]:
    """Expressions of constants in float64."""
    computed = [v for v in values if v.const_value is None]
    results: dict[str, Array] = {}
    if computed:
        nodes = ancestors(computed)
        leaves = {v.name or "": v for n in nodes for v in n.inputs if v is not None and v.const_value is not None}
        proto = onnx.ModelProto(ir_version=10)
        opset = next((n.graph.opset_imports.get("", 18) for n in nodes if n.graph is not None), 18)
        proto.opset_import.append(onnx.helper.make_opsetid("", opset))
        proto.graph.name = "constants"
        proto.graph.node.extend(ir.to_proto(n) for n in nodes)
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(_wide(v), n) for n, v in leaves.items())
        proto.graph.output.extend(onnx.ValueInfoProto(name=v.name or "") for v in computed)
        names = [v.name or "" for v in computed]
        try:
            runner = Reference(as_float64(ir.from_proto(proto)))
            results = {n: np.asarray(a) for n, a in runner.run({}, names).items()}
        except Exception as error:
            raise ModelError(
                f"The weight {names[0]!r} is put together from constants in a way that cannot be evaluated ({type(error).__name__})."
            ) from error
    return [results[v.name or ""] if v.const_value is None else _wide(v) for v in values]


def _wide(value: Value) -> Array:
    tensor = value.const_value
    if tensor is None:
        raise ModelError(
            f"The weight {value.name!r} is an input of the model, so it has no pattern; make it a constant."
        )
    array = np.asarray(tensor.numpy())
    return array if array.dtype.kind in "biu" else array.astype(np.float64)
