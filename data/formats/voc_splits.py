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
    """``ImageSets/Main/<split>.txt``, relative to the root; in a VOCdevkit below the year."""
    folder, name = posixpath.split(inner_path(split, f"split {shown(split)} of {root}"))
    return posixpath.join(folder, "ImageSets", "Main", f"{name}.txt")


def listed_name(line: str, annotations: Path, where: str) -> str:
    """The image that a line of a split names, which is not blank.

    Files of one class (``cat_train.txt``) have a flag behind each name, after spaces or a tab; it
    is not used: an image without cats belongs to the split, too. Raises InputError for a name that
    leaves the folder ``annotations``, and for the path of an image or of its annotation.
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
            f"{where}: {shown(name)}: a line is a name without folder and ending; "
            f"write {shown(bare)}"
        )
    return name


def check_listable(name: str, where: str) -> None:
    """Raise InputError for the name of an image that a line of a split would not give back."""
    if name != name.strip():
        raise InputError(
            f"{where}: the name {shown(name)} begins or ends with a space, which VOC's readers "
            "cut off; rename the file"
        )


def _is_annotated(annotations: Path, name: str) -> bool:
    return os.path.isfile(annotations / f"{name}.xml")


def read_lines(path: Path, root: Path) -> list[str]:
    """The lines of a split of the dataset in ``root``; raises InputError."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        if not root.is_dir():
            raise InputError(f"{root}: there is no such folder; check data.root") from None
        present = splits_present(root)
        cure = (
            f"the splits there: {some_of(present)}"
            if present
            else "check data.root and data.format"
        )
        raise InputError(f"{path}: there is no such split; {cure}") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text ({error.reason}); save it as UTF-8") from error


def splits_present(root: Path) -> list[str]:
    """What ``split`` could be: without the sets of one class, which VOC has by the hundred."""
    found = []
    for lists in sorted([*root.glob("ImageSets/Main"), *root.glob("*/ImageSets/Main")]):
        stems = {path.stem for path in lists.glob("[!.]*.txt")}  # macOS adds ._train.txt
        folder = lists.parent.parent.relative_to(root)
        found += [
            (folder / stem).as_posix()
            for stem in sorted(stems)
            if not _of_class(lists, stem, stems)
        ]
    return found


def _of_class(lists: Path, stem: str, stems: set[str]) -> bool:
    """Whether a list is of one class: ``cat_train`` beside ``train``, a flag behind each name."""
    parts = stem.split("_")
    if not any("_".join(parts[first:]) in stems for first in range(1, len(parts))):
        return False
    try:
        lines = (lists / f"{stem}.txt").read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError):
        return False
    filled = [line for line in lines if line.strip()]
    return bool(filled) and all(_NAME_AND_FLAG.fullmatch(line.strip()) for line in filled)
