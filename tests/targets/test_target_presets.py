"""Presets: the expression that each writes for the outputs of real kinds of network, and when it refuses to guess."""

from __future__ import annotations

import pytest

from onnx_explain import TargetError
from onnx_explain.target.presets import PRESETS, Head, Preset, expand, parse_preset


def head(name: str, *sizes: int | None, floats: bool = True, rows: bool = False, probable: bool = False) -> Head:
    return Head(name, sizes, floats, rows, probable)


YOLOX = [head("output", 3549, 85)]
YOLOV8 = [head("output0", 84, 8400)]
SSD = [head("scores", 4420, 2), head("boxes", 4420, 4)]
RCNN = [
    head("boxes", None, 4, rows=True),
    head("labels", None, floats=False, rows=True),
    head("scores", None, rows=True),
]


@pytest.mark.parametrize(
    ("text", "heads", "expression"),
    [
        ("yolo:17", YOLOX, "(output[:,:,4]*output[:,:,22]).max()"),
        ("yolox:17", YOLOX, "(output[:,:,4]*output[:,:,22]).max()"),
        ("yolov5:0", [head("out put", 25200, 85)], "('out put'[:,:,4]*'out put'[:,:,5]).max()"),
        ("yolo:17", YOLOV8, "output0[:,21].max()"),
        ("yolov8:17", YOLOV8, "output0[:,21].max()"),
        ("yolov8:17", [head("o", 8400, 84)], "o[:,:,21].max()"),
        ("yolo:3", [head("o", 300, 6)], "o[:,:,4].where(o[:,:,5] == 3).max()"),
        ("yolov10:3", [head("o", 300, 6)], "o[:,:,4].where(o[:,:,5] == 3).max()"),
        ("ssd:1", SSD, "scores[:,:,1].max()"),
        ("ssd:1", [head("cls", 21, 8732), head("loc", 8732, 4)], "cls[:,1].max()"),
        ("ssd:1", [head("boxes", 1917, 1, 4), head("scores", 1917, 81)], "scores[:,:,1].max()"),
        ("rcnn:17", RCNN, "scores.where(labels == 17).max()"),
        (
            "rcnn:17",
            [head("b", 100, 4), head("l", 100, floats=False), head("s", 100)],
            "s[:].where(l[:] == 17).max()",
        ),
        ("best-box:17", YOLOX, "(output[:,:,4]*output[:,:,22]).max()"),
        ("best-box:1", SSD, "scores[:,:,1].max()"),
        ("best-box:17", RCNN, "scores.where(labels == 17).max()"),
        ("segmentation:15", [head("out", 21, 257, 257)], "out[:,15].where(out.argmax(axis=1) == 15).sum()"),
        ("segmentation:15", [head("r/3", 257, 257, 21)], "'r/3'[:,:,:,15].where('r/3'.argmax(axis=3) == 15).sum()"),
        ("segmentation:0", [head("mask", 1, 64, 64)], "mask[:,0].where(mask[:,0] > 0).sum()"),
        ("segmentation:0", [head("mask", 1, 64, 64, probable=True)], "mask[:,0].where(mask[:,0] > 0.5).sum()"),
        (
            "segmentation:5@aux",
            [head("out", 21, 64, 64), head("aux", 21, 64, 64)],
            "aux[:,5].where(aux.argmax(axis=1) == 5).sum()",
        ),
    ],
)
def test_a_preset_is_written_out_for_the_heads_it_meets(text: str, heads: list[Head], expression: str) -> None:
    preset = parse_preset(text)
    assert preset is not None
    assert expand(preset, heads) == expression


@pytest.mark.parametrize(
    ("text", "heads", "told"),
    [
        ("yolo:0", [head("o", 300, 6)], "could be"),
        ("yolo:0", [head("a", 3549, 85), head("b", 3549, 85)], "could be"),
        ("yolov5:0", [head("o", 85, 85)], "could be"),
        ("ssd:1", [head("a", 4420, 21), head("b", 4420, 81), head("boxes", 4420, 4)], "could be"),
        ("segmentation:1", [head("out", 21, 64, 64), head("aux", 21, 64, 64)], "segmentation:1@OUTPUT"),
        ("segmentation:1", [head("o", 32, 32, 32)], "could be"),
        ("segmentation:1", [head("classes", 64, 64, floats=False)], "no output looks like"),
        ("yolo:1", SSD[1:], "no output looks like"),
        ("rcnn:1", SSD, "no output looks like"),
        ("yolo:80", YOLOX, "80 classes, 0 to 79"),
        ("segmentation:21", [head("out", 21, 64, 64)], "21 classes, 0 to 20"),
        ("yolo:person", YOLOX, "give its index"),
        ("yolo:1@nowhere", YOLOX, "no output 'nowhere'"),
    ],
)
def test_what_fits_two_layouts_or_none_is_refused_with_what_to_write(text: str, heads: list[Head], told: str) -> None:
    preset = parse_preset(text)
    assert preset is not None
    with pytest.raises(TargetError) as caught:
        expand(preset, heads)
    assert told in str(caught.value)


def test_what_names_no_preset_is_none() -> None:
    for text in ("scores[0,17]", "yolo", "yolo:", "yolov99:1", "yolo:0[0,3]", "17", "a:0.max()"):
        assert parse_preset(text) is None
    assert parse_preset(" yolo : traffic light @ out 0 ") == Preset("yolo", "traffic light", "out 0")
    assert all(parse_preset(f"{kind}:1") == Preset(kind, "1") for kind in PRESETS)
