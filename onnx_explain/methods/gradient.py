"""The gradient family: one backward pass, told apart by what happens at a non-linearity."""

from __future__ import annotations

from typing import Literal

from onnx_explain.methods.registry import Assignment, Composite, Selector, register_method
from onnx_explain.operators.roles import Pointwise
from onnx_explain.rules import gradient

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
