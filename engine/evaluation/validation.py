"""Evaluate a split on all ranks: each detects in its share, the main rank scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from data.annotations import Annotations
from data.image_files import ImageFiles, open_images
from data.images import DamagedImageError, Pixels
from data.loading import EvalLoader, build_eval_loader
from data.target import Batch
from engine.config import Config
from engine.evaluation.coco_engines import Engine, check_engine
from engine.evaluation.detections import Detections, concatenate
from engine.evaluation.evaluator import detect, score
from engine.evaluation.flip_tta import with_flip
from engine.evaluation.precision_recall import PrecisionRecall, precision_recall
from engine.precision import Amp
from engine.process.distributed import Ranks
from engine.process.signals import StopRequest
from engine.process.standard_output import is_watched


@dataclass(frozen=True)
class Validation:
    """Evaluates a detector on a split.

    Attributes:
        loader: this rank's share; the shares of all ranks hold every image exactly once.
        annotations: the ground truth of the whole split.
        iou: IoU threshold of the VOC scores.
        engine: the program that computes the COCO scores.
        amp: automatic mixed precision.
        view: adds test-time flip to a detector if ``evaluate.flip`` is set.
        images: the image files of the split, for examples.
    """

    loader: EvalLoader
    annotations: Annotations
    ranks: Ranks
    stop: StopRequest
    iou: float
    engine: Engine
    amp: Amp
    view: Callable[[nn.Module], nn.Module]
    images: ImageFiles

    def run(self, detector: nn.Module) -> tuple[Detections, dict[str, Any]] | None:
        """Return all detections and their scores on the main rank, None on the others.

        Raises:
            Stopped: a signal asked to stop; the checkpoint was saved before.
        """
        self.ranks.share_buffers(detector)
        detector = self.view(detector)
        share = detect(detector, self._batches(), self.annotations, self.ranks.device, self.amp)
        shares = self.ranks.gather(share)
        if shares is None:
            return None
        detections = concatenate(shares)
        return detections, score(detections, self.annotations, self.iou, self.engine)

    def curves(self, detections: Detections) -> Mapping[str, PrecisionRecall]:
        """Precision-recall curves of each class that has objects."""
        return precision_recall(detections, self.annotations, self.iou)

    def examples(self, count: int) -> tuple[list[int], list[Pixels]]:
        """Rows and pixels (H, W, 3) of up to ``count`` undamaged images spread over the split."""
        images = len(self.annotations)
        spread = np.linspace(0, images - 1, min(count, images))
        rows = spread.astype(int).tolist()
        sound = {}
        for row in rows:
            # unless damaged images are skipped, the evaluation has failed before
            with suppress(DamagedImageError):
                sound[row] = self.images.read(row)
        return list(sound), list(sound.values())

    def _batches(self) -> Iterator[Batch]:
        shown = self.ranks.is_main and is_watched()
        bar = tqdm(self.loader, desc="evaluate", unit="batch", leave=False, disable=not shown)
        for batch in bar:
            self.stop.check()
            yield batch


def build_validation(
    config: Config, annotations: Annotations, ranks: Ranks, stop: StopRequest
) -> Validation:
    """Build the evaluation of a split from a config, with a loader of this rank's share.

    Raises:
        InputError: the engine of the COCO scores is not installed.
    """
    check_engine(config.evaluate.engine)
    loader = build_eval_loader(
        config.data,
        annotations,
        rank=ranks.rank,
        world_size=ranks.world_size,
        pin_memory=ranks.device.type == "cuda",
    )
    return Validation(
        loader,
        annotations,
        ranks,
        stop,
        iou=config.evaluate.iou,
        engine=config.evaluate.engine,
        amp=config.train.amp,
        view=partial(with_flip, config=config),
        images=open_images(config.data, annotations, in_memory=False),
    )
