"""The arguments and options of the commands, each declared once: name, type and help text."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_what = partial(typer.Option, rich_help_panel="What to explain", show_default=False)
_pictures = partial(typer.Option, rich_help_panel="Reading pictures", show_default=False)
_others = partial(typer.Option, rich_help_panel="Texts, tables, signals, several inputs", show_default=False)
_results = partial(typer.Option, rich_help_panel="Results")


class Device(StrEnum):
    """Where to run."""

    CPU = "cpu"
    CUDA = "cuda"
    AUTO = "auto"


class Precision(StrEnum):
    """Of products on a GPU."""

    TF32 = "tf32"
    TF32X3 = "tf32x3"
    IEEE = "ieee"
    BF16 = "bf16"
    FP16 = "fp16"


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


class ExplainedClass(StrEnum):
    """Which class `evaluate` explains."""

    predicted = "predicted"
    truth = "truth"


class Objects(StrEnum):
    """Which annotated objects count."""

    all = "all"
    target = "target"


ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
InputFiles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[INPUT]...",
        show_default=False,
        help="Pictures, .npy/.npz arrays, .csv/.tsv tables, .txt with --tokenizer; folders or globs of them.",
    ),
]
OneInput = Annotated[
    str | None,
    typer.Argument(metavar="[INPUT]", show_default=False, help="A picture; or an array, table or text of one sample."),
]
OutFile = Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.", show_default=False)]

MethodName = Annotated[
    str, _what("--method", "-m", metavar="NAME", show_default=True, help="A method of `onnx-explain methods`.")
]
MethodNames = Annotated[
    list[str],
    _what("--method", "-m", metavar="NAME", show_default=True, help="A method of `onnx-explain methods`; repeatable."),
]
MethodList = Annotated[
    str,
    _what("--methods", "-m", metavar="NAME,NAME", show_default=True, help="Methods of `onnx-explain methods`, or all."),
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
        help="A class index, several (3,7), a label, argmax, an element ('scores[0,17]') or an expression of outputs "
        "('scores[0,:,17].max()'), or a preset (yolo:17, ssd:1, segmentation:15); repeatable.",
    ),
]
OneTarget = Annotated[
    str | None,
    _what(
        "--target",
        "-t",
        metavar="TARGET",
        show_default="argmax",
        help="As of `explain`, one: an index becomes the default of the input target, an expression part of the file.",
    ),
]
CheckedTarget = Annotated[
    str | None, _what("--target", "-t", metavar="TARGET", show_default="argmax", help="As of `explain`, one.")
]
OutputName = Annotated[
    str | None, _what("--output", metavar="NAME", help="The output to explain; default: the first one of floats.")
]
NoLogits = Annotated[bool, _what("--no-logits", help="Explain behind a final Softmax or Sigmoid, not before it.")]
Hostile = Annotated[
    str | None,
    _what("--hostile", metavar="CLASSES", help="Of rsp: classes that speak against the target: 3,7 or top-3."),
]
At = Annotated[str | None, _what("--at", metavar="TENSOR", help="Explain this inner tensor in place of the inputs.")]
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

Patterns = Annotated[
    Path | None,
    _what("--patterns", metavar="FILE", help="Patterns of `fit-patterns`, for pattern-net and -attribution."),
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

EachInput = Annotated[
    list[str] | None,
    _others("--input", "-i", metavar="NAME=FILE", help="A file for this input, of a model with several; repeatable."),
]
Texts = Annotated[list[str] | None, _others("--text", metavar="TEXT", help="A text to explain; repeatable.")]
TokenizerFile = Annotated[
    Path | None,
    _others("--tokenizer", metavar="FILE", help="The model's tokenizer.json, for --text and .txt files (extra: text)."),
]
Feeds = Annotated[
    list[str] | None,
    _others(
        "--feed",
        metavar="NAME=WHAT",
        help="What an input takes of a text, where its name does not say: ids, mask, types, positions or length.",
    ),
]
MaxTokens = Annotated[
    int | None,
    _others("--max-tokens", min=1, metavar="N", show_default="the model's", help="Cut texts to this many tokens."),
]
Features = Annotated[
    str | None,
    _others(
        "--features",
        metavar="A,B|FILE",
        help="Names of features or channels, or the columns of a table to take: a list, or a file with one per line.",
    ),
]
SamplingRate = Annotated[
    float | None,
    _others("--sampling-rate", metavar="HZ", help="Samples per second of a signal, for an axis in seconds."),
]

DeviceName = Annotated[
    Device, _results("--device", help="cuda: the first GPU; auto: that, or the CPU, and it says which.")
]
PrecisionName = Annotated[Precision, _results("--precision", help="Of products on the GPU; ieee: float32 throughout.")]
BatchSize = Annotated[int, _results("--batch-size", min=1, metavar="N", help="Inputs that run at once.")]
Threads = Annotated[
    int | None, _results("--threads", min=1, metavar="N", show_default="all cores", help="ONNX Runtime's threads.")
]
OutFigure = Annotated[Path, _results("--out", "-o", metavar="FILE", help="The figure to write: .png, .svg or .pdf.")]
OutFolder = Annotated[Path, _results("--out", "-o", metavar="DIR", help="The folder for the results.")]
Overlay = Annotated[bool, _results("--overlay/--no-overlay", help="Draw each map over its picture too.")]
Dark = Annotated[bool, _results("--dark", help="Draw figures on a dark ground.")]
AsJson = Annotated[bool, _results("--json", help="Print one JSON document instead of tables.")]
Functions = Annotated[bool, _results("--functions", help="Keep composite nodes as ONNX functions, not expanded.")]
Fold = Annotated[bool, _results("--fold", help="Store derived weights (w⁺, flipped w): larger, loads faster.")]
Check = Annotated[bool, _results("--check/--no-check", help="Run the file; its outputs must equal the original's.")]

DataFiles = Annotated[
    list[str],
    typer.Argument(metavar="DATA", show_default=False, help="Pictures, arrays, tables, folders or globs of them."),
]
PatternFile = Annotated[
    Path, typer.Argument(metavar="PATTERNS", show_default=False, help="The file that `fit-patterns` wrote.")
]
PatternFiles = Annotated[
    list[Path], typer.Argument(metavar="PATTERNS...", show_default=False, help="Files that `fit-patterns` wrote.")
]
PatternsOut = Annotated[Path, _results("--out", "-o", metavar="FILE", help="The .safetensors file to write.")]
Memory = Annotated[
    str, _results("--memory", metavar="SIZE", help="For sums and activations; what needs more takes several passes.")
]
CheckpointFolder = Annotated[
    Path | None,
    _results("--checkpoint", metavar="DIR", show_default="FILE.checkpoint", help="Where the fit notes how far it is."),
]
CheckpointEvery = Annotated[float, _results("--every", min=0.0, metavar="SECONDS", help="How often it does so.")]
SkipBad = Annotated[bool, _pictures("--skip-bad", help="Leave out files that cannot be read, and count them.")]
ScoreOn = Annotated[
    list[str] | None, _what("--score-on", metavar="DATA", help="Score on this data, not on a part of DATA; repeatable.")
]
Split = Annotated[
    float,
    _what("--split", metavar="PART", show_default=True, help="The part of DATA on which correlations are looked for."),
]
Largest = Annotated[
    int, _results("--largest", min=1, metavar="N", help="Leave out layers whose neurons read more inputs than this.")
]
PlotFile = Annotated[Path | None, _results("--plot", metavar="FILE", help="Draw the table as PNG, SVG or PDF.")]

EvaluatedMethods = Annotated[
    list[str],
    _what("--methods", "-m", metavar="A,B", show_default=True, help="Methods by name, or all; repeatable."),
]
MetricNames = Annotated[
    list[str],
    _what(
        "--metrics",
        metavar="A,B",
        show_default=True,
        help="Metrics by name, by group (localisation, perturbation, conciseness, sensitivity), or all; repeatable.",
    ),
]
MetricOptions = Annotated[
    list[str] | None,
    _what("--metric-option", "-M", metavar="KEY=VALUE", help="An option of a metric: deletion.step=64; repeatable."),
]
Explained = Annotated[
    ExplainedClass, _what("--target", show_default=True, help="Explain the predicted or the true class.")
]
_truth = partial(typer.Option, rich_help_panel="What is known of the data", show_default=False)
MaskPlace = Annotated[
    Path | None,
    _truth("--masks", metavar="DIR|FILE", help="Mask pictures by the pictures' names, or a COCO .json file."),
]
BoxPlace = Annotated[
    Path | None,
    _truth("--boxes", metavar="DIR|FILE", help="PASCAL VOC .xml files by the pictures' names, or a COCO .json file."),
]
TruthFile = Annotated[
    Path | None,
    _truth("--labels-file", metavar="FILE", help="The true classes: CSV lines file,class or JSON {file: class}."),
]
ObjectsOf = Annotated[
    Objects,
    _truth("--objects", show_default=True, help="Which objects count: all, or those of the explained class."),
]
SampleSize = Annotated[
    int | None,
    _truth("--sample", min=1, metavar="N", show_default="all", help="Evaluate N samples, drawn at random."),
]
RandomSeed = Annotated[
    int, _truth("--seed", min=0, metavar="S", show_default=True, help="Of the draw, and of the metrics' noise.")
]
SkipFaulty = Annotated[
    bool, _truth("--skip-bad", help="Leave out what cannot be read or has no annotation, and count it.")
]
ShapesOut = Annotated[Path, typer.Argument(metavar="OUT", show_default=False, help="The folder to write.")]
ShapesCount = Annotated[int, _results("--count", "-n", min=1, metavar="N", help="How many pictures.")]
ShapesSize = Annotated[int, _results("--size", metavar="PIXELS", help="Height and width.")]
ShapesSeed = Annotated[int, _results("--seed", metavar="S", help="Of the series; each number another set.")]
