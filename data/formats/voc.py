"""PASCAL VOC: ``Annotations``, ``JPEGImages`` and ``ImageSets/Main``, for one year or several."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations, arrange_objects
from data.errors import InputError, shown, some_of
from data.formats.voc_images import find_voc_image, images_by_stem
from data.formats.voc_splits import listed_name, read_lines, split_file
from data.formats.voc_xml import VocImage, read_voc_xml
from data.image_sizes import OWN_FILES, Access, complete_sizes
from data.paths import refuse_links

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on


def load_voc(
    root: Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    zero_based: bool = False,
    access: Access = OWN_FILES,
) -> Annotations:
    """Read one or several splits of a VOC dataset, one after the other.

    Images are only opened if an annotation lacks their size; otherwise they need not exist.

    Args:
        root: a folder with ``ImageSets/Main/<split>.txt``, or a ``VOCdevkit`` of such folders.
        splits: such as ``trainval``; in a VOCdevkit ``VOC2012/trainval``.
        classes: class names in label order. None: VOC's 20 if every name in the splits is one of
            them, else the sorted names.
        zero_based: use boxes as they are. Otherwise they follow the devkit's convention, 1-based
            with both corners included, and become ``(xmin - 1, ymin - 1, xmax, ymax)``.
        access: how files are opened.

    Raises:
        InputError: a file cannot be used; the message names it and the object.
    """
    source = f"{root} ({', '.join(splits)})"
    if not access.follow_links:
        refuse_links(root, [split_file(root, split) for split in splits], source)
    entries = [entry for split in splits for entry in _list_entries(root, split)]
    _check_distinct(entries, source)
    if not access.follow_links:
        refuse_links(root, [entry.annotation for entry in entries], source)
    images = [read_voc_xml(root / entry.annotation) for entry in entries]
    if classes is not None:
        _check_classes(root, entries, images, classes)
    files = _find_files(root, entries, images, access.follow_links)
    given = np.array([image.size_hw for image in images])
    sizes = complete_sizes(root, files, given, source, access)
    annotations = Annotations(
        source=source,
        split="+".join(dict.fromkeys(posixpath.basename(split) for split in splits)),
        names=np.array([entry.name for entry in entries]),
        files=np.array(files),
        image_ids=np.arange(1, len(images) + 1),
        sizes=sizes,
        **_object_columns(images, sizes, zero_based),
    )
    if classes is None:
        return annotations
    numbers = np.arange(1, len(classes) + 1)  # independent of which classes the split contains
    return replace(annotations.relabel(classes), category_ids=numbers)


def _object_columns(
    images: Sequence[VocImage], sizes: npt.NDArray[np.int32], zero_based: bool
) -> dict[str, Any]:
    """Build the fields of Annotations that describe objects."""
    objects = [voc_object for image in images for voc_object in image.objects]
    image_rows = np.repeat(np.arange(len(images)), [len(image.objects) for image in images])
    boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    boxes = _to_continuous(boxes, sizes[image_rows], zero_based)
    rows, offsets, dropped_from = arrange_objects(image_rows, boxes, sizes)
    boxes = boxes[rows]
    found = {item.name for item in objects}
    classes = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
    labels = {name: label for label, name in enumerate(classes)}
    return {
        "classes": classes,
        "category_ids": np.arange(1, len(classes) + 1),
        "offsets": offsets,
        "boxes": boxes,
        "labels": np.array([labels[item.name] for item in objects], np.int32)[rows],
        "areas": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        "difficult": np.array([item.difficult for item in objects], np.bool_)[rows],
        "crowd": np.zeros(len(rows), np.bool_),
        "dropped_from": dropped_from,
    }


@dataclass(frozen=True)
class _Entry:
    """An image of a split: the folder of its year ("" without years) and its name in it."""

    folder: str
    name: str

    @property
    def annotation(self) -> str:
        return posixpath.join(self.folder, "Annotations", f"{self.name}.xml")


def _list_entries(root: Path, split: str) -> Iterator[_Entry]:
    """Yield the entries of a split's list."""
    path = root / split_file(root, split)
    folder = posixpath.dirname(posixpath.normpath(split))
    lines = read_lines(path, root)
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: lists no images; write one name per line, or use another split")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            annotations, where = root / folder / "Annotations", f"{path}: line {number}"
            yield _Entry(folder, listed_name(line, annotations, where))


def _check_distinct(entries: Sequence[_Entry], source: str) -> None:
    seen: set[_Entry] = set()
    for entry in entries:
        if entry in seen:
            raise InputError(
                f"{source}: image {shown(entry.name)} is listed twice; list it once, or use "
                "data.repeat to see all images more often"
            )
        seen.add(entry)


def _check_classes(
    root: Path, entries: Sequence[_Entry], images: Sequence[VocImage], classes: Sequence[str]
) -> None:
    listed = set(classes)
    for entry, image in zip(entries, images, strict=True):
        for number, item in enumerate(image.objects, start=1):
            if item.name not in listed:
                raise InputError(
                    f"{root / entry.annotation}: class {shown(item.name)} of object {number} is "
                    f"not one of {some_of(classes)}; list it in data.classes, or rename it"
                )


def _find_files(
    root: Path, entries: Sequence[_Entry], images: Sequence[VocImage], follow_links: bool
) -> list[str]:
    """Find the image file of each entry, relative to the root, whether it exists or not."""
    listings = {
        folder: images_by_stem(root / folder / "JPEGImages", root, follow_links)
        for folder in _folders(entries)
    }
    owners: dict[str, _Entry] = {}
    for entry, image in zip(entries, images, strict=True):
        listing = listings[entry.folder]
        file = posixpath.join(entry.folder, "JPEGImages", _find_file(entry, image, listing, root))
        if file in owners:
            raise InputError(
                f"{root / entry.annotation}: its image {shown(file)} is also that of "
                f"{owners[file].annotation}; correct <filename> in one of them"
            )
        owners[file] = entry
    return list(owners)


def _folders(entries: Sequence[_Entry]) -> set[str]:
    return {entry.folder for entry in entries}


def _find_file(entry: _Entry, image: VocImage, listing: dict[str, str], root: Path) -> str:
    return find_voc_image(entry.name, image.filename, listing, str(root / entry.annotation))


def _to_continuous(
    boxes: npt.NDArray[np.float64], sizes_hw: npt.NDArray[np.int32], zero_based: bool
) -> npt.NDArray[np.float64]:
    """Convert boxes to continuous coordinates, clipped to their images; flat ones become zeros.

    A box whose two corners share a row or column has no area by the numbers in the file. It keeps
    none, although counted inclusively it would be one pixel wide.
    """
    flat = np.any(boxes[:, 2:] <= boxes[:, :2], axis=1, keepdims=True)
    continuous = boxes if zero_based else boxes - [1, 1, 0, 0]
    clipped = np.clip(continuous, 0, np.tile(sizes_hw[:, ::-1], 2))
    return np.where(flat, 0.0, clipped)
