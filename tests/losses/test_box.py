"""Laws of the box losses: parity, closed forms, symmetries, degenerate boxes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from losses.box import (
    BOX_LOSSES,
    DECODED_BOX_LOSSES,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    l1_loss,
    smooth_l1_loss,
)

IOU_LOSSES = [generalized_box_iou_loss, distance_box_iou_loss, complete_box_iou_loss]
ALL_LOSSES = [l1_loss, smooth_l1_loss, *IOU_LOSSES]
REDUCTIONS = ["none", "mean", "sum"]
BoxLoss = Callable[..., Tensor]


def random_boxes(count: int, size: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes with sides of 2% to 102% of ``size``, many of which overlap."""
    generator = torch.Generator().manual_seed(seed)
    corners, sides = torch.rand(2, count, 2, generator=generator, dtype=torch.float64) * size
    return torch.cat([corners, corners + sides + 0.02 * size], dim=1).to(dtype)


def value_and_gradients(
    loss: BoxLoss, first: Tensor, second: Tensor, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    value = loss(first, second, **options)
    return (value, *torch.autograd.grad(value.sum(), (first, second)))


def box(*corners: float) -> Tensor:
    return torch.tensor([corners], dtype=torch.float64)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_equal_torchvision_in_value_and_gradient(
    loss: BoxLoss, size: float, reduction: str
) -> None:
    boxes, others = random_boxes(500, size, seed=0), random_boxes(500, size, seed=1)
    ours = value_and_gradients(loss, boxes, others, reduction=reduction)
    theirs = value_and_gradients(
        getattr(torchvision.ops, loss.__name__), boxes, others, reduction=reduction
    )
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_equal_torchvision_on_integer_boxes_that_touch(loss: BoxLoss) -> None:
    corners = [
        (x, y, x + w, y + h) for x, y, w, h in itertools.product((0, 2), (0, 2), (2, 4), (2, 4))
    ]
    boxes = torch.tensor(corners, dtype=torch.float32)
    first, second = boxes.repeat_interleave(16, dim=0), boxes.repeat(16, 1)
    theirs = value_and_gradients(getattr(torchvision.ops, loss.__name__), first, second)
    for our, their in zip(value_and_gradients(loss, first, second), theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("beta", [0.0, 1e-46, 1e-40, 1 / 9, 1.0, 3.0])
def test_smooth_l1_equals_torch(beta: float, reduction: str) -> None:
    first, second = random_boxes(100, 2, seed=0), random_boxes(100, 2, seed=1)
    ours = value_and_gradients(smooth_l1_loss, first, second, beta=beta, reduction=reduction)
    theirs = value_and_gradients(F.smooth_l1_loss, first, second, beta=beta, reduction=reduction)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_l1_equals_torch(reduction: str) -> None:
    first, second = random_boxes(100, 2, seed=0), random_boxes(100, 2, seed=1)
    second[::3] = first[::3]
    ours = value_and_gradients(l1_loss, first, second, reduction=reduction)
    theirs = value_and_gradients(F.l1_loss, first, second, reduction=reduction)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=0, rtol=0)


def test_the_namesakes_take_the_same_defaults() -> None:
    boxes, others = random_boxes(9, 100, seed=0), random_boxes(9, 100, seed=1)
    torch.testing.assert_close(l1_loss(boxes, others), F.l1_loss(boxes, others))
    torch.testing.assert_close(smooth_l1_loss(boxes, others), F.smooth_l1_loss(boxes, others))
    for loss in IOU_LOSSES:
        theirs = getattr(torchvision.ops, loss.__name__)(boxes, others)
        torch.testing.assert_close(loss(boxes, others), theirs)


@pytest.mark.parametrize(
    ("boxes", "others", "giou"),
    [
        (box(0, 0, 2, 2), box(0, 0, 2, 2), 1),
        (box(0, 0, 2, 2), box(1, 1, 3, 3), 1 / 7 - 2 / 9),  # one corner overlaps: union 7, hull 9
        (box(0, 0, 1, 1), box(1, 0, 2, 1), 0),  # side by side: the hull is the union
        (box(0, 0, 1, 1), box(1, 1, 2, 2), -0.5),  # diagonal neighbors: hull 4, union 2
        (box(0, 0, 1, 1), box(9, 0, 10, 1), -0.8),  # far apart: hull 10, union 2
        (box(0, 0, 4, 4), box(1, 1, 3, 3), 0.25),  # one within the other
    ],
)
def test_giou_by_hand(boxes: Tensor, others: Tensor, giou: float) -> None:
    loss = generalized_box_iou_loss(boxes, others)
    torch.testing.assert_close(
        loss, torch.tensor([1.0 - giou], dtype=torch.float64), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("boxes", "others", "expected"),
    [
        (box(0, 0, 2, 2), box(0, 0, 2, 2), 0),
        (box(0, 0, 2, 2), box(1, 1, 3, 3), 1 - 1 / 7 + 2 / 18),  # centers √2, diagonal √18
        (box(0, 0, 1, 1), box(1, 0, 2, 1), 1 + 1 / 5),
        (box(0, 0, 4, 4), box(1, 1, 3, 3), 0.75),  # concentric: no penalty
    ],
)
def test_diou_by_hand_and_ciou_equals_it_at_equal_aspect(
    boxes: Tensor, others: Tensor, expected: float
) -> None:
    hand = torch.tensor([expected], dtype=torch.float64)
    torch.testing.assert_close(distance_box_iou_loss(boxes, others), hand, atol=1e-6, rtol=0)
    torch.testing.assert_close(complete_box_iou_loss(boxes, others), hand, atol=1e-6, rtol=0)


def test_ciou_by_hand() -> None:
    iou = 0.5  # a 2x2 box around a concentric one of 2x1
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    hand = 1 - iou + v * v / (1 - iou + v)
    loss = complete_box_iou_loss(box(0, 0, 2, 2), box(0, 0.5, 2, 1.5))
    torch.testing.assert_close(loss, torch.tensor([hand], dtype=torch.float64), atol=1e-6, rtol=0)


def test_eps_of_ciou_is_no_smallest_height() -> None:
    eps = 1e-2
    wide, flat = box(0, 0, 2, 1), box(0, 0, 1, 5e-4)
    v = 4 / math.pi**2 * (math.atan(1 / 5e-4) - math.atan(2)) ** 2
    iou = 5e-4 / (2 + eps)
    centers = (0.5**2 + (0.5 - 2.5e-4) ** 2) / (5 + eps)
    hand = 1 - iou + centers + v * v / (1 - iou + v + eps)
    loss = complete_box_iou_loss(wide, flat, eps=eps)
    torch.testing.assert_close(loss, torch.tensor([hand], dtype=torch.float64), atol=1e-9, rtol=0)


def test_smooth_l1_meets_the_line_smoothly_at_beta() -> None:
    distances = torch.tensor([0.0, 0.25, 0.5, 0.75, 100.0], dtype=torch.float64)
    value, gradient, _ = value_and_gradients(
        smooth_l1_loss, distances, torch.zeros_like(distances), beta=0.5, reduction="none"
    )
    assert value.tolist() == [0, 0.0625, 0.25, 0.5, 99.75]
    assert gradient.tolist() == [0, 0.5, 1, 1, 1]


@pytest.mark.parametrize("loss", [l1_loss, smooth_l1_loss, *IOU_LOSSES[:2]])
def test_gradients_pass_gradcheck(loss: BoxLoss) -> None:
    boxes = random_boxes(12, 10, seed=2, dtype=torch.float64).requires_grad_()
    others = random_boxes(12, 10, seed=3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, reduction="none"), (boxes, others))


def test_ciou_passes_gradcheck_with_its_tradeoff_constant() -> None:
    boxes = random_boxes(12, 10, seed=2, dtype=torch.float64).requires_grad_()
    others = random_boxes(12, 10, seed=3, dtype=torch.float64)

    def aspect(pair: Tensor) -> Tensor:
        return torch.atan((pair[:, 2] - pair[:, 0]) / (pair[:, 3] - pair[:, 1]))

    def v(first: Tensor) -> Tensor:
        return 4 / math.pi**2 * (aspect(others) - aspect(first)) ** 2

    with torch.no_grad():
        iou = torchvision.ops.box_iou(boxes, others).diagonal()
        alpha = v(boxes) / (1 - iou + v(boxes))
    _, gradient, _ = value_and_gradients(complete_box_iou_loss, boxes.detach(), others)
    constant_alpha = (distance_box_iou_loss(boxes, others) + alpha * v(boxes)).sum()
    (expected,) = torch.autograd.grad(constant_alpha, boxes)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_losses_are_symmetric(loss: BoxLoss) -> None:
    boxes, others = random_boxes(50, 100, seed=4), random_boxes(50, 100, seed=5)
    forward, backward = loss(boxes, others, reduction="none"), loss(others, boxes, reduction="none")
    torch.testing.assert_close(forward, backward, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_do_not_change_by_translation_scale_or_mirroring(loss: BoxLoss) -> None:
    boxes = random_boxes(50, 100, seed=4, dtype=torch.float64)
    others = random_boxes(50, 100, seed=5, dtype=torch.float64)
    expected = loss(boxes, others)

    def mirrored(b: Tensor) -> Tensor:
        return torch.stack([-b[:, 2], b[:, 1], -b[:, 0], b[:, 3]], dim=1)

    offset = torch.tensor([70.0, -40.0, 70.0, -40.0], dtype=torch.float64)
    for moved in (lambda b: b + offset, lambda b: b * 37, lambda b: b / 37, mirrored):
        torch.testing.assert_close(loss(moved(boxes), moved(others)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_equal_boxes_have_no_loss_and_others_have_some(loss: BoxLoss) -> None:
    boxes = random_boxes(50, 100, seed=4)
    assert loss(boxes, boxes, reduction="none").abs().max() < 1e-6
    assert loss(boxes, boxes + 1, reduction="none").min() > 0


def nasty_pairs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Boxes from a grid of zero, tiny, usual, negative, huge and infinite corners, in random pairs.

    Most are inverted, many without area; the first rows pair every box with itself.
    """
    values = [0.0, -0.0, 1e-45, -1e-7, 1.0, 1e4, 1e18, -1e30, math.inf]
    grid = torch.tensor(list(itertools.product(values, repeat=4)), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(len(grid), (2, 10_000), generator=generator)
    return torch.cat([grid, grid[first]]), torch.cat([grid, grid[second]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_iou_losses_are_finite_and_bounded_for_every_box(loss: BoxLoss, dtype: torch.dtype) -> None:
    value, *gradients = value_and_gradients(loss, *nasty_pairs(dtype))
    assert value.isfinite().all()
    assert -1e-5 <= value.min() <= value.max() <= 3
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_the_gradient_of_short_floats_is_that_of_float32_rounded(
    loss: BoxLoss, dtype: torch.dtype
) -> None:
    pairs = [boxes.to(dtype) for boxes in nasty_pairs(torch.float32)]
    value, *gradients = value_and_gradients(loss, *pairs)
    _, *exact = value_and_gradients(loss, *(boxes.float() for boxes in pairs))
    assert value.isfinite().all()
    for ours, expected in zip(gradients, exact, strict=True):
        assert expected.isfinite().all()
        assert torch.equal(ours, expected.to(dtype))  # infinite beyond the range of float16


@pytest.mark.parametrize("loss", [l1_loss, smooth_l1_loss])
def test_l1_losses_are_finite_for_every_finite_input(loss: BoxLoss) -> None:
    values = torch.tensor([0.0, 1e-45, -1e-7, 1.0, -1e4, 1e18, -1e30, 1e38])
    grid = torch.cartesian_prod(values, values)
    for options in ({}, {"beta": 1e-30}, {"beta": 1e30}) if loss is smooth_l1_loss else ({},):
        results = value_and_gradients(loss, *grid.unbind(1), reduction="none", **options)
        assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_a_nan_stays_a_nan(loss: BoxLoss) -> None:
    broken = torch.tensor([[0.0, 0.0, math.nan, 1.0]])
    assert loss(broken, torch.tensor([[0.0, 0.0, 1.0, 1.0]])).sum().isnan()


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_a_box_without_area_is_pulled_towards_the_other(loss: BoxLoss) -> None:
    _, gradient, _ = value_and_gradients(loss, box(0, 0, 0, 0), box(10, 10, 20, 20))
    assert gradient[:, 0::2].sum() < 0  # moving right lowers the loss
    assert gradient[:, 1::2].sum() < 0  # and so does moving down


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_no_boxes_give_zero_with_a_gradient(loss: BoxLoss, reduction: str) -> None:
    value, *gradients = value_and_gradients(
        loss, torch.zeros(0, 4), torch.zeros(0, 4), reduction=reduction
    )
    assert value.shape == ()
    assert value == 0
    assert [gradient.shape for gradient in gradients] == [(0, 4), (0, 4)]


def test_no_boxes_without_reduction_give_no_losses() -> None:
    none = torch.zeros(0, 4)
    assert [loss(none, none, reduction="none").numel() for loss in ALL_LOSSES] == [0] * len(
        ALL_LOSSES
    )


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_one_box_and_batches_of_batches_are_taken_too(loss: BoxLoss) -> None:
    boxes, others = random_boxes(6, 100, seed=0), random_boxes(6, 100, seed=1)
    expected = loss(boxes, others)
    assert torch.equal(loss(boxes[0], others[0]), expected[0])
    batched = loss(boxes.view(2, 3, 4), others.view(2, 3, 4))
    assert torch.equal(batched, expected.view(2, 3))


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_autocast_changes_nothing(loss: BoxLoss) -> None:
    boxes, others = random_boxes(20, 100, seed=0), random_boxes(20, 100, seed=1)
    expected = value_and_gradients(loss, boxes, others, reduction="mean")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = value_and_gradients(loss, boxes, others, reduction="mean")
    for ours, plain in zip(result, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, plain)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.int64, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_short_floats_are_raised_to_float32(
    loss: BoxLoss, dtype: torch.dtype, expected: torch.dtype
) -> None:
    boxes = random_boxes(20, 100, seed=0).to(dtype)
    others = random_boxes(20, 100, seed=1).to(dtype)
    result = loss(boxes, others)
    assert result.dtype == expected
    assert torch.equal(result, loss(boxes.to(expected), others.to(expected)))


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_an_unknown_reduction_is_refused_with_the_choices(loss: BoxLoss) -> None:
    with pytest.raises(ValueError, match="Invalid reduction 'average'; choose none, mean or sum"):
        loss(torch.zeros(2, 4), torch.zeros(2, 4), reduction="average")


@pytest.mark.parametrize("loss", ALL_LOSSES)
def test_boxes_that_would_only_fit_by_broadcasting_are_refused(loss: BoxLoss) -> None:
    with pytest.raises(ValueError, match=r"\[3, 4\].*\[1, 4\]"):
        loss(torch.zeros(3, 4), torch.zeros(1, 4))


@pytest.mark.parametrize("loss", IOU_LOSSES)
def test_boxes_need_four_coordinates(loss: BoxLoss) -> None:
    with pytest.raises(ValueError, match=r"\(3, 5\): boxes must be \(N, 4\)"):
        loss(torch.zeros(3, 5), torch.zeros(3, 5))


@pytest.mark.parametrize("beta", [-1.0, 1e39, float("nan")])
def test_a_beta_that_is_none_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=f"Invalid beta {re.escape(str(beta))}"):
        smooth_l1_loss(torch.zeros(3), torch.zeros(3), beta=beta)


def test_every_box_loss_is_listed_by_name() -> None:
    assert list(BOX_LOSSES.values()) == ALL_LOSSES
    assert {BOX_LOSSES[name] for name in DECODED_BOX_LOSSES} == {*ALL_LOSSES} - {
        l1_loss,
        smooth_l1_loss,
    }
