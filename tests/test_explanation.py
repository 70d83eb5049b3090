"""An explanation's views and files: heat maps, plots by rank, arrays, figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_explain import Explanation, InputError, OutputError, Target


def explanation(*shape: int, axis: int | None = None, method: str = "rap", **changes: Any) -> Explanation:
    rng = np.random.default_rng(sum(shape))
    n = shape[0]
    fields: dict[str, Any] = {
        "relevance": {"x": rng.standard_normal(shape).astype(np.float32)},
        "outputs": {"y": rng.standard_normal((n, 4)).astype(np.float32)},
        "target": Target("y", np.arange(n), rng.standard_normal(n)),
        "conservation": np.zeros(n),
        "absorbed": np.ones(n),
        "method": method,
        "seconds": 0.5,
        "inputs": {"x": rng.random(shape).astype(np.float32)},
        "channel_axis": {"x": axis},
        "options": {"gamma": 0.1},
        "kept": {"inner": np.zeros((n, 2), np.float32)},
        "source": "ab" * 32,
    }
    return Explanation(**{**fields, **changes})


@pytest.mark.parametrize(("shape", "axis"), [((2, 3, 5, 7), 1), ((2, 5, 7, 3), 3), ((2, 3, 9), 1)])
def test_a_heat_map_sums_the_channels(shape: tuple[int, ...], axis: int) -> None:
    e = explanation(*shape, axis=axis)
    np.testing.assert_array_equal(e.heatmap(), e.relevance["x"].sum(axis))
    np.testing.assert_array_equal(e.heatmap("x"), e.heatmap())


def test_a_heat_map_of_saliency_takes_the_largest_channel() -> None:
    e = explanation(2, 3, 5, 7, axis=1, method="saliency")
    np.testing.assert_array_equal(e.heatmap(), e.relevance["x"].max(1))


def test_a_heat_map_without_channels_is_the_relevance() -> None:
    e = explanation(2, 6)
    assert e.heatmap() is e.relevance["x"]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2, 3, 8, 9), 1),
        ((2, 8, 9, 3), 3),
        ((2, 2, 20), 1),
        ((2, 20, 2), 2),
        ((2, 6), None),
        ((2, 1, 4, 8, 8), 1),
        ((2,), None),
    ],
)
@pytest.mark.parametrize("dark", [False, True])
def test_every_rank_is_drawn(shape: tuple[int, ...], axis: int | None, dark: bool, tmp_path: Path) -> None:
    explanation(*shape, axis=axis).plot(tmp_path / "a.png", sample=1, dark=dark)
    with Image.open(tmp_path / "a.png") as picture:
        grey = np.asarray(picture.convert("L"))
    assert grey.std() > 5
    assert (np.median(grey[:20]) < 100) == dark


def test_the_plot_shows_the_sample_asked_for(tmp_path: Path) -> None:
    e = explanation(2, 3, 8, 9, axis=1)
    for sample in (0, 1):
        e.plot(tmp_path / f"{sample}.png", sample=sample, title="same")
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


def test_the_plot_takes_a_picture_and_names(tmp_path: Path) -> None:
    explanation(1, 3, 8, 9, axis=1).plot(tmp_path / "a.svg", picture=np.zeros((80, 90, 3), np.uint8), title="my title")
    explanation(1, 3).plot(str(tmp_path / "b.pdf"), names=["age", "height", "weight"])
    assert (tmp_path / "a.svg").stat().st_size > 1000
    assert (tmp_path / "b.pdf").read_bytes().startswith(b"%PDF")


def test_a_plot_that_cannot_be_is_refused(tmp_path: Path) -> None:
    e = explanation(2, 3, 8, 9, axis=1)
    with pytest.raises(InputError, match="no sample 2"):
        e.plot(tmp_path / "a.png", sample=2)
    with pytest.raises(InputError, match="'q'"):
        e.plot(tmp_path / "a.png", input="q")
    with pytest.raises(OutputError, match="cannot be written"):
        e.plot(tmp_path / "no" / "a.png")
    with pytest.raises(OutputError, match="jpg"):
        e.plot(tmp_path / "a.jpg")
    with pytest.raises(InputError):
        explanation(1, 2, 2, 2, 2, 2, axis=1).plot(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_npz_file_holds_every_array_and_the_figures(tmp_path: Path) -> None:
    e = explanation(2, 3, 4, 4, axis=1)
    e.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert set(found) == {*e.arrays(), "metadata"}
        np.testing.assert_array_equal(found["relevance/x"], e.relevance["x"])
        np.testing.assert_array_equal(found["target/index"], [0, 1])
        assert json.loads(str(found["metadata"])) == e.summary()


def test_a_safetensors_file_holds_the_same(tmp_path: Path) -> None:
    from safetensors import safe_open

    e = explanation(2, 3, 4, 4, axis=1)
    e.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "np") as found:
        assert set(found.keys()) == set(e.arrays())
        np.testing.assert_array_equal(found.get_tensor("relevance/x"), e.relevance["x"])
        assert json.loads(found.metadata()["onnx_explain"]) == e.summary()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    e = explanation(1, 3)
    with pytest.raises(OutputError, match="suffix"):
        e.save(tmp_path / "a.csv")
    with pytest.raises(OutputError, match="cannot be written"):
        e.save(tmp_path / "no" / "a.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        e.save(tmp_path / "folder.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.npz"]


def test_the_summary_is_plain_data() -> None:
    summary = explanation(2, 3).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["target"] == [0, 1]
    assert summary["options"] == {"gamma": 0.1}


def test_a_result_tells_itself_in_a_line_and_a_picture() -> None:
    e = explanation(4, 3, 5, 7, axis=1)
    first = f"y[0] = {e.target.score[0]:.4g}"
    assert repr(e).startswith(f"<Explanation by rap of {first}, y[1] = ")
    assert "of 4 samples; relevance {'x': float32 [4, 3, 5, 7]}>" in repr(e)
    drawn = e._repr_png_()
    assert drawn is not None
    assert drawn[:4] == b"\x89PNG"
    assert explanation(1, 1, 2, 2, 2, 2)._repr_png_() is None, "six axes cannot be drawn"


def test_results_are_compared_by_identity_and_can_be_keys() -> None:
    e, other = explanation(2, 3), explanation(2, 3)
    assert len({e: 1, other: 2}) == 2
    assert e == e
    assert e != other


def test_a_plot_without_a_path_is_a_figure_and_takes_what_looks_like_a_picture(tmp_path: Path) -> None:
    e = explanation(1, 3, 5, 7, axis=1)
    figure = e.plot(picture=Image.new("RGB", (14, 10)))
    assert figure.get_size_inches()[0] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_archive_holds_is_refused(tmp_path: Path) -> None:
    e = explanation(1, 3, kept={"n" * 70_000: np.zeros((1, 2), np.float32)})
    with pytest.raises(OutputError, match="70005 characters"):
        e.save(tmp_path / "e.npz")
    assert list(tmp_path.iterdir()) == []
