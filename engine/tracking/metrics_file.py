"""``metrics.jsonl``: one JSON object per log line and per evaluation of a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.process.atomic_file import write_atomically
from engine.state import Progress

METRICS = "metrics.jsonl"

log = logging.getLogger(__name__)


class MetricsFile:
    """Writes log lines (``"kind": "train"``) and evaluations (``"kind": "evaluation"``), flushed.

    If the last iteration is not a multiple of ``log_every``, its line has ``last_of``, the number
    of epochs of the run that it ends. It follows the evaluation if ``train.patience`` ended the
    run, or a lower ``train.epochs`` than it started with.

    Args:
        folder: the run folder.
        kept: the records that the file starts with.

    Raises:
        InputError: the file cannot be written.
    """

    def __init__(self, folder: Path, kept: Sequence[Mapping[str, Any]]) -> None:
        path = folder / METRICS
        write_atomically(path, "".join(map(_line, kept)).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record."""
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's file, if any; invalid lines are dropped with a warning."""
    path = folder / METRICS
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict) and {"kind", "step", "epoch"} <= record.keys():
            yield record
        else:
            log.warning("%s: dropping a line that is not a complete record", path)


def records_before(
    records: Sequence[dict[str, Any]], config: Config, resumed: Progress
) -> list[dict[str, Any]]:
    """The records that a run resumed at a checkpoint keeps: those written before it."""
    kept = [record for record in records if _was_before(record, resumed)]
    if resumed.waited(config.train.patience, config.evaluate.every):
        return kept
    # A resumed run continues as if it had never ended: the checkpoint has those windows.
    epochs = config.train.epochs
    return [record for record in kept if record.get("last_of", epochs) >= epochs]


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _was_before(record: Mapping[str, Any], progress: Progress) -> bool:
    if record["kind"] == "evaluation":
        return bool(record["epoch"] <= progress.evaluated)
    return bool(record["step"] <= progress.step)
