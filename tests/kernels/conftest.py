"""Triton interprets and Numba simulates in this process: both read their switch when they are first imported.

Compiling is another mode of triton: what compiles runs in a process of its own (`test_build.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["TRITON_INTERPRET"] = "1"
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's compiled kernels."""
    monkeypatch.setenv("ONNX_EXPLAIN_KERNEL_CACHE", str(tmp_path / "kernel-cache"))
