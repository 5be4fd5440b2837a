"""The mask branch of Mask R-CNN: its targets and its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import roi_align

from detector.fast.rpn_at_anchors import as_rows


def crop_masks(
    masks: Sequence[Tensor], boxes: Sequence[Tensor], objects: Sequence[Tensor], size: int
) -> Tensor:
    """Compute the mask target of each box: its object's mask, cropped and resampled.

    Args:
        masks: ``(N_b, H_b, W_b)`` uint8 of 0 and 1 for each image; if N_b is 0, its crops are 0.
        boxes: ``(R_b, 4)`` float32 xyxy in pixels.
        objects: ``(R_b,)`` int64: the object of each box.
        size: bins per side.

    Returns:
        ``(sum of R_b, size, size)`` float32 in 0..1. One image's masks are in float32 at a time.
    """
    crops = [boxes[0].new_zeros((0, size, size))]
    for image_masks, image_boxes, image_objects in zip(masks, boxes, objects, strict=True):
        if len(image_masks) == 0:
            crops.append(image_boxes.new_zeros((len(image_boxes), size, size)))
        elif len(image_boxes):
            rois = torch.cat([image_objects[:, None].to(image_boxes), image_boxes], dim=1)
            crops.append(roi_align(image_masks[:, None].float(), rois, (size, size))[:, 0])
    return torch.cat(crops)


def mask_logits_of(predictor: MaskRCNNPredictor, features: Tensor, classes: Tensor) -> Tensor:
    """Compute each RoI's mask for its own class: ``predictor(features)[r, classes[r]]``.

    The last layer, a 1 x 1 convolution with an output for each class, is evaluated for one class.

    Args:
        predictor: upsamples, then computes a mask for each class.
        features: ``(R, C, M / 2, M / 2)``.
        classes: ``(R,)`` int64 channel of each RoI.

    Returns:
        ``(R, M, M)`` logits.
    """
    hidden = predictor.relu(predictor.conv5_mask(features))
    last = predictor.mask_fcn_logits
    # RoIs share classes. The gradient of embedding adds them up in a fixed order on every device;
    # that of [classes] on a CPU, and of index_select on a GPU, in the order in which threads run.
    weights = F.embedding(classes, as_rows(last.weight)).unsqueeze(1)
    logits = torch.bmm(weights, hidden.flatten(2)).unflatten(2, hidden.shape[2:]).squeeze(1)
    return logits + F.embedding(classes, last.bias.unsqueeze(1)).unsqueeze(1)


def mask_probabilities(logits: Tensor) -> Tensor:
    """``(R, M, M)`` logits -> ``(R, 1, M, M)`` float32 probabilities, as in detections."""
    return logits.float().sigmoid().unsqueeze(1)
