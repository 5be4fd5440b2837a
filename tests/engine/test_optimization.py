"""The learning rate of every iteration follows the paper's schedule."""

import math

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.errors import InputError
from engine.optimization import (
    applied_lr,
    build_optimization,
    build_optimizer,
    build_schedule,
    warn_of_long_warmup,
)
from engine.run_config import TrainConfig


def rates(kind: str = "milestones", total: int = 100, **options: object) -> list[float]:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer("sgd", [parameter], lr=1.0, momentum=0.9, weight_decay=0.0)
    settings = {
        "milestones": [],
        "gamma": 0.1,
        "warmup_iterations": 0,
        "warmup_factor": 0.001,
        **options,
    }
    schedule = build_schedule(optimizer, kind, total_iterations=total, **settings)
    return followed(optimizer, schedule, total)


def followed(optimizer: Optimizer, schedule: LambdaLR, iterations: int) -> list[float]:
    """The learning rates of the next iterations."""
    values = []
    for _ in range(iterations):
        values.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return values


def test_lr_is_linear_in_the_total_batch() -> None:
    assert applied_lr(TrainConfig(), 0.01, total_batch=8) == 0.01
    assert applied_lr(TrainConfig(), 0.01, total_batch=2) == pytest.approx(0.0025)
    assert applied_lr(TrainConfig(), 0.01, total_batch=32) == pytest.approx(0.04)
    with pytest.raises(InputError, match=r"train\.lr: 1e\+308 for a total batch of 80 images"):
        applied_lr(TrainConfig(), 1e308, total_batch=80)


@pytest.mark.parametrize("iterations", [4, 5])
def test_a_warm_up_that_the_run_does_not_outlast_is_told(
    iterations: int, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_long_warmup(TrainConfig(warmup_iterations=4), iterations)
    assert ("the run has 4 iterations: train.lr is never reached" in caplog.text) == (
        iterations == 4
    )


@pytest.mark.parametrize(("accumulate", "batches", "expected"), [(2, 10, 0.02), (64, 3, 0.03)])
def test_an_iteration_has_no_more_batches_than_an_epoch(
    accumulate: int, batches: int, expected: float
) -> None:
    config = TrainConfig(accumulate=accumulate, warmup_iterations=0)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer, _ = build_optimization(config, weights, [], batches, global_batch=8)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_cosine_of_a_run_ends_with_its_last_iteration(accumulate: int) -> None:
    config = TrainConfig(epochs=3, schedule="cosine", warmup_iterations=0, accumulate=accumulate)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer, schedule = build_optimization(config, weights, [], 7, global_batch=8)
    iterations = 3 * (7 if accumulate == 1 else 4)
    values = followed(optimizer, schedule, iterations)
    half = [0.5 * (1 + math.cos(math.pi * step / iterations)) for step in range(iterations)]
    assert values == pytest.approx([values[0] * part for part in half])
    assert schedule.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("accumulate", "iterations"), [(1, 7), (2, 4)])
def test_a_milestone_is_the_end_of_its_epoch(accumulate: int, iterations: int) -> None:
    config = TrainConfig(epochs=3, milestones=[1], warmup_iterations=0, accumulate=accumulate)
    weights = [torch.nn.Parameter(torch.zeros(1))]
    values = followed(*build_optimization(config, weights, [], 7, global_batch=8), 3 * iterations)
    assert values == pytest.approx([values[0]] * iterations + [values[0] / 10] * 2 * iterations)


def test_lr_is_left_under_adamw_and_where_it_shall_be() -> None:
    assert applied_lr(TrainConfig(optimizer="adamw"), 0.01, total_batch=16) == 0.01
    assert applied_lr(TrainConfig(scale_lr=False), 0.01, total_batch=16) == 0.01


def test_warm_up_is_linear_from_the_factor_to_one() -> None:
    values = rates(warmup_iterations=10, total=12)
    expected = [0.001 + 0.999 * step / 10 for step in range(10)] + [1.0, 1.0]
    assert values == pytest.approx(expected, rel=1e-12)


def test_each_milestone_multiplies_by_gamma_from_its_iteration_on() -> None:
    values = rates(milestones=[3, 5], total=7)
    assert values == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-12)


def test_the_cosine_begins_after_the_warm_up_and_ends_near_zero() -> None:
    values = rates(kind="cosine", warmup_iterations=10, total=110)
    assert max(values) == values[10] == 1.0
    assert values[60] == pytest.approx(0.5, rel=1e-12)
    assert values[-1] == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2, rel=1e-9)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_are_not_optimized(name: str) -> None:
    trained = torch.nn.Parameter(torch.zeros(1))
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer = build_optimizer(name, [trained, frozen], lr=1.0, momentum=0.9, weight_decay=0.0)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(trained)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_weights_of_losses_do_not_decay_with_those_of_the_detector(name: str) -> None:
    weight, log_variance = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = build_optimizer(
        name, [weight], lr=1.0, momentum=0.9, weight_decay=0.1, undecayed=[log_variance]
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_fused_optimizer_skips_its_update_where_a_loss_was_not_finite(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(name, [parameter], lr=1.0, momentum=0.9, weight_decay=0.0)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    parameter.grad = torch.full((3,), float("nan"))
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(3))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_that_are_skipped_at_the_start_leave_no_trace(name: str) -> None:
    def train(skipped: int) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.ones(1000))
        optimizer = build_optimizer(name, [parameter], lr=0.1, momentum=0.9, weight_decay=0.0)
        for step in range(skipped + 3):
            optimizer.found_inf = torch.tensor(float(step < skipped))  # type: ignore[attr-defined]
            parameter.grad = torch.full((1000,), float("inf") if step < skipped else 0.5)
            optimizer.step()
        return parameter.detach()

    assert torch.equal(train(skipped=2), train(skipped=0))


def test_momentum_is_that_of_plain_sgd() -> None:
    parameters = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]
    ours = build_optimizer("sgd", parameters[:1], lr=0.1, momentum=0.9, weight_decay=0.01)
    plain = torch.optim.SGD(parameters[1:], lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(4):
        for parameter, optimizer in zip(parameters, (ours, plain), strict=True):
            parameter.grad = torch.arange(5.0) - step
            optimizer.step()
    torch.testing.assert_close(*(parameter.detach() for parameter in parameters))
