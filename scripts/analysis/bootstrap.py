"""Uncertainty of a difference in mAP, by a paired bootstrap over the images.

Both runs are scored on the same images, repeatedly resampled with replacement; the variation over
resamples shows how much the choice of images matters (Efron and Tibshirani 1993).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data.annotations import Annotations
from engine.evaluation.detections import Detections
from scripts.analysis.crowds import judge_beside_crowds

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(frozen=True)
class Ranking:
    """The detections of one class at one IoU by descending score, without the ignored ones.

    Attributes:
        image: ``(D,)``.
        right: ``(D,)`` float64, 1 where it claims an object.
        objects: ``(I,)`` float64, objects that count in each image.
    """

    image: IntArray
    right: FloatArray
    objects: FloatArray

    def average_precision(self, weights: FloatArray) -> float | None:
        """Compute the area under the curve if image ``i`` occurs ``weights[i]`` times.

        It is None without objects.
        """
        positives = float(weights @ self.objects)
        if positives == 0:
            return None
        weight = weights[self.image]
        seen = np.cumsum(weight)
        correct = np.cumsum(weight * self.right)
        precision = np.divide(correct, seen, out=np.zeros_like(seen), where=seen > 0)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float(np.sum(np.diff(correct, prepend=0.0) * envelope) / positives)


def rankings(
    detections: Detections, annotations: Annotations, ious: tuple[float, ...]
) -> list[list[Ranking]]:
    """Compute for each IoU the ranking of each class that has objects."""
    counted = annotations.counted
    images, labels = annotations.object_images()[counted], annotations.labels[counted]
    kinds = np.unique(labels).tolist()
    objects = {
        label: np.bincount(images[labels == label], minlength=len(annotations)).astype(np.float64)
        for label in kinds
    }
    result = []
    for order, right, ignored in judge_beside_crowds(detections, annotations, ious):
        order, right = order[~ignored], right[~ignored]
        of_class = [detections.label[order] == label for label in kinds]
        result.append(
            [
                Ranking(detections.image[order[mine]], right[mine].astype(float), objects[label])
                for label, mine in zip(kinds, of_class, strict=True)
            ]
        )
    return result


def mean_ap(ranked: list[list[Ranking]], weights: FloatArray) -> float:
    """Average over classes, then IoUs; classes without objects in a resample are excluded."""
    means = []
    for classes in ranked:
        values = [ranking.average_precision(weights) for ranking in classes]
        present = [value for value in values if value is not None]
        means.append(sum(present) / len(present) if present else 0.0)
    return float(np.mean(means))


def compare(
    first: Detections,
    second: Detections,
    annotations: Annotations,
    resamples: int,
    seed: int = 0,
    show_progress: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compute the difference second - first, at IoU 0.5 and over 0.5 to 0.95, with uncertainty.

    Returns:
        ``{"mAP50": {"first", "second", "difference", "low", "high", "p"}, "mAP50_95": ...}``:
        ``low`` and ``high`` bound 95 % of the resamples; ``p``, two-sided, is twice the share of
        resamples with a difference of the other sign or 0, at least ``1 / resamples``.
    """
    ranked = [rankings(run, annotations, IOUS) for run in (first, second)]
    everything = np.ones(len(annotations))
    generator = np.random.default_rng(seed)
    draws = np.empty((resamples, 2, len(IOUS)))
    bar = tqdm(range(resamples), "bootstrap", delay=2, leave=False, disable=not show_progress)
    for draw in bar:
        chosen = generator.integers(0, len(annotations), len(annotations))
        weights = np.bincount(chosen, minlength=len(annotations)).astype(np.float64)
        draws[draw] = [[mean_ap([classes], weights) for classes in run] for run in ranked]
    report = {}
    for name, ious in (("mAP50", slice(0, 1)), ("mAP50_95", slice(None))):
        scores = [mean_ap(run[ious], everything) for run in ranked]
        differences = draws[:, 1, ious].mean(axis=1) - draws[:, 0, ious].mean(axis=1)
        low, high = np.quantile(differences, (0.025, 0.975)).tolist()
        tail = min((differences <= 0).mean(), (differences >= 0).mean())
        report[name] = {
            "first": scores[0],
            "second": scores[1],
            "difference": scores[1] - scores[0],
            "low": low,
            "high": high,
            "p": float(min(1.0, max(2 * tail, 1 / resamples))),
        }
    return report
