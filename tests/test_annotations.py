"""Readers of annotations: what they read, and what they refuse with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onnx_explain.annotations import LabelFile, source_of
from onnx_explain.annotations.coco import outline
from onnx_explain.errors import InputError

SIZE = (6, 8)  # height, width
PACKED = "n4a0>00000000000000000000000000000000000000000000000c9"


def voc(path: Path, *, box: str = "2 3 5 6", name: str = "dog", size: str = "8 6", more: str = "") -> Path:
    x0, y0, x1, y1 = box.split()
    width, height = size.split()
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size>{more}"
        f"<object><name>{name}</name><difficult>1</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object></annotation>"
    )
    return path


def coco(path: Path, **entry: Any) -> Path:
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 4, 3], **entry}
    path.write_text(
        json.dumps(
            {
                "images": [
                    {"id": 7, "file_name": "folder/a.jpg", "width": 8, "height": 6},
                    {"id": 8, "file_name": "empty.jpg"},
                ],
                "annotations": [annotation],
                "categories": [{"id": 3, "name": "cat"}],
            }
        )
    )
    return path


def save_mask(path: Path, values: Any, mode: str = "L") -> None:
    image = Image.fromarray(np.asarray(values, np.uint8))
    if mode == "P":
        image = image.convert("P") if False else Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    image.save(path)


# ------------------------------------------------------------------------------------------- masks


def test_a_grey_mask_of_two_values_is_the_object_where_it_is_not_zero(tmp_path: Path) -> None:
    values = np.zeros(SIZE)
    values[1:3, 2:5] = 255
    save_mask(tmp_path / "a.png", values)
    source = source_of(tmp_path, "masks")
    truth = source.truth("a", SIZE)
    assert source.names == {"a"}
    assert [o.name for o in truth.objects] == [None]
    assert np.array_equal(truth.objects[0].mask, values > 0)
    assert truth.void is None


@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_mask_of_classes_gives_one_object_each_and_255_is_void(tmp_path: Path, mode: str) -> None:
    values = np.zeros(SIZE)
    values[0], values[1, :4], values[2] = 5, 15, 255
    save_mask(tmp_path / "a.png", values, mode)
    truth = source_of(tmp_path, "masks").truth("a", SIZE)
    assert [o.name for o in truth.objects] == [5, 15]
    assert np.array_equal(truth.objects[1].mask, values == 15)
    assert np.array_equal(truth.void, values == 255)


def test_a_palette_mask_of_void_alone_has_no_object(tmp_path: Path) -> None:
    save_mask(tmp_path / "a.png", np.full(SIZE, 255), "P")
    truth = source_of(tmp_path, "masks").truth("a", SIZE)
    assert truth.objects == ()
    assert truth.void.all()


def test_an_empty_mask_has_no_object(tmp_path: Path) -> None:
    save_mask(tmp_path / "a.png", np.zeros(SIZE))
    assert source_of(tmp_path, "masks").truth("a", SIZE).objects == ()


def test_a_mask_saved_with_three_equal_channels_is_grey(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(np.eye(6, 8, dtype=np.uint8)[..., None] * 255, 3, 2)).save(tmp_path / "a.png")
    assert source_of(tmp_path, "masks").truth("a", SIZE).objects[0].mask.sum() == 6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: save_mask(p, np.zeros((8, 6))), "8 pixels"),
        (lambda p: Image.fromarray(np.arange(144, dtype=np.uint8).reshape(6, 8, 3)).save(p), "colours"),
        (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\nbroken"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(InputError, match=said):
        source_of(tmp_path, "masks").truth("a", SIZE)


def test_a_truncated_mask_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    save_mask(file, np.random.default_rng(0).integers(0, 9, SIZE))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match="cannot be read"):
        source_of(tmp_path, "masks").truth("a", SIZE)


def test_two_masks_of_one_name_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "bmp"):
        save_mask(tmp_path / f"a.{suffix}", np.zeros(SIZE))
    with pytest.raises(InputError, match="two masks"):
        source_of(tmp_path, "masks").names  # noqa: B018


# ------------------------------------------------------------------------------------------- PASCAL VOC


def test_voc_boxes_count_from_one_and_include_both_ends(tmp_path: Path) -> None:
    voc(tmp_path / "a.xml")
    [found] = source_of(tmp_path, "boxes").truth("a", SIZE).objects
    assert (found.name, found.box, found.difficult) == ("dog", (1.0, 2.0, 5.0, 6.0), True)


def test_a_voc_file_without_objects_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotation/>")
    assert source_of(tmp_path, "boxes").truth("a", SIZE).objects == ()


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'<!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l8;</annotation>', "document type or an entity"),
        (
            '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation>&f;</annotation>',
            "document type or an entity",
        ),
        ("<annotation>" + "<a>" * 10_000, "nested too deep"),
        ("<annotation>" + "<a/>" * 300_000 + "</annotation>", "too long"),
        ("<annotation><object></annotation>", "not well-formed"),
        ("", "not well-formed"),
        ("<html></html>", "not a VOC annotation"),
        ("<annotation><object><name>dog</name></object></annotation>", "without a name or a bndbox"),
    ],
)
def test_hostile_and_broken_xml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(InputError, match=said):
        source_of(tmp_path, "boxes").truth("a", SIZE)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"box": "5 3 2 6"}, "is empty"),
        ({"box": "20 3 30 6"}, "outside"),
        ({"box": "nan 3 5 6"}, "not a number"),
        ({"box": "x 3 5 6"}, "not a number"),
        ({"size": "6 8"}, "annotated at 6 x 8"),
        ({"size": "inf 8"}, "not a number"),
    ],
)
def test_a_voc_box_that_is_none_is_refused(tmp_path: Path, change: dict[str, str], said: str) -> None:
    voc(tmp_path / "a.xml", **change)
    with pytest.raises(InputError, match=said):
        source_of(tmp_path, "boxes").truth("a", SIZE)


def test_a_box_that_leaves_the_picture_is_cut_at_its_edge(tmp_path: Path) -> None:
    voc(tmp_path / "a.xml", box="0 3 99 6")
    [found] = source_of(tmp_path, "boxes").truth("a", SIZE).objects
    assert found.box == (0.0, 2.0, 8.0, 6.0)


# ------------------------------------------------------------------------------------------- COCO


def packed(counts: list[int]) -> str:
    """COCO's text form, written out slowly."""
    text = ""
    for i, count in enumerate(counts):
        value = count - (counts[i - 2] if i > 2 else 0)
        more = True
        while more:
            part = value & 31
            value >>= 5
            more = value != (-1 if part & 16 else 0)
            text += chr((part | (32 if more else 0)) + 48)
    return text


def runs(mask: np.ndarray[Any, Any]) -> list[int]:
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def test_coco_boxes_count_from_zero(tmp_path: Path) -> None:
    source = source_of(coco(tmp_path / "c.json"), "boxes")
    assert source.names == {"a", "empty"}
    [found] = source.truth("a", SIZE).objects
    assert (found.name, found.box) == ("cat", (1.0, 2.0, 5.0, 5.0))
    assert source.truth("empty", SIZE).objects == ()


def test_run_lengths_come_back_in_both_forms() -> None:
    for seed in range(20):
        mask = np.random.default_rng(seed).random((37, 53)) < (0.5, 0.02, 0.98)[seed % 3]
        counts = runs(mask)
        for given in (counts, packed(counts)):
            assert np.array_equal(outline("", {"size": [37, 53], "counts": given}, (37, 53)), mask)


def test_a_packed_text_of_cocos_own_tool_is_read() -> None:
    # what pycocotools 2.0 `mask.encode` made of a mask of 31 x 40 with [3:20, 5:30] set
    mask = np.zeros((31, 40), bool)
    mask[3:20, 5:30] = True
    assert np.array_equal(outline("", {"size": [31, 40], "counts": PACKED}, (31, 40)), mask)


def test_a_polygon_covers_the_pixels_inside_it() -> None:
    found = outline("", [[1, 2, 5, 2, 5, 5, 1, 5]], SIZE)
    wanted = np.zeros(SIZE, bool)
    wanted[2:5, 1:5] = True
    assert np.array_equal(found, wanted)


def test_several_polygons_are_one_object() -> None:
    found = outline("", [[0, 0, 2, 0, 2, 2, 0, 2], [6, 4, 8, 4, 8, 6, 6, 6]], SIZE)
    assert found.sum() == 8
    assert found[0, 0]
    assert found[5, 7]


def test_a_crowd_is_void(tmp_path: Path) -> None:
    file = coco(tmp_path / "c.json", iscrowd=1, segmentation={"size": [6, 8], "counts": [0, 12, 36]})
    truth = source_of(file, "masks").truth("a", SIZE)
    assert truth.objects == ()
    assert truth.void.sum() == 12


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ({"size": [6, 8], "counts": [1, 2]}, "add up to 48"),
        ({"size": [6, 8], "counts": [-1, 49]}, "add up to 48"),
        ({"size": [6, 8], "counts": "~~~"}, "damaged"),
        ({"size": [6, 8], "counts": "P"}, "middle of a number"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "annotated at"),
        ({"size": "6 8", "counts": []}, "without a size"),
        ([[1, 2, 3]], "three corners"),
        ([[1, 2, 3, 4, "x", 6]], "three corners"),
        ([[1, 2, 3, 4, 1e300, 6]], "three corners"),
        ([], "must be polygons"),
        ("text", "must be polygons"),
    ],
)
def test_broken_outlines_are_refused(tmp_path: Path, segmentation: Any, said: str) -> None:
    source = source_of(coco(tmp_path / "c.json", segmentation=segmentation), "masks")
    with pytest.raises(InputError, match=said):
        source.truth("a", SIZE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "not readable as JSON"),
        ("{}", "not a COCO file"),
        ('{"images": [1], "annotations": [], "categories": []}', "not a COCO file"),
        ('{"images": [{}], "annotations": [], "categories": []}', "without a name"),
        ("\x00\xff", "not readable as JSON"),
    ],
)
def test_a_file_that_is_not_coco_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=said):
        source_of(file, "boxes").names  # noqa: B018


@pytest.mark.parametrize(
    ("entry", "said"),
    [({"category_id": 4}, "category 4"), ({"bbox": [1, 2]}, "bbox must be"), ({"bbox": [1, 2, 0, 3]}, "is empty")],
)
def test_broken_coco_boxes_are_refused(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        source_of(coco(tmp_path / "c.json", **entry), "boxes").truth("a", SIZE)


# ------------------------------------------------------------------------------------------- classes, places


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "file,class\na.jpg,3\nfolder/b.png,tench, Tinca tinca\n"),
        ("l.csv", '\ufeffa.jpg,3\n\nb.png,"tench"\n'),
        ("l.json", '{"a.jpg": 3, "b.png": "tench"}'),
        ("l.json", '{"a": "3", "b": "tench"}'),
    ],
)
def test_classes_are_numbers_or_names_by_the_stem_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    assert LabelFile(file).classes == {"a": 3, "b": "tench"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "a.jpg\n", "write file,class"),
        ("l.csv", "", "no class"),
        ("l.csv", "a.jpg,1\na.png,2\n", "two classes"),
        ("l.json", "[1, 2]", "must be an object"),
        ("l.json", '{"a": {"b": 1}}', "must be an object"),
        ("l.json", '{"a": ' * 50_000, "not readable as JSON"),
    ],
)
def test_a_file_that_holds_no_classes_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(InputError, match=said):
        LabelFile(file)


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_a_place_without_annotations_is_refused(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(InputError, match=r"no (mask|\.xml)"):
        source_of(tmp_path, kind)
    with pytest.raises(InputError, match="does not exist"):
        source_of(tmp_path / "none", kind)
