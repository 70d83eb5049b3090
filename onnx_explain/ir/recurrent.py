"""LSTM, GRU and RNN as primitives: one product of all time steps with W, then the steps one by one.

Inside, the batch comes first: x [N, S, I], states [N, 1, H]. The names of the nodes are those of the layer, the direction
and the step (``lstm/reverse/3/MatMul``). Gates are marked as what only weighs the signal (`Operation.weighs`). How an
unrolled step shares relevance is the rules' affair.

    LSTM   i, o, f = σ(x·W + h·R + b), g = tanh(…), c' = f ⊙ c + i ⊙ g, h' = o ⊙ tanh(c')
    GRU    z, r = σ(x·W + h·R + b), n = tanh(x·W + (r ⊙ h)·R + b), h' = (1 - z) ⊙ n + z ⊙ h
    RNN    h' = tanh(x·W + h·R + b)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_explain.ir.seen import MOST
from onnx_explain.ir.unfuse import CHECKS, RECURRENT, Results, Writer, fused, refused, unshaped
from onnx_explain.ir.view import Operation, Value

Activation = Callable[[Writer, Value], Value]
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_PER_STEP = {"LSTM": 12, "GRU": 14, "RNN": 3}
_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
# α and β of an activation, as ONNX Runtime fills them in; None where it takes none
_PARAMETERS: Mapping[str, tuple[float | None, float | None]] = {
    "affine": (0.0, 0.0),
    "elu": (1.0, None),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01, None),
    "relu": (None, None),
    "scaledtanh": (0.0, 0.0),
    "sigmoid": (None, None),
    "softplus": (None, None),
    "softsign": (None, None),
    "tanh": (None, None),
    "thresholdedrelu": (0.0, None),
}


@dataclass(frozen=True)
class _Layer:
    """What a node says of itself, resolved: sizes, directions ("forward", "reverse"), one tuple of activations each."""

    node: Operation
    steps: int
    hidden: int
    layout: int
    directions: tuple[str, ...]
    activations: tuple[tuple[Activation, ...], ...]
    clip: float

    @staticmethod
    def of(node: Operation) -> _Layer:
        direction = node.text("direction", "forward")
        directions = ("forward", "reverse") if direction == "bidirectional" else (direction,)
        if direction not in ("forward", "reverse", "bidirectional"):
            raise refused(node, f"its direction is {direction!r}", "export it as forward, reverse or bidirectional")
        layout = node.integer("layout", 0)
        steps, hidden = _size(node, node.x, layout), _size(node, node.input(2), 2)
        if steps is None:
            raise unshaped(
                node,
                f"its sequence length (axis {layout} of {node.x.name!r}) is",
                "give the input's whole shape (`--input-shape NAME:[1,16,8]`, or `input_shapes`), or export it with a fixed one",
            )
        if hidden is None or steps < 1:
            raise refused(node, "it has no hidden size or no time step", "export the model again")
        if steps * len(directions) * _PER_STEP[node.op_type] > MOST:
            raise refused(node, f"it has {steps} time steps, more than {MOST} nodes", "explain shorter sequences")
        _no_peepholes(node)
        return _Layer(
            node,
            steps,
            hidden,
            layout,
            directions,
            tuple(_activations(node, len(directions))),
            node.number("clip", 0.0),
        )

    def order(self, direction: str) -> Sequence[int]:
        """The time steps as this direction takes them."""
        return range(self.steps) if direction == "forward" else range(self.steps - 1, -1, -1)


def _size(node: Operation, value: Value, axis: int) -> int | None:
    shape = list(value.shape) if value.shape is not None else []
    if value.shape is not None and len(shape) != 3:
        raise refused(node, f"{value.name!r} has {len(shape)} axes, not 3", "export the model again")
    size = shape[axis] if shape else None
    return size if isinstance(size, int) else None


def _no_peepholes(node: Operation) -> None:
    if node.op_type != "LSTM" or not node.has(7):
        return
    tensor = node.input(7).const_value
    if tensor is None or np.any(tensor.numpy()):
        raise refused(node, "it has peepholes (P)", "export the model without them")


# ------------------------------------------------------------------------------------------- activations


def _activations(node: Operation, directions: int) -> Iterator[tuple[Activation, ...]]:
    """Per direction; α and β are taken off the lists by those activations alone that have one."""
    default = _DEFAULTS[node.op_type]
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in node.attributes.get("activations", ())]
    names = names or list(default) * directions
    if len(names) != len(default) * directions:
        raise refused(node, f"it names {len(names)} activations", f"it needs {len(default) * directions}")
    alphas, betas = ([float(v) for v in node.attributes.get(f"activation_{k}", ())] for k in ("alpha", "beta"))
    made: list[Activation] = []
    for name in names:
        key = name.lower()
        if key not in _PARAMETERS:
            raise refused(node, f"its activation is {name!r}", f"known are {', '.join(sorted(_PARAMETERS))}")
        alpha, beta = _PARAMETERS[key]
        alpha = alphas.pop(0) if alpha is not None and alphas else alpha
        beta = betas.pop(0) if beta is not None and betas else beta
        made.append(_activation(key, alpha or 0.0, beta or 0.0))
    for i in range(directions):
        yield tuple(made[i * len(default) : (i + 1) * len(default)])


def _activation(name: str, alpha: float, beta: float) -> Activation:
    """One of the eleven that ONNX lists, by its name in lower case."""
    of: dict[str, Activation] = {
        "affine": lambda op, x: op.Add(op.Mul(x, alpha), beta),
        "elu": lambda op, x: op.Elu(x, alpha=alpha),
        "hardsigmoid": lambda op, x: op.HardSigmoid(x, alpha=alpha, beta=beta),
        "leakyrelu": lambda op, x: op.LeakyRelu(x, alpha=alpha),
        "relu": lambda op, x: op.Relu(x),
        "scaledtanh": lambda op, x: op.Mul(op.Tanh(op.Mul(x, beta)), alpha),
        "sigmoid": lambda op, x: op.Sigmoid(x),
        "softplus": lambda op, x: op.Softplus(x),
        "softsign": lambda op, x: op.Softsign(x),
        "tanh": lambda op, x: op.Tanh(x),
        "thresholdedrelu": lambda op, x: op.ThresholdedRelu(x, alpha=alpha),
    }
    return of[name]


# ------------------------------------------------------------------------------------------- one layer


@dataclass(frozen=True)
class _Weights:
    """Of one direction: Rᵀ [H, gates·H], and the bias [H] of the GRU's candidate that its reset gate scales."""

    recurrent: Value
    inner_bias: Value | None = None


State = tuple[Value | None, Value | None]  # h and c, None for zeros
Step = Callable[[Writer, _Layer, Sequence[Activation], _Weights, Value, State], State]
_STEPS: dict[str, Step] = {}


@fused("LSTM", "GRU", "RNN", domain="")
def _recurrence(op: Writer, node: Operation) -> Results:
    """[Y, Y_h, Y_c]; what nothing reads is not written."""
    with op.within(node.name):
        return _written(op, _Layer.of(node))


def _written(op: Writer, layer: _Layer) -> Results:
    node = layer.node
    x = node.x if layer.layout else op.Transpose(node.x, perm=[1, 0, 2])
    lengths = _lengths(op, layer)
    sequences, states = [], []
    for d, direction in enumerate(layer.directions):
        with op.within(f"{node.name}/{direction}"):
            ys, state = _run(op, layer, d, x, lengths)
            sequences.append(op.Unsqueeze(_joined(op, ys, 1), op.ints(2)) if _read(node, 0) else None)
            states.append(state)
    last = [
        _turned(op, layer, [s[k] for s in states], 1, [1, 0, 2]) if _read(node, 1 + k) else None
        for k in range(2 if node.op_type == "LSTM" else 1)
    ]
    return [_turned(op, layer, sequences, 2, [1, 2, 0, 3]) if _read(node, 0) else None, *last]


def _read(node: Operation, index: int) -> bool:
    if index >= len(node.outputs):
        return False
    return bool(node.outputs[index].uses()) or node.outputs[index].is_graph_output()


def _joined(op: Writer, parts: Sequence[Value], axis: int) -> Value:
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=axis)


def _turned(op: Writer, layer: _Layer, parts: Sequence[Value | None], axis: int, perm: Sequence[int]) -> Value:
    """The directions side by side, in the node's own layout."""
    whole = _joined(op, [p for p in parts if p is not None], axis)
    return whole if layer.layout else op.Transpose(whole, perm=list(perm))


def _lengths(op: Writer, layer: _Layer) -> Value | None:
    """The samples' own lengths [N, 1, 1]; None where all are as long as the sequence."""
    if not layer.node.has(4):
        return None
    lengths = layer.node.input(4)
    if op.uniform(lengths) == layer.steps:
        return None
    return op.Reshape(lengths, op.ints(-1, 1, 1))


def _run(op: Writer, layer: _Layer, d: int, x: Value, lengths: Value | None) -> tuple[list[Value], State]:
    """One direction: h of every time step [N, 1, H], in the order of time, and the last state."""
    node = layer.node
    activations, step = layer.activations[d], _STEPS[node.op_type]
    projected, weights = _projected(op, layer, d, x)
    count = layer.steps
    pieces = (
        op.emit("Split", [projected], {"axis": 1, "num_outputs": count}, outputs=count) if count > 1 else (projected,)
    )
    state: State = (_initial(op, layer, 5, d), _initial(op, layer, 6, d) if node.op_type == "LSTM" else None)
    ys: dict[int, Value] = {}
    for t in layer.order(layer.directions[d]):
        with op.within(f"{node.name}/{layer.directions[d]}/{t}"):
            new = step(op, layer, activations, weights, pieces[t], state)
            if lengths is None:
                ys[t], state = _there(new[0]), new
            else:
                going, zero = _longer(op, lengths, t), op.constant(0.0, like=node.x)
                ys[t] = op.Where(going, _there(new[0]), zero)
                state = _held(op, going, new[0], state[0], zero), _held(op, going, new[1], state[1], zero)
    if lengths is not None and not _all_begin(node):
        going, zero = _longer(op, lengths, 0), op.constant(0.0, like=node.x)
        state = _held(op, going, state[0], None, zero), _held(op, going, state[1], None, zero)
    return [ys[t] for t in range(count)], state


def _longer(op: Writer, lengths: Value, t: int) -> Value:
    return op.Greater(lengths, op.constant(np.asarray(t), like=lengths))


def _all_begin(node: Operation) -> bool:
    """Whether no sequence is known to be empty: ONNX Runtime gives those states of zero, whatever they began with."""
    tensor = node.input(4).const_value
    return tensor is not None and bool((tensor.numpy() > 0).all())


def _there(value: Value | None) -> Value:
    if value is None:
        raise ValueError("a step without a state")
    return value


def _held(op: Writer, going: Value, new: Value | None, old: Value | None, zero: Value) -> Value | None:
    """The state of a sample whose sequence is over stays."""
    return None if new is None else op.Where(going, new, zero if old is None else old)


def _initial(op: Writer, layer: _Layer, index: int, d: int) -> Value | None:
    """The initial state [N, 1, H]; None where it is absent or zero."""
    if not layer.node.has(index) or op.uniform(layer.node.input(index)) == 0:
        return None
    own = op.Gather(layer.node.input(index), op.ints(d), axis=1 if layer.layout else 0)
    return own if layer.layout else op.Transpose(own, perm=[1, 0, 2])


def _projected(op: Writer, layer: _Layer, d: int, x: Value) -> tuple[Value, _Weights]:
    """x·Wᵀ + b of all time steps [N, S, gates·H], and what the steps themselves need."""
    node, wide = layer.node, _GATES[layer.node.op_type] * layer.hidden
    w, r = (op.Transpose(_of(op, node.input(k), d), perm=[1, 0]) for k in (1, 2))
    z = op.MatMul(x, w)
    if not node.has(3) or op.uniform(node.input(3)) == 0:
        return z, _Weights(r)
    own, recurrent = op.emit("Split", [_of(op, node.input(3), d), op.ints(wide, wide)], {"axis": 0}, outputs=2)
    if node.op_type != "GRU" or not node.integer("linear_before_reset", 0):
        return op.Add(z, op.Add(own, recurrent)), _Weights(r)
    gates, inner = op.emit("Split", [recurrent, op.ints(2 * layer.hidden, layer.hidden)], {"axis": 0}, outputs=2)
    zeros = op.constant(np.zeros(layer.hidden), like=node.x)
    return op.Add(z, op.Add(own, op.Concat(gates, zeros, axis=0))), _Weights(r, inner)


def _of(op: Writer, value: Value, d: int) -> Value:
    """One direction's part of a weight."""
    return op.Gather(value, op.constant(np.asarray(d, np.int64)), axis=0)


# ------------------------------------------------------------------------------------------- one step


def _cut(op: Writer, value: Value, *sizes: int) -> tuple[Value, ...]:
    return op.emit("Split", [value, op.ints(*sizes)], {"axis": -1}, outputs=len(sizes))


def _clipped(op: Writer, layer: _Layer, z: Value) -> Value:
    if not layer.clip:
        return z
    x = layer.node.x
    return op.Clip(z, op.constant(-layer.clip, like=x), op.constant(layer.clip, like=x))


def _lstm(op: Writer, layer: _Layer, act: Sequence[Activation], w: _Weights, z: Value, state: State) -> State:
    n, (h, c) = layer.hidden, state
    if h is not None:
        z = op.Add(z, op.MatMul(h, w.recurrent))
    gates, candidate = _cut(op, _clipped(op, layer, z), 3 * n, n)
    i, o, f = _cut(op, act[0](op, gates), n, n, n)
    if layer.node.integer("input_forget", 0):
        f = op.Sub(op.constant(1.0, like=layer.node.x), i)
    new = op.weighed(act[1](op, candidate), i)
    new = new if c is None else op.Add(op.weighed(c, f), new)
    return op.weighed(act[2](op, new), o), new


def _gru(op: Writer, layer: _Layer, act: Sequence[Activation], w: _Weights, z: Value, state: State) -> State:
    n, h = layer.hidden, state[0]
    gates, candidate = _cut(op, z, 2 * n, n)
    if h is not None:
        for_gates, for_candidate = _cut(op, w.recurrent, 2 * n, n)
        gates = op.Add(gates, op.MatMul(h, for_gates))
    update, reset = _cut(op, act[0](op, _clipped(op, layer, gates)), n, n)
    inner: Value | None = None
    if layer.node.integer("linear_before_reset", 0):
        inner = None if h is None else op.MatMul(h, for_candidate)
        if w.inner_bias is not None:
            inner = w.inner_bias if inner is None else op.Add(inner, w.inner_bias)
        inner = None if inner is None else op.weighed(inner, reset)
    elif h is not None:
        inner = op.MatMul(op.weighed(h, reset), for_candidate)
    candidate = candidate if inner is None else op.Add(candidate, inner)
    new = act[1](op, _clipped(op, layer, candidate))
    new = op.weighed(new, op.Sub(op.constant(1.0, like=layer.node.x), update))
    return (new if h is None else op.Add(new, op.weighed(h, update))), None


def _rnn(op: Writer, layer: _Layer, act: Sequence[Activation], w: _Weights, z: Value, state: State) -> State:
    h = state[0]
    z = z if h is None else op.Add(z, op.MatMul(h, w.recurrent))
    return act[0](op, _clipped(op, layer, z)), None


_STEPS.update({"LSTM": _lstm, "GRU": _gru, "RNN": _rnn})
CHECKS.update({("", kind): _Layer.of for kind in RECURRENT})
