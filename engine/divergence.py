"""Stop training on a non-finite loss before it can reach the weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import Optimizer

from engine.process.distributed import Ranks

CURE = "lower train.lr, raise train.warmup_iterations or set train.clip_gradients"


class DivergenceError(RuntimeError):
    """A loss, or the weights after an update, became infinite or NaN; neither is saved."""


@dataclass(frozen=True)
class Watched:
    """An iteration as recorded for an error message.

    Attributes:
        step: number of iterations before it.
        images: rows of the images that this rank trained on.
        losses: raw losses, 0-d.
        weighted: losses times their weights, 0-d; not finite if the raw loss is not or if the
            product overflows.
        describe: returns the rest of the message (learning rate, loss weights).
    """

    step: int
    images: tuple[int, ...]
    losses: Mapping[str, Tensor]
    weighted: Mapping[str, Tensor]
    describe: Callable[[], str]


class FiniteGuard:
    """Watches the losses of every iteration on all ranks.

    On a CPU the losses are checked in every iteration, before its update. On a GPU that would make
    the host wait, so they are checked when a log line or a checkpoint is due; until then a flag on
    the device makes the fused optimizer skip its updates, from the first bad iteration on (as a
    gradient scaler does). With an enabled gradient scaler, which sets that flag itself, a gradient
    is set to NaN instead, so that the scaler skips the update.

    Args:
        files: image files by row, for messages.
        at_once: whether ``check`` follows every ``watch``.
        remembered: maximum number of iterations between two checks.
        scaled: whether a gradient scaler steps the optimizer.
    """

    def __init__(
        self,
        ranks: Ranks,
        optimizer: Optimizer,
        files: npt.NDArray[np.str_],
        *,
        at_once: bool,
        remembered: int,
        scaled: bool = False,
    ) -> None:
        self.ranks = ranks
        self.optimizer = optimizer
        self.files = files
        self.at_once = at_once
        self.scaled = scaled
        self.diverged = torch.zeros((), device=ranks.device)
        self.recent: deque[Watched] = deque(maxlen=1 if at_once else remembered)

    def watch(self, iteration: Watched) -> None:
        """Record an iteration after its backward pass, before anything reads its gradients.

        Does not wait for the device.
        """
        self.recent.append(iteration)
        bad = ~torch.isfinite(torch.stack(list(iteration.weighted.values()))).all()
        self.diverged = self.ranks.max(torch.maximum(self.diverged, bad.to(self.diverged)))
        if self.at_once:
            return
        if self.scaled:
            self._invalidate_gradient()
        else:
            self.optimizer.found_inf = self.diverged  # type: ignore[attr-defined]

    def check(self) -> None:
        """Raise on every rank if a loss was not finite on any rank. Waits for the device.

        Raises:
            DivergenceError: a loss was not finite; names iteration, losses and files of each rank
                concerned.
        """
        if not bool(self.diverged):
            return
        reports = [report for report in self.ranks.all_gather(self._report()) if report]
        if not reports:
            reports = ["a loss was not finite in an iteration before those on record"]
        raise DivergenceError("\n".join(reports) + f"; {CURE}")

    def _invalidate_gradient(self) -> None:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        gradient = next((p.grad for p in parameters if p.grad is not None), None)
        if gradient is not None:
            gradient.masked_fill_(self.diverged.bool(), torch.nan)

    def _report(self) -> str | None:
        """Describe the first bad iteration of this rank; None without one."""
        for watched in self.recent:
            if not _are_finite(watched.weighted):
                losses = _format_losses(watched.losses)
                if _are_finite(watched.losses):
                    losses += f", times their weights: {_format_losses(watched.weighted)}"
                files = ", ".join(str(self.files[image]) for image in watched.images)
                return (
                    f"step {watched.step}, rank {self.ranks.rank}: not finite: {losses}; "
                    f"files: {files}; {watched.describe()}; nothing was updated since"
                )
        return None


def _are_finite(losses: Mapping[str, Tensor]) -> bool:
    return all(torch.isfinite(loss) for loss in losses.values())


def _format_losses(losses: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {float(loss):.6g}" for name, loss in losses.items())
