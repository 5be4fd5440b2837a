"""From a detector to scores, a table and a file: with a detector that finds bright rectangles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from annotated import annotate, random_annotations, random_detections, rle_masks
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from data.annotations import Annotations
from data.build import build_annotations
from data.config import DataConfig
from data.errors import InputError
from data.masks import MaskStore, empty_masks, encode_object
from data.target import Batch, pad_targets
from engine.evaluation.coco_results import write_coco_json
from engine.evaluation.comp4 import write_comp4
from engine.evaluation.detections import concatenate, make_detections
from engine.evaluation.evaluator import detect, read_detections, score
from engine.evaluation.scores import format_table, write_metrics

CPU = torch.device("cpu")
REAL_DATA = Path(__file__).parents[2] / "../shared/data"
BOXES = ((10.0, 20.0, 40.0, 60.0), (0.0, 0.0, 16.0, 8.0), (50.0, 2.0, 60.0, 90.0))


class RectangleDetector(nn.Module):
    """Finds the bright rectangle of an image, if there is one, with a full mask if asked to."""

    def __init__(self, masks: bool = False) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training
        assert not torch.is_grad_enabled()
        return [self.detect(image) for image in images]

    def detect(self, image: Tensor) -> dict[str, Tensor]:
        bright = (image[0] > 128).nonzero().float()
        count = min(len(bright), 1)
        boxes = torch.zeros((count, 4))
        if count:
            (top, left), (bottom, right) = bright.min(0).values, bright.max(0).values + 1
            boxes = torch.stack([left, top, right, bottom])[None]
        found = {
            "boxes": boxes,
            "labels": torch.zeros(count, dtype=torch.int64),
            "scores": torch.full((count,), 0.75),
        }
        return {**found, "masks": torch.ones((count, 1, 28, 28))} if self.masks else found


class Fixed(nn.Module):
    """Finds the same boxes in any one image."""

    def __init__(self, boxes: Tensor, **others: Tensor) -> None:
        super().__init__()
        labels, scores = torch.zeros(len(boxes), dtype=torch.int64), torch.ones(len(boxes))
        self.found = {"boxes": boxes, "labels": labels, "scores": scores, **others}

    def forward(self, _: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        return [self.found]


def bright_annotations(masks: MaskStore | None = None) -> Annotations:
    """Four images of 100 x 120, the last one dark."""
    objects = [(image, 0, box) for image, box in enumerate(BOXES)]
    return annotate(objects, images=4, masks=masks)


def batches(rows: Sequence[int], scale: int = 2, size: int = 2) -> list[Batch]:
    """The images, enlarged as a loader does, with their rectangles."""
    made = []
    for start in range(0, len(rows), size):
        part = tuple(rows[start : start + size])
        images = []
        for row in part:
            image = torch.zeros((3, 100 * scale, 120 * scale), dtype=torch.uint8)
            if row < len(BOXES):
                x1, y1, x2, y2 = (int(side) * scale for side in BOXES[row])
                image[:, y1:y2, x1:x2] = 255
            images.append(image)
        empty = [torch.zeros((0, 4))] * len(part), [torch.zeros(0, dtype=torch.int64)] * len(part)
        made.append(Batch(tuple(images), pad_targets(*empty), part))
    return made


# detect


@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_detections_are_in_original_pixels_however_the_loader_resized(amp: str) -> None:
    annotations = bright_annotations()
    for scale in (1, 2, 3):
        detections = detect(
            RectangleDetector(), batches([0, 1, 2, 3], scale), annotations, CPU, amp
        )
        np.testing.assert_allclose(detections.boxes, BOXES)
        assert detections.image.tolist() == [0, 1, 2]
        assert detections.score.tolist() == [0.75] * 3
        assert detections.seen.tolist() == [0, 1, 2, 3]
        assert detections.rles is None


def test_detections_end_at_the_borders_of_their_image() -> None:
    detector = Fixed(torch.tensor([[-1.0, -2, 121, 101], [105, 3, 118, 50]]))
    found = detect(detector, batches([0], scale=1), bright_annotations(), CPU)
    assert found.boxes.tolist() == [[0, 0, 120, 100], [105, 3, 118, 50]]


def test_masks_cover_the_boxes_in_the_original_image() -> None:
    annotations = bright_annotations()
    detections = detect(RectangleDetector(masks=True), batches([0, 1, 2, 3]), annotations, CPU)
    for box, rle in zip(BOXES, detections.rles, strict=True):
        mask = coco_mask.decode({"size": [100, 120], "counts": rle})
        x1, y1, x2, y2 = map(int, box)
        # torchvision's way of pasting moves a border by up to a pixel
        assert mask[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].all()
        mask[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = 0
        assert mask.sum() == 0


def test_masks_are_the_same_however_many_are_pasted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand((7, 2), generator=generator) * 60
    boxes = torch.cat([corner, corner + 30], dim=1)
    masks = torch.rand((7, 1, 28, 28), generator=generator)

    detector = Fixed(boxes, masks=masks)
    at_once = detect(detector, batches([0], scale=1), bright_annotations(), CPU)
    monkeypatch.setattr("engine.evaluation.evaluator.PIXELS_AT_ONCE", 2 * 100 * 120)
    assert detect(detector, batches([0], scale=1), bright_annotations(), CPU).rles == at_once.rles


@pytest.mark.parametrize("masks", [False, True])
def test_damaged_images_that_are_left_out_count_as_missed(masks: bool) -> None:
    annotations = bright_annotations(empty_masks(3) if masks else None)
    (whole,) = batches([0, 1, 3], size=3)
    partly = replace(whole, left_out=(2,))
    detections = detect(RectangleDetector(masks), [partly], annotations, CPU)
    assert sorted(detections.seen.tolist()) == [0, 1, 2, 3]
    assert (detections.rles is not None) is masks
    assert score(detections, annotations)["voc"]["area"]["AP"]["cat"] == pytest.approx(2 / 3)
    nothing = Batch((), pad_targets([], []), (), left_out=(0, 1, 2, 3))
    detections = detect(RectangleDetector(masks), [nothing], annotations, CPU)
    assert score(detections, annotations)["voc"]["area"]["mAP"] == 0


def test_a_rank_without_images_takes_nothing_from_the_others() -> None:
    annotations = bright_annotations()
    share = detect(RectangleDetector(), batches([0, 1, 2, 3]), annotations, CPU)
    nothing = detect(RectangleDetector(), [], annotations, CPU)
    together = concatenate([share, nothing])
    assert together.seen.tolist() == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="not evaluated exactly once"):
        score(nothing, annotations)


def test_the_detector_comes_back_in_the_mode_it_was_in() -> None:
    for training in (True, False):
        detector = RectangleDetector().train(training)
        detect(detector, batches([0]), bright_annotations(), CPU)
        assert detector.training is training


def test_two_ranks_find_what_one_rank_finds() -> None:
    annotations = bright_annotations()
    for masks in (False, True):
        detector = RectangleDetector(masks)
        alone = detect(detector, batches([0, 1, 2, 3]), annotations, CPU)
        shares = [detect(detector, batches(rows), annotations, CPU) for rows in ([3, 1], [2, 0])]
        together = concatenate(shares)
        assert score(together, annotations) == score(alone, annotations)
        assert together.rles == alone.rles


def test_a_rank_without_images_finds_nothing() -> None:
    assert len(detect(RectangleDetector(), [], bright_annotations(), CPU)) == 0


# score


def test_a_perfect_detector_scores_one() -> None:
    annotations = bright_annotations()
    detections = detect(RectangleDetector(), batches([0, 1, 2, 3]), annotations, CPU)
    scores = score(detections, annotations)
    assert scores["images"] == 4
    assert scores["voc"]["area"] == {"mAP": 1.0, "AP": {"cat": 1.0, "dog": None}}
    assert scores["coco"]["bbox"]["AP"] == pytest.approx(1.0)
    assert "segm" not in scores["coco"]


def test_masks_are_scored_where_both_sides_have_them() -> None:
    found = detect(RectangleDetector(masks=True), batches([0, 1, 2, 3]), bright_annotations(), CPU)
    assert "segm" not in score(found, bright_annotations())["coco"]
    assert "segm" not in score(found, bright_annotations(empty_masks(3)))["coco"]
    annotations = bright_annotations(rle_masks(found.rles))
    assert score(found, annotations)["coco"]["segm"]["AP"] == pytest.approx(1.0)
    nothing = detect(RectangleDetector(masks=True), batches([3]), annotations, CPU)
    nothing = concatenate([nothing, make_detections([], [], [], [], seen=[0, 1, 2])])
    assert score(nothing, annotations)["coco"]["segm"]["AP"] == 0


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 1, 2, 3, 3], [0, 1, 2, 4]])
def test_an_image_that_was_left_out_or_seen_twice_is_noticed(rows: list[int]) -> None:
    detections = make_detections([], [], [], [], seen=rows)
    with pytest.raises(RuntimeError, match="not evaluated exactly once"):
        score(detections, bright_annotations())


def test_files_score_as_what_they_were_written_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    annotations = random_annotations(rng, images=6, classes=3, objects=40)
    detections = random_detections(rng, annotations, count=200, scores=10**9)
    write_comp4(tmp_path / "comp4", detections, annotations)
    write_coco_json(tmp_path / "results.json", detections, annotations)
    expected = score(detections, annotations)
    assert score(read_detections(tmp_path / "comp4", annotations), annotations) == expected
    assert score(read_detections(tmp_path / "results.json", annotations), annotations) == expected


@pytest.mark.parametrize(
    ("form", "folder", "split"),
    [("voc", "bccd", "test"), ("coco", "coco_open", "val2017")],
)
def test_real_ground_truth_taken_for_detections_scores_one(
    form: str, folder: str, split: str
) -> None:
    root = REAL_DATA / folder
    if not root.is_dir():
        pytest.skip("the real data is not here")
    annotations = build_annotations(DataConfig(format=form, root=root), split)
    rows = np.repeat(np.arange(len(annotations)), np.diff(annotations.offsets))
    real = ~annotations.crowd
    ones = np.ones(real.sum())
    rles = None
    if annotations.masks is not None:
        sizes = annotations.sizes[rows].tolist()
        rles = [
            encode_object(annotations.masks, row, annotations.boxes[row], sizes[row])["counts"]
            for row in np.flatnonzero(real).tolist()
        ]
    found = (rows[real], annotations.labels[real], ones, annotations.boxes[real])
    scores = score(make_detections(*found, rles), annotations)
    assert scores["voc"]["area"]["mAP"] == pytest.approx(1)
    assert scores["voc"]["11point"]["mAP"] == pytest.approx(1)
    assert {kind: numbers["AP"] for kind, numbers in scores["coco"].items()} == pytest.approx(
        dict.fromkeys(["bbox", "segm"] if rles else ["bbox"], 1)
    )


# What is printed and written


def test_the_table_has_a_row_for_each_class_and_columns_that_line_up() -> None:
    annotations = bright_annotations()
    detections = detect(RectangleDetector(), batches([0, 1, 2, 3]), annotations, CPU)
    lines = format_table(score(detections, annotations), annotations).splitlines()
    assert lines == [
        "made by hand: 4 images; VOC average precision at IoU 0.5 in %",
        "",
        "class  objects  AP area  AP 11-point",
        "cat          3    100.0        100.0",
        "dog          0        -            -",
        "mean         3    100.0        100.0",
        "",
        "COCO, %     AP   AP50   AP75    APs    APm  APl    AR1   AR10  AR100    ARs    ARm  ARl",
        "bbox     100.0  100.0  100.0  100.0  100.0    -  100.0  100.0  100.0  100.0  100.0    -",
    ]


def test_the_scores_say_at_which_iou_vocs_are() -> None:
    scores = score(make_detections([], [], [], []), bright_annotations(), iou=0.75)
    assert scores["voc_iou"] == 0.75
    assert set(scores["voc"]) == {"area", "11point"}  # others go through the forms
    assert "VOC average precision at IoU 0.75 in %" in format_table(scores)


def test_the_table_needs_no_annotations() -> None:
    scores = score(make_detections([], [], [], []), bright_annotations())
    assert "class  AP area  AP 11-point" in format_table(scores)


def test_metrics_are_strict_json_with_null_for_what_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "metrics.json"
    odd = {name: float(name) for name in ("nan", "inf", "-inf")}
    write_metrics(path, {"images": 1, "voc": {**odd, "b": None, "c": 0.25}})
    expected = {**dict.fromkeys(odd), "b": None, "c": 0.25}
    assert json.loads(path.read_text()) == {"images": 1, "voc": expected}
    assert [file.name for file in path.parent.iterdir()] == ["metrics.json"]


def test_metrics_that_cannot_be_written_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"metrics\.json"):
        write_metrics(tmp_path / "file" / "metrics.json", {})
