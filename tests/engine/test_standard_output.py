"""A reader that leaves, as `| head` does, is no fault of the program that writes."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.process.standard_output import is_watched

ROOT = Path(__file__).resolve().parents[2]
TOOL = """
import sys
from engine.process.standard_output import status_of_tool
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
RUN = """
import logging, pathlib, sys
from data.errors import InputError
from engine.process.distributed import leave
from engine.exit_status import exit_status
from engine.config import Config
from engine.process.console import start_logging
from engine.tracking.tracker import Tracker
def command(stop):
    folder = pathlib.Path(sys.argv[1])
    start_logging(folder)
    with Tracker(folder, {}, Config(), None, enabled=True) as tracker:
        for epoch in range(2):
            tracker.start_epoch(epoch, batches=2, done=0, images_per_batch=1)
            logging.warning("before")
            sys.stdin.readline()
            tracker.advance(2)
            tracker.finish_epoch()
            logging.warning("after")
    if len(sys.argv) > 2:
        raise InputError(sys.argv[2])
leave(exit_status(command, "data.batch_size"))
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


def full() -> tuple[int, Callable[[], None]]:
    console = os.open("/dev/full", os.O_WRONLY)
    return console, lambda: None


def left() -> tuple[int, Callable[[], None]]:
    reader, console = os.pipe()
    return console, lambda: os.close(reader)


def terminal() -> tuple[int, Callable[[], None]]:
    reader, console = os.openpty()
    fcntl.ioctl(console, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))

    def close() -> None:
        shown = b""
        while b"before" not in shown:
            shown += os.read(reader, 4096)
        os.close(reader)

    return console, close


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("console", [full, left, terminal])
@pytest.mark.parametrize(("end", "status"), [([], 0), (["no room"], 2)])
def test_a_console_that_goes_away_ends_nothing_and_the_log_says_all(
    console: Callable[[], tuple[int, Callable[[], None]]],
    end: list[str],
    status: int,
    tmp_path: Path,
) -> None:
    errors, close = console()
    command = [sys.executable, "-c", RUN, tmp_path, *end]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=errors)
    os.close(errors)
    close()
    process.communicate(b"\n\n")
    assert process.returncode == status
    told = [line.split(maxsplit=3)[3] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert told == ["before", "after"] * 2 + end


def test_a_terminal_of_unknown_size_is_shown_lines_and_no_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, console = os.openpty()
    with os.fdopen(console, "w") as stream, os.fdopen(reader):
        monkeypatch.setattr(sys, "stderr", stream)
        assert not is_watched()
        fcntl.ioctl(stream, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        assert is_watched()


def test_a_program_without_a_console_ends_as_ever(tmp_path: Path) -> None:
    command = ["sh", "-c", '"$@" >&- 2>&-', "sh", sys.executable, "-c", RUN, tmp_path, "no room"]
    assert subprocess.run(command, cwd=ROOT, input=b"\n\n").returncode == 2
    assert (tmp_path / "train.log").read_text().endswith("no room\n")
