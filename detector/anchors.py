"""Anchors of all pyramid levels, the same for every image of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from data.errors import InputError
from detector.config import AnchorConfig, DetectorConfig

RETINANET_OCTAVE_BASE, RPN_OCTAVE_BASE = 4.0, 8.0  # the smallest anchor's size in strides
RETINANET_SCALES_PER_OCTAVE, RPN_SCALES_PER_OCTAVE = 3, 1


class PyramidAnchors(AnchorGenerator):
    """torchvision's anchor generator, always in float32 (under autocast it would follow bfloat16).

    Args:
        sizes: square roots of the anchors' areas in pixels, for each level.
        ratios: aspect ratios, height over width.
        strides: pixels between neighboring anchors of each level, for exact anchors as in the
            paper; None for torchvision's convention: corners rounded to whole pixels, and a stride
            of image size // grid size, which is slightly smaller on coarse levels.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.exact_strides = strides
        if strides is not None:
            self.cell_anchors = [_exact_cell(size, ratios) for size in sizes]

    def of_pyramid(self, image_size: tuple[int, int], features: Sequence[Tensor]) -> list[Tensor]:
        """Return each level's anchors, ``(H_l * W_l * anchors per location, 4)`` xyxy in pixels.

        Args:
            image_size: height and width of the padded batch.
            features: ``(B, C, H_l, W_l)`` of each level.
        """
        self.set_cell_anchors(torch.float32, features[0].device)
        grids = [list(level.shape[-2:]) for level in features]
        strides = [
            [image_size[0] // height, image_size[1] // width]
            if self.exact_strides is None
            else [self.exact_strides[level]] * 2
            for level, (height, width) in enumerate(grids)
        ]
        return self.grid_anchors(grids, strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return ``(A, 4)`` anchors for each image, like torchvision's; one tensor for all."""
        height, width = image_list.tensors.shape[-2:]
        anchors = torch.cat(self.of_pyramid((height, width), feature_maps))
        return [anchors] * len(image_list.image_sizes)


def anchors_of(config: DetectorConfig) -> PyramidAnchors:
    """Build the anchors of a detector.

    Raises:
        InputError: an anchor has no area, in whole pixels or in float32.
    """
    is_retinanet = config.type == "retinanet"
    return build_anchors(
        config.anchors,
        config.pyramid_levels,
        RETINANET_OCTAVE_BASE if is_retinanet else RPN_OCTAVE_BASE,
        RETINANET_SCALES_PER_OCTAVE if is_retinanet else RPN_SCALES_PER_OCTAVE,
    )


def same_anchors(one: DetectorConfig, other: DetectorConfig) -> bool:
    """Return whether two detectors have the same anchors on the levels that both have."""
    cells, others = (
        dict(zip(config.pyramid_levels, anchors_of(config).cell_anchors, strict=True))
        for config in (one, other)
    )
    shared = cells.keys() & others.keys()
    same = all(torch.equal(cells[level], others[level]) for level in shared)
    return same and one.anchors.rounded == other.anchors.rounded


def build_anchors(
    config: AnchorConfig, levels: Sequence[int], octave_base: float, scales_per_octave: int
) -> PyramidAnchors:
    """Build the configured anchors; the default sizes are ``octave_base * 2^level`` times scales.

    Args:
        config: the configured options.
        levels: the level of each feature map; level l has stride 2^l.
        octave_base: default size in strides (RetinaNet 4, RPN 8).
        scales_per_octave: default number of scales (RetinaNet 3, RPN 1).

    Raises:
        InputError: an anchor has no area, in whole pixels or in float32.
    """
    strides = [2**level for level in levels]
    sizes = config.sizes or _default_sizes(levels, octave_base)
    count = config.scales_per_octave or scales_per_octave
    scaled = [[size * 2 ** (n / count) for size in level for n in range(count)] for level in sizes]
    if config.rounded:
        anchors = PyramidAnchors([[int(size) for size in level] for level in scaled], config.ratios)
    else:
        anchors = PyramidAnchors(scaled, config.ratios, strides)
    if not all(bool((cell[:, 2:] > cell[:, :2]).all()) for cell in anchors.cell_anchors):
        cure = " or set detector.anchors.rounded=false" if config.rounded else ""
        raise InputError(
            "detector.anchors: a size and ratio give an anchor without area; increase the sizes, "
            f"choose ratios closer to 1{cure}"
        )
    return anchors


def per_anchor(output: Tensor, values: int) -> Tensor:
    """Reshape a head's ``(B, A * values, H, W)`` to ``(B, H * W * A, values)``, in anchor order."""
    batch, _, height, width = output.shape
    output = output.view(batch, -1, values, height, width)
    return output.permute(0, 3, 4, 1, 2).reshape(batch, -1, values)


def _default_sizes(levels: Sequence[int], octave_base: float) -> list[tuple[float, ...]]:
    if len(set(levels)) == len(levels):
        return [(octave_base * 2**level,) for level in levels]
    # Maps that share a stride (MobileNetV3 in Faster R-CNN): all sizes on each, as torchvision.
    return [(32.0, 64.0, 128.0, 256.0, 512.0)] * len(levels)


def _exact_cell(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """``(ratios * sizes, 4)``: anchors around the origin, in torchvision's order."""
    size = torch.tensor(sizes, dtype=torch.float64)
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()
    widths = (size[None] / root[:, None]).flatten()
    heights = (size[None] * root[:, None]).flatten()
    return (torch.stack([-widths, -heights, widths, heights], dim=1) / 2).float()
