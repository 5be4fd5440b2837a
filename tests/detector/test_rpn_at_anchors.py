"""The RPN's head at sampled anchors against its dense output: predictions, losses, gradients."""

from __future__ import annotations

import pytest
import torch
from rcnn_twins import CHANNELS, SIZES, random_targets
from torch import Tensor

from detector.anchors import build_anchors
from detector.config import AnchorConfig, RPNConfig
from detector.fast.rpn_at_anchors import is_one_layer, predictions_at
from detector.rpn import RegionProposalNetwork, RPNHead
from losses.config import BoxLossConfig

PADDED = (96, 160)
GRIDS = ((24, 40), (12, 20), (6, 10), (3, 5), (2, 3))
ANCHORS = 3 * sum(height * width for height, width in GRIDS)
IMAGES = len(SIZES)


def build(depth: int = 1, loss: str = "smooth_l1") -> RegionProposalNetwork:
    anchors = build_anchors(AnchorConfig(), (2, 3, 4, 5, 6), 8.0, 1)
    network = RegionProposalNetwork(
        anchors, RPNHead(CHANNELS, 3, depth), RPNConfig(), BoxLossConfig(type=loss)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    return network


def random_maps(order: torch.memory_format = torch.contiguous_format) -> dict[str, Tensor]:
    maps = [torch.randn(IMAGES, CHANNELS, *grid).contiguous(memory_format=order) for grid in GRIDS]
    return {str(level): values.requires_grad_() for level, values in enumerate(maps)}


def dense_outputs(network: RegionProposalNetwork, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    logits, deltas = network.head(maps)
    flat = [level.permute(0, 2, 3, 1).flatten(1) for level in logits]
    boxes = [level.permute(0, 2, 3, 1).reshape(IMAGES, -1, 4) for level in deltas]
    return torch.cat(flat, 1), torch.cat(boxes, 1)


def assert_same_gradients(ours: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    for one, other in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale + 1e-7)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("choice", ["all", "few", "one", "finest level", "none"])
def test_predictions_and_gradients_are_those_of_the_dense_head(choice, order) -> None:
    torch.manual_seed(0)
    network, maps = build(), list(random_maps(order).values())
    indices = {
        "all": torch.arange(ANCHORS).repeat(IMAGES, 1),
        "few": torch.randint(0, ANCHORS, (IMAGES, 40)),
        "one": torch.randint(0, ANCHORS, (IMAGES, 1)),
        "finest level": torch.randint(0, 3 * 24 * 40, (IMAGES, 30)),
        "none": torch.zeros(IMAGES, 0, dtype=torch.int64),
    }[choice]
    logits, deltas = predictions_at(network.head, maps, indices)
    dense_logits, dense_deltas = dense_outputs(network, maps)
    expected_logits = dense_logits.gather(1, indices)
    expected_deltas = dense_deltas.gather(1, indices.unsqueeze(2).expand(-1, -1, 4))
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, expected_deltas, rtol=1e-4, atol=1e-4)
    inputs = [*maps, *network.parameters()]
    weights = torch.randn(indices.shape)
    assert_same_gradients(
        (logits * weights).sum() + deltas.square().sum(),
        (expected_logits * weights).sum() + expected_deltas.square().sum(),
        inputs,
    )


@pytest.mark.parametrize("kind", ["l1", "giou"])
@pytest.mark.parametrize("counts", [(0, 0, 0), (1, 0, 0), (3, 0, 200)], ids=str)
def test_losses_and_gradients_of_a_step_are_those_of_the_dense_head(counts, kind) -> None:
    torch.manual_seed(0)
    network, features, targets = (
        build(loss=kind),
        random_maps(),
        random_targets(counts, masks=False),
    )
    torch.manual_seed(1)
    _, ours = network(features, PADDED, SIZES, targets)
    maps = list(features.values())
    anchors = torch.cat(network.anchor_generator.of_pyramid(PADDED, maps))
    torch.manual_seed(1)
    expected = network.losses(*dense_outputs(network, maps), anchors, targets)
    for name, loss in ours.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6)
    assert_same_gradients(
        sum(ours.values()), sum(expected.values()), [*maps, *network.parameters()]
    )


def test_a_deeper_head_takes_the_dense_path_with_the_same_gradients() -> None:
    torch.manual_seed(0)
    network = build(depth=2)
    assert not is_one_layer(network.head)
    _, losses = network(random_maps(), PADDED, SIZES, random_targets((2, 0, 1), masks=False))
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_under_autocast_every_parameter_has_a_gradient() -> None:
    torch.manual_seed(0)
    network = build()
    with torch.autocast("cpu", torch.bfloat16):
        _, losses = network(random_maps(), PADDED, SIZES, random_targets((2, 0, 1), masks=False))
    sum(losses.values()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
