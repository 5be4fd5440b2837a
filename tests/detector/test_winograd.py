"""Convolutions with fewer products: PyTorch's numbers and gradients, and where they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.target import pad_targets
from detector.build import build_detector
from detector.config import DetectorConfig
from detector.fast import winograd
from detector.fast.norm_folding import FoldedConv2d
from detector.fast.winograd import WinogradConv2d, convolve, pays, plain_convolutions, use_winograd
from losses.config import LossConfig

SHAPES = [(2, 3, 5, 9, 7), (1, 4, 4, 4, 4), (3, 2, 6, 17, 3), (1, 1, 1, 3, 3), (5, 8, 2, 8, 12)]
needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="used with MKL alone")

Layer = Callable[[Sequence[Tensor], Tensor, Tensor], Sequence[Tensor]]


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it paid for every convolution that it fits."""
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)
    monkeypatch.setattr(winograd, "LARGEST_WASTE", 100)


def plain(maps: Sequence[Tensor], weight: Tensor, bias: Tensor, padding: int) -> list[Tensor]:
    return [F.conv2d(values, weight, bias, padding=padding) for values in maps]


def outputs_and_gradients(
    layer: Layer, maps: Sequence[Tensor], weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    leaves = [value.to(dtype, copy=True).requires_grad_() for value in (*maps, weight, bias)]
    outputs = layer(leaves[:-2], leaves[-2], leaves[-1])
    torch.manual_seed(1)
    torch.stack(
        [(out * torch.randn(out.shape).to(dtype)).sum() for out in outputs]
    ).sum().backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == len(leaves)
    return [*(output.detach() for output in outputs), *gradients]


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize(("images", "channels", "filters", "height", "width"), SHAPES)
def test_values_and_gradients_are_those_of_the_plain_convolution(
    images: int, channels: int, filters: int, height: int, width: int, padding: int
) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(images, channels, height, width), torch.randn(1, channels, 6, 5)]
    rest = torch.randn(filters, channels, 3, 3), torch.randn(filters)
    exact = outputs_and_gradients(lambda *a: plain(*a, padding), maps, *rest, torch.float64)
    ours = outputs_and_gradients(lambda *a: convolve(*a, padding), maps, *rest, torch.float32)
    for mine, value in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), value, rtol=1e-4, atol=1e-4)


def test_rounding_is_what_the_documentation_says() -> None:
    torch.manual_seed(0)
    maps, weight, bias = (
        [torch.randn(1, 256, 20, 24)],
        torch.randn(256, 256, 3, 3),
        torch.zeros(256),
    )
    exact = outputs_and_gradients(lambda *a: plain(*a, 1), maps, weight, bias, torch.float64)
    ours = outputs_and_gradients(lambda *a: convolve(*a, 1), maps, weight, bias, torch.float32)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(ours, exact, strict=True)]
    assert max(errors) < 4e-6
    assert errors[0] < 3e-6


@pytest.mark.parametrize("rows", [1, 2, 6], ids=["one row", "two rows", "two images"])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_images_and_their_rows_are_transformed_in_parts_and_give_the_same(
    padding: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    side = 11 - 2 * padding  # three rows of three tiles, the last ones not whole
    maps, rest = [torch.randn(7, 4, side, side)], (torch.randn(6, 4, 3, 3), torch.randn(6))
    layer: Layer = lambda *a: convolve(*a, padding)  # noqa: E731
    whole = outputs_and_gradients(layer, maps, *rest, torch.float32)
    monkeypatch.setattr(winograd, "VALUES_AT_ONCE", 36 * 6 * 3 * rows)
    parts = outputs_and_gradients(layer, maps, *rest, torch.float32)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(parts, whole, strict=True)]
    assert max(errors) < 4e-6


def test_only_what_needs_a_gradient_gets_one() -> None:
    values, weight = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3, requires_grad=True)
    convolve([values], weight, None)[0].sum().backward()
    assert weight.grad is not None
    moving = values.clone().requires_grad_()
    convolve([moving], weight.detach(), None)[0].sum().backward()
    torch.testing.assert_close(
        moving.grad,
        torch.autograd.grad(F.conv2d(moving, weight, padding=1).sum(), moving)[0],
        rtol=1e-4,
        atol=1e-4,
    )


@needs_mkl
def test_it_pays_for_wide_float32_convolutions_of_large_maps_alone() -> None:
    wide, narrow = torch.zeros(256, 256, 3, 3), torch.zeros(256, 64, 3, 3)
    large, small = torch.zeros(2, 256, 50, 50), torch.zeros(2, 256, 13, 13)
    assert pays([large], wide)
    assert pays([large, small], wide)
    assert not pays([small], wide)
    assert not pays([torch.zeros(2, 64, 50, 50)], narrow)
    assert not pays([large.double()], wide.double())
    assert not pays([large.to("meta")], wide.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays([large], wide)
    with plain_convolutions():
        assert not pays([large], wide)
    assert pays([large], wide)


@pytest.mark.usefixtures("everywhere")
def test_only_convolutions_that_it_fits_are_replaced() -> None:
    others = [
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    ]  # fmt: skip
    network = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), *others)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    use_winograd(network)
    assert [type(layer) for layer in network] == [WinogradConv2d] + [nn.Conv2d] * len(others)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.usefixtures("everywhere")
@needs_mkl
def test_a_traced_network_keeps_pytorchs_operation() -> None:
    network = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    use_winograd(network)
    values = torch.randn(1, 2, 8, 8)
    traced = torch.jit.trace(network, values)
    assert "_convolution" in str(traced.inlined_graph)
    torch.testing.assert_close(traced(values), network(values))


@pytest.mark.usefixtures("everywhere")
@needs_mkl
@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
def test_a_detector_gives_the_same_losses_and_gradients(kind: str) -> None:
    torch.manual_seed(0)
    options = {"type": kind, "backbone": "resnet18", "weights": "none", "fpn_channels": 16}
    options |= {"trainable_stages": 5, "head_init": "width"}
    detector = build_detector(DetectorConfig.model_validate(options), LossConfig(), 3)
    kinds = [type(layer) for layer in detector.modules()]
    assert kinds.count(WinogradConv2d) >= 5
    assert kinds.count(FoldedConv2d) > 10  # their 3 x 3 layers take it too
    images = [torch.rand(3, 96, 120), torch.rand(3, 90, 128)]
    boxes = torch.tensor([[4.0, 4.0, 40.0, 44.0], [10.0, 8.0, 90.0, 88.0]])
    targets = pad_targets([boxes, boxes[:1]], [torch.tensor([0, 2]), torch.tensor([1])])

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        detector.zero_grad()
        losses = torch.stack(list(detector(images, targets).values()))
        losses.sum().backward()
        gradients = [p.grad.flatten() for p in detector.parameters() if p.grad is not None]
        return losses.detach(), torch.cat(gradients)

    losses, gradient = run()
    with plain_convolutions():
        expected, plain_gradient = run()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    difference = (gradient - plain_gradient).norm() / plain_gradient.norm()
    assert 0 < difference < 1e-3
