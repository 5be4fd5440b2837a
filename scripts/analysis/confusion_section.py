"""The section of the page that says which class is taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from scripts.analysis.charts import matrix, table

MOST_CLASSES = 40  # of a confusion matrix that is printed whole


def confusion_section(result: dict[str, Any]) -> str:
    """A matrix for each run, or tables where there are too many classes for one."""
    names, runs = result["classes"], result["runs"]
    parts = []
    for run in runs:
        title = f"<h3>{escape(run['name'])}</h3>" if len(runs) > 1 else ""
        if len(names) <= MOST_CLASSES:
            content = matrix(names, run["confusion"], ("background", "missed"))
        else:
            content = _most_confused(names, run["confusion"])
        parts.append(f"<div>{title}{content}</div>")
    return (
        f"<p>Detections with a score from {result['score_threshold']:g} on, at IoU "
        f'{result["iou"]:g}. Rows: what is there; columns: what was said.</p><div class="two">'
        f"{''.join(parts)}</div>"
    )


def _most_confused(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    pairs = sorted(
        (
            (count, names[there], names[said])
            for there, row in enumerate(counts[:-1])
            for said, count in enumerate(row[:-1])
            if there != said and count
        ),
        reverse=True,
    )
    rows = [[there, said, str(count)] for count, there, said in pairs[:25]]
    return table(["there is", "said", "times"], rows, words=2)
