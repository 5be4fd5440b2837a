"""Batches: what they hold, in which order, for any number of workers and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from rectangles import (
    SIZES_HW,
    contents,
    evaluation,
    training,
)

from data.annotations import Annotations
from data.formats.coco import load_coco
from data.images import read_image, resized_size

NUCLEI = Path(__file__).parents[2] / "../shared/data/dsb2018_nuclei"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"multi_scale": {"short_sides": (32, 40, 48)}, "cache": "memory"},
        {"sampling": {"type": "repeat_factor", "threshold": 0.9}},
        {"sampling": {"type": "class_balanced"}, "multi_scale": {"short_sides": (32, 40)}},
    ],
    ids=["plain", "scales and cache", "repeat factors", "balance and scales"],
)
def test_batches_are_identical_for_any_number_of_workers(
    options: dict[str, Any], dataset: tuple[Path, Annotations]
) -> None:
    with training(dataset, **options) as loader:
        expected = [contents(loader.epoch(epoch)) for epoch in range(2)]
        assert contents(loader.epoch(1, start=2)) == expected[1][2:]
    for workers in (2, 3):
        with training(dataset, workers=workers, **options) as loader:
            assert [contents(loader.epoch(epoch)) for epoch in range(2)] == expected
    assert expected[0] != expected[1]


def test_a_cache_changes_no_batch(dataset: tuple[Path, Annotations]) -> None:
    epochs = []
    for cache in ("none", "memory"):
        with training(dataset, cache=cache, workers=2) as loader:
            epochs.append([contents(loader.epoch(epoch)) for epoch in range(3)])
    assert epochs[0] == epochs[1]


def test_all_images_of_a_batch_get_the_size_that_was_drawn_for_it(
    dataset: tuple[Path, Annotations],
) -> None:
    scales = {"short_sides": (20, 30, 40)}
    with training(dataset, augment=[], image_size=(40, 1000), multi_scale=scales) as loader:
        short_sides = [
            {min(image.shape[1:]) for image in batch.images}
            for epoch in range(4)
            for batch in loader.epoch(epoch)
        ]
    assert all(len(sides) == 1 for sides in short_sides)
    assert set.union(*short_sides) == {20, 30, 40}


def test_the_same_image_is_augmented_anew_in_every_epoch_and_repeat(
    dataset: tuple[Path, Annotations],
) -> None:
    with training(dataset, repeat=2) as loader:
        shown = [
            (row, image.numpy().tobytes())
            for epoch in range(3)
            for batch in loader.epoch(epoch)
            for row, image in zip(batch.indices, batch.images, strict=True)
        ]
    for row in range(len(SIZES_HW)):
        assert len({pixels for r, pixels in shown if r == row}) >= 5


def test_an_epoch_goes_on_from_any_batch(dataset: tuple[Path, Annotations]) -> None:
    with training(dataset, workers=2) as loader:
        whole = contents(loader.epoch(1))
        assert len(whole) == len(loader)
        for start in (1, 3, len(loader) - 1, len(loader)):
            assert contents(loader.epoch(1, start)) == whole[start:]


def test_an_epoch_that_was_left_early_does_not_disturb_the_next(
    dataset: tuple[Path, Annotations],
) -> None:
    with training(dataset) as loader:
        expected = contents(loader.epoch(7))
    with training(dataset, workers=2) as loader:
        for _ in range(3):
            next(loader.epoch(0))
        assert contents(loader.epoch(7)) == expected


def test_two_ranks_of_two_see_the_global_batches_of_one_rank_of_four(
    dataset: tuple[Path, Annotations],
) -> None:
    with training(dataset, batch_size=4) as loader:
        whole = contents(loader.epoch(2))
    halves = []
    for rank in range(2):
        with training(dataset, rank=rank, world_size=2) as loader:
            halves.append(contents(loader.epoch(2)))
    assert len(whole) == len(halves[0]) == len(halves[1])
    for four, *two in zip(whole, *halves, strict=True):
        for part in (0, 1, 4):  # rows, images, counts
            assert four[part] == two[0][part] + two[1][part]


def test_a_batch_is_as_the_contract_says(dataset: tuple[Path, Annotations]) -> None:
    _, annotations = dataset
    with training(dataset, workers=2, augment=()) as loader:
        batches = list(loader.epoch(0))
    for batch in batches:
        targets = batch.targets
        most = max(targets.counts)
        assert targets.boxes.shape == (2, most, 4)
        assert targets.boxes.dtype == torch.float32
        assert targets.labels.dtype == torch.int64
        assert targets.masks is not None
        for i, row in enumerate(batch.indices):
            image, mask, count = batch.images[i], targets.masks[i], targets.counts[i]
            size_hw = resized_size(tuple(annotations.sizes[row].tolist()), (48, 64))
            assert image.dtype == mask.dtype == torch.uint8
            assert image.shape == (3, *size_hw)
            assert image.stride(0) == 1, "channels last"
            assert mask.shape == (count, *size_hw)
            assert count == row % 4
            assert targets.labels_of(i).tolist() == list(range(count))
            assert (targets.labels[i, count:] == -1).all()
            assert (targets.boxes[i, count:] == 0).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_without_masks_all_else_is_the_same(
    dataset: tuple[Path, Annotations], workers: int
) -> None:
    with training(dataset) as loader:
        expected = [batch[:-1] for batch in contents(loader.epoch(0))]
    with training(dataset, workers=workers, with_masks=False) as loader:
        assert contents(loader.epoch(0)) == [(*batch, None) for batch in expected]


def test_boxes_are_scaled_by_the_exact_ratio_of_the_sizes(
    dataset: tuple[Path, Annotations],
) -> None:
    root, annotations = dataset
    with training(dataset, augment=(), image_size=(100, 170)) as loader:
        for batch in loader.epoch(0):
            for i, row in enumerate(batch.indices):
                height, width = annotations.sizes[row]
                ratio = np.array(batch.images[i].shape[:0:-1]) / (width, height)
                boxes = annotations.boxes[annotations.objects_of(row)] * np.tile(ratio, 2)
                np.testing.assert_allclose(batch.targets.boxes_of(i), boxes, rtol=1e-6)
                original = read_image(root / str(annotations.files[row]), None, 10**6)
                size_wh = tuple(batch.images[i].shape[:0:-1])
                expected = cv2.resize(original, size_wh, interpolation=cv2.INTER_LINEAR)
                np.testing.assert_array_equal(batch.images[i].permute(1, 2, 0), expected)


def test_the_global_random_stream_is_not_touched(dataset: tuple[Path, Annotations]) -> None:
    before = torch.get_rng_state()
    for workers in (0, 2):
        with training(dataset, workers=workers) as loader:
            list(loader.epoch(0))
        with evaluation(dataset, workers=workers) as loader:
            list(loader)
    assert torch.equal(before, torch.get_rng_state())


def test_a_dataset_smaller_than_a_batch_fills_it(dataset: tuple[Path, Annotations]) -> None:
    root, annotations = dataset
    single = annotations.select([1])
    with training((root, single), batch_size=5) as loader:
        (batch,) = loader.epoch(0)
        assert batch.indices == (0,) * 5
        assert len({image.numpy().tobytes() for image in batch.images}) > 1


def test_evaluation_sees_each_image_once_over_all_ranks(
    dataset: tuple[Path, Annotations],
) -> None:
    seen: list[int] = []
    for rank in range(2):
        with evaluation(dataset, rank=rank, world_size=2, workers=rank) as loader:
            for _ in range(2):
                rows = [row for batch in loader for row in batch.indices]
            seen += rows
            assert len(list(loader)) == len(loader)
    assert sorted(seen) == list(range(len(SIZES_HW)))


def test_evaluation_batches_are_plain_and_without_objects(
    dataset: tuple[Path, Annotations],
) -> None:
    root, annotations = dataset
    with evaluation(dataset, workers=1) as loader:
        for batch in loader:
            assert batch.targets.boxes.shape == (len(batch), 0, 4)
            assert batch.targets.masks is None
            for row, image in zip(batch.indices, batch.images, strict=True):
                original = read_image(root / str(annotations.files[row]), None, 10**6)
                expected = cv2.resize(original, tuple(image.shape[:0:-1]))
                np.testing.assert_array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_an_exif_orientation_is_applied_or_ignored_by_all_readers(
    dataset: tuple[Path, Annotations], tmp_path: Path, cache: str
) -> None:
    pixels = read_image(dataset[0] / "train/2.png", None, 10**6)  # square: no size tells
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "train").mkdir()
    Image.fromarray(pixels).save(tmp_path / "train/2.png", exif=exif)
    one = (tmp_path, dataset[1].select([2]))
    for word, shown in (("apply", np.rot90(pixels, -1)), ("ignore", pixels)):
        options = {"exif": word, "cache": cache, "image_size": (48, 64), "batch_size": 1}
        with training(one, augment=(), **options) as train, evaluation(one, **options) as scored:
            for (batch,) in (list(train.epoch(0)), list(scored)):
                np.testing.assert_array_equal(batch.images[0].permute(1, 2, 0), shown)


@pytest.mark.skipif(not NUCLEI.is_dir(), reason="needs the shared data")
def test_real_masks_and_boxes_stay_in_step() -> None:
    annotations = load_coco(NUCLEI, "val").select(range(6))
    flips = [{"HorizontalFlip": {"p": 0.5}}, {"RandomRotate90": {"p": 0.5}}]
    options = {"augment": flips, "image_size": (256, 256), "batch_size": 3}
    with training((NUCLEI, annotations), **options) as loader:
        for batch in loader.epoch(0):
            assert batch.targets.masks is not None
            for i, masks in enumerate(batch.targets.masks):
                boxes = batch.targets.boxes_of(i)
                assert len(masks) == len(boxes) > 0
                for mask, box in zip(masks, boxes, strict=True):
                    y, x = mask.nonzero(as_tuple=True)
                    tight = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
                    assert (tight - box).abs().max() <= 1.0
