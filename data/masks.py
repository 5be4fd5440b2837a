"""The segmentations of all objects in flat arrays, and their decoding to pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

IntArray = npt.NDArray[np.int64]
MaskArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MaskStore:
    """The segmentations of ``N`` objects.

    An object has polygons, or one compressed COCO run-length string, or neither. Spans are
    ``(first, one past the last)``; they need not stand in order, so that choosing and sorting
    objects leaves the large arrays where they are.

    Attributes:
        object_parts: ``(N, 2)`` int64, the span of each object's polygon parts.
        part_coordinates: ``(P, 2)`` int64, the span of each part in ``coordinates``.
        coordinates: ``(C,)`` x and y in turn: int32 hundredths of a pixel of the original image
            (COCO writes two decimals, so nothing is lost), or float64 pixels where that is too
            coarse. Polygons come out as float64 either way.
        object_rle: ``(N, 2)`` int64, the span of each object's string; empty where there is none.
        rle_bytes: ``(R,)`` uint8, COCO's compressed run-length strings one after the other.
    """

    object_parts: IntArray
    part_coordinates: IntArray
    coordinates: npt.NDArray[np.int32] | npt.NDArray[np.float64]
    object_rle: IntArray
    rle_bytes: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.object_parts)

    def present(self) -> npt.NDArray[np.bool_]:
        """``(N,)``: which objects have a segmentation."""
        has_parts = self.object_parts[:, 0] < self.object_parts[:, 1]
        return has_parts | (self.object_rle[:, 0] < self.object_rle[:, 1])

    def polygons_of(self, row: int) -> list[npt.NDArray[np.float64]]:
        """The parts of one object, each ``(2 * points,)`` float64 pixels, x and y in turn."""
        first, last = self.object_parts[row].tolist()
        spans = self.part_coordinates[first:last].tolist()
        return [_to_pixels(self.coordinates[start:stop]) for start, stop in spans]

    def rle_of(self, row: int) -> bytes:
        """The run-length string of one object, empty where it has none."""
        first, last = self.object_rle[row].tolist()
        return self.rle_bytes[first:last].tobytes()

    def select(self, rows: IntArray) -> MaskStore:
        """The segmentations of some objects, in the order of ``rows``; shares the large arrays."""
        return replace(self, object_parts=self.object_parts[rows], object_rle=self.object_rle[rows])


def _to_pixels(
    coordinates: npt.NDArray[np.int32] | npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Convert to pixels; the division gives the same float64 as parsing the decimal in the file."""
    if coordinates.dtype == np.int32:
        return coordinates / 100.0
    return coordinates.astype(np.float64)


def empty_masks(objects: int) -> MaskStore:
    """Return a store of objects that have no segmentation."""
    nothing = np.zeros((objects, 2), np.int64)
    return MaskStore(
        nothing, np.zeros((0, 2), np.int64), np.zeros(0, np.int32), nothing, np.zeros(0, np.uint8)
    )


def concatenate_masks(stores: Sequence[MaskStore]) -> MaskStore:
    """Concatenate stores; the objects keep their order."""
    parts = np.cumsum([0] + [len(store.part_coordinates) for store in stores])
    numbers = np.cumsum([0] + [len(store.coordinates) for store in stores])
    characters = np.cumsum([0] + [len(store.rle_bytes) for store in stores])
    exact = all(store.coordinates.dtype == np.int32 for store in stores)
    coordinates: list[npt.NDArray[Any]] = [
        store.coordinates if exact else _to_pixels(store.coordinates) for store in stores
    ]
    return MaskStore(
        np.concatenate([s.object_parts + parts[i] for i, s in enumerate(stores)]),
        np.concatenate([s.part_coordinates + numbers[i] for i, s in enumerate(stores)]),
        np.concatenate(coordinates),
        np.concatenate([s.object_rle + characters[i] for i, s in enumerate(stores)]),
        np.concatenate([s.rle_bytes for s in stores]),
    )


def encode_object(
    masks: MaskStore, row: int, box_xyxy: npt.NDArray[np.float64], size_hw: tuple[int, int]
) -> dict[str, Any]:
    """Encode one object as COCO's ``{"size": [height, width], "counts": bytes}``, parts merged.

    An object without a segmentation is encoded as its box, as COCO's own tools do.
    """
    height, width = size_hw
    counts = masks.rle_of(row)
    if counts:
        return {"size": [height, width], "counts": counts}
    parts = masks.polygons_of(row)
    if parts:
        return coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    x1, y1, x2, y2 = box_xyxy
    corners = np.array([x1, y1, x1, y2, x2, y2, x2, y1])
    return coco_mask.frPyObjects([corners], height, width)[0]


def object_area(masks: MaskStore, row: int) -> float:
    """Return one object's area in square pixels, as COCO files give it; 0 without segmentation.

    This is the pixel count of the run lengths, or the area of the polygons (overlaps count twice).
    """
    counts = masks.rle_of(row)
    if counts:
        return float(coco_mask.area({"size": [1, 1], "counts": counts}))
    area = 0.0
    for part in masks.polygons_of(row):
        x, y = part[0::2], part[1::2]
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area


def decode_objects(
    masks: MaskStore,
    rows: npt.NDArray[np.intp] | Sequence[int],
    boxes_xyxy: npt.NDArray[np.float64],
    size_hw: tuple[int, int],
) -> MaskArray:
    """Decode some objects of one image to ``(len(rows), height, width)`` uint8 of 0 and 1.

    Args:
        masks: the segmentations of all objects.
        rows: the objects.
        boxes_xyxy: ``(len(rows), 4)`` their boxes in pixels.
        size_hw: the original size of the image.
    """
    if not len(rows):
        return np.zeros((0, *size_hw), np.uint8)
    encoded = [
        encode_object(masks, int(row), box, size_hw)
        for row, box in zip(rows, boxes_xyxy, strict=True)
    ]
    return np.ascontiguousarray(coco_mask.decode(encoded).transpose(2, 0, 1))
