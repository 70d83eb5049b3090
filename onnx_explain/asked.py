"""What was asked for, checked: methods with their options, names and settings; and what one backward half found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from onnx_explain.aiming import Aimed
from onnx_explain.backends import gpu
from onnx_explain.backends.onnx import Arrays
from onnx_explain.errors import InputError, MethodError, RuntimeMissing, TargetError
from onnx_explain.explanation import Target
from onnx_explain.ir.view import dims
from onnx_explain.methods import Composite, Method, Procedure, Seed, resolve
from onnx_explain.path import explained_tensor, wrt_tensors
from onnx_explain.prepared import Array, Backend, Outcome, Spot
from onnx_explain.relevance import Options, RelevanceGraph
from onnx_explain.relevance.apart import arrived, keeps_samples
from onnx_explain.target import ARGMAX, NOT_EXPLAINED, Parsed

Names = str | Sequence[str]


@dataclass(frozen=True)
class Way:
    """One method as it was asked for."""

    name: str
    procedure: Composite | Procedure
    options: Mapping[str, Any]
    seed: Seed


def way_of(method: str | Composite | tuple[str, Mapping[str, Any]], seed: Seed | None) -> Way:
    """A method's name (with its options), or a composite, as a way of explaining; MethodError."""
    if isinstance(method, Composite):
        return Way("custom", method, {}, seed or "score")
    name, options = (method, {}) if isinstance(method, str) else method
    found: Method = resolve(name)
    return Way(found.name, found.procedure(options), options, seed or found.seed)


def composite_of(procedure: Composite | Procedure) -> Composite:
    """The composite behind a method, for a plan; MethodError where it looks into no node."""
    composite = procedure if isinstance(procedure, Composite) else getattr(procedure, "composite", None)
    if not isinstance(composite, Composite):
        raise MethodError("The method runs the model as it is and gives no node a rule: any model that runs will do.")
    return composite


def outcome(graph: RelevanceGraph, results: Arrays, way: Way) -> Outcome:
    """What one backward half found."""
    composite = composite_of(way.procedure)
    score = results[graph.reports["score"]].astype(np.float64)
    index = results[graph.reports["index"]].astype(np.int64)
    absorbed = results[graph.reports["absorbed"]].astype(np.float64)
    relevance = {n: results[o] for n, o in graph.relevance.items()}
    completeness = None
    seeded = np.where(index == -2, 0.0, score if way.seed == "score" else 1.0)
    if composite.positive_seed:
        seeded = np.where(score > 0, seeded, 0.0)
    if "seeded" in graph.reports:
        seeded = results[graph.reports["seeded"]].astype(np.float64)
    if "reference" in graph.reports:
        seeded = np.where(index == -2, 0.0, score - results[graph.reports["reference"]].astype(np.float64))
        completeness = arrived(relevance, graph.samples, by_sample=graph.by_sample) + absorbed - seeded
    return Outcome(
        relevance=relevance,
        outputs={n: results[n] for n in graph.outputs},
        explained=graph.explained,
        index=index,
        score=score,
        seeded=seeded,
        absorbed=absorbed,
        by_sample=graph.by_sample,
        kept={n: results[o] for n, o in graph.kept.items()},
        values={n: results[o] for n, o in graph.values.items()},
        completeness=completeness,
        layer=graph.layer,
        places=graph.samples,
    )


def refuse_hostile_target(ways: Sequence[Way], aim: Parsed, index: Array) -> None:
    """A class cannot speak for and against itself."""
    for way in ways:
        turn = composite_of(way.procedure).turn
        if turn is None or not isinstance(turn.hostile, tuple) or (aim.index is None and aim.element is None):
            continue
        both = sorted(set(turn.hostile) & {int(i) for i in index})
        if both:
            raise MethodError(
                f"Method {way.name!r}: class {both[0]} is the target and cannot be hostile too; leave it out of `hostile`."
            )


def check_computed(text: str, found: Outcome, sure: Array | None) -> tuple[str, ...]:
    """A note where a computed target had nothing to look at; TargetError where it is no number.

    sure: truth values [N], False where nothing fulfilled a condition or a divisor was 0.
    """
    explained = np.atleast_1d(found.index) != NOT_EXPLAINED
    wrong = np.flatnonzero(explained & ~np.isfinite(np.atleast_1d(found.score)))
    if len(wrong):
        value = float(np.atleast_1d(found.score)[wrong[0]])
        raise TargetError(
            f"Target {text!r} is {value} for sample {wrong[0]}, which has no explanation; check its terms."
        )
    if sure is None:
        return ()
    empty = np.flatnonzero(explained & ~np.atleast_1d(sure))
    if not len(empty):
        return ()
    which = "sample " + ", ".join(map(str, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
    return (
        f"Target {text!r}: in {which} nothing fulfils a condition, or a divisor is 0; that part of it counts as 0.",
    )


def target_of(found: Outcome, aimed: Aimed | None, sure: Array | None) -> Target:
    """What was explained."""
    if aimed is None:
        return Target(found.explained, found.index, found.score)
    certain = None if sure is None else np.atleast_1d(sure)
    return Target(found.explained, found.index, found.score, aimed.text, aimed.reads, certain)


def default_index(spot: Spot, options: Options) -> int:
    """The index that a converted file explains where none is given, the same for every sample; TargetError."""
    aim = spot.target
    if spot.aimed is not None:
        if aim.element not in ((), (0,), (None,)):
            raise TargetError(
                f"Target {aim.text!r} names a sample, but a file explains every sample it is given; write ':' for it."
            )
        return 0
    if aim.index is None and aim.element is None:
        return ARGMAX
    if isinstance(aim.index, tuple):
        raise TargetError("A file explains the same target for every sample; give one index, not one per sample.")
    model = spot.prepared.canonical()
    y = explained_tensor(model, options.output, logits=options.logits)
    apart, shape = keeps_samples(model, y, wrt_tensors(model, options.wrt)), tuple(dims(y))
    if aim.element is not None and apart and aim.element[:1] not in ((0,), (None,)):
        raise TargetError(
            f"Target {aim.text!r} names a sample, but a file explains every sample it is given; write ':' for it."
        )
    sizes = shape[1:] if apart else shape
    classes = None if any(d is None for d in sizes) else prod(d or 1 for d in sizes)
    found = aim.indices(1, classes, shape, y.name or "", by_sample=apart)
    return int(found[0])


def names_of(option: str, given: Any) -> tuple[str, ...]:
    """One name, or several; a lone string is one name, not its letters."""
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise InputError(f"{option} must be a tensor's name or a list of names, not {given!r}.")
    return tuple(names)


def name_of(option: str, given: Any) -> str | None:
    """One name or none."""
    if given is not None and not isinstance(given, str):
        raise InputError(f"{option} must be a tensor's name, not {given!r}.")
    return given


def check_settings(seed: Any, device: Any, chosen: Any, batch_size: Any, threads: Any, input_shapes: Any) -> None:
    """Refuse settings that are none; MethodError, InputError."""
    if device not in ("cpu", "cuda", "auto"):
        raise MethodError(f"device must be 'cpu', 'cuda' or 'auto', not {device!r}.")
    if seed not in (None, "score", "one"):
        raise MethodError(f"seed must be 'score' or 'one', not {seed!r}.")
    if chosen not in (None, "onnx", "reference", "kernels"):
        raise MethodError(f"backend must be 'onnx', 'kernels' or 'reference', not {chosen!r}.")
    if (device, chosen) == ("cpu", "kernels") or (device != "cpu" and chosen == "reference"):
        needed = "cuda" if chosen == "kernels" else "cpu"
        raise MethodError(f"backend={chosen!r} runs on device={needed!r} alone, not on {device!r}.")
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
            raise InputError(f"{name} must be a whole number of at least 1, not {value!r}.")
    if input_shapes is not None and not (
        isinstance(input_shapes, Mapping)
        and all(isinstance(v, Sequence) and not isinstance(v, str) for v in input_shapes.values())
    ):
        raise InputError(f"input_shapes must be {{name: [1, 3, 224, 224]}}, not {input_shapes!r}.")


def device_of(device: str, precision: Any, backend: Backend | None) -> tuple[gpu.Device | None, Backend, str | None]:
    """(the GPU or None, the backend, a sentence where ``auto`` fell back to the CPU).

    Raises MethodError for an unknown precision, RuntimeMissing where ``cuda`` was asked for and there is no usable GPU.
    """
    if precision not in gpu.PRECISIONS:
        raise MethodError(f"precision must be one of {', '.join(gpu.PRECISIONS)}, not {precision!r}.")
    if device == "cpu":
        return None, backend or "onnx", None
    try:
        return gpu.Device.open(precision), backend or "kernels", None
    except RuntimeMissing as error:
        if device != "auto":
            raise
        reason = str(error).partition(";")[0].partition(": `")[0].rstrip(".")
        return None, "onnx", f"This ran on the CPU. {reason}."
