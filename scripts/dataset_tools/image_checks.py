"""Checks of image files: present, undamaged, of the annotated size, and not duplicated."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from data.config import DataConfig
from data.errors import InputError, shown
from data.image_sizes import MOST_PIXELS
from data.images import DamagedImageError, Pixels, read_image, read_orientation
from data.paths import OTHERWISE_WRITTEN, by_spelling, check_inside, spelling
from scripts.dataset_tools.box_checks import Box
from scripts.dataset_tools.problems import Action, Problem, problem_of
from scripts.tables import counted

Size = tuple[int, int]

_LIMIT: int = DataConfig().max_image_pixels  # a config may raise it
_BRIGHT = 32  # of 255: a darker image shows a detector next to nothing


class ImageChecks:
    """Checks the images of one dataset.

    Args:
        root: of the dataset.
        decode: decode every image completely; False only checks that it exists and may be
            read, and opens those whose annotation gives no size.
        follow_links: allow images that are links to outside the root.
    """

    def __init__(self, root: Path, decode: bool, follow_links: bool) -> None:
        self._root = root
        self._decode = decode
        self._follow_links = follow_links
        self._seen: dict[bytes, list[str]] = defaultdict(list)
        self._unsettled: list[str] = []  # images whose size does not tell what EXIF does to boxes
        self._settled: Counter[str] = Counter()
        self._listed: dict[Path, dict[str, str]] = {}  # by folder, its names by their spelling

    def check(
        self, file: str, entry: str, image: str, size_hw: Size, row: int, is_told: bool = False
    ) -> tuple[Size, list[Problem]]:
        """Check one image.

        Args:
            file: the annotation file, for messages.
            entry: the image's name in that file; empty if the file is about a single image.
            image: the image file, relative to the root.
            size_hw: annotated size; 0 if missing.
            row: the position of the image's entry in its file.
            is_told: whether the missing size has already been reported.

        Returns:
            Its size (that of the file if the annotation is wrong), and its problems.
        """
        path = self._root / image
        if not os.path.isfile(path):
            problem, cure = f"the image {image} is missing", self._cure_of_missing(path)
            return size_hw, [Problem(file, entry, problem, cure, "error", "drop_image", row)]
        link = None if self._follow_links else self._refused_link(path, image, row)
        if link is not None:
            return size_hw, [link]
        try:
            if not self._decode and all(size_hw):
                return size_hw, [*_check_limit(image, size_hw)]
            pixels, mismatch = _read_pixels(path, size_hw)
        except InputError as error:
            return size_hw, [_damaged(error, path, image, size_hw, row)]
        is_settled = self._note_orientation(path, image, size_hw)
        found: Size = (pixels.shape[0], pixels.shape[1])
        problems = [
            *_check_limit(image, found),
            *self._check_double(path, image),
            *_check_brightness(pixels, image),
        ]
        if mismatch is not None:
            problems.append(problem_of(mismatch, str(path), file, entry, "set_size", row))
        elif not all(size_hw) and not is_told:
            problem = f"lacks the size of {image}, so every run has to open the image"
            cure = f"write width {found[1]} and height {found[0]}"
            # A size would imply that boxes are of the upright image.
            action: Action = "set_size" if is_settled else "leave_size"
            problems.append(Problem(file, entry, problem, cure, "warning", action, row))
        return found, problems

    def _refused_link(self, path: Path, image: str, row: int) -> Problem | None:
        try:
            check_inside(self._root, path, str(self._root))
        except InputError as error:
            link = problem_of(error, str(self._root), image, "", "allow_link", row)
            return replace(link, cure=f"{link.cure}; here: --follow-links")
        return None

    def _cure_of_missing(self, path: Path) -> str:
        folder = path.parent
        if not folder.is_dir():
            place = shown(folder.relative_to(self._root).as_posix())
            return f"folder {place} not found: move or rename the folder of the images"
        if folder not in self._listed:
            try:
                self._listed[folder] = by_spelling(os.listdir(folder))
            except PermissionError:
                return f"{shown(folder.name)} cannot be read: check its permissions"
            except OSError:
                self._listed[folder] = {}
        other = self._listed[folder].get(spelling(path.name))
        if other is None:
            return "add it, or remove the image from the annotations"
        return f"there is {shown(other)}, which {OTHERWISE_WRITTEN}"

    def check_orientations(self) -> Iterator[Problem]:
        """Yield one warning for all images whose size leaves open how EXIF affects their boxes."""
        if not self._unsettled:
            return
        upright, stored = self._settled["upright"], self._settled["stored"]
        problem = (
            f"{counted(len(self._unsettled), 'image')} (the first is named) with an EXIF "
            "orientation, and an annotated size that leaves open whether boxes are in upright or "
            f"stored pixels; where the size is conclusive, {upright} have boxes in upright and "
            f"{stored} in stored pixels"
        )
        cure = "inspect some, and set data.exif: apply for upright, ignore for stored pixels"
        yield Problem(self._unsettled[0], "", problem, cure, "warning", "none")

    def _note_orientation(self, path: Path, image: str, size_hw: Size) -> bool:
        """Return whether it is known if boxes are in upright or stored pixels."""
        orientation, stored = read_orientation(path)
        upright = stored[::-1] if orientation >= 5 else stored
        if orientation == 1 or (all(size_hw) and size_hw not in (stored, upright)):
            return True
        if upright == stored or not all(size_hw):
            self._unsettled.append(image)
            return False
        self._settled["upright" if size_hw == upright else "stored"] += 1
        return True

    def _check_double(self, path: Path, image: str) -> list[Problem]:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        before = self._seen[digest]
        others = (each for each in before if each != image and not _by_design(each, image))
        first = next(others, None)
        before.append(image)
        if first is None:
            return []
        cure = "keep one of them, and never have one in training and one in validation"
        return [Problem(image, "", f"is the same image as {first}", cure, "warning", "none")]


def _damaged(error: InputError, path: Path, image: str, size_hw: Size, row: int) -> Problem:
    problem = problem_of(error, str(path), image, "", "drop_image", row)
    if isinstance(error, DamagedImageError) and not all(size_hw):  # cannot be skipped
        return replace(problem, cure="replace the file, or add its size to the annotation")
    return problem


def _check_limit(image: str, size_hw: Size) -> Iterator[Problem]:
    height, width = size_hw
    if height * width > _LIMIT:
        problem = f"its {width}x{height} pixels exceed data.max_image_pixels={_LIMIT}"
        cure = "split the image into tiles, or raise the limit in the config"
        yield Problem(image, "", problem, cure, "error", "none")


def _check_brightness(pixels: Pixels, image: str) -> Iterator[Problem]:
    brightest = pixels.max()
    if brightest < _BRIGHT:
        problem = f"is nearly black: its brightest value is {brightest} of 255"
        cure = "if it has 10 to 14 bits stored in 16, rescale it: only the upper 8 are read"
        yield Problem(image, "", problem, cure, "warning", "none")


def _read_pixels(path: Path, size_hw: Size) -> tuple[Pixels, InputError | None]:
    """Return the pixels of an image, and the error of its annotated size, if any."""
    wanted = size_hw if all(size_hw) else None
    try:
        return read_image(path, wanted, MOST_PIXELS), None
    except DamagedImageError:
        raise
    except InputError as error:  # of another size, or too large: that raises again
        return read_image(path, None, MOST_PIXELS), error


def _by_design(first: str, second: str) -> bool:
    """Return whether a duplicate is by design: COCO's trainval repeats train and val."""
    (split, _, name), (other, _, other_name) = first.partition("/"), second.partition("/")
    return name == other_name and share_by_design(split, other)


def share_by_design(one: str, other: str) -> bool:
    """Return whether one split is the trainval of which the other is the train or val."""
    one, other = one.casefold(), other.casefold()
    parts = {
        (whole, whole.replace("trainval", part))
        for whole in (one, other)
        for part in ("train", "val")
        if "trainval" in whole
    }
    return (one, other) in parts or (other, one) in parts


def is_size_of(boxes_xyxy: Collection[Box], found_hw: Size, written_hw: Size) -> bool:
    """Return whether boxes clearly belong to the found image size, not to the annotated one.

    They do if they fit into the found size only. If they fit into both, the annotated size may be
    wrong, or the image was resized after annotation.
    """
    if not boxes_xyxy:
        return True
    return _fit(boxes_xyxy, found_hw) and not _fit(boxes_xyxy, written_hw)


def _fit(boxes_xyxy: Collection[Box], size_hw: Size) -> bool:
    height, width = size_hw
    return all(x2 <= width + 1 and y2 <= height + 1 for _, _, x2, y2 in boxes_xyxy)
