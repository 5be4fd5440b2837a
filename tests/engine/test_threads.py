"""The limit on spinning is set early enough and never against the user's will."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.process.threads import SPIN_COUNT, limit_spinning


def test_a_short_spin_is_asked_for_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_COUNT
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_it_is_set_before_torch_is_imported(script: str) -> None:
    code = (
        "import sys, engine.process.threads as threads\n"
        "threads.limit_spinning = lambda: print('torch' in sys.modules)\n"
        f"import {script}\n"
    )
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "False"
