"""From the config to annotations: formats, lists of splits, and images that must be there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from data.build import FORMATS, build_annotations, known_classes
from data.config import DataConfig
from data.errors import InputError
from data.paths import inner_path

SHARED = Path(__file__).parents[2] / "../shared"
BCCD = SHARED / "data/bccd"
COCO_OPEN = SHARED / "data/coco_open"
DEVKIT = SHARED / "fixtures/voc_devkit"
VOC_ANNOTATION = "<annotation><size><width>9</width><height>9</height></size></annotation>"


def make_coco(root: Path, split: str = "val", names: tuple[str, ...] = ("a.jpg",)) -> DataConfig:
    """A COCO dataset of empty image files with one object each."""
    images = [{"id": i, "file_name": name, "height": 8, "width": 8} for i, name in enumerate(names)]
    objects = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4]} for i in range(len(names))
    ]
    content = {
        "images": images,
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    for name in names:
        (root / split / name).parent.mkdir(parents=True, exist_ok=True)
        (root / split / name).touch()
    return DataConfig(format="coco", root=root, train="train", val="val")


def test_every_format_of_the_config_has_its_loader() -> None:
    assert set(FORMATS) == set(DataConfig.model_fields["format"].annotation.__args__)


def test_images_in_folders_are_found(tmp_path: Path) -> None:
    config = make_coco(tmp_path, names=("a.jpg", "b/c.jpg", "b/d/e.jpg"))
    assert len(build_annotations(config, config.val)) == 3


@pytest.mark.parametrize(("boxes", "refused"), [(10, True), (9, False)])
def test_fractions_of_the_image_are_no_boxes(boxes: int, refused: bool, tmp_path: Path) -> None:
    config = make_coco(tmp_path, names=("a.jpg",))
    path = tmp_path / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    one = {"image_id": 0, "category_id": 1, "bbox": [0.1, 0.2, 0.5, 0.4]}
    content["annotations"] = [{"id": number, **one} for number in range(boxes)]
    path.write_text(json.dumps(content))
    if refused:
        with pytest.raises(InputError, match=r"10 of its 10 boxes .* fractions of its size"):
            build_annotations(config, config.val)
    else:
        assert len(build_annotations(config, config.val).boxes) == boxes


def test_missing_images_are_counted_and_named(tmp_path: Path) -> None:
    config = make_coco(tmp_path, names=("a.jpg", "b.jpg", "c/d.jpg"))
    (tmp_path / "val/b.jpg").unlink()
    (tmp_path / "val/c/d.jpg").unlink()
    with pytest.raises(InputError, match=r"2 of 3 images are missing .*: 'val/b\.jpg', 'val/c/d"):
        build_annotations(config, "val")
    assert len(build_annotations(config, "val", check_images=False)) == 3


def test_a_folder_of_images_that_is_not_there_is_named(tmp_path: Path) -> None:
    config = make_coco(tmp_path)
    (tmp_path / "val").rename(tmp_path / "images")
    with pytest.raises(InputError, match="there is no folder 'val': move or rename the one that"):
        build_annotations(config, "val")


def test_a_name_in_another_normal_form_is_said_to_be_there(tmp_path: Path) -> None:
    config = make_coco(tmp_path, names=("caf\u00e9.jpg",))
    (tmp_path / "val/caf\u00e9.jpg").rename(tmp_path / "val/cafe\u0301.jpg")
    with pytest.raises(InputError, match="or Unicode normal form"):
        build_annotations(config, "val")


def test_a_folder_in_an_image_s_place_is_no_image(tmp_path: Path) -> None:
    config = make_coco(tmp_path)
    (tmp_path / "val/a.jpg").unlink()
    (tmp_path / "val/a.jpg").mkdir()
    with pytest.raises(InputError, match="1 of 1 images are missing"):
        build_annotations(config, "val")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_leaves_the_root_is_refused_unless_trusted(tmp_path: Path, what: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root, outside):
        folder.mkdir()
    config = make_coco(root)
    link, target = (
        (root / "val/a.jpg", outside / "a.jpg") if what == "file" else (root / "val", outside)
    )
    link.rename(target)
    link.symlink_to(target)
    with pytest.raises(InputError, match="outside the root of the data"):
        build_annotations(config, "val")
    trusting = config.model_copy(update={"follow_links": True})
    assert len(build_annotations(trusting, "val")) == 1


def test_links_inside_the_root_and_to_the_root_are_fine(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    make_coco(root, names=("a.jpg", "b.jpg"))
    (root / "val/a.jpg").unlink()
    (root / "val/a.jpg").symlink_to("b.jpg")
    (tmp_path / "link").symlink_to(root)
    config = DataConfig(format="coco", root=tmp_path / "link")
    assert len(build_annotations(config, "val")) == 2


def test_several_coco_splits_share_their_classes(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", ("a.jpg", "b.jpg"))
    config = make_coco(tmp_path, "val", ("c.jpg",))
    both = build_annotations(config, ["train", "val"], classes=["dog", "cat"])
    assert both.files.tolist() == ["train/a.jpg", "train/b.jpg", "val/c.jpg"]
    assert both.image_ids.tolist() == [1, 2, 3]
    assert (both.classes, both.labels.tolist()) == (("dog", "cat"), [1, 1, 1])


def test_classes_of_a_checkpoint_go_before_those_of_the_config(tmp_path: Path) -> None:
    config = make_coco(tmp_path).model_copy(update={"classes": ("cat", "dog")})
    assert build_annotations(config, "val").classes == ("cat", "dog")
    assert build_annotations(config, "val", classes=["dog", "cat"]).classes == ("dog", "cat")


def test_a_role_stands_for_its_splits_and_any_other_name_for_itself() -> None:
    config = DataConfig(train=("a", "b"), val="test")
    assert [config.split(name) for name in ("train", "val", "test")] == [("a", "b"), "test", "test"]


def test_classes_are_those_listed_else_those_of_the_train_split_if_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_coco(tmp_path, "train")
    assert known_classes(config) == ("cat", "dog")
    assert known_classes(config.model_copy(update={"classes": ("dog",)})) == ("dog",)
    assert not caplog.records
    assert known_classes(config.model_copy(update={"train": "gone"})) is None
    assert "class names of the scored split, because" in caplog.text
    assert "instances_gone.json" in caplog.text


def test_a_split_of_which_nothing_remains_is_an_error(tmp_path: Path) -> None:
    config = make_coco(tmp_path)
    path = tmp_path / "annotations/instances_val.json"
    path.write_text(path.read_text().replace("[1, 1, 4, 4]", "[1, 1, 0, 4]"))
    with pytest.raises(InputError, match="none of its 1 boxes has an area"):
        build_annotations(config, "val")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    config = make_coco(tmp_path)
    (tmp_path / "annotations/instances_val.json").chmod(0)
    with pytest.raises(InputError, match="cannot be read"):
        build_annotations(config, "val")


@pytest.mark.parametrize(
    "name", ["a.jpg", "a/b.jpg", "./a.jpg", "..a.jpg", "a b\u202fc.jpg", "ü.jpg"]
)
def test_inner_paths_stay_inner_paths(name: str) -> None:
    assert inner_path(name, "here") == os.path.normpath(name)


OUTER_PATHS = [
    "..",
    "../a",
    "a/../../b",
    "/a",
    "C:a",
    "c:/a",
    "~/a",
    "a\\b",
    "a\0",
    "a\nb",
    "",
    " ",
]


@pytest.mark.parametrize("name", [*OUTER_PATHS, "x" * 256, "ü" * 128, "a/" * 600, None, 5, b"a"])
def test_other_paths_are_refused(name: object) -> None:
    with pytest.raises(InputError, match=r"^here: "):
        inner_path(name, "here")


@pytest.mark.skipif(not BCCD.exists(), reason="needs the real data beside the project")
def test_real_voc_data_is_complete() -> None:
    config = DataConfig(format="voc", root=BCCD)
    train = build_annotations(config, config.train)
    test = build_annotations(config, config.val, train.classes)
    assert (len(train), len(test), train.classes) == (292, 72, test.classes)


@pytest.mark.skipif(not COCO_OPEN.exists(), reason="needs the real data beside the project")
def test_real_coco_data_is_complete() -> None:
    config = DataConfig(format="coco", root=COCO_OPEN)
    train = build_annotations(config, config.train)
    both = build_annotations(config, ["train2017", "val2017"])
    assert (len(train), len(both), len(train.classes)) == (92, 158, 80)
    assert (len(both.boxes), int(both.crowd.sum())) == (1389, 17)


@pytest.mark.skipif(not DEVKIT.exists(), reason="needs the fixtures beside the project")
def test_scoring_needs_no_pixels_but_training_does() -> None:
    config = DataConfig(format="voc", root=DEVKIT)
    assert len(build_annotations(config, "test", check_images=False)) == 80
    with pytest.raises(InputError, match="80 of 80 images are missing"):
        build_annotations(config, "test")


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "format": ({"format": "yolo"}, "'voc', 'coco' or 'shapes'"),
    "unknown key": ({"batchsize": 2}, "Extra inputs"),
    "sides": ({"image_size": [1000, 600]}, r"must be \[short side, maximum long side\]"),
    "zero": ({"batch_size": 0}, "greater than or equal to 1"),
    "doubled class": ({"classes": ["a", "b", "a"]}, "a is listed twice"),
    "no classes": ({"classes": []}, "at least one class name"),
    "no splits": ({"train": []}, "give the name of a split"),
    "doubled split": ({"train": ["a", "a"]}, "use repeat instead"),
    "two transforms": ({"augment": [{"A": {}, "B": {}}]}, "as its own list item"),
    "coordinates": ({"voc": {"coordinates": "two_based"}}, "'one_based' or 'zero_based'"),
    "nul": ({"root": "a\0b"}, "NUL"),
}


@pytest.mark.parametrize(("values", "complaint"), BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_bad_data_block_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        DataConfig.model_validate(values)


def test_places_default_by_format_and_give_way_to_what_is_written() -> None:
    assert DataConfig().train == "train"
    voc = DataConfig.model_validate({"format": "voc", "root": "x"})
    assert (str(voc.root), voc.train, voc.val) == ("x", "trainval", "test")


def test_a_transform_s_name_alone_means_its_defaults() -> None:
    config = DataConfig.model_validate({"augment": ["A", {"B": None}, {"C": {"p": 1}}]})
    assert config.augment == ({"A": {}}, {"B": {}}, {"C": {"p": 1}})


def test_a_data_block_survives_being_written_down() -> None:
    config = DataConfig.model_validate({"format": "coco", "train": ["a", "b"], "classes": ["x"]})
    assert DataConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(("word", "size"), [("apply", [30, 20]), ("ignore", [20, 30])])
def test_sizes_from_images_follow_exif_as_their_pixels_do(
    tmp_path: Path, word: str, size: list[int]
) -> None:
    coco = make_coco(tmp_path).model_copy(update={"exif": word})
    path = tmp_path / "annotations/instances_val.json"
    path.write_text(path.read_text().replace('"height": 8', '"height": null'))
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("val", "JPEGImages"):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / folder / "a.jpg", exif=exif)
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text("<annotation/>")
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/val.txt").write_text("a")
    for config in (coco, coco.model_copy(update={"format": "voc"})):
        assert build_annotations(config, "val").sizes.tolist() == [size]


def test_a_limit_keeps_the_first_images_of_a_split_or_of_a_list_of_splits(tmp_path: Path) -> None:
    make_coco(tmp_path, "train", ("d.jpg",))
    config = make_coco(tmp_path, "val", ("a.jpg", "b.jpg", "c.jpg"))
    limited = config.model_copy(update={"limit": 2})
    assert build_annotations(limited, "val").files.tolist() == ["val/a.jpg", "val/b.jpg"]
    both = build_annotations(limited, ["train", "val"]).files.tolist()
    assert both == ["train/d.jpg", "val/a.jpg"]
    beyond = config.model_copy(update={"limit": 9})
    assert len(build_annotations(beyond, "val")) == 3


def test_a_limit_leaves_boxes_without_area_of_other_images_uncounted(tmp_path: Path) -> None:
    config = make_coco(tmp_path, "val", ("a.jpg", "b.jpg", "c.jpg"))
    path = tmp_path / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    _, second, third = content["annotations"]
    content["annotations"] = [second, {**third, "id": 9, "bbox": [1, 1, 0, 4]}]
    path.write_text(json.dumps(content))
    dropped = {
        limit: build_annotations(config.model_copy(update={"limit": limit}), "val").dropped
        for limit in (1, 2, 3)
    }
    assert dropped == {1: 0, 2: 0, 3: 1}


def test_a_picture_whose_size_is_needed_must_be_whole_and_of_no_more_pixels_than_allowed(
    tmp_path: Path,
) -> None:
    config = make_coco(tmp_path).model_copy(update={"on_damaged": "skip"})
    path = tmp_path / "annotations/instances_val.json"
    path.write_text(path.read_text().replace('"height": 8', '"height": null'))
    Image.new("RGB", (300, 200)).save(tmp_path / "val/a.png")
    (tmp_path / "val/a.png").rename(tmp_path / "val/a.jpg")
    small = config.model_copy(update={"max_image_pixels": 200 * 300 - 1})
    with pytest.raises(InputError, match=r"more than data\.max_image_pixels=59999"):
        build_annotations(small, "val")
    assert build_annotations(config, "val").sizes.tolist() == [[200, 300]]
    with (tmp_path / "val/a.jpg").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        InputError, match=r"truncated .* its annotation has no height and width"
    ) as raised:
        build_annotations(config, "val")
    assert "on_damaged" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("voc", "Annotations/a.xml"),
        ("voc", "Annotations"),
        ("voc", "ImageSets/Main/train.txt"),
        ("voc", "ImageSets"),
        ("coco", "annotations/instances_val.json"),
        ("coco", "annotations"),
    ],
)
def test_annotations_and_lists_that_are_links_to_outside_are_refused_unless_trusted(
    tmp_path: Path, kind: str, place: str
) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    if kind == "coco":
        config = make_coco(root)
    else:
        for file, text in (
            ("ImageSets/Main/train.txt", "a\n"),
            ("Annotations/a.xml", VOC_ANNOTATION),
            ("JPEGImages/a.jpg", ""),
        ):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        config = DataConfig(format="voc", root=root, train="train", val="train")
    (root / place).rename(outside)
    (root / place).symlink_to(outside)
    with pytest.raises(InputError, match=rf"{place}.* is a link to .*data\.follow_links: true"):
        build_annotations(config, config.val, check_images=False)
    trusting = config.model_copy(update={"follow_links": True})
    assert len(build_annotations(trusting, config.val)) == 1
