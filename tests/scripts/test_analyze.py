"""What analyze.py says of detections: TIDE, confusion, calibration, the bootstrap, the page."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import CLASSES, random_case, with_objects, write_checkpoint, write_data

from data.annotations import Annotations
from engine.evaluation.coco_ap import coco_scores
from engine.evaluation.coco_engines import CocoInputs, Engine, compute_stats
from engine.evaluation.coco_results import write_coco_json
from engine.evaluation.detections import Detections, make_detections
from engine.evaluation.voc_map import match_detections, voc_scores
from scripts.analysis.bootstrap import compare, mean_ap, rankings
from scripts.analysis.confusion import confusion_matrix
from scripts.analysis.crowds import judge_beside_crowds
from scripts.analysis.precision import calibration, class_curves
from scripts.analysis.sizes import ap_by_size
from scripts.analysis.tide import TYPES, judge_errors, tide
from scripts.analysis.worst import count_faults
from scripts.analyze import main

FIXTURES = Path(__file__).parent / "fixtures"
BOX = [10.0, 10.0, 30.0, 30.0]


def errors_of(detections: Detections, annotations: Annotations) -> dict[str, dict[str, float]]:
    return tide(detections, annotations, judge_errors(detections, annotations))


def as_coco(annotations: Annotations) -> dict[str, Any]:
    objects = [
        {
            "id": row + 1,
            "image_id": int(image) + 1,
            "category_id": int(label) + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
            "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
        }
        for row, (image, label, (x1, y1, x2, y2)) in enumerate(
            zip(
                annotations.object_images(),
                annotations.labels,
                annotations.boxes.tolist(),
                strict=True,
            )
        )
    ]
    images = [
        {"id": row + 1, "file_name": str(row), "height": 100, "width": 100}
        for row in range(len(annotations))
    ]
    kinds = [{"id": row + 1, "name": name} for row, name in enumerate(annotations.classes)]
    return {"images": images, "annotations": objects, "categories": kinds}


def written(folder: Path, detections: Detections, annotations: Annotations) -> tuple[Path, Path]:
    truth, found = folder / "truth.json", folder / "found.json"
    truth.write_text(json.dumps(as_coco(annotations)))
    write_coco_json(found, detections, annotations)
    return truth, found


@pytest.mark.parametrize("seed", range(3))
def test_tide_has_the_recorded_numbers_of_its_authors_program(seed: int) -> None:
    """``fixtures/tidecv.json`` holds what tidecv 1.0.1 says of these cases, APs in percent."""
    recorded = json.loads((FIXTURES / "tidecv.json").read_text())[str(seed)]
    ours = errors_of(*random_case(seed))
    assert ours["count"] == recorded["count"]
    assert ours["AP"]["AP"] == pytest.approx(recorded["AP"] / 100, abs=1e-9)
    for kind, cost in recorded["cost"].items():
        assert ours["cost"][kind] == pytest.approx(cost / 100, abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_tide_has_the_numbers_of_its_authors_program(tmp_path: Path, seed: int) -> None:
    tidecv = pytest.importorskip("tidecv")
    detections, annotations = random_case(seed)
    truth, found = written(tmp_path, detections, annotations)
    theirs = tidecv.TIDE().evaluate(
        tidecv.datasets.COCO(str(truth)), tidecv.datasets.COCOResult(str(found)), mode="bbox"
    )
    ours = errors_of(detections, annotations)
    assert ours["AP"]["AP"] == pytest.approx(theirs.ap / 100, abs=1e-9)
    for kind, cost in theirs.fix_main_errors().items():
        assert ours["cost"][kind.short_name] == pytest.approx(cost / 100, abs=1e-9)
    assert {kind.short_name: count for kind, count in theirs.count_errors().items()} == ours[
        "count"
    ]


@pytest.mark.parametrize("seed", range(2))
def test_tide_is_close_to_hotcoco(tmp_path: Path, seed: int) -> None:
    """It lets detections choose among objects by COCO's rule, which differs in rare cases."""
    hotcoco = pytest.importorskip("hotcoco")
    detections, annotations = random_case(seed)
    truth, found = written(tmp_path, detections, annotations)
    data = hotcoco.COCO(str(truth))
    evaluation = hotcoco.COCOeval(data, data.load_res(str(found)), "bbox")
    evaluation.evaluate()
    theirs = evaluation.tide_errors()
    ours = errors_of(detections, annotations)
    for kind in TYPES:
        assert ours["cost"][kind] == pytest.approx(theirs["delta_ap"][kind], abs=0.02)
        assert abs(ours["count"][kind] - theirs["counts"][kind]) <= 2


def test_each_error_is_of_its_type() -> None:
    annotations = with_objects([BOX, [60, 60, 90, 90]], [0, 1], [2])
    cases = {
        "Loc": (0, [10, 10, 30, 18]),
        "Cls": (2, BOX),
        "Both": (2, [10, 10, 30, 18]),
        "Bkg": (0, [0, 90, 9, 99]),
    }
    for kind, (label, box) in cases.items():
        report = errors_of(make_detections([0], [label], [0.9], [box]), annotations)
        assert [name for name in TYPES[:5] if report["count"][name]] == [kind]
        assert report["count"]["Miss"] == (1 if kind in ("Loc", "Cls") else 2)
    double = make_detections([0, 0], [0, 0], [0.9, 0.8], [BOX, BOX])
    assert errors_of(double, annotations)["count"]["Dupe"] == 1


def test_right_detections_are_no_errors_and_crowds_punish_nobody() -> None:
    annotations = with_objects([BOX, [50, 50, 100, 100]], [0, 0], [2], crowd=[False, True])
    detections = make_detections([0, 0], [0, 0], [0.9, 0.8], [BOX, [60, 60, 70, 70]])
    report = errors_of(detections, annotations)
    assert report["AP"]["AP"] == 1
    assert set(report["count"].values()) == set(report["cost"].values()) == {0}
    nothing = errors_of(make_detections([], [], [], []), annotations)
    assert (nothing["AP"]["AP"], nothing["count"]["Miss"]) == (0, 1)


def test_a_detection_of_a_class_without_objects_costs_nothing() -> None:
    """COCO's AP has no such class in its mean; there is one error more, and no AP is lost."""
    annotations = with_objects([BOX, BOX], [0, 0], [1, 1])
    one = make_detections([0], [0], [0.9], [BOX])
    stray = make_detections([0, 1], [0, 1], [0.9, 0.05], [BOX, [60, 60, 80, 80]])
    without, report = errors_of(one, annotations), errors_of(stray, annotations)
    assert (report["AP"], report["cost"]) == (without["AP"], without["cost"])
    assert report["AP"]["AP"] == pytest.approx(coco_scores(stray, annotations)["AP50"])
    assert report["count"]["Bkg"] == without["count"]["Bkg"] + 1


def test_where_nothing_is_to_be_found_all_detections_are_background(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = with_objects([], [], [0, 0])
    found = make_detections([0, 1], [0, 1], [0.9, 0.8], [BOX, BOX])
    report = errors_of(found, empty)
    assert report["count"] == {**dict.fromkeys(TYPES, 0), "Bkg": 2}
    assert report["AP"]["AP"] == 0
    root = write_data(tmp_path)
    for file in (root / "Annotations").iterdir():
        file.write_text(re.sub("<object>.*</object>", "", file.read_text()))
    config, results, page = (tmp_path / name for name in ("c.yaml", "found.json", "page.html"))
    config.write_text(f"data: {{format: voc, root: {root}, classes: [cat, dog]}}\n")
    cat = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.9}
    results.write_text(json.dumps([cat]))
    command = ["--config", str(config), str(results), str(results), "--output", str(page)]
    assert main([*command, "--resamples", "5"]) == 0
    assert "0 objects" in capsys.readouterr().out
    assert page.is_file()


def test_detections_in_a_crowd_count_nowhere() -> None:
    """A small box in a large crowd of its class is no error; one of another class there is."""
    annotations = with_objects([BOX, [20, 20, 100, 100]], [0, 0], [2], crowd=[False, True])
    in_crowd, stray = [60, 60, 70, 70], [1, 60, 11, 70]
    found = make_detections([0, 0], [0, 0], [0.9, 0.8], [in_crowd, BOX])
    curve = class_curves(found, annotations, 0.5)["cat"]
    assert (curve["detections"], curve["precision"], curve["best_f1"]) == (1, [1], 1)
    bins = calibration(found, annotations, 0.5)["bins"]
    assert [each["count"] for each in bins] == [0] * 8 + [1, 0]
    ones = np.ones(1)
    assert mean_ap(rankings(found, annotations, (0.5, 0.75)), ones) == 1
    assert errors_of(found, annotations)["AP"]["AP"] == pytest.approx(1)
    others = make_detections([0] * 3, [1, 0, 0], [0.9, 0.8, 0.7], [in_crowd, stray, BOX])
    assert class_curves(others, annotations, 0.5)["cat"]["precision"] == [0.5]
    assert sum(each["count"] for each in calibration(others, annotations, 0.5)["bins"]) == 3


def test_an_object_in_a_crowd_can_be_found() -> None:
    """Even by a detection that overlaps the crowd more."""
    annotations = with_objects([[10, 10, 50, 100], [0, 0, 100, 100]], [0, 0], [2], [False, True])
    found = make_detections([0], [0], [0.9], [[10, 10, 85, 100]])
    assert class_curves(found, annotations, 0.5)["cat"]["recall"] == [1]
    assert mean_ap(rankings(found, annotations, (0.5,)), np.ones(1)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_without_crowds_the_rule_is_vocs(seed: int) -> None:
    detections, annotations = random_case(seed)
    for iou, ours in zip(
        (0.5, 0.8), judge_beside_crowds(detections, annotations, (0.5, 0.8)), strict=True
    ):
        for mine, theirs in zip(ours, match_detections(detections, annotations, iou), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_the_base_ap_of_tide_is_coco_ap50() -> None:
    detections, annotations = random_case(7)
    expected = coco_scores(detections, annotations)["AP50"]
    assert errors_of(detections, annotations)["AP"]["AP"] == pytest.approx(expected, abs=0.02)


def test_the_confusion_matrix_counts_what_was_said() -> None:
    annotations = with_objects([BOX, [60, 60, 90, 90], [40, 5, 50, 15]], [0, 1, 2], [3])
    detections = make_detections(
        [0, 0, 0, 0],
        [0, 2, 1, 2],
        [0.9, 0.8, 0.7, 0.1],
        [BOX, [60, 60, 90, 90], [0, 90, 9, 99], [40, 5, 50, 15]],
    )
    matrix = confusion_matrix(detections, annotations, 0.5, score_threshold=0.5)
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize(("side", "sizes"), [(31, "s"), (32, "sm"), (33, "m"), (96, "ml")])
def test_a_size_has_objects_where_it_has_an_ap(side: int, sizes: str) -> None:
    box = [[0, 0, side, side]]
    report = ap_by_size(make_detections([0], [0], [0.9], box), with_objects(box, [0], [1]))["cat"]
    for size in ("small", "medium", "large"):
        expected = (1, pytest.approx(1)) if size[0] in sizes else (0, None)
        assert (report[f"{size}_objects"], report[size]) == expected


def test_a_score_that_is_a_probability_is_calibrated() -> None:
    boxes = [[10.0 * n, 0.0, 10.0 * n + 9, 9.0] for n in range(10)]
    annotations = with_objects(boxes[:7], [0] * 7, [7])
    report = calibration(make_detections([0] * 10, [0] * 10, [0.7] * 10, boxes), annotations, 0.5)
    assert report["error"] == pytest.approx(0)
    assert report["bins"][7]["count"] == 10
    sure = calibration(make_detections([0] * 10, [0] * 10, [1.0] * 10, boxes), annotations, 0.5)
    assert sure["error"] == pytest.approx(0.3)


def test_the_curve_knows_the_best_threshold() -> None:
    annotations = with_objects([BOX, [60, 60, 90, 90]], [0, 0], [2])
    detections = make_detections(
        [0, 0, 0], [0] * 3, [0.9, 0.6, 0.3], [BOX, [60, 60, 90, 90], [0, 90, 9, 99]]
    )
    curve = class_curves(detections, annotations, 0.5)["cat"]
    assert (curve["AP"], curve["best_f1"], curve["best_threshold"]) == (1, 1, 0.6)
    assert curve["recall"] == [0.5, 1, 1]
    assert curve["precision"] == [1, 1, pytest.approx(2 / 3, abs=1e-4)]


def test_the_curve_is_as_high_as_its_ap_however_many_detections_are_wrong() -> None:
    boxes = [[10.0 * (n % 10), 10.0 * (n // 10), 10.0 * (n % 10) + 9, 10.0 * (n // 10) + 9]
             for n in range(100)]  # fmt: skip
    annotations = with_objects(boxes, [0] * 100, [100])
    wrong = 20_000
    detections = make_detections(
        [0] * (80 + wrong),
        [0] * (80 + wrong),
        np.linspace(1, 0, 80 + wrong),
        [*boxes[:80], *([[96.0, 96.0, 99.0, 99.0]] * wrong)],
    )
    curve = class_curves(detections, annotations, 0.5)["cat"]
    recall, precision = np.array(curve["recall"]), np.array(curve["precision"])
    steps = np.diff(recall, prepend=0) * precision
    assert steps.sum() == pytest.approx(curve["AP"], abs=1 / 200)
    assert curve["AP"] == pytest.approx(0.8)
    assert len(recall) <= 201


@pytest.mark.parametrize("factor", [100.0, -5.0, 1e300])
def test_scores_that_are_no_probabilities_have_no_calibration(factor: float) -> None:
    annotations = with_objects([BOX], [0], [1])
    detections = make_detections([0, 0], [0, 0], [0.9 * factor, 0.1], [BOX, [0, 90, 9, 99]])
    report = calibration(detections, annotations, 0.5)
    assert report["error"] is None
    assert sum(each["count"] for each in report["bins"]) == 0


def test_a_class_may_be_called_as_the_row_of_all_classes() -> None:
    annotations = replace(
        with_objects([BOX, BOX], [0, 1], [2]), classes=("all classes", *CLASSES[1:])
    )
    report = ap_by_size(make_detections([0], [0], [0.9], [BOX]), annotations)
    aps = {name: row["AP"] for name, row in report.items()}
    assert aps == pytest.approx({"all classes": 0.5, "all classes (class)": 1, CLASSES[1]: 0})


def test_a_reader_that_leaves_costs_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    report = tmp_path / "report.html"
    monkeypatch.setattr("sys.stdout", GoneReader())
    with pytest.raises(BrokenPipeError):
        main([str(write_checkpoint(tmp_path)), "--output", str(report), "--resamples", "1"])
    assert "<h1" in report.read_text()


class GoneReader(io.StringIO):
    """A standard output behind which nobody reads."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_report_does_not_replace_an_annotation_or_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_data(tmp_path)
    checkpoint = write_checkpoint(tmp_path)
    for file in (next(root.glob("Annotations/*.xml")), next(root.glob("JPEGImages/*"))):
        before = file.read_bytes()
        assert main([str(checkpoint), "--output", str(file)]) == 2
        assert f"{file}: is an input and would be overwritten" in capsys.readouterr().err
        assert file.read_bytes() == before


def test_no_threshold_parts_equal_scores() -> None:
    """The first of two equal scores alone would have a perfect F1, which no threshold gives."""
    annotations = with_objects([BOX], [0], [1])
    detections = make_detections([0, 0], [0, 0], [0.6, 0.6], [BOX, [0, 90, 9, 99]])
    curve = class_curves(detections, annotations, 0.5)["cat"]
    assert (curve["best_f1"], curve["best_threshold"]) == (pytest.approx(2 / 3), 0.6)


def test_the_bootstraps_map_is_vocs_and_that_of_repeated_images() -> None:
    detections, annotations = random_case(3, images=8)
    ranked = rankings(detections, annotations, (0.5,))
    expected = voc_scores(detections, annotations, 0.5)["area"]["mAP"]
    assert mean_ap(ranked, np.ones(8)) == pytest.approx(expected, abs=1e-12)
    weights = np.array([1.0, 2, 0, 1, 3, 1, 0, 0])
    chosen = np.repeat(np.arange(8), weights.astype(int))
    rows = [np.flatnonzero(detections.image == image) for image in chosen]
    order = np.concatenate(rows)
    repeated = make_detections(
        np.repeat(np.arange(len(chosen)), [len(each) for each in rows]),
        detections.label[order],
        detections.score[order],
        detections.boxes[order],
    )
    expected = voc_scores(repeated, annotations.select(chosen), 0.5)["area"]["mAP"]
    assert mean_ap(ranked, weights) == pytest.approx(expected, abs=0.02)  # ties of copies


def test_a_run_does_not_differ_from_itself_and_a_better_one_does() -> None:
    detections, annotations = random_case(5, images=40)
    same = compare(detections, detections, annotations, resamples=20)["mAP50"]
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)
    perfect = make_detections(
        annotations.object_images(),
        annotations.labels,
        np.ones(len(annotations.boxes)),
        annotations.boxes,
    )
    better = compare(detections, perfect, annotations, resamples=40)["mAP50_95"]
    assert better["second"] == pytest.approx(1)
    assert better["low"] > 0
    assert better["p"] == 1 / 40


def test_the_worst_image_has_the_most_faults() -> None:
    annotations = with_objects([BOX, BOX, BOX], [0, 0, 0], [1, 1, 1])
    detections = make_detections(
        [0, 1, 1, 1], [0, 0, 0, 1], [0.9, 0.9, 0.8, 0.7], [BOX, [50, 50, 60, 60], BOX, BOX]
    )
    verdicts = judge_errors(detections, annotations)
    for threshold, wrong, missed in ((0.5, [0, 2, 0], [0, 0, 1]), (0.85, [0, 1, 0], [0, 1, 1])):
        faults = count_faults(detections, annotations, verdicts, threshold)
        assert (faults.wrong.tolist(), faults.missed.tolist()) == (wrong, missed)
        assert faults.worst(5) == [1, 2]


def test_the_page_needs_nothing_else_and_says_what_the_numbers_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_data(tmp_path)
    first = write_checkpoint(tmp_path / "first", root=root)
    second = write_checkpoint(tmp_path / "second", "faster_rcnn", root)
    page = tmp_path / "page.html"
    command = [str(first), str(second), "--output", str(page), "--threshold", "0.006"]
    assert main([*command, "--resamples", "20", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["detections"] > 0 for run in result["runs"]] == [True, True]
    assert (result["images"], result["objects"]) == (2, 4)
    assert set(result["comparison"]) == {"mAP50", "mAP50_95", "resamples"}
    text = page.read_text()
    for name in ("Scores", "Where precision is lost", "Confusion", "Calibration", "Worst images"):
        assert name in text
    assert "prefers-color-scheme: dark" in text
    assert "data:image/jpeg;base64," in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "@import" not in text
    assert "url(" not in text


def test_files_of_detections_are_analyzed_without_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_data(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{format: voc, root: {root}, classes: [cat, dog, ox]}}\n")
    found = tmp_path / "found.json"
    box = [4, 4, 37, 46]
    found.write_text(json.dumps([{"image_id": 1, "category_id": 3, "bbox": box, "score": 0.9}]))
    for image in (root / "JPEGImages").iterdir():
        image.unlink()
    page = tmp_path / "page.html"
    assert main(["--config", str(config), str(found), "--output", str(page)]) == 0
    told = capsys.readouterr()
    assert "TIDE: AP lost" in told.out
    assert "worst images skipped" in told.err
    assert "Worst images" not in page.read_text()
    assert main([str(found)]) == 2
    assert (
        "--config: required for files of detections; give the YAML file" in capsys.readouterr().err
    )


def test_a_report_that_cannot_be_written_costs_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # as where it could be when the work began
    monkeypatch.setattr("engine.process.outputs._check_writable", lambda *_, **__: None)
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{format: voc, root: {write_data(tmp_path)}}}\n")
    found = tmp_path / "found.json"
    found.write_text("[]")
    command = ["--config", str(config), str(found), "--output", str(found / "page.html")]
    assert main([*command, "--json"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["images"] == 2
    assert "page.html: cannot be written" in told.err


def test_two_checkpoints_see_the_same_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the split, wherever the data of the second one's training was."""
    root = write_data(tmp_path)
    first = write_checkpoint(tmp_path / "first", root=root)
    second = write_checkpoint(tmp_path / "second", root=tmp_path / "gone")
    command = [str(second), "--no-report", "--resamples", "5", "--json"]
    assert main([str(first), *command]) == 0
    same = json.loads(capsys.readouterr().out)
    assert same["comparison"]["mAP50_95"]["difference"] == 0
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{format: voc, root: {root}, classes: [cat, dog, ox], workers: 0}}\n")
    assert main(["--config", str(config), *command]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0] == {**same["runs"][1], "name": "run"}


def test_a_missing_train_split_only_takes_class_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = write_data(tmp_path)
    (root / "ImageSets/Main/trainval.txt").unlink()
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{format: voc, root: {root}}}\n")
    found = tmp_path / "found.json"
    found.write_text("[]")
    assert main(["--config", str(config), str(found), "--no-report", "--json"]) == 0
    assert "using the class names of the scored split, because:" in caplog.text
    assert "trainval" in caplog.text
    assert set(json.loads(capsys.readouterr().out)["classes"]) == set(CLASSES)


def test_a_report_does_not_replace_what_it_is_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    checkpoint = write_checkpoint(tmp_path)
    before = checkpoint.read_bytes()
    assert main([str(checkpoint), "--output", str(checkpoint)]) == 2
    assert "is an input and would be overwritten; choose another" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate.iou=0.7"], "evaluate.iou: 0.7, but"),
        (["evaluate.engine=hotcoco"], "evaluate.engine: hotcoco cannot be imported"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # as if it were not installed
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{format: voc, root: {write_data(tmp_path)}}}\n")
    found = tmp_path / "found.json"
    found.write_text("[]")
    command = ["--config", str(config), str(found), str(found), "--no-report"]
    assert main([*command, *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_engine_of_the_config_computes_cocos_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[str] = set()

    def remember(inputs: CocoInputs, engine: Engine) -> Any:
        used.add(engine)
        return compute_stats(inputs, "pycocotools")

    monkeypatch.setattr("engine.evaluation.coco_ap.compute_stats", remember)
    monkeypatch.setattr("engine.evaluation.coco_ap.check_engine", lambda _: None)
    monkeypatch.setattr("scripts.analyze.check_engine", lambda _: None)
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{format: voc, root: {write_data(tmp_path)}}}\n")
    found = tmp_path / "found.json"
    found.write_text("[]")
    command = ["--config", str(config), str(found), "--no-report", "evaluate.engine=hotcoco"]
    assert main(command) == 0
    assert used == {"hotcoco"}
    assert "VOC mAP" in capsys.readouterr().out
