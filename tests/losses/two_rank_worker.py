"""Run by torchrun on two processes: what each rank sees of its weightings, written as JSON.

Usage: two_rank_worker.py TRACES OUTPUT_FOLDER
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import RULES, ToyTraining

from losses import ALWA, FixedWeights, LossWeighting
from losses.reduction import mean_over_ranks

PAIR = {"head": ("cls", "reg")}


class CountAllReduces(TorchDispatchMode):
    """Counts the collectives that reach the process group."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith("c10d::"):
            self.sizes.append(args[0][0].numel())
        return func(*args, **(kwargs or {}))


def losses_of(case: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The raw losses of this rank, iteration by iteration."""
    rank = dist.get_rank()
    return [
        {"cls": torch.tensor(cls), "reg": torch.tensor(reg)}
        for cls, reg in zip(case["cls"][rank], case["reg"][rank], strict=True)
    ]


def follow(case: dict[str, Any]) -> dict[str, Any]:
    """The weight before every iteration and after the last, and the all-reduces it took."""
    alwa = ALWA(PAIR, case["variant"], case["interval"], case["initial"])
    weights = [alwa.weights()["cls"].item()]
    with CountAllReduces() as collectives:
        for losses in losses_of(case):
            alwa(losses)
            weights.append(alwa.weights()["cls"].item())
    return {"weights": weights, "all_reduce_sizes": collectives.sizes}


def last_window_of_fixed_weights(case: dict[str, Any]) -> dict[str, list[float]]:
    weighting = FixedWeights(PAIR, (0.5, 2.0), case["interval"])
    for losses in losses_of(case):
        weighting(losses)
    return {name: [v.item() for v in pair] for name, pair in weighting.last_window().items()}


def tensors(weighting: LossWeighting) -> list[list[float]]:
    return [buffer.flatten().tolist() for buffer in (weighting.lambdas, weighting.window_std)]


def resume_in_the_middle(case: dict[str, Any]) -> dict[str, Any]:
    """Every rank continues from the state that the first one saved half-way through a window."""
    losses = losses_of(case)
    stop = case["interval"] * 3 // 2
    undisturbed = ALWA(PAIR, case["variant"], case["interval"], case["initial"])
    saving, resumed = copy.deepcopy(undisturbed), copy.deepcopy(undisturbed)
    for row in losses:
        undisturbed(row)
    for row in losses[:stop]:
        saving(row)
    saving.share_window()
    states = [saving.state_dict()]
    dist.broadcast_object_list(states, src=0)
    resumed.load_state_dict(states[0])
    for row in losses[stop:]:
        resumed(row)
        saving(row)
    return {
        "undisturbed": tensors(undisturbed),
        "resumed": tensors(resumed),
        "saving": tensors(saving),
    }


def train_under(rule: str) -> dict[str, Any]:
    """A network trained on both ranks, each on its own data; the layers' gradients are averaged."""
    training = ToyTraining(RULES[rule](interval=4))
    for layer in training.layers:
        layer.register_hook(mean_over_ranks)
    weights = []
    for step in range(10):
        losses = training.weighting(training.losses(step, part=dist.get_rank()))
        training.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        training.optimizer.step()
        weights.append([w.item() for w in training.weighting.applied_weights().values()])
    training.weighting.share_window()
    trained = {name: value.flatten().tolist() for name, value in training.trained.items()}
    return {"weights": weights, "trained": trained}


def main() -> None:
    traces, output = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cases = [c for c in json.loads(Path(traces).read_text())["cases"] if c.get("ranks") == 2]
    seen = {
        "traces": [follow(case) for case in cases],
        "fixed": [last_window_of_fixed_weights(case) for case in cases],
        "resume": [resume_in_the_middle(case) for case in cases],
        "rules": {rule: train_under(rule) for rule in RULES},
    }
    Path(output, f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.barrier()  # torchrun ends all ranks when one is gone: let each write first
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
