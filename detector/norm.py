"""Normalization layers by name: what is frozen, what is trained, over what it averages.

| name | statistics | scale and shift |
|---|---|---|
| frozen | never change | never change (torchvision's ``FrozenBatchNorm2d``) |
| frozen_stats | never change | trained: the paper's setting |
| batch | of the process's batch | trained |
| group | of groups of channels of one image: none kept | trained |
| sync | of the batch of all processes | trained |
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

    folded = False  # whether the convolution before it does its work: detector.folded

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded else super().forward(x)


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that always uses its stored statistics; scale and shift are trained.

    ``nn.SyncBatchNorm.convert_sync_batchnorm`` must not be given it: once it is folded, a module in
    its place would do its work again.
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
                "batch norm has one value a channel to average, a map of one pixel in a batch of "
                "one image: raise data.batch_size or data.image_size, or set detector.norm, "
                "detector.fpn_norm and detector.retinanet.head_norm to others"
            )
        return super().forward(x)


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over the batches of all processes; it needs GPUs to train on."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.device.type == "cpu":
            raise InputError(
                "sync does not train on the CPU: where detector.norm, detector.fpn_norm or "
                "detector.retinanet.head_norm is sync, set batch or group"
            )
        return super().forward(x)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or the most that divide both 32 and the channels.

    As published networks have it, whatever the width of a layer.
    """
    return nn.GroupNorm(math.gcd(channels, MOST_GROUPS), channels)


def group_norm_of_coarse_maps(channels: int) -> nn.GroupNorm:
    """``group_norm`` with half as many groups as often as one would hold fewer than 8 channels.

    A map of the pyramid may be one pixel: of one channel alone nothing would be left there, of two
    a sign.
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
    """The constructor of a normalization layer, given its channels; None for ``none``."""
    return None if name == "none" else NORM_LAYERS[name]


def pyramid_norm_layer(name: str) -> Callable[[int], nn.Module] | None:
    """``norm_layer`` for the pyramid and the heads on it."""
    return group_norm_of_coarse_maps if name == "group" else norm_layer(name)


def set_eps(module: nn.Module, eps: float) -> None:
    """Set the eps of every normalization layer inside."""
    kinds = (ops.FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)
    for layer in module.modules():
        if isinstance(layer, kinds):
            layer.eps = eps
