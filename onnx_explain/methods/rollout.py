"""Methods that read attention maps alone. The formulas live in `rules/rollout.py`."""

from __future__ import annotations

from onnx_explain.errors import MethodError
from onnx_explain.methods.registry import ALIASES, Assignment, Composite, Rollout, Selector, register_method
from onnx_explain.rules import gradient, rollout

_ROWS = (Assignment(Selector(), gradient.adjoint, "gradient"),)
ALIASES.update({"rollout": "attention-rollout", "gradient-attention-rollout": "gradient-rollout"})


@register_method(
    "attention-rollout",
    "how much of each token reaches the tokens that the score reads, by attention alone; knows no class",
    "Abnar, Zuidema: Quantifying attention flow in transformers, ACL 2020 (arXiv 2005.00928)",
    seed="one",
    family="attention",
    conserves=False,
    signed=False,
)
def _attention_rollout(residual: float = 0.5, heads: rollout.Heads = "mean") -> Composite:
    if not 0.0 <= residual <= 1.0:
        raise MethodError(
            f"Method 'attention-rollout': residual is a share between 0 and 1 of what a token keeps, not {residual!r}."
        )
    return Composite(_ROWS, rollout=Rollout(rollout.plain(residual, heads)))


@register_method(
    "gradient-rollout",
    "attention maps weighted by the score's positive gradient, layer upon layer",
    "Chefer, Gur, Wolf: Generic attention-model explainability, ICCV 2021 (arXiv 2103.15679)",
    seed="one",
    family="attention",
    conserves=False,
)
def _gradient_rollout() -> Composite:
    return Composite(_ROWS, rollout=Rollout(rollout.by_gradient, gradients=True))
