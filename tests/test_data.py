"""Pictures, arrays, folders and labels become what a model takes, or one clear sentence."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from onnx_explain.data import (
    PRESETS,
    InputSpec,
    Preprocessing,
    Sample,
    find_inputs,
    load,
    preprocessing,
    read_labels,
    sample_names,
)
from onnx_explain.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "images"
FLOAT = np.dtype(np.float32)
PIXELS = PRESETS["0..255"]


def spec(*shape: int | None, dtype: Any = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, shape, np.dtype(dtype))


def only(path: Path, *specs: InputSpec, using: Preprocessing = PIXELS, **options: Any) -> Sample:
    (sample,) = load(path, specs, using, **options)
    return sample


def values(path: Path, *shape: int | None, **options: Any) -> np.ndarray:
    return only(path, spec(*shape, dtype=options.pop("dtype", np.float32)), **options).feeds["x"]


def refusal(path: Path, *specs: InputSpec, using: Preprocessing = PIXELS, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        list(load(path, specs, using, **options))
    message = str(caught.value)
    assert path.name in message or "preprocessing" in message
    assert "\n" not in message
    return message


def picture(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def gradient(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: red grows to the right, green downwards, blue is constant."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), np.full_like(x, 64)], -1).astype("u1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


# the layout of an input


@pytest.mark.parametrize(
    ("shape", "layout", "chw"),
    [
        ((None, 3, 224, 224), "NCHW", (3, 224, 224)),
        ((1, 32, 32, 3), "NHWC", (3, 32, 32)),
        ((None, 28, 28, 1), "NHWC", (1, 28, 28)),
        ((1, 1, 28, 28), "NCHW", (1, 28, 28)),
        ((1, 1, 28, 1), "NCHW", (1, 28, 1)),
        ((1, 4, 4, 3), "NHWC", (3, 4, 4)),
        ((1, 3, 48, 1), "NCHW", (3, 48, 1)),
        ((1, 1, 48, 4), "NCHW", (1, 48, 4)),
        ((None, 3, None, None), "NCHW", (3, None, None)),
        ((None, None, None, 4), "NHWC", (4, None, None)),
        ((None, None, None, None), None, (None, None, None)),
        ((1, 64, 7, 7), None, (None, None, None)),
        ((None, 3, 224), None, (None, None, None)),
        ((None, 63), None, (None, None, None)),
        ((), None, (None, None, None)),
    ],
)
def test_the_layout_is_read_from_the_shape(
    shape: tuple[int | None, ...], layout: str | None, chw: tuple[int | None, ...]
) -> None:
    given_spec = spec(*shape)
    assert given_spec.layout == layout
    assert given_spec.channel_axis == {"NCHW": 1, "NHWC": 3, None: None}[layout]
    assert (given_spec.channels, given_spec.height, given_spec.width) == chw


def test_a_stated_layout_wins_over_the_shape() -> None:
    stated = InputSpec("x", (1, 3, 8, 3), FLOAT, "NHWC")
    assert (stated.layout, stated.channels, stated.height, stated.width) == ("NHWC", 3, 3, 8)


@pytest.mark.parametrize(("shape", "layout"), [((1, 3, 8, 8), "CHWN"), ((1, 3, 8), "NCHW")])
def test_an_impossible_layout_is_refused(shape: tuple[int, ...], layout: Any) -> None:
    with pytest.raises(InputError, match=layout):
        InputSpec("x", shape, FLOAT, layout)


# preprocessing


@pytest.mark.parametrize(
    ("preset", "black", "white"), [("0..1", 0, 1), ("-1..1", -1, 1), ("0..255", 0, 255), ("imagenet", -2.1179, 2.2489)]
)
def test_a_preset_maps_black_and_white_to_its_range(folder: Path, preset: str, black: float, white: float) -> None:
    half = np.zeros((8, 8, 3), "u1")
    half[:, 4:] = 255
    using = preprocessing(preset, resize="stretch")
    x = values(picture(folder / "half.png", half), 1, 3, 8, 8, using=using)
    np.testing.assert_allclose([x[0, 0, 0, 0], x[0, 0, 0, 7]], [black, white], atol=1e-4)


def test_the_imagenet_preset_is_the_reference_formula(folder: Path) -> None:
    pixels = gradient(256, 256)
    x = values(picture(folder / "a.png", pixels), None, 3, 224, 224, using=PRESETS["imagenet"])
    crop = pixels[16:240, 16:240] / 255
    expected = (crop - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(x[0].transpose(1, 2, 0), expected, atol=1e-6)


def test_explicit_mean_and_std_follow_the_models_channel_order(folder: Path) -> None:
    path = picture(folder / "a.png", np.full((4, 4, 3), (200, 100, 50)))
    caffe = preprocessing("0..255", mean=(104, 117, 123), std=2, channel_order="bgr")
    x = values(path, 1, 3, 4, 4, using=caffe)
    np.testing.assert_allclose(x[0, :, 0, 0], [(50 - 104) / 2, (100 - 117) / 2, (200 - 123) / 2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "imagnet"}, "Did you mean 'imagenet'"),
        ({"mean": (123.7, 116.3, 103.5)}, "0..255"),
        ({"std": 0}, "positive"),
        ({"std": float("nan")}, "positive"),
        ({"mean": float("nan")}, "range"),
        ({"mean": "grey"}, "not numbers"),
        ({"mean": ()}, "mean"),
        ({"scale": -1}, "scale"),
        ({"channel_order": "gbr"}, "channel_order"),
        ({"resize": "fit"}, "resize"),
        ({"interpolation": "nearest"}, "interpolation"),
        ({"background": (0, 0, 300)}, "background"),
        ({"size": (0, 10)}, "size"),
        ({"size": 224}, "right kind"),
        ({"sdt": 2}, "Did you mean 'std'"),
    ],
)
def test_a_preprocessing_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        preprocessing(**options)
    assert said in str(caught.value)


def test_as_many_means_as_channels_are_needed(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(8, 8))
    assert "3 values of mean" in refusal(path, spec(1, 1, 8, 8), using=PRESETS["imagenet"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64])
def test_an_integer_input_takes_rounded_pixels(folder: Path, dtype: Any) -> None:
    path = picture(folder / "a.png", gradient(6, 6))
    x = values(path, 1, 6, 6, 3, dtype=dtype)
    assert x.dtype == dtype
    np.testing.assert_array_equal(x[0], gradient(6, 6))


def test_a_signed_byte_input_takes_centred_pixels_clipped_to_its_range(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(6, 6))
    centred = preprocessing("0..255", mean=128)
    np.testing.assert_array_equal(values(path, 1, 6, 6, 3, dtype=np.int8, using=centred)[0], gradient(6, 6) - 128.0)
    clipped = values(path, 1, 6, 6, 3, dtype=np.int8, using=preprocessing("0..255", mean=104))
    assert clipped.max() == 127


@pytest.mark.parametrize(
    ("dtype", "preset"), [(np.uint8, "0..1"), (np.uint8, "imagenet"), (np.int8, "0..255"), (np.int32, "-1..1")]
)
def test_a_preset_that_leaves_no_picture_in_an_integer_input_is_refused(folder: Path, dtype: Any, preset: str) -> None:
    path = picture(folder / "a.png", gradient(6, 6))
    said = refusal(path, spec(1, 3, 6, 6, dtype=dtype), using=PRESETS[preset])
    assert "brightness levels" in said and ("mean 128" in said if dtype is np.int8 else "'0..255'" in said)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_given_in_the_inputs_dtype(folder: Path, dtype: Any) -> None:
    x = values(picture(folder / "a.png", gradient(6, 6)), 1, 3, 6, 6, dtype=dtype, using=PRESETS["0..1"])
    assert x.dtype == dtype
    np.testing.assert_allclose(x[0].transpose(1, 2, 0), gradient(6, 6) / 255, atol=5e-4)


def test_a_bfloat16_input_counts_as_floating_point(folder: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="comes with onnx")
    x = values(picture(folder / "a.png", gradient(6, 6)), 1, 3, 6, 6, dtype=ml_dtypes.bfloat16)
    assert x.dtype == ml_dtypes.bfloat16 and float(x.max()) == 255
    np.save(folder / "a.npy", np.full((1, 2), np.nan))
    assert "2 of 2" in refusal(folder / "a.npy", spec(1, 2, dtype=ml_dtypes.bfloat16))


# pictures


def test_nchw_and_nhwc_inputs_get_the_same_pixels(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(10, 14))
    first, last = values(path, 1, 3, 10, 14), values(path, 1, 10, 14, 3)
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)
    np.testing.assert_array_equal(last[0], gradient(10, 14))
    assert first.flags.c_contiguous and last.flags.c_contiguous


def test_the_picture_of_a_sample_is_what_the_model_saw(folder: Path) -> None:
    path = picture(folder / "cat.png", gradient(60, 90))
    sample = only(path, spec(None, 3, 32, 48), using=preprocessing("0..255", channel_order="bgr"))
    assert sample.name == "cat"
    assert sample.picture is not None and sample.picture.dtype == np.uint8
    np.testing.assert_array_equal(sample.feeds["x"][0].transpose(1, 2, 0)[..., ::-1], sample.picture)


def test_a_cropped_picture_equals_a_resized_and_cut_one(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for height, width in ((90, 70), (70, 90), (33, 200), (300, 301), (20, 20)):
        pixels = rng.integers(0, 256, (height, width, 3), dtype="u1")
        x = values(picture(folder / "a.png", pixels), 1, 28, 28, 3, using=preprocessing("0..255", resize="crop"))
        short = min(height, width)
        whole = Image.fromarray(pixels).resize(
            (int(32 * width / short), int(32 * height / short)), Image.Resampling.BILINEAR
        )
        left, top = round((whole.width - 28) / 2), round((whole.height - 28) / 2)
        expected = np.asarray(whole.crop((left, top, left + 28, top + 28))).astype(float)
        assert np.abs(x[0] - expected).max() <= 1  # one level: the rounding of Pillow's two passes


def test_a_crop_of_an_extreme_strip_stays_small(folder: Path) -> None:
    path = picture(folder / "strip.png", np.zeros((1, 20000, 3)))
    assert values(path, 1, 3, 64, 64, using=PRESETS["imagenet"]).shape == (1, 3, 64, 64)


def test_bicubic_interpolation_differs_from_bilinear(folder: Path) -> None:
    path = picture(folder / "a.png", np.random.default_rng(0).integers(0, 256, (9, 9, 3)))
    bilinear, bicubic = (
        values(path, 1, 3, 20, 20, using=preprocessing("0..255", interpolation=i)) for i in ("bilinear", "bicubic")
    )
    assert np.abs(bilinear - bicubic).max() > 5


def test_dynamic_axes_take_the_pictures_own_size(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(20, 50))
    assert values(path, None, 3, None, None).shape == (1, 3, 20, 50)
    assert values(path, None, 3, None, None, using=PRESETS["imagenet"]).shape == (1, 3, 20, 50)


def test_one_dynamic_axis_keeps_the_pictures_proportions(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(20, 50))
    assert values(path, None, 3, 48, None).shape == (1, 3, 48, 120)
    assert values(path, None, None, 25, 3).shape == (1, 10, 25, 3)


def test_a_stated_size_fills_dynamic_axes_and_nothing_else(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(20, 50))
    using = preprocessing("0..255", size=(48, 192))
    assert values(path, None, 3, None, None, using=using).shape == (1, 3, 48, 192)
    assert "48 x 192" in refusal_without_name(path, spec(1, 3, 32, 32), using)


def refusal_without_name(path: Path, given_spec: InputSpec, using: Preprocessing) -> str:
    with pytest.raises(InputError) as caught:
        load(path, [given_spec], using)
    return str(caught.value)


def test_a_model_without_known_channels_needs_a_layout(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(6, 8))
    assert "state the layout" in refusal(path, spec(None, None, None, None))
    assert values(path, None, None, None, None, layout="NHWC").shape == (1, 6, 8, 3)
    assert "layout NCHW" in refusal(path, spec(1, 7, 8, 9), layout="NCHW")


def test_a_picture_does_not_fit_a_table_a_signal_or_two_inputs(folder: Path) -> None:
    path = picture(folder / "a.png", gradient(6, 6))
    assert "not image-like" in refusal(path, spec(None, 63))
    assert ".npz" in refusal(path, spec(1, 3, 6, 6), spec(1, 4, name="size"))


def test_grey_and_rgba_inputs_get_grey_and_rgba(folder: Path) -> None:
    path = picture(folder / "a.png", np.full((4, 4, 3), (255, 0, 0)))
    grey = only(path, spec(1, 1, 4, 4))
    assert grey.feeds["x"][0, 0, 0, 0] == 76  # ITU-R 601 luma of pure red
    assert grey.picture is not None and grey.picture[0, 0].tolist() == [76, 76, 76]
    rgba = only(path, spec(1, 4, 4, 4), using=preprocessing("0..255", channel_order="bgr"))
    assert rgba.feeds["x"][0, :, 0, 0].tolist() == [0, 0, 255, 255]
    assert rgba.picture is not None and rgba.picture[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (10, 200, 30)])
def test_the_background_shows_through_transparent_pixels(folder: Path, colour: tuple[int, int, int]) -> None:
    pixels = np.zeros((4, 4, 4), "u1")
    pixels[:, 2:] = (9, 8, 7, 255)
    using = preprocessing("0..255", background=colour)
    x = values(picture(folder / "a.png", pixels), 1, 4, 4, 3, using=using)
    assert x[0, 0, 0].tolist() == list(colour) and x[0, 0, 3].tolist() == [9, 8, 7]
    kept = values(folder / "a.png", 1, 4, 4, 4, using=using, layout="NHWC")
    assert kept[0, 0, 0, 3] == 0 and kept[0, 0, 3].tolist() == [9, 8, 7, 255]


def test_the_exif_orientation_is_followed(folder: Path) -> None:
    upright = gradient(16, 24)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned 90 degrees counter-clockwise
    Image.fromarray(np.rot90(upright)).save(folder / "a.png", exif=exif)
    np.testing.assert_array_equal(values(folder / "a.png", None, None, None, 3)[0], upright)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_colour_mode_is_read(folder: Path, mode: str, channels: int) -> None:
    path = folder / "a.tiff"
    if mode == "HSV":
        path = picture(folder / "a.png", gradient(9, 9))
    else:
        Image.fromarray(gradient(9, 9)).convert("RGB" if mode == "LAB" else mode).save(path)
    assert values(path, 1, channels, 9, 9).shape == (1, channels, 9, 9)


def test_a_palette_with_transparency_is_composed(folder: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((3, 3), 1)
    image.save(folder / "a.png", transparency=0)
    x = values(folder / "a.png", 1, 4, 4, 3, using=preprocessing("0..255", background=(0, 0, 9)))
    assert x[0, 0, 0].tolist() == [0, 0, 9] and x[0, 3, 3].tolist() == [0, 255, 0]


def test_a_cmyk_jpeg_looks_like_its_rgb_original(folder: Path) -> None:
    Image.fromarray(gradient(32, 32)).convert("CMYK").save(folder / "a.jpg", quality=98)
    assert np.abs(values(folder / "a.jpg", 1, 32, 32, 3)[0] - gradient(32, 32)).mean() < 4


def test_sixteen_bits_are_brought_to_eight(folder: Path) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    for suffix in ("png", "tiff"):
        Image.fromarray(ramp).save(folder / f"a.{suffix}")
        np.testing.assert_array_equal(values(folder / f"a.{suffix}", 1, 1, 16, 16)[0, 0].ravel(), np.arange(256))


def test_floating_point_and_wider_pixels_are_refused(folder: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "f.tiff")
    assert "floating-point" in refusal(folder / "f.tiff", spec(1, 1, 4, 4))
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(folder / "i.tiff")
    assert "16 bits" in refusal(folder / "i.tiff", spec(1, 1, 4, 4))


def test_damaged_and_foreign_files_are_refused_by_name(folder: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="u1")).save(whole, "PNG")
    files = {
        "cut.png": whole.getvalue()[:2000],
        "empty.png": b"",
        "text.jpg": b"hello",
        "page.eps": b"%!PS-Adobe-3.0 EPSF\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
        refusal(folder / name, spec(1, 3, 8, 8))
    with zipfile.ZipFile(folder / "other.npz", "w") as archive:
        archive.writestr("../../x.npy", b"no array")
    assert "no .npy file" in refusal(folder / "other.npz", spec(1, 3, 8, 8))
    assert "opened" in refusal(folder / "missing.png", spec(1, 3, 8, 8))
    assert "opened" in refusal(folder, spec(1, 3, 8, 8))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(folder: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    (folder / "bomb.png").write_bytes(png)
    assert "more pixels" in refusal(folder / "bomb.png", spec(1, 3, 8, 8))


KINDS = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "npy", "npz", *(["AVIF"] if features.check("avif") else [])]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
def test_an_avif_picture_is_read_and_found_in_a_folder(folder: Path) -> None:
    grey = np.full((8, 8, 3), 128, np.uint8)
    Image.fromarray(grey).save(folder / "a.avif")
    [path] = find_inputs([folder])
    assert np.abs(values(path, 1, 8, 8, 3) - 128).max() <= 2


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8), st.sampled_from(KINDS), st.data())
def test_a_corrupted_file_never_raises_anything_else(
    tmp_path: Path, flips: list[tuple[int, int]], kind: str, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, gradient(8, 8))
    elif kind == "npz":
        np.savez_compressed(buffer, x=gradient(8, 8))
    else:
        Image.fromarray(gradient(8, 8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    for where, byte in flips:
        content[where % len(content)] = byte
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content)] * 3 + [len(content) // 2, 5]))])
    try:
        samples = list(load(path, [spec(1, 8, 8, 3)], PIXELS))
    except InputError as error:
        assert path.name in str(error) and "\n" not in str(error)
    else:
        assert all(s.feeds["x"].shape == (1, 8, 8, 3) for s in samples)


# arrays


def test_an_array_is_taken_with_or_without_its_batch_axis(folder: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 2, 5)).astype("f4")
    np.save(folder / "a.npy", x)
    samples = list(load(folder / "a.npy", [spec(None, 2, 5)], PIXELS))
    assert [s.name for s in samples] == ["a-0", "a-1", "a-2"]
    np.testing.assert_array_equal(np.concatenate([s.feeds["x"] for s in samples]), x)
    assert all(s.picture is None and s.feeds["x"].shape == (1, 2, 5) for s in samples)
    np.save(folder / "b.npy", x[0])
    np.testing.assert_array_equal(values(folder / "b.npy", 1, 2, 5), x[:1])


def test_the_names_of_many_samples_sort_in_their_order(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((12, 4)))
    names = [s.name for s in load(folder / "a.npy", [spec(None, 4)], PIXELS, name="beat")]
    assert names == sorted(names) and (names[0], names[-1]) == ("beat-00", "beat-11")


def test_an_array_is_not_preprocessed(folder: Path) -> None:
    np.save(folder / "a.npy", np.full((3, 4, 4), 200.0))
    assert (values(folder / "a.npy", 1, 3, 4, 4, using=PRESETS["imagenet"]) == 200).all()


def test_an_npz_gives_each_input_its_array(folder: Path) -> None:
    arrays = {"image:0": np.ones((2, 3, 4, 4), "f4"), "size/in": np.array([[4], [5]]), "labels": np.zeros(7)}
    np.savez(folder / "a.npz", **arrays)
    specs = [spec(None, 3, 4, 4, name="image:0"), spec(None, 1, name="size/in", dtype=np.int64)]
    samples = list(load(folder / "a.npz", specs, PIXELS))
    assert len(samples) == 2
    assert samples[1].feeds["size/in"].tolist() == [[5]] and samples[1].feeds["size/in"].dtype == np.int64


def test_a_single_array_serves_a_single_input_under_any_name(folder: Path) -> None:
    np.savez(folder / "a.npz", images=np.zeros((1, 4)))
    assert values(folder / "a.npz", None, 4).shape == (1, 4)
    np.savez(folder / "b.npz", images=np.zeros((1, 4)), labels=np.zeros(1))
    assert "'images', 'labels'" in refusal(folder / "b.npz", spec(None, 4))


def test_arrays_that_do_not_match_the_inputs_are_refused(folder: Path) -> None:
    two = [spec(None, 4, name="a"), spec(None, 4, name="b")]
    np.save(folder / "one.npy", np.zeros((1, 4)))
    assert ".npz" in refusal(folder / "one.npy", *two)
    np.savez(folder / "uneven.npz", a=np.zeros((3, 4)), b=np.zeros((2, 4)))
    assert "'a' 3, 'b' 2" in refusal(folder / "uneven.npz", *two)
    np.savez(folder / "none.npz")
    assert "no arrays" in refusal(folder / "none.npz", *two)
    np.save(folder / "zero.npy", np.zeros((0, 4)))
    assert "no values" in refusal(folder / "zero.npy", two[0])


@pytest.mark.parametrize(
    ("given_shape", "wanted", "said"),
    [
        ((224, 224, 3), (None, 3, 224, 224), "np.transpose(x, (2, 0, 1))"),
        ((5, 224, 224, 3), (1, 3, 224, 224), "np.transpose(x, (0, 3, 1, 2))"),
        ((3, 32, 32), (1, 32, 32, 3), "np.transpose(x, (1, 2, 0))"),
        ((2, 3, 32, 32), (None, 32, 32, 3), "np.transpose(x, (0, 2, 3, 1))"),
        ((4, 100, 12), (None, 12, 100), "np.transpose(x, (0, 2, 1))"),
        ((28, 28), (1, 1, 28, 28), "np.expand_dims(x, 0)"),
        ((28, 28), (1, 28, 28, 1), "np.expand_dims(x, 2)"),
        ((9, 28, 28), (None, 1, 28, 28), "np.expand_dims(x, 1)"),
        ((1, 1, 3, 8, 8), (1, 3, 8, 8), "np.squeeze(x, 0)"),
        ((3, 256, 256), (1, 3, 224, 224), "not resized"),
        ((256, 256, 3), (1, 224, 224, 3), "not resized"),
        ((64,), (None, 63), "[64], but the input is [N, 63] float32"),
        ((2, 2, 2, 63), (None, 63), "give 2 axes"),
        ((), (None, 3, 4, 4), "give 4 axes"),
    ],
)
def test_a_wrong_shape_is_refused_with_the_step_that_mends_it(
    folder: Path, given_shape: tuple[int, ...], wanted: tuple[int | None, ...], said: str
) -> None:
    np.save(folder / "a.npy", np.zeros(given_shape, "f4"))
    message = refusal(folder / "a.npy", spec(*wanted))
    assert said in message and str(list(given_shape)) in message


@pytest.mark.parametrize("call", ["np.transpose", "np.expand_dims", "np.squeeze"])
def test_the_step_that_an_error_names_does_mend_it(folder: Path, call: str) -> None:
    given_shape = {"np.transpose": (6, 5, 3), "np.expand_dims": (3, 6), "np.squeeze": (1, 3, 1, 6, 5)}[call]
    wanted = (None, 3, 1, 6) if call == "np.expand_dims" else (None, 3, 6, 5)
    np.save(folder / "a.npy", np.zeros(given_shape, "f4"))
    message = refusal(folder / "a.npy", spec(*wanted))
    code = message[message.index(call) :].rstrip(".")
    np.save(folder / "a.npy", eval(code, {"np": np, "x": np.zeros(given_shape, "f4")}))
    assert values(folder / "a.npy", *wanted).shape[1:] == wanted[1:]


def test_hwc_for_an_nchw_input_is_called_so(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((8, 9, 3)))
    message = refusal(folder / "a.npy", spec(1, 3, 8, 9))
    assert "channels last (HWC)" in message and "NCHW" in message
    np.save(folder / "a.npy", np.zeros((3, 8, 9)))
    assert "channels first (CHW)" in refusal(folder / "a.npy", spec(1, 8, 9, 3))


@pytest.mark.parametrize("given_dtype", [bool, np.uint8, np.int64, np.float16, np.float64, ">f4"])
def test_numbers_become_the_floats_of_the_input(folder: Path, given_dtype: Any) -> None:
    np.save(folder / "a.npy", np.array([[0, 1, 1]]).astype(given_dtype))
    x = values(folder / "a.npy", None, 3)
    assert x.dtype == FLOAT and x.dtype.isnative and x.tolist() == [[0, 1, 1]]


def test_floats_are_never_rounded_into_integers_silently(folder: Path) -> None:
    np.save(folder / "a.npy", np.array([[1.0, 2.0]]))
    assert "astype(np.int32)" in refusal(folder / "a.npy", spec(None, 2, dtype=np.int32))


@pytest.mark.parametrize(
    ("given_values", "dtype"),
    [([[1, 300]], np.uint8), ([[-1, 3]], np.uint8), ([[2, 2**40]], np.int32), ([[0, 2]], bool)],
)
def test_integers_beyond_the_inputs_range_are_refused(folder: Path, given_values: Any, dtype: Any) -> None:
    np.save(folder / "a.npy", np.array(given_values))
    assert "1 of 2 values" in refusal(folder / "a.npy", spec(None, 2, dtype=dtype))


def test_floats_beyond_half_precision_are_refused(folder: Path) -> None:
    np.save(folder / "a.npy", np.array([[1, 2], [3, 1e6]]))
    message = refusal(folder / "a.npy", spec(None, 2, dtype=np.float16))
    assert "range of float16" in message and "[1, 1]" in message
    np.save(folder / "a.npy", np.array([70000]))
    assert "range of float16" in refusal(folder / "a.npy", spec(None, 1, dtype=np.float16))


@pytest.mark.parametrize("batched", [True, False])
def test_nan_and_infinity_are_counted_and_located(folder: Path, batched: bool) -> None:
    x = np.zeros((4, 5, 6))
    x[2, 1, 3] = np.nan
    x[3] = np.inf
    np.save(folder / "a.npy", x if batched else x[2])
    message = refusal(folder / "a.npy", spec(None, 5, 6))
    assert (
        ("31 of 120" in message and "[2, 1, 3]" in message)
        if batched
        else ("1 of 30" in message and "[1, 3]" in message)
    )


def test_nan_is_found_in_any_chunk_of_a_large_array(folder: Path) -> None:
    x = np.zeros((9, 2**20), "f2")
    x[8, 7] = x[5, 3] = np.nan
    np.save(folder / "a.npy", x)
    message = refusal(folder / "a.npy", spec(None, 2**20))
    assert "2 of " in message and "[5, 3]" in message


@pytest.mark.parametrize(
    "content",
    [np.array([["a", "b"]]), np.array([[1j, 2]]), np.zeros((1, 2), [("a", "f4")]), np.array([["2020"] * 2], "M8")],
)
def test_what_is_no_number_is_refused(folder: Path, content: np.ndarray) -> None:
    np.save(folder / "a.npy", content)
    assert "numbers" in refusal(folder / "a.npy", spec(None, 2))


def test_python_objects_are_never_loaded(folder: Path) -> None:
    np.save(folder / "a.npy", np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    assert "Python objects" in refusal(folder / "a.npy", spec(None, 2))
    np.savez(folder / "a.npz", x=np.array([{"a": 1}, None], dtype=object))
    assert "Python objects" in refusal(folder / "a.npz", spec(None, 2))


def test_an_input_of_text_is_refused(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((1, 2)))
    assert "object" in refusal(folder / "a.npy", spec(None, 2, dtype=object))
    path = picture(folder / "a.png", gradient(6, 6))
    with pytest.raises(InputError, match="picture cannot give"):
        load(path, [spec(1, 3, 6, 6, dtype=object)], PIXELS)


def test_a_scalar_input_is_fed_as_a_scalar(folder: Path) -> None:
    np.savez(folder / "a.npz", x=np.zeros((1, 2)), threshold=np.float64(0.5))
    sample = only(folder / "a.npz", spec(None, 2), spec(name="threshold"))
    assert sample.feeds["threshold"].shape == () and sample.feeds["x"].shape == (1, 2)


def test_samples_do_not_share_memory_with_the_file(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((2, 3), "f4"))
    for sample in load(folder / "a.npy", [spec(None, 3)], PIXELS):
        sample.feeds["x"][:] = 7
    assert not np.load(folder / "a.npy").any()


# finding files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_a_folder_gives_its_pictures_and_arrays_in_natural_order(folder: Path) -> None:
    names = ["img10.png", "img2.PNG", "Img1.jpg", "b.npy", "a.npz", ".hidden.png", "notes.txt", "sub/c.png"]
    touch(*(folder / n for n in names))
    assert [p.name for p in find_inputs([folder])] == ["a.npz", "b.npy", "Img1.jpg", "img2.PNG", "img10.png"]


def test_globs_files_and_folders_mix_and_repeat_once(folder: Path) -> None:
    touch(*(folder / n for n in ("b.png", "a.png", "c.npy", "d.raw")))
    found = find_inputs([folder / "c.npy", str(folder / "*.png"), folder, folder / "." / "a.png", folder / "d.raw"])
    assert [p.name for p in found] == ["c.npy", "a.png", "b.png", "d.raw"]


def test_a_relative_glob_starts_at_the_working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(folder / "in" / "a.png")
    monkeypatch.chdir(folder)
    assert find_inputs(["in/*.png"]) == [Path("in/a.png")]
    assert find_inputs(["**/*.png"]) == [Path("in/a.png")]


def test_a_file_whose_name_holds_a_star_or_bracket_is_a_file(folder: Path) -> None:
    touch(folder / "a[1].png", folder / "a1.png")
    assert find_inputs([folder / "a[1].png"]) == [folder / "a[1].png"]


@pytest.mark.parametrize("argument", ["missing.png", "missing/*.png", "*.png", ".", "a" * 5000, "**a/[", "\0.png"])
def test_what_is_not_there_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError) as caught:
        find_inputs([argument])
    assert repr(argument) in str(caught.value)


def test_no_argument_is_an_error() -> None:
    with pytest.raises(InputError, match="No input"):
        find_inputs([])


def test_sample_names_are_distinct() -> None:
    paths = [Path(p) for p in ("a/cat.png", "a/cat.jpg", "b/cat.png", "dog.png", "c/cat.png", "cat.png-2.npy")]
    names = sample_names(paths)
    assert names[3] == "dog" and names[:2] == ["cat.png", "cat.jpg"]
    assert len(set(names)) == len(names)


@given(st.lists(st.sampled_from(["a.png", "a.jpg", "b/a.png", "a.png-2.x", "a.png-2-2.x", "a.png-3.npy"]), max_size=12))
def test_sample_names_are_distinct_whatever_the_files(files: list[str]) -> None:
    names = sample_names([Path(f) for f in files])
    assert len(set(names)) == len(files) == len(names)


# labels


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("l.txt", "tench, Tinca tinca\ngoldfish \r\n\n", ["tench, Tinca tinca", "goldfish"]),
        ("l.txt", "\ufefffirst\n\nthird\n", ["first", "1", "third"]),
        ("l.json", '["a", "b"]', ["a", "b"]),
        ("l.json", '{"1": "b", "0": "a"}', ["a", "b"]),
        ("l.json", '{"0": ["n01", "a"], "2": ["n03", "c"]}', ["a", "1", "c"]),
        ("l.json", '[{"wnid": "n01", "name": "a"}]', ["a"]),
        ("l.json", '[["n01", "ä"]]', ["ä"]),
    ],
)
def test_labels_are_read_in_each_of_their_forms(folder: Path, name: str, text: str, labels: list[str]) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    assert read_labels(folder / name) == labels


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", b""),
        ("l.txt", b"\n\n"),
        ("l.txt", b"\xff\xfe\x00"),
        ("l.txt", b"a\0b"),
        ("l.json", b"{"),
        ("l.json", b"[1, 2]"),
        ("l.json", b'"name"'),
        ("l.json", b"{}"),
        ("l.json", b'{"a": "b"}'),
        ("l.json", b'{"-1": "b"}'),
        ("l.json", b'{"99999999999": "b"}'),
        ("l.json", b"[" * 100_000),
        ("missing.txt", None),
    ],
)
def test_what_is_no_label_file_is_refused(folder: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_labels(folder / name)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared pictures next to the checkout (../shared/images)")
def test_the_shared_pictures_and_labels_load() -> None:
    assert read_labels(SHARED / "imagenet_classes.json")[0] == "tench, Tinca tinca"
    assert len(json.loads((SHARED / "imagenet_classes.json").read_text())) == 1000
    for path in find_inputs([SHARED / "ilsvrc100"])[:5]:
        sample = only(path, spec(None, 3, 224, 224), using=PRESETS["imagenet"])
        assert sample.picture is not None and sample.picture.shape == (224, 224, 3)
        assert 0.2 < sample.feeds["x"].std() < 3
