"""Numbers on command lines that are none are named, whichever script is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scripts import compare_weightings, plot, predict


@pytest.mark.parametrize(
    ("main", "words", "message"),
    [
        (
            predict.main,
            ["last.pt", "a.jpg", "--batch", "x"],
            "'x' is no whole number of at least 1",
        ),
        (
            predict.main,
            ["last.pt", "a.jpg", "--batch", "0"],
            "'0' is no whole number of at least 1",
        ),
        (plot.main, ["runs/a", "--smooth", "1.5"], "'1.5' is no whole number of at least 1"),
        (compare_weightings.main, ["--interval", "1"], "'1' is no whole number of at least 2"),
    ],
)
def test_a_number_that_is_none_is_named(
    main: Callable[[list[str]], int],
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
