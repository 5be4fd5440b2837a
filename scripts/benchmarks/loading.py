"""From JPEG files and annotations to normalized batches, against torchvision's pipeline."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import cv2
import torch

from data.errors import InputError
from scripts.benchmarks.drawn_voc import YEAR, draw_devkit
from scripts.benchmarks.machine import describe_machine
from scripts.benchmarks.pipelines import Loaded, OurPipeline, TheirPipeline
from scripts.benchmarks.report import Report, Row
from scripts.benchmarks.timing import alternate, median, worst_of

LARGEST_BOX_DIFFERENCE = 1.5  # pixels: each side rounds the resized size differently
LARGEST_PIXEL_DIFFERENCE = 0.1  # on average, in standard deviations: one of the filters antialiases
GROWTH_ROUNDS = 4  # with one for warm-up, one epoch of the short split
FIRST_PIXEL = torch.tensor([1.0, 1.0, 0.0, 0.0])  # VOC counts pixels from 1


def run_loading(options: argparse.Namespace) -> Report:
    """Report a row for each number of workers and each augmentation."""
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        folder = root / "VOCdevkit" / f"VOC{YEAR}"
        if options.root is None:
            draw_devkit(root, options.images)
        if not any(folder.glob("JPEGImages/*.jpg")):
            raise InputError(f"--root: no images in {folder}/JPEGImages; choose another")
        size = sum(file.stat().st_size for file in folder.glob("JPEGImages/*.jpg"))
        count = len(list(folder.glob("JPEGImages/*.jpg")))
        title = f"Loading: {count} JPEGs of {size / count / 1000:.0f} kB to 600 x 800, batch"
        report = Report(f"{title} {options.batch}", describe_machine(device))
        report.checks.append(check_batches(root, folder, device))
        for workers in options.workers:
            for augmentation in ("flip", "albumentations"):
                report.rows.append(_compare(root, folder, workers, augmentation, options))
        if options.growth:
            report.rows.append(_growth(folder, options))
    return report


def _compare(
    root: Path, folder: Path, workers: int, augmentation: str, options: argparse.Namespace
) -> Row:
    device = torch.device(options.device)
    ours = OurPipeline(folder, options.batch, workers, augmentation, device, options.channels_last)
    theirs = TheirPipeline(root, options.batch, workers, augmentation, device)
    sides = {"ours": _drain(ours.batches), "theirs": _drain(theirs.batches)}
    with one_core() if workers == 0 else nullcontext():
        seconds = alternate(sides, options.repeats, device)
    ours.close()
    where = "one core, in the process" if workers == 0 else f"{workers} workers"
    images = len(ours.rows)
    # Our loader fills up the last batch of each shape; the time of theirs is for as many images.
    share = images / len(ours.annotations)
    seconds["theirs"] = [share * value for value in seconds["theirs"]]
    name = f"{where}, {augmentation}"
    milliseconds = " / ".join(f"{1e3 * median(seconds[side]) / images:.2f}" for side in sides)
    notes = {"ms an image, ours / theirs": milliseconds}
    return Row(name, seconds["ours"], seconds["theirs"], images, notes)


def _growth(folder: Path, options: argparse.Namespace) -> Row:
    """Time our loader on the same files with a short and a long list of images."""
    device = torch.device(options.device)
    few, many = options.growth
    batches = few // options.batch // (GROWTH_ROUNDS + 1)
    if many <= few:
        raise InputError(f"--growth {few} {many}: the second number must be larger")
    if batches == 0:
        raise InputError(
            f"--growth {few}: too few images for {GROWTH_ROUNDS + 1} rounds of batches of "
            f"{options.batch}; use at least {(GROWTH_ROUNDS + 1) * options.batch}"
        )
    work = {}
    for name, images in (("many", many), ("few", few)):
        pipeline = OurPipeline(
            folder, options.batch, 0, "flip", device, options.channels_last, images
        )
        work[name] = _draw(pipeline.batches(), batches)
    with one_core():
        seconds = alternate(work, min(options.repeats, GROWTH_ROUNDS), device)
    name = f"a split of {many} images (ours) against one of {few} (ours too), one core"
    return Row(name, seconds["many"], seconds["few"], batches * options.batch)


def _draw(batches: Iterator[Loaded], count: int) -> Callable[[], None]:
    """Return work that loads the next batches of an epoch."""

    def work() -> None:
        for _ in range(count):
            next(batches)

    return work


def _drain(batches: Callable[[], Iterator[Loaded]]) -> Callable[[], None]:
    def work() -> None:
        for _ in batches():
            pass

    return work


@contextmanager
def one_core() -> Iterator[None]:
    """Pin this process, including threads of its libraries, to one core."""
    cores, threads, of_cv2 = os.sched_getaffinity(0), torch.get_num_threads(), cv2.getNumThreads()
    _pin_all_threads({max(cores)})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        _pin_all_threads(cores)
        torch.set_num_threads(threads)
        cv2.setNumThreads(of_cv2)


def _pin_all_threads(cores: set[int]) -> None:
    """Pin all threads: ``sched_setaffinity(0)`` affects only the calling one, not pools."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended since
            os.sched_setaffinity(int(thread), cores)


def check_batches(root: Path, folder: Path, device: torch.device) -> str:
    """Check that without flips both give equal images, boxes and classes, up to the resize filter.

    Raises:
        SystemExit: they differ.
    """
    ours = OurPipeline(folder, 1, 0, "none", device)
    mine = list(ours.batches())
    in_order = sorted(range(len(mine)), key=ours.rows.__getitem__)
    of_boxes, of_pixels = [0.0], [0.0]
    theirs = TheirPipeline(root, 1, 0, "none", device).batches()
    for index, other in zip(in_order, theirs, strict=True):
        loaded = mine[index]
        if not torch.equal(loaded.labels[0], other.labels[0]):
            raise SystemExit(f"labels differ: {loaded.labels[0]} and {other.labels[0]}")
        height = int(ours.annotations.sizes[ours.rows[index]][0])
        scale = loaded.images.image_sizes[0][0] / height
        boxes = other.boxes[0] - FIRST_PIXEL.to(device) * scale
        of_boxes.append(float((loaded.boxes[0] - boxes).abs().max()))
        of_pixels.append(float((loaded.images.tensors - other.images.tensors).abs().mean()))
    worst_box, worst_pixel = worst_of(of_boxes), worst_of(of_pixels)
    if not (worst_box <= LARGEST_BOX_DIFFERENCE and worst_pixel <= LARGEST_PIXEL_DIFFERENCE):
        raise SystemExit(f"boxes differ by {worst_box} px, pixels by {worst_pixel} on average")
    reading = 1e3 * ours.reading / len(mine)
    return (
        f"same classes, boxes to {worst_box:.2f} px, pixels to {worst_pixel:.3f} standard "
        "deviations on average (cv2's linear filter does not antialias, torchvision's does); ours "
        f"has read all annotations before the first epoch, {reading:.2f} ms an image"
    )
