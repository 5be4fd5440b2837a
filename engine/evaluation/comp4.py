"""Detection files of the VOC devkit: a folder with ``comp4_det_<set>_<class>.txt`` per class.

A line is ``<image name> <score> <xmin> <ymin> <xmax> <ymax>``, in the devkit's 1-based inclusive
pixels: this project's ``(xmin, ymin, xmax, ymax)`` is ``(xmin + 1, ymin + 1, xmax, ymax)`` there.
Image names may contain spaces.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data.annotations import Annotations
from data.errors import InputError, shown, some_of, unreadable
from engine.evaluation.detections import LARGEST_DETECTED, Detections, make_detections
from engine.process.atomic_file import write_atomically

TO_DEVKIT = np.array([1.0, 1.0, 0.0, 0.0])


def check_comp4(annotations: Annotations) -> None:
    """Check that classes and images can be named in comp4 files.

    Raises:
        InputError: a class cannot be part of a file name, or two images share a name.
    """
    _file_names(annotations)
    _rows_by_name(annotations)


def write_comp4(folder: str | Path, detections: Detections, annotations: Annotations) -> None:
    """Write one file per class, including classes without detections.

    Scores and coordinates are written with all their digits: reading them gives equal values, as
    long as adding 1 to a coordinate is exact, which it is for coordinates computed in float32.

    Raises:
        InputError: see ``check_comp4``; or the files cannot be written.
    """
    check_comp4(annotations)
    names = annotations.names.tolist()
    rows = detections.image.tolist()
    scores = detections.score.tolist()
    boxes = (detections.boxes + TO_DEVKIT).tolist()
    for label, file_name in enumerate(_file_names(annotations)):
        lines = [
            f"{names[rows[d]]} {scores[d]!r} {' '.join(map(repr, boxes[d]))}\n"
            for d in np.flatnonzero(detections.label == label).tolist()
        ]
        write_atomically(Path(folder) / file_name, "".join(lines).encode())


def read_comp4(folder: str | Path, annotations: Annotations) -> Detections:
    """Read the files of the annotations' split; a class without a file has no detections.

    Raises:
        InputError: the folder has no file of this split (files of a split whose name only begins
            like it are ignored), or a file of a class that is not scored; a line does not have six
            fields, names an unknown image, or has a number that is not finite or far too large.
    """
    folder = Path(folder)
    expected = _file_names(annotations)
    found = _files_of_split(folder, annotations, expected)
    rows = _rows_by_name(annotations)
    image, label, numbers = [], [], []
    for class_label, file_name in enumerate(expected):
        if file_name not in found:
            continue
        for where, line in _lines(folder / file_name):
            row, values = _parse(line, rows, where)
            image.append(row)
            label.append(class_label)
            numbers.append(values)
    table = np.array(numbers, dtype=np.float64).reshape(-1, 5)
    boxes = table[:, 1:] - TO_DEVKIT
    np.maximum(boxes[:, 2:], boxes[:, :2], out=boxes[:, 2:])  # no width below 0 by rounding
    return make_detections(image, label, table[:, 0], boxes)


def _prefix(annotations: Annotations) -> str:
    """The prefix ``comp4_det_<set>_``; for a split such as ``folder/val`` the set is ``val``."""
    return f"comp4_det_{annotations.split.rpartition('/')[2]}_"


def _file_names(annotations: Annotations) -> list[str]:
    for name in annotations.classes:
        if "/" in name or "\\" in name or "\0" in name:
            raise InputError(
                f"{annotations.source}: class {name!r} cannot be part of a file name; "
                "use COCO results JSON instead of comp4 files"
            )
    return [f"{_prefix(annotations)}{name}.txt" for name in annotations.classes]


def _files_of_split(folder: Path, annotations: Annotations, expected: list[str]) -> set[str]:
    prefix = _prefix(annotations)
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise unreadable(folder, error) from error
    found = {name for name in names if name.startswith(prefix) and name.endswith(".txt")}
    others = {name for name in found if _belongs_to_longer_set(name[len(prefix) : -4], annotations)}
    found -= others.difference(expected)
    if not found:
        raise InputError(
            f"{folder}: holds no detections of the split {annotations.split!r}; expected one file "
            f"per class: {some_of(expected, most=3)}"
        )
    unknown = sorted(found.difference(expected))
    if unknown:
        raise InputError(
            f"{folder / unknown[0]}: {unknown[0][len(prefix) : -4]!r} is not one of the classes; "
            "list it in data.classes or remove the file"
        )
    return found


def _belongs_to_longer_set(rest: str, annotations: Annotations) -> bool:
    """Whether ``old_cat``, behind the prefix of the set ``test``, is a cat of ``test_old``."""
    return any(rest.endswith(f"_{name}") for name in annotations.classes)


def _rows_by_name(annotations: Annotations) -> dict[str, int]:
    """Image rows by name, stripped of surrounding spaces, which lines cannot represent."""
    names = [name.strip() for name in annotations.names.tolist()]
    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < len(names):
        doubled = Counter(names).most_common(1)[0][0]
        raise InputError(
            f"{annotations.source}: two images are named {doubled!r}, so comp4 files cannot tell "
            "them apart; use COCO results JSON"
        )
    return rows


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the non-blank lines of a file, each with its location for error messages."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not text in UTF-8 (byte {error.start}); write it again"
        ) from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}: line {number}", line


def _parse(line: str, rows: Mapping[str, int], where: str) -> tuple[int, list[float]]:
    """A line -> the row of its image, and score, xmin, ymin, xmax, ymax as written."""
    fields = line.rsplit(maxsplit=5)
    if len(fields) != 6:
        raise InputError(
            f"{where}: {len(fields)} fields; write <image name> <score> <xmin> <ymin> <xmax> <ymax>"
        )
    row = rows.get(fields[0].strip())
    if row is None:
        raise InputError(
            f"{where}: image {shown(fields[0])} is not in the data; score the split it was made for"
        )
    try:
        score, *box = (float(number) for number in fields[1:])
    except ValueError:
        raise InputError(
            f"{where}: {shown(' '.join(fields[1:]))} are not five numbers; "
            "a line is: image score xmin ymin xmax ymax"
        ) from None
    if not math.isfinite(score) or not all(abs(value) <= LARGEST_DETECTED for value in box):
        raise InputError(
            f"{where}: a number is not finite, or a coordinate exceeds "
            f"{LARGEST_DETECTED:g}; write pixels of the image"
        )
    # A box without width is written as xmin = xmax + 1, rounded: adding rounds in the same way.
    if box[2] + 1 < box[0] or box[3] + 1 < box[1]:
        raise InputError(f"{where}: xmax < xmin or ymax < ymin; corners are xmin ymin xmax ymax")
    return row, [score, *box]
