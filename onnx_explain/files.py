"""Writing a file whole or not at all: a draft beside the target takes its place once it is complete and right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_explain.errors import OutputError


def target_path(path: str | os.PathLike[str]) -> Path:
    """The path as a place that can be written: OutputError for a folder, a missing folder, a device, or no path at all."""
    try:
        target = Path(path)
        os.fsencode(target)
        if "\0" in str(target):
            raise ValueError("it holds a null character")
        if target.is_dir():
            raise OutputError(f"{str(target)!r} cannot be written: it is a folder; name a file.")
        if target.exists() and not target.is_file():
            raise OutputError(f"{str(target)!r} cannot be written: it is not a regular file; name another one.")
        if not target.parent.is_dir():
            raise OutputError(f"{str(target)!r} cannot be written: its folder does not exist; make it first.")
    except (TypeError, ValueError, OSError) as error:
        raise OutputError(f"{str(path)[:200]!r} cannot be written: it is not a usable path ({error}).") from error
    return target


@contextmanager
def draft(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path in a scratch folder beside `path`; what was written there takes `path`'s place when the block ends well.

    Raises OutputError where it cannot be written. Whatever fails, nothing is left and an earlier file stays.
    """
    target = target_path(path)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:40]}.") as scratch:
            whole = Path(scratch) / target.name
            yield whole
            for extra in Path(scratch).iterdir():
                if extra != whole:
                    extra.replace(target.parent / extra.name)
            whole.replace(target)
    except OSError as error:
        raise OutputError(
            f"{str(target)!r} cannot be written: {error.strerror or error}; check permissions and free space."
        ) from error
