"""Laws of what a training took: work that is in it counts, work that was lost does not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from scripts.studies import attempts
from scripts.studies.run import read_record


def attempt(folder: Path, machine: str = "a", code: str = "v1") -> dict[str, Any]:
    return attempts.begin(folder, machine, code, processes=1)


def test_the_attempts_that_a_training_went_on_from_are_summed_up(tmp_path: Path) -> None:
    attempts.end(tmp_path, attempt(tmp_path), 10.0, 18.0, None)
    (tmp_path / "last.pt").touch()
    attempts.end(tmp_path, attempt(tmp_path, "b", "v2"), 5.0, 9.0, None)
    record = read_record(tmp_path)
    assert record["seconds"] == 15.0
    assert record["cpu_seconds"] == 27.0
    assert record["attempts"] == 2
    assert record["machine"] == "a; then b"
    assert record["code"] == ["v1", "v2"]
    assert "began" not in record
    for machine in ("b", "a", "a"):
        attempts.end(tmp_path, attempt(tmp_path, machine), 1.0, 1.0, None)
    assert read_record(tmp_path)["machine"] == "a; then b; then a"


def test_an_attempt_that_left_no_checkpoint_is_no_cost(tmp_path: Path) -> None:
    attempts.end(tmp_path, attempt(tmp_path), 10.0, 18.0, "out of memory")
    assert read_record(tmp_path)["error"] == "out of memory"
    attempts.end(tmp_path, attempt(tmp_path, "b", "v2"), 5.0, 9.0, None)
    record = read_record(tmp_path)
    assert record == {
        "processes": 1,
        "seconds": 5.0,
        "machine": "b",
        "code": ["v2"],
        "attempts": 2,
        "cpu_seconds": 9.0,
    }


def test_an_attempt_that_was_killed_before_its_first_checkpoint_is_no_cost(tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    began = attempt(tmp_path)["began"]
    os.utime(tmp_path / "last.pt", (began - 60, began - 60))  # of an earlier attempt
    assert attempt(tmp_path)["seconds"] == 0


def test_an_attempt_that_was_killed_counts_until_its_last_checkpoint(tmp_path: Path) -> None:
    began = attempt(tmp_path)["began"]
    for name, after in (("previous.pt", 20.0), ("last.pt", 30.0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (began + after, began + after))
    attempts.end(tmp_path, attempt(tmp_path), 5.0, 9.0, None)
    assert read_record(tmp_path)["seconds"] == pytest.approx(35.0, abs=0.01)
    assert "cpu_seconds" not in read_record(tmp_path)  # what the killed attempt took is not known
    attempts.end(tmp_path, attempt(tmp_path), 1.0, 1.0, None)
    assert json.loads((tmp_path / "study.json").read_text())["seconds"] == pytest.approx(36.0)
    assert "cpu_seconds" not in read_record(tmp_path)
