"""The ONNX backend: composites expanded to plain ONNX, run by ONNX Runtime."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import TensorProto

from onnx_explain.errors import ModelError, RuntimeMissing
from onnx_explain.ir import composite
from onnx_explain.ir.message import carried
from onnx_explain.ir.model import first_line

_FOLDER = "session.model_external_initializers_file_folder_path"
Arrays = dict[str, npt.NDArray[Any]]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


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
    """An `InferenceSession`; it maps weights that lie in data files, as it does with the model's own file.

    It runs on the providers that are asked for or raises: ONNX Runtime would print a banner and take the CPU in their place.
    """
    if not isinstance(model, ir.Model):
        return runtime().InferenceSession(model, options, providers=providers, enable_fallback=0)
    with carried(model) as (data, folder):
        if folder is not None:
            options.add_session_config_entry(_FOLDER, str(folder))
        return runtime().InferenceSession(data, options, providers=providers, enable_fallback=0)


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
        self._brain = {o.name for o in self._session.get_outputs() if o.type == "tensor(bfloat16)"}

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name; `outputs` picks some."""
        names = list(outputs or self.outputs)
        try:
            if any(a.dtype == BFLOAT16 for a in feeds.values()) or not self._brain.isdisjoint(names):
                return self._run_wrapped(names, feeds)
            return dict(zip(names, self._session.run(names, dict(feeds))))
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model on this input: {_told(error)}.") from error

    def _run_wrapped(self, names: list[str], feeds: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """As `run` where bfloat16 goes in or comes out, which ONNX Runtime's arrays do not know: by its own values."""
        values = {n: _wrapped(a) for n, a in feeds.items()}
        found = self._session.run_with_ort_values(names, values)
        return {n: _unwrapped(v) if n in self._brain else v.numpy() for n, v in zip(names, found)}


def _wrapped(array: npt.NDArray[Any]) -> Any:
    value = runtime().OrtValue
    if array.dtype != BFLOAT16:
        return value.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(np.uint16)
    return value.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)


def _unwrapped(value: Any) -> npt.NDArray[Any]:
    shape = value.shape()
    count = math.prod(shape)
    bits = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else []
    return np.array(bits, np.uint16).reshape(shape).view(BFLOAT16)


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
