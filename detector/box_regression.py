"""Encoding boxes as the deltas that a head regresses, decoding them, and the box loss."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from losses.box import BOX_LOSSES, DECODED_BOX_LOSSES
from losses.config import BoxLossConfig

# torchvision's and Detectron's bound: decoding enlarges a side at most from 16 to 1000 pixels.
LARGEST_LOG_SCALE = math.log(1000.0 / 16)


class BoxCoder:
    """Boxes as offsets from reference boxes: torchvision's ``BoxCoder``, for any batch shape.

    ``decode(encode(boxes, references), references) == boxes`` for boxes with an area, as long as
    no side is more than 62.5 times its reference's.

    Args:
        weights: factors of (dx, dy, dw, dh).
    """

    def __init__(self, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.weights = weights

    def encode(self, boxes: Tensor, references: Tensor) -> Tensor:
        """``(..., 4)`` and ``(..., 4)`` xyxy with an area -> ``(..., 4)`` float32 deltas."""
        center_x, center_y, width, height = _center_size(boxes.float())
        reference_x, reference_y, reference_width, reference_height = _center_size(
            references.float()
        )
        weight_x, weight_y, weight_width, weight_height = self.weights
        deltas = (
            weight_x * (center_x - reference_x) / reference_width,
            weight_y * (center_y - reference_y) / reference_height,
            weight_width * torch.log(width / reference_width),
            weight_height * torch.log(height / reference_height),
        )
        return torch.stack(deltas, dim=-1)

    def decode(self, deltas: Tensor, references: Tensor) -> Tensor:
        """``(..., 4)`` deltas and ``(..., 4)`` xyxy -> ``(..., 4)`` float32 xyxy, not clipped."""
        x, y, width, height = _center_size(references.float())
        weight_x, weight_y, weight_width, weight_height = self.weights
        dx, dy, dw, dh = deltas.float().unbind(dim=-1)
        center_x = dx / weight_x * width + x
        center_y = dy / weight_y * height + y
        half_width = 0.5 * (torch.exp((dw / weight_width).clamp(max=LARGEST_LOG_SCALE)) * width)
        half_height = 0.5 * (torch.exp((dh / weight_height).clamp(max=LARGEST_LOG_SCALE)) * height)
        sides = (
            center_x - half_width,
            center_y - half_height,
            center_x + half_width,
            center_y + half_height,
        )
        return torch.stack(sides, dim=-1)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(..., 4)`` xyxy -> center x, center y, width, height, each ``(...)``."""
    x1, y1, x2, y2 = boxes.unbind(dim=-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


class BoxLoss:
    """The configured box loss, between deltas or between decoded boxes as the loss requires.

    Args:
        config: the type of loss, and the beta of SmoothL1.
        coder: the encoding of the deltas.
    """

    def __init__(self, config: BoxLossConfig, coder: BoxCoder) -> None:
        loss = BOX_LOSSES[config.type]
        self.loss = partial(loss, beta=config.beta) if config.type == "smooth_l1" else loss
        self.reads_boxes = config.type in DECODED_BOX_LOSSES
        self.coder = coder

    def __call__(
        self, deltas: Tensor, references: Tensor, boxes: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Return the sum of ``per_box`` over all boxes."""
        return self.per_box(deltas, references, boxes, mask).sum()

    def per_box(
        self, deltas: Tensor, references: Tensor, boxes: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of each box, ``(...)``, in float32.

        Args:
            deltas: ``(..., 4)`` predicted.
            references: ``(..., 4)`` anchors or proposals, xyxy in pixels.
            boxes: ``(..., 4)`` matched ground truth, xyxy in pixels.
            mask: ``(...)`` bool, the boxes to include; others contribute exactly 0 to the loss and
                the gradient, whatever values they have.
        """
        deltas, references, boxes = (x.float() for x in (deltas, references, boxes))
        if mask is not None:
            rows = mask.unsqueeze(-1)
            # Excluded boxes become unit boxes, whose logarithms and quotients are finite.
            unit = torch.zeros_like(boxes)
            unit[..., 2:] = 1
            deltas = torch.where(rows, deltas, 0.0)
            references = torch.where(rows, references, unit)
            boxes = torch.where(rows, boxes, unit)
        if self.reads_boxes:
            predicted = self.coder.decode(deltas, references)
            losses = self.loss(predicted, boxes, reduction="none")
        else:
            encoded = self.coder.encode(boxes, references)
            losses = self.loss(deltas, encoded, reduction="none").sum(dim=-1)
        return losses if mask is None else torch.where(mask, losses, 0.0)
