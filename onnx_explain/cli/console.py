"""What the command line prints: tables, one JSON document, and one sentence per error."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from onnx_explain.errors import ExplainError

if TYPE_CHECKING:
    from rich.console import Console

FAULT, INTERRUPTED = 2, 130  # exit codes
_PIPED_WIDTH = 200


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
    typer.echo(typer.style("error:", fg="red", bold=True) + " " + " ".join(message.split()), err=True)
    raise typer.Exit(FAULT) from None


def say(text: str = "") -> None:
    """Print a line on stdout."""
    typer.echo(text)


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


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print a table; a cell too long for the terminal goes on in the next line, a piped one never does.

    columns: their headings. right: columns of numbers, kept on one line at the right.
    """
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", no_wrap=i in right, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def console(*, stderr: bool = False) -> Console:
    """A console that prints text as it stands: no markup, no emoji, colours on a terminal alone."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(
        stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=False, width=_PIPED_WIDTH if piped else None
    )


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
