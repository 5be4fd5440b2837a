"""SIGKILL at any moment, also in the middle of a save."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import children_of, lines_of, small, state_of, write_config
from runs import differences, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from data.errors import InputError
from engine.checkpoint import load_checkpoint, load_latest

KILLS = int(os.environ.get("KILLS", "50"))
STEPS = 200  # of each of two epochs: enough that the kills come before the end


def start(config: Path) -> int:
    """A real process of its own, quickly: a fork of this one, which has imported everything."""
    process = os.fork()
    if process:
        return process
    try:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            sys.argv = ["train.py", "--config", str(config), "--requeue"]
            os._exit(train.main())
    finally:
        os._exit(99)


def wait_for(process: int, moment: Callable[[], bool]) -> bool:
    """Whether the moment came before the end of the process."""
    while not moment():
        if state_of(process) == "Z":
            return False
        time.sleep(0.001)
    return True


def a_moment(folder: Path, rng: random.Random) -> Callable[[], bool]:
    """Half of them in a save, the others after a few iterations, in the start or the evaluation."""
    if rng.random() < 0.5:
        later = lines_of(folder) + rng.randrange(3)
        return lambda: lines_of(folder) >= later and is_saving(folder)
    until = time.monotonic() + rng.uniform(0, 2.5)
    return lambda: time.monotonic() > until


def is_saving(folder: Path) -> bool:
    """Whether there is a half-written file beside ``last.pt``."""
    return any(folder.glob(".last.pt.*.tmp"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_a_run_killed_at_fifty_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    values = small(
        tmp_path,
        data={"workers": 1, "shapes": {"train_images": 2 * STEPS, "val_images": 6}},
        train={"checkpoint_every": 1, "name": "whole"},
    )
    assert os.waitstatus_to_exitcode(os.waitpid(start(write_config(tmp_path, values)), 0)[1]) == 0
    values["train"]["name"] = "killed"
    config, folder, rng = write_config(tmp_path, values), tmp_path / "killed", random.Random(0)

    kills = in_a_save = previous_step = resumed_from_previous = 0
    while True:
        process = start(config)
        if kills < KILLS and wait_for(process, a_moment(folder, rng)):
            loaders = children_of(process)
            os.kill(process, signal.SIGKILL)
            kills += 1
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status == 0:
            break
        assert status == -signal.SIGKILL
        in_a_save += is_saving(folder)
        time.sleep(0.05)
        assert all(state_of(loader) == "Z" for loader in loaders)
        if (folder / "last.pt").exists():
            resumed_from_previous += not readable(folder / "last.pt")
            step = load_latest(folder)[1]["progress"]["step"]
            assert step >= previous_step
            previous_step = step
    print(f"{kills} kills, {in_a_save} of them with a half-written file beside last.pt")
    assert kills >= KILLS
    assert in_a_save >= KILLS // 5
    assert resumed_from_previous == 0

    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "killed"))
    assert differences(one, other) == ["/config/train/name"]
    assert metrics(tmp_path / "whole") == metrics(folder)
    events = EventAccumulator(str(folder))
    events.Reload()
    steps = [event.step for event in events.Scalars("loss/classification")]
    assert steps == list(range(1, 2 * STEPS + 1))
    assert [event.step for event in events.Scalars("val/voc_mAP")] == [STEPS, 2 * STEPS]


def readable(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except InputError:
        return False
    return True
