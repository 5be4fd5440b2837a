"""PASCAL VOC: ``Annotations``, ``JPEGImages``, ``ImageSets/Main``, alone or one set a year."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.annotations import Annotations, arrange_objects
from data.errors import InputError, shown, some_of, unreadable
from data.image_sizes import OWN_FILES, Access, complete_sizes
from data.paths import inner_path, is_inside, refuse_links
from data.voc_xml import VocImage, read_voc_xml

# fmt: off
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
_NAME_AND_FLAG = re.compile(r"(\S+)\s+(?:-1|0|1)")


def load_voc(
    root: Path,
    splits: Sequence[str],
    classes: Sequence[str] | None = None,
    zero_based: bool = False,
    access: Access = OWN_FILES,
) -> Annotations:
    """Read one or several splits of a VOC dataset, one after the other.

    Images are only opened where an annotation lacks their size; they need not exist otherwise.

    Args:
        root: a folder with ``ImageSets/Main/<split>.txt``, or a ``VOCdevkit`` of such folders.
        splits: such as ``trainval``; in a VOCdevkit ``VOC2012/trainval``.
        classes: names in the order of their labels. None: VOC's 20 if every name in the splits is
            one of them, else the sorted names.
        zero_based: boxes are taken as they are. Otherwise they are the devkit's, pixels counted
            from 1 and both corners included: ``(xmin - 1, ymin - 1, xmax, ymax)`` here.
        access: how files are opened.

    Raises:
        InputError: whatever is wrong with a file; the message names it and the object.
    """
    source = f"{root} ({', '.join(splits)})"
    if not access.follow_links:
        refuse_links(root, [_list_file(root, split) for split in splits], source)
    entries = [entry for split in splits for entry in _list_entries(root, split)]
    _check_distinct(entries, source)
    if not access.follow_links:
        refuse_links(root, [entry.annotation for entry in entries], source)
    images = [read_voc_xml(root / entry.annotation) for entry in entries]
    if classes is not None:
        _check_classes(root, entries, images, classes)
    files = _find_files(root, entries, images, access.follow_links)
    given = np.array([image.size_hw for image in images])
    sizes = complete_sizes(root, files, given, source, access)
    annotations = Annotations(
        source=source,
        split="+".join(dict.fromkeys(posixpath.basename(split) for split in splits)),
        names=np.array([entry.name for entry in entries]),
        files=np.array(files),
        image_ids=np.arange(1, len(images) + 1),
        sizes=sizes,
        **_object_columns(images, sizes, zero_based),
    )
    if classes is None:
        return annotations
    numbers = np.arange(1, len(classes) + 1)  # whichever of the classes the split has
    return replace(annotations.relabel(classes), category_ids=numbers)


def _object_columns(
    images: Sequence[VocImage], sizes: npt.NDArray[np.int32], zero_based: bool
) -> dict[str, Any]:
    """The fields of Annotations that concern objects."""
    objects = [voc_object for image in images for voc_object in image.objects]
    image_rows = np.repeat(np.arange(len(images)), [len(image.objects) for image in images])
    boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    boxes = _to_continuous(boxes, sizes[image_rows], zero_based)
    rows, offsets, dropped_from = arrange_objects(image_rows, boxes, sizes)
    boxes = boxes[rows]
    found = {item.name for item in objects}
    classes = VOC_CLASSES if found <= set(VOC_CLASSES) else tuple(sorted(found))
    labels = {name: label for label, name in enumerate(classes)}
    return {
        "classes": classes,
        "category_ids": np.arange(1, len(classes) + 1),
        "offsets": offsets,
        "boxes": boxes,
        "labels": np.array([labels[item.name] for item in objects], np.int32)[rows],
        "areas": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        "difficult": np.array([item.difficult for item in objects], np.bool_)[rows],
        "crowd": np.zeros(len(rows), np.bool_),
        "dropped_from": dropped_from,
    }


@dataclass(frozen=True)
class _Entry:
    """An image of a split: the year's folder ("" in a plain root) and the image's name in it."""

    folder: str
    name: str

    @property
    def annotation(self) -> str:
        return posixpath.join(self.folder, "Annotations", f"{self.name}.xml")


def _list_file(root: Path, split: str) -> str:
    """``ImageSets/Main/<split>.txt``, relative to the root; in a VOCdevkit below the year."""
    folder, name = posixpath.split(inner_path(split, f"split {shown(split)} of {root}"))
    return posixpath.join(folder, "ImageSets", "Main", f"{name}.txt")


def _list_entries(root: Path, split: str) -> Iterator[_Entry]:
    """The lines of the list of a split."""
    path = root / _list_file(root, split)
    folder = posixpath.dirname(posixpath.normpath(split))
    lines = read_lines(path, root)
    if not any(line.strip() for line in lines):
        raise InputError(f"{path}: lists no images; write one name a line, or name another split")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            annotations, where = root / folder / "Annotations", f"{path}: line {number}"
            yield _Entry(folder, listed_name(line, annotations, where))


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


def _check_distinct(entries: Sequence[_Entry], source: str) -> None:
    seen: set[_Entry] = set()
    for entry in entries:
        if entry in seen:
            raise InputError(
                f"{source}: image {shown(entry.name)} is listed twice; list it once, or use "
                "data.repeat to see all images more often"
            )
        seen.add(entry)


def _check_classes(
    root: Path, entries: Sequence[_Entry], images: Sequence[VocImage], classes: Sequence[str]
) -> None:
    listed = set(classes)
    for entry, image in zip(entries, images, strict=True):
        for number, item in enumerate(image.objects, start=1):
            if item.name not in listed:
                raise InputError(
                    f"{root / entry.annotation}: object {number} ({shown(item.name)}) is of none "
                    f"of the classes {some_of(classes)}; list it in data.classes, or rename it"
                )


def _find_files(
    root: Path, entries: Sequence[_Entry], images: Sequence[VocImage], follow_links: bool
) -> list[str]:
    """The image file of each entry, relative to the root, whether it exists or not."""
    listings = {
        folder: images_by_stem(root / folder / "JPEGImages", root, follow_links)
        for folder in _folders(entries)
    }
    owners: dict[str, _Entry] = {}
    for entry, image in zip(entries, images, strict=True):
        listing = listings[entry.folder]
        file = posixpath.join(entry.folder, "JPEGImages", _file_of(entry, image, listing, root))
        if file in owners:
            raise InputError(
                f"{root / entry.annotation}: its image {shown(file)} is that of "
                f"{owners[file].annotation}, too; correct <filename> in one of them"
            )
        owners[file] = entry
    return list(owners)


def _folders(entries: Sequence[_Entry]) -> set[str]:
    return {entry.folder for entry in entries}


def images_by_stem(folder: Path, root: Path, follow_links: bool = False) -> dict[str, str]:
    """The image files in and below a folder: both ``name`` and ``name.jpg`` -> ``name.jpg``.

    Those in a folder inside are ``inner/name`` and ``inner/name.jpg``. Folders that are links to
    outside the root are only entered on request.
    """
    names = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [
            name for name in folders if _may_enter(os.path.join(place, name), root, follow_links)
        ]
        inner = os.path.relpath(place, folder)
        names += files if inner == "." else [posixpath.join(inner, name) for name in files]
    return by_stem(names)


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


def _may_enter(folder: str, root: Path, follow_links: bool) -> bool:
    """Whether a folder is none that leads back up, nor a link out of the root unasked."""
    if not os.path.islink(folder):
        return True
    real = os.path.realpath(folder)
    if any(os.path.realpath(above) == real for above in Path(folder).parents):
        return False
    return follow_links or is_inside(root, folder)


def _file_of(entry: _Entry, image: VocImage, listing: dict[str, str], root: Path) -> str:
    return find_voc_image(entry.name, image.filename, listing, str(root / entry.annotation))


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


def _to_continuous(
    boxes: npt.NDArray[np.float64], sizes_hw: npt.NDArray[np.int32], zero_based: bool
) -> npt.NDArray[np.float64]:
    """Boxes of the files -> continuous coordinates, clipped to their images; flat ones to zeros.

    A box whose two corners share a row or column has no area by the files' numbers and is left
    without any, although a pixel counted inclusively would be one wide.
    """
    flat = np.any(boxes[:, 2:] <= boxes[:, :2], axis=1, keepdims=True)
    continuous = boxes if zero_based else boxes - [1, 1, 0, 0]
    clipped = np.clip(continuous, 0, np.tile(sizes_hw[:, ::-1], 2))
    return np.where(flat, 0.0, clipped)
