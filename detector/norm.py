"""Normalization layers by name: what they average over, and what is trained or frozen.

| name | statistics | scale and shift |
|---|---|---|
| frozen | never change | never change (torchvision's ``FrozenBatchNorm2d``) |
| frozen_stats | never change | trained (the paper's setting) |
| batch | over the batch of the process | trained |
| group | over groups of channels of one image, no running statistics | trained |
| sync | over the batches of all processes | trained |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision import ops

from data.errors import InputError

DEFAULT_EPS = 1e-5
MOST_GROUPS = 32
LEAST_IN_GROUP = 8


class FrozenBatchNorm2d(ops.FrozenBatchNorm2d):
    """Batch norm with stored statistics, scale and shift; nothing is trained."""

    folded = (
        False  # whether it is folded into the convolution before it: detector.fast.norm_folding
    )

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded else super().forward(x)


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics; scale and shift are trained.

    Do not pass it to ``nn.SyncBatchNorm.convert_sync_batchnorm``: once it is folded, a module in
    its place would normalize again.
    """

    running_mean: Tensor
    running_var: Tensor
    folded = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.train(False)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded else super().forward(x)

    def train(self, mode: bool = True) -> FrozenStatsBatchNorm2d:  # noqa: ARG002
        return super().train(False)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batch of one process."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            raise InputError(
                "batch norm has only one value per channel (a map of one pixel in a batch of one "
                "image); increase data.batch_size or data.image_size, or change detector.norm, "
                "detector.fpn_norm or detector.retinanet.head_norm"
            )
        return super().forward(x)


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over the batches of all processes; training needs GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu":
            raise InputError(
                "sync norms cannot be trained on the CPU; set batch or group instead in "
                "detector.norm, detector.fpn_norm and detector.retinanet.head_norm"
            )
        return super().forward(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """Build a group norm with 32 groups, or the most that divide both 32 and the channels.

    Published networks use 32 groups whatever the width of a layer.
    """
    return nn.GroupNorm(math.gcd(channels, MOST_GROUPS), channels)


def group_norm_of_coarse_maps(channels: int) -> nn.GroupNorm:
    """Build a ``group_norm`` whose groups are halved until each has at least 8 channels.

    A map of the pyramid may have one pixel: normalizing one channel would leave nothing of it, two
    channels only a sign.
    """
    groups = math.gcd(channels, MOST_GROUPS)
    while groups > 1 and channels // groups < LEAST_IN_GROUP:
        groups //= 2
    return nn.GroupNorm(groups, channels)


NORM_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "frozen_stats": FrozenStatsBatchNorm2d,
    "batch": BatchNorm2d,
    "group": group_norm,
    "sync": SyncBatchNorm2d,
}


def norm_layer(name: str) -> Callable[[int], nn.Module] | None:
    """Return the constructor of a normalization layer from its channels; None for ``none``."""
    return None if name == "none" else NORM_LAYERS[name]


def pyramid_norm_layer(name: str) -> Callable[[int], nn.Module] | None:
    """Return the constructor of a normalization layer for the pyramid and the heads on it."""
    return group_norm_of_coarse_maps if name == "group" else norm_layer(name)


def set_eps(module: nn.Module, eps: float) -> None:
    """Set the eps of every normalization layer inside."""
    kinds = (ops.FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)
    for layer in module.modules():
        if isinstance(layer, kinds):
            layer.eps = eps
