"""The learning-rate range test.

Smith, *Cyclical Learning Rates for Training Neural Networks*, https://arxiv.org/abs/1506.01186: the
rate grows from iteration to iteration; it is good where the loss falls fastest, and too large where
the loss rises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from tqdm import tqdm

from data.errors import InputError
from data.loading import TrainLoader
from data.target import Batch
from engine.build import build_loader, build_splits, build_state
from engine.config import Config
from engine.divergence import DivergenceError
from engine.freezing import Freezing
from engine.optimization import applied_lr
from engine.process.distributed import Ranks
from engine.train_step import TrainStep
from scripts.figures import new_figure

SMOOTHING = 0.9  # of the running mean of losses, which detects divergence
SPREAD = 0.8  # of the two-sided mean, which is as smooth as the running mean
DIVERGED = 3.0  # times the lowest loss
FEWEST = 10  # iterations before the test can be judged


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: learning rates as ``train.lr`` counts them, one for each iteration.
        losses: total weighted loss of each iteration.
        smoothed: mean of each loss with those before and after it.
        diverged: whether it ended because the loss grew.
        suggested: ``train.lr``: where the smoothed loss falls fastest.
        largest: the rate above which the loss grows, or the last one.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool
    suggested: float
    largest: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "suggested": self.suggested,
            "largest": self.largest,
            "diverged": self.diverged,
            "rates": self.rates,
            "losses": self.losses,
            "smoothed": self.smoothed,
        }


def range_test(
    config: Config, ranks: Ranks, lowest: float, highest: float, iterations: int, show: bool
) -> RangeTest:
    """Train for some iterations while the learning rate grows by a constant factor.

    Args:
        lowest: ``train.lr`` of the first iteration.
        highest: ``train.lr`` of the last iteration.
        show: whether to show a progress bar.

    Raises:
        InputError: the losses are not finite from the start, too few iterations were possible, or
            the loss never fell.
    """
    training, _ = build_splits(config, ranks)
    loader = build_loader(config, training, ranks)
    factor = (highest / lowest) ** (1 / max(1, iterations - 1))
    rates = [lowest * factor**step for step in range(iterations)]
    with closing(loader):
        state = build_state(config, training.classes, len(loader), ranks)
        Freezing(state.detector, config.train.freeze).apply(0)
        bar = tqdm(rates, "range test", delay=2, leave=False, disable=not show)
        train_step = TrainStep(state, state.detector, config.train, ranks, training.files)
        losses, diverged = _train(train_step, loader, bar, config, ranks)
    if len(losses) < FEWEST:
        raise InputError(
            f"the loss diverged within {len(losses)} iterations at train.lr="
            f"{rates[len(losses)]:.2g}; start lower with --lowest"
        )
    smoothed = centered_mean(losses)
    return RangeTest(rates[: len(losses)], losses, smoothed, diverged, *choose(rates, smoothed))


def _train(
    train_step: TrainStep, loader: TrainLoader, rates: Any, config: Config, ranks: Ranks
) -> tuple[list[float], bool]:
    """Return the losses, and whether they diverged."""
    batches = _endless(loader)
    total_batch = config.global_batch(ranks.world_size) * config.train.accumulate
    losses: list[float] = []
    for rate in rates:
        for group in train_step.state.optimizer.param_groups:
            group["lr"] = applied_lr(config.train, rate, total_batch)
        try:
            iteration = train_step(list(islice(batches, config.train.accumulate)))
            train_step.guard.check()
        except DivergenceError:
            return losses, True
        losses.append(torch.stack(list(iteration.weighted.values())).sum().item())
        smoothed = running_mean(losses)
        if len(losses) > FEWEST and smoothed[-1] > DIVERGED * min(smoothed):
            return losses, True
    return losses, False


def _endless(loader: TrainLoader) -> Iterator[Batch]:
    for epoch in count():
        yield from loader.epoch(epoch)


def running_mean(losses: Sequence[float]) -> list[float]:
    """Return the bias-corrected exponential moving average.

    >>> running_mean([2.0, 2.0])
    [2.0, 2.0]
    """
    mean, smoothed = 0.0, []
    for step, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed.append(round(mean / (1 - SMOOTHING**step), 12))
    return smoothed


def centered_mean(losses: Sequence[float]) -> list[float]:
    """Return the exponential mean over both sides of each loss: a running mean lags behind.

    The losses up to the minimum of the running mean and those after it are averaged separately:
    rising losses, often a hundredfold, would hide how low the minimum was.

    >>> centered_mean([2.0, 2.0, 900.0])
    [2.0, 2.0, 900.0]
    """
    before = running_mean(losses)
    turn = 1 + min(range(len(before)), key=lambda place: (before[place], -place))
    return _mean_of_both_sides(losses[:turn]) + _mean_of_both_sides(losses[turn:])


def _mean_of_both_sides(losses: Sequence[float]) -> list[float]:
    left, right = _decaying(losses), _decaying(losses[::-1])[::-1]
    weights, others = _decaying([1.0] * len(losses)), _decaying([1.0] * len(losses))[::-1]
    return [
        round((left[n] + right[n] - loss) / (weights[n] + others[n] - 1), 12)
        for n, loss in enumerate(losses)
    ]


def _decaying(values: Sequence[float]) -> list[float]:
    """Return exponentially decaying sums of each value and those before it."""
    total, sums = 0.0, []
    for value in values:
        total = SPREAD * total + value
        sums.append(total)
    return sums


def choose(rates: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """Return the suggested and the largest useful rate.

    The largest is where the smoothed loss is lowest. Suggested is the rate before it at which the
    smoothed loss falls fastest, measured over a third of a decade on either side.

    Raises:
        InputError: the smoothed loss never fell below its first value.
    """
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    if lowest == 0:
        raise InputError(
            f"the loss only rose from train.lr={rates[0]:.2g}; start lower with --lowest"
        )
    width = max(1, round(1 / 3 / math.log10(rates[1] / rates[0])))
    slopes = {
        middle: smoothed[min(middle + width, lowest)] - smoothed[max(0, middle - width)]
        for middle in range(lowest + 1)
    }
    steepest = min(slopes, key=slopes.__getitem__)
    return rates[steepest], rates[lowest]


def draw(test: RangeTest) -> Any:
    """Plot the losses over the learning rate."""
    figure = new_figure((7.5, 4.2))
    axis = figure.subplots()
    axis.plot(test.rates, test.losses, color="#cbd5e1", linewidth=1, label="each iteration")
    axis.plot(test.rates, test.smoothed, color="#2563eb", linewidth=2, label="mean over both sides")
    for rate, name, color in (
        (test.suggested, "suggested", "#059669"),
        (test.largest, "lowest loss", "#ea580c"),
    ):
        axis.axvline(rate, color=color, linestyle="--", label=f"{name}: {rate:.2g}")
    top = max(test.smoothed[: max(FEWEST, len(test.smoothed) // 2)])
    axis.set_ylim(max(0.0, 0.8 * min(test.smoothed)), 1.3 * top)
    axis.set(xscale="log", xlabel="train.lr", ylabel="total weighted loss")
    axis.set_title("learning-rate range test", fontsize=11)
    axis.grid(color="#e2e8f0", linewidth=0.6)
    axis.legend(frameon=False, fontsize=9)
    return figure
