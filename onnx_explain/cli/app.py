"""The commands. Everything heavy is imported inside the command that needs it, so that `--help` answers at once."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from onnx_explain.cli import options as given
from onnx_explain.cli.console import INTERRUPTED, one_sentence_per_error
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


def _examples(*lines: str) -> str:
    return "\n\n".join(("Examples:", *(f"onnx-explain {line}" for line in lines)))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"onnx-explain {__version__}")
        raise typer.Exit


@app.callback(epilog=_examples("demo", "explain net.onnx cat.jpg --preset imagenet --method rap"))
def onnx_explain(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Explain any ONNX model: which parts of the input made it say what it said.

    Every error is one sentence on stderr, with exit code 2.
    """


@app.command(epilog=_examples("demo", "demo --out shapes --dark"))
def demo(out: given.OutFolder = Path("demo"), dark: given.Dark = False, json: given.AsJson = False) -> None:
    """Explain the bundled network on the bundled picture by several methods.

    Leaves heat maps, one side-by-side picture (overview.png), the relevance
    (.npz) and the explained model (explained.onnx) in DIR.
    """
    with one_sentence_per_error():
        from onnx_explain.cli.demo import run

        run(out, dark=dark, as_json=json)


@app.command(
    epilog=_examples(
        "explain net.onnx cat.jpg --preset imagenet",
        "explain net.onnx photos/ -m rap -m gradient --labels names.txt",
        "explain net.onnx cat.jpg -m lrp-gamma -O gamma=0.1 -t 281",
        "explain yolo.onnx street.png -t 'scores[0,17,3]'",
        "explain ecg.onnx beats.npy -m input-x-gradient --json",
    )
)
def explain(
    model: given.ModelFile,
    inputs: given.InputFiles,
    method: given.MethodNames = [DEFAULT_METHOD],  # noqa: B006 - typer reads the default and never changes it
    option: given.OptionPairs = None,
    seed: given.SeedName = None,
    target: given.Targets = None,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    keep: given.Keep = None,
    labels: given.LabelFile = None,
    input_shape: given.InputShapes = None,
    layout: given.LayoutName = None,
    preset: given.PresetName = None,
    mean: given.Mean = None,
    std: given.Std = None,
    channel_order: given.Order = None,
    resize: given.ResizeName = None,
    batch_size: given.BatchSize = 8,
    threads: given.Threads = None,
    out: given.OutFolder = Path("explanations"),
    overlay: given.Overlay = True,
    dark: given.Dark = False,
    json: given.AsJson = False,
) -> None:
    """Explain pictures or arrays: heat maps, overlays and relevance arrays.

    Results go to DIR/<input>/: overview.png with all maps side by side, and
    per method <method>.png, <method>-overlay.png and <method>.npz.
    DIR/explanations.json holds what the table shows, and more.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report
        from onnx_explain.cli.explaining import Job
        from onnx_explain.data import preprocessing

        fields: dict[str, Any] = {"mean": arguments.numbers(mean, "--mean"), "std": arguments.numbers(std, "--std")}
        fields |= {"channel_order": _text(channel_order), "resize": _text(resize)}
        job = Job(
            model,
            inputs,
            out,
            method,
            options=arguments.options(option or []),
            seed=_text(seed),
            targets=target or [],
            output=output,
            logits=not no_logits,
            keep=keep or [],
            labels=labels,
            preprocessing=lambda embedded: preprocessing(_text(preset) or embedded, **fields),
            layout=_text(layout),
            batch_size=batch_size,
            threads=threads,
            input_shapes=arguments.input_shapes(input_shape or []),
            overlay=overlay,
            dark=dark,
        )
        report.explain(job, as_json=json)


@app.command(
    epilog=_examples(
        "convert net.onnx explained.onnx --method rap",
        "convert net.onnx e.onnx -m lrp-gamma -O gamma=0.1 --keep conv4",
    )
)
def convert(
    model: given.ModelFile,
    out: given.OutFile,
    method: given.MethodName = DEFAULT_METHOD,
    option: given.OptionPairs = None,
    seed: given.SeedName = None,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    keep: given.Keep = None,
    input_shape: given.InputShapes = None,
    functions: given.Functions = False,
    fold: given.Fold = False,
    check: given.Check = True,
    json: given.AsJson = False,
) -> None:
    """Write a model that predicts and explains, of standard ONNX operators alone.

    The original's inputs and outputs come first; each input of floats gets an
    output <input>_relevance, and the optional input target (int64, one per
    sample) chooses the class, by default the arg-max.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report

        report.convert(
            model,
            out,
            method,
            options=arguments.options(option or []),
            seed=_text(seed),
            output=output,
            logits=not no_logits,
            keep=keep or [],
            functions=functions,
            fold=fold,
            check=check,
            input_shapes=arguments.input_shapes(input_shape or []),
            as_json=json,
        )


@app.command(epilog=_examples("check net.onnx", "check net.onnx --method rap --json"))
def check(
    model: given.ModelFile,
    method: given.MethodName = DEFAULT_METHOD,
    option: given.OptionPairs = None,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    input_shape: given.InputShapes = None,
    json: given.AsJson = False,
) -> None:
    """Show every operator from the target to the inputs, its role and its rule.

    Exit code 1 where an operator on that way is not supported, else 0.
    """
    supported = False
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report

        supported = report.check(
            model,
            method,
            options=arguments.options(option or []),
            output=output,
            logits=not no_logits,
            input_shapes=arguments.input_shapes(input_shape or []),
            as_json=json,
        )
    if not supported:
        raise typer.Exit(1)


@app.command(epilog=_examples("methods", "methods --json"))
def methods(json: given.AsJson = False) -> None:
    """List the methods: what each says, its paper, and its options with defaults."""
    with one_sentence_per_error():
        from onnx_explain.cli import report

        report.methods(as_json=json)


def _text(choice: Any) -> Any:
    """The plain text of a choice among several, or None."""
    return None if choice is None else cast(str, choice.value)


def main() -> None:
    """Run the command line; what the terminal's encoding lacks is printed as a question mark, not as a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="replace")
    try:
        app()
    except KeyboardInterrupt:  # during an import, before a command's own care
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
