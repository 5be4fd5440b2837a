"""The kernels of a GPU against the plain mathematics: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def test_every_kernel_gives_what_the_plain_mathematics_gives() -> None:
    pytest.importorskip("triton", reason="PyTorch brings Triton along on Linux alone")
    environment, device = {**os.environ}, "cuda"
    if not torch.cuda.is_available():  # Triton reads the variable where a kernel is defined
        environment["TRITON_INTERPRET"], device = "1", "cpu"
    command = [sys.executable, "-W", "ignore", "-m", "scripts.gpu_checks.kernels", device]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = [line.partition(":")[0] for line in result.stdout.splitlines()]
    kernels = ["focal loss", "matching", "suppression", "proposals", "pooling", "channels"]
    assert told == kernels
