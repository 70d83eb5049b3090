"""A kernel together with all that is compiled into it; the digest is the key under which the machine code is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

READS = {"denominator_kernel.py": ("conv_kernel.py",)}  # source files that a source file takes functions from
Constant = int | str | bool | None
SOURCES = {"conv_relevance": "conv_kernel.py", "narrow_relevance": "conv_kernel.py", "shift_of_sums": "conv_kernel.py"}
SOURCES |= {"apply_shift": "conv_kernel.py", "max_pool": "pool_kernel.py", "average_pool": "pool_kernel.py"}
SOURCES |= {"conv_denominator": "denominator_kernel.py", "narrow_denominator": "denominator_kernel.py"}


@dataclass(frozen=True)
class Specialisation:
    """A kernel and all that is compiled into it.

    `parameters`: every parameter in order with its type (``*fp32``, ``i32``, ``fp32``), or ``constexpr``. `constants`: their
    values. `claims`: run-time parameters that are promised to be multiples of 16 (bytes for pointers).
    """

    kernel: str
    arch: int
    parameters: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    claims: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 2

    @property
    def arguments(self) -> tuple[tuple[str, str], ...]:
        """The parameters that are passed at a launch."""
        return tuple((n, t) for n, t in self.parameters if t != "constexpr")

    def described(self) -> dict[str, object]:
        """As plain data; `read` is the way back."""
        keys = ("kernel", "arch", "parameters", "constants", "claims", "warps", "stages")
        return {k: getattr(self, k) for k in keys}

    @staticmethod
    def read(data: Mapping[str, object]) -> Specialisation:
        """A specialisation from `described`, also after a way through JSON."""
        listed = {k: tuple(tuple(p) for p in data[k]) for k in ("parameters", "constants")}  # type: ignore[attr-defined]
        return Specialisation(**{**data, **listed, "claims": tuple(data["claims"])})  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The key of the compiled kernel: its source and everything above."""
        text = json.dumps(self.described(), sort_keys=True)
        return hashlib.sha256(f"{source_digest(SOURCES[self.kernel])}\n{text}".encode()).hexdigest()[:40]


@cache
def source_digest(name: str) -> str:
    """The digest of a kernel's source files: another source is another kernel."""
    whole = b"".join(Path(__file__).with_name(file).read_bytes() for file in (name, *READS.get(name, ())))
    return hashlib.sha256(whole).hexdigest()
