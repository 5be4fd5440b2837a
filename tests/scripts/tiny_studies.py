"""A study of four cells, and files of its runs, without any training."""

from __future__ import annotations

import json
from pathlib import Path

from engine.config import dump_config
from scripts.studies.definition import Study, load_study
from scripts.studies.run import scores_file, write_record

TINY = """
title: Tiny
base: base.yaml
axes:
  - name: weights
    key: loss.weighting
    values: {fixed: {type: fixed}, alwa_2: {type: alwa, variant: 2}}
  - {name: box loss, key: loss.box.type, values: [l1, ciou]}
columns: box loss
against: {weights: fixed}
seeds: [0, 1, 2]
score: {metrics: {mAP: voc.area.mAP}}
paper: {cells: {fixed: {l1: 0.75, ciou: 0.76}, alwa_2: {l1: 0.7575}}}
"""


def tiny_study(folder: Path) -> Study:
    """The study, from files written there."""
    (folder / "base.yaml").write_text("train: {epochs: 2}\ndata: {batch_size: 4}\n")
    (folder / "tiny.yaml").write_text(TINY)
    return load_study(str(folder / "tiny.yaml"))


def finish(study: Study, runs: Path, labels: dict[str, str], seed: int, score: float) -> Path:
    """Put the files of a finished run where the study looks for them."""
    run = study.run(labels, seed, {})
    folder = run.folder(runs)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(run.config.model_dump(mode="json")))
    (folder / "metrics.jsonl").write_text(
        json.dumps({"kind": "evaluation", "step": 400, "epoch": 1}) + "\n"
    )
    write_record(folder, {"trained": True, "seconds": 60.0 + seed, "machine": "2 cores"})
    scores_file(folder, "val").write_text(json.dumps({"voc": {"area": {"mAP": score}}}))
    return folder


def recorded_run(folder: Path, pair: tuple[str, str], lines: int = 20, every: int = 4) -> Path:
    """A run under way: its last line is not complete."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(log_of(pair, lines, every=every) + '{"kind": "tra')
    return folder


def log_of(pair: tuple[str, str], lines: int, late_weight: float = 1.0, every: int = 4) -> str:
    """The log of losses that fall, a line and a window ``every`` so many iterations.

    Args:
        late_weight: of the first loss in the second half of the lines; all others are 1.
    """
    text = ""
    for line in range(1, lines + 1):
        values = dict(zip(pair, (2.0 / line, 1.0 / line), strict=True))
        weights = {pair[0]: late_weight if 2 * line > lines else 1.0, pair[1]: 1.0}
        window = {"step": every * line, "loss_mean": values, "loss_std": values}
        record = {
            "kind": "train",
            "step": every * line,
            "epoch": 0,
            "lr": 0.1,
            "loss": values,
            "weighted_loss": values,
            "loss_weight": weights,
            "windows": [window],
            "images_per_second": 1.0,
        }
        text += json.dumps(record) + "\n"
    return text
