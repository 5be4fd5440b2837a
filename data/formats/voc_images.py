"""The images of a VOC dataset: which file in ``JPEGImages`` an annotation belongs to."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

from data.errors import unreadable
from data.paths import inner_path, is_inside

# On one way to a file, below JPEGImages: folders that all link to each other have ways without end.
_MOST_LINKS = 2
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


def images_by_stem(folder: Path, root: Path, follow_links: bool = False) -> dict[str, str]:
    """The image files in and below a folder: both ``name`` and ``name.jpg`` -> ``name.jpg``.

    Those in a folder inside are ``inner/name`` and ``inner/name.jpg``. Folders that are links to
    outside the root are only entered on request.
    """
    return by_stem(files_below(folder, root, follow_links))


def files_below(folder: Path, root: Path, follow_links: bool = False) -> list[str]:
    """The files in and below a folder, by their paths in it; none where there is no such folder.

    Folders that are links to outside the root are only entered on request; those inside that cannot
    be read are passed over, and so is what lies behind more than two links, one after the other.
    Raises InputError where ``folder`` itself cannot be read.
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
    """Those of the files that are images by their endings, as ``images_by_stem`` lists them.

    Of several with one stem it is the one whose ending comes first in ``IMAGE_ENDINGS``: beside
    ``0001.jpg`` a ``0001.png`` is mostly a label mask.
    """
    images = sorted((name for name in names if has_image_ending(name)), key=_by_ending)
    stems = {posixpath.splitext(name)[0]: name for name in reversed(images)}
    return stems | {name: name for name in images}


def _by_ending(name: str) -> tuple[int, str]:
    return IMAGE_ENDINGS.index(posixpath.splitext(name)[1].lower()), name


def has_image_ending(file: str) -> bool:
    """Whether a file has the ending of an image; others are not found in JPEGImages."""
    return posixpath.splitext(file)[1].lower() in IMAGE_ENDINGS


def _may_enter(start: Path, inner: str, root: Path, follow_links: bool) -> bool:
    """Whether a folder is no link that leads back up, on and on, or out of the root unasked."""
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
    """The image in JPEGImages: by ``name``, else by ``<filename>`` with its or another ending.

    An image with the annotation's own name is its image whatever ``<filename>`` says, which tools
    that rename files leave as it was; torchvision, detectron2 and mmdetection read no other image.
    Only where ``<filename>`` is needed must it be a path that stays in the folder.

    Args:
        name: of the annotation file, without its ending.
        filename: what the annotation file says, if it does.
        listing: what ``images_by_stem`` found there.
        where: what messages call the annotation file.
    """
    if filename is None:
        return listing.get(name, f"{name}.jpg")
    stem, file = _stem_and_file(filename)
    if name in listing:
        return listing.get(file, listing[name]) if stem == name else listing[name]
    inner_path(filename, f"{where}: <filename>")
    return listing.get(file) or listing.get(stem) or file


def other_voc_image(name: str, filename: str | None, listing: dict[str, str]) -> str:
    """The image that ``<filename>`` names where ``find_voc_image`` took another; else ""."""
    if filename is None:
        return ""
    stem, file = _stem_and_file(filename)
    named = listing.get(file) or listing.get(stem) or ""
    return named if name in listing and stem != name else ""


def same_stem(name: str, filename: str | None, listing: dict[str, str]) -> list[str]:
    """The images of the annotation's own name, where ``<filename>`` chooses none of several."""
    endings = [*IMAGE_ENDINGS, *(ending.upper() for ending in IMAGE_ENDINGS)]
    images = [f"{name}{ending}" for ending in endings if f"{name}{ending}" in listing]
    chosen = filename is not None and posixpath.normpath(filename) in images
    return [] if chosen or len(images) < 2 else images


def _stem_and_file(filename: str) -> tuple[str, str]:
    """A ``<filename>`` without and with its ending, which is .jpg where it has none."""
    filename = posixpath.normpath(filename)
    if has_image_ending(filename):
        return posixpath.splitext(filename)[0], filename
    return filename, f"{filename}.jpg"
