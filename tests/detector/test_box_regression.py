"""Encoding, decoding and the box loss of a head, against torchvision."""

from __future__ import annotations

import pytest
import torch
from rcnn_twins import random_boxes
from torch import Tensor
from torchvision.models.detection import _utils as torchvision_utils

from detector.box_regression import BoxCoder, BoxLoss
from losses.config import BoxLossConfig

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]
LOSSES = ["l1", "smooth_l1", "giou", "diou", "ciou"]


def pairs(count: int = 50) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return random_boxes(count, (300, 400)), random_boxes(count, (300, 400))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_coder_gives_torchvisions_numbers(weights) -> None:
    boxes, references = pairs()
    deltas = torch.randn(50, 4) * 3
    deltas[:5] = 1000  # beyond the clamp
    ours, theirs = BoxCoder(weights), torchvision_utils.BoxCoder(weights)
    assert torch.equal(ours.encode(boxes, references), theirs.encode_single(boxes, references))
    assert torch.equal(ours.decode(deltas, references), theirs.decode_single(deltas, references))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decoding_inverts_encoding(weights) -> None:
    boxes, references = pairs()
    coder = BoxCoder(weights)
    decoded = coder.decode(coder.encode(boxes, references), references)
    torch.testing.assert_close(decoded, boxes, rtol=1e-4, atol=1e-3)


def test_a_batch_is_coded_as_its_images() -> None:
    boxes, references = pairs(12)
    coder = BoxCoder()
    batch = coder.encode(boxes.view(3, 4, 4), references.view(3, 4, 4))
    assert torch.equal(batch.view(12, 4), coder.encode(boxes, references))
    decoded = coder.decode(batch, references.view(3, 4, 4))
    assert torch.equal(decoded.view(12, 4), coder.decode(batch.view(12, 4), references))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", LOSSES)
def test_all_five_losses_equal_torchvisions(kind, weights) -> None:
    boxes, references = pairs()
    deltas = torch.randn(50, 4) * 0.3
    loss = BoxLoss(BoxLossConfig(type=kind, beta=0.4), BoxCoder(weights))
    expected = torchvision_utils._box_loss(
        kind, torchvision_utils.BoxCoder(weights), references, boxes, deltas, {"beta": 0.4}
    )
    torch.testing.assert_close(loss(deltas, references, boxes), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_what_the_mask_leaves_out_adds_nothing_whatever_it_holds(kind) -> None:
    boxes, references = pairs(6)
    deltas = torch.randn(6, 4)
    loss = BoxLoss(BoxLossConfig(type=kind), BoxCoder())
    garbage = torch.tensor([0.0, float("nan"), float("inf"), -3.0]).view(4, 1).expand(4, 4)
    mask = torch.tensor([True] * 6 + [False] * 4)
    padded = torch.cat([deltas, garbage]).requires_grad_()
    total = loss(padded, torch.cat([references, garbage]), torch.cat([boxes, garbage]), mask)
    torch.testing.assert_close(total, loss(deltas, references, boxes))
    total.backward()
    assert (padded.grad[6:] == 0).all()
    assert padded.grad[:6].isfinite().all()
    assert (padded.grad[:6] != 0).any(dim=1).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_no_boxes_give_a_loss_of_zero_with_a_gradient(kind) -> None:
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = BoxLoss(BoxLossConfig(type=kind), BoxCoder())(
        deltas, torch.zeros(0, 4), torch.zeros(0, 4)
    )
    loss.backward()
    assert loss == 0
    assert deltas.grad.shape == (0, 4)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_exact_deltas_of_the_boxes_have_no_loss(kind) -> None:
    boxes, references = pairs()
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    loss = BoxLoss(BoxLossConfig(type=kind), coder)
    assert abs(loss(coder.encode(boxes, references), references, boxes)) < 1e-3


@pytest.mark.parametrize("kind", LOSSES)
def test_half_precision_deltas_are_compared_in_float32(kind) -> None:
    boxes, references = pairs()
    deltas = torch.randn(50, 4).bfloat16()
    loss = BoxLoss(BoxLossConfig(type=kind), BoxCoder())
    with torch.autocast("cpu", torch.bfloat16):
        total = loss(deltas, references, boxes)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, loss(deltas.float(), references, boxes))
