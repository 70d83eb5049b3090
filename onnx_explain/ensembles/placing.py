"""What a method over many points moves, what it explains, and whether that can be; and the set of baselines it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.embedded import is_float
from onnx_explain.errors import InputError, MethodError, TargetError, suggest
from onnx_explain.ir.view import Value, dims, rank, shape_text
from onnx_explain.methods.ensemble import Ensemble
from onnx_explain.operators.samples import Place
from onnx_explain.path import activity, explained_tensor, tensors, wrt_tensors
from onnx_explain.relevance import Options
from onnx_explain.relevance.apart import samples_of
from onnx_explain.rules.baseline import fits

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Places:
    """What moves and what is explained: `inputs` are the explained inputs (integers: their embeddings), `moved` the tensors
    that points are made of (the inputs, or the inner tensor of a path), `ends` those whose relevance is wanted. `fed`: the
    explained inputs that are the model's own. `samples`: where the inputs have their samples.
    """

    inputs: tuple[str, ...]
    moved: tuple[str, ...]
    ends: tuple[str, ...]
    fed: tuple[str, ...]
    samples: Mapping[str, Place]

    @property
    def inner(self) -> bool:
        """Whether an inner tensor moves in place of the inputs."""
        return self.moved != self.inputs

    @property
    def computed(self) -> bool:
        """Whether something that moves is computed, so that its other end cannot be fed."""
        return any(n not in self.fed for n in self.moved)


def places(model: ir.Model, ensemble: Ensemble, options: Options) -> Places:
    """What moves and what is explained; InputError, TargetError, MethodError where that cannot be."""
    if options.keep:
        raise MethodError(
            "keep: a method over many points has no relevance of inner tensors besides; name the tensor as `at`."
        )
    if ensemble.points != "noise" and options.seed == "score":
        raise MethodError("seed: the derivative that is integrated starts at one; leave `seed` out.")
    inputs = tuple(wrt_tensors(model, options.wrt))
    if not inputs:
        raise InputError(
            "The model has no float input, and integers carry no relevance; explain a model from its embeddings on."
        )
    ensemble.baseline.check(inputs)
    own = {v.name for v in model.graph.inputs}
    fed = tuple(n for n in inputs if n in own)
    if options.at in inputs and ensemble.points != "noise":
        inputs = (options.at,)
    known, y = tensors(model), explained_tensor(model, options.output, logits=options.logits)
    held = samples_of(model, y, inputs)
    samples = {n: held.place(known[n]) for n in inputs}
    if options.at is None or options.at in inputs:
        return Places(inputs, inputs, inputs if options.at is None else (options.at,), fed, samples)
    at = known.get(options.at)
    if at is None:
        raise TargetError(
            f"The model has no tensor {options.at!r} whose relevance could be explained.{suggest(options.at, known)}"
        )
    if not is_float(at):
        raise TargetError(f"Tensor {options.at!r} holds {at.dtype}, which carries no relevance; name a float tensor.")
    if id(at) not in activity(model, inputs)[1]:
        raise TargetError(
            f"Tensor {options.at!r} does not lie between {', '.join(map(repr, inputs))} and the explained output; "
            "`onnx-explain check` lists the tensors on that way."
        )
    return Places(inputs, inputs if ensemble.points == "noise" else (options.at,), (options.at,), fed, samples)


def baseline_rows(model: ir.Model, ensemble: Ensemble, where: Places) -> dict[str, Array]:
    """The set of baselines by input: float64 [M, …] each; InputError where it does not fit."""
    given = ensemble.baselines
    if given is None:
        raise MethodError("The method needs a set of baselines.")
    if not isinstance(given, Mapping):
        if len(where.inputs) > 1:
            listed = ", ".join(map(repr, where.inputs))
            raise InputError(f"Several inputs are explained; give the baselines as {{name: array}} with {listed}.")
        given = {where.inputs[0]: given}
    for name in given:
        if name not in {*where.inputs, *(v.name for v in model.graph.inputs)}:
            raise InputError(f"Baselines are given for {name!r}, which is no input.{suggest(name, where.inputs)}")
    named = tensors(model)
    rows = {n: _checked_rows(n, given.get(n), named[n]) for n in where.inputs}
    counts = {n: len(r) for n, r in rows.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{n!r} {c}" for n, c in counts.items())
        raise InputError(f"The sets of baselines have different lengths: {told}.")
    return rows


def _checked_rows(name: str, rows: Array | None, x: Value) -> Array:
    if rows is None:
        raise InputError(f"Input {name!r} is explained, but no baselines are given for it.")
    if rows.ndim != rank(x) or rows.ndim == 0 or not fits(rows.shape[1:], dims(x)[1:]):
        raise InputError(
            f"The baselines of input {name!r} have the shape {list(rows.shape)}, which does not fit {shape_text(x)}: axis 0 "
            "counts the baselines, the others are the input's."
        )
    return rows
