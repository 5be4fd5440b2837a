"""The members of a COCO annotation file, checked one by one and packed into columns."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import ENOUGH_TO_JUDGE, LARGEST_COORDINATE, Rows
from data.errors import InputError, control_in, shown
from data.formats.segmentations import SegmentationColumns
from data.image_sizes import MOST_PIXELS
from data.paths import inner_path

NO_AREA = -1.0
_LARGEST_AREA = LARGEST_COORDINATE**2
_REFERENCES = ("image_id", "category_id")


class ImageColumns:
    """The file's images, in file order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.ids = array("q")
        self.files: list[str] = []
        self.sizes = array("q")  # height, width in turn; 0: not given

    def add(self, image: Any) -> None:
        where = f"{self._path}: image number {len(self.ids) + 1}"
        if not isinstance(image, dict):
            raise InputError(f"{where}: {shown(image)} is not an object with id and file_name")
        identity = whole_number(image.get("id"))
        if identity is None:
            raise InputError(
                f"{where}: its id is {shown(image.get('id'))}, not an integer below 2**62; number "
                "the images, and use the same numbers as image_id"
            )
        where = f"{self._path}: image {identity}"
        self.ids.append(identity)
        self.files.append(inner_path(image.get("file_name"), where))
        for side in ("height", "width"):
            self.sizes.append(_side(image.get(side), side, where))

    def check_ids(self) -> None:
        """Check that ids are unique.

        Raises:
            InputError: two images have the same id.
        """
        own = np.asarray(self.ids)
        order = np.argsort(own, kind="stable")
        twice = np.flatnonzero(np.diff(own[order]) == 0)
        if len(twice):
            first, second = order[twice[0]], order[twice[0] + 1]
            raise InputError(
                f"{self._path}: the images {shown(self.files[first])} and "
                f"{shown(self.files[second])} both have id {own[first]}; give each its own id"
            )

    def check_files(self) -> None:
        """Check that each image file has one entry, because two would share its objects.

        Raises:
            InputError: two images have the same file.
        """
        first: dict[str, int] = {}
        for file, identity in zip(self.files, self.ids, strict=True):
            if file in first:
                raise InputError(
                    f"{self._path}: the images {first[file]} and {identity} both have the file "
                    f"{shown(file)}; keep one of them, and give its id to the objects of both"
                )
            first[file] = identity


def _rows_of(own: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> Rows:
    """Return the index of each id in ``own``, -1 where it is missing."""
    if not len(own):
        return np.full(len(ids), -1)
    order = np.argsort(own, kind="stable")
    rows = order[np.minimum(np.searchsorted(own[order], ids), len(own) - 1)]
    return np.where(own[rows] == ids, rows, -1)


def _side(value: Any, key: str, where: str) -> int:
    if value is None:
        return 0
    side = whole_number(value)
    if side is None or not 0 <= side <= MOST_PIXELS:
        raise InputError(f"{where}: {key} {shown(value)} is not a size in pixels; correct it")
    return side


def whole_number(value: Any) -> int | None:
    """Parse a size or id, which some programs write as ``3.0``; None if it is not an integer."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 1 << 62 else None


class ObjectColumns:
    """The file's annotations, in file order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids = array("q")
        self.image_ids = array("q")
        self.category_ids = array("q")
        self.boxes = array("d")
        self.areas = array("d")
        self.crowd = array("b")
        self.difficult = array("b")  # VOC's flag, an extension of COCO's format
        self.segmentations = SegmentationColumns()

    def where(self, row: int) -> str:
        """Return the name of an annotation for messages."""
        identity = self._ids[row] if row < len(self._ids) else -1
        name = f"annotation {identity} (" if identity >= 0 else "annotation ("
        return f"{self._path}: {name}number {row + 1} of the file)"

    def add(self, item: Any) -> None:
        row = len(self._ids)
        if type(item) is not dict:
            raise InputError(f"{self.where(row)}: {shown(item)} is not an object; remove it")
        identity = item.get("id")
        self._ids.append(identity if isinstance(identity, int) and 0 <= identity < 1 << 63 else -1)
        self._add_box(item.get("bbox"), row)
        image_id, category_id = (whole_number(item.get(key)) for key in _REFERENCES)
        if image_id is None or category_id is None:
            ids = {key: item.get(key) for key in _REFERENCES}
            raise InputError(
                f"{self.where(row)}: {shown(ids)} must be integers below 2**62; use the ids of "
                "its image and category"
            )
        self.image_ids.append(image_id)
        self.category_ids.append(category_id)
        area, crowd = item.get("area"), item.get("iscrowd")
        if area is not None and not (type(area) in (int, float) and 0 <= area <= _LARGEST_AREA):
            raise InputError(
                f"{self.where(row)}: area {shown(area)} must be a number >= 0; correct it, or "
                "leave it out to have it computed"
            )
        if crowd not in (0, 1, None):
            raise InputError(
                f"{self.where(row)}: iscrowd {shown(crowd)} must be 0 or 1; correct it"
            )
        difficult = item.get("difficult")
        if difficult not in (0, 1, None):
            raise InputError(
                f"{self.where(row)}: difficult {shown(difficult)} must be 0 or 1; correct it"
            )
        self.difficult.append(1 if difficult else 0)
        self.areas.append(NO_AREA if area is None else area)
        self.crowd.append(1 if crowd else 0)
        try:
            self.segmentations.add(item.get("segmentation"))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{self.where(row)}: segmentation {error}; correct it, or leave it out"
            ) from error

    def _add_box(self, box: Any, row: int) -> None:
        try:
            if type(box) is not list or len(box) != 4:
                raise TypeError
            self.boxes.extend(box)
        except (TypeError, OverflowError):
            raise InputError(
                f"{self.where(row)}: bbox {shown(box)} must be four numbers, "
                "[x, y, width, height] in pixels; correct it, or remove the annotation"
            ) from None

    def boxes_xyxy(self) -> npt.NDArray[np.float64]:
        """Return the boxes as ``(M, 4)`` xyxy in pixels.

        Raises:
            InputError: a box has a coordinate that is out of range, or a negative side.
        """
        boxes = np.array(self.boxes).reshape(-1, 4)
        wrong = np.flatnonzero(~(np.abs(boxes) <= LARGEST_COORDINATE).all(axis=1))
        if len(wrong):
            raise InputError(
                f"{self.where(int(wrong[0]))}: bbox {boxes[wrong[0]].tolist()} contains a "
                "number that is not a coordinate; correct or remove it"
            )
        inverted = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))
        if len(inverted):
            raise InputError(
                f"{self.where(int(inverted[0]))}: bbox {boxes[inverted[0]].tolist()} has a "
                "negative width or height; write [x, y, width, height], with x and y of the "
                "top-left corner"
            )
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def check_inside(self, boxes: npt.NDArray[np.float64], sizes_hw: npt.NDArray[np.int32]) -> None:
        """Detect boxes written as corners: more than half of all extend outside their images.

        Raises:
            InputError: more than half of at least ``ENOUGH_TO_JUDGE`` boxes do.
        """
        leaving = (boxes[:, 2:] > sizes_hw[:, ::-1] + 1).any(axis=1)
        if len(boxes) >= ENOUGH_TO_JUDGE and leaving.mean() > 0.5:
            row = int(np.flatnonzero(leaving)[0])
            x, y, right, bottom = boxes[row].tolist()
            raise InputError(
                f"{self.where(row)}: bbox {[x, y, right - x, bottom - y]} extends outside its "
                f"image of {sizes_hw[row].tolist()} (height, width), as {leaving.sum()} of "
                f"{len(boxes)} boxes do; COCO boxes are [x, y, width, height]: are these the "
                "corners [x1, y1, x2, y2], or were the images resized?"
            )


def look_up(
    images: ImageColumns, objects: ObjectColumns, categories: dict[str, int]
) -> tuple[Rows, Rows]:
    """Look up the image and the category of each annotation by their index in the file.

    Args:
        images: the file's images.
        objects: the file's annotations.
        categories: class name -> id, as ``read_categories`` returns them.

    Returns:
        ``(M,)`` indices of the images and ``(M,)`` of the categories.

    Raises:
        InputError: two images share an id or a file, or an annotation refers to an unknown id.
    """
    images.check_ids()
    images.check_files()
    image_rows = _rows_of(np.asarray(images.ids), np.asarray(objects.image_ids))
    labels = _rows_of(np.array(list(categories.values())), np.asarray(objects.category_ids))
    for key, rows, ids, cure in (
        ("image_id", image_rows, objects.image_ids, "images"),
        ("category_id", labels, objects.category_ids, "categories"),
    ):
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            row = int(unknown[0])
            raise InputError(
                f"{objects.where(row)}: {key} {ids[row]} is not among the file's {cure}; "
                f"add it to {cure!r}, or remove the annotation"
            )
    return image_rows, labels


def read_categories(path: Path, categories: Any) -> dict[str, int]:
    """Read class name -> category id, in file order.

    Raises:
        InputError: there are no categories, or one has no valid, unique id and name.
    """
    if not isinstance(categories, list) or not categories:
        raise InputError(f"{path}: 'categories' must be a list of {{'id': ..., 'name': ...}}")
    ids: dict[str, int] = {}
    for number, category in enumerate(categories, start=1):
        where = f"{path}: category number {number}"
        if not isinstance(category, dict):
            raise InputError(f"{where}: {shown(category)} is not an object with id and name")
        identity, name = whole_number(category.get("id")), category.get("name")
        if identity is None:
            raise InputError(
                f"{where}: its id is {shown(category.get('id'))}, not an integer below 2**62; "
                "correct it"
            )
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{where}: its name is {shown(name)}; give it a non-empty string")
        if control_in(name):
            raise InputError(
                f"{where}: its name {shown(name)} contains the control character "
                f"{shown(control_in(name))}; remove it"
            )
        taken = f"name {shown(name)}" if name in ids else f"id {identity}"
        if name in ids or identity in ids.values():
            raise InputError(
                f"{where}: its {taken} is also that of another category; remove the one that no "
                "annotation uses, or give each its own id and name"
            )
        ids[name] = identity
    return ids
