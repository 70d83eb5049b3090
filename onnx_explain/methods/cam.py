"""Class activation maps by name: the score's gradient down to an inner layer, and the layer's map over the input."""

from __future__ import annotations

from onnx_explain.methods.registry import Assignment, Composite, Selector, Turn, register_method
from onnx_explain.rules import cam, gradient


def _map(form: cam.Form, layer: str | None, relu: bool) -> Composite:
    rows = (Assignment(Selector(), gradient.adjoint, "gradient"),)
    return Composite(rows, turn=Turn(cam.layer_relevance(form), layer, spread=cam.spread(relu=relu)))


@register_method(
    "grad-cam",
    "channels weighted by the mean gradient of the score, over the input",
    "Selvaraju et al.: Grad-CAM, ICCV 2017 (arXiv 1610.02391)",
    seed="one",
    family="activation",
    conserves=False,
)
def _grad_cam(layer: str | None = None, relu: bool = True) -> Composite:
    return _map("grad-cam", layer, relu)


@register_method(
    "grad-cam-plus-plus",
    "channels weighted by positive gradients, rarer positions counting more",
    "Chattopadhay et al.: Grad-CAM++, WACV 2018 (arXiv 1710.11063)",
    seed="one",
    family="activation",
    conserves=False,
)
def _grad_cam_plus_plus(layer: str | None = None, relu: bool = True) -> Composite:
    return _map("grad-cam-plus-plus", layer, relu)


@register_method(
    "hires-cam",
    "the layer's activation times its gradient, position by position",
    "Draelos, Carin: Use HiResCAM instead of Grad-CAM, 2020 (arXiv 2011.08891)",
    seed="one",
    family="activation",
    conserves=False,
)
def _hires_cam(layer: str | None = None, relu: bool = False) -> Composite:
    return _map("hires-cam", layer, relu)


@register_method(
    "layer-cam",
    "the layer's activation times its positive gradient, position by position",
    "Jiang et al.: LayerCAM, IEEE Transactions on Image Processing 30, 2021",
    seed="one",
    family="activation",
    conserves=False,
)
def _layer_cam(layer: str | None = None, relu: bool = True) -> Composite:
    return _map("layer-cam", layer, relu)


@register_method(
    "xgrad-cam",
    "channels weighted by the gradient's mean, each position counting by its activation",
    "Fu et al.: Axiom-based Grad-CAM, BMVC 2020 (arXiv 2008.02312)",
    seed="one",
    family="activation",
    conserves=False,
)
def _xgrad_cam(layer: str | None = None, relu: bool = True) -> Composite:
    return _map("xgrad-cam", layer, relu)
