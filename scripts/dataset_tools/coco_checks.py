"""Find every problem of a COCO dataset; a dataset that passes can be trained on."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError, shown
from data.formats.coco_columns import ImageColumns, ObjectColumns, read_categories, whole_number
from data.formats.json_stream import stream_members
from scripts.dataset_tools.box_checks import Box, Doubles, check_box, is_thin
from scripts.dataset_tools.class_checks import SplitClasses, check_classes
from scripts.dataset_tools.image_checks import ImageChecks, Size, is_size_of
from scripts.dataset_tools.layout import Layout
from scripts.dataset_tools.mask_checks import Masked, check_bare, check_masks, check_parts
from scripts.dataset_tools.problems import (
    OPTIONAL_KEYS,
    Action,
    Problem,
    not_by_size,
    problem_of,
    says_no,
)
from scripts.dataset_tools.progress import progress

_SLACK = 1.0  # pixels by which COCO's own boxes extend beyond images


def check_coco(layout: Layout, splits: Sequence[str], decode: bool) -> list[Problem]:
    """Check the annotation files and images of the splits."""
    images = ImageChecks(layout.root, decode, layout.follow_links)
    checked = {split: _Split(layout.root, split) for split in splits}
    found = [problem for each in checked.values() for problem in each.check(images)]
    classes = {split: each.classes() for split, each in checked.items()}
    return [*found, *check_classes(classes), *images.check_orientations()]


def read_document(path: Path) -> dict[str, Any]:
    """Read a whole COCO file into memory.

    Raises:
        InputError: the file cannot be read or is not a JSON object.
    """
    members = stream_members(path, ("images", "annotations"))
    return {
        key: list(value) if key in ("images", "annotations") else value for key, value in members
    }


@dataclass
class _Image:
    """A usable image entry."""

    id: int
    row: int
    name: str
    size_hw: Size
    fault: Problem | None  # a size that cannot be read
    boxes: list[tuple[int, Box]] = field(default_factory=list)


class _ObjectColumns(ObjectColumns):
    """The columns of one object, which messages name as we do."""

    def where(self, row: int) -> str:  # noqa: ARG002
        return "annotation"


class _Split:
    """One annotation file."""

    def __init__(self, root: Path, split: str) -> None:
        self._split = split
        self._file = f"annotations/instances_{split}.json"
        self._path = root / self._file
        self._entries: list[_Image] = []
        self._images: dict[int, _Image] = {}  # those with a unique id
        self._rows: dict[int, list[int]] = defaultdict(list)  # by id, of all image entries
        self._categories: dict[int, str] = {}
        self._used: dict[str, str] = {}  # the first object of each class
        self._trains = self._is_difficult = False  # see SplitClasses
        self._items: list[Any] = []
        self._kept: list[tuple[Box, Size]] = []  # boxes of images that a repair keeps

    def check(self, images: ImageChecks) -> Iterator[Problem]:
        try:
            document = read_document(self._path)
            missing = [
                key for key in ("images", "annotations", "categories") if key not in document
            ]
            if missing:
                raise InputError(
                    f"{self._path}: has no {', '.join(missing)}; add it, or export again"
                )
            ids = read_categories(self._path, document["categories"])
            self._categories = {identity: name for name, identity in ids.items()}
        except InputError as error:
            yield problem_of(error, str(self._path), self._file, "", "refuse")
            return
        self._items = document["annotations"]
        if not document["images"]:
            cure = "add them under 'images'"
            yield Problem(self._file, "", "lists no images", cure, "error", "refuse")
        yield from self._check_entries(document["images"])
        yield from self._check_objects()
        for image in progress(self._entries, self._split):
            yield from self._check_image(image, images)
        yield from self._check_bare()
        yield from self._check_convention()
        yield from self._check_ids()

    def classes(self) -> SplitClasses:
        """Return the classes that are listed and those that have objects; call ``check`` first."""
        known = frozenset(self._categories.values())
        return SplitClasses(known, self._used, self._trains, self._is_difficult)

    def _check_entries(self, entries: list[Any]) -> Iterator[Problem]:
        for row, entry in enumerate(entries):
            item = _called("image", entry, row)
            identity = whole_number(entry.get("id")) if isinstance(entry, dict) else None
            if identity is not None:
                self._rows[identity].append(row)
            columns, error = self._read_entry(entry)
            action: Action = "drop_image" if columns is None else "set_size"
            fault = None
            if error is not None:
                fault = _located(error, self._path, self._file, item, action, row)
            if columns is not None:
                size = columns.sizes[0], columns.sizes[1]
                self._entries.append(_Image(columns.ids[0], row, columns.files[0], size, fault))
            elif fault is not None:
                yield fault
        yield from self._check_distinct()

    def _read_entry(self, entry: Any) -> tuple[ImageColumns | None, InputError | None]:
        """Return an entry and its error; the entry without its size if only that is wrong."""
        columns = ImageColumns(self._path)
        try:
            columns.add(entry)
            return columns, None
        except InputError as error:
            unsized = {"height": None, "width": None}
            sizes = [entry.get(side) for side in unsized] if isinstance(entry, dict) else []
            if all(side is None for side in sizes):
                return None, error
            return self._read_entry({**entry, **unsized})[0], error

    def _check_distinct(self) -> Iterator[Problem]:
        """Yield entries that share an id or a file; which of them is right is unknown."""
        by_file: dict[str, list[int]] = defaultdict(list)
        for image in self._entries:
            by_file[image.name].append(image.row)
        for image in self._entries:
            item = f"image {image.id} (number {image.row + 1})"
            of_id, of_file = self._rows[image.id], by_file[image.name]
            if len(of_id) > 1:
                problem = f"has the same id as image {_other(of_id, image.row)}"
                cure = "give each a unique id, and correct the annotations that refer to it"
                yield Problem(self._file, item, problem, cure, "error", "drop_image", image.row)
            else:
                self._images[image.id] = image
            if len(of_file) > 1:
                other = _other(of_file, image.row)
                problem = f"has the same file {shown(image.name)} as image {other}"
                cure = "keep one entry with all objects"
                yield Problem(self._file, item, problem, cure, "error", "drop_image", image.row)

    def _check_objects(self) -> Iterator[Problem]:
        """Yield problems of single objects; add readable ones to their images."""
        masked = any(_has_mask(entry) for entry in self._items)
        for row, entry in enumerate(progress(self._items, self._split)):
            item = _called("annotation", entry, row)
            columns, faults = self._read_object(row, entry, masked)
            for error, action in faults:
                yield problem_of(error, "annotation", self._file, item, action, row)
            if columns is None:
                continue
            x1, y1, x2, y2 = columns.boxes_xyxy()[0].tolist()
            image = self._images.get(columns.image_ids[0])
            if columns.image_ids[0] not in self._rows:
                yield self._unknown(item, row, "image_id", columns.image_ids[0], "images")
            elif columns.category_ids[0] not in self._categories:
                unknown = columns.category_ids[0]
                yield self._unknown(item, row, "category_id", unknown, "categories")
            elif image is not None:
                image.boxes.append((row, (x1, y1, x2, y2)))
                self._used.setdefault(self._categories[columns.category_ids[0]], item)
                yield from self._check_for_others(item, row, entry)

    def _check_for_others(self, item: str, row: int, entry: dict[str, Any]) -> Iterator[Problem]:
        """Yield what other programs cannot read in an object that is readable here."""
        missing = [key for key in ("id", "area", "iscrowd") if entry.get(key) is None]
        if missing:
            problem = f"has no {', '.join(missing)}, which other programs need"
            cure = "add it, or let --fix do so"
            yield Problem(self._file, item, problem, cure, "warning", "complete", row)
        if type(entry.get("area")) in (int, float) and entry["area"] == 0 < min(entry["bbox"][2:]):
            problem = "its area is 0, but COCO's scores by size depend on it"
            cure = "set it to that of its mask or box, or remove it to have it computed"
            yield Problem(self._file, item, problem, cure, "warning", "drop_area", row)
        if "id" not in missing and type(entry["id"]) is not int:
            problem = f"its id is {shown(entry['id'])}, but other programs need an integer"
            cure = "give it a unique integer"
            yield Problem(self._file, item, problem, cure, "warning", "renumber", row)
        yield from check_parts(self._file, item, row, self._items[row])

    def _read_object(
        self, row: int, entry: Any, masked: bool
    ) -> tuple[_ObjectColumns | None, list[tuple[InputError, Action]]]:
        """Return an object, or None if it is dropped, and its errors.

        Unreadable optional keys are removed from it. If other objects are ``masked``, one without a
        segmentation would be trained with its box as mask, so it is dropped.
        """
        try:
            return self._columns_of(entry), []
        except InputError as error:
            first = error
        optional = entry if isinstance(entry, dict) else {}
        wrong = {key: fault for key in OPTIONAL_KEYS if (fault := _fault(key, optional.get(key)))}
        kept = {key: value for key, value in optional.items() if key not in wrong}
        faults = [(error, _action_for(key, entry[key], masked)) for key, error in wrong.items()]
        try:
            columns = self._columns_of(kept)
        except InputError:  # it is not, or not only, for these keys
            return None, [(first, "drop_object")]
        if any(action == "drop_object" for _, action in faults):
            return None, faults
        self._items[row] = kept
        return columns, faults

    def _columns_of(self, entry: Any) -> _ObjectColumns:
        columns = _ObjectColumns(self._path)
        columns.add(entry)
        columns.boxes_xyxy()
        return columns

    def _unknown(self, item: str, row: int, key: str, value: int, where: str) -> Problem:
        problem = f"{key} {value} is not among the file's {where}"
        cure = f"add it to {where!r}, or remove the annotation"
        return Problem(self._file, item, problem, cure, "error", "drop_object", row)

    def _check_image(self, image: _Image, images: ImageChecks) -> Iterator[Problem]:
        item = f"image {image.id} ({shown(image.name)})"
        file = f"{self._split}/{image.name}"
        told = [] if image.fault is None else [image.fault]
        size, problems = images.check(
            self._file, item, file, image.size_hw, image.row, is_told=bool(told)
        )
        problems = [*told, *problems]
        boxes = [box for _, box in image.boxes]
        if not is_size_of(boxes, size, image.size_hw):
            problems = [not_by_size(each) for each in problems]
        yield from problems
        if all(size) and not any(each.action == "drop_image" for each in problems):
            self._kept += [(box, size) for box in boxes]
        objects = [
            Masked(_called("annotation", self._items[row], row), row, self._items[row], box)
            for row, box in image.boxes
        ]
        of_masks = check_masks(self._file, objects, size)
        doubles = Doubles()
        for each in objects:
            entry, row = each.entry, each.row
            found = check_box(self._file, each.item, row, each.box, entry["bbox"], size, _SLACK)
            # Two objects that occlude each other may share a box, but not a mask.
            mask = json.dumps(entry.get("segmentation") or [])
            flags = bool(entry.get("iscrowd")), bool(entry.get("difficult"))
            if not (flags[0] or is_thin(each.box, size)):
                self._trains |= not flags[1]
                self._is_difficult |= flags[1]
            key = (entry["category_id"], each.box, flags, mask)
            found = found or doubles.check(self._file, each.item, row, key) or of_masks.get(row)
            if found:
                yield found

    def _check_bare(self) -> Iterator[Problem]:
        rows = [row for image in self._images.values() for row, _ in image.boxes]
        called = {_called("annotation", self._items[row], row): self._items[row] for row in rows}
        yield from check_bare(self._file, called)

    def _check_convention(self) -> Iterator[Problem]:
        """Yield boxes given as corners instead of sides: one box is not conclusive, all are."""
        boxes = np.array([box for box, _ in self._kept], np.float64).reshape(-1, 4)
        sizes = np.array([size for _, size in self._kept], np.int32).reshape(-1, 2)
        try:
            _ObjectColumns(self._path).check_inside(boxes, sizes)
        except InputError as error:
            yield problem_of(error, "annotation", self._file, "", "refuse")

    def _check_ids(self) -> Iterator[Problem]:
        seen: set[int] = set()
        for row, entry in enumerate(self._items):
            identity = whole_number(entry.get("id")) if isinstance(entry, dict) else None
            if identity is None:
                continue
            item = _called("annotation", entry, row)
            if identity in seen:
                problem = "has the same id as another annotation; other programs lose one"
                cure = "give each a unique id"
                yield Problem(self._file, item, problem, cure, "warning", "renumber", row)
            elif identity <= 0:
                problem = "its id is not positive: pycocotools scores 0 for such objects"
                cure = "number annotations from 1"
                yield Problem(self._file, item, problem, cure, "warning", "renumber", row)
            seen.add(identity)


def _called(kind: str, entry: Any, row: int) -> str:
    identity = entry.get("id") if isinstance(entry, dict) else None
    number = f"number {row + 1}"
    return f"{kind} {identity} ({number})" if type(identity) is int else f"{kind} {number}"


def _fault(key: str, value: Any) -> InputError | None:
    """Return the error of one key's value, in an otherwise correct object."""
    try:
        _ObjectColumns(Path()).add(
            {"bbox": [0, 0, 1, 1], "image_id": 0, "category_id": 0, key: value}
        )
    except InputError as error:
        return error
    return None


def _action_for(key: str, value: Any, masked: bool) -> Action:
    """Return the removal of a key only if that cannot change the meaning of the object."""
    if key in ("iscrowd", "difficult"):
        return OPTIONAL_KEYS[key] if says_no(value) else "drop_object"
    return "drop_object" if key == "segmentation" and masked else OPTIONAL_KEYS[key]


def _has_mask(entry: Any) -> bool:
    segmentation = entry.get("segmentation") if isinstance(entry, dict) else None
    return bool(segmentation) and _fault("segmentation", segmentation) is None


def _other(rows: list[int], row: int) -> str:
    return f"number {next(each for each in rows if each != row) + 1}"


def _located(
    error: InputError, path: Path, file: str, item: str, action: Action, row: int
) -> Problem:
    """Turn an error of ImageColumns into a problem with our name of the image."""
    text = str(error).removeprefix(f"{path}: ").partition(": ")[2]
    return problem_of(InputError(text), "", file, item, action, row)
