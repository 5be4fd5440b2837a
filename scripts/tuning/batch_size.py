"""The largest batch that fits into memory, tried out.

A batch of pictures of the largest size, each with as many objects as the fullest training image,
goes through an iteration with the optimizer's state in place. On a GPU a batch that does not fit
ends in an error that can be caught; on the CPU each batch is tried in a process of its own, whose
memory is measured, and sizes beyond the limit are not tried but extrapolated.
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
REPEATS = 2  # timed iterations, after those that warm up
LONG_EPOCH = 10**6  # batches: nothing is to be said of trials that end before a warm-up does


@dataclass(frozen=True)
class Trial:
    """One batch size.

    Attributes:
        batch: images.
        gib: the most memory, in GiB: of the GPU, or of the process; None where it did not fit.
        images_per_second: in training; None where it did not fit.
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

    The trials in their order. A batch that by a line through the last two would need more than the
    limit is not tried.
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
    """The memory of a batch by a line through the two largest trials that fitted."""
    known = sorted((trial.batch, trial.gib) for trial in trials if trial.gib is not None)[-2:]
    if len(known) < 2:
        return 0.0
    (small, low), (large, high) = known
    return high + max(0.0, high - low) * (batch - large) / (large - small)


def full_batch(config: Config, annotations: Annotations, size: int) -> Batch:
    """Noise of the largest size in training, with the most objects of an image.

    All pictures lie: a training batch holds one aspect group, so that it is padded to no square.
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
    """Some iterations on a batch, as training makes them; images a second."""
    config = _for_trial(config)
    ranks = Ranks(rank=0, world_size=1, device=device)
    state = build_state(config, classes, LONG_EPOCH, ranks, pretrained=False)
    files = np.array(["a picture of noise"] * len(batch))
    train_step = TrainStep(state, state.detector, config.train, ranks, files)
    start, before = 0.0, warm_ups(device)
    for iteration in range(before + REPEATS):
        if iteration == before:
            _wait(device)
            start = time.perf_counter()
        train_step([batch])
    _wait(device)
    return REPEATS * len(batch) / (time.perf_counter() - start)


def _for_trial(config: Config) -> Config:
    """The same, learning nothing from noise and by all that may ever learn."""
    return config.model_copy(
        update={"train": config.train.model_copy(update={"lr": 1e-8, "freeze": {}})}
    )


def warm_ups(device: torch.device) -> int:
    """Iterations that are not timed: on a GPU the last of them records the passes."""
    return FIRST_RECORDED if device.type == "cuda" else 1


def release_memory() -> None:
    """Give back what earlier trials held: recorded passes may hold their detectors in cycles."""
    gc.collect()
    torch.cuda.empty_cache()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def attempt_on_gpu(
    config: Config, annotations: Annotations, device: torch.device
) -> Callable[[int], Trial]:
    """Try a batch on the GPU; its memory is what the allocator reserved at most."""

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
    """Try a batch in a process of its own; its memory is what that held at most."""
    context = multiprocessing.get_context("spawn")

    def attempt(size: int) -> Trial:
        results, sender = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sender, config, annotations, size))
        process.start()
        sender.close()
        try:
            answer = results.recv()
        except EOFError:  # the system ended it for want of memory
            answer = None
        process.join()
        if isinstance(answer, str):
            raise InputError(answer)
        return Trial(size, None, None) if answer is None else Trial(size, *answer)

    return attempt


def _child(sender: Any, config: Config, annotations: Annotations, size: int) -> None:
    """Send the memory and the speed, None where memory is short, else what went wrong."""
    try:
        batch = full_batch(config, annotations, size)
        speed = train_on(config, batch, annotations.classes, torch.device("cpu"))
        sender.send((peak_gib(), speed))
    except Exception as error:
        sender.send(None if is_out_of_memory(error) else str(error))


def available_gib(device: torch.device) -> float:
    """Memory that can be had now: of the GPU, or of the system."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    available = _gib_of("/proc/meminfo", "MemAvailable")
    if available is None:
        raise InputError("--memory: how much is available cannot be found out; name it in GiB")
    return available


def peak_gib() -> float:
    """The most memory that this process held; Linux's ``ru_maxrss`` is that of its parent too."""
    peak = _gib_of("/proc/self/status", "VmHWM")
    if peak is None:
        raise InputError("how much memory a batch takes cannot be found out; tune on Linux")
    return peak


def _gib_of(file: str, key: str) -> float | None:
    """A line ``key: <number> kB`` of one of Linux's files; None where it is not there."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return next((int(kib) * 1024 / GIB for kib in found), None)
