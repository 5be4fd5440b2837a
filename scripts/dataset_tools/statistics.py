"""Statistics of a dataset: counts, sizes, aspect ratios and classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations

Floats = npt.NDArray[np.float64]
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_SMALL, _LARGE = 32.0**2, 96.0**2  # square pixels; COCO's bounds of small, medium and large


def describe(annotations: Annotations, splits: Mapping[str, Annotations]) -> dict[str, Any]:
    """Compute all statistics as plain numbers, ready for JSON.

    Args:
        annotations: all images, each once.
        splits: the annotations of each split.
    """
    sides = box_sides(annotations)
    ratios = aspect_ratios(annotations)
    per_image = np.diff(annotations.offsets)
    return {
        "images": len(annotations),
        "objects": len(annotations.boxes),
        "splits": {name: _describe_split(part) for name, part in splits.items()},
        "classes": describe_classes(annotations),
        "image_height": _percentiles(annotations.sizes[:, 0]),
        "image_width": _percentiles(annotations.sizes[:, 1]),
        "image_sizes": len(np.unique(annotations.sizes, axis=0)),
        "objects_per_image": _percentiles(per_image),
        "box_side": _percentiles(sides),
        "box_side_of_image": _percentiles(sides / image_sides(annotations)),
        "box_height_over_width": _percentiles(ratios),
        "coco_sizes": {
            "small": int((annotations.areas < _SMALL).sum()),
            "medium": int(((annotations.areas >= _SMALL) & (annotations.areas < _LARGE)).sum()),
            "large": int((annotations.areas >= _LARGE).sum()),
        },
    }


def _describe_split(part: Annotations) -> dict[str, int]:
    return {
        "images": len(part),
        "empty": int((np.diff(part.offsets) == 0).sum()),
        "objects": len(part.boxes),
        "difficult": int(part.difficult.sum()),
        "crowd": int(part.crowd.sum()),
        "masks": 0 if part.masks is None else int(part.masks.present().sum()),
        "without_area": part.dropped,
    }


def describe_classes(annotations: Annotations) -> list[dict[str, Any]]:
    """Return objects, images and median side of each class, in the order of the labels."""
    images, sides = annotations.object_images(), box_sides(annotations)
    rows = []
    for label, name in enumerate(annotations.classes):
        own = annotations.labels == label
        median = float(np.median(sides[own])) if own.any() else None
        rows.append(
            {
                "name": name,
                "objects": int(own.sum()),
                "images": len(np.unique(images[own])),
                "median_side": median,
            }
        )
    return rows


def box_sides(annotations: Annotations) -> Floats:
    """``(N,)`` the square roots of the boxes' areas, pixels of the original images."""
    return np.sqrt((annotations.boxes[:, 2:] - annotations.boxes[:, :2]).prod(axis=1))


def aspect_ratios(annotations: Annotations) -> Floats:
    """``(N,)`` height over width of the boxes."""
    width, height = (annotations.boxes[:, 2:] - annotations.boxes[:, :2]).T
    return height / width


def image_sides(annotations: Annotations) -> Floats:
    """``(N,)`` the square root of the area of each object's image."""
    areas = annotations.sizes.astype(np.float64).prod(axis=1)
    return np.sqrt(areas)[annotations.object_images()]


def _percentiles(values: npt.NDArray[Any]) -> dict[str, float] | None:
    if not len(values):
        return None
    numbers = np.percentile(values, _PERCENTILES)
    return {f"p{p}": round(float(v), 4) for p, v in zip(_PERCENTILES, numbers, strict=True)}
