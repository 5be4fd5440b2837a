"""The optional engines: the COCO API's numbers, and a clear word where one is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from annotated import annotate, random_annotations, random_detections, rle_masks
from pycocotools import mask as coco_mask

from data.annotations import Annotations
from data.errors import InputError
from data.formats.coco import load_coco
from engine.config import load_config
from engine.evaluation.coco_ap import coco_scores
from engine.evaluation.coco_engines import MODULES, Engine, Kind
from engine.evaluation.coco_results import read_coco_json
from engine.evaluation.detections import Detections, make_detections

PUBLISHED = Path(__file__).parent / "fixtures" / "coco_val2014_100"
FAST: list[Engine] = ["faster-coco-eval", "hotcoco"]
KINDS: list[Kind] = ["bbox", "segm"]

pytestmark = pytest.mark.parametrize("engine", FAST)


@pytest.fixture(autouse=True)
def installed(engine: Engine, request: pytest.FixtureRequest) -> None:
    if "missing" not in request.node.name:
        pytest.importorskip(MODULES[engine])


def assert_same_scores(
    detections: Detections, annotations: Annotations, kind: Kind, engine: Engine
) -> None:
    """None where the API has None; otherwise equal but for the order of a mean's sum."""
    expected = coco_scores(detections, annotations, kind)
    scores = coco_scores(detections, annotations, kind, engine)
    assert scores == {
        name: None if value is None else pytest.approx(value, abs=1e-12)
        for name, value in expected.items()
    }


def blobs(rng: np.random.Generator, boxes: np.ndarray, size: tuple[int, int]) -> list[bytes]:
    """A random mask in each box, so that no area is that of the box."""
    masks = np.zeros((*size, len(boxes)), dtype=np.uint8, order="F")
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int).clip(0, min(size))):
        masks[y1:y2, x1:x2, number] = rng.random((y2 - y1, x2 - x1)) < 0.8
    return [rle["counts"] for rle in coco_mask.encode(masks)]


def random_case(seed: int) -> tuple[Detections, Annotations]:
    """Crowds, difficult objects, all ranges of area, empty classes, equal scores, masks.

    Ids are large and in no order: equal scores are taken in the order of the image ids.
    """
    rng = np.random.default_rng(seed)
    made = random_annotations(rng, images=12, classes=4, objects=90)
    boxes = made.boxes * rng.choice([1.0, 4.0], (90, 1)) * 4
    annotations = Annotations(
        **{
            **vars(made),
            "boxes": boxes,
            "sizes": np.tile(np.array((400, 400), np.int32), (12, 1)),
            "areas": (boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
            "image_ids": rng.permutation(12) + 2**60,
            "category_ids": np.array([90, 3, 7, 5]),
            "masks": rle_masks(blobs(rng, boxes, (400, 400))),
        }
    )
    found = random_detections(rng, annotations, count=600)
    inside = np.maximum(found.boxes, 0).clip(0, 400)
    rles = blobs(rng, inside, (400, 400))
    return make_detections(found.image, found.label, found.score, inside, rles), annotations


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_published_with_the_coco_api(kind: Kind, engine: Engine) -> None:
    annotations = load_coco(PUBLISHED, "val2014_100")
    results = PUBLISHED / f"instances_val2014_fake{kind}100_results.json"
    detections = read_coco_json(results, annotations)
    expected = json.loads((PUBLISHED / "expected.json").read_text())[kind]
    scores = coco_scores(detections, annotations, kind, engine)
    assert {name: round(value or 0.0, 3) for name, value in scores.items()} == expected
    assert_same_scores(detections, annotations, kind, engine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_random_cases_score_as_in_the_coco_api(seed: int, kind: Kind, engine: Engine) -> None:
    assert_same_scores(*random_case(seed), kind, engine)


@pytest.mark.parametrize("kind", KINDS)
def test_no_detections_and_a_single_one(kind: Kind, engine: Engine) -> None:
    detections, annotations = random_case(9)
    for count in (0, 1):
        assert_same_scores(detections.select(np.arange(count)), annotations, kind, engine)


def test_without_ground_truth_there_are_no_numbers(engine: Engine) -> None:
    found = make_detections([0], [0], [0.5], [(0.0, 0.0, 40.0, 40.0)])
    assert_same_scores(found, annotate(), "bbox", engine)
    assert_same_scores(found, annotate([(0, 0, (0, 0, 40, 40))], crowd=[0]), "bbox", engine)


def test_nothing_is_printed(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    coco_scores(*random_case(0), "bbox", engine)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_named_with_its_cure(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[engine], None)  # as if it were not installed
    with pytest.raises(InputError, match=f"evaluate.engine: {engine} .*; pip install {engine}"):
        coco_scores(make_detections([], [], [], []), annotate(), engine=engine)


def test_a_config_chooses_the_engine(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"evaluate: {{engine: {engine}}}\n")
    assert load_config(path).evaluate.engine == engine
    with pytest.raises(InputError, match=r"evaluate\.engine: 'cocoapi' is not a choice"):
        load_config(path, ["evaluate.engine=cocoapi"])
