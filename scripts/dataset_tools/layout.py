"""Which format a folder has, and the splits in it."""

from __future__ import annotations

import filecmp
import os
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.annotations import Annotations, concatenate
from data.coco import load_coco
from data.errors import InputError, shown, some_of, unreadable
from data.image_sizes import Access
from data.paths import check_inside
from data.voc import VOC_CLASSES, load_voc
from data.voc_splits import split_file, splits_present


@dataclass(frozen=True)
class Layout:
    """A dataset as it lies on the disk.

    Attributes:
        format: what ``data.format`` of a config calls it.
        root: what ``data.root`` is.
        splits: the names of its splits, those of single VOC classes left out; may be empty (VOC).
        zero_based: VOC boxes are plain corners, not the devkit's pixels from 1.
        follow_links: allow files that are links to outside the root.
    """

    format: Literal["voc", "coco"]
    root: Path
    splits: tuple[str, ...]
    zero_based: bool = False
    follow_links: bool = False

    def choose(self, wanted: Sequence[str] | None) -> list[str]:
        """The wanted splits, all of them for None; raises InputError for one that is not there."""
        for split in wanted or ():
            if split not in self.splits and not self._has_list(split):
                raise InputError(
                    f"{self.root}: has no split {shown(split)}; it has {some_of(self.splits)}"
                )
        chosen = list(wanted or self.splits)
        if not chosen:
            raise InputError(
                f"{self.root}: has no ImageSets/Main/*.txt and so no splits; make them: "
                f"datasets.py split {self.root}"
            )
        return chosen

    def of_several_datasets(self, splits: Sequence[str], verb: str) -> InputError:
        """What to raise where ``splits`` of a VOCdevkit are given to what takes one dataset."""
        years = sorted({posixpath.dirname(split) for split in splits if "/" in split})
        return InputError(
            f"{self.root}: holds several datasets; {verb} one: {self.root / years[0]}"
        )

    def _has_list(self, split: str) -> bool:
        """Whether VOC has a list of that name, which may be one of a single class."""
        return self.format == "voc" and (self.root / split_file(self.root, split)).is_file()

    def load(self, split: str) -> Annotations:
        """The annotations of one split; raises InputError at the first thing that is wrong."""
        access = Access(follow_links=self.follow_links)
        if self.format == "voc":
            return load_voc(self.root, [split], None, self.zero_based, access)
        return load_coco(self.root, split, None, access)

    def load_all(self, splits: Sequence[str]) -> Annotations:
        """Several splits as one; an image that is in two of them counts once."""
        parts: list[Annotations] = []
        seen: dict[object, list[Path]] = defaultdict(list)
        for split in splits:
            part = self.load(split)
            new = []
            for row in range(len(part)):
                pictures = seen[self._identity(part, row)]
                picture = self.root / str(part.files[row])
                if not any(same_picture(picture, other) for other in pictures):
                    pictures.append(picture)
                    new.append(row)
            parts += [part.select(new)] if new else []
        names = dict.fromkeys(name for part in parts for name in part.classes)
        classes = tuple(names) if self.format == "coco" else _voc_names(parts)
        return concatenate([part.relabel(classes) for part in parts])

    def _identity(self, part: Annotations, row: int) -> object:
        """What two entries of one image share, of which COCO has a copy a split."""
        if self.format == "voc":
            return str(part.files[row])
        objects = part.objects_of(row)
        labels = [part.classes[label] for label in part.labels[objects].tolist()]
        boxes = part.boxes[objects].tobytes()
        return str(part.names[row]), int(part.image_ids[row]), boxes, tuple(labels)


def _voc_names(parts: Sequence[Annotations]) -> tuple[str, ...]:
    """All that were found; of VOC's 20, which stand for whichever of them there are, those used."""
    if all(part.classes == parts[0].classes for part in parts):
        return parts[0].classes
    used = {part.classes[label] for part in parts for label in set(part.labels.tolist())}
    found = {name for part in parts if part.classes != VOC_CLASSES for name in part.classes}
    return tuple(sorted(used | found))


def same_picture(one: Path, other: Path) -> bool:
    """By their bytes; what is missing may have been any."""
    if one == other or not (one.is_file() and other.is_file()):
        return True
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        raise unreadable(error.filename or other, error) from error


def recognize(path: Path, zero_based: bool = False, follow_links: bool = False) -> Layout:
    """The layout of a folder, or of the annotation file of one COCO split.

    Raises InputError that says what was looked for, and for annotations or lists of splits that
    are links to outside the root, unless ``follow_links``.
    """
    layout = _recognize(path, zero_based, follow_links)
    if not follow_links:
        _refuse_links(layout.root)
    return layout


def _refuse_links(root: Path) -> None:
    try:
        for name in ("annotations", "Annotations", "ImageSets"):
            for folder in (root / name, *root.glob(f"*/{name}")):
                check_inside(root, folder, str(root))
                for place, folders, files in os.walk(folder):
                    for path in (Path(place, entry) for entry in [*folders, *files]):
                        if path.is_symlink():
                            check_inside(root, path, str(root))
    except InputError as error:
        raise InputError(f"{error}; here: --follow-links") from None


def _recognize(path: Path, zero_based: bool, follow_links: bool) -> Layout:
    if path.is_file() and path.name.startswith("instances_") and path.suffix == ".json":
        split = path.stem.removeprefix("instances_")
        root = Path(os.path.normpath(path.parent / ".."))  # also of a path without folders
        return Layout("coco", root, (split,), follow_links=follow_links)
    if path.is_file():
        raise InputError(
            f"{path}: is no annotations/instances_<split>.json; name the root of a dataset, or "
            "give the file such a name, and the images the folder <split> beside annotations"
        )
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; name the root of a dataset")
    found = sorted(path.glob("annotations/instances_*.json"))
    if found:
        splits = tuple(file.stem.removeprefix("instances_") for file in found)
        return Layout("coco", path, splits, follow_links=follow_links)
    splits = tuple(splits_present(path))
    if splits or os.path.isdir(path / "Annotations"):
        return Layout("voc", path, splits, zero_based, follow_links)
    raise InputError(
        f"{path}: is no dataset: there are neither annotations/instances_<split>.json (COCO) nor "
        "Annotations and ImageSets/Main (VOC, or one folder of them a year); name the folder that "
        "holds them"
    )
