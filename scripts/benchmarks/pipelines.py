"""From the files of a VOC devkit to normalized batches on the device: ours and torchvision's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import VOCDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import v2

from data.annotations import Annotations
from data.build import build_annotations
from data.config import DataConfig, VocConfig
from data.errors import InputError, some_of
from data.formats.voc import VOC_CLASSES
from data.loading import build_train_loader
from detector.preprocessing import IMAGE_MEAN, IMAGE_STD, Preprocessing
from scripts.benchmarks.drawn_voc import SPLIT, YEAR

SHORT, LONG = 600, 1000
FLIP = {"HorizontalFlip": {"p": 0.5}}
# With a transform that may move boxes, Albumentations does the flip too, including boxes.
AUGMENTATIONS: dict[str, tuple[dict[str, dict[str, Any]], ...]] = {
    "flip": (FLIP,),
    "albumentations": (FLIP, {"NoOp": {"p": 1.0}}),
    "none": (),
}


@dataclass(frozen=True)
class Loaded:
    """One batch, ready for the backbone.

    Attributes:
        images: the padded batch and the image sizes in it.
        boxes: ``(N, 4)`` of each image.
        labels: ``(N,)`` of each image, counted from 0.
    """

    images: ImageList
    boxes: list[Tensor]
    labels: list[Tensor]


class OurPipeline:
    """The trainer's loader and preprocessing; images are uint8 between processes.

    With ``images`` the split is repeated or truncated to that many images.

    Raises:
        InputError: torchvision's pipeline cannot read the split: it knows only VOC's classes, and
            needs an object in each image.
    """

    def __init__(
        self,
        folder: Path,
        batch: int,
        workers: int,
        augmentation: str,
        device: torch.device,
        channels_last: bool = False,
        images: int | None = None,
    ) -> None:
        config = DataConfig(
            format="voc",
            root=folder,
            train=SPLIT,
            val=SPLIT,
            image_size=(SHORT, LONG),
            batch_size=batch,
            workers=workers,
            augment=AUGMENTATIONS[augmentation],
            voc=VocConfig(use_difficult=True),  # torchvision's dataset includes them
        )
        start = time.perf_counter()
        self.annotations: Annotations = build_annotations(config, SPLIT)
        self.reading = time.perf_counter() - start  # seconds
        _check_readable_by_theirs(self.annotations)
        if images is not None:
            rows = np.resize(np.arange(len(self.annotations)), images)
            self.annotations = self.annotations.select(rows)
        self._loader = build_train_loader(
            config, self.annotations, seed=0, rank=0, world_size=1, with_masks=False
        )
        self._device = device
        self._preprocess = Preprocessing(channels_last=channels_last).to(device)
        self._epoch = 0
        self.rows: list[int] = []

    def batches(self) -> Iterator[Loaded]:
        """One epoch."""
        self.rows = []
        for batch in self._loader.epoch(self._epoch):
            batch = batch.to(self._device, non_blocking=True)
            self.rows += batch.indices
            targets, images = batch.targets, range(len(batch))
            yield Loaded(
                self._preprocess(batch.images),
                [targets.boxes_of(image) for image in images],
                [targets.labels_of(image) for image in images],
            )
        self._epoch += 1

    def close(self) -> None:
        self._loader.close()


def _check_readable_by_theirs(annotations: Annotations) -> None:
    if annotations.classes != VOC_CLASSES:
        raise InputError(
            f"--root: {annotations.source}: torchvision's pipeline knows only VOC's 20 classes, "
            f"not {some_of(annotations.classes)}; choose a VOCdevkit"
        )
    empty = np.flatnonzero(np.diff(annotations.offsets) == 0)
    if len(empty):
        raise InputError(
            f"--root: {annotations.files[empty[0]]} has no object, which torchvision's pipeline "
            "needs; remove it from the split"
        )


class TheirPipeline:
    """VOCDetection with transforms v2: resized as bytes, flipped, made float, normalized."""

    def __init__(
        self, root: Path, batch: int, workers: int, augmentation: str, device: torch.device
    ) -> None:
        flip = [v2.RandomHorizontalFlip(0.5)] if augmentation != "none" else []
        transforms = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(SHORT, max_size=LONG, antialias=True),
                *flip,
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(IMAGE_MEAN, IMAGE_STD),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )
        dataset = VOCDetection(str(root), year=YEAR, image_set=SPLIT, transforms=transforms)
        self._loader: DataLoader[Any] = DataLoader(
            wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels")),
            batch_size=batch,
            shuffle=augmentation != "none",
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_as_lists,
        )
        self._device = device
        self._padding = GeneralizedRCNNTransform(SHORT, LONG, list(IMAGE_MEAN), list(IMAGE_STD))

    def batches(self) -> Iterator[Loaded]:
        """One epoch."""
        for images, targets in self._loader:
            images = [image.to(self._device, non_blocking=True) for image in images]
            sizes = [(image.shape[1], image.shape[2]) for image in images]
            yield Loaded(
                ImageList(self._padding.batch_images(images), sizes),
                [target["boxes"].to(self._device) for target in targets],
                [target["labels"].to(self._device) - 1 for target in targets],
            )


def _as_lists(samples: list[tuple[Tensor, dict[str, Tensor]]]) -> tuple[tuple[Any, ...], ...]:
    return tuple(zip(*samples, strict=True))
