"""The moving average of the weights: its closed form, and what is evaluated and saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.ema import AveragedWeights


def network(value: float) -> nn.Module:
    layers = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(layers[0].weight, value)
    return layers


def test_the_average_is_that_of_the_recursion() -> None:
    average = AveragedWeights(network(0.0), decay=0.5)
    expected = 0.0
    for step, value in enumerate([4.0, 8.0, 2.0, 2.0]):
        average.follow(network(value), step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
    assert average.detector[0].weight[0].tolist() == pytest.approx([expected] * 2)


def test_it_follows_fast_at_first_and_by_the_decay_later() -> None:
    early, late = (AveragedWeights(network(0.0), decay=0.9) for _ in range(2))
    early.follow(network(1.0), 0)
    late.follow(network(1.0), 10_000)
    assert early.detector[0].weight[0, 0].item() == pytest.approx(0.9)
    assert late.detector[0].weight[0, 0].item() == pytest.approx(0.1)


def test_statistics_are_averaged_and_counts_are_copied() -> None:
    trained, average = network(1.0), AveragedWeights(network(1.0), decay=0.5)
    trained[1].running_mean.fill_(2.0)
    trained[1].num_batches_tracked.fill_(7)
    average.follow(trained, 100)
    assert average.detector[1].running_mean.item() == 1.0
    assert average.detector[1].num_batches_tracked.item() == 7


def test_what_does_not_change_stays_bit_equal() -> None:
    torch.manual_seed(0)
    trained = nn.Linear(50, 50)
    average = AveragedWeights(trained, decay=0.999)
    for step in range(50):
        average.follow(trained, step)
    assert torch.equal(average.detector.weight, trained.weight)
    assert not any(value.requires_grad for value in average.detector.parameters())
