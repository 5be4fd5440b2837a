"""Laws of the ledger: a kept run counts as the run itself does, and says as much in small."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_studies import finish, log_of, tiny_study

from data.errors import InputError
from scripts.curves import Curve, read_curves
from scripts.studies.definition import Study
from scripts.studies.job import Job
from scripts.studies.ledger import keep, results_folder, thinned
from scripts.studies.machine import code_version
from scripts.studies.results import collect
from scripts.studies.run import Run, check_config, read_record, write_record
from scripts.studies.running import plan
from scripts.studies.tables import markdown
from scripts.study import main

PAIR = ("classification", "bbox_regression")
LABELS = {"weights": "fixed", "box loss": "l1"}


@pytest.fixture
def tiny(tmp_path: Path) -> Study:
    return tiny_study(tmp_path)


def kept(study: Study, tmp_path: Path, labels: dict[str, str], seed: int, score: float) -> Path:
    """A run that was finished, kept, and whose own folder is lost; its place in the ledger."""
    folder = finish(study, tmp_path / "runs", labels, seed, score)
    (folder / "metrics.jsonl").write_text(log_of(PAIR, 100))
    place = study.run(labels, seed, {}).folder(tmp_path / "ledger")
    assert keep(folder, "val", place)
    shutil.rmtree(folder)
    return place


def tables(study: Study, tmp_path: Path) -> str:
    return markdown(collect(study, tmp_path / "runs", {}, tmp_path / "ledger"))


def test_what_cannot_be_read_is_not_kept_and_keeps_no_other(
    tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, ledger = tmp_path / "runs", tmp_path / "ledger"
    for seed in (0, 1, 2):
        folder = finish(tiny, runs, LABELS, seed, 0.5)
        (folder / "metrics.jsonl").write_text(log_of(PAIR, 10))
        if seed == 0:
            (folder / "scores-val.json").write_text('{"voc"')
        if seed == 1:
            (folder / "metrics.jsonl").write_text(log_of(PAIR, 2) + "damaged\n")
    words = [str(tmp_path / "tiny.yaml"), "--runs", str(runs), "--ledger", str(ledger)]
    assert main(["keep", *words]) == 1
    captured = capsys.readouterr()
    assert main(["run", *words, "--keep", "--only", "weights=fixed", "--only", "box loss=l1"]) == 1
    assert "not kept: " in capsys.readouterr().err
    assert captured.out.count("kept ") == 1
    assert "seed-0/scores-val.json: is not JSON; delete it, and `run` scores" in captured.err
    assert "seed-1/metrics.jsonl: line 3 is damaged; delete it" in captured.err
    assert sorted(path.parent.name for path in ledger.rglob("study.json")) == ["seed-2"]


def test_a_table_of_kept_runs_is_the_table_of_the_runs(tiny: Study, tmp_path: Path) -> None:
    scores = {"fixed": (0.80, 0.82), "alwa_2": (0.81, 0.84)}
    for weights, of_seeds in scores.items():
        for seed, score in enumerate(of_seeds):
            labels = {"weights": weights, "box loss": "l1"}
            folder = finish(tiny, tmp_path / "runs", labels, seed, score)
            (folder / "metrics.jsonl").write_text(log_of(PAIR, 100))
    before = tables(tiny, tmp_path)
    assert "| fixed | l1 | 2 | 0:01:00 |  | 400 | 100 | 4 | 2 cores |" in before
    assert main(["keep", str(tmp_path / "tiny.yaml"), *places(tmp_path)]) == 0
    shutil.rmtree(tmp_path / "runs")
    assert tables(tiny, tmp_path) == before
    assert "0.8" not in markdown(collect(tiny, tmp_path / "runs", {}))


def test_keeping_tells_what_it_kept_and_that_there_is_nothing_new(
    tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finish(tiny, tmp_path / "runs", LABELS, 0, 0.8)
    (folder / "metrics.jsonl").write_text(log_of(PAIR, 100))
    command = ["keep", str(tmp_path / "tiny.yaml"), *places(tmp_path)]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("kept ")
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("nothing new to keep")


def places(tmp_path: Path) -> list[str]:
    return ["--runs", str(tmp_path / "runs"), "--ledger", str(tmp_path / "ledger")]


def test_a_kept_run_is_done_and_without_the_ledger_it_is_not(
    tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = kept(tiny, tmp_path, LABELS, 0, 0.8)
    run = tiny.run(LABELS, 0, {})
    with_ledger = Job(run, tmp_path / "runs", "val", tmp_path / "ledger")
    assert plan([with_ledger]) == ([], {})
    without = Job(run, tmp_path / "runs", "val")
    assert plan([without]) == ([without], {})
    other_split = Job(run, tmp_path / "runs", "test", tmp_path / "ledger")
    assert plan([other_split])[0] == [other_split]
    study = [str(tmp_path / "tiny.yaml"), "--only", "seed=0", *places(tmp_path)]
    assert main(["list", *study]) == 0
    assert f"scored   {place}" in capsys.readouterr().out
    assert main(["list", *study, "--no-ledger"]) == 0
    assert "scored" not in capsys.readouterr().out
    assert main(["keep", *study, "--no-ledger"]) == 2


def test_a_beginning_under_another_config_hinders_no_kept_run(tiny: Study, tmp_path: Path) -> None:
    place = kept(tiny, tmp_path, LABELS, 0, 0.8)
    begun = tiny.run(LABELS, 0, {}).folder(tmp_path / "runs")
    begun.mkdir()
    text = (place / "config.yaml").read_text()
    (begun / "config.yaml").write_text(text.replace("epochs: 2", "epochs: 3"))
    study = [str(tmp_path / "tiny.yaml"), "--only", "seed=0", *places(tmp_path)]
    assert main(["keep", *study]) == 0


def test_a_line_that_a_power_cut_left_half_written_hinders_nothing(
    tiny: Study, tmp_path: Path
) -> None:
    folder = finish(tiny, tmp_path / "runs", LABELS, 0, 0.8)
    (folder / "metrics.jsonl").write_text(log_of(PAIR, 100) + '{"kind": "tra')
    assert "| fixed | l1 | 1 | 0:01:00 |  | 400 |" in tables(tiny, tmp_path)
    assert keep(folder, "val", tmp_path / "place")
    assert read_record(tmp_path / "place")["iterations"] == 400


def test_a_run_kept_under_another_config_is_named_and_not_counted(
    tiny: Study, tmp_path: Path
) -> None:
    place = kept(tiny, tmp_path, LABELS, 0, 0.8)
    base = tmp_path / "base.yaml"
    base.write_text(base.read_text().replace("epochs: 2", "epochs: 3"))
    changed = tiny_run(tmp_path)
    _, wrong = plan([Job(changed, tmp_path / "runs", "val", tmp_path / "ledger")])
    (reason,) = wrong.values()
    assert str(place) in reason
    assert "train.epochs 2" in reason
    text = tables(tiny, tmp_path)
    assert "0.8" not in text
    assert "train.epochs 2" in text


def test_a_refused_run_does_not_end_the_list_and_a_damaged_one_is_named(
    tiny: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = kept(tiny, tmp_path, LABELS, 0, 0.8)
    (place / "study.json").write_text("<<<<<<< ours")
    listed = ["list", str(tmp_path / "tiny.yaml"), "--only", "seed=0", *places(tmp_path)]
    assert main(listed) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert sum(line.startswith("refused") for line in lines) == 1
    assert f"{place / 'study.json'}: is not JSON" in lines[0]
    (place / "study.json").write_text("[]")
    assert main(listed) == 0
    assert f"{place / 'study.json'}: is not a mapping" in capsys.readouterr().out
    job = Job(tiny.run(LABELS, 0, {}), tmp_path / "runs", "val", tmp_path / "ledger")
    left, wrong = plan([job])
    assert not left
    assert list(wrong) == [job.folder]


def tiny_run(tmp_path: Path, **overrides: Any) -> Run:
    words = {"loss.weighting": {"type": "fixed"}, "loss.box.type": "l1", "train.seed": 0}
    return Run(tmp_path / "base.yaml", {**words, **overrides})


def test_a_run_of_another_total_batch_is_another_run(tiny: Study, tmp_path: Path) -> None:
    folder = finish(tiny, tmp_path / "runs", LABELS, 0, 0.8)
    write_record(folder, {"trained": True, "total_batch": 4})
    check_config(tiny_run(tmp_path), folder)
    write_record(folder, {"trained": True, "total_batch": 8})
    with pytest.raises(InputError, match="a total batch of 8"):
        check_config(tiny_run(tmp_path), folder)


def test_a_run_that_was_scored_here_goes_before_the_kept_one(tiny: Study, tmp_path: Path) -> None:
    kept(tiny, tmp_path, LABELS, 0, 0.8)
    run = tiny.run(LABELS, 0, {})
    folder = finish(tiny, tmp_path / "runs", LABELS, 0, 0.7)
    assert results_folder(run, "val", tmp_path / "runs", tmp_path / "ledger") == folder
    (folder / "scores-val.json").unlink()  # cut off here, finished elsewhere
    assert results_folder(run, "val", tmp_path / "runs", tmp_path / "ledger") != folder


def test_the_losses_of_a_kept_run_are_those_of_the_run_to_five_digits(
    tiny: Study, tmp_path: Path
) -> None:
    folder = finish(tiny, tmp_path / "runs", LABELS, 0, 0.8)
    (folder / "metrics.jsonl").write_text(log_of(PAIR, 300))
    place = tmp_path / "ledger/run"
    assert keep(folder, "val", place)
    assert not keep(folder, "val", place), "the second time nothing changes"
    whole, small = read_curves(folder), read_curves(place)
    groups = ("loss", "loss_weight", "loss_mean", "loss_std")
    assert set(small) == {f"{group}/{name}" for group in groups for name in PAIR}
    for tag, curve in small.items():
        assert curve.steps.tolist() == whole[tag].steps.tolist()
        assert curve.values == pytest.approx(whole[tag].values, rel=5e-5)
    assert "curves" not in read_record(place)


def test_curves_of_a_long_run_are_thinned_until_they_fit_and_end_where_it_ended() -> None:
    steps = np.arange(1, 20001)
    curves = {
        "loss/classification": Curve(20 * steps, 1 / steps),
        "loss_mean/classification": Curve(100 * steps[:4000], 1 / steps[:4000]),
        "lr": Curve(20 * steps, 1 / steps),
    }
    text, every = thinned(curves, most=10_000)
    assert every > 1
    assert 5_000 < len(text) <= 10_000
    rows = [line.split(",") for line in text.splitlines()]
    assert rows[0] == ["step", "loss/classification", "loss_mean/classification"]
    assert rows[-1] == ["400000", "5e-05", "0.00025"]
    assert sum(bool(row[2]) for row in rows[1:]) == -(-4000 // every)


def test_a_kept_run_is_small_and_says_nothing_of_the_machines_folders(
    tiny: Study, tmp_path: Path
) -> None:
    folder = finish(tiny, tmp_path / "runs", LABELS, 0, 0.8)
    (folder / "metrics.jsonl").write_text(log_of(PAIR, 260))
    config = (folder / "config.yaml").read_text()
    config = config.replace("output: runs", f"output: {tmp_path}")
    (folder / "config.yaml").write_text(config.replace("root: datasets", f"root: {tmp_path}"))
    place = tmp_path / "ledger/run"
    keep(folder, "val", place)
    files = sorted(path.name for path in place.iterdir())
    assert files == ["config.yaml", "curves.csv", "scores-val.json", "study.json"]
    texts = [path.read_text() for path in place.iterdir()]
    assert not any(str(tmp_path) in text for text in texts)
    assert sum(map(len, texts)) < 30_000
    check_config(tiny_run(tmp_path), place)


def test_figures_are_drawn_of_kept_runs(tiny: Study, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = """
figures:
  "1": {kind: losses, cells: [{weights: fixed}]}
  "5": {kind: detections, cells: [{weights: fixed}]}
  "6": {kind: windows, cells: [{weights: fixed}]}
"""
    kept(tiny, tmp_path, LABELS, 1, 0.8)
    file = tmp_path / "tiny.yaml"
    file.write_text(file.read_text() + figures)
    output = ["--output", str(tmp_path / "figures"), *places(tmp_path)]
    assert main(["plot", str(file), *output]) == 1, "detections need a checkpoint"
    drawn = sorted(path.stem for path in (tmp_path / "figures").glob("*.png"))
    assert drawn == ["figure1-tiny", "figure6-tiny"]


def test_curves_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("step,loss/classification\n4,high\n")
    with pytest.raises(InputError, match="line 2"):
        read_curves(tmp_path)


def test_the_version_of_the_code_is_that_of_what_trains(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True)

    assert code_version(tmp_path) is None
    git("init", "-q")
    for folder in ("engine", "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("one")
        git("add", ".")
        git("commit", "-qm", folder)
    version = code_version(tmp_path)
    assert version is not None
    (tmp_path / "docs/file").write_text("two")
    git("commit", "-qam", "results")
    assert code_version(tmp_path) == version
    (tmp_path / "engine/file").write_text("two")
    assert code_version(tmp_path) == f"{version}-dirty"
    git("commit", "-qam", "code")
    assert code_version(tmp_path) not in (version, None)


def test_records_are_json_that_says_what_the_run_took(tiny: Study, tmp_path: Path) -> None:
    record = json.loads((kept(tiny, tmp_path, LABELS, 0, 0.8) / "study.json").read_text())
    assert record == {"trained": True, "seconds": 60.0, "machine": "2 cores", "iterations": 400}
