"""Detections in flat arrays, as used by the scores, the file formats and the drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Far beyond any image, yet areas and their sums stay finite and comparable.
LARGEST_DETECTED = 1e7


@dataclass(frozen=True)
class Detections:
    """``D`` detections of a whole split, or of one rank's share of it.

    Attributes:
        image: ``(D,)`` int64, rows of the images in their ``Annotations``.
        label: ``(D,)`` int32, 0-based class indices.
        score: ``(D,)`` float64, higher is more confident.
        boxes: ``(D, 4)`` float64, xyxy in pixels of the original image, continuous coordinates.
        rles: the mask of each detection in the original image as COCO's compressed run lengths;
            None if the detector has no masks.
        seen: ``(S,)`` int64, rows of the images processed, with or without detections; None if
            unknown (files only name images with detections).
    """

    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    score: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]
    rles: list[bytes] | None = None
    seen: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: npt.NDArray[np.int64]) -> Detections:
        """Select detections by row, in the given order."""
        rles = None if self.rles is None else [self.rles[row] for row in rows.tolist()]
        return Detections(
            self.image[rows], self.label[rows], self.score[rows], self.boxes[rows], rles, self.seen
        )


def make_detections(
    image: npt.ArrayLike,
    label: npt.ArrayLike,
    score: npt.ArrayLike,
    boxes: npt.ArrayLike,
    rles: list[bytes] | None = None,
    seen: npt.ArrayLike | None = None,
) -> Detections:
    """Build detections from array-likes, also empty ones, with the right dtypes and shapes."""
    return Detections(
        np.asarray(image, dtype=np.int64).reshape(-1),
        np.asarray(label, dtype=np.int32).reshape(-1),
        np.asarray(score, dtype=np.float64).reshape(-1),
        np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
        rles,
        None if seen is None else np.asarray(seen, dtype=np.int64).reshape(-1),
    )


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Join the shares of all ranks, ordered by image.

    The order within an image is kept, so the result, including how ties of scores are broken, does
    not depend on how the images were distributed over ranks.
    """
    if not parts:
        return make_detections([], [], [], [])
    seen = [part.seen for part in parts if part.seen is not None]
    joined = Detections(
        np.concatenate([part.image for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.score for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        _joined_masks(parts),
        np.concatenate(seen) if len(seen) == len(parts) else None,
    )
    return joined.select(np.argsort(joined.image, kind="stable"))


def _joined_masks(parts: Sequence[Detections]) -> list[bytes] | None:
    """Join all masks; None if a part has detections without masks. Empty parts do not matter."""
    masks = [part.rles for part in parts if len(part) > 0 or part.rles is not None]
    if not masks or any(rles is None for rles in masks):
        return None
    return [rle for rles in masks if rles is not None for rle in rles]


def sides_of(boxes_xyxy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``(D, 4)`` xyxy -> ``(D, 2)`` width and height ``w`` with ``x + w == xmax`` in float64.

    Many doubles ``w`` satisfy that. One with at most six decimals is preferred: boxes read as
    decimal ``x, y, w, h`` get back exactly the ``w`` and ``h`` they came from. Otherwise it is the
    difference, or its neighbor if the difference was rounded. (Left of the image there may be no
    such double, as ``x`` is coarser than ``xmax``; then it is the nearest.)

    >>> 10.1 + 20.7 - 10.1, sides_of(np.array([[10.1, 0.0, 10.1 + 20.7, 1.0]]))[0].tolist()
    (20.699999999999996, [20.7, 1.0])
    """
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    difference = high - low
    sides = difference
    for candidate in (
        np.nextafter(difference, np.inf),
        np.nextafter(difference, -np.inf),
        difference,
        np.round(difference, 6),
    ):
        sides = np.where(low + candidate == high, candidate, sides)
    return sides
