"""Laws of the comparison of weightings on recorded losses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_studies import recorded_run

from data.errors import InputError
from scripts.curves import PAIRS
from scripts.figures import save_figure

ROOT = Path(__file__).parents[2]

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    path = ROOT / "scripts/compare_weightings.py"
    specification = importlib.util.spec_from_file_location("compare_weightings", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_rule_meets_the_recorded_losses_and_gradients(compare: ModuleType) -> None:
    recording = compare.read_recording(compare.RECORDING)
    count = len(recording["cls"])
    weights = {name: compare.replay(build(10), recording) for name, build in compare.RULES.items()}
    for name, values in weights.items():
        assert values.shape == (count, 2), name
        assert (values > 0).all(), name
    product = np.sqrt(np.array(recording["cls"]) * np.array(recording["box"]))
    total = (weights["GLS"] * np.stack([recording["cls"], recording["box"]], axis=1)).sum(axis=1)
    assert total == pytest.approx(product, rel=1e-4)
    gradients = [recording[f"{name}_gradient"][0] for name in ("cls", "box")]
    after_one = weights["GradNorm"][1]
    assert (after_one[0] < after_one[1]) == (gradients[0] > gradients[1])


def test_a_run_is_read_from_its_log_lines(compare: ModuleType, tmp_path: Path) -> None:
    for name, pair in {"one": PAIRS[0], "two": PAIRS[1]}.items():
        folder = recorded_run(
            tmp_path / name, pair, lines=3, every=1
        )  # and a line that is being written
        expected = {
            "cls": [2.0, 1.0, pytest.approx(2 / 3)],
            "box": [1.0, 0.5, pytest.approx(1 / 3)],
        }
        assert compare.read_recording(folder) == expected
        assert compare.read_recording(folder / "metrics.jsonl") == expected


def test_a_run_under_another_rule_and_one_without_a_window_are_warned_of(
    compare: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = recorded_run(tmp_path / "run", PAIRS[0], lines=5, every=1)
    (folder / "config.yaml").write_text("loss: {weighting: {type: alwa}}\n")
    words = [str(folder), "--output", str(tmp_path / "picture.png")]
    assert compare.main([*words, "--interval", "6"]) == 0
    said = capsys.readouterr().err
    assert "was trained with loss.weighting.type: alwa, which has shaped its losses" in said
    assert "has 5 iterations, fewer than a window of --interval 6" in said
    (folder / "config.yaml").write_text("loss: {of_another_version: 1}\n")
    assert compare.main([*words, "--interval", "5"]) == 0
    (folder / "config.yaml").write_text("loss: {weighting: {type: fixed}}\n")
    assert compare.main([*words, "--interval", "5"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_a_run_that_did_not_log_every_iteration_is_refused(
    compare: ModuleType, tmp_path: Path
) -> None:
    folder = recorded_run(tmp_path / "run", PAIRS[0], every=20)
    with pytest.raises(InputError, match=r"up to 20 iterations apart; .* train\.log_every=1"):
        compare.read_recording(folder)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_a_scale_that_is_none_is_refused(
    scale: str, compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([f"--scale={scale}"]) == 2
    assert "must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.json", None, "no such file"),
        ("broken.json", "{", "is not a json file"),
        ("odd.json", '{"cls": [1.0, 2.0], "box": [1.0]}', "of equal length"),
        ("half.json", '{"cls": [1.0, 2.0]}', "cls and box"),
        ("words.json", '{"cls": ["a"], "box": ["b"]}', "finite numbers"),
        ("nan.json", '{"cls": [NaN], "box": [1.0]}', "finite numbers"),
        ("none.json", '{"cls": [], "box": []}', "finite numbers"),
        ("one.json", '{"cls": [1], "box": [1], "cls_gradient": [1]}', "or neither"),
        ("metrics.jsonl", "{}\n", "line 1"),
    ],
)
def test_a_recording_that_is_none_is_refused(
    name: str,
    text: str | None,
    message: str,
    compare: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert compare.main([str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert name in said
    assert message in said.lower()


def test_the_page_holds_the_numbers_that_the_command_prints(compare: ModuleType) -> None:
    def rows(scale: float) -> dict[str, list[str]]:
        recording = compare.scaled(compare.read_recording(compare.RECORDING), scale)
        weights = {n: compare.replay(build(10), recording) for n, build in compare.RULES.items()}
        lines = compare.table(weights, recording).splitlines()[2:]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return {name: numbers for name, *numbers in cells}

    page = (ROOT / "docs/loss-weighting.md").read_text(encoding="utf-8")
    plain, tripled = rows(1.0), rows(3.0)
    for rule, numbers in plain.items():
        mean, _, _, last, total = tripled[rule]
        row = f"| {rule} | {' | '.join(numbers)} | | {mean} | {last} | {total} |"
        assert row in page, row


def test_a_picture_and_a_table_come_out(compare: ModuleType, tmp_path: Path) -> None:
    recording = {"cls": [2.0, 1.0, 1.5, 0.5], "box": [1.0, 0.25, 0.5, 0.5]}
    weights = {"GLS": compare.replay(compare.RULES["GLS"](2), recording)}
    assert compare.table(weights, recording).splitlines()[2].startswith("| GLS | 0.45 |")
    save_figure(compare.draw(weights, recording, 1.0), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_no_weight_is_outside_its_panel(compare: ModuleType) -> None:
    pytest.importorskip("matplotlib")
    recording = {"cls": [2.0, 1.0], "box": [1.0, 0.25]}
    weights = {"a": np.array([[0.02, 1.0], [0.5, 300.0]]), "b": np.ones((2, 2))}
    losses, *panels = compare.draw(weights, recording, 3.0).axes[:3]
    assert losses.get_title() == "raw losses as recorded, cls times 3"
    for panel in panels:
        low, high = panel.get_ylim()
        assert low < 0.02
        assert high > 300


@pytest.mark.parametrize(
    ("output", "message"),
    [("x.xyz", ".xyz is not an image format"), ("file/x.png", "cannot be written")],
)
def test_a_picture_that_cannot_be_written_is_named(
    output: str,
    message: str,
    compare: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("no folder")
    recording = tmp_path / "losses.json"
    recording.write_text('{"cls": [2.0, 1.0, 1.5], "box": [1.0, 0.25, 0.5]}')
    assert compare.main([str(recording), "--output", str(tmp_path / output)]) == 2
    said = capsys.readouterr().err
    assert output in said
    assert message in said


def test_without_matplotlib_it_says_so() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from scripts.compare_weightings import main; sys.exit(main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "figures need matplotlib" in done.stderr
    assert "Traceback" not in done.stderr
