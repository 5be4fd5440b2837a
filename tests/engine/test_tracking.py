"""What a terminal and train.log show of a run."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from pathlib import Path

import pytest

from engine.config import parse_config
from engine.process.console import start_logging
from engine.state import Progress
from engine.tracking.tracker import Tracker

PAIRS = {"head": ("classification", "bbox_regression")}
RECORD = {
    "step": 1100,
    "epoch": 29,
    "lr": 5.31e-07,
    "loss": {"classification": 0.1362, "bbox_regression": 0.226},
    "weighted_loss": {"classification": 0.0564, "bbox_regression": 0.226},
    "loss_weight": {"classification": 0.414, "bbox_regression": 1.0},
    "windows": [],
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a terminal shows of one log line: 40 images in four seconds, ten batches of 8 left."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    start_logging(tmp_path)
    config = parse_config({"train": {"epochs": 30}}, "test")
    with Tracker(tmp_path, PAIRS, config, None, enabled=True) as tracker:
        tracker.start_epoch(29, batches=37, done=26, images_per_batch=8)
        tracker.advance(5)
        tracker.since -= 4
        tracker.train(RECORD | {"images_per_second": tracker.measure()}, batches_left=10)
    return terminal.getvalue()


def test_what_a_bar_says_fits_into_80_columns(shown: str) -> None:
    line = [line for line in shown.split("\r") if "loss" in line][-1].rstrip("\n")
    rest = re.sub(r"epoch 30/30 [# \d]+ 31/37, ", "", line)
    assert re.fullmatch(
        r"loss 0.282, λ 0.41:1, lr 5.3e-07, 0:00:0[78] left, (10.0|9.\d) img/s", rest
    )
    assert len("epoch 30/30 # 31/37, " + rest) <= 80


def test_an_evaluation_says_the_scores_that_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def said(voc_map: float | None, ap: float | None) -> str:
        scores = {
            "voc": {"area": {"mAP": voc_map}, "11point": {"mAP": voc_map}},
            "coco": {"bbox": {"AP": ap, "AP50": None}},
        }
        config = parse_config({}, "test")
        with (
            caplog.at_level(logging.INFO),
            Tracker(tmp_path, PAIRS, config, None, enabled=True) as tracker,
        ):
            tracker.evaluation(Progress(step=7, epoch=2), scores)
        return caplog.messages[-1]

    assert said(0.5, 0.25) == "epoch 2 scored: val/voc_mAP 0.5000, val/coco_AP 0.2500"
    assert said(0.5, None) == "epoch 2 scored: val/voc_mAP 0.5000"
    assert said(None, None) == "epoch 2 scored: no objects to score against"


def test_the_whole_line_goes_to_train_log_and_not_through_the_bar(
    shown: str, tmp_path: Path
) -> None:
    whole = "loss 0.2824 (classification 0.1362 x 0.414, bbox_regression 0.2260 x 1), lr 5.31e-07"
    assert f"epoch 30/30 step 1100: {whole}" in (tmp_path / "train.log").read_text()
    assert "classification" not in shown
