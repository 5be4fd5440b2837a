"""The report: one self-contained HTML file, with light and dark mode, for desktop and phone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scripts.analysis.charts import Series, bars, breakable, line_chart, table
from scripts.analysis.confusion_section import confusion_section
from scripts.analysis.worst_section import BadImage, worst_section

STYLE = Path(__file__).with_name("report.css")
FIRST_CHARTS = 9  # precision-recall curves before the fold

ERRORS = {
    "Cls": ("Class", "right place, wrong class"),
    "Loc": ("Localization", "right class, badly localized"),
    "Both": ("Both", "wrong class and badly localized"),
    "Dupe": ("Duplicate", "the object was already detected"),
    "Bkg": ("Background", "no object is there"),
    "Miss": ("Missed", "the object was not detected"),
}


def build_report(result: dict[str, Any], worst: Sequence[BadImage]) -> str:
    """Build the HTML of an analysis in the format of ``analyze.py --json``."""
    runs = result["runs"]
    sections = [
        ("scores", "Scores", _scores(result)),
        ("errors", "Where precision is lost", _errors(runs)),
        ("curves", "Precision and recall", _curves(runs)),
        ("confusion", "Confusion", confusion_section(result)),
        ("sizes", "By size", _sizes(runs)),
        ("calibration", "Calibration", _calibration(runs)),
    ]
    if worst:
        sections.append(("worst", "Worst images", worst_section(result, worst)))
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{content}</section>'
        for anchor, title, content in sections
    )
    title = " against ".join(run["name"] for run in reversed(runs))
    counts = f"{result['images']} images, {result['objects']} objects"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>"
        f'<body><header><h1>{escape(title)}</h1><div class="soft">{escape(result["data"])}: '
        f"{counts}</div>{_key(runs)}<nav>{links}</nav></header>{body}</body></html>\n"
    )


def _key(runs: Sequence[dict[str, Any]]) -> str:
    if len(runs) == 1:
        return ""
    return (
        "<div>"
        + "".join(
            f'<span class="key {style}">{escape(run["name"])}</span>'
            for run, style in zip(runs, ("first", "second"), strict=True)
        )
        + "</div>"
    )


def _scores(result: dict[str, Any]) -> str:
    runs = result["runs"]
    rows = {
        "VOC mAP": [run["scores"]["voc"]["area"]["mAP"] for run in runs],
        "VOC mAP, 11-point": [run["scores"]["voc"]["11point"]["mAP"] for run in runs],
    }
    for kind, prefix in (("bbox", "COCO"), ("segm", "COCO masks")):
        for name in ("AP", "AP50", "AP75", "AR100"):
            if all(kind in run["scores"]["coco"] for run in runs):
                rows[f"{prefix} {name}"] = [run["scores"]["coco"][kind][name] for run in runs]
    if len(runs) == 1:
        cards = "".join(
            f'<div class="card"><b>{percent(values[0])}</b><span>{name}</span></div>'
            for name, values in rows.items()
        )
        return f'<p>In percent.</p><div class="cards">{cards}</div>'
    lines = [
        [name, *map(percent, values), _signed(values[1], values[0])]
        for name, values in rows.items()
    ]
    header = ["in percent", *(run["name"] for run in runs), "difference"]
    return table("Scores", header, lines) + _difference(result)


def _difference(result: dict[str, Any]) -> str:
    comparison = result["comparison"]
    sentences = []
    for name, title in (("mAP50", "mAP at IoU 0.5"), ("mAP50_95", "mAP over IoU 0.5 to 0.95")):
        each = comparison[name]
        sure = "the choice of images could explain the difference"
        if each["low"] > 0 or each["high"] < 0:
            sure = "more than the choice of images explains"
        sentences.append(
            f"<b>{title}: {_points(each['difference'])} points</b> (95 % interval "
            f"{_points(each['low'])} to {_points(each['high'])}, p = {each['p']:.3g}): {sure}."
        )
    return (
        f'<p class="verdict">{"<br>".join(sentences)}</p><p class="soft">Paired bootstrap: both '
        f"runs scored on the same {comparison['resamples']} resamples of the images (VOC's rule, "
        f"area under the curve).{_why_not_voc_map(result)}</p>"
    )


def _why_not_voc_map(result: dict[str, Any]) -> str:
    """Explain why the bootstrap's mAP differs from the table's: only with crowds."""
    bootstrap = result["comparison"]["mAP50"]
    if all(
        math.isclose(run["scores"]["voc"]["area"]["mAP"] or 0.0, bootstrap[which], abs_tol=1e-9)
        for run, which in zip(result["runs"], ("first", "second"), strict=True)
    ):
        return ""
    return " Crowds are ignored here, but are difficult boxes in the VOC mAP of the table."


def _errors(runs: Sequence[dict[str, Any]]) -> str:
    rows = []
    for kind, (name, explanation) in ERRORS.items():
        values = [
            (run["tide"]["cost"][kind], f"{_points(run['tide']['cost'][kind])} · {count:,}")
            for run in runs
            for count in [run["tide"]["count"][kind]]
        ]
        rows.append((name, explanation, values))
    return (
        "<p>Gain of AP at IoU 0.5, in points, if only the errors of one type were fixed (TIDE), "
        "and the number of errors.</p>" + bars(rows)
    )


def _curves(runs: Sequence[dict[str, Any]]) -> str:
    names = sorted(runs[0]["classes"], key=lambda name: -(runs[0]["classes"][name]["AP"] or 0))
    whose = " and ".join(run["name"] for run in runs)
    charts = [_curve(name, whose, [run["classes"].get(name) for run in runs]) for name in names]
    shown = f'<div class="grid-of-charts">{"".join(charts[:FIRST_CHARTS])}</div>'
    if len(charts) > FIRST_CHARTS:
        rest = "".join(charts[FIRST_CHARTS:])
        shown += (
            f"<details><summary>{len(charts) - FIRST_CHARTS} more classes</summary>"
            f'<div class="grid-of-charts">{rest}</div></details>'
        )
    return (
        "<p>At IoU 0.5, the best class first. Below each curve: the score threshold with the best "
        f"F1.</p>{shown}"
    )


def _curve(name: str, whose: str, runs: Sequence[dict[str, Any] | None]) -> str:
    series, notes = [], []
    for run, style in zip(runs, ("first", "second"), strict=False):
        if run is None or run["best_f1"] is None:
            notes.append("-")
        else:
            # Rounded down, to include a detection with exactly this score.
            threshold = math.floor(1000 * run["best_threshold"]) / 1000
            notes.append(f"F1 {percent(run['best_f1'])} from {threshold:.3f}")
        if run is None:
            continue
        start = [0.0, *run["recall"]], [(run["precision"] or [0.0])[0], *run["precision"]]
        series.append(Series(*start, style))
    scores = " / ".join(percent(run["AP"]) for run in runs if run is not None)
    title = f"Precision-recall curve of {name}, {whose}: AP {scores}"
    note = " · ".join(notes)
    return (
        f'<figure><h3>{breakable(name)} <span class="soft">AP {scores}</span></h3>'
        f"{line_chart(series, 'recall', 'precision', title)}"
        f'<div class="soft"><small>{escape(note)}</small></div></figure>'
    )


def _sizes(runs: Sequence[dict[str, Any]]) -> str:
    header = ["AP in percent", "small", "objects", "medium", "objects", "large", "objects"]
    rows = []
    for name in runs[0]["sizes"]:
        row = [name]
        for size in ("small", "medium", "large"):
            row.append(_beside(percent(run["sizes"][name][size]) for run in runs))
            row.append(str(runs[0]["sizes"][name][f"{size}_objects"]))
        rows.append(row)
    return (
        "<p>COCO's AP: small is up to 32 &times; 32 pixels, large at least 96 &times; 96; an "
        "object of exactly these sizes counts as both.</p>" + table("AP by size", header, rows)
    )


def _calibration(runs: Sequence[dict[str, Any]]) -> str:
    series = [Series([0, 1], [0, 1], "guide")]
    for run, style in zip(runs, ("first", "second"), strict=False):
        filled = [each for each in run["calibration"]["bins"] if each["count"]]
        x, y = [each["score"] for each in filled], [each["precision"] for each in filled]
        series.append(Series(x, y, style, dots=True))
    errors = ", ".join(f"{run['name']}: {percent(run['calibration']['error'])}" for run in runs)
    title = f"Share of correct detections over score, calibration error {errors}"
    rows = []
    for number, each in enumerate(runs[0]["calibration"]["bins"]):
        same = [run["calibration"]["bins"][number] for run in runs]
        counts = _beside(f"{bin_['count']:,}" for bin_ in same)
        shares = _beside(percent(bin_["precision"]) for bin_ in same)
        rows.append([f"{each['low']:.1f} to {each['high']:.1f}", counts, shares])
    header = ["score", "detections", "correct, %"]
    return (
        "<p>Does a score of 0.8 mean that 80 % of such detections are correct? On the dotted line "
        f"it does; below it the detector is overconfident. Expected calibration error in percent: "
        f'{escape(errors)}.</p><div class="two"><div>'
        f"{line_chart(series, 'score', 'share correct', title)}</div><div>"
        f"{table('Calibration', header, rows)}</div></div>"
    )


def percent(value: float | None) -> str:
    """Format a value in percent with one decimal; a dash for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _beside(values: Iterable[str]) -> str:
    """Join the values of all runs in one cell."""
    return " / ".join(values)


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _signed(value: float | None, other: float | None) -> str:
    return "-" if value is None or other is None else _points(value - other)
