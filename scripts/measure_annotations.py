"""Measure the load time and memory of COCO annotations, and the memory growth of loader workers.

    python scripts/measure_annotations.py
    python scripts/measure_annotations.py --images 5000 --objects 36000
    python scripts/measure_annotations.py --pictures

Writes annotation files of the size of COCO train2017 (118,000 images, 860,000 objects; once with
boxes only, once with polygons of 20 points) to a temporary folder, loads each in a fresh process,
then reads the training targets of one epoch in two loader processes without decoding any image.
Needs 600 MB of disk space and about three minutes, mostly for writing the files. With --pictures it
instead runs an epoch as in training: batches of decoded, augmented, resized images (118,000 names
of a few files) through the train loader with two processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.config import DataConfig
from data.formats.coco import load_coco
from data.loading import build_train_loader
from scripts.number_types import at_least

CLASSES = 80
LINKS = 60_000  # names that a file may have; ext4 allows 65,000
WORKERS = 2
REPORTS = 5  # memory reports of a worker per epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=at_least(1), default=118_000)
    parser.add_argument("--objects", type=at_least(1), default=860_000)
    parser.add_argument("--points", type=at_least(3), default=20, help="of each polygon")
    parser.add_argument("--pictures", action="store_true", help="also decode images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if arguments.pictures:
            write_annotations(root, "boxes", arguments.images, arguments.objects, points=0)
            write_pictures(root, "boxes")
            in_fresh_process(print_pictures, root, "boxes")
            return
        for split, points in (("boxes", 0), ("polygons", arguments.points)):
            path = write_annotations(root, split, arguments.images, arguments.objects, points)
            print(f"{split}: {path.stat().st_size / 1e6:.0f} MB of JSON")
            in_fresh_process(print_load, root, split)
            in_fresh_process(print_epoch, root, split)


def write_annotations(root: Path, split: str, images: int, objects: int, points: int) -> Path:
    """Write a file like COCO's: objects in random order, coordinates of two decimals."""
    rng = np.random.default_rng(0)
    ids = rng.permutation(5 * images)[:images].tolist()
    (root / "annotations").mkdir(exist_ok=True)
    path = root / f"annotations/instances_{split}.json"
    with path.open("w") as file:
        file.write('{"images": [')
        file.write(", ".join(json.dumps(image_entry(identity)) for identity in ids))
        file.write('], "annotations": [')
        for number, item in enumerate(object_entries(rng, ids, objects, points)):
            file.write((", " if number else "") + json.dumps(item))
        categories = [{"id": k + 1, "name": f"class {k}"} for k in range(CLASSES)]
        file.write(f'], "categories": {json.dumps(categories)}}}')
    return path


def image_entry(identity: int) -> dict[str, Any]:
    return {
        "license": 4,
        "file_name": f"{identity:012d}.jpg",
        "coco_url": f"http://images.cocodataset.org/train2017/{identity:012d}.jpg",
        "height": 480,
        "width": 640,
        "date_captured": "2013-11-14 11:18:45",
        "id": identity,
    }


def object_entries(
    rng: np.random.Generator, ids: list[int], objects: int, points: int
) -> Iterator[dict[str, Any]]:
    for number in range(objects):
        x, y, width, height = np.round(rng.uniform(5, 200, 4), 2).tolist()
        outline = np.round(rng.uniform(0, 480, 2 * points), 2).tolist()
        yield {
            "segmentation": [outline] if outline else [],
            "area": round(width * height, 5),
            "iscrowd": 0,
            "image_id": ids[rng.integers(len(ids))],
            "bbox": [x, y, width, height],
            "category_id": number % CLASSES + 1,
            "id": number + 1,
        }


def write_pictures(root: Path, split: str) -> None:
    """Write a file for every name: hard links to one image, a new one after ``LINKS`` names."""
    content = cv2.imencode(".jpg", np.full((480, 640, 3), 99, np.uint8))[1].tobytes()
    (root / split).mkdir()
    entries = json.loads((root / f"annotations/instances_{split}.json").read_text())["images"]
    for number, entry in enumerate(entries):
        path = root / split / entry["file_name"]
        if number % LINKS == 0:
            path.write_bytes(content)
            original = path
        else:
            os.link(original, path)


def print_pictures(root: Path, split: str) -> None:
    """Run an epoch of the train loader, printing the memory of all processes."""
    augment = ({"HorizontalFlip": {"p": 0.5}},)
    config = DataConfig(
        format="coco",
        root=root,
        train=split,
        image_size=(48, 64),
        batch_size=16,
        workers=WORKERS,
        augment=augment,
    )
    annotations = load_coco(root, split)
    loader = build_train_loader(config, annotations, seed=0, rank=0, world_size=1, with_masks=False)
    start, batches = time.perf_counter(), 0
    for batches, _ in enumerate(loader.epoch(0), start=1):
        if batches % max(1, len(loader) // 10) == 0:
            workers = multiprocessing.active_children()
            sizes = ", ".join(f"{private_mb(worker.pid):.1f}" for worker in workers)
            files = len(os.listdir("/proc/self/fd"))
            print(
                f"  batch {batches} of {len(loader)}: loader {private_mb():.1f} MB, its processes "
                f"{sizes} MB of their own, {files} open files",
                flush=True,
            )
    seconds = time.perf_counter() - start
    print(f"  {loader.images} images in {seconds:.0f} s ({loader.images / seconds:.0f} a second)")
    loader.close()


def in_fresh_process(function: Any, *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def print_load(root: Path, split: str) -> None:
    before, start, processor = resident_mb(), time.perf_counter(), time.process_time()
    annotations = load_coco(root, split)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = _kilobytes("/proc/self/status", "VmHWM:") / 1024  # ru_maxrss is its parent's, too
    print(
        f"  {len(annotations)} images, {len(annotations.boxes)} objects in {seconds:.1f} s "
        f"({processor:.1f} s of one core); resident: {before:.0f} MB before, "
        f"{resident_mb():.0f} MB after, {peak:.0f} MB at most",
        flush=True,
    )


def print_epoch(root: Path, split: str) -> None:
    """Read all targets in worker processes; print the private memory of each."""
    from torch.utils.data import DataLoader, Dataset, get_worker_info

    annotations = load_coco(root, split)

    class Targets(Dataset[tuple[int, int, float]]):
        def __len__(self) -> int:
            return len(annotations)

        def __getitem__(self, image: int) -> tuple[int, int, float]:
            rows = annotations.training_objects(image)
            boxes, labels = annotations.boxes[rows], annotations.labels[rows]
            if annotations.masks is not None:
                _ = [annotations.masks.polygons_of(row) for row in rows.tolist()]
            reports = image % max(1, len(annotations) // REPORTS) < WORKERS
            memory = private_mb() if reports else 0.0
            worker = get_worker_info()
            assert worker is not None
            return worker.id, len(boxes) + len(labels), memory

    start = time.perf_counter()
    loader = DataLoader(
        Targets(), batch_size=None, num_workers=WORKERS, multiprocessing_context="fork"
    )
    reports: dict[int, list[str]] = {worker: [] for worker in range(WORKERS)}
    for worker, _, memory in loader:
        if memory:
            reports[worker].append(f"{memory:.1f}")
    for worker, sizes in reports.items():
        print(f"  worker {worker}, MB of its own over the epoch: {', '.join(sizes)}", flush=True)
    print(f"  the epoch took {time.perf_counter() - start:.1f} s", flush=True)


def resident_mb() -> float:
    return _kilobytes("/proc/self/status", "VmRSS:") / 1024


def private_mb(process: int | str | None = "self") -> float:
    """Return the private memory of a process; pages that it only reads stay shared."""
    return _kilobytes(f"/proc/{process}/smaps_rollup", "Private_Dirty:") / 1024


def _kilobytes(file: str, key: str) -> int:
    lines = Path(file).read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    main()
