"""Does the explanation notice that the model was destroyed? Maps of the model against maps of its randomised copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from onnx_explain.metrics.arrays import Array, Floats, Ints, class_indices, pictures, whole
from onnx_explain.metrics.scoring import explained
from onnx_explain.metrics.similarity import Similarity, similarity
from onnx_explain.metrics.weights import Order, loaded, randomised_models


class ExplainModel(Protocol):
    """Maps of a model: (model, pictures [B, C, H, W], int64 [B]) -> relevance [B, H, W], channels summed."""

    def __call__(self, model: onnx.ModelProto, x: Array, targets: Ints, /) -> npt.ArrayLike:
        """Relevance of a batch for this model."""


@dataclass(frozen=True)
class RandomisationCurve:
    """similarity: float64 [N, L] of the original map and the map after layer l was re-initialised; NaN is missing.

    layers: L names in the order of the work. The untouched model, whose similarity is 1 by construction, is no part of it.
    """

    layers: tuple[str, ...]
    similarity: Floats

    @property
    def mean(self) -> Floats:
        """Mean over the layers per sample, [N]; NaN where a layer is missing. Lower: more sensitive to the model."""
        return np.asarray(self.similarity.mean(1))


def model_sensitivity(
    explain: ExplainModel,
    model: Any,
    *,
    x: npt.ArrayLike,
    targets: npt.ArrayLike,
    order: Order = "cascading",
    measure: Similarity = "spearman",
    absolute: bool = False,
    normalisation: bool = False,
    seed: int = 0,
    batch_size: int = 64,
) -> RandomisationCurve:
    """Similarity of maps before and after weights are re-initialised layer by layer; lower is more sensitive.

    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018 (Spearman with and without signs, SSIM); one reading of the
    Model Sensitivity of RSP (AAAI 2021). model, order, normalisation, seed: see `randomised_models`. x: [N, C, H, W]; targets:
    the explained class, which stays the same for every model; measure, absolute: see `similarity`.

    Explanations made: N·(layers + 1). A map that becomes one value under a randomised model is NaN there: missing, not
    dissimilar. Raises InputError, ModelError.
    """
    pics = pictures(x)
    index = class_indices(targets, len(pics))
    size = whole("batch_size", batch_size)
    source = loaded(model)

    def maps(proto: onnx.ModelProto) -> Floats:
        return explained(lambda part, classes: explain(proto, part, classes), pics, index, batch_size=size)

    original = maps(source)
    layers, columns = [], []
    for step in randomised_models(source, order=order, seed=seed, normalisation=normalisation):
        layers.append(step.layer)
        columns.append(similarity(original, maps(step.model), measure=measure, absolute=absolute))
    return RandomisationCurve(tuple(layers), np.stack(columns, 1))


def method_maps(method: str, **options: Any) -> ExplainModel:
    """A method of `onnx_explain.Explainer` as the `explain` of `model_sensitivity`: its heat maps, channels summed."""

    def explain(model: onnx.ModelProto, x: Array, targets: Ints, /) -> npt.ArrayLike:
        from onnx_explain.explainer import Explainer

        heatmap: Array = Explainer(model, method, **options)(x, targets).heatmap()
        return heatmap

    return explain
