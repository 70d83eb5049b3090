"""Models as messages: for a session, as one ONNX message, as a file. A message holds 2 GB; weights that lie in a data file stay
in it, mapped into memory and never copied, and what else is too large goes into a data file of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from onnx_explain.errors import OutputError

LIMIT = 2**31 - 1  # bytes of one protobuf message
_FILLED = 0.9  # of the limit; the rest is for nodes and names


def _tensors(model: ir.Model) -> list[ir.TensorProtocol]:
    """Every weight, those of sub-graphs among them, and every tensor among the attributes."""
    found = [v.const_value for g in model.graphs() for v in g.initializers.values() if v.const_value is not None]
    for node in (*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())):
        found += [a.as_tensor() for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR]
    return found


def too_large(model: ir.Model) -> bool:
    """Whether the model with all its weights is more than one message holds."""
    return sum(t.nbytes for t in _tensors(model)) > LIMIT * _FILLED


def serialise(model: ir.Model) -> bytes:
    """The model as protobuf bytes, for a session; what lies in a data file is named there, not copied (`data_folder`)."""
    return bytes(ir.to_proto(model).SerializeToString())


def data_folder(model: ir.Model) -> Path | None:
    """The folder of the data files that the model's weights lie in; None where there are none."""
    external = [t for t in _tensors(model) if isinstance(t, ir.ExternalTensor)]
    return Path(external[0].base_dir or ".").resolve() if external else None


@contextmanager
def carried(model: ir.Model) -> Iterator[tuple[bytes | str, Path | None]]:
    """The model as a runtime takes it, and the folder its data files are in: bytes, or a file for as long as the block runs."""
    own = sum(t.nbytes for t in _tensors(model) if not isinstance(t, ir.ExternalTensor))
    if own <= LIMIT * _FILLED:
        yield serialise(model), data_folder(model)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "model.onnx"
        write(model, path)
        yield str(path), None


def message(model: ir.Model) -> onnx.ModelProto:
    """The model as one message with all its weights; OutputError where it is too large to be written as one."""
    if too_large(model):
        raise OutputError("The model has more weights than one ONNX message holds (2 GB); give a path to write it to.")
    return whole(model)


def whole(model: ir.Model) -> onnx.ModelProto:
    """The model with all its weights in memory, of any size."""
    if data_folder(model) is not None:
        model = model.clone()
        ir.external_data.load_to_model(model)
    return ir.to_proto(model)


def tensor_message(tensor: ir.TensorProtocol, name: str, into: onnx.TensorProto | None = None) -> onnx.TensorProto:
    """A tensor with its numbers, under a name; `into` an empty message that is part of another, which saves a copy."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=name)
    proto = onnx.TensorProto() if into is None else into
    ir.serde.serialize_tensor_into(proto, from_=tensor)
    proto.name = name
    return proto


def write(model: ir.Model, path: Path) -> None:
    """Write the model to a scratch path; past 2 GB its weights go into ``<name>.data`` beside it, one after the other."""
    if too_large(model):
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        path.write_bytes(message(model).SerializeToString())
