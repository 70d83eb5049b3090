"""A weight as one row per neuron: [neurons, patch], whatever the operator's own order of axes is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How a weight of `shape` becomes rows: reshaped to `split`, its axes in the order `perm`, then [neurons, patch].

    `neurons`: how many rows there are. Both directions move entries and change none.
    """

    shape: tuple[int, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]
    neurons: int

    @property
    def patch(self) -> int:
        """The number of inputs that one neuron reads."""
        return math.prod(self.shape) // max(self.neurons, 1)

    def rows(self, weight: Array) -> Array:
        """[neurons, patch] of an array in the weight's own shape."""
        return weight.reshape(self.split).transpose(self.perm).reshape(self.neurons, self.patch)

    def weight(self, rows: Array) -> Array:
        """The array in the weight's own shape of rows [neurons, patch]."""
        turned = rows.reshape([self.split[p] for p in self.perm])
        return np.ascontiguousarray(turned.transpose(np.argsort(self.perm))).reshape(self.shape)

    def spread(self, values: Array) -> Array:
        """One number per neuron, [neurons], at every entry of that neuron's weight."""
        return self.weight(np.broadcast_to(values[:, None], (self.neurons, self.patch)))

    @staticmethod
    def plain(shape: Sequence[int]) -> Layout:
        """Of a weight whose axis 0 counts neurons: a convolution's."""
        return Layout(tuple(shape), (shape[0], math.prod(shape[1:])), (0, 1), shape[0])
