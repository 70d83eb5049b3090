"""From values per sample to the table: mean, median, bootstrap interval, count and missing, per method and metric."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_explain.evaluation.measures import Column
from onnx_explain.evaluation.running import Run
from onnx_explain.files import draft
from onnx_explain.metrics import Interval, SegmentationCounts, interval
from onnx_explain.version import __version__

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Row:
    """One method under one metric. value, low, high: the metric's own statistic over the samples and its 95 % interval.

    mean, median: of the values per sample. count: samples behind them; missing: samples about which the metric says nothing;
    infinite: samples of the count with an infinite value.
    """

    metric: str
    method: str
    value: float
    low: float
    high: float
    mean: float
    median: float
    count: int
    missing: int
    infinite: int
    curve: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Summary:
    """All rows, best first per metric, and what belongs to them."""

    columns: list[Column]
    rows: list[Row]
    run: Run

    def of(self, metric: str) -> list[Row]:
        """The rows of one metric, best first."""
        return [r for r in self.rows if r.metric == metric]


def summarise(run: Run, *, resamples: int = 1000) -> Summary:
    """Read the parts, one metric in memory at a time, and sum them up."""
    columns = [c for m in run.measures for c in m.columns]
    rows: list[Row] = []
    for column in columns:
        gathered = _gathered(run, column)
        found = [_row(column, m, gathered[m], resamples) for m in run.methods]
        rows += sorted(found, key=lambda r, c=column: _place(c, r))  # type: ignore[misc]
    return Summary(columns, rows, run)


class _Gathered:
    """One method's values of one metric. series: what its statistic needs of a sample, NaN where the value is missing."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.series: list[Sequence[float] | None] = []
        self._sum, self._curves = np.zeros(0), 0

    def add(self, value: float | None, series: Sequence[float] | None, *, curve: bool) -> None:
        """One sample; of curves the sum alone is kept."""
        self.values.append(math.nan if value is None else value)
        if curve and series is not None:
            self._sum = np.asarray(series) if not self._curves else self._sum + series
            self._curves += 1
        elif not curve:
            self.series.append(None if value is None else series)

    @property
    def curve(self) -> tuple[float, ...]:
        """The mean curve, empty where there is none."""
        return tuple((self._sum / self._curves).tolist()) if self._curves else ()


def _gathered(run: Run, column: Column) -> dict[str, _Gathered]:
    found = {m: _Gathered() for m in run.methods}
    for part in run.journal.columns(column.name):
        for method, value, series in zip(part["method"], part["value"], part["series"]):
            found[method].add(value, series, curve=column.curve)
    return found


def _row(column: Column, method: str, gathered: _Gathered, resamples: int) -> Row:
    values = np.array(gathered.values, np.float64)
    main, statistic = _samples(column, values, gathered.series)
    found: Interval = interval(main, statistic=statistic, resamples=resamples)
    kept = values[~np.isnan(values)]
    return Row(
        column.name, method, found.value, found.low, found.high,
        float(kept.mean()) if len(kept) else math.nan, float(np.median(kept)) if len(kept) else math.nan,
        len(kept), len(values) - len(kept), int(np.isinf(kept).sum()), gathered.curve,
    )  # fmt: skip


def _samples(
    column: Column, values: Array, series: Sequence[Sequence[float] | None]
) -> tuple[Array, Callable[[Array], float] | None]:
    """What the bootstrap draws from, and what it computes."""
    if column.statistic == "mean":
        return values, None
    if column.statistic == "median":
        return values, lambda v: float(np.median(v))
    if column.statistic == "class mean":
        rows = [(v, *s) for v, s in zip(values, series) if s is not None]
        return np.array(rows, np.float64).reshape(-1, 2), class_mean
    counts = np.array([s for s in series if s is not None], np.float64).reshape(-1, 4)
    if column.statistic == "miou":
        return counts, lambda r: SegmentationCounts.of_rows(r).miou
    return counts, lambda r: SegmentationCounts.of_rows(r).pixel_accuracy


def class_mean(rows: Array) -> float:
    """The mean over the classes of the mean within a class; rows: (value, class)."""
    _, place = np.unique(rows[:, 1], return_inverse=True)
    counts = np.bincount(place)
    return float((np.bincount(place, rows[:, 0]) / counts).mean())


def _place(column: Column, row: Row) -> tuple[bool, float]:
    if column.better == "neither" or math.isnan(row.value):
        return math.isnan(row.value), 0.0
    return False, -row.value if column.better == "high" else row.value


# ------------------------------------------------------------------------------------------- files


def document(summary: Summary) -> dict[str, Any]:
    """The summary as plain data."""
    run, counts = summary.run, summary.run.counts
    plan = json.loads((run.journal.folder / "plan.json").read_bytes())
    return {
        "onnx_explain": __version__,
        "plan": plan,
        "samples": run.samples,
        "evaluated": run.samples - len({f.number for f in run.faults if f.number is not None}),
        "faults": [asdict(f) for f in run.faults],
        "left_out": run.left_out,
        "seconds": counts["seconds"],
        "busy": counts["busy"] / counts["seconds"] if counts["seconds"] else None,
        "forward_passes": int(counts["passes"]),
        "maps": int(counts["maps"]),
        "metrics": [asdict(c) for c in summary.columns],
        "results": [{k: v for k, v in asdict(r).items() if k != "curve" or v} for r in summary.rows],
    }


def save(summary: Summary, as_json: Callable[[Any], str]) -> list[Path]:
    """``summary.json``, ``summary.csv`` and ``summary.md`` in the run's folder."""
    folder = summary.run.journal.folder
    texts = {
        "summary.json": as_json(document(summary)) + "\n",
        "summary.csv": _csv(summary),
        "summary.md": markdown(summary.columns, summary.rows),
    }
    for name, text in texts.items():
        with draft(folder / name) as whole:
            whole.write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]


def _csv(summary: Summary) -> str:
    names = [n for n in Row.__dataclass_fields__ if n != "curve"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, n) for n in names] for row in summary.rows)
    return text.getvalue()


ARROWS: Mapping[str, str] = {"high": "higher is better", "low": "lower is better", "neither": "neither is better"}


def markdown(columns: Sequence[Column], rows: Sequence[Row], *, level: int = 2) -> str:
    """A table per metric, best first."""
    text: list[str] = []
    for column in columns:
        beside = "mean" if column.statistic == "median" else "median"
        text += [
            f"{'#' * level} {column.name}", "", f"{column.meaning}; {ARROWS[column.better]}.", "",
            f"| method | {_NAMES[column.statistic]} | 95 % interval | {beside} | samples | missing |",
            "|---|--:|--:|--:|--:|--:|",
        ]  # fmt: skip
        for r in (r for r in rows if r.metric == column.name):
            extra = f" ({r.infinite} infinite)" if r.infinite else ""
            text.append(
                f"| {r.method} | {told(r.value)} | {told(r.low)} … {told(r.high)} | {told(getattr(r, beside))} | {r.count}{extra} "
                f"| {r.missing} |"
            )
        text.append("")
    return "\n".join(text)


_NAMES = {
    "mean": "mean", "median": "median", "miou": "mIoU", "pixel accuracy": "pixel accuracy",
    "class mean": "mean over classes",
}  # fmt: skip


def told(value: float) -> str:
    """A figure in a table: three decimals, or powers of ten where those say nothing; a dash for none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
