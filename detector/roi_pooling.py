"""Features of regions of interest (RoIs), read from the pyramid level that fits their size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align

from detector.fast.sparse_roi_align import sparse_roi_align
from losses.triton_support import has_kernels

# Feature Pyramid Networks, eq. 1: a RoI of 224 x 224 pixels reads level 4.
CANONICAL_SIZE = 224
CANONICAL_LEVEL = 4
LEVEL_EPS = 1e-6


class RoIPooler(MultiScaleRoIAlign):
    """RoIAlign over a pyramid whose strides are known.

    torchvision's module infers the strides from the unpadded sizes of the first batch, which fails
    for images much smaller than their padding; here level ``l`` has stride ``2^l``.

    Args:
        featmap_names: the maps to pool from, finest first.
        levels: the pyramid level of each map.
        output_size: bins per side.
        sampling_ratio: sampling points per bin along each side, at least 1.
    """

    def __init__(
        self,
        featmap_names: Sequence[str],
        levels: Sequence[int],
        output_size: int,
        sampling_ratio: int,
    ) -> None:
        super().__init__(list(featmap_names), output_size, sampling_ratio)
        self.levels = tuple(levels)
        self.scales_of_maps = tuple(2.0**-level for level in levels)

    def forward(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        """Pool every RoI.

        Args:
            features: ``(B, C, H / 2^l, W / 2^l)`` by name.
            rois: ``(R, 5)`` float32: image index and xyxy in pixels of the padded batch.

        Returns:
            ``(R, C, output_size, output_size)``; every map is part of its graph.
        """
        maps = [features[name] for name in self.featmap_names]
        map_of_roi = self.choose_maps(rois[:, 1:])
        options = (map_of_roi, rois, self.output_size[0], self.sampling_ratio)
        # Fast paths; an exported model keeps torchvision's operation, which other programs know.
        if has_kernels(rois.device):
            from detector.fast.roi_align_kernels import roi_align_on_gpu

            return roi_align_on_gpu(maps, self.scales_of_maps, *options)
        if rois.device.type == "cpu" and not torch.onnx.is_in_onnx_export():
            return sparse_roi_align(maps, self.scales_of_maps, *options)
        return self.pool_each_map(maps, map_of_roi, rois)

    def pool_each_map(self, maps: Sequence[Tensor], map_of_roi: Tensor, rois: Tensor) -> Tensor:
        """Run torchvision's RoIAlign map by map: -> ``(R, C, output_size, output_size)``."""
        pooled = maps[0].new_zeros((len(rois), maps[0].shape[1], *self.output_size))
        # RoIs are sorted by map, so that the host waits for the counts of all maps only once.
        order = map_of_roi.argsort(stable=True)
        indices = torch.arange(len(maps), device=rois.device)
        counts = (map_of_roi == indices.unsqueeze(1)).sum(dim=1).tolist()
        parts = zip(maps, self.scales_of_maps, order.split(counts), strict=True)
        for feature_map, scale, rows in parts:
            aligned = roi_align(
                feature_map,
                rois[rows],
                self.output_size,
                spatial_scale=scale,
                sampling_ratio=self.sampling_ratio,
            )
            # Under autocast the maps may differ in dtype, and index_put does not cast.
            pooled[rows] = aligned.to(pooled.dtype)
        return pooled

    def choose_maps(self, boxes: Tensor) -> Tensor:
        """``(R, 4)`` xyxy -> ``(R,)`` int64: the index of the map each RoI reads."""
        size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(CANONICAL_LEVEL + torch.log2(size / CANONICAL_SIZE) + LEVEL_EPS)
        level = level.nan_to_num(0).clamp(min=self.levels[0], max=self.levels[-1]).to(torch.int64)
        return level - self.levels[0]


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """``(R_b, 4)`` boxes of each image -> ``(R, 5)``: image index and box."""
    indices = [
        image_boxes.new_full((len(image_boxes), 1), image)
        for image, image_boxes in enumerate(boxes)
    ]
    return torch.cat([torch.cat(indices), torch.cat(list(boxes))], dim=1)
