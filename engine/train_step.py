"""One training iteration: losses, their weights, gradients and an update."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data.target import Batch
from engine.divergence import FiniteGuard, Watched
from engine.precision import autocast
from engine.process.distributed import Ranks, without_exchange
from engine.run_config import TrainConfig
from engine.state import TrainState, seed_iteration


@dataclass(frozen=True)
class Iteration:
    """Results of one iteration: 0-d tensors on the device by loss name, its epoch and lr."""

    losses: dict[str, Tensor]
    weighted: dict[str, Tensor]
    weights: dict[str, Tensor]
    epoch: int
    lr: float

    def describe(self) -> str:
        """Learning rate and loss weights, for an error message. Waits for the device."""
        weights = [f"{name} {weight.item():.6g}" for name, weight in self.weights.items()]
        return f"lr {self.lr:.6g}; loss weights: {', '.join(weights)}"


class TrainStep:
    """Advances a training state by one iteration per call.

    Args:
        state: the training state, updated in place.
        model: its detector, wrapped for gradient averaging if there are several ranks.
        config: config of the training.
        ranks: the processes that train together.
        files: image files by row of the training annotations, for messages.

    Attributes:
        guard: watches the losses. On a GPU, call its ``check`` before reading an iteration.
    """

    def __init__(
        self,
        state: TrainState,
        model: nn.Module,
        config: TrainConfig,
        ranks: Ranks,
        files: npt.NDArray[np.str_],
    ) -> None:
        self.state = state
        self.model = model
        self.config = config
        self.ranks = ranks
        self.guard = FiniteGuard(
            ranks,
            state.optimizer,
            files,
            at_once=ranks.device.type != "cuda",
            remembered=config.log_every,
            scaled=state.scaler.is_enabled(),
        )

    def __call__(self, batches: Sequence[Batch]) -> Iteration:
        """Compute the mean loss over the batches and its gradient, and make one update.

        Raises:
            DivergenceError: on a CPU, for a loss that is not finite; no update was made.
        """
        state = self.state
        seed_iteration(self.config.seed, state.progress.step, self.ranks.rank)
        state.optimizer.zero_grad(set_to_none=True)
        iteration = self._accumulate_gradients(batches)
        images = tuple(image for batch in batches for image in batch.indices)
        losses, weighted = iteration.losses, iteration.weighted
        step = state.progress.step
        self.guard.watch(Watched(step, images, losses, weighted, iteration.describe))
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
        state.progress.batch += len(batches)
        state.progress.step += 1
        return iteration

    def end_epoch(self) -> None:
        """Count an epoch after its last iteration.

        Raises:
            DivergenceError: a loss was not finite; no update was made since.
        """
        self.guard.check()
        self.state.progress.epoch += 1
        self.state.progress.batch = 0

    def _accumulate_gradients(self, batches: Sequence[Batch]) -> Iteration:
        """Accumulate gradients of the mean loss over batches; ranks average them once."""
        state, device = self.state, self.ranks.device
        parts: list[dict[str, Tensor]] = []
        weighted_parts: list[dict[str, Tensor]] = []
        for number, batch in enumerate(batches, start=1):
            is_last = number == len(batches)
            batch = batch.to(device, non_blocking=True)
            with nullcontext() if is_last else without_exchange(self.model):
                with autocast(device, self.config.amp):
                    losses = self.model(batch.images, batch.targets)
                weighted = state.weighting(losses, last_micro_batch=is_last)
                total = torch.stack(list(weighted.values())).sum() / len(batches)
                state.scaler.scale(total).backward()
            parts.append({name: loss.detach() for name, loss in losses.items()})
            weighted_parts.append({name: loss.detach() for name, loss in weighted.items()})
        mean = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        scaled = {name: torch.stack([p[name] for p in weighted_parts]).mean() for name in mean}
        weights = state.weighting.applied_weights()
        lr = state.optimizer.param_groups[0]["lr"]
        return Iteration(mean, scaled, weights, state.progress.epoch, lr)
