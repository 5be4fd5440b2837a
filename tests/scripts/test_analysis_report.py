"""What the page of analyze.py says, and to whom: on a screen, on paper, read aloud."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
import pytest

from scripts.analysis.charts import matrix, table
from scripts.analysis.confusion_section import confusion_section
from scripts.analysis.report import STYLE


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
    assert f"25 of 41 pairs of classes, {41 * 42 // 2} times in all" in text
    assert f"25 of 30 classes with missed objects, {30 * 31 // 2} missed in all" in text
    assert f" 12 classes detected on background, {12 * 13 // 2} times in all" in text
    assert "c40 c0 41 c39 c40 40" in text  # the most confused first
    assert "class missed objects c29 30 1,060 c28 29 1,058" in text  # of 1000, pairs and missed
    assert "class times c11 12 c10 11" in text
    assert "c15 c16 16" not in text  # the 26th pair
    assert "Rows: what is there" not in text


def test_many_classes_without_confusion_have_no_tables() -> None:
    section = confusion_section(many_classes(0, 0, 0))
    assert "0 pairs of classes, 0 times in all" in words(section)
    assert "<table" not in section


@pytest.mark.parametrize("classes", [1, 40])
def test_a_matrix_that_is_printed_whole_is_not_cut(classes: int) -> None:
    section = confusion_section(confused(np.ones((classes + 1, classes + 1), dtype=int)))
    assert section.count("<td") == (classes + 1) ** 2
    assert "Rows: what is there; columns: what was said." in section


def test_long_names_are_broken_behind_underscores_and_headers_have_a_width() -> None:
    name = "heavy_equipment<b>"
    broken = "heavy_<wbr>equipment&lt;b&gt;"
    whole = matrix([name], [[1, 2], [3, 4]], ("background", "missed"))
    assert whole.count(f"<th><span>{broken}</span></th>") == 2
    assert f"<th class=name>{broken}</th>" in table([name, name], [])
    assert f"<td class=name>{broken}</td>" in table(["a", "b"], [[name, "1"]])
    assert table(["a", "b", "c"], [], words=2).count("class=name") == 2
    style = STYLE.read_text()
    assert re.search(r"\.matrix span {[^}]*max-width", style)
    assert re.search(r"\.name,[^}]*max-width", style)
