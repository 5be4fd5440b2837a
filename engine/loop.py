"""The training loop."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.loading import TrainLoader
from data.target import Batch
from engine.detections import Detections
from engine.distributed import Ranks
from engine.divergence import DivergenceError, FiniteGuard, Watched
from engine.drawing import draw_pair
from engine.evaluator import check_best, headline_scores
from engine.freezing import Freezing
from engine.precision import autocast
from engine.run_config import TrainConfig
from engine.run_folder import RunFolder
from engine.signals import Stopped, StopRequest
from engine.state import TrainState, seed_iteration
from engine.tracking import Tracker
from engine.validation import Validation
from engine.voc_map import count_objects

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Iteration:
    """What one iteration computed: 0-d tensors on the device by loss name, its epoch and lr."""

    losses: dict[str, Tensor]
    weighted: dict[str, Tensor]
    weights: dict[str, Tensor]
    epoch: int
    lr: float


@dataclass
class Training:
    """The parts of a run and the loop over them.

    Raises:
        InputError: the best epoch is chosen by masks and the validation split has none.

    Attributes:
        model: the detector, wrapped for the exchange of gradients where there are several ranks.
        freezing: what rests in which epochs.
        global_batch: images in one batch of all ranks together.
        files: image files by row of the training annotations, for messages.
    """

    state: TrainState
    model: nn.Module
    freezing: Freezing
    loader: TrainLoader
    global_batch: int
    files: npt.NDArray[np.str_]
    config: TrainConfig
    evaluate_every: int
    ranks: Ranks
    tracker: Tracker
    stop: StopRequest
    folder: RunFolder
    validation: Validation
    guard: FiniteGuard = field(init=False)

    def __post_init__(self) -> None:
        check_best(self.config.best, self.validation.annotations)
        self.guard = FiniteGuard(
            self.ranks,
            self.state.optimizer,
            self.files,
            at_once=self.ranks.device.type != "cuda",
            remembered=self.config.log_every,
            scaled=self.state.scaler.is_enabled(),
        )

    def run(self) -> None:
        """Train and evaluate until the last epoch is done.

        Raises:
            Stopped: a signal came; the last finished iteration is saved.
            DivergenceError: a loss was not finite, and the weights were not touched by it; or the
                weights are not finite, and were not saved.
        """
        progress, epochs = self.state.progress, self.config.epochs
        begun = progress.epoch + (progress.batch > 0)
        if begun > epochs:
            log.warning(
                "train.epochs: %d, and epoch %d has begun: nothing is trained", epochs, begun
            )
            return
        if self.is_over():
            return
        self.folder.write_config()
        if self.ranks.is_main and not count_objects(self.validation.annotations).any():
            log.warning(
                "the validation split has no objects that count: best.pt is the newest epoch, "
                "train.patience never ends the run"
            )
        while not self.is_over():
            if progress.epoch == progress.evaluated:
                self.train_epoch()
                self.save()
            if progress.epoch % self.evaluate_every == 0 or progress.epoch == epochs:
                self.evaluate()
            progress.evaluated = progress.epoch
            self.folder.save(self.state)  # whose weights are those that were saved before
        if self.state.unlogged is not None:
            self.log_end(self.state.unlogged)

    def is_over(self) -> bool:
        """Whether all epochs are done, or ``train.patience`` of them without a better score.

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

        While no epoch has a score, as without an object to score against, that is the newest one.
        """
        result = self.validation.run(self.state.evaluated)
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
        """Detections against ground truth, a picture for each of some validation images."""
        rows, images = self.validation.examples(self.config.pictures)
        annotations = self.validation.annotations
        return [
            draw_pair(image, row, annotations, detections)
            for row, image in zip(rows, images, strict=True)
        ]

    def train_epoch(self) -> None:
        """Train on what is left of the epoch under way."""
        progress, config = self.state.progress, self.config
        self.model.train()
        self.freezing.apply(progress.epoch)
        self.tracker.start_epoch(
            progress.epoch,
            config.epochs,
            batches=len(self.loader),
            done=progress.batch,
            images_per_batch=self.global_batch,
        )
        batches = self.loader.epoch(progress.epoch, start=progress.batch)
        for group in grouped(batches, config.accumulate):
            iteration = self.train_step(group)
            progress.batch += len(group)
            progress.step += 1
            self.tracker.advance(len(group))
            self.keep_window()
            if progress.step % config.log_every == 0:
                self.log(iteration)
            elif progress.batch == len(self.loader):
                self.end_epoch(iteration)
            self.save_or_stop()
        self.guard.check()
        self.tracker.finish_epoch()
        progress.epoch += 1
        progress.batch = 0

    def train_step(self, batches: Sequence[Batch]) -> Iteration:
        """One iteration: the mean loss over the batches, its gradient, one update."""
        state = self.state
        seed_iteration(self.config.seed, state.progress.step, self.ranks.rank)
        state.optimizer.zero_grad(set_to_none=True)
        iteration = self.accumulate_gradients(batches)
        images = tuple(image for batch in batches for image in batch.indices)
        describe = partial(describe_weights, iteration)
        losses, weighted = iteration.losses, iteration.weighted
        self.guard.watch(Watched(state.progress.step, images, losses, weighted, describe))
        if self.guard.at_once:
            self.guard.check()
        if self.config.clip_gradients is not None:
            state.scaler.unscale_(state.optimizer)
            groups = state.optimizer.param_groups  # of the detector and of a learned weighting
            learned = [parameter for group in groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(learned, self.config.clip_gradients)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.schedule.step()
        state.follow_average()
        return iteration

    def accumulate_gradients(self, batches: Sequence[Batch]) -> Iteration:
        """Gradients of the mean loss over batches; ranks exchange them once, with the last."""
        parts: list[dict[str, Tensor]] = []
        weighted_parts: list[dict[str, Tensor]] = []
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            batch = batch.to(self.ranks.device, non_blocking=True)
            with nullcontext() if is_last else self.without_exchange():
                with autocast(self.ranks.device, self.config.amp):
                    losses = self.model(batch.images, batch.targets)
                weighted = self.state.weighting(losses, last_micro_batch=is_last)
                total = torch.stack(list(weighted.values())).sum() / len(batches)
                self.state.scaler.scale(total).backward()
            parts.append({name: loss.detach() for name, loss in losses.items()})
            weighted_parts.append({name: loss.detach() for name, loss in weighted.items()})
        mean = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        scaled = {name: torch.stack([p[name] for p in weighted_parts]).mean() for name in mean}
        weights = self.state.weighting.applied_weights()
        lr = self.state.optimizer.param_groups[0]["lr"]
        return Iteration(mean, scaled, weights, self.state.progress.epoch, lr)

    def without_exchange(self) -> AbstractContextManager[Any]:
        """Backward passes within keep their gradients on this rank."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def keep_window(self) -> None:
        """Keep the statistics of a window of losses that closed in this iteration."""
        weighting = self.state.weighting
        if weighting.position == 0 and weighting.windows_completed:
            statistics = weighting.last_window()
            self.state.windows.append(
                {
                    "step": self.state.progress.step,
                    "loss_mean": {name: mean for name, (mean, _) in statistics.items()},
                    "loss_std": {name: std for name, (_, std) in statistics.items()},
                }
            )

    def log(self, iteration: Iteration) -> None:
        """Write a log line: here, and at the end of an epoch, the host reads the device."""
        self.guard.check()
        self.tracker.train(self.record(iteration), batches_left=self.batches_left())
        self.state.windows.clear()
        self.state.unlogged = None

    def end_epoch(self, iteration: Iteration) -> None:
        """Write the line of an epoch's last iteration where the run ends, else keep it.

        The run may end there all the same: by ``train.patience``, or resumed for fewer epochs.
        """
        self.guard.check()
        record = self.record(iteration)
        if iteration.epoch == self.config.epochs - 1:
            self.log_end(record)
        else:
            self.state.unlogged = record

    def log_end(self, record: dict[str, Any]) -> None:
        """Write the line of the last iteration, with the windows that no line has yet.

        The state keeps them: a run of more epochs goes on as if it had never ended here.
        """
        self.tracker.train({**record, "last_of": record["epoch"] + 1}, batches_left=0)
        self.state.unlogged = None

    def batches_left(self) -> int:
        """Batches until the end of the run."""
        progress = self.state.progress
        return (self.config.epochs - progress.epoch) * len(self.loader) - progress.batch

    def record(self, iteration: Iteration) -> dict[str, Any]:
        """The numbers of a log line. Waits for the device."""
        state = self.state
        names = list(iteration.losses)
        both = [*iteration.losses.values(), *iteration.weighted.values()]
        values = self.ranks.mean(torch.stack(both)).tolist()
        return {
            "step": state.progress.step,
            "epoch": iteration.epoch,
            "lr": iteration.lr,
            "loss": dict(zip(names, values[: len(names)], strict=True)),
            "weighted_loss": dict(zip(names, values[len(names) :], strict=True)),
            "loss_weight": as_numbers(iteration.weights),
            "windows": [as_numbers(window) for window in state.windows],
        }

    def save_or_stop(self) -> None:
        """Save where it is due, and after the iteration in which a signal came to any rank."""
        (stop,) = self.ranks.any(self.stop.requested)
        every = self.config.checkpoint_every
        if stop or (every and self.state.progress.step % every == 0):
            self.guard.check()
            self.save()
        if stop:
            # torchrun ends the ranks that are left as soon as one has ended: none may before the
            # main one has saved.
            self.ranks.wait()
            raise Stopped(self.stop.signal_number or signal.SIGTERM)

    def save(self) -> None:
        """Save a checkpoint. One of weights that are no numbers would replace the last good one.

        Raises:
            DivergenceError: on every rank, where the update after finite losses made such weights.
        """
        (spoiled,) = self.ranks.any(not self.state.is_finite())
        if spoiled:
            raise DivergenceError(
                f"step {self.state.progress.step}: the weights are not finite after it, though its "
                "losses were: a gradient overflowed; it is not saved. Lower train.lr or set "
                "train.clip_gradients"
            )
        self.folder.save(self.state)


def describe_weights(iteration: Iteration) -> str:
    """Learning rate and loss weights of an iteration, for an error message."""
    weights = [f"{name} {value:.6g}" for name, value in as_numbers(iteration.weights).items()]
    return f"lr {iteration.lr:.6g}; loss weights: {', '.join(weights)}"


def grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """The batches of each iteration; the last group of an epoch may be smaller."""
    while group := list(islice(batches, size)):
        yield group


def as_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Tensors -> numbers, in nested dicts too. Waits for the device."""
    return {
        name: as_numbers(value)
        if isinstance(value, dict)
        else (value.item() if isinstance(value, Tensor) else value)
        for name, value in values.items()
    }
