"""Which format a folder has, and the splits in it."""

from __future__ import annotations

import filecmp
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.annotations import Annotations, concatenate
from data.errors import InputError, shown, some_of, unreadable
from data.formats.coco import load_coco
from data.formats.voc import VOC_CLASSES, load_voc
from data.formats.voc_images import files_below
from data.formats.voc_splits import split_file, splits_present
from data.image_sizes import Access
from data.paths import check_inside


@dataclass(frozen=True)
class Layout:
    """A dataset as it lies on the disk.

    Attributes:
        format: what ``data.format`` of a config calls it.
        root: what ``data.root`` is.
        splits: the names of its splits, those of single VOC classes left out; may be empty (VOC).
        zero_based: VOC boxes, read or to be written, are plain corners, not the devkit's pixels
            from 1.
        follow_links: allow files that are links to outside the root.
    """

    format: Literal["voc", "coco"]
    root: Path
    splits: tuple[str, ...]
    zero_based: bool = False
    follow_links: bool = False

    def choose(self, wanted: Sequence[str] | None) -> list[str]:
        """The wanted splits, all of them for None; raises InputError for one that is not there."""
        wanted = [posixpath.normpath(split) for split in wanted or ()]
        for split in wanted:
            if split not in self.splits and not self._has_list(split):
                raise InputError(
                    f"{self.root}: has no split {shown(split)}; it has {some_of(self.splits)}"
                )
        chosen = list(dict.fromkeys(wanted or self.splits))
        if not chosen:
            raise InputError(
                f"{self.root}: has no ImageSets/Main/*.txt and so no splits; make them: "
                f"datasets.py split {self.root}"
            )
        return chosen

    def several_datasets_error(self, splits: Sequence[str], verb: str) -> InputError:
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

    def join(self, splits: Iterable[Annotations]) -> Annotations:
        """Several splits as one.

        An image that is in two of them counts once; in COCO one with the same id and objects.
        """
        parts: list[Annotations] = []
        seen: dict[object, list[Path]] = defaultdict(list)
        for part in splits:
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


def annotation_files(layout: Layout, year: str) -> list[str]:
    """The XML files of one VOC dataset, relative to the root of ``layout``, whoever lists them.

    ``year`` is its folder, "" in a plain root. Hidden files and folders are passed over: editors
    and macOS leave them. Raises InputError for a folder that cannot be read.
    """
    folder = posixpath.join(year, "Annotations")
    found = files_below(layout.root / folder, layout.root, layout.follow_links)
    return sorted(
        posixpath.join(folder, file)
        for file in found
        if file.endswith(".xml") and not any(part.startswith(".") for part in file.split("/"))
    )


def place_of(annotation: str) -> tuple[str, str]:
    """The folder of a VOC annotation file's dataset, and the file's name.

    >>> place_of("VOC2007/Annotations/street/0001.xml")
    ('VOC2007', 'street/0001')
    """
    parts = annotation.split("/")
    middle = parts.index("Annotations")
    return "/".join(parts[:middle]), posixpath.splitext("/".join(parts[middle + 1 :]))[0]


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
                        if os.path.islink(path):
                            check_inside(root, path, str(root))
    except InputError as error:
        raise InputError(f"{error}; here: --follow-links") from None


def _recognize(path: Path, zero_based: bool, follow_links: bool) -> Layout:
    root = Path(os.path.normpath(path.parent / ".."))  # also of a path without folders
    if _is_split_of(root, path):
        split = path.stem.removeprefix("instances_")
        return Layout("coco", root, (split,), zero_based, follow_links)
    if os.path.isfile(path):
        raise InputError(
            f"{path}: is no annotations/instances_<split>.json; name the root of a dataset, or "
            "give the file such a name, and the images the folder <split> beside annotations"
        )
    if not os.path.isdir(path):
        raise InputError(f"{path}: there is no such folder; name the root of a dataset")
    found = sorted(path.glob("annotations/instances_*.json"))
    if found:
        splits = tuple(file.stem.removeprefix("instances_") for file in found)
        return Layout("coco", path, splits, zero_based, follow_links)
    splits = tuple(splits_present(path))
    if splits or os.path.isdir(path / "Annotations"):
        return Layout("voc", path, splits, zero_based, follow_links)
    exported = sorted(path.glob("*/_annotations.coco.json"))
    if exported:
        split = exported[0].parent.name
        raise InputError(
            f"{path}: its annotations lie beside the images, as Roboflow exports them; move "
            f"{split}/{exported[0].name} to annotations/instances_{split}.json, and so for each "
            "split"
        )
    raise InputError(
        f"{path}: is no dataset: there are neither annotations/instances_<split>.json (COCO) nor "
        "Annotations and ImageSets/Main (VOC, or one folder of them a year); name the folder that "
        "holds them, or move the files there"
    )


def _is_split_of(root: Path, path: Path) -> bool:
    """Whether a file is what readers of a COCO dataset in ``root`` would open for a split."""
    own = root / "annotations" / path.name
    named = path.name.startswith("instances_") and path.suffix == ".json"
    return named and os.path.isfile(path) and os.path.isfile(own) and os.path.samefile(path, own)
