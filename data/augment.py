"""Augmentation by Albumentations: images, boxes and masks are transformed together.

A config names transforms as ``[{HorizontalFlip: {p: 0.5}}, ...]``; those that contain others, such
as OneOf, list them in the same way under ``transforms``. Every call gets its own seed, so that a
sample is the same in whichever process it is made, and different in every epoch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from data.annotations import MIN_BOX_SIDE
from data.errors import InputError
from data.sampling import stream_seed
from data.transforms import build_transforms, import_albumentations, moves_boxes, one_line


@dataclass(frozen=True)
class Picture:
    """One image and its objects.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        boxes: ``(N, 4)`` float32, xyxy in pixels, inside the image.
        labels: ``(N,)`` int64.
        masks: ``(N, H, W)`` uint8 of 0 and 1, or None.
    """

    image: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: npt.NDArray[np.uint8] | None


# (picture, seed in 0 .. 2**64 - 1) -> picture
Augmentation = Callable[[Picture, int], Picture]


def build_augmentation(
    transforms: Sequence[Mapping[str, Mapping[str, Any]]], with_masks: bool = False
) -> Augmentation:
    """Build one function from the transforms of ``data.augment``.

    Raises:
        InputError: a transform or parameter is unknown, a transform converts pixels to floats, or,
            ``with_masks``, boxes and masks do not match after it.
    """
    flips = [_flip_probability(transform) for transform in transforms]
    if all(p is not None for p in flips):
        return Chain([HorizontalFlip(p) for p in flips if p is not None])
    library = import_albumentations()
    built = build_transforms(library, transforms, with_masks)
    moves = [moves_boxes(library, transform) for transform in built]
    if any(move and p is None for move, p in zip(moves, flips, strict=True)):
        return AlbumentationsPipeline(library, built, moves_boxes=True)
    # All transforms except the flips only change colors, so only the flips move boxes.
    stages: list[Augmentation] = []
    for p, run in groupby(range(len(built)), key=flips.__getitem__):
        some = [built[index] for index in run]
        if p is None:
            stages.append(AlbumentationsPipeline(library, some, moves_boxes=False))
        else:
            stages += [HorizontalFlip(p)] * len(some)
    return Chain(stages)


def _flip_probability(transform: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return p if the transform is a horizontal flip with no other parameter and a valid p."""
    parameters = transform.get("HorizontalFlip")
    if parameters is None or set(parameters) - {"p"}:
        return None
    p = parameters.get("p", 0.5)
    return p if type(p) in (int, float) and 0 <= p <= 1 else None


@dataclass(frozen=True)
class Chain:
    """Applies augmentations one after the other, each with its own seed."""

    stages: Sequence[Augmentation]

    def __call__(self, picture: Picture, seed: int) -> Picture:
        for number, stage in enumerate(self.stages):
            picture = stage(picture, stream_seed(seed, 0, number))
        return picture


@dataclass(frozen=True)
class HorizontalFlip:
    """Flips like Albumentations' transform, without the overhead of its Compose.

    Compose's checks and conversions of boxes cost four times the flip itself, and a flip only is
    the paper's augmentation and the default.
    """

    p: float

    def __call__(self, picture: Picture, seed: int) -> Picture:
        if (seed >> 11) / 2**53 >= self.p:
            return picture
        width = picture.image.shape[1]
        boxes = picture.boxes.copy()
        boxes[:, 0], boxes[:, 2] = width - picture.boxes[:, 2], width - picture.boxes[:, 0]
        masks = picture.masks
        if masks is not None:
            masks = np.ascontiguousarray(masks[:, :, ::-1])
        image = np.asarray(cv2.flip(picture.image, 1), np.uint8)
        return Picture(image, boxes, picture.labels, masks)


class AlbumentationsPipeline:
    """Applies any transforms, reseeded for each sample.

    Albumentations itself would draw from one stream per process, and workers could repeat each
    other.
    """

    def __init__(self, library: ModuleType, transforms: list[Any], moves_boxes: bool) -> None:
        self._moves_boxes = moves_boxes
        boxes = None
        if moves_boxes:
            boxes = library.BboxParams(
                format="pascal_voc",
                label_fields=["rows"],
                clip=True,
                filter_invalid_bboxes=True,
                min_width=MIN_BOX_SIDE,
                min_height=MIN_BOX_SIDE,
            )
        self._compose = library.Compose(transforms, bbox_params=boxes)

    def __call__(self, picture: Picture, seed: int) -> Picture:
        """Apply all transforms; objects that leave the image are dropped.

        Raises:
            InputError: a transform fails on this image, or does not return ``(H, W, 3)`` uint8.
        """
        arguments: dict[str, Any] = {"image": picture.image}
        if self._moves_boxes:
            arguments.update(bboxes=picture.boxes, rows=np.arange(len(picture.boxes)))
            if picture.masks is not None:
                # Albumentations refuses a stack of no masks, so pass an unused empty mask
                nothing = np.zeros((1, *picture.image.shape[:2]), np.uint8)
                arguments["masks"] = picture.masks if len(picture.masks) else nothing
        result = self._run(arguments, seed)
        image = result["image"]
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise InputError(
                "data.augment: the transforms must return RGB uint8 pixels, which are normalized "
                "on the device; remove the transform that converts them"
            )
        if not self._moves_boxes:
            return Picture(image, picture.boxes, picture.labels, picture.masks)
        return _select(picture, np.ascontiguousarray(image), result)

    def _run(self, arguments: Mapping[str, Any], seed: int) -> dict[str, Any]:
        # One stream for all: set_random_seed would give each transform the same numbers, so that
        # two with p = 0.5 would always apply together or not at all.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        try:
            result: dict[str, Any] = self._compose(**arguments)
        except Exception as error:  # whatever a transform raises
            raise InputError(
                f"data.augment: {type(error).__name__}: {one_line(error)}; change the transform "
                "or remove it"
            ) from error
        return result


def _select(picture: Picture, image: npt.NDArray[np.uint8], result: Mapping[str, Any]) -> Picture:
    """Select boxes, labels and masks of the objects that remain.

    Albumentations drops boxes but not their masks, and keeps the box of an object whose visible
    part was cropped away; the row numbers and mask pixels show which objects remain.
    """
    rows = np.asarray(result["rows"], np.int64).reshape(-1)
    boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
    labels, masks = picture.labels[rows], None
    if picture.masks is not None:
        masks = np.ascontiguousarray(np.asarray(result["masks"])[rows])
    return only_seen(Picture(image, boxes, labels, masks))


def only_seen(picture: Picture) -> Picture:
    """Drop objects whose mask has no pixel; without masks, all objects are kept."""
    if picture.masks is None:
        return picture
    seen = picture.masks.max(axis=(1, 2), initial=0) > 0
    if seen.all():
        return picture
    boxes, labels, masks = picture.boxes[seen], picture.labels[seen], picture.masks[seen]
    return Picture(picture.image, boxes, labels, masks)
