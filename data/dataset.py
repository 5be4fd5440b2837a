"""Annotations and image files to samples: decoded, augmented, resized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations, Rows
from data.augment import Augmentation, Picture, only_seen
from data.errors import InputError
from data.image_files import ImageFiles
from data.images import DamagedImageError, resize_image, resize_masks, resized_size
from data.sampling import stream_seed


@dataclass(frozen=True)
class Sample:
    """One image on its way into a batch.

    Attributes:
        picture: pixels and objects, augmented and resized.
        row: the image's row in the annotations.
        damaged: what was wrong with images that this one stands in for.
    """

    picture: Picture
    row: int
    damaged: tuple[str, ...] = ()


def choose_images(
    annotations: Annotations, use_difficult: bool, drop_empty: bool, min_side: int
) -> Rows:
    """``(R,)`` rows of the images to train on.

    The paper drops images without an object to train on and images smaller than 32 px. Raises
    InputError where no image or no object is left.
    """
    large = annotations.sizes.min(axis=1, initial=2**31 - 1) >= min_side
    counts = annotations.training_counts(use_difficult)
    rows = np.flatnonzero(large & (counts > 0) if drop_empty else large)
    if not len(rows):
        raise InputError(
            f"{annotations.source}: none of its {len(annotations)} images can be trained on; "
            "check data.train, data.drop_empty and data.min_image_side"
        )
    if not counts[rows].any():
        raise InputError(
            f"{annotations.summary()}: no object to train on (crowds and boxes thinner than a "
            "pixel never are, difficult ones with data.voc.use_difficult); check data.train and "
            "the annotations"
        )
    return rows


@dataclass(frozen=True)
class TrainingDataset:
    """Samples by epoch and position in the epoch's index space (see ``data.sampling``).

    Attributes:
        annotations: the images and objects.
        images: their pixels.
        rows: the images to train on; position ``p`` shows ``rows[p % len(rows)]``.
        augmentation: applied before resizing.
        seed: with epoch and position it seeds the augmentation.
        use_difficult: whether objects marked difficult are trained on.
        with_masks: whether samples carry masks.
        replacements: how many damaged images in a row may be replaced by the next one.
    """

    annotations: Annotations
    images: ImageFiles
    rows: Rows
    augmentation: Augmentation
    seed: int
    use_difficult: bool
    with_masks: bool
    replacements: int = 0

    def __post_init__(self) -> None:
        if self.with_masks and self.annotations.masks is None:
            raise InputError(
                f"{self.annotations.source}: has no segmentations, which this detector learns "
                "from; choose another detector.type or data with masks"
            )

    def count_boxes_as_masks(self) -> tuple[int, int]:
        """How many of the objects to train on have no mask but their box, and how many there are.

        That is what COCO's own tools make of an object without a segmentation.
        """
        trained = self.annotations.trained(self.use_difficult)
        trained &= np.isin(self.annotations.object_images(), self.rows)
        masks = self.annotations.masks
        with_mask = trained & (False if masks is None else masks.present())
        total = int(np.count_nonzero(trained))
        return total - int(np.count_nonzero(with_mask)), total

    def sample(self, epoch: int, position: int, image_size: tuple[int, int]) -> Sample:
        """Decode, augment and resize one image; a damaged one gives way to the next row.

        Args:
            image_size: short side and longest long side after resizing.

        Raises:
            DamagedImageError: damaged, and no replacements are left.
            InputError: the image or its augmentation is impossible otherwise.
        """
        seed = stream_seed(self.seed, epoch, position)
        damaged: list[str] = []
        while True:
            row = int(self.rows[(position + len(damaged)) % len(self.rows)])
            try:
                picture = resize_picture(self._picture(row, seed), image_size)
                return Sample(picture, row, tuple(damaged))
            except DamagedImageError as error:
                if len(damaged) >= min(self.replacements, len(self.rows) - 1):
                    raise
                damaged.append(error.complaint)

    def _picture(self, row: int, seed: int) -> Picture:
        image = self.images.read(row)
        boxes, objects = self._objects(row)
        labels = self.annotations.labels[objects].astype(np.int64)
        masks = self.annotations.decode_masks(row, objects) if self.with_masks else None
        try:
            # Here, too: not all augmentations look at masks, and all must leave the same objects.
            return self.augmentation(only_seen(Picture(image, boxes, labels, masks)), seed)
        except InputError as error:
            raise InputError(f"{self.images.path(row)}: {error}") from error.__cause__

    def _objects(self, row: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """``(N, 4)`` boxes clipped to the image, and the rows of their objects."""
        objects = self.annotations.training_objects(row, self.use_difficult)
        height, width = self.images.size(row)
        boxes = self.annotations.boxes[objects].clip(0, (width, height, width, height))
        return boxes.astype(np.float32), objects


@dataclass(frozen=True)
class EvaluationDataset:
    """Images as the detector shall see them, without objects: scores need the annotations alone."""

    images: ImageFiles
    image_size: tuple[int, int]

    def sample(self, row: int) -> Sample:
        """Decode and resize one image. Raises InputError as ``read_image`` does."""
        image = self.images.read(row)
        picture = Picture(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None)
        return Sample(resize_picture(picture, self.image_size), row)


def resize_picture(picture: Picture, image_size: tuple[int, int]) -> Picture:
    """Resize pixels, boxes (by the exact ratio of the sizes, per axis) and masks together."""
    before_hw = (picture.image.shape[0], picture.image.shape[1])
    after_hw = resized_size(before_hw, image_size)
    x, y = after_hw[1] / before_hw[1], after_hw[0] / before_hw[0]
    boxes = (picture.boxes * np.array((x, y, x, y))).astype(np.float32)
    masks = picture.masks
    if masks is not None:
        masks = resize_masks(masks, after_hw)
    return Picture(resize_image(picture.image, after_hw), boxes, picture.labels, masks)
