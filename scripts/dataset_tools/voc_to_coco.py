"""Conversion of a VOC dataset to COCO."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from data.errors import InputError, shown
from data.formats.coco_columns import read_categories
from data.formats.voc import VOC_CLASSES
from data.formats.voc_images import find_voc_image, images_by_stem
from data.formats.voc_splits import listed_name, read_lines, split_file
from data.formats.voc_xml import (
    VOC_SIDES,
    parse_voc_xml,
    read_filename,
    read_voc_object,
    read_voc_side,
)
from scripts.dataset_tools.coco_checks import read_document
from scripts.dataset_tools.coco_to_voc import REST, rest_of
from scripts.dataset_tools.interchange import annotation_of, image_of
from scripts.dataset_tools.layout import Layout, annotation_files
from scripts.dataset_tools.output_folder import copy_files
from scripts.dataset_tools.progress import progress


class VocToCoco:
    """Converts all splits with common ids, so that an image in two of them has one id."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self._layout = layout
        self._folder = folder
        self._listing = images_by_stem(layout.root / "JPEGImages", layout.root, layout.follow_links)
        self._read: dict[str, tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]] = {}

    def write(self, splits: Sequence[str], hardlink: bool) -> dict[str, int]:
        if any("/" in split for split in splits):
            raise self._layout.several_datasets_error(splits, "convert")
        names = {split: _listed(self._layout.root, split) for split in splits}
        everything = sorted(set().union(*names.values()))
        for name in progress(everything, "convert"):
            self._read[name] = self._read_one(name)
        self._give_ids(list(names.values()))
        pairs = []
        for split in splits:
            self._write_split(split, names[split])
            for name in names[split]:
                file = self._read[name][0]["file_name"]
                source = self._layout.root / "JPEGImages" / file
                pairs.append((source, self._folder / split / file))
        objects = sum(len(self._read[name][1]) for name in everything)
        missing = copy_files(pairs, hardlink, self._layout.root, self._layout.follow_links)
        return {
            "splits": len(splits),
            "images": len(everything),
            "objects": objects,
            "missing_images": missing,
            "unlisted": self._unlisted(splits, everything),
        }

    def _unlisted(self, splits: Sequence[str], names: Sequence[str]) -> int:
        """Count the annotation files that no split lists, if all splits are converted."""
        if not set(splits) >= set(self._layout.splits):
            return 0
        listed = {f"Annotations/{name}.xml" for name in names}
        return sum(file not in listed for file in annotation_files(self._layout, ""))

    def _read_one(self, name: str) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
        path = self._layout.root / "Annotations" / f"{name}.xml"
        document = parse_voc_xml(path)
        file = find_voc_image(name, read_filename(document), self._listing, str(path))
        sides = [read_voc_side(document, side, path) for side in VOC_SIDES]
        try:
            image = image_of(document, file, (sides[0], sides[1]))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if posixpath.splitext(file)[0] != name:
            image["voc_name"] = name
        objects = []
        for number, element in enumerate(document.findall("object"), start=1):
            where = f"{path}: object {number}"
            read_voc_object(element, where)  # refuses what cannot be translated
            try:
                objects.append(annotation_of(element, self._layout.zero_based))
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
        return image, objects

    def _give_ids(self, splits: Sequence[Sequence[str]]) -> None:
        """Assign ids; those from COCO are kept, unless two entries of one split share them."""
        for names in splits:
            _forget_doubles([self._read[name][0] for name in names])
            _forget_doubles([item for name in names for _, item in self._read[name][1]])
        _fill_ids([image for image, _ in self._read.values()])
        _fill_ids([item for _, objects in self._read.values() for _, item in objects])

    def _check_owners(self, names: Sequence[str]) -> None:
        """Raise InputError if two annotation files of a split have the same image."""
        owners: dict[str, str] = {}
        for name in names:
            file = self._read[name][0]["file_name"]
            owner = owners.setdefault(file, name)
            if owner != name:
                folder = self._layout.root / "Annotations"
                raise InputError(
                    f"{folder / name}.xml: has the same image {shown(file)} as {owner}.xml; "
                    "correct <filename> in one of them"
                )

    def _write_split(self, split: str, names: Sequence[str]) -> None:
        self._check_owners(names)
        rest = _read_rest(self._layout.root, split)
        found = {name for _, objects in self._read.values() for name, _ in objects}
        categories = _extended(rest.pop("categories", []), found)
        ids = {each["name"].strip(): each["id"] for each in categories}
        items = []
        for name in names:
            image, objects = self._read[name]
            for class_name, item in objects:
                items.append({**item, "image_id": image["id"], "category_id": ids[class_name]})
        document = {
            **rest,
            "images": [self._read[name][0] for name in names],
            "annotations": items,
            "categories": categories,
        }
        path = self._folder / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
        (self._folder / split).mkdir(parents=True, exist_ok=True)


def _listed(root: Path, split: str) -> list[str]:
    path = root / split_file(root, split)
    names: dict[str, None] = {}  # in their order
    for number, line in enumerate(read_lines(path, root), start=1):
        if line.strip():
            where = f"{path}: line {number}"
            name = listed_name(line, root / "Annotations", where)
            if name in names:
                raise InputError(f"{where}: {shown(name)} is listed twice; list it once")
            names[name] = None
    return list(names)


def _forget_doubles(entries: Sequence[dict[str, Any]]) -> None:
    """Remove duplicate ids from all entries but the first with each."""
    seen: set[object] = set()
    for entry in entries:
        identity = entry.get("id")
        if identity in seen:
            del entry["id"]
        elif identity is not None:
            seen.add(identity)


def _fill_ids(entries: Sequence[dict[str, Any]]) -> None:
    """Assign unused ids from 1 to entries without one; the id becomes the first key."""
    taken = {entry["id"] for entry in entries if "id" in entry}
    free = (number for number in count(1) if number not in taken)
    for entry in entries:
        identity = entry.pop("id") if "id" in entry else next(free)
        rest = dict(entry)
        entry.clear()
        entry.update(id=identity, **rest)


def _extended(categories: list[dict[str, Any]], found: set[str]) -> list[dict[str, Any]]:
    """Return the categories with new classes appended: VOC's 20 in their order, or by name."""
    known = {each["name"].strip() for each in categories}
    if not categories and found <= set(VOC_CLASSES):
        new: Sequence[str] = VOC_CLASSES
    else:
        new = sorted(found - known)
    first = max((each["id"] for each in categories), default=0) + 1
    return [*categories, *({"id": first + row, "name": name} for row, name in enumerate(new))]


def _read_rest(root: Path, split: str) -> dict[str, Any]:
    """Return the rest of a split's COCO file.

    For a split created since the conversion, the categories of the others, if these agree.
    """
    path = root / rest_of(split)
    if path.is_file():
        return _checked_rest(path)
    others = [_checked_rest(other) for other in sorted((root / REST).glob("[!.]*.json"))]
    categories = [rest["categories"] for rest in others]
    agree = bool(categories) and all(each == categories[0] for each in categories)
    return {"categories": categories[0]} if agree else {}


def _checked_rest(path: Path) -> dict[str, Any]:
    rest = read_document(path)
    read_categories(path, rest.get("categories"))
    return rest
