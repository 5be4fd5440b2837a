"""Argparse types for numbers, with readable errors where argparse would name a function."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable


def at_least(least: int) -> Callable[[str], int]:
    """Return an argparse ``type`` for whole numbers of at least ``least``."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return read


def score_threshold(text: str) -> float:
    """Parse a score between 0 and 1, as an argparse ``type``.

    Raises:
        ArgumentTypeError: the text is not such a number.
    """
    value = _number(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a score between 0 and 1")
    return value


def share_of_image(text: str) -> float:
    """Parse a fraction of an image side, above 0 and up to 1, as an argparse ``type``.

    Raises:
        ArgumentTypeError: the text is not such a number.
    """
    value = _number(text)
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text!r} is not a fraction of an image, above 0 and up to 1")
    return value


def _number(text: str) -> float:
    """Parse a number; NaN, which is in no range, for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def listed(text: str) -> tuple[int, ...]:
    """Parse a list of whole numbers such as ``0,1,2``, as an argparse ``type``.

    Raises:
        ArgumentTypeError: the text is not such a list.
    """
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ArgumentTypeError(f"{text!r} is not a list of whole numbers; write them as 0,1,2")
    return tuple(map(int, numbers))
