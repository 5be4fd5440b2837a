"""The two fully connected layers of Faster and Mask R-CNN's box head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from detector.fast.onednn_linear import onednn_linear, pays_here


class BoxHead(TwoMLPHead):
    """torchvision's head: ``(R, C, S, S)`` -> ``(R, representation size)``.

    Args:
        in_channels: ``C * S * S``.
        representation_size: the width of both layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(start_dim=1)
        linear = onednn_linear if pays_here(x) else F.linear
        for layer in (self.fc6, self.fc7):
            x = F.relu(linear(x, layer.weight, layer.bias))
        return x
