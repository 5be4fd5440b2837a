"""Validation names every problem; a repaired copy has no errors; the original is only read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets_on_disk import (
    coco_object,
    voc_object,
    write_coco,
    write_voc,
)
from PIL import Image
from validating import GOOD, check_and_repair, validate

from data.build import build_annotations
from data.config import DataConfig
from data.errors import InputError
from scripts.datasets import main


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
    assert "add --follow-links" in capsys.readouterr().err
    assert validate(root, capsys, "--follow-links") == (0, [])
    command = ["validate", str(root), "--follow-links", "--fix", str(tmp_path / "repaired")]
    assert main(command) == 0
    capsys.readouterr()
    assert validate(tmp_path / "repaired", capsys) == (0, [])


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_class_that_no_split_to_train_on_has_is_an_error_as_in_training(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "voc":
        images = {name: [voc_object(f"class {name}", GOOD)] for name in "abc"}
        lists = {"train": ["a"], "train_b": ["b"], "val": ["a", "b", "c"]}
        root, first = write_voc(tmp_path / "set", images, lists), "Annotations/c.xml"
    else:
        own = [coco_object(1, 1, [5, 5, 9, 9], category_id=3)]
        root = write_coco(tmp_path / "set", own, categories=[{"id": 3, "name": "class a"}])
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
    assert found["problem"].endswith("which Train lacks")
    assert validate(root, capsys) == (0, [])  # TrainVal has it, and shares images by design


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_pictures_whose_orientation_no_size_tells_are_counted(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "voc":
        names = [f"JPEGImages/{name}.png" for name in "abcd"]
        objects = [voc_object("dog", GOOD)]
        write_voc(tmp_path, dict.fromkeys("abcd", objects), {"train": list("abcd")})
    else:
        names = [f"train/train_{number}.png" for number in range(1, 5)]
        write_coco(tmp_path, [coco_object(1, 1, [5, 5, 9, 9])], images=4)
    for seed, (name, orientation) in enumerate(zip(names, (3, 6, 1, 2), strict=True)):
        pixels = np.random.default_rng(seed).integers(0, 255, (80, 100, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    code, (found,) = validate(tmp_path, capsys)
    assert (code, found["severity"], found["file"]) == (0, "warning", names[0])
    assert found["problem"].startswith("2 images (the first is named) with an EXIF orientation")
    assert found["problem"].endswith(
        "where the size is conclusive, 0 have boxes in upright and 1 in stored pixels"
    )
    assert validate(tmp_path, capsys, "--skip-pixels") == (0, [])


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_a_repair_does_not_say_of_which_pixels_boxes_are(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if layout == "voc":
        root = write_voc(tmp_path / "set", {"a": [voc_object("dog", GOOD)]}, {"train": ["a"]})
        path, size, picture = root / "Annotations/a.xml", "<size>.*</size>", "JPEGImages/a.png"
    else:
        root = write_coco(tmp_path / "set", [coco_object(1, 1, [5, 5, 9, 9])], images=1)
        path, picture = root / "annotations/instances_train.json", "train/train_1.png"
        size = ', "height": 80, "width": 100'
    before = path.read_text()
    path.write_text(re.sub(size, "", before, flags=re.DOTALL))
    assert path.read_text() != before
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80), "red").save(root / picture, exif=exif)
    problems, copy = check_and_repair(root, capsys)
    assert [each["repair"] for each in problems] == ["", ""]
    assert validate(copy, capsys) == (0, problems)


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
        "1 image in both, the first: 'Annotations/b.xml'",
        "is the same image as JPEGImages/a.png",
        "no split lists it",
    }
    assert validate(root, capsys, "--strict")[0] == 1


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
    assert "no image could be kept" in err
    assert main([*command, "--json"]) == 2
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert "no image could be kept" in report["not_repaired"]
    assert report["not_repaired"] in err
    assert "is missing" in report["problems"][0]["problem"]


def test_a_split_of_which_nothing_is_left_is_not_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voc = write_voc(tmp_path / "voc", {"a": []}, {"train": ["a"]})
    coco = write_coco(tmp_path / "coco", [], images=1)
    (voc / "JPEGImages/a.png").unlink()
    (coco / "train/train_1.png").unlink()
    for root in (voc, coco):
        assert main(["validate", str(root), "--fix", str(tmp_path / "new")]) == 2
        assert "no image could be kept" in capsys.readouterr().err
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
    assert lines[4:] == ["... and 2 more; --most 0 shows all", "3 errors, 3 warnings"]


def test_an_image_whose_size_is_left_open_goes_where_its_boxes_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Upright it is 80 pixels wide."""
    images = {"a": [voc_object("dog", GOOD)], "b": [voc_object("dog", (50, 5, 95, 60))]}
    root = write_voc(tmp_path / "voc", images, {"train": ["a", "b"]})
    path = root / "Annotations/b.xml"
    path.write_text(re.sub("<size>.*</size>", "", path.read_text(), flags=re.DOTALL))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80), "red").save(root / "JPEGImages/b.png", exif=exif)
    problems, copy = check_and_repair(root, capsys)
    assert "removes the image and its objects" in [each["repair"] for each in problems]
    assert [path.name for path in (copy / "Annotations").iterdir()] == ["a.xml"]


def test_warnings_that_say_the_same_of_several_objects_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [coco_object(n, 1, [5 * n, 5, 20, 20]) for n in (1, 2, 3)]
    for each in objects:
        del each["area"]
    root = write_coco(tmp_path / "coco", objects)
    assert main(["validate", str(root)]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert "annotation 1 (number 1): has no area, which other programs need" in first
    assert first.endswith("or let --fix do so (and of 2 more)")
    assert rest == ["0 errors, 3 warnings"]
