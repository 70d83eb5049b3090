"""The ONNX backend: composites expanded to plain ONNX, run by ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import onnx_ir as ir

from onnx_explain.errors import ModelError, RuntimeMissing
from onnx_explain.ir import composite
from onnx_explain.ir.message import carried
from onnx_explain.ir.model import first_line

_FOLDER = "session.model_external_initializers_file_folder_path"
Arrays = dict[str, npt.NDArray[Any]]


class Runner(Protocol):
    """Something that computes a model's outputs."""

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Outputs by name."""


def runtime() -> Any:
    """The onnxruntime module; RuntimeMissing where neither of its distributions is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing(
            'ONNX Runtime is not installed: `pip install "onnx-explain[cpu]"`, or `"onnx-explain[gpu]"` for an NVIDIA GPU.'
        ) from error
    return onnxruntime


def opened(model: ir.Model | bytes | str, options: Any, providers: list[Any]) -> Any:
    """An `InferenceSession`; it maps weights that lie in data files, as it does with the model's own file."""
    if not isinstance(model, ir.Model):
        return runtime().InferenceSession(model, options, providers=providers)
    with carried(model) as (data, folder):
        if folder is not None:
            options.add_session_config_entry(_FOLDER, str(folder))
        return runtime().InferenceSession(data, options, providers=providers)


class Session:
    """A model in ONNX Runtime's CPU provider; one session for as long as the model lives."""

    def __init__(
        self,
        model: ir.Model | bytes | str,
        *,
        threads: int | None = None,
        spinning: bool = True,
        optimised: bool = True,
    ) -> None:
        ort = runtime()
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if not optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = opened(model, options, ["CPUExecutionProvider"])
        except (
            Exception
        ) as error:  # ONNX Runtime raises a class of its own per status, all direct children of Exception
            raise ModelError(f"ONNX Runtime cannot load the model: {_told(error)}.") from error
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; `outputs` picks some."""
        names = list(outputs or self.outputs)
        try:
            return dict(zip(names, self._session.run(names, dict(feeds))))
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model on this input: {_told(error)}.") from error


def _told(error: Exception) -> str:
    """What ONNX Runtime said, without its status codes, source positions and signatures."""
    text = " ".join(str(error).split())
    if "allocate memory" in text or "bad allocation" in text or "bad_alloc" in text:
        return "it asks for more memory than there is"
    text = re.sub(r"\S*onnxruntime_src\S*\s+[^()]*\([^()]*\)\s*(const)?\s*", "", text)
    text = re.sub(
        r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |Non-zero status code returned while running |Status Message: ",
        "",
        text,
    )
    return first_line(Exception(text), 300).rstrip(".")


def lower(model: ir.Model) -> ir.Model:
    """The relevance graph's model with every composite expanded; a new model."""
    return composite.expand(model.clone())
