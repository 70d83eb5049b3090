"""Graphs drawn at random from the operator table: cases joined into one graph, an output of one feeding another.

`draw(seed)` takes one to three cases of one opset (seed by seed every case comes first once), joins them by a mixing matrix
that brings any shape into any other and any value into the range that the next case asks for, adds branches that are
summed, multiplied or subtracted, and gives the graph one output or several. What must hold of such a graph is not said here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from case import Array, Case, Values
from cases import CASES
from onnx import compose, helper, numpy_helper
from oracles import evaluate

POOL = tuple(
    c for c in CASES if not (c.functions or c.as_inputs or c.ir_version or c.only_float32 or "FLOAT16" in c.text)
)  # of one file and both precisions, and no rounding inside
_RANGES = {
    "positive": (1.15, 0.8),
    "negative": (-1.15, 0.8),
    "unit": (0.0, 0.75),
    "over": (2.1, 0.7),
    "wide": (0.0, 40.0),
}
_SIGNED = (0.0, 2.0)


@dataclass(frozen=True)
class Tensor:
    """A float tensor that further cases may read: its name, its shape in this run, and how large its entries are."""

    name: str
    shape: tuple[int, ...]
    scale: float


@dataclass
class Drawn:
    """A model in both precisions, with values for its inputs and for the cotangents of its outputs."""

    seed: int
    cases: list[Case]
    opset: int
    dynamic: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, Values] = field(default_factory=dict)
    feeds: dict[str, Array] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def model(self, dtype: npt.DTypeLike) -> onnx.ModelProto:
        """The model of one precision; the same float32 numbers in both."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        made = []
        for i, case in enumerate(self.cases):
            graph = compose.add_prefix_graph(case.build(dtype).graph, f"c{i}_")
            made.append(graph)
        nodes = [n for n in self.nodes if not n.op_type.startswith("case ")]
        names = {n.op_type: n for n in self.nodes if n.op_type.startswith("case ")}
        for i, graph in enumerate(made):
            place = names[f"case {i}"]
            renamed = dict(zip(place.output, place.input))
            for n in graph.node:
                n.input[:] = [renamed.get(name, name) for name in n.input]
                # onnx's evaluator takes an output without a name for every operand that is left out
                n.output[:] = [name or f"{n.output[0]}_unused_{k}" for k, name in enumerate(n.output)]
            nodes.extend(graph.node)
        tensors = [t for g in made for t in g.initializer]
        tensors += [numpy_helper.from_array(self._typed(a, dtype), n) for n, a in self.constants.items()]
        takes = []
        for name, v in self.inputs.items():
            shape = v.declared if self.dynamic and v.declared is not None else v.shape
            takes.append(helper.make_tensor_value_info(name, kind, shape))
        gives = [helper.make_tensor_value_info(t.name, kind, [None] * len(t.shape)) for t in self.outputs]
        version = 10 if self.opset > 20 else 9 if self.opset == 20 else 8
        graph = helper.make_graph(_sorted(nodes), "drawn", takes, gives, tensors)
        return helper.make_model(graph, ir_version=version, opset_imports=[helper.make_opsetid("", self.opset)])

    def values(self, dtype: npt.DTypeLike) -> dict[str, Array]:
        return {n: a.astype(dtype) for n, a in self.feeds.items()}

    @staticmethod
    def _typed(array: Array, dtype: npt.DTypeLike) -> Array:
        return array.astype(dtype) if array.dtype == np.float64 else array


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """In the order in which they run."""
    made = {name for n in nodes for name in n.output if name}
    known: set[str] = set()
    left, done = list(nodes), []
    while left:
        ready = [n for n in left if not (_reads(n) & made) - known]
        if not ready:
            raise ValueError("a cycle")
        done += ready
        known |= {name for n in ready for name in n.output}
        left = [n for n in left if not any(n is r for r in ready)]
    return done


def _reads(node: onnx.NodeProto) -> set[str]:
    bodies = [b.g for b in node.attribute if b.HasField("g")]
    return set(node.input) | {name for g in bodies for n in g.node for name in _reads(n)}


@cache
def _results(index: int) -> tuple[tuple[str, tuple[int, ...], float], ...]:
    """Name, shape and size of a case's differentiable outputs."""
    case = POOL[index]
    found = evaluate(case.build(np.float64), case.values(np.float64))
    return tuple(
        (n, np.shape(found[n]), float(np.abs(found[n]).sum() / max(np.size(found[n]), 1) or 1.0)) for n in case.outputs
    )


def draw(seed: int) -> Drawn:
    """The graph of a seed; the same every time."""
    rng = np.random.default_rng([7, seed])
    first = POOL[seed % len(POOL)]
    others = [c for c in POOL if c.opset == first.opset]
    chosen = [first, *(others[int(rng.integers(len(others)))] for _ in range(int(rng.integers(0, 3))))]
    order = [chosen[i] for i in rng.permutation(len(chosen))]
    batches = {v.shape[:1] for c in order for v in c.inputs.values()}
    open_ones = all(v.declared is not None for c in order for v in c.inputs.values())
    drawn = Drawn(seed, order, first.opset, open_ones and len(batches) == 1)
    for i, case in enumerate(order):
        _place(drawn, rng, i, case)
        if rng.random() < 0.5:
            _branch(drawn, rng)
    last = drawn.tensors[-1]
    further = [t for t in drawn.tensors[:-1] if rng.random() < 0.3]
    drawn.outputs = [last, *further[:2]]
    return drawn


def _place(drawn: Drawn, rng: np.random.Generator, i: int, case: Case) -> None:
    """A case's nodes; its inputs are fed by what is there already, or by inputs of the graph."""
    fed: dict[str, str] = {}
    salted = case.values(np.float64, seed=drawn.seed)
    for name, v in case.inputs.items():
        sources = [t for t in drawn.tensors if 0 < np.prod(t.shape) <= 4096 and 0 < np.prod(v.shape) <= 4096]
        if drawn.dynamic:
            sources = [t for t in sources if t.shape[:1] == v.shape[:1] and t.shape]
        if sources and rng.random() < 0.8:
            # the newest one more often than not
            t = sources[-1] if rng.random() < 0.7 else sources[int(rng.integers(len(sources)))]
            fed[f"c{i}_{name}"] = _adapted(drawn, rng, t, v, f"a{i}_{name}")
        else:
            drawn.inputs[f"c{i}_{name}"], drawn.feeds[f"c{i}_{name}"] = v, salted[name]
    drawn.nodes.append(onnx.NodeProto(op_type=f"case {i}", input=list(fed.values()), output=list(fed)))
    for name, shape, scale in _results(POOL.index(case)):
        if name in case.inputs:
            continue  # an input handed on is no tensor of its own
        drawn.tensors.append(Tensor(f"c{i}_{name}", shape, scale))


def _adapted(drawn: Drawn, rng: np.random.Generator, t: Tensor, v: Values, stem: str) -> str:
    """`t` mixed into the shape of `v` and brought into its range."""
    kept = t.shape[:1] if drawn.dynamic else ()
    before, behind = int(np.prod(t.shape[len(kept) :])), int(np.prod(v.shape[len(kept) :]))
    middle, gain = _RANGES.get(v.kind, _SIGNED)
    offset = np.full((1, behind), middle)
    if v.kind == "distinct":
        gain, offset = 1e-3, v.draw([drawn.seed]).reshape(-1)[:behind].reshape(1, behind)
    flat = np.array([0, -1] if kept else [1, -1])
    shape = np.array([0, *v.shape[1:]] if kept else v.shape, dtype=np.int64)
    mix = rng.standard_normal((before, behind)) * 0.7 / (before**0.5 * t.scale)
    drawn.constants |= {
        f"{stem}_flat": flat, f"{stem}_mix": mix, f"{stem}_gain": np.full((1, behind), gain), f"{stem}_offset": offset,
        f"{stem}_shape": shape,
    }  # fmt: skip
    steps: list[tuple[str, str]] = [("Reshape", "flat"), ("MatMul", "mix"), ("Tanh", ""), ("Mul", "gain")]
    steps += [("Add", "offset"), ("Reshape", "shape")]
    name = t.name
    for op_type, constant in steps:
        operands = [name, f"{stem}_{constant}"] if constant else [name]
        name = f"{stem}_{len(drawn.nodes)}"
        drawn.nodes.append(helper.make_node(op_type, operands, [name], name=name))
    return name


def _branch(drawn: Drawn, rng: np.random.Generator) -> None:
    """Two tensors of one shape, joined; one of them may stand on both sides."""
    a = drawn.tensors[int(rng.integers(len(drawn.tensors)))]
    same = [t for t in drawn.tensors if t.shape == a.shape]
    b = same[int(rng.integers(len(same)))]
    op_type = ("Add", "Mul", "Sub")[int(rng.integers(3))]
    name = f"j{len(drawn.nodes)}"
    drawn.nodes.append(helper.make_node(op_type, [a.name, b.name], [name], name=name))
    scale = a.scale * b.scale if op_type == "Mul" else a.scale + b.scale
    drawn.tensors.append(Tensor(name, a.shape, max(scale, 1e-3)))


def op_types() -> Iterator[str]:
    """The operators of the cases that are drawn from."""
    for case in POOL:
        yield from case.op_types


def cotangents(drawn: Drawn, outputs: dict[str, Any]) -> dict[str, Array]:
    """One random array per output."""
    rng = np.random.default_rng([8, drawn.seed])
    return {t.name: rng.standard_normal(np.shape(outputs[t.name])) for t in drawn.outputs}
