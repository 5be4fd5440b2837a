"""The runs of a figure, and the drawing function for its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Drawing

from data.errors import InputError
from engine.config import flatten
from scripts.studies.definition import Figure, Labels, Study
from scripts.studies.figures import ShownRun, draw_losses, draw_windows
from scripts.studies.ledger import results_folder
from scripts.studies.run import check_config, stage
from scripts.studies.shifting_box import draw_shift
from scripts.studies.side_by_side import draw_detections
from scripts.studies.weight_and_score import draw_weights


def shown_runs(
    study: Study,
    figure: Figure,
    runs: Path,
    extra: Mapping[str, Any],
    show: Sequence[str] | None,
    ledger: Path | None = None,
) -> list[ShownRun]:
    """Return the runs that a figure shows: for each of its cells the first seed that has begun.

    A figure of scores over weights shows every scored run of the study.

    Args:
        show: ``TITLE=FOLDER`` words: runs to show instead of the study's; for curves also
            ``TITLE=FILE``, a ``metrics.jsonl`` or an event file.
        ledger: has curves of runs that are not here; detections need a checkpoint.

    Raises:
        InputError: a run has not begun or none is scored, one has another config, or a word is not
            of that form.
    """
    if show is not None:
        of_files = figure.kind in ("losses", "windows")
        return [_named_run(word, of_files) for word in show]
    if figure.kind == "weights":
        return _scored_runs(study, runs, extra, ledger)
    cells = [first_cell(study, labels) for labels in figure.cells]
    if not cells and figure.kind != "shift":
        raise InputError("--only selects none of its runs; drop it, or choose others")
    needs_checkpoint = figure.kind == "detections"
    kept = None if needs_checkpoint else ledger
    return [_begun_run(study, labels, runs, extra, kept, needs_checkpoint) for labels in cells]


def first_cell(study: Study, wanted: Labels) -> Labels:
    """Return the first cell of the table that has all the labels.

    Raises:
        InputError: the table has no such cell.
    """
    for cell in study.cells():
        if wanted.items() <= cell.items():
            return cell
    raise InputError(f"{study.name} has no cell with {', '.join(wanted.values())}")


def draw(
    study: Study,
    number: str,
    figure: Figure,
    runs: Sequence[ShownRun],
    extra: Mapping[str, Any],
) -> Drawing:
    """Draw a figure.

    Raises:
        InputError: a run has not progressed far enough, or its data are missing.
    """
    heading = f"Figure {number}: {figure.caption or study.title}"
    if figure.kind == "shift":
        return draw_shift(heading)
    if figure.kind == "losses":
        return draw_losses(runs, heading)
    if figure.kind == "windows":
        return draw_windows(runs, heading)
    if figure.kind == "weights":
        return draw_weights(runs, figure.caption or study.title, study.score)
    data_root = flatten(extra).get("data.root")
    root = None if data_root is None else Path(data_root)
    return draw_detections(runs, heading, study.score.split, root)


def _scored_runs(
    study: Study, runs: Path, extra: Mapping[str, Any], ledger: Path | None
) -> list[ShownRun]:
    split, shown = study.score.split, []
    varied = {axis.name for axis in study.axes if len(axis.values) > 1}
    for labels in study.cells():
        title = ", ".join(label for name, label in labels.items() if name in varied)
        for seed in study.seeds:
            run = study.run(labels, seed, extra)
            folder = results_folder(run, split, runs, ledger)
            if stage(run, folder, split) == "scored":
                shown.append(ShownRun(title, folder))
    if not shown:
        raise InputError(f"no run of {study.name} is scored yet")
    return shown


def _begun_run(
    study: Study,
    labels: Labels,
    runs: Path,
    extra: Mapping[str, Any],
    ledger: Path | None,
    needs_checkpoint: bool,
) -> ShownRun:
    of_seeds = [study.run(labels, seed, extra) for seed in study.seeds]
    for seed, run in zip(study.seeds, of_seeds, strict=True):
        folder = results_folder(run, study.score.split, runs, ledger)
        if (folder / "config.yaml").is_file():
            check_config(run, folder)
            # The runs beside it are usually of the first seed.
            others = [] if seed == study.seeds[0] else [f"seed {seed}"]
            if stage(run, folder, study.score.split) not in ("trained", "scored"):
                others.append("not finished")
            return ShownRun(", ".join([*labels.values(), *others]), folder)
    place = f"{', '.join(labels.values())} (would be in {of_seeds[0].folder(runs)})"
    cure = "; the ledger keeps no checkpoints: train it with run --no-ledger"
    raise InputError(f"not run: {place}{cure if needs_checkpoint else ''}")


def _named_run(word: str, of_files: bool) -> ShownRun:
    title, equals, text = word.partition("=")
    path = Path(text)
    if not equals or not (path.is_dir() or (of_files and path.is_file())):
        files = ", its metrics.jsonl or an event file" if of_files else ""
        raise InputError(f"--show {word}: must be TITLE=FOLDER with the folder of a run{files}")
    return ShownRun(title, path)
