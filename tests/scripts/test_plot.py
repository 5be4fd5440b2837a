"""plot.py draws what runs have, and says what they do not have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_curves import write_run

from data.errors import InputError
from scripts.curves import read_curves
from scripts.plot import draw, main, panels_of, shortest_names, smooth


def test_several_runs_are_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs = [write_run(tmp_path / name) for name in ("fixed", "alwa")]
    (runs[1] / "metrics.jsonl").unlink()  # TensorBoard's files do as well
    picture = tmp_path / "deep/curves.png"
    assert main([*map(str, runs), "--output", str(picture), "--smooth", "3", "--log"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert main([*map(str, runs), "--output", "x.xyz"]) == 2
    assert capsys.readouterr().out == ""  # said before anything is read
    assert "fixed: step 4, classification 0.2500" in told
    assert "alwa: step 4" in told


def test_smoothed_panels_say_so(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = read_curves(write_run(tmp_path / "run"))
    named = {"run": curves}
    titles = [axis.get_title() for axis in draw(named, panels_of(named, None), 3, False).axes]
    assert titles[0] == "raw losses (mean of 3 log lines)"
    assert not [title for title in titles[1:] if "log lines" in title]


@pytest.mark.parametrize(("runs", "letters"), [(2, 8), (5, 60), (14, 45), (3, 300)])
@pytest.mark.parametrize("tags", [None, ["loss/*"]])
def test_the_names_of_runs_fit_into_the_picture(
    runs: int, letters: int, tags: list[str] | None, tmp_path: Path
) -> None:
    to_rgba = pytest.importorskip("matplotlib.colors").to_rgba
    curves = read_curves(write_run(tmp_path / "run"))
    named = {f"{number}_{'w' * letters}": curves for number in range(runs)}
    figure = draw(named, panels_of(named, tags), 1, False)
    figure.canvas.draw()
    (legend,) = figure.legends
    box, room = legend.get_window_extent(), figure.bbox
    assert room.x0 <= box.x0 < box.x1 <= room.x1
    colors = [to_rgba(handle.get_color()) for handle in legend.get_lines()]
    assert len(set(colors)) == runs


def test_dollars_in_the_names_of_runs_begin_no_formula(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [str(write_run(tmp_path / name)) for name in ("$x^{$ $y", "other")]
    assert main([*runs, "--output", str(tmp_path / "curves.svg")]) == 0
    assert "<!-- $x^{$ $y -->" in (tmp_path / "curves.svg").read_text()


def test_json_has_the_curves_and_draws_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    assert main([str(run), "--tags", "loss/*", "--json"]) == 0
    curves = json.loads(capsys.readouterr().out)["run"]
    assert set(curves) == {"loss/classification", "loss/bbox_regression"}
    assert curves["loss/classification"] == {"steps": [2, 4], "values": [0.5, 0.25]}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_panels_without_curves_are_left_out(tmp_path: Path) -> None:
    runs = {"run": read_curves(write_run(tmp_path / "run"))}
    titles = [title for title, _, _ in panels_of(runs, None)]
    assert titles[0] == "raw losses"
    assert titles[-1] == "validation"
    one = {"run": {"lr": runs["run"]["lr"]}}
    assert [title for title, _, _ in panels_of(one, None)] == ["learning rate"]
    foreign = {"run": {"theirs/loss": runs["run"]["lr"]}}
    with pytest.raises(InputError, match=r"none of the default curves.* theirs/loss"):
        panels_of(foreign, None)


def test_a_running_mean_keeps_the_length_and_a_constant() -> None:
    for length in (1, 2, 7):
        for width in (1, 2, 3, 50):
            assert smooth(np.full(length, 2.0), width).tolist() == pytest.approx([2.0] * length)
    np.testing.assert_array_equal(smooth(np.array([1.0, 5.0, 3.0]), 1), [1, 5, 3])


def test_of_several_runs_those_without_curves_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    (tmp_path / "mlruns/0").mkdir(parents=True)
    (tmp_path / "young").mkdir()
    (tmp_path / "young/metrics.jsonl").touch()
    assert main(["mlruns", "run", "young", "--json"]) == 0
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["run"]
    assert "skipped: mlruns: has neither" in told.err
    assert "skipped: young: has no curves" in told.err
    assert main(["mlruns", "young"]) == 2
    assert "none of the 2 runs has curves" in capsys.readouterr().err
    assert main(["mlruns"]) == 2
    assert "mlruns: has neither" in capsys.readouterr().err
    assert main(["run", "misspelt"]) == 2  # a name that is none is no run without curves
    assert "misspelt: cannot be read" in capsys.readouterr().err


def test_other_files_beside_runs_are_left_out_and_damaged_runs_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = write_run(tmp_path / "damaged") / "metrics.jsonl"
    write_run(tmp_path / "run")
    (tmp_path / "curves.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "notes.txt").write_text("of nobody\n")
    others = ["curves.png", "notes.txt"]
    assert main([*others, "run", "--json", "--names", "a", "b", "run"]) == 0
    told = capsys.readouterr()
    assert list(json.loads(told.out)) == ["run"]
    for file in others:
        assert f"skipped: {file}: line 1 is not a log line" in told.err
        assert main([file]) == 2
    assert main(["curves.png", "run", "--json"]) == 0
    lines = damaged.read_text().splitlines(keepends=True)
    damaged.write_text(f"{lines[0]}damage\n{lines[1]}")
    capsys.readouterr()
    assert main(["damaged", "run", "--json"]) == 2
    assert "damaged/metrics.jsonl: line 2 is damaged; delete it" in capsys.readouterr().err


def test_runs_of_the_same_name_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shortest_names([Path("/a/x"), Path("/b/x")]) == ["a/x", "b/x"]
    run = write_run(tmp_path / "run")
    assert main([str(run), str(run)]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main([str(run), "--tags", "nothing/*"]) == 2
    assert (
        "no curve matches 'nothing/*'; choose from loss/classification" in capsys.readouterr().err
    )


def test_a_run_without_a_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(write_run(tmp_path / name)) for name in "ab"]
    assert main([*runs, "--names", "", "b"]) == 2
    assert "--names: a name is empty" in capsys.readouterr().err
