"""The command line: recognize and inspect; and what it says when it cannot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets_on_disk import (
    SHARED,
    a_voc,
    coco_object,
    voc_object,
    write_coco,
    write_voc,
)
from inspecting import inspect

from data.build import build_annotations
from data.errors import InputError
from engine.config import load_config
from scripts.dataset_tools.layout import recognize
from scripts.datasets import main

ROOT = Path(__file__).parents[2]


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
    with pytest.raises(InputError, match="is not a dataset: it has neither"):
        recognize(tmp_path / "empty")
    with pytest.raises(InputError, match="folder not found"):
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
    assert "pip install -e '.[analysis]'" in capsys.readouterr().err


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
            f"{root / 'ImageSets/Main/train.txt'}: cannot be written: ",
        ),
        (
            ["download", "voc2007", "--root", str(blocked)],
            f"{blocked / 'archives'}: cannot be written (",
        ),
    ]
    for command, message in commands:
        assert main(command) == 2
        assert message in capsys.readouterr().err
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
    assert "so no splits; create them: datasets.py split" in capsys.readouterr().err
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
    assert failed.stderr == ("datasets.py: nowhere: folder not found; give the root of a dataset\n")


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
