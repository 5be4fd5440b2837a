"""A repaired copy of a dataset, from the problems that were found; the original is only read."""

from __future__ import annotations

import json
import posixpath
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np
from tqdm import tqdm

from data.errors import InputError
from data.image_sizes import MOST_PIXELS
from data.images import read_image
from data.masks import object_area
from data.segmentations import SegmentationColumns
from data.voc_images import find_voc_image, images_by_stem
from data.voc_splits import read_lines
from data.voc_xml import parse_voc_xml
from scripts.dataset_tools.coco_checks import read_document
from scripts.dataset_tools.layout import Layout
from scripts.dataset_tools.mask_checks import whole_parts
from scripts.dataset_tools.output_folder import check_outside, copy_files, new_folder
from scripts.dataset_tools.problems import OPTIONAL_KEYS, Problem

_Rows = dict[str, set[int]]  # by action, the rows that it applies to


@dataclass
class Kept:
    """How much of a dataset is in its repaired copy."""

    images: int = 0
    of_images: int = 0
    objects: int = 0
    of_objects: int = 0

    def __str__(self) -> str:
        return (
            f"kept {self.images} of {self.of_images} images, "
            f"{self.objects} of {self.of_objects} objects"
        )


def write_repaired(
    layout: Layout, splits: Sequence[str], problems: Sequence[Problem], output: Path, hardlink: bool
) -> Kept:
    """Write the copy, and count what is in it.

    Raises InputError where ``output`` exists, nothing of a split or no object is left, or an image
    is a link that must not be followed: neither is it copied, nor is there anything wrong with it.
    """
    links = [problem.file for problem in problems if problem.action == "allow_link"]
    if links:
        raise InputError(
            f"{layout.root / links[0]}: is a link to outside the root of the data, as "
            f"{len(links)} images are; say --follow-links if the dataset can be trusted"
        )
    by_file: dict[str, _Rows] = defaultdict(lambda: defaultdict(set))
    for problem in problems:
        if problem.action == "none" and problem.severity == "warning":
            continue  # left for people to decide
        by_file[problem.file][problem.action].add(problem.row)
    repair = _repair_voc if layout.format == "voc" else _repair_coco
    check_outside(layout.root, output)
    with new_folder(output) as folder:
        kept = repair(layout, splits, by_file, folder, hardlink)
        if kept.of_objects and not kept.objects:
            raise InputError(
                f"{layout.root}: none of its {kept.of_objects} objects could be kept; correct what "
                "is named by hand"
            )
        return kept


def _repair_voc(
    layout: Layout, splits: Sequence[str], by_file: dict[str, _Rows], folder: Path, hardlink: bool
) -> Kept:
    pairs: list[tuple[Path, Path]] = []
    kept: set[str] = set()
    count = Kept()
    years = sorted({posixpath.dirname(split) for split in splits})
    for year in years:
        images = layout.root / year / "JPEGImages"
        listing = images_by_stem(images, layout.root, layout.follow_links)
        paths = sorted((layout.root / year / "Annotations").rglob("[!.]*.xml"))
        for path in tqdm(paths, desc="repair", delay=2, leave=False, disable=None):
            file = path.relative_to(layout.root).as_posix()
            rows = by_file.get(file, {})
            annotation = _read_annotation(path)
            count.of_images += 1
            count.of_objects += _objects_in(annotation)
            image = None if annotation is None else _image_of(year, file, annotation, listing)
            if annotation is None or image is None or "drop_image" in rows:
                continue
            if "drop_image" in by_file.get(image, {}):
                continue
            _write_annotation(layout, path, annotation, rows, layout.root / image, folder / file)
            kept.add(file)
            count.objects += _objects_in(annotation)
            pairs.append((layout.root / image, folder / image))
        for path in sorted((layout.root / year / "ImageSets/Main").glob("[!.]*.txt")):
            lines = _repair_list(layout.root, path, by_file, kept, folder)
            if not lines and posixpath.join(year, path.stem) in splits:
                raise _nothing_left(path)
    copy_files(pairs, hardlink, layout.root, layout.follow_links)
    count.images = len(kept)
    return count


def _read_annotation(path: Path) -> Element | None:
    try:
        return parse_voc_xml(path)
    except InputError:
        return None


def _objects_in(annotation: Element | None) -> int:
    return 0 if annotation is None else len(annotation.findall("object"))


def _image_of(year: str, file: str, annotation: Element, listing: dict[str, str]) -> str | None:
    """The image of an annotation file, relative to the root; None where there is none."""
    filename = (annotation.findtext("filename") or "").strip() or None
    name = posixpath.splitext(file.partition("Annotations/")[2])[0]
    try:
        return posixpath.join(year, "JPEGImages", find_voc_image(name, filename, listing, file))
    except InputError:
        return None


def _write_annotation(
    layout: Layout, path: Path, annotation: Element, rows: _Rows, image: Path, target: Path
) -> None:
    """Repair an annotation and write it; without problems the file is copied as it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not rows:
        shutil.copyfile(path, target)
        return
    if "set_size" in rows:
        height, width = read_image(image, None, MOST_PIXELS).shape[:2]
        _set_size(annotation, height, width)
    _repair_objects(annotation, rows, layout.zero_based)
    indent(annotation)
    ElementTree(annotation).write(target, encoding="utf-8")


def _set_size(annotation: Element, height: int, width: int) -> None:
    size = annotation.find("size")
    size = SubElement(annotation, "size") if size is None else size
    for tag, value in (("width", width), ("height", height)):
        side = size.find(tag)
        side = SubElement(size, tag) if side is None else side
        side.text = str(value)


def _repair_objects(annotation: Element, rows: _Rows, zero_based: bool) -> None:
    for row, element in enumerate(annotation.findall("object")):
        if row in rows.get("drop_object", ()):
            annotation.remove(element)
            continue
        if row in rows.get("clear_difficult", ()):
            for flag in element.findall("difficult"):
                flag.text = "0"
        if row in rows.get("clip_box", ()):
            _clip(annotation, element, 0 if zero_based else 1)


def _clip(annotation: Element, element: Element, first: int) -> None:
    """Cut a box at the border, so that the loader, which cuts it too, reads what it read before.

    It reads nothing where the corners meet: a box of which a single pixel is inside stays as it is.
    """
    corners = {corner.tag: corner for corner in element.iterfind("bndbox/*")}
    for axis, side in (("x", "size/width"), ("y", "size/height")):
        ends = corners[f"{axis}min"], corners[f"{axis}max"]
        before = [float(end.text or 0) for end in ends]
        inside = [max(before[0], first), min(before[1], float(annotation.findtext(side) or 0))]
        if inside[0] < inside[1]:
            for end, old, new in zip(ends, before, inside, strict=True):
                end.text = end.text if new == old else f"{new:.0f}"


def _repair_list(
    root: Path, path: Path, by_file: dict[str, _Rows], kept: set[str], folder: Path
) -> int:
    """Write a split without its faulty lines; returns how many are left.

    Also for the lists of one class, which have a flag behind each name.
    """
    file = path.relative_to(root)
    year = file.parent.parent.parent
    dropped = by_file.get(file.as_posix(), {}).get("drop_line", set())
    lines = []
    for row, line in enumerate(read_lines(path, root)):
        names = [line.strip(), line.split()[0]] if line.strip() else []
        known = any((year / "Annotations" / f"{name}.xml").as_posix() in kept for name in names)
        if known and row not in dropped:
            lines.append(line)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def _nothing_left(path: Path) -> InputError:
    return InputError(f"{path}: no image of it could be kept; correct what is named by hand")


def _repair_coco(
    layout: Layout, splits: Sequence[str], by_file: dict[str, _Rows], folder: Path, hardlink: bool
) -> Kept:
    count = Kept()
    for split in splits:
        file = f"annotations/instances_{split}.json"
        document = read_document(layout.root / file)
        if "none" in by_file.get(file, {}) and -1 in by_file[file]["none"]:
            raise InputError(f"{layout.root / file}: cannot be repaired; correct what is named")
        rows = by_file.get(file, {})
        dropped = {row for name, each in by_file.items() if name.startswith(f"{split}/")
                   for row in each.get("drop_image", ())}  # fmt: skip
        dropped |= rows.get("drop_image", set())
        sizes = rows.get("set_size", set())
        images = [
            _sized(layout.root / split, entry) if row in sizes else entry
            for row, entry in enumerate(document["images"])
            if row not in dropped
        ]
        if not images:
            raise _nothing_left(layout.root / file)
        count.images += len(images)
        count.of_images += len(document["images"])
        count.of_objects += len(document["annotations"])
        document["images"] = images
        # A size that is left open all the same says where boxes end.
        known = [
            entry
            if entry.get("height") and entry.get("width")
            else _sized(layout.root / split, entry)
            for entry in images
        ]
        document["annotations"] = _repaired_objects(document["annotations"], known, rows)
        count.objects += len(document["annotations"])
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(document), encoding="utf-8")
        names = [entry["file_name"] for entry in images]
        pairs = [(layout.root / split / name, folder / split / name) for name in names]
        copy_files(pairs, hardlink, layout.root, layout.follow_links)
    return count


def _sized(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    height, width = read_image(folder / entry["file_name"], None, MOST_PIXELS).shape[:2]
    return {**entry, "height": height, "width": width}


def _repaired_objects(
    items: list[Any], images: list[dict[str, Any]], rows: _Rows
) -> list[dict[str, Any]]:
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in images}
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
    """Of the mask, or of the box where there is none."""
    columns = SegmentationColumns()
    columns.add(entry.get("segmentation"))
    store = columns.finish(np.array([size_hw], np.int32), lambda _: "annotation")
    width, height = entry["bbox"][2:]
    return float(width * height) if store is None else object_area(store, 0)
