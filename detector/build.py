"""Build a detector from its options: the architecture with random weights, nothing downloaded."""

from __future__ import annotations

import torch

from detector.backbone import build_backbone
from detector.config import DetectorConfig
from detector.fast.winograd import use_winograd
from detector.rcnn import FasterRCNN, MaskRCNN
from detector.retinanet import RetinaNet
from losses.config import LossConfig

Detector = RetinaNet | FasterRCNN | MaskRCNN

DETECTORS: dict[str, type[Detector]] = {
    "retinanet": RetinaNet,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
}


def build_detector(config: DetectorConfig, loss: LossConfig, num_classes: int) -> Detector:
    """Build a detector in training mode, on the CPU.

    Args:
        config: the detector's options; ``weights`` is not read here, see ``load_pretrained``.
        loss: the box losses and the normalizer.
        num_classes: number of classes, without background.

    Raises:
        ValueError: there are no classes.
        InputError: the anchors cannot be built.
    """
    if num_classes < 1:
        raise ValueError(f"a detector needs at least one class, not {num_classes}")
    backbone = build_backbone(
        config.backbone,
        levels=config.pyramid_levels,
        channels=config.fpn_channels,
        trainable_stages=config.trainable_stages,
        norm=config.norm,
        norm_eps=config.norm_eps,
        fpn_norm=config.fpn_norm,
        coarse=config.retinanet.p6_from if config.type == "retinanet" else "max_pool",
        relu_before_p7=config.retinanet.relu_before_p7,
    )
    detector = DETECTORS[config.type](backbone, config, loss, num_classes)
    use_winograd(detector)
    if config.channels_last:
        detector = detector.to(memory_format=torch.channels_last)
    return detector.train()
