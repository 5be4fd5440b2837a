"""Multi-scale training: sizes follow from seed, epoch and batch alone."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from data.config import DataConfig
from data.scales import BatchSizes


def test_without_short_sides_there_is_one_size() -> None:
    assert BatchSizes((60, 100)).sizes(3, 2) == [(60, 100), (60, 100)]


def test_every_short_side_is_drawn_about_equally_often() -> None:
    sizes = BatchSizes((60, 100), (40, 50, 60), seed=1).sizes(0, 3000)
    assert {long for _, long in sizes} == {100}
    values, counts = np.unique([short for short, _ in sizes], return_counts=True)
    assert values.tolist() == [40, 50, 60]
    assert 900 < counts.min() <= counts.max() < 1100


def test_a_range_draws_every_length_between_its_ends() -> None:
    sizes = BatchSizes((60, 100), (40, 44), between=True).sizes(0, 200)
    assert {short for short, _ in sizes} == {40, 41, 42, 43, 44}


def test_sizes_depend_on_seed_and_epoch_and_on_nothing_else() -> None:
    def sizes(epoch: int, seed: int) -> list[tuple[int, int]]:
        return BatchSizes((60, 100), (40, 50, 60), seed=seed).sizes(epoch, 20)

    assert sizes(1, 2) == sizes(1, 2)
    assert len({tuple(sizes(*key)) for key in ((1, 2), (2, 2), (1, 3))}) == 3
    assert sizes(1, 2)[:10] == BatchSizes((60, 100), (40, 50, 60), seed=2).sizes(1, 10)


@pytest.mark.parametrize(
    ("scales", "problem"),
    [
        ({"short_sides": [1200]}, "maximum long side"),
        ({"short_sides": [500], "mode": "range"}, "at least a smallest and a largest"),
        ({"short_sides": [0]}, "greater than or equal to 1"),
    ],
)
def test_impossible_scales_are_refused(scales: dict[str, object], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DataConfig.model_validate({"multi_scale": scales})
