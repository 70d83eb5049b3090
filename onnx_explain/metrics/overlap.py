"""The heat map as a segmentation: binarised, and compared with the mask, pixel by pixel, over a whole set.

Counts per sample add up: a data set of any size is a sum of `SegmentationCounts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from onnx_explain.metrics.arrays import Floats, Ints, choice, maps_of, masks_of, number, quotient, varied

Threshold = Literal["zero", "mean"] | float


@dataclass(frozen=True)
class SegmentationCounts:
    """Pixels per sample, int64 [N] each, over the labelled pixels; all zero where a sample is missing.

    both: foreground in map and mask. neither: background in both. map_only, mask_only: foreground in one alone.
    """

    both: Ints
    neither: Ints
    map_only: Ints
    mask_only: Ints

    @property
    def missing(self) -> int:
        """Samples without a label or with a map of one value: they count in no score."""
        return int((self._labelled == 0).sum())

    @property
    def iou(self) -> Floats:
        """Mean of foreground's and background's intersection over union, per sample, [N]; NaN is missing."""
        return _miou(self.both, self.neither, self.map_only, self.mask_only)

    @property
    def accuracy(self) -> Floats:
        """Pixels classified rightly / labelled pixels, per sample, [N]; NaN is missing."""
        return quotient((self.both + self.neither).astype(np.float64), self._labelled.astype(np.float64))

    @property
    def miou(self) -> float:
        """Mean IoU of the set: intersections and unions summed over all samples before they are divided."""
        return float(
            _miou(*(c.sum(keepdims=True) for c in (self.both, self.neither, self.map_only, self.mask_only)))[0]
        )

    @property
    def pixel_accuracy(self) -> float:
        """Pixel accuracy of the set: right pixels / labelled pixels, summed over all samples before they are divided."""
        right, labelled = (self.both + self.neither).sum(keepdims=True), self._labelled.sum(keepdims=True)
        return float(quotient(right.astype(np.float64), labelled.astype(np.float64))[0])

    @property
    def _labelled(self) -> Ints:
        return self.both + self.neither + self.map_only + self.mask_only

    def rows(self) -> Ints:
        """The counts as int64 [N, 4] (both, neither, map_only, mask_only): what a bootstrap draws from."""
        return np.stack([self.both, self.neither, self.map_only, self.mask_only], 1)

    @classmethod
    def of_rows(cls, rows: npt.ArrayLike) -> SegmentationCounts:
        """Back from `rows`."""
        counts = np.asarray(rows, np.int64)
        return cls(*(counts[:, k] for k in range(4)))


def segmentation(
    relevance: npt.ArrayLike,
    masks: npt.ArrayLike,
    *,
    threshold: Threshold = "zero",
    ignore: npt.ArrayLike | None = None,
) -> SegmentationCounts:
    """Foreground is R > threshold; compared with the mask: the counts that mIoU and pixel accuracy are made of.

    Long et al., CVPR 2015, for the two scores. threshold: ``"zero"`` (positive relevance, for maps with signs; our reading of
    RAP, AAAI 2020), ``"mean"`` (of the map's own values; equal to Chefer et al., CVPR 2021, as min-max scaling keeps the order),
    or a number. Report both. ignore: bool [N, H, W], pixels without a label (VOC's 255), which count nowhere, not in the mean either.

    A sample whose mask is empty, whose map has one value alone, or without a labelled pixel is missing: four zeros.
    Raises InputError: shapes that do not fit, NaN or infinity.
    """
    r = maps_of(relevance)
    m = masks_of(masks, r.shape)
    labelled = np.ones(r.shape, bool) if ignore is None else ~masks_of(ignore, r.shape, "ignore")
    cut = _cut(r, labelled, threshold)
    usable = varied(r.reshape(len(r), r.shape[1] * r.shape[2])) & (m & labelled).any((1, 2))
    counted = labelled & usable[:, None, None]
    foreground = r > cut[:, None, None]
    pairs = (foreground & m, ~foreground & ~m, foreground & ~m, ~foreground & m)
    return SegmentationCounts(*((p & counted).sum((1, 2), dtype=np.int64) for p in pairs))


def _cut(r: Floats, labelled: npt.NDArray[np.bool_], threshold: Threshold) -> Floats:
    if isinstance(threshold, str):
        if choice("threshold", threshold, ("zero", "mean")) == "zero":
            return np.zeros(len(r))
        return quotient((r * labelled).sum((1, 2)), labelled.sum((1, 2)).astype(np.float64))
    return np.full(len(r), number("threshold", threshold))


def _miou(both: Ints, neither: Ints, map_only: Ints, mask_only: Ints) -> Floats:
    """½ (IoU of the foreground + IoU of the background); a background that neither has counts as no class."""
    wrong = map_only + mask_only
    parts = [quotient(c.astype(np.float64), (c + wrong).astype(np.float64)) for c in (both, neither)]
    stacked = np.stack(parts)
    present = ~np.isnan(stacked)
    return quotient(np.where(present, stacked, 0.0).sum(0), present.sum(0).astype(np.float64))
