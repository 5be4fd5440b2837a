"""What datasets.py convert makes of entries that readers accept and few programs write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets_on_disk import coco_object, fingerprint, voc_object, write_coco, write_voc

from data.errors import InputError
from data.formats.coco import load_coco
from scripts.dataset_tools.layout import recognize
from scripts.dataset_tools.output_folder import new_folder
from scripts.datasets import main


def change(root: Path, key: str, row: int, split: str = "train", **values: Any) -> dict[str, Any]:
    path = root / f"annotations/instances_{split}.json"
    document: dict[str, Any] = json.loads(path.read_text())
    document[key][row].update(values)
    path.write_text(json.dumps(document))
    return document


def there_and_back(root: Path, tmp_path: Path) -> Path:
    assert main(["convert", str(root), str(tmp_path / "there")]) == 0
    assert main(["convert", str(tmp_path / "there"), str(tmp_path / "back")]) == 0
    return tmp_path / "back"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("annotations", {"id": "a1"}),
        ("annotations", {"id": None}),
        ("annotations", {"id": 2.0}),
        ("images", {"id": 1.0}),
        ("images", {"width": None}),
        ("images", {"height": 0, "width": 0}),
    ],
    ids=str,
)
def test_ids_and_sizes_that_the_reader_accepts_come_back(
    key: str, values: dict[str, Any], tmp_path: Path
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])], images=1)
    before = change(root, key, 0, **values)
    load_coco(root, "train")
    back = there_and_back(root, tmp_path)
    assert json.loads((back / "annotations/instances_train.json").read_text()) == before


@pytest.mark.parametrize("size", ["<width>0</width><height>80</height>", "<height>80</height>"])
def test_a_side_alone_comes_back_to_voc(size: str, tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a": [voc_object("x", (5, 5, 20, 20))]}, {"train": ["a"]})
    path = root / "Annotations/a.xml"
    both = "<width>100</width><height>80</height>"
    path.write_text(path.read_text().replace(both, size))
    back = there_and_back(root, tmp_path)
    text = "".join((back / "Annotations/a.xml").read_text().split())
    assert f"<size>{size}<depth>3</depth></size>" in text


def test_of_two_flags_the_last_counts_as_for_the_reader(tmp_path: Path) -> None:
    flags = (
        "<difficult>0</difficult><difficult/>",
        "<difficult>x</difficult><difficult>1</difficult>",
    )
    objects = [voc_object("x", (5, 5, 20, 20), flag) for flag in flags]
    root = write_voc(tmp_path / "voc", {"a": objects}, {"train": ["a"]})
    assert main(["convert", str(root), str(tmp_path / "coco")]) == 0
    assert load_coco(tmp_path / "coco", "train").difficult.tolist() == [False, True]
    assert main(["convert", str(tmp_path / "coco"), str(tmp_path / "back")]) == 0


def test_ids_that_began_anew_in_every_split_can_be_divided_otherwise(tmp_path: Path) -> None:
    objects = [coco_object(n, n, [5, 5, 20, 20]) for n in (1, 2, 3)]
    root = write_coco(tmp_path / "coco", objects, images=3)
    write_coco(root, objects, images=3, split="val")
    voc, back = tmp_path / "voc", tmp_path / "back"
    assert main(["convert", str(root), str(voc)]) == 0
    lists = [(voc / f"ImageSets/Main/{split}.txt").read_text() for split in ("train", "val")]
    (voc / "ImageSets/Main/all.txt").write_text("".join(lists))
    assert main(["convert", str(voc), str(back), "--splits", "all"]) == 0
    together = load_coco(back, "all")
    assert len(set(together.image_ids.tolist())) == 6
    assert together.classes == ("cat", "dog")
    document = json.loads((back / "annotations/instances_all.json").read_text())
    assert len({item["id"] for item in document["annotations"]}) == 6


def test_what_the_readers_of_the_other_format_would_refuse_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(root: Path) -> str:
        assert main(["convert", str(root), str(tmp_path / "new")]) == 2
        assert not (tmp_path / "new").exists()
        return capsys.readouterr().err

    empty = write_coco(tmp_path / "empty", [], images=0)
    assert "has no images, but VOC splits cannot be empty" in refused(empty)
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])])
    change(root, "categories", 0, name="c\ufffet")
    assert "image 1: its file or the class of an object holds " in refused(root)
    twice = write_voc(tmp_path / "voc", {"a": []}, {"train": ["a", "a"]})
    assert "train.txt: line 2: 'a' is listed twice; list it once" in refused(twice)


def test_splits_that_annotate_a_picture_otherwise_are_told_from_two_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [], images=1)
    write_coco(root, [], images=1, split="val")
    (root / "val/val_1.png").unlink()
    (root / "val/train_1.png").write_bytes((root / "train/train_1.png").read_bytes())
    change(root, "images", 0, "val", file_name="train_1.png", id=7)
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert "the image 'train_1' has other annotations in " in capsys.readouterr().err


def test_what_no_split_lists_is_said_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": [], "b": []}, {"train": ["a"]})
    assert main(["convert", str(root), str(tmp_path / "new")]) == 0
    assert "skipped 1 annotation file that no split lists" in capsys.readouterr().out
    command = ["convert", str(root), str(tmp_path / "one"), "--splits", "train", "train", "--json"]
    (root / "ImageSets/Main/val.txt").write_text("b\n")
    assert main(command) == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["splits"], counts["images"], counts["unlisted"]) == (1, 1, 0)


def test_the_file_of_a_split_is_read_where_it_lies_or_not_at_all(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", [])
    file = root / "annotations/instances_train.json"
    assert recognize(file).root == root
    (root / "annotations_v2").mkdir()
    other = root / "annotations_v2/instances_train.json"
    other.write_text(file.read_text())
    with pytest.raises(InputError, match=r"is not annotations/instances_<split>\.json"):
        recognize(other)


def test_an_export_of_roboflow_is_told_where_its_files_belong(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/_annotations.coco.json").write_text("{}")
    with pytest.raises(InputError, match=r"to annotations/instances_train\.json"):
        recognize(tmp_path)


def test_a_folder_is_filled_by_one_process_at_a_time(tmp_path: Path) -> None:
    with new_folder(tmp_path / "new") as folder:
        (folder / "one").touch()
        with (
            pytest.raises(InputError, match="another process is writing it"),
            new_folder(tmp_path / "new"),
        ):
            pass
        (folder / "two").touch()
    assert sorted(fingerprint(tmp_path / "new")) == ["one", "two"]


def test_what_a_killed_run_has_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".new.unfinished/folder"
    left.mkdir(parents=True)
    (left / "file").touch()
    with new_folder(tmp_path / "new") as folder:
        (folder / "own").touch()
    assert sorted(fingerprint(tmp_path)) == ["new/own"]


def test_lists_are_all_written_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_voc(tmp_path / "voc", {"a": [], "b": []}, {"train": ["a"]})
    before = fingerprint(root)
    names = ["--names", "first", "x" * 253, "--fractions", "0.5", "0.5"]  # too long with .txt
    assert main(["split", str(root), *names]) == 2
    assert "cannot be written: File name too long" in capsys.readouterr().err
    assert fingerprint(root) == before


def test_a_link_in_the_place_of_an_unfinished_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "important").mkdir()
    (tmp_path / "important/file").touch()
    (tmp_path / ".new.unfinished").symlink_to("important")
    with pytest.raises(InputError, match="new: cannot be written"), new_folder(tmp_path / "new"):
        pass
    assert sorted(fingerprint(tmp_path / "important")) == ["file"]


@pytest.mark.parametrize("command", [["validate", "--fix"], ["inspect", "--write-config"]])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": []}, {"train": ["a"]})
    (tmp_path / "file").touch()
    assert main([command[0], str(root), command[1], str(tmp_path / "file/x/new.yaml")]) == 2
    told = capsys.readouterr()
    assert f"cannot be written ({tmp_path / 'file'} is not a folder); choose another" in told.err
    assert told.out == ""


def test_an_id_that_cannot_come_back_does_not_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])], images=1)
    change(root, "annotations", 0, id=[1])
    assert main(["convert", str(root), str(tmp_path / "new")]) == 2
    assert "its id is [1]; give it a number" in capsys.readouterr().err
