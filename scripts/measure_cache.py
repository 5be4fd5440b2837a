"""Measure the speedup of data.cache: training images loaded per second in the third epoch.

python scripts/measure_cache.py ROOT --format voc --split trainval
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from data.build import build_annotations
from data.config import DataConfig
from data.loading import build_train_loader
from engine.process.standard_output import status_of_tool, tool

SIZES = ((192, 256), (600, 1000))
WORKERS = (0, 1)


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each image size and number of workers."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    for size in SIZES:
        for workers in WORKERS:
            data = {"format": options.format, "root": options.root, "train": options.split}
            values = {**data, "image_size": size, "workers": workers, "batch_size": 4}
            speeds = [
                f"{cache} {images_per_second({**values, 'cache': cache}):.0f} images/s"
                for cache in ("none", "memory")
            ]
            print(f"{size[0]} x {size[1]}, {workers} workers: {', '.join(speeds)}")
    return 0


def images_per_second(values: dict[str, Any]) -> float:
    """Return the speed of the third epoch, when every image is in the cache, if there is one."""
    config = DataConfig(**values)
    annotations = build_annotations(config, config.train)
    loader = build_train_loader(config, annotations, seed=0, rank=0, world_size=1, with_masks=False)
    with closing(loader):
        for epoch in range(3):
            start = time.perf_counter()
            images = sum(len(batch) for batch in loader.epoch(epoch))
        return images / (time.perf_counter() - start)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of the dataset")
    parser.add_argument("--format", default="voc", choices=("voc", "coco"))
    parser.add_argument("--split", default="trainval", help="split to load")
    return parser


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
