"""The heads of RetinaNet: class scores and box deltas of every anchor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet
from torchvision.ops import Conv2dNormActivation

from detector.anchors import per_anchor
from detector.fast.sparse_towers import Wanted, deltas_at
from detector.fast.winograd import WinogradConv2d
from detector.initialization import init_hidden, init_output

NormLayer = Callable[[int], nn.Module]
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Tower(nn.Sequential):
    """3x3 convolutions that all pyramid levels share.

    Batch norm computes its statistics over all levels at once. Level by level, as in torchvision,
    each would be trained on its own statistics, and evaluated on a running average over levels that
    fits none of them (measured on a small detector: the box loss in evaluation mode was 2.3 times
    that in training mode; with joint statistics, 1.0 times).
    """

    def __init__(self, channels: int, depth: int, norm: NormLayer | None) -> None:
        blocks = [Conv2dNormActivation(channels, channels, norm_layer=norm) for _ in range(depth)]
        super().__init__(*blocks)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``(B, C, H_l, W_l)`` of each level -> the same shapes."""
        maps = list(maps)
        for block in self.children():
            convolution, *pointwise = block.children()
            maps = _convolved(convolution, maps)
            if isinstance(pointwise[0], BATCH_NORMS) and pointwise[0].training:
                maps = _split_like(maps, nn.Sequential(*pointwise)(_join(maps)))
            else:
                maps = [nn.Sequential(*pointwise)(level) for level in maps]
        return maps


class RetinaNetHead(retinanet.RetinaNetHead):
    """torchvision's two heads, with towers of any depth and configurable initialization.

    Args:
        channels: channels of the pyramid and of the towers.
        anchors: anchors per location.
        classes: number of classes, without background.
        depth: number of 3x3 convolutions in each tower.
        norm: normalization after each of them, or None.
        head_init: ``torchvision`` or ``width``, see ``detector.initialization``.
        prior_probability: score of every class before training.
    """

    def __init__(
        self,
        channels: int,
        anchors: int,
        classes: int,
        depth: int = 4,
        norm: NormLayer | None = None,
        head_init: str = "torchvision",
        prior_probability: float = 0.01,
    ) -> None:
        super().__init__(channels, anchors, classes, norm_layer=norm)
        bias = math.log(prior_probability / (1 - prior_probability))
        init_output(self.classification_head.cls_logits, head_init, bias)
        init_output(self.regression_head.bbox_reg, head_init)
        for head in (self.classification_head, self.regression_head):
            head.conv = Tower(channels, depth, norm)
            init_hidden(head.conv, head_init)

    def forward(self, x: Sequence[Tensor]) -> dict[str, Tensor]:
        """``(B, C, H_l, W_l)`` of each level -> outputs for all anchors, level after level.

        Returns:
            ``cls_logits (B, A, classes)`` and ``bbox_regression (B, A, 4)``.
        """
        return {
            "cls_logits": torch.cat(self.classify(x), 1),
            "bbox_regression": torch.cat(self.regress(x), 1),
        }

    def classify(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``(B, C, H_l, W_l)`` of each level -> its logits ``(B, A_l, classes)``."""
        head = self.classification_head
        logits = _convolved(head.cls_logits, head.conv(maps))
        return [per_anchor(level, head.num_classes) for level in logits]

    def regress(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """``(B, C, H_l, W_l)`` of each level -> its deltas ``(B, A_l, 4)``."""
        head = self.regression_head
        return [per_anchor(level, 4) for level in _convolved(head.bbox_reg, head.conv(maps))]

    @property
    def looks_locally(self) -> bool:
        """Whether outputs depend only on their neighborhood, because no norm spans a whole map."""
        layers = self.regression_head.conv.modules()
        return not any(isinstance(layer, (*BATCH_NORMS, nn.GroupNorm)) for layer in layers)

    def regress_at(self, maps: Sequence[Tensor], wanted: Wanted) -> Tensor:
        """Compute the deltas ``(P, 4)`` of some anchors only; requires ``looks_locally``."""
        head = self.regression_head
        return deltas_at(head, maps, head.bbox_reg.out_channels // 4, wanted)


def _convolved(convolution: nn.Module, maps: Sequence[Tensor]) -> list[Tensor]:
    """Apply a convolution to each level."""
    if isinstance(convolution, WinogradConv2d):
        return convolution.convolve_maps(maps)
    return [convolution(level) for level in maps]


def _join(maps: Sequence[Tensor]) -> Tensor:
    """``(B, C, H_l, W_l)`` of each level -> ``(B, C, sum of H_l * W_l, 1)``."""
    return torch.cat([level.flatten(2) for level in maps], dim=2).unsqueeze(3)


def _split_like(maps: Sequence[Tensor], joined: Tensor) -> list[Tensor]:
    """The inverse of ``_join``."""
    parts = joined.squeeze(3).split([level[0, 0].numel() for level in maps], dim=2)
    return [part.reshape(level.shape) for part, level in zip(parts, maps, strict=True)]
