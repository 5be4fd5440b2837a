"""The example of own data in an own loop runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "scripts/examples/train_from_python.py"


def test_it_trains_and_scores() -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), "--epochs=2", "--pictures=80"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    losses = [float(loss) for loss in re.findall(r"'bbox_regression': '([\d.]+)'}, w", run.stdout)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    score = re.search(r"^mAP (0\.\d+)$", run.stdout, re.MULTILINE)
    assert score is not None
    assert float(score[1]) > 0


def test_the_guide_shows_its_loop() -> None:
    guide, text = (ROOT / "docs/howto/python.md").read_text(), EXAMPLE.read_text()
    begin = text.index("    with start_ranks(")
    loop = [line[4:] for line in text[begin : text.index("            losses = {")].splitlines()]
    assert len(loop) > 8
    assert "\n".join(loop) in guide
