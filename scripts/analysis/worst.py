"""The images with most errors, drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from data.images import Pixels
from engine.evaluation.detections import Detections
from engine.evaluation.drawing import Color, DrawnObject, draw_panel
from scripts.analysis.tide import BKG, BOTH, CLS, DUPE, IGNORED, LOC, RIGHT, Verdicts

IntArray = npt.NDArray[np.int64]

HEIGHT = 420  # pixels, of a drawn image
RIGHT_COLOR: Color = (52, 211, 153)
WRONG_COLOR: Color = (248, 113, 113)
MISSED_COLOR: Color = (250, 204, 21)
WORDS = {
    LOC: "badly localized",
    CLS: "wrong class",
    BOTH: "location and class",
    DUPE: "duplicate",
    BKG: "",
}


@dataclass(frozen=True)
class DrawnFaults:
    """An image with one run's errors drawn in.

    Attributes:
        pixels: ``(H, W, 3)`` RGB.
        counts: text with the numbers of right, wrong and missed objects.
    """

    pixels: Pixels
    counts: str


@dataclass(frozen=True)
class Faults:
    """Numbers of wrong detections above a threshold and of missed objects, by image.

    Attributes:
        wrong: ``(I,)`` wrong detections.
        missed: ``(I,)`` objects without a right detection above the threshold.
    """

    wrong: IntArray
    missed: IntArray

    def worst(self, count: int) -> list[int]:
        """Return the rows of the images with most errors, worst first; none without errors."""
        total = self.wrong + self.missed
        order = np.argsort(-total, kind="stable")[:count]
        return [int(row) for row in order if total[row] > 0]


def count_faults(
    detections: Detections, annotations: Annotations, verdicts: Verdicts, threshold: float
) -> Faults:
    """Count the errors of every image."""
    size = len(annotations)
    sure = detections.score >= threshold
    wrong = sure & (verdicts.kind != RIGHT) & (verdicts.kind != IGNORED)
    lost = np.flatnonzero(_missed(annotations, verdicts, sure))
    images = annotations.object_images()
    return Faults(
        np.bincount(detections.image[wrong], minlength=size),
        np.bincount(images[lost], minlength=size),
    )


def _missed(
    annotations: Annotations, verdicts: Verdicts, sure: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return ``(N,)`` bool: the objects that no detection above the threshold found."""
    missed = annotations.counted
    missed[verdicts.meant[sure & (verdicts.kind == RIGHT)]] = False
    return missed


def draw_faults(
    image: Pixels,
    row: int,
    annotations: Annotations,
    detections: Detections,
    verdicts: Verdicts,
    threshold: float,
) -> DrawnFaults:
    """Draw an image with right detections green, wrong ones red, missed objects yellow."""
    sure = detections.score >= threshold
    chosen = np.flatnonzero(sure & (detections.image == row) & (verdicts.kind != IGNORED))
    right = chosen[verdicts.kind[chosen] == RIGHT]
    wrong = chosen[verdicts.kind[chosen] != RIGHT]
    span = annotations.objects_of(row)
    lost = np.flatnonzero(_missed(annotations, verdicts, sure)[span]) + span.start
    several = len(annotations.classes) > 1
    objects = [DrawnObject(detections.boxes[each], "", RIGHT_COLOR) for each in right]
    for each in lost.tolist():
        caption = f"missed {annotations.classes[annotations.labels[each]] if several else ''}"
        objects.append(DrawnObject(annotations.boxes[each], caption.strip(), MISSED_COLOR))
    for each in wrong[np.argsort(detections.score[wrong])].tolist():
        words = [WORDS[int(verdicts.kind[each])], f"{detections.score[each]:.2f}"]
        if several:
            words.insert(0, annotations.classes[detections.label[each]])
        objects.append(
            DrawnObject(detections.boxes[each], " ".join(filter(None, words)), WRONG_COLOR)
        )
    counts = f"{len(right)} right, {len(wrong)} wrong, {len(lost)} missed"
    return DrawnFaults(draw_panel(image, objects, counts, "", HEIGHT), counts)
