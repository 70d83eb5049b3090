"""Adaptive refinement of a path: the interval whose integral misses the score's change by most is halved, per sample.

The local completeness error of [a, b] is ∫ g·dx - (F(b) - F(a)); it costs two scores, and for networks of linear pieces
it lives where a piece ends. A halved interval is evaluated once more and taken off, so that no interval's relevance is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NODES = 4  # of the quadrature within one interval
GROWTH = 20  # at most this many times the evaluations asked for
NARROWEST = 2.0**-30


@dataclass(frozen=True)
class Way:
    """A path as refinement sees it. `lanes`: how many samples are refined apart from each other.

    gradient(α [lanes]): g by tensor. score(α): float64 [lanes]. distance: start - end by tensor, float64.
    """

    lanes: int
    gradient: Callable[[Array], Mapping[str, Array]]
    score: Callable[[Array], Array]
    distance: Mapping[str, Array]


@dataclass
class _Interval:
    low: float
    high: float
    at_low: float
    at_high: float
    error: float = 0.0


class _Sum:
    """∫ g dα so far, by tensor, and how often each lane was evaluated."""

    def __init__(self, way: Way, nodes: Array, weights: Array) -> None:
        self.way, self.nodes, self.weights = way, nodes, weights
        self.total = {n: np.zeros(d.shape) for n, d in way.distance.items()}
        self.evaluations = np.zeros(way.lanes, np.int64)

    def add(self, intervals: list[_Interval | None], sign: float = 1.0) -> Array:
        """Add each lane's interval (None: nothing) to the sum; the integrals of g·distance over them: [lanes]."""
        low = np.asarray([i.low if i else 0.0 for i in intervals])
        width = np.asarray([i.high - i.low if i else 0.0 for i in intervals])
        integral = np.zeros(self.way.lanes)
        for node, weight in zip(self.nodes, self.weights):
            g = self.way.gradient(low + width * node)
            share = width * weight
            for n, total in self.total.items():
                moved = g[n].astype(np.float64)
                total += sign * _each(share, moved) * moved
                integral += share * _sums(moved * self.way.distance[n], self.way.lanes)
        self.evaluations += len(self.nodes) * (width > 0)
        return integral


def refined(way: Way, rule: tuple[Array, Array], steps: int, tolerance: float, change: Array) -> Mapping[str, Array]:
    """∫ g dα by tensor, float64, such that ∫ g·distance is `change` [lanes] to `tolerance` of it.

    rule: nodes and weights of the quadrature within an interval. steps: evaluations to begin with; after 20 times as many
    what there is is returned. A change of zero counts as one of the smallest number.
    """
    found = _Sum(way, *rule)
    lanes = _begun(way, found, max(1, steps // len(rule[0])))
    allowed = tolerance * np.abs(change)
    while True:
        worst = [_worst(lane, a, bool(e < GROWTH * steps)) for lane, a, e in zip(lanes, allowed, found.evaluations)]
        if not any(worst):
            return found.total
        _halve(way, found, lanes, worst)


def _begun(way: Way, found: _Sum, count: int) -> list[list[_Interval]]:
    ends = np.linspace(0.0, 1.0, count + 1)
    scores = [way.score(np.full(way.lanes, a)) for a in ends]
    lanes: list[list[_Interval]] = [[] for _ in range(way.lanes)]
    for k in range(count):
        new = [_Interval(ends[k], ends[k + 1], scores[k][i], scores[k + 1][i]) for i in range(way.lanes)]
        _measure(found, list(new))
        for lane, interval in zip(lanes, new):
            lane.append(interval)
    return lanes


def _measure(found: _Sum, intervals: list[_Interval | None]) -> None:
    for interval, integral in zip(intervals, found.add(intervals)):
        if interval is not None:
            interval.error = float(integral - (interval.at_high - interval.at_low))


def _worst(lane: list[_Interval], allowed: float, may: bool) -> _Interval | None:
    """The interval to halve, or None where the lane is done."""
    worst = max(lane, key=lambda i: abs(i.error))
    done = abs(sum(i.error for i in lane)) <= allowed or worst.error == 0.0
    return None if done or not may or worst.high - worst.low < NARROWEST else worst


def _halve(way: Way, found: _Sum, lanes: list[list[_Interval]], worst: list[_Interval | None]) -> None:
    middles = np.asarray([(i.low + i.high) / 2 if i else 0.0 for i in worst])
    scores = way.score(middles)
    found.add(worst, sign=-1.0)
    lower: list[_Interval | None] = []
    upper: list[_Interval | None] = []
    for i, lane, middle, score in zip(worst, lanes, middles, scores):
        lower.append(_Interval(i.low, middle, i.at_low, score) if i else None)
        upper.append(_Interval(middle, i.high, score, i.at_high) if i else None)
        if i is not None:
            lane.remove(i)
    for halves in (lower, upper):
        _measure(found, halves)
        for lane, half in zip(lanes, halves):
            if half is not None:
                lane.append(half)


def _each(per_lane: Array, like: Array) -> Array:
    """One number per lane, to multiply an array with."""
    return per_lane.reshape(-1, *[1] * (like.ndim - 1)) if len(per_lane) > 1 or like.ndim else per_lane[0]


def _sums(product: Array, lanes: int) -> Array:
    return np.asarray(product.reshape(lanes, -1).sum(1))
