"""Sizes far beyond the ordinary: they work, or the message says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from annotated import annotate
from runs import config_of, metrics, run, tiny

from data.annotations import Annotations
from engine.evaluation.detections import make_detections
from engine.evaluation.evaluator import read_detections, score

SIZES = {"point.png": (1, 1), "tower.png": (10_000, 30), "wall.png": (30, 10_000), "a.png": (9, 9)}


def write_coco(root: Path, classes: int = 3) -> None:
    """Images of extreme sizes (height, width), each with one object that fills it."""
    images, objects = [], []
    (root / "val").mkdir(parents=True)
    for number, (name, (height, width)) in enumerate(SIZES.items()):
        picture = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
        cv2.imwrite(str(root / "val" / name), picture)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        box = {"bbox": [0, 0, width, height], "category_id": number % classes}
        objects.append({"id": number, "image_id": number, **box})
    categories = [{"id": number, "name": f"class {number}"} for number in range(classes)]
    content = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations/instances_val.json").write_text(json.dumps(content))


def values_for(folder: Path, **data: Any) -> dict[str, Any]:
    root = {"format": "coco", "root": str(folder / "coco"), "train": "val", "val": "val"}
    small = {"min_image_side": 1, "drop_empty": False, "image_size": [64, 512], "batch_size": 4}
    return tiny(folder, data={**root, **small, **data}, train={"epochs": 2, "pictures": 4})


def test_images_of_one_pixel_and_of_ten_thousand_by_thirty_are_trained_on(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco")
    lines = metrics(run(config_of(values_for(tmp_path))))
    assert [line["kind"] for line in lines] == ["train", "train", "evaluation"] * 2
    assert lines[-1]["scores"]["images"] == len(SIZES)


@pytest.mark.slow
def test_five_thousand_classes_are_trained_and_scored(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", classes=5000)
    values = values_for(tmp_path, batch_size=2)
    values["train"]["lr"] = 1e-4  # the loss of so many classes diverges with more
    lines = metrics(run(config_of(values)))
    assert len(lines[-1]["scores"]["voc"]["area"]["AP"]) == 5000


@pytest.mark.parametrize("classes", [3, pytest.param(5000, marks=pytest.mark.slow)])
def test_forty_thousand_detections_in_an_image_are_scored(classes: int, tmp_path: Path) -> None:
    annotations = many_classes(classes)
    rng, count = np.random.default_rng(0), 40_000
    boxes = annotations.boxes[rng.integers(0, len(annotations.boxes), count)]
    labels = rng.integers(0, classes, count)
    detections = make_detections(np.zeros(count), labels, rng.random(count), boxes)
    scores = score(detections, annotations)
    assert 0 <= scores["voc"]["area"]["mAP"] <= 1
    entries = [
        {
            "image_id": int(annotations.image_ids[0]),
            "category_id": int(annotations.category_ids[label]),
            "score": 0.5,
            "bbox": [0, 0, 1, 1],
        }
        for label in labels.tolist()
    ]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    assert len(read_detections(tmp_path / "results.json", annotations)) == count


def many_classes(classes: int) -> Annotations:
    """An image with 100 objects of the first classes."""
    objects = [(0, number % 3, (number, 10, number + 15, 10 + number)) for number in range(1, 101)]
    return annotate(objects, classes=[f"class {number}" for number in range(classes)])
