"""The measures as their papers write them: loops over samples and pixels, slow and obvious. NaN where nothing is defined."""

from __future__ import annotations

import math

import numpy as np

NAN = float("nan")


def pixels(r):
    """Every (row, column) of a map."""
    return [(i, j) for i in range(r.shape[0]) for j in range(r.shape[1])]


def order(r, descending=True):
    """Pixels by value; Python's sort is stable, so equal ones stay in row-major order."""
    return sorted(pixels(r), key=lambda p: -r[p] if descending else r[p])


def is_constant(r):
    return len({float(r[p]) for p in pixels(r)}) == 1


def outside_inside(r, mask, positive):
    value = {p: max(float(r[p]), 0.0) if positive else float(r[p]) for p in pixels(r)}
    inside = [value[p] for p in pixels(r) if mask[p]]
    outside = [value[p] for p in pixels(r) if not mask[p]]
    if not inside or not outside:
        return NAN
    below, above = sum(inside) / len(inside), sum(outside) / len(outside)
    if below == 0 and above > 0:
        return math.inf
    return above / below if below > 0 else NAN


def pointing(r, mask, tolerance):
    if is_constant(r) or not mask.any():
        return NAN
    y, x = order(r)[0]
    return float(any(mask[i, j] and math.dist((i, j), (y, x)) <= tolerance for i, j in pixels(r)))


def pointing_box(r, boxes, tolerance):
    """A box grown by the tolerance on every side."""
    y, x = order(r)[0]
    return float(
        any(
            x0 - tolerance <= x <= x1 - 1 + tolerance and y0 - tolerance <= y <= y1 - 1 + tolerance
            for x0, y0, x1, y1 in boxes
        )
    )


def mass(r, mask, rectify):
    value = {p: rectify(float(r[p])) for p in pixels(r)}
    total = sum(value.values())
    if not mask.any() or total <= 0:
        return NAN
    return sum(value[p] for p in pixels(r) if mask[p]) / total


def top_k(r, mask, k):
    if is_constant(r) or not mask.any():
        return NAN
    return sum(bool(mask[p]) for p in order(r)[:k]) / k


def auc(r, mask):
    inside = [r[p] for p in pixels(r) if mask[p]]
    outside = [r[p] for p in pixels(r) if not mask[p]]
    if not inside or not outside or is_constant(r):
        return NAN
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside)
    return wins / (len(inside) * len(outside))


def segmentation(r, mask, threshold, ignore=None):
    """(both, neither, map only, mask only); zeros where the sample is missing."""
    labelled = [p for p in pixels(r) if ignore is None or not ignore[p]]
    if is_constant(r) or not any(mask[p] for p in labelled):
        return (0, 0, 0, 0)
    cut = sum(r[p] for p in labelled) / len(labelled) if threshold == "mean" else threshold
    found = [0, 0, 0, 0]
    for p in labelled:
        found[{(1, 1): 0, (0, 0): 1, (1, 0): 2, (0, 1): 3}[int(r[p] > cut), int(mask[p])]] += 1
    return tuple(found)


def gini(r):
    values = sorted(abs(float(v)) for v in r.ravel())
    n, total = len(values), sum(values)
    if total == 0:
        return NAN
    return sum(abs(a - b) for a in values for b in values) / (2 * n * total)


def entropy(r):
    values = [abs(float(v)) for v in r.ravel()]
    total = sum(values)
    if total == 0:
        return NAN
    return -sum(v / total * math.log(v / total) for v in values if v > 0)


def ranks(values):
    """1 + how many are smaller + half of the others that are equal."""
    return [1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]


def correlation(a, b):
    n = len(a)
    ma, mb = sum(a) / n, sum(b) / n
    cov = sum((p - ma) * (q - mb) for p, q in zip(a, b))
    va, vb = sum((p - ma) ** 2 for p in a), sum((q - mb) ** 2 for q in b)
    return cov / math.sqrt(va * vb) if va > 0 and vb > 0 else NAN


def spearman(a, b):
    return correlation(ranks(list(a.ravel())), ranks(list(b.ravel())))


def ssim(a, b, window, sigma):
    """Wang et al.: one window after another."""
    p, q = a / np.abs(a).max(), b / np.abs(b).max()
    extent = 2.0 if min(p.min(), q.min()) < 0 else 1.0
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    half = window // 2
    w = np.array(
        [[math.exp(-(i * i + j * j) / (2 * sigma**2)) for j in range(-half, half + 1)] for i in range(-half, half + 1)]
    )
    w /= w.sum()
    values = []
    for i in range(a.shape[0] - window + 1):
        for j in range(a.shape[1] - window + 1):
            s, t = p[i : i + window, j : j + window], q[i : i + window, j : j + window]
            ms, mt = (w * s).sum(), (w * t).sum()
            vs, vt = (w * (s - ms) ** 2).sum(), (w * (t - mt) ** 2).sum()
            cov = (w * (s - ms) * (t - mt)).sum()
            values.append((2 * ms * mt + c1) * (2 * cov + c2) / ((ms**2 + mt**2 + c1) * (vs + vt + c2)))
    return sum(values) / len(values)


def regions(shape, size):
    """Lists of pixels, row-major from the upper left corner, cut off at the right and lower border."""
    height, width = shape
    return [
        [(i, j) for i in range(top, min(top + size, height)) for j in range(left, min(left + size, width))]
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


def flipped(f, x, groups, fill, steps):
    """Scores of one picture [C, H, W] while groups of pixels become `fill`, one group after another."""
    state = x.copy()
    found = [f(state)]
    for group in groups[:steps]:
        for i, j in group:
            state[:, i, j] = fill[:, i, j]
        found.append(f(state))
    return found


def region_curve(f, x, r, size, steps, fill, descending=True):
    groups = regions(r.shape, size)
    groups = sorted(groups, key=lambda g: (-1 if descending else 1) * sum(r[p] for p in g))
    return flipped(f, x, groups, fill, steps)


def pixel_curve(f, x, r, step, fill, descending=True):
    places = order(r, descending)
    groups = [places[k : k + step] for k in range(0, len(places), step)]
    return flipped(f, x, groups, fill, len(groups))


def rise_auc(scores):
    """RISE's own: the sum less half of both ends, over the number of steps."""
    return (sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


def aopc(scores):
    return sum(scores[0] - s for s in scores) / len(scores)


def blur(x, kernel):
    """2-D convolution of each channel, zeros beyond the border."""
    half = len(kernel) // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half)))
    out = np.zeros_like(x)
    for c in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]):
                out[c, i, j] = (padded[c, i : i + len(kernel), j : j + len(kernel)] * kernel).sum()
    return out


def infidelity(f, x, phi, perturbations, normalise):
    """One picture: f scores it, perturbations [K, C, H, W]."""
    products = [float((i * phi).sum()) for i in perturbations]
    changes = [f(x) - f(x - i) for i in perturbations]
    scale = 1.0
    if normalise:
        below = sum(p * p for p in products)
        if below == 0:
            return NAN
        scale = sum(p * d for p, d in zip(products, changes)) / below
    return sum((scale * p - d) ** 2 for p, d in zip(products, changes)) / len(products)
