"""Suggest a detector, an image size and anchors from the objects of a dataset.

A box counts as covered if an anchor of some level, centered on it, overlaps it with an IoU of at
least 0.7; on the real grid, where centers differ, about the 0.5 that training requires remain. The
cheapest pyramid whose coverage is within one percent of the best is chosen.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations
from data.images import resized_size
from scripts.dataset_tools.statistics import aspect_ratios, box_sides

Floats = npt.NDArray[np.float64]

_COMFORTABLE_SIDE = 24.0  # pixels that the smaller objects should have after resizing
_LARGEST_SIZE = (800, 1333)  # short and long side; COCO's usual size
_COVERED = 0.7
_TOLERANCE = 0.01
_SAMPLE = 20_000
_ENOUGH_MASKS = 0.95
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of the suggested anchors
_LAST_LEVELS = {"retinanet": 7, "mask_rcnn": 6}  # of the pyramids
_DEFAULT_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
_DEFAULT_RATIOS = (0.5, 1.0, 2.0)
_DEFAULT_SCALES = {"retinanet": SCALES, "mask_rcnn": (1.0,)}


@dataclass(frozen=True)
class Suggestion:
    """What to write into a config, and how well it fits.

    Attributes:
        detector: ``detector.type``.
        image_size: short side and longest long side.
        levels: of the pyramid; level l has stride 2^l.
        sizes: the smallest anchor size of each level, pixels after resizing.
        ratios: height over width of the anchors.
        coverage: the share of boxes that an anchor overlaps with IoU 0.7 or more.
        default_coverage: coverage of the detector's default anchors.
        median_side: the median box side after resizing.
    """

    detector: str
    image_size: tuple[int, int]
    levels: tuple[int, ...]
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    coverage: float
    default_coverage: float
    median_side: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_detector(annotations: Annotations) -> str:
    """Choose Mask R-CNN if nearly all objects to train on have masks, else RetinaNet.

    Mask R-CNN would learn that an object without a mask fills its box.
    """
    trained = annotations.trained(use_difficult=False)
    if annotations.masks is None or not trained.any():
        return "retinanet"
    share = annotations.masks.present()[trained].mean()
    return "mask_rcnn" if share >= _ENOUGH_MASKS else "retinanet"


def suggest(annotations: Annotations, detector: str) -> Suggestion | None:
    """Suggest settings from the objects that are trained on; None if there are none.

    ``detector`` is retinanet or mask_rcnn: their pyramids and their default anchors differ.
    """
    rows = np.flatnonzero(annotations.trained(use_difficult=False))
    if not len(rows):
        return None
    if len(rows) > _SAMPLE:
        rows = np.random.default_rng(0).choice(rows, _SAMPLE, replace=False)
    image_size = suggest_image_size(annotations)
    sides = box_sides(annotations)[rows]
    sides = sides * _scales(annotations, image_size)[annotations.object_images()[rows]]
    ratios = aspect_ratios(annotations)[rows]
    levels, sizes, chosen, covered = _choose_anchors(sides, ratios, _LAST_LEVELS[detector])
    return Suggestion(
        detector=detector,
        image_size=image_size,
        levels=levels,
        sizes=sizes,
        ratios=chosen,
        coverage=covered,
        default_coverage=coverage(
            sides, ratios, _DEFAULT_SIZES, _DEFAULT_RATIOS, _DEFAULT_SCALES[detector]
        ),
        median_side=float(np.median(sides)),
    )


def suggest_image_size(annotations: Annotations) -> tuple[int, int]:
    """Return the median image size, enlarged up to twice if a tenth of objects is below 24 px."""
    short = float(np.median(annotations.sizes.min(axis=1)))
    long = float(annotations.sizes.max())
    sides = box_sides(annotations)[annotations.trained(use_difficult=False)]
    low = float(np.percentile(sides, 10)) if len(sides) else _COMFORTABLE_SIDE
    scale = min(max(_COMFORTABLE_SIDE / low, 1.0), 2.0)
    wanted = min(short * scale, _LARGEST_SIZE[0])
    height = max(32, int(wanted / 32 + 0.5) * 32)
    width = max(height, min(int(long * wanted / short / 32 + 0.999) * 32, _LARGEST_SIZE[1]))
    return height, width


def _scales(annotations: Annotations, image_size: tuple[int, int]) -> Floats:
    sizes = [tuple(size) for size in annotations.sizes.tolist()]
    known = {size: resized_size(size, image_size)[0] / size[0] for size in set(sizes)}
    return np.array([known[size] for size in sizes])


def coverage(
    sides: Floats,
    ratios: Floats,
    sizes: Sequence[float],
    anchor_ratios: Sequence[float],
    scales: Sequence[float],
) -> float:
    """Return the share of boxes that an anchor overlaps with IoU 0.7, centers aligned.

    Args:
        sides: ``(N,)`` square roots of the boxes' areas.
        ratios: ``(N,)`` height over width.
        sizes: the smallest anchor size of each level.
        anchor_ratios: height over width of the anchors.
        scales: factors on each size.
    """
    best = np.zeros(len(sides))
    heights, widths = sides * np.sqrt(ratios), sides / np.sqrt(ratios)
    for size, scale, ratio in itertools.product(sizes, scales, anchor_ratios):
        height, width = size * scale * ratio**0.5, size * scale / ratio**0.5
        overlap = np.minimum(heights, height) * np.minimum(widths, width)
        best = np.maximum(best, overlap / (sides**2 + height * width - overlap))
    return float((best >= _COVERED).mean())


def _choose_anchors(
    sides: Floats, ratios: Floats, last_level: int
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], float]:
    """Return levels, sizes, ratios and coverage of the cheapest pyramid near the best coverage."""
    candidates = []
    lasts = range(5, last_level + 1)
    choices = itertools.product((3, 2), lasts, (2.0, 4.0, 6.0, 8.0), _ratio_sets(ratios))
    for first, last, strides, anchor_ratios in choices:
        levels = tuple(range(first, last + 1))
        sizes = [strides * 2**level for level in levels]
        covered = coverage(sides, ratios, sizes, anchor_ratios, SCALES)
        cost = 4.0**-first * len(anchor_ratios) + 0.001 * len(levels)
        candidates.append((cost, -covered, levels, sizes, anchor_ratios))
    best = max(-negative for _, negative, *_ in candidates)
    near = [each for each in candidates if -each[1] >= best - _TOLERANCE]
    _, negative, levels, sizes, anchor_ratios = min(near)
    return levels, tuple(sizes), anchor_ratios, -negative


def _ratio_sets(ratios: Floats) -> list[tuple[float, ...]]:
    low, middle, high = np.exp(np.percentile(np.log(ratios), (10, 50, 90))).tolist()
    fitted = sorted({round(value, 1) or 0.1 for value in (low, middle, high)})
    return [(round(middle, 1) or 0.1,), tuple(fitted), (0.5, 1.0, 2.0)]
