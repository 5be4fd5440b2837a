"""Where the kernels written in Triton run."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)


def has_kernels(device: torch.device) -> bool:
    """Whether it is a GPU, and Triton is there (PyTorch brings it along on Linux) and works."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    if find_spec("triton") is None:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # most often there is no C compiler, or no Python.h
        log.warning("Triton does not work here, so slower paths are taken: %s", error)
        return False
    return True
