"""check_gpu.py where there is no GPU; what it checks is measured in docs/benchmarks.md."""

from __future__ import annotations

import pytest
import torch

from scripts.benchmark import _parser
from scripts.check_gpu import BENCHMARKS, main


def test_it_says_that_there_is_no_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_its_benchmarks_are_commands() -> None:
    for command in BENCHMARKS:
        assert _parser().parse_args(command.split()).device == "cuda"
