"""Laws of the figures: what slides, what is drawn of a run, also of one under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

import matplotlib.pyplot as plt
from tiny_studies import finish, log_of, recorded_run, tiny_study
from torch.utils.tensorboard import SummaryWriter

from data.errors import InputError
from losses.box import BOX_LOSSES
from scripts.studies.definition import Figure
from scripts.studies.figures import ShownRun, draw_losses, draw_windows, write_figure
from scripts.studies.plotting import draw, shown_runs
from scripts.studies.shifting_box import BACKGROUND, FOREGROUND, draw_shift, slide
from scripts.studies.weight_and_score import part_numbers
from scripts.study import main

NAMES = {
    "head": ("classification", "bbox_regression"),
    "rpn": ("loss_objectness", "loss_rpn_box_reg"),
}


def test_the_sliding_box_has_the_iou_of_two_squares() -> None:
    data = slide()
    overlap = np.clip(1 - data.shifts, 0, None)
    assert data.iou == pytest.approx(overlap / (2 - overlap), abs=1e-6)


def test_box_losses_are_zero_on_the_object_and_never_fall_with_the_shift() -> None:
    data = slide()
    assert set(data.box) == set(BOX_LOSSES)
    for name, values in data.box.items():
        assert values[0] == pytest.approx(0, abs=1e-6), name
        assert (np.diff(values) >= -1e-5).all(), name
    # a pure shift changes no aspect ratio, and the deltas of a box of equal size are the shift
    assert data.box["ciou"] == pytest.approx(data.box["diou"], abs=1e-5)
    assert data.box["l1"] == pytest.approx(data.shifts, abs=1e-5)


def test_the_classification_loss_jumps_where_the_box_turns_negative() -> None:
    data = slide(score=0.7)
    loss = data.classification["cross-entropy"]
    assert loss[data.iou >= FOREGROUND] == pytest.approx(-np.log(0.7), abs=1e-5)
    assert loss[data.iou < BACKGROUND] == pytest.approx(-np.log(0.3), abs=1e-5)
    ignored = (data.iou < FOREGROUND) & (data.iou >= BACKGROUND)
    assert np.isnan(loss[ignored]).all()
    assert ignored.any()


def test_figures_of_curves_show_the_numbers_of_a_run_under_way(tmp_path: Path) -> None:
    runs = [ShownRun(name, recorded_run(tmp_path / name, pair)) for name, pair in NAMES.items()]
    windows = draw_windows(runs, "Figure 6")
    assert len(windows.axes) == 6
    first = windows.axes[0].get_lines()[0]
    assert list(first.get_xdata()) == [4 * line for line in range(1, 21)]
    assert list(first.get_ydata()) == pytest.approx([2.0 / line for line in range(1, 21)])
    losses = draw_losses(runs[1:], "Figure 1")
    heights = [bar.get_height() for bar in losses.axes[1].patches]
    first_five = np.mean([1.0 / line for line in range(1, 6)])
    assert heights == pytest.approx([2 * first_five, first_five])


def test_dollars_in_titles_begin_no_formula(tmp_path: Path) -> None:
    pair = next(iter(NAMES.values()))
    run = ShownRun("$x^{$ $y", recorded_run(tmp_path / "run", pair))
    _, drawn = write_figure(draw_losses([run], "$a^{$ $b"), tmp_path / "figure")
    assert "<!-- (a) $x^{$ $y: raw losses -->" in drawn.read_text()
    assert "<!-- $a^{$ $b -->" in drawn.read_text()


def test_a_figure_is_written_as_png_and_svg_and_twice_the_same(tmp_path: Path) -> None:
    files = write_figure(draw_shift("Figure 2"), tmp_path / "new/figure2")
    assert [file.suffix for file in files] == [".png", ".svg"]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    first = files[1].read_text()
    assert "<svg" in first
    assert "<dc:date>" not in first
    again = write_figure(draw_shift("Figure 2"), tmp_path / "again/figure2")
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]


def test_a_run_without_curves_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        draw_windows([ShownRun("empty", tmp_path / "empty")], "")


def test_scores_stand_over_the_weight_of_the_second_half(tmp_path: Path) -> None:
    study, points_of_seeds = tiny_study(tmp_path), [(0.2, 0.5), (0.4, 0.7)]
    for weights in ("fixed", "alwa_2"):
        labels = {"weights": weights, "box loss": "l1"}
        for seed, (weight, score) in enumerate(points_of_seeds):
            folder = finish(study, tmp_path / "runs", labels, seed, score)
            log = log_of(NAMES["head"], 20, weight if weights == "alwa_2" else 1.0)
            (folder / "metrics.jsonl").write_text(log)
    figure = Figure(kind="weights")
    runs = shown_runs(study, figure, tmp_path / "runs", {}, None)
    assert [run.title for run in runs] == ["fixed, l1"] * 2 + ["alwa_2, l1"] * 2
    axes: Any = draw(study, "scores", figure, runs, {}).axes[0]
    points = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert points["1  fixed, l1"] == [pytest.approx([1.0, 0.6])]
    assert points["2  alwa_2, l1"] == [pytest.approx([0.3, 0.6])]
    rays = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert [ray[1] for ray in rays[2:]] == [pytest.approx(point) for point in points_of_seeds]
    assert axes.get_title() == "4 runs, rank correlation 0.24"
    assert "2  alwa_2, l1" in axes.get_legend().texts[1].get_text()


def test_numbers_of_points_at_one_place_lie_apart() -> None:
    figure, axes = plt.subplots()
    for number in range(1, 6):
        axes.plot(0.5, 0.5, "o")
        axes.annotate(str(number), (0.5, 0.5), (4, 3), textcoords="offset points", fontsize=7)
    part_numbers(axes)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(box.count_overlaps(boxes[:row]) for row, box in enumerate(boxes))
    plt.close(figure)


def test_scores_over_weights_need_a_scored_run(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    with pytest.raises(InputError, match="no run of tiny is scored"):
        shown_runs(study, Figure(kind="weights"), tmp_path / "runs", {}, None)


def test_any_run_can_be_shown_and_a_study_without_runs_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded_run(tmp_path / "mine", NAMES["head"])
    output = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "figures")]
    output += ["--no-ledger"]
    shown = ["--figure", "6", "--show", f"mine={folder}"]
    assert main(["plot", "table2", *shown, *output]) == 0
    assert (tmp_path / "figures/figure6-table2.png").is_file()
    of_file = ["--figure", "6", "--show", f"mine={folder / 'metrics.jsonl'}"]
    assert main(["plot", "table2", *of_file, *output]) == 0
    capsys.readouterr()
    for figure in ("5", "scores"):  # their runs' checkpoints and scores are read too
        study = "table2" if figure == "5" else "weights"
        words = ["--figure", figure, *of_file[2:], *output]
        assert main(["plot", study, *(["--preset", "small"] * (figure == "scores")), *words]) == 1
        assert "must be TITLE=FOLDER with the folder of a run\n" in capsys.readouterr().err
    assert main(["plot", "table2", "--figure", "6", *output]) == 1
    assert "not run: resnet50, fixed, l1" in capsys.readouterr().err
    assert main(["plot", "table2", "--figure", "4", *output]) == 2


def test_curves_without_a_weight_are_named(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    labels = {"weights": "fixed", "box loss": "l1"}
    folder = finish(study, tmp_path / "runs", labels, 0, 0.5)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    with SummaryWriter(str(folder)) as events:  # as another program writes them
        for name in NAMES["head"]:
            events.add_scalar(f"loss/{name}", 0.5, 1)
    runs = shown_runs(study, Figure(kind="weights"), tmp_path / "runs", {}, None)
    with pytest.raises(InputError, match="has no curve loss_weight/classification"):
        draw(study, "scores", Figure(kind="weights"), runs, {})


def test_a_run_of_a_later_seed_says_so_in_its_title(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    finish(study, tmp_path / "runs", {"weights": "fixed", "box loss": "l1"}, 1, 0.5)
    figure = Figure(kind="windows", cells=[{"weights": "fixed"}])
    (shown,) = shown_runs(study, figure, tmp_path / "runs", {}, None)
    assert shown.title == "fixed, l1, seed 1"


def test_a_run_that_is_not_finished_says_so_in_its_title(tmp_path: Path) -> None:
    study = tiny_study(tmp_path)
    labels = {"weights": "fixed", "box loss": "l1"}
    folder = finish(study, tmp_path / "runs", labels, 0, 0.5)
    figure = Figure(kind="windows", cells=[{"weights": "fixed"}])
    assert [run.title for run in shown_runs(study, figure, tmp_path / "runs", {}, None)] == [
        "fixed, l1"
    ]
    (folder / "study.json").unlink()
    (cut_off,) = shown_runs(study, figure, tmp_path / "runs", {}, None)
    assert cut_off.title == "fixed, l1, not finished"
