"""Nine small pictures with rectangles, their loaders, and batches as plain values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.annotations import Annotations
from data.config import DataConfig
from data.formats.coco import load_coco
from data.loading import EvalLoader, TrainLoader, build_eval_loader, build_train_loader
from data.target import Batch

SIZES_HW = [
    (40, 60),
    (60, 40),
    (48, 48),
    (30, 64),
    (64, 33),
    (40, 60),
    (50, 60),
    (60, 50),
    (40, 61),
]
RANDOM_TRANSFORMS = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 1}},
    {"BBoxSafeRandomCrop": {"p": 0.5}},
]


def write_rectangles(root: Path) -> Annotations:
    """Nine pictures, wide and high; picture ``i`` holds ``i % 4`` rectangles with masks."""
    (root / "annotations").mkdir()
    (root / "train").mkdir()
    random = np.random.default_rng(0)
    images, objects = [], []
    for i, (height, width) in enumerate(SIZES_HW):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "train" / f"{i}.png"), pixels)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
        objects += [rectangle(i + 1, 2 + 7 * k, 3 + 2 * k, 10 + k, 12, k) for k in range(i % 4)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate("abc")]
    for number, entry in enumerate(objects, start=1):
        entry["id"] = number
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return load_coco(root, "train")


def rectangle(image: int, x: int, y: int, width: int, height: int, label: int) -> dict[str, Any]:
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    box = [x, y, width, height]
    return {
        "image_id": image,
        "category_id": label + 1,
        "bbox": box,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [corners],
    }


def config_of(root: Path, **options: Any) -> DataConfig:
    given = {"image_size": (48, 64), "batch_size": 2, "workers": 0, "augment": RANDOM_TRANSFORMS}
    return DataConfig(format="coco", root=root, **{**given, **options})


@contextmanager
def training(
    dataset: tuple[Path, Annotations],
    *,
    seed: int = 1,
    rank: int = 0,
    world_size: int = 1,
    with_masks: bool = True,
    **options: Any,
) -> Iterator[TrainLoader]:
    root, annotations = dataset
    loader = build_train_loader(
        config_of(root, **options),
        annotations,
        seed=seed,
        rank=rank,
        world_size=world_size,
        with_masks=with_masks,
    )
    try:
        yield loader
    finally:
        loader.close()


@contextmanager
def evaluation(
    dataset: tuple[Path, Annotations], *, rank: int = 0, world_size: int = 1, **options: Any
) -> Iterator[EvalLoader]:
    root, annotations = dataset
    loader = build_eval_loader(
        config_of(root, **options), annotations, rank=rank, world_size=world_size
    )
    try:
        yield loader
    finally:
        loader.close()


def content(batch: Batch) -> tuple[Any, ...]:
    """All of a batch in plain comparable values."""
    targets = batch.targets
    return (
        batch.indices,
        tuple((tuple(image.shape), image.numpy().tobytes()) for image in batch.images),
        targets.boxes.tolist(),
        targets.labels.tolist(),
        targets.counts,
        None if targets.masks is None else tuple(mask.numpy().tobytes() for mask in targets.masks),
    )


def contents(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    return [content(batch) for batch in batches]
