"""Messages of several ranks: once, and those that one rank alone has."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from engine.process.console import start_logging


@pytest.mark.parametrize("rank", [0, 1])
def test_what_all_ranks_know_is_told_by_the_main_one(
    rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(tmp_path, rank=rank)
    logging.getLogger("engine.build").warning("of the run")
    logging.getLogger("data.workers").warning("of an image")
    told = capsys.readouterr().err.splitlines()
    assert told == (["of an image"] if rank else ["of the run", "of an image"])
    logged = (tmp_path / "train.log").read_text().splitlines()
    expected = ["rank 1: of an image"] if rank else ["of the run", "of an image"]
    assert [line.partition("WARNING ")[2] for line in logged] == expected


def test_another_rank_that_may_not_write_the_log_tells_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.log").mkdir()  # as unwritable as it gets
    start_logging(tmp_path, rank=1)
    logging.getLogger("data.workers").warning("of an image")
    assert capsys.readouterr().err == "of an image\n"
    with pytest.raises(IsADirectoryError):
        start_logging(tmp_path)
