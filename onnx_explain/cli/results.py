"""The files of one explained input, and its line in the table.

``OUT/<input>/overview.png``: the picture and every map side by side. ``<method>.png``, ``<method>-overlay.png``,
``<method>.npz``: one each; ``<method>.html`` of texts. With several targets ``<method>`` is followed by the target's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_explain import render
from onnx_explain.data import Array, Sample
from onnx_explain.errors import InputError, OutputError
from onnx_explain.explanation import Explanation, plain_option
from onnx_explain.files import draft
from onnx_explain.methods import METHODS, Method
from onnx_explain.text import parts_of, save_html, told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERVIEW, COLUMNS = "overview.png", "columns"
SIZE_ALONE = "how much, not which way"  # of methods without a sign, whose red the legend would misname
_STEM = 80  # characters of a target in a file's name
_PIXELS = 448  # the shorter side of a heat map, at least


@dataclass(frozen=True)
class Named:
    """The explanation of one sample with the method and target it answers."""

    method: str
    target: str
    entry: Method
    explanation: Explanation
    label: str | None = None


@dataclass(frozen=True)
class Record:
    """One line of the table and one entry of the JSON document.

    target: as it was asked for; expression: what that computes, where it is no element; sure: whether anything fulfilled its
    conditions. index: of the explained element within the sample, flattened; element: its name. score: its value; probability: the
    output behind the Softmax or Sigmoid that the explained tensor feeds, where there is one. predicted: the arg-max.
    conservation: see `Explanation`; without meaning where `conserves` is false. seconds: of the run, per sample; methods
    that share a forward pass share it evenly. completeness, layer: see `Explanation`. tokens: of a text
    (`text.told`). features: name, value and relevance of each that has a name.
    """

    input: str
    name: str
    method: str
    options: Mapping[str, Any]
    tensor: str
    index: int
    element: str
    label: str | None
    score: float
    probability: float | None
    predicted: int | None
    predicted_label: str | None
    predicted_element: str | None
    conserves: bool
    conservation: float
    absorbed: float
    seconds: float
    completeness: float | None = None
    layer: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    tokens: Mapping[str, Any] | None = None
    features: Sequence[Mapping[str, Any]] | None = None
    parts: tuple[render.Part, ...] = ()  # of the text, for people
    target: str = ""
    expression: str | None = None
    reads: Sequence[str] = ()
    sure: bool | None = None
    classes: int | None = None  # entries of the explained tensor where it has one axis of them, as class scores have

    @property
    def explained(self) -> str:
        """The explained class, element or expression, for people."""
        if self.expression is not None:
            return self.target if self.label is None else f"{self.label} ({self.target})"
        return self._told(self.index, self.label, self.element)

    @property
    def prediction(self) -> str | None:
        """The arg-max, for people; None where the explained tensor is not among the outputs."""
        return (
            None if self.predicted is None else self._told(self.predicted, self.predicted_label, self.predicted_element)
        )

    def _told(self, index: int, label: str | None, element: str | None) -> str:
        if label:
            return f"{label} ({index})"
        return f"class {index}" if (self.classes or 0) > 1 else str(element)

    def as_dict(self) -> dict[str, Any]:
        """The record as plain data."""
        told = {k: v for k, v in vars(self).items() if k not in ("parts", *(() if self.tokens else ("tokens",)))}
        return {k: v for k, v in told.items() if k != "features" or v}


class Results:
    """Writes explanations below one folder, never over a file that was read."""

    def __init__(
        self,
        folder: Path,
        protected: Sequence[Path],
        *,
        labels: Sequence[str],
        overlay: bool,
        dark: bool,
        nested: bool,
        rate: float | None = None,
    ) -> None:
        self._folder, self._labels, self._rate = folder, labels, rate
        self._overlay, self._dark, self._nested = overlay, dark, nested
        self._protected = {p.resolve() for p in protected}
        make_folder(folder)

    def path(self, *parts: str) -> Path:
        """Where a result goes; OutputError where that is a file that was read."""
        path = self._folder.joinpath(*parts)
        if path.resolve() in self._protected:
            raise OutputError(f"{path} is one of the files to explain; name another folder with --out.")
        return path

    def write(self, sample: Sample, source: Path, named: Sequence[Named], *, several_targets: bool) -> list[Record]:
        """All files of one sample; its records, in the order of `named`."""
        parts = (sample.name,) if self._nested else ()
        make_folder(self._folder.joinpath(*parts))
        stems = _stems(named, several_targets)
        records = []
        for one, stem in zip(named, stems):
            check_finite(source, one.explanation)
            record = record_of(sample, source, one, self._labels)
            files = self._maps(sample, one.explanation, record, (*parts,), stem)
            npz = self.path(*parts, f"{stem}.npz")
            one.explanation.save(npz)
            records.append((record, {**files, "arrays": str(npz)}))
        overview = self._overviews(sample, named, [r for r, _ in records], parts, several_targets)
        return [replace(record, files={**files, **overview}) for record, files in records]

    # -- pictures

    def _maps(
        self, sample: Sample, e: Explanation, record: Record, parts: tuple[str, ...], stem: str
    ) -> dict[str, str]:
        """The heat map (and overlay) of every picture among the inputs, the plot of every other input."""
        files: dict[str, str] = {}
        told = e.method if METHODS[record.method].signed else f"{e.method} ({SIZE_ALONE})"
        title = f"{sample.name}: {record.explained}, {told}"
        columns = single_values(e)
        drawn = [n for n in e.drawn if n not in columns] + ([COLUMNS] if columns else [])
        for name in drawn:
            end = f"-{slug(name)}" if len(drawn) > 1 else ""
            path = self.path(*parts, f"{stem}{end}.png")
            files[f"heatmap{end}"] = str(path)
            heat = None if name == COLUMNS and columns else picture_map(e, name)
            if heat is not None:
                render.save_png(path, _enlarged(render.colourise(render.normalise(heat))))
                if self._overlay:
                    over = self.path(*parts, f"{stem}{end}-overlay.png")
                    render.save_png(over, render.overlay(shown(sample, e, name), heat))
                    files[f"overlay{end}"] = str(over)
                continue
            if name in sample.texts:
                page = self.path(*parts, f"{stem}{end}.html")
                save_html(page, _page(record, e, title, dark=self._dark))
                files[f"page{end}"] = str(page)
            figure = figure_of(sample, e, name, columns=columns, title=title, dark=self._dark, rate=self._rate)
            render.save_figure(figure, path)
        return files

    def _overviews(
        self, sample: Sample, named: Sequence[Named], records: Sequence[Record], parts: tuple[str, ...], several: bool
    ) -> dict[str, str]:
        """The picture and every map side by side; nothing for inputs that are no pictures."""
        files = {}
        first = named[0].explanation
        for name in first.drawn:
            heats = [picture_map(n.explanation, name) for n in named]
            maps = {
                _panel(n.method, r.explained if several else None): h
                for n, r, h in zip(named, records, heats)
                if h is not None
            }
            if not maps:
                continue
            end = f"-{slug(name)}" if len(first.drawn) > 1 else ""
            path = self.path(*parts, OVERVIEW.replace(".", f"{end}."))
            title = sample.name if several else f"{sample.name}: {records[0].explained}"
            notes = {
                _panel(n.method, r.explained if several else None): SIZE_ALONE
                for n, r in zip(named, records)
                if not n.entry.signed
            }
            figure = render.figure_images(
                shown(sample, first, name), maps, title=title, dark=self._dark, overlays=False, notes=notes
            )
            render.save_figure(figure, path)
            files[f"overview{end}"] = str(path)
        return files


def check_finite(source: Path, e: Explanation) -> None:
    """Refuse relevance that is no number; InputError says of what, and what the model itself said."""
    for name, r in e.drawn.items():
        bad = int((~np.isfinite(r.astype(np.float32))).sum())
        if bad:
            raise InputError(
                f"{source}: {bad} of {r.size} relevances of {name!r} under {e.method} are NaN or infinite, where the explained "
                f"value is {float(e.target.score[0]):.4g}; look for such numbers in the model's weights, or use another method."
            )


def record_of(sample: Sample, source: Path, one: Named, labels: Sequence[str]) -> Record:
    """The line of one explanation."""
    e = one.explanation
    text = next(((n, t) for n, t in sample.texts.items() if n in e.entries), None)
    tokens = None if text is None else told(text[1], e.entries[text[0]][0])
    parts = () if text is None else tuple(parts_of(text[1], e.entries[text[0]][0]))
    index = int(e.target.index[0])
    values, shape, behind = _entries(e)
    computed = e.target.expression is not None
    predicted = int(values.argmax()) if values is not None and values.size else None
    single_axis = not computed and shape is not None and sum(d != 1 for d in shape) <= 1
    return Record(
        input=str(source),
        name=sample.name,
        method=one.method,
        options={name: plain_option(value) for name, value in e.options.items()},
        tensor=e.target.tensor,
        index=index,
        element=e.target.expression or _element(e.target.tensor, index, shape),
        label=one.label if computed else _label(labels, index) if single_axis else None,
        score=float(e.target.score[0]),
        probability=float(values[index]) if behind and values is not None else None,
        predicted=predicted,
        predicted_label=_label(labels, predicted) if single_axis else None,
        predicted_element=None if predicted is None else _element(e.target.tensor, predicted, shape),
        conserves=one.entry.conserves,
        conservation=float(e.conservation[0]),
        absorbed=float(e.absorbed[0]),
        seconds=e.seconds,
        completeness=None if e.completeness is None else float(e.completeness[0]),
        layer=e.layer,
        target=one.target,
        expression=e.target.expression,
        reads=e.target.reads,
        sure=None if e.target.sure is None else bool(e.target.sure[0]),
        classes=values.size if single_axis and values is not None else None,
        tokens=tokens,
        features=_features(e) or None,
        parts=parts,
    )


def _label(labels: Sequence[str], index: int | None) -> str | None:
    return labels[index] if index is not None and 0 <= index < len(labels) else None


def _entries(e: Explanation) -> tuple[Array | None, tuple[int, ...] | None, bool]:
    """The sample's entries of the explained tensor, their shape, and whether they lie behind a Softmax or Sigmoid.

    The explained logits are not among the outputs where the model ends in a Softmax; its entries have the same order.
    """
    if e.target.expression is not None:
        return None, None, False
    found = e.outputs.get(e.target.tensor)
    if found is not None:
        return found[0].ravel() if found.ndim else found.ravel(), found.shape[1:], False
    for array in e.outputs.values():
        if array.dtype.kind == "f" and array.ndim and array.shape[0] == 1 and array[0].size > int(e.target.index[0]):
            return array[0].ravel(), array.shape[1:], True
    return None, None, False


def _element(tensor: str, index: int, shape: tuple[int, ...] | None) -> str:
    """The explained entry as `--target` takes it: ``scores[0,17,3]``."""
    places = np.unravel_index(index, shape) if shape else (index,)
    return f"{tensor}[{','.join(map(str, (0, *map(int, places))))}]"


def picture_map(e: Explanation, name: str) -> Array | None:
    """The heat map [H, W] of an input that is a picture: rank 4 with channels; None of any other."""
    if e.of(name).ndim != 4 or e.channel_axis.get(name) not in (1, 3):
        return None
    r, axis = e.of(name), e.channel_axis[name] or 1
    heat: Array = (r.max(axis) if e.method == "saliency" else r.sum(axis))[0]
    return heat


def single_values(e: Explanation) -> list[str]:
    """The inputs of one value per sample, where there are several: the columns of a table, which are drawn together."""
    found = [n for n, r in e.drawn.items() if r[0].size == 1]
    return found if len(found) > 1 else []


def figure_of(
    sample: Sample,
    e: Explanation,
    name: str,
    *,
    columns: Sequence[str],
    title: str,
    dark: bool,
    rate: float | None = None,
) -> Figure:
    """The figure of an input that is no picture: a text, ids, a row of features, a signal; or of `columns` together."""
    if name in sample.texts:
        return render.figure_tokens(parts_of(sample.texts[name], e.of(name)[0]), title=title, dark=dark)
    if name == COLUMNS and columns:
        values, heats = (np.concatenate([a[n].ravel() for n in columns]) for a in (e.inputs, e.drawn))
        names = [", ".join(e.names.get(n, (n,))) for n in columns]
        return render.figure_features(values, heats, names=names, title=title, dark=dark)
    if (
        name not in sample.feeds and e.of(name).ndim == 3 and e.channel_axis.get(name)
    ):  # an embedding that no id selects
        heat = e.heatmap(name)[0]
        return render.figure_positions(np.arange(len(heat)), heat, title=title, dark=dark)
    return e.plot(input=name, title=title, dark=dark, rate=rate)


def _page(record: Record, e: Explanation, title: str, *, dark: bool) -> str:
    told = [("explained", record.explained), ("score", f"{record.score:.6g}"), ("predicted", record.prediction or "-")]
    told += [("probability", f"{record.probability:.2%}")] if record.probability is not None else []
    told += [("method", e.method), ("tensor", record.tensor)]
    return render.page_of_tokens(record.parts, title=title, facts=told, dark=dark)


def _features(e: Explanation) -> list[dict[str, Any]]:
    """Name, value and relevance of every named feature of a row."""
    found = []
    for name, names in e.names.items():
        if name in e.drawn and e.drawn[name][0].size == len(names):
            values, heats = e.inputs[name][0].ravel().tolist(), e.drawn[name][0].ravel().tolist()
            rows = zip(names, values, heats)
            found += [{"input": name, "name": n, "value": v, "relevance": r} for n, v, r in rows]
    return found


def shown(sample: Sample, e: Explanation, name: str) -> render.Picture:
    """What the model saw: the resized picture, or an array stretched to 0..255."""
    if sample.picture is not None and sample.pictured in (None, name):
        return sample.picture
    return render.as_picture(e.inputs[name][0], axis=(e.channel_axis[name] or 1) - 1)


def _enlarged(rgb: render.Picture) -> render.Picture:
    """Whole pixels as squares, as large as the overlay."""
    factor = max(1, round(_PIXELS / min(rgb.shape[:2])))
    return np.repeat(np.repeat(rgb, factor, axis=0), factor, axis=1)


def _panel(method: str, target: str | None) -> str:
    return method if target is None else f"{method}: {target}"


def _stems(named: Sequence[Named], several_targets: bool) -> list[str]:
    """The file name of each result without its suffix, all distinct."""
    stems: list[str] = []
    for one in named:
        stem = f"{one.method}-{slug(one.target)[:_STEM]}" if several_targets else one.method
        attempt, number = stem, 2
        while attempt in stems:
            attempt, number = f"{stem}-{number}", number + 1
        stems.append(attempt)
    return stems


def slug(text: str) -> str:
    """A name that every file system takes: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.") or "unnamed"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; OutputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {str(folder)!r} cannot be made: {error.strerror or error}; name another with --out."
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; OutputError where it cannot."""
    with draft(path) as whole:
        whole.write_bytes(content)
