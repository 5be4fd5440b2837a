"""A training step against torchvision's: forward, losses, backward, SGD."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.fast.cuda_graphs import FIRST_RECORDED
from detector.matching import match_anchors
from scripts.benchmarks.machine import describe_machine
from scripts.benchmarks.memory import peak_memory
from scripts.benchmarks.processes import SIDES, Alone, memory_note, run_alone
from scripts.benchmarks.report import Report, Row, precision_name
from scripts.benchmarks.timing import alternate, worst_of
from scripts.benchmarks.training import (
    Trainee,
    build_trainee,
    build_work,
    count_synchronizations,
)
from scripts.benchmarks.twins import (
    DrawnLikeOurs,
    Reseeded,
    Work,
    few_proposals,
    float32_products,
)

LARGEST_DIFFERENCE = 1e-3  # of a loss, relative
WINDOW = 5  # locations around a positive in the receptive field of a five-layer box tower


def run_step(options: argparse.Namespace) -> Report | Alone:
    """Return the report; with ``--side`` the measurements of one side, for the parent process."""
    if options.side:
        return measure_alone(options)
    device = torch.device(options.device)
    work = build_work(options)
    trainees = {side: build_trainee(side, options, work) for side in SIDES}
    report = Report(_title(options), describe_machine(device))
    report.checks.append(check_losses(trainees["ours"], trainees["theirs"]))
    if options.detector == "retinanet":
        report.checks.append(describe_boxes(trainees["ours"], work))
    notes = {}
    if device.type == "cuda":
        counts = [str(count_synchronizations(trainees[side])) for side in SIDES]
        notes["host waits in a step, ours / theirs"] = " / ".join(counts)
    if options.separate:
        del trainees
        alone = run_alone()
        times = (alone["ours"].seconds, alone["theirs"].seconds)
        notes |= memory_note(alone)
        report.rows.append(Row("step, a process each", *times, options.batch, notes))
        return report
    seconds = alternate(
        {side: trainee.step for side, trainee in trainees.items()},
        options.repeats,
        device,
        warm_up=FIRST_RECORDED + 1 if device.type == "cuda" else 1,
    )
    report.rows.append(
        Row("step, one process", seconds["ours"], seconds["theirs"], options.batch, notes)
    )
    return report


def _title(options: argparse.Namespace) -> str:
    height, width = options.size
    precision = f"ours {precision_name(options.amp)}, theirs {precision_name(options.peer_amp)}"
    return (
        f"Training step: {options.detector}, {options.backbone}, {height} x {width}, batch "
        f"{options.batch}, {options.classes} classes, {options.boxes} boxes an image; {precision}"
    )


def check_losses(ours: Trainee, theirs: Trainee) -> str:
    """Compare losses and gradient norms of both sides in float32, and describe them in a line.

    Raises:
        SystemExit: they differ.
    """
    samplers = {part: getattr(ours.model, part).fg_bg_sampler for part in _sampling_parts(ours)}
    mine = _float32_losses(ours, {part: Reseeded(own) for part, own in samplers.items()})
    peers = _float32_losses(theirs, {part: DrawnLikeOurs(own) for part, own in samplers.items()})
    complaint = f"losses differ, nothing was timed: ours {mine}, theirs {peers}"
    if set(mine) != set(peers):
        raise SystemExit(complaint)
    listed = ", ".join(f"{name} {mine[name]:.6g}" for name in mine)
    worst = worst_of(abs(mine[name] - peers[name]) / max(abs(peers[name]), 1e-6) for name in peers)
    if not worst <= LARGEST_DIFFERENCE:
        raise SystemExit(complaint)
    return (
        f"same losses and gradients in float32 ({listed}; largest relative difference {worst:.1g})"
    )


def _sampling_parts(trainee: Trainee) -> list[str]:
    return [part for part in ("rpn", "roi_heads") if hasattr(trainee.model, part)]


def _float32_losses(trainee: Trainee, samplers: Mapping[str, object]) -> dict[str, float]:
    """Compute losses and gradient norms with replaced samplers and few proposals.

    Of thousands, some would differ by rounding, and so would all samples drawn after them.
    """
    parts = {part: getattr(trainee.model, part) for part in samplers}
    own = {part: module.fg_bg_sampler for part, module in parts.items()}
    for part, module in parts.items():
        module.fg_bg_sampler = samplers[part]
    with float32_products(), few_proposals(trainee.model):
        losses = trainee.run()
        torch.stack(list(losses.values())).sum().backward()
    for part, module in parts.items():
        module.fg_bg_sampler = own[part]
    gradients = [value.grad for value in trainee.model.parameters() if value.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients]))
    trainee.optimizer.zero_grad(set_to_none=True)
    return {name: loss.item() for name, loss in (*losses.items(), ("gradient", norm))}


@torch.no_grad()
def describe_boxes(ours: Trainee, work: Work) -> str:
    """Describe the share of locations near a positive, which a sparse box tower computes."""
    model: Any = ours.model
    batch = model.transform(work.images)
    maps = list(model.backbone(batch.tensors).values())
    height, width = batch.tensors.shape[-2:]
    anchors = torch.cat(model.anchor_generator.of_pyramid((height, width), maps))
    config = model.config
    thresholds = (config.foreground_iou, config.background_iou)
    positive = match_anchors(anchors, work.targets, *thresholds, config.low_quality_matches) >= 0
    near, total = 0.0, 0
    for level, flags in zip(maps, positive.split(_anchor_counts(model, maps), dim=1), strict=True):
        grid = flags.view(len(flags), 1, *level.shape[-2:], -1).any(dim=-1).float()
        near += float(F.max_pool2d(grid, 2 * WINDOW + 1, stride=1, padding=WINDOW).sum())
        total += grid.numel()
    return f"{near / total:.0%} of the locations are within {WINDOW} of a positive one"


def _anchor_counts(model: Any, maps: list[Tensor]) -> list[int]:
    each = model.anchor_generator.num_anchors_per_location()[0]
    return [each * level.shape[-2] * level.shape[-1] for level in maps]


def measure_alone(options: argparse.Namespace) -> Alone:
    """Measure times and peak memory of one side in this process; memory steps are the warm-up."""
    trainee = build_trainee(options.side, options, build_work(options))
    memory = peak_memory(trainee.step, trainee.device)
    seconds = alternate({options.side: trainee.step}, options.repeats, trainee.device, warm_up=0)
    return Alone(seconds[options.side], memory)
