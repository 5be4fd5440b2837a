"""Faster R-CNN and Mask R-CNN: a backbone, a proposal network, a second stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from data.target import Targets
from detector.anchors import build_anchors
from detector.backbone import Backbone
from detector.box_head import BoxHead
from detector.config import DetectorConfig, MaskConfig
from detector.cuda_graphs import CUDAGraphs
from detector.preprocessing import Preprocessing
from detector.roi_heads import RoIHeads
from detector.roi_pooling import RoIPooler
from detector.rpn import Predictions, RegionProposalNetwork, RPNHead
from losses.config import LossConfig
from losses.gpu import has_kernels

RPN_OCTAVE_BASE = 8.0  # an anchor's size in strides
RPN_SCALES_PER_OCTAVE = 1


class FasterRCNN(GeneralizedRCNN):
    """Faster R-CNN, with the parameters of torchvision's.

    Args:
        backbone: features of the whole batch, by name.
        config: the detector's options.
        loss: ``box`` is the second stage's box loss, ``rpn_box`` the proposal network's.
        num_classes: without background.

    Attributes:
        loss_names: the losses that training gives.
        weighting_pairs: the pair that the paper weighs, classification first.
        num_classes: as given.
    """

    loss_names: ClassVar[tuple[str, ...]] = (
        "loss_objectness",
        "loss_rpn_box_reg",
        "loss_classifier",
        "loss_box_reg",
    )
    weighting_pairs: ClassVar[Mapping[str, tuple[str, str]]] = {
        "rpn": ("loss_objectness", "loss_rpn_box_reg")
    }

    def __init__(
        self, backbone: Backbone, config: DetectorConfig, loss: LossConfig, num_classes: int
    ) -> None:
        super().__init__(
            backbone,
            _build_rpn(backbone, config, loss),
            _build_roi_heads(backbone, config, loss, num_classes),
            Preprocessing(channels_last=config.channels_last),
        )
        self.num_classes = num_classes
        self.graphs = CUDAGraphs(self, self._trunk) if config.cuda_graphs else None

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, else detections.

        Args:
            images: ``(3, H_b, W_b)`` uint8, or floating point in 0..1.
            targets: the ground truth, on the images' device; not read in evaluation mode.

        Returns:
            In training mode the raw losses by ``loss_names``, scalars. In evaluation mode, for
            each image, ``boxes (D, 4)`` float32 xyxy in its pixels, ``labels (D,)`` int64, 0-based,
            ``scores (D,)``, and ``masks (D, 1, M, M)`` probabilities where there is a mask head.

        Raises:
            ValueError: training without targets.
        """
        if self.training and targets is None:
            raise ValueError("a detector in training mode needs targets")
        batch = self.transform(images)
        targets = targets if self.training else None
        padded_size = (batch.tensors.shape[-2], batch.tensors.shape[-1])
        features, predictions = self._features(batch.tensors)
        proposals, rpn_losses = self.rpn(
            features, padded_size, batch.image_sizes, targets, predictions
        )
        detections, roi_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return {**rpn_losses, **roi_losses} if self.training else detections

    def _features(self, images: Tensor) -> tuple[dict[str, Tensor], Predictions | None]:
        """``(B, 3, H, W)`` -> the pyramid; what the RPN's head sees there too, where recorded."""
        if self.graphs is None or not self.training or not has_kernels(images.device):
            return self.backbone(images), None
        levels = len(self.backbone.levels)
        outputs = self.graphs(images)
        maps, logits, deltas = (list(outputs[n * levels : (n + 1) * levels]) for n in range(3))
        names = (*self.backbone.lateral_names, "pool")[:levels]
        return dict(zip(names, maps, strict=True)), (logits, deltas)

    def _trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps, objectness and deltas of each level: all that comes before proposals."""
        maps = list(self.backbone(images).values())
        logits, deltas = self.rpn.head(maps)
        return (*maps, *logits, *deltas)


class MaskRCNN(FasterRCNN):
    """Mask R-CNN, with the parameters of torchvision's; it trains on ``Targets`` with masks."""

    loss_names = (*FasterRCNN.loss_names, "loss_mask")

    def __init__(
        self, backbone: Backbone, config: DetectorConfig, loss: LossConfig, num_classes: int
    ) -> None:
        super().__init__(backbone, config, loss, num_classes)
        mask: MaskConfig = config.mask
        width = mask.channels[-1]
        self.roi_heads.mask_roi_pool = _build_pooler(backbone, mask.pool_size, mask.sampling_ratio)
        self.roi_heads.mask_head = MaskRCNNHeads(backbone.out_channels, mask.channels, dilation=1)
        self.roi_heads.mask_predictor = MaskRCNNPredictor(
            width, mask.predictor_channels, num_classes + 1
        )


def _build_rpn(
    backbone: Backbone, config: DetectorConfig, loss: LossConfig
) -> RegionProposalNetwork:
    anchors = build_anchors(config.anchors, backbone.levels, RPN_OCTAVE_BASE, RPN_SCALES_PER_OCTAVE)
    head = RPNHead(
        backbone.out_channels,
        anchors.num_anchors_per_location()[0],
        config.rpn.conv_depth,
        config.head_init,
    )
    return RegionProposalNetwork(anchors, head, config.rpn, loss.rpn_box)


def _build_roi_heads(
    backbone: Backbone, config: DetectorConfig, loss: LossConfig, num_classes: int
) -> RoIHeads:
    roi = config.roi
    inputs = backbone.out_channels * roi.pool_size**2
    return RoIHeads(
        _build_pooler(backbone, roi.pool_size, roi.sampling_ratio),
        BoxHead(inputs, roi.representation_size),
        FastRCNNPredictor(roi.representation_size, num_classes + 1),
        roi,
        loss.box,
        config.score_threshold,
        config.nms_threshold,
        config.detections_per_image,
    )


def _build_pooler(backbone: Backbone, size: int, sampling_ratio: int) -> RoIPooler:
    names = backbone.lateral_names
    return RoIPooler(names, backbone.levels[: len(names)], size, sampling_ratio)
