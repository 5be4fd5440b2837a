"""Suppression that stops early: the first survivors of plain suppression, in its order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from detector.fast import early_nms
from detector.fast.early_nms import first_survivors

THRESHOLD = 0.5


def candidates(count: int, side: float, groups: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of about 20 pixels in a square; distinct scores, in no order."""
    torch.manual_seed(count)
    corners = torch.rand(count, 2) * side
    boxes = torch.cat([corners, corners + 15 + torch.rand(count, 2) * 10], dim=1)
    return boxes, torch.randperm(count) / max(count, 1), torch.randint(groups, (count,))


@pytest.mark.parametrize("side", [10.0, 200.0, 5000.0], ids=["crowded", "mixed", "far apart"])
@pytest.mark.parametrize("count", [0, 1, 90, 3000])
@pytest.mark.parametrize("most", [1, 40, 700, 5000])
def test_the_first_survivors_are_those_of_plain_suppression(side, count, most) -> None:
    boxes, scores, groups = candidates(count, side)
    expected = batched_nms(boxes, scores, groups, THRESHOLD)[:most]
    assert first_survivors(boxes, scores, groups, THRESHOLD, most).equal(expected)


def test_equal_scores_stay_in_their_order() -> None:
    boxes, _, groups = candidates(2000, 1e6)
    kept = first_survivors(boxes, torch.full((2000,), 0.5), groups, THRESHOLD, 1500)
    assert kept.tolist() == list(range(1500))


def test_what_comes_behind_enough_survivors_is_never_compared(monkeypatch) -> None:
    boxes, scores, groups = candidates(3000, 1e6)
    compared = []

    def spy(boxes: Tensor, *others) -> Tensor:
        compared.append(len(boxes))
        return batched_nms(boxes, *others)

    monkeypatch.setattr(early_nms, "batched_nms", spy)
    assert len(first_survivors(boxes, scores, groups, THRESHOLD, 100)) == 100
    assert compared == [150]
