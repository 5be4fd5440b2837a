"""Laws of GradNorm."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from losses import GradNorm

PAIR = {"head": ("cls", "box")}


def step(gradnorm: GradNorm, shared: Tensor, cls: float, box: float) -> list[float]:
    """One iteration of losses with these gradients and values; the weights after it."""
    gradnorm({"cls": cls * shared, "box": box * shared})
    return [weight.item() for weight in gradnorm.weights().values()]


def assert_same_state(one: GradNorm, other: GradNorm) -> None:
    for name in ("lambdas", "steps", "first_losses", "slope_mean", "slope_square"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_the_first_step_lowers_the_loss_with_the_larger_gradient_by_the_learning_rate() -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    gradnorm = GradNorm(PAIR, lr=0.1)
    gradnorm.watch([shared])
    # Adam's first step is its learning rate; in the first iteration all training rates are 1.
    assert step(gradnorm, shared, 8.0, 2.0) == pytest.approx([0.9, 1.1])


def test_a_loss_that_learns_slowly_is_given_the_larger_gradient() -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    for alpha, rises in ((1.5, True), (0.0, False)):
        gradnorm = GradNorm(PAIR, alpha=alpha)
        gradnorm.watch([shared])
        gradnorm.first_losses.copy_(torch.tensor([[4.0, 40.0]]))
        # The gradient of cls is a little larger, which alone would lower its weight; but cls has
        # sunk to a quarter of its first value and box to a fortieth.
        weights = step(gradnorm, shared, 1.001, 1.0)
        assert (weights[0] > 1) is rises
        assert sum(weights) == pytest.approx(2)


def test_equal_gradients_at_equal_rates_are_left_alone() -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    gradnorm = GradNorm(PAIR)
    gradnorm.watch([shared])
    for value in (1.0, 0.5, 0.25):
        assert step(gradnorm, shared, value, value) == [1.0, 1.0]


def test_without_alpha_the_gradients_become_equally_large() -> None:
    shared = torch.tensor([1.0, -2.0], requires_grad=True)
    gradnorm = GradNorm(PAIR, alpha=0.0, lr=0.01)
    gradnorm.watch([shared])
    for _ in range(400):
        # Gradient norms 3√2 and √2; the values of the losses do not matter.
        gradnorm({"cls": 3 * shared.sum() + 9, "box": shared[0] - shared[1]})
    weights = [weight.item() for weight in gradnorm.weights().values()]
    assert weights == pytest.approx([0.5, 1.5], abs=0.03)


class WrittenOut:
    """Algorithm 1 with autograd through the norms, and torch's Adam."""

    def __init__(self, layer: Tensor, alpha: float, lr: float) -> None:
        self.layer = layer
        self.alpha = alpha
        self.weights = torch.ones(2, requires_grad=True)
        self.adam = torch.optim.Adam([self.weights], lr=lr)
        self.first: Tensor | None = None

    def step(self, losses: list[Tensor]) -> None:
        values = torch.stack(losses).detach()
        self.first = values if self.first is None else self.first
        weighted = [weight * loss for weight, loss in zip(self.weights, losses, strict=True)]
        norms = torch.stack(
            [
                torch.autograd.grad(loss, self.layer, retain_graph=True, create_graph=True)[
                    0
                ].norm()
                for loss in weighted
            ]
        )
        rates = values / self.first / (values / self.first).mean()
        target = (norms.mean() * rates**self.alpha).detach()
        (self.weights.grad,) = torch.autograd.grad((norms - target).abs().sum(), self.weights)
        self.adam.step()
        with torch.no_grad():
            self.weights.mul_(2 / self.weights.sum())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_it_equals_the_algorithm_written_out_with_autograd_and_adam(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = torch.randn(6, 3, generator=generator).requires_grad_()
    heads = torch.randn(2, 3, generator=generator)
    gradnorm, written_out = GradNorm(PAIR, alpha=alpha), WrittenOut(layer, alpha, lr=0.025)
    gradnorm.watch([layer])
    for _ in range(60):
        shared = torch.tanh(torch.randn(16, 6, generator=generator) @ layer)
        losses = [(shared @ heads[0]).square().mean(), (shared @ heads[1] - 1).abs().mean()]
        gradnorm(dict(zip(("cls", "box"), losses, strict=True)))
        written_out.step(losses)
        ours = torch.stack(list(gradnorm.weights().values()))
        torch.testing.assert_close(ours, written_out.weights.detach(), atol=1e-5, rtol=1e-4)
        (gradient,) = torch.autograd.grad(sum(losses), layer)
        with torch.no_grad():
            layer -= 0.05 * gradient
    assert (ours - 1).abs().max() > 0.1


def test_the_graph_and_the_gradients_of_the_network_are_left_to_the_total() -> None:
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    gradnorm = GradNorm(PAIR)
    gradnorm.watch([layer])
    weighted = gradnorm({"cls": layer.square().sum(), "box": layer.sum()})
    assert layer.grad is None
    sum(weighted.values()).backward()
    torch.testing.assert_close(layer.grad, torch.tensor([3.0, 5.0]))


def test_several_parameters_count_as_one() -> None:
    apart = [torch.tensor([value], requires_grad=True) for value in (1.0, 2.0)]
    joined = torch.tensor([1.0, 2.0], requires_grad=True)
    weights = []
    for watched in (apart, [joined]):
        gradnorm = GradNorm(PAIR)
        gradnorm.watch(watched)
        for _ in range(3):
            whole = torch.cat(watched)
            gradnorm({"cls": whole.square().sum(), "box": 2 * whole.sum()})
        weights.append(gradnorm.weights())
    assert weights[0] == weights[1]


@pytest.mark.parametrize("mean", [1.0, 1000.0])
def test_a_weight_never_sinks_below_a_thousandth_of_the_mean(mean: float) -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    gradnorm = GradNorm(PAIR, alpha=0.0, lr=0.5 * mean, initial=(mean, mean))
    gradnorm.watch([shared])
    for _ in range(30):
        weights = step(gradnorm, shared, 1e6, 1e-6)
        assert min(weights) >= 0.0005 * mean
        assert sum(weights) == pytest.approx(2 * mean)


@pytest.mark.parametrize(("cls", "box"), [(2.0, 0.0), (math.nan, 1.0), (1.0, math.inf)])
def test_an_iteration_with_one_loss_of_no_use_leaves_no_trace(cls: float, box: float) -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    undisturbed, disturbed = GradNorm(PAIR, lr=0.1), GradNorm(PAIR, lr=0.1)
    for gradnorm in (undisturbed, disturbed):
        gradnorm.watch([shared])
        step(gradnorm, shared, 4.0, 1.0)
    step(disturbed, shared, cls, box)
    for gradnorm in (undisturbed, disturbed):
        step(gradnorm, shared, 2.0, 1.5)
    assert_same_state(disturbed, undisturbed)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_first_loss_of_no_use_is_not_taken_for_the_first(bad: float) -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    undisturbed, disturbed = GradNorm(PAIR, lr=0.1), GradNorm(PAIR, lr=0.1)
    for gradnorm in (undisturbed, disturbed):
        gradnorm.watch([shared])
    step(disturbed, shared, bad, 1.0)
    for gradnorm in (undisturbed, disturbed):
        step(gradnorm, shared, 4.0, 1.0)
        step(gradnorm, shared, 2.0, 1.5)
    assert_same_state(disturbed, undisturbed)


def test_a_gradient_of_zero_moves_no_weight() -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    gradnorm = GradNorm(PAIR, lr=0.1)
    gradnorm.watch([shared])
    before = step(gradnorm, shared, 4.0, 1.0)
    gradnorm({"cls": 0 * shared + 3, "box": shared})
    assert [weight.item() for weight in gradnorm.weights().values()] == before


def test_the_layer_must_be_known_and_reached() -> None:
    shared = torch.tensor(1.0, requires_grad=True)
    gradnorm = GradNorm(PAIR)
    losses = {"cls": shared * 2, "box": shared * 3}
    with pytest.raises(ValueError, match=r"call watch\(parameters\) first"):
        gradnorm(losses)
    gradnorm.watch([torch.tensor(1.0, requires_grad=True)])
    with pytest.raises(ValueError, match="loss 'cls' does not depend on the parameters"):
        gradnorm(losses)
    gradnorm.watch([shared])
    with pytest.raises(ValueError, match="loss 'box' does not depend on the parameters"):
        gradnorm({**losses, "box": torch.tensor(1.0)})
    with torch.no_grad(), pytest.raises(ValueError, match=r"needs gradients .* call eval\(\)"):
        gradnorm({"cls": shared * 2, "box": shared * 3})
    frozen = torch.tensor(1.0)
    gradnorm.watch([shared, frozen])
    with pytest.raises(ValueError, match="trainable shared layer"):
        gradnorm(losses)
    gradnorm.watch([shared])
    gradnorm(losses)


def test_a_parameter_that_a_batch_does_not_reach_adds_nothing_to_the_norm() -> None:
    shared, aside = (torch.tensor(1.0, requires_grad=True) for _ in range(2))
    alone, beside = GradNorm(PAIR), GradNorm(PAIR)
    alone.watch([shared])
    beside.watch([shared, aside])
    losses = {"cls": shared * 2, "box": shared * 3}
    for _ in range(3):
        alone(losses)
        beside(losses)
    assert torch.equal(alone.lambdas, beside.lambdas)
    assert not torch.equal(alone.lambdas, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": -1.0}, "alpha must be"), ({"lr": 0.0}, "lr must be"), ({"lr": float("nan")}, "lr")],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradNorm(PAIR, **options)
