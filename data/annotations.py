"""One flat store of images, boxes, classes, flags and masks.

Every loader fills it; training reads its targets from it, and the evaluator its ground truth. It
consists of a few arrays however many images there are, so that worker processes share its memory
pages (with lists of dicts, reference counting would copy page after page in each worker).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from data.errors import InputError, shown, some_of
from data.masks import (
    MaskArray,
    MaskStore,
    concatenate_masks,
    decode_objects,
    empty_masks,
)

Rows = npt.NDArray[np.int64]

ENOUGH_TO_JUDGE = 10  # with at least this many boxes, the majority shows the box format

# In pixels, inside the image. Boxes with a shorter side are not trained on, as in the paper's
# toolbox: they are annotation errors, or what a crop left of an object.
MIN_BOX_SIDE = 1.0
# float32 holds every whole pixel up to here; nothing beyond is a coordinate of an image.
LARGEST_COORDINATE = float(1 << 24)
NO_CATEGORY = -(1 << 62)  # ids up to this mean "no category"; no file contains such ids


@dataclass(frozen=True)
class Annotations:
    """``I`` images and their ``N`` objects; the objects of image ``i`` stand together.

    Boxes are xyxy in pixels of the original image, continuous coordinates: a VOC box
    ``(xmin, ymin, xmax, ymax)``, 1-based and inclusive, is ``(xmin - 1, ymin - 1, xmax, ymax)``
    here, a COCO box ``(x, y, w, h)`` is ``(x, y, x + w, y + h)``. Every box has area inside its
    image; VOC boxes lie inside it, COCO boxes are kept as the file has them and may stick out.

    Attributes:
        source: name for error messages (a file or folder, and the split).
        split: the annotation split's name, as in ``comp4_det_<split>_<class>.txt``.
        classes: ``K`` class names; a label is an index into them.
        category_ids: ``(K,)`` int64, the dataset's own id of each class (1 .. K for VOC); at most
            ``NO_CATEGORY`` for classes that its file does not list.
        names: ``(I,)`` str, VOC's name of each image (its file name without the extension).
        files: ``(I,)`` str, image files, relative to the root of the data.
        image_ids: ``(I,)`` int64, COCO's image ids (1 .. I for VOC).
        sizes: ``(I, 2)`` int32, height and width in pixels.
        offsets: ``(I + 1,)`` int64; objects of image ``i`` are ``offsets[i]:offsets[i + 1]``.
        boxes: ``(N, 4)`` float64, xyxy.
        labels: ``(N,)`` int32, 0-based.
        areas: ``(N,)`` float64: COCO's ``area`` (of the mask), or the area of the box.
        difficult: ``(N,)`` bool (VOC; an optional key in COCO files): ignored in VOC scores.
        crowd: ``(N,)`` bool (COCO ``iscrowd``): ignore regions in scores, never trained on.
        masks: the segmentations, or None where the format has none.
        dropped_from: ``(D,)`` int64, the images of boxes without area, which were left out.
        ids_contradict: the annotation files use conflicting ids, so not all ids are the files' own.
        coco_files: the annotation files that were read; empty for VOC (one file per image).
    """

    source: str
    split: str
    classes: tuple[str, ...]
    category_ids: npt.NDArray[np.int64]
    names: npt.NDArray[np.str_]
    files: npt.NDArray[np.str_]
    image_ids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int32]
    areas: npt.NDArray[np.float64]
    difficult: npt.NDArray[np.bool_]
    crowd: npt.NDArray[np.bool_]
    masks: MaskStore | None = None
    dropped_from: Rows = field(default_factory=lambda: np.zeros(0, np.int64))
    ids_contradict: bool = False
    coco_files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files)

    @property
    def dropped(self) -> int:
        """Number of boxes without area that were left out."""
        return len(self.dropped_from)

    def summary(self) -> str:
        """Return one line with the counts of images and objects, and of what was left out."""
        counts = f"{len(self)} images, {len(self.boxes)} objects of {len(self.classes)} classes"
        flags = [
            f"{number} {one if number == 1 else many}"
            for number, one, many in (
                (int(self.difficult.sum()), "difficult", "difficult"),
                (int(self.crowd.sum()), "crowd", "crowds"),
                (int(self.thin.sum()), "thinner than a pixel", "thinner than a pixel"),
                (self.dropped, "box without area dropped", "boxes without area dropped"),
            )
            if number
        ]
        return f"{self.source}: {', '.join([counts, *flags])}"

    def digest(self) -> str:
        """Return a hexadecimal BLAKE2 digest of all images, objects and masks.

        The location of the images and their pixels are not included.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([self.classes, self.names.tolist()]).encode())
        arrays = (
            self.sizes,
            self.offsets,
            self.boxes,
            self.labels,
            self.areas,
            self.difficult,
            self.crowd,
            *(() if self.masks is None else vars(self.masks).values()),
        )
        for array in arrays:
            digest.update(array.tobytes())
        return digest.hexdigest()

    def objects_of(self, image: int) -> slice:
        """Return the slice of object rows that belong to one image."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def object_images(self) -> Rows:
        """``(N,)``: the row of the image that each object belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """``(N,)``: the objects that count in scores, which are neither difficult nor crowds."""
        return ~(self.difficult | self.crowd)

    @property
    def thin(self) -> npt.NDArray[np.bool_]:
        """``(N,)``: the objects with a side shorter than ``MIN_BOX_SIDE`` inside their image."""
        return _is_thin(self.boxes, self.sizes[self.object_images()])

    def trained(self, use_difficult: bool) -> npt.NDArray[np.bool_]:
        """``(N,)``: the objects to train on: no crowds, none that is thin, difficult on request."""
        return self._trained(slice(None), self.sizes[self.object_images()], use_difficult)

    def _trained(
        self, rows: slice, sizes_hw: npt.NDArray[np.int32], use_difficult: bool
    ) -> npt.NDArray[np.bool_]:
        left_out = self.crowd[rows] | _is_thin(self.boxes[rows], sizes_hw)
        return ~(left_out if use_difficult else left_out | self.difficult[rows])

    def training_objects(self, image: int, use_difficult: bool = False) -> Rows:
        """Return the object rows of one image to train on, selected as in ``trained``."""
        rows = self.objects_of(image)
        return np.flatnonzero(self._trained(rows, self.sizes[image], use_difficult)) + rows.start

    def training_counts(self, use_difficult: bool) -> Rows:
        """``(I,)``: the number of ``training_objects`` of every image."""
        before = np.concatenate([[0], np.cumsum(self.trained(use_difficult))])
        return before[self.offsets[1:]] - before[self.offsets[:-1]]

    def decode_masks(self, image: int, rows: Rows) -> MaskArray:
        """Decode objects of one image to ``(len(rows), height, width)`` uint8 of 0 and 1.

        The masks have the image's original size. Objects without a segmentation get their box.
        """
        masks = empty_masks(len(self.boxes)) if self.masks is None else self.masks
        height, width = self.sizes[image].tolist()
        return decode_objects(masks, rows, self.boxes[rows], (height, width))

    def select(self, images: npt.ArrayLike) -> Annotations:
        """Return some images with their objects, in the order of ``images`` (rows)."""
        chosen = np.asarray(images, np.int64)
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], counts)
        dropped = np.bincount(self.dropped_from, minlength=len(self))[chosen]
        return replace(
            self,
            names=self.names[chosen],
            files=self.files[chosen],
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            offsets=offsets,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            areas=self.areas[rows],
            difficult=self.difficult[rows],
            crowd=self.crowd[rows],
            masks=None if self.masks is None else self.masks.select(rows),
            dropped_from=np.repeat(np.arange(len(chosen)), dropped),
        )

    def relabel(self, classes: Sequence[str]) -> Annotations:
        """Return the same objects with labels that index ``classes``; category ids follow names.

        New classes each get an id of their own, at most ``NO_CATEGORY``.

        Raises:
            InputError: a class that has objects is not among ``classes``.
        """
        if tuple(classes) == self.classes:
            return self
        counts = np.bincount(self.labels, minlength=len(self.classes))
        for label in np.flatnonzero(counts).tolist():
            if self.classes[label] not in classes:
                raise self._unlisted(label, int(counts[label]), classes)
        new = {name: label for label, name in enumerate(classes)}
        known = dict(zip(self.classes, self.category_ids.tolist(), strict=True))
        ids = [
            known[name] if known.get(name, NO_CATEGORY) > NO_CATEGORY else NO_CATEGORY - label
            for name, label in new.items()
        ]
        table = np.array([new.get(name, -1) for name in self.classes], np.int32)
        return replace(
            self,
            classes=tuple(classes),
            category_ids=np.array(ids, np.int64),
            labels=table[self.labels] if len(table) else self.labels,
        )

    def with_category_ids(self, ids: Mapping[str, int]) -> Annotations:
        """Give classes without a category the id of their name, unless another class has it."""
        taken = set(self.category_ids.tolist())
        own = [
            ids[name] if known <= NO_CATEGORY and ids.get(name, known) not in taken else known
            for name, known in zip(self.classes, self.category_ids.tolist(), strict=True)
        ]
        return replace(self, category_ids=np.array(own, np.int64))

    def _unlisted(self, label: int, count: int, classes: Sequence[str]) -> InputError:
        first = int(np.flatnonzero(self.labels == label)[0])
        image = int(np.searchsorted(self.offsets, first, side="right")) - 1
        return InputError(
            f"{self.source}: class {shown(self.classes[label])} (objects: {count}, the first in "
            f"image {shown(str(self.names[image]))}) is not one of {some_of(classes)}; "
            "list it in data.classes, or rename or remove these objects"
        )


def _is_thin(
    boxes_xyxy: npt.NDArray[np.float64], sizes_hw: npt.NDArray[np.int32]
) -> npt.NDArray[np.bool_]:
    """``(N, 4)`` boxes and ``(N, 2)`` sizes of their images, or one size for all -> ``(N,)``."""
    borders = sizes_hw[..., ::-1]
    sides = np.minimum(boxes_xyxy[:, 2:], borders) - np.maximum(boxes_xyxy[:, :2], 0)
    return np.asarray((sides < MIN_BOX_SIDE).any(axis=1))


def arrange_objects(
    images: Rows,
    boxes_xyxy: npt.NDArray[np.float64],
    sizes_hw: npt.NDArray[np.int32],
) -> tuple[Rows, Rows, Rows]:
    """Sort objects by image and drop those that have no area inside their image.

    Args:
        images: ``(M,)`` the image row of each object.
        boxes_xyxy: ``(M, 4)`` in pixels.
        sizes_hw: ``(I, 2)`` heights and widths of the images in pixels.

    Returns:
        ``(N,)`` rows of the objects that are kept, in their old order within an image,
        ``(I + 1,)`` offsets into them, and ``(M - N,)`` images of the dropped objects.
    """
    height, width = sizes_hw[images].T
    inside_width = np.minimum(boxes_xyxy[:, 2], width) - np.maximum(boxes_xyxy[:, 0], 0)
    inside_height = np.minimum(boxes_xyxy[:, 3], height) - np.maximum(boxes_xyxy[:, 1], 0)
    has_area = (inside_width > 0) & (inside_height > 0)
    kept = np.flatnonzero(has_area)
    rows = kept[np.argsort(images[kept], kind="stable")]
    counts = np.bincount(images[kept], minlength=len(sizes_hw))
    return rows, np.concatenate([[0], np.cumsum(counts)]), images[~has_area]


def concatenate(parts: Sequence[Annotations]) -> Annotations:
    """Concatenate several splits, which must have the same classes.

    Image ids are kept if they are distinct, and become 1, 2, ... otherwise. Category ids are those
    of the first split that has the class.

    Raises:
        InputError: an image is in two of the splits.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    files = np.concatenate([part.files for part in parts])
    unique, counts = np.unique(files, return_counts=True)
    source = " + ".join(part.source for part in parts)
    if len(unique) < len(files):
        doubled = str(unique[counts > 1][0])
        holding = [part.source for part in parts if doubled in part.files]
        where = f"in {' and '.join(holding)}" if len(holding) > 1 else f"twice in {holding[0]}"
        raise InputError(f"{source}: the image {shown(doubled)} is {where}; keep it once")
    image_ids = np.concatenate([part.image_ids for part in parts])
    ids_contradict = len(np.unique(image_ids)) < len(image_ids)
    if ids_contradict:
        image_ids = np.arange(1, len(image_ids) + 1)
    for part in parts[1:]:
        ids = dict(zip(part.classes, part.category_ids.tolist(), strict=True))
        first = first.with_category_ids(ids)
    for part in parts:
        others = part.category_ids != first.category_ids
        ids_contradict |= bool((others & (part.category_ids > NO_CATEGORY)).any())
    objects = np.cumsum([0] + [len(part.boxes) for part in parts])
    images = np.cumsum([0] + [len(part) for part in parts])
    starts = [part.offsets[:-1] + objects[i] for i, part in enumerate(parts)]
    masks = None
    if any(part.masks is not None for part in parts):
        masks = concatenate_masks([part.masks or empty_masks(len(part.boxes)) for part in parts])
    return replace(
        first,
        source=source,
        split="+".join(dict.fromkeys(part.split for part in parts)),
        names=np.concatenate([part.names for part in parts]),
        files=files,
        image_ids=image_ids,
        sizes=np.concatenate([part.sizes for part in parts]),
        offsets=np.concatenate([*starts, objects[-1:]]),
        boxes=np.concatenate([part.boxes for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        areas=np.concatenate([part.areas for part in parts]),
        difficult=np.concatenate([part.difficult for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        masks=masks,
        dropped_from=np.concatenate(
            [part.dropped_from + images[i] for i, part in enumerate(parts)]
        ),
        ids_contradict=ids_contradict or any(part.ids_contradict for part in parts),
        coco_files=tuple(file for part in parts for file in part.coco_files),
    )
