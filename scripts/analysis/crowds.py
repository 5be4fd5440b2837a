"""Matching of detections that ignores crowds, as in COCO's own scores.

VOC's rule has no crowds: ``engine.evaluation.voc_map`` treats them as difficult boxes, so that a
detection is ignored only if its IoU with the crowd reaches the threshold. A crowd is larger than
each of its members, so a detection of one member counts as wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from engine.evaluation.detections import Detections
from engine.evaluation.voc_map import match_detections
from scripts.analysis.overlaps import share_inside
from scripts.analysis.sizes import only_objects

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def judge_beside_crowds(
    detections: Detections, annotations: Annotations, ious: Sequence[float]
) -> Iterator[tuple[IntArray, BoolArray, BoolArray]]:
    """Match detections like ``engine.evaluation.voc_map.match_detections``, except for crowds.

    For each IoU, a detection that matches no object does not count if at least that share of it
    lies in a crowd of its class.
    """
    shares = share_in_crowds(detections, annotations)
    countable = only_objects(annotations, np.flatnonzero(~annotations.crowd))
    for iou in ious:
        order, right, ignored = match_detections(detections, countable, iou)
        yield order, right, ignored | (~right & (shares[order] >= iou))


def share_in_crowds(detections: Detections, annotations: Annotations) -> FloatArray:
    """Compute ``(D,)``: the largest share of each detection in one crowd of its image and class."""
    kinds = len(annotations.classes)
    keys = detections.image * kinds + detections.label
    order = np.argsort(keys, kind="stable")
    crowds = np.flatnonzero(annotations.crowd)
    of_crowds = annotations.object_images()[crowds] * kinds + annotations.labels[crowds]
    first = np.searchsorted(keys[order], of_crowds, side="left")
    after = np.searchsorted(keys[order], of_crowds, side="right")
    shares = np.zeros(len(detections))
    for crowd, start, end in zip(crowds, first, after, strict=True):
        rows = order[start:end]
        inside = share_inside(detections.boxes[rows], annotations.boxes[crowd : crowd + 1])[:, 0]
        shares[rows] = np.maximum(shares[rows], inside)
    return shares
