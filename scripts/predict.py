"""Detect objects in images and videos with a trained checkpoint.

    python scripts/predict.py runs/my_run/best.pt photo.jpg
    python scripts/predict.py runs/my_run/best.pt photos/ 'more/*.png' --output found
    python scripts/predict.py runs/my_run/best.pt clip.mp4 --batch 8
    python scripts/predict.py runs/my_run/best.pt photos/ --coco found.json --no-pictures

An input is an image, a folder (searched recursively), a glob pattern or a video. Images with boxes,
masks, class names and scores drawn in are written to --output, videos as videos; inputs are never
overwritten, and files already in --output are not read as inputs of a folder around it. --coco
writes COCO results JSON for the images, --comp4 the VOC devkit's files, --json prints all
detections; these include all detections above detector.score_threshold, the drawn images only those
above --threshold. A damaged file ends the run; with data.on_damaged=skip it is reported and
skipped. A video that ends before its header says is processed as far as it goes, with a warning.
Config overrides (data.image_size=[480,640] train.device=cpu train.amp=bf16) may be given among the
inputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.standard_output import is_watched, status_of_tool, tool
from engine.process.threads import limit_spinning

limit_spinning()  # torch reads it when it is imported

# ruff: noqa: E402
import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from data.errors import InputError
from data.images import DamagedImageError, Pixels, read_image
from engine.config import split_words
from engine.evaluation.coco_results import index_of
from engine.evaluation.comp4 import check_comp4, write_comp4
from engine.evaluation.detections import Detections, concatenate, make_detections
from engine.evaluation.drawing import draw_detections
from engine.predictor import Predictor, unannotated
from engine.process.outputs import check_outputs
from engine.trained import load_trained
from scripts.number_types import at_least, score_threshold
from scripts.prediction.coco_ids import CocoIds, read_ids, write_coco
from scripts.prediction.inputs import (
    Source,
    Video,
    damaged_video,
    find_sources,
    open_video,
)
from scripts.prediction.output_paths import check_targets, target_of
from scripts.prediction.pictures import VideoWriter, write_picture


@dataclass
class Found:
    """Detections in the images so far, and the damaged files that were skipped."""

    names: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    parts: list[Detections] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, sources: Sequence[Source], images: Sequence[Pixels], found: Detections) -> None:
        """Append a batch of images."""
        moved = found.image + len(self.names)
        self.names += [source.name for source in sources]
        self.files += [source.inside.as_posix() for source in sources]
        self.sizes += [(image.shape[0], image.shape[1]) for image in images]
        self.parts.append(make_detections(moved, found.label, found.score, found.boxes, found.rles))

    def leave_out(self, source: Source, predictor: Predictor, error: DamagedImageError) -> None:
        """Report a damaged source and skip it.

        Raises:
            DamagedImageError: ``data.on_damaged`` is ``raise``.
        """
        if predictor.trained.config.data.on_damaged == "raise":
            raise error
        self.left_out.append(str(source.path))
        tqdm.write(f"predict.py: skipped: {error.complaint}", file=sys.stderr)


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    words, overrides = split_words(options.words)
    if len(words) < 2:
        raise InputError("give a checkpoint, then images, folders, patterns or videos")
    if options.ids is not None and options.coco is None:
        raise InputError("--ids: only applies to COCO results; add --coco FILE")
    sources = find_sources(words[1:], options.output)
    drawn_to = None if options.no_pictures else options.output
    check_targets(sources, drawn_to, comp4=options.comp4 is not None)
    drawn = [] if drawn_to is None else [target_of(source, drawn_to) for source in sources]
    index = None if options.coco is None or options.ids is not None else index_of(options.coco)
    read = [words[0], options.ids, *(source.path for source in sources)]
    check_outputs([*drawn, options.coco, index], read, folders=[options.comp4])
    trained = load_trained(words[0], overrides)
    predict(sources, Predictor(trained), options)
    return 0


def predict(sources: Sequence[Source], predictor: Predictor, options: argparse.Namespace) -> None:
    """Detect in all sources and write the requested outputs."""
    start = time.perf_counter()
    ids = None  # wrong ids and names are reported now, not after all sources were processed
    if options.ids is not None:
        files = [source.inside.as_posix() for source in sources if not source.is_video]
        ids = read_ids(options.ids, files, predictor.trained.classes)
    if options.comp4 is not None:
        check_comp4(unannotated([], [], predictor.trained.classes))
    found, videos = detect_in_all(sources, predictor, options, ids)
    if len(found.left_out) == len(sources):
        raise InputError("all files are damaged and were skipped; nothing was written")
    seconds = time.perf_counter() - start
    annotations = unannotated(found.names, found.sizes, predictor.trained.classes, options.set)
    detections = concatenate(found.parts)
    speed = {
        "pictures": predictor.images,
        "seconds": round(seconds, 3),
        "pictures_per_second": round(predictor.images / seconds, 2),
        "detector_per_second": round(predictor.images / max(predictor.seconds, 1e-9), 2),
    }
    # Print even if a file cannot be written, and write the files even if the pipe is closed.
    try:
        if options.json:
            listed = as_json(detections, found.sizes, predictor.trained.classes)
            images_found = dict(zip(found.files, listed, strict=True))
            rest = {"videos": videos, "left_out": found.left_out, "speed": speed}
            print(json.dumps({"images": images_found, **rest}))
        else:
            print(summary(found, detections, videos, predictor, options.threshold))
    finally:
        if options.coco:
            write_coco(options.coco, detections, annotations, found.files, ids)
        if options.comp4:
            write_comp4(options.comp4, detections, annotations)
    if options.json:
        return
    for path in (None if options.no_pictures else options.output, options.coco, options.comp4):
        if path is not None:
            print(f"written: {path}")
    print(
        f"{speed['pictures']} images in {seconds:.1f} s: {speed['pictures_per_second']} images/s, "
        f"detector only {speed['detector_per_second']} images/s "
        f"({predictor.trained.device.type}, batch {options.batch})"
    )


def detect_in_all(
    sources: Sequence[Source],
    predictor: Predictor,
    options: argparse.Namespace,
    ids: CocoIds | None,
) -> tuple[Found, dict[str, Any]]:
    """Return the detections in the images, and the report of each video by its path."""
    images = [source for source in sources if not source.is_video]
    found, videos = Found(), {}
    hidden = not is_watched()
    with tqdm(total=len(sources), unit="file", delay=2, leave=False, disable=hidden) as bar:
        for batch in in_batches(iter(images), options.batch):
            detect_in_images(batch, predictor, found, options, ids)
            bar.update(len(batch))
        for source in sources:
            if source.is_video:
                try:
                    videos[str(source.path)] = detect_in_video(source, predictor, options)
                except DamagedImageError as error:
                    found.leave_out(source, predictor, error)
                bar.update()
    return found, videos


def in_batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of ``size`` items; the last one may be shorter."""
    while batch := list(islice(items, size)):
        yield batch


def detect_in_images(
    batch: Sequence[Source],
    predictor: Predictor,
    found: Found,
    options: argparse.Namespace,
    ids: CocoIds | None,
) -> None:
    """Detect in a batch of image files, oriented as in training, and draw the detections."""
    data = predictor.trained.config.data
    opened, images = [], []
    for source in batch:
        size = None if ids is None else ids.size_of(source.inside.as_posix())
        try:
            images.append(
                read_image(source.path, size, data.max_image_pixels, data.exif == "ignore")
            )
            opened.append(source)
        except DamagedImageError as error:
            found.leave_out(source, predictor, error)
    if not images:
        return
    detections = predictor(images)
    found.add(opened, images, detections)
    if options.no_pictures:
        return
    for source, picture in zip(
        opened, drawn(images, detections, predictor, options.threshold), strict=True
    ):
        write_picture(target_of(source, options.output), picture)


def detect_in_video(
    source: Source, predictor: Predictor, options: argparse.Namespace
) -> dict[str, Any]:
    """Detect in the frames of a video, write the drawn video, and return its report.

    With ``--json`` the report holds the detections of each frame.

    Raises:
        DamagedImageError: no frame can be decoded.
    """
    video = open_video(source.path)
    target = None if options.no_pictures else target_of(source, options.output)
    frames = objects = 0
    listed: list[list[dict[str, Any]]] = []
    with VideoWriter(target, video.rate) as writer:
        for batch in in_batches(_shown(video), options.batch):
            detections = predictor(batch)
            frames += len(batch)
            objects += int((detections.score >= options.threshold).sum())
            if options.json:
                sizes = [(frame.shape[0], frame.shape[1]) for frame in batch]
                listed += as_json(detections, sizes, predictor.trained.classes)
            if target is not None:
                for picture in drawn(batch, detections, predictor, options.threshold):
                    writer.write(picture)
    if not frames:
        raise damaged_video(source.path, "no frame of the video can be decoded")
    if video.lacks(frames):
        tqdm.write(
            f"predict.py: {source.path}: ends after {frames} of the {video.frames} frames in its "
            "header; check whether it is truncated or damaged, or was only trimmed",
            file=sys.stderr,
        )
    report = {
        "frames": frames,
        "promised": video.frames or None,
        "objects": objects,
        "written": str(target) if target else None,
    }
    return {**report, "detections": listed} if options.json else report


def _shown(video: Video) -> Iterator[Pixels]:
    total, hidden = video.frames or None, not is_watched()
    name = video.path.name
    yield from tqdm(video, name, total, unit="frame", delay=2, leave=False, disable=hidden)


def drawn(
    images: Sequence[Pixels], detections: Detections, predictor: Predictor, threshold: float
) -> Iterator[Pixels]:
    """Yield the images with their detections drawn in, at their original size."""
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    annotations = unannotated([""] * len(images), sizes, predictor.trained.classes)
    for row, image in enumerate(images):
        yield draw_detections(image, row, annotations, detections, threshold)


def summary(
    found: Found,
    detections: Detections,
    videos: dict[str, Any],
    predictor: Predictor,
    threshold: float,
) -> str:
    """Format a line for each image (the first twenty) and video: objects of each class."""
    lines = []
    for row, file in enumerate(found.files[:20]):
        sure = (detections.image == row) & (detections.score >= threshold)
        counts = np.bincount(detections.label[sure], minlength=len(predictor.trained.classes))
        named = [
            f"{count} {name}"
            for name, count in zip(predictor.trained.classes, counts.tolist(), strict=True)
            if count
        ]
        lines.append(f"{file}: {', '.join(named) or 'nothing'}")
    if len(found.files) > 20:
        lines.append(f"... and {len(found.files) - 20} more images")
    for name, video in videos.items():
        lines.append(f"{name}: {video['frames']} frames, {video['objects']} objects")
    return "\n".join(lines)


def as_json(
    detections: Detections, sizes_hw: Sequence[tuple[int, int]], classes: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Return ``[{"class", "score", "box"}]`` for each image, boxes xyxy in pixels.

    With masks there is also ``"segmentation"``: compressed RLE as in COCO results.
    """
    result: list[list[dict[str, Any]]] = [[] for _ in sizes_hw]
    for number, (row, label, score, box) in enumerate(
        zip(
            detections.image.tolist(),
            detections.label.tolist(),
            detections.score.tolist(),
            detections.boxes.tolist(),
            strict=True,
        )
    ):
        entry = {"class": classes[label], "score": score, "box": box}
        if detections.rles is not None:
            counts = detections.rles[number].decode("ascii")
            entry["segmentation"] = {"size": list(sizes_hw[row]), "counts": counts}
        result[row].append(entry)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="+", metavar="CHECKPOINT INPUT", help="a checkpoint, then inputs"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("predictions"),
        help="folder for drawn images (predictions)",
    )
    parser.add_argument(
        "--threshold",
        type=score_threshold,
        default=0.5,
        help="minimum score to draw (0.5)",
    )
    parser.add_argument("--batch", type=at_least(1), default=1, help="images per batch (1)")
    parser.add_argument("--no-pictures", action="store_true", help="draw nothing")
    parser.add_argument("--coco", type=Path, metavar="FILE", help="write COCO results JSON")
    parser.add_argument(
        "--ids",
        type=Path,
        metavar="FILE",
        help="COCO annotations whose image and category ids --coco uses, by file and class name",
    )
    parser.add_argument("--comp4", type=Path, metavar="FOLDER", help="write VOC comp4 text files")
    parser.add_argument("--set", default="test", help="set in comp4 file names (test)")
    parser.add_argument("--json", action="store_true", help="print the detections as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
