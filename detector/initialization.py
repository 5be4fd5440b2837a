"""Weight initialization of the heads' convolutions.

torchvision draws them with a standard deviation of 0.01 whatever their width. That suits 256
channels; with 64, each layer shrinks the signal to a sixth, and SGD from scratch learns almost
nothing. ``width`` draws hidden layers so that the signal keeps its scale (He), and output layers so
that the outputs start as small as torchvision's do at 256 channels.
"""

from __future__ import annotations

import math

from torch import nn

STD = 0.01
STD_CHANNELS = 256  # the number of input channels that STD is meant for


def init_hidden(module: nn.Module, head_init: str) -> None:
    """Initialize every convolution in a module, for ReLU activations."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            if head_init == "width":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_output(layer: nn.Conv2d, head_init: str, bias: float = 0.0) -> None:
    """Initialize a head's output convolution."""
    width = layer.in_channels if head_init == "width" else STD_CHANNELS
    nn.init.normal_(layer.weight, std=STD * math.sqrt(STD_CHANNELS / width))
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)
