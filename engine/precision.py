"""Automatic mixed precision by the names of the config."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from data.errors import InputError
from engine.process.distributed import Ranks

Amp = Literal["none", "bf16", "fp16", "auto"]
AMP_DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_INFO = Path("/proc/cpuinfo")
# CPU flags of x86 and Arm; without them a CPU converts every number to float32 and back.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

log = logging.getLogger(__name__)


def autocast(device: torch.device, amp: Amp) -> torch.autocast:
    """The autocast context of a detector; ``none`` disables it."""
    name = precision_of(amp, device)
    return torch.autocast(device.type, AMP_DTYPES[name], enabled=name != "none")


def precision_of(amp: Amp, device: torch.device) -> Literal["none", "bf16", "fp16"]:
    """Resolve ``train.amp`` on a device: ``auto`` is bf16 if the device supports it, else none."""
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "none"
    return "bf16" if cpu_has_bf16() else "none"


def log_precision(amp: Amp, device: torch.device) -> None:
    """Log what ``auto`` selects; warn of bf16 on a CPU without bf16 instructions."""
    if amp == "auto":
        log.info("train.amp: auto selects %s", precision_of(amp, device))
    if amp == "bf16" and device.type == "cpu" and cpu_has_bf16() is False:
        log.warning(
            "train.amp: bf16 on a CPU without bf16 instructions is many times slower than none; "
            "use train.amp=auto or none"
        )


def check_precision(amp: Amp, ranks: Ranks) -> None:
    """Check that ``auto`` selects the same precision on all ranks. Every rank must call it.

    Raises:
        InputError: on every rank, if it differs between machines of a run.
    """
    found: list[str] = ranks.all_gather(precision_of(amp, ranks.device))
    differing = next((rank for rank, name in enumerate(found) if name != found[0]), None)
    if differing is not None:
        raise InputError(
            f"train.amp: auto selects {found[0]} on rank 0 but {found[differing]} on rank "
            f"{differing}: ranks would compute differently; set one of them, as train.amp=none"
        )


@cache
def cpu_has_bf16() -> bool | None:
    """Whether the CPU has bf16 instructions; None if the system does not say."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return None if flags is None else bool(BF16_FLAGS & set(flags[1].split()))
