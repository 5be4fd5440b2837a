"""A detector on a GPU against itself on the CPU: the same weights, the same batch.

Each device takes its own fast paths, the GPU its kernels, so these are compared as well.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from detector.build import Detector
from detector.matching import BalancedSampler
from scripts.benchmarks.inference import compare
from scripts.benchmarks.twins import (
    Work,
    build_ours,
    few_proposals,
    float32_products,
    make_detections_likely,
    make_work,
)

SIZE_HW, CLASSES = (256, 320), 20
COUNTS = (6, 0)  # boxes per image
SIDES = (0.1, 0.5)
CPU = torch.device("cpu")
LARGEST_DIFFERENCE = 1e-3  # of a loss, relative
# Rounding decides which side of a ReLU's corner a value is on, so a slope is less exact than a
# loss; and in a few cases which proposals survive, which the second stage's losses read.
LARGEST_ROUNDED_CHOICE = 2e-2
EXACT = {"classification", "bbox_regression", "loss_objectness", "loss_rpn_box_reg"}
EVERYTHING = 10**6


def check_parity(kind: str, backbone: str, device: torch.device) -> str:
    """Compare losses, gradients and detections, and describe the differences in a line.

    Raises:
        SystemExit: they differ too much.
    """
    with float32_products(), ExitStack() as few:
        here = build_ours(kind, backbone, CLASSES, CPU)
        there = build_ours(kind, backbone, CLASSES, device)
        few.enter_context(few_proposals(here)), few.enter_context(few_proposals(there))
        probe = make_work(kind, SIZE_HW, [0], SIDES, CLASSES, CPU)
        make_detections_likely(here, kind, probe.images[0])
        there.load_state_dict(here.state_dict())
        return f"{compare_losses(kind, here, there)}; {compare_detections(kind, here, there)}"


def compare_losses(kind: str, here: Detector, there: Detector) -> str:
    """Compare losses and gradients in training mode; both sides sample everything."""
    mine, my_gradient = losses_and_gradient(kind, here)
    other, other_gradient = losses_and_gradient(kind, there)
    differences = {name: _relative(other[name], mine[name]) for name in mine}
    differences["gradient"] = _relative(other_gradient, my_gradient)
    for name, difference in differences.items():
        limit = LARGEST_DIFFERENCE if name in EXACT else LARGEST_ROUNDED_CHOICE
        if not difference <= limit:
            raise SystemExit(f"{name} differs by {difference:.2g} (relative), the limit is {limit}")
    listed = ", ".join(f"{name} {difference:.1g}" for name, difference in differences.items())
    return f"relative differences: {listed}"


def compare_detections(kind: str, here: Detector, there: Detector) -> str:
    """Compare classes, boxes and scores in evaluation mode."""
    found = []
    for detector in (here, there):
        with torch.no_grad():
            detections = detector.eval()(_work(kind, detector).images)
        found.append([{k: v.cpu() for k, v in image.items()} for image in detections])
    return compare(found[0], found[1], first_label=0)


def losses_and_gradient(kind: str, detector: Detector) -> tuple[dict[str, Tensor], Tensor]:
    """Return on the CPU the losses by name, and all gradients as one vector."""
    sample_everything(detector)
    work = _work(kind, detector)
    losses: dict[str, Tensor] = detector.train()(work.images, work.targets)
    detector.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    parameters = [p for p in detector.parameters() if p.requires_grad]
    gradients = [p.grad.flatten().cpu() for p in parameters if p.grad is not None]
    if len(gradients) < len(parameters):
        raise SystemExit(f"{len(parameters) - len(gradients)} parameters have no gradient")
    return {name: loss.detach().cpu() for name, loss in losses.items()}, torch.cat(gradients)


def sample_everything(detector: Any) -> None:
    """Disable random sampling, as two devices draw different numbers from the same seed."""
    for part in ("rpn", "roi_heads"):
        if hasattr(detector, part):
            getattr(detector, part).fg_bg_sampler = BalancedSampler(EVERYTHING, 0.5)


def _work(kind: str, detector: Detector) -> Work:
    device = next(detector.parameters()).device
    return make_work(kind, SIZE_HW, COUNTS, SIDES, CLASSES, device, kind == "mask_rcnn")


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).norm() / expected.norm().clamp(min=1e-6))
