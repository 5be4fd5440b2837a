"""COCO's numbers: what the COCO API publishes and what it computes from files by its own means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated import annotate, random_annotations, random_detections, rle_masks
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.annotations import Annotations
from data.formats.coco import load_coco
from engine.evaluation.coco_ap import NAMES, coco_scores
from engine.evaluation.coco_results import read_coco_json, write_coco_json
from engine.evaluation.detections import Detections, make_detections

PUBLISHED = Path(__file__).parent / "fixtures" / "coco_val2014_100"
SQUARE = (0.0, 0.0, 40.0, 40.0)


def scores_of_the_api(folder: Path, kind: str) -> dict[str, float]:
    """The API's own way: files in, ``loadRes``, ``summarize``."""
    results = json.loads((folder / "results.json").read_text())
    truth = COCO(str(folder / "truth.json"))
    if kind == "segm":  # else loadRes takes areas from the boxes
        results = [{key: entry[key] for key in entry if key != "bbox"} for entry in results]
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


def write_truth(path: Path, annotations: Annotations, rles: list[bytes] | None) -> None:
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for row, (height, width) in enumerate(annotations.sizes.tolist()):
        image_id = int(annotations.image_ids[row])
        images.append({"id": image_id, "height": height, "width": width})
        for index in range(len(annotations.boxes))[annotations.objects_of(row)]:
            x1, y1, x2, y2 = annotations.boxes[index].tolist()
            entry = {
                "id": index + 1,
                "image_id": image_id,
                "category_id": int(annotations.category_ids[annotations.labels[index]]),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(annotations.areas[index]),
                "iscrowd": int(annotations.crowd[index]),
            }
            if rles is not None:
                entry["segmentation"] = {"size": [height, width], "counts": rles[index].decode()}
            objects.append(entry)
    categories = [{"id": int(number)} for number in annotations.category_ids]
    path.write_text(
        json.dumps({"images": images, "annotations": objects, "categories": categories})
    )


def boxes_as_masks(boxes: np.ndarray, size: tuple[int, int]) -> list[bytes]:
    masks = np.zeros((*size, len(boxes)), dtype=np.uint8, order="F")
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        masks[y1:y2, x1:x2, number] = 1
        masks[y1, x1, number] = 0  # not quite the box
    return [rle["counts"] for rle in coco_mask.encode(masks)]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_numbers_published_with_the_coco_api(kind: str) -> None:
    annotations = load_coco(PUBLISHED, "val2014_100")
    expected = json.loads((PUBLISHED / "expected.json").read_text())[kind]
    results = PUBLISHED / f"instances_val2014_fake{kind}100_results.json"
    scores = coco_scores(read_coco_json(results, annotations), annotations, kind)
    assert {name: round(value, 3) for name, value in scores.items()} == expected


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_arrays_in_memory_score_as_files_in_the_api(tmp_path: Path, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    size = (64, 64)
    made = random_annotations(rng, images=6, classes=3, objects=50)
    truth_rles = boxes_as_masks(made.boxes, size)
    annotations = Annotations(
        **{
            **vars(made),
            "sizes": np.tile(np.array(size, np.int32), (6, 1)),
            "difficult": np.zeros(50, dtype=bool),
            "areas": rng.choice([10.0, 2000.0, 20000.0], 50),
            "masks": rle_masks(truth_rles),
        }
    )
    found = random_detections(rng, annotations, count=150)
    boxes = np.maximum(found.boxes, 0)
    rles = boxes_as_masks(boxes, size)
    detections = make_detections(found.image, found.label, found.score, boxes, rles)
    write_truth(tmp_path / "truth.json", annotations, truth_rles)
    write_coco_json(tmp_path / "results.json", detections, annotations)
    expected = scores_of_the_api(tmp_path, kind)
    assert coco_scores(detections, annotations, kind) == {
        name: None if value == -1 else value for name, value in expected.items()
    }


def test_a_perfect_detection_scores_one_and_sizes_that_do_not_occur_have_no_score() -> None:
    scores = coco_scores(
        make_detections([0], [0], [0.5], [SQUARE]), annotate([(0, 0, SQUARE)], images=2)
    )
    assert [scores[name] for name in ("AP", "APm", "AR1")] == pytest.approx([1.0] * 3)
    assert scores["APs"] is scores["APl"] is scores["ARs"] is scores["ARl"] is None


def test_without_detections_the_numbers_are_zero() -> None:
    scores = coco_scores(make_detections([], [], [], []), annotate([(0, 0, SQUARE)]))
    assert scores["AP"] == scores["AP50"] == scores["APm"] == scores["AR100"] == 0
    assert scores["APl"] is None


def test_without_ground_truth_there_are_no_numbers() -> None:
    found = make_detections([0], [0], [0.5], [SQUARE])
    assert coco_scores(found, annotate()) == dict.fromkeys(NAMES)
    only_a_crowd = annotate([(0, 0, SQUARE)], crowd=[0])
    assert coco_scores(found, only_a_crowd) == dict.fromkeys(NAMES)


def test_difficult_objects_neither_count_nor_punish() -> None:
    other = (50.0, 50.0, 90.0, 90.0)
    detections = make_detections([0, 0], [0, 0], [0.9, 0.8], [other, SQUARE])
    annotations = annotate([(0, 0, SQUARE), (0, 0, other)], difficult=[1])
    assert coco_scores(detections, annotations)["AP"] == pytest.approx(1.0)
    missed = make_detections([0], [0], [0.9], [SQUARE])
    assert coco_scores(missed, annotations)["AR100"] == pytest.approx(1.0)


def test_of_equal_scores_that_of_the_lowest_image_id_comes_first() -> None:
    annotations = annotate([(0, 0, SQUARE), (1, 0, SQUARE)], images=2)
    wrong = (60.0, 60.0, 90.0, 90.0)
    detections = make_detections([0, 1], [0, 0], [0.5, 0.5], [SQUARE, wrong])
    turned = replace(annotations, image_ids=annotations.image_ids[::-1])
    # recall 1/2 at precision 1, or at precision 1/2: at 51 of 101 points
    scores = [coco_scores(detections, each)["AP"] for each in (annotations, turned)]
    assert scores == pytest.approx([51 / 101, 51 / 202])


def test_detections_of_classes_without_objects_change_nothing() -> None:
    rng = np.random.default_rng(0)
    annotations = random_annotations(rng, images=4, classes=3, objects=20)  # none of the last
    detections = random_detections(rng, annotations, count=60)
    assert (detections.label == 2).any()
    fewer: Detections = detections.select(np.flatnonzero(detections.label < 2))
    assert coco_scores(detections, annotations) == coco_scores(fewer, annotations)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    coco_scores(make_detections([0], [0], [0.5], [SQUARE]), annotate([(0, 0, SQUARE)]))
    assert capsys.readouterr() == ("", "")
