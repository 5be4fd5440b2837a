"""Detections in the original image, against torchvision's own way there."""

from __future__ import annotations

import pytest
import torch
from rcnn_twins import random_boxes
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from detector.postprocessing import paste_masks, resize_detections


def fractional_boxes(count: int, size_hw: tuple[int, int]) -> Tensor:
    """Boxes of any size inside the image, some over the whole of it, some thinner than a pixel."""
    boxes = random_boxes(count, size_hw) + torch.rand(count, 4)
    height, width = size_hw
    if count > 2:
        boxes[0] = torch.tensor([0.0, 0.0, width, height])
        boxes[1, 2:] = boxes[1, :2] + 0.25
        boxes[2] = torch.tensor([width - 0.5, height - 0.5, width, height])
    limit = torch.tensor([width, height, width, height])
    return torch.minimum(boxes, limit)


@pytest.mark.parametrize("size_hw", [(37, 51), (256, 256), (1, 1), (300, 20)])
@pytest.mark.parametrize("count", [0, 1, 100])
def test_pasted_masks_equal_torchvisions_above_one_half(size_hw, count) -> None:
    torch.manual_seed(count)
    masks = torch.rand(count, 1, 28, 28)
    boxes = fractional_boxes(count, size_hw) if min(size_hw) > 8 else torch.rand(count, 4)
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), boxes[:, 2:]], dim=1)
    pasted = paste_masks(masks, boxes, size_hw)
    expected = paste_masks_in_image(masks, boxes, size_hw)[:, 0] > 0.5
    assert pasted.dtype == torch.bool
    assert torch.equal(pasted, expected)


def test_a_box_outside_the_image_leaves_nothing_there() -> None:
    boxes = torch.tensor([[-40.0, -40.0, -20.0, -20.0], [90.0, 5.0, 120.0, 20.0]])
    assert not paste_masks(torch.ones(2, 1, 28, 28), boxes, (60, 60)).any()


def test_a_box_over_the_border_shows_its_inner_part() -> None:
    boxes = torch.tensor([[-28.0, 0.0, 28.0, 56.0]])
    mask = torch.zeros(1, 1, 28, 28)
    mask[..., 14:] = 1
    pasted = paste_masks(mask, boxes, (56, 56))[0]
    assert pasted[4:52, 2:26].all()
    assert not pasted[:, 30:].any()


def test_resized_boxes_equal_torchvisions_and_come_back() -> None:
    torch.manual_seed(0)
    detections = {"boxes": random_boxes(20, (600, 800)), "scores": torch.rand(20)}
    resized = resize_detections(detections, (600, 800), (300, 500))
    expected = resize_boxes(detections["boxes"], (600, 800), (300, 500))
    torch.testing.assert_close(resized["boxes"], expected)
    assert resized["scores"] is detections["scores"]
    back = resize_detections(resized, (300, 500), (600, 800))
    torch.testing.assert_close(back["boxes"], detections["boxes"])


def test_no_detections_stay_none() -> None:
    resized = resize_detections({"boxes": torch.zeros(0, 4)}, (10, 20), (30, 40))
    assert resized["boxes"].shape == (0, 4)
