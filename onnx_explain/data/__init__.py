"""Reading what a user hands over: pictures, arrays, tables, texts, folders of them, and label files.

A picture is turned upright, resized and scaled to the model's input (:class:`Preprocessing`); an array is taken as it
is and checked against the input (:class:`InputSpec`); a text becomes ids
(:class:`Tokenizer`). Nothing here knows a model file, a method or a runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from onnx_explain.data.arrays import array_samples
from onnx_explain.data.labels import read_labels
from onnx_explain.data.pictures import picture_sample
from onnx_explain.data.places import ARRAY_SUFFIXES, PICTURE_SUFFIXES, TABLE_SUFFIXES, find_inputs, sample_names
from onnx_explain.data.preprocessing import PRESETS, Frame, Preprocessing, preprocessing
from onnx_explain.data.samples import Sample
from onnx_explain.data.specs import Array, InputSpec, Layout
from onnx_explain.data.tables import table_samples
from onnx_explain.data.tokenizer import Encoded, Tokenizer, read_lines
from onnx_explain.data.tokens import Text, Token

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
