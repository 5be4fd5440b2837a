"""What the page of analyze.py says, and to whom: on a screen, on paper, read aloud."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_on_disk import coco_object, write_coco
from tiny_runs import write_data

from scripts.analysis.charts import matrix, table
from scripts.analysis.confusion_section import confusion_section
from scripts.analysis.report import STYLE
from scripts.analyze import main


def words(page: str) -> str:
    """The text of a piece of HTML."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())


def confused(counts: Any, runs: int = 1) -> dict[str, Any]:
    """A result of nothing but confusion matrices."""
    counts = np.asarray(counts)
    return {
        "classes": [f"c{number}" for number in range(len(counts) - 1)],
        "iou": 0.5,
        "score_threshold": 0.5,
        "runs": [{"name": f"run {run}", "confusion": counts.tolist()} for run in range(runs)],
    }


def many_classes(pairs: int, missed: int, background: int) -> dict[str, Any]:
    """41 classes with so many nonzero numbers of each kind: 1, 2, 3 ..."""
    counts = np.zeros((42, 42), dtype=int)
    np.fill_diagonal(counts, 1000)
    counts[41, 41] = 0
    for number in range(pairs):
        counts[number, (number + 1) % 41] = number + 1
    counts[:missed, 41] = np.arange(1, missed + 1)
    counts[41, :background] = np.arange(1, background + 1)
    return confused(counts)


def test_many_classes_are_cut_where_the_page_says_so() -> None:
    text = words(confusion_section(many_classes(41, 30, 12)))
    assert f"25 of 41 pairs of classes, {41 * 42 // 2} detections in total" in text
    assert f"25 of 30 classes with missed objects, {30 * 31 // 2} missed in total" in text
    assert f" 12 classes detected on background, {12 * 13 // 2} detections in total" in text
    assert "c40 c0 41 c39 c40 40" in text  # the most confused first
    assert "class missed objects c29 30 1,060 c28 29 1,058" in text  # of 1000, pairs and missed
    assert "class detections c11 12 c10 11" in text
    assert "c15 c16 16" not in text  # the 26th pair
    assert "Rows: ground truth" not in text


def test_many_classes_without_confusion_have_no_tables() -> None:
    section = confusion_section(many_classes(0, 0, 0))
    assert "0 pairs of classes, 0 detections in total" in words(section)
    assert "<table" not in section


@pytest.mark.parametrize("classes", [1, 40])
def test_a_matrix_that_is_printed_whole_is_not_cut(classes: int) -> None:
    section = confusion_section(confused(np.ones((classes + 1, classes + 1), dtype=int)))
    assert section.count("<td") == (classes + 1) ** 2
    assert "Rows: ground truth; columns: predictions." in section


def test_long_names_are_broken_behind_underscores_and_headers_have_a_width() -> None:
    name = "heavy_equipment<b>"
    broken = "heavy_<wbr>equipment&lt;b&gt;"
    whole = matrix("box", [name], [[1, 2], [3, 4]], ("background", "missed"))
    assert whole.count(f"<th><span>{broken}</span></th>") == 2
    assert f"<th class=name>{broken}</th>" in table("box", [name, name], [])
    assert f"<td class=name>{broken}</td>" in table("box", ["a", "b"], [[name, "1"]])
    assert table("box", ["a", "b", "c"], [], words=2).count("class=name") == 2
    style = STYLE.read_text()
    assert re.search(r"\.matrix span {[^}]*max-width", style)
    assert re.search(r"\.name,[^}]*max-width", style)


def report(folder: Path, data: str, runs: dict[str, list[Any]]) -> str:
    """The page of detections in the form of COCO's results, by the name of their run."""
    config, output = folder / "config.yaml", folder / "page.html"
    config.write_text(f"data: {data}")
    files = [folder / f"{name}.json" for name in runs]
    for file, found in zip(files, runs.values(), strict=True):
        file.write_text(json.dumps(found))
    command = ["--config", config, *files, "--output", output, "--resamples", "5"]
    assert main([str(word) for word in command]) == 0
    return output.read_text()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of two runs, of which the second finds one object of the first of two images."""
    folder = tmp_path_factory.mktemp("report")
    ox = {"image_id": 1, "category_id": 3, "bbox": [5, 5, 37, 45], "score": 0.9}
    data = f"{{format: voc, root: {write_data(folder)}, classes: [cat, dog, ox]}}"
    return report(folder, data, {'"bad"': [{**ox, "category_id": 2}], "good": [ox]})


def attributes(page: str, pattern: str, name: str) -> list[str]:
    """What an attribute says in each tag that matches; empty where a tag lacks it."""
    found = [re.search(f'{name}="([^"]*)"', tag) for tag in re.findall(pattern, page)]
    return [html.unescape(each[1]) if each else "" for each in found]


def test_every_chart_has_a_name_that_says_what_it_shows(page: str) -> None:
    names = attributes(page, "<svg[^>]*>", "aria-label")
    assert len(names) == len(set(names)) == 4
    assert 'Precision-recall curve of ox, "bad" and good: AP 0.0 / 100.0' in names
    assert names[-1].startswith("Share of correct detections over score, calibration error")


def test_every_picture_says_its_image_its_run_and_its_counts(page: str) -> None:
    assert attributes(page, "<img[^>]*>", "alt") == [
        'i2, "bad": 0 right, 1 wrong, 2 missed',
        "i2, good: 1 right, 0 wrong, 1 missed",
        'i3, "bad": 0 right, 0 wrong, 2 missed',
        "i3, good: 0 right, 0 wrong, 2 missed",
    ]


def test_every_box_that_scrolls_can_be_moved_without_a_pointer(page: str) -> None:
    boxes = '<div class="scroll"[^>]*>'
    names = attributes(page, boxes, "aria-label")
    assert attributes(page, boxes, "tabindex") == ["0"] * len(names)
    assert attributes(page, boxes, "role") == ["region"] * len(names)
    assert len(set(names)) == len(names) == page.count("<table")
    assert {'Confusion matrix of "bad"', "Confusion matrix of good", "AP by size"} <= set(names)


def test_on_paper_nothing_is_cut_off_folded_or_dark(page: str) -> None:
    screen, paper = page.split("@media print {")
    paper = paper.split("</style>")[0]
    assert ".scroll { overflow: visible; }" in paper
    assert "details::details-content { content-visibility: visible; }" in paper
    assert re.search(r"[^}]*\bfigure\b[^}]*{ break-inside: avoid; }", paper)
    assert re.search(r"h2, h3[^}]*{ break-after: avoid; }", paper)
    assert screen.count("@media") == screen.count("@media screen and ") == 2
    assert page.count('class="matrix" style="--columns:4"') == 2


@pytest.mark.parametrize("crowd", [False, True])
def test_a_difference_that_is_not_that_of_the_table_says_that_crowds_are_why(
    tmp_path: Path, crowd: bool
) -> None:
    """One run has a detection in a crowd, which is wrong to VOC's rule alone."""
    one, other = [5, 5, 20, 20], [30, 5, 60, 60]
    objects = [coco_object(1, 1, one), coco_object(2, 1, other, iscrowd=int(crowd))]
    for split in ("train", "val"):
        root = write_coco(tmp_path / "coco", objects, split=split)
    right = {"image_id": 1, "category_id": 3, "bbox": one, "score": 0.5}
    inside = {**right, "bbox": [40, 20, 10, 10], "score": 0.9}
    data = f"{{format: coco, root: {root}, train: train, val: val}}"
    text = words(report(tmp_path, data, {"first": [inside, right], "second": [right]}))
    assert "mAP at IoU 0.5: " + ("+0.0 points" if crowd else "+25.0 points") in text
    assert ("VOC mAP 50.0 100.0 +50.0" in text) == crowd
    assert ("Crowds are ignored here, but are difficult boxes in the VOC mAP" in text) == crowd
