"""Folding norms with fixed statistics into the convolutions before them.

``norm(conv(x)) = s * conv(x) + t`` is a convolution with the weights ``s * w`` and the bias ``t``,
where ``s = weight / sqrt(running_var + eps)`` and ``t = bias - s * running_mean``. In the plain
form each norm reads and writes a whole map; here only weights are multiplied. Gradients reach
``w``, ``weight`` and ``bias`` as they would otherwise; the state dict keeps its names and shapes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from detector.fast.winograd import WinogradConv2d
from detector.norm import FrozenBatchNorm2d, FrozenStatsBatchNorm2d
from losses.triton_support import has_kernels


class FoldedConv2d(WinogradConv2d):
    """Replaces a convolution without bias; keeps its weight, and includes the norm after it."""

    norm: FrozenBatchNorm2d | FrozenStatsBatchNorm2d

    def __init__(
        self, convolution: nn.Conv2d, norm: FrozenBatchNorm2d | FrozenStatsBatchNorm2d
    ) -> None:
        super().__init__(convolution)
        self.__dict__["norm"] = norm  # not a child: it has its own place in the network
        norm.folded = True

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight, bias = self.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
        if not has_kernels(x.device):
            return self._conv_forward(x, weight, bias)
        maps = self._conv_forward(x, weight, None)
        if not maps.is_contiguous(memory_format=torch.channels_last):
            return maps + bias.to(maps.dtype).view(-1, 1, 1)
        from detector.fast.channel_kernels import add_channels

        return add_channels(maps, bias)


def fold_norms(network: nn.Module) -> None:
    """Fold every norm with fixed statistics into the convolution right before it.

    "Before" refers to the order of registration, in which torchvision's networks run their layers.
    """
    for block in network.modules():
        children = list(block.named_children())
        for (name, convolution), (_, norm) in pairwise(children):
            if not isinstance(norm, (FrozenBatchNorm2d, FrozenStatsBatchNorm2d)):
                continue
            if isinstance(convolution, nn.Conv2d) and convolution.bias is None:
                setattr(block, name, FoldedConv2d(convolution, norm))
