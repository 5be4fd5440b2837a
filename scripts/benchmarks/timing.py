"""Alternating timing of two programs, so that load on the machine affects both alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

Work = Callable[[], Any]


def alternate(
    sides: Mapping[str, Work], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time each repetition of each side in seconds, alternating after the warm-up."""
    for _ in range(warm_up):
        for work in sides.values():
            work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            wait_for(device)
            start = time.perf_counter()
            work()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def wait_for(device: torch.device) -> None:
    """Wait for the GPU, which is still working when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def worst_of(differences: Iterable[float]) -> float:
    """Return the largest value, or NaN if there is one, which Python's ``max`` may miss."""
    return float(np.max(list(differences)))


def median(seconds: list[float]) -> float:
    return float(np.median(seconds))


def spread(seconds: list[float]) -> tuple[float, float]:
    """Return the first and the third quartile."""
    first, third = np.quantile(seconds, [0.25, 0.75])
    return float(first), float(third)


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Return the speedup of ours: the median over pairs of repetitions.

    A pair ran consecutively, or in consecutive processes, and thus under similar load.
    """
    return float(np.median(np.array(theirs) / np.array(ours)))
