"""The interface of a loss weighting.

A weighting takes the dict of raw losses that a detector returns, and returns it with the paired
losses multiplied by their weights. It records the weighted losses of every iteration on the device,
and completes a window every ``interval`` iterations, with one all-reduce between the ranks of a
distributed run. A method sets the weights at one of three times: when a window is complete (ALWA,
DWA), after an iteration (CoV, GradNorm), or within the call itself (GLS, self-balancing, random
weights, uncertainty). In each case the weights are constants for the network's gradient, the same
on all ranks, and nothing waits for the device.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losses.pairs import checked_pairs, checked_weights
from losses.reduction import mean_over_ranks


class LossWeighting(nn.Module):
    """Weights for pairs of losses, and the statistics of the weighted losses.

    A method is a subclass that sets ``lambdas`` in one of the hooks :meth:`observe`,
    :meth:`end_iteration` and :meth:`next_lambdas`, or that computes them from its parameters in
    :meth:`current_lambdas`; pairs never influence each other. Most methods have no parameters. If
    :meth:`parameters` is not empty (uncertainty weighting), the optimizer of the network must train
    them, without weight decay.

    All state is saved in the state dict, so training resumes exactly, even in the middle of a
    window. In a distributed run every rank must call :meth:`share_window` before one of them saves.
    Keep the module outside of ``DistributedDataParallel``, which would overwrite the records of the
    other ranks with those of the first.

    Args:
        pairs: name of each pair -> names of its two losses, first the one whose weight may change:
            ``{"head": ("classification", "bbox_regression")}``.
        weights: the weights of the two losses, the same for every pair.
        interval: iterations in a window, at least 2.

    Attributes:
        initial: the initial weights.
        position: iterations recorded in the current window, 0 to ``interval - 1``.
        windows_completed: number of windows completed since the start of training.
        differentiates: whether ``observe`` computes gradients of the losses itself, before the
            training loop does.
        acts_per_window: whether weights change only at the ends of windows.

    Raises:
        ValueError: there is no pair, a loss is in two places, weights are not positive and finite,
            or the interval is below 2.
    """

    differentiates = False
    acts_per_window = False
    lambdas: Tensor  # (pairs, 2)
    window: Tensor  # (interval, pairs, 2): weighted losses of this process, iteration by iteration
    window_mean: Tensor  # (pairs, 2): of the last complete window, over all ranks
    window_std: Tensor  # (pairs, 2): of the last complete window, over all ranks
    _applied: Tensor  # (pairs, 2): lambdas of the last call

    def __init__(
        self, pairs: Mapping[str, tuple[str, str]], weights: Sequence[float], interval: int
    ) -> None:
        super().__init__()
        self.pairs = checked_pairs(pairs)
        self.interval = _checked_interval(interval)
        self.initial = checked_weights(weights)
        self.position = 0
        self.windows_completed = 0
        self._names = [name for pair in self.pairs.values() for name in pair]
        self._micro_batches = 0
        count = len(self.pairs)
        self.register_buffer("lambdas", torch.tensor([self.initial] * count))
        self.register_buffer("_applied", self.lambdas, persistent=False)
        self.register_buffer("window", torch.zeros(self.interval, count, 2))
        self.register_buffer("window_mean", torch.zeros(count, 2))
        self.register_buffer("window_std", torch.zeros(count, 2))

    @property
    def iterations(self) -> int:
        """Number of iterations (optimizer steps) recorded since the start of training."""
        return self.windows_completed * self.interval + self.position

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Set the parameters of the last layer that all paired losses share.

        Call it once, before training. Only GradNorm uses them.
        """

    def observe(self, losses: Sequence[Tensor]) -> None:
        """Hook: called with each micro-batch in training, before weighting. May set ``lambdas``.

        Args:
            losses: the raw paired losses in the order of ``pairs``, with their graphs.
        """

    def end_iteration(self, micro_batches: int) -> None:
        """Hook: called when an iteration is complete. May set ``lambdas`` for the next one.

        Args:
            micro_batches: number of calls of :meth:`observe` in this iteration.
        """

    def next_lambdas(self, mean: Tensor, std: Tensor) -> Tensor:  # noqa: ARG002
        """Hook: return the weights after a window; all tensors are ``(pairs, 2)``, on the device.

        Args:
            mean: mean of the weighted losses of the window, over all ranks.
            std: their sample standard deviation (ddof = 1).
        """
        return self.lambdas

    def current_lambdas(self) -> Tensor:
        """Hook: return the weights that are applied now, ``(pairs, 2)``, without gradient."""
        return self.lambdas

    def forward(
        self, losses: Mapping[str, Tensor], last_micro_batch: bool = True
    ) -> dict[str, Tensor]:
        """Weight the losses, and record them in training mode.

        The weights are constants for the gradient of the network. A window is completed within the
        call that records its last iteration; that call still applies the old weights. In evaluation
        mode the weights stay unchanged, nothing is recorded, and ranks do not communicate.

        Args:
            losses: scalars by name; those in no pair are returned unchanged.
            last_micro_batch: whether an optimizer step follows. An iteration is one optimizer
                step: with gradient accumulation, pass False for all its micro-batches but the
                last, and the undivided loss of each; their mean is recorded.

        Raises:
            ValueError: a paired loss is missing, is not a scalar, or is on another device.
        """
        self._check(losses)
        if self.training:
            with torch.inference_mode(False):  # tensors that are kept must allow a backward pass
                self.observe([losses[name] for name in self._names])
        self._applied = self.current_lambdas()
        weighted = {name: losses[name] * weight for name, weight in self.applied_weights().items()}
        if self.training:
            with torch.inference_mode(False):
                self._record([loss.detach() for loss in weighted.values()], last_micro_batch)
        return {**losses, **weighted}

    def weights(self) -> dict[str, Tensor]:
        """Return the weight of each paired loss for the next call, 0-d, on the device.

        Methods that set their weights within the call replace them there.
        """
        return self._by_name(self.current_lambdas())

    def applied_weights(self) -> dict[str, Tensor]:
        """Return the weight of each paired loss in the last call, 0-d, on the device."""
        return self._by_name(self._applied)

    def last_window(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and standard deviation of each weighted loss in the last complete window.

        These are 0-d tensors on the device. The dict is empty before the first window is complete,
        so read it when ``windows_completed`` has increased. In a distributed run, the loss of an
        iteration is the mean over the ranks.
        """
        if self.windows_completed == 0:
            return {}
        means, deviations = self.window_mean.flatten(), self.window_std.flatten()
        return dict(zip(self._names, zip(means, deviations, strict=True), strict=True))

    def share_window(self) -> None:
        """Replace the losses recorded so far by their mean over the ranks, on every rank.

        Call it on every rank before one of them saves its state. It does not change the result of
        the window, which is then also independent of the number of ranks after resuming. Without
        ``torch.distributed`` it does nothing.
        """
        self.window.copy_(mean_over_ranks(self.window))

    def get_extra_state(self) -> dict[str, Any]:
        return {
            **self._identity(),
            "position": self.position,
            "windows_completed": self.windows_completed,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]
        self.windows_completed = state["windows_completed"]
        self._micro_batches = 0

    def extra_repr(self) -> str:
        return f"pairs={self.pairs}, interval={self.interval}"

    def _identity(self) -> dict[str, Any]:
        """Return the options that must be equal in the modules that save and load a state."""
        return {
            "rule": type(self).__name__,
            "pairs": [[name, *pair] for name, pair in self.pairs.items()],
            "interval": self.interval,
        }

    def _check_identity(self, state: Mapping[str, Any]) -> None:
        for key, own in self._identity().items():
            # A state without the key was saved before the key existed.
            if state.get(key, own) != own:
                raise ValueError(
                    f"this state was saved with {key} {state.get(key)!r}, but this weighting has "
                    f"{own!r}; build it with the same {key}, or start without the state"
                )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        self._check_identity(state_dict.get(f"{prefix}_extra_state", {}))  # before it is loaded
        # Loading overwrites the buffers, which the backward pass of the last call still reads.
        for name, buffer in self.named_buffers(recurse=False):
            setattr(self, name, buffer.clone())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._applied = self.lambdas

    def _by_name(self, values: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, values.flatten().unbind(), strict=True))

    def _check(self, losses: Mapping[str, Tensor]) -> None:
        for pair, names in self.pairs.items():
            for name in names:
                if name not in losses:
                    raise ValueError(
                        f"pair '{pair}' needs the loss '{name}', which is not among the losses "
                        f"given: {', '.join(losses) or 'none'}"
                    )
                loss = losses[name]
                if not isinstance(loss, Tensor) or loss.dim() != 0:
                    raise ValueError(f"loss '{name}' must be a scalar tensor (0 dimensions)")
                if loss.device != self.lambdas.device:
                    raise ValueError(
                        f"loss '{name}' is on {loss.device}, its weight on {self.lambdas.device}; "
                        f"move the weighting with .to('{loss.device}')"
                    )

    def _record(self, weighted: list[Tensor], last_micro_batch: bool) -> None:
        row = self.window[self.position].flatten()  # a view
        if self._micro_batches == 0:
            row.copy_(torch.stack(weighted))
        else:
            row.add_(torch.stack(weighted))
        self._micro_batches += 1
        if not last_micro_batch:
            return
        if self._micro_batches > 1:
            row.div_(self._micro_batches)
        self.end_iteration(self._micro_batches)
        self._micro_batches = 0
        self.position += 1
        if self.position == self.interval:
            self._close_window()

    def _close_window(self) -> None:
        """Compute the statistics and set the weights; buffers are replaced, never overwritten.

        The backward pass of this iteration still reads the old weights, and a tracker may hold
        the old statistics.
        """
        window = mean_over_ranks(self.window)
        self.window_std, self.window_mean = torch.std_mean(window, dim=0)
        self.lambdas = self.next_lambdas(self.window_mean, self.window_std)
        self.position = 0
        self.windows_completed += 1


def whole_number(value: Any) -> int | None:
    """Convert an integer of Python or another library to int; return None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _checked_interval(interval: int) -> int:
    number = whole_number(interval)
    if number is None or number < 2:
        raise ValueError(f"interval must be an integer of at least 2, got {interval!r}")
    return number
