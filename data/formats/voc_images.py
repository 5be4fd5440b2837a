"""The images of a VOC dataset: which file in ``JPEGImages`` belongs to an annotation."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from data.errors import unreadable
from data.paths import inner_path, is_inside

# Maximum number of links on a path below JPEGImages: folders that link to each other form endless
# paths.
_MOST_LINKS = 2
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def images_by_stem(folder: Path, root: Path, follow_links: bool = False) -> dict[str, str]:
    """Map the image files in and below a folder: both ``name`` and ``name.jpg`` -> ``name.jpg``.

    Files in a subfolder are listed as ``inner/name`` and ``inner/name.jpg``. Folders that are links
    to outside the root are only entered if ``follow_links``.

    Raises:
        InputError: the folder exists but cannot be read.
    """
    return by_stem(files_below(folder, root, follow_links))


def files_below(folder: Path, root: Path, follow_links: bool = False) -> list[str]:
    """List the files in and below a folder, by their paths in it; none if it does not exist.

    Folders that are links to outside the root are only entered if ``follow_links``; subfolders that
    cannot be read, and those behind more than two successive links, are skipped.

    Raises:
        InputError: ``folder`` itself cannot be read.
    """

    def refuse(error: OSError) -> None:
        if error.filename == os.fspath(folder) and isinstance(error, PermissionError):
            raise unreadable(folder, error)

    names = []
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        inner = os.path.relpath(place, folder)
        folders[:] = [
            name
            for name in folders
            if _may_enter(folder, os.path.join(inner, name), root, follow_links)
        ]
        names += files if inner == "." else [posixpath.join(inner, name) for name in files]
    return names


def by_stem(names: Iterable[str]) -> dict[str, str]:
    """Select the files with an image extension, and map them as ``images_by_stem`` does.

    Of several with the same stem, the one whose extension comes first in ``IMAGE_ENDINGS`` wins:
    next to ``0001.jpg``, ``0001.png`` is usually a label mask.
    """
    images = sorted((name for name in names if has_image_ending(name)), key=_by_ending)
    stems = {posixpath.splitext(name)[0]: name for name in reversed(images)}
    return stems | {name: name for name in images}


def _by_ending(name: str) -> tuple[int, str]:
    return IMAGE_ENDINGS.index(posixpath.splitext(name)[1].lower()), name


def has_image_ending(file: str) -> bool:
    """Return whether a file has an image extension; other files in JPEGImages are ignored."""
    return posixpath.splitext(file)[1].lower() in IMAGE_ENDINGS


def _may_enter(start: Path, inner: str, root: Path, follow_links: bool) -> bool:
    """Return whether to enter a folder: not a link to a parent, too deep, or out of the root."""
    folder = start / inner
    if not folder.is_symlink():
        return True
    real = os.path.realpath(folder)
    if any(os.path.realpath(above) == real for above in folder.parents):
        return False
    places = [start / above for above in Path(inner).parents if above.name]
    if sum(place.is_symlink() for place in places) >= _MOST_LINKS:
        return False
    return follow_links or is_inside(root, folder)


def find_voc_image(name: str, filename: str | None, listing: dict[str, str], where: str) -> str:
    """Find the image in JPEGImages: by ``name``, else by ``<filename>`` with any extension.

    An image with the annotation's own name takes precedence over ``<filename>``, which tools that
    rename files leave unchanged; torchvision, detectron2 and mmdetection read only that image.
    ``<filename>`` is checked only if it is needed.

    Args:
        name: name of the annotation file, without extension.
        filename: the annotation's ``<filename>``, or None.
        listing: result of ``images_by_stem`` for the folder.
        where: name of the annotation file for messages.

    Raises:
        InputError: ``<filename>`` is needed and leads out of the folder.
    """
    if filename is None:
        return listing.get(name, f"{name}.jpg")
    stem, file = _stem_and_file(filename)
    if name in listing:
        return listing.get(file, listing[name]) if stem == name else listing[name]
    inner_path(filename, f"{where}: <filename>")
    return listing.get(file) or listing.get(stem) or file


def other_voc_image(name: str, filename: str | None, listing: dict[str, str]) -> str:
    """Return the image that ``<filename>`` names if ``find_voc_image`` took another, else ""."""
    if filename is None:
        return ""
    stem, file = _stem_and_file(filename)
    named = listing.get(file) or listing.get(stem) or ""
    return named if name in listing and stem != name else ""


def same_stem(name: str, filename: str | None, listing: dict[str, str]) -> list[str]:
    """List the images with the annotation's name if there are several and none is chosen."""
    endings = [*IMAGE_ENDINGS, *(ending.upper() for ending in IMAGE_ENDINGS)]
    images = [f"{name}{ending}" for ending in endings if f"{name}{ending}" in listing]
    chosen = filename is not None and posixpath.normpath(filename) in images
    return [] if chosen or len(images) < 2 else images


def _stem_and_file(filename: str) -> tuple[str, str]:
    """Return a ``<filename>`` without and with its extension, by default ``.jpg``."""
    filename = posixpath.normpath(filename)
    if has_image_ending(filename):
        return posixpath.splitext(filename)[0], filename
    return filename, f"{filename}.jpg"
