"""How pixels become input values: range, mean, std, order of colours, size; and what the model saw of a picture.

No file is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnx_explain.data.specs import Array, InputSpec, cast, integer_range, is_float
from onnx_explain.errors import InputError, suggest


@dataclass(frozen=True)
class Preprocessing:
    """How pixels (0..255) become input values: ``x = (pixel * scale - mean) / std``.

    mean, std: one value, or one per channel *in the model's own channel order*, in units after ``scale``.
    channel_order: "rgb" or "bgr", the order the model wants.
    resize: "stretch" to the input's size, or "crop": the picture is scaled until it covers the size / 0.875, then the
        centre is cut out (ImageNet's evaluation convention: 224 out of 256).
    interpolation: "bilinear" or "bicubic", antialiased.
    background: the colour (R, G, B) behind transparent pixels, for models without an alpha channel.
    size: (height, width) for the dynamic axes of a model; without it those take the picture's own size.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    resize: Literal["stretch", "crop"] = "stretch"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    background: tuple[int, int, int] = (255, 255, 255)
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raise InputError where the values make no preprocessing."""
        for option, known in _CHOICES.items():
            if getattr(self, option) not in known:
                raise InputError(
                    f"Unknown {option} {getattr(self, option)!r}.{suggest(str(getattr(self, option)), known)}"
                )
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"The scale of the preprocessing is {self.scale}, but it must be positive.")
        if not self.std or not all(np.isfinite(s) and s > 0 for s in self.std):
            raise InputError(f"The std of the preprocessing is {self.std}, but every value must be positive.")
        brightest = 255 * self.scale
        if not self.mean or not all(0 <= m <= brightest * 1.001 for m in self.mean):
            raise InputError(
                f"The mean {self.mean} lies outside 0..{brightest:g}, the range of pixels times scale {self.scale:g}: "
                "mean and std count in units after the scale, so use the preset '0..255' for a mean in pixel values."
            )
        if len(self.background) != 3 or not all(0 <= c <= 255 for c in self.background):
            raise InputError(f"The background is {self.background}, but it must be three values (R, G, B) in 0..255.")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise InputError(f"The size is {self.size}, but it must be a positive height and width.")

    def __call__(self, pixels: Array, spec: InputSpec) -> Array:
        """Return ``pixels`` (uint8 [H, W, C], the model's channel order) as input values [H, W, C] of spec's dtype."""
        for what, given in (("mean", self.mean), ("std", self.std)):
            if len(given) not in (1, pixels.shape[-1]):
                raise InputError(
                    f"The preprocessing has {len(given)} values of {what}, but input {spec.name!r} ({spec}) has "
                    f"{pixels.shape[-1]} channel(s): give one value, or one per channel."
                )
        values: Array = (pixels * np.float64(self.scale) - np.asarray(self.mean)) / np.asarray(self.std)
        if not is_float(spec.dtype):
            values = np.clip(np.rint(values), *integer_range(spec))
        return cast(values, spec.dtype)


_CHOICES: dict[str, tuple[str, ...]] = {
    "channel_order": ("rgb", "bgr"),
    "resize": ("stretch", "crop"),
    "interpolation": ("bilinear", "bicubic"),
}

PRESETS: Mapping[str, Preprocessing] = {
    "imagenet": Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize="crop"),
    "0..1": Preprocessing(),
    "-1..1": Preprocessing(mean=(0.5,), std=(0.5,)),
    "0..255": Preprocessing(scale=1.0),
}


def preprocessing(
    preset: str | None = None,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    **options: Any,
) -> Preprocessing:
    """Return the preset (default ``0..1``) with the given fields of :class:`Preprocessing` in place of its own.

    Raises InputError: unknown preset or option, or values that make no preprocessing.
    """
    name = "0..1" if preset is None else preset
    if name not in PRESETS:
        raise InputError(f"Unknown preprocessing preset {name!r}.{suggest(name, PRESETS)}")
    given = {"mean": mean, "std": std, **options}
    for option in given:
        if option not in Preprocessing.__dataclass_fields__:
            raise InputError(
                f"Unknown preprocessing option {option!r}.{suggest(option, Preprocessing.__dataclass_fields__)}"
            )
    fields = {k: v for k, v in given.items() if v is not None}
    try:
        for option in fields.keys() & {"mean", "std"}:
            fields[option] = tuple(float(v) for v in np.atleast_1d(fields[option]))
        for option in fields.keys() & {"background", "size"}:
            fields[option] = tuple(int(v) for v in fields[option])
        return replace(PRESETS[name], **fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"The preprocessing options {fields} are not numbers of the right kind: {error}.") from error


@dataclass(frozen=True)
class Frame:
    """What the model saw of a picture: the part `box` (left, top, right, bottom, in the picture's pixels; it may be cut
    between pixels) of a picture of `source` (height, width), drawn at `size` (height, width).
    """

    source: tuple[int, int]
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask [height, width] of the picture as one of the model's view, [H, W]: nearest pixel.

        Raises InputError: a mask of another size than the picture.
        """
        if mask.shape != self.source:
            raise InputError(
                f"The mask is {mask.shape[0]} x {mask.shape[1]} pixels, but its picture {self.source[0]} x {self.source[1]}."
            )
        image = Image.fromarray(mask.astype(np.uint8))
        drawn = image.resize(self.size[::-1], Image.Resampling.NEAREST, box=self.box)
        return np.asarray(drawn).astype(bool)

    def rectangle(self, box: Sequence[float]) -> tuple[float, float, float, float] | None:
        """A rectangle (x0, y0, x1, y1) of the picture in pixels of the model's view; None where it lies outside."""
        left, top, right, bottom = self.box
        (height, width), (x0, y0, x1, y1) = self.size, box
        across, down = width / (right - left), height / (bottom - top)
        found = (x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down
        clipped = max(found[0], 0.0), max(found[1], 0.0), min(found[2], width), min(found[3], height)
        return clipped if clipped[0] < clipped[2] and clipped[1] < clipped[3] else None
