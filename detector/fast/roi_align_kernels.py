"""RoIAlign over a pyramid on a GPU, map by map, without reading which RoIs belong to a map.

torchvision's kernel takes the RoIs of one map, so that the host has to wait for their number, and
needs contiguous channels, so that a channels-last map is copied. Here a program is a bin of a RoI:
it returns at once if the RoI reads another map, and loads all channels of a point as one vector.
Shapes are static, so that a captured graph can be used for all batches. The sums are torchvision's
(``roi_align`` with ``aligned=False``), in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

CHANNELS = 256  # of a program, at most


def roi_align_on_gpu(
    maps: Sequence[Tensor],
    scales: Sequence[float],
    map_of_roi: Tensor,
    rois: Tensor,
    size: int,
    sampling_ratio: int,
) -> Tensor:
    """Pool each RoI from its map.

    Args:
        maps: ``(B, C, H_l, W_l)`` of each level, of one dtype.
        scales: of each map, ``1 / stride``.
        map_of_roi: ``(R,)`` int64.
        rois: ``(R, 5)`` float32: image index and xyxy in pixels.
        size: bins per side.
        sampling_ratio: sampling points per bin along each side, at least 1.

    Returns:
        ``(R, C, size, size)`` in channels-last memory order and the maps' dtype.
    """
    pooled: Tensor = _RoIAlign.apply(tuple(scales), map_of_roi, rois, size, sampling_ratio, *maps)
    return pooled


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scales: tuple[float, ...], map_of_roi: Tensor, rois: Tensor, size: int,
        sampling_ratio: int, *maps: Tensor,
    ) -> Tensor:  # fmt: skip
        maps = tuple(each.contiguous(memory_format=torch.channels_last) for each in maps)
        ctx.save_for_backward(map_of_roi, rois)
        ctx.scales, ctx.sampling_ratio = scales, sampling_ratio
        ctx.maps = [(each.shape, each.dtype) for each in maps]
        pooled = torch.empty(
            (len(rois), maps[0].shape[1], size, size),
            dtype=maps[0].dtype,
            device=maps[0].device,
            memory_format=torch.channels_last,
        )
        for level, source in enumerate(maps):
            _launch(_pool, source, pooled, rois, map_of_roi, level, scales[level], sampling_ratio)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        map_of_roi, rois = ctx.saved_tensors
        slope = slope.contiguous(memory_format=torch.channels_last)
        gradients = []
        for level, ((batch, channels, height, width), dtype) in enumerate(ctx.maps):
            # sums of many terms: in float32, whatever the map is in
            gradient = slope.new_zeros((batch, height, width, channels), dtype=torch.float32)
            gradient = gradient.permute(0, 3, 1, 2)
            scale = ctx.scales[level]
            _launch(
                _scatter_gradient,
                gradient,
                slope,
                rois,
                map_of_roi,
                level,
                scale,
                ctx.sampling_ratio,
            )
            gradients.append(gradient.to(dtype))
        return (None, None, None, None, None, *gradients)


def _launch(
    kernel: Any, of_map: Tensor, of_rois: Tensor, rois: Tensor, map_of_roi: Tensor,
    level: int, scale: float, sampling_ratio: int,
) -> None:  # fmt: skip
    count, channels, size, _ = of_rois.shape
    if count == 0:
        return
    block = min(CHANNELS, triton.next_power_of_2(channels))
    grid = (count * size * size, triton.cdiv(channels, block))
    kernel[grid](
        of_map, of_rois, rois, map_of_roi, level, scale, *of_map.shape[2:],
        channels=channels, size=size, points=sampling_ratio, block=block,
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip


@triton.jit
def _pool(  # type: ignore[no-untyped-def]
    source, pooled, rois, map_of_roi, level, scale, height, width,
    channels: tl.constexpr, size: tl.constexpr, points: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Compute the mean over the sampling points of a bin."""
    roi = tl.program_id(0) // (size * size)
    if tl.load(map_of_roi + roi) == level:
        channel = tl.program_id(1) * block + tl.arange(0, block)
        inside = channel < channels
        image, top, left, step_y, step_x = _locate_bin(rois, roi, scale, size, points)
        total = tl.zeros((block,), tl.float32)
        for point in range(points * points):
            y, x = top + (point // points + 0.5) * step_y, left + (point % points + 0.5) * step_x
            y0, y1, low_y, high_y = _neighbours(y, height)
            x0, x1, low_x, high_x = _neighbours(x, width)
            if _is_inside(y, height) & _is_inside(x, width):
                row0, row1 = (image * height + y0) * width, (image * height + y1) * width
                a = tl.load(source + (row0 + x0) * channels + channel, inside, 0.0).to(tl.float32)
                b = tl.load(source + (row0 + x1) * channels + channel, inside, 0.0).to(tl.float32)
                c = tl.load(source + (row1 + x0) * channels + channel, inside, 0.0).to(tl.float32)
                d = tl.load(source + (row1 + x1) * channels + channel, inside, 0.0).to(tl.float32)
                total += (
                    low_y * low_x * a
                    + low_y * high_x * b
                    + high_y * low_x * c
                    + high_y * high_x * d
                )
        place = tl.program_id(0).to(tl.int64) * channels + channel
        total /= points * points
        tl.store(pooled + place, total.to(pooled.dtype.element_ty), inside)


@triton.jit
def _scatter_gradient(  # type: ignore[no-untyped-def]
    gradient, slope, rois, map_of_roi, level, scale, height, width,
    channels: tl.constexpr, size: tl.constexpr, points: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Add the gradient of a bin to the pixels around its sampling points."""
    roi = tl.program_id(0) // (size * size)
    if tl.load(map_of_roi + roi) == level:
        channel = tl.program_id(1) * block + tl.arange(0, block)
        inside = channel < channels
        image, top, left, step_y, step_x = _locate_bin(rois, roi, scale, size, points)
        place = tl.program_id(0).to(tl.int64) * channels + channel
        value = tl.load(slope + place, inside, 0.0).to(tl.float32) / (points * points)
        for point in range(points * points):
            y, x = top + (point // points + 0.5) * step_y, left + (point % points + 0.5) * step_x
            y0, y1, low_y, high_y = _neighbours(y, height)
            x0, x1, low_x, high_x = _neighbours(x, width)
            if _is_inside(y, height) & _is_inside(x, width):
                row0, row1 = (image * height + y0) * width, (image * height + y1) * width
                start = gradient + channel
                tl.atomic_add(
                    start + (row0 + x0) * channels, low_y * low_x * value, inside, "relaxed"
                )
                tl.atomic_add(
                    start + (row0 + x1) * channels, low_y * high_x * value, inside, "relaxed"
                )
                tl.atomic_add(
                    start + (row1 + x0) * channels, high_y * low_x * value, inside, "relaxed"
                )
                tl.atomic_add(
                    start + (row1 + x1) * channels, high_y * high_x * value, inside, "relaxed"
                )


@triton.jit
def _locate_bin(rois, roi, scale, size: tl.constexpr, points: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return image, top and left of this program's bin, and its sampling steps down and across."""
    start = rois + roi * 5
    x1, y1 = tl.load(start + 1) * scale, tl.load(start + 2) * scale
    high = tl.maximum(tl.load(start + 4) * scale - y1, 1.0) / size
    wide = tl.maximum(tl.load(start + 3) * scale - x1, 1.0) / size
    row, column = tl.program_id(0) // size % size, tl.program_id(0) % size
    image = tl.load(start).to(tl.int64)
    return image, y1 + row * high, x1 + column * wide, high / points, wide / points


@triton.jit
def _neighbours(at, length):  # type: ignore[no-untyped-def]
    """Return the pixels before and after a position, and their weights."""
    at = tl.maximum(at, 0.0)
    before = tl.minimum(at.to(tl.int32), length - 1)
    after = tl.minimum(before + 1, length - 1)
    beyond = tl.where(before == length - 1, 0.0, at - before)
    return before, after, 1.0 - beyond, beyond


@triton.jit
def _is_inside(at, length):  # type: ignore[no-untyped-def]
    """Return whether a point counts: it is at most one pixel outside the map."""
    return (at >= -1.0) & (at <= length)
