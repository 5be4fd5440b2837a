"""GradNorm: brings the gradient norms of the losses at a shared layer to a common scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from losses.pairs import detached_pairs, usable_or
from losses.reduction import mean_over_ranks
from losses.weighting import LossWeighting

BETAS = (0.9, 0.999)
EPSILON = 1e-8
SMALLEST = 1e-3  # lower bound of a weight, relative to the mean weight


class GradNorm(LossWeighting):
    """GradNorm (Chen et al., Gradient Normalization for Adaptive Loss Balancing, ICML 2018).

    Algorithm 1 of the paper (arXiv 1711.02257) for the n = 2 losses of each pair, in every
    iteration t, with W the parameters given to :meth:`watch`:

    * ``G_i = ‖∇_W λ_i L_i‖``, its mean over the pair ``Ḡ``;
    * the relative inverse training rate ``r_i = L̃_i / mean(L̃)`` of ``L̃_i = L_i(t) / L_i(0)``;
    * ``L_grad = Σ |G_i - Ḡ r_i^alpha|`` (equation 2; the exponent is +alpha: a loss that learns
      slowly is given a larger gradient), where ``Ḡ r_i^alpha`` is a constant;
    * one step of Adam down the slope ``∂L_grad/∂λ_i = sign(G_i - Ḡ r_i^alpha) ‖∇_W L_i‖``;
    * λ is scaled so that its sum stays that of the initial weights (n with weights of 1).

    ``L_i(0)`` is the first positive loss. Weights never fall below about a thousandth of their
    mean; the paper has no such bound, and Adam could make weights negative there. If a loss or a
    gradient is 0 or not finite, the iteration is skipped.

    The norm is that of the mean gradient over the ranks and micro-batches: an all-reduce in every
    iteration, of twice the size of W for each pair, in addition to a small one of the losses. Each
    loss costs a backward pass from it to W; the graph is kept for the backward pass of the total.
    Do not combine it with float16 and a gradient scaler: these gradients are computed from the
    unscaled losses and may underflow.

    Args:
        pairs: see :class:`LossWeighting`.
        interval: iterations in a window of the statistics, at least 2.
        initial: initial weights of the two losses.
        alpha: strength of the pull toward a common training rate; 1.5 in the paper for NYUv2.
            0 gives equal gradient norms.
        lr: Adam's learning rate for the weights, 0.025 in the paper.

    Raises:
        ValueError: for an alpha or lr out of range, and in training if no parameter is watched or a
            loss depends on none; see :class:`LossWeighting` for the others.
    """

    differentiates = True
    first_losses: Tensor  # (pairs, 2): L(0), 0 until known
    slope_mean: Tensor  # (pairs, 2): Adam's moments of the slope
    slope_square: Tensor
    steps: Tensor  # (pairs, 1): of Adam

    def __init__(
        self,
        pairs: Mapping[str, tuple[str, str]],
        interval: int = 100,
        initial: Sequence[float] = (1.0, 1.0),
        alpha: float = 1.5,
        lr: float = 0.025,
    ) -> None:
        super().__init__(pairs, initial, interval)
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha must be a finite number >= 0, got {alpha!r}")
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be a positive number, got {lr!r}")
        self.alpha = float(alpha)
        self.lr = float(lr)
        self._total = sum(self.initial)
        self._watched: list[Tensor] = []
        for name in ("first_losses", "slope_mean", "slope_square"):
            self.register_buffer(name, torch.zeros_like(self.lambdas))
        self.register_buffer("steps", torch.zeros(len(self.pairs), 1))
        self._losses = torch.zeros_like(self.lambdas)  # sums over micro-batches
        self._gradients = torch.zeros(0)

    def watch(self, parameters: Iterable[Tensor]) -> None:
        self._watched = list(parameters)

    def observe(self, losses: Sequence[Tensor]) -> None:
        if not self._watched:
            raise ValueError("GradNorm needs the last shared layer; call watch(parameters) first")
        if not all(parameter.requires_grad for parameter in self._watched):
            raise ValueError(
                "GradNorm needs a trainable shared layer, but the parameters given to watch() are "
                "frozen"
            )
        if not any(loss.requires_grad for loss in losses):
            raise ValueError("GradNorm needs gradients in training mode; without them, call eval()")
        values = detached_pairs(losses)
        named = zip(self._names, losses, strict=True)
        gradients = torch.stack([self._gradient(name, loss) for name, loss in named])
        first = self._micro_batches == 0
        self._losses = values if first else self._losses + values
        self._gradients = gradients if first else self._gradients + gradients

    def end_iteration(self, micro_batches: int) -> None:
        losses = mean_over_ranks(self._losses / micro_batches)
        gradients = mean_over_ranks(self._gradients / micro_batches)
        self._gradients = gradients.new_zeros(0)
        norms = torch.linalg.vector_norm(gradients, dim=1).view(-1, 2)
        known = (losses > 0) & losses.isfinite()
        first = torch.where(known & (self.first_losses == 0), losses, self.first_losses)
        self.first_losses = first
        usable = (known & norms.isfinite() & (norms > 0)).all(dim=1, keepdim=True)
        self._step(self._slopes(losses / first, norms), usable)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}, lr={self.lr}"

    def _identity(self) -> dict[str, Any]:
        options = {"initial": self.initial, "alpha": self.alpha, "lr": self.lr}
        return {**super()._identity(), **options}

    def _gradient(self, name: str, loss: Tensor) -> Tensor:
        """Return the gradient of one raw loss, flattened over all watched parameters."""
        parts: Sequence[Tensor | None] = [None]
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, self._watched, retain_graph=True, allow_unused=True)
        if all(part is None for part in parts):
            raise ValueError(f"loss '{name}' does not depend on the parameters given to watch()")
        # None: a parameter that the batch does not reach, such as a pyramid level without objects.
        return torch.cat(
            [
                torch.zeros_like(parameter).flatten() if part is None else part.flatten()
                for part, parameter in zip(parts, self._watched, strict=True)
            ]
        )

    def _slopes(self, progress: Tensor, norms: Tensor) -> Tensor:
        """Compute ∂L_grad/∂λ from L(t)/L(0) and the gradient norms of raw losses, (pairs, 2)."""
        weighted = self.lambdas * norms
        rate = progress / progress.mean(dim=1, keepdim=True)
        target = weighted.mean(dim=1, keepdim=True) * rate**self.alpha
        return torch.sign(weighted - target) * norms

    def _step(self, slopes: Tensor, usable: Tensor) -> None:
        """Take one step of Adam for the usable pairs, then rescale their weights to their sum."""
        steps = self.steps + 1
        mean = torch.lerp(slopes, self.slope_mean, BETAS[0])
        square = torch.lerp(slopes**2, self.slope_square, BETAS[1])
        size = torch.sqrt(square / (1 - BETAS[1] ** steps)) + EPSILON
        moved = self.lambdas - self.lr * mean / (1 - BETAS[0] ** steps) / size
        moved = moved.clamp(min=SMALLEST * self._total / 2)
        moved = moved * (self._total / moved.sum(dim=1, keepdim=True))
        self.steps = torch.where(usable, steps, self.steps)
        self.slope_mean = torch.where(usable, mean, self.slope_mean)
        self.slope_square = torch.where(usable, square, self.slope_square)
        self.lambdas = usable_or(torch.where(usable, moved, self.lambdas), self.lambdas)
