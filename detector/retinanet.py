"""RetinaNet: torchvision's modules and state-dict keys, with our losses for the whole batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.models.detection import retinanet
from torchvision.ops import batched_nms, clip_boxes_to_image

from data.target import Targets, check_targets
from detector.anchors import PyramidAnchors, anchors_of
from detector.backbone import Backbone
from detector.box_regression import BoxCoder, BoxLoss
from detector.config import DetectorConfig
from detector.fast.cuda_graphs import CUDAGraphs
from detector.fast.sparse_towers import Wanted
from detector.matching import gather_matched, match_anchors
from detector.norm import pyramid_norm_layer
from detector.preprocessing import Preprocessing
from detector.retinanet_head import RetinaNetHead
from losses.config import LossConfig
from losses.focal_sums import fastest_focal_sums
from losses.triton_support import has_kernels


class RetinaNet(retinanet.RetinaNet):
    """RetinaNet (Lin et al., https://arxiv.org/abs/1708.02002).

    Args:
        backbone: network and pyramid.
        config: the detector's options.
        loss: ``box`` is the box loss; ``normalizer`` says what both losses are divided by.
            ``batch``: the positives of the batch, each image counted as at least 1 (the paper).
            ``image``: each image by its own positives, at least 1, then the mean over images
            (torchvision).
        num_classes: number of classes, without background.

    Attributes:
        loss_names: names of the losses returned in training mode.
        weighting_pairs: the pair of losses that the paper weights, classification first.
        num_classes: number of classes, without background.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("classification", "bbox_regression")
    weighting_pairs: ClassVar[Mapping[str, tuple[str, str]]] = {
        "head": ("classification", "bbox_regression")
    }

    def __init__(
        self, backbone: Backbone, config: DetectorConfig, loss: LossConfig, num_classes: int
    ) -> None:
        anchors = anchors_of(config)
        super().__init__(
            backbone,
            num_classes,
            anchor_generator=anchors,
            head=_build_head(backbone, anchors, config, num_classes),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.detections_per_image,
            topk_candidates=config.retinanet.topk_candidates,
        )
        self.transform = Preprocessing(channels_last=config.channels_last)
        self.config = config.retinanet
        self.num_classes = num_classes
        self.normalizer = loss.normalizer
        self.graphs = CUDAGraphs(self, self._pass) if config.cuda_graphs else None
        self.box_coder = BoxCoder()
        self.box_loss = BoxLoss(loss.box, self.box_coder)

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Compute losses in training mode, else detections.

        Args:
            images: ``(3, H_b, W_b)`` uint8, or floating point in 0..1, on the detector's device.
            targets: the ground truth, in pixels of these images; needed in training mode.

        Returns:
            In training mode the losses by name, scalars. In evaluation mode, for each image,
            ``boxes (D, 4)`` float32 xyxy, ``scores (D,)`` float32, descending, ``labels (D,)``
            int64.

        Raises:
            ValueError: there are no images, or in training mode no ``Targets`` for each of them.
        """
        targets = check_targets(targets, len(images)) if self.training else None
        batch = self.transform(images)
        graphs = self.graphs if has_kernels(batch.tensors.device) else None
        run = graphs or self._pass
        if targets is None:
            boxes, scores, labels = run(batch.tensors)
            return self._select(boxes, scores, labels, batch.image_sizes)
        if graphs is None:
            return self.training_losses(*self._maps_and_anchors(batch.tensors), targets)
        targets = targets.with_few_shapes()
        losses = run(batch.tensors, targets.boxes, targets.labels)
        # copies, because the next batch's losses are written to the same memory
        return {name: loss.clone() for name, loss in zip(self.loss_names, losses, strict=True)}

    def last_shared_weights(self, losses: Collection[str]) -> list[Tensor]:  # noqa: ARG002
        """Return the weights of the last layers that these losses share: the pyramid's outputs."""
        return self.backbone.output_weights

    def _maps_and_anchors(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        maps = list(self.backbone(images).values())
        height, width = images.shape[-2:]
        return maps, self.anchor_generator.of_pyramid((height, width), maps)

    def _pass(
        self, images: Tensor, boxes: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Process a batch without control flow that depends on values, to capture in a CUDA graph.

        Returns:
            Given boxes and labels, the losses by ``loss_names``; else the result of
            ``_candidates``.
        """
        maps, anchors = self._maps_and_anchors(images)
        if boxes is None or labels is None:
            return self._candidates(maps, anchors)
        targets = Targets(boxes, labels, (labels.shape[1],) * len(labels))
        losses = self.training_losses(maps, anchors, targets)
        return tuple(losses[name] for name in self.loss_names)

    def training_losses(
        self, maps: Sequence[Tensor], anchors: Sequence[Tensor], targets: Targets
    ) -> dict[str, Tensor]:
        """Compute the two losses, in float32, for all images at once.

        Args:
            maps: ``(B, C, H_l, W_l)`` of each level.
            anchors: ``(A_l, 4)`` of each level.
            targets: the ground truth of ``B`` images.
        """
        config = self.config
        all_anchors = torch.cat(list(anchors))
        matches = match_anchors(
            all_anchors,
            targets,
            config.foreground_iou,
            config.background_iou,
            config.low_quality_matches,
        )
        positives = (matches >= 0).sum(dim=1)
        sums = {
            "classification": self._focal_sums(maps, matches, targets),
            "bbox_regression": self._box_sums(maps, all_anchors, matches, targets),
        }
        return {
            name: _normalize(image_sums, positives, self.normalizer)
            for name, image_sums in sums.items()
        }

    def _focal_sums(self, maps: Sequence[Tensor], matches: Tensor, targets: Targets) -> Tensor:
        """``(B, A)`` matches -> ``(B,)``: the focal loss of each image's anchors."""
        labels = gather_matched(targets.labels, matches).where(matches >= 0, matches)
        levels = self.head.classify(maps)
        focal = fastest_focal_sums(labels.device)
        sums = [
            focal(logits, level_labels, self.config.focal_alpha, self.config.focal_gamma)
            for logits, level_labels in zip(
                levels, labels.split([level.shape[1] for level in levels], dim=1), strict=True
            )
        ]
        return torch.stack(sums).sum(dim=0)

    def _box_sums(
        self, maps: Sequence[Tensor], anchors: Tensor, matches: Tensor, targets: Targets
    ) -> Tensor:
        """``(B, A)`` matches -> ``(B,)``: the box loss of each image's positive anchors."""
        # A fast path that reads values, for which the host would have to wait on other devices.
        if matches.device.type == "cpu" and self.head.looks_locally:
            return self._box_sums_of_positives(maps, anchors, matches, targets)
        deltas = torch.cat(self.head.regress(maps), dim=1)
        boxes = gather_matched(targets.boxes, matches)
        losses = self.box_loss.per_box(deltas, anchors.expand_as(boxes), boxes, matches >= 0)
        return losses.sum(dim=1)

    def _box_sums_of_positives(
        self, maps: Sequence[Tensor], anchors: Tensor, matches: Tensor, targets: Targets
    ) -> Tensor:
        """Compute the same sums as ``_box_sums``, at the positive anchors only."""
        images, rows = (matches >= 0).nonzero(as_tuple=True)
        counts = torch.ones_like(images, dtype=torch.bool)
        if len(images) == 0:  # use one anchor, because every parameter needs a gradient
            images, rows, counts = images.new_zeros(1), rows.new_zeros(1), counts.new_zeros(1)
            rows += len(anchors) - 1  # on the smallest map
        objects = matches[images, rows].clamp(min=0)
        references = anchors[rows]
        has_boxes = targets.boxes.shape[1] > 0
        boxes = targets.boxes[images, objects] if has_boxes else references
        deltas = self.head.regress_at(maps, Wanted(images, rows, objects))
        losses = self.box_loss.per_box(deltas, references, boxes, counts)
        return losses.new_zeros(len(matches)).index_add(0, images, losses)

    def _candidates(
        self, maps: Sequence[Tensor], anchors: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Select the best predictions per level: boxes ``(B, k, 4)``, scores, labels ``(B, k)``."""
        logits, deltas = self.head.classify(maps), self.head.regress(maps)
        levels = [
            self._best_of_level(*level) for level in zip(logits, deltas, anchors, strict=True)
        ]
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        return boxes, scores, labels

    def _select(
        self,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Select the detections of each image: candidates above the score threshold, after NMS."""
        return [
            self._suppress(clip_boxes_to_image(image_boxes, size), image_scores, image_labels)
            for image_boxes, image_scores, image_labels, size in zip(
                boxes, scores, labels, image_sizes, strict=True
            )
        ]

    def _best_of_level(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``(B, A, classes)``, ``(B, A, 4)``, ``(A, 4)`` -> boxes, scores, labels of ``(B, k)``."""
        count = min(self.topk_candidates, logits[0].numel())
        # The best k (anchor, class) pairs belong to the k anchors with the highest best class.
        # Logits are ordered like scores, so only the best need the sigmoid.
        anchor = logits.amax(dim=2).topk(min(count, len(anchors)), dim=1, sorted=False).indices
        best = _gather_rows(logits, anchor).flatten(1).topk(count, dim=1)
        anchor = anchor.gather(1, best.indices // self.num_classes)
        boxes = self.box_coder.decode(_gather_rows(deltas, anchor), anchors[anchor])
        return boxes, best.values.float().sigmoid(), best.indices % self.num_classes

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # NaN boxes compare false here; the COCO API would match them with any object.
        candidates = (scores > self.score_thresh) & (boxes[:, 2:] >= boxes[:, :2]).all(dim=1)
        boxes, scores, labels = boxes[candidates], scores[candidates], labels[candidates]
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def _gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """``(B, A, C)`` and ``(B, k)`` -> ``(B, k, C)``."""
    return values.gather(1, rows.unsqueeze(-1).expand(-1, -1, values.shape[2]))


def _build_head(
    backbone: Backbone, anchors: PyramidAnchors, config: DetectorConfig, num_classes: int
) -> RetinaNetHead:
    return RetinaNetHead(
        backbone.out_channels,
        anchors.num_anchors_per_location()[0],
        num_classes,
        depth=config.retinanet.tower_depth,
        norm=pyramid_norm_layer(config.retinanet.head_norm),
        head_init=config.head_init,
        prior_probability=config.retinanet.prior_probability,
    )


def _normalize(sums: Tensor, positives: Tensor, normalizer: str) -> Tensor:
    """``(B,)`` loss sums and numbers of positives -> the loss of the batch."""
    counts = positives.clamp(min=1)
    if normalizer == "image":
        return (sums / counts).mean()
    return sums.sum() / counts.sum()
