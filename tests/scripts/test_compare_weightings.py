"""Laws of the comparison of weightings on recorded losses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    path = ROOT / "scripts/compare_weightings.py"
    specification = importlib.util.spec_from_file_location("compare_weightings", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_rule_meets_the_recorded_losses_and_gradients(compare: ModuleType) -> None:
    recording = compare.read_recording(compare.RECORDING)
    count = len(recording["cls"])
    weights = {name: compare.replay(build(10), recording) for name, build in compare.RULES.items()}
    for name, values in weights.items():
        assert values.shape == (count, 2), name
        assert (values > 0).all(), name
    product = np.sqrt(np.array(recording["cls"]) * np.array(recording["box"]))
    total = (weights["GLS"] * np.stack([recording["cls"], recording["box"]], axis=1)).sum(axis=1)
    assert total == pytest.approx(product, rel=1e-4)
    gradients = [recording[f"{name}_gradient"][0] for name in ("cls", "box")]
    after_one = weights["GradNorm"][1]
    assert (after_one[0] < after_one[1]) == (gradients[0] > gradients[1])


def test_a_run_is_read_from_its_log_lines(compare: ModuleType, tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "loss": {"classification": 3.0, "bbox_regression": 1.0}},
        {"kind": "evaluation"},
        {"kind": "train", "loss": {"classification": 2.0, "bbox_regression": 0.5}},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert compare.read_recording(path) == {"cls": [3.0, 2.0], "box": [1.0, 0.5]}


def test_a_picture_and_a_table_come_out(compare: ModuleType, tmp_path: Path) -> None:
    recording = {"cls": [2.0, 1.0, 1.5, 0.5], "box": [1.0, 0.25, 0.5, 0.5]}
    weights = {"GLS": compare.replay(compare.RULES["GLS"](2), recording)}
    assert compare.table(weights, recording).splitlines()[2].startswith("| GLS | 0.45 |")
    compare.draw(weights, recording, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
