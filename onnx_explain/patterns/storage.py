"""Fitted patterns and their file: what each weight is, the sums that were fitted on it, and patterns made of them.

The file is safetensors: tensors ``<i>/<sum>`` per weight (``s<i>/<sum>`` per Sum) and JSON in its metadata. Reading it
executes nothing; a damaged or foreign file is told in one sentence. What fits the sums is not here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError, MethodError, suggest
from onnx_explain.files import draft
from onnx_explain.patterns.estimators import NAMES, Estimate, Estimator, estimate
from onnx_explain.patterns.layout import Layout
from onnx_explain.patterns.statistics import MATRICES, Neurons, Shares

Array = npt.NDArray[Any]
Rectified = Literal["positive", "linear", "two-component"]
VERSION = 1
_KEY = "onnx_explain.patterns"


@dataclass(frozen=True)
class FittedWeight:
    """One weighted operator: which it is, what follows it, and its sums.

    node, operator: of the model. weight: the tensor's name. sha256, bias_sha256: of the weight with what is folded into
    it, and of the bias. regime: ``positive`` where a rectifier follows, ``two-component`` for rectifier-like functions,
    else ``linear``. scale: a factor that the operator applies besides the weight (Gemm's alpha).
    """

    node: str
    operator: str
    weight: str
    sha256: str
    bias_sha256: str
    regime: Rectified
    layout: Layout
    sums: Neurons
    scale: float = 1.0

    def estimators(self) -> tuple[Estimator, ...]:
        """The estimators that this weight's own regime asks for."""
        chosen: dict[Rectified, tuple[Estimator, ...]] = {
            "positive": ("positive",),
            "linear": ("linear",),
            "two-component": ("positive", "negative"),
        }
        return chosen[self.regime]


@dataclass(frozen=True)
class FittedSum:
    """One Sum of activations: `axis` holds its channels."""

    node: str
    operator: str
    axis: int
    sums: Shares


@dataclass(frozen=True)
class Patterns:
    """Patterns of one model. samples: how many were seen. exact: with float64 activations."""

    model_sha256: str
    samples: int
    exact: bool
    weights: tuple[FittedWeight, ...]
    sums: tuple[FittedSum, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """``patterns of 5 weights, fitted on 512 samples``."""
        return f"patterns of {len(self.weights)} weights, fitted on {self.samples} samples"

    __repr__ = __str__

    def weight(self, node: str) -> FittedWeight:
        """The entry of a node; MethodError where the node was not fitted."""
        for found in self.weights:
            if found.node == node:
                return found
        raise MethodError(
            f"The patterns hold nothing for node {node!r}: they belong to another model or output."
            f"{suggest(node, [w.node for w in self.weights])} Fit this one: `onnx-explain fit-patterns MODEL DATA`."
        )

    def sum(self, node: str) -> FittedSum | None:
        """The entry of a Sum, or None."""
        return next((s for s in self.sums if s.node == node), None)

    def estimate(self, node: str, which: Estimator, *, least: int = 1, limit: float = 0.0) -> Estimate:
        """Rows, denominators and states of one weight's neurons; settings as of `estimators.estimate`."""
        return estimate(self.weight(node).sums, which, exact=self.exact, least=least, limit=limit)

    def pattern(self, node: str, which: Estimator) -> Array:
        """float64, of the weight's own shape; zero where a neuron has no pattern."""
        return self.weight(node).layout.weight(self.estimate(node, which).rows)

    def diagnostics(self) -> list[dict[str, Any]]:
        """One row per weight and estimator of its regime: how many neurons are in which state, and which they are."""
        rows = []
        for w in self.weights:
            for which in w.estimators():
                found = self.estimate(w.node, which)
                state = found.state
                row: dict[str, Any] = {
                    "node": w.node, "operator": w.operator, "weight": w.weight, "regime": w.regime,
                    "estimator": which, "neurons": len(state),
                    "amplification": float(found.amplification.max()), "patches": w.sums.patches,
                }  # fmt: skip
                listed = {n: np.flatnonzero(state == code).tolist() for code, n in enumerate(NAMES) if code}
                rows.append(
                    row | {n: len(v) for n, v in listed.items()} | {"which": {n: v for n, v in listed.items() if v}}
                )
        return rows

    def document(self) -> dict[str, Any]:
        """What ``patterns.json`` says."""
        return {
            "model_sha256": self.model_sha256,
            "samples": self.samples,
            "skipped": list(self.skipped),
            "activations": "float64" if self.exact else "float32",
            **self.notes,
            "weights": self.diagnostics(),
            "sums": [{"node": s.node, "operator": s.operator, "channels": s.sums.y.size} for s in self.sums],
        }

    def merged(self, other: Patterns) -> Patterns:
        """Patterns of both sets of data, as if fitted in one pass; InputError where the models differ."""
        return merged([self, other])

    # -- the file

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all; OutputError."""
        tensors = {f"{i}/{n}": a for i, w in enumerate(self.weights) for n, a in w.sums.arrays().items()}
        tensors |= {f"s{i}/{n}": a for i, s in enumerate(self.sums) for n, a in s.sums.arrays().items()}
        with draft(path) as whole:
            write_tensors(whole, tensors, {_KEY: self._metadata()})

    def _metadata(self) -> str:
        entries = []
        for w in self.weights:
            entry = {f.name: getattr(w, f.name) for f in fields(w) if f.name not in ("sums", "layout")}
            entries.append(entry | {"layout": asdict(w.layout)})
        sums = [{"node": s.node, "operator": s.operator, "axis": s.axis} for s in self.sums]
        document = {
            "version": VERSION, "model_sha256": self.model_sha256, "samples": self.samples, "exact": self.exact,
            "skipped": list(self.skipped), "notes": dict(self.notes), "weights": entries, "sums": sums,
        }  # fmt: skip
        return json.dumps(document)


def read_patterns(path: str | os.PathLike[str]) -> Patterns:
    """The patterns of a file; InputError where it is unreadable, damaged or something else."""
    where = str(path)
    tensors, metadata = read_tensors(where)
    if _KEY not in metadata:
        raise InputError(f"{where}: holds tensors, but no patterns; make them with `onnx-explain fit-patterns`.")
    try:
        return _patterns(json.loads(metadata[_KEY]), tensors)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"{where}: the patterns in it are damaged ({type(error).__name__}: {str(error)[:100]}); fit them again."
        ) from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of a safetensors file; InputError where it cannot be read as one."""
    from safetensors import SafetensorError, safe_open

    where = Path(path)
    try:
        if not where.is_file():
            raise InputError(f"{where}: there is no such file; make it with `onnx-explain fit-patterns`.")
        with safe_open(where, framework="np") as file:
            metadata = dict(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118 - not a mapping
                file.get_slice(
                    key
                )  # the library checks the header; the numbers themselves stay on disk until they are used
        return _mapped(where), metadata
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, MemoryError, OverflowError) as error:
        said = " ".join(str(error).split())[:150]
        raise InputError(
            f"{where}: not a readable safetensors file; it is damaged or of another kind ({said})."
        ) from error


def _mapped(path: Path) -> dict[str, Array]:
    """The tensors of a file that the library has found sound, as views of it."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if entry["dtype"] != "F64":
            raise ValueError(f"tensor {name!r} is {entry['dtype']}, not F64")
        begin, shape = 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
        empty = 0 in shape
        found[name] = np.zeros(shape) if empty else np.memmap(path, np.dtype("<f8"), "r", begin, shape or (1,))
    return found


def write_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """A safetensors file of float64 arrays, one at a time, so that nothing is held twice."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [end, end := end + 8 * array.size]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, dtype="<f8").data)
        file.flush()
        os.fsync(file.fileno())


def _patterns(document: dict[str, Any], tensors: Mapping[str, Array]) -> Patterns:
    if document["version"] != VERSION:
        raise InputError(f"its format is version {document['version']}, and this is {VERSION}; fit them again.")
    weights = [_weight(entry, i, tensors) for i, entry in enumerate(document["weights"])]
    sums = [
        FittedSum(str(e["node"]), str(e["operator"]), int(e["axis"]), Shares(**_read(Shares, f"s{i}/", tensors)))
        for i, e in enumerate(document["sums"])
    ]
    for s in sums:
        if s.sums.u.ndim != 2 or s.sums.u.shape != s.sums.uy.shape or s.sums.u.shape[1:] != s.sums.y.shape:
            raise InputError(f"the sums of node {s.node!r} have sizes that do not agree; fit them again.")
    return Patterns(
        str(document["model_sha256"]), int(document["samples"]), bool(document["exact"]), tuple(weights), tuple(sums),
        tuple(map(str, document["skipped"])), dict(document["notes"]),
    )  # fmt: skip


def _weight(entry: dict[str, Any], i: int, tensors: Mapping[str, Array]) -> FittedWeight:
    raw = entry["layout"]
    shape, split, perm = (tuple(map(int, raw[k])) for k in ("shape", "split", "perm"))
    layout = Layout(shape, split, perm, int(raw["neurons"]))
    sums = Neurons(**_read(Neurons, f"{i}/", tensors))
    wanted = {
        **dict.fromkeys((f.name for f in fields(Neurons)), (layout.neurons,)),
        **dict.fromkeys(MATRICES, (layout.neurons, layout.patch)), "count": (1,), "x": (len(sums.x), layout.patch),
    }  # fmt: skip
    sound = sorted(perm) == list(range(len(split))) and layout.neurons > 0 and np.prod(shape) == np.prod(split)
    fits = all(a.shape == wanted[n] for n, a in sums.arrays().items()) and layout.neurons % max(len(sums.x), 1) == 0
    if not (sound and fits) or entry["regime"] not in ("positive", "linear", "two-component"):
        raise InputError(f"the sums of node {entry['node']!r} have sizes that do not agree; fit them again.")
    texts = {k: str(entry[k]) for k in ("node", "operator", "weight", "sha256", "bias_sha256")}
    return FittedWeight(**texts, regime=entry["regime"], layout=layout, sums=sums, scale=float(entry["scale"]))


def _read(kind: type[Any], prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    found = {f.name: tensors[prefix + f.name] for f in fields(kind)}
    for name, array in found.items():
        if array.dtype != np.float64 or not np.isfinite(array).all():
            raise InputError(f"the tensor {prefix + name!r} is not finite float64; fit them again.")
    return found


# -- merging


def merged(parts: Sequence[Patterns]) -> Patterns:
    """Patterns of all parts' data; InputError names the weight in which two parts differ."""
    if not parts:
        raise InputError("No patterns were given to merge.")
    whole = parts[0]
    for part in parts[1:]:
        whole = _pair(whole, part)
    return whole


def _pair(a: Patterns, b: Patterns) -> Patterns:
    ours, theirs = {w.node: w for w in a.weights}, {w.node: w for w in b.weights}
    for node in (*ours, *theirs):
        if node not in ours or node not in theirs:
            raise InputError(f"The patterns belong to different models: node {node!r} is in one of them alone.")
        first, second = ours[node], theirs[node]
        if first.sha256 != second.sha256 or first.layout != second.layout:
            raise InputError(
                f"The patterns belong to different models: weight {first.weight!r} of node {node!r} differs."
            )
        if first.bias_sha256 != second.bias_sha256:
            raise InputError(f"The patterns belong to different models: the bias of node {node!r} differs.")
        if first.regime != second.regime:
            raise InputError(f"The patterns belong to different models: what follows node {node!r} differs.")
    if a.exact != b.exact:
        raise InputError("One file was fitted on float64 activations, the other on float32; fit both alike.")
    weights = [_with(w, w.sums.merged(theirs[w.node].sums)) for w in a.weights]
    added = {s.node: s for s in b.sums}
    if {s.node: s.sums.u.shape for s in a.sums} != {n: s.sums.u.shape for n, s in added.items()}:
        raise InputError("The patterns belong to different models: their sums of activations differ.")
    sums = [FittedSum(s.node, s.operator, s.axis, s.sums.merged(added[s.node].sums)) for s in a.sums]
    return Patterns(
        a.model_sha256, a.samples + b.samples, a.exact, tuple(weights), tuple(sums), (*a.skipped, *b.skipped), a.notes
    )


def _with(w: FittedWeight, sums: Neurons) -> FittedWeight:
    return FittedWeight(w.node, w.operator, w.weight, w.sha256, w.bias_sha256, w.regime, w.layout, sums, w.scale)
