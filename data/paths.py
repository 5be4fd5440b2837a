"""File names that come out of annotation files: kept inside the root, checked to exist."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.errors import InputError, control_in, shown

_LEADS_OUT = re.compile(r"\\|^/|^[A-Za-z]:|^~")
OTHERWISE_WRITTEN = (
    "differs only in letter case or Unicode normal form (NFC, NFD): rename the files, or correct "
    "their names in the annotations"
)
_LONGEST_PART = 255  # bytes; the limit of common file systems
# Paths are stored in an array as wide as the longest: one long path must not inflate all others.
_LONGEST_PATH = 1000


def inner_path(name: object, where: str) -> str:
    """Return ``name`` as a normalized relative POSIX path that stays inside its folder.

    Args:
        name: the file name found in an annotation file.
        where: where it was found, for messages.

    Raises:
        InputError: ``name`` is not a string, is absolute or too long, or contains ``..``, a
            backslash, a drive letter or a control character.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where}: {shown(name)} is not a file name; write a relative path")
    if control_in(name):
        raise InputError(
            f"{where}: the file name {shown(name)} contains the control character "
            f"{shown(control_in(name))}; rename the file"
        )
    if _LEADS_OUT.search(name) or ".." in name.split("/"):
        slash = "/ instead of backslashes" if "\\" in name else "/"
        raise InputError(
            f"{where}: the file name {shown(name)} may leave the root of the data; write a path "
            f"relative to the image folder, with {slash} and without .."
        )
    parts = max(len(part.encode()) for part in name.split("/"))
    if len(name) > _LONGEST_PATH or parts > _LONGEST_PART:
        raise InputError(f"{where}: the file name {shown(name)} is too long; rename the file")
    return posixpath.normpath(name)


def require_images(
    root: Path, files: Sequence[str], source: str, follow_links: bool = False
) -> None:
    """Check that all files exist and, links resolved, lie under the root; no file is opened.

    Folders are listed once instead of checking each file on its own.

    Raises:
        InputError: files are missing (the first are named), or a link leads outside the root and
            ``follow_links`` is false.
    """
    listed = _list_folders(root, files)
    missing, links = [], []
    for file in files:
        folder, name = posixpath.split(file)
        is_link = listed[folder].get(name)
        if is_link is None and not os.path.isfile(root / file):
            missing.append(file)
        elif is_link is not False:
            links.append(file)
    if not follow_links:
        for place in [*links, *listed]:
            check_inside(root, root / place, source)
    if missing:
        some = ", ".join(shown(file) for file in missing[:3])
        cure = "add them, or remove them from the annotations"
        folder, name = posixpath.split(missing[0])
        if not (root / folder).is_dir():
            cure = f"there is no folder {shown(folder)}: move or rename the one that holds them"
        elif other := by_spelling(listed[folder]).get(spelling(name)):
            cure = f"there is {shown(other)}, which {OTHERWISE_WRITTEN}"
        raise InputError(
            f"{source}: {len(missing)} of {len(files)} images are missing under {root}, "
            f"the first: {some}; {cure}"
        )


def refuse_links(root: Path, files: Sequence[str], source: str) -> None:
    """Check that no file is a link that leads outside the root.

    Files that do not exist are ignored. Folders are listed once instead of checking each file.

    Raises:
        InputError: a file, links resolved, does not lie under the root.
    """
    listed = _list_folders(root, files)
    links = [
        file for file in files if listed[posixpath.dirname(file)].get(posixpath.basename(file))
    ]
    for place in [*links, *listed]:
        check_inside(root, root / place, source)


def by_spelling(names: Iterable[str]) -> dict[str, str]:
    """Map the ``spelling`` of each name to the name."""
    return {spelling(name): name for name in names}


def spelling(name: str) -> str:
    """Fold letter case and Unicode normal form (macOS decomposes file names)."""
    return unicodedata.normalize("NFC", name).casefold()


def _list_folders(root: Path, files: Iterable[str]) -> dict[str, dict[str, bool]]:
    """List each folder that contains files: path below the root -> result of ``_list_folder``."""
    folders = sorted({posixpath.dirname(file) for file in files})
    return {folder: _list_folder(root / folder) for folder in folders}


def _list_folder(folder: Path) -> dict[str, bool]:
    """List the files of a folder: name -> whether it is a symbolic link; {} if it is missing."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
    except OSError:
        return {}


def check_inside(root: Path, path: Path, source: str) -> None:
    """Check that a path lies under the root.

    Raises:
        InputError: the path, links resolved, does not lie under the root.
    """
    if not is_inside(root, path):
        real = os.path.realpath(path)
        raise InputError(
            f"{source}: {path} is a link to {shown(real)}, outside the root of the data; copy its "
            "target, or set data.follow_links: true if you trust the dataset"
        )


def is_inside(folder: str | Path, path: str | Path) -> bool:
    """Return whether a path, links resolved, is the folder itself or lies under it."""
    real_folder, real = os.path.realpath(folder), os.path.realpath(path)
    return os.path.commonpath([real_folder, real]) == real_folder
