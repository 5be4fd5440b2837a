from __future__ import annotations

import numpy as np
import pytest
import torch

from data.sampling import EpochOrder, aspect_groups, evaluation_shard, stream_seed

# (images of group 0, of group 1, repeat, batch_size, world_size)
CASES = [
    (7, 13, 1, 2, 1),
    (7, 13, 3, 4, 1),
    (1, 20, 1, 4, 2),
    (0, 5, 2, 8, 1),
    (1, 0, 1, 2, 3),
    (40, 40, 1, 1, 1),
]


def order_of(
    zeros: int, ones: int, repeat: int, batch_size: int, world_size: int, rank: int = 0
) -> EpochOrder:
    groups = np.random.default_rng(1).permutation([0] * zeros + [1] * ones)
    return EpochOrder(groups, repeat, batch_size, seed=5, rank=rank, world_size=world_size)


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_shows_every_image_as_often_as_asked(case: tuple[int, ...]) -> None:
    order = order_of(*case)
    positions = order.global_batches(3).reshape(-1)
    showings = len(order.groups) * order.repeat
    assert sorted(positions[positions < showings]) == list(range(showings))
    images = np.bincount(positions % len(order.groups), minlength=len(order.groups))
    assert images.min() >= order.repeat


@pytest.mark.parametrize("case", CASES)
def test_no_position_comes_twice_so_that_fillings_are_augmented_afresh(
    case: tuple[int, ...],
) -> None:
    positions = order_of(*case).global_batches(0).reshape(-1)
    assert len(np.unique(positions)) == len(positions)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_holds_one_aspect_group(case: tuple[int, ...]) -> None:
    order = order_of(*case)
    for batch in order.global_batches(2):
        assert len(set(order.groups[batch % len(order.groups)].tolist())) == 1


@pytest.mark.parametrize("case", CASES)
def test_less_than_a_batch_of_each_group_is_filled(case: tuple[int, ...]) -> None:
    order = order_of(*case)
    size = order.batch_size * order.world_size
    groups = len(np.unique(order.groups))
    assert order.global_batches(0).size - len(order.groups) * order.repeat < groups * size
    assert len(order) == len(order.global_batches(0)) == len(order.global_batches(1))


def test_two_processes_of_two_see_what_one_of_four_sees() -> None:
    one = order_of(7, 13, 2, 4, 1)
    ranks = [order_of(7, 13, 2, 2, 2, rank) for rank in range(2)]
    for epoch in range(3):
        together = np.concatenate([rank.batches(epoch) for rank in ranks], axis=1)
        np.testing.assert_array_equal(one.batches(epoch), together)
    assert len(one) == len(ranks[0]) == len(ranks[1])


def test_ranks_share_no_position() -> None:
    ranks = [order_of(7, 13, 1, 2, 3, rank).batches(0) for rank in range(3)]
    assert len(np.unique(np.concatenate(ranks))) == sum(rank.size for rank in ranks)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = order_of(30, 30, 1, 4, 1).global_batches(4)
    torch.manual_seed(1)
    np.random.default_rng(2).random()
    np.testing.assert_array_equal(first, order_of(30, 30, 1, 4, 1).global_batches(4))
    assert (first != order_of(30, 30, 1, 4, 1).global_batches(5)).any()
    groups = order_of(30, 30, 1, 4, 1).groups
    assert (first != EpochOrder(groups, 1, 4, seed=6).global_batches(4)).any()


def test_the_order_is_the_same_on_every_machine_and_release() -> None:
    """Known values: a resumed run must not meet another order after an upgrade of numpy."""
    order = EpochOrder(np.zeros(6, np.int64), 1, 2, seed=0)
    assert order.global_batches(0).tolist() == [[4, 3], [1, 5], [0, 2]]
    assert stream_seed(0, 0, 0) == 11684132067157788011


def test_all_orders_are_equally_likely() -> None:
    order = EpochOrder(np.zeros(3, np.int64), 1, 3, seed=9)
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(600):
        key = tuple(order.batches(epoch)[0].tolist())
        counts[key] = counts.get(key, 0) + 1
    assert len(counts) == 6
    assert 60 <= min(counts.values()) <= max(counts.values()) <= 140


def test_each_sample_has_a_stream_of_its_own() -> None:
    seeds = {stream_seed(s, e, p) for s in range(10) for e in range(10) for p in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert stream_seed(1, 11, 1) != stream_seed(1, 1, 11) != stream_seed(11, 1, 1)


def test_images_wider_than_high_are_one_group() -> None:
    sizes_hw = np.array([[10, 20], [20, 10], [10, 10]], np.int32)
    assert aspect_groups(sizes_hw).tolist() == [1, 0, 0]


@pytest.mark.parametrize("images", [0, 1, 5, 16, 23])
@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 1), (4, 2), (3, 5)])
def test_evaluation_shards_are_disjoint_and_complete(
    images: int, batch_size: int, world_size: int
) -> None:
    sizes_hw = np.random.default_rng(0).integers(20, 90, (images, 2)).astype(np.int32)
    shards = [evaluation_shard(sizes_hw, batch_size, r, world_size) for r in range(world_size)]
    rows = [row for shard in shards for batch in shard for row in batch.tolist()]
    assert sorted(rows) == list(range(images))
    lengths = [len(shard) for shard in shards]
    assert max(lengths) - min(lengths) <= 1
    assert all(0 < len(batch) <= batch_size for shard in shards for batch in shard)


def test_evaluation_batches_hold_images_of_like_shape() -> None:
    sizes_hw = np.array([[60, 90], [90, 60], [61, 90], [90, 61]], np.int32)
    batches = [sorted(batch.tolist()) for batch in evaluation_shard(sizes_hw, 2, 0, 1)]
    assert batches == [[1, 3], [0, 2]]
    batches = [batch.tolist() for batch in evaluation_shard(sizes_hw, 3, 0, 1)]
    assert [len(batch) for batch in batches] == [2, 2]  # neither is filled from the other group


def test_a_million_showings_are_ordered_within_seconds() -> None:
    groups = np.random.default_rng(0).integers(0, 2, 350_000)
    order = EpochOrder(groups, 3, 8, seed=0)
    assert order.global_batches(0).shape == (len(order), 8)


def weighted(factors: list[float], repeat: int = 1, rank: int = 0, ranks: int = 1) -> EpochOrder:
    groups = np.arange(len(factors)) % 2
    return EpochOrder(groups, repeat, 2, 3, rank, ranks, np.array(factors))


def showings(order: EpochOrder, epoch: int) -> np.ndarray:
    """How often an epoch shows each image, fillings left out."""
    images = len(order.groups)
    positions = order.global_batches(epoch).reshape(-1)
    return np.bincount(positions[positions < order._most * images] % images, minlength=images)


def test_factors_are_met_on_average_and_within_one_in_every_epoch() -> None:
    factors = [1.0, 2.5, 0.3, 1.0, 4.0, 0.0, 0.7, 0.5]
    order = weighted(factors, repeat=2)
    counts = np.stack([showings(order, epoch) for epoch in range(400)])
    assert (counts >= np.floor(order._means)).all()
    assert (counts <= np.ceil(order._means)).all()
    np.testing.assert_allclose(counts.mean(axis=0), order._means, atol=0.08)
    np.testing.assert_allclose(order._means, 2 * np.array(factors), rtol=0.1)


def test_epochs_with_factors_are_equally_long_and_show_no_position_twice() -> None:
    order = weighted([1.0, 1.7, 1.2, 3.1, 1.0, 1.0, 1.9])
    for epoch in range(20):
        batches = order.global_batches(epoch)
        assert len(batches) == len(order)
        assert len(np.unique(batches)) == batches.size
        assert (showings(order, epoch) >= 1).all()


def test_factors_of_one_are_the_uniform_order() -> None:
    uniform = EpochOrder(np.arange(9) % 2, 3, 2, seed=3)
    ones = EpochOrder(np.arange(9) % 2, 3, 2, seed=3, factors=np.ones(9))
    np.testing.assert_array_equal(uniform.global_batches(5), ones.global_batches(5))


def test_ranks_divide_weighted_epochs_too() -> None:
    factors = [1.0, 1.7, 1.2, 3.1, 1.0, 1.0, 1.9]
    ranks = [weighted(factors, rank=rank, ranks=2) for rank in range(2)]
    together = np.concatenate([order.batches(4) for order in ranks], axis=1)
    np.testing.assert_array_equal(together, ranks[0].global_batches(4))
    assert len(ranks[0]) == len(ranks[1])


def test_a_group_that_is_never_shown_makes_no_batch() -> None:
    order = weighted([0.0, 1.0, 0.0, 1.0])
    assert (order.global_batches(0) % 4 % 2 == 1).all()
    assert len(order) == 1
