"""COCO results of images that no annotation file lists, or that one does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data.annotations import Annotations
from data.errors import InputError, shown, some_of, unreadable
from engine.atomic_file import write_atomically
from engine.coco_results import write_coco_json
from engine.detections import Detections


def write_coco(
    path: Path,
    detections: Detections,
    annotations: Annotations,
    files: Sequence[str],
    ids: Path | None,
) -> None:
    """Write COCO results JSON.

    Without ``ids`` images and categories are counted from 1, and ``<name>_images.json`` beside the
    results says which is which, in the form of COCO's annotation files.

    Args:
        files: the path of each image as it was named.
        ids: a COCO annotation file that lists these images and classes.
    """
    if ids is not None:
        annotations = with_ids_of(ids, annotations, files)
    write_coco_json(path, detections, annotations)
    if ids is None:
        index = json.dumps(_index(annotations, files), indent=1)
        write_atomically(path.with_name(f"{path.stem}_images.json"), index.encode())


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


def with_ids_of(path: Path, annotations: Annotations, files: Sequence[str]) -> Annotations:
    """The same images with the image ids (by file name) and category ids (by name) of a file.

    Raises:
        InputError: the file cannot be read, or does not list an image or a class.
    """
    try:
        known = json.loads(path.read_bytes())
        images = {str(image["file_name"]): int(image["id"]) for image in known["images"]}
        categories = {str(kind["name"]): int(kind["id"]) for kind in known["categories"]}
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is no COCO annotation file with images and categories") from None
    missing = [name for name in annotations.classes if name not in categories]
    if missing:
        raise InputError(f"{path}: has no category {some_of(missing)}; name the data trained on")
    return replace(
        annotations,
        image_ids=np.array([_image_id(images, file, path) for file in files], dtype=np.int64),
        category_ids=np.array([categories[name] for name in annotations.classes], dtype=np.int64),
    )


def _image_id(images: dict[str, int], file: str, path: Path) -> int:
    number = images.get(file, images.get(Path(file).name))
    if number is None:
        raise InputError(f"{path}: lists no image {shown(file)}; leave it out, or leave --ids out")
    return number
