"""The command line: recognize, inspect, suggest, split; and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets_on_disk import SHARED, coco_object, fingerprint, voc_object, write_coco, write_voc
from torchvision.ops import box_iou

from data.build import build_annotations
from data.coco import load_coco
from data.errors import InputError
from data.voc import load_voc
from detector.build import build_detector
from detector.config import DetectorConfig
from engine.config import load_config
from losses.config import LossConfig
from scripts.dataset_tools.layout import recognize
from scripts.dataset_tools.splitting import stratify
from scripts.dataset_tools.suggestions import SCALES, coverage
from scripts.datasets import main

ROOT = Path(__file__).parents[2]


def a_voc(folder: Path) -> Path:
    images = {
        "a": [voc_object("dog", (1, 1, 40, 20)), voc_object("cat", (11, 11, 20, 30))],
        "b": [voc_object("dog", (1, 1, 10, 10), "<difficult>1</difficult>")],
        "c": [],
    }
    return write_voc(folder / "voc", images, {"train": ["a", "b"], "trainval": ["a", "b", "c"]})


def inspect(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["inspect", str(root), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_formats_are_recognized_by_what_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voc, coco = a_voc(tmp_path), write_coco(tmp_path / "coco", [])
    write_voc(tmp_path / "kit/VOC2007", {"a": []}, {"train": ["a"], "cat_train": ["a -1"]})
    assert (recognize(voc).format, recognize(voc).splits) == ("voc", ("train", "trainval"))
    assert (recognize(coco).format, recognize(coco).splits) == ("coco", ("train",))
    assert recognize(tmp_path / "kit").splits == ("VOC2007/train",)
    file = recognize(coco / "annotations/instances_train.json")
    assert (file.root, file.splits) == (coco, ("train",))
    monkeypatch.chdir(coco / "annotations")
    assert recognize(Path("instances_train.json")).root == Path("..")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no dataset: there are neither"):
        recognize(tmp_path / "empty")
    with pytest.raises(InputError, match="there is no such folder"):
        recognize(tmp_path / "nothing")


def test_only_lists_of_one_class_are_no_splits(tmp_path: Path) -> None:
    lists = {
        "train": ["a", "b"],
        "val": ["c"],
        "val_hard": ["c"],
        "hard_val": ["c"],  # as if of a class "hard", but without flags
        "fold_0": ["a 1"],  # flags, but of no other list
        "big_cat_val_hard": ["c  1"],
        "cat_train": ["a  1", "", "b -1"],
    }
    root = write_voc(tmp_path / "voc", {name: [] for name in "abc"}, lists)
    layout = recognize(root)
    assert layout.splits == ("fold_0", "hard_val", "train", "val", "val_hard")
    assert layout.choose(["cat_train", "val"]) == ["cat_train", "val"]
    assert layout.load("cat_train").names.tolist() == ["a", "b"]
    for name in ("dog_train", "../Main/train"):
        with pytest.raises(InputError):
            layout.choose([name])


def test_what_split_makes_is_seen_by_the_other_commands(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {name: [] for name in "abcd"}, {"train": list("abcd")})
    names = ["--names", "fold_0", "fold_1"]
    assert main(["split", str(root), *names, "--fractions", "0.5", "0.5"]) == 0
    assert main(["convert", str(root), str(tmp_path / "coco")]) == 0
    assert recognize(tmp_path / "coco").splits == ("fold_0", "fold_1", "train")


def test_an_image_in_two_splits_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = inspect(a_voc(tmp_path), capsys)
    assert (numbers["images"], numbers["objects"]) == (3, 3)
    assert numbers["splits"]["train"]["images"] == 2
    assert numbers["splits"]["trainval"] == {
        "images": 3, "empty": 1, "objects": 3, "difficult": 1, "crowd": 0, "masks": 0,
        "without_area": 0,
    }  # fmt: skip


def test_images_of_one_number_in_two_splits_of_coco_count_once_only_if_they_are_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [0, 0, 100, 80])], images=2)
    for item in (root / "annotations/instances_train.json", root / "train"):
        copy = Path(str(item).replace("train", "val"))
        (shutil.copy if item.is_file() else shutil.copytree)(item, copy)
    numbers = inspect(root, capsys)
    assert (numbers["images"], numbers["objects"]) == (2, 1)
    for image in (root / "val").iterdir():
        image.write_bytes(image.read_bytes() + b"another")
    numbers = inspect(root, capsys)
    assert (numbers["images"], numbers["objects"]) == (4, 2)


def test_hidden_files_as_macos_makes_them_are_no_splits_and_no_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = a_voc(tmp_path)
    for file in ("ImageSets/Main/._train.txt", "JPEGImages/._a.jpg", "Annotations/._a.xml"):
        (root / file).write_bytes(b"\0\5\x16\7Mac OS X\x80\xff")
    assert set(inspect(root, capsys)["splits"]) == {"train", "trainval"}
    assert main(["validate", str(root), "--fix", str(tmp_path / "fixed")]) == 0
    assert main(["split", str(root), "--names", "x", "y", "--fractions", "0.6", "0.4"]) == 0
    assert main(["convert", str(root), str(tmp_path / "coco")]) == 0


def test_the_numbers_are_those_of_the_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = inspect(a_voc(tmp_path), capsys)
    sides = sorted([(40 * 20) ** 0.5, (10 * 20) ** 0.5, 10])
    spread = numbers["box_side"]
    assert [spread["p0"], spread["p50"], spread["p100"]] == pytest.approx(sides, abs=1e-4)
    assert numbers["box_height_over_width"]["p0"] == 0.5
    assert numbers["box_height_over_width"]["p100"] == 2
    assert numbers["coco_sizes"] == {"small": 3, "medium": 0, "large": 0}
    classes = {each["name"]: each for each in numbers["classes"]}
    assert (classes["dog"]["objects"], classes["dog"]["images"]) == (2, 2)


def test_both_formats_of_one_dataset_have_the_same_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = a_voc(tmp_path)
    assert main(["convert", str(root), str(tmp_path / "coco"), "--splits", "trainval"]) == 0
    capsys.readouterr()
    numbers = inspect(root, capsys, "--splits", "trainval")
    other = inspect(tmp_path / "coco", capsys)
    for key in set(numbers) - {"format", "root"}:
        assert numbers[key] == other[key]


def test_the_table_names_classes_splits_and_anchors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(a_voc(tmp_path))]) == 0
    text = capsys.readouterr().out
    for part in ("trainval", "dog", "box height / width", "suggested anchors: levels"):
        assert part in text


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "plots/voc.png"
    assert main(["inspect", str(a_voc(tmp_path)), "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", str(a_voc(tmp_path)), "--plot", str(tmp_path / "a.what")]) == 2


def test_dollars_in_names_begin_no_formula_in_the_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    images = {"a": [voc_object("$x^{$ $y", (1, 1, 40, 20))]}
    root = write_voc(tmp_path / "$d^{$ x", images, {"train": ["a"]})
    assert main(["inspect", str(root), "--plot", str(tmp_path / "plot.svg")]) == 0
    text = (tmp_path / "plot.svg").read_text()
    assert "<!-- $x^{$ $y -->" in text
    assert f"<!-- {root} (train) -->" in text
    (tmp_path / "file").touch()
    assert main(["inspect", str(root), "--plot", str(tmp_path / "file/plot.png")]) == 2
    error = capsys.readouterr().err
    assert "file/plot.png: cannot be written" in error
    assert "choose another output" in error


def test_a_plot_without_matplotlib_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["inspect", str(a_voc(tmp_path)), "--plot", str(tmp_path / "a.png")]) == 2
    assert "pip install '.[analysis]'" in capsys.readouterr().err


def test_anchors_of_the_shape_of_the_boxes_cover_all_of_them() -> None:
    sides, ratios = np.array([16.0, 40.0]), np.array([1.0, 1.0])
    assert coverage(sides, ratios, [16.0, 32.0], (1.0,), SCALES) == 1
    assert coverage(sides, ratios, [16.0, 32.0], (1.0,), (1.0,)) == 0.5
    assert coverage(sides, ratios, [16.0], (1.0,), SCALES) == 0.5
    assert coverage(sides, ratios, [256.0], (1.0,), SCALES) == 0
    assert coverage(np.array([32.0]), np.array([4.0]), [32.0], (1.0,), SCALES) == 0
    assert coverage(np.array([32.0]), np.array([4.0]), [32.0], (4.0,), SCALES) == 1


@pytest.mark.parametrize("from_scratch", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_the_suggested_config_builds_its_detector_and_data(
    tmp_path: Path, masks: bool, from_scratch: bool
) -> None:
    outline = {"segmentation": [[5, 5, 25, 5, 25, 25]]} if masks else {}
    objects = [coco_object(n, n, [5, 5, side, 20], **outline) for n, side in ((1, 20), (2, 50))]
    root = write_coco(tmp_path / "coco", objects)
    write_coco(root, objects, split="val")
    path = tmp_path / "suggested.yaml"
    options = ["--from-scratch"] if from_scratch else []
    assert main(["inspect", str(root), "--write-config", str(path), *options]) == 0
    config = load_config(path)
    kind = "mask_rcnn" if masks and not from_scratch else "retinanet"
    assert (config.train.name, config.detector.type) == ("suggested", kind)
    assert (config.data.train, config.data.val) == ("train", "val")
    annotations = build_annotations(config.data, config.data.train)
    assert annotations.classes == ("cat", "dog")
    small = config.detector.model_copy(update={"backbone": "resnet18", "fpn_channels": 16})
    detector = build_detector(small, config.loss, len(annotations.classes))
    assert detector.num_classes == 2
    assert main(["inspect", str(root), "--write-config", str(path)]) == 2  # never overwritten


def test_mask_rcnn_is_suggested_where_nearly_all_trained_objects_have_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outline = {"segmentation": [[5, 5, 25, 5, 25, 25]]}
    crowd = coco_object(99, 1, [5, 5, 20, 20], iscrowd=1)
    for masks, kind in ((1, "retinanet"), (18, "retinanet"), (19, "mask_rcnn"), (20, "mask_rcnn")):
        objects = [
            coco_object(n, 1, [5, 5, 20, 20 + n], **(outline if n < masks else {}))
            for n in range(20)
        ]
        root = write_coco(tmp_path / str(masks), [*objects, crowd])
        write_coco(root, [coco_object(1, 1, [5, 5, 20, 20])], split="val")  # is not trained on
        assert inspect(root, capsys)["suggestion"]["detector"] == kind


def write_large_boxes(root: Path, sizes_wh: list[tuple[float, float]], outlined: bool) -> Path:
    """Boxes in an image that is said to be of 800 x 1333 pixels, so that nothing resizes it."""
    outline = {"segmentation": [[5, 5, 25, 5, 25, 25]]} if outlined else {}
    boxes = [[5.0, 5.0, width, height] for width, height in sizes_wh]
    write_coco(root, [coco_object(n, 1, box, **outline) for n, box in enumerate(boxes, start=1)])
    file = root / "annotations/instances_train.json"
    file.write_text(
        file.read_text().replace('"height": 80, "width": 100', '"height": 800, "width": 1333')
    )
    return root


@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_the_default_coverage_is_that_of_the_detectors_own_anchors(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    sides, roots = (
        np.exp(random.uniform(np.log(12), np.log(550), 2000)),
        random.uniform(0.7, 1.4, 2000),
    )
    sizes = np.stack([sides / roots, sides * roots], axis=1).round(1)
    root = write_large_boxes(tmp_path / "coco", sizes.tolist(), outlined=kind == "mask_rcnn")
    suggestion = inspect(root, capsys)["suggestion"]
    assert (suggestion["detector"], suggestion["image_size"]) == (kind, [800, 1333])
    config = DetectorConfig(type=kind, weights="none", backbone="resnet18", fpn_channels=16)
    detector = build_detector(config, LossConfig(), num_classes=1)
    generator = detector.anchor_generator if kind == "retinanet" else detector.rpn.anchor_generator
    cells = torch.cat(generator.cell_anchors)
    centered = torch.from_numpy(np.concatenate([-sizes / 2, sizes / 2], axis=1))
    covered = (box_iou(centered, cells.double()).amax(dim=1) >= 0.7).double().mean().item()
    assert suggestion["default_coverage"] == pytest.approx(covered, abs=0.005)


@pytest.mark.parametrize("options", [[], ["--from-scratch"]])
def test_the_written_anchors_cover_what_the_config_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    sides = np.geomspace(12, 790, 200).round(1)
    squares = [(side, side) for side in sides.tolist()]
    root = write_large_boxes(tmp_path / "coco", squares, outlined=True)
    path = tmp_path / "suggested.yaml"
    numbers = inspect(root, capsys, "--write-config", str(path), *options)
    detector = load_config(path).detector
    sizes, ratios = [size for (size,) in detector.anchors.sizes], tuple(detector.anchors.ratios)
    assert detector.type == ("retinanet" if options else "mask_rcnn")
    assert detector.levels[-1] == (7 if options else 6)
    covered = coverage(sides, np.ones_like(sides), sizes, ratios, SCALES)
    assert numbers["suggestion"]["coverage"] == covered
    assert f"anchors that cover {covered:.1%} of the boxes" in path.read_text()


def test_the_config_lists_a_class_all_of_whose_boxes_are_flat(tmp_path: Path) -> None:
    images = {
        "a": [voc_object("kept", (1, 1, 9, 9)), voc_object("flat", (5, 5, 5, 9))],
        "b": [voc_object("kept", (1, 1, 9, 9))],
    }
    root = write_voc(tmp_path / "voc", images, {"train": ["a"], "val": ["b"]})
    path = tmp_path / "flat.yaml"
    assert main(["inspect", str(root), "--write-config", str(path)]) == 0
    config = load_config(path).data
    assert config.classes == ("flat", "kept")
    assert build_annotations(config, config.train).classes == config.classes


def test_the_config_is_of_the_chosen_splits(tmp_path: Path) -> None:
    images = {name: [voc_object(name, (1, 1, 9, 9))] for name in ("ant", "bee", "asp", "fly")}
    lists = {
        "train": ["ant"],
        "val": ["bee"],
        "train_b": ["asp"],
        "val_b": ["fly"],
        "rest": ["ant"],
    }
    root = write_voc(tmp_path / "voc", images, lists)
    command = ["inspect", str(root), "--write-config"]
    for number, (splits, roles, classes) in enumerate(
        [
            (["train_b", "val_b"], ("train_b", "val_b"), ["asp", "fly"]),
            (["rest", "train_b", "val"], ("train_b", "val"), ["asp", "bee"]),
            (["val"], ("val", "val"), ["bee"]),
        ]
    ):
        path = tmp_path / f"{number}.yaml"
        assert main([*command, str(path), "--splits", *splits]) == 0
        config = load_config(path).data
        assert (config.train, config.val) == roles
        assert sorted(config.classes or ()) == classes


@pytest.mark.parametrize(
    ("names", "roles", "warnings"),
    [
        (["Test", "Train", "Val"], ("Train", "Val"), []),
        (["TRAINVAL", "TEST"], ("TRAINVAL", "TEST"), []),
        (["check", "fit", "test"], ("check", "test"), ["no split is named train, so 'check'"]),
        (["train", "TrainVal"], ("train", "train"), ["'train' is trained and validated on"]),
        (["all"], ("all", "all"), ["no split is named train, so 'all'", "'all' is trained and"]),
    ],
)
def test_splits_are_chosen_by_names_in_any_case_and_what_was_guessed_is_said(
    names: list[str],
    roles: tuple[str, str],
    warnings: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = {"a": [voc_object("dog", (1, 1, 9, 9))]}
    root = write_voc(tmp_path / "voc", images, {name: ["a"] for name in names})
    path = tmp_path / "config.yaml"
    assert main(["inspect", str(root), "--write-config", str(path)]) == 0
    out, err = capsys.readouterr()
    config = load_config(path).data
    assert (config.train, config.val) == roles
    assert f"train on {roles[0]}, validate on {roles[1]}\n" in out
    assert len(err.splitlines()) == len(warnings)
    for line, warning in zip(err.splitlines(), warnings, strict=True):
        assert line.startswith(f"datasets.py: warning: {warning}")


def test_a_zero_based_dataset_gets_a_config_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "suggested.yaml"
    command = ["inspect", str(a_voc(tmp_path)), "--zero-based", "--write-config", str(path)]
    assert main(command) == 0
    config = load_config(path)
    assert config.data.voc.coordinates == "zero_based"
    assert config.data.train == "train"


def test_a_linked_dataset_without_sizes_is_inspected_and_divided_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [coco_object(1, 1, [5, 5, 20, 20])])
    file = root / "annotations/instances_train.json"
    file.write_text(file.read_text().replace('"height": 80, "width": 100', '"note": 0'))
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    written, divided = tmp_path / "config.yaml", tmp_path / "divided"
    for command in (
        ["inspect", str(root), "--write-config", str(written)],
        ["split", str(root), "--fractions", "0.5", "0.5", "--output", str(divided)],
    ):
        assert main(command) == 2
        assert "is a link to" in capsys.readouterr().err
        assert main([*command, "--follow-links"]) == 0
    config = load_config(written).data
    assert config.follow_links
    assert len(build_annotations(config, "train")) == 2


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
    assert "exists already; choose other --names" in capsys.readouterr().err


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
    assert "--output: COCO's splits are folders" in capsys.readouterr().err


def test_a_split_of_coco_in_a_folder_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [])
    command = ["split", str(root), "--fractions", "0.5", "0.5", "--output", str(tmp_path / "new")]
    assert main([*command, "--names", "x/a", "b"]) == 2
    assert "--names: 'x/a' is no name of a split; leave out the /" in capsys.readouterr().err


def test_images_that_a_division_of_coco_misses_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", [], images=4)
    (root / "train/train_2.png").unlink()
    command = ["split", str(root), "--fractions", "0.5", "0.5", "--output"]
    assert main([*command, str(tmp_path / "text")]) == 0
    assert "1 image files are missing and were left out" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "json"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(each["missing_images"] for each in report.values()) == 1
    few = ["split", str(root), "--fractions", "0.9", "0.1", "--output", str(tmp_path / "few")]
    assert main(few) == 2
    assert "of 4 images the split 'val' gets none" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fractions", "nan", "nan"], "add up to 1, not to nan"),
        (["--fractions", "0.5", "0.6"], "add up to 1, not to 1.1"),
        (["--fractions", "1.5", "-0.5"], "must be positive"),
        (["--fractions", "1"], "give each split a name of its own and a fraction"),
        (["--names", "a", "a"], "give each split a name of its own"),
        (["--names", "../a", "b"], "may leave the root"),
        (["--names", "a/b", "c"], "'a/b' is no name of a split; leave out the /"),
        (
            ["--source", "nothing", "--names", "x", "y"],
            "has no split 'nothing'; it has train, trainval",
        ),
        (["--output", "somewhere"], "leave it out"),
        (
            ["--names", "x", "y", "--fractions", "0.9", "0.1"],
            "--fractions 0.9 0.1: of 3 images the split 'y' gets none; give it more than 0.1",
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


def test_what_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = a_voc(tmp_path)
    blocked = tmp_path / "file/folder"
    (tmp_path / "file").touch()
    (root / "ImageSets").rename(tmp_path / "lists")
    (root / "ImageSets").symlink_to(tmp_path / "file")
    commands = [
        (
            ["split", str(root), "--follow-links", "--fractions", "0.5", "0.5"],
            root / "ImageSets/Main",
        ),
        (["download", "voc2007", "--root", str(blocked)], blocked / "archives"),
    ]
    for command, named in commands:
        assert main(command) == 2
        assert f"{named}: cannot be written (" in capsys.readouterr().err
    (root / "ImageSets").unlink()
    (tmp_path / "lists").rename(root / "ImageSets")
    config = blocked / "new.yaml"
    assert main(["inspect", str(root), "--write-config", str(config)]) == 2
    assert f"{config}: cannot be written (" in capsys.readouterr().err


def test_a_dataset_without_splits_or_objects_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_voc(tmp_path / "voc", {"a": []}, {})
    assert main(["inspect", str(root)]) == 2
    assert "and so no splits; make them: datasets.py split" in capsys.readouterr().err
    crowd = coco_object(1, 1, [5, 5, 20, 20], iscrowd=1)
    for name, objects in (("empty", []), ("crowd", [crowd])):
        untrained = write_coco(tmp_path / name, objects)
        numbers = inspect(untrained, capsys)
        assert (numbers["images"], numbers["suggestion"]) == (2, None)
        assert main(["inspect", str(untrained), "--write-config", str(tmp_path / "a.yaml")]) == 2
        out, err = capsys.readouterr()
        assert "dog" in out
        assert "no objects to train on: no image size and no anchors can be suggested" in out
        assert "has no objects to train on" in err
        assert not (tmp_path / "a.yaml").exists()


def test_help_and_errors_of_the_program_itself(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts/datasets.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    general = run("--help")
    assert general.returncode == 0
    for command in ("download", "inspect", "validate", "convert", "split"):
        assert command in general.stdout
    failed = run("inspect", "nowhere")
    assert failed.returncode == 2
    assert failed.stderr == (
        "datasets.py: nowhere: there is no such folder; name the root of a dataset\n"
    )


def test_the_real_data_is_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    if not SHARED.is_dir():
        pytest.skip("the shared data is not here")
    bccd = inspect(SHARED / "bccd", capsys)
    assert (bccd["format"], bccd["images"], bccd["objects"]) == ("voc", 364, 4886)
    nuclei = inspect(SHARED / "dsb2018_nuclei", capsys)
    assert (nuclei["images"], nuclei["objects"]) == (334, 9543)
    assert nuclei["splits"]["train"]["masks"] > 0
    assert nuclei["suggestion"]["coverage"] > nuclei["suggestion"]["default_coverage"]
    coco = inspect(SHARED / "coco_open", capsys)
    assert sum(split["crowd"] for split in coco["splits"].values()) == 17
    assert sum(split["empty"] for split in coco["splits"].values()) == 3


@pytest.mark.parametrize("command", ["inspect", "validate"])
@pytest.mark.parametrize("place", ["Annotations/a.xml", "Annotations", "ImageSets/Main/train.txt"])
def test_annotations_and_lists_that_lead_outside_are_read_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, place: str
) -> None:
    root = a_voc(tmp_path)
    (root / place).rename(tmp_path / "outside")
    (root / place).symlink_to(tmp_path / "outside")
    assert main([command, str(root)]) == 2
    told = capsys.readouterr().err
    assert f"{root / place} is a link to" in told
    assert "here: --follow-links" in told
    assert main([command, str(root), "--follow-links"]) == 0
