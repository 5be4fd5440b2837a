"""RetinaNet: torchvision's losses and detections, for any box loss, also without objects."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead as TorchvisionRetinaNetHead

from data.target import Targets, pad_targets
from detector import retinanet
from detector.build import build_detector
from detector.config import DetectorConfig
from detector.matching import match_anchors, match_batch
from detector.norm import group_norm
from detector.retinanet import RetinaNet
from detector.retinanet_head import RetinaNetHead, Tower
from losses.config import LossConfig
from losses.focal_sums import focal_sums

CLASSES = 3
SIZES = ((64, 96), (80, 70))


def make_config(**changes: object) -> DetectorConfig:
    return DetectorConfig.model_validate(
        {
            "backbone": "resnet18",
            "fpn_channels": 16,
            "norm": "batch",
            "trainable_stages": 5,
            "head_init": "width",
            "anchors": {"sizes": [16, 32, 64, 96, 128]},
            "channels_last": False,  # torchvision's order: rounding is then the same too
            **changes,
        }
    )


def make_detector(
    config: DetectorConfig | None = None, box: str = "l1", normalizer: str = "image"
) -> RetinaNet:
    torch.manual_seed(0)
    loss = LossConfig.model_validate({"box": {"type": box}, "normalizer": normalizer})
    detector = build_detector(config or make_config(), loss, CLASSES)
    assert isinstance(detector, RetinaNet)
    return detector


def make_images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in SIZES
    ]


def make_objects() -> tuple[list[Tensor], list[Tensor]]:
    boxes = [
        torch.tensor([[4.0, 6.0, 40.0, 44.0], [30.0, 10.0, 90.0, 60.0], [60.0, 5.0, 76.0, 21.0]]),
        torch.tensor([[10.5, 12.0, 50.0, 70.0]]),
    ]
    return boxes, [torch.tensor([0, 2, 1]), torch.tensor([1])]


def make_targets() -> Targets:
    return pad_targets(*make_objects())


def no_objects(images: int) -> Targets:
    return pad_targets([torch.zeros(0, 4)] * images, [torch.zeros(0, dtype=torch.int64)] * images)


def peer_of(detector: RetinaNet, **options: float) -> TorchvisionRetinaNet:
    """torchvision's RetinaNet around the same backbone and head."""
    peer = TorchvisionRetinaNet(
        detector.backbone,
        CLASSES,
        anchor_generator=detector.anchor_generator,
        head=detector.head,
        **options,
    )
    peer.transform.resize = lambda image, target: (image, target)
    return peer.train(detector.training)


def as_torchvision(images: list[Tensor]) -> list[Tensor]:
    return [image.float() / 255 for image in images]


@pytest.mark.parametrize("box", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_losses_equal_torchvisions_for_the_same_weights_and_targets(box: str) -> None:
    detector = make_detector(box=box)
    detector.backbone.eval()
    boxes, labels = make_objects()
    peer = peer_of(detector)
    peer.backbone.eval()
    peer.head.regression_head._loss_type = box
    expected = peer(
        as_torchvision(make_images()),
        [{"boxes": b, "labels": label} for b, label in zip(boxes, labels, strict=True)],
    )
    losses = detector(make_images(), make_targets())
    assert losses.keys() == expected.keys() == set(detector.loss_names)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=0)


def test_gradients_equal_torchvisions() -> None:
    detector = make_detector()
    boxes, labels = make_objects()
    peer = peer_of(detector)
    detector.backbone.eval()
    targets = [{"boxes": b, "labels": label} for b, label in zip(boxes, labels, strict=True)]
    parameters = list(detector.parameters())
    expected = torch.autograd.grad(
        sum(peer(as_torchvision(make_images()), targets).values()), parameters
    )
    losses = detector(make_images(), make_targets())
    gradients = torch.autograd.grad(sum(losses.values()), parameters)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2])
def test_detections_equal_torchvisions(threshold: float) -> None:
    options = {"score_threshold": threshold, "nms_threshold": 0.4, "detections_per_image": 30}
    # Group norm keeps untrained features small: saturated scores would be equal and in any order.
    detector = make_detector(make_config(**options, norm="group")).eval()
    torch.nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.1)
    peer = peer_of(detector, score_thresh=threshold, nms_thresh=0.4, detections_per_img=30)
    with torch.inference_mode():
        found = detector(make_images())
        expected = peer(as_torchvision(make_images()))
    assert sum(len(image["boxes"]) for image in expected) > 0
    for image, other in zip(found, expected, strict=True):
        assert torch.equal(image["labels"], other["labels"])
        torch.testing.assert_close(image["scores"], other["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(image["boxes"], other["boxes"], rtol=1e-5, atol=1e-3)


def test_detections_are_inside_the_image_and_fall_in_score() -> None:
    detector = make_detector(make_config(score_threshold=0)).eval()
    with torch.inference_mode():
        found = detector(make_images())
    for image, (height, width) in zip(found, SIZES, strict=True):
        assert image["boxes"].dtype == torch.float32
        assert image["labels"].dtype == torch.int64
        assert bool((image["boxes"] >= 0).all())
        assert bool((image["boxes"] <= torch.tensor([width, height, width, height])).all())
        assert torch.equal(image["scores"], image["scores"].sort(descending=True).values)


def test_no_detections_are_empty_tensors() -> None:
    detector = make_detector(make_config(score_threshold=1.0)).eval()
    with torch.inference_mode():
        found = detector(make_images())
    assert [image["boxes"].shape for image in found] == [(0, 4), (0, 4)]
    assert [image["labels"].shape for image in found] == [(0,), (0,)]


def test_detections_score_above_the_threshold() -> None:
    detector = make_detector(make_config(score_threshold=0.5)).eval()
    layer = detector.head.classification_head.cls_logits
    nn.init.zeros_(layer.weight)
    for logit, some in ((0.0, False), (0.01, True)):
        nn.init.constant_(layer.bias, logit)
        with torch.inference_mode():
            assert all(bool(len(image["scores"])) is some for image in detector(make_images()))


def test_boxes_that_are_no_numbers_are_no_detections() -> None:
    detector = make_detector(make_config(score_threshold=0.001)).eval()
    layer = detector.head.regression_head.bbox_reg
    with torch.inference_mode():
        before = sum(len(image["boxes"]) for image in detector(make_images()))
        layer.bias[0] = torch.nan  # of one anchor at each place
        found = detector(make_images())
        assert all(image["boxes"].isfinite().all() for image in found)
        assert 0 < sum(len(image["boxes"]) for image in found) <= before
        layer.bias.fill_(torch.nan)
        assert [len(image["boxes"]) for image in detector(make_images())] == [0, 0]


@pytest.mark.parametrize("normalizer", ["image", "batch"])
@pytest.mark.parametrize("box", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_losses_are_finite_and_every_parameter_has_a_gradient(box: str, normalizer: str) -> None:
    detector = make_detector(make_config(levels=[4, 5, 6], anchors={}), box, normalizer)
    boxes, labels = make_objects()
    empty_first = pad_targets([torch.zeros(0, 4), boxes[1]], [labels[0][:0], labels[1]])
    for targets in (make_targets(), empty_first, no_objects(2)):
        detector.zero_grad(set_to_none=True)
        losses = detector(make_images(), targets)
        assert all(bool(loss.isfinite()) and loss.dim() == 0 for loss in losses.values())
        assert (losses["bbox_regression"] > 0) == (sum(targets.counts) > 0)
        sum(losses.values()).backward()
        for name, parameter in detector.named_parameters():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


def test_the_last_weights_that_the_losses_share_are_the_pyramids_outputs() -> None:
    detector = make_detector()
    names = {parameter: name for name, parameter in detector.named_parameters()}
    shared = {names[weight] for weight in detector.last_shared_weights(detector.loss_names)}
    fpn = "backbone.fpn"
    levels = {f"{fpn}.layer_blocks.{level}.0.weight" for level in range(3)}
    assert shared == levels | {f"{fpn}.extra_blocks.p6.weight", f"{fpn}.extra_blocks.p7.weight"}


def test_one_image_without_objects_alone() -> None:
    detector = make_detector()
    detector.backbone.eval()
    losses = detector(make_images()[:1], no_objects(1))
    assert losses["classification"] > 0
    assert losses["bbox_regression"] == 0


def test_the_batch_normalizer_divides_by_all_positives_of_the_batch() -> None:
    detector = make_detector(make_config(norm="group"), normalizer="batch")
    images = make_images()[:1] * 2
    boxes, labels = make_objects()
    together = detector(images, pad_targets(boxes, labels))
    alone = [
        detector(images[:1], pad_targets([b], [x])) for b, x in zip(boxes, labels, strict=True)
    ]
    positives = [
        _count_positives(detector, images[:1], pad_targets([b], [x]))
        for b, x in zip(boxes, labels, strict=True)
    ]
    for name, loss in together.items():
        weighted = sum(one[name] * n for one, n in zip(alone, positives, strict=True))
        torch.testing.assert_close(loss, weighted / sum(positives))


def _count_positives(detector: RetinaNet, images: list[Tensor], targets: Targets) -> int:
    batch = detector.transform(images)
    features = list(detector.backbone(batch.tensors).values())
    height, width = batch.tensors.shape[-2:]
    anchors = torch.cat(detector.anchor_generator.of_pyramid((height, width), features))
    return int((match_anchors(anchors, targets, 0.5, 0.4, True) >= 0).sum())


def test_losses_are_float32_under_autocast() -> None:
    detector = make_detector()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector(make_images(), make_targets())
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    exact = detector(make_images(), make_targets())
    for name, loss in losses.items():
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.01)


def test_channels_last_changes_no_loss() -> None:
    plain = make_detector()(make_images(), make_targets())
    reordered = make_detector(make_config(channels_last=True))
    assert reordered.transform(make_images()).tensors.is_contiguous(
        memory_format=torch.channels_last
    )
    for name, loss in reordered(make_images(), make_targets()).items():
        torch.testing.assert_close(loss, plain[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [None, group_norm])
def test_the_head_computes_what_torchvisions_does(norm: Any) -> None:
    ours = RetinaNetHead(32, 3, CLASSES, norm=norm)
    peer = TorchvisionRetinaNetHead(32, 3, CLASSES, norm_layer=norm)
    peer.load_state_dict(ours.state_dict())
    maps = [torch.randn(2, 32, 8, 12), torch.randn(2, 32, 4, 6)]
    outputs, expected = ours(maps), peer(maps)
    assert all(torch.equal(outputs[name], expected[name]) for name in expected)


@pytest.mark.parametrize("channels", [16, 32])
def test_group_norm_lets_a_map_of_one_pixel_speak(channels: int) -> None:
    norms = {"fpn_norm": "group", "retinanet": {"head_norm": "group"}}
    detector = make_detector(make_config(fpn_channels=channels, **norms)).eval()
    outputs = []
    for size in (0.1, 1.0):
        maps = list(detector.backbone(size * torch.rand(1, 3, 64, 64)).values())
        assert maps[-1].shape[2:] == (1, 1)
        outputs.append(detector.head.regress(maps)[-1])
    (gradient,) = torch.autograd.grad(outputs[1].square().sum(), maps[-1])
    assert gradient.abs().max() > 1e-3 * outputs[1].square().sum() / maps[-1].abs().max()
    assert not torch.allclose(*outputs, rtol=1e-2, atol=1e-3)


def test_batch_norm_in_the_head_has_the_same_statistics_in_training_and_evaluation() -> None:
    torch.manual_seed(0)
    tower = Tower(8, 3, lambda channels: nn.BatchNorm2d(channels, momentum=1.0))
    # Levels of very different statistics, as pyramids have them.
    maps = [torch.randn(64, 8, 12, 12), 5 + 3 * torch.randn(64, 8, 6, 6)]
    trained = tower.train()(maps)
    evaluated = tower.eval()(maps)
    for level, other in zip(trained, evaluated, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-3, atol=1e-3)


def test_narrow_heads_fitted_to_their_width_keep_the_signal() -> None:
    def spread(head_init: str) -> float:
        head = make_detector(make_config(fpn_channels=64, head_init=head_init)).head
        features = torch.randn(1, 64, 16, 16, generator=torch.Generator().manual_seed(0))
        return float(head.regression_head.conv([features])[0].detach().std())

    assert spread("torchvision") < 0.01
    assert 0.3 < spread("width") < 3


def test_targets_are_needed_in_training() -> None:
    with pytest.raises(ValueError, match="targets"):
        make_detector()(make_images())


class HostReads(TorchDispatchMode):
    """Lists the operations whose result the host must wait for on an accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(x is not None and x.dtype == torch.bool for x in indices)
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique") or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another device than the CPU runs, without kernels of its own."""
    monkeypatch.setattr(retinanet, "match_anchors", match_batch)
    monkeypatch.setattr(retinanet, "fastest_focal_sums", lambda _: focal_sums)
    monkeypatch.setattr(RetinaNetHead, "looks_locally", False)


@pytest.mark.usefixtures("plain")
def test_a_training_step_reads_nothing_back_from_the_device() -> None:
    detector = make_detector(normalizer="batch")
    images, targets = make_images(), make_targets()
    with HostReads() as reads:
        sum(detector(images, targets).values()).backward()
    assert reads.found == []


def losses_and_gradients(
    detector: RetinaNet, targets: Targets
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    detector.zero_grad()
    losses = detector(make_images(), targets)
    sum(weight * loss for weight, loss in zip((0.7, 1.3), losses.values(), strict=True)).backward()
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}
    return losses, gradients


OBJECTS = {
    "none": no_objects(2),
    "one small object in one image": pad_targets(
        [torch.tensor([[0.0, 0.0, 17.0, 15.0]]), torch.zeros(0, 4)],
        [torch.tensor([2]), torch.zeros(0, dtype=torch.int64)],
    ),
    "few": make_targets(),
    "objects at every border": pad_targets(
        [torch.tensor([[0.0, 20, 12, 36], [84, 0, 96, 12], [80, 50, 96, 64.0]])] * 2,
        [torch.tensor([0, 1, 2])] * 2,
    ),
    "hundreds": pad_targets(
        [
            torch.cat([corner, corner + 10 + 20 * torch.rand(count, 2)], dim=1)
            for count in (250, 40)
            for corner in [
                60 * torch.rand(count, 2, generator=torch.Generator().manual_seed(count))
            ]
        ],
        [torch.zeros(count, dtype=torch.int64) for count in (250, 40)],
    ),
}


@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("changes", [{}, {"channels_last": True}, {"head_norm": "batch"}])
def test_the_paths_of_the_cpu_give_the_plain_losses_and_gradients(
    objects: str, changes: dict[str, object], request: pytest.FixtureRequest
) -> None:
    head_norm = changes.get("head_norm", "none")
    others = {key: value for key, value in changes.items() if key != "head_norm"}
    config = make_config(norm="frozen", retinanet={"head_norm": head_norm}, **others)
    detector = make_detector(config, box="giou", normalizer="image")
    losses, gradients = losses_and_gradients(detector, OBJECTS[objects])
    request.getfixturevalue("plain")
    expected, expected_gradients = losses_and_gradients(detector, OBJECTS[objects])
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    assert all(gradient is not None for gradient in gradients.values())
    for name, gradient in gradients.items():
        scale = float(expected_gradients[name].abs().max())
        torch.testing.assert_close(
            gradient, expected_gradients[name], rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=name
        )
