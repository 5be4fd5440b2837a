"""Laws of the weighting by coefficients of variation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from losses import CoVWeighting

PAIR = {"head": ("cls", "box")}


def weights_after(rows: np.ndarray) -> list[list[float]]:
    """The weights that each iteration applied, and those after the last."""
    weighting = CoVWeighting(PAIR, interval=5)
    seen = []
    for cls, box in rows:
        seen.append([w.item() for w in weighting.weights().values()])
        weighting({"cls": torch.tensor(float(cls)), "box": torch.tensor(float(box))})
    return [*seen, [w.item() for w in weighting.weights().values()]]


def by_definition(rows: np.ndarray) -> list[float]:
    """The weights after some iterations from all of them at once, in float64."""
    ratios = np.ones_like(rows)
    for number in range(1, len(rows)):
        ratios[number] = rows[number] / rows[:number].mean(axis=0)
    variation = ratios.std(axis=0) / ratios.mean(axis=0)
    return list(2 * variation / variation.sum())


def test_hand_computed_weights() -> None:
    # cls 1, 3: ratios 1, 3, mean 2, deviation 1. box 2, 3: ratios 1, 1.5, mean 1.25, deviation ¼.
    seen = weights_after(np.array([[1.0, 2.0], [3.0, 3.0]]))
    assert seen[:2] == [[1, 1], [1, 1]]
    assert seen[2] == pytest.approx([2 * 0.5 / 0.7, 2 * 0.2 / 0.7])


def test_the_recursion_equals_the_definition() -> None:
    rows = 0.2 + np.random.default_rng(0).random((40, 2)) * [3.0, 0.5]
    seen = weights_after(rows)
    for count in range(2, 41):
        assert seen[count] == pytest.approx(by_definition(rows[:count]), rel=1e-4)
        assert sum(seen[count]) == pytest.approx(2)


def test_the_unit_of_a_loss_does_not_matter() -> None:
    rows = 0.2 + np.random.default_rng(1).random((20, 2))
    expected = np.array(weights_after(rows))
    assert np.array(weights_after(rows * [1e4, 1e-4])) == pytest.approx(expected, rel=1e-4)


def test_losses_that_never_vary_keep_equal_weights() -> None:
    assert weights_after(np.full((6, 2), 0.7))[-1] == [1, 1]


def test_an_iteration_without_objects_is_left_out() -> None:
    rows = 0.2 + np.random.default_rng(2).random((8, 2))
    holes = np.insert(rows, 4, [1.0, 0.0], axis=0)
    holes = np.insert(holes, 6, [np.nan, 1.0], axis=0)
    assert weights_after(holes)[-1] == weights_after(rows)[-1]
