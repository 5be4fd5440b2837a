"""Scores of a split in the form of ``metrics.json``: as flat names, a file or a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.annotations import Annotations
from engine.evaluation.coco_ap import NAMES
from engine.evaluation.voc_map import count_objects
from engine.process.atomic_file import write_atomically


def headline_scores(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Flatten scores to names such as voc_mAP, coco_AP, coco_AP50 and coco_segm_AP."""
    flat = {
        "voc_mAP": scores["voc"]["area"]["mAP"],
        "voc_mAP_11point": scores["voc"]["11point"]["mAP"],
    }
    for kind, prefix in (("bbox", "coco_"), ("segm", "coco_segm_")):
        for name, value in scores["coco"].get(kind, {}).items():
            flat[prefix + name] = value
    return flat


def score_tags(detector_type: str) -> list[str]:
    """The curve tags of the scores by which runs are compared."""
    masks = ["val/coco_segm_AP"] if detector_type == "mask_rcnn" else []
    return ["val/voc_mAP", "val/coco_AP", "val/coco_AP50", "val/coco_AP75", *masks]


def write_metrics(path: str | Path, scores: dict[str, Any]) -> None:
    """Write scores atomically as strict JSON; numbers that are not finite become null.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(_to_strict_json(scores), indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def _to_strict_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_strict_json(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def format_table(scores: dict[str, Any], annotations: Annotations | None = None) -> str:
    """Format scores as text: VOC AP per class, its mean, and the COCO scores.

    With annotations the heading names what was scored, and a column gives the number of objects
    that count.
    """
    area, eleven = scores["voc"]["area"], scores["voc"]["11point"]
    columns = [["class", *area["AP"], "mean"]]
    scored = f"{scores['images']} images"
    if annotations is not None:
        scored = f"{annotations.source}: {scored}"
        counts = count_objects(annotations).tolist()
        columns.append(["objects", *map(str, counts), str(sum(counts))])
    for title, form in (("AP area", area), ("AP 11-point", eleven)):
        columns.append([title, *map(_percent, form["AP"].values()), _percent(form["mAP"])])
    heading = f"{scored}; VOC average precision at IoU {scores['voc_iou']:g} in %"
    lines = [heading, "", *_aligned(columns)]
    kinds = scores["coco"]
    columns = [["COCO, %", *kinds]]
    for name in NAMES:
        columns.append([name, *(_percent(numbers[name]) for numbers in kinds.values())])
    return "\n".join([*lines, "", *_aligned(columns)])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _aligned(columns: list[list[str]]) -> list[str]:
    """Columns of equal length -> lines; the first column is left-aligned, others right-aligned."""
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]
