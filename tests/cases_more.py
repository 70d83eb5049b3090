"""Cases of rarer operators: reductions that are no sum, norms, Fourier transforms, blocks, computed weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from case import Case, Values, away, cases, float32s, int0, ints, positive, signed

LINEAR: dict[str, Any] = {"role": "linear", "linear": True}


def more() -> Iterator[Case]:
    """All of them."""
    for family in (_products, _exponentials, _norms, _remainders, _blocks, _spectra, _computed, _resizes, _deformed):
        yield from family()


def _products() -> Iterator[Case]:
    x = {"x": away(2, 3, 2)}
    for name, text in {
        "": "y = ReduceProd<axes=[1]>(x)", "-dropped": "y = ReduceProd<axes=[-1,1],keepdims=0>(x)",
        "-all": "y = ReduceProd(x)",
    }.items():  # fmt: skip
        yield from cases(f"reduceprod{name}", text, x, opset=(11, 13), role="product")
    operand = "y = ReduceProd<keepdims=0>(x, a)"
    yield from cases("reduceprod-operand", operand, x, {"a": ints(0, 2)}, opset=18, role="product")
    none = "y = ReduceProd<noop_with_empty_axes=1>(x)"
    yield from cases("reduceprod-noop", none, x, opset=18, role="product")
    zeros = "k = Mul(x, m); y = ReduceProd<axes=[1]>(k)"
    mask = {"m": np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [1.0, 2.0, 1.0]])}
    yield from cases("reduceprod-zeros", zeros, {"x": away(3, 3)}, mask, opset=13, role="product")


def _exponentials() -> Iterator[Case]:
    for name, text in {
        "": "y = ReduceLogSumExp<axes=[1]>(x)", "-dropped": "y = ReduceLogSumExp<axes=[-1],keepdims=0>(x)",
        "-all": "y = ReduceLogSumExp(x)",
    }.items():  # fmt: skip
        yield from cases(f"reducelogsumexp{name}", text, {"x": signed(2, 3, 4)}, opset=13, role="normalization")
    operand = "y = ReduceLogSumExp(x, a)"
    yield from cases(
        "reducelogsumexp-operand", operand, {"x": signed(2, 3)}, {"a": ints(1)}, opset=18, role="normalization"
    )


def _norms() -> Iterator[Case]:
    x = {"x": away(1, 2, 4, 5)}
    for name, attributes in {
        "-1": "kernel_shape=[2,2],p=1", "-3": "kernel_shape=[3,2],p=3,strides=[2,1],pads=[1,0,1,1]",
        "-same": 'kernel_shape=[3,3],strides=[2,2],auto_pad="SAME_UPPER"',
    }.items():  # fmt: skip
        yield from cases(
            f"lppool{name}", f"y = LpPool<{attributes}>(x)", x, opset=(11, 18) if name == "-3" else 11, role="product"
        )
    wide = "y = LpPool<kernel_shape=[2,2],dilations=[2,2],ceil_mode=1,strides=[2,2]>(x)"
    yield from cases("lppool-dilated", wide, x, opset=18, role="product")
    for p in (1, 2, 3):
        yield from cases(
            f"globallppool-{p}", f"y = GlobalLpPool<p={p}>(x)", {"x": away(2, 3, 2, 3)}, opset=9, role="product"
        )
    for p in (1, 2):
        text = f"y = LpNormalization<axis=1,p={p}>(x)"
        yield from cases(
            f"lpnormalization-{p}", text, {"x": away(2, 4, 3)}, opset=(9, 22) if p == 2 else 9, role="product"
        )


def _remainders() -> Iterator[Case]:
    x, divisor = {"x": Values((2, 3), "over")}, {"b": np.array([0.37, -0.41, 0.73])}
    far = {"x": x["x"], "b": Values((2, 3), "unit", (0.0,))}
    for name, fmod in {"fmod": 1}.items():
        yield from cases(name, f"y = Mod<fmod={fmod}>(x, b)", x, divisor, opset=(10, 13), role="pointwise")
        yield from cases(f"{name}-both", f"y = Mod<fmod={fmod}>(x, b)", far, opset=13, role="product")


def _blocks() -> Iterator[Case]:
    sizes = {"s": ints(4, 5), "b": ints(2, 3)}
    yield from cases("col2im", "y = Col2Im(x, s, b)", {"x": signed(2, 12, 9)}, sizes, opset=18, **LINEAR)
    padded = "y = Col2Im<strides=[2,1],pads=[1,0,1,2],dilations=[1,2]>(x, s, b)"
    yield from cases("col2im-padded", padded, {"x": signed(1, 6, 9)}, sizes, opset=18, **LINEAR)
    one = {"s": ints(6), "b": ints(2)}
    yield from cases("col2im-1d", "y = Col2Im<strides=[2]>(x, s, b)", {"x": signed(2, 4, 3)}, one, opset=18, **LINEAR)


def _spectra() -> Iterator[Case]:
    real, complex_ = {"x": signed(2, 6, 1)}, {"x": signed(2, 5, 2)}
    options: dict[str, Any] = {**LINEAR, "rtol": 5e-5, "reason": "a transform in float32 sums with rounded angles"}
    for name, attributes in {"": "", "-onesided": "onesided=1"}.items():
        yield from cases(f"dft{name}", f"y = DFT<{attributes}>(x)", real, opset=17, **options)
    yield from cases("dft-complex", "y = DFT(x)", complex_, opset=(17, 20), **options)
    yield from cases("dft-inverse", "y = DFT<inverse=1>(x)", complex_, opset=17, **options)
    for length in (4, 7):
        text = f"y = DFT<axis=1,onesided={length % 2}>(x, n)"
        yield from cases(f"dft-length-{length}", text, real, {"n": int0(length)}, opset=17, **options)
    operand = 'y = DFT<onesided=1>(x, "", a)'
    yield from cases("dft-axis", operand, {"x": signed(2, 4, 3, 1)}, {"a": int0(1)}, opset=20, **options)
    window = {"s": int0(3), "w": positive(4)}
    yield from cases("stft", "y = STFT<onesided=1>(x, s, w)", {"x": signed(2, 11, 1)}, window, opset=17, **options)
    both = "y = STFT<onesided=0>(x, s, w)"
    yield from cases("stft-complex", both, {"x": signed(1, 9, 2)}, window, opset=17, **options)
    bare = 'y = STFT<onesided=1>(x, s, "", n)'
    yield from cases("stft-length", bare, {"x": signed(2, 9, 1)}, {"s": int0(2), "n": int0(4)}, opset=17, **options)


def _computed() -> Iterator[Case]:
    both = {"x": signed(2, 3, 5, 4), "w": signed(4, 3, 3, 2)}
    options: dict[str, Any] = {"role": "product"}
    yield from cases("conv-computed", "y = Conv<strides=[2,1],pads=[1,0,1,1]>(x, w)", both, **options)
    yield from cases("conv-computed-bias", "y = Conv(x, w, b)", both | {"b": signed(4)}, **options)
    yield from cases(
        "conv-bias-alone", "y = Conv(x, w, b)", {"b": signed(4)}, {"x": both["x"], "w": both["w"]}, **options
    )
    cross = {"x": signed(1, 4, 5, 5), "w": signed(4, 1, 2, 3)}
    yield from cases("conv-cross-correlation", "y = Conv<group=4>(x, w)", cross, **options)
    grouped = {"x": signed(2, 4, 6), "w": signed(6, 2, 3)}
    yield from cases("conv-computed-groups", "y = Conv<group=2,dilations=[2]>(x, w)", grouped, **options)
    turned = {"x": signed(2, 4, 3, 4), "w": signed(4, 2, 3, 2)}
    text = "y = ConvTranspose<group=2,strides=[2,1],pads=[1,0,0,1]>(x, w)"
    yield from cases("convtranspose-computed", text, turned, **options)
    yield from cases("convtranspose-computed-bias", "y = ConvTranspose(x, w, b)", turned | {"b": signed(2)}, **options)
    three = {"a": signed(3, 4), "b": signed(4, 2), "c": signed(2)}
    yield from cases("gemm-all-computed", "y = Gemm<alpha=0.5,beta=2.0>(a, b, c)", three, **options)
    several = 'y = Einsum<equation="bi,ij,jk->bk">(x, a, b)'
    yield from cases(
        "einsum-several-constants",
        several,
        {"x": signed(2, 3)},
        {"a": signed(3, 4), "b": signed(4, 2)},
        linear=True,
        **options,
    )


def _resizes() -> Iterator[Case]:
    image = {"x": signed(1, 2, 6, 7)}
    for mode in ("linear", "cubic"):
        text = f'y = Resize<mode="{mode}",antialias=1>(x, "", "", s)'
        down, mixed = {"s": ints(1, 2, 3, 2)}, {"s": ints(1, 2, 4, 9)}
        yield from cases(f"resize-{mode}-antialias-down", text, image, down, opset=18, **LINEAR)
        yield from cases(f"resize-{mode}-antialias-mixed", text, image, mixed, opset=18, **LINEAR)
    for mode in ("nearest", "linear"):
        text = f'y = Resize<mode="{mode}",coordinate_transformation_mode="tf_crop_and_resize",extrapolation_value=0.5>(x, r, "", s)'
        part = {"r": float32s(0, 0, 0.21, -0.32, 1, 1, 0.83, 0.71), "s": ints(1, 2, 4, 5)}
        yield from cases(f"resize-{mode}-crop", text, image, part, opset=(13, 18), **LINEAR)
    one = {"r": float32s(0, 0, 0.2, 0.1, 1, 1, 0.7, 0.6), "s": ints(1, 2, 1, 3)}
    text = 'y = Resize<mode="linear",coordinate_transformation_mode="tf_crop_and_resize">(x, r, "", s)'
    yield from cases("resize-crop-to-one", text, image, one, opset=13, **LINEAR)


def _deformed() -> Iterator[Case]:
    steps: dict[str, Any] = {"opset": 22, "role": "product", "step": 1e-7, "slack": 1e-5}
    x, w = signed(2, 4, 4, 5), signed(2, 2, 2, 3)
    moves = Values((2, 24, 4, 4), "unit")
    text = "y = DeformConv<pads=[1,0,0,1],{}>({})"
    given = {"w": w, "o": Values((2, 12, 4, 4), "unit")}
    linear: dict[str, Any] = {**LINEAR, "opset": (19, 22)}
    yield from cases("deformconv", text.format("group=2", "x, w, o"), {"x": x}, given, **linear)
    full = text.format("group=2,offset_group=2", "x, w, o, b, m")
    rest = {"w": w, "b": signed(2), "m": positive(2, 12, 4, 4)}
    yield from cases("deformconv-moves", full, {"x": x, "o": moves}, rest, **steps)
