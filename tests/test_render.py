"""Heat maps keep their sign and scale, figures their texts apart, and files are written whole or not at all."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from onnx_explain import render
from onnx_explain.errors import InputError, OutputError

LONG = "lrp-epsilon-alpha2-beta1-flat"
RNG = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def visible_texts(figure: Figure) -> list[tuple[Text, Axes | None]]:
    """Every text that is drawn, with the axes that it belongs to."""
    figure.canvas.draw()
    texts: list[tuple[Text, Axes | None]] = [(t, None) for t in figure.texts]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = zip(axis.get_ticklocs(), axis.get_ticklabels())
            texts += [(label, axes) for place, label in labels if low <= place <= high and label.get_visible()]
            texts.append((axis.get_offset_text(), axes))
        texts += [(t, axes) for t in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    return [(t, owner) for t, owner in texts if t.get_text().strip()]


def check_that_texts_are_whole_and_apart(figure: Figure) -> None:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    texts = visible_texts(figure)
    boxes = [t.get_window_extent(canvas.get_renderer()) for t, _ in texts]
    for (text, _), box in zip(texts, boxes):
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert inside, f"{text.get_text()!r} is clipped"
    for ((one, _), a), ((two, _), b) in combinations(zip(texts, boxes), 2):
        assert not a.overlaps(b), f"{one.get_text()!r} meets {two.get_text()!r}"
    for axes in figure.axes:
        place = axes.get_window_extent()
        for (text, owner), box in zip(texts, boxes):
            assert owner is axes or not place.overlaps(box), f"{text.get_text()!r} lies on a panel"
    for one_axes, other in combinations(figure.axes, 2):
        assert not one_axes.get_window_extent().overlaps(other.get_window_extent())


# heat maps


def test_a_heat_map_sums_its_channels() -> None:
    relevance = noise(2, 3, 4, 5)
    np.testing.assert_allclose(render.heatmap(relevance, axis=1), relevance.sum(1))
    np.testing.assert_allclose(render.heatmap(relevance[0].transpose(1, 2, 0), axis=-1), relevance[0].sum(0))
    assert render.heatmap(relevance, axis=None).shape == relevance.shape


def test_a_heat_map_can_keep_the_strongest_channel_with_its_sign() -> None:
    relevance = np.array([[[1.0, -2.0]], [[-3.0, 1.0]], [[2.0, 0.5]]])
    assert render.heatmap(relevance, axis=0, reduce="max_abs").tolist() == [[-3.0, -2.0]]


def test_half_precision_relevance_is_summed_in_single() -> None:
    heat = render.heatmap(np.full((3, 2, 2), 40000, np.float16), axis=0)
    assert heat.dtype == np.float32 and (heat == 3 * np.float32(np.float16(40000))).all()


@pytest.mark.parametrize(
    ("options", "said"), [({"axis": 3}, "axis 3"), ({"axis": -4}, "axis -4"), ({"axis": 0, "reduce": "mean"}, "'mean'")]
)
def test_an_impossible_reduction_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        render.heatmap(noise(3, 2, 2), **options)


@pytest.mark.parametrize(
    "call", [render.normalise, render.colourise, render.scale_of, lambda h: render.heatmap(h, axis=0)]
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_never_drawn(call: Any, bad: float) -> None:
    heat = noise(4, 4)
    heat[1, 2] = bad
    with pytest.raises(InputError, match="1 of 16"):
        call(heat)


def test_normalising_is_symmetric_about_zero() -> None:
    heat = noise(30, 30)
    np.testing.assert_array_equal(render.normalise(-heat), -render.normalise(heat))
    assert abs(render.normalise(heat)).max() == 1


def test_a_zero_map_stays_zero() -> None:
    assert not render.normalise(np.zeros((5, 5))).any()
    assert render.scale_of(np.zeros((5, 5))) == 0
    assert (render.colourise(np.zeros((5, 5))) == 255).all()


def test_one_outlier_does_not_hide_the_rest() -> None:
    heat = noise(100, 100)
    heat[3, 3] = 1e9
    assert np.abs(render.normalise(heat)).mean() > 0.1


def test_a_sparse_map_is_scaled_by_what_it_shows() -> None:
    heat = np.zeros((100, 100))
    heat[4, 4], heat[5, 5] = 2.0, -1.0
    shown = render.normalise(heat)
    assert shown[4, 4] == 1 and shown[5, 5] == pytest.approx(-0.5, abs=0.01)


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e308, 1e308)))
def test_normalising_never_gives_nan_nor_changes_a_sign(heat: np.ndarray) -> None:
    shown = render.normalise(heat)
    assert np.isfinite(shown).all() and np.abs(shown).max() <= 1
    assert ((np.sign(shown) == np.sign(heat)) | (shown == 0)).all()


def test_a_stated_limit_is_the_scale() -> None:
    assert render.normalise(np.array([[1.0, -4.0]]), limit=2.0).tolist() == [[0.5, -1.0]]


# colours


def test_red_supports_blue_speaks_against_and_zero_is_white() -> None:
    (colours,) = render.colourise(np.array([[-1, -0.3, 0, 0.3, 1]])).astype(int)
    assert colours[2].tolist() == [255, 255, 255]
    for against in colours[:2]:
        assert against[2] > against[0] + 50
    for supports in colours[3:]:
        assert supports[0] > supports[2] + 50


def test_colours_darken_steadily_and_equally_on_both_sides() -> None:
    (strip,) = render.colourise(np.linspace(-1, 1, 201)[None])
    light = strip @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(light[:101]) > 0).all() and (np.diff(light[100:]) < 0).all()
    assert np.abs(light - light[::-1]).max() < 35


def test_values_beyond_one_take_the_last_colour() -> None:
    np.testing.assert_array_equal(render.colourise(np.array([[5.0, -5]])), render.colourise(np.array([[1.0, -1]])))


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (600, 1000), (28, 200), (7, 5)])
def test_an_overlay_enlarges_small_pictures_and_keeps_large_ones(size: tuple[int, int]) -> None:
    drawn = render.overlay(grey(*size), noise(7, 9))
    assert drawn.dtype == np.uint8 and drawn.shape[0] / size[0] == drawn.shape[1] / size[1]
    assert min(drawn.shape[:2]) >= 400 and (min(size) < 400 or drawn.shape[:2] == size)


def test_an_overlay_shows_the_sign_where_the_relevance_is_and_the_picture_elsewhere() -> None:
    heat = np.zeros((8, 8))
    heat[:, :2], heat[:, 6:] = 1.0, -1.0
    picture = RNG.integers(0, 256, (448, 448, 1), dtype=np.uint8).repeat(3, axis=2)
    drawn = render.overlay(picture, heat).astype(int)
    left, middle, right = drawn[:, :60], drawn[:, 200:248], drawn[:, -60:]
    assert (left[..., 0] > left[..., 2] + 60).all() and (right[..., 2] > right[..., 0] + 60).all()
    assert (np.ptp(middle, axis=-1) == 0).all()
    assert np.corrcoef(middle[..., 0].ravel(), picture[:, 200:248, 0].ravel())[0, 1] > 0.999


def test_an_overlay_of_nothing_is_the_picture_paled() -> None:
    picture = RNG.integers(0, 256, (500, 500, 3), dtype=np.uint8)
    drawn = render.overlay(picture, np.zeros((10, 10)))
    assert np.isfinite(drawn).all() and np.corrcoef(drawn.ravel(), picture.ravel())[0, 1] > 0.5


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4, 3)), np.zeros((4, 4), "u1"), np.zeros((4, 4, 4), "u1"), np.zeros((0, 4, 3), "u1")]
)
def test_what_is_no_picture_is_refused(picture: Any, tmp_path: Path) -> None:
    for call in (
        lambda: render.overlay(picture, noise(4, 4)),
        lambda: render.save_png(tmp_path / "a.png", picture),
        lambda: render.figure_images(picture, {"a": noise(4, 4)}),
    ):
        with pytest.raises(InputError, match="uint8"):
            call()


@pytest.mark.parametrize(
    ("shape", "axis", "colourful"),
    [
        ((3, 6, 5), 0, True),
        ((6, 5, 3), 2, True),
        ((4, 6, 5), 0, True),
        ((1, 6, 5), 0, False),
        ((7, 6, 5), 0, False),
        ((6, 5), None, False),
    ],
)
def test_an_input_array_is_shown_in_its_own_range(shape: tuple[int, ...], axis: int | None, colourful: bool) -> None:
    shown = render.as_picture(noise(*shape), axis=axis)
    assert shown.shape == (6, 5, 3) and shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert bool(np.ptp(shown.astype(int), axis=-1).any()) == colourful


def test_a_constant_input_is_grey() -> None:
    assert (render.as_picture(np.full((3, 4, 4), 7.0), axis=0) == 128).all()


# files


def test_a_png_reads_back_as_it_was(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    render.save_png(tmp_path / "a.png", rgb)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), rgb)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_place_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "x").touch()
    figure = render.figure_images(None, {"a": noise(4, 4)})
    for place in (
        tmp_path / "none" / "a.png",
        tmp_path / "file" / "a.png",
        tmp_path / "folder.png",
        tmp_path / f"{'a' * 300}.png",
    ):
        for call in (lambda p=place: render.save_png(p, grey(4, 4)), lambda p=place: render.save_figure(figure, p)):
            with pytest.raises(OutputError) as caught:
                call()
            assert repr(str(place)) in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder.png", "x"]


def test_a_reader_of_the_old_file_never_sees_a_half_new_one(tmp_path: Path) -> None:
    render.save_png(tmp_path / "a.png", grey(4, 4))
    before = (tmp_path / "a.png").read_bytes()
    with (tmp_path / "a.png").open("rb") as reader:
        render.save_png(tmp_path / "a.png", grey(50, 50))
        assert reader.read() == before != (tmp_path / "a.png").read_bytes()


def test_a_failure_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    render.save_png(tmp_path / "a.png", grey(4, 4))
    before = (tmp_path / "a.png").read_bytes()

    def full_disk(_: Image.Image, file: Any, kind: str) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        render.save_png(tmp_path / "a.png", grey(5, 5))
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_a_figure_is_written_by_its_suffix_the_same_every_time(tmp_path: Path, suffix: str) -> None:
    def written(name: str) -> bytes:
        figure = render.figure_images(grey(8, 8), {"a": noise(8, 8), "b": noise(4, 4)}, title="t")
        render.save_figure(figure, tmp_path / f"{name}{suffix}")
        return (tmp_path / f"{name}{suffix}").read_bytes()

    first = written("one")
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]
    assert first.startswith(start) and first == written("two")
    if suffix == ".svg":
        ElementTree.fromstring(first)


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.txt"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=re.escape(".png, .svg, .pdf")):
        render.save_figure(render.figure_images(None, {"a": noise(4, 4)}), tmp_path / name)


def test_the_module_needs_neither_pyplot_nor_matplotlib_to_load() -> None:
    code = (
        "import sys, numpy as np, onnx_explain.render as r; assert 'matplotlib' not in sys.modules;"
        "r.figure_images(None, {'a': np.ones((3, 3))}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# figures of pictures


@pytest.mark.parametrize("size", [(32, 32), (224, 224), (60, 100), (48, 192), (192, 48), (4, 256)])
@pytest.mark.parametrize("count", [1, 4, 9, 20])
def test_no_text_is_clipped_or_meets_another(size: tuple[int, int], count: int) -> None:
    titles = [f"{LONG}-{i}" if i % 2 else f"rap {i}" for i in range(count)]
    for picture in (None, grey(*size)):
        figure = render.figure_images(picture, {t: noise(*size) for t in titles}, title=f"cat.png → {LONG * 12}")
        check_that_texts_are_whole_and_apart(figure)
        assert len(figure.axes) == count + (picture is not None) + 1


@pytest.mark.parametrize("columns", [1, 2, 7, 50])
def test_the_number_of_columns_can_be_stated(columns: int) -> None:
    figure = render.figure_images(None, {str(i): noise(8, 8) for i in range(9)}, columns=columns)
    check_that_texts_are_whole_and_apart(figure)
    panels = [a.get_position().x0 for a in figure.axes if a.get_position().height > 0.05]
    assert len({round(x, 4) for x in panels}) == min(columns, 9)


def test_nine_maps_make_a_full_grid() -> None:
    figure = render.figure_images(None, {str(i): noise(8, 8) for i in range(9)})
    assert len({round(a.get_position().x0, 4) for a in figure.axes[1:]}) == 3


@pytest.mark.parametrize(
    "title",
    [
        "$\\frac{$",
        "100 % $ and $",
        "日本語",
        "a\nb\tc",
        "x" * 500,
        "{}",
        "m" * 5000,
        "←→",
        " ",
        "_" * 200,
        "https://a.b/c-d_e?f=g",
    ],
)
def test_a_title_of_any_text_is_drawn(tmp_path: Path, title: str) -> None:
    figure = render.figure_images(None, {title: noise(8, 8), "b": noise(8, 8)}, title=title)
    render.save_figure(figure, tmp_path / "a.png")
    if title.isascii():
        check_that_texts_are_whole_and_apart(figure)


@pytest.mark.parametrize("dark", [True, False])
def test_texts_stand_out_from_the_face_in_light_and_dark(dark: bool) -> None:
    for figure in (
        render.figure_images(grey(8, 8), {"a": noise(8, 8), "b": noise(8, 8)}, title="t", dark=dark),
        render.figure_signal(noise(20, 50), noise(20, 50), title="t", dark=dark),
        render.figure_features(noise(30), noise(30), title="t", dark=dark),
    ):
        face = luminance(figure.get_facecolor())
        assert face < 0.05 if dark else face > 0.95
        for text, _ in visible_texts(figure):
            high, low = sorted((luminance(text.get_color()), face), reverse=True)
            assert (high + 0.05) / (low + 0.05) > 4.5, text.get_text()  # WCAG's contrast for text


def luminance(colour: Any) -> float:
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_colour_bar_says_what_the_signs_mean() -> None:
    figure = render.figure_images(None, {"a": noise(8, 8)})
    places = {t.get_text(): t.get_window_extent().x0 for t, _ in visible_texts(figure)}
    assert places[render.AGAINST] < places[render.SUPPORTS]
    bar = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(bar[0, [0, -1]], render.colourise(np.array([[-1.0, 1.0]]))[0])


def test_maps_have_a_scale_each_unless_they_share_one() -> None:
    maps = {"small": noise(8, 8), "large": 100 * noise(8, 8)}
    own, shared = (render.figure_images(None, maps, shared=s) for s in (False, True))
    own_small, own_large = (np.asarray(own.axes[i].images[0].get_array()).astype(int) for i in (1, 2))
    shared_small = np.asarray(shared.axes[1].images[0].get_array()).astype(int)
    np.testing.assert_array_equal(own_small, own_large)
    assert np.abs(shared_small - 255).max() < 10 < np.abs(own_small - 255).max()
    assert any("own scale" in t.get_text() for t, _ in visible_texts(own))
    assert not any("own scale" in t.get_text() for t, _ in visible_texts(shared))


def test_a_map_of_zeros_is_named_so() -> None:
    figure = render.figure_images(None, {"gradient": np.zeros((8, 8)), "rap": noise(8, 8)})
    texts = [t.get_text() for t, _ in visible_texts(figure)]
    assert "gradient (zero everywhere)" in texts and "rap" in texts


def test_overlays_draw_each_map_over_the_picture() -> None:
    figure = render.figure_images(grey(8, 8), {"a": noise(8, 8)}, overlays=True)
    assert np.asarray(figure.axes[2].images[0].get_array()).shape == (448, 448, 3)


@pytest.mark.parametrize(
    ("maps", "options", "said"),
    [
        ({}, {}, "nothing"),
        ({"a": np.zeros(4)}, {}, "'a'"),
        ({"a": np.zeros((1, 2, 2))}, {}, "height and a width"),
        ({"a": np.zeros((0, 2))}, {}, "height and a width"),
        ({"a": np.full((2, 2), np.nan)}, {}, "NaN"),
        ({"a": np.zeros((2, 2))}, {"columns": 0}, "columns"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(maps: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        render.figure_images(None, maps, **options)


# signals and features


def lines_of(figure: Figure, channel: int = 0) -> LineCollection:
    (collection,) = [c for c in figure.axes[1 + channel].collections if isinstance(c, LineCollection)]
    return collection


def test_a_signal_is_coloured_by_the_sign_of_its_relevance() -> None:
    figure = render.figure_signal(np.arange(4.0), np.array([1.0, -1.0, 0.0, 0.5]))
    red, blue, none, half = lines_of(figure).get_colors()
    assert red[0] > red[2] and blue[2] > blue[0] and none[3] == 0 and 0 < half[3] <= red[3]
    widths = lines_of(figure).get_linewidths()
    assert widths[2] < widths[3] < widths[0] == pytest.approx(widths[1])


def test_the_stretches_of_a_signal_follow_it_without_gaps() -> None:
    for count in (1, 2, 5, 2001, 9000):
        line = noise(count)
        segments = lines_of(render.figure_signal(line, noise(count))).get_segments()
        assert segments[0][0, 0] == 0 and segments[-1][-1, 0] == count - 1
        assert all((a[-1] == b[0]).all() for a, b in pairwise(segments))
        assert len(segments) <= 2000
        points = np.concatenate(segments)
        np.testing.assert_allclose(points[:, 1], np.interp(points[:, 0], np.arange(count), line))


@pytest.mark.parametrize("channels", [1, 2, 8, 64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_text_of_a_signal_is_clipped_or_meets_another(channels: int, scale: float) -> None:
    names = [f"electrode {i} {LONG}" for i in range(channels)]
    figure = render.figure_signal(scale * noise(channels, 300), noise(channels, 300), names=names, title=LONG * 9)
    check_that_texts_are_whole_and_apart(figure)


def test_of_many_channels_the_most_relevant_are_drawn_in_their_order() -> None:
    relevance = np.zeros((12, 30))
    relevance[[9, 2, 5], 3] = [3.0, 2.0, -4.0]
    figure = render.figure_signal(noise(12, 30), relevance, most=3)
    texts = [t.get_text() for t, _ in visible_texts(figure)]
    assert [t for t in texts if t.startswith("channel")] == ["channel 2", "channel 5", "channel 9"]
    assert any(t.startswith("3 of 12 channels") for t in texts)


def bars_of(figure: Figure) -> list[float]:
    return [float(p.get_width()) for p in figure.axes[1].patches]  # type: ignore[attr-defined]


def test_features_are_sorted_by_magnitude_and_the_others_summed() -> None:
    relevance = np.array([0.1, -3.0, 0.2, 2.0, -0.05])
    figure = render.figure_features(np.arange(5.0), relevance, names=list("abcde"), top=2)
    assert bars_of(figure) == pytest.approx([-3.0, 2.0, 0.25])
    texts = [t.get_text() for t, _ in visible_texts(figure)]
    assert {"b = 1", "d = 3", "the other 3, summed"} <= set(texts)
    red, blue = figure.axes[1].patches[1].get_facecolor(), figure.axes[1].patches[0].get_facecolor()
    assert red[0] > red[2] and blue[2] > blue[0]


@pytest.mark.parametrize("count", [1, 2, 20, 4096])
@pytest.mark.parametrize("sign", [1, -1, 0, None])
def test_no_text_of_features_is_clipped_or_meets_another(count: int, sign: int | None) -> None:
    relevance = noise(count) if sign is None else sign * np.abs(noise(count))
    names = [f"feature {i} {LONG * (i % 3)}" for i in range(count)]
    figure = render.figure_features(noise(count) * 1e5, relevance, names=names, title=LONG)
    check_that_texts_are_whole_and_apart(figure)
    low, high = figure.axes[1].get_xlim()
    assert low <= min(*bars_of(figure), 0) and max(*bars_of(figure), 0) <= high and low < high


def test_signals_and_features_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[5\] and \[6\]"):
        render.figure_signal(noise(5), noise(6))
    with pytest.raises(InputError, match=r"\[1, 2, 3\]"):
        render.figure_signal(noise(1, 2, 3), noise(1, 2, 3))
    with pytest.raises(InputError, match="5, 6 and none"):
        render.figure_features(noise(5), noise(6))
    with pytest.raises(InputError, match="5, 5 and 1"):
        render.figure_features(noise(5), noise(5), names=["a"])


# plot


@pytest.mark.parametrize(
    ("shape", "layout", "panels"),
    [
        ((1,), None, 1),
        ((1, 30), None, 1),
        ((1, 30), "NT", 1),
        ((1, 3, 30), None, 3),
        ((1, 30, 3), "NTC", 3),
        ((1, 28, 28), "NHW", 3),
        ((1, 3, 16, 20), None, 3),
        ((1, 16, 20, 3), "NHWC", 3),
        ((1, 2, 6, 8, 8), None, 6),
        ((1, 20, 8, 8, 2), "NDHWC", 9),
        ((1, 20, 8, 8), "NDHW", 9),
    ],
)
def test_plot_draws_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], layout: str | None, panels: int
) -> None:
    drawn: list[Figure] = []
    save = render.save_figure
    monkeypatch.setattr(render, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path)))
    for dark in (False, True):
        render.plot(noise(*shape), noise(*shape), tmp_path / "a.png", layout=layout, title="t", dark=dark)
        check_that_texts_are_whole_and_apart(drawn[-1])
        assert len(drawn[-1].axes) == panels + 1
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 0


def test_the_channel_axis_decides_what_is_summed(tmp_path: Path) -> None:
    x, relevance = noise(1, 3, 12, 16), noise(1, 3, 12, 16)
    render.plot(x, relevance, tmp_path / "first.png")
    render.plot(x.transpose(0, 2, 3, 1), relevance.transpose(0, 2, 3, 1), tmp_path / "last.png", layout="NHWC")
    first, last = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("first", "last"))
    np.testing.assert_array_equal(first, last)


def test_the_picture_that_the_model_saw_can_be_shown(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 1] = 200
    render.plot(noise(1, 3, 8, 8), np.zeros((1, 3, 8, 8)), tmp_path / "a.png", picture=picture)
    colours = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    assert (colours == (0, 200, 0)).all(axis=1).mean() > 0.15


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 8, 8), None),
        ((), None),
        ((1, 3, 8, 8), "NHW"),
        ((1, 3, 8), "CNT"),
        ((1, 3, 8), "NXY"),
        ((1,) * 6, None),
        ((0, 3), None),
    ],
)
def test_what_plot_cannot_draw_is_refused(tmp_path: Path, shape: tuple[int, ...], layout: str | None) -> None:
    with pytest.raises(InputError):
        render.plot(np.zeros(shape), np.zeros(shape), tmp_path / "a.png", layout=layout)
    with pytest.raises(InputError, match="sample"):
        render.plot(np.zeros((1, 4)), np.zeros((1, 5)), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
