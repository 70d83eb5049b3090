"""What is known of a model before it runs: shapes and numbers that do not depend on its inputs. Made by `canonicalize`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

MOST = 50_000  # nodes that one recurrent layer, or all loops of a model, may stand for


@dataclass(frozen=True)
class Seen:
    """By the name of a value: its shape; its number where it has one at every batch size; the number that all its entries
    equal, however many the batch makes them.
    """

    shapes: Mapping[str, ir.Shape | None] = field(default_factory=dict)
    numbers: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    uniform: Mapping[str, float] = field(default_factory=dict)

    def adopt(self, graph: ir.Graph) -> bool:
        """Note shapes that the graph leaves open; whether there was any."""
        found = False
        for node in graph:
            for value in node.outputs:
                shape = self.shapes.get(value.name or "")
                if shape is not None and _tells_more(shape, value.shape):
                    value.shape, found = shape, True
        return found


Look = Callable[[ir.Model], Seen]


def _tells_more(new: ir.Shape, old: ir.Shape | None) -> bool:
    if old is None:
        return True
    return len(new) == len(old) and any(isinstance(a, int) and not isinstance(b, int) for a, b in zip(new, old))


def number_of(value: ir.Value, seen: Seen | None = None) -> npt.NDArray[Any] | None:
    """The number behind a value, where it is one."""
    if value.const_value is not None and not value.is_graph_input():
        return np.asarray(value.const_value.numpy())
    return None if seen is None or value.producer() is None else seen.numbers.get(value.name or "")
