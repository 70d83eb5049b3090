"""Reading what a user hands over: pictures, arrays, tables, texts, folders of them, and label files.

A picture is turned upright, resized and scaled to the model's input (:class:`Preprocessing`); an array is taken as it
is and checked against the input (:class:`InputSpec`); a text becomes ids
(:class:`Tokenizer`). Nothing here knows a model file, a method or a runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from onnx_explain.data.arrays import array_samples
from onnx_explain.data.labels import read_labels
from onnx_explain.data.pictures import picture_sample
from onnx_explain.data.places import ARRAY_SUFFIXES, PICTURE_SUFFIXES, TABLE_SUFFIXES, find_inputs, sample_names
from onnx_explain.data.preprocessing import PRESETS, Frame, Preprocessing, preprocessing
from onnx_explain.data.samples import Sample
from onnx_explain.data.specs import Array, InputSpec, Layout, quoted
from onnx_explain.data.tables import table_samples
from onnx_explain.data.tokenizer import Encoded, Tokenizer, read_lines
from onnx_explain.data.tokens import Text, Token
from onnx_explain.errors import InputError, suggest

__all__ = [
    "ARRAY_SUFFIXES",
    "PICTURE_SUFFIXES",
    "PRESETS",
    "TABLE_SUFFIXES",
    "Array",
    "Encoded",
    "Frame",
    "InputSpec",
    "Layout",
    "Preprocessing",
    "Sample",
    "Text",
    "Token",
    "Tokenizer",
    "find_inputs",
    "load",
    "load_each",
    "preprocessing",
    "read_labels",
    "read_lines",
    "sample_names",
]


def load(
    path: str | Path,
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing,
    *,
    layout: Layout | None = None,
    name: str | None = None,
    features: Sequence[str] | None = None,
) -> Iterator[Sample]:
    """Return the samples of one file for a model with the inputs ``specs``; everything is checked before the first.

    A picture is one sample, for a model whose only input is image-like (``layout`` overrides what its shape says).
    A ``.npy`` is the array of a single input, with or without the batch axis; a ``.npz`` has one array per input, by
    the input's name (any name where model and file have one each; further arrays are left alone). Arrays are not
    preprocessed. Each element along a batch axis is a sample: ``name-0``, ``name-1``, …. A ``.csv`` or ``.tsv`` is rows of
    features, columns for several inputs, or a signal (:func:`table_samples`); ``features`` chooses or names its columns.

    Raises InputError: unreadable file, wrong shape, layout or dtype, NaN or infinite values.
    """
    path = Path(path)
    name = path.stem if name is None else name
    if path.suffix.lower() in TABLE_SUFFIXES:
        return iter(list(table_samples(path, specs, name, features)))
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        return iter([picture_sample(path, specs, preprocessing, layout, name)])
    if layout is not None:
        specs = [replace(s, stated_layout=layout) if len(s.shape) == 4 else s for s in specs]
    return array_samples(path, specs, name)


def load_each(
    files: Mapping[str, str | Path],
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing,
    *,
    layout: Layout | None = None,
    features: Sequence[str] | None = None,
) -> Iterator[Sample]:
    """Return the samples of a model of several inputs, a file for each: {input name: file}; all hold as many samples.

    They are named after the first file. ``features`` is for the tables among the files.

    Raises InputError: an input without a file, or as `load` does.
    """
    known = {s.name: s for s in specs}
    for name in files:
        if name not in known:
            raise InputError(f"The model has no input {name!r}.{suggest(name, known)}")
    missing = [n for n in known if n not in files]
    if missing:
        raise InputError(f"No file is given for the input {quoted(missing)}: add --input {missing[0]}=FILE.")
    found = {}
    for name, path in files.items():
        chosen = features if Path(path).suffix.lower() in TABLE_SUFFIXES else None
        found[name] = list(load(path, [known[name]], preprocessing, layout=layout, features=chosen))
    counts = {n: len(s) for n, s in found.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{n!r} {c}" for n, c in counts.items())
        raise InputError(f"The files hold different numbers of samples ({listed}): give each input as many.")
    return iter([_joined(dict(zip(found, row)), specs) for row in zip(*found.values())])


def _joined(row: Mapping[str, Sample], specs: Sequence[InputSpec]) -> Sample:
    """One sample of those of each input; the first picture among them is the one that is shown as it was."""
    first = next(iter(row.values()))
    pictured = next((n for n, s in row.items() if s.picture is not None), None)
    shown = first if pictured is None else row[pictured]
    names = {n: told for s in row.values() for n, told in s.names.items()}
    feeds = {s.name: row[s.name].feeds[s.name] for s in specs}
    return Sample(first.name, feeds, shown.picture, shown.frame, names=names, pictured=pictured)
