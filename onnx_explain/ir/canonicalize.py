"""Canonical form: functions inlined, one opset, constants lifted and folded, every tensor typed and shaped.

Ordered passes with postconditions. Nothing here changes what the model computes: no layer is removed; chains of primitives
that spell one operator become that operator (`recognise`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common as passes

from onnx_explain.errors import InputError, ModelError, UnsupportedOperator, suggest
from onnx_explain.ir.apart import take_apart
from onnx_explain.ir.ceilings import leave_out_late_windows
from onnx_explain.ir.classic import REFUSED
from onnx_explain.ir.dequantise import join, lay_apart
from onnx_explain.ir.emit import set_dtype
from onnx_explain.ir.halves import in_single
from onnx_explain.ir.light import without_weights
from onnx_explain.ir.model import first_line
from onnx_explain.ir.recognise import recognise
from onnx_explain.ir.seen import Seen
from onnx_explain.ir.sequences import resolve_sequences
from onnx_explain.ir.straighten import straighten
from onnx_explain.ir.unfuse import CLASSIC, RECURRENT, unfuse
from onnx_explain.ir.view import Operation

OPSET = 18  # the lowest opset with axes as inputs, Split's num_outputs and ScatterElements' additions
GIANT = 16 << 30  # bytes of one tensor for one sample
FOLDED = 4096  # elements; larger constants stay expressions: a weight made by ConstantOfShape must not fill the file
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
BATCH = "N"
_KNOWS_AXES, _KNOWS_NIBBLES = 13, 21  # the opsets from which on DequantizeLinear takes an axis, and numbers of 4 bits
_NIBBLES = {ir.DataType.INT4: np.int8, ir.DataType.UINT4: np.uint8}
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)
_OWN_QUANTISERS = {("com.microsoft", "QuantizeLinear"), ("com.microsoft", "DequantizeLinear")}

Shapes = Mapping[str, Sequence[int | str | None]]


def canonicalize(model: ir.Model, shapes: Shapes | None = None, *, whole: bool = False) -> ir.Model:
    """A new model in canonical form; `shapes` fixes dimensions of inputs that the file leaves open, the first one (the batch)
    only where the `whole` shape is meant.

    Postconditions: opset >= 18; no functions; no initialiser among the inputs; constants carry their number up to
    4 096 elements; every tensor has a dtype and, where inference can tell, a shape whose only open dimension is the
    batch (``N``). Raises ModelError and InputError.
    """
    model = model.clone()
    _lift(model)
    _standard_quantisers(model)
    _bind(model, shapes or {}, whole=whole)
    straighten(model)
    unfuse(model, look)
    _convert(model)
    _lift(model)
    straighten(model, look)
    resolve_sequences(model)
    unfuse(model, look)
    in_single(model)
    _say_defaults(model)
    _name(model)
    _clear_stale_shapes(model)
    leave_out_late_windows(model, look)
    joins = lay_apart(model)
    _infer(model)
    _refuse_giants(model)
    return recognise(take_apart(join(model, joins)))


def _refuse_giants(model: ir.Model) -> None:
    """A few bytes of a file can ask for any shape: a tensor that no machine holds is refused before anything runs."""
    for node in model.graph:
        for value in node.outputs:
            sizes = [d for d in value.shape or () if isinstance(d, int)]
            width = value.dtype.itemsize if value.dtype not in (None, ir.DataType.STRING, ir.DataType.UNDEFINED) else 1
            if math.prod(sizes) * width > GIANT:
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}): its result {value.name!r} would have the shape {sizes}, more than "
                    f"{GIANT >> 30} GB for one sample; the model may be damaged."
                )


def _lift(model: ir.Model) -> None:
    """Functions inlined, Constant nodes lifted, initialisers out of the inputs (IR < 4 lists them there)."""
    try:
        if model.functions:
            passes.InlinePass()(model)
            passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    except Exception as error:
        raise ModelError(
            f"The model's functions or constants cannot be resolved ({first_line(error)}); export it again."
        ) from error
    graph = model.graph
    fed = [v for v in graph.inputs if v.name not in graph.initializers]
    if len(fed) != len(graph.inputs):
        del graph.inputs[:]
        graph.inputs.extend(fed)
    model.ir_version = max(model.ir_version, 8)


def _standard_quantisers(model: ir.Model) -> None:
    """ONNX Runtime's own Quantize- and DequantizeLinear as ONNX's, wherever 8 bits hold the integers.

    Its quantiser writes all pairs so where one of them has 4 or 16 bits and the opset knows neither; ONNX infers no shape
    behind them. Constants of 4 bits become bytes.
    """
    version = model.graph.opset_imports.get("", 0)
    if not _KNOWS_AXES <= version < _KNOWS_NIBBLES:
        return
    for value in model.graph.initializers.values():
        wider = _NIBBLES.get(value.dtype) if value.dtype is not None else None
        if wider is not None and value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(wider), name=value.name)
            value.dtype = value.const_value.dtype
    for node in model.graph:
        if (node.domain, node.op_type) in _OWN_QUANTISERS and "block_size" not in node.attributes:
            zero = node.inputs[2] if len(node.inputs) > 2 else None
            integers = node.inputs[0] if zero is None and node.op_type == "DequantizeLinear" else zero
            if integers is not None and integers.dtype in _BYTES:
                node.domain = ""


def _convert(model: ir.Model) -> None:
    """One opset: up to 18 where the file is older, as it is where it is newer. Never down."""
    version = model.graph.opset_imports.get("", None)
    if version is None:
        if any(node.domain == "" for node in model.graph):
            raise ModelError(
                "The model uses ONNX operators but names no version of them (`opset_import`); export it again."
            )
        model.graph.opset_imports[""] = OPSET
        return
    if version >= OPSET:
        return
    from onnxscript import version_converter

    for node in model.graph.all_nodes():
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, version, ""):
            raise UnsupportedOperator(
                f"{Operation.of(node).where}: ONNX has no such operator in opset {version}; export the model again."
            )
    _clear_stale_shapes(model)
    clipped = _clipped_types(model) if version < 11 else {}
    outputs = [v.name for v in model.graph.outputs]
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        version_converter.ConvertVersionPass(target_version=OPSET, fallback=True)(model)
    except Exception as error:
        raise ModelError(
            f"The model's opset {version} cannot be brought to {OPSET} ({first_line(error)}); export it with opset 18 or later."
        ) from error
    if model.graph.opset_imports.get("") != OPSET:
        foreign = next((n for n in model.graph if n.domain not in ("", "ai.onnx")), None)
        if foreign is not None:
            why = REFUSED.get(foreign.op_type) if foreign.domain == CLASSIC else None
            if why is not None:
                raise UnsupportedOperator(f"{Operation.of(foreign).where}: cannot be passed: {why}.")
            raise UnsupportedOperator(
                f"node {foreign.name or foreign.outputs[0].name!r} ({foreign.domain}.{foreign.op_type}): an operator of domain "
                f"{foreign.domain!r} has no room here, nor a version to bring it to; export the model with standard ONNX operators."
            )
        raise ModelError(f"The model's opset {version} cannot be brought to {OPSET}; export it with opset 13 or later.")
    if version < 16:
        _restore_whole_pixels(model)
    if version <= 10:
        _restore_asymmetric(model)
        _retype_bounds(model, clipped)
    if [v.name for v in model.graph.outputs] != outputs:
        raise ModelError(
            f"Bringing the model from opset {version} to {OPSET} lost an output's name; export it with opset 18 or later."
        )


def _clipped_types(model: ir.Model) -> dict[str, ir.DataType]:
    """The dtype of every Clip whose bounds are attributes still, by its output's name."""
    if not any(node.op_type == "Clip" for node in model.graph.all_nodes()):
        return {}
    typed = model.clone()
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(typed)
    clips = [n.outputs[0] for n in typed.graph.all_nodes() if n.op_type == "Clip"]
    return {v.name or "": v.dtype for v in clips if v.dtype is not None}


def _retype_bounds(model: ir.Model, types: Mapping[str, ir.DataType]) -> None:
    """Bounds that were attributes become operands; the converter makes them float32 whatever the tensor is."""
    for node in list(model.graph.all_nodes()):
        dtype = types.get(node.outputs[0].name or "") if node.op_type == "Clip" else None
        for index in (1, 2) if dtype not in (None, ir.DataType.FLOAT) else ():
            bound = node.inputs[index] if index < len(node.inputs) else None
            if bound is None or dtype is None or node.graph is None:
                continue
            cast = ir.node(
                "Cast", [bound], {"to": int(dtype)}, name=f"{node.name or node.outputs[0].name}/bound{index}"
            )
            cast.outputs[0].name = f"{cast.name}_out"
            node.graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])


def _restore_asymmetric(model: ir.Model) -> None:
    """Upsample and Resize-10 sampled at k/scale and rounded down; the converter leaves them to the newer defaults."""
    for node in model.graph.all_nodes():
        if node.op_type == "Resize":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")


def _say_defaults(model: ir.Model) -> None:
    """STFT is one-sided unless it says otherwise; ONNX's shape inference takes an unsaid `onesided` for 0."""
    for node in model.graph.all_nodes():
        if node.op_type == "STFT" and "onesided" not in node.attributes:
            node.attributes["onesided"] = ir.AttrInt64("onesided", 1)


def _restore_whole_pixels(model: ir.Model) -> None:
    """RoiAlign before opset 16 does not move regions by half a pixel; the converter leaves it to the newer default."""
    for node in model.graph.all_nodes():
        if node.op_type == "RoiAlign":
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "output_half_pixel"
            )


def _name(model: ir.Model) -> None:
    """Unnamed nodes are called after their operator and place, so that every message can name one."""
    taken = {node.name for node in model.graph if node.name}
    seen: set[str] = set()
    for index, node in enumerate(model.graph):
        if not node.name or node.name in seen:
            stem = f"{node.name or node.op_type}_{index}"
            while stem in taken:
                stem += "_"
            node.name = stem
            taken.add(stem)
        seen.add(node.name)


def _clear_stale_shapes(model: ir.Model) -> None:
    kept = {id(v) for v in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in kept:
                value.shape = None


def _bind(model: ir.Model, shapes: Shapes, *, whole: bool = False) -> None:
    """Write the given dimensions into the inputs; the first axis stays open where the file leaves it open, unless `whole`."""
    named = {v.name or "": v for v in model.graph.inputs}
    for name, given in shapes.items():
        if name not in named:
            raise InputError(f"The model has no input {name!r}.{suggest(name, named)}")
        value = named[name]
        own: list[Any] = list(value.shape) if value.shape is not None else [None] * len(given)
        if len(own) != len(given):
            raise InputError(
                f"Input {name!r} has rank {len(own)}, but the given shape {list(given)} has rank {len(given)}."
            )
        for axis, size in enumerate(given):
            if isinstance(own[axis], int) and isinstance(size, int) and own[axis] != size:
                raise InputError(
                    f"Input {name!r} has the fixed shape [{', '.join(map(str, own))}], not {list(given)}: axis {axis} must be "
                    f"{own[axis]}."
                )
            if not isinstance(own[axis], int) and isinstance(size, int) and (axis > 0 or whole or value.shape is None):
                own[axis] = size
        if value.shape is None and not isinstance(given[0], int):
            own[0] = BATCH
        value.shape = ir.Shape([d if isinstance(d, (int, str, ir.SymbolicDim)) else None for d in own])


def time_is_first(model: ir.Model) -> bool:
    """Whether a recurrence of a canonical model runs along what is open as a batch is: an input's first axis."""
    for node in model.graph:
        x = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
        if node.op_type in RECURRENT and node.domain in ("", "ai.onnx") and x is not None:
            axis = Operation.of(node).integer("layout", 0)
            if axis < len(x) and str(x[axis]) == BATCH:
                return True
    return False


def open_batch(model: ir.Model) -> bool:
    """Whether an input's first dimension is left open."""
    return any(v.shape is not None and len(v.shape) and not isinstance(v.shape[0], int) for v in model.graph.inputs)


def _infer(model: ir.Model) -> None:
    """Shapes and small constants, by looking at the model at one or two batch sizes.

    With the batch fixed, all shape arithmetic is a number. What is equal at batch 2 and 3 is a constant; a dimension
    that is not depends on the batch. A model whose graph bakes batch 1 in has no such two worlds: batch 1 is then its
    only one.
    """
    if not open_batch(model):
        _adopt(model, [_world(model, None, {})])
        return
    memo: _Memo = {}
    try:
        worlds = [_world(model, 2, memo), _world(model, 3, memo)]
    except ModelError:
        worlds = [_world(model, 1, memo)]
        for value in model.graph.inputs:
            if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
                value.shape = ir.Shape([1, *list(value.shape)[1:]])
    _adopt(model, worlds)


def look(model: ir.Model) -> Seen:
    """What both batch sizes agree on, of every value by name."""
    model = model.clone()
    _clear_stale_shapes(model)
    batches: Sequence[int | None] = (2, 3) if open_batch(model) else (None,)
    memo: _Memo = {}
    try:
        worlds = [_world(model, batch, memo) for batch in batches]
    except ModelError:
        worlds = [_world(model, 1, memo)]
    shapes = {name: _merged([world[0].get(name) for world in worlds], len(worlds)) for name in worlds[0][0]}
    numbers, uniform = {}, {}
    for name, number in worlds[0][2].items():
        others = [world[2][name] for world in worlds[1:] if name in world[2]]
        if len(others) < len(worlds) - 1:
            continue
        if all(np.array_equal(number, other) for other in others):
            numbers[name] = number
        if number.size and all(o.size and (o == number.flat[0]).all() for o in (number, *others)):
            uniform[name] = float(number.flat[0])
    return Seen(shapes, numbers, uniform)


_Memo = dict[tuple[Any, ...], list[npt.NDArray[Any]]]
_World = tuple[dict[str, ir.Shape | None], dict[str, ir.DataType | None], dict[str, npt.NDArray[Any]]]


def _world(model: ir.Model, batch: int | None, memo: _Memo) -> _World:
    """Shapes, dtypes and folded constants of every value with the batch fixed to `batch`."""
    world = model.clone()
    for value in world.graph.inputs:
        if batch is not None and value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([batch, *list(value.shape)[1:]])
    for output in world.graph.outputs:
        if not output.is_graph_input():
            output.shape = None
    known: dict[str, npt.NDArray[Any]] = {}
    for _ in range(64):  # each round resolves at least one more Reshape; real models need one to four
        _shape_pass(world)
        if not _fold(world, known, memo):
            break
    values = {v.name or "": v for node in world.graph for v in node.outputs}
    values |= {v.name or "": v for v in world.graph.inputs}
    return {k: v.shape for k, v in values.items()}, {k: v.dtype for k, v in values.items()}, known


def _shape_pass(world: ir.Model) -> None:
    """ONNX's own inference on the graph without its large weights; a contradiction is the model's fault."""
    for node in world.graph:
        for value in node.outputs:
            value.shape = None if value.is_graph_output() else value.shape
    try:
        proto = without_weights(world)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        try:  # an operator without an inference rule stops the strict mode; the lenient one goes round it
            proto = without_weights(world)
            inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
        except Exception:
            raise ModelError(
                f"The model's shapes contradict each other ({first_line(error)}); export it again."
            ) from error
        if "Inferred shape and existing shape differ" in str(error) or "Incompatible dimensions" in str(error):
            raise ModelError(
                f"The model's shapes contradict each other ({first_line(error)}); export it again."
            ) from error
    own = {v.name or "": v for node in world.graph for v in node.outputs}
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        known = own.get(info.name)
        if known is None or not info.type.HasField("tensor_type"):
            continue
        tensor = info.type.tensor_type
        if tensor.elem_type:
            known.dtype = ir.DataType(tensor.elem_type)
        if tensor.HasField("shape"):
            known.shape = ir.Shape(
                [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim]
            )


def _fold(world: ir.Model, known: dict[str, npt.NDArray[Any]], memo: _Memo) -> bool:
    """Evaluate every node whose operands are known and small; True where something was new."""
    found = False
    for node in list(world.graph):
        if (
            all((v.name or "") in known for v in node.outputs)
            or node.op_type in _RANDOM
            or node.domain not in ("", "ai.onnx")
            or node.op_type == "DequantizeLinear"  # the runtime takes it into the integer kernel behind it
        ):
            continue
        results = _shape_value(node) if node.op_type in ("Shape", "Size") else _evaluate(node, known, memo)
        if results is None:
            continue
        for value, array in zip(node.outputs, results):
            name = value.name or ""
            known[name] = array
            value.const_value = ir.tensor(array, name=name)
            dtype = ir.DataType.from_numpy(array.dtype)
            value.shape, value.dtype = ir.Shape(array.shape), dtype
            if not value.is_graph_output():
                constant = ir.Value(
                    name=f"{name}/known",
                    shape=value.shape,
                    type=ir.TensorType(dtype),
                    const_value=value.const_value,
                )
                world.graph.register_initializer(constant)
                value.replace_all_uses_with(constant)
                known[f"{name}/known"] = array
        found = True
    return found


def _shape_value(node: ir.Node) -> list[npt.NDArray[Any]] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    static = [d for d in source.shape if isinstance(d, int)]
    if len(static) < len(source.shape):
        return None
    sizes = np.asarray(static, dtype=np.int64)
    if node.op_type == "Size":
        return [np.asarray(sizes.prod(), dtype=np.int64)]
    start, end = node.attributes.get("start"), node.attributes.get("end")
    return [sizes[slice(start.as_int() if start else None, end.as_int() if end else None)]]


def _evaluate(node: ir.Node, known: Mapping[str, npt.NDArray[Any]], memo: _Memo) -> list[npt.NDArray[Any]] | None:
    """The node's outputs by ONNX's own evaluator, or None where an operand is not known or too large.

    `memo`: what equal nodes gave; a network repeats its shape arithmetic block by block, and at both batch sizes.
    """
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return None
    feeds: dict[str, npt.NDArray[Any]] = {}
    for value in node.inputs:
        if value is None:
            continue
        array = known.get(value.name or "")
        if array is None:
            if value.const_value is None or value.const_value.size > FOLDED or value.is_graph_input():
                return None
            array = value.const_value.numpy()
        feeds[value.name or ""] = array
    if not _small(node, feeds):
        return None
    try:
        proto, opset = ir.serde.serialize_node(node), _opset(node)
        operands = [feeds[name] for name in proto.input if name]
        proto.name, proto.doc_string = "", ""
        del proto.metadata_props[:]
        proto.input[:] = [f"x{i}" if name else "" for i, name in enumerate(proto.input)]
        proto.output[:] = [f"y{i}" if name else "" for i, name in enumerate(proto.output)]
        key = (proto.SerializeToString(deterministic=True), opset, *map(_contents, operands))
        if key not in memo:
            named = dict(zip((name for name in proto.input if name), operands))
            with np.errstate(all="ignore"):
                memo[key] = [np.asarray(r) for r in ReferenceEvaluator(proto, opsets={"": opset}).run(None, named)]
    except Exception:
        return None  # not every operator has an evaluator: the node then stays an expression
    arrays = memo[key]
    return arrays if all(a.size <= FOLDED and a.dtype != object for a in arrays) else None


def _contents(array: npt.NDArray[Any]) -> tuple[Any, ...]:
    return array.dtype, array.shape, repr(array.tolist()) if array.dtype == object else array.tobytes()


def _opset(node: ir.Node) -> int:
    graph = node.graph
    return int(graph.opset_imports.get("", OPSET)) if isinstance(graph, ir.Graph) else OPSET


def _small(node: ir.Node, feeds: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether the result is small, asked before it is made: a file may claim a shape of any size."""
    operands = [feeds[v.name or ""] for v in node.inputs if v is not None]
    if node.op_type in ("ConstantOfShape", "Expand", "Tile") and operands:
        sizes = operands[0] if node.op_type == "ConstantOfShape" else operands[1]
        own = operands[0].size if node.op_type == "Tile" else 1
        return bool(np.prod(np.abs(sizes.astype(np.float64))) * own <= FOLDED)
    if node.op_type == "Range" and len(operands) == 3:
        start, limit, delta = (float(o) for o in operands)
        return delta != 0 and abs((limit - start) / delta) <= FOLDED
    if node.op_type == "OneHot" and len(operands) == 3:
        return bool(operands[0].size * np.abs(operands[1].astype(np.float64)).max(initial=0.0) <= FOLDED)
    return all(o.size <= FOLDED for o in operands) and node.op_type not in (
        "Resize",
        "Upsample",
        "Pad",
        "ConvTranspose",
        "OneHot",
        "CenterCropPad",
        "Col2Im",
    )


def _adopt(model: ir.Model, worlds: list[_World]) -> None:
    """Write into the model what all worlds agree on."""
    _, dtypes, known = worlds[0]
    graph = model.graph
    for node in list(graph):
        for value in node.outputs:
            name = value.name or ""
            set_dtype(value, dtypes.get(name))
            value.shape = _merged([world[0].get(name) for world in worlds], len(worlds))
        names = [v.name or "" for v in node.outputs]
        if all(n in known for n in names) and all(
            np.array_equal(world[2].get(n, np.empty(0)), known[n]) for world in worlds[1:] for n in names
        ):
            for value in node.outputs:
                _replace_by_constant(graph, value, known[value.name or ""])
    for value in graph.inputs:
        if value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int):
            value.shape = ir.Shape([BATCH, *list(value.shape)[1:]])


def _replace_by_constant(graph: ir.Graph, value: ir.Value, array: npt.NDArray[Any]) -> None:
    if value.is_graph_output():
        value.const_value = ir.tensor(array, name=value.name)
        return
    name = f"{value.name}/known"
    while name in graph.initializers:
        name += "_"
    tensor = ir.tensor(array, name=name)
    constant = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(constant)
    value.replace_all_uses_with(constant)


def _merged(shapes: list[ir.Shape | None], worlds: int) -> ir.Shape | None:
    first = shapes[0]
    if first is None or any(s is None or len(s) != len(first) for s in shapes):
        return None
    if worlds == 1:
        return first
    merged: list[int | str | None] = []
    for a, b in zip(first, shapes[1] or ()):
        if a == b and isinstance(a, int):
            merged.append(a)
        elif isinstance(a, int) and isinstance(b, int) and a % 2 == 0 and b % 3 == 0 and a // 2 == b // 3:
            merged.append(BATCH if a == 2 else f"{BATCH}*{a // 2}")
        else:
            merged.append(None)
    return ir.Shape(merged)
