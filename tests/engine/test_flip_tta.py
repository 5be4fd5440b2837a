"""The test-time flip: two looks, one list of detections in the image's own coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from engine.config import parse_config
from engine.evaluation.flip_tta import FlipTTA, mirror_back, with_flip


class BrightestColumn(nn.Module):
    """Finds the brightest column of an image, with a mask of its left half; twice as sure of
    columns in the left half of what it is shown."""

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return [self.find(image) for image in images]

    def find(self, image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[1:]
        column = int(image.sum(dim=(0, 1)).argmax())
        mask = torch.zeros(1, 1, 4, 4)
        mask[..., :2] = 1
        return {
            "boxes": torch.tensor([[float(column), 0.0, column + 1.0, float(height)]]),
            "labels": torch.tensor([3]),
            "scores": torch.tensor([0.8 if column < width / 2 else 0.4]),
            "masks": mask,
        }


def image(column: int, width: int) -> Tensor:
    pixels = torch.zeros(3, 5, width, dtype=torch.uint8)
    pixels[:, :, column] = 200
    return pixels


def test_what_both_looks_find_counts_once_with_the_higher_score() -> None:
    detector = FlipTTA(BrightestColumn(), nms_threshold=0.5, most=100)
    for column, width in ((2, 11), (9, 11), (6, 8)):
        (found,) = detector([image(column, width)])
        assert found["boxes"].tolist() == [[column, 0, column + 1, 5]]
        assert found["scores"].tolist() == [torch.tensor(0.8).item()]
        assert found["labels"].tolist() == [3]


def test_masks_are_mirrored_with_their_boxes() -> None:
    detector = FlipTTA(BrightestColumn(), nms_threshold=0.5, most=100)
    (left,), (right,) = detector([image(1, 10)]), detector([image(8, 10)])
    assert left["masks"][0, 0, 0].tolist() == [1, 1, 0, 0]  # kept from the straight look
    assert right["masks"][0, 0, 0].tolist() == [0, 0, 1, 1]  # from the mirrored one, mirrored back


def test_detections_of_different_places_are_all_kept_up_to_the_limit() -> None:
    class Left(BrightestColumn):
        def find(self, image: Tensor) -> dict[str, Tensor]:
            return {**super().find(image), "boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]])}

    both = FlipTTA(Left(), nms_threshold=0.5, most=100)([image(1, 10)])[0]
    assert sorted(both["boxes"].tolist()) == [[0, 0, 2, 2], [8, 0, 10, 2]]
    assert len(FlipTTA(Left(), nms_threshold=0.5, most=1)([image(1, 10)])[0]["boxes"]) == 1


def test_mirroring_back_twice_changes_nothing() -> None:
    found = BrightestColumn().find(image(3, 10))
    twice = mirror_back(mirror_back(found, 10), 10)
    for name, values in found.items():
        assert torch.equal(twice[name], values)


@pytest.mark.parametrize("training", [False, True])
def test_a_detector_that_is_to_look_twice_stays_in_its_mode(training: bool) -> None:
    """Else a scoring, which leaves a detector as it came, would leave it in another one."""
    detector = BrightestColumn().train(training)
    view = with_flip(detector, parse_config({"evaluate": {"flip": True}}, "test"))
    assert view.training == detector.training == training
