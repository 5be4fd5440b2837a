"""The RPN's head evaluated only at the anchors that the losses read.

Proposals have no gradient, and the losses read at most a few hundred anchors per image. So the head
runs over whole maps without an autograd graph, and ``predictions_at`` recomputes with a graph its
outputs for the sampled anchors, each from the 3 x 3 patch around it. This saves the backward pass
of the dense head, which costs twice its forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead


def is_one_layer(head: nn.Module) -> bool:
    """Return whether ``predictions_at`` applies: the head has one 3 x 3 convolution."""
    return isinstance(head, RPNHead) and len(head.conv) == 1


def predictions_at(head: RPNHead, maps: Sequence[Tensor], indices: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the head's outputs for some anchors, the entries ``indices`` of its dense output.

    Args:
        head: an RPN head with a single shared convolution.
        maps: ``(B, C, H_l, W_l)`` of each level.
        indices: ``(B, S)`` int64 into the anchors of all levels; an anchor's index in its level is
            ``(y * W_l + x) * anchors_per_location + k``.

    Returns:
        ``(B, S)`` logits and ``(B, S, 4)`` deltas; every map and every parameter of the head is
        part of their graph.
    """
    convolution, anchors = head.conv[0][0], head.cls_logits.out_channels
    image = torch.arange(len(indices)).unsqueeze(1).expand_as(indices).flatten()
    patches = _patches_at(maps, image, indices.flatten() // anchors)
    hidden = F.linear(patches, as_rows(convolution.weight), convolution.bias).relu()
    logits = F.linear(hidden, as_rows(head.cls_logits.weight), head.cls_logits.bias)
    deltas = F.linear(hidden, as_rows(head.bbox_pred.weight), head.bbox_pred.bias)
    own = (indices.flatten() % anchors).unsqueeze(1)
    logits = logits.gather(1, own)
    deltas = deltas.unflatten(1, (anchors, 4)).gather(1, own.unsqueeze(2).expand(-1, -1, 4))
    return logits.view(indices.shape), deltas.view(*indices.shape, 4)


def as_rows(weight: Tensor) -> Tensor:
    """Reshape a convolution's ``(O, C, h, w)`` weight to ``(O, h * w * C)``, in patch order.

    Channels are adjacent, as in channels-last maps and weights, so that the gradient has the memory
    order of DDP's buckets.
    """
    return weight.permute(0, 2, 3, 1).flatten(1)


def _patches_at(maps: Sequence[Tensor], image: Tensor, location: Tensor) -> Tensor:
    """Gather the 3 x 3 neighborhood of each location, zero outside its map.

    Args:
        maps: ``(B, C, H_l, W_l)`` of each level.
        image: ``(N,)`` int64.
        location: ``(N,)`` int64, counted through the levels, row by row.

    Returns:
        ``(N, 9 * C)``: row by row, with the channels of a pixel adjacent.
    """
    parts, places, start = [], [], 0
    for feature_map in maps:
        _, channels, height, width = feature_map.shape
        stop = start + height * width
        place = torch.where((location >= start) & (location < stop))[0]
        offset = torch.arange(-1, 2)
        y = ((location[place] - start) // width).view(-1, 1, 1) + offset.view(1, 3, 1)
        x = ((location[place] - start) % width).view(-1, 1, 1) + offset.view(1, 1, 3)
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
        row = (image[place].view(-1, 1, 1) * height + y) * width + x
        # Patches overlap: the gradient of index_select adds them up in a fixed order, that of [...]
        # in the order in which threads run.
        pixels = feature_map.permute(0, 2, 3, 1).reshape(-1, channels)
        pixels = pixels.index_select(0, row.flatten()).view(*row.shape, channels)
        parts.append(torch.where(inside.unsqueeze(3), pixels, 0).flatten(1))
        places.append(place)
        start = stop
    return torch.cat(parts)[torch.cat(places).argsort()]
