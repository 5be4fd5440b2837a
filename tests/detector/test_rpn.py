"""The proposal network: proposals and losses against torchvision's, every box loss, no objects."""

from __future__ import annotations

import pytest
import torch
from rcnn_twins import (
    CHANNELS,
    EVERYTHING,
    SIZES,
    SameSampler,
    as_torchvision,
    random_targets,
)
from torch import Tensor
from torchvision.models.detection import _utils as torchvision_utils
from torchvision.models.detection import rpn as torchvision_rpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from data.target import Targets
from detector.anchors import build_anchors
from detector.config import AnchorConfig, RPNConfig
from detector.matching import match_anchors
from detector.rpn import RegionProposalNetwork, RPNHead
from losses.anchor_labels import IGNORED
from losses.config import BoxLossConfig

LEVELS = (2, 3, 4, 5, 6)
PADDED = (96, 160)
TORCHVISION_LOSS = BoxLossConfig(type="smooth_l1", beta=1 / 9)


def build(loss: BoxLossConfig = TORCHVISION_LOSS, **options) -> RegionProposalNetwork:
    anchors = build_anchors(AnchorConfig(), LEVELS, 8.0, 1)
    network = RegionProposalNetwork(anchors, RPNHead(CHANNELS, 3), RPNConfig(**options), loss)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network


def build_torchvision(ours: RegionProposalNetwork, samples: int = EVERYTHING):
    sizes = tuple((2**exponent,) for exponent in range(5, 10))
    theirs = torchvision_rpn.RegionProposalNetwork(
        AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        torchvision_rpn.RPNHead(CHANNELS, 3),
        0.7,
        0.3,
        samples,
        0.5,
        {"training": 200, "testing": 100},
        {"training": 150, "testing": 50},
        0.7,
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs


def random_features() -> dict[str, Tensor]:
    torch.manual_seed(0)
    maps = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
    return {str(i): torch.randn(len(SIZES), CHANNELS, *size) for i, size in enumerate(maps)}


def image_list() -> ImageList:
    return ImageList(torch.zeros(len(SIZES), 3, *PADDED), list(SIZES))


TOP_N = {
    "pre_nms_top_n_train": 200,
    "pre_nms_top_n_test": 100,
    "post_nms_top_n_train": 150,
    "post_nms_top_n_test": 50,
}


@pytest.mark.parametrize("training", [True, False])
def test_proposals_equal_torchvisions(training) -> None:
    features, ours = random_features(), build(**TOP_N)
    theirs = build_torchvision(ours).train(training)
    proposals, _ = ours.train(training)(features, PADDED, SIZES)
    theirs.training = False  # without targets
    theirs._pre_nms_top_n["testing"] = ours.pre_nms_top_n()
    theirs._post_nms_top_n["testing"] = ours.post_nms_top_n()
    expected, _ = theirs(image_list(), features)
    assert [len(p) for p in proposals] == [len(p) for p in expected]
    for ours_of_image, theirs_of_image in zip(proposals, expected, strict=True):
        torch.testing.assert_close(ours_of_image, theirs_of_image)
        assert not ours_of_image.requires_grad


@pytest.mark.parametrize("counts", [(5, 1, 0), (0, 0, 0), (40, 2, 3)], ids=str)
@pytest.mark.parametrize("samples", [EVERYTHING, 64])
def test_losses_equal_torchvisions_on_the_same_samples(counts, samples) -> None:
    features, ours = random_features(), build(batch_size_per_image=samples)
    theirs = build_torchvision(ours)
    theirs.fg_bg_sampler = SameSampler(ours.fg_bg_sampler)
    targets = random_targets(counts)
    torch.manual_seed(1)
    _, losses = ours(features, PADDED, SIZES, targets)
    torch.manual_seed(1)
    _, expected = theirs(image_list(), features, as_torchvision(targets))
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_every_box_loss_equals_torchvisions_over_the_positive_anchors(kind) -> None:
    ours = build(BoxLossConfig(type=kind), batch_size_per_image=EVERYTHING)
    theirs = build_torchvision(ours)
    targets = random_targets((5, 1, 0))
    anchors = torch.cat(ours.anchor_generator.of_pyramid(PADDED, list(random_features().values())))
    deltas = torch.randn(len(SIZES), len(anchors), 4) * 0.2
    losses = ours.losses(torch.zeros(deltas.shape[:2]), deltas, anchors, targets)
    labels, boxes = theirs.assign_targets_to_anchors([anchors] * 3, as_torchvision(targets))
    positive = torch.stack(labels) == 1
    coder = torchvision_utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    expected = torchvision_utils._box_loss(
        kind,
        coder,
        anchors.expand(3, -1, 4)[positive],
        torch.stack(boxes)[positive],
        deltas[positive],
    )
    sampled = (torch.stack(labels) >= 0).sum()
    torch.testing.assert_close(losses["loss_rpn_box_reg"], expected / sampled, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["l1", "ciou"])
@pytest.mark.parametrize("counts", [(0, 0, 0), (2, 0, 1)], ids=str)
def test_every_parameter_gets_a_gradient_with_and_without_objects(kind, counts) -> None:
    ours = build(BoxLossConfig(type=kind))
    _, losses = ours(random_features(), PADDED, SIZES, random_targets(counts))
    sum(losses.values()).backward()
    for parameter in ours.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    if sum(counts) == 0:
        assert losses["loss_rpn_box_reg"] == 0


def test_every_sampled_anchor_weighs_the_same_in_whichever_image_it_is() -> None:
    ours = build(batch_size_per_image=EVERYTHING)
    targets = random_targets((3, 0, 2))
    anchors = torch.cat(ours.anchor_generator.of_pyramid(PADDED, list(random_features().values())))
    objectness, deltas = torch.randn(3, len(anchors)), torch.randn(3, len(anchors), 4)
    sampled = (match_anchors(anchors, targets, 0.7, 0.3, True) != IGNORED).sum(dim=1)
    total = {"loss_objectness": 0.0, "loss_rpn_box_reg": 0.0}
    for image, count in enumerate(sampled):
        rows = slice(image, image + 1)
        one = Targets(targets.boxes[rows], targets.labels[rows], targets.counts[rows])
        for name, loss in ours.losses(objectness[rows], deltas[rows], anchors, one).items():
            total[name] += loss * count / sampled.sum()
    for name, loss in ours.losses(objectness, deltas, anchors, targets).items():
        torch.testing.assert_close(loss, total[name])


def test_proposals_follow_the_numbers_of_the_mode() -> None:
    ours = build(**{**TOP_N, "post_nms_top_n_train": 90})
    features = random_features()
    trained, _ = ours.train()(features, PADDED, SIZES)
    tested, _ = ours.eval()(features, PADDED, SIZES)
    assert max(map(len, trained)) == 90
    assert max(map(len, tested)) == 50


def test_width_initialization_keeps_the_size_of_the_signal_in_a_narrow_head() -> None:
    torch.manual_seed(0)
    signal = torch.randn(1, 64, 32, 32).relu()
    ratio = {
        init: RPNHead(64, 3, 2, init).conv(signal).std() / signal.std()
        for init in ("torchvision", "width")
    }
    assert 0.5 < ratio["width"] < 2
    assert ratio["torchvision"] < 0.1
