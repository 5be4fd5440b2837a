"""Run `datasets.py validate` on a dataset, and its repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import fingerprint

from scripts.datasets import main

GOOD = (5, 5, 20, 20)


def validate(
    root: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, list[dict[str, Any]]]:
    code = main(["validate", str(root), "--json", *options])
    return code, json.loads(capsys.readouterr().out)["problems"]


def check_and_repair(
    root: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[list[dict[str, Any]], Path]:
    """The problems, and a copy in which no error is left; the original stays as it is."""
    before = fingerprint(root)
    copy = root.parent / "repaired"
    _, problems = validate(root, capsys, "--fix", str(copy), *options)
    assert fingerprint(root) == before
    code, left = validate(copy, capsys, *options)
    assert code == 0
    assert not [each for each in left if each["severity"] == "error"]
    return problems, copy
