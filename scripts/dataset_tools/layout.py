"""The format of a dataset folder, and its splits."""

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
    """A dataset on disk.

    Attributes:
        format: value of ``data.format`` in a config.
        root: value of ``data.root``.
        splits: the names of its splits, without those of single VOC classes; may be empty (VOC).
        zero_based: whether VOC boxes, read or written, are zero-based corners, not the devkit's
            1-based pixels.
        follow_links: allow files that are links to outside the root.
    """

    format: Literal["voc", "coco"]
    root: Path
    splits: tuple[str, ...]
    zero_based: bool = False
    follow_links: bool = False

    def choose(self, wanted: Sequence[str] | None) -> list[str]:
        """Return the wanted splits, all of them for None.

        Raises:
            InputError: a wanted split is missing, or there are none.
        """
        wanted = [posixpath.normpath(split) for split in wanted or ()]
        for split in wanted:
            if split not in self.splits and not self._has_list(split):
                raise InputError(
                    f"{self.root}: has no split {shown(split)}; it has {some_of(self.splits)}"
                )
        chosen = list(dict.fromkeys(wanted or self.splits))
        if not chosen:
            raise InputError(
                f"{self.root}: has no ImageSets/Main/*.txt, so no splits; create them: "
                f"datasets.py split {self.root}"
            )
        return chosen

    def several_datasets_error(self, splits: Sequence[str], verb: str) -> InputError:
        """Return the error for ``splits`` of several datasets where only one is accepted."""
        years = sorted({posixpath.dirname(split) for split in splits if "/" in split})
        return InputError(
            f"{self.root}: holds several datasets; {verb} one: {self.root / years[0]}"
        )

    def _has_list(self, split: str) -> bool:
        """Return whether VOC has a list of that name, which may be of a single class."""
        return self.format == "voc" and (self.root / split_file(self.root, split)).is_file()

    def load(self, split: str) -> Annotations:
        """Load the annotations of one split; raise InputError at the first problem."""
        access = Access(follow_links=self.follow_links)
        if self.format == "voc":
            return load_voc(self.root, [split], None, self.zero_based, access)
        return load_coco(self.root, split, None, access)

    def join(self, splits: Iterable[Annotations]) -> Annotations:
        """Join several splits into one.

        An image in two of them counts once; in COCO if both have the same id and objects.
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
        """Return a key that entries of the same image share, of which COCO has a copy per split."""
        if self.format == "voc":
            return str(part.files[row])
        objects = part.objects_of(row)
        labels = [part.classes[label] for label in part.labels[objects].tolist()]
        boxes = part.boxes[objects].tobytes()
        return str(part.names[row]), int(part.image_ids[row]), boxes, tuple(labels)


def annotation_files(layout: Layout, year: str) -> list[str]:
    """Return all XML files of one VOC dataset, relative to the root of ``layout``, listed or not.

    ``year`` is its folder, "" in a plain root. Hidden files and folders, as editors and macOS leave
    them, are skipped.

    Raises:
        InputError: a folder cannot be read.
    """
    folder = posixpath.join(year, "Annotations")
    found = files_below(layout.root / folder, layout.root, layout.follow_links)
    return sorted(
        posixpath.join(folder, file)
        for file in found
        if file.endswith(".xml") and not any(part.startswith(".") for part in file.split("/"))
    )


def place_of(annotation: str) -> tuple[str, str]:
    """Return the dataset folder of a VOC annotation file, and the file's name.

    >>> place_of("VOC2007/Annotations/street/0001.xml")
    ('VOC2007', 'street/0001')
    """
    parts = annotation.split("/")
    middle = parts.index("Annotations")
    return "/".join(parts[:middle]), posixpath.splitext("/".join(parts[middle + 1 :]))[0]


def _voc_names(parts: Sequence[Annotations]) -> tuple[str, ...]:
    """Return all classes found; of VOC's 20, which a reader assumes as a whole, those used."""
    if all(part.classes == parts[0].classes for part in parts):
        return parts[0].classes
    used = {part.classes[label] for part in parts for label in set(part.labels.tolist())}
    found = {name for part in parts if part.classes != VOC_CLASSES for name in part.classes}
    return tuple(sorted(used | found))


def same_picture(one: Path, other: Path) -> bool:
    """Return whether two images have the same bytes; True if one is missing."""
    if one == other or not (one.is_file() and other.is_file()):
        return True
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError as error:
        raise unreadable(error.filename or other, error) from error


def recognize(path: Path, zero_based: bool = False, follow_links: bool = False) -> Layout:
    """Recognize the layout of a folder, or of the annotation file of one COCO split.

    Raises:
        InputError: there is no dataset, or annotations or split lists link to outside the root,
            unless ``follow_links``.
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
            f"{path}: is not annotations/instances_<split>.json; give the root of a dataset, or "
            "rename the file so, and put the images in the folder <split> beside annotations"
        )
    if not os.path.isdir(path):
        raise InputError(f"{path}: folder not found; give the root of a dataset")
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
            f"{path}: annotations are beside the images, as exported by Roboflow; move "
            f"{split}/{exported[0].name} to annotations/instances_{split}.json, likewise for each "
            "split"
        )
    raise InputError(
        f"{path}: is not a dataset: it has neither annotations/instances_<split>.json (COCO) nor "
        "Annotations and ImageSets/Main (VOC, or a folder of them per year); give the folder that "
        "has them, or move the files there"
    )


def _is_split_of(root: Path, path: Path) -> bool:
    """Return whether a file is the annotation file of a split of a COCO dataset in ``root``."""
    own = root / "annotations" / path.name
    named = path.name.startswith("instances_") and path.suffix == ".json"
    return named and os.path.isfile(path) and os.path.isfile(own) and os.path.samefile(path, own)
