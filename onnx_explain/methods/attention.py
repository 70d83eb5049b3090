"""Methods for transformers: AttnLRP and CP-LRP. Their formulas live in `rules/attention.py` and `rules/lrp.py`."""

from __future__ import annotations

from typing import Literal

from onnx_explain.errors import MethodError
from onnx_explain.methods.lrp import DENSE, GATED, WEIGHTED, Sums
from onnx_explain.methods.registry import ALIASES, Assignment, BatchNorm, Composite, Selector, register_method
from onnx_explain.operators.roles import Linear, Normalization, Pointwise, Product, Rearrangement, Selection, Sum
from onnx_explain.rules import attention, gradient, lrp
from onnx_explain.rules.share import Rule

_ATTN = "Achtibat et al.: AttnLRP: attention-aware layer-wise relevance propagation for transformers, ICML 2024"
_CP = "Ali et al.: XAI for transformers: better explanations through conservative propagation, ICML 2022"
Products = Literal["uniform", "weighed"]
Stabiliser = Literal["signed", "unsigned"]
MEAN = Selector(role=Linear, kind="average", operators=("ReduceMean", "GlobalAveragePool"))
SOFTMAX = Selector(role=Normalization, operators=("Softmax",))
RMS = Selector(role=Normalization, operators=("RMSNormalization",))
ALIASES.update({"AttnLRP": "attn-lrp", "attnlrp": "attn-lrp", "CP-LRP": "cp-lrp", "cplrp": "cp-lrp"})


def attention_composite(
    products: Products,
    *,
    epsilon: float = 1e-6,
    product_epsilon: float = 1e-8,
    conv_gamma: float = 0.0,
    linear_gamma: float = 0.0,
    sums: Sums = "signed",
    stabiliser: Stabiliser = "signed",
    batch_norm: BatchNorm = "fold",
) -> Composite:
    """The composite of a transformer.

    products: ``uniform`` (AttnLRP) or ``weighed`` (CP-LRP). epsilon: of linear operators, means and normalisations;
    product_epsilon: of matrix products and residual sums; conv_gamma, linear_gamma: γ of the γ-rule for convolutions and
    dense layers, 0 for the ε-rule. stabiliser: ε takes the sign of what it stabilises, or, as in LXT, does not.
    """
    signed = stabiliser == "signed"

    def stable(rule: Rule) -> Rule:
        return rule if signed else attention.unsigned(rule)

    def weighted(gamma: float, name: str) -> tuple[Rule, str]:
        if gamma < 0.0:
            raise MethodError(f"{name} must not be negative, not {gamma!r}.")
        return (lrp.gamma(gamma, epsilon), "γ") if gamma else (stable(lrp.epsilon(epsilon)), "ε")

    seen_through = batch_norm.endswith("pass")
    rows = (
        Assignment(DENSE, *weighted(linear_gamma, "linear_gamma")),
        Assignment(WEIGHTED, *weighted(conv_gamma, "conv_gamma")),
        Assignment(MEAN, stable(attention.mean(epsilon)), "ε"),
        Assignment(Selector(role=Linear, kind="average"), stable(lrp.norm(epsilon)), "ε"),
        Assignment(Selector(role=Linear, kind="scale"), lrp.passing, "pass"),
        Assignment(
            Selector(role=Linear, kind="normalisation"),
            lrp.passing if seen_through else stable(lrp.norm(epsilon)),
            "pass" if seen_through else "ε",
        ),
        Assignment(
            Selector(role=Sum), stable(lrp.contribution(product_epsilon, sums)), "ε" if sums == "signed" else "|x|"
        ),
        Assignment(GATED, lrp.product("signal", product_epsilon), "signal takes all"),
        Assignment(Selector(role=Product), attention.product(products, product_epsilon, signed=signed), products),
        Assignment(Selector(role=Pointwise), lrp.passing, "pass"),
        Assignment(Selector(role=Selection), gradient.route, "winner takes all"),
        Assignment(Selector(role=Rearrangement), gradient.undo, "undo"),
        Assignment(SOFTMAX, attention.softmax, "Taylor"),
        Assignment(RMS, lrp.passing, "pass"),
        Assignment(Selector(role=Normalization), stable(lrp.normalization(epsilon)), "ε, fixed statistics"),
    )
    return Composite(rows, batch_norm)


@register_method(
    "attn-lrp", "relevance through attention: factors share equally, Softmax by its Taylor expansion", _ATTN
)
def _attn_lrp(
    epsilon: float = 1e-6,
    product_epsilon: float = 1e-8,
    conv_gamma: float = 0.0,
    linear_gamma: float = 0.0,
    sums: Sums = "signed",
    stabiliser: Stabiliser = "signed",
    batch_norm: BatchNorm = "fold",
) -> Composite:
    return attention_composite(
        "uniform",
        epsilon=epsilon,
        product_epsilon=product_epsilon,
        conv_gamma=conv_gamma,
        linear_gamma=linear_gamma,
        sums=sums,
        stabiliser=stabiliser,
        batch_norm=batch_norm,
    )


@register_method("cp-lrp", "conservative propagation: attention probabilities and gates are constants", _CP)
def _cp_lrp(
    epsilon: float = 1e-6,
    product_epsilon: float = 1e-8,
    conv_gamma: float = 0.0,
    linear_gamma: float = 0.0,
    sums: Sums = "signed",
    stabiliser: Stabiliser = "signed",
    batch_norm: BatchNorm = "fold",
) -> Composite:
    return attention_composite(
        "weighed",
        epsilon=epsilon,
        product_epsilon=product_epsilon,
        conv_gamma=conv_gamma,
        linear_gamma=linear_gamma,
        sums=sums,
        stabiliser=stabiliser,
        batch_norm=batch_norm,
    )
