"""Where a fit's samples come from: files, arrays in memory, or an iterator; one at a time, with a place to go on from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from onnx_explain.data import InputSpec, Layout, Preprocessing, load
from onnx_explain.errors import InputError

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
Place = tuple[int, int]  # file (or 0) and sample in it: where the next sample is


@dataclass(frozen=True)
class One:
    """A sample, [1, …] per input, and the place behind it."""

    feeds: Feeds
    after: Place


class Samples(Protocol):
    """Samples in an order that never changes."""

    skipped: list[str]

    @property
    def identity(self) -> str:
        """What tells this data from other data."""

    @property
    def repeatable(self) -> bool:
        """Whether it can be gone through again."""

    def stream(self, start: Place = (0, 0)) -> Iterator[One]:
        """The samples from a place on."""

    def total(self) -> int | None:
        """How many steps `Place` counts, for a progress bar: files, or samples."""


@dataclass
class Files:
    """Pictures and arrays on disk. skip_bad: unreadable files are noted in `skipped` and left out."""

    paths: Sequence[Path]
    specs: Sequence[InputSpec]
    preprocessing: Preprocessing
    layout: Layout | None = None
    skip_bad: bool = False
    skipped: list[str] = field(default_factory=list)
    repeatable: bool = True

    @property
    def identity(self) -> str:
        """Names, sizes and times of the files, and how they are read."""
        digest = hashlib.sha256(repr((self.preprocessing, self.layout, list(self.specs))).encode())
        for path in self.paths:
            try:
                stat = path.stat()
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
            digest.update(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def stream(self, start: Place = (0, 0)) -> Iterator[One]:
        """File by file; InputError names the file that cannot be read."""
        for number in range(start[0], len(self.paths)):
            begin = start[1] if number == start[0] else 0
            path = self.paths[number]
            try:
                found = load(path, self.specs, self.preprocessing, layout=self.layout)
                waiting: One | None = None
                for index, sample in enumerate(found):
                    if waiting is not None:
                        yield waiting
                    waiting = One(sample.feeds, (number, index + 1)) if index >= begin else None
            except InputError as error:
                if not self.skip_bad:
                    raise InputError(f"{error} (--skip-bad leaves such files out.)") from error
                if str(path) not in self.skipped:
                    self.skipped.append(str(path))
                continue
            if waiting is not None:
                yield One(waiting.feeds, (number + 1, 0))

    def total(self) -> int:
        """How many files there are."""
        return len(self.paths)


@dataclass
class Arrays:
    """Arrays in memory, axis 0 counting samples."""

    feeds: Mapping[str, Array]
    skipped: list[str] = field(default_factory=list)
    repeatable: bool = True

    @property
    def identity(self) -> str:
        """The bytes themselves."""
        digest = hashlib.sha256()
        for name, array in self.feeds.items():
            digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
            digest.update(
                np.ascontiguousarray(array).data if array.dtype.kind != "O" else repr(array.tolist()).encode()
            )
        return digest.hexdigest()

    def stream(self, start: Place = (0, 0)) -> Iterator[One]:
        """Row by row."""
        for i in range(start[0], self.total()):
            yield One({n: a[i : i + 1] if a.ndim else a for n, a in self.feeds.items()}, (i + 1, 0))

    def total(self) -> int:
        """How many samples there are."""
        return min((len(a) for a in self.feeds.values() if a.ndim), default=1)


@dataclass
class Stream:
    """What an iterable yields: batches [N, …] (or {input: batch}). `make` begins it anew; `check` makes feeds of a batch.

    An iterator can be gone through once; a function that returns one, or a sequence, as often as wanted.
    """

    make: Callable[[], Iterable[Any]]
    check: Callable[[Any], Feeds]
    identity: str
    repeatable: bool
    skipped: list[str] = field(default_factory=list)

    def stream(self, start: Place = (0, 0)) -> Iterator[One]:
        """Sample by sample; what lies before `start` is drawn and dropped."""
        done = 0
        for batch in self.make():
            feeds = self.check(batch)
            rows = min((len(a) for a in feeds.values() if a.ndim), default=1)
            for i in range(rows):
                done += 1
                if done > start[0]:
                    yield One({n: a[i : i + 1] if a.ndim else a for n, a in feeds.items()}, (done, 0))

    def total(self) -> None:
        """Not known."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples of equal shapes that run at once: `real` of them, the rest repeats the last to fill a fixed batch."""

    feeds: Feeds
    real: int
    after: Place

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The shape of one sample per input."""
        return tuple((n, a.shape[1:]) for n, a in sorted(self.feeds.items()))

    @property
    def held(self) -> int:
        """How many samples run."""
        return max((len(a) for a in self.feeds.values() if a.ndim), default=1)


def chunks(samples: Iterator[One], size: int, fixed: int | None) -> Iterator[Chunk]:
    """Up to `size` samples each, in order. fixed: the batch that the model insists on; `size` is a multiple of it."""
    held: list[One] = []
    for one in samples:
        if held and shapes_of(one) != shapes_of(held[0]):
            yield chunk_of(held, fixed)
            held = []
        held.append(one)
        if len(held) == size:
            yield chunk_of(held, fixed)
            held = []
    if held:
        yield chunk_of(held, fixed)


def shapes_of(one: One) -> list[tuple[int, ...]]:
    """The shape of every input."""
    return [a.shape for a in one.feeds.values()]


def chunk_of(held: Sequence[One], fixed: int | None) -> Chunk:
    """Samples of equal shapes as one chunk."""
    filled = [*held] + [held[-1]] * (-len(held) % fixed if fixed else 0)
    feeds = {n: np.concatenate([o.feeds[n] for o in filled]) if a.ndim else a for n, a in held[0].feeds.items()}
    return Chunk(feeds, len(held), held[-1].after)


def samples_of(data: Any, check: Callable[[Any], Feeds]) -> Samples:
    """The samples of arrays, {input: array}, a function that returns an iterable, a sequence of batches or an iterator."""
    if isinstance(data, (np.ndarray, Mapping)):
        return Arrays(check(data))
    if callable(data):
        return Stream(data, check, "function", repeatable=True)
    if isinstance(data, Sequence) and not isinstance(data, (str, bytes)):
        return Stream(lambda: data, check, f"sequence of {len(data)}", repeatable=True)
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return Stream(lambda: data, check, "iterator", repeatable=False)
    raise InputError(
        f"The data must be an array, {{input: array}}, an iterable of them, files or a folder, not {type(data).__name__}."
    )


def are_files(data: Any) -> bool:
    """Whether data names files: a path, or several."""
    if isinstance(data, (str, os.PathLike)):
        return True
    return isinstance(data, Sequence) and bool(data) and all(isinstance(d, (str, os.PathLike)) for d in data)
