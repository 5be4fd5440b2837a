"""Small real runs for the tests of the loop: a tiny detector on a few drawn pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml

import train
from engine.checkpoint import load_checkpoint
from engine.config import Config, parse_config
from engine.process.distributed import Ranks
from engine.process.signals import Stopped, StopRequest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
ALONE = Ranks(0, 1, torch.device("cpu"))


def tiny(folder: Path, kind: str = "retinanet", **blocks: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a config that trains in seconds; blocks are merged over it."""
    values: dict[str, dict[str, Any]] = {
        "detector": {
            "type": kind,
            "backbone": "resnet18",
            "weights": "none",
            "trainable_stages": 5,
            "norm": "batch",
            "fpn_channels": 16,
            "levels": [3, 4, 5],
            "anchors": {"sizes": [16, 32, 64]},
            "head_init": "width",
            "retinanet": {"tower_depth": 1},
            "roi": {"representation_size": 32},
            "mask": {"channels": [16], "predictor_channels": 16},
        },
        "loss": {"weighting": {"type": "alwa", "interval": 3}},
        "data": {
            "format": "shapes",
            "root": str(folder / "shapes"),
            "shapes": {"train_images": 10, "val_images": 3, "image_size": [64, 64]},
            "image_size": [64, 64],
            "batch_size": 2,
            "workers": 0,
        },
        "train": {
            "name": "run",
            "output": str(folder),
            "epochs": 2,
            "lr": 0.01,
            "warmup_iterations": 2,
            "log_every": 1,
            "pictures": 1,
            "device": "cpu",
        },
    }
    for block, keys in blocks.items():
        for key, value in keys.items():
            below = values.setdefault(block, {}).get(key)
            both = isinstance(below, dict) and isinstance(value, dict)
            values[block][key] = {**below, **value} if both else value
    return values


def config_of(values: dict[str, Any]) -> Config:
    return parse_config(values, "test")


def check_resumes_exactly(values: dict[str, Any], stop_at: int) -> Path:
    """Train twice, once stopped and resumed; nothing may differ. The folder of the undisturbed run.

    Args:
        values: of the config; the name in them changes.
        stop_at: the iteration in which a signal comes.
    """
    whole = run(config_of(values))
    values["train"]["name"] = "stopped"
    cut = run(config_of(values), StopAfter(stop_at))
    assert load_checkpoint(cut / "last.pt")["progress"]["step"] == stop_at
    run(config_of(values), resume=True)
    one, other = load_checkpoint(whole / "last.pt"), load_checkpoint(cut / "last.pt")
    assert differences(one, other) == ["/config/train/name"]
    assert metrics(whole) == metrics(cut)
    return whole


class StopAfter(StopRequest):
    """As if SIGTERM came during the given iteration."""

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.left = iterations

    @property
    def requested(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.signal_number = 15
        return super().requested


def run(
    config: Config,
    stop: StopRequest | None = None,
    resume: bool = False,
    allow_changed: bool = False,
) -> Path:
    """Train in this process on one rank; return the run's folder, also when it was stopped."""
    try:
        train.train(
            config,
            ALONE,
            stop or StopRequest(),
            resume=resume,
            allow_changed=allow_changed,
            requeue=False,
        )
    except Stopped:
        assert stop is not None
    return config.run_folder


def command(script: str, *arguments: object, ranks: int = 1) -> list[str]:
    launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    if ranks > 1:
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return [sys.executable, *launcher, str(ROOT / script), *map(str, arguments)]


def call(script: str, *arguments: object, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments, ranks=ranks),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_config(folder: Path, values: dict[str, Any], name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without the one number that a clock decides."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record.pop("images_per_second", None)
    return records


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two nested checkpoints are not bit-equal."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and torch.equal(one, other)
        return [] if same else [place]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys() | other.keys()
        return [
            found
            for key in sorted(keys, key=str)
            for found in differences(one.get(key), other.get(key), f"{place}/{key}")
        ]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [place]
        return [
            found
            for number, pair in enumerate(zip(one, other, strict=True))
            for found in differences(*pair, f"{place}/{number}")
        ]
    return [] if one == other else [place]


def backbone_file(folder: Path) -> Path:
    """Weights for frozen norms: those of a seeded random ResNet-18."""
    torch.manual_seed(0)
    path = folder / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path
