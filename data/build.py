"""Load the annotations of a split from the data block of a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from data.annotations import ENOUGH_TO_JUDGE, NO_CATEGORY, Annotations, concatenate
from data.config import DataConfig
from data.errors import InputError
from data.formats.coco import load_category_ids, load_coco
from data.formats.shapes import load_shapes
from data.formats.voc import load_voc
from data.image_sizes import Access
from data.paths import require_images

log = logging.getLogger(__name__)

Classes = Sequence[str] | None


def build_annotations(
    config: DataConfig,
    split: str | Sequence[str],
    classes: Classes = None,
    check_images: bool = True,
) -> Annotations:
    """Load one or several splits (``config.train``, ``config.val`` or any other of the data).

    Args:
        config: the data block.
        split: a split's name, or several that are concatenated.
        classes: class names in label order, of a checkpoint or of the train split; None takes
            ``config.classes``, or the format's default if that is null.
        check_images: check that all images exist. Scoring result files needs none of them.

    Raises:
        InputError: the data cannot be used; the message names the file, the object and the cure.
    """
    splits = [split] if isinstance(split, str) else list(split)
    annotations = FORMATS[config.format](config, splits, classes or config.classes)
    if annotations.dropped and not len(annotations.boxes):
        raise InputError(
            f"{annotations.source}: none of its {annotations.dropped} boxes has an area inside "
            "its image; correct the boxes or the image sizes"
        )
    _refuse_fractions(annotations)
    if config.limit is not None:
        annotations = annotations.select(range(min(config.limit, len(annotations))))
    if check_images:
        require_images(
            config.root, annotations.files.tolist(), annotations.source, config.follow_links
        )
    return annotations


def _refuse_fractions(annotations: Annotations) -> None:
    """Raise InputError if most boxes lie in the first pixel: they are fractions of image sizes."""
    sizes_hw = annotations.sizes[annotations.object_images()]
    first_pixel = np.all((annotations.boxes[:, 2:] <= 1) & (sizes_hw > 1), axis=1)
    inside, boxes = int(np.count_nonzero(first_pixel)), len(annotations.boxes)
    if boxes >= ENOUGH_TO_JUDGE and inside > boxes / 2:
        raise InputError(
            f"{annotations.source}: {inside} of its {boxes} boxes lie in the first pixel of their "
            "image; if they are fractions of its size, multiply them by its width and height"
        )


def known_classes(config: DataConfig) -> tuple[str, ...] | None:
    """Return the class names of a run on these data: those listed, else those of the train split.

    Returns None, with a warning, if the train split cannot be read; a split then has its own names.
    """
    if config.classes is not None:
        return config.classes
    try:
        return build_annotations(config, config.train, check_images=False).classes
    except InputError as error:
        log.warning("using the class names of the scored split, because: %s", error)
        return None


def _load_voc(config: DataConfig, splits: Sequence[str], classes: Classes) -> Annotations:
    zero_based = config.voc.coordinates == "zero_based"
    return load_voc(config.root, splits, classes, zero_based, _access(config))


def _access(config: DataConfig) -> Access:
    return Access(config.follow_links, config.exif == "ignore", config.max_image_pixels)


def _load_coco(config: DataConfig, splits: Sequence[str], classes: Classes) -> Annotations:
    parts: list[Annotations] = []
    for split in splits:
        shared = parts[0].classes if parts else classes
        parts.append(load_coco(config.root, split, shared, _access(config)))
    together = concatenate(parts)
    # Another split's file may lack categories, but detections of these classes need ids, too.
    trained = [config.train] if isinstance(config.train, str) else config.train
    for split in trained:
        if (together.category_ids <= NO_CATEGORY).any() and split not in splits:
            try:
                ids = load_category_ids(config.root, split, config.follow_links)
            except InputError as error:
                log.warning("%s: some category ids are unknown: %s", together.source, error)
            else:
                together = together.with_category_ids(ids)
    return together


def _load_shapes(config: DataConfig, splits: Sequence[str], classes: Classes) -> Annotations:
    annotations = concatenate([load_shapes(config.root, split, config.shapes) for split in splits])
    return annotations if classes is None else annotations.relabel(classes)


FORMATS: dict[str, Callable[[DataConfig, Sequence[str], Classes], Annotations]] = {
    "voc": _load_voc,
    "coco": _load_coco,
    "shapes": _load_shapes,
}
