"""The run: the measures' own values, exactly once each, whatever happens on the way."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import sets

from onnx_explain import Explainer, metrics, shapes
from onnx_explain.data import Preprocessing
from onnx_explain.errors import InputError, MethodError, OutputError, RuntimeMissing
from onnx_explain.evaluation import DataSet, Settings, evaluate, journal
from onnx_explain.evaluation.subject import Subject

pytest.importorskip("pyarrow", reason="results are Parquet: the extra [eval]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sets.write(tmp_path_factory.mktemp("shapes"), 10)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return evaluate(sets.task(sets.data_of(folder), tmp_path_factory.mktemp("whole") / "run", batch_size=4))


def test_the_values_are_those_of_the_measures(whole: Any) -> None:
    images, masks, labels = shapes.batch(10, seed=5)
    x = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    score = metrics.OnnxScore(sets.MODEL, apply_softmax=True)
    found = sets.values(whole)
    for method in ("gradient", "rap"):
        heat = Explainer(sets.MODEL, method)(x).heatmap()
        told = {
            "outside-inside-pos": metrics.outside_inside_ratio(heat, masks),
            "outside-inside-all": metrics.outside_inside_ratio(heat, masks, part="all"),
            "miou-zero": metrics.segmentation(heat, masks).iou,
            "pixel-accuracy-mean": metrics.segmentation(heat, masks, threshold="mean").accuracy,
            "pointing-game": metrics.pointing_game(heat, masks, tolerance=0),
            "relevance-rank": metrics.relevance_rank(heat, masks),
            "deletion": metrics.deletion(score, x, relevance=heat, step=1024).auc,
        }
        for name, values in told.items():
            got = [found[n, method, name] for n in range(10)]
            assert np.allclose(got, values, rtol=1e-4, atol=1e-5, equal_nan=True), (method, name)
    assert len(labels) == 10


def test_every_value_is_there_once(whole: Any) -> None:
    found = sets.values(whole)
    assert len(found) == 10 * 2 * (2 + 4 + 1 + 1 + 1)
    assert whole.samples == 10
    assert whole.faults == []


def test_the_model_runs_as_often_as_the_definitions_say(whole: Any) -> None:
    states = 64 * 64 // 1024 + 1
    assert whole.counts["passes"] == 10 * 2 * states
    assert whole.counts["maps"] == 10 * 2


def test_neither_batch_size_nor_data_format_changes_a_value(folder: Path, tmp_path: Path, whole: Any) -> None:
    images, masks, labels = shapes.batch(10, seed=5)
    np.savez(tmp_path / "a.npz", images=images, masks=masks, labels=labels)
    data = DataSet([tmp_path / "a.npz"], [sets.spec()], Preprocessing())
    other = sets.values(evaluate(sets.task(data, tmp_path / "run", batch_size=3, workers=1)))
    for key, value in sets.values(whole).items():
        assert other[key] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), key


class Killed(Exception):
    """Stands for SIGKILL: nothing of the library catches it."""


def test_a_run_that_was_stopped_anywhere_ends_with_the_same_values(
    folder: Path, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_explain.evaluation.running.EVERY_SECONDS", 0.0)
    task = sets.task(sets.data_of(folder), tmp_path / "run", batch_size=2)
    for _ in range(3):
        written = journal.Journal.write
        left = [1]

        def write(self: Any, *args: Any, _written: Any = written, _left: list[int] = left) -> None:
            if not _left[0]:
                raise Killed
            _left[0] -= 1
            _written(self, *args)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(journal.Journal, "write", write)
            evaluate(task)
    end = evaluate(task)
    assert end.resumed == 6
    assert len(end.journal.parts()) == 5
    other = sets.values(end)
    for key, value in sets.values(whole).items():
        assert other.pop(key) == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), key
    assert other == {}


def test_a_finished_run_is_not_repeated(folder: Path, whole: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(Subject, "maps", never)
    again = evaluate(sets.task(sets.data_of(folder), whole.journal.folder, batch_size=4))
    assert again.resumed == 10
    assert sets.values(again) == pytest.approx(sets.values(whole), nan_ok=True)


def test_a_deleted_part_is_evaluated_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_explain.evaluation.running.EVERY_SECONDS", 0.0)
    task = sets.task(
        sets.data_of(folder), tmp_path / "run", ["gradient"], metrics=["sparseness"], metric_options={}, batch_size=4
    )
    first = evaluate(task)
    before = sets.values(first)
    first.journal.parts()[1].path.unlink()
    assert sets.values(evaluate(task)) == pytest.approx(before, nan_ok=True)


def test_a_damaged_part_is_named(folder: Path, tmp_path: Path) -> None:
    task = sets.task(sets.data_of(folder), tmp_path / "run", ["gradient"], metrics=["sparseness"], metric_options={})
    part = evaluate(task).journal.parts()[0].path
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(OutputError, match="delete it"):
        evaluate(task)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": ["gradient"]}, "methods"),
        ({"metrics": ["sparseness"], "metric_options": {}}, "metrics"),
        ({"metric_options": {"tolerance": 3.0}}, "metrics"),
        ({"sample": 3}, "sample"),
        ({"target": "truth"}, "target"),
    ],
)
def test_another_run_does_not_go_on_in_a_folder(folder: Path, whole: Any, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(OutputError, match=f"another evaluation, which differs in {said}"):
        evaluate(sets.task(sets.data_of(folder), whole.journal.folder, **changed))


def test_foreign_files_are_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files"):
        evaluate(sets.task(sets.data_of(folder), tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_two_runs_do_not_write_into_one_folder_at_once(folder: Path, whole: Any) -> None:
    pytest.importorskip("fcntl", reason="no file locks on this platform")
    with whole.journal.alone(), pytest.raises(OutputError, match="another evaluation is writing"):
        evaluate(sets.task(sets.data_of(folder), whole.journal.folder))


# ------------------------------------------------------------------------------------------- bad input


def test_a_broken_picture_stops_the_run_and_what_is_done_is_kept(folder: Path, tmp_path: Path) -> None:
    broken = sets.write(tmp_path / "set", 6)
    (broken / "images" / "003.png").write_bytes(b"not a picture")
    task = sets.task(
        sets.data_of(broken), tmp_path / "run", ["gradient"], metrics=["sparseness"], metric_options={}, batch_size=2
    )
    with pytest.raises(InputError, match=r"003\.png: .*--skip-bad\. 3 of 6 samples are done and kept"):
        evaluate(task)
    end = evaluate(dataclasses.replace(task, skip_bad=True))
    assert end.resumed == 3
    assert [f.name for f in end.faults] == ["003.png"]
    assert sorted(s for s, _, _ in sets.values(end)) == [0, 1, 2, 4, 5]


def test_a_mask_of_another_size_is_a_fault_of_its_picture(tmp_path: Path) -> None:
    from PIL import Image

    broken = sets.write(tmp_path / "set", 3)
    Image.new("L", (32, 64)).save(broken / "masks" / "001.png")
    task = sets.task(sets.data_of(broken), tmp_path / "run", ["gradient"], metrics=["roc-auc"], metric_options={})
    with pytest.raises(InputError, match=r"001\.png: .*32 x 64"):
        evaluate(task)
    assert [f.name for f in evaluate(dataclasses.replace(task, skip_bad=True)).faults] == ["001.png"]


def test_missing_and_extra_annotations_are_counted_first(tmp_path: Path) -> None:
    broken = sets.write(tmp_path / "set", 3)
    (broken / "masks" / "001.png").rename(broken / "masks" / "zebra.png")
    task = sets.task(sets.data_of(broken), tmp_path / "run", ["gradient"], metrics=["roc-auc"], metric_options={})
    with pytest.raises(InputError, match=r"2 of the pictures and annotations .*001\.png.*zebra"):
        evaluate(task)
    end = evaluate(dataclasses.replace(task, skip_bad=True))
    assert {f.name for f in end.faults} == {"001.png", "zebra"}
    assert len(sets.values(end)) == 2


def test_a_map_that_is_not_finite_is_missing_and_harms_no_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = Subject.maps

    def poisoned(self: Subject, *args: Any) -> Any:
        found = maps(self, *args)
        found[0].relevance[1] = np.nan
        found[0].heat[1] = np.nan
        return found

    monkeypatch.setattr(Subject, "maps", poisoned)
    found = sets.values(
        evaluate(sets.task(sets.data_of(folder), tmp_path / "run", metrics=["roc-auc"], metric_options={}))
    )
    assert [k for k, v in found.items() if np.isnan(v)] == [(1, "gradient", "roc-auc")]


def test_metrics_that_need_what_is_unknown_are_left_out_or_refused(tmp_path: Path) -> None:
    images, _, _ = shapes.batch(2, seed=5)
    np.savez(tmp_path / "a.npz", images=images)
    data = DataSet([tmp_path / "a.npz"], [sets.spec()], Preprocessing())
    run = evaluate(sets.task(data, tmp_path / "run", metrics=["localisation", "conciseness"], metric_options={}))
    assert [m.name for m in run.measures] == ["sparseness", "complexity"]
    assert "--masks" in run.left_out["roc-auc"]
    for metrics_asked, said in (
        (["roc-auc"], "--masks"),
        (["negative-perturbation"], "--labels-file"),
        (["rocauc"], "Did you"),
    ):
        with pytest.raises(MethodError, match=said):
            evaluate(sets.task(data, tmp_path / "other", metrics=metrics_asked, metric_options={}))
    with pytest.raises(InputError, match="--labels-file"):
        evaluate(sets.task(data, tmp_path / "other", target="truth"))


def test_methods_that_cannot_run_are_left_out_under_all_and_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx_explain.evaluation import subject

    images, _, _ = shapes.batch(1, seed=5)
    x = (images.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    feeds = {sets.spec().name: x}
    some = {n: m for n, m in subject.METHODS.items() if n in ("gradient", "pattern-net", "rap")}
    monkeypatch.setattr(subject, "METHODS", some)
    found, left_out = subject.able(Settings(sets.MODEL), ["all"], feeds)
    assert sorted(found) == ["gradient", "rap"]
    assert "patterns" in left_out["pattern-net"]
    with pytest.raises(MethodError, match="patterns"):
        subject.able(Settings(sets.MODEL), ["pattern-net"], feeds)
    with pytest.raises(MethodError, match="'all' alone"):
        subject.able(Settings(sets.MODEL), ["all", "rap"], feeds)


def test_every_measure_runs(folder: Path, tmp_path: Path) -> None:
    options = {"step": 2048, "size": 32, "steps": 2, "count": 2, "tolerance": 2.0}
    task = sets.task(
        sets.data_of(folder),
        tmp_path / "run",
        ["gradient"],
        metrics=["all"],
        metric_options=options,
        sample=2,
        target="truth",
    )
    run = evaluate(task)
    assert run.left_out == {}
    found = sets.values(run)
    assert len(found) == 2 * sum(len(m.columns) for m in run.measures)
    assert sum(np.isfinite(v) for v in found.values()) > 0.8 * len(found)


def test_a_missing_pyarrow_names_the_extra_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = sets.task(sets.data_of(folder), tmp_path / "run", ["gradient"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeMissing, match=r"onnx-explain\[eval\]"):
        evaluate(task)
    assert list(tmp_path.iterdir()) == []
