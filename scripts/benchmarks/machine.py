"""Description of the benchmark machine, for a table's caption."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from engine.precision import cpu_has_bf16

PACKAGES = ("torch", "torchvision", "numpy", "albumentations", "opencv-python-headless")


def describe_machine(device: torch.device, packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Processor, GPU, threads and versions, by name."""
    described = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores usable",
        "threads": str(torch.get_num_threads()),
        "bf16 instructions": "yes" if cpu_has_bf16() else "no",
        "Python": platform.python_version(),
    }
    if device.type == "cuda":
        described["GPU"] = torch.cuda.get_device_name(device)
    return described | {package: _version(package) for package in packages}


def in_words(machine: dict[str, str]) -> str:
    """Format the result of ``describe_machine`` in one line."""
    return "; ".join(f"{name} {value}" for name, value in machine.items())


def _cpu_information() -> dict[str, str]:
    """The fields of the first processor; empty where there is no /proc."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _processor() -> str:
    return _cpu_information().get("model name", platform.processor() or platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
