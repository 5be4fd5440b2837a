"""tune.py: the rate is where the loss falls fastest, the batch the largest that fits."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import resource
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import random_case
from torch import nn

from data.errors import InputError
from data.sampling import aspect_groups
from detector.build import build_detector
from detector.fast.cuda_graphs import CUDAGraphs
from engine.build import build_state
from engine.config import load_config, parse_config
from engine.ema import AveragedWeights
from engine.process.distributed import Ranks
from engine.state import TrainState
from losses.gradnorm import GradNorm
from scripts.tune import main
from scripts.tuning.batch_size import (
    GIB,
    Trial,
    full_batch,
    largest_batch,
    peak_gib,
    release_memory,
    train_on,
    warm_ups,
)
from scripts.tuning.learning_rate import (
    centered_mean,
    choose,
    range_test,
    running_mean,
)

CONFIG = """
detector: {type: retinanet, backbone: resnet18, weights: none, trainable_stages: 5, norm: batch,
           fpn_channels: 16, levels: [3, 4, 5], retinanet: {tower_depth: 1}}
data: {format: shapes, shapes: {train_images: 16, val_images: 2, image_size: [64, 64]},
       image_size: [64, 64], batch_size: 2, workers: 0}
train: {device: cpu, optimizer: adamw}
"""


def config_file(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(CONFIG.replace("data: {", f"data: {{root: {folder / 'shapes'}, "))
    return path


def linear(limit: int) -> tuple[list[int], list[Trial]]:
    """The batches tried where up to ``limit`` fit, at 1 GiB + 0.5 GiB an image."""
    tried: list[int] = []

    def attempt(batch: int) -> Trial:
        tried.append(batch)
        return Trial(batch, 1 + batch / 2, 1.0)

    return tried, largest_batch(attempt, 1 + limit / 2, lambda _: None)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 8, 13, 16])
def test_the_largest_batch_is_found(limit: int) -> None:
    _, trials = linear(limit)
    assert max(trial.batch for trial in trials if trial.gib is not None) == limit


def test_a_batch_far_beyond_the_memory_is_never_tried() -> None:
    tried, trials = linear(21)
    assert max(tried) <= 21
    assert 32 in [trial.batch for trial in trials if trial.gib is None]
    _, nothing = linear(0)
    assert [trial.gib for trial in nothing] == [None]


@pytest.mark.parametrize(
    ("sides", "short"), [([], 40), ([32, 56], 56), ([16, 24], 24)], ids=["one", "larger", "smaller"]
)
def test_a_full_batch_is_the_largest_of_training(sides: list[int], short: int) -> None:
    """Of one aspect group, as its loader makes them, at the largest short side that it draws."""
    _, annotations = random_case(0)
    data = {"image_size": [40, 60], "multi_scale": {"short_sides": sides}}
    batch = full_batch(parse_config({"data": data}, "test"), annotations, 3)
    assert [tuple(image.shape) for image in batch.images] == [(3, short, 60)] * 3
    sizes = np.array([image.shape[1:] for image in batch.images], dtype=np.int32)
    assert len(set(aspect_groups(sizes).tolist())) == 1
    assert set(batch.targets.counts) == {int(np.diff(annotations.offsets).max())}
    assert (batch.targets.boxes[..., 2:] > batch.targets.boxes[..., :2]).all()
    assert batch.targets.boxes[0, :, 2].max() <= 60


def test_the_rate_is_where_the_loss_falls_fastest() -> None:
    rates = np.logspace(-5, 0, 101)
    # a fall around 1e-3, a rise from 1e-1 on
    losses = 2 - 1 / (1 + np.exp(-6 * (np.log10(rates) + 3))) + 10 * np.maximum(rates - 0.1, 0)
    suggested, largest = choose(rates.tolist(), losses.tolist())
    assert 10**-3.3 < suggested < 10**-2.7
    assert 0.03 < largest <= 0.11


def test_no_rate_is_suggested_where_the_loss_never_fell() -> None:
    rates = np.logspace(-1, 1, 40)
    with pytest.raises(InputError, match=r"the loss only rose from train\.lr=0\.1; .* --lowest"):
        choose(rates.tolist(), centered_mean((1 + rates).tolist()))


def test_a_trial_leaves_no_detector_behind(tmp_path: Path) -> None:
    """PyTorch's recorded passes may hold their detector: counting references frees neither."""
    config = load_config(config_file(tmp_path))
    detector = build_detector(config.detector, config.loss, 3)
    detector.__dict__["recorded"] = [detector]
    left = weakref.ref(detector)
    gc.disable()
    try:
        del detector
        assert left() is not None
        release_memory()
        assert left() is None
    finally:
        gc.enable()


def test_the_recording_of_passes_is_not_timed() -> None:
    """The last iteration that warms up is the one in which a pass is recorded."""
    records: list[int] = []
    graphs = CUDAGraphs(nn.Identity(), lambda value: (value,))
    graphs._memory = "none"
    before = warm_ups(torch.device("cuda"))
    for iteration in range(before + 2):
        graphs._find("shape", lambda now=iteration: records.append(now) or print)
    assert records == [before - 1]
    assert warm_ups(torch.device("cpu")) == 1


@pytest.mark.parametrize("iterations", [30, 100, 300])
@pytest.mark.parametrize("steepness", [3, 6, 12])
def test_smoothing_moves_the_suggestion_nowhere(iterations: int, steepness: int) -> None:
    """As a running mean would: to twice the rate."""
    rates = np.logspace(-6, 0, iterations)
    fall = 2 - 1 / (1 + np.exp(-steepness * (np.log10(rates) + 3)))
    places = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.05, iterations)
        smoothed = centered_mean((fall + 10 * np.maximum(rates - 0.1, 0) + noise).tolist())
        places.append(np.log10(choose(rates.tolist(), smoothed)[0]))
    step = 6 / (iterations - 1)
    assert np.mean(places) == pytest.approx(-3, abs=0.1 + step / 2)


def test_a_loss_that_explodes_does_not_hide_how_low_it_was() -> None:
    rates = np.logspace(-6, 0, 100)
    losses = 5 - 4 / (1 + np.exp(-6 * (np.log10(rates) + 3)))
    losses[80:] = 1000
    suggested, largest = choose(rates.tolist(), centered_mean(losses.tolist()))
    assert suggested == pytest.approx(1e-3, rel=0.15)
    assert largest == rates[79]


def test_the_mean_of_a_constant_is_it() -> None:
    assert running_mean([3.0] * 30) == centered_mean([3.0] * 30) == [3.0] * 30


def test_the_range_test_trains_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "lr.png"
    command = ["lr", "--config", str(config_file(tmp_path)), "--iterations", "15", "--json"]
    assert main([*command, "--output", str(picture), "--lowest", "1e-5", "--highest", "1e-3"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rates"][0] == pytest.approx(1e-5)
    assert result["rates"][-1] == pytest.approx(1e-3)
    assert len(result["losses"]) == 15
    assert 1e-5 <= result["suggested"] <= result["largest"] <= 1e-3 * 1.001
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_range_test_keeps_what_is_frozen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[TrainState] = []

    def remember(*arguments: Any) -> TrainState:
        states.append(build_state(*arguments))
        return states[-1]

    monkeypatch.setattr("scripts.tuning.learning_rate.build_state", remember)
    config = load_config(config_file(tmp_path), ["train.freeze={backbone.body: [0, 1]}"])
    alone = Ranks(0, 1, torch.device("cpu"))
    range_test(config, alone, 1e-4, 1e-2, 10, show=False)
    after = states[0].detector.state_dict()
    remember(config, ("circle", "square", "triangle"), 1, alone)
    before = states[1].detector.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("backbone.body.")]


def test_numbers_are_told_before_the_picture_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("no folder")
    command = ["lr", "--config", str(config_file(tmp_path)), "--iterations", "10"]
    assert main([*command, "--output", str(tmp_path / "file/lr.png")]) == 2
    told = capsys.readouterr()
    assert "try train.lr=" in told.out
    assert "cannot be written" in told.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lowest", "2"], "--lowest must be above 0 and below --highest"),
        (["--iterations", "5"], "--iterations: 5 is too few; use at least 10"),
        (["--output", "lr.xyz"], "lr.xyz: .xyz is not an image format"),
    ],
)
def test_what_cannot_be_tested_is_refused_before_it_trains(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("scripts.tune.range_test", None)
    assert main(["lr", "--config", str(config_file(tmp_path)), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_picture_without_matplotlib_is_refused_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr("scripts.tune.range_test", None)
    assert main(["lr", "--config", str(config_file(tmp_path))]) == 2
    assert "figures need matplotlib" in capsys.readouterr().err


def test_a_trial_does_not_count_what_its_parent_took() -> None:
    np.ones(1 << 29, dtype=np.uint8)  # half a GiB, given back at once
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        assert 0 < processes.apply(peak_gib) < own - 0.25


def test_a_trial_averages_weights_where_training_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin takes memory, following it takes time."""
    followed: list[int] = []
    monkeypatch.setattr(AveragedWeights, "follow", lambda *rest: followed.append(rest[-1]))
    _, annotations = random_case(0)
    for overrides, expected in (([], []), (["train.ema=0.9"], [0, 1, 2])):
        config = load_config(config_file(tmp_path), overrides)
        batch = full_batch(config, annotations, 1)
        train_on(config, batch, annotations.classes, torch.device("cpu"))
        assert followed == expected


def test_a_trial_makes_the_iterations_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """GradNorm takes further gradients, which take memory; a file of weights is not needed."""
    called: list[Sequence[torch.Tensor]] = []
    observe = GradNorm.observe

    def follow(weighting: GradNorm, losses: Sequence[torch.Tensor]) -> None:
        called.append(losses)
        observe(weighting, losses)

    monkeypatch.setattr(GradNorm, "observe", follow)
    _, annotations = random_case(0)
    words = ["loss.weighting.type=gradnorm", "detector.weights=/not/here.pth"]
    words += ["detector.norm=frozen_stats", "detector.trainable_stages=3"]
    config = load_config(config_file(tmp_path), words)
    batch = full_batch(config, annotations, 1)
    assert train_on(config, batch, annotations.classes, torch.device("cpu")) > 0
    assert len(called) == 3
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


@pytest.mark.slow
def test_batches_are_tried_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["batch", "--config", str(config_file(tmp_path)), "--memory", "0.001", "--json"]
    assert main(command) == 1  # a process that has imported torch is larger
    result = json.loads(capsys.readouterr().out)
    assert (result["largest"], [trial["batch"] for trial in result["trials"]]) == (None, [1])
