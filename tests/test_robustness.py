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

from onnx_explain import ExplainError, Explainer, InputError, MethodError, ModelError, TargetError, UnsupportedOperator, build_vjp

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
MEMORY = 8 << 30  # bytes of address space of a child; its libraries and thread stacks take two
GROWTH = 512  # MB a single hostile file may make the process grow by
SECONDS = 20  # a single file may take
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


def attempt(case: Case) -> tuple[str, str, str]:
    """Explain and convert; in the child."""
    try:
        explainer = Explainer(case.source, case.method, threads=1)
        explainer(X if case.x is None else case.x)
        explainer.convert()
    except ExplainError as error:
        return "refused", type(error).__name__, str(error)
    except TimeoutError:
        return "slow", "", f"more than {SECONDS} s"
    except MemoryError as error:
        return "escaped", "MemoryError", "".join(traceback.format_exception(error)[-3:])
    except BaseException as error:
        return "escaped", type(error).__name__, "".join(traceback.format_exception(error)[-4:])
    return "worked", "", ""


def serve() -> None:
    """The child: cases in by pickle, outcomes out by pickle, one after the other."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases: Sequence[Case] = pickle.load(sys.stdin.buffer)

    def late(*_: object) -> None:
        raise TimeoutError

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
            [sys.executable, "-c", code], input=pickle.dumps(todo), capture_output=True, timeout=SECONDS * len(todo) + 60
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
        "shows Python's insides": bool(re.search(r"NoneType|object at 0x|<class |has no attribute|KeyError|IndexError|unhashable", message)),
        "is longer than 600 characters": len(message) > 600,
        "does not end like a sentence": not message.rstrip().endswith((".", "?", "…", ")")),
        "holds a status code of ONNX Runtime": "[ONNXRuntimeError]" in message,
    }
    return ", ".join(text for text, wrong in checks.items() if wrong)


def fault(case: Case, outcome: Outcome) -> str:
    """Why an outcome fails the claim; empty where it does not."""
    if outcome.kind in ("escaped", "crashed", "slow"):
        return f"{case.label}: {outcome.kind} {outcome.error} {outcome.message}"
    if outcome.kind == "refused" and (wrong := complaint(outcome.message)):
        return f"{case.label}: the message {wrong}: {outcome.message}"
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
        names = ("Relu", "Conv", "Gemm", "Add", "Loop", "If", "Reshape", "Nonsense", "", "LSTM", "MaxPool", "Shape", "Softmax")
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


if __name__ == "__main__":
    serve()
