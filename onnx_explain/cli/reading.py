"""What a command is given to explain, as samples that fit the model: files, texts, and one file per input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from onnx_explain.data import (
    Array,
    InputSpec,
    Layout,
    Preprocessing,
    Sample,
    Tokenizer,
    find_inputs,
    load,
    load_each,
    read_lines,
    sample_names,
)
from onnx_explain.errors import ExplainError, InputError
from onnx_explain.explainer import Explainer, Explainers
from onnx_explain.path import channel_axis

TEXT, TEXT_SUFFIXES = "text", frozenset({".txt"})
Item = tuple[int, Path, Sample]


@dataclass(frozen=True)
class Given:
    """What was given: files; texts, with the tokenizer that makes them into ids; one file per input.

    feed: what inputs take that do not say it by their names. most: the most tokens of a text. features: names of features or
    channels, or the columns of a table to take. skip_bad: files that cannot be read are noted in `skipped` and left out.
    """

    files: Sequence[str | Path] = ()
    texts: Sequence[str] = ()
    tokenizer: Path | None = None
    feed: Mapping[str, str] = field(default_factory=dict)
    most: int | None = None
    each: Mapping[str, Path] = field(default_factory=dict)
    features: Sequence[str] = ()
    skip_bad: bool = False
    skipped: list[str] = field(default_factory=list)

    def paths(self) -> list[Path]:
        """The files to explain, found; InputError where nothing was given, or things that do not go together."""
        if self.each and (self.files or self.texts):
            raise InputError(
                "Give either one file per input (--input NAME=FILE), or files and texts that fill them all."
            )
        if self.texts and self.tokenizer is None:
            raise InputError("A text needs the model's tokenizer: name its tokenizer.json by --tokenizer.")
        if self.each:
            return []
        if not (self.files or self.texts):
            raise InputError(
                "No input was given: name files or folders, or give --text, or --input NAME=FILE for each input."
            )
        suffixes = TEXT_SUFFIXES if self.tokenizer is not None else frozenset[str]()
        return find_inputs(self.files, more=suffixes) if self.files or not self.texts else []

    def read(self) -> list[Path]:
        """Every file that is read, so that none is written over."""
        return [*self.paths(), *self.each.values(), *([self.tokenizer] if self.tokenizer else [])]

    def samples(
        self, specs: Sequence[InputSpec], preprocessing: Preprocessing, layout: Layout | None
    ) -> Iterator[Item]:
        """(place, source, sample) of everything given, each under a name that no other has (on any file system: case does
        not count).
        """
        paths = self.paths()
        names = sample_names(paths)
        taken: set[str] = set()
        reserved = {name.casefold() for name in names}
        for i, path, sample in self._found(paths, names, specs, preprocessing, layout):
            attempt, number = sample.name, 2
            while attempt.casefold() in taken or (attempt != sample.name and attempt.casefold() in reserved):
                attempt, number = f"{sample.name}-{number}", number + 1
            taken.add(attempt.casefold())
            yield i, path, replace(sample, name=attempt)

    def _found(
        self,
        paths: Sequence[Path],
        names: Sequence[str],
        specs: Sequence[InputSpec],
        preprocessing: Preprocessing,
        layout: Layout | None,
    ) -> Iterator[Item]:
        tokenizer = None
        if self.tokenizer is not None:
            tokenizer = Tokenizer(self.tokenizer, specs, feed=self.feed, most=self.most)
            yield from ((0, Path(TEXT), s) for s in tokenizer.samples(self.texts, TEXT))
        if self.each:
            found = load_each(self.each, specs, preprocessing, layout=layout, features=self.features or None)
            yield from ((0, next(iter(self.each.values())), s) for s in found)
        for i, (path, name) in enumerate(zip(paths, names)):
            if tokenizer is not None and path.suffix.lower() in TEXT_SUFFIXES:
                yield from ((i, path, s) for s in tokenizer.samples(read_lines(path), name))
                continue
            try:
                for sample in load(
                    path, specs, preprocessing, layout=layout, name=name, features=self.features or None
                ):
                    yield i, path, self._named(sample, specs)
            except InputError as error:
                if not self.skip_bad:
                    more = " (--skip-bad leaves such files out.)" if len(paths) > 1 else ""
                    raise InputError(f"{error}{more}") from error
                self.skipped.append(str(path))
                if len(self.skipped) == len(paths):
                    raise InputError(f"None of the {len(paths)} files can be read; the last: {error}") from error

    def _named(self, sample: Sample, specs: Sequence[InputSpec]) -> Sample:
        """The sample of an array with the names given, for the one input that has as many features or channels."""
        if not self.features or sample.names:
            return sample
        sizes = {s.name: sample.feeds[s.name].shape for s in specs}
        axes = {s.name: s.channels_axis or 1 for s in specs}
        fitting = [n for n, s in sizes.items() if len(s) in (2, 3) and s[axes[n]] == len(self.features)]
        if not fitting:
            told = ", ".join(f"{n!r} {list(s)}" for n, s in sizes.items())
            raise InputError(f"{len(self.features)} names of features or channels fit none of the inputs: {told}.")
        return replace(sample, names={fitting[0]: tuple(self.features)})


def input_specs(
    explainer: Explainer | Explainers, shapes: Mapping[str, Sequence[int | None]], layout: Layout | None
) -> list[InputSpec]:
    """The model's inputs as data is fitted to them; the graph says where the channels are, where the shape does not."""
    unknown = [v.name or "" for v in explainer.source_model.graph.inputs if v.shape is None]
    specs = []
    for name, (shape, dtype) in explainer.inputs.items():
        if name in unknown and name not in shapes:
            raise InputError(
                f"The file does not say the shape of input {name!r}; name it: --input-shape {name}:[N,3,224,224]."
            )
        given = shapes.get(name, ())
        sizes = tuple(s if s is not None else g for s, g in zip_longest(shape, given)) if shape or given else shape
        spec = InputSpec(name, sizes, dtype)
        if len(sizes) == 3 or (layout is None and len(sizes) == 4 and spec.layout is None):
            axis = _channels(explainer, name, sizes)
            stated: dict[int | None, Layout] = {1: "NCHW", 3: "NHWC"}
            spec = (
                replace(spec, channels_axis=axis) if len(sizes) == 3 else replace(spec, stated_layout=stated.get(axis))
            )
        specs.append(spec)
    return specs


def _channels(explainer: Explainer | Explainers, name: str, sizes: Sequence[int | None]) -> int | None:
    """Where the graph has the channels of an input; None where the file, as it is, does not say it."""
    try:
        return channel_axis(explainer.source_model, name, [s or 0 for s in sizes])
    except ExplainError:
        return None


def feeds_of(samples: Sequence[Sample], specs: Sequence[InputSpec]) -> tuple[dict[str, Array], int]:
    """The samples as one batch, and its size: a model of fixed batch gets its last batch filled up with the last sample."""
    fixed = next((s.shape[0] for s in specs if s.shape and s.shape[0] is not None), 1) or 1
    filled = [*samples, *list(samples[-1:]) * (-len(samples) % fixed)]
    feeds: dict[str, Array] = {
        s.name: np.concatenate([f.feeds[s.name] for f in filled]) if s.shape else samples[0].feeds[s.name]
        for s in specs
    }
    return feeds, len(filled)
