"""Laws of what the tables of a study say of its runs."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from tiny_studies import TINY, finish, scores_file, tiny_study

from data.errors import InputError
from scripts.studies.definition import (
    Study,
    load_study,
)
from scripts.studies.insertion import insert
from scripts.studies.results import Results, collect
from scripts.studies.run import (
    write_record,
)
from scripts.studies.tables import comma_separated, latex, markdown
from scripts.study import main


@pytest.fixture
def tiny(tmp_path: Path) -> Study:
    return tiny_study(tmp_path)


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


def test_a_change_of_nothing_has_no_minus(tmp_path: Path) -> None:
    tiny_study(tmp_path)
    text = TINY.replace("{cells", "{printed: changes, cells").replace("0.7575", "-0.0")
    (tmp_path / "tiny.yaml").write_text(text)
    results = collect(load_study(str(tmp_path / "tiny.yaml")), tmp_path, {})
    assert "| alwa_2 | 0.7500 (+0.00) | not run" in markdown(results)


def test_runs_on_several_numbers_of_processes_are_told(tiny: Study, tmp_path: Path) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    for seed, processes in enumerate((1, 4)):
        folder = finish(tiny, tmp_path, labels, seed, 0.5)
        write_record(folder, {"trained": True, "seconds": 1.0, "processes": processes})
    assert "* trained by 1 and 4 processes: batch norm and " in markdown(
        collect(tiny, tmp_path, {})
    )


def test_a_part_of_a_table_takes_the_place_of_no_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_study(tmp_path)
    words = ["table", str(tmp_path / "tiny.yaml"), "--runs", str(tmp_path), "--no-ledger"]
    assert main([*words, "--only", "weights=fixed"]) == 0
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "tiny-part.csv",
        "tiny-part.md",
        "tiny-part.tex",
    ]
    assert main([*words, "--seeds", "0", "--into", str(tmp_path / "page.md")]) == 2
    assert "--into: a partial table" in capsys.readouterr().err
    assert main(["plot", *words[1:]]) == 0
    assert "tiny has no figures" in capsys.readouterr().err


def test_latex_says_what_it_shows_and_begins_no_row_with_what_a_command_takes(
    tmp_path: Path,
) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 2}\ndata: {batch_size: 4}\n")
    (tmp_path / "odd.yaml").write_text(
        "title: 100% odd\nbase: base.yaml\nnote: of another detector\n"
        "axes: [{name: λ, key: loss.weighting.initial, values: [[0.5, 0.5], [1.0, 1.0]]}]\n"
        "against: {λ: '[1.0, 1.0]'}\nscore: {metrics: {mAP: voc.area.mAP}}\n"
    )
    text = latex(collect(load_study(str(tmp_path / "odd.yaml")), tmp_path, {}))
    assert text.startswith("% 100% odd\n% of another detector\n\\begin{tabular}")
    assert "\n{}[0.5, 0.5] & not run" in text
    assert "$\\lambda$ & mAP" in text


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


def test_labels_are_read_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {epochs: 2}\n")
    (tmp_path / "odd.yaml").write_text(TINY.replace("alwa_2", r"'a|b $5 {c}~d^e\f'"))
    results = collect(load_study(str(tmp_path / "odd.yaml")), tmp_path, {})
    assert r"| a\|b $5 {c}~d^e\f | 0.7575 (+0.75) |" in markdown(results)
    escaped = r"a|b \$5 \{c\}\textasciitilde{}d\textasciicircum{}e\textbackslash{}f & "
    assert escaped in latex(results)


@pytest.mark.parametrize(
    ("text", "shown", "trouble"),
    [
        ('{"voc": {"area": {"mAP": null}}}', "no score", ""),
        ('{"voc": {"area": {"mAP": NaN}}}', "no result", "voc.area.mAP is nan, not a score"),
        ('{"voc": {"area": {"mAP": "0.9"}}}', "no result", "voc.area.mAP is '0.9', not a score"),
        ('{"voc": {"area"', "no result", "scores-val.json"),
    ],
)
def test_what_is_no_score_is_not_counted_as_one(
    text: str, shown: str, trouble: str, tiny: Study, tmp_path: Path
) -> None:
    labels = {"weights": "fixed", "box loss": "l1"}
    scores_file(finish(tiny, tmp_path, labels, 0, 0.8), "val").write_text(text)
    table = markdown(collect(tiny, tmp_path, {}))
    assert f"| fixed | 0.7500 | {shown} |" in table
    assert trouble in table


def test_a_metric_that_leads_nowhere_is_an_error(tiny: Study, tmp_path: Path) -> None:
    finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, 0, 0.8)
    for path, reason in {"voc.mAP": "'mAP' is not among area", "voc": "holds area"}.items():
        score = tiny.score.model_copy(update={"metrics": {"mAP": path}})
        with pytest.raises(InputError, match=rf"score\.metrics: '{path}' .*{reason}"):
            collect(tiny.model_copy(update={"score": score}), tmp_path, {})


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
    write_record(failed, {"error": "train.py exited with 2"})
    text = markdown(collect(tiny, tmp_path, {}))
    assert "0.8" not in text
    assert "| fixed | 0.7500 | no result |" in text
    assert "train.epochs 3" in text
    assert "seed 1: train.py exited with 2" in text


def test_a_table_goes_between_its_marks_and_leaves_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- one -->\nold\n<!-- end of one -->\nbelow\n")
    insert(page, "one", "new")
    insert(page, "one", "newer")
    assert page.read_text() == "above\n<!-- one -->\nnewer\n<!-- end of one -->\nbelow\n"
    with pytest.raises(InputError, match="two"):
        insert(page, "two", "new")
    page.write_bytes("\xe4".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        insert(page, "one", "new")


def test_results_of_which_nothing_says_whose_they_are_are_named_and_not_counted(
    tiny: Study, tmp_path: Path
) -> None:
    folders = [
        finish(tiny, tmp_path, {"weights": "fixed", "box loss": "l1"}, seed, 0.8)
        for seed in tiny.seeds
    ]
    (folders[0] / "study.json").unlink()
    write_record(folders[1], {"trained": True, "seconds": "abc"})
    text = markdown(collect(tiny, tmp_path, {}))
    assert "0.8000, 1 of 3 seeds" in text
    assert "seed 0: " in text
    assert "is not counted: no study.json beside it identifies its run" in text
    assert "seconds is 'abc', not a number" in text
