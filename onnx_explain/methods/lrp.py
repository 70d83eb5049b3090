"""Layer-wise relevance propagation: one rule for all weighted operators, and the composites of its papers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, get_args

from onnx_explain.errors import MethodError
from onnx_explain.methods.registry import (
    METHODS,
    Assignment,
    BatchNorm,
    Composite,
    Method,
    Selector,
    register_method,
)
from onnx_explain.operators.roles import Linear, Normalization, Pointwise, Product, Rearrangement, Selection, Sum
from onnx_explain.rules import attention, gradient, lrp
from onnx_explain.rules.lrp import Bounds
from onnx_explain.rules.share import Rule

_BACH = "Bach et al.: On pixel-wise explanations … by layer-wise relevance propagation, PLoS ONE 2015"
_MONTAVON = "Montavon et al.: Explaining nonlinear classification decisions with deep Taylor decomposition, 2017"
_OVERVIEW = "Montavon et al.: Layer-wise relevance propagation: an overview, LNCS 11700, 2019"
Sums = Literal["signed", "absolute"]
Products = Literal["uniform", "signal", "weighed"]
_DENSE = ("Gemm", "MatMul", "Einsum")
WEIGHTED = Selector(role=Linear, kind="weighted")
FIRST = Selector(role=Linear, kind="weighted", first=True)
FIRST_CONV = Selector(role=Linear, kind="weighted", operators=("Conv", "ConvTranspose"), first=True)
GATED = Selector(role=Product, kind="gated")  # a recurrence's gates: Arras et al., WASSA 2017
DENSE = Selector(role=Linear, kind="weighted", operators=_DENSE)


def _product(products: Products, epsilon: float) -> Rule:
    """Products of activations; `weighed`: the one that a Sigmoid, a Softmax or a broadcast shows to be a gate gets nothing."""
    return attention.product("weighed", epsilon) if products == "weighed" else lrp.product(products, epsilon)


def _others(
    epsilon: float,
    *,
    batch_norm: BatchNorm,
    sums: Sums,
    products: Products,
    zero_bias: bool = False,
) -> tuple[Assignment, ...]:
    """What all LRP composites do apart from weighted operators (methods.md §5, "Other nodes")."""
    seen_through = batch_norm.endswith("pass")
    normalisation = lrp.passing if seen_through else lrp.norm(epsilon, zero_bias=zero_bias)
    return (
        Assignment(Selector(role=Linear, kind="average"), lrp.norm(epsilon), "ε"),
        Assignment(Selector(role=Linear, kind="scale"), lrp.passing, "pass"),
        Assignment(Selector(role=Linear, kind="normalisation"), normalisation, "pass" if seen_through else "ε"),
        Assignment(Selector(role=Sum), lrp.contribution(epsilon, sums), "ε" if sums == "signed" else "|x|"),
        Assignment(GATED, lrp.product("signal", epsilon), "signal takes all"),
        Assignment(Selector(role=Product), _product(products, epsilon), products),
        Assignment(Selector(role=Pointwise), lrp.passing, "pass"),
        Assignment(Selector(role=Selection), gradient.route, "winner takes all"),
        Assignment(Selector(role=Rearrangement), gradient.undo, "undo"),
        Assignment(Selector(role=Normalization), lrp.normalization(epsilon), "ε, fixed statistics"),
    )


def lrp_composite(
    *weighted: tuple[Selector, Rule, str],
    epsilon: float = 1e-6,
    batch_norm: BatchNorm = "fold",
    sums: Sums = "signed",
    products: Products = "uniform",
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
    choices = {"batch_norm": get_args(BatchNorm), "sums": get_args(Sums), "products": get_args(Products)}
    METHODS[name] = Method(name, summary, paper, build, conserves=conserves, options=defaults, choices=choices)


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
    sums: Sums = "signed",
    products: Products = "uniform",
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
    sums: Sums = "signed",
    products: Products = "uniform",
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
    sums: Sums = "signed",
    products: Products = "uniform",
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
