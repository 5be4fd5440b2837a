"""The synthetic dataset: textured images of overlapping shapes, drawn from a seed on first use.

It is written in COCO's layout, with boxes and masks of the visible part of each shape, into its own
folder for each set of options: ``<root>/<fingerprint>/annotations/instances_train.json``, ...
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from data.annotations import Annotations
from data.config import ShapesConfig
from data.errors import InputError, shown
from data.formats.coco import load_coco
from data.formats.painting import Mask, draw_picture

# Increase when the drawing changes: the fingerprint then differs, and old images are not reused.
_DRAWING = 1
_JPEG_QUALITY = 95


def load_shapes(root: Path, split: str, config: ShapesConfig) -> Annotations:
    """Load the annotations of ``train`` or ``val``; the images are drawn if they do not exist yet.

    Raises:
        InputError: the split is another one, or the root cannot be written.
    """
    if split not in ("train", "val"):
        raise InputError(f"data: format shapes has no split {shown(split)}; use train or val")
    folder = draw_shapes(root, config)
    annotations = load_coco(folder, split)
    files = np.char.add(f"{folder.name}/", annotations.files)
    return replace(annotations, files=files)


def draw_shapes(root: Path, config: ShapesConfig) -> Path:
    """Draw both splits unless they exist; return their folder, ``root/<fingerprint>``.

    The finished folder appears in one rename. If several processes draw at once, the first one wins
    and the others discard their copies, which are identical.

    Raises:
        InputError: the root cannot be written.
    """
    folder = root / _fingerprint(config)
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=root) as unfinished:
            _draw_into_place(Path(unfinished) / folder.name, folder, config)
    except OSError as error:
        raise InputError(
            f"{root}: cannot write the shapes dataset ({error.strerror}); set another data.root"
        ) from None
    return folder


def _draw_into_place(unfinished: Path, folder: Path, config: ShapesConfig) -> None:
    unfinished.mkdir()
    _write_split(unfinished, "train", 0, config.train_images, config)
    _write_split(unfinished, "val", 1, config.val_images, config)
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not folder.is_dir():  # no other process was faster, so the rename itself failed
            raise


def _fingerprint(config: ShapesConfig) -> str:
    options = json.dumps([_DRAWING, config.model_dump(mode="json")], sort_keys=True)
    return f"shapes-{hashlib.sha256(options.encode()).hexdigest()[:8]}"


def _write_split(root: Path, split: str, stream: int, images: int, config: ShapesConfig) -> None:
    (root / split).mkdir()
    (root / "annotations").mkdir(exist_ok=True)
    height, width = config.image_size
    entries: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for number in range(1, images + 1):
        random = _random(config.seed, stream, number)
        picture, labels, masks = draw_picture(random, config)
        name = f"{number:06d}.jpg"
        jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        (root / split / name).write_bytes(jpeg[1].tobytes())
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
        for label, mask in zip(labels, masks, strict=True):
            objects.append(_object(len(objects) + 1, number, label + 1, mask))
    categories = [{"id": i, "name": name} for i, name in enumerate(config.shapes, start=1)]
    content = {"images": entries, "annotations": objects, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _random(seed: int, stream: int, number: int) -> np.random.Generator:
    """Return an image's own generator: the image does not depend on how many are drawn."""
    key = np.array([seed % 2**64, stream], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, number, 0, 0]))


def _object(identity: int, image: int, category: int, mask: Mask) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
    }
