"""Started by test_failing_ranks.py with torchrun: ranks that fail alone write what they saw."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from data.errors import InputError
from engine import precision
from engine.checkpoint import STATE, save_checkpoint
from engine.divergence import DivergenceError, FiniteGuard, Watched
from engine.evaluation.detections import concatenate, make_detections
from engine.optimization import build_optimizer
from engine.process.distributed import Ranks, leave, start_ranks
from engine.run_folder import load_shared
from engine.state import Progress


def diverge(ranks: Ranks) -> str:
    """A NaN on the second rank alone."""
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = build_optimizer("sgd", [weight], lr=0.1, momentum=0.9, weight_decay=0.0)
    guard = FiniteGuard(ranks, optimizer, ("a.jpg", "b.jpg"), at_once=True, remembered=1)
    losses = {"loss": torch.tensor(float("nan") if ranks.rank else 1.0)}
    guard.watch(Watched(5, (ranks.rank,), losses, losses, lambda: "lr 0.1"))
    try:
        guard.check()
    except DivergenceError as error:
        return str(error)
    return ""


def prepare(ranks: Ranks) -> list[str]:
    """The main rank fails in what it does first; then it does not."""
    seen = []
    for fails in (True, False):
        try:
            with ranks.main_first():
                if ranks.is_main and fails:
                    raise InputError("no room")
                seen.append("ran")
        except InputError as error:
            seen.append(str(error))
    return seen


def shares(ranks: Ranks) -> list[int] | None:
    """One image, and a rank that has none."""
    share = make_detections([], [], [], [], seen=[] if ranks.rank else [0])
    gathered = ranks.gather(share)
    if gathered is None:
        return None
    together = concatenate(gathered).seen
    assert together is not None
    return together.tolist()


def resume(ranks: Ranks) -> list[object]:
    """The second rank sees an older checkpoint than the main one; then both see the same."""
    seen: list[object] = []
    for steps in ((7, 4), (7, 7)):
        folder = Path(os.environ["ANSWERS"], f"seen_by_{ranks.rank}")
        state = {key: kind() for key, kind in STATE.items()}
        progress = {"progress": asdict(Progress(step=steps[ranks.rank]))}
        identity = {"detector": {}, "classes": ["a"], "config": {}}
        save_checkpoint(folder / "last.pt", {**identity, **state, **progress})
        try:
            seen.append(load_shared(folder, ranks)[1]["progress"]["step"])
        except InputError as error:
            seen.append(str(error))
    return seen


def compute_apart(ranks: Ranks) -> str:
    """The second rank's CPU has instructions for bf16, the main one's has none."""
    file = Path(os.environ["ANSWERS"], f"cpuinfo_{ranks.rank}")
    file.write_text("flags : avx512_bf16\n" if ranks.rank else "flags : avx2\n")
    precision.CPU_INFO = file
    precision.check_precision("bf16", ranks)  # who names it wants it
    try:
        precision.check_precision("auto", ranks)
    except InputError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    with start_ranks("cpu") as ranks:
        answers = {
            "diverge": diverge(ranks),
            "prepare": prepare(ranks),
            "shares": shares(ranks),
            "resume": resume(ranks),
            "precision": compute_apart(ranks),
        }
        Path(os.environ["ANSWERS"], f"{ranks.rank}.json").write_text(json.dumps(answers))
    leave(0)
