"""Tiny datasets for the tests of scripts/datasets.py."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SHARED = Path(__file__).parents[2] / "../shared/data"


def write_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    cv2.imwrite(str(path), pixels)


def voc_object(name: str, box: tuple[object, ...], rest: str = "<difficult>0</difficult>") -> str:
    corners = "".join(
        f"<{tag}>{value}</{tag}>"
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{rest}<bndbox>{corners}</bndbox></object>"


def write_voc(root: Path, images: dict[str, list[str]], splits: dict[str, list[str]]) -> Path:
    """Images of 80 x 100 pixels (height, width) with the given objects."""
    for seed, (name, objects) in enumerate(images.items()):
        write_image(root / f"JPEGImages/{name}.png", 80, 100, seed)
        xml = (
            f"<annotation><folder>mine</folder><filename>{name}.png</filename>"
            "<size><width>100</width><height>80</height><depth>3</depth></size>"
            f"<segmented>0</segmented>{''.join(objects)}</annotation>"
        )
        path = root / f"Annotations/{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml)
    for split, names in splits.items():
        path = root / f"ImageSets/Main/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
    return root


def coco_object(identity: int, image: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "image_id": image,
        "category_id": 3,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [],
        **more,
    }


def write_coco(
    root: Path, annotations: list[Any], images: int = 2, split: str = "train", **more: Any
) -> Path:
    """Images 1, 2, ... of 80 x 100 pixels (height, width)."""
    entries = []
    for identity in range(1, images + 1):
        name = f"{split}_{identity}.png"
        write_image(root / f"{split}/{name}", 80, 100, identity + 100 * len(split))
        entries.append({"id": identity, "file_name": name, "height": 80, "width": 100})
    document = {
        "info": {"year": 2020},
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat", "supercategory": "pet"}, {"id": 7, "name": "dog"}],
        **more,
    }
    path = root / f"annotations/instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return root


def fingerprint(root: Path) -> dict[str, str]:
    """Every file of a folder and its content."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def a_voc(folder: Path) -> Path:
    """Two dogs, one of them difficult, a cat and an image without objects."""
    images = {
        "a": [voc_object("dog", (1, 1, 40, 20)), voc_object("cat", (11, 11, 20, 30))],
        "b": [voc_object("dog", (1, 1, 10, 10), "<difficult>1</difficult>")],
        "c": [],
    }
    return write_voc(folder / "voc", images, {"train": ["a", "b"], "trainval": ["a", "b", "c"]})
