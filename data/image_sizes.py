"""Heights and widths that an annotation file does not give, from the images themselves."""

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

# pycocotools' run lengths are safe up to here (its buffer holds 6 characters a number).
MOST_PIXELS = 1 << 28


@dataclass(frozen=True)
class Access:
    """What a loader of annotations may open, and how.

    Attributes:
        follow_links: lists, annotations and images that are links to outside the root, too.
        ignore_exif: sizes that are read from images are those of the stored pixels.
        max_pixels: larger images are not opened.
    """

    follow_links: bool = False
    ignore_exif: bool = False
    max_pixels: int = MOST_PIXELS


OWN_FILES = Access()  # those under the root, images turned as EXIF says


def complete_sizes(
    root: Path,
    files: Sequence[str],
    sizes_hw: npt.NDArray[np.int64],
    source: str,
    access: Access,
) -> npt.NDArray[np.int32]:
    """Fill in the sizes that are 0; only those images are opened (and decoded: about 5 ms each).

    Args:
        root: folder of the data.
        files: ``I`` image files, relative to it.
        sizes_hw: ``(I, 2)`` height and width in pixels, 0 where not known.
        source: what messages call the annotations.
        access: how images are opened.

    Raises:
        InputError: an image that is needed is missing or damaged, or one has too many pixels.
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
            f"more than {MOST_PIXELS} pixels; correct its size, or cut it into tiles"
        )
    return sizes.astype(np.int32)


def _image_to_open(root: Path, file: str, source: str, follow_links: bool) -> Path:
    image = root / file
    if not os.path.isfile(image):
        raise InputError(
            f"{source}: image {shown(file)} has no height and width in its annotation, and the "
            "image file is missing; add them, or put the image there"
        )
    if not follow_links:
        check_inside(root, image, source)
    return image


def _read_size(image: Path, access: Access) -> tuple[int, int]:
    try:
        height, width = read_image(image, None, access.max_pixels, access.ignore_exif).shape[:2]
    except DamagedImageError as error:  # nothing trains on a size that is not known
        raise InputError(
            f"{error.complaint}, and its annotation gives no height and width to skip it by; "
            "replace the file, or write its size into the annotation"
        ) from None
    return height, width
