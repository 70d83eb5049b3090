"""The measures by name, as `evaluate` runs them: what each needs, what it gives, and its options. Their definitions are
`onnx_explain.metrics`'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain import metrics
from onnx_explain.errors import InputError, MethodError, suggest
from onnx_explain.metrics import replacement
from onnx_explain.metrics.scoring import Explain, Score

Array = npt.NDArray[Any]
Better = Literal["high", "low", "neither"]
Statistic = Literal["mean", "median", "miou", "pixel accuracy", "class mean"]
Group = Literal["localisation", "perturbation", "conciseness", "sensitivity"]


@dataclass(frozen=True)
class Batch:
    """Samples under one method, all of finite relevance. x: [N, C, H, W]; relevance the same; heat: [N, H, W].

    masks, void: bool [N, H, W] or None; labels, targets: int64 [N]; keys: the samples' numbers in their data set.
    """

    x: Array
    relevance: Array
    heat: Array
    targets: Array
    keys: Sequence[int]
    masks: Array | None = None
    void: Array | None = None
    labels: Array | None = None


@dataclass(frozen=True)
class Asking:
    """How the model and the method are asked again. score: probabilities; raw: the output as it is."""

    score: Score
    raw: Score
    explain: Explain
    classes: int
    bounds: replacement.Bounds
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Values:
    """Of one column: a value per sample [N] (NaN: missing), and what it is made of [N, …]: a curve, or pixel counts."""

    value: Array
    series: Array | None = None


@dataclass(frozen=True)
class Column:
    """One figure of a measure. statistic: how the samples' values become the set's; curve: the series is one."""

    name: str
    better: Better
    meaning: str
    statistic: Statistic = "mean"
    curve: bool = False


@dataclass(frozen=True)
class Measure:
    """needs: ``mask``, ``label``; options: with their defaults. run: columns by name, in their order."""

    name: str
    group: Group
    columns: tuple[Column, ...]
    run: Callable[..., dict[str, Values]]
    needs: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)


def _masks(batch: Batch) -> Array:
    if batch.masks is None:
        raise InputError("This measure needs masks or boxes.")
    return batch.masks


def _ratio(batch: Batch, _: Asking) -> dict[str, Values]:
    parts: tuple[Literal["positive", "all"], ...] = ("positive", "all")
    return {
        name: Values(metrics.outside_inside_ratio(batch.heat, _masks(batch), part=part))
        for name, part in zip(("outside-inside-pos", "outside-inside-all"), parts)
    }


def _segmentation(batch: Batch, _: Asking) -> dict[str, Values]:
    found = {}
    thresholds: tuple[Literal["zero", "mean"], ...] = ("zero", "mean")
    for threshold in thresholds:
        counts = metrics.segmentation(batch.heat, _masks(batch), threshold=threshold, ignore=batch.void)
        found[f"miou-{threshold}"] = Values(counts.iou, counts.rows())
        found[f"pixel-accuracy-{threshold}"] = Values(counts.accuracy, counts.rows())
    return found


def _pointing(batch: Batch, _: Asking, *, tolerance: float) -> dict[str, Values]:
    hits = metrics.pointing_game(batch.heat, _masks(batch), tolerance=tolerance)
    classes = batch.targets if batch.labels is None else batch.labels
    return {"pointing-game": Values(hits, classes[:, None])}


def _top(batch: Batch, _: Asking, *, k: int | None) -> dict[str, Values]:
    pixels = batch.heat[0].size
    return {
        "top-k": Values(metrics.top_k_intersection(batch.heat, _masks(batch), k=k or max(1, min(1000, pixels // 10))))
    }


def _on_masks(name: str, function: Callable[..., Array], **fixed: Any) -> Callable[..., dict[str, Values]]:
    return lambda batch, _: {name: Values(function(batch.heat, _masks(batch), **fixed))}


def _on_maps(name: str, function: Callable[..., Array]) -> Callable[..., dict[str, Values]]:
    return lambda batch, _: {name: Values(function(batch.heat))}


def _causal(name: str, function: Callable[..., metrics.Curve]) -> Callable[..., dict[str, Values]]:
    def run(batch: Batch, asking: Asking, *, step: int | None) -> dict[str, Values]:
        curve = function(
            asking.score, batch.x, relevance=batch.heat, step=step, targets=batch.targets, batch_size=asking.batch_size
        )
        return {name: Values(curve.auc, curve.scores)}

    return run


def _noisy(batch: Batch, asking: Asking) -> dict[str, Any]:
    return {
        "relevance": batch.heat, "bounds": asking.bounds, "seed": asking.seed, "keys": batch.keys,
        "batch_size": asking.batch_size,
    }  # fmt: skip


def _steps(batch: Batch, size: int, steps: int | None) -> int:
    """At most as many as there are regions; where nothing is said Samek's 100."""
    regions = int(np.prod([-(-n // size) for n in batch.heat.shape[1:]]))
    return regions if steps is None and regions <= 100 else min(steps or 100, regions)


def _regions(name: str, order: Literal["morf", "lerf"]) -> Callable[..., dict[str, Values]]:
    def run(batch: Batch, asking: Asking, *, size: int, steps: int | None, fill: Any) -> dict[str, Values]:
        curve = metrics.region_perturbation(
            asking.score, batch.x, size=size, steps=_steps(batch, size, steps), order=order, replacement=fill,
            targets=batch.targets, **_noisy(batch, asking),
        )  # fmt: skip
        return {name: Values(curve.aopc, curve.scores)}

    return run


def _flipping(batch: Batch, asking: Asking, *, step: int | None, fill: Any) -> dict[str, Values]:
    curve = metrics.pixel_flipping(
        asking.score, batch.x, step=step or batch.x.shape[2], replacement=fill, targets=batch.targets,
        **_noisy(batch, asking),
    )  # fmt: skip
    return {"pixel-flipping": Values(curve.aopc, curve.scores)}


def _negative(batch: Batch, asking: Asking, *, size: int, steps: int | None, fill: Any) -> dict[str, Values]:
    if batch.labels is None:
        raise InputError("Negative perturbation needs the true classes.")
    curve = metrics.negative_perturbation(
        asking.score, batch.x, labels=batch.labels, size=size, steps=_steps(batch, size, steps), replacement=fill,
        **_noisy(batch, asking),
    )  # fmt: skip
    return {"negative-perturbation": Values(curve.aopc, curve.correct)}


def _infidelity(batch: Batch, asking: Asking, *, count: int, noise: float) -> dict[str, Values]:
    sigma = noise * _range(asking)
    changes = metrics.noise_perturbations(batch.x, sigma=sigma, count=count, seed=asking.seed, keys=batch.keys)
    found = metrics.infidelity(
        asking.raw, batch.x, relevance=batch.relevance, perturbations=changes, targets=batch.targets, normalise=True,
        batch_size=asking.batch_size,
    )  # fmt: skip
    return {"infidelity": Values(found)}


def _steady(batch: Batch, asking: Asking, *, count: int, radius: float) -> dict[str, Values]:
    reach = radius * _range(asking)
    changes = metrics.ball_perturbations(batch.x, radius=reach, count=count, seed=asking.seed, keys=batch.keys)
    found = metrics.max_sensitivity(
        asking.explain, batch.x, relevance=batch.heat, perturbations=changes, targets=batch.targets, relative=True,
        batch_size=len(batch.x),
    )  # fmt: skip
    return {"max-sensitivity": Values(found)}


def _range(asking: Asking) -> float:
    """The widest channel's range of admissible values."""
    return float(np.max(np.asarray(asking.bounds[1], np.float64) - np.asarray(asking.bounds[0], np.float64)))


def _random_logit(batch: Batch, asking: Asking) -> dict[str, Values]:
    found = metrics.random_logit(
        asking.explain, batch.x, targets=batch.targets, classes=asking.classes, measure="spearman", seed=asking.seed,
        keys=batch.keys, batch_size=len(batch.x),
    )  # fmt: skip
    return {"random-logit": Values(found)}


def _class_sensitivity(batch: Batch, asking: Asking) -> dict[str, Values]:
    scores = metrics.scores_of(asking.raw, batch.x, batch_size=asking.batch_size)
    found = metrics.class_sensitivity(
        asking.explain, batch.x, scores=scores, measure="spearman", batch_size=len(batch.x)
    )
    return {"class-sensitivity": Values(found)}


def _one(name: str, better: Better, meaning: str, *, curve: bool = False) -> tuple[Column, ...]:
    return (Column(name, better, meaning, curve=curve),)


_MASK, _LABEL = frozenset({"mask"}), frozenset({"label"})
_REGIONS: dict[str, Any] = {"size": 9, "steps": None, "fill": "uniform"}
MEASURES: dict[str, Measure] = {
    m.name: m
    for m in (
        Measure(
            "outside-inside", "localisation",
            (Column("outside-inside-pos", "low", "mean of [R]+ outside / inside, median of the samples", "median"),
             Column("outside-inside-all", "low", "mean of R outside / inside, median of the samples", "median")),
            _ratio, _MASK,
        ),
        Measure(
            "segmentation", "localisation",
            tuple(Column(f"{kind.replace(' ', '-')}-{cut}", "high", f"{kind} of R > {cut}, pooled", kind)
                  for cut in ("zero", "mean") for kind in ("miou", "pixel accuracy")),
            _segmentation, _MASK,
        ),
        Measure(
            "pointing-game", "localisation",
            (Column("pointing-game", "high", "maximum on the object, mean over classes", "class mean"),),
            _pointing, _MASK, {"tolerance": 15.0},
        ),
        Measure("relevance-mass", "localisation", _one("relevance-mass", "high", "share of [R]+ on the object"),
                _on_masks("relevance-mass", metrics.relevance_mass), _MASK),
        Measure("relevance-rank", "localisation", _one("relevance-rank", "high", "top-K pixels on the object, K its size"),
                _on_masks("relevance-rank", metrics.relevance_rank), _MASK),
        Measure("attribution-localisation", "localisation",
                _one("attribution-localisation", "high", "share of [R]+ on the object / its share of the picture"),
                _on_masks("attribution-localisation", metrics.attribution_localisation, weighted=True), _MASK),
        Measure("top-k", "localisation", _one("top-k", "high", "top-k pixels on the object"), _top, _MASK, {"k": None}),
        Measure("roc-auc", "localisation", _one("roc-auc", "high", "a pixel of the object outranks another"),
                _on_masks("roc-auc", metrics.roc_auc), _MASK),
        Measure("deletion", "perturbation", _one("deletion", "low", "area under the deletion curve", curve=True),
                _causal("deletion", metrics.deletion), options={"step": None}),
        Measure("insertion", "perturbation", _one("insertion", "high", "area under the insertion curve", curve=True),
                _causal("insertion", metrics.insertion), options={"step": None}),
        Measure("region-morf", "perturbation", _one("region-morf", "high", "AOPC, most relevant first", curve=True),
                _regions("region-morf", "morf"), options=_REGIONS),
        Measure("region-lerf", "perturbation", _one("region-lerf", "low", "AOPC, least relevant first", curve=True),
                _regions("region-lerf", "lerf"), options=_REGIONS),
        Measure("pixel-flipping", "perturbation", _one("pixel-flipping", "high", "AOPC, pixel by pixel", curve=True),
                _flipping, options={"step": None, "fill": "mean"}),
        Measure("negative-perturbation", "perturbation",
                _one("negative-perturbation", "low", "AOPC of the accuracy, most negative first", curve=True),
                _negative, _LABEL, _REGIONS),
        Measure("sparseness", "conciseness", _one("sparseness", "neither", "Gini index of |R|"),
                _on_maps("sparseness", metrics.sparseness)),
        Measure("complexity", "conciseness", _one("complexity", "neither", "entropy of |R|"),
                _on_maps("complexity", metrics.complexity)),
        Measure("infidelity", "sensitivity", _one("infidelity", "low", "of Gaussian noise, R scaled to fit"),
                _infidelity, options={"count": 10, "noise": 0.1}),
        Measure("max-sensitivity", "sensitivity", _one("max-sensitivity", "low", "relative change under small noise"),
                _steady, options={"count": 10, "radius": 0.02}),
        Measure("random-logit", "sensitivity", _one("random-logit", "low", "Spearman with another class's map"),
                _random_logit),
        Measure("class-sensitivity", "sensitivity",
                _one("class-sensitivity", "low", "Spearman of most and least likely class"), _class_sensitivity),
    )
}  # fmt: skip
COLUMNS: dict[str, Column] = {c.name: c for m in MEASURES.values() for c in m.columns}
GROUPS: tuple[Group, ...] = ("localisation", "perturbation", "conciseness", "sensitivity")
CHEAP: tuple[str, ...] = GROUPS[:3]


def named(names: Sequence[str], known: frozenset[str]) -> tuple[list[Measure], dict[str, str]]:
    """The measures of these names, groups or ``all``, and why others of a group are left out.

    known: what is known of the data (``mask``, ``label``). Raises MethodError: an unknown name, or a measure asked for by name
    whose need is not met.
    """
    found: dict[str, Measure] = {}
    left_out: dict[str, str] = {}
    for name in names:
        if name not in MEASURES and name not in (*GROUPS, "all"):
            raise MethodError(f"There is no metric {name!r}.{suggest(name, ['all', *GROUPS, *MEASURES])}")
        for measure in MEASURES.values():
            if name not in ("all", measure.group, measure.name):
                continue
            missing = sorted(measure.needs - known)
            if missing and name == measure.name:
                raise MethodError(f"Metric {name!r} needs {_OPTION[missing[0]]}.")
            if missing:
                left_out[measure.name] = f"needs {_OPTION[missing[0]]}"
            else:
                found[measure.name] = measure
    if not found:
        raise MethodError(f"No metric can be computed: {'; '.join(f'{n} {why}' for n, why in left_out.items())}.")
    return [m for m in MEASURES.values() if m.name in found], {k: v for k, v in left_out.items() if k not in found}


_OPTION = {"mask": "masks or boxes (--masks, --boxes)", "label": "the true classes (--labels-file)"}


def options_of(measures: Sequence[Measure], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Per measure its options: the defaults, and what was given as ``name.option`` or, for all that have it, ``option``."""
    found = {m.name: dict(m.options) for m in measures}
    for key, value in given.items():
        name, dot, option = key.rpartition(".")
        meant = [m for m in measures if (not dot or m.name == name.replace("_", "-")) and option in m.options]
        if not meant:
            known = sorted(
                {o for m in measures for o in m.options} | {f"{m.name}.{o}" for m in measures for o in m.options}
            )
            raise MethodError(f"No metric here has an option {key!r}.{suggest(key, known)}")
        for measure in meant:
            found[measure.name][option] = _checked(measure, option, value)
    return found


def _checked(measure: Measure, option: str, value: Any) -> Any:
    default, where = measure.options[option], f"Metric {measure.name!r}: {option}"
    if option == "fill":
        if value not in replacement.NAMES and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise MethodError(f"{where} must be a number or one of {', '.join(replacement.NAMES)}, not {value!r}.")
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise MethodError(f"{where} must be a number of at least 0, not {value!r}.")
    elif value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise MethodError(f"{where} must be a whole number of at least 1, not {value!r}.")
    return value
