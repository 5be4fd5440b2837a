"""Image sizes that an annotation file does not give, read from the images themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import InputError, shown
from data.images import DamagedImageError, read_image
from data.paths import check_inside

# pycocotools' run lengths are safe up to this (its buffer holds 6 characters per number).
MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class Access:
    """Which files a loader of annotations may open, and how.

    Attributes:
        follow_links: also open lists, annotations and images that are links to outside the root.
        ignore_exif: read the size of the stored pixels, without the EXIF orientation.
        max_pixels: larger images are not opened.
    """

    follow_links: bool = False
    ignore_exif: bool = False
    max_pixels: int = MOST_PIXELS


OWN_FILES = Access()  # only files under the root; EXIF orientation applied


def complete_sizes(
    root: Path,
    files: Sequence[str],
    sizes_hw: npt.NDArray[np.int64],
    source: str,
    access: Access,
) -> npt.NDArray[np.int32]:
    """Fill in sizes that are 0; only those images are opened (and decoded: about 5 ms each).

    Args:
        root: folder of the data.
        files: ``I`` image files, relative to it.
        sizes_hw: ``(I, 2)`` height and width in pixels, 0 if unknown.
        source: name of the annotations for messages.
        access: how images are opened.

    Raises:
        InputError: an image that must be opened is missing or damaged, or an image has too many
            pixels.
    """
    sizes = sizes_hw.copy()
    for row in np.flatnonzero((sizes == 0).any(axis=1)).tolist():
        image = _image_to_open(root, files[row], source, access.follow_links)
        sizes[row] = _read_size(image, access)
    too_large = np.flatnonzero(sizes[:, 0] * sizes[:, 1] > MOST_PIXELS)
    if len(too_large):
        row = int(too_large[0])
        raise InputError(
            f"{source}: image {shown(files[row])} of {sizes[row].tolist()} (height, width) has "
            f"more than {MOST_PIXELS} pixels; correct its size, or split it into tiles"
        )
    return sizes.astype(np.int32)


def _image_to_open(root: Path, file: str, source: str, follow_links: bool) -> Path:
    image = root / file
    if not os.path.isfile(image):
        raise InputError(
            f"{source}: image {shown(file)} has no height and width in its annotation, and the "
            "image file is missing; add them, or add the image"
        )
    if not follow_links:
        check_inside(root, image, source)
    return image


def _read_size(image: Path, access: Access) -> tuple[int, int]:
    try:
        height, width = read_image(image, None, access.max_pixels, access.ignore_exif).shape[:2]
    except DamagedImageError as error:  # it cannot be skipped either, because its size is unknown
        raise InputError(
            f"{error.complaint}, and it cannot be skipped because its annotation has no height and "
            "width; replace the file, or add its size to the annotation"
        ) from None
    return height, width
