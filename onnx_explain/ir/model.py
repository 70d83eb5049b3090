"""Reading model files: malformed, truncated and hostile files end here, in one sentence each. Writing is `message`'s affair.

What lies in external data files is mapped into memory, not read: a tensor's bytes come from the disk when somebody looks at
them, and leave memory again when it is short.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from onnx_explain.errors import ModelError

Source = str | os.PathLike[str] | bytes | onnx.ModelProto
MOST_NODES = 10_000_000
SMALL = 1 << 16  # bytes; smaller external tensors are read: a process may not hold any number of mappings


@dataclass(frozen=True)
class Loaded:
    """A model as read: the graph, where it came from, and the SHA-256 of the file (or of the serialised message).

    `files`: every file it was read from, the external data among them; none of them may be written to.
    """

    model: ir.Model
    path: Path | None
    sha256: str
    files: frozenset[Path] = frozenset()


def load(source: Source) -> Loaded:
    """Read a model from a path, bytes or `onnx.ModelProto`; the source is never changed.

    Raises ModelError: no such file, not ONNX, truncated, invalid, or with external data outside the file's own folder.
    """
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        data = copy.SerializeToString(deterministic=True)
        return Loaded(_graph(copy, None)[0], None, hashlib.sha256(data).hexdigest())
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        return Loaded(_graph(_parse(data, "the given bytes"), None)[0], None, hashlib.sha256(data).hexdigest())
    if not isinstance(source, (str, os.PathLike)):
        raise ModelError("A model is given as a path, as bytes or as an onnx.ModelProto; nothing else can be read.")
    path = Path(source)
    data = _read(path)
    proto, sha256 = _parse(data, f"{path}"), hashlib.sha256(data).hexdigest()
    del data  # the weights are in the message now, or in their own files
    model, weights = _graph(proto, path)
    return Loaded(model, path, sha256, frozenset({path.resolve(), *weights}))


def _read(path: Path) -> bytes:
    try:
        if not path.exists():
            raise ModelError(f"{str(path)[:300]}: there is no such file; give the path of an .onnx file.")
        if not path.is_file():
            raise ModelError(f"{path} is a folder or a device; give the path of an .onnx file.")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{str(path)[:300]!r} cannot be read: {reason}; give the path of an .onnx file.") from error


def _parse(data: bytes, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    if not data:
        raise ModelError(f"{where}: the file is empty; export the model again.")
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"{where}: not an ONNX model, or truncated ({error}); export or download it again.") from error
    return proto


def _graph(proto: onnx.ModelProto, path: Path | None) -> tuple[ir.Model, list[Path]]:
    """The graph of a message, and the files of its weights."""
    where = str(path) if path is not None else "the model"
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(f"{where}: holds no graph, so it is not an ONNX model, or it is truncated; export it again.")
    if not proto.opset_import:
        raise ModelError(
            f"{where}: names no operator set (`opset_import`), so its operators have no meaning; export it again."
        )
    _check_texts(proto, where)
    weights = _check_external(proto, path, where)
    folder = None if path is None else _settle(proto, path)
    _check_tensors(proto, where)
    _check_functions(proto, where)
    _check_names(proto.graph, where)
    _check_structure(proto, path, where)
    _check_inputs(proto.graph, where)
    try:
        model = ir.from_proto(proto)
        model.graph.sort()  # some exporters write the nodes in another order than they run
        if folder is not None:
            _map_weights(model, folder)
    except Exception as error:  # onnx_ir raises many kinds for malformed graphs: all are the file's fault
        raise ModelError(f"{where}: the graph is malformed ({first_line(_root(error))}); export it again.") from error
    return model, weights


def _root(error: BaseException) -> BaseException:
    """What went wrong first: onnx_ir says at every level where it was, and only the innermost says why."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _check_texts(proto: onnx.ModelProto, where: str) -> None:
    """Names are UTF-8; protobuf hands out what is not as bytes."""
    for graph in _graphs(proto.graph):
        for node in graph.node:
            for text in (node.name, node.op_type, node.domain, *node.input, *node.output):
                if not isinstance(text, str):
                    raise ModelError(
                        f"{where}: a node's names hold {text!r}, which is not UTF-8; the file is damaged, export it again."
                    )


def _check_inputs(graph: onnx.GraphProto, where: str) -> None:
    """Inputs are tensors; a negative size, as some exporters write it, leaves a dimension open."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for d in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if d.dim_value < 0:
                d.Clear()
    other = next((v for v in graph.input if not v.type.HasField("tensor_type")), None)
    if other is not None:
        kind = (other.type.WhichOneof("value") or "type").removesuffix("_type")
        raise ModelError(
            f"{where}: input {other.name!r} is no tensor ({kind}), and only tensors can be explained; export the model with "
            "tensors as inputs."
        )


def _map_weights(model: ir.Model, folder: Path) -> None:
    """Map what lies in external data files; a mapping outlives the file's name, and onnx_ir checks the path once more."""
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, folder)
        for value in graph.initializers.values():
            value.const_value = _mapped(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _mapped(attribute.value) or attribute.value)


def _mapped(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    if tensor.nbytes <= SMALL:
        return ir.external_data.convert_tensors_from_external([tensor])[0]
    if tensor.dtype.bitwidth >= 8:
        tensor.numpy()  # a view of the mapping; of packed numbers it would be a copy
    return tensor


def _check_functions(proto: onnx.ModelProto, where: str) -> None:
    """Functions that call functions can stand for more nodes than any machine holds; counted before they are inlined."""
    bodies = {(f.domain, f.name): f.node for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], above: tuple[tuple[str, str], ...]) -> int:
        if key in above:
            raise ModelError(
                f"{where}: function {key[1]!r} calls itself; ONNX does not allow that, export the model again."
            )
        if key not in sizes:
            called = [(n.domain, n.op_type) for n in bodies[key]]
            sizes[key] = sum(size(c, (*above, key)) if c in bodies else 1 for c in called)
        return sizes[key]

    total = sum(size(c, ()) if (c := (n.domain, n.op_type)) in bodies else 1 for n in proto.graph.node)
    if total > MOST_NODES:
        raise ModelError(
            f"{where}: its functions stand for {total} nodes, more than {MOST_NODES}; the file may be damaged."
        )


def _check_names(graph: onnx.GraphProto, where: str) -> None:
    """Every tensor a node of the main graph reads must come from somewhere."""
    known = {"", *(v.name for v in graph.input), *(t.name for t in graph.initializer)}
    known |= {t.values.name for t in graph.sparse_initializer}
    known |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        missing = next((name for name in node.input if name not in known), None)
        if missing is not None:
            raise ModelError(
                f"{where}: node {node.name or node.op_type!r} reads {missing!r}, which nothing computes; export it again."
            )


def _check_structure(proto: onnx.ModelProto, path: Path | None, where: str, *, complete: bool = False) -> None:
    """ONNX's own checker, less what is put right later."""
    outside = any(t.external_data for t in _tensors(proto))
    checked = _completed(proto) if outside and not complete else str(path) if path is not None else proto
    try:
        onnx.checker.check_model(checked)
    except (onnx.checker.ValidationError, ValueError) as error:
        if _SHAPELESS in str(error) and not (complete or outside):
            return _check_structure(_completed(proto), None, where, complete=True)
        # sorting is what comes next, and an unknown operator is refused by whoever needs its room
        if not any(harmless in str(error) for harmless in _HARMLESS):
            raise ModelError(f"{where}: not valid ONNX ({first_line(error)}); export it again.") from error


def _completed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker, which stops at the first fault: every input and output has a shape, and no weight lies
    outside (`_check_external` has seen to those; the checker takes no linked file).
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    for tensor in _tensors(copy):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.dims[:] = [0]
    return copy


def _settle(proto: onnx.ModelProto, path: Path) -> Path:
    """The folder of the weights: the model's, or the one where it and they really lie, where all are links.

    onnx_ir follows no link out of a folder, so the tensors' places are told from there then.
    """
    own, home = path.parent.resolve(), path.resolve().parent
    entries = [e for t in _tensors(proto) for e in t.external_data if e.key == "location"]
    files = [(own / e.value).resolve() for e in entries]
    if own == home or not all(home in file.parents for file in files):
        return path.parent
    for entry, file in zip(entries, files):
        entry.value = str(file.relative_to(home))
    return home


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and every sub-graph in it."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            for sub in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                found.extend(_graphs(sub))
    return found


def _tensors(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Every tensor of the graph, its sub-graphs and the functions."""
    tensors: list[onnx.TensorProto] = []
    bodies = [_graphs(onnx.GraphProto(node=f.node)) for f in proto.functions]
    for part in [*_graphs(proto.graph), *(g for body in bodies for g in body)]:
        tensors.extend(part.initializer)
        tensors.extend(a.t for node in part.node for a in node.attribute if a.HasField("t"))
    return tensors


def _check_external(proto: onnx.ModelProto, path: Path | None, where: str) -> list[Path]:
    """The files outside the model in which tensors lie; ModelError where one is missing, too short or none of its own."""
    found: dict[Path, None] = {}
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        if path is None:
            raise ModelError(
                f"{where}: tensor {tensor.name!r} lies in an external file, but a model given as bytes has no folder; give its path."
            )
        entries = {e.key: e.value for e in tensor.external_data}
        location = entries.get("location", "")
        target = _inside(path, location)
        if target is None:
            raise ModelError(
                f"{where}: tensor {tensor.name!r} points to external data {location[:80]!r} outside the model's own folder; "
                "refused. Put the data file beside the model and export again."
            )
        if not target.is_file():
            raise ModelError(
                f"{where}: the external data file {location[:80]!r} of tensor {tensor.name!r} is missing; put it beside the model."
            )
        if target.stat().st_nlink > 1:
            raise ModelError(
                f"{where}: the external data file {location[:80]!r} has several names (hard links), which onnx_ir does not read; "
                "make it a copy of its own."
            )
        offset, needed = _int(entries.get("offset"), 0), _bytes_of(tensor)
        length = _int(entries.get("length"), needed)
        if offset < 0 or length < needed or offset + length > target.stat().st_size:
            raise ModelError(
                f"{where}: external data file {location!r} is too short for tensor {tensor.name!r}; copy it again."
            )
        found.setdefault(target)
    return list(found)


def _inside(model: Path, location: str) -> Path | None:
    """The file `location` names, or None where that is not a file within the model's folder.

    That is the folder the model is opened in, or the one where it really lies: download caches keep both files in one
    place and link to them from another.
    """
    try:
        target = (model.parent / location).resolve()
        target.exists()
        roots = {model.parent.resolve(), model.resolve().parent}
    except (OSError, ValueError):
        return None
    return target if location and not Path(location).is_absolute() and roots & set(target.parents) else None


def _bytes_of(tensor: onnx.TensorProto) -> int:
    return (int(math.prod(tensor.dims)) * _WIDTH.get(tensor.data_type, 0) + 7) // 8


def _int(text: str | None, default: int) -> int:
    try:
        return int(text) if text is not None else default
    except ValueError:
        return -1


def _check_tensors(proto: onnx.ModelProto, where: str) -> None:
    """A tensor whose bytes do not fill its shape would be read past its end, or allocate what was never there."""
    for tensor in _tensors(proto):
        count = 1
        for d in tensor.dims:
            if d < 0:
                raise ModelError(
                    f"{where}: tensor {tensor.name!r} has a negative dimension; the file is damaged, export it again."
                )
            count *= d
        width = _WIDTH.get(tensor.data_type)
        if tensor.HasField("raw_data") and width is not None and len(tensor.raw_data) != (count * width + 7) // 8:
            raise ModelError(
                f"{where}: tensor {tensor.name!r} has the shape {list(tensor.dims)} but {len(tensor.raw_data)} bytes of data; "
                "the file is damaged, export it again."
            )


_SHAPELESS = "Field 'shape' of 'type' is required but missing"  # ONNX Runtime takes inputs and outputs of any shape
_HARMLESS = (
    "No Op registered",
    "No opset import",
    "topologically sorted",
    "but not in graph input",
    _SHAPELESS,
)
_T = onnx.TensorProto
_WIDTH: dict[int, int] = {
    _T.FLOAT: 32, _T.DOUBLE: 64, _T.FLOAT16: 16, _T.BFLOAT16: 16, _T.INT8: 8, _T.UINT8: 8, _T.INT16: 16, _T.UINT16: 16,
    _T.INT32: 32, _T.UINT32: 32, _T.INT64: 64, _T.UINT64: 64, _T.BOOL: 8,
}  # fmt: skip  # bits per element


def first_line(error: BaseException, limit: int = 240) -> str:
    """The first telling line of a foreign error, for a sentence of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
