"""The commands as users type them: real processes, real ranks, real signals."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import (
    ENVIRONMENT,
    ROOT,
    backbone_file,
    call,
    command,
    differences,
    metrics,
    tiny,
    write_config,
)

from engine.checkpoint import load_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"


def equivalent(folder: Path, name: str, batch_size: int) -> Path:
    """A config whose losses do not depend on how many ranks share its global batches of 4."""
    values = tiny(
        folder,
        detector={"weights": str(backbone_file(folder)), "norm": "frozen", "trainable_stages": 3},
        loss={"normalizer": "image"},
        data={"batch_size": batch_size},
        train={"name": name},
    )
    return write_config(folder, values, f"{name}.yaml")


def test_two_ranks_train_as_one_with_the_same_global_batches(tmp_path: Path) -> None:
    alone = call("train.py", "--config", equivalent(tmp_path, "alone", 4))
    assert alone.returncode == 0, alone.stderr
    both = call("train.py", "--config", equivalent(tmp_path, "both", 2), ranks=2)
    assert both.returncode == 0, both.stderr
    lines = [
        [line for line in metrics(tmp_path / name) if line["kind"] == "train"]
        for name in ("alone", "both")
    ]
    assert len(lines[0]) == len(lines[1]) == 6
    for one, two in zip(*lines, strict=True):
        for group in ("loss", "loss_weight"):
            for name, value in one[group].items():
                assert two[group][name] == pytest.approx(value, rel=1e-5)
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("alone", "both"))
    for name, tensor in one["detector"].items():
        torch.testing.assert_close(two["detector"][name], tensor, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(two["weighting"]["lambdas"], one["weighting"]["lambdas"])


def test_sigterm_to_torchrun_saves_and_resume_ends_as_an_undisturbed_run(tmp_path: Path) -> None:
    values = tiny(tmp_path, train={"name": "whole", "epochs": 12}, evaluate={"every": 6})
    whole = write_config(tmp_path, values, "whole.yaml")
    assert call("train.py", "--config", whole, ranks=2).returncode == 0
    values["train"]["name"] = "cut"
    cut = write_config(tmp_path, values, "cut.yaml")
    process = subprocess.Popen(
        command("train.py", "--config", cut, ranks=2),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    log = tmp_path / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("\n") < 4):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) != 0  # after 30 s torchrun would kill
    step = load_checkpoint(tmp_path / "cut" / "last.pt")["progress"]["step"]
    assert 4 <= step < 36
    resumed = call("train.py", "--config", cut, "--resume", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    one, two = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    for name, tensor in one["detector"].items():
        assert torch.equal(two["detector"][name], tensor), name


@pytest.mark.slow
def test_a_resumed_run_of_three_ranks_is_bit_equal_to_an_undisturbed_one(tmp_path: Path) -> None:
    """From three on the rounding of a sum over ranks depends on its place in what they exchange."""
    values = tiny(tmp_path, data={"batch_size": 1}, train={"pictures": 0})
    for name, commands in {"whole": [[]], "cut": [["train.epochs=1"], ["--resume"]]}.items():
        values["train"]["name"] = name
        config = write_config(tmp_path, values)
        for words in commands:
            result = call("train.py", "--config", config, *words, ranks=3)
            assert result.returncode == 0, result.stderr
    whole, cut = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert differences(whole, cut) == ["/config/train/name"]
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    values = tiny(folder, "mask_rcnn", train={"epochs": 1})
    values["detector"]["score_threshold"] = 0.0
    result = call("train.py", "--config", write_config(folder, values))
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_evaluate_gives_the_scores_of_the_last_epoch_and_writes_what_is_asked_for(
    trained: Path,
) -> None:
    during = json.loads((trained / "metrics.json").read_text())
    result = call(
        "evaluate.py",
        trained / "last.pt",
        "--coco-results",
        trained / "results.json",
        "--comp4",
        trained / "comp4",
        "--picture",
        trained / "picture.png",
        ranks=2,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((trained / "metrics.json").read_text()) == during
    assert "circle" in result.stdout
    assert (trained / "picture.png").stat().st_size > 1000

    config = trained / "config.yaml"
    for written in ("results.json", "comp4"):
        again = call(
            "evaluate.py",
            "--config",
            config,
            "--detections",
            trained / written,
            "--output",
            trained / "again.json",
        )
        assert again.returncode == 0, again.stderr
        scores = json.loads((trained / "again.json").read_text())
        assert scores["voc"] == during["voc"]
    assert set(during["coco"]) == {"bbox", "segm"}


def test_result_files_of_other_programs_are_scored_as_they_say(tmp_path: Path) -> None:
    for name, data, detections in (
        (
            "voc_devkit",
            {"format": "voc", "train": "test", "val": "test"},
            FIXTURES / "voc_devkit" / "detections",
        ),
        (
            "coco_val2014_100",
            {"format": "coco", "train": "val2014_100", "val": "val2014_100"},
            FIXTURES / "coco_val2014_100" / "instances_val2014_fakesegm100_results.json",
        ),
    ):
        root = FIXTURES / name
        config = write_config(tmp_path, {"data": {**data, "root": str(root)}})
        output = tmp_path / "metrics.json"
        result = call(
            "evaluate.py", "--config", config, "--detections", detections, "--output", output
        )
        assert result.returncode == 0, result.stderr
        scores = json.loads(output.read_text())
        expected = json.loads((root / "expected.json").read_text())
        for form in ("area", "11point"):
            if form in expected:
                assert scores["voc"][form]["mAP"] == pytest.approx(expected[form]["mAP"], abs=1e-9)
        if "segm" in expected:
            for number, value in expected["segm"].items():
                assert scores["coco"]["segm"][number] == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize(
    ("script", "arguments", "parts"),
    [
        ("train.py", ["--config", "missing.yaml"], ["missing.yaml", "config file not found"]),
        (
            "train.py",
            ["--config", "configs/quickstart.yaml", "train.epoch=3"],
            ["train.epoch", "'epochs'"],
        ),
        ("evaluate.py", ["missing.pt"], ["missing.pt", "checkpoint not found"]),
    ],
)
def test_a_mistake_is_answered_with_one_line_and_status_2(
    script: str, arguments: list[str], parts: list[str]
) -> None:
    result = call(script, *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for part in ("error: ", *parts):
        assert part in result.stderr


def test_a_norm_over_processes_is_refused_on_cpus_by_every_rank_in_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, tiny(tmp_path, detector={"norm": "sync"}))
    result = call("train.py", "--config", config, ranks=2)
    assert result.returncode == 1  # torchrun's
    assert "error: detector.norm: sync cannot train on the CPU" in result.stderr
    assert "internal error" not in result.stderr
