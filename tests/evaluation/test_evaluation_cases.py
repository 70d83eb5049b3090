"""Samples and what is known of them, as the model sees them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import sets

from onnx_explain import shapes
from onnx_explain.annotations import LabelFile, source_of
from onnx_explain.data import InputSpec, Preprocessing
from onnx_explain.errors import InputError
from onnx_explain.evaluation import Case, DataSet, Fault, Known

pytest.importorskip("pyarrow", reason="results are Parquet: the extra [eval]")


def test_masks_and_classes_meet_their_pictures_by_name(tmp_path: Path) -> None:
    data = sets.data_of(sets.write(tmp_path, 4))
    assert data.total == 4
    assert data.has == {"mask", "label"}
    assert data.faults() == []
    for case, sample in zip(data.read(range(4)), shapes.dataset(4, seed=5)):
        assert isinstance(case, Case)
        assert case.label == sample.label
        assert np.array_equal(case.mask(None, (64, 64)), sample.mask)
        [x] = case.feeds.values()
        assert np.allclose(x[0].transpose(1, 2, 0) * 255, sample.image, atol=1e-3)


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_a_mask_follows_its_picture_into_the_models_view(tmp_path: Path, resize: str) -> None:
    # A white rectangle on black is its own mask: wherever the model sees white, the mask must be.
    picture = np.zeros((90, 160, 3), np.uint8)
    picture[30:60, 40:120] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "m").mkdir()
    Image.fromarray(picture[..., 0]).save(tmp_path / "m" / "a.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.xml").write_text(
        "<annotation><object><name>x</name><bndbox><xmin>41</xmin><ymin>31</ymin><xmax>120</xmax><ymax>60</ymax></bndbox>"
        "</object></annotation>"
    )
    spec = InputSpec("x", (None, 3, 64, 64), np.dtype(np.float32))
    for known in (
        Known(masks=source_of(tmp_path / "m", "masks")),
        Known(boxes=source_of(tmp_path / "b", "boxes")),
    ):
        data = DataSet([tmp_path / "a.png"], [spec], Preprocessing(resize=resize), None, known)
        [case] = data.read([0])
        assert isinstance(case, Case)
        mask, seen = case.mask(None, (64, 64)), case.feeds["x"][0, 0]
        assert 0.1 < mask.mean() < 0.7
        assert (mask != (seen > 0.5)).mean() < 0.01  # the seam of a resized picture is grey


def test_an_archive_gives_its_rows_one_by_one(tmp_path: Path) -> None:
    images, masks, labels = shapes.batch(5, seed=5)
    boxes = np.array([s.box for s in shapes.dataset(5, seed=5)])
    np.savez_compressed(tmp_path / "a.npz", images=images, masks=masks, labels=labels)
    np.savez(tmp_path / "b.npz", input=images.transpose(0, 3, 1, 2).astype(np.float32) / 255, boxes=boxes)
    data = DataSet([tmp_path / "a.npz", tmp_path / "b.npz"], [sets.SPEC], Preprocessing())
    found = list(data.read([1, 4, 5, 8]))
    assert [c.number for c in found] == [1, 4, 5, 8]
    assert all(isinstance(c, Case) for c in found)
    assert [c.label for c in found] == [labels[1], labels[4], None, None]
    assert np.array_equal(found[1].mask(None, (64, 64)), masks[4])
    x0, y0, x1, y1 = boxes[3]
    inside = found[3].mask(None, (64, 64))
    assert inside[y0:y1, x0:x1].all()
    assert inside.sum() == (x1 - x0) * (y1 - y0)
    assert np.allclose(found[1].feeds["input"], images[4:5].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_an_archive_is_not_read_whole(tmp_path: Path) -> None:
    import tracemalloc

    count = 600
    np.savez(tmp_path / "a.npz", images=np.zeros((count, 64, 64, 3), np.uint8), masks=np.ones((count, 64, 64), bool))
    data = DataSet([tmp_path / "a.npz"], [sets.SPEC], Preprocessing())
    tracemalloc.start()
    for case in data.read(range(0, count, 50)):
        assert isinstance(case, Case)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < count * 64 * 64 * 3 / 3


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"other": np.zeros((2, 3, 64, 64))}, "no array 'input'"),
        ({"images": np.zeros((2, 64, 64, 3), np.float32)}, "must be uint8"),
        ({"images": np.zeros((2, 64, 64, 3), np.uint8), "labels": np.zeros(3, int)}, "equally many"),
        ({"input": np.zeros((2, 3, 32, 32), np.float32)}, "is \\[2, 3, 32, 32\\]"),
        ({"images": np.array([None, 1], object)}, "Python objects"),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=said):
        _ = DataSet([tmp_path / "a.npz"], [sets.SPEC], Preprocessing()).places


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3)).astype("u1")
    )
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable"):
        _ = DataSet([tmp_path / "a.npz"], [sets.SPEC], Preprocessing()).places


def test_rows_of_an_archive_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    x = np.zeros((3, 3, 64, 64), np.float32)
    x[1, 0, 0, 0] = np.nan
    np.savez(tmp_path / "a.npz", input=x)
    found = list(DataSet([tmp_path / "a.npz"], [sets.SPEC], Preprocessing()).read(range(3)))
    assert [isinstance(c, Fault) for c in found] == [False, True, False]
    assert "NaN" in found[1].reason  # type: ignore[union-attr]


def test_a_drawn_sample_depends_on_the_seed_alone(tmp_path: Path) -> None:
    data = sets.data_of(sets.write(tmp_path, 12))
    assert data.chosen(5, 1) == data.chosen(5, 1) != data.chosen(5, 2)
    assert len(set(data.chosen(5, 1))) == 5
    assert data.chosen(99, 0) == data.chosen(None, 0) == list(range(12))


def test_what_the_names_tell_is_counted_before_anything_runs(tmp_path: Path) -> None:
    folder = sets.write(tmp_path, 4)
    (folder / "masks" / "001.png").unlink()
    Image.new("L", (64, 64)).save(folder / "masks" / "zebra.png")
    (folder / "labels.csv").write_text("000.png,circel\n001.png,ring\n002.png,3\n003.png,12\n")
    told = {(f.number, f.name): f.reason for f in sets.data_of(folder).faults()}
    assert "has no mask" in told[1, "001.png"]
    assert "is no picture" in told[None, "zebra"]
    assert "Did you mean 'circle'" in told[0, "000.png"]
    assert "there is no class 12" in told[3, "003.png"]
    assert len(told) == 4


def test_the_objects_of_the_explained_class_can_count_alone(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(
        "<annotation>"
        + "".join(
            f"<object><name>{n}</name><bndbox><xmin>{x}</xmin><ymin>1</ymin><xmax>{x + 9}</xmax><ymax>64</ymax></bndbox></object>"
            for n, x in (("ring", 1), ("star", 31))
        )
        + "</annotation>"
    )
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    known = Known(boxes=source_of(tmp_path, "boxes"), classes=shapes.CLASSES, objects="target")
    [case] = DataSet([tmp_path / "a.png"], [sets.SPEC], Preprocessing(), None, known).read([0])
    assert isinstance(case, Case)
    ring = case.mask(shapes.CLASSES.index("ring"), (64, 64))
    assert ring[:, :10].all()
    assert not ring[:, 10:].any()
    assert not case.mask(0, (64, 64)).any()
    assert case.mask(None, (64, 64)).sum() == 2 * ring.sum()


def test_a_class_name_without_the_models_names_is_a_fault(tmp_path: Path) -> None:
    folder = sets.write(tmp_path, 1)
    [fault] = sets.data_of(folder, classes=()).faults()
    assert "--labels" in fault.reason
    assert LabelFile(folder / "labels.csv").names == {"000"}
