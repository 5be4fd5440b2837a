"""Numbers on command lines, refused in words where argparse would name a function."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number that is not below ``least``, for argparse's ``type``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return read


def score_threshold(text: str) -> float:
    """A score between 0 and 1, for argparse's ``type``."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is no score between 0 and 1")
    return value


def share_of_image(text: str) -> float:
    """A part of a side, above 0 and up to 1, for argparse's ``type``."""
    value = _number(text)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text!r} is no share of an image, above 0 and up to 1")
    return value


def _number(text: str) -> float:
    """NaN, which no range holds, for whatever is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def listed(text: str) -> tuple[int, ...]:
    """``0,1,2``, none of them negative, for argparse's ``type``."""
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ArgumentTypeError(f"{text!r} is no list of whole numbers; write them as 0,1,2")
    return tuple(map(int, numbers))
