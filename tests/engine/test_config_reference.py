"""The reference, the help and the schema follow from the config models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from engine.config import Config, parse_config
from engine.config_reference import config_schema, help_text, keys

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "studies"
)
SCHEMA = config_schema()


def accepts(values: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(values))


def test_the_written_files_are_up_to_date() -> None:
    script = ROOT / "scripts" / "config_reference.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_the_schema_accepts_every_config_file(path: Path) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "base: [a.yaml, b.yaml]",
        "data: {augment: [HorizontalFlip, {RandomGamma: null}, {Blur: {p: 0.1}}]}",
        "data: {augment: null, classes: null}",
        "detector: {anchors: {sizes: [16, [32, 40], 64]}}",
        "train: {freeze: {backbone: [0, 2]}, trackers: [mlflow]}",
        json.dumps(Config().model_dump(mode="json")),
    ],
)
def test_the_schema_accepts_what_is_read(text: str) -> None:
    assert accepts(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "train: {epoch: 3}",
        "train: {epochs: 0}",
        "loss: {box: {type: iou}}",
        "data: {root: 3}",
        "a: 1",
    ],
)
def test_the_schema_refuses_what_is_refused(text: str) -> None:
    assert not accepts(yaml.safe_load(text))


def test_every_key_is_listed_once_with_its_default() -> None:
    listed = {key.name: key.default for key in keys()}
    values = Config().flat()
    # a default that is an empty mapping stays a key of its own
    assert listed.keys() == values.keys()
    assert len(listed) == len(keys())
    assert listed["train.lr"] == "0.01"
    assert listed["loss.box.type"] == "l1"


def test_the_help_names_every_key_with_its_meaning() -> None:
    text = " ".join(help_text().split())
    for key in keys():
        assert f"{key.name} = {key.default}" in text
        assert " ".join(key.meaning.split()) in text


@pytest.mark.parametrize("kind", ["voc", "coco", "shapes"])
def test_places_that_depend_on_the_format_are_told_for_each(kind: str) -> None:
    meanings = {key.name: key.meaning for key in keys()}
    data = parse_config({"data": {"format": kind}}, "test").data
    for name in ("root", "train", "val"):
        assert f"{kind} {getattr(data, name)}" in meanings[f"data.{name}"]


@pytest.mark.parametrize("kind", ["retinanet", "faster_rcnn"])
@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v3_large"])
def test_the_levels_of_every_detector_are_told(kind: str, backbone: str) -> None:
    detector = parse_config({"detector": {"type": kind, "backbone": backbone}}, "test").detector
    meanings = {key.name: key.meaning for key in keys()}
    assert str(list(detector.pyramid_levels)) in meanings["detector.levels"]
