"""Laws of Dynamic Weight Average."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from losses import DWA

PAIR = {"head": ("cls", "box")}


def run_window(dwa: DWA, cls: tuple[float, float], box: tuple[float, float]) -> list[float]:
    """Two iterations (the interval is 2); the weights after them."""
    for values in zip(cls, box, strict=True):
        dwa(dict(zip(("cls", "box"), map(torch.tensor, values), strict=True)))
    return [weight.item() for weight in dwa.weights().values()]


def test_the_weights_are_the_softmax_of_the_ratios_of_two_windows() -> None:
    dwa = DWA(PAIR, interval=2)
    assert run_window(dwa, (3.0, 5.0), (1.0, 3.0)) == [1.0, 1.0]
    first, second = math.exp(0.5 / 2), math.exp(0.75 / 2)  # means 4 -> 2 and 2 -> 1.5
    expected = [2 * first / (first + second), 2 * second / (first + second)]
    assert run_window(dwa, (1.0, 3.0), (1.0, 2.0)) == pytest.approx(expected)
    # The third window is compared with the raw losses of the second, not with the weighted ones.
    first, second = math.exp(2.0 / 2), math.exp(1 / 3 / 2)  # means 2 -> 4 and 1.5 -> 0.5
    expected = [2 * first / (first + second), 2 * second / (first + second)]
    assert run_window(dwa, (4.0, 4.0), (0.5, 0.5)) == pytest.approx(expected)


def test_a_high_temperature_leaves_equal_weights() -> None:
    dwa = DWA(PAIR, interval=2, temperature=1e6)
    for value in (4.0, 1.0, 9.0):
        weights = run_window(dwa, (value, value), (1.0, 1.0))
    assert weights == pytest.approx([1.0, 1.0], abs=1e-5)


def test_losses_that_sink_alike_have_equal_weights_whatever_their_size() -> None:
    dwa = DWA(PAIR, interval=2)
    for factor in (1.0, 0.5, 0.25):
        weights = run_window(dwa, (100 * factor,) * 2, (0.01 * factor,) * 2)
    assert weights == pytest.approx([1.0, 1.0])


def test_it_equals_torchjd_whose_epochs_are_our_windows() -> None:
    oracle = pytest.importorskip("torchjd.scalarization").DWA(temperature=1.5)
    ours = DWA(PAIR, interval=5, temperature=1.5)
    draws = 0.1 + torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    for number, row in enumerate(draws, start=1):
        total = sum(ours({"cls": row[0], "box": row[1]}).values())
        torch.testing.assert_close(total, oracle(row))
        if number % 5 == 0:
            oracle.step()


def test_a_window_of_zeros_is_survived() -> None:
    dwa = DWA(PAIR, interval=2)
    for value in (1.0, 0.0, 1.0, 1.0, 0.5):
        weights = run_window(dwa, (value, value), (1.0, 1.0))
        assert all(0 < weight < 2 for weight in weights)
    assert weights[0] < 1 < weights[1]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        DWA(PAIR, temperature=temperature)
