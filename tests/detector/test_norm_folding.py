"""Convolutions that do the work of the norm behind them: the same numbers, the same names."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from detector.fast.norm_folding import FoldedConv2d, fold_norms
from detector.norm import norm_layer


def make_network(name: str, norm: str) -> nn.Module:
    torch.manual_seed(0)
    network = get_model(name, weights=None, norm_layer=norm_layer(norm))
    for key, value in network.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.dim() == 1 and value.is_floating_point():
            value.uniform_(0.2, 0.9)
    return network.eval()  # without dropout


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_large"])
@pytest.mark.parametrize("norm", ["frozen", "frozen_stats"])
def test_outputs_gradients_and_names_stay_the_same(name: str, norm: str) -> None:
    plain = make_network(name, norm)
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    norms = [layer for layer in folded.modules() if hasattr(layer, "folded")]
    assert norms
    assert all(layer.folded for layer in norms)
    assert folded.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(1, 3, 48, 48)
    outputs = [network(images) for network in (plain, folded)]
    scale = float(outputs[0].detach().abs().max())
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4 * scale)
    for output in outputs:
        (output / scale).square().sum().backward()
    expected = dict(plain.named_parameters())
    for key, parameter in folded.named_parameters():
        gradient, other = parameter.grad, expected[key].grad
        size = float(other.abs().max())
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-3 * size, msg=key)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_that_look_at_the_batch_or_the_image_are_left_alone(norm: str) -> None:
    network = make_network("resnet18", norm)
    fold_norms(network)
    assert not any(isinstance(layer, FoldedConv2d) for layer in network.modules())


def test_a_copy_is_folded_into_its_own_norm() -> None:
    network = make_network("resnet18", "frozen")
    fold_norms(network)
    other = copy.deepcopy(network)
    other.bn1.weight.zero_()
    other.bn1.bias.zero_()
    images = torch.randn(1, 3, 32, 32)
    assert not other.conv1(images).any()
    assert network.conv1(images).any()


def test_what_is_loaded_or_set_later_counts() -> None:
    network, source = make_network("resnet18", "frozen"), make_network("resnet18", "frozen")
    fold_norms(network)
    for value in source.state_dict().values():
        value.mul_(1.1)
    network.load_state_dict(source.state_dict())
    network.bn1.eps = source.bn1.eps = 0.1
    images = torch.randn(1, 3, 32, 32)
    expected = source.bn1(source.conv1(images))
    torch.testing.assert_close(network.bn1(network.conv1(images)), expected, rtol=1e-4, atol=1e-4)
