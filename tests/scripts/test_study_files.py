"""Laws of what the files of studies say: the paper's numbers, grids, presets and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_studies import TINY, tiny_study

from data.errors import InputError
from scripts.studies.definition import (
    STUDIES,
    Figure,
    Study,
    flatten_cells,
    load_study,
    narrowed,
)
from scripts.studies.results import collect

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


def test_labels_with_commas_can_be_chosen_together(tiny: Study) -> None:
    values = {"a": 1, "a, b": 2, "b": 3, "c": 4}
    axis = tiny.axes[0].model_copy(update={"values": values, "name": "x", "key": "train.epochs"})
    study = tiny.model_copy(update={"axes": (axis,)})

    def chosen(*words: str) -> list[str]:
        return [*narrowed(study, words).axes[0].values]

    assert chosen("x=a, b,c") == ["a, b", "c"]
    assert chosen("x=a,b") == ["a", "b"]
    assert chosen("x=c", "x=a") == ["a", "c"]
    with pytest.raises(InputError, match="unknown label ' c'; choose a, a, b, b, c"):
        chosen("x=a, c")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("against: {weights: fixed}", "against: {weights: none}", "unknown label"),
        ("columns: box loss", "columns: boxes", "is not an axis"),
        ("key: loss.weighting", "keys: loss.weighting", "axes.0.keys"),
        ("seeds: [0, 1, 2]", "seeds: []", "seeds"),
        ("alwa_2: {l1: 0.7575}", "alwa2: {l1: 0.7575}", "'alwa2' is neither a label of an axis"),
        ("alwa_2: {l1: 0.7575}", "alwa_2: {l1: [0.7, 0.8]}", "has 2 numbers for 1 metrics"),
        ("alwa_2: {l1: 0.7575}", "alwa_2: {l1: abc}", r"paper.*'abc'\] is not a number"),
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
    with pytest.raises(InputError, match="choose from: small"):
        load_study("table1", "huge")
    with pytest.raises(InputError, match="choose fixed, alwa_2"):
        narrowed(tiny, ["weights=alwa"])


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("{narrow: {weights: [fixed, alwa2]}}", "alwa2: unknown label; choose fixed, alwa_2"),
        ("{narrow: {wieghts: [fixed]}}", "wieghts: unknown axis .* choose weights, box loss"),
        ("{without: [nonsense]}", "nonsense: unknown axis"),
        ("{paper: null}", "presets.small: paper: Input"),
        ("{narrow: [weights]}", "presets.small: narrow: Input"),
        ("{without: weights}", "presets.small: without: Input"),
        ("", "presets.small: must be a mapping of study keys"),
        ("{axes: [{key: train.lr, values: [0.1]}]}", "axes.0.name"),
        (
            "{axes: [{name: a, values: {x: {}}}, {name: a, values: {y: {}}}]}",
            "two have the same name",
        ),
    ],
)
def test_a_wrong_preset_is_refused(preset: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{TINY}presets:\n  small: {preset}\n")
    with pytest.raises(InputError, match=message):
        load_study(str(path), "small")


def test_presets_are_named(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(f"{TINY}presets: [small]\n")
    with pytest.raises(InputError, match=r"presets: .* is not a mapping of presets by name"):
        load_study(str(path))


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
