"""The gradient family: one backward pass, told apart by what happens at a non-linearity."""

from __future__ import annotations

from typing import Literal

from onnx_explain.methods.registry import Assignment, Composite, Selector, register_method
from onnx_explain.operators.roles import Normalization, Pointwise, Product, Selection
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


@register_method(
    "saliency", "magnitude of the gradient", _SIMONYAN, seed="one", family="gradient", conserves=False, signed=False
)
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


def gnl_composite(
    *,
    variant: gradient.Pooling = "path",
    negative: gradient.Negative = "clip",
    guide_all: bool = False,
    result: Literal["as-is", "times-input"] = "as-is",
) -> Composite:
    """The guided non-linearity gradient as data: linear operators by their adjoint, non-linearities rectified.

    variant: of overlapping max-pools, as in `rules.gradient.guided_selection`. negative: where f' < 0, as in
    `rules.gradient.guided_pointwise`. guide_all: rectify behind products of activations, Softmax and normalisations with
    their own statistics too. Activations written as products of several nodes (x·Sigmoid(x), the Erf chain of a Gelu, and
    their like) count as the one function that they are; a LayerNormalization in parts is treated part by part. Relevance
    starts at one; what arrives may be negative, for the first linear operator follows the last rectification.
    """
    rows = [
        Assignment(Selector(role=Pointwise), gradient.guided_pointwise(negative), "guided"),
        Assignment(Selector(role=Selection), gradient.guided_selection(variant), f"guided ({variant})"),
        Assignment(Selector(role=Product), gradient.guided_product(negative, every=guide_all), "guided product"),
    ]
    if guide_all:
        rows.append(Assignment(Selector(role=Normalization), gradient.guided_adjoint, "guided"))
    return Composite((*rows, Assignment(Selector(), gradient.adjoint, "gradient")), result=result)


@register_method(
    "gnl-gradient",
    "gradient along positive paths: the signal is rectified behind every non-linearity",
    "Kwon, Koo, Cho: Visualizing the decision of CNNs by guided non-linearity, ICPR 2020",
    seed="one",
    family="gradient",
    conserves=False,
)
def _gnl_gradient(
    variant: gradient.Pooling = "path", negative: gradient.Negative = "clip", guide_all: bool = False
) -> Composite:
    return gnl_composite(variant=variant, negative=negative, guide_all=guide_all)
