"""What train.py answers without training."""

from __future__ import annotations

import logging
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from runs import ALONE, config_of, tiny, write_config
from torch import nn
from torchvision.models import get_model

import train
from data.errors import InputError
from detector.build import build_detector
from engine.config import load_config
from engine.config_reference import keys
from engine.dry_run import count_flops, dry_run
from engine.process.signals import StopRequest
from losses.config import LossConfig


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_a_dry_run_describes_the_model_and_writes_nothing(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = ["circle", "square", "star", "triangle"]
    config = config_of(tiny(tmp_path, kind, data={"classes": classes}, train={"ema": 0.9}))
    with caplog.at_level(logging.INFO):
        text = dry_run(config, ALONE, StopRequest())
    assert "one batch of 2 images: " in text
    assert "evaluation of 2 images: " in text
    assert f"{kind} on resnet18: " in text
    assert "GFLOP" in text
    assert "classes: circle, square, star, triangle" in caplog.messages
    assert "classes without training objects: star" in caplog.messages
    assert any(line.startswith("weights: none: random initialization") for line in caplog.messages)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_a_batch_larger_than_the_training_data_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(batch_size: int) -> list[str]:
        caplog.clear()
        dry_run(config_of(tiny(tmp_path, data={"batch_size": batch_size})), ALONE, StopRequest())
        return [line for line in caplog.messages if "repeats some" in line]

    assert warnings(10) == []
    (warning,) = warnings(11)
    assert "a batch of 11 images" in warning
    assert "the 10 images of data.train" in warning


def test_a_dry_run_freezes_what_rests_at_first(tmp_path: Path) -> None:
    def trained(freeze: dict[str, list[int]]) -> int:
        text = dry_run(config_of(tiny(tmp_path, train={"freeze": freeze})), ALONE, StopRequest())
        found = re.search(r"([\d,]+) of them trainable", text)
        assert found is not None
        return int(found[1].replace(",", ""))

    everything = trained({})
    assert 0 < trained({"backbone": [0, 1]}) < everything
    assert trained({"backbone": [1, 2]}) == everything


@pytest.mark.parametrize(
    ("detector", "keys_of_it"),
    [
        ({"norm": "sync"}, "detector.norm"),
        ({"norm": "sync", "fpn_norm": "sync"}, "detector.norm, detector.fpn_norm"),
        ({"retinanet": {"head_norm": "sync"}}, "detector.retinanet.head_norm"),
    ],
)
def test_a_norm_over_processes_is_refused_on_cpus_by_its_key(
    detector: dict[str, object], keys_of_it: str, tmp_path: Path
) -> None:
    config = config_of(tiny(tmp_path, detector=detector))
    with pytest.raises(InputError, match=f"^{re.escape(keys_of_it)}: sync cannot train"):
        dry_run(config, ALONE, StopRequest())


SHAPES = ("circle", "square", "triangle")


@pytest.mark.parametrize(
    ("source", "part", "epochs", "refused"),
    [
        ("none", "backbone.body", 3, True),
        ("none", "backbone.body", 2, False),
        ("network", "backbone.body", 3, False),
        ("network", "backbone", 3, True),  # the pyramid is random
        ("network", "head", 3, True),
        ("detector", "head", 3, False),
        ("detector", "backbone", 3, False),
        ("detector of another class", "head", 3, True),
        ("detector of another class", "backbone", 3, False),
    ],
)
def test_a_part_that_would_stay_random_throughout_is_refused(
    source: str, part: str, epochs: int, refused: bool, tmp_path: Path
) -> None:
    values = tiny(tmp_path, train={"epochs": 3, "freeze": {part: [0, epochs]}})
    if source == "network":
        torch.save(get_model("resnet18", weights=None).state_dict(), tmp_path / "file.pth")
    elif source != "none":
        detector = build_detector(config_of(values).detector, LossConfig(), len(SHAPES))
        classes = [*SHAPES[:2], "hexagon" if "another" in source else SHAPES[2]]
        saved = {"version": 1, "detector": detector.state_dict(), "classes": classes}
        torch.save(saved, tmp_path / "file.pth")
    values["detector"]["weights"] = "none" if source == "none" else str(tmp_path / "file.pth")
    message = rf"'{re.escape(part)}' would keep random weights \({re.escape(part)}\..* all 3 e"
    with pytest.raises(InputError, match=message) if refused else nullcontext():
        dry_run(config_of(values), ALONE, StopRequest())


@pytest.mark.parametrize(("start", "refused"), [(1, True), (2, False)])
def test_names_that_freeze_a_part_by_turns_are_seen_together(
    start: int, refused: bool, tmp_path: Path
) -> None:
    freeze = {"backbone": [0, 1], "backbone.body": [start, 3]}
    message = "'backbone' and 'backbone.body' would keep random weights"
    with pytest.raises(InputError, match=message) if refused else nullcontext():
        dry_run(
            config_of(tiny(tmp_path, train={"epochs": 3, "freeze": freeze})), ALONE, StopRequest()
        )


def test_flops_are_those_of_a_convolution() -> None:
    class Convolution(nn.Conv2d):
        def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
            return super().forward(images[0][None])

    detector = Convolution(3, 8, kernel_size=3, padding=1)
    # for each of 6 x 5 pixels and 8 channels a sum of 3 x 3 x 3 products
    assert count_flops(detector, torch.zeros(3, 6, 5)) == 2 * 6 * 5 * 8 * 27


def test_the_printed_config_is_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path, tiny(tmp_path))
    words = ["train.py", "--config", str(path), "--print-config", "train.epochs=7"]
    monkeypatch.setattr(sys, "argv", words)
    assert train.main() == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == load_config(path, ["train.epochs=7"])
    assert not (tmp_path / "run").exists()


def test_the_help_lists_every_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.parse_arguments()
    text = capsys.readouterr().out
    for key in keys():
        assert key.name in text
