"""The training state: everything that changes while training and is saved in a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from data.errors import InputError
from engine.ema import AveragedWeights
from engine.optimization import lay_out_moments, start_momentum
from losses.weighting import LossWeighting


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: number of epochs whose training is finished.
        batch: batches of the current epoch that this rank has trained on.
        step: iterations (optimizer steps) since the start.
        evaluated: number of finished epochs, their evaluation included.
        best_score, best_epoch: the best validation score and the epochs trained to reach it.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    evaluated: int = 0
    best_score: float | None = None
    best_epoch: int | None = None

    def waited(self, patience: int | None, evaluate_every: int) -> bool:
        """Whether the latest score completes ``patience`` epochs without a better one."""
        # While there is no score, no epoch is worse than another.
        if patience is None or self.best_epoch is None or self.best_score is None:
            return False
        scored = self.evaluated % evaluate_every == 0
        return scored and self.evaluated - self.best_epoch >= patience


@dataclass
class TrainState:
    """The parts that change with every iteration.

    Attributes:
        windows: statistics of the loss windows that closed since the last log line, each with
            ``step``, and ``loss_mean`` and ``loss_std`` by loss name; written with the next line.
        unlogged: the log line of an epoch's last iteration, in case the run ends after it; None if
            already written.
        average: the moving average of the weights, None without ``train.ema``.
    """

    detector: nn.Module
    weighting: LossWeighting
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: GradScaler
    progress: Progress = field(default_factory=Progress)
    windows: list[dict[str, Any]] = field(default_factory=list)
    unlogged: dict[str, Any] | None = None
    average: AveragedWeights | None = None

    @property
    def eval_detector(self) -> nn.Module:
        """The detector to evaluate: the averaged one if there is an average."""
        return self.detector if self.average is None else self.average.detector

    def follow_average(self) -> None:
        """Update the moving average, if any, after an iteration."""
        if self.average is not None:
            self.average.follow(self.detector, self.progress.step)

    def is_finite(self) -> bool:
        """Whether the weights, normalization statistics and learned loss weights are finite."""
        values = [*self.detector.state_dict().values(), *self.weighting.parameters()]
        numbers = [value for value in values if value.is_floating_point() and value.numel()]
        return bool(nn.utils.get_total_norm(numbers, float("inf")).isfinite())

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain types only.

        ``detector`` is the detector to evaluate, so readers of a checkpoint need not know of
        averages; with an average, training continues with ``trained_detector``.
        """
        trained = (
            {"trained_detector": self.detector.state_dict()} if self.average is not None else {}
        )
        return {
            "detector": self.eval_detector.state_dict(),
            **trained,
            "weighting": self.weighting.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
            "windows": self.windows,
            "unlogged": self.unlogged,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore the result of ``state_dict``.

        The optimizer keeps the options that it was built with: a changed lr or weight decay takes
        effect.

        Raises:
            InputError: the parts do not fit, as after a change of the architecture.
        """
        try:
            self.detector.load_state_dict(saved.get("trained_detector", saved["detector"]))
            if self.average is not None:
                self.average.detector.load_state_dict(saved["detector"])
            self.weighting.load_state_dict(saved["weighting"])
            self._load_optimization(saved["optimizer"], saved["schedule"])
            if saved["scaler"]:  # of a run without fp16 it is empty
                self.scaler.load_state_dict(saved["scaler"])
            self.progress = Progress(**saved["progress"])
            self.windows = list(saved["windows"])
            self.unlogged = saved.get("unlogged")
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            reason = shorten(str(error), 300, placeholder=" ...")  # torch's has a line a tensor
            raise InputError(
                f"--resume: the checkpoint does not fit this config: {reason}; change detector.*, "
                "loss.* and train.optimizer back, or start a run with another train.name from "
                "these weights (set detector.weights to this last.pt)"
            ) from None

    def _load_optimization(self, optimizer: dict[str, Any], schedule: dict[str, Any]) -> None:
        """Restore optimizer and schedule; keep the options and the base lr of the config."""
        options = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        for saved, own in zip(optimizer["param_groups"], options, strict=True):
            if ("betas" in saved) != ("betas" in own):
                raise ValueError("it was saved with another train.optimizer")
        self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict({**schedule, "base_lrs": self.schedule.base_lrs})
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
        lay_out_moments(self.optimizer)
        start_momentum(self.optimizer)
        self.place_schedule(self.schedule.last_epoch)

    def place_schedule(self, iteration: int) -> None:
        """Set the schedule, and with it the learning rate, to its state before an iteration."""
        schedule, groups = self.schedule, self.optimizer.param_groups
        schedule.last_epoch = iteration
        factors = zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
        for group, base_lr, factor in factors:
            group["lr"] = base_lr * factor(iteration)
        schedule._last_lr = [group["lr"] for group in groups]


def seed_iteration(seed: int, step: int, rank: int) -> None:
    """Seed the global random stream (sampling of anchors and proposals, dropout) of an iteration.

    As the seed depends only on the position, nothing that runs between two iterations can shift the
    stream, and a resumed run draws the same numbers without a saved generator state.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
