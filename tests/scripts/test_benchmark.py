"""The benchmarks: their yardsticks are right, and nothing is timed that is not the same."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from engine.evaluation.voc_map import voc_scores
from scripts import benchmark
from scripts.benchmarks.drawn_voc import draw_devkit
from scripts.benchmarks.inference import compare
from scripts.benchmarks.loading import one_core
from scripts.benchmarks.random_split import random_annotations, random_detections
from scripts.benchmarks.report import Report, Row
from scripts.benchmarks.scaling import Point, Scaling
from scripts.benchmarks.step import check_losses
from scripts.benchmarks.timing import alternate, ratio, worst_of
from scripts.benchmarks.training import build_trainee, build_work
from scripts.benchmarks.twins import build_ours
from scripts.benchmarks.voc_eval import by_image, voc_eval

CPU = torch.device("cpu")
TINY = ["--backbone", "resnet18", "--size", "64", "64", "--classes", "3"]


def run(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON that a benchmark prints."""
    assert benchmark.main([*arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_sides_are_timed_in_turns() -> None:
    calls: list[str] = []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = alternate(sides, repeats=2, device=CPU, warm_up=1)
    assert "".join(calls) == "ababab"
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_the_ratio_is_taken_round_by_round() -> None:
    # the second round met a machine ten times slower: that changes no ratio
    assert ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0


def test_a_table_has_a_row_for_each_comparison_and_a_column_for_each_note() -> None:
    report = Report("Title", {"processor": "any"}, ["same losses"])
    report.rows.append(Row("step", [0.5, 0.5], [1.0, 1.0], images=2, notes={"memory": "1 / 2"}))
    lines = report.as_markdown().splitlines()
    assert lines[-3] == "|  | ours | theirs | ratio | memory |"
    assert lines[-1].startswith("| step | 500 ms (500 ms to 500 ms), 4 images/s | 1 s")
    assert lines[-1].endswith("| 2.00 | 1 / 2 |")
    assert json.loads(report.as_json())["rows"][0]["ratio"] == 2.0


@pytest.mark.parametrize("objects", [0, 300])
def test_the_plain_voc_algorithm_gives_our_scores(objects: int) -> None:
    annotations = random_annotations(images=40, classes=4, objects=objects)
    detections = random_detections(annotations, count=1000) if objects else None
    if detections is None:
        some = random_annotations(images=40, classes=4, objects=10)
        detections = random_detections(some, count=20)
    scores = voc_eval(detections, by_image(annotations), annotations.classes)
    expected = voc_scores(detections, annotations)["area"]["AP"]
    present = {name: value for name, value in expected.items() if value is not None}
    assert scores == pytest.approx(present, abs=1e-12)
    assert bool(present) == bool(objects)


@pytest.mark.parametrize("detector", ["retinanet", "faster_rcnn"])
def test_a_step_starts_from_the_same_losses_on_both_sides(
    detector: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["step", "--detector", detector, *TINY, "--batch", "1", "--boxes", "2"]
    result = run([*command, "--repeats", "1"], capsys)
    assert result["checks"][0].startswith("same losses")
    assert result["rows"][0]["ratio"] > 0


def test_different_losses_are_not_timed() -> None:
    options = argparse.Namespace(
        detector="retinanet", backbone="resnet18", classes=3, size=(64, 64), device="cpu",
        boxes=2, batch=1, box_sides=(0.2, 0.5), amp="none", peer_amp="none",
    )  # fmt: skip
    work = build_work(options)
    ours, theirs = (build_trainee(side, options, work) for side in ("ours", "theirs"))
    parameter = next(theirs.model.head.parameters())
    for spoilt in (0.1, math.nan):
        with torch.no_grad():
            parameter.add_(spoilt)
        with pytest.raises(SystemExit, match="losses differ, nothing was timed"):
            check_losses(ours, theirs)
    theirs.run = lambda: {"classification": parameter.sum()}
    with pytest.raises(SystemExit, match="losses differ, nothing was timed"):
        check_losses(ours, theirs)


def test_a_difference_that_is_no_number_is_the_worst() -> None:
    assert worst_of([0.5, 2.0, 1.0]) == 2.0
    for position in range(3):
        differences = [0.5, 2.0, 1.0]
        differences[position] = math.nan
        assert math.isnan(worst_of(differences))


def test_on_one_core_no_thread_of_the_process_is_left_on_another() -> None:
    cv2.resize(np.zeros((600, 800, 3), np.uint8), (300, 300))  # its threads are there from now on
    cores = os.sched_getaffinity(0)
    with one_core():
        for thread in os.listdir("/proc/self/task"):
            assert os.sched_getaffinity(int(thread)) == {max(cores)}
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert os.sched_getaffinity(0) == cores


@pytest.mark.parametrize(
    "arguments",
    [
        ["step", "--batch", "0"],
        ["step", "--threads", "-1"],
        ["step", "--box-sides", "0", "0.5"],
        ["step", "--box-sides", "0.001", "0.5"],
        ["weighting", "--peer-amp", "bf16"],
        ["losses", "--batches", "x"],
        ["loading", "--root", "/nonexistent"],
        ["scaling", "--ranks", "0"],
    ],
)
def test_arguments_that_cannot_be_are_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = benchmark.main(arguments)
    except SystemExit as ended:  # argparse's
        status = ended.code
    assert status == 2
    assert arguments[1] in capsys.readouterr().err


def test_difficult_objects_are_loaded_by_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = sorted((draw_devkit(tmp_path, 3) / "Annotations").iterdir())[0]
    first.write_text(first.read_text().replace("<difficult>0", "<difficult>1", 1))
    words = ["--root", str(tmp_path), "--workers", "0", "--repeats", "1", "--batch", "2"]
    (flip, _) = run(["loading", *words], capsys)["rows"]
    assert flip["images"] == 4  # of three: our loader fills its last batch, and theirs is scaled


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"<name>.*?</name>", "<name>WBC</name>", "knows only VOC's 20 classes, not WBC"),
        (r"<object>.*</object>", "", "has no object, which torchvision's pipeline needs"),
    ],
)
def test_what_torchvision_cannot_load_is_named(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (draw_devkit(tmp_path, 2) / "Annotations").iterdir():
        file.write_text(re.sub(old, new, file.read_text(), flags=re.DOTALL))
    words = ["--root", str(tmp_path), "--workers", "0", "--repeats", "1"]
    assert benchmark.main(["loading", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_split_that_does_not_grow_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["loading", "--images", "2", "--workers", "0", "--repeats", "1", "--growth", "20", "4"]
    assert benchmark.main(words) == 2
    assert "--growth 20 4: the second number" in capsys.readouterr().err


def test_detections_are_compared_by_class_box_and_score() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])
    scores = torch.tensor([0.9, 0.5])
    ours = {"boxes": boxes, "scores": scores, "labels": torch.tensor([0, 1])}
    theirs = {**ours, "labels": torch.tensor([1, 2])}
    assert compare([ours], [theirs], first_label=1) == "2 of 2 detections are the same"
    for other in ({"boxes": boxes + 1}, {"scores": scores / 2}, {"labels": torch.tensor([1, 1])}):
        with pytest.raises(SystemExit, match="nothing was timed"):
            compare([ours], [{**theirs, **other}], first_label=1)


@pytest.mark.parametrize(
    "command",
    [
        ["voc", "--images", "30", "--objects", "60", "--detections", "200", "--repeats", "1"],
        ["coco", "--images", "30", "--classes", "5", "--objects", "60", "--detections", "200"],
        ["losses", "--size", "64", "64", "--classes", "3", "--boxes-list", "2", "--batches", "1"],
        ["loading", "--images", "4", "--workers", "0", "--repeats", "1"],
        ["weighting", *TINY, "--batch", "1", "--repeats", "1", "--step-repeats", "1"],
        ["inference", *TINY, "--batches", "2", "--repeats", "1", "--images", "0"],
    ],
    ids=lambda command: command[0],
)
def test_a_benchmark_runs_and_says_what_it_checked(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if command[0] == "coco":
        pytest.importorskip("hotcoco")
    result = run(command, capsys)
    assert result["checks"]
    assert all(row["ratio"] > 0 for row in result["rows"])
    assert result["rows"]


def test_a_step_of_two_ranks_exchanges_its_gradients_and_a_window_of_losses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["scaling", *TINY, "--batch", "1", "--boxes", "2", "--ranks", "2"]
    (point,) = run([*command, "--repeats", "1", "--rounds", "1"], capsys)["points"]
    detector = build_ours("retinanet", "resnet18", 3, CPU)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert trained < sum(p.numel() for p in detector.parameters())  # two stages rest
    assert point["trained"] == trained
    assert point["step_bytes"] == 4 * trained
    # one exchange of each iteration's two losses, summed in float64
    assert point["window_bytes"] == 8 * 2 * point["interval"]


def test_ranks_that_take_as_long_as_one_are_fully_efficient() -> None:
    points = [Point(1, [2.0, 4.0], 10, 0, 0, 0, 100), Point(4, [2.0, 5.0], 10, 40, 1, 1600, 100)]
    scaling = Scaling("Title", {"processor": "any"}, batch=2, points=points)
    assert scaling.efficiency(points[0]) == 1
    assert scaling.efficiency(points[1]) == pytest.approx((1 + 0.8) / 2)  # round by round
    assert scaling.images_per_second(points[1]) == pytest.approx(4 * 2 / 3.5)
    lines = scaling.as_markdown().splitlines()
    assert lines[-1].endswith("| 2.29 | 90% | 40 B in 1 | 1,600 B / 100 = 16 B |")
    assert json.loads(scaling.as_json())["points"][1]["step_bytes"] == 40
