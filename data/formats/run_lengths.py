"""COCO's compressed run-length strings: encoding, and summing runs without decoding pixels.

pycocotools trusts such strings: it reads past the end of a truncated one, and never returns from
the evaluation of one whose runs do not fill the image. Strings from outside are therefore checked
here, all at once.

A string holds numbers of 5 bits a character, lowest bits first: a character is 48 plus 5 bits plus
32 where the number goes on, and the last one's bit 16 is the sign. From the fourth number on, a run
length is the number plus the run length two before it. (Source: the format of the COCO API.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

IntArray = npt.NDArray[np.int64]
_CHARACTERS_AT_ONCE = 1 << 16
_LONGEST_NUMBER = 7  # characters; 35 bits


def compress(runs: list[Any], size_hw: list[int]) -> bytes:
    """Compress a list of run lengths, of an image of ``height, width``, to COCO's string.

    Raises:
        ValueError: they are not non-negative integers that add up to the number of pixels, or the
            image has more pixels than pycocotools can count.
    """
    if set(map(type, runs)) != {int} or min(runs) < 0 or sum(runs) != size_hw[0] * size_hw[1]:
        raise ValueError("has counts that do not add up to its size")
    if sum(runs) >= 2**31:
        raise ValueError("has a size with too many pixels")
    encoded: bytes = coco_mask.frPyObjects({"counts": runs, "size": size_hw}, *size_hw)["counts"]
    return encoded


def described_pixels(rle_bytes: npt.NDArray[np.uint8], spans: IntArray) -> IntArray:
    """Sum the run lengths of each string; -1 if it is malformed, 0 if it is empty.

    Args:
        rle_bytes: ``(R,)`` the characters of all strings.
        spans: ``(N, 2)`` first and one past the last character of each string.

    Returns:
        ``(N,)`` int64; a string fits an image if its sum is ``height * width``.

    >>> described_pixels(np.frombuffer(b"52203", np.uint8), np.array([[0, 3], [3, 5], [2, 2]]))
    array([9, 3, 0])
    """
    lengths = spans[:, 1] - spans[:, 0]
    pixels = np.zeros(len(spans), np.int64)
    filled = np.flatnonzero(lengths)
    groups = np.cumsum(lengths[filled]) // _CHARACTERS_AT_ONCE
    for rows in np.split(filled, np.flatnonzero(np.diff(groups)) + 1) if len(filled) else ():
        characters = np.concatenate([rle_bytes[first:last] for first, last in spans[rows].tolist()])
        pixels[rows] = _sum_runs(characters, lengths[rows])
    return pixels


def _sum_runs(characters: npt.NDArray[np.uint8], lengths: IntArray) -> IntArray:
    """Sum the run lengths of non-empty, concatenated strings; -1 if one is malformed."""
    digits = characters.astype(np.int64) - 48
    string = np.repeat(np.arange(len(lengths)), lengths)
    final = (digits & 32) == 0
    string_ends = np.cumsum(lengths) - 1
    malformed = ~final[string_ends]
    malformed[string[(digits < 0) | (digits > 63)]] = True
    final[string_ends] = True
    ends = np.flatnonzero(final)
    malformed[string[ends[np.diff(ends, prepend=-1) > _LONGEST_NUMBER]]] = True
    runs = _accumulate(_numbers(digits, ends), string[ends])
    malformed[string[ends[(runs < 0) | (runs >= 1 << 32)]]] = True
    totals = np.add.reduceat(runs, np.searchsorted(string[ends], np.arange(len(lengths))))
    return np.where(malformed, -1, totals)


def _numbers(digits: IntArray, ends: IntArray) -> IntArray:
    """Decode characters, given the index of the last one of each number, to signed numbers."""
    characters = np.diff(ends, prepend=-1)
    starts = ends - characters + 1
    place = np.arange(len(digits)) - np.repeat(starts, characters)
    bits = 5 * np.minimum(place, _LONGEST_NUMBER)
    magnitude = np.add.reduceat((digits & 31) << bits, starts)
    negative = (digits[ends] & 16) >> 4
    return magnitude - (negative << (bits[ends] + 5))


def _accumulate(numbers: IntArray, string: IntArray) -> IntArray:
    """Turn numbers into run lengths: cumulative sums over every second number of a string."""
    index = np.arange(len(numbers)) - np.searchsorted(string, string)
    runs = np.empty_like(numbers)
    for first, chain in enumerate((index == 0, index % 2 == 1, (index % 2 == 0) & (index > 0))):
        rows = np.flatnonzero(chain)
        running = np.cumsum(numbers[rows])
        begins = np.flatnonzero(index[rows] == first)  # one chain in each string that has it
        before = running[begins] - numbers[rows[begins]]
        runs[rows] = running - np.repeat(before, np.diff(begins, append=len(rows)))
    return runs
