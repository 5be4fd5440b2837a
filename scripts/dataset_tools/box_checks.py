"""Boxes against their image, the same for every format."""

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
    """What is wrong with a box in continuous coordinates; a size of 0 is not known.

    ``written`` are the numbers of the file, for the message; ``slack`` pixels beyond the border are
    let pass.
    """
    x1, y1, x2, y2 = box_xyxy
    numbers = f"[{', '.join(f'{value:.8g}' for value in written)}]"
    if x2 <= x1 or y2 <= y1:
        return Problem(
            file, item, f"the box {numbers} has no area", "draw it again, or remove the object",
            "error", "drop_object", row,
        )  # fmt: skip
    height, width = size_hw
    if not height or not width:
        return None
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return Problem(
            file, item, f"the box {numbers} lies outside its image of {width}x{height}",
            "draw it again, or remove the object", "error", "drop_object", row,
        )  # fmt: skip
    fractions = x2 <= 1 and y2 <= 1
    # A sliver at the border is what a cut has left of an object: nobody drew it so.
    drawn = min(x1, y1) > 0 and x2 < width and y2 < height
    if is_thin(box_xyxy, size_hw) and (fractions or drawn):
        cure = "draw it again, or remove the object"
        if fractions:
            cure = f"if these are fractions of the image, multiply by its size; else {cure}"
        return Problem(
            file, item, f"the box {numbers} covers less than a pixel: it is not trained on",
            cure, "error", "drop_object", row,
        )  # fmt: skip
    if min(x1, y1) < -slack or x2 > width + slack or y2 > height + slack:
        problem = f"the box {numbers} leaves its image of {width}x{height}"
        cure = "cut it at the border; if many do, the image was resized"
        if min(x1, y1) == -1 and min(written) == 0:  # VOC's, which count from 1
            problem += ", whose first pixel is 1"
            cure += ", or pixels are counted from 0: --zero-based, data.voc.coordinates: zero_based"
        return Problem(file, item, problem, cure, "warning", "clip_box", row)
    return None


def is_thin(box_xyxy: Box, size_hw: tuple[int, int]) -> bool:
    """Whether a box is not trained on for its sides inside its image; a size of 0 is not known."""
    x1, y1, x2, y2 = box_xyxy
    height, width = (side or math.inf for side in size_hw)
    sides = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
    return min(sides) < MIN_BOX_SIDE


class Doubles:
    """Finds objects that are in an image twice."""

    def __init__(self) -> None:
        self._seen: dict[object, str] = {}

    def check(self, file: str, item: str, row: int, key: object) -> Problem | None:
        """``key`` holds image, class and box; the first object with it is no problem."""
        first = self._seen.setdefault(key, item)
        if first == item:
            return None
        return Problem(
            file, item, f"has the class and the box of {first}", "remove one of the two",
            "warning", "drop_object", row,
        )  # fmt: skip


def named(number: int, name: str) -> str:
    """What an object of a VOC file is called."""
    return f"object {number} ({shown(name)})"
