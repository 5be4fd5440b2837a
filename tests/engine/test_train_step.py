"""One iteration: what clips its gradients, and what its random numbers depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import ALONE
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from data.target import Batch, Targets, pad_targets
from engine.optimization import build_optimization
from engine.process.distributed import Ranks
from engine.run_config import TrainConfig
from engine.state import TrainState
from engine.train_step import TrainStep
from losses import FixedWeights

PAIR = {"head": ("cls", "box")}
BATCH = Batch(
    (torch.zeros(3, 4, 4, dtype=torch.uint8),),
    pad_targets([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]),
    (0,),
)


class Slopes(nn.Module):
    """Two weights with gradients of 30 and 40, and what it drew at random."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(2))

    def forward(self, _images: Sequence[Tensor], _targets: Targets) -> dict[str, Tensor]:
        self.drawn = torch.rand(1).item()
        return {"cls": 30 * self.weights[0], "box": 40 * self.weights[1]}


def stepped(ranks: Ranks = ALONE, scaled: bool = False) -> Slopes:
    """The detector after an iteration of plain gradient descent."""
    detector = Slopes()
    config = TrainConfig(
        lr=0.1, scale_lr=False, momentum=0, weight_decay=0, warmup_iterations=0, clip_gradients=1.0
    )
    optimization = build_optimization(config, detector.parameters(), [], 1, global_batch=1)
    scaler = GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    state = TrainState(detector, FixedWeights(PAIR), *optimization, scaler)
    TrainStep(state, detector, config, ranks, np.array(["a.jpg"]))([BATCH])
    return detector


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_clipped_as_they_are_without_a_scaler(scaled: bool) -> None:
    torch.testing.assert_close(stepped(scaled=scaled).weights.data, torch.tensor([0.94, 0.92]))


def test_each_rank_draws_its_own_numbers_and_the_same_again() -> None:
    drawn = stepped().drawn
    assert drawn == stepped().drawn
    assert drawn != stepped(replace(ALONE, rank=1)).drawn
