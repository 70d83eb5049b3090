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
        "explain yolo.onnx street.png -t yolo:2 -t 'output[0,:,4].max()'",
        "explain ecg.onnx beats.npy -m input-x-gradient --sampling-rate 360",
        "explain sentiment.onnx --tokenizer tokenizer.json --text 'a good film' -m attn-lrp",
        "explain credit.onnx clients.csv --json",
        "explain skin.onnx --input image=mole.png --input age=age.npy",
    )
)
def explain(
    model: given.ModelFile,
    inputs: given.InputFiles = None,
    method: given.MethodNames = [DEFAULT_METHOD],  # noqa: B006 - typer reads the default and never changes it
    option: given.OptionPairs = None,
    patterns: given.Patterns = None,
    hostile: given.Hostile = None,
    seed: given.SeedName = None,
    target: given.Targets = None,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    at: given.At = None,
    keep: given.Keep = None,
    labels: given.LabelFile = None,
    input_shape: given.InputShapes = None,
    layout: given.LayoutName = None,
    preset: given.PresetName = None,
    mean: given.Mean = None,
    std: given.Std = None,
    channel_order: given.Order = None,
    resize: given.ResizeName = None,
    each: given.EachInput = None,
    text: given.Texts = None,
    tokenizer: given.TokenizerFile = None,
    feed: given.Feeds = None,
    max_tokens: given.MaxTokens = None,
    features: given.Features = None,
    sampling_rate: given.SamplingRate = None,
    skip_bad: given.SkipBad = False,
    batch_size: given.BatchSize = 8,
    threads: given.Threads = None,
    device: given.DeviceName = given.Device.CPU,
    precision: given.PrecisionName = given.Precision.TF32,
    out: given.OutFolder = Path("explanations"),
    overlay: given.Overlay = True,
    dark: given.Dark = False,
    json: given.AsJson = False,
) -> None:
    """Explain pictures, arrays, texts, tables and signals: heat maps and relevance arrays.

    Results go to DIR/<input>/: overview.png with all maps side by side, and
    per method <method>.png, <method>-overlay.png and <method>.npz.
    DIR/explanations.json holds what the table shows, and more.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report
        from onnx_explain.cli.explaining import Job

        job = Job(
            model,
            arguments.inputs(inputs or [], each, text, tokenizer, feed, max_tokens, features, skip_bad=skip_bad),
            out,
            method,
            options=_options(option, patterns, hostile),
            seed=_text(seed),
            targets=target or [],
            output=output,
            logits=not no_logits,
            at=at,
            keep=keep or [],
            labels=labels,
            preprocessing=_preprocessing(preset, mean, std, channel_order, resize),
            layout=_text(layout),
            batch_size=batch_size,
            threads=threads,
            device=device.value,
            precision=precision.value,
            input_shapes=arguments.input_shapes(input_shape or []),
            overlay=overlay,
            dark=dark,
            rate=sampling_rate,
        )
        report.explain(job, as_json=json)


@app.command(
    epilog=_examples(
        "compare net.onnx cat.jpg --preset imagenet",
        "compare net.onnx cat.jpg -m rap,lrp-gamma,grad-cam -t 281 -o cat.svg",
    )
)
def compare(
    model: given.ModelFile,
    input: given.OneInput = None,  # noqa: A002 - ONNX's own word
    methods: given.MethodList = "all",
    option: given.OptionPairs = None,
    patterns: given.Patterns = None,
    hostile: given.Hostile = None,
    seed: given.SeedName = None,
    target: given.Targets = None,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    at: given.At = None,
    labels: given.LabelFile = None,
    input_shape: given.InputShapes = None,
    layout: given.LayoutName = None,
    preset: given.PresetName = None,
    mean: given.Mean = None,
    std: given.Std = None,
    channel_order: given.Order = None,
    resize: given.ResizeName = None,
    each: given.EachInput = None,
    text: given.Texts = None,
    tokenizer: given.TokenizerFile = None,
    feed: given.Feeds = None,
    max_tokens: given.MaxTokens = None,
    features: given.Features = None,
    sampling_rate: given.SamplingRate = None,
    batch_size: given.BatchSize = 8,
    threads: given.Threads = None,
    out: given.OutFigure = Path("compare.png"),
    overlay: given.Overlay = False,
    dark: given.Dark = False,
    json: given.AsJson = False,
) -> None:
    """Draw one picture, text, signal or row under many methods, in one figure.

    Below each method's name stands how far its relevance is from adding up,
    where it is meant to, and its time. Under all, a method that cannot answer
    is left out and named. FILE.json beside the figure holds the numbers.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report
        from onnx_explain.cli.explaining import Job

        job = Job(
            model,
            arguments.inputs([input] if input else [], each, text, tokenizer, feed, max_tokens, features),
            out.parent,
            [m.strip() for m in methods.split(",") if m.strip()],
            options=_options(option, patterns, hostile),
            seed=_text(seed),
            targets=target or [],
            output=output,
            logits=not no_logits,
            at=at,
            labels=labels,
            preprocessing=_preprocessing(preset, mean, std, channel_order, resize),
            layout=_text(layout),
            batch_size=batch_size,
            threads=threads,
            input_shapes=arguments.input_shapes(input_shape or []),
            overlay=overlay,
            dark=dark,
            rate=sampling_rate,
        )
        report.compare(job, out, as_json=json)


@app.command(
    epilog=_examples(
        "convert net.onnx explained.onnx --method rap",
        "convert net.onnx e.onnx -m lrp-gamma -O gamma=0.1 --keep conv4",
        "convert yolo.onnx e.onnx -t yolo:2",
    )
)
def convert(
    model: given.ModelFile,
    out: given.OutFile,
    method: given.MethodName = DEFAULT_METHOD,
    option: given.OptionPairs = None,
    patterns: given.Patterns = None,
    hostile: given.Hostile = None,
    seed: given.SeedName = None,
    target: given.OneTarget = None,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    at: given.At = None,
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
    sample) chooses the class, by default the arg-max (or --target).
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, report

        report.convert(
            model,
            out,
            method,
            options=_options(option, patterns, hostile),
            seed=_text(seed),
            output=output,
            logits=not no_logits,
            at=at,
            keep=keep or [],
            target=target,
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
    target: given.CheckedTarget = None,
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
            target=target,
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


@app.command(
    "fit-patterns",
    epilog=_examples(
        "fit-patterns net.onnx train/ -o patterns.safetensors --preset imagenet",
        "explain net.onnx cat.jpg -m pattern-attribution --patterns patterns.safetensors",
    ),
)
def fit_patterns(
    model: given.ModelFile,
    data: given.DataFiles,
    out: given.PatternsOut = Path("patterns.safetensors"),
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    input_shape: given.InputShapes = None,
    layout: given.LayoutName = None,
    preset: given.PresetName = None,
    mean: given.Mean = None,
    std: given.Std = None,
    channel_order: given.Order = None,
    resize: given.ResizeName = None,
    skip_bad: given.SkipBad = False,
    batch_size: given.BatchSize = 16,
    threads: given.Threads = None,
    memory: given.Memory = "2GB",
    checkpoint: given.CheckpointFolder = None,
    every: given.CheckpointEvery = 30.0,
    json: given.AsJson = False,
) -> None:
    """Fit the patterns of PatternNet and PatternAttribution in one pass over data.

    Give data like the model was trained on. A run that was stopped goes on
    where it stood, by the same command. FILE.json beside the patterns lists
    the neurons that have none, and why.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, patterns

        read = _preprocessing(preset, mean, std, channel_order, resize)
        how = patterns.Reading(
            model,
            read,
            output,
            not no_logits,
            _text(layout),
            arguments.input_shapes(input_shape or []),
            batch_size,
            threads,
            skip_bad,
        )
        size = patterns.memory_size(memory)
        patterns.fit(how, data, out, memory=size, checkpoint=checkpoint, every=every, as_json=json)


@app.command("merge-patterns", epilog=_examples("merge-patterns a.safetensors b.safetensors -o c.safetensors"))
def merge_patterns(parts: given.PatternFiles, out: given.PatternsOut, json: given.AsJson = False) -> None:
    """Merge patterns that were fitted on parts of the data, as if in one pass."""
    with one_sentence_per_error():
        from onnx_explain.cli import patterns

        patterns.merge(parts, out, as_json=json)


@app.command(
    "pattern-quality",
    epilog=_examples("pattern-quality net.onnx patterns.safetensors val/ --preset imagenet --plot quality.png"),
)
def pattern_quality(
    model: given.ModelFile,
    patterns: given.PatternFile,
    data: given.DataFiles,
    score_on: given.ScoreOn = None,
    split: given.Split = 0.5,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    input_shape: given.InputShapes = None,
    layout: given.LayoutName = None,
    preset: given.PresetName = None,
    mean: given.Mean = None,
    std: given.Std = None,
    channel_order: given.Order = None,
    resize: given.ResizeName = None,
    skip_bad: given.SkipBad = False,
    threads: given.Threads = None,
    largest: given.Largest = 2400,
    plot: given.PlotFile = None,
    dark: given.Dark = False,
    json: given.AsJson = False,
) -> None:
    """Score signal estimators: how little of the output is left in what they call distraction.

    Per layer the mean of rho over its neurons, for a random direction, the
    filter, the linear and the two-component pattern; 1 is best.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments
        from onnx_explain.cli import patterns as commands

        read = _preprocessing(preset, mean, std, channel_order, resize)
        shapes = arguments.input_shapes(input_shape or [])
        how = commands.Reading(model, read, output, not no_logits, _text(layout), shapes, 16, threads, skip_bad)
        commands.quality(
            how,
            patterns,
            data,
            score=score_on or [],
            split=split,
            largest=largest,
            plot=plot,
            dark=dark,
            as_json=json,
        )


@app.command(
    epilog=_examples(
        "evaluate net.onnx photos/ --masks masks/ -m rap,gradient -o results",
        "evaluate net.onnx photos/ --boxes annotations/ --labels-file classes.csv -m all --sample 200 -o results",
    )
)
def evaluate(
    model: given.ModelFile,
    data: given.DataFiles,
    out: given.OutFolder = Path("evaluation"),
    methods: given.EvaluatedMethods = ["all"],  # noqa: B006 - typer reads the default and never changes it
    metrics: given.MetricNames = ["localisation", "perturbation", "conciseness"],  # noqa: B006
    option: given.OptionPairs = None,
    metric_option: given.MetricOptions = None,
    patterns: given.Patterns = None,
    target: given.Explained = given.ExplainedClass.predicted,
    output: given.OutputName = None,
    no_logits: given.NoLogits = False,
    labels: given.LabelFile = None,
    input_shape: given.InputShapes = None,
    masks: given.MaskPlace = None,
    boxes: given.BoxPlace = None,
    labels_file: given.TruthFile = None,
    objects: given.ObjectsOf = given.Objects.all,
    sample: given.SampleSize = None,
    seed: given.RandomSeed = 0,
    skip_bad: given.SkipFaulty = False,
    layout: given.LayoutName = None,
    preset: given.PresetName = None,
    mean: given.Mean = None,
    std: given.Std = None,
    channel_order: given.Order = None,
    resize: given.ResizeName = None,
    batch_size: given.BatchSize = 16,
    threads: given.Threads = None,
    dark: given.Dark = False,
    json: given.AsJson = False,
) -> None:
    """Judge methods on a data set: where their relevance lies, and what goes with it.

    DIR gets summary.json, .csv and .md, figures, and the values per sample as
    Parquet. A run that was stopped goes on where it stood, by the same command.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import arguments, evaluating

        asked = evaluating.Asked(
            model,
            data,
            out,
            methods,
            metrics,
            _preprocessing(preset, mean, std, channel_order, resize),
            options=_options(option, patterns),
            metric_options=arguments.options(metric_option or []),
            masks=masks,
            boxes=boxes,
            truth=labels_file,
            labels=labels,
            objects=_text(objects),
            sample=sample,
            seed=seed,
            target=_text(target),
            skip_bad=skip_bad,
            output=output,
            logits=not no_logits,
            layout=_text(layout),
            input_shapes=arguments.input_shapes(input_shape or []),
            batch_size=batch_size,
            threads=threads,
        )
        evaluating.run(asked, dark=dark, as_json=json)


@app.command(epilog=_examples("shapes set -n 2000", "shapes set -n 500 --size 224 --seed 7"))
def shapes(
    out: given.ShapesOut,
    count: given.ShapesCount = 1000,
    size: given.ShapesSize = 64,
    seed: given.ShapesSeed = 0,
    json: given.AsJson = False,
) -> None:
    """Write pictures of shapes among distractors, where the evidence is known.

    OUT gets images/, masks/, labels.csv and boxes.json (COCO), ready for
    `onnx-explain evaluate`.
    """
    with one_sentence_per_error():
        from onnx_explain.cli import drawing_shapes

        drawing_shapes.write(out, count, size=size, seed=seed, as_json=json)


def _options(pairs: list[str] | None, patterns: Path | None = None, hostile: str | None = None) -> dict[str, Any]:
    """The options of --option, and those that have a flag of their own where it is given."""
    from onnx_explain.cli import arguments

    found = arguments.options(pairs or [])
    found |= {} if patterns is None else {"patterns": str(patterns)}
    return found if hostile is None else {**found, "hostile": arguments.hostile(hostile)}


def _preprocessing(preset: Any, mean: str | None, std: str | None, order: Any, resize: Any) -> Any:
    """What makes the preprocessing of the options, once the model's own preset is known."""
    from onnx_explain.cli import arguments
    from onnx_explain.data import preprocessing

    fields: dict[str, Any] = {"mean": arguments.numbers(mean, "--mean"), "std": arguments.numbers(std, "--std")}
    fields |= {"channel_order": _text(order), "resize": _text(resize)}
    return lambda embedded: preprocessing(_text(preset) or embedded, **fields)


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
