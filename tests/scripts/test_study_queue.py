"""Laws of sharing a study's runs out among places and shells; the programs are stood in for."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_studies import tiny_study

from engine.config import load_config
from scripts.studies import attempts, running
from scripts.studies.definition import STUDIES, Study, load_study
from scripts.studies.job import Job
from scripts.studies.machine import Place, share_out
from scripts.studies.progress import describe
from scripts.studies.run import LOG, locked, read_record, scores_file, write_record
from scripts.studies.running import FailedError, KilledError, RunQueue, plan, reason_of

SCALES = [
    (path.stem, preset)
    for path in sorted(STUDIES.glob("*.yaml"))
    for preset in (None, "small", "gpu")
    if preset != "gpu" or path.stem == "table2"
]
FIXED, ALWA = ({"weights": weights, "box loss": "l1"} for weights in ("fixed", "alwa_2"))


@pytest.fixture
def tiny(tmp_path: Path) -> Study:
    return tiny_study(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every program that a queue would have run, and the name of its run."""
    done: list[tuple[str, str]] = []

    def call(
        _queue: RunQueue, program: str, _words: list[str], job: Job, _place: Place, _lock: int
    ) -> None:
        done.append((program, job.folder.name))
        if program == "train.py":
            (job.folder / "last.pt").touch()
        else:
            scores_file(job.folder, job.split).write_text("{}")

    monkeypatch.setattr(RunQueue, "_call", call)
    monkeypatch.setattr(running, "PATIENCE", 0.02)
    return done


@contextmanager
def at_work(queue: RunQueue, places: int = 1) -> Iterator[None]:
    """The queue works beside what the test does, and is done afterwards."""
    threads = [threading.Thread(target=queue._work_at, args=(Place(),)) for _ in range(places)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)


def wait_until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def beside_another_shell(queue: RunQueue, held: Job, free: Job) -> Iterator[None]:
    """The block runs when the queue has done the free job; then the other shell lets go of its."""
    other = ExitStack()
    assert other.enter_context(locked(held.folder)) is not None
    with at_work(queue), other:
        wait_until(lambda: scores_file(free.folder, "val").is_file())
        yield


def jobs_of(study: Study, runs: Path, *splits: str) -> list[Job]:
    return [
        Job(study.run(labels, 0, {}), runs, split) for labels in (FIXED, ALWA) for split in splits
    ]


def test_places_share_the_runs_and_none_is_done_twice(
    tiny: Study, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    jobs = jobs_of(tiny, tmp_path, "val")
    with at_work(RunQueue([*jobs, *jobs], jobs), places=3):
        pass
    assert len(calls) == len(set(calls)) == 4


def test_a_run_is_trained_once_for_two_splits(
    tiny: Study, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    left, wrong = plan(jobs_of(tiny, tmp_path, "val", "test"))
    assert (len(left), wrong) == (4, {})
    with at_work(RunQueue(left, left), places=2):
        pass
    programs = [program for program, _ in calls]
    assert (programs.count("train.py"), programs.count("evaluate.py")) == (2, 4)


def test_what_another_shell_does_is_waited_for_and_not_done_again(
    tiny: Study, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    jobs = jobs_of(tiny, tmp_path, "val")
    queue = RunQueue(jobs, jobs)
    with beside_another_shell(queue, *jobs):
        scores_file(jobs[0].folder, "val").write_text("{}")
        (jobs[0].folder / "study.json").write_text('{"trained": true}')
    assert {name for _, name in calls} == {jobs[1].folder.name}
    assert not queue.failed


def test_what_another_shell_leaves_undone_is_taken_over(
    tiny: Study, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    jobs = jobs_of(tiny, tmp_path, "val")
    with beside_another_shell(RunQueue(jobs, jobs), *jobs):
        assert len(calls) == 2
    assert [name for _, name in calls[2:]] == [jobs[0].folder.name] * 2


def test_a_failed_run_stops_no_other_and_is_not_tried_again(
    tiny: Study, tmp_path: Path, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(tiny, tmp_path, "val")
    usual = RunQueue._call

    def call(queue: RunQueue, program: str, words: list[str], job: Job, *rest: Any) -> None:
        usual(queue, program, words, job, *rest)
        if job is jobs[0]:
            raise FailedError("diverged")

    monkeypatch.setattr(RunQueue, "_call", call)
    queue = RunQueue(jobs, jobs)
    with at_work(queue):
        pass
    assert queue.failed == {jobs[0].folder: "diverged"}
    assert [name for _, name in calls] == [jobs[0].folder.name] + [jobs[1].folder.name] * 2


def test_a_training_that_a_signal_ended_is_no_cost_beyond_its_checkpoint(
    tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(_queue: RunQueue, program: str, _words: list[str], job: Job, *_rest: Any) -> None:
        (job.folder / "last.pt").touch()
        time.sleep(0.01)
        raise KilledError(f"{program} was killed by SIGKILL")

    monkeypatch.setattr(RunQueue, "_call", call)
    (job, *_) = jobs_of(tiny, tmp_path, "val")
    queue = RunQueue([job], [job])
    with at_work(queue):
        pass
    record = read_record(job.folder)
    assert record["error"] == queue.failed[job.folder] == "train.py was killed by SIGKILL"
    assert record["seconds"] == 0.0
    later = attempts.begin(job.folder, "a", "v1")
    assert later["seconds"] == (job.folder / "last.pt").stat().st_mtime - record["began"] > 0
    assert later["error"] is None


def test_a_training_that_was_told_to_stop_has_not_failed(
    tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(running, "ROOT", tmp_path)
    (job, *_) = jobs_of(tiny, tmp_path, "val")
    queue = RunQueue([job], [job])
    with at_work(queue):
        wait_until(lambda: (job.folder / LOG).is_file() and (job.folder / LOG).read_bytes())
        queue.signal_number = signal.SIGTERM
        (process,) = queue.processes
        os.kill(process.pid, signal.SIGTERM)
    record = read_record(job.folder)
    assert (record["attempts"], "error" in record, "trained" in record) == (1, False, False)
    assert not queue.failed


def test_a_trained_run_without_its_checkpoint_says_what_to_do(
    tiny: Study, tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    (job, *_) = jobs_of(tiny, tmp_path, "val")
    write_record(job.folder, {"trained": True})
    queue = RunQueue([job], [job])
    with at_work(queue):
        pass
    assert calls == []
    assert (
        "its checkpoint to be scored is missing; restore it, or delete"
        in (queue.failed[job.folder])
    )


def test_a_record_without_its_seconds_ends_no_progress_line(tiny: Study, tmp_path: Path) -> None:
    (job, *_) = jobs_of(tiny, tmp_path, "val")
    write_record(job.folder, {"trained": True})
    scores_file(job.folder, "val").write_text("{}")
    assert describe([job], {}, 1) == "1 of 1 runs done"


@pytest.mark.parametrize("name", ["out #1", "2012", "null", "yes", "[x]", "a: b"])
def test_programs_are_told_folders_that_yaml_would_read_otherwise(
    name: str, tiny: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, list[str]] = {}

    def call(_queue: RunQueue, program: str, words: list[str], job: Job, *_rest: Any) -> None:
        said[program] = [word for word in words if re.match(r"[a-z_.]+=", word)]
        (job.folder / "last.pt").touch()

    monkeypatch.setattr(RunQueue, "_call", call)
    monkeypatch.chdir(tmp_path)
    job = Job(tiny.run(FIXED, 0, {"data.root": name}), Path(name), "val")
    with at_work(RunQueue([job], [job])):
        pass
    told = load_config(job.run.base, said["train.py"])
    assert Path(told.train.output, told.train.name) == job.folder
    assert told.data.root == load_config(job.run.base, said["evaluate.py"]).data.root == Path(name)


def test_a_run_has_no_more_processes_than_its_study_says_unless_they_were_asked_for() -> None:
    (place,) = share_out(1, [0, 1, 2, 3], None, at_most=4)  # a study of four is done beside others
    assert [place.processes_of(wanted) for wanted in (1, 2, 4, 8)] == [1, 2, 4, 4]
    (place,) = share_out(1, [0, 1, 2, 3], 2, at_most=4)
    assert [place.processes_of(wanted) for wanted in (1, 2, 4, 8)] == [2, 2, 2, 2]
    (place,) = share_out(1, [], None, at_most=4)
    assert [place.processes_of(wanted) for wanted in (1, 8)] == [1, 8]


def test_a_lock_that_cannot_be_looked_at_fails_its_run_alone(
    tiny: Study, tmp_path: Path, calls: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_folder: Path) -> bool:
        raise OSError("stale file handle")

    monkeypatch.setattr(running, "is_locked", look)
    jobs = jobs_of(tiny, tmp_path, "val")
    queue = RunQueue(jobs, jobs)
    with beside_another_shell(queue, *jobs):
        wait_until(lambda: queue.failed)
    assert queue.failed == {jobs[0].folder: "stale file handle"}
    assert {name for _, name in calls} == {jobs[1].folder.name}


def test_two_different_runs_that_want_one_folder_are_both_refused(
    tiny: Study, tmp_path: Path
) -> None:
    folder = tmp_path / "elsewhere" / tmp_path.name
    folder.mkdir(parents=True)
    other = tiny_study(folder)
    (folder / "base.yaml").write_text("train: {epochs: 3}\ndata: {batch_size: 4}\n")
    jobs = [Job(study.run(FIXED, 0, {}), tmp_path / "runs", "val") for study in (tiny, other)]
    assert jobs[0].folder == jobs[1].folder
    left, wrong = plan([*jobs, Job(tiny.run(ALWA, 0, {}), tmp_path / "runs", "val")])
    assert [job.folder.name for job in left] == ["weighting-alwa_seed-0"]
    assert "two different runs" in wrong[jobs[0].folder]


def test_no_two_studies_put_different_runs_into_one_folder() -> None:
    jobs = []
    for name, preset in SCALES:
        study = load_study(name, preset)
        runs = [study.run(labels, 0, {}) for labels in study.cells()]
        jobs += [Job(run, Path("runs"), study.score.split) for run in runs]
    _, wrong = plan(jobs)
    assert not wrong
    voc, coco = (load_study(name).run(FIXED, 0, {}) for name in ("table3", "table4"))
    assert voc.folder(Path("runs")) != coco.folder(Path("runs"))


def test_why_a_run_ended_is_told_in_the_words_of_its_last_attempt(tmp_path: Path) -> None:
    log = tmp_path / "study.log"
    before = "error: /proc/nowhere: cannot be written; ä\n"
    log.write_text(f"{before}epoch 1/2\nepoch 2/2\n", encoding="utf-8")
    killed = reason_of("train.py", -9, log, len(before.encode()))
    assert killed == f"train.py was killed by SIGKILL: epoch 1/2 | epoch 2/2 (full log: {log})"
    assert "exited with 2: error: /proc/nowhere" in reason_of("train.py", 2, log, 0)


def test_under_torchrun_the_reason_is_the_programs_own(tmp_path: Path) -> None:
    log = tmp_path / "study.log"
    said = ["epoch 1/2", "error: step 4, rank 0: not finite", "rank 1: error: step 4: not finite"]
    launcher = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"
    log.write_text("\n".join([*said, *["  a line of its traceback"] * 100, launcher, "=="]))
    reason = reason_of("train.py", 1, log, 0)
    assert reason == f"train.py exited with 1: {said[1]} (full log: {log})"
    log.write_text("\n".join(["RuntimeError: a fault", launcher, "=="]))
    assert "exited with 1: RuntimeError: a fault (" in reason_of("train.py", 1, log, 0)
