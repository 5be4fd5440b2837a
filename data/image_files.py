"""The images of a split by row: decoded on each access, or once and cached in memory."""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import os
from pathlib import Path

import numpy as np

from data.annotations import Annotations
from data.config import DataConfig
from data.errors import InputError
from data.images import Pixels, read_image
from data.parent_process import start_method

log = logging.getLogger(__name__)


class ImageFiles:
    """Decodes an image on each access.

    Args:
        annotations: the images; only their files and sizes are read.
        root: the folder that the files are relative to.
        max_pixels: larger images are refused.
        ignore_exif: never apply the EXIF orientation.
    """

    def __init__(
        self, annotations: Annotations, root: Path, max_pixels: int, ignore_exif: bool = False
    ) -> None:
        self._files = annotations.files
        self._sizes = annotations.sizes
        self._root = root
        self._max_pixels = max_pixels
        self._ignore_exif = ignore_exif

    def path(self, row: int) -> Path:
        """Return the file of one image."""
        return self._root / str(self._files[row])

    def size(self, row: int) -> tuple[int, int]:
        """Return the annotated height and width."""
        height, width = self._sizes[row].tolist()
        return height, width

    def read(self, row: int) -> Pixels:
        """Decode one image to ``(H, W, 3)`` uint8 RGB, which the caller may modify.

        Raises:
            InputError: the image cannot be used, as in ``read_image``.
        """
        return read_image(self.path(row), self.size(row), self._max_pixels, self._ignore_exif)


class CachedImages(ImageFiles):
    """Decodes each image once and caches its pixels (3 bytes each) at the original size.

    The pixels are in one anonymous mapping that worker processes inherit: all of them can read what
    one has decoded, and memory is only used for images that were decoded. Each rank has its own
    cache.

    Raises:
        InputError: the images do not fit into the machine's memory, or worker processes are not
            forked and so inherit no memory.
    """

    def __init__(
        self, annotations: Annotations, root: Path, max_pixels: int, ignore_exif: bool = False
    ) -> None:
        super().__init__(annotations, root, max_pixels, ignore_exif)
        self._ends = np.cumsum(self._sizes.astype(np.int64).prod(axis=1) * 3)
        total = int(self._ends[-1]) if len(self._ends) else 0
        _check_room(total, annotations.source)
        self._memory = mmap.mmap(-1, max(1, total))
        self._filled = np.frombuffer(mmap.mmap(-1, max(1, len(self._ends))), np.uint8)
        # For ordering, not for exclusion (two workers would write the same bytes): a process that
        # sees the flag also sees the pixels, on any processor.
        self._lock = multiprocessing.get_context("fork").Lock()
        log.info(
            "%s: decoded images are cached in memory, up to %.2f GB",
            annotations.source,
            total / 1e9,
        )

    def read(self, row: int) -> Pixels:
        height, width = self.size(row)
        end = int(self._ends[row])
        kept = np.frombuffer(self._memory, np.uint8, height * width * 3, end - height * width * 3)
        with self._lock:
            filled = bool(self._filled[row])
        if not filled:
            kept[:] = super().read(row).reshape(-1)
            with self._lock:
                self._filled[row] = 1
        return kept.reshape(height, width, 3).copy()


def open_images(config: DataConfig, annotations: Annotations, in_memory: bool) -> ImageFiles:
    """Open the images of a split with ``data.root``, ``max_image_pixels`` and ``exif``.

    Raises:
        InputError: ``in_memory``, and the cache is impossible (see ``CachedImages``).
    """
    kind = CachedImages if in_memory else ImageFiles
    return kind(annotations, config.root, config.max_image_pixels, config.exif == "ignore")


def _check_room(needed: int, source: str) -> None:
    if start_method() != "fork":
        raise InputError("data.cache: memory needs forked worker processes; set none")
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > machine:
        raise InputError(
            f"data.cache: {source}: the decoded images need {needed / 1e9:.1f} GB but this machine "
            f"has {machine / 1e9:.1f} GB; set data.cache: none, or shrink the image files"
        )
