"""A reader that leaves, as `| head` does, is no fault of the program that writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = """
import sys
from engine.standard_output import status_of_tool
def main():
    for number in range({lines}):
        print(number)
    return 0
sys.exit(status_of_tool(main))
"""
COMMAND = """
import sys
from engine.exit_status import exit_status
sys.exit(exit_status(lambda stop: print("scores " * {lines}), "data.batch_size"))
"""


@pytest.mark.parametrize("program", [TOOL, COMMAND], ids=["tool", "command"])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_who_writes_to_nobody_ends_quietly(program: str, lines: int) -> None:
    code = program.format(lines=lines)
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    complaint = process.stderr.read().decode()
    assert (process.wait(), complaint) == (141, "")


@pytest.mark.parametrize("program", [TOOL, COMMAND], ids=["tool", "command"])
def test_who_is_read_ends_as_ever(program: str) -> None:
    command = [sys.executable, "-c", program.format(lines=3)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.split()) == 3
