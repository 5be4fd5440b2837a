"""A two-stage detector of ours and torchvision's own: the same weights, the same options."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import faster_rcnn, mask_rcnn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from data.target import Targets, pad_targets
from detector.backbone import build_backbone
from detector.config import DetectorConfig
from detector.matching import BalancedSampler
from detector.rcnn import FasterRCNN, MaskRCNN
from losses.config import LossConfig

CLASSES = 3
CHANNELS = 16
SIZES = ((96, 128), (96, 160), (96, 96))
TORCHVISION_LOSS = {"type": "smooth_l1", "beta": 1 / 9}
NARROW: dict[str, Any] = {
    "channels_last": False,  # torchvision's order: rounding is then the same too
    "backbone": "resnet18",
    "weights": "none",
    "fpn_channels": CHANNELS,
    "norm": "batch",
    "trainable_stages": 5,
    "roi": {"representation_size": 32},
    "mask": {"channels": (12, 12), "predictor_channels": 8},
}
EVERYTHING = 10**6


def build_ours(kind: str = "faster_rcnn", loss: Any = None, **options: Any) -> FasterRCNN:
    """A narrow detector in training mode; ``options`` replace blocks of ``NARROW``."""
    config = DetectorConfig(type=kind, **{**NARROW, **options})
    backbone = build_backbone(
        config.backbone, levels=config.pyramid_levels, channels=CHANNELS, trainable_stages=5,
        norm=config.norm,
    )  # fmt: skip
    detector = FasterRCNN if kind == "faster_rcnn" else MaskRCNN
    loss = loss or {"box": TORCHVISION_LOSS, "rpn_box": TORCHVISION_LOSS}
    return detector(backbone, config, LossConfig(**loss), CLASSES).train()


def build_twins(kind: str, samples: int = EVERYTHING) -> tuple[FasterRCNN, torch.nn.Module]:
    """Ours and torchvision's; both sample ``samples`` anchors and proposals an image."""
    rpn = {"batch_size_per_image": samples}
    ours = build_ours(kind, roi={**NARROW["roi"], "batch_size_per_image": samples}, rpn=rpn)
    spread_outputs(ours)
    options: dict[str, Any] = {
        "min_size": 96,
        "max_size": 160,
        "image_mean": (0.0, 0.0, 0.0),  # see normalized()
        "image_std": (1.0, 1.0, 1.0),
        "rpn_anchor_generator": AnchorGenerator(
            tuple((2**size,) for size in range(5, 10)), ((0.5, 1.0, 2.0),) * 5
        ),
        "rpn_head": RPNHead(CHANNELS, 3),
        "box_head": faster_rcnn.TwoMLPHead(CHANNELS * 49, 32),
        "box_predictor": faster_rcnn.FastRCNNPredictor(32, CLASSES + 1),
        "rpn_batch_size_per_image": samples,
        "box_batch_size_per_image": samples,
    }
    build = faster_rcnn.FasterRCNN
    if kind == "mask_rcnn":
        build = mask_rcnn.MaskRCNN
        options["mask_roi_pool"] = MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2)
        options["mask_head"] = mask_rcnn.MaskRCNNHeads(CHANNELS, (12, 12), 1)
        options["mask_predictor"] = mask_rcnn.MaskRCNNPredictor(12, 8, CLASSES + 1)
    theirs = build(copy.deepcopy(ours.backbone), **options)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs.train()


def spread_outputs(detector: FasterRCNN) -> None:
    """Random weights whose scores and boxes differ from place to place."""
    with torch.no_grad():
        for layer in (
            detector.rpn.head.cls_logits,
            detector.rpn.head.bbox_pred,
            detector.roi_heads.box_predictor.cls_score,
            detector.roi_heads.box_predictor.bbox_pred,
        ):
            layer.weight.normal_(std=1.0)
            layer.bias.normal_(std=0.1)


def random_images(sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]


def normalized(detector: FasterRCNN, images: list[Tensor]) -> list[Tensor]:
    """What our preprocessing makes of each image, for a twin that does not normalize again.

    The same input bit by bit: rounding would be amplified by batch norm on small maps.
    """
    return [
        detector.transform([image]).tensors[0, :, : image.shape[1], : image.shape[2]]
        for image in images
    ]


def random_boxes(count: int, size_hw: tuple[int, int]) -> Tensor:
    """``(count, 4)`` whole-numbered boxes of 8 pixels or more inside the image."""
    height, width = size_hw
    low = torch.rand(count, 2) * torch.tensor([width - 8.0, height - 8.0])
    room = torch.tensor([float(width), float(height)]) - low - 8
    return torch.cat([low, low + 8 + torch.rand(count, 2) * room], dim=1).floor()


def random_targets(
    counts: tuple[int, ...], sizes: tuple[tuple[int, int], ...] = SIZES, masks: bool = True
) -> Targets:
    """Random objects; a mask is a random half of its box."""
    boxes = [random_boxes(count, size) for count, size in zip(counts, sizes, strict=True)]
    labels = [torch.randint(0, CLASSES, (count,)) for count in counts]
    drawn = [_draw_masks(b, size) for b, size in zip(boxes, sizes, strict=True)]
    return pad_targets(boxes, labels, drawn if masks else None)


def _draw_masks(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    masks = torch.zeros((len(boxes), *size_hw), dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = torch.rand(y2 - y1, x2 - x1) < 0.5
    return masks


def as_torchvision(targets: Targets) -> list[dict[str, Tensor]]:
    """The same objects with torchvision's labels, which count from 1."""
    dictionaries = []
    for image in range(len(targets)):
        objects = {"boxes": targets.boxes_of(image), "labels": targets.labels_of(image) + 1}
        if targets.masks is not None:
            objects["masks"] = targets.masks[image]
        dictionaries.append(objects)
    return dictionaries


class SameSampler:
    """Our sampler behind torchvision's interface, so that both sides draw the same."""

    def __init__(self, sampler: BalancedSampler) -> None:
        self.sampler = sampler

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        most = max(map(len, labels))
        padded = torch.stack([torch.cat([x, x.new_full((most - len(x),), -1)]) for x in labels])
        samples = self.sampler(padded >= 1, padded == 0)
        positive, negative = (
            torch.zeros_like(padded, dtype=torch.bool).scatter(1, samples.indices, chosen)
            for chosen in (samples.positive, samples.valid & ~samples.positive)
        )
        counts = [len(x) for x in labels]
        return (
            [mask[:count].byte() for mask, count in zip(positive, counts, strict=True)],
            [mask[:count].byte() for mask, count in zip(negative, counts, strict=True)],
        )


def missing_gradients(detector: torch.nn.Module) -> list[str]:
    """The trainable parameters without a finite gradient."""
    return [
        name
        for name, parameter in detector.named_parameters()
        if parameter.requires_grad
        and (parameter.grad is None or not parameter.grad.isfinite().all())
    ]
