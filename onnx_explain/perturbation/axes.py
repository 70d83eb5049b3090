"""The axes of one explained tensor without its batch axis: which are gridded, which is taken whole, which entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnx_explain.errors import MethodError
from onnx_explain.methods.perturbation import Sizes
from onnx_explain.rules.masks import Cells


@dataclass(frozen=True)
class Axes:
    """The axes of the explained tensor `name` behind the batch axis, of sizes `shape`.

    `gridded`: positions of a picture, volume or sequence, or (`table`) features. `channels` is taken whole; what is left is
    taken entry by entry. `batch`: whether axis 0 of the tensor is left out here, because every sample is a unit of its own.
    """

    name: str
    shape: tuple[int, ...]
    gridded: tuple[int, ...]
    channels: int | None
    batch: bool
    table: bool = False

    @staticmethod
    def of(name: str, shape: tuple[int, ...], channel_axis: int | None, *, batch: bool) -> Axes:
        """The axes of a tensor of that whole shape; without a channel axis it is a table of features."""
        gridded = tuple(a - batch for a in range(1, len(shape)) if a != channel_axis)
        channels = None if channel_axis is None else channel_axis - batch
        return Axes(name, shape[batch:], gridded, channels, batch, table=channel_axis is None)

    def sizes(self, given: Sizes, method: str, option: str, default: Callable[[int], int]) -> tuple[int, ...]:
        """One size per axis: those given, or a lone number (or `default` of the size) along the gridded axes.

        MethodError where a size does not fit.
        """
        wanted = of_input(given, self.name)
        if isinstance(wanted, tuple):
            found = self._listed(wanted, method, option)
        else:
            along = [default(d) if wanted is None else wanted for d in self.shape]
            rest = [d if axis == self.channels else 1 for axis, d in enumerate(self.shape)]
            found = tuple(along[a] if a in self.gridded else rest[a] for a in range(len(self.shape)))
        for axis, (size, extent) in enumerate(zip(found, self.shape)):
            if size > extent:
                raise MethodError(
                    f"Method {method!r}: {option} {size} is larger than axis {axis + self.batch} of {self.name!r}, which "
                    f"has {extent} entries; make it at most {extent}."
                )
        return found

    def cells(self, given: Sizes, method: str, default: int) -> list[Cells]:
        """How random cells or superpixels lie: a grid along gridded axes, one cell for all channels, one per entry elsewhere.

        A list may leave out the axes that have no grid. The default of a table is one cell per feature.
        """
        wanted = of_input(given, self.name)
        if isinstance(wanted, tuple) and len(wanted) == len(self.gridded) < len(self.shape):
            spread = dict(zip(self.gridded, wanted))
            wanted = tuple(spread.get(a, 1) for a in range(len(self.shape)))
        sizes = self.sizes(wanted, method, "grid", lambda d: d if self.table else min(d, default))
        return [
            Cells(d, sizes[a], smooth=not self.table)
            if a in self.gridded
            else Cells(1, 1, smooth=False)
            if a == self.channels
            else Cells(d, d, smooth=False)
            for a, d in enumerate(self.shape)
        ]

    def _listed(self, wanted: tuple[int, ...], method: str, option: str) -> tuple[int, ...]:
        if len(wanted) == len(self.shape) - 1 and not self.batch:
            return (1, *wanted)
        if len(wanted) != len(self.shape):
            raise MethodError(
                f"Method {method!r}: {option} has {len(wanted)} entries, but {self.name!r} has the axes "
                f"{list(self.shape)}{' behind the batch axis' if self.batch else ''}; give one size per axis."
            )
        return wanted


def of_input(given: Sizes, name: str) -> int | tuple[int, ...] | None:
    """What was given for one input, where it was given per input."""
    return given.get(name) if isinstance(given, Mapping) else given
