"""Automatic mixed precision by the names of the config."""

from __future__ import annotations

from typing import Literal

import torch

Amp = Literal["none", "bf16", "fp16"]
AMP_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: Amp) -> torch.autocast:
    """The context in which a detector runs; ``none`` switches it off."""
    return torch.autocast(device.type, AMP_DTYPES[amp], enabled=amp != "none")
