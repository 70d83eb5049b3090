"""Occlusion, RISE and Shapley values: against slow oracles, games whose values are known, and captum's arrays."""

from __future__ import annotations

from itertools import permutations, product
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_convert import drawn, model, residual_cnn

from onnx_explain import Explainer, ExplainError, Explanation, InputError, MethodError, TargetError
from onnx_explain.errors import ModelError
from onnx_explain.explainer import Explainers
from onnx_explain.methods import resolve
from onnx_explain.perturbation import explain
from onnx_explain.relevance import Options
from onnx_explain.rules.masks import (
    Cells,
    Windows,
    coalitions,
    permutation,
    random_masks,
    shapley_values,
    superpixels,
)
from onnx_explain.target import parse

Array = np.ndarray[Any, Any]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden" / "classic"
METHODS = {
    "occlusion": {},
    "rise": {"masks": 30},
    "shapley-sampling": {"samples": 2, "grid": 4},
}
PICTURES = drawn(3, 3, 16, 16, seed=9)


def linear(features: int = 6, classes: int = 3, batch: str = "N") -> tuple[onnx.ModelProto, Array]:
    """y = x·w + b, and w [features, classes]."""
    w = drawn(features, classes, seed=1)
    text = f"g (float[{batch},{features}] x) => (float[{batch},{classes}] y) {{ y = Gemm(x, w, b) }}"
    return model(text, w=w, b=drawn(classes, seed=2)), w


def game(expression: str, features: int) -> onnx.ModelProto:
    """A score [N, 1] of columns x0, x1, … of the input."""
    split = ", ".join(f"x{i}" for i in range(features))
    return model(f"g (float[N,{features}] x) => (float[N,1] y) {{ {split} = Split<axis=1>(x, ones)\n {expression} }}",
                 ones=np.ones(features, np.int64))  # fmt: skip


def patch_mean(rows: slice, columns: slice, size: tuple[int, int] = (24, 32)) -> onnx.ModelProto:
    """The score is the mean of a patch of the picture."""
    w = np.zeros((1, 2, *size), np.float32)
    w[:, :, rows, columns] = 1 / w[:, :, rows, columns].size
    h, v = size
    text = f"""g (float[N,2,{h},{v}] x) => (float[N,1] y) {{
        c = Conv(x, w)
        y = Flatten(c) }}"""
    return model(text, w=w)


def assert_close(found: Array, wanted: Array, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * max(float(np.abs(wanted).max(initial=0)), 1e-30))


def told(
    source: Any, method: str, x: Any, target: Any = 0, settings: dict[str, Any] | None = None, **o: Any
) -> Explanation:
    return Explainer(source, method, threads=1, **(settings or {}), **o)(x, target)


# ------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [
        ((7,), (3,), (2,)),
        ((7,), (7,), (7,)),
        ((1,), (1,), (1,)),
        ((3, 32, 32), (3, 6, 6), (3, 3, 3)),
        ((3, 5, 9), (1, 5, 4), (1, 2, 4)),
        ((2, 4, 5, 6), (2, 2, 3, 1), (1, 1, 2, 1)),
        ((), (), ()),
    ],
)  # fmt: skip
def test_windows_are_captums_and_cover_every_entry(
    shape: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    windows = Windows(shape, window, stride)
    steps = [ceil((d - k) / s) + 1 for d, k, s in zip(shape, window, stride)]
    slow = []
    for place in product(*map(range, steps)):
        mask = np.ones(shape)
        mask[tuple(slice(q * s, q * s + k) for q, s, k in zip(place, stride, window))] = 0
        slow.append(mask)
    assert len(windows) == len(slow)
    np.testing.assert_array_equal(windows.masks(np.arange(len(windows))), np.stack(slow))
    np.testing.assert_array_equal(windows.cover(), (1 - np.stack(slow)).sum(0))
    assert windows.cover().min() >= 1
    assert len({m.tobytes() for m in slow}) == len(slow), "a window was evaluated twice"


@given(st.integers(1, 40), st.data())
@settings(max_examples=60, deadline=None)
def test_no_window_lies_outside_and_none_is_empty(size: int, data: st.DataObject) -> None:
    window = data.draw(st.integers(1, size))
    windows = Windows((size,), (window,), (data.draw(st.integers(1, window)),))
    masks = windows.masks(np.arange(len(windows)))
    assert (masks.min(1) == 0).all()
    assert windows.cover().min() >= 1


@given(st.integers(1, 33), st.data())
@settings(max_examples=60, deadline=None)
def test_smooth_masks_stay_between_zero_and_one_and_are_whole_where_all_is_kept(size: int, data: st.DataObject) -> None:
    axes = [Cells(size, data.draw(st.integers(1, size))), Cells(1, 1, smooth=False)]
    masks = random_masks(np.arange(5), axes, kept=0.5, seed=3)
    assert masks.shape == (5, size, 1)
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-12
    np.testing.assert_allclose(random_masks(np.arange(3), axes, kept=1.0, seed=3), 1.0, atol=1e-12)


def test_smooth_masks_keep_their_share_everywhere() -> None:
    masks = random_masks(np.arange(4000), [Cells(20, 4), Cells(9, 3)], kept=0.3, seed=0)
    np.testing.assert_allclose(masks.mean(0), 0.3, atol=0.03)


def test_a_mask_is_the_grid_enlarged_linearly_and_shifted() -> None:
    """Against interpolation written down entry by entry."""
    size, cells = 13, 4
    cell = ceil(size / cells)
    for index in range(20):
        generator = np.random.Generator(np.random.Philox(key=np.array([7, index], dtype=np.uint64)))
        grid = (generator.random(cells) < 0.5).astype(float)
        offset = int(generator.integers(cell))
        large = (np.arange((cells + 1) * cell) + 0.5) * cells / ((cells + 1) * cell) - 0.5
        wanted = np.interp(large, np.arange(cells), grid)[offset : offset + size]
        found = random_masks(np.array([index]), [Cells(size, cells)], kept=0.5, seed=7)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_a_mask_depends_on_seed_and_number_alone() -> None:
    axes = [Cells(1, 1, smooth=False), Cells(16, 7), Cells(12, 5)]
    all_at_once = random_masks(np.arange(10), axes, kept=0.5, seed=1)
    np.testing.assert_array_equal(random_masks(np.array([7, 2]), axes, kept=0.5, seed=1), all_at_once[[7, 2]])
    assert not np.array_equal(random_masks(np.arange(10), axes, kept=0.5, seed=2), all_at_once)
    assert len({m.tobytes() for m in all_at_once}) == 10


def test_superpixels_are_as_equal_as_they_can_be() -> None:
    labels = superpixels([Cells(1, 1, smooth=False), Cells(10, 4), Cells(7, 7)])
    assert labels.shape == (1, 10, 7)
    assert sorted(np.unique(labels)) == list(range(28))
    counts = np.bincount(labels.ravel())
    assert set(counts) <= {2, 3}


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_enumerated_shapley_values_are_the_mean_over_all_orders(players: int) -> None:
    worth = np.random.default_rng(players).standard_normal((2, 1 << players))
    wanted = np.zeros((2, players))
    orders = list(permutations(range(players)))
    for order in orders:
        present = 0
        for player in order:
            wanted[:, player] += worth[:, present | 1 << player] - worth[:, present]
            present |= 1 << player
    np.testing.assert_allclose(shapley_values(worth), wanted / len(orders), atol=1e-12)
    assert coalitions(players)[5 % (1 << players)].tolist() == [
        bool((5 % (1 << players)) >> p & 1) for p in range(players)
    ]


def test_of_an_antithetic_pair_the_second_order_is_the_first_reversed() -> None:
    for k in range(4):
        first, second = (permutation(2 * k + i, 9, seed=5, antithetic=True) for i in (0, 1))
        assert sorted(first) == list(range(9))
        assert first.tolist() == second[::-1].tolist()
    assert permutation(0, 9, seed=5, antithetic=False).tolist() != permutation(1, 9, seed=5, antithetic=False).tolist()


# ------------------------------------------------------------------------------------------- occlusion


@pytest.mark.parametrize("net", ["vggish", "mlp", "bnnet", "smooth"])
@pytest.mark.parametrize(
    ("key", "window", "stride", "based"),
    [
        ("captum/occlusion_w3x6x6_s3x3x3", [3, 6, 6], [3, 3, 3], False),
        ("captum/occlusion_w1x5x7_s1x4x5_base", [1, 5, 7], [1, 4, 5], True),
    ],
)
def test_occlusion_is_captums(net: str, key: str, window: list[int], stride: list[int], based: bool) -> None:
    if not SHARED.is_dir():
        pytest.skip("the folder of golden arrays is not here")
    stored = np.load(SHARED / f"{net}.f64.npz")
    options = {"window": window, "stride": stride, "baseline": stored["baseline_nonzero"] if based else 0.0}
    exact = net in ("vggish", "mlp")
    rows = slice(0, 2) if exact else slice(None)
    if based:
        options["baseline"] = options["baseline"][rows]
    found = told(SHARED / f"{net}.onnx", "occlusion", stored["x"][rows], stored["target"][rows].tolist(),
                 {"backend": "reference" if exact else "onnx"}, **options)  # fmt: skip
    # captum rounds to float32; in ONNX Runtime the difference of two float32 scores is what it is
    assert_close(next(iter(found.relevance.values())), stored[key][rows], 1e-6 if exact else 5e-5)


LAYOUTS = {
    "sequence": ("[N,2,11]", (2, 11), "c = Conv(x, w)", (3, 2, 3)),
    "picture": ("[N,2,6,7]", (2, 6, 7), "c = Conv(x, w)", (3, 2, 3, 2)),
    "volume": ("[N,1,4,5,3]", (1, 4, 5, 3), "c = Conv(x, w)", (3, 1, 2, 3, 2)),
    "channels last": ("[N,6,7,2]", (6, 7, 2), "t = Transpose<perm=[0,3,1,2]>(x)\n c = Conv(t, w)", (3, 2, 3, 2)),
}


def convolution(layout: str) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    declared, shape, text, weights = LAYOUTS[layout]
    w = drawn(*weights, seed=4)
    axes = np.arange(2, len(weights), dtype=np.int64)
    return model(f"g (float{declared} x) => (float[N,3] y) {{ {text}\n r = Relu(c)\n y = ReduceSum<keepdims=0>(r, axes) }}",
                 w=w, axes=axes), shape  # fmt: skip


def slow_occlusion(source: Any, x: Array, window: Any, stride: Any, base: float, target: int) -> Array:
    """One window after the other, one run each."""
    session = Explainer(source, "gradient", threads=1, backend="reference")
    total, count = np.zeros(x.shape), np.zeros(x.shape)
    steps = [ceil((d - k) / s) + 1 for d, k, s in zip(x.shape[1:], window, stride)]
    before = session(x, target).target.score
    for place in product(*map(range, steps)):
        where = (slice(None), *(slice(q * s, q * s + k) for q, s, k in zip(place, stride, window)))
        changed = x.copy()
        changed[where] = base
        change = before - session(changed, target).target.score
        total[where] += change.reshape(-1, *[1] * (x.ndim - 1))
        count[where] += 1
    return total / count


@pytest.mark.parametrize(
    ("layout", "window", "stride"),
    [
        ("sequence", (2, 3), (2, 2)),
        ("picture", (1, 4, 3), (1, 3, 2)),
        ("volume", (1, 2, 2, 3), (1, 1, 2, 3)),
        ("channels last", (2, 2, 2), (2, 2, 2)),
    ],
)
def test_occlusion_of_any_rank_is_the_slow_one(layout: str, window: tuple[int, ...], stride: tuple[int, ...]) -> None:
    source, shape = convolution(layout)
    x = drawn(2, *shape, seed=5).astype(np.float64)
    found = told(
        source, "occlusion", x, 1, {"backend": "reference"}, window=list(window), stride=list(stride), baseline=0.5
    )
    assert found.relevance["x"].dtype == np.float64
    assert_close(found.relevance["x"], slow_occlusion(source, x, window, stride, 0.5, 1), 1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_default_window_takes_all_channels_and_an_eighth_of_the_rest(layout: str) -> None:
    source, shape = convolution(layout)
    x = drawn(1, *shape, seed=6)
    channel = len(shape) - 1 if layout == "channels last" else 0
    window = [d if a == channel else ceil(d / 8) for a, d in enumerate(shape)]
    stride = [d if a == channel else ceil(w / 2) for a, (d, w) in enumerate(zip(shape, window))]
    default = told(source, "occlusion", x).relevance["x"]
    np.testing.assert_array_equal(default, told(source, "occlusion", x, window=window, stride=stride).relevance["x"])
    first = np.take(default, [0], channel + 1)
    np.testing.assert_array_equal(default, np.broadcast_to(first, default.shape))


def test_a_lone_number_is_a_square_window() -> None:
    source, shape = convolution("picture")
    x = drawn(1, *shape)
    np.testing.assert_array_equal(
        told(source, "occlusion", x, window=3, stride=2).relevance["x"],
        told(source, "occlusion", x, window=[2, 3, 3], stride=[2, 2, 2]).relevance["x"],
    )


@pytest.mark.parametrize(
    "baseline", [0.0, 0.75, drawn(6, seed=8), drawn(1, 6, seed=8), drawn(4, 6, seed=8), {"x": drawn(6)}]
)
def test_occlusion_of_a_linear_model_is_weight_times_difference(baseline: Any) -> None:
    source, w = linear()
    x = drawn(4, 6, seed=3)
    value = baseline["x"] if isinstance(baseline, dict) else baseline
    assert_close(told(source, "occlusion", x, 2, baseline=baseline).relevance["x"], (x - value) * w[:, 2])


def test_a_blurred_baseline_is_the_input_where_that_is_constant() -> None:
    x = np.ones((1, 3, 16, 16), np.float32)
    e = told(residual_cnn(), "occlusion", x, None, baseline="blur")
    assert np.abs(e.relevance["picture"]).max() < 1e-5 * abs(float(e.target.score[0]))
    assert np.abs(told(residual_cnn(), "occlusion", x, None).relevance["picture"]).max() > 0.01


# ------------------------------------------------------------------------------------------- RISE


@pytest.mark.parametrize("centred", [False, True])
def test_rise_is_highest_on_the_patch_that_is_looked_at(centred: bool) -> None:
    rows, columns = slice(4, 12), slice(18, 28)
    source = patch_mean(rows, columns)
    x = np.abs(drawn(1, 2, 24, 32)) + 0.5
    r = told(source, "rise", x, masks=1500, centred=centred).relevance["x"]
    heatmap = r[0].sum(0)
    peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
    assert rows.start <= peak[0] < rows.stop
    assert columns.start <= peak[1] < columns.stop
    np.testing.assert_array_equal(r[:, 0], r[:, 1])
    far = heatmap[14:, :14].mean()
    if centred:
        assert abs(far) < 0.05 * heatmap.max()
    else:
        assert 0 < far < 0.8 * heatmap.max()


def test_rise_is_the_weighted_mean_of_its_masks() -> None:
    """Against eq. 6 written out, mask by mask, on class probabilities."""
    x = PICTURES[:1]
    masks = random_masks(np.arange(30), [Cells(1, 1, smooth=False), Cells(16, 5), Cells(16, 5)], kept=0.4, seed=11)
    runs = Explainer(residual_cnn(), "gradient", threads=1)(x * masks.astype(np.float32), 3)
    probability = runs.outputs["scores"][:, 3]
    wanted = np.tensordot(probability.astype(np.float64), masks, 1) / (30 * 0.4)
    found = told(residual_cnn(), "rise", x, 3, masks=30, grid=5, probability=0.4, random_seed=11).relevance["picture"]
    assert_close(found.sum(1), wanted)
    assert_close(found[:, 0], wanted / 3)


def test_rise_on_logits_is_another_map() -> None:
    logits = Explainer(residual_cnn(), "gradient", threads=1)
    masks = random_masks(np.arange(8), [Cells(1, 1, smooth=False), Cells(16, 7), Cells(16, 7)], kept=0.5, seed=0)
    wanted = np.tensordot(logits(PICTURES[:1] * masks.astype(np.float32), 2).target.score, masks, 1) / 4
    found = told(residual_cnn(), "rise", PICTURES[:1], 2, masks=8, score="logit").relevance["picture"]
    assert_close(found.sum(1), wanted)


HEADS = {
    "softmax": "y = Softmax(z)",
    "log-softmax": "y = LogSoftmax(z)",
    "none": "y = Identity(z)",
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("logits", [True, False])
def test_the_probability_is_the_same_however_the_model_ends(head: str, logits: bool) -> None:
    w = drawn(6, 3, seed=1)
    source = model(f"g (float[N,6] x) => (float[N,3] y) {{ z = MatMul(x, w)\n {HEADS[head]} }}", w=w)
    x = drawn(2, 6, seed=2).astype(np.float64)
    found = told(source, "occlusion", x, 1, {"backend": "reference", "logits": logits}, score="probability").relevance[
        "x"
    ]

    def probability(values: Array) -> Array:
        e = np.exp(values @ w.astype(np.float64))
        return np.asarray(e[:, 1] / e.sum(1))

    wanted = np.stack([probability(x) - probability(x * (np.arange(6) != i)) for i in range(6)], 1)
    assert_close(found, wanted, 1e-12)


@pytest.mark.parametrize("last", [False, True])
def test_classes_lie_where_the_picture_has_its_channels(last: bool) -> None:
    turned, back = "t = Transpose<perm=[0,3,1,2]>(x)", "y = Transpose<perm=[0,2,3,1]>(c)"
    shape, out = ("[N,4,4,2]", "[N,4,4,5]") if last else ("[N,2,4,4]", "[N,5,4,4]")
    text = f"{turned}\n c = Conv(t, w)\n {back}" if last else "y = Conv(x, w)"
    w = drawn(5, 2, 1, 1, seed=1)
    x = drawn(1, 2, 4, 4, seed=2)
    source = model(f"g (float{shape} x) => (float{out} y) {{ {text} }}", w=w)
    target = "y[:,1,2,3]" if last else "y[:,3,1,2]"
    fed = x.transpose(0, 2, 3, 1) if last else x
    r = told(source, "shapley-sampling", fed, target, grid=4, samples=2, score="probability").relevance["x"]
    e = np.exp(w[:, :, 0, 0] @ x[0, :, 1, 2])
    assert_close(r.sum()[None], (e[3] / e.sum() - 0.2)[None], 1e-4)


def test_a_branch_that_reads_the_input_from_outside_sees_it_masked() -> None:
    text = """g (float[N,3] x, bool c) => (float[N,1] y) {
        y = If(c) <then_branch = t () => (float[N,1] a) { a = MatMul(x, w) },
                   else_branch = e () => (float[N,1] b) { b = MatMul(x, v) }> }"""
    w, v = drawn(3, 1), drawn(3, 1, seed=1)
    x = drawn(2, 3, seed=2)
    for chosen, weight in ((True, w), (False, v)):
        r = told(model(text, w=w, v=v), "occlusion", {"x": x, "c": np.array(chosen)}).relevance["x"]
        assert_close(r, x * weight[:, 0])


def test_the_probability_behind_a_sigmoid_is_its_own() -> None:
    w = drawn(6, 1, seed=1)
    source = model("g (float[N,6] x) => (float[N,1] y) { z = MatMul(x, w)\n y = Sigmoid(z) }", w=w)
    x = drawn(2, 6, seed=2)
    found = told(source, "occlusion", x, score="probability").relevance["x"]
    sigmoid = 1 / (1 + np.exp(-(x @ w)))
    wanted = np.concatenate([sigmoid - 1 / (1 + np.exp(-((x * (np.arange(6) != i)) @ w))) for i in range(6)], 1)
    assert_close(found, wanted, 1e-4)


# ------------------------------------------------------------------------------------------- Shapley values


@pytest.mark.parametrize("exact_up_to", [1, 10])
def test_shapley_values_of_a_linear_model_are_weight_times_difference(exact_up_to: int) -> None:
    source, w = linear()
    x, base = drawn(3, 6, seed=3), drawn(6, seed=4)
    e = told(source, "shapley-sampling", x, 1, baseline=base, exact_up_to=exact_up_to, samples=3)
    assert_close(e.relevance["x"], (x - base) * w[:, 1])


def test_an_interaction_is_shared_by_those_who_make_it() -> None:
    source = game("p = Mul(x0, x1)\n d = Add(x2, x2)\n s = Add(p, d)\n m = Mul(x3, p)\n y = Add(s, m)", 5)
    x = np.array([[2.0, 3.0, 5.0, 7.0, 11.0]], np.float32)
    wanted = np.array([[3 + 14, 3 + 14, 10, 14, 0]])
    assert_close(told(source, "shapley-sampling", x).relevance["x"], wanted)
    sampled = told(source, "shapley-sampling", x, exact_up_to=1, samples=600, random_seed=1)
    assert_close(sampled.relevance["x"], wanted, 0.12)
    assert_close(sampled.relevance["x"].sum(1), wanted.sum(1))


def test_antithetic_orders_are_exact_where_features_meet_in_pairs() -> None:
    source = game("p = Mul(x0, x1)\n q = Mul(x1, x2)\n y = Add(p, q)", 3)
    x = np.array([[2.0, 3.0, 5.0]], np.float32)
    e = told(source, "shapley-sampling", x, exact_up_to=1, samples=2, antithetic=True)
    assert_close(e.relevance["x"], np.array([[3.0, 10.5, 7.5]]))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("baseline", ["zero", 0.5, "blur"])
def test_shapley_values_sum_to_the_change_of_the_score_however_few_there_are(samples: int, baseline: Any) -> None:
    e = told(residual_cnn(), "shapley-sampling", PICTURES, None, samples=samples, baseline=baseline)
    assert e.completeness is not None
    assert e.conservation.shape == e.completeness.shape == (3,)
    assert e.conservation.max() < 1e-5
    if baseline == "zero":
        empty = told(residual_cnn(), "gradient", 0 * PICTURES, e.target.index.tolist()).target.score
        assert_close(e.relevance["picture"].sum((1, 2, 3)), e.target.score - empty, 1e-5)


def test_a_feature_is_spread_evenly_over_its_entries() -> None:
    e = told(residual_cnn(), "shapley-sampling", PICTURES[:1], 0, samples=2)
    labels = superpixels([Cells(1, 1, smooth=False), Cells(16, 8), Cells(16, 8)])
    r = e.relevance["picture"][0]
    for label in range(64):
        assert np.ptp(r[np.broadcast_to(labels == label, r.shape)]) == 0


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 16), (1, 16, 16), (1, 3, 16, 16)])
def test_features_may_be_given(shape: tuple[int, ...]) -> None:
    rows = np.broadcast_to(np.arange(16)[:, None] // 4 * 10 - 3, shape)
    whole = told(residual_cnn(), "shapley-sampling", PICTURES[:2], 0, features=rows)
    r = whole.relevance["picture"]
    assert np.ptp(r[:, :, :4], axis=(1, 2, 3)).max() == 0
    assert not np.array_equal(r[:, 0, 0, 0], r[:, 0, 4, 0])
    assert whole.conservation.max() < 1e-5


def test_features_may_come_from_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", np.array([0, 0, 1, 1, 1, 2]))
    source, w = linear()
    x = drawn(1, 6)
    r = told(source, "shapley-sampling", x, features=str(tmp_path / "features.npy")).relevance["x"]
    each = (x * w[:, 0])[0]
    wanted = np.repeat([each[:2].mean(), each[2:5].mean(), each[5]], [2, 3, 1])[None]
    assert_close(r, wanted)


TWO = "g (float[N,3] a, float[N,2] b) => (float[N,1] y) { s = Concat<axis=1>(a, b)\n p = MatMul(s, w)\n y = Mul(p, p) }"


def test_the_features_of_several_inputs_play_one_game() -> None:
    w = drawn(5, 1, seed=1)
    feeds = {"a": drawn(2, 3, seed=2), "b": drawn(2, 2, seed=3)}
    e = told(model(TWO, w=w), "shapley-sampling", feeds)
    joint = model("g (float[N,5] x) => (float[N,1] y) { p = MatMul(x, w)\n y = Mul(p, p) }", w=w)
    wanted = told(joint, "shapley-sampling", np.concatenate(list(feeds.values()), 1)).relevance["x"]
    assert_close(np.concatenate(list(e.relevance.values()), 1), wanted)
    assert e.conservation.max() < 1e-5
    tied = told(model(TWO, w=w), "shapley-sampling", feeds, features={"a": [0, 1, 1], "b": [1, 0]})
    assert_close(tied.relevance["a"][:, 0], tied.relevance["b"][:, 1])


def test_the_other_inputs_stay_as_they_are_under_occlusion() -> None:
    w = drawn(5, 1, seed=1)
    a, b = drawn(2, 3, seed=2), drawn(2, 2, seed=3)
    r = told(model(TWO, w=w), "occlusion", {"a": a, "b": b}).relevance
    full = np.concatenate([a, b], 1)
    wanted = np.stack([(full @ w)[:, 0] ** 2 - ((full * (np.arange(5) != i)) @ w)[:, 0] ** 2 for i in range(5)], 1)
    assert_close(np.concatenate([r["a"], r["b"]], 1), wanted)
    assert list(told(model(TWO, w=w), "occlusion", {"a": a, "b": b}, settings={"wrt": ["b"]}).relevance) == ["b"]


# ------------------------------------------------------------------------------------------- every method


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_samples_alone_and_any_batch_size_gives_the_same(method: str) -> None:
    options = METHODS[method]
    together = told(residual_cnn(), method, PICTURES, None, **options)
    assert together.relevance["picture"].shape == PICTURES.shape
    assert together.relevance["picture"].dtype == np.float32
    for size in (1, 7):
        again = told(residual_cnn(), method, PICTURES, None, {"batch_size": size}, **options)
        assert_close(again.relevance["picture"], together.relevance["picture"], 1e-4)
    for i in range(3):
        alone = told(residual_cnn(), method, PICTURES[i : i + 1], None, **options)
        assert_close(alone.relevance["picture"][0], together.relevance["picture"][i], 1e-4)
        assert alone.target.index[0] == together.target.index[i]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", ["1", "3"])
def test_a_fixed_batch_gives_the_same(method: str, batch: str) -> None:
    wanted = told(residual_cnn(), method, PICTURES, [0, 1, 2], **METHODS[method])
    found = told(residual_cnn(batch), method, PICTURES, [0, 1, 2], **METHODS[method])
    assert_close(found.relevance["picture"], wanted.relevance["picture"], 1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_written_into_the_graph_is_run_one_by_one(method: str) -> None:
    text = """g (float[N,2,4,4] x) => (float[N,3] y) {
        f = Reshape(x, shape)
        y = MatMul(f, w) }"""
    weights = {"shape": np.array([1, 32]), "w": drawn(32, 3)}
    x = drawn(1, 2, 4, 4)
    open_batch = {**weights, "shape": np.array([0, 32])}
    options = {**METHODS[method], **({"grid": 2} if method != "occlusion" else {})}
    wanted = told(model(text, **open_batch), method, x, **options).relevance["x"]
    assert_close(told(model(text, **weights), method, x, **options).relevance["x"], wanted, 1e-4)


@pytest.mark.parametrize("method", ["rise", "shapley-sampling"])
def test_the_seed_decides(method: str) -> None:
    first, again, other = (
        told(residual_cnn(), method, PICTURES[:1], 0, random_seed=s, **METHODS[method]).relevance["picture"]
        for s in (4, 4, 5)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("method", METHODS)
def test_at_an_inner_tensor_the_rest_of_the_network_is_the_model(method: str) -> None:
    source = residual_cnn()
    inner = onnx.helper.make_tensor_value_info("p1", onnx.TensorProto.FLOAT, ["N", 8, 8, 8])
    shown = model("g () => () {}")
    shown.CopyFrom(source)
    shown.graph.output.append(inner)
    p1 = Explainer(shown, "gradient", threads=1, output="scores")(PICTURES).outputs["p1"]
    rest = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(source)).extract_model(["p1"], ["scores"])
    options = {**METHODS[method], **({"grid": 4} if method != "occlusion" else {})}
    found = told(source, method, PICTURES, 1, {"at": "p1"}, **options)
    assert list(found.relevance) == ["p1"]
    assert_close(found.relevance["p1"], told(rest, method, p1, 1, **options).relevance["p1"], 1e-4)


def test_the_explained_tensor_itself_may_be_perturbed() -> None:
    source, _ = linear()
    e = told(source, "occlusion", drawn(2, 6), 1, {"at": "y"})
    assert_close(e.relevance["y"], e.outputs["y"] * (np.arange(3) == 1))


@pytest.mark.parametrize("method", METHODS)
def test_a_sample_that_is_not_explained_gets_nothing(method: str) -> None:
    e = told(residual_cnn(), method, PICTURES, "scores[1,2]", **METHODS[method])
    r = e.relevance["picture"]
    assert not r[[0, 2]].any()
    wanted = told(residual_cnn(), method, PICTURES[1:2], 2, **METHODS[method]).relevance["picture"]
    assert_close(r[1:2], wanted, 1e-4)
    if method == "shapley-sampling":
        assert e.conservation.max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_a_score_that_joins_the_samples_has_one_map_of_all(method: str) -> None:
    w = drawn(4, 1)
    text = "g (float[N,4] x) => (float[1] y) { p = MatMul(x, w)\n q = Mul(p, p)\n y = ReduceSum<keepdims=0>(q, axes) }"
    x = drawn(3, 4, seed=1)
    options = {**METHODS[method], "grid": None} if method == "shapley-sampling" else METHODS[method]
    e = told(model(text, w=w, axes=np.array([0])), method, x, **options)
    assert e.relevance["x"].shape == (3, 4)
    assert e.conservation.shape == (1,)
    if method == "occlusion":
        p = (x @ w)[:, 0]
        wanted = np.stack([p**2 - ((x * (np.arange(4) != i)) @ w)[:, 0] ** 2 for i in range(4)], 1)
        assert_close(e.relevance["x"], wanted)
    if method == "shapley-sampling":
        assert e.conservation.max() < 1e-5


def test_an_input_that_all_samples_share_gets_the_sum_of_their_changes() -> None:
    source = model("g (float[N,3] x, float[1,3] k) => (float[N,1] y) { p = Mul(x, k)\n y = ReduceSum<keepdims=1>(p, axes) }",
                   axes=np.array([1]))  # fmt: skip
    x, k = drawn(4, 3), drawn(1, 3, seed=1)
    for method in ("occlusion", "shapley-sampling"):
        e = told(source, method, {"x": x, "k": k}, 0, {"wrt": ["k"]})
        assert_close(e.relevance["k"], (x * k).sum(0, keepdims=True))


@pytest.mark.parametrize("dtype", ["float16", "double"])
@pytest.mark.parametrize("method", METHODS)
def test_relevance_has_the_inputs_dtype_or_float32(method: str, dtype: str) -> None:
    kind = np.float16 if dtype == "float16" else np.float64
    source = model(f"g ({dtype}[N,6] x) => ({dtype}[N,3] y) {{ y = MatMul(x, w) }}", w=drawn(6, 3).astype(kind))
    options = {"masks": 10} if method == "rise" else {}
    e = told(source, method, drawn(2, 6, seed=1).astype(kind), **options)
    assert e.relevance["x"].dtype == (np.float32 if dtype == "float16" else kind)
    assert np.isfinite(e.relevance["x"]).all()


@pytest.mark.parametrize("method", METHODS)
def test_progress_is_told_to_the_end(method: str) -> None:
    way = resolve(method)
    explainer = Explainer(residual_cnn(), method, threads=1, **METHODS[method])
    told_so_far: list[tuple[int, int]] = []
    prepared = explainer._prepared
    explain(
        prepared, way.procedure(METHODS[method]), prepared.feeds(PICTURES), parse(None), Options(), method=method,
        progress=lambda done, total: told_so_far.append((done, total)),
    )  # fmt: skip
    assert len({total for _, total in told_so_far}) == 1
    assert [done for done, _ in told_so_far] == sorted({done for done, _ in told_so_far})
    assert told_so_far[-1][0] == told_so_far[-1][1]


def test_no_more_runs_at_once_than_asked_for_and_only_the_score_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_explain.backends.onnx import Session

    sizes, names = [], set()
    run = Session.run

    def watched(self: Session, feeds: Any, outputs: Any = None) -> Any:
        sizes.append(len(feeds["picture"]))
        if any(n.startswith("explain_mask") for n in feeds):
            names.update(self.outputs)
        return run(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", watched)
    told(residual_cnn(), "occlusion", PICTURES, None, {"batch_size": 5})
    assert max(sizes) == 5
    assert names == {"explain_score"}


def test_a_model_without_rooms_is_explained_from_outside() -> None:
    text = "g (float[N,6] x) => (float[N,6] y) { f = Round(x)\n t = Trilu(f)\n y = Mod<fmod=1>(f, three) }"
    source = model(text, three=np.array(3, np.float32))
    e = told(source, "occlusion", np.full((1, 6), 4.2, np.float32), 2)
    assert_close(e.relevance["x"], np.array([[0, 0, 1, 0, 0, 0]], np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_the_method_has_no_graph_to_convert(method: str) -> None:
    with pytest.raises(MethodError, match="not one graph"):
        Explainer(residual_cnn(), method, threads=1).convert()


def test_several_methods_and_targets_in_one_call() -> None:
    ways = [("occlusion", {}), "gradient", ("shapley-sampling", {"samples": 1})]
    found = Explainers(residual_cnn(), ways, threads=1)(PICTURES, [0, 1])
    assert [[e.method for e in row] for row in found] == [["occlusion", "gradient", "shapley-sampling"]] * 2
    for target, row in enumerate(found):
        assert_close(
            row[0].relevance["picture"], told(residual_cnn(), "occlusion", PICTURES, target).relevance["picture"]
        )


FAULTS = [
    ("occlusion", {"window": 0}, MethodError, "at least 1"),
    ("occlusion", {"window": []}, MethodError, "at least 1"),
    ("occlusion", {"window": "large"}, MethodError, "at least 1"),
    ("occlusion", {"window": [3, 1.5, 2]}, MethodError, "at least 1"),
    ("occlusion", {"stride": 0}, MethodError, "at least 1"),
    ("occlusion", {"window": [3, 17, 2]}, MethodError, "window 17 is larger than axis 2 of 'picture', which has 16"),
    ("occlusion", {"window": 99}, MethodError, "window 99 is larger"),
    ("occlusion", {"window": [2, 2]}, MethodError, "2 entries"),
    ("occlusion", {"window": 2, "stride": 3}, MethodError, "stride 3 on axis 2 of 'picture' is larger than the window 2"),
    ("occlusion", {"grid": 2}, MethodError, "no option 'grid'"),
    ("occlusion", {"baseline": "grey"}, MethodError, "baseline"),
    ("occlusion", {"baseline": np.zeros((5, 5))}, InputError, "does not broadcast"),
    ("occlusion", {"baseline": {"image": 0.0}}, InputError, "picture"),
    ("occlusion", {"score": "loss"}, MethodError, "'logit', 'probability'"),
    ("rise", {"grid": 17}, MethodError, "grid 17 is larger than axis 2"),
    ("rise", {"grid": 0}, MethodError, "at least 1"),
    ("rise", {"masks": 0}, MethodError, "at least 1"),
    ("rise", {"probability": 0.0}, MethodError, "above 0"),
    ("rise", {"probability": 1.5}, MethodError, "at most 1"),
    ("rise", {"random_seed": -1}, MethodError, "at least 0"),
    ("shapley-sampling", {"samples": 0}, MethodError, "at least 1"),
    ("shapley-sampling", {"features": "pixels"}, MethodError, "'auto' or whole numbers"),
    ("shapley-sampling", {"features": [0.5, 1.5]}, MethodError, "whole numbers"),
    ("shapley-sampling", {"features": np.zeros((4, 4), int)}, MethodError, "does not broadcast"),
    ("shapley-sampling", {"features": {"image": np.zeros((16, 16), int)}}, MethodError, "Did you mean|Known"),
    ("shapley-sampling", {"features": "nowhere.npy"}, MethodError, "cannot be read"),
    ("shapley-sampling", {"exact_up_to": 40}, MethodError, "at most 20"),
    ("shapley-sampling", {"grid": [4, 99]}, MethodError, "grid 99 is larger than axis 3"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options", "error", "words"), FAULTS)
def test_a_fault_is_one_clear_sentence(
    method: str, options: dict[str, Any], error: type[ExplainError], words: str
) -> None:
    with pytest.raises(error, match=words):
        told(residual_cnn(), method, PICTURES[:1], **options)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"seed": "one"}, MethodError, "no backward pass to seed"),
        ({"keep": ["p1"]}, MethodError, "explain at one"),
        ({"at": "p2"}, TargetError, "no tensor 'p2'"),
        ({"at": "scores"}, TargetError, "does not depend on"),
        ({"output": "labels"}, TargetError, "no output 'labels'"),
        ({"wrt": ["image"]}, InputError, "no input 'image'"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    settings: dict[str, Any], error: type[ExplainError], words: str
) -> None:
    with pytest.raises(error, match=words):
        told(residual_cnn(), "occlusion", PICTURES[:1], 0, settings)


def test_a_model_that_fails_says_so_and_is_not_run_for_ever() -> None:
    source = model("g (float[N,4] x) => (float[N,2] y) { i = Cast<to=7>(x)\n h = Gather<axis=0>(table, i)\n"
                   " s = ReduceSum<keepdims=0>(h, axes)\n y = MatMul(s, w) }",
                   table=drawn(3, 4), axes=np.array([1]), w=drawn(4, 2))  # fmt: skip
    with pytest.raises(ModelError, match="cannot run"):
        told(source, "occlusion", np.ones((1, 4), np.float32), baseline=9.0)
