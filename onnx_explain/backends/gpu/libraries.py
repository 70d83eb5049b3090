"""Where the CUDA provider's libraries come from, before its first session: NVIDIA's wheels, then ONNX Runtime's own search.

The provider is linked with cuBLAS and opens cuDNN by name; neither wheel puts its folder where the loader looks. ONNX Runtime's
`preload_dlls` looks beside ONNX Runtime and in the system alone, so an installation in two places is found here.
"""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from onnx_explain.errors import RuntimeMissing

PROVIDER = "CUDAExecutionProvider"


def loaded(ort: Any) -> str:
    """Load what the provider needs; what ONNX Runtime prints of libraries that it does not find, which is empty where it does.

    Raises:
        RuntimeMissing: this ONNX Runtime has no CUDA provider.

    """
    if PROVIDER not in ort.get_available_providers():
        raise RuntimeMissing(f'{_without()}, or use device="cpu".')
    preload = getattr(ort, "preload_dlls", None)  # since 1.21
    said = io.StringIO()
    if preload is not None:
        major = str(getattr(ort, "cuda_version", "") or "").partition(".")[0]
        with redirect_stdout(said):
            for folder in _folders(f"cu{major}"):
                preload(cudnn=False, directory=str(folder))
            for folder in _folders("cudnn"):
                preload(cuda=False, directory=str(folder))
            said.truncate(said.seek(0))  # what is not in one of them may be elsewhere
            preload()
    return " ".join(line.strip() for line in said.getvalue().splitlines() if line.startswith("Failed to load"))


def _folders(part: str) -> list[Path]:
    """Where NVIDIA's wheels have put a part, in any folder that Python imports from."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    return [folder for root in roots if (folder := Path(root) / part / "lib").is_dir()]


def _without() -> str:
    """Why there is no CUDA provider, and what to do."""
    if all(map(_installed, ("onnxruntime", "onnxruntime-gpu"))):
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
            '`pip uninstall onnxruntime onnxruntime-gpu` and `pip install "onnx-explain[gpu]"`'
        )
    return (
        "The installed ONNX Runtime has no CUDA provider: "
        '`pip uninstall onnxruntime` and `pip install "onnx-explain[gpu]"`'
    )


def _installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False
