"""Laws of a weighting on two ranks, seen by two real processes under torchrun with gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from toy_training import RULES, ToyTraining, mean_losses

from losses.reduction import mean_over_ranks

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TRACES = HERE / "fixtures" / "alwa_traces.json"


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    return [case for case in json.loads(TRACES.read_text())["cases"] if case.get("ranks") == 2]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks saw."""
    output = tmp_path_factory.mktemp("two_ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run = subprocess.run(
        [*torchrun, str(HERE / "two_rank_worker.py"), str(TRACES), str(output)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    # What counts is that both wrote: gloo's threads now and then abort a process as it exits.
    files = [output / f"rank{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), run.stderr
    return [json.loads(file.read_text()) for file in files]


def test_the_traces_of_two_ranks_are_reproduced(
    ranks: list[dict[str, Any]], cases: list[dict[str, Any]]
) -> None:
    assert {case["variant"] for case in cases} == {1, 2}
    for seen in ranks:
        for trace, case in zip(seen["traces"], cases, strict=True):
            assert trace["weights"] == pytest.approx(case["cls_weight"], rel=1e-6, abs=0)


def test_the_mean_of_equal_values_is_that_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.mul_(3))
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mean_over_ranks(values), values)


def test_both_ranks_hold_the_same_weights_to_the_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert first == second
    assert any(trace["weights"][-1] < 1 for trace in first["traces"])


def test_a_window_costs_one_all_reduce_of_its_losses(
    ranks: list[dict[str, Any]], cases: list[dict[str, Any]]
) -> None:
    for trace, case in zip(ranks[0]["traces"], cases, strict=True):
        windows = len(case["cls"][0]) // case["interval"]
        assert trace["all_reduce_sizes"] == [case["interval"] * 2] * windows


def test_the_statistics_of_fixed_weights_are_those_of_the_mean_over_ranks(
    ranks: list[dict[str, Any]], cases: list[dict[str, Any]]
) -> None:
    for window, case in zip(ranks[0]["fixed"], cases, strict=True):
        for name, weight in (("cls", 0.5), ("reg", 2.0)):
            both = torch.tensor(case[name], dtype=torch.float64).mean(dim=0)
            expected = weight * both[-case["interval"] :]
            hand = [expected.mean().item(), expected.std().item()]
            assert window[name] == pytest.approx(hand, rel=1e-6)


def test_the_state_of_one_rank_resumes_both_in_the_middle_of_a_window(
    ranks: list[dict[str, Any]],
) -> None:
    for seen in ranks:
        for run in seen["resume"]:
            assert run["resumed"] == run["undisturbed"] == run["saving"]


@pytest.mark.parametrize("rule", RULES)
def test_two_ranks_train_as_one_process_does_on_the_mean_of_their_losses(
    ranks: list[dict[str, Any]], rule: str
) -> None:
    alone = ToyTraining(RULES[rule](interval=4))
    weights = []
    for step in range(10):
        both = mean_losses([alone.losses(step, part) for part in range(2)])
        alone.optimizer.zero_grad()
        torch.stack(list(alone.weighting(both).values())).sum().backward()
        alone.optimizer.step()
        weights.append([w.item() for w in alone.weighting.applied_weights().values()])
    seen = ranks[0]["rules"][rule]
    assert seen == ranks[1]["rules"][rule]
    torch.testing.assert_close(torch.tensor(seen["weights"]), torch.tensor(weights))
    for name, value in alone.trained.items():
        torch.testing.assert_close(torch.tensor(seen["trained"][name]), value.flatten())
