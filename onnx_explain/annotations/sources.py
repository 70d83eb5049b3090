"""Which reader a file or folder of annotations wants, told by what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from onnx_explain.annotations.coco import CocoFile
from onnx_explain.annotations.masks import SUFFIXES, MaskFolder
from onnx_explain.annotations.truth import Source
from onnx_explain.annotations.voc import VocFolder
from onnx_explain.errors import InputError


def source_of(path: Path, kind: Literal["masks", "boxes"]) -> Source:
    """The reader of `path`: a folder of masks, of VOC's XML, or a COCO file (its outlines or its boxes). Raises InputError."""
    if path.is_file() and path.suffix.lower() == ".json":
        return CocoFile(path, boxes=kind == "boxes")
    if not path.is_dir():
        there = "is neither a folder nor a .json file" if path.exists() else "does not exist"
        raise InputError(f"{path}: the {kind} cannot be read: it {there}.")
    try:
        suffixes = {p.suffix.lower() for p in path.iterdir() if not p.name.startswith(".")}
    except OSError as error:
        raise InputError(f"{path}: the {kind} cannot be read: {error.strerror or error}.") from error
    if kind == "boxes":
        if ".xml" in suffixes:
            return VocFolder(path)
        raise InputError(f"{path}: no .xml file of boxes in this folder; give VOC's annotations or a COCO .json file.")
    if suffixes & set(SUFFIXES):
        return MaskFolder(path)
    raise InputError(f"{path}: no mask picture ({', '.join(SUFFIXES)}) in this folder.")
