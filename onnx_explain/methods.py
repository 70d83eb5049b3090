"""Methods by name: which rule serves which node. Selectors and composites are data; the formulas live in `rules/`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Literal

from onnx_explain.errors import MethodError, suggest
from onnx_explain.ir.view import Operation
from onnx_explain.operators.roles import (
    Linear,
    Normalization,
    Pointwise,
    Product,
    Rearrangement,
    Role,
    Selection,
    Sum,
)
from onnx_explain.rules import gradient, lrp, rap
from onnx_explain.rules.lrp import Bounds
from onnx_explain.rules.share import Rule

Seed = Literal["score", "one"]
BatchNorm = Literal["fold", "epsilon", "pass"]


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
class Composite:
    """A method as data: the first assignment that matches a node is its rule.

    `batch_norm`: fold BatchNormalization into the linear operator before it where that is exact, treat it by its own
    ε-rule, or see through it. `first_propagation`: relevance starts at the last weighted operator, which is handed the
    score's gradient. `result`: what is made of what arrives at the input. `positive_seed`: a negative score starts nothing.
    """

    assignments: tuple[Assignment, ...]
    batch_norm: BatchNorm = "fold"
    first_propagation: bool = False
    result: Literal["as-is", "absolute", "times-input"] = "as-is"
    positive_seed: bool = False

    def rule(self, node: Operation, role: Role, *, first: bool, last: bool) -> Assignment:
        """The row for a node; MethodError where none matches."""
        for row in self.assignments:
            if row.selector.matches(node, role, first=first, last=last):
                return row
        raise MethodError(
            f"{node.where}: the composite has no rule for its role {type(role).__name__}; add an assignment."
        )


@dataclass(frozen=True)
class Method:
    """A method by name: what it means, where it comes from, its options with their defaults, and how to build it.

    `seed`: where relevance starts by default: the explained value itself, or one. `conserves`: whether relevance is
    meant to sum to the seed.
    """

    name: str
    summary: str
    paper: str
    build: Callable[..., Composite]
    seed: Seed = "score"
    family: Literal["gradient", "relevance"] = "relevance"
    conserves: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def composite(self, options: Mapping[str, Any]) -> Composite:
        """The composite under the given options; MethodError names an option the method does not have."""
        for name, value in options.items():
            if name not in self.options:
                raise MethodError(f"Method {self.name!r} has no option {name!r}.{suggest(name, self.options)}")
            _check_option(self.name, name, value, self.options[name])
        low, high = options.get("low"), options.get("high")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)) and low > high:
            raise MethodError(f"Method {self.name!r}: low must not be above high, but {low} > {high}.")
        return self.build(**options)


def _check_option(method: str, name: str, value: Any, default: Any) -> None:
    allowed = _CHOICES.get(name)
    if name == "sums" and default != "auto":
        allowed = ("signed", "absolute")
    if allowed is not None and value not in allowed:
        raise MethodError(f"Method {method!r}: {name} must be one of {', '.join(map(repr, allowed))}, not {value!r}.")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise MethodError(f"Method {method!r}: {name} must be true or false, not {value!r}.")
    if isinstance(default, float) and not isinstance(default, bool):
        listed = name in ("low", "high") and isinstance(value, (list, tuple))
        numbers = value if listed else [value]
        if not all(
            isinstance(v, (int, float)) and not isinstance(v, bool) and v == v and abs(v) != float("inf")
            for v in numbers
        ):
            raise MethodError(f"Method {method!r}: {name} must be a finite number, not {value!r}.")
        if name in ("epsilon", "gamma", "beta") and value < 0:
            raise MethodError(f"Method {method!r}: {name} must not be negative, not {value!r}.")


_CHOICES: dict[str, tuple[str, ...]] = {
    "batch_norm": ("fold", "epsilon", "pass"),
    "variant": ("general", "published"),
    "sums": ("signed", "absolute", "auto"),
    "products": ("uniform", "signal"),
}

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
    family: Literal["gradient", "relevance"] = "relevance",
    conserves: bool = True,
) -> Callable[[Callable[..., Composite]], Callable[..., Composite]]:
    """Register a method; the builder's keyword arguments and defaults are its options."""

    def register(build: Callable[..., Composite]) -> Callable[..., Composite]:
        if name in METHODS:
            raise MethodError(f"There is a method {name!r} already; give yours another name.")
        defaults = {p.name: p.default for p in inspect.signature(build).parameters.values()}
        METHODS[name] = Method(name, summary, paper, build, seed, family, conserves, defaults)
        return build

    return register


def resolve(name: str) -> Method:
    """The method of that name; MethodError with a suggestion where there is none."""
    key = ALIASES.get(name, name)
    if key not in METHODS:
        raise MethodError(
            f"There is no method {name!r}.{suggest(name, [*METHODS, *ALIASES])} `onnx-explain methods` lists them."
        )
    return METHODS[key]


# ------------------------------------------------------------------------------------------- the gradient family

_SIMONYAN = "Simonyan, Vedaldi, Zisserman: Deep inside convolutional networks, 2014"


def _gradient_family(guide: gradient.Guide, result: Literal["as-is", "absolute", "times-input"] = "as-is") -> Composite:
    pointwise = Assignment(Selector(role=Pointwise), gradient.gate(guide), guide)
    return Composite((pointwise, Assignment(Selector(), gradient.adjoint, "gradient")), result=result)


@register_method(
    "gradient",
    "derivative of the score by every input element",
    _SIMONYAN,
    seed="one",
    family="gradient",
    conserves=False,
)
def _gradient() -> Composite:
    return _gradient_family("gradient")


@register_method("saliency", "magnitude of the gradient", _SIMONYAN, seed="one", family="gradient", conserves=False)
def _saliency() -> Composite:
    return _gradient_family("gradient", "absolute")


@register_method(
    "input-x-gradient",
    "input times gradient: the first-order share of every element",
    "Shrikumar et al.: Not just a black box, 2016",
    seed="one",
    family="gradient",
    conserves=False,
)
def _input_x_gradient() -> Composite:
    return _gradient_family("gradient", "times-input")


@register_method(
    "deconvnet",
    "backward signal rectified at every Relu, without the forward mask",
    "Zeiler, Fergus: Visualizing and understanding convolutional networks, ECCV 2014",
    seed="one",
    family="gradient",
    conserves=False,
)
def _deconvnet() -> Composite:
    return _gradient_family("deconvnet")


@register_method(
    "guided-backprop",
    "gradient through active Relus, positive signal only",
    "Springenberg et al.: Striving for simplicity, ICLR 2015 (workshop)",
    seed="one",
    family="gradient",
    conserves=False,
)
def _guided_backprop() -> Composite:
    return _gradient_family("guided")


# ------------------------------------------------------------------------------------------- the LRP family

_BACH = "Bach et al.: On pixel-wise explanations … by layer-wise relevance propagation, PLoS ONE 2015"
_MONTAVON = "Montavon et al.: Explaining nonlinear classification decisions with deep Taylor decomposition, 2017"
_OVERVIEW = "Montavon et al.: Layer-wise relevance propagation: an overview, LNCS 11700, 2019"
_DENSE = ("Gemm", "MatMul")
WEIGHTED = Selector(role=Linear, kind="weighted")
FIRST = Selector(role=Linear, kind="weighted", first=True)
FIRST_CONV = Selector(role=Linear, kind="weighted", operators=("Conv", "ConvTranspose"), first=True)
DENSE = Selector(role=Linear, kind="weighted", operators=_DENSE)


def _others(
    epsilon: float,
    *,
    batch_norm: BatchNorm,
    sums: Literal["signed", "absolute"],
    products: Literal["uniform", "signal"],
    zero_bias: bool = False,
) -> tuple[Assignment, ...]:
    """What all LRP composites do apart from weighted operators (methods.md §5, "Other nodes")."""
    normalisation = lrp.norm(epsilon, zero_bias=zero_bias) if batch_norm != "pass" else lrp.passing
    return (
        Assignment(Selector(role=Linear, kind="average"), lrp.norm(epsilon), "ε"),
        Assignment(Selector(role=Linear, kind="scale"), lrp.passing, "pass"),
        Assignment(Selector(role=Linear, kind="normalisation"), normalisation, "pass" if batch_norm == "pass" else "ε"),
        Assignment(Selector(role=Sum), lrp.contribution(epsilon, sums), "ε" if sums == "signed" else "|x|"),
        Assignment(Selector(role=Product), lrp.product(products, epsilon), products),
        Assignment(Selector(role=Pointwise), lrp.passing, "pass"),
        Assignment(Selector(role=Selection), gradient.route, "winner takes all"),
        Assignment(Selector(role=Rearrangement), gradient.undo, "undo"),
        Assignment(Selector(role=Normalization), lrp.normalization(epsilon), "ε, fixed statistics"),
    )


def lrp_composite(
    *weighted: tuple[Selector, Rule, str],
    epsilon: float = 1e-6,
    batch_norm: BatchNorm = "fold",
    sums: Literal["signed", "absolute"] = "signed",
    products: Literal["uniform", "signal"] = "uniform",
    zero_bias: bool = False,
) -> Composite:
    """An LRP composite from (selector, rule, label) rows for weighted operators; all other roles as usual."""
    rows = tuple(Assignment(*row) for row in weighted)
    others = _others(epsilon, batch_norm=batch_norm, sums=sums, products=products, zero_bias=zero_bias)
    return Composite(rows + others, batch_norm)


_Options = dict[str, Any]


def _one_rule(
    name: str, summary: str, paper: str, make: Callable[..., Rule], label: str, *, conserves: bool = True, **extra: Any
) -> None:
    """Register a method that puts one rule on every weighted operator; `extra` are the rule's own options."""

    def build(**options: Any) -> Composite:
        merged = {**defaults, **options}
        shared = {k: merged.pop(k) for k in ("batch_norm", "sums", "products")}
        others = {"epsilon": merged.get("epsilon", 1e-6), "zero_bias": merged.get("zero_bias", False)}
        return lrp_composite((WEIGHTED, make(**merged), label), **others, **shared)

    defaults: _Options = {**extra, "batch_norm": "fold", "sums": "signed", "products": "uniform"}
    METHODS[name] = Method(name, summary, paper, build, options=defaults, conserves=conserves)


_one_rule(
    "lrp-zero",
    "LRP-0: in proportion to each contribution, no stabiliser",
    _BACH,
    lrp.epsilon,
    "LRP-0",
    epsilon=0.0,
    zero_bias=False,
)
_one_rule(
    "lrp-epsilon",
    "in proportion to each contribution, weak ones absorbed",
    _BACH,
    lrp.epsilon,
    "ε",
    epsilon=1e-6,
    zero_bias=False,
)
_one_rule(
    "lrp-gamma",
    "contributions of the output's sign favoured by γ",
    _OVERVIEW,
    lrp.gamma,
    "γ",
    gamma=0.25,
    epsilon=1e-6,
    zero_bias=False,
)
_one_rule(
    "lrp-alpha2-beta1",
    "positive and negative contributions apart, weighted α and β",
    _BACH,
    lrp.alpha_beta,
    "αβ",
    alpha=2.0,
    beta=1.0,
    epsilon=1e-6,
    zero_bias=False,
)
_one_rule("lrp-z-plus", "positive contributions only", _MONTAVON, lrp.z_plus, "z⁺", epsilon=1e-6, zero_bias=False)
_one_rule(
    "lrp-flat",
    "evenly over the receptive field",
    "Lapuschkin: Opening the machine learning black box, 2019",
    lrp.flat,
    "flat",
    epsilon=1e-6,
)
_one_rule(
    "lrp-w-square", "in proportion to squared weights", _MONTAVON, lrp.w_square, "w²", epsilon=1e-6, with_bias=False
)


@register_method("lrp-epsilon-plus", "z⁺ on convolutions, ε on dense layers", _OVERVIEW)
def _epsilon_plus(
    epsilon: float = 1e-6,
    zero_bias: bool = False,
    batch_norm: BatchNorm = "fold",
    sums: Any = "signed",
    products: Any = "uniform",
) -> Composite:
    rows = (
        (DENSE, lrp.epsilon(epsilon, zero_bias=zero_bias), "ε"),
        (WEIGHTED, lrp.z_plus(epsilon, zero_bias=zero_bias), "z⁺"),
    )
    return lrp_composite(
        *rows, epsilon=epsilon, batch_norm=batch_norm, sums=sums, products=products, zero_bias=zero_bias
    )


def _flat_first(build: Callable[..., Composite]) -> Callable[..., Composite]:
    """The same composite, options and all, with the flat rule on the first layer."""

    @wraps(build)
    def flat_first(**options: Any) -> Composite:
        composite = build(**options)
        first = Assignment(FIRST, lrp.flat(options.get("epsilon", 1e-6)), "flat")
        return replace(composite, assignments=(first, *composite.assignments))

    return flat_first


register_method("lrp-epsilon-plus-flat", "flat on the first layer, z⁺ on convolutions, ε on dense layers", _OVERVIEW)(
    _flat_first(_epsilon_plus)
)


@register_method("lrp-epsilon-alpha2-beta1", "αβ on convolutions, ε on dense layers", _OVERVIEW)
def _epsilon_alpha2_beta1(
    alpha: float = 2.0,
    beta: float = 1.0,
    epsilon: float = 1e-6,
    zero_bias: bool = False,
    batch_norm: BatchNorm = "fold",
    sums: Any = "signed",
    products: Any = "uniform",
) -> Composite:
    rows = (
        (DENSE, lrp.epsilon(epsilon, zero_bias=zero_bias), "ε"),
        (WEIGHTED, lrp.alpha_beta(alpha, beta, epsilon, zero_bias=zero_bias), "αβ"),
    )
    return lrp_composite(
        *rows, epsilon=epsilon, batch_norm=batch_norm, sums=sums, products=products, zero_bias=zero_bias
    )


register_method(
    "lrp-epsilon-alpha2-beta1-flat", "flat on the first layer, αβ on convolutions, ε on dense layers", _OVERVIEW
)(_flat_first(_epsilon_alpha2_beta1))


@register_method(
    "lrp-epsilon-gamma-box", "zᴮ on the first convolution, γ on convolutions, ε on dense layers", _OVERVIEW
)
def _epsilon_gamma_box(
    low: Bounds = -3.0,
    high: Bounds = 3.0,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    zero_bias: bool = False,
    batch_norm: BatchNorm = "fold",
    sums: Any = "signed",
    products: Any = "uniform",
) -> Composite:
    rows = (
        (FIRST_CONV, lrp.z_box(low, high, epsilon), "zᴮ"),
        (DENSE, lrp.epsilon(epsilon, zero_bias=zero_bias), "ε"),
        (WEIGHTED, lrp.gamma(gamma, epsilon, zero_bias=zero_bias), "γ"),
    )
    return lrp_composite(
        *rows, epsilon=epsilon, batch_norm=batch_norm, sums=sums, products=products, zero_bias=zero_bias
    )


@register_method(
    "excitation-backprop",
    "z⁺ on every linear operator, gradients through activations",
    "Zhang et al.: Top-down neural attention by excitation backprop, ECCV 2016",
    conserves=False,
)
def _excitation_backprop(epsilon: float = 1e-6, zero_bias: bool = False, batch_norm: BatchNorm = "fold") -> Composite:
    z_plus = lrp.z_plus(epsilon, zero_bias=zero_bias)
    rows = (
        Assignment(WEIGHTED, z_plus, "z⁺"),
        Assignment(Selector(role=Linear, kind="average"), lrp.norm(epsilon), "ε"),
        Assignment(Selector(role=Linear, kind="scale"), lrp.passing, "pass"),
        Assignment(
            Selector(role=Linear, kind="normalisation"),
            lrp.norm(epsilon) if batch_norm == "epsilon" else gradient.adjoint,
            "ε" if batch_norm == "epsilon" else "gradient",
        ),
        Assignment(Selector(role=Sum), lrp.contribution(epsilon), "ε"),
        Assignment(Selector(), gradient.adjoint, "gradient"),
    )
    return Composite(rows, batch_norm)


@register_method("deep-taylor", "z⁺ without bias; zᴮ on the first layer under given bounds, else w²", _MONTAVON)
def _deep_taylor(
    low: Bounds | None = None, high: Bounds | None = None, epsilon: float = 1e-6, batch_norm: BatchNorm = "fold"
) -> Composite:
    if (low is None) != (high is None):
        raise MethodError(
            "Method 'deep-taylor': give both low and high (a bounded input), or neither (an unbounded one)."
        )
    bounded = low is not None and high is not None
    first = lrp.z_box(low or 0.0, high if high is not None else 1.0, epsilon) if bounded else lrp.w_square(epsilon)
    rows = ((FIRST, first, "zᴮ" if bounded else "w²"), (WEIGHTED, lrp.z_plus(epsilon, zero_bias=True), "z⁺"))
    return replace(lrp_composite(*rows, epsilon=epsilon, batch_norm=batch_norm), positive_seed=True)


# ------------------------------------------------------------------------------------------- RAP

_NAM = "Nam et al.: Relative attributing propagation, AAAI 2020 (arXiv 1904.00605)"


@register_method("rap", "what speaks for and what against, set apart by one shift per layer", _NAM)
def _rap(
    variant: Literal["general", "published"] = "general",
    low: Bounds | None = None,
    high: Bounds | None = None,
    sums: Any = "auto",
) -> Composite:
    published = variant == "published"
    drop = rap.dropping_at_zero
    rows = (
        Assignment(
            Selector(role=Linear, kind="weighted", last=True),
            rap.first_propagation(published=published),
            "first propagation",
        ),
        Assignment(FIRST, rap.box(low, high), "zᴮ of the picture"),
        Assignment(WEIGHTED, rap.hidden(joint=not published), "RAP"),
        Assignment(Selector(role=Linear, kind="average"), rap.pooled(drop=published), "ratio"),
        Assignment(Selector(role=Linear, kind="normalisation"), drop if published else lrp.passing, "pass"),
        Assignment(Selector(role=Sum), rap.summed(drop=published, mode="signed" if published else sums), "ratio"),
        Assignment(
            Selector(role=Selection, operators=("MaxPool",)), drop if published else gradient.route, "winner takes all"
        ),
        Assignment(Selector(role=Rearrangement, operators=("Concat",)), drop if published else gradient.undo, "undo"),
        Assignment(Selector(role=Selection), gradient.route, "winner takes all"),
        Assignment(Selector(role=Rearrangement), gradient.undo, "undo"),
        Assignment(Selector(role=Product), lrp.product("uniform"), "uniform"),
        Assignment(Selector(role=Normalization), rap_normalization, "pass"),
        Assignment(Selector(), lrp.passing, "pass"),
    )
    return Composite(rows, "pass" if published else "fold", first_propagation=True)


rap_normalization = lrp.normalization(1e-6)
