"""Peak memory of some work."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from detector.fast.cuda_graphs import FIRST_RECORDED
from scripts.benchmarks.timing import wait_for

TIMES = 2  # repetitions on a CPU; on a GPU until the pass was recorded and replayed


def peak_memory(work: Callable[[], Any], device: torch.device) -> float:
    """Measure the peak MB of some repetitions, above the memory before.

    On a CPU these are the process's resident pages, which is meaningful only if the process has not
    done the same before; on a GPU it is the allocator's own count.
    """
    cuda = device.type == "cuda"
    gc.collect()
    _return_freed_memory()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = torch.cuda.memory_allocated(device) / 2**20 if cuda else _status_mb("VmRSS:")
    for _ in range(FIRST_RECORDED + 1 if cuda else TIMES):
        work()
        wait_for(device)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _status_mb("VmHWM:")
    return peak - before


def _return_freed_memory() -> None:
    """Return freed heap memory to the system, which would hide the memory of the work."""
    with suppress(AttributeError, OSError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
