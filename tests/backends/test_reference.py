"""Every replacement in the float64 evaluator: against ONNX Runtime on odd geometries, and against formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_explain.backends.reference import REPLACED, Reference
from onnx_explain.ir.widen import as_float64

Array = npt.NDArray[Any]
ATTRIBUTES = dict[str, Any]
RNG = np.random.default_rng


def scalar(value: float) -> Array:
    return np.full((), value, np.float64)


def signed(*shape: int, seed: int = 0) -> Array:
    """Float32 numbers in float64, so that both runs start from the same ones."""
    return RNG([seed, *shape]).standard_normal(shape).astype(np.float32).astype(np.float64)


def node_model(
    op: str, inputs: Sequence[Array | None], attributes: ATTRIBUTES, outputs: int = 1, opset: int = 19,
    dtype: npt.DTypeLike = np.float32,
) -> onnx.ModelProto:  # fmt: skip
    """One node on its first input; the others are constants, None where one is left out."""
    names = [f"i{k}" if array is not None else "" for k, array in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{k}" for k in range(outputs)], **attributes)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {n: a.astype(dtype) if a.dtype == np.float64 else a for n, a in zip(names, inputs) if a is not None}
    first = helper.make_tensor_value_info("i0", kind, arrays.pop("i0").shape)
    results = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if k else kind, None)
        for k, name in enumerate(node.output)
    ]
    graph = helper.make_graph([node], op, [first], results, [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def evaluated(
    op: str, inputs: Sequence[Array | None], attributes: ATTRIBUTES | None = None, outputs: int = 1, opset: int = 19
) -> list[Array]:
    """The float64 backend's outputs."""
    model = node_model(op, inputs, attributes or {}, outputs, opset)
    x = inputs[0]
    assert x is not None
    return list(Reference(as_float64(ir.from_proto(model))).run({"i0": x}).values())


def runtimes(
    op: str, inputs: Sequence[Array | None], attributes: ATTRIBUTES | None = None, outputs: int = 1, opset: int = 19
) -> list[Array]:
    """ONNX Runtime's outputs, in float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    model = node_model(op, inputs, attributes or {}, outputs, opset).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = inputs[0]
    assert x is not None
    return list(session.run(None, {"i0": x.astype(np.float32)}))


def assert_close(actual: Array, expected: Array, tolerance: float = 1e-12) -> None:
    """Same shape, and equal relative to the largest value."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(1.0, float(np.abs(expected).max()))


def assert_as_the_runtime(
    op: str, inputs: Sequence[Array | None], attributes: ATTRIBUTES | None = None, outputs: int = 1, opset: int = 19
) -> None:
    ours = evaluated(op, inputs, attributes, outputs, opset)
    for mine, theirs in zip(ours, runtimes(op, inputs, attributes, outputs, opset), strict=True):
        assert mine.dtype == (np.float64 if theirs.dtype == np.float32 else theirs.dtype)
        assert_close(mine, theirs, 1e-5)


# -- convolutions: x's shape, w's shape, attributes

CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], ATTRIBUTES]] = [
    ((2, 3, 7, 5), (4, 3, 3, 3), {}),
    ((2, 3, 7, 5), (4, 3, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 3]}),
    ((2, 4, 7, 9), (6, 2, 3, 2), {"group": 2, "dilations": [2, 3], "pads": [1, 2, 0, 1]}),
    ((1, 4, 5, 5), (8, 1, 3, 3), {"group": 4, "strides": [2, 1]}),
    ((1, 3, 8, 7), (2, 3, 1, 1), {"strides": [3, 4]}),
    ((3, 2, 9), (3, 2, 4), {"strides": [3], "dilations": [2], "pads": [3, 1]}),
    ((1, 2, 4, 5, 6), (2, 1, 2, 3, 2), {"group": 2, "strides": [1, 2, 2], "pads": [0, 1, 1, 1, 0, 1]}),
    ((1, 2, 7, 6), (2, 2, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
    ((1, 2, 7, 6), (2, 2, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ((1, 2, 7, 6), (2, 2, 3, 4), {"auto_pad": "VALID", "strides": [2, 3]}),
]
TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], ATTRIBUTES]] = [
    ((2, 3, 4, 5), (3, 2, 3, 3), {}),
    ((2, 4, 4, 3), (4, 3, 3, 2), {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1]}),
    ((1, 4, 5, 5), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    ((1, 4, 5, 5), (4, 2, 2, 3), {"group": 4, "dilations": [3, 2]}),
    ((1, 2, 3, 3), (2, 2, 2, 2), {"strides": [4, 3], "output_padding": [2, 1]}),
    ((1, 2, 3, 3), (2, 2, 3, 3), {"strides": [2, 2], "output_shape": [5, 6]}),
    ((1, 2, 3, 3), (2, 2, 3, 3), {"strides": [2, 2], "output_shape": [4, 6], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 3, 3), (2, 2, 3, 3), {"strides": [2, 2], "output_shape": [4, 6], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 3, 4), (2, 2, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 3, 4), (2, 2, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 3, 4), (2, 2, 4, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
    ((2, 3, 6), (3, 2, 4), {"strides": [3], "pads": [2, 1]}),
    ((1, 4, 2, 3, 2), (4, 1, 2, 3, 2), {"group": 2, "strides": [2, 1, 2], "pads": [1, 1, 0, 0, 1, 1]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS, ids=str)
def test_a_convolution_is_onnx_runtimes(x: tuple[int, ...], w: tuple[int, ...], attributes: ATTRIBUTES) -> None:
    assert_as_the_runtime("Conv", [signed(*x), signed(*w, seed=1), signed(w[0], seed=2)], attributes)
    assert_as_the_runtime("Conv", [signed(*x), signed(*w, seed=1)], attributes)


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", [1, 1, 2, 2]), ("SAME_LOWER", [2, 2, 1, 1])])
def test_the_same_size_takes_dilations_into_account(mode: str, pads: list[int]) -> None:
    """ONNX Runtime refuses this combination for Conv."""
    operands, dilations = [signed(1, 2, 7, 6), signed(2, 2, 2, 4, seed=1)], [3, 1]
    (automatic,) = evaluated("Conv", operands, {"auto_pad": mode, "dilations": dilations})
    (explicit,) = evaluated("Conv", operands, {"pads": pads, "dilations": dilations})
    assert np.array_equal(automatic, explicit)


@pytest.mark.parametrize(("x", "w", "attributes"), TRANSPOSED, ids=str)
def test_a_transposed_convolution_is_onnx_runtimes(
    x: tuple[int, ...], w: tuple[int, ...], attributes: ATTRIBUTES
) -> None:
    channels = w[1] * attributes.get("group", 1)
    assert_as_the_runtime("ConvTranspose", [signed(*x), signed(*w, seed=1), signed(channels, seed=2)], attributes)
    assert_as_the_runtime("ConvTranspose", [signed(*x), signed(*w, seed=1)], attributes)


@pytest.mark.parametrize(
    ("w", "attributes"),
    [
        ((6, 2, 3, 2), {"group": 2, "strides": [2, 1], "dilations": [1, 3], "pads": [1, 0, 2, 1]}),
        ((4, 1, 2, 3), {"group": 4, "strides": [3, 2]}),
        ((5, 4, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    ],
    ids=str,
)
def test_a_convolution_is_the_formula_and_the_transposed_one_its_adjoint(
    w: tuple[int, ...], attributes: ATTRIBUTES
) -> None:
    x, weight = signed(2, 4, 8, 9), signed(*w, seed=1)
    (y,) = evaluated("Conv", [x, weight], attributes)
    assert_close(y, convolved(x, weight, attributes))
    s = signed(*y.shape, seed=3)
    spans = [(o - 1) * st + (k - 1) * d + 1 for o, st, k, d in zip(y.shape[2:], *geometry(w, attributes))]
    pads = attributes.get("pads", [0] * 4)
    missing = [n + pads[i] + pads[i + 2] - span for i, (n, span) in enumerate(zip(x.shape[2:], spans))]
    assert min(missing) >= 0
    (back,) = evaluated("ConvTranspose", [s, weight], {**attributes, "output_padding": missing})
    assert back.shape == x.shape
    assert abs((y * s).sum() - (x * back).sum()) <= 1e-12 * np.abs(y * s).sum()


def geometry(w: Sequence[int], said: ATTRIBUTES) -> tuple[list[int], tuple[int, ...], list[int]]:
    """Strides, kernel, dilations in 2-D."""
    return said.get("strides", [1, 1]), tuple(w[2:]), said.get("dilations", [1, 1])


def convolved(x: Array, w: Array, said: ATTRIBUTES) -> Array:
    """y[n, o, i, j] = Σ w[o, c, p, q]·x[n, c, i·s + p·d - b, ...] with six loops."""
    (si, sj), (kp, kq), (dp, dq) = geometry(w.shape, said)
    bi, bj, ei, ej = said.get("pads", [0] * 4)
    x = np.pad(x, [(0, 0), (0, 0), (bi, ei), (bj, ej)])
    high, wide = (x.shape[2] - (kp - 1) * dp - 1) // si + 1, (x.shape[3] - (kq - 1) * dq - 1) // sj + 1
    y = np.zeros((x.shape[0], w.shape[0], high, wide))
    per = w.shape[0] // said.get("group", 1)
    for n, o, i, j in np.ndindex(*y.shape):
        for c, p, q in np.ndindex(*w.shape[1:]):
            y[n, o, i, j] += w[o, c, p, q] * x[n, o // per * w.shape[1] + c, i * si + p * dp, j * sj + q * dq]
    return y


# -- pools

POOLS: list[tuple[tuple[int, ...], ATTRIBUTES]] = [
    ((2, 3, 7, 6), {"kernel_shape": [3, 2]}),
    ((2, 3, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 2, 1]}),
    ((1, 2, 7, 6), {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    ((1, 2, 6, 9), {"kernel_shape": [2, 3], "strides": [4, 4], "ceil_mode": 1}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [2, 1], "pads": [2, 1, 1, 1]}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 2], "dilations": [2, 3], "strides": [3, 2], "ceil_mode": 1}),
    ((1, 2, 7, 6), {"kernel_shape": [4, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 7, 6), {"kernel_shape": [4, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 7, 6), {"kernel_shape": [4, 3], "strides": [2, 2], "auto_pad": "VALID"}),
    ((2, 1, 9), {"kernel_shape": [4], "strides": [5], "pads": [3, 2]}),
    ((1, 2, 4, 5, 6), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 3], "pads": [1, 0, 0, 1, 1, 1]}),
]


@pytest.mark.parametrize(("x", "attributes"), POOLS, ids=str)
def test_a_maximum_is_onnx_runtimes_with_its_index(x: tuple[int, ...], attributes: ATTRIBUTES) -> None:
    assert_as_the_runtime("MaxPool", [signed(*x)], attributes)
    assert_as_the_runtime("MaxPool", [signed(*x)], attributes, 2)
    assert_as_the_runtime("MaxPool", [-3 - np.abs(signed(*x))], attributes, 2)
    if len(x) == 4:
        assert_as_the_runtime("MaxPool", [signed(*x)], {**attributes, "storage_order": 1}, 2)


def test_of_equal_maxima_the_first_in_row_major_order_wins() -> None:
    x = np.floor(3 * RNG(0).random((1, 2, 6, 7)))
    said = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
    y, indices = evaluated("MaxPool", [x], said, 2)
    assert y.shape == (1, 2, 4, 4)
    for _, c, i, j in np.ndindex(*y.shape):
        window = [
            (row, column)
            for row in range(max(0, 2 * i - 1), min(6, 2 * i + 2))
            for column in range(max(0, 2 * j - 1), min(7, 2 * j + 2))
        ]
        row, column = max(window, key=lambda place: x[0, c, *place])  # max keeps the first of equals
        assert (y[0, c, i, j], indices[0, c, i, j]) == (x[0, c, row, column], c * 42 + row * 7 + column)


@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize(("x", "attributes"), POOLS, ids=str)
def test_an_average_is_onnx_runtimes(x: tuple[int, ...], attributes: ATTRIBUTES, count_include_pad: int) -> None:
    assert_as_the_runtime("AveragePool", [signed(*x)], {**attributes, "count_include_pad": count_include_pad})


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("x", "attributes"), [case for case in POOLS if "ceil_mode" not in case[1]], ids=str)
def test_a_norm_is_onnx_runtimes(x: tuple[int, ...], attributes: ATTRIBUTES, p: int) -> None:
    assert_as_the_runtime("LpPool", [signed(*x)], {**attributes, "p": p})


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5), (1, 2, 3, 4, 5)], ids=str)
def test_a_global_maximum_keeps_the_channels(shape: tuple[int, ...]) -> None:
    assert_as_the_runtime("GlobalMaxPool", [signed(*shape)])


# -- activations


def test_erf_and_gelu_have_the_digits_of_float64() -> None:
    x = np.linspace(-9, 9, 4001)
    (erfs,), (gelus,) = evaluated("Erf", [x]), evaluated("Gelu", [x], opset=20)
    assert np.array_equal(erfs, [math.erf(v) for v in x])
    # relative to each value, also where 1 + erf has lost all of its digits
    assert np.abs(gelus / [v * math.erfc(-v / math.sqrt(2)) / 2 if v else 1.0 for v in x] - (x != 0)).max() < 1e-15
    near = np.abs(x) < 1
    assert_close(gelus[near], np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x[near]]), 1e-15)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_onnx_runtimes(approximate: str) -> None:
    assert_as_the_runtime("Gelu", [3 * signed(5, 7)], {"approximate": approximate}, opset=20)


def test_erf_and_hard_swish_are_onnx_runtimes() -> None:
    assert_as_the_runtime("Erf", [2 * signed(4, 9)])
    assert_as_the_runtime("HardSwish", [4 * signed(4, 9)])


def test_hard_swish_divides_by_six() -> None:
    (y,) = evaluated("HardSwish", [np.array([-4.0, -1.0, 0.5, 2.0, 5.0])])
    assert_close(y, np.array([0.0, -1 / 3, 0.5 * (0.5 / 6 + 0.5), 2 * (2 / 6 + 0.5), 5.0]), 1e-16)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_logarithm_of_a_softmax_does_not_underflow(axis: int) -> None:
    assert_as_the_runtime("LogSoftmax", [signed(3, 4, 5)], {"axis": axis})
    (y,) = evaluated("LogSoftmax", [np.array([[0.0, 2000.0, -3.0]])])
    assert_close(y, np.array([[-2000.0, 0.0, -2003.0]]))


# -- normalisations


def test_a_batch_normalisation_adds_the_decimal_epsilon() -> None:
    x, scale, bias, mean, var = (
        signed(2, 3, 4),
        signed(3),
        signed(3, seed=1),
        signed(3, seed=2),
        np.array([1e-5, 0.3, 2]),
    )
    assert_as_the_runtime("BatchNormalization", [x, scale, bias, mean, var + 0.1])
    (y,) = evaluated("BatchNormalization", [x, scale, bias, mean, np.zeros(3)], {"epsilon": 1e-5})
    assert_close(y[:, 1], scale[1] * (x[:, 1] - mean[1]) / math.sqrt(1e-5) + bias[1], 1e-15)


def test_a_batch_normalisation_in_training_mode_uses_the_batch() -> None:
    x, zero, one = 2 + signed(2, 3, 4), np.zeros(3), np.ones(3)
    (y,) = evaluated("BatchNormalization", [x, one, zero, zero, one], {"training_mode": 1, "epsilon": 1e-5})
    expected = (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5)
    assert_close(y, expected)


@pytest.mark.parametrize(("opset", "per"), [(18, 3), (21, 6)])
def test_a_group_normalisation_stays_in_float64(opset: int, per: int) -> None:
    x, scale, bias = signed(2, 6, 3, 4), signed(per), signed(per, seed=1)
    (y,) = evaluated("GroupNormalization", [x, scale, bias], {"num_groups": 3, "epsilon": 2.0**-10}, opset=opset)
    for n, c in np.ndindex(2, 6):
        group = x[n, c // 2 * 2 : c // 2 * 2 + 2]
        k = c if per == 6 else c // 2
        expected = scale[k] * (x[n, c] - group.mean()) / math.sqrt(group.var() + 2.0**-10) + bias[k]
        assert_close(y[n, c], expected)


@pytest.mark.parametrize("attributes", [{}, {"axes": [2, 3]}, {"axes": [1]}], ids=str)
def test_a_mean_variance_normalisation_is_onnx_runtimes(attributes: ATTRIBUTES) -> None:
    assert_as_the_runtime("MeanVarianceNormalization", [signed(3, 2, 4, 5)], attributes)


@pytest.mark.parametrize("shape", [(3, 7, 2, 2), (4, 1, 3, 2), (1, 2, 2, 3)], ids=str)
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_local_response_normalisation_is_the_formula(shape: tuple[int, ...], size: int) -> None:
    x, said = signed(*shape), {"size": size, "alpha": 0.5, "beta": 0.75, "bias": 2.0}
    (y,) = evaluated("LRN", [x], said)
    for c in range(shape[1]):
        near = x[:, max(0, c - (size - 1) // 2) : c + math.ceil((size - 1) / 2) + 1]
        assert_close(y[:, c], x[:, c] / (2 + 0.5 / size * (near**2).sum(axis=1)) ** 0.75)
    assert_as_the_runtime("LRN", [x], said)


def test_a_local_response_normalisation_takes_an_even_size_and_any_rank() -> None:
    x = signed(2, 5, 3)
    (y,) = evaluated("LRN", [x], {"size": 4, "alpha": 0.5, "beta": 1.0, "bias": 1.0})
    for c in range(5):
        assert_close(y[:, c], x[:, c] / (1 + 0.125 * (x[:, max(0, c - 1) : c + 3] ** 2).sum(axis=1)))


# -- arithmetic and rearrangement


def test_a_mean_broadcasts_every_operand() -> None:
    a, b, c = signed(1, 3), signed(2, 1, seed=1), scalar(0.25)
    (y,) = evaluated("Mean", [a, b, c])
    assert_close(y, (a + b + c) / 3)
    assert_as_the_runtime("Mean", [a, b, c])


PADS = [[0, 1, 2, 0, 2, 1], [0, -1, 0, 0, 0, -2], [1, -1, 2, 0, 2, -2], [0, 0, -3, 0, 0, 1]]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("pads", PADS, ids=str)
def test_a_pad_adds_and_cuts_off(mode: str, pads: list[int]) -> None:
    attributes = {"mode": mode}
    assert_as_the_runtime("Pad", [signed(3, 4, 6), np.array(pads)], attributes)
    if mode == "constant":
        assert_as_the_runtime("Pad", [signed(3, 4, 6), np.array(pads), scalar(1.5)], attributes)


def test_a_pad_may_name_its_axes() -> None:
    assert_as_the_runtime("Pad", [signed(3, 4, 6), np.array([1, -2, 2, 3]), None, np.array([-1, 0])])
    assert_as_the_runtime("Pad", [signed(3, 4), np.array([2, 1]), scalar(7), np.array([1])])


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scattered_elements_meet_as_the_reduction_says(reduction: str, axis: int) -> None:
    data, shape = signed(4, 5, 3), (4, 2, 3)
    size = data.shape[axis]
    indices = RNG(1).integers(-size, size, shape)
    if reduction == "none":  # which of two equal places wins is open: take each once
        indices = np.argsort(RNG(1).random(data.shape), axis=axis)[:, :2]
    updates = signed(*shape, seed=2)
    assert_as_the_runtime("ScatterElements", [data, indices, updates], {"axis": axis, "reduction": reduction})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scattered_slices_meet_as_the_reduction_says(reduction: str) -> None:
    data = signed(4, 5, 3)
    places = [[0, 1], [3, -1], [2, 2]] if reduction == "none" else [[0, 1], [3, -1], [0, 1]]
    for indices in (np.array(places), np.array([places[:2], places[1:]])[:, :1], np.array([[1], [2]])):
        updates = signed(*indices.shape[:-1], *data.shape[indices.shape[-1] :], seed=1)
        assert_as_the_runtime("ScatterND", [data, indices, updates], {"reduction": reduction})


# -- interpolation

TRANSFORMATIONS = ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
RESIZED: list[tuple[tuple[int, int], list[float] | None, list[int] | None]] = [
    ((10, 9), [0.7, 1.5], None),
    ((5, 4), [2.0, 3.0], None),
    ((10, 9), [0.6, 0.3], None),
    ((5, 4), [1.3, 2.7], None),
    ((10, 9), None, [7, 4]),
    ((5, 4), None, [3, 11]),
    ((5, 4), None, [1, 1]),
]


@pytest.mark.parametrize("transformation", TRANSFORMATIONS)
@pytest.mark.parametrize(("size", "scales", "sizes"), RESIZED, ids=str)
@pytest.mark.parametrize(
    "attributes",
    [
        *({"mode": "nearest", "nearest_mode": n} for n in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
        {"mode": "linear"},
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic"},
        {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
        {"mode": "cubic", "antialias": 1, "exclude_outside": 1},
    ],
    ids=str,
)
def test_a_picture_is_resized_as_in_onnx_runtime(
    attributes: ATTRIBUTES, size: tuple[int, int], scales: list[float] | None, sizes: list[int] | None,
    transformation: str,
) -> None:  # fmt: skip
    said = {**attributes, "coordinate_transformation_mode": transformation, "axes": [2, 3]}
    assert_as_the_runtime("Resize", [signed(2, 3, *size), None, *factors(scales, sizes)], said)


def factors(scales: list[float] | None, sizes: list[int] | None) -> list[Array | None]:
    """The operands scales and sizes; scales stay float32 in any model, but are widened with everything else here."""
    return [None if scales is None else np.array(scales), None if sizes is None else np.array(sizes)]


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2]], ids=str)
def test_the_aspect_ratio_is_kept(policy: str, axes: list[int]) -> None:
    said = {"mode": "linear", "keep_aspect_ratio_policy": policy, "axes": axes}
    if min(axes) >= 0:  # ONNX Runtime does not know negative ones
        assert_as_the_runtime("Resize", [signed(1, 2, 10, 9), None, None, np.array([7, 4])], said)
    (y,) = evaluated("Resize", [signed(1, 2, 10, 9), None, None, np.array([7, 4])], said)
    positive = {**said, "axes": [a % 4 for a in axes]}
    assert np.array_equal(y, evaluated("Resize", [signed(1, 2, 10, 9), None, None, np.array([7, 4])], positive)[0])


def test_all_axes_may_be_resized() -> None:
    assert_as_the_runtime("Resize", [signed(2, 3, 4), None, np.array([1.5, 2.0, 0.5])], {"mode": "nearest"})


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_a_crop_is_resized_and_what_lies_outside_extrapolated(mode: str) -> None:
    said = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 5.0}
    roi = np.array([0, 0, 0.1, -0.2, 1, 1, 0.7, 1.1])
    assert_as_the_runtime("Resize", [signed(1, 2, 7, 6), roi, None, np.array([1, 2, 5, 8])], said)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_an_interpolation_of_a_line_is_the_line(mode: str) -> None:
    """Exact in float64: both kernels reproduce first-degree polynomials away from the edges (cubic: a = -1/2)."""
    x = (3.0 * np.arange(12) - 1).reshape(1, 1, 12)
    said = {"mode": mode, "coordinate_transformation_mode": "align_corners", "cubic_coeff_a": -0.5}
    (y,) = evaluated("Resize", [x, None, None, np.array([1, 1, 34])], said)
    inside = slice(6, 28)
    assert_close(y[0, 0, inside], 3 * (np.arange(34) * 11 / 33)[inside] - 1, 1e-14)


# -- indices and places


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_a_grid_is_read_inside_and_far_outside_as_the_runtime_does(mode: str, padding: str, align: int) -> None:
    said = {"mode": mode, "padding_mode": padding, "align_corners": align}
    grid = 1.7 * signed(2, 3, 4, 2, seed=1)
    assert_as_the_runtime("GridSample", [signed(2, 3, 5, 4), grid], said, opset=20)


@pytest.mark.parametrize("align", [0, 1])
def test_a_grid_of_places_is_affine_in_the_map(align: int) -> None:
    sizes = np.array([2, 1, 3, 2])
    assert_as_the_runtime("AffineGrid", [signed(2, 2, 3), sizes], {"align_corners": align}, opset=20)


@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("samples", [0, 2])
def test_regions_are_averaged_inside_and_beyond_the_picture(transform: str, samples: int) -> None:
    rois = np.array([[0.3, 0.7, 4.1, 3.9], [2.2, 1.1, 9.0, 8.5], [-4.0, -3.5, 1.7, 2.9]])
    said = {"output_height": 2, "output_width": 3, "sampling_ratio": samples, "spatial_scale": 0.7}
    operands = [signed(2, 3, 6, 7), rois, np.array([0, 1, 1])]
    assert_as_the_runtime("RoiAlign", operands, {**said, "coordinate_transformation_mode": transform})


def test_fewer_indices_than_entries_are_gathered() -> None:
    assert_as_the_runtime("GatherElements", [signed(3, 4), np.array([[0, -1], [2, 2]])], {"axis": 1})


@pytest.mark.parametrize("p", [1, 2])
def test_a_norm_is_of_magnitudes(p: int) -> None:
    assert_as_the_runtime("LpNormalization", [signed(2, 3, 4)], {"axis": 1, "p": p})
    assert_as_the_runtime("GlobalLpPool", [signed(2, 3, 4, 2)], {"p": p})


def test_dequantisation_keeps_the_digits_of_its_scale_and_is_known_at_every_opset() -> None:
    x, scale = np.array([[7, -3], [5, 1]], np.int8), np.array([0.1, 1 / 3], np.float32).astype(np.float64)
    for opset in (13, 18, 21):
        (y,) = evaluated("DequantizeLinear", [x, scale, np.array([1, -1], np.int8)], {"axis": 1}, opset=opset)
        np.testing.assert_array_equal(y, (x.astype(np.float64) - [1, -1]) * scale)


# -- the backend


def test_every_replacement_is_tested_here() -> None:
    tested = {
        "AffineGrid", "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DequantizeLinear", "Erf",
        "GatherElements", "Gelu", "GlobalLpPool", "GlobalMaxPool", "GridSample", "GroupNormalization", "HardSwish", "LogSoftmax", "LpNormalization",
        "LpPool", "LRN", "MaxPool", "Mean", "MeanVarianceNormalization", "Pad", "Resize", "RoiAlign", "ScatterElements",
        "ScatterND",
    }  # fmt: skip
    assert {op.__name__ for op in REPLACED} == tested


def test_the_model_keeps_its_precision_and_the_widened_one_has_float64() -> None:
    model = ir.from_proto(node_model("Conv", [signed(1, 2, 5), signed(3, 2, 2), signed(3)], {}))
    (narrow,) = Reference(model).run({"i0": signed(1, 2, 5).astype(np.float32)}).values()
    (wide,) = Reference(as_float64(model)).run({"i0": signed(1, 2, 5)}).values()
    assert [narrow.dtype, wide.dtype] == [np.dtype(np.float32), np.dtype(np.float64)]
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT
    assert 0 < np.abs(narrow - wide).max() < 1e-5


def test_an_output_may_be_picked_by_name() -> None:
    model = ir.from_proto(node_model("MaxPool", [signed(1, 2, 5)], {"kernel_shape": [2]}, outputs=2))
    assert list(Reference(model).run({"i0": signed(1, 2, 5)}, ["o1"])) == ["o1"]
