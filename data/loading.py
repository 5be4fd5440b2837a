"""Batches for training and evaluation, made by worker processes.

Workers only receive ``(epoch, positions, image size)``, so that a batch does not depend on which of
them makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data.annotations import Annotations
from data.augment import build_augmentation
from data.config import DataConfig
from data.dataset import EvaluationDataset, Sample, TrainingDataset, choose_images
from data.image_files import ImageFiles, open_images
from data.images import DamagedImageError
from data.packing import PackedBatch, pack
from data.rebalancing import showing_factors
from data.sampling import EpochOrder, aspect_groups, evaluation_shard
from data.scales import BatchSizes
from data.target import Batch
from data.workers import BatchStream

log = logging.getLogger(__name__)


def build_train_loader(
    config: DataConfig,
    annotations: Annotations,
    *,
    seed: int,
    rank: int,
    world_size: int,
    with_masks: bool,
    pin_memory: bool = False,
) -> TrainLoader:
    """Build the loader of shuffled, augmented batches, each of images of one aspect group.

    Raises:
        InputError: a transform is impossible, no image can be trained on, masks are missing, or
            images cannot be cached.
    """
    rows = choose_images(
        annotations, config.voc.use_difficult, config.drop_empty, config.min_image_side
    )
    skip = config.on_damaged == "skip"
    dataset = TrainingDataset(
        annotations,
        _images(config, annotations),
        rows,
        build_augmentation(config.augment, with_masks),
        seed=seed,
        use_difficult=config.voc.use_difficult,
        with_masks=with_masks,
        replacements=config.max_damaged if skip else 0,
    )
    if with_masks and rank == 0:
        _warn_of_boxes_as_masks(dataset)
    groups = aspect_groups(annotations.sizes[rows])
    factors = showing_factors(
        annotations,
        rows,
        config.sampling.type,
        config.sampling.threshold,
        config.voc.use_difficult,
    )
    order = EpochOrder(groups, config.repeat, config.batch_size, seed, rank, world_size, factors)
    scales = config.multi_scale
    sizes = BatchSizes(config.image_size, scales.short_sides, scales.mode == "range", seed)
    return TrainLoader(order, sizes, _stream(_TrainingBatches(dataset), config, pin_memory))


def _warn_of_boxes_as_masks(dataset: TrainingDataset) -> None:
    boxes, objects = dataset.count_boxes_as_masks()
    if boxes:
        log.warning(
            "%s: %d of %d objects to train on have no segmentation; their boxes are used as masks",
            dataset.annotations.source,
            boxes,
            objects,
        )


def build_eval_loader(
    config: DataConfig,
    annotations: Annotations,
    *,
    rank: int,
    world_size: int,
    pin_memory: bool = False,
) -> EvalLoader:
    """Build the loader of this rank's share of all images, each once, with empty targets.

    With ``on_damaged: skip`` a damaged image is skipped, and its objects count as missed. Batches
    list such images, and may contain no others.

    Raises:
        InputError: images cannot be cached.
    """
    dataset = EvaluationDataset(_images(config, annotations), config.image_size)
    batches = _EvaluationBatches(dataset, skip=config.on_damaged == "skip")
    shard = evaluation_shard(annotations.sizes, config.batch_size, rank, world_size)
    keys = [tuple(rows.tolist()) for rows in shard]
    return EvalLoader(keys, _stream(batches, config, pin_memory))


def _images(config: DataConfig, annotations: Annotations) -> ImageFiles:
    return open_images(config, annotations, in_memory=config.cache == "memory")


def _stream(
    make: Callable[[Any], PackedBatch], config: DataConfig, pin_memory: bool
) -> BatchStream:
    return BatchStream(
        make,
        workers=config.workers,
        prefetch=config.prefetch,
        pin_memory=pin_memory,
        max_damaged=config.max_damaged,
    )


class TrainLoader:
    """Training batches, epoch by epoch."""

    def __init__(self, order: EpochOrder, sizes: BatchSizes, stream: BatchStream) -> None:
        self._order = order
        self._sizes = sizes
        self._stream = stream

    def __len__(self) -> int:
        """Return the batches per epoch, the same number in every epoch and on every rank."""
        return len(self._order)

    @property
    def images(self) -> int:
        """Number of different images that are trained on."""
        return len(self._order.groups)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch ``start`` on, as if those before had been drawn.

        Raises:
            InputError: a file cannot be used; the message names it.
            WorkerDiedError: a worker process died.
        """
        batches = self._order.batches(epoch).tolist()
        sizes = self._sizes.sizes(epoch, len(batches))
        keys = [
            (epoch, tuple(positions), size) for positions, size in zip(batches, sizes, strict=True)
        ]
        return self._stream.run(keys[start:])

    def close(self) -> None:
        """End the worker processes; the loader cannot be used afterwards."""
        self._stream.close()


class EvalLoader:
    """The batches of one rank's shard; can be iterated repeatedly."""

    def __init__(self, keys: Sequence[tuple[int, ...]], stream: BatchStream) -> None:
        self._keys = keys
        self._stream = stream

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.run(self._keys)

    def close(self) -> None:
        """End the worker processes; the loader cannot be used afterwards."""
        self._stream.close()


@dataclass(frozen=True)
class _TrainingBatches:
    dataset: TrainingDataset

    def __call__(self, key: tuple[int, tuple[int, ...], tuple[int, int]]) -> PackedBatch:
        epoch, positions, size = key
        return pack([self.dataset.sample(epoch, position, size) for position in positions])


@dataclass(frozen=True)
class _EvaluationBatches:
    dataset: EvaluationDataset
    skip: bool

    def __call__(self, rows: tuple[int, ...]) -> PackedBatch:
        answers = {row: self._sample(row) for row in rows}
        samples = [answer for answer in answers.values() if isinstance(answer, Sample)]
        return pack(samples, {row: text for row, text in answers.items() if isinstance(text, str)})

    def _sample(self, row: int) -> Sample | str:
        """Return the sample, or the complaint about an image that is skipped."""
        try:
            return self.dataset.sample(row)
        except DamagedImageError as error:
            if not self.skip:
                raise
            return error.complaint
