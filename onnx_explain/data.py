"""Reading what a user hands over: pictures, ``.npy``/``.npz`` arrays, folders of them, and label files.

A picture is turned upright, resized and scaled to the model's input (:class:`Preprocessing`); an array is taken as it
is and checked against the input (:class:`InputSpec`). Nothing here knows a model file, a method or a runtime.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from onnx_explain.errors import InputError, suggest

Array: TypeAlias = NDArray[Any]
Layout: TypeAlias = Literal["NCHW", "NHWC"]

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
# Named one by one: Pillow also opens formats that start other programs (EPS) or that nobody means by "a picture".
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_CROP_FRACTION = 0.875  # 224 of 256, the ImageNet evaluation crop
_MOST_LABELS = 1_000_000


@dataclass(frozen=True)
class InputSpec:
    """One input of a model: its name, its shape (``None`` = dynamic; axis 0 is the batch), its dtype.

    ``stated_layout`` overrides the layout that :attr:`layout` reads from the shape of a rank-4 input.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    stated_layout: Layout | None = None

    def __post_init__(self) -> None:
        """Raise InputError where ``stated_layout`` is unknown or cannot be this input's."""
        if self.stated_layout is None:
            return
        if self.stated_layout not in get_args(Layout):
            raise InputError(f"Unknown layout {self.stated_layout!r}.{suggest(self.stated_layout, get_args(Layout))}")
        if len(self.shape) != 4:
            raise InputError(
                f"Layout {self.stated_layout} is for inputs of rank 4, but input {self.name!r} is {self}: "
                "leave the layout out."
            )

    def __str__(self) -> str:
        """Return shape and dtype as messages show them: ``[N, 3, 224, 224] float32``."""
        dims = ["N" if d is None and i == 0 else "?" if d is None else str(d) for i, d in enumerate(self.shape)]
        return f"[{', '.join(dims)}] {self.dtype}"

    @property
    def layout(self) -> Layout | None:
        """Where the channels of an image-like input are; None where the input is not image-like.

        A rank-4 input is image-like where axis 1 or axis 3 is 3, 1 or 4. Where both are, 3 beats 1 beats 4, and
        between equals axis 1 is taken (NCHW, ONNX's own convention).
        """
        if self.stated_layout is not None or len(self.shape) != 4:
            return self.stated_layout
        preference: dict[int | None, int] = {3: 0, 1: 1, 4: 2}
        first, last = preference.get(self.shape[1], 3), preference.get(self.shape[3], 3)
        if first == last == 3:
            return None
        return "NCHW" if first <= last else "NHWC"

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels: 1, 3, or None where the input is not image-like."""
        return {"NCHW": 1, "NHWC": 3, None: None}[self.layout]

    @property
    def channels(self) -> int | None:
        """The number of channels of an image-like input; None where dynamic or not image-like."""
        return self._dim({"NCHW": 1, "NHWC": 3})

    @property
    def height(self) -> int | None:
        """The height of an image-like input; None where dynamic or not image-like."""
        return self._dim({"NCHW": 2, "NHWC": 1})

    @property
    def width(self) -> int | None:
        """The width of an image-like input; None where dynamic or not image-like."""
        return self._dim({"NCHW": 3, "NHWC": 2})

    def _dim(self, axis_of: Mapping[Layout, int]) -> int | None:
        return None if self.layout is None else self.shape[axis_of[self.layout]]


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
        if not _is_float(spec.dtype):
            values = np.clip(np.rint(values), *_integer_range(spec))
        return _cast(values, spec.dtype)


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


@dataclass(frozen=True)
class Sample:
    """One thing to explain: a name for its results, an array [1, ...] per input, and for a picture what the model saw.

    picture: uint8 [H, W, 3] RGB at the model's resolution, after resizing, before scaling; None for arrays. frame: which
    part of the file's picture that is.
    """

    name: str
    feeds: dict[str, Array]
    picture: NDArray[np.uint8] | None = None
    frame: Frame | None = None


def find_inputs(arguments: Sequence[str | Path]) -> list[Path]:
    """Return the files that ``arguments`` (files, folders, globs) name: in their order, each file once.

    A folder or a glob gives its pictures and arrays (by suffix), naturally sorted (2 before 10), without hidden files
    and without subfolders; a file that is named itself is taken whatever its suffix.

    Raises InputError: a path that does not exist or cannot be read, or nothing found.
    """
    found: dict[Path, Path] = {}
    for argument in arguments:
        for path in _expand(Path(argument)):
            found.setdefault(path.resolve(), path)
    if not found:
        raise InputError("No input was given: name picture files, .npy/.npz files, folders or globs.")
    return list(found.values())


def _expand(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            candidates, what = list(path.iterdir()), "folder"
        elif path.exists():
            return [path]
        elif any(c in str(path) for c in "*?["):
            anchor = Path(path.anchor)
            candidates, what = list(anchor.glob(str(path.relative_to(anchor)))), "pattern"
        else:
            raise InputError(f"The input {str(path)!r} does not exist.")
        known = PICTURE_SUFFIXES | ARRAY_SUFFIXES
        files = [p for p in candidates if p.suffix.lower() in known and p.name[0] != "." and p.is_file()]
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"The input {str(path)!r} cannot be read: {_reason(error)}.") from error
    if not files:
        raise InputError(f"The {what} {str(path)!r} holds no picture and no .npy or .npz file.")
    return sorted(files, key=_natural)


def _natural(path: Path) -> list[tuple[str | int, ...]]:
    # re.split with a group alternates text and digits, so that equal positions compare like with like
    pieces = re.split(r"(\d+)", str(path))
    return [(int(p),) if i % 2 else (p.lower(), p) for i, p in enumerate(pieces)]


def sample_names(paths: Sequence[Path]) -> list[str]:
    """Return one distinct name per path, fit for result files: the stem, or the file's name where stems clash."""
    stems = [p.stem for p in paths]
    names = [p.stem if stems.count(p.stem) == 1 else p.name for p in paths]
    taken: set[str] = set()
    for i, name in enumerate(names):
        attempt, number = name, 2
        while attempt in taken or (number > 2 and attempt in names):
            attempt, number = f"{name}-{number}", number + 1
        names[i] = attempt
        taken.add(attempt)
    return names


def load(
    path: str | Path,
    specs: Sequence[InputSpec],
    preprocessing: Preprocessing,
    *,
    layout: Layout | None = None,
    name: str | None = None,
) -> Iterator[Sample]:
    """Return the samples of one file for a model with the inputs ``specs``; everything is checked before the first.

    A picture is one sample, for a model whose only input is image-like (``layout`` overrides what its shape says).
    A ``.npy`` is the array of a single input, with or without the batch axis; a ``.npz`` has one array per input, by
    the input's name (any name where model and file have one each; further arrays are left alone). Arrays are not
    preprocessed. Each element along a batch axis is a sample: ``name-0``, ``name-1``, ….

    Raises InputError: unreadable file, wrong shape, layout or dtype, NaN or infinite values.
    """
    path = Path(path)
    name = path.stem if name is None else name
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        return iter([_picture_sample(path, specs, preprocessing, layout, name)])
    if layout is not None:
        specs = [replace(s, stated_layout=layout) if len(s.shape) == 4 else s for s in specs]
    return _array_samples(path, specs, name)


def _picture_sample(
    path: Path, specs: Sequence[InputSpec], preprocessing: Preprocessing, layout: Layout | None, name: str
) -> Sample:
    if len(specs) != 1:
        raise InputError(
            f"{path}: a picture fills one input, but the model has {len(specs)} ({_quoted(s.name for s in specs)}): "
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
    if _is_float(spec.dtype):
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
            with Image.open(path, formats=_FORMATS) as image:
                image.load()
                return _eight_bit(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path}: not a picture of a known format ({', '.join(_FORMATS)}), nor .npy or .npz."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path}: the picture has more pixels than is safe to decode; make it smaller first."
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: the picture cannot be opened: {_reason(error)}.") from error
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        raise InputError(f"{path}: the picture cannot be read: {_reason(error)}.") from error


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


def _array_samples(path: Path, specs: Sequence[InputSpec], name: str) -> Iterator[Sample]:
    rows = {spec.name: _checked(path, spec, array) for spec, array in zip(specs, _arrays(path, specs))}
    counts = {k: len(r) for k, r in rows.items()}
    if len(set(counts.values())) != 1:
        listed = ", ".join(f"{k!r} {n}" for k, n in counts.items())
        raise InputError(f"{path}: the arrays hold different numbers of samples ({listed}): give each input as many.")
    return _rows(rows, specs, next(iter(counts.values())), name)


def _rows(rows: Mapping[str, Array], specs: Sequence[InputSpec], count: int, name: str) -> Iterator[Sample]:
    digits = len(str(count - 1))
    for i in range(count):
        feeds = {
            s.name: _cast(rows[s.name][i : i + 1], s.dtype).reshape((1,) * bool(s.shape) + rows[s.name].shape[1:])
            for s in specs
        }
        yield Sample(name if count == 1 else f"{name}-{i:0{digits}d}", feeds)


def _arrays(path: Path, specs: Sequence[InputSpec]) -> list[Array]:
    """Return the arrays of a file in the order of ``specs``; an ``.npy`` stays on disk until its rows are used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:  # opened here, because NumPy leaves a damaged archive open
                if file.read(2) == b"PK":
                    file.seek(0)
                    archive = np.load(file, allow_pickle=False)
                    return [archive[key] for key in _keys(path, archive.files, specs)]
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: the array file cannot be opened: {_reason(error)}.") from error
    except Exception as error:  # damaged zip, zlib, header and pickle each raise their own
        raise InputError(
            f"{path}: not a readable array file; it is damaged, or holds Python objects rather than numbers "
            f"({_reason(error)})."
        ) from error
    if len(specs) != 1:
        raise InputError(
            f"{path}: one array for a model with {len(specs)} inputs ({_quoted(s.name for s in specs)}): put one array "
            "per input, under its name, into an .npz file."
        )
    return [array]


def _keys(path: Path, files: Sequence[str], specs: Sequence[InputSpec]) -> list[str]:
    names = [s.name for s in specs]
    missing = [n for n in names if n not in files]
    if missing and len(files) == len(names) == 1:
        return list(files)
    if missing:
        raise InputError(
            f"{path}: no array for the input {_quoted(missing)} among {_quoted(files) or 'no arrays'}: save each array "
            "under the name of its input."
        )
    return names


def _checked(path: Path, spec: InputSpec, array: Array) -> Array:
    """Return ``array`` with a batch axis, still in its own dtype, after every check that casting it will need."""
    where = f"{path}: the array for input {spec.name!r}"
    rank = len(spec.shape)
    batched = array.ndim == max(rank, 1)
    body = array.shape[1:] if batched else array.shape
    if not (batched or array.ndim == rank - 1 or rank == 0) or not _fits(body, spec.shape[1:]):
        raise InputError(f"{where} is {list(array.shape)}, but the input is {spec}{_shape_hint(array.shape, spec)}.")
    rows = array if batched else array[None]
    if rows.size == 0:
        raise InputError(f"{where} is {list(array.shape)} and holds no values: give at least one sample.")
    _check_kind(where, array.dtype, spec)
    _check_values(where, rows, spec, batched)
    return rows


def _fits(given: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(given) == len(wanted) and all(w in (None, g) for g, w in zip(given, wanted))


def _shape_hint(given: tuple[int, ...], spec: InputSpec) -> str:
    """Say which one step turns an array of shape ``given`` into what the input takes, or nothing where none does."""
    wanted = spec.shape[1:]
    lead = 1 if len(given) == len(spec.shape) else 0
    body = given[lead:]
    if len(body) == len(wanted) <= 5:
        n = len(body)
        rotations = [(n - 1, *range(n - 1)), (*range(1, n), 0)] if n else []
        for order in [*rotations, *permutations(range(n))]:
            if _fits([body[i] for i in order], wanted):
                axes = (*range(lead), *(i + lead for i in order))
                return f": {_orders(spec, order)}, so transpose it first with np.transpose(x, {axes})"
        if spec.layout is not None and body[2 if spec.layout == "NHWC" else 0] == spec.channels:
            return ": arrays are not resized, so resize it first or give a picture file"
    for axis in range(len(given) + 1):
        grown = (*given[:axis], 1, *given[axis:])
        if _fits(grown, wanted) or _fits(grown[1:], wanted):
            return f": an axis is missing, so add it first with np.expand_dims(x, {axis})"
    for axis in (i for i, d in enumerate(given) if d == 1):
        shrunk = (*given[:axis], *given[axis + 1 :])
        if _fits(shrunk, wanted) or _fits(shrunk[1:], wanted):
            return f": it has one axis too many, so drop it first with np.squeeze(x, {axis})"
    return (
        "" if lead or len(given) == len(wanted) else f": give {len(spec.shape)} axes, or leave out the batch axis alone"
    )


def _orders(spec: InputSpec, order: tuple[int, ...]) -> str:
    if spec.layout == "NCHW" and order == (2, 0, 1):
        return "it has its channels last (HWC) where the input has them first (NCHW)"
    if spec.layout == "NHWC" and order == (1, 2, 0):
        return "it has its channels first (CHW) where the input has them last (NHWC)"
    return "its axes are in another order"


def _check_kind(where: str, given: np.dtype[Any], spec: InputSpec) -> None:
    if not (spec.dtype.kind in "biuf" or _is_float(spec.dtype)):
        raise InputError(f"{where} cannot be used: the input takes {spec.dtype} values, and only numbers can be given.")
    if not (given.kind in "biuf" or _is_float(given)):
        raise InputError(f"{where} holds {given} values, but the input takes numbers ({spec.dtype}).")
    if not _is_float(spec.dtype) and given.kind not in "biu":
        raise InputError(
            f"{where} holds {given} values, but the input takes {spec.dtype}: round and cast it first, for instance "
            f"with np.rint(x).astype(np.{spec.dtype})."
        )


def _check_values(where: str, rows: Array, spec: InputSpec, batched: bool) -> None:
    """Refuse NaN, infinities, and numbers that the input's dtype cannot hold; counts over the whole array."""
    step = max(1, 2**22 // max(1, rows[0].size))
    counts, firsts = {"finite": 0, "range": 0}, dict[str, tuple[int, ...]]()
    for start in range(0, len(rows), step):
        chunk = np.asarray(rows[start : start + step])
        for fault, bad in _faults(chunk, spec).items():
            if bad.any():
                first = np.argwhere(bad)[0]
                first[0] += start
                counts[fault] += int(bad.sum())
                firsts.setdefault(fault, tuple(int(i) for i in first[0 if batched else 1 :]))
    for fault, what in (("finite", "NaN or infinite"), ("range", f"beyond the range of {spec.dtype}")):
        if counts[fault]:
            raise InputError(
                f"{where} has {counts[fault]} of {rows.size} values that are {what}, the first at "
                f"{list(firsts[fault])}: mend the data first."
            )


def _faults(chunk: Array, spec: InputSpec) -> dict[str, Array]:
    if _is_float(spec.dtype):
        if not _is_float(chunk.dtype):
            return {"range": ~np.isfinite(_cast(chunk, spec.dtype))}
        finite = np.isfinite(chunk)
        return {"finite": ~finite, "range": finite & ~np.isfinite(_cast(chunk, spec.dtype))}
    lowest, highest = _integer_range(spec)
    return {"range": (chunk < lowest) | (chunk > highest)}


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(values, dtype=dtype, order="C")


def _is_float(dtype: np.dtype[Any]) -> bool:
    # bfloat16 and the 8-bit floats come from ml_dtypes, whose kind is "V"
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def _integer_range(spec: InputSpec) -> tuple[int, int]:
    if spec.dtype.kind == "b":
        return 0, 1
    if spec.dtype.kind not in "iu":
        raise InputError(f"Input {spec.name!r} takes {spec.dtype} values, which a picture cannot give.")
    limits = np.iinfo(spec.dtype)
    return int(limits.min), int(limits.max)


def read_labels(path: str | Path) -> list[str]:
    """Return the class names of a label file, by class index.

    The file has one label per line, or is JSON: a list of labels, or an object {index: label}; a JSON label is a name,
    a pair [wnid, name], or an object with a "name". An index without a label gets its own number as its name.

    Raises InputError: unreadable, empty, or none of these forms.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: the label file cannot be read as UTF-8 text: {_reason(error)}.") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    labels = _json_labels(path, text) if path.suffix.lower() == ".json" else lines
    if not labels or "\0" in text:
        raise InputError(f"{path}: the label file holds no labels: write one per line, or JSON {{index: name}}.")
    return [label or str(i) for i, label in enumerate(labels)]


def _json_labels(path: Path, text: str) -> list[str]:
    try:
        parsed = json.loads(text)
        if isinstance(parsed, list):
            return [_label(entry) for entry in parsed]
        by_index = {int(k): _label(v) for k, v in parsed.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a label file: it must be a JSON list or {{index: name}} ({_reason(error)})."
        ) from error
    if by_index and not 0 <= min(by_index) <= max(by_index) < _MOST_LABELS:
        raise InputError(f"{path}: a label's index lies outside 0..{_MOST_LABELS - 1}.")
    return [by_index.get(i, "") for i in range(max(by_index, default=-1) + 1)]


def _label(entry: object) -> str:
    if isinstance(entry, dict):
        entry = entry.get("name")
    if isinstance(entry, list) and entry:
        entry = entry[-1]
    if not isinstance(entry, str):
        raise ValueError(f"{entry!r} is not a name")
    return entry.strip()


def _reason(error: BaseException) -> str:
    """Return an error of another library as part of a sentence: one line, no full stop."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()).rstrip(".")[:200] or type(error).__name__


def _quoted(names: Any) -> str:
    return ", ".join(repr(n) for n in names)
