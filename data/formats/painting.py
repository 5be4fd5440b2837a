"""Textured images of overlapping shapes, drawn from a stream of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data.config import ShapesConfig
from data.images import Pixels

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

# Shapes occlude each other, but at least this fraction of each must stay visible.
_LEAST_VISIBLE = 0.5
_PLACEMENTS = 10
_LEAST_CONTRAST = 120  # between a shape and its background, summed over the three channels
_GRAIN = 6  # standard deviation of each pixel's noise
_SUBPIXEL_BITS = 6  # cv2.fillPoly takes fixed-point coordinates


def draw_picture(
    random: np.random.Generator, config: ShapesConfig
) -> tuple[Pixels, list[int], list[Mask]]:
    """Draw an ``(H, W, 3)`` uint8 RGB image; also the label and visible mask of each shape."""
    height, width = config.image_size
    picture = _texture(random, height, width, random.uniform(40, 215, 3), 30)
    labels: list[int] = []
    wholes: list[Mask] = []
    masks: list[Mask] = []
    for _ in range(int(random.integers(config.objects[0], config.objects[1] + 1))):
        label = int(random.integers(len(config.shapes)))
        stamp = _place(random, config, label, wholes, masks)
        if stamp is None:
            continue
        masks = [mask & ~stamp.solid for mask in masks] + [stamp.solid]
        wholes.append(stamp.solid)
        labels.append(label)
        _paint(random, picture[stamp.window], stamp.cover)
    picture += random.standard_normal(picture.shape, np.float32) * _GRAIN
    return np.clip(picture, 0, 255).astype(np.uint8), labels, masks


@dataclass(frozen=True)
class _Stamp:
    """A shape at its place.

    Attributes:
        window: rows and columns of the image that it lies in.
        cover: ``(h, w)`` of the window, 0 .. 1: how much of each pixel it covers.
        solid: ``(H, W)`` of the image: the pixels that it covers at least half.
    """

    window: tuple[slice, slice]
    cover: Floats
    solid: Mask


def _place(
    random: np.random.Generator,
    config: ShapesConfig,
    label: int,
    wholes: list[Mask],
    masks: list[Mask],
) -> _Stamp | None:
    """Draw a shape at random that leaves the others visible; None if there is no room."""
    height, width = config.image_size
    for _ in range(_PLACEMENTS):
        low, high = np.log(config.scale)
        radius = np.exp(random.uniform(low, high)) * min(height, width) / 2
        center = random.uniform((radius, radius), (width - radius, height - radius))
        angle = random.uniform(0, 2 * np.pi)
        stamp = _stamp(config.shapes[label], center, radius, angle, (height, width))
        hidden = (
            (mask & ~stamp.solid).sum() < _LEAST_VISIBLE * whole.sum()
            for mask, whole in zip(masks, wholes, strict=True)
        )
        if not any(hidden):
            return stamp
    return None


def _stamp(
    shape: str, center: Points, radius: float, angle: float, size_hw: tuple[int, int]
) -> _Stamp:
    """Draw the outlines (the second is a hole) at four times the size and average."""
    left, top = np.floor(center - radius).astype(int)
    right, bottom = np.minimum(np.ceil(center + radius).astype(int), size_hw[::-1])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outlines = [
        np.rint(((points * radius) @ turn + center - (left, top)) * 4 * 2**_SUBPIXEL_BITS)
        for points in SHAPES[shape]()
    ]
    fine = np.zeros(((bottom - top) * 4, (right - left) * 4), np.float32)
    cv2.fillPoly(fine, [points.astype(np.int32) for points in outlines], 1, shift=_SUBPIXEL_BITS)
    cover = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    window = (slice(top, bottom), slice(left, right))
    solid = np.zeros(size_hw, np.bool_)
    solid[window] = cover >= 0.5
    return _Stamp(window, np.asarray(cover, np.float32), solid)


def _paint(random: np.random.Generator, window: Floats, cover: Floats) -> None:
    """Fill a shape, in place, with a texture whose color stands out from what is behind it."""
    behind = window.mean(axis=(0, 1))
    color = random.uniform(20, 235, 3)
    while np.abs(color - behind).sum() < _LEAST_CONTRAST:
        color = random.uniform(20, 235, 3)
    height, width = cover.shape
    texture = _texture(random, height, width, color, 20)
    window += cover[:, :, None] * (texture - window)


def _texture(
    random: np.random.Generator, height: int, width: int, color: Points, strength: float
) -> Floats:
    """``(height, width, 3)``: a color with smooth blotches of several sizes and with stripes."""
    result = np.broadcast_to(color.astype(np.float32), (height, width, 3)).copy()
    for cells in (3, 8, 20):
        blotches = random.standard_normal((cells, cells, 3), np.float32) * (strength / 2)
        result += cv2.resize(blotches, (width, height), interpolation=cv2.INTER_LINEAR)
    angle, wave = random.uniform(0, np.pi), random.uniform(5, 16) / (2 * np.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] * np.float32(np.sin(angle) / wave)
    columns = np.arange(width, dtype=np.float32) * np.float32(np.cos(angle) / wave)
    stripes = np.sin(rows + columns) * np.float32(random.uniform(0, strength / 2))
    result += stripes[:, :, None]
    return result


def _regular(corners: int, radius: float = 1.0) -> Points:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> Points:
    outer, inner = _regular(5), _regular(10, 0.45)[1::2]
    return np.stack([outer, inner], axis=1).reshape(10, 2)


def _cross() -> Points:
    a, b = 0.95, 0.31
    quarter = np.array([[b, -b], [a, -b], [a, b]])
    turns = (quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)))
    return np.concatenate(list(turns))


# The outlines of each shape in the unit circle, ``(points, 2)`` each.
SHAPES: dict[str, Callable[[], list[Points]]] = {
    "circle": lambda: [_regular(48)],
    "square": lambda: [_regular(4)],
    "triangle": lambda: [_regular(3)],
    "star": lambda: [_star()],
    "ring": lambda: [_regular(48), _regular(48, 0.55)],
    "cross": lambda: [_cross()],
}
