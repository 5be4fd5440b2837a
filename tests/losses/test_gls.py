"""Laws of the geometric loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from losses import GLS

PAIR = {"head": ("cls", "box")}


def losses_of(parameter: Tensor) -> dict[str, Tensor]:
    return {"cls": 3 * parameter.square().sum() + 0.5, "box": parameter.abs().sum() / 7}


def test_the_weights_are_half_the_root_of_the_ratio() -> None:
    gls = GLS(PAIR)
    weighted = gls({"cls": torch.tensor(8.0), "box": torch.tensor(2.0)})
    assert {name: w.item() for name, w in gls.applied_weights().items()} == {
        "cls": 0.25,
        "box": 1.0,
    }
    assert sum(weighted.values()) == 4.0  # sqrt(8 · 2)
    assert weighted["cls"] == weighted["box"]


def test_total_and_gradient_are_those_of_the_geometric_mean() -> None:
    parameter = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
    raw = losses_of(parameter)
    product = torch.sqrt(raw["cls"] * raw["box"])
    (expected,) = torch.autograd.grad(product, parameter, retain_graph=True)
    total = sum(GLS(PAIR)(raw).values())
    (gradient,) = torch.autograd.grad(total, parameter)
    torch.testing.assert_close(total, product)
    torch.testing.assert_close(gradient, expected)


def test_two_pairs_add_their_geometric_means() -> None:
    gls = GLS({"one": ("a", "b"), "two": ("c", "d")})
    raw = dict(zip("abcd", torch.tensor([1.0, 4.0, 9.0, 1.0]), strict=True))
    assert sum(gls(raw).values()) == 2.0 + 3.0


def test_it_equals_torchjd() -> None:
    oracle = pytest.importorskip("torchjd.scalarization").GeometricMean()
    parameter = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
    raw = losses_of(parameter)
    theirs = oracle(torch.stack(list(raw.values())))
    (expected,) = torch.autograd.grad(theirs, parameter, retain_graph=True)
    total = sum(GLS(PAIR)(raw).values())
    torch.testing.assert_close(total, theirs)
    torch.testing.assert_close(torch.autograd.grad(total, parameter)[0], expected)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_unit_of_a_loss_does_not_change_the_direction(scale: float) -> None:
    parameter = torch.tensor([0.3, -1.2, 2.0], requires_grad=True)
    directions = []
    for factor in (1.0, scale):
        raw = losses_of(parameter)
        total = sum(GLS(PAIR)({**raw, "cls": factor * raw["cls"]}).values())
        (gradient,) = torch.autograd.grad(total, parameter)
        directions.append(gradient / math.sqrt(factor))
    torch.testing.assert_close(directions[0], directions[1])


def test_a_loss_of_zero_leaves_the_weights_of_the_call_before() -> None:
    gls = GLS(PAIR)
    gls({"cls": torch.tensor(8.0), "box": torch.tensor(2.0)})
    gls({"cls": torch.tensor(8.0), "box": torch.tensor(0.0)})
    assert gls.applied_weights()["cls"] == 0.25
