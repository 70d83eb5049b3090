"""What an explanation holds, how it is looked at, and its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import InputError, OutputError, suggest
from onnx_explain.files import draft
from onnx_explain.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
_LONGEST_NAME = 60_000  # bytes; a zip archive counts them in 16 bits


@dataclass(frozen=True, eq=False)
class Target:
    """What was explained: element `index[n]` of sample n of `tensor` (the logits behind a Softmax, where there is one).

    index: int64 [N], counted over the sample's flattened entries, -2 for a sample that was not explained; score: [N],
    its value. expression: what was computed of outputs and explained, where that is no element; `tensor` is called after it
    then, and reads: the tensors it was computed of. sure: of some, truth values [N], False where nothing fulfilled a
    condition or a divisor was 0.
    """

    tensor: str
    index: Array
    score: Array
    expression: str | None = None
    reads: tuple[str, ...] = ()
    sure: Array | None = None

    def told(self, sample: int = 0) -> str:
        """What was explained of a sample, for people: ``logits[5]``, or the expression."""
        return self.expression or f"{self.tensor}[{int(self.index[sample])}]"


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The relevance of one batch.

    relevance: per input name, of its shape and dtype (16 bits: float32). outputs: the model's own. absorbed: [N], relevance that
    reached no input (bias, stabiliser, dead units, constants). conservation: [N], |seeded - arrived - absorbed| /
    |seeded|: how far the relevance is from adding up; rounding for conserving methods, without meaning for gradients.
    kept: relevance of the inner tensors asked for. seconds: wall time of the run. inputs: what was explained.
    channel_axis: per input name, the axis a heat map sums, or None. completeness: float64 [N], Σ relevance less the change
    of the score from the baseline, of methods that promise it to be zero; None of others. layer: the tensor at which
    gradients turned into relevance, of methods that look at one. notes: sentences on how it ran: on the CPU in place of a
    GPU, in smaller batches. entries: relevance of every entry of an integer input, in that input's shape: what arrived at
    the embeddings that the entry selects, summed over their features. selected: those embeddings.
    names: of features or channels, by input; for pictures and files, nothing else reads them. signals: inputs [N, T] that
    windows slide along.
    """

    relevance: dict[str, Array]
    outputs: dict[str, Array]
    target: Target
    conservation: Array
    absorbed: Array
    method: str
    seconds: float
    inputs: dict[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)
    kept: dict[str, Array] = field(default_factory=dict)
    channel_axis: dict[str, int | None] = field(default_factory=dict)
    source: str = ""
    completeness: Array | None = None
    layer: str | None = None
    notes: tuple[str, ...] = ()
    entries: dict[str, Array] = field(default_factory=dict)
    selected: tuple[str, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    signals: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.target.index)

    def __repr__(self) -> str:
        """What was explained how, and the shapes; not the numbers."""
        told = [f"{self.target.told(i)} = {self.target.score[i]:.4g}" for i in range(min(len(self), 3))]
        more = f", … of {len(self)} samples" if len(self) > 3 else ""
        shapes = ", ".join(f"{n!r}: {r.dtype} {list(r.shape)}" for n, r in self.relevance.items())
        return f"<Explanation by {self.method} of {', '.join(told)}{more}; relevance {{{shapes}}}>"

    @property
    def drawn(self) -> dict[str, Array]:
        """The relevance of every input that has some: of floats as it is, of integers per entry.

        Tensors that no entry of an input selects stand under their own names.
        """
        own = {n: r for n, r in self.relevance.items() if n not in self.selected}
        return own | self.entries

    def of(self, name: str) -> Array:
        """The relevance of an input, or of a tensor explained: per entry where that input is of integers."""
        return self.entries[name] if name in self.entries else self.relevance[name]

    def heatmap(self, input: str | None = None) -> Array:  # noqa: A002 - ONNX's own word
        """Relevance with the channel axis summed (for `saliency` the largest): [N, H, W]; else as it is."""
        name = self._input(input)
        if name in self.entries:
            return self.entries[name]
        axis = self.channel_axis.get(name)
        r = self.relevance[name]
        if axis is None:
            return r
        heat: Array = r.max(axis) if self.method == "saliency" else r.sum(axis)
        return heat

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        sample: int = 0,
        input: str | None = None,  # noqa: A002
        picture: npt.ArrayLike | None = None,
        names: Sequence[str] | None = None,
        title: str | None = None,
        dark: bool = False,
        rate: float | None = None,
    ) -> Figure:
        """Draw one sample as a figure of matplotlib: a picture beside its heat map, a signal's line, a row's bars.

        path: the .png, .svg or .pdf file to write it to. picture: uint8 [h, w, 3], shown in place of the input's own values.
        names: of features or channels. title: by default the method and the explained element. rate: a signal's samples
        per second. Ids [N, T] without names are drawn as a bar per position.

        Raises InputError: no such sample or input, or an input of a rank that cannot be drawn. OutputError: no place.
        """
        from onnx_explain import render

        name = self._input(input)
        if not 0 <= sample < len(self):
            raise InputError(f"There is no sample {sample}: the explanation holds {len(self)}.")
        told = self.names.get(name) if names is None else names
        figure = render.figure_of(
            self.inputs[name][sample : sample + 1],
            self.of(name)[sample : sample + 1],
            layout=self.layout(name, named=bool(told)),
            picture=None if picture is None else np.asarray(picture),
            names=told,
            title=title or f"{self.method}: {self.target.told(sample)}",
            dark=dark,
            rate=rate,
        )
        if path is not None:
            render.save_figure(figure, Path(path))
        return figure

    def _repr_png_(self) -> bytes | None:
        """The first sample's figure, as notebooks show it; None of a rank that cannot be drawn."""
        from onnx_explain import render

        try:
            return render.png_of(self.plot())
        except InputError:
            return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write arrays and figures as ``.npz`` or ``.safetensors`` by suffix, whole or not at all."""
        target = Path(path)
        arrays = self.arrays()
        notes = json.dumps(self.summary())
        if target.suffix not in (".npz", ".safetensors"):
            raise OutputError(f"{target}: unknown suffix {target.suffix!r}; use .npz or .safetensors.")
        long = next((name for name in arrays if len(name.encode()) > _LONGEST_NAME), None)
        if long is not None:
            raise OutputError(
                f"{target}: the name {long[:40]!r}… of a tensor has {len(long)} characters, more than a file can hold."
            )
        with draft(target) as whole:
            if target.suffix == ".safetensors":
                from safetensors.numpy import save_file

                save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, whole, {"onnx_explain": notes})
            else:
                entries: dict[str, Any] = {**arrays, "metadata": np.asarray(notes)}
                entries |= {f"names/{n}": np.asarray(list(names)) for n, names in self.names.items()}
                np.savez_compressed(whole, **entries)

    def arrays(self) -> dict[str, Array]:
        """Every array by a flat name: ``relevance/<tensor>``, ``entries/<input>``, ``output/<name>``, ``kept/<tensor>``, …."""
        groups = (
            ("relevance", self.relevance),
            ("entries", self.entries),
            ("output", self.outputs),
            ("kept", self.kept),
        )
        flat = {f"{group}/{name}": array for group, arrays in groups for name, array in arrays.items()}
        flat |= {"target/index": self.target.index, "target/score": self.target.score}
        return flat | {"conservation": self.conservation, "absorbed": self.absorbed}

    def summary(self) -> dict[str, Any]:
        """The figures as plain data, for JSON."""
        return {
            "onnx_explain": __version__,
            "method": self.method,
            "options": {name: plain_option(value) for name, value in self.options.items()},
            "source_sha256": self.source,
            "explained": self.target.tensor,
            "expression": self.target.expression,
            "reads": list(self.target.reads),
            "target": [int(i) for i in self.target.index],
            "score": [float(s) for s in self.target.score],
            "conservation": [float(c) for c in self.conservation],
            "absorbed": [float(a) for a in self.absorbed],
            "seconds": self.seconds,
            "completeness": None if self.completeness is None else [float(c) for c in self.completeness],
            "layer": self.layer,
            "names": {n: list(names) for n, names in self.names.items()},
        }

    def layout(self, name: str, *, named: bool = False) -> str | None:
        """A letter per axis of an input, as `render.plot` reads them; None of a rank that it does not know.

        named: its entries have names.
        """
        r, axis = self.of(name), self.channel_axis.get(name)
        if r.ndim == 2:
            return "NP" if name in self.entries and not named else "NT" if name in self.signals and not named else "NF"
        plain = {3: "NT", 4: "NHW", 5: "NDHW"}.get(r.ndim)
        if plain is None:
            return None
        return plain[: axis or 1] + "C" + plain[axis or 1 :]

    def _input(self, name: str | None) -> str:
        if name is None:
            return next(iter(self.drawn))
        known = {**self.relevance, **self.entries}
        if name not in known:
            raise InputError(f"There is no relevance for an input {name!r}.{suggest(name, known)}")
        return name


def plain_option(value: Any) -> Any:
    """An option as plain data: an array by its shape, type and SHA-256, everything else that JSON lacks by its text."""
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): plain_option(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_option(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
