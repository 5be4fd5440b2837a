"""Real processes for the fault tests: started, watched, sent signals, and counted afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from runs import ROOT, tiny

MARK = "FAULT_TEST_MARK"
GRACE = 20.0  # seconds that a program may take to end after a signal


@dataclass
class Program:
    """A started command with everything that it starts itself."""

    process: subprocess.Popen[str]
    mark: str

    def everyone(self) -> dict[int, str]:
        """Process id -> command line of all living processes of this program."""
        return processes_with(self.mark)

    def ranks(self) -> list[int]:
        """The training processes: those without a launcher among them, in order of their rank."""
        numbered = {
            int(environment(pid).get("RANK", "0")): pid
            for pid, line in self.everyone().items()
            if "train.py" in line and "torch.distributed.run" not in line and is_head(pid)
        }
        return [numbered[rank] for rank in sorted(numbered)]

    def loaders(self, rank: int) -> list[int]:
        """The loader processes of a training process."""
        return children_of(rank)

    def signal_group(self, number: int) -> None:
        """As terminals and schedulers do: to every process of the program."""
        for pid in self.everyone():
            kill(pid, number)

    def end(self, limit: float = 60.0) -> tuple[int, float, str]:
        """Wait for the end: exit status, seconds it took, what it wrote to stderr."""
        since = time.monotonic()
        _, errors = self.process.communicate(timeout=limit)
        return self.process.returncode, time.monotonic() - since, errors

    def orphans(self, limit: float = 1.0) -> dict[int, str]:
        """Who is still alive this many seconds after the end."""
        deadline = time.monotonic() + limit
        while (left := self.everyone()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


@contextmanager
def started(*command: object, **variables: str) -> Iterator[Program]:
    """Start a command in a session of its own; kill what is left of it in the end."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            MARK: mark,
            **variables,
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    program = Program(process, mark)
    try:
        yield program
    finally:
        program.signal_group(signal.SIGKILL)
        process.communicate()


def training(config: Path, *arguments: object, ranks: int = 1, launcher: Any = ()) -> list[object]:
    """The command that trains, under torchrun for several ranks."""
    words: list[object] = [sys.executable]
    if ranks > 1 or launcher:
        words += ["-m", "torch.distributed.run", "--nproc-per-node", ranks]
        words += launcher or ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [*words, ROOT / "train.py", "--config", config, *arguments]


def complete(config: Path, *arguments: object, ranks: int = 1) -> None:
    """Train to the end, which has to be a good one."""
    with started(*training(config, *arguments, ranks=ranks)) as program:
        code, _, errors = program.end(limit=200)
    assert code == 0, errors


def small(folder: Path, **blocks: dict[str, Any]) -> dict[str, Any]:
    """A tiny run whose checkpoints take 13 MB, so that many of them fit on a disk."""
    values = tiny(folder, **blocks)
    values["detector"] |= {
        "backbone": "mobilenet_v3_large",
        "levels": [4, 5],
        "anchors": {"sizes": [16, 48]},
    }
    values["train"] |= {"momentum": 0.0}
    return values


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / f"{values['train']['name']}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def wait_until(true: Callable[[], bool], program: Program | None = None, limit: float = 90) -> None:
    """Poll; a program that ends before it came true is an error."""
    deadline = time.monotonic() + limit
    while not true():
        ended = program is not None and program.process.poll() is not None
        if ended or time.monotonic() > deadline:
            errors = program.process.communicate()[1] if program is not None and ended else ""
            raise AssertionError(f"it never came to that: {errors}")
        time.sleep(0.005)


def lines_of(folder: Path) -> int:
    """How many lines metrics.jsonl has."""
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def processes_with(mark: str) -> dict[int, str]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and environment(int(folder.name)).get(MARK) == mark:
            line = read(folder / "cmdline").replace("\0", " ")
            if line and state_of(int(folder.name)) != "Z":
                found[int(folder.name)] = line
    return found


def environment(pid: int) -> dict[str, str]:
    pairs = [line.split("=", 1) for line in read(Path(f"/proc/{pid}/environ")).split("\0")]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        found += map(int, read(thread / "children").split())
    return sorted(child for child in found if "train.py" in read(Path(f"/proc/{child}/cmdline")))


def is_head(pid: int) -> bool:
    """Whether a process is no loader: those are children of a process with the same command."""
    line = read(Path(f"/proc/{pid}/cmdline"))
    fields = read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(fields) and read(Path(f"/proc/{fields[1]}/cmdline")) != line


def state_of(pid: int) -> str:
    fields = read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return fields[0] if fields else "Z"


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has just ended
        return ""


def kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
