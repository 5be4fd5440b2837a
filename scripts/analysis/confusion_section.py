"""The report section with the confusion of classes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from scripts.analysis.charts import matrix, table

MOST_CLASSES = 40  # of a complete confusion matrix
MOST_ROWS = 25  # of each table that replaces it


def confusion_section(result: dict[str, Any]) -> str:
    """Build a matrix for each run, or tables if there are too many classes for one."""
    names, runs = result["classes"], result["runs"]
    whole = len(names) <= MOST_CLASSES
    parts = []
    for run in runs:
        title = f"<h3>{escape(run['name'])}</h3>" if len(runs) > 1 else ""
        if whole:
            box = f"Confusion matrix of {run['name']}"
            content = matrix(box, names, run["confusion"], ("background", "missed"))
        else:
            content = _most_confused(run["name"], names, run["confusion"])
        parts.append(f"<div>{title}{content}</div>")
    if whole:
        reading = "Rows: ground truth; columns: predictions."
    else:
        reading = (
            f"{len(names)} classes are too many for a matrix; these are its largest entries "
            "(<code>--json</code> prints all)."
        )
    return (
        f"<p>Detections with a score of at least {result['score_threshold']:g}, at IoU "
        f'{result["iou"]:g}. {reading}</p><div class="two">{"".join(parts)}</div>'
    )


def _most_confused(run: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    pairs = [
        (names[there], names[said], count)
        for there, row in enumerate(counts[:-1])
        for said, count in enumerate(row[:-1])
        if there != said and count
    ]
    objects = zip(names, counts[:-1], strict=True)
    missed = [(name, row[-1], sum(row)) for name, row in objects if row[-1]]
    said = zip(names, counts[-1][:-1], strict=True)
    background = [(name, count) for name, count in said if count]
    return (
        _largest(
            run, "pairs of classes", ["true class", "predicted class", "detections"], pairs, words=2
        )
        + _largest(run, "classes with missed objects", ["class", "missed", "objects"], missed)
        + _largest(run, "classes detected on background", ["class", "detections"], background)
    )


def _largest(
    run: str, what: str, header: Sequence[str], rows: Sequence[tuple[Any, ...]], words: int = 1
) -> str:
    """Build a table of the rows with the largest first numbers, headed by their count."""
    shown = sorted(rows, key=lambda row: -row[words])[:MOST_ROWS]
    some = f"{len(shown)} of {len(rows)}" if len(shown) < len(rows) else f"{len(rows)}"
    total = f"{sum(row[words] for row in rows):,} {header[words]} in total"
    title = f'<p class="soft">{some} {what}, {total}</p>'
    if not rows:
        return title
    cells = [[*row[:words], *(f"{count:,}" for count in row[words:])] for row in shown]
    return title + table(f"{run}: {some} {what}", header, cells, words)
