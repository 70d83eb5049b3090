"""What is shipped compiled, and the layers that the tile table is checked on.

Shipped kernels take any size of their form (`generic` plans). The sample layers are compiled for their shape, as a user's
own layers are at run time: their tiles must not spill either.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx_explain_kernels import forms
from onnx_explain_kernels.forms import ConvForm, DenominatorForm, PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.plan import Layouts, Plan, plan_apply, plan_conv, plan_denominator, plan_pool, plan_shift
from onnx_explain_kernels.tiles import Precision

PLAIN, END = Layouts(), Layouts(r="nhwc")
LINK, START = Layouts("nhwc", "nchw", "nhwc"), Layouts(out="nhwc")
# each form with the layouts it is used with: r and x as the forward pass leaves them, quotients channels last
USES: tuple[tuple[str, ConvForm, Layouts], ...] = (
    ("chain", forms.CHAIN, LINK),
    ("chain_first", forms.CHAIN_FIRST, START),
    ("product", forms.PRODUCT, END),
    ("epsilon", forms.EPSILON, PLAIN),
    ("below_d", forms.BELOW_D, LINK),
    ("gradient", forms.GRADIENT, END),
    ("gradient_chain", forms.GRADIENT_CHAIN, LINK),
    ("gradient_clip", forms.GRADIENT_CLIP, LINK),
    ("alpha_beta", forms.ALPHA_BETA, PLAIN),
    ("gamma", forms.GAMMA, PLAIN),
    ("relative", forms.RELATIVE, PLAIN),
    ("relative_chain", forms.RELATIVE_CHAIN, PLAIN),
    ("relative_given", forms.RELATIVE_GIVEN, END),
    ("halves", forms.HALVES, PLAIN),
    ("halves_given", forms.HALVES_GIVEN, END),
    ("box", forms.BOX, PLAIN),
    ("box_given", forms.BOX_GIVEN, END),
)
# passes forward: read as the forward pass leaves it, denominators like it, quotients channels last
DENOMINATOR_USES: tuple[tuple[str, DenominatorForm, Layouts], ...] = (
    ("sum", DenominatorForm(biased=True), PLAIN),
    ("sum_halves", DenominatorForm("halves", biased=True), PLAIN),
    ("quotient", DenominatorForm("x", "quotient", biased=True, accounts=True), START),
    ("quotient_halves", DenominatorForm("halves", "quotient", biased=True, accounts=True), START),
    ("pair", DenominatorForm("twin", "pair"), PLAIN),
    ("pair_divided", DenominatorForm("twin", "pair", divided=True), START),
    ("pair_shifted", DenominatorForm("twin", "pair", divided=True, shifted=True), START),
    ("pair_signed", DenominatorForm("magnitudes", "pair", divided=True), START),
)
POOL_USES: tuple[tuple[str, PoolForm, Layouts], ...] = (
    ("max", PoolForm("max"), PLAIN),
    ("max_last", PoolForm("max"), Layouts("nhwc", "nchw", "nhwc")),
    ("max_chain", PoolForm("max", below="x"), START),
    ("max_active", PoolForm("max", numerator="active"), START),
    ("max_shifted", PoolForm("max", shifted=True), PLAIN),
    ("average", PoolForm("average", "ratio", "x"), PLAIN),
    ("average_chain", PoolForm("average", "ratio", "x", "x"), START),
    ("average_gradient", PoolForm("average"), PLAIN),
    ("average_shifted", PoolForm("average", "ratio", "x", shifted=True), PLAIN),
)
# one layer of each kind that a generic kernel is compiled apart for
_KINDS = {
    "wide": Conv.of(2, 64, 64, (8, 8), (3, 3), pads=(1, 1, 1, 1)),
    "few_channels": Conv.of(2, 3, 64, (8, 8), (3, 3), pads=(1, 1, 1, 1)),
    "odd_filters": Conv.of(2, 64, 63, (8, 8), (3, 3), pads=(1, 1, 1, 1)),
    "depthwise": Conv.of(2, 64, 64, (8, 8), (3, 3), pads=(1, 1, 1, 1), group=64),
}
_FORWARD_KINDS = {
    **{k: _KINDS[k] for k in ("wide", "few_channels", "depthwise")},
    "odd_channels": Conv.of(2, 63, 64, (8, 8), (3, 3), pads=(1, 1, 1, 1)),
}
SAMPLES = 32
# VGG-16, ResNet-50, MobileNet-v2 and DenseNet-121: one of each kind of layer
LAYERS = {
    "vgg_1_1": Conv.of(SAMPLES, 3, 64, (224, 224), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_1_2": Conv.of(SAMPLES, 64, 64, (224, 224), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_2_1": Conv.of(SAMPLES, 64, 128, (112, 112), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_2_2": Conv.of(SAMPLES, 128, 128, (112, 112), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_3_1": Conv.of(SAMPLES, 128, 256, (56, 56), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_3_2": Conv.of(SAMPLES, 256, 256, (56, 56), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_4_1": Conv.of(SAMPLES, 256, 512, (28, 28), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_4_2": Conv.of(SAMPLES, 512, 512, (28, 28), (3, 3), pads=(1, 1, 1, 1)),
    "vgg_5": Conv.of(SAMPLES, 512, 512, (14, 14), (3, 3), pads=(1, 1, 1, 1)),
    "fc6": Conv.dense(SAMPLES, 25088, 4096),
    "resnet_stem": Conv.of(SAMPLES, 3, 64, (224, 224), (7, 7), strides=(2, 2), pads=(3, 3, 3, 3)),
    "resnet_2_reduce": Conv.of(SAMPLES, 256, 64, (56, 56), (1, 1)),
    "resnet_2_expand": Conv.of(SAMPLES, 64, 256, (56, 56), (1, 1)),
    "resnet_3_stride": Conv.of(SAMPLES, 128, 128, (56, 56), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "resnet_3_shortcut": Conv.of(SAMPLES, 256, 512, (56, 56), (1, 1), strides=(2, 2)),
    "resnet_5_3x3": Conv.of(SAMPLES, 512, 512, (7, 7), (3, 3), pads=(1, 1, 1, 1)),
    "resnet_5_expand": Conv.of(SAMPLES, 512, 2048, (7, 7), (1, 1)),
    "mobilenet_depthwise": Conv.of(SAMPLES, 144, 144, (56, 56), (3, 3), pads=(1, 1, 1, 1), group=144),
    "mobilenet_depthwise_stride": Conv.of(
        SAMPLES, 96, 96, (112, 112), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1), group=96
    ),
    "mobilenet_expand": Conv.of(SAMPLES, 24, 144, (56, 56), (1, 1)),
    "mobilenet_project": Conv.of(SAMPLES, 144, 24, (56, 56), (1, 1)),
    "densenet_3x3": Conv.of(SAMPLES, 128, 32, (14, 14), (3, 3), pads=(1, 1, 1, 1)),
}
POOLS = {
    "vgg_pool1": Pool.of(SAMPLES, 64, (224, 224), (2, 2), strides=(2, 2)),
    "resnet_pool": Pool.of(SAMPLES, 64, (112, 112), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1)),
    "global": Pool.of(SAMPLES, 2048, (7, 7), (7, 7)),
    "densenet_pool": Pool.of(SAMPLES, 256, (28, 28), (2, 2), strides=(2, 2)),
}


def shipped_plans(arch: int) -> Iterator[tuple[str, Plan]]:
    """(name, plan) of every kernel that is shipped for an architecture."""
    for name, form, layouts in USES:
        for kind, conv in _KINDS.items():
            yield f"{name}/{kind}", plan_conv(conv, form, arch=arch, layouts=layouts, generic=True)
    for name, divisor, layouts in DENOMINATOR_USES:
        for kind, conv in _FORWARD_KINDS.items():
            yield f"{name}/{kind}", plan_denominator(conv, divisor, arch=arch, layouts=layouts, generic=True)
    pool = Pool.of(2, 8, (9, 9), (3, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    for pool_name, pool_form, layouts in POOL_USES:
        yield f"pool/{pool_name}", plan_pool(pool, pool_form, arch=arch, layouts=layouts, generic=True)
    yield "shift", plan_shift(2, 100, arch=arch)
    yield "apply", plan_apply(2, 100, arch=arch)


def layer_plans(arch: int, precisions: tuple[Precision, ...] = ("tf32",)) -> Iterator[tuple[str, Plan]]:
    """(name, plan) of the sample layers compiled for their shape, in every form that such a layer is used with."""
    for name, conv in LAYERS.items():
        first = conv.channels == 3
        for use, form, layouts in USES:
            if (form.branch == "twin") != first and not (
                first and use in ("product", "epsilon", "gradient", "relative")
            ):
                continue
            for precision in precisions:
                plan = plan_conv(conv, form, arch=arch, layouts=layouts, precision=precision)
                yield f"{name}/{use}/{precision}", plan
        for use, divisor, layouts in DENOMINATOR_USES:
            for precision in precisions:
                yield (
                    f"{name}/{use}/{precision}",
                    plan_denominator(conv, divisor, arch=arch, layouts=layouts, precision=precision),
                )
    for name, pool in POOLS.items():
        kind = "average" if name in ("global", "densenet_pool") else "max"
        for use, pool_form, layouts in POOL_USES:
            if pool_form.kind == kind:
                yield f"{name}/{use}", plan_pool(pool, pool_form, arch=arch, layouts=layouts)
