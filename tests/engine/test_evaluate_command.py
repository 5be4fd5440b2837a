"""evaluate.py: its arguments in any order, and checkpoints from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import config_of, run, tiny, write_config

import evaluate
from data.errors import InputError
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.evaluation.validation import Validation
from engine.process.outputs import check_outputs
from engine.process.signals import Stopped, StopRequest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    return run(config_of(tiny(folder, train={"epochs": 1, "pictures": 0})))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    return evaluate.main()


def changed(trained: Path, tmp_path: Path, **parts: Any) -> Path:
    """A copy of the checkpoint with some parts exchanged."""
    path = tmp_path / "changed.pt"
    save_checkpoint(path, {**load_checkpoint(trained / "last.pt"), **parts})
    return path


def test_checkpoint_flags_and_overrides_come_in_any_order(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scores.json"
    words = ["evaluate.iou=0.3", "--split", "train", trained / "last.pt", "data.batch_size=3"]
    assert call(monkeypatch, *words, "--output", output, "data.workers=0") == 0
    scores = json.loads(output.read_text())
    assert (scores["split"], scores["images"]) == ("train", 10)


def test_a_checkpoint_s_path_may_hold_an_equals_sign(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lr=0.01"
    folder.mkdir()
    (folder / "last.pt").write_bytes((trained / "last.pt").read_bytes())
    assert call(monkeypatch, folder / "last.pt") == 0
    assert (folder / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a checkpoint"),
        (["a.pt", "b.pt"], "one checkpoint at a time"),
        (["train.lr=1"], "give a checkpoint"),
        (["a.pt", "--config", "c.yaml"], "must be given together"),
        (["--detections", "d.json"], "must be given together"),
        (
            ["a.pt", "--config", "c.yaml", "--detections", "d.json"],
            "cannot be combined with a checkpoint",
        ),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        call(monkeypatch, *words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is what the checkpoint asks for")
def test_a_checkpoint_of_a_gpu_is_evaluated_where_there_is_none(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_checkpoint(trained / "last.pt")["config"]
    config["train"]["device"] = "cuda"
    path = changed(trained, tmp_path, config=config)
    assert call(monkeypatch, path) == 0
    assert call(monkeypatch, path, "train.device=cuda") == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.classes=[a, b, c]", "contradicts the checkpoint"),
        ("data.classes=[square, circle, triangle]", "contradicts the checkpoint"),
        ("detector.fpn_channels=8", "do not fit"),
        ("data.val=test", "no split 'test'"),
    ],
)
def test_overrides_that_contradict_the_checkpoint_are_refused(
    override: str,
    message: str,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, trained / "last.pt", override) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_split_that_is_not_there_is_named_with_those_that_are(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, trained / "last.pt", "--split", "tset") == 2
    assert "no split 'tset'; use train or val" in capsys.readouterr().err


def test_results_of_splits_with_the_same_image_ids_are_refused_before_the_evaluation(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = trained / "last.pt", "--output", tmp_path / "metrics.json", "data.val=[train, val]"
    assert call(monkeypatch, *words, "--coco-results", tmp_path / "results.json") == 2
    assert "or one class several ids; score one split" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
    assert call(monkeypatch, *words) == 0


def test_results_of_a_split_without_one_of_the_categories_are_scored_as_they_were_written(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A COCO file for validation may lack a category that the one for training has."""
    (drawn,) = (trained.parent / "shapes").iterdir()
    data = shutil.copytree(drawn, tmp_path / "data")
    file = data / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    lacking = content["categories"].pop(0)["id"]
    content["annotations"] = [
        item for item in content["annotations"] if item["category_id"] != lacking
    ]
    file.write_text(json.dumps(content))
    block = {"format": "coco", "root": str(data), "train": "train", "val": "val"}
    config, results = write_config(tmp_path, {"data": block}), tmp_path / "results.json"
    overrides = [f"data.{key}={value}" for key, value in block.items()]
    outputs = [tmp_path / "written.json", tmp_path / "read.json"]
    words = [trained / "last.pt", *overrides, "detector.score_threshold=0"]
    words += ["--coco-results", results, "--comp4", tmp_path / "comp4"]
    assert call(monkeypatch, *words, "--output", outputs[0]) == 0
    known = {kind["id"] for kind in content["categories"]}
    assert {entry["category_id"] for entry in json.loads(results.read_text())} - known == {lacking}
    for path in (results, tmp_path / "comp4"):
        words = ["--config", config, "--detections", path]
        assert call(monkeypatch, *words, "--output", outputs[1]) == 0
        written, read = (json.loads(output.read_text())["voc"] for output in outputs)
        assert read == written
    (data / "annotations/instances_train.json").unlink()
    words = [trained / "last.pt", *overrides, "detector.score_threshold=0"]
    words += ["--coco-results", results, "--output", outputs[1]]
    assert call(monkeypatch, *words) == 0
    assert f"of classes without a category id in {file}" in capsys.readouterr().err
    assert not {entry["category_id"] for entry in json.loads(results.read_text())} - known
    assert json.loads(outputs[1].read_text())["voc"] == written


def test_an_output_that_is_an_input_is_refused(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = Path(shutil.copy(trained / "last.pt", tmp_path))
    (tmp_path / "link").symlink_to(checkpoint)
    before = checkpoint.read_bytes()
    for option in ("--output", "--coco-results", "--picture"):
        for output in (checkpoint, tmp_path / "link"):
            assert call(monkeypatch, checkpoint, option, output) == 2
            assert f"{output}: is an input and would be overwritten" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
    (drawn,) = (trained.parent / "shapes").iterdir()
    truth = drawn / "annotations/instances_val.json"
    before = truth.read_bytes()
    assert call(monkeypatch, checkpoint, "--coco-results", truth) == 2
    assert f"{truth}: is an input" in capsys.readouterr().err
    picture = next((drawn / "val").iterdir())
    assert call(monkeypatch, checkpoint, "--picture", picture) == 2
    assert f"{picture}: is an input" in capsys.readouterr().err
    both = tmp_path / "both.json"
    assert call(monkeypatch, checkpoint, "--output", both, "--coco-results", both) == 2
    assert f"{both}: is given for two outputs; choose another" in capsys.readouterr().err
    comp4 = tmp_path / "comp4"
    assert call(monkeypatch, checkpoint, "--comp4", comp4, "--output", tmp_path / "m.json") == 0
    config = write_config(tmp_path, load_checkpoint(checkpoint)["config"])
    assert call(monkeypatch, "--config", config, "--detections", comp4, "--comp4", comp4) == 2
    assert f"{comp4}: is an input" in capsys.readouterr().err
    assert truth.read_bytes() == before


def test_names_that_comp4_files_cannot_hold_are_refused_before_the_evaluation(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = "--comp4", tmp_path / "comp4", "--output", tmp_path / "metrics.json"
    both = trained / "last.pt", "data.val=[train, val]"  # both have an image called 0
    monkeypatch.delattr(Validation, "run")
    assert call(monkeypatch, *both, *words) == 2
    assert "two images are named" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()


def test_a_picture_of_damaged_images_alone_is_refused(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Validation, "examples", lambda *_, **__: ([], []))
    words = trained / "last.pt", "--output", tmp_path / "metrics.json"
    assert call(monkeypatch, *words, "--picture", tmp_path / "six.png") == 2
    assert "six.png: all images to draw are damaged" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").is_file()


def test_a_file_that_cannot_be_written_costs_no_other(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # as where it could be when the evaluation began
    monkeypatch.setattr("engine.process.outputs._check_writable", lambda *_, **__: None)
    (tmp_path / "file").touch()
    results = tmp_path / "results.json"
    words = trained / "last.pt", "--output", tmp_path / "file/metrics.json"
    assert call(monkeypatch, *words, "--coco-results", results) == 2
    told = capsys.readouterr()
    assert "file/metrics.json: cannot be written" in told.err
    assert "VOC average precision" in told.out
    assert isinstance(json.loads(results.read_text()), list)
    words = trained / "last.pt", "--output", tmp_path / "metrics.json"
    assert call(monkeypatch, *words, "--coco-results", tmp_path / "file/results.json") == 2
    assert "file/results.json: cannot be written" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coco-results", "{run}/metrics.json"], "metrics.json: is given for two outputs"),
        (["--output", "{run}/last.pt"], "last.pt: is an input and would be overwritten"),
        (["--coco-results", "{folder}"], "is a folder; give a file"),
        (["--picture", "{folder}"], "is a folder; give a file"),
        (["--comp4", "{folder}/file"], "file: is a file; give a folder"),
        (["--output", "{folder}/file/m.json"], "file is not a folder; choose another"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_the_evaluation(
    words: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    before = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    monkeypatch.delattr(Validation, "run")
    places = [word.format(run=trained, folder=tmp_path) for word in words]
    assert call(monkeypatch, trained / "best.pt", *places) == 2
    assert message in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in trained.iterdir()} == before


def test_a_signal_stops_the_scoring_of_a_file(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text("[]")
    stop = StopRequest()
    stop.handle(signal.SIGINT)
    with pytest.raises(Stopped):
        evaluate.score_file(
            str(tmp_path / "found.json"),
            str(trained / "config.yaml"),
            "val",
            [],
            evaluate.Outputs(tmp_path / "metrics.json", None, None, None),
            stop,
        )
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(("is_folder", "refused"), [(True, False), (False, True)])
def test_a_folder_that_is_there_may_lie_in_one_that_allows_no_files(
    is_folder: bool, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "comp4"
    place.mkdir()
    # as to who is not root
    monkeypatch.setattr(os, "access", lambda folder, _: Path(folder) == place)
    names = {"outputs": [], "folders": [place]} if is_folder else {"outputs": [tmp_path / "a"]}
    with pytest.raises(InputError, match="is not writable") if refused else nullcontext():
        check_outputs(**names, inputs=[])
