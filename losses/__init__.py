"""Losses of box detectors and the weights between them, for any training loop.

Pure functions that replace those of the same names in ``torch.nn.functional`` and
``torchvision.ops`` (``losses.box`` lists differences in arguments), and modules that take a dict of
losses and return it weighted::

    weighting = ALWA({"head": ("classification", "bbox_regression")}).to(device)
    losses = weighting(detector(images, targets))
    sum(losses.values()).backward()
"""

from __future__ import annotations

from losses.alwa import ALWA
from losses.box import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    l1_loss,
    smooth_l1_loss,
)
from losses.classification import sigmoid_focal_loss
from losses.cov import CoVWeighting
from losses.dwa import DWA
from losses.fixed import FixedWeights
from losses.gls import GLS
from losses.gradnorm import GradNorm
from losses.rlw import RandomWeights
from losses.self_balancing import SelfBalancing
from losses.uncertainty import UncertaintyWeighting
from losses.weighting import LossWeighting

__all__ = [
    "ALWA",
    "DWA",
    "GLS",
    "CoVWeighting",
    "FixedWeights",
    "GradNorm",
    "LossWeighting",
    "RandomWeights",
    "SelfBalancing",
    "UncertaintyWeighting",
    "complete_box_iou_loss",
    "distance_box_iou_loss",
    "generalized_box_iou_loss",
    "l1_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
