"""Conversion of a COCO dataset to VOC."""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, indent, tostring

from data.errors import InputError, shown
from data.formats.coco_columns import ImageColumns, ObjectColumns, look_up, read_categories
from data.formats.voc_images import IMAGE_ENDINGS, by_stem, find_voc_image
from data.formats.voc_splits import check_listable
from data.paths import inner_path
from scripts.dataset_tools.coco_checks import read_document
from scripts.dataset_tools.interchange import document_of, object_of
from scripts.dataset_tools.layout import Layout, same_picture
from scripts.dataset_tools.output_folder import copy_files
from scripts.dataset_tools.progress import progress

# Beside ImageSets of a VOC dataset that came from COCO.
REST = "coco"
_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Picture:
    """An image in JPEGImages: its name in messages, its annotation's name and <filename>."""

    where: str
    name: str
    filename: str | None
    file: str


class CocoToVoc:
    def __init__(self, layout: Layout, folder: Path) -> None:
        self._layout = layout
        self._folder = folder
        self._written: dict[str, tuple[bytes, str, Path]] = {}
        self._pictures: list[_Picture] = []
        self._objects = 0

    def write(self, splits: Sequence[str], hardlink: bool) -> dict[str, int]:
        pairs = []
        for split in splits:
            for image in self._write_split(split):
                source = self._layout.root / split / image
                pairs.append((source, self._folder / "JPEGImages" / image))
        self._check_pictures()
        missing = copy_files(pairs, hardlink, self._layout.root, self._layout.follow_links)
        return {
            "splits": len(splits),
            "images": len(self._written),
            "objects": self._objects,
            "missing_images": missing,
            "unlisted": 0,
        }

    def _write_split(self, split: str) -> Iterator[str]:
        path = self._layout.root / f"annotations/instances_{split}.json"
        document = {"images": [], "annotations": [], **read_document(path)}
        categories = _read_categories(path, document.get("categories"))
        files = _checked_files(path, document, categories)
        if not files:
            raise InputError(
                f"{path}: has no images, but VOC splits cannot be empty; omit it with --splits"
            )
        names = {identity: name for name, identity in categories.items()}
        elements: dict[int, list[Element]] = defaultdict(list)
        for item in progress(document["annotations"], split):
            try:
                element = object_of(item, names[item["category_id"]], self._layout.zero_based)
            except InputError as error:
                raise InputError(f"{path}: annotation {item.get('id')}: {error}") from None
            elements[item["image_id"]].append(element)
        lines = []
        for image, file in zip(progress(document["images"], split), files, strict=True):
            where = f"{path}: image {image['id']}"
            name = image.get("voc_name") or posixpath.splitext(image["file_name"])[0]
            name = inner_path(name, f"{where}: voc_name")
            check_listable(name, where)
            source = self._layout.root / split / file
            written = self._write_document(path, name, image, elements[image["id"]], source)
            self._pictures.append(_Picture(where, name, written.findtext("filename"), file))
            lines.append(name)
            yield file
        rest = {k: v for k, v in document.items() if k not in ("images", "annotations")}
        _write_text(self._folder / rest_of(split), json.dumps(rest))
        lists = self._folder / "ImageSets/Main" / f"{split}.txt"
        _write_text(lists, "\n".join(lines) + "\n")

    def _write_document(
        self, path: Path, name: str, image: dict[str, Any], objects: list[Element], source: Path
    ) -> Element:
        try:
            document = document_of(image, objects)
        except InputError as error:
            raise InputError(f"{path}: image {image['id']}: {error}") from None
        indent(document)
        text = tostring(document, encoding="utf-8")
        if unwritable := _NOT_IN_XML.search(text.decode()):
            raise InputError(
                f"{path}: image {image['id']}: its file or the class of an object holds "
                f"{shown(unwritable.group())}, which XML cannot represent; rename it"
            )
        text_before, path_before, before = self._written.setdefault(name, (text, str(path), source))
        if not same_picture(before, source):
            raise InputError(
                f"{path}: another image has the same name {shown(name)} (in {path_before}); rename "
                "one, as VOC keeps all images in one folder"
            )
        if text_before != text:
            raise InputError(
                f"{path}: the image {shown(name)} has other annotations in {path_before} (ids "
                "included), but VOC keeps one per image; make them agree, or convert one split "
                "(--splits)"
            )
        target = self._folder / "Annotations" / f"{name}.xml"
        if not target.exists():
            self._objects += len(objects)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
        return document

    def _check_pictures(self) -> None:
        """Raise InputError for an image that VOC readers would miss or confuse with another."""
        listing = by_stem(each.file for each in self._pictures)
        for each in self._pictures:
            found = find_voc_image(each.name, each.filename, listing, each.where)
            if found != each.file:
                raise InputError(
                    f"{each.where}: VOC readers would use {shown(found)} instead of its image "
                    f"{shown(each.file)}; rename the file, with one of the extensions "
                    f"{', '.join(IMAGE_ENDINGS)}"
                )


def rest_of(split: str) -> str:
    """Return the path of the rest of a split's COCO file in a VOC dataset."""
    folder, name = posixpath.split(split)
    return posixpath.join(folder, REST, f"{name}.json")


def _read_categories(path: Path, categories: Any) -> dict[str, int]:
    """Return ids by class name; raise InputError for names that VOC readers would change."""
    ids = read_categories(path, categories)
    for name in ids:
        if name != name.strip():
            raise InputError(
                f"{path}: the category {shown(name)} begins or ends with a space, which VOC "
                "readers strip; rename it"
            )
    return ids


def _checked_files(path: Path, document: dict[str, Any], categories: dict[str, int]) -> list[str]:
    """Return the files of the images in order; raise InputError where the reader would."""
    images, objects = ImageColumns(path), ObjectColumns(path)
    for image in document["images"]:
        images.add(image)
    for item in progress(document["annotations"], path.stem):
        objects.add(item)
    objects.boxes_xyxy()
    look_up(images, objects, categories)
    return images.files


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
