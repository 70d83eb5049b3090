"""The oracles themselves: against numbers made by hand, the released RAP code's arrays, and ONNX Runtime."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import CASES, Case, drawn_cases
from hypothesis import HealthCheck, given, settings
from oracles import (
    Array,
    by_sample,
    dense_of,
    evaluate,
    lrp_alpha_beta,
    lrp_epsilon,
    lrp_flat,
    lrp_gamma,
    lrp_w_square,
    lrp_z_box,
    lrp_z_plus,
    lrp_zero,
    rap_add,
    rap_batchnorm,
    rap_concat,
    rap_first_joint,
    rap_first_official,
    rap_joint,
    rap_official,
    rap_ratio,
    rap_z_box,
    relu_deconvnet,
    relu_gradient,
    relu_guided,
    shift,
    sum_absolute,
    sum_epsilon,
    winner_takes_all,
    winners,
)

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "rap_rsp"
TOLERANCE = 1e-12  # relative to the largest value: float64, sums of a few hundred products in another order

X, W, B = np.array([1.0, -2.0, 3.0]), np.array([[2.0, 1.0, 0.0], [-1.0, 1.0, 1.0]]), np.array([1.0, -1.0])
R = np.array([5.0, 6.0])
# Contributions W x: [2, -2, 0] and [-1, -2, 3]; z = [1, -1].


def close(actual: Array, expected: Any, tolerance: float = TOLERANCE) -> None:
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-300)


# --------------------------------------------------------------------------- by hand


def test_epsilon_divides_each_contribution_by_the_stabilised_sum() -> None:
    close(lrp_zero(X, W, B, R), [2 * 5 + -1 * -6, -2 * 5 + -2 * -6, 3 * -6])
    close(lrp_epsilon(X, W, B, R, epsilon=1.0), [2 * 2.5 + 3, -2 * 2.5 + 6, -9])


def test_epsilon_counts_zero_as_positive() -> None:
    one = np.ones(1)
    close(lrp_epsilon(one, np.array([[1.0], [1.0]]), np.array([-1.0, 0.0]), np.array([3.0, 0.0]), 0.5), [6.0])


def test_zero_drops_what_arrives_at_an_output_of_exactly_zero() -> None:
    close(lrp_zero(np.array([1.0, 1.0]), np.array([[1.0, -1.0]]), np.zeros(1), np.ones(1)), [0.0, 0.0])


def test_z_plus_shares_among_positive_contributions_and_the_positive_bias() -> None:
    close(lrp_z_plus(X, W, B, R, epsilon=0.0), [2 / 3 * 5, 0.0, 3 / 3 * 6])


def test_alpha_beta_subtracts_the_negative_share() -> None:
    negative = np.array([-1 / -4 * 6, -2 / -2 * 5 + -2 / -4 * 6, 0.0])
    positive = np.array([2 / 3 * 5, 0.0, 6.0])
    close(lrp_alpha_beta(X, W, B, R, 2.0, 1.0, epsilon=0.0), 2 * positive - negative)


def test_gamma_favours_the_sign_of_the_sum() -> None:
    # z = [1, -1]: first row parts [2 + 2, -2, 0], bias 1 + 1; second row parts [-1 - 1, -2 - 2, 3], bias -1 - 1.
    close(lrp_gamma(X, W, B, R, 1.0, epsilon=0.0), [4 / 4 * 5 + -2 / -5 * 6, -2 / 4 * 5 + -4 / -5 * 6, 3 / -5 * 6])


def test_gamma_zero_is_epsilon() -> None:
    close(lrp_gamma(X, W, B, R, 0.0, epsilon=1e-6), lrp_epsilon(X, W, B, R, 1e-6))


def test_flat_shares_equally_among_the_connected_inputs() -> None:
    close(lrp_flat(X, np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), B, R, epsilon=0.0), [4.5, 4.5, 2.0])


def test_w_square_shares_by_the_squared_weights() -> None:
    close(lrp_w_square(X, W, B, R, epsilon=0.0), [4 / 5 * 5 + 1 / 3 * 6, 1 / 5 * 5 + 1 / 3 * 6, 2.0])


def test_z_box_subtracts_the_nearest_bound() -> None:
    # z - W+ low - W- high with the box [-2, 3]: rows [2 + 4, -2 + 2, 0] and [-1 + 3, -2 + 2, 3 + 2].
    close(lrp_z_box(X, W, B, R, -2.0, 3.0, epsilon=0.0), [6 / 6 * 5 + 2 / 7 * 6, 0.0, 5 / 7 * 6])


def test_a_sum_shares_by_the_signed_operands() -> None:
    a, b = sum_epsilon([np.array([3.0, 1.0]), np.array([-1.0, -1.0])], np.array([4.0, 5.0]), epsilon=0.0)
    close(a, [6.0, 0.0])
    close(b, [-2.0, 0.0])


def test_a_sum_may_share_by_magnitude() -> None:
    a, b = sum_absolute([np.array([3.0, 1.0]), np.array([-1.0, -1.0])], np.array([4.0, 5.0]))
    close(a, [3.0, 2.5])
    close(b, [1.0, 2.5])


def test_the_first_maximum_in_row_major_order_takes_all() -> None:
    x = np.array([[[[1.0, 2.0, 2.0], [2.0, 0.0, 2.0]]]])
    close(winner_takes_all(x, np.array([[[[3.0, 4.0]]]]), (2, 2)), [[[[0.0, 7.0, 0.0], [0.0, 0.0, 0.0]]]])


def test_a_window_of_zeros_gives_all_to_its_first_place_unless_zeros_drop() -> None:
    x, r = np.zeros((1, 1, 2)), np.ones((1, 1, 1))
    close(winner_takes_all(x, r, (2,)), [[[1.0, 0.0]]])
    close(winner_takes_all(x, r, (2,), drop_zero=True), [[[0.0, 0.0]]])


def test_padding_never_wins() -> None:
    y, _ = winners(np.array([[[-3.0, -2.0]]]), (2,), pads=[1, 1])
    close(y, [[[-3.0, -2.0, -2.0]]])


def test_the_shift_moves_the_sum_and_keeps_the_zeros() -> None:
    close(shift(np.array([1.0, 0.0, 4.0]), 3.0), [0.0, 0.0, 3.0])
    close(shift(np.zeros(2), 3.0), [0.0, 0.0])


def test_rap_for_a_positive_input_by_hand() -> None:
    # One output, z = [2, -1], r = 3: the positive part gives 2 * 3/2, the negative one 1 * 3/3.
    x, w = np.array([2.0, 1.0]), np.array([[1.0, -1.0]])
    # C = [3, 1], too much by 1, taken evenly.
    close(rap_joint(x, w, np.array([3.0]), conv=True), [2.5, 0.5])
    # Conv with negative r: z- alone, by r/T + r/Z-: C = [0, -1 - 3], and the zero stays zero.
    close(rap_joint(x, w, np.array([-3.0]), conv=True), [0.0, -3.0])
    # Gemm with negative r: mirrored.
    close(rap_joint(x, w, np.array([-3.0]), conv=False), [-2.5, -0.5])


@pytest.mark.parametrize("conv", [True, False])
def test_the_joint_rap_rule_is_the_released_one_for_inputs_without_negative_values(conv: bool) -> None:
    rng = np.random.default_rng(0)
    x, w, r = rng.random(7), rng.standard_normal((5, 7)), rng.standard_normal(5)
    close(rap_joint(x, w, r, conv), rap_official(x, w, r, conv))
    close(np.array(rap_joint(x, w, r, conv).sum()), r.sum(), 1e-10)


def test_the_released_rap_rule_doubles_the_sum_for_signed_inputs_and_the_joint_one_does_not() -> None:
    rng = np.random.default_rng(1)
    x, w, r = rng.standard_normal(7), rng.standard_normal((5, 7)), rng.standard_normal(5)
    close(np.array(rap_official(x, w, r, True).sum()), 2 * r.sum(), 1e-10)
    close(np.array(rap_joint(x, w, r, True).sum()), r.sum(), 1e-10)


def test_the_first_propagation_of_rap_gives_the_logit_one_sign() -> None:
    rng = np.random.default_rng(2)
    x, w, b = rng.random(6), rng.standard_normal(6), 0.7
    logit = x @ w + b
    expected = logit * np.abs(x * w) / np.abs(x * w).sum()
    close(rap_first_joint(x, w, b), expected)
    close(rap_first_official(x, w, b), expected)
    signed = rng.standard_normal(6)
    close(np.array(rap_first_joint(signed, w, b).sum()), signed @ w + b)


def test_the_gradient_family_differs_in_its_relu_alone() -> None:
    x, g = np.array([-1.0, 0.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0, -2.0])
    close(relu_gradient(x, g), [0.0, 0.0, 2.0, -2.0])
    close(relu_deconvnet(x, g), [2.0, 2.0, 2.0, 0.0])
    close(relu_guided(x, g), [0.0, 0.0, 2.0, 0.0])


# --------------------------------------------------------------------------- the released RAP code


@lru_cache(maxsize=1)
def golden() -> Any:
    return np.load(GOLDEN / "single_layers.npz")


def _golden_cases() -> list[Any]:
    if not (GOLDEN / "single_layers.npz").exists():
        skip = pytest.mark.skip(reason="../shared/golden/rap_rsp is not there")
        return [pytest.param({}, marks=skip, id="absent")]
    listed = json.loads(str(golden()["cases_json"]))
    return [pytest.param(entry, id=entry["name"]) for entry in listed if entry["name"].startswith("rap/")]


def _weights(entry: dict[str, Any], shape: tuple[int, ...]) -> Array:
    """The dense matrix [O, I] of this layer without its bias."""
    attrs, g, name = entry["attrs"], golden(), entry["name"]
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.DOUBLE, [None] * len(shape))
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)
    constants = []
    if entry["op"] == "Linear":
        node = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    elif entry["op"] == "Conv2d":
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], strides=attrs["stride"], pads=attrs["padding"] * 2)
    elif entry["op"] == "AvgPool2d":
        kernel: dict[str, Any] = {"kernel_shape": [attrs["kernel_size"]] * 2, "strides": [attrs["stride"]] * 2}
        node = onnx.helper.make_node(
            "AveragePool", ["x"], ["y"], pads=[attrs["padding"]] * 4, count_include_pad=1, **kernel
        )
    else:
        node = onnx.helper.make_node("GlobalAveragePool", ["x"], ["y"])
    if "w" in node.input:
        constants = [onnx.numpy_helper.from_array(g[f"{name}/param/weight"], "w")]
    graph = onnx.helper.make_graph([node], "layer", [x], [y], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return dense_of(model, (1, *shape[1:]))[0]


def _adaptive(shape: tuple[int, ...], out: int) -> Array:
    """Adaptive average pooling: bin k of n covers floor(k n / out) .. ceil((k + 1) n / out)."""
    rows = np.zeros((out, shape[-1]))
    for k in range(out):
        first, last = k * shape[-1] // out, -(-(k + 1) * shape[-1] // out)
        rows[k, first:last] = 1 / (last - first)
    return np.kron(np.eye(shape[1]), np.kron(rows, rows))


@pytest.mark.parametrize("entry", _golden_cases())
def test_the_oracles_give_what_the_released_rap_code_gave(entry: dict[str, Any]) -> None:
    name, op, attrs, g = entry["name"], entry["op"], entry["attrs"], golden()
    r = g[f"{name}/R_out"]
    if op in ("Add", "Cat"):
        parts = [g[f"{name}/x0"], g[f"{name}/x1"]]
        given = rap_add(parts, r) if op == "Add" else rap_concat(parts, r, axis=1)
        for k in range(2):
            close(given[k], g[f"{name}/f64/R_in{k}"])
        return
    x, expected = g[f"{name}/x"], g[f"{name}/f64/R_in"]
    if op == "BatchNorm2d":
        close(rap_batchnorm(x, g[f"{name}/param/weight"], r), expected)
    elif op == "MaxPool2d":
        geometry = {"strides": [attrs["stride"]] * 2, "pads": [attrs["padding"]] * 4}
        close(winner_takes_all(x, r, [attrs["kernel_size"]] * 2, drop_zero=True, **geometry), expected)
    elif "Avg" in op:
        matrix = _adaptive(x.shape, 3) if attrs.get("output_size") == [3, 3] else _weights(entry, x.shape)
        close(by_sample(rap_ratio, x, r, W=matrix), expected)
    elif "first_prop" in name:
        weight, bias = g[f"{name}/param/weight"], g[f"{name}/param/bias"]
        targets = r.argmax(axis=1)
        close(np.stack([rap_first_official(xi, weight[t], bias[t]) for xi, t in zip(x, targets)]), expected)
    elif "first_conv" in name:
        close(by_sample(rap_z_box, x, r, W=_weights(entry, x.shape)), expected)
    else:
        close(by_sample(rap_official, x, r, W=_weights(entry, x.shape), conv=op == "Conv2d"), expected)


# --------------------------------------------------------------------------- the evaluator


def runtime(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    """All outputs of a model under ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


def agree_with_runtime(case: Case) -> None:
    """Float64 in the evaluator against float32 in ONNX Runtime."""
    exact = evaluate(case.build(np.float64), case.values(np.float64))
    single = runtime(case.build(np.float32), case.values(np.float32))
    for name in case.outputs:
        assert exact[name].dtype == np.float64
        close(single[name].astype(np.float64), exact[name], case.rtol)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_evaluator_computes_what_onnx_runtime_computes(case: Case) -> None:
    if case.name.startswith(("quantise-pair", "dynamic-")):
        pytest.skip("quantisation has a float32 scale: the deployed meaning is not widened to float64")
    agree_with_runtime(case)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(drawn_cases())
def test_the_evaluator_computes_what_onnx_runtime_computes_for_drawn_geometry(case: Case) -> None:
    agree_with_runtime(case)
