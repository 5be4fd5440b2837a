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
        damaged: complaints about damaged images that this one replaces.
    """

    picture: Picture
    row: int
    damaged: tuple[str, ...] = ()


def choose_images(
    annotations: Annotations, use_difficult: bool, drop_empty: bool, min_side: int
) -> Rows:
    """Return the ``(R,)`` rows of the images to train on.

    The paper drops images without an object to train on and images smaller than 32 px.

    Raises:
        InputError: no image or no object is left.
    """
    large = annotations.sizes.min(axis=1, initial=2**31 - 1) >= min_side
    counts = annotations.training_counts(use_difficult)
    rows = np.flatnonzero(large & (counts > 0) if drop_empty else large)
    if not len(rows):
        raise InputError(
            f"{annotations.source}: none of its {len(annotations)} images can be used for "
            "training; check data.train, data.drop_empty and data.min_image_side"
        )
    if not counts[rows].any():
        raise InputError(
            f"{annotations.summary()}: no object to train on (crowds and boxes thinner than a "
            "pixel are never used, difficult ones only with data.voc.use_difficult); check "
            "data.train and the annotations"
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
        seed: seeds the augmentation, together with epoch and position.
        use_difficult: train on objects marked difficult.
        with_masks: include masks in the samples.
        replacements: maximum number of successive damaged images to skip for the next one.
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
                f"{self.annotations.source}: has no segmentations, which this detector needs for "
                "training; choose another detector.type or data with masks"
            )

    def count_boxes_as_masks(self) -> tuple[int, int]:
        """Count objects to train on without segmentation, whose box is their mask, and all of them.

        COCO's own tools treat an object without a segmentation in the same way.
        """
        trained = self.annotations.trained(self.use_difficult)
        trained &= np.isin(self.annotations.object_images(), self.rows)
        masks = self.annotations.masks
        with_mask = trained & (False if masks is None else masks.present())
        total = int(np.count_nonzero(trained))
        return total - int(np.count_nonzero(with_mask)), total

    def sample(self, epoch: int, position: int, image_size: tuple[int, int]) -> Sample:
        """Decode, augment and resize one image; a damaged one is replaced by the next row.

        Args:
            epoch: the epoch.
            position: position in the epoch's index space.
            image_size: short side and maximum long side after resizing.

        Raises:
            DamagedImageError: the image is damaged, and no replacements are left.
            InputError: the image cannot be used for another reason, or its augmentation failed.
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
            # Also needed here: not all augmentations check masks, and the objects must not depend
            # on the augmentation.
            return self.augmentation(only_seen(Picture(image, boxes, labels, masks)), seed)
        except InputError as error:
            raise InputError(f"{self.images.path(row)}: {error}") from error.__cause__

    def _objects(self, row: int) -> tuple[npt.NDArray[np.float32], Rows]:
        """Return ``(N, 4)`` boxes clipped to the image, and the rows of their objects."""
        objects = self.annotations.training_objects(row, self.use_difficult)
        height, width = self.images.size(row)
        boxes = self.annotations.boxes[objects].clip(0, (width, height, width, height))
        return boxes.astype(np.float32), objects


@dataclass(frozen=True)
class EvaluationDataset:
    """Images as the detector sees them, without objects: scoring reads those of the annotations."""

    images: ImageFiles
    image_size: tuple[int, int]

    def sample(self, row: int) -> Sample:
        """Decode and resize one image.

        Raises:
            InputError: the image cannot be used, as in ``read_image``.
        """
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
