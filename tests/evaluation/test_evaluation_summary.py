"""The table and the figures: the statistics that the metrics' definitions ask for, best first, missing counted."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import sets

from onnx_explain import Explainer, metrics, shapes
from onnx_explain.cli.console import as_json
from onnx_explain.errors import MethodError
from onnx_explain.evaluation import COLUMNS, MEASURES, Row, draw, evaluate, markdown, save, summarise, told
from onnx_explain.evaluation.charts import figure_bars, figure_curves
from onnx_explain.evaluation.measures import named, options_of
from onnx_explain.evaluation.summary import class_mean

pytest.importorskip("pyarrow", reason="results are Parquet: the extra [eval]")


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = sets.write(tmp_path_factory.mktemp("set"), 12)
    return summarise(evaluate(sets.task(sets.data_of(folder), tmp_path_factory.mktemp("out") / "run")), resamples=50)


def row(method: str, value: float, **changed: Any) -> Row:
    filled = {
        "metric": "deletion",
        "low": value - 0.1,
        "high": value + 0.1,
        "mean": value,
        "median": value,
        "count": 9,
        "missing": 0,
        "infinite": 0,
    }
    return Row(method=method, value=value, **{**filled, **changed})


def test_pooled_scores_are_those_of_the_whole_set(summary: Any) -> None:
    images, masks, _ = shapes.batch(12, seed=5)
    heat = Explainer(sets.MODEL, "rap")((images.transpose(0, 3, 1, 2) / 255).astype(np.float32)).heatmap()
    counts = metrics.segmentation(heat, masks)
    found = {r.metric: r for r in summary.rows if r.method == "rap"}
    assert found["miou-zero"].value == pytest.approx(counts.miou, abs=1e-3)
    assert found["pixel-accuracy-zero"].value == pytest.approx(counts.pixel_accuracy, abs=1e-3)
    assert found["miou-zero"].mean == pytest.approx(counts.iou.mean(), abs=1e-3)
    ratios = metrics.outside_inside_ratio(heat, masks, part="all")
    assert found["outside-inside-all"].value == pytest.approx(np.nanmedian(ratios), rel=1e-3)
    assert found["outside-inside-pos"].mean == pytest.approx(metrics.outside_inside_ratio(heat, masks).mean(), rel=1e-3)


def test_the_pointing_game_is_the_mean_over_the_classes() -> None:
    rng = np.random.default_rng(0)
    hits, classes = rng.integers(0, 2, 60).astype(float), rng.integers(0, 7, 60)
    assert class_mean(np.stack([hits, classes], 1)) == pytest.approx(metrics.pointing_accuracy(hits, classes)[0])


def test_rows_stand_best_first_and_their_intervals_hold_them(summary: Any) -> None:
    for column in summary.columns:
        values = [r.value for r in summary.of(column.name)]
        if column.better != "neither":
            assert values == sorted(values, reverse=column.better == "high"), column.name
        for r in summary.of(column.name):
            assert r.low <= r.value <= r.high
            assert r.count + r.missing == 12


def test_the_files_say_the_same(summary: Any) -> None:
    paths = {p.suffix: p for p in save(summary, as_json)}
    document = json.loads(paths[".json"].read_text())
    table = list(csv.DictReader(paths[".csv"].read_text().splitlines()))
    assert (
        [r["method"] for r in table] == [r["method"] for r in document["results"]] == [r.method for r in summary.rows]
    )
    assert float(table[0]["value"]) == pytest.approx(summary.rows[0].value)
    assert document["samples"] == document["evaluated"] == 12
    assert 0 < document["busy"] <= 1
    text = paths[".md"].read_text()
    for column in summary.columns:
        assert f"## {column.name}" in text


def test_infinite_and_missing_values_are_told() -> None:
    column = COLUMNS["outside-inside-pos"]
    rows = [
        row("a", math.inf, metric=column.name, infinite=2),
        row("b", math.nan, metric=column.name, count=0, missing=9),
    ]
    text = markdown([column], rows)
    assert "| a | ∞ |" in text
    assert "9 (2 infinite)" in text
    assert "| b | – |" in text
    assert [told(v) for v in (0.0, 0.12345, 1e-7, 123456.0, -math.inf)] == [
        "0.000",
        "0.123",
        "1.0e-07",
        "1.2e+05",
        "-∞",
    ]


def test_figures_are_the_same_bytes_every_time(summary: Any) -> None:
    before = {p: p.read_bytes() for p in draw(summary)}
    assert {p.name for p in before} >= {"deletion.png", "deletion.svg", "deletion-curves.png", "miou-zero.svg"}
    assert {p: p.read_bytes() for p in draw(summary)} == before
    assert {p.read_bytes() != before[p] for p in draw(summary, dark=True)} == {True}


@pytest.mark.parametrize("count", [1, 40])
def test_no_label_of_a_figure_leaves_it_or_meets_another(count: int) -> None:
    rows = [
        row(f"a-method-of-a-long-name-{i}", 0.5 - 0.02 * i, curve=tuple(np.linspace(1, i / 40, 5)))
        for i in range(count)
    ]
    column = COLUMNS["deletion"]
    for figure in (figure_bars(column, rows), figure_curves(column, rows)):
        figure.draw_without_rendering()
        page, [axes] = figure.bbox, figure.axes
        ticks = [
            t.label1
            for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim())))
            for t in axis.get_major_ticks()
            if limits[0] <= t.get_loc() <= limits[1]
        ]
        texts = [t for t in (*figure.texts, *axes.texts, *ticks) if t.get_text()]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
        boxes = [t.get_window_extent() for t in texts]
        assert all(page.x0 <= b.x0 and b.x1 <= page.x1 and page.y0 <= b.y0 and b.y1 <= page.y1 for b in boxes)
        overlaps = [
            (texts[i].get_text(), texts[j].get_text())
            for i in range(len(boxes))
            for j in range(i)
            if boxes[i].overlaps(boxes[j])
        ]
        assert overlaps == []


# ------------------------------------------------------------------------------------------- measures by name


def test_groups_and_all_name_their_measures() -> None:
    everything = frozenset({"mask", "label"})
    found, left_out = named(["all"], everything)
    assert [m.name for m in found] == list(MEASURES)
    assert left_out == {}
    found, _ = named(["conciseness", "deletion"], frozenset())
    assert [m.name for m in found] == ["deletion", "sparseness", "complexity"]
    with pytest.raises(MethodError, match="No metric can be computed"):
        named(["localisation"], frozenset())


def test_an_option_goes_to_its_metric_or_to_all_that_have_it() -> None:
    found, _ = named(["perturbation"], frozenset({"mask", "label"}))
    options = options_of(found, {"step": 9, "deletion.step": 4, "region_morf.fill": "mean"})
    assert (options["deletion"]["step"], options["insertion"]["step"]) == (4, 9)
    assert (options["region-morf"]["fill"], options["region-lerf"]["fill"]) == ("mean", "uniform")
    for bad, said in (
        ({"stpe": 1}, "Did you mean"),
        ({"size": 0}, "at least 1"),
        ({"fill": "grey"}, "one of zero"),
        ({"size": True}, "whole"),
    ):
        with pytest.raises(MethodError, match=said):
            options_of(found, bad)


def test_every_column_belongs_to_one_measure_and_says_what_it_is() -> None:
    columns = [c for m in MEASURES.values() for c in m.columns]
    assert len({c.name for c in columns}) == len(columns)
    assert all(c.meaning and c.better in ("high", "low", "neither") for c in columns)
