"""The machine of a run, and the allocation of its processors and GPUs."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
VISIBLE = "CUDA_VISIBLE_DEVICES"
CODE = ("train.py", "evaluate.py", "data", "detector", "engine", "losses")


@dataclass(frozen=True)
class Place:
    """The resources of one run at a time.

    Attributes:
        gpus: indices among the visible GPUs; empty for CPU.
        threads: threads of each process.
        processes: processes of every run; None leaves it to the run's study.
    """

    gpus: tuple[int, ...] = ()
    threads: int = 1
    processes: int | None = None

    def processes_of(self, wanted: int) -> int:
        """Return the processes of a run whose study wants ``wanted``; fewer if GPUs are fewer.

        Never more unless requested: batch norm and the normalizer are per process.
        """
        return self.processes or min(wanted, len(self.gpus) or wanted)

    def environment(self) -> dict[str, str]:
        """Return the environment variables of a run's processes."""
        environment = {**os.environ}
        environment["OMP_NUM_THREADS"] = str(self.threads)
        if self.gpus:
            visible = [name for name in environment.get(VISIBLE, "").split(",") if name]
            names = [visible[gpu] if visible else str(gpu) for gpu in self.gpus]
            environment[VISIBLE] = ",".join(names)
        return environment


def share_out(
    jobs: int, gpus: Sequence[int] | None, processes: int | None, at_most: int
) -> list[Place]:
    """Allocate a place for each of the parallel runs.

    Args:
        jobs: number of parallel runs.
        gpus: GPUs to use; None takes all, an empty sequence none.
        processes: processes of each run; None: one for each of its GPUs, or on a CPU as many as
            the study wants.
        at_most: maximum number of processes of a run.

    Raises:
        InputError: there are fewer GPUs than parallel runs or processes.
    """
    if gpus is None:
        gpus = range(torch.cuda.device_count())
    if not gpus:
        threads = _threads(jobs * (processes or at_most))
        return [Place((), threads, processes) for _ in range(jobs)]
    each = min(len(gpus) // jobs, processes or at_most)
    if each < max(1, processes or 1):
        raise InputError(
            f"--jobs {jobs}: {len(gpus)} GPUs are not enough for {jobs} parallel runs with "
            f"{processes or 1} processes each; lower --jobs{' or --processes' if processes else ''}"
        )
    threads = _threads(jobs * each)
    shares = [tuple(gpus[job * each : (job + 1) * each]) for job in range(jobs)]
    if any(len(set(share)) < each for share in shares):
        raise InputError(
            f"--gpus {','.join(map(str, gpus))}: two processes of a run would share a GPU; list a "
            "GPU repeatedly only for parallel runs, with --processes 1"
        )
    return [Place(share, threads, processes) for share in shares]


def check_gpus(gpus: Sequence[int]) -> None:
    """Raise InputError for GPU indices that do not exist."""
    count = torch.cuda.device_count()
    if gpus and not count:
        raise InputError("--gpus: PyTorch finds no GPU; drop it")
    if any(gpu >= count for gpu in gpus):
        raise InputError(
            f"--gpus {','.join(map(str, gpus))}: there are {count} GPUs, numbered from 0; choose "
            "from these, or drop it to use all"
        )


def describe_machine(place: Place) -> str:
    """Describe the processors that a run used."""
    if place.gpus:
        name = torch.cuda.get_device_name(place.gpus[0])
        return f"{len(place.gpus)} x {name}"
    cores = min(os.cpu_count() or 1, place.threads * (place.processes or 1))
    return f"{cores} of {os.cpu_count()} cores of {_cpu_name()}"


def code_version(root: Path = ROOT) -> str | None:
    """Return the last commit that changed training or scoring code; None without git.

    ``-dirty`` is appended if files differ from it. Commits of results and docs do not count.
    """
    commit = _git(root, "log", "-1", "--format=%h", "--", *CODE)
    changes = _git(root, "status", "--porcelain", "--", *CODE)
    return f"{commit}-dirty" if commit and changes else commit


def _git(root: Path, *words: str) -> str | None:
    """Return git's output; None without git, outside a repository, or if it is empty."""
    command = ["git", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _threads(processes: int) -> int:
    """Return the threads of each process, unless the user's environment sets them."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() else max(1, (os.cpu_count() or 1) // processes)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
