"""Laws of the studies: what their files say, and what their tables say of runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
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
from scripts.studies.insertion import insert
from scripts.studies.job import Job
from scripts.studies.machine import Place, check_gpus, share_out
from scripts.studies.progress import describe, share_done
from scripts.studies.results import Results, collect
from scripts.studies.run import (
    check_config,
    is_locked,
    locked,
    scores_file,
    stage,
    write_record,
)
from scripts.studies.running import plan
from scripts.studies.statistics import (
    compare,
    paired_t_test,
    rank_correlation,
    sign_flip_test,
    student_t_mass,
)
from scripts.studies.tables import comma_separated, latex, markdown
from scripts.study import main

ROOT = Path(__file__).parents[2]
PAPER = Path(__file__).parent / "fixtures/paper.json"  # tables 1 to 8, each number as printed
TABLES = [f"table{number}" for number in range(1, 9)]
ALL = sorted(path.stem for path in STUDIES.glob("*.yaml"))


@pytest.fixture
def tiny(tmp_path: Path) -> Study:
    return tiny_study(tmp_path)


# ------------------------------------------------------------------------------ the paper's numbers


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


# ------------------------------------------------------------------------------ what the files say


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


# ------------------------------------------------------------------------------ tests over seeds


def test_the_t_distribution_matches_its_published_quantiles() -> None:
    # two-sided 5% and 1% points of Student's t, any statistics book
    table = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604)}
    for freedom, points in {**table, 7: (2.365, 3.499), 10: (2.228, 3.169)}.items():
        masses = [student_t_mass(point, freedom) for point in points]
        assert masses == pytest.approx([0.95, 0.99], abs=2e-4)


def test_the_t_test_agrees_with_scipy_where_it_is_installed() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for count in range(2, 9):
        first, second = generator.normal(size=(2, count))
        ours = paired_t_test((first - second).tolist())
        assert ours == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-9)


def test_no_p_is_below_0() -> None:
    differences = [1.001, 0.999] * 4 + [1.001]  # the mass of their t rounds to more than 1
    assert student_t_mass(3000, 8) > 1 - 1e-15
    assert 0 <= paired_t_test(differences) < 1e-15


def test_the_rank_correlation_sees_order_alone_and_shares_ranks_of_ties() -> None:
    assert rank_correlation([1, 2, 3], [0.1, 0.2, 100]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9**0.5)


def test_five_seeds_that_agree_cannot_go_below_one_sixteenth() -> None:
    assert sign_flip_test([1.0, 2.0, 0.5, 3.0, 0.1]) == pytest.approx(2 / 32)
    assert sign_flip_test([-1.0, -2.0, -0.5]) == pytest.approx(2 / 8)
    assert sign_flip_test([1.0, -1.0]) == 1.0
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_the_sign_flip_test_is_uniform_when_nothing_differs() -> None:
    draws = np.random.default_rng(1).normal(size=(2000, 5))
    p = np.array([sign_flip_test(row.tolist()) for row in draws])
    for level in (1 / 16, 4 / 16, 8 / 16):
        assert np.mean(p <= level + 1e-9) == pytest.approx(level, abs=0.03)


def test_cells_are_paired_by_seed_not_by_position() -> None:
    paired = compare({0: 1.0, 2: 5.0, 9: 7.0}, {2: 4.0, 0: 0.5, 1: 9.0})
    assert paired is not None
    assert paired.difference.count == 2
    assert paired.difference.mean == pytest.approx(0.75)
    assert compare({0: 1.0}, {1: 1.0}) is None
    single = compare({0: 1.0}, {0: 0.5})
    assert single is not None
    assert single.t_test is None


# ------------------------------------------------------------------------------ tables


def test_a_table_never_shows_a_number_that_was_not_measured(tiny: Study, tmp_path: Path) -> None:
    results = collect(tiny, tmp_path, {})
    text = markdown(results)
    assert text.count("not run") == 4
    assert "| alwa_2 | 0.7575 (+0.75) | not run | - | not run |" in text
    assert "paired" not in text
    rows = list(csv.DictReader(io.StringIO(comma_separated(results))))
    assert [row["mean"] for row in rows] == [""] * 4
    assert [row["seeds"] for row in rows] == ["0"] * 4


@pytest.fixture
def measured(tiny: Study, tmp_path: Path) -> Results:
    for seed, (fixed, alwa) in enumerate([(0.80, 0.81), (0.82, 0.84), (0.78, 0.78)]):
        finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, seed, fixed)
        if seed < 2:
            finish(tiny, tmp_path, {"weights": "alwa_2", "box loss": "l1"}, seed, alwa)
    return collect(tiny, tmp_path, {})


def test_a_table_shows_mean_deviation_and_the_change_over_common_seeds(measured: Results) -> None:
    text = markdown(measured)
    assert "| fixed | 0.7500 | 0.8000 ± 0.0200 | 0.7600 | not run |" in text
    assert "0.8250 ± 0.0212 (+1.50), 2 of 3 seeds" in text
    assert "| alwa_2 | l1 | mAP | +1.50 ± 0.71 | 2 | 0.205 | 0.500 |" in text
    assert "| fixed | l1 | 3 | 0:01:01 |  | 400 | 100 | 4 | 2 cores |" in text


def test_all_three_formats_hold_the_same_numbers(measured: Results) -> None:
    row = list(csv.DictReader(io.StringIO(comma_separated(measured))))[2]
    assert (row["weights"], row["box loss"]) == ("alwa_2", "l1")
    assert float(row["mean"]) == pytest.approx(0.825)
    assert float(row["change_points"]) == pytest.approx(1.5)
    assert float(row["p_sign_flip"]) == 0.5
    text = latex(measured)
    assert r"alwa\_2 & 0.7575 (+0.75) & 0.8250 $\pm$ 0.0212 (+1.50), 2 of 3 seeds" in text
    assert text.count(r"\\") == 3 + 2
    assert r"alwa\_2 & l1 & mAP & +1.50 $\pm$ 0.71 & 2 & 0.205 & 0.500 \\" in text


def test_a_change_over_fewer_seeds_than_its_mean_says_over_how_many(
    tiny: Study, tmp_path: Path
) -> None:
    """Of 0.70 beside 0.70 the change is +10 where the baseline lacks the seeds that fell."""
    finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, 0, 0.70)
    for seed, score in enumerate((0.80, 0.70, 0.60)):
        finish(tiny, tmp_path, {"weights": "alwa_2", "box loss": "l1"}, seed, score)
    results = collect(tiny, tmp_path, {})
    assert "| 0.7000 ± 0.1000 (+10.00 over 1 seed) |" in markdown(results)
    assert r"& 0.7000 $\pm$ 0.1000 (+10.00 over 1 seed) &" in latex(results)
    row = list(csv.DictReader(io.StringIO(comma_separated(results))))[2]
    assert (row["weights"], row["seeds"], row["change_seeds"]) == ("alwa_2", "3", "1")
    assert float(row["change_points"]) == pytest.approx(10)


def test_what_runs_took_is_told_for_each_machine(tiny: Study, tmp_path: Path) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    for seed in tiny.seeds:
        finish(tiny, tmp_path, labels, seed, 0.8)
    folder = tiny.run(labels, 2, {}).folder(tmp_path)
    write_record(folder, {"trained": True, "seconds": 5.0, "machine": "1 x a GPU"})
    text = markdown(collect(tiny, tmp_path, {}))
    assert "| fixed | l1 | 1 | 0:00:05 |  | 400 | 100 | 4 | 1 x a GPU |" in text
    assert "| fixed | l1 | 2 | 0:01:00 |  | 400 | 100 | 4 | 2 cores |" in text


def test_a_number_stands_in_the_column_of_its_own_label(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "same.yaml").write_text("""
title: Labels of two axes may be the same
base: base.yaml
axes:
  - {name: lr, key: train.lr, values: [0.1, 0.9]}
  - {name: momentum, key: train.momentum, values: [0.1, 0.9]}
columns: momentum
against: {lr: "0.1"}
score: {metrics: {mAP: voc.area.mAP}}
""")
    study = load_study(str(tmp_path / "same.yaml"))
    for number, labels in enumerate(study.cells(), start=1):
        finish(study, tmp_path, dict(labels), 0, number / 10)
    text = markdown(collect(study, tmp_path, {}))
    assert "| 0.1 | 0.1000 | 0.2000 |" in text
    assert "| 0.9 | 0.3000 (+20.00) | 0.4000 (+20.00) |" in text


def test_latex_has_minus_signs_and_no_character_that_it_would_misread(
    tiny: Study, tmp_path: Path
) -> None:
    finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, 0, 0.8)
    finish(tiny, tmp_path, {"weights": "alwa_2", "box loss": "l1"}, 0, 0.79)
    results = collect(tiny, tmp_path, {})
    assert r"0.7900 ($-$1.00), 1 of 3 seeds & -- & not run" in latex(results)
    (tmp_path / "tiny.yaml").write_text(TINY.replace("alwa_2", "R&D#1-2<3"))
    assert r"R\&D\#1-2$<$3 & " in latex(
        collect(load_study(str(tmp_path / "tiny.yaml")), tmp_path, {})
    )


def test_a_small_p_is_not_shown_as_none(tiny: Study, tmp_path: Path) -> None:
    for seed in tiny.seeds:
        finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, seed, 0.8 + seed / 1e6)
        finish(tiny, tmp_path, {"weights": "alwa_2", "box loss": "l1"}, seed, 0.9)
    assert "| +10.00 ± 0.00 | 3 | < 0.001 | 0.250 |" in markdown(collect(tiny, tmp_path, {}))


def test_runs_of_another_config_and_failed_runs_are_told_and_not_counted(
    tiny: Study, tmp_path: Path
) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    stale = finish(tiny, tmp_path, labels, 0, 0.8)
    path = stale / "config.yaml"
    path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
    failed = tiny.run(labels, 1, {}).folder(tmp_path)
    write_record(failed, {"error": "train.py ended with 2"})
    text = markdown(collect(tiny, tmp_path, {}))
    assert "0.8" not in text
    assert "| fixed | 0.7500 | failed |" in text
    assert "train.epochs 3" in text
    assert "seed 1: train.py ended with 2" in text


def test_a_table_goes_between_its_marks_and_leaves_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- one -->\nold\n<!-- end of one -->\nbelow\n")
    insert(page, "one", "new")
    insert(page, "one", "newer")
    assert page.read_text() == "above\n<!-- one -->\nnewer\n<!-- end of one -->\nbelow\n"
    with pytest.raises(InputError, match="two"):
        insert(page, "two", "new")


# -------------------------------------------------------------------------- runs and their folders


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
