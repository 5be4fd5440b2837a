"""What validation names of a COCO dataset, and what a repaired copy is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import (
    SHARED,
    coco_object,
    write_coco,
    write_image,
)
from validating import check_and_repair, validate

from data.errors import InputError
from data.formats.coco import load_coco
from scripts.datasets import main


def test_only_trainval_and_its_own_parts_may_share_pictures_in_coco(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ["trainval2014", "train2014", "val2014", "test", "train"]
    for split in splits:
        objects = [coco_object(1, 1, [5, 5, 20, 20])]
        root = write_coco(tmp_path / "coco", objects, images=1, split=split)
        path = root / f"annotations/instances_{split}.json"
        path.write_text(path.read_text().replace(f"{split}_1.png", "1.png"))
        (root / f"{split}/{split}_1.png").unlink()
        write_image(root / f"{split}/1.png", 80, 100)
    _, problems = validate(root, capsys, "--splits", *splits)
    assert {(each["file"], each["problem"].rpartition(" ")[2]) for each in problems} == {
        ("val2014/1.png", "train2014/1.png"),
        ("test/1.png", "trainval2014/1.png"),
        ("train/1.png", "trainval2014/1.png"),
    }


@pytest.mark.parametrize(
    ("entry", "problem", "severity"),
    [
        ({"bbox": [5, 5, 0, 10]}, "has no area", "error"),
        ({"bbox": [5, 5, 0.9, 10]}, "is smaller than a pixel", "error"),
        ({"bbox": [105, 5, 10, 10]}, "lies outside", "error"),
        ({"bbox": [95, 5, 10, 10]}, "extends beyond its image", "warning"),
        ({"bbox": [5, 5, -10, 10]}, "negative width or height", "error"),
        ({"bbox": [5, 5, 10]}, "must be four numbers", "error"),
        ({"bbox": [5, 5, "x", 3]}, "must be four numbers", "error"),
        ({"image_id": 77}, "image_id 77 is not among the file's images", "error"),
        ({"category_id": 77}, "category_id 77 is not among", "error"),
        ({"category_id": "x"}, "must be integers", "error"),
        ({"area": -3}, "area -3 must be a number >= 0", "error"),
        ({"iscrowd": 7}, "iscrowd 7 must be 0 or 1", "error"),
        ({"segmentation": [[1, 2, 3]]}, "has a part of 3 numbers", "error"),
        ({"segmentation": {"size": [8, 8], "counts": [64]}}, "has size [8, 8]", "error"),
        ({"segmentation": [[60, 60, 70, 60, 70, 70]]}, "does not fit its mask's", "warning"),
        ({"id": 1}, "has the same id as another annotation", "warning"),
        ({"id": 0}, "its id is not positive", "warning"),
        ({"bbox": [5, 5, 20, 20]}, "has the same class and box as annotation 1", "warning"),
    ],
)
def test_a_wrong_annotation_of_coco_is_named_and_repaired(
    entry: dict[str, Any],
    problem: str,
    severity: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    objects = [coco_object(1, 1, [5, 5, 20, 20]), {**coco_object(2, 1, [40, 5, 9, 9]), **entry}]
    problems, copy = check_and_repair(write_coco(tmp_path / "coco", objects), capsys)
    (found,) = [each for each in problems if each["object"]]
    assert problem in found["problem"]
    assert found["severity"] == severity
    assert found["file"] == "annotations/instances_train.json"
    assert found["object"] == f"annotation {entry.get('id', 2)} (number 2)"
    assert found["cure"]
    load_coco(copy, "train")


@pytest.mark.parametrize(
    ("wrong", "kept"),
    [
        ({"area": "300"}, True),
        ({"area": -3, "iscrowd": "0", "difficult": "false", "segmentation": {}}, True),
        ({"iscrowd": "1"}, False),  # which would be trained as an object
        ({"segmentation": [5, 5, 25, 5, 25, 25]}, True),
        ({"area": "300", "bbox": [5, 5, "x", 9]}, False),
    ],
)
def test_a_repair_takes_out_a_key_rather_than_its_object(
    wrong: dict[str, Any], kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [coco_object(1, 1, [5, 5, 20, 20]), {**coco_object(2, 1, [40, 5, 9, 8]), **wrong}]
    root = write_coco(tmp_path / "coco", objects)
    problems, copy = check_and_repair(root, capsys)
    assert all(each["object"] == "annotation 2 (number 2)" for each in problems)
    assert all(("object" in each["repair"]) != kept for each in problems)
    assert len(problems) == (len(wrong) if kept else 1)
    left = load_coco(copy, "train")
    assert left.boxes.tolist() == [[5, 5, 25, 25], [40, 5, 49, 13]][: 1 + kept]
    assert left.areas.tolist() == [400, 72][: 1 + kept]


def test_an_object_without_its_mask_is_left_out_where_others_have_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outlined = coco_object(1, 1, [5, 5, 20, 20], segmentation=[[5, 5, 25, 5, 25, 25]])
    flat = coco_object(2, 1, [40, 5, 9, 8], segmentation=[40, 5, 49, 5, 49, 13])
    problems, copy = check_and_repair(write_coco(tmp_path / "coco", [outlined, flat]), capsys)
    assert [each["repair"] for each in problems] == ["removes the object"]
    left = load_coco(copy, "train")
    assert left.masks is not None
    assert left.masks.present().tolist() == [True]


def test_what_other_programs_cannot_read_is_named_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [
        coco_object(1, 1, [5, 5, 20, 20], iscrowd=None),
        {**coco_object(2, 1, [40, 5, 9, 8]), "id": "two"},
        coco_object(3, 2, [5, 5, 20, 20], segmentation=[[5, 5, 25, 25]]),
        coco_object(4, 2, [40, 5, 20, 20], segmentation=[[], [40, 5, 60, 5, 60, 25]]),
    ]
    problems, copy = check_and_repair(write_coco(tmp_path / "coco", objects), capsys)
    assert [each["problem"].partition(",")[0] for each in problems] == [
        "has no iscrowd",
        "its id is 'two'",
        *["its segmentation has parts with fewer than three points"] * 2,
        "3 of 4 objects have no segmentation",
    ]
    document = json.loads((copy / "annotations/instances_train.json").read_text())
    repaired = document["annotations"]
    assert [each["id"] for each in repaired] == [1, 5, 3, 4]
    assert [each["iscrowd"] for each in repaired] == [0] * 4
    assert [len(each.get("segmentation", [])) for each in repaired] == [0, 0, 0, 1]


def test_a_box_that_is_cut_has_the_area_that_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    around = [[80, 60, 120, 60, 120, 100, 80, 100]]
    objects = [
        coco_object(1, 1, [80, 60, 40, 40], area=1600, segmentation=around),
        coco_object(2, 2, [80, 60, 40, 40], area=1600, segmentation=around),
    ]
    _, copy = check_and_repair(write_coco(tmp_path / "coco", objects), capsys)
    assert validate(copy, capsys) == (0, [])
    assert load_coco(copy, "train").areas.tolist() == [400, 400]


def test_a_mask_in_an_image_of_which_nothing_is_known_is_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outline = [[40, 5, 60, 5, 60, 25, 40, 25]]
    objects = [
        coco_object(1, 1, [5, 5, 9, 9], segmentation=[[5, 5, 14, 5, 14, 14]]),
        coco_object(2, 2, [40, 5, 20, 20], segmentation=outline),
    ]
    root = write_coco(tmp_path / "coco", objects)
    change_image(root, "no size")
    (root / "train/train_2.png").unlink()
    assert [each["repair"] for each in validate(root, capsys)[1]] == [
        "removes the image and its objects"
    ]


@pytest.mark.parametrize("name", ["train", "train2017"])
def test_nothing_to_train_on_is_an_error(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [], images=2, split=name)
    write_coco(root, [coco_object(1, 1, [0.1, 0.1, 0.5, 0.5])], images=1, split="val")
    code, problems = validate(root, capsys, "--splits", name)
    assert (code, [each["problem"] for each in problems]) == (1, ["has no object to train on"])
    assert main(["validate", str(root), "--fix", str(tmp_path / "new")]) == 2
    assert "none of its 1 objects could be kept" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_annotations_that_are_no_objects_and_lack_keys_are_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = {"image_id": 2, "category_id": 3, "bbox": [5, 5, 10, 10]}
    outlined = {**bare, "bbox": [30, 5, 10, 10], "segmentation": [[30, 5, 40, 5, 40, 15]]}
    root = write_coco(tmp_path / "coco", [5, bare, outlined])
    problems, copy = check_and_repair(root, capsys)
    of_objects = [f"annotation number {n}" for n in (1, 2, 3)]
    assert [each["object"] for each in problems] == [*of_objects, ""]
    assert problems[-1]["problem"].startswith(
        "1 of 2 objects have no segmentation, the first: annotation number 2; Mask R-CNN uses"
    )
    document = json.loads((copy / "annotations/instances_train.json").read_text())
    assert [each["id"] for each in document["annotations"]] == [1, 2]
    assert [each["area"] for each in document["annotations"]] == [100, 50]


def test_corners_are_an_error_that_cannot_be_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corners = [coco_object(n, 1, [50 + n, 40, 70 + n, 60]) for n in range(1, 12)]
    root = write_coco(tmp_path / "coco", corners)
    with pytest.raises(InputError, match="are these the corners"):
        load_coco(root, "train")
    code, problems = validate(root, capsys, "--skip-pixels")
    (found,) = [each for each in problems if each["severity"] == "error"]
    assert code == 1
    assert "of [80, 100] (height, width), as 11 of 11 boxes do" in found["problem"]
    assert "are these the corners [x1, y1, x2, y2]" in found["cure"]
    assert main(["validate", str(root), "--fix", str(tmp_path / "new")]) == 2
    assert "cannot be repaired" in capsys.readouterr().err
    # The images were annotated the other way round: that is repaired, and then no box leaves.
    turned = write_coco(tmp_path / "turned", [coco_object(n, 1, [85, n, 9, 9]) for n in range(11)])
    path = turned / "annotations/instances_train.json"
    path.write_text(
        path.read_text().replace('"height": 80, "width": 100', '"height": 100, "width": 80')
    )
    check_and_repair(turned, capsys)


def test_objects_of_one_box_but_two_masks_are_no_doubles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upper, lower = [[5, 5, 25, 5, 25, 25]], [[5, 5, 5, 25, 25, 25]]
    masks = [upper, lower, upper]
    objects = [
        coco_object(n, 1, [5, 5, 20, 20], segmentation=mask) for n, mask in enumerate(masks, 1)
    ]
    problems, copy = check_and_repair(write_coco(tmp_path / "coco", objects), capsys)
    assert [each["object"] for each in problems] == ["annotation 3 (number 3)"]
    assert len(load_coco(copy, "train").boxes) == 2


def change_image(root: Path, what: str) -> None:
    path = root / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    image = document["images"][1]
    if what == "no size":
        del image["height"]
    elif what == "same id":
        image["id"] = 1
    elif what == "same file":
        image["file_name"] = "./train_1.png"
    elif what == "outside":
        image["file_name"] = "/etc/passwd"
    elif what == "missing":
        (root / "train/train_2.png").unlink()
    elif what == "empty":
        (root / "train/train_2.png").write_bytes(b"")
    elif what == "other size":
        image["width"], image["height"] = 80, 100
    elif what == "small size":  # in which the box does not fit
        image["width"], image["height"] = 8, 8
    elif what == "size as text":
        image["height"] = "80"
    elif what == "negative size":
        image["height"], image["width"] = None, -100
    elif what == "no size and no name":
        image["height"], image["file_name"] = "80", None
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("what", "problem", "left"),
    [
        ("no size", "lacks the size", 3),
        ("same id", "has the same id as image number 1", 1),
        ("same file", "has the same file 'train_1.png' as image number 1", 1),
        ("outside", "may leave the root", 2),
        ("missing", "the image train/train_2.png is missing", 2),
        ("empty", "the image file is empty", 2),
        ("other size", "the image is 100x80 (width x height) but", 2),
        ("small size", "the image is 100x80 (width x height) but", 3),
        ("size as text", "height '80' is not a size in pixels", 3),
        ("negative size", "width -100 is not a size in pixels", 3),
        ("no size and no name", "None is not a file name", 2),
    ],
)
def test_a_wrong_image_of_coco_is_named_and_repaired(
    what: str, problem: str, left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [coco_object(1, 1, [5, 5, 20, 20]), coco_object(2, 2, [5, 5, 9, 9])]
    root = write_coco(tmp_path / "coco", [*objects, coco_object(3, 3, [1, 1, 7, 7])], images=3)
    change_image(root, what)
    problems, copy = check_and_repair(root, capsys)
    assert any(problem in each["problem"] for each in problems)
    repaired = load_coco(copy, "train")
    assert len(repaired) == left
    # An annotation stays with the image that it was drawn on, or is left out with it.
    assert set(repaired.image_ids[repaired.object_images()]) == set(repaired.image_ids)
    assert repaired.image_ids[-1] == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ("[]", "is not a JSON object"),
        ('{"images": []}', "has no annotations, categories"),
        ('{"images": [], "annotations": [], "categories": 4}', "'categories' must be a list"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "lists no images",
        ),
    ],
)
def test_a_file_that_is_no_coco_is_a_problem_that_cannot_be_repaired(
    text: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    (root / "annotations/instances_train.json").write_text(text)
    code, problems = validate(root, capsys)
    assert code == 1
    assert problem in problems[0]["problem"]
    assert main(["validate", str(root), "--fix", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["coco_open", "dsb2018_nuclei"])
def test_the_real_coco_data_has_no_problems(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not here")
    assert validate(SHARED / name, capsys, "--skip-pixels") == (0, [])


@pytest.mark.parametrize("flag", ["iscrowd", "difficult"])
def test_a_split_to_train_on_of_which_nothing_is_trained_is_an_error(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [coco_object(1, 1, [5, 5, 20, 20], **{flag: 1})]
    root = write_coco(tmp_path / "coco", objects)
    code, (found,) = validate(root, capsys)
    assert found["problem"].startswith("has no object to train on")
    assert (code, f"{flag} 0" in found["cure"]) == (flag == "iscrowd", True)


def test_an_object_that_counts_is_not_taken_for_a_difficult_one_of_its_box(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [coco_object(n, 1, [5, 5, 20, 20], difficult=2 - n) for n in (1, 2)]
    assert validate(write_coco(tmp_path / "coco", objects), capsys) == (0, [])


@pytest.mark.parametrize("options", [[], ["--skip-pixels"]])
def test_a_picture_that_the_default_config_refuses_is_an_error(
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scripts.dataset_tools.image_checks._LIMIT", 7999)
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])], images=1)
    code, (found,) = validate(root, capsys, *options)
    assert (code, found["repair"]) == (1, "")
    assert "100x80 pixels exceed data.max_image_pixels=7999" in found["problem"]


def test_a_folder_of_another_name_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])], images=1)
    (root / "train").rename(root / "images")
    _, (found,) = validate(root, capsys)
    assert found["cure"].startswith("folder 'train' not found: move or rename the folder")
