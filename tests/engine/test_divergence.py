"""A loss that is not finite is found, named, and never reaches the weights."""

from __future__ import annotations

import math

import pytest
import torch
from runs import ALONE
from torch import nn
from torch.amp.grad_scaler import GradScaler

from engine.divergence import DivergenceError, FiniteGuard, Watched
from engine.optimization import build_optimization, build_optimizer
from engine.run_config import TrainConfig
from engine.state import TrainState
from losses import UncertaintyWeighting

FILES = ("a.jpg", "b.jpg", "c.jpg", "d.jpg")


class Training:
    """One weight, trained by iterations with given losses."""

    def __init__(self, at_once: bool, name: str = "sgd", scaled: bool = False) -> None:
        self.weight = torch.nn.Parameter(torch.ones(()))
        optimizer = build_optimizer(name, [self.weight], lr=0.1, momentum=0.9, weight_decay=0.0)
        self.scaler = GradScaler("cpu", init_scale=4.0, enabled=scaled)
        self.guard = FiniteGuard(
            ALONE, optimizer, FILES, at_once=at_once, remembered=4, scaled=scaled
        )

    def run(self, values: list[float]) -> torch.Tensor:
        for step, value in enumerate(values):
            loss = self.weight * value
            self.guard.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            losses = {"loss": loss.detach()}
            self.guard.watch(Watched(step, (step,), losses, losses, lambda: "lr 0.1"))
            if self.guard.at_once:
                self.guard.check()
            self.scaler.step(self.guard.optimizer)
            self.scaler.update()
        self.guard.check()
        return self.weight.detach()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_weights_are_those_before_the_first_bad_iteration(
    scaled: bool, at_once: bool, name: str
) -> None:
    training = Training(at_once, name, scaled)
    with pytest.raises(DivergenceError, match=r"step 2, .*: loss nan; files: c\.jpg; lr 0\.1"):
        training.run([1, 2, float("nan"), 3])
    assert torch.equal(training.weight.detach(), Training(at_once, name, scaled).run([1, 2]))


def test_a_bad_iteration_that_is_not_remembered_any_more_is_told_all_the_same() -> None:
    with pytest.raises(DivergenceError, match=r"^a loss was not finite in an iteration before"):
        Training(at_once=False).run([1, float("nan"), 1, 1, 1, 1, 1])


def test_what_to_do_is_told_once_at_the_end() -> None:
    with pytest.raises(DivergenceError, match=r"updated since; lower train\.lr, .*gradients$"):
        Training(at_once=True).run([float("nan")])


def test_finite_losses_pass_unchanged_however_often_they_are_checked() -> None:
    assert torch.equal(
        Training(at_once=False).run([1, 2, 3]), Training(at_once=True).run([1, 2, 3])
    )


def test_an_infinite_loss_is_found_too() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = build_optimizer("sgd", [weight], lr=0.1, momentum=0.0, weight_decay=0.0)
    guard = FiniteGuard(ALONE, optimizer, FILES, at_once=True, remembered=1)
    losses = {"fine": torch.tensor(1.0), "bad": torch.tensor(float("inf"))}
    guard.watch(Watched(7, (0, 3), losses, losses, lambda: "lr 1"))
    with pytest.raises(DivergenceError, match=r"fine 1, bad inf; files: a\.jpg, d\.jpg"):
        guard.check()


def test_a_loss_that_its_weight_makes_infinite_is_found_too() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = build_optimizer("sgd", [weight], lr=0.1, momentum=0.0, weight_decay=0.0)
    guard = FiniteGuard(ALONE, optimizer, FILES, at_once=True, remembered=1)
    losses = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    weighted = {"a": losses["a"] * 3e38, "b": losses["b"]}
    guard.watch(Watched(7, (0,), losses, weighted, lambda: "lr 1"))
    with pytest.raises(DivergenceError, match=r"a 2, b 3, times their weights: a inf, b 3; files"):
        guard.check()


def test_a_state_is_finite_where_its_weights_statistics_and_learned_loss_weights_are() -> None:
    detector = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    weighting = UncertaintyWeighting({"head": ("a", "b")})
    optimization = build_optimization(TrainConfig(), detector.parameters(), [], 1, global_batch=8)
    state = TrainState(detector, weighting, *optimization, GradScaler("cpu", enabled=False))
    for values in (detector[0].bias, detector[1].running_var, weighting.log_variances):
        assert state.is_finite()
        for bad in (math.nan, math.inf):
            before = values.detach().clone()
            values.data.view(-1)[0] = bad
            assert not state.is_finite()
            values.data.copy_(before)
