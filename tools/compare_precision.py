"""How far the relevance of int8 and half-precision files lies from that of their float32 model.

``python tools/compare_precision.py [--samples 16] [--methods gradient,lrp-epsilon-plus,rap]`` makes QDQ, QOperator and
dynamic int8, float16 and bfloat16 files of the bundled network, explains unseen pictures with each, and prints a table: Spearman's
rank correlation of the heat maps with the float32 ones, the overlap of the top 10 % of their pixels, and how many
predictions agree. ``--model M --pictures P [--preprocessing JSON]`` does the same with a model and pictures of one's own:
the first half of them calibrates, the second is explained. ``--pair FLOAT INT`` compares two files on noise. ``--out PAGE``
writes the table, with machine and versions, in place of printing it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from onnx_explain import Explainer, shapes

Array = npt.NDArray[Any]
MODEL = Path(str(resources.files("onnx_explain"))) / "bundled" / "shapes_cnn.onnx"
FORMS = ("qdq-u8", "qdq-s8", "qoperator", "dynamic", "float16", "bfloat16")
HALVES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
TOP = 0.1


def pictures(count: int, *, seed: int) -> Array:
    """Pictures of the bundled network: float32 [N, 3, 64, 64] in 0..1."""
    images, _, _ = shapes.batch(count, seed=seed)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def quantised(source: Path, target: Path, form: str, calibration: Array, name: str = "input") -> Path:
    """A file of `form` made of a float32 model by ONNX Runtime's own tools."""
    if form in HALVES:
        onnx.save(halved(onnx.load(source), HALVES[form]), target)
        return target
    from onnxruntime import quantization as q

    logging.getLogger().setLevel(logging.ERROR)
    if form == "dynamic":
        q.quantize_dynamic(source, target, weight_type=q.QuantType.QUInt8)
        return target

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[Array] = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            row = next(self.rows, None)
            return None if row is None else {name: row[None]}

    signed = form == "qdq-s8"
    q.quantize_static(
        source,
        target,
        Reader(),
        quant_format=q.QuantFormat.QOperator if form == "qoperator" else q.QuantFormat.QDQ,
        activation_type=q.QuantType.QInt8 if signed else q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        per_channel=form.startswith("qdq"),
    )
    return target


def halved(model: onnx.ModelProto, kind: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """The model with every float32 tensor, input and output in float16 (or bfloat16)."""
    small = onnx.ModelProto()
    small.CopyFrom(model)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for tensor in small.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*small.graph.input, *small.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for node in small.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
            if attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(dtype)))
    del small.graph.value_info[:]
    return small


def heat(relevance: Array) -> Array:
    """The heat map: relevance summed over channels, float64 [N, pixels]."""
    wide = relevance.astype(np.float64)
    return wide.sum(axis=1).reshape(len(wide), -1) if wide.ndim > 2 else wide.reshape(len(wide), -1)


def spearman(a: Array, b: Array) -> float:
    """Rank correlation of two vectors; ties get their mean rank, and a constant vector (a map of zeros) correlates with nothing."""
    x, y = (_ranks(v) for v in (a, b))
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else 0.0


def _ranks(v: Array) -> Array:
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]


def overlap(a: Array, b: Array, share: float = TOP) -> float:
    """Which part of the `share` most relevant entries of `a` is among those of `b`."""
    count = max(1, round(len(a) * share))
    top = [set(np.argsort(-v, kind="stable")[:count].tolist()) for v in (a, b)]
    return len(top[0] & top[1]) / count


def compared(one: Path, other: Path, x: Array, method: str) -> tuple[float, float, float]:
    """(mean Spearman, mean overlap of the top 10 %, share of equal predictions) of two files, for the first one's class."""
    first, second = (Explainer(p, method, threads=2) for p in (one, other))
    found = first(x)
    again = second(x.astype(_takes(other)), target=found.target.index)
    maps = [e.heatmap().astype(np.float64).reshape(len(x), -1) for e in (found, again)]
    if not all(np.isfinite(m).all() for m in maps):
        raise SystemExit(f"{other.name}: {method} gives relevance that is not finite.")
    rank = [spearman(a, b) for a, b in zip(*maps)]
    top = [overlap(a, b) for a, b in zip(*maps)]
    said = [next(iter(e.outputs.values())).reshape(len(x), -1).argmax(1) for e in (found, again)]
    return float(np.mean(rank)), float(np.mean(top)), float((said[0] == said[1]).mean())


def _takes(path: Path) -> np.dtype[Any]:
    kind = onnx.load(path, load_external_data=False).graph.input[0].type.tensor_type.elem_type
    return onnx.helper.tensor_dtype_to_np_dtype(kind)


def own_pictures(model: Path, folder: Path, options: dict[str, Any], count: int) -> tuple[Array, Array]:
    """Pictures to explain and to calibrate on, of a folder, as the model wants them: float32 [N, ...] each."""
    from onnx_explain.cli.explaining import input_specs
    from onnx_explain.data import find_inputs, load, preprocessing

    specs = input_specs(Explainer(model, "gradient"), {}, None)
    read, files = preprocessing(**options), find_inputs([folder])
    samples = [s.feeds[specs[0].name] for f in files[: 2 * count] for s in load(f, specs, read, name=f.stem)]
    half = len(samples) // 2
    return np.concatenate(samples[half:]), np.concatenate(samples[:half])


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--methods", default="gradient,lrp-epsilon-plus,rap")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--pair", nargs=2, type=Path)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--pictures", type=Path, action="append", default=[], help="one per --model")
    parser.add_argument("--preprocessing", type=json.loads, action="append", default=[], help="one per --model")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lines = ["| network | file | method | Spearman | top-10 % overlap | same prediction |", "|---|---|---|---|---|---|"]
    for name, x, files in cases(asked):
        for form, (one, other) in files.items():
            for method in asked.methods.split(","):
                rank, top, same = compared(one, other, x, method)
                lines.append(f"| {name} | {form} | {method} | {rank:.3f} | {top:.3f} | {same:.3f} |")
                print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    if asked.out is None:
        print(text)
    else:
        asked.out.write_text(page(text, asked), encoding="utf-8")


def cases(asked: argparse.Namespace) -> Iterator[tuple[str, Array, dict[str, tuple[Path, Path]]]]:
    """(network, samples, {form: (float file, other file)}) one after the other; files live while their case is used."""
    if asked.pair:
        shape = [d.dim_value or 1 for d in onnx.load(asked.pair[0]).graph.input[0].type.tensor_type.shape.dim]
        x = np.random.default_rng(0).standard_normal([asked.samples, *shape[1:]]).astype(np.float32)
        yield asked.pair[0].stem, x, {asked.pair[1].stem: (asked.pair[0], asked.pair[1])}
        return
    own = [
        (m, *own_pictures(m, p, asked.preprocessing[i] if i < len(asked.preprocessing) else {}, asked.samples))
        for i, (m, p) in enumerate(zip(asked.model, asked.pictures, strict=True))
    ]
    for model, x, calibration in [(MODEL, pictures(asked.samples, seed=1), pictures(64, seed=3)), *own]:
        name = onnx.load(model, load_external_data=False).graph.input[0].name
        with tempfile.TemporaryDirectory() as folder:
            yield (
                model.stem,
                x,
                {
                    f: (model, quantised(model, Path(folder) / f"{f}.onnx", f, calibration, name))
                    for f in asked.forms.split(",")
                },
            )


def page(table: str, asked: argparse.Namespace) -> str:
    """The table with where it comes from."""
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("onnx-explain", "onnxruntime", "onnx", "numpy")
    )
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()  # noqa: UP017
    settings = "; ".join(json.dumps(p) for p in asked.preprocessing)
    return f"""# Int8 and half-precision models against their own float32 model

* command: `python tools/compare_precision.py --forms {asked.forms} --out PAGE`, with `--model`, `--pictures` and `--preprocessing` for the networks that are
  not bundled; they and their pictures are not part of this project{f". Preprocessing: `{settings}`" if settings else ""}
* date: {date}; versions: {versions}, python {platform.python_version()}; {os.cpu_count()} cores

Each file is made from the float32 model by ONNX Runtime's own quantiser (64 calibration pictures for the bundled network, {asked.samples}
for others) and explained straight through on {asked.samples} other pictures, for the float32 model's class. *Spearman*: rank correlation
of the two heat maps (0 where one is all zeros: the class may be dead in the int8 file); *overlap*: share of the 10 % most relevant pixels that both have; means over the pictures.

Relevance of 16-bit files is computed and told in float32; what is left of the difference is that weights and pictures are rounded:
where a maximum is taken among near-equal values, another may win, which the flat background of drawn pictures shows most.

{table}"""


if __name__ == "__main__":
    main()
