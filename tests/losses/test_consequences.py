"""What follows from ALWA's rule, on noise and on the recorded losses of a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_training import PAIR, ToyTraining

from losses import ALWA, FixedWeights

RECORDING = Path(__file__).parent / "fixtures" / "recorded_losses.json"
INTERVAL = 10


def window_weights(variant: int, update: str, losses: np.ndarray, interval: int) -> np.ndarray:
    """The weight of the first loss after each window of raw losses, (iterations, 2)."""
    alwa = ALWA(PAIR, variant, interval, update=update)
    seen = []
    for cls, box in torch.tensor(losses, dtype=torch.float32):
        alwa({"cls": cls, "box": box})
        if alwa.position == 0:
            seen.append(alwa.weights()["cls"].item())
    return np.array(seen)


def window_ratios(variant: int, losses: np.ndarray, interval: int) -> np.ndarray:
    """The ratio r of the raw statistics, box over cls, of each whole window."""
    whole = losses[: len(losses) // interval * interval].reshape(-1, interval, 2)
    statistics = whole.std(axis=1, ddof=1)
    if variant == 1:
        statistics = statistics + whole.mean(axis=1)
    return statistics[:, 1] / statistics[:, 0]


@pytest.fixture(scope="module")
def recorded() -> np.ndarray:
    recording = json.loads(RECORDING.read_text())
    return np.stack([recording["cls"], recording["box"]], axis=1)


@pytest.mark.parametrize("variant", [1, 2])
def test_on_recorded_losses_replace_is_the_ratio_over_the_old_weight(
    recorded: np.ndarray, variant: int
) -> None:
    weights = window_weights(variant, "replace", recorded, INTERVAL)
    expected, weight = [], 1.0
    for ratio in window_ratios(variant, recorded, INTERVAL):
        weight = ratio / weight if weight > ratio else weight
        expected.append(weight)
    assert weights == pytest.approx(np.array(expected), rel=1e-4)
    assert weights.max() <= 1


@pytest.mark.parametrize("variant", [1, 2])
def test_on_recorded_losses_multiplicative_is_the_smallest_ratio_so_far(
    recorded: np.ndarray, variant: int
) -> None:
    weights = window_weights(variant, "multiplicative", recorded, INTERVAL)
    ratios = window_ratios(variant, recorded, INTERVAL)
    assert weights == pytest.approx(np.minimum(1, np.minimum.accumulate(ratios)), rel=1e-4)


@pytest.mark.parametrize("variant", [1, 2])
def test_on_recorded_losses_unweighted_is_the_ratio_up_to_one(
    recorded: np.ndarray, variant: int
) -> None:
    weights = window_weights(variant, "unweighted", recorded, INTERVAL)
    ratios = window_ratios(variant, recorded, INTERVAL)
    assert weights == pytest.approx(np.minimum(1, ratios), rel=1e-4)


def test_one_percent_of_noise_throws_the_weight_far_above_the_ratio() -> None:
    # Windows of two whose deviations have the ratio 0.4, give or take 1%.
    noise = 1 + 0.01 * np.random.default_rng(0).standard_normal(2_000)
    losses = np.stack([np.tile([0.0, 1.0], 2_000), np.tile([0.0, 0.4], 2_000)], axis=1)
    losses[1::2, 1] *= noise
    weights = window_weights(2, "replace", losses, 2)
    assert 0.05 < (weights > 0.8).mean() < 0.6
    assert weights.mean() == pytest.approx(0.65, abs=0.03)
    assert window_weights(2, "multiplicative", losses, 2)[-1] < 0.4
    assert window_weights(2, "unweighted", losses, 2).mean() == pytest.approx(0.4, abs=1e-3)


def test_how_often_the_weight_stands_far_above_a_noisy_ratio_is_what_the_page_says() -> None:
    # 20 runs at once, a pair each: 39% ± 9% of 500 windows above 2 r, mean 0.65
    generator = np.random.default_rng(0)
    pairs = {f"run {run}": (f"cls {run}", f"box {run}") for run in range(20)}
    alwa = ALWA(pairs, interval=2)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    seen = []
    for ratios in 0.4 * (1 + 0.01 * generator.standard_normal((500, 20))):
        boxes = torch.tensor(ratios, dtype=torch.float32)
        alwa({name: zero for pair in pairs.values() for name in pair})
        alwa(
            {
                name: value
                for pair, box in zip(pairs.values(), boxes, strict=True)
                for name, value in zip(pair, (one, box), strict=True)
            }
        )
        seen.append(alwa.lambdas[:, 0].clone())
    weights = torch.stack(seen)
    shares = (weights > 0.8).double().mean(dim=0)
    assert shares.mean().item() == pytest.approx(0.39, abs=0.06)  # three standard errors
    assert shares.std().item() == pytest.approx(0.09, abs=0.04)
    assert weights.mean().item() == pytest.approx(0.65, abs=0.02)


def test_on_recorded_losses_the_flips_are_those_that_the_page_tells(recorded: np.ndarray) -> None:
    tripled = recorded * [3.0, 1.0]
    ratios = window_ratios(1, tripled, INTERVAL)
    weights = window_weights(1, "replace", tripled, INTERVAL)
    assert len(weights) == 24
    assert [number + 1 for number in np.flatnonzero(weights > 2 * ratios)] == [2, 10, 17, 19]
    assert weights.mean() == pytest.approx(0.48, abs=0.005)
    assert ratios.mean() == pytest.approx(0.41, abs=0.005)
    by_deviation = window_weights(2, "replace", tripled, INTERVAL)
    deviations = window_ratios(2, tripled, INTERVAL)
    assert by_deviation[16:] == pytest.approx([0.19] * 8, abs=0.005)
    assert deviations[16] == pytest.approx(0.13, abs=0.005)
    assert [deviations[17:].min(), deviations[17:].max()] == pytest.approx([0.28, 1.04], abs=0.005)


@pytest.mark.parametrize(("name", "change"), [("SGD", 0.5), ("Adam", 0.004)])
def test_adam_cancels_a_weight_on_what_one_loss_alone_reaches(name: str, change: float) -> None:
    moves = []
    for weight in (1.0, 0.5):
        training = ToyTraining(FixedWeights(PAIR, (weight, 1.0)))
        training.optimizer = getattr(torch.optim, name)(training.layers, lr=1e-2)
        before = [layer.detach().clone() for layer in training.layers]
        for step in range(2):
            training.step(step)
        after = [layer.detach() for layer in training.layers]
        moves.append([new - old for new, old in zip(after, before, strict=True)])
    (shared, head, _), (other_shared, other_head, _) = moves
    difference = ((head - other_head).norm() / head.norm()).item()
    assert difference == pytest.approx(change, rel=0.1)
    assert ((shared - other_shared).norm() / shared.norm()).item() > 1e-2
