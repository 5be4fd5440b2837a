"""The optimizer and the learning rate of every iteration."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.errors import InputError
from engine.run_config import TrainConfig

log = logging.getLogger(__name__)

REFERENCE_BATCH = 8  # images: the total batch of the paper's learning rates


def build_optimization(
    config: TrainConfig,
    parameters: Iterable[Tensor],
    weighting_parameters: Iterable[Tensor],
    batches_per_epoch: int,
    global_batch: int,
) -> tuple[Optimizer, LambdaLR]:
    """Build the configured optimizer and the schedule over all iterations of the run.

    Args:
        batches_per_epoch: batches per epoch on one rank.
        global_batch: images in one batch of all ranks together.
    """
    total = global_batch * min(
        config.accumulate, batches_per_epoch
    )  # the end of an epoch ends an iteration
    lr = applied_lr(config, config.lr, total)
    if lr != config.lr:
        log.info(
            "lr %g for a total batch of %d images (train.lr is for %d)", lr, total, REFERENCE_BATCH
        )
    optimizer = build_optimizer(
        config.optimizer,
        parameters,
        lr,
        config.momentum,
        config.weight_decay,
        weighting_parameters,
    )
    iterations = iterations_of_epoch(config, batches_per_epoch)
    schedule = build_schedule(
        optimizer,
        config.schedule,
        total_iterations=config.epochs * iterations,
        milestones=[epoch * iterations for epoch in config.milestones],
        gamma=config.gamma,
        warmup_iterations=config.warmup_iterations,
        warmup_factor=config.warmup_factor,
    )
    return optimizer, schedule


def iterations_of_epoch(config: TrainConfig, batches: int) -> int:
    """Number of updates in an epoch of ``batches`` per rank; the last may use fewer batches."""
    return math.ceil(batches / config.accumulate)


def warn_of_long_warmup(config: TrainConfig, iterations: int) -> None:
    """Warn if a run of this many iterations ends within the warm-up."""
    if config.warmup_iterations >= iterations:
        log.warning(
            "train.warmup_iterations: %d, but the run has %d iterations: train.lr is never "
            "reached; lower it, or train longer",
            config.warmup_iterations,
            iterations,
        )


def applied_lr(config: TrainConfig, lr: float, total_batch: int) -> float:
    """The learning rate of the optimizer for a ``train.lr`` of ``lr``.

    With SGD and ``train.scale_lr`` it is linear in the total batch (Goyal et al. 2017).

    Args:
        total_batch: images of one iteration, of all ranks and accumulated batches together.

    Raises:
        InputError: the scaled learning rate is not finite.
    """
    if config.optimizer != "sgd" or not config.scale_lr:
        return lr
    scaled = lr * total_batch / REFERENCE_BATCH
    if not math.isfinite(scaled):
        raise InputError(
            f"train.lr: {lr:g} for a total batch of {total_batch} images overflows; lower it"
        )
    return scaled


def build_optimizer(
    name: str,
    parameters: Iterable[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
    undecayed: Iterable[Tensor] = (),
) -> Optimizer:
    """SGD or AdamW over the parameters that require a gradient."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if undecayed := list(undecayed):
        groups.append({"params": undecayed, "weight_decay": 0.0})
    if name == "adamw":
        return AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
    optimizer = SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    start_momentum(optimizer)
    return optimizer


def start_momentum(optimizer: Optimizer) -> None:
    """Initialize missing momentum buffers of SGD with zeros.

    Fused SGD would create them in its first step and leave them uninitialized if that step is
    skipped, as the first steps of fp16 are; and it fails if only some parameters have them. With
    zeros the first step is the same: 0 * m + g = g.
    """
    for group in optimizer.param_groups:
        if not group.get("momentum"):
            continue
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def lay_out_moments(optimizer: Optimizer) -> None:
    """Give moments that were loaded from a checkpoint the memory layout of their parameters.

    Fused optimizers process both element by element in memory order, whatever their strides: with
    ``detector.channels_last`` changed, moments and parameters would not correspond.

    Raises:
        RuntimeError: a moment does not have its parameter's shape.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name != "step" and isinstance(value, Tensor):
                state[name] = torch.empty_like(parameter).copy_(value)


def build_schedule(
    optimizer: Optimizer,
    kind: str,
    *,
    total_iterations: int,
    milestones: Sequence[int],
    gamma: float,
    warmup_iterations: int,
    warmup_factor: float,
) -> LambdaLR:
    """Build a schedule by iteration: linear warm-up times milestones or half a cosine.

    Args:
        milestones: iterations (not epochs) from which lr is multiplied by ``gamma``, ascending.
    """

    def factor(iteration: int) -> float:
        warmup = 1.0
        if iteration < warmup_iterations:
            warmup = warmup_factor + (1 - warmup_factor) * iteration / warmup_iterations
        if kind == "cosine":
            # The cosine starts where the warm-up ends, so that it reaches its full height.
            length = max(1, total_iterations - warmup_iterations)
            done = min(1.0, max(0, iteration - warmup_iterations) / length)
            return warmup * (1 + math.cos(math.pi * done)) / 2
        return warmup * gamma ** bisect_right(milestones, iteration)

    return LambdaLR(optimizer, factor)
