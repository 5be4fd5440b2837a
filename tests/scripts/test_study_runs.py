"""Laws of running a study: nothing is trained twice, what was cut off goes on, failures stay alone.

Real trainings of a tiny detector on drawn shapes: minutes, so on demand with ``-m slow``.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

STUDY = """
title: Tiny
base: base/tiny.yaml
axes:
  - name: weights
    key: loss.weighting
    values: {fixed: {type: fixed}, alwa_2: {type: alwa, variant: 2}}
  - {name: lr, key: train.lr, values: {small: 0.01, absurd: 1.0e+30}}
against: {weights: fixed}
score: {metrics: {mAP: voc.area.mAP}}
figures:
  "5": {kind: detections, cells: [{weights: fixed}, {weights: alwa_2}]}
  "6": {kind: windows, cells: [{weights: fixed}, {weights: alwa_2}]}
"""
BASE = """
detector:
  {type: retinanet, backbone: resnet18, weights: none, trainable_stages: 5, norm: batch,
   fpn_channels: 16, head_init: width, levels: [4, 5],
   retinanet: {head_norm: batch, tower_depth: 1},
   anchors: {sizes: [24, 48], scales_per_octave: 1}}
loss: {weighting: {interval: 2}}
data:
  {format: shapes, root: ROOT, shapes: {train_images: 24, val_images: 6, image_size: [64, 64]},
   image_size: [64, 64], batch_size: 4, workers: 0}
train: {epochs: 3, scale_lr: false, warmup_iterations: 2, log_every: 2, pictures: 0, device: cpu}
evaluate: {every: 100}
"""


class Shell:
    """Somebody's shell in front of one study."""

    def __init__(self, folder: Path) -> None:
        self.study, self.runs = folder / "tiny.yaml", folder / "runs"
        self.ledger = folder / "ledger"
        self.study.write_text(STUDY)
        (folder / "base").mkdir()
        (folder / "base/tiny.yaml").write_text(BASE.replace("ROOT", str(folder / "shapes")))

    def start(self, command: str, *words: str) -> subprocess.Popen[str]:
        script = [sys.executable, str(ROOT / "scripts/study.py"), command, str(self.study)]
        return subprocess.Popen(
            [*script, "--runs", str(self.runs), "--ledger", str(self.ledger), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
        )

    def call(self, command: str, *words: str) -> tuple[int, str]:
        process = self.start(command, *words)
        text, _ = process.communicate(timeout=280)
        return process.returncode, text

    def folders(self) -> list[Path]:
        return sorted(path.parent for path in self.runs.glob("*/*/study.lock"))


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def wait_for(path: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not list(path.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not come"
        time.sleep(0.1)


def attempts(folder: Path) -> int:
    return int(json.loads((folder / "study.json").read_text())["attempts"])


def losses(folder: Path) -> list[tuple[int, dict[str, float], dict[str, float]]]:
    """Iteration, losses and their weights of every log line."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [(r["step"], r["loss"], r["loss_weight"]) for r in records if r["kind"] == "train"]


def test_two_shells_share_the_runs_and_a_third_call_finds_nothing_to_do(shell: Shell) -> None:
    only = ["--only", "lr=small"]
    both = [shell.start("run", *only), shell.start("run", *only)]
    texts = [process.communicate(timeout=280)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert shell.call("run", *only) == (0, "2 runs: 2 done, 0 to do\n")
    assert len(shell.folders()) == 2
    assert [attempts(folder) for folder in shell.folders()] == [1, 1]
    assert "".join(texts).count("scored") == 2
    assert shell.call("table")[1].count("not run") == 2
    code, text = shell.call("plot")
    assert code == 0, text
    assert len(list(shell.runs.glob("figures/*.png"))) == 2
    assert not shell.ledger.exists()


def test_kept_runs_are_done_where_the_runs_folder_is_lost(shell: Shell) -> None:
    only = ["--only", "lr=small"]
    assert shell.call("run", "--keep", *only)[0] == 0
    table = shell.call("table")[1]
    shutil.rmtree(shell.runs)
    assert shell.call("run", *only) == (0, "2 runs: 2 done, 0 to do\n")
    assert shell.call("table")[1] == table
    assert shell.call("list", "--no-ledger")[1].count("not run") == 4


def test_a_beginning_that_left_nothing_is_no_cost_of_the_training(shell: Shell) -> None:
    only = ["--only", "lr=small", "--only", "weights=fixed"]
    folder = shell.runs / "tiny/seed-0"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text('{"seconds": 1e6, "cpu_seconds": 1e6, "code": ["old"]}')
    code, text = shell.call("run", *only)
    assert code == 0, text
    assert shell.folders() == [folder]
    record = json.loads((folder / "study.json").read_text())
    assert record["seconds"] < 1000
    assert record["cpu_seconds"] < 1000
    assert "old" not in record["code"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(
    number: signal.Signals, shell: Shell
) -> None:
    only = ["--only", "lr=small", "--only", "weights=alwa_2", "train.epochs=6"]
    process = shell.start("run", *only)
    wait_for(shell.runs, "*/*/last.pt")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (folder,) = shell.folders()
    assert not list(folder.glob("scores-*"))
    assert shell.call("run", *only)[0] == 0
    assert attempts(folder) == 2
    interrupted = losses(folder)
    again = shell.study.parent / "again"
    again.mkdir()
    other = Shell(again)
    assert other.call("run", *only)[0] == 0
    (uninterrupted,) = other.folders()
    assert losses(uninterrupted) == interrupted


def test_an_orphaned_training_keeps_its_folder_locked_and_is_taken_over(shell: Shell) -> None:
    only = ["--only", "lr=small", "--only", "weights=fixed", "train.epochs=16"]
    process = shell.start("run", *only)
    wait_for(shell.runs, "*/*/last.pt")
    process.kill()
    process.communicate()
    code, text = shell.call("run", *only)
    assert code == 0
    (folder,) = shell.folders()
    assert f"in progress in another shell: {folder}" in text
    assert (folder / "scores-val.json").is_file()
    steps = [step for step, _, _ in losses(folder)]
    assert steps == sorted(set(steps)), "two trainings wrote beside each other"


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(shell: Shell) -> None:
    code, text = shell.call("run", "--jobs", "2", "--only", "weights=fixed")
    assert code == 1
    assert text.count("failed:") == 1
    assert "1 of 2 runs done" in text
    assert "not finite" in text
    table = shell.call("table")[1]
    assert "no result" in table
    assert table.count("not run") == 2
    assert (shell.runs / "tables/tiny.csv").is_file()
