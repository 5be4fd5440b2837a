"""Figure 2: the value of every loss as a box slides across an object."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.ops import box_iou

from detector.box_regression import BoxCoder
from losses.box import BOX_LOSSES, DECODED_BOX_LOSSES
from losses.classification import binary_cross_entropy_with_logits, sigmoid_focal_loss
from scripts.studies.figures import finished, label_panel

SIDE = 100.0  # pixels: width and height of the object and of the sliding box
FOREGROUND, BACKGROUND = 0.5, 0.4  # RetinaNet's thresholds of IoU
STEPS = 601
FURTHEST = 1.25  # shift, by the object's width
SHOWN = (0.1, 0.35, 0.9)  # shifts of the drawn boxes, by the object's width
SCORE = 0.7  # of the sliding box, at every position

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slide:
    """Losses of a box by its shift, all ``(S,)``; NaN if an anchor of that IoU is ignored."""

    shifts: Numbers
    iou: Numbers
    classification: dict[str, Numbers]
    box: dict[str, Numbers]


def slide(score: float = SCORE) -> Slide:
    """Shift a box that starts on its object to the right, by up to ``FURTHEST`` of its widths.

    The box is an anchor that predicts no offsets. Its classification target is 1 for IoU >= 0.5 and
    0 for IoU < 0.4; in between it is ignored. Box losses count only for positives, but are drawn
    for all shifts, as in the paper.
    """
    shifts = torch.linspace(0, FURTHEST, STEPS)
    truth = torch.tensor([[0.0, 0.0, SIDE, SIDE]])
    moved = truth + SIDE * shifts[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
    iou = box_iou(moved, truth)[:, 0]
    return Slide(
        shifts.double().numpy(),
        iou.double().numpy(),
        {name: _where_counted(value, iou) for name, value in _classification(iou, score).items()},
        {name: value.double().numpy() for name, value in _box_losses(moved, truth).items()},
    )


def draw_shift(heading: str) -> Figure:
    """Draw the boxes, their IoU, the classification losses and all box losses by shift."""
    data = slide()
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.2))
    _draw_boxes(axes[0, 0])
    axes[0, 1].plot(data.shifts, data.iou, color="black")
    for threshold, name in ((FOREGROUND, "positive above"), (BACKGROUND, "negative below")):
        axes[0, 1].axhline(threshold, color="grey", linewidth=0.7, linestyle=":")
        axes[0, 1].text(FURTHEST, threshold, name, fontsize=7, ha="right", va="bottom")
    label_panel(axes[0, 1], "IoU", "shift / width")
    for name, values in data.classification.items():
        axes[1, 0].plot(data.shifts, values, label=name)
    label_panel(axes[1, 0], f"classification loss at a score of {SCORE}", "shift / width")
    for name, values in data.box.items():
        # without a change of shape CIoU is DIoU, and would hide it
        style = {"linestyle": "--", "linewidth": 2.5} if name == "ciou" else {}
        axes[1, 1].plot(data.shifts, values, label=name, **style)
    label_panel(axes[1, 1], "box loss of an anchor that predicts itself", "shift / width")
    for panel in (axes[1, 0], axes[1, 1]):
        panel.legend(fontsize=8)
    return finished(figure, heading)


def _classification(iou: Tensor, score: float) -> dict[str, Tensor]:
    logit = torch.logit(torch.full_like(iou, score))
    target = (iou >= FOREGROUND).float()
    return {
        "cross-entropy": binary_cross_entropy_with_logits(logit, target, reduction="none"),
        "focal": sigmoid_focal_loss(logit, target),
    }


def _where_counted(losses: Tensor, iou: Tensor) -> Numbers:
    ignored = (iou < FOREGROUND) & (iou >= BACKGROUND)
    return losses.masked_fill(ignored, torch.nan).double().numpy()


def _box_losses(moved: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Compute each box loss, summed over coordinates, ``(S,)``."""
    targets = BoxCoder().encode(truth.expand_as(moved), moved)
    losses = {}
    for name, loss in BOX_LOSSES.items():
        if name in DECODED_BOX_LOSSES:
            losses[name] = loss(moved, truth.expand_as(moved), reduction="none")
        else:
            losses[name] = loss(torch.zeros_like(targets), targets, reduction="none").sum(dim=1)
    return losses


def _draw_boxes(panel: Axes) -> None:
    panel.add_patch(
        Rectangle((0, 0), 1, 1, facecolor="0.85", edgecolor="black", label="the object")
    )
    for number, shift in enumerate(SHOWN):
        low = 0.06 * (number + 1)  # a little lower, so that edges do not hide each other
        label = f"shift {shift}: IoU {(1 - shift) / (1 + shift):.2f}"
        place, color = (shift, -low), f"C{number}"
        panel.add_patch(
            Rectangle(place, 1, 1, fill=False, edgecolor=color, linewidth=1.8, label=label)
        )
    panel.legend(fontsize=8, loc="upper right")
    panel.set_xlim(-0.1, 3.3)
    panel.set_ylim(-0.3, 1.1)
    panel.set_aspect("equal")
    panel.set_axis_off()
    panel.set_title("the box at three places (drawn a little lower)", fontsize=9)
