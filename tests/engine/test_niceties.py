"""What a run may have beside the plain loop: off by default, exactly resumable where it moves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    ALONE,
    StopAfter,
    backbone_file,
    call,
    check_resumes_exactly,
    config_of,
    differences,
    metrics,
    run,
    tiny,
    write_config,
)
from torch import nn

from data.build import build_annotations
from data.errors import InputError
from data.target import Batch
from detector.rcnn import MaskRCNN
from engine.build import build_state
from engine.checkpoint import load_checkpoint
from engine.config import Config
from engine.evaluation.flip_tta import FlipTTA
from engine.evaluation.validation import build_validation
from engine.process.signals import StopRequest
from engine.resume import check_resume
from engine.state import Progress
from engine.train_step import Iteration, TrainStep

EVERYTHING: dict[str, dict[str, Any]] = {
    "data": {
        "multi_scale": {"short_sides": [48, 56, 64]},
        "sampling": {"type": "repeat_factor", "threshold": 0.9},
        "cache": "memory",
    },
    "train": {"ema": 0.9, "freeze": {"backbone.body": [0, 1]}, "schedule": "cosine"},
    "evaluate": {"flip": True},
}


def test_everything_is_off_by_default() -> None:
    config = Config()
    assert (config.train.ema, config.train.patience, config.train.freeze) == (None, None, {})
    assert (config.data.cache, config.data.sampling.type) == ("none", "uniform")
    assert config.data.multi_scale.short_sides == config.train.trackers == ()
    assert not config.evaluate.flip


def test_a_resumed_run_with_everything_is_bit_equal(tmp_path: Path) -> None:
    # in the epoch whose end unfreezes the backbone
    check_resumes_exactly(tiny(tmp_path, **EVERYTHING), stop_at=3)


def test_the_average_is_what_is_scored_and_kept(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"ema": 0.5})
    averaged = run(config_of(values))
    values["train"] |= {"ema": None, "name": "plain"}
    plain = run(config_of(values))
    one, other = load_checkpoint(averaged / "last.pt"), load_checkpoint(plain / "last.pt")
    assert "trained_detector" not in other
    # An average does not touch the training ...
    assert differences(one["trained_detector"], other["detector"]) == []
    # ... and differs from what is trained.
    assert differences(one["detector"], other["detector"])
    scores = [
        [line["scores"] for line in metrics(folder) if line["kind"] == "evaluation"]
        for folder in (averaged, plain)
    ]
    assert scores[0] != scores[1]


def test_frozen_weights_rest_for_their_epochs_alone(tmp_path: Path) -> None:
    detector = {"weights": str(backbone_file(tmp_path))}

    def body(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in weights.items() if "backbone.body" in name}

    def trained(epochs: int) -> dict[str, torch.Tensor]:
        freeze = {"backbone.body": [0, 1]}
        train = {"epochs": epochs, "freeze": freeze, "name": f"{epochs}_epochs", "pictures": 0}
        weights: dict[str, torch.Tensor]
        folder = run(config_of(tiny(tmp_path, detector=detector, train=train)))
        weights = load_checkpoint(folder / "last.pt")["detector"]
        return weights

    classes = ("circle", "square", "triangle")
    config = config_of(tiny(tmp_path, detector=detector))
    start = build_state(config, classes, 1, ALONE).detector.state_dict()
    one, two = trained(1), trained(2)
    assert differences(body(one), body(start)) == []
    assert differences(one, start)
    assert len(differences(body(two), body(start))) > 50


def test_training_ends_where_no_better_score_comes(tmp_path: Path) -> None:
    # With a learning rate of nearly nothing no score changes: the first epoch stays the best.
    train = {"epochs": 9, "patience": 2, "lr": 1e-12, "pictures": 0}
    folder = run(config_of(tiny(tmp_path, train=train)))
    progress = load_checkpoint(folder / "last.pt")["progress"]
    assert (progress["epoch"], progress["best_epoch"]) == (3, 1)
    assert "no better voc_mAP since epoch 1: training ends" in (folder / "train.log").read_text()
    before = metrics(folder)
    run(config_of(tiny(tmp_path, train=train)), resume=True)
    assert metrics(folder) == before


def test_patience_is_counted_where_there_is_a_score() -> None:
    progress = Progress(evaluated=3, best_score=0.5, best_epoch=2)
    assert not progress.waited(1, evaluate_every=2)
    progress.evaluated = 4
    assert progress.waited(2, evaluate_every=2)
    assert not progress.waited(3, evaluate_every=2)


def test_the_last_windows_of_a_run_that_patience_ends_stand_in_its_last_line(
    tmp_path: Path,
) -> None:
    train = {"epochs": 9, "patience": 1, "lr": 1e-12, "pictures": 0, "log_every": 6}
    weighting = {"weighting": {"interval": 4}}
    values = tiny(tmp_path, train=train, loss=weighting)
    folder = run(config_of(values))
    before = (folder / "metrics.jsonl").read_bytes()
    *_, end = metrics(folder)
    assert (end["kind"], end["step"], end["epoch"], end["last_of"]) == ("train", 10, 1, 2)
    assert [window["step"] for window in end["windows"]] == [8]
    run(config_of(values), resume=True)  # which trains nothing
    assert (folder / "metrics.jsonl").read_bytes() == before
    values["train"]["name"] = "stopped in its last iteration"
    run(config_of(values), StopAfter(10))
    assert metrics(run(config_of(values), resume=True)) == metrics(folder)
    values["train"] |= {"name": "of fewer epochs", "patience": None}
    run(config_of(values), StopAfter(10))
    values["train"]["epochs"] = 2
    assert {"last_of": 2, "step": 10}.items() <= metrics(run(config_of(values), resume=True))[
        -1
    ].items()
    values["train"] |= {"name": "without lines before", "log_every": 100}
    told = [(line["kind"], line["step"]) for line in metrics(run(config_of(values)))]
    assert told == [("evaluation", 5), ("train", 10), ("evaluation", 10)]
    values["train"] |= {"name": "run", "patience": 2, "epochs": 9, "log_every": 6}
    run(config_of(values), resume=True)
    longer = metrics(folder)
    values["train"]["name"] = "at_once"
    assert longer == metrics(run(config_of(values)))


def test_a_run_that_was_killed_and_then_has_nothing_to_train_gets_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"epochs": 3, "pictures": 0, "log_every": 7}
    values = tiny(tmp_path, train=train, loss={"weighting": {"interval": 4}})
    step = TrainStep.__call__

    def be_killed(train_step: TrainStep, batches: Sequence[Batch]) -> Iteration:
        if train_step.state.progress.step == 8:
            raise RuntimeError("killed")
        return step(train_step, batches)

    with monkeypatch.context() as patched:
        patched.setattr(TrainStep, "__call__", be_killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(config_of(values))
    assert [line["step"] for line in metrics(tmp_path / "run")] == [5, 7]  # scores, then a line
    values["train"]["epochs"] = 1
    *_, end = metrics(run(config_of(values), resume=True))
    assert {"kind": "train", "step": 5, "last_of": 1}.items() <= end.items()
    assert [window["step"] for window in end["windows"]] == [4]
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    run(config_of(values), resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    values["train"]["epochs"] = 3
    longer = metrics(run(config_of(values), resume=True))
    values["train"]["name"] = "at_once"
    assert longer == metrics(run(config_of(values)))


def test_without_objects_to_score_against_the_newest_epoch_is_the_best_and_all_are_trained(
    tmp_path: Path,
) -> None:
    config = config_of(tiny(tmp_path, train={"epochs": 3, "patience": 1, "pictures": 0}))
    path = Path(build_annotations(config.data, "val").source)
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    folder = run(config)
    last, best = (load_checkpoint(folder / name) for name in ("last.pt", "best.pt"))
    assert (last["progress"]["epoch"], last["progress"]["best_epoch"]) == (3, 3)
    assert differences(last["detector"], best["detector"]) == []
    assert (folder / "train.log").read_text().count("has no objects to score") == 1


def test_a_flip_makes_the_detector_of_every_scoring_look_twice(tmp_path: Path) -> None:
    detector = nn.Identity()
    for flip in (False, True):
        values = tiny(tmp_path, evaluate={"flip": flip}, detector={"nms_threshold": 0.3})
        config = config_of(values)
        annotations = build_annotations(config.data, "val")
        view = build_validation(config, annotations, ALONE, StopRequest()).view(detector)
        assert isinstance(view, FlipTTA) == flip
        if isinstance(view, FlipTTA):
            assert (view.nms_threshold, view.most) == (0.3, 100)
            assert view.detector is detector


def test_a_frozen_part_that_gradnorm_reads_is_refused(tmp_path: Path) -> None:
    weighting = {"weighting": {"type": "gradnorm"}}
    with pytest.raises(InputError, match="gradnorm reads gradients"):
        config_of(tiny(tmp_path, loss=weighting, train={"freeze": {"backbone": [0, 1]}}))


def test_gradnorm_under_fp16_is_refused(tmp_path: Path) -> None:
    weighting = {"weighting": {"type": "gradnorm"}}
    with pytest.raises(InputError, match="which underflow in fp16"):
        config_of(tiny(tmp_path, loss=weighting, train={"amp": "fp16"}))


@pytest.mark.parametrize("rule", ["gradnorm", "alwa"])
def test_under_gradnorm_no_pass_is_recorded(rule: str, tmp_path: Path) -> None:
    """It differentiates each loss, and a recorded backward pass runs once."""
    config = config_of(tiny(tmp_path, "mask_rcnn", loss={"weighting": {"type": rule}}))
    detector = build_state(config, ("circle", "square", "triangle"), 1, ALONE).detector
    assert isinstance(detector, MaskRCNN)
    recorded = [detector.graphs is not None, detector.mask_graphs is not None]
    assert recorded == [rule != "gradnorm"] * 2


def test_a_checkpoint_from_before_a_key_had_its_default(tmp_path: Path) -> None:
    config = config_of(tiny(tmp_path))
    values = config.model_dump(mode="json")
    del values["data"]["multi_scale"], values["train"]["ema"]
    saved = {"config": values, "classes": ["a"], "global_batch": 2}
    check_resume(saved, config, world_size=1)
    with pytest.raises(InputError, match=r"train\.ema: None -> 0\.9"):
        check_resume(saved, config_of(tiny(tmp_path, train={"ema": 0.9})), world_size=1)


@pytest.mark.slow
def test_two_ranks_with_everything_train_as_one(tmp_path: Path) -> None:
    def values(name: str, batch_size: int) -> dict[str, Any]:
        blocks = {
            **EVERYTHING,
            "data": {**EVERYTHING["data"], "batch_size": batch_size},
            "train": {**EVERYTHING["train"], "name": name},
            "detector": {
                "weights": str(backbone_file(tmp_path)),
                "norm": "frozen",
                "trainable_stages": 3,
            },
            "loss": {"normalizer": "image"},
        }
        return tiny(tmp_path, **blocks)

    run(config_of(values("alone", 4)))
    both = call("train.py", "--config", write_config(tmp_path, values("both", 2)), ranks=2)
    assert both.returncode == 0, both.stderr
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("alone", "both"))
    for part in ("detector", "trained_detector"):
        for name, tensor in one[part].items():
            torch.testing.assert_close(two[part][name], tensor, rtol=1e-5, atol=1e-5)
