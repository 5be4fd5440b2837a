"""The training loop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt

from data.loading import TrainLoader
from data.target import Batch
from engine.divergence import CURE, DivergenceError
from engine.evaluation.detections import Detections
from engine.evaluation.drawing import draw_pair
from engine.evaluation.evaluator import check_best
from engine.evaluation.scores import headline_scores
from engine.evaluation.validation import Validation
from engine.evaluation.voc_map import count_objects
from engine.freezing import Freezing
from engine.process.distributed import Ranks
from engine.process.signals import Stopped, StopRequest
from engine.run_config import TrainConfig
from engine.run_folder import RunFolder
from engine.state import TrainState
from engine.tracking.log_lines import LogLines
from engine.tracking.tracker import Tracker
from engine.train_step import TrainStep

log = logging.getLogger(__name__)


@dataclass
class Training:
    """The parts of a run and the training loop over them.

    Raises:
        InputError: the best epoch is chosen by masks and the validation split has none.

    Attributes:
        train_step: advances the state by one iteration.
        freezing: freezes modules in given epochs.
        global_batch: images in one batch of all ranks together.
    """

    state: TrainState
    train_step: TrainStep
    freezing: Freezing
    loader: TrainLoader
    global_batch: int
    config: TrainConfig
    evaluate_every: int
    ranks: Ranks
    tracker: Tracker
    stop: StopRequest
    folder: RunFolder
    validation: Validation
    lines: LogLines = field(init=False)

    def __post_init__(self) -> None:
        check_best(self.config.best, self.validation.annotations)
        self.lines = LogLines(
            self.state,
            self.train_step.guard,
            self.tracker,
            self.ranks,
            self.config,
            len(self.loader),
        )

    def run(self) -> None:
        """Train and evaluate until the last epoch is done.

        Raises:
            Stopped: a signal asked to stop; the last finished iteration is saved.
            DivergenceError: a loss was not finite, and the weights were not updated; or the weights
                are not finite, and were not saved.
        """
        progress, epochs = self.state.progress, self.config.epochs
        begun = progress.epoch + (progress.batch > 0)
        if begun > epochs:
            log.warning(
                "train.epochs: %d, but epoch %d has started already: nothing to train",
                epochs,
                begun,
            )
            return
        over = self.is_over()
        if not over:
            self.begin()
        while not over:
            if progress.epoch == progress.evaluated:
                self.train_epoch()
                self.save()
            if progress.epoch % self.evaluate_every == 0 or progress.epoch == epochs:
                self.evaluate()
            progress.evaluated = progress.epoch
            self.folder.save(self.state)  # with the weights already saved above
            over = self.is_over()
        self.lines.end()

    def begin(self) -> None:
        """Write the config, as training starts with it, and warn of a split without objects."""
        self.folder.write_config()
        if not count_objects(self.validation.annotations).any():
            log.warning(
                "the validation split has no objects to score: best.pt is the latest epoch, and "
                "train.patience never ends the run"
            )

    def is_over(self) -> bool:
        """Whether all epochs are done, or ``train.patience`` epochs brought no better score.

        Every rank must call it.
        """
        progress, config = self.state.progress, self.config
        if progress.evaluated >= config.epochs:
            return True
        # only the main rank knows the scores
        waited = self.ranks.is_main and progress.waited(config.patience, self.evaluate_every)
        (ended,) = self.ranks.any(waited)
        if ended:
            log.info("no better %s since epoch %s: training ends", config.best, progress.best_epoch)
        return ended

    def evaluate(self) -> None:
        """Score the validation split; the best epoch so far becomes ``best.pt``.

        While no epoch has a score, as for a split without objects, ``best.pt`` is the latest epoch.
        """
        result = self.validation.run(self.state.eval_detector)
        if result is None:
            return
        detections, scores = result
        progress, name = self.state.progress, self.config.best
        self.folder.write_scores(scores)
        curves = self.validation.curves(detections)
        self.tracker.evaluation(progress, scores, self.draw(detections), curves)
        value = headline_scores(scores).get(name)
        best = progress.best_score
        if best is None or (value is not None and value > best):
            progress.best_score, progress.best_epoch = value, progress.epoch
            self.folder.keep_best()

    def draw(self, detections: Detections) -> list[npt.NDArray[np.uint8]]:
        """Draw detections beside the ground truth for some validation images, one picture each."""
        rows, images = self.validation.examples(self.config.pictures)
        annotations = self.validation.annotations
        return [
            draw_pair(image, row, annotations, detections)
            for row, image in zip(rows, images, strict=True)
        ]

    def train_epoch(self) -> None:
        """Train on the remaining batches of the current epoch."""
        progress, config = self.state.progress, self.config
        self.train_step.model.train()
        self.freezing.apply(progress.epoch)
        self.tracker.start_epoch(
            progress.epoch,
            batches=len(self.loader),
            done=progress.batch,
            images_per_batch=self.global_batch,
        )
        batches = self.loader.epoch(progress.epoch, start=progress.batch)
        for group in grouped(batches, config.accumulate):
            iteration = self.train_step(group)
            self.tracker.advance(len(group))
            self.lines.follow(iteration)
            self.save_or_stop()
        self.tracker.finish_epoch()
        self.train_step.end_epoch()

    def save_or_stop(self) -> None:
        """Save if due, or if a signal reached any rank; then stop.

        Raises:
            Stopped: a signal asked to stop; the state is saved.
            DivergenceError: a loss or the weights are not finite; nothing is saved.
        """
        (stop,) = self.ranks.any(self.stop.requested)
        every = self.config.checkpoint_every
        if stop or (every and self.state.progress.step % every == 0):
            self.train_step.guard.check()
            self.save()
        if stop:
            # torchrun ends the remaining ranks as soon as one has ended: none may exit before the
            # main rank has saved.
            self.ranks.barrier()
            raise Stopped(self.stop.signal_number or signal.SIGTERM)

    def save(self) -> None:
        """Save a checkpoint, unless the weights are not finite: it would replace the last good one.

        Raises:
            DivergenceError: on every rank, if an update after finite losses made the weights not
                finite.
        """
        (not_finite,) = self.ranks.any(not self.state.is_finite())
        if not_finite:
            raise DivergenceError(
                f"step {self.state.progress.step}: the weights are not finite after it, although "
                f"its losses were: a gradient overflowed; nothing was saved; {CURE}"
            )
        self.folder.save(self.state)


def grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Group batches into iterations; the last group of an epoch may be smaller."""
    while group := list(islice(batches, size)):
        yield group
