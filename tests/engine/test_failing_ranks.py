"""What happens on one rank is known on all of them: real processes under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import ROOT

from data.errors import InputError
from engine.process.distributed import start_ranks


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("answers")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    subprocess.run(
        [
            sys.executable,
            *launcher,
            "--rdzv-endpoint=localhost:0",
            Path(__file__).with_name("guarded_ranks.py"),
        ],
        env={
            **os.environ,
            "ANSWERS": str(folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        timeout=120,
        check=True,
    )
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_and_is_named(
    answers: list[dict[str, Any]],
) -> None:
    for answer in answers:
        assert answer["diverge"].startswith("step 5, rank 1: not finite: loss nan; files: b.jpg")


def test_what_the_main_rank_cannot_prepare_is_an_error_on_all(
    answers: list[dict[str, Any]],
) -> None:
    for answer in answers:
        assert answer["prepare"] == ["no room", "ran"]


def test_a_rank_without_images_adds_nothing(answers: list[dict[str, Any]]) -> None:
    assert [answer["shares"] for answer in answers] == [[0], None]


def test_ranks_that_find_different_checkpoints_are_refused_on_all(
    answers: list[dict[str, Any]],
) -> None:
    for answer in answers:
        refusal, step = answer["resume"]
        assert "the ranks found last.pt of step 7, last.pt of step 4" in refusal
        assert step == 7


def test_ranks_that_would_compute_in_different_precisions_are_refused_on_all(
    answers: list[dict[str, Any]],
) -> None:
    for answer in answers:
        assert answer["precision"].startswith(
            "train.amp: auto selects none on rank 0 but bf16 on rank 1"
        )


def test_ranks_that_torchrun_did_not_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(InputError, match="WORLD_SIZE is 2, but RANK is not set"),
        start_ranks("cpu"),
    ):
        raise AssertionError
