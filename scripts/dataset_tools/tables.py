"""Statistics and suggestions as text."""

from __future__ import annotations

from typing import Any

from scripts.dataset_tools.suggestions import Suggestion
from scripts.tables import format_table


def format_statistics(numbers: dict[str, Any]) -> str:
    """Format the result of ``statistics.describe`` as four tables."""
    flags = ("images", "empty", "objects", "difficult", "crowd", "masks", "without_area")
    splits = [[name, *(split[flag] for flag in flags)] for name, split in numbers["splits"].items()]
    classes = [
        [each["name"], each["objects"], each["images"], each["median_side"]]
        for each in numbers["classes"]
    ]
    spread = [
        [title, *numbers[key].values()]
        for key, title in (
            ("image_width", "image width, px"),
            ("image_height", "image height, px"),
            ("objects_per_image", "objects per image"),
            ("box_side", "box side, px"),
            ("box_side_of_image", "box side / image side"),
            ("box_height_over_width", "box height / width"),
        )
        if numbers[key] is not None
    ]
    sizes = ", ".join(f"{count} {name}" for name, count in numbers["coco_sizes"].items())
    spread_header = ["", "min", "5%", "25%", "median", "75%", "95%", "max"]
    return "\n\n".join(
        [
            format_table(["split", *(flag.replace("_", " ") for flag in flags)], splits),
            format_table(["class", "objects", "images", "median side, px"], classes),
            format_table(spread_header, spread),
            f"by COCO size: {sizes}",
        ]
    )


def format_suggestion(suggestion: Suggestion | None) -> str:
    """Format the suggested settings and their reasons."""
    if suggestion is None:
        return "no objects to train on: no image size and no anchors can be suggested"
    ratios = ", ".join(f"{ratio:g}" for ratio in suggestion.ratios)
    sizes = ", ".join(f"{size:g}" for size in suggestion.sizes)
    levels = f"{suggestion.levels[0]} to {suggestion.levels[-1]}"
    return (
        f"suggested detector: {suggestion.detector}\n"
        f"suggested image size: {list(suggestion.image_size)} (short side, longest long side), "
        f"which makes the median box {suggestion.median_side:.0f} px\n"
        f"suggested anchors: levels {levels}, sizes {sizes}, ratios {ratios}, 3 scales per octave: "
        f"cover {suggestion.coverage:.1%} of the boxes with IoU 0.7 (default anchors: "
        f"{suggestion.default_coverage:.1%})"
    )
