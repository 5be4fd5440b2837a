"""One training step of each side, its memory and its waits for the device."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from engine.optimization import build_optimizer
from engine.precision import Amp, autocast
from losses import ALWA
from losses.weighting import LossWeighting
from scripts.benchmarks.timing import wait_for
from scripts.benchmarks.twins import Work, build_ours, build_theirs, make_work

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
LEARNING_RATE = 1e-6  # keeps the random weights while they are timed


@dataclass
class Trainee:
    """A detector with its optimizer and weighting.

    Attributes:
        run: a forward pass in training mode, returning losses by name.
        weighting: ALWA for ours, none for torchvision's.
    """

    model: nn.Module
    run: Callable[[], dict[str, Tensor]]
    optimizer: Optimizer
    weighting: LossWeighting | None
    device: torch.device
    amp: Amp

    def losses(self) -> dict[str, Tensor]:
        with autocast(self.device, self.amp):
            return self.run()

    def step(self) -> None:
        """Run a step as in the training loop, without reading the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.losses()
        if self.weighting is not None:
            losses = self.weighting(losses)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()


def build_trainee(side: str, options: argparse.Namespace, work: Work) -> Trainee:
    """Build ``ours`` or ``theirs``, with the same weights."""
    device, size = work.images[0].device, tuple(options.size)
    ours = build_ours(options.detector, options.backbone, options.classes, device)
    if side == "ours":
        weighting = ALWA(ours.weighting_pairs, interval=100).to(device)
        optimizer = build_optimizer("sgd", ours.parameters(), LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)
        run = lambda: ours(work.images, work.targets)  # noqa: E731
        return Trainee(ours, run, optimizer, weighting, device, options.amp)
    theirs = build_theirs(options.detector, options.backbone, options.classes, size, device)
    theirs.load_state_dict(ours.state_dict())
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    sgd = SGD(trained, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    run = lambda: theirs(work.floats, work.dicts)  # noqa: E731
    return Trainee(theirs.train(), run, sgd, None, device, options.peer_amp)


def build_work(options: argparse.Namespace) -> Work:
    """Build the batch that the options describe."""
    return make_work(
        options.detector,
        tuple(options.size),
        [options.boxes] * options.batch,
        tuple(options.box_sides),
        options.classes,
        torch.device(options.device),
        with_masks=options.detector == "mask_rcnn",
    )


def count_synchronizations(trainee: Trainee) -> int:
    """Count how often a step makes the host wait for the GPU, by PyTorch's own count."""
    trainee.step()
    wait_for(trainee.device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainee.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
