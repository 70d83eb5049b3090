"""What an evaluation leaves on disk while it runs: its plan, and its results in parts that are there whole or not at all.

A part holds the rows of consecutive samples of the plan, and says itself which: whoever is killed between two parts repeats
the samples after the last one, and counts none twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import OutputError, RuntimeMissing
from onnx_explain.evaluation.cases import Fault

PLAN, PARTS, LOCK = "plan.json", "parts", ".running"
_KEY = b"onnx_explain"


def arrow() -> Any:
    """`pyarrow`, with its Parquet module; RuntimeMissing names the extra."""
    try:
        pyarrow = import_module("pyarrow")
        import_module("pyarrow.parquet")
    except ImportError as error:
        raise RuntimeMissing(
            'Results are kept as Parquet, which needs pyarrow: pip install "onnx-explain[eval]".'
        ) from error
    return pyarrow


@dataclass
class Rows:
    """Results in columns: sample, name, method, metric, value (None: missing), series, target, label, predicted."""

    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {
            n: [] for n in ("sample", "name", "method", "metric", "value", "series", "target", "label", "predicted")
        }
    )

    def add(self, **row: Any) -> None:
        """One result."""
        for name, column in self.columns.items():
            column.append(row[name])

    def __len__(self) -> int:
        return len(self.columns["sample"])


@dataclass(frozen=True)
class Part:
    """A written part: the plan's samples `first` … `stop` - 1, what could not be evaluated, and what the model did."""

    path: Path
    first: int
    stop: int
    faults: tuple[Fault, ...]
    counts: Mapping[str, float]


class Journal:
    """The folder of one evaluation. plan: what makes two runs the same, as plain data.

    Raises OutputError: the folder holds another run, or files that are not an evaluation's.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self.folder, self._parts = folder, folder / PARTS
        written = json.loads(json.dumps(plan))
        file = folder / PLAN
        if file.is_file():
            self._same(file, written)
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} holds other files than an evaluation's; name a new folder with --out.")
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            if not file.is_file():
                _write(file, json.dumps(written, indent=2, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            raise OutputError(f"{folder}: the results cannot be written: {error.strerror or error}.") from error

    def _same(self, file: Path, plan: Mapping[str, Any]) -> None:
        try:
            before = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise OutputError(f"{file} is not readable, so nothing can be resumed; name a new folder.") from error
        differing = [k for k in plan if before.get(k) != plan[k]] if isinstance(before, dict) else ["plan"]
        if differing:
            told = ", ".join(differing)
            raise OutputError(
                f"{self.folder} holds another evaluation, which differs in {told}; name a new folder with --out, or repeat "
                "its command to resume it."
            )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else writes here meanwhile; OutputError where somebody does. A killed process holds nothing."""
        try:
            import fcntl
        except ImportError:  # a platform without it: two runs at once write the same parts, which are equal
            yield
            return
        with (self.folder / LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputError(f"{self.folder}: another evaluation is writing here; wait for its end.") from error
            for stale in self._parts.glob(".*"):  # what a killed run had not finished writing
                stale.unlink()
            yield

    def parts(self) -> list[Part]:
        """Every part, in order; OutputError where one is damaged or two overlap."""
        pq = arrow().parquet
        found: list[Part] = []
        for path in sorted(self._parts.glob("*.parquet")):
            try:
                notes = json.loads(pq.read_schema(path).metadata[_KEY])
                faults = tuple(Fault(*f) for f in notes["faults"])
                found.append(Part(path, notes["first"], notes["stop"], faults, notes["counts"]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise OutputError(f"{path} is damaged; delete it, and its samples are evaluated again.") from error
            if len(found) > 1 and found[-1].first < found[-2].stop:
                raise OutputError(f"{path} and {found[-2].path.name} hold the same samples; delete one of them.")
        return found

    def missing(self, total: int) -> list[range]:
        """The places of the plan that no part holds."""
        gaps, reached = [], 0
        for part in self.parts():
            if part.first > reached:
                gaps.append(range(reached, part.first))
            reached = part.stop
        return [*gaps, range(reached, total)] if reached < total else gaps

    def write(self, first: int, stop: int, rows: Rows, faults: Sequence[Fault], counts: Mapping[str, float]) -> None:
        """Write one part; when this returns it is on disk."""
        pa = arrow()
        notes = {
            "first": first, "stop": stop, "counts": dict(counts),
            "faults": [[f.number, f.name, f.reason] for f in faults],
        }  # fmt: skip
        word = pa.dictionary(pa.int32(), pa.string())
        types = {
            "sample": pa.int64(), "name": pa.string(), "method": word, "metric": word, "value": pa.float64(),
            "series": pa.list_(pa.float64()), "target": pa.int64(), "label": pa.int64(), "predicted": pa.int64(),
        }  # fmt: skip
        schema = pa.schema(list(types.items()), metadata={_KEY: json.dumps(notes).encode()})
        arrays = [pa.array(rows.columns[n], type=pa.string() if t == word else t) for n, t in types.items()]
        arrays = [a.dictionary_encode().cast(t) if t == word else a for a, t in zip(arrays, types.values())]
        table = pa.Table.from_arrays(arrays, schema=schema)
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(table, sink, compression="zstd")
        try:
            _write(self._parts / f"{first:010d}-{stop:010d}.parquet", sink.getvalue().to_pybytes())
        except OSError as error:
            raise OutputError(f"{self.folder}: the results cannot be written: {error.strerror or error}.") from error

    def columns(self, metric: str) -> Iterator[dict[str, Any]]:
        """The rows of one metric, a table of plain lists per part."""
        pq = arrow().parquet
        for path in sorted(self._parts.glob("*.parquet")):
            table = pq.read_table(
                path,
                columns=["sample", "method", "value", "series"],
                filters=[("metric", "=", metric)],
            )
            yield table.to_pydict()


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all, even if the power goes."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def value_of(value: float) -> float | None:
    """A value as it is kept: NaN is missing."""
    return None if np.isnan(value) else float(value)


def series_of(series: npt.NDArray[Any] | None, row: int) -> list[float] | None:
    """What a value is made of, as it is kept; a curve that is missing is none."""
    if series is None:
        return None
    values = np.asarray(series[row], np.float64)
    return None if np.isnan(values).any() else values.tolist()
