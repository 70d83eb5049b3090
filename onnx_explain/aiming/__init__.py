"""Targets that are computed of outputs, as tensors of the model: whatever explains a tensor then explains them.

An expression becomes ordinary nodes behind the canonical model's outputs, which every rule passes as it passes the model's
own. How it is written is `target`'s affair, how it becomes nodes `compiling`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_explain.aiming.arrays import Sizes
from onnx_explain.aiming.compiling import Compiler, Sources
from onnx_explain.embedded import is_float
from onnx_explain.ir.canonicalize import BATCH
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Value, dims
from onnx_explain.path import EXPRESSION, behind_head, tensors, wrt_tensors
from onnx_explain.relevance.apart import batch_is_open, keeps_samples
from onnx_explain.target import Parsed
from onnx_explain.target.grammar import Expression, parse_expression
from onnx_explain.target.presets import Head, expand

__all__ = ["Aimed", "aim", "is_computed"]


@dataclass(frozen=True)
class Aimed:
    """A model with a computed target: `tensor` holds it, one number per sample.

    text: the expression (what a preset stands for). place: as an element of `tensor` says which samples are explained.
    reads: the tensors that it was computed of, behind a final Softmax or Sigmoid. sure: an output of truth values, one per
    sample, False where nothing fulfilled a condition or a divisor was 0; None where that cannot be.
    """

    model: ir.Model
    tensor: str
    text: str
    place: tuple[int | None, ...]
    reads: tuple[str, ...]
    sure: str | None = None

    @property
    def parsed(self) -> Parsed:
        """The target as an element of `tensor`."""
        return Parsed(self.text, output=self.tensor, element=self.place)


def is_computed(model: ir.Model, target: Parsed, wrt: Sequence[str] | None = None) -> bool:
    """Whether a target has to be computed.

    What could be an element too is one where the model has that output, unless it names a whole axis, or the output keeps
    no samples apart and only the run knows how many entries it has.
    """
    found = tensors(model).get(target.output or "")
    if not target.computed or found is None or None in (target.element or ())[1:]:
        return target.computed
    unknown = found.shape is not None and None in _sizes(model, found)
    return unknown and not keeps_samples(model, found, wrt_tensors(model, wrt))


def aim(
    model: ir.Model, target: Parsed, *, wrt: Sequence[str] | None = None, logits: bool = True, sure: bool = True
) -> Aimed:
    """A clone of a canonical model with the target written behind it.

    logits: look behind a final Softmax or Sigmoid. sure: report whether there was anything to explain as a further output.
    Raises TargetError where the expression does not fit the model.
    """
    work = model.clone()
    op, named = Emitter(work.graph), tensors(work)
    first, names = _first(work, wrt), wrt_tensors(work, wrt)
    text, expression = _expression(work, target, names)
    outputs = tuple(v.name or "" for v in work.graph.outputs)
    samples = BATCH if batch_is_open(work) else (dims(first)[0] if first is not None and first.shape else None) or BATCH
    sources = Sources(named, outputs, lambda v: keeps_samples(work, v, names), lambda v: _sizes(work, v), logits)
    with op.serving("target", **{EXPRESSION: text}):
        compiler = Compiler(op, sources, samples, text, own=target.own)
        number, certain = compiler.result(expression)
        value = op.typed(op.copy(number.value), number.value)
        value.name = _free(text, {*op.names, *outputs})
        told = None
        if sure and certain is not None:
            told = _free("explain_sure", op.names)
            op.output(certain.value, told, certain.value)
    op.finish()
    place = (compiler.sample,) if number.sampled else ()
    return Aimed(work, value.name or "", text, place, tuple(compiler.reads), told)


def _first(model: ir.Model, wrt: Sequence[str] | None) -> Value | None:
    """The explained input whose axis 0 counts the samples."""
    named = tensors(model)
    found = (named[n] for n in wrt_tensors(model, wrt))
    return next((v for v in found if v.shape is not None and len(v.shape)), None)


def _sizes(model: ir.Model, value: Value) -> Sizes:
    """Every axis: a number, text where it is as long as the open batch (or some times that), None where only the run knows."""
    is_open = batch_is_open(model)
    named = [str(d) if is_open and str(d).startswith(BATCH) else None for d in value.shape or ()]
    return tuple(name if size is None else size for name, size in zip(named, dims(value)))


def _expression(model: ir.Model, target: Parsed, wrt: Sequence[str]) -> tuple[str, Expression]:
    if target.preset is not None:
        named = tensors(model)
        known = [v for v in model.graph.outputs if v.shape is not None and v.dtype is not None]
        if target.preset.output in named and target.preset.output not in {v.name for v in known}:
            known.append(named[target.preset.output])
        text = expand(target.preset, [_head(model, v, wrt) for v in known])
        return text, parse_expression(text)
    if target.expression is None:
        raise ValueError("a target that is not computed")
    return " ".join(target.text.split()), target.expression


def _head(model: ir.Model, value: Value, wrt: Sequence[str]) -> Head:
    sizes, apart = dims(value), keeps_samples(model, value, wrt)
    probable = is_float(value) and behind_head(value) is not value
    return Head(value.name or "", tuple(sizes[1:] if apart else sizes), is_float(value), not apart, probable)


def _free(wished: str, taken: set[str]) -> str:
    name, i = wished, 0
    while name in taken:
        i += 1
        name = f"{wished} ({i})"
    return name
