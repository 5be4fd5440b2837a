"""What inspect says of a dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.datasets import main


def inspect(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    """Its numbers and its suggestion."""
    assert main(["inspect", str(root), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
