"""Benchmark this project against the programs that a user would use instead.

    python scripts/benchmark.py step --detector retinanet --size 400 400 --classes 91
    python scripts/benchmark.py step --detector faster_rcnn --amp bf16 --separate
    python scripts/benchmark.py losses --boxes-list 8 100 300 --batches 1 4 16
    python scripts/benchmark.py loading --workers 0 2
    python scripts/benchmark.py {weighting,inference} [--device cuda] [--json]
    python scripts/benchmark.py {voc,coco} [--json]
    python scripts/benchmark.py scaling --ranks 1 2

A comparison first checks that both sides give the same losses and gradients, detections or scores
for the same weights and batch, and stops if they do not (except for inference of a split from
files, where each side resizes in its own way). Both are then timed alternately in one process; with
--separate (step, losses) each in its own process, as its program is shipped. Times are medians
(quartiles); the ratio is the median over pairs of repetitions, with --separate of consecutive
processes, and above 1 if ours is faster. scaling has no peer: it compares numbers of ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.process.allocator import keep_freed_memory
from engine.process.standard_output import status_of_tool, tool
from engine.process.threads import limit_spinning

# In its own process the peer runs as its users run it.
if __name__ == "__main__" and "theirs" not in sys.argv:
    limit_spinning()
    keep_freed_memory()

import argparse
from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from data.errors import InputError
from detector.config import BackboneName
from scripts.benchmarks.inference import run_inference
from scripts.benchmarks.loading import run_loading
from scripts.benchmarks.losses import run_losses
from scripts.benchmarks.processes import SIDES, Alone
from scripts.benchmarks.scaling import run_scaling
from scripts.benchmarks.scoring import run_coco, run_voc
from scripts.benchmarks.step import run_step
from scripts.benchmarks.weighting import run_weighting
from scripts.number_types import at_least, share_of_image

BACKBONES = tuple(name for name in get_args(BackboneName) if name.startswith("resnet"))
DETECTORS = ("retinanet", "faster_rcnn", "mask_rcnn")
SCORES = ("voc", "coco")  # these do not use a GPU
AMP = ("none", "bf16", "fp16")


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark and print its table."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no GPU; drop it")
    if "box_sides" in options:
        _check_boxes(options.box_sides[0], options.size)
    if options.threads:
        torch.set_num_threads(options.threads)
    result = options.run(options)
    as_table = not isinstance(result, Alone) and not options.json
    print(result.as_markdown() if as_table else result.as_json())
    return 0


def _check_boxes(shortest: float, size: Sequence[int]) -> None:
    """Raise InputError for boxes that round to no area, which torchvision rejects."""
    pixels = shortest * min(size)
    if pixels < 1:
        raise InputError(
            f"--box-sides: the shortest side would be {pixels:.2g} pixels; increase it or --size"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="BENCHMARK")
    _add_step(commands.add_parser("step", help="a training step"))
    _add_losses(commands.add_parser("losses", help="RetinaNet's matching and losses"))
    _add_loading(commands.add_parser("loading", help="files to normalized batches"))
    voc = commands.add_parser("voc", help="VOC mAP")
    amounts = {"images": 4952, "classes": 20, "objects": 14_976, "detections": 248_000}
    _add_scoring(voc, run_voc, {**amounts, "repeats": 5})
    coco = commands.add_parser("coco", help="COCO AP by each engine")
    amounts = {"images": 5000, "classes": 80, "objects": 36_000, "detections": 500_000}
    _add_scoring(coco, run_coco, {**amounts, "repeats": 1})
    _add_weighting(commands.add_parser("weighting", help="ALWA's share of a step"))
    _add_inference(commands.add_parser("inference", help="detection of one batch and of a split"))
    _add_scaling(commands.add_parser("scaling", help="a step on different numbers of ranks"))
    for name, command in commands.choices.items():
        if name in SCORES:
            command.set_defaults(device="cpu")
        else:
            command.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        command.add_argument(
            "--threads", type=at_least(0), default=0, help="threads of PyTorch; 0: its default"
        )
        command.add_argument("--json", action="store_true", help="print every single time as JSON")
    return parser


def _add_model(
    parser: argparse.ArgumentParser, size: tuple[int, int], classes: int, whose: str = "our"
) -> None:
    parser.add_argument("--detector", choices=DETECTORS, default="retinanet")
    parser.add_argument("--backbone", choices=BACKBONES, default="resnet50")
    _add_input(parser, size, classes)
    parser.add_argument("--amp", choices=AMP, default="none", help=f"{whose} precision")


def _add_input(parser: argparse.ArgumentParser, size: tuple[int, int], classes: int) -> None:
    parser.add_argument("--size", type=at_least(1), nargs=2, default=size, help="height and width")
    parser.add_argument("--classes", type=at_least(1), default=classes)
    parser.add_argument(
        "--box-sides",
        type=share_of_image,
        nargs=2,
        default=(0.08, 0.4),
        help="shortest and longest side of a box, relative to the image's shorter side",
    )


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=at_least(1), default=2)
    parser.add_argument("--boxes", type=at_least(0), default=7, help="boxes per image")


def _add_separate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--separate", action="store_true", help="run each side in its own process")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)


def _add_step(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, (400, 400), 91)
    parser.add_argument("--peer-amp", choices=AMP, default="none", help="torchvision's precision")
    _add_batch(parser)
    _add_separate(parser)
    parser.add_argument("--repeats", type=at_least(1), default=7)
    parser.set_defaults(run=run_step)


def _add_losses(parser: argparse.ArgumentParser) -> None:
    _add_input(parser, (800, 800), 91)
    _add_separate(parser)
    parser.add_argument("--boxes-list", type=at_least(0), nargs="+", default=(8, 50, 100, 300))
    parser.add_argument("--batches", type=at_least(1), nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.set_defaults(run=run_losses)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, help="folder of a VOCdevkit (synthetic images)")
    parser.add_argument("--images", type=at_least(1), default=200, help="synthetic images")
    parser.add_argument("--batch", type=at_least(1), default=2)
    parser.add_argument("--workers", type=at_least(0), nargs="+", default=(0, 2))
    parser.add_argument("--repeats", type=at_least(1), default=5, help="epochs of each side")
    parser.add_argument("--channels-last", action="store_true", help="see detector.channels_last")
    parser.add_argument(
        "--growth", type=at_least(1), nargs=2, metavar=("FEW", "MANY"), help="sizes of two splits"
    )
    parser.set_defaults(run=run_loading)


def _add_scoring(parser: argparse.ArgumentParser, run: object, amounts: Mapping[str, int]) -> None:
    for name, amount in amounts.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=amount)
    parser.set_defaults(run=run)


def _add_weighting(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, (400, 400), 91)
    _add_batch(parser)
    parser.add_argument("--repeats", type=at_least(1), default=21)
    parser.add_argument("--step-repeats", type=at_least(1), default=5)
    parser.set_defaults(run=run_weighting)


def _add_inference(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, (600, 800), 91, whose="both sides'")
    parser.add_argument("--batches", type=at_least(1), nargs="+", default=(1, 8))
    parser.add_argument("--repeats", type=at_least(1), default=5)
    parser.add_argument(
        "--images", type=at_least(0), default=16, help="images of the split; 0 skips it"
    )
    parser.add_argument("--split-batch", type=at_least(1), default=2)
    parser.add_argument("--split-repeats", type=at_least(1), default=3)
    parser.add_argument("--workers", type=at_least(0), default=2)
    parser.set_defaults(run=run_inference)


def _add_scaling(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, (400, 400), 91)
    _add_batch(parser)
    parser.add_argument(
        "--ranks", type=at_least(1), nargs="+", default=(1, 2), help="numbers of ranks"
    )
    parser.add_argument("--repeats", type=at_least(1), default=7, help="steps in a round")
    parser.add_argument(
        "--rounds", type=at_least(1), default=2, help="launches of each number of ranks"
    )
    parser.set_defaults(run=run_scaling)


if __name__ == "__main__":
    sys.exit(status_of_tool(main))
