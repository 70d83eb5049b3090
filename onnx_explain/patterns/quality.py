"""How good a signal estimator is: ρ(S) = 1 - max_v corr(wᵀx, vᵀd̂) with d̂ = x - S(x), in closed form (methods.md §7.5).

What v can see of d̂ is a linear function of x and of p = 1[y > 0]·wᵀx. For S_a(x) = a·wᵀx the functions vᵀd̂ are exactly
uᵀx with uᵀa = 0; for S_a± they are uᵀx + s·p with uᵀa₋ = 0 and uᵀa₊ + s = 0. So the best v is a projection of w, in
coordinates where (x, p) is white, onto what is orthogonal to one or two vectors: no search, one eigendecomposition per
layer. Directions of variance below `CUT` of the largest count as constant.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
CUT = 1e-10
_FREE = 1e-7  # a constraint's part in directions without variance, relative to the whole, that is more than rounding


@dataclass
class Moments:
    """Sums of one layer about pivots x⁰ [G, D]: count [1], x [G, D], xx [G, D, D], p and pp [O], xp [O, D]."""

    count: Array
    pivot: Array
    x: Array
    xx: Array
    p: Array
    pp: Array
    xp: Array

    @staticmethod
    def empty(neurons: int, patch: int, groups: int) -> Moments:
        """Nothing yet."""
        flat, deep = (groups, patch), (groups, patch, patch)
        return Moments(
            np.zeros(1), np.zeros(flat), np.zeros(flat), np.zeros(deep), np.zeros(neurons), np.zeros(neurons),
            np.zeros((neurons, patch)),
        )  # fmt: skip

    def add(self, x: Array, firing: Array, w: Array) -> None:
        """Patches x [G, P, D], firing [G, P, O/G] of 0 and 1, the weight's rows w [O, D]."""
        groups, positions, patch = x.shape
        if not self.count[0]:
            self.pivot = x.mean(axis=1)
        grouped = w.reshape(groups, -1, patch)
        p = firing * (x @ grouped.transpose(0, 2, 1))
        z = x - self.pivot[:, None]
        self.count += positions
        self.x += z.sum(axis=1)
        self.xx += z.transpose(0, 2, 1) @ z
        self.p += p.sum(axis=1).reshape(-1)
        self.pp += (p * p).sum(axis=1).reshape(-1)
        self.xp += (p.transpose(0, 2, 1) @ z).reshape(-1, patch)

    def merged(self, other: Moments) -> Moments:
        """The sums of both."""
        if not self.count[0] or not other.count[0]:
            return other if not self.count[0] else self
        by, c = other.pivot - self.pivot, other.count
        cross = other.x[:, :, None] * by[:, None, :]
        moved = other.xx + cross + cross.transpose(0, 2, 1) + c * by[:, :, None] * by[:, None, :]
        each = len(self.p) // len(self.x)
        return Moments(
            self.count + c, self.pivot, self.x + other.x + c * by, self.xx + moved, self.p + other.p,
            self.pp + other.pp, self.xp + other.xp + other.p[:, None] * np.repeat(by, each, axis=0),
        )  # fmt: skip

    def arrays(self) -> dict[str, Array]:
        """Every sum by its name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def covariances(self, group: int) -> tuple[Array, Array, Array]:
        """cov(x) [D, D], cov(x, p) [O/G, D] and var(p) [O/G] of one group."""
        n = max(float(self.count[0]), 1.0)
        each = len(self.p) // len(self.x)
        part = slice(group * each, (group + 1) * each)
        mean_x, mean_p = self.x[group] / n, self.p[part] / n
        cov = self.xx[group] / n - np.outer(mean_x, mean_x)
        return cov, self.xp[part] / n - np.outer(mean_p, mean_x), np.maximum(self.pp[part] / n - mean_p**2, 0.0)


@dataclass(frozen=True)
class Directions:
    """The vectors that an estimator of one layer uses, [O, D]: a₊ and a₋, or one for both regimes."""

    positive: Array
    negative: Array | None = None


def quality(fitted: Moments, scored: Moments | None, w: Array, directions: Directions) -> Array:
    """ρ [O], NaN where it is not defined (constant output, no pattern). v is found on `fitted` and scored on `scored`.

    w: the weight's rows [O, D]. scored: None for the fitted data itself.
    """
    groups = len(fitted.x)
    each = len(w) // groups
    found = [_group(fitted, scored or fitted, w, directions, g, slice(g * each, (g + 1) * each)) for g in range(groups)]
    return np.concatenate(found)


def _group(fitted: Moments, scored: Moments, w: Array, directions: Directions, group: int, part: slice) -> Array:
    cov, cov_p, var_p = fitted.covariances(group)
    values, vectors = np.linalg.eigh(cov)
    one = directions.positive[part]
    other = None if directions.negative is None else directions.negative[part]
    layer = _Layer(values, vectors, cov, cov_p, var_p, w[part])
    return _scores(scored, w[part], layer.best(one, other), group)


@dataclass(frozen=True)
class _Layer:
    """The covariances of one group of neurons: cov(x) [D, D] with its eigenvalues and -vectors, of p with x, of p; w [O, D]."""

    values: Array
    vectors: Array
    cov: Array
    cov_p: Array
    var_p: Array
    w: Array

    def best(self, one: Array, other: Array | None) -> tuple[Array, Array]:
        """Per neuron the function uᵀx + s·p of d̂ that correlates best with wᵀx: u [O, D] and s [O]."""
        floor = CUT * self._largest(one, one if other is None else other)
        inside = [a @ self.vectors for a in (self.w, self.cov_p, one, one if other is None else other)]
        found = [
            self._neuron(float(floor[o]), w, p, a, b, None if other is None else float(self.var_p[o]))
            for o, (w, p, a, b) in enumerate(zip(*inside))
        ]
        return np.stack([u for u, _ in found]) @ self.vectors.T, np.asarray([s for _, s in found])

    def _largest(self, one: Array, other: Array) -> Array:
        """The largest eigenvalue of d̂'s covariance per neuron [O], by power iteration: it scales what counts as constant."""
        cov_y = self.w @ self.cov
        both = np.stack([one, other], axis=1)
        cov_z = np.stack([self.cov_p, cov_y - self.cov_p], axis=1)
        py = np.einsum("od,od->o", self.cov_p, self.w)
        yy = np.einsum("od,od->o", cov_y, self.w)
        inner = np.stack([self.var_p, py - self.var_p, py - self.var_p, yy - 2 * py + self.var_p], axis=1).reshape(
            -1, 2, 2
        )
        v = np.random.default_rng(0).standard_normal(one.shape)
        largest = np.zeros(len(one))
        for _ in range(40):
            v /= np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300)
            bv, cv = np.einsum("okd,od->ok", both, v), np.einsum("okd,od->ok", cov_z, v)
            moved = v @ self.cov - np.einsum("okd,ok->od", cov_z, bv)
            moved += np.einsum("okd,ok->od", both, np.einsum("okl,ol->ok", inner, bv) - cv)
            largest = np.einsum("od,od->o", moved, v)
            v = moved
        return np.maximum(largest, 0.0)

    def _neuron(
        self, floor: float, w: Array, cov_p: Array, one: Array, other: Array, var_p: float | None
    ) -> tuple[Array, float]:
        """All vectors in eigencoordinates [D]; the function's u in those too."""
        length = float(np.sqrt(np.maximum(self.values, 0.0) @ w**2))
        loose = np.sqrt(floor) / length if length else np.inf  # a share of y this small is not seen in d̂
        seen = np.maximum(np.abs(one), np.abs(other)) > loose
        kept = self.values > np.where(seen, 1e-14 * self.values[-1], max(floor, 0.0))
        deviation = np.sqrt(self.values[kept])
        start = deviation * w[kept]
        u = np.zeros_like(w)
        if var_p is None:
            inner, f = projected(start, (one[kept] / deviation)[:, None], _seen(one[~kept], loose)[:, None])
            u[kept], u[~kept] = inner / deviation, f
            return u, 0.0
        # p = βᵀz + e, where z are the white coordinates and e is what they do not say
        beta = cov_p[kept] / deviation
        left = var_p - float(beta @ beta)
        sigma = float(np.sqrt(left)) if left > 1e-12 * var_p else 0.0
        present = [
            (a, end) for a, end in ((other, 0.0), (one, 1.0)) if a.any()
        ]  # a regime without a pattern removes nothing
        deep = np.stack([a[kept] / deviation for a, _ in present], axis=1) if present else np.zeros((kept.sum(), 0))
        ends = np.asarray([end for _, end in present]) - beta @ deep
        free = (
            np.stack([_seen(a[~kept], loose) for a, _ in present], axis=1) if present else np.zeros(((~kept).sum(), 0))
        )
        if sigma:
            inner, f = projected(np.append(start, 0.0), np.vstack([deep, ends / sigma]), free)
            s, inner = float(inner[-1]) / sigma, inner[:-1]
        else:
            inner, f = projected(start, deep, np.vstack([free, ends]))
            s, f = float(f[-1]), f[:-1]
        u[kept], u[~kept] = (inner - s * beta) / deviation, f
        return u, s


def _seen(free: Array, loose: float) -> Array:
    return np.where(np.abs(free) > loose, free, 0.0)


def projected(start: Array, constraints: Array, free: Array) -> tuple[Array, Array]:
    """The vector nearest to `start` [K] that, with free parts f [M], satisfies constraintsᵀu + freeᵀf = 0; and f.

    constraints [K, k], free [M, k]: what a direction without variance contributes costs nothing, so it lifts constraints.
    """
    scale = np.sqrt((constraints**2).sum(axis=0) + (free**2).sum(axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    bound = _bound(free / scale)
    tied = (constraints / scale) @ bound
    basis, sizes, _ = np.linalg.svd(tied, full_matrices=False)
    basis = basis[:, sizes > 1e-12 * max(float(sizes.max(initial=0.0)), 1e-300)]
    u = start - basis @ (basis.T @ start)
    rest = -(constraints / scale).T @ u
    f = np.linalg.lstsq((free / scale).T, rest, rcond=_FREE)[0] if len(free) else np.zeros(0)
    return u, f


def _bound(free: Array) -> Array:
    """The combinations of constraints [k, j] that no free direction can satisfy."""
    k = free.shape[1]
    if not len(free):
        return np.eye(k)
    _, sizes, right = np.linalg.svd(free, full_matrices=True)
    full = np.zeros(k)
    full[: len(sizes)] = sizes
    return np.asarray(right[full <= _FREE].T)


def _scores(scored: Moments, w: Array, functions: tuple[Array, Array], group: int) -> Array:
    """1 - corr(wᵀx, uᵀx + s·p) on other moments."""
    u, s = functions
    cov, cov_p, var_p = scored.covariances(group)
    along = u @ cov
    variance = np.einsum("od,od->o", along, u) + 2 * s * np.einsum("od,od->o", u, cov_p) + s**2 * var_p
    both = np.einsum("od,od->o", along, w) + s * np.einsum("od,od->o", w, cov_p)
    total = np.einsum("od,od->o", w @ cov, w)
    size = np.einsum("od,od->o", np.abs(u) @ np.abs(cov), np.abs(u)) + s**2 * var_p
    silent = variance <= 1e-14 * size  # nothing of d̂ is left to look at: no correlation
    product = np.sqrt(np.where(silent, 1.0, variance) * np.where(total > 0, total, 1.0))
    rho = np.where(silent, 1.0, 1.0 - both / product)
    return np.where(total > 0, rho, np.nan)
