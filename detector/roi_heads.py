"""The second stage of Faster and Mask R-CNN: a class, a box and a mask for every proposal.

Internally, class 0 is the background, as in torchvision; labels in targets and detections are
0-based without background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import roi_heads as torchvision_roi_heads
from torchvision.ops import batched_nms, clip_boxes_to_image

from data.errors import InputError
from data.target import Targets
from detector.box_regression import BoxCoder, BoxLoss
from detector.config import RoIConfig
from detector.mask_head import crop_masks, mask_logits_of, mask_probabilities
from detector.matching import BalancedSampler, gather_matched, match_anchors
from detector.proposals import Proposals
from detector.roi_pooling import RoIPooler, to_rois
from losses.anchor_labels import BACKGROUND
from losses.classification import binary_cross_entropy_with_logits, cross_entropy
from losses.config import BoxLossConfig

Size = tuple[int, int]
Detections = dict[str, Tensor]

SMALLEST_SIDE = 1e-2  # pixels; torchvision drops smaller detections


@dataclass(frozen=True)
class SampledRoIs:
    """The proposals that the second stage trains on, in ``S`` slots per image.

    Attributes:
        boxes: ``(B, S, 4)`` xyxy in pixels.
        classes: ``(B, S)`` int64, 0 for background.
        objects: ``(B, S)`` int64: the matched object; meaningless for background.
        matched_gt_boxes: ``(B, S, 4)``: the matched object's box.
        positive: ``(B, S)`` bool: not background; positives come before all others.
        valid: ``(B, S)`` bool: the slot is not empty.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    matched_gt_boxes: Tensor
    positive: Tensor
    valid: Tensor


class RoIHeads(torchvision_roi_heads.RoIHeads):
    """torchvision's heads over the whole batch, with any box loss.

    Args:
        box_roi_pool: pools features of proposals.
        box_head: computes their representation.
        box_predictor: computes logits of ``classes + 1`` and deltas of each class.
        config: thresholds and sampling.
        box_loss: the loss between deltas and matched boxes.
        score_threshold: detections must score above this.
        nms_threshold: IoU above which the lower-scoring detection of a class is suppressed.
        detections_per_image: maximum number of detections per image.

    Attributes:
        fg_bg_sampler: callable that takes the masks of positives and negatives and returns
            ``Samples``.
    """

    def __init__(
        self,
        box_roi_pool: RoIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        config: RoIConfig,
        box_loss: BoxLossConfig,
        score_threshold: float,
        nms_threshold: float,
        detections_per_image: int,
    ) -> None:
        super().__init__(
            box_roi_pool,
            box_head,
            box_predictor,
            config.foreground_iou,
            config.background_iou,
            config.batch_size_per_image,
            config.positive_fraction,
            config.box_weights,
            score_threshold,
            nms_threshold,
            detections_per_image,
        )
        self.config = config
        self.fg_bg_sampler = BalancedSampler(config.batch_size_per_image, config.positive_fraction)
        self.box_coder = BoxCoder(config.box_weights)
        self.box_loss = BoxLoss(box_loss, self.box_coder)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        sizes_hw: Sequence[Size],
        targets: Targets | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        """Compute losses if targets are given, else detections.

        Args:
            features: the pyramid's maps by name.
            proposals: ``(P_b, 4)`` float32 of each image.
            sizes_hw: the size of each image without padding.
            targets: the ground truth, in training.
        """
        if targets is None:
            return self.detect(features, proposals, sizes_hw), {}
        candidates = [
            torch.cat([boxes, targets.boxes_of(image)]) for image, boxes in enumerate(proposals)
        ]
        rois = self.sample(Proposals.of_images(candidates), targets)
        losses = self.box_losses(features, rois)
        if self.has_mask():
            losses["loss_mask"] = self.mask_loss(features, rois, targets)
        return [], losses

    @torch.no_grad()
    def sample(self, candidates: Proposals, targets: Targets) -> SampledRoIs:
        """Match candidates (proposals and the objects' boxes) to the objects, and sample them."""
        boxes, present = candidates.boxes, candidates.valid
        high, low = self.config.foreground_iou, self.config.background_iou
        matches = match_anchors(boxes, targets, high, low, allow_low_quality=False)
        samples = self.fg_bg_sampler((matches >= 0) & present, (matches == BACKGROUND) & present)
        matches = matches.gather(1, samples.indices)
        classes = gather_matched(targets.labels, matches) + 1
        return SampledRoIs(
            boxes.gather(1, samples.indices.unsqueeze(2).expand(-1, -1, 4)),
            torch.where(samples.positive, classes, 0),
            matches.clamp(min=0),
            gather_matched(targets.boxes, matches),
            samples.positive,
            samples.valid,
        )

    def box_losses(self, features: dict[str, Tensor], rois: SampledRoIs) -> dict[str, Tensor]:
        """Compute classification and box loss, divided by the number of sampled proposals."""
        logits, deltas = self.predict(features, to_rois(rois.boxes.unbind()))
        classes, valid = rois.classes.flatten(), rois.valid.flatten()
        sampled = valid.sum().clamp(min=1)
        classification = cross_entropy(logits, classes, reduction="none")
        regression = self.box_loss(
            _select_class(deltas, classes),
            rois.boxes.flatten(0, 1),
            rois.matched_gt_boxes.flatten(0, 1),
            rois.positive.flatten(),
        )
        return {
            "loss_classifier": torch.where(valid, classification, 0.0).sum() / sampled,
            "loss_box_reg": regression / sampled,
        }

    def mask_loss(self, features: dict[str, Tensor], rois: SampledRoIs, targets: Targets) -> Tensor:
        """Compute the mean binary cross-entropy between masks of positives and their objects'.

        Without positives the loss is 0, and still part of the graph.

        Raises:
            InputError: the targets have no masks.
        """
        masks = _require_masks(targets)
        counts = rois.positive.sum(dim=1).tolist()  # they stand in the first slots
        boxes, objects, classes = (
            [image[:count] for image, count in zip(values, counts, strict=True)]
            for values in (rois.boxes, rois.objects, rois.classes)
        )
        pooled = self.mask_roi_pool(features, to_rois(boxes))
        logits = self.mask_logits(pooled, torch.cat(classes))
        crops = crop_masks(masks, boxes, objects, logits.shape[-1])
        return binary_cross_entropy_with_logits(logits, crops)

    def mask_inputs(self, features: dict[str, Tensor], rois: SampledRoIs) -> tuple[Tensor, ...]:
        """Return pooled features and the fields of all slots that can hold positives.

        Returns:
            Features ``(R, C, M / 2, M / 2)``, then boxes, objects, classes and positive of these
            slots.
        """
        most = int(self.config.batch_size_per_image * self.config.positive_fraction)
        boxes, objects, classes, positive = (
            values[:, :most] for values in (rois.boxes, rois.objects, rois.classes, rois.positive)
        )
        pooled = self.mask_roi_pool(features, to_rois(boxes.unbind()))
        return pooled, boxes, objects, classes, positive

    @torch.no_grad()
    def mask_targets(self, boxes: Tensor, objects: Tensor, targets: Targets) -> Tensor:
        """Return the target masks ``(R, M, M)`` of all slots.

        Raises:
            InputError: the targets have no masks.
        """
        size = 2 * self.mask_roi_pool.output_size[0]
        return crop_masks(_require_masks(targets), boxes.unbind(), objects.unbind(), size)

    def mask_loss_in_slots(
        self, pooled: Tensor, classes: Tensor, positive: Tensor, crops: Tensor
    ) -> Tensor:
        """Compute ``mask_loss`` with fixed shapes: all slots have masks, those of positives count.

        Args:
            pooled: ``(R, C, M / 2, M / 2)`` features of the slots.
            classes: ``(R,)`` int64 class of each slot.
            positive: ``(R,)`` bool: the slot holds a positive.
            crops: ``(R, M, M)`` target masks.
        """
        logits = self.mask_logits(pooled, classes)
        losses = binary_cross_entropy_with_logits(logits, crops, reduction="none")
        values = positive.sum().clamp(min=1) * losses.shape[1:].numel()
        return torch.where(positive[:, None, None], losses, 0.0).sum() / values

    def detect(
        self, features: dict[str, Tensor], proposals: Sequence[Tensor], sizes_hw: Sequence[Size]
    ) -> list[Detections]:
        """Return the detections of each image, best first, in pixels of the detector's input."""
        rois = to_rois(proposals)
        logits, deltas = self.predict(features, rois)
        return self.select(features, rois, logits.float().softmax(dim=1), deltas, sizes_hw)

    def select(
        self,
        features: dict[str, Tensor],
        rois: Tensor,
        scores: Tensor,
        deltas: Tensor,
        sizes_hw: Sequence[Size],
    ) -> list[Detections]:
        """Select detections from all classes of all RoIs, and add their masks.

        Args:
            features: the pyramid's maps by name.
            rois: ``(R, 5)``: image index and box.
            scores: ``(R, classes + 1)`` probabilities; only those above the threshold are kept.
            deltas: ``(R, (classes + 1) * 4)``.
            sizes_hw: the size of each image.
        """
        # Only pairs of proposal and class that score enough are decoded: few of all.
        row, column = torch.where(scores[:, 1:] > self.score_thresh)
        scores, deltas = scores[row, column + 1], deltas.unflatten(1, (-1, 4))[row, column + 1]
        boxes = self.box_coder.decode(deltas, rois[row, 1:])
        image_of = rois[row, 0].to(torch.int64)
        counts = torch.bincount(image_of, minlength=len(sizes_hw)).tolist()
        candidates = zip(
            boxes.split(counts), scores.split(counts), column.split(counts), sizes_hw, strict=True
        )
        detections = [self.suppress(*candidate) for candidate in candidates]
        if self.has_mask():
            self._add_masks(features, detections)
        return detections

    def predict(self, features: dict[str, Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """``(R, 5)`` -> logits ``(R, classes + 1)``, deltas ``(R, (classes + 1) * 4)``."""
        return self.box_predictor(self.box_head(self.box_roi_pool(features, rois)))

    def mask_logits(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """``(R, C, M / 2, M / 2)`` and classes ``(R,)``, 0 for background -> ``(R, M, M)``."""
        return mask_logits_of(self.mask_predictor, self.mask_head(pooled), classes)

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, size_hw: Size) -> Detections:
        """Clip the candidates of one image, drop tiny ones, then NMS per class."""
        boxes = clip_boxes_to_image(boxes, size_hw)
        large = torch.where((boxes[:, 2:] - boxes[:, :2] >= SMALLEST_SIDE).all(dim=1))[0]
        boxes, scores, labels = boxes[large], scores[large], labels[large]
        # NMS shifts boxes by their class: counting from 1 makes its rounding torchvision's.
        keep = batched_nms(boxes, scores, labels + 1, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "labels": labels[keep], "scores": scores[keep]}

    def _add_masks(self, features: dict[str, Tensor], detections: list[Detections]) -> None:
        labels = [detection["labels"] for detection in detections]
        rois = to_rois([detection["boxes"] for detection in detections])
        pooled = self.mask_roi_pool(features, rois)
        masks = mask_probabilities(self.mask_logits(pooled, torch.cat(labels) + 1))
        for detection, image_masks in zip(
            detections, masks.split([len(image_labels) for image_labels in labels]), strict=True
        ):
            detection["masks"] = image_masks


def _select_class(deltas: Tensor, classes: Tensor) -> Tensor:
    """``(R, (classes + 1) * 4)`` and ``(R,)`` -> ``(R, 4)``: the deltas of each RoI's class."""
    deltas = deltas.unflatten(1, (-1, 4))
    return deltas.gather(1, classes.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)


def _require_masks(targets: Targets) -> tuple[Tensor, ...]:
    if targets.masks is None:
        raise InputError(
            "detector.type: mask_rcnn needs masks for training, but the data has none; "
            "choose faster_rcnn or data with masks"
        )
    return targets.masks
