"""COCO's ``segmentation`` values, checked and packed into a MaskStore one by one."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from data.errors import InputError, shown
from data.formats.run_lengths import compress, described_pixels
from data.masks import IntArray, MaskStore

_PACK_AT = 1 << 18  # coordinates
_RUN_LENGTHS = re.compile(r"[0-o]*[0-O]")
# More than any real outline (in pixels); the rasterizer takes 80 bytes of memory for each.
_LONGEST_OUTLINE = 4_000_000
_FAR_OUTSIDE = 1000.0


class SegmentationColumns:
    """Collects the segmentations of a file's objects, in file order."""

    def __init__(self) -> None:
        self._part_counts = array("q")
        self._part_lengths = array("q")
        self._loose = array("d")
        self._packed = array("i")
        self._wide: array[float] | None = None
        self._rle_lengths = array("q")
        self._rle_bytes = bytearray()
        self._rle_rows: list[int] = []
        self._rle_sizes: list[list[int]] = []

    def add(self, segmentation: Any) -> None:
        """Add one object's polygons, run lengths, or nothing (None, ``[]``).

        Parts with fewer than three points have no area and are left out.

        Raises:
            ValueError, TypeError, OverflowError: the segmentation is malformed; the message says
                how.
        """
        parts, characters = 0, 0
        if isinstance(segmentation, dict):
            characters = self._add_run_lengths(segmentation)
        elif isinstance(segmentation, list):
            parts = self._add_polygons(segmentation)
        elif segmentation is not None:
            raise TypeError("is neither a list of polygons nor run lengths")
        self._part_counts.append(parts)
        self._rle_lengths.append(characters)

    def _add_polygons(self, polygons: list[Any]) -> int:
        parts = 0
        for polygon in polygons:
            if type(polygon) is not list:
                raise TypeError("must be a list of lists of numbers, [[x, y, x, y, ...], ...]")
            if len(polygon) % 2:
                raise ValueError(f"has a part of {len(polygon)} numbers; x and y come in pairs")
            if len(polygon) < 6:
                continue
            self._loose += array("d", polygon)  # twice as fast as extend
            self._part_lengths.append(len(polygon))
            parts += 1
        if len(self._loose) >= _PACK_AT:
            self._pack()
        return parts

    def _pack(self) -> None:
        """Convert collected coordinates to hundredths of a pixel if that is lossless."""
        values = np.array(self._loose)
        self._loose = array("d")
        if self._wide is None:
            with np.errstate(over="ignore", invalid="ignore"):
                hundredths = np.rint(values * 100.0)
                exact = (hundredths / 100.0 == values) & (np.abs(hundredths) < 2**31)
            if exact.all():
                self._packed.frombytes(hundredths.astype(np.int32).tobytes())
                return
            self._wide = array("d")
            self._wide.frombytes((np.frombuffer(self._packed, np.int32) / 100.0).tobytes())
            self._packed = array("i")
        self._wide.frombytes(values.tobytes())

    def _add_run_lengths(self, segmentation: dict[str, Any]) -> int:
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if not (isinstance(size, list) and [type(side) for side in size] == [int, int]):
            raise ValueError("needs size: [height, width] in addition to counts")
        if isinstance(counts, list):
            characters = compress(counts, size)
        elif isinstance(counts, str) and _RUN_LENGTHS.fullmatch(counts):
            characters = counts.encode("ascii")
        else:
            raise ValueError("has counts that are neither run lengths nor a COCO RLE string")
        self._rle_rows.append(len(self._part_counts))
        self._rle_sizes.append(size)
        self._rle_bytes += characters
        return len(characters)

    def finish(
        self, sizes_hw: npt.NDArray[np.int32], where: Callable[[int], str]
    ) -> MaskStore | None:
        """Build the store of all objects, or None if no object has a segmentation.

        Args:
            sizes_hw: ``(N, 2)`` the size of each object's image.
            where: row -> name of the object for messages.

        Raises:
            InputError: run lengths or polygons do not fit their image.
        """
        self._pack()
        coordinates = self._packed if self._wide is None else self._wide
        store = MaskStore(
            _spans(self._part_counts),
            _spans(self._part_lengths),
            np.asarray(coordinates),
            _spans(self._rle_lengths),
            np.frombuffer(self._rle_bytes, np.uint8),
        )
        self._check_run_lengths(store, sizes_hw, where)
        _check_polygons(store, sizes_hw, where)
        return store if store.present().any() else None

    def _check_run_lengths(
        self, store: MaskStore, sizes_hw: npt.NDArray[np.int32], where: Callable[[int], str]
    ) -> None:
        pixels = described_pixels(store.rle_bytes, store.object_rle[self._rle_rows])
        for row, described, size in zip(
            self._rle_rows, pixels.tolist(), self._rle_sizes, strict=True
        ):
            image_size = sizes_hw[row].tolist()
            if size != image_size:
                raise InputError(
                    f"{where(row)}: segmentation has size {shown(size)}, but its image has size "
                    f"{image_size} (height, width); correct one of them"
                )
            if described != size[0] * size[1]:
                raise InputError(
                    f"{where(row)}: segmentation has run lengths that do not fill its size "
                    f"{size}; export it again"
                )


def _spans(lengths: array[int]) -> IntArray:
    ends = np.cumsum(np.frombuffer(lengths, np.int64)) if lengths else np.zeros(0, np.int64)
    return np.stack([ends - np.frombuffer(lengths, np.int64), ends], axis=1)


def _check_polygons(
    store: MaskStore, sizes_hw: npt.NDArray[np.int32], where: Callable[[int], str]
) -> None:
    """Check that coordinates are near their image and outlines not too long to rasterize."""
    if not len(store.part_coordinates):
        return
    starts = store.part_coordinates[:, 0]
    scale = 0.01 if store.coordinates.dtype == np.int32 else 1.0
    low = np.minimum.reduceat(store.coordinates, starts) * scale
    high = np.maximum.reduceat(store.coordinates, starts) * scale
    owner = np.repeat(np.arange(len(store)), np.diff(store.object_parts)[:, 0])
    side = sizes_hw.max(axis=1)[owner]
    margin = np.maximum(side, _FAR_OUTSIDE)
    strays = np.flatnonzero(~((low >= -margin) & (high <= side + margin)))  # NaN strays, too
    if len(strays):
        row = int(owner[strays[0]])
        lowest, highest = float(low[strays[0]]), float(high[strays[0]])
        raise InputError(
            f"{where(row)}: segmentation has coordinates from {lowest:g} to {highest:g}, far "
            f"outside its image of {sizes_hw[row].tolist()} (height, width); correct or remove it"
        )
    points = np.diff(store.part_coordinates)[:, 0] // 2
    for part in np.flatnonzero(points * (high - low) * 2 > _LONGEST_OUTLINE).tolist():
        first, last = store.part_coordinates[part].tolist()
        outline = store.coordinates[first:last].reshape(-1, 2).astype(np.float64)
        if np.abs(np.diff(outline, axis=0)).sum() * scale > _LONGEST_OUTLINE:
            raise InputError(
                f"{where(int(owner[part]))}: segmentation has an outline of more than "
                f"{_LONGEST_OUTLINE} pixels; simplify or remove it"
            )
