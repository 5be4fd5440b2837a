"""Search for the largest batch that fits into memory, by trials.

A batch of images of the largest size, each with as many objects as the fullest training image, goes
through an iteration with the optimizer's state in place. On a GPU a batch that does not fit raises
an error that can be caught; on the CPU each batch is tried in its own process, whose memory is
measured, and sizes beyond the limit are extrapolated, not tried.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.annotations import Annotations
from data.errors import InputError
from data.target import Batch, pad_targets
from detector.fast.cuda_graphs import FIRST_RECORDED
from engine.build import build_state
from engine.config import Config
from engine.exit_status import is_out_of_memory
from engine.process.distributed import Ranks
from engine.train_step import TrainStep

GIB = 2**30
REPEATS = 2  # timed iterations, after the warm-up
LONG_EPOCH = 10**6  # batches: no warning that a trial ends before its warm-up


@dataclass(frozen=True)
class Trial:
    """One batch size.

    Attributes:
        batch: images.
        gib: peak memory in GiB of the GPU or the process; None if it did not fit.
        images_per_second: training speed; None if it did not fit.
    """

    batch: int
    gib: float | None
    images_per_second: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def largest_batch(
    attempt: Callable[[int], Trial], limit_gib: float, report: Callable[[Trial], None]
) -> list[Trial]:
    """Double the batch until it does not fit, then halve the gap, down to a sixteenth.

    Returns the trials in order. A batch is not tried if by linear extrapolation from the last two
    it would exceed the limit.
    """
    trials: list[Trial] = []
    fits, too_large, batch = 0, None, 1
    while too_large is None or too_large - fits > max(1, fits // 16):
        expected = _expected(trials, batch)
        trial = attempt(batch) if expected <= limit_gib else Trial(batch, None, None)
        if trial.gib is not None and trial.gib > limit_gib:
            trial = Trial(batch, None, None)
        trials.append(trial)
        report(trial)
        if trial.gib is None:
            too_large = batch
        else:
            fits = batch
        batch = 2 * batch if too_large is None else (fits + too_large) // 2
    return trials


def _expected(trials: list[Trial], batch: int) -> float:
    """Extrapolate the memory of a batch linearly from the two largest trials that fitted."""
    known = sorted((trial.batch, trial.gib) for trial in trials if trial.gib is not None)[-2:]
    if len(known) < 2:
        return 0.0
    (small, low), (large, high) = known
    return high + max(0.0, high - low) * (batch - large) / (large - small)


def full_batch(config: Config, annotations: Annotations, size: int) -> Batch:
    """Return a batch of noise images of the largest training size, with the most objects per image.

    All images are landscape: a training batch holds one aspect group, so none is padded to square.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = config.data.image_size
    height = max(config.data.multi_scale.short_sides, default=height)
    objects = int(annotations.training_counts(config.data.voc.use_difficult).max(initial=1))
    kinds = len(annotations.classes)
    images, boxes, labels, masks = [], [], [], []
    for _ in range(size):
        shape = (3, height, width)
        images.append(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        corner = torch.rand((objects, 2), generator=generator) * 0.7
        sides = 0.05 + torch.rand((objects, 2), generator=generator) * 0.25
        scale = torch.tensor([width, height] * 2)
        boxes.append(torch.cat([corner, corner + sides], dim=1) * scale)
        labels.append(torch.randint(0, kinds, (objects,), generator=generator))
        if config.detector.type == "mask_rcnn":
            masks.append(torch.ones((objects, height, width), dtype=torch.uint8))
    targets = pad_targets(boxes, labels, masks or None)
    return Batch(tuple(images), targets, tuple(range(size)))


def train_on(config: Config, batch: Batch, classes: tuple[str, ...], device: torch.device) -> float:
    """Run some training iterations on a batch; return images per second."""
    config = _for_trial(config)
    ranks = Ranks(rank=0, world_size=1, device=device)
    state = build_state(config, classes, LONG_EPOCH, ranks, pretrained=False)
    files = np.array(["a noise image"] * len(batch))
    train_step = TrainStep(state, state.detector, config.train, ranks, files)
    start, before = 0.0, warm_ups(device)
    for iteration in range(before + REPEATS):
        if iteration == before:
            _synchronize(device)
            start = time.perf_counter()
        train_step([batch])
    _synchronize(device)
    return REPEATS * len(batch) / (time.perf_counter() - start)


def _for_trial(config: Config) -> Config:
    """Return the config with a negligible learning rate and no frozen parameters."""
    return config.model_copy(
        update={"train": config.train.model_copy(update={"lr": 1e-8, "freeze": {}})}
    )


def warm_ups(device: torch.device) -> int:
    """Return the number of untimed iterations: on a GPU the last of them records the passes."""
    return FIRST_RECORDED if device.type == "cuda" else 1


def release_memory() -> None:
    """Free the memory of earlier trials: recorded passes may hold detectors in cycles."""
    gc.collect()
    torch.cuda.empty_cache()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attempt_on_gpu(
    config: Config, annotations: Annotations, device: torch.device
) -> Callable[[int], Trial]:
    """Return a trial of a batch on the GPU; its memory is the allocator's peak reserved memory."""

    def attempt(size: int) -> Trial:
        release_memory()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            batch = full_batch(config, annotations, size)
            speed = train_on(config, batch, annotations.classes, device)
        except Exception as error:
            if is_out_of_memory(error):
                return Trial(size, None, None)
            raise
        return Trial(size, torch.cuda.max_memory_reserved(device) / GIB, speed)

    return attempt


def attempt_on_cpu(config: Config, annotations: Annotations) -> Callable[[int], Trial]:
    """Return a trial of a batch in its own process; its memory is the peak of that process."""
    context = multiprocessing.get_context("spawn")

    def attempt(size: int) -> Trial:
        results, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, config, annotations, size))
        process.start()
        sender.close()
        try:
            answer = results.recv()
        except EOFError:  # killed by the system: out of memory
            answer = None
        process.join()
        if isinstance(answer, str):
            raise InputError(answer)
        return Trial(size, None, None) if answer is None else Trial(size, *answer)

    return attempt


def _child(sender: Any, config: Config, annotations: Annotations, size: int) -> None:
    """Send memory and speed, None if out of memory, or else the error message."""
    try:
        batch = full_batch(config, annotations, size)
        speed = train_on(config, batch, annotations.classes, torch.device("cpu"))
        sender.send((peak_gib(), speed))
    except Exception as error:
        sender.send(None if is_out_of_memory(error) else str(error))


def available_gib(device: torch.device) -> float:
    """Return the available memory of the GPU, or of the system.

    Raises:
        InputError: the system's available memory cannot be determined.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    available = _gib_of("/proc/meminfo", "MemAvailable")
    if available is None:
        raise InputError("--memory: available memory cannot be determined; set it in GiB")
    return available


def peak_gib() -> float:
    """Return the peak memory of this process; Linux's ``ru_maxrss`` includes its parent's.

    Raises:
        InputError: the peak cannot be determined.
    """
    peak = _gib_of("/proc/self/status", "VmHWM")
    if peak is None:
        raise InputError("memory use of a batch cannot be measured on this system; tune on Linux")
    return peak


def _gib_of(file: str, key: str) -> float | None:
    """Read a line ``key: <number> kB`` of a Linux file in GiB; None if it is missing."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return next((int(kib) * 1024 / GIB for kib in found), None)
