"""VOC to COCO and back, COCO to VOC and back: nothing is lost, and what is read stays the same."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from datasets_on_disk import SHARED, coco_object, fingerprint, voc_object, write_coco, write_voc

from data.annotations import Annotations
from data.errors import InputError
from data.formats.coco import load_coco
from data.formats.voc import load_voc
from scripts.dataset_tools.interchange import annotation_of, document_of, image_of, object_of
from scripts.dataset_tools.layout import recognize
from scripts.dataset_tools.output_folder import new_folder
from scripts.datasets import main


def canonical(element: ElementTree.Element) -> str:
    return ElementTree.canonicalize(ElementTree.tostring(element), strip_text=True)


def there_and_back(root: Path, folder: Path, *options: str) -> tuple[Path, Path]:
    there, back = folder / "there", folder / "back"
    for source, target in ((root, there), (there, back)):
        command = ["convert", str(source), str(target), "--hardlink", *options]
        assert main(command) == 0
    return there, back


def assert_same_xml(root: Path, back: Path) -> None:
    names = sorted(path.name for path in (root / "Annotations").glob("*.xml"))
    assert names == sorted(path.name for path in (back / "Annotations").glob("*.xml"))
    for name in names:
        before, after = (
            ElementTree.canonicalize(from_file=str(each / "Annotations" / name), strip_text=True)
            for each in (root, back)
        )
        assert before == after


def by_id(document: dict[str, Any]) -> dict[str, Any]:
    """Annotations in no order: they come back image by image."""
    return {**document, "annotations": {each["id"]: each for each in document["annotations"]}}


def assert_same_json(root: Path, back: Path) -> None:
    for path in (root / "annotations").glob("*.json"):
        before = json.loads(path.read_text())
        after = json.loads((back / "annotations" / path.name).read_text())
        assert by_id(before) == by_id(after)


def assert_same_objects(one: Annotations, other: Annotations) -> None:
    order, other_order = np.argsort(one.names), np.argsort(other.names)
    one, other = one.select(order), other.select(other_order)
    other = other.relabel(one.classes)
    assert one.names.tolist() == other.names.tolist()
    np.testing.assert_array_equal(one.sizes, other.sizes)
    np.testing.assert_array_equal(one.offsets, other.offsets)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-9)
    np.testing.assert_array_equal(one.labels, other.labels)


VOC_2012 = (
    "<object><name>person</name><pose>Left</pose><truncated>1</truncated>"
    "<difficult>1</difficult><bndbox><xmax>50</xmax><xmin>10</xmin><ymax>60</ymax><ymin>20</ymin>"
    "</bndbox><part><name>head</name><bndbox><xmin>12.5</xmin><ymin>21</ymin><xmax>20</xmax>"
    "<ymax>30</ymax></bndbox></part></object>"
)


@pytest.mark.parametrize("zero_based", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        VOC_2012,
        voc_object("cat", (1, 1, 100, 80)),
        voc_object("cat", (1.5, 2.25, 3.125, 4.5)),
        voc_object("cat", (7, 8, 7, 9)),  # no area
        voc_object("cat", (5, 6, 7, 8), ""),
        voc_object("cat", (5, 6, 7, 8), "<difficult>true</difficult>"),
        voc_object("cat", (5, 6, 7, 8), "<difficult/>"),
        voc_object("cat", (5, 6, 7, 8), "<difficult>Unspecified</difficult>"),
        voc_object("a &lt;b&gt; ü", (5, 6, 7, 8)),
        VOC_2012.replace("</object>", "<name>of two the last counts</name></object>"),
    ],
)
def test_an_object_of_voc_comes_back_the_same(text: str, zero_based: bool) -> None:
    element = ElementTree.fromstring(text)
    name, annotation = annotation_of(element, zero_based)
    annotation = json.loads(json.dumps({"id": 4, "image_id": 2, "category_id": 9, **annotation}))
    assert canonical(object_of(annotation, name, zero_based)) == canonical(element)


@pytest.mark.parametrize("zero_based", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"iscrowd": 1, "segmentation": {"size": [80, 100], "counts": [10, 20, 7970]}},
        {"difficult": 1},
        {"difficult": 0},
        {"difficult": 1, "iscrowd": 1},
        {"segmentation": [[1.5, 2, 3, 4, 5, 6.25]], "keypoints": [1, 2, 2], "note": "ü <&> \u0007"},
        {"bbox": [0, 0, 1, 1]},  # one pixel: not to be said in inclusive pixels
        {"bbox": [3.3, 4.4, 0.5, 0]},
        {"bbox": [-3.25, 4, 0.01, 200.5]},
        {"bbox": [1e-7, 0.1, 0.2, 1e15]},
    ],
)
def test_an_annotation_of_coco_comes_back_the_same(more: dict[str, Any], zero_based: bool) -> None:
    annotation = {**coco_object(5, 1, [0.1, 0.2, 30.3, 40.07]), **more}
    element = object_of(annotation, "cat", zero_based)
    name, back = annotation_of(ElementTree.fromstring(ElementTree.tostring(element)), zero_based)
    assert name == "cat"
    assert {"image_id": 1, "category_id": 3, **back} == annotation


def test_random_boxes_of_decimals_come_back_digit_for_digit() -> None:
    draw = random.Random(0)
    for _ in range(2000):
        box = [round(draw.uniform(0, 900), draw.randrange(6)) for _ in range(4)]
        element = object_of(coco_object(1, 1, box), "cat", zero_based=False)
        _, back = annotation_of(element, zero_based=False)
        assert list(map(repr, back["bbox"])) == list(map(repr, box))


def test_the_parts_of_an_image_that_only_voc_has_keep_their_places() -> None:
    text = (
        "<annotation><filename>1.jpg</filename><folder>VOC2012</folder><object/><object/>"
        "<segmented>0</segmented><size><depth>3</depth><height>80</height><width>100</width>"
        "</size><source><image>flickr</image></source></annotation>"
    )
    image = image_of(ElementTree.fromstring(text), "1.jpg", (80, 100))
    assert (image["file_name"], image["height"], image["width"]) == ("1.jpg", 80, 100)
    objects = [ElementTree.Element("object"), ElementTree.Element("object")]
    assert canonical(document_of({"id": 9, **image}, objects)) == canonical(
        ElementTree.fromstring(text)
    )
    unsized = ElementTree.fromstring(text.replace("80", "0").replace("100", "0"))
    back = document_of({"id": 9, **image_of(unsized, "1.jpg", (0, 0))}, objects)
    assert canonical(back) == canonical(unsized)
    objects.append(ElementTree.fromstring("<object><name>new</name></object>"))
    assert document_of(image, objects)[-1].findtext("name") == "new"
    assert len(document_of(image, objects[:1]).findall("object")) == 1


def test_a_change_made_in_coco_shows_in_voc() -> None:
    element = ElementTree.fromstring(VOC_2012)
    _, annotation = annotation_of(element, zero_based=False)
    annotation.update(bbox=[0, 0, 5, 6], difficult=0)
    changed = object_of(annotation, "dog", zero_based=False)
    assert changed.findtext("name") == "dog"
    assert changed.findtext("difficult") == "0"
    assert changed.findtext("bndbox/xmax") == "5"
    assert changed.findtext("pose") == "Left"


def test_a_crowd_is_difficult_in_voc_so_that_nobody_trains_on_it(tmp_path: Path) -> None:
    objects = [coco_object(1, 1, [5, 5, 20, 20], iscrowd=1), coco_object(2, 1, [50, 5, 20, 20])]
    there, back = there_and_back(write_coco(tmp_path / "coco", objects), tmp_path)
    assert load_voc(there, ["train"]).difficult.tolist() == [True, False]
    assert load_coco(back, "train").crowd.tolist() == [True, False]
    assert load_coco(back, "train").difficult.tolist() == [False, False]


def test_difficult_objects_stay_difficult_in_coco(tmp_path: Path) -> None:
    hard = voc_object("dog", (5, 5, 20, 20), "<difficult>1</difficult>")
    images = {"a": [hard, voc_object("dog", (30, 5, 60, 20))], "b": []}
    root = write_voc(tmp_path / "voc", images, {"train": ["a", "b"]})
    there, back = there_and_back(root, tmp_path)
    annotations = load_coco(there, "train")
    assert annotations.difficult.tolist() == [True, False]
    assert annotations.training_counts(use_difficult=False).tolist() == [1, 0]
    assert_same_objects(load_voc(root, ["train"]), annotations)
    assert_same_xml(root, back)


def test_overlapping_splits_of_voc_and_their_order_come_back(tmp_path: Path) -> None:
    images = {name: [voc_object("x", (2, 3, 40, 50))] for name in ("c", "a", "b")}
    splits = {"train": ["c", "a"], "val": ["b"], "trainval": ["b", "c", "a"]}
    root = write_voc(tmp_path / "voc", images, splits)
    there, back = there_and_back(root, tmp_path)
    assert load_coco(there, "trainval").image_ids.tolist() == [2, 3, 1]  # one id in every split
    for split in splits:
        path = f"ImageSets/Main/{split}.txt"
        assert (back / path).read_text() == (root / path).read_text()


def test_thin_boxes_of_coco_can_be_trained_on_in_voc(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [10, 10, 0.5, 30])])
    there, back = there_and_back(root, tmp_path)
    assert load_voc(there, ["train"]).boxes.tolist() == [[10, 10, 12, 40]]
    assert_same_json(root, back)
    wider = write_coco(tmp_path / "wider", [coco_object(1, 1, [10, 10, 1.25, 1.5])])
    there, back = there_and_back(wider, tmp_path / "inclusive")
    assert load_voc(there, ["train"]).boxes.tolist() == [[10, 10, 11.25, 11.5]]
    assert "exact_bbox" not in (there / "Annotations/train_1.xml").read_text()
    assert_same_json(wider, back)
    there, back = there_and_back(root, tmp_path / "zero", "--zero-based")
    assert load_voc(there, ["train"], zero_based=True).boxes.tolist() == [[10, 10, 10.5, 40]]
    assert_same_json(root, back)


def test_bccd_comes_back_the_same(tmp_path: Path) -> None:
    root = shared("bccd")
    there, back = there_and_back(root, tmp_path)
    assert_same_xml(root, back)
    for split in recognize(root).splits:
        assert_same_objects(load_voc(root, [split]), load_coco(there, split))
    images = {name: content for name, content in fingerprint(root).items() if "JPEG" in name}
    assert images.items() <= fingerprint(back).items()


@pytest.mark.parametrize("name", ["dsb2018_nuclei", "coco_open"])
def test_real_coco_data_comes_back_the_same(name: str, tmp_path: Path) -> None:
    root = shared(name)
    there, back = there_and_back(root, tmp_path)
    assert_same_json(root, back)
    for split in recognize(root).splits:
        before, after = load_coco(root, split), load_coco(back, split)
        np.testing.assert_array_equal(np.sort(before.areas), np.sort(after.areas))
        assert before.crowd.sum() == after.crowd.sum()
        as_voc = load_voc(there, [split])
        assert as_voc.difficult.sum() == before.crowd.sum()
        assert len(as_voc.boxes) == len(before.boxes)


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not here")
    return SHARED / name


def test_the_original_is_not_touched(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])])
    before = fingerprint(root)
    there_and_back(root, tmp_path)
    assert fingerprint(root) == before


def test_an_output_that_exists_is_refused_and_a_failure_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 99, [5, 5, 20, 20])])
    assert main(["convert", str(root), str(root)]) == 2
    assert "already exists; choose a new folder" in capsys.readouterr().err
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert "image_id 99 is not among the file's images" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco"]


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "coco", "coco/inner"],
        ["validate", "coco", "--fix", "coco/inner"],
        ["split", "coco", "--fractions", "0.5", "0.5", "--output", "link/inner"],
        ["validate", "coco", "--fix", "link/../coco/a/b"],
    ],
)
def test_nothing_is_written_into_the_dataset_that_is_read(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write_coco(Path("coco"), [coco_object(1, 1, [5, 5, 20, 20])])
    Path("link").symlink_to("coco")
    before = fingerprint(root)
    assert main(command) == 2
    assert "is inside the dataset coco; choose a folder outside" in capsys.readouterr().err
    assert fingerprint(root) == before


def test_a_file_that_cannot_be_read_is_not_an_output_that_cannot_be_written(
    tmp_path: Path,
) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(InputError, match="gone: cannot be read"), new_folder(tmp_path / "new"):
        gone.read_bytes()
    with (
        pytest.raises(InputError, match="new: cannot be written"),
        new_folder(tmp_path / "new") as f,
    ):
        (f / "no/folder").write_bytes(b"")
    (tmp_path / "file").touch()
    target = tmp_path / "file/new"
    with pytest.raises(InputError, match="new: cannot be written"), new_folder(target):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "../a.png"}, "may leave the root"),
        ({"voc_name": "../../a"}, "may leave the root"),
        ({"voc_xml": "<!DOCTYPE a [<!ENTITY x 'y'>]><annotation>&x;</annotation>"}, "voc_xml is"),
        ({"voc_xml": 5}, "voc_xml is 5"),
    ],
)
def test_hostile_entries_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    root = write_coco(tmp_path / "coco", [])
    path = root / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    document["images"][0].update(change)
    path.write_text(json.dumps(document))
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert message in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["coco"]


def test_two_images_of_one_id_are_refused_as_training_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])])
    path = root / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    document["images"][1]["id"] = document["images"][0]["id"]
    path.write_text(json.dumps(document))
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert "both have id 1; give each its own" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])])
    path = root / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    document["images"][1]["file_name"] = "train_1.jpg"
    path.write_text(json.dumps(document))
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2


def test_two_empty_images_of_one_name_are_one_only_if_they_are_one_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [], images=1)
    write_coco(root, [], images=1, split="val")
    path = root / "annotations/instances_val.json"
    path.write_text(path.read_text().replace("val_1.png", "train_1.png"))
    one, other = root / "train/train_1.png", root / "val/train_1.png"
    (root / "val/val_1.png").rename(other)
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert "another image has the same name 'train_1' (in " in capsys.readouterr().err
    other.write_bytes(one.read_bytes())
    assert main(["convert", str(root), str(tmp_path / "new")]) == 0
    assert len(list((tmp_path / "new/JPEGImages").iterdir())) == 1


def test_two_annotation_files_of_one_picture_are_refused_as_training_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [], "b": []}, {"train": ["a", "b"], "val": ["b"]})
    (root / "JPEGImages/a.png").rename(root / "JPEGImages/picture.png")
    (root / "JPEGImages/b.png").unlink()
    for name in ("a", "b"):
        path = root / f"Annotations/{name}.xml"
        path.write_text(path.read_text().replace(f"{name}.png", "picture.png"))
    command = ["convert", str(root), str(tmp_path / "new")]
    assert main(command) == 2
    assert "b.xml: has the same image 'picture.png' as a.xml" in capsys.readouterr().err
    assert main([*command, "--splits", "val"]) == 0


@pytest.mark.parametrize("name", [" train_2", "train_2 ", "\u3000train_2"])
def test_pictures_whose_name_a_list_of_voc_cannot_hold_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text().replace("train_2.png", f"{name}.png"))
    (root / "train/train_2.png").rename(root / f"train/{name}.png")
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert "image 2: the name" in (error := capsys.readouterr().err)
    assert "begins or ends with a space, which VOC readers strip; rename the file" in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["train_2.jfif", "train_2", "train_2.PNG"])
def test_pictures_that_no_reader_of_voc_would_find_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    path = root / "annotations/instances_train.json"
    path.write_text(path.read_text().replace("train_2.png", name))
    (root / "train/train_2.png").rename(root / "train" / name)
    command = ["convert", str(root), str(tmp_path / "new")]
    if name.endswith(".PNG"):
        assert main(command) == 0
        return
    assert main(command) == 2
    error = capsys.readouterr().err
    assert f"image 2: VOC readers would use '{name}.jpg' instead of its image '{name}'" in error


def test_a_picture_that_voc_would_take_from_another_annotation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    path = root / "annotations/instances_train.json"
    document = json.loads(path.read_text())
    document["images"][0]["voc_name"] = "train_2"
    document["images"][1]["voc_name"] = "train_3"
    path.write_text(json.dumps(document))
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    error = capsys.readouterr().err
    assert "would use 'train_2.png' instead of its image 'train_1.png'" in error


@pytest.mark.parametrize("command", ["convert", "split"])
def test_links_out_of_the_root_are_copied_on_request_alone(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    image = root / "train/train_1.png"
    image.rename(tmp_path / "outside.png")
    image.symlink_to(tmp_path / "outside.png")
    new = str(tmp_path / "new")
    output = [new] if command == "convert" else ["--output", new, "--fractions", "0.5", "0.5"]
    assert main([command, str(root), *output]) == 2
    assert "is a link to" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main([command, str(root), *output, "--follow-links"]) == 0
    (copy,) = (tmp_path / "new").rglob("train_1.png")
    assert copy.is_file()
    assert not copy.is_symlink()


def test_the_folder_that_the_user_is_in_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_coco(tmp_path / "coco", [])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["convert", str(root), "."]) == 2
    assert ".: already exists; choose a new folder" in capsys.readouterr().err
    assert main(["convert", str(root), "../empty/new"]) == 0


def test_a_devkit_of_several_years_asks_for_one(tmp_path: Path) -> None:
    write_voc(tmp_path / "kit/VOC2007", {"a": []}, {"train": ["a"]})
    assert main(["convert", str(tmp_path / "kit"), str(tmp_path / "new")]) == 2
    assert main(["convert", str(tmp_path / "kit/VOC2007"), str(tmp_path / "new")]) == 0


@pytest.mark.parametrize("text", ["[1]", "no JSON", '{"id": [1]}', "[" * 100_000])
def test_what_the_xml_says_must_be_json(text: str) -> None:
    element = ElementTree.fromstring(voc_object("cat", (1, 2, 3, 4), f"<coco>{text}</coco>"))
    with pytest.raises(InputError, match="not a JSON object"):
        annotation_of(element, zero_based=False)


def test_what_travels_along_cannot_overrule_what_voc_says(tmp_path: Path) -> None:
    hostile = {
        "file_name": "../../outside.png",
        "height": 9,
        "bbox": [1, 1, 1, 1],
        "image_id": 7,
        "exact_bbox": ["x", {}, 1, 1],
        "voc_xml": "<a/>",
        "note": "kept",
    }
    extra = f"<coco>{json.dumps(hostile).replace('<', '&lt;')}</coco>"
    root = write_voc(
        tmp_path / "voc", {"a": [voc_object("cat", (5, 6, 20, 30), extra)]}, {"train": ["a"]}
    )
    path = root / "Annotations/a.xml"
    path.write_text(path.read_text().replace("<segmented>", f"{extra}<segmented>"))
    assert main(["convert", str(root), str(tmp_path / "coco")]) == 0
    document = json.loads((tmp_path / "coco/annotations/instances_train.json").read_text())
    (image,), (item,) = document["images"], document["annotations"]
    assert (image["file_name"], image["height"], image["note"]) == ("a.png", 80, "kept")
    assert (item["bbox"], item["image_id"], item["note"]) == ([4, 5, 16, 25], 1, "kept")
    assert "<a />" not in image["voc_xml"] + item.get("voc_xml", "")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["coco", "voc"]
