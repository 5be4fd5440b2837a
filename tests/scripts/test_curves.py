"""The curves of a run are the same from both of its files, and of a run that is still going."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import InputError
from engine.config import Config
from engine.state import Progress
from engine.tracking.tracker import Tracker
from scripts.curves import Curve, pair_of, read_curves

PAIRS = {"head": ("classification", "bbox_regression")}


def a_line(step: int, loss: float) -> dict[str, Any]:
    by_name = {"classification": loss, "bbox_regression": 2 * loss}
    window = {"step": step - 1, "loss_mean": by_name, "loss_std": {"classification": 0.25}}
    return {
        "step": step, "epoch": 0, "lr": 0.5, "loss": by_name, "weighted_loss": by_name,
        "loss_weight": {"classification": 1.5}, "windows": [window],
    }  # fmt: skip


def scores(value: float | None) -> dict[str, Any]:
    voc = {"area": {"mAP": value, "AP": {}}, "11point": {"mAP": value, "AP": {}}}
    return {"images": 1, "voc": voc, "coco": {"bbox": {"AP": value, "APs": None}}}


def write_run(folder: Path) -> Path:
    folder.mkdir()
    with Tracker(folder, PAIRS, Config(), None, enabled=True) as tracker:
        tracker.start_epoch(0, batches=2, done=0, images_per_batch=1)
        for step in (2, 4):
            tracker.advance(1)
            speed = {"images_per_second": tracker.measure()}
            tracker.train(a_line(step, loss=1 / step) | speed, batches_left=1)
        tracker.evaluation(Progress(step=4, epoch=1), scores(0.75))
    return folder


def test_metrics_and_tensorboard_give_the_same_curves(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    curves = read_curves(run)
    np.testing.assert_array_equal(curves["loss/bbox_regression"].steps, [2, 4])
    np.testing.assert_array_equal(curves["loss/bbox_regression"].values, [1.0, 0.5])
    np.testing.assert_array_equal(curves["loss_std/classification"].steps, [1, 3])
    np.testing.assert_array_equal(curves["val/voc_mAP"].values, [0.75])
    assert "val/coco_APs" not in curves  # null: there are no small objects
    (run / "metrics.jsonl").unlink()
    from_events = read_curves(run)
    assert set(from_events) == set(curves)
    for tag, curve in from_events.items():
        np.testing.assert_array_equal(curve.steps, curves[tag].steps)
        np.testing.assert_allclose(curve.values, curves[tag].values, rtol=1e-6)
    (event_file,) = (file for file in run.glob("events*") if file.suffix != ".hyperparameters")
    assert set(read_curves(event_file)) == set(curves)


def test_the_pair_of_a_run_is_the_one_that_is_weighed(tmp_path: Path) -> None:
    curve = Curve(np.array([1]), np.array([1.0]))
    second_stage = ("loss_classifier", "loss_box_reg")
    names = ["loss_objectness", "loss_rpn_box_reg", *second_stage]
    curves = {f"loss/{name}": curve for name in names}
    assert pair_of(curves, tmp_path) == ("loss_objectness", "loss_rpn_box_reg")
    curves |= {f"loss_weight/{name}": curve for name in second_stage}
    assert pair_of(curves, tmp_path) == second_stage
    with pytest.raises(InputError, match="none of the loss pairs"):
        pair_of({"lr": curve}, tmp_path)


def test_a_line_that_a_run_is_writing_is_left_out(tmp_path: Path) -> None:
    metrics = write_run(tmp_path / "run") / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text(lines[0] + lines[1][:-20])
    assert read_curves(metrics)["lr"].steps.tolist() == [2]


def test_of_a_step_written_twice_the_later_value_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [a_line(step, loss) for step, loss in ((4, 9.0), (2, 2.0), (4, 1.0))]
    extra = {"kind": "train", "images_per_second": 1.0}
    path.write_text("".join(json.dumps({**record, **extra}) + "\n" for record in records))
    curve = read_curves(path)["loss/classification"]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([2, 4], [2.0, 1.0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "metrics.jsonl"),
        ("", "has no curves"),
        ("{}\n", "line 1 is not a log line"),
        ("[1]\nx", "line 1 is not a log line"),
        ('{"kind": "evaluation", "step": 3, "scores": 7}\n', "line 1 is not a log line"),
    ],
)
def test_what_is_no_run_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_curves(path)


def test_a_folder_without_curves_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has neither metrics\.jsonl nor events"):
        read_curves(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        read_curves(tmp_path / "nowhere")
