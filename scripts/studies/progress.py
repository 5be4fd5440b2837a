"""Progress line of a study: finished and running runs, and the remaining time."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType

from engine.process.standard_output import is_watched, tell
from engine.tracking.metrics_file import METRICS
from engine.tracking.tracker import clock
from scripts.studies.job import Job
from scripts.studies.run import read_record, scores_file

QUIET_SECONDS = 60.0  # between lines if the output is not a terminal
LEAST_SHARE = 0.01  # of a run, required to estimate its time
_printing = threading.Lock()


def say(message: str) -> None:
    """Print a message on its own line, above the progress line."""
    clear = "\r\033[K" if is_watched() else ""
    with _printing:
        tell(f"{clear}{message}\n")


class ProgressLine:
    """The progress line: updated every second on a terminal, elsewhere printed after each run.

    During long runs it is printed there once a minute.
    """

    def __init__(self) -> None:
        self.terminal = is_watched()
        self.looked = self.printed = time.monotonic()
        self.done = 0

    def show(
        self,
        jobs: Sequence[Job],
        under_way: Mapping[Path, float],
        places: int,
        failed: Collection[Path] = frozenset(),
    ) -> None:
        """Print the line if it is due."""
        now = time.monotonic()
        if now - self.looked < 1.0:
            return
        self.looked = now
        done = count_done(jobs)
        if not self.terminal and done == self.done and now - self.printed < QUIET_SECONDS:
            return
        self.printed, self.done = now, done
        since = {folder: now - start for folder, start in dict(under_way).items()}
        line = describe(jobs, since, places, failed)
        with _printing:
            tell(f"\r\033[K{line}" if self.terminal else f"{line}\n")

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.terminal:
            tell("\r\033[K")


def describe(
    jobs: Sequence[Job],
    under_way: Mapping[Path, float],
    places: int,
    failed: Collection[Path] = frozenset(),
) -> str:
    """Format the progress, as ``12 of 45 runs done, 2 running (38%, 12%), 1:32:10 left``.

    Args:
        jobs: all runs of the studies, each once.
        under_way: seconds since this call started each current run.
        places: number of parallel runs.
        failed: folders of runs that this call will not finish.
    """
    missing = [job for job in jobs if not is_done(job)]
    shares = {job.folder: share_done(job) for job in missing if job.folder in under_way}
    text = f"{len(jobs) - len(missing)} of {len(jobs)} runs done"
    if shares:
        percent = ", ".join(f"{share:.0%}" for share in shares.values())
        text += f", {len(shares)} running ({percent})"
    paces = seconds_an_epoch(jobs, under_way, shares)
    if not paces:
        return text
    usual = fmean(paces.values())
    left = sum(
        paces.get(job.run.base, usual) * _epochs(job) * (1 - shares.get(job.folder, 0.0))
        for job in missing
        if job.folder not in failed
    )
    return f"{text}, {clock(left / max(1, places))} left"


def count_done(jobs: Sequence[Job]) -> int:
    """Count the scored runs."""
    return sum(map(is_done, jobs))


def is_done(job: Job) -> bool:
    """Return whether a run is scored."""
    return scores_file(job.results, job.split).is_file()


def seconds_an_epoch(
    jobs: Sequence[Job], under_way: Mapping[Path, float], shares: Mapping[Path, float]
) -> dict[Path, float]:
    """Return the mean seconds per epoch by base config, from the best available runs.

    These are finished runs on the machine of the current runs, or else the current runs themselves,
    or else runs finished elsewhere.
    """
    here = {read_record(folder).get("machine") for folder in under_way}
    witnesses: dict[Path, list[tuple[int, float]]] = defaultdict(list)
    for job in jobs:
        record = read_record(job.results)
        share = shares.get(job.folder, 0.0)
        if record.get("trained") and "seconds" in record:
            rank = 0 if record.get("machine") in here else 2
            witnesses[job.run.base].append((rank, record["seconds"] / _epochs(job)))
        elif share > LEAST_SHARE:
            seconds = record.get("seconds", 0) + under_way[job.folder]
            witnesses[job.run.base].append((1, seconds / share / _epochs(job)))
    return {
        base: fmean(seconds for rank, seconds in known if rank == min(known)[0])
        for base, known in witnesses.items()
    }


def _epochs(job: Job) -> int:
    return job.run.config.train.epochs


def share_done(job: Job) -> float:
    """Return the finished fraction of a run's training, from its ``metrics.jsonl``.

    An evaluation gives the exact number of iterations per epoch. Before the first one it is
    estimated from the last log line of each epoch; within the first epoch it is unknown.
    """
    path = job.folder / METRICS
    if not path.is_file():
        return 0.0
    epochs, iterations_an_epoch = job.run.config.train.epochs, 0.0
    first_of_epoch, epoch, step = 0, 0, 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            kind, at_epoch, at_step = record["kind"], record["epoch"], record["step"]
        except (ValueError, KeyError, TypeError):
            continue  # the line that is being written
        if kind == "evaluation":
            iterations_an_epoch = at_step / at_epoch
        elif at_epoch > epoch:
            epoch, first_of_epoch = at_epoch, step
        step = at_step
    if iterations_an_epoch:
        return min(1.0, step / (iterations_an_epoch * epochs))
    if not first_of_epoch:
        return 0.0
    return min(1.0, (epoch + min(1.0, (step - first_of_epoch) * epoch / first_of_epoch)) / epochs)
