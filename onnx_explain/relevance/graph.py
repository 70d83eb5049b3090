"""What a relevance graph is: what was asked for, what was written, and the checks that saving would not make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnx_explain.errors import VerificationError
from onnx_explain.methods import Composite, Seed
from onnx_explain.operators.samples import Place


@dataclass(frozen=True)
class Options:
    """What to build: the explained output and inputs, where relevance starts and ends, and what is reported with it.

    `wrt`: the explained inputs. `at`: an inner tensor at which relevance ends in their place. `logits`: look behind a final
    Softmax or Sigmoid. `keep`: tensors whose relevance becomes an output too. `slot`: which of several target inputs says
    what is explained. `chosen`: the index where that input is left out (-1: the arg-max). `fixed`: there is no such input.
    """

    output: str | None = None
    wrt: Sequence[str] | None = None
    seed: Seed = "score"
    logits: bool = True
    keep: Sequence[str] = ()
    accounting: bool = False
    at: str | None = None
    slot: int = 0
    chosen: int = -1
    fixed: bool = False


@dataclass(frozen=True)
class Request:
    """One backward half: a composite, what it is called, and its options."""

    composite: Composite
    options: Options
    method: str = "custom"


@dataclass(frozen=True)
class Row:
    """One line of the plan: a node on the way from target to input, its role, and the rule it gets (None: unsupported, with
    the `reason`).
    """

    name: str
    op_type: str
    role: str
    rule: str | None
    inputs: str
    outputs: str
    reason: str = ""


@dataclass(frozen=True)
class RelevanceGraph:
    """A model whose backward half is written in ONNX and composite nodes.

    `relevance` maps input names (or the tensor of `Options.at`) to output names, `values` that tensor to the output that
    holds it; `target_input` is the optional int64 input ("": none); `explained` names the tensor whose element is explained;
    `reports` maps ``score``, ``index``, ``absorbed`` and, of a method with a baseline, ``reference`` (the baseline's score),
    of a method that turns, ``seeded`` (the relevance that starts at its layer) to output names.
    `layer`: where the score's gradient turned into relevance, of a method that does so. `samples`: where the tensors of
    `relevance` have their samples.
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
    values: Mapping[str, str]
    layer: str | None = None
    samples: Mapping[str, Place] = field(default_factory=dict)


def verify(model: ir.Model) -> None:
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
