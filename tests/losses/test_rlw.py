"""Laws of random loss weighting."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from losses import RandomWeights

PAIR = {"head": ("cls", "box")}


def drawn(iterations: int, seed: int = 0, interval: int = 10) -> Tensor:
    """The weights applied in each iteration, (iterations, 2)."""
    weighting = RandomWeights(PAIR, interval, seed)
    rows = []
    for _ in range(iterations):
        weighting({"cls": torch.tensor(1.0), "box": torch.tensor(1.0)})
        rows.append(torch.stack(list(weighting.applied_weights().values())))
    return torch.stack(rows)


def test_the_weights_are_positive_and_sum_to_the_number_of_losses() -> None:
    weights = drawn(200)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.full((200,), 2.0))


def test_they_are_the_softmax_of_normal_numbers() -> None:
    weights = drawn(3000).double()
    differences = weights[:, 0].log() - weights[:, 1].log()  # of two N(0, 1): N(0, 2)
    assert differences.mean().item() == pytest.approx(0, abs=0.1)
    assert differences.std().item() == pytest.approx(2**0.5, rel=0.05)
    assert (differences.abs() < 2**0.5).double().mean().item() == pytest.approx(0.683, abs=0.03)


def test_they_follow_from_seed_and_iteration_alone() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(drawn(30), drawn(30, interval=7))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(drawn(30), drawn(30, seed=1))
    assert len(drawn(30).unique(dim=0)) == 30


def test_micro_batches_of_an_iteration_share_their_weights() -> None:
    weighting = RandomWeights(PAIR)
    losses = {"cls": torch.tensor(1.0), "box": torch.tensor(1.0)}
    seen = []
    for last in (False, False, True, True):
        weighting(losses, last_micro_batch=last)
        seen.append(weighting.applied_weights()["cls"].item())
    assert seen[0] == seen[1] == seen[2] != seen[3]


def test_its_distribution_is_that_of_torchjd() -> None:
    oracle = pytest.importorskip("torchjd.scalarization").Random()
    torch.manual_seed(0)
    one_hot = torch.tensor([1.0, 0.0])
    theirs = torch.stack([2 * oracle(one_hot) for _ in range(2000)])
    ours = drawn(2000)[:, 0]
    points = torch.linspace(0.05, 0.95, 10)
    torch.testing.assert_close(ours.quantile(points), theirs.quantile(points), atol=0.1, rtol=0)
