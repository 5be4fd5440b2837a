"""Detect whether kernels written in Triton can run."""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)


def has_kernels(device: torch.device) -> bool:
    """Return whether the device is a GPU and Triton (part of PyTorch on Linux) works."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    if find_spec("triton") is None:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # most often, a C compiler or Python.h is missing
        log.warning("Triton does not work here; using slower code paths: %s", error)
        return False
    return True
