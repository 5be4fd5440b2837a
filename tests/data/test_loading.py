from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from data.annotations import Annotations
from data.coco import load_coco
from data.config import DataConfig
from data.dataset import choose_images
from data.errors import InputError
from data.images import read_image, resized_size
from data.loading import EvalLoader, TrainLoader, build_eval_loader, build_train_loader
from data.target import Batch

ROOT = Path(__file__).parents[2]
NUCLEI = ROOT / "../shared/data/dsb2018_nuclei"
SIZES_HW = [
    (40, 60),
    (60, 40),
    (48, 48),
    (30, 64),
    (64, 33),
    (40, 60),
    (50, 60),
    (60, 50),
    (40, 61),
]
RANDOM_TRANSFORMS = [
    {"HorizontalFlip": {"p": 0.5}},
    {"RandomBrightnessContrast": {"p": 1}},
    {"BBoxSafeRandomCrop": {"p": 0.5}},
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Annotations]:
    """Nine pictures, wide and high; picture ``i`` holds ``i % 4`` rectangles with masks."""
    root = tmp_path_factory.mktemp("rectangles")
    (root / "annotations").mkdir()
    (root / "train").mkdir()
    random = np.random.default_rng(0)
    images, objects = [], []
    for i, (height, width) in enumerate(SIZES_HW):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "train" / f"{i}.png"), pixels)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
        objects += [rectangle(i + 1, 2 + 7 * k, 3 + 2 * k, 10 + k, 12, k) for k in range(i % 4)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate("abc")]
    for number, entry in enumerate(objects, start=1):
        entry["id"] = number
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root, load_coco(root, "train")


def rectangle(image: int, x: int, y: int, width: int, height: int, label: int) -> dict[str, Any]:
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    box = [x, y, width, height]
    return {
        "image_id": image,
        "category_id": label + 1,
        "bbox": box,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [corners],
    }


def config_of(root: Path, **options: Any) -> DataConfig:
    given = {"image_size": (48, 64), "batch_size": 2, "workers": 0, "augment": RANDOM_TRANSFORMS}
    return DataConfig(format="coco", root=root, **{**given, **options})


@contextmanager
def training(
    dataset: tuple[Path, Annotations],
    *,
    seed: int = 1,
    rank: int = 0,
    world_size: int = 1,
    with_masks: bool = True,
    **options: Any,
) -> Iterator[TrainLoader]:
    root, annotations = dataset
    loader = build_train_loader(
        config_of(root, **options),
        annotations,
        seed=seed,
        rank=rank,
        world_size=world_size,
        with_masks=with_masks,
    )
    try:
        yield loader
    finally:
        loader.close()


@contextmanager
def evaluation(
    dataset: tuple[Path, Annotations], *, rank: int = 0, world_size: int = 1, **options: Any
) -> Iterator[EvalLoader]:
    root, annotations = dataset
    loader = build_eval_loader(
        config_of(root, **options), annotations, rank=rank, world_size=world_size
    )
    try:
        yield loader
    finally:
        loader.close()


def content(batch: Batch) -> tuple[Any, ...]:
    """All of a batch in plain comparable values."""
    targets = batch.targets
    return (
        batch.indices,
        tuple((tuple(image.shape), image.numpy().tobytes()) for image in batch.images),
        targets.boxes.tolist(),
        targets.labels.tolist(),
        targets.counts,
        None if targets.masks is None else tuple(mask.numpy().tobytes() for mask in targets.masks),
    )


def contents(batches: Iterable[Batch]) -> list[tuple[Any, ...]]:
    return [content(batch) for batch in batches]


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


def with_flags(annotations: Annotations, **flags: list[int]) -> Annotations:
    from dataclasses import replace

    arrays = {}
    for name, rows in flags.items():
        arrays[name] = np.zeros(len(annotations.boxes), np.bool_)
        arrays[name][rows] = True
    return replace(annotations, **arrays)


def test_crowds_are_never_and_difficult_objects_on_request_trained_on(
    dataset: tuple[Path, Annotations],
) -> None:
    root, annotations = dataset
    row = 3  # of three objects
    first = int(annotations.offsets[row])
    flagged = with_flags(annotations, crowd=[first], difficult=[first + 1]).select([row])
    for use_difficult, labels in ((False, [2]), (True, [1, 2])):
        voc = {"use_difficult": use_difficult}
        with training((root, flagged), augment=(), batch_size=1, voc=voc) as loader:
            (batch,) = loader.epoch(0)
            assert batch.targets.labels.tolist() == [labels]
            assert batch.targets.masks is not None
            assert len(batch.targets.masks[0]) == len(labels)


def test_boxes_are_clipped_to_the_image_and_slivers_left_out(
    dataset: tuple[Path, Annotations],
) -> None:
    root, annotations = dataset
    first = int(annotations.offsets[3])
    annotations.select([3])
    boxes = annotations.boxes.copy()
    boxes[first] = [-9, -1, 200, 20.5]
    boxes[first + 1] = [5, 5, 5.9, 30]
    from dataclasses import replace

    changed = replace(annotations, boxes=boxes).select([3])
    size_hw = SIZES_HW[3]
    with training((root, changed), augment=(), image_size=size_hw, batch_size=1) as loader:
        (batch,) = loader.epoch(0)
    assert batch.targets.boxes[0, 0].tolist() == [0, 0, size_hw[1], 20.5]
    assert batch.targets.labels.tolist() == [[0, 2]]


def test_empty_and_small_images_are_left_out_on_request(
    dataset: tuple[Path, Annotations],
) -> None:
    _, annotations = dataset
    assert choose_images(annotations, False, False, 0).tolist() == list(range(9))
    assert choose_images(annotations, False, True, 0).tolist() == [1, 2, 3, 5, 6, 7]
    assert choose_images(annotations, False, False, 40).tolist() == [0, 1, 2, 5, 6, 7, 8]
    with pytest.raises(InputError, match=r"none of its 9 images .* data\.min_image_side"):
        choose_images(annotations, False, False, 1000)


def test_classes_cannot_be_balanced_where_there_are_no_objects(
    dataset: tuple[Path, Annotations],
) -> None:
    root, annotations = dataset
    without_objects = (root, annotations.select([0, 4, 8]))
    with (
        pytest.raises(InputError, match="no image has an object to train on, and data"),
        training(without_objects, sampling={"type": "class_balanced"}),
    ):
        pass


def test_a_detector_of_masks_needs_masks(dataset: tuple[Path, Annotations]) -> None:
    from dataclasses import replace

    root, annotations = dataset
    with (
        pytest.raises(InputError, match="has no segmentations"),
        training((root, replace(annotations, masks=None))),
    ):
        pass


@pytest.fixture
def damaged(dataset: tuple[Path, Annotations], tmp_path: Path) -> tuple[Path, Annotations]:
    """The same pictures, of which 2 is cut off."""
    root, annotations = dataset
    (tmp_path / "train").mkdir()
    for file in annotations.files:
        raw = (root / str(file)).read_bytes()
        raw = raw[:300] if str(file) == "train/2.png" else raw
        (tmp_path / str(file)).write_bytes(raw)
    return tmp_path, annotations


@pytest.mark.parametrize("workers", [0, 2])
def test_an_input_error_arrives_as_it_was_raised(
    damaged: tuple[Path, Annotations], workers: int
) -> None:
    with (
        pytest.raises(
            InputError, match=r"^\S*2\.png: the image is cut off after 300 bytes; \S+ the"
        ),
        training(damaged, workers=workers) as loader,
    ):
        list(loader.epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_replaced_and_named_once(
    damaged: tuple[Path, Annotations], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    with training(damaged, workers=workers, on_damaged="skip") as loader:
        epochs = [contents(loader.epoch(epoch)) for epoch in (0, 1)]
        (message,) = caplog.messages
        assert re.match(r"left out: .*2\.png: the image is cut off", message)
    with training(damaged, on_damaged="skip") as loader:
        assert [contents(loader.epoch(epoch)) for epoch in (0, 1)] == epochs
    rows = [row for batch in epochs[0] for row in batch[0]]
    assert 2 not in rows
    assert set(rows) == set(range(9)) - {2}


def test_more_damaged_images_than_allowed_stop_the_run(
    damaged: tuple[Path, Annotations],
) -> None:
    (damaged[0] / "train/5.png").write_bytes(b"")
    with (
        training(damaged, on_damaged="skip", max_damaged=1) as loader,
        pytest.raises(InputError, match=r"png: .*more than data\.max_damaged=1 images"),
    ):
        list(loader.epoch(0))


def test_evaluation_leaves_a_damaged_image_out_and_names_it(
    damaged: tuple[Path, Annotations], caplog: pytest.LogCaptureFixture
) -> None:
    with evaluation(damaged, on_damaged="skip", batch_size=1) as loader:
        batches = list(loader)
        assert "2.png" in caplog.text
        assert sorted(row for batch in batches for row in batch.indices) == [0, 1, 3, 4, 5, 6, 7, 8]
        assert [row for batch in batches for row in batch.left_out] == [2]
    with evaluation(damaged) as loader, pytest.raises(InputError, match=r"2\.png"):
        list(loader)


def test_a_transform_that_fails_names_the_image(dataset: tuple[Path, Annotations]) -> None:
    crop = [{"RandomCrop": {"height": 500, "width": 500}}]
    with (
        training(dataset, augment=crop) as loader,
        pytest.raises(InputError, match=r"train/\d\.png: data\.augment: CropSizeError"),
    ):
        list(loader.epoch(0))


def children_of(process: int) -> set[int]:
    children: set[int] = set()
    for thread in Path(f"/proc/{process}/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has just ended
            children.update(map(int, (thread / "children").read_text().split()))
    return children


linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")


@linux
def test_a_worker_that_is_killed_is_reported_as_dead(dataset: tuple[Path, Annotations]) -> None:
    before = children_of(os.getpid())
    with training(dataset, workers=1, repeat=50) as loader:
        batches = loader.epoch(0)
        next(batches)
        (worker,) = children_of(os.getpid()) - before
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"died|killed"):
            list(batches)


@linux
def test_closing_ends_the_others_where_the_loss_of_a_worker_is_noticed_only_then(
    dataset: tuple[Path, Annotations], monkeypatch: pytest.MonkeyPatch
) -> None:
    def notice(_: Any) -> None:
        monkeypatch.undo()
        # What PyTorch's SIGCHLD handler raises; when it runs is up to the kernel.
        raise RuntimeError(f"DataLoader worker (pid {killed}) is killed by signal: Killed. ")

    before = children_of(os.getpid())
    with training(dataset, workers=2, repeat=50) as loader:
        next(loader.epoch(0))
        killed, _ = children_of(os.getpid()) - before
        monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown_workers", notice)
        loader.close()
        assert children_of(os.getpid()) <= before


@linux
def test_closing_ends_all_workers(dataset: tuple[Path, Annotations]) -> None:
    before = children_of(os.getpid())
    with training(dataset, workers=2) as loader:
        next(loader.epoch(0))
        assert len(children_of(os.getpid()) - before) == 2
    assert children_of(os.getpid()) <= before
    loader.close()


PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from data.coco import load_coco
    from data.config import DataConfig
    from data.loading import build_train_loader

    if __name__ == "__main__":
        root = Path(sys.argv[1])
        config = DataConfig(format="coco", root=root, batch_size=2, workers=2, repeat=20)
        annotations = load_coco(root, "train")
        loader = build_train_loader(
            config, annotations, seed=0, rank=0, world_size=1, with_masks=False
        )
        signal.signal(signal.SIGTERM, lambda *_: print("told to end", flush=True))
        batches = loader.epoch(0)
        next(batches)
        print("ready", flush=True)
        time.sleep(1)
        print(len(list(batches)), flush=True)
        # and ends without closing the loader
"""


@linux
def test_workers_outlive_a_sigterm_to_the_group_and_not_their_parent(
    dataset: tuple[Path, Annotations], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    process = subprocess.Popen(
        [sys.executable, str(program), str(dataset[0])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    workers = children_of(process.pid)
    os.killpg(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=30)
    assert output.split("\n")[:2] == ["told to end", "89"]
    assert (process.returncode, errors) == (0, "")
    time.sleep(0.1)
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


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
