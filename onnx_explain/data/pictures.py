"""A picture file as a sample: turned upright, resized, scaled to the model's input."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from onnx_explain.data.preprocessing import Frame, Preprocessing
from onnx_explain.data.samples import Sample
from onnx_explain.data.specs import InputSpec, Layout, is_float, quoted, reason
from onnx_explain.errors import InputError

# Named one by one: Pillow also opens formats that start other programs (EPS) or that nobody means by "a picture".
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "PPM")  # AVIF: where this Pillow has it
_CROP_FRACTION = 0.875  # 224 of 256, the ImageNet evaluation crop


def picture_sample(
    path: Path, specs: Sequence[InputSpec], preprocessing: Preprocessing, layout: Layout | None, name: str
) -> Sample:
    """The sample of a picture file, for a model whose only input is image-like; InputError."""
    if len(specs) != 1:
        raise InputError(
            f"{path}: a picture fills one input, but the model has {len(specs)} ({quoted(s.name for s in specs)}): "
            "put one array per input, under its name, into an .npz file."
        )
    spec = specs[0] if layout is None else replace(specs[0], stated_layout=layout)
    if spec.layout is None:
        how = ": state the layout, NCHW or NHWC." if len(spec.shape) == 4 else ": give an .npy array."
        raise InputError(f"{path}: a picture does not fit input {spec.name!r}, {spec}, which is not image-like{how}")
    channels = 3 if spec.channels is None else spec.channels
    if channels not in (1, 3, 4):
        raise InputError(
            f"{path}: a picture has 1, 3 or 4 channels, but input {spec.name!r} is {spec} in layout {spec.layout}: "
            "give an .npy array, or state the other layout."
        )
    _check_levels(preprocessing, spec, channels)
    decoded = _as_mode(_decoded(path), channels, preprocessing)
    frame = _frame(decoded, spec, preprocessing)
    resized = _resized(decoded, frame, preprocessing)
    pixels = np.asarray(resized).reshape(resized.height, resized.width, channels)
    if preprocessing.channel_order == "bgr" and channels > 1:
        pixels = pixels[..., [2, 1, 0, 3][:channels]]
    values = preprocessing(pixels, spec)
    values = values.transpose(2, 0, 1) if spec.layout == "NCHW" else values
    shown = np.array(_as_mode(resized, 3, preprocessing))
    return Sample(name, {spec.name: np.ascontiguousarray(values[None])}, shown, frame)


def _check_levels(preprocessing: Preprocessing, spec: InputSpec, channels: int) -> None:
    """Refuse a preprocessing that leaves no picture in an integer input, such as 0..1 rounded to uint8."""
    if is_float(spec.dtype):
        return
    ramp = np.broadcast_to(np.arange(256)[:, None, None], (256, 1, channels))
    levels = preprocessing(ramp, spec)
    kept = min(len(np.unique(levels[..., c])) for c in range(channels))
    if kept <= 128:
        remedy = "scale 1, mean 128 and std 1" if spec.dtype == np.int8 else "the preset '0..255'"
        raise InputError(
            f"Input {spec.name!r} takes {spec.dtype} values, where this preprocessing leaves {kept} of 256 brightness "
            f"levels: use {remedy}."
        )


def _decoded(path: Path) -> Image.Image:
    """Return the first picture of a file, upright, in mode L, RGB or RGBA."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what it survived; what it did not survive it raises
            Image.init()
            with Image.open(path, formats=[f for f in _FORMATS if f in Image.OPEN]) as image:
                image.load()
                return _eight_bit(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path}: not a picture of a known format ({', '.join(_FORMATS)}), nor an array (.npy, .npz) or table (.csv, .tsv)."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: the picture has more pixels than is safe to decode; make it smaller first."
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: the picture cannot be opened: {reason(error)}.") from error
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        raise InputError(f"{path}: the picture cannot be read: {reason(error)}.") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save them as an .npy array")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels go beyond 16 bits; save them as an .npy array")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "1"):
        return image.convert("L")
    return image.convert("RGB")


def _as_mode(image: Image.Image, channels: int, preprocessing: Preprocessing) -> Image.Image:
    if channels == 4:
        return image.convert("RGBA")
    if image.mode == "RGBA":
        behind = Image.new("RGBA", image.size, (*preprocessing.background, 255))
        image = Image.alpha_composite(behind, image)
    return image.convert("L" if channels == 1 else "RGB")


def _frame(image: Image.Image, spec: InputSpec, preprocessing: Preprocessing) -> Frame:
    height, width = _target_size(image, spec, preprocessing.size)
    source, whole = (image.height, image.width), (0.0, 0.0, float(image.width), float(image.height))
    if preprocessing.resize == "stretch" or (spec.height is None and spec.width is None and preprocessing.size is None):
        return Frame(source, (height, width), whole)
    scale = max(width / image.width, height / image.height) / _CROP_FRACTION
    # The whole picture would become wide x high; only the crop is computed, on the same grid of pixels.
    wide, high = (max(crop, int(n * scale + 1e-6)) for crop, n in ((width, image.width), (height, image.height)))
    left, top = round((wide - width) / 2), round((high - height) / 2)
    across, down = image.width / wide, image.height / high
    return Frame(source, (height, width), (left * across, top * down, (left + width) * across, (top + height) * down))


def _resized(image: Image.Image, frame: Frame, preprocessing: Preprocessing) -> Image.Image:
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[preprocessing.interpolation]
    if frame.source == frame.size and frame.box == (0.0, 0.0, float(image.width), float(image.height)):
        return image
    return image.resize(frame.size[::-1], resample, box=frame.box)


def _target_size(image: Image.Image, spec: InputSpec, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return (height, width): the model's; where that is dynamic the stated one, then the one that keeps the shape."""
    height, width = spec.height, spec.width
    if size is not None:
        if any(fixed not in (None, stated) for fixed, stated in zip((height, width), size)):
            raise InputError(f"The size {size[0]} x {size[1]} was asked for, but input {spec.name!r} is {spec}.")
        return size
    if height is None and width is None:
        return image.height, image.width
    if height is None:
        height = max(1, round((width or 1) * image.height / image.width))
    return height, max(1, round(height * image.width / image.height)) if width is None else width
