"""The commands and their options. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import contextlib
import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from onnx_explain.cli.console import one_sentence_per_error
from onnx_explain.version import __version__

app = typer.Typer(
    name="onnx-explain",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
DEFAULT_METHOD = "lrp-epsilon-plus"


class Seed(StrEnum):
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


WHAT, PICTURES, RESULTS = "What to explain", "Reading pictures", "Results"

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file.", show_default=False)]
MethodName = Annotated[str, typer.Option("--method", "-m", metavar="NAME", rich_help_panel=WHAT, help="A method of `onnx-explain methods`.")]
OptionPairs = Annotated[
    list[str] | None,
    typer.Option(
        "--option", "-O", metavar="KEY=VALUE", rich_help_panel=WHAT, show_default=False,
        help="An option of the method, such as gamma=0.25 or low=[-2.1,-2.0,-1.8]; repeatable.",
    ),
]  # fmt: skip
SeedOption = Annotated[
    Seed | None,
    typer.Option("--seed", rich_help_panel=WHAT, show_default=False, help="Start at the explained value (score) or at one; by default as the method does."),
]
OutputName = Annotated[
    str | None,
    typer.Option("--output", metavar="NAME", rich_help_panel=WHAT, show_default=False, help="The output to explain; by default the first one of floats."),
]
NoLogits = Annotated[bool, typer.Option("--no-logits", rich_help_panel=WHAT, help="Explain behind a final Softmax or Sigmoid, not the logits before it.")]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="TENSOR", rich_help_panel=WHAT, show_default=False, help="Give the relevance of this inner tensor too; repeatable."),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape", metavar="NAME:[1,3,224,224]", rich_help_panel=WHAT, show_default=False,
        help="Sizes that the file leaves open (N for the batch); repeatable.",
    ),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", rich_help_panel=RESULTS, help="Print one JSON document instead of tables.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"onnx-explain {__version__}")
        raise typer.Exit


@app.callback()
def onnx_explain(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Explain any ONNX model: which parts of the input made the network say what it said.

    Start with: onnx-explain demo
    Then: onnx-explain explain MODEL PICTURE

    Every error is one sentence on stderr, with exit code 2.
    """


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder for the results.")] = Path("demo"),
    dark: Annotated[bool, typer.Option("--dark", help="Draw on a dark ground.")] = False,
    json: AsJson = False,
) -> None:
    """Explain the bundled network on the bundled picture by several methods.

    Leaves heat maps, one side-by-side picture (overview.png), the relevance
    (.npz) and the explained model (explained.onnx) in DIR.
    """
    with one_sentence_per_error():
        from onnx_explain.cli.demo import run

        run(out, dark=dark, as_json=json)


@app.command()
def explain(
    model: ModelFile,
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", show_default=False, help="Pictures, .npy/.npz arrays, folders or globs of them."),
    ],
    method: Annotated[
        list[str],
        typer.Option("--method", "-m", metavar="NAME", rich_help_panel=WHAT, help="A method of `onnx-explain methods`; repeatable."),
    ] = [DEFAULT_METHOD],  # noqa: B006 - typer reads the default and never changes it
    option: OptionPairs = None,
    seed: SeedOption = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", metavar="TARGET", rich_help_panel=WHAT, show_default="argmax",
            help="A class index, several (3,7), a label, argmax, or an element of an output such as 'scores[0,17]'; repeatable.",
        ),
    ] = None,
    output: OutputName = None,
    no_logits: NoLogits = False,
    keep: Keep = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", rich_help_panel=WHAT, show_default=False, help="Class names: one per line, or JSON."),
    ] = None,
    layout: Annotated[
        ImageLayout | None,
        typer.Option("--layout", rich_help_panel=PICTURES, show_default=False, help="Where the channels are; by default read from the model."),
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option(
            "--preset", rich_help_panel=PICTURES, show_default="0..1",
            help="The range of values the model wants; imagenet: mean and std of ImageNet and a centre crop.",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option("--mean", metavar="M[,M,M]", rich_help_panel=PICTURES, show_default=False, help="Subtracted, in the preset's range and the model's channel order."),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option("--std", metavar="S[,S,S]", rich_help_panel=PICTURES, show_default=False, help="Divided by after the mean."),
    ] = None,
    channel_order: Annotated[
        ChannelOrder | None,
        typer.Option("--channel-order", rich_help_panel=PICTURES, show_default="rgb", help="The order of colours that the model wants."),
    ] = None,
    resize: Annotated[
        Resize | None,
        typer.Option(
            "--resize", rich_help_panel=PICTURES, show_default="as the preset",
            help="stretch to the input's size, or scale and crop the centre.",
        ),
    ] = None,
    input_shape: InputShapes = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", rich_help_panel=RESULTS, help="Inputs that run at once.")] = 8,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, metavar="N", rich_help_panel=RESULTS, show_default="all cores", help="ONNX Runtime's threads.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", rich_help_panel=RESULTS, help="The folder for the results.")
    ] = Path("explanations"),
    overlay: Annotated[
        bool, typer.Option("--overlay/--no-overlay", rich_help_panel=RESULTS, help="Draw each map over its picture too.")
    ] = True,
    dark: Annotated[bool, typer.Option("--dark", rich_help_panel=RESULTS, help="Draw on a dark ground.")] = False,
    json: AsJson = False,
) -> None:
    """Explain pictures or arrays: heat maps, overlays and relevance arrays per input and method.

    Results go to DIR/<input>/: overview.png with all maps side by side, and
    per method <method>.png, <method>-overlay.png and <method>.npz.
    DIR/explanations.json holds what the table shows, and more.

    Examples:

    \b
      onnx-explain explain net.onnx cat.jpg --preset imagenet
      onnx-explain explain net.onnx photos/ -m rap -m gradient --labels l.txt
      onnx-explain explain net.onnx cat.jpg -m lrp-gamma -O gamma=0.1 -t 281
      onnx-explain explain yolo.onnx street.png -t 'scores[0,17,3]'
      onnx-explain explain ecg.onnx beats.npy -m input-x-gradient --json
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, explaining
        from onnx_explain.cli.report import explain_with_report
        from onnx_explain.data import Layout, preprocessing
        from onnx_explain.methods import Seed as MethodSeed

        fields: dict[str, Any] = {"mean": arguments.numbers(mean, "--mean"), "std": arguments.numbers(std, "--std")}
        fields |= {"channel_order": channel_order and channel_order.value, "resize": resize and resize.value}
        job = explaining.Job(
            model, inputs, out, method,
            options=arguments.options(option or []),
            seed=cast(MethodSeed | None, seed and seed.value),
            targets=target or [],
            output=output,
            logits=not no_logits,
            keep=keep or [],
            labels=labels,
            preprocessing=lambda embedded: preprocessing(preset.value if preset else embedded, **fields),
            layout=cast(Layout | None, layout and layout.value),
            batch_size=batch_size,
            threads=threads,
            input_shapes=arguments.input_shapes(input_shape or []),
            overlay=overlay,
            dark=dark,
        )  # fmt: skip
        explain_with_report(job, as_json=json)


@app.command()
def convert(
    model: ModelFile,
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.", show_default=False)],
    method: MethodName = DEFAULT_METHOD,
    option: OptionPairs = None,
    seed: SeedOption = None,
    output: OutputName = None,
    no_logits: NoLogits = False,
    keep: Keep = None,
    functions: Annotated[bool, typer.Option("--functions", help="Keep composite nodes as ONNX functions instead of expanding them.")] = False,
    fold: Annotated[bool, typer.Option("--fold", help="Store derived weights (w⁺, flipped w): a larger file that loads faster.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run the file and compare its outputs with the original's.")] = True,
    input_shape: InputShapes = None,
    json: AsJson = False,
) -> None:
    """Write a model that predicts and explains, of standard ONNX operators alone.

    The original's inputs and outputs come first; each input of floats gets an
    output <input>_relevance, and the optional input target (int64, one per
    sample) chooses the class, by default the arg-max.

    Examples:

    \b
      onnx-explain convert net.onnx explained.onnx --method rap
      onnx-explain convert net.onnx e.onnx -m lrp-gamma -O gamma=0.1 --keep conv4
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report
        from onnx_explain.methods import Seed as MethodSeed

        report.convert(
            model, out, method, options=arguments.options(option or []), seed=cast(MethodSeed | None, seed and seed.value),
            output=output, logits=not no_logits, keep=keep or [], functions=functions, fold=fold, check=check,
            input_shapes=arguments.input_shapes(input_shape or []), as_json=json,
        )  # fmt: skip


@app.command()
def check(
    model: ModelFile,
    method: MethodName = DEFAULT_METHOD,
    option: OptionPairs = None,
    output: OutputName = None,
    no_logits: NoLogits = False,
    input_shape: InputShapes = None,
    json: AsJson = False,
) -> None:
    """Show, operator by operator from the target to the inputs, its role and the rule it gets under a method.

    Exit code 1 where an operator on that way is not supported, else 0.

    Examples:

    \b
      onnx-explain check net.onnx
      onnx-explain check net.onnx --method rap --json
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report

        supported = report.check(
            model, method, options=arguments.options(option or []), output=output, logits=not no_logits,
            input_shapes=arguments.input_shapes(input_shape or []), as_json=json,
        )  # fmt: skip
    if not supported:
        raise typer.Exit(1)


@app.command()
def methods(json: AsJson = False) -> None:
    """List the methods: what each one says, where it comes from, and its options with their defaults."""
    with one_sentence_per_error():
        from onnx_explain.cli import report

        report.methods(as_json=json)


def main() -> None:
    """Run the command line; what the terminal's encoding lacks is printed as a question mark, not as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")
    try:
        app()
    except KeyboardInterrupt:  # during an import, before the command's own care
        typer.echo("interrupted", err=True)
        sys.exit(130)
