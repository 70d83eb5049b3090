"""Damaged, hostile, unsupported: every model and every argument either works or is refused by one `ExplainError` in one sentence.

Models that might hang, crash or eat memory run in a child process (this file run as a script) under a memory limit; a
child that dies is a failure of the case it was at.
"""

from __future__ import annotations

import pickle
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnx_explain import (
    Explainer,
    ExplainError,
    InputError,
    MethodError,
    ModelError,
    OutputError,
    TargetError,
    UnsupportedOperator,
    build_vjp,
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
MEMORY = 5 << 30  # bytes of address space of a child; its libraries and thread stacks take two
GROWTH = 512  # MB a single hostile file may make the process grow by
SECONDS = 8  # a single file may take
MUTANTS = 600
CUTS = 200
METHODS_TRIED = ("lrp-epsilon-plus", "rap", "gradient")
Array = np.ndarray[Any, Any]


def model(text: str, *, opset: int = 18, ir_version: int = 8, **weights: Any) -> onnx.ModelProto:
    """A model from ONNX's text form, with its initialisers as arrays."""
    proto = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]>\n{text}')
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small_cnn(opset: int = 13) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, both poolings, Gemm and a Softmax in less than a kilobyte."""
    weights = {"w": drawn(4, 2, 3, 3), "b": drawn(4), "h": drawn(4), "m": drawn(4), "k": drawn(3, 4), "d": drawn(3)}
    return model(
        """g (float[N,2,6,6] x) => (float[N,3] y) {
             c = Conv<pads=[1,1,1,1]>(x, w, b)
             n = BatchNormalization(c, s, h, m, v)
             r = Relu(n)
             p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
             a = AveragePool<kernel_shape=[3,3]>(p)
             f = Flatten(a)
             l = Gemm<transB=1>(f, k, d)
             y = Softmax<axis=1>(l)
           }""",
        opset=opset,
        s=np.abs(drawn(4)) + 0.5,
        v=np.abs(drawn(4, seed=1)) + 0.5,
        **weights,
    )


X = drawn(2, 2, 6, 6, seed=1)


# ------------------------------------------------------------------------------------------- a child process


@dataclass(frozen=True)
class Case:
    """A model file's bytes or path, what to feed it, and how to ask."""

    label: str
    source: bytes | str
    x: Any = None  # array, {name: array} or None: X
    method: str = "lrp-epsilon-plus"


@dataclass(frozen=True)
class Outcome:
    """What became of a case: ``worked``, ``refused`` (an ExplainError), ``escaped`` (another), ``crashed``, ``slow``."""

    kind: str
    error: str = ""
    message: str = ""
    seconds: float = 0.0
    grown: float = 0.0  # MB of peak memory more than before


class Late(BaseException):
    """Past the alarm: no `except Exception` may swallow it."""


def attempt(case: Case) -> tuple[str, str, str]:
    """Explain and convert; in the child."""
    try:
        explainer = Explainer(case.source, case.method, threads=1)
        explainer(X if case.x is None else case.x)
        explainer.convert()
    except ExplainError as error:
        return "refused", type(error).__name__, str(error)
    except Late:
        return "slow", "", f"more than {SECONDS} s"
    except BaseException as error:
        place = [f for f in traceback.extract_tb(error.__traceback__) if "onnx_explain" in f.filename][-1:]
        where = ", ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in place)
        return "escaped", type(error).__name__, f"{where}: {str(error)[:150]!r}"
    return "worked", "", ""


def serve() -> None:
    """The child: cases in by pickle, outcomes out by pickle, one after the other."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases: Sequence[Case] = pickle.load(sys.stdin.buffer)

    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    attempt(Case("warm up", small_cnn().SerializeToString()))
    for case in cases:
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        signal.alarm(SECONDS)
        kind, error, message = attempt(case)
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        pickle.dump((kind, error, message, time.perf_counter() - started, grown), sys.stdout.buffer)
        sys.stdout.buffer.flush()


def outcomes(cases: Sequence[Case]) -> list[Outcome]:
    """Every case in a child; after a crash a new child goes on behind it."""
    found: list[Outcome] = []
    while len(found) < len(cases):
        todo = [Case(c.label, c.source, c.x, c.method) for c in cases[len(found) :]]
        here = str(Path(__file__).resolve().parent)
        code = f"import sys; sys.path.insert(0, {here!r}); import test_robustness; test_robustness.serve()"
        # the child imports this file under its own name, so that both sides pickle the same classes
        child = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(todo),
            capture_output=True,
            timeout=SECONDS * len(todo) + 60,
        )
        before, stream = len(found), child.stdout
        for answer in _pickles(stream):
            found.append(Outcome(*answer))
        if len(found) < len(cases):
            assert child.returncode != 0 or len(found) > before, child.stderr.decode()[-2000:]
            found.append(Outcome("crashed", "", f"exit status {child.returncode}: {child.stderr.decode()[-300:]}"))
    return found


def _pickles(data: bytes) -> Iterator[Any]:
    import io

    stream = io.BytesIO(data)
    while stream.tell() < len(data):
        try:
            yield pickle.load(stream)
        except EOFError:
            return


def complaint(message: str) -> str:
    """What is wrong with an error message as one sentence for a user; empty where nothing is."""
    checks = {
        "is empty": not message.strip(),
        "has several lines": "\n" in message.strip(),
        "shows a traceback": "Traceback" in message or 'File "' in message,
        "shows Python's insides": bool(
            re.search(r"NoneType|object at 0x|<class |has no attribute|KeyError|IndexError|unhashable", message)
        ),
        "is longer than 600 characters": len(message) > 600,
        "does not end like a sentence": not message.rstrip().endswith((".", "?", "…", ")")),
        "shows ONNX Runtime's insides": "/onnxruntime_src/" in message or "std::" in message,
        "holds a status code of ONNX Runtime": "[ONNXRuntimeError]" in message,
    }
    return ", ".join(text for text, wrong in checks.items() if wrong)


def fault(case: Case, outcome: Outcome) -> str:
    """Why an outcome fails the claim; empty where it does not."""
    if outcome.kind in ("escaped", "crashed", "slow"):
        return f"{case.label}: {outcome.kind} {outcome.error} {outcome.message}"
    if outcome.kind == "refused" and (wrong := complaint(outcome.message)):
        return f"{case.label}: the message {wrong}: {outcome.message}"
    if "more memory than there is" in outcome.message:
        return f"{case.label}: refused by the limit of the child alone; without one it would have taken gigabytes"
    if outcome.grown > GROWTH:
        return f"{case.label}: {outcome.kind}, but grew by {outcome.grown:.0f} MB"
    return ""


def faults(cases: Sequence[Case]) -> str:
    """All faults, one of a kind each with how often."""
    found: dict[str, list[str]] = {}
    for case, outcome in zip(cases, outcomes(cases)):
        text = fault(case, outcome)
        if text:
            key = re.sub(r"[\d'\"]+", "#", text.partition(": ")[2])[-160:]
            found.setdefault(key, []).append(text)
    return "\n".join(f"{len(texts)} x {texts[0]}" for texts in found.values())


# ------------------------------------------------------------------------------------------- damaged files


def test_a_file_cut_off_anywhere_is_refused_in_one_sentence() -> None:
    whole = small_cnn().SerializeToString()
    cuts = sorted({int(c) for c in np.linspace(0, len(whole) - 1, CUTS)})
    cases = [Case(f"cut at {cut}", whole[:cut]) for cut in cuts]
    results = outcomes(cases)
    assert [f for c, o in zip(cases, results) if (f := fault(c, o))] == []
    assert {o.kind for o in results} == {"refused"}, "a truncated model must not be explained"


def flipped(seed: int) -> bytes:
    """One to three bits of the file turned over."""
    generator = np.random.default_rng(seed)
    data = bytearray(small_cnn().SerializeToString())
    for _ in range(int(generator.integers(1, 4))):
        data[int(generator.integers(len(data)))] ^= 1 << int(generator.integers(8))
    return bytes(data)


def test_bit_flips_never_let_another_error_out() -> None:
    cases = [Case(f"flip {s}", flipped(s), method=METHODS_TRIED[s % 3]) for s in range(MUTANTS)]
    assert not (found := faults(cases)), found


_NUMBERS = (0, 1, -1, 2, 3, 5, 7, 2**31, -(2**31), 2**40, 2**62, -(2**63))


def rewritten(seed: int) -> bytes:
    """One to three well-formed but wrong edits: nodes dropped, edges crossed, numbers, names, types and dims changed."""
    generator = np.random.default_rng(seed)
    proto = small_cnn()
    edits: list[Callable[[onnx.ModelProto, np.random.Generator], None]] = [
        _drop_node, _cross_edge, _number, _dims, _type, _operator, _drop_weight, _input_shape, _opset, _copy_node, _swap
    ]  # fmt: skip
    for _ in range(int(generator.integers(1, 4))):
        edits[int(generator.integers(len(edits)))](proto, generator)
    return proto.SerializeToString()


def _pick(items: Any, generator: np.random.Generator) -> Any:
    return items[int(generator.integers(len(items)))] if len(items) else None


def _drop_node(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    if len(proto.graph.node):
        del proto.graph.node[int(generator.integers(len(proto.graph.node)))]


def _cross_edge(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    node, other = _pick(proto.graph.node, generator), _pick(proto.graph.node, generator)
    names = [*other.output, *other.input, "", "nowhere", *node.output] if other is not None else [""]
    if node is not None and len(node.input):
        node.input[int(generator.integers(len(node.input)))] = str(_pick(names, generator))


def _number(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    node = _pick(proto.graph.node, generator)
    attribute = _pick(node.attribute, generator) if node is not None else None
    if attribute is None:
        return
    if len(attribute.ints):
        attribute.ints[int(generator.integers(len(attribute.ints)))] = int(_pick(_NUMBERS, generator))
    else:
        attribute.i = int(_pick(_NUMBERS, generator))


def _dims(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    tensor = _pick(proto.graph.initializer, generator)
    if tensor is not None and len(tensor.dims):
        tensor.dims[int(generator.integers(len(tensor.dims)))] = int(_pick(_NUMBERS, generator))


def _type(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    tensor = _pick(proto.graph.initializer, generator)
    if tensor is not None:
        tensor.data_type = int(generator.integers(0, 27))


def _operator(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    node = _pick(proto.graph.node, generator)
    if node is not None:
        names = (
            "Relu",
            "Conv",
            "Gemm",
            "Add",
            "Loop",
            "If",
            "Reshape",
            "Nonsense",
            "",
            "LSTM",
            "MaxPool",
            "Shape",
            "Softmax",
        )
        node.op_type = str(_pick(names, generator))


def _drop_weight(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    if len(proto.graph.initializer):
        del proto.graph.initializer[int(generator.integers(len(proto.graph.initializer)))]


def _input_shape(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    shape = proto.graph.input[0].type.tensor_type.shape
    if len(shape.dim):
        shape.dim[int(generator.integers(len(shape.dim)))].dim_value = int(_pick(_NUMBERS, generator))


def _opset(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    proto.opset_import[0].version = int(_pick((*range(1, 24), 99, -1, 2**40), generator))


def _copy_node(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    node = _pick(proto.graph.node, generator)
    if node is not None:
        proto.graph.node.add().CopyFrom(node)


def _swap(proto: onnx.ModelProto, generator: np.random.Generator) -> None:
    node = _pick(proto.graph.node, generator)
    if node is not None:
        node.input.reverse()


def test_well_formed_but_wrong_models_never_let_another_error_out() -> None:
    cases = [Case(f"edit {s}", rewritten(s), method=METHODS_TRIED[s % 3]) for s in range(MUTANTS)]
    assert not (found := faults(cases)), found


# ------------------------------------------------------------------------------------------- hostile and unsupported graphs


def shape(*sizes: int) -> Array:
    return np.asarray(sizes, np.int64)


def ramp(
    sig: str, body: str, out: str = "float[N,2,6,6] y", *, shapeless: bool = False, **keywords: Any
) -> onnx.ModelProto:
    proto = model(f"g ({sig}) => ({out}) {{ {body} }}", **keywords)
    for value in proto.graph.output if shapeless else ():
        value.type.tensor_type.ClearField("shape")
    return proto


HUGE = shape(2**20, 2**20)
PICTURE = "float[N,2,6,6] x"


def huge_initializer() -> onnx.ModelProto:
    proto = ramp(PICTURE, "m = ReduceMax<keepdims=0>(w)\n y = Add(x, m)")
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2**20, 2**20], raw_data=b"")
    return proto


def huge_typed_initializer() -> onnx.ModelProto:
    proto = ramp(PICTURE, "m = ReduceMax<keepdims=0>(w)\n y = Add(x, m)")
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2**20, 2**20], float_data=[1.0])
    return proto


def overflowing_initializer() -> onnx.ModelProto:
    proto = ramp(PICTURE, "m = ReduceMax<keepdims=0>(w)\n y = Add(x, m)")
    proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2**32, 2**32, 4], raw_data=b"")
    return proto


def cyclic() -> onnx.ModelProto:
    return ramp(PICTURE, "a = Add(x, b)\n b = Relu(a)\n y = Relu(b)")


def nested(depth: int) -> onnx.ModelProto:
    """If inside If inside If."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], [f"y{depth}"])], "leaf", [], [value(f"y{depth}", 1, None)]
    )
    for level in range(depth - 1, -1, -1):
        node = helper.make_node(
            "If", ["c"], [f"y{level}"], then_branch=graph, else_branch=graph if level > depth - 4 else _leaf(level)
        )
        inputs = [] if level else [value("x", 1, ["N", 2, 6, 6])]
        before = (
            []
            if level
            else [helper.make_node("ReduceMax", ["x"], ["t"], keepdims=0), helper.make_node("Cast", ["t"], ["c"], to=9)]
        )
        graph = helper.make_graph(
            [*before, node], f"g{level}", inputs, [value(f"y{level}", 1, None if level else ["N", 2, 6, 6])]
        )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _leaf(level: int) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(f"z{level}", 1, None)
    return helper.make_graph([helper.make_node("Abs", ["x"], [f"z{level}"])], f"leaf{level}", [], [out])


def abyss(depth: int) -> bytes:
    """Sub-graphs in sub-graphs, deeper than protobuf's own readers go, written byte by byte."""

    def field(number: int, data: bytes) -> bytes:
        size, rest = b"", len(data)
        while rest > 127:
            size, rest = size + bytes([rest & 127 | 128]), rest >> 7
        return bytes([number << 3 | 2]) + size + bytes([rest]) + data

    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(6, graph)))  # graph.node[0].attribute[0].g
    return small_cnn().SerializeToString() + field(7, graph)


def looping() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["s"], ["s2"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("s", 1, None)],
        [value("on", TensorProto.BOOL, []), value("s2", 1, None)],
    )
    node = helper.make_node("Loop", ["m", "", "x"], ["y"], body=body, name="spin")
    graph = helper.make_graph([node], "g", [value("x", 1, ["N", 2, 6, 6])], [value("y", 1, ["N", 2, 6, 6])])
    graph.initializer.append(numpy_helper.from_array(np.asarray(2**62, np.int64), "m"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def branching() -> onnx.ModelProto:
    proto = nested(1)
    proto.graph.node[-1].name = "fork"
    return proto


def recursive_function() -> onnx.ModelProto:
    proto = ramp(PICTURE, "y = Relu(x)")
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "mine", "F"
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    inner = helper.make_node("F", ["a"], ["b"], domain="mine")
    function = helper.make_function("mine", "F", ["a"], ["b"], [inner], [helper.make_opsetid("mine", 1)])
    proto.functions.append(function)
    return proto


def exploding_functions() -> onnx.ModelProto:
    """Forty functions, each calling the next one twice: 2^40 nodes when inlined."""
    proto = ramp(PICTURE, "y = Relu(x)")
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "mine", "F0"
    mine, plain = helper.make_opsetid("mine", 1), helper.make_opsetid("", 18)
    proto.opset_import.append(mine)
    for level in range(40):
        call = [
            helper.make_node(f"F{level + 1}", ["a"], ["t"], domain="mine"),
            helper.make_node(f"F{level + 1}", ["t"], ["b"], domain="mine"),
        ]
        proto.functions.append(helper.make_function("mine", f"F{level}", ["a"], ["b"], call, [mine]))
    proto.functions.append(
        helper.make_function("mine", "F40", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [plain])
    )
    return proto


def without_opsets() -> onnx.ModelProto:
    proto = small_cnn()
    del proto.opset_import[:]
    return proto


def custom_domain() -> onnx.ModelProto:
    proto = ramp(PICTURE, "a = Relu(x)\n y = Abs(a)")
    proto.graph.node[1].domain, proto.graph.node[1].op_type, proto.graph.node[1].name = "com.acme", "Magic", "spell"
    proto.opset_import.append(helper.make_opsetid("com.acme", 3))
    return proto


def sequence_input() -> onnx.ModelProto:
    item = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, ["N", 2, 6, 6]))
    proto = ramp(PICTURE, "y = Relu(x)")
    proto.graph.input[0].type.CopyFrom(item)
    proto.graph.node[0].op_type = "ConcatFromSequence"
    proto.graph.node[0].attribute.append(helper.make_attribute("axis", 0))
    return proto


def no_nodes() -> onnx.ModelProto:
    proto = ramp(PICTURE, "y = Relu(x)")
    del proto.graph.node[:]
    return proto


def no_outputs() -> onnx.ModelProto:
    proto = small_cnn()
    del proto.graph.output[:]
    return proto


def no_inputs() -> onnx.ModelProto:
    proto = small_cnn()
    del proto.graph.input[:]
    return proto


def untyped_input() -> onnx.ModelProto:
    proto = small_cnn()
    proto.graph.input[0].ClearField("type")
    return proto


def twice_the_same_input() -> onnx.ModelProto:
    proto = small_cnn()
    proto.graph.input.append(proto.graph.input[0])
    return proto


def bytes_as_a_name() -> bytes:
    """Not UTF-8 where a name should be."""
    return small_cnn().SerializeToString().replace(b"Softmax", b"Soft\xff\xfex")


def negative_size() -> onnx.ModelProto:
    """As some exporters write an open batch."""
    proto = ramp(PICTURE, "y = Relu(x)")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    return proto


def relabelled(opset: int) -> onnx.ModelProto:
    proto = small_cnn()
    proto.opset_import[0].version = opset
    return proto


# label: (model, what the refusal must name; None: it may also work)
HOSTILE: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], tuple[str, ...] | None]] = {
    "an initialiser of a terabyte without data": (huge_initializer, ("w",)),
    "an initialiser of a terabyte with one number": (huge_typed_initializer, ("w",)),
    "an initialiser whose size overflows": (overflowing_initializer, ("w",)),
    "ConstantOfShape of a terabyte": (
        lambda: ramp(PICTURE, "c = ConstantOfShape(s)\n m = ReduceSum<keepdims=0>(c)\n y = Add(x, m)", s=HUGE),
        (),
    ),
    "ConstantOfShape with a negative size": (
        lambda: ramp(PICTURE, "c = ConstantOfShape(s)\n y = Add(x, c)", s=shape(-1, 3)),
        (),
    ),
    "Expand to a terabyte": (
        lambda: ramp(
            PICTURE,
            "c = Expand(x, s)\n m = ReduceMax<keepdims=0>(c)\n y = Add(x, m)",
            s=shape(2**20, 2**18, 1, 1, 1, 1),
        ),
        (),
    ),
    "Tile to a terabyte": (
        lambda: ramp(
            PICTURE,
            "c = Tile(w, s)\n m = ReduceMax<keepdims=0>(c)\n y = Add(x, m)",
            w=drawn(2, 2),
            s=shape(2**19, 2**19),
        ),
        (),
    ),
    "Tile of the input to a terabyte": (
        lambda: ramp(
            PICTURE, "c = Tile(x, s)\n m = ReduceMax<keepdims=0>(c)\n y = Add(x, m)", s=shape(1, 2**10, 2**10, 2**10)
        ),
        (),
    ),
    "Range of a trillion": (
        lambda: ramp(
            PICTURE,
            "c = Range(a, b, d)\n m = ReduceSum<keepdims=0>(c)\n y = Add(x, m)",
            a=np.float32(0),
            b=np.float32(1e12),
            d=np.float32(1),
        ),
        (),
    ),
    "Range with step zero": (
        lambda: ramp(
            PICTURE,
            "c = Range(a, b, d)\n m = ReduceSum<keepdims=0>(c)\n y = Add(x, m)",
            a=np.float32(0),
            b=np.float32(9),
            d=np.float32(0),
        ),
        (),
    ),
    "Range of NaN": (
        lambda: ramp(
            PICTURE,
            "c = Range(a, b, d)\n m = ReduceSum<keepdims=0>(c)\n y = Add(x, m)",
            a=np.float32("nan"),
            b=np.float32(9),
            d=np.float32(1),
        ),
        (),
    ),
    "Pad by a gigapixel": (
        lambda: ramp(
            PICTURE,
            "c = Pad(x, p)\n m = ReduceMax<keepdims=0>(c)\n y = Add(x, m)",
            p=shape(0, 0, 2**20, 0, 0, 0, 0, 2**20),
        ),
        (),
    ),
    "Resize to gigapixels": (
        lambda: ramp(
            PICTURE,
            "c = Resize(x, , f)\n m = ReduceMax<keepdims=0>(c)\n y = Add(x, m)",
            f=np.asarray([1, 1, 1e4, 1e4], np.float32),
        ),
        (),
    ),
    "OneHot of a trillion classes": (
        lambda: ramp(
            "int64[N] x", "y = OneHot(x, d, v)", "float[N,M] y", d=np.asarray(2**40), v=np.asarray([0, 1], np.float32)
        ),
        (),
    ),
    "EyeLike, Trilu and CumSum of a terabyte": (
        lambda: ramp(
            PICTURE,
            "c = ConstantOfShape(s)\n e = EyeLike(c)\n t = Trilu(e)\n m = ReduceSum<keepdims=0>(t)\n y = Add(x, m)",
            s=HUGE,
        ),
        (),
    ),
    "MaxPool with a kernel of 2^40": (
        lambda: ramp(PICTURE, 'y = MaxPool<kernel_shape=[1099511627776,1], auto_pad="SAME_UPPER">(x)'),
        (),
    ),
    "AveragePool with a kernel of 2^31": (
        lambda: ramp(PICTURE, 'y = AveragePool<kernel_shape=[2147483648,1], auto_pad="SAME_UPPER">(x)'),
        (),
    ),
    "AveragePool with a kernel of nothing": (lambda: ramp(PICTURE, "y = AveragePool<kernel_shape=[0,0]>(x)"), ()),
    "Conv with stride nought": (lambda: ramp(PICTURE, "y = Conv<strides=[0,0]>(x, w)", w=drawn(2, 2, 1, 1)), ()),
    "Conv with pads of 2^40": (
        lambda: ramp(
            PICTURE,
            "c = Conv<pads=[1099511627776,0,0,0]>(x, w)\n m = ReduceMax<keepdims=0>(c)\n y = Add(x, m)",
            w=drawn(2, 2, 1, 1),
        ),
        (),
    ),
    "Conv with a weight of another rank": (lambda: ramp(PICTURE, "y = Conv(x, w)", w=drawn(2, 2, 1)), ()),
    "Conv with groups that do not divide": (lambda: ramp(PICTURE, "y = Conv<group=3>(x, w)", w=drawn(2, 2, 1, 1)), ()),
    "Reshape to impossible sizes": (lambda: ramp(PICTURE, "y = Reshape(x, s)", s=shape(0, 5, -1, 7)), ()),
    "Reshape with two wildcards": (lambda: ramp(PICTURE, "y = Reshape(x, s)", s=shape(-1, -1)), ()),
    "Gather out of range": (lambda: ramp(PICTURE, "y = Gather<axis=1>(x, i)", i=shape(99)), ()),
    "Split into what is not there": (lambda: ramp(PICTURE, "y, z = Split<axis=1>(x, s)", s=shape(5, 7)), ()),
    "Transpose with an axis twice": (lambda: ramp(PICTURE, "y = Transpose<perm=[0,1,1,2]>(x)"), ()),
    "Concat along a missing axis": (lambda: ramp(PICTURE, "y = Concat<axis=9>(x, x)"), ()),
    "a cycle": (cyclic, ()),
    "no operator set": (without_opsets, ("opset",)),
    "operator set 99": (lambda: relabelled(99), ("99",)),
    "operator set 0": (lambda: relabelled(0), ("0",)),
    "a negative operator set": (lambda: relabelled(-1), ("-1",)),
    **{f"operator set {v} under newer operators": (lambda v=v: relabelled(v), None) for v in range(1, 7)},  # type: ignore[misc]
    "If on the way": (branching, ("fork", "If")),
    "24 levels of If": (lambda: nested(24), ("If",)),
    "5 000 levels of sub-graphs": (lambda: abyss(5000), ()),
    "Loop of 2^62 rounds on the way": (looping, ("spin", "Loop")),
    "a function that calls itself": (recursive_function, ()),
    "functions that double forty times": (exploding_functions, ()),
    "an operator of a custom domain": (custom_domain, ("spell", "Magic", "com.acme")),
    "a sequence as the input": (sequence_input, ("x",)),
    "a string as the input": (lambda: ramp("string[N] x", "y = Identity(x)", "string[N] y"), ()),
    "no node": (no_nodes, ()),
    "no output": (no_outputs, ()),
    "no input": (no_inputs, ()),
    "an input without a type": (untyped_input, ()),
    "an input listed twice": (twice_the_same_input, ("x",)),
    "an undefined operand": (lambda: ramp(PICTURE, "a = Relu(nowhere)\n y = Add(x, a)"), ("nowhere",)),
    "an output that nothing computes": (lambda: ramp(PICTURE, "a = Relu(x)", "float[N,2,6,6] y"), ("y",)),
    "two nodes that compute one tensor": (lambda: ramp(PICTURE, "y = Relu(x)\n y = Abs(x)"), ("y",)),
    "a node without outputs": (lambda: ramp(PICTURE, "y = Relu(x)\n = Abs(x)") if False else _outputless(), None),
    "the same output twice": (lambda: ramp(PICTURE, "y = Relu(x)", "float[N,2,6,6] y, float[N,2,6,6] y"), None),
    "an output that does not depend on the input": (
        lambda: ramp(PICTURE, "a = Relu(x)\n y = Relu(w)", "float[3] y", w=drawn(3)),
        ("y", "x"),
    ),
    "a name that is not text": (bytes_as_a_name, ("UTF-8",)),
    "an operator that ONNX has not": (
        lambda: ramp(PICTURE, "y = Spell(x)", opset=17),
        ("Spell", "17"),
    ),
    "an output without a shape": (lambda: ramp(PICTURE, "y = Relu(x)", "float[N,2,6,6] y", shapeless=True), None),
    "a broken node beside an output without a shape": (
        lambda: ramp(PICTURE, "y = Relu(x)\n z = Conv()", "float[N,2,6,6] y", shapeless=True),
        ("Conv",),
    ),
    "an output of no element": (lambda: ramp(PICTURE, "y = Slice(x, n, n)", "float[0,2,6,6] y", n=shape(0)), ()),
    "a negative size": (negative_size, None),
    "a declared output shape that is wrong": (lambda: ramp(PICTURE, "y = Relu(x)", "float[N,9,9] y"), None),
    "a declared output type that is wrong": (lambda: ramp(PICTURE, "y = Relu(x)", "int64[N,2,6,6] y"), ()),
    "attributes of another kind": (lambda: ramp(PICTURE, 'y = MaxPool<kernel_shape="two">(x)'), ()),
    "a missing attribute": (lambda: ramp(PICTURE, "y = MaxPool(x)"), ()),
    "an LSTM on the way": (
        lambda: ramp(
            "float[S,N,3] x",
            "y, h, c = LSTM<hidden_size=2>(x, w, r)",
            "float[S,1,N,2] y",
            w=drawn(1, 8, 3),
            r=drawn(1, 8, 2),
        ),
        ("LSTM",),
    ),
    "NonZero on the way": (
        lambda: ramp(PICTURE, "i = NonZero(x)\n c = Cast<to=1>(i)\n y = ReduceSum<keepdims=0>(c)", "float y"),
        None,
    ),
}


def _outputless() -> onnx.ModelProto:
    proto = ramp(PICTURE, "y = Relu(x)")
    proto.graph.node.add(op_type="Abs", input=["x"])
    return proto


def _source(made: onnx.ModelProto | bytes) -> bytes:
    return made if isinstance(made, bytes) else made.SerializeToString()


@pytest.fixture(scope="module")
def hostile() -> dict[str, tuple[Case, Outcome]]:
    feeds = {"OneHot of a trillion classes": np.zeros(2, np.int64), "an LSTM on the way": drawn(4, 2, 3)}
    cases = [Case(label, _source(make()), feeds.get(label)) for label, (make, _) in HOSTILE.items()]
    return {c.label: (c, o) for c, o in zip(cases, outcomes(cases))}


@pytest.mark.parametrize("label", HOSTILE)
def test_a_hostile_model_is_refused_in_one_sentence(label: str, hostile: dict[str, tuple[Case, Outcome]]) -> None:
    case, outcome = hostile[label]
    assert not (found := fault(case, outcome)), found
    names = HOSTILE[label][1]
    if names is not None:
        assert outcome.kind == "refused", "it was explained"
        assert [n for n in names if n not in outcome.message] == [], outcome.message


# ------------------------------------------------------------------------------------------- external data


def external(
    folder: Path, location: str, offset: str | None = None, length: str | None = None, *, data: bytes = bytes(4096)
) -> Path:
    """A model in `folder`/model whose weight claims to lie at `location`; real data lies in weights.bin."""
    home = folder / "model"
    home.mkdir(exist_ok=True)
    proto = ramp(PICTURE, "y = Conv(x, w)")
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[2, 2, 1, 1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    (home / "weights.bin").write_bytes(data)
    (folder / "secret.bin").write_bytes(data)
    (home / "m.onnx").write_bytes(proto.SerializeToString())
    return home / "m.onnx"


def test_links_of_a_download_cache_are_followed_to_where_both_files_lie(tmp_path: Path) -> None:
    """Such a cache keeps files under their digests, and links to them by their names."""
    real = external(tmp_path, "weights.bin", "16", "16", data=np.arange(1024, dtype=np.float32).tobytes())
    wanted = Explainer(real, "gradient", threads=1)(X).relevance["x"]
    blobs, shown = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    for folder in (blobs, shown):
        folder.mkdir(parents=True)
    for number, name in enumerate(("m.onnx", "weights.bin")):
        (real.parent / name).rename(blobs / f"{number}aa")
        (shown / name).symlink_to(Path("..", "..", "blobs", f"{number}aa"))
    explainer = Explainer(shown / "m.onnx", "gradient", threads=1)
    np.testing.assert_array_equal(explainer(X).relevance["x"], wanted)
    explainer.convert(tmp_path / "explained.onnx")
    with pytest.raises(OutputError, match="source model"):
        explainer.convert(shown / "weights.bin")
    (shown / "weights.bin").unlink()
    (shown / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="outside the model's own folder"):
        Explainer(shown / "m.onnx", "gradient")


def test_external_data_of_several_names_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "other.bin").hardlink_to(path.parent / "weights.bin")
    with pytest.raises(ModelError, match="hard links"):
        Explainer(path, "gradient")


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin", "16", "16", data=np.arange(1024, dtype=np.float32).tobytes())
    y = Explainer(path, "gradient")(X).outputs["y"]
    np.testing.assert_allclose(y, np.einsum("nchw,oc->nohw", X, np.arange(4, 8).reshape(2, 2)), rtol=1e-5)


OUTSIDE = (
    "/etc/passwd",
    "../secret.bin",
    "sub/../../secret.bin",
    "..",
    ".",
    "",
    "link.bin",
    "linked/secret.bin",
    "\\..\\secret.bin",
    "~/x",
    "file:///etc/passwd",
    "weights.bin\0",
    "x" * 5000,
)


@pytest.mark.parametrize("location", OUTSIDE)
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    path = external(tmp_path, location)
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "model" / "linked").symlink_to(tmp_path)
    with pytest.raises(ModelError) as caught:
        Explainer(path, "gradient")(X)
    assert not (wrong := complaint(str(caught.value)[:590])), wrong
    assert "'w'" in str(caught.value)


RANGES = (
    ("4096", "16"),
    ("0", "99999"),
    ("-4", "16"),
    ("0", "-16"),
    ("99999999999999999999", "16"),
    ("0", "8"),
    ("x", "16"),
    ("4090", None),
    ("1.5", "16"),
)


@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_external_data_past_the_file_is_refused(offset: str, length: str | None, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Explainer(external(tmp_path, "weights.bin", offset, length), "gradient")(X)
    assert not (wrong := complaint(str(caught.value))), wrong


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    (tmp_path / "model" / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"weights\.bin"):
        Explainer(path, "gradient")
    with pytest.raises(ModelError, match="folder|path"):
        Explainer(path.read_bytes(), "gradient")
    with pytest.raises(ModelError, match="folder|path"):
        build_vjp(onnx.load(path, load_external_data=False))


def test_external_data_hidden_in_attributes_and_subgraphs_is_refused(tmp_path: Path) -> None:
    secret = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    secret.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["w"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(secret)
    inside = nested(1)
    branch = inside.graph.node[-1].attribute[0].g
    branch.initializer.append(secret)
    function = ramp(PICTURE, "y = Add(x, w)")
    function.graph.node.insert(0, helper.make_node("F", [], ["w"], domain="mine"))
    function.opset_import.append(helper.make_opsetid("mine", 1))
    function.functions.append(helper.make_function("mine", "F", [], ["w"], [constant], [helper.make_opsetid("", 18)]))
    plain = ramp(PICTURE, "y = Add(x, w)")
    plain.graph.node.insert(0, constant)
    sparse = ramp(PICTURE, "y = Add(x, w)")
    sparse.graph.sparse_initializer.add(dims=[1], values=secret, indices=numpy_helper.from_array(np.array([0]), "i"))
    for number, proto in enumerate((plain, inside, function, sparse)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="outside|external|sparse|valid"):
            Explainer(path, "gradient")(X)


# ------------------------------------------------------------------------------------------- arguments


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(small_cnn(), "lrp-epsilon", threads=1)


def refusal(kind: type[ExplainError], call: Callable[[], Any]) -> str:
    """The message of the refusal, which must be one sentence."""
    with pytest.raises(kind) as caught:
        call()
    assert not (wrong := complaint(str(caught.value))), f"{wrong}: {caught.value}"
    return str(caught.value)


INPUTS: dict[str, tuple[Any, str]] = {
    "NHWC": (drawn(2, 6, 6, 2), "shape"),
    "no batch axis": (X[0], "batch axis"),
    "another size": (X[..., :5], r"\[2, 2, 6, 5\].*\[N, 2, 6, 6\]"),
    "rank 5": (X[None], "shape"),
    "a number": (3.0, "shape"),
    "objects": (X.astype(object), "object"),
    "text": (X.astype(str), "float32"),
    "a path": ("cat.png", "float32"),
    "complex numbers": (X.astype(complex), "complex"),
    "dates": (np.zeros(X.shape, "M8[s]"), "'x'"),
    "nothing": (None, "'x'"),
    "ragged lists": ([[1], [2, 3]], "'x'"),
    "a generator": ((i for i in range(3)), "'x'"),
    "NaN": (np.where(X > 1, np.nan, X), "NaN"),
    "infinity": (np.where(X > 1, np.inf, X), "infinite"),
    "more than float32 holds": (X.astype(np.float64) * 1e300, "'x'"),
    "no sample": (X[:0], "no sample"),
    "an unknown name": ({"X": X}, "'X'.*'x'"),
    "a missing name": ({}, "'x'"),
    "a name too many": ({"x": X, "mask": X}, "'mask'"),
    "a number for a name": ({3: X}, "3"),
    "nothing under a name": ({"x": None}, "'x'"),
}


@pytest.mark.parametrize("label", INPUTS)
def test_an_input_that_does_not_fit_is_refused(label: str, explainer: Explainer) -> None:
    x, told = INPUTS[label]
    assert re.search(told, refusal(InputError, lambda: explainer(x)))


def test_a_picture_in_the_other_layout_gets_the_transpose_to_write() -> None:
    rgb = ramp("float[N,3,6,6] x", "y = Conv(x, w)", w=drawn(1, 3, 6, 6))
    assert "transpose(0, 3, 1, 2)" in refusal(InputError, lambda: Explainer(rgb, "gradient")(drawn(1, 6, 6, 3)))
    turned = ramp("float[N,6,6,3] x", "t = Transpose<perm=[0,3,1,2]>(x)\n y = Conv(t, w)", w=drawn(1, 3, 6, 6))
    assert "transpose(0, 2, 3, 1)" in refusal(InputError, lambda: Explainer(turned, "gradient")(drawn(1, 3, 6, 6)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float16, np.float64, ">f4"])
def test_any_real_number_is_taken(dtype: Any, explainer: Explainer) -> None:
    e = explainer(np.ones_like(X).astype(dtype))
    np.testing.assert_array_equal(e.relevance["x"], explainer(np.ones_like(X)).relevance["x"])


TARGETS: tuple[Any, ...] = (
    3, -1, -2, 2**63, 2**80, -(2**70), True, np.True_, 1.0, np.float32(1), 1 + 2j, [0], [0, 1, 2], [0, 3], [0, -1], [0, True], [0.0, 1.0],
    [2**70, 1], [[0, 1]], [None, 1], [], np.array([]), np.array([True, False]), {}, {"a": 1}, {0, 1}, b"y[0,1]", object(), iter([0, 1]),
    "", "  ", "7", "y", "out[0,", "nope[0,1]", "y[]", "y[0]", "y[0,1,2]", "y[0,99]", "y[0,-4]", "y[5,1]", "y[-3,1]", "y[:,:]", "y[1:2,0]",
    "y[0,1.5]", "y[0,one]", "y[0,99999999999999999999999]", "[0,1]", "y(0,1)", "y[0,1]]", "x[0,1,1,1]", "w[0,0,0,0]", "y[0,1\n]z", "-1", "y[0;1]",
)  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: re.sub(" at 0x.*", "", repr(t))[:40])
def test_a_target_that_is_none_is_refused(target: Any, explainer: Explainer) -> None:
    refusal(TargetError, lambda: explainer(X, target=target))


OPTIONS: dict[str, tuple[type[ExplainError], dict[str, Any], str]] = {
    "an unknown method": (MethodError, {"method": "lrp-epsilonn"}, "lrp-epsilon'"),
    "no method": (MethodError, {"method": None}, "method"),
    "a number for a method": (MethodError, {"method": 3}, "method"),
    "an empty method": (MethodError, {"method": ""}, "method"),
    "an unknown option": (MethodError, {"method": "rap", "varient": "published"}, "'varient'.*'variant'"),
    "an unknown variant": (MethodError, {"method": "rap", "variant": "newest"}, "'newest'"),
    "a negative epsilon": (MethodError, {"epsilon": -1.0}, "epsilon"),
    "epsilon in words": (MethodError, {"epsilon": "small"}, "'small'"),
    "NaN for epsilon": (MethodError, {"epsilon": float("nan")}, "nan"),
    "a number for a switch": (MethodError, {"zero_bias": 1}, "zero_bias"),
    "an unknown batch_norm": (MethodError, {"batch_norm": "melt"}, "'melt'"),
    "bounds of another length": (
        MethodError,
        {"method": "lrp-epsilon-gamma-box", "low": [1.0, 2.0, 3.0], "high": [4.0, 5.0, 6.0]},
        "channels",
    ),
    "half of the bounds": (MethodError, {"method": "deep-taylor", "low": 0.0}, "high"),
    "bounds the wrong way round": (MethodError, {"method": "lrp-epsilon-gamma-box", "low": 1.0, "high": 0.0}, "low"),
    "an unknown seed": (MethodError, {"seed": "two"}, "'two'"),
    "an unknown device": (MethodError, {"device": "abacus"}, "'abacus'"),
    "an unknown backend": (MethodError, {"backend": "torch"}, "'torch'"),
    "an unknown output": (TargetError, {"output": "probs"}, "'probs'"),
    "an output that is an input": (TargetError, {"output": "x"}, "'x'"),
    "an output that is a weight": (TargetError, {"output": "w"}, "'w'"),
    "a number for an output": (TargetError, {"output": 3}, "3"),
    "an unknown tensor to keep": (TargetError, {"keep": ["ll"]}, "'ll'"),
    "a number to keep": (InputError, {"keep": [3]}, "3"),
    "an unknown input": (InputError, {"wrt": ["image"]}, "'image'"),
    "no input": (InputError, {"wrt": []}, "wrt|input"),
    "an empty batch": (InputError, {"batch_size": 0}, "batch_size"),
    "a broken batch": (InputError, {"batch_size": 1.5}, "batch_size"),
    "a batch in words": (InputError, {"batch_size": "many"}, "batch_size"),
    "threads in words": (InputError, {"threads": "all"}, "threads"),
    "fewer threads than none": (InputError, {"threads": -3}, "threads"),
    "shapes of an unknown input": (InputError, {"input_shapes": {"image": [1]}}, "'image'"),
    "shapes of another rank": (InputError, {"input_shapes": {"x": [1, 2]}}, "rank"),
    "shapes that contradict the file": (InputError, {"input_shapes": {"x": [None, 2, 7, 7]}}, "'x'"),
    "a number for a shape": (InputError, {"input_shapes": {"x": 3}}, "'x'|shape"),
}


@pytest.mark.parametrize("label", OPTIONS)
def test_an_option_that_does_not_fit_is_refused(label: str) -> None:
    kind, given, told = OPTIONS[label]
    options = {"method": "lrp-epsilon", **given}
    assert re.search(
        told,
        refusal(
            kind,
            lambda: (
                Explainer(small_cnn(), threads=1, **options)(X)
                if "threads" not in options
                else Explainer(small_cnn(), **options)(X)
            ),
        ),
    )


SOURCES: tuple[Any, ...] = (
    None,
    3,
    "",
    b"",
    "nope.onnx",
    ".",
    "/dev/null",
    b"abc",
    "x" * 5000,
    "a\0b",
    [],
    small_cnn().graph,
    onnx.ModelProto(),
    b"\x00" * 100,
    b"PK\x03\x04",
)


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: re.sub(r" at 0x.*|\s", "", repr(s))[:25])
def test_what_is_no_model_is_refused(source: Any) -> None:
    refusal(ModelError, lambda: Explainer(source, "gradient"))
    refusal(ModelError, lambda: build_vjp(source))


def test_an_unknown_operator_is_named_with_place_shapes_method_and_remedy() -> None:
    message = refusal(UnsupportedOperator, lambda: Explainer(custom_domain(), "rap")(X))
    assert all(part in message for part in ("'spell'", "Magic", "opset 3", "[N, 2, 6, 6]", "'rap'", "--output"))


REFUSED = sorted((SHARED / "refuse").glob("*.onnx"))


@pytest.mark.parametrize(
    "path",
    REFUSED or [pytest.param(None, marks=pytest.mark.skip(reason="../shared/models/refuse is not here"))],
    ids=lambda p: p.stem if p else "none",
)
def test_models_of_the_wild_without_a_way_are_refused_in_one_sentence(path: Path) -> None:
    with pytest.raises(ExplainError) as caught:
        Explainer(path, "lrp-epsilon-plus").plan()
        Explainer(path, "lrp-epsilon-plus").convert()
    assert not (wrong := complaint(str(caught.value))), f"{wrong}: {caught.value}"


if __name__ == "__main__":
    serve()
