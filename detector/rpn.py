"""The region proposal network of Faster and Mask R-CNN, with exchangeable losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import rpn as torchvision_rpn
from torchvision.ops import clip_boxes_to_image

from data.target import Targets
from detector.anchors import PyramidAnchors, per_anchor
from detector.box_regression import BoxCoder, BoxLoss
from detector.config import RPNConfig
from detector.fast.autocast import uncached_autocast
from detector.fast.early_nms import first_survivors
from detector.fast.rpn_at_anchors import is_one_layer, predictions_at
from detector.initialization import init_hidden, init_output
from detector.matching import BalancedSampler, gather_matched, match_anchors
from detector.proposals import Proposals
from losses.anchor_labels import BACKGROUND
from losses.classification import binary_cross_entropy_with_logits
from losses.config import BoxLossConfig

Size = tuple[int, int]


class RPNHead(torchvision_rpn.RPNHead):
    """torchvision's head: shared convolutions, then objectness and deltas of each anchor.

    Args:
        in_channels: channels of the pyramid.
        num_anchors: anchors per location.
        conv_depth: number of shared 3x3 convolutions.
        head_init: ``torchvision`` or ``width``, see ``detector.initialization``.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        conv_depth: int = 1,
        head_init: str = "torchvision",
    ) -> None:
        super().__init__(in_channels, num_anchors, conv_depth)
        init_hidden(self.conv, head_init)
        init_output(self.cls_logits, head_init)
        init_output(self.bbox_pred, head_init)


@dataclass(frozen=True)
class SampledAnchors:
    """The anchors that the losses read, in ``S`` slots per image.

    Attributes:
        indices: ``(B, S)`` int64 into the anchors of all levels.
        anchors: ``(B, S, 4)`` xyxy in pixels.
        matched_gt_boxes: ``(B, S, 4)`` boxes of the matched objects; meaningless for background.
        positive: ``(B, S)`` bool: not background.
        valid: ``(B, S)`` bool: the slot is not empty.
    """

    indices: Tensor
    anchors: Tensor
    matched_gt_boxes: Tensor
    positive: Tensor
    valid: Tensor


class RegionProposalNetwork(torchvision_rpn.RegionProposalNetwork):
    """torchvision's network over the whole batch, with any box loss.

    Args:
        anchor_generator: computes the anchors of every level.
        head: computes objectness and deltas of every level.
        config: thresholds, sampling, numbers of proposals.
        box_loss: the loss between deltas and matched boxes.

    Attributes:
        fg_bg_sampler: callable that takes the masks of positives and negatives and returns
            ``Samples``.
    """

    def __init__(
        self,
        anchor_generator: PyramidAnchors,
        head: nn.Module,
        config: RPNConfig,
        box_loss: BoxLossConfig,
    ) -> None:
        super().__init__(
            anchor_generator,
            head,
            config.foreground_iou,
            config.background_iou,
            config.batch_size_per_image,
            config.positive_fraction,
            {"training": config.pre_nms_top_n_train, "testing": config.pre_nms_top_n_test},
            {"training": config.post_nms_top_n_train, "testing": config.post_nms_top_n_test},
            config.nms_threshold,
            config.score_threshold,
        )
        self.config = config
        self.fg_bg_sampler = BalancedSampler(config.batch_size_per_image, config.positive_fraction)
        self.box_coder = BoxCoder()
        self.box_loss = BoxLoss(box_loss, self.box_coder)

    def forward(
        self,
        features: dict[str, Tensor],
        padded_size_hw: Size,
        sizes_hw: Sequence[Size],
        targets: Targets | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Propose boxes and, given targets, compute the losses.

        Args:
            features: the pyramid's maps, finest first.
            padded_size_hw: the size of the batch that the maps were computed from.
            sizes_hw: the size of each image without padding.
            targets: the ground truth, in training.

        Returns:
            ``(P_b, 4)`` float32 boxes of each image, best first, without gradient; and the losses.
        """
        maps = list(features.values())
        anchors = self.anchor_generator.of_pyramid(padded_size_hw, maps)
        # A fast path, because proposals need no gradient and the losses read few anchors.
        sparse = targets is not None and maps[0].device.type == "cpu" and is_one_layer(self.head)
        if sparse:
            with torch.no_grad(), uncached_autocast("cpu"):
                objectness, deltas = self._predict(maps)
        else:
            objectness, deltas = self._predict(maps)
        proposals = self.propose(objectness, deltas, anchors, sizes_hw)
        if targets is None:
            return proposals, {}
        if sparse:
            sampled = self.sample(torch.cat(anchors), targets)
            at_sampled = predictions_at(self.head, maps, sampled.indices)
            return proposals, self.losses_at(sampled, *at_sampled)
        losses = self.losses(
            torch.cat(objectness, 1), torch.cat(deltas, 1), torch.cat(anchors), targets
        )
        return proposals, losses

    def forward_in_slots(
        self,
        features: dict[str, Tensor],
        padded_size_hw: Size,
        corners: Tensor,
        targets: Targets | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Run ``forward`` on a GPU with fixed shapes, so that a CUDA graph can be reused.

        Args:
            features: the pyramid's maps, finest first.
            padded_size_hw: the size of the batch that the maps were computed from.
            corners: ``(B, 2)`` float32: width and height of each image without padding.
            targets: the ground truth, in training.
        """
        maps = list(features.values())
        anchors = self.anchor_generator.of_pyramid(padded_size_hw, maps)
        objectness, deltas = self._predict(maps)
        with torch.no_grad():
            boxes, scores = self._best(objectness, deltas, anchors)
            proposals = self.suppress_in_slots(boxes, scores, corners)
        if targets is None:
            return proposals, {}
        predictions = torch.cat(objectness, 1), torch.cat(deltas, 1)
        return proposals, self.losses(*predictions, torch.cat(anchors), targets)

    def _predict(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness ``(B, A_l)`` and deltas ``(B, A_l, 4)`` of each level."""
        logits, deltas = self.head(maps)
        return (
            [per_anchor(level, 1).squeeze(2) for level in logits],
            [per_anchor(level, 4) for level in deltas],
        )

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        """Compute both losses, divided by the number of sampled anchors.

        Args:
            objectness: ``(B, A)`` logits.
            deltas: ``(B, A, 4)``.
            anchors: ``(A, 4)`` xyxy, the same for all images.
            targets: the ground truth.
        """
        sampled = self.sample(anchors, targets)
        index = sampled.indices
        return self.losses_at(
            sampled,
            objectness.gather(1, index),
            deltas.gather(1, index.unsqueeze(2).expand(-1, -1, 4)),
        )

    @torch.no_grad()
    def sample(self, anchors: Tensor, targets: Targets) -> SampledAnchors:
        """Match the anchors, ``(A, 4)`` for all images, to the objects and sample from them."""
        config = self.config
        matches = match_anchors(
            anchors,
            targets,
            config.foreground_iou,
            config.background_iou,
            config.low_quality_matches,
        )
        samples = self.fg_bg_sampler(matches >= 0, matches == BACKGROUND)
        return SampledAnchors(
            samples.indices,
            anchors[samples.indices],
            gather_matched(targets.boxes, matches.gather(1, samples.indices)),
            samples.positive,
            samples.valid,
        )

    def losses_at(
        self, sampled: SampledAnchors, objectness: Tensor, deltas: Tensor
    ) -> dict[str, Tensor]:
        """Compute both losses from ``(B, S)`` logits, ``(B, S, 4)`` deltas of sampled anchors."""
        count = sampled.valid.sum().clamp(min=1)
        classification = binary_cross_entropy_with_logits(
            objectness, sampled.positive.float(), reduction="none"
        )
        regression = self.box_loss(
            deltas, sampled.anchors, sampled.matched_gt_boxes, sampled.positive
        )
        return {
            "loss_objectness": torch.where(sampled.valid, classification, 0.0).sum() / count,
            "loss_rpn_box_reg": regression / count,
        }

    @torch.no_grad()
    def propose(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes_hw: Sequence[Size],
    ) -> list[Tensor]:
        """Select the best boxes of each image.

        Args:
            objectness: ``(B, A_l)`` logits of each level.
            deltas: ``(B, A_l, 4)`` of each level.
            anchors: ``(A_l, 4)`` of each level.
            sizes_hw: the size of each image.
        """
        boxes, scores = self._best(objectness, deltas, anchors)
        levels = [torch.full_like(s, level, dtype=torch.int64) for level, s in enumerate(scores)]
        candidates = zip(
            torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1), sizes_hw, strict=True
        )
        return [self.suppress(*candidate) for candidate in candidates]

    def _best(
        self, objectness: Sequence[Tensor], deltas: Sequence[Tensor], anchors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Select the best of each level: boxes ``(B, k_l, 4)``, scores ``(B, k_l)``, descending."""
        boxes, scores = [], []
        for logits, level_deltas, level_anchors in zip(objectness, deltas, anchors, strict=True):
            best = logits.float().topk(min(self.pre_nms_top_n(), logits.shape[1]), dim=1)
            chosen = level_deltas.gather(1, best.indices.unsqueeze(2).expand(-1, -1, 4))
            boxes.append(self.box_coder.decode(chosen, level_anchors[best.indices]))
            scores.append(best.values.sigmoid())
        return boxes, scores

    def suppress(self, boxes: Tensor, scores: Tensor, levels: Tensor, size_hw: Size) -> Tensor:
        """Clip the candidates of one image, drop tiny and low-scoring ones, then NMS per level."""
        boxes = clip_boxes_to_image(boxes, size_hw)
        large = (boxes[:, 2:] - boxes[:, :2] >= self.min_size).all(dim=1)
        keep = torch.where(large & (scores >= self.score_thresh))[0]
        boxes, scores, levels = boxes[keep], scores[keep], levels[keep]
        return boxes[first_survivors(boxes, scores, levels, self.nms_thresh, self.post_nms_top_n())]

    def suppress_in_slots(
        self, boxes: Sequence[Tensor], scores: Sequence[Tensor], corners: Tensor
    ) -> Proposals:
        """Suppress the candidates of all images on a GPU; see ``suppress_on_gpu``."""
        from detector.fast.proposals_on_gpu import suppress_on_gpu  # needs Triton

        return suppress_on_gpu(
            boxes,
            scores,
            corners,
            smallest_side=self.min_size,
            score_threshold=self.score_thresh,
            nms_threshold=self.nms_thresh,
            most=self.post_nms_top_n(),
        )
