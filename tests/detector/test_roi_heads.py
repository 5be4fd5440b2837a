"""The second stage: sampling, losses, masks and pooling against torchvision's."""

from __future__ import annotations

import pytest
import torch
from rcnn_twins import (
    CHANNELS,
    CLASSES,
    SIZES,
    SameSampler,
    as_torchvision,
    build_ours,
    build_twins,
    missing_gradients,
    random_boxes,
    random_targets,
)
from torch import Tensor
from torchvision.models.detection import _utils as torchvision_utils
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from data.errors import InputError
from data.target import Targets
from detector.mask_head import crop_masks, mask_logits_of
from detector.proposals import Proposals
from detector.roi_pooling import RoIPooler, to_rois

COUNTS = [(4, 1, 2), (0, 3, 0), (0, 0, 0)]


def random_features() -> dict[str, Tensor]:
    maps = {"0": (24, 40), "1": (12, 20), "2": (6, 10), "3": (3, 5), "pool": (2, 3)}
    return {name: torch.randn(len(SIZES), CHANNELS, *size) for name, size in maps.items()}


def random_proposals() -> list[Tensor]:
    return [random_boxes(count, size) for count, size in zip((60, 20, 35), SIZES, strict=True)]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("samples", [10**6, 16])
@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_losses_equal_torchvisions_on_the_same_samples(kind, samples, counts) -> None:
    torch.manual_seed(0)
    ours, theirs = (twin.roi_heads for twin in build_twins(kind, samples))
    theirs.fg_bg_sampler = SameSampler(ours.fg_bg_sampler)
    features, proposals, targets = random_features(), random_proposals(), random_targets(counts)
    torch.manual_seed(1)
    _, losses = ours(features, proposals, SIZES, targets)
    torch.manual_seed(1)
    _, expected = theirs(features, proposals, list(SIZES), as_torchvision(targets))
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_every_box_loss_equals_torchvisions_over_the_positive_proposals(kind) -> None:
    torch.manual_seed(0)
    everything = {"representation_size": 32, "batch_size_per_image": 10**6}
    ours = build_ours(loss={"box": {"type": kind}}, roi=everything).roi_heads
    _, theirs = (twin.roi_heads for twin in build_twins("faster_rcnn"))
    features, proposals, targets = random_features(), random_proposals(), random_targets((4, 1, 2))
    _, losses = ours(features, proposals, SIZES, targets)
    boxes, matched, labels, _ = theirs.select_training_samples(proposals, as_torchvision(targets))
    objects = torch.cat([targets.boxes_of(i)[m] for i, m in enumerate(matched)])
    labels, count = torch.cat(labels), sum(map(len, labels))
    _, deltas = ours.predict(features, to_rois(boxes))
    positive = labels > 0
    expected = torchvision_utils._box_loss(
        kind,
        torchvision_utils.BoxCoder((10.0, 10.0, 5.0, 5.0)),
        torch.cat(boxes)[positive],
        objects[positive],
        deltas.view(count, -1, 4)[positive, labels[positive]],
    )
    torch.testing.assert_close(losses["loss_box_reg"], expected / count, rtol=1e-5, atol=1e-6)


def test_padding_of_images_with_fewer_proposals_is_never_sampled() -> None:
    torch.manual_seed(0)
    heads = build_ours().roi_heads
    proposals = [random_boxes(50, SIZES[0]), torch.zeros(0, 4), random_boxes(3, SIZES[2])]
    targets = random_targets((2, 0, 1))
    rois = heads.sample(Proposals.of_images(proposals).with_objects(targets), targets)
    assert rois.valid.sum(dim=1).tolist() == [52, 0, 4]
    assert (rois.boxes[rois.valid][:, 2:] > rois.boxes[rois.valid][:, :2]).all()
    assert (rois.classes[~rois.positive] == 0).all()
    assert (rois.classes[rois.positive] >= 1).all()


def test_an_objects_own_box_is_a_positive_of_its_class() -> None:
    heads = build_ours().roi_heads
    targets = random_targets((3, 0, 2))
    none = Proposals.of_images([torch.zeros(0, 4)] * 3)
    rois = heads.sample(none.with_objects(targets), targets)
    for image in range(3):
        positive = rois.positive[image]
        assert positive.sum() == targets.counts[image]
        objects = rois.objects[image, positive]
        assert torch.equal(rois.boxes[image, positive], targets.boxes[image, objects])
        assert torch.equal(rois.classes[image, positive] - 1, targets.labels[image, objects])


def test_no_proposals_and_no_objects_give_losses_of_zero_with_gradients() -> None:
    detector = build_ours("mask_rcnn")
    heads, features = detector.roi_heads, random_features()
    _, losses = heads(features, [torch.zeros(0, 4)] * 3, SIZES, random_targets((0, 0, 0)))
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert missing_gradients(heads) == []


def test_no_proposals_give_no_detections() -> None:
    heads = build_ours("mask_rcnn").eval().roi_heads
    detections, losses = heads(random_features(), [torch.zeros(0, 4)] * 3, SIZES)
    assert losses == {}
    for detection in detections:
        assert {name: tuple(value.shape) for name, value in detection.items()} == {
            "boxes": (0, 4),
            "labels": (0,),
            "scores": (0,),
            "masks": (0, 1, 28, 28),
        }


def test_detections_score_above_the_threshold() -> None:
    heads = build_ours(score_threshold=0.5).eval().roi_heads
    rois = torch.tensor([[0.0, 0, 0, 20, 20], [0, 40, 40, 60, 60]])
    scores = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.75, 0, 0]])
    (found,) = heads.select({}, rois, scores, torch.zeros(2, (CLASSES + 1) * 4), SIZES[:1])
    assert found["scores"].tolist() == [0.75]


def test_masks_are_asked_for_where_there_are_none() -> None:
    heads = build_ours("mask_rcnn").roi_heads
    targets = random_targets((1, 1, 1), masks=False)
    with pytest.raises(InputError, match="mask_rcnn needs masks"):
        heads(random_features(), random_proposals(), SIZES, targets)


def test_cropped_masks_equal_torchvisions() -> None:
    torch.manual_seed(0)
    targets: Targets = random_targets((3, 0, 2))
    boxes = [random_boxes(count, size) for count, size in zip((7, 0, 4), SIZES, strict=True)]
    objects = [
        torch.randint(0, 3, (7,)),
        torch.zeros(0, dtype=torch.long),
        torch.tensor([1, 0, 0, 1]),
    ]
    crops = crop_masks(targets.masks, boxes, objects, 28)
    expected = [
        project_masks_on_boxes(targets.masks[image], boxes[image], objects[image], 28)
        for image in (0, 2)
    ]
    assert torch.equal(crops, torch.cat(expected))


def test_the_mask_of_a_full_object_in_its_own_box_is_full() -> None:
    masks = torch.zeros(1, 40, 50, dtype=torch.uint8)
    masks[0, 10:30, 20:45] = 1
    box = torch.tensor([[20.0, 10.0, 45.0, 30.0]])
    crop = crop_masks([masks], [box], [torch.tensor([0])], 28)
    assert crop.shape == (1, 28, 28)
    assert crop[0, 1:-1, 1:-1].min() > 1 - 1e-6


@pytest.mark.parametrize("rois", [0, 1, 5])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_masks_and_gradients_of_the_own_class_are_those_of_the_whole_predictor(rois, order) -> None:
    torch.manual_seed(0)
    predictor = MaskRCNNPredictor(6, 8, CLASSES + 1)
    features = torch.randn(rois, 6, 14, 14).contiguous(memory_format=order).requires_grad_()
    classes = torch.tensor([1, 2, 3, 1, 2])[:rois]
    logits = mask_logits_of(predictor, features, classes)
    expected = predictor(features)[torch.arange(rois), classes]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    inputs = [features, *predictor.parameters()]
    upstream = torch.randn_like(logits)
    for ours, theirs in zip(
        torch.autograd.grad(logits, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_pooling_equals_torchvisions_on_every_level() -> None:
    torch.manual_seed(0)
    names, levels = ["0", "1", "2", "3"], (2, 3, 4, 5)
    features = {str(i): torch.randn(2, 6, 256 >> i, 192 >> i) for i in range(4)}
    boxes = [random_boxes(40, (1024, 768)) * scale for scale in (1.0, 0.1)]
    ours = RoIPooler(names, levels, 7, 2)
    theirs = MultiScaleRoIAlign(names, 7, 2)
    assert len(ours.choose_maps(torch.cat(boxes)).unique()) == 4
    expected = theirs(features, boxes, [(1024, 768)] * 2)
    torch.testing.assert_close(ours(features, to_rois(boxes)), expected)


def test_boxes_at_the_border_of_two_levels_are_pooled_from_torchvisions() -> None:
    sides = torch.tensor([111.9999, 112, 223.99995, 224, 447.9999])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    pooler = RoIPooler(["0", "1", "2", "3"], (2, 3, 4, 5), 7, 2)
    assert torch.equal(pooler.choose_maps(boxes), LevelMapper(2, 5)([boxes]))


def test_pooling_knows_the_strides_of_images_smaller_than_their_padding() -> None:
    # A constant slope: what is pooled at a place must be the place, whatever the padding.
    x = torch.arange(16.0).expand(1, 1, 16, 16) * 4 + 2
    pooler = RoIPooler(["0"], (2,), 1, 2)
    pooled = pooler({"0": x}, torch.tensor([[0.0, 12.0, 8.0, 28.0, 24.0]]))
    torch.testing.assert_close(pooled.flatten(), torch.tensor([22.0]))
