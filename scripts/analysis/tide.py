"""The six TIDE error types, and the average precision that each costs.

Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*,
https://arxiv.org/abs/2008.08115. A wrong detection is, in this order: badly localized (``Loc``: on
an object of its class, 0.1 <= IoU <= 0.5), of the wrong class (``Cls``: IoU >= 0.5 with another
class), a duplicate (``Dupe``), background (``Bkg``: IoU <= 0.1 with everything), or both badly
localized and of the wrong class (``Both``). An object that is neither detected nor the target of a
``Loc`` or ``Cls`` error is missed (``Miss``). The cost of a type is the gain in AP if only its
errors are fixed. (The authors' program is ``tidecv``; the tests check for its numbers.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections
from engine.evaluation.voc_map import count_objects
from scripts.analysis.overlaps import ImageOverlaps, image_overlaps

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
CLS, LOC, BOTH, DUPE, BKG, MISS = range(6)
RIGHT, IGNORED = -1, -2
BACKGROUND = 0.1  # maximum IoU of a detection on background
RECALLS: FloatArray = np.array([hundredth / 100 for hundredth in range(101)])


@dataclass(frozen=True)
class Verdicts:
    """The verdict on each detection and each object.

    Attributes:
        kind: ``(D,)`` RIGHT, IGNORED, or the index of an error type (never MISS).
        meant: ``(D,)`` the object that a detection found or (LOC and CLS) should have found, or
            else -1.
        found: ``(N,)`` bool: objects that were found.
        missed: ``(N,)`` bool: MISS; neither difficult nor crowd.
    """

    kind: IntArray
    meant: IntArray
    found: BoolArray
    missed: BoolArray


def judge_errors(
    detections: Detections, annotations: Annotations, foreground: float = 0.5
) -> Verdicts:
    """Classify all detections and objects as right, ignored or one of TIDE's types.

    In order of descending score, each detection is matched to the free object of its class that it
    overlaps most.
    """
    kind = np.full(len(detections), RIGHT, dtype=np.int64)
    meant = np.full(len(detections), -1, dtype=np.int64)
    found = np.zeros(len(annotations.boxes), dtype=np.bool_)
    for image in image_overlaps(detections, annotations, foreground):
        same = detections.label[image.rows, None] == annotations.labels[image.objects]
        claims = _claims(image.iou * same, foreground)
        found[image.objects[claims[claims >= 0]]] = True
        kinds, objects = _explain(image, same, claims, foreground)
        kind[image.rows], meant[image.rows] = kinds, objects
    counted = annotations.counted
    missed = counted & ~found
    missed[meant[(kind == LOC) | (kind == CLS)]] = False
    return Verdicts(kind, meant, found, missed)


def _claims(overlap: FloatArray, foreground: float) -> IntArray:
    """Return ``(D,)``: the object that each detection is matched to, or -1."""
    claims = np.full(len(overlap), -1, dtype=np.int64)
    left = overlap.copy()
    for row in range(len(left) if left.shape[1] else 0):
        best = int(left[row].argmax())
        if left[row, best] >= foreground:
            claims[row] = best
            left[:, best] = 0
    return claims


def _explain(
    image: ImageOverlaps, same: BoolArray, claims: IntArray, foreground: float
) -> tuple[IntArray, IntArray]:
    """Return the kind of each detection of an image, and its target object."""
    kinds = np.full(len(image.rows), BKG, dtype=np.int64)
    meant = np.full(len(image.rows), -1, dtype=np.int64)
    if len(image.objects):
        own, other = image.iou * same, image.iou * ~same
        taken = np.zeros(len(image.objects), dtype=np.bool_)
        taken[claims[claims >= 0]] = True
        # the last rule that applies wins, so they are ordered from weakest to strongest
        kinds[:] = BOTH
        kinds[image.iou.max(axis=1) <= BACKGROUND] = BKG
        kinds[(own * taken).max(axis=1) >= foreground] = DUPE
        is_class = other.max(axis=1) >= foreground
        is_place = (own.max(axis=1) >= BACKGROUND) & (own.max(axis=1) <= foreground)
        kinds[is_class] = CLS
        kinds[is_place] = LOC
        meant[is_class] = image.objects[other.argmax(axis=1)][is_class]
        meant[is_place] = image.objects[own.argmax(axis=1)][is_place]
    kinds[image.ignored] = IGNORED
    meant[image.ignored] = -1
    right = claims >= 0
    kinds[right] = RIGHT
    meant[right] = image.objects[claims[right]] if len(image.objects) else -1
    return kinds, meant


def tide(
    detections: Detections, annotations: Annotations, verdicts: Verdicts
) -> dict[str, dict[str, float]]:
    """Compute the errors of each type, and the AP (0..1, at one IoU, 101 points) it costs.

    Returns:
        ``{"count": {type: int}, "cost": {type: float}, "AP": {"AP": float}}``; costs of types do
        not add up, since one error hides another.
    """
    scored = verdicts.kind != IGNORED
    score, label = detections.score[scored], detections.label[scored].astype(np.int64)
    kind, meant = verdicts.kind[scored], verdicts.meant[scored]
    positives = count_objects(annotations)
    has_objects = positives > 0
    base = _mean_ap(label, score, kind == RIGHT, positives, has_objects)
    fixable = _fixable(kind, meant, score, verdicts.found)
    count: dict[str, float] = {}
    cost: dict[str, float] = {}
    for number, name in enumerate(TYPES):
        if number == MISS:
            missed = np.bincount(annotations.labels[verdicts.missed], minlength=len(positives))
            fixed = _mean_ap(label, score, kind == RIGHT, positives - missed, has_objects)
            count[name] = int(verdicts.missed.sum())
        else:
            mine = kind == number
            kept, put_right = ~mine | fixable, mine & fixable
            corrected = label.copy()
            corrected[put_right] = annotations.labels[meant[put_right]]
            right = (kind == RIGHT) | put_right
            fixed = _mean_ap(corrected[kept], score[kept], right[kept], positives, has_objects)
            count[name] = int(mine.sum())
        cost[name] = max(fixed - base, 0.0)
    return {"count": count, "cost": cost, "AP": {"AP": base}}


def _fixable(kind: IntArray, meant: IntArray, score: FloatArray, found: BoolArray) -> BoolArray:
    """Return for each object that was not found its LOC or CLS error with the best score."""
    fixable = np.zeros(len(kind), dtype=np.bool_)
    rows = np.flatnonzero((kind == LOC) | (kind == CLS))
    rows = rows[~found[meant[rows]]]
    rows = rows[np.argsort(-score[rows], kind="stable")]
    _, first = np.unique(meant[rows], return_index=True)
    fixable[rows[first]] = True
    return fixable


def _mean_ap(
    label: IntArray,
    score: FloatArray,
    right: BoolArray,
    positives: IntArray,
    has_objects: BoolArray,
) -> float:
    """Average over the classes with objects, like COCO: detections of others cost nothing.

    Args:
        positives: ``(K,)`` the objects to be found. A class without any left, because all were
            missed, stays in the mean if it has detections.
        has_objects: ``(K,)`` whether a class has objects in the ground truth.
    """
    order = np.lexsort((-score, label))
    label, right = label[order], right[order]
    bounds = np.searchsorted(label, np.arange(len(positives) + 1))
    present = np.flatnonzero(has_objects & ((positives > 0) | (np.diff(bounds) > 0)))
    values = [
        _average_precision(right[bounds[k] : bounds[k + 1]], int(positives[k])) for k in present
    ]
    return float(np.mean(values)) if values else 0.0


def _average_precision(right: BoolArray, positives: int) -> float:
    """Compute COCO's 101-point AP over detections by descending score."""
    if not positives or not len(right):
        return 0.0
    correct = np.cumsum(right)
    precision = correct / np.arange(1, len(right) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(correct / positives, RECALLS)].mean())
