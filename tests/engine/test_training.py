"""Runs: what they write and log."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from runs import ALONE, backbone_file, config_of, metrics, run, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.build import build_annotations
from data.errors import InputError
from data.target import Batch
from engine.build import build_state
from engine.checkpoint import load_checkpoint
from engine.divergence import DivergenceError
from engine.train_step import Iteration, TrainStep


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a RetinaNet with ALWA."""
    return run(config_of(tiny(tmp_path_factory.mktemp("finished"))))


def test_a_run_leaves_all_files_of_the_contract(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    expected = {"config.yaml", "last.pt", "best.pt", "metrics.jsonl", "train.log", "metrics.json"}
    assert expected <= names
    assert any(name.startswith("events.out.tfevents") for name in names)


def test_every_log_line_has_every_number(finished: Path) -> None:
    lines = [record for record in metrics(finished) if record["kind"] == "train"]
    assert [line["step"] for line in lines] == list(range(1, 11))
    for line in lines:
        for name in ("classification", "bbox_regression"):
            weighted = line["loss"][name] * line["loss_weight"][name]
            assert line["weighted_loss"][name] == pytest.approx(weighted, rel=1e-5)
        assert line["lr"] > 0


def test_window_statistics_are_those_of_the_logged_losses(finished: Path) -> None:
    lines = [record for record in metrics(finished) if record["kind"] == "train"]
    windows = [window for line in lines for window in line["windows"]]
    assert [window["step"] for window in windows] == [3, 6, 9]
    for window in windows:
        inside = lines[window["step"] - 3 : window["step"]]
        for name in ("classification", "bbox_regression"):
            values = torch.tensor([line["weighted_loss"][name] for line in inside]).double()
            assert window["loss_mean"][name] == pytest.approx(values.mean().item(), rel=1e-5)
            assert window["loss_std"][name] == pytest.approx(values.std().item(), rel=1e-3)


def test_the_weight_after_a_window_follows_the_papers_rule(finished: Path) -> None:
    lines = [record for record in metrics(finished) if record["kind"] == "train"]
    for before, after in pairwise(lines):
        expected = before["loss_weight"]["classification"]
        for window in before["windows"]:
            classification = window["loss_std"]["classification"]
            regression = window["loss_std"]["bbox_regression"]
            if classification > regression:
                expected = regression / classification
        assert after["loss_weight"]["classification"] == pytest.approx(expected, rel=1e-5)


def test_tensorboard_has_the_tags_of_the_contract(finished: Path) -> None:
    events = EventAccumulator(str(finished), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    for name in ("classification", "bbox_regression"):
        for group in ("loss", "weighted_loss", "loss_weight", "loss_mean", "loss_std"):
            assert f"{group}/{name}" in tags["scalars"]
    assert {"lr", "images_per_second", "val/voc_mAP", "val/coco_AP"} <= set(tags["scalars"])
    assert "val/detections_0" in tags["images"]
    assert [event.step for event in events.Scalars("loss_mean/classification")] == [3, 6, 9]


def test_a_checkpoint_holds_only_what_weights_only_reads(finished: Path) -> None:
    saved = load_checkpoint(finished / "last.pt")
    assert saved["classes"] == ["circle", "square", "triangle"]
    assert saved["progress"]["epoch"] == saved["progress"]["evaluated"] == 2


def test_the_best_masks_need_masks_to_be_scored_against(tmp_path: Path) -> None:
    values = tiny(tmp_path, "mask_rcnn", train={"best": "coco_segm_AP"})
    annotations = build_annotations(config_of(values).data, "val")
    path = Path(annotations.source)
    content = json.loads(path.read_text())
    for item in content["annotations"]:
        del item["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"train\.best: coco_segm_AP scores masks"):
        run(config_of(values))
    assert not (tmp_path / "run" / "last.pt").exists()


def test_a_damaged_validation_image_is_left_out_on_request(tmp_path: Path) -> None:
    values = tiny(tmp_path, data={"on_damaged": "skip"}, train={"epochs": 1, "pictures": 3})
    config = config_of(values)
    annotations = build_annotations(config.data, "val")
    image = config.data.root / str(annotations.files[1])
    image.write_bytes(image.read_bytes()[:200])
    folder = run(config)
    assert re.search(r"skipping damaged image: .*000002\.jpg", (folder / "train.log").read_text())
    (evaluation,) = [line for line in metrics(folder) if line["kind"] == "evaluation"]
    assert evaluation["scores"]["images"] == 3


def test_the_last_windows_stand_in_the_last_line(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"epochs": 1, "pictures": 0, "log_every": 4})
    values["loss"]["weighting"]["interval"] = 5
    folder = run(config_of(values))
    lines = [line for line in metrics(folder) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [4, 5]
    assert lines[-1]["last_of"] == 1
    assert [window["step"] for window in lines[-1]["windows"]] == [5]
    values["train"] |= {"epochs": 2}
    run(config_of(values), resume=True)
    longer = metrics(folder)
    values["train"]["name"] = "at_once"
    assert longer == metrics(run(config_of(values)))


def test_gradients_of_a_learned_weighting_are_clipped_with_the_others(tmp_path: Path) -> None:
    values = tiny(tmp_path, loss={"weighting": {"type": "uncertainty"}})
    values["train"] |= {"epochs": 1, "clip_gradients": 1e-9}
    weights = [
        record["loss_weight"]["classification"] for record in metrics(run(config_of(values)))[:-1]
    ]
    assert weights == pytest.approx([weights[0]] * len(weights), abs=1e-6)


def test_a_log_line_says_losses_weights_lr_speed_and_time_left(finished: Path) -> None:
    text = (finished / "train.log").read_text()
    number = r"[\d.e+-]+"
    assert re.search(
        rf"epoch 1/2 step 1: loss {number} \(classification {number} x 1, bbox_regression {number}"
        rf" x 1\), lr {number}, {number} images/s, \d:\d\d:\d\d left",
        text,
    )


def test_the_log_names_the_classes_in_the_order_of_their_labels(finished: Path) -> None:
    classes = load_checkpoint(finished / "last.pt")["classes"]
    assert f"classes: {', '.join(classes)}\n" in (finished / "train.log").read_text()


def test_the_log_tells_the_scores_of_every_evaluation(finished: Path) -> None:
    told = re.findall(
        r"epoch (\d+) scored: val/voc_mAP ([\d.]+)", (finished / "train.log").read_text()
    )
    evaluations = [record for record in metrics(finished) if record["kind"] == "evaluation"]
    assert [(int(epoch), float(score)) for epoch, score in told] == [
        (record["epoch"], pytest.approx(record["scores"]["voc"]["area"]["mAP"], abs=5e-5))
        for record in evaluations
    ]
    assert evaluations


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"lr": 1e30, "warmup_iterations": 0, "checkpoint_every": 1})
    with pytest.raises(DivergenceError) as error:
        run(config_of(values))
    message = str(error.value)
    for part in ("step ", "not finite", "files: ", ".jpg", "lr ", "loss weights: classification"):
        assert part in message
    last_step = metrics(tmp_path / "run")[-1]["step"]
    assert f"step {last_step}," in message  # the step after it is the one that failed
    assert load_checkpoint(tmp_path / "run" / "last.pt")["progress"]["step"] == last_step


@pytest.mark.parametrize(("interval", "level", "windows"), [(3, "INFO", 3), (11, "WARNING", 0)])
def test_how_often_alwa_can_act_is_told(
    tmp_path: Path,
    interval: int,
    level: str,
    windows: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    config = config_of(tiny(tmp_path, loss={"weighting": {"interval": interval}}))
    build_state(config, ("a",), 5, ALONE)
    (record,) = [each for each in caplog.records if "can set its weights" in each.message]
    assert record.levelname == level
    assert f"after each of {windows} windows (10 iterations, interval {interval})" in record.message


@pytest.mark.parametrize("every", [0, 1])
def test_weights_that_are_no_numbers_after_the_last_update_are_not_saved(
    tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their losses were finite, and none comes after them in this epoch that would tell."""
    values = tiny(tmp_path, train={"checkpoint_every": every, "pictures": 0})
    step = TrainStep.__call__

    def spoil(train_step: TrainStep, batches: Sequence[Batch]) -> Iteration:
        iteration = step(train_step, batches)
        if train_step.state.progress.step == 10:
            next(train_step.state.detector.parameters()).data[0] = torch.nan
        return iteration

    monkeypatch.setattr(TrainStep, "__call__", spoil)
    with pytest.raises(
        DivergenceError, match="step 10: the weights are not finite after it, although"
    ):
        run(config_of(values))
    saved = load_checkpoint(tmp_path / "run/last.pt")
    assert saved["progress"]["step"] == (9 if every else 5)
    assert all(value.isfinite().all() for value in saved["detector"].values())


def test_two_accumulated_batches_are_one_batch_of_twice_the_size(tmp_path: Path) -> None:
    frozen = {
        "weights": str(backbone_file(tmp_path)),
        "norm": "frozen",
        "trainable_stages": 3,
    }
    common = {"detector": frozen, "loss": {"normalizer": "image"}}
    accumulated = tiny(tmp_path, **common, train={"accumulate": 2, "name": "accumulated"})
    accumulated["data"]["augment"] = []
    at_once = tiny(tmp_path, **common, data={"batch_size": 4, "augment": []})
    for values in (accumulated, at_once):
        # One iteration an epoch: both runs see the same four images in it, in whatever order.
        values["data"]["shapes"] = {**values["data"]["shapes"], "train_images": 4}
        values["train"]["epochs"] = 3
    one = metrics(run(config_of(accumulated)))
    other = metrics(run(config_of(at_once)))
    losses = [[line["loss"] for line in run if line["kind"] == "train"] for run in (one, other)]
    assert len(losses[0]) == len(losses[1]) == 3
    for before, after in zip(*losses, strict=True):
        for name, value in before.items():
            assert math.isclose(value, after[name], rel_tol=1e-4)
