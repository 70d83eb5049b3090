"""What a fit keeps of the data: sums that add up, so that any order of samples, batches and merges gives one result.

Of a neuron y = wᵀx + b over its patches x (methods.md §7.1): with a pivot y⁰ that never changes during a pass,
A₊ = Σ₊x, B₊ = Σ₊x(y - y⁰), B = Σx(y - y⁰), and the sums of x, y - y⁰ and (y - y⁰)², of all patches and of those with
y > 0 (the regime +). The regime - is the rest. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Regime = Literal["all", "positive", "negative"]


@dataclass
class Neurons:
    """The sums of one weight's neurons (O of them, patches of D inputs, G groups that read different inputs).

    count: [1] patches. pivot, positive, y, yy, y_positive, yy_positive: [O]. x: [G, D]. x_positive, xy, xy_positive:
    [O, D]. `w_…` [O]: the same projected on the neuron's own weight, known once the pass is over. norm: ‖w‖² [O].
    """

    count: Array
    pivot: Array
    positive: Array
    y: Array
    yy: Array
    y_positive: Array
    yy_positive: Array
    x: Array
    x_positive: Array
    xy: Array
    xy_positive: Array
    norm: Array
    w_x: Array
    w_x_positive: Array
    w_xy: Array
    w_xy_positive: Array

    @staticmethod
    def empty(neurons: int, patch: int, groups: int) -> Neurons:
        """No patch yet."""
        shapes = {"count": (1,), "x": (groups, patch), **dict.fromkeys(MATRICES, (neurons, patch))}
        return Neurons(**{f.name: np.zeros(shapes.get(f.name, (neurons,))) for f in fields(Neurons)})

    @property
    def patches(self) -> int:
        """How many patches were seen."""
        return int(self.count[0])

    @property
    def groups(self) -> int:
        """How many sets of inputs the neurons read."""
        return len(self.x)

    def arrays(self) -> dict[str, Array]:
        """Every sum by its name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def project(self, w: Array) -> None:
        """Note what the weight's rows [O, D] make of the sums; the estimators need no weight afterwards."""
        wide = w.astype(np.float64, copy=False)
        self.norm = np.einsum("od,od->o", wide, wide)
        grouped = wide.reshape(self.groups, -1, wide.shape[1])
        self.w_x = np.einsum("god,gd->go", grouped, self.x).reshape(-1)
        self.w_x_positive = np.einsum("od,od->o", wide, self.x_positive)
        self.w_xy = np.einsum("od,od->o", wide, self.xy)
        self.w_xy_positive = np.einsum("od,od->o", wide, self.xy_positive)

    def pivoted(self, pivot: Array) -> Neurons:
        """The same sums about another pivot."""
        by = self.pivot - pivot  # y - pivot = (y - self.pivot) + by
        if not by.any():
            return self
        x = np.repeat(self.x, len(pivot) // self.groups, axis=0)
        n, c = self.positive, self.count
        return Neurons(
            count=self.count,
            pivot=pivot,
            positive=n,
            y=self.y + by * c,
            yy=self.yy + by * (2 * self.y + by * c),
            y_positive=self.y_positive + by * n,
            yy_positive=self.yy_positive + by * (2 * self.y_positive + by * n),
            x=self.x,
            x_positive=self.x_positive,
            xy=self.xy + by[:, None] * x,
            xy_positive=self.xy_positive + by[:, None] * self.x_positive,
            norm=self.norm,
            w_x=self.w_x,
            w_x_positive=self.w_x_positive,
            w_xy=self.w_xy + by * self.w_x,
            w_xy_positive=self.w_xy_positive + by * self.w_x_positive,
        )

    def merged(self, other: Neurons) -> Neurons:
        """The sums of both; the order does not matter but for rounding."""
        if not self.patches or not other.patches:
            return other if not self.patches else self
        theirs = other.pivoted(self.pivot).arrays()
        kept = {"pivot": self.pivot, "norm": self.norm}
        return Neurons(**{name: kept.get(name, own + theirs[name]) for name, own in self.arrays().items()})

    def regime(self, which: Regime) -> tuple[Array, Array, Array, Array, Array]:
        """(n [O], Σy, Σy² [O], Σx [O, D], Σxy [O, D]) of one regime, y about the pivot."""
        of = len(self.pivot)
        if which == "positive":
            return self.positive, self.y_positive, self.yy_positive, self.x_positive, self.xy_positive
        x, n = np.repeat(self.x, of // self.groups, axis=0), np.repeat(self.count, of)
        if which == "all":
            return n, self.y, self.yy, x, self.xy
        return (
            n - self.positive,
            self.y - self.y_positive,
            self.yy - self.yy_positive,
            x - self.x_positive,
            self.xy - self.xy_positive,
        )

    def central(self, which: Regime) -> dict[str, Array]:
        """n, mean x [O, D] and y [O], C = Σ(x - m_x)(y - m_y) [O, D], S = Σ(y - m_y)² [O]; zeros where n = 0."""
        n, y, yy, x, xy = self.regime(which)
        each = 1.0 / np.maximum(n, 1.0)
        alive = n > 0
        mean_y = y * each
        return {
            "n": n,
            "mean_x": np.where(alive[:, None], x * each[:, None], 0.0),
            "mean_y": np.where(alive, mean_y + self.pivot, 0.0),
            "C": np.where(alive[:, None], xy - x * mean_y[:, None], 0.0),
            "S": np.where(alive, np.maximum(yy - y * mean_y, 0.0), 0.0),
        }


MATRICES = ("x_positive", "xy", "xy_positive")


@dataclass
class Shares:
    """The sums of one Sum y = Σ_k c_k u_k per channel (C of them, K operands): how the operands vary with y.

    count: [1]. pivot, y, yy: [C]. u, uy: [K, C], of the operands as they enter: c_k·u_k.
    """

    count: Array
    pivot: Array
    y: Array
    yy: Array
    u: Array
    uy: Array

    @staticmethod
    def empty(operands: int, channels: int) -> Shares:
        """No position yet."""
        flat, deep = (channels,), (operands, channels)
        return Shares(np.zeros(1), np.zeros(flat), np.zeros(flat), np.zeros(flat), np.zeros(deep), np.zeros(deep))

    def arrays(self) -> dict[str, Array]:
        """Every sum by its name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def add(self, operands: Array, y: Array) -> None:
        """More positions: operands [K, P, C] and their sum y [P, C]."""
        if not self.count[0]:
            self.pivot = y.mean(axis=0)
        z = y - self.pivot
        self.count += len(y)
        self.y += z.sum(axis=0)
        self.yy += (z * z).sum(axis=0)
        self.u += operands.sum(axis=1)
        self.uy += np.einsum("kpc,pc->kc", operands, z)

    def merged(self, other: Shares) -> Shares:
        """The sums of both."""
        if not self.count[0] or not other.count[0]:
            return other if not self.count[0] else self
        by = other.pivot - self.pivot
        c = other.count
        return Shares(
            self.count + c,
            self.pivot,
            self.y + other.y + by * c,
            self.yy + other.yy + by * (2 * other.y + by * c),
            self.u + other.u,
            self.uy + other.uy + by * other.u,
        )

    def split(self) -> Array:
        """cov(c_k·u_k, y)/var(y) [K, C], which adds up to 1 over k; NaN in channels where y never varies."""
        mean = self.y / np.maximum(self.count, 1.0)
        variance = self.yy - self.y * mean
        scale = self.yy + self.count * self.pivot**2
        flat = variance <= 1e-12 * scale
        covariance = self.uy - self.u * mean
        return np.where(flat, np.nan, covariance / np.where(flat, 1.0, variance))
