"""What a repaired copy holds of a dataset in which little is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets_on_disk import coco_object, fingerprint, voc_object, write_coco, write_voc
from validating import GOOD, check_and_repair, validate

from data.formats.coco import load_coco
from data.formats.voc import load_voc
from scripts.datasets import main


def test_what_lists_name_is_kept_wherever_it_lies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a", "street/b", ".hidden"]
    root = write_voc(tmp_path / "voc", {name: [voc_object("x", GOOD)] for name in names}, {})
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\ncam/b\n.hidden\n")
    (root / "elsewhere").mkdir()
    (root / "Annotations/street").rename(root / "elsewhere/street")
    (root / "Annotations/cam").symlink_to(root / "elsewhere/street")
    (root / "JPEGImages/street").rename(root / "JPEGImages/cam")
    problems, copy = check_and_repair(root, capsys)
    assert problems == []
    assert load_voc(copy, ["train"]).names.tolist() == ["a", "cam/b", ".hidden"]
    assert len(load_voc(copy, ["train"]).boxes) == 3


def test_what_no_split_lists_is_copied_with_all_splits_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("x", GOOD)] for name in ("a", "b", "c")}
    root = write_voc(tmp_path / "voc", images, {"train": ["a"], "val": ["b"]})
    (root / "ImageSets/Main/x_train.txt").write_text("a 1\n")
    (root / "ImageSets/Main/x_val.txt").write_text("b 1\n")
    (root / "Annotations/b.xml").write_text("no XML")
    copy = tmp_path / "train alone"
    assert validate(root, capsys, "--splits", "train", "--fix", str(copy)) == (0, [])
    assert sorted(fingerprint(copy)) == [
        "Annotations/a.xml",
        "ImageSets/Main/train.txt",
        "ImageSets/Main/x_train.txt",
        "JPEGImages/a.png",
    ]
    (root / "Annotations/b.xml").write_text((root / "Annotations/a.xml").read_text())
    everything = tmp_path / "everything"
    validate(root, capsys, "--fix", str(everything))
    assert fingerprint(everything).keys() == fingerprint(root).keys()


def test_what_came_from_coco_still_goes_back_after_a_repair_and_a_division(tmp_path: Path) -> None:
    objects = [coco_object(n, n, [90, 10, 30, 20], area=500) for n in (1, 2, 3, 4)]
    root = write_coco(tmp_path / "coco", objects, images=4)
    voc, mended, back = tmp_path / "voc", tmp_path / "mended", tmp_path / "back"
    assert main(["convert", str(root), str(voc)]) == 0
    assert main(["validate", str(voc), "--fix", str(mended)]) == 0
    divide = ["split", str(mended), "--names", "fit", "check", "--fractions", "0.5", "0.5"]
    assert main(divide) == 0
    assert main(["convert", str(mended), str(back)]) == 0
    before = json.loads((root / "annotations/instances_train.json").read_text())
    for split in ("train", "fit"):
        after = json.loads((back / f"annotations/instances_{split}.json").read_text())
        assert after["categories"] == before["categories"]
        assert {(item["bbox"][2], item["area"]) for item in after["annotations"]} == {(10, 200)}
    whole = json.loads((back / "annotations/instances_train.json").read_text())
    assert whole["info"] == before["info"]


def test_a_cut_box_with_a_corner_twice_has_the_area_of_the_last(tmp_path: Path) -> None:
    extra = '<coco>{"area": 5000}</coco>'
    text = voc_object("x", (50, 11, 120, 50), extra).replace("<xmin>", "<xmin>abc</xmin><xmin>")
    root = write_voc(tmp_path / "voc", {"a": [text]}, {"train": ["a"]})
    copy = tmp_path / "copy"
    assert main(["validate", str(root), "--splits", "./train", "--fix", str(copy)]) == 0
    assert '{"area": 2040}' in (copy / "Annotations/a.xml").read_text()  # 51 x 40


def test_a_dataset_whose_name_ends_like_a_folder_of_voc_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "kit"
    write_voc(root / "NewAnnotations", {"a": [voc_object("x", GOOD)]}, {"train": ["a"]})
    problems, copy = check_and_repair(root, capsys)
    assert problems == []
    assert fingerprint(copy) == fingerprint(root)


def test_a_copy_that_cannot_be_is_refused_before_anything_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [voc_object("x", (7, 7, 7, 9))]}, {"train": ["a"]})
    for options, message in (
        (["--fix", str(root)], "already exists"),
        (["--fix", str(root / "inside")], "is inside the dataset"),
        (["--hardlink"], "add --fix"),
    ):
        assert main(["validate", str(root), *options]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert "has no area" not in captured.out


def test_an_area_of_nothing_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 10], area=0)])
    (problem,), copy = check_and_repair(root, capsys)
    assert (problem["severity"], problem["object"]) == ("warning", "annotation 1 (number 1)")
    assert "its area is 0" in problem["problem"]
    assert load_coco(copy, "train").areas.tolist() == [200]


@pytest.mark.parametrize("name", ["TRAIN_1.png", "tr\u00e4in_1.png"])
def test_a_picture_of_another_spelling_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 10])])
    there = name if name.isascii() else "tra\u0308in_1.png"
    asked = "train_1.png" if name.isascii() else name
    (root / "train/train_1.png").rename(root / "train" / there)
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text().replace("train_1.png", asked))
    _, (problem,) = validate(root, capsys)
    assert problem["problem"] == f"the image train/{asked} is missing"
    assert problem["cure"].startswith(f"there is {there!r}, which differs only in letter case")
