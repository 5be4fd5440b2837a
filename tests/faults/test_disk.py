"""A disk that is really full, a folder that really cannot be written, in the middle of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import lines_of, small, started, training, wait_until, write_config
from runs import differences, metrics

from engine.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0 or shutil.which("chattr") is None,
        reason="mounts a file system, which only root may",
    ),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 32 MB: room for two of its checkpoints, not for three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder]).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def values_for(folder: Path, output: Path, name: str, **train: Any) -> dict[str, Any]:
    values = small(folder, train={"output": str(output), "name": name, **train})
    values["data"]["shapes"] = {**values["data"]["shapes"], "train_images": 24}
    return values


def run(config: Path, *arguments: str) -> tuple[int, str]:
    with started(*training(config, *arguments)) as program:
        code, _, errors = program.end(limit=120)
        assert program.orphans() == {}
    return code, errors


def check_one_line(errors: str, parts: list[str]) -> None:
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert all(part in line for part in parts), line
    assert "Traceback" not in errors
    assert "Logging error" not in errors


def check_same_end(tmp_path: Path, output: Path) -> None:
    """The run that was continued is the run that was never disturbed."""
    undisturbed = values_for(tmp_path, tmp_path, "whole", checkpoint_every=1)
    assert run(write_config(tmp_path, undisturbed))[0] == 0
    whole, cut = (
        load_checkpoint(folder / "last.pt") for folder in (tmp_path / "whole", output / "cut")
    )
    assert set(differences(whole, cut)) <= {
        "/config/train/name",
        "/config/train/output",
        "/config/train/checkpoint_every",
    }
    assert metrics(tmp_path / "whole") == metrics(output / "cut")


def test_a_disk_that_fills_up_in_a_save_costs_nothing_but_that_save(
    disk: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, values_for(tmp_path, disk, "cut", checkpoint_every=1))
    code, errors = run(config)
    assert code == 2
    check_one_line(
        errors, ["last.pt: cannot be written: No space left on device", "free disk space"]
    )
    steps = [
        load_checkpoint(disk / f"cut/{n}.pt")["progress"]["step"] for n in ("last", "previous")
    ]
    assert steps == [2, 1]
    assert not list((disk / "cut").glob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
    code, errors = run(config, "--resume")
    assert code == 0, errors
    check_same_end(tmp_path, disk)


def test_a_disk_without_room_for_a_log_line_ends_the_run_in_one_line(
    disk: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, values_for(tmp_path, disk, "cut", checkpoint_every=2))
    with started(*training(config)) as program:
        wait_until(lambda: lines_of(disk / "cut") >= 1, program)
        filler = disk / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True)
        code, _, errors = program.end()
        assert program.orphans() == {}
    assert code == 2
    check_one_line(errors, ["cannot be written: No space left on device"])
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
    code, errors = run(config, "--requeue")
    assert code == 0, errors
    check_same_end(tmp_path, disk)


def test_a_folder_that_becomes_read_only_keeps_its_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    values = values_for(tmp_path, tmp_path, "cut", checkpoint_every=4)
    config = write_config(tmp_path, values)
    with started(*training(config)) as program:
        wait_until(lambda: (folder / "last.pt").exists(), program)
        wait_until(lambda: not list(folder.glob(".*.tmp")), program)
        if subprocess.run(["chattr", "+i", folder], capture_output=True).returncode:
            pytest.skip("this file system has no immutable folders")
        try:
            code, _, errors = program.end()
        finally:
            subprocess.run(["chattr", "-i", folder], check=True)
    assert code == 2
    check_one_line(errors, ["last.pt: cannot be written: Operation not permitted"])
    assert load_checkpoint(folder / "last.pt")["progress"]["step"] % 4 == 0
    time.sleep(0.1)
    code, errors = run(config, "--resume")
    assert code == 0, errors
    check_same_end(tmp_path, tmp_path)
