"""The arguments and options of the commands, each declared once: name, type and help text."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_what = partial(typer.Option, rich_help_panel="What to explain", show_default=False)
_pictures = partial(typer.Option, rich_help_panel="Reading pictures", show_default=False)
_results = partial(typer.Option, rich_help_panel="Results")


class StartAt(StrEnum):
    """Where relevance starts."""

    score = "score"
    one = "one"


class ImageLayout(StrEnum):
    """Where an image's channels are."""

    nchw = "NCHW"
    nhwc = "NHWC"


class Preset(StrEnum):
    """Preprocessing by name."""

    imagenet = "imagenet"
    unit = "0..1"
    signed = "-1..1"
    raw = "0..255"


class ChannelOrder(StrEnum):
    """The order of colours that the model wants."""

    rgb = "rgb"
    bgr = "bgr"


class Resize(StrEnum):
    """How a picture gets the input's size."""

    stretch = "stretch"
    crop = "crop"


ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
InputFiles = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", show_default=False, help="Pictures, .npy/.npz arrays, folders or globs of them."),
]
OutFile = Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.", show_default=False)]

MethodName = Annotated[
    str, _what("--method", "-m", metavar="NAME", show_default=True, help="A method of `onnx-explain methods`.")
]
MethodNames = Annotated[
    list[str],
    _what("--method", "-m", metavar="NAME", show_default=True, help="A method of `onnx-explain methods`; repeatable."),
]
OptionPairs = Annotated[
    list[str] | None,
    _what("--option", "-O", metavar="KEY=VALUE", help="An option of the method: gamma=0.25, low=[0,0,0]; repeatable."),
]
SeedName = Annotated[
    StartAt | None, _what("--seed", help="Start at the explained value (score) or at one; default: the method's own.")
]
Targets = Annotated[
    list[str] | None,
    _what(
        "--target",
        "-t",
        metavar="TARGET",
        show_default="argmax",
        help="A class index, several (3,7), a label, argmax, or an element of an output: 'scores[0,17]'; repeatable.",
    ),
]
OutputName = Annotated[
    str | None, _what("--output", metavar="NAME", help="The output to explain; default: the first one of floats.")
]
NoLogits = Annotated[bool, _what("--no-logits", help="Explain behind a final Softmax or Sigmoid, not before it.")]
Keep = Annotated[
    list[str] | None, _what("--keep", metavar="TENSOR", help="Give this inner tensor's relevance too; repeatable.")
]
LabelFile = Annotated[
    Path | None, _what("--labels", metavar="FILE", help="Class names: one per line, or JSON; default: the model's own.")
]
InputShapes = Annotated[
    list[str] | None,
    _what(
        "--input-shape",
        metavar="NAME:[1,3,224,224]",
        help="Sizes that the file leaves open (N leaves the batch open); repeatable.",
    ),
]

LayoutName = Annotated[ImageLayout | None, _pictures("--layout", help="Where the channels are; default: the model's.")]
PresetName = Annotated[
    Preset | None,
    _pictures(
        "--preset",
        show_default="0..1",
        help="The range of values the model wants; imagenet: mean and std of ImageNet, and a centre crop.",
    ),
]
Mean = Annotated[
    str | None,
    _pictures("--mean", metavar="M[,M,M]", help="Subtracted; in the preset's range, in the model's channel order."),
]
Std = Annotated[str | None, _pictures("--std", metavar="S[,S,S]", help="Divided by, after the mean.")]
Order = Annotated[
    ChannelOrder | None, _pictures("--channel-order", show_default="rgb", help="The order the model wants.")
]
ResizeName = Annotated[
    Resize | None, _pictures("--resize", help="Stretch to the input's size, or scale and crop; default: the preset's.")
]

BatchSize = Annotated[int, _results("--batch-size", min=1, metavar="N", help="Inputs that run at once.")]
Threads = Annotated[
    int | None, _results("--threads", min=1, metavar="N", show_default="all cores", help="ONNX Runtime's threads.")
]
OutFolder = Annotated[Path, _results("--out", "-o", metavar="DIR", help="The folder for the results.")]
Overlay = Annotated[bool, _results("--overlay/--no-overlay", help="Draw each map over its picture too.")]
Dark = Annotated[bool, _results("--dark", help="Draw figures on a dark ground.")]
AsJson = Annotated[bool, _results("--json", help="Print one JSON document instead of tables.")]
Functions = Annotated[bool, _results("--functions", help="Keep composite nodes as ONNX functions, not expanded.")]
Fold = Annotated[bool, _results("--fold", help="Store derived weights (w⁺, flipped w): larger, loads faster.")]
Check = Annotated[bool, _results("--check/--no-check", help="Run the file; its outputs must equal the original's.")]
