"""Where the kernels written in Triton run."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


def has_kernels(device: torch.device) -> bool:
    """Whether it is a GPU, and Triton is there (PyTorch brings it along on Linux)."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
