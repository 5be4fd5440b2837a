"""The config and the anchors that inspect suggests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets_on_disk import (
    a_voc,
    coco_object,
    voc_object,
    write_coco,
    write_voc,
)
from inspecting import inspect
from torchvision.ops import box_iou

from data.build import build_annotations
from detector.build import build_detector
from detector.config import DetectorConfig
from engine.config import load_config
from losses.config import LossConfig
from scripts.dataset_tools.suggestions import SCALES, coverage
from scripts.datasets import main


def test_anchors_of_the_shape_of_the_boxes_cover_all_of_them() -> None:
    sides, ratios = np.array([16.0, 40.0]), np.array([1.0, 1.0])
    assert coverage(sides, ratios, [16.0, 32.0], (1.0,), SCALES) == 1
    assert coverage(sides, ratios, [16.0, 32.0], (1.0,), (1.0,)) == 0.5
    assert coverage(sides, ratios, [16.0], (1.0,), SCALES) == 0.5
    assert coverage(sides, ratios, [256.0], (1.0,), SCALES) == 0
    assert coverage(np.array([32.0]), np.array([4.0]), [32.0], (1.0,), SCALES) == 0
    assert coverage(np.array([32.0]), np.array([4.0]), [32.0], (4.0,), SCALES) == 1


@pytest.mark.parametrize("from_scratch", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_the_suggested_config_builds_its_detector_and_data(
    tmp_path: Path, masks: bool, from_scratch: bool
) -> None:
    outline = {"segmentation": [[5, 5, 25, 5, 25, 25]]} if masks else {}
    objects = [coco_object(n, n, [5, 5, side, 20], **outline) for n, side in ((1, 20), (2, 50))]
    root = write_coco(tmp_path / "coco", objects)
    write_coco(root, objects, split="val")
    path = tmp_path / "suggested.yaml"
    options = ["--from-scratch"] if from_scratch else []
    assert main(["inspect", str(root), "--write-config", str(path), *options]) == 0
    config = load_config(path)
    kind = "mask_rcnn" if masks and not from_scratch else "retinanet"
    assert (config.train.name, config.detector.type) == ("suggested", kind)
    assert (config.data.train, config.data.val) == ("train", "val")
    annotations = build_annotations(config.data, config.data.train)
    assert annotations.classes == ("cat", "dog")
    small = config.detector.model_copy(update={"backbone": "resnet18", "fpn_channels": 16})
    detector = build_detector(small, config.loss, len(annotations.classes))
    assert detector.num_classes == 2
    assert main(["inspect", str(root), "--write-config", str(path)]) == 2  # never overwritten


def test_mask_rcnn_is_suggested_where_nearly_all_trained_objects_have_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outline = {"segmentation": [[5, 5, 25, 5, 25, 25]]}
    crowd = coco_object(99, 1, [5, 5, 20, 20], iscrowd=1)
    for masks, kind in ((1, "retinanet"), (18, "retinanet"), (19, "mask_rcnn"), (20, "mask_rcnn")):
        objects = [
            coco_object(n, 1, [5, 5, 20, 20 + n], **(outline if n < masks else {}))
            for n in range(20)
        ]
        root = write_coco(tmp_path / str(masks), [*objects, crowd])
        write_coco(root, [coco_object(1, 1, [5, 5, 20, 20])], split="val")  # is not trained on
        assert inspect(root, capsys)["suggestion"]["detector"] == kind


def test_an_image_size_is_suggested_for_what_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [coco_object(n, n, [5, 5, 50, 50]) for n in (1, 2)]
    small = coco_object(3, 1, [60, 5, 8, 8])
    for flags, size in (
        ({}, [128, 160]),
        ({"difficult": 1}, [96, 128]),
        ({"iscrowd": 1}, [96, 128]),
    ):
        root = write_coco(tmp_path / f"{flags}", [*objects, {**small, **flags}])
        assert inspect(root, capsys)["suggestion"]["image_size"] == size


def write_large_boxes(root: Path, sizes_wh: list[tuple[float, float]], outlined: bool) -> Path:
    """Boxes in an image that is said to be of 800 x 1333 pixels, so that nothing resizes it."""
    outline = {"segmentation": [[5, 5, 25, 5, 25, 25]]} if outlined else {}
    boxes = [[5.0, 5.0, width, height] for width, height in sizes_wh]
    write_coco(root, [coco_object(n, 1, box, **outline) for n, box in enumerate(boxes, start=1)])
    file = root / "annotations/instances_train.json"
    file.write_text(
        file.read_text().replace('"height": 80, "width": 100', '"height": 800, "width": 1333')
    )
    return root


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_the_default_coverage_is_that_of_the_detectors_own_anchors(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    sides, roots = (
        np.exp(random.uniform(np.log(12), np.log(550), 2000)),
        random.uniform(0.7, 1.4, 2000),
    )
    sizes = np.stack([sides / roots, sides * roots], axis=1).round(1)
    root = write_large_boxes(tmp_path / "coco", sizes.tolist(), outlined=kind == "mask_rcnn")
    suggestion = inspect(root, capsys)["suggestion"]
    assert (suggestion["detector"], suggestion["image_size"]) == (kind, [800, 1333])
    config = DetectorConfig(type=kind, weights="none", backbone="resnet18", fpn_channels=16)
    detector = build_detector(config, LossConfig(), num_classes=1)
    generator = detector.anchor_generator if kind == "retinanet" else detector.rpn.anchor_generator
    cells = torch.cat(generator.cell_anchors)
    centered = torch.from_numpy(np.concatenate([-sizes / 2, sizes / 2], axis=1))
    covered = (box_iou(centered, cells.double()).amax(dim=1) >= 0.7).double().mean().item()
    assert suggestion["default_coverage"] == pytest.approx(covered, abs=0.005)


@pytest.mark.parametrize("options", [[], ["--from-scratch"]])
def test_the_written_anchors_cover_what_the_config_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    sides = np.geomspace(12, 790, 200).round(1)
    squares = [(side, side) for side in sides.tolist()]
    root = write_large_boxes(tmp_path / "coco", squares, outlined=True)
    path = tmp_path / "suggested.yaml"
    numbers = inspect(root, capsys, "--write-config", str(path), *options)
    detector = load_config(path).detector
    sizes, ratios = [size for (size,) in detector.anchors.sizes], tuple(detector.anchors.ratios)
    assert detector.type == ("retinanet" if options else "mask_rcnn")
    assert detector.levels[-1] == (7 if options else 6)
    covered = coverage(sides, np.ones_like(sides), sizes, ratios, SCALES)
    assert numbers["suggestion"]["coverage"] == covered
    assert f"anchors that cover {covered:.1%} of the boxes" in path.read_text()
    assert f"loss.weighting.variant={2 if options else 1}\n" in path.read_text()


def test_the_config_lists_a_class_all_of_whose_boxes_are_flat(tmp_path: Path) -> None:
    images = {
        "a": [voc_object("kept", (1, 1, 9, 9)), voc_object("flat", (5, 5, 5, 9))],
        "b": [voc_object("kept", (1, 1, 9, 9))],
    }
    root = write_voc(tmp_path / "voc", images, {"train": ["a"], "val": ["b"]})
    path = tmp_path / "flat.yaml"
    assert main(["inspect", str(root), "--write-config", str(path)]) == 0
    config = load_config(path).data
    assert config.classes == ("flat", "kept")
    assert build_annotations(config, config.train).classes == config.classes


def test_the_config_is_of_the_chosen_splits(tmp_path: Path) -> None:
    images = {name: [voc_object(name, (1, 1, 9, 9))] for name in ("ant", "bee", "asp", "fly")}
    lists = {
        "train": ["ant"],
        "val": ["bee"],
        "train_b": ["asp"],
        "val_b": ["fly"],
        "rest": ["ant"],
    }
    root = write_voc(tmp_path / "voc", images, lists)
    command = ["inspect", str(root), "--write-config"]
    for number, (splits, roles, classes) in enumerate(
        [
            (["train_b", "val_b"], ("train_b", "val_b"), ["asp", "fly"]),
            (["rest", "train_b", "val"], ("train_b", "val"), ["asp", "bee"]),
            (["val"], ("val", "val"), ["bee"]),
        ]
    ):
        path = tmp_path / f"{number}.yaml"
        assert main([*command, str(path), "--splits", *splits]) == 0
        config = load_config(path).data
        assert (config.train, config.val) == roles
        assert sorted(config.classes or ()) == classes


@pytest.mark.parametrize(
    ("names", "roles", "warnings"),
    [
        (["Test", "Train", "Val"], ("Train", "Val"), []),
        (["TRAINVAL", "TEST"], ("TRAINVAL", "TEST"), []),
        (["check", "fit", "test"], ("check", "test"), ["no split is named train, so 'check'"]),
        (
            ["train", "TrainVal"],
            ("train", "train"),
            ["'train' is used for both training and validation"],
        ),
        (["all"], ("all", "all"), ["no split is named train, so 'all'", "'all' is used for both"]),
    ],
)
def test_splits_are_chosen_by_names_in_any_case_and_what_was_guessed_is_said(
    names: list[str],
    roles: tuple[str, str],
    warnings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = {"a": [voc_object("dog", (1, 1, 9, 9))]}
    root = write_voc(tmp_path / "voc", images, {name: ["a"] for name in names})
    path = tmp_path / "config.yaml"
    assert main(["inspect", str(root), "--write-config", str(path)]) == 0
    out, err = capsys.readouterr()
    config = load_config(path).data
    assert (config.train, config.val) == roles
    assert f"train on {roles[0]}, validate on {roles[1]}\n" in out
    assert len(err.splitlines()) == len(warnings)
    for line, warning in zip(err.splitlines(), warnings, strict=True):
        assert line.startswith(f"datasets.py: warning: {warning}")


def test_a_zero_based_dataset_gets_a_config_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "suggested.yaml"
    command = ["inspect", str(a_voc(tmp_path)), "--zero-based", "--write-config", str(path)]
    assert main(command) == 0
    config = load_config(path)
    assert config.data.voc.coordinates == "zero_based"
    assert config.data.train == "train"
