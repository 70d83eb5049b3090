"""`shapes`: the synthetic set on disk, picture by picture: pictures, masks, classes, boxes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from onnx_explain.cli import console
from onnx_explain.errors import OutputError
from onnx_explain.shapes import CLASSES, Shape, dataset
from onnx_explain.version import __version__

IMAGES, MASKS, LABELS, BOXES, NOTES = "images", "masks", "labels.csv", "boxes.json", "shapes.json"


def write(out: Path, count: int, *, size: int, seed: int, as_json: bool) -> None:
    """Write `count` samples below `out`; a set of the same size and seed is written again, or further, over itself.

    Raises OutputError: a folder that holds anything else.
    """
    samples = dataset(count, seed=seed, size=size)  # checks its arguments
    notes = {"onnx_explain": __version__, "size": size, "seed": seed}
    _claim(out, notes, count)
    with (
        _progress(count, visible=not as_json) as advance,
        _Boxes(out / BOXES) as boxes,
        (out / LABELS).open("w", encoding="utf-8", newline="\n") as labels,
    ):
        labels.write("file,class\n")
        for index, sample in enumerate(samples):
            name = _name(index)
            Image.fromarray(sample.image).save(out / IMAGES / name)
            Image.fromarray(sample.mask.astype("uint8") * 255).save(out / MASKS / name)
            labels.write(f"{name},{CLASSES[sample.label]}\n")
            boxes.add(index, name, sample)
            advance(index + 1)
    (out / NOTES).write_text(json.dumps({**notes, "count": count}, indent=2) + "\n", encoding="utf-8")
    document = {**notes, "count": count, "folder": str(out), "classes": list(CLASSES)}
    if as_json:
        console.print_json(document)
        return
    console.say(f"{count} pictures of {size} x {size} in {out / IMAGES}/, their masks in {out / MASKS}/")
    console.say(f"classes in {out / LABELS}, boxes in {out / BOXES}")


def _name(index: int) -> str:
    """The same for every size of the set, so that it can grow."""
    return f"{index:07d}.png"


def _claim(out: Path, notes: dict[str, Any], count: int) -> None:
    """Make the folder; OutputError where it is not empty and not a set of this size and seed, or a larger one."""
    file = out / NOTES
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            before = json.loads(file.read_bytes())
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise OutputError(f"{out} holds other files than a set of shapes; name a new folder.")
        if any(before.get(k) != notes[k] for k in ("size", "seed")):
            raise OutputError(
                f"{out} holds shapes of size {before.get('size')} and seed {before.get('seed')}; name a new folder."
            )
    for folder in (out, out / IMAGES, out / MASKS):
        folder.mkdir(parents=True, exist_ok=True)
    for path in (p for folder in (IMAGES, MASKS) for p in (out / folder).iterdir()):
        stem = path.name.removesuffix(".png")
        if not (len(stem) >= 7 and stem.isdecimal() and int(stem) < count and path.name == _name(int(stem))):
            raise OutputError(f"{path} is not one of the {count} pictures to be written; name a new folder.")
    file.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")


class _Boxes:
    """A COCO file written entry by entry: the pictures first, their boxes from a second file after them."""

    def __init__(self, path: Path) -> None:
        self._path, self._rest = path, path.with_name(f".{path.name}.part")

    def __enter__(self) -> _Boxes:
        self._images = self._path.open("w", encoding="utf-8", newline="\n")
        self._objects = self._rest.open("w", encoding="utf-8", newline="\n")
        classes = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
        self._images.write(f'{{"categories": {json.dumps(classes)},\n"images": [')
        self._comma = "\n"
        return self

    def add(self, index: int, name: str, sample: Shape) -> None:
        """One picture and its one box."""
        height, width = sample.mask.shape
        x0, y0, x1, y1 = sample.box
        image = {"id": index, "file_name": name, "width": width, "height": height}
        entry = {
            "id": index, "image_id": index, "category_id": sample.label, "iscrowd": 0, "area": int(sample.mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }  # fmt: skip
        self._images.write(self._comma + json.dumps(image))
        self._objects.write(self._comma + json.dumps(entry))
        self._comma = ",\n"

    def __exit__(self, *_: object) -> None:
        self._objects.close()
        self._images.write('],\n"annotations": [')
        with self._rest.open(encoding="utf-8") as rest:
            for line in rest:
                self._images.write(line)
        self._images.write("]}\n")
        self._images.close()
        self._rest.unlink()


@contextmanager
def _progress(total: int, *, visible: bool) -> Iterator[Any]:
    """A progress bar on stderr for a person who watches."""
    if not (visible and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("drawing", total=total)
        yield lambda done: bar.update(task, completed=done)
