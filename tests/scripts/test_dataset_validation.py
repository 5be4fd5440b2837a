"""Validation names every problem; a repaired copy has no errors; the original is only read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_on_disk import (
    SHARED,
    coco_object,
    fingerprint,
    voc_object,
    write_coco,
    write_image,
    write_voc,
)
from PIL import Image

from data.build import build_annotations
from data.coco import load_coco
from data.config import DataConfig
from data.errors import InputError
from data.voc import load_voc
from scripts.datasets import main

GOOD = (5, 5, 20, 20)


def validate(
    root: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, list[dict[str, Any]]]:
    code = main(["validate", str(root), "--json", *options])
    return code, json.loads(capsys.readouterr().out)["problems"]


def check_and_repair(
    root: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[list[dict[str, Any]], Path]:
    """The problems, and a copy in which no error is left; the original stays as it is."""
    before = fingerprint(root)
    copy = root.parent / "repaired"
    _, problems = validate(root, capsys, "--fix", str(copy), *options)
    assert fingerprint(root) == before
    code, left = validate(copy, capsys, *options)
    assert code == 0
    assert not [each for each in left if each["severity"] == "error"]
    return problems, copy


VOC_OBJECTS = [
    (voc_object("cat", (7, 7, 7, 9)), "has no area", "error"),
    (voc_object("cat", (200, 7, 220, 9)), "lies outside its image of 100x80", "error"),
    (voc_object("cat", (50, 7, 120, 90)), "leaves its image of 100x80", "warning"),
    (voc_object("cat", (0, 7, 20, 30)), "leaves its image of 100x80", "warning"),
    (voc_object("cat", (0.1, 0.2, 0.5, 0.4)), "covers less than a pixel", "error"),
    (voc_object("cat", (30, 7, 10, 9)), "ends before it begins", "error"),
    (voc_object("cat", ("a", 7, 10, 9)), "<xmin> is 'a', not a coordinate", "error"),
    (voc_object("cat", ("nan", 7, 10, 9)), "<xmin> is 'nan', not a coordinate", "error"),
    (voc_object("", (1, 7, 10, 9)), "its <name> is ''", "error"),
    (voc_object("cat", (1, 7, 10, 9), "<difficult>9</difficult>"), "<difficult> is '9'", "error"),
    ("<object><name>cat</name></object>", "has no <bndbox>", "error"),
    (voc_object("dog", GOOD), "has the class and the box of object 1 ('dog')", "warning"),
]


@pytest.mark.parametrize(("text", "problem", "severity"), VOC_OBJECTS)
def test_a_wrong_object_of_voc_is_named_and_repaired(
    text: str, problem: str, severity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [voc_object("dog", GOOD), text]}, {"train": ["a"]})
    problems, copy = check_and_repair(root, capsys)
    (found,) = problems
    assert problem in found["problem"]
    assert found["severity"] == severity
    assert found["file"] == "Annotations/a.xml"
    assert found["object"].startswith("object 2")
    assert found["cure"]
    assert found["repair"]
    load_voc(copy, ["train"])


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_images_that_are_links_are_followed_on_request_and_never_dropped(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "voc":
        root = write_voc(tmp_path / "set", {"a": [voc_object("cat", GOOD)]}, {"train": ["a"]})
        image = root / "JPEGImages/a.png"
    else:
        root = write_coco(tmp_path / "set", [coco_object(1, 1, [5, 5, 20, 20])], images=1)
        image = root / "train/train_1.png"
    image.rename(tmp_path / "outside.png")
    image.symlink_to(tmp_path / "outside.png")
    code, problems = validate(root, capsys)
    assert code == 1
    (found,) = problems
    assert "is a link to" in found["problem"]
    assert "data.follow_links: true" in found["cure"]
    assert "--follow-links" in found["cure"]
    assert main(["validate", str(root), "--fix", str(tmp_path / "repaired")]) == 2
    assert "say --follow-links" in capsys.readouterr().err
    assert validate(root, capsys, "--follow-links") == (0, [])
    command = ["validate", str(root), "--follow-links", "--fix", str(tmp_path / "repaired")]
    assert main(command) == 0
    capsys.readouterr()
    assert validate(tmp_path / "repaired", capsys) == (0, [])


def test_all_problems_of_a_file_are_found_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text for text, _, _ in VOC_OBJECTS]
    root = write_voc(tmp_path / "voc", {"a": [voc_object("dog", GOOD), *texts]}, {"train": ["a"]})
    problems, copy = check_and_repair(root, capsys)
    named = {each["object"].split(" (")[0] for each in problems}
    assert named == {f"object {number}" for number in range(2, 14)}
    assert len(problems) == len(VOC_OBJECTS)
    # the good one, two that are cut at the border, one that is no longer difficult
    assert len(load_voc(copy, ["train"]).boxes) == 4


@pytest.mark.parametrize("options", [(), ("--zero-based",)])
def test_a_box_that_is_cut_is_read_as_before(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [(-3, 0.5), (-3, 1), (0, 1), (0, 50), (50, 120), (99, 101), (100, 110), (99.5, 120)]
    boxes = [(x1, 5, x2, 9) for x1, x2 in ends] + [(5, y1 * 0.8, 9, y2 * 0.8) for y1, y2 in ends]
    objects = [voc_object("dog", box) for box in [*boxes, (-5, -5, 500, 500)]]
    root = write_voc(tmp_path / "voc", {"a": objects}, {"train": ["a"]})
    _, copy = check_and_repair(root, capsys, *options)
    before, after = (load_voc(each, ["train"], None, bool(options)) for each in (root, copy))
    assert len(before.boxes) > 10
    assert after.boxes.tolist() == before.boxes.tolist()
    text = (copy / "Annotations/a.xml").read_text()
    assert "<ymax>80</ymax>" in text
    assert "500" not in text


ADDED_LINES = {"twice": "a\n", "outside": "../a\n", "no flag": "a 2\n"}


def break_voc(root: Path, what: str) -> None:
    if what == "missing image":
        (root / "JPEGImages/b.png").unlink()
    elif what == "cut image":
        path = root / "JPEGImages/b.png"
        path.write_bytes(path.read_bytes()[:2000])
    elif what == "other size":
        write_image(root / "JPEGImages/b.png", 120, 150)
    elif what == "smaller":
        write_image(root / "JPEGImages/b.png", 10, 12)
    elif what == "broken xml":
        (root / "Annotations/b.xml").write_text("<annotation><object>")
    elif what == "bomb":
        (root / "Annotations/b.xml").write_text("<!DOCTYPE a [<!ENTITY x 'y'>]><annotation/>")
    elif what == "missing xml":
        (root / "Annotations/b.xml").unlink()
    elif what in ADDED_LINES:
        with (root / "ImageSets/Main/train.txt").open("a") as file:
            file.write(ADDED_LINES[what])
    elif what == "wrong side":
        path = root / "Annotations/b.xml"
        path.write_text(path.read_text().replace("<width>100", "<width>-4"))
    elif what == "one image twice":
        (root / "JPEGImages/b.png").unlink()
        path = root / "Annotations/b.xml"
        path.write_text(path.read_text().replace("b.png", "a.png"))
    elif what == "first not its own":
        path = root / "Annotations/a.xml"
        path.write_text(path.read_text().replace("a.png", "b.png"))
        (root / "JPEGImages/a.png").unlink()


@pytest.mark.parametrize(
    ("what", "problem", "left"),
    [
        ("missing image", "the image JPEGImages/b.png is missing", 1),
        ("cut image", "the image is cut off after 2000 bytes", 1),
        ("other size", "the picture is 150x120 (width x height) but", 2),
        ("smaller", "the picture is 12x10 (width x height) but", 1),
        ("broken xml", "is not valid XML", 1),
        ("bomb", "declares a DTD or entities", 1),
        ("missing xml", "there is no Annotations/b.xml", 1),
        ("twice", "'a' is listed twice", 2),
        ("outside", "may leave the root", 2),
        ("no flag", "there is no Annotations/a 2.xml", 2),
        ("wrong side", "<width> is '-4'", 2),
        ("one image twice", "is that of Annotations/a.xml, too", 1),
        ("first not its own", "is that of Annotations/b.xml, too", 1),
    ],
)
def test_a_wrong_file_of_voc_is_named_and_repaired(
    what: str, problem: str, left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("dog", GOOD)] for name in ("a", "b")}
    root = write_voc(tmp_path / "voc", images, {"train": ["a", "b"]})
    break_voc(root, what)
    problems, copy = check_and_repair(root, capsys)
    assert any(problem in each["problem"] and each["severity"] == "error" for each in problems)
    assert len(load_voc(copy, ["train"])) == left


def test_a_damaged_image_is_not_said_to_be_skipped_where_its_size_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"b": [voc_object("dog", GOOD)]}, {"train": ["b"]})
    break_voc(root, "cut image")
    assert "on_damaged: skip" in validate(root, capsys)[1][0]["cure"]
    path = root / "Annotations/b.xml"
    path.write_text(path.read_text().replace("<width>100</width>", ""))
    assert validate(root, capsys)[1][0]["cure"].endswith("write its size into the annotation")


def test_an_image_of_two_annotation_files_stays_with_that_of_its_name_or_with_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("dog", (1, 1, 10 + n, 9))] for n, name in enumerate("abcd")}
    root = write_voc(tmp_path / "voc", images, {"train": list("abcd")})
    for name, file in (("a", "b"), ("c", "other"), ("d", "other")):
        path = root / f"Annotations/{name}.xml"
        path.write_text(path.read_text().replace(f"{name}.png", f"{file}.png"))
        (root / f"JPEGImages/{name}.png").unlink()
    write_image(root / "JPEGImages/other.png", 80, 100, seed=9)
    _, copy = check_and_repair(root, capsys)
    left = load_voc(copy, ["train"])
    assert left.files.tolist() == ["JPEGImages/b.png"]
    assert left.boxes.tolist() == [[0, 0, 11, 9]]


def test_a_list_that_is_not_text_is_named_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": []}, {"train": ["a"]})
    (root / "ImageSets/Main/train.txt").write_bytes("ä".encode("latin-1"))
    code, problems = validate(root, capsys)
    assert code == 1
    assert "is not text" in problems[0]["problem"]
    assert problems[0]["cure"] == "save it as UTF-8"
    new = str(tmp_path / "new")
    for command in (["validate", str(root), "--fix", new], ["convert", str(root), new]):
        assert main(command) == 2
        assert "train.txt: is not text" in capsys.readouterr().err


def test_a_filename_of_another_image_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("dog", GOOD)] for name in ("a", "b")}
    root = write_voc(tmp_path / "voc", images, {"train": ["a", "b"]})
    path = root / "Annotations/b.xml"
    path.write_text(path.read_text().replace("b.png", "a.png"))
    code, (found,) = validate(root, capsys)
    assert (code, found["severity"], found["file"]) == (0, "warning", "Annotations/b.xml")
    assert found["problem"] == "its <filename> names the image 'a.png', but 'b.png' is taken"
    path.write_text(path.read_text().replace("a.png", "gone.png"))
    assert validate(root, capsys) == (0, [])


def test_an_image_that_was_chosen_by_its_ending_alone_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [voc_object("dog", GOOD)]}, {"train": ["a"]})
    write_image(root / "JPEGImages/a.jpg", 80, 100, 7)
    assert validate(root, capsys) == (0, [])  # <filename> says a.png
    path = root / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<filename>a.png</filename>", ""))
    code, (found,) = validate(root, capsys)
    assert (code, found["severity"], found["file"]) == (0, "warning", "Annotations/a.xml")
    assert found["problem"] == "JPEGImages has a.jpg, a.png of its name; 'a.jpg' is taken"


@pytest.mark.parametrize("filename", ["/home/me/a.png", "C:\\pictures\\a.png", "..\\a.png"])
def test_a_path_of_another_machine_as_filename_costs_no_picture(
    filename: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [voc_object("dog", GOOD)]}, {"train": ["a"]})
    path = root / "Annotations/a.xml"
    path.write_text(path.read_text().replace("a.png", filename))
    assert validate(root, capsys) == (0, [])
    (root / "JPEGImages/a.png").rename(root / "JPEGImages/b.png")
    code, (found,) = validate(root, capsys)
    assert (code, found["file"]) == (1, "Annotations/a.xml")
    assert "may leave the root of the data" in found["problem"]


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_class_that_no_split_to_train_on_has_is_an_error_as_in_training(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "voc":
        images = {name: [voc_object(f"class {name}", GOOD)] for name in "abc"}
        lists = {"train": ["a"], "train_b": ["b"], "val": ["a", "b", "c"]}
        root, first = write_voc(tmp_path / "set", images, lists), "Annotations/c.xml"
    else:
        root = write_coco(tmp_path / "set", [], categories=[{"id": 3, "name": "class a"}])
        names = [{"id": 3, "name": "class a"}, {"id": 7, "name": "class c"}]
        objects = [coco_object(n, n, [5, 5, 9, 9], category_id=[3, 7][n - 1]) for n in (1, 2)]
        write_coco(root, objects, split="val", categories=names)
        first = "annotation 2 (number 2)"
    code, problems = validate(root, capsys)
    (found,) = [each for each in problems if each["severity"] == "error"]
    assert (code, found["file"]) == (1, "val")
    assert f"objects of the class 'class c', the first in {first}" in found["problem"]
    config = DataConfig.model_validate({"format": layout, "root": root})
    train = ["train", "train_b"] if layout == "voc" else "train"
    known = build_annotations(config, train).classes
    with pytest.raises(InputError, match="'class c'"):
        build_annotations(config, "val", known)
    assert validate(root, capsys, "--splits", "val")[0] == 0


def test_a_split_to_train_on_is_known_by_its_name_in_any_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object(f"class {name}", GOOD)] for name in "ab"}
    lists = {"Train": ["a"], "Val": ["b"], "TrainVal": ["a", "b"]}
    root = write_voc(tmp_path / "set", images, lists)
    code, (found,) = validate(root, capsys, "--splits", "Train", "Val")
    assert (code, found["file"], found["severity"]) == (1, "Val", "error")
    assert "the class 'class b'" in found["problem"]
    assert found["problem"].endswith("which Train has not")
    assert validate(root, capsys) == (0, [])  # TrainVal has it, and shares images by design


def test_all_of_voc_s_classes_are_trained_where_there_are_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object(name, GOOD)] for name in ("cat", "cow", "asp")}
    root = write_voc(tmp_path / "voc", images, {"train": ["cat"], "val": ["cow"], "test": ["asp"]})
    assert validate(root, capsys, "--splits", "train", "val") == (0, [])
    assert validate(root, capsys)[0] == 1


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_pictures_whose_orientation_no_size_tells_are_counted(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "voc":
        names = [f"JPEGImages/{name}.png" for name in "abcd"]
        write_voc(tmp_path, {name: [] for name in "abcd"}, {"train": list("abcd")})
    else:
        names = [f"train/train_{number}.png" for number in range(1, 5)]
        write_coco(tmp_path, [], images=4)
    for seed, (name, orientation) in enumerate(zip(names, (3, 6, 1, 2), strict=True)):
        pixels = np.random.default_rng(seed).integers(0, 255, (80, 100, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    code, (found,) = validate(tmp_path, capsys)
    assert (code, found["severity"], found["file"]) == (0, "warning", names[0])
    assert found["problem"].startswith("2 pictures, this is the first, have an EXIF orientation")
    assert found["problem"].endswith(
        "of the pictures whose size tells, 0 have boxes of the upright and 1 of the stored pixels"
    )
    assert validate(tmp_path, capsys, "--skip-pixels") == (0, [])


def test_twelve_bits_in_sixteen_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [voc_object("dog", GOOD)]}, {"train": ["a"]})
    ramp = np.linspace(0, 4095, 80 * 100).reshape(80, 100).astype(np.uint16)
    Image.fromarray(ramp).save(root / "JPEGImages/a.png")
    code, (found,) = validate(root, capsys)
    assert (code, found["severity"], found["file"]) == (0, "warning", "JPEGImages/a.png")
    assert found["problem"] == "is nearly black: its brightest value is 15 of 255"
    Image.fromarray(ramp * 16).save(root / "JPEGImages/a.png")
    assert validate(root, capsys) == (0, [])


def test_leaks_doubles_and_unlisted_files_are_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("dog", GOOD)] for name in ("a", "b", "c", "d")}
    splits = {"train": ["a", "b"], "val": ["b"], "trainval": ["a", "b"], "test": ["c"]}
    root = write_voc(tmp_path / "voc", images, splits)
    (root / "JPEGImages/c.png").write_bytes((root / "JPEGImages/a.png").read_bytes())
    code, problems = validate(root, capsys)
    assert code == 0
    assert {each["problem"] for each in problems} == {
        "1 images are in both, the first: 'Annotations/b.xml'",
        "is the same picture as JPEGImages/a.png",
        "no split lists it",
    }
    assert validate(root, capsys, "--strict")[0] == 1


def test_only_trainval_and_its_own_parts_may_share_images_in_voc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = ["train", "val", "trainval", "trainval_b", "val_b", "fit", "check"]
    members = {name: ["a"] if name == "val" else ["b"] for name in lists}
    members["trainval"] = ["a", "b"]
    root = write_voc(tmp_path / "voc", {"a": [], "b": []}, members)
    _, problems = validate(root, capsys, "--splits", *lists)
    assert {each["file"] for each in problems} == {
        "train and trainval_b", "train and val_b", "train and fit", "train and check",
        "trainval and trainval_b", "trainval and val_b", "trainval and fit", "trainval and check",
        "trainval_b and fit", "trainval_b and check", "val_b and fit", "val_b and check",
        "fit and check",
    }  # fmt: skip


def test_only_trainval_and_its_own_parts_may_share_pictures_in_coco(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ["trainval2014", "train2014", "val2014", "test", "train"]
    for split in splits:
        root = write_coco(tmp_path / "coco", [], images=1, split=split)
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
        ({"bbox": [5, 5, 0.9, 10]}, "covers less than a pixel", "error"),
        ({"bbox": [105, 5, 10, 10]}, "lies outside", "error"),
        ({"bbox": [95, 5, 10, 10]}, "leaves its image", "warning"),
        ({"bbox": [5, 5, -10, 10]}, "negative width or height", "error"),
        ({"bbox": [5, 5, 10]}, "must be four numbers", "error"),
        ({"bbox": [5, 5, "x", 3]}, "must be four numbers", "error"),
        ({"image_id": 77}, "image_id 77 is not among the file's images", "error"),
        ({"category_id": 77}, "category_id 77 is not among", "error"),
        ({"category_id": "x"}, "must be whole numbers", "error"),
        ({"area": -3}, "area -3 must be a number from 0", "error"),
        ({"iscrowd": 7}, "iscrowd 7 must be 0 or 1", "error"),
        ({"segmentation": [[1, 2, 3]]}, "has a part of 3 numbers", "error"),
        ({"segmentation": {"size": [8, 8], "counts": [64]}}, "is of size [8, 8]", "error"),
        ({"segmentation": [[60, 60, 70, 60, 70, 70]]}, "is not that of its mask", "warning"),
        ({"id": 1}, "its id is that of another annotation", "error"),
        ({"id": 0}, "its id is not positive", "warning"),
        ({"bbox": [5, 5, 20, 20]}, "has the class and the box of annotation 1", "warning"),
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
    (found,) = problems
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
    assert [each["repair"] for each in problems] == ["leaves the object out"]
    left = load_coco(copy, "train")
    assert left.masks is not None
    assert left.masks.present().tolist() == [True]


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_repair_says_how_much_it_kept(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, copy = tmp_path / "set", tmp_path / "copy"
    if layout == "voc":
        good, flat = voc_object("dog", GOOD), voc_object("dog", (5, 5, 5, 9))
        write_voc(root, {"a": [good, flat], "b": [good], "c": []}, {"train": list("abc")})
        (root / "JPEGImages/b.png").unlink()
    else:
        boxes = [(1, [5, 5, 20, 20]), (1, [5, 5, 0, 9]), (2, [5, 5, 20, 20])]
        objects = [coco_object(n, image, box) for n, (image, box) in enumerate(boxes, start=1)]
        write_coco(root, objects, images=3)
        (root / "train/train_2.png").unlink()
    main(["validate", str(root), "--fix", str(copy)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"repaired copy: {copy} (kept 2 of 3 images, 1 of 3 objects)"


def test_what_is_wrong_is_said_before_a_repair_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [], images=1)
    (root / "train/train_1.png").unlink()
    command = ["validate", str(root), "--fix", str(tmp_path / "new")]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert "the image train/train_1.png is missing" in out
    assert "no image of it could be kept" in err
    assert main([*command, "--json"]) == 2
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert "no image of it could be kept" in report["not_repaired"]
    assert report["not_repaired"] in err
    assert "is missing" in report["problems"][0]["problem"]


def test_annotations_that_are_no_objects_and_lack_keys_are_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = {"image_id": 2, "category_id": 3, "bbox": [5, 5, 10, 10]}
    outlined = {**bare, "bbox": [30, 5, 10, 10], "segmentation": [[30, 5, 40, 5, 40, 15]]}
    root = write_coco(tmp_path / "coco", [5, bare, outlined])
    problems, copy = check_and_repair(root, capsys)
    assert [each["object"] for each in problems] == [f"annotation number {n}" for n in (1, 2, 3)]
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
    assert "leaves its image of [80, 100] (height, width), as 11 of 11 boxes" in found["problem"]
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
        ("no size", "does not give the size", 3),
        ("same id", "its id is that of image number 1, too", 1),
        ("same file", "its file 'train_1.png' is that of image number 1, too", 1),
        ("outside", "may leave the root", 2),
        ("missing", "the image train/train_2.png is missing", 2),
        ("empty", "the image file is empty", 2),
        ("other size", "the picture is 100x80 (width x height) but", 3),
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
        ("[]", "holds no JSON object"),
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


def test_a_split_of_which_nothing_is_left_is_not_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc = write_voc(tmp_path / "voc", {"a": []}, {"train": ["a"]})
    coco = write_coco(tmp_path / "coco", [], images=1)
    (voc / "JPEGImages/a.png").unlink()
    (coco / "train/train_1.png").unlink()
    for root in (voc, coco):
        assert main(["validate", str(root), "--fix", str(tmp_path / "new")]) == 2
        assert "no image of it could be kept" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_a_sound_dataset_has_no_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc = write_voc(tmp_path / "voc", {"a": [voc_object("dog", GOOD)]}, {"train": ["a"]})
    coco = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])])
    for root in (voc, coco):
        assert validate(root, capsys, "--strict") == (0, [])


def test_problems_are_printed_errors_first_and_limited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [
        coco_object(n, 1, [90, 5, 20, n], category_id=99 if n > 3 else 3) for n in range(1, 7)
    ]
    root = write_coco(tmp_path / "coco", objects)
    assert main(["validate", str(root), "--most", "4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["error"] * 3 + ["warning"]
    assert lines[4:] == ["... and 2 more; --most 0 shows all of them", "3 errors, 3 warnings"]


def test_bccd_has_its_two_boxes_without_area(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (SHARED / "bccd").is_dir():
        pytest.skip("bccd is not here")
    copy = tmp_path / "repaired"
    code, problems = validate(SHARED / "bccd", capsys, "--skip-pixels", "--fix", str(copy))
    assert code == 1
    assert [(each["file"], each["object"]) for each in problems] == [
        ("Annotations/BloodImage_00338.xml", "object 13 ('RBC')"),
        ("Annotations/BloodImage_00343.xml", "object 4 ('RBC')"),
    ]
    assert validate(copy, capsys, "--skip-pixels") == (0, [])
    before, after = load_voc(SHARED / "bccd", ["trainval"]), load_voc(copy, ["trainval"])
    assert (before.dropped, after.dropped) == (2, 0)
    assert before.boxes.tolist() == after.boxes.tolist()


@pytest.mark.parametrize("name", ["coco_open", "dsb2018_nuclei"])
def test_the_real_coco_data_has_no_problems(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not here")
    assert validate(SHARED / name, capsys, "--skip-pixels") == (0, [])
