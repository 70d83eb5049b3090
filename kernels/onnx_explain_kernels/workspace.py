"""One buffer for everything a run needs: tensors that do not live at the same time share their place.

The plan is static, so that addresses stay the same from run to run (CUDA graphs).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from onnx_explain_kernels.errors import ArgumentError

ALIGNMENT = 256


@dataclass(frozen=True)
class Need:
    """A tensor of `size` bytes, written in step `first` and read for the last time in step `last`."""

    name: str
    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Workspace:
    """`offsets`: where each tensor starts; `size`: bytes of the whole; `peak`: the most that lives at one time."""

    offsets: Mapping[str, int]
    size: int
    peak: int


def plan_workspace(needs: Iterable[Need]) -> Workspace:
    """Give every tensor a place that no other uses during its life: largest first, into the lowest gap that holds it.

    Raises:
        ArgumentError: two tensors of one name, a negative size, or a life that ends before it starts.

    """
    wanted = list(needs)
    for need in wanted:
        if need.size < 0 or need.last < need.first:
            raise ArgumentError(f"{need}: a tensor has a size of 0 or more and is read after it is written.")
    if len({n.name for n in wanted}) != len(wanted):
        raise ArgumentError("Two tensors of the workspace have one name.")
    placed: list[tuple[int, int, Need]] = []
    for need in sorted(wanted, key=lambda n: (-n.size, n.first, n.name)):
        start = 0
        for low, high, other in sorted(placed, key=lambda p: p[0]):
            if other.first <= need.last and need.first <= other.last:
                if low - start >= _padded(need.size):
                    break
                start = max(start, high)
        placed.append((start, start + _padded(need.size), need))
    steps = {n.first for n in wanted}
    peak = max((sum(_padded(n.size) for n in wanted if n.first <= s <= n.last) for s in steps), default=0)
    return Workspace({n.name: low for low, _, n in placed}, max((high for _, high, _ in placed), default=0), peak)


def _padded(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
