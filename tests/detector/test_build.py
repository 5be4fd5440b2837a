"""Building detectors from options: keys and shapes of torchvision, every choice, clear errors.

And what holds for a training step of every kind.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import faster_rcnn, retinanet
from torchvision.models.detection.image_list import ImageList

from data.errors import InputError
from data.target import pad_targets
from detector.anchors import build_anchors, same_anchors
from detector.build import Detector, build_detector
from detector.config import AnchorConfig, DetectorConfig
from losses.config import LossConfig

BUILDERS = {
    "retinanet": detection.retinanet_resnet50_fpn,
    "faster_rcnn": detection.fasterrcnn_resnet50_fpn,
    "mask_rcnn": detection.maskrcnn_resnet50_fpn,
}


def build(num_classes: int = 2, **options: object) -> Detector:
    config = DetectorConfig.model_validate(options)
    return build_detector(config, LossConfig(), num_classes)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kind", BUILDERS)
def test_keys_and_shapes_are_torchvisions(kind: str) -> None:
    with torch.device("meta"):
        rows = 91
        expected = BUILDERS[kind](weights=None, weights_backbone=None, num_classes=rows)
        background = 0 if kind == "retinanet" else 1
        ours = build(rows - background, type=kind, norm="batch")
    assert shapes(ours) == shapes(expected)


def test_keys_and_shapes_are_those_of_torchvisions_faster_rcnn_on_mobilenet() -> None:
    with torch.device("meta"):
        expected = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None)
        ours = build(90, type="faster_rcnn", backbone="mobilenet_v3_large", norm="batch")
    assert shapes(ours) == shapes(expected)


def test_keys_and_shapes_are_those_of_torchvisions_second_retinanet() -> None:
    with torch.device("meta"):
        expected = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)
        options = {"p6_from": "c5", "head_norm": "group"}
        ours = build(91, type="retinanet", norm="batch", retinanet=options)
    assert shapes(ours) == shapes(expected)


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("norm", ["frozen", "frozen_stats", "batch", "group", "sync"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "mobilenet_v3_large"])
def test_every_kind_builds_with_every_norm(kind: str, norm: str, backbone: str) -> None:
    with torch.device("meta"):
        detector = build(type=kind, norm=norm, backbone=backbone, fpn_channels=64)
    assert detector.training
    assert detector.num_classes == 2
    assert {name for pair in detector.weighting_pairs.values() for name in pair} <= set(
        detector.loss_names
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"type": "mask_rcnn", "backbone": "mobilenet_v3_large", "norm_eps": 0.0},
        {"levels": [2, 3, 4, 5], "anchors": {"sizes": [8, 16, 32, 64]}},
        {"levels": [3, 4, 5], "anchors": {"sizes": [[8, 12], [24, 32], [48, 64]]}},
    ],
)
def test_options_written_out_and_read_again_are_the_same(options: dict[str, object]) -> None:
    config = DetectorConfig.model_validate(options)
    assert DetectorConfig.model_validate(config.model_dump(mode="json")) == config


def test_default_anchors_are_torchvisions() -> None:
    ours = build_anchors(AnchorConfig(), (3, 4, 5, 6, 7), 4, 3)
    assert ours.sizes == retinanet._default_anchorgen().sizes
    ours = build_anchors(AnchorConfig(), (2, 3, 4, 5, 6), 8, 1)
    assert ours.sizes == faster_rcnn._default_anchorgen().sizes


def test_anchors_equal_torchvisions_on_a_pyramid_of_odd_sizes() -> None:
    maps = [torch.zeros(1, 1, *size) for size in ((20, 28), (10, 14), (5, 7), (3, 4), (2, 2))]
    images = ImageList(torch.zeros(2, 3, 160, 224), [(150, 220), (160, 200)])
    ours = build_anchors(AnchorConfig(), (3, 4, 5, 6, 7), 4, 3)(images, maps)
    for anchors, expected in zip(ours, retinanet._default_anchorgen()(images, maps), strict=True):
        assert torch.equal(anchors, expected)


def test_exact_anchors_have_the_papers_areas_ratios_and_strides() -> None:
    anchors = build_anchors(AnchorConfig(rounded=False), (3, 4, 5, 6, 7), 4, 3)
    maps = [torch.zeros(1, 1, 6, 5)] * 5
    for level, boxes in zip((3, 4, 5, 6, 7), anchors.of_pyramid((100, 100), maps), strict=True):
        boxes = boxes.view(6, 5, 9, 4)
        widths, heights = (boxes[..., 2:] - boxes[..., :2]).unbind(-1)
        octaves = (widths * heights).sqrt()[0, 0].view(3, 3).log2() - level - 2
        torch.testing.assert_close(
            octaves, torch.tensor([[0, 1 / 3, 2 / 3]] * 3), atol=1e-5, rtol=0
        )
        ratios = (heights / widths)[0, 0].view(3, 3)
        torch.testing.assert_close(ratios, torch.tensor([[0.5], [1.0], [2.0]]).expand(3, 3))
        centers = (boxes[..., 2:] + boxes[..., :2])[:, :, 0] / 2
        assert centers[2, 3].tolist() == [3 * 2**level, 2 * 2**level]


def test_anchors_stay_float32_where_features_are_not() -> None:
    anchors = build_anchors(AnchorConfig(), (3, 4, 5, 6, 7), 4, 3)
    maps = [torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)] * 5
    assert {boxes.dtype for boxes in anchors.of_pyramid((32, 32), maps)} == {torch.float32}


def test_exact_anchors_differ_from_rounded_ones_of_the_same_size() -> None:
    squares = {"sizes": [64] * 5, "ratios": [1.0], "scales_per_octave": 1}
    exact, rounded = (
        DetectorConfig.model_validate({"anchors": {**squares, "rounded": value}})
        for value in (False, True)
    )
    assert same_anchors(exact, exact)
    assert not same_anchors(exact, rounded)  # their strides differ


def test_anchors_that_round_to_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"detector\.anchors"):
        build(backbone="resnet18", levels=[5], anchors={"sizes": [1], "ratios": [16]})


def test_rounding_is_not_blamed_where_there_is_none() -> None:
    exact = {"sizes": [1], "ratios": [1e300], "rounded": False}
    with pytest.raises(InputError, match=r"choose ratios closer to 1$"):
        build(backbone="resnet18", levels=[5], anchors=exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [3, 5]}, "consecutive"),
        ({"levels": [3, 4]}, "consecutive"),
        ({"levels": []}, "consecutive"),
        ({"type": "faster_rcnn", "levels": [3, 4, 5, 6, 7]}, "the last from 5 to 6"),
        ({"levels": [4, 5], "anchors": {"sizes": [[8, 12], 24]}}, "same number of sizes"),
        ({"anchors": {"sizes": [32, 64]}}, "2 entries for the 5 pyramid levels"),
        ({"anchors": {"sizes": [32, 64, 0, 256, 512]}}, "greater than 0"),
        ({"retinanet": {"background_iou": 0.6}}, "above foreground_iou"),
        ({"score_threshold": 1.5}, "less than or equal to 1"),
        ({"score_threshold": float("nan")}, "finite"),
        ({"backbone": "resnet51"}, "resnet50"),
        ({"norm": "batch", "norm_eps": 0}, "norm_eps: 0 can make norm: batch divide by zero"),
        ({"norms": "batch"}, "Extra inputs"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DetectorConfig.model_validate(options)


def test_numbers_may_be_strings_as_yaml_reads_1e_4() -> None:
    assert DetectorConfig.model_validate({"norm_eps": "1e-4"}).norm_eps == 1e-4


def test_a_detector_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        build(0, backbone="resnet18")


def test_building_is_reproducible_from_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(backbone="resnet18", fpn_channels=8).state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def small_step(kind: str) -> tuple[Detector, dict[str, torch.Tensor]]:
    """A detector and its losses of two images with an object each."""
    torch.manual_seed(0)
    detector = build(
        type=kind, backbone="resnet18", norm="batch", trainable_stages=5, fpn_channels=16
    )
    boxes, masks = torch.tensor([[5.0, 5, 60, 60]]), torch.ones(1, 96, 96, dtype=torch.uint8)
    targets = pad_targets([boxes] * 2, [torch.tensor([1])] * 2, [masks] * 2)
    return detector, detector([torch.rand(3, 96, 96)] * 2, targets)


@pytest.mark.parametrize("kind", BUILDERS)
def test_gradients_lie_in_memory_as_their_parameters_do(kind: str) -> None:
    """Where they do not, DDP copies them, and warns of it in every run."""
    detector, losses = small_step(kind)
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize("kind", BUILDERS)
def test_images_and_targets_that_do_not_belong_together_are_refused(kind: str) -> None:
    detector = build(type=kind, backbone="resnet18", fpn_channels=16)
    image, box = torch.rand(3, 64, 64), torch.tensor([[5.0, 5, 60, 60]])
    targets = pad_targets([box], [torch.tensor([1])])
    with pytest.raises(
        ValueError, match=r"needs targets of type Targets, got NoneType.*pad_targets"
    ):
        detector([image])
    with pytest.raises(ValueError, match=r"needs targets of type Targets, got list"):
        detector([image], [{"boxes": box, "labels": torch.tensor([1])}])
    with pytest.raises(ValueError, match="targets are of 1 images, but there are 2"):
        detector([image, image], targets)
    with pytest.raises(ValueError, match="at least one image"):
        detector.eval()([])


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.usefixtures("four_threads")
def test_a_step_on_several_threads_gives_the_same_bits_again(kind: str) -> None:
    """Wide enough, and with enough objects, that every sum of gradients is shared out."""
    torch.manual_seed(0)
    detector = build(
        type=kind, backbone="resnet18", norm="batch", trainable_stages=5, fpn_channels=64,
        roi={"representation_size": 32},
        mask={"pool_size": 4, "channels": [16], "predictor_channels": 256},
    )  # fmt: skip
    images = [torch.randint(0, 256, (3, 128, 192), dtype=torch.uint8) for _ in range(2)]
    corners = torch.rand(80, 2) * torch.tensor([140.0, 80.0])
    boxes = torch.cat([corners, corners + 10 + torch.rand(80, 2) * 38], dim=1)
    masks = [torch.ones(80, 128, 192, dtype=torch.uint8)] * 2 if kind == "mask_rcnn" else None
    targets = pad_targets([boxes] * 2, [torch.arange(80) % 2] * 2, masks)
    steps = []
    for _ in range(3):
        torch.manual_seed(1)
        detector.zero_grad()
        sum(detector(images, targets).values()).backward()
        steps.append({name: value.grad.clone() for name, value in detector.named_parameters()})
    assert [
        name
        for name, gradient in steps[0].items()
        if not all(torch.equal(gradient, other[name]) for other in steps[1:])
    ] == []
