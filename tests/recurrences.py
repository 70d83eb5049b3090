"""LSTM, GRU and RNN as the specification writes them: sample by sample, step by step, gate by gate.

Beside them the relevance rule of Arras et al. (Explaining recurrent neural network predictions in sentiment analysis, WASSA
2017; Arras et al., Explaining and interpreting LSTMs, 2019, §3.1.1): in a product of a gate and a signal the signal takes
all, in a sum each operand by its contribution. Nothing here knows the library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]


def activation(name: str, alpha: float, beta: float) -> Function:
    """One of the eleven that the specification lists."""
    return {
        "Relu": lambda x: np.maximum(x, 0),
        "Tanh": np.tanh,
        "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "Affine": lambda x: alpha * x + beta,
        "LeakyRelu": lambda x: np.where(x >= 0, x, alpha * x),
        "ThresholdedRelu": lambda x: np.where(x > alpha, x, 0),
        "ScaledTanh": lambda x: alpha * np.tanh(beta * x),
        "HardSigmoid": lambda x: np.clip(alpha * x + beta, 0, 1),
        "Elu": lambda x: np.where(x >= 0, x, alpha * (np.exp(x) - 1)),
        "Softsign": lambda x: x / (1 + np.abs(x)),
        "Softplus": lambda x: np.log1p(np.exp(x)),
    }[name]


ALPHA = {"LeakyRelu": 0.01, "HardSigmoid": 0.2, "Elu": 1.0, "Affine": 0.0, "ThresholdedRelu": 0.0, "ScaledTanh": 0.0}
BETA = {"HardSigmoid": 0.5, "Affine": 0.0, "ScaledTanh": 0.0}


def activations(names: list[str], alphas: list[float], betas: list[float]) -> list[Function]:
    """In order; α and β are taken from the lists by those that have one."""
    alphas, betas, found = list(alphas), list(betas), []
    for name in names:
        alpha = alphas.pop(0) if name in ALPHA and alphas else ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in BETA and betas else BETA.get(name, 0.0)
        found.append(activation(name, alpha, beta))
    return found


class _Recurrence(OpRun):
    """onnx's has one direction, no lengths and no activations but the default ones."""

    op_domain = ""
    defaults: tuple[str, ...] = ()
    states = 1

    def cell(self, x: Array, state: list[Array], w: Array, r: Array, b: Array, f: list[Function], said: Mapping[str, Any]) -> list[Array]:  # fmt: skip
        """The next state of one sample."""
        raise NotImplementedError

    def _run(self, x: Array, w: Array, r: Array, b: Array | None = None, lengths: Array | None = None,
             *more: Array | None, **said: Any) -> tuple[Array, ...]:  # fmt: skip
        turned = bool(said.get("layout"))
        x = np.swapaxes(x, 0, 1) if turned else x
        (steps, samples), (directions, hidden) = x.shape[:2], (w.shape[0], r.shape[2])
        b = np.zeros((directions, 2 * w.shape[1]), x.dtype) if b is None else b
        lengths = np.full(samples, steps) if lengths is None else lengths
        start = [v if v is None or not turned else np.swapaxes(v, 0, 1) for v in more]
        start += [None] * (self.states - len(start))
        names = said.get("activations") or list(self.defaults) * directions
        names = [n.decode() if isinstance(n, bytes) else n for n in names]
        made = activations(names, said.get("activation_alpha") or [], said.get("activation_beta") or [])
        y = np.zeros((steps, directions, samples, hidden), x.dtype)
        last = [np.zeros((directions, samples, hidden), x.dtype) for _ in range(self.states)]
        for d in range(directions):
            f = made[d * len(self.defaults) : (d + 1) * len(self.defaults)]
            backwards = said.get("direction") == "reverse" or d == 1
            for n in range(samples):
                state = [np.zeros(hidden, x.dtype) if s is None else s[d, n] for s in start[: self.states]]
                times = range(int(lengths[n]))
                for t in reversed(times) if backwards else times:
                    state = self.cell(x[t, n], state, w[d], r[d], b[d], f, said)
                    y[t, d, n] = state[0]
                for k in range(self.states):
                    last[k][d, n] = state[k] if lengths[n] else 0
        results = (y.transpose(2, 0, 1, 3), *(v.swapaxes(0, 1) for v in last)) if turned else (y, *last)
        return tuple(results[: len(self.onnx_node.output)])


def _clipped(z: Array, said: Mapping[str, Any]) -> Array:
    return np.clip(z, -said["clip"], said["clip"]) if said.get("clip") else z


class LSTM(_Recurrence):
    """Gates i, o, f, c."""

    defaults, states = ("Sigmoid", "Tanh", "Tanh"), 2

    def cell(self, x: Array, state: list[Array], w: Array, r: Array, b: Array, f: list[Function], said: Mapping[str, Any]) -> list[Array]:  # fmt: skip
        (h, c), (wb, rb) = state, np.split(b, 2)
        i, o, forget, g = (_clipped(z, said) for z in np.split(w @ x + wb + r @ h + rb, 4))
        i, o, forget, g = f[0](i), f[0](o), f[0](forget), f[1](g)
        forget = 1 - i if said.get("input_forget") else forget
        c = forget * c + i * g
        return [o * f[2](c), c]


class GRU(_Recurrence):
    """Gates z, r, h."""

    defaults = ("Sigmoid", "Tanh")

    def cell(self, x: Array, state: list[Array], w: Array, r: Array, b: Array, f: list[Function], said: Mapping[str, Any]) -> list[Array]:  # fmt: skip
        h, (wz, wr, wh), (rz, rr, rh) = state[0], np.split(w, 3), np.split(r, 3)
        bz, br, bh, cz, cr, ch = np.split(b, 6)
        z = f[0](_clipped(wz @ x + rz @ h + bz + cz, said))
        reset = f[0](_clipped(wr @ x + rr @ h + br + cr, said))
        inner = reset * (rh @ h + ch) if said.get("linear_before_reset") else rh @ (reset * h) + ch
        n = f[1](_clipped(wh @ x + bh + inner, said))
        return [(1 - z) * n + z * h]


class RNN(_Recurrence):
    """One sum, one activation."""

    defaults = ("Tanh",)

    def cell(self, x: Array, state: list[Array], w: Array, r: Array, b: Array, f: list[Function], said: Mapping[str, Any]) -> list[Array]:  # fmt: skip
        wb, rb = np.split(b, 2)
        return [f[0](_clipped(w @ x + wb + r @ state[0] + rb, said))]


RECURRENCES: tuple[type[OpRun], ...] = (GRU, LSTM, RNN)


# --------------------------------------------------------------------------- Arras' rule


def shared(parts: list[Array], r: Array) -> list[Array]:
    """R_k = part_k·R/Σ parts, entry by entry; 0/0 = 0."""
    z = np.sum(parts, axis=0)
    s = np.divide(r, z, out=np.zeros_like(r), where=z != 0)
    return [p * s for p in parts]


def dense_shares(x: Array, w: Array, r: Array, z: Array) -> Array:
    """R_i = Σ_j x_i w_ji R_j / z_j, z the whole sum that x·w is a part of."""
    s = np.divide(r, z, out=np.zeros_like(r), where=z != 0)
    return x * (w.T @ s)


def lstm_relevance(x: Array, w: Array, r: Array, b: Array, relevance: Array) -> tuple[Array, Array]:
    """x [S, I], w [4H, I], r [4H, H], b [8H], relevance [H] of the last h: that of x [S, I], and what biases took.

    c = f ⊙ c' + i ⊙ g, h = o ⊙ tanh(c): R_h goes to c whole, R_c to f ⊙ c' and i ⊙ g by their values, of those to c' and g
    whole, R_g to x, h' and the bias by their contributions.
    """
    sigmoid = activation("Sigmoid", 0, 0)
    hidden = r.shape[1]
    h, c, trace = np.zeros(hidden), np.zeros(hidden), []
    for step in x:
        z = w @ step + r @ h + b[: 4 * hidden] + b[4 * hidden :]
        i, _, f = (sigmoid(v) for v in np.split(z, 4)[:3])
        g, o = np.tanh(z[3 * hidden :]), sigmoid(z[hidden : 2 * hidden])
        trace.append((step, h, z[3 * hidden :], f * c, i * g))
        c = f * c + i * g
        h = o * np.tanh(c)
    out, absorbed = np.zeros_like(x), np.zeros(())
    r_h, r_c = relevance, np.zeros(hidden)
    candidate = slice(3 * hidden, None)
    bias = b[: 4 * hidden][candidate] + b[4 * hidden :][candidate]
    for t in reversed(range(len(x))):
        step, before, z, kept, added = trace[t]
        r_c, r_g = shared([kept, added], r_c + r_h)
        out[t] = dense_shares(step, w[candidate], r_g, z)
        r_h = dense_shares(before, r[candidate], r_g, z)
        absorbed = absorbed + (bias * np.divide(r_g, z, out=np.zeros_like(z), where=z != 0)).sum()
    return out, absorbed
