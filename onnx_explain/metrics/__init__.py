"""Which explanation is right, measured: the measures by which the methods' own papers are judged.

>>> from onnx_explain.metrics import outside_inside_ratio, interval
>>> interval(outside_inside_ratio(heatmaps, masks))                   # doctest: +SKIP

Maps are channel-summed relevance [N, H, W], masks bool [N, H, W], pictures [N, C, H, W]; a model is a callable from pictures to
scores (`Score`), so that nothing here depends on ONNX but `OnnxScore`, the weight randomisation and the Quantus adapter.
Results are float64 [N]; NaN is a sample about which the definition says nothing, and `interval` counts it as missing.
Names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_explain.metrics.arrays import masks_from_boxes
    from onnx_explain.metrics.causal import deletion, insertion
    from onnx_explain.metrics.conciseness import completeness, complexity, sparseness
    from onnx_explain.metrics.intervals import Interval, interval
    from onnx_explain.metrics.localisation import (
        attribution_localisation,
        is_difficult,
        outside_inside_ratio,
        pointing_accuracy,
        pointing_game,
        relevance_mass,
        relevance_rank,
        roc_auc,
        top_k_intersection,
    )
    from onnx_explain.metrics.overlap import SegmentationCounts, segmentation
    from onnx_explain.metrics.perturbation import (
        AccuracyCurve,
        Curve,
        negative_perturbation,
        pixel_flipping,
        region_perturbation,
    )
    from onnx_explain.metrics.randomisation import RandomisationCurve, method_maps, model_sensitivity
    from onnx_explain.metrics.robustness import (
        ball_perturbations,
        infidelity,
        max_sensitivity,
        noise_perturbations,
        square_perturbations,
    )
    from onnx_explain.metrics.scoring import Explain, OnnxScore, Score, probabilities, scores_of, softmax
    from onnx_explain.metrics.similarity import class_sensitivity, pearson, random_logit, spearman, ssim
    from onnx_explain.metrics.weights import Randomised, randomised_models, weight_layers

_PLACES = {
    "arrays": ("masks_from_boxes",),
    "causal": ("deletion", "insertion"),
    "conciseness": ("completeness", "complexity", "sparseness"),
    "intervals": ("Interval", "interval"),
    "localisation": (
        "attribution_localisation",
        "is_difficult",
        "outside_inside_ratio",
        "pointing_accuracy",
        "pointing_game",
        "relevance_mass",
        "relevance_rank",
        "roc_auc",
        "top_k_intersection",
    ),
    "perturbation": ("AccuracyCurve", "Curve", "negative_perturbation", "pixel_flipping", "region_perturbation"),
    "randomisation": ("RandomisationCurve", "method_maps", "model_sensitivity"),
    "robustness": (
        "ball_perturbations",
        "infidelity",
        "max_sensitivity",
        "noise_perturbations",
        "square_perturbations",
    ),
    "scoring": ("Explain", "OnnxScore", "Score", "probabilities", "scores_of", "softmax"),
    "overlap": ("SegmentationCounts", "segmentation"),
    "similarity": ("class_sensitivity", "pearson", "random_logit", "spearman", "ssim"),
    "weights": ("Randomised", "randomised_models", "weight_layers"),
}
_LATE = {name: f"{__name__}.{module}" for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})


__all__ = [
    "AccuracyCurve",
    "Curve",
    "Explain",
    "Interval",
    "OnnxScore",
    "RandomisationCurve",
    "Randomised",
    "Score",
    "SegmentationCounts",
    "attribution_localisation",
    "ball_perturbations",
    "class_sensitivity",
    "completeness",
    "complexity",
    "deletion",
    "infidelity",
    "insertion",
    "interval",
    "is_difficult",
    "masks_from_boxes",
    "max_sensitivity",
    "method_maps",
    "model_sensitivity",
    "negative_perturbation",
    "noise_perturbations",
    "outside_inside_ratio",
    "pearson",
    "pixel_flipping",
    "pointing_accuracy",
    "pointing_game",
    "probabilities",
    "random_logit",
    "randomised_models",
    "region_perturbation",
    "relevance_mass",
    "relevance_rank",
    "roc_auc",
    "scores_of",
    "segmentation",
    "softmax",
    "sparseness",
    "spearman",
    "square_perturbations",
    "ssim",
    "top_k_intersection",
    "weight_layers",
]
