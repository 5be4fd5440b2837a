"""Dividing a dataset into splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets_on_disk import (
    a_voc,
    coco_object,
    fingerprint,
    voc_object,
    write_coco,
    write_voc,
)

from data.formats.coco import load_coco
from data.formats.voc import load_voc
from scripts.dataset_tools.splitting import stratify
from scripts.datasets import main


def test_every_class_has_its_share_of_every_split() -> None:
    random = np.random.default_rng(0)
    rates = np.array([0.9, 0.5, 0.1, 0.02])
    counts = random.binomial(1, rates, (1000, 4)) * random.integers(1, 5, (1000, 4))
    splits = stratify(counts, [0.7, 0.2, 0.1], seed=0)
    for number, fraction in enumerate((0.7, 0.2, 0.1)):
        assert (splits == number).sum() == pytest.approx(1000 * fraction, abs=5)
        share = (counts[splits == number] > 0).sum(axis=0) / (counts > 0).sum(axis=0)
        np.testing.assert_allclose(share, fraction, atol=0.05)


def test_a_split_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    counts = np.random.default_rng(1).integers(0, 2, (60, 3))
    first = stratify(counts, [0.5, 0.5], seed=3)
    assert (first == stratify(counts, [0.5, 0.5], seed=3)).all()
    assert (first != stratify(counts, [0.5, 0.5], seed=4)).any()
    assert stratify(np.zeros((4, 0), np.int64), [0.5, 0.5], seed=0).tolist().count(1) == 2


def test_voc_gets_new_lists_that_share_out_all_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {f"i{n}": [voc_object("dog" if n % 2 else "cat", (1, 1, 9, 9))] for n in range(20)}
    root = write_voc(tmp_path / "voc", images, {"train": []})
    (root / "ImageSets/Main/train.txt").unlink()
    before = fingerprint(root)
    command = ["split", str(root), "--names", "train", "val", "--fractions", "0.7", "0.3"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == {
        "train": {"images": 14, "cat": 7, "dog": 7},
        "val": {"images": 6, "cat": 3, "dog": 3},
    }
    train, val = load_voc(root, ["train"]), load_voc(root, ["val"])
    assert sorted([*train.names, *val.names]) == sorted(images)
    assert before.items() <= fingerprint(root).items()
    assert main(command) == 2
    assert "already exists; choose other --names" in capsys.readouterr().err


def test_one_split_of_voc_is_divided(tmp_path: Path) -> None:
    root = a_voc(tmp_path)
    command = ["split", str(root), "--source", "train", "--names", "one", "two"]
    assert main([*command, "--fractions", "0.5", "0.5"]) == 0
    names = load_voc(root, ["one"]).names.tolist() + load_voc(root, ["two"]).names.tolist()
    assert sorted(names) == ["a", "b"]


def test_coco_is_divided_into_a_new_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [coco_object(n, n, [5, 5, 20, 20], category_id=3 + n % 2 * 4) for n in range(1, 11)]
    root = write_coco(tmp_path / "coco", objects, images=10)
    before = fingerprint(root)
    output = tmp_path / "divided"
    command = ["split", str(root), "--output", str(output), "--hardlink"]
    assert main([*command, "--fractions", "0.6", "0.4"]) == 0
    train, val = load_coco(output, "train"), load_coco(output, "val")
    assert (len(train), len(val)) == (6, 4)
    assert np.bincount(train.labels).tolist() == [3, 3]
    assert sorted([*train.image_ids, *val.image_ids]) == list(range(1, 11))
    assert all((output / file).is_file() for file in [*train.files, *val.files])
    assert fingerprint(root) == before
    assert main(["split", str(root)]) == 2
    assert "--output: required for COCO" in capsys.readouterr().err


def test_a_split_of_coco_in_a_folder_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    command = ["split", str(root), "--fractions", "0.5", "0.5", "--output", str(tmp_path / "new")]
    assert main([*command, "--names", "x/a", "b"]) == 2
    assert "--names: 'x/a' is not a split name; remove slashes" in capsys.readouterr().err


def test_images_that_a_division_of_coco_misses_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [], images=4)
    (root / "train/train_2.png").unlink()
    command = ["split", str(root), "--fractions", "0.5", "0.5", "--output"]
    assert main([*command, str(tmp_path / "text")]) == 0
    assert "skipped 1 missing image file" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "json"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(each["missing_images"] for each in report.values()) == 1
    few = ["split", str(root), "--fractions", "0.9", "0.1", "--output", str(tmp_path / "few")]
    assert main(few) == 2
    assert "the split 'val' gets none of 4 images" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fractions", "nan", "nan"], "add up to 1, not to nan"),
        (["--fractions", "0.5", "0.6"], "add up to 1, not to 1.1"),
        (["--fractions", "1.5", "-0.5"], "must be positive"),
        (["--fractions", "1"], "give each split a unique name and a fraction"),
        (["--names", "a", "a"], "give each split a unique name"),
        (["--names", "../a", "b"], "may leave the root"),
        (["--names", "a/b", "c"], "'a/b' is not a split name; remove slashes"),
        (["--names", ".a", "c"], "'.a' is not a split name"),
        (["--names", "a ", "c"], "'a ' is not a split name"),
        (["--hardlink"], "copies no images"),
        (
            ["--source", "nothing", "--names", "x", "y"],
            "has no split 'nothing'; it has train, trainval",
        ),
        (["--output", "somewhere"], "drop it"),
        (
            ["--names", "x", "y", "--fractions", "0.9", "0.1"],
            "--fractions 0.9 0.1: the split 'y' gets none of 3 images; give it more than 0.1",
        ),
    ],
)
def test_a_split_that_cannot_be_is_said(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = a_voc(tmp_path)
    before = fingerprint(tmp_path)
    assert main(["split", str(root), *options]) == 2
    assert message in capsys.readouterr().err
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("name", [" a", "a ", "a\nb"])
def test_names_that_a_list_cannot_hold_are_not_divided(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = a_voc(tmp_path)
    (root / "Annotations/a.xml").rename(root / f"Annotations/{name}.xml")
    before = fingerprint(tmp_path)
    assert main(["split", str(root), "--names", "x", "y", "--fractions", "0.5", "0.5"]) == 2
    assert f"{root / 'Annotations'}: the " in (error := capsys.readouterr().err)
    assert f"name {name!r}" in error
    assert fingerprint(tmp_path) == before


def test_one_dataset_of_a_devkit_is_divided_at_its_own_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [] for name in "abcd"}
    kit = write_voc(tmp_path / "kit/VOC2007", images, {"trainval": list("abcd")}).parent
    for options in ([], ["--source", "VOC2007/trainval"]):
        assert main(["split", str(kit), *options, "--fractions", "0.5", "0.5"]) == 2
        error = capsys.readouterr().err
        assert f"{kit}: holds several datasets; split one: {kit / 'VOC2007'}" in error
    assert main(["split", str(kit / "VOC2007"), "--fractions", "0.5", "0.5"]) == 0


@pytest.mark.parametrize("key", ["annotations", "images", "categories"])
def test_a_coco_file_without_its_lists_is_not_divided(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    assert main(["split", str(root), "--output", str(tmp_path / "new")]) == 2
    assert key in capsys.readouterr().err
