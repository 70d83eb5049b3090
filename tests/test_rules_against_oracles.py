"""Each method through the library, in float64, against the oracles: small chains of layers, walked back rule by rule.

A chain is a list of layers; the library sees one ONNX model, the oracle sees the dense matrix of every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from cases import Array, Case, Values, positive, signed
from onnx import parser
from oracles import (
    Rule,
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
    rap_first_joint,
    rap_first_official,
    rap_joint,
    rap_official,
    rap_ratio,
    rap_z_box,
    relu_deconvnet,
    relu_gradient,
    relu_guided,
    sum_absolute,
    sum_epsilon,
    winner_takes_all,
)

from onnx_explain import Explainer

TOLERANCE = 1e-9  # float64, relative to the largest value; quotients of nearly cancelling sums lose a few digits
EPSILON = 1e-6


# --------------------------------------------------------------------------- chains


@dataclass(frozen=True)
class Layer:
    """One node: its call in ONNX's text syntax on `x` and its own constants, and the shapes of these constants."""

    call: str
    constants: tuple[tuple[str, Values], ...] = ()
    geometry: tuple[tuple[str, Any], ...] = ()

    @property
    def kind(self) -> str:
        return self.call.split("<")[0].split("(")[0]

    @property
    def weighted(self) -> bool:
        return any(name == "w" for name, _ in self.constants)


def conv(w: tuple[int, ...], attributes: str = "pads=[1,1,1,1]", bias: bool = True) -> Layer:
    constants = (("w", signed(*w)), ("b", signed(w[0])))[: 1 + bias]
    return Layer(f"Conv<{attributes}>(x, {', '.join(name for name, _ in constants)})", constants)


def transposed(w: tuple[int, ...], attributes: str) -> Layer:
    return Layer(f"ConvTranspose<{attributes}>(x, w, b)", (("w", signed(*w)), ("b", signed(w[1]))))


def gemm(inputs: int, outputs: int) -> Layer:
    return Layer("Gemm<transB=1>(x, w, b)", (("w", signed(outputs, inputs)), ("b", signed(outputs))))


def max_pool(kernel: int, stride: int, pad: int = 0) -> Layer:
    call = f"MaxPool<kernel_shape=[{kernel},{kernel}],strides=[{stride},{stride}],pads=[{pad},{pad},{pad},{pad}]>(x)"
    return Layer(call, geometry=(("kernel", (kernel,) * 2), ("strides", (stride,) * 2), ("pads", (pad,) * 4)))


def average_pool(kernel: int, stride: int) -> Layer:
    return Layer(f"AveragePool<kernel_shape=[{kernel},{kernel}],strides=[{stride},{stride}]>(x)")


def batch_norm(channels: int) -> Layer:
    constants = (("s", signed(channels)), ("t", signed(channels)), ("m", signed(channels)), ("v", positive(channels)))
    return Layer("BatchNormalization(x, s, t, m, v)", constants)


RELU, FLATTEN, MEAN = Layer("Relu(x)"), Layer("Flatten(x)"), Layer("GlobalAveragePool(x)")


@dataclass(frozen=True)
class Chain:
    """Layers one after the other; `at(k)` is layer k alone, with the same numbers."""

    name: str
    shape: tuple[int, ...]
    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        return self.name

    def constants(self, k: int) -> dict[str, Array]:
        return {n: v.draw([k, 11, len(n)]) for n, v in self.layers[k].constants}

    def whole(self, upto: int | None = None, start: int = 0) -> Case:
        """The layers `start`..`upto` as one model with output y."""
        layers = self.layers[start:upto]
        text, constants = [], {}
        for k, layer in enumerate(layers, start):
            call = layer.call
            for name, array in self.constants(k).items():
                constants[f"{name}{k}"] = array
                call = call.replace(f", {name}", f", {name}{k}")
            inner = "x" if k == start else f"h{k - 1}"
            text.append(f"{'y' if k == start + len(layers) - 1 else f'h{k}'} = {call.replace('(x', f'({inner}')}")
        return Case(self.name, "; ".join(text), {"x": Values(self.values[start].shape)}, constants)

    @property
    def values(self) -> list[Array]:
        """The input of every layer, and the output of the last, for the chain's own picture."""
        return _values(self)

    def matrix(self, k: int, upto: int | None = None) -> tuple[Array, Array]:
        """W [O, I] and b [O] of layer k, or of the layers k..upto together."""
        return _matrix(self, k, upto)

    def connections(self, k: int) -> Array:
        """1 where layer k connects an input to an output, whatever the weight."""
        constants = {n: np.ones_like(a) if n == "w" else np.zeros_like(a) for n, a in self.constants(k).items()}
        x = self.values[k]
        alone = Case("ones", f"y = {self.layers[k].call}", {"x": Values(x.shape)}, constants)
        return dense_of(alone.build(np.float64), x.shape)[0]


@cache
def _values(chain: Chain) -> list[Array]:
    x = Values(chain.shape).draw([7])
    values = [x]
    for k, layer in enumerate(chain.layers):
        alone = Case("layer", f"y = {layer.call}", {"x": Values(values[-1].shape)}, chain.constants(k))
        values.append(evaluate(alone.build(np.float64), {"x": values[-1]})["y"])
    return values


@cache
def _matrix(chain: Chain, k: int, upto: int | None) -> tuple[Array, Array]:
    return dense_of(chain.whole((k if upto is None else upto) + 1, k).build(np.float64), chain.values[k].shape)


LINEAR = {"Conv", "ConvTranspose", "Gemm"}
AVERAGES = {"AveragePool", "GlobalAveragePool"}
Backward = Callable[[Chain, int, Array], Array]


def walk_back(chain: Chain, r: Array, backward: Backward) -> Array:
    """Relevance at the input: `backward(chain, k, r)` takes it through layer k, all in the tensors' own shapes."""
    for k in reversed(range(len(chain.layers))):
        r = backward(chain, k, r).reshape(chain.values[k].shape)
    return r


def lrp_backward(chain: Chain, k: int, r: Array, rule_of: Callable[[Chain, int], Rule], epsilon: float) -> Array:
    """The layers without a weight: averages by the epsilon rule, maxima to the winner, all else passes."""
    layer, x = chain.layers[k], chain.values[k]
    if layer.kind in LINEAR:
        W, b = chain.matrix(k)
        return rule_of(chain, k)(x.ravel(), W=W, b=b, r=r.ravel())
    if layer.kind in AVERAGES:
        W, _ = chain.matrix(k)
        return lrp_epsilon(x.ravel(), W, np.zeros(len(W)), r.ravel(), epsilon)
    if layer.kind == "MaxPool":
        return winner_takes_all(x, r, **dict(layer.geometry))
    return r


def gradient_backward(chain: Chain, k: int, r: Array, relu: Callable[[Array, Array], Array]) -> Array:
    """The exact adjoint of every layer, apart from the Relu."""
    layer, x = chain.layers[k], chain.values[k]
    if layer.kind == "Relu":
        return relu(x, r)
    if layer.kind == "MaxPool":
        return winner_takes_all(x, r, **dict(layer.geometry))
    if layer.kind == "Flatten":
        return r
    return chain.matrix(k)[0].T @ r.ravel()


# --------------------------------------------------------------------------- the chains

SINGLE = [
    Chain("conv", (1, 2, 4, 5), (conv((3, 2, 3, 3)),)),
    Chain("conv-no-bias", (1, 2, 4, 5), (conv((3, 2, 3, 3), bias=False),)),
    Chain("conv-stride-asymmetric", (1, 2, 6, 5), (conv((3, 2, 3, 2), "strides=[2,2],pads=[1,0,2,1]"),)),
    Chain("conv-groups-dilated", (1, 4, 6, 6), (conv((4, 2, 3, 3), "group=2,dilations=[2,2],pads=[1,2,2,1]"),)),
    Chain("conv-groups-stride", (1, 4, 5, 5), (conv((6, 2, 3, 3), "group=2,strides=[2,2],pads=[1,1,1,1]"),)),
    Chain("conv-depthwise", (1, 3, 4, 4), (conv((3, 1, 3, 3), "group=3,pads=[1,1,1,1]"),)),
    Chain("conv-1d", (1, 2, 8), (conv((3, 2, 3), "strides=[2]"),)),
    Chain("conv-3d", (1, 1, 3, 3, 3), (conv((2, 1, 2, 2, 2), ""),)),
    Chain("convtranspose", (1, 2, 3, 3), (transposed((2, 3, 3, 3), "strides=[2,2],pads=[1,0,0,1]"),)),
    Chain("convtranspose-groups", (1, 4, 3, 3), (Layer(
        "ConvTranspose<group=2,strides=[2,2]>(x, w, b)", (("w", signed(4, 2, 2, 2)), ("b", signed(4)))),)),
    Chain("gemm", (1, 7), (gemm(7, 4),)),
]  # fmt: skip
SIGNED = [
    Chain("conv-gemm", (1, 2, 4, 4), (conv((3, 2, 3, 3)), FLATTEN, gemm(48, 4))),
    Chain("gemm-gemm", (1, 6), (gemm(6, 5), gemm(5, 4))),
    Chain("conv-conv", (1, 2, 4, 4), (conv((3, 2, 3, 3)), conv((2, 3, 3, 3), "strides=[2,2]"))),
    Chain(
        "conv-convtranspose",
        (1, 2, 4, 4),
        (conv((3, 2, 3, 3), "strides=[2,2]"), transposed((3, 2, 2, 2), "strides=[2,2]")),
    ),
]
RELU_NETS = [
    Chain("mlp", (1, 6), (gemm(6, 8), RELU, gemm(8, 7), RELU, gemm(7, 4))),
    Chain("vgg", (1, 3, 8, 8), (
        conv((4, 3, 3, 3)), RELU, conv((4, 4, 3, 3)), RELU, max_pool(2, 2), conv((5, 4, 3, 3), bias=False), RELU,
        FLATTEN, gemm(80, 6), RELU, gemm(6, 4))),
    Chain("overlapping-pool", (1, 3, 7, 7), (
        conv((4, 3, 3, 3), "pads=[1,1,1,1]"), RELU, max_pool(3, 2, 1), conv((4, 4, 1, 1), ""), RELU, MEAN, FLATTEN,
        gemm(4, 3))),
    Chain("average-pool", (1, 3, 6, 6), (
        conv((4, 3, 3, 3)), RELU, average_pool(2, 2), conv((4, 4, 3, 3)), RELU, FLATTEN, gemm(36, 3))),
]  # fmt: skip


def target_of(index: tuple[int, ...]) -> str:
    return f"y[{','.join(map(str, index))}]"


def seeds(chain: Chain) -> list[tuple[int, ...]]:
    """The largest, the smallest and two other elements of the output: negative scores are part of it."""
    y = chain.values[-1]
    flat = dict.fromkeys([int(y.argmax()), int(y.argmin()), 0, y.size // 2])
    return [tuple(int(i) for i in np.unravel_index(k, y.shape)) for k in flat]


def one_hot(chain: Chain, index: tuple[int, ...], seed: str) -> Array:
    r = np.zeros_like(chain.values[-1])
    r[index] = chain.values[-1][index] if seed == "score" else 1.0
    return r


def explained(chain: Chain, index: tuple[int, ...], method: str, **options: Any) -> Array:
    """What the library says, in float64."""
    explainer = Explainer(chain.whole().build(np.float64), method=method, backend="reference", **options)
    return np.asarray(explainer(chain.values[0], target=target_of(index)).relevance["x"])


def assert_close(actual: Array, expected: Array, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-12)


def check(chain: Chain, backward: Backward, method: str, seed: str = "score", **options: Any) -> None:
    """The library against the oracle for every seed of the chain."""
    for index in seeds(chain):
        actual = explained(chain, index, method, seed=seed, **options)
        assert_close(actual, walk_back(chain, one_hot(chain, index, seed), backward))


# --------------------------------------------------------------------------- one LRP rule on every layer


def flat(chain: Chain, k: int, epsilon: float = EPSILON) -> Rule:
    ones = chain.connections(k)
    return lambda x, W, b, r: lrp_flat(x, ones, b, r, epsilon)


def everywhere(rule: Rule) -> Callable[[Chain, int], Rule]:
    return lambda chain, k: rule


Entry = tuple[str, dict[str, Any], Callable[[Chain, int], Rule], float]
RULES: dict[str, Entry] = {
    "zero": ("lrp-zero", {}, everywhere(lrp_zero), 0.0),
    "epsilon": ("lrp-epsilon", {}, everywhere(lrp_epsilon), EPSILON),
    "epsilon-large": ("lrp-epsilon", {"epsilon": 0.25}, everywhere(partial(lrp_epsilon, epsilon=0.25)), 0.25),
    "gamma": ("lrp-gamma", {"gamma": 0.25}, everywhere(partial(lrp_gamma, gamma=0.25)), EPSILON),
    "gamma-large": ("lrp-gamma", {"gamma": 3.0}, everywhere(partial(lrp_gamma, gamma=3.0)), EPSILON),
    "alpha2-beta1": ("lrp-alpha2-beta1", {}, everywhere(partial(lrp_alpha_beta, alpha=2.0, beta=1.0)), EPSILON),
    "alpha-beta": ("lrp-alpha2-beta1", {"alpha": 1.5, "beta": 0.5},
                   everywhere(partial(lrp_alpha_beta, alpha=1.5, beta=0.5)), EPSILON),
    "z-plus": ("lrp-z-plus", {}, everywhere(lrp_z_plus), EPSILON),
    "flat": ("lrp-flat", {}, flat, EPSILON),
    "w-square": ("lrp-w-square", {}, everywhere(lrp_w_square), EPSILON),
}  # fmt: skip


@pytest.mark.parametrize("chain", SINGLE + SIGNED + RELU_NETS, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_one_rule_on_every_layer_is_the_papers_formula(name: str, chain: Chain) -> None:
    method, options, rule_of, epsilon = RULES[name]
    check(chain, partial(lrp_backward, rule_of=rule_of, epsilon=epsilon), method, **options)


@pytest.mark.parametrize("name", RULES)
def test_seed_one_starts_at_one(name: str) -> None:
    method, options, rule_of, epsilon = RULES[name]
    backward = partial(lrp_backward, rule_of=rule_of, epsilon=epsilon)
    check(SIGNED[0], backward, method, seed="one", **options)


def without_bias(rule: Rule) -> Rule:
    return lambda x, W, b, r: rule(x, W=W, b=np.zeros_like(b), r=r)


@pytest.mark.parametrize("name", ["epsilon", "gamma", "alpha2-beta1", "z-plus"])
def test_zero_bias_leaves_the_bias_out_of_the_denominator(name: str) -> None:
    method, options, rule_of, epsilon = RULES[name]
    rule = rule_of(SIGNED[0], 0)
    rule = partial(rule, zero_bias=True) if name == "gamma" else without_bias(rule)
    for chain in (SIGNED[0], RELU_NETS[0]):
        backward = partial(lrp_backward, rule_of=everywhere(rule), epsilon=epsilon)
        check(chain, backward, method, zero_bias=True, **options)


# --------------------------------------------------------------------------- composites


def composite(
    first: Callable[[Chain, int], Rule] | None, convolution: Rule, dense: Rule
) -> Callable[[Chain, int], Rule]:
    def rule_of(chain: Chain, k: int) -> Rule:
        if first is not None and not any(layer.weighted for layer in chain.layers[:k]):
            return first(chain, k)
        return dense if chain.layers[k].kind == "Gemm" else convolution

    return rule_of


def box(chain: Chain, k: int) -> Rule:
    """Low and high are given per channel of the picture: -2, -1, .. and 1, 2, .."""
    channels, spatial = chain.shape[1], int(np.prod(chain.shape[2:]))
    low, high = np.repeat(-2.0 - np.arange(channels), spatial), np.repeat(2.0 + np.arange(channels), spatial)
    return lambda x, W, b, r: lrp_z_box(x, W, b, r, low, high, EPSILON)


ALPHA_BETA = partial(lrp_alpha_beta, alpha=2.0, beta=1.0)
BOUNDS = {"low": [-2.0, -3.0, -4.0], "high": [2.0, 3.0, 4.0]}
COMPOSITES: dict[str, tuple[str, dict[str, Any], Callable[[Chain, int], Rule]]] = {
    "epsilon-plus": ("lrp-epsilon-plus", {}, composite(None, lrp_z_plus, lrp_epsilon)),
    "epsilon-plus-flat": ("lrp-epsilon-plus-flat", {}, composite(flat, lrp_z_plus, lrp_epsilon)),
    "epsilon-alpha2-beta1": ("lrp-epsilon-alpha2-beta1", {}, composite(None, ALPHA_BETA, lrp_epsilon)),
    "epsilon-alpha2-beta1-flat": ("lrp-epsilon-alpha2-beta1-flat", {}, composite(flat, ALPHA_BETA, lrp_epsilon)),
    "epsilon-gamma-box": ("lrp-epsilon-gamma-box", BOUNDS, composite(box, partial(lrp_gamma, gamma=0.25), lrp_epsilon)),
}
PICTURES = [chain for chain in RELU_NETS if len(chain.shape) == 4]


@pytest.mark.parametrize("chain", PICTURES, ids=str)
@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_puts_its_rules_on_the_right_layers(name: str, chain: Chain) -> None:
    method, options, rule_of = COMPOSITES[name]
    check(chain, partial(lrp_backward, rule_of=rule_of, epsilon=EPSILON), method, **options)


def test_the_box_may_be_one_number_for_all_channels() -> None:
    rule = partial(lrp_z_box, low=-2.5, high=3.5)
    rule_of = composite(everywhere(rule), partial(lrp_gamma, gamma=0.25), lrp_epsilon)
    backward = partial(lrp_backward, rule_of=rule_of, epsilon=EPSILON)
    check(PICTURES[0], backward, "lrp-epsilon-gamma-box", low=-2.5, high=3.5)


@pytest.mark.parametrize("chain", RELU_NETS, ids=str)
def test_excitation_backprop_is_z_plus_with_the_gradient_of_the_activations(chain: Chain) -> None:
    def backward(chain: Chain, k: int, r: Array) -> Array:
        if chain.layers[k].kind == "Relu":
            return relu_gradient(chain.values[k], r)
        return lrp_backward(chain, k, r, everywhere(lrp_z_plus), EPSILON)

    check(chain, backward, "excitation-backprop")


def _deep_taylor(first: Callable[[Chain, int], Rule]) -> Backward:
    rule = without_bias(lrp_z_plus)
    return partial(lrp_backward, rule_of=composite(first, rule, rule), epsilon=EPSILON)


def _positive_seeds(chain: Chain) -> list[tuple[int, ...]]:
    return [index for index in seeds(chain) if chain.values[-1][index] > 0]


@pytest.mark.parametrize("chain", RELU_NETS, ids=str)
def test_deep_taylor_is_z_plus_without_bias_and_w_square_first(chain: Chain) -> None:
    for index in _positive_seeds(chain):
        expected = walk_back(chain, one_hot(chain, index, "score"), _deep_taylor(everywhere(lrp_w_square)))
        assert_close(explained(chain, index, "deep-taylor"), expected)


@pytest.mark.parametrize("chain", PICTURES, ids=str)
def test_deep_taylor_has_a_box_where_the_input_is_bounded(chain: Chain) -> None:
    for index in _positive_seeds(chain):
        expected = walk_back(chain, one_hot(chain, index, "score"), _deep_taylor(box))
        assert_close(explained(chain, index, "deep-taylor", **BOUNDS), expected)


def test_deep_taylor_starts_at_the_positive_part_of_the_score() -> None:
    chain = RELU_NETS[0]
    index = next(index for index in seeds(chain) if chain.values[-1][index] < 0)
    assert not explained(chain, index, "deep-taylor").any()


# --------------------------------------------------------------------------- BatchNormalization

BN = Chain("conv-bn-relu", (1, 2, 4, 4), (conv((3, 2, 3, 3)), batch_norm(3), RELU, FLATTEN, gemm(48, 3)))
FOLDABLE = ["epsilon", "gamma", "alpha2-beta1", "z-plus", "w-square", "flat"]


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_folded_batchnorm_is_one_convolution(name: str) -> None:
    method, options, rule_of, epsilon = RULES[name]

    def backward(chain: Chain, k: int, r: Array) -> Array:
        if chain.layers[k].kind == "BatchNormalization":
            return r  # the convolution below stands for both
        if chain.layers[k].kind == "Conv":
            W, b = chain.matrix(k, k + 1)
            return rule_of(chain, k)(chain.values[k].ravel(), W=W, b=b, r=r.ravel())
        return lrp_backward(chain, k, r, rule_of, epsilon)

    check(BN, backward, method, batch_norm="fold", **options)


@pytest.mark.parametrize("name", ["epsilon", "z-plus"])
def test_batchnorm_by_the_epsilon_rule_treats_it_as_a_diagonal(name: str) -> None:
    method, options, rule_of, epsilon = RULES[name]

    def backward(chain: Chain, k: int, r: Array) -> Array:
        if chain.layers[k].kind == "BatchNormalization":
            W, b = chain.matrix(k)
            return lrp_epsilon(chain.values[k].ravel(), W, b, r.ravel(), epsilon)
        return lrp_backward(chain, k, r, rule_of, epsilon)

    check(BN, backward, method, batch_norm="epsilon", **options)


@pytest.mark.parametrize("name", ["epsilon", "z-plus"])
def test_batchnorm_may_be_seen_through(name: str) -> None:
    method, options, rule_of, epsilon = RULES[name]
    check(BN, partial(lrp_backward, rule_of=rule_of, epsilon=epsilon), method, batch_norm="pass", **options)


# --------------------------------------------------------------------------- the gradient family


def _signed_result(relu: Callable[[Array, Array], Array]) -> Backward:
    return partial(gradient_backward, relu=relu)


@pytest.mark.parametrize("chain", RELU_NETS + SIGNED, ids=str)
def test_the_gradient_is_the_product_of_the_adjoints(chain: Chain) -> None:
    check(chain, _signed_result(relu_gradient), "gradient", seed="one")


@pytest.mark.parametrize("chain", RELU_NETS, ids=str)
def test_deconvnet_rectifies_the_signal_and_guided_backprop_also_masks_it(chain: Chain) -> None:
    check(chain, _signed_result(relu_deconvnet), "deconvnet", seed="one")
    check(chain, _signed_result(relu_guided), "guided-backprop", seed="one")


def test_saliency_is_the_magnitude_and_input_x_gradient_the_product() -> None:
    chain = RELU_NETS[1]
    for index in seeds(chain):
        gradient = walk_back(chain, one_hot(chain, index, "one"), _signed_result(relu_gradient))
        assert_close(explained(chain, index, "saliency", seed="one"), np.abs(gradient))
        assert_close(explained(chain, index, "input-x-gradient", seed="one"), chain.values[0] * gradient)


# --------------------------------------------------------------------------- sums, seeds, batches


def _sum_case(text: str) -> Case:
    return Case("sums", text, {"a": signed(1, 3, 2), "b": signed(1, 3, 2), "c": signed(1, 3, 2)})


SUMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "add": ("y = Add(a, b)", (1, 1, 0)),
    "sub": ("y = Sub(a, b)", (1, -1, 0)),
    "sum": ("y = Sum(a, b, c)", (1, 1, 1)),
    "mean": ("y = Mean(a, b, c)", (1 / 3, 1 / 3, 1 / 3)),
}


@pytest.mark.parametrize("sums", ["signed", "absolute"])
@pytest.mark.parametrize("name", SUMS)
def test_a_sum_gives_each_operand_its_share(name: str, sums: str) -> None:
    text, coefficients = SUMS[name]
    case = _sum_case(text)
    x = case.values(np.float64)
    parts = [c * x[n] for n, c in zip("abc", coefficients)]
    for index in [(0, 0, 0), (0, 1, 1), (0, 2, 0)]:
        r = np.zeros((1, 3, 2))
        r[index] = sum(parts)[index]  # type: ignore[index]
        shares = sum_absolute(parts, r) if sums == "absolute" else sum_epsilon(parts, r, EPSILON)
        explainer = Explainer(case.build(np.float64), method="lrp-epsilon", backend="reference", sums=sums)
        relevance = explainer(x, target=target_of(index)).relevance
        for n, share in zip("abc", shares):
            assert_close(np.asarray(relevance[n]), share)


def test_a_residual_connection_splits_and_the_fork_adds_up() -> None:
    text = "h = Conv<pads=[1,1,1,1]>(x, w, b); s = Add(h, x); y = Relu(s)"
    case = Case("residual", text, {"x": signed(1, 2, 3, 3)}, {"w": signed(2, 2, 3, 3), "b": signed(2)})
    layer = Case("residual", "y = Conv<pads=[1,1,1,1]>(x, w, b)", case.inputs, case.constants)
    x = case.values(np.float64)["x"]
    W, b = dense_of(layer.build(np.float64), x.shape)
    h = evaluate(layer.build(np.float64), {"x": x})["y"]
    index = tuple(int(i) for i in np.unravel_index((h + x).argmax(), x.shape))
    r = np.zeros_like(x)
    r[index] = (h + x)[index]
    through, skip = sum_epsilon([h, x], r, EPSILON)
    expected = skip + lrp_z_plus(x.ravel(), W, b, through.ravel()).reshape(x.shape)
    explainer = Explainer(case.build(np.float64), method="lrp-z-plus", backend="reference")
    assert_close(np.asarray(explainer(x, target=target_of(index)).relevance["x"]), expected)


@pytest.mark.parametrize("method", ["lrp-epsilon-plus", "lrp-gamma", "rap", "gradient"])
def test_a_softmax_head_is_seen_through(method: str) -> None:
    chain = RELU_NETS[1]
    headed = Chain(chain.name, chain.shape, (*chain.layers, Layer("Softmax<axis=-1>(x)")))
    for index in seeds(chain):
        assert_close(explained(headed, index, method), explained(chain, index, method), 1e-12)


@pytest.mark.parametrize(
    "method", ["gradient", "lrp-epsilon", "lrp-gamma", "lrp-epsilon-plus-flat", "rap", "deep-taylor"]
)
def test_a_batch_is_its_samples_one_by_one(method: str) -> None:
    chain = RELU_NETS[1]
    case = chain.whole()
    dynamic = Case(
        case.name, case.text, {"x": signed(3, *chain.shape[1:], declared=("N", *chain.shape[1:]))}, case.constants
    )
    explainer = Explainer(dynamic.build(np.float64), method=method, backend="reference")
    x = Values((3, *chain.shape[1:])).draw([8])
    together = np.asarray(explainer(x, target=[2, 0, 1]).relevance["x"])
    for n, target in enumerate([2, 0, 1]):
        alone = np.asarray(explainer(x[n : n + 1], target=target).relevance["x"])
        assert_close(together[n : n + 1], alone, 1e-12)


# --------------------------------------------------------------------------- RAP


def rap_backward(chain: Chain, k: int, r: Array, published: bool) -> Array:
    layer, x = chain.layers[k], chain.values[k]
    if layer.kind in LINEAR:
        W, b = chain.matrix(k)
        if not any(later.weighted for later in chain.layers[k + 1 :]):
            return _rap_first(x.ravel(), W, b, r.ravel(), published)
        if not any(before.weighted for before in chain.layers[:k]):
            return rap_z_box(x.ravel(), W, r.ravel())
        rule = rap_official if published else rap_joint
        return rule(x.ravel(), W, r.ravel(), conv=layer.kind != "Gemm")
    if layer.kind in AVERAGES:
        return rap_ratio(x.ravel(), chain.matrix(k)[0], r.ravel())
    if layer.kind == "MaxPool":
        return winner_takes_all(x, r, drop_zero=published, **dict(layer.geometry))
    return r


def _rap_first(x: Array, W: Array, b: Array, r: Array, published: bool) -> Array:
    """The released code starts with a one-hot vector and gives the logit; the target is where r is not zero."""
    (target,) = np.flatnonzero(r)
    rule = rap_first_official if published else rap_first_joint
    return rule(x, W[target], b[target])


SIGNED_RAP = [
    Chain("tanh-mlp", (1, 6), (gemm(6, 8), Layer("Tanh(x)"), gemm(8, 7), Layer("Tanh(x)"), gemm(7, 4))),
    Chain("leaky-vgg", (1, 3, 6, 6), (
        conv((4, 3, 3, 3)), Layer("LeakyRelu<alpha=0.2>(x)"), conv((4, 4, 3, 3)), Layer("LeakyRelu<alpha=0.2>(x)"),
        conv((3, 4, 3, 3), "strides=[2,2]"), Layer("Tanh(x)"), FLATTEN, gemm(12, 4))),
    Chain("grouped", (1, 3, 6, 6), (
        conv((4, 3, 3, 3)), Layer("Tanh(x)"), conv((4, 2, 3, 3), "group=2,dilations=[2,2],pads=[1,2,2,1]"),
        Layer("Tanh(x)"), FLATTEN, gemm(100, 3))),
]  # fmt: skip


@pytest.mark.parametrize("chain", RELU_NETS + SIGNED_RAP, ids=str)
def test_general_rap_uses_the_joint_rule_and_the_structural_first_propagation(chain: Chain) -> None:
    check(chain, partial(rap_backward, published=False), "rap")


@pytest.mark.parametrize("chain", RELU_NETS + SIGNED_RAP[:2], ids=str)
def test_published_rap_is_what_the_release_computes(chain: Chain) -> None:
    check(chain, partial(rap_backward, published=True), "rap", variant="published")


def test_general_rap_conserves_the_score_where_the_box_is_not_degenerate() -> None:
    for chain in RELU_NETS + SIGNED_RAP:
        for index in seeds(chain):
            score = chain.values[-1][index]
            assert abs(explained(chain, index, "rap").sum() - score) <= 1e-8 * abs(score)


@pytest.mark.parametrize("method", ["lrp-gamma", "lrp-zero", "lrp-alpha2-beta1", "rap"])
def test_relevance_that_no_side_of_a_zero_sum_takes_is_absorbed(method: str) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2] x) => (float[N,2] y) '
        "<float[2,2] w = {1,1,-1,2}, float[2,2] v = {1,2,3,4}> {z = MatMul(x, w) s = Sigmoid(z) y = MatMul(s, v)}"
    )
    found = Explainer(model, method, backend="reference")(np.array([[1, 1], [1, 0.5]], np.float32), target=1)
    assert found.conservation.max() <= 1e-6
    assert abs(found.absorbed[0]) > 0.5  # the first sum of the first sample is exactly 0


@pytest.mark.parametrize("method", ["lrp-epsilon", "attn-lrp", "rap"])
def test_updates_that_are_multiplied_at_one_place_share_it(method: str) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[3] x) => (float[4] y) '
        '<float[4] ones = {1,1,1,1}, int64[3] places = {1,1,3}> {y = ScatterElements <reduction = "mul"> (ones, places, x)}'
    )
    found = Explainer(model, method)(np.array([2, 3, 5], np.float32), target="y[1]")
    assert np.allclose(found.relevance["x"], [3, 3, 0], atol=1e-5)
    assert np.allclose(found.absorbed, 0, atol=1e-5)
