"""Methods that change the input and watch the score, by name: forward passes alone, so any model that runs will do.

What is run is `onnx_explain.perturbation`'s affair, what the masks look like `rules.masks`'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.errors import MethodError
from onnx_explain.methods.registry import register_method
from onnx_explain.rules.baseline import Baseline, parse_baseline

Scale = Literal["logit", "probability"]
Sizes = int | tuple[int, ...] | Mapping[str, int | tuple[int, ...]] | None
Labels = npt.NDArray[np.int64]
ENUMERATED = 20  # features; above, 2^features coalitions are no longer a matter of patience


@dataclass(frozen=True, eq=False)
class Perturbation:
    """How a black-box method changes the input. `score`: what is watched; `baseline`: what stands where entries are taken away."""

    baseline: Baseline = field(default_factory=Baseline)
    score: Scale = "logit"
    kind: str = "perturbation"


@dataclass(frozen=True, eq=False)
class Occlusion(Perturbation):
    """Sliding windows; sizes per axis behind the batch axis, a lone number for the spatial axes, or one such per input."""

    window: Sizes = None
    stride: Sizes = None


@dataclass(frozen=True, eq=False)
class Rise(Perturbation):
    """Smooth random masks."""

    masks: int = 4000
    grid: Sizes = None
    probability: float = 0.5
    random_seed: int = 0
    centred: bool = False


@dataclass(frozen=True, eq=False)
class ShapleySampling(Perturbation):
    """Features that join the baseline in random order."""

    samples: int = 25
    features: Labels | Mapping[str, Labels] | None = None
    grid: Sizes = None
    antithetic: bool = False
    exact_up_to: int = 10
    random_seed: int = 0


@register_method(
    "occlusion",
    "how the score falls where a sliding window covers the input; no gradient needed",
    "Zeiler, Fergus: Visualizing and understanding convolutional networks, ECCV 2014 (arXiv 1311.2901), as captum's",
    family="perturbation",
    conserves=False,
)
def _occlusion(window: Any = None, stride: Any = None, baseline: Any = "zero", score: Scale = "logit") -> Occlusion:
    """`window`, `stride`: sizes per axis behind the batch axis.

    Default window: all channels and an eighth of each spatial axis (of a table: one feature); default stride: half of it.
    """
    return Occlusion(
        parse_baseline(baseline),
        score,
        window=_sizes("occlusion", "window", window),
        stride=_sizes("occlusion", "stride", stride),
    )


@register_method(
    "rise",
    "the mean of smooth random masks, weighted by the score that each leaves; no gradient needed",
    "Petsiuk, Das, Saenko: RISE, BMVC 2018 (arXiv 1806.07421), eq. 6",
    family="perturbation",
    conserves=False,
)
def _rise(
    masks: int = 4000,
    grid: Any = None,
    probability: float = 0.5,
    centred: bool = False,
    baseline: Any = "zero",
    score: Scale = "probability",
    random_seed: int = 0,
) -> Rise:
    """`grid`: cells per spatial axis, default 7 as in the paper, or as many as a shorter axis has entries.

    `probability`: of a cell to stay. `centred`: take the mean score away, so that entries that do not matter are near zero.
    """
    if not 0 < probability <= 1:
        raise MethodError(f"Method 'rise': probability must be above 0 and at most 1, not {probability!r}.")
    return Rise(
        parse_baseline(baseline),
        score,
        masks=masks,
        grid=_sizes("rise", "grid", grid),
        probability=probability,
        random_seed=random_seed,
        centred=centred,
    )


@register_method(
    "shapley-sampling",
    "how the score changes on average as features join the baseline in random order",
    "Štrumbelj, Kononenko: Explaining prediction models with feature contributions, KAIS 2014, algorithm 2",
    family="perturbation",
)
def _shapley_sampling(
    samples: int = 25,
    features: Any = "auto",
    grid: Any = None,
    baseline: Any = "zero",
    score: Scale = "logit",
    antithetic: bool = False,
    exact_up_to: int = 10,
    random_seed: int = 0,
) -> ShapleySampling:
    """`features`: whole numbers in the input's shape without the batch axis (or broadcast to it); equal ones move together.

    ``"auto"``: a `grid` of superpixels over all channels (default 8 per spatial axis), each feature of a table by itself.
    Up to `exact_up_to` features all coalitions are run and the values are exact.
    """
    name = "shapley-sampling"
    if exact_up_to > ENUMERATED:
        raise MethodError(
            f"Method {name!r}: exact_up_to must be at most {ENUMERATED}, not {exact_up_to}: 2^features runs each."
        )
    return ShapleySampling(
        parse_baseline(baseline),
        score,
        samples=samples,
        features=_features(features),
        grid=_sizes(name, "grid", grid),
        antithetic=antithetic,
        exact_up_to=exact_up_to,
        random_seed=random_seed,
    )


def _sizes(method: str, option: str, value: Any) -> Sizes:
    """Whole numbers from 1 on: one, one per axis, or one such per input name."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(n): _one_or_more(method, option, v) for n, v in value.items()}
    return _one_or_more(method, option, value)


def _one_or_more(method: str, option: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    listed = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    whole = all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) and v >= 1 for v in listed)
    if not listed or not whole:
        raise MethodError(
            f"Method {method!r}: {option} must be a whole number of at least 1, or one per axis behind the batch axis, "
            f"not {value!r}."
        )
    return int(listed[0]) if listed[0] is value else tuple(int(v) for v in listed)


def _features(value: Any) -> Labels | Mapping[str, Labels] | None:
    if isinstance(value, str) and value == "auto":
        return None
    if isinstance(value, Mapping):
        return {str(n): _labels(v) for n, v in value.items()}
    return _labels(value)


def _labels(value: Any) -> Labels:
    try:
        array = np.load(value, allow_pickle=False) if str(value).endswith(".npy") else np.asarray(value)
    except (OSError, ValueError) as error:
        raise MethodError(
            f"features cannot be read as an array: {error}; give whole numbers or a .npy file."
        ) from error
    if array.dtype.kind not in "biu" or not array.size:
        raise MethodError(
            "features must be 'auto' or whole numbers in the input's shape, equal ones for entries that move together, "
            f"not {str(value)[:60]!r}."
        )
    return np.asarray(array, dtype=np.int64)
