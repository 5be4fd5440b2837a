"""SIGTERM and SIGINT, once and twice, at every stage of a run, alone and under torchrun."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from processes import (
    GRACE,
    Program,
    children_of,
    complete,
    kill,
    lines_of,
    small,
    started,
    state_of,
    training,
    wait_until,
    write_config,
)
from runs import differences, metrics

from engine.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
STEPS = 20  # of an epoch
STAGES = {"start": 0, "warm-up": 2, "train": 12, "evaluate": STEPS}


def values_for(folder: Path, name: str, ranks: int) -> dict[str, Any]:
    """Two epochs of 20 iterations, the first 8 of them warm-up; evaluations that take a while."""
    return small(
        folder,
        data={
            "workers": 2,
            "batch_size": 2 // ranks,
            "shapes": {"train_images": 2 * STEPS, "val_images": 200, "image_size": [64, 64]},
        },
        train={"name": name, "warmup_iterations": 8},
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The folders of finished runs, by their number of ranks."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for ranks in (1, 2):
        config = write_config(folder, values_for(folder, f"whole{ranks}", ranks))
        complete(config, ranks=ranks)
    return {ranks: folder / f"whole{ranks}" for ranks in (1, 2)}


def reach(stage: str, folder: Path, program: Program) -> None:
    if stage == "start":
        wait_until(lambda: (folder / "train.log").exists(), program)
        return
    wait_until(lambda: lines_of(folder) >= STAGES[stage], program)
    if stage == "evaluate":
        time.sleep(0.5)
        assert lines_of(folder) == STEPS


def send(program: Program, target: str, number: int) -> None:
    if target == "group":
        program.signal_group(number)
    else:
        program.process.send_signal(number)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("process", signal.SIGTERM),
        ("process", signal.SIGINT),
        ("group", signal.SIGTERM),
        ("group", signal.SIGINT),
    ],
)
def test_a_signal_saves_the_last_iteration_and_the_run_goes_on_as_if_undisturbed(
    ranks: int,
    stage: str,
    target: str,
    number: int,
    undisturbed: dict[int, Path],
    tmp_path: Path,
) -> None:
    # The same data: the fixture has drawn them.
    values = values_for(undisturbed[ranks].parent, "cut", ranks)
    values["train"]["output"] = str(tmp_path)
    config, folder = write_config(tmp_path, values), tmp_path / "cut"
    with started(*training(config, ranks=ranks)) as program:
        reach(stage, folder, program)
        send(program, target, number)
        code, seconds, errors = program.end()
        assert code == (128 + number if ranks == 1 else 1), errors
        assert seconds < GRACE
        assert program.orphans() == {}
    assert f"stopped by {signal.Signals(number).name}" in errors
    if stage == "start" and not (folder / "last.pt").exists():
        assert "start it again" in errors
        assert [path.name for path in folder.iterdir()] == ["train.log"]
        complete(config, ranks=ranks)
    else:
        step = load_checkpoint(folder / "last.pt")["progress"]["step"]
        logged = [line["step"] for line in metrics(folder) if line["kind"] == "train"]
        assert step == logged[-1]
        complete(config, "--resume", ranks=ranks)
    whole, cut = (load_checkpoint(path / "last.pt") for path in (undisturbed[ranks], folder))
    assert set(differences(whole, cut)) <= {"/config/train/name", "/config/train/output"}
    assert metrics(undisturbed[ranks]) == metrics(folder)


def slow_steps(folder: Path) -> Path:
    """Iterations of many seconds, within which the main thread runs no Python."""
    return write_config(
        folder,
        small(
            folder,
            data={"image_size": [2400, 2400], "batch_size": 1, "workers": 1},
            train={"name": "slow"},
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_second_signal_ends_all_processes_at_once(ranks: int, tmp_path: Path) -> None:
    with started(*training(slow_steps(tmp_path), ranks=ranks)) as program:
        log = tmp_path / "slow" / "train.log"
        wait_until(lambda: log.exists() and "lr " in log.read_text(), program)
        wait_until(lambda: len(children_of(program.ranks()[0])) > 0, program)
        time.sleep(1)
        program.process.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        assert program.process.poll() is None  # it would have finished its iteration
        program.process.send_signal(signal.SIGTERM)
        code, seconds, errors = program.end()
        assert code == (143 if ranks == 1 else 1), errors
        assert seconds < 4  # torchrun itself takes some time to end
        assert program.orphans(limit=0.5) == {}


@pytest.mark.slow
def test_the_end_of_torchrun_is_a_signal_to_its_ranks(tmp_path: Path) -> None:
    config, folder = write_config(tmp_path, values_for(tmp_path, "cut", 2)), tmp_path / "cut"
    with started(*training(config, ranks=2)) as program:
        reach("train", folder, program)
        program.process.kill()
        wait_until(lambda: program.everyone() == {}, limit=GRACE)
    logged = [line["step"] for line in metrics(folder) if line["kind"] == "train"]
    assert load_checkpoint(folder / "last.pt")["progress"]["step"] == logged[-1] >= 12


@pytest.mark.slow
def test_a_rank_that_waits_for_a_frozen_one_leaves_in_time(tmp_path: Path) -> None:
    config, folder = write_config(tmp_path, values_for(tmp_path, "cut", 2)), tmp_path / "cut"
    with started(*training(config, ranks=2)) as program:
        reach("train", folder, program)
        waiting, frozen = program.ranks()
        kill(frozen, signal.SIGSTOP)
        time.sleep(1)
        kill(waiting, signal.SIGTERM)
        wait_until(lambda: state_of(waiting) == "Z", limit=GRACE)
        kill(frozen, signal.SIGCONT)
        program.end()
        assert program.orphans() == {}


def test_a_signal_to_the_whole_group_stops_a_run_with_loader_processes(tmp_path: Path) -> None:
    values = values_for(tmp_path, "cut", 1)
    config, folder = write_config(tmp_path, values), tmp_path / "cut"
    with started(*training(config)) as program:
        reach("warm-up", folder, program)
        assert len(program.loaders(program.ranks()[0])) == 2
        # As a launcher that hands on what the scheduler has sent to everybody: all hear it twice.
        program.signal_group(signal.SIGTERM)
        program.signal_group(signal.SIGTERM)
        code, seconds, errors = program.end()
        assert code == 143, errors
        assert seconds < GRACE
        assert program.orphans() == {}
    logged = [line["step"] for line in metrics(folder) if line["kind"] == "train"]
    assert load_checkpoint(folder / "last.pt")["progress"]["step"] == logged[-1]


def test_loader_processes_end_with_a_killed_run(tmp_path: Path) -> None:
    values = values_for(tmp_path, "cut", 1)
    config, folder = write_config(tmp_path, values), tmp_path / "cut"
    with started(*training(config)) as program:
        reach("warm-up", folder, program)
        os.kill(program.process.pid, signal.SIGKILL)
        program.end()
        assert program.orphans(limit=0.5) == {}
