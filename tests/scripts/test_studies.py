"""Laws of the studies: their runs, their progress and their command."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from tiny_studies import finish, tiny_study

from data.errors import InputError
from engine.resume import NEUTRAL_KEYS
from scripts.studies.definition import (
    Study,
    load_study,
)
from scripts.studies.job import Job
from scripts.studies.machine import Place, check_gpus, share_out
from scripts.studies.progress import describe, share_done
from scripts.studies.run import (
    LOCK,
    check_config,
    is_locked,
    locked,
    scores_file,
    stage,
    write_record,
)
from scripts.studies.running import plan
from scripts.study import main


@pytest.fixture
def tiny(tmp_path: Path) -> Study:
    return tiny_study(tmp_path)


def test_studies_share_the_runs_that_compute_the_same(tmp_path: Path) -> None:
    grid, core = load_study("table1", "small"), load_study("table2", "small")
    one = grid.run({"weights": "1.00:1.00", "box loss": "l1"}, 0, {})
    other = core.run({"weights": "fixed", "box loss": "l1"}, 0, {})
    assert one.folder(tmp_path) == other.folder(tmp_path)
    assert one.folder(tmp_path) != core.run({"weights": "fixed", "box loss": "l1"}, 1, {}).folder(
        tmp_path
    )


OTHER_PLACES = {
    "data.cache": "memory",
    "data.follow_links": True,
    "data.max_image_pixels": 7,
    "data.prefetch": 7,
    "data.workers": 7,
    "evaluate.engine": "hotcoco",
    "train.checkpoint_every": 7,
    "train.device": "cpu",
    "train.log_every": 7,
    "train.output": "elsewhere",
    "train.pictures": 7,
    "train.trackers": ["mlflow"],
}


def test_what_changes_no_result_trains_nothing_anew(tiny: Study, tmp_path: Path) -> None:
    assert OTHER_PLACES.keys() == NEUTRAL_KEYS
    labels = {"weights": "fixed", "box loss": "l1"}
    run = tiny.run(labels, 0, {})
    for key, value in [*OTHER_PLACES.items(), ("data.root", "elsewhere"), ("evaluate.every", 7)]:
        other = tiny.run(labels, 0, {key: value})
        assert other.computes_like(run), key
        assert other.folder(tmp_path) == run.folder(tmp_path)


def test_a_batch_that_is_accumulated_is_a_run_of_its_own(tiny: Study, tmp_path: Path) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    run, other = tiny.run(labels, 0, {}), tiny.run(labels, 0, {"train.accumulate": 2})
    assert not other.computes_like(run)
    assert other.folder(tmp_path) != run.folder(tmp_path)


def test_a_long_override_makes_a_name_that_a_folder_can_have(tiny: Study, tmp_path: Path) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    many = [{"HorizontalFlip": {"p": 0.5}} for _ in range(20)]
    names = {
        tiny.run(labels, 0, {"data.augment": [*many, {"Blur": {"p": p}}]}).name for p in (0.1, 0.2)
    }
    assert len(names) == 2
    assert all(len(name) < 255 for name in names)
    assert not is_locked(tmp_path / names.pop())


def test_where_patience_ends_a_run_its_evaluations_decide_about_the_result(tiny: Study) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    one, other = (
        tiny.run(labels, 0, {"train.patience": 2, "evaluate.every": every}) for every in (1, 2)
    )
    assert not one.computes_like(other)
    assert not one.computes_like(tiny.run(labels, 0, {}))


def test_a_run_moves_from_not_run_to_scored(tiny: Study, tmp_path: Path) -> None:
    labels = {"weights": "fixed", "box loss": "ciou"}
    run = tiny.run(labels, 0, {})
    folder = run.folder(tmp_path)
    assert stage(run, folder, "val") == "not run"
    folder.mkdir(parents=True)
    (folder / "previous.pt").touch()
    assert stage(run, folder, "val") == "cut off"
    write_record(folder, {"error": "diverged"})
    assert stage(run, folder, "val") == "failed"
    write_record(folder, {"trained": True})
    assert stage(run, folder, "val") == "trained"
    scores_file(folder, "val").write_text("{}")
    assert stage(run, folder, "val") == "scored"
    assert stage(run, folder, "VOC2007/test") == "trained"


def test_where_a_run_runs_is_no_change_of_what_it_computes(tiny: Study, tmp_path: Path) -> None:
    labels = {"weights": "alwa_2", "box loss": "l1"}
    folder = finish(tiny, tmp_path, labels, 0, 0.8)
    moved = {"data.root": "/elsewhere", "data.workers": 0, "train.device": "cpu"}
    run = tiny.run(labels, 0, moved)
    assert run.folder(tmp_path) == folder
    check_config(run, folder)
    longer = tiny.run(labels, 0, {"train.epochs": 3})
    assert longer.folder(tmp_path) != folder
    with pytest.raises(InputError, match="epochs"):
        check_config(longer, folder)


def test_a_folder_is_locked_for_others_and_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_locked(folder)
    with locked(folder) as first:
        assert first is not None
        with locked(folder) as second:
            assert second is None
        assert is_locked(folder)
    assert not is_locked(folder)


def test_a_shell_that_looks_is_no_run_in_progress(tmp_path: Path) -> None:
    with locked(tmp_path):
        pass
    with (tmp_path / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_locked(tmp_path)


def test_a_plan_holds_each_folder_once_and_what_is_not_done(tiny: Study, tmp_path: Path) -> None:
    jobs = []
    for labels in [*tiny.cells(), *tiny.cells()]:
        run = tiny.run(labels, 0, {})
        jobs.append(Job(run, tmp_path, "val"))
    assert len(plan(jobs)[0]) == 4
    finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, 0, 0.8)
    left, wrong = plan(jobs)
    assert len(left) == 3
    assert not wrong


def test_progress_judges_the_time_left_by_what_finished_runs_took(
    tiny: Study, tmp_path: Path
) -> None:
    jobs = []
    for seed in tiny.seeds:
        run = tiny.run({"weights": "fixed", "box loss": "l1"}, seed, {})
        jobs.append(Job(run, tmp_path, "val"))
    assert describe(jobs, {}, places=2) == "0 of 3 runs done"
    finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, 0, 0.8)  # took 60 s
    assert describe(jobs, {}, places=2) == "1 of 3 runs done, 0:01:00 left"
    write_record(jobs[1].folder, {"machine": "2 cores"})
    lines = [{"kind": "train", "epoch": 0, "step": 8}, {"kind": "train", "epoch": 1, "step": 12}]
    (jobs[1].folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = describe(jobs, {jobs[1].folder: 10.0}, places=1)
    assert text == "1 of 3 runs done, 1 running (75%), 0:01:15 left"
    just_scored = {jobs[0].folder: 60.0, jobs[1].folder: 10.0}
    assert describe(jobs, just_scored, places=1) == text, "a scored run is not under way"
    text = describe(jobs, {jobs[1].folder: 10.0}, places=1, failed={jobs[2].folder})
    assert text == "1 of 3 runs done, 1 running (75%), 0:00:15 left"


def test_progress_believes_runs_of_this_machine_and_counts_epochs(
    tiny: Study, tmp_path: Path
) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    short = [Job(tiny.run(labels, seed, {}), tmp_path, "val") for seed in tiny.seeds]
    long = Job(tiny.run(labels, 0, {"train.epochs": 6}), tmp_path, "val")
    finish(tiny, tmp_path, labels, 0, 0.8)  # took 60 s, 2 epochs
    jobs = [*short, long]
    assert describe(jobs, {}, places=1) == "1 of 4 runs done, 0:05:00 left"
    write_record(short[1].folder, {"machine": "a slower one"})
    lines = [{"kind": "train", "epoch": 0, "step": 8}, {"kind": "train", "epoch": 1, "step": 16}]
    metrics = short[1].folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(x) + "\n" for x in lines[:1]))
    under_way = {short[1].folder: 200.0}
    text = describe(jobs, under_way, places=1)
    assert text == "1 of 4 runs done, 1 running (0%), 0:05:00 left", "too early to tell"
    metrics.write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = describe(jobs, under_way, places=1)
    assert text == "1 of 4 runs done, 1 running (100%), 0:13:20 left"
    write_record(short[1].folder, {"trained": True, "machine": "a slower one", "seconds": 240.0})
    scores_file(short[1].folder, "val").write_text("{}")
    under_way = {short[2].folder: 1.0}
    write_record(short[2].folder, {"machine": "a slower one"})
    text = describe(jobs, under_way, places=2)
    assert text == "2 of 4 runs done, 1 running (0%), 0:08:00 left"


def test_an_evaluation_tells_how_many_iterations_an_epoch_has(tiny: Study, tmp_path: Path) -> None:
    """13 of them, a log line every 20: the first of each epoch alone would say 4 of 5 epochs."""
    run = tiny.run({"weights": "fixed", "box loss": "l1"}, 0, {"train.epochs": 5})
    job = Job(run, tmp_path, "val")
    job.folder.mkdir(parents=True)
    lines = [("evaluation", 1, 13), ("train", 1, 20), ("evaluation", 2, 26)]
    lines += [("evaluation", 3, 39), ("train", 3, 40)]
    records = [{"kind": kind, "epoch": epoch, "step": step} for kind, epoch, step in lines]
    metrics = job.folder / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert share_done(job) == pytest.approx(40 / 65)


def test_gpus_and_cores_are_shared_out_among_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    places = share_out(2, [0, 1, 4, 5], None, at_most=4)
    assert [place.gpus for place in places] == [(0, 1), (4, 5)]
    assert [place.processes_of(4) for place in places] == [2, 2]
    assert [place.gpus for place in share_out(1, [0, 1, 2], None, at_most=2)] == [(0, 1)]
    assert share_out(2, [], None, at_most=1)[0].processes is None
    with pytest.raises(InputError, match="not enough"):
        share_out(2, [0], None, at_most=1)
    assert [place.gpus for place in share_out(3, [0, 0, 1], 1, at_most=2)] == [(0,), (0,), (1,)]
    with pytest.raises(InputError, match="two processes of a run would share a GPU"):
        share_out(1, [0, 0], 2, at_most=2)
    assert {place.threads for place in share_out(1000, [], None, at_most=1)} == {1}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert share_out(2, [], None, at_most=1)[0].environment()["OMP_NUM_THREADS"] == "3"


def test_gpus_are_numbered_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Place((0, 2)).environment()["CUDA_VISIBLE_DEVICES"] == "0,2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,GPU-7")
    assert Place((0, 2)).environment()["CUDA_VISIBLE_DEVICES"] == "4,GPU-7"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    check_gpus((0, 2))
    with pytest.raises(InputError, match="there are 3 GPUs"):
        check_gpus((0, 3))


def test_the_command_refuses_what_the_study_decides(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("train.seed=3", "data={batch_size: 8}"):
        assert main(["list", "table1", word]) == 2
        assert "the study sets this key" in capsys.readouterr().err
    # whole blocks, and parts of what a label sets; also of labels that --only leaves out
    varied = ("loss.weighting.type=gls", "loss={weighting: {type: gls}}", "loss.box.type.x=1")
    for word in varied:
        assert main(["list", "table2", "--only", "box loss=giou", "weights=fixed", word]) == 2
        assert "the study varies this key" in capsys.readouterr().err
    assert main(["list", "table2", "loss.box.beta=0.5", "train.amp=auto"]) == 0
    assert main(["run"]) == 2
    assert main(["table", "nothing"]) == 2


def test_tables_and_the_list_of_runs_are_printed_and_written(
    tiny: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(tmp_path / "tiny.yaml")
    runs = ["--runs", str(tmp_path / "runs")]
    assert main(["list", file, "--only", "seed=0", *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(tiny.cells()))
    assert all(line.startswith("not run") for line in lines)
    with locked(Path(lines[0].split(maxsplit=2)[2])):
        assert main(["list", file, "--only", "seed=0", *runs]) == 0
    assert capsys.readouterr().out.splitlines() == [
        lines[0].replace("not run", "running"),
        *lines[1:],
    ]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["table", file, "--runs=~/runs"]) == 0
    printed = capsys.readouterr().out
    written = tmp_path / "runs/tables"
    assert (written / "tiny.md").read_text() in printed
    assert {path.suffix for path in written.iterdir()} == {".md", ".tex", ".csv"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "a,b"], "'a,b' is not a list of whole numbers; write them as 0,1,2"),
        (["--gpus", "0;1"], "'0;1' is not a list of whole numbers"),
        (["--gpus=-1"], "'-1' is not a list of whole numbers"),
        (["--gpus", ","], "',' is not a list of whole numbers"),
        (["--jobs", "two"], "'two' is not a whole number of at least 1"),
        (["--processes", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_numbers_that_are_none_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "table1", *words])
    assert f"argument {words[0].partition('=')[0]}: {message}" in capsys.readouterr().err
