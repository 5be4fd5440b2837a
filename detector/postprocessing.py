"""Convert a detector's output to detections in the original image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]

MASK_THRESHOLD = 0.5  # a pixel belongs to the object if its probability is above this


def resize_detections(
    detections: dict[str, Tensor], size_hw: Size, original_size_hw: Size
) -> dict[str, Tensor]:
    """Scale the detections of one image to the pixels of the original image.

    Args:
        detections: ``boxes (D, 4)`` xyxy in pixels of the detector's input, and any other entries.
        size_hw: the size of the image as the detector saw it, without padding.
        original_size_hw: the original size of the image.

    Returns:
        A copy with scaled boxes; masks are relative to their box and stay unchanged.
    """
    scale_y = original_size_hw[0] / size_hw[0]
    scale_x = original_size_hw[1] / size_hw[1]
    x1, y1, x2, y2 = detections["boxes"].unbind(dim=1)
    boxes = torch.stack((x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y), dim=1)
    return {**detections, "boxes": boxes}


def paste_masks(masks: Tensor, boxes: Tensor, size_hw: Size) -> Tensor:
    """Paste masks of objects in their boxes into masks of the whole image.

    This equals torchvision's ``paste_masks_in_image`` followed by a threshold. The threshold is
    applied before pasting, so that besides the result only one object's pixels are in memory.

    Args:
        masks: ``(D, 1, M, M)`` probabilities.
        boxes: ``(D, 4)`` xyxy in pixels of the image.
        size_hw: the size of the image.

    Returns:
        ``(D, H, W)`` bool.
    """
    height, width = size_hw
    image_masks = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    padded = F.pad(masks.float(), (1, 1, 1, 1))
    whole_boxes = _expand_boxes(boxes.float(), padded.shape[-1] / masks.shape[-1])
    for image_mask, mask, (x1, y1, x2, y2) in zip(
        image_masks, padded, whole_boxes.tolist(), strict=True
    ):
        size = (max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        left, top = max(x1, 0), max(y1, 0)
        right, bottom = min(x2 + 1, width), min(y2 + 1, height)
        if left >= right or top >= bottom:
            continue
        pixels = F.interpolate(mask[None], size=size, mode="bilinear", align_corners=False)[0, 0]
        visible = pixels[top - y1 : bottom - y1, left - x1 : right - x1]
        torch.gt(visible, MASK_THRESHOLD, out=image_mask[top:bottom, left:right])
    return image_masks


def _expand_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Enlarge ``(D, 4)`` xyxy around their centers, in whole pixels, to fit a mask's padding."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    half_width, half_height = (x2 - x1) * 0.5 * scale, (y2 - y1) * 0.5 * scale
    x, y = (x2 + x1) * 0.5, (y2 + y1) * 0.5
    expanded = torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), 1)
    return expanded.to(torch.int64)
