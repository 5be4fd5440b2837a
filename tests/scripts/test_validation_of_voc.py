"""What validation names of a VOC dataset, and what a repaired copy is."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets_on_disk import (
    SHARED,
    voc_object,
    write_image,
    write_voc,
)
from validating import GOOD, check_and_repair, validate

from data.formats.voc import load_voc
from scripts.datasets import main

NEITHER = "<difficult>x</difficult><difficult>0.0</difficult>"
VOC_OBJECTS = [
    (voc_object("cat", (7, 7, 7, 9)), "has no area", "error"),
    (voc_object("cat", (200, 7, 220, 9)), "lies outside its image of 100x80", "error"),
    (voc_object("cat", (50, 7, 120, 90)), "extends beyond its image of 100x80", "warning"),
    (voc_object("cat", (0, 7, 20, 30)), "extends beyond its image of 100x80", "warning"),
    (voc_object("cat", (0.1, 0.2, 0.5, 0.4)), "is smaller than a pixel", "error"),
    (voc_object("cat", (30, 7, 10, 9)), "has xmax < xmin or ymax < ymin", "error"),
    (voc_object("cat", ("a", 7, 10, 9)), "<xmin> is 'a', not a coordinate", "error"),
    (voc_object("cat", ("1_5", 7, 20, 9)), "<xmin> is '1_5', not a coordinate", "error"),
    (voc_object("cat", ("nan", 7, 10, 9)), "<xmin> is 'nan', not a coordinate", "error"),
    (voc_object("", (1, 7, 10, 9)), "its <name> is ''", "error"),
    (voc_object("cat", (1, 7, 10, 9), "<difficult>9</difficult>"), "<difficult> is '9'", "error"),
    (voc_object("cat", (1, 7, 30, 9), NEITHER), "<difficult> is '0.0'", "error"),
    ("<object><name>cat</name></object>", "has no <bndbox>", "error"),
    (voc_object("dog", GOOD), "has the same class and box as object 1 ('dog')", "warning"),
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


def test_pixels_counted_from_0_are_named_with_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [voc_object("dog", (0, 0, 99, 79))]}, {"train": ["a"]})
    _, (found,) = validate(root, capsys)
    assert found["problem"].endswith("of 100x80, whose first pixel is 1")
    assert "--zero-based, data.voc.coordinates: zero_based" in found["cure"]
    assert validate(root, capsys, "--zero-based") == (0, [])


def test_all_problems_of_a_file_are_found_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [text for text, _, _ in VOC_OBJECTS]
    root = write_voc(tmp_path / "voc", {"a": [voc_object("dog", GOOD), *texts]}, {"train": ["a"]})
    problems, copy = check_and_repair(root, capsys)
    named = {each["object"].split(" (")[0] for each in problems}
    assert named == {f"object {number}" for number in range(2, len(VOC_OBJECTS) + 2)}
    assert len(problems) == len(VOC_OBJECTS)
    # the good one, two that are cut at the border, one whose flag says 0 in another form
    assert len(load_voc(copy, ["train"]).boxes) == 4
    assert validate(copy, capsys) == (0, [])


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


WIDTHS = {"wrong side": "<width>-4", "small size": "<width>9"}  # the box does not fit into 9
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
    elif what in WIDTHS:
        path = root / "Annotations/b.xml"
        path.write_text(path.read_text().replace("<width>100", WIDTHS[what]))
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
        ("cut image", "the image is truncated after 2000 bytes", 1),
        ("other size", "the image is 150x120 (width x height) but", 1),
        ("small size", "the image is 100x80 (width x height) but", 2),
        ("smaller", "the image is 12x10 (width x height) but", 1),
        ("broken xml", "is not valid XML", 1),
        ("bomb", "declares a DTD or entities", 1),
        ("missing xml", "Annotations/b.xml not found", 1),
        ("twice", "'a' is listed twice", 2),
        ("outside", "may leave the root", 2),
        ("no flag", "Annotations/a 2.xml not found", 2),
        ("wrong side", "<width> is '-4'", 2),
        ("one image twice", "as Annotations/a.xml", 1),
        ("first not its own", "as Annotations/b.xml", 1),
    ],
)
def test_a_wrong_file_of_voc_is_named_and_repaired(
    what: str, problem: str, left: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("dog", GOOD)] for name in ("a", "b")}
    root = write_voc(tmp_path / "voc", images, {"train": ["a", "b"]})
    break_voc(root, what)
    problems, copy = check_and_repair(root, capsys)
    (found,) = [each for each in problems if problem in each["problem"]]
    assert found["severity"] == "error"
    assert not [each for each in problems if "lacks the size" in each["problem"]]
    assert len(load_voc(copy, ["train"])) == left


def test_a_damaged_image_is_not_said_to_be_skipped_where_its_size_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"b": [voc_object("dog", GOOD)]}, {"train": ["b"]})
    break_voc(root, "cut image")
    assert "on_damaged: skip" in validate(root, capsys)[1][0]["cure"]
    path = root / "Annotations/b.xml"
    path.write_text(path.read_text().replace("<width>100</width>", ""))
    assert validate(root, capsys)[1][0]["cure"].endswith("add its size to the annotation")


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
    assert found["problem"] == "its <filename> names the image 'a.png', but 'b.png' is used"
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
    assert found["problem"] == "JPEGImages has a.jpg, a.png with its name; 'a.jpg' is used"


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


def test_all_of_voc_s_classes_are_trained_where_there_are_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object(name, GOOD)] for name in ("cat", "cow", "asp")}
    root = write_voc(tmp_path / "voc", images, {"train": ["cat"], "val": ["cow"], "test": ["asp"]})
    assert validate(root, capsys, "--splits", "train", "val") == (0, [])
    assert validate(root, capsys)[0] == 1


def test_only_trainval_and_its_own_parts_may_share_images_in_voc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = ["train", "val", "trainval", "trainval_b", "val_b", "fit", "check"]
    members = {name: ["a"] if name == "val" else ["b"] for name in lists}
    members["trainval"] = ["a", "b"]
    objects = [voc_object("dog", GOOD)]
    root = write_voc(tmp_path / "voc", {"a": objects, "b": objects}, members)
    _, problems = validate(root, capsys, "--splits", *lists)
    assert {each["file"] for each in problems} == {
        "train and trainval_b", "train and val_b", "train and fit", "train and check",
        "trainval and trainval_b", "trainval and val_b", "trainval and fit", "trainval and check",
        "trainval_b and fit", "trainval_b and check", "val_b and fit", "val_b and check",
        "fit and check",
    }  # fmt: skip


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


def test_only_difficult_objects_to_train_on_are_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [voc_object("dog", GOOD, "<difficult>1</difficult>")]
    root = write_voc(tmp_path / "voc", {"a": objects}, {"train": ["a"]})
    code, (found,) = validate(root, capsys)
    assert (code, found["severity"]) == (0, "warning")
    assert found["problem"] == "has no object to train on except difficult ones"


def test_an_annotation_is_not_listed_by_a_longer_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("dog", GOOD)] for name in ("a", "a.v1")}
    root = write_voc(tmp_path / "voc", images, {"train": ["a.v1"]})
    _, (found,) = validate(root, capsys)
    assert (found["file"], found["problem"]) == ("Annotations/a.xml", "no split lists it")


def test_names_with_an_ending_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [voc_object("dog", GOOD)] for name in "ab"}
    root = write_voc(tmp_path / "voc", images, {"train": ["a.png", "b.png"]})
    code, problems = validate(root, capsys)
    assert code == 1
    assert [each["object"] for each in problems] == ["line 1", "line 2"]
    assert all("must be a name without folder" in each["problem"] for each in problems)
