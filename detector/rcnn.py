"""Faster R-CNN and Mask R-CNN: a backbone, a region proposal network and a second stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from data.target import Targets, check_targets
from detector.anchors import anchors_of
from detector.backbone import Backbone
from detector.box_head import BoxHead
from detector.config import DetectorConfig, MaskConfig
from detector.fast.cuda_graphs import CUDAGraphs
from detector.preprocessing import Preprocessing
from detector.roi_heads import RoIHeads
from detector.roi_pooling import RoIPooler, to_rois
from detector.rpn import RegionProposalNetwork, RPNHead
from losses.config import LossConfig
from losses.triton_support import has_kernels


class FasterRCNN(GeneralizedRCNN):
    """Faster R-CNN, with torchvision's parameter names and shapes.

    Args:
        backbone: computes features of the whole batch, by name.
        config: the detector's options.
        loss: ``box`` is the second stage's box loss, ``rpn_box`` the proposal network's.
        num_classes: number of classes, without background.

    Attributes:
        loss_names: names of the losses returned in training mode.
        weighting_pairs: the pair of losses that the paper weights, classification first.
        num_classes: number of classes, without background.
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
        self.mask_graphs: CUDAGraphs | None = None
        self.graphs = CUDAGraphs(self, self._pass_in_slots) if config.cuda_graphs else None

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute losses in training mode, else detections.

        Args:
            images: ``(3, H_b, W_b)`` uint8, or floating point in 0..1.
            targets: the ground truth, on the images' device; ignored in evaluation mode.

        Returns:
            In training mode the raw losses by ``loss_names``, scalars. In evaluation mode, for
            each image, ``boxes (D, 4)`` float32 xyxy in its pixels, ``labels (D,)`` int64, 0-based,
            ``scores (D,)``, and ``masks (D, 1, M, M)`` probabilities where there is a mask head.

        Raises:
            ValueError: there are no images, or in training mode no ``Targets`` for each of them.
        """
        batch = self.transform(images)
        targets = check_targets(targets, len(images)) if self.training else None
        if has_kernels(batch.tensors.device):
            return self._forward_in_slots(batch.tensors, batch.image_sizes, targets)
        padded_size = (batch.tensors.shape[-2], batch.tensors.shape[-1])
        features = self.backbone(batch.tensors)
        proposals, rpn_losses = self.rpn(features, padded_size, batch.image_sizes, targets)
        detections, roi_losses = self.roi_heads(features, proposals, batch.image_sizes, targets)
        return {**rpn_losses, **roi_losses} if self.training else detections

    def last_shared_weights(self, losses: Collection[str]) -> list[Tensor]:
        """Return the weights of the last layer that these losses share.

        This is the last shared layer of their stage, or else the pyramid's output layers.
        """
        if set(losses) <= {"loss_objectness", "loss_rpn_box_reg"}:
            return [self.rpn.head.conv[-1][0].weight]
        if set(losses) <= {"loss_classifier", "loss_box_reg"}:
            return [self.roi_heads.box_head.fc7.weight]
        return self.backbone.output_weights

    def _forward_in_slots(
        self, images: Tensor, sizes_hw: Sequence[tuple[int, int]], targets: Targets | None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Run ``forward`` on a GPU; the host does not wait for it before selecting detections."""
        # Masks are read from the maps, and a graph would keep those of its shape forever.
        records = self.training or not self.roi_heads.has_mask()
        run = self.graphs if self.graphs is not None and records else self._pass_in_slots
        corners = torch.tensor([(width, height) for height, width in sizes_hw]).float()
        corners = corners.pin_memory().to(images.device, non_blocking=True)
        if targets is None:
            rois, scores, deltas, *maps = run(images, corners)
            features = dict(zip(self.backbone.lateral_names, maps, strict=False))
            return self.roi_heads.select(features, rois, scores, deltas, sizes_hw)
        few = targets.with_few_shapes()
        outputs = run(images, corners, few.boxes, few.labels)
        names = FasterRCNN.loss_names
        # copies, because the next batch's losses are written to the same memory
        losses = {name: loss.clone() for name, loss in zip(names, outputs, strict=False)}
        if self.roi_heads.has_mask():
            losses["loss_mask"] = self._mask_loss_in_slots(outputs[len(names) :], targets)
        return losses

    def _pass_in_slots(
        self,
        images: Tensor,
        corners: Tensor,
        boxes: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Process a batch without control flow that depends on values, to capture in a CUDA graph.

        Returns:
            Given boxes and labels, the losses by ``FasterRCNN.loss_names`` and the inputs of the
            mask branch; else RoIs ``(R, 5)``, scores and deltas of all classes, and the maps if
            there is a mask branch.
        """
        features = self.backbone(images)
        padded_size = (images.shape[-2], images.shape[-1])
        if boxes is None or labels is None:
            proposals, _ = self.rpn.forward_in_slots(features, padded_size, corners)
            rois = to_rois(proposals.boxes.unbind())
            logits, deltas = self.roi_heads.predict(features, rois)
            scores = logits.float().softmax(dim=1)
            scores = torch.where(proposals.valid.flatten()[:, None], scores, -1.0)
            if not self.roi_heads.has_mask():
                return rois, scores, deltas
            maps = [features[name] for name in self.backbone.lateral_names]
            return rois, scores, deltas, *maps
        targets = Targets(boxes, labels, (labels.shape[1],) * len(labels))
        proposals, losses = self.rpn.forward_in_slots(features, padded_size, corners, targets)
        sampled = self.roi_heads.sample(proposals.with_objects(targets), targets)
        losses |= self.roi_heads.box_losses(features, sampled)
        ordered = [losses[name] for name in FasterRCNN.loss_names]
        if not self.roi_heads.has_mask():
            return tuple(ordered)
        return (*ordered, *self.roi_heads.mask_inputs(features, sampled))

    def _mask_loss_in_slots(self, inputs: Sequence[Tensor], targets: Targets) -> Tensor:
        """Compute the mask loss; masks differ in size, so they are cropped between two graphs."""
        pooled, boxes, objects, classes, positive = inputs
        run = self.mask_graphs or self._mask_pass
        crops = self.roi_heads.mask_targets(boxes, objects, targets)
        (loss,) = run(pooled, classes.flatten(), positive.flatten(), crops)
        return loss.clone()

    def _mask_pass(
        self, pooled: Tensor, classes: Tensor, positive: Tensor, crops: Tensor
    ) -> tuple[Tensor, ...]:
        return (self.roi_heads.mask_loss_in_slots(pooled, classes, positive, crops),)


class MaskRCNN(FasterRCNN):
    """Mask R-CNN, with torchvision's parameter names and shapes; trains on targets with masks."""

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
        if config.cuda_graphs:
            branch = nn.ModuleList([self.roi_heads.mask_head, self.roi_heads.mask_predictor])
            self.mask_graphs = CUDAGraphs(branch, self._mask_pass)


def _build_rpn(
    backbone: Backbone, config: DetectorConfig, loss: LossConfig
) -> RegionProposalNetwork:
    anchors = anchors_of(config)
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
