"""Find every problem of a VOC dataset; a dataset that passes can be trained on."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from xml.etree.ElementTree import Element

from data.errors import InputError, shown, some_of
from data.formats.voc import VOC_CLASSES
from data.formats.voc_images import find_voc_image, images_by_stem, other_voc_image, same_stem
from data.formats.voc_splits import listed_name, read_lines, split_file
from data.formats.voc_xml import (
    VOC_SIDES,
    VocObject,
    parse_voc_xml,
    read_filename,
    read_voc_object,
    read_voc_side,
)
from scripts.dataset_tools.box_checks import Box, Doubles, check_box, is_thin, named
from scripts.dataset_tools.class_checks import SplitClasses, check_classes
from scripts.dataset_tools.image_checks import ImageChecks, is_size_of, share_by_design
from scripts.dataset_tools.layout import Layout, annotation_files, place_of
from scripts.dataset_tools.problems import Action, Problem, not_by_size, problem_of, says_no
from scripts.dataset_tools.progress import progress
from scripts.tables import counted


def check_voc(layout: Layout, splits: Sequence[str], decode: bool) -> list[Problem]:
    """Check the splits, their annotation files and images, and files that no split lists."""
    problems: list[Problem] = []
    members: dict[str, set[str]] = {}
    mentioned: set[str] = set()  # annotation files, also those of faulty lines
    for split in splits:
        members[split], others, found = _check_split(layout.root, split)
        mentioned |= members[split] | others
        problems += found
    problems += _check_leaks(members)
    images = ImageChecks(layout.root, decode, layout.follow_links)
    listings: dict[str, dict[str, str]] = {}
    annotations = sorted(set().union(*members.values()))
    owners: dict[str, list[str]] = defaultdict(list)
    classes: dict[str, set[str]] = {}  # by annotation file
    trainable: dict[str, set[bool]] = {}  # by annotation file, see _Document
    for annotation in progress(annotations, "validate"):
        folder, _ = place_of(annotation)
        if folder not in listings:
            images_of = layout.root / folder / "JPEGImages"
            listings[folder] = images_by_stem(images_of, layout.root, layout.follow_links)
        checked = _Document(layout, annotation, listings[folder], owners)
        problems += checked.check(images)
        classes[annotation] = checked.classes
        trainable[annotation] = checked.trainable
    for image, files in owners.items():
        problems += _check_owners(image, files)
    problems += check_classes(
        {split: _classes_of(own, classes, trainable) for split, own in members.items()}
    )
    problems += images.check_orientations()
    if set(splits) >= set(layout.splits):
        problems += _check_unlisted(layout, mentioned)
    return problems


def _check_split(root: Path, split: str) -> tuple[set[str], set[str], list[Problem]]:
    """Return the annotation files of a split, those that faulty lines may mean, and problems."""
    folder, file = posixpath.dirname(split), split_file(root, split)
    try:
        lines = read_lines(root / file, root)
    except InputError as error:
        return set(), set(), [problem_of(error, str(root / file), file, "", "refuse")]
    problems: list[Problem] = []
    members: set[str] = set()
    mentioned: set[str] = set()
    for row, line in enumerate(lines):
        if line.strip():
            found = _check_line(root, file, folder, line.strip(), row, members)
            if found:
                problems.append(found)
                stem = posixpath.splitext(posixpath.basename(line.strip()))[0]
                mentioned.add(posixpath.join(folder, "Annotations", f"{stem}.xml"))
    if not (members or mentioned):
        cure = "write one image name per line"
        problems.append(Problem(file, "", "lists no images", cure, "error", "refuse"))
    return members, mentioned, problems


def _check_line(
    root: Path, file: str, folder: str, line: str, row: int, members: set[str]
) -> Problem | None:
    item = f"line {row + 1}"
    try:
        name = listed_name(line, root / folder / "Annotations", item)
    except InputError as error:
        return problem_of(error, item, file, item, "drop_line", row)
    annotation = posixpath.join(folder, "Annotations", f"{name}.xml")
    if not os.path.isfile(root / annotation):
        problem, cure = f"{annotation} not found", "add it, or remove the line"
        return Problem(file, item, problem, cure, "error", "drop_line", row)
    if annotation in members:
        problem = f"{shown(name)} is listed twice"
        return Problem(file, item, problem, "list it once", "error", "drop_line", row)
    members.add(annotation)
    return None


def _check_leaks(members: dict[str, set[str]]) -> Iterator[Problem]:
    """Yield overlaps of splits, as one may be trained on and the other scored on."""
    for one, other in combinations(members, 2):
        both = members[one] & members[other]
        if both and not share_by_design(one, other):
            yield Problem(
                f"{one} and {other}", "", f"{counted(len(both), 'image')} in both, the first: "
                f"{shown(min(both))}", "keep each in one split only", "warning", "none",
            )  # fmt: skip


def _check_unlisted(layout: Layout, listed: set[str]) -> Iterator[Problem]:
    years = ["", *(path.parent.name for path in sorted(layout.root.glob("*/Annotations")))]
    for file in (file for year in years for file in annotation_files(layout, year)):
        if file not in listed:
            cure = "list it in ImageSets/Main, or remove it"
            yield Problem(file, "", "no split lists it", cure, "warning", "none")


def _check_owners(image: str, files: list[str]) -> Iterator[Problem]:
    """Yield annotation files that share an image, except the one named like the image."""
    stem = posixpath.splitext(image.replace("JPEGImages/", "Annotations/", 1))[0]
    own = f"{stem}.xml"
    for file in files:
        if len(files) > 1 and file != own:
            other = own if own in files else next(each for each in files if each != file)
            problem = f"has the same image {shown(image)} as {other}"
            cure = "correct <filename> in one of them"
            yield Problem(file, "", problem, cure, "error", "drop_image")


def _classes_of(
    annotations: set[str], classes: dict[str, set[str]], trainable: dict[str, set[bool]]
) -> SplitClasses:
    """Return the classes of a split as the reader finds them: VOC's 20 if it has no others."""
    used: dict[str, str] = {}
    for annotation in sorted(annotations):
        for name in classes[annotation]:
            used.setdefault(name, annotation)
    known = VOC_CLASSES if used.keys() <= set(VOC_CLASSES) else used
    kinds = {kind for annotation in annotations for kind in trainable[annotation]}
    names = frozenset(known if annotations else ())
    return SplitClasses(names, used, trains=False in kinds, is_difficult=True in kinds)


@dataclass(frozen=True)
class _Object:
    """A readable object: its position in the file, its box as trained on and as written."""

    row: int
    name: str
    box: Box
    written: Box
    difficult: bool


class _Document:
    """One annotation file."""

    def __init__(
        self, layout: Layout, file: str, listing: dict[str, str], owners: dict[str, list[str]]
    ) -> None:
        self._layout = layout
        self._file = file
        self._path = layout.root / file
        self._listing = listing
        self._owners = owners
        self.classes: set[str] = set()  # of readable objects
        # the difficult flags of objects that may be trained on
        self.trainable: set[bool] = set()

    def check(self, images: ImageChecks) -> list[Problem]:
        try:
            annotation = parse_voc_xml(self._path)
        except InputError as error:
            return [problem_of(error, str(self._path), self._file, "", "drop_image")]
        problems: list[Problem] = []
        size = self._size(annotation, problems)
        objects = self._objects(annotation, problems)
        self.trainable = {each.difficult for each in objects if not is_thin(each.box, size)}
        try:
            image = self._image(annotation, problems)
        except InputError as error:
            problem = problem_of(error, str(self._path), self._file, "", "drop_image")
            return [*problems, problem]
        is_told = any(problem.action == "set_size" for problem in problems)
        true_size, found = images.check(self._file, "", image, size, -1, is_told)
        problems += found
        if not is_size_of([each.box for each in objects], true_size, size):
            problems = [not_by_size(problem) for problem in problems]
        doubles = Doubles()
        for each in objects:
            item = named(each.row + 1, each.name)
            one = check_box(self._file, item, each.row, each.box, each.written, true_size, 0.0)
            key = (each.name, each.box, each.difficult)
            one = one or doubles.check(self._file, item, each.row, key)
            problems += [one] if one else []
        return problems

    def _size(self, annotation: Element, problems: list[Problem]) -> tuple[int, int]:
        try:
            sides = [read_voc_side(annotation, side, self._path) for side in VOC_SIDES]
        except InputError as error:
            problems.append(problem_of(error, str(self._path), self._file, "", "set_size"))
            return 0, 0
        return sides[0], sides[1]

    def _objects(self, annotation: Element, problems: list[Problem]) -> list[_Object]:
        """Return the readable objects, if necessary without their flag."""
        objects = []
        for row, element in enumerate(annotation.findall("object")):
            name = (element.findtext("name") or "").strip()
            item = named(row + 1, name)
            found, error = _read_object(element, item)
            if error is not None:
                action: Action = "drop_object" if found is None else "clear_difficult"
                place = item if str(error).startswith(f"{item}: ") else f"{item} ({shown(name)})"
                problems.append(problem_of(error, place, self._file, item, action, row))
            if found is not None:
                self.classes.add(name)
                box = self._continuous(found.box)
                objects.append(_Object(row, name, box, found.box, found.difficult))
        return objects

    def _continuous(self, box: Box) -> Box:
        """Convert a box as the loader does: corners that share a row or column have no area."""
        x1, y1, x2, y2 = box
        if self._layout.zero_based or x2 <= x1 or y2 <= y1:
            return box
        return x1 - 1, y1 - 1, x2, y2

    def _image(self, annotation: Element, problems: list[Problem]) -> str:
        folder, name = place_of(self._file)
        filename = read_filename(annotation)
        found = find_voc_image(name, filename, self._listing, str(self._path))
        other = other_voc_image(name, filename, self._listing)
        if other:
            problem = f"its <filename> names the image {shown(other)}, but {shown(found)} is used"
            cure = "correct <filename>, or give the image and the annotation the same name"
            problems.append(Problem(self._file, "", problem, cure, "warning", "none"))
        several = same_stem(name, filename, self._listing)
        if several:
            problem = f"JPEGImages has {some_of(several)} with its name; {shown(found)} is used"
            cure = "name the image in <filename>, or move the others elsewhere"
            problems.append(Problem(self._file, "", problem, cure, "warning", "none"))
        image = posixpath.join(folder, "JPEGImages", found)
        self._owners[image].append(self._file)
        return image


def _read_object(element: Element, item: str) -> tuple[VocObject | None, InputError | None]:
    """Return an object and its error; a malformed ``<difficult>`` that means 0 is cleared."""
    try:
        return read_voc_object(element, item), None
    except InputError as error:
        first = error
    flags = element.findall("difficult")
    if not flags or not says_no(flags[-1].text):
        return None, first
    cleared = deepcopy(element)
    for flag in cleared.findall("difficult"):
        flag.text = "0"
    try:
        return read_voc_object(cleared, item), first
    except InputError as error:  # the flag is not the only error
        return None, error
