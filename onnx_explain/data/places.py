"""Which files the arguments of a command name, and what their results are called. Nothing is opened here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from onnx_explain.data.specs import reason
from onnx_explain.errors import InputError

PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif", ".ppm", ".pgm"}
)
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
TABLE_SUFFIXES = frozenset({".csv", ".tsv"})


def find_inputs(arguments: Sequence[str | Path], *, more: frozenset[str] = frozenset()) -> list[Path]:
    """Return the files that ``arguments`` (files, folders, globs) name: in their order, each file once.

    A folder or a glob gives its pictures, arrays and tables (by suffix), naturally sorted (2 before 10), without hidden files
    and without subfolders; a file that is named itself is taken whatever its suffix. ``more``: further
    suffixes that count.

    Raises InputError: a path that does not exist or cannot be read, or nothing found.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        for path in _expand(Path(argument), more):
            found.setdefault(path.resolve(), path)
    if not found:
        raise InputError(
            "No input was given: name pictures, arrays (.npy, .npz), tables (.csv, .tsv), folders or globs."
        )
    return list(found.values())


def _expand(path: Path, more: frozenset[str]) -> list[Path]:
    try:
        if path.is_dir():
            candidates, what = list(path.iterdir()), "folder"
        elif path.exists():
            return [path]
        elif any(c in str(path) for c in "*?["):
            anchor = Path(path.anchor)
            candidates, what = list(anchor.glob(str(path.relative_to(anchor)))), "pattern"
        else:
            raise InputError(f"The input {str(path)!r} does not exist.")
        known = PICTURE_SUFFIXES | ARRAY_SUFFIXES | TABLE_SUFFIXES | more
        files = [p for p in candidates if p.suffix.lower() in known and p.name[0] != "." and p.is_file()]
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"The input {str(path)!r} cannot be read: {reason(error)}.") from error
    if not files:
        raise InputError(f"The {what} {str(path)!r} holds no picture, array (.npy, .npz) or table (.csv, .tsv).")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[str | int, ...]]:
    # re.split with a group alternates text and digits, so that equal positions compare like with like
    pieces = re.split(r"(\d+)", str(path))
    return [(int(p),) if i % 2 else (p.lower(), p) for i, p in enumerate(pieces)]


def sample_names(paths: Sequence[Path]) -> list[str]:
    """Return one distinct name per path, fit for result files: the stem, or the file's name where stems clash."""
    stems = [p.stem for p in paths]
    names = [p.stem if stems.count(p.stem) == 1 else p.name for p in paths]
    taken: set[str] = set()
    for i, name in enumerate(names):
        attempt, number = name, 2
        while attempt in taken or (number > 2 and attempt in names):
            attempt, number = f"{name}-{number}", number + 1
        names[i] = attempt
        taken.add(attempt)
    return names
