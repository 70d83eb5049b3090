"""A small set of shapes on disk or in memory, the bundled network, and tasks over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onnx_explain import shapes
from onnx_explain.annotations import LabelFile, source_of
from onnx_explain.data import InputSpec, Preprocessing, find_inputs
from onnx_explain.evaluation import DataSet, Known, Settings, Task

MODEL = Path(str(resources.files("onnx_explain") / "bundled" / "shapes_cnn.onnx"))
SPEC = InputSpec("input", (None, 3, 64, 64), np.dtype(np.float32))
METRICS = ("outside-inside", "segmentation", "pointing-game", "relevance-rank", "deletion")
OPTIONS = {"tolerance": 0.0, "deletion.step": 1024}


def write(folder: Path, count: int, *, seed: int = 5) -> Path:
    """Pictures, masks and classes in a folder."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = ["file,class"]
    for i, sample in enumerate(shapes.dataset(count, seed=seed)):
        Image.fromarray(sample.image).save(folder / "images" / f"{i:03d}.png")
        Image.fromarray(sample.mask.astype(np.uint8) * 255).save(folder / "masks" / f"{i:03d}.png")
        lines.append(f"{i:03d}.png,{shapes.CLASSES[sample.label]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def data_of(folder: Path, **known: Any) -> DataSet:
    """The set of a folder with its masks and classes."""
    return DataSet(
        find_inputs([folder / "images"]),
        [spec()],
        Preprocessing(),
        None,
        Known(
            **{
                "masks": source_of(folder / "masks", "masks"),
                "labels": LabelFile(folder / "labels.csv"),
                "classes": shapes.CLASSES,
                **known,
            }
        ),
    )


def spec() -> InputSpec:
    """The bundled network's input."""
    from onnx_explain import Explainer

    [(name, (shape, dtype))] = Explainer(MODEL, "gradient").inputs.items()
    return InputSpec(name, shape, dtype)


def task(data: DataSet, out: Path, methods: Sequence[str] = ("gradient", "rap"), **changed: Any) -> Task:
    """A task over a set that runs in a second or two."""
    settings = changed.pop("settings", Settings(MODEL, threads=1))
    return Task(
        settings, data, methods, changed.pop("metrics", METRICS), out, changed.pop("metric_options", OPTIONS), **changed
    )


def values(run: Any) -> dict[tuple[int, str, str], float]:
    """Every value of a run by (sample, method, metric), NaN where it is missing; fails where one is there twice."""
    found: dict[tuple[int, str, str], float] = {}
    for measure in run.measures:
        for column in measure.columns:
            for part in run.journal.columns(column.name):
                for sample, method, value in zip(part["sample"], part["method"], part["value"]):
                    key = (sample, method, column.name)
                    assert key not in found, key
                    found[key] = math.nan if value is None else value
    return found
