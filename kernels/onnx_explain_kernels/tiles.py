"""Tile sizes per architecture and precision, chosen off line: so many rows, columns and depth per program, warps, stages.

The table is measured by the compiler (no spills on any architecture, `tools/build_kernels.py`), not yet by a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from onnx_explain_kernels.errors import UnsupportedShape

Precision = Literal["tf32", "tf32x3", "ieee", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("tf32", "tf32x3", "ieee", "bf16", "fp16")
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
# what one program may use of shared memory, in KiB
_SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@dataclass(frozen=True)
class Tile:
    """`rows` x `columns` of the output per program, `depth` of the sum per turn; `stages` are loads in flight, at most."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def architecture(capability: int) -> int:
    """The architecture to compile for on a device of that compute capability (major·10 + minor): its own.

    Raises:
        UnsupportedShape: a device older than 8.0, whose matrix unit has no tf32.

    """
    if capability < min(ARCHITECTURES):
        raise UnsupportedShape(f"Compute capability {capability / 10} has no kernels: 8.0 and later have.")
    return capability


def shared_bytes(arch: int) -> int:
    """How much shared memory one program may use; of an architecture that is not listed, what all have."""
    return _SHARED.get(arch, min(_SHARED.values())) * 1024


def _keeps_sums_apart(arch: int) -> bool:
    """Whether the matrix unit reads its operands from shared memory, and not from the registers that hold the sum."""
    return arch // 10 in (9, 10)


def _power_of_two(value: int, low: int, high: int) -> int:
    power = low
    while power < value and power < high:
        power *= 2
    return power


def conv_tile(
    arch: int,
    rows: int,
    columns: int,
    depth: int,
    *,
    branch: str,
    quotient: str,
    precision: Precision,
    flat: bool,
    reads: int = 1,
) -> Tile:
    """The tile of `conv_relevance` for so many positions, channels and filters (within a group).

    Each choice keeps the registers of a thread below what spills: its part of the sum, and of every tensor that is read.
    `flat`: positions lie in memory one behind the other, which saves their addresses. `reads`: tensors of the output's shape
    that are read behind the product.
    """
    high, wide = _power_of_two(rows, 16, 128), _power_of_two(columns, 16, 128)
    computed, double = quotient != "given", branch != "single"
    plain = branch != "twin" and not quotient.startswith("relative")
    if precision in ("ieee", "tf32x3"):
        tile = Tile(min(high, 64), min(wide, 64), 16 if precision == "ieee" or double else 32, 4, 2)
    elif wide == high == 128 and flat and plain and reads <= 1 and arch // 10 == 9:
        tile = Tile(128, 128, 32, 8, 3)
    elif wide >= 64:
        if quotient.startswith("relative") and arch // 10 == 10:
            high = min(high, 64)  # there, half of the registers are the compiler's own
        tile = Tile(high, 64, 32, 8 if high >= 64 else 4, 3)
    else:
        high = min(high, 64) if computed or arch // 10 == 10 else high
        tile = Tile(high, wide, 32, 4, 3 if computed else 4)
    if arch // 10 == 10 and depth < 32:
        tile = replace(tile, warps=4)  # of eight the compiler gives each thread 64 registers, and spills
    if precision in ("bf16", "fp16") and not double and not computed and depth >= 64 and flat:
        tile = replace(tile, depth=64)
    if depth <= 16 or quotient.startswith("relative") or (computed and double and not _keeps_sums_apart(arch)):
        tile = replace(tile, depth=16)
    if shared_bytes(arch) < 128 * 1024:
        tile = replace(tile, stages=min(tile.stages, 2 if computed or double else 3))
    return tile


def sum_tile(arch: int, rows: int, columns: int, depth: int, *, branch: str, end: str, precision: Precision) -> Tile:
    """The tile of `conv_denominator` for so many positions, filters and channels (within a group).

    Positions step by the stride here and lie apart: addresses take registers, so columns are at most 64. Not on Hopper, where
    reading 64 columns' rows one by one takes twice as long as multiplying them.
    """
    half = precision in ("tf32", "bf16", "fp16")
    if arch // 10 == 9 and half and min(rows, columns) >= 128 and depth >= 32:
        return Tile(128 if end == "sum" and branch != "twin" else 64, 128, 32, 8, 3)
    if branch == "twin" and not _keeps_sums_apart(arch):
        rows, columns = min(rows, 64), min(columns, 32)  # two sums, and what the end reads beside them
    words: dict[str, Any] = {"branch": branch, "quotient": "relative" if end == "pair" else "given"}
    tile = conv_tile(arch, rows, min(columns, 64), depth, **words, precision=precision, flat=False)
    return replace(tile, depth=16) if depth < 32 else tile


def generic_tile(arch: int, columns: int, *, branch: str, quotient: str) -> Tile:
    """The tile of a shipped kernel, whose addresses are all computed at run time: small, for registers."""
    stages = 2 if shared_bytes(arch) < 128 * 1024 or branch != "single" or quotient != "given" else 3
    return Tile(64, 16, 16, 4, stages) if columns <= 16 else Tile(64, 64, 32, 8, stages)


def generic_sum_tile(arch: int, columns: int, *, branch: str) -> Tile:
    """The tile of a shipped pass forward."""
    tile = generic_tile(arch, columns, branch=branch, quotient="given")
    narrow = branch == "twin" and not _keeps_sums_apart(arch)
    return replace(tile, columns=min(tile.columns, 32)) if narrow else tile


def narrow_tile(rows: int, columns: int, *, channels_last: bool) -> Tile:
    """The tile of `narrow_relevance`: long along the axis that memory runs along."""
    if channels_last:
        wide = _power_of_two(columns, 16, 64)
        return Tile(_power_of_two(rows, 1, 1024 // wide), wide, 1, 4, 2)
    high = _power_of_two(rows, 16, 256)
    return Tile(high, _power_of_two(columns, 1, 1024 // high), 1, 4, 2)
