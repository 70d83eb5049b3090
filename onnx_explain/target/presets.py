"""Targets by the kind of network: ``yolo:17``, ``segmentation:15``. Each is written out as an expression of `grammar`.

Which of several layouts a network has is read off the shapes of its outputs; where those fit two, nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx_explain.errors import TargetError, suggest

_WRITTEN = re.compile(
    r"\s*(?P<kind>[a-z][a-z0-9-]*)\s*:\s*(?P<label>[^\[\]()@]+?)\s*(?:@\s*(?P<output>.+?)\s*)?", re.DOTALL
)
_PLAIN = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True)
class Preset:
    """A preset as written: its kind, the class by index or label, and the output it was told to look at."""

    kind: str
    label: str
    output: str | None = None


@dataclass(frozen=True)
class Head:
    """An output as presets see it. sizes: per sample, None: known only at run time. rows: it keeps no samples apart.

    floats: it holds floats. probable: it is what a Softmax or Sigmoid says.
    """

    name: str
    sizes: tuple[int | None, ...]
    floats: bool
    rows: bool = False
    probable: bool = False

    @property
    def quoted(self) -> str:
        """The name as an expression spells it."""
        return self.name if _PLAIN.fullmatch(self.name) else "'" + re.sub(r"(['\\])", r"\\\1", self.name) + "'"

    def at(self, *items: object) -> str:
        """The output with these indices of one sample."""
        shown = ",".join(map(str, items if self.rows else (":", *items)))
        return f"{self.quoted}[{shown}]" if shown else self.quoted

    def axis(self, own: int) -> int:
        """An axis of one sample, counted as an expression does."""
        return own if self.rows else own + 1


def parse_preset(text: str) -> Preset | None:
    """The preset that a text names, if it does."""
    found = _WRITTEN.fullmatch(text)
    if found is None or found["kind"] not in PRESETS:
        return None
    return Preset(found["kind"], found["label"], found["output"])


def expand(preset: Preset, heads: Sequence[Head]) -> str:
    """The expression that a preset stands for in a network with these outputs; TargetError where none or several fit."""
    if not re.fullmatch(r"\d{1,9}", preset.label):
        raise TargetError(f"Target {told(preset)!r}: no class is called {preset.label!r} here; give its index.")
    if preset.output is not None:
        named = [h for h in heads if h.name == preset.output]
        if not named:
            raise TargetError(
                f"Target {told(preset)!r}: the model has no output {preset.output!r}.{suggest(preset.output, [h.name for h in heads])}"
            )
        heads = [*named, *(h for h in heads if h not in named)]
    found = PRESETS[preset.kind](int(preset.label), heads, preset.output)
    if not found:
        raise TargetError(
            f"Target {told(preset)!r}: no output looks like {_LOOKS[preset.kind]}; the outputs are {_listed(heads)}. "
            "Write an expression of your own ('scores[0,:,17].max()')."
        )
    if len(found) > 1:
        raise TargetError(
            f"Target {told(preset)!r} could be {' or '.join(map(repr, found[:3]))}; give the one you mean, or name the "
            f"output ('{preset.kind}:{preset.label}@OUTPUT')."
        )
    return found[0]


def told(preset: Preset) -> str:
    """The preset as it was written."""
    return f"{preset.kind}:{preset.label}" + (f"@{preset.output}" if preset.output else "")


def _listed(heads: Sequence[Head]) -> str:
    shapes = (", ".join("?" if d is None else str(d) for d in h.sizes) for h in heads)
    return ", ".join(f"{h.name!r} [{'' if h.rows else 'N, '}{s}]" for h, s in zip(heads, shapes)) or "none"


# ------------------------------------------------------------------------------------------- heads of detectors


def _grids(heads: Sequence[Head], output: str | None) -> list[Head]:
    """Outputs [N, boxes, numbers] or [N, numbers, boxes] that hold coordinates and scores in one."""
    return [h for h in heads if len(h.sizes) == 2 and h.floats and not h.rows and output in (None, h.name)]


def _boxes_first(head: Head) -> bool | None:
    """Whether boxes lie on the first axis: the longer one; None where that is not to be told."""
    boxes, numbers = head.sizes
    if boxes is None or numbers is None:
        return None if boxes is numbers else boxes is None
    return None if boxes == numbers else boxes > numbers


def _rows(heads: Sequence[Head], output: str | None, least: int) -> Iterator[tuple[Head, bool, int]]:
    """(head, boxes first, numbers per box) of heads with at least so many numbers; both layouts where shapes do not tell."""
    for h in _grids(heads, output):
        first = _boxes_first(h)
        for boxes_first in (True, False) if first is None else (first,):
            numbers = h.sizes[1 if boxes_first else 0]
            if numbers is not None and numbers >= least:
                yield h, boxes_first, numbers


def _with_objectness(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """YOLOv3 to v7, YOLOX: four coordinates, whether there is an object, a score per class."""
    found = []
    for h, boxes_first, numbers in _rows(heads, output, 6):
        _check(label, numbers - 5, h)
        there, scored = (h.at(":", n) if boxes_first else h.at(n) for n in (4, 5 + label))
        found.append(f"({there}*{scored}).max()")
    return found


def _without_objectness(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """YOLOv8 and later: four coordinates, a score per class."""
    found = []
    for h, boxes_first, numbers in _rows(heads, output, 5):
        _check(label, numbers - 4, h)
        found.append(f"{h.at(':', 4 + label) if boxes_first else h.at(4 + label)}.max()")
    return found


def _end_to_end(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """YOLOv10 and its like: rows of four coordinates, a score and a class, none suppressed any more."""
    return [
        f"{h.at(':', 4)}.where({h.at(':', 5)} == {label}).max()"
        for h in _grids(heads, output)
        if h.sizes[1] == 6 and h.sizes[0] != 6
    ]


def _yolo(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """Boxes before numbers come with objectness, numbers before boxes without; six numbers may be either's."""
    found = []
    for h in _grids(heads, output):
        first = _boxes_first(h)
        if first is not False:
            found += [*_end_to_end(label, [h], None)]
            found += _with_objectness(label, [h], None) if h.sizes[1] != 6 or label == 0 else []
        if first is not True:
            found += _without_objectness(label, [h], None)
    return found


def _ssd(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """A score per box and class beside four coordinates per box."""
    found = []
    for h in _grids(heads, output):
        for other in heads:
            if other is h or not other.floats or other.rows or len(other.sizes) not in (2, 3):
                continue
            count, rest = other.sizes[0], other.sizes[1:]
            if rest not in ((4,), (1, 4)):
                continue
            if h.sizes[0] == count and (h.sizes[1] != 4 or output == h.name):
                _check(label, h.sizes[1], h)
                found.append(f"{h.at(':', label)}.max()")
            elif h.sizes[1] == count:
                _check(label, h.sizes[0], h)
                found.append(f"{h.at(label)}.max()")
    return list(dict.fromkeys(found))


def _rcnn(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """Boxes that were kept, each with one label and one score: [K, 4], [K] of integers, [K] of floats."""
    found = []
    boxes = [h for h in heads if h.floats and len(h.sizes) == 2 and h.sizes[1] == 4]
    for scores in heads:
        if not scores.floats or len(scores.sizes) != 1 or output not in (None, scores.name):
            continue
        for labels in heads:
            if labels.floats or labels.sizes != scores.sizes or labels.rows != scores.rows:
                continue
            if any(b.sizes[0] == scores.sizes[0] and b.rows == scores.rows for b in boxes):
                found.append(f"{scores.at()}.where({labels.at()} == {label}).max()")
    return found


def _best_box(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """Whichever kind of detector fits."""
    for kind in (_rcnn, _ssd, _yolo):
        found = kind(label, heads, output)
        if found:
            return found
    return []


# ------------------------------------------------------------------------------------------- segmentation


def _segmentation(label: int, heads: Sequence[Head], output: str | None) -> list[str]:
    """The class's entries summed over the pixels that the network gives to it: [N, C, H, W] or [N, H, W, C]."""
    found = []
    for h in heads:
        if len(h.sizes) != 3 or not h.floats or h.rows or output not in (None, h.name):
            continue
        a, b, c = (1 << 30 if d is None else d for d in h.sizes)
        fits = [first for first, classes, rest in ((True, a, (b, c)), (False, c, (a, b))) if classes < min(rest)]
        for first in fits or (True, False):
            classes = h.sizes[0] if first else h.sizes[2]
            _check(label, classes, h)
            entries = h.at(label) if first else h.at(":", ":", label)
            if classes == 1:
                region = f"{entries} > {0.5 if h.probable else 0}"
            else:
                region = f"{h.quoted}.argmax(axis={h.axis(0 if first else 2)}) == {label}"
            found.append(f"{entries}.where({region}).sum()")
    return list(dict.fromkeys(found))


def _check(label: int, classes: int | None, head: Head) -> None:
    if classes is not None and label >= classes:
        raise TargetError(f"There is no class {label}: output {head.name!r} has {classes} classes, 0 to {classes - 1}.")


_Kind = Callable[[int, Sequence[Head], "str | None"], "list[str]"]
PRESETS: dict[str, _Kind] = {
    "best-box": _best_box,
    "yolo": _yolo,
    "yolox": _with_objectness,
    "yolov5": _with_objectness,
    "yolov7": _with_objectness,
    "yolov8": _without_objectness,
    "yolov10": _end_to_end,
    "ssd": _ssd,
    "rcnn": _rcnn,
    "segmentation": _segmentation,
}
_LOOKS = {
    "best-box": "a detector's",
    "yolo": "[N, boxes, 5 + classes] or [N, 4 + classes, boxes]",
    "yolox": "[N, boxes, 5 + classes]",
    "yolov5": "[N, boxes, 5 + classes]",
    "yolov7": "[N, boxes, 5 + classes]",
    "yolov8": "[N, 4 + classes, boxes]",
    "yolov10": "[N, boxes, 6]",
    "ssd": "[N, boxes, classes] beside [N, boxes, 4]",
    "rcnn": "boxes [K, 4], labels [K] and scores [K]",
    "segmentation": "[N, classes, height, width] or [N, height, width, classes]",
}
