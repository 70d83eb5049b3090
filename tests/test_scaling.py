"""The work to build a graph grows with its nodes and no faster: function calls are counted, nothing is timed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_explain.backends.onnx import lower
from onnx_explain.ir.canonicalize import canonicalize
from onnx_explain.ir.message import serialise
from onnx_explain.ir.model import load
from onnx_explain.methods import Composite, resolve
from onnx_explain.relevance import Options, build

SMALL, LARGE = 15, 60
Parts = tuple[list[onnx.NodeProto], dict[str, Any]]
node = helper.make_node


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32) / 2


def residual(n: int) -> Parts:
    nodes, weights, p = [], {"b": normal(4)}, "x"
    for i in range(n):
        weights[f"w{i}"] = normal(4, 4)
        nodes += [node("Gemm", [p, f"w{i}", "b"], [f"g{i}"]), node("Relu", [f"g{i}"], [f"r{i}"])]
        nodes += [node("Add", [f"r{i}", p], [f"v{i}"])]
        p = f"v{i}"
    return nodes, weights


def wide(n: int) -> Parts:
    """One tensor with n readers, and a sum of n terms."""
    nodes = [node("Tanh", ["x"], ["t"])]
    nodes += [node(("Relu", "Sigmoid")[i % 2], ["t"], [f"o{i}"]) for i in range(n)]
    return [*nodes, node("Sum", [f"o{i}" for i in range(n)], ["v"])], {}


def unrolled(n: int) -> Parts:
    """A recurrent net step by step, with one weight that all steps read."""
    nodes, p = [], "x"
    for i in range(n):
        nodes += [node("MatMul", [p, "u"], [f"h{i}"]), node("Add", [f"h{i}", "x"], [f"a{i}"])]
        nodes += [node("Tanh", [f"a{i}"], [f"v{i}"])]
        p = f"v{i}"
    return nodes, {"u": normal(4, 4)}


def activations(n: int) -> Parts:
    """Nothing but anchors of what might be one operator."""
    nodes, p = [], "x"
    for i in range(n):
        nodes.append(node(("Relu", "Tanh", "Sigmoid", "Neg")[i % 4], [p], [f"v{i}"]))
        p = f"v{i}"
    return nodes, {}


def shape_arithmetic(n: int) -> Parts:
    """Reshapes to shapes that are computed from what was reshaped before, as exporters write them."""
    nodes, p = [], "x"
    for i in range(n):
        nodes += [node("Shape", [p], [f"s{i}"]), node("Slice", [f"s{i}", "zero", "one"], [f"n{i}"])]
        nodes += [node("Concat", [f"n{i}", "rest"], [f"c{i}"], axis=0), node("Reshape", [p, f"c{i}"], [f"q{i}"])]
        nodes += [node("Exp", [f"q{i}"], [f"v{i}"])]
        p = f"v{i}"
    return nodes, {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([-1])}


def model(make: Callable[[int], Parts], n: int) -> onnx.ModelProto:
    nodes, weights = make(n)
    nodes = [*nodes, node("Identity", [nodes[-1].output[0]], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    tensors = [numpy_helper.from_array(a, name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@contextmanager
def counting() -> Iterator[list[int]]:
    """The number of calls of Python functions inside."""
    calls = [0]

    def seen(frame: Any, event: str, argument: Any) -> None:
        calls[0] += event == "call"

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def work(proto: onnx.ModelProto, composite: Composite) -> int:
    with counting() as calls:
        graph = build(canonicalize(load(proto).model), composite, Options(accounting=True))
        serialise(lower(graph.model))
    return calls[0]


@pytest.mark.parametrize("make", [residual, wide, unrolled, activations, shape_arithmetic])
def test_four_times_the_nodes_are_four_times_the_work(make: Callable[[int], Parts]) -> None:
    composite = resolve("lrp-epsilon-plus").procedure({})
    assert isinstance(composite, Composite)
    work(model(make, 4), composite)  # what is imported or remembered once
    small, large = (work(model(make, n), composite) for n in (SMALL, LARGE))
    assert large <= 1.1 * LARGE / SMALL * small
