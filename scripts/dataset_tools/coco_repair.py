"""Repaired copies of COCO datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from data.formats.segmentations import SegmentationColumns
from data.image_sizes import MOST_PIXELS
from data.images import read_image
from data.masks import object_area
from scripts.dataset_tools.coco_checks import read_document
from scripts.dataset_tools.kept import Kept, Rows, nothing_left
from scripts.dataset_tools.layout import Layout
from scripts.dataset_tools.mask_checks import whole_parts
from scripts.dataset_tools.output_folder import copy_files
from scripts.dataset_tools.problems import OPTIONAL_KEYS


def repair_coco(
    layout: Layout, splits: Sequence[str], by_file: dict[str, Rows], folder: Path, hardlink: bool
) -> Kept:
    """Write the chosen splits into ``folder``.

    ``by_file`` holds the actions for each file.

    Raises:
        InputError: a file cannot be repaired, or nothing of a split is left.
    """
    count = Kept()
    for split in splits:
        file, place = f"annotations/instances_{split}.json", layout.root / split
        rows = by_file.get(file, {})
        if "refuse" in rows:
            raise InputError(f"{layout.root / file}: cannot be repaired; correct it by hand")
        document = read_document(layout.root / file)
        entries, items = document["images"], document["annotations"]
        dropped = rows.get("drop_image", set()).union(
            *(each.get("drop_image", ()) for name, each in by_file.items() if _is_in(split, name))
        )
        images = [
            _sized(place, entry) if row in rows.get("set_size", ()) else entry
            for row, entry in enumerate(entries)
            if row not in dropped
        ]
        if not images:
            raise nothing_left(layout.root / file)
        objects = _repaired_objects(items, _sizes_of(place, images), rows)
        count.images += len(images)
        count.of_images += len(entries)
        count.objects += len(objects)
        count.of_objects += len(items)
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        repaired = {**document, "images": images, "annotations": objects}
        target.write_text(json.dumps(repaired), encoding="utf-8")
        names = [entry["file_name"] for entry in images]
        pairs = [(place / name, folder / split / name) for name in names]
        copy_files(pairs, hardlink, layout.root, layout.follow_links)
    return count


def _is_in(split: str, file: str) -> bool:
    return file.startswith(f"{split}/")


def _sizes_of(place: Path, images: list[dict[str, Any]]) -> dict[int, tuple[int, int]]:
    """Return height and width by image id, read from the image if the entry has no size."""
    whole = [
        entry if entry.get("height") and entry.get("width") else _sized(place, entry)
        for entry in images
    ]
    return {entry["id"]: (entry["height"], entry["width"]) for entry in whole}


def _sized(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    height, width = read_image(folder / entry["file_name"], None, MOST_PIXELS).shape[:2]
    return {**entry, "height": height, "width": width}


def _repaired_objects(
    items: list[Any], sizes: dict[int, tuple[int, int]], rows: Rows
) -> list[dict[str, Any]]:
    """Return the repaired objects of the kept images; ``sizes`` are height and width by id."""
    dropped = rows.get("drop_object", set())
    used = [entry.get("id") for entry in items if isinstance(entry, dict)]
    free = max([0, *(identity for identity in used if type(identity) is int)]) + 1
    repaired = []
    for row, entry in enumerate(items):
        if row in dropped or entry["image_id"] not in sizes:
            continue
        unread = [key for key, action in OPTIONAL_KEYS.items() if row in rows.get(action, ())]
        entry = {key: value for key, value in entry.items() if key not in unread}
        if row in rows.get("drop_parts", ()):
            entry["segmentation"] = whole_parts(entry["segmentation"])
        if row in rows.get("clip_box", ()):
            entry["bbox"] = _clipped(entry["bbox"], sizes[entry["image_id"]])
            if entry.get("area") is not None:
                entry["area"] = min(entry["area"], entry["bbox"][2] * entry["bbox"][3])
        if row in rows.get("renumber", ()) or entry.get("id") is None:
            entry["id"], free = free, free + 1
        if entry.get("iscrowd") is None:
            entry["iscrowd"] = 0
        if entry.get("area") is None:
            entry["area"] = _area(entry, sizes[entry["image_id"]])
        repaired.append(entry)
    return repaired


def _clipped(bbox: list[float], size_hw: tuple[int, int]) -> list[float]:
    x, y, width, height = bbox
    x1, y1 = max(x, 0), max(y, 0)
    right, bottom = min(x + width, size_hw[1]), min(y + height, size_hw[0])
    return [x1, y1, right - x1, bottom - y1]


def _area(entry: dict[str, Any], size_hw: tuple[int, int]) -> float:
    """Return the area of the mask, or of the box if there is none."""
    columns = SegmentationColumns()
    columns.add(entry.get("segmentation"))
    store = columns.finish(np.array([size_hw], np.int32), lambda _: "annotation")
    width, height = entry["bbox"][2:]
    return float(width * height) if store is None else object_area(store, 0)
