"""Build the parts of a run from its config: splits, loader and training state."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler

from data.annotations import Annotations
from data.build import build_annotations
from data.errors import InputError, some_of
from data.loading import TrainLoader, build_train_loader
from detector.build import Detector, build_detector
from detector.config import DetectorConfig
from detector.fast.cuda_graphs import run_as_written
from detector.pretrained.weights import load_pretrained
from engine.config import Config
from engine.ema import AveragedWeights
from engine.freezing import refuse_random_frozen
from engine.optimization import build_optimization, iterations_of_epoch, warn_of_long_warmup
from engine.precision import check_precision, log_precision
from engine.process.distributed import Ranks
from engine.state import TrainState
from losses.config import build_weighting
from losses.weighting import LossWeighting

log = logging.getLogger(__name__)

Saved = Mapping[str, Any]


def build_splits(
    config: Config, ranks: Ranks, saved: Saved | None = None
) -> tuple[Annotations, Annotations]:
    """The annotations to train on and to validate on, with the classes of a checkpoint, if any."""
    with ranks.main_first():
        classes = config.data.classes if saved is None else saved["classes"]
        training = build_annotations(config.data, config.data.train, classes)
        held_out = build_annotations(config.data, config.data.val, training.classes)
    log.info("%s", training.summary())
    log.info("%s", held_out.summary())
    log.info("classes: %s", some_of(training.classes, most=100))
    trained = np.unique(training.labels[training.trained(config.data.voc.use_difficult)])
    untrained = [name for label, name in enumerate(training.classes) if label not in trained]
    if untrained:
        log.info("classes without training objects: %s", some_of(untrained))
    return training, held_out


def build_loader(config: Config, training: Annotations, ranks: Ranks) -> TrainLoader:
    """This rank's share of the training batches."""
    loader = build_train_loader(
        config.data,
        training,
        seed=config.train.seed,
        with_masks=config.detector.type == "mask_rcnn",
        pin_memory=ranks.device.type == "cuda",
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    batch = config.global_batch(ranks.world_size)
    if batch > loader.images:
        log.warning(
            "a batch of %d images (data.batch_size times processes) repeats some of the %d images "
            "of data.train; lower data.batch_size for more iterations per epoch",
            batch,
            loader.images,
        )
    return loader


def build_state(
    config: Config,
    classes: tuple[str, ...],
    batches_per_epoch: int,
    ranks: Ranks,
    saved: Saved | None = None,
    pretrained: bool = True,
) -> TrainState:
    """Build the training state on the device: initial, or restored from a checkpoint.

    Args:
        saved: contents of the checkpoint to resume from; None for a new run.
        pretrained: whether to load ``detector.weights``; random weights are enough to measure what
            an iteration takes.

    Raises:
        InputError: the weights, the weighting or the checkpoint do not fit the config.
    """
    detector = _build_detector(config, classes, ranks, load=pretrained and saved is None)
    weighting = _build_weighting(config, detector).to(ranks.device)
    iterations = iterations_of_epoch(config.train, batches_per_epoch)
    _log_window_count(config, weighting, config.train.epochs * iterations)
    warn_of_long_warmup(config.train, config.train.epochs * iterations)
    check_precision(config.train.amp, ranks)
    log_precision(config.train.amp, ranks.device)
    optimizer, schedule = build_optimization(
        config.train,
        detector.parameters(),
        weighting.parameters(),
        batches_per_epoch,
        config.global_batch(ranks.world_size),
    )
    scaler = GradScaler(ranks.device.type, enabled=config.train.amp == "fp16")
    decay = config.train.ema
    average = None if decay is None else AveragedWeights(detector, decay)
    state = TrainState(detector, weighting, optimizer, schedule, scaler, average=average)
    if saved is not None:
        state.load_state_dict(saved)
        progress = state.progress
        # As saved, unless an allowed change made epochs longer or shorter: the current epoch may
        # now have fewer batches than are done.
        done = min(progress.batch, batches_per_epoch)
        done_iterations = iterations_of_epoch(config.train, done)
        state.place_schedule(progress.epoch * iterations + done_iterations)
    return state


def _build_detector(config: Config, classes: tuple[str, ...], ranks: Ranks, load: bool) -> Detector:
    """Build the detector on the device; ``load`` its initial weights unless resuming."""
    _check_norms(config.detector, ranks.device)
    torch.manual_seed(config.train.seed)
    detector = build_detector(config.detector, config.loss, len(classes))
    if load:
        with ranks.main_first():
            report = load_pretrained(detector, config.detector, classes)
            log.info("%s", report)
            for option in report.trained_with:
                log.warning(
                    "detector.weights: %s was trained with detector.%s: its boxes are wrong until "
                    "relearned",
                    report.source,
                    option,
                )
        refuse_random_frozen(config.train, report.random, config.detector.weights)
    return detector.to(ranks.device)


def _check_norms(config: DetectorConfig, device: torch.device) -> None:
    """Raise InputError, with the config keys, for norms that cannot train on a device.

    Torch would refuse to wrap them, and ``SyncBatchNorm2d`` its first batch, without the keys.
    """
    norms = {"detector.norm": config.norm, "detector.fpn_norm": config.fpn_norm}
    if config.type == "retinanet":
        norms["detector.retinanet.head_norm"] = config.retinanet.head_norm
    wrong = [key for key, norm in norms.items() if norm == "sync"]
    if wrong and device.type == "cpu":
        raise InputError(
            f"{', '.join(wrong)}: sync cannot train on the CPU; choose batch or group, or "
            "train on GPUs"
        )


def _build_weighting(config: Config, detector: Detector) -> LossWeighting:
    try:
        weighting = build_weighting(
            config.loss.weighting, detector.weighting_pairs, detector.loss_names
        )
    except ValueError as error:
        raise InputError(f"loss.weighting: {error}") from None
    paired = {name for pair in weighting.pairs.values() for name in pair}
    weighting.watch(detector.last_shared_weights(paired))
    if weighting.differentiates:  # a recorded pass has one backward pass
        run_as_written(detector)
    return weighting


def _log_window_count(config: Config, weighting: LossWeighting, iterations: int) -> None:
    """Log how often a per-window weighting can act; warn if the run is too short for it."""
    if not weighting.acts_per_window:
        return
    windows = iterations // weighting.interval
    log.log(
        logging.INFO if windows else logging.WARNING,
        "loss.weighting: %s can set its weights after each of %d windows (%d iterations, "
        "interval %d)",
        config.loss.weighting.type,
        windows,
        iterations,
        weighting.interval,
    )
