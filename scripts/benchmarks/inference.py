"""Detection against torchvision's: one call of a detector, and a whole split from its files."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import VOCDetection
from torchvision.ops import box_iou
from torchvision.transforms import v2

from data.build import build_annotations
from data.config import DataConfig
from data.loading import build_eval_loader
from detector.fast.cuda_graphs import FIRST_RECORDED
from engine.evaluation.evaluator import detect
from engine.precision import Amp, autocast
from scripts.benchmarks.drawn_voc import SPLIT, YEAR, draw_devkit
from scripts.benchmarks.machine import describe_machine
from scripts.benchmarks.pipelines import LONG, SHORT
from scripts.benchmarks.report import Report, Row, precision_name
from scripts.benchmarks.timing import alternate
from scripts.benchmarks.twins import (
    build_ours,
    build_theirs,
    float32_products,
    make_detections_likely,
    make_work,
)

Detections = list[dict[str, Tensor]]
SAME_IOU, SAME_SCORE = 0.99, 1e-3
LEAST_SHARE = 0.99  # of the detections: near the thresholds rounding decides


def run_inference(options: argparse.Namespace) -> Report:
    """Report a row per batch size, and one for a split with loading and rescaled boxes."""
    device, kind = torch.device(options.device), options.detector
    height, width = options.size
    precision = precision_name(options.amp)
    title = f"Detection: {kind}, {options.backbone}, {options.classes} classes, {precision}"
    report = Report(title, describe_machine(device))
    ours = build_ours(kind, options.backbone, options.classes, device)
    probe = make_work(kind, (height, width), [0], (0.1, 0.5), options.classes, device)
    make_detections_likely(ours, kind, probe.images[0])
    theirs = build_theirs(kind, options.backbone, options.classes, (height, width), device)
    theirs.load_state_dict(ours.state_dict())
    ours.eval(), theirs.eval()
    for batch in options.batches:
        work = make_work(kind, (height, width), [0] * batch, (0.1, 0.5), options.classes, device)
        images = {"ours": (ours, work.images), "theirs": (theirs, work.floats)}
        with float32_products():
            found = {side: _caller(*each, "none")() for side, each in images.items()}
            check = compare(found["ours"], found["theirs"], 0 if kind == "retinanet" else 1)
        report.checks.append(f"batch {batch}, in float32: {check}")
        calls = {side: _caller(*each, options.amp) for side, each in images.items()}
        warm_up = FIRST_RECORDED if device.type == "cuda" else 1
        seconds = alternate(calls, options.repeats, device, warm_up=warm_up)
        name = f"one call, {height} x {width}, batch {batch}"
        report.rows.append(Row(name, seconds["ours"], seconds["theirs"], batch))
    if options.images:
        report.rows.append(_split(ours, theirs, options))
    return report


def _caller(model: nn.Module, images: list[Tensor], amp: Amp) -> Any:
    @torch.no_grad()
    def call() -> Detections:
        with autocast(images[0].device, amp):
            detections: Detections = model(images)
        return detections

    return call


def compare(ours: Detections, theirs: Detections, first_label: int) -> str:
    """Count torchvision's detections that are also ours, by class, box and score.

    Raises:
        SystemExit: fewer than ``LEAST_SHARE``, or either side found nothing.
    """
    matched = sum(
        _count_matched(mine, other, first_label) for mine, other in zip(ours, theirs, strict=True)
    )
    total = max(sum(len(each["boxes"]) for each in side) for side in (ours, theirs))
    if matched < LEAST_SHARE * total or total == 0:
        raise SystemExit(f"{matched} of {total} detections are the same: nothing was timed")
    return f"{matched} of {total} detections are the same"


def _count_matched(mine: dict[str, Tensor], other: dict[str, Tensor], first_label: int) -> int:
    same_class = (mine["labels"] + first_label)[:, None] == other["labels"]
    near = (mine["scores"][:, None] - other["scores"]).abs() < SAME_SCORE
    same = same_class & near & (box_iou(mine["boxes"], other["boxes"]) > SAME_IOU)
    return int(torch.minimum(same.any(dim=0).sum(), same.any(dim=1).sum()))


def _split(ours: nn.Module, theirs: Any, options: argparse.Namespace) -> Row:
    """Time detection from files to boxes in original pixels: ``evaluate.py``'s and torchvision's.

    torchvision's reference loop resizes in the detector, so both differ by the resizing filter.
    """
    device = torch.device(options.device)
    theirs.transform.min_size, theirs.transform.max_size = (SHORT,), LONG
    with tempfile.TemporaryDirectory() as temporary:
        folder = draw_devkit(Path(temporary), options.images)
        config = DataConfig(
            format="voc",
            root=folder,
            val=SPLIT,
            image_size=(SHORT, LONG),
            batch_size=options.split_batch,
            workers=options.workers,
        )
        annotations = build_annotations(config, SPLIT)
        with closing(build_eval_loader(config, annotations, rank=0, world_size=1)) as loader:
            their_loader = _reference_loader(Path(temporary), options)
            seconds = alternate(
                {
                    "ours": lambda: detect(ours, loader, annotations, device, options.amp),
                    "theirs": lambda: list(
                        _reference_loop(theirs, their_loader, device, options.amp)
                    ),
                },
                options.split_repeats,
                device,
            )
    name = f"split of {options.images}, from files, batch {options.split_batch}"
    return Row(name, seconds["ours"], seconds["theirs"], options.images)


def _reference_loader(root: Path, options: argparse.Namespace) -> DataLoader[Any]:
    to_float = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    dataset = VOCDetection(str(root), year=YEAR, image_set=SPLIT, transform=to_float)
    return DataLoader(
        dataset,
        batch_size=options.split_batch,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        collate_fn=lambda samples: tuple(zip(*samples, strict=True)),
    )


@torch.inference_mode()
def _reference_loop(
    model: nn.Module, loader: DataLoader[Any], device: torch.device, amp: Amp
) -> Iterator[dict[str, Tensor]]:
    for images, _ in loader:
        with autocast(device, amp):
            outputs = model([image.to(device) for image in images])
        for output in outputs:
            yield {name: value.cpu() for name, value in output.items()}
