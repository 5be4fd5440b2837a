"""Detectors for one image of any size, in operations that tracing records.

A detector's own forward reads sizes and counts on the host (such as the number of detections of
each image), and a trace would keep those of its example image. For one image none of them is
needed, and the rest depends only on tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import _topk_min  # a min(k, len(x)) that a trace keeps
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from detector.anchors import PyramidAnchors, per_anchor
from detector.build import Detector
from detector.preprocessing import DIVISOR
from detector.rcnn import FasterRCNN
from detector.retinanet import RetinaNet
from detector.retinanet_head import RetinaNetHead
from detector.roi_pooling import RoIPooler
from detector.rpn import RegionProposalNetwork

Level = tuple[Tensor, Tensor, Tensor]  # logits (A, K), deltas (A, 4), anchors (A, 4)

OUTPUTS = ("boxes", "labels", "scores", "masks")


def for_one_image(detector: Detector) -> nn.Module:
    """Return the detector as a module ``(3, H, W) uint8 RGB -> boxes, labels, scores[, masks]``."""
    if isinstance(detector, RetinaNet):
        return OneImageRetinaNet(detector).eval()
    return OneImageRCNN(detector).eval()


def _prepare(image: Tensor, detector: Detector) -> Tensor:
    """``(3, H, W)`` -> ``(1, 3, H', W')`` normalized, zeros up to multiples of ``DIVISOR``."""
    transform = detector.transform
    normal = (image.float() / 255 - transform.mean) / transform.std
    height, width = image.shape[1], image.shape[2]
    below = (height + DIVISOR - 1) // DIVISOR * DIVISOR - height
    beside = (width + DIVISOR - 1) // DIVISOR * DIVISOR - width
    return F.pad(normal[None], (0, beside, 0, below))


def _anchors(generator: PyramidAnchors, level: int, map_: Tensor, padded: Tensor) -> Tensor:
    """``(H_l * W_l * a, 4)``: the anchors of one level, from the size of its map."""
    height, width = map_.shape[2], map_.shape[3]
    if generator.exact_strides is None:
        stride_y, stride_x = padded.shape[2] // height, padded.shape[3] // width
    else:
        stride_y = stride_x = generator.exact_strides[level]
    y = (torch.arange(height, device=map_.device) * stride_y).float()
    x = (torch.arange(width, device=map_.device) * stride_x).float()
    rows = (y[:, None] + torch.zeros_like(x)).reshape(-1)  # a trace would keep len(x)
    columns = (x + torch.zeros_like(y)[:, None]).reshape(-1)
    corners = torch.stack((columns, rows, columns, rows), dim=1)
    cell = generator.cell_anchors[level].to(map_.device)
    return (corners[:, None] + cell[None]).reshape(-1, 4)


class OneImageRetinaNet(nn.Module):
    """RetinaNet's detections of one image."""

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(3, H, W)`` uint8 -> ``boxes (D, 4)``, ``labels (D,)``, ``scores (D,)``."""
        detector = self.detector
        padded = _prepare(image, detector)
        maps = list(detector.backbone(padded).values())
        assert isinstance(detector.head, RetinaNetHead)
        parts = []
        for number, map_ in enumerate(maps):
            output = detector.head([map_])
            anchors = _anchors(detector.anchor_generator, number, map_, padded)
            parts.append(
                self._best((output["cls_logits"][0], output["bbox_regression"][0], anchors))
            )
        boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        boxes = clip_boxes_to_image(boxes, (image.shape[1], image.shape[2]))
        x1, y1, x2, y2 = boxes.unbind(dim=1)
        sure = torch.where((scores > detector.score_thresh) & (x2 >= x1) & (y2 >= y1))[0]
        boxes, scores, labels = boxes[sure], scores[sure], labels[sure]
        keep = batched_nms(boxes, scores, labels, detector.nms_thresh)
        keep = keep[: detector.detections_per_img]
        return boxes[keep], labels[keep], scores[keep]

    def _best(self, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """The best (anchor, class) pairs of a level: boxes, scores, labels."""
        logits, deltas, anchors = level
        flat = logits.reshape(-1)
        count = _topk_min(flat, self.detector.topk_candidates, 0)
        best = flat.topk(count)
        anchor = best.indices // self.detector.num_classes
        boxes = self.detector.box_coder.decode(deltas[anchor], anchors[anchor])
        return boxes, best.values.sigmoid(), best.indices % self.detector.num_classes


class OneImageRCNN(nn.Module):
    """Faster and Mask R-CNN for one image; masks are in the image's boxes, M x M."""

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """``(3, H, W)`` uint8 -> ``boxes (D, 4)``, ``labels (D,)``, ``scores (D,)``.

        With a mask head also ``masks (D, 1, M, M)``, probabilities.
        """
        padded = _prepare(image, self.detector)
        features = self.detector.backbone(padded)
        size = (image.shape[1], image.shape[2])
        proposals = self._propose(features, padded, size)
        heads = self.detector.roi_heads
        logits, deltas = heads.box_predictor(
            heads.box_head(_pool(heads.box_roi_pool, features, proposals))
        )
        scores = logits.softmax(dim=1)[:, 1:]
        row, column = torch.where(scores > heads.score_thresh)
        # With its size named the shape is clear for an image without proposals, too.
        chosen = deltas.reshape(-1, logits.shape[1], 4)[row, column + 1]
        found = heads.suppress(
            heads.box_coder.decode(chosen, proposals[row]), scores[row, column], column, size
        )
        boxes, labels = found["boxes"], found["labels"]
        if not heads.has_mask():
            return boxes, labels, found["scores"]
        pooled = heads.mask_head(_pool(heads.mask_roi_pool, features, boxes))
        masks = heads.mask_predictor(pooled)
        own = masks[torch.arange(masks.shape[0], device=masks.device), labels + 1]
        return boxes, labels, found["scores"], own.sigmoid()[:, None]

    def _propose(
        self, features: dict[str, Tensor], padded: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """``(P, 4)``: the proposals of the image."""
        rpn: RegionProposalNetwork = self.detector.rpn
        maps = list(features.values())
        boxes, scores, levels = [], [], []
        for number, map_ in enumerate(maps):
            logits, deltas = (level for (level,) in rpn.head([map_]))
            objectness = per_anchor(logits, 1).reshape(-1)
            count = _topk_min(objectness, rpn.pre_nms_top_n(), 0)
            best = objectness.topk(count)
            anchors = _anchors(rpn.anchor_generator, number, map_, padded)[best.indices]
            boxes.append(rpn.box_coder.decode(per_anchor(deltas, 4)[0, best.indices], anchors))
            scores.append(best.values.sigmoid())
            levels.append(torch.full_like(best.indices, number))
        return rpn.suppress(torch.cat(boxes), torch.cat(scores), torch.cat(levels), size)


def _pool(pooler: RoIPooler, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """``(R, 4)`` -> ``(R, C, S, S)``: the pooler's result, joined from its levels and sorted."""
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)
    map_of_roi = pooler.choose_maps(boxes)
    rows, parts = [], []
    for number, (name, level) in enumerate(zip(pooler.featmap_names, pooler.levels, strict=True)):
        rows.append(torch.where(map_of_roi == number)[0])
        parts.append(
            roi_align(
                features[name],
                rois[rows[-1]],
                pooler.output_size,
                spatial_scale=2.0**-level,
                sampling_ratio=pooler.sampling_ratio,
            )
        )
    return torch.cat(parts)[torch.argsort(torch.cat(rows))]
