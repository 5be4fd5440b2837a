"""COCO results of images, with new ids or with those of an annotation file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.annotations import Annotations
from data.errors import InputError, shown, some_of, unreadable
from engine.evaluation.coco_results import index_of, write_coco_json
from engine.evaluation.detections import Detections
from engine.process.atomic_file import is_stream, write_atomically


@dataclass(frozen=True)
class CocoIds:
    """What an annotation file calls images and classes.

    Attributes:
        images: ids of the images by the path that they were named with.
        categories: ids of the detector's classes, in their order.
        sizes_hw: annotated height and width by image id, where the file has them.
    """

    images: dict[str, int]
    categories: tuple[int, ...]
    sizes_hw: dict[int, tuple[int, int]]

    def size_of(self, file: str) -> tuple[int, int] | None:
        """Annotated height and width of an image, by the path that it was named with."""
        return self.sizes_hw.get(self.images[file])


def write_coco(
    path: Path,
    detections: Detections,
    annotations: Annotations,
    files: Sequence[str],
    ids: CocoIds | None,
) -> None:
    """Write COCO results JSON.

    Without ``ids`` images and categories are numbered from 1, and ``<stem>_images.json`` beside the
    results lists them in the format of COCO annotation files.

    Args:
        files: the path of each image as it was named.
        ids: what an annotation file calls these images and classes.
    """
    if ids is not None:
        annotations = replace(
            annotations,
            image_ids=np.array([ids.images[file] for file in files], dtype=np.int64),
            category_ids=np.array(ids.categories, dtype=np.int64),
        )
    write_coco_json(path, detections, annotations)
    if ids is None and not is_stream(path):
        index = json.dumps(_index(annotations, files), indent=1)
        write_atomically(index_of(path), index.encode())


def _index(annotations: Annotations, files: Sequence[str]) -> dict[str, Any]:
    images = zip(annotations.image_ids.tolist(), files, annotations.sizes.tolist(), strict=True)
    categories = zip(annotations.category_ids.tolist(), annotations.classes, strict=True)
    return {
        "images": [
            {"id": number, "file_name": file, "height": height, "width": width}
            for number, file, (height, width) in images
        ],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [],
    }


def read_ids(path: Path, files: Sequence[str], classes: Sequence[str]) -> CocoIds:
    """Read image ids (by file name), image sizes and category ids (by name) of COCO annotations.

    Raises:
        InputError: the file cannot be read, lacks an image or a class, or gives one id to two of
            them.
    """
    try:
        known = json.loads(path.read_bytes())
        images = [(image["file_name"], image["id"]) for image in known["images"]]
        categories = [(kind["name"], kind["id"]) for kind in known["categories"]]
        sizes = [(image.get("height"), image.get("width")) for image in known["images"]]
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: is not COCO annotations with images and categories") from None
    by_class = _by_name(categories, f"{path}: category")
    missing = [name for name in classes if name not in by_class]
    if missing:
        raise InputError(
            f"{path}: has no category {some_of(missing)}; use the training data's file"
        )
    by_file = _by_name(images, f"{path}: image")
    return CocoIds(
        _image_ids(by_file, files, path),
        tuple(by_class[name] for name in classes),
        _sizes_by_id(images, sizes, path),
    )


def _sizes_by_id(
    images: Sequence[tuple[Any, int]], sizes_hw: Sequence[tuple[Any, Any]], path: Path
) -> dict[int, tuple[int, int]]:
    """Height and width of the images that have them; as in training 0 is none, 80.0 is 80."""
    known = {}
    for (name, number), size in zip(images, sizes_hw, strict=True):
        if not all(size):
            continue
        if not all(_is_length(side) for side in size):
            raise InputError(
                f"{path}: image {shown(name)}: height and width are {shown(list(size))}; give "
                "whole numbers of pixels"
            )
        known[number] = (int(size[0]), int(size[1]))
    return known


def _is_length(side: Any) -> bool:
    return side > 0 if type(side) is int else type(side) is float and side.is_integer() and side > 0


def _by_name(pairs: Sequence[tuple[Any, Any]], where: str) -> dict[str, int]:
    """``{name: id}`` of names that have one id each, and no two the same."""
    ids: dict[str, int] = {}
    names: dict[int, str] = {}
    for given, number in pairs:
        name = str(given)
        if type(number) is not int or abs(number) >= 1 << 63:
            raise InputError(f"{where} {shown(name)}: its id {shown(number)} is not an integer")
        if ids.setdefault(name, number) != number:
            raise InputError(f"{where} {shown(name)} is listed twice; give each a unique name")
        if names.setdefault(number, name) != name:
            raise InputError(
                f"{where} {shown(name)} has the same id {number} as {shown(names[number])}; give "
                "each a unique id"
            )
    return ids


def _image_ids(by_file: dict[str, int], files: Sequence[str], path: Path) -> dict[str, int]:
    """Return the id of each input image, found by its path or else by its file name."""
    ids: dict[str, int] = {}
    owners: dict[int, str] = {}
    for file in files:
        number = by_file.get(file, by_file.get(Path(file).name))
        if number is None:
            raise InputError(
                f"{path}: has no image {shown(file)}; remove that input, or drop --ids"
            )
        if owners.setdefault(number, file) != file:
            raise InputError(
                f"{path}: {shown(owners[number])} and {shown(file)} both match its image {number}; "
                "keep only the intended input, or drop --ids"
            )
        ids[file] = number
    return ids
