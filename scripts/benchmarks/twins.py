"""A detector of ours and torchvision's own with the same weights, and input for both.

Without weights, torchvision's builders silently use BatchNorm and train all five stages. Here its
parts are assembled as its builders do it for pretrained weights: FrozenBatchNorm and three
trainable stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.models import resnet
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from data.target import Targets, pad_targets
from detector.build import Detector, build_detector
from detector.config import DetectorConfig
from detector.matching import BalancedSampler, Samples
from losses.config import BoxLossConfig, LossConfig

TRAINABLE_STAGES = 3
CANDIDATES, SCORE_THRESHOLD = 500, 0.05  # per image; both sides' default
FEW_PROPOSALS = 150  # per level
DELTAS = 0.2  # standard deviation of a predicted box's deltas
R_CNN_BOX_LOSS = BoxLossConfig(type="smooth_l1", beta=1 / 9)


@dataclass(frozen=True)
class Work:
    """A batch in the format of each side.

    Attributes:
        images: ``(3, H, W)`` uint8, as from our loader.
        targets: our targets.
        floats: the same images in 0..1, as from torchvision's reference pipeline.
        dicts: the same targets; labels are shifted if 0 is the background.
    """

    images: list[Tensor]
    targets: Targets
    floats: list[Tensor]
    dicts: list[dict[str, Tensor]]


def build_ours(kind: str, backbone: str, classes: int, device: torch.device) -> Detector:
    """Build our detector with torchvision's losses, random weights and calibrated norms."""
    torch.manual_seed(0)
    options = {"type": kind, "backbone": backbone, "weights": "none", "norm": "frozen"}
    config = DetectorConfig.model_validate(options)
    box = BoxLossConfig(type="l1") if kind == "retinanet" else R_CNN_BOX_LOSS
    loss = LossConfig(normalizer="image", box=box, rpn_box=R_CNN_BOX_LOSS)
    detector = build_detector(config, loss, classes)
    plain: Any = build_theirs(kind, backbone, classes, (256, 256), torch.device("cpu"))
    plain.load_state_dict(detector.state_dict())
    calibrate(plain.backbone)
    detector.load_state_dict(plain.state_dict())
    return detector.to(device)


def build_theirs(
    kind: str, backbone: str, classes: int, size_hw: tuple[int, int], device: torch.device
) -> nn.Module:
    """Build torchvision's detector, with its resizing set to the images' own size."""
    body = getattr(resnet, backbone)(weights=None, norm_layer=FrozenBatchNorm2d)
    options: dict[str, Any] = {"min_size": min(size_hw), "max_size": max(size_hw)}
    if kind == "retinanet":
        extra = LastLevelP6P7(256, 256)
        network = _resnet_fpn_extractor(body, TRAINABLE_STAGES, [2, 3, 4], extra)
        # its default is 300, but COCO scores 100
        return RetinaNet(network, classes, detections_per_img=100, **options).to(device)
    build = MaskRCNN if kind == "mask_rcnn" else FasterRCNN
    return build(_resnet_fpn_extractor(body, TRAINABLE_STAGES), classes + 1, **options).to(device)


@torch.no_grad()
def calibrate(backbone: nn.Module) -> None:
    """Set the frozen statistics to those of random pixels.

    A network with initial weights has no matching statistics; without them the activations grow
    over the layers until losses are far larger than in any training.
    """

    def measure(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    norms = [layer for layer in backbone.modules() if isinstance(layer, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(measure) for norm in norms]
    backbone(torch.randn(1, 3, 256, 256))
    for handle in handles:
        handle.remove()


@torch.no_grad()
def make_detections_likely(detector: Any, kind: str, image: Tensor) -> None:
    """Set head weights that vary the scores over an image, so that there are detections.

    An image has a few hundred candidates, as with a trained detector.
    """
    torch.manual_seed(1)
    if kind != "retinanet":
        detector.rpn.head.cls_logits.weight.normal_(std=0.1)
        detector.roi_heads.box_predictor.cls_score.weight.normal_(std=0.1)
        return
    for layer in detector.head.modules():
        if isinstance(layer, nn.Conv2d):  # with std 0.01 the signal fades over the layers
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    last = detector.head.classification_head.cls_logits
    logits = detector.head(list(detector.backbone(detector.transform([image]).tensors).values()))
    values = logits["cls_logits"].flatten()
    last.weight /= values.std()
    values = (values - last.bias[0]) / values.std()
    candidate = values.topk(min(CANDIDATES, len(values) // 2)).values[-1]
    last.bias.fill_(math.log(SCORE_THRESHOLD / (1 - SCORE_THRESHOLD)) - float(candidate))
    # boxes near their anchors: far ones become slivers at the border, which IoU cannot compare
    detector.head.regression_head.bbox_reg.weight *= DELTAS / logits["bbox_regression"].std()


def make_work(
    kind: str,
    size_hw: tuple[int, int],
    counts: Sequence[int],
    sides: tuple[float, float],
    classes: int,
    device: torch.device,
    with_masks: bool = False,
) -> Work:
    """Create random pixels and ``counts[b]`` random boxes in image b.

    Args:
        sides: shortest and longest side of a box, relative to the image's shorter side.
    """
    generator = torch.Generator().manual_seed(2)
    images = [
        torch.randint(0, 256, (3, *size_hw), generator=generator, dtype=torch.uint8) for _ in counts
    ]
    boxes = [random_boxes(count, size_hw, sides, generator) for count in counts]
    labels = [torch.randint(0, classes, (count,), generator=generator) for count in counts]
    masks = [box_masks(image_boxes, size_hw) for image_boxes in boxes] if with_masks else None
    targets = pad_targets(boxes, labels, masks).to(device)
    images = [image.to(device) for image in images]
    shift = 0 if kind == "retinanet" else 1
    dicts = [
        {"boxes": targets.boxes_of(index), "labels": targets.labels_of(index) + shift}
        for index in range(len(counts))
    ]
    for entry, image_masks in zip(dicts, targets.masks or (), strict=False):
        entry["masks"] = image_masks
    return Work(images, targets, [image.float() / 255 for image in images], dicts)


def random_boxes(
    count: int, size_hw: tuple[int, int], sides: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Return ``(count, 4)`` random boxes xyxy; the sides' logarithms are uniform."""
    low, high = (torch.tensor(side * min(size_hw)).log() for side in sides)
    wh = (low + torch.rand(count, 2, generator=generator) * (high - low)).exp()
    room = torch.tensor([float(size_hw[1]), float(size_hw[0])]) - wh
    corner = torch.rand(count, 2, generator=generator) * room
    return torch.cat([corner, corner + wh], dim=1).round()


def box_masks(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return ``(N, H, W)`` uint8 masks: the ellipse in each box."""
    y, x = (torch.arange(side) + 0.5 for side in size_hw)
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    across = ((x - center[:, :1]) / half[:, :1]) ** 2
    down = ((y - center[:, 1:]) / half[:, 1:]) ** 2
    return (across[:, None, :] + down[:, :, None] <= 1).to(torch.uint8)


class Reseeded:
    """Our sampler, drawing the same samples in every call with the same candidates.

    The candidates of an image are compacted first: empty slots between them would shift the draw.
    """

    def __init__(self, sampler: BalancedSampler) -> None:
        self._sampler = sampler

    def __call__(self, positive: Tensor, negative: Tensor) -> Samples:
        candidates = positive | negative
        order = candidates.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices
        order = order[:, : int(candidates.sum(dim=1).max())]
        torch.manual_seed(0)
        samples = self._sampler(positive.gather(1, order), negative.gather(1, order))
        return Samples(order.gather(1, samples.indices), samples.positive, samples.valid)


class DrawnLikeOurs:
    """Makes torchvision use the anchors and proposals that our sampler draws.

    Both sample randomly in their own way; losses are comparable only with the same samples.
    """

    def __init__(self, sampler: BalancedSampler) -> None:
        self._sampler = Reseeded(sampler)

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map labels ``(N_b,)`` of each image (>= 1 positive, 0 negative) to sample masks."""
        labels = pad_sequence(matched, batch_first=True, padding_value=-1)
        samples = self._sampler(labels >= 1, labels == 0)
        nothing = torch.zeros_like(labels, dtype=torch.bool)
        positive = nothing.scatter(1, samples.indices, samples.positive)
        negative = nothing.scatter(1, samples.indices, samples.valid & ~samples.positive)
        lengths = [len(image) for image in matched]
        return (
            [row[:length] for row, length in zip(positive, lengths, strict=True)],
            [row[:length] for row, length in zip(negative, lengths, strict=True)],
        )


@contextmanager
def float32_products() -> Iterator[None]:
    """Disable TensorFloat-32, which cuDNN's convolutions otherwise use for float32."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def few_proposals(detector: Any) -> Iterator[None]:
    """Limit an RPN to so few proposals that two sides, or two devices, propose the same.

    Among thousands of candidates rounding would decide about some.
    """
    if not hasattr(detector, "rpn"):
        yield
        return
    own = detector.rpn._pre_nms_top_n
    detector.rpn._pre_nms_top_n = dict.fromkeys(own, FEW_PROPOSALS)
    try:
        yield
    finally:
        detector.rpn._pre_nms_top_n = own
