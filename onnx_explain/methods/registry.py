"""What a method is made of: selectors, composites, turns, and the register of methods by name.

The named methods stand beside this module, a family each; the formulas live in `rules/`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from onnx_explain.errors import MethodError, suggest
from onnx_explain.ir.emit import Emitter
from onnx_explain.ir.view import Operation, Value
from onnx_explain.operators.roles import Role
from onnx_explain.rules.baseline import Baseline
from onnx_explain.rules.share import Rule

Seed = Literal["score", "one"]
BatchNorm = Literal["fold", "fold-or-pass", "epsilon", "pass"]
Family = Literal["gradient", "relevance", "attention", "activation", "path", "perturbation"]
FAMILIES: dict[Family, str] = {
    "gradient": "Gradient family",
    "relevance": "Relevance methods",
    "attention": "Attention maps",
    "activation": "Class activation maps",
    "path": "Path and sampling methods",
    "perturbation": "Perturbation methods",
}
Result = Literal["as-is", "absolute", "times-input", "times-difference"]


@dataclass(frozen=True)
class Turned:
    """What a turn is handed.

    `activation` [N, C, *spatial]: the layer's value; `target`: the gradient of the explained score by it; `hostile`: the
    gradients of the hostile classes' scores, one each, of the same shape; `others[i]` [N, 1, …]: 1 where hostile class i is
    not the sample's target itself, else 0.
    """

    activation: Value
    target: Value
    hostile: tuple[Value, ...] = ()
    others: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Selector:
    """Which nodes a rule serves; every field given must hold.

    `role`: a role class or several; `kind`: of linear operators; `operators`: ONNX operator types; `first`, `last`: a
    weighted operator with none before it on its way from the input, or none behind it on its way to the target;
    `name`: a regular expression for the whole node name.
    """

    role: type[Any] | tuple[type[Any], ...] | None = None
    kind: str | tuple[str, ...] | None = None
    operators: tuple[str, ...] | None = None
    first: bool | None = None
    last: bool | None = None
    name: str | None = None

    def matches(self, node: Operation, role: Role, *, first: bool, last: bool) -> bool:
        """Whether the node is meant."""
        kinds = (self.kind,) if isinstance(self.kind, str) else self.kind
        return (
            (self.role is None or isinstance(role, self.role))
            and (kinds is None or getattr(role, "kind", None) in kinds)
            and (self.operators is None or node.op_type in self.operators)
            and (self.first is None or self.first == first)
            and (self.last is None or self.last == last)
            and (self.name is None or re.fullmatch(self.name, node.name) is not None)
        )


@dataclass(frozen=True)
class Assignment:
    """One row of a composite: the nodes a selector means get a rule; `label` is its name in tables."""

    selector: Selector
    rule: Rule
    label: str


@dataclass(frozen=True)
class Turn:
    """Where the score's gradient ends and relevance begins: at an inner tensor, not at the score.

    layer: its name, or None for the last spatial activations, found by structure; of a detector one per grid, whose maps
    add up. `combine(op, turned)` makes the layer's relevance of its value and of the scores' gradients. hostile: classes
    whose gradients are wanted besides the target's: indices, or how many of the highest other scores (0: none). spread:
    makes the map of the input from the layer's relevance; where it is None, relevance goes on downwards by the composite's
    rules.
    """

    combine: Callable[[Emitter, Turned], Value]
    layer: str | None = None
    hostile: tuple[int, ...] | int = 0
    spread: Callable[[Emitter, Value, Value], Value] | None = None


@dataclass(frozen=True)
class Rollout:
    """Relevance by the attention maps alone, from the last layer down to the first.

    `step(op, row, attention, gradient)`: the tokens' relevance [N, 1, T] below a layer, from that above it, the layer's map
    [N, heads, T, T] and, where `gradients` asks for it, the score's gradient by the map (else None).
    """

    step: Callable[[Emitter, Value, Value, Value | None], Value]
    gradients: bool = False


@dataclass(frozen=True)
class Composite:
    """A method as data: the first assignment that matches a node is its rule.

    `batch_norm`: fold BatchNormalization into the linear operator before it where that is exact, treat it by its own
    ε-rule, or see through it. `first_propagation`: relevance starts at the last weighted operator, which is handed the
    score's gradient. `result`: what is made of what arrives at the input. `positive_seed`: a negative score starts nothing.
    `turn`: relevance starts at an inner tensor. `rollout`: attention maps say all of it. `baseline`: the forward pass runs
    for this reference input too, and rules may ask for any value's reference.
    """

    assignments: tuple[Assignment, ...]
    batch_norm: BatchNorm = "fold"
    first_propagation: bool = False
    result: Result = "as-is"
    positive_seed: bool = False
    turn: Turn | None = None
    rollout: Rollout | None = None
    baseline: Baseline | None = None

    def rule(self, node: Operation, role: Role, *, first: bool, last: bool) -> Assignment:
        """The row for a node; MethodError where none matches."""
        for row in self.assignments:
            if row.selector.matches(node, role, first=first, last=last):
                return row
        raise MethodError(
            f"{node.where}: the composite has no rule for its role {type(role).__name__}; add an assignment."
        )


class Procedure(Protocol):
    """A method that is more than one backward pass: over several points, or of forward passes alone."""

    kind: str


@dataclass(frozen=True)
class Method:
    """A method by name: what it means, where it comes from, its options with their defaults, and how to build it.

    `seed`: where relevance starts by default: the explained value itself, or one. `conserves`: whether relevance is
    meant to sum to the seed (or to the change of the score). `choices`: the values that an option may take. `signed`: whether
    it says which way an element works, or how much alone.
    """

    name: str
    summary: str
    paper: str
    build: Callable[..., Composite | Procedure]
    seed: Seed = "score"
    family: Family = "relevance"
    conserves: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    signed: bool = True

    def procedure(self, options: Mapping[str, Any]) -> Composite | Procedure:
        """What the method does under the given options; MethodError names an option it does not have."""
        for name, value in options.items():
            if name not in self.options:
                raise MethodError(f"Method {self.name!r} has no option {name!r}.{suggest(name, self.options)}")
            self._check(name, value)
        low, high = options.get("low"), options.get("high")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
            raise MethodError(f"Method {self.name!r}: low must not be above high, but {low} > {high}.")
        return self.build(**options)

    def _check(self, name: str, value: Any) -> None:
        default, where = self.options[name], f"Method {self.name!r}: {name}"
        allowed = self.choices.get(name)
        if allowed is not None:
            if not any(value is c or (isinstance(value, str) and value == c) for c in allowed):
                raise MethodError(f"{where} must be one of {', '.join(map(repr, allowed))}, not {value!r}.")
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise MethodError(f"{where} must be true or false, not {value!r}.")
        elif isinstance(default, int):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < (default > 0):
                raise MethodError(f"{where} must be a whole number of at least {int(default > 0)}, not {value!r}.")
        elif isinstance(default, float):
            self._check_number(name, value, where)

    def _check_number(self, name: str, value: Any, where: str) -> None:
        listed = name in ("low", "high") and isinstance(value, (list, tuple))
        numbers = value if listed else [value]
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in numbers):
            raise MethodError(f"{where} must be a finite number, not {value!r}.")
        if name in ("epsilon", "gamma", "beta") and value < 0:
            raise MethodError(f"{where} must not be negative, not {value!r}.")


Builder = TypeVar("Builder", bound=Callable[..., Any])
METHODS: dict[str, Method] = {}
ALIASES = {
    "epsilon_plus": "lrp-epsilon-plus",
    "epsilon_plus_flat": "lrp-epsilon-plus-flat",
    "epsilon_alpha2_beta1": "lrp-epsilon-alpha2-beta1",
    "epsilon_alpha2_beta1_flat": "lrp-epsilon-alpha2-beta1-flat",
    "epsilon_gamma_box": "lrp-epsilon-gamma-box",
    "excitation_backprop": "excitation-backprop",
    "guided_backprop": "guided-backprop",
    "deep_taylor": "deep-taylor",
    "lrp-alpha-beta": "lrp-alpha2-beta1",
    "lrp": "lrp-epsilon",
}


def register_method(
    name: str,
    summary: str,
    paper: str,
    *,
    seed: Seed = "score",
    family: Family = "relevance",
    conserves: bool = True,
    signed: bool = True,
) -> Callable[[Builder], Builder]:
    """Register a method; the builder's keyword arguments and defaults are its options, their literal types its choices."""

    def register(build: Builder) -> Builder:
        if name in METHODS:
            raise MethodError(f"There is a method {name!r} already; give yours another name.")
        defaults = {p.name: p.default for p in inspect.signature(build).parameters.values()}
        METHODS[name] = Method(name, summary, paper, build, seed, family, conserves, defaults, _choices(build), signed)
        return build

    return register


def _choices(build: Callable[..., Any]) -> dict[str, tuple[Any, ...]]:
    """The values that options of a literal type may take."""
    hints = get_type_hints(inspect.unwrap(build))
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


def resolve(name: str) -> Method:
    """The method of that name; MethodError with a suggestion where there is none."""
    key = ALIASES.get(name, name)
    if key not in METHODS:
        raise MethodError(
            f"There is no method {name!r}.{suggest(name, [*METHODS, *ALIASES])} `onnx-explain methods` lists them."
        )
    return METHODS[key]
