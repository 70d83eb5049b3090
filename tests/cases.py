"""One table of cases per operator; it drives every generic test of the library.

Kinks (Relu at 0, Clip at its bounds) and ties (maxima) are kept at a distance, so that finite differences apply.
What the operators mean, and every rule, is judged elsewhere (`oracles.py`, `test_*.py`). The library is unknown here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from case import (
    HALF_PRECISION,
    Array,
    Case,
    Values,
    away,
    cases,
    distinct,
    float0,
    float32s,
    floats,
    int0,
    ints,
    positive,
    signed,
    wide,
)
from case import moved as _moved
from cases_indexed import indexed
from cases_more import more
from cases_recurrent import recurrences
from hypothesis import assume
from hypothesis import strategies as st
from onnx import TensorProto

# --------------------------------------------------------------------------- linear operators


def _conv(name: str, attributes: str, x: Values, w: Sequence[int], bias: bool = True, **options: Any) -> Iterator[Case]:
    operator = options.pop("operator", "Conv")
    channels = w[0] if operator == "Conv" else w[1] * options.pop("group", 1)
    constants = {"w": signed(*w)} | ({"b": signed(channels)} if bias else {})
    text = f"y = {operator}<{attributes}>(x, w{', b' if bias else ''})"
    yield from cases(name, text, {"x": x}, constants, role="linear", linear=True, **options)


def convolutions() -> Iterator[Case]:
    """Conv in 1-D, 2-D and 3-D."""
    yield from _conv("conv", "", signed(2, 3, 7, 8), (4, 3, 3, 3), opset=(9, 11, 17, 22))
    yield from _conv("conv-no-bias", "", signed(2, 3, 7, 8), (4, 3, 3, 3), bias=False)
    yield from _conv("conv-kernel-shape-said", "kernel_shape=[3,2]", signed(1, 2, 5, 5), (3, 2, 3, 2))
    yield from _conv("conv-same-size", "pads=[1,1,1,1]", signed(2, 3, 5, 6), (4, 3, 3, 3))
    yield from _conv("conv-pads-asymmetric", "pads=[1,0,2,1]", signed(2, 3, 6, 5), (4, 3, 3, 2))
    yield from _conv("conv-pads-beyond-kernel", "pads=[3,2,4,3]", signed(1, 2, 4, 4), (3, 2, 2, 2))
    yield from _conv("conv-pads-beyond-kernel-stride", "pads=[3,2,4,3],strides=[2,3]", signed(1, 2, 4, 4), (3, 2, 2, 2))
    yield from _conv("conv-stride-2", "strides=[2,2],pads=[1,1,1,1]", signed(2, 3, 7, 8), (4, 3, 3, 3))
    yield from _conv("conv-stride-2-stem", "strides=[2,2],pads=[3,3,3,3]", signed(1, 3, 12, 13), (4, 3, 7, 7))
    yield from _conv("conv-strides-differ", "strides=[2,1]", signed(2, 2, 8, 7), (3, 2, 3, 5))
    yield from _conv("conv-stride-over-kernel", "strides=[3,3]", signed(2, 2, 10, 9), (3, 2, 2, 2))
    yield from _conv("conv-1x1", "", signed(2, 3, 4, 5), (4, 3, 1, 1))
    yield from _conv("conv-1x1-stride-2", "strides=[2,2]", signed(2, 3, 6, 5), (4, 3, 1, 1), bias=False)
    yield from _conv("conv-1x1-padded", "pads=[1,1,1,1]", signed(1, 2, 3, 3), (2, 2, 1, 1))
    yield from _conv("conv-dilated", "dilations=[2,3],pads=[2,1,2,2]", signed(1, 2, 8, 9), (3, 2, 3, 3))
    yield from _conv(
        "conv-dilated-stride", "dilations=[2,2],strides=[2,2],pads=[1,1,0,1]", signed(1, 2, 9, 8), (3, 2, 3, 2)
    )
    yield from _conv("conv-groups", "group=2,pads=[1,1,1,1]", signed(2, 4, 5, 5), (6, 2, 3, 3))
    yield from _conv("conv-groups-stride", "group=3,strides=[2,2],pads=[1,0,1,0]", signed(2, 6, 6, 7), (3, 2, 3, 3))
    yield from _conv("conv-depthwise", "group=4,pads=[1,1,1,1]", signed(2, 4, 5, 6), (4, 1, 3, 3))
    yield from _conv("conv-depthwise-doubled", "group=3,strides=[2,2],pads=[1,1,1,1]", signed(2, 3, 6, 6), (6, 1, 3, 3))
    yield from _conv(
        "conv-depthwise-dilated", "group=2,dilations=[2,2],pads=[2,2,2,2]", signed(1, 2, 6, 6), (2, 1, 3, 3)
    )
    yield from _conv("conv-same-upper", 'auto_pad="SAME_UPPER",strides=[2,2]', signed(2, 2, 7, 8), (3, 2, 3, 4))
    yield from _conv("conv-same-lower", 'auto_pad="SAME_LOWER",strides=[2,3]', signed(2, 2, 8, 9), (3, 2, 4, 2))
    yield from _conv("conv-same-upper-even", 'auto_pad="SAME_UPPER"', signed(1, 2, 5, 6), (3, 2, 2, 4))
    yield from _conv("conv-same-lower-even", 'auto_pad="SAME_LOWER"', signed(1, 2, 5, 6), (3, 2, 2, 4))
    yield from _conv("conv-valid", 'auto_pad="VALID",strides=[2,2]', signed(2, 2, 8, 6), (3, 2, 3, 3))
    yield from _conv("conv-notset", 'auto_pad="NOTSET",pads=[0,1,0,1]', signed(1, 2, 5, 5), (2, 2, 3, 3))
    yield from _conv("conv-whole-input", "", signed(2, 3, 4, 5), (6, 3, 4, 5))
    yield from _conv("conv-one-pixel", "pads=[1,1,1,1]", signed(2, 2, 1, 1), (3, 2, 3, 3))
    yield from _conv("conv-dynamic-batch", "pads=[1,1,1,1]", signed(3, 2, 5, 5, declared=("N", 2, 5, 5)), (3, 2, 3, 3))
    yield from _conv("conv-1d", "strides=[2],pads=[2,1]", signed(2, 3, 10), (4, 3, 4))
    yield from _conv("conv-1d-dilated-groups", "dilations=[3],group=2,pads=[3,3]", signed(2, 4, 9), (4, 2, 3))
    yield from _conv("conv-1d-same-lower", 'auto_pad="SAME_LOWER",strides=[2]', signed(2, 2, 9), (3, 2, 4))
    yield from _conv("conv-3d", "strides=[1,2,1],pads=[1,0,1,0,1,1]", signed(1, 2, 3, 5, 4), (3, 2, 2, 3, 2))
    yield from _conv("conv-3d-depthwise", "group=2,pads=[1,1,1,1,1,1]", signed(1, 2, 3, 3, 4), (2, 1, 3, 3, 3))


def transposed_convolutions() -> Iterator[Case]:
    """ConvTranspose; the weight is [in channels, out channels / group, *kernel]."""

    def case(name: str, attributes: str, x: Values, w: Sequence[int], **options: Any) -> Iterator[Case]:
        yield from _conv(f"convtranspose{name}", attributes, x, w, operator="ConvTranspose", **options)

    yield from case("", "", signed(2, 3, 4, 5), (3, 4, 3, 3), opset=(9, 11, 17, 22))
    yield from case("-no-bias", "strides=[2,2]", signed(2, 3, 4, 4), (3, 4, 2, 2), bias=False)
    yield from case("-decoder", "strides=[2,2],pads=[1,1,1,1]", signed(1, 2, 4, 5), (2, 3, 4, 4))
    yield from case(
        "-output-padding", "strides=[2,2],pads=[1,1,1,1],output_padding=[1,1]", signed(1, 2, 3, 4), (2, 3, 3, 3)
    )
    yield from case("-output-padding-one-axis", "strides=[3,2],output_padding=[2,0]", signed(1, 2, 3, 3), (2, 2, 3, 3))
    yield from case("-output-shape", "strides=[2,2],output_shape=[8,9]", signed(1, 2, 4, 4), (2, 3, 3, 3))
    yield from case("-same-upper", 'auto_pad="SAME_UPPER",strides=[2,2]', signed(1, 2, 3, 4), (2, 3, 3, 3))
    yield from case("-same-lower", 'auto_pad="SAME_LOWER",strides=[2,2]', signed(1, 2, 3, 4), (2, 3, 3, 3))
    yield from case("-pads-asymmetric", "strides=[2,2],pads=[1,0,2,1]", signed(1, 2, 4, 4), (2, 3, 4, 3))
    yield from case("-stride-over-kernel", "strides=[3,4]", signed(1, 2, 3, 3), (2, 2, 2, 2))
    yield from case("-dilated", "dilations=[2,3],pads=[1,1,0,2]", signed(1, 2, 4, 4), (2, 3, 2, 2))
    yield from case("-dilated-stride", "dilations=[2,2],strides=[2,3]", signed(1, 2, 3, 3), (2, 3, 2, 2))
    yield from case("-groups", "group=2,strides=[2,2],pads=[1,1,1,1]", signed(2, 4, 3, 4), (4, 3, 3, 3), group=2)
    yield from case("-depthwise", "group=3,strides=[2,2]", signed(1, 3, 3, 3), (3, 1, 2, 2), group=3)
    yield from case("-1d", "strides=[2],pads=[1,0],output_padding=[1]", signed(2, 2, 5), (2, 3, 4))
    yield from case("-3d", "strides=[1,2,2]", signed(1, 2, 2, 2, 3), (2, 2, 2, 2, 3))


def dense_layers() -> Iterator[Case]:
    """Gemm in every form, MatMul with the constant on either side."""

    def gemm(
        name: str, attributes: str, x: Values, w: Sequence[int], b: Sequence[int] | None, **o: Any
    ) -> Iterator[Case]:
        constants = {"w": signed(*w)} | ({} if b is None else {"b": signed(*b)})
        text = f"y = Gemm<{attributes}>(x, w{'' if b is None else ', b'})"
        yield from cases(f"gemm{name}", text, {"x": x}, constants, role="linear", linear=True, **o)

    yield from gemm("", "", signed(3, 5), (5, 4), (4,), opset=(9, 11, 13, 17))
    yield from gemm("-trans-b", "transB=1", signed(3, 5), (4, 5), (4,))
    yield from gemm("-trans-a", "transA=1", signed(5, 3), (5, 4), (4,))
    yield from gemm("-trans-both", "transA=1,transB=1", signed(5, 3), (4, 5), (4,))
    yield from gemm("-alpha-beta", "alpha=0.5,beta=-1.5,transB=1", signed(3, 5), (4, 5), (4,))
    yield from gemm("-beta-zero", "beta=0.0", signed(3, 5), (5, 4), (4,))
    yield from gemm("-no-bias", "transB=1", signed(3, 5), (4, 5), None)
    yield from gemm("-bias-row", "", signed(3, 5), (5, 4), (1, 4))
    yield from gemm("-bias-column", "", signed(3, 5), (5, 4), (3, 1))
    yield from gemm("-bias-full", "beta=2.0", signed(3, 5), (5, 4), (3, 4))
    yield from gemm("-bias-one", "", signed(3, 5), (5, 4), (1,))
    yield from gemm("-bias-scalar", "", signed(3, 5), (5, 4), ())
    yield from gemm("-dynamic-batch", "transB=1", signed(3, 5, declared=("N", 5)), (4, 5), (4,))
    yield from cases(
        "gemm-constant-left", "y = Gemm(w, x, b)", {"x": signed(5, 3)}, {"w": signed(4, 5), "b": signed(3)},
        role="linear", linear=True, optional=True,
    )  # fmt: skip
    yield from cases(
        "gemm-bias-active", "y = Gemm<beta=0.5>(x, w, c)", {"x": signed(3, 5), "c": signed(4)}, {"w": signed(5, 4)},
        role="linear", linear=True, optional=True,
    )  # fmt: skip

    def matmul(name: str, x: Values, w: Values, **options: Any) -> Iterator[Case]:
        swapped = options.pop("left", False)
        text = f"y = MatMul({'w, x' if swapped else 'x, w'})"
        yield from cases(f"matmul{name}", text, {"x": x}, {"w": w}, role="linear", linear=True, **options)

    yield from matmul("", signed(3, 5), signed(5, 4), opset=(9, 13, 17))
    yield from matmul("-tokens", signed(2, 3, 5), signed(5, 4))
    yield from matmul("-tokens-dynamic", signed(2, 3, 5, declared=("N", 3, 5)), signed(5, 4))
    yield from matmul("-constant-left", signed(2, 3, 5), signed(4, 3), left=True)
    yield from matmul("-constant-left-2d", signed(3, 5), signed(4, 3), left=True)
    yield from matmul("-constant-batched", signed(2, 3, 4, 5), signed(3, 5, 2))
    yield from matmul("-constant-brings-batch", signed(4, 5), signed(3, 5, 2))
    yield from matmul("-constant-left-batched", signed(2, 3, 5), signed(2, 4, 3), left=True)
    yield from matmul("-constant-left-brings-batch", signed(3, 5), signed(2, 4, 3), left=True)
    yield from matmul("-batch-broadcast", signed(1, 4, 5), signed(3, 5, 2))
    yield from matmul("-vector-left", signed(5), signed(5, 4))
    yield from matmul("-vector-right", signed(3, 5), signed(5))
    yield from matmul("-vector-right-batched", signed(2, 3, 5), signed(5))
    yield from matmul("-constant-vector-left", signed(5, 3), signed(5), left=True)
    yield from matmul("-dot", signed(5), signed(5))
    yield from cases(
        "matmul-bias", "t = MatMul(x, w); y = Add(t, b)", {"x": signed(3, 5)}, {"w": signed(5, 4), "b": signed(4)},
        role="linear", linear=True,
    )  # fmt: skip
    two = {"a": signed(2, 3, 4), "b": signed(2, 4, 5)}
    yield from cases("matmul-active-active", "y = MatMul(a, b)", two, role="product", optional=True)
    two = {"a": signed(2, 1, 3, 4), "b": signed(3, 4, 2)}
    yield from cases("matmul-active-active-broadcast", "y = MatMul(a, b)", two, role="product", optional=True)


# --------------------------------------------------------------------------- pooling


def max_pools() -> Iterator[Case]:
    """MaxPool and GlobalMaxPool on values without ties."""

    def case(name: str, attributes: str, x: Values, **options: Any) -> Iterator[Case]:
        yield from cases(f"maxpool{name}", f"y = MaxPool<{attributes}>(x)", {"x": x}, role="selection", **options)

    yield from case("", "kernel_shape=[2,2],strides=[2,2]", distinct(2, 3, 6, 8), opset=(8, 10, 11, 12, 17, 22))
    yield from case("-remainder", "kernel_shape=[2,2],strides=[2,2]", distinct(2, 2, 7, 5))
    yield from case("-default-strides", "kernel_shape=[3,2]", distinct(1, 2, 5, 5))
    yield from case("-overlapping", "kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]", distinct(2, 2, 7, 8))
    yield from case("-overlapping-odd", "kernel_shape=[3,3],strides=[2,1],pads=[0,1,1,0]", distinct(1, 2, 6, 5))
    negative = Values((2, 2, 5, 5), "negative")
    yield from case("-negative-padded", "kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]", negative)
    yield from case("-gaps", "kernel_shape=[2,2],strides=[3,3]", distinct(1, 2, 8, 9))
    yield from case("-ceil", "kernel_shape=[2,2],strides=[2,2],ceil_mode=1", distinct(1, 2, 5, 7), opset=(10, 17))
    yield from case("-ceil-overlapping", "kernel_shape=[3,3],strides=[2,2],ceil_mode=1", distinct(1, 2, 6, 8))
    yield from case("-ceil-padded", "kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1],ceil_mode=1", distinct(1, 2, 6, 7))
    # on the second axis a fifth window would start behind the input; on the first the fourth reaches past the pads
    late = "kernel_shape=[2,2],strides=[2,2],pads=[0,1,0,1],ceil_mode=1"
    yield from case("-ceil-late", late, Values((2, 2, 7, 7), "distinct", declared=("N", 2, 7, 7)))
    yield from case("-dilated", "kernel_shape=[2,3],dilations=[2,2]", distinct(1, 2, 6, 7))
    yield from case(
        "-dilated-stride", "kernel_shape=[2,2],dilations=[3,2],strides=[2,2],pads=[1,1,1,1]", distinct(1, 2, 8, 7)
    )
    yield from case(
        "-dilated-ceil", "kernel_shape=[2,2],dilations=[2,2],strides=[2,2],ceil_mode=1", distinct(1, 2, 8, 7)
    )
    yield from case("-same-upper", 'auto_pad="SAME_UPPER",kernel_shape=[3,2],strides=[2,2]', distinct(1, 2, 6, 7))
    yield from case("-same-lower", 'auto_pad="SAME_LOWER",kernel_shape=[3,2],strides=[2,2]', distinct(1, 2, 6, 7))
    yield from case("-valid", 'auto_pad="VALID",kernel_shape=[3,3],strides=[2,2]', distinct(1, 2, 6, 8))
    yield from case("-whole", "kernel_shape=[4,5]", distinct(2, 2, 4, 5))
    yield from case("-1x1", "kernel_shape=[1,1],strides=[2,2]", distinct(1, 2, 4, 5))
    yield from case("-1d", "kernel_shape=[3],strides=[2],pads=[1,1]", distinct(2, 3, 9))
    yield from case("-1d-dilated", "kernel_shape=[3],dilations=[2]", distinct(2, 2, 9))
    yield from case("-3d", "kernel_shape=[2,2,2],strides=[2,1,2],pads=[0,1,0,0,0,1]", distinct(1, 2, 4, 3, 5))
    yield from case(
        "-dynamic-batch", "kernel_shape=[3,3],strides=[2,2]", Values((3, 2, 7, 7), "distinct", declared=("N", 2, 7, 7))
    )
    x = {"x": distinct(1, 2, 6, 6)}
    indices = "y, indices = MaxPool<kernel_shape=[2,2],strides=[2,2]{}>(x)"
    yield from cases("maxpool-indices-unused", indices.format(""), x, role="selection")
    yield from cases(
        "maxpool-indices-kept", indices.format(""), x, others={"indices": TensorProto.INT64}, role="selection"
    )
    yield from cases("maxpool-storage-order", indices.format(",storage_order=1"), x, role="selection")
    for name, shape in {"1d": (2, 3, 5), "2d": (2, 3, 4, 5), "3d": (1, 2, 2, 3, 2)}.items():
        yield from cases(f"globalmaxpool-{name}", "y = GlobalMaxPool(x)", {"x": distinct(*shape)}, role="selection")


def average_pools() -> Iterator[Case]:
    """AveragePool, GlobalAveragePool, and LpPool."""

    def case(name: str, attributes: str, x: Values, **options: Any) -> Iterator[Case]:
        text = f"y = AveragePool<{attributes}>(x)"
        yield from cases(f"averagepool{name}", text, {"x": x}, role="linear", linear=True, **options)

    yield from case("", "kernel_shape=[2,2],strides=[2,2]", signed(2, 3, 6, 8), opset=(9, 10, 11, 17, 19, 22))
    yield from case("-remainder", "kernel_shape=[2,3],strides=[2,2]", signed(2, 2, 7, 6))
    yield from case("-default-strides", "kernel_shape=[3,2]", signed(1, 2, 5, 5))
    padded = "kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]"
    yield from case("-padded", padded, signed(2, 2, 7, 8))
    yield from case("-padded-count", padded + ",count_include_pad=1", signed(2, 2, 7, 8))
    yield from case("-pads-asymmetric", "kernel_shape=[3,3],pads=[0,1,2,1]", signed(1, 2, 5, 5))
    yield from case(
        "-pads-asymmetric-count", "kernel_shape=[3,3],pads=[0,1,2,1],count_include_pad=1", signed(1, 2, 5, 5)
    )
    yield from case("-gaps", "kernel_shape=[2,2],strides=[3,3]", signed(1, 2, 8, 9))
    yield from case("-ceil", "kernel_shape=[2,2],strides=[2,2],ceil_mode=1", signed(1, 2, 5, 7), opset=(10, 19))
    yield from case("-ceil-padded", padded + ",ceil_mode=1", signed(1, 2, 6, 8))
    yield from case("-ceil-late", "kernel_shape=[2,2],strides=[2,2],pads=[1,1,1,1],ceil_mode=1", signed(1, 2, 7, 7))
    # The last window's divisor leaves out what ceil_mode adds behind the padding; opset 19's text settled that.
    yield from case("-ceil-padded-count", padded + ",ceil_mode=1,count_include_pad=1", signed(1, 2, 6, 8), opset=19)
    yield from case("-dilated", "kernel_shape=[2,3],dilations=[2,2]", signed(1, 2, 6, 7), opset=19)
    yield from case(
        "-dilated-padded",
        "kernel_shape=[2,2],dilations=[3,2],strides=[2,2],pads=[1,1,1,1]",
        signed(1, 2, 8, 7),
        opset=19,
    )
    count = "kernel_shape=[2,2],dilations=[2,2],pads=[1,1,1,1],count_include_pad=1"
    yield from case("-dilated-count", count, signed(1, 2, 5, 6), opset=22)
    yield from case("-same-upper", 'auto_pad="SAME_UPPER",kernel_shape=[3,2],strides=[2,2]', signed(1, 2, 6, 7))
    yield from case("-same-lower", 'auto_pad="SAME_LOWER",kernel_shape=[3,2],strides=[2,2]', signed(1, 2, 6, 7))
    yield from case(
        "-same-upper-count", 'auto_pad="SAME_UPPER",kernel_shape=[3,3],count_include_pad=1', signed(1, 2, 4, 5)
    )
    yield from case("-valid", 'auto_pad="VALID",kernel_shape=[3,3],strides=[2,2]', signed(1, 2, 6, 8))
    yield from case("-1d", "kernel_shape=[3],strides=[2],pads=[1,0]", signed(2, 3, 9))
    yield from case("-3d", "kernel_shape=[2,2,2],strides=[2,1,2],pads=[0,1,0,0,0,1]", signed(1, 2, 4, 3, 5))
    yield from case("-dynamic-batch", padded, signed(3, 2, 7, 7, declared=("N", 2, 7, 7)))
    for name, shape in {"1d": (2, 3, 5), "2d": (2, 3, 4, 5), "3d": (1, 2, 2, 3, 2)}.items():
        text = "y = GlobalAveragePool(x)"
        yield from cases(f"globalaveragepool-{name}", text, {"x": signed(*shape)}, role="linear", linear=True)
    lp = "y = LpPool<kernel_shape=[2,2],strides=[2,2],p=2>(x)"
    yield from cases("lppool", lp, {"x": away(1, 2, 4, 5)}, opset=18, role="normalization", optional=True)


# --------------------------------------------------------------------------- normalisation


def normalizations() -> Iterator[Case]:
    """BatchNormalization in inference, InstanceNormalization, LRN, Softmax and their relatives."""
    statistics = {"s": signed(3), "b": signed(3), "m": signed(3), "v": positive(3)}
    # 2^-7: a number whose float32, which is what the file keeps, is its decimal, too.
    batch = "y = BatchNormalization<epsilon=0.0078125>(x, s, b, m, v)"
    for name, shape in {"-1d": (2, 3, 5), "": (2, 3, 4, 3), "-3d": (1, 3, 2, 2, 3), "-features": (4, 3)}.items():
        opsets: Sequence[int] = (7, 9, 14, 15, 17) if not name else (17,)
        yield from cases(
            f"batchnorm{name}", batch, {"x": signed(*shape)}, statistics, opset=opsets, role="linear", linear=True
        )
    yield from cases(
        "batchnorm-behind-conv",
        "t = Conv<pads=[1,1,1,1]>(x, w); y = BatchNormalization<epsilon=0.0078125>(t, s, b, m, v)",
        {"x": signed(2, 2, 4, 5)}, statistics | {"w": signed(3, 2, 3, 3)}, role="linear", linear=True,
    )  # fmt: skip
    yield from cases(
        "batchnorm-before-conv",
        "t = BatchNormalization<epsilon=0.0078125>(x, s, b, m, v); y = Conv<pads=[1,1,1,1]>(t, w)",
        {"x": signed(2, 3, 4, 5)}, statistics | {"w": signed(2, 3, 3, 3)}, role="linear", linear=True,
    )  # fmt: skip
    yield from cases(
        "batchnorm-behind-gemm", "t = Gemm(x, w, c); y = BatchNormalization<epsilon=0.0078125>(t, s, b, m, v)",
        {"x": signed(4, 5)}, statistics | {"w": signed(5, 3), "c": signed(3)}, role="linear", linear=True,
    )  # fmt: skip
    yield from cases(
        "batchnorm-computed-statistics",
        "m = ReduceMean<axes=[0,2,3],keepdims=0>(x); a = Abs(m); v = Exp(a);"
        " y = BatchNormalization<epsilon=0.0078125>(x, s, b, m, v)",
        {"x": signed(2, 3, 4, 3)}, {"s": signed(3), "b": signed(3)}, role="normalization",
    )  # fmt: skip
    affine = {"s": signed(3), "b": signed(3)}
    instance = "y = InstanceNormalization<epsilon=0.0078125>(x, s, b)"
    for name, shape in {"-1d": (2, 3, 6), "": (2, 3, 3, 4), "-3d": (1, 3, 2, 3, 2)}.items():
        opsets = (9, 17, 22) if not name else (17,)
        yield from cases(
            f"instancenorm{name}", instance, {"x": signed(*shape)}, affine, opset=opsets, role="normalization"
        )
    for size in (1, 3, 5):
        text = f"y = LRN<size={size},alpha=0.9,beta=0.6,bias=1.5>(x)"
        yield from cases(f"lrn-{size}", text, {"x": signed(2, 6, 3, 2)}, role="normalization")
    yield from cases(
        "lrn-defaults", "y = LRN<size=5>(x)", {"x": signed(1, 7, 2, 3)}, opset=(9, 13), role="normalization"
    )
    yield from _softmaxes()
    yield from cases(
        "meanvariancenorm", "y = MeanVarianceNormalization<axes=[0,2,3]>(x)", {"x": signed(2, 3, 3, 2)},
        role="normalization", optional=True, only_float32="the standard expands it with a float32 constant",
    )  # fmt: skip
    yield from cases(
        "rmsnorm", "y = RMSNormalization<axis=-1>(x, s)", {"x": signed(2, 4, 5)}, {"s": signed(5)}, opset=23,
        role="normalization", optional=True,
    )  # fmt: skip
    yield from cases(
        "layernorm", "y = LayerNormalization<axis=-1>(x, s, b)", {"x": signed(2, 4, 5)},
        {"s": signed(5), "b": signed(5)}, role="normalization", optional=True,
    )  # fmt: skip
    group = "y = GroupNormalization<num_groups=2,stash_type=FLOAT>(x, s, b)"
    per_channel: dict[str, Any] = {"opset": 21, "role": "normalization"}
    affine = {"s": signed(4), "b": signed(4)}
    yield from cases("groupnorm", group, {"x": signed(2, 4, 3, 3)}, affine, declared=(2, 4, 3, 3), **per_channel)
    yield from cases("groupnorm-1d", group, {"x": signed(2, 4, 6)}, affine, declared=(2, 4, 6), **per_channel)
    yield from cases(
        "groupnorm-3d", group, {"x": signed(1, 4, 2, 3, 2)}, affine, declared=(1, 4, 2, 3, 2), **per_channel
    )
    yield from cases(
        "groupnorm-each-channel", "y = GroupNormalization<num_groups=4,stash_type=FLOAT>(x, s, b)", {"x": signed(2, 4, 3, 3)}, affine,
        declared=(2, 4, 3, 3), **per_channel,
    )  # fmt: skip


def _softmaxes() -> Iterator[Case]:
    for operator in ("Softmax", "LogSoftmax"):
        name, four = operator.lower(), {"x": signed(2, 3, 2, 4)}
        options: dict[str, Any] = {"role": "normalization"}
        yield from cases(name, f"y = {operator}(x)", {"x": signed(3, 5)}, opset=(9, 11, 13, 17), **options)
        # Before opset 13 everything from the axis on is one distribution; since then it is the axis alone.
        yield from cases(f"{name}-default-axis-4d", f"y = {operator}(x)", four, opset=(11, 13), **options)
        yield from cases(f"{name}-axis-1", f"y = {operator}<axis=1>(x)", four, opset=(11, 13), **options)
        yield from cases(f"{name}-axis-2", f"y = {operator}<axis=2>(x)", four, opset=(11, 13), **options)
        yield from cases(f"{name}-axis-negative", f"y = {operator}<axis=-2>(x)", four, opset=13, **options)
        yield from cases(f"{name}-wide", f"y = {operator}(x)", {"x": wide(4, 6)}, **options)
        dynamic = {"x": signed(3, 4, 2, declared=("N", 4, 2))}
        yield from cases(f"{name}-dynamic-batch", f"y = {operator}<axis=1>(x)", dynamic, opset=(11, 13), **options)


# --------------------------------------------------------------------------- elementwise


def activations() -> Iterator[Case]:
    """Every elementwise function of one tensor, with non-default attributes where it has any."""

    def case(name: str, call: str, x: Values | None = None, **options: Any) -> Iterator[Case]:
        x = away(2, 3, 4) if x is None else x
        yield from cases(name, f"y = {call}", {"x": x}, options.pop("constants", None), role="pointwise", **options)

    yield from case("relu", "Relu(x)", opset=(9, 13, 14, 17))
    yield from case("relu-dynamic-batch", "Relu(x)", signed(3, 4, kinks=(0.0,), declared=("N", 4)))
    yield from case("leakyrelu", "LeakyRelu(x)", opset=(9, 16))
    yield from case("leakyrelu-alpha", "LeakyRelu<alpha=0.3>(x)")
    yield from case("leakyrelu-negative-alpha", "LeakyRelu<alpha=-0.3>(x)")
    channel = {"slope": signed(3, 1, 1)}
    yield from case("prelu-channel", "PRelu(x, slope)", away(2, 3, 2, 3), constants=channel, opset=(9, 16))
    yield from case("prelu-scalar", "PRelu(x, slope)", constants={"slope": floats(0.25)})
    yield from case("prelu-full", "PRelu(x, slope)", constants={"slope": signed(2, 3, 4)})
    yield from case("prelu-last-axis", "PRelu(x, slope)", constants={"slope": signed(4)})
    bounds = signed(3, 8, kinks=(-0.5, 0.75))
    both = {"low": float0(-0.5), "high": float0(0.75)}
    yield from case("clip-attributes", "Clip<min=-0.5,max=0.75>(x)", bounds, opset=(6, 9))
    yield from case("clip-attribute-min", "Clip<min=0.0>(x)", opset=9)
    yield from case("clip-inputs", "Clip(x, low, high)", bounds, constants=both, opset=(11, 12, 17))
    yield from case("clip-only-min", "Clip(x, low)", bounds, constants={"low": both["low"]})
    yield from case("clip-only-max", 'Clip(x, "", high)', bounds, constants={"high": both["high"]})
    yield from case("clip-no-bounds", "Clip(x)", linear=True)
    six = {"low": float0(0.0), "high": float0(6.0)}
    yield from case("clip-relu6", "Clip(x, low, high)", Values((6, 7), "wide", (0.0, 6.0)), constants=six)
    for name, call in {"elu": "Elu(x)", "elu-alpha": "Elu<alpha=0.7>(x)", "selu": "Selu(x)"}.items():
        yield from case(name, call)
        yield from case(f"{name}-wide", call, wide(5, 5))
    single: dict[str, Any] = {"only_float32": "Celu is defined for float32 alone"}
    yield from case("celu", "Celu(x)", opset=(12, 17), **single)
    yield from case("celu-wide", "Celu(x)", wide(5, 5), **single)
    yield from case("selu-attributes", "Selu<alpha=1.3,gamma=0.8>(x)")
    yield from case("celu-alpha", "Celu<alpha=2.5>(x)", **single)
    yield from case("thresholdedrelu", "ThresholdedRelu<alpha=0.6>(x)", signed(3, 8, kinks=(0.6,)), optional=True)
    yield from case("hardsigmoid", "HardSigmoid(x)", Values((6, 7), "wide", (-2.5, 2.5)))
    yield from case("hardsigmoid-attributes", "HardSigmoid<alpha=0.8,beta=0.3>(x)", signed(4, 8, kinks=(-0.375, 0.875)))
    yield from case("hardswish", "HardSwish(x)", signed(4, 8, kinks=(-3.0, 3.0)))
    yield from case("hardswish-wide", "HardSwish(x)", Values((6, 7), "wide", (-3.0, 3.0)))
    for operator in ("Sigmoid", "Tanh", "Softplus", "Softsign", "Erf"):
        yield from case(
            operator.lower(), f"{operator}(x)", opset=(9, 13, 17) if operator != "Softsign" else (9, 17, 22)
        )
        yield from case(f"{operator.lower()}-wide", f"{operator}(x)", wide(5, 5))
    yield from case("mish", "Mish(x)", opset=(18, 22))
    yield from case("mish-wide", "Mish(x)", wide(5, 5), opset=18)
    yield from case("gelu-erf", "Gelu(x)", opset=20)
    yield from case("gelu-tanh", 'Gelu<approximate="tanh">(x)', opset=20)
    yield from case("gelu-erf-wide", "Gelu(x)", wide(5, 5), opset=20)
    yield from case("gelu-tanh-wide", 'Gelu<approximate="tanh">(x)', wide(5, 5), opset=20)
    yield from case("exp", "Exp(x)", opset=(9, 13))
    yield from case("log", "Log(x)", positive(2, 7), opset=(9, 13))
    yield from case("sqrt", "Sqrt(x)", positive(2, 7), opset=(9, 13))
    yield from case("abs", "Abs(x)", opset=(9, 13))
    yield from case("neg", "Neg(x)", opset=(9, 13), linear=True)
    yield from case("reciprocal", "Reciprocal(x)", Values((2, 7), "negative"), opset=(9, 13))
    yield from _powers()
    for operator in ("Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh"):
        yield from case(operator.lower(), f"{operator}(x)", optional=True)
    for operator in ("Asin", "Acos", "Atanh"):
        yield from case(operator.lower(), f"{operator}(x)", Values((3, 5), "unit"), optional=True)
    yield from case("acosh", "Acosh(x)", Values((3, 5), "over"), optional=True)
    yield from case("shrink", "Shrink<lambd=0.4,bias=0.1>(x)", signed(3, 7, kinks=(-0.4, 0.4)), optional=True)
    yield from case("swish", "Swish<alpha=1.5>(x)", opset=24, optional=True)
    yield from _composed_activations()


def _powers() -> Iterator[Case]:
    def case(name: str, x: Values, exponent: Array, **options: Any) -> Iterator[Case]:
        yield from cases(f"pow-{name}", "y = Pow(x, p)", {"x": x}, {"p": exponent}, role="pointwise", **options)

    yield from case("square", away(2, 7), float0(2.0), opset=(9, 12, 13, 15))
    yield from case("cube", away(2, 7), float0(3.0))
    yield from case("root", positive(2, 7), float0(0.5))
    yield from case("inverse", Values((2, 7), "negative"), float0(-1.0))
    yield from case("zero", away(2, 7), float0(0.0))
    yield from case("one", away(2, 7), float0(1.0))
    yield from case("integer-exponent", away(2, 7), int0(3), opset=(12, 15))
    yield from case("exponent-per-column", positive(2, 3), floats(2.0, 0.5, -1.5))
    yield from case("exponent-brings-rank", positive(3), np.array([[2.0], [0.5]]))
    both = {"a": positive(2, 3), "b": signed(3)}
    yield from cases("pow-active-active", "y = Pow(a, b)", both, role="pointwise", optional=True)
    base = {"c": positive(3)}
    yield from cases("pow-constant-base", "y = Pow(c, x)", {"x": signed(2, 3)}, base, role="pointwise", optional=True)


def _composed_activations() -> Iterator[Case]:
    """Activations as exporters spell them out."""
    x = {"x": away(2, 3, 4)}
    yield from cases("silu", "s = Sigmoid(x); y = Mul(x, s)", x, role="product")
    erf = "d = Div(x, root); e = Erf(d); p = Add(e, one); m = Mul(x, p); y = Mul(m, half)"
    numbers = {"root": float0(2**0.5), "one": float0(1.0), "half": float0(0.5)}
    yield from cases("gelu-chain", erf, x, numbers, role="product")
    hard = "p = Add(x, three); c = Clip(p, zero, six); m = Mul(x, c); y = Div(m, six)"
    numbers = {"three": float0(3.0), "zero": float0(0.0), "six": float0(6.0)}
    yield from cases("hardswish-chain", hard, {"x": signed(3, 7, kinks=(-3.0, 3.0))}, numbers, role="product")
    yield from cases("mish-chain", "p = Softplus(x); t = Tanh(p); y = Mul(x, t)", x, role="product")
    gate = "g = GlobalAveragePool(x); h = Conv(g, w); s = HardSigmoid(h); y = Mul(x, s)"
    yield from cases("squeeze-excite", gate, {"x": signed(2, 3, 4, 4)}, {"w": signed(3, 3, 1, 1)}, role="product")
    yield from _longer_chains()
    yield from cases(
        "layernorm-chain",
        "m = ReduceMean<axes=[-1]>(x); d = Sub(x, m); q = Pow(d, two); v = ReduceMean<axes=[-1]>(q); e = Add(v, eps);"
        " s = Sqrt(e); n = Div(d, s); y = Mul(n, w)",
        {"x": signed(2, 3, 5)}, {"two": float0(2.0), "eps": float0(1e-3), "w": signed(5)}, role="product",
    )  # fmt: skip


def _longer_chains() -> Iterator[Case]:
    """One operator each, which the library recognises; how it does so is judged in `test_recognise.py`."""
    x = {"x": away(2, 3, 4)}
    cubic = (
        "c = Pow(x, three); k = Mul(c, small); s = Add(x, k); t = Mul(s, root); h = Tanh(t); p = Add(one, h);"
        " m = Mul(half, x); y = Mul(m, p)"
    )
    numbers = {"three": float0(3.0), "small": float0(0.044715), "root": float0((2 / np.pi) ** 0.5), "one": float0(1.0)}
    yield from cases("gelu-tanh-chain", cubic, x, numbers | {"half": float0(0.5)}, role="pointwise")
    quick = "a = Mul(alpha, x); s = Sigmoid(a); y = Mul(s, x)"
    yield from cases("quick-gelu-chain", quick, x, {"alpha": float0(1.702)}, role="pointwise")
    rms = "q = Mul(x, x); m = ReduceMean<axes=[-1]>(q); e = Add(eps, m); s = Sqrt(e); i = Reciprocal(s); n = Mul(x, i); y = Mul(w, n)"
    yield from cases(
        "rmsnorm-chain", rms, {"x": signed(2, 3, 5)}, {"eps": float0(1e-3), "w": signed(5)}, role="normalization"
    )
    moments = (
        "m = ReduceMean<axes=[1],keepdims=1>(x); d = Sub(x, m); q = Mul(d, d); v = ReduceMean<axes=[1],keepdims=1>(q);"
        " e = Add(v, eps); s = Sqrt(e); r = Reciprocal(s); g = Mul(r, w); mg = Mul(m, g); o = Sub(b, mg); xg = Mul(x, g);"
        " y = Add(xg, o)"
    )
    yield from cases(
        "layernorm-moments-axis-1", moments, {"x": signed(2, 5, 3)},
        {"eps": float0(1e-3), "w": signed(5, 1), "b": signed(5, 1)}, role="normalization",
    )  # fmt: skip
    soft = "h = ReduceMax<axes=[-1]>(x); l = Sub(x, h); e = Exp(l); t = ReduceSum(e, axis); y = Div(e, t)"
    yield from cases("softmax-chain", soft, {"x": distinct(3, 5)}, {"axis": ints(-1)}, role="normalization")


def contractions() -> Iterator[Case]:
    """Einsum of one, two and three tensors, with constants on either side."""

    def case(name: str, equation: str, inputs: Mapping[str, Values], constants: Any = None, **o: Any) -> Iterator[Case]:
        operands = ", ".join(sorted([*inputs, *(constants or {})]))
        text = f'y = Einsum<equation="{equation}">({operands})'
        yield from cases(f"einsum-{name}", text, inputs, constants, **o)

    linear: dict[str, Any] = {"role": "linear", "linear": True}
    product: dict[str, Any] = {"role": "product"}
    yield from case("attention", "bhid,bhjd->bhij", {"a": signed(2, 2, 3, 4), "b": signed(2, 2, 5, 4)}, **product)
    yield from case("outer", "bi,bj->bij", {"a": signed(2, 3), "b": signed(2, 4)}, **product)
    yield from case("summed-alone", "bij,bk->bk", {"a": signed(2, 3, 2), "b": signed(2, 4)}, **product)
    yield from case("implicit", "ij,jk", {"a": signed(2, 3), "b": signed(3, 4)}, **product)
    yield from case("ellipsis", "...ij,...jk->...ik", {"a": signed(2, 3, 4), "b": signed(2, 4, 2)}, **product)
    yield from case("three", "ij,jk,kl->il", {"a": signed(2, 3), "b": signed(3, 2), "c": signed(2, 4)}, **product)
    yield from case("weight", "bij,jk->bik", {"a": signed(2, 3, 4)}, {"w": signed(4, 5)}, **linear)
    yield from case("weight-left", "kj,bij->bik", {"x": signed(2, 3, 4)}, {"a": signed(5, 4)}, **linear)
    yield from case("permuted", "bij->jbi", {"x": signed(2, 3, 4)}, **linear)
    yield from case("summed", "bij->b", {"x": signed(2, 3, 4)}, **linear)


def arithmetic() -> Iterator[Case]:
    """Add, Sub, Mul, Div, Sum, Mean, Max, Min with broadcasting, constants in any place, and one value used twice."""
    shapes = {
        "": ((2, 3, 4), (2, 3, 4)), "-channel": ((2, 3, 4), (3, 1)), "-outer": ((2, 1, 4), (3, 1)),
        "-scalar": ((2, 3), ()), "-rank": ((3,), (2, 4, 3)), "-ones": ((2, 1, 3), (1, 1, 3)),
    }  # fmt: skip
    for operator in ("Add", "Sub", "Mul", "Div"):
        name, role = operator.lower(), "sum" if operator in ("Add", "Sub") else "product"
        for suffix, (a, b) in shapes.items():
            opset: int | tuple[int, ...] = (9, 13, 14, 17) if not suffix else 17
            affine = operator in ("Add", "Sub")
            right = positive(*b) if operator == "Div" else signed(*b)
            pair, text = {"a": signed(*a), "b": right}, f"y = {operator}(a, b)"
            yield from cases(f"{name}{suffix}", text, pair, role=role, opset=opset, linear=affine)
            yield from cases(
                f"{name}{suffix}-constant-right", text, {"a": signed(*a)}, {"b": right}, role="linear", linear=True
            )
            over = Values(b, "negative") if operator == "Div" else signed(*b)
            linear = operator != "Div"
            yield from cases(
                f"{name}{suffix}-constant-left", text, {"b": over}, {"a": signed(*a)}, role="linear", linear=linear
            )
        twice = {"x": positive(2, 3)}
        linear = operator in ("Add", "Sub")
        yield from cases(f"{name}-itself", f"y = {operator}(x, x)", twice, role=role, linear=linear)
    three = {"a": signed(2, 3), "b": signed(3), "c": signed(2, 1)}
    for operator in ("Sum", "Mean", "Max", "Min"):
        name, affine = operator.lower(), operator in ("Sum", "Mean")
        role = "sum" if affine else "selection"
        one, two = {"a": signed(2, 3)}, {"a": signed(2, 3), "b": signed(2, 3)}
        yield from cases(f"{name}-1", f"y = {operator}(a)", one, role=role, linear=True)
        yield from cases(f"{name}-2", f"y = {operator}(a, b)", two, role=role, linear=affine, opset=(9, 13))
        yield from cases(f"{name}-3", f"y = {operator}(a, b, c)", three, role=role, linear=affine)
        text, constant = f"y = {operator}(a, b, k)", {"k": signed(2, 3)}
        yield from cases(f"{name}-constant", text, two, constant, role=role, linear=affine)
        yield from cases(f"{name}-scalar", f"y = {operator}(k, a)", one, {"k": float0(0.1)}, role=role, linear=affine)
        yield from cases(f"{name}-itself", f"y = {operator}(a, b, a)", two, role=role, linear=affine)
    yield from cases("add-dynamic-batch", "y = Add(a, b)", {
        "a": signed(3, 2, 4, declared=("N", 2, 4)), "b": signed(3, 2, 1, declared=("N", 2, 1)),
    }, role="sum", linear=True)  # fmt: skip
    yield from cases("mul-dynamic-batch", "y = Mul(a, b)", {
        "a": signed(3, 2, 4, declared=("N", 2, 4)), "b": signed(3, 2, 1, declared=("N", 2, 1)),
    }, role="product")  # fmt: skip


def selections() -> Iterator[Case]:
    """Where with a constant condition; ReduceMax is among the reductions, pools and Max among their own."""
    condition = np.array([[True, False, True], [False, False, True]])
    both = {"a": signed(2, 3), "b": signed(2, 3)}
    options: dict[str, Any] = {"role": "selection", "linear": True}
    yield from cases("where", "y = Where(k, a, b)", both, {"k": condition}, opset=(9, 16), **options)
    spread = {"a": signed(3, 1), "b": signed(4, 1, 2)}
    yield from cases("where-broadcast", "y = Where(k, a, b)", spread, {"k": np.array([True, False])}, **options)
    rank = {"a": signed(3), "b": signed(1)}
    yield from cases("where-condition-brings-rank", "y = Where(k, a, b)", rank, {"k": condition}, **options)
    one = {"a": signed(2, 3)}
    yield from cases("where-constant-right", "y = Where(k, a, c)", one, {"k": condition, "c": float0(-9.0)}, **options)
    yield from cases("where-constant-left", "y = Where(k, c, a)", one, {"k": condition, "c": signed(3)}, **options)
    same = {"k": condition}
    yield from cases("where-itself", "n = Neg(a); y = Where(k, a, n)", one, same, **options)


def reductions() -> Iterator[Case]:
    """ReduceMean, ReduceSum, ReduceMax: axes as attribute or input, kept or dropped, absent or empty."""
    for operator, since in {"ReduceMean": 18, "ReduceSum": 13, "ReduceMax": 18}.items():
        name, linear = operator.lower(), operator != "ReduceMax"
        x = {"x": signed(2, 3, 4, 5) if linear else distinct(2, 3, 4, 5)}
        options: dict[str, Any] = {"role": "linear" if linear else "selection", "linear": linear}
        before = (9, 11) if since == 13 else (9, 11, 13, 17)
        yield from cases(f"{name}-attribute", f"y = {operator}<axes=[2,3]>(x)", x, opset=before, **options)
        yield from cases(
            f"{name}-attribute-dropped", f"y = {operator}<axes=[-1,1],keepdims=0>(x)", x, opset=11, **options
        )
        axes = {"axes": ints(2, 3)}
        yield from cases(f"{name}-input", f"y = {operator}(x, axes)", x, axes, opset=since, **options)
        text = f"y = {operator}<keepdims=0>(x, axes)"
        yield from cases(f"{name}-input-dropped", text, x, {"axes": ints(-1, 1)}, opset=(since, 20), **options)
        yield from cases(f"{name}-middle-dropped", text, x, {"axes": ints(1)}, opset=since, **options)
        yield from cases(f"{name}-batch-axis", text, x, {"axes": ints(0)}, opset=since, **options)
        every = {"x": positive(2, 3, 4) if linear else distinct(2, 3, 4)}
        yield from cases(f"{name}-all", f"y = {operator}(x)", every, opset=(11, since), **options)
        yield from cases(f"{name}-all-dropped", f"y = {operator}<keepdims=0>(x)", every, opset=since, **options)
        noop = f"y = {operator}<noop_with_empty_axes=1>(x)"
        yield from cases(f"{name}-noop", noop, x, opset=since, **(options | {"linear": True}))
        yield from cases(
            f"{name}-empty-axes", f"y = {operator}(x, axes)", every, {"axes": ints()}, opset=since, **options
        )
        kind = "signed" if linear else "distinct"
        dynamic = {"x": Values((3, 2, 4, 4), kind, declared=("N", 2, 4, 4))}
        yield from cases(f"{name}-dynamic-batch", text, dynamic, {"axes": ints(2, 3)}, opset=since, **options)
    two = {"x": away(2, 3, 4)}
    for operator in ("ReduceL1", "ReduceSumSquare", "ReduceLogSum"):
        name, x = operator.lower(), {"x": positive(2, 3, 4) if operator == "ReduceLogSum" else away(2, 3, 4)}
        attribute = f"y = {operator}<axes=[1,-1],keepdims=0>(x)"
        yield from cases(name, attribute, x, opset=(11, 13), role="normalization")
        yield from cases(f"{name}-input", f"y = {operator}(x, a)", x, {"a": ints(1)}, opset=18, role="normalization")
    yield from cases("reducel2", "y = ReduceL2<axes=[1]>(x)", two, opset=13, role="normalization", optional=True)
    operand = {"a": ints(1)}
    yield from cases("reducel2-operand", "y = ReduceL2(x, a)", two, operand, opset=18, role="normalization")
    yield from cases(
        "reducemin-operand", "y = ReduceMin(x, a)", {"x": distinct(2, 3)}, operand, opset=(18, 20), role="selection"
    )
    yield from cases(
        "reducemin", "y = ReduceMin<axes=[1]>(x)", {"x": distinct(2, 3, 4)}, opset=13, role="selection", optional=True
    )


# --------------------------------------------------------------------------- rearrangements


def shapes() -> Iterator[Case]:
    """Flatten, Reshape, Transpose, Squeeze, Unsqueeze, Expand, Tile, Identity, Dropout, Cast."""
    x = signed(2, 3, 4, 5)
    batch = signed(3, 2, 4, 5, declared=("N", 2, 4, 5))
    yield from _moved("flatten", "y = Flatten(x)", x, opset=(9, 11, 13, 17))
    for axis in (0, 2, 4, -1):
        yield from _moved(f"flatten-axis{axis}", f"y = Flatten<axis={axis}>(x)", x, opset=11)
    yield from _moved("flatten-dynamic-batch", "y = Flatten(x)", batch)
    yield from _moved("reshape", "y = Reshape(x, s)", x, {"s": ints(6, 4, 5)}, opset=(9, 13, 14, 17))
    yield from _moved("reshape-minus-one", "y = Reshape(x, s)", x, {"s": ints(2, -1, 2)})
    yield from _moved("reshape-zero", "y = Reshape(x, s)", x, {"s": ints(0, 0, -1)})
    yield from _moved("reshape-allowzero", "y = Reshape<allowzero=1>(x, s)", x, {"s": ints(2, 3, 20)})
    yield from _moved("reshape-vector", "y = Reshape(x, s)", x, {"s": ints(-1)})
    yield from _moved("reshape-dynamic-batch", "y = Reshape(x, s)", batch, {"s": ints(-1, 40)})
    yield from _moved("reshape-dynamic-batch-zero", "y = Reshape(x, s)", batch, {"s": ints(0, -1)})
    yield from _moved("transpose-default", "y = Transpose(x)", signed(2, 3, 4), opset=(9, 13))
    yield from _moved("transpose-nhwc", "y = Transpose<perm=[0,2,3,1]>(x)", x)
    yield from _moved("transpose-cycle", "y = Transpose<perm=[2,0,3,1]>(x)", x)
    ones = signed(2, 1, 3, 1)
    yield from _moved("squeeze-attribute", "y = Squeeze<axes=[1,3]>(x)", ones, opset=(9, 11))
    yield from _moved("squeeze-attribute-negative", "y = Squeeze<axes=[-1]>(x)", ones, opset=11)
    yield from _moved("squeeze-input", "y = Squeeze(x, axes)", ones, {"axes": ints(-1, 1)}, opset=(13, 17))
    yield from _moved("squeeze-all", "y = Squeeze(x)", ones, opset=(11, 13))
    yield from _moved("unsqueeze-attribute", "y = Unsqueeze<axes=[0,3]>(x)", signed(2, 3), opset=(9, 11))
    yield from _moved("unsqueeze-input", "y = Unsqueeze(x, axes)", signed(2, 3), {"axes": ints(-1, 1)}, opset=(13, 17))
    yield from _moved("expand", "y = Expand(x, s)", signed(3, 1), {"s": ints(2, 1, 4)}, opset=(9, 13))
    yield from _moved("expand-ones", "y = Expand(x, s)", signed(2, 1, 3), {"s": ints(1, 4, 1)})
    yield from _moved("expand-scalar", "y = Expand(x, s)", signed(1), {"s": ints(2, 3)})
    yield from _moved("expand-nothing", "y = Expand(x, s)", signed(2, 3), {"s": ints(2, 3)})
    yield from _moved("tile", "y = Tile(x, r)", signed(2, 3), {"r": ints(2, 3)}, opset=(9, 13))
    yield from _moved("tile-some", "y = Tile(x, r)", signed(2, 1, 3), {"r": ints(1, 4, 1)})
    yield from _moved("identity", "y = Identity(x)", x, opset=(9, 13, 16))
    yield from _dropouts()
    yield from _moved("cast-same", "y = Cast<to=FLOAT>(x)", signed(2, 3), opset=(9, 13, 19))
    yield from _moved(
        "cast-double-and-back", f"t = Cast<to={TensorProto.DOUBLE}>(x); y = Cast<to=FLOAT>(t)", signed(2, 3)
    )
    yield from _moved("castlike", "y = CastLike(x, k)", signed(2, 3), {"k": floats(1.0)}, opset=(15, 19))
    half: dict[str, Any] = {
        "step": 0.5,
        "slack": 2 * HALF_PRECISION,
        "rtol": HALF_PRECISION,
        "reason": "float16 has 11 bits",
        "linear": False,
    }
    yield from _moved("cast-half-and-back", "t = Cast<to=FLOAT16>(x); y = Cast<to=FLOAT>(t)", signed(2, 3), **half)


def _integers() -> Iterator[Case]:
    """Linear maps on integers: straight through is right for steps that are wide against the levels."""
    x = Values((2, 3), "unit")
    coarse: dict[str, Any] = {
        "step": 0.4,
        "slack": 0.05,
        "role": "rearrangement",
        "only_float32": "the integers are made of float32",
    }
    level: dict[str, Array] = {"s": np.array(0.01, np.float32), "z": np.array(3, np.int8)}
    pair = "t = Cast<to=1>(x); q = QuantizeLinear(t, s, z); y = DequantizeLinear(q, s, z)"
    yield from (Case(f"quantise-pair-{v}", pair, {"x": x}, level, opset=v, **coarse) for v in (19, 21))
    dynamic = "t = Cast<to=1>(x); q, a, b = DynamicQuantizeLinear(t); i = {}(q, w, b, v); f = Cast<to=1>(i); k = Mul(a, s); y = Mul(f, k)"
    w = np.arange(-6, 6).astype(np.int8)
    weights: dict[str, Array] = {"w": w.reshape(3, 4), "v": np.array(1, np.int8), "s": np.array(0.1, np.float32)}
    yield Case("dynamic-matmul", dynamic.format("MatMulInteger"), {"x": x}, weights, **coarse)
    image = {"x": Values((1, 2, 3, 4), "unit")}
    unsigned: dict[str, Array] = {"w": (w + 6).astype(np.uint8).reshape(3, 2, 1, 2), "v": np.array(5, np.uint8)}
    unsigned["s"] = weights["s"]
    yield Case("dynamic-conv", dynamic.format("ConvInteger"), image, unsigned, **coarse)


def _dropouts() -> Iterator[Case]:
    x = signed(2, 3)
    yield from _moved("dropout-attribute", "y = Dropout<ratio=0.4>(x)", x, opset=(7, 10))
    yield from _moved("dropout", "y = Dropout(x)", x, opset=(12, 13, 17, 22))
    yield from _moved("dropout-ratio", "y = Dropout(x, ratio)", x, {"ratio": np.float32(0.4).reshape(())})
    off = {"ratio": np.float32(0.4).reshape(()), "training": np.array(False)}
    yield from _moved("dropout-training-off", "y = Dropout(x, ratio, training)", x, off)
    yield from _moved("dropout-mask-unused", "y, mask = Dropout(x)", x, opset=(10, 13))
    yield from _moved("dropout-mask-kept", "y, mask = Dropout(x)", x, others={"mask": TensorProto.BOOL}, opset=(12, 13))


def partitions() -> Iterator[Case]:
    """Concat, Split, Slice, Gather, DepthToSpace, SpaceToDepth."""
    pair = {"a": signed(2, 3, 2), "b": signed(2, 1, 2)}
    yield from _moved("concat", "y = Concat<axis=1>(a, b)", pair, opset=(9, 11, 13))
    yield from _moved("concat-negative-axis", "y = Concat<axis=-2>(a, b)", pair)
    yield from _moved("concat-batch", "y = Concat<axis=0>(a, b)", {"a": signed(2, 3), "b": signed(1, 3)})
    yield from _moved("concat-one", "y = Concat<axis=1>(a)", {"a": signed(2, 3)})
    yield from _moved("concat-itself", "y = Concat<axis=1>(a, b, a)", pair)
    yield from _moved("concat-constant", "y = Concat<axis=1>(a, k, b)", pair, {"k": signed(2, 2, 2)})
    yield from _moved(
        "concat-constant-first", "y = Concat<axis=2>(k, a)", {"a": signed(2, 3, 2)}, {"k": signed(2, 3, 1)}
    )
    dynamic = {"a": signed(3, 2, declared=("N", 2)), "b": signed(3, 1, declared=("N", 1))}
    yield from _moved("concat-dynamic-batch", "y = Concat<axis=1>(a, b)", dynamic)
    two: dict[str, Any] = {"outputs": ("y", "z")}
    x = signed(2, 6, 3)
    yield from _moved("split-equal", "y, z = Split<axis=1>(x)", x, opset=(9, 11, 13), **two)
    yield from _moved("split-attribute", "y, z = Split<axis=1,split=[2,4]>(x)", x, opset=(9, 11), **two)
    sizes = {"s": ints(1, 3, 2)}
    yield from _moved(
        "split-sizes", "y, z, u = Split<axis=-2>(x, s)", x, sizes, opset=(13, 18), outputs=("y", "z", "u")
    )
    yield from _moved("split-one-used", "a, y, b = Split<axis=1>(x, s)", x, sizes)
    yield from _moved("split-num-outputs", "y, z = Split<axis=1,num_outputs=2>(x)", x, opset=18, **two)
    uneven = "y, z, u = Split<axis=1,num_outputs=3>(x)"
    yield from _moved("split-uneven", uneven, signed(2, 7), opset=18, outputs=("y", "z", "u"))
    text = "a, b = Split<axis=1>(x); s = Sigmoid(b); y = Mul(a, s)"
    yield from cases("split-gate", text, {"x": x}, opset=13, role="rearrangement")
    yield from _slices()
    for name, indices in {
        "": ints(2, 0), "-negative": ints(-1, 1), "-repeated": ints(1, 1, 0, 1), "-scalar": int0(1),
        "-scalar-negative": int0(-2), "-matrix": np.array([[0, 2], [1, 0]]), "-int32": np.array([2, 1], np.int32),
    }.items():  # fmt: skip
        yield from _moved(f"gather{name}", "y = Gather<axis=1>(x, i)", signed(2, 3, 4), {"i": indices})
    yield from _moved("gather-axis-0", "y = Gather(x, i)", signed(4, 3), {"i": ints(3, 1)}, opset=(9, 11, 13))
    yield from _moved("gather-axis-negative", "y = Gather<axis=-1>(x, i)", signed(2, 3, 4), {"i": ints(0, -1)})
    token = signed(3, 4, 2, declared=("N", 4, 2))
    along = {"i": np.array([[2, 0], [-1, 0]])}
    yield from _moved("gatherelements", "y = GatherElements<axis=1>(x, i)", signed(2, 3), along, opset=(11, 13))
    tuples = {"i": np.array([[0, 2], [1, -1], [0, 2]])}
    yield from _moved("gathernd", "y = GatherND(x, i)", signed(2, 3, 4), tuples, opset=13, optional=True)
    yield from _moved("gather-class-token", "y = Gather<axis=1>(x, i)", token, {"i": int0(0)})
    eight = signed(2, 8, 2, 3)
    yield from _moved("depthtospace", "y = DepthToSpace<blocksize=2>(x)", eight, opset=(9, 11, 13))
    yield from _moved("depthtospace-dcr", 'y = DepthToSpace<blocksize=2,mode="DCR">(x)', eight)
    yield from _moved("depthtospace-crd", 'y = DepthToSpace<blocksize=2,mode="CRD">(x)', eight)
    yield from _moved("spacetodepth", "y = SpaceToDepth<blocksize=2>(x)", signed(2, 3, 4, 6), opset=(9, 13))


def _slices() -> Iterator[Case]:
    x = signed(2, 5, 6)
    yield from _moved("slice-attributes", "y = Slice<starts=[1,0],ends=[4,-1],axes=[1,2]>(x)", x, opset=9)
    yield from _moved("slice-attributes-no-axes", "y = Slice<starts=[0,1],ends=[2,3]>(x)", x, opset=9)

    def case(
        name: str, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None, **o: Any
    ) -> Any:
        constants = {"starts": starts, "ends": ends}
        constants |= {} if axes is None else {"axes": axes}
        constants |= {} if steps is None else {"steps": steps}
        text = "y = Slice(x, starts, ends" + (", axes" if axes is not None else ', ""' if steps is not None else "")
        return _moved(f"slice{name}", text + (", steps)" if steps is not None else ")"), x, constants, **o)

    far = 2**62
    yield from case("", ints(1), ints(4), ints(1), opset=(10, 11, 13))
    yield from case("-no-axes", ints(0, 2), ints(2, 4))
    yield from case("-negative-bounds", ints(-4, -3), ints(-1, far), ints(1, 2))
    yield from case("-negative-axes", ints(1), ints(3), ints(-1))
    yield from case("-steps", ints(1, 0), ints(far, far), ints(2, 1), ints(2, 3))
    yield from case("-reversed", ints(-1), ints(-far), ints(2), ints(-1))
    yield from case("-reversed-steps", ints(-1, 4), ints(-far, 0), ints(2, 1), ints(-2, -3))
    yield from case("-out-of-range", ints(-99), ints(99), ints(1))
    yield from case("-steps-no-axes", ints(0, 0, 1), ints(2, 9, 9), None, ints(1, 2, 2))
    computed = (
        "z = Mul(x, zero); t = ReduceSum<keepdims=0>(z); i = Cast<to=7>(t); u = Unsqueeze(i, a); e = Add(u, ends);"
    )
    ends = {"zero": float0(0.0), "a": ints(0), "ends": ints(-1), "starts": ints(1), "axes": ints(1), "two": ints(2)}
    yield from _moved("slice-computed-end", f"{computed} y = Slice(x, starts, e, axes)", x, ends)
    yield from _moved("slice-computed-steps", f"{computed} s = Add(u, two); y = Slice(x, starts, e, axes, s)", x, ends)
    several = ends | {"starts": ints(0, 5, 1), "ends": ints(-1, 0, 4), "axes": ints(0, 2, 1), "steps": ints(1, -2, 3)}
    yield from _moved(
        "slice-computed-several", f"{computed} y = Slice(x, starts, e, axes, steps)", signed(3, 5, 6), several
    )
    whole = signed(3, 4, declared=("N", 4))
    yield from _moved(
        "slice-open-axis-whole",
        "y = Slice(x, starts, ends, axes)",
        whole,
        {"starts": ints(0), "ends": ints(far), "axes": ints(0)},
    )
    yield from case("-int32", np.array([1], np.int32), np.array([4], np.int32), np.array([2], np.int32))


def pads() -> Iterator[Case]:
    """Pad in every mode."""
    x = signed(2, 3, 4)
    old = "y = Pad<pads=[0,1,2,0,0,1]{}>(x)"
    yield from _moved("pad-attribute", old.format(""), x, opset=9)
    yield from _moved("pad-attribute-value", old.format(",value=-1.5"), x, opset=9)
    yield from _moved("pad-attribute-reflect", old.format(',mode="reflect"'), x, opset=9)
    yield from _moved("pad-attribute-edge", old.format(',mode="edge"'), x, opset=9)
    amounts = {"p": ints(0, 1, 2, 0, 0, 1)}
    yield from _moved("pad", "y = Pad(x, p)", x, amounts, opset=(11, 13, 18, 19, 21))
    yield from _moved("pad-value", "y = Pad(x, p, v)", x, amounts | {"v": float0(2.5)})
    yield from _moved("pad-negative", "y = Pad(x, p)", x, {"p": ints(0, -1, 2, 0, 1, -2)})
    yield from _moved("pad-reflect", 'y = Pad<mode="reflect">(x, p)', x, {"p": ints(0, 2, 3, 0, 1, 2)}, opset=(11, 18))
    yield from _moved("pad-edge", 'y = Pad<mode="edge">(x, p)', x, {"p": ints(1, 2, 3, 0, 1, 6)}, opset=(11, 18))
    yield from _moved("pad-wrap", 'y = Pad<mode="wrap">(x, p)', x, {"p": ints(0, 2, 3, 0, 1, 2)}, opset=19)
    axes = {"p": ints(1, 2, 0, 1), "axes": ints(2, 1)}
    yield from _moved("pad-axes", 'y = Pad(x, p, "", axes)', x, axes, opset=18)
    axes = {"p": ints(1, 2), "axes": ints(-1)}
    yield from _moved("pad-axes-edge", 'y = Pad<mode="edge">(x, p, "", axes)', x, axes, opset=18)
    image = signed(3, 2, 3, 3, declared=("N", 2, 3, 3))
    yield from _moved("pad-reflect-image", 'y = Pad<mode="reflect">(x, p)', image, {"p": ints(0, 0, 1, 2, 0, 0, 2, 1)})
    yield from _moved("pad-dynamic-batch", "y = Pad(x, p)", image, {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)})


def resizes() -> Iterator[Case]:
    """Resize and Upsample: nearest, linear; cubic and antialiased ones may be refused."""
    image = signed(1, 2, 4, 5)

    def case(name: str, attributes: str, x: Values = image, **o: Any) -> Iterator[Case]:
        scales, sizes = o.pop("scales", None), o.pop("sizes", None)
        constants = {"scales": float32s(*scales)} if scales else {"sizes": ints(*sizes)}
        target = "scales" if scales else '"", sizes'
        text = f'y = Resize<{attributes}>(x, "", {target})'
        options: dict[str, Any] = {"role": "linear", "linear": True, **o}
        yield from cases(f"resize-{name}", text, {"x": x}, constants, **options)

    double = (1.0, 1.0, 2.0, 2.0)
    yield from case("nearest", 'mode="nearest"', scales=double, opset=(13, 18, 19))
    text = 'y = Resize<mode="{}">(x, scales)'
    for mode in ("nearest", "linear"):
        scale = {"scales": float32s(*double)}
        yield from cases(
            f"resize-{mode}-10", text.format(mode), {"x": image}, scale, opset=10, role="linear", linear=True
        )
    # Between opset 10 and 11 the default coordinates changed: a fraction tells them apart for nearest, too.
    scale = {"scales": float32s(1.0, 1.0, 1.6, 2.5)}
    yield from cases(
        "resize-nearest-10-fraction", text.format("nearest"), {"x": image}, scale, opset=10, role="linear", linear=True
    )
    roi = {"roi": float32s(), "scales": float32s(*double)}
    yield from cases(
        "resize-nearest-11", 'y = Resize<mode="nearest">(x, roi, scales)', {"x": image}, roi, opset=11,
        role="linear", linear=True,
    )  # fmt: skip
    torch_nearest = 'mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor"'
    yield from case("nearest-torch", torch_nearest, scales=double)
    yield from case("nearest-sizes", torch_nearest, sizes=(1, 2, 7, 9))
    yield from case("nearest-down", torch_nearest, sizes=(1, 2, 2, 3))
    yield from case("nearest-thirds", torch_nearest, scales=(1.0, 1.0, 3.0, 1.0))
    for mode in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
        for transform in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"):
            attributes = f'mode="nearest",coordinate_transformation_mode="{transform}",nearest_mode="{mode}"'
            yield from case(f"nearest-{transform}-{mode}", attributes, sizes=(1, 2, 7, 8))
    for transform in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
        attributes = f'mode="linear",coordinate_transformation_mode="{transform}"'
        yield from case(f"linear-{transform}-scales", attributes, scales=double, opset=(13, 18))
        yield from case(f"linear-{transform}-sizes", attributes, sizes=(1, 2, 7, 8))
        yield from case(f"linear-{transform}-down", attributes, sizes=(1, 2, 3, 2))
    yield from case(
        "linear-to-one", 'mode="linear",coordinate_transformation_mode="pytorch_half_pixel"', sizes=(1, 2, 1, 1)
    )
    yield from case("linear-fraction", 'mode="linear"', scales=(1.0, 1.0, 1.5, 0.7))
    symmetric = 'mode="linear",coordinate_transformation_mode="half_pixel_symmetric"'
    yield from case("linear-symmetric", symmetric, scales=(1.0, 1.0, 1.6, 1.3), opset=19, optional=True)
    yield from case("linear-1d", 'mode="linear"', signed(2, 2, 5), sizes=(2, 2, 8))
    yield from case("linear-3d", 'mode="linear"', signed(1, 1, 2, 3, 3), scales=(1.0, 1.0, 2.0, 2.0, 1.0))
    yield from case("nearest-1d", 'mode="nearest"', signed(2, 2, 5), scales=(1.0, 1.0, 2.0))
    yield from case("nearest-3d", 'mode="nearest"', signed(1, 1, 2, 3, 2), scales=(1.0, 1.0, 2.0, 1.0, 2.0))
    dynamic = signed(3, 2, 3, 3, declared=("N", 2, 3, 3))
    yield from case("nearest-dynamic-batch", torch_nearest, dynamic, scales=double)
    yield from case("linear-dynamic-batch", 'mode="linear"', dynamic, scales=double)
    axes = 'y = Resize<mode="linear",axes=[2,3]>(x, "", scales)'
    two = {"scales": float32s(2.0, 1.5)}
    yield from cases("resize-linear-axes", axes, {"x": image}, two, opset=18, role="linear", linear=True)
    yield from case("cubic", 'mode="cubic"', scales=double, optional=True)
    yield from case("cubic-outside", 'mode="cubic",exclude_outside=1', scales=double, optional=True)
    yield from case("linear-antialias", 'mode="linear",antialias=1', sizes=(1, 2, 3, 2), opset=18, optional=True)
    aspect = 'mode="linear",keep_aspect_ratio_policy="not_larger",axes=[2,3]'
    yield from case("linear-aspect", aspect, sizes=(8, 8), opset=18, optional=True)
    for mode in ("nearest", "linear"):
        scale = {"scales": float32s(1.0, 1.0, 2.0, 3.0)}
        text = f'y = Upsample<mode="{mode}">(x, scales)'
        yield from cases(f"upsample-{mode}", text, {"x": image}, scale, opset=9, role="linear", linear=True)
        scale = {"scales": float32s(1.0, 1.0, 1.6, 2.5)}
        text = f'y = Upsample<mode="{mode}">(x, scales)'
        yield from cases(f"upsample-{mode}-fraction", text, {"x": image}, scale, opset=9, role="linear", linear=True)
        text = f'y = Upsample<mode="{mode}",scales=[1.0,1.0,2.0,3.0]>(x)'
        yield from cases(f"upsample-{mode}-attribute", text, {"x": image}, opset=7, role="linear", linear=True)


# --------------------------------------------------------------------------- structure


def shape_arithmetic() -> Iterator[Case]:
    """What exporters leave around Reshape, Resize and Expand, with a dynamic batch."""
    image = {"x": signed(3, 2, 4, 5, declared=("N", 2, 4, 5))}
    options: dict[str, Any] = {"role": "structure", "linear": True}
    zero, minus = {"zero": int0(0)}, {"minus": ints(-1)}
    yield from cases(
        "shape-flatten", "s = Shape(x); n = Gather(s, zero); u = Unsqueeze<axes=[0]>(n); k = Concat<axis=0>(u, minus);"
        " y = Reshape(x, k)", image, zero | minus, opset=11, declared=("N", 40), **options,
    )  # fmt: skip
    yield from cases(
        "shape-flatten-13", "s = Shape(x); n = Gather(s, zero); u = Unsqueeze(n, a); k = Concat<axis=0>(u, minus);"
        " y = Reshape(x, k)", image, zero | minus | {"a": ints(0)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-shuffle", "s = Shape(x); n = Slice(s, z, o); k = Concat<axis=0>(n, g); t = Reshape(x, k);"
        " p = Transpose<perm=[0,2,1,3,4]>(t); q = Concat<axis=0>(n, h); y = Reshape(p, q)",
        {"x": signed(2, 4, 2, 3, declared=("N", 4, 2, 3))},
        {"z": ints(0), "o": ints(1), "g": ints(2, 2, 2, 3), "h": ints(4, 2, 3)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-as-strided", "f = Reshape(x, m); n = Size(x); c = Range(z, n, o); i = Reshape(c, k); y = Gather<axis=0>(f, i)",
        {"x": signed(2, 6, declared=("N", 6))}, {"m": ints(-1), "z": int0(0), "o": int0(1), "k": ints(-1, 3, 2)},
        declared=("N", 3, 2), **options,
    )  # fmt: skip
    yield from cases(
        "shape-start-end", "n = Shape<start=0,end=1>(x); k = Concat<axis=0>(n, r); y = Reshape(x, k)",
        image, {"r": ints(-1)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-resize",
        "s = Shape(x); hw = Slice(s, two, four); f = Cast<to=1>(hw); g = Mul(f, scale); h = Floor(g);"
        ' i = Cast<to=7>(h); nc = Slice(s, nil, two); k = Concat<axis=0>(nc, i);'
        ' y = Resize<mode="linear">(x, "", "", k)',
        image, {"two": ints(2), "four": ints(4), "nil": ints(0), "scale": float32s(1.7, 2.0)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-as-strided-places", "n = Shape<start=0,end=1>(x); c = Squeeze(n); r = Range(zero, c, one); m = Mul(r, four);"
        " u = Unsqueeze(m, ax); i = Add(u, from); f = Reshape(x, minus); y = Gather(f, i)",
        {"x": signed(3, 2, 2, declared=("N", 2, 2))}, zero | minus
        | {"one": int0(1), "four": int0(4), "ax": ints(1, 2), "from": np.array([[[0, 2], [1, 3], [2, 2]]])},
        declared=("N", 3, 2), **options,
    )  # fmt: skip
    yield from cases(
        "shape-halve", "s = Shape(x); h = Gather(s, two); d = Div(h, half); u = Unsqueeze(d, a);"
        " y = Slice(x, nil, u, ax)", image,
        {"two": int0(2), "half": int0(2), "a": ints(0), "nil": ints(0), "ax": ints(2)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-expand", "s = Shape(x); n = Gather(s, i); k = Concat<axis=0>(n, r);"
        " e = Expand(w, k); y = Concat<axis=1>(x, e)",
        {"x": signed(3, 2, 4, declared=("N", 2, 4))}, {"i": ints(0), "r": ints(1, 4), "w": signed(1, 1, 4)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-expand-torch",
        "n = Size(k0); u = Unsqueeze(n, a); o = ConstantOfShape<value = int64[1] {1}>(u); m = Mul(o, minus);"
        " e = Equal(k0, m); k = Where(e, o, k0); y = Expand(x, k)",
        {"x": signed(3, 1, 4, declared=("N", 1, 4))}, {"k0": ints(-1, 5, 4), "a": ints(0), "minus": ints(-1)},
        **options,
    )  # fmt: skip
    yield from cases(
        "shape-range", "s = Shape(x); c = Gather(s, three); i = Range(zero, c, two); y = Gather<axis=3>(x, i)",
        image, {"three": int0(3), "zero": int0(0), "two": int0(2)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-size", "n = Size(x); d = Div(n, forty); u = Unsqueeze(d, a); k = Concat<axis=0>(u, r);"
        " y = Reshape(x, k)", image, {"forty": int0(40), "a": ints(0), "r": ints(40)}, **options,
    )  # fmt: skip
    yield from cases(
        "shape-zeros", "s = Shape(x); z = ConstantOfShape<value = TENSOR[1] {0.5}>(s); y = Sub(x, z)", image, **options
    )
    yield from cases(
        "shape-pad", "s = Shape(x); h = Gather(s, i); m = Mod(h, three); d = Sub(three, m);"
        " z = Concat<axis=0>(o, d, o); p = Concat<axis=0>(z, z); y = Pad(x, p)",
        {"x": signed(3, 2, 4, declared=("N", 2, 4))}, {"i": ints(1), "three": ints(3), "o": ints(0)}, **options,
    )  # fmt: skip


def structures() -> Iterator[Case]:
    """Graphs on which the peers fail: reuse, sharing, branches, hidden constants."""
    image = {"x": signed(2, 2, 4, 4)}
    one, two = {"w": signed(2, 2, 3, 3)}, {"w": signed(2, 2, 3, 3), "v": signed(2, 2, 1, 1)}
    options: dict[str, Any] = {"role": "structure"}
    same = "<pads=[1,1,1,1]>"
    text = f"r = Relu(x); a = Conv{same}(r, w); b = Conv(r, v); y = Add(a, b)"
    yield from cases("relu-used-twice", text, {"x": away(2, 2, 4, 4)}, two, **options)
    shared = f"t = Conv{same}(x, w); h = Tanh(t); y = Conv{same}(h, w)"
    yield from cases("weight-shared", shared, image, one, **options)
    text = "t = Gemm(x, w, b); h = Tanh(t); y = Gemm<transB=1>(h, w, b)"
    yield from cases(
        "weight-shared-transposed", text, {"x": signed(3, 4)}, {"w": signed(4, 4), "b": signed(4)}, **options
    )
    text = f"a = Conv{same}(x, w); b = Conv(x, v); p = Tanh(a); q = Sigmoid(b); y = Concat<axis=1>(p, q)"
    yield from cases("branch-and-join", text, image, two, **options)
    residual = f"a = Conv{same}(x, w); h = Tanh(a); b = Conv{same}(h, w); s = Add(b, x); y = Softplus(s)"
    yield from cases("residual", residual, image, one, **options)
    dense = f"a = Conv{same}(x, w); c = Concat<axis=1>(x, a); y = Conv(c, k)"
    yield from cases("dense-block", dense, image, one | {"k": signed(3, 4, 1, 1)}, linear=True, **options)
    text = f"h = Conv{same}(x, w); t = Tanh(h); y = Conv(t, v)"
    yield from cases("output-also-consumed", text, image, two, outputs=("t", "y"), **options)
    yield from cases("output-also-consumed-twice", text, image, two, outputs=("h", "t", "y"), **options)
    text = f"[c1] h = Conv{same}(x, w)\n [act] t = Tanh(h)\n [c2] y = Conv(t, v)"
    yield from cases("nodes-named", text, image, two, **options)
    pair = {"a": signed(2, 3), "b": signed(2, 3)}
    yield from cases("two-inputs", "t = Tanh(a); y = Mul(t, b)", pair, **options)
    yield from cases("input-unused", "y = Tanh(a)", pair, **options)
    yield from cases("two-outputs", "y = Tanh(a); z = Mul(a, b)", pair, outputs=("y", "z"), **options)
    yield from cases("output-is-input", "y = Identity(a); z = Tanh(a)", pair, outputs=("y", "z"), **options)
    through: dict[str, Any] = {"outputs": ("a", "y"), "declared": (2, 3)}
    yield from cases("output-is-the-input-itself", "y = Tanh(a)", {"a": signed(2, 3)}, **options, **through)
    yield from cases("dead-branch", "y = Tanh(a); d = Exp(b); e = Neg(d)", pair, **options)
    weight = "w = Constant<value = TENSOR[2,3] {1.0,-2.0,0.5,0.25,3.0,-1.0}>(); t = MatMul(x, w); y = Tanh(t)"
    yield from cases("weight-constant-node", weight, {"x": signed(3, 2)}, **options)
    text = "s = Constant<value_ints=[3,2,1,1]>(); w = ConstantOfShape<value = TENSOR[1] {0.7}>(s); y = Conv(x, w)"
    yield from cases("weight-constant-of-shape", text, image, linear=True, **options)
    text = f"u = Identity(w); a = Conv{same}(x, u); h = Tanh(a); y = Conv{same}(h, w)"
    yield from cases("weight-identity", text, image, one, **options)
    text = "u = Transpose<perm=[1,0]>(w); v = Mul(u, s); y = MatMul(x, v)"
    computed = {"w": signed(4, 3), "s": signed(4)}
    yield from cases("weight-computed", text, {"x": signed(2, 3)}, computed, linear=True, **options)
    text = "u = Reshape(w, s); y = Conv(x, u)"
    yield from cases("weight-reshaped", text, image, {"w": signed(3, 2), "s": ints(3, 2, 1, 1)}, linear=True, **options)
    old: dict[str, Any] = {"opset": 9, "ir_version": 3, "as_inputs": True}
    yield from cases("initializers-are-inputs", "t = Gemm(x, w, b); y = Tanh(t)", {"x": signed(3, 4)}, {
        "w": signed(4, 2), "b": signed(2)}, **options, **old)  # fmt: skip
    text = "t = Reshape(x, s); y = Gemm(t, w, b)"
    more: dict[str, Any] = {"s": ints(2, 4), "w": signed(4, 3), "b": signed(3)}
    yield from cases("shape-is-input", text, {"x": signed(2, 2, 2)}, more, **options, **old)
    swish = '<domain: "local", opset_import: ["": 17]> Gate (v) => (o) { s = Sigmoid(v)\n o = Mul(v, s) }'
    yield from cases("local-function", "t = local.Gate(x); y = local.Gate(t)", image, functions=(swish,), **options)
    yield from _networks()
    yield from _integers()


def _networks() -> Iterator[Case]:
    """Small whole networks: a chain as in VGG, a block as in ResNet, one as in MobileNet, a decoder."""
    image = {"x": signed(2, 2, 8, 8, declared=("N", 2, 8, 8))}
    options: dict[str, Any] = {"role": "structure", "rtol": 3e-5, "reason": "a chain of several float32 sums"}
    constants = {"w": signed(4, 2, 3, 3), "b": signed(4), "f": signed(64, 3), "c": signed(3)}
    yield from cases(
        "network-vgg", "a = Conv<pads=[1,1,1,1]>(x, w, b); h = Relu(a);"
        " p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(h); v = Flatten(p); y = Gemm(v, f, c)",
        image, constants, **options,
    )  # fmt: skip
    norm = {"s": positive(4), "t": signed(4), "m": signed(4), "v": positive(4)}
    yield from cases(
        "network-resnet",
        "a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w); n = BatchNormalization(a, s, t, m, v); h = Relu(n);"
        " q = Conv<pads=[1,1,1,1]>(h, w2); o = BatchNormalization(q, s, t, m, v); d = Conv<strides=[2,2]>(x, k);"
        " e = Add(o, d); r = Relu(e); g = GlobalAveragePool(r); l = Flatten(g); y = Gemm(l, f, c)",
        image, norm | {"w": signed(4, 2, 3, 3), "w2": signed(4, 4, 3, 3), "k": signed(4, 2, 1, 1), "f": signed(4, 3),
                       "c": signed(3)}, **options,
    )  # fmt: skip
    yield from cases(
        "network-mobilenet",
        "a = Conv(x, w); h = HardSwish(a); d = Conv<group=4,pads=[1,1,1,1],strides=[2,2]>(h, k);"
        " c = Clip(d, zero, six); g = ReduceMean<axes=[2,3],keepdims=1>(c); z = Conv(g, u);"
        " s = HardSigmoid(z); m = Mul(c, s); o = ReduceMean<axes=[2,3],keepdims=0>(m); y = MatMul(o, f)",
        image, {"w": signed(4, 2, 1, 1), "k": signed(4, 1, 3, 3), "u": signed(4, 4, 1, 1), "f": signed(4, 3),
                "zero": float0(0.0), "six": float0(6.0)}, **options,
    )  # fmt: skip
    yield from cases(
        "network-decoder",
        "a = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w); h = LeakyRelu<alpha=0.1>(a);"
        ' u = ConvTranspose<strides=[2,2]>(h, k); e = Concat<axis=1>(u, x); i = InstanceNormalization(e, s, t);'
        ' y = Resize<mode="nearest">(i, "", z)',
        image, {"w": signed(4, 2, 3, 3), "k": signed(4, 2, 2, 2), "s": signed(4), "t": signed(4),
                "z": float32s(1.0, 1.0, 2.0, 2.0)}, **options,
    )  # fmt: skip


def _table() -> tuple[Case, ...]:
    families = (
        convolutions, transposed_convolutions, dense_layers, max_pools, average_pools, normalizations, activations,
        arithmetic, contractions, selections, reductions, shapes, partitions, pads, resizes, shape_arithmetic, structures,
        indexed, more, recurrences,
    )  # fmt: skip
    table = tuple(case for family in families for case in family())
    names = [case.name for case in table]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"two cases share a name: {repeated}")
    return table


CASES: tuple[Case, ...] = _table()


# --------------------------------------------------------------------------- drawn geometry


def _attribute(name: str, values: Sequence[int]) -> str:
    return f"{name}=[{','.join(map(str, values))}]"


@st.composite
def drawn_windows(draw: st.DrawFn, operator: str) -> Case:
    """A Conv, ConvTranspose, MaxPool or AveragePool of drawn rank, kernel, strides, dilations, pads and groups."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    axis = st.integers

    def each(low: int, high: int) -> list[int]:
        return draw(st.lists(axis(low, high), min_size=rank, max_size=rank))

    size, kernel, strides = each(1, 6 if rank < 3 else 4), each(1, 3), each(1, 3)
    dilations = each(1, 2) if operator != "AveragePool" else [1] * rank
    pool = operator.endswith("Pool")
    # ONNX Runtime wants a pool's pads smaller than its kernel.
    begin = [draw(axis(0, k - 1 if pool else k)) for k in kernel]
    end = [draw(axis(0, k - 1 if pool else k)) for k in kernel]
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    attributes = [_attribute("strides", strides), _attribute("dilations", dilations), _attribute("pads", begin + end)]
    if operator == "ConvTranspose":
        extra = [draw(axis(0, s - 1)) for s in strides]
        attributes.append(_attribute("output_padding", extra))
        out = [(n - 1) * s + k + e - b - f for n, s, k, e, b, f in zip(size, strides, span, extra, begin, end)]
    else:
        out = [(n + b + e - k) // s + 1 for n, b, e, k, s in zip(size, begin, end, span, strides)]
    assume(all(n >= 1 for n in out) and all(n + b + e >= k for n, b, e, k in zip(size, begin, end, span)))
    if pool:
        # A window that sees nothing but padding has no maximum and no mean.
        for n, k, s, d, b, m in zip(size, kernel, strides, dilations, begin, out):
            assume(all(any(0 <= p * s + t * d - b < n for t in range(k)) for p in range(m)))
        return _drawn_pool(draw, operator, attributes, kernel, size)
    group, batch = draw(axis(1, 3)), draw(axis(1, 2))
    inner, outer = draw(axis(1, 2)), draw(axis(1, 2))
    attributes.append(f"group={group}")
    name = f"drawn-{operator.lower()}-{'-'.join(attributes)}-{size}-{kernel}-{inner}-{outer}"
    weight = (outer * group, inner, *kernel) if operator == "Conv" else (inner * group, outer, *kernel)
    constants = {"w": signed(*weight), "b": signed(outer * group)}
    text = f"y = {operator}<{','.join(attributes)}>(x, w, b)"
    return Case(name, text, {"x": signed(batch, inner * group, *size)}, constants, role="linear", linear=True)


def _drawn_pool(draw: st.DrawFn, operator: str, attributes: list[str], kernel: list[int], size: list[int]) -> Case:
    attributes = [a for a in attributes if operator == "MaxPool" or not a.startswith("dilations")]
    attributes.append(_attribute("kernel_shape", kernel))
    average = operator == "AveragePool"
    if average:
        attributes.append(f"count_include_pad={draw(st.integers(0, 1))}")
    name = f"drawn-{operator.lower()}-{'-'.join(attributes)}-{size}"
    x = signed(1, 2, *size) if average else distinct(1, 2, *size)
    text = f"y = {operator}<{','.join(attributes)}>(x)"
    return Case(name, text, {"x": x}, role="linear" if average else "selection", linear=average)


@st.composite
def drawn_resizes(draw: st.DrawFn) -> Case:
    """A Resize, nearest or linear, between drawn sizes."""
    size, target = draw(st.tuples(*[st.integers(1, 6)] * 2)), draw(st.tuples(*[st.integers(1, 8)] * 2))
    transform = draw(st.sampled_from(["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]))
    mode = draw(st.sampled_from(["nearest", "linear"]))
    attributes = f'mode="{mode}",coordinate_transformation_mode="{transform}"'
    if mode == "nearest":
        attributes += f',nearest_mode="{draw(st.sampled_from(["floor", "ceil", "round_prefer_floor"]))}"'
    text = f'y = Resize<{attributes}>(x, "", "", sizes)'
    name = f"drawn-resize-{attributes}-{size}-{target}"
    return Case(name, text, {"x": signed(1, 2, *size)}, {"sizes": ints(1, 2, *target)}, role="linear", linear=True)


@st.composite
def drawn_slices(draw: st.DrawFn) -> Case:
    """A Slice of drawn bounds and steps in both directions."""
    shape = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    axes = draw(st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, max_size=len(shape)))
    assume(len({a % len(shape) for a in axes}) == len(axes))
    starts = [draw(st.integers(-7, 7)) for _ in axes]
    ends = [draw(st.integers(-7, 7)) for _ in axes]
    steps = [draw(st.sampled_from([-3, -2, -1, 1, 2, 3])) for _ in axes]
    index: list[slice] = [slice(None)] * len(shape)
    for a, start, end, step in zip(axes, starts, ends, steps):
        # NumPy reads the bounds as ONNX does.
        index[a] = slice(start, end, step)
    assume(np.zeros(shape)[tuple(index)].size > 0)
    constants = {"s": ints(*starts), "e": ints(*ends), "a": ints(*axes), "t": ints(*steps)}
    name = f"drawn-slice-{shape}-{starts}-{ends}-{axes}-{steps}"
    text = "y = Slice(x, s, e, a, t)"
    return Case(name, text, {"x": signed(*shape)}, constants, role="rearrangement", linear=True)


@st.composite
def drawn_pads(draw: st.DrawFn) -> Case:
    """A Pad in every mode, negative amounts with the constant mode."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    mode = draw(st.sampled_from(["constant", "reflect", "edge"]))
    amounts = []
    for _ in range(2):
        for n in shape:
            high = n - 1 if mode == "reflect" else 3
            amounts.append(draw(st.integers(-1 if mode == "constant" else 0, high)))
    half = len(shape)
    assume(all(n + b + e >= 1 and b > -n and e > -n for n, b, e in zip(shape, amounts[:half], amounts[half:])))
    name, text = f"drawn-pad-{mode}-{shape}-{amounts}", f'y = Pad<mode="{mode}">(x, p)'
    return Case(name, text, {"x": signed(*shape)}, {"p": ints(*amounts)}, role="rearrangement", linear=True)


def drawn_cases() -> st.SearchStrategy[Case]:
    """Any of the above."""
    windows = [drawn_windows(op) for op in ("Conv", "Conv", "ConvTranspose", "MaxPool", "AveragePool")]
    return st.one_of(*windows, drawn_resizes(), drawn_slices(), drawn_pads())
