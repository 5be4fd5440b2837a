"""Checks of boxes against their image, for every format."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data.annotations import MIN_BOX_SIDE
from data.errors import shown
from scripts.dataset_tools.problems import Problem

Box = tuple[float, float, float, float]


def check_box(
    file: str,
    item: str,
    row: int,
    box_xyxy: Box,
    written: Sequence[float],
    size_hw: tuple[int, int],
    slack: float,
) -> Problem | None:
    """Return the problem of a box in continuous coordinates, if any; a size of 0 is unknown.

    ``written`` are the numbers in the file, for the message; ``slack`` pixels beyond the border are
    tolerated.
    """
    x1, y1, x2, y2 = box_xyxy
    numbers = f"[{', '.join(f'{value:.8g}' for value in written)}]"
    if x2 <= x1 or y2 <= y1:
        return Problem(
            file, item, f"the box {numbers} has no area", "redraw it, or remove the object",
            "error", "drop_object", row,
        )  # fmt: skip
    height, width = size_hw
    if not height or not width:
        return None
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return Problem(
            file, item, f"the box {numbers} lies outside its image of {width}x{height}",
            "redraw it, or remove the object", "error", "drop_object", row,
        )  # fmt: skip
    fractions = x2 <= 1 and y2 <= 1
    # A sliver at the border is what cropping left of an object: nobody drew it so.
    drawn = min(x1, y1) > 0 and x2 < width and y2 < height
    if is_thin(box_xyxy, size_hw) and (fractions or drawn):
        cure = "redraw it, or remove the object"
        if fractions:
            cure = f"multiply by the image size if these are fractions of it; otherwise {cure}"
        return Problem(
            file, item, f"the box {numbers} is smaller than a pixel and not trained on",
            cure, "error", "drop_object", row,
        )  # fmt: skip
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        problem = f"the box {numbers} extends beyond its image of {width}x{height}"
        cure = "clip it; if many boxes do so, the image was resized"
        if min(x1, y1) == -1 and min(written) == 0:  # VOC's, which count from 1
            problem += ", whose first pixel is 1"
            cure += ", or boxes are zero-based: --zero-based, data.voc.coordinates: zero_based"
        return Problem(file, item, problem, cure, "warning", "clip_box", row)
    return None


def is_thin(box_xyxy: Box, size_hw: tuple[int, int]) -> bool:
    """Return whether a box is too thin to be trained on; a size of 0 is unknown."""
    x1, y1, x2, y2 = box_xyxy
    height, width = (side or math.inf for side in size_hw)
    sides = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
    return min(sides) < MIN_BOX_SIDE


class Doubles:
    """Finds duplicate objects of an image."""

    def __init__(self) -> None:
        self._seen: dict[object, str] = {}

    def check(self, file: str, item: str, row: int, key: object) -> Problem | None:
        """``key`` holds image, class and box; the first object with it is no problem."""
        first = self._seen.setdefault(key, item)
        if first == item:
            return None
        return Problem(
            file, item, f"has the same class and box as {first}", "remove one of the two",
            "warning", "drop_object", row,
        )  # fmt: skip


def named(number: int, name: str) -> str:
    """Return the name of a VOC object for messages."""
    return f"object {number} ({shown(name)})"
