"""The synthetic pictures, and the model that was trained on them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import onnx_explain
from onnx_explain import shapes
from onnx_explain.errors import InputError

BUNDLED = Path(onnx_explain.__path__[0]) / "bundled"
UNSEEN_SEED = 77  # neither the training's nor the tool's own test seed
CLASSES = len(shapes.CLASSES)


def same(one: shapes.Shape, other: shapes.Shape) -> bool:
    arrays = np.array_equal(one.image, other.image) and np.array_equal(one.mask, other.mask)
    return arrays and one.label == other.label and one.box == other.box


def chance_bound(trials: int) -> float:
    """The hit rate that guessing one of the classes exceeds once in three million tries (5 sigma)."""
    p = 1 / CLASSES
    return p + 5 * (p * (1 - p) / trials) ** 0.5


@pytest.fixture(scope="module")
def small() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 000 samples of 32 x 32: images in 0..1, masks, labels."""
    images, masks, labels = shapes.batch(1000, seed=5, size=32)
    return images / 255.0, masks, labels


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(BUNDLED / "shapes_cnn.onnx", options, providers=["CPUExecutionProvider"])


def logits(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    x = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    return session.run(["logits"], {"input": x})[0]


def test_a_sample_has_the_documented_shapes_and_types():
    sample = shapes.draw(3, size=48)
    assert sample.image.shape == (48, 48, 3) and sample.image.dtype == np.uint8
    assert sample.mask.shape == (48, 48) and sample.mask.dtype == np.bool_
    assert type(sample.label) is int and 0 <= sample.label < CLASSES


def test_the_same_index_and_seed_give_the_same_sample():
    assert same(shapes.draw(11, seed=4), shapes.draw(11, seed=4))


def test_seeds_and_indices_are_not_interchangeable():
    samples = [shapes.draw(i, seed=s, size=32) for i, s in [(0, 0), (1, 0), (0, 1), (2**32, 0), (0, 2**32)]]
    assert len({sample.image.tobytes() for sample in samples}) == len(samples)


def test_a_sample_does_not_depend_on_how_many_are_drawn_or_where_one_starts():
    alone = shapes.draw(7, seed=9)
    assert same(alone, list(shapes.dataset(8, seed=9))[7])
    assert same(alone, next(shapes.dataset(1, seed=9, start=7)))
    images, masks, labels = shapes.batch(3, seed=9, start=5)
    assert np.array_equal(images[2], alone.image)
    assert np.array_equal(masks[2], alone.mask)
    assert labels.dtype == np.int64 and labels[2] == alone.label


def test_a_batch_of_none_is_empty():
    images, masks, labels = shapes.batch(0)
    assert images.shape == (0, 64, 64, 3) and masks.shape == (0, 64, 64) and labels.shape == (0,)


@pytest.mark.parametrize(
    "arguments",
    [
        {"index": -1},
        {"index": 1.0},
        {"index": True},
        {"index": 2**63},
        {"index": 0, "seed": -1},
        {"index": 0, "seed": "1"},
    ]
    + [{"index": 0, "size": size} for size in (31, 1025, 64.0)],
)
def test_bad_arguments_of_draw_are_refused(arguments):
    with pytest.raises(InputError, match=f"`{list(arguments)[-1]}` is "):
        shapes.draw(**arguments)


@pytest.mark.parametrize("arguments", [{"n": -1}, {"n": 2, "start": -1}, {"n": 2, "seed": -1}, {"n": 2, "size": 8}])
def test_bad_arguments_of_a_data_set_are_refused_before_the_first_sample(arguments):
    with pytest.raises(InputError, match=f"`{list(arguments)[-1]}` is "):
        shapes.dataset(**arguments)
    with pytest.raises(InputError):
        shapes.batch(**arguments)


def test_every_class_occurs_about_equally_often(small):
    counts = np.bincount(small[2], minlength=CLASSES)
    expected = len(small[2]) / CLASSES
    assert np.all(abs(counts - expected) < 5 * (expected * (1 - 1 / CLASSES)) ** 0.5)


def test_the_box_is_tight_and_the_object_inside_the_frame():
    for sample in shapes.dataset(60, seed=6):
        x0, y0, x1, y1 = sample.box
        inside = sample.mask[y0:y1, x0:x1]
        assert inside.sum() == sample.mask.sum()
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        assert 0 < x0 < x1 < 64 and 0 < y0 < y1 < 64


def test_the_object_has_another_colour_than_what_lies_around_it(small):
    images, masks, _ = small
    near = np.zeros_like(masks)
    for dy, dx in np.ndindex(7, 7):
        near |= np.roll(masks, (dy - 3, dx - 3), axis=(1, 2))
    inside = np.array([image[mask].mean(axis=0) for image, mask in zip(images, masks)])
    outside = np.array([image[mask].mean(axis=0) for image, mask in zip(images, near & ~masks)])
    assert np.quantile(np.linalg.norm(inside - outside, axis=1), 0.05) > 0.2


def test_the_object_differs_from_its_surroundings_right_at_the_edge_of_the_mask():
    steps_across, steps_within = [], []
    for sample in shapes.dataset(60, seed=8, size=128):
        image = sample.image / 255.0
        apart = np.linalg.norm(image[:, 4:] - image[:, :-4], axis=2)  # two pixels either side of the edge
        leaves = sample.mask[:, 1:-3] & ~sample.mask[:, 2:-2]
        stays = sample.mask[:, 4:] & sample.mask[:, :-4]
        steps_across.append(np.median(apart[leaves[:, : apart.shape[1]]]))
        steps_within.append(np.median(apart[stays]))
    assert np.mean(np.array(steps_across) > 2 * np.array(steps_within)) > 0.9


def test_the_mask_of_a_circle_is_a_disc_and_that_of_a_ring_has_a_hole():
    hole = {"circle": 0.0, "ring": 0.55}
    round_ones = [s for s in shapes.dataset(120, seed=3, size=128) if shapes.CLASSES[s.label] in hole]
    assert len(round_ones) > 10
    for sample in round_ones:
        pixels = np.argwhere(sample.mask)
        distance = np.linalg.norm(np.indices((128, 128)).transpose(1, 2, 0) - pixels.mean(axis=0), axis=2)
        x0, y0, x1, y1 = sample.box
        outer = (x1 - x0 + y1 - y0) / 4
        inner = outer * hole[shapes.CLASSES[sample.label]]
        clear = (abs(distance - outer) > 1) & (abs(distance - inner) > 1)  # not within a pixel of an edge
        assert np.array_equal(sample.mask[clear], ((distance > inner) & (distance < outer))[clear])


def test_a_larger_size_shows_the_same_layout():
    for index in range(20):
        coarse, fine = shapes.draw(index, seed=2, size=64), shapes.draw(index, seed=2, size=256)
        majority = fine.mask.reshape(64, 4, 64, 4).mean(axis=(1, 3)) >= 0.5
        assert coarse.label == fine.label
        assert (majority ^ coarse.mask).sum() <= 0.05 * coarse.mask.sum()


@pytest.mark.parametrize("trait", ["colour", "place"])
def test_neither_colour_nor_place_tells_the_class(small, trait):
    images, masks, labels = small
    if trait == "colour":
        features = np.array([image[mask].mean(axis=0) for image, mask in zip(images, masks)])
    else:
        features = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    half = len(labels) // 2
    means = np.array([features[:half][labels[:half] == label].mean(axis=0) for label in range(CLASSES)])
    guesses = np.linalg.norm(features[half:, None] - means, axis=2).argmin(axis=1)
    assert (guesses == labels[half:]).mean() < chance_bound(len(labels) - half)


def test_the_bundled_model_is_small_and_shows_every_role_it_is_meant_to():
    path = BUNDLED / "shapes_cnn.onnx"
    assert path.stat().st_size <= 2 * 2**20
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert operators >= {"Conv", "BatchNormalization", "Relu", "MaxPool", "Add", "GlobalAveragePool", "Gemm"}
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "preprocessing": "0..1",
        "labels": ",".join(shapes.CLASSES),
    }


def test_the_bundled_labels_are_the_classes():
    assert tuple((BUNDLED / "labels.txt").read_text(encoding="utf-8").splitlines()) == shapes.CLASSES


def test_the_bundled_readme_describes_the_bundled_file():
    content = (BUNDLED / "shapes_cnn.onnx").read_bytes()
    readme = (BUNDLED / "README.md").read_text(encoding="utf-8")
    assert f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}" in readme


def test_the_bundled_model_names_unseen_shapes(session):
    images, _, labels = shapes.batch(600, seed=UNSEEN_SEED)
    assert (logits(session, images).argmax(axis=1) == labels).mean() >= 0.97


def test_the_bundled_model_takes_any_batch_and_no_sample_sways_another(session):
    images, _, _ = shapes.batch(5, seed=UNSEEN_SEED)
    together = logits(session, images)
    alone = np.concatenate([logits(session, image[None]) for image in images])
    assert together.shape == (5, CLASSES)
    np.testing.assert_allclose(together, alone, atol=1e-4 * abs(alone).max())  # float32, other blocking


def test_the_demo_picture_is_named_right_and_its_mask_can_be_drawn_again(session):
    readme = (BUNDLED / "README.md").read_text(encoding="utf-8")
    found = re.search(r"draw\((\d+), seed=(\d+)\)", readme)
    assert found is not None
    sample = shapes.draw(int(found[1]), seed=int(found[2]))
    with Image.open(BUNDLED / "demo.png") as picture:
        image = np.asarray(picture.convert("RGB"))
    assert np.array_equal(image, sample.image)
    scores = logits(session, image[None])[0].astype(np.float64)
    assert scores.argmax() == sample.label
    assert np.exp(scores[sample.label] - scores.max()) / np.exp(scores - scores.max()).sum() >= 0.9
