"""From a canonical model, a composite and a target to the relevance graph: the same graph and its backward half.

One walk from the target to the inputs; relevance is added up per tensor, and has that tensor's shape and dtype throughout.
Which rule a node gets is the composite's affair, what an operator is its room's; nothing here looks at an operator's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnx_explain.errors import InputError, TargetError, UnsupportedOperator, VerificationError, suggest
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value, dims, rank, shape_text
from onnx_explain.methods import Assignment, Composite, Seed
from onnx_explain.operators import find
from onnx_explain.operators.normalize import batch_scale, batch_shift
from onnx_explain.operators.roles import (
    Linear,
    NoRelevance,
    Normalization,
    Pointwise,
    Role,
    per_channel,
    zeros_like,
)
from onnx_explain.rules import gradient
from onnx_explain.rules.share import Shares, Step

ARGMAX = -1  # a target index of -1 means the arg-max, -2 that the sample is not explained
HEADS = {"Softmax", "LogSoftmax", "Sigmoid"}
_ORDER_KEEPING = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "Dropout"}


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
    fused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Part:
    """One contribution to a tensor's relevance; `zero_with`: it is zero wherever that value is. `gradient`: it is the
    score's derivative still (above the first propagation).
    """

    r: Value
    zero_with: Value | None = None
    gradient: bool = False


# ------------------------------------------------------------------------------------------- what lies on the way


def explained_tensor(model: ir.Model, output: str | None, *, logits: bool = True) -> Value:
    """The tensor whose element is explained: the named output (default: the first of floats), behind its Softmax."""
    named = {v.name or "": v for v in model.graph.outputs}
    if output is not None:
        inner = {v.name or "": v for node in model.graph for v in node.outputs}
        value = named.get(output) or inner.get(output)
        if value is None:
            raise TargetError(f"The model has no output {output!r}.{suggest(output, named)}")
    else:
        floats = [v for v in model.graph.outputs if v.dtype is not None and v.dtype.is_floating_point()]
        if not floats:
            raise TargetError("None of the model's outputs is a float tensor, so there is nothing to explain; name an inner tensor.")
        value = floats[0]
    if value.dtype is None or not value.dtype.is_floating_point():
        raise TargetError(f"Output {value.name!r} holds {value.dtype}, not floats; name a float output to explain.")
    return _behind_head(value) if logits else value


def _behind_head(value: Value) -> Value:
    """The operand of a final Softmax or Sigmoid, through reshapes that keep the order of entries."""
    node = value.producer()
    while node is not None and node.op_type in _ORDER_KEEPING:
        value_in = node.inputs[0]
        node = value_in.producer() if value_in is not None else None
    if node is None or node.op_type not in HEADS or node.inputs[0] is None:
        return value
    return node.inputs[0]


def _activity(model: ir.Model, wrt: Iterable[str]) -> tuple[dict[int, frozenset[int]], set[int]]:
    """Which operands of each node depend on an explained input: {id(node): positions}, {id(value)}."""
    live = {id(v) for v in model.graph.inputs if v.name in set(wrt)}
    active: dict[int, frozenset[int]] = {}
    version = model.graph.opset_imports.get("", 0)
    for node in model.graph:
        positions = frozenset(i for i, v in enumerate(node.inputs) if v is not None and id(v) in live)
        if not positions:
            continue
        active[id(node)] = positions
        if not _stops(node, positions, version):
            live.update(id(v) for v in node.outputs)
    return active, live


def _stops(node: ir.Node, positions: frozenset[int], version: int) -> bool:
    operation = Operation.of(node, positions, version)
    found = find(operation)
    if found is None:
        return False
    if all(v.dtype is not None and not v.dtype.is_floating_point() for v in node.outputs[:1]):
        return True
    return node.op_type in _by_nature() or (node.op_type in ("Cast", "CastLike") and isinstance(found.role(operation), NoRelevance))


def _by_nature() -> frozenset[str]:
    from onnx_explain.operators import NO_RELEVANCE

    return frozenset(NO_RELEVANCE)


def _path(model: ir.Model, targets: Iterable[Value], active: Mapping[int, frozenset[int]], live: set[int]) -> list[ir.Node]:
    """The nodes through which a target depends on an explained input, in topological order."""
    wanted = {id(v) for v in targets}
    found: list[ir.Node] = []
    for node in reversed(list(model.graph)):
        if id(node) in active and any(id(v) in wanted and id(v) in live for v in node.outputs):
            found.append(node)
            wanted.update(id(node.inputs[i]) for i in active[id(node)])
    return list(reversed(found))


def nonnegative_values(model: ir.Model) -> set[int]:
    """Values that cannot be negative, by the signs their operators guarantee."""
    known: set[int] = set()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.size <= 1 << 22 and tensor.dtype.is_floating_point() and bool((tensor.numpy() >= 0).all()):
            known.add(id(value))
    for node in model.graph:
        found = find(Operation.of(node))
        if found is None:
            continue
        floats = [v for v in node.inputs if v is not None and v.dtype is not None and v.dtype.is_floating_point()]
        inherits = found.sign == "inherits" and bool(floats) and all(id(v) in known for v in floats)
        clipped = node.op_type == "Clip" and len(node.inputs) > 1 and node.inputs[1] is not None and id(node.inputs[1]) in known
        if found.sign == "nonnegative" or inherits or clipped:
            known.update(id(v) for v in node.outputs)
    return known


# ------------------------------------------------------------------------------------------- the plan


def plan(model: ir.Model, composite: Composite, options: Options) -> tuple[list[Row], list[str]]:
    """Node by node from target to input: role and rule; and the names of nodes without a room."""
    target = explained_tensor(model, options.output, logits=options.logits)
    active, live = _activity(model, wrt_inputs(model, options.wrt))
    version = model.graph.opset_imports.get("", 0)
    nodes = _path(model, [target], active, live)
    chain, missing = [], []
    for node in nodes:
        operation = Operation.of(node, active[id(node)], version)
        try:
            chain.append(_Node(operation, _role(operation)))
        except UnsupportedOperator:
            missing.append(operation.name)
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


def wrt_inputs(model: ir.Model, wrt: Sequence[str] | None) -> list[str]:
    """The explained inputs: those named, or all of floats."""
    named = {v.name or "": v for v in model.graph.inputs}
    if wrt is None:
        return [n for n, v in named.items() if v.dtype is not None and v.dtype.is_floating_point()]
    for name in wrt:
        if name not in named:
            raise InputError(f"The model has no input {name!r}.{suggest(name, named)}")
    return list(wrt)


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
        for value in node.operation.inputs:
            if value is not None:
                above[id(value)] = above.get(id(value), False) or downstream or weighted
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
        self.model, self.graph, self.composite, self.options, self.method = model, model.graph, composite, options, method
        self.wrt = wrt_inputs(model, options.wrt)
        names = [options.output] if targets is None else list(targets)
        self.targets = [explained_tensor(model, name, logits=options.logits) for name in names]
        self.target = self.targets[0]
        self.score: Value | None = None
        self.op = Emitter(self.graph)
        self.parts: dict[int, list[_Part]] = {}
        self.absorbed: list[Value] = []
        self.rows: list[Row] = []
        self.nonnegative = nonnegative_values(model)
        values = {v.name or "": v for node in self.graph for v in node.outputs} | {v.name or "": v for v in self.graph.inputs}
        for name in options.keep:
            if name not in values:
                raise TargetError(f"The model has no tensor {name!r} whose relevance could be kept.{suggest(name, values)}")
        self.kept = {name: values[name] for name in options.keep}
        self.inputs = tuple(v.name or "" for v in self.graph.inputs)
        self.outputs = tuple(v.name or "" for v in self.graph.outputs)

    def run(self) -> RelevanceGraph:
        if not self.wrt:
            raise InputError("The model has no float input, and integers carry no relevance; explain a model from its embeddings on.")
        nodes = self._nodes()
        if not nodes and all(v.name not in self.wrt for v in self.targets):
            raise TargetError(f"Output {self.target.name!r} does not depend on {', '.join(map(repr, self.wrt))}; name another output.")
        seed, score, index, name = self._seed()
        self.score = score if self.options.seed == "one" else None
        self.parts[id(self.target)] = [_Part(seed, None, any(n.head or n.last for n in nodes) and self.composite.first_propagation)]
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
            cotangent = ir.Value(name=f"{value.name}_cotangent", shape=value.shape, type=value.type)
            self.graph.inputs.append(cotangent)
            self.parts.setdefault(id(value), []).append(_Part(cotangent))
        for node in reversed(nodes):
            self._step(node)
        inputs = {v.name or "": v for v in self.graph.inputs}
        for name in self.wrt:
            value = self._result(inputs[name])
            shared = value.is_graph_output() or value.producer() is None
            out = self.op.copy(value) if shared else value
            self.graph.outputs.append(self._rename(out, f"{name}_gradient", inputs[name]))
        self.graph.sort()
        _verify(self.model)
        return self.model

    # -- the chain of nodes

    def _nodes(self) -> list[_Node]:
        active, live = _activity(self.model, self.wrt)
        version = self.graph.opset_imports.get("", 0)
        chain: list[_Node] = []
        for node in _path(self.model, self.targets, active, live):
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
            if before is not None and readers.get(id(source), 0) == 1 and id(source) not in held and self._take_in(before, node):
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
        if node.operation.op_type == "BatchNormalization":
            if self.composite.batch_norm != "fold" or role.rescale is None or role.channel_axis != 1:
                return False
            self._fold(before, role, node)
        elif node.operation.op_type == "Add":
            constant = node.operation.input(1 - min(node.operation.active))
            if constant.shape is None or node.operation.y.shape != before.operation.y.shape:
                return False
            with self.op.serving(before.operation.name):
                before.bias = constant if before.bias is None else self.op.Add(before.bias, constant)
        else:
            return False
        before.operation = replace(before.operation, outputs=node.operation.outputs)
        before.fused.append(node.operation.name)
        return True

    def _fold(self, before: _Node, role: Linear, node: _Node) -> None:
        """W' = c·W, b' = c·b + t; exact for every linear operator with one reader (methods.md §5)."""
        op = self.op
        if role.weight is None or role.rescale is None:
            raise ValueError(f"{before.operation.where}: has no weight to fold into")
        with op.serving(before.operation.name, folded=node.operation.name):
            c, t = batch_scale(op, node.operation), per_channel(op, batch_shift(op, node.operation), node.operation.y)
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
        name = "target" if "target" not in self.inputs else "explain_target"
        default = ir.tensor(np.asarray([ARGMAX], dtype=np.int64), name=name)
        chosen = ir.Value(name=name, shape=ir.Shape(["targets"]), type=ir.TensorType(ir.DataType.INT64), const_value=default)
        self.graph.inputs.append(chosen)
        self.graph.register_initializer(chosen)
        with op.serving("target"):
            flat = op.Reshape(y, op.ints(*self._flat_shape(y)))
            count = op.Shape(flat, start=1, end=2)
            index = op.Where(op.Equal(chosen, op.ints(ARGMAX)), op.ArgMax(flat, axis=1, keepdims=0), chosen)
            every = op.Range(op.constant(0, dtype=np.int64), op.Squeeze(count, op.ints(0)), op.constant(1, dtype=np.int64))
            hit = op.Equal(op.Unsqueeze(index, op.ints(1)), op.Unsqueeze(every, op.ints(0)))
            one, zero = op.constant(1.0, like=y), op.constant(0.0, like=y)
            value = op.Where(hit, flat, zero)
            score = op.ReduceSum(value, op.ints(1), keepdims=0)
            plain = self.options.seed == "one" or self.composite.first_propagation
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
        first = next((v for v in self.graph.inputs if v.name in self.wrt and v.shape is not None and len(v.shape)), None)
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

    def _assemble(self, relevance: dict[str, Value], kept: dict[str, Value], reports: dict[str, Value], target: str) -> RelevanceGraph:
        taken = set(self.inputs) | set(self.outputs)
        named: dict[str, dict[str, str]] = {"relevance": {}, "kept": {}, "reports": {}}
        groups = (("relevance", relevance, "{}_relevance"), ("kept", kept, "{}_relevance"), ("reports", reports, "explain_{}"))
        for group, values, pattern in groups:
            for key, value in values.items():
                if group == "reports" and not self.options.accounting:
                    continue
                name = pattern.format(key)
                while name in taken:
                    name += "_"
                taken.add(name)
                shared = value.is_graph_output() or value.producer() is None or (value.name or "") in taken
                out = self.op.copy(value) if shared else value
                self.graph.outputs.append(self._rename(out, name, value))
                named[group][key] = name
        self.graph.sort()
        _verify(self.model)
        return RelevanceGraph(
            self.model, self.inputs, self.outputs, named["relevance"], named["kept"], target,
            self.target.name or "", self._classes(), self._by_sample(self.target), named["reports"], tuple(self.rows),
        )  # fmt: skip

    def _rename(self, value: Value, name: str, like: Value) -> Value:
        if any(v.name == name for node in self.graph for v in node.outputs):
            raise VerificationError(f"The model already has a tensor called {name!r}, the name of an output to be added; rename it.")
        value.name = name
        if value.shape is None:
            value.dtype, value.shape = like.dtype, like.shape
        return value


def _verify(model: ir.Model) -> None:
    """Every operand in scope, every name once, every output typed: what saving would not notice."""
    known = {id(v) for v in model.graph.inputs} | {id(v) for v in model.graph.initializers.values()}
    names: set[str] = set()
    for node in model.graph:
        for value in node.inputs:
            if value is not None and id(value) not in known:
                raise VerificationError(f"node {node.name!r} ({node.op_type}) reads {value.name!r}, which nothing before it computes.")
        for value in node.outputs:
            if value.name and value.name in names:
                raise VerificationError(f"two nodes compute a tensor called {value.name!r}.")
            names.add(value.name or "")
            known.add(id(value))
    for value in model.graph.outputs:
        if value.dtype is None:
            raise VerificationError(f"output {value.name!r} has no dtype.")


def channel_axis(model: ir.Model, name: str, shape: Sequence[int]) -> int | None:
    """The axis of an input that a heat map sums: of pictures and volumes by structure, else by size, else none.

    Structure: a weighted operator reached through elementwise steps has its channels on axis 1; a Transpose before it says
    where that axis came from.
    """
    if len(shape) < 3:
        return None
    value = next((v for v in model.graph.inputs if v.name == name), None)
    axis: int | None = 1
    for _ in range(16):
        readers = [u.node for u in value.uses()] if value is not None else []
        if any(n.op_type in ("Conv", "ConvTranspose", "MaxPool", "BatchNormalization") for n in readers):
            return axis
        turned = next((n for n in readers if n.op_type == "Transpose"), None)
        if turned is not None:
            perm = turned.attributes.get_ints("perm", list(reversed(range(len(shape)))))
            axis = list(perm)[axis] if axis is not None and axis < len(perm) else None
        step = turned or (readers[0] if len(readers) == 1 and readers[0].outputs else None)
        if step is None or step.op_type in ("Reshape", "Flatten"):
            break
        value = step.outputs[0]
    if len(shape) == 3:
        return 1
    return next((a for a in (1, len(shape) - 1) if shape[a] in (1, 3, 4)), 1)
