"""Numbers on command lines that are none are named, whichever script is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scripts import analyze, compare_weightings, plot, predict


@pytest.mark.parametrize(
    ("main", "number", "message"),
    [
        (predict.main, "--batch=x", "--batch: 'x' is not a whole number of at least 1"),
        (predict.main, "--batch=0", "--batch: '0' is not a whole number of at least 1"),
        (predict.main, "--threshold=50", "--threshold: '50' is not a score between 0 and 1"),
        (predict.main, "--threshold=half", "--threshold: 'half' is not a score between 0 and 1"),
        (analyze.main, "--threshold=nan", "--threshold: 'nan' is not a score between 0 and 1"),
        (analyze.main, "--resamples=0", "--resamples: '0' is not a whole number of at least 1"),
        (analyze.main, "--seed=-1", "--seed: '-1' is not a whole number of at least 0"),
        (analyze.main, "--worst=-1", "--worst: '-1' is not a whole number of at least 0"),
        (plot.main, "--smooth=1.5", "--smooth: '1.5' is not a whole number of at least 1"),
        (compare_weightings.main, "--interval=1", "'1' is not a whole number of at least 2"),
    ],
)
def test_a_number_that_is_none_is_named(
    main: Callable[[list[str]], int],
    number: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["last.pt", number])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
