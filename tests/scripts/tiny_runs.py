"""Tiny data, detections and checkpoints for the tests of the scripts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets_on_disk import voc_object, write_voc

from data.annotations import Annotations
from detector.build import build_detector
from engine.checkpoint import save_checkpoint
from engine.config import parse_config
from engine.evaluation.detections import Detections, make_detections
from engine.predictor import unannotated
from engine.trained import Trained

CLASSES = ("cat", "dog", "ox")


def with_objects(boxes: Any, labels: Any, counts: list[int], crowd: Any = None) -> Annotations:
    """Images of 100 x 100 pixels with so many objects each."""
    config = parse_config({}, "test")
    trained = Trained(config, CLASSES, None, torch.device("cpu"))  # type: ignore[arg-type]
    names = [f"i{number}" for number in range(len(counts))]
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return replace(
        unannotated(names, [(100, 100)] * len(counts), trained.classes),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes,
        labels=np.asarray(labels, dtype=np.int32),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        difficult=np.zeros(len(boxes), dtype=np.bool_),
        crowd=np.zeros(len(boxes), dtype=np.bool_) if crowd is None else np.asarray(crowd),
    )


def random_boxes(generator: np.random.Generator, count: int) -> Any:
    corner = generator.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + generator.uniform(8, 40, (count, 2))], axis=1)


def random_case(seed: int, images: int = 12) -> tuple[Detections, Annotations]:
    """Objects, and detections that are near some of them, or not, or of another class."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 6, images).tolist()
    total = sum(counts)
    annotations = with_objects(
        random_boxes(generator, total), generator.permutation(np.arange(total) % 3), counts
    )
    rows = annotations.object_images()
    again = generator.integers(0, total, 3 * total)
    boxes = annotations.boxes[again] + generator.normal(0, 4, (len(again), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    stray = random_boxes(generator, total)
    labels = np.where(
        generator.random(len(again)) < 0.2,
        generator.integers(0, 3, len(again)),
        annotations.labels[again],
    )
    return (
        make_detections(
            np.concatenate([rows[again], generator.integers(0, images, total)]),
            np.concatenate([labels, generator.integers(0, 3, total)]),
            generator.permutation(4 * total) / (4 * total),
            np.concatenate([boxes, stray]),
        ),
        annotations,
    )


def write_data(folder: Path) -> Path:
    """A VOC dataset of four images, with a split of two for each role."""
    images = {
        f"i{number}": [
            voc_object(CLASSES[number % 3], (5, 5, 40 + number, 50)),
            voc_object(CLASSES[(number + 1) % 3], (50, 20, 90, 70)),
        ]
        for number in range(4)
    }
    return write_voc(folder / "voc", images, {"trainval": ["i0", "i1"], "test": ["i2", "i3"]})


def write_checkpoint(
    folder: Path, kind: str = "retinanet", root: Path | None = None, norm: str = "batch"
) -> Path:
    """A detector with random weights that is unsure of everything and finds much."""
    values = {
        "detector": {
            "type": kind,
            "backbone": "resnet18",
            "weights": "none",
            "trainable_stages": 5,
            "norm": norm,
            "fpn_channels": 16,
            "levels": [3, 4, 5],
            "score_threshold": 0.005,
            "detections_per_image": 20,
            "retinanet": {"tower_depth": 1},
            "rpn": {"post_nms_top_n_test": 40},
            "roi": {"representation_size": 32},
            "mask": {"channels": [8], "predictor_channels": 8},
        },
        "data": {
            "format": "voc",
            "root": str(root or folder / "voc"),
            "classes": list(CLASSES),
            "image_size": [64, 96],
            "workers": 0,
        },
        "train": {"device": "cpu"},
    }
    config = parse_config(values, "test")
    torch.manual_seed(0)
    detector = build_detector(config.detector, config.loss, len(CLASSES))
    path = folder / "run" / "last.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {
        "detector": detector.state_dict(),
        "classes": list(CLASSES),
        "config": config.model_dump(mode="json"),
    }
    save_checkpoint(path, saved)
    return path
