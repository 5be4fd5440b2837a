"""Repaired copies of VOC datasets."""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from data.errors import InputError
from data.formats.voc_images import find_voc_image, images_by_stem
from data.formats.voc_splits import listed_name, read_lines
from data.formats.voc_xml import parse_voc_xml, read_filename
from data.image_sizes import MOST_PIXELS
from data.images import read_image
from scripts.dataset_tools.coco_to_voc import rest_of
from scripts.dataset_tools.interchange import limit_area
from scripts.dataset_tools.kept import Kept, Rows, nothing_left
from scripts.dataset_tools.layout import Layout, annotation_files, place_of
from scripts.dataset_tools.output_folder import copy_files
from scripts.dataset_tools.progress import progress


@dataclass(frozen=True)
class _Line:
    """A line of a list, and the annotation file that it names, relative to the root; or ""."""

    text: str
    annotation: str


def repair_voc(
    layout: Layout, splits: Sequence[str], by_file: dict[str, Rows], folder: Path, hardlink: bool
) -> Kept:
    """Write the chosen splits into ``folder``; if all are chosen, also files that no split lists.

    ``by_file`` holds the actions for each file.

    Raises:
        InputError: nothing of a split is left.
    """
    pairs: list[tuple[Path, Path]] = []
    kept: set[str] = set()
    count = Kept()
    years = sorted({posixpath.dirname(split) for split in splits})
    for year in years:
        images = layout.root / year / "JPEGImages"
        listing = images_by_stem(images, layout.root, layout.follow_links)
        lists = {
            path: [
                _Line(line, _listed_file(layout.root, year, line))
                for line in read_lines(path, layout.root)
            ]
            for path in _lists_of(layout, year, splits)
        }
        files = {line.annotation for lines in lists.values() for line in lines if line.annotation}
        if set(splits) >= set(layout.splits):
            files.update(annotation_files(layout, year))
        for file in progress(sorted(files), "repair"):
            path = layout.root / file
            rows = by_file.get(file, {})
            annotation = _read_annotation(path)
            count.of_images += 1
            count.of_objects += _objects_in(annotation)
            image = None if annotation is None else _image_of(file, annotation, listing)
            if annotation is None or image is None or "drop_image" in rows:
                continue
            if "drop_image" in by_file.get(image, {}):
                continue
            _write_annotation(layout, path, annotation, rows, layout.root / image, folder / file)
            kept.add(file)
            count.objects += _objects_in(annotation)
            pairs.append((layout.root / image, folder / image))
        for path, lines in lists.items():
            left = _repair_list(path.relative_to(layout.root), lines, by_file, kept, folder)
            split = posixpath.join(year, path.stem)
            if not left and split in splits:
                raise nothing_left(path)
            _copy_rest(layout.root, split, folder)
    copy_files(pairs, hardlink, layout.root, layout.follow_links)
    count.images = len(kept)
    return count


def _lists_of(layout: Layout, year: str, splits: Sequence[str]) -> list[Path]:
    """Return the list files of the chosen splits and their single classes; all for all splits."""
    lists = sorted((layout.root / year / "ImageSets/Main").glob("[!.]*.txt"))
    if set(splits) >= set(layout.splits):
        return lists
    chosen = [posixpath.basename(split) for split in splits if posixpath.dirname(split) == year]
    others = {posixpath.basename(split) for split in layout.splits}.difference(chosen)
    return [
        path
        for path in lists
        if path.stem in chosen
        or (path.stem not in others and path.stem.endswith(tuple(f"_{name}" for name in chosen)))
    ]


def _listed_file(root: Path, year: str, line: str) -> str:
    """Return the annotation file of a line of a split, relative to the root; "" for none."""
    folder = posixpath.join(year, "Annotations")
    try:
        file = posixpath.join(folder, f"{listed_name(line, root / folder, '')}.xml")
    except InputError:
        return ""
    return file if os.path.isfile(root / file) else ""


def _copy_rest(root: Path, split: str, folder: Path) -> None:
    """Copy the rest of a split's COCO file, which a dataset converted from COCO keeps."""
    rest = rest_of(split)
    if (root / rest).is_file():
        (folder / rest).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / rest, folder / rest)


def _read_annotation(path: Path) -> Element | None:
    try:
        return parse_voc_xml(path)
    except InputError:
        return None


def _objects_in(annotation: Element | None) -> int:
    return 0 if annotation is None else len(annotation.findall("object"))


def _image_of(file: str, annotation: Element, listing: dict[str, str]) -> str | None:
    """Return the image of an annotation file, relative to the root; None if there is none."""
    year, name = place_of(file)
    filename = read_filename(annotation)
    try:
        return posixpath.join(year, "JPEGImages", find_voc_image(name, filename, listing, file))
    except InputError:
        return None


def _write_annotation(
    layout: Layout, path: Path, annotation: Element, rows: Rows, image: Path, target: Path
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


def _repair_objects(annotation: Element, rows: Rows, zero_based: bool) -> None:
    for row, element in enumerate(annotation.findall("object")):
        if row in rows.get("drop_object", ()):
            annotation.remove(element)
            continue
        if row in rows.get("clear_difficult", ()):
            for flag in element.findall("difficult"):
                flag.text = "0"
        if row in rows.get("clip_box", ()):
            _clip(annotation, element, 0 if zero_based else 1)
            limit_area(element, zero_based)


def _clip(annotation: Element, element: Element, first: int) -> None:
    """Clip a box to the image, so that the loader, which clips too, reads the same box as before.

    A box with a single pixel inside stays as it is: the loader drops a box whose corners meet.
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
    file: Path, lines: Sequence[_Line], by_file: dict[str, Rows], kept: set[str], folder: Path
) -> int:
    """Write a list file without its faulty lines; return the number of lines left.

    It may be the list of one class, which has a flag after each name.
    """
    dropped = by_file.get(file.as_posix(), {}).get("drop_line", set())
    left = [
        line.text
        for row, line in enumerate(lines)
        if row not in dropped and line.annotation in kept
    ]
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("".join(f"{line}\n" for line in left), encoding="utf-8")
    return len(left)
