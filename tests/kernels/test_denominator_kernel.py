"""Denominators and quotients made in one pass forward, interpreted, against the float64 oracle: results are NaN before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_explain_kernels import plan as planning
from onnx_explain_kernels.errors import UnsupportedShape
from onnx_explain_kernels.forms import DenominatorForm
from onnx_explain_kernels.geometry import Conv
from onnx_explain_kernels.plan import Layouts, plan_denominator
from onnx_explain_kernels.reference import conv_denominator, conv_forward
from onnx_explain_kernels.tiles import Tile
from onnx_explain_kernels.weights import pack
from running import guarded, run_flat, stored, triton_interpreter, unfilled, unstored
from test_conv_kernel import CONVS, ERRORS

pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
triton_interpreter()

QUOTIENT = DenominatorForm("halves", "quotient", biased=True, accounts=True)
FORMS = {
    "sum": DenominatorForm(),
    "sum_biased": DenominatorForm("x+", biased=True),
    "sum_negative": DenominatorForm("x-", biased=True),
    "quotient": QUOTIENT,
    "quotient_above": DenominatorForm("x", "quotient", gate="positive", accounts=True),
    "quotient_below": DenominatorForm("x+", "quotient", biased=True, gate="negative"),
    "shifted": DenominatorForm("x", "quotient", shifted=True),
    "pair": DenominatorForm("x", "pair", biased=True),
    "pair_signed": DenominatorForm("|x|", "pair", biased=True),
    "pair_twin": DenominatorForm("twin", "pair"),
    "pair_magnitudes": DenominatorForm("magnitudes", "pair"),
    "divided": DenominatorForm("x", "pair", biased=True, divided=True),
    "divided_signed": DenominatorForm("|x|", "pair", divided=True),
    "divided_twin": DenominatorForm("twin", "pair", divided=True, shifted=True),
    "divided_magnitudes": DenominatorForm("magnitudes", "pair", divided=True),
}


def operands(conv: Conv, form: DenominatorForm, seed: int = 0) -> dict[str, np.ndarray]:
    """What a form may meet: weights of the signs that its source asks for, zeros among input and relevance."""
    rng = np.random.default_rng(seed)
    above, below = (conv.samples, conv.filters, *conv.out), (conv.samples, conv.channels, *conv.size)
    x = rng.standard_normal(below)
    if form.source in ("x", "twin") and form.end == "pair":
        x = np.maximum(x, 0)
    w = rng.standard_normal((conv.filters, conv.channels // conv.group, *conv.kernel))
    bias = rng.standard_normal(conv.filters) * 0.1
    z = conv_forward(conv, x, w) + (bias.reshape(1, -1, 1, 1) if form.biased else 0)
    wp, wm = np.maximum(w, 0), np.minimum(w, 0)
    first, second = {
        ("x", "pair"): (wp, wm),
        ("|x|", "pair"): (np.abs(w), w),
        ("twin", "pair"): (wp, -wm),
        ("magnitudes", "pair"): (np.abs(w), w),
    }.get((form.source, form.end), (wp, wm))
    r = rng.standard_normal(above) * (rng.random(above) > 0.2)
    found: dict[str, Any] = {"x": x, "w": first, "v": second, "bias": bias, "z": z, "r": r}
    found["delta"] = rng.standard_normal(conv.samples)
    return {k: np.asarray(found[k], np.float32) for k in form.operands}


def run(
    conv: Conv,
    form: DenominatorForm,
    given: dict[str, np.ndarray],
    *,
    layouts: Layouts = Layouts(),  # noqa: B008 (frozen)
    precision: Any = "ieee",
    generic: bool = False,
    epsilon: float = 0.25,
    scale: float = 1.0,
) -> dict[str, np.ndarray]:
    """The kernel's results, [N, K, P, Q] again; the guard behind each must be untouched."""
    plan = plan_denominator(conv, form, arch=90, layouts=layouts, precision=precision, generic=generic)
    lies = {"x": layouts.x, "z": layouts.r, "r": layouts.r, "lost": layouts.r, "out": layouts.out, "pair": layouts.out}
    tensors = {}
    for name, array in given.items():
        flat = (
            pack(array, conv, precision=precision, forward=True).reshape(-1)
            if name in "wv"
            else stored(array, lies.get(name, "nchw"))
        )
        tensors[name] = guarded(flat)
    for name in form.results:
        tensors[name] = unfilled(plan, name)
    run_flat(plan, tensors, epsilon=epsilon, scale=scale)
    assert all(np.isnan(tensors[name][-16:]).all() for name in form.results)
    shape = (conv.samples, conv.filters, *conv.out)
    return {name: unstored(tensors[name][:-16], shape, lies[name]) for name in form.results}


def check(conv: Conv, form: DenominatorForm, *, tolerance: float = 2e-5, **options: Any) -> float:
    """Compare every result with the oracle, relative to its largest value."""
    given = operands(conv, form)
    numbers = {"epsilon": options.get("epsilon", 0.25), "scale": options.get("scale", 1.0)}
    want = conv_denominator(conv, form, given, **numbers)
    got = run(conv, form, given, **options)
    assert set(got) == set(want) == set(form.results)
    errors = [float(np.abs(got[k] - want[k]).max() / (np.abs(want[k]).max() or 1.0)) for k in want]
    assert max(errors) <= tolerance, errors  # NaN is not <=
    return max(errors)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of 16: several row, column and depth tiles on small shapes."""
    monkeypatch.setattr(planning, "sum_tile", lambda *_, **__: Tile(16, 16, 16, 4, 2))
    monkeypatch.setattr(planning, "narrow_tile", lambda *_, **__: Tile(16, 16, 1, 4, 2))


@pytest.mark.parametrize("name", CONVS)
def test_every_geometry_sums_as_the_oracle_does(name: str, small_tiles: None) -> None:
    check(CONVS[name], QUOTIENT)


@pytest.mark.parametrize("name", ["3x3", "dilated_and_strided", "depthwise_stride2", "groups"])
def test_the_tiles_that_are_shipped_do_too(name: str) -> None:
    check(CONVS[name], DenominatorForm("x+", biased=True), layouts=Layouts(out="nhwc"))


# RAP's Z⁻ is what cancels of Z⁺ and z: float32 rounding is amplified
LOOSE = {"divided": 2e-3, "divided_signed": 2e-3}


@pytest.mark.parametrize("name", ["one_by_one", "depthwise"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_oracles(form: str, name: str) -> None:
    check(CONVS[name], FORMS[form], tolerance=LOOSE.get(form, 2e-5), scale=-0.5 if "quotient" in form else 1.0)


def test_channels_beyond_a_turn_are_summed_turn_by_turn(small_tiles: None) -> None:
    """More channels than a turn's depth, in tiles of their own and, in the first convolution, mixed with the kernel."""
    deep = Conv.of(1, 33, 5, (5, 4), (2, 3), pads=(1, 1, 0, 1))
    for conv, mixed in ((deep, False), (CONVS["3x3"], True)):
        plan = plan_denominator(conv, DenominatorForm(), arch=90)
        assert dict(plan.specialisation.constants)["MIXED"] is mixed
        check(conv, DenominatorForm("halves"))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_tensors_may_lie_either_way_in_memory(layout: Any) -> None:
    for r, out in ((layout, "nchw"), ("nchw", layout)):
        check(CONVS["stride2"], QUOTIENT, layouts=Layouts(r, layout, out))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["3x3", "depthwise", "dilated_and_strided"])
def test_the_shipped_kernels_take_any_shape(name: str) -> None:
    check(CONVS[name], QUOTIENT, generic=True)


def test_a_zero_denominator_gives_zero_or_counts_as_epsilon() -> None:
    conv, form = CONVS["one_by_one"], DenominatorForm("x+", "quotient", accounts=True)
    given = operands(conv, form)
    given["x"] = -np.abs(given["x"])  # x⁺ is zero everywhere
    none = run(conv, form, given, epsilon=0.0)
    assert (none["out"] == 0).all()
    np.testing.assert_array_equal(none["lost"], given["r"])
    np.testing.assert_allclose(run(conv, form, given, epsilon=0.5)["out"], 2 * given["r"])


@pytest.mark.parametrize("precision", ERRORS)
def test_the_error_of_a_precision_is_the_documented_one(precision: str) -> None:
    for form in (DenominatorForm("x+"), FORMS["quotient"]):
        error = check(CONVS["one_by_one"], form, precision=precision, tolerance=ERRORS[precision])
        if precision in ("tf32", "bf16"):
            assert error > ERRORS["ieee"], "the operands were not rounded at all"


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
@pytest.mark.parametrize("form", [DenominatorForm(s) for s in ("x+", "x-", "|x|", "halves")] + [FORMS["pair"]])
def test_a_nan_shows_as_a_nan(form: DenominatorForm, precision: str) -> None:
    given = operands(CONVS["one_by_one"], form)
    given["x"][1, 2, 1, 1] = np.nan
    for result in run(CONVS["one_by_one"], form, given, precision=precision).values():
        assert np.isnan(result[1, :, 1, 1]).all()
        assert np.isnan(result).sum() == result.shape[1]


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_pairs_of_two_products_do_not_cancel_where_operands_are_rounded(precision: Any) -> None:
    """Z⁻ of a layer with few negative weights: from z, which is not rounded as Z⁺ is, it would be noise."""
    conv, rng = Conv.of(1, 20, 18, (3, 5), (1, 1)), np.random.default_rng(2)
    x = rng.random((1, 20, 3, 5)).astype(np.float32)
    w = rng.random((18, 20, 1, 1)).astype(np.float32)
    x[:, 3] += 0.5
    w[:, 3] = -0.01 * (0.5 + w[:, 3])
    wp, wm = np.maximum(w, 0), np.minimum(w, 0)
    exact = conv_forward(conv, x, -wm)
    rounded = {"twin": {"x": x, "w": wp, "v": -wm}, "magnitudes": {"x": x, "w": np.abs(w), "v": w}}
    for source, given in rounded.items():
        got = run(conv, DenominatorForm(source, "pair"), given, precision=precision)["pair"]  # type: ignore[arg-type]
        # of magnitudes float32 sums are subtracted, and Z⁺ is a thousand times Z⁻ here
        assert np.abs(got / exact - 1).max() <= ERRORS[precision] + (1e-3 if source == "magnitudes" else 0)
    z = conv_forward(conv, x, w).astype(np.float32)
    got = run(conv, DenominatorForm("x", "pair"), {"x": x, "w": wp, "z": z}, precision=precision)["pair"]
    assert np.abs(got / exact - 1).max() > 10 * ERRORS[precision]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"source": "w"}, "'w'"),
        ({"source": "twin"}, "two sums"),
        ({"source": "x+", "end": "pair"}, "not made of"),
        ({"accounts": True}, "accounts"),
        ({"divided": True}, "divided"),
        ({"shifted": True}, "shift"),
    ],
)
def test_forms_without_a_meaning_are_refused(words: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedShape, match=told):
        DenominatorForm(**words)


def test_sizes_that_no_kernel_covers_are_refused() -> None:
    with pytest.raises(UnsupportedShape, match="'fp8'"):
        plan_denominator(CONVS["3x3"], DenominatorForm(), arch=90, precision="fp8")  # type: ignore[arg-type]
    large = Conv.of(200, 64, 64, (512, 512), (3, 3), pads=(1, 1, 1, 1))
    with pytest.raises(UnsupportedShape, match="no shipped kernel"):
        plan_denominator(large, DenominatorForm(), arch=90, generic=True)
