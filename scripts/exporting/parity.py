"""Compare the detections of an exported file with the detector's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from engine.trained import Trained
from scripts.exporting.one_image import OUTPUTS
from scripts.exporting.writing import Runner

BOX_TOLERANCE = 0.05  # pixels
SCORE_TOLERANCE = 1e-3  # of scores and mask probabilities
SCORE_ROUNDING = 1e-5  # scores that differ by less may change places


@dataclass(frozen=True)
class Parity:
    """The largest differences over several images.

    If an image has as many detections as ``detector.detections_per_image`` allows, those that score
    like the last are not compared: rounding decides which of them are kept.

    Attributes:
        images: number of images.
        detections: number of the detector's compared detections in all images.
        unmatched: number of detections of either side that the other lacks.
        box: largest difference of box coordinates, pixels.
        score: largest difference of scores.
        mask: largest difference of mask probabilities; None without masks.
    """

    images: int
    detections: int
    unmatched: int
    box: float
    score: float
    mask: float | None

    @property
    def holds(self) -> bool:
        """Whether the file's detections agree with the detector's; False if there are none."""
        largest = max(self.score, self.mask or 0.0)
        same = self.unmatched == 0 and self.box <= BOX_TOLERANCE and largest <= SCORE_TOLERANCE
        return same and self.detections > 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "holds": self.holds}


@torch.no_grad()
def compare(trained: Trained, run: Runner, images: Sequence[Tensor]) -> Parity:
    """Run the detector and the file over ``(3, H, W)`` uint8 images."""
    counts = [0, 0]
    differences = {"boxes": 0.0, "scores": 0.0, "masks": 0.0}
    masks = None
    for image in images:
        found = trained.detector([image.to(trained.device)])[0]
        other = dict(zip(OUTPUTS, run(image.to(trained.device)), strict=False))
        most = trained.config.detector.detections_per_image
        sure, other_sure = (_above_the_last(each["scores"].cpu(), most) for each in (found, other))
        pairs = _pairs(found, other)
        counts[0] += int(sure.sum())
        counts[1] += int(sure.sum() - sure[pairs[:, 0]].sum())
        counts[1] += int(other_sure.sum() - other_sure[pairs[:, 1]].sum())
        pairs = pairs[sure[pairs[:, 0]]]
        for name in differences:
            if name in found and len(pairs):
                gap = found[name].cpu()[pairs[:, 0]] - other[name].cpu()[pairs[:, 1]]
                largest = gap.abs().nan_to_num(nan=math.inf).max()  # NaN is no difference of 0
                differences[name] = max(differences[name], float(largest))
        masks = differences["masks"] if "masks" in found else None
    return Parity(
        len(images), counts[0], counts[1], differences["boxes"], differences["scores"], masks
    )


def _above_the_last(scores: Tensor, most: int) -> Tensor:
    """Return ``(D,)`` bool: detections that score clearly more than the last one kept."""
    if len(scores) < most:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > scores.min() + SCORE_ROUNDING


def _pairs(found: dict[str, Tensor], other: dict[str, Tensor]) -> Tensor:
    """Return ``(P, 2)``: indices of detections of the same class and position.

    They are matched by position, not order: scores that differ in the last bit change places.
    """
    boxes, others = found["boxes"].cpu(), other["boxes"].cpu()
    pairs: list[tuple[int, int]] = []
    left = torch.ones(len(others), dtype=torch.bool)
    for row, box in enumerate(boxes):
        same = left & (other["labels"].cpu() == found["labels"].cpu()[row])
        candidates = torch.where(same)[0]
        if not len(candidates):
            continue
        gaps = (others[candidates] - box).abs().amax(dim=1)
        best = int(gaps.argmin())
        if gaps[best] <= 1.0:
            pairs.append((row, int(candidates[best])))
            left[candidates[best]] = False
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
