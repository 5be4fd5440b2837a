"""Freed memory is kept for the next step, unless the user chose otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from engine.process.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
import torch

def step():
    return torch.ones(1 << 23).mul(2).sum()

for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")


def page_faults(mode: str, **environment: str) -> tuple[str, int]:
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = answer.stdout.split()
    return kept, int(faults)


def test_further_steps_touch_no_fresh_pages() -> None:
    _, usual = page_faults("usual")
    # A machine in want of memory takes idle pages back, which adds faults to some attempts.
    attempts = [page_faults("keep") for _ in range(3)]
    assert {kept for kept, _ in attempts} == {"True"}
    assert min(faults for _, faults in attempts) < usual / 20


def test_a_choice_of_the_user_stands() -> None:
    kept, _ = page_faults("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"
