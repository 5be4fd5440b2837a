"""Laws of the tests over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.studies.statistics import (
    compare,
    paired_t_test,
    rank_correlation,
    sign_flip_test,
)


def test_the_t_test_has_the_published_quantiles() -> None:
    # two-sided 5% and 1% points of Student's t, any statistics book
    table = {1: (12.706, 63.657), 2: (4.303, 9.925), 3: (3.182, 5.841), 4: (2.776, 4.604)}
    for freedom, points in table.items():
        for t, p in zip(points, (0.05, 0.01), strict=True):
            spread = np.linspace(-1, 1, freedom + 1)
            error = np.std(spread, ddof=1) / np.sqrt(freedom + 1)
            assert paired_t_test((spread + t * error).tolist()) == pytest.approx(p, abs=2e-4)


def test_differences_that_are_all_the_same_are_certain() -> None:
    assert paired_t_test([0.5, 0.5, 0.5]) == 0
    assert paired_t_test([0.0, 0.0]) == 1


def test_the_rank_correlation_sees_order_alone_and_shares_ranks_of_ties() -> None:
    assert rank_correlation([1, 2, 3], [0.1, 0.2, 100]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5)
    assert rank_correlation([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9**0.5)


def test_five_seeds_that_agree_cannot_go_below_one_sixteenth() -> None:
    assert sign_flip_test([1.0, 2.0, 0.5, 3.0, 0.1]) == pytest.approx(2 / 32)
    assert sign_flip_test([-1.0, -2.0, -0.5]) == pytest.approx(2 / 8)
    assert sign_flip_test([1.0, -1.0]) == 1.0
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_the_sign_flip_test_is_uniform_when_nothing_differs() -> None:
    draws = np.random.default_rng(1).normal(size=(2000, 5))
    p = np.array([sign_flip_test(row.tolist()) for row in draws])
    for level in (1 / 16, 4 / 16, 8 / 16):
        assert np.mean(p <= level + 1e-9) == pytest.approx(level, abs=0.03)


def test_cells_are_paired_by_seed_not_by_position() -> None:
    paired = compare({0: 1.0, 2: 5.0, 9: 7.0}, {2: 4.0, 0: 0.5, 1: 9.0})
    assert paired is not None
    assert paired.difference.count == 2
    assert paired.difference.mean == pytest.approx(0.75)
    assert compare({0: 1.0}, {1: 1.0}) is None
    single = compare({0: 1.0}, {0: 0.5})
    assert single is not None
    assert single.t_test is None
