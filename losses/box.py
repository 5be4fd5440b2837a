"""Box regression losses: L1, SmoothL1, GIoU, DIoU and CIoU.

On valid boxes, they return the values of the functions with the same names in
``torch.nn.functional`` and ``torchvision.ops``. Signatures are the same except for L1 and SmoothL1:
there ``reduction`` is the third argument (pass it, and ``beta``, by keyword, which works for both),
and ``size_average``, ``reduce`` and ``weight`` do not exist. Only L1 can be scripted
(``torch.jit.script``, which torch has deprecated); ``torch.compile`` supports all of them.

In addition, they compute in float32 whatever the autocast (float64 stays float64), and value and
gradient are finite for every box without NaN, even if it is inverted, huge or has no area. The
gradient of half-precision boxes is that of float32, rounded: above 65,504, float16 has only
infinity. NaN stays NaN, so that a broken model is noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from losses.elementwise import at_least_float32, check_same_shape, reduce_loss

# Areas and squared distances of larger coordinates would overflow float32.
_COORDINATE_LIMIT = 1e18

# Minimum height of a box when its aspect ratio is computed, so that the angle has a gradient.
_SMALLEST_HEIGHT = 1e-7


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:  # noqa: A002
    """Compute |input - target|, the values of ``torch.nn.functional.l1_loss``.

    Args:
        input: predictions of any shape.
        target: of the same shape; broadcasting is refused.
        reduction: ``none``, ``mean`` or ``sum``; the mean of no elements is 0.

    Raises:
        ValueError: for different shapes or an unknown reduction.

    >>> l1_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, 1.0]), reduction="none")
    tensor([1., 2.])
    """
    return reduce_loss(_distance(input, target), reduction)


def smooth_l1_loss(
    input: Tensor,  # noqa: A002
    target: Tensor,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """Compute SmoothL1, quadratic below ``beta``: ``torch.nn.functional.smooth_l1_loss``.

    Args:
        input: predictions of any shape.
        target: of the same shape; broadcasting is refused.
        reduction: ``none``, ``mean`` or ``sum``; the mean of no elements is 0.
        beta: where the two pieces meet; 0, or a value too small to divide by, gives the L1 loss.

    Raises:
        ValueError: for different shapes, an unknown reduction or a negative beta.

    Source: Girshick, Fast R-CNN, https://arxiv.org/abs/1504.08083, equation 3 (beta = 1).

    >>> smooth_l1_loss(torch.tensor([0.5, 3.0]), torch.zeros(2), reduction="none")
    tensor([0.1250, 2.5000])
    """
    if not 0 <= beta <= torch.finfo(torch.float32).max:
        raise ValueError(
            f"Invalid beta {beta}; choose a non-negative number in the range of float32"
        )
    distance = _distance(input, target)
    if beta < torch.finfo(distance.dtype).tiny:  # too small to divide by
        return reduce_loss(distance, reduction)
    # With s = min(d, beta): d²/2β below beta and d - β/2 above, in one expression without overflow.
    squared_part = distance.clamp(max=beta)
    return reduce_loss((squared_part / beta) * (distance - 0.5 * squared_part), reduction)


def generalized_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """Compute 1 - GIoU, the values of ``torchvision.ops.generalized_box_iou_loss``.

    Args:
        boxes1: ``(..., 4)``, usually ``(N, 4)``, xyxy in pixels (or any other unit).
        boxes2: the other box of each pair, of the same shape.
        reduction: ``none`` gives ``(...)``; ``mean`` and ``sum`` a scalar, 0 for no boxes.
        eps: a positive number, added to areas in denominators.

    Raises:
        ValueError: for other shapes or an unknown reduction.

    Source: Rezatofighi et al., https://arxiv.org/abs/1902.09630.

    >>> outer, inner = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1.0, 2.0]])
    >>> generalized_box_iou_loss(outer, inner)
    tensor([0.5000])
    """
    first, second = _corner_pair(boxes1, boxes2)
    iou, union = _iou_and_union(first, second, eps)
    enclosing = _area(_enclosing_sides(first, second))
    loss = 1 - (iou - (enclosing - union) / (enclosing + eps))
    return reduce_loss(loss, reduction)


def distance_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """Compute 1 - IoU + (distance of the centers / diagonal of the enclosing box)².

    Values are those of ``torchvision.ops.distance_box_iou_loss``; arguments and errors are those of
    :func:`generalized_box_iou_loss`.

    Source: Zheng et al., https://arxiv.org/abs/1911.08287, equation 7.

    >>> left, right = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]])
    >>> distance_box_iou_loss(left, right)
    tensor([1.2000])
    """
    first, second = _corner_pair(boxes1, boxes2)
    iou, _ = _iou_and_union(first, second, eps)
    return reduce_loss(1 - iou + _center_penalty(first, second, eps), reduction)


def complete_box_iou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    """Compute the DIoU loss plus alpha * v, where v compares the aspect ratios.

    Values are those of ``torchvision.ops.complete_box_iou_loss``; arguments and errors are those of
    :func:`generalized_box_iou_loss`. As in torchvision, alpha is a constant for the gradient.

    Source: Zheng et al., https://arxiv.org/abs/1911.08287, equations 8 to 11.

    >>> square, flat = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.5, 2.0, 1.5]])
    >>> complete_box_iou_loss(square, flat)
    tensor([0.5032])
    """
    first, second = _corner_pair(boxes1, boxes2)
    iou, _ = _iou_and_union(first, second, eps)
    v = (4 / math.pi**2) * (_diagonal_angle(second) - _diagonal_angle(first)) ** 2
    with torch.no_grad():
        # Rounding can lift the IoU above 1 by more than eps: the denominator must stay positive.
        alpha = v / ((1 - iou).clamp(min=0) + v + eps)
    return reduce_loss(1 - iou + _center_penalty(first, second, eps) + alpha * v, reduction)


BOX_LOSSES: dict[str, Callable[..., Tensor]] = {
    "l1": l1_loss,
    "smooth_l1": smooth_l1_loss,
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}

# These compare boxes; the others compare the deltas that encode a box relative to its anchor.
DECODED_BOX_LOSSES = frozenset({"giou", "diou", "ciou"})

_Corners = tuple[Tensor, Tensor]


def _distance(first: Tensor, second: Tensor) -> Tensor:
    check_same_shape(first, second, "input and target")
    return (at_least_float32(first) - at_least_float32(second)).abs()


def _corner_pair(boxes1: Tensor, boxes2: Tensor) -> tuple[_Corners, _Corners]:
    """Check two ``(..., 4)`` tensors and return the corners of their boxes."""
    check_same_shape(boxes1, boxes2, "boxes1 and boxes2")
    if boxes1.shape[-1:] != (4,):
        raise ValueError(f"Invalid shape {tuple(boxes1.shape)}: boxes must be (N, 4), xyxy")
    return _corners(boxes1), _corners(boxes2)


def _corners(boxes: Tensor) -> _Corners:
    """``(..., 4)`` -> top left and bottom right, ``(..., 2)`` each, with sides that are >= 0.

    An inverted side counts as empty: negative sides would give negative areas, and divisions by a
    sum of areas that happens to be zero.
    """
    limited = at_least_float32(boxes).clamp(-_COORDINATE_LIMIT, _COORDINATE_LIMIT)
    top_left, bottom_right = limited.split(2, dim=-1)
    return top_left, torch.where(bottom_right < top_left, top_left, bottom_right)


def _area(sides: Tensor) -> Tensor:
    width, height = sides.unbind(dim=-1)
    return width * height


def _iou_and_union(first: _Corners, second: _Corners, eps: float) -> tuple[Tensor, Tensor]:
    """Compute IoU and area of the union, ``(...)`` each, from the corners of two boxes."""
    (top_left1, bottom_right1), (top_left2, bottom_right2) = first, second
    overlap = torch.minimum(bottom_right1, bottom_right2) - torch.maximum(top_left1, top_left2)
    # relu, not clamp: boxes that merely touch get no gradient from the overlap, as in torchvision.
    intersection = _area(overlap.relu())
    union = _area(bottom_right1 - top_left1) + _area(bottom_right2 - top_left2) - intersection
    return intersection / (union + eps), union


def _enclosing_sides(first: _Corners, second: _Corners) -> Tensor:
    """Return width and height ``(..., 2)`` of the smallest box around both."""
    return torch.maximum(first[1], second[1]) - torch.minimum(first[0], second[0])


def _center_penalty(first: _Corners, second: _Corners, eps: float) -> Tensor:
    """Squared distance of the centers over the squared diagonal of the enclosing box, ``(...)``."""
    offset = (first[0] + first[1]) / 2 - (second[0] + second[1]) / 2
    diagonal = _enclosing_sides(first, second)
    return (offset**2).sum(dim=-1) / ((diagonal**2).sum(dim=-1) + eps)


def _diagonal_angle(corners: _Corners) -> Tensor:
    """Compute atan(width / height) of each box, 0 for a box without area."""
    width, height = (corners[1] - corners[0]).unbind(dim=-1)
    # atan2 avoids a quotient that could overflow; it has no gradient at (0, 0).
    return torch.atan2(width, height.clamp(min=_SMALLEST_HEIGHT))
