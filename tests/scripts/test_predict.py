"""predict.py: what it takes, what it writes, what it says when it cannot."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from datasets_on_disk import write_image
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_runs import CLASSES, write_checkpoint, write_data

from data.errors import InputError
from data.formats.voc import load_voc
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.evaluation.comp4 import read_comp4
from engine.predictor import Predictor
from engine.trained import load_trained
from scripts.predict import main
from scripts.prediction.inputs import find_sources
from scripts.prediction.pictures import VideoWriter


def write_video(path: Path, frames: int = 5) -> Path:
    write_frames(path, [np.full((48, 64, 3), 40 * n, dtype=np.uint8) for n in range(frames)])
    return path


def write_frames(path: Path, frames: Iterable[Any]) -> None:
    with VideoWriter(path, rate=10) as writer:
        for frame in frames:
            writer.write(frame)


def noise(frames: int) -> Any:
    return np.random.default_rng(0).integers(0, 255, (frames, 48, 64, 3), dtype=np.uint8)


def test_folders_patterns_and_files_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "deep/c.jpg", "notes.png.txt"):
        write_image(tmp_path / name, 8, 8) if name[-1] == "g" else (tmp_path / name).touch()
    folder = find_sources([str(tmp_path)])
    assert [source.name for source in folder] == ["a", "b", "deep/c"]
    named = find_sources([str(tmp_path / "*.png"), str(tmp_path / "a.png")])
    assert [source.name for source in named] == ["a", "b"]


@pytest.mark.parametrize("name", ["photo\udce9.png", "photo\udce9.avi", "photo\udce9/a.png"])
def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    """OpenCV ends the process on such a video, and no result file holds such a name."""
    file = tmp_path / "photos" / name
    try:
        file.parent.mkdir(parents=True)
        file.touch()
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    for named in (file, tmp_path / "photos", tmp_path / "photos" / "**" / f"*{file.suffix}"):
        with pytest.raises(InputError, match=r"photo\\udce9.*: the name is not UTF-8; rename it"):
            find_sources([str(named)])
    write_image(tmp_path / "a.png", 8, 8)
    with pytest.raises(InputError, match="the name is not UTF-8"):
        find_sources([str(tmp_path / "a.png")], output=tmp_path / "photo\udce9")


@pytest.mark.parametrize(
    ("named", "output"),
    [
        ([""], ""),
        (["a.jpg"], ""),
        (["deep"], "deep"),
        (["a.jpg"], "../link"),
        (["clip.mp4"], ""),
        (["b.bmp", "b.bmp.png"], "../out/../photos"),
    ],
)
def test_an_input_is_never_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: list[str], output: str
) -> None:
    photos = tmp_path / "photos"
    for file in ("a.jpg", "b.bmp", "b.bmp.png", "deep/c.png"):
        write_image(photos / file, 40, 40)
    write_video(photos / "clip.mp4", frames=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(photos)
    before = {file: file.read_bytes() for file in photos.rglob("*.*")}
    command = [str(write_checkpoint(tmp_path)), "data.image_size=[48,64]"]
    command += [str(photos / name) for name in named]
    assert main([*command, "--output", str(photos / output)]) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in photos.rglob("*.*")} == before


def test_a_second_run_over_a_folder_does_not_find_what_the_first_has_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path)
    write_image(tmp_path / "a.png", 40, 40)
    monkeypatch.chdir(tmp_path)
    told = []
    for _ in range(2):
        assert main([str(checkpoint), ".", "--json"]) == 0
        told.append(list(json.loads(capsys.readouterr().out)["images"]))
    assert told == [["a.png"], ["a.png"]]
    assert (tmp_path / "predictions/a.png").is_file()
    (tmp_path / "a.png").unlink()
    assert main([str(checkpoint), "."]) == 2
    assert "other than those in --output predictions" in capsys.readouterr().err
    assert main([str(checkpoint), "predictions", "--no-pictures"]) == 0  # asked for by name


def test_folders_behind_links_are_looked_at_and_hidden_files_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for file in ("a.png", "._a.png", ".thumbnails/a.png", "z/c.png", "../more/b.png"):
        write_image(photos / file, 40, 40)
    (photos / "before_z").symlink_to(photos / "z")
    (photos / "link").symlink_to(tmp_path / "more")
    (tmp_path / "more/up").symlink_to(photos)  # round in a circle
    command = [str(write_checkpoint(tmp_path)), str(photos), "--json"]
    for _ in range(2):  # the second time there are drawn pictures behind the link, too
        assert main([*command, "--output", str(tmp_path / "more/out")]) == 0
        told = json.loads(capsys.readouterr().out)
        assert list(told["images"]) == ["a.png", "link/b.png", "z/c.png"]


def test_one_name_with_two_endings_is_two_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("a.jpg", "a.png"):
        write_image(tmp_path / "photos" / file, 40, 40)
    command = [str(write_checkpoint(tmp_path)), str(tmp_path / "photos")]
    command += ["--output", str(tmp_path / "out")]
    assert main([*command, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["images"]) == ["a.jpg", "a.png"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.jpg", "a.png"]
    assert main([*command, "--comp4", str(tmp_path / "comp4")]) == 2
    assert "are both 'a' in comp4 files" in capsys.readouterr().err


def test_two_inputs_that_would_be_one_are_refused_with_a_cure_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in ("one/a.png", "two/a.png"):
        write_image(tmp_path / "photos" / file, 40, 40)
    write_video(tmp_path / "clip.mp4", frames=1).rename(tmp_path / "clip.m4v")
    write_video(tmp_path / "clip.mp4", frames=1)
    checkpoint = str(write_checkpoint(tmp_path))
    out = ["--output", str(tmp_path / "out"), "data.image_size=[48,64]"]
    images = [str(tmp_path / "photos" / folder) for folder in ("one", "two")]
    assert main([checkpoint, *images, "--no-pictures"]) == 2
    assert "are both 'a.png' in the results; give their common parent" in capsys.readouterr().err
    assert main([checkpoint, str(tmp_path / "photos"), *out]) == 0
    clips = [str(tmp_path / "clip.mp4"), str(tmp_path / "clip.m4v")]
    assert main([checkpoint, *clips, *out]) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert main([checkpoint, *clips, *out, "--no-pictures"]) == 0
    for clip in clips:
        assert main([checkpoint, clip, "--output", str(tmp_path / Path(clip).suffix[1:])]) == 0


def test_pictures_json_and_files_of_detections_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, checkpoint = write_data(tmp_path), write_checkpoint(tmp_path)
    out = tmp_path / "out"
    command = [str(checkpoint), str(root / "JPEGImages"), "--output", str(out), "--batch", "3"]
    files = ["--coco", str(tmp_path / "c.json"), "--comp4", str(tmp_path / "comp4")]
    assert main([*command, *files, "--json", "--threshold", "0.006"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["images"]) == ["i0.png", "i1.png", "i2.png", "i3.png"]
    assert told["speed"]["pictures"] == 4
    results = json.loads((tmp_path / "c.json").read_text())
    assert len(results) == sum(map(len, told["images"].values())) > 0
    first = told["images"]["i0.png"][0]
    same = next(each for each in results if each["image_id"] == 1)
    assert CLASSES[same["category_id"] - 1] == first["class"]
    assert same["score"] == first["score"]
    index = json.loads((tmp_path / "c_images.json").read_text())
    assert [image["file_name"] for image in index["images"]] == list(told["images"])
    annotations = replace(load_voc(root, ["trainval", "test"], CLASSES), split="test")
    assert len(read_comp4(tmp_path / "comp4", annotations)) == len(results)
    plain = cv2.imread(str(root / "JPEGImages/i0.png"))
    drawn = cv2.imread(str(out / "i0.png"))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()


def test_ids_are_taken_from_an_annotation_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, checkpoint = write_data(tmp_path), write_checkpoint(tmp_path)
    kinds = [{"id": 10 * number, "name": name} for number, name in enumerate(CLASSES, start=1)]
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps({"images": [{"id": 77, "file_name": "i1.png"}], "categories": kinds}))
    command = [str(checkpoint), "--no-pictures", "--coco", str(tmp_path / "c.json")]
    image = str(root / "JPEGImages/i1.png")
    assert main([*command, image, "--ids", str(ids)]) == 0
    results = json.loads((tmp_path / "c.json").read_text())
    assert {each["image_id"] for each in results} == {77}
    assert {each["category_id"] for each in results} <= {10, 20, 30}
    assert not (tmp_path / "predictions").exists()
    assert main([*command, str(root / "JPEGImages/i2.png"), "--ids", str(ids)]) == 2
    assert "has no image 'i2.png'" in capsys.readouterr().err


KINDS = [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]
I0 = {"id": 7, "file_name": "i0.png"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [I0, {"id": 7, "file_name": "i1.png"}]}, "has the same id 7 as 'i0.png'"),
        ({"images": [I0, {"id": 8, "file_name": "i0.png"}]}, "image 'i0.png' is listed twice"),
        ({"images": [I0]}, "'deep/i0.png' and 'i0.png' both match its image 7"),
        ({"images": [{**I0, "id": 2**70}]}, "is not an integer"),
        ({"images": [{**I0, "id": "7"}]}, "is not an integer"),
        (
            {"images": [I0], "categories": [*KINDS[:2], {"id": 1, "name": "ox"}]},
            "the same id 1 as 'cat",
        ),
        ({"images": [I0], "categories": KINDS[:2]}, "has no category ox"),
        ("[" * 100_000, "is not COCO annotations"),
        ([], "is not COCO annotations"),
    ],
)
def test_ids_that_cannot_be_used_are_said_before_anything_is_looked_at(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: Any,
    message: str,
) -> None:
    for file in ("i0.png", "deep/i0.png"):
        write_image(tmp_path / "photos" / file, 40, 40)
    if isinstance(content, dict):
        content = {"categories": KINDS, **content}
    ids = tmp_path / "ids.json"
    ids.write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.delattr(Predictor, "__call__")
    command = [str(write_checkpoint(tmp_path)), str(tmp_path / "photos"), "--no-pictures"]
    assert main([*command, "--coco", str(tmp_path / "c.json"), "--ids", str(ids)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exif", "annotated", "looked_at"),
    [
        ("apply", None, [120, 80]),
        ("ignore", None, [80, 120]),
        ("apply", [80.0, 120.0], [80, 120]),
        ("apply", [120, 80], [120, 80]),
        ("apply", [80, 0], [120, 80]),
        ("apply", [90, 120], "the image is 80x120 (width x height) but its annotation says"),
        ("ignore", [120, 80], "set data.exif: apply"),
        ("apply", ["80", 120], "give whole numbers of pixels"),
    ],
)
def test_a_picture_is_turned_as_in_training(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    exif: str,
    annotated: list[Any] | None,
    looked_at: list[int] | str,
) -> None:
    flags = Image.Exif()
    flags[0x0112] = 6  # a quarter turn: stored 80 high and 120 wide, shown 120 high and 80 wide
    Image.new("RGB", (120, 80)).save(tmp_path / "i0.jpg", exif=flags)
    image = {"id": 7, "file_name": "i0.jpg"}
    if annotated is not None:
        image |= {"height": annotated[0], "width": annotated[1]}
    ids, results = tmp_path / "ids.json", tmp_path / "c.json"
    ids.write_text(json.dumps({"images": [image], "categories": KINDS}))
    command = [str(write_checkpoint(tmp_path, "mask_rcnn")), str(tmp_path / "i0.jpg")]
    command += ["--no-pictures", "--coco", str(results), f"data.exif={exif}"]
    command += [] if annotated is None else ["--ids", str(ids)]
    if isinstance(looked_at, str):
        assert main(command) == 2
        assert looked_at in capsys.readouterr().err
    else:
        assert main(command) == 0
        found = json.loads(results.read_text())
        assert [each["segmentation"]["size"] for each in found] == [looked_at] * len(found) != []


def test_ids_are_for_coco_results_and_are_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", 40, 40)
    (tmp_path / "ids.json").write_text("{}")
    command = ["last.pt", str(tmp_path / "a.png"), "--ids", str(tmp_path / "ids.json")]
    assert main(command) == 2
    assert "add --coco FILE" in capsys.readouterr().err
    assert main([*command, "--coco", str(tmp_path / "ids.json")]) == 2
    assert (
        "ids.json: is an input and would be overwritten; choose another" in capsys.readouterr().err
    )


def test_a_class_that_comp4_files_cannot_hold_is_said_before_anything_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path)
    classes = ["cup/mug", *CLASSES[1:]]
    saved = load_checkpoint(checkpoint)
    saved["config"]["data"]["classes"] = classes
    save_checkpoint(checkpoint, {**saved, "classes": classes})
    write_image(tmp_path / "a.png", 40, 40)
    monkeypatch.delattr(Predictor, "__call__")
    command = [str(checkpoint), str(tmp_path / "a.png"), "--no-pictures"]
    assert main([*command, "--comp4", str(tmp_path / "comp4")]) == 2
    assert "class 'cup/mug' cannot be part of a file name" in capsys.readouterr().err


def test_results_that_cannot_be_written_cost_nothing_that_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # as where it could be when the work began
    monkeypatch.setattr("engine.process.outputs._check_writable", lambda *_, **__: None)
    write_image(tmp_path / "a.png", 40, 40)
    command = [str(write_checkpoint(tmp_path)), str(tmp_path / "a.png"), "--no-pictures", "--json"]
    assert main([*command, "--coco", str(tmp_path / "a.png/c.json")]) == 2
    told = capsys.readouterr()
    assert list(json.loads(told.out)["images"]) == ["a.png"]
    assert "a.png/c.json: cannot be written" in told.err


def test_a_video_becomes_a_video_of_as_many_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4")
    checkpoint = write_checkpoint(tmp_path)
    out = tmp_path / "out"
    command = [str(checkpoint), str(clip), "--output", str(out), "--batch", "2"]
    assert main([*command, "--threshold", "0.006", "data.image_size=[48,64]"]) == 0
    assert "clip.mp4: 5 frames" in capsys.readouterr().out
    capture = cv2.VideoCapture(str(out / "clip.mp4"))
    frames = 0
    while (answer := capture.read())[0]:
        frames += 1
        assert answer[1].shape == (48, 64, 3)
    assert frames == 5
    assert list(out.iterdir()) == [out / "clip.mp4"]


def test_a_video_that_ends_too_early_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole.avi", tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for frame in noise(frames=8):
        writer.write(frame)
    writer.release()
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    command = [str(write_checkpoint(tmp_path)), str(whole), str(cut), "--no-pictures", "--json"]
    assert main([*command, "data.image_size=[48,64]"]) == 0
    told = capsys.readouterr()
    videos = json.loads(told.out)["videos"]
    assert (videos[str(whole)]["frames"], videos[str(whole)]["promised"]) == (8, 8)
    frames = videos[str(cut)]["frames"]
    assert 0 < frames < videos[str(cut)]["promised"] == 8
    assert told.err.count(" of the 8 frames in its header") == 1
    assert f"predict.py: {cut}: ends after {frames} of" in told.err


def test_a_video_that_the_disk_has_no_room_for_replaces_nothing(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    before = write_video(clip).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"clip\.mp4: cannot be written: only 0 of 20 frames"):
            write_frames(clip, noise(frames=20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert clip.read_bytes() == before
    assert list(tmp_path.iterdir()) == [clip]


def test_damaged_files_are_left_out_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    for name in ("a.png", "b.png", "c.png"):
        write_image(photos / name, 40, 40)
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:200])
    (photos / "broken.mp4").write_text("no video at all")
    command = [str(write_checkpoint(tmp_path)), "--output", str(tmp_path / "out"), "--json"]
    results = tmp_path / "c.json"
    command += ["data.image_size=[48,64]", "--coco", str(results), "--batch", "2"]
    assert main([*command, str(photos)]) == 2
    assert not results.exists()
    capsys.readouterr()
    assert main([*command, str(photos), "data.on_damaged=skip"]) == 0
    told = capsys.readouterr()
    assert list(json.loads(told.out)["images"]) == ["a.png", "c.png"]
    damaged = [str(photos / "b.png"), str(photos / "broken.mp4")]
    assert json.loads(told.out)["left_out"] == damaged
    assert all(f"predict.py: skipped: {file}: " in told.err for file in damaged)
    assert {each["image_id"] for each in json.loads(results.read_text())} == {1, 2}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    results.unlink()
    assert main([*command, *damaged, "data.on_damaged=skip"]) == 2
    assert not results.exists()


def test_json_holds_the_frames_of_videos_and_the_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.mp4", frames=3)
    write_image(tmp_path / "a.png", 48, 64)
    inputs = [str(clip), str(tmp_path / "a.png"), "data.image_size=[48,64]"]
    checkpoint = write_checkpoint(tmp_path, "mask_rcnn")
    results = tmp_path / "c.json"
    command = [str(checkpoint), *inputs, "--no-pictures", "--json", "--batch", "2"]
    assert main([*command, "--threshold", "0.005", "--coco", str(results)]) == 0
    told = json.loads(capsys.readouterr().out)
    video = told["videos"][str(clip)]
    assert len(video["detections"]) == video["frames"] == 3
    assert sum(map(len, video["detections"])) == video["objects"] > 0
    written = json.loads(results.read_text())
    listed = told["images"]["a.png"]
    assert [each["segmentation"] for each in listed] == [each["segmentation"] for each in written]
    assert all(each["segmentation"]["size"] == [48, 64] for each in video["detections"][2])


def test_masks_are_drawn(tmp_path: Path) -> None:
    root, checkpoint = write_data(tmp_path), write_checkpoint(tmp_path, "mask_rcnn")
    out = tmp_path / "out"
    image = root / "JPEGImages/i0.png"
    files = ["--coco", str(tmp_path / "c.json")]
    command = [str(checkpoint), str(image), "--output", str(out), *files]
    assert main([*command, "--threshold", "0.005"]) == 0
    results = json.loads((tmp_path / "c.json").read_text())
    assert results
    assert all(each["segmentation"]["size"] == [80, 100] for each in results)
    covered = coco_mask.decode(coco_mask.merge([each["segmentation"] for each in results]))
    changed = (cv2.imread(str(out / "i0.png")) != cv2.imread(str(image))).any(axis=2)
    assert changed[covered.astype(bool)].mean() > 0.9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.jpg"], "file or folder not found"),
        ([], "give a checkpoint, then images"),
        (["empty"], "the folder has no images or videos"),
        (["broken.mp4"], "cannot be read as a video"),
        (["broken.png"], "is not a JPEG, PNG"),
    ],
)
def test_what_cannot_be_looked_at_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    checkpoint = write_checkpoint(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("broken.mp4", "broken.png"):
        (tmp_path / name).write_text("no picture at all")
    command = [str(checkpoint), *(str(tmp_path / word) for word in words)]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_looking_twice_is_what_evaluation_does_with_it(tmp_path: Path) -> None:
    trained = load_trained(write_checkpoint(tmp_path), ["evaluate.flip=true"])
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3)).astype(np.uint8)
    found = Predictor(trained)([image])
    mirrored = Predictor(trained)([np.ascontiguousarray(image[:, ::-1])])
    assert len(found) == len(mirrored) > 0
    np.testing.assert_allclose(np.sort(found.score), np.sort(mirrored.score), atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_picture_is_seen_beside_others_as_alone(tmp_path: Path, norm: str) -> None:
    trained = load_trained(write_checkpoint(tmp_path, norm=norm))
    generator = np.random.default_rng(0)
    sizes = ((64, 96), (96, 64), (64, 90), (64, 64))
    images = [generator.integers(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
    predictor = Predictor(trained)
    together = predictor(images)
    assert predictor.images == len(images)
    for row, image in enumerate(images):
        alone, own = predictor([image]), together.image == row
        assert len(alone) == own.sum() > 0
        np.testing.assert_allclose(together.score[own], alone.score, atol=1e-6)
        np.testing.assert_allclose(together.boxes[own], alone.boxes, atol=1e-3)
