"""Train and score the runs of a study, in parallel, from several shells, resumably."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from data.errors import InputError
from scripts.studies import attempts
from scripts.studies.job import Job
from scripts.studies.machine import Place, code_version, describe_machine
from scripts.studies.progress import ProgressLine, say
from scripts.studies.run import (
    LOG,
    as_words,
    differing_keys,
    has_checkpoint,
    is_locked,
    locked,
    read_record,
    scores_file,
)

ROOT = Path(__file__).resolve().parents[2]
LAST_LINES = 3
PATIENCE = 1.0  # seconds between checks of the runs of other shells


class StoppedError(Exception):
    """A signal arrived; the current runs are saved."""


class FailedError(Exception):
    """A run's program ended with an error."""


class KilledError(FailedError):
    """A signal killed a run's program before it could save."""


@dataclass
class RunQueue:
    """The jobs of a call and their states.

    Attributes:
        jobs: jobs to do, in order. A job in progress in another shell is waited for, and taken over
            if that shell leaves it unfinished.
        whole: all jobs of the studies, including finished ones, for the progress line.
        failed: error by the folder of the run.
        elsewhere: jobs that were in progress in another shell when last checked.
        under_way: start time of each current run of this call.
        cpu: CPU seconds of the last program of each run.
        keep: whether scored runs are written to the ledger.
    """

    jobs: Sequence[Job]
    whole: Sequence[Job]
    failed: dict[Path, str] = field(default_factory=dict)
    elsewhere: deque[Job] = field(default_factory=deque)
    under_way: dict[Path, float] = field(default_factory=dict)
    processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    cpu: dict[Path, float] = field(default_factory=dict)
    keep: bool = False
    signal_number: int | None = None
    guard: threading.RLock = field(default_factory=threading.RLock)
    _fresh: deque[Job] = field(init=False)

    def __post_init__(self) -> None:
        self._fresh = deque(self.jobs)

    def work(self, places: Sequence[Place]) -> None:
        """Do the missing runs, one at a time on each place; return when none is left.

        None is left when each job is scored, here or by another shell, or has failed here.

        Raises:
            StoppedError: SIGTERM or SIGINT arrived.
        """
        whole = list({job.key: job for job in self.whole}.values())
        threads = [threading.Thread(target=self._work_at, args=(place,)) for place in places]
        with self._signals():
            for thread in threads:
                thread.start()
            with ProgressLine() as line:
                while any(thread.is_alive() for thread in threads):
                    with suppress(InputError, OSError):  # of a file with the progress of a run
                        line.show(whole, self.under_way, len(places), self.failed)
                    time.sleep(0.2)
        if self.signal_number is not None:
            raise StoppedError

    def _work_at(self, place: Place) -> None:
        while (job := self._next()) is not None:
            try:
                self._do(job, place)
            except StoppedError:
                return
            except Exception as error:  # the other runs continue in any case
                self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        self.failed[job.folder] = str(error) or repr(error)
        say(f"failed: {job.folder}\n  {error}")

    def _next(self) -> Job | None:
        """Return a job that nobody works on, or else, once free, one of another shell."""
        while True:
            with self.guard:
                if self.signal_number is not None:
                    return None
                if self._fresh:
                    return self._fresh.popleft()
                if not self.elsewhere:
                    return None
                job = self.elsewhere.popleft()
            try:
                if not is_locked(job.folder):
                    return job
            except OSError as error:
                self._fail(job, error)
                continue
            with self.guard:
                self.elsewhere.append(job)
            time.sleep(PATIENCE)

    def _do(self, job: Job, place: Place) -> None:
        with locked(job.folder) as lock:
            if lock is None:
                if job.folder not in self.under_way:  # this call may score it on another split
                    say(f"in progress in another shell: {job.folder}")
                with self.guard:
                    self.elsewhere.append(job)
                return
            if job.stage == "scored":
                return
            self.under_way[job.folder] = time.monotonic()
            try:
                if not read_record(job.folder).get("trained"):
                    self._train(job, place, lock)
                self._score(job, place, lock)
                if self.keep:
                    job.keep()
            finally:
                del self.under_way[job.folder]

    def _train(self, job: Job, place: Place, lock: int) -> None:
        resumed = has_checkpoint(job.folder)
        say(f"{'resuming' if resumed else 'training'} {job.folder}")
        config = job.run.config
        processes = place.processes_of(job.run.processes)
        batch, rest = divmod(job.run.total_batch, processes * config.train.accumulate)
        if rest or not batch:
            raise InputError(
                f"{processes} processes cannot share the total batch of {job.run.total_batch} "
                "images; choose a number that divides it (--processes, --gpus)"
            )
        words = ["--config", str(job.run.base), *["--resume"][: int(resumed)], *job.run.arguments]
        words += as_words(
            {
                "data.batch_size": batch,
                "train.output": job.folder.parent,
                "train.name": job.folder.name,
            }
        )
        machine = describe_machine(Place(place.gpus[:processes], place.threads, processes))
        record = attempts.begin(
            job.folder,
            machine,
            code_version() or "unknown",
            processes=processes,
            total_batch=job.run.total_batch,
        )
        start = time.monotonic()

        def end(error: str | None) -> None:
            took, cpu = time.monotonic() - start, self.cpu.pop(job.folder, 0.0)
            attempts.end(job.folder, record, took, cpu, error)

        try:
            self._call("train.py", words, job, place, lock)
        except KilledError as failure:
            attempts.note_kill(job.folder, record, str(failure))
            raise
        except FailedError as failure:
            end(str(failure))
            raise
        except StoppedError:
            end(None)
            raise
        record["trained"] = True
        end(None)

    def _score(self, job: Job, place: Place, lock: int) -> None:
        """Score the last checkpoint; the scores are written atomically."""
        output, checkpoint = scores_file(job.folder, job.split), job.folder / "last.pt"
        if not checkpoint.is_file():
            raise InputError(
                f"{checkpoint}: the run is trained, but its checkpoint to be scored is missing; "
                f"restore it, or delete {job.folder} to rerun it"
            )
        words = [str(checkpoint), "--split", job.split, "--output", str(output)]
        config = job.run.config
        words += as_words(
            {
                "data.root": config.data.root,
                "data.workers": config.data.workers,
                "train.device": config.train.device,
            }
        )
        self._call("evaluate.py", words, job, place, lock)
        say(f"scored {job.folder}")

    def _call(self, program: str, words: Sequence[str], job: Job, place: Place, lock: int) -> None:
        """Run a program of the root, under torchrun for several processes.

        It inherits the lock, which is held while it lives, and gets its own session: Ctrl-C reaches
        it only through this process, once.
        """
        processes = place.processes_of(job.run.processes)
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher = [*launcher, f"--nproc-per-node={processes}"] if processes > 1 else []
        command = [sys.executable, *launcher, str(ROOT / program), *words]
        with (job.folder / LOG).open("ab") as log, self.guard:
            begin = log.tell()
            if self.signal_number is not None:
                raise StoppedError
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=place.environment(),
                start_new_session=True,
                pass_fds=[lock],
            )
            self.processes.add(process)
        _, status, usage = os.wait4(process.pid, 0)
        with self.guard:
            process.returncode = os.waitstatus_to_exitcode(status)
            self.processes.discard(process)
        self.cpu[job.folder] = usage.ru_utime + usage.ru_stime
        if process.returncode and self.signal_number is not None:
            raise StoppedError
        if process.returncode:
            kind = KilledError if process.returncode < 0 else FailedError
            raise kind(reason_of(program, process.returncode, job.folder / LOG, begin))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Forward SIGTERM and SIGINT to the running programs, which save and exit."""

        def hand_on(number: int, _frame: FrameType | None) -> None:
            self.signal_number = number
            with self.guard:
                for process in self.processes:
                    with suppress(ProcessLookupError):
                        # send_signal would poll the process first, which its thread does
                        os.kill(process.pid, signal.SIGTERM)

        before = {n: signal.signal(n, hand_on) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def plan(jobs: Sequence[Job]) -> tuple[list[Job], dict[Path, str]]:
    """Return the remaining jobs, and by folder the errors of jobs that cannot be done."""
    left: dict[tuple[Path, str], Job] = {}
    wrong: dict[Path, str] = {}
    owners: dict[Path, Job] = {}
    for job in jobs:
        owner = owners.setdefault(job.folder, job)
        try:
            if not job.run.computes_like(owner.run):
                wrong[job.folder] = _two_owners(owner, job)
            elif job.stage != "scored":
                left[job.key] = job
        except InputError as error:
            wrong[job.folder] = str(error)
    return [job for job in left.values() if job.folder not in wrong], wrong


def _two_owners(one: Job, other: Job) -> str:
    if one.run.base == other.run.base:
        keys = ", ".join(differing_keys(one.run, other.run)) or "the total batch"
        return (
            f"two different runs would share this folder, as their values of {keys} differ only in "
            "characters that its name omits; write one of them differently"
        )
    return (
        f"two different runs would share this folder, of {one.run.base} and of {other.run.base}; "
        "run the studies separately, each with its own --runs and --ledger, or rename a file"
    )


def reason_of(program: str, code: int, log: Path, begin: int) -> str:
    """Return why a program failed: its error line if there is one, else its last output.

    Under torchrun the program's own error comes first, then the launcher's tracebacks.

    Args:
        begin: offset of this attempt's output in the log, in bytes.
    """
    lines = log.read_bytes()[begin:].decode(errors="replace").splitlines()
    own = [line for line in lines if line.startswith("error:")]
    others = [
        line for line in lines if "error:" in line.lower() and "torch.distributed.el" not in line
    ]
    said = own[:1] or others[-1:] or lines[-LAST_LINES:]
    names = {each.value: each.name for each in signal.Signals}
    ended = names.get(-code, f"signal {-code}")
    how = f"was killed by {ended}" if code < 0 else f"exited with {code}"
    return f"{program} {how}: {' | '.join(said)} (full log: {log})"
