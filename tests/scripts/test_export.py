"""Exported files find what the detector finds, in images of any size."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_runs import CLASSES, write_checkpoint, write_data

from detector.pretrained.weight_files import read_weights
from engine.trained import load_trained
from scripts.export import check_images, main
from scripts.exporting.one_image import for_one_image
from scripts.exporting.parity import Parity, compare

KINDS = ("retinanet", "faster_rcnn", "mask_rcnn")


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_for_one_image_is_the_detector(tmp_path: Path, kind: str) -> None:
    trained = load_trained(write_checkpoint(tmp_path, kind))
    model = for_one_image(trained.detector)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((64, 96), (50, 71))]
    parity = compare(trained, model, images)
    assert parity.holds
    assert parity.detections > 0


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
def test_an_image_without_proposals_has_no_detections(tmp_path: Path, kind: str) -> None:
    trained = load_trained(write_checkpoint(tmp_path, kind))
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    model = for_one_image(trained.detector)
    trained.detector.rpn.score_thresh = 1.0
    assert [len(output) for output in model(image)] == [0] * (4 if kind == "mask_rcnn" else 3)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_torchscript_and_onnx_find_the_same(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = ["torchscript", "safetensors", "onnx"]
    checkpoint = write_checkpoint(tmp_path, kind)
    command = [str(checkpoint), "--formats", *formats, "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert [each["format"] for each in report["files"].values()] == formats
    assert all(each["holds"] for each in report["files"].values())
    assert report["not_exported"]
    for path, each in report["files"].items():
        assert Path(path).stat().st_size == each["bytes"] > 0
        assert each.get("images", 3) == 3  # noise, a part of it, an empty picture
    extra = {"classes": ""}
    torch.jit.load(checkpoint.with_suffix(".torchscript"), _extra_files=extra)
    assert json.loads(extra["classes"]) == list(CLASSES)
    with safe_open(checkpoint.with_suffix(".safetensors"), "pt") as file:
        assert json.loads(file.metadata()["classes"]) == list(CLASSES)


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["torchscript", "safetensors", "onnx"])
def test_a_file_that_the_disk_has_no_room_for_replaces_nothing(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(write_checkpoint(tmp_path)), "--formats", kind, "--output"]
    full, before = tmp_path / "full", b"an earlier export"
    file = full / f"last.{kind}"
    full.mkdir()
    file.write_bytes(before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert main([*command, str(full)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{file}: cannot be written: File too large" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert list(full.iterdir()) == [file]
    (tmp_path / f"taken/last.{kind}").mkdir(parents=True)
    assert main([*command, str(tmp_path / "taken")]) == 2
    assert "cannot be written: Is a directory" in capsys.readouterr().err


def test_exported_weights_keep_the_classes_that_were_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = write_checkpoint(tmp_path)
    assert main([str(checkpoint), "--formats", "safetensors"]) == 0
    assert "noise" not in capsys.readouterr().err  # weights are compared without images
    assert read_weights(checkpoint.with_suffix(".safetensors")).classes == CLASSES


def test_pictures_of_the_validation_split_are_compared_where_they_are_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    checkpoint = write_checkpoint(tmp_path)
    assert main([str(checkpoint), "--formats", "torchscript"]) == 0
    assert "4 images" in capsys.readouterr().out


def test_a_damaged_picture_is_left_out_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [write_data(tmp_path) / f"JPEGImages/i{number}.png" for number in range(2)]
    images[0].write_bytes(images[0].read_bytes()[:200])
    command = [str(write_checkpoint(tmp_path)), "--formats", "torchscript"]
    command += ["--images", *map(str, images)]
    assert main(command) == 2
    capsys.readouterr()
    assert main([*command, "--json", "data.on_damaged=skip"]) == 0
    told = capsys.readouterr()
    assert f"export.py: skipped: {images[0]}: " in told.err
    assert [each["images"] for each in json.loads(told.out)["files"].values()] == [3]


def test_noise_that_stands_for_the_images_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(write_checkpoint(tmp_path)), "--formats", "torchscript"]
    assert main(command) == 0
    reason = f"compared on noise: validation images not available ({tmp_path}"
    assert reason in capsys.readouterr().err
    for image in (write_data(tmp_path) / "JPEGImages").iterdir():
        image.unlink()
    assert main(command) == 0
    assert "compared on noise" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(1, 90), (90, 1)])
def test_a_picture_of_one_pixels_height_has_a_part_too(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    trained = load_trained(write_checkpoint(tmp_path))
    for image in check_images(trained, [tmp_path / "strip.png"]):
        assert min(image.shape[1:]) >= 1


def test_where_nothing_is_found_nothing_is_called_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path)
    checkpoint = str(write_checkpoint(tmp_path))
    assert main([checkpoint, "detector.score_threshold=0.9", "--formats", "torchscript"]) == 1
    assert "0 detections" in (told := capsys.readouterr()).out
    assert "NOT COMPARED" in told.out
    assert told.err == ""


def test_an_exif_orientation_is_left_alone_where_the_data_do_so(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(path, exif=exif)
    checkpoint = write_checkpoint(tmp_path)
    shapes = [
        check_images(load_trained(checkpoint, [f"data.exif={exif}"]), [path])[0].shape
        for exif in ("apply", "ignore")
    ]
    assert shapes == [(3, 96, 64), (3, 64, 96)]


def test_torchscript_needs_torchvision_and_nothing_else(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path)
    assert main([str(checkpoint), "--formats", "torchscript"]) == 0
    program = (
        "import torch, torchvision\n"
        f"found = torch.jit.load({str(checkpoint.with_suffix('.torchscript'))!r})\n"
        "assert len([each.numpy() for each in found(torch.zeros(3, 64, 96).byte())]) == 3"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_a_difference_is_an_error() -> None:
    close = {"images": 1, "detections": 3, "box": 1e-4, "score": 1e-6, "mask": None}
    assert Parity(**close, unmatched=0).holds
    assert not Parity(**close, unmatched=1).holds
    assert not Parity(**{**close, "detections": 0}, unmatched=0).holds
    assert not Parity(**{**close, "box": 0.5}, unmatched=0).holds
    assert not Parity(**{**close, "mask": 0.1}, unmatched=0).holds


def test_a_file_whose_numbers_are_none_is_not_equal(tmp_path: Path) -> None:
    trained = load_trained(write_checkpoint(tmp_path))
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    same = for_one_image(trained.detector)

    def broken(pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, labels, scores, *rest = same(pixels)
        return boxes, labels, scores * torch.nan, *rest

    assert compare(trained, same, [image]).holds
    assert not compare(trained, broken, [image]).holds


def test_overrides_may_stand_behind_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_data(tmp_path)
    picture = next(root.glob("JPEGImages/*"))
    command = [str(write_checkpoint(tmp_path)), "--formats", "safetensors"]
    assert main([*command, "--images", str(picture), "data.image_size=[0,0]"]) == 2
    assert "data.image_size" in capsys.readouterr().err


def test_other_weights_are_noticed(tmp_path: Path) -> None:
    trained = load_trained(write_checkpoint(tmp_path))
    other = load_trained(write_checkpoint(tmp_path / "other"))
    with torch.no_grad():
        other.detector.head.classification_head.cls_logits.bias.add_(0.1)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert not compare(trained, for_one_image(other.detector), [image]).holds


def test_which_of_equal_scores_are_found_last_is_no_difference(tmp_path: Path) -> None:
    trained = load_trained(write_checkpoint(tmp_path), ["detector.detections_per_image=3"])
    places = torch.tensor([[0.0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49], [60, 60, 69, 69]])

    def found(rows: list[int], scores: list[float]) -> tuple[torch.Tensor, ...]:
        return places[rows], torch.zeros(len(rows), dtype=torch.int64), torch.tensor(scores)

    def parity(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> Parity:
        trained.detector.forward = lambda images: [  # noqa: ARG005
            dict(zip(("boxes", "labels", "scores"), ours, strict=True))
        ]
        return compare(trained, lambda image: theirs, [torch.zeros(3, 64, 64)])  # noqa: ARG005

    full, tied = found([0, 1, 2], [0.9, 0.5, 0.5]), found([0, 1, 3], [0.9, 0.5, 0.5])
    assert parity(full, tied).holds
    assert parity(full, tied).detections == 1
    assert not parity(full, found([3, 1, 2], [0.9, 0.5, 0.5])).holds  # another one is the best
    assert not parity(found([0, 1], [0.9, 0.5]), found([0, 3], [0.9, 0.5])).holds  # there was room
    equal = found([0, 1, 2], [1.0, 1.0, 1.0])
    assert not parity(equal, equal).holds  # nothing that could be compared
