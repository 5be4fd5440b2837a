"""Messages of several ranks: once, and those that one rank alone has."""

from __future__ import annotations

import logging

import pytest

from engine.console import start_logging


@pytest.mark.parametrize("is_main_rank", [True, False])
def test_what_all_ranks_know_is_told_by_the_main_one(
    is_main_rank: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    start_logging(None, is_main_rank=is_main_rank)
    logging.getLogger("engine.build").warning("of the run")
    logging.getLogger("data.workers").warning("of an image")
    told = capsys.readouterr().err.splitlines()
    assert told == (["of the run", "of an image"] if is_main_rank else ["of an image"])
