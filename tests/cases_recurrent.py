"""Cases of recurrences: LSTM, GRU and RNN in every direction, with lengths, initial states, clipping and activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from case import Array, Case, Values, cases, signed


def _recurrence(
    name: str, kind: str, attributes: str = "", *, operands: str = "b", outputs: str = "y", directions: int = 1,
    **options: Any,
) -> Iterator[Case]:  # fmt: skip
    """Three steps of two features, two samples, three hidden units.

    `operands`: b(ias), l(engths), h, c (initial states, active). `outputs`: of y, h, c (the last states).
    """
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind] * 3
    constants: dict[str, Values | Array] = {
        "w": Values((directions, gates, 2), "unit"), "r": Values((directions, gates, 3), "unit")
    }  # fmt: skip
    inputs = {"x": options.pop("x", signed(3, 2, 2))}
    if "b" in operands:
        constants["b"] = Values((directions, 2 * gates), "unit")
    if "l" in operands:
        constants["l"] = np.array([3, 2], np.int32)
    inputs |= {k: signed(directions, 2, 3) for k in "hc" if k in operands}
    given = ["x", "w", "r", *(k if k in operands else '""' for k in "blhc")]
    while given[-1] == '""':
        given.pop()
    named = [{"y": "y", "h": "yh", "c": "yc"}[k] if k in outputs else '""' for k in "yhc"]
    while named[-1] == '""':
        named.pop()
    said = ",".join(["hidden_size=3", *([attributes] if attributes else [])])
    text = f"{', '.join(named)} = {kind}<{said}>({', '.join(given)})"
    yield from cases(
        name, text, inputs, constants, role="recurrence", rtol=3e-5, reason="a chain of several float32 sums",
        outputs=tuple(n for n in named if n != '""'), **options,
    )  # fmt: skip


def recurrences() -> Iterator[Case]:
    """LSTM, GRU and RNN: directions, lengths, initial states, clipping, activations, outputs, pairwise."""
    both, back = 'direction="bidirectional"', 'direction="reverse"'
    yield from _recurrence("lstm", "LSTM", opset=(7, 14, 22))
    yield from _recurrence("lstm-reverse-lengths", "LSTM", back, operands="blhc", outputs="yhc")
    yield from _recurrence("lstm-both", "LSTM", both, operands="bhc", outputs="yhc", directions=2)
    yield from _recurrence("lstm-both-lengths", "LSTM", both, operands="l", outputs="hc", directions=2)
    yield from _recurrence("lstm-clip", "LSTM", f"{back},clip=0.375", operands="bc", outputs="h")
    yield from _recurrence("lstm-input-forget", "LSTM", "input_forget=1", operands="bh", outputs="yc")
    yield from _recurrence(
        "lstm-hard", "LSTM", 'activations=["HardSigmoid","Softsign","Elu"],activation_alpha=[0.3,0.7],activation_beta=[0.4]',
    )  # fmt: skip
    yield from _recurrence(
        "lstm-both-activations", "LSTM", both + ',activations=["Sigmoid","ScaledTanh","Affine","Tanh","LeakyRelu","Softplus"],'
        "activation_alpha=[1.5,0.8,0.3],activation_beta=[0.7,0.1]", directions=2, outputs="h",
    )  # fmt: skip
    text = "t = Transpose<perm=[1,0,2]>(x); s = LSTM<hidden_size=3>(t, w, r); y = Transpose<perm=[2,0,1,3]>(s)"
    weights = {"w": signed(1, 12, 2), "r": Values((1, 12, 3), "unit")}
    options: dict[str, Any] = {"role": "recurrence", "rtol": 3e-5, "reason": "a chain of several float32 sums"}
    yield from cases("lstm-dynamic-batch", text, {"x": signed(3, 4, 2, declared=("N", 4, 2))}, weights, **options)
    yield from _recurrence("gru", "GRU", opset=(7, 17))
    yield from _recurrence("gru-both-lengths", "GRU", both, operands="blh", outputs="yh", directions=2)
    yield from _recurrence("gru-reset-after", "GRU", f"{back},linear_before_reset=1", operands="bh", outputs="y")
    yield from _recurrence(
        "gru-both-reset-after",
        "GRU",
        f"{both},linear_before_reset=1,clip=0.5",
        operands="bl",
        outputs="h",
        directions=2,
    )
    yield from _recurrence("gru-reset-after-no-bias", "GRU", "linear_before_reset=1", operands="")
    yield from _recurrence("gru-activations", "GRU", 'activations=["Softsign","Relu"]', operands="h")
    yield from _recurrence("rnn", "RNN", opset=(7, 22))
    yield from _recurrence("rnn-both-lengths", "RNN", f"{both},clip=0.625", operands="blh", outputs="yh", directions=2)
    thresholded = f'{back},activations=["ThresholdedRelu"],activation_alpha=[0.1]'
    yield from _recurrence("rnn-reverse-thresholded", "RNN", thresholded, operands="b", outputs="h")
