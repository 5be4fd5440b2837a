"""Write and read COCO results JSON.

Files may come from anywhere: whatever one holds, the only error is an ``InputError`` that names the
entry.
"""

from __future__ import annotations

import json
import logging
import posixpath
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from data.annotations import ENOUGH_TO_JUDGE, NO_CATEGORY, Annotations
from data.errors import InputError, shown, some_of, unreadable
from data.formats.coco_columns import whole_number
from data.formats.run_lengths import compress, described_pixels
from engine.evaluation.detections import LARGEST_DETECTED, Detections, make_detections, sides_of
from engine.process.atomic_file import write_atomically

log = logging.getLogger(__name__)

LARGEST_SCORE = sys.float_info.max


def check_ids(path: str | Path, annotations: Annotations) -> None:
    """Check that the ids of several annotation files do not contradict each other.

    Raises:
        InputError: they do, so the ids in a results file would be ambiguous.
    """
    if annotations.ids_contradict:
        raise InputError(
            f"{path}: COCO results identify images and classes by id, but the files of "
            f"{annotations.source} give one id to several images or classes, or one class several "
            "ids; score one split at a time (--split), or renumber one file"
        )


def write_coco_json(path: str | Path, detections: Detections, annotations: Annotations) -> None:
    """Write COCO results JSON with the dataset's own image and category ids.

    An entry has ``bbox`` as ``[x, y, width, height]`` and, where the detections have masks,
    ``segmentation`` as compressed run lengths. Reading the file gives equal float64 values. (The
    COCO API's own ``loadRes`` takes the area of an entry with both from its box; this program takes
    it from the mask when it scores masks.) Detections of classes that have no category id in the
    data are left out with a warning: the COCO API would ignore them.

    Raises:
        InputError: the ids of several splits contradict each other.
    """
    check_ids(path, annotations)
    named = annotations.category_ids[detections.label] > NO_CATEGORY
    if not named.all():
        lacking = sorted({annotations.classes[label] for label in detections.label[~named]})
        log.warning(
            "%s: left out %d detections of classes without a category id in %s: %s",
            path,
            np.count_nonzero(~named),
            annotations.source,
            some_of(lacking),
        )
        detections = detections.select(np.flatnonzero(named))
    images, categories = annotations.image_ids.tolist(), annotations.category_ids.tolist()
    rows, scores = detections.image.tolist(), detections.score.tolist()
    labels = detections.label.tolist()
    xywh = np.hstack([detections.boxes[:, :2], sides_of(detections.boxes)]).tolist()
    entries: list[dict[str, Any]] = [
        {"image_id": images[row], "category_id": categories[label], "bbox": box, "score": score}
        for row, label, box, score in zip(rows, labels, xywh, scores, strict=True)
    ]
    if detections.rles is not None:
        sizes = annotations.sizes.tolist()
        for entry, row, rle in zip(entries, rows, detections.rles, strict=True):
            entry["segmentation"] = {"size": sizes[row], "counts": rle.decode("ascii")}
    write_atomically(path, json.dumps(entries, allow_nan=False).encode())


def read_coco_json(path: str | Path, annotations: Annotations) -> Detections:
    """Read COCO results JSON: a list of entries with ``bbox``, ``segmentation`` or both.

    Either all entries have a mask or none, and the same holds for boxes; with masks only, the boxes
    around them are used.

    Raises:
        InputError: the file cannot be read or is not such a list; an entry has an unknown image or
            category id, a number that is not finite or far too large, or a damaged mask; the index
            beside the file names an image or a class differently than the data; or the ids of
            several splits contradict each other.
    """
    check_ids(path, annotations)
    entries = _load_entries(Path(path))
    _check_index(Path(path), annotations)
    rows = {image_id: row for row, image_id in enumerate(annotations.image_ids.tolist())}
    labels = {category: label for label, category in enumerate(annotations.category_ids.tolist())}
    cure = "list its class in data.classes, or remove such entries"
    image, label, score = [], [], []
    for index, entry in enumerate(entries):
        where = _entry(path, index)
        image.append(_look_up(entry, "image_id", rows, where, "score the split it was made for"))
        label.append(_look_up(entry, "category_id", labels, where, cure))
        score.append(_number(entry.get("score"), f"{where}: score", LARGEST_SCORE))
    sizes = annotations.sizes[np.array(image, dtype=np.int64)]
    rles = _read_masks(entries, sizes, path)
    if rles is None or any("bbox" in entry for entry in entries):
        boxes = np.array(_read_boxes(entries, path)).reshape(-1, 4)
        _warn_of_wrong_format(path, boxes, sizes)
    else:
        boxes = _boxes_around(rles, sizes)
    return make_detections(image, label, score, boxes, rles)


def index_of(results: Path) -> Path:
    """The file beside results in which ``predict.py`` lists the ids that it assigned."""
    return results.with_name(f"{results.stem}_images.json")


def _check_index(path: Path, annotations: Annotations) -> None:
    """Raise InputError if the index beside a results file contradicts the annotations."""
    index = index_of(path)
    if not index.is_file():
        return
    try:
        content = json.loads(index.read_bytes())
        files = {each["id"]: posixpath.basename(each["file_name"]) for each in content["images"]}
        classes = {each["id"]: each["name"] for each in content["categories"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        log.warning("%s: not an index of %s; ignored", index, path.name)
        return
    own_files = [posixpath.basename(file) for file in annotations.files.tolist()]
    for kind, indexed, ids, names in (
        ("image", files, annotations.image_ids.tolist(), own_files),
        ("category", classes, annotations.category_ids.tolist(), annotations.classes),
    ):
        for identity, name in zip(ids, names, strict=True):
            if indexed.get(identity, name) != name:
                raise InputError(
                    f"{path}: its ids do not match the data: {kind} {identity} is "
                    f"{shown(indexed[identity])} in {index.name}, but {shown(name)} in "
                    f"{annotations.source}; predict with --ids or --comp4, or remove {index.name} "
                    "if it belongs to other results"
                )


def _warn_of_wrong_format(
    path: str | Path, boxes: npt.NDArray[np.float64], sizes_hw: npt.NDArray[np.int32]
) -> None:
    """Warn of boxes that look like fractions or corners instead of ``[x, y, width, height]``."""
    if len(boxes) < ENOUGH_TO_JUDGE:
        return
    fractions = ((boxes[:, 2:] <= 2) & (sizes_hw[:, ::-1] > 2)).all(axis=1).mean()
    leaving = (boxes[:, 2:] > sizes_hw[:, ::-1] + 1).any(axis=1).mean()
    if fractions > 0.5:
        log.warning(
            "%s: %.0f%% of its boxes end within two pixels: are these fractions of the image? COCO "
            "results are in pixels",
            path,
            100 * fractions,
        )
    if leaving > 1 / 3:
        log.warning(
            "%s: %.0f%% of its boxes extend beyond their images: are these corners? COCO results "
            "are [x, y, width, height]",
            path,
            100 * leaving,
        )


def _entry(path: str | Path, index: int) -> str:
    return f"{path}: entry {index} (from 0)"


def _load_entries(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:  # also bytes that are not text, too deep nesting
        raise InputError(f"{path}: not readable as JSON: {error}; write it again") from error
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: COCO results are a list of objects, this file holds {shown(entries)}; "
            "annotations belong under data.root"
        )
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(
                f"{_entry(path, index)} is {shown(entry)}; each must be an object with "
                "image_id, category_id, score and bbox or segmentation"
            )
    return entries


def _look_up(
    entry: Mapping[str, Any], key: str, known: Mapping[int, int], where: str, cure: str
) -> int:
    value = whole_number(entry.get(key))
    if value is None:
        raise InputError(f"{where}: {key} is {shown(entry.get(key))}; it must be a whole number")
    if value not in known:
        raise InputError(f"{where}: {key} {shown(entry.get(key))} is not in the data; {cure}")
    return known[value]


def _number(value: Any, where: str, largest: float) -> float:
    """A JSON number -> float; strings, booleans, NaN and numbers beyond ``largest`` are refused."""
    if type(value) in (int, float) and abs(value) <= largest:
        return float(value)
    raise InputError(f"{where} is {shown(value)}; it must be a finite number up to {largest:g}")


def _read_boxes(entries: list[dict[str, Any]], path: str | Path) -> list[list[float]]:
    return [
        _xyxy(entry.get("bbox"), f"{_entry(path, index)}: bbox")
        for index, entry in enumerate(entries)
    ]


def _xyxy(bbox: Any, where: str) -> list[float]:
    """A JSON ``[x, y, width, height]`` -> ``[xmin, ymin, xmax, ymax]``."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise InputError(f"{where} is {shown(bbox)}; it must be [x, y, width, height]")
    x, y, width, height = (_number(value, where, LARGEST_DETECTED) for value in bbox)
    if width < 0 or height < 0:
        raise InputError(
            f"{where} is {shown(bbox)}: negative width or height; it must be [x, y, width, height]"
        )
    return [x, y, x + width, y + height]


def _read_masks(
    entries: list[dict[str, Any]], sizes: npt.NDArray[np.int32], path: str | Path
) -> list[bytes] | None:
    """The compressed run lengths of all entries; None if no entry has a segmentation."""
    if not any("segmentation" in entry for entry in entries):
        return None
    rles = [
        _run_lengths(entry.get("segmentation"), size, _entry(path, index))
        for index, (entry, size) in enumerate(zip(entries, sizes.tolist(), strict=True))
    ]
    pixels = sizes.astype(np.int64).prod(axis=1)
    damaged = np.flatnonzero(_described_pixels(rles) != pixels)
    if len(damaged) > 0:
        index = int(damaged[0])
        raise InputError(
            f"{_entry(path, index)}: segmentation counts are damaged: they do not decode to the "
            f"image's {pixels[index]} pixels; write the mask again"
        )
    return rles


def _described_pixels(rles: list[bytes]) -> npt.NDArray[np.int64]:
    ends = np.cumsum([len(rle) for rle in rles])
    spans = np.stack([np.append(0, ends[:-1]), ends], axis=1)
    return described_pixels(np.frombuffer(b"".join(rles), dtype=np.uint8), spans)


def _run_lengths(segmentation: Any, size_hw: list[int], where: str) -> bytes:
    """A JSON segmentation -> COCO's compressed run lengths, not yet checked."""
    counts = segmentation.get("counts") if isinstance(segmentation, dict) else None
    if not isinstance(counts, (str, list)):
        raise InputError(
            f"{where}: segmentation is {shown(segmentation)}; it must be run lengths, "
            '{"size": [height, width], "counts": ...}, for every entry or for none'
        )
    if segmentation.get("size") != size_hw:
        raise InputError(
            f"{where}: segmentation size is {shown(segmentation.get('size'))}, but the image is "
            f"{size_hw} (height, width); masks must be of the original image"
        )
    if isinstance(counts, str):
        return counts.encode("utf-8", "surrogatepass")
    try:
        return compress(counts, size_hw)
    except ValueError as error:
        raise InputError(f"{where}: segmentation {error}; write the mask again") from None


def _boxes_around(rles: list[bytes], sizes: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """The boxes (xyxy) around masks; an empty mask has the box 0, 0, 0, 0."""
    xywh = coco_mask.toBbox(
        [{"size": size, "counts": rle} for size, rle in zip(sizes.tolist(), rles, strict=True)]
    )
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
