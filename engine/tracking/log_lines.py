"""Log lines: which iterations get one, and its contents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.divergence import FiniteGuard
from engine.process.distributed import Ranks
from engine.run_config import TrainConfig
from engine.state import TrainState
from engine.tracking.tracker import Tracker
from engine.train_step import Iteration
from losses.reduction import mean_over_ranks


@dataclass(frozen=True)
class LogLines:
    """Writes a line every ``log_every`` iterations, and one for the last iteration of the run.

    The host reads the device only where a line may be due: there and at the end of an epoch.

    Attributes:
        guard: checks the losses before they are read.
        batches: number of batches in an epoch on one rank.
    """

    state: TrainState
    guard: FiniteGuard
    tracker: Tracker
    ranks: Ranks
    config: TrainConfig
    batches: int

    def follow(self, iteration: Iteration) -> None:
        """Write the line of an iteration if it is due.

        The line of the last iteration of an epoch is kept: ``train.patience`` may end the run after
        it, or a resume with fewer epochs.
        """
        self._keep_window()
        progress = self.state.progress
        is_due = progress.step % self.config.log_every == 0
        if not (is_due or progress.batch == self.batches):
            return
        self.guard.check()
        record = self._record(iteration)
        self.state.unlogged = None
        if is_due:
            left = (self.config.epochs - progress.epoch) * self.batches - progress.batch
            self.tracker.train(record, batches_left=left)
            self.state.windows.clear()
        else:
            self.state.unlogged = record
            if iteration.epoch == self.config.epochs - 1:
                self.end()

    def end(self) -> None:
        """Write the line of the run's last iteration, unless written already.

        The state keeps its windows: a run resumed for more epochs continues as if it had never
        ended here.
        """
        record, self.state.unlogged = self.state.unlogged, None
        # A run resumed in a later epoch, or after its end, may have nothing to train.
        if record is None or record["step"] != self.state.progress.step:
            return
        if record["step"] > self.tracker.logged:
            speed = self.tracker.measure()  # missing in the line of an older checkpoint
            last = {"images_per_second": speed, **record, "last_of": record["epoch"] + 1}
            self.tracker.train(last, batches_left=0)

    def _keep_window(self) -> None:
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

    def _record(self, iteration: Iteration) -> dict[str, Any]:
        """Build the record of a log line, losses as means over ranks. Waits for the device."""
        names = list(iteration.losses)
        both = [*iteration.losses.values(), *iteration.weighted.values()]
        values = mean_over_ranks(torch.stack(both)).tolist()
        return {
            "step": self.state.progress.step,
            "epoch": iteration.epoch,
            "lr": iteration.lr,
            "loss": dict(zip(names, values[: len(names)], strict=True)),
            "weighted_loss": dict(zip(names, values[len(names) :], strict=True)),
            "loss_weight": as_numbers(iteration.weights),
            "windows": [as_numbers(window) for window in self.state.windows],
            "images_per_second": self.tracker.measure(),
        }


def as_numbers(values: dict[str, Any]) -> dict[str, Any]:
    """Convert tensors to numbers, in nested dicts too. Waits for the device."""
    return {
        name: as_numbers(value)
        if isinstance(value, dict)
        else (value.item() if isinstance(value, Tensor) else value)
        for name, value in values.items()
    }
