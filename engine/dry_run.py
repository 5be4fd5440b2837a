"""Dry run: one batch through every stage of a run, and a summary of the model."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data.target import Batch
from detector.fast.winograd import plain_convolutions
from engine.build import build_loader, build_splits, build_state
from engine.config import Config
from engine.evaluation.evaluator import check_best, detect
from engine.evaluation.validation import build_validation
from engine.freezing import Freezing
from engine.process.distributed import Ranks
from engine.process.signals import StopRequest
from engine.state import TrainState
from engine.tracking.external_trackers import check_trackers
from engine.train_step import TrainStep

MIB = 2**20


def dry_run(config: Config, ranks: Ranks, stop: StopRequest) -> str:
    """Train on one batch, evaluate one batch of the validation split; write no run.

    Raises:
        InputError: the config, the data or the weights are invalid.
        DivergenceError: a loss is not finite.
        Stopped: a signal asked to stop.
    """
    training, held_out = build_splits(config, ranks)
    loader = build_loader(config, training, ranks)
    check_best(config.train.best, held_out)
    check_trackers(config.train.trackers)
    evaluation = build_validation(config, held_out, ranks, stop).loader
    stop.check_together(ranks)
    with closing(loader), closing(evaluation):
        state = build_state(config, training.classes, len(loader), ranks)
        Freezing(state.detector, config.train.freeze).apply(0)
        stop.check_together(ranks)
        batch = next(iter(loader.epoch(0)))
        train_step = TrainStep(state, state.detector, config.train, ranks, training.files)
        losses = train_step([batch]).losses
        train_step.guard.check()
        stop.check_together(ranks)
        first = list(islice(evaluation, 1))
        found = detect(state.eval_detector, first, held_out, ranks.device, config.train.amp)
    lines = [
        f"one batch of {len(batch)} images: "
        + ", ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items()),
        f"evaluation of {sum(map(len, first))} images: {len(found)} detections",
        *_summary(state, batch, config, ranks.device),
    ]
    return "\n".join(lines)


def _summary(state: TrainState, batch: Batch, config: Config, device: torch.device) -> list[str]:
    parameters = list(state.detector.parameters())
    trained = [value for value in parameters if value.requires_grad]
    moments = [
        value
        for entry in state.optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor)
    ]
    image = batch.images[0].to(device)
    height, width = image.shape[1:]
    flops = count_flops(state.detector, image)
    sizes = [_mebibytes(parameters), _mebibytes(trained), _mebibytes(moments)]
    return [
        f"{config.detector.type} on {config.detector.backbone}: {_count(parameters):,} parameters, "
        f"{_count(trained):,} of them trainable",
        f"inference on one image of {width} x {height} pixels: {flops / 1e9:.1f} GFLOP "
        "(convolutions and matrix products; a multiply-add counts as 2)",
        f"memory: weights {sizes[0]:.0f} MiB, gradients {sizes[1]:.0f} MiB, optimizer "
        f"{sizes[2]:.0f} MiB; {_peak(device)}",
    ]


def count_flops(detector: nn.Module, image: Tensor) -> int:
    """Count the floating-point operations of inference on one ``(3, H, W)`` image."""
    detector.eval()
    with torch.no_grad(), plain_convolutions(), FlopCounterMode(display=False) as counter:
        detector([image])
    detector.train()
    return counter.get_total_flops()


def _peak(device: torch.device) -> str:
    if device.type == "cuda":
        return f"peak GPU memory {torch.cuda.max_memory_allocated(device) / MIB:.0f} MiB"
    # Linux counts kibibytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return f"peak process memory {peak:.0f} MiB"


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _mebibytes(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB
