"""Every tool ends alike: wrong input is one line and status 2, Ctrl-C is silent and 130."""

from __future__ import annotations

from types import ModuleType

import pytest

from data.errors import InputError
from scripts import (
    analyze,
    benchmark,
    check_gpu,
    compare_weightings,
    datasets,
    export,
    measure_cache,
    measure_endurance,
    plot,
    predict,
    study,
    tune,
)

TOOLS = [
    analyze, benchmark, check_gpu, compare_weightings, datasets, export, measure_cache,
    measure_endurance, plot, predict, study, tune,
]  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize(
    ("end", "status", "line"),
    [(KeyboardInterrupt(), 130, ""), (InputError("a.json: is empty"), 2, "a.json: is empty")],
    ids=["Ctrl-C", "wrong input"],
)
def test_a_tool_ends_without_a_traceback(
    tool: ModuleType,
    end: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise end

    monkeypatch.setattr(tool, "_parser", interrupted)
    assert tool.main([]) == status
    name = tool.__name__.removeprefix("scripts.")
    assert capsys.readouterr().err == (f"{name}.py: {line}\n" if line else "")
