"""RoIAlign on a CPU as a product with a sparse matrix, equal to ``torchvision.ops.roi_align``.

A bin of RoIAlign is the mean of ``s x s`` bilinear samples, so a weighted sum of the ``(2 s)^2``
pixels around them: its taps. With every pixel of the pyramid a row of one matrix F, pooling is
``A F``, where row i of A holds the taps of bin i, and its gradient is ``A^T dY``. Both are sums of
weighted rows, which ``embedding_bag`` streams through, one row of channels at a time; torchvision's
operation gathers each channel on its own and scatters its gradient value by value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def sparse_roi_align(
    maps: Sequence[Tensor],
    scales: Sequence[float],
    map_of_roi: Tensor,
    rois: Tensor,
    bins: int,
    sampling_ratio: int,
) -> Tensor:
    """Pool every RoI from its map, all maps at once (``aligned=False``).

    Args:
        maps: ``(B, C, H_m, W_m)`` floating point.
        scales: pixels of each map per pixel of the batch, ``1 / stride``.
        map_of_roi: ``(R,)`` int64: the map that each RoI reads.
        rois: ``(R, 5)`` float32: image index and xyxy in pixels of the batch.
        bins: bins per side.
        sampling_ratio: sampling points per bin along each side, at least 1.

    Returns:
        ``(R, C, bins, bins)`` in the dtype of the first map, in channels-last memory order; every
        map is part of its graph.
    """
    # In the dtype of the boxes: under autocast, torchvision's operation also computes in float32.
    table = torch.cat([_rows_of_pixels(feature_map).to(rois.dtype) for feature_map in maps])
    taps, weights = bin_taps(maps, scales, map_of_roi, rois, bins, sampling_ratio)
    pooled = _WeightedRows.apply(table, taps.flatten(0, 2), weights.flatten(0, 2))
    pooled = pooled.view(len(rois), bins, bins, table.shape[1]).permute(0, 3, 1, 2)
    return pooled.to(maps[0].dtype)


@torch.no_grad()
def bin_taps(
    maps: Sequence[Tensor],
    scales: Sequence[float],
    map_of_roi: Tensor,
    rois: Tensor,
    bins: int,
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """Return the pixels that each bin reads and their weights, both ``(R, bins, bins, (2 s)^2)``.

    The arguments are those of ``sparse_roi_align``. A pixel is an int32 index into the pixels of
    all maps, ordered by map, image and row.
    """
    heights = torch.tensor([feature_map.shape[2] for feature_map in maps])
    widths = torch.tensor([feature_map.shape[3] for feature_map in maps])
    pixels = len(maps[0]) * heights * widths
    height, width = heights[map_of_roi], widths[map_of_roi]
    first = (pixels.cumsum(0) - pixels)[map_of_roi] + rois[:, 0].long() * height * width
    boxes = rois[:, 1:] * rois.new_tensor(scales)[map_of_roi, None]
    x1, y1, x2, y2 = boxes.unbind(1)
    row, row_weight = _axis_taps(y1, y2 - y1, height, bins, sampling_ratio)
    column, column_weight = _axis_taps(x1, x2 - x1, width, bins, sampling_ratio)
    start = (first.view(-1, 1, 1) + row * width.view(-1, 1, 1)).int()
    taps = start[:, :, None, :, None] + column.int()[:, None, :, None, :]
    weights = row_weight[:, :, None, :, None] * column_weight[:, None, :, None, :]
    return taps.flatten(3), weights.flatten(3)


def _axis_taps(
    start: Tensor, length: Tensor, cells: Tensor, bins: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Return each bin's taps along one axis: index and weight, both ``(R, bins, 2 s)``.

    Args:
        start: ``(R,)`` start of the RoI, in cells; ``length``: its length, in cells.
        cells: ``(R,)`` int64: the length of the map. A sample more than one cell outside it is 0.
    """
    size = (length.clamp(min=1) / bins).view(-1, 1, 1)
    bin_index = torch.arange(bins, device=start.device).view(1, -1, 1)
    sample = (torch.arange(sampling_ratio, device=start.device) + 0.5).view(1, 1, -1)
    # torchvision's operations in its order, so that borders are treated equally.
    position = start.view(-1, 1, 1) + bin_index * size + sample * size / sampling_ratio
    cells = cells.view(-1, 1, 1)
    inside = (position >= -1) & (position <= cells)
    position = position.clamp(min=0)
    low = position.nan_to_num(0).clamp(max=cells - 1).long()
    fraction = torch.where(low < cells - 1, position - low, 0)
    index = torch.stack([low, torch.minimum(low + 1, cells - 1)], dim=-1)
    weight = torch.stack([1 - fraction, fraction], dim=-1) * (inside / sampling_ratio).unsqueeze(-1)
    return index.flatten(2), weight.flatten(2)


def _rows_of_pixels(feature_map: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B * H * W, C)``."""
    return feature_map.permute(0, 2, 3, 1).flatten(0, 2)


class _WeightedRows(torch.autograd.Function):
    """``output[i] = sum over t of weights[i, t] * table[taps[i, t]]``, with the table's gradient.

    ``(P, C)`` table, ``(N, T)`` int32 taps and ``(N, T)`` weights -> ``(N, C)``.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(taps, weights)
        ctx.rows = len(table)
        # Detached, because embedding_bag would otherwise prepare its own backward pass.
        return F.embedding_bag(taps, table.detach(), mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Compute the transposed product, with taps sorted by the table row that they read."""
        taps, weights = ctx.saved_tensors
        order = taps.flatten().sort(stable=True).indices
        reads = torch.bincount(taps.flatten(), minlength=ctx.rows)
        table_gradient = F.embedding_bag(
            (order // taps.shape[1]).int(),
            gradient.contiguous(),
            (reads.cumsum(0) - reads).int(),
            mode="sum",
            per_sample_weights=weights.flatten()[order],
        )
        return table_gradient, None, None
