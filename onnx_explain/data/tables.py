"""``.csv`` and ``.tsv`` files as samples: a row of features each, one column per input, or one signal.

The first row is a header where one of its cells is no number, or where they count 0, 1, 2, …; a column without a name in
front (the rows' numbers) is left out. Separators are read off it: comma, semicolon or tab; with
semicolons a comma in a number is its decimal point.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_explain.data.arrays import samples_of
from onnx_explain.data.samples import Sample
from onnx_explain.data.specs import Array, InputSpec, is_float, quoted, reason
from onnx_explain.errors import InputError, suggest

_SEPARATORS = ",;\t"
_MOST_CELL = 1 << 20


@dataclass(frozen=True)
class _Table:
    """The cells of a file, row by row; `lines`: where each row ends in the file; `names`: the header, where there is one."""

    path: Path
    names: tuple[str, ...] | None
    rows: list[list[str]]
    lines: list[int]
    decimal_comma: bool

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.rows[0])

    def named(self, column: int) -> str:
        """A column in a sentence."""
        return f"column {self.names[column]!r}" if self.names else f"column {column + 1}"

    def numbers(self, columns: Sequence[int]) -> Array:
        """These columns as float64 [rows, columns]; InputError says where something is no number."""
        return np.array([[self._number(r, c) for c in columns] for r in range(len(self.rows))], dtype=np.float64)

    def texts(self, column: int) -> Array:
        """One column as it stands."""
        return np.array([row[column] for row in self.rows], dtype=object)

    def _number(self, row: int, column: int) -> float:
        value = _number(self.rows[row][column], self.decimal_comma)
        if value is None or not math.isfinite(value):
            cell, where = self.rows[row][column].strip(), f"{self.path}: line {self.lines[row]}, {self.named(column)}"
            if not cell:
                raise InputError(f"{where} is empty: fill the gap, or leave the row out.")
            raise InputError(f"{where} holds {cell[:40]!r}, which is not a finite number.")
        return value


def table_samples(
    path: Path, specs: Sequence[InputSpec], name: str, features: Sequence[str] | None = None
) -> Iterator[Sample]:
    """The samples of a table.

    Several inputs: each takes the column of its name; one that is left takes the other columns, in their order. One input
    [N, F]: a row is a sample, and its columns are the features. One input [N, C, T] or [N, T, C]: the table is one signal, a
    column per channel, or per time where only that fits; of one channel a row may be a sample. ``features``: the columns to
    take, by the header's names, or names for the columns of a table without one.

    Raises InputError: an unreadable file, a cell that is no number, columns that do not fit, rank 4 or more.
    """
    table = _chosen(_read(path), features)
    if len(specs) > 1:
        arrays, names = _by_column(table, specs)
    elif len(specs[0].shape) == 3:
        arrays, names = {specs[0].name: _signal(table, specs[0])}, {}
        names = {specs[0].name: table.names} if table.names and len(arrays[specs[0].name]) == 1 else {}
    elif len(specs[0].shape) in (1, 2):
        arrays, names = _features(table, specs[0])
    else:
        raise InputError(f"{path}: a table does not fit input {specs[0].name!r}, {specs[0]}: give an .npy array.")
    yield from samples_of(path, specs, arrays, name, names)


def _features(table: _Table, spec: InputSpec) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
    names = {spec.name: table.names} if table.names else {}
    if len(spec.shape) == 1:
        if table.width != 1:
            raise InputError(
                f"{table.path}: {table.width} columns, but input {spec.name!r} takes one value per sample ({spec})"
                f"{_choose(table)}."
            )
        return {spec.name: _column(table, [0], spec)[:, 0]}, names
    wanted = spec.shape[1]
    if wanted not in (None, table.width):
        if wanted == len(table.rows) and table.width == 1:  # one sample, a line per feature
            return {spec.name: _column(table, [0], spec).T}, {}
        raise InputError(
            f"{table.path}: {table.width} columns, but input {spec.name!r} takes {wanted} features ({spec}){_choose(table)}."
        )
    return {spec.name: _column(table, range(table.width), spec)}, names


def _choose(table: _Table) -> str:
    return ": choose columns by --features a,b,c" if table.names else ""


def _by_column(table: _Table, specs: Sequence[InputSpec]) -> tuple[dict[str, Array], dict[str, tuple[str, ...]]]:
    if table.names is None:
        raise InputError(
            f"{table.path}: the model has several inputs ({quoted(s.name for s in specs)}), so the first line must name the "
            "columns."
        )
    places = {_plain(n): i for i, n in enumerate(table.names)}
    if len(places) < table.width:
        raise InputError(f"{table.path}: two columns have one name; rename one of them.")
    found = {s.name: places[_plain(s.name)] for s in specs if _plain(s.name) in places}
    left = [s for s in specs if s.name not in found]
    others = [i for i in range(table.width) if i not in found.values()]
    if len(left) > 1 or (left and not others):
        raise InputError(
            f"{table.path}: there is no column for the input {quoted(s.name for s in left)}."
            f"{suggest(left[0].name, [table.names[i] for i in others])}"
        )
    columns = {n: [i] for n, i in found.items()} | {s.name: others for s in left}
    arrays = {}
    for spec in specs:
        wanted = math.prod(d or 1 for d in spec.shape[1:]) if None not in spec.shape[1:] else len(columns[spec.name])
        if wanted != len(columns[spec.name]):
            raise InputError(
                f"{table.path}: {len(columns[spec.name])} column(s) for input {spec.name!r}, which takes {wanted} values per "
                f"sample ({spec})."
            )
        values = _column(table, columns[spec.name], spec)
        sizes = [d or 1 for d in spec.shape[1:]] if None not in spec.shape[1:] else [values.shape[1]]
        arrays[spec.name] = values.reshape(len(values), *sizes) if len(spec.shape) > 1 else values[:, 0]
    return arrays, {n: tuple(table.names[i] for i in places_) for n, places_ in columns.items()}


def _column(table: _Table, columns: Sequence[int], spec: InputSpec) -> Array:
    """Columns in the kind of the input: numbers, whole numbers, or texts."""
    if spec.dtype.kind == "O":
        return np.stack([table.texts(c) for c in columns], axis=1)
    values = table.numbers(columns)
    if is_float(spec.dtype):
        return values
    rounded = np.rint(values)
    if not np.array_equal(rounded, values) or np.abs(values).max(initial=0) > 2**53:
        row, place = (int(i) for i in np.argwhere((rounded != values) | (np.abs(values) > 2**53))[0])
        raise InputError(
            f"{table.path}: line {table.lines[row]}, {table.named(columns[place])} holds {values[row, place]:g}, but input "
            f"{spec.name!r} takes {spec.dtype}."
        )
    return rounded.astype(np.int64)


def _signal(table: _Table, spec: InputSpec) -> Array:
    """[1, ...] of one signal, or [rows, ...] of a signal of one channel per row."""
    values = table.numbers(range(table.width))
    first, second = spec.shape[1:]
    channels = spec.channels_axis or 1
    rows, columns = values.shape
    upright = first in (None, rows) and second in (None, columns)
    turned = first in (None, columns) and second in (None, rows)
    if upright and turned:  # a line per time, a column per channel
        turned = channels == 1
    if turned:
        return values.T[None]
    if upright:
        return values[None]
    if spec.shape[channels] == 1 and spec.shape[3 - channels] in (None, columns):
        return np.expand_dims(values, channels)
    raise InputError(
        f"{table.path}: {rows} lines of {columns} columns do not fit the signal that input {spec.name!r} takes ({spec})."
    )


# ------------------------------------------------------------------------------------------------------- reading


def _read(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the table cannot be read as UTF-8 text: {reason(error)}.") from error
    if "\0" in text:
        raise InputError(f"{path}: not a table of text; it holds null characters.")
    separator = "\t" if path.suffix.lower() == ".tsv" else _separator(text)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
    rows, lines = [], []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is not CSV: {reason(error)}.") from error
    comma = separator == ";"
    names = tuple(c.strip() for c in rows[0]) if rows and _is_header(rows[0], comma) else None
    if names:
        rows, lines = rows[1:], lines[1:]
    if not rows:
        raise InputError(f"{path}: the table is empty{' below its header' if names else ''}.")
    width = len(names) if names else len(rows[0])
    for row, line in zip(rows, lines):
        if len(row) != width:
            raise InputError(f"{path}: line {line} has {len(row)} columns, but the first has {width}.")
    if names and not names[0] and width > 1:  # the numbers of the rows, as data frames write them
        names, rows = names[1:], [row[1:] for row in rows]
    return _Table(path, names, rows, lines, comma)


def _is_header(row: Sequence[str], decimal_comma: bool) -> bool:
    """Whether a cell is no number; or the cells count from 0, as data frames name columns that have no name."""
    counted = len(row) > 2 and [c.strip() for c in row] == [str(i) for i in range(len(row))]
    return counted or any(_number(c, decimal_comma) is None for c in row)


def _separator(text: str) -> str:
    """The separator that makes the first line's cells, quoted ones left alone; of equals the first of comma, semicolon, tab."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    # one column whose decimal point is a comma is a file without a separator no more than "a,b" is
    return max(_SEPARATORS, key=lambda s: (bare.count(s) > 0 and s != ",", bare.count(s)))


def _number(cell: str, decimal_comma: bool) -> float | None:
    text = cell.strip()
    if len(text) > _MOST_CELL or "_" in text:
        return None
    try:
        return float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        return None


def _chosen(table: _Table, features: Sequence[str] | None) -> _Table:
    """The columns asked for, or the table under other names."""
    if not features:
        return table
    if table.names is None:
        if len(features) != table.width:
            raise InputError(f"{table.path}: {len(features)} names of features for {table.width} columns.")
        return _Table(table.path, tuple(features), table.rows, table.lines, table.decimal_comma)
    places: Mapping[str, Any] = {n: i for i, n in enumerate(table.names)}
    for name in features:
        if name not in places:
            raise InputError(f"{table.path}: there is no column {name!r}.{suggest(name, places)}")
    columns = [places[n] for n in features]
    rows = [[row[c] for c in columns] for row in table.rows]
    return _Table(table.path, tuple(features), rows, table.lines, table.decimal_comma)


def _plain(name: str) -> str:
    """A name as exporters write it: letters, digits and underscores."""
    return re.sub(r"[\W_]+", "_", name).strip("_").lower()
