"""The sums of a fit against their definition, operator by operator, and against themselves in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from pattern_nets import Array, build, convnet, data, node, residual, seen_by, weight

from onnx_explain.errors import InputError
from onnx_explain.fitting import fit_patterns
from onnx_explain.patterns import Neurons, Patterns, merged

SINGLE: dict[str, tuple[str, list[Any], tuple[int, ...], dict[str, Any], bool]] = {
    # operator, shape of x, shape of w, attributes, whether x comes first
    "a plain convolution": ("Conv", ["N", 3, 6, 5], (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}, True),
    "one without padding": ("Conv", ["N", 2, 5, 5], (3, 2, 2, 3), {}, True),
    "strides and lopsided pads": ("Conv", ["N", 2, 7, 6], (3, 2, 3, 2), {"strides": [2, 3], "pads": [0, 1, 2, 1]}, True),
    "a stride wider than the kernel": ("Conv", ["N", 2, 9, 9], (3, 2, 2, 2), {"strides": [3, 4]}, True),
    "dilations": ("Conv", ["N", 2, 9, 8], (3, 2, 3, 2), {"dilations": [2, 3], "pads": [1, 0, 2, 1]}, True),
    "groups": ("Conv", ["N", 4, 5, 5], (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}, True),
    "depthwise": ("Conv", ["N", 3, 5, 5], (6, 1, 3, 3), {"group": 3, "auto_pad": "SAME_UPPER"}, True),
    "one axis": ("Conv", ["N", 3, 11], (4, 3, 4), {"strides": [2], "pads": [2, 1]}, True),
    "three axes": ("Conv", ["N", 2, 4, 3, 5], (3, 2, 2, 2, 3), {"pads": [1, 0, 1, 0, 1, 1]}, True),
    "SAME_LOWER": ("Conv", ["N", 2, 6, 6], (3, 2, 4, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, True),
    "transposed": ("ConvTranspose", ["N", 3, 4, 3], (3, 2, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, True),
    "transposed, output padding": (
        "ConvTranspose", ["N", 2, 3, 4], (2, 3, 2, 3), {"strides": [3, 2], "output_padding": [1, 1], "pads": [0, 1, 1, 0]}, True,
    ),
    "transposed, groups, dilated": (
        "ConvTranspose", ["N", 4, 4, 4], (4, 3, 2, 2), {"group": 2, "dilations": [2, 1], "strides": [1, 2]}, True,
    ),
    "transposed, one axis": ("ConvTranspose", ["N", 2, 5], (2, 3, 4), {"strides": [3], "pads": [5, 4]}, True),
    "transposed, output shape": ("ConvTranspose", ["N", 2, 4, 4], (2, 3, 3, 3), {"strides": [2, 2], "output_shape": [8, 7]}, True),
    "transposed, SAME_UPPER": ("ConvTranspose", ["N", 2, 4, 3], (2, 3, 3, 4), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}, True),
    "transposed, stride beyond the kernel": ("ConvTranspose", ["N", 2, 3], (2, 2, 2), {"strides": [4], "pads": [1, 0]}, True),
    "Gemm": ("Gemm", ["N", 5], (5, 3), {"alpha": 1.0}, True),
    "Gemm, turned weight, alpha": ("Gemm", ["N", 5], (3, 5), {"transB": 1, "alpha": 2.5}, True),
    "Gemm, turned data": ("Gemm", [5, "N"], (5, 3), {"transA": 1}, True),
    "Gemm, weight first": ("Gemm", [5, "N"], (3, 5), {"alpha": 0.5}, False),
    "Gemm, weight first, both turned": ("Gemm", ["N", 5], (5, 3), {"transA": 1, "transB": 1}, False),
    "MatMul": ("MatMul", ["N", 5], (5, 3), {}, True),
    "MatMul over positions": ("MatMul", ["N", 4, 5], (5, 3), {}, True),
    "MatMul, one matrix per head": ("MatMul", ["N", 2, 4, 5], (2, 5, 3), {}, True),
    "MatMul, broadcast heads": ("MatMul", ["N", 1, 4, 5], (2, 5, 3), {}, True),
    "MatMul, a vector": ("MatMul", ["N", 4, 5], (5,), {}, True),
    "MatMul, weight first": ("MatMul", ["N", 5, 4], (3, 5), {}, False),
    "MatMul, weight first, heads": ("MatMul", ["N", 2, 5, 4], (2, 3, 5), {}, False),
}  # fmt: skip


def single(name: str) -> tuple[onnx.ModelProto, Array]:
    operator, shape, w, attributes, first = SINGLE[name]
    operands = ["x", "w"] if first else ["w", "x"]
    model = build([node(operator, operands, "y", "it", **attributes)], shape, [weight("w", *w)])
    sizes = [7 if d == "N" else d for d in shape]
    return model, np.random.default_rng(3).standard_normal(sizes).astype(np.float32) + 0.3


def neuron_axis(name: str, y: Array) -> Array:
    """y with neurons in front: [O, samples]; the groups of a stacked MatMul are neurons of their own."""
    operator, _, w, _, first = SINGLE[name]
    if operator.startswith("Conv"):
        return np.moveaxis(y, 1, 0).reshape(y.shape[1], -1)
    if operator == "Gemm":
        return (y.T if first else y).reshape(y.shape[1] if first else y.shape[0], -1)
    if len(w) == 1:
        return y.reshape(1, -1)
    turned = y if first else np.swapaxes(y, -1, -2)
    if len(w) == 3:
        return np.moveaxis(turned, (1, -1), (0, 1)).reshape(turned.shape[1] * turned.shape[-1], -1)
    return np.moveaxis(turned, -1, 0).reshape(turned.shape[-1], -1)


@pytest.mark.parametrize("name", SINGLE)
def test_patterns_are_what_the_definition_says(name: str) -> None:
    """a_r = N_r/(wᵀN_r) from explicit patches: what each weight entry meets at each output of its neuron."""
    model, x = single(name)
    fitted = fit_patterns(model, x, backend="reference", batch_size=7)
    entry = fitted.weights[0]
    met, y = seen_by(model, x, entry.layout.neurons)
    outputs = neuron_axis(name, y)
    owners = entry.layout.spread(np.arange(entry.layout.neurons)).astype(int).ravel()
    w = np.asarray(onnx.numpy_helper.to_array(model.graph.initializer[0])).astype(np.float64).ravel()
    for which in ("linear", "positive", "negative"):
        expected = np.zeros(w.size)
        for o in range(entry.layout.neurons):
            mine = np.flatnonzero(owners == o)
            patches = np.stack([neuron_axis(name, met[i])[o] for i in mine]) / entry.scale
            rows = outputs[o]
            chosen = {"linear": rows == rows, "positive": rows > 0, "negative": rows <= 0}[which]
            n = (patches[:, chosen] * rows[chosen]).mean(1) - patches[:, chosen].mean(1) * rows.mean()
            expected[mine] = n / (entry.scale * w[mine] @ n)
        found = fitted.pattern("it", which).ravel()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def central(p: Patterns) -> dict[str, Array]:
    return {
        f"{w.node}/{r}/{k}": a
        for w in p.weights
        for r in ("positive", "negative", "all")
        for k, a in w.sums.central(r).items()
    }


def agree(a: Patterns, b: Patterns, tolerance: float = 1e-10) -> None:
    first, second = central(a), central(b)
    assert first.keys() == second.keys() and a.samples == b.samples
    for name, value in first.items():
        assert np.abs(value - second[name]).max() <= tolerance * max(np.abs(value).max(), 1e-30), name
    for x, y in zip(a.sums, b.sums):
        np.testing.assert_allclose(x.sums.split(), y.sums.split(), rtol=tolerance)


@pytest.mark.parametrize("make", [convnet, residual])
def test_shards_merged_in_any_tree_equal_one_pass(make: Any) -> None:
    model = make()
    x = data(23, *[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]) * 3 + 40
    whole = fit_patterns(model, x, batch_size=23)
    parts = [fit_patterns(model, x[a:b], batch_size=n) for a, b, n in ((0, 1, 1), (1, 4, 2), (4, 13, 4), (13, 23, 7))]
    a, b, c, d = parts
    for tree in (
        merged(parts),
        merged([d, c, b, a]),
        merged([merged([a, b]), merged([c, d])]),
        merged([a, merged([b, merged([c, d])])]),
    ):
        agree(whole, tree)
        for w in whole.weights:
            for which in ("linear", "positive"):
                expected = whole.pattern(w.node, which)
                assert np.abs(tree.pattern(w.node, which) - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16])
def test_the_batch_size_does_not_matter(batch: int) -> None:
    x = data(17, 2, 10, 10)
    agree(fit_patterns(convnet(), x, batch_size=17), fit_patterns(convnet(), x, batch_size=batch), 1e-11)


def test_a_model_with_a_fixed_batch_is_fitted_on_any_number_of_samples() -> None:
    x = data(11, 2, 10, 10)
    agree(fit_patterns(convnet(), x), fit_patterns(convnet(batch=4), x), 1e-11)
    agree(fit_patterns(convnet(), x), fit_patterns(convnet(batch=1), x), 1e-11)


def test_several_passes_for_little_memory_give_the_same() -> None:
    x = data(9, 2, 10, 10)
    apart = fit_patterns(convnet(), x, memory=2000)
    assert apart.notes["passes"] == 3
    agree(fit_patterns(convnet(), x), apart, 1e-11)


def test_an_iterator_a_function_and_a_list_of_batches_give_the_same() -> None:
    x = data(10, 2, 10, 10)
    whole = fit_patterns(convnet(), x, batch_size=4)
    batches = [x[:3], x[3:4], x[4:]]
    agree(whole, fit_patterns(convnet(), iter(batches), batch_size=4), 1e-12)
    agree(whole, fit_patterns(convnet(), lambda: iter(batches), batch_size=4), 1e-12)
    agree(whole, fit_patterns(convnet(), [{"x": b} for b in batches], batch_size=4), 1e-12)


def test_an_iterator_cannot_be_read_twice() -> None:
    with pytest.raises(InputError, match="3 passes"):
        fit_patterns(convnet(), iter([data(3, 2, 10, 10)]), memory=2000)


def test_no_data_is_refused() -> None:
    with pytest.raises(InputError, match="no sample"):
        fit_patterns(convnet(), iter([]))


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """Peers form E[xy] - E[x]E[y]; about a pivot nothing cancels."""
    model = build([node("Gemm", ["x", "w"], "y", "it", transB=1)], ["N", 5], [weight("w", 3, 5)])
    x = data(400, 5).astype(np.float64)
    near = fit_patterns(model, x.astype(np.float32), backend="reference").pattern("it", "linear")
    shifted = (x.astype(np.float32).astype(np.float64) + 1e5).astype(np.float32)
    again = (shifted.astype(np.float64) - 1e5).astype(np.float32)
    far = fit_patterns(model, shifted, backend="reference").pattern("it", "linear")
    same = fit_patterns(model, again, backend="reference").pattern("it", "linear")
    assert np.abs(far - same).max() <= 1e-9 * np.abs(same).max()
    assert np.abs(far - near).max() <= 0.05 * np.abs(near).max()  # float32 inputs around 1e5 are rounded to 1/128


def test_a_sum_knows_how_its_operands_vary_with_it() -> None:
    model = residual()
    x = data(12, 2, 6, 6)
    fitted = fit_patterns(model, x, backend="reference")
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    wide.graph.output.extend([onnx.helper.make_tensor_value_info(n, 1, None) for n in ("c2", "r1", "sum")])
    _, u, v, y = onnx.reference.ReferenceEvaluator(wide).run(None, {"x": x})
    flat = [np.moveaxis(a.astype(np.float64), 1, 0).reshape(4, -1) for a in (u, v, y)]
    for c in range(4):
        expected = [np.cov(part[c], flat[2][c])[0, 1] / np.var(flat[2][c], ddof=1) for part in flat[:2]]
        np.testing.assert_allclose(fitted.sums[0].sums.split()[:, c], expected, atol=1e-5)
    np.testing.assert_allclose(fitted.sums[0].sums.split().sum(0), 1, atol=1e-12)


def test_sums_about_another_pivot_say_the_same() -> None:
    fitted = fit_patterns(convnet(), data(8, 2, 10, 10), backend="reference").weights[0].sums
    moved: Neurons = fitted.pivoted(fitted.pivot + 3.5)
    for which in ("all", "positive", "negative"):
        for name, value in fitted.central(which).items():
            np.testing.assert_allclose(moved.central(which)[name], value, atol=1e-9 * max(np.abs(value).max(), 1))


def test_normalization_between_products_is_folded_too() -> None:
    """MatMul, BatchNormalization, MatMul with nothing between: several nodes read the normalized value."""
    names = ("g", "be", "mu")
    nodes = [
        node("MatMul", ["x", "w1"], "m1", "first"),
        node("BatchNormalization", ["m1", *names, "var"], "bn"),
        node("MatMul", ["bn", "w2"], "y", "second"),
    ]
    variance = onnx.numpy_helper.from_array(np.linspace(0.5, 2, 6).astype(np.float32), "var")
    weights = [weight("w1", 5, 6), weight("w2", 6, 3), *(weight(n, 6) for n in names), variance]
    fitted = fit_patterns(build(nodes, ["N", 5], weights), data(30, 5))
    w = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in weights}
    folded = w["w1"] * w["g"] / np.sqrt(w["var"] + 1e-5)
    np.testing.assert_allclose((folded * fitted.pattern("first", "linear")).sum(0), 1, rtol=1e-5)
    assert [k.regime for k in fitted.weights] == ["linear", "linear"]


def test_samples_of_different_sizes_are_fitted_together() -> None:
    """A fully convolutional net: every position of every picture is a sample of the same neuron."""
    nodes = [
        node("Conv", ["x", "w"], "c", "conv", pads=[1, 1, 1, 1]),
        node("Relu", ["c"], "r"),
        node("GlobalAveragePool", ["r"], "y"),
    ]
    model = build(nodes, ["N", 2, "H", "W"], [weight("w", 3, 2, 3, 3)])
    small, large = data(5, 2, 6, 6), data(4, 2, 9, 7)
    both = fit_patterns(model, [small, large])
    agree(both, merged([fit_patterns(model, small), fit_patterns(model, large)]))
    assert both.weights[0].sums.patches == 5 * 36 + 4 * 63


def test_data_that_cannot_be_computed_is_told() -> None:
    model = build([node("Log", ["x"], "l"), node("Gemm", ["l", "w"], "y", "it")], ["N", 5], [weight("w", 5, 3)])
    with pytest.raises(InputError, match="node 'it'|Node 'it' has NaN"):
        fit_patterns(model, -np.ones((2, 5), np.float32))


def test_a_model_of_integers_alone_is_fitted_from_where_they_become_floats() -> None:
    model = build([node("Cast", ["x"], "f", to=1), node("Gemm", ["f", "w"], "y", "it")], ["N", 5], [weight("w", 5, 3)])
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    x = np.ones((4, 5), np.int64) * np.arange(4)[:, None]
    assert len(fit_patterns(model, x).weights) == len(fit_patterns(model, x, wrt=["f"]).weights) == 1
