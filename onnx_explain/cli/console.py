"""What the command line prints: tables, one JSON document, and one sentence per error."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from onnx_explain.errors import ExplainError

FAULT, INTERRUPTED = 2, 130  # exit codes


@contextmanager
def one_sentence_per_error() -> Iterator[None]:
    """Turn every error a user can meet into one sentence on stderr and an exit code."""
    try:
        yield
    except ExplainError as error:
        fail(str(error))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # `… | head`: the reader has seen enough, and typer ends the command in silence
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        fail(f"{place}{error.strerror or error}.")
    except MemoryError:
        fail("The memory does not suffice: use a smaller --batch-size, or explain fewer methods at once.")


def fail(message: str) -> NoReturn:
    """Print an error and leave with exit code 2."""
    typer.echo(typer.style("error:", fg="red", bold=True) + " " + harmless(" ".join(message.split())), err=True)
    raise typer.Exit(FAULT) from None


def harmless(text: str) -> str:
    """The text with a sign for every character that would steer the terminal: names in files may hold anything."""
    if text.isprintable():
        return text
    from onnx_explain.render import visible

    return visible(text)


def say(text: str = "") -> None:
    """Print a text on stdout, broken between words where the terminal ends; leading line breaks stay."""
    body = harmless(text.lstrip("\n"))
    typer.echo("\n" * (len(text) - len(body)), nl=False)
    width = terminal_width()
    lines = [body] if width is None else textwrap.wrap(body, width, break_long_words=False, break_on_hyphens=False)
    for line in lines or [""]:
        typer.echo(line)


def note(message: str) -> None:
    """Print on stderr what a person should look at, though nothing failed."""
    typer.echo(typer.style("note:", fg="yellow", bold=True) + f" {harmless(message)}", err=True)


@contextmanager
def progress(what: str, *, visible: bool) -> Iterator[Callable[..., None] | None]:
    """A progress bar with an estimate on stderr, for a person who watches; None where nobody does.

    It is moved on by (done, total or None, the samples so far where they are worth a word), and not shown for one step.
    """
    if not (visible and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    seen = TextColumn("{task.fields[seen]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), seen, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, seen="", visible=False)

        def advance(done: int, total: int | None, samples: int | None = None) -> None:
            told = "" if samples is None else counted(samples, "sample")
            bar.update(task, completed=done, total=total, seen=told, visible=total != 1)

        yield advance


def counted(count: int, noun: str) -> str:
    """``1 sample``, ``3 samples``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; numbers that JSON lacks (NaN, infinity) become null."""
    typer.echo(as_json(document))


def as_json(document: Any) -> str:
    """The document as JSON text, indented, in plain ASCII escapes only where UTF-8 cannot be written."""
    return json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str] | str],
    *,
    flexible: int,
    cut: bool = False,
    right: Sequence[int] = (),
) -> None:
    """Print a table, no wider than the terminal; a table that is not for a terminal is as wide as its cells.

    rows: a cell per column, or one text as a heading over the rows that follow. flexible: the column that gives way on
    a narrow terminal, by going on in the next line or, with `cut`, by an ellipsis. right: the columns of numbers.
    """
    rows = [_line(row) if isinstance(row, str) else [_line(cell) for cell in row] for row in rows]
    cells = [row for row in rows if not isinstance(row, str)]
    indent = "  " if len(cells) < len(rows) else ""
    widths = [max(_width(cell) for cell in column) for column in zip(columns, *cells)]
    available = terminal_width()
    if available is not None:
        others = sum(widths) - widths[flexible] + 2 * (len(widths) - 1) + len(indent)
        widths[flexible] = min(widths[flexible], max(12, available - others))
    _print_row(columns, widths, indent, flexible, False, right, bold=True)
    for row in rows:
        if isinstance(row, str):
            typer.echo(typer.style(row, bold=True))
        else:
            _print_row(row, widths, indent, flexible, cut, right)


def _line(text: str) -> str:
    """A cell is one line: a name with a line break would look like rows of the table."""
    return harmless(text).replace("\n", "␊").replace("\t", "␉")


def _print_row(
    row: Sequence[str],
    widths: Sequence[int],
    indent: str,
    flexible: int,
    cut: bool,
    right: Sequence[int],
    *,
    bold: bool = False,
) -> None:
    parts = _broken(row[flexible], widths[flexible], cut)
    for number, part in enumerate(parts):
        shown = [part if i == flexible else cell if number == 0 else "" for i, cell in enumerate(row)]
        padded = [_padded(cell, width, at_right=i in right) for i, (cell, width) in enumerate(zip(shown, widths))]
        line = (indent + "  ".join(padded)).rstrip()
        typer.echo(typer.style(line, bold=True) if bold else line)


def _broken(text: str, width: int, cut: bool) -> list[str]:
    if _width(text) <= width:
        return [text]
    if cut:
        return [text[: width - 1] + "…"]
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _padded(text: str, width: int, *, at_right: bool) -> str:
    space = " " * max(0, width - _width(text))
    return space + text if at_right else text + space


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def print_hanging(head: str, text: str, *, column: int = 31, muted: bool = False) -> None:
    """Print a term and its text beside it, from `column` on; the text goes on below itself, not below the term."""
    width = max(40, min(terminal_width() or 100, 100))
    head, lines = _line(head), textwrap.wrap(harmless(text), width - column, break_on_hyphens=False) or [""]
    typer.echo(typer.style(_padded(head, column - 1, at_right=False), bold=not muted) + " " + lines[0])
    for line in lines[1:]:
        typer.echo(" " * column + line)


def print_indented(text: str, indent: int = 4) -> None:
    """Print a text in faint letters, indented, within the terminal."""
    width = max(40, min(terminal_width() or 100, 100))
    space = " " * indent
    for line in textwrap.wrap(
        harmless(text), width, initial_indent=space, subsequent_indent=space, break_on_hyphens=False
    ):
        typer.echo(typer.style(line, dim=True))


def terminal_width() -> int | None:
    """The columns of the terminal, or of the variable COLUMNS; None where stdout is neither."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return None
    return max(40, shutil.get_terminal_size().columns)


def short(value: float) -> str:
    """A number in at most eight characters: ``12.35``, ``3.1e-07``, ``0``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def size(count: int) -> str:
    """A number of bytes for people: ``512 B``, ``1.2 MB``."""
    amount, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
