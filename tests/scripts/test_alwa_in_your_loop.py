"""The example of ALWA in somebody else's loop runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "scripts/examples/alwa_in_your_loop.py"


def test_it_trains_and_its_weight_moves_and_is_saved(tmp_path: Path) -> None:
    output = tmp_path / "checkpoint.pt"
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), "--iterations=4", "--interval=2", f"--output={output}"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    weights = re.findall(r"next weights {'classification': ([\d.]+)", run.stdout)
    assert len(weights) == 2
    assert 0 < float(weights[0]) < 1
    saved = torch.load(output, weights_only=True)["alwa"]
    assert saved["lambdas"][0, 0].item() == pytest.approx(float(weights[1]), abs=1e-3)


def test_the_guide_shows_the_lines_that_are_marked_in_it() -> None:
    guide = (ROOT / "docs/loss-weighting.md").read_text()
    marked = [line for line in EXAMPLE.read_text().splitlines() if "  # ALWA" in line]
    assert len(marked) == 3
    for line in marked:
        assert line.split("  # ALWA")[0].strip() in guide
