"""Laws of the studies: what their files say, their runs and their command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_studies import TINY, finish, tiny_study

from data.errors import InputError
from engine.resume import NEUTRAL_KEYS
from scripts.studies.definition import (
    STUDIES,
    Figure,
    Study,
    flatten_cells,
    load_study,
    narrowed,
)
from scripts.studies.job import Job
from scripts.studies.machine import Place, check_gpus, share_out
from scripts.studies.progress import describe, share_done
from scripts.studies.results import collect
from scripts.studies.run import (
    check_config,
    is_locked,
    locked,
    scores_file,
    stage,
    write_record,
)
from scripts.studies.running import plan
from scripts.study import main

ROOT = Path(__file__).parents[2]
PAPER = Path(__file__).parent / "fixtures/paper.json"  # tables 1 to 8, each number as printed
TABLES = [f"table{number}" for number in range(1, 9)]
ALL = sorted(path.stem for path in STUDIES.glob("*.yaml"))


@pytest.fixture
def tiny(tmp_path: Path) -> Study:
    return tiny_study(tmp_path)


def numbers_of(table: dict[str, Any]) -> dict[frozenset[str], list[float]]:
    """The paper's numbers by the labels of their cell."""
    cells = dict(table)
    if "delta_percent" in cells:
        first = {"1.00:1.00": cells["baseline"]}
        cells = {**first, **cells["delta_percent"]}
    return {frozenset(path): numbers for path, numbers in flatten_cells(cells)}


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_numbers_stand_in_the_study_as_printed(name: str) -> None:
    study = load_study(name)
    printed = numbers_of(json.loads(PAPER.read_text())[name])
    assert {
        frozenset(path): numbers for path, numbers in flatten_cells(study.paper.cells)
    } == printed
    shown = {frozenset(labels.values()): study.published(labels) for labels in study.cells()}
    assert {labels: numbers for labels, numbers in shown.items() if numbers is not None} == printed


def test_changes_are_added_to_the_baseline_and_values_subtracted_from_it(tmp_path: Path) -> None:
    changes = collect(load_study("table1"), tmp_path, {})
    cell = changes.at({"weights": "0.25:0.50", "box loss": "ciou"})
    assert cell is not None
    assert cell.published["mAP"] == pytest.approx(0.7535 + 0.02)
    assert cell.published_change["mAP"] == 2.0
    values = collect(load_study("table3"), tmp_path, {})
    cell = values.at({"weights": "alwa_1", "box loss": "l1"})
    assert cell is not None
    assert cell.published_change["mAP"] == pytest.approx(1.42)


@pytest.mark.parametrize("preset", [None, "small"])
@pytest.mark.parametrize("name", ALL)
def test_every_cell_of_every_study_has_a_valid_config_of_its_own(
    name: str, preset: str | None
) -> None:
    study = load_study(name, preset)
    names = set()
    for labels in study.cells():
        run = study.run(labels, study.seeds[0], {})
        names.add(run.name)
        assert run.config.train.optimizer == "sgd" or labels["optimizer"] == "AdamW"
        assert study.baseline(labels) in list(study.cells())
    assert len(names) == len(list(study.cells()))


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_scale_has_a_total_batch_of_eight_images(name: str) -> None:
    study = load_study(name)
    run = study.run(next(iter(study.cells())), 0, {})
    assert run.total_batch == 8
    assert run.config.train.epochs == 12
    assert run.config.loss.weighting.interval == (20 if "C" in run.overrides else 100)


def test_the_small_study_holds_the_core_grid() -> None:
    core = load_study("table2", "small")
    assert [axis.name for axis in core.axes] == ["box loss", "weights"]
    assert len(list(core.cells())) == 15
    assert len(core.seeds) == 5
    grid = load_study("table1", "small")
    assert len(list(grid.cells())) >= 9
    assert len(grid.seeds) == 3


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


def test_labels_with_commas_can_be_chosen_together(tiny: Study) -> None:
    values = {"a": 1, "a, b": 2, "b": 3, "c": 4}
    axis = tiny.axes[0].model_copy(update={"values": values, "name": "x", "key": "train.epochs"})
    study = tiny.model_copy(update={"axes": (axis,)})

    def chosen(*words: str) -> list[str]:
        return [*narrowed(study, words).axes[0].values]

    assert chosen("x=a, b,c") == ["a, b", "c"]
    assert chosen("x=a,b") == ["a", "b"]
    assert chosen("x=c", "x=a") == ["a", "c"]
    with pytest.raises(InputError, match="no ' c'; choose a, a, b, b, c"):
        chosen("x=a, c")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("alwa_2: {l1: 0.7575}", "alwa2: {l1: 0.7575}", "'alwa2' is no label of an axis"),
        ("alwa_2: {l1: 0.7575}", "alwa_2: {l1: [0.7, 0.8]}", "has 2 numbers for 1 metrics"),
        ("alwa_2: {l1: 0.7575}", "alwa_2: {l1: abc}", "paper.*'abc'\\] is no number"),
        ("columns: box loss", "columns: box loss\npresets: [small]", "presets: .* is no mapping"),
        ("columns: box loss", "presets: {small: {paper: null}}", "presets.small: paper: Input"),
        ("columns: box loss", "presets: {small: {narrow: [weights]}}", "presets.small: narrow: I"),
        ("columns: box loss", "presets: {small: {without: weights}}", "presets.small: without: I"),
    ],
)
def test_a_wrong_preset_or_paper_is_refused_with_its_key(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(TINY.replace(before, after))
    with pytest.raises(InputError, match=message):
        load_study(str(path), "small" if "presets" in after else None)


def test_where_patience_ends_a_run_its_evaluations_decide_about_the_result(tiny: Study) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    one, other = (
        tiny.run(labels, 0, {"train.patience": 2, "evaluate.every": every}) for every in (1, 2)
    )
    assert not one.computes_like(other)
    assert not one.computes_like(tiny.run(labels, 0, {}))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("against: {weights: fixed}", "against: {weights: none}", "no such label"),
        ("columns: box loss", "columns: boxes", "is no axis"),
        ("key: loss.weighting", "keys: loss.weighting", "axes.0.keys"),
        ("seeds: [0, 1, 2]", "seeds: []", "seeds"),
    ],
)
def test_a_wrong_study_is_refused_with_its_key(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(TINY.replace(before, after))
    with pytest.raises(InputError, match=message):
        load_study(str(path))


def test_an_unknown_study_preset_or_label_names_the_choices(tiny: Study) -> None:
    with pytest.raises(InputError, match=r"choose .*table1"):
        load_study("table9")
    with pytest.raises(InputError, match="it has: small"):
        load_study("table1", "huge")
    with pytest.raises(InputError, match="choose fixed, alwa_2"):
        narrowed(tiny, ["weights=alwa"])


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("{narrow: {weights: [fixed, alwa2]}}", "alwa2: no such label; choose fixed, alwa_2"),
        ("{narrow: {wieghts: [fixed]}}", "wieghts: no such axis .* choose weights, box loss"),
        ("{without: [nonsense]}", "nonsense: no such axis"),
        ("", "presets.small: keys of a study are needed"),
        ("{axes: [{key: train.lr, values: [0.1]}]}", "axes.0.name"),
        ("{axes: [{name: a, values: {x: {}}}, {name: a, values: {y: {}}}]}", "two have one name"),
    ],
)
def test_a_wrong_preset_is_refused(preset: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{TINY}presets:\n  small: {preset}\n")
    with pytest.raises(InputError, match=message):
        load_study(str(path), "small")


def test_a_label_with_a_comma_can_be_chosen() -> None:
    study = load_study("weights", "small")
    left = narrowed(study, ["weights=ALWA_2, C 20"])
    assert [labels["weights"] for labels in left.cells()] == ["ALWA_2, C 20"]


def test_only_leaves_labels_seeds_and_the_figures_cells(tiny: Study) -> None:
    figure = Figure(kind="windows", cells=({"weights": "fixed"}, {"weights": "alwa_2"}))
    study = tiny.model_copy(update={"figures": {"6": figure}})
    left = narrowed(study, ["box loss=ciou", "seed=0,2", "weights=alwa_2"])
    assert list(left.cells()) == [{"weights": "alwa_2", "box loss": "ciou"}]
    assert left.seeds == (0, 2)
    assert left.figures["6"].cells == ({"weights": "alwa_2"},)
    assert narrowed(study, []) == study


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
    assert text == "1 of 3 runs done, 1 under way (75%), 0:01:15 left"
    just_scored = {jobs[0].folder: 60.0, jobs[1].folder: 10.0}
    assert describe(jobs, just_scored, places=1) == text, "a scored run is not under way"
    text = describe(jobs, {jobs[1].folder: 10.0}, places=1, failed={jobs[2].folder})
    assert text == "1 of 3 runs done, 1 under way (75%), 0:00:15 left"


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
    assert text == "1 of 4 runs done, 1 under way (0%), 0:05:00 left", "too early to tell"
    metrics.write_text("".join(json.dumps(x) + "\n" for x in lines))
    text = describe(jobs, under_way, places=1)
    assert text == "1 of 4 runs done, 1 under way (100%), 0:13:20 left"
    write_record(short[1].folder, {"trained": True, "machine": "a slower one", "seconds": 240.0})
    scores_file(short[1].folder, "val").write_text("{}")
    under_way = {short[2].folder: 1.0}
    write_record(short[2].folder, {"machine": "a slower one"})
    text = describe(jobs, under_way, places=2)
    assert text == "2 of 4 runs done, 1 under way (0%), 0:08:00 left"


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
    with pytest.raises(InputError, match="two processes of a run would be on one GPU"):
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
        assert "the study decides it" in capsys.readouterr().err
    # whole blocks, and parts of what a label sets; also of labels that --only leaves out
    varied = ("loss.weighting.type=gls", "loss={weighting: {type: gls}}", "loss.box.type.x=1")
    for word in varied:
        assert main(["list", "table2", "--only", "box loss=giou", "weights=fixed", word]) == 2
        assert "the study varies it" in capsys.readouterr().err
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
        (["--seeds", "a,b"], "'a,b' is no list of whole numbers; write them as 0,1,2"),
        (["--gpus", "0;1"], "'0;1' is no list of whole numbers"),
        (["--gpus=-1"], "'-1' is no list of whole numbers"),
        (["--gpus", ","], "',' is no list of whole numbers"),
        (["--jobs", "two"], "'two' is no whole number of at least 1"),
        (["--processes", "0"], "'0' is no whole number of at least 1"),
    ],
)
def test_numbers_that_are_none_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["run", "table1", *words])
    assert f"argument {words[0].partition('=')[0]}: {message}" in capsys.readouterr().err
