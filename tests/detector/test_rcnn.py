"""Faster and Mask R-CNN as a whole, against torchvision's detectors with the same weights."""

from __future__ import annotations

import pytest
import torch
from rcnn_twins import (
    CHANNELS,
    CLASSES,
    NARROW,
    SIZES,
    SameSampler,
    as_torchvision,
    build_ours,
    build_twins,
    missing_gradients,
    normalized,
    random_images,
    random_targets,
)
from torch import Tensor
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
)

from detector.backbone import build_backbone
from detector.config import DetectorConfig
from detector.postprocessing import paste_masks
from detector.rcnn import FasterRCNN, MaskRCNN
from losses.config import LossConfig

KINDS = ["faster_rcnn", "mask_rcnn"]


@pytest.mark.parametrize("samples", [10**6, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_training_losses_equal_torchvisions(kind, samples) -> None:
    torch.manual_seed(0)
    ours, theirs = build_twins(kind, samples)
    theirs.rpn.fg_bg_sampler = SameSampler(ours.rpn.fg_bg_sampler)
    theirs.roi_heads.fg_bg_sampler = SameSampler(ours.roi_heads.fg_bg_sampler)
    theirs.transform._skip_resize = True
    images, targets = random_images(), random_targets((6, 1, 0))
    torch.manual_seed(1)
    losses = ours(images, targets)
    torch.manual_seed(1)
    expected = theirs(normalized(ours, images), as_torchvision(targets))
    assert tuple(losses) == ours.loss_names
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("losses", "last"),
    [
        (("loss_objectness", "loss_rpn_box_reg"), ["rpn.head.conv.0.0"]),
        (("loss_classifier", "loss_box_reg"), ["roi_heads.box_head.fc7"]),
        (
            ("loss_objectness", "loss_box_reg"),
            [f"backbone.fpn.layer_blocks.{level}.0" for level in range(4)],
        ),
    ],
)
def test_the_last_weights_that_losses_share_are_known(losses, last) -> None:
    torch.manual_seed(0)
    detector = build_ours()
    values = detector(random_images(), random_targets((6, 1, 0)))
    shared = detector.last_shared_weights(losses)
    names = {parameter: name for name, parameter in detector.named_parameters()}
    assert [names[weight].removesuffix(".weight") for weight in shared] == last
    for name in losses:
        gradients = torch.autograd.grad(values[name], shared, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_torchvisions(kind) -> None:
    torch.manual_seed(0)
    ours, theirs = build_twins(kind)
    theirs.transform._skip_resize = True
    images, targets = random_images(SIZES[:2]), random_targets((6, 1), SIZES[:2])
    sum(ours(images, targets).values()).backward()
    sum(theirs(normalized(ours, images), as_torchvision(targets)).values()).backward()
    for (name, ours_of), theirs_of in zip(
        ours.named_parameters(), theirs.parameters(), strict=True
    ):
        scale = theirs_of.grad.abs().max().item()
        torch.testing.assert_close(
            ours_of.grad, theirs_of.grad, rtol=1e-3, atol=1e-3 * scale + 1e-6, msg=name
        )


def by_place(detection: dict[str, Tensor]) -> dict[str, Tensor]:
    """In an order that does not hang on the rounding of almost equal scores."""
    order = detection["boxes"].sum(dim=1).argsort()
    return {name: values[order] for name, values in detection.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_detections_equal_torchvisions(kind) -> None:
    torch.manual_seed(0)
    ours, theirs = (twin.eval() for twin in build_twins(kind))
    images = random_images()
    with torch.no_grad():
        detections = ours(images)
        expected = theirs(normalized(ours, images))
    for detection, other, size in zip(
        map(by_place, detections), map(by_place, expected), SIZES, strict=True
    ):
        assert len(detection["boxes"]) > 20
        assert detection["boxes"].dtype == torch.float32
        assert len(detection["labels"].unique()) > 1
        assert torch.equal(detection["labels"], other["labels"] - 1)
        torch.testing.assert_close(detection["scores"], other["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(detection["boxes"], other["boxes"], rtol=1e-4, atol=1e-3)
        if kind == "mask_rcnn":
            assert detection["masks"].shape[1:] == (1, 28, 28)
            pasted = paste_masks(detection["masks"], detection["boxes"], size)
            differing = (pasted != (other["masks"][:, 0] > 0.5)).float().mean()
            assert differing < 1e-4  # a probability of one half, up to rounding


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_images_without_objects_give_finite_losses_and_all_gradients(kind, images) -> None:
    torch.manual_seed(0)
    detector = build_ours(kind)
    sizes = SIZES[:images]
    losses = detector(random_images(sizes), random_targets((0,) * images, sizes))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == 0
    assert missing_gradients(detector) == []


@pytest.mark.parametrize("box", ["l1", "smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_box_loss_trains_every_parameter_beside_empty_images(kind, box) -> None:
    torch.manual_seed(0)
    detector = build_ours(kind, loss={"box": {"type": box}, "rpn_box": {"type": box}})
    losses = detector(random_images(), random_targets((0, 3, 0)))
    sum(losses.values()).backward()
    assert tuple(losses) == detector.loss_names
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values())
    assert missing_gradients(detector) == []
    assert losses["loss_box_reg"] > 0
    for parameter in detector.roi_heads.parameters():
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_are_trained_on_and_detected_in(kind) -> None:
    torch.manual_seed(0)
    detector = build_ours(kind)
    sizes = ((64, 64), (33, 70), (97, 40))
    losses = detector(random_images(sizes), random_targets((2, 1, 1), sizes))
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        detections = detector.eval()(random_images(sizes))
    for detection, (height, width) in zip(detections, sizes, strict=True):
        assert (detection["boxes"] >= 0).all()
        assert (detection["boxes"][:, 2] <= width).all()
        assert (detection["boxes"][:, 3] <= height).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_gives_float32_losses_and_detections(kind) -> None:
    torch.manual_seed(0)
    detector = build_ours(kind)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(random_images(), random_targets((2, 0, 1)))
        sum(losses.values()).backward()
        with torch.no_grad():
            detections = detector.eval()(random_images())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert missing_gradients(detector) == []
    floats = {v.dtype for d in detections for name, v in d.items() if name != "labels"}
    assert floats == {torch.float32}


def test_channels_last_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = build_ours("mask_rcnn")
    other = build_ours("mask_rcnn", channels_last=True)
    other.load_state_dict(plain.state_dict())
    other.to(memory_format=torch.channels_last)
    images, targets = random_images(), random_targets((2, 0, 3))
    torch.manual_seed(1)
    expected = plain(images, targets)
    torch.manual_seed(1)
    for name, loss in other(images, targets).items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-4)


def test_training_without_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="targets"):
        build_ours()(random_images())


def test_targets_are_not_read_in_evaluation_mode() -> None:
    detector = build_ours().eval()
    with torch.no_grad():
        assert isinstance(detector(random_images(), random_targets((1, 0, 0))), list)


@pytest.mark.parametrize(
    ("kind", "backbone", "reference"),
    [
        ("faster_rcnn", "resnet50", fasterrcnn_resnet50_fpn),
        ("mask_rcnn", "resnet50", maskrcnn_resnet50_fpn),
        ("faster_rcnn", "mobilenet_v3_large", fasterrcnn_mobilenet_v3_large_fpn),
    ],
)
def test_parameters_are_those_of_torchvisions_published_detectors(
    kind, backbone, reference
) -> None:
    with torch.device("meta"):
        expected = reference(weights=None, weights_backbone=None, num_classes=91).state_dict()
    config = DetectorConfig(type=kind, backbone=backbone)
    detector = FasterRCNN if kind == "faster_rcnn" else MaskRCNN
    network = build_backbone(
        config.backbone, levels=config.pyramid_levels, coarse="max_pool", norm="batch"
    )
    state = detector(network, config, LossConfig(), 90).state_dict()
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in expected.items()
    }


def test_the_widths_of_the_heads_follow_the_config() -> None:
    detector = build_ours("mask_rcnn", head_init="width")
    heads = detector.roi_heads
    assert heads.box_head.fc6.weight.shape == (32, CHANNELS * 49)
    assert heads.box_predictor.cls_score.weight.shape == (CLASSES + 1, 32)
    assert [layer[0].out_channels for layer in heads.mask_head] == list(NARROW["mask"]["channels"])
    assert heads.mask_predictor.mask_fcn_logits.weight.shape[:2] == (CLASSES + 1, 8)
    # He: the variance of a 3x3 layer is 2 / (9 * its inputs), far above torchvision's 0.01.
    std = detector.rpn.head.conv[0][0].weight.std().item()
    assert abs(std - (2 / (9 * CHANNELS)) ** 0.5) < 0.01


def test_the_paired_losses_are_losses_of_the_detector() -> None:
    for detector in (FasterRCNN, MaskRCNN):
        assert set(detector.weighting_pairs["rpn"]) <= set(detector.loss_names)
