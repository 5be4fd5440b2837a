"""Parts of a detector rest in the epochs that are named, and only in those."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from data.errors import InputError
from detector.build import build_detector
from detector.config import DetectorConfig
from engine.freezing import Freezing
from losses.config import LossConfig

NARROW = {
    "backbone": "resnet18",
    "weights": "none",
    "norm": "batch",
    "fpn_channels": 8,
    "roi": {"representation_size": 8},
}


class Detector(nn.Module):
    """A backbone with a stage that is always frozen, and a head."""

    def __init__(self) -> None:
        super().__init__()
        stages = {
            "stem": nn.Linear(2, 2),
            "body": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
        }
        self.backbone = nn.ModuleDict(stages)
        self.head = nn.Linear(2, 1)
        self.backbone["stem"].requires_grad_(False)


def trained(detector: nn.Module) -> set[str]:
    return {name for name, value in detector.named_parameters() if value.requires_grad}


def test_parts_rest_in_their_epochs_and_train_in_the_others() -> None:
    detector = Detector()
    body = {f"backbone.body.{name}" for name, _ in detector.backbone["body"].named_parameters()}
    head = {"head.weight", "head.bias"}
    freezing = Freezing(detector, {"backbone": (0, 2), "head": (3, 4)})
    seen = []
    for epoch in range(5):
        detector.train()
        freezing.apply(epoch)
        seen.append(trained(detector))
    assert seen == [head, head, body | head, body, body | head]


def test_statistics_of_a_resting_part_do_not_move() -> None:
    detector = Detector()
    freezing = Freezing(detector, {"backbone.body": (0, 1)})
    moved = []
    for epoch in range(2):
        detector.train()
        freezing.apply(epoch)
        before = detector.backbone["body"][1].running_mean.clone()
        detector.backbone["body"](torch.ones(4, 2))
        moved.append(not torch.equal(before, detector.backbone["body"][1].running_mean))
    assert moved == [False, True]


def test_a_resting_part_works_as_in_training() -> None:
    detector = build_detector(DetectorConfig(type="faster_rcnn", **NARROW), LossConfig(), 2)
    freezing = Freezing(detector, {"rpn": (0, 1)})
    detector.train()
    freezing.apply(0)
    assert detector.rpn.training  # it proposes as many as ever
    assert not any(value.requires_grad for value in detector.rpn.parameters())


def test_what_was_recorded_is_forgotten_when_other_parts_rest() -> None:
    class Graphs:
        forgotten = 0

        def forget(self) -> None:
            self.forgotten += 1

    detector = Detector()
    detector.graphs = graphs = Graphs()
    freezing = Freezing(detector, {"head": (1, 3)})
    counts = []
    for epoch in range(5):
        freezing.apply(epoch)
        counts.append(graphs.forgotten)
    assert counts == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ({"neck": (0, 1)}, "no module 'neck'; choose from backbone, head, backbone.stem"),
        ({"backbone.stem": (0, 1)}, "'backbone.stem' has no trainable parameters"),
        ({"backbone": (0, 3), "head": (2, 4)}, "nothing would be trained in epoch 2"),
    ],
)
def test_impossible_spans_are_refused(spans: dict[str, tuple[int, int]], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Freezing(Detector(), spans)
