"""From a canonical model, a composite and a target to the relevance graph: the same graph and its backward half.

One walk from the target to the inputs; relevance is added up per tensor, and has that tensor's shape and dtype throughout.
Which rule a node gets is the composite's affair, what an operator is its room's, what lies on the way `path`'s; nothing
here looks at an operator's name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import InputError, TargetError, UnsupportedOperator, VerificationError, suggest
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank, shape_text
from onnx_explain.methods import Assignment, Composite, Seed
from onnx_explain.operators import find
from onnx_explain.operators.roles import Linear, Normalization, Pointwise, Role, Sum, per_channel, zeros_like
from onnx_explain.path import activity, explained_tensor, nodes_between, nonnegative_values, wrt_inputs
from onnx_explain.rules import gradient
from onnx_explain.rules.share import Shares, Step

ARGMAX = -1  # a target index of -1 means the arg-max, -2 that the sample is not explained


@dataclass(frozen=True)
class Options:
    """What to build: the explained output and inputs, where relevance starts, and what is reported with it.

    `logits`: look behind a final Softmax or Sigmoid. `keep`: tensors whose relevance becomes an output too.
    """

    output: str | None = None
    wrt: Sequence[str] | None = None
    seed: Seed = "score"
    logits: bool = True
    keep: Sequence[str] = ()
    accounting: bool = False


@dataclass(frozen=True)
class Row:
    """One line of the plan: a node on the way from target to input, its role, and the rule it gets (None: unsupported)."""

    name: str
    op_type: str
    role: str
    rule: str | None
    inputs: str
    outputs: str


@dataclass(frozen=True)
class RelevanceGraph:
    """A model whose backward half is written in ONNX and composite nodes.

    `relevance` maps input names to output names; `target_input` is the optional int64 input; `explained` names the tensor
    whose element is explained; `reports` maps ``score``, ``index`` and ``absorbed`` to output names.
    """

    model: ir.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    relevance: Mapping[str, str]
    kept: Mapping[str, str]
    target_input: str
    explained: str
    classes: int | None
    by_sample: bool
    explained_shape: tuple[int | None, ...]
    reports: Mapping[str, str]
    rows: tuple[Row, ...]


@dataclass
class _Node:
    """A node on the way, with what has been fused into it."""

    operation: Operation
    role: Role
    bias: Value | None = None
    first: bool = False
    last: bool = False
    head: bool = False
    fused: list[Operation] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """One contribution to a tensor's relevance; `zero_with`: it is zero wherever that value is. `gradient`: it is the
    score's derivative still (above the first propagation).
    """

    r: Value
    zero_with: Value | None = None
    gradient: bool = False


# ------------------------------------------------------------------------------------------- the plan


def plan(model: ir.Model, composite: Composite, options: Options) -> tuple[list[Row], list[str]]:
    """Node by node from target to input: role and rule; and the names of nodes without a room."""
    target = explained_tensor(model, options.output, logits=options.logits)
    active, live = activity(model, wrt_inputs(model, options.wrt))
    version = model.graph.opset_imports.get("", 0)
    nodes = nodes_between(model, [target], active, live)
    chain, missing = [], []
    for node in nodes:
        operation = Operation.of(node, active[id(node)], version)
        try:
            chain.append(_Node(operation, _role(operation)))
        except UnsupportedOperator:
            missing.append(operation.name)
    if not missing:
        return list(build(model, composite, replace(options, accounting=False)).rows), []
    chain = _positions(chain, composite)
    labels = {c.operation.name: c for c in chain}
    rows = []
    for node in reversed(nodes):
        operation = Operation.of(node, active[id(node)], version)
        shapes = ", ".join(shape_text(v) for v in node.inputs if v is not None and v.const_value is None)
        outs = ", ".join(shape_text(v) for v in node.outputs)
        known = labels.get(operation.name)
        if known is None:
            rows.append(Row(operation.name, operation.op_type, "-", None, shapes, outs))
            continue
        label = "gradient" if known.head else _assignment(composite, known).label
        rows.append(Row(operation.name, operation.op_type, type(known.role).__name__, label, shapes, outs))
    return rows, missing


def _role(operation: Operation) -> Role:
    found = find(operation)
    if found is None:
        raise UnsupportedOperator(f"{operation.where}: no room.")
    return found.role(operation)


def _assignment(composite: Composite, node: _Node) -> Assignment:
    return composite.rule(node.operation, node.role, first=node.first, last=node.last)


def _positions(nodes: list[_Node], composite: Composite) -> list[_Node]:
    """Mark first and last weighted operators and, under a first propagation, the head above them. Structure decides."""
    below: dict[int, bool] = {}
    for node in nodes:
        upstream = any(below.get(id(v), False) for v in node.operation.inputs if v is not None)
        weighted = isinstance(node.role, Linear) and node.role.kind == "weighted"
        node.first = weighted and not upstream
        for value in node.operation.outputs:
            below[id(value)] = upstream or weighted
    above: dict[int, bool] = {}
    for node in reversed(nodes):
        downstream = any(above.get(id(v), False) for v in node.operation.outputs)
        weighted = isinstance(node.role, Linear) and node.role.kind == "weighted"
        node.last = weighted and not downstream
        reaches = any(below.get(id(v), False) for v in node.operation.inputs if v is not None)
        node.head = composite.first_propagation and not downstream and not weighted and reaches
        for operand in node.operation.inputs:
            if operand is not None:
                above[id(operand)] = above.get(id(operand), False) or downstream or weighted
    return nodes


# ------------------------------------------------------------------------------------------- building


def build(model: ir.Model, composite: Composite, options: Options, *, method: str = "custom") -> RelevanceGraph:
    """The relevance graph of a canonical model, which stays as it is.

    Raises UnsupportedOperator, TargetError, InputError, ModelError.
    """
    builder = _Builder(model.clone(), composite, options, method)
    return builder.run()


def vector_jacobian(model: ir.Model, composite: Composite, wrt: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """The canonical model with inputs ``<output>_cotangent`` and outputs ``<input>_gradient``: Σ_outputs Jᵀ·cotangent."""
    clone = model.clone()
    builder = _Builder(clone, composite, Options(wrt=wrt, logits=False), "gradient", outputs)
    return builder.run_vjp()


def relevance_of(model: ir.Model, composite: Composite, wrt: Sequence[str], output: str) -> ir.Model:
    """As `vector_jacobian` for any composite: relevance that enters at `output` as ``<output>_cotangent``, of any values."""
    builder = _Builder(model.clone(), composite, Options(wrt=wrt, logits=False), "custom", [output])
    return builder.run_vjp()


class _Builder:
    """The state of one build: what relevance has come to each value so far."""

    def __init__(
        self, model: ir.Model, composite: Composite, options: Options, method: str, targets: Sequence[str] | None = None
    ) -> None:
        self.model, self.graph, self.composite, self.options, self.method = (
            model,
            model.graph,
            composite,
            options,
            method,
        )
        self.wrt = wrt_inputs(model, options.wrt)
        names = [options.output] if targets is None else list(targets)
        self.targets = [explained_tensor(model, name, logits=options.logits) for name in names]
        self.target = self.targets[0]
        self.score: Value | None = None
        self.starts_last = False
        self.op = Emitter(self.graph)
        self.parts: dict[int, list[_Part]] = {}
        self.absorbed: list[Value] = []
        self.rows: list[Row] = []
        self.nonnegative = nonnegative_values(model)
        values = {v.name or "": v for node in self.graph for v in node.outputs} | {
            v.name or "": v for v in self.graph.inputs
        }
        for name in options.keep:
            if name not in values:
                raise TargetError(
                    f"The model has no tensor {name!r} whose relevance could be kept.{suggest(name, values)}"
                )
        self.kept = {name: values[name] for name in options.keep if name not in self.wrt}
        self.inputs = tuple(v.name or "" for v in self.graph.inputs)
        self.outputs = tuple(v.name or "" for v in self.graph.outputs)

    def run(self) -> RelevanceGraph:
        if not self.wrt:
            raise InputError(
                "The model has no float input, and integers carry no relevance; explain a model from its embeddings on."
            )
        nodes = self._nodes()
        if not nodes and all(v.name not in self.wrt for v in self.targets):
            raise TargetError(
                f"Output {self.target.name!r} does not depend on {', '.join(map(repr, self.wrt))}; name another output."
            )
        # without a weighted operator on the way there is no first propagation: relevance starts at the target
        self.starts_last = self.composite.first_propagation and any(n.last for n in nodes)
        seed, score, index, name = self._seed()
        self.score = score if self.options.seed == "one" else None
        self.parts[id(self.target)] = [
            _Part(seed, None, any(n.head or n.last for n in nodes) and self.composite.first_propagation)
        ]
        for node in reversed(nodes):
            self._step(node)
        relevance = {n: self._result(v) for v in self.graph.inputs for n in [v.name or ""] if n in self.wrt}
        kept = {n: self._finished(v) for n, v in self.kept.items()}
        reports = {"score": score, "index": index}
        if self.options.accounting:
            reports["absorbed"] = self._account(score)
        return self._assemble(relevance, kept, reports, name)

    def run_vjp(self) -> ir.Model:
        """The walk with one cotangent per output in place of a seed."""
        nodes = self._nodes()
        for value in self.targets:
            cotangent = self.op.input(f"{value.name}_cotangent", value)
            self.parts.setdefault(id(value), []).append(_Part(cotangent))
        for node in reversed(nodes):
            self._step(node)
        inputs = {v.name or "": v for v in self.graph.inputs}
        for name in self.wrt:
            self.op.output(self._result(inputs[name]), f"{name}_gradient", inputs[name])
        self.op.finish()
        _verify(self.model)
        return self.model

    # -- the chain of nodes

    def _nodes(self) -> list[_Node]:
        active, live = activity(self.model, self.wrt)
        version = self.graph.opset_imports.get("", 0)
        chain: list[_Node] = []
        for node in nodes_between(self.model, self.targets, active, live):
            operation = Operation.of(node, active[id(node)], version)
            if find(operation) is None:
                raise UnsupportedOperator(self._refusal(operation, version))
            role = _role(operation)
            bias = None
            if isinstance(role, (Linear, Normalization)):
                linear = role if isinstance(role, Linear) else role.linear
                if linear is not None and linear.bias is not None:
                    with self.op.serving(operation.name):
                        bias = linear.bias(self.op)
            chain.append(_Node(operation, role, bias))
        return _positions(self._fused(chain), self.composite)

    def _refusal(self, operation: Operation, version: int) -> str:
        opset = version if operation.domain in ("", "ai.onnx") else self.graph.opset_imports.get(operation.domain, 0)
        shapes = ", ".join(f"{v.name} {shape_text(v)}" for v in operation.inputs if v is not None)
        return (
            f"{operation.where}, opset {opset}, inputs {shapes}: method {self.method!r} cannot pass this operator. "
            "Explain a tensor before it (`--output NAME`), export the model without it, or give it a room "
            "(docs/extending.md)."
        )

    def _fused(self, chain: list[_Node]) -> list[_Node]:
        """A weighted operator takes in the constant Add and the BatchNormalization behind it, where nothing else reads between."""
        producer: dict[int, _Node] = {}
        readers: dict[int, int] = {}
        for node in chain:
            for i in node.operation.active:
                readers[id(node.operation.inputs[i])] = readers.get(id(node.operation.inputs[i]), 0) + 1
        result: list[_Node] = []
        held = {id(v) for v in (*self.kept.values(), *self.targets)}
        for node in chain:
            source = node.operation.input(min(node.operation.active))
            before = producer.get(id(source))
            if (
                before is not None
                and readers.get(id(source), 0) == 1
                and id(source) not in held
                and self._take_in(before, node)
            ):
                del producer[id(source)]
                producer[id(node.operation.y)] = before
                continue
            result.append(node)
            if isinstance(node.role, Linear) and node.role.kind == "weighted" and len(node.operation.outputs) == 1:
                producer[id(node.operation.y)] = node
        return result

    def _take_in(self, before: _Node, node: _Node) -> bool:
        """Fuse `node` into the weighted operator before it; False where that is not exact or not asked for."""
        role = before.role
        if not isinstance(role, Linear) or len(node.operation.active) != 1:
            return False
        behind = node.role
        if isinstance(behind, Linear) and behind.affine is not None:
            if self.composite.batch_norm != "fold" or role.rescale is None or role.channel_axis != 1:
                return False
            self._fold(before, role, node, *(part(self.op) for part in behind.affine))
        elif isinstance(behind, Sum) and behind.coefficients == (1.0, 1.0):
            constant = node.operation.input(1 - min(node.operation.active))
            if constant.shape is None or node.operation.y.shape != before.operation.y.shape:
                return False
            with self.op.serving(before.operation.name):
                before.bias = constant if before.bias is None else self.op.Add(before.bias, constant)
        else:
            return False
        before.operation = replace(before.operation, outputs=node.operation.outputs)
        before.fused.append(node.operation)
        return True

    def _fold(self, before: _Node, role: Linear, node: _Node, c: Value, t: Value) -> None:
        """W' = c·W, b' = c·b + t; exact for every linear operator with one reader (methods.md §5)."""
        op = self.op
        if role.weight is None or role.rescale is None:
            raise ValueError(f"{before.operation.where}: has no weight to fold into")
        with op.serving(before.operation.name, folded=node.operation.name):
            t = per_channel(op, t, node.operation.y)
            weight = role.rescale(op, before.operation.input(role.weight), c)
            scaled = None if before.bias is None else op.Mul(before.bias, per_channel(op, c, node.operation.y))
            before.bias = t if scaled is None else op.Add(scaled, t)
        inputs = [*before.operation.inputs]
        inputs[role.weight] = weight
        before.operation = replace(before.operation, inputs=tuple(inputs))
        before.role = _role(before.operation)

    # -- the seed

    def _seed(self) -> tuple[Value, Value, Value, str]:
        """(seed of the target's shape, score [N], index [N], name of the target input)."""
        op, y = self.op, self.target
        wished = chain(("target", "explain_target"), (f"explain_target_{i}" for i in count()))
        name = next(n for n in wished if n not in op.names)
        chosen = op.input(name, default=np.asarray([ARGMAX], dtype=np.int64))
        with op.serving("target"):
            flat = op.Reshape(y, op.ints(*self._flat_shape(y)))
            size = op.Shape(flat, start=1, end=2)
            index = op.Where(op.Equal(chosen, op.ints(ARGMAX)), op.ArgMax(flat, axis=1, keepdims=0), chosen)
            every = op.Range(
                op.constant(0, dtype=np.int64), op.Squeeze(size, op.ints(0)), op.constant(1, dtype=np.int64)
            )
            hit = op.Equal(op.Unsqueeze(index, op.ints(1)), op.Unsqueeze(every, op.ints(0)))
            one, zero = op.constant(1.0, like=y), op.constant(0.0, like=y)
            value = op.Where(hit, flat, zero)
            score = op.ReduceSum(value, op.ints(1), keepdims=0)
            plain = self.options.seed == "one" or self.starts_last
            flat_seed = op.Where(hit, one, zero) if plain else value
            if self.composite.positive_seed:
                alive = op.Cast(op.Greater(score, zero), to=int(y.dtype or 1))
                flat_seed = op.Mul(flat_seed, op.Unsqueeze(alive, op.ints(1)))
            seed = op.reshape_like(flat_seed, y)
        for v in (score, index):
            v.shape = ir.Shape([self._samples(y)])
        return seed, score, index, name

    def _samples(self, y: Value) -> int | str:
        if rank(y) == 0 or (rank(y) == 1 and not self._by_sample(y)):
            return 1
        return dims(y)[0] or "N"

    def _by_sample(self, y: Value) -> bool:
        """Whether axis 0 counts samples: it is open, or as long as the first input's."""
        first = next(
            (v for v in self.graph.inputs if v.name in self.wrt and v.shape is not None and len(v.shape)), None
        )
        if rank(y) == 0:
            return False
        return dims(y)[0] is None or (first is not None and dims(first)[0] == dims(y)[0])

    def _flat_shape(self, y: Value) -> list[int]:
        if not self._by_sample(y):
            return [1, -1]
        return [0, -1] if rank(y) > 1 else [-1, 1]

    def _classes(self) -> int | None:
        y = self.target
        sizes = dims(y)[1:] if self._by_sample(y) else dims(y)
        return None if any(d is None for d in sizes) else int(np.prod([d or 1 for d in sizes], dtype=np.int64))

    # -- one step back

    def _step(self, node: _Node) -> None:
        op, operation = self.op, node.operation
        if not any(self.parts.get(id(v)) for v in operation.outputs):
            return
        with op.serving(operation.name, node=operation.name, operator=operation.op_type):
            gradient_here = self.composite.first_propagation and (node.head or node.last)
            rs = tuple(self._total(v, gradient_here) for v in operation.outputs)
            main = rs[0] if rs[0] is not None else None
            proxy = main.zero_with if main is not None and main.zero_with is not None else operation.y
            step = Step(
                operation,
                node.role,
                tuple(p.r if p is not None else None for p in rs),
                proxy,
                sparse=main is not None and main.zero_with is not None,
                rectified=id(proxy) in self.nonnegative,
                nonnegative=frozenset(i for i in operation.active if id(operation.inputs[i]) in self.nonnegative),
                accounting=self.options.accounting and not gradient_here,
                bias=node.bias,
                score=self.score,
            )
            label, shares = self._shares(node, step)
        role = type(node.role).__name__
        shapes = ", ".join(shape_text(operation.input(i)) for i in sorted(operation.active))
        for taken in reversed(node.fused):
            told = f"folded into {operation.name}"
            self.rows.append(Row(taken.name, taken.op_type, "-", told, shape_text(taken.x), shape_text(taken.y)))
        self.rows.append(Row(operation.name, operation.op_type, role, label, shapes, shape_text(operation.y)))
        self.absorbed.extend(shares.absorbed)
        for k, r in shares.inputs.items():
            self._receive(node, step, k, r, shares)

    def _shares(self, node: _Node, step: Step) -> tuple[str, Shares]:
        if node.head:
            return "gradient", gradient.adjoint(self.op, step)
        row = _assignment(self.composite, node)
        shares = row.rule(self.op, step)
        if step.accounting and getattr(step.role, "leaks", False) and not shares.absorbed:
            shares = replace(shares, absorbed=self._dropped(step, shares))
        return row.label, shares

    def _dropped(self, step: Step, shares: Shares) -> list[Value]:
        """What a rearrangement or selection leaves to constants or in a border: the difference says it."""
        left = [self._per_sample(r) for r in step.rs if r is not None]
        left += [self.op.Neg(self._per_sample(r)) for r in shares.inputs.values()]
        for value in left:
            value.shape = ir.Shape([self._samples(self.target)])
        return left

    def _receive(self, node: _Node, step: Step, k: int, r: Value, shares: Shares) -> None:
        x = step.node.input(k)
        if r.dtype != x.dtype or (r.shape is not None and x.shape is not None and len(r.shape) != len(x.shape)):
            raise VerificationError(
                f"{step.node.where}: relevance of {x.name!r} came back as {r.dtype} {shape_text(r)}, not {x.dtype} {shape_text(x)}."
            )
        self.op.typed(r, x) if r.shape is None else None
        zero_with: Value | None = None
        if k in shares.sparse:
            rectifies = isinstance(node.role, Pointwise)
            if not rectifies:
                zero_with = x
            elif node.role.rectifier and r is step.r:  # type: ignore[union-attr]
                zero_with = step.proxy
        self.parts.setdefault(id(x), []).append(_Part(r, zero_with, node.head))

    def _total(self, value: Value, gradient_here: bool) -> _Part | None:
        """The sum of what came to a value; a derivative becomes relevance (times the value) where the head ends."""
        parts = self.parts.get(id(value))
        if not parts:
            return None
        if not gradient_here:
            parts = [self._as_relevance(value, p) for p in parts]
        r = parts[0].r
        for part in parts[1:]:
            r = self.op.typed(self.op.Add(r, part.r), value)
        same = {id(p.zero_with) for p in parts}
        zero_with = parts[0].zero_with if len(same) == 1 else None
        self.parts[id(value)] = [_Part(r, zero_with, parts[0].gradient)]
        return self.parts[id(value)][0]

    def _as_relevance(self, value: Value, part: _Part) -> _Part:
        if not part.gradient or not self.composite.first_propagation:
            return part
        return _Part(self.op.typed(self.op.Mul(value, part.r), value), value)

    # -- the end of the way

    def _finished(self, value: Value) -> Value:
        with self.op.serving(f"{value.name}"):
            total = self._total(value, gradient_here=False)
            return total.r if total is not None else zeros_like(self.op, value)

    def _result(self, value: Value) -> Value:
        r = self._finished(value)
        with self.op.serving(f"{value.name}"):
            if self.composite.result == "absolute":
                return self.op.typed(self.op.Abs(r), value)
            if self.composite.result == "times-input":
                return self.op.typed(self.op.Mul(r, value), value)
        return r

    def _per_sample(self, value: Value) -> Value:
        op = self.op
        n = rank(value)
        if n == 0:
            return op.Reshape(value, op.ints(1))
        first = self.graph_input().shape
        batch = str(first[0]) if first is not None and len(first) else "1"
        if value.shape is not None and str(value.shape[0]) == batch:
            return op.ReduceSum(value, op.ints(*range(1, n)), keepdims=0) if n > 1 else value
        count = dims(self.graph_input())[0] if rank(self.graph_input()) else 1
        size = op.ints(count) if count is not None else op.Shape(self.graph_input(), start=0, end=1)
        flat = op.Reshape(value, op.Concat(size, op.ints(-1), axis=0))
        return op.ReduceSum(flat, op.ints(1), keepdims=0)

    def graph_input(self) -> Value:
        """The first explained input: its first axis counts the samples."""
        return next(v for v in self.graph.inputs if v.name in self.wrt)

    def _account(self, score: Value) -> Value:
        with self.op.serving("absorbed"):
            parts = [self._per_sample(v) for v in self.absorbed]
            if not parts:
                return self.op.typed(self.op.Mul(score, 0.0), score)
            total = parts[0]
            for part in parts[1:]:
                total = self.op.Add(total, part)
            return total

    def _assemble(
        self, relevance: dict[str, Value], kept: dict[str, Value], reports: dict[str, Value], target: str
    ) -> RelevanceGraph:
        taken = self.op.names
        named: dict[str, dict[str, str]] = {"relevance": {}, "kept": {}, "reports": {}}
        groups = (
            ("relevance", relevance, "{}_relevance"),
            ("kept", kept, "{}_relevance"),
            ("reports", reports, "explain_{}"),
        )
        for group, values, pattern in groups:
            for key, value in values.items():
                if group == "reports" and not self.options.accounting:
                    continue
                name = pattern.format(key)
                while name in taken:
                    name += "_"
                taken.add(name)
                with self.op.serving(key):
                    self.op.output(value, name, value)
                named[group][key] = name
        self.op.finish()
        _verify(self.model)
        return RelevanceGraph(
            self.model, self.inputs, self.outputs, named["relevance"], named["kept"], target,
            self.target.name or "", self._classes(), self._by_sample(self.target),
            tuple(dims(self.target)), named["reports"], tuple(self.rows),
        )  # fmt: skip


def _verify(model: ir.Model) -> None:
    """Every operand in scope, every name once, every output typed: what saving would not notice."""
    known = {id(v) for v in model.graph.inputs} | {id(v) for v in model.graph.initializers.values()}
    names: set[str] = set()
    for node in model.graph:
        for value in node.inputs:
            if value is not None and id(value) not in known:
                raise VerificationError(
                    f"node {node.name!r} ({node.op_type}) reads {value.name!r}, which nothing before it computes."
                )
        for value in node.outputs:
            if value.name and value.name in names:
                raise VerificationError(f"two nodes compute a tensor called {value.name!r}.")
            names.add(value.name or "")
            known.add(id(value))
    for value in model.graph.outputs:
        if value.dtype is None:
            raise VerificationError(f"output {value.name!r} has no dtype.")
