"""The store of detections, and its two file formats: what is written is what is read."""

from __future__ import annotations

import json
import pickle
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from annotated import annotate, random_annotations, random_detections
from pycocotools import mask as coco_mask

from data.annotations import Annotations
from data.errors import InputError
from engine.evaluation.coco_results import read_coco_json, write_coco_json
from engine.evaluation.comp4 import read_comp4, write_comp4
from engine.evaluation.detections import Detections, concatenate, make_detections, sides_of

BOX = (1.0, 2.0, 11.0, 22.0)


def random_floats(
    annotations: Annotations, count: int = 200, dtype: type = np.float64
) -> Detections:
    """Detections whose numbers need every digit."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (count, 2))
    boxes = np.hstack([corner, corner + rng.uniform(0, 30, (count, 2))]).astype(dtype)
    images = rng.integers(0, len(annotations), count)
    return make_detections(
        images, rng.integers(0, len(annotations.classes), count), rng.random(count), boxes
    )


def with_masks(detections: Detections, annotations: Annotations) -> Detections:
    rng = np.random.default_rng(1)
    sizes = annotations.sizes[detections.image].tolist()
    pixels = [np.asfortranarray(rng.random(size) < 0.3, dtype=np.uint8) for size in sizes]
    rles = [coco_mask.encode(mask)["counts"] for mask in pixels]
    return make_detections(
        detections.image, detections.label, detections.score, detections.boxes, rles
    )


def assert_equal(left: Detections, right: Detections) -> None:
    for name in ("image", "label", "score", "boxes"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert left.rles == right.rles


# The store


def test_the_joined_shares_of_ranks_do_not_depend_on_who_had_which_image() -> None:
    annotations = annotate(images=6)
    all_of_them = with_masks(random_floats(annotations), annotations)
    for owner in (np.array([0, 1, 0, 1, 0, 1]), np.array([1, 1, 1, 0, 0, 0])):
        shares = []
        for rank in (0, 1):
            rows = np.flatnonzero(owner[all_of_them.image] == rank)
            share = all_of_them.select(rows)
            seen = np.flatnonzero(owner == rank)
            shares.append(
                make_detections(
                    share.image, share.label, share.score, share.boxes, share.rles, seen
                )
            )
        joined = concatenate(shares)
        expected = all_of_them.select(np.argsort(all_of_them.image, kind="stable"))
        assert_equal(joined, expected)
        assert sorted(joined.seen) == list(range(6))


def test_a_share_without_detections_changes_nothing_and_masks_survive_it() -> None:
    empty = make_detections([], [], [], [], seen=[])
    one = make_detections([0], [1], [0.5], [BOX], rles=[b"0i0"], seen=[0])
    assert_equal(concatenate([empty, one, empty]), one)
    assert len(concatenate([])) == 0
    assert concatenate([empty, empty]).rles is None
    no_objects = make_detections([], [], [], [], rles=[], seen=[0])
    assert concatenate([empty, no_objects]).rles == []


def test_a_share_that_does_not_know_what_it_saw_leaves_that_unknown() -> None:
    known = make_detections([0], [1], [0.5], [BOX], seen=[0])
    assert concatenate([known, make_detections([1], [1], [0.5], [BOX])]).seen is None


def test_detections_travel_between_processes_in_about_the_size_of_their_arrays() -> None:
    detections = random_floats(annotate(images=6), count=1000)
    message = pickle.dumps(detections)
    assert_equal(pickle.loads(message), detections)
    assert len(message) < 1000 * (8 + 4 + 8 + 32) + 2000


def test_sides_lead_back_to_the_far_corner_and_decimals_to_the_same_decimals() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 1000, (5000, 2))
    far = corner + rng.uniform(0, 1000, (5000, 2))
    np.testing.assert_array_equal(corner + sides_of(np.hstack([corner, far])), far)
    corner, sides = np.round(corner, 2), np.round(rng.uniform(0, 640, (5000, 2)), 2)
    np.testing.assert_array_equal(sides_of(np.hstack([corner, corner + sides])), sides)


# COCO results JSON


def test_coco_json_gives_back_every_bit_of_boxes_scores_and_masks(tmp_path: Path) -> None:
    annotations = annotate(images=6)
    for detections in (
        random_floats(annotations),
        with_masks(random_floats(annotations), annotations),
        make_detections([], [], [], []),
    ):
        write_coco_json(tmp_path / "results.json", detections, annotations)
        assert_equal(read_coco_json(tmp_path / "results.json", annotations), detections)


def test_coco_json_is_neither_written_nor_read_with_ids_that_no_file_has(tmp_path: Path) -> None:
    annotations = replace(annotate(images=3), ids_contradict=True)
    path, nothing = tmp_path / "results.json", make_detections([], [], [], [])
    with pytest.raises(InputError, match=r"results\.json: .* made by hand give one id to"):
        write_coco_json(path, nothing, annotations)
    assert not path.exists()
    path.write_text("[]")
    with pytest.raises(InputError, match="score one split at a time"):
        read_coco_json(path, annotations)


@pytest.mark.parametrize(
    ("images", "categories", "message"),
    [
        ({7: "image_0.jpg", 17: "image_1.jpg"}, {3: "cat", 6: "dog"}, None),
        ({1: "deep/other.jpg"}, {}, None),  # an id that is not in the data
        ({17: "image_0.jpg"}, {}, "image 17 is 'image_0.jpg' in r_images.json, but 'image_1.jpg'"),
        ({7: "image_0.jpg"}, {3: "dog"}, "category 3 is 'dog' in r_images.json, but 'cat' in"),
    ],
)
def test_results_whose_index_calls_images_or_classes_otherwise_are_refused(
    images: dict[int, str], categories: dict[int, str], message: str | None, tmp_path: Path
) -> None:
    annotations, path = annotate(images=2), tmp_path / "r.json"
    write_coco_json(path, random_floats(annotations), annotations)
    index = {
        "images": [{"id": number, "file_name": file} for number, file in images.items()],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }
    (tmp_path / "r_images.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message) if message else nullcontext():
        read_coco_json(path, annotations)


@pytest.mark.parametrize(
    "text", ["[", "{}", '{"images": [3], "categories": []}', "[" * 200_000], ids=len
)
def test_what_is_no_index_is_passed_over_aloud(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "r.json").write_text("[]")
    (tmp_path / "r_images.json").write_text(text)
    assert len(read_coco_json(tmp_path / "r.json", annotate())) == 0
    assert "r_images.json: not an index of r.json" in caplog.text


@pytest.mark.parametrize(
    ("box", "warning"),
    [
        ([50, 40, 30, 20], None),
        ([0.5, 0.4, 0.3, 0.2], "100% of its boxes end within two pixels: are these fractions"),
        ([80, 40, 110, 60], "100% of its boxes extend beyond their images: are these corners?"),
    ],
)
def test_boxes_that_seem_to_mean_something_else_are_doubted(
    box: list[float], warning: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"image_id": 7, "category_id": 3, "score": 0.5, "bbox": box}
    (tmp_path / "r.json").write_text(json.dumps([entry] * 10))
    assert len(read_coco_json(tmp_path / "r.json", annotate())) == 10
    assert (warning or "") in caplog.text
    assert bool(caplog.text) == bool(warning)


def test_coco_json_has_the_ids_of_the_dataset_and_width_and_height(tmp_path: Path) -> None:
    annotations = annotate(images=3, size=(2, 3))
    detections = make_detections([2], [1], [0.25], [BOX], rles=[b"06"])
    write_coco_json(tmp_path / "results.json", detections, annotations)
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {
            "image_id": 27,
            "category_id": 6,
            "bbox": [1.0, 2.0, 10.0, 20.0],
            "score": 0.25,
            "segmentation": {"size": [2, 3], "counts": "06"},
        }
    ]


def test_without_boxes_the_box_around_the_mask_is_taken(tmp_path: Path) -> None:
    mask = np.zeros((100, 120), dtype=np.uint8, order="F")
    mask[10:30, 40:45] = 1
    lengths = coco_mask.encode(mask)
    runs = [int(run) for run in np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=2)))]
    runs.append(mask.size - sum(runs))
    for counts in (lengths["counts"].decode(), runs):  # compressed and not
        entry = {
            "image_id": 7,
            "category_id": 3,
            "score": 1,
            "segmentation": {"size": [100, 120], "counts": counts},
        }
        (tmp_path / "results.json").write_text(json.dumps([entry]))
        detections = read_coco_json(tmp_path / "results.json", annotate())
        assert detections.boxes.tolist() == [[40.0, 10.0, 45.0, 30.0]]
        assert detections.rles == [lengths["counts"]]


ENTRY = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


def changed(**values: object) -> str:
    """A file whose second entry is damaged."""
    return json.dumps([ENTRY, {**ENTRY, **values}])


def mask_of(counts: object, size: object = (100, 120)) -> dict[str, object]:
    return {"segmentation": {"size": size, "counts": counts}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable as JSON"),
        ("[", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("\x00", "not readable as JSON"),
        ('{"images": []}', "a list of objects"),
        ("[1]", "entry 0"),
        (f"[{'[' * 900}{']' * 900}]", "entry 0"),
        (changed(image_id=8), "entry 1 .* image_id 8 is not"),
        (changed(image_id=None), "entry 1 .* image_id is None"),
        (changed(image_id="7"), "entry 1 .* image_id is '7'; it must be a whole number"),
        (changed(image_id=7.5), "entry 1 .* image_id is 7.5"),
        (changed(image_id=[7]), "entry 1 .* image_id"),
        (changed(image_id=10**400), "entry 1 .* image_id is 1000"),
        (changed(category_id=4), "entry 1 .* category_id 4"),
        (changed(category_id=True), "entry 1 .* category_id is True"),
        (changed(score=None), "entry 1 .* score is None"),
        (changed(score="0.5"), "entry 1 .* score is '0.5'"),
        (changed(score=float("nan")), "entry 1 .* score is nan"),
        (changed(score=10**400), "entry 1 .* score is 1000"),
        (changed(bbox=None), "entry 1 .* bbox is None"),
        (changed(bbox=[1, 2, 3]), "entry 1 .* bbox"),
        (changed(bbox=[1, 2, 3, "4"]), "entry 1 .* bbox is '4'"),
        (changed(bbox=[1, 2, 3, True]), "entry 1 .* bbox is True"),
        (changed(bbox=[1, 2, 3, float("inf")]), "entry 1 .* bbox is inf"),
        (changed(bbox=[1, 2, 3, 1e300]), r"entry 1 .* bbox is 1e\+300"),
        (changed(bbox=[1, 2, -3, 4]), "entry 1 .* negative width"),
        (changed(**mask_of("0")), "entry 0 .* for every entry or for none"),
    ],
)
def test_damaged_coco_json_is_refused_in_one_line_that_names_the_entry(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_coco_json(path, annotate())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [[0, 0, 5, 0, 5, 5]],
        {"size": [100, 120]},
        {"size": [100, 120], "counts": 5},
        {"size": [120, 100], "counts": "0"},
        {"size": "100", "counts": "0"},
        {"size": [100, 120], "counts": ""},
        {"size": [100, 120], "counts": "0"},
        {"size": [100, 120], "counts": "P" * 300},
        {"size": [100, 120], "counts": "\ud800"},
        {"size": [100, 120], "counts": "ä~~"},
        {"size": [100, 120], "counts": []},
        {"size": [100, 120], "counts": [11999]},
        {"size": [100, 120], "counts": [12000, -1, 1]},
        {"size": [100, 120], "counts": [10**30]},
        {"size": [100, 120], "counts": ["12000"]},
    ],
)
def test_masks_that_the_coco_api_would_trip_over_are_refused(
    tmp_path: Path, segmentation: object
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**ENTRY, "segmentation": segmentation}]))
    with pytest.raises(InputError, match=r"entry 0 .* segmentation"):
        read_coco_json(path, annotate())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.json"):
        read_coco_json(tmp_path / "nothing.json", annotate())
    with pytest.raises(InputError, match="nothing"):
        read_comp4(tmp_path / "nothing", annotate())


# comp4 files


def test_comp4_gives_back_what_a_detector_computed_in_float32(tmp_path: Path) -> None:
    annotations = annotate(images=6, classes=["cat", "traffic light", "dog"])
    detections = random_floats(annotations, dtype=np.float32)
    write_comp4(tmp_path / "out", detections, annotations)
    by_class = detections.select(np.argsort(detections.label, kind="stable"))
    assert_equal(read_comp4(tmp_path / "out", annotations), by_class)


def test_comp4_gives_back_float64_to_the_last_bit_but_one(tmp_path: Path) -> None:
    annotations = annotate(images=6)
    detections = random_floats(annotations)
    write_comp4(tmp_path, detections, annotations)
    by_class = detections.select(np.argsort(detections.label, kind="stable"))
    np.testing.assert_allclose(
        read_comp4(tmp_path, annotations).boxes, by_class.boxes, rtol=0, atol=1e-13
    )


def test_boxes_without_area_come_back_from_comp4(tmp_path: Path) -> None:
    sides = np.random.default_rng(0).random((1000, 2)).round(2) * 10
    annotations, boxes = annotate(), np.hstack([sides, sides])
    zeros = np.zeros(1000, np.int64)
    detections = make_detections(zeros, zeros, np.full(1000, 0.5), boxes)
    write_comp4(tmp_path, detections, annotations)
    read = read_comp4(tmp_path, annotations).boxes
    np.testing.assert_allclose(read, boxes, rtol=0, atol=1e-14)
    assert (read[:, 2:] >= read[:, :2]).all()


def test_comp4_corners_are_inclusive_and_count_from_one(tmp_path: Path) -> None:
    annotations = annotate(images=2)
    detections = make_detections([1], [0], [0.25], [(0.0, 0.0, 10.0, 20.0)])
    write_comp4(tmp_path, detections, annotations)
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files == {
        "comp4_det_test_cat.txt": "image_1 0.25 1.0 1.0 10.0 20.0\n",
        "comp4_det_test_dog.txt": "",
    }


def test_a_missing_class_file_means_no_detections_and_other_files_are_passed_over(
    tmp_path: Path,
) -> None:
    (tmp_path / "comp4_det_test_dog.txt").write_text("\nimage_0 1e-1 2 3 4 5\r\n \n")
    (tmp_path / "comp4_det_val_cat.txt").write_text("of another split")
    (tmp_path / "notes.md").write_text("of nobody")
    detections = read_comp4(tmp_path, annotate())
    assert detections.label.tolist() == [1]
    assert detections.score.tolist() == [0.1]
    assert detections.boxes.tolist() == [[1.0, 2.0, 4.0, 5.0]]


def test_a_folder_without_a_matching_file_says_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_val_cat.txt").write_text("")
    with pytest.raises(InputError, match=r"comp4_det_test_cat\.txt, comp4_det_test_dog\.txt"):
        read_comp4(tmp_path, annotate())


def test_sets_whose_names_begin_alike_are_told_apart(tmp_path: Path) -> None:
    line = f"{annotate().names[0]} 0.5 2 3 4 5\n"
    for name in ("test_cat", "test_old_cat", "test_old_dog"):
        (tmp_path / f"comp4_det_{name}.txt").write_text(line)
    assert len(read_comp4(tmp_path, annotate())) == 1
    assert len(read_comp4(tmp_path, replace(annotate(), split="test_old"))) == 2
    (tmp_path / "comp4_det_test_cat.txt").unlink()
    with pytest.raises(InputError, match="holds no detections of the split 'test'"):
        read_comp4(tmp_path, annotate())


def test_a_file_of_a_class_that_is_not_scored_is_refused(tmp_path: Path) -> None:
    for name in ("cat", "unicorn"):
        (tmp_path / f"comp4_det_test_{name}.txt").write_text("")
    with pytest.raises(InputError, match="'unicorn' is not one of the classes"):
        read_comp4(tmp_path, annotate())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("image_0 0.5 1 1 2", "5 fields"),
        ("image_9 0.5 1 1 2 2", "image 'image_9'"),
        ("image_0 0.5 1 1 2 two", "not five numbers"),
        ("image_0 nan 1 1 2 2", "not finite"),
        ("image_0 0.5 1 1 inf 2", "not finite"),
        ("image_0 0.5 1 1 1e300 2", "exceeds"),
        ("image_0 0.5 9 1 2 2", "xmax < xmin"),
    ],
)
def test_a_damaged_comp4_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text(f"image_0 0.5 1 1 2 2\n{line}\n")
    with pytest.raises(InputError, match=message) as caught:
        read_comp4(tmp_path, annotate())
    assert f"{path}: line 2" in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_cat.txt").write_bytes(b"image_0 \xff")
    with pytest.raises(InputError, match="not text in UTF-8"):
        read_comp4(tmp_path, annotate())


def test_a_class_name_never_leads_out_of_the_folder(tmp_path: Path) -> None:
    annotations = annotate(classes=["../cat"])
    with pytest.raises(InputError, match="cannot be part of a file name"):
        write_comp4(tmp_path, make_detections([], [], [], []), annotations)
    with pytest.raises(InputError, match="cannot be part of a file name"):
        read_comp4(tmp_path, annotations)


def test_spaces_around_an_image_s_name_do_not_lose_it(tmp_path: Path) -> None:
    annotations = replace(annotate(images=3), names=np.array([" a", "b ", "c"]))
    found = make_detections([0, 1, 2], [0, 0, 0], [0.5, 0.25, 0.125], [[1, 2, 3, 4]] * 3)
    write_comp4(tmp_path, found, annotations)
    assert read_comp4(tmp_path, annotations).image.tolist() == [0, 1, 2]
    doubled = replace(annotations, names=np.array([" a", "a ", "c"]))
    with pytest.raises(InputError, match="two images are named 'a'"):
        write_comp4(tmp_path / "comp4", found, doubled)


def test_comp4_files_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    annotations = replace(annotate(images=2), names=np.array(["a", "a"]))
    with pytest.raises(InputError, match="two images are named 'a'"):
        write_comp4(tmp_path / "comp4", make_detections([], [], [], []), annotations)
    assert not (tmp_path / "comp4").exists()


def test_random_detections_survive_both_formats_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    annotations = random_annotations(rng, images=5, classes=3, objects=20)
    detections = random_detections(rng, annotations, count=100)
    write_comp4(tmp_path / "comp4", detections, annotations)
    write_coco_json(tmp_path / "results.json", detections, annotations)
    from_json = read_coco_json(tmp_path / "results.json", annotations)
    by_class = np.argsort(from_json.label, kind="stable")
    assert_equal(read_comp4(tmp_path / "comp4", annotations), from_json.select(by_class))
