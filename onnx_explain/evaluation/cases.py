"""What is evaluated: pictures with what is known of them, as the model sees both. No method and no measure lives here."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from onnx_explain import data
from onnx_explain.annotations import LabelFile, Name, Object, Source, Truth
from onnx_explain.annotations.masks import truth_of_values
from onnx_explain.annotations.truth import box_within
from onnx_explain.data import Frame, InputSpec, Layout, Preprocessing, Sample
from onnx_explain.errors import ExplainError, InputError, suggest
from onnx_explain.evaluation.archive import Archive

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Objects = Literal["all", "target"]
IMAGES, MASKS, LABELS, BOXES = "images", "masks", "labels", "boxes"


@dataclass(frozen=True)
class Fault:
    """A sample that cannot be evaluated, and why. number: None of an annotation to which no picture belongs."""

    number: int | None
    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Case:
    """One sample as the model sees it. feeds: [1, ...] per input. label: its class, where known.

    objects: (class or None, mask bool [H, W]) each, in the model's view; None: nothing is known. void: bool [H, W].
    """

    number: int
    name: str
    feeds: dict[str, Array]
    label: int | None = None
    objects: tuple[tuple[int | None, Bools], ...] | None = None
    void: Bools | None = None

    def mask(self, target: int | None, size: tuple[int, int]) -> Bools:
        """The union of the objects, of one class where `target` is given: bool [H, W]."""
        found = np.zeros(size, bool)
        for index, mask in self.objects or ():
            if target is None or index == target:
                found |= mask
        return found if self.void is None else found & ~self.void


@dataclass(frozen=True)
class Known:
    """What is known beside the pictures. classes: the model's names of its classes; objects: whose class matters or not."""

    masks: Source | None = None
    boxes: Source | None = None
    labels: LabelFile | None = None
    classes: Sequence[str] = ()
    objects: Objects = "all"

    @property
    def places(self) -> Source | None:
        """Where the objects are read from: the masks, else the boxes."""
        return self.masks or self.boxes

    def index(self, name: Name) -> int:
        """The class of a name or number; InputError where the model has none such."""
        if isinstance(name, int):
            if self.classes and not 0 <= name < len(self.classes):
                raise InputError(f"there is no class {name}: the model has {len(self.classes)}.")
            return name
        wanted = str(name).casefold()
        found = [i for i, c in enumerate(self.classes) if wanted in (c.casefold(), c.split(",")[0].casefold())]
        if len(found) != 1:
            if not self.classes:
                raise InputError(f"class {name!r} cannot be told from a number: name the model's classes (--labels).")
            told = "stands for several classes" if found else f"is unknown.{suggest(str(name), self.classes)}"
            raise InputError(f"class {name!r} {told}")
        return found[0]


@dataclass(frozen=True)
class _Place:
    """A file and its samples' numbers."""

    path: Path
    name: str
    first: int
    count: int = 1


@dataclass
class DataSet:
    """Samples by number, read as they are needed.

    paths: pictures and ``.npz`` files. An ``.npz`` holds an array per input under its name, or pictures (uint8 [N, H, W, 3] or
    [N, H, W]) under ``images``, and beside them ``masks`` [N, H, W], ``labels`` [N] and ``boxes`` [N, 4] or [N, M, 4]
    (x0, y0, x1, y1; rows of no area are no boxes). Raises InputError.
    """

    paths: Sequence[Path]
    specs: Sequence[InputSpec]
    preprocessing: Preprocessing
    layout: Layout | None = None
    known: Known = field(default_factory=Known)

    @cached_property
    def places(self) -> list[_Place]:
        """Every file with its samples."""
        found, first = [], 0
        for path, name in zip(self.paths, data.sample_names(self.paths)):
            if path.suffix.lower() in {".npy", *data.TABLE_SUFFIXES}:
                raise InputError(f"{path}: evaluate reads pictures and .npz files; put the array into an .npz file.")
            count = self._rows(path) if path.suffix.lower() == ".npz" else 1
            found.append(_Place(path, name, first, count))
            first += count
        return found

    @property
    def total(self) -> int:
        """How many samples there are."""
        return self.places[-1].first + self.places[-1].count

    @cached_property
    def has(self) -> frozenset[str]:
        """What is known of the samples: ``mask`` (where the objects are) and ``label``."""
        inside = {n for p in self.places if p.path.suffix.lower() == ".npz" for n in self._archive(p.path).columns}
        mask = self.known.places is not None or bool(inside & {MASKS, BOXES})
        label = self.known.labels is not None or LABELS in inside
        return frozenset([*(["mask"] if mask else []), *(["label"] if label else [])])

    def chosen(self, count: int | None, seed: int) -> list[int]:
        """The numbers of `count` samples drawn without replacement, ascending; all where it is None or beyond the set."""
        if count is None or count >= self.total:
            return list(range(self.total))
        return sorted(np.random.default_rng(seed).choice(self.total, count, replace=False).tolist())

    def faults(self) -> list[Fault]:
        """Pictures without an annotation, annotations without a picture, unknown classes: what the names alone tell."""
        pictures = {p.path.stem: p for p in self.places if p.path.suffix.lower() != ".npz"}
        found: list[Fault] = []
        for source, what in ((self.known.places, "mask or boxes"), (self.known.labels, "class")):
            if source is None:
                continue
            names = source.names
            lacking = [p for s, p in pictures.items() if s not in names]
            found += [Fault(p.first, p.path.name, f"has no {what} in {source.path}") for p in lacking]
            found += [
                Fault(None, n, f"stands in {source.path}, but is no picture") for n in sorted(names - pictures.keys())
            ]
        labels = self.known.labels.classes if self.known.labels else {}
        for stem, place in pictures.items():
            try:
                if stem in labels:
                    self.known.index(labels[stem])
            except InputError as error:
                found.append(Fault(place.first, place.path.name, str(error)))
        return found

    def read(self, numbers: Sequence[int]) -> Iterator[Case | Fault]:
        """The samples of these ascending numbers, or why one cannot be read."""
        wanted = iter(numbers)
        number = next(wanted, None)
        with tempfile.TemporaryDirectory(prefix="onnx-explain-") as scratch:
            for place in self.places:
                rows = []
                while number is not None and number < place.first + place.count:
                    rows.append(number - place.first)
                    number = next(wanted, None)
                if rows and place.path.suffix.lower() == ".npz":
                    yield from self._archived(place, rows, Path(scratch))
                elif rows:
                    yield self._picture(place)

    # -- pictures

    def _picture(self, place: _Place) -> Case | Fault:
        try:
            [sample] = data.load(place.path, self.specs, self.preprocessing, layout=self.layout, name=place.name)
            stem = place.path.stem
            truth = None
            if self.known.places is not None and sample.frame is not None:
                truth = self.known.places.truth(stem, sample.frame.source)
            label = None if self.known.labels is None else self.known.index(self.known.labels.classes[stem])
            return self._case(place.first, sample, truth, label)
        except KeyError:
            return Fault(place.first, place.path.name, "has no annotation")
        except ExplainError as error:
            return Fault(place.first, place.path.name, str(error))

    def _case(self, number: int, sample: Sample, truth: Truth | None, label: int | None) -> Case:
        if truth is None:
            return Case(number, sample.name, sample.feeds, label)
        frame = sample.frame or _whole(sample, self.specs)
        objects = tuple((self._class_of(o), _seen(o, frame)) for o in truth.objects)
        void = None if truth.void is None else frame.mask(truth.void)
        return Case(number, sample.name, sample.feeds, label, objects, void)

    def _class_of(self, found: Object) -> int | None:
        return self.known.index(found.name) if self.known.objects == "target" and found.name is not None else None

    # -- arrays

    def _archive(self, path: Path) -> Archive:
        if path not in self._archives:
            self._archives[path] = Archive(path)
        return self._archives[path]

    @cached_property
    def _archives(self) -> dict[Path, Archive]:
        return {}

    def _rows(self, path: Path) -> int:
        archive = self._archive(path)
        names = self._inputs(archive)
        beside = [n for n in (MASKS, LABELS, BOXES) if n in archive.columns and n not in names]
        counts = {n: (archive.columns[n].shape or (0,))[0] for n in [*names, *beside]}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            told = ", ".join(f"{n!r} {c}" for n, c in counts.items())
            raise InputError(f"{path}: the arrays must hold equally many samples, at least one, but hold {told}.")
        return next(iter(counts.values()))

    def _inputs(self, archive: Archive) -> list[str]:
        """The arrays that the model is fed with."""
        names, columns = [s.name for s in self.specs], archive.columns
        if all(n in columns for n in names):
            for spec in self.specs:
                if not _fits(columns[spec.name].shape[1:], spec.shape[1:]):
                    raise InputError(
                        f"{archive.path}: array {spec.name!r} is {list(columns[spec.name].shape)}, not {spec}."
                    )
            return names
        if len(names) == 1 and IMAGES in columns:
            shape, dtype = columns[IMAGES].shape, columns[IMAGES].dtype
            if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
                raise InputError(f"{archive.path}: 'images' must be uint8 [N, H, W, 3], not {dtype} {list(shape)}.")
            return [IMAGES]
        listed = ", ".join(map(repr, columns)) or "none"
        raise InputError(f"{archive.path}: no array {names[0]!r} and no 'images' among its arrays ({listed}).")

    def _archived(self, place: _Place, rows: Sequence[int], scratch: Path) -> Iterator[Case | Fault]:
        archive = self._archive(place.path)
        names = [*self._inputs(archive), *(n for n in (MASKS, LABELS, BOXES) if n in archive.columns)]
        streams = zip(*(archive.rows(n) for n in names))
        done, digits = 0, len(str(place.count - 1))
        for row in rows:
            values = dict(zip(names, next(islice(streams, row - done, None))))
            done = row + 1
            name = place.name if place.count == 1 else f"{place.name}-{row:0{digits}d}"
            try:
                yield self._row(place.first + row, name, values, scratch)
            except ExplainError as error:
                yield Fault(place.first + row, name, str(error))

    def _row(self, number: int, name: str, values: dict[str, Array], scratch: Path) -> Case:
        if IMAGES in values and IMAGES not in {s.name for s in self.specs}:
            file = scratch / "row.png"
            Image.fromarray(values[IMAGES].squeeze()).save(file, compress_level=0)
            [sample] = data.load(file, self.specs, self.preprocessing, layout=self.layout, name=name)
        else:
            feeds = {s.name: values[s.name].astype(s.dtype)[None] for s in self.specs}
            if not all(np.isfinite(a).all() for a in feeds.values() if a.dtype.kind == "f"):
                raise InputError("the array holds NaN or infinity.")
            sample = Sample(name, feeds)
        if LABELS in values and (values[LABELS].size != 1 or values[LABELS].dtype.kind not in "iu"):
            raise InputError("labels must be one class index per sample.")
        label = self.known.index(int(values[LABELS].item())) if LABELS in values else None
        return self._case(number, sample, _truth(values, sample, self.specs), label)


def _fits(given: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(given) == len(wanted) and all(w in (None, g) for g, w in zip(given, wanted))


def _whole(sample: Sample, specs: Sequence[InputSpec]) -> Frame:
    """An array is seen as it is."""
    size = seen_size(sample.feeds, specs)
    return Frame(size, size, (0.0, 0.0, float(size[1]), float(size[0])))


def seen_size(feeds: dict[str, Array], specs: Sequence[InputSpec]) -> tuple[int, int]:
    """(height, width) of the picture among the inputs; InputError where there is none."""
    for spec in specs:
        if spec.layout is not None:
            shape = feeds[spec.name].shape
            return (shape[2], shape[3]) if spec.layout == "NCHW" else (shape[1], shape[2])
    raise InputError("masks and boxes are of pictures, but no input of the model is one.")


def _truth(values: dict[str, Array], sample: Sample, specs: Sequence[InputSpec]) -> Truth | None:
    """What an archive says of one row."""
    if not {MASKS, BOXES} & values.keys():
        return None
    size = (sample.frame or _whole(sample, specs)).source
    if MASKS in values:
        mask = values[MASKS]
        if mask.shape != size or mask.dtype.kind not in "biu":
            raise InputError(f"the mask is {mask.dtype} {list(mask.shape)}, but the picture is {size[0]} x {size[1]}.")
        whole = mask.astype(np.int64)
        return truth_of_values(whole, indexed=len(np.unique(whole[whole != 0])) > 1)
    if values[BOXES].size % 4 or values[BOXES].dtype.kind not in "iuf":
        raise InputError(f"boxes must be [N, 4] or [N, M, 4] numbers, but a row is {list(values[BOXES].shape)}.")
    corners = values[BOXES].reshape(-1, 4).tolist()
    real = [c for c in corners if c[0] < c[2] and c[1] < c[3]]
    return Truth(tuple(Object(None, box=box_within("the archive", c, size)) for c in real))


def _seen(found: Object, frame: Frame) -> Bools:
    """An object in the model's view: pixels whose centre lies in the box, or the nearest ones of the mask."""
    if found.mask is not None:
        return frame.mask(found.mask)
    mask = np.zeros(frame.size, bool)
    seen = frame.rectangle(found.box) if found.box is not None else None
    if seen is not None:
        x0, y0, x1, y1 = (int(np.ceil(v - 0.5)) for v in seen)
        mask[y0:y1, x0:x1] = True
    return mask
