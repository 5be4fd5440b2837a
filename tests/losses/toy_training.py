"""A network of one shared layer and two heads, trained under any weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losses import (
    ALWA,
    DWA,
    GLS,
    CoVWeighting,
    FixedWeights,
    GradNorm,
    LossWeighting,
    RandomWeights,
    SelfBalancing,
    UncertaintyWeighting,
)

PAIR = {"head": ("cls", "box")}
RULES = {
    "fixed": lambda interval: FixedWeights(PAIR, (0.5, 2.0), interval),
    "alwa": lambda interval: ALWA(PAIR, 1, interval),
    "uncertainty": lambda interval: UncertaintyWeighting(PAIR, interval),
    "dwa": lambda interval: DWA(PAIR, interval),
    "rlw": lambda interval: RandomWeights(PAIR, interval),
    "gls": lambda interval: GLS(PAIR, interval),
    "cov": lambda interval: CoVWeighting(PAIR, interval),
    "self_balancing": lambda interval: SelfBalancing(PAIR, interval),
    "gradnorm": lambda interval: GradNorm(PAIR, interval),
}
OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


class ToyTraining:
    """Ten numbers in, the losses of two heads out; the data of a step follow from its number."""

    def __init__(self, weighting: LossWeighting) -> None:
        generator = torch.Generator().manual_seed(7)
        self.layers = nn.ParameterList(
            torch.randn(shape, generator=generator) / 3 for shape in ((10, 4), (4, 3), (4, 1))
        )
        self.weighting = weighting
        weighting.watch([self.layers[0]])
        groups = [
            {"params": list(self.layers)},
            {"params": list(weighting.parameters()), "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, **OPTIONS)

    def losses(self, step: int, part: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1000 * step + part)
        inputs = torch.randn(8, 10, generator=generator)
        shared = torch.tanh(inputs @ self.layers[0])
        labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
        cls = nn.functional.cross_entropy(shared @ self.layers[1], labels)
        box = (shared @ self.layers[2] - inputs[:, 2:3]).abs().mean() / 3
        return {"cls": cls, "box": box, "other": shared.square().mean()}

    def step(self, number: int, parts: int = 1) -> dict[str, Tensor]:
        """One iteration of so many micro-batches; the weighted losses of the last."""
        self.optimizer.zero_grad()
        for part in range(parts):
            last = part == parts - 1
            weighted = self.weighting(self.losses(number, part), last_micro_batch=last)
            (torch.stack(list(weighted.values())).sum() / parts).backward()
        self.optimizer.step()
        return weighted

    def state_dict(self) -> dict[str, Any]:
        return {
            "layers": self.layers.state_dict(),
            "weighting": self.weighting.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.layers.load_state_dict(state["layers"])
        self.weighting.load_state_dict(state["weighting"])
        self.optimizer.load_state_dict(state["optimizer"])

    @property
    def trained(self) -> dict[str, Tensor]:
        return {
            **{f"layer {number}": layer.detach() for number, layer in enumerate(self.layers)},
            **{key: value for key, value in self.weighting.named_buffers() if key[0] != "_"},
            **{key: value.detach() for key, value in self.weighting.named_parameters()},
        }


def mean_losses(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Of several micro-batches or ranks, with their graphs."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
