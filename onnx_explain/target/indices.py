"""Which output element is explained: parsing what a user writes, and turning it into one index per sample.

What an expression computes is `aiming`'s affair, which needs the model; how it is written is `grammar`'s.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import TargetError
from onnx_explain.target.grammar import LONGEST, Expression, parse_expression
from onnx_explain.target.presets import Preset, parse_preset

ARGMAX, NOT_EXPLAINED = -1, -2
_ELEMENT = re.compile(r"\s*(?P<name>.+?)\s*\[\s*(?P<index>[^\[\]]*)\]\s*", re.DOTALL)
_AXIS = re.compile(r"\s*(:|[+-]?\d{1,18})\s*")


@dataclass(frozen=True)
class Parsed:
    """A target as written: an index per sample or one for all (`index`), an element of a named output (`element`), or what
    is computed of outputs: an `expression`, or a `preset` that stands for one.

    `own`: every sample is its own sample 0.
    An element's text may be an expression's too (``a[0,3]-b[0,5]``); the model says whether it has such an output.
    """

    text: str
    output: str | None = None
    index: int | tuple[int, ...] | None = None
    element: tuple[int | None, ...] | None = None
    expression: Expression | None = None
    preset: Preset | None = None
    own: bool = False

    @property
    def computed(self) -> bool:
        """Whether it may have to be computed of outputs, rather than picked from one."""
        return self.expression is not None or self.preset is not None

    def indices(
        self, count: int, classes: int | None, shape: tuple[int | None, ...], tensor: str, *, by_sample: bool = True
    ) -> npt.NDArray[np.int64]:
        """int64 [count], or [1] where not `by_sample`: the flattened index within each sample, -1 for arg-max, -2 for not explained.

        `shape` is the explained tensor's; `by_sample`: its axis 0 counts the samples, else all of it is one sample.
        Raises TargetError where the index is out of range or has the wrong rank.
        """
        if self.element is not None:
            return self._element(count, shape, tensor, by_sample)
        if classes is None and not by_sample:
            classes = math.prod(count if d is None else d for d in shape)
        count = count if by_sample else 1
        if self.index is None:
            return np.full(count, ARGMAX, dtype=np.int64)
        listed = (self.index,) * count if isinstance(self.index, int) else self.index
        if len(listed) != count:
            raise TargetError(f"{len(listed)} targets were given for {count} samples; give one, or one per sample.")
        for value in listed:
            if value < 0 or (classes is not None and value >= classes):
                raise TargetError(
                    f"Target {value} is out of range: {tensor!r} has {classes} elements per sample, 0 to {(classes or 1) - 1}."
                )
        return np.asarray(listed, dtype=np.int64)

    def _element(
        self, count: int, shape: tuple[int | None, ...], tensor: str, by_sample: bool
    ) -> npt.NDArray[np.int64]:
        element = self.element or ()
        if len(element) != len(shape):
            told = ", ".join("N" if d is None else str(d) for d in shape)
            raise TargetError(
                f"Target {self.text!r} has {len(element)} indices, but {tensor!r} has the shape [{told}]."
            )
        sizes = [count if d is None else d for d in shape]  # what is open is as long as there are samples
        flat = 0
        for axis, (place, size) in enumerate(zip(element, sizes)):
            apart = axis == 0 and by_sample
            if place is None and not apart:
                raise TargetError(
                    f"Target {self.text!r}: ':' is for the sample axis alone; name one index for axis {axis}."
                )
            if place is None:
                continue
            if size is not None and not -size <= place < size:
                raise TargetError(
                    f"Target {self.text!r}: index {place} is out of range for axis {axis} of {tensor!r}, which has {size} entries."
                )
            if not apart:
                flat = flat * int(size or 1) + place % int(size or 1)
        return self._explained(count, shape, flat, by_sample)

    def _explained(
        self, count: int, shape: tuple[int | None, ...], flat: int, by_sample: bool
    ) -> npt.NDArray[np.int64]:
        element = self.element or ()
        explained = np.full(count if by_sample else 1, NOT_EXPLAINED, dtype=np.int64)
        sample = element[0] if element and by_sample else 0
        if self.own and by_sample:
            if sample not in (0, None):
                raise TargetError(
                    f"Target {self.text!r}: every input is a sample of its own, so write 0 (or ':') for the sample."
                )
            sample = None
        if sample is None or (by_sample and shape and shape[0] == 1 and count != 1):
            explained[:] = flat  # a model with batch 1 runs sample by sample, each its own element 0
        else:
            explained[sample] = flat
        return explained


def parse(target: Any) -> Parsed:
    """What a user gave as a target; TargetError with the accepted forms where it is none of them."""
    if target is None:
        return Parsed("arg-max")
    if isinstance(target, Parsed):
        return target
    if isinstance(target, str):
        return _parse_text(target)
    if isinstance(target, (bool, np.bool_)):
        raise TargetError(f"Target {target!r} is not an index.")
    if isinstance(target, (int, np.integer)):
        return Parsed(str(target), index=int(target))
    if isinstance(target, (list, tuple)) and any(isinstance(t, (bool, np.bool_)) for t in target):
        raise TargetError("A target is an index, not true or false.")
    try:
        array = np.asarray(target)
    except ValueError as error:
        raise TargetError("The target is neither an index nor a list of indices.") from error
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise TargetError(
            f"A target is an index, one index per sample, or text such as 'output[0,17]', not {_told(target)}."
        )
    return Parsed(str(target), index=int(array) if array.ndim == 0 else tuple(int(v) for v in array))


def _told(target: Any) -> str:
    text = repr(target)
    return text if len(text) <= 60 and " at 0x" not in text else f"a {type(target).__name__}"


def _parse_text(text: str) -> Parsed:
    stripped = text.strip()
    if re.fullmatch(r"\d{1,18}", stripped):
        return Parsed(text, index=int(stripped))
    preset = parse_preset(text)
    if preset is not None:
        return Parsed(text, preset=preset)
    found = _ELEMENT.fullmatch(text) if len(text) <= LONGEST else None
    axes = [_AXIS.fullmatch(part) for part in found["index"].split(",")] if found else []
    if found is None or not all(axes):
        return Parsed(text, expression=parse_expression(text))
    places = tuple(None if a is None or a[1] == ":" else int(a[1]) for a in axes)
    try:
        expression = parse_expression(text)
    except TargetError:
        expression = None  # an output's name may hold anything; then this can be an element alone
    return Parsed(text, output=found["name"], element=places, expression=expression)
