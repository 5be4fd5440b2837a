"""Whose folder it is: one run at a time, and none is overwritten."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from runs import ALONE, StopAfter, config_of, metrics, run, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from data.errors import InputError
from engine import run_folder
from engine.dry_run import dry_run
from engine.process.distributed import Ranks
from engine.process.signals import Stopped, StopRequest
from engine.run_folder import RunFolder, open_run_folder
from engine.tracking.metrics_file import read_records


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a RetinaNet with ALWA."""
    return run(config_of(tiny(tmp_path_factory.mktemp("finished"))))


def test_a_folder_with_a_checkpoint_is_refused_without_resume(finished: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        run(config_of(tiny(finished.parent)))


def test_a_folder_is_one_runs_alone_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_PAUSES", (0.01,))
    config = config_of(tiny(tmp_path))
    for resume in (False, True):
        with (
            open_run_folder(config, ALONE, resume=False, requeue=False) as path,
            pytest.raises(InputError, match="another run is training there"),
            open_run_folder(config, ALONE, resume=resume, requeue=False),
        ):
            pass
    with open_run_folder(config, ALONE, resume=True, requeue=False) as again:
        assert again == path


def test_what_a_kill_left_half_written_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    config = config_of(tiny(tmp_path))
    config.run_folder.mkdir()
    (config.run_folder / ".last.pt.0a1b2c3d.tmp").write_bytes(b"PK")
    other = config.run_folder / ".metrics.json.0a1b2c3d.tmp"  # perhaps evaluate.py's, under way
    other.write_bytes(b"{")
    with open_run_folder(config, ALONE, resume=True, requeue=False) as folder:
        assert list(folder.glob(".*.tmp")) == [other]


@pytest.mark.parametrize("requeue", [False, True])
def test_a_run_that_ends_while_another_waits_for_its_folder_keeps_its_checkpoint(
    requeue: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    run(config_of(values)).rename(tmp_path / "aside")
    values["train"]["epochs"] = 2
    config = config_of(values)
    first = ExitStack()
    path = first.enter_context(open_run_folder(config, ALONE, resume=False, requeue=False))

    def end(_: float) -> None:
        for file in (tmp_path / "aside").iterdir():
            if file.name != "train.log":  # which is what is locked
                file.rename(path / file.name)
        first.close()

    monkeypatch.setattr(run_folder.time, "sleep", end)
    if requeue:
        train.train(config, ALONE, StopRequest(), resume=False, allow_changed=False, requeue=True)
        assert [line["step"] for line in metrics(path) if line["kind"] == "train"][-1] == 10
        assert "epoch 1/" not in (path / "train.log").read_text()
    else:
        with pytest.raises(InputError, match="already holds a checkpoint"):
            run(config)


def test_no_rank_leaves_before_the_main_one_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    save = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", lambda *a: (save(*a), events.append("saved")))
    monkeypatch.setattr(Ranks, "barrier", lambda _: events.append("waited"))
    run(config_of(tiny(tmp_path)), StopAfter(2))
    assert events[-2:] == ["saved", "waited"]


@pytest.mark.parametrize("left", ["last.pt", "previous.pt", "best.pt"])
def test_a_folder_with_any_checkpoint_is_refused_without_resume(left: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / left).touch()
    with pytest.raises(InputError, match="already holds a checkpoint") as refused:
        run(config_of(tiny(tmp_path)))
    assert ("continue with --resume" in str(refused.value)) == (left != "best.pt")


@pytest.mark.parametrize("name", ["run", "r" * 300])
def test_a_run_that_is_not_there_cannot_go_on(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run"):
        run(config_of(tiny(tmp_path, train={"name": name})), resume=True)
    assert not (tmp_path / "run").exists()


def test_lines_of_metrics_that_are_no_records_are_dropped_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = {"kind": "train", "step": 1, "epoch": 0}
    lines = [json.dumps(record), "{}", "12", "null", '{"kind": "tra']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert list(read_records(tmp_path)) == [record]
    assert caplog.text.count("dropping a line that is not a complete record") == 4


def test_a_run_begins_anew_over_one_that_was_killed_before_its_first_checkpoint(
    tmp_path: Path,
) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0})
    folder = run(config_of(values))
    before = metrics(folder)
    for name in ("last.pt", "previous.pt", "best.pt"):
        (folder / name).unlink()
    assert metrics(run(config_of(values))) == before
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/classification")] == [1, 2, 3, 4, 5]


def test_a_signal_before_the_first_iteration_leaves_no_checkpoint(tmp_path: Path) -> None:
    stop = StopRequest()
    stop.handle(signal.SIGINT)
    folder = run(config_of(tiny(tmp_path)), stop)
    assert [path.name for path in folder.iterdir()] == ["train.log"]
    with pytest.raises(Stopped):
        dry_run(config_of(tiny(tmp_path)), ALONE, stop)
