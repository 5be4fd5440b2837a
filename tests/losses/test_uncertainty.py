"""Laws of uncertainty weighting."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from losses import UncertaintyWeighting

PAIR = {"head": ("cls", "box")}


def losses_of(parameter: Tensor) -> dict[str, Tensor]:
    return {"cls": parameter.square().sum(), "box": 0.2 * parameter.abs().sum()}


def test_it_begins_with_its_initial_weights() -> None:
    weighting = UncertaintyWeighting(PAIR, initial=(1.0, 0.25))
    weighted = weighting({"cls": torch.tensor(3.0), "box": torch.tensor(8.0)})
    assert {name: round(loss.item(), 5) for name, loss in weighted.items()} == {
        "cls": 3.0,
        "box": 2.0,
    }
    expected = torch.tensor([[-math.log(2), math.log(2)]])  # weight ½ exp(-s)
    torch.testing.assert_close(weighting.log_variances.detach(), expected)


def test_a_log_variance_has_the_slope_of_half_minus_the_weighted_loss() -> None:
    weighting = UncertaintyWeighting(PAIR, initial=(1.0, 0.25))
    sum(weighting({"cls": torch.tensor(3.0), "box": torch.tensor(8.0)}).values()).backward()
    torch.testing.assert_close(weighting.log_variances.grad, torch.tensor([[-2.5, -1.5]]))


def test_training_equals_the_total_written_out() -> None:
    ours = torch.tensor([1.0, -2.0], requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    weighting = UncertaintyWeighting(PAIR)
    s = weighting.log_variances.detach().clone().requires_grad_()
    optimizers = [
        torch.optim.SGD([ours, *weighting.parameters()], lr=0.05, momentum=0.9),
        torch.optim.SGD([theirs, s], lr=0.05, momentum=0.9),
    ]
    for _ in range(25):
        stacked = torch.stack(list(losses_of(theirs).values()))
        written_out = (torch.exp(-s) * stacked / 2 + s / 2).sum()
        for total, optimizer in zip(
            (sum(weighting(losses_of(ours)).values()), written_out), optimizers, strict=True
        ):
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(weighting.log_variances, s)


def test_the_gradients_equal_those_of_torchjd() -> None:
    oracle = pytest.importorskip("torchjd.scalarization").UW(2)
    weighting = UncertaintyWeighting(PAIR, initial=(0.5, 0.5))
    parameter = torch.tensor([1.0, -2.0], requires_grad=True)
    for number in range(5):
        with torch.no_grad():
            weighting.log_variances.copy_(torch.tensor([[0.3 * number, -0.2 * number]]))
            oracle.log_var.copy_(weighting.log_variances.flatten())
        raw = losses_of(parameter)
        total = sum(weighting(raw).values())
        theirs = oracle(torch.stack(list(raw.values())))
        # The total leaves out ½ s, which has no gradient for the network.
        torch.testing.assert_close(total + weighting.log_variances.sum() / 2, theirs)
        of_ours = torch.autograd.grad(
            total, [parameter, weighting.log_variances], retain_graph=True
        )
        of_theirs = torch.autograd.grad(theirs, [parameter, oracle.log_var])
        torch.testing.assert_close(of_ours[0], of_theirs[0])
        torch.testing.assert_close(of_ours[1].flatten(), of_theirs[1])


def test_each_weighted_loss_is_drawn_to_one_half() -> None:
    weighting = UncertaintyWeighting(PAIR)
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    for _ in range(100):
        losses = weighting({"cls": torch.tensor(4.0), "box": torch.tensor(0.1)})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert [loss.item() for loss in losses.values()] == pytest.approx([0.5, 0.5], abs=1e-3)
    weights = [w.item() for w in weighting.applied_weights().values()]
    assert weights == pytest.approx([0.125, 5.0], rel=1e-2)


def test_after_a_step_of_the_optimizer_its_weights_are_those_of_the_new_parameters() -> None:
    weighting = UncertaintyWeighting(PAIR, initial=(1.0, 0.25))
    losses = {"cls": torch.tensor(4.0), "box": torch.tensor(0.1)}
    optimizer = torch.optim.SGD(weighting.parameters(), lr=0.5)
    sum(weighting(losses).values()).backward()
    optimizer.step()
    expected = torch.exp(-weighting.log_variances.detach()) / 2
    assert not torch.isclose(expected, torch.tensor([[1.0, 0.25]])).any()
    assert torch.equal(torch.stack(list(weighting.weights().values())), expected[0])
    weighted = weighting.eval()(losses)
    assert weighted["cls"] == expected[0, 0] * losses["cls"]
    assert weighted["box"] == expected[0, 1] * losses["box"]
    assert torch.equal(torch.stack(list(weighting.applied_weights().values())), expected[0])


def test_in_evaluation_mode_the_parameters_have_no_part() -> None:
    weighting = UncertaintyWeighting(PAIR).eval()
    weighted = weighting({"cls": torch.tensor(4.0), "box": torch.tensor(0.1)})
    assert not any(loss.requires_grad for loss in weighted.values())
