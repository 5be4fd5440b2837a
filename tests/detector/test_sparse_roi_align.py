"""RoIAlign as a sparse product against torchvision's operation: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detector.fast.sparse_roi_align import bin_taps, sparse_roi_align
from detector.roi_pooling import RoIPooler, to_rois

NAMES, LEVELS = ["0", "1", "2", "3"], (2, 3, 4, 5)
HEIGHT, WIDTH = 256, 320


def random_maps(order: torch.memory_format = torch.contiguous_format) -> dict[str, Tensor]:
    sizes = [(HEIGHT >> level, WIDTH >> level) for level in LEVELS]
    maps = [torch.randn(2, 6, *size).contiguous(memory_format=order) for size in sizes]
    return {
        name: feature_map.requires_grad_() for name, feature_map in zip(NAMES, maps, strict=True)
    }


def boxes_anywhere(count: int, largest: float) -> Tensor:
    """Boxes in, across and outside the image's border, some of them inverted or without area."""
    corner = torch.rand(count, 2) * torch.tensor([WIDTH, HEIGHT]) * 1.4 - 60
    return torch.cat([corner, corner + torch.rand(count, 2) * (largest + 10) - 10], dim=1)


def assert_same_pooling(pooler: RoIPooler, features: dict[str, Tensor], rois: Tensor) -> None:
    """Values and gradients of both ways of pooling."""
    maps = list(features.values())
    ours = pooler(features, rois)
    expected = pooler.pool_each_map(maps, pooler.choose_maps(rois[:, 1:]), rois)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-6)
    upstream = torch.randn_like(expected)
    gradients = zip(
        torch.autograd.grad(ours, maps, upstream),
        torch.autograd.grad(expected, maps, upstream),
        strict=True,
    )
    for ours_of_map, theirs_of_map in gradients:
        torch.testing.assert_close(ours_of_map, theirs_of_map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 3), (300, 7)], ids=str)
@pytest.mark.parametrize(("bins", "samples"), [(7, 2), (14, 2), (3, 1), (2, 3)])
def test_pooling_and_its_gradient_are_torchvisions(bins, samples, counts, order) -> None:
    torch.manual_seed(0)
    pooler = RoIPooler(NAMES, LEVELS, bins, samples)
    rois = to_rois([boxes_anywhere(count, largest=400) for count in counts])
    assert_same_pooling(pooler, random_maps(order), rois)


def test_maps_without_regions_are_part_of_the_graph_with_a_gradient_of_zero() -> None:
    torch.manual_seed(0)
    features = random_maps()
    small = to_rois([boxes_anywhere(5, largest=20), boxes_anywhere(0, largest=20)])
    RoIPooler(NAMES, LEVELS, 7, 2)(features, small).sum().backward()
    touched = [bool(feature_map.grad.any()) for feature_map in features.values()]
    assert touched == [True, False, False, False]


@pytest.mark.parametrize("cells", [1, 2, 9])
def test_samples_on_the_border_of_a_map_are_torchvisions(cells) -> None:
    # Samples at exactly -1, 0, the last cell and the end, where a rule changes.
    ends = torch.tensor([-1.5, -1.0, -0.5, 0.0])
    places = torch.cat([ends, cells - 1 - ends, torch.tensor([float(cells), cells + 1.0])])
    y, x = torch.meshgrid(places - 0.5, places - 0.5, indexing="ij")
    corner = torch.stack([x.flatten(), y.flatten()], dim=1)
    rois = to_rois([torch.cat([corner, corner + 1], dim=1)])
    feature_map = torch.randn(1, 2, cells, cells)
    ours = sparse_roi_align([feature_map], [1.0], torch.zeros(len(rois)).long(), rois, 1, 1)
    torch.testing.assert_close(ours, roi_align(feature_map, rois, 1, 1.0, 1))


def test_the_weights_of_a_bin_inside_the_map_add_up_to_one() -> None:
    maps = [torch.zeros(1, 1, 20, 30)]
    rois = torch.tensor([[0.0, 10.0, 20.0, 90.0, 70.0]])
    taps, weights = bin_taps(maps, [0.25], torch.zeros(1).long(), rois, 7, 2)
    assert taps.shape == weights.shape == (1, 7, 7, 16)
    torch.testing.assert_close(weights.sum(3), torch.ones(1, 7, 7))


def test_bfloat16_maps_are_pooled_in_float32_as_torchvision_does() -> None:
    torch.manual_seed(0)
    features = {name: value.detach().bfloat16() for name, value in random_maps().items()}
    pooler = RoIPooler(NAMES, LEVELS, 7, 2)
    rois = to_rois([boxes_anywhere(20, largest=300), boxes_anywhere(4, largest=300)])
    pooled = pooler(features, rois)
    expected = pooler({name: value.float() for name, value in features.items()}, rois)
    assert pooled.dtype == torch.bfloat16
    assert torch.equal(pooled, expected.bfloat16())


def test_a_region_that_is_not_a_number_pools_to_nothing_that_looks_like_one() -> None:
    rois = torch.tensor([[0.0, float("nan"), 0.0, 20.0, 20.0]])
    assert RoIPooler(NAMES, LEVELS, 2, 2)(random_maps(), rois).isnan().all()
