"""Rows of an ``.npz`` one after another, so that a file larger than memory passes. Nothing here knows what the arrays mean."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError

Array = npt.NDArray[Any]
_FAULTS = (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Column:
    """One array of the file. shape: with the rows first."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool


class Archive:
    """An ``.npz`` file read row by row. Raises InputError: damaged, or an array of Python objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as whole:
                names = [n for n in whole.namelist() if n.endswith(".npy")]
                self.columns = {n[:-4]: self._column(whole, n) for n in names}
        except _FAULTS as error:
            raise self._broken(error) from error

    def rows(self, name: str) -> Iterator[Array]:
        """Every row of an array, in order, one in memory (all of it where it is stored column by column)."""
        column = self.columns[name]
        try:
            with zipfile.ZipFile(self.path) as whole, whole.open(f"{name}.npy") as file:
                if column.fortran and len(column.shape) > 1:
                    yield from np.load(file, allow_pickle=False)
                    return
                _header(file)
                size = column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))
                for _ in range(column.shape[0]):
                    data = file.read(size)
                    if len(data) != size:
                        raise ValueError("it ends in the middle of a row")
                    yield np.frombuffer(data, column.dtype).reshape(column.shape[1:])
        except _FAULTS as error:
            raise self._broken(error) from error

    def _column(self, whole: zipfile.ZipFile, name: str) -> Column:
        with whole.open(name) as file:
            shape, fortran, dtype = _header(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects rather than numbers")
        return Column(name[:-4], shape, dtype, fortran)

    def _broken(self, error: BaseException) -> InputError:
        if isinstance(error, InputError):
            return error
        said = " ".join(str(error).split()).rstrip(".")[:160] or type(error).__name__
        return InputError(f"{self.path}: not a readable .npz file: {said}.")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype; the file stands at the data after it."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format {version} is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(int(d) for d in shape), bool(fortran), dtype
