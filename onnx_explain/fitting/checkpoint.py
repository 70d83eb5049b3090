"""What a fit leaves on disk while it runs, so that a killed run goes on where it stood with the same result.

A folder with one safetensors file per group of layers: its sums, and in the metadata how far they go and which run they
belong to. Each file is replaced whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnx_explain.errors import InputError, OutputError
from onnx_explain.files import draft
from onnx_explain.patterns.storage import read_tensors, write_tensors

Array = npt.NDArray[Any]
_KEY = "onnx_explain.checkpoint"


@dataclass(frozen=True)
class State:
    """How far one group has come: the next sample's place, samples so far, files skipped, and whether it is finished."""

    place: tuple[int, int] = (0, 0)
    samples: int = 0
    skipped: tuple[str, ...] = ()
    finished: bool = False


class Checkpoints:
    """The checkpoints of one run in one folder. run: what identifies it, as plain data; another run's are refused."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder, self.run = folder, dict(run)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"The checkpoint folder {folder} cannot be made: {error.strerror or error}.") from error

    def load(self, group: int) -> tuple[State, dict[str, Array]] | None:
        """Where a group stood, or None where it has not begun; InputError for another run's checkpoint."""
        path = self._path(group)
        if not path.exists():
            return None
        tensors, metadata = read_tensors(path)
        try:
            document = json.loads(metadata[_KEY])
            kept, state = document["run"], document["state"]
            first, second = state["place"]
            found = State(
                (int(first), int(second)),
                int(state["samples"]),
                tuple(map(str, state["skipped"])),
                bool(state["finished"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: the checkpoint is damaged; delete the folder {self.folder} to begin anew."
            ) from error
        for what, value in self.run.items():
            if kept.get(what) != value:
                raise InputError(
                    f"{self.folder} holds the checkpoint of another run: its {what} differ{_s(what)}; finish that run as it was "
                    "started, or delete the folder to begin anew."
                )
        return found, tensors

    def save(self, group: int, state: State, tensors: Mapping[str, Array]) -> None:
        """Replace a group's checkpoint."""
        document = {"run": self.run, "state": vars(state)}
        with draft(self._path(group)) as whole:
            write_tensors(whole, tensors, {_KEY: json.dumps(document)})

    def remove(self) -> None:
        """The run is over."""
        with suppress(OSError):
            shutil.rmtree(self.folder)

    def _path(self, group: int) -> Path:
        return self.folder / f"group-{group}.safetensors"


def _s(what: str) -> str:
    return "" if what.endswith("s") else "s"
