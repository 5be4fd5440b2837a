"""Which files predict.py looks at, and that it loses none of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets_on_disk import write_image
from tiny_runs import write_checkpoint

from data.errors import InputError
from engine.process.outputs import check_outputs
from scripts.predict import main
from scripts.prediction.inputs import find_sources
from scripts.prediction.pictures import write_picture


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    write_image(tmp_path / "a.png", 40, 40)
    return [str(write_checkpoint(tmp_path)), str(tmp_path / "a.png")]


@pytest.mark.parametrize("taken", ["a.png", "run/last.pt", "out/a.png"])
def test_results_replace_neither_an_input_nor_what_is_drawn(
    taken: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    words = ["--output", str(tmp_path / "out"), "--coco", str(tmp_path / taken)]
    assert main([*command, *words]) == 2
    reason = (
        "is given for two outputs" if "out" in taken else "is an input and would be overwritten"
    )
    assert f"{tmp_path / taken}: {reason}; choose another" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in before} == before


def test_two_links_to_one_file_are_two_pictures(tmp_path: Path) -> None:
    write_image(tmp_path / "store/1.png", 8, 8)
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "store/1.png")
    (tmp_path / "again").symlink_to(tmp_path / "photos")
    words = [str(tmp_path / "photos"), str(tmp_path / "again/a.png")]
    assert [source.name for source in find_sources(words)] == ["a", "b"]


def test_a_pattern_may_match_folders(tmp_path: Path) -> None:
    for name in ("one/a.png", "two/b.png", "c.png"):
        write_image(tmp_path / "photos" / name, 8, 8)
    found = find_sources([str(tmp_path / "photos/*")])
    assert [source.name for source in found] == ["c", "a", "b"]
    every = find_sources([str(tmp_path / "photos/**")])
    assert sorted(source.name for source in every) == ["a", "b", "c"]


def test_a_pattern_passes_over_folders_of_no_pictures_and_of_an_earlier_run(
    tmp_path: Path,
) -> None:
    photos = tmp_path / "photos"
    for name in ("a.png", "out/a.png", "out/deep/b.png"):
        write_image(photos / name, 8, 8)
    (photos / "notes").mkdir()
    for output in ("out", "out/deep/.."):
        found = find_sources([str(photos / "*")], photos / output)
        assert [source.path.name for source in found] == ["a.png"]


def test_twice_the_pictures_are_checked_in_twice_the_steps(tmp_path: Path) -> None:
    """Each against each took minutes for thousands."""
    inputs, outputs = ([tmp_path / name / f"{n}.png" for n in range(80)] for name in ("in", "out"))
    for file in (*inputs, *outputs):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    steps = []
    for count in (40, 80):
        calls: list[str] = []
        sys.setprofile(lambda _frame, event, _, calls=calls: calls.append(event))
        try:
            check_outputs(outputs[:count], inputs[:count])
        finally:
            sys.setprofile(None)
        steps.append(len(calls))
    assert steps[1] < 2.1 * steps[0]


def test_a_name_that_no_file_can_have_is_said(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--no-pictures", "--coco", str(tmp_path / f"{'x' * 300}.json")]) == 2
    assert "cannot be written: File name too long" in capsys.readouterr().err


def test_a_reader_that_leaves_costs_no_results(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class GoneReader(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", GoneReader())
    results = tmp_path / "results.json"
    with pytest.raises(BrokenPipeError):
        main([*command, "--no-pictures", "--coco", str(results)])
    assert isinstance(json.loads(results.read_text()), list)


def test_a_closed_standard_error_stops_nothing(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(command[1]).with_name("broken.png")
    broken.write_bytes(Path(command[1]).read_bytes()[:600])
    monkeypatch.setattr("sys.stderr", None)
    words = [*command, str(broken), "--no-pictures", "--json", "data.on_damaged=skip"]
    assert main(words) == 0
    assert list(json.loads(capsys.readouterr().out)["images"]) == ["a.png"]


def test_what_is_left_out_is_not_told_to_be_left_out(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:600])
    words = [*command, str(tmp_path / "broken.png"), "data.on_damaged=skip", "--no-pictures"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "skipped: " in said
    assert "on_damaged" not in said


def test_a_picture_too_large_for_its_format_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="an image of 70000x1 is too large for its format"):
        write_picture(tmp_path / "a.jpg", np.zeros((1, 70_000, 3), np.uint8))
