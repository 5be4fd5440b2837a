"""Convolution towers evaluated only near the locations of their output that are read.

RetinaNet's box loss reads the anchors of objects, a few hundred of a hundred thousand.
``deltas_at`` equals running the box head on whole maps and picking those anchors. If that is less
work, it only computes windows around them: a 3x3 convolution needs one more location on each side,
so a tower of four and an output layer need a margin of five.

It reads positions on the host, and is therefore only used on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetRegressionHead

from detector.fast.winograd import convolve, pays

VALUES = 4  # of an anchor: dx, dy, dw, dh


@dataclass(frozen=True)
class Wanted:
    """The ``P`` anchors whose deltas are wanted.

    Attributes:
        images: ``(P,)`` int64 image of each anchor.
        anchors: ``(P,)`` int64 into the anchors of all levels.
        objects: ``(P,)`` int64: anchors of the same image and object lie close together, and share
            a window on each level.
    """

    images: Tensor
    anchors: Tensor
    objects: Tensor

    def __getitem__(self, rows: Tensor) -> Wanted:
        return Wanted(self.images[rows], self.anchors[rows], self.objects[rows])


def deltas_at(
    head: RetinaNetRegressionHead, maps: Sequence[Tensor], anchors_per_location: int, wanted: Wanted
) -> Tensor:
    """Compute the box head's deltas for some anchors.

    Args:
        head: a head whose ``conv`` is a ``Tower`` with norms, if any, that act on single locations.
        maps: ``(B, C, H_l, W_l)`` of each level.
        anchors_per_location: number of anchors per location; an anchor's index is
            ``location * anchors_per_location + k``.
        wanted: the anchors, at least one, so that every parameter has a gradient.

    Returns:
        ``(P, 4)`` in the order of ``wanted``.
    """
    parts, order, first = [], [], 0
    for level in maps:
        count = level.shape[2] * level.shape[3] * anchors_per_location
        rows = ((wanted.anchors >= first) & (wanted.anchors < first + count)).nonzero().squeeze(1)
        if len(rows):
            local = wanted[rows]
            local = Wanted(local.images, local.anchors - first, local.objects)
            parts.append(_of_level(head, level, anchors_per_location, local))
            order.append(rows)
        first += count
    return torch.cat(parts)[torch.cat(order).argsort()]


def _of_level(
    head: RetinaNetRegressionHead, level: Tensor, anchors_per_location: int, wanted: Wanted
) -> Tensor:
    location = wanted.anchors // anchors_per_location
    kind = wanted.anchors % anchors_per_location
    y, x = location // level.shape[3], location % level.shape[3]
    windows = _windows(wanted, y, x)
    depth = len(head.conv)
    if windows.cost(depth) >= (depth + 1) * level[:, 0].numel():
        output = head.bbox_reg(head.conv([level])[0])
        image, row, column = wanted.images, y, x
    else:
        output = _run_on_windows(head, level, windows)
        image = windows.of
        row, column = y - windows.top[image], x - windows.left[image]
    return _pick(output, image, row, column, kind)


def _pick(output: Tensor, image: Tensor, row: Tensor, column: Tensor, kind: Tensor) -> Tensor:
    """Pick the values of ``P`` anchors from ``(N, anchors * 4, H, W)`` -> ``(P, 4)``."""
    _, channels, height, width = output.shape
    anchors = output.permute(0, 2, 3, 1).reshape(-1, VALUES)
    index = ((image * height + row) * width + column) * (channels // VALUES) + kind
    return anchors.index_select(0, index)


@dataclass(frozen=True)
class _Windows:
    """``N`` windows of one size, each around the anchors of one object.

    Attributes:
        images: ``(N,)``; ``top``, ``left``: ``(N,)`` their first row and column.
        height, width: of every window.
        of: ``(P,)`` the window that each wanted anchor lies in.
    """

    images: Tensor
    top: Tensor
    left: Tensor
    height: int
    width: int
    of: Tensor

    def cost(self, depth: int) -> int:
        """Number of locations that the tower and the output layer compute."""
        return len(self.images) * sum(
            (self.height + 2 * margin) * (self.width + 2 * margin) for margin in range(depth + 1)
        )


def _windows(wanted: Wanted, y: Tensor, x: Tensor) -> _Windows:
    key = wanted.images * (wanted.objects.amax() + 1) + wanted.objects
    keys, of = key.unique(return_inverse=True)
    (top, bottom), (left, right) = (
        [of.new_zeros(len(keys)).scatter_reduce(0, of, v, how, include_self=False) for how in _ENDS]
        for v in (y, x)
    )
    images = of.new_zeros(len(keys)).scatter(0, of, wanted.images)
    height, width = int((bottom - top).max()) + 1, int((right - left).max()) + 1
    return _Windows(images, top, left, height, width, of)


_ENDS = ("amin", "amax")


def _run_on_windows(head: RetinaNetRegressionHead, level: Tensor, windows: _Windows) -> Tensor:
    """Run the head on windows of ``(B, C, H, W)`` -> ``(N, anchors * 4, height, width)``."""
    layers = [list(block.children()) for block in head.conv.children()] + [[head.bbox_reg]]
    margin = len(layers)
    values, inside = _cut(level, windows, margin)
    for convolution, *pointwise in layers:
        values = _inner_convolution(values, convolution)
        values = nn.Sequential(*pointwise)(values)
        inside = inside[:, :, 1:-1, 1:-1]
        values = values * inside  # every layer sees zeros outside the map
    return values


def _inner_convolution(values: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Convolve without padding, which removes one location on each side."""
    if pays([values], convolution.weight, padding=0):
        return convolve([values], convolution.weight, convolution.bias, padding=0)[0]
    return F.conv2d(values, convolution.weight, convolution.bias)


def _cut(level: Tensor, windows: _Windows, margin: int) -> tuple[Tensor, Tensor]:
    """Cut out windows with a margin: values ``(N, C, h, w)``, and 1 inside the map, else 0."""
    _, channels, height, width = level.shape
    y = windows.top[:, None] + torch.arange(-margin, windows.height + margin)
    x = windows.left[:, None] + torch.arange(-margin, windows.width + margin)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
    row = windows.images[:, None] * height + y.clamp(0, height - 1)
    index = row[:, :, None] * width + x.clamp(0, width - 1)[:, None]
    pixels = level.permute(0, 2, 3, 1).reshape(-1, channels)
    values = pixels.index_select(0, index.flatten()).view(*index.shape, channels)
    mask = inside.to(values.dtype).unsqueeze(1)
    return values.permute(0, 3, 1, 2) * mask, mask
