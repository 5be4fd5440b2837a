"""How much memory some work takes at most."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.timing import wait_for

TIMES = 2  # that the work is done


def peak_memory(work: Callable[[], Any], device: torch.device) -> float:
    """MB that some repetitions take at most, beside what was there before.

    On a CPU the process's resident pages: meaningful in a process that has not done the same
    before. On a GPU the allocator's own count.
    """
    cuda = device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = torch.cuda.memory_allocated(device) / 2**20 if cuda else _status_mb("VmRSS:")
    for _ in range(TIMES):
        work()
        wait_for(device)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _status_mb("VmHWM:")
    return peak - before


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
