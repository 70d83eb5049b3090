"""Where the CUDA provider's libraries come from, before its first session: NVIDIA's wheels, then ONNX Runtime's own search.

The provider is linked with cuBLAS and opens cuDNN by name; neither wheel puts its folder where the loader looks. ONNX Runtime's
`preload_dlls` looks beside ONNX Runtime and in the system alone, so an installation in two places is found here.
"""

from __future__ import annotations

import importlib.util
import io
import re
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from onnx_explain.errors import RuntimeMissing

PROVIDER = "CUDAExecutionProvider"


def loaded(ort: Any) -> str:
    """Load what the provider needs; which libraries cannot be, as part of a sentence, empty where all can.

    Raises:
        RuntimeMissing: this ONNX Runtime has no CUDA provider.

    """
    if PROVIDER not in ort.get_available_providers():
        raise RuntimeMissing(f'{_without()}, or use device="cpu".')
    ort.set_default_logger_severity(4)  # what it reports of CUDA is raised as well, and told once
    preload = getattr(ort, "preload_dlls", None)  # since 1.21
    said = io.StringIO()
    if preload is not None:
        major = str(getattr(ort, "cuda_version", "") or "").partition(".")[0]
        with redirect_stdout(said):
            for folder in _folders(f"cu{major}", "libcublasLt.so*"):
                preload(cudnn=False, directory=str(folder))
            for folder in _folders("cudnn", "libcudnn.so*"):
                preload(cuda=False, directory=str(folder))
            said.truncate(said.seek(0))  # what is not in one of them may be elsewhere
            preload()
    names = re.findall(r"^Failed to load (\S+):", said.getvalue(), re.MULTILINE)
    return f"{', '.join(Path(name).name for name in names)} cannot be loaded" if names else ""


def _folders(part: str, holding: str) -> list[Path]:
    """Where NVIDIA's wheels have put a part, in the first folder that Python imports from and that holds such a library."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    return [folder for root in roots if any((folder := Path(root) / part / "lib").glob(holding))][:1]


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
