"""The splits of a VOC dataset: lists of names in ``ImageSets/Main``."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from data.errors import InputError, shown, some_of, unreadable
from data.formats.voc_images import has_image_ending
from data.paths import inner_path

_NAME_AND_FLAG = re.compile(r"(\S+)\s+(?:-1|0|1)")


def split_file(root: Path, split: str) -> str:
    """Return ``ImageSets/Main/<split>.txt`` relative to the root (in a VOCdevkit, below the year).

    Raises:
        InputError: the split is not a relative path inside the root.
    """
    folder, name = posixpath.split(inner_path(split, f"split {shown(split)} of {root}"))
    return posixpath.join(folder, "ImageSets", "Main", f"{name}.txt")


def listed_name(line: str, annotations: Path, where: str) -> str:
    """Return the image that a non-blank line of a split names.

    Lists of one class (``cat_train.txt``) have a flag after each name. It is ignored: an image
    without cats belongs to the split, too.

    Raises:
        InputError: the name leaves the folder ``annotations``, or is the path of an image or of an
            annotation file.
    """
    name = inner_path(line.strip().replace("\t", " "), where)
    flagged = _NAME_AND_FLAG.fullmatch(name)
    if flagged and not _is_annotated(annotations, name):
        name = flagged[1]
    bare = posixpath.basename(name)
    if has_image_ending(bare) or bare.endswith(".xml"):
        bare = posixpath.splitext(bare)[0]
    is_path = bare != name and not _is_annotated(annotations, name)
    if is_path and _is_annotated(annotations, bare):
        raise InputError(
            f"{where}: {shown(name)}: must be a name without folder and extension; "
            f"write {shown(bare)}"
        )
    return name


def check_listable(name: str, where: str) -> None:
    """Check that an image name survives being written to and read from a split list.

    Raises:
        InputError: the name begins or ends with white space.
    """
    if name != name.strip():
        raise InputError(
            f"{where}: the name {shown(name)} begins or ends with a space, which VOC readers "
            "strip; rename the file"
        )


def _is_annotated(annotations: Path, name: str) -> bool:
    return os.path.isfile(annotations / f"{name}.xml")


def read_lines(path: Path, root: Path) -> list[str]:
    """Read the lines of a split of the dataset in ``root``.

    Raises:
        InputError: the folder or the split does not exist, or the file is not readable text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        if not root.is_dir():
            raise InputError(f"{root}: folder not found; check data.root") from None
        present = splits_present(root)
        cure = (
            f"available splits: {some_of(present)}"
            if present
            else "check data.root and data.format"
        )
        raise InputError(f"{path}: split not found; {cure}") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text ({error.reason}); save it as UTF-8") from error


def splits_present(root: Path) -> list[str]:
    """List the available splits, without the lists of a single class, of which VOC has hundreds."""
    found = []
    for lists in sorted([*root.glob("ImageSets/Main"), *root.glob("*/ImageSets/Main")]):
        stems = {path.stem for path in lists.glob("[!.]*.txt")}  # macOS adds ._train.txt
        folder = lists.parent.parent.relative_to(root)
        found += [
            (folder / stem).as_posix()
            for stem in sorted(stems)
            if not _is_class_list(lists, stem, stems)
        ]
    return found


def _is_class_list(lists: Path, stem: str, stems: set[str]) -> bool:
    """Whether a list is of one class: ``cat_train`` next to ``train``, a flag after each name."""
    parts = stem.split("_")
    if not any("_".join(parts[first:]) in stems for first in range(1, len(parts))):
        return False
    try:
        lines = (lists / f"{stem}.txt").read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError):
        return False
    filled = [line for line in lines if line.strip()]
    return bool(filled) and all(_NAME_AND_FLAG.fullmatch(line.strip()) for line in filled)
