"""The box head at some anchors: as on whole maps, however the anchors lie."""

from __future__ import annotations

import pytest
import torch

from detector.fast.sparse_towers import Wanted, deltas_at
from detector.retinanet_head import RetinaNetHead

CHANNELS, ANCHORS = 6, 3
SHAPES = ((24, 31), (12, 16), (6, 8), (1, 1))
COUNTS = [height * width * ANCHORS for height, width in SHAPES]


def make_head(depth: int) -> RetinaNetHead:
    torch.manual_seed(0)
    head = RetinaNetHead(CHANNELS, ANCHORS, 2, depth=depth, head_init="width")
    for parameter in head.parameters():  # biases too: what lies beyond the map must not leak in
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def wanted_near(centers: list[tuple[int, int, int, int]], spread: int) -> Wanted:
    """Anchors around (image, level, y, x), an object each, as far as they are on the map."""
    rows = []
    for number, (image, level, y, x) in enumerate(centers):
        height, width = SHAPES[level]
        for dy in range(-spread, spread + 1):
            for dx in range(-spread, spread + 1):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    location = (y + dy) * width + x + dx
                    anchor = sum(COUNTS[:level]) + location * ANCHORS + (dy + dx) % ANCHORS
                    rows.append((image, anchor, number))
    shuffled = torch.tensor(rows)[torch.randperm(len(rows))]
    return Wanted(*shuffled.unbind(1))


CASES = {
    "one anchor": wanted_near([(1, 0, 12, 15)], 0),
    "a corner": wanted_near([(0, 0, 0, 0)], 1),
    "all corners": wanted_near([(0, 0, 0, 0), (1, 0, 23, 30), (0, 0, 23, 0), (1, 0, 0, 30)], 1),
    "neighbors of two images": wanted_near([(0, 0, 8, 8), (0, 0, 9, 9), (1, 0, 8, 8)], 1),
    "several levels": wanted_near([(0, 0, 5, 5), (1, 1, 6, 6), (0, 2, 3, 3), (1, 3, 0, 0)], 1),
    "most of a map": wanted_near([(0, 0, 12, 15), (1, 0, 12, 15)], 9),
    "the smallest map": wanted_near([(0, 3, 0, 0)], 0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_deltas_and_gradients_are_those_of_whole_maps(case, depth, order) -> None:
    head, wanted = make_head(depth), CASES[case]
    maps = [torch.randn(2, CHANNELS, *shape).to(memory_format=order) for shape in SHAPES]
    inputs = [*(level.requires_grad_() for level in maps), *head.regression_head.parameters()]
    found = deltas_at(head.regression_head, maps, ANCHORS, wanted)
    expected = torch.cat(head.regress(maps), dim=1)[wanted.images, wanted.anchors]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((found * weights).sum(), inputs, allow_unused=True)
    reference = torch.autograd.grad((expected * weights).sum(), inputs)
    for gradient, other in zip(gradients, reference, strict=True):
        scale = float(other.abs().max())
        gradient = torch.zeros_like(other) if gradient is None else gradient
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5 * scale)


def test_few_anchors_of_a_large_map_are_computed_in_windows() -> None:
    head = make_head(4)
    sizes = []
    for block in head.regression_head.conv:
        block[1].register_forward_hook(lambda *arguments: sizes.append(arguments[2].shape[-2:]))
    maps = [torch.randn(2, CHANNELS, *shape) for shape in SHAPES]
    deltas_at(head.regression_head, maps, ANCHORS, CASES["one anchor"])
    assert sizes == [(9, 9), (7, 7), (5, 5), (3, 3)]
