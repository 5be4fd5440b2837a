"""The ledger: condensed finished runs, under version control, unlike ``runs/``.

``<ledger>/<base config>/<run>/`` holds what tables and curves need of a run, under the same file
names as in its own folder, so that both are read alike: ``config.yaml`` (which shows whether the
study still needs this run), ``study.json``, ``scores-<split>.json``, and the loss curves in
``curves.csv``. Checkpoints are not kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config import dump_config
from engine.process.atomic_file import write_atomically
from engine.strict_yaml import read_yaml
from engine.tracking.metrics_file import read_records
from scripts.curves import TABLE, Curve, read_curves
from scripts.studies.run import RECORD, Run, dump_record, read_record, scores_file

LEDGER = Path(__file__).resolve().parents[2] / "docs/study"
GROUPS = ("loss/", "loss_weight/", "loss_mean/", "loss_std/")
MOST_BYTES = 60_000  # maximum size of a run's curves
# Specific to the machine; a path may reveal more about it than others should read.
UNKEPT = {"data": ("root",), "train": ("name", "output")}


def results_folder(run: Run, split: str, runs: Path, ledger: Path | None) -> Path:
    """Return the folder of a run's scores: its own, or that in the ledger if only it has them."""
    own = run.folder(runs)
    if ledger is None or scores_file(own, split).is_file():
        return own
    kept = run.folder(ledger)
    return kept if scores_file(kept, split).is_file() else own


def keep(folder: Path, split: str, place: Path) -> bool:
    """Write a scored run's condensed results; return whether that changed anything.

    The scores are written last: they make the record count.

    Args:
        folder: the run's own folder.
        place: its folder in the ledger.

    Raises:
        InputError: the run's files cannot be read, or the ledger's cannot be written.
    """
    curves, every = thinned(read_curves(folder))
    record = {**read_record(folder), "iterations": iterations_of(folder)}
    if every > 1:
        record["curves"] = f"every {every} points, for size"
    contents = {
        "config.yaml": dump_config(_portable(read_yaml(folder / "config.yaml"))),
        TABLE: curves,
        RECORD: dump_record(record),
        scores_file(place, split).name: scores_file(folder, split).read_text(encoding="utf-8"),
    }
    changed = [_replace(place / name, text) for name, text in contents.items()]
    return any(changed)


def iterations_of(folder: Path) -> int | None:
    """Return the iterations of a run, from the last complete line of its log."""
    steps = [int(record["step"]) for record in read_records(folder)]
    return steps[-1] if steps else None


def thinned(curves: Mapping[str, Curve], most: int = MOST_BYTES) -> tuple[str, int]:
    """Return the loss curves as a table, and the stride of its points that makes it fit."""
    kept = {tag: curve for tag, curve in curves.items() if tag.startswith(GROUPS)}
    every = 1
    while len(text := _as_table(kept, every)) > most and every < max(map(len, kept.values())):
        every += 1
    return text, every


def _as_table(curves: Mapping[str, Curve], every: int) -> str:
    """Format a row per iteration, a column per curve, five digits; the last points are kept."""
    points = {
        tag: dict(zip(c.steps[::-every].tolist(), c.values[::-every].tolist(), strict=True))
        for tag, c in curves.items()
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *points])
    for step in sorted(set().union(*points.values())):
        shown = [f"{of[step]:.5g}" if step in of else "" for of in points.values()]
        writer.writerow([step, *shown])
    return text.getvalue()


def _portable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without machine-specific keys."""
    return {
        room: {key: value for key, value in keys.items() if key not in UNKEPT.get(room, ())}
        for room, keys in config.items()
    }


def _replace(path: Path, text: str) -> bool:
    """Write a file unless it already has this text; return whether it was written."""
    content = text.encode()
    if path.is_file() and path.read_bytes() == content:
        return False
    write_atomically(path, content)
    return True
