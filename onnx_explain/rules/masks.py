"""Which entries of an input are taken away: sliding windows, smooth random masks, and groups of entries.

Arrays alone; what becomes of a masked input is decided elsewhere. Shapes are of one sample: without the batch axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows of size `window` at every `stride` along each axis of `shape`; the last of an axis is cut off at the border.

    Axis d has ⌈(D - k)/s⌉ + 1 of them, as captum's Occlusion (methods.md §3). No window is there twice; with s ≤ k every
    entry lies in at least one.
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """How many windows there are along each axis."""
        return tuple(-(-(d - k) // s) + 1 for d, k, s in zip(self.shape, self.window, self.stride))

    def __len__(self) -> int:
        return prod(self.places)

    def at(self, index: int) -> tuple[slice, ...]:
        """The window of that number, counted row by row."""
        starts = (int(q) * s for q, s in zip(np.unravel_index(index, self.places) if self.shape else (), self.stride))
        return tuple(slice(a, a + k) for a, k in zip(starts, self.window))

    def masks(self, ids: Ids) -> Array:
        """0 inside the window, 1 elsewhere: [len(ids), *shape]."""
        found = np.ones((len(ids), *self.shape))
        for slot, index in enumerate(ids):
            place: tuple[int | slice, ...] = (slot, *self.at(int(index)))
            found[place] = 0.0
        return found

    def cover(self) -> Array:
        """In how many windows each entry lies: [*shape]."""
        axes = []
        for size, window, stride, places in zip(self.shape, self.window, self.stride, self.places):
            i, begins = np.arange(size)[:, None], np.arange(places) * stride
            axes.append(((begins <= i) & (i < begins + window)).sum(1).astype(np.float64))
        return outer(axes)


@dataclass(frozen=True)
class Cells:
    """How the random cells lie along one axis of `size` entries: `cells` of them, blended into each other or not."""

    size: int
    cells: int
    smooth: bool = True


def random_masks(ids: Ids, axes: Sequence[Cells], *, kept: float, seed: int) -> Array:
    """Random masks with values in 0..1, each of the mean `kept`: [len(ids), *sizes].

    Mask number i is a grid of cells that are 1 with probability `kept`, else 0, drawn from a counter-based generator under
    the key (seed, i): it is the same whatever is drawn with it. Smooth axes are enlarged linearly (half-pixel centres,
    the outermost cell goes on to the border) to one cell more than the input has, and cut at a random offset of less than
    a cell: Petsiuk et al. 2018, §3.2.
    """
    found = np.empty((len(ids), *(a.size for a in axes)))
    for slot, index in enumerate(ids):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, index], dtype=np.uint64)))
        mask = (generator.random([a.cells for a in axes]) < kept).astype(np.float64)
        offsets = [int(generator.integers(ceil(a.size / a.cells))) for a in axes]
        for axis, (cells, offset) in enumerate(zip(axes, offsets)):
            if cells.smooth:
                mask = np.moveaxis(np.tensordot(_enlarging(cells, offset), mask, (1, axis)), 0, axis)
        found[slot] = mask
    return found


def _enlarging(axis: Cells, offset: int) -> Array:
    """The weights of the cells in each entry: [size, cells], rows of sum 1."""
    cell = ceil(axis.size / axis.cells)
    # the grid covers (cells + 1)·cell entries, of which `size` are seen from `offset` on
    scale = axis.cells / ((axis.cells + 1) * cell)
    place = np.clip((np.arange(axis.size) + offset + 0.5) * scale - 0.5, 0, axis.cells - 1)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(axis.cells))))


def superpixels(axes: Sequence[Cells]) -> Ids:
    """The number of the cell that each entry lies in, cells as equal as they can be: int64 [*sizes]."""
    labels = np.zeros([a.size for a in axes], dtype=np.int64)
    for d, axis in enumerate(axes):
        along = np.arange(axis.size) * axis.cells // axis.size
        labels = labels * axis.cells + along.reshape([-1 if e == d else 1 for e in range(len(axes))])
    return labels


def outer(axes: Sequence[Array]) -> Array:
    """The product of one factor per axis: [*sizes]."""
    found = np.ones([len(a) for a in axes])
    for d, along in enumerate(axes):
        found *= along.reshape([-1 if e == d else 1 for e in range(len(axes))])
    return found


def coalitions(players: int) -> npt.NDArray[np.bool_]:
    """All subsets of so many players, subset number i holding player p where bit p of i is set: [2^players, players]."""
    return np.asarray((np.arange(1 << players)[:, None] >> np.arange(players)) & 1 == 1)


def shapley_values(worth: Array) -> Array:
    """Exact Shapley values of games given by the worth of every coalition: [..., 2^P] → [..., P].

    φ_p = Σ_{S∌p} |S|!(P-|S|-1)!/P! · (v(S∪p) - v(S)); coalitions are numbered as by `coalitions`.
    """
    players = int(worth.shape[-1]).bit_length() - 1
    sizes = coalitions(players).sum(1)
    orders = [1.0]
    for s in range(1, players):
        orders.append(orders[-1] * s / (players - s))
    weights = np.array(orders) / max(players, 1)
    values = np.empty((*worth.shape[:-1], players))
    numbers = np.arange(1 << players)
    for p in range(players):
        without = numbers[numbers >> p & 1 == 0]
        values[..., p] = (worth[..., without | 1 << p] - worth[..., without]) @ weights[sizes[without]]
    return values


def permutation(index: int, players: int, *, seed: int, antithetic: bool) -> Ids:
    """Order number `index` of the players, from a counter-based generator; of an antithetic pair the second is reversed."""
    drawn = index // 2 if antithetic else index
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, drawn], dtype=np.uint64)))
    order = generator.permutation(players)
    return order[::-1] if antithetic and index % 2 else order
