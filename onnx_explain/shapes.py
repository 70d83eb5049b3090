"""Synthetic pictures of one coloured shape among textured distractors, with the exact mask of the shape.

Here live the outlines, the textures, the distractors and the sampling; nothing of models or of explanations.
Sample `index` of `seed` is a function of these two numbers alone, whatever was drawn before it; sizes differ
in resolution (and pixel noise), not in layout.

The class is drawn independently of colour, place, size, angle and surroundings, and the outline alone tells it,
so the evidence lies on `Shape.mask` and along its rim. Distractors share the colours and the textures of the targets
but have no class: ragged blobs, striped and noisy patches, scribbles, and loose arcs, corners and bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from onnx_explain.errors import InputError

__all__ = ["CLASSES", "Shape", "batch", "dataset", "draw"]

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Rng = np.random.Generator

SUPERSAMPLING = 4
SIZES = (32, 1024)
RADII = (0.16, 0.30)  # of the circle around the target, in picture widths
MARGIN = 0.02  # between that circle and the frame, in picture widths
DISTRACTORS = (3, 7)
MIN_CONTRAST = 0.45  # between target and surroundings, Euclidean in RGB of 0..1
LIMIT = 2**63  # of seeds and indices


@dataclass(frozen=True, eq=False)
class Shape:
    """One picture and what is in it."""

    image: npt.NDArray[np.uint8]  # [H, W, 3], RGB
    mask: npt.NDArray[np.bool_]  # [H, W]: the pixels of which the target covers at least half
    label: int  # index into CLASSES
    box: tuple[int, int, int, int]  # x0, y0, x1, y1, the last two exclusive: mask[y0:y1, x0:x1] is tight


# ---- outlines: closed curves inside the unit circle, y downwards; a second curve is a hole


def _polar(radii: npt.ArrayLike, angles: Points) -> Points:
    points: Points = np.stack([np.sin(angles), -np.cos(angles)], axis=1) * np.reshape(radii, (-1, 1))
    return points


def _circle(radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0)) -> Points:
    return _polar(radius, np.linspace(0, 2 * np.pi, 64, endpoint=False)) + centre


def _regular(corners: int) -> Points:
    return _polar(1.0, 2 * np.pi * np.arange(corners) / corners)


def _star() -> Points:
    return _polar(np.tile([1.0, 0.42], 5), np.pi * np.arange(10) / 5)


def _cross(arm: float = 0.3) -> Points:
    reach = (1 - arm**2) ** 0.5
    corner = np.array([[-arm, -reach], [arm, -reach], [arm, -arm]])
    turns = [np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]])]
    return np.concatenate([corner, *(corner @ turn for turn in turns)])


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -2.0 - y], axis=1) / 17.9


OUTLINES: dict[str, tuple[Points, ...]] = {
    "circle": (_circle(),),
    "square": (_regular(4),),
    "triangle": (_regular(3),),
    "star": (_star(),),
    "cross": (_cross(),),
    "ring": (_circle(), _circle(0.55)),
    "heart": (_heart(),),
    "diamond": (_regular(4) * (0.5, 1.0),),
    "crescent": (_circle(), _circle(0.85, (0.5, 0.0))),
    "arrow": (np.array([[0, -1], [0.8, 0], [0.3, 0], [0.3, 0.95], [-0.3, 0.95], [-0.3, 0], [-0.8, 0]]),),
}
CLASSES: tuple[str, ...] = tuple(OUTLINES)


# ---- rasters: how much of each pixel is covered, [size, size] float32 in 0..1


def _covered(size: int, paint: Callable[[ImageDraw.ImageDraw, float], None]) -> Array:
    """Return the coverage of what `paint(pen, pixels per picture width)` draws in white on black."""
    side = size * SUPERSAMPLING
    sheet = Image.new("L", (side, side))
    paint(ImageDraw.Draw(sheet), float(side))
    return np.asarray(sheet.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def _filled(size: int, *outlines: Points) -> Array:
    """Return the coverage of the first outline less that of the others (picture widths)."""

    def paint(pen: ImageDraw.ImageDraw, scale: float) -> None:
        for position, outline in enumerate(outlines):
            pen.polygon((outline * scale).ravel().tolist(), fill=0 if position else 255)

    return _covered(size, paint)


def _stroked(size: int, line: Points, width: float) -> Array:
    """Return the coverage of an open line of the given width (picture widths)."""

    def paint(pen: ImageDraw.ImageDraw, scale: float) -> None:
        pen.line((line * scale).ravel().tolist(), fill=255, width=max(1, round(width * scale)), joint="curve")

    return _covered(size, paint)


# ---- textures: [size, size] float32 in 0..1


def _clouds(rng: Rng, size: int) -> Array:
    cells = int(rng.integers(3, 12))
    grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32).clip(0, 1)


def _waves(rng: Rng, size: int) -> Array:
    angle, cycles, phase, sharpness = rng.uniform((0, 3, 0, 0.6), (np.pi, 14, 2 * np.pi, 4))
    along = 2 * np.pi * cycles * (np.arange(size, dtype=np.float32) + 0.5) / size
    wave = np.sin(along * np.cos(angle) + (along * np.sin(angle) + phase)[:, None])
    return np.asarray(0.5 + 0.5 * np.tanh(sharpness * wave) / np.tanh(sharpness), dtype=np.float32)


def _plaid(rng: Rng, size: int) -> Array:
    difference = _waves(rng, size) - _waves(rng, size)
    return abs(difference)


def _cells(rng: Rng, size: int) -> Array:
    cells = int(rng.integers(6, 24))
    nearest = np.arange(size) * cells // size
    return rng.random((cells, cells), dtype=np.float32)[nearest[:, None], nearest]


TEXTURES = (_clouds, _waves, _plaid, _cells)


def _textured(rng: Rng, size: int, first: Array, second: Array) -> Array:
    """Return [size, size, 3]: a random texture between two colours."""
    texture = TEXTURES[int(rng.integers(len(TEXTURES)))](rng, size)
    return first + texture[..., None] * (second - first)


def _colour(rng: Rng) -> Array:
    return rng.uniform(0.03, 0.97, 3).astype(np.float32)


def _near(rng: Rng, colour: Array, spread: float) -> Array:
    return np.clip(colour + rng.uniform(-spread, spread, 3), 0, 1).astype(np.float32)


# ---- distractors: (coverage, paint), the paint one colour or a picture


def _ragged(rng: Rng) -> Points:
    """Return a closed curve too uneven for any class, of mean radius 0.06..0.18."""
    centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.06, 0.18)
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    orders = np.arange(2, 6)[:, None]
    strengths = rng.dirichlet(np.full(4, 3.0))[:, None]
    phases = rng.uniform(0, 2 * np.pi, (4, 1))
    bumps = (strengths * np.sin(orders * angles + phases)).sum(axis=0)
    return _polar(radius * (1 + 0.55 * bumps / np.abs(bumps).max()), angles) + centre


def _blob(rng: Rng, size: int) -> tuple[Array, Array]:
    return _filled(size, _ragged(rng)) * np.float32(rng.uniform(0.5, 1)), _colour(rng)


def _patch(rng: Rng, size: int) -> tuple[Array, Array]:
    return _filled(size, _ragged(rng)), _textured(rng, size, _colour(rng), _colour(rng))


def _scribble(rng: Rng, size: int) -> tuple[Array, Array]:
    steps = rng.normal(0, 0.11, (int(rng.integers(5, 11)), 2))
    line = rng.uniform(0.1, 0.9, 2) + np.cumsum(steps, axis=0)
    return _stroked(size, line, rng.uniform(0.015, 0.035)), _colour(rng)


def _fragment(rng: Rng, size: int) -> tuple[Array, Array]:
    """An arc, a corner or a bar: what classes are made of, never enough of it to be one."""
    centre, radius, turn = rng.uniform(0.05, 0.95, 2), rng.uniform(0.08, 0.2), rng.uniform(0, 2 * np.pi)
    kind = rng.integers(3)
    if kind == 0:
        line = _polar(radius, turn + np.linspace(0, rng.uniform(0.8, 2.4), 24))
    elif kind == 1:
        line = _polar(radius, turn + np.array([0, 0.5, 1]) * rng.uniform(1.6, 3.6)) * ((1.0,), (0.0,), (1.0,))
    else:
        line = _polar(radius, turn + np.array([0, np.pi]))
    return _stroked(size, line + centre, radius * rng.uniform(0.2, 0.45)), _colour(rng)


KINDS = (_blob, _patch, _patch, _scribble, _fragment, _fragment)


# ---- samples


def _background(rng: Rng, size: int) -> Array:
    """Return a textured picture [size, size, 3] with distractors laid over it."""
    base = _colour(rng)
    picture = _textured(rng, size, base, _near(rng, base, 0.35))
    for _ in range(int(rng.integers(*DISTRACTORS, endpoint=True))):
        coverage, paint = KINDS[int(rng.integers(len(KINDS)))](rng, size)
        picture += coverage[..., None] * (paint - picture)
    return picture


def _contrasting(rng: Rng, surroundings: Array) -> Array:
    """Return the first of eight random colours far enough from the mean surroundings, else the farthest."""
    candidates = rng.uniform(0.03, 0.97, (8, 3)).astype(np.float32)
    distances = np.linalg.norm(candidates - surroundings, axis=1)
    enough = distances >= MIN_CONTRAST
    chosen: Array = candidates[enough.argmax() if enough.any() else distances.argmax()]
    return chosen


def _window(centre: Points, radius: float, size: int) -> tuple[slice, slice]:
    low = np.maximum(np.floor((centre - radius) * size), 0).astype(int)
    high = np.ceil((centre + radius) * size).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def _target(rng: Rng, size: int, label: int, picture: Array) -> Array:
    """Paint the target into `picture` and return its coverage.

    The colour follows the surroundings in the square around the target, not its outline: else it would tell the class.
    """
    radius, turn = rng.uniform(*RADII), rng.uniform(0, 2 * np.pi)
    centre = rng.uniform(radius + MARGIN, 1 - radius - MARGIN, 2)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    coverage = _filled(size, *(radius * outline @ rotation + centre for outline in OUTLINES[CLASSES[label]]))
    colour = _contrasting(rng, picture[_window(centre, radius, size)].mean(axis=(0, 1)))
    paint = _textured(rng, size, colour, _near(rng, colour, 0.15))
    picture += coverage[..., None] * (paint - picture)
    return coverage


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _checked(name: str, value: int, low: int, high: int) -> int:
    """Return `value` as an int, or raise InputError where it is not a whole number in low..high."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise InputError(f"shapes: `{name}` is {value!r}, but must be a whole number from {low} to {high}.")
    return int(value)


def draw(index: int, *, seed: int = 0, size: int = 64) -> Shape:
    """Return sample `index` of the endless series `seed`, `size` x `size` pixels.

    Raises InputError: a negative `index` or `seed`, a `size` outside 32..1024, or one that is no whole number.
    """
    index, seed = _checked("index", index, 0, LIMIT - 1), _checked("seed", seed, 0, LIMIT - 1)
    size = _checked("size", size, *SIZES)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    label = int(rng.integers(len(CLASSES)))
    picture = _background(rng, size)
    mask = _target(rng, size, label, picture) >= 0.5
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(rng.uniform(0.01, 0.05))
    image = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Shape(image, mask, label, _box(mask))


def dataset(n: int, *, seed: int = 0, size: int = 64, start: int = 0) -> Iterator[Shape]:
    """Return an iterator over samples `start` to `start + n - 1`; arguments are checked at once, as in `draw`."""
    n, start = _checked("n", n, 0, LIMIT - 1), _checked("start", start, 0, LIMIT - 1)
    _checked("start + n", start + n, 0, LIMIT)
    _checked("seed", seed, 0, LIMIT - 1)
    _checked("size", size, *SIZES)
    return (draw(index, seed=seed, size=size) for index in range(start, start + n))


def batch(
    n: int, *, seed: int = 0, size: int = 64, start: int = 0
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return samples `start` to `start + n - 1` stacked; arguments and errors as in `draw`.

    Returns images [n, size, size, 3] uint8, masks [n, size, size] bool, labels [n] int64.
    """
    samples = dataset(n, seed=seed, size=size, start=start)
    images = np.empty((n, size, size, 3), np.uint8)
    masks = np.empty((n, size, size), np.bool_)
    labels = np.empty(n, np.int64)
    for row, sample in enumerate(samples):
        images[row], masks[row], labels[row] = sample.image, sample.mask, sample.label
    return images, masks, labels
