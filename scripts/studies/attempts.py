"""The cost of a training run: of every attempt that contributed to it, and no other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from engine.checkpoint import RESUMED
from scripts.studies.run import has_checkpoint, read_record, write_record

THEN = "; then "  # between the machines that a training moved from and to


def begin(folder: Path, machine: str, code: str, **facts: Any) -> dict[str, Any]:
    """Record the start of an attempt; return the record that :func:`end` completes.

    An attempt that left no checkpoint does not count when training restarts. One that was killed
    counts up to its last checkpoint; its CPU time is unknown, and so is that of the whole training.

    Args:
        machine: its description; those of earlier attempts are kept.
        code: the version of the code; those of earlier attempts are kept.
        facts: other values to record.
    """
    before = read_record(folder)
    if not has_checkpoint(folder):
        before = {"attempts": before.get("attempts", 0)}
    began = before.pop("began", None)
    seconds = before.get("seconds", 0.0)
    if began is not None:
        seconds += max(0.0, _last_checkpoint(folder) - began)
        before = {**before, "cpu_seconds": None, "cpu_time_lost": True}
    places = before["machine"].split(THEN) if "machine" in before else []
    if places[-1:] != [machine]:
        places.append(machine)
    record = {
        **before,
        **facts,
        "error": None,
        "began": time.time(),
        "seconds": seconds,
        "machine": THEN.join(places),
        "code": sorted({*before.get("code", []), code}),
        "attempts": before.get("attempts", 0) + 1,
    }
    write_record(folder, record)
    return record


def end(
    folder: Path, record: dict[str, Any], seconds: float, cpu_seconds: float, error: str | None
) -> None:
    """Record the cost of an attempt, and its error."""
    lost = record.get("cpu_time_lost")
    done = {
        "error": error,
        "began": None,
        "seconds": record["seconds"] + seconds,
        "cpu_seconds": None if lost else record.get("cpu_seconds", 0) + cpu_seconds,
    }
    write_record(folder, {**record, **done})


def note_kill(folder: Path, record: dict[str, Any], error: str) -> None:
    """Record what killed the current attempt; its cost is recorded when the next one begins."""
    write_record(folder, {**record, "error": error})


def _last_checkpoint(folder: Path) -> float:
    files = [folder / name for name in RESUMED if (folder / name).is_file()]
    return max(file.stat().st_mtime for file in files)
